"""The folder of a tuning: what was asked and with what model, and the rounds, each drawn as a run of its own."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .. import pipelines
from ..attach import identity
from ..profiles import Profile
from . import racing, scorers
from .candidates import sampled
from .drawing import Worker
from .runs import SCORES, UNTOUCHED, Method, Run, write
from .shares import SEED, share, thing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ..prompts import Suite
    from .racing import Round, Schedule
    from .tuning import Tuning

FORM = 1  # of the folder
ASKED = "tune.json"

_Table = dict[tuple[str, float | None], dict[racing.Key, float]]  # by method and guidance, by picture


class Drawing:
    """Draws the rounds of a tuning into its folder, with one model loaded once, if at all."""

    def __init__(self, tuning: Tuning, folder: Path) -> None:
        self.tuning, self.folder = tuning, folder
        self.pictures = 0
        """Of the rounds so far, whenever they were drawn."""
        self._before: dict[str, Any] | None = None  # what tune.json says, where the tuning goes on

    @functools.cached_property
    def model(self) -> pipelines.Model:
        dtype = None if self.tuning.dtype is None else getattr(import_module("torch"), self.tuning.dtype)
        model = pipelines.load(self.tuning.model, dtype=dtype)
        if self._before is not None:
            _check_same(self.folder, self._before, model)
        return model

    @functools.cached_property
    def scorer(self) -> Any:
        return scorers.make(self.tuning.metric, self.tuning.rare)

    def begun(self) -> dict[str, Any]:
        """What `tune.json` says of the settings and the model; written first where there is none."""
        path, asked = self.folder / ASKED, json.loads(json.dumps(self.tuning.to_dict()))
        if path.is_file():
            self._before = _resumed(path, asked)
            return self._before
        if self.folder.exists() and any(path.suffix != ".part" for path in self.folder.iterdir()):  # half of a file
            raise ValueError(f"{self.folder} is no tuning: it has files but no {ASKED}; give a new folder")
        model, config = identity(self.model.pipe)
        self._try(Method(UNTOUCHED))  # where this fails no setting is to blame
        methods, left_out = self._named() if self.tuning.methods else self._sampled()
        names = [method.name for method in methods]
        about = {"model": model, "config": config, "dtype": _dtype(self.model), "methods": names, "left_out": left_out}
        self.folder.mkdir(parents=True, exist_ok=True)
        write(path, json.dumps({"form": FORM, "asked": asked, **about}, indent=2) + "\n")
        return about

    def _try(self, method: Method) -> None:
        """Draw one picture by a method, at each guidance; these pictures are neither kept nor counted."""
        one = replace(self.tuning.rare, prompts=self.tuning.rare.prompts[:1])
        plan = self.tuning.plan(one, [method], self.tuning.guidances, (SEED,))
        worker = Worker(plan, self.model, [])
        for _, guidance in plan.groups:
            worker(plan.units(method, guidance))

    def _fails(self, method: Method) -> str:
        """Why a method cannot be drawn, or nothing."""
        try:
            self._try(method)
        except (ValueError, RuntimeError) as error:
            return pipelines.first_line(error)
        return ""

    def _named(self) -> tuple[list[Method], dict[str, str]]:
        """What was asked for, each tried first: one that fails would end the race in its middle."""
        for method in self.tuning.methods:
            if why := self._fails(method):
                raise ValueError(f"{method.name} cannot be drawn with this model and call: {why}")
        return list(self.tuning.methods), {}

    def _sampled(self) -> tuple[list[Method], dict[str, str]]:
        """As `sampled`, each tried first."""
        methods, left_out = sampled(self.model.pipe, self.tuning.schedule(None).settings, self._fails)
        if not methods:
            why = next(iter(left_out.values()), "the pipeline honours none of them")
            raise ValueError(f"none of the sampled settings can be drawn with this call: {why}")
        return methods, left_out

    def best_guidance(self, schedule: Schedule) -> float | None:
        """Of the untouched model: the highest mean of rare and common scores; the first of equals.

        One without a score on either side comes after those that have them.
        """
        guidances = self.tuning.guidances
        if schedule.sweep is None:
            return guidances[0]
        rare, common = self.scores(schedule, schedule.sweep, [Method(UNTOUCHED)], guidances)

        def rank(guidance: float | None) -> tuple[int, float]:
            sides = [scores.get((UNTOUCHED, guidance), {}).values() for scores in (rare, common)]
            means = [sum(told) / len(told) for side in sides if (told := list(filter(math.isfinite, side)))]
            return len(means), sum(means)

        return max(guidances, key=rank)

    def scores(
        self, schedule: Schedule, one: Round, methods: Sequence[Method], guidances: tuple[float | None, ...]
    ) -> tuple[_Table, _Table]:
        """Of the rare and the common pictures of a round; draws what is not there."""
        rare, common = (self._side(side, schedule, one, methods, guidances) for side in ("rare", "common"))
        return rare, common

    def _side(
        self,
        side: str,
        schedule: Schedule,
        one: Round,
        methods: Sequence[Method],
        guidances: tuple[float | None, ...],
    ) -> _Table:
        suite: Suite | None = getattr(self.tuning, side)
        if suite is None:
            return {}
        chosen, seeds = share(schedule, one, side, suite)
        plan = self.tuning.plan(replace(suite, prompts=tuple(chosen)), methods, guidances, seeds)
        run = Run(self.folder / f"{one.name}-{side}", plan)
        with run.open():
            if batches := list(run.missing()):
                draw = Worker(plan, self.model, [self.scorer])
                run.take((batch, draw(batch)) for batch in batches)
        self.pictures += len(run.done)
        things = {prompt.id: thing(prompt) for prompt in chosen}
        found: _Table = {}
        for unit, line in run.done.items():
            score = math.nan if "failed" in line else next(iter(line["scores"].values()), None)
            if score is not None:
                found.setdefault((unit.method, unit.guidance), {})[things[unit.prompt], (unit.prompt, unit.seed)] = (
                    float(score)
                )
        plain = [one for (method, _), scores in found.items() if method == UNTOUCHED for one in scores.values()]
        if side == "rare" and not any(map(math.isfinite, plain)):
            failed = f", and {len(plain)} came out as NaN" if plain else ""
            raise ValueError(
                f"{run.folder}: no untouched picture has a score by {self.tuning.metric!r}{failed}, so nothing can be "
                f"compared with it; {SCORES} there holds what was said of each. Give a new folder once they get scores"
            )
        return found


def _resumed(path: Path, asked: dict[str, Any]) -> dict[str, Any]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        form = held["form"]
        if form == FORM:
            before = held["asked"]
            about = {key: held[key] for key in ("model", "config", "dtype", "methods", "left_out")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if form != FORM:
        raise ValueError(f"{path} has form {form}, and this rarelift reads {FORM}; update rarelift")
    for key, value in asked.items():
        if before.get(key) != value:
            raise ValueError(
                f"{path.parent} holds a tuning with {key} = {json.dumps(before.get(key))}, and this one has "
                f"{json.dumps(value)}; give another folder, or the same settings to go on"
            )
    return about


def _dtype(model: pipelines.Model) -> str:
    return str(model.pipe.dtype).removeprefix("torch.")


def _check_same(folder: Path, before: dict[str, Any], model: pipelines.Model) -> None:
    """Raise ValueError where a tuning would go on with another model, or in another arithmetic."""
    found = Profile(before["model"], before["config"], {}, {}).differences(*identity(model.pipe))
    if (dtype := _dtype(model)) != before["dtype"]:
        found.append(f"dtype is {before['dtype']} there and {dtype} here")
    if found:
        raise ValueError(
            f"{folder} holds a tuning of another model than {model.name!r} is now: {'; '.join(found)}; give another "
            "folder, or the same model and --dtype to go on"
        )
