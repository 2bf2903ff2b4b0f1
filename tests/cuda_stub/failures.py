"""Recordings that fail, under the stub: the state must be what it was, and the plain step must go on from there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

import subject
import torch
from observe import card, make_task, messages, watch_run
from torch import Tensor

Spoil = Callable[[Tensor], None]
"""Does harm, if it is time, when a batch goes into the network."""


def tensors_of(state: subject.State) -> dict[str, Tensor]:
    """All that a step may change: weights, statistics, momenta, the average, the sum of losses."""
    momenta = {
        f"momentum {i} {j} {k}": optimizer.state[p]["momentum_buffer"]
        for i, optimizer in enumerate(state.optimizers)
        for j, group in enumerate(optimizer.param_groups)
        for k, p in enumerate(group["params"])
    }
    return {**state.model.state_dict(), **momenta, **{f"mean {n}": v for n, v in state.average.mean.items()},
            "loss_sum": state.loss_sum}  # fmt: skip


@torch.no_grad()
def fill_with_noise(tensors: dict[str, Tensor], seed: int) -> None:
    """So that each tensor is told apart from zeros and from each other; from the host, as kernels do nothing."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in tensors.values():
        noise = torch.randint(1, 1000, tensor.shape, generator=generator)
        tensor.copy_(noise.to(tensor.dtype).to(memory_format=torch.preserve_format))


