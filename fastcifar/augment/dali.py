"""Carries out a plan with NVIDIA DALI, on a stream of its own, `prefetch` steps ahead of the training.

Shapes: B images of a step, G groups, F images of a group, H W = 32 pixels, P pixels of padding, C = 3 channels.

Per-sample arguments cost DALI's host code O(samples^2) per batch: 5 ms at 500 samples. A plan sorts each batch by
(crop, mirror), so the images that share both are handed over as one sequence, layout FHWC: at most 2 (2P+1)^2 samples
whatever the batch size, and still every image has its own draw. FHWC is also the more exact way: DALI computes it in
fp32 and rounds once, while it computes single images (HWC) to fp16 in fp16.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack

from fastcifar.augment.images import DeviceImages
from fastcifar.augment.plan import EpochPlan
from fastcifar.augment.torch_executor import finish

ADVICE = "pip install nvidia-dali-cuda130 (driver before 580: nvidia-dali-cuda120), or use --augment torch"


class DaliUnavailable(RuntimeError):
    """DALI is missing or does not run here. The message is one line: what is wrong, what to do."""

    def __init__(self, error: BaseException) -> None:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        super().__init__(f"DALI does not run here: {reason.rstrip('.')[:200]}; {ADVICE}")


class DaliExecutor:
    """Executor on DALI: its GPU operators for images on a card, else its CPU operators."""

    def __init__(self, data: DeviceImages, cutout_px: int = 0, prefetch: int = 2) -> None:
        self.data, self.cutout_px = data, cutout_px
        self.size = data.padded.shape[1] - 2 * data.pad_px
        # DALI has no bf16: its fp32 is cast.
        self.output_dtype = torch.float16 if data.dtype == torch.float16 else torch.float32
        # A stream of its own for the gather: on the training stream it would queue up behind the training.
        self.stream = torch.cuda.Stream(data.padded.device) if data.padded.is_cuda else None
        if self.stream:
            self.stream.wait_stream(torch.cuda.current_stream(data.padded.device))
        # What DALI is fed: images and arguments, step by step. A list, so that the pipeline need not refer to self.
        self.feeds: list[Iterator[Any]] = [iter(()), iter(())]
        one = torch.zeros(1, 1, dtype=torch.int64)
        try:
            self.pipe, self.copy_output = self._build(prefetch)
            for _ in self.epoch(EpochPlan(one, one, one, one.bool(), one, one)):
                pass  # driver trouble shows up to here, not in the first epoch
        except (ImportError, RuntimeError, AttributeError, TypeError) as error:  # the last two: a DALI too old for this
            raise DaliUnavailable(error) from error

    def _build(self, prefetch: int) -> tuple[Any, Any]:
        from nvidia.dali import fn, pipeline_def, types
        from nvidia.dali.plugin.pytorch import feed_ndarray

        data, feeds = self.data, self.feeds
        device = "gpu" if data.padded.is_cuda else "cpu"

        @pipeline_def(
            batch_size=2 * (2 * data.pad_px + 1) ** 2,
            num_threads=1,
            device_id=data.padded.device.index,  # None on a CPU
            prefetch_queue_depth=prefetch,
        )
        def augment() -> Any:
            # DALI copies a list of GPU tensors in any case. It does so on our stream, so their memory may be used
            # again by what we put on that stream next; one kernel copies all G of them.
            sequences = fn.external_source(
                lambda: next(feeds[0]), device=device, layout="FHWC", cuda_stream=self.stream, use_copy_kernel=True
            )
            crop_y, crop_x, mirror = fn.external_source(lambda: next(feeds[1]), num_outputs=3)
            return fn.crop_mirror_normalize(
                sequences,
                crop=(self.size, self.size),
                crop_pos_y=crop_y,
                crop_pos_x=crop_x,
                mirror=mirror,
                mean=data.mean.tolist(),
                std=(1 / data.inv_std).tolist(),
                dtype=types.DALIDataType.FLOAT16 if self.output_dtype == torch.float16 else types.DALIDataType.FLOAT,
                output_layout="FHWC",
            )

        pipe = augment()
        pipe.build()
        return pipe, feed_ndarray

    def epoch(self, plan: EpochPlan, size_px: int = 32) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields per step x [B, 3, S, S] channels_last in the compute dtype, and y [B] int64, on the device."""
        data, device = self.data, self.data.padded.device
        self._drain()  # what an epoch that was left early had prefetched
        if data.padded.is_cuda:
            plan = plan.map(Tensor.pin_memory)  # from pageable memory the upload would wait for the training
        feed = self._feed(plan)
        plan = plan.map(lambda t: t.to(device, non_blocking=True))
        shape = (plan.index.shape[1], self.size, self.size, data.padded.shape[3])
        for step in range(len(plan)):
            if self.feeds[0] is not feed:
                raise RuntimeError("a newer epoch has begun on this executor; only one can be under way")
            stream = torch.cuda.current_stream(device) if data.padded.is_cuda else None
            (batch,) = self.pipe.run(stream)
            # A copy (2 us for 3 MB) rather than DLPack: DALI frees a DLPack tensor by cudaDeviceSynchronize in
            # another thread, an error that ends the process if a CUDA graph is being captured at that moment.
            x = torch.empty(shape, dtype=self.output_dtype, device=device)
            self.copy_output(batch.as_reshaped_tensor(shape), x, cuda_stream=stream)
            yield finish(x.to(data.dtype), plan, step, self.cutout_px, size_px), data.labels[plan.index[step]]
        if left := self._drain():
            raise RuntimeError(f"DALI made {len(plan) + left} batches of an epoch of {len(plan)} steps")

    def _feed(self, plan: EpochPlan) -> Iterator[Any]:
        """Points DALI at a plan: per step G sequences [F, H+2P, W+2P, C] u8, and G crop places and mirrors. Lazy."""
        code = ((plan.offset_y * (2 * self.data.pad_px + 1) + plan.offset_x) * 2 + plan.mirror).numpy()
        first = [np.flatnonzero(np.diff(row, prepend=-1)) for row in code]  # of each group, in the batch
        with self._on_stream():
            index = plan.index.to(self.data.padded.device, non_blocking=True)
        span = max(2 * self.data.pad_px, 1)  # DALI places a crop at round(position * span): exact in fp32
        arguments = ((plan.offset_y / span).numpy(), (plan.offset_x / span).numpy(), plan.mirror.int().numpy())
        self.feeds[0] = map(self._sequences, index, first)
        self.feeds[1] = (tuple(a[step, at] for a in arguments) for step, at in enumerate(first))
        return self.feeds[0]

    def _sequences(self, index: Tensor, first: np.ndarray) -> list[Any]:
        with self._on_stream():
            pixels = self.data.padded[index]  # [B, H+2P, W+2P, C] u8
        groups = pixels.split(np.diff(first, append=len(index)).tolist())
        return [to_dlpack(group) for group in groups]  # DALI reads these several times faster than tensors

    def _on_stream(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self.stream) if self.stream else nullcontext()

    def _drain(self) -> int:
        """Brings the pipeline back to where an epoch may begin; how many batches it still had."""
        self.feeds[:] = iter(()), iter(())
        left = 0
        with suppress(StopIteration):
            while self.pipe.run():
                left += 1
        self.pipe.reset()
        return left
