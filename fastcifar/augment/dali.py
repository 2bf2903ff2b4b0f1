"""Carries out plans with NVIDIA DALI, on a stream of its own, one block ahead of the training.

Shapes: M images of a block, B images of a step, G groups, F images of a group, H W = 32 pixels, P pixels of padding,
C = 3 channels.

Per-sample arguments cost DALI's host code O(samples^2) per call: 5 ms at 500 samples. So all images of a block that
share crop and mirror are handed over as one sequence, layout FHWC: at most 2 (2P+1)^2 samples a call, whatever the
number of images, and still every image has its own draw. The output lies in the order of the groups; a step finds its
images by row. FHWC is also the more exact layout: DALI computes it in fp32 and rounds once, while it computes single
images (HWC) to fp16 in fp16.

On a card DALI (2.4) cuts a call into blocks of threads, of a size that belongs to the pipeline and only shrinks: each
call adds up to one wave of blocks, whatever it has to do, and a small call after which the blocks are small leaves them
small for ever (docs/dali-report.md). So a pipeline gets calls of one size, and not too many of them.
"""

import importlib.util
import traceback
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack

from fastcifar.augment.executor import Block, Draws, Executor, shrink
from fastcifar.augment.images import DeviceImages, upload
from fastcifar.augment.plan import EpochPlan, draw
from fastcifar.config.config import Augment

ADVICE = "pip install nvidia-dali-cuda130 (driver before 580: nvidia-dali-cuda120), or use --augment torch"
MOST_CALLS = 32
"""Calls of a pipeline on a card: the first whole epoch has 19,000 blocks on an H100, the last one about 50,000."""
SIZES_OF_A_RUN = 3
"""Calls of a run differ in size: whole epochs, the rest of the last one, images that refresh batch norms. A pipeline
for each is built before the first step."""


def has_dali() -> bool:
    """Whether DALI is installed. It is not imported: whether it runs is known only once an executor exists."""
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # no package named nvidia at all
        return False


class DaliUnavailable(RuntimeError):
    """DALI is missing or does not run here. The message is one line: what is wrong, what to do."""

    def __init__(self, error: BaseException) -> None:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        super().__init__(f"DALI does not run here: {reason.rstrip('.')[:200]}; {ADVICE}")


def _is_of_dali(error: Exception) -> bool:
    """Whether DALI raised the error or lacks what was asked of it. Else it is a mistake here and must look so."""
    if isinstance(error, ImportError):
        return True
    obj = getattr(error, "obj", None)  # of an AttributeError: what has no such attribute
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    names = (frame.f_globals.get("__name__", ""), getattr(obj, "__name__", ""), type(obj).__module__)
    return any(str(name).startswith("nvidia.") for name in names)


