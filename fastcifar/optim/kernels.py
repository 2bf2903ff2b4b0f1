"""Triton kernels around a step's passes: its batch; Muon for all filters of equal rows in four launches, of up to 128
rows in three; SGD on everything else in one.

`fastcifar.optim.fused_update` launches them and imports this file only where they run. Weights, momenta and rounded
updates lie in buffers of one layout (`fastcifar.optim.arena`), each at a multiple of ALIGN numbers. A filter is a
matrix [R, K] of its output channels, or TALL: [K, R], seen transposed, where those are more than the columns.
Arithmetic is fp32, products take the dtype of the low-precision weights. Sums are made in two parts without atomics, so
that equal inputs give equal bits.

An item is a row [4] of i32 for each program: place of its tensor in units of ALIGN, first number, how many numbers the
tensor has, which tensor it is. Counts and columns come in units of `unit`, which tells the compiler how far it may
widen loads. `row` [2] f32: learning rate and momentum of the step.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc, untyped-decorator"

import triton
import triton.language as tl

from fastcifar.optim import arena

ALIGN = tl.constexpr(arena.ALIGN)


@triton.jit(do_not_specialize=["batch"])
def take(images, labels, rows, table, counters, x, y, row, batch, n, BLOCK: tl.constexpr):
    """Batch and row of the step: x [batch, n] and y [batch] from images [M, n] and labels [M] at rows[counters[1]].

    rows [steps, batch] i64; row = table[counters[0]], [2] f32.
    """
    b, e = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    source = tl.load(rows + tl.load(counters + 1) * batch + b)
    tl.store(x + b * n + e, tl.load(images + source * n + e, e < n), e < n)
    if tl.program_id(1) == 0:
        tl.store(y + b, tl.load(labels + source))
        if b == 0:
            both = tl.arange(0, 2)
            tl.store(row + both, tl.load(table + 2 * tl.load(counters) + both))


@triton.jit
def _item(items, unit: tl.constexpr, BLOCK: tl.constexpr):
    """Which tensor; places of the program's numbers in the buffers and in the tensor; which of them there are."""
    at = items + 4 * tl.program_id(0)
    e = tl.load(at + 1) * BLOCK + tl.arange(0, BLOCK)
    return tl.load(at + 3), tl.load(at) * ALIGN + e, e, e < tl.load(at + 2) * unit


@triton.jit(do_not_specialize=["parts"])
def prepare(weights, momenta, updates, grads, squares, items, row, parts, unit: tl.constexpr, BLOCK: tl.constexpr):
    """Nesterov momentum, the update rounded to the dtype of `updates`, and parts of the sums of squares.

    grads: a tuple of the filters' gradients. squares [2, filters, parts] f32: of the rounded updates, of the weights.
    """
    which, place, e, inside = _item(items, unit, BLOCK)
    momentum = tl.load(row + 1)
    g = tl.zeros([BLOCK], tl.float32)
    for i in tl.static_range(len(grads)):
        if which == i:
            g = tl.load(grads[i] + e, inside, 0.0).to(tl.float32)
    v = tl.load(momenta + place, inside, 0.0) * momentum + g
    tl.store(momenta + place, v, inside)
    update = (v * momentum + g).to(updates.dtype.element_ty)
    tl.store(updates + place, update, inside)
    u = update.to(tl.float32)
    w = tl.load(weights + place, inside, 0.0)
    part = squares + which * parts + tl.load(items + 4 * tl.program_id(0) + 1)
    tl.store(part, tl.sum(u * u))
    tl.store(part + len(grads) * parts, tl.sum(w * w))


@triton.jit
def _total(squares, parts, BLOCK: tl.constexpr):
    """Sum of all parts, in a fixed order."""
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, parts, BLOCK):
        p = start + tl.arange(0, BLOCK)
        total += tl.load(squares + p, p < parts, 0.0)
    return tl.sum(total)


@triton.jit
def _at(i, j, R, K, TALL: tl.constexpr):
    """Where row i and column j of a filter lie, and whether there are such ones."""
    if TALL:
        place = j[None, :] * R + i[:, None]
    else:
        place = i[:, None] * K + j[None, :]
    return place, (i < R)[:, None] & (j < K)[None, :]


@triton.jit
def _squared(u, i, j, first, last, R, K, TALL: tl.constexpr, TILE: tl.constexpr, BK: tl.constexpr):
    """Rows i and j of U U^T over the columns from first to last. u [R, K] may end before."""
    total = tl.zeros([TILE, TILE], tl.float32)
    for start in range(first, tl.minimum(last, K), BK):
        k = start + tl.arange(0, BK)
        place, inside = _at(i, k, R, K, TALL)
        left = tl.load(u + place, inside, 0.0)
        place, inside = _at(j, k, R, K, TALL)
        right = tl.load(u + place, inside, 0.0)
        total = tl.dot(left, tl.trans(right), total, input_precision="ieee")
    return total


