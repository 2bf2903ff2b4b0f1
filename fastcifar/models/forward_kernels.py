"""Triton kernels of a forward pass that needs no gradient. `fastcifar.models.forward` launches them.

It imports this file only on a CUDA card. A channels_last tensor [B, C, H, W] is seen as rows [M, C], M = B * H * W. An
output may have a border of zeros, of BEFORE rows and columns before and of others after. Arithmetic is fp32.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc, untyped-decorator"

import triton
import triton.language as tl

from fastcifar.models.kernels import _activation


@triton.jit(do_not_specialize=["M", "H", "W", "HY", "WY", "BEFORE"])
def bias_activation(x, plus, scale, bias, y, M, H, W, HY, WY, BEFORE, C, POOL: tl.constexpr, ACT: tl.constexpr,
                    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):  # fmt: skip
    """y [B, C, HY, WY] = activation(x + bias + scale * plus), or of the 2x2 max-pool of x [B, C, H, W].

    scale, bias [C] f32. M: rows of y, its border of zeros included.
    """
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    r = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    image, i, j = r // (HY * WY), (r // WY) % HY - BEFORE, r % WY - BEFORE
    height, width = H, W
    if POOL:
        height, width = H // 2, W // 2
    inside = (r < M) & (i >= 0) & (j >= 0) & (i < height) & (j < width) & (c < C)
    if POOL:
        source = x + (((image * H + 2 * i) * W + 2 * j) * C + c)
        u = tl.load(source, inside, 0.0).to(tl.float32)
        for k in tl.static_range(1, 4):
            other = tl.load(source + ((k // 2) * W + k % 2) * C, inside, 0.0).to(tl.float32)
            u = tl.where((other > u) | (other != other), other, u)  # NaN stays NaN
    else:
        at = ((image * H + i) * W + j) * C + c
        u = tl.load(x + at, inside, 0.0).to(tl.float32)
        if plus is not None:
            u += tl.load(scale + c, c < C, 0.0) * tl.load(plus + at, inside, 0.0).to(tl.float32)
    u += tl.load(bias + c, c < C, 0.0)
    v = tl.where(inside, _activation(u, ACT), 0.0)
    tl.store(y + r * C + c, v.to(y.dtype.element_ty), (r < M) & (c < C))
