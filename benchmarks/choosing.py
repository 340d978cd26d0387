"""Is choosing among five alphas for each prompt worth more than one alpha for all, or than five seeds?

    python benchmarks/choosing.py           draw what benchmarks/results/choosing.jsonl lacks, and write docs/beyond.md
    python benchmarks/choosing.py --table   docs/beyond.md from that file, nothing is drawn

Five candidates for each reporting prompt at guidance 3: one seed at five alphas, or five seeds untouched. Each is
scored by CLIP-T with the bundled CLIP: the finished picture, and the picture that the model predicts after 6 of the 16
steps, by which four of the five can be dropped early. A second model that sees the pictures is an upper bound for a
method that must do without one. A stopped run goes on where it was. Prompts are drawn in batches of 32: a table of the
first N (`--prompts N --table`) needs N to be a multiple of that, or what was drawn.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import rarelift
from measure import (
    NOT_RUN,
    RESULTS,
    Artist,
    Cell,
    Drawing,
    clusters,
    fingerprint,
    made_with,
    pack,
    pictures_of,
    records,
    table,
    unpack,
    write_section,
)
from rarelift import pipelines
from rarelift.bench import stats
from rarelift.menagerie import CLIP
from rarelift.menagerie.suite import MenageriePrompt, Suite
from rarelift.metrics.clip_t import ClipT
from studio import Studio

FILE = RESULTS / "choosing.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "beyond.md"
GUIDANCE, STEPS = 3.0, 16
AFTER = 6  # steps that the preview takes
SUITES: tuple[Suite, ...] = ("rare", "common")
SCORES = ("preview", "finished")


@dataclass(frozen=True)
class Candidate:
    """One way of drawing a prompt: the alpha, 1 being untouched, and which of the prompt's seeds."""

    alpha: float = 1.0
    seed: int = 0


ALPHAS = tuple(Candidate(alpha=alpha) for alpha in (1.0, 1.25, 1.5, 2.0, 3.0))
SEEDS = tuple(Candidate(seed=seed) for seed in range(len(ALPHAS)))
WAYS = {"alphas": ALPHAS, "seeds": SEEDS}
"""The first of each is the same picture, and what is chosen is held against it."""


