"""The operator: text tokens pushed away from their mean by a factor alpha.

Kept apart from the attaching so that it can be read, tested and reused (a ComfyUI node, another framework's hook)
with nothing but torch. Nothing here branches on a tensor's values, so everything traces under `torch.compile` with
`fullgraph=True`. Only shapes are checked here; whether alpha makes sense is checked where it enters (`settings`).

Source: arXiv 2510.03886, abstract: variance scale-up before the joint-attention blocks; the formula
z~ = alpha (z - mean) + mean is from a published summary. It is computed as lerp(mean, z, 1 + (alpha - 1) w), which is
exact at alpha 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)


def spread(z: Tensor, alpha: float | Tensor, weights: Tensor | None = None, about: Tensor | None = None) -> Tensor:
    """Scale the deviations of text tokens from their mean: `z + (alpha - 1) * w * (z - mean)`.

    Args:
        z: finite text tokens `[B, L, D]`, floating point; L may be 0.
        alpha: finite and >= 0; one number, a 0-dim tensor, or one per sample as `[B]` or `[B, 1, 1]`.
        weights: how much each token takes part, in [0, 1] or bool, `[B, L]`, `[1, L]` or `[L]`; all ones when None.
        about: how much each token counts in the mean, likewise; the weights when None.

    Returns:
        The spread tokens, `[B, L, D]` in z's dtype. The mean, per sample and channel, is the weighted one and is kept
        when the weights are 0 or 1 and are those of the mean. The arithmetic is float32 (float64 stays float64), under
        autocast too. Where `(alpha - 1) * w` is 0 the result equals z exactly. Half types saturate at their finite
        range, so finite float16 input never gives inf or NaN; nor does bfloat16, unless its sum over tokens leaves
        float32's range.

    Raises:
        TypeError: z is not floating point.
        ValueError: a shape does not fit.
    """
    _check(z)
    if isinstance(alpha, Tensor):
        alpha = _per_sample(alpha, z)
    if weights is not None:
        weights = _per_token(weights, z)
    if about is not None:
        about = _per_token(about, z)
    scale, share = factors(alpha, weights, z, about=about)
    share = None if share is None else share.expand(len(z), -1, -1)
    return spread_by(z, scale, share, autocast=torch.is_autocast_enabled(z.device.type))


def factors(
    alpha: float | Tensor,
    weights: Tensor | None,
    like: Tensor,
    add_up: Callable[[Tensor], Tensor] | None = None,
    about: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """What `spread` multiplies by, worked out once for any number of blocks.

    Args:
        alpha: a number or `[B or 1, 1, 1]`.
        weights: `[B or 1, L]` or None.
        like: a tensor on the device, whose dtype decides between float32 and float64.
        add_up: where the tokens are spread over processes: adds a tensor up over them. Needs weights.
        about: `[B or 1, L]`, the tokens of the mean; the weights when None.

    Returns:
        `scale`, `[B or 1, L or 1, 1]`: the factor on each token's deviation, 1 + (alpha - 1) w. `share`,
        `[B or 1, 1, L]`: each token's share of the mean, adding up to 1 (0 where no token takes part); None with
        both None, when every token has the same.
    """
    wide = _wide(like.dtype)
    a = torch.as_tensor(alpha, dtype=wide, device=like.device).reshape(-1, 1, 1)
    about = weights if about is None else about
    if about is None:
        return a, None
    scale = a
    if weights is not None:
        w = weights.to(like.device, wide)[:, :, None]
        scale = torch.where(w == 1, a, 1 + (a - 1) * w)
    m = about.to(like.device, wide)[:, :, None]
    total = m.sum(1, keepdim=True)
    total = total if add_up is None else add_up(total)
    return scale, (m / torch.where(total == 0, 1, total)).transpose(1, 2)


def spread_by(
    z: Tensor,
    scale: Tensor,
    share: Tensor | None,
    *,
    autocast: bool,
    add_up: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """`spread` by its `factors`, in two operations where z is float32.

    Called for each block of each step, where on a small model a look at an attribute of a tensor costs as much as the
    arithmetic: what can be told once a step is told by the caller.

    Args:
        z: as in `spread`.
        scale, share: from `factors`; share with a row for each sample.
        autocast: whether autocast is on, on z's device.
        add_up: as in `factors`; z and share are then this process's part, and the mean is that over all of them.
    """
    x = z
    if z.dtype is not torch.float32:
        wide = _wide(z.dtype)
        x, scale, share = z.to(wide), scale.to(wide), None if share is None else share.to(wide)
    if share is None:
        mean = x.mean(1, keepdim=True)
    elif autocast:  # which would multiply matrices in half precision; this has the same sum and is not on its list
        mean = (share.mT * x).sum(1, keepdim=True)
    else:
        mean = torch.bmm(share, x)
    if add_up is not None:
        mean = add_up(mean)
    # lerp is exact at 1, scale * (x - mean) + mean is not
    lifted = torch.lerp(mean, x, scale)
    return lifted if x is z else _cast(lifted, z.dtype)


def take_off(output: Tensor, z: Tensor, lifted: Tensor, part: Tensor | None = None) -> Tensor:
    """Take off a block's text output what `spread` put on its text input, for `carry` below 1.

    Args:
        output: the block's text output `[B, L, D]`.
        z: the text before spreading, same shape.
        lifted: `spread(z, ...)`, in z's dtype.
        part: how much of it to take off, 1 - carry, a 0-dim tensor in [0, 1]; all of it when None.

    Returns:
        `output - part * (lifted - z)`, computed as `spread` computes, in output's dtype, saturating in half types. It
        uses what was really added, after rounding and saturation, so a block that passes its text through returns z
        where all of it is taken off. Equal to `output` where nothing was added.
    """
    if output.dtype is torch.float32 and z.dtype is torch.float32:
        added = lifted - z
        return output - (added if part is None else part * added)
    wide = _wide(output.dtype)
    added = lifted.to(wide) - z.to(wide)
    return _cast(output.to(wide) - (added if part is None else part * added), output.dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check(z: Tensor) -> None:
    if not z.is_floating_point():
        raise TypeError(f"z must be a floating-point tensor, got {z.dtype}")
    if z.ndim != 3:
        raise ValueError(f"z must have three dimensions [batch, tokens, channels], got shape {tuple(z.shape)}")


def _per_sample(alpha: Tensor, z: Tensor) -> Tensor:
    """alpha as `[B or 1, 1, 1]`."""
    if alpha.ndim not in (0, 1, 3) or alpha.shape not in ((), (z.shape[0],), (1, 1, 1), (z.shape[0], 1, 1)):
        raise ValueError(
            f"alpha must be one number or one per sample, shape [] or [{z.shape[0]}] or [{z.shape[0]}, 1, 1] "
            f"for z of shape {tuple(z.shape)}, got shape {tuple(alpha.shape)}"
        )
    return alpha.reshape(-1, 1, 1)


def _per_token(weights: Tensor, z: Tensor) -> Tensor:
    """Weights as `[B or 1, L]`."""
    w = weights[None] if weights.ndim == 1 else weights
    if w.ndim != 2 or w.shape[1] != z.shape[1] or w.shape[0] not in (1, z.shape[0]):
        raise ValueError(
            f"weights must have shape [{z.shape[1]}] or [{z.shape[0]}, {z.shape[1]}] (or [1, {z.shape[1]}]) "
            f"for z of shape {tuple(z.shape)}, got {tuple(weights.shape)}"
        )
    return w


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype in _HALF:
        limit = torch.finfo(dtype)
        x = x.clamp(limit.min, limit.max)
    return x.to(dtype)
