"""Triton kernels of a training step: 2x2 max-pool or sum, batch norm with the batch's statistics, activation, border.

`fastcifar.models.fused` launches them and imports this file only on a CUDA card. A channels_last tensor
[B, C, H, W] is seen as rows [M, C], M = B * H * W. A program covers BLOCK_C channels (grid axis 1) and, in tiles of
BLOCK_M, `rows` successive rows (axis 0). Arithmetic is fp32. A reduction over rows is done in two parts without
atomics, so that equal inputs give equal bits: each program writes its part [parts, C], and each program of the next
kernel adds up all parts in the same order.

With BORDER, y [B, HY, WY, C] holds [B, H, W, C] from its row and column BEFORE on and zeros around it. The gradient of
the border is not read.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc, untyped-decorator"

import triton
import triton.language as tl

BLOCK_P = tl.constexpr(32)
"""Parts that are added up at a time."""
SIZES = ("H", "W", "HY", "WY", "BEFORE")
"""Arguments that a run has many values of: one build serves all."""


@triton.jit
def _activation(u, ACT: tl.constexpr):
    if ACT == "silu":
        y = u * tl.sigmoid(u)
    elif ACT == "relu":
        y = tl.where(u < 0, 0.0, u)  # NaN stays NaN
    else:
        y = 0.5 * u * (1 + tl.erf(u * 0.7071067811865476))
    return y


@triton.jit
def _derivative(u, ACT: tl.constexpr):
    if ACT == "silu":
        s = tl.sigmoid(u)
        d = s * (1 + u * (1 - s))
    elif ACT == "relu":
        d = tl.where(u > 0, 1.0, 0.0)
    else:
        d = 0.5 * (1 + tl.erf(u * 0.7071067811865476)) + u * 0.3989422804014327 * tl.exp(-0.5 * u * u)
    return d


@triton.jit
def _corner(r, H, W, H_CELLS, W_CELLS):
    """Image, row and column of the first pixel of cell r; cells [B, H_CELLS, W_CELLS] are 2x2 pixels."""
    row = r // W_CELLS
    return row // H_CELLS, 2 * (row % H_CELLS), 2 * (r % W_CELLS)


@triton.jit
def _inner(r, H, W, HY, WY, BEFORE):
    """Row of the inner tensor at row r of the one with the border, and whether there is one."""
    row = r // WY
    i, j = row % HY - BEFORE, r % WY - BEFORE
    return (row // HY * H + i) * W + j, (i >= 0) & (j >= 0) & (i < H) & (j < W)


@triton.jit
def _outer(r, H, W, HY, WY, BEFORE):
    """Row of the tensor with the border at row r of the inner one."""
    row = r // W
    return (row // H * HY + row % H + BEFORE) * WY + r % W + BEFORE


@triton.jit
def _of_channels(saved, weight, bias, c, C):
    """Mean, 1 / standard deviation, weight and bias of channels c."""
    mean, inverse = tl.load(saved + c, c < C, 0.0), tl.load(saved + C + c, c < C, 0.0)
    return mean, inverse, tl.load(weight + c, c < C, 0.0).to(tl.float32), tl.load(bias + c, c < C, 0.0).to(tl.float32)


@triton.jit
def _gradient(g, z, at_g, at, inside, mean, inverse, scale, shift, ACT: tl.constexpr):
    """z normalised, and the gradient of the norm's output."""
    normal = (tl.load(z + at, inside, 0.0).to(tl.float32) - mean) * inverse
    return normal, tl.load(g + at_g, inside, 0.0).to(tl.float32) * _derivative(normal * scale + shift, ACT)


