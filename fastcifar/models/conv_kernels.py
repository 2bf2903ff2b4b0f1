"""Triton kernels of a convolution whose outputs go through a 2x2 max-pool into a batch norm.

`fastcifar.models.conv` launches them and imports this file only on a CUDA card. The input x [B, H, W, C] has its zero
border already (`layers.pad_before_pool`), so a filter of KERNEL x KERNEL never leaves it, and a row of a filter's
window is KERNEL * C successive numbers: the filters [N, KERNEL, KERNEL, C] are a matrix [N, K], K = KERNEL**2 * C, and
a window is a row of K numbers in KERNEL pieces. A cell is the 2x2 outputs of one maximum: M = B * HC * WC cells, rows
of z [M, N] and of code [M, N] u8, which output the maximum is. What is not pooled is never written.

Products take 16-bit operands and add up in fp32. Sums over programs go through parts in a fixed order: equal inputs
give equal bits.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc, untyped-decorator"

import triton
import triton.language as tl

from fastcifar.models.kernels import BLOCK_P, _corner


@triton.jit
def _window(k, W, C: tl.constexpr, KERNEL: tl.constexpr):
    """Where number k of a window lies, from the window's first pixel on."""
    row: tl.constexpr = KERNEL * C
    return (k // row) * (W * C) + k % row


@triton.jit(do_not_specialize=["M", "rows", "H", "W"])
def conv_pool_stats(x, w, z, code, parts, M, rows, H, W, C: tl.constexpr, N: tl.constexpr, KERNEL: tl.constexpr,
                    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """z and code: the maxima of the convolution; parts [2, parts, N] f32: mean and sum of squared deviations of z.

    A program goes through `rows` cells for BLOCK_N filters. Each of the four outputs of a cell has an accumulator, so
    that the maximum needs no exchange between threads.
    """
    K: tl.constexpr = KERNEL * KERNEL * C
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(0) * rows
    last = tl.minimum(first + rows, M)
    mean = tl.zeros([BLOCK_N], tl.float32)
    square = tl.zeros([BLOCK_N], tl.float32)
    for start in range(first, last, BLOCK_M):
        r = start + tl.arange(0, BLOCK_M)
        image, i, j = _corner(tl.minimum(r, M - 1), H, W, (H - KERNEL + 1) // 2, (W - KERNEL + 1) // 2)
        pixel = x + (((image * H + i) * W + j) * C)[:, None]
        a0 = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        a1 = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        a2 = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        a3 = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for k0 in range(0, K, BLOCK_K):
            k = k0 + tl.arange(0, BLOCK_K)
            at = pixel + _window(k, W, C, KERNEL)[None, :]
            inside = (k < K)[None, :]
            filters = tl.load(w + n[None, :] * K + k[:, None], (n < N)[None, :] & (k < K)[:, None], 0.0)
            a0 = tl.dot(tl.load(at, inside, 0.0), filters, a0, input_precision="ieee")
            a1 = tl.dot(tl.load(at + C, inside, 0.0), filters, a1, input_precision="ieee")
            a2 = tl.dot(tl.load(at + W * C, inside, 0.0), filters, a2, input_precision="ieee")
            a3 = tl.dot(tl.load(at + (W + 1) * C, inside, 0.0), filters, a3, input_precision="ieee")
        a0 = a0.to(z.dtype.element_ty).to(tl.float32)  # as torch has them, so that the same of equal ones is taken
        a1 = a1.to(z.dtype.element_ty).to(tl.float32)
        a2 = a2.to(z.dtype.element_ty).to(tl.float32)
        a3 = a3.to(z.dtype.element_ty).to(tl.float32)
        best = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
        larger = (a1 > a0) | (a1 != a1)  # NaN is the largest, as in torch
        a0 = tl.where(larger, a1, a0)
        best = tl.where(larger, 1, best)
        larger = (a2 > a0) | (a2 != a2)
        a0 = tl.where(larger, a2, a0)
        best = tl.where(larger, 2, best)
        larger = (a3 > a0) | (a3 != a3)
        a0 = tl.where(larger, a3, a0)
        best = tl.where(larger, 3, best)
        inside = (r < last)[:, None] & (n < N)[None, :]
        out = r[:, None] * N + n[None, :]
        tl.store(z + out, a0.to(z.dtype.element_ty), inside)
        tl.store(code + out, best.to(tl.uint8), inside)
        v = tl.where(inside, a0, 0.0)
        count = tl.minimum(last - start, BLOCK_M).to(tl.float32)
        before = (start - first).to(tl.float32)
        tile = tl.sum(v, 0) / count
        off = tl.where(inside, v - tile[None, :], 0.0)
        step = tile - mean
        mean += step * (count / (before + count))
        square += tl.sum(off * off, 0) + step * step * (before * count / (before + count))
    part = parts + tl.program_id(0) * N + n
    tl.store(part, mean, n < N)
    tl.store(part + tl.num_programs(0) * N, square, n < N)


@triton.jit(do_not_specialize=["M", "H", "W"])
def input_gradient_of_pooled(g, code, w, d_x, M, H, W, C: tl.constexpr, N: tl.constexpr, KERNEL: tl.constexpr,
                             BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """d_x [B, H, W, C] from g [cells, N], the gradient of the maxima. The border's first rows and columns are not
    written: nobody reads the gradient of a border.

    A program makes BLOCK_N channels of BLOCK_M of the other M pixels.
    """
    BEFORE: tl.constexpr = (KERNEL - 1) // 2
    r = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = r // (W - BEFORE)
    image, i, j = row // (H - BEFORE), row % (H - BEFORE) + BEFORE, r % (W - BEFORE) + BEFORE
    high, wide = (H - KERNEL + 1) // 2, (W - KERNEL + 1) // 2
    steps: tl.constexpr = (N + BLOCK_K - 1) // BLOCK_K
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for t in range(KERNEL * KERNEL * steps):
        tap = t // steps
        n = (t % steps) * BLOCK_K + tl.arange(0, BLOCK_K)
        u, v = i - tap // KERNEL, j - tap % KERNEL  # the output that reads this pixel by this tap
        read = (r < M) & (u >= 0) & (v >= 0) & (u < 2 * high) & (v < 2 * wide)
        at = ((image * high + u // 2) * wide + v // 2)[:, None] * N + n[None, :]
        inside = read[:, None] & (n < N)[None, :]
        of = tl.load(code + at, inside, 4)
        d = tl.load(g + at, inside, 0.0)
        d = tl.where(of == (2 * (u % 2) + v % 2).to(tl.uint8)[:, None], d, 0.0)
        filters = tl.load(w + (n[:, None] * (KERNEL * KERNEL) + tap) * C + c[None, :],
                          (n < N)[:, None] & (c < C)[None, :], 0.0)  # fmt: skip
        acc = tl.dot(d, filters, acc, input_precision="ieee")
    at = ((image * H + i) * W + j)[:, None] * C + c[None, :]
    tl.store(d_x + at, acc.to(d_x.dtype.element_ty), (r < M)[:, None] & (c < C)[None, :])


@triton.jit(do_not_specialize=["M", "cells", "H", "W"])
def weight_gradient_of_pooled(x, g, code, parts, M, cells, H, W, C: tl.constexpr, N: tl.constexpr,
                              KERNEL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
                              BLOCK_K: tl.constexpr):  # fmt: skip
    """parts [parts, N, K] f32: the gradient of BLOCK_N numbers of BLOCK_M filters over `cells` cells."""
    K: tl.constexpr = KERNEL * KERNEL * C
    n = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    window = _window(k, W, C, KERNEL)[None, :]
    first = tl.program_id(0) * cells
    last = tl.minimum(first + cells, M)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(first, last, BLOCK_K):
        r = start + tl.arange(0, BLOCK_K)
        image, i, j = _corner(tl.minimum(r, M - 1), H, W, (H - KERNEL + 1) // 2, (W - KERNEL + 1) // 2)
        pixel = x + (((image * H + i) * W + j) * C)[:, None] + window
        at = r[None, :] * N + n[:, None]
        inside = (r < last)[None, :] & (n < N)[:, None]
        d = tl.load(g + at, inside, 0.0)
        of = tl.load(code + at, inside, 4)
        for corner in tl.static_range(4):
            v = tl.load(pixel + ((corner // 2) * W + corner % 2) * C, (k < K)[None, :], 0.0)
            acc = tl.dot(tl.where(of == corner, d, 0.0), v, acc, input_precision="ieee")
    at = parts + (tl.program_id(0) * N + n)[:, None] * K + k[None, :]
    tl.store(at, acc, (n < N)[:, None] & (k < K)[None, :])


@triton.jit(do_not_specialize=["num_parts"])
def add_parts(parts, d_w, num_parts, SIZE, BLOCK: tl.constexpr):
    """d_w [SIZE] = the sum of parts [num_parts, SIZE] f32."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
    total = tl.zeros([1, BLOCK], tl.float32)
    for start in range(0, num_parts, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)[:, None]
        total += tl.sum(tl.load(parts + p * SIZE + at, (p < num_parts) & (at < SIZE), 0.0), 0)[None, :]
    tl.store(d_w + at, total.to(d_w.dtype.element_ty), at < SIZE)
