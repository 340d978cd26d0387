"""A run: methods x guidances x prompts x seeds in one folder, which can be stopped at any moment and goes on.

    manifest.json    what is drawn, of which prompts, and with what: written once
    images/          METHOD/gGUIDANCE/PROMPT-sSEED.png, each with its settings inside
    scores.jsonl     one line per picture, appended when its whole batch is on disk

A picture counts as done when its line is there. Batches are cut from the whole list, not from what is left, so a run
that went on has the same pictures, bit for bit, as one that was never stopped.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from .. import __version__, pictures, pipelines
from ..attach import apply
from ..settings import Spread, one_of

if TYPE_CHECKING:
    from PIL import Image

    from ..prompts import Prompt, Suite

FORM = 1  # of the folder; a newer one may be unreadable for an older rarelift
MANIFEST, SCORES, IMAGES = "manifest.json", "scores.jsonl", "images"
UNTOUCHED = "untouched"
_PACKAGES = ("torch", "diffusers", "transformers")
Scorer = Callable[["Sequence[Image.Image]", "Sequence[Prompt]"], "list[dict[str, float]]"]
"""Pictures and their prompts in, for each picture numbers by name out."""


@dataclass(frozen=True)
class Method:
    """What is done to the pipeline: nothing when `settings` is None."""

    name: str
    settings: Spread | None = None

    @classmethod
    def parse(cls, text: str) -> Method:
        """Read "untouched", "lift" or "lift:alpha=2,carry=true,tokens=content".

        Raises:
            ValueError, TypeError: the method or a setting of it is not known, or its value is not accepted.
        """
        name, _, rest = text.strip().partition(":")
        one_of("method", name, (UNTOUCHED, "lift"))
        if name == UNTOUCHED:
            if rest:
                raise ValueError(f"method {text!r}: untouched takes no settings")
            return cls(UNTOUCHED)
        given: dict[str, Any] = {}
        for part in filter(None, rest.split(",")):
            key, equals, value = part.partition("=")
            if not equals:
                raise ValueError(f"method {text!r}: {part!r} is no setting; write name=value, such as lift:alpha=2")
            given[key.strip()] = _value(value.strip())
        return cls(text.strip(), Spread.from_dict(given))


def _value(text: str) -> Any:
    """true, false and numbers as such; words by plus signs as phrases; the rest as text."""
    try:
        return json.loads(text.lower())
    except ValueError:
        return tuple(text.split("+")) if "+" in text else text


@dataclass(frozen=True)
class Plan:
    """What a run draws. Every method gets the same noise for the same prompt and seed.

    Args:
        methods: names that differ.
        guidances: values of guidance_scale; None leaves it to the model.
        batch_size: pictures per call of the pipeline.
        call: further arguments of the pipeline, by name; the model's defaults fill the rest.
        metrics: names of the scorers, for the manifest.

    Raises:
        ValueError: an empty or doubled list, or a batch size below 1.
    """

    suite: Suite
    methods: tuple[Method, ...]
    guidances: tuple[float | None, ...]
    seeds: tuple[int, ...]
    model: str = pipelines.BUNDLED
    batch_size: int = 16
    call: tuple[tuple[str, Any], ...] = ()
    metrics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [method.name for method in self.methods]
        for what, values in (("methods", names), ("guidances", self.guidances), ("seeds", self.seeds)):
            if not values:
                raise ValueError(f"a run needs {what}, and none was given")
            if len(set(values)) < len(values):
                raise ValueError(f"{what} holds a value twice: {', '.join(map(str, values))}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        folders = [_slug(name) for name in names]
        if len(set(folders)) < len(folders):
            raise ValueError(f"two methods would share the folder {max(folders, key=folders.count)!r}; rename one")

    @property
    def groups(self) -> list[tuple[Method, float | None]]:
        """Methods and guidances in the order of drawing: a sweep that is stopped has whole guidances first."""
        return [(method, guidance) for guidance in self.guidances for method in self.methods]

    @property
    def total(self) -> int:
        """Pictures."""
        return len(self.groups) * len(self.seeds) * len(self.suite.prompts)

    def units(self, method: Method, guidance: float | None) -> list[Unit]:
        pairs = ((prompt, seed) for seed in self.seeds for prompt in self.suite.prompts)
        return [Unit(method.name, guidance, prompt.id, seed) for prompt, seed in pairs]

    def to_dict(self) -> dict[str, Any]:
        suite = self.suite
        return {
            "suite": {"name": suite.name, "version": suite.version, "digest": suite.digest, "n": len(suite.prompts)},
            "methods": [{"name": m.name, "settings": m.settings and m.settings.to_dict()} for m in self.methods],
            "guidances": list(self.guidances),
            "seeds": list(self.seeds),
            "model": self.model,
            "batch_size": self.batch_size,
            "call": dict(self.call),
            "metrics": list(self.metrics),
        }

    def asked(self) -> list[dict[str, Any]]:
        """What a report says of each prompt, so that it needs the folder alone; the plan's digest holds the rest."""
        return [{"id": p.id, "text": p.text, "kind": p.kind, "rare": p.rare} for p in self.suite.prompts]


