"""Paired comparisons with intervals that respect how the pictures hang together.

Several pictures of one prompt are not independent, so every interval resamples whole clusters (prompts).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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

    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) != len(clusters) or not len(array):
        raise ValueError(f"one value per cluster label is needed; got {array.shape} values, {len(clusters)} labels")
    if not np.isfinite(array).all():
        raise ValueError(f"{(~np.isfinite(array)).sum()} of {len(array)} values are not finite")
    if not 0 < level < 1:
        raise ValueError(f"level is the coverage of the interval, above 0 and below 1; got {level}")
    names = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    if len(names) < 2:
        raise ValueError("an interval over prompts needs at least two prompts")
    index = np.array([names[c] for c in clusters])
    sums, sizes = np.bincount(index, array), np.bincount(index).astype(np.float64)

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
