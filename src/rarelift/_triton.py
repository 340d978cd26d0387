"""The kernels of `fused`, in a module of their own: Triton reads the globals of the module that it compiles."""

from __future__ import annotations

import triton
import triton.language as tl

_NAN = tl.constexpr(tl.PropagateNan.ALL)


@triton.jit
def _clamped(x, limit: tl.constexpr):
    if limit > 0:
        x = tl.minimum(tl.maximum(x, -limit, propagate_nan=_NAN), limit, propagate_nan=_NAN)
    return x


@triton.jit
def spread(
    z,
    out,
    scale,
    share,
    length,
    width,
    z_batch,
    z_token,
    scale_batch,
    scale_token,
    share_batch,
    share_token,
    rows: tl.constexpr,
    columns: tl.constexpr,
    weighted: tl.constexpr,
    held: tl.constexpr,
    limit: tl.constexpr,
):
    """A program has some channels of one sample and all of its tokens: their mean, then the spread tokens.

    `held`: the tokens fit into one tile and are read once; else they are read twice.
    """
    sample = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(0) * columns + tl.arange(0, columns)
    inside = (channel < width)[None, :]
    z += sample * z_batch
    out += sample * length * width
    scale += sample * scale_batch
    share += sample * share_batch
    token = tl.arange(0, rows)

    if held:
        there = (token < length)[:, None] & inside
        x = tl.load(z + token[:, None] * z_token + channel[None, :], mask=there, other=0.0).to(tl.float32)
        if weighted:
            mean = tl.sum(x * tl.load(share + token * share_token, mask=token < length, other=0.0)[:, None], 0)
        else:
            mean = tl.sum(x, 0) / length
        factor = tl.load(scale + token * scale_token, mask=token < length, other=1.0)[:, None]
        lifted = _clamped(x + (factor - 1.0) * (x - mean[None, :]), limit)  # exact where the factor is 1
        tl.store(out + token[:, None] * width + channel[None, :], lifted.to(out.dtype.element_ty), mask=there)
    else:
        total = tl.zeros([columns], tl.float32)
        for first in range(0, length, rows):
            at = first + token
            there = (at < length)[:, None] & inside
            y = tl.load(z + at[:, None] * z_token + channel[None, :], mask=there, other=0.0).to(tl.float32)
            if weighted:
                y *= tl.load(share + at * share_token, mask=at < length, other=0.0)[:, None]
            total += tl.sum(y, 0)
        middle = total if weighted else total / length
        for first in range(0, length, rows):
            at = first + token
            there = (at < length)[:, None] & inside
            y = tl.load(z + at[:, None] * z_token + channel[None, :], mask=there, other=0.0).to(tl.float32)
            factors = tl.load(scale + at * scale_token, mask=at < length, other=1.0)[:, None]
            wide = _clamped(y + (factors - 1.0) * (y - middle[None, :]), limit)
            tl.store(out + at[:, None] * width + channel[None, :], wide.to(out.dtype.element_ty), mask=there)


@triton.jit
def take_off(
    output,
    z,
    lifted,
    back,
    length,
    width,
    output_batch,
    output_token,
    z_batch,
    z_token,
    lifted_batch,
    lifted_token,
    back_batch,
    back_token,
    block: tl.constexpr,
    limit: tl.constexpr,
):
    """A program has some channels of one token."""
    row = tl.program_id(0).to(tl.int64)
    sample, token = row // length, row % length
    channel = tl.program_id(1) * block + tl.arange(0, block)
    inside = channel < width
    after = tl.load(output + sample * output_batch + token * output_token + channel, mask=inside).to(tl.float32)
    before = tl.load(z + sample * z_batch + token * z_token + channel, mask=inside).to(tl.float32)
    read = tl.load(lifted + sample * lifted_batch + token * lifted_token + channel, mask=inside).to(tl.float32)
    result = _clamped(after - (read - before), limit)
    tl.store(back + sample * back_batch + token * back_token + channel, result.to(back.dtype.element_ty), mask=inside)
