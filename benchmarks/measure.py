"""Draw and judge cells of an experiment: what every benchmark script here shares.

A cell is one setting at one guidance on one suite. Its result is one line of a JSONL file with every picture's
verdict, so a run that was stopped goes on where it was, and tables are made from the file without drawing again.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import rarelift
from rarelift import pictures, pipelines
from rarelift.menagerie import PIPELINE
from rarelift.menagerie.judge import Judge
from rarelift.menagerie.suite import VERSION, MenageriePrompt, Split, Suite, prompts
from rarelift.menagerie.train import bf16_is_fast
from rarelift.menagerie.world import ATTRIBUTES
from rarelift.prompts import Prompt
from rarelift.settings import Spread

RESULTS = Path(__file__).parent / "results"
NOT_RUN = "not run"  # what a table says of a cell that its file does not hold


@dataclass(frozen=True)
class Cell:
    """One setting at one guidance on one suite. `lift` holds the keywords of `rarelift.apply`, None is untouched."""

    suite: Suite
    split: Split
    n: int
    seeds: int
    guidance: float
    steps: int
    lift: tuple[tuple[str, Any], ...] | None = None

    @property
    def key(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def lift_keywords(self) -> dict[str, Any]:
        return dict(self.lift or ())

    def untouched(self) -> Cell:
        return replace(self, lift=None)


def lift(**keywords: Any) -> tuple[tuple[str, Any], ...]:
    """The keywords of `rarelift.apply`, hashable and in a fixed order."""
    return tuple(sorted(keywords.items()))


@dataclass(frozen=True)
class Drawing:
    """How cells are drawn.

    `rows` is the batch of the transformer, so pictures go through in halves of it where guidance needs two passes and
    a compiled model sees one shape. `workers` processes share the cores: one per core draws a fifth more than one
    process with all of them. `compiled` is worth its minutes in long runs.
    """

    model: str = pipelines.BUNDLED
    rows: int = 64
    workers: int = 1
    compiled: bool = False


class Artist:
    """Draws and judges cells in one process."""

    def __init__(self, drawing: Drawing) -> None:
        self.drawing = drawing

    @cached_property
    def untouched(self) -> pipelines.Model:
        model = pipelines.load(self.drawing.model, dtype=torch.bfloat16 if bf16_is_fast() else torch.float32)
        if self.drawing.compiled:
            model.pipe.transformer.compile()
        return model

    @cached_property
    def lifted(self) -> tuple[pipelines.Model, rarelift.Handle]:
        """A second copy of the model, so that neither is recompiled when cells take turns."""
        model = Artist(self.drawing).untouched
        return model, rarelift.apply(model.pipe)

    @cached_property
    def judge(self) -> Judge:
        return Judge.load()

    def draw(self, cell: Cell) -> np.ndarray:
        chosen, seeds = pictures_of(cell)
        model = self.untouched
        if cell.lift is not None:
            model, handle = self.lifted
            handle.set(**vars(Spread(**cell.lift_keywords)))
        images = pipelines.text_to_image(
            model,
            [p.text for p in chosen],
            seeds,
            batch_size=self.drawing.rows // (2 if cell.guidance > 1 else 1),
            guidance_scale=cell.guidance,
            num_inference_steps=cell.steps,
        )
        return self.judge.right(images, [p.thing for p in chosen])


_artist: Artist  # one per worker process


def _begin_worker(drawing: Drawing) -> None:
    global _artist
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker at once, without a traceback of its own
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // drawing.workers))
    _artist = Artist(drawing)


def _draw_in_worker(cell: Cell) -> tuple[np.ndarray, float]:
    return timed(_artist.draw, cell)


def timed(draw: Callable[[Cell], np.ndarray], cell: Cell) -> tuple[np.ndarray, float]:
    started = time.monotonic()
    return draw(cell), round(time.monotonic() - started, 2)


class Bench:
    """Draws and judges cells, and keeps what came out in `file`."""

    def __init__(self, file: Path, drawing: Drawing | None = None) -> None:
        self.file = file
        self.drawing = drawing or Drawing()
        self.weights = fingerprint(self.drawing.model)
        self.done = {record["key"]: unpack(record["right"]) for record in records(file, self.weights)}

    def run(self, cells: Iterable[Cell]) -> None:
        """Draw every cell that the file does not hold yet, one line per cell as it is done."""
        todo = [cell for cell in dict.fromkeys(cells) if cell.key not in self.done]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        made = made_with(self.drawing)
        with tqdm(total=sum(map(passes, todo)), unit="pass", desc=self.file.stem, smoothing=0.05) as bar:
            for cell, right, seconds in self._results(todo):
                record = {
                    "key": cell.key,
                    "right": pack(right),
                    "weights": self.weights,
                    "seconds": seconds,
                    "made": made,
                }
                with self.file.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                self.done[cell.key] = right
                bar.update(passes(cell))

    def _results(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, np.ndarray, float]]:
        """(cell, verdicts, seconds), as they are done."""
        if self.drawing.workers == 1:
            yield from ((cell, *timed(self.draw, cell)) for cell in cells)
            return
        # a forked copy of a process with threads of torch may hang
        pool = ProcessPoolExecutor(
            self.drawing.workers, multiprocessing.get_context("spawn"), _begin_worker, (self.drawing,)
        )
        try:
            cell_of = {pool.submit(_draw_in_worker, cell): cell for cell in cells}
            for future in as_completed(cell_of):
                yield cell_of[future], *future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    @cached_property
    def draw(self) -> Callable[[Cell], np.ndarray]:
        return Artist(self.drawing).draw

    def right(self, cell: Cell) -> np.ndarray:
        """[n * seeds, 5] verdicts of a cell that was drawn, prompt by prompt, seeds within."""
        if cell.key not in self.done:
            raise KeyError(f"{self.file} does not hold {cell.key}; run the benchmark without --table first")
        return self.done[cell.key]


def records(file: Path, weights: str) -> Iterator[dict[str, Any]]:
    """The whole lines of a file of results; a last line that a killed run left cut is taken out of the file.

    Raises:
        ValueError: a record of other weights than those with the fingerprint `weights`, or of other prompts.
    """
    if not file.is_file():
        return
    whole, _, cut = file.read_text().rpartition("\n")
    if cut:  # the run was killed while it wrote this line; what it held is drawn again
        file.write_text(f"{whole}\n" if whole else "")
    for line in whole.splitlines():
        record = json.loads(line)
        if record["weights"] != weights:
            raise ValueError(f"{file} was drawn with other weights ({record['weights']}); move it away")
        if record.get("made", {}).get("suite", VERSION) != VERSION:
            raise ValueError(f"{file} was drawn with other prompts; move it away")
        yield record


def made_with(drawing: Drawing) -> dict[str, Any]:
    """What else a picture depends on, for its record."""
    return {
        **versions(),
        "suite": VERSION,
        "dtype": "bfloat16" if bf16_is_fast() else "float32",
        "compiled": drawing.compiled,
    }


def versions() -> dict[str, str]:
    """The commit that measures, and what it stands on; RARELIFT_COMMIT says it where a copy's history does not."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    told = os.environ.get("RARELIFT_COMMIT")
    commit = told or subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    return {"commit": commit, **pictures.versions()}


