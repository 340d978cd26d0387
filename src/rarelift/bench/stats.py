"""Paired comparisons with intervals that respect how the pictures hang together.

Several pictures of one prompt are not independent, so every interval resamples whole clusters (prompts), every test
flips whole clusters, and every standard error sums over them. Only `wilson` takes its trials for independent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def __format__(self, spec: str) -> str:
        spec = spec or ".3f"
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def require() -> None:
    """Raise ImportError, with the command that helps, where intervals cannot be made."""
    try:
        import scipy.stats  # noqa: F401
    except ImportError as error:
        raise ImportError("intervals need scipy: pip install 'rarelift[bench]'") from error


def _sums(
    values: Sequence[float] | np.ndarray, clusters: Sequence[Hashable]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The values as an array, the sum of each cluster, and its size; ValueError where they cannot be clustered."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) != len(clusters) or not len(array):
        raise ValueError(f"one value per cluster label is needed; got {array.shape} values, {len(clusters)} labels")
    if not np.isfinite(array).all():
        raise ValueError(f"{(~np.isfinite(array)).sum()} of {len(array)} values are not finite")
    names = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    if len(names) < 2:
        raise ValueError(f"at least two prompts are needed to tell one from another; got {len(names)}")
    index = np.array([names[c] for c in clusters])
    return array, np.bincount(index, array), np.bincount(index).astype(np.float64)


def _share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} is a share, above 0 and below 1; got {value}")


def mean(
    values: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable],
    *,
    level: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> Estimate:
    """Mean of `values` with a cluster-bootstrap percentile interval (Davison and Hinkley 1997, section 3.8).

    Args:
        values: one number per picture.
        clusters: the prompt each number belongs to; whole clusters are drawn with replacement.
        level: coverage of the interval, in (0, 1).

    Raises:
        ValueError: no values, lengths that differ, values that are not finite, fewer than two clusters, or a level
            outside (0, 1).
    """
    require()
    from scipy.stats import bootstrap

    array, sums, sizes = _sums(values, clusters)
    _share("level", level)

    def ratio(s: np.ndarray, n: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(s.sum(axis) / n.sum(axis))

    value = float(array.mean())
    if np.ptp(sums / sizes) == 0:  # every cluster agrees: nothing to resample
        return Estimate(value, value, value)
    result = bootstrap(
        (sums, sizes),
        ratio,
        paired=True,
        vectorized=True,
        confidence_level=level,
        n_resamples=resamples,
        batch=500,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return Estimate(value, float(result.confidence_interval.low), float(result.confidence_interval.high))


def difference(
    lifted: Sequence[float] | np.ndarray,
    untouched: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable],
    *,
    level: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> Estimate:
    """Mean of the paired differences `lifted - untouched`, same noise pair by pair, with the interval of `mean`."""
    first, second = np.asarray(lifted, np.float64), np.asarray(untouched, np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired values are needed; got {first.shape} lifted and {second.shape} untouched")
    return mean(first - second, clusters, level=level, resamples=resamples, seed=seed)


def wilson(successes: int, n: int, level: float = 0.95) -> Estimate:
    """Share of successes in `n` independent trials, with the score interval (Wilson 1927, JASA 22:209-212).

    For trials without clusters: one picture a prompt, or many pictures of a single prompt. Else use `mean`.

    Raises:
        ValueError: counts that are not whole, no trials, successes outside 0 to `n`, or a level outside (0, 1).
    """
    require()
    from scipy.stats import binomtest

    if not (n >= 1 and 0 <= successes <= n) or successes % 1 or n % 1:
        raise ValueError(f"0 to n successes of at least one trial, whole numbers; got {successes} of {n}")
    _share("level", level)
    interval = binomtest(int(successes), int(n)).proportion_ci(level, method="wilson")
    return Estimate(float(successes / n), float(interval.low), float(interval.high))


def correct(p_values: Sequence[float] | np.ndarray, method: Literal["holm", "bh"] = "holm") -> np.ndarray:
    """Adjusted p-values of one family of tests, in the order given: those at most a are significant at a.

    Args:
        p_values: one per test, each in [0, 1].
        method: "holm" bounds the chance of any false finding (Holm 1979, Scand. J. Statist. 6:65-70), whatever the
            tests have to do with each other; "bh" bounds the expected share of false findings among the findings
            (Benjamini and Hochberg 1995, J. R. Statist. Soc. B 57:289-300), for tests that are independent or lean
            the same way.

    Raises:
        ValueError: no p-values, one outside [0, 1], or another method.
    """
    require()
    from scipy.stats import false_discovery_control

    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not len(p):
        raise ValueError(f"a list of p-values is needed; got shape {p.shape}")
    wrong = p[~((p >= 0) & (p <= 1))]  # nan too
    if len(wrong):
        raise ValueError(f"a p-value is in [0, 1]; got {wrong.tolist()}")
    if method == "bh":
        return np.asarray(false_discovery_control(p, method="bh"))
    if method != "holm":
        raise ValueError(f"method is 'holm' or 'bh'; got {method!r}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return adjusted


def p_value(
    differences: Sequence[float] | np.ndarray, clusters: Sequence[Hashable], *, resamples: int = 9999, seed: int = 0
) -> float:
    """Two-sided p-value of paired differences: the sign-flip test on cluster sums (Fisher 1935, ch. 3).

    Under the null the two sides of a prompt could change places, so the sum of its differences is as likely to have
    either sign. The statistic is the size of the total. All 2^G flips are counted up to 12 clusters. With more,
    `resamples` random ones are, and the observed one is added to both counts (Phipson and Smyth 2010, SAGMB 9:39), so
    that p is never 0. With G clusters p is at least 2^(1 - G): five clusters or fewer cannot reach 0.05. Verdicts of
    right and wrong tie often, which errs to the safe side.

    Raises:
        ValueError: what `mean` raises, or no resamples.
    """
    require()
    from scipy.stats import permutation_test

    _, sums, _ = _sums(differences, clusters)
    if resamples < 1:
        raise ValueError(f"at least one resample is needed; got {resamples}")
    if not sums.any():
        return 1.0

    def size(s: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(np.abs(s.sum(axis)).round(12))  # rounded: sums in another order still tie

    result = permutation_test(
        (sums / np.abs(sums).max(),),
        size,
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf if len(sums) <= 12 else resamples,
        batch=500,
        alternative="greater",
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def detectable(
    differences: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable],
    power: float = 0.8,
    level: float = 0.95,
) -> float:
    """The smallest true mean difference that a repeat of this experiment would find with chance `power`.

    (z_{1 - a/2} + z_power) * SE with a = 1 - level (Bloom 1995, Evaluation Review 19:547-556). SE is the
    cluster-robust standard error of the mean as a ratio of cluster sums S to cluster sizes n (Cochran 1977, Sampling
    Techniques, ch. 2 and 6): SE^2 = G / (G - 1) * sum_g (S_g - m n_g)^2 / (sum_g n_g)^2, with m the mean. It is what
    the bootstrap of `mean` scatters by, times sqrt(G / (G - 1)). Normal quantiles: take it for a guide below some 30
    clusters. It depends on the scatter alone, not on the mean found; power at the mean found says no more than p.

    Raises:
        ValueError: what `mean` raises, or a power outside (0, 1).
    """
    require()
    from scipy.stats import norm

    array, sums, sizes = _sums(differences, clusters)
    _share("power", power)
    _share("level", level)
    off = sums - array.mean() * sizes
    error = np.sqrt(len(sums) / (len(sums) - 1) * (off**2).sum()) / sizes.sum()
    return float((norm.ppf((1 + level) / 2) + norm.ppf(power)) * error)


@dataclass(frozen=True, eq=False)
class Verdicts:
    """What one method drew at one guidance: a success, 0 to 1, per picture, and the prompt of each picture.

    Raises:
        ValueError: a guidance that is not finite, or values that `mean` would not take.
    """

    guidance: float
    rare: Sequence[float] | np.ndarray
    rare_prompts: Sequence[Hashable]
    common: Sequence[float] | np.ndarray
    common_prompts: Sequence[Hashable]

    def __post_init__(self) -> None:
        if not np.isfinite(self.guidance):
            raise ValueError(f"guidance is a finite number; got {self.guidance}")
        _sums(self.rare, self.rare_prompts)
        _sums(self.common, self.common_prompts)


@dataclass(frozen=True)
class Point:
    """Rare and common success at one guidance."""

    guidance: float
    rare: Estimate
    common: Estimate


@dataclass(frozen=True)
class EqualCommon:
    """A method against the untouched model, each at the guidance that tuning chose; numbers are of the report half."""

    guidance: float
    untouched_guidance: float
    rare: Estimate
    untouched_rare: Estimate
    difference: Estimate  # of rare success, paired
    common_difference: Estimate  # of common success, paired: whether the bar that tuning set still holds


def _by_guidance(name: str, rows: Sequence[Verdicts]) -> dict[float, Verdicts]:
    """The rows by rising guidance."""
    found = {row.guidance: row for row in sorted(rows, key=lambda row: row.guidance)}
    if not rows or len(found) < len(rows):
        raise ValueError(f"{name}: one row per guidance is needed; got {[row.guidance for row in rows]}")
    return found


def curve(rows: Sequence[Verdicts], *, level: float = 0.95, resamples: int = 4000, seed: int = 0) -> list[Point]:
    """Rare and common success of one method by rising guidance, each with the interval of `mean`.

    Once for the untouched model and once for a method gives the two curves to lay over each other. Intervals hold
    point by point, not for the highest point of a curve.

    Raises:
        ValueError: no rows, or a guidance given twice.
    """
    return [
        Point(
            guidance,
            mean(row.rare, row.rare_prompts, level=level, resamples=resamples, seed=seed),
            mean(row.common, row.common_prompts, level=level, resamples=resamples, seed=seed),
        )
        for guidance, row in _by_guidance("curve", rows).items()
    ]


def at_equal_common(
    untouched_tuning: Sequence[Verdicts],
    method_tuning: Sequence[Verdicts],
    untouched_report: Sequence[Verdicts],
    method_report: Sequence[Verdicts],
    *,
    margin: float = 0.01,
    level: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> EqualCommon | None:
    """The best rare success of a method that keeps common success, against the untouched model at its best guidance.

    The tuning half chooses. The untouched model's best guidance has the highest mean of rare and common success. The
    method's has the highest rare success among those whose common success is at most `margin` lower than the untouched
    model's at its best. The report half gives every number. None: no guidance of the method keeps common success.

    Choosing the best and reading its height off the same data is optimistic: noise helps to choose, and the interval
    does not know of the choice. So pass tuning data for the choice and report data, of other prompts, for the number.
    This function cannot tell whether they differ. The intervals hold for the guidances chosen, as if named in advance.
    The margin is lent to the method alone: on the tuning half the untouched model in the place of the method gains
    `margin` at most.

    Args:
        untouched_tuning, method_tuning: rows that choose; the two need not share guidances.
        untouched_report, method_report: rows that are reported, paired picture by picture; the chosen guidances must
            be among them.
        margin: how much common success the method may lose, at least 0.

    Raises:
        ValueError: no rows, a guidance given twice, a chosen guidance that is not reported, report rows that are not
            paired, or a negative margin.
    """
    if not 0 <= margin < np.inf:
        raise ValueError(f"margin is the common success that may be lost, 0 or more; got {margin}")
    tuned, tried = (
        {guidance: (np.mean(row.rare), np.mean(row.common)) for guidance, row in _by_guidance(name, rows).items()}
        for name, rows in (("untouched_tuning", untouched_tuning), ("method_tuning", method_tuning))
    )
    plain = max(tuned, key=lambda g: sum(tuned[g]))
    bar = tuned[plain][1] - margin - 1e-12  # a loss of exactly the margin is allowed
    kept = [g for g, (_, common) in tried.items() if common >= bar]
    if not kept:
        return None
    best = max(kept, key=lambda g: tried[g])  # of equal rare success, the higher common one
    before, after = _by_guidance("untouched_report", untouched_report), _by_guidance("method_report", method_report)
    if plain not in before or best not in after:
        raise ValueError(
            f"tuning chose guidance {plain} untouched and {best} for the method; "
            f"reported are {list(before)} and {list(after)}"
        )
    first, second = after[best], before[plain]
    if list(first.rare_prompts) != list(second.rare_prompts) or list(first.common_prompts) != list(
        second.common_prompts
    ):
        raise ValueError("report rows of the method and of the untouched model need the same prompts in the same order")

    rare, common = first.rare_prompts, first.common_prompts
    return EqualCommon(
        guidance=best,
        untouched_guidance=plain,
        rare=mean(first.rare, rare, level=level, resamples=resamples, seed=seed),
        untouched_rare=mean(second.rare, rare, level=level, resamples=resamples, seed=seed),
        difference=difference(first.rare, second.rare, rare, level=level, resamples=resamples, seed=seed),
        common_difference=difference(first.common, second.common, common, level=level, resamples=resamples, seed=seed),
    )
