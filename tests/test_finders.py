"""The benchmark of finders: its AUC, its labels and its surprisal against references written apart."""

from __future__ import annotations

import itertools
import json
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


class Counted:
    """A model with a velocity of its own for each text, which counts the rows that it is asked for."""

    def __init__(self) -> None:
        self.rows = 0

    def predict(self, x: torch.Tensor, sigma: float, embeds: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        self.rows += len(x)
        return torch.sin(x * embeds[:, :1, :1, None] + sigma) + pooled[:, :1, None, None]


def test_the_rows_of_the_table_are_enough() -> None:
    """Of the prompt alone to a noise level, and there without each word: the same as the whole path with all rows."""
    n, x = 4, torch.randn(1, 2, 3, 3)
    embeds, pooled = torch.randn(n + 1, 5, 2), torch.randn(n + 1, 3)
    whole, surprisal = finders.follow(Counted(), x, embeds, pooled), []  # type: ignore[arg-type]
    for k, sigma in enumerate(finders.SIGMAS):
        probe, at = Counted(), x
        for higher, lower in zip(finders.SIGMAS[:k], finders.SIGMAS[1:], strict=False):
            at = at + (lower - higher) * probe.predict(at, higher, embeds[:1], pooled[:1])
        v = probe.predict(at.expand(n + 1, -1, -1, -1), sigma, embeds, pooled)
        torch.testing.assert_close(whole.effect[k], (v[1:] - v[:1]).square().sum((1, 2, 3)))
        seen = (at - sigma * v).flatten(1)
        cosines = torch.stack([torch.dot(a, seen[0]) / a.norm() / seen[0].norm() for a in seen[1:]])
        torch.testing.assert_close(whole.turned[k], 1 - cosines, atol=1e-6, rtol=1e-4)
        for finder in (f"effect {sigma:g}", f"turn of the prediction {sigma:g}"):
            assert finders.cost(finder) == f"{probe.rows - n} + n"
        surprisal.append(whole.effect[k] if k else torch.full((n,), 1e9))  # never asked for
    found = Trajectory(surprisal, [], whole.first).surprisal
    torch.testing.assert_close(found, whole.surprisal)
    assert finders.cost("surprisal") == "5 + 4n"  # the prompt at each of five steps, and each word at four of them


def test_the_cost_of_every_finder_of_the_records_is_known() -> None:
    names = {name for record in finders.read() for name in record["scores"]}
    found = {name: finders.cost(name) for name in names}
    assert found["effect 1"] == found["effect 1, against the word alone"] == "1 + n"
    assert found["effect 1, share of the prompt's"] == found["pooled embedding alone, share"] == "2 + n"
    assert found["effect 0.2"] == "5 + n"


def test_scores_of_other_weights_are_not_mixed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, file = finders.fingerprint(finders.pipelines.BUNDLED), tmp_path / "finders.jsonl"
    monkeypatch.setattr(finders, "versions", dict)  # it would run git
    monkeypatch.setattr(finders, "Probe", lambda: None)  # nothing is left to score

    def write(*made: str) -> str:
        rows = [{"split": "tune", "suite": suite, "made": {"weights": made[-1]}} for suite in finders.SIZES["tune"]]
        rows[0]["made"] = {"weights": made[0]}
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file.read_text()

    kept = write(weights)
    finders.measure("tune", file)
    assert file.read_text() == kept
    kept = write("0" * 12, weights)
    with pytest.raises(ValueError, match=r"other weights \(000000000000\); move it away"):
        finders.measure("tune", file)
    assert file.read_text() == kept