class DaliExecutor(Executor):
    """Executor on DALI: its GPU operators for images on a card, else its CPU operators. Raises DaliUnavailable."""

    def __init__(self, images: DeviceImages, cutout_px: int = 0, max_images: int | None = None) -> None:
        super().__init__(images, cutout_px, max_images)
        self.size = images.size_px
        # DALI (2.4) writes FLOAT, FLOAT16, INT8 and UINT8 here and has no bf16 anywhere: for bf16 its fp32 is cast.
        self.output_dtype = torch.float16 if images.dtype == torch.float16 else torch.float32
        self.feed: dict[str, Any] = {}  # what DALI reads next; a dict, so that the pipeline need not refer to self
        self.most_calls = MOST_CALLS if images.padded.is_cuda else None  # DALI's CPU operators know no such blocks
        self.unused: list[Any] = []  # pipelines
        self.used: dict[int, tuple[Any, int]] = {}
        """A pipeline and the number of its calls, by the images of a call; the one used last comes last."""
        try:
            from nvidia.dali.plugin.pytorch import feed_ndarray

            self.copy_output = feed_ndarray
            for _ in self.blocks([(draw(Augment(crop_pad_px=0), 1, 0, 1, 0), 32)]):
                pass  # driver trouble shows up to here, not in the first epoch
            self.used.clear()  # this pipeline's blocks are small for ever
            self.unused = [self._build() for _ in range(SIZES_OF_A_RUN)]
        except (ImportError, RuntimeError, AttributeError, TypeError) as error:  # the last two: a DALI too old for this
            if not _is_of_dali(error):
                raise
            raise DaliUnavailable(error) from error

    def _pipeline_for(self, num_images: int) -> Any:
        """A pipeline that had no call of another size, and fewer than `most_calls` of this one."""
        pipe, calls = self.used.pop(num_images, (None, 0))
        if pipe is None or calls == self.most_calls:
            pipe, calls = self.unused.pop() if self.unused else self._build(), 0
        if len(self.used) == SIZES_OF_A_RUN:
            del self.used[next(iter(self.used))]
        self.used[num_images] = pipe, calls + 1
        return pipe

    def _build(self) -> Any:
        from nvidia.dali import fn, pipeline_def, types

        images, feed = self.images, self.feed
        device = "gpu" if images.padded.is_cuda else "cpu"

        # The default way of execution: no other hands its output to a stream without a wait of the host.
        @pipeline_def(
            batch_size=2 * (2 * images.pad_px + 1) ** 2,
            num_threads=1,
            device_id=images.padded.device.index,  # None on a CPU
            prefetch_queue_depth=1,  # `Blocks` decides what is made when
        )
        def augment() -> Any:
            # DALI copies a list of GPU tensors in any case. It does so on our stream, so their memory may be used
            # again by what we put on that stream next; one kernel copies all G of them.
            sequences = fn.external_source(
                lambda: feed["sequences"], device=device, layout="FHWC", cuda_stream=self.stream, use_copy_kernel=True
            )
            crop_y, crop_x, mirror = fn.external_source(lambda: feed["arguments"], num_outputs=3)
            return fn.crop_mirror_normalize(
                sequences,
                crop=(self.size, self.size),
                crop_pos_y=crop_y,
                crop_pos_x=crop_x,
                mirror=mirror,
                mean=images.mean.tolist(),
                std=(1 / images.inv_std).tolist(),
                dtype=types.DALIDataType.FLOAT16 if self.output_dtype == torch.float16 else types.DALIDataType.FLOAT,
                output_layout="FHWC",
            )

        pipe = augment()
        pipe.build()
        return pipe

    def make(self, plan: EpochPlan, size_px: int) -> Block:
        """The block of all steps of a plan, its images in the order of the groups."""
        images, device, flat = self.images, self.images.padded.device, plan.map(Tensor.flatten)  # [M] each
        groups = ((flat.offset_y * (2 * images.pad_px + 1) + flat.offset_x) * 2 + flat.mirror).numpy().astype(np.uint16)
        order = groups.argsort(kind="stable")  # of the images, group by group; numpy sorts 16 bits by radix
        first = np.flatnonzero(np.diff(groups[order].astype(np.int32), prepend=-1))  # of the images of each group
        rows = np.empty_like(order)
        rows[order] = np.arange(len(order))  # where each image of the plan comes to lie
        in_order = torch.from_numpy(order)
        draws = Draws.of(flat.map(lambda field: field[in_order]), images, self.cutout_px)
        index, _, _, _, *rest = draws.table.T.long()  # [M] each
        self._set_feed(images.padded[index].split(np.diff(first, append=len(order)).tolist()), flat, order[first])
        (output,) = self._pipeline_for(len(order)).run(self.stream)
        # A copy rather than DLPack: DALI frees a DLPack tensor by cudaDeviceSynchronize in another thread, an error
        # that ends the process if a CUDA graph is being captured at that moment.
        pixels = (len(order), self.size, self.size, images.padded.shape[3])
        x = torch.empty(pixels, dtype=self.output_dtype, device=device)
        self.copy_output(output.as_reshaped_tensor(pixels), x, cuda_stream=self.stream)
        x = draws.change(x.to(images.dtype), *rest)
        row_table = upload(torch.from_numpy(rows).view(plan.index.shape), device)
        return Block(shrink(x, size_px), images.labels[index], row_table, num_steps=len(plan))

    def _set_feed(self, sequences: tuple[Tensor, ...], flat: EpochPlan, first: np.ndarray[Any, Any]) -> None:
        """Sets what DALI reads next: G sequences [F, H+2P, W+2P, C] u8, and their G crop places and mirrors.

        first: [G], an image of each group in the plan.
        """
        span = max(2 * self.images.pad_px, 1)  # DALI places a crop at round(position * span): exact in fp32
        offset_y, offset_x, mirror = (t.numpy()[first] for t in (flat.offset_y, flat.offset_x, flat.mirror))
        self.feed["arguments"] = (
            (offset_y / span).astype(np.float32),
            (offset_x / span).astype(np.float32),
            mirror.astype(np.int32),
        )
        self.feed["sequences"] = [to_dlpack(group) for group in sequences]  # read several times faster than tensors