@triton.jit(do_not_specialize=["R"])
def gram(updates, shapes, grams, R, rows, span, unit: tl.constexpr, TALL: tl.constexpr, TILE: tl.constexpr,
         BK: tl.constexpr):  # fmt: skip
    """grams [filters, splits, rows, rows] f32: parts of U U^T on and below the diagonal, over `span` columns each.

    rows: R filled up to whole tiles. shapes [filters, 2] i32: place in units of ALIGN, columns in units of `unit`.
    """
    r, c, both = tl.program_id(0) // (rows // TILE), tl.program_id(0) % (rows // TILE), tl.program_id(2)
    if c <= r:
        u = updates + tl.load(shapes + 2 * both) * ALIGN
        K = tl.load(shapes + 2 * both + 1) * unit
        i, j = r * TILE + tl.arange(0, TILE), c * TILE + tl.arange(0, TILE)
        first = tl.program_id(1) * span
        total = _squared(u, i, j, first, first + span, R, K, TALL, TILE, BK)
        part = grams + (both * tl.num_programs(1) + tl.program_id(1)) * rows * rows
        tl.store(part + i[:, None] * rows + j[None, :], total)


@triton.jit
def _product(left, right, out, plus, alpha, beta, diagonal, rows, TILE: tl.constexpr, BK: tl.constexpr):
    """out = alpha left right + beta plus + diagonal I, all [rows, rows]. The result is known to be symmetric.

    Tiles above the diagonal are mirrored. Returns when the whole program can read the result.
    """
    tiles = rows // TILE
    for tile in range(tiles * tiles):
        r, c = tile // tiles, tile % tiles
        if c <= r:
            i, j = r * TILE + tl.arange(0, TILE), c * TILE + tl.arange(0, TILE)
            total = tl.zeros([TILE, TILE], tl.float32)
            for start in range(0, rows, BK):
                k = start + tl.arange(0, BK)
                a, b = tl.load(left + i[:, None] * rows + k[None, :]), tl.load(right + k[:, None] * rows + j[None, :])
                total = tl.dot(a, b, total, input_precision="ieee")
            at = i[:, None] * rows + j[None, :]
            total = alpha * total + beta * tl.load(plus + at).to(tl.float32)
            total += tl.where(i[:, None] == j[None, :], diagonal, 0.0)
            rounded = total.to(out.dtype.element_ty)
            tl.store(out + at, rounded)
            tl.store(out + j[None, :] * rows + i[:, None], rounded, mask=c < r)
    tl.debug_barrier()


