"""The Triton kernel of classifier and loss. `fastcifar.models.head_loss` imports this file only to launch it."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc, untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def _largest(features, pixels: tl.constexpr, C, inside):
    """The largest of an image's pixels in each channel, as amax has it: NaN stays NaN."""
    top = tl.load(features, inside, 0.0).to(tl.float32)
    for pixel in tl.static_range(1, pixels):
        f = tl.load(features + pixel * C, inside, 0.0).to(tl.float32)
        top = tl.where((f > top) | (f != f), f, top)
    return top


@triton.jit(do_not_specialize=["B", "K", "scale", "smoothing"])
def head_loss(features, weight, labels, d_features, d_weight, losses, B, K, scale, smoothing, C, pixels: tl.constexpr,
              BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr):  # fmt: skip
    """Largest pixel, product with the classifier, cross-entropy, and their gradients, for BLOCK_B of the B images.

    features [B, pixels, C], weight [K, C] f32, labels [B] i64. Gives d_features like features, and the program's parts
    of the classifier's gradient, d_weight [programs, K, C] f32, and of the mean loss, losses [programs] f32.
    """
    b, k = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B), tl.arange(0, BLOCK_K)
    dtype = features.dtype.element_ty
    logits = tl.zeros([BLOCK_B, BLOCK_K], tl.float32)
    for start in range(0, C, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        inside = (b < B)[:, None] & (c < C)[None, :]
        top = _largest(features + b[:, None] * (pixels * C) + c[None, :], pixels, C, inside)
        w = tl.load(weight + k[:, None] * C + c[None, :], (k < K)[:, None] & (c < C)[None, :], 0.0).to(dtype)
        logits = tl.dot(top.to(dtype), tl.trans(w), logits, input_precision="ieee")
    valid = (b < B)[:, None] & (k < K)[None, :]
    logits = tl.where((k < K)[None, :], logits * scale, float("-inf"))
    logits -= tl.max(logits, 1)[:, None]
    e = tl.exp(logits)
    total = tl.sum(e, 1)[:, None]
    hit = tl.load(labels + b, b < B, 0)[:, None] == k[None, :]
    target = tl.where(hit, 1 - smoothing, 0.0) + smoothing / K
    losses_here = tl.where(valid, target * (tl.log(total) - logits), 0.0)
    tl.store(losses + tl.program_id(0), tl.sum(losses_here) / B)
    d_logits = tl.where(valid, (e / total - target) / B * scale, 0.0).to(dtype)
    for start in range(0, C, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        inside = (b < B)[:, None] & (c < C)[None, :]
        at = b[:, None] * (pixels * C) + c[None, :]
        top = _largest(features + at, pixels, C, inside)
        w = tl.load(weight + k[:, None] * C + c[None, :], (k < K)[:, None] & (c < C)[None, :], 0.0).to(dtype)
        part = tl.dot(tl.trans(d_logits), top.to(dtype), input_precision="ieee")
        place = (tl.program_id(0) * K + k[:, None]) * C + c[None, :]
        tl.store(d_weight + place, part, (k < K)[:, None] & (c < C)[None, :])
        count = tl.zeros([BLOCK_B, BLOCK_C], tl.float32)
        for pixel in tl.static_range(pixels):
            f = tl.load(features + at + pixel * C, inside, 0.0).to(tl.float32)
            count += tl.where(f == top, 1.0, 0.0)
        d_top = tl.dot(d_logits, w, input_precision="ieee") / count
        for pixel in tl.static_range(pixels):
            f = tl.load(features + at + pixel * C, inside, 0.0).to(tl.float32)
            tl.store(d_features + at + pixel * C, tl.where(f == top, d_top, 0.0).to(dtype), inside)
