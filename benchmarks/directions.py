"""Parts of the deviation of the text from its mean: our reading of what else the paper may do (docs/beyond.md).

A block reads tokens z_l with shares p_l of their mean m = sum_l p_l z_l. X is the matrix of deviations x_l = z_l - m, P
the diagonal matrix of the p_l, and P^(1/2) X = U S V^T; the columns of V are the principal components. U and S come
from the L x L matrix P^(1/2) X X^T P^(1/2): scaling component i by g_i multiplies the tokens by
P^(-1/2) U diag(g) U^T P^(1/2), and no D x D matrix is made.

Source: arXiv 2510.03886 names, in published summaries, a principal space with token spacing and a residual space with
residual alignment by Givens rotations; the equations are ours.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ideas_blocks import moving, valid_in_both
from studio import Batch, Predict

ROUNDING = 16 * torch.finfo(torch.float32).eps  # share of the largest variance by which another may be off


def directed(
    batch: Batch, space: str, alpha: float, rank: int = 0, amount: float = 0.0, toward: str = "first"
) -> Predict:
    """A part of the deviation scaled, evened out or turned, in both halves, without carrying on.

    Args:
        space: "principal": alpha on the part along the `rank` strongest components; "residual": on what these leave;
            "whiten": singular values s become c s^(1 - amount) at the same total variance, then alpha on all; "align":
            each deviation turns by the share `amount` of the angle to its target, then alpha on all.
        toward: of "align": "first", what the same token was at the first block, or "content", the mean deviation of the
            content words at the same block.
    """
    valid = valid_in_both(batch)
    words = torch.cat([batch.weights("content"), torch.zeros(len(batch.prompts), valid.shape[1])])
    first: Tensor | None = None

    def move(block: int, _share: float, text: Tensor) -> Tensor:
        nonlocal first
        weights = valid[: len(text)]
        shares = (weights / weights.sum(1, keepdim=True))[:, :, None]
        z = text.float()
        x = z - (shares * z).sum(1, keepdim=True)
        if block == 0:
            first = x
        if space == "align":
            some = words[: len(text), :, None]
            target = first if toward == "first" else (some * x).sum(1, keepdim=True)
            assert target is not None
            part = aligned(x, shares, target, amount)
        elif space == "whiten":
            part = whitened(x, shares, amount)
        else:
            part = principal(x, shares, rank)
        if space in ("principal", "residual"):
            added = (alpha - 1) * (part if space == "principal" else x - part)
        else:
            added = alpha * part - x
        return (z + weights[:, :, None] * added).to(text.dtype)

    return moving(batch, move)


def principal(x: Tensor, shares: Tensor, rank: int) -> Tensor:
    """The deviations `[B, L, D]` in the span of the strongest components; equally strong ones count together.

    Args:
        shares: of the mean, `[B, L, 1]`.
    """
    variances, vectors = components(x, shares)
    inside = variances >= variances[:, -rank, None] - ROUNDING * variances[:, -1:]
    return scaled(x, shares, vectors, inside.to(x))


def whitened(x: Tensor, shares: Tensor, amount: float) -> Tensor:
    """The deviations with singular values c s^(1 - amount), c such that the variance over all of them stays."""
    variances, vectors = components(x, shares)
    there = variances > ROUNDING * variances[:, -1:]  # the rest is lost in rounding, and stays as it is
    powers = torch.where(there, variances, 1) ** -amount
    whole, flatter = (torch.where(there, v, 0).sum(1, keepdim=True) for v in (variances, variances * powers))
    gains = torch.sqrt(powers * whole / torch.where(flatter == 0, 1, flatter))
    return x + scaled(x, shares, vectors, torch.where(there, gains - 1, 0))


def aligned(x: Tensor, shares: Tensor, target: Tensor, amount: float) -> Tensor:
    """Each deviation turned, in the plane that it spans with its target `[B, L or 1, D]`, by a share of their angle.

    The mean of what that adds is taken off again. What is opposite to its target, or has none, does not turn.
    """
    own, aim = normalize(x, dim=2), normalize(target, dim=2)
    along = (own * aim).sum(2, keepdim=True)
    across = aim - along * own
    breadth: Tensor = across.norm(dim=2, keepdim=True)
    angle = torch.where((along < 0) & (breadth < 1e-3), 0, amount * torch.atan2(breadth, along))
    length: Tensor = x.norm(dim=2, keepdim=True)
    turned = torch.cos(angle) * x + length * torch.sin(angle) * normalize(across, dim=2)
    return turned - (shares * (turned - x)).sum(1, keepdim=True)


def components(x: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Variances along the principal components `[B, L]`, rising, and U `[B, L, L]`."""
    rows = shares.sqrt() * x
    variances, vectors = torch.linalg.eigh(rows @ rows.mT)
    return variances.clamp_min(0), vectors


def scaled(x: Tensor, shares: Tensor, vectors: Tensor, gains: Tensor) -> Tensor:
    """P^(-1/2) U diag(gains) U^T P^(1/2) x, gains `[B, L]`; 0 where a token has no share."""
    root = shares.sqrt()
    back = torch.where(shares > 0, 1 / torch.where(shares > 0, root, 1), 0)
    return back * ((vectors * gains[:, None, :]) @ (vectors.mT @ (root * x)))