def passes(cell: Cell) -> int:
    """How often a cell goes through the whole denoising; guidance doubles the work of a picture."""
    return cell.n * cell.seeds * (2 if cell.guidance > 1 else 1)


def begun(path: Path, asked: dict[str, Any]) -> None:
    """Write down what a training is begun with, so that it goes on with nothing else.

    Raises:
        ValueError: it was begun with something else.
    """
    if path.is_file():
        before = json.loads(path.read_text())
        if before != asked:
            raise ValueError(
                f"{path} says {before}, and this run has {asked}; go on with the former, or give another folder"
            )
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asked) + "\n")


def folder_of(model: str) -> Path:
    """Where the pipeline called `model` lies."""
    return PIPELINE if model == pipelines.BUNDLED else Path(model)


def fingerprint(model: str) -> str:
    """The first digits of the SHA-256 of a model's weights, so that results are never mixed with another's."""
    digest = hashlib.sha256()
    for path in sorted(folder_of(model).glob("*/*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def pictures_of(cell: Cell) -> tuple[list[MenageriePrompt], list[int]]:
    """The (prompt, seed) pairs of a cell; a pair's seed depends on nothing else, so noise is shared by all settings."""
    chosen = [p for p in _prompts(cell.suite, cell.n, cell.split) for _ in range(cell.seeds)]
    return chosen, [1000 * (i // cell.seeds) + i % cell.seeds for i in range(len(chosen))]


def clusters(cell: Cell) -> list[str]:
    """What the pictures of a cell are resampled by: the thing asked for, so phrasings of one thing stay together."""
    return [repr(p.thing) for p in pictures_of(cell)[0]]


def thing_in(prompt: Prompt) -> str:
    """What a prompt asks for: the common ones are 128 things in four phrasings each, which fail together."""
    return " ".join(prompt.meta[attribute] for attribute in ATTRIBUTES)


@cache  # making the prompts anew for each cell of a large table takes minutes
def _prompts(suite: Suite, n: int, split: Split) -> tuple[MenageriePrompt, ...]:
    return tuple(prompts(suite, n, split=split))


def pack(right: np.ndarray) -> str:
    """[N, 5] booleans as N letters: each letter holds the five attributes' verdicts as bits."""
    return "".join(chr(ord("@") + int(v)) for v in right @ (1 << np.arange(right.shape[1])))


def unpack(text: str) -> np.ndarray:
    values = np.array([ord(c) - ord("@") for c in text])
    return np.asarray((values[:, None] >> np.arange(5)) & 1 == 1)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def write_section(path: Path, name: str, body: str) -> None:
    """Put `body` between the markers `<!-- name -->` and `<!-- /name -->` of a page."""
    text = path.read_text()
    before, found, rest = text.partition(f"<!-- {name} -->\n")
    _, closed, after = rest.partition(f"<!-- /{name} -->")
    if not found or not closed:
        raise ValueError(f"{path} has no section {name!r}")
    path.write_text(f"{before}{found}{body.strip()}\n{closed}{after}")
