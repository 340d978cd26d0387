"""What a run says: each method at each guidance, and its paired difference to the untouched pipeline."""

from __future__ import annotations

import csv
import io
import math
import shlex
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..prompts import SUITES, load
from . import stats
from .runs import UNTOUCHED, read_manifest, read_scores

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from .stats import Estimate

Key = tuple[str, int]  # prompt and seed
Group = dict[Key, dict[str, Any]]  # the lines of one method at one guidance


@dataclass(frozen=True)
class Record:
    """What the folder of a run holds, read once."""

    folder: Path
    manifest: dict[str, Any]
    groups: dict[tuple[str, float | None], Group]

    @property
    def plan(self) -> dict[str, Any]:
        return dict(self.manifest["plan"])

    @property
    def methods(self) -> list[str]:
        return [method["name"] for method in self.plan["methods"]]

    @cached_property
    def metrics(self) -> list[str]:
        """Names of what the lines hold numbers of, in the order of their appearance."""
        lines = (line for group in self.groups.values() for line in group.values())
        return list(dict.fromkeys(name for line in lines for name in line["scores"]))

    @cached_property
    def prompts(self) -> dict[str, dict[str, Any]]:
        """Text, kind and rare by id, in the order of the suite; the ids alone where the manifest has no list."""
        listed = {prompt["id"]: prompt for prompt in self.manifest.get("prompts", ())}
        seen = (prompt for group in self.groups.values() for prompt, _ in group)
        return listed or {name: {"id": name, "text": name, "kind": "", "rare": None} for name in dict.fromkeys(seen)}

    @cached_property
    def rows(self) -> list[Row]:
        """Of all prompts; none where no metric has numbers of two prompts."""
        return table(self)

    @property
    def made(self) -> int:
        """Pictures, the ones that came out as NaN among them."""
        return sum(map(len, self.groups.values()))

    @property
    def total(self) -> int:
        """Pictures that the plan asks for."""
        plan = self.plan
        return len(plan["methods"]) * len(plan["guidances"]) * len(plan["seeds"]) * int(plan["suite"]["n"])

    @property
    def failed(self) -> int:
        """Pictures that came out as NaN."""
        return sum("failed" in line for group in self.groups.values() for line in group.values())


def read(folder: Path) -> Record:
    """What the folder of a run holds.

    Raises:
        ValueError: it holds no run, or one that cannot be read; the message says where.
    """
    manifest = read_manifest(folder)
    groups: dict[tuple[str, float | None], Group] = {}
    for unit, line in read_scores(folder):
        if not isinstance(line.get("scores"), dict):
            raise ValueError(
                f"{folder}: the line of {unit} has no scores; take it out, and `rarelift bench` draws anew"
            )
        groups.setdefault((unit.method, unit.guidance), {})[unit.prompt, unit.seed] = line
    found = Record(folder, manifest, groups)
    try:
        _ = found.total, found.methods, found.prompts
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder}: the manifest cannot be read: {type(error).__name__}: {error}") from error
    return found


def command(record: Record) -> tuple[str, str]:
    """The command that draws the run again, and what it cannot say."""
    plan, besides = record.plan, []
    name, call = str(plan["suite"]["name"]), dict(plan.get("call", {}))
    words = ["rarelift", "bench", record.folder.name]
    suite = _suite(name, int(plan["suite"]["n"]), plan["suite"]["digest"])
    if not suite:
        suite = ["--suite", f"PATH-OF-{name}"]
        besides.append(f"PATH-OF-{name} stands for the file or folder that holds the prompts.")
    words += suite
    words += ["--prompts", str(plan["suite"]["n"])]
    for method in record.methods:
        words += ["--method", method]
    for guidance in plan["guidances"]:
        words += ["--guidance", f"{guidance!r}"] if guidance is not None else []
    words += ["--seeds", str(len(plan["seeds"])), "--model", str(plan["model"])]
    for metric in plan.get("metrics", ()):
        words += ["--metric", metric]
    words += ["--batch-size", str(plan.get("batch_size"))]
    if plan.get("dtype"):
        words += ["--dtype", str(plan["dtype"])]
    if steps := call.pop("num_inference_steps", None):
        words += ["--steps", str(steps)]
    if call:
        besides.append(f"From Python only: {', '.join(f'{key}={value!r}' for key, value in call.items())}.")
    return shlex.join(words), " ".join(besides)


