"""Resolves the `auto` settings that depend on the machine: device, precision, compile mode, executor and scale.

The command line prints the reasons; the resolved scale and precision become part of the run's config, so that a
resumed run keeps them.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, field, replace

import torch

from fastcifar.config.config import Config

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COMPILE_COSTS: dict[str, tuple[float, float]] = {"cpu": (398.0, -70_600.0), "cuda 9.0": (42.0, -0.5)}
"""By class of device (`device_class`): seconds of a cold compile, and seconds that compiled code saves per PFLOP of
training, which is negative where it is slower. Only what was measured (cpu: on a busy machine, so only the sign of the
saving counts, records/2026-11-25_compile; cuda 9.0: beside the fused kernels, records/2026-11-26_h100)."""
DALI_COSTS: dict[str, tuple[float, float]] = {"cuda 9.0": (0.27, 6.7)}
"""By class of device: seconds that an epoch takes longer with DALI than with torch, and seconds of training per PFLOP
with torch. Only what was measured: cuda 9.0 before DALI's blocks were mended (docs/dali-report.md), so its first number
is too large now (records/2026-11-26_h100: `speedrun94`, 3.60 s of training against 1.60)."""
DALI_MOST_SHARE = 0.03
"""`--augment auto` takes DALI where the whole training takes at most this share longer than with torch."""
PFLOP_PER_EPOCH = {"small": 0.0025, "full": 0.0354, "wide": 0.114}
"""Forward and backward of 50,000 images by resnet9, on average over its image sizes."""


@dataclass(frozen=True)
class Hardware:
    """Where and in which arithmetic a run computes; `reasons` has a short one for each setting that was `auto`."""

    device: torch.device
    precision: str
    compile: str
    executor: str
    scale: str
    reasons: dict[str, str] = field(default_factory=dict)
    fused: bool = False
    """Whether the Triton kernels of `fastcifar.models.fused` run: known after the warm-up."""
    conv_kernels: dict[str, str] = field(default_factory=dict)
    """What each layer uses those of `fastcifar.models.pooled_conv` for, by name and size: known after the warm-up."""

    @property
    def dtype(self) -> torch.dtype:
        """dtype of activations and of the batches."""
        return DTYPES[self.precision]

    @property
    def name(self) -> str:
        """Name of the device as its maker gives it, with the number of threads on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        if self.device.type == "cpu":
            return f"{_cpu_name()}, {torch.get_num_threads()} threads"
        return self.device.type


def choose_hardware(config: Config, local_rank: int = 0) -> Hardware:
    """Resolves device, precision, compile mode, executor and scale. ValueError when a choice is not available here."""
    settings, reasons = config.machine, dict[str, str]()
    device = _device(settings.device, local_rank)
    on_gpu = device.type == "cuda"

    precision: str = settings.precision
    if precision == "auto" and on_gpu:
        precision = "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
        reasons["precision"] = "bf16 from compute capability 8.0 on"
    elif precision == "auto":
        precision = "bf16" if device.type == "cpu" and cpu_multiplies_bf16() else "fp32"
        reasons["precision"] = "this CPU multiplies bf16" if precision == "bf16" else "no bf16 arithmetic here"
    if precision == "fp16" and not on_gpu:
        raise ValueError(
            f"precision fp16 needs a CUDA card, this run is on {device.type}; use --precision bf16 or fp32"
        )

    scale: str = config.model.scale
    if scale == "auto":
        scale = "full" if on_gpu else "small"
        reasons["scale"] = "full on a GPU, small elsewhere"

    compile_mode: str = settings.compile
    if compile_mode == "auto":
        pflop = config.run.runs * config.epochs * PFLOP_PER_EPOCH[scale]
        compile_mode, reasons["compile"] = choose_compile_mode(device_class(device), pflop)

    executor: str = settings.executor
    if executor == "auto":
        executor, reasons["augment"] = choose_executor(device_class(device), PFLOP_PER_EPOCH[scale])
    return Hardware(device, precision, compile_mode, executor, scale, reasons)