@dataclass(frozen=True)
class Part:
    """The prompts `start` to `stop` of a suite, each drawn by one candidate, in one batch."""

    suite: Suite
    start: int
    stop: int
    candidate: Candidate = field(default_factory=Candidate)
    guidance: float = GUIDANCE
    steps: int = STEPS
    after: int = AFTER

    @property
    def key(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def pictures(self) -> tuple[list[MenageriePrompt], list[int]]:
        """Prompts and seeds, as every benchmark has them."""
        cell = Cell(self.suite, "report", self.stop, len(SEEDS), self.guidance, self.steps)
        own = slice(len(SEEDS) * self.start + self.candidate.seed, None, len(SEEDS))
        chosen, seeds = pictures_of(cell)
        return chosen[own], seeds[own]


@dataclass(frozen=True)
class Seen:
    """What is known of N pictures: the judge's verdicts `[N, 5]`, and by the name of each score its numbers `[N]`."""

    right: np.ndarray
    scores: dict[str, np.ndarray]


# ---------------------------------------------------------------- drawing


@contextmanager
def previewed(scheduler: Any, after: int) -> Iterator[list[Tensor]]:
    """Keep what the model predicts in step number `after` (1 is the first), as latents, for each call of the pipeline.

    A rectified flow goes in a straight line from noise to picture, so a step that begins at `sample` and has the
    velocity v would end at sample - sigma v, were v right (Liu et al. 2022, arXiv 2209.03003).
    """
    kept: list[Tensor] = []
    step = scheduler.step

    def watched(velocity: Tensor, timestep: Tensor, sample: Tensor, **keywords: Any) -> Any:
        found = step(velocity, timestep, sample, **keywords)
        if scheduler.step_index == after:  # the scheduler has counted this step
            kept.append((sample.float() - scheduler.sigmas[after - 1] * velocity).to(velocity.dtype))
        return found

    scheduler.step = watched
    try:
        yield kept
    finally:
        del scheduler.step  # the method of its class is there again


class Drawer:
    """Draws candidates, judges and scores them."""

    def __init__(self, drawing: Drawing) -> None:
        self.drawing = drawing
        self.artist = Artist(drawing)

    @cached_property
    def clip(self) -> ClipT:
        return ClipT(CLIP)

    @torch.no_grad()
    def pictures(self, part: Part) -> dict[str, list[Any]]:
        """The pictures of a part by the name of what is scored.

        Raises:
            ValueError: the preview is asked for after a step that there is not.
        """
        if not 1 <= part.after <= part.steps:
            raise ValueError(f"a preview is taken after 1 to {part.steps} steps; got {part.after}")
        model, (prompts, seeds) = self.artist.untouched, part.pictures
        alpha = part.candidate.alpha
        lifted = rarelift.apply(model.pipe, alpha=alpha) if alpha != 1 else nullcontext()
        with lifted, previewed(model.pipe.scheduler, part.after) as predicted:
            finished = pipelines.text_to_image(
                model,
                [p.text for p in prompts],
                seeds,
                batch_size=len(prompts),
                guidance_scale=part.guidance,
                num_inference_steps=part.steps,
            )
        return {"preview": Studio(model).decode(predicted[0]), "finished": finished}

    def __call__(self, part: Part) -> Seen:
        prompts, images = part.pictures[0], self.pictures(part)
        scores = {name: np.array(self.clip(images[name], [p.text for p in prompts])) for name in SCORES}
        return Seen(self.artist.judge.right(images["finished"], [p.thing for p in prompts]), scores)


class Choosing:
    """Draws parts, and keeps what was seen of each in `file`: a line for each, written as it is done."""

    def __init__(self, file: Path, drawing: Drawing | None = None) -> None:
        self.file = file
        self.drawing = drawing or Drawing()
        self.weights = fingerprint(self.drawing.model)
        self.done = {
            record["key"]: Seen(unpack(record["right"]), {name: np.array(record[name]) for name in SCORES})
            for record in records(file, self.weights)
        }

    @cached_property
    def draw(self) -> Drawer:
        return Drawer(self.drawing)

    def parts(self, suite: Suite, n: int, candidate: Candidate) -> list[Part]:
        """The first `n` prompts of a suite, in batches that fill the transformer's rows with guidance."""
        size = self.drawing.rows // 2
        return [Part(suite, i, min(i + size, n), candidate) for i in range(0, n, size)]

    def run(self, n: int) -> None:
        """Draw what the file lacks of the first `n` prompts of each suite, all candidates of a batch in turn."""
        candidates = dict.fromkeys(c for way in WAYS.values() for c in way)
        wanted = [part for suite in SUITES for c in candidates for part in self.parts(suite, n, c)]
        todo = sorted((part for part in wanted if part.key not in self.done), key=lambda part: part.start)
        pictures = sum(part.stop - part.start for part in todo)
        made = made_with(self.drawing)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with tqdm(total=pictures, unit="picture", desc=self.file.stem, smoothing=0.05) as bar:
            for part in todo:
                started = time.monotonic()
                seen = self.draw(part)
                record = {
                    "key": part.key,
                    "right": pack(seen.right),
                    **{name: seen.scores[name].round(6).tolist() for name in SCORES},
                    "weights": self.weights,
                    "seconds": round(time.monotonic() - started, 2),
                    "made": made,
                }
                with self.file.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                self.done[part.key] = seen
                bar.update(part.stop - part.start)

    def five(self, way: str, suite: Suite, n: int) -> Five | None:
        """The candidates of a way; None where some of their parts were not drawn."""
        parts = [self.parts(suite, n, candidate) for candidate in WAYS[way]]
        if any(part.key not in self.done for row in parts for part in row):
            return None
        rows = [[self.done[part.key] for part in row] for row in parts]
        return Five(
            np.stack([np.concatenate([seen.right.all(1) for seen in row]) for row in rows]).astype(float),
            {name: np.stack([np.concatenate([seen.scores[name] for seen in row]) for row in rows]) for name in SCORES},
            clusters(Cell(suite, "report", n, 1, GUIDANCE, STEPS)),
        )


# ---------------------------------------------------------------- tables


@dataclass(frozen=True)
class Five:
    """Five candidates of N prompts: success `[5, N]`, scores of the same shape, what the prompts are clustered by."""

    success: np.ndarray
    scores: dict[str, np.ndarray]
    things: Sequence[str]

    def picks(self, score: str) -> np.ndarray:
        """Which candidate of each prompt scores highest, the earlier one of equals, `[N]`."""
        return np.asarray(self.scores[score].argmax(0))

    def chosen(self, by: str) -> np.ndarray:
        """Success of the candidate that a score picks, or that the judge would, `[N]`."""
        if by == "judge":
            return np.asarray(self.success.max(0))
        return np.asarray(self.success[self.picks(by), np.arange(self.success.shape[1])])

    def auc(self, score: str) -> str:
        """How often the right one of two candidates of one prompt scores higher, a tie being half."""
        wins, things = [], []
        for success, scores, thing in zip(self.success.T, self.scores[score].T, self.things, strict=True):
            right, wrong = scores[success == 1][:, None], scores[success == 0][None]
            pairs = (np.sign(right - wrong) / 2 + 0.5).ravel()
            wins += pairs.tolist()
            things += [thing] * len(pairs)
        if len(set(things)) < 2:
            return "too few pairs"
        return f"{stats.mean(wins, things):.2f}"

    def against(self, before: np.ndarray, by: str) -> str:
        return f"{stats.difference(self.chosen(by), before, self.things):+.3f}"


CHOOSERS = {"preview": "by preview", "finished": "by finished", "judge": "any of five"}


def ways(choosing: Choosing, n: int) -> Iterator[list[str]]:
    """Rows: how often the first, the chosen and any of five is right, what scores tell, which alphas they choose."""
    for way, candidates in WAYS.items():
        for suite in SUITES:
            row = [way, suite]
            found = choosing.five(way, suite, n)
            if found is None:
                yield [*row, NOT_RUN, *[""] * (2 * len(CHOOSERS) + 2 * len(SCORES))]
                continue
            row.append(f"{found.success[0].mean():.3f}")
            for by in CHOOSERS:
                row += [f"{found.chosen(by).mean():.3f}", found.against(found.success[0], by)]
            row += [found.auc(score) for score in SCORES]
            alphas = np.array([candidate.alpha for candidate in candidates])
            row += [f"{alphas[found.picks(score)].mean():.2f}" if way == "alphas" else "" for score in SCORES]
            yield row


def rivals(choosing: Choosing, n: int) -> Iterator[list[str]]:
    """Rows: what the chosen alpha has more than the chosen seed, and than each fixed alpha."""
    for suite in SUITES:
        alphas, seeds = (choosing.five(way, suite, n) for way in WAYS)
        if alphas is None or seeds is None:
            yield [suite, NOT_RUN, *[""] * len(ALPHAS)]
            continue
        yield [suite, "success of one alpha", "", *(f"{success.mean():.3f}" for success in alphas.success[1:])]
        for by, name in CHOOSERS.items():
            beside = [seeds.chosen(by), *alphas.success[1:]]
            yield [suite, name, *(alphas.against(before, by) for before in beside)]


def written(choosing: Choosing, n: int) -> str:
    """The section of docs/beyond.md."""
    chosen = [word for name in CHOOSERS.values() for word in (name, "difference")]
    told = [f"{what}, {score}" for what in ("AUC", "mean alpha") for score in SCORES]
    beside = ["chosen of five seeds", *(f"alpha {candidate.alpha:g}" for candidate in ALPHAS[1:])]
    return "\n\n".join(
        [
            f"The first {n} reporting prompts of each suite:",
            table(["five", "suite", "the first", *chosen, *told], ways(choosing, n)),
            "Five alphas, chosen, against:",
            table(["suite", "chosen", *beside], rivals(choosing, n)),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=256, help="prompts of each suite (default: 256)")
    parser.add_argument("--table", action="store_true", help="draw nothing")
    args = parser.parse_args(arguments)
    if args.prompts < 2:
        parser.error(f"an interval needs at least 2 prompts; got --prompts {args.prompts}")
    choosing = Choosing(FILE)
    if not args.table:
        choosing.run(args.prompts)
    write_section(PAGE, "choosing", written(choosing, args.prompts))
    print(PAGE)


if __name__ == "__main__":
    main()
