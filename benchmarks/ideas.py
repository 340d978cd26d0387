"""Stronger ideas than the plain spread, each tried on the bundled model: does any lift rare prompts without harm?

    python benchmarks/ideas.py tune       every setting below, 128 rare and 128 common tuning prompts
    python benchmarks/ideas.py sweep      the best setting of each idea at other guidance, on the same prompts
    python benchmarks/ideas.py report     what the tuning chose, 512 + 512 reporting prompts x 2 seeds
    python benchmarks/ideas.py table      docs/beyond.md from benchmarks/results/ideas.jsonl, nothing is drawn

An idea is a function from a prompt and a picture under way to a prediction. It is drawn by a loop of its own, which
without an idea gives the pipeline's pictures (tests/test_ideas.py), from the same noise for all. Runs are resumable.

`word` below is the animal of the prompt: the word that rare prompts of the Menagerie get wrong, told by the world, so
what an idea gains here is the most that it could gain with a perfect way of finding that word.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

import directions
import ideas_blocks
import ideas_text
from measure import NOT_RUN, RESULTS, Artist, Bench, Cell, Drawing, clusters, lift, pictures_of, table, write_section
from rarelift.bench import stats
from rarelift.menagerie.suite import Suite
from rarelift.menagerie.world import ATTRIBUTES
from studio import STEPS, Batch, Predict, Studio, untouched

PAGE = Path(__file__).parents[1] / "docs" / "beyond.md"
GUIDANCE = 3.0
FURTHER = (5.0, 1.0)  # guidance, for the best setting of each idea
SUITES: tuple[Suite, ...] = ("rare", "common")

IDEAS: dict[str, Callable[..., Predict]] = {
    idea.__name__: idea for idea in (*ideas_text.IDEAS, *ideas_blocks.IDEAS, directions.directed)
}

SEARCH: tuple[tuple[str, dict[str, Any]], ...] = (
    ("contrast", {"against": "15", "k": 0.25}),
    ("contrast", {"against": "15", "k": 0.5}),
    ("contrast", {"against": "15", "k": 1.0}),
    ("contrast", {"against": "15", "k": 0.5, "stop": 0.4}),
    ("contrast", {"against": "15", "k": 0.5, "start": 0.4}),
    ("contrast", {"against": "15", "k": 1.0, "pooled": 0.0, "only": "word"}),
    ("contrast", {"against": "15", "k": 0.5, "only": "word"}),
    ("contrast", {"against": "1", "k": 0.5}),
    ("contrast", {"against": "neutral", "k": 0.3}),
    ("contrast", {"against": "without", "k": 0.3, "pooled": 1.0, "only": "word"}),
    ("weak", {"against": "without"}),
    ("weak", {"against": "without", "mix": 0.5}),
    ("weak", {"against": "15", "mix": 0.5}),
    ("weak_each", {"mix": 0.5}),
    ("compressed", {"alpha": 0.5}),
    ("compressed", {"alpha": 0.5, "mix": 0.5}),
    ("third", {"against": "without", "r": 1.0}),
    ("third", {"against": "15", "r": 1.0}),
    ("third", {"against": "15", "r": 2.0, "stop": 0.3}),
    ("every", {"r": 2.0}),
    ("pooled", {"k": 0.2}),
    ("pooled", {"k": 0.5}),
    ("encoder_spread", {"alpha": 1.2}),
    ("encoder_spread", {"alpha": 1.0, "null": 1.5}),
    ("encoder_spread", {"alpha": 1.0, "null": 0.5}),
    ("schedule", {"early": 8.0, "stop": 0.2}),
    ("schedule", {"early": 5.0, "stop": 0.4}),
    ("schedule", {"early": 1.0, "stop": 0.2}),
    ("paraphrased", {"how": "turns"}),
    ("paraphrased", {"how": "mean"}),
    ("paraphrased", {"how": "pooled"}),
    ("paraphrased", {"how": "turns", "alpha": 1.2}),
    ("paraphrased", {"how": "turns", "early": 8.0}),
    ("paraphrased", {"how": "turns", "early": 8.0, "against": "15", "k": 0.5, "only": "word"}),
    ("paraphrased", {"how": "turns", "early": 8.0, "against": "15", "k": 0.35, "only": "word"}),
    ("paraphrased", {"how": "turns", "early": 8.0, "against": "15", "k": 0.25}),
    ("paraphrased", {"how": "turns", "early": 8.0, "against": "neutral", "k": 0.3}),
    ("paraphrased", {"how": "turns", "early": 8.0, "against": "neutral", "k": 0.5, "only": "word"}),
    ("paraphrased", {"how": "turns", "against": "15", "k": 0.5, "only": "word"}),
    ("paraphrased", {"how": "turns", "early": 8.0, "k": 0.5}),
    ("paraphrased", {"how": "turns", "early": 8.0, "k": 0.5, "pooled": 2.0}),
    ("paraphrased", {"how": "turns", "early": 8.0, "k": 1.0}),
    ("paraphrased", {"how": "turns", "early": 8.0, "against": "neutral", "k": 0.7, "only": "word"}),
    ("attended", {"beta": 2.0}),
    ("attended", {"beta": 4.0}),
    ("attended", {"beta": 1.5, "tokens": "content"}),
    ("undrifted", {"k": 0.2, "first": 4}),
    ("undrifted", {"k": 0.5, "first": 4}),
    ("undrifted", {"k": 0.2, "first": 4, "tokens": "content"}),
    ("ramp", {"over": "blocks", "first": 1.5, "last": 1.5}),
    ("ramp", {"over": "blocks", "first": 2.0, "last": 1.0}),
    ("ramp", {"over": "blocks", "first": 1.0, "last": 2.0}),
    ("ramp", {"over": "steps", "first": 2.0, "last": 1.0}),
    ("ramp", {"over": "steps", "first": 1.0, "last": 2.0}),
    ("auto", {"rule": "first"}),
    ("auto", {"rule": "common"}),
    ("auto", {"rule": "entropy"}),
    ("auto", {"rule": "change", "to": 0.02}),
    ("auto", {"rule": "change", "to": 0.05}),
    ("words", {"of": "found", "alpha": 2.0}),
    ("words", {"of": "found", "alpha": 2.0, "n": 2}),
    ("words", {"of": "found", "alpha": 3.0, "n": 2}),
    ("words", {"of": "rare", "alpha": 2.0}),
    ("words", {"of": "animal", "alpha": 2.0}),
    ("words", {"of": "animal", "alpha": 3.0}),
    ("words", {"of": "content", "alpha": 2.0}),
    ("directed", {"space": "principal", "alpha": 1.5, "rank": 1}),
    ("directed", {"space": "principal", "alpha": 1.5, "rank": 3}),
    ("directed", {"space": "principal", "alpha": 2.0, "rank": 3}),
    ("directed", {"space": "residual", "alpha": 1.5, "rank": 3}),
    ("directed", {"space": "residual", "alpha": 2.0, "rank": 3}),
    ("directed", {"space": "whiten", "alpha": 1.0, "amount": 0.25}),
    ("directed", {"space": "whiten", "alpha": 1.0, "amount": 0.5}),
    ("directed", {"space": "whiten", "alpha": 1.5, "amount": 0.25}),
    ("directed", {"space": "align", "alpha": 1.0, "amount": 0.25}),
    ("directed", {"space": "align", "alpha": 1.0, "amount": 0.5}),
    ("directed", {"space": "align", "alpha": 1.5, "amount": 0.25}),
    ("directed", {"space": "align", "alpha": 1.0, "amount": 0.25, "toward": "content"}),
)
"""What is tried, on the tuning prompts alone."""


# ---------------------------------------------------------------- drawing and tables


class Drawer(Bench):
    """Draws cells whose `lift` holds an idea and its settings."""

    @cached_property
    def draw(self) -> Callable[[Cell], np.ndarray]:
        artist = Artist(self.drawing)
        studio = Studio(artist.untouched)

        @torch.no_grad()
        def drawn(cell: Cell) -> np.ndarray:
            chosen, seeds = pictures_of(cell)
            settings = cell.lift_keywords
            idea = IDEAS[settings.pop("idea")] if settings else untouched
            images = []
            for i in range(0, len(chosen), self.drawing.rows // 2):
                part = slice(i, i + self.drawing.rows // 2)
                batch = Batch(studio, chosen[part], cell.guidance)
                images += studio.decode(studio.denoise(studio.noise(seeds[part]), idea(batch, **settings), cell.steps))
            return artist.judge.right(images, [p.thing for p in chosen])

        return drawn


def tuning(suite: Suite, idea: tuple[tuple[str, Any], ...] | None, guidance: float = GUIDANCE) -> Cell:
    return Cell(suite, "tune", 128, 1, guidance, STEPS, idea)


def reporting(suite: Suite, idea: tuple[tuple[str, Any], ...] | None, guidance: float = GUIDANCE) -> Cell:
    return Cell(suite, "report", 512, 2, guidance, STEPS, idea)


SETTINGS = [None, *(lift(idea=name, **settings) for name, settings in SEARCH)]


def spelled(idea: tuple[tuple[str, Any], ...] | None) -> str:
    if idea is None:
        return "untouched"
    settings = dict(idea)
    name = settings.pop("idea")
    return f"{name}({', '.join(f'{k}={v}' for k, v in settings.items())})"


def rows(bench: Bench, cells: Callable[..., Cell], ideas: Sequence[Any]) -> Iterator[list[str]]:
    for idea in ideas:
        row = [f"`{spelled(idea)}`"]
        for suite in SUITES:
            cell = cells(suite, idea)
            if cell.key not in bench.done or cell.untouched().key not in bench.done:
                row += [NOT_RUN, "", *([""] * len(ATTRIBUTES) if suite == "rare" else [])]
                continue
            right, before = bench.right(cell), bench.right(cell.untouched())
            whole, base = (np.asarray(r.all(1), float) for r in (right, before))
            found = stats.difference(whole, base, clusters(cell))
            row += [f"{whole.mean():.3f}", "" if idea is None else f"{found:+.3f}"]
            if suite == "rare":
                row += [f"{right[:, i].mean():.2f}" for i in range(len(ATTRIBUTES))]
        yield row


def more_passes(idea: tuple[tuple[str, Any], ...]) -> bool:
    """Whether an idea runs the transformer more often than guidance alone does."""
    settings = dict(idea)
    to_choose = settings["idea"] == "auto" or settings.get("of") == "found"
    return settings["idea"] in ("third", "every") or settings.get("how") == "mean" or to_choose


def of_guidance(idea: tuple[tuple[str, Any], ...] | None) -> bool:
    """Whether an idea is about what guidance is against, and so is nothing without guidance."""
    settings = dict(idea or ())
    one_sided = settings.get("idea") == "encoder_spread" and settings["alpha"] == 1
    return settings.get("idea") in ("weak", "weak_each", "compressed") or one_sided


def told_the_word(idea: tuple[tuple[str, Any], ...]) -> bool:
    """Whether an idea needs to know which word fails."""
    settings = dict(idea)
    by_word = settings["idea"] in ("attended", "undrifted") and "tokens" not in settings
    return "against" in settings or by_word or settings.get("of") in ("animal", "rare")


def ranked(bench: Bench, margin: float = 0.01) -> list[Any]:
    """The settings whose common success on the tuning prompts is at most `margin` below that of untouched, those with
    the highest rare success first.
    """

    def success(suite: Suite, idea: Any) -> float:
        return float(bench.right(tuning(suite, idea)).all(1).mean())

    whole = [i for i in SETTINGS if i and all(tuning(s, i).key in bench.done for s in SUITES)]
    kept = [i for i in whole if success("common", i) >= success("common", None) - margin]
    return sorted(kept, key=lambda i: (-success("rare", i), -success("common", i)))


def chosen(bench: Bench) -> list[Any]:
    """The first of those without further passes: one that is told the word, and one that is not."""
    best = [i for i in ranked(bench) if not more_passes(i)]
    found = (next((i for i in best if told_the_word(i) == told), None) for told in (False, True))
    return [idea for idea in found if idea is not None]


def best_of_each(bench: Bench) -> list[Any]:
    """The first setting of each idea."""
    found: dict[str, Any] = {}
    for idea in ranked(bench):
        found.setdefault(dict(idea)["idea"], idea)
    return list(found.values())


def begun(bench: Bench) -> list[Any]:
    """What has been drawn on reporting prompts, of one suite at least."""
    return [i for i in SETTINGS if any(reporting(suite, i).key in bench.done for suite in SUITES)]


def swept(bench: Bench) -> Iterator[list[str]]:
    """Success by guidance, and the difference to untouched at the same."""
    guidances = sorted({GUIDANCE, *FURTHER})
    for idea in [i for i in SETTINGS if any(tuning("rare", i, g).key in bench.done for g in FURTHER)]:
        row = [f"`{spelled(idea)}`"]
        for suite in SUITES:
            for cell in (tuning(suite, idea, g) for g in guidances):
                if any(c.key not in bench.done for c in (cell, cell.untouched())):
                    row.append(NOT_RUN)
                    continue
                whole, base = (bench.right(c).all(1).astype(float) for c in (cell, cell.untouched()))
                found = stats.difference(whole, base, clusters(cell))
                row.append(f"{whole.mean():.3f}" if idea is None else f"{found:+.3f}")
        yield row


def written(bench: Bench) -> None:
    header = ["idea", "rare", "difference", *ATTRIBUTES, "common", "difference"]
    write_section(PAGE, "ideas", table(header, rows(bench, tuning, SETTINGS)))
    columns = [f"{suite} at {g:g}" for suite in SUITES for g in sorted({GUIDANCE, *FURTHER})]
    write_section(PAGE, "ideas-guidance", table(["idea", *columns], swept(bench)))
    write_section(PAGE, "ideas-report", table(header, rows(bench, reporting, begun(bench))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tune", "sweep", "report", "table"])
    parser.add_argument("--only", choices=IDEAS, help="draw the settings of one idea, for tune")
    args = parser.parse_args()
    bench = Drawer(RESULTS / "ideas.jsonl", Drawing(rows=64))
    if args.what == "tune":
        wanted = [i for i in SETTINGS if i is None or args.only in (None, dict(i)["idea"])]
        bench.run(tuning(suite, idea) for idea in wanted for suite in SUITES)
    elif args.what == "report":
        bench.run(reporting(suite, idea) for idea in [None, *chosen(bench), *begun(bench)] for suite in SUITES)
    elif args.what == "sweep":
        ideas = [None, *best_of_each(bench)]
        cells = ((suite, idea, g) for g in FURTHER for idea in ideas for suite in SUITES)
        bench.run(tuning(*cell) for cell in cells if cell[2] != 1 or not of_guidance(cell[1]))
    written(bench)
    print(PAGE)


if __name__ == "__main__":
    main()
