"""What a run is, as frozen values: the parts of the method, and apart from them where and how the run takes place.

Two configs train the same weights exactly when `epochs`, `seed` and the parts from `data` to `tail` are equal;
`evaluation` measures the result, `machine` and `run` say where and how. The command line is made from these fields
(`fastcifar.cli.flags`), and `fastcifar.config.recipes` has the configs that have names.

A point in a run (tail start, milestone, end of the low resolution) is a fraction of the run when it is below 1 and an
epoch from 1 up. So `--epochs N` keeps the proportions.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from fastcifar.config.schedule import Schedule, epoch_of
from fastcifar.config.schedules import Plateau
from fastcifar.config.shapes import SHAPES, Shape
from fastcifar.config.validation import ABOVE_0, AT_LEAST_0, FRACTION, UP_TO_1, Need, Part, Range, setting

SMOKE_IMAGES = 2_000
"""Training images of a smoke run for which no subset is chosen."""
EPOCHS = Range("above 0 and at most 100,000", lambda v: 0 < v <= 100_000)
ACCURACY = Range("a fraction, such as 0.94", lambda v: 0 < v < 1)
_RISING = Range("at least 0 and rising", lambda v: all(a >= b for a, b in zip(v, (0, *v), strict=False)))
_TWO_RISING = Range("two rising points of the run", lambda v: not v or (len(v) == 2 and 0 <= v[0] <= v[1] and v[1] > 0))

HAS_TAIL = Need("an averaging tail (--swa-start)", lambda config, _: config.tail is not None)
HAS_VIEWS = Need("test-time views (--tta flip or flip-shift)", lambda config, _: config.evaluation.tta != "none")
LOW_RES = Need("a low-resolution part (--low-res-until above 0)", lambda config, _: any(config.augment.low_res_until))
RESNET9 = Need("--network resnet9", lambda config, _: config.is_resnet9)
TRAINS_STAGES = Need(
    "--network resnet9 whose stages are trained",
    lambda config, _: RESNET9.holds(config, _) and config.model.freeze != "all-but-head",
)
SETS_MOMENTUM = Need(
    "--optimizer muon, or a schedule that does not cycle the momentum",
    lambda config, _: (
        config.optimizer.name == "muon"
        or not config.schedule.cycles_momentum
        or (config.tail is not None and config.tail.start == 0)
    ),
)
MEASURES_EARLIER = Need(
    "a run that measures before its end (--eval-every below --epochs)",
    lambda config, _: config.evaluation.eval_every < config.epochs,
)
SEVERAL_SEEDS = Need("several seeds (add --runs N)", lambda config, _: config.run.runs > 1)
CONTINUES = Need(
    "a single run that is continued (add --resume RUN_DIR)",
    lambda config, command: command.resume is not None and config.run.runs == 1,
)


@dataclass(frozen=True, kw_only=True)
class Data(Part):
    """What is trained on."""

    source: str = setting("auto", flag="data")
    """auto, cifar10, cifar100, synthetic, or a path: official folder or archive, image folder or tar of one, .npz."""
    subset: int | None = setting(None, ABOVE_0)
    """Train on this many images, classes in equal parts, and test on a fifth as many."""
    test_split: float = setting(0.0, FRACTION)
    """Fraction of each class of a set without test images that becomes the test images, the same in every run."""
    val_split: float = setting(0.0, FRACTION)
    """Fraction of the training images held out; per-epoch accuracy (and plateau) then uses them, not the test set."""


@dataclass(frozen=True, kw_only=True)
class Model(Part):
    """The network."""

    network: Literal["resnet9", "resnet18", "shakeshake26", "shakedrop"] = "resnet9"
    """Network: the fast default, the classic baseline, or one of two with random branches for long runs."""
    scale: Literal["auto", "full", "small", "wide"] = "auto"
    """Size of the network: full on a GPU; small ends the default run in minutes on 2 CPU cores; wide for accuracy."""
    shape: Shape | None = setting(None, needs=RESNET9)
    """resnet9: its layers as JSON, in place of those that the scale names (docs/architecture.md)."""
    norm: Literal["bn", "gn-ws"] = "bn"
    """Batch norm, or group norm with weight standardisation."""
    activation: Literal["relu", "gelu", "silu"] = "relu"
    """Non-linearity after each norm."""
    init: str | None = None
    """Fine-tune: start from the weights of this run folder or model.safetensors, with a new head if the number of
    classes differs."""
    start: Literal["random", "cosines"] = setting("random", needs=RESNET9)
    """resnet9: how the filters begin that are more than their inputs: random, or rows of a cosine transform."""
    train_stem: Literal["always", "low-res"] = setting("always", needs=RESNET9)
    """resnet9: train the biases of the first convolution always, or only in the low-resolution part, where there is
    one. The gradient of its output serves them alone, and at full size it is costly."""
    cool_first_stage: tuple[float, ...] = setting((), _TWO_RISING, needs=TRAINS_STAGES)
    """resnet9: between these two points of the run (fractions below 1, else epochs) the learning rate of the stem and
    the first stage falls to 0; from then on they are fixed, and no backward pass goes through them."""
    freeze: Literal["none", "stem", "all-but-head"] = "none"
    """Weights that stay as they are: those of the first convolution, or all but those of the classifier."""

    def __post_init__(self) -> None:
        if self.shape is not None:
            object.__setattr__(self, "shape", Shape.of(self.shape))  # from a file, a flag or Python
        super().__post_init__()

    @property
    def layers(self) -> Shape:
        """Layers of resnet9; its scale must be resolved (not auto)."""
        return self.shape or SHAPES[self.scale]


@dataclass(frozen=True, kw_only=True)
class Augment(Part):
    """How the training images are varied."""

    crop_pad_px: int = setting(4, Range("from 0 to 8", lambda v: 0 <= v <= 8))
    """Reflect-pad by this many pixels, then crop at random."""
    mirror: Literal["alternating", "random", "none"] = "random"
    """Left-right mirror: random side in the first epoch and the other side each next epoch; or random each time."""
    order: Literal["random", "balanced"] = "random"
    """Order of an epoch: random, or random within each class and the classes interleaved."""
    cutout_px: int = setting(0, AT_LEAST_0)
    """Size of the square that is blanked at a random place; 0: none."""
    low_res_px: tuple[int, ...] = setting(
        (), Range("from 16 to 32", lambda v: all(16 <= px <= 32 for px in v)), needs=LOW_RES
    )
    """Image sizes of the first parts of the run, in their order; below 32 they save arithmetic."""
    low_res_until: tuple[float, ...] = setting((), _RISING)
    """End of each of these parts (fraction below 1, else epoch). An epoch that is not over then has the next size."""

    def __post_init__(self) -> None:
        for name in ("low_res_px", "low_res_until"):
            value = getattr(self, name)
            object.__setattr__(self, name, value if isinstance(value, tuple) else (value,))  # of one part
        super().__post_init__()
        if len(self.low_res_px) != len(self.low_res_until):
            raise ValueError(f"low_res_px has {len(self.low_res_px)} sizes and low_res_until {len(self.low_res_until)} "
                             "ends; give an end for each size")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Optimizer(Part):
    """The loss and how a step lowers it."""

    name: Literal["sgd", "apex-sgd", "muon"] = setting("sgd", flag="optimizer")
    """Nesterov SGD (torch fused), NVIDIA apex's FusedSGD, or Muon on filters with SGD on the rest."""
    batch_size: int = setting(within=ABOVE_0)
    """Images per optimizer step. Rates, their scales and --swa-every stay as they are: choose them for the new size."""
    momentum: float = setting(0.9, FRACTION, needs=SETS_MOMENTUM)
    """Momentum of SGD; also the schedule's, where that does not cycle momentum."""
    weight_decay: float = setting(5e-4, AT_LEAST_0)
    """L2 decay of filters and head; never applied to norms and biases."""
    bias_lr_scale: float = setting(1.0, AT_LEAST_0)
    """Learning rate of biases relative to the schedule."""
    head_lr_scale: float = setting(1.0, AT_LEAST_0)
    """Learning rate of the classifier relative to the schedule."""
    label_smoothing: float = setting(0.0, FRACTION)
    """Probability mass spread evenly over all classes, the true one among them."""