@dataclass(frozen=True)
class Unit:
    """One picture."""

    method: str
    guidance: float | None
    prompt: str
    seed: int

    @property
    def path(self) -> str:
        """Inside the folder of the run."""
        guidance = "default" if self.guidance is None else f"{self.guidance:g}"
        return f"{IMAGES}/{_slug(self.method)}/g{guidance}/{_slug(self.prompt)}-s{self.seed}.png"


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.=_+-]+", "-", text)


class Run:
    """The folder of a run, held by one process at a time."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self.done: dict[Unit, dict[str, Any]] = {}
        """Line by picture, for all that are there."""

    @contextmanager
    def open(self) -> Iterator[Run]:
        """Hold the folder: begin it, or go on with it.

        Raises:
            RuntimeError: another process holds it.
            ValueError: it holds a run of another plan, or something that is no run.
            OSError: it cannot be written.
        """
        from filelock import FileLock, Timeout

        if self.folder.is_dir() and not (self.folder / MANIFEST).is_file():
            kept = [path.name for path in self.folder.iterdir() if path.name != ".lock" and path.suffix != ".part"]
            if kept:
                raise ValueError(f"{self.folder} is no run: it has {min(kept)!r} but no {MANIFEST}; give a new folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RuntimeError(f"another bench runs in {self.folder}; wait for it, or give another folder") from None
        try:
            self._begin()
            yield self
        finally:
            lock.release()

    def _begin(self) -> None:
        path = self.folder / MANIFEST
        plan = json.loads(json.dumps(self.plan.to_dict()))
        if not path.is_file():
            made = datetime.now(timezone.utc).isoformat(timespec="seconds")
            manifest = {"form": FORM, "plan": plan, "made": {"at": made, **made_with()}, "prompts": self.plan.asked()}
            write(path, json.dumps(manifest, indent=2) + "\n")
            return
        held = read_manifest(self.folder)["plan"]
        for key in plan:
            if held.get(key) != plan[key]:
                raise ValueError(
                    f"{self.folder} holds a run with {key} = {json.dumps(held.get(key))}, and this one has "
                    f"{json.dumps(plan[key])}; give another folder, or the same settings to go on"
                )
        for left in [*self.folder.glob(".*.part"), *(self.folder / IMAGES).rglob(".*.png")]:
            left.unlink()  # files that a killed process was writing
        self.done = dict(read_scores(self.folder, mend=True))

    def draw(self, model: pipelines.Model, scorers: Sequence[Scorer], *, limit: int | None = None) -> int:
        """Draw and score what is missing; returns how many pictures were made.

        Args:
            limit: stop after about so many, for a try; whole batches are drawn.

        Raises:
            RuntimeError: memory is short even for one picture.
        """
        made = 0
        with tqdm(
            total=self.plan.total, initial=len(self.done), unit="picture", desc=self.folder.name, smoothing=0.05
        ) as bar:
            for method, guidance in self.plan.groups:
                batches = [b for b in self._batches(method, guidance) if any(unit not in self.done for unit in b)]
                if not batches or (limit is not None and made >= limit):
                    continue
                settings = method.settings
                with apply(model.pipe, settings=settings) if settings else nullcontext():
                    for batch in batches:
                        if limit is not None and made >= limit:
                            break
                        fresh = self._batch(model, scorers, method, batch)
                        made += fresh
                        bar.update(fresh)
        return made

    def _batches(self, method: Method, guidance: float | None) -> list[list[Unit]]:
        units, size = self.plan.units(method, guidance), self.plan.batch_size
        return [units[i : i + size] for i in range(0, len(units), size)]

    def _batch(self, model: pipelines.Model, scorers: Sequence[Scorer], method: Method, units: list[Unit]) -> int:
        """Draw a whole batch, and keep of it what was not there."""
        by_id = {prompt.id: prompt for prompt in self.plan.suite.prompts}
        asked = [by_id[unit.prompt] for unit in units]
        started = time.perf_counter()
        drawn = _drawn(model, self.plan, units, [prompt.text for prompt in asked])
        seconds = (time.perf_counter() - started) / len(units)
        fresh = [i for i, unit in enumerate(units) if unit not in self.done]
        whole = [i for i in fresh if drawn[i] is not None]
        scores: dict[int, dict[str, float]] = {i: {} for i in fresh}
        for scorer in scorers if whole else ():
            found = scorer([image for i in whole if (image := drawn[i])], [asked[i] for i in whole])
            for i, numbers in zip(whole, found, strict=True):
                scores[i] |= numbers
        lines = []
        for i in fresh:
            image, unit = drawn[i], units[i]
            if image is not None:
                about = {**asdict(unit), "prompt": asked[i].text, "prompt_id": unit.prompt, "model": self.plan.model}
                settings = method.settings and method.settings.to_dict()
                record = {**about, "settings": settings, "call": {**model.defaults, **dict(self.plan.call)}}
                pictures.save(image, self.folder / unit.path, record)
            line = {**asdict(unit), "scores": scores[i], "seconds": round(seconds, 4)}
            lines.append(line if image is not None else {**line, "failed": "the picture came out as NaN"})
        append(self.folder / SCORES, lines)
        self.done |= {units[i]: line for i, line in zip(fresh, lines, strict=True)}
        return len(fresh)


def _drawn(model: pipelines.Model, plan: Plan, units: list[Unit], texts: list[str]) -> list[Image.Image | None]:
    """The pictures, None where one came out as NaN. Where memory is short, in halves."""
    guidance = units[0].guidance
    call = dict(plan.call) if guidance is None else {**dict(plan.call), "guidance_scale": guidance}
    try:
        seeds = [unit.seed for unit in units]
        return [*pipelines.text_to_image(model, texts, seeds, batch_size=len(units), **call)]
    except FloatingPointError:
        if len(units) == 1:
            return [None]
    except (RuntimeError, MemoryError) as error:
        if not _memory_is_short(error):
            raise
        if len(units) == 1:
            raise RuntimeError(f"memory is short for one picture at a time: {str(error).splitlines()[0]}") from error
        tqdm.write(f"memory is short for {len(units)} pictures at once; drawing {(len(units) + 1) // 2}")
        _free_memory()
    half = (len(units) + 1) // 2
    return [*_drawn(model, plan, units[:half], texts[:half]), *_drawn(model, plan, units[half:], texts[half:])]


def _memory_is_short(error: BaseException) -> bool:
    said = str(error).lower()
    known = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(words in said for words in known)


def _free_memory() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# ---------------------------------------------------------------- the files


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run.

    Raises:
        ValueError: there is none, it cannot be read, or it is of a newer form.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        form = manifest["form"]
    except FileNotFoundError:
        raise ValueError(f"{folder} is no run: it has no {MANIFEST}; `rarelift bench` makes one") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if form != FORM:
        raise ValueError(f"{path} has form {form}, and this rarelift reads {FORM}; update rarelift")
    return dict(manifest)


def read_scores(folder: Path, *, mend: bool = False) -> list[tuple[Unit, dict[str, Any]]]:
    """Every picture of a run with its line. `mend` takes a last line that was cut off out of the file.

    Raises:
        ValueError: a line cannot be read, or two are of one picture; the message names it.
    """
    path = folder / SCORES
    if not path.is_file():
        return []
    whole, newline, cut = path.read_bytes().rpartition(b"\n")
    if cut and mend:  # the run was killed while it wrote this line; its pictures are drawn again
        with path.open("r+b") as file:
            file.truncate(len(whole) + len(newline))
    found: dict[Unit, dict[str, Any]] = {}
    for number, text in enumerate(whole.splitlines(), 1):
        try:
            line = json.loads(text)
            unit = Unit(line["method"], line["guidance"], line["prompt"], line["seed"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number} cannot be read: {type(error).__name__}: {error}") from error
        if unit in found:
            raise ValueError(f"{path}, line {number} is the second of {unit}; take one out")
        found[unit] = line
    return list(found.items())


def append(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Add lines, and wait until they are on the disk."""
    if not lines:
        return
    with path.open("ab") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        file.flush()
        os.fsync(file.fileno())


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp's 0600 is for secrets
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def made_with() -> dict[str, Any]:
    """Versions, the commit of the working tree where there is one, and the machine."""
    return {
        "rarelift": __version__,
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
    }


def _commit() -> str | None:
    """Of the repository that this file is in, and not only lies in, as an installed copy does."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, cwd=here.parent, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        return git("describe", "--always", "--dirty")
    except (OSError, subprocess.CalledProcessError):
        return None
