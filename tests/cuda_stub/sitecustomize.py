"""Triton's compiler under the stub: it stops after its own language, because a kernel does nothing here.

Python imports this file when it starts, as it lies on the PYTHONPATH of a process under the stub. Whether the kernels
compile for a card is asked elsewhere in these tests, by the same compiler without this hook.
"""

import re
from typing import Any

try:
    from triton import knobs
except ImportError:
    knobs = None

KEY = "no code behind Triton's own language"


def stop_early(backend: Any = None, stages: Any = None, *_: Any) -> Any:
    """Takes the stages behind Triton's language out of a compilation; without arguments the key of its cache."""
    if backend is None:
        return KEY, KEY
    for stage in ("ttgir", "llir", "ptx"):
        del stages[stage]
    stages["cubin"] = no_code
    return None


def no_code(module: Any, metadata: dict[str, Any]) -> bytes:
    """What a launch asks of a kernel: its name, and that it needs no memory of its own."""
    (metadata["name"],) = re.findall(r"tt\.func public @(\w+)", str(module))
    metadata |= {"shared": 0, "tmem_size": 0}
    for scratch in ("global_scratch", "profile_scratch"):
        metadata |= {f"{scratch}_size": 0, f"{scratch}_align": 1}
    return metadata["name"].encode()


if knobs is not None:
    knobs.runtime.add_stages_inspection_hook = stop_early
