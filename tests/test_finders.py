"""The benchmark of finders: its AUC, its labels and its surprisal against references written apart."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import finders
from finders import Pooled, Trajectory, auc
from rarelift.menagerie.suite import prompts


def test_auc_agrees_with_counting() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 5, 60).astype(float)  # with ties
    positive = rng.random(60) < 0.4
    strata = rng.choice(["a", "b", "c"], 60).tolist()
    won = [
        1.0 if values[i] > values[j] else 0.5 * (values[i] == values[j])
        for i, j in itertools.product(range(60), repeat=2)
        if positive[i] and not positive[j] and strata[i] == strata[j]
    ]
    found = auc(Pooled(values, positive, strata, [str(i // 2) for i in range(60)]))
    assert found.value == pytest.approx(np.mean(won))
    assert found.low < found.value < found.high


def test_auc_of_what_is_told_apart_and_of_what_cannot_be() -> None:
    values, positive = np.array([1.0, 2, 3, 4]), np.array([False, False, True, True])
    things = ["a", "b", "c", "d"]
    assert auc(Pooled(values, positive, [""] * 4, things)).value == 1
    assert auc(Pooled(values, ~positive, [""] * 4, things)).value == 0
    with pytest.raises(ValueError, match="nothing to compare"):
        auc(Pooled(values, positive, ["x", "x", "y", "y"], things))


def test_auc_is_resampled_by_thing() -> None:
    """Copies of a prompt tell nothing new, so the interval must not shrink."""
    rng = np.random.default_rng(1)
    values, positive = rng.normal(size=40), np.arange(40) % 2 == 0
    things = [str(i) for i in range(40)]
    once = auc(Pooled(values, positive, [""] * 40, things))
    often = auc(Pooled(np.tile(values, 9), np.tile(positive, 9), [""] * 360, things * 9))
    assert (often.value, often.low, often.high) == pytest.approx((once.value, once.low, once.high))


@pytest.mark.parametrize("suite", ["rare", "common", "property", "texture", "never"])
def test_words_are_labelled_by_the_habitat(suite: Any) -> None:
    for prompt in prompts(suite, 40, split="tune"):
        words = [finders._word(0, prompt.thing, word) for word in finders.words_of(prompt.text)]
        assert {w.kind for w in words} - {None} <= set(finders.ATTRIBUTES)
        named = {w.kind for w in words if w.rare}
        unsaid = {"wearable"} if prompt.thing.wearable == "nothing" else set()
        assert named == set(prompt.thing.tail) - unsaid
        assert any(w.held_out for w in words) == prompt.thing.held_out
        assert [w.text for w in words if w.kind == "animal"] == [prompt.thing.animal]


def test_surprisal_is_the_divergence_of_gaussians(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two Gaussians of one deviation, whose velocities are known: KL = |difference of means|^2 / (2 deviation^2)."""
    sigmas = torch.linspace(1, 1e-4, 20001, dtype=torch.float64)
    monkeypatch.setattr(finders, "SIGMAS", tuple(sigmas.tolist()))
    means, deviation = (torch.tensor([0.3, -1.0]), torch.tensor([1.1, 0.5])), 0.7
    # E[x0 | x_s] moves by s^2 / ((1 - s)^2 d^2 + s^2) of the difference, and v by that over s
    gain = sigmas / ((1 - sigmas) ** 2 * deviation**2 + sigmas**2)
    effect = gain**2 * float((means[0] - means[1]).square().sum())
    expected = float((means[0] - means[1]).square().sum()) / (2 * deviation**2)
    found = Trajectory([e[None] for e in effect], [], torch.zeros(1)).surprisal
    assert float(found) == pytest.approx(expected, rel=2e-3)