@dataclass(frozen=True, kw_only=True)
class Tail(Part):
    """The Stochastic Weight Averaging tail (Izmailov et al. 2018, arXiv:1803.05407)."""

    start: float = setting(2 / 3, AT_LEAST_0, "swa_start")
    """Where the averaging tail begins (fraction below 1, else epoch); None: no tail."""
    lr: float = setting(0.01, AT_LEAST_0, "swa_lr", HAS_TAIL)
    """Learning rate in the tail."""
    anneal: float = setting(0.0, AT_LEAST_0, "swa_anneal", HAS_TAIL)
    """Length of the linear change from the cycle's last learning rate to swa_lr (fraction of the run below 1, else
    epochs)."""
    momentum: float | None = setting(None, FRACTION, "swa_momentum", HAS_TAIL)
    """Momentum in the tail; None: the cycle's last value."""
    every_steps: int | None = setting(None, ABOVE_0, "swa_every", HAS_TAIL)
    """Add the weights to the average every so many steps of the tail; None: at the end of each epoch."""
    swag_rank: int = setting(0, Range("0 or from 2 to 1000", lambda v: v == 0 or 2 <= v <= 1000), needs=HAS_TAIL)
    """SWAG (Maddox et al. 2019): also keep the spread of the averaged weights, and the deviations of the last so many
    of them from their mean, in swag.safetensors; 0: none."""