@triton.jit(do_not_specialize=["M", "rows", "H", "W"])
def statistics(x, plus, z, code, parts, M, rows, H, W, C, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    """z [M, C]: x + plus with `plus`, the max-pool of x with `code`, else x itself, which is not written again.

    code [M, C] u8: which of its four pixels (in reading order) the maximum is: the first one, as in torch.
    parts [2, parts, C] f32: mean and sum of squared deviations of a program's rows.
    """
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    first = tl.program_id(0) * rows
    last = tl.minimum(first + rows, M)
    mean = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)  # of the rows that each place of the tile has seen (Welford)
    square = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    count = tl.zeros([BLOCK_M, 1], tl.float32)
    tiles = 0.0
    for start in range(first, last, BLOCK_M):
        r = start + tl.arange(0, BLOCK_M)[:, None]
        inside = (r < last) & (c < C)
        at = r * C + c
        if code is not None:
            image, i, j = _corner(r, H, W, H // 2, W // 2)
            source = x + (((image * H + i) * W + j) * C + c)
            v = tl.load(source, inside, 0.0).to(tl.float32)
            best = tl.zeros([BLOCK_M, BLOCK_C], tl.int32)
            for k in tl.static_range(1, 4):
                other = tl.load(source + ((k // 2) * W + k % 2) * C, inside, 0.0).to(tl.float32)
                larger = (other > v) | (other != other)
                v = tl.where(larger, other, v)
                best = tl.where(larger, k, best)
            tl.store(z + at, v.to(z.dtype.element_ty), inside)
            tl.store(code + at, best.to(tl.uint8), inside)
        else:
            v = tl.load(x + at, inside, 0.0).to(tl.float32)
            if plus is not None:
                rounded = (v + tl.load(plus + at, inside, 0.0).to(tl.float32)).to(z.dtype.element_ty)
                tl.store(z + at, rounded, inside)
                v = rounded.to(tl.float32)
        tiles += 1.0
        count += tl.where(r < last, 1.0, 0.0)
        step = tl.where(inside, v - mean, 0.0)
        mean += step / tiles
        square += step * (v - mean)
    whole = tl.sum(mean * count, 0)[None, :] / (last - first)
    square = tl.sum(square + count * (mean - whole) * (mean - whole), 0)[None, :]
    part = parts + tl.program_id(0) * C + c
    tl.store(part, whole, c < C)
    tl.store(part + tl.num_programs(0) * C, square, c < C)


@triton.jit(do_not_specialize=["M", "MY", "rows", "num_parts", "part_rows", "momentum", "eps", *SIZES])
def normalize(z, y, parts, saved, weight, bias, running_mean, running_var, batches, M, MY, rows, num_parts, part_rows,
              momentum, eps, H, W, HY, WY, BEFORE, C, BORDER: tl.constexpr, ACT: tl.constexpr, BLOCK_M: tl.constexpr,
              BLOCK_C: tl.constexpr):  # fmt: skip
    """y [MY, C] = activation(norm(z)); saved [2, C] f32: mean and 1 / standard deviation. Updates the running ones."""
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    mean = tl.zeros([1, BLOCK_C], tl.float32)
    for start in range(0, num_parts, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)[:, None]
        n = tl.where(p < num_parts, tl.minimum(M - p * part_rows, part_rows), 0).to(tl.float32)
        mean += tl.sum(n * tl.load(parts + p * C + c, (p < num_parts) & (c < C), 0.0), 0)[None, :]
    mean = mean / M
    square = tl.zeros([1, BLOCK_C], tl.float32)
    for start in range(0, num_parts, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)[:, None]
        n = tl.where(p < num_parts, tl.minimum(M - p * part_rows, part_rows), 0).to(tl.float32)
        off = tl.load(parts + p * C + c, (p < num_parts) & (c < C), 0.0) - mean
        within = tl.load(parts + (num_parts + p) * C + c, (p < num_parts) & (c < C), 0.0)
        square += tl.sum(within + n * off * off, 0)[None, :]
    inverse = 1 / tl.sqrt(square / M + eps)
    if tl.program_id(0) == 0:
        tl.store(saved + c, mean, c < C)
        tl.store(saved + C + c, inverse, c < C)
        old = tl.load(running_mean + c, c < C, 0.0)
        tl.store(running_mean + c, (1 - momentum) * old + momentum * mean, c < C)
        old = tl.load(running_var + c, c < C, 0.0)
        tl.store(running_var + c, (1 - momentum) * old + momentum * (square / (M - 1)), c < C)
        if tl.program_id(1) == 0:
            tl.store(batches, tl.load(batches) + 1)
    scale = inverse * tl.load(weight + c, c < C, 0.0).to(tl.float32)
    shift = tl.load(bias + c, c < C, 0.0).to(tl.float32)
    first = tl.program_id(0) * rows
    last = tl.minimum(first + rows, MY)
    for start in range(first, last, BLOCK_M):
        r = start + tl.arange(0, BLOCK_M)[:, None]
        inside = (r < last) & (c < C)
        if BORDER:
            at, live = _inner(r, H, W, HY, WY, BEFORE)
            u = (tl.load(z + at * C + c, inside & live, 0.0).to(tl.float32) - mean) * scale + shift
            v = tl.where(live, _activation(u, ACT), 0.0)
        else:
            v = _activation((tl.load(z + r * C + c, inside, 0.0).to(tl.float32) - mean) * scale + shift, ACT)
        tl.store(y + r * C + c, v.to(y.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["M", "rows", *SIZES])
def gradient_sums(g, z, saved, weight, bias, parts, M, rows, H, W, HY, WY, BEFORE, C, BORDER: tl.constexpr,
                  ACT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):  # fmt: skip
    """parts [2, parts, C] f32: sums over a program's rows of the norm's output gradient, alone and times its output."""
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    mean, inverse, scale, shift = _of_channels(saved, weight, bias, c, C)
    first = tl.program_id(0) * rows
    last = tl.minimum(first + rows, M)
    alone = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    times = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    for start in range(first, last, BLOCK_M):
        r = start + tl.arange(0, BLOCK_M)[:, None]
        inside = (r < last) & (c < C)
        at_g = _outer(r, H, W, HY, WY, BEFORE) if BORDER else r
        normal, d = _gradient(g, z, at_g * C + c, r * C + c, inside, mean, inverse, scale, shift, ACT)
        alone += d
        times += d * normal
    part = parts + tl.program_id(0) * C + c
    tl.store(part, tl.sum(alone, 0)[None, :], c < C)
    tl.store(part + tl.num_programs(0) * C, tl.sum(times, 0)[None, :], c < C)


@triton.jit(do_not_specialize=["M", "cells", "rows", "num_parts", *SIZES])
def input_gradient(g, z, code, saved, weight, bias, parts, d_x, d_weight, d_bias, M, cells, rows, num_parts, H, W, HY,
                   WY, BEFORE, C, BORDER: tl.constexpr, ACT: tl.constexpr, BLOCK_M: tl.constexpr,
                   BLOCK_C: tl.constexpr):  # fmt: skip
    """Gradients of x [B, C, H, W], weight and bias [C]. A program goes through `rows` of the `cells`.

    With `code` a cell is 2x2 pixels of x, and with odd H or W the last cells are cut off and lie in no maximum;
    without it a cell is a row of x.
    """
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    alone = tl.zeros([1, BLOCK_C], tl.float32)
    times = tl.zeros([1, BLOCK_C], tl.float32)
    for start in range(0, num_parts, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)[:, None]
        alone += tl.sum(tl.load(parts + p * C + c, (p < num_parts) & (c < C), 0.0), 0)[None, :]
        times += tl.sum(tl.load(parts + (num_parts + p) * C + c, (p < num_parts) & (c < C), 0.0), 0)[None, :]
    if tl.program_id(0) == 0:
        tl.store(d_bias + c, alone, c < C)
        tl.store(d_weight + c, times, c < C)
    mean, inverse, scale, shift = _of_channels(saved, weight, bias, c, C)
    first = tl.program_id(0) * rows
    last = tl.minimum(first + rows, cells)
    for start in range(first, last, BLOCK_M):
        cell = start + tl.arange(0, BLOCK_M)[:, None]
        r = cell
        inside = (cell < last) & (c < C)
        if code is not None:
            image, i, j = _corner(cell, H, W, (H + 1) // 2, (W + 1) // 2)
            r = (image * (H // 2) + i // 2) * (W // 2) + j // 2
            inside = inside & (i + 1 < H) & (j + 1 < W)
        at_g = r
        if BORDER:
            at_g = _outer(r, H if code is None else H // 2, W if code is None else W // 2, HY, WY, BEFORE)
        normal, d = _gradient(g, z, at_g * C + c, r * C + c, inside, mean, inverse, scale, shift, ACT)
        d = inverse * scale * (d - (alone + normal * times) / M)
        if code is not None:
            of = tl.load(code + r * C + c, inside, 4).to(tl.int32)  # 4: none of the pixels
            target = d_x + (((image * H + i) * W + j) * C + c)
            for k in tl.static_range(4):
                there = (cell < last) & (c < C) & (i + k // 2 < H) & (j + k % 2 < W)
                value = tl.where(of == k, d, 0.0)
                tl.store(target + ((k // 2) * W + k % 2) * C, value.to(d_x.dtype.element_ty), there)
        else:
            tl.store(d_x + r * C + c, d.to(d_x.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["M", "rows", *SIZES])
def activate(x, y, M, rows, H, W, HY, WY, BEFORE, C, ACT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    """y [B, HY, WY, C] of M rows: activation(x) [B, H, W, C] with a border of zeros."""
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    first = tl.program_id(0) * rows
    last = tl.minimum(first + rows, M)
    for start in range(first, last, BLOCK_M):
        r = start + tl.arange(0, BLOCK_M)[:, None]
        inside = (r < last) & (c < C)
        at, live = _inner(r, H, W, HY, WY, BEFORE)
        v = _activation(tl.load(x + at * C + c, inside & live, 0.0).to(tl.float32), ACT)
        tl.store(y + r * C + c, tl.where(live, v, 0.0).to(y.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["M", "rows", *SIZES])
def activation_gradient(g, x, d_x, M, rows, H, W, HY, WY, BEFORE, C, ACT: tl.constexpr, BLOCK_M: tl.constexpr,
                        BLOCK_C: tl.constexpr):  # fmt: skip
    """d_x [M, C] of `activate` from g [B, HY, WY, C], whose border is not read."""
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    first = tl.program_id(0) * rows
    last = tl.minimum(first + rows, M)
    for start in range(first, last, BLOCK_M):
        r = start + tl.arange(0, BLOCK_M)[:, None]
        inside = (r < last) & (c < C)
        d = tl.load(g + _outer(r, H, W, HY, WY, BEFORE) * C + c, inside, 0.0).to(tl.float32)
        d *= _derivative(tl.load(x + r * C + c, inside, 0.0).to(tl.float32), ACT)
        tl.store(d_x + r * C + c, d.to(d_x.dtype.element_ty), inside)
