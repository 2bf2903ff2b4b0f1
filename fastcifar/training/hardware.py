"""Resolves every `auto` setting for the machine at hand, once: where a run starts, and nothing later decides again."""

import os
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fastcifar.config.config import Config

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Hardware:
    """Where a run computes, and why its settings are what they are."""

    device: torch.device
    dtype: torch.dtype
    """Of activations and of the batches."""
    reasons: dict[str, str] = field(default_factory=dict)
    """A short one for each setting that was `auto`, by the name of its flag."""

    @property
    def on_card(self) -> bool:
        """Whether it is a CUDA card."""
        return self.device.type == "cuda"


def resolve(config: Config, local_rank: int = 0) -> tuple[Config, Hardware]:
    """The config as it is trained here, without `auto`, and the hardware: where every command starts.

    `device` alone stays as it is: a run may be resumed on another one. Turns torch's deterministic algorithms on, for
    the rest of the process, when the config asks for them. ValueError when a choice is not available here.
    """
    if config.machine.deterministic:
        make_deterministic()  # before the first CUDA call, which the choice of the precision may be
    device = _device(config.machine.device, local_rank)
    on_card, reasons = device.type == "cuda", dict[str, str]()

    def resolved(flag: str, value: str, auto: str, reason: str) -> Any:
        if value != "auto":
            return value
        reasons[flag] = reason
        return auto

    machine, scale = config.machine, "full" if on_card else "small"
    # Compiled code was slower than the fused kernels on an H100 and than eager code on a CPU, and a short run pays for
    # the compiler, too (records/2026-11-26_h100, records/2026-11-25_compile). DALI made a run longer on an H100, before
    # its blocks were mended (docs/dali-report.md); after that it is not measured.
    machine = replace(
        machine,
        precision=resolved("precision", machine.precision, *_fast_precision(device)),
        compile=resolved("compile", machine.compile, "off", "compiled code was slower on an H100 and on a CPU"),
        executor=resolved("augment", machine.executor, "torch",
                          "DALI was slower when it was measured" if on_card else "no CUDA card"),
    )  # fmt: skip
    if machine.precision == "fp16" and not on_card:
        raise ValueError(
            f"precision fp16 needs a CUDA card, this run is on {device.type}; use --precision bf16 or fp32"
        )
    scale = resolved("scale", config.model.scale, scale, "full on a GPU, small elsewhere")
    model = replace(config.model, scale=scale)
    return replace(config, model=model, machine=machine), Hardware(device, DTYPES[machine.precision], reasons)


def _fast_precision(device: torch.device) -> tuple[str, str]:
    """What the device multiplies fastest, and the reason."""
    if device.type == "cuda":
        has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
        return "bf16" if has_bf16 else "fp16", "bf16 from compute capability 8.0 on"
    if device.type == "cpu" and cpu_multiplies_bf16():
        return "bf16", "this CPU multiplies bf16"
    return "fp32", "no bf16 arithmetic here"


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


def make_deterministic() -> None:
    """Makes equal seeds give bit-equal runs on one machine. Must be called before the first CUDA call of a process."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
