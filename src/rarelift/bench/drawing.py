"""The part of a run that may be in another process: units in, pictures and their scores out, nothing written."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import pipelines
from ..attach import apply, identity
from ..rivals.base import Asked, Rival

if TYPE_CHECKING:
    from collections.abc import Iterator

    from diffusers import DiffusionPipeline
    from PIL import Image

    from ..prompts import Prompt
    from ..settings import Spread
    from .runs import Plan, Unit

Scorer = Callable[["Sequence[Image.Image]", "Sequence[Prompt]"], "Sequence[Mapping[str, float | str]]"]
"""Pictures and their prompts in, for each picture numbers by name out, or what was said, as text."""


@dataclass(frozen=True)
class Made:
    """A picture, None where it came out as NaN.

    `answers` is what a judge said in words. `seconds` is this picture's share of its batch, scoring left out. `call`
    holds the arguments of the pipeline. `notes` is what the user should hear, once a batch.
    """

    image: Image.Image | None
    scores: dict[str, float]
    answers: dict[str, str]
    seconds: float
    call: dict[str, Any]
    notes: tuple[str, ...] = ()


class Worker:
    """Draws and scores batches of a plan. The same batch gives the same pictures, whatever was drawn before it."""

    def __init__(self, plan: Plan, model: pipelines.Model, scorers: Sequence[Scorer]) -> None:
        self.plan, self.model, self.scorers = plan, model, scorers
        self._prompts = {prompt.id: prompt for prompt in plan.suite.prompts}
        self._settings = {method.name: method.settings for method in plan.methods}
        for settings in self._settings.values():
            if isinstance(settings, Rival):
                settings.prepare(model.pipe)
        for method in plan.methods:
            if method.profile is not None:
                method.profile.check(method.name, *identity(model.pipe))

    def __call__(self, units: Sequence[Unit]) -> list[Made]:
        """Pictures of units that have one method and guidance.

        Raises:
            RuntimeError: memory is short even for one picture.
        """
        prompts = [self._prompts[unit.prompt] for unit in units]
        settings, guidance = self._settings[units[0].method], units[0].guidance
        call = {**self.model.defaults, **dict(self.plan.call)}
        if guidance is not None:
            call["guidance_scale"] = guidance
        notes: list[str] = []
        started = time.perf_counter()
        images = self._drawn(settings, prompts, [unit.seed for unit in units], call, notes)
        seconds = (time.perf_counter() - started) / len(units)
        whole = [(image, prompt) for image, prompt in zip(images, prompts, strict=True) if image is not None]
        found: list[dict[str, float | str]] = [{} for _ in whole]
        for scorer in self.scorers if whole else ():
            more = scorer([image for image, _ in whole], [prompt for _, prompt in whole])
            found = [{**have, **new} for have, new in zip(found, more, strict=True)]
        rows = iter(found)
        made: list[Made] = []
        for image in images:
            row = {} if image is None else next(rows)
            scores = {name: value for name, value in row.items() if not isinstance(value, str)}
            answers = {name: value for name, value in row.items() if isinstance(value, str)}
            made.append(Made(image, scores, answers, seconds, call, () if made else tuple(notes)))
        return made

    def _drawn(
        self,
        settings: Spread | Rival | None,
        prompts: Sequence[Prompt],
        seeds: list[int],
        call: dict[str, Any],
        notes: list[str],
    ) -> list[Image.Image | None]:
        """The pictures, None where one came out as NaN. Where memory is short, in halves."""
        try:
            with attached(settings, self.model.pipe, prompts, call) as asked:
                return [*pipelines.text_to_image(self.model, asked.texts, seeds, batch_size=len(seeds), **asked.call)]
        except FloatingPointError:
            if len(prompts) == 1:
                return [None]
        except (RuntimeError, MemoryError) as error:
            if not _memory_is_short(error):
                raise
            if len(prompts) == 1:
                said = pipelines.first_line(error)
                raise RuntimeError(f"memory is short for one picture at a time: {said}") from error
            notes.append(f"memory is short for {len(prompts)} pictures at once; drawing {(len(prompts) + 1) // 2}")
        _free_memory()  # here, where the error no longer holds what was computed
        half = (len(prompts) + 1) // 2
        parts = slice(half), slice(half, None)
        return [image for part in parts for image in self._drawn(settings, prompts[part], seeds[part], call, notes)]


@contextmanager
def attached(
    settings: Spread | Rival | None, pipe: DiffusionPipeline, prompts: Sequence[Prompt], call: dict[str, Any]
) -> Iterator[Asked]:
    """Put a method on a pipeline for one call of it."""
    if isinstance(settings, Rival):
        with settings.on(pipe, prompts, call) as asked:
            yield asked
        return
    asked = Asked([prompt.text for prompt in prompts], call)
    if settings is None:
        yield asked
        return
    with apply(pipe, settings=settings):
        yield asked


def _memory_is_short(error: BaseException) -> bool:
    said = str(error).lower()
    known = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(words in said for words in known)


def _free_memory() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
