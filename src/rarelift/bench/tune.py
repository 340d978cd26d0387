"""`rarelift tune`: settings for one model, found by drawing with it, and written down as a profile.

    tune.json       what was asked, and the settings that race: written once, before the first picture
    guidance-rare/  runs as `rarelift bench` makes them, one for each round and side: the sweep of guidance_scale, where
    race1-rare/     there are several, the rounds of the race, and the test of what was left
    race1-common/
    confirm-rare/
    profile.json    what came of it, for rarelift.apply(pipe, profile=...)

Which settings a round draws follows from the scores of the rounds before it, so the same command goes on where it was
stopped and comes to the same end.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import random
import shlex
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .. import pipelines, prompts
from ..attach import apply, identity
from ..menagerie.world import ATTRIBUTES, check_prompt
from ..profiles import Profile
from ..settings import Spread, one_of
from . import racing, scorers, stats
from .drawing import Worker
from .runs import LIFT, UNTOUCHED, Method, Plan, Run, made_with, write
from .session import DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence
    from pathlib import Path

    from diffusers import DiffusionPipeline

    from ..prompts import Prompt, Suite
    from .racing import Outcome, Round, Schedule, Scores

FORM = 1  # of the folder
ASKED, PROFILE = "tune.json", "profile.json"
MARGIN = 0.02
_LEAST_RARE, _LEAST_COMMON = 16, 8  # things asked for; half of them are kept for the last test
_SEED = 0  # of the halves and of the settings; pictures have others
# What is sampled. alpha 1 and tokens="all" are no hopefuls.
_ALPHAS = (1.5, 1.2, 1.35, 2.0, 1.1, 1.75)
_OTHERS = (
    ("carry=0.1", "carry=0.3", "carry=1"),
    ("tokens=content",),
    ("blocks={first_half}", "blocks={second_half}", "blocks={first_quarter}"),
    ("start=0,stop=0.5", "start=0.5,stop=1", "start=0,stop=0.25"),
    ("branch=cond",),
)


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
        metric: "attributes" for a Menagerie suite when not given.
        methods: "lift:NAME=VALUE,..." each; none samples settings.
        call: arguments of the pipeline.

    Raises:
        ValueError: anything is not known or does not fit, or the budget is too small.
    """
    if dtype is not None:
        one_of("dtype", dtype, DTYPES)
    suite = suite or ("menagerie-rare" if model == pipelines.BUNDLED else "rare")
    ours = _menagerie(suite)
    rare = _load(suite, suite_format, _LEAST_RARE)
    common = common or ("menagerie-common" if ours else None)
    beside = None if common is None else _load(common, suite_format, _LEAST_COMMON)
    if metric is None and not ours:
        raise ValueError(f"suite {suite!r} needs a metric to tune by: --metric {', '.join(scorers.KINDS)}, ...")
    tuning = Tuning(
        rare,
        beside,
        metric or "attributes",
        budget,
        tuple(guidances) or (None,),
        tuple(map(Method.parse, methods)),
        model,
        margin,
        batch_size or (16 if model == pipelines.BUNDLED else 1),
        tuple(sorted(call.items())),
        dtype,
        suite_format,
    )
    if len(set(tuning.guidances)) < len(tuning.guidances):
        raise ValueError(f"guidances holds a value twice: {', '.join(map(str, guidances))}")
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
    tuning.schedule(len(names) or None)
    for side in filter(None, (rare, beside)):
        scorers.check(tuning.metric, side)
        for prompt in side.prompts if model == pipelines.BUNDLED else ():
            check_prompt(prompt.text)
    return tuning


def _menagerie(suite: str) -> bool:
    return suite in prompts.SUITES and suite.startswith("menagerie")


def _load(suite: str, suite_format: str | None, least: int) -> Suite:
    chosen = None if suite in prompts.SUITES else suite_format
    found = prompts.load(suite, chosen, split="tune" if _menagerie(suite) else None)
    things = len(set(map(_thing, found.prompts)))
    if things < least:
        alike = "" if things == len(found.prompts) else f", which ask for {things} different things"
        raise ValueError(
            f"suite {suite!r} has {len(found.prompts)} prompts{alike}; tuning needs {least} at least, for half of them "
            "are kept for the last test"
        )
    return found


def _thing(prompt: Prompt) -> Hashable:
    """What is asked for: of a Menagerie prompt, which is one of several phrasings, the thing; else the prompt."""
    held = tuple(prompt.meta.get(attribute) for attribute in ATTRIBUTES)
    return prompt.id if None in held else held


# ---------------------------------------------------------------- settings to race


