"""Lifts of a part of the deviation: principal components, what they leave, a flatter spectrum, a turn to a target.

Like `variance`, nothing but torch, and nothing branches on a tensor's values, so everything traces under
`torch.compile` with `fullgraph=True`. Each part is one function below and one entry of `_PARTS`.

A sample's text is a matrix X `[L, D]` of deviations from the token mean, its tokens weighted by P, a diagonal of their
shares of the mean. With L far below D, the singular vectors of P^(1/2) X come from the eigenvectors U of the L x L Gram
matrix P^(1/2) X X^T P^(1/2), whose eigenvalues are the variances along the principal components: to scale component i
by g_i is to multiply the tokens by P^(-1/2) U diag(g) U^T P^(1/2), and no D x D matrix is ever made.

Source: our reading of arXiv 2510.03886 from published summaries; docs/paper.md has the equations.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .variance import cast, widened


def spread_part(
    z: Tensor,
    scale: Tensor,
    share: Tensor | None,
    *,
    space: str,
    rank: int | float | None = None,
    amount: Tensor | None = None,
    target: Tensor | None = None,
    among: Tensor | None = None,
) -> Tensor:
    """Lift one part of the deviations of text tokens from their mean, which is kept where the weights are 0 or 1.

    Args:
        z: finite text tokens `[B, L, D]`, floating point; L may be 0.
        scale, share: from `variance.factors`: the factor on each token's part, and its share of the mean.
        space: "principal", "residual", "whiten" or "align", as in `settings.Spread`.
        rank: of "principal" and "residual", which need it: how many components, or the share of the variance that the
            fewest of them must hold. Components as strong as the last one, to rounding, count with it.
        amount: of "whiten" and "align", which need it, in [0, 1]: `[B or 1, L or 1, 1]`.
        target: of "align", which needs it: the directions that tokens turn to, `[B or 1, L or 1, D]`; 0 turns nothing.
        among: positions `[N]` beside which no token takes part; what is worked out is then as small as N.

    Returns:
        The lifted tokens, `[B, L, D]` in z's dtype. The arithmetic is float32 (float64 stays float64), under autocast
        too. Equal to z, bit for bit, where scale is 1 and amount 0 or None. Half types saturate at their finite range,
        as long as alpha times a deviation is in float32's. Gradients take components and angles for given.
    """
    text = z
    if among is not None:
        z, scale = z.index_select(1, among), _at(scale, among)
        share = None if share is None else share.index_select(2, among)
        amount = None if amount is None else _at(amount, among)
        target = None if target is None else _at(target, among)
    if z.shape[1] < 2:  # one token is its own mean
        return text
    with torch.autocast(z.device.type, enabled=False):
        x = deviations_of(z, share)
        wide = x.dtype
        added = _PARTS[space](
            x,
            shares(share, x),
            scale.to(wide),
            rank=rank,
            amount=None if amount is None else amount.to(wide),
            target=None if target is None else target.to(wide),
        )
        kept = scale == 1 if amount is None else (scale == 1) & (amount == 0)
        part = torch.where(kept, z, cast(z.to(wide) + added, z.dtype))
    return part if among is None else text.index_copy(1, among, part)


def deviations_of(z: Tensor, share: Tensor | None) -> Tensor:
    """The deviations of tokens `[B, L, D]` from their mean, in the dtype of the arithmetic; share as above."""
    with torch.autocast(z.device.type, enabled=False):
        x = z.to(widened(z.dtype))
        return x - (shares(share, x) * x).sum(1, keepdim=True)


def deviation_of_some(z: Tensor, share: Tensor | None, some: Tensor) -> Tensor:
    """The mean deviation `[B, 1, D]` of some tokens; 0 where a sample has none of them.

    Args:
        z: text tokens `[B, L, D]`.
        share: each token's share of the mean that deviations are taken from, as above.
        some: each token's share of the mean sought, `[B or 1, 1, L]`, adding up to 1 or, where there is none, 0.
    """
    with torch.autocast(z.device.type, enabled=False):
        x = z.to(widened(z.dtype))
        some = some.to(x.dtype).mT
        return ((some - shares(share, x) * some.sum(1, keepdim=True)) * x).sum(1, keepdim=True)


def shares(share: Tensor | None, x: Tensor) -> Tensor:
    """Each token's share of the mean, `[B or 1, L, 1]`, in the dtype of x."""
    length = x.shape[1]
    return x.new_full((1, length, 1), 1 / max(length, 1)) if share is None else share.to(x.dtype).mT


# ---------------------------------------------------------------- parts: what each adds to the tokens, [B, L, D]


def _principal(x: Tensor, weights: Tensor, scale: Tensor, *, rank: int | float, **_: object) -> Tensor:
    return (scale - 1) * _projected(x, weights, rank)


def _residual(x: Tensor, weights: Tensor, scale: Tensor, *, rank: int | float, **_: object) -> Tensor:
    return (scale - 1) * (x - _projected(x, weights, rank))


