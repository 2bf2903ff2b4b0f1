"""Every knob of a run, once: the fields of one frozen dataclass. The command line is made from these fields.

Times that a person may give as part of a run (milestones, tail start, restart period) share one rule: a value
below 1 is a fraction of the run, a value from 1 up is a number of epochs. So `--epochs N` keeps the proportions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

Schedule = Literal["onecycle", "multistep", "step", "cosine", "restarts", "cyclic", "plateau", "constant", "linear"]
Optimizer = Literal["sgd", "apex-sgd", "muon"]
Compile = Literal["auto", "off", "default", "reduce-overhead", "max-autotune"]

_NOT_NEGATIVE = (
    "crop_pad_px", "cutout_px", "low_res_until", "lr_peak", "momentum", "weight_decay", "bias_lr_scale",
    "head_lr_scale", "eta_min", "base_lr", "patience", "end_factor", "swa_lr", "swa_anneal", "seed",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a run. Raises ValueError, naming the field, when a value makes no sense."""

    # What is trained, on what
    recipe: str = "swa30"
    """Named recipe whose values are the defaults of all other flags."""
    epochs: float = 30.0
    """Passes over the training images; a fraction ends inside an epoch."""
    data: str = "auto"
    """auto, cifar10, synthetic, or a path: official folder or archive, image folder or tar of one, .npz."""
    cache_dir: str | None = None
    """Where decoded data sets are kept (default: $FASTCIFAR_CACHE, else ~/.cache/fastcifar)."""
    subset: int | None = None
    """Train on this many images, classes in equal parts, and test on a fifth as many."""
    val_split: float = 0.0
    """Fraction of the training images held out; per-epoch accuracy (and plateau) then uses them, not the test set."""
    smoke: bool = False
    """One epoch on 2,000 images: checks that everything works here."""
    scale: Literal["auto", "full", "small", "wide"] = "auto"
    """Size of the network: full on a GPU; small ends the default run in minutes on 2 CPU cores; wide for accuracy."""
    network: Literal["resnet9", "resnet18"] = "resnet9"
    """Network: the fast default or the classic baseline."""
    norm: Literal["bn", "gn-ws"] = "bn"
    """Batch norm, or group norm with weight standardisation."""
    activation: Literal["relu", "gelu", "silu"] = "silu"
    """Non-linearity after each norm."""

    # On which machine, how
    device: Literal["auto", "cuda", "cpu", "mps"] = "auto"
    """Where to train."""
    precision: Literal["auto", "fp16", "bf16", "fp32"] = "auto"
    """Arithmetic of the forward pass; auto: bf16 where the hardware multiplies it faster, else fp32."""
    compile: Compile = "auto"
    """torch.compile mode; auto: on where it pays back within the run."""
    cuda_graph: bool = True
    """Record the step once and replay it, where that can be: on a CUDA card, not in fp16 or with apex, one process."""
    augment: Literal["auto", "dali", "torch"] = "auto"
    """Who executes the augmentation plan."""
    deterministic: bool = False
    """Two runs with the same seed agree bit for bit on one machine."""
    batch_size: int = 500
    """Images per optimizer step."""

    # Augmentation
    crop_pad_px: int = 4
    """Reflect-pad by this many pixels, then crop at random."""
    mirror: Literal["alternating", "random", "none"] = "alternating"
    """Left-right mirror: random side in the first epoch and the other side each next epoch; or random each time."""
    cutout_px: int = 0
    """Side of the square that is blanked at a random place; 0: none."""
    low_res_px: int = 24
    """Image side during the first part of the run; below 32 it saves arithmetic."""
    low_res_until: float = 0.6
    """End of the low-resolution part (fraction below 1, else epoch)."""

    # Optimizer
    optimizer: Optimizer = "muon"
    """Nesterov SGD (torch fused), NVIDIA apex's FusedSGD, or Muon on filters with SGD on the rest."""
    lr_peak: float = 0.12
    """Largest learning rate of the schedule (the optimizer's lr in schedules that start at their largest)."""
    momentum: float = 0.85
    """Momentum where the schedule does not cycle it."""
    weight_decay: float = 5e-5
    """L2 decay of filters and head; never applied to norms and biases."""
    bias_lr_scale: float = 55.0
    """Learning rate of biases relative to the schedule."""
    head_lr_scale: float = 175.0
    """Learning rate of the classifier relative to the schedule."""
    label_smoothing: float = 0.2
    """Probability mass given to the other classes."""

    # Schedule, in torch.optim.lr_scheduler's terms
    schedule: Schedule = "onecycle"
    """Learning-rate schedule."""
    pct_start: float = 0.2
    """onecycle: fraction of the cycle spent rising."""
    momentum_min: float = 0.6
    """onecycle, cyclic: momentum at the largest learning rate."""
    momentum_max: float = 0.9
    """onecycle, cyclic: momentum at the smallest learning rate."""
    cycle_momentum: bool = True
    """onecycle, cyclic: cycle the momentum against the learning rate."""
    anneal_strategy: Literal["cos", "linear"] = "linear"
    """onecycle: shape of both halves."""
    div_factor: float = 10.0
    """onecycle: lr_peak / first learning rate."""
    final_div_factor: float | None = None
    """onecycle: first / last learning rate; None: 1e4, or with a tail whatever ends the cycle at swa_lr."""
    milestones: tuple[float, ...] = (0.5, 0.8)
    """multistep: where the learning rate drops (fractions below 1, else epochs)."""
    gamma: float = 0.1
    """multistep, step: factor of each drop."""
    step_size: float = 0.3
    """step: distance between drops (fraction below 1, else epochs)."""
    eta_min: float = 0.0
    """cosine, restarts: smallest learning rate."""
    t_0: float = 1 / 3
    """restarts: length of the first cycle (fraction below 1, else epochs)."""
    t_mult: int = 2
    """restarts: growth of each next cycle."""
    base_lr: float = 0.001
    """cyclic: smallest learning rate."""
    cyclic_mode: Literal["triangular", "triangular2", "exp_range"] = "triangular"
    """cyclic: how the peaks change."""
    cyclic_gamma: float = 0.9999
    """cyclic exp_range: torch's gamma, the factor per step."""
    cycles: int = 5
    """cyclic: triangles over the run, equal in length."""
    factor: float = 0.1
    """plateau: factor of each drop."""
    patience: int = 3
    """plateau: epochs without improvement before a drop."""
    end_factor: float = 0.0
    """linear: last learning rate / lr_peak."""

    # Averaging tail
    swa_start: float | None = 2 / 3
    """Where the SWA tail begins (fraction below 1, else epoch); None: no tail."""
    swa_lr: float = 0.012
    """Learning rate in the tail."""
    swa_anneal: float = 0.0
    """Way from the cycle's last learning rate to swa_lr, linear (fraction of the run below 1, else epochs)."""
    swa_momentum: float | None = None
    """Momentum in the tail; None: the cycle's last value."""
    swa_every: int | None = 5
    """Record the weights every so many steps of the tail; None: at the end of each epoch."""
    tta: Literal["none", "flip", "flip-shift"] = "flip-shift"
    """Test-time views: the image and its mirror; flip-shift adds both shifted by a pixel."""
    tta_share: float = 0.25
    """Share of the test images that get the views: those of which the network is least sure."""

    # This run
    seed: int = 0
    """Seed of initialisation and augmentation."""
    runs: int = 1
    """Train this many seeds, seed, seed+1, ..., and report statistics."""
    parallel: Literal["data", "seeds"] = "data"
    """Under torchrun: share each step's batch between the processes, or give each its own seeds."""
    target: float | None = None
    """Accuracy (fraction) whose share of runs is reported."""
    out: str | None = None
    """Run folder; default runs/<utc time>-<recipe>-s<seed>."""
    resume: str | None = None
    """Run folder to continue, or auto for the newest unfinished one below runs/."""
    extend_epochs: float | None = None
    """With --resume: go on to this many epochs."""
    eval_every: int = 1
    """Measure test accuracy after every so many epochs (and at the end)."""
    checkpoint_every: int | None = None
    """Write checkpoint.pt after every so many epochs; 0: only when interrupted and at the end; None: at the end
    of an epoch, once half a minute of training has passed since the last."""
    plot_schedule: bool = False
    """Draw learning rate and momentum to schedule.png and stop."""
    dry_run: bool = False
    """Build everything, train nothing, print the plan."""
    debug: bool = False
    """Show tracebacks."""

    def __post_init__(self) -> None:
        _check_types(self)
        for name in (
            "epochs",
            "batch_size",
            "runs",
            "eval_every",
            "div_factor",
            "t_mult",
            "t_0",
            "step_size",
            "cycles",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name in _NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")
        for name in ("subset", "swa_every", "extend_epochs", "final_div_factor"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        for name in ("pct_start", "momentum", "momentum_min", "momentum_max", "label_smoothing", "val_split"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"{name} is {value}; it must be in [0, 1)")
        if self.swa_momentum is not None and not 0 <= self.swa_momentum < 1:
            raise ValueError(f"swa_momentum is {self.swa_momentum}; it must be in [0, 1)")
        if max(self.epochs, self.extend_epochs or 0) > 100_000:
            raise ValueError(f"epochs is {max(self.epochs, self.extend_epochs or 0):g}; at most 100,000")
        if self.checkpoint_every is not None and self.checkpoint_every < 0:
            raise ValueError(f"checkpoint_every is {self.checkpoint_every}; it must be at least 0")
        if self.seed + self.runs > 2**63:
            raise ValueError(f"seed is {self.seed}; it must be below 2^63")
        if not 0 < self.tta_share <= 1:
            raise ValueError(f"tta_share is {self.tta_share}; it must be in (0, 1]")
        if self.target is not None and not 0 < self.target < 1:
            raise ValueError(f"target is {self.target}; give the accuracy as a fraction, such as 0.94")
        if self.momentum_min > self.momentum_max:
            raise ValueError(f"momentum_min {self.momentum_min} is above momentum_max {self.momentum_max}")
        if not (0 < self.gamma <= 1 and 0 < self.factor < 1):
            raise ValueError(f"gamma {self.gamma} must be in (0, 1] and factor {self.factor} in (0, 1)")
        if not 0 < self.cyclic_gamma <= 1:
            raise ValueError(f"cyclic_gamma is {self.cyclic_gamma}; it must be in (0, 1]")
        if not 16 <= self.low_res_px <= 32:
            raise ValueError(f"low_res_px is {self.low_res_px}; it must be from 16 to 32")
        if self.crop_pad_px > 8:
            raise ValueError(f"crop_pad_px is {self.crop_pad_px}; at most 8")
        if list(self.milestones) != sorted(self.milestones) or any(m <= 0 for m in self.milestones):
            raise ValueError(f"milestones {self.milestones} must be positive and in increasing order")
        if self.swa_start is not None and self.swa_start < 0:
            raise ValueError(f"swa_start is {self.swa_start}; it must be at least 0")
        if self.swa_start is not None and self.swa_start >= 1 and self.swa_start >= self.epochs:
            raise ValueError(f"swa_start is epoch {self.swa_start:g} but the run has {self.epochs:g} epochs")
        if self.schedule == "plateau" and self.val_split == 0:
            raise ValueError("schedule plateau watches held-out images: add --val-split 0.1 (tuning on the test set "
                             "would spoil its figure)")  # fmt: skip
        if self.extend_epochs is not None and self.resume is None:
            raise ValueError("extend_epochs continues an earlier run: add --resume RUN_DIR")
        if self.runs > 1 and self.extend_epochs is not None:
            raise ValueError("extend_epochs goes on with one run: it does not go with --runs")

    def at(self, when: float) -> float:
        """Epoch of a point given as a fraction of the run (below 1) or an epoch (from 1 up)."""
        return when * self.epochs if when < 1 else when


def _check_types(config: Config) -> None:
    """Literals, finite numbers and plain types, so that a config from a file is as safe as one from the flags."""
    hints = get_type_hints(Config)
    for f in fields(config):
        value: Any = getattr(config, f.name)
        hint = hints[f.name]
        choices = get_args(hint) if "Literal" in str(hint) else ()
        if choices and value not in choices:
            raise ValueError(f"{f.name} is {value!r}; known: {', '.join(map(str, choices))}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{f.name} is {value}; it must be finite")
        if f.name == "milestones":
            if not isinstance(value, tuple) or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in value):
                raise ValueError(f"milestones is {value!r}; it must be a list of numbers")
            continue
        plain = [t for t in (bool, int, float, str) if t in (hint, *get_args(hint))]
        wanted = (*plain, int) if float in plain else tuple(plain)
        if choices or (value is None and type(None) in get_args(hint)):
            continue
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in plain):
            raise ValueError(f"{f.name} is {value!r}; it must be {' or '.join(t.__name__ for t in plain)}")