@dataclass(frozen=True, kw_only=True)
class Evaluation(Part):
    """How the accuracy is measured."""

    decides_weights: ClassVar[bool] = False
    tta: Literal["none", "flip", "flip-shift"] = "none"
    """Test-time views: the image and its mirror; flip-shift adds both shifted by a pixel."""
    tta_share: float = setting(1.0, UP_TO_1, needs=HAS_VIEWS)
    """Share of all test images that get the views: those whose two largest logits are closest. Of several processes,
    each takes the share of its own images."""
    eval_every: int = setting(1, ABOVE_0)
    """Measure test accuracy after every so many epochs (and at the end)."""

    @property
    def views(self) -> int:
        """Views of an image that the figure of the run is made of; with tta_share below 1, of the least sure ones."""
        return {"none": 1, "flip": 2, "flip-shift": 6}[self.tta]


@dataclass(frozen=True, kw_only=True)
class Machine(Part):
    """Where the run takes place."""

    decides_weights: ClassVar[bool] = False
    device: Literal["auto", "cuda", "cpu", "mps"] = "auto"
    """Where to train."""
    precision: Literal["auto", "fp16", "bf16", "fp32"] = "auto"
    """Arithmetic of the forward pass; auto: bf16 where the hardware multiplies it faster, else fp32."""
    compile: Literal["auto", "off", "default", "reduce-overhead", "max-autotune"] = setting("auto", from_file=False)
    """torch.compile mode; auto: off, which was faster on every device that was measured."""
    cuda_graph: bool = True
    """Record the step once and replay it, where that can be: on a CUDA card, not with apex, in one process."""
    fused_kernels: bool = True
    """Pool, norm and activation of resnet9 in own Triton kernels: on a CUDA card, in one process, not with compile."""
    executor: Literal["auto", "dali", "torch"] = setting("auto", flag="augment")
    """What executes the augmentation plan; auto: torch, which was faster wherever both were measured."""
    deterministic: bool = False
    """Two runs with the same seed agree bit for bit on one machine."""
    cache_dir: str | None = setting(None, from_file=False)
    """Where decoded data sets are kept (default: $FASTCIFAR_CACHE, else ~/.cache/fastcifar)."""