def values(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


class Changing:
    """The network, in a forward pass that also overwrites the whole state, as a real step would.

    By copies from other memory of the card: kernels do nothing here, copies do, and a capture records them.
    """

    def __init__(self, state: subject.State, spoil: Spoil) -> None:
        self.state, self.spoil = state, spoil
        self.tensors = tensors_of(state)
        self.others = {name: torch.empty_like(tensor) for name, tensor in self.tensors.items()}
        fill_with_noise(self.others, seed=2)

    def __call__(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(self.others[name])
        self.spoil(x)
        return self.state.model(x)


@contextmanager
def capture_streams() -> Iterator[list[torch.cuda.Stream]]:
    """The list gets the streams that graphs are captured on, where the state is put back when that fails."""
    streams, make = list[torch.cuda.Stream](), subject.CudaGraphs.__init__

    def make_and_note(self: subject.CudaGraphs) -> None:
        make(self)
        streams.append(self.stream)

    with mock.patch.object(subject.CudaGraphs, "__init__", make_and_note):
        yield streams


def recording(spoil: Spoil, before: Callable[[], None] = lambda: None, **settings: Any) -> dict[str, Any]:
    """Makes the step with `spoil` at work; what the state then is, and what steps after it do."""
    task = make_task(low_res_px=24, low_res_until=0.5, scale="small", **settings)
    state = subject.start_state(task)
    state.model.eval()
    tensors = tensors_of(state)
    fill_with_noise(tensors, seed=1)
    state.average.count = 3
    expected, stream = values(tensors), torch.cuda.current_stream()
    before()
    with messages() as said, card.counting() as while_recording, capture_streams() as streams:
        step = subject.make_step(task, state, Changing(state, spoil))
    awaited = all(card.knows(stream, other) for other in streams)  # before the host waits, which hides it
    card.fail_allocations(False)
    card.fail_captured_launch(0)
    found = values(tensors)
    told = {
        "recorded": isinstance(step, subject.CapturedStep),
        "changed": [name for name, value in expected.items() if not torch.equal(value, found[name])],
        "replaced": [
            name for name, tensor in tensors_of(state).items() if tensor.data_ptr() != tensors[name].data_ptr()
        ],
        "gradients": sum(p.grad is not None for p in state.model.parameters()),
        "stream_kept": torch.cuda.current_stream() == stream,
        "awaited": awaited,
        "capturing": torch.cuda.is_current_stream_capturing(),
        "training": state.model.training,
        "count": state.average.count,
        "step": state.step,
        "said": said,
        "while_recording": while_recording,
    }
    return told | {"then": go_on(task, state)}


def go_on(task: subject.Task, state: subject.State) -> dict[str, Any]:
    """Two plain steps after a recording that failed: what they count."""
    step = subject.Step(task, state, state.model)
    state.model.train()
    with card.running_beside(task.executor.stream), card.counting() as counted:
        step.begin(next(task.executor.blocks(task.plans())))
        for i in range(2):
            step(i)
            state.step += 1
    return counted


# ---- what goes wrong


def nothing(x: Tensor) -> None:
    pass


def reads_a_number(x: Tensor) -> None:
    """Illegal in a capture, and not before."""
    if torch.cuda.is_current_stream_capturing():
        torch.zeros((), device=x.device).item()


class OutOfMemory:
    """The card has no memory left from the n-th forward pass on: 1, 2: the rehearsal, 3, 4: the recording."""

    def __init__(self, nth: int) -> None:
        self.left = nth

    def __call__(self, x: Tensor) -> None:
        self.left -= 1
        if self.left == 0:
            if not torch.cuda.is_current_stream_capturing():
                torch.cuda.empty_cache()  # else memory that torch has kept would do
            card.fail_allocations(True)
            torch.empty(1 << 28, device=x.device)


def ends_on_another_stream(x: Tensor) -> None:
    """A fork that is never joined."""
    if torch.cuda.is_current_stream_capturing():
        fork = torch.cuda.Stream()
        fork.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(fork):
            torch.zeros(4, device=x.device)


def launches_outside(x: Tensor) -> None:
    """Work on the default stream in the middle of a capture: it is not part of the graph. In place, as a capture
    forbids the allocation that another tensor may need.
    """
    if torch.cuda.is_current_stream_capturing():
        with torch.cuda.stream(torch.cuda.default_stream()):
            x.add_(1)


# ---- a whole run


def run_whose_recording_fails(launch: int) -> dict[str, Any]:
    """Trains to its end without what failed."""
    card.fail_captured_launch(launch)
    try:
        return watch_run(make_task())
    finally:
        card.fail_captured_launch(0)


# ---- on the CPU


def recording_on_the_cpu(fail_at: int) -> dict[str, Any]:
    """The same by a recorder that runs the work, then fails at its n-th image size: real kernels, real changes."""
    task = make_task(device="cpu", precision="fp32", scale="small", low_res_px=24, low_res_until=0.5)
    state = subject.start_state(task)
    tensors = tensors_of(state)
    expected, calls = values(tensors), iter(range(1, 9))

    def recorder(work: Callable[[], None]) -> Callable[[], None]:
        work()
        if next(calls) == fail_at:
            raise RuntimeError("made to fail")
        return work

    failed = False
    try:
        subject.CapturedStep(task, state, state.model, recorder)
    except RuntimeError:
        failed = True
    found = values(tensors)
    return {
        "failed": failed,
        "changed": [name for name, value in expected.items() if not torch.equal(value, found[name])],
        "gradients": sum(p.grad is not None for p in state.model.parameters()),
    }


# ---- a fault put in on purpose


@contextmanager
def nothing_restored() -> Iterator[None]:
    preserved = subject.State.preserved
    subject.State.preserved = lambda self: nullcontext()  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        subject.State.preserved = preserved  # type: ignore[method-assign]


def without_restoring(spoil: Spoil, before: Callable[[], None]) -> dict[str, Any]:
    with nothing_restored():
        return recording(spoil, before)


CASES: dict[str, Callable[[], Any]] = {
    "succeeds muon": partial(recording, nothing),
    "succeeds sgd": partial(recording, nothing, optimizer="sgd"),
    "succeeds fp32": partial(recording, nothing, precision="fp32"),
    "succeeds fp16": partial(recording, nothing, precision="fp16"),
    "first launch fails": partial(recording, nothing, lambda: card.fail_captured_launch(1)),
    "a launch of the forward pass fails": partial(recording, nothing, lambda: card.fail_captured_launch(20)),
    "a launch of the update fails": partial(recording, nothing, lambda: card.fail_captured_launch(250)),
    "a launch at the second image size fails": partial(recording, nothing, lambda: card.fail_captured_launch(450)),
    "a launch fails, sgd": partial(recording, nothing, lambda: card.fail_captured_launch(100), optimizer="sgd"),
    "a launch fails, fp32": partial(recording, nothing, lambda: card.fail_captured_launch(100), precision="fp32"),
    "a launch of the update fails, fp16": partial(
        recording, nothing, lambda: card.fail_captured_launch(250), precision="fp16"
    ),
    "reads a number": partial(recording, reads_a_number),
    "out of memory, rehearsal": lambda: recording(OutOfMemory(1)),
    "out of memory, rehearsal of the second size": lambda: recording(OutOfMemory(2)),
    "out of memory, recording": lambda: recording(OutOfMemory(3)),
    "out of memory, recording of the second size": lambda: recording(OutOfMemory(4)),
    "fork not joined": partial(recording, ends_on_another_stream),
    "launches outside": partial(recording, launches_outside),
    "run": partial(run_whose_recording_fails, 100),
    "run, evaluation fails": partial(run_whose_recording_fails, 600),
    "cpu, succeeds": partial(recording_on_the_cpu, 0),
    "cpu, first size fails": partial(recording_on_the_cpu, 1),
    "cpu, second size fails": partial(recording_on_the_cpu, 2),
    "fault: not restored": partial(without_restoring, nothing, lambda: card.fail_captured_launch(100)),
    "fault: not restored, no failure": partial(without_restoring, nothing, lambda: None),
}