def _suite(name: str, n: int, digest: str) -> list[str]:
    """The words that ask for one of our suites; none where the prompts are a file's, whatever it is called."""
    if name in SUITES:
        for split in (None, "tune") if name.startswith("menagerie") else (None,):
            if load(name, limit=n, split=split).digest == digest:
                return ["--suite", name, *(["--split", split] if split else [])]
    return []


@dataclass(frozen=True)
class Row:
    """One metric of one method at one guidance.

    `difference` is that to untouched at the same guidance, over the prompts and seeds that both have; None for
    untouched itself and where there is no such pair, as are the three numbers about it: `p`, two-sided, by prompt,
    `adjusted`, the same after Holm's correction over all rows of the table, and `detectable`, the smallest true
    difference that a repeat would find with chance 0.8. `failed` counts pictures that came out as NaN: they are in
    `n`, count as no success, and are left out of other metrics.
    """

    method: str
    guidance: float | None
    metric: str
    n: int
    failed: int
    value: Estimate
    difference: Estimate | None = None
    p: float | None = None
    adjusted: float | None = None
    detectable: float | None = None


def rows(folder: Path) -> list[Row]:
    """Every row of a run, in the order of its plan; groups with fewer than two prompts are left out.

    Raises:
        ValueError: the folder holds no run, or no scored picture.
    """
    found = read(folder).rows
    if not found:
        raise ValueError(nothing(folder))
    return found


def nothing(folder: Path) -> str:
    return f"{folder} has no metric with pictures of two prompts or more yet; `rarelift bench` goes on"


def table(run: Record, prompts: Collection[str] | None = None) -> list[Row]:
    """The rows of a run, which may be none; of these prompts alone where they are given by id."""
    return _adjusted({"": _rows(run, prompts)})[""]


def by_kind(run: Record) -> dict[str, list[Row]]:
    """The rows of each kind of prompt, corrected together, for who looks at all kinds tests in all of them."""
    kinds: dict[str, list[str]] = {}
    for name, prompt in run.prompts.items():
        kinds.setdefault(prompt["kind"], []).append(name)
    return _adjusted({kind: _rows(run, names) for kind, names in kinds.items()})


def _adjusted(tables: Mapping[str, list[Row]]) -> dict[str, list[Row]]:
    """The same with Holm's correction over the tests of all of them."""
    tests = [row.p for found in tables.values() for row in found if row.p is not None]
    left = iter(stats.correct(tests).tolist() if tests else ())
    return {
        name: [row if row.p is None else replace(row, adjusted=next(left)) for row in found]
        for name, found in tables.items()
    }


def _rows(run: Record, prompts: Collection[str] | None) -> list[Row]:
    asked = None if prompts is None else set(prompts)
    groups = {
        name: group if asked is None else {key: line for key, line in group.items() if key[0] in asked}
        for name, group in run.groups.items()
    }
    found = []
    for guidance in run.plan["guidances"]:
        base = groups.get((UNTOUCHED, guidance), {})
        for method in run.methods:
            group = groups.get((method, guidance), {})
            for metric in run.metrics:
                row = _row(method, guidance, metric, group, base)
                found += [row] if row else []
    return found


