"""What runs on what: the `auto` settings of a Config, decided for the machine at hand, with the reason for each."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, field

import torch

from fastcifar.config import Config

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COMPILE_PAYS_PFLOP = 20.0
"""Training work above which compiling on a GPU is expected to pay back its tens of seconds: an estimate (half a
minute to compile, half a millisecond saved in a step of 0.37 TFLOP), not measured on a card."""
PFLOP_PER_EPOCH = {"small": 0.0025, "full": 0.0354, "wide": 0.135}
"""Forward and backward of 50,000 images by resnet9, on average over its image sizes."""


@dataclass(frozen=True)
class Machine:
    """Decisions for this machine; `why` has a short reason for each that was `auto`."""

    device: torch.device
    precision: str
    compile: str
    augment: str
    scale: str
    why: dict[str, str] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """dtype of activations and of the batches."""
        return DTYPES[self.precision]

    @property
    def name(self) -> str:
        """The device as a person would call it."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        if self.device.type == "cpu":
            return f"{_cpu_name()}, {torch.get_num_threads()} threads"
        return self.device.type


def choose(config: Config, local_rank: int = 0) -> Machine:
    """Decides device, precision, compile, augmentation and scale. ValueError when what was asked for is not here."""
    why: dict[str, str] = {}
    device = _device(config, local_rank)
    on_gpu = device.type == "cuda"

    precision = config.precision
    if precision == "auto" and on_gpu:
        precision = "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
        why["precision"] = "bf16 from compute capability 8.0 on"
    elif precision == "auto":
        precision = "bf16" if device.type == "cpu" and cpu_multiplies_bf16() else "fp32"
        why["precision"] = "this CPU multiplies bf16" if precision == "bf16" else "no bf16 arithmetic here"
    if precision == "fp16" and not on_gpu:
        raise ValueError(
            f"precision fp16 needs a CUDA card, this run is on {device.type}; use --precision bf16 or fp32"
        )

    scale = config.scale
    if scale == "auto":
        scale = "full" if on_gpu else "small"
        why["scale"] = "full on a GPU, small elsewhere"

    compile_mode = config.compile
    if compile_mode == "auto":
        # On CPUs the compiled step was slower than the eager one (LOG.md).
        pflop = config.runs * config.epochs * PFLOP_PER_EPOCH[scale]
        compile_mode = "default" if on_gpu and pflop >= COMPILE_PAYS_PFLOP else "off"
        why["compile"] = "pays back within the run" if compile_mode != "off" else "would not pay back within the run"

    augment = config.augment
    if augment == "auto":
        augment = "dali" if on_gpu and has_dali() else "torch"
        why["augment"] = "DALI on the card" if augment == "dali" else ("no DALI here" if on_gpu else "CPU")
    return Machine(device, precision, compile_mode, augment, scale, why)


def has_dali() -> bool:
    """Whether DALI is installed; it is not imported, so whether it runs is known only once an executor exists."""
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # no package named nvidia at all
        return False


def _device(config: Config, local_rank: int) -> torch.device:
    wanted = config.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        built = (
            "this torch is built without CUDA" if torch.version.cuda is None else "no working driver or card is seen"
        )
        raise ValueError(f"device cuda: {built} (check `nvidia-smi`); use --device cpu or leave it out")
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device mps: not available in this torch or on this machine; use --device cpu")
    return torch.device(wanted, local_rank) if wanted == "cuda" else torch.device(wanted)


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
    """Bit-equal runs for equal seeds on one machine. Must come before the first CUDA call of the process."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