@dataclass(frozen=True, kw_only=True)
class Run(Part):
    """What is done with the run."""

    decides_weights: ClassVar[bool] = False
    recipe: str = "custom"
    """Named recipe whose values are the defaults of all other flags."""
    smoke: bool = False
    """One epoch on 2,000 images: checks that everything works here."""
    runs: int = setting(1, Range("from 1 to 100,000", lambda v: 1 <= v <= 100_000), in_python=False)
    """Train this many seeds, seed, seed+1, ..., and report statistics."""
    parallel: Literal["data", "seeds"] = setting("data", in_python=False)
    """Under torchrun: share each step's batch between the processes, or give each its own seeds."""
    keep_all: bool = setting(False, needs=SEVERAL_SEEDS, in_python=False)
    """With --runs N: keep a run folder of each seed, seed<S> in the run folder, and end with the table of their
    ensemble."""
    target: float | None = setting(None, ACCURACY)
    """Accuracy (fraction) whose share of runs is reported."""
    stop_at: float | None = setting(None, ACCURACY, needs=MEASURES_EARLIER)
    """End the run after the epoch whose accuracy (fraction; held-out with --val-split) is at least this."""
    extend_epochs: float | None = setting(None, EPOCHS, needs=CONTINUES)
    """With --resume: continue to this many epochs."""
    checkpoint_every: int | None = setting(None, AT_LEAST_0)
    """Write checkpoint.pt after every so many epochs; 0: only when interrupted and at the end; None: at the end of an
    epoch, once half a minute of training has passed since the last."""


@dataclass(frozen=True, kw_only=True)
class Config(Part):
    """All settings of a run. Raises ValueError when two parts do not fit together."""

    epochs: float = setting(within=EPOCHS)
    """Passes over the training images; a fraction ends inside an epoch."""
    seed: int = setting(0, AT_LEAST_0)
    """Seed of initialisation and augmentation."""
    data: Data = field(default=Data())
    model: Model = field(default=Model())
    augment: Augment = field(default=Augment())
    optimizer: Optimizer
    schedule: Schedule
    tail: Tail | None = None
    evaluation: Evaluation = field(default=Evaluation())
    machine: Machine = field(default=Machine())
    run: Run = field(default=Run())
    from_python: str = ""
    """Parts that came from Python, with commas: network, optimizer, loss, transform. No file holds them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed + self.run.runs > 2**63:
            raise ValueError(f"seed is {self.seed}; it must be below 2^63")
        if self.tail and self.tail.start >= 1 and self.tail.start >= self.epochs:
            raise ValueError(f"swa_start is epoch {self.tail.start:g} but the run has {self.epochs:g} epochs")
        if isinstance(self.schedule, Plateau) and self.data.val_split == 0:
            raise ValueError("schedule plateau needs held-out images: add --val-split 0.1 (tuning on the test set "
                             "would spoil its figure)")  # fmt: skip
        if isinstance(self.schedule, Plateau) and self.evaluation.eval_every != 1:
            raise ValueError("schedule plateau needs the accuracy of every epoch: eval_every must be 1")

    @property
    def is_resnet9(self) -> bool:
        """Whether the network is ours of that name."""
        return self.model.network == "resnet9" and "network" not in self.from_python

    @property
    def cools_first_stage(self) -> bool:
        """Whether `cool_first_stage` has an effect; a recipe may have it where the network or optimizer is another."""
        ours = "optimizer" not in self.from_python and TRAINS_STAGES.holds(self, None)
        return ours and bool(self.model.cool_first_stage)

    def epoch_of(self, when: float) -> float:
        """Epoch of a point that is given as a fraction of the run (below 1) or as an epoch (from 1 up)."""
        return epoch_of(when, self.epochs)

    @property
    def final_epochs(self) -> float:
        """Epochs of the run with its extension."""
        return self.run.extend_epochs or self.epochs