def _row(method: str, guidance: float | None, metric: str, group: Group, base: Group) -> Row | None:
    values = {key: value for key, line in group.items() if (value := number(line, metric)) is not None}
    if len({prompt for prompt, _ in values}) < 2:
        return None
    failed = sum("failed" in line for line in group.values())
    clusters = [prompt for prompt, _ in values]
    row = Row(method, guidance, metric, len(group), failed, stats.mean(list(values.values()), clusters))
    if method == UNTOUCHED:
        return row
    pairs = {key: other for key in values if key in base and (other := number(base[key], metric)) is not None}
    clusters = [prompt for prompt, _ in pairs]
    if len(set(clusters)) < 2:
        return row
    lifted, plain = [values[key] for key in pairs], list(pairs.values())
    apart = [a - b for a, b in zip(lifted, plain, strict=True)]
    return replace(
        row,
        difference=stats.difference(lifted, plain, clusters),
        p=stats.p_value(apart, clusters),
        detectable=stats.detectable(apart, clusters),
    )


def number(line: dict[str, Any], metric: str) -> float | None:
    """What a line says of a metric: None where nothing, and 0 for the success of a picture that came out as NaN."""
    value = line["scores"].get(metric, 0.0 if "failed" in line and metric == "success" else math.nan)
    return float(value) if math.isfinite(value) else None


HEADINGS = (
    *("guidance_scale", "method", "metric", "pictures", "mean [95% interval]", "minus untouched [95% interval]"),
    *("p", "p, Holm", "detectable"),
)


def cells(row: Row) -> tuple[str, ...]:
    """A row as text, one piece for each of `HEADINGS`."""
    pictures = f"{row.n}, {row.failed} NaN" if row.failed else f"{row.n}"
    difference = "" if row.difference is None else f"{row.difference:+.3f}"
    detectable = "" if row.detectable is None else f"{row.detectable:.3f}"
    about = (guidance(row.guidance), row.method, row.metric, pictures, f"{row.value:.3f}", difference)
    return (*about, chance(row.p), chance(row.adjusted), detectable)


def guidance(value: float | None) -> str:
    return "default" if value is None else f"{value:g}"


def chance(p: float | None) -> str:
    """A p-value as text, empty for none."""
    if p is None:
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def notes(found: Sequence[Row], of: str = "this table") -> list[str]:
    """What the columns mean, a sentence or two each, for readers who know no statistics."""
    tests = sum(row.p is not None for row in found)
    said = [
        "The mean is over pictures; its 95% interval resamples whole prompts, for pictures of one prompt are alike."
    ]
    if tests:
        said += [
            "Minus untouched: picture by picture, for the same prompt, seed and noise, with and without the method.",
            "p: how often a difference this large, either way, would come about if the method changed nothing (signs "
            "flipped prompt by prompt).",
            f"p, Holm: the same, corrected by Holm's method over {'all ' * (tests > 1)}{tests} test{'s' * (tests > 1)} "
            f"of {of}. Who takes 0.05 or less for a finding has a chance of at most 5% of any false one there.",
            "Detectable: the smallest true difference that a repeat of this size would find four times in five, at "
            "0.05 before correction. Smaller ones may be there unseen. Below some 30 prompts it is a rough guide.",
        ]
    if any(row.failed for row in found):
        said.append("NaN: pictures that came out as no picture. They are no success, and left out of other metrics.")
    return said


def markdown(found: Sequence[Row]) -> str:
    """The table, and under it what its columns mean."""
    lines = [HEADINGS, ("---",) * len(HEADINGS), *map(cells, found)]
    shown = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([*shown, "", *(f"- {note}" for note in notes(found)), ""])


def as_csv(tables: Iterable[tuple[str, Sequence[Row]]]) -> str:
    """One line per row of each named run, numbers unrounded, empty where there is none."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = ("value", "low", "high")
    about = ("run", "guidance_scale", "method", "metric", "n", "failed")
    writer.writerow([*about, *names, *(f"difference_{n}" for n in names), "p", "p_holm", "detectable"])
    for run, found in tables:
        for row in found:
            difference = [getattr(row.difference, name, "") for name in names]
            values = [getattr(row.value, name) for name in names]
            tests = [row.p, row.adjusted, row.detectable]
            writer.writerow(
                [run, row.guidance, row.method, row.metric, row.n, row.failed, *values, *difference, *tests]
            )
    return out.getvalue()
