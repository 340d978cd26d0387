"""What a run says: each method at each guidance, and its paired difference to the untouched pipeline."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import stats
from .runs import UNTOUCHED, read_manifest, read_scores

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .stats import Estimate


@dataclass(frozen=True)
class Row:
    """One metric of one method at one guidance.

    `difference` is that to untouched at the same guidance, over the prompts and seeds that both have; None for
    untouched itself and where there is no such pair. `failed` counts pictures that came out as NaN: they are in `n`,
    count as no success, and are left out of other metrics.
    """

    method: str
    guidance: float | None
    metric: str
    n: int
    failed: int
    value: Estimate
    difference: Estimate | None


def rows(folder: Path) -> list[Row]:
    """Every row of a run, in the order of its plan; groups with fewer than two prompts are left out.

    Raises:
        ValueError: the folder holds no run, or no scored picture.
    """
    plan = read_manifest(folder)["plan"]
    groups: dict[tuple[str, float | None], dict[tuple[str, int], dict[str, Any]]] = {}
    for unit, line in read_scores(folder):
        groups.setdefault((unit.method, unit.guidance), {})[unit.prompt, unit.seed] = line
    metrics = list(
        dict.fromkeys(name for group in groups.values() for line in group.values() for name in line["scores"])
    )
    found = []
    for guidance in plan["guidances"]:
        base = groups.get((UNTOUCHED, guidance), {})
        for method in (m["name"] for m in plan["methods"]):
            group = groups.get((method, guidance), {})
            for metric in metrics:
                row = _row(method, guidance, metric, group, base)
                found += [row] if row else []
    if not found:
        raise ValueError(f"{folder} has no metric with pictures of two prompts or more yet; `rarelift bench` goes on")
    return found


def _row(
    method: str,
    guidance: float | None,
    metric: str,
    group: dict[tuple[str, int], dict[str, Any]],
    base: dict[tuple[str, int], dict[str, Any]],
) -> Row | None:
    values = {key: number for key, line in group.items() if (number := _number(line, metric)) is not None}
    if len({prompt for prompt, _ in values}) < 2:
        return None
    difference = None
    if method != UNTOUCHED:
        pairs = {key: number for key in values if key in base and (number := _number(base[key], metric)) is not None}
        if len({prompt for prompt, _ in pairs}) > 1:
            lifted = [values[key] for key in pairs]
            difference = stats.difference(lifted, list(pairs.values()), [prompt for prompt, _ in pairs])
    failed = sum("failed" in line for line in group.values())
    value = stats.mean(list(values.values()), [prompt for prompt, _ in values])
    return Row(method, guidance, metric, len(group), failed, value, difference)


def _number(line: dict[str, Any], metric: str) -> float | None:
    value = line["scores"].get(metric, 0.0 if "failed" in line and metric == "success" else math.nan)
    return float(value) if math.isfinite(value) else None


HEADINGS = ("guidance_scale", "method", "metric", "pictures", "mean [95% interval]", "minus untouched [95% interval]")


def cells(row: Row) -> tuple[str, ...]:
    """A row as text, one piece for each of `HEADINGS`."""
    pictures = f"{row.n}, {row.failed} NaN" if row.failed else f"{row.n}"
    guidance = "default" if row.guidance is None else f"{row.guidance:g}"
    difference = "" if row.difference is None else f"{row.difference:+.3f}"
    return guidance, row.method, row.metric, pictures, f"{row.value:.3f}", difference


def markdown(found: Sequence[Row]) -> str:
    lines = [HEADINGS, ("---",) * len(HEADINGS), *map(cells, found)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def as_csv(found: Sequence[Row]) -> str:
    """One line per row, numbers unrounded, empty where there is none."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = ("value", "low", "high")
    writer.writerow(["guidance_scale", "method", "metric", "n", "failed", *names, *(f"difference_{n}" for n in names)])
    for row in found:
        difference = [getattr(row.difference, name, "") for name in names]
        values = [getattr(row.value, name) for name in names]
        writer.writerow([row.guidance, row.method, row.metric, row.n, row.failed, *values, *difference])
    return out.getvalue()
