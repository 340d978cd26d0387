from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rarelift.bench.stats import Estimate, difference, mean


def clustered(rng: np.random.Generator, count: int, largest: int, lean: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Values about 0 that share an effect inside their cluster; with `lean`, larger clusters hold larger values."""
    sizes = rng.integers(1, largest + 1, count)
    labels = np.repeat(np.arange(count), sizes)
    effects = rng.normal(size=count) + lean * (sizes - sizes.mean())
    return effects[labels] + 0.5 * rng.normal(size=len(labels)), labels


def reference(values: np.ndarray, labels: np.ndarray, level: float, resamples: int) -> tuple[float, float]:
    """The cluster bootstrap as it is told: draw clusters, lay their pictures together, take the mean."""
    rng = np.random.default_rng(99)
    groups = [values[labels == name] for name in np.unique(labels)]
    means = []
    for _ in range(resamples):
        picked = [groups[i] for i in rng.integers(len(groups), size=len(groups))]
        means.append(np.concatenate(picked).mean())
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return low, high


@pytest.mark.parametrize("level", [0.95, 0.8])
def test_agrees_with_reference(level: float) -> None:
    values, labels = clustered(np.random.default_rng(0), 40, 8, lean=0.3)
    got = mean(values, labels, level=level)
    low, high = reference(values, labels, level, 4000)
    tolerance = 0.06 * (high - low)  # the noise of two times 4000 resamples
    assert got.value == pytest.approx(values.mean(), abs=1e-12)
    assert got.low == pytest.approx(low, abs=tolerance)
    assert got.high == pytest.approx(high, abs=tolerance)


def coverage(replications: int, by_picture: bool) -> float:
    rng = np.random.default_rng(7)
    hits = 0
    for i in range(replications):
        values, labels = clustered(rng, 100, 5)
        got = mean(values, range(len(values)) if by_picture else labels, resamples=500, seed=i)
        hits += got.low <= 0 <= got.high
    return hits / replications


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    assert 0.93 <= coverage(800, by_picture=False) <= 0.97
    assert coverage(150, by_picture=True) < 0.88  # pictures of one prompt taken for independent: too narrow


def test_difference_is_the_mean_of_pairs() -> None:
    rng = np.random.default_rng(1)
    untouched, labels = clustered(rng, 60, 4)
    lifted = untouched + 0.1 + 0.02 * rng.normal(size=len(untouched))
    got = difference(lifted, untouched, labels)
    assert got == mean(lifted - untouched, labels)
    assert got.value == pytest.approx(0.1, abs=0.01)
    assert got.excludes_zero
    assert difference(untouched, lifted, labels).value == -got.value
    alone = mean(lifted, labels)  # without pairs the effect drowns
    assert (got.high - got.low) < 0.1 * (alone.high - alone.low)


def test_verdicts_may_be_booleans_and_labels_anything() -> None:
    right = np.array([True, True, False, True, False, False, True, True])
    names = ["a lion", "a lion", "a cat", "a cat", "an owl", "an owl", "a pig", "a pig"]
    got = mean(right, names)
    assert got == mean(right.astype(float), [3, 3, 1, 1, 2, 2, 0, 0])
    assert got.value == 0.625
    assert difference(right, ~right, names).value == 0.25


def test_the_seed_fixes_the_interval_and_the_level_orders_it() -> None:
    values, labels = clustered(np.random.default_rng(2), 30, 3)
    wide = mean(values, labels, seed=5)
    assert wide == mean(values, labels, seed=5)
    assert (wide.low, wide.high) != (mean(values, labels, seed=6).low, mean(values, labels, seed=6).high)
    narrow = mean(values, labels, level=0.5)
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_clusters_that_agree_leave_no_doubt() -> None:
    assert mean([0.25] * 6, list("aabbcc")) == Estimate(0.25, 0.25, 0.25)
    assert mean([0, 1, 0, 1, 1, 0], list("aabbcc")) == Estimate(0.5, 0.5, 0.5)
    assert not mean([0.0, 0.0], ["a", "b"]).excludes_zero


def test_two_clusters_are_enough_to_say_something() -> None:
    assert mean([0.0, 1.0], ["a", "b"]) == Estimate(0.5, 0.0, 1.0)


@pytest.mark.parametrize(
    ("low", "high", "excludes"), [(0.1, 0.3, True), (-0.3, -0.1, True), (-0.1, 0.3, False), (0.0, 0.3, False)]
)
def test_excludes_zero(low: float, high: float, excludes: bool) -> None:
    assert Estimate(0.2, low, high).excludes_zero is excludes


def test_it_prints_with_its_interval() -> None:
    estimate = Estimate(0.12345, -0.01, 0.3)
    assert f"{estimate}" == "0.123 [-0.010, 0.300]"
    assert f"{estimate:+.1f}" == "+0.1 [-0.0, +0.3]"


@pytest.mark.parametrize(
    ("values", "labels", "message"),
    [
        ([], [], "one value per cluster label"),
        ([1.0, 2.0], ["a"], r"got \(2,\) values, 1 labels"),
        ([[1.0, 2.0], [3.0, 4.0]], ["a", "b"], r"got \(2, 2\) values, 2 labels"),
        (1.0, ["a"], r"got \(\) values"),
        ([1.0, float("nan"), float("inf")], ["a", "b", "c"], "2 of 3 values are not finite"),
        ([1.0, 2.0], ["a", "a"], "at least two prompts"),
    ],
)
def test_wrong_values_teach(values: Any, labels: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mean(values, labels)


@pytest.mark.parametrize("level", [0.0, 1.0, 95, -0.5, float("nan")])
def test_a_level_is_a_share(level: float) -> None:
    with pytest.raises(ValueError, match=f"above 0 and below 1; got {level}"):
        mean([1.0, 2.0], ["a", "b"], level=level)


def test_pairs_must_pair() -> None:
    with pytest.raises(ValueError, match=r"got \(2,\) lifted and \(3,\) untouched"):
        difference([1, 2], [1, 2, 3], ["a", "b", "c"])
