"""Builds the stub of the CUDA runtime and runs Python on it.

This file imports neither torch nor fastcifar: it is used on both sides, by the tests and by the process under the stub.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COUNTERS = (
    "launches", "library_calls", "copies_to_device", "copies_to_host", "copies_on_device", "pageable_copies",
    "memsets", "waits", "replays", "captured", "allocations", "frees", "outside", "illegal", "unordered",
    "reused", "freed",
)  # fmt: skip
"""In the order of `enum counter` in card.h."""


class CannotBuild(RuntimeError):
    """There is no stub on this machine; the message says why."""


# ---- for the tests


def build() -> Path:
    """The folder with the two libraries, built once per state of their sources."""
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if not compiler:
        raise CannotBuild("no C compiler (cc, gcc, clang)")
    includes = [f"-I{folder}" for folder in _header_folders()]
    sources = sorted(HERE.glob("*.[ch]"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources) + repr(includes).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"fastcifar-cuda-stub-{os.getuid()}-{digest}"
    folder.mkdir(mode=0o700, exist_ok=True)
    with locked(folder / "lock"):
        runtime = [HERE / name for name in ("runtime.c", "order.c", "capture.c", "kernels.c", "libraries.c")]
        for name, parts in (("libcuda_stub.so", runtime), ("libcuda.so.1", [HERE / "driver.c"])):
            if not (folder / name).exists():
                _compile(compiler, includes, parts, folder / name)
    return folder


def _header_folders() -> list[Path]:
    """Of the CUDA runtime, from the packages that torch's CUDA build brings."""
    folders = []
    for package, inside in (("nvidia", "cu13/include"), ("triton", "backends/nvidia/include")):
        found = importlib.util.find_spec(package)
        places = [Path(place) / inside for place in (found.submodule_search_locations or [] if found else [])]
        folders += [place for place in places if place.is_dir()]
    if not any((folder / "cuda_runtime_api.h").exists() for folder in folders):
        raise CannotBuild("no cuda_runtime_api.h: this torch is not built for CUDA 13")
    return folders


def _compile(compiler: str, includes: list[str], sources: list[Path], target: Path) -> None:
    """Into place at once, so that a build that was cut off leaves nothing half made."""
    half = target.with_suffix(".half")
    command = [compiler, "-std=gnu11", "-O1", "-Wall", "-shared", "-fPIC", *includes, *map(str, sources), "-o",
               str(half), "-lpthread"]  # fmt: skip
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        raise RuntimeError(f"the CUDA stub does not compile:\n{made.stderr}")
    half.replace(target)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a file's lock, against the tests' other processes."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def environment(folder: Path) -> dict[str, str]:
    """Of a process that finds the stub in CUDA's place. A real card is not seen by it."""
    return {
        **os.environ,
        "LD_PRELOAD": str(folder / "libcuda_stub.so"),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("LD_LIBRARY_PATH", "")])),
        "PYTHONPATH": os.pathsep.join([os.environ.get("CUDA_STUB_CODE", str(ROOT)), str(HERE)]),
        "CUDA_MODULE_LOADING": "LAZY",
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "OMP_NUM_THREADS": "1",
    }


def cpu_name() -> str:
    """Model of the CPU, for records of host time."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def run_python(arguments: list[str], timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
    """Python under the stub, in the repository's root."""
    return subprocess.run([sys.executable, *arguments], env=environment(build()), cwd=ROOT, capture_output=True,
                          text=True, timeout=timeout_s)  # fmt: skip


# ---- for the process under the stub


class Card:
    """What the stub counts, and its switches."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(None)
        self._demangle = ctypes.CDLL("libstdc++.so.6")["__cxa_demangle"]
        self._demangle.restype = ctypes.c_char_p

    def counters(self) -> dict[str, int]:
        """All of them, since the process began."""
        values = (ctypes.c_long * len(COUNTERS))()
        self.library.stub_read_counters(values)
        return dict(zip(COUNTERS, values, strict=True))

    @contextmanager
    def counting(self) -> Iterator[dict[str, int]]:
        """The dictionary is filled at the end, with what was counted in between; zeros are left out."""
        before, counted = self.counters(), {}
        yield counted
        counted.update({name: n - before[name] for name, n in self.counters().items() if n != before[name]})

    def kernels(self) -> dict[str, int]:
        """Launches by the kernel's name, since `forget_kernels`; recorded ones count too, replayed ones do not."""
        name, launched, at, found = ctypes.c_char_p(), ctypes.c_long(), 0, {}
        self.library.stub_launched_kernel.argtypes = [ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        self.library.stub_launched_kernel.restype = ctypes.c_long
        while at := self.library.stub_launched_kernel(at, ctypes.byref(name), ctypes.byref(launched)):
            plain = self._demangle(name.value, None, None, None) or name.value or b""
            found[plain.decode()] = launched.value
        return found

    def forget_kernels(self) -> None:
        self.library.stub_forget_kernels()

    def fail_captured_launch(self, k: int) -> None:
        """The k-th launch that is recorded from now on fails, once; 0: none."""
        self.library.stub_fail_captured_launch(ctypes.c_long(k))

    def fail_allocations(self, on: bool) -> None:
        """The card has no memory left to give, or has again."""
        self.library.stub_fail_allocations(int(on))

    @contextmanager
    def late(self) -> Iterator[None]:
        """Asked whether an event is done, the card says no until the host has waited for it: the slowest card."""
        self.library.stub_events_are_late(1)
        try:
            yield
        finally:
            self.library.stub_events_are_late(0)

    @contextmanager
    def running_beside(self, stream: Any) -> Iterator[None]:
        """A stream of torch (or None) is meant to run beside all others: what it does is not counted as unordered."""
        if stream:
            self.run_beside(stream, True)
        try:
            yield
        finally:
            if stream:
                self.run_beside(stream, False)

    def run_beside(self, stream: Any, beside: bool) -> None:
        """From now on a stream of torch is, or is not, meant to run beside all others."""
        self.library.stub_run_beside(ctypes.c_void_p(stream.cuda_stream), int(beside))

    def knows(self, stream: Any, other: Any) -> bool:
        """Whether a stream of torch was made to wait for all that another was given so far."""
        return bool(self.library.stub_knows(*(ctypes.c_void_p(s.cuda_stream) for s in (stream, other))))

    @contextmanager
    def without_effects(self) -> Iterator[None]:
        """Copies and all else are only counted: for the host's time, which a copy in host memory would add to."""
        self.library.stub_leave_out_effects(1)
        try:
            yield
        finally:
            self.library.stub_leave_out_effects(0)