def sampled(pipe: DiffusionPipeline, n: int, fails: Callable[[Method], str]) -> tuple[list[Method], dict[str, str]]:
    """Settings to race on a pipeline, and by name what was left out, with the reason.

    At most `n`, of twice as many that are tried, different and in the order of their distance from the defaults. The
    alphas alone come first; then alphas with others of `_OTHERS`, of each group one or, as often, none. What the
    pipeline cannot honour is passed by.

    Args:
        fails: the reason why a method fails in the call that is tuned, empty where it does not: some show only there.
    """
    handle = apply(pipe, alpha=1.0)
    blocks = 1 + max(site.index for site in handle.sites)
    handle.remove()
    half, quarter = max(blocks // 2, 1), max(blocks // 4, 1)
    parts = {
        "first_half": f"0-{half - 1}",
        "second_half": f"{blocks - half}-{blocks - 1}",
        "first_quarter": f"0-{quarter - 1}",
    }
    seen: set[Spread] = set()
    found: list[Method] = []
    left_out: dict[str, str] = {}
    for words in _draws(random.Random(_SEED)):
        if len(found) == n or len(seen) == 2 * n:
            break
        method = Method.parse(f"{LIFT}:{','.join(words).format(**parts)}")
        settings = method.settings
        if not isinstance(settings, Spread) or settings in seen or not _honoured(pipe, settings):
            continue
        seen.add(settings)
        if why := fails(method):
            left_out[method.name] = why
        else:
            found.append(method)
    return found, left_out


def _draws(rng: random.Random, tries: int = 4000) -> Iterator[list[str]]:
    """What is set, in the words of `Method.parse`."""
    yield from ([f"alpha={alpha:g}"] for alpha in _ALPHAS)
    for _ in range(tries):
        others = [rng.choice(values) for values in _OTHERS if rng.random() < 0.5]
        yield [f"alpha={rng.choice(_ALPHAS):g}", *others]


def _honoured(pipe: DiffusionPipeline, settings: Spread) -> bool:
    try:
        apply(pipe, settings=settings).remove()
    except ValueError:
        return False
    return True


# ---------------------------------------------------------------- the tuning


@dataclass(frozen=True)
class Found:
    """What a tuning came to: the profile, where it is, and how it was found."""

    path: Path
    profile: Profile
    outcome: Outcome
    pictures: int


def tune(tuning: Tuning, folder: Path) -> Found:
    """Draw what the folder lacks of a tuning, and write its profile.

    Raises:
        ValueError: the folder holds another tuning, or something else.
        pipelines.ModelError: the model does not load.
        RuntimeError: another process draws in the folder, or memory is short.
    """
    stats.require()
    drawing = _Drawing(tuning, folder)
    about = drawing.begun()
    methods = {m.name: m for m in tuning.methods or map(Method.parse, about["methods"])}
    schedule = tuning.schedule(len(methods))
    guidance = drawing.best_guidance(schedule)

    def draw(one: Round, names: Sequence[str]) -> tuple[Scores, Scores]:
        chosen = [methods.get(name) or Method(UNTOUCHED) for name in names]
        rare, common = drawing.scores(schedule, one, chosen, (guidance,))
        return {m: rare[m, guidance] for m, _ in rare}, {m: common[m, guidance] for m, _ in common}

    outcome = racing.race(list(methods), schedule, draw, margin=tuning.margin)
    settings = methods[outcome.winner].settings if outcome.winner else None
    chosen = settings.to_dict() if isinstance(settings, Spread) else {"alpha": 1.0}
    made = _made(tuning, folder, schedule, guidance, outcome, drawing.pictures)
    made |= {key: about[key] for key in ("dtype", "left_out")}
    profile = Profile(about["model"], about["config"], chosen, made)
    write(folder / PROFILE, profile.to_json())
    return Found(folder / PROFILE, profile, outcome, drawing.pictures)


_Table = dict[tuple[str, float | None], dict[racing.Key, float]]  # by method and guidance, by picture


class _Drawing:
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
        if self.folder.exists() and any(self.folder.iterdir()):
            raise ValueError(f"{self.folder} is no tuning: it has files but no {ASKED}; give a new folder")
        model, config = identity(self.model.pipe)
        wanted = self.tuning.schedule(None).settings if not self.tuning.methods else 0
        methods, left_out = self._sampled(wanted) if wanted else (list(self.tuning.methods), {})
        names = [method.name for method in methods]
        about = {"model": model, "config": config, "dtype": _dtype(self.model), "methods": names, "left_out": left_out}
        self.folder.mkdir(parents=True, exist_ok=True)
        write(path, json.dumps({"form": FORM, "asked": asked, **about}, indent=2) + "\n")
        return about

    def _sampled(self, n: int) -> tuple[list[Method], dict[str, str]]:
        """As `sampled`, each tried on one picture at each guidance; these pictures are neither kept nor counted."""

        def draw(method: Method) -> None:
            plan = self._plan(self.tuning.rare.prompts[:1], [method], self.tuning.guidances, (_SEED,))
            worker = Worker(plan, self.model, [])
            for _, guidance in plan.groups:
                worker(plan.units(method, guidance))

        def fails(method: Method) -> str:
            try:
                draw(method)
            except (ValueError, RuntimeError) as error:
                return pipelines.first_line(error)
            return ""

        draw(Method(UNTOUCHED))  # where this fails no setting is to blame
        methods, left_out = sampled(self.model.pipe, n, fails)
        if not methods:
            why = next(iter(left_out.values()), "the pipeline honours none of them")
            raise ValueError(f"none of the sampled settings can be drawn with this call: {why}")
        return methods, left_out

    def _plan(
        self,
        chosen: Sequence[Prompt],
        methods: Sequence[Method],
        guidances: tuple[float | None, ...],
        seeds: Sequence[int],
        side: str = "rare",
    ) -> Plan:
        return Plan(
            replace(getattr(self.tuning, side), prompts=tuple(chosen)),
            tuple(methods),
            guidances,
            tuple(seeds),
            self.tuning.model,
            self.tuning.batch_size,
            self.tuning.call,
            (self.tuning.metric,),
            self.tuning.dtype,
        )

    def best_guidance(self, schedule: Schedule) -> float | None:
        """Of the untouched model: the highest mean of rare and common scores; the first of equals."""
        guidances = self.tuning.guidances
        if schedule.sweep is None:
            return guidances[0]
        rare, common = self.scores(schedule, schedule.sweep, [Method(UNTOUCHED)], guidances)

        def mean(scores: _Table, guidance: float | None) -> float:
            values = [v for v in scores.get((UNTOUCHED, guidance), {}).values() if math.isfinite(v)]
            return sum(values) / len(values) if values else 0.0

        return max(guidances, key=lambda guidance: mean(rare, guidance) + mean(common, guidance))

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
        chosen, seeds = _pictures(schedule, one, side, suite)
        plan = self._plan(chosen, methods, guidances, seeds, side)
        run = Run(self.folder / f"{one.name}-{side}", plan)
        with run.open():
            if batches := list(run.missing()):
                draw = Worker(plan, self.model, [self.scorer])
                run.take((batch, draw(batch)) for batch in batches)
        self.pictures += len(run.done)
        things = {prompt.id: _thing(prompt) for prompt in chosen}
        found: _Table = {}
        for unit, line in run.done.items():
            score = math.nan if "failed" in line else next(iter(line["scores"].values()), None)
            if score is not None:
                found.setdefault((unit.method, unit.guidance), {})[things[unit.prompt], (unit.prompt, unit.seed)] = (
                    float(score)
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


def _halves(suite: Suite) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts that choose, and those of the last test, which ask for other things.

    In both, a second phrasing of a thing comes when each thing has had its first.
    """
    things: dict[Hashable, list[Prompt]] = {}
    for prompt in suite.prompts:
        things.setdefault(_thing(prompt), []).append(prompt)
    shuffled = list(things.values())
    random.Random(f"{suite.digest}/{_SEED}").shuffle(shuffled)
    search, confirm = (
        [prompt for turn in itertools.zip_longest(*half) for prompt in turn if prompt is not None]
        for half in (shuffled[: len(shuffled) // 2], shuffled[len(shuffled) // 2 :])
    )
    return search, confirm


def _pictures(schedule: Schedule, one: Round, side: str, suite: Suite) -> tuple[list[Prompt], range]:
    """The prompts and seeds of a round. Each round has its own seeds, so no picture is drawn, or counted, twice.

    It takes the next prompts in turn, with so many seeds that they are enough for its pictures: of n pictures at most
    seeds - 1 are left over. A seed is the same noise for all prompts, so the last test has two at least, where that
    leaves it `racing.FEWEST_CONFIRMED` prompts.
    """
    search, confirm = _halves(suite)
    passed = seed = 0
    for other in filter(None, (schedule.sweep, *schedule.race, schedule.confirm)):
        n, last = getattr(other, side), other is schedule.confirm
        half, first = (confirm, 0) if last else (search, passed)
        seeds = max(-(-n // len(half)), 2 if last and n >= 2 * racing.FEWEST_CONFIRMED else 1)
        count = n // seeds
        if other is one:
            return [half[(first + i) % len(half)] for i in range(count)], range(seed, seed + seeds)
        passed, seed = passed + count, seed + seeds
    raise ValueError(f"{one.name!r} is no round of this schedule")


# ---------------------------------------------------------------- what is said of it


def _made(
    tuning: Tuning, folder: Path, schedule: Schedule, guidance: float | None, outcome: Outcome, pictures: int
) -> dict[str, Any]:
    verdict = outcome.verdict

    def drawn(one: Round) -> dict[str, Any]:
        """Of each method, untouched included."""
        found: dict[str, Any] = {}
        for side, suite in (("rare", tuning.rare), ("common", tuning.common)):
            chosen, seeds = _pictures(schedule, one, side, suite) if suite else ((), ())
            found[side] = {"prompts": len(chosen), "seeds": list(seeds)}
        return found

    return {
        "command": command(tuning, folder),
        "source": tuning.model,
        "asked": tuning.to_dict(),
        "guidance_scale": guidance,
        "pictures": pictures,
        "race": [
            {
                "round": one.name,
                "drawn": drawn(one),
                "settings": [dataclasses.asdict(s) for s in found],
            }
            for one, found in outcome.standings
        ],
        "confirm": verdict and {"drawn": drawn(schedule.confirm), **{k: _list(v) for k, v in vars(verdict).items()}},
        "seed": _SEED,
        "with": made_with(),
    }


def _list(value: Any) -> Any:
    """An estimate as [value, low, high]."""
    return list(dataclasses.astuple(value)) if isinstance(value, stats.Estimate) else value


def command(tuning: Tuning, folder: Path) -> str:
    """The command that tunes again; PATH-OF-NAME stands for a file of the user's."""
    words = ["rarelift", "tune", folder.name, "--model", tuning.model, "--budget", str(tuning.budget)]
    for option, suite in (("--suite", tuning.rare), ("--common", tuning.common)):
        if suite is not None:
            ours = suite.name in prompts.SUITES and _load(suite.name, None, 1).digest == suite.digest
            words += [option, suite.name if ours else f"PATH-OF-{suite.name}"]
    words += ["--format", tuning.suite_format] if tuning.suite_format else []
    words += ["--metric", tuning.metric, "--margin", f"{tuning.margin:g}"]
    for guidance in tuning.guidances:
        words += ["--guidance", f"{guidance!r}"] if guidance is not None else []
    for method in tuning.methods:
        words += ["--method", method.name]
    words += ["--batch-size", str(tuning.batch_size)]
    words += ["--dtype", tuning.dtype] if tuning.dtype else []
    words += ["--steps", str(steps)] if (steps := dict(tuning.call).get("num_inference_steps")) else []
    return shlex.join(words)


def told(found: Found) -> str:
    """What came of a tuning, as text."""
    made, outcome = found.profile.made, found.outcome
    guidance = "the model's own" if made["guidance_scale"] is None else f"{made['guidance_scale']:g}"
    lines = [f"{found.pictures} pictures, guidance_scale {guidance}"]
    lines += [f"Left out, since it fails here: {name}: {why}" for name, why in made["left_out"].items()]
    for one, standings in outcome.standings:
        best = standings[0]
        common = "" if best.common is None else f", common {best.common:+.3f}"
        lines.append(f"{one.name}: {len(standings)} settings; best so far {best.method}: rare {best.rare:+.3f}{common}")
    verdict = outcome.verdict
    if verdict is None:
        lines.append("No setting did better than the untouched model, so none was tested further.")
    else:
        lines += [
            f"Tested on {verdict.pictures} pictures of {verdict.things} things that had no part in the choice: "
            f"{verdict.method}",
            f"rare: untouched {verdict.untouched:.3f}, lifted {verdict.lifted:.3f}, difference "
            f"{verdict.difference:+.3f}, p {verdict.p:.3f}",
            f"A repeat of this size would be likely to find a true difference of {verdict.detectable:.3f}."
            if not math.isclose(verdict.detectable, 0.0, abs_tol=1e-9)
            else "The difference is the same for every thing, so its scatter cannot be told."
            if verdict.difference.value
            else "No score differs between the two.",
            _told_of_common(verdict.common, given=made["asked"]["common"] is not None),
        ]
    if outcome.winner:
        lines += [f"The profile holds {outcome.winner}.", _told_of_guidance(made["guidance_scale"], found.path)]
    else:
        why = f" ({verdict.why})" if verdict else ""
        lines.append(f"Nothing beats the untouched model here{why}: the profile says alpha 1, which changes nothing.")
    return "\n".join(lines) + "\n"


def _told_of_guidance(guidance: float | None, path: Path) -> str:
    if guidance is None:
        return "It was tested at the model's own guidance_scale, and says nothing of another one."
    return (
        f"It was tested at guidance_scale {guidance:g}, which a profile does not set, and says nothing of another one: "
        f"pass it too, as in rarelift generate ... --profile {path} --guidance {guidance:g}"
    )


def _told_of_common(common: stats.Estimate | None, *, given: bool) -> str:
    if common is None:
        return "common: too few scores to compare" if given else "common: not guarded, for no common prompts were given"
    ruled_out = f"; a loss of {-common.low:.3f} is not ruled out" if common.low < 0 else ""
    return f"common: difference {common:+.3f}{ruled_out}"
