"""A run: methods x guidances x prompts x seeds in one folder, which can be stopped at any moment and goes on.

    manifest.json    what is drawn, of which prompts, and with what: written once, before the first picture
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
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from .. import __version__, pictures, pipelines, profiles, rivals
from ..rivals import RIVALS
from ..settings import Spread, one_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ..prompts import Suite
    from ..rivals.base import Rival
    from .drawing import Made

FORM = 1  # of the folder; a newer one may be unreadable for an older rarelift
MANIFEST, SCORES, IMAGES = "manifest.json", "scores.jsonl", "images"
UNTOUCHED, LIFT = "untouched", "lift"
_PROFILE = "profile"


@dataclass(frozen=True)
class Method:
    """What is done to the pipeline: nothing when `settings` is None. `profile` is the settings' source, if any."""

    name: str
    settings: Spread | Rival | None = None
    profile: profiles.Profile | None = None

    @classmethod
    def parse(cls, text: str) -> Method:
        """Read "untouched", "lift", "lift:alpha=2,carry=true,tokens=content" or a rival in the same form.

        "lift:profile=FILE.json,alpha=2" takes the settings of a profile, by file or name; those beside it win.

        Raises:
            ValueError, TypeError: the method or a setting of it is not known, or its value is not accepted.
        """
        name, _, rest = text.strip().partition(":")
        one_of("method", name, (UNTOUCHED, LIFT, *RIVALS))
        if name == UNTOUCHED:
            if rest:
                raise ValueError(f"method {text!r}: untouched takes no settings")
            return cls(UNTOUCHED)
        given: dict[str, Any] = {}
        for part in filter(None, rest.split(",")):
            key, equals, value = part.partition("=")
            if not equals:
                raise ValueError(f"method {text!r}: {part!r} is no setting; write name=value, such as lift:alpha=2")
            given[key.strip()] = value.strip() if key.strip() == _PROFILE else _value(value.strip())
        if name != LIFT:
            return cls(text.strip(), rivals.make(name, given))
        profile = None
        if _PROFILE in given:
            if given[_PROFILE] == profiles.AUTO:
                raise ValueError(f"method {text!r}: a run says what it draws, so name the profile or its file")
            profile = profiles.load(given.pop(_PROFILE))
            given = {**profile.settings, **given}
        return cls(text.strip(), Spread.from_dict(given), profile)


def _value(text: str) -> Any:
    """true, false and numbers as such; phrases by plus signs, of which one alone is "crown+"; the rest as text."""
    try:
        return json.loads(text.lower())
    except ValueError:
        return tuple(filter(None, text.split("+"))) if "+" in text else text


@dataclass(frozen=True)
class Plan:
    """What a run draws. Every method gets the same noise for the same prompt and seed.

    Args:
        methods: names that differ.
        guidances: values of guidance_scale; None leaves it to the model.
        batch_size: pictures per call of the pipeline.
        call: further arguments of the pipeline, by name; the model's defaults fill the rest.
        metrics: names of the scorers, for the manifest.
        dtype: of the weights and the arithmetic, such as "float32"; None leaves it to `pipelines.load`.

    Raises:
        ValueError: an empty or doubled list, methods or ids of prompts that would share a file, or a batch size below
            1.
    """

    suite: Suite
    methods: tuple[Method, ...]
    guidances: tuple[float | None, ...]
    seeds: tuple[int, ...]
    model: str = pipelines.BUNDLED
    batch_size: int = 16
    call: tuple[tuple[str, Any], ...] = ()
    metrics: tuple[str, ...] = ()
    dtype: str | None = None

    def __post_init__(self) -> None:
        names = [method.name for method in self.methods]
        for what, values in (("methods", names), ("guidances", self.guidances), ("seeds", self.seeds)):
            if not values:
                raise ValueError(f"a run needs {what}, and none was given")
            if len(set(values)) < len(values):
                raise ValueError(f"{what} holds a value twice: {', '.join(map(str, values))}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        prompts = [prompt.id for prompt in self.suite.prompts]
        for what, files in (("methods", names), ("prompts", prompts)):
            paths = [_slug(name) for name in files]
            if len(set(paths)) < len(paths):
                raise ValueError(f"two {what} would share the file name {max(paths, key=paths.count)!r}; rename one")

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
            "dtype": self.dtype,
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
        guidance = "default" if self.guidance is None else f"{self.guidance!r}".removesuffix(".0")
        return f"{IMAGES}/{_slug(self.method)}/g{guidance}/{_slug(self.prompt)}-s{self.seed}.png"


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.=_+-]+", "-", text)


