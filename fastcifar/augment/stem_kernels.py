"""The Triton kernel of `fastcifar.augment.stem`, which imports this file only on a CUDA card."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc, untyped-decorator"

import triton
import triton.language as tl

from fastcifar.models.kernels import _activation


@triton.jit(do_not_specialize=["M", "PADDED", "S", "HY", "WY", "BEFORE"])
def stem(padded, table, mean, inv_std, weight, bias, y, M, PADDED, S, HY, WY, BEFORE, C, CUTOUT: tl.constexpr,
         ACT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):  # fmt: skip
    """y [B, HY, WY, C] = activation(convolution of 2x2 pixels of the augmented images), zeros around its S-1 x S-1.

    padded [N, PADDED, PADDED, 3] u8, table [B, 6] i32 as `Draws` has it, weight [C, 12] by row, column and colour,
    bias [C]. M: rows of y. CUTOUT: size of the blanked square, 0 for none. The 12 products of an output are padded to
    16, the least that tensor cores take; operands are rounded to the dtype of y, as autocast does.
    """
    r = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    i, j = (r // WY) % HY - BEFORE, r % WY - BEFORE
    inside = (r < M) & (i >= 0) & (j >= 0) & (i < S - 1) & (j < S - 1)
    draws = table + r // (HY * WY) * 6
    index = tl.load(draws, inside, 0).to(tl.int64)
    offset_y, offset_x, mirror = (
        tl.load(draws + 1, inside, 0),
        tl.load(draws + 2, inside, 0),
        tl.load(draws + 3, inside, 0),
    )
    k = tl.arange(0, 16)
    row, col = i[:, None] + (k // 6)[None, :], j[:, None] + (k // 3 % 2)[None, :]
    colour = k % 3
    live = inside[:, None] & (k < 12)[None, :]
    source = tl.where((mirror != 0)[:, None], S - 1 - col, col)
    image = padded + (index * PADDED * PADDED * 3)[:, None]
    at = (offset_y[:, None] + row) * PADDED + offset_x[:, None] + source
    scale = tl.load(inv_std + colour)
    x = tl.load(image + at * 3 + colour[None, :], live, 0).to(tl.float32) * scale[None, :]
    x -= (tl.load(mean + colour) * scale)[None, :]
    if CUTOUT:
        from_y = row + CUTOUT // 2 - tl.load(draws + 4, inside, 0)[:, None]
        from_x = col + CUTOUT // 2 - tl.load(draws + 5, inside, 0)[:, None]
        x = tl.where((from_y >= 0) & (from_y < CUTOUT) & (from_x >= 0) & (from_x < CUTOUT), 0.0, x)
    dtype = y.dtype.element_ty
    c = tl.arange(0, BLOCK_C)
    w = tl.load(weight + c[None, :] * 12 + k[:, None], (k < 12)[:, None] & (c < C)[None, :], 0.0)
    u = tl.dot(tl.where(live, x, 0.0).to(dtype), w.to(dtype), input_precision="ieee")
    u += tl.load(bias + c, c < C, 0.0).to(tl.float32)[None, :]
    v = tl.where(inside[:, None], _activation(u, ACT), 0.0)
    tl.store(y + r[:, None] * C + c[None, :], v.to(dtype), (r < M)[:, None] & (c < C)[None, :])