def device_class(device: torch.device) -> str:
    """Devices of one class gain alike by compiling: "cpu", or a card's generation such as "cuda 9.0"."""
    if device.type != "cuda":
        return device.type
    return "cuda {}.{}".format(*torch.cuda.get_device_capability(device))


def choose_compile_mode(device: str, pflop: float) -> tuple[str, str]:
    """Mode of torch.compile for a training of so many PFLOP on a class of devices, and the reason.

    Off where nothing is measured: a short run would lose by it, and no run can then be slower than uncompiled.
    """
    if device not in COMPILE_COSTS:
        return "off", f"not measured on {device}: python -m bench.compile does"
    compile_s, saved_s_per_pflop = COMPILE_COSTS[device]
    saved_s = saved_s_per_pflop * pflop
    if saved_s <= 0:
        return "off", f"compiled code is slower on {device}"
    mode = "default" if saved_s > compile_s else "off"
    return mode, f"saves {saved_s:.0f} s, compiling takes {compile_s:.0f} s"


def choose_executor(device: str, pflop_per_epoch: float) -> tuple[str, str]:
    """The executor, dali or torch, for epochs of so many PFLOP on a class of devices, and the reason."""
    if not device.startswith("cuda"):
        return "torch", "no CUDA card"
    if device not in DALI_COSTS:
        return "torch", f"DALI is not measured on {device}: python -m bench.loader does"
    added_s, s_per_pflop = DALI_COSTS[device]
    share = added_s / (s_per_pflop * pflop_per_epoch)
    if share > DALI_MOST_SHARE:
        return "torch", f"DALI made a run {share:.0%} longer when it was measured"
    if not has_dali():
        return "torch", "DALI is not installed"
    return "dali", f"makes a run at most {DALI_MOST_SHARE:.0%} longer than torch"


def resolve(config: Config, local_rank: int = 0) -> tuple[Config, Hardware]:
    """The config as it is trained here, and the hardware: where every command and `fastcifar.train` start.

    Turns torch's deterministic algorithms on, for the rest of the process, when the config asks for them. ValueError
    when a choice is not available here.
    """
    if config.machine.deterministic:
        make_deterministic()  # before the first CUDA call, which the choice of the hardware may be
    hardware = choose_hardware(config, local_rank)
    return with_hardware(config, hardware), hardware


def with_hardware(config: Config, hardware: Hardware) -> Config:
    """The config with the scale and precision that were resolved, which a resumed run must keep."""
    return replace(
        config,
        model=replace(config.model, scale=hardware.scale),  # type: ignore[arg-type]  # checked by Model
        machine=replace(config.machine, precision=hardware.precision),  # type: ignore[arg-type]  # checked by Machine
    )


def has_dali() -> bool:
    """Whether DALI is installed. It is not imported: whether it runs is known only once an executor exists."""
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # no package named nvidia at all
        return False


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        built = (
            "this torch is built without CUDA" if torch.version.cuda is None else "no working driver or card is found"
        )
        raise ValueError(f"device cuda: {built} (check `nvidia-smi`); use --device cpu or leave it out")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device mps: not available in this torch or on this machine; use --device cpu")
    return torch.device(name, local_rank) if name == "cuda" else torch.device(name)


def cpu_multiplies_bf16() -> bool:
    """Whether the CPU has bf16 dot products (AVX512-BF16 or AMX); emulated bf16 would be slower than fp32."""
    if hasattr(torch.cpu, "get_capabilities"):
        has = torch.cpu.get_capabilities()
        return bool(has.get("avx512_bf16") or has.get("amx_bf16"))
    private = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # torch before get_capabilities
    return bool(private and private())


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as f:
            return next(line.partition(":")[2].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        return "CPU"


def make_deterministic() -> None:
    """Makes equal seeds give bit-equal runs on one machine. Must be called before the first CUDA call of a process."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