class Run:
    """The folder of a run, held by one process at a time."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self.done: dict[Unit, dict[str, Any]] = {}
        """Line by picture, for all that are there."""
        self._texts = {prompt.id: prompt.text for prompt in plan.suite.prompts}
        self._settings = {method.name: method.settings and method.settings.to_dict() for method in plan.methods}

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
            self._resume()
            yield self
        finally:
            lock.release()

    def _resume(self) -> None:
        if not (self.folder / MANIFEST).is_file():
            return
        plan, held = self._plan(), read_manifest(self.folder)["plan"]
        for key in plan:
            if held.get(key) != plan[key]:
                raise ValueError(
                    f"{self.folder} holds a run with {key} = {json.dumps(held.get(key))}, and this one has "
                    f"{json.dumps(plan[key])}; give another folder, or the same settings to go on"
                )
        for left in [*self.folder.glob(".*.part"), *(self.folder / IMAGES).rglob(".*.png")]:
            left.unlink()  # files that a killed process was writing
        self.done = dict(read_scores(self.folder, mend=True))

    def begin(self) -> None:
        """Write the manifest where there is none. `keep` does: a model that does not load leaves nothing behind."""
        path = self.folder / MANIFEST
        if not path.is_file():
            about = {"at": datetime.now(timezone.utc).isoformat(timespec="seconds"), **made_with()}
            manifest = {"form": FORM, "plan": self._plan(), "made": about, "prompts": self.plan.asked()}
            write(path, json.dumps(manifest, indent=2) + "\n")

    def _plan(self) -> Any:
        """As a manifest gives it back."""
        return json.loads(json.dumps(self.plan.to_dict()))

    def missing(self, limit: int | None = None) -> Iterator[list[Unit]]:
        """The batches that hold a picture that is not there; each is of one method and guidance.

        Args:
            limit: for a try, no more batches once these hold so many such pictures.
        """
        asked, size = 0, self.plan.batch_size
        for method, guidance in self.plan.groups:
            units = self.plan.units(method, guidance)
            for batch in (units[i : i + size] for i in range(0, len(units), size)):
                fresh = sum(unit not in self.done for unit in batch)
                if limit is not None and asked >= limit:
                    return
                asked += fresh
                if fresh:
                    yield batch

    def take(self, made: Iterable[tuple[list[Unit], list[Made]]]) -> int:
        """Keep batches as they come, in any order, under a progress bar; returns how many pictures were new."""
        new = 0
        with tqdm(
            total=self.plan.total, initial=len(self.done), unit="picture", desc=self.folder.name, smoothing=0.05
        ) as bar:
            for units, batch in made:
                for note in (note for one in batch for note in one.notes):
                    tqdm.write(note, file=sys.stderr)
                kept = self.keep(units, batch)
                new += kept
                bar.update(kept)
        return new

    def keep(self, units: Sequence[Unit], made: Sequence[Made]) -> int:
        """Write a batch, of it what was not there; returns how many that were."""
        self.begin()
        fresh = {unit: one for unit, one in zip(units, made, strict=True) if unit not in self.done}
        lines = []
        for unit, one in fresh.items():
            line = {**asdict(unit), "scores": one.scores, "seconds": round(one.seconds, 4)}
            if one.answers:
                line["answers"] = one.answers
            if one.image is None:
                line["failed"] = "the picture came out as NaN"
            else:
                about = {**asdict(unit), "prompt": self._texts[unit.prompt], "prompt_id": unit.prompt}
                settings = self._settings[unit.method]
                record = {**about, "model": self.plan.model, "settings": settings, "call": one.call}
                pictures.save(one.image, self.folder / unit.path, record)
            lines.append(line)
        append(self.folder / SCORES, lines)
        self.done |= dict(zip(fresh, lines, strict=True))
        return len(lines)


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
        "versions": {"python": platform.python_version(), **pictures.versions()},
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
