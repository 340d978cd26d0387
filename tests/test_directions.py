"""Parts of the deviation against numpy's SVD and plain rotations, in float64."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import directions


@pytest.fixture
def case() -> tuple[Tensor, Tensor]:
    """Deviations of two samples, the second with padding, and shares of the mean."""
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(2, 6, 9, generator=generator)
    shares = torch.tensor([[1 / 6] * 6, [0.25] * 4 + [0.0] * 2])[:, :, None]
    return z - (shares * z).sum(1, keepdim=True), shares


def decomposed(x: Tensor, shares: Tensor, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """P^(-1/2) U, S and V^T of the tokens that count, and which those are."""
    p = shares[row, :, 0].double().numpy()
    there = p > 0
    root = np.sqrt(p[there])[:, None]
    u, s, v = np.linalg.svd(root * x[row].double().numpy()[there], full_matrices=False)
    return u / root, s, v, there


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_principal_components_are_those_of_an_svd(case: tuple[Tensor, Tensor], rank: int) -> None:
    x, shares = case
    for row in range(2):
        u, s, v, there = decomposed(x, shares, row)
        expected = (u[:, :rank] * s[:rank]) @ v[:rank]
        np.testing.assert_allclose(directions.principal(x, shares, rank)[row, there].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("amount", [0.0, 0.25, 0.5, 1.0])
def test_whitening_flattens_singular_values_at_one_variance(case: tuple[Tensor, Tensor], amount: float) -> None:
    x, shares = case
    for row in range(2):
        u, s, v, there = decomposed(x, shares, row)
        kept = s > 1e-6
        flatter = np.where(kept, s ** (1 - amount), 0)
        flatter *= np.sqrt((s[kept] ** 2).sum() / (flatter**2).sum())
        found = directions.whitened(x, shares, amount)[row, there].numpy()
        np.testing.assert_allclose(found, (u * flatter) @ v, atol=1e-4)


@pytest.mark.parametrize("amount", [0.0, 0.3, 1.0])
def test_aligning_turns_by_a_share_of_the_angle(case: tuple[Tensor, Tensor], amount: float) -> None:
    x, shares = case
    target = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(4))
    found = directions.aligned(x, shares, target, amount).double().numpy()
    for row in range(2):
        turned = []
        for a, b in zip(x[row].double().numpy(), target[row].double().numpy(), strict=True):
            angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            sideways = b - (b @ a) / (a @ a) * a
            sideways *= np.linalg.norm(a) / np.linalg.norm(sideways)
            turned.append(np.cos(amount * angle) * a + np.sin(amount * angle) * sideways)
            np.testing.assert_allclose(np.linalg.norm(turned[-1]), np.linalg.norm(a))
        change = np.array(turned) - x[row].double().numpy()
        mean = shares[row, :, 0].double().numpy() @ change
        np.testing.assert_allclose(found[row], np.array(turned) - mean, atol=1e-5)


def test_what_has_no_target_does_not_turn() -> None:
    x, shares = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]]), torch.full((1, 2, 1), 0.5)
    for target in (torch.zeros(1, 2, 2), -x):
        assert torch.equal(directions.aligned(x, shares, target, 0.5), x)
