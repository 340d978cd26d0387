"""What is asked of a tuning: checked before anything is drawn, and as the command that asks it again."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import pipelines, prompts
from ..menagerie.world import check_prompt
from ..settings import Spread, one_of
from . import racing, scorers
from .runs import UNTOUCHED, Method, Plan
from .session import DTYPES
from .shares import thing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ..prompts import Suite
    from .racing import Schedule

MARGIN = 0.02
_LEAST_RARE, _LEAST_COMMON = 16, 8  # things asked for; half of them are kept for the last test


@dataclass(frozen=True)
class Tuning:
    """What is asked of a tuning, checked by `planned`.

    Args:
        rare: prompts that the settings are to lift.
        common: prompts that must not suffer; None leaves them unguarded.
        metric: as `scorers.parse` reads it; its first number counts.
        budget: pictures in all.
        guidances: values of guidance_scale; of several, the best for the untouched model is found first.
        methods: settings to race; none samples them.
        margin: share of the untouched model's common score that may be lost.
        batch_size, call, dtype: as in `Plan`.
        suite_format: the prompts were read as; for `command` alone, since what was read is compared itself.
    """

    rare: Suite
    common: Suite | None
    metric: str
    budget: int
    guidances: tuple[float | None, ...] = (None,)
    methods: tuple[Method, ...] = ()
    model: str = pipelines.BUNDLED
    margin: float = MARGIN
    batch_size: int = 16
    call: tuple[tuple[str, Any], ...] = ()
    dtype: str | None = None
    suite_format: str | None = None

    def schedule(self, settings: int | None) -> Schedule:
        """Of so many settings; None for as many as the budget pays for."""
        return racing.deal(
            self.budget, settings=settings, guidances=len(self.guidances), common=self.common is not None
        )

    def plan(
        self, suite: Suite, methods: Sequence[Method], guidances: tuple[float | None, ...], seeds: Sequence[int]
    ) -> Plan:
        """A run of these prompts, as the rounds are."""
        return Plan(
            suite,
            tuple(methods),
            guidances,
            tuple(seeds),
            self.model,
            self.batch_size,
            self.call,
            (self.metric,),
            self.dtype,
        )

    def to_dict(self) -> dict[str, Any]:
        sides = {"rare": self.rare, "common": self.common}
        return {
            **{k: s and {"name": s.name, "digest": s.digest, "n": len(s.prompts)} for k, s in sides.items()},
            "metric": self.metric,
            "budget": self.budget,
            "guidances": list(self.guidances),
            "methods": [{"name": m.name, "settings": m.settings and m.settings.to_dict()} for m in self.methods],
            "model": self.model,
            "margin": self.margin,
            "batch_size": self.batch_size,
            "call": dict(self.call),
            "dtype": self.dtype,
        }


def planned(
    suite: str | None = None,
    *,
    common: str | None = None,
    suite_format: str | None = None,
    metric: str | None = None,
    budget: int,
    guidances: Sequence[float] = (),
    methods: Sequence[str] = (),
    model: str = pipelines.BUNDLED,
    margin: float = MARGIN,
    batch_size: int | None = None,
    dtype: str | None = None,
    **call: Any,
) -> Tuning:
    """The tuning that these words mean. Of a Menagerie suite the tuning half is drawn, never the reporting one.

    Args:
        suite, common: built-in suites, or paths of files or folders of prompts, of `suite_format`. The suite is
            "menagerie-rare" for the bundled model and "rare" for others when not given; the common prompts are
            "menagerie-common" for a Menagerie suite and none for others.
        metric: "attributes" when not given, for Menagerie suites alone.
        methods: "lift:NAME=VALUE,..." each; none samples settings.
        call: arguments of the pipeline.

    Raises:
        ValueError: anything is not known or does not fit, or the budget is too small.
    """
    if dtype is not None:
        one_of("dtype", dtype, DTYPES)
    suite = suite or ("menagerie-rare" if model == pipelines.BUNDLED else "rare")
    rare = _load(suite, suite_format, _LEAST_RARE)
    common = common or ("menagerie-common" if _menagerie(suite) else None)
    beside = None if common is None else _load(common, suite_format, _LEAST_COMMON)
    named = [name for name in (suite, common) if name is not None]
    if suite_format is not None and all(name in prompts.SUITES for name in named):
        raise ValueError(
            f"format {suite_format!r} is for a file or folder of prompts, and {' and '.join(map(repr, named))} "
            f"{'come' if len(named) > 1 else 'comes'} with rarelift; leave it out, or write ./NAME for a file"
        )
    strange = [name for name in named if not _menagerie(name)]
    if metric is None and strange:
        raise ValueError(f"suite {strange[0]!r} needs a metric to tune by: --metric {', '.join(scorers.KINDS)}, ...")
    tuning = Tuning(
        rare,
        beside,
        metric or "attributes",
        budget,
        tuple(guidances) or (None,),
        tuple(map(Method.parse, methods)),
        model,
        margin,
        (16 if model == pipelines.BUNDLED else 1) if batch_size is None else batch_size,
        tuple(sorted(call.items())),
        dtype,
        suite_format,
    )
    if not 0 <= margin < 1:
        raise ValueError(
            f"margin is the share of the common score that may be lost, 0 or more and below 1; got {margin}"
        )
    names = [method.name for method in tuning.methods]
    for method in tuning.methods:
        if not isinstance(method.settings, Spread):
            raise ValueError(f"method {method.name!r}: tuning races settings of the lift, such as lift:alpha=1.2")
        if names.count(method.name) > 1:
            raise ValueError(f"method {method.name!r} is there twice")
    sides = [rare] if beside is None else [rare, beside]
    for side in sides:  # what a round would raise, but only after others have been drawn
        tuning.plan(side, (Method(UNTOUCHED), *tuning.methods), tuning.guidances, (0,))
    tuning.schedule(len(names) or None)
    for side in sides:
        scorers.check(tuning.metric, side)
        for prompt in side.prompts if model == pipelines.BUNDLED else ():
            check_prompt(prompt.text)
    return tuning


def _menagerie(suite: str) -> bool:
    return suite in prompts.SUITES and suite.startswith("menagerie")


def _load(suite: str, suite_format: str | None, least: int) -> Suite:
    chosen = None if suite in prompts.SUITES else suite_format
    found = prompts.load(suite, chosen, split="tune" if _menagerie(suite) else None)
    things = len(set(map(thing, found.prompts)))
    if things < least:
        alike = "" if things == len(found.prompts) else f", which ask for {things} different things"
        raise ValueError(
            f"suite {suite!r} has {len(found.prompts)} prompts{alike}; tuning needs {least} at least, for half of them "
            "are kept for the last test"
        )
    return found


def command(tuning: Tuning, folder: Path) -> str:
    """The command that tunes again; PATH-OF-NAME stands for a file of the user's."""
    words = ["rarelift", "tune", folder.name, "--model", tuning.model, "--budget", str(tuning.budget)]
    for option, suite in (("--suite", tuning.rare), ("--common", tuning.common)):
        if suite is not None:
            ours = suite.name in prompts.SUITES and _load(suite.name, None, 1).digest == suite.digest
            words += [option, suite.name if ours else f"PATH-OF-{suite.name}"]
    words += ["--format", tuning.suite_format] if tuning.suite_format else []
    words += ["--metric", tuning.metric, "--margin", f"{tuning.margin!r}"]
    for guidance in tuning.guidances:
        words += ["--guidance", f"{guidance!r}"] if guidance is not None else []
    for method in tuning.methods:
        words += ["--method", method.name]
    words += ["--batch-size", str(tuning.batch_size)]
    words += ["--dtype", tuning.dtype] if tuning.dtype else []
    words += ["--steps", str(steps)] if (steps := dict(tuning.call).get("num_inference_steps")) else []
    return shlex.join(words)
