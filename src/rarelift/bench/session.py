"""`rarelift bench` from start to end: everything that can be wrong is found before the first picture is drawn."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .. import pipelines, prompts, rivals
from ..menagerie.world import check_prompt
from ..settings import one_of
from . import scale, scorers, stats
from .drawing import Worker
from .runs import LIFT, UNTOUCHED, Method, Plan, Run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


DTYPES = ("float32", "bfloat16", "float16")


def planned(
    suite: str,
    *,
    suite_format: str | None = None,
    split: str | None = None,
    first: int | None = None,
    methods: Sequence[str] = ("untouched", "lift"),
    guidances: Sequence[float] = (),
    seeds: int = 1,
    model: str = pipelines.BUNDLED,
    batch_size: int | None = None,
    metrics: Sequence[str] = (),
    dtype: str | None = None,
    **call: Any,
) -> Plan:
    """The plan that these words mean.

    Args:
        suite: a built-in suite, or the path of a file or folder of prompts; `suite_format` says of what kind.
        split: "report" or "tune", for the suites of Menagerie.
        first: only so many prompts of the suite.
        methods: see `Method.parse`.
        guidances: values of guidance_scale; none leaves it to the model.
        seeds: pictures of each prompt, with seeds counting from 0.
        batch_size: 16 for the bundled model and 1 for others, whose pictures fill the memory, when not given.
        metrics: as `scorers.parse` reads them; when not given, `scorers.DEFAULT` for Menagerie suites, else none.
        dtype: one of `DTYPES`; None leaves it to `pipelines.load`.
        call: arguments of the pipeline.

    Raises:
        ValueError: anything is not known or does not fit; the bundled model does not know a word of a prompt.
    """
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    if dtype is not None:
        one_of("dtype", dtype, DTYPES)
    loaded = prompts.load(suite, suite_format, first, split)
    if model == pipelines.BUNDLED:
        for prompt in loaded.prompts:
            check_prompt(prompt.text)
    drawn = suite in prompts.SUITES and suite.startswith("menagerie")
    plan = Plan(
        loaded,
        tuple(map(Method.parse, methods)),
        tuple(guidances) or (None,),
        tuple(range(seeds)),
        model,
        batch_size or (16 if model == pipelines.BUNDLED else 1),
        tuple(sorted(call.items())),
        tuple(metrics) or (scorers.DEFAULT if drawn else ()),
        dtype,
    )
    for metric in plan.metrics:
        scorers.check(metric, plan.suite)
    return plan


def listed() -> str:
    """What a bench can be asked for, as text."""
    suites = [
        (name, f"version {s.version}, {len(s.prompts)} prompts, {s.licence}")
        for name in prompts.SUITES
        for s in [prompts.load(name)]
    ]
    formats = [(name, form.looks) for name, form in prompts.FORMATS.items()]
    methods = [
        (UNTOUCHED, "the pipeline as it is"),
        (f"{LIFT}:NAME=VALUE,...", "any settings of rarelift.apply"),
        *((f"{name}:NAME=VALUE,...", rivals.kind(name).summary) for name in rivals.RIVALS),
    ]
    metrics = [(f"{name}{f'={kind.takes}' if kind.takes else ''}", kind.gives) for name, kind in scorers.KINDS.items()]
    parts = (
        ("suites", suites),
        ("prompts of your own (--suite PATH, --format)", formats),
        ("methods", methods),
        ("metrics", metrics),
    )
    return "\n\n".join("\n".join([title, *(f"  {n:22} {about}" for n, about in rows)]) for title, rows in parts)


def worker(plan: Plan) -> Worker:
    """What draws and scores the batches of a plan, with the model and the scorers loaded."""
    dtype = None if plan.dtype is None else getattr(import_module("torch"), plan.dtype)
    model = pipelines.load(plan.model, dtype=dtype)
    return Worker(plan, model, [scorers.make(name, plan.suite) for name in plan.metrics])


def bench(
    plan: Plan,
    folder: Path,
    *,
    limit: int | None = None,
    workers: int | None = None,
    address: str | None = None,
) -> tuple[int, int]:
    """Draw and score what the folder lacks of the plan, and return how many pictures were made and how many it holds.

    Args:
        limit: stop after about so many pictures, for a try; whole batches are drawn.
        workers: so many processes, on a Ray of this machine, or of the cluster at `address`; None draws here.

    Raises:
        as `Run.open`, `Worker`, `pipelines.load` and `scale.workers`.
    """
    stats.require()
    if address is not None and workers is None:
        raise ValueError(f"address {address!r} is for workers; say how many")
    run = Run(folder, plan)
    with run.open():
        batches = list(run.missing(limit))
        if not batches:
            made = 0
        elif workers is None:
            draw = worker(plan)
            made = run.take((batch, draw(batch)) for batch in batches)
        else:
            with scale.workers(partial(worker, plan), workers, address) as draw_all:
                made = run.take(draw_all(batches))
    return made, len(run.done)
