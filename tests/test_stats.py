from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, norm

from rarelift.bench.stats import (
    Estimate,
    Verdicts,
    at_equal_common,
    correct,
    curve,
    detectable,
    difference,
    mean,
    p_value,
    wilson,
)


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


def pictures(rng: np.random.Generator, prompts: int = 70, seeds: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right or wrong, lifted and untouched, half of the pictures with the same noise, and the prompts.

    A prompt is right with chance p, drawn from Beta(2, 2): mean 1/2, variance 1/20. Lifted it is 1 - (1 - p)^2, whose
    mean is 1 - 1/20 - 1/4 = 0.7. So the true difference is 0.2.
    """
    labels = np.repeat(np.arange(prompts), seeds)
    p = rng.beta(2, 2, prompts)[labels]
    noise = rng.random(len(p))
    other = np.where(rng.random(len(p)) < 0.5, noise, rng.random(len(p)))
    return noise < 1 - (1 - p) ** 2, other < p, labels


def test_intervals_of_verdicts_cover_their_truth() -> None:
    rng, hits, count = np.random.default_rng(11), np.zeros(3), 1500
    for i in range(count):
        lifted, untouched, labels = pictures(rng)
        got = [
            mean(lifted, labels, resamples=500, seed=i),
            mean(untouched, labels, resamples=500, seed=i),
            difference(lifted, untouched, labels, resamples=500, seed=i),
        ]
        hits += [e.low <= truth <= e.high for e, truth in zip(got, (0.7, 0.5, 0.2), strict=True)]
    assert ((hits / count > 0.93) & (hits / count < 0.97)).all(), hits / count


# ------------------------------------------------------------------------------------------------------------- shares


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_agrees_with_the_published_table(successes: int, n: int, low: float, high: float) -> None:
    got = wilson(successes, n)  # Newcombe 1998, Statist. Med. 17:857-872, table I, method 3
    assert got.value == successes / n
    assert (got.low, got.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@pytest.mark.parametrize("level", [0.95, 0.8])
def test_wilson_covers_what_it_says(level: float) -> None:
    shares = np.linspace(0.1, 0.9, 161)
    for n in (20, 60, 200):
        got = [wilson(k, n, level) for k in range(n + 1)]
        inside = np.array([(e.low <= shares) & (shares <= e.high) for e in got])
        exact = (binom.pmf(np.arange(n + 1)[:, None], n, shares) * inside).sum(0)
        assert exact.mean() == pytest.approx(level, abs=0.01)
        assert exact.min() > level - 0.1  # counts are whole: coverage saws about its mean


@pytest.mark.parametrize(
    ("successes", "n"), [(0, 0), (3, 2), (-1, 2), (1.5, 2), (1, 2.5), (float("nan"), 2), (1, float("inf")), (0, -1)]
)
def test_wilson_counts(successes: Any, n: Any) -> None:
    with pytest.raises(ValueError, match=f"got {successes} of {n}"):
        wilson(successes, n)


def test_wilson_takes_numpy_counts_and_a_level_that_is_a_share() -> None:
    verdicts = np.array([True, True, False])
    assert wilson(verdicts.sum(), len(verdicts)) == wilson(2, 3)
    with pytest.raises(ValueError, match="level is a share, above 0 and below 1; got 95"):
        wilson(1, 2, level=95)


# --------------------------------------------------------------------------------------------------------- many tests


BENJAMINI_HOCHBERG = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459]
BENJAMINI_HOCHBERG += [0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]  # 1995, section 4: BH finds four, Bonferroni three


def test_corrections_find_what_the_paper_finds() -> None:
    shuffled = np.random.default_rng(3).permutation(BENJAMINI_HOCHBERG)
    assert sorted(shuffled[correct(shuffled, "bh") <= 0.05]) == BENJAMINI_HOCHBERG[:4]
    assert sorted(shuffled[correct(shuffled) <= 0.05]) == BENJAMINI_HOCHBERG[:3]
    assert correct([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm, by hand
    assert correct([0.01, 0.04, 0.03, 0.005], "bh") == pytest.approx([0.02, 0.04, 0.04, 0.02])


def stepwise(p: np.ndarray, level: float, method: str) -> np.ndarray:
    """Which are found at `level`, by the procedures as the papers tell them."""
    found, order, m = np.zeros(len(p), bool), np.argsort(p), len(p)
    if method == "holm":  # from the smallest up, stop at the first that fails
        for i, k in enumerate(order):
            if p[k] > level / (m - i):
                break
            found[k] = True
    else:  # the largest i with p_(i) <= i / m * level, and all below it
        passing = [i for i in range(m) if p[order[i]] <= (i + 1) / m * level]
        found[order[: passing[-1] + 1 if passing else 0]] = True
    return found


@pytest.mark.parametrize("method", ["holm", "bh"])
def test_corrections_agree_with_the_procedures(method: Any) -> None:
    rng = np.random.default_rng(4)
    for _ in range(300):
        p = rng.random(rng.integers(1, 12)) ** rng.integers(1, 5)
        adjusted = correct(p, method)
        for level in (0.01, 0.05, 0.2, 0.7):
            assert ((adjusted <= level) == stepwise(p, level, method)).all()
        assert ((adjusted >= p) & (adjusted <= 1)).all()


@pytest.mark.parametrize(
    ("p", "method", "message"),
    [
        ([], "holm", r"got shape \(0,\)"),
        ([[0.1]], "bh", r"got shape \(1, 1\)"),
        ([0.1, 1.2, float("nan"), -0.1], "bh", r"\[0, 1\]; got \[1.2, nan, -0.1\]"),
        ([0.1], "bonferroni", "'holm' or 'bh'; got 'bonferroni'"),
    ],
)
def test_corrections_teach(p: Any, method: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        correct(p, method)


# ---------------------------------------------------------------------------------------------------------- the test


@pytest.mark.parametrize("count", [2, 6, 12])
def test_few_clusters_are_enumerated(count: int) -> None:
    rng = np.random.default_rng(count)
    for round_to in (0, 6):  # whole numbers tie
        values, labels = clustered(rng, count, 4)
        values = (values + 0.4).round(round_to)
        sums = np.array([values[labels == g].sum() for g in range(count)])
        flips = np.array(list(itertools.product([-1, 1], repeat=count))) @ sums
        expected = (np.abs(flips) >= abs(sums.sum()) - 1e-9).mean()
        assert p_value(values, labels) == pytest.approx(expected, abs=1e-12)
        assert p_value(values, labels, resamples=1, seed=8) == p_value(values, labels)  # nothing is drawn


def test_the_p_value_of_many_clusters_nears_the_normal_one() -> None:
    rng = np.random.default_rng(5)
    values, labels = clustered(rng, 200, 3)
    values += 0.1 - values.mean()
    sums = np.bincount(labels, values)
    expected = 2 * norm.sf(abs(sums.sum()) / np.sqrt((sums**2).sum()))
    assert 0.02 < expected < 0.6
    assert p_value(values, labels) == pytest.approx(expected, abs=0.02)
    assert p_value(-values, labels) == p_value(values, labels)
    assert p_value(values, labels, seed=1) == p_value(values, labels, seed=1) != p_value(values, labels)
    assert p_value(values + 100, labels, resamples=99) == 0.01  # never 0


def test_ties_and_nothing_at_all() -> None:
    assert p_value([0.0] * 4, list("abcd")) == 1
    assert p_value([0.1, 0.2, -0.3], list("abc")) == 1  # the float sum is not 0, and flips that are 0 still tie
    assert p_value([0.1, 0.3, -0.3, -0.1], list("abcd")) == 1  # 0.875 where floats are not rounded
    assert p_value([1, -1, 1, -1], list("aabb")) == 1  # inside the clusters the sides cancel
    assert p_value([1] * 6, list("abcdef")) == 2 / 64


def test_chance_is_found_as_often_as_it_says() -> None:
    rng, count, scores, alone, ties = np.random.default_rng(12), 1200, np.zeros(2), 0, 0
    for i in range(count):
        values, labels = clustered(rng, 60, 4)
        scores += np.array([0.05, 0.2]) >= p_value(values, labels, resamples=399, seed=i)
        alone += i < 200 and p_value(values, range(len(values)), resamples=99, seed=i) <= 0.05
        p = rng.beta(2, 2, (2, 60, 1))  # a prompt suits one side or the other, and neither side more
        right = (rng.random((2, 60, 2)) < p).astype(float)
        ties += p_value((right[0] - right[1]).ravel(), np.repeat(range(60), 2), resamples=399, seed=i) <= 0.05
    assert 0.035 <= scores[0] / count <= 0.065
    assert 0.17 <= scores[1] / count <= 0.23
    assert 0.02 <= ties / count <= 0.05  # whole numbers tie, which errs to the safe side
    assert alone / 200 > 0.1  # pictures of one prompt taken for independent


# -------------------------------------------------------------------------------------------------- what can be found


def test_the_detectable_difference_is_made_of_the_scatter_of_the_bootstrap() -> None:
    rng = np.random.default_rng(6)
    values, labels = clustered(rng, 50, 6, lean=0.3)
    groups = [values[labels == g] for g in range(50)]
    means = [np.concatenate([groups[i] for i in rng.integers(50, size=50)]).mean() for _ in range(4000)]
    assert detectable(values, labels) == pytest.approx(2.8016 * np.std(means) * np.sqrt(50 / 49), rel=0.06)
    assert detectable(values + 3, labels) == pytest.approx(detectable(values, labels))
    assert detectable(-2 * values, labels) == pytest.approx(2 * detectable(values, labels))


def test_one_value_a_cluster_gives_the_textbook_number() -> None:
    values = np.random.default_rng(7).normal(size=40)
    error = values.std(ddof=1) / np.sqrt(40)
    assert detectable(values, range(40)) == pytest.approx((1.959964 + 0.841621) * error, rel=1e-5)
    assert detectable(values, range(40), power=0.9, level=0.99) == pytest.approx(
        (2.575829 + 1.281552) * error, rel=1e-5
    )
    assert detectable(np.repeat(values, 3), np.repeat(range(40), 3)) == pytest.approx(detectable(values, range(40)))
    assert detectable([1.0, 1.0, 1.0], list("abc")) == pytest.approx(0, abs=1e-12)


def test_the_detectable_difference_is_found_four_times_in_five() -> None:
    rng, count = np.random.default_rng(13), 800
    shift = np.mean([detectable(*clustered(rng, 80, 3)) for _ in range(300)])
    found = np.zeros(2)
    for i in range(count):
        values, labels = clustered(rng, 80, 3)
        values = values + shift
        found += [
            mean(values, labels, resamples=400, seed=i).excludes_zero,
            p_value(values, labels, resamples=399, seed=i) <= 0.05,
        ]
    assert ((found / count > 0.76) & (found / count < 0.84)).all(), found / count


@pytest.mark.parametrize("function", [p_value, detectable])
@pytest.mark.parametrize(
    ("values", "labels", "message"),
    [
        ([], [], "one value per cluster label"),
        ([1.0, 2.0], ["a"], r"got \(2,\) values, 1 labels"),
        ([1.0, float("nan")], ["a", "b"], "1 of 2 values are not finite"),
        ([1.0, 2.0], ["a", "a"], "at least two prompts are needed to tell one from another; got 1"),
    ],
)
def test_wrong_differences_teach(function: Any, values: Any, labels: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(values, labels)


def test_wrong_settings_teach() -> None:
    with pytest.raises(ValueError, match="power is a share, above 0 and below 1; got 80"):
        detectable([1.0, 2.0], ["a", "b"], power=80)
    with pytest.raises(ValueError, match="level is a share, above 0 and below 1; got 1"):
        detectable([1.0, 2.0], ["a", "b"], level=1)
    with pytest.raises(ValueError, match="at least one resample is needed; got 0"):
        p_value([1.0, 2.0], ["a", "b"], resamples=0)


# ----------------------------------------------------------------------------------------------------- equal common


def verdicts(guidance: float, rare: float, common: float, count: int = 100, seed: int | None = None) -> Verdicts:
    """Two pictures a prompt, `rare` and `common` of them right: exactly, or with a seed each with that chance."""
    share = np.arange(count) / count if seed is None else np.random.default_rng(seed).random((2, count))
    first, second = (share, share) if seed is None else share
    labels = np.repeat(np.arange(count // 2), 2)
    return Verdicts(guidance, first < rare - 1e-9, labels, second < common - 1e-9, labels)


UNTOUCHED = [verdicts(5, 0.60, 0.90), verdicts(1, 0.20, 0.50), verdicts(7, 0.62, 0.80)]


def test_a_curve_is_its_means_by_guidance() -> None:
    got = curve(UNTOUCHED, level=0.8, resamples=300, seed=3)
    assert [(p.guidance, p.rare.value, p.common.value) for p in got] == [(1, 0.2, 0.5), (5, 0.6, 0.9), (7, 0.62, 0.8)]
    row = UNTOUCHED[0]
    assert got[1].rare == mean(row.rare, row.rare_prompts, level=0.8, resamples=300, seed=3)
    assert got[1].common == mean(row.common, row.common_prompts, level=0.8, resamples=300, seed=3)


def test_common_success_is_kept_on_the_tuning_half_and_the_number_is_of_the_other() -> None:
    method = [verdicts(3, 0.95, 0.88), verdicts(4, 0.70, 0.89), verdicts(5, 0.66, 0.95), verdicts(6, 0.64, 0.99)]
    plain = [verdicts(g, 0.5, 0.9, 200, seed=g) for g in (5, 1)]
    lifted = [verdicts(g, 0.55, 0.9, 200, seed=10 + g) for g in (3, 4, 5, 6)]
    got = at_equal_common(UNTOUCHED, method, plain, lifted)
    assert got is not None
    assert (got.guidance, got.untouched_guidance) == (4, 5)  # 3 is best but loses 0.02; 4 loses the margin exactly
    first, second = lifted[1], plain[0]
    assert got.rare == mean(first.rare, first.rare_prompts)
    assert got.untouched_rare == mean(second.rare, second.rare_prompts)
    assert got.difference == difference(first.rare, second.rare, first.rare_prompts)
    assert got.common_difference == difference(first.common, second.common, first.common_prompts)
    chosen = [
        at_equal_common(UNTOUCHED, method, plain, lifted, margin=m, level=0.8, resamples=99, seed=1)
        for m in (0, 0.01, 0.02)
    ]
    assert [c.guidance if c else None for c in chosen] == [5, 4, 3]
    assert chosen[0] is not None
    assert chosen[0].difference == difference(
        lifted[2].rare, second.rare, first.rare_prompts, level=0.8, resamples=99, seed=1
    )


def test_a_loss_of_exactly_the_margin_is_allowed_and_ties_go_to_common() -> None:
    untouched = [verdicts(5, 0.5, 0.13)]
    method = [verdicts(3, 0.7, 0.12), verdicts(4, 0.7, 0.2), verdicts(6, 0.6, 0.9)]
    allowed = at_equal_common(untouched, method[:1], untouched, method)  # 0.12 < 0.13 - 0.01 in floats
    assert allowed is not None
    assert allowed.guidance == 3
    tied = at_equal_common(untouched, method, untouched, method)
    assert tied is not None
    assert tied.guidance == 4


def test_a_method_that_keeps_nothing_has_no_number() -> None:
    assert at_equal_common(UNTOUCHED, [verdicts(5, 1.0, 0.5)], UNTOUCHED, UNTOUCHED) is None


def test_the_untouched_model_gains_nothing_on_itself() -> None:
    got = at_equal_common(UNTOUCHED, UNTOUCHED, UNTOUCHED, UNTOUCHED)
    assert got is not None
    assert got.difference == got.common_difference == Estimate(0, 0, 0)
    assert got.guidance == got.untouched_guidance == 5
    rows = [verdicts(g, *np.random.default_rng(g).uniform(0.5, 0.54, 2).round(2)) for g in range(30)]
    lent = at_equal_common(rows, rows, rows, rows, margin=0.01)
    assert lent is not None
    assert 0 <= lent.difference.value <= 0.01 + 1e-12  # what the docstring says of the margin


def test_choosing_and_reporting_on_the_same_pictures_flatters() -> None:
    rng, same, apart = np.random.default_rng(14), [], []
    for _ in range(200):
        seeds = rng.integers(1 << 30, size=18)
        tune, report = ([verdicts(g, 0.5, 0.5, 60, seed=seeds[k + g]) for g in range(9)] for k in (0, 9))
        for gains, told in ((same, tune), (apart, report)):
            got = at_equal_common(tune[:1], tune[1:], told[:1], told[1:], margin=0.2, resamples=9)
            if got:
                gains.append(got.difference.value)
    assert np.mean(same) > 0.05
    assert abs(np.mean(apart)) < 0.02


def test_verdicts_are_checked_when_made() -> None:
    with pytest.raises(ValueError, match="guidance is a finite number; got nan"):
        Verdicts(float("nan"), [0, 1], ["a", "b"], [0, 1], ["a", "b"])
    with pytest.raises(ValueError, match=r"got \(2,\) values, 1 labels"):
        Verdicts(1, [0, 1], ["a"], [0, 1], ["a", "b"])
    with pytest.raises(ValueError, match="2 of 2 values are not finite"):
        Verdicts(1, [0, 1], ["a", "b"], [np.nan, np.inf], ["a", "b"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"untouched_tuning": []}, r"untouched_tuning: one row per guidance is needed; got \[\]"),
        ({"method_tuning": UNTOUCHED[:1] * 2}, r"method_tuning: one row per guidance is needed; got \[5, 5\]"),
        ({"method_report": UNTOUCHED[1:]}, r"chose guidance 5 untouched and 5 for the method; .* and \[1, 7\]"),
        ({"untouched_report": UNTOUCHED[1:]}, r"reported are \[1, 7\] and \[1, 5, 7\]"),
        ({"method_report": [verdicts(5, 0.6, 0.9, 98)]}, "the same prompts in the same order"),
        ({"margin": -0.1}, "0 or more; got -0.1"),
        ({"margin": float("nan")}, "0 or more; got nan"),
    ],
)
def test_wrong_rows_teach(arguments: dict[str, Any], message: str) -> None:
    names = ("untouched_tuning", "method_tuning", "untouched_report", "method_report")
    with pytest.raises(ValueError, match=message):
        at_equal_common(**{**dict.fromkeys(names, UNTOUCHED), **arguments})


def test_a_curve_needs_rows() -> None:
    with pytest.raises(ValueError, match=r"curve: one row per guidance is needed; got \[\]"):
        curve([])
