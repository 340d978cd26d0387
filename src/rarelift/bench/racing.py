"""The arithmetic of `rarelift tune`: how a budget is dealt out, which settings stay, and whether the last one wins.

Successive halving (Karnin, Koren and Somekh 2013, ICML; Jamieson and Talwalkar 2016, arXiv 1502.07943): all settings
are drawn for a few prompts, the better half of them for more, until one is left, and each round costs the same. Every
comparison is with the untouched pictures of the same prompts and noise. The best of many looks good by luck too, so the
one that is left is tested once, on things that had no say in choosing it. No picture is touched here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from . import stats
from .runs import UNTOUCHED
from .stats import Estimate

Key = tuple[Hashable, Hashable]
"""What is asked for, and which picture of it. Phrasings of one thing are one: what is resampled and flipped whole."""
Scores = Mapping[str, Mapping[Key, float]]
"""By method, by picture; NaN where no picture came out, and nothing where the metric had nothing to say."""

SWEPT, CONFIRMED = 10, 40  # per cent of the budget: of the guidances, where there are several, and of the last test
FEWEST, FEWEST_CONFIRMED = 8, 16  # rare pictures of each method, in a round and in the last test
MOST = 64  # settings that a race begins with
LEVEL = 0.05


@dataclass(frozen=True)
class Round:
    """So many methods, untouched or guidances included, and the rare and common pictures of each."""

    name: str
    methods: int
    rare: int
    common: int

    @property
    def pictures(self) -> int:
        return self.methods * (self.rare + self.common)


@dataclass(frozen=True)
class Schedule:
    """The rounds in their order; `sweep` is None for a single guidance."""

    settings: int
    sweep: Round | None
    race: tuple[Round, ...]
    confirm: Round

    @property
    def pictures(self) -> int:
        return sum(r.pictures for r in (self.sweep, *self.race, self.confirm) if r is not None)


def deal(budget: int, *, settings: int | None = None, guidances: int = 1, common: bool = True) -> Schedule:
    """The rounds that a budget pays for.

    Args:
        budget: pictures in all, untouched and common ones among them.
        settings: how many are raced; None for as many as leave `FEWEST` prompts for the first round.
        guidances: values of guidance_scale; of several, the best for the untouched model is found first.
        common: whether common prompts are drawn, one for every two rare ones.

    Raises:
        ValueError: no settings, or a budget that is too small; the message has the least that will do.
    """
    if settings is not None and settings < 1:
        raise ValueError(f"at least one setting is needed; got {settings}")
    counts = [settings] if settings else [MOST >> halvings for halvings in range(MOST.bit_length() - 1)]

    def dealt(pictures: int) -> Schedule | None:
        return next(filter(None, (_deal(pictures, count, guidances, common) for count in counts)), None)

    found = dealt(budget)
    if found is None:
        least = next(b for b in itertools.count(max(budget, 1)) if dealt(b))
        raise ValueError(
            f"a budget of {budget} pictures is too small for {settings or 'two'} settings and {guidances} guidance "
            f"{'values' if guidances > 1 else 'value'}; give at least {least}"
        )
    return found


def _deal(budget: int, settings: int, guidances: int, common: bool) -> Schedule | None:
    """None where a round would be too small."""

    def fit(name: str, pictures: int, methods: int) -> Round:
        rare = 2 * pictures // (3 * methods) if common else pictures // methods
        return Round(name, methods, rare, rare // 2 if common else 0)

    swept = budget * SWEPT // 100 if guidances > 1 else 0
    rounds = (settings - 1).bit_length()
    confirmed = budget * CONFIRMED // 100 if rounds else budget - swept
    share = (budget - swept - confirmed) // max(rounds, 1)
    left = itertools.accumulate(range(rounds - 1), lambda n, _: (n + 1) // 2, initial=settings) if rounds else ()
    sweep = fit("guidance", swept, guidances) if swept else None
    race = tuple(fit(f"race{i}", share, n + 1) for i, n in enumerate(left, 1))
    confirm = fit("confirm", confirmed, 2)
    enough = all(r.rare >= FEWEST for r in (sweep, *race) if r is not None) and confirm.rare >= FEWEST_CONFIRMED
    return Schedule(settings, sweep, race, confirm) if enough and (sweep or guidances == 1) else None


# ---------------------------------------------------------------- the race


@dataclass(frozen=True)
class Standing:
    """A setting after a round: its mean paired differences to untouched so far, and whether it goes on."""

    method: str
    rare: float
    common: float | None
    kept: bool


@dataclass(frozen=True)
class Verdict:
    """The last test, on things and noise of its own: `pictures` of so many different `things`.

    `common` is the paired difference, None where fewer than two have a score; `detectable` the smallest true difference
    of rare scores that a repeat would find with chance 0.8; `why` it did not win, empty where it did.
    """

    method: str
    untouched: Estimate
    lifted: Estimate
    difference: Estimate
    p: float
    detectable: float
    common: Estimate | None
    things: int
    pictures: int
    won: bool
    why: str


@dataclass(frozen=True)
class Outcome:
    """`standings` of each round of the race, best first; `verdict` is None where no setting got as far."""

    standings: tuple[tuple[Round, tuple[Standing, ...]], ...]
    verdict: Verdict | None

    @property
    def winner(self) -> str | None:
        return self.verdict.method if self.verdict and self.verdict.won else None


Draw = Callable[[Round, Sequence[str]], tuple[Scores, Scores]]
"""From a round and its methods, `UNTOUCHED` first, to the scores of its rare and of its common pictures."""


def race(methods: Sequence[str], schedule: Schedule, draw: Draw, *, margin: float) -> Outcome:
    """Halve the methods round by round, and test the last one.

    Args:
        methods: names, the simpler ones first: of equals the first stays.
        draw: called for each round in turn; the pictures of a round are new ones.
        margin: share of the untouched model's common score that may be lost, in [0, 1).

    Raises:
        ValueError: too few scores to compare in the last test.
    """
    rare: dict[str, dict[Key, float]] = {}
    common: dict[str, dict[Key, float]] = {}
    alive = list(methods)
    standings: list[tuple[Round, tuple[Standing, ...]]] = []
    for one in schedule.race:
        if len(alive) < 2 and standings:
            break
        for held, new in zip((rare, common), draw(one, [UNTOUCHED, *alive]), strict=True):
            for method, scores in new.items():
                held.setdefault(method, {}).update(scores)
        ranked, kept = _ranked(alive, rare, common, margin)
        standings.append((one, tuple(_standing(m, rare, common, m in kept) for m in ranked)))
        alive = kept
    told = tuple(standings)
    if not alive or (told and told[-1][1][0].rare <= 0):
        return Outcome(told, None)
    tested = draw(schedule.confirm, [UNTOUCHED, alive[0]])
    return Outcome(told, judge(alive[0], *tested, margin=margin, guarded=schedule.confirm.common > 0))


def _ranked(alive: list[str], rare: Scores, common: Scores, margin: float) -> tuple[list[str], list[str]]:
    """All of them, those that go on first, and those that go on.

    By the mean difference, which all take over the same pictures. Divided by its error it would favour what changes
    little.
    """
    fit = [m for m in alive if not _spoils(m, rare) and not _spoils(m, common) and not _harms(m, common, margin)]
    best = sorted(fit, key=lambda m: (-_gain(m, rare), -_gain(m, common)))
    kept = best[: -(-len(alive) // 2)]
    return [*best, *(m for m in alive if m not in fit)], kept


def _standing(method: str, rare: Scores, common: Scores, kept: bool) -> Standing:
    return Standing(method, _gain(method, rare), _gain(method, common) if common else None, kept)


def _pairs(method: str, scores: Scores) -> tuple[np.ndarray, np.ndarray, list[Hashable]]:
    """Scores of the method, of untouched, and what was asked for, over the pictures that both have a score of."""
    base, own = scores.get(UNTOUCHED, {}), scores.get(method, {})
    keys = [k for k in own if k in base and math.isfinite(own[k]) and math.isfinite(base[k])]
    return np.array([own[k] for k in keys]), np.array([base[k] for k in keys]), [thing for thing, _ in keys]


def _gain(method: str, scores: Scores) -> float:
    lifted, untouched, _ = _pairs(method, scores)
    return float((lifted - untouched).mean()) if len(lifted) else 0.0


def _spoils(method: str, scores: Scores) -> bool:
    """Whether a picture came out as NaN that is one when untouched."""
    base = scores.get(UNTOUCHED, {})
    return any(
        math.isnan(value) and not math.isnan(base.get(key, 0.0)) for key, value in scores.get(method, {}).items()
    )


def _harms(method: str, common: Scores, margin: float) -> bool:
    """Whether common prompts lose more than the margin, and more than the few drawn so far lose by chance."""
    lifted, untouched, things = _pairs(method, common)
    if len(set(things)) < 2:
        return False
    apart = lifted - untouched
    error = apart.std(ddof=1) / math.sqrt(len(apart))
    return bool(apart.mean() + error < -margin * abs(untouched.mean()))


def judge(method: str, rare: Scores, common: Scores, *, margin: float, guarded: bool) -> Verdict:
    """Whether a method beats untouched: the bootstrap interval of the paired difference lies above zero, the sign-flip
    test agrees, and common prompts lose no more than the margin.

    The interval alone would be too easily pleased: where few pictures change, and those by chance the same way, it
    excludes zero more often than it says. The test is exact there.

    Args:
        guarded: whether common prompts were given. Without a score of them nothing tells whether they suffer, so the
            method cannot win.

    Raises:
        ValueError: fewer than two things were scored.
    """
    lifted, untouched, things = _pairs(method, rare)
    difference, p = stats.difference(lifted, untouched, things), stats.p_value(lifted - untouched, things)
    after, before, common_things = _pairs(method, common)
    told = stats.difference(after, before, common_things) if len(set(common_things)) > 1 else None
    lost = told is not None and told.value < -margin * abs(before.mean()) - 1e-12
    if _spoils(method, rare) or _spoils(method, common):
        why = "a picture came out as NaN"
    elif not difference.low > 0:
        why = "the interval of the difference does not lie above zero"
    elif p > LEVEL:
        why = f"the interval lies above zero, but so few pictures changed that the sign-flip test says p = {p:.3f}"
    elif guarded and told is None:
        why = (
            f"of the common prompts that were drawn, {len(set(common_things))} have a score of both, and two at least "
            "are needed to tell whether they suffer"
        )
    elif lost:
        why = f"common prompts lose more than the margin of {margin:g}"
    else:
        why = ""
    return Verdict(
        method,
        stats.mean(untouched, things),
        stats.mean(lifted, things),
        difference,
        p,
        stats.detectable(lifted - untouched, things),
        told,
        len(set(things)),
        len(things),
        not why,
        why,
    )