def _whiten(x: Tensor, weights: Tensor, scale: Tensor, *, amount: Tensor, **_: object) -> Tensor:
    """Singular values s become c s^(1 - amount), c such that the variance over all components stays; then scale.

    Each token has its own amount, and so its own row of gains. Components lost in rounding stay as they are.
    """
    variances, vectors = _components(x, weights)
    variances = variances[:, None, :]  # [B, 1, L]: a row for each token
    there = variances > _rounding(variances) * variances[..., -1:]
    powers = torch.where(there, variances, 1) ** -amount
    whole = torch.where(there, variances, 0).sum(2, keepdim=True)
    flatter = torch.where(there, variances * powers, 0).sum(2, keepdim=True)
    gains = torch.sqrt(powers * whole / torch.where(flatter == 0, 1, flatter))
    return scale * (x + _scaled(x, weights, vectors, torch.where(there, gains - 1, 0))) - x


def _align(x: Tensor, weights: Tensor, scale: Tensor, *, amount: Tensor, target: Tensor, **_: object) -> Tensor:
    """Each deviation turns, in the plane that it spans with its target, by a share of the angle between them.

    Then scale; then the mean of what was added is taken off again. A deviation opposite to its target, where every
    plane is as good, does not turn.
    """
    with torch.no_grad():
        own, aim = _unit(x), _unit(target)
        along = (own * aim).sum(2, keepdim=True)
        across = aim - along * own
        breadth = torch.linalg.vector_norm(across, dim=2, keepdim=True)
        opposite = (along < 0) & (breadth <= torch.finfo(x.dtype).eps ** 0.5)
        angle = torch.where(opposite, 0, amount * torch.atan2(breadth, along))
        sideways = torch.sin(angle) * _unit(across)
    length = torch.linalg.vector_norm(x, dim=2, keepdim=True)
    turned = torch.where(angle == 0, x, torch.cos(angle) * x + length * sideways)
    added = scale * turned - x
    # by weight, so that a token without any is left alone
    evenly = weights / (weights * weights).sum(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    return added - evenly * (weights * added).sum(1, keepdim=True)


_PARTS: dict[str, Callable[..., Tensor]] = {
    "principal": _principal,
    "residual": _residual,
    "whiten": _whiten,
    "align": _align,
}


# ---------------------------------------------------------------- components


@torch.no_grad()
def _components(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Variances along the principal components `[B, L]`, rising, in units of their own, and U `[B, L, L]`."""
    rows = weights.sqrt() * x
    largest = rows.abs().amax((1, 2), keepdim=True)
    rows = rows / torch.where(largest == 0, 1, largest)  # so that squares neither overflow nor vanish
    gram = torch.bmm(rows, rows.mT)
    # a model that makes NaN is to make NaN under a lift as well, where eigh would raise
    variances, vectors = torch.linalg.eigh(torch.nan_to_num(gram, posinf=0, neginf=0))
    return variances.clamp_min(0), vectors


def _projected(x: Tensor, weights: Tensor, rank: int | float) -> Tensor:
    """The deviations in the span of the strongest components."""
    variances, vectors = _components(x, weights)
    if isinstance(rank, int):
        least = variances[:, -min(rank, variances.shape[1]), None]
    else:
        falling = variances.flip(1)
        stronger = falling.cumsum(1) - falling  # what the components before each hold
        needed = (stronger < rank * falling.sum(1, keepdim=True)) | (stronger == 0)
        least = torch.where(needed, falling, torch.inf).amin(1, keepdim=True)
    # of components equally strong, none is before another: with all of them, the span does not depend on eigh's choice
    inside = variances >= least - _rounding(variances) * variances[:, -1:]
    return _scaled(x, weights, vectors, inside[:, None, :].to(x.dtype))


def _scaled(x: Tensor, weights: Tensor, vectors: Tensor, gains: Tensor) -> Tensor:
    """P^(-1/2) U diag(gains) U^T P^(1/2) x; gains `[B, L or 1, L]`, a row for each token. 0 where a weight is 0."""
    root = weights.sqrt()
    back = torch.where(weights > 0, 1 / torch.where(weights > 0, root, 1), 0)
    return back * torch.bmm((vectors * gains) @ vectors.mT, root * x)


# ---------------------------------------------------------------- small things


def _rounding(variances: Tensor) -> float:
    """Of the largest variance, the share by which another may be off."""
    return 16 * float(torch.finfo(variances.dtype).eps)


def _unit(x: Tensor) -> Tensor:
    """x with length 1 on the last dimension; 0 stays 0. Squares neither overflow nor vanish."""
    largest = x.abs().amax(2, keepdim=True)
    x = x / torch.where(largest == 0, 1, largest)
    length = torch.linalg.vector_norm(x, dim=2, keepdim=True)
    return x / torch.where(length == 0, 1, length)


def _at(x: Tensor, among: Tensor) -> Tensor:
    return x if x.shape[1] == 1 else x.index_select(1, among)