@triton.jit(do_not_specialize=["R", "parts"])
def steps(updates, shapes, grams, squares, matrices, R, rows, parts, a, b, c, unit: tl.constexpr,
          TALL: tl.constexpr, SPLITS: tl.constexpr, STEPS: tl.constexpr, TILE: tl.constexpr, BK: tl.constexpr,
          BLOCK: tl.constexpr):  # fmt: skip
    """Newton-Schulz iteration on the Gram matrix alone: orthogonalize(U) = Q U / |U|, with Q in matrices[:, 2].

    A step takes X to P X with P = a I + b G + c G^2, and so G = X X^T to P G P and Q to P Q. All are polynomials of one
    symmetric matrix, so they are symmetric and commute. One program per filter; matrices [filters, 5, rows, rows] in
    the dtype of products: G, P G, Q of even and of odd steps, P. Beyond R rows they hold a multiple of I, or zeros.
    Without grams the Gram matrix is one tile and is made here.
    """
    both, square = tl.program_id(0), rows * rows
    g = matrices + both * 5 * square
    norm = tl.sqrt(_total(squares + both * parts, parts, BLOCK)) + 1e-7
    if grams is None:
        u, K = updates + tl.load(shapes + 2 * both) * ALIGN, tl.load(shapes + 2 * both + 1) * unit
        i = tl.arange(0, TILE)
        total = _squared(u, i, i, 0, K, R, K, TALL, TILE, BK)
        tl.store(g + i[:, None] * rows + i[None, :], (total / norm / norm).to(g.dtype.element_ty))
    else:
        tiles = rows // BK
        for tile in range(tiles * tiles):
            i, j = (tile // tiles) * BK + tl.arange(0, BK), (tile % tiles) * BK + tl.arange(0, BK)
            lower, upper = tl.maximum(i[:, None], j[None, :]), tl.minimum(i[:, None], j[None, :])
            total = tl.zeros([BK, BK], tl.float32)
            for split in tl.static_range(SPLITS):
                total += tl.load(grams + (both * SPLITS + split) * square + lower * rows + upper)
            tl.store(g + i[:, None] * rows + j[None, :], (total / norm / norm).to(g.dtype.element_ty))
    tl.debug_barrier()
    for step in range(STEPS):
        p, q = tl.where(step == 0, 2, 4) * square, (2 + step % 2) * square  # the first Q is the first P
        _product(g, g, g + p, g, c, b, a, rows, TILE, BK)
        if step > 0:
            _product(g + p, g + (3 - step % 2) * square, g + q, g, 1.0, 0.0, 0.0, rows, TILE, BK)
        if step < STEPS - 1:
            _product(g + p, g, g + square, g, 1.0, 0.0, 0.0, rows, TILE, BK)
            _product(g + square, g + p, g, g + p, 1.0, 0.0, 0.0, rows, TILE, BK)


@triton.jit(do_not_specialize=["R", "parts"])
def apply(weights, low, updates, shapes, matrices, squares, row, R, rows, parts, lr_scale, unit: tl.constexpr,
          TALL: tl.constexpr, SLOT: tl.constexpr, TILE: tl.constexpr, COLUMNS: tl.constexpr, BK: tl.constexpr,
          BLOCK: tl.constexpr):  # fmt: skip
    """W = W sqrt(output channels) / |W| - lr Q U / |U|, and its low-precision copy."""
    both, first = tl.program_id(2), tl.program_id(1) * COLUMNS
    place = tl.load(shapes + 2 * both) * ALIGN
    K = tl.load(shapes + 2 * both + 1) * unit
    if first < K:
        i, j = tl.program_id(0) * TILE + tl.arange(0, TILE), first + tl.arange(0, COLUMNS)
        q = matrices + (both * 5 + SLOT) * rows * rows
        total = tl.zeros([TILE, COLUMNS], tl.float32)
        for start in range(0, R, BK):
            k = start + tl.arange(0, BK)
            a = tl.load(q + i[:, None] * rows + k[None, :])
            at, inside = _at(k, j, R, K, TALL)
            total = tl.dot(a, tl.load(updates + place + at, inside, 0.0), total, input_precision="ieee")
        norm = tl.sqrt(_total(squares + both * parts, parts, BLOCK)) + 1e-7
        size = tl.sqrt(_total(squares + (tl.num_programs(2) + both) * parts, parts, BLOCK))
        rate, keep = tl.load(row) * lr_scale / norm, tl.sqrt((K if TALL else R) * 1.0) / size
        at, inside = _at(i, j, R, K, TALL)
        w = tl.load(weights + place + at, inside, 0.0) * keep - rate * total
        tl.store(weights + place + at, w, inside)
        tl.store(low + place + at, w.to(low.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["parts"])
def sgd(weights, low, momenta, grads, head_grads, items, rates, row, losses, loss_sum, counters, parts,
        COUNT: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Nesterov SGD as torch has it: g += decay w; v = momentum v + g; w -= lr (g + momentum v).

    grads: a tuple of COUNT gradients, None for a weight that has none in this step and stays as it is (Triton 3.6 knows
    no len of such a tuple); after them comes the head, whose gradient is the sum of head_grads [parts, K, C] f32. rates
    [tensors, 3] f32: scale of the learning rate, decay, momentum (negative: the row's). The first program also adds
    losses [parts] to loss_sum, and 1 to the counters [2] i64, which no other program reads.
    """
    which, place, e, inside = _item(items, 1, BLOCK)
    g, has = tl.zeros([BLOCK], tl.float32), which == COUNT
    if has:
        size = tl.load(items + 4 * tl.program_id(0) + 2)
        for start in range(0, parts, 8):
            for part in tl.static_range(8):  # loads that do not wait for each other
                g += tl.load(head_grads + (start + part) * size + e, inside & (start + part < parts), 0.0)
    for i in tl.static_range(COUNT):
        if grads[i] is not None:  # noqa: SIM102 -- decided when this is compiled
            if which == i:
                g = tl.load(grads[i] + e, inside, 0.0).to(tl.float32)
                has = True
    inside = inside & has
    momentum = tl.load(rates + 3 * which + 2)
    momentum = tl.where(momentum < 0, tl.load(row + 1), momentum)
    w = tl.load(weights + place, inside, 0.0)
    g += tl.load(rates + 3 * which + 1) * w
    v = tl.load(momenta + place, inside, 0.0) * momentum + g
    tl.store(momenta + place, v, inside)
    w -= tl.load(row) * tl.load(rates + 3 * which) * (g + momentum * v)
    tl.store(weights + place, w, inside)
    tl.store(low + place, w.to(low.dtype.element_ty), inside)
    if tl.program_id(0) == 0:
        tl.store(loss_sum, tl.load(loss_sum) + _total(losses, parts, BLOCK))
        tl.store(counters, tl.load(counters) + 1)
        tl.store(counters + 1, tl.load(counters + 1) + 1)
