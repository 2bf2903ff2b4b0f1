"""What recorded work reads and writes: a CUDA graph keeps addresses, so what lies there must stay.

On the CPU a recorder repeats the work itself, which would follow a buffer that was replaced. So the addresses are
compared at each replay with those at the recording.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class FromOutside(TorchDispatchMode):
    """Notes each use of memory that was there before the work: the operation, the address, and whether it lives on."""

    def __init__(self) -> None:
        super().__init__()
        self.uses: list[tuple[str, int]] = []
        self.storages: dict[int, StorageWeakRef] = {}
        self._made: dict[int, Tensor] = {}  # kept until the end of the work, so that no address occurs twice

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        returned = function(*args, **kwargs or {})
        inputs = {_address(t): t for t in before}
        for address, tensor in inputs.items():
            if address and address not in self._made:
                self.uses.append((function.name(), tensor.data_ptr()))
                self.storages[address] = StorageWeakRef(tensor.untyped_storage())
        for tensor in tree_leaves(returned):
            if isinstance(tensor, Tensor) and _address(tensor) not in inputs:
                self._made[_address(tensor)] = tensor
        return returned

    def run(self, work: Callable[[], None]) -> FromOutside:
        with self:
            work()
        self._made = {}
        return self

    def freed(self) -> int:
        """How many of the buffers are no more."""
        return sum(storage.expired() for storage in self.storages.values())


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def same_addresses(work: Callable[[], None]) -> Callable[[], None]:
    """A recorder: a replay does the work again, and must find everything where it was at the recording."""
    recorded = FromOutside().run(work)

    def replay() -> None:
        again = FromOutside().run(work)
        moved = [at_first for at_first, now in zip(recorded.uses, again.uses, strict=True) if at_first != now]
        assert not moved, f"a graph would read and write elsewhere in {len(moved)} operations: {moved[:3]}"
        assert not recorded.freed()

    return replay
