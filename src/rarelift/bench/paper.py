"""The paper's three tables, made anew from runs of one's own: methods, tasks, and alpha.

Beside them stand the figures of a published summary of the paper (arXiv 2510.03886). They are of other models and
prompts, and nothing here reproduces them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..menagerie import CLIP
from ..settings import Spread
from . import sets, stats, summary
from .runs import UNTOUCHED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from .sets import Distance, Extractor
    from .stats import Estimate
    from .summary import Group, Key, Record

PUBLISHED = "published summary, other model, not reproduced here"
NOT_BUILT = "not built yet"
DEFAULT_ALPHA = cast("float", Spread().alpha)
# the published summary: method -> CLIP-T, extra cost; task -> gain; alpha -> CLIP-T rare, CLIP-T common, FID
_METHODS = {
    "untouched": ("0.285", "0%"),
    "lift": ("0.328", "+0.5%"),
    "prompt rewriting": ("0.301", "+35%"),
    "optimisation at denoising time": ("0.312", "+200%"),
}
_RIVALS = {"prompt rewriting": "rewrite", "optimisation at denoising time": "attend-excite"}
_TASKS = {"image": "+15.1%", "video": "+13.8%", "editing": "+10.6%"}
_ALPHA: dict[float, tuple[str, str, str]] = {
    1.0: ("0.285", "0.332", "12.5"),
    1.2: ("0.305", "0.330", "12.3"),
    1.5: ("0.328", "0.328", "12.8"),
    2.0: ("0.335", "0.315", "14.2"),
    3.0: ("0.318", "0.295", "18.5"),
}
ALPHAS = tuple(_ALPHA)


@dataclass(frozen=True)
class Table:
    """Rows of text under a heading, and below them what the columns are."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: list[str]


@dataclass(frozen=True)
class Side:
    """The pictures of rare or of common prompts: by method and guidance, by prompt and seed."""

    groups: Mapping[tuple[str, float | None], Group]

    def values(self, method: str, guidance: float | None, metric: str) -> dict[Key, float]:
        lines = self.groups.get((method, guidance), {})
        return {key: value for key, line in lines.items() if (value := summary.number(line, metric)) is not None}


@dataclass(frozen=True)
class Measured:
    """Runs that differ in their prompts alone, taken apart into rare and common ones.

    `lifts` holds the name of the method for each alpha; untouched stands for alpha 1, which is bit-identical.
    """

    records: tuple[Record, ...]
    rare: Side
    common: Side
    lifts: dict[float, str]
    guidances: tuple[float | None, ...]


def read(folders: Sequence[Path]) -> Measured:
    """Take runs apart.

    Raises:
        ValueError: no folder, one that holds no run, runs that differ in more than prompts and guidances, or no prompt
            that is said to be rare.
    """
    if not folders:
        raise ValueError("give the folders of runs, such as one of menagerie-rare and one of menagerie-common")
    records = tuple(summary.read(folder) for folder in folders)
    free = ("suite", "guidances")
    plans = [{key: value for key, value in record.plan.items() if key not in free} for record in records]
    for folder, plan in zip(folders, plans, strict=True):
        for key in plan:
            if plan[key] != plans[0].get(key):
                raise ValueError(f"{folders[0]} and {folder} differ in {key}; the tables need runs of one plan")
    sides: dict[bool, dict[tuple[str, float | None], Group]] = {True: {}, False: {}}
    for record in records:
        for name, group in record.groups.items():
            for (prompt, seed), line in group.items():
                rare = record.prompts[prompt]["rare"]
                if rare is not None:
                    sides[bool(rare)].setdefault(name, {})[prompt, seed] = line
    if not sides[True]:
        raise ValueError(f"{', '.join(map(str, folders))}: no prompt is said to be rare; the tables are about these")
    lifts = {1.0: UNTOUCHED}
    for method in plans[0]["methods"]:
        settings = method["settings"]
        if (
            settings
            and "rival" not in settings
            and not isinstance(settings["alpha"], list)
            and replace(Spread.from_dict(settings), alpha=1.0) == Spread(alpha=1.0)
        ):
            lifts.setdefault(settings["alpha"], method["name"])
    guidances = dict.fromkeys(guidance for record in records for guidance in record.plan["guidances"])
    return Measured(records, Side(sides[True]), Side(sides[False]), lifts, tuple(guidances))


# ---------------------------------------------------------------- numbers


def _mean(values: Mapping[Key, float]) -> Estimate | None:
    clusters = [prompt for prompt, _ in values]
    return stats.mean(list(values.values()), clusters) if len(set(clusters)) > 1 else None


def _apart(side: Side, method: str, guidance: float | None, metric: str) -> tuple[np.ndarray, list[str]] | None:
    """Paired differences to untouched and their prompts, where there are two prompts or more."""
    first, second = side.values(method, guidance, metric), side.values(UNTOUCHED, guidance, metric)
    keys = [key for key in first if key in second]
    prompts = [prompt for prompt, _ in keys]
    return (np.array([first[key] - second[key] for key in keys]), prompts) if len(set(prompts)) > 1 else None


def preferred(side: Side, method: str, guidance: float | None) -> tuple[str, Estimate] | None:
    """How often a method's picture is preferred to the untouched one of the same noise, and by what it was judged.

    By "preference" where the runs have it: the mean of 1 / (1 + exp(-difference of scores)), which is how PickScore
    says so. Else by "attributes": the share of pairs in which it shows more of what was asked, ties as half.
    """
    for metric in ("preference", "attributes"):
        if found := _apart(side, method, guidance, metric):
            apart, clusters = found
            share = 1 / (1 + np.exp(-apart)) if metric == "preference" else (np.sign(apart) + 1) / 2
            return metric, stats.mean(share, clusters)
    return None


@dataclass(frozen=True)
class Reference:
    """Features of real pictures, [N, D], what makes such features, and in words what they are of."""

    features: np.ndarray
    see: Extractor
    said: str


def reference(measured: Measured, real: Path | None = None, features: str | None = None) -> Reference | None:
    """Real pictures of common prompts: in the folder `real`, or drawn by the Menagerie for its own suites, else None.

    Raises:
        ValueError: as `sets.extractor` and `sets.folder_of_pictures`.
    """
    see = sets.extractor(features or f"clip={CLIP}")
    by = "the bundled CLIP" if features is None else features
    if real is not None:
        images = sets.folder_of_pictures(real)
        return Reference(see(images), see, f"{len(images)} pictures in {real}, seen by {by}")
    drawn = {record.plan["suite"]["digest"]: record for record in measured.records if _is_common(record)}
    images = [image for record in drawn.values() for image in sets.renders(_things(record))]
    if not images:
        return None
    return Reference(see(images), see, f"{len(images)} drawings of the world, {sets.RENDERS} a prompt, seen by {by}")


def _is_common(record: Record) -> bool:
    return bool(record.plan["suite"]["name"] == "menagerie-common")


def _things(record: Record) -> list[Mapping[str, str]]:
    """What the Menagerie prompts of a run show."""
    from ..prompts import load

    both = [load(record.plan["suite"]["name"], split=split) for split in ("report", "tune")]
    known = {prompt.id: prompt.meta for suite in both for prompt in suite.prompts}
    return [known[name] for name in record.prompts]


def distances(measured: Measured, real: Reference, guidance: float | None) -> dict[float, Distance]:
    """From the real pictures to those of common prompts, by alpha."""
    see = real.see
    found: dict[float, Distance] = {}
    plain: dict[Key, np.ndarray] = {}
    for alpha, method in sorted(measured.lifts.items()):
        drawn = _pictures(measured, method, guidance)
        if len({prompt for prompt, _ in drawn}) < 3:  # too few to leave one out
            continue
        rows = dict(zip(drawn, see(list(drawn.values())), strict=True))
        plain = plain or (rows if method == UNTOUCHED else {})
        keys = [key for key in rows if key in plain] if method != UNTOUCHED and plain else list(rows)
        other = np.stack([plain[key] for key in keys]) if method != UNTOUCHED and plain else None
        found[alpha] = sets.distance(real.features, np.stack([rows[key] for key in keys]), [k[0] for k in keys], other)
    return found


def _pictures(measured: Measured, method: str, guidance: float | None) -> dict[Key, Any]:
    from PIL import Image

    from .runs import Unit

    found = {}
    for record in measured.records:
        for prompt, seed in record.groups.get((method, guidance), {}):
            path = record.folder / Unit(method, guidance, prompt, seed).path
            if (prompt, seed) in measured.common.groups.get((method, guidance), {}) and path.is_file():
                with Image.open(path) as image:
                    found[prompt, seed] = image.convert("RGB")
    return found


# ---------------------------------------------------------------- tables


def tables(measured: Measured, guidance: float | None, real: Reference | None = None) -> list[Table]:
    """The three tables at one guidance; without real pictures the distance is left out."""
    return [
        _methods(measured, guidance),
        _tasks(measured, guidance),
        _alphas(measured, guidance, distances(measured, real, guidance) if real else {}),
    ]


def _said(value: Estimate | None, spec: str = ".3f") -> str:
    return "not measured" if value is None else f"{value:{spec}}"


def _percent(value: Estimate | None) -> str:
    if value is None:
        return "not measured"
    return f"{100 * value.value:+.1f}% [{100 * value.low:+.1f}%, {100 * value.high:+.1f}%]"


def _methods(measured: Measured, guidance: float | None) -> Table:
    default = measured.lifts.get(DEFAULT_ALPHA)
    rows: list[tuple[str, ...]] = []
    notes: list[str] = []
    planned = measured.records[0].plan["methods"]
    rivals = {(m["settings"] or {}).get("rival"): m["name"] for m in reversed(planned)}  # the first of each
    for name, (clip_t, cost) in _METHODS.items():
        method = {"untouched": UNTOUCHED, "lift": default}.get(name) or rivals.get(_RIVALS.get(name))
        if method is None:
            add = f"not in these runs: --method {_RIVALS.get(name, 'lift')}"
            rows.append((name, add, *("",) * 3, clip_t, cost))
            continue
        values = measured.rare.values(method, guidance, "clip_t")
        success = measured.rare.values(method, guidance, "success")
        if method == UNTOUCHED:
            liked, seconds = "0.5", "0%"
        else:
            judged = preferred(measured.rare, method, guidance)
            liked = "not measured" if judged is None else f"{judged[1]:.3f}"
            seconds = "see below"
            if judged:
                notes.append(
                    "Preferred: how often the picture of the same noise is the better one, by the "
                    + ("preference model." if judged[0] == "preference" else "share of attributes seen; ties are half.")
                )
            notes += _about(measured.rare, method, guidance, name)
            if name in _RIVALS:
                name += f", `{method}`"
        rows.append((name, _said(_mean(values)), _said(_mean(success)), liked, seconds, clip_t, cost))
    notes.append(
        "Extra time: a run draws one method after the other, so what else the machine does would be in it; "
        "`benchmarks/overhead.py` takes turns, and docs/overhead.md holds what it found."
    )
    head = ("method", "CLIP-T, rare", "success, rare", "preferred to untouched", "extra time")
    return Table("Methods", (*head, "CLIP-T, published", "cost, published"), rows, [*dict.fromkeys(notes)])


def _about(side: Side, method: str, guidance: float | None, called: str) -> list[str]:
    said = []
    for metric, name in (("clip_t", "CLIP-T"), ("success", "success")):
        if found := _apart(side, method, guidance, metric):
            said.append(
                f"{name}, {called} minus untouched: {stats.mean(*found):+.3f}; a repeat would find "
                f"{stats.detectable(*found):.3f} four times in five."
            )
    return said


def _tasks(measured: Measured, guidance: float | None) -> Table:
    rows: list[tuple[str, ...]] = []
    notes = ["Gain: the paired difference of CLIP-T over the untouched mean, which is taken as exact."]
    method = measured.lifts.get(DEFAULT_ALPHA)
    for task, gain in _TASKS.items():
        if task != "image":
            rows.append((task, NOT_BUILT, NOT_BUILT, NOT_BUILT, gain))
            continue
        base = measured.rare.values(UNTOUCHED, guidance, "clip_t")
        lifted = measured.rare.values(method, guidance, "clip_t") if method else {}
        plain = _mean(base)
        found = _apart(measured.rare, method, guidance, "clip_t") if method else None
        relative = None
        if found and plain and plain.value:
            relative = stats.mean(found[0] / plain.value, found[1])
            least = stats.detectable(*found) / plain.value
            notes.append(f"A repeat would find a gain of {least:.1%} four times in five.")
        rows.append((task, _said(plain), _said(_mean(lifted)), _percent(relative), gain))
    return Table("Tasks", ("task", "untouched", "lifted", "gain", "gain, published"), rows, notes)


def _alphas(measured: Measured, guidance: float | None, far: Mapping[float, Distance]) -> Table:
    rows: list[tuple[str, ...]] = []
    kinds = {found.metric for found in far.values()}
    for alpha in ALPHAS:
        method = measured.lifts.get(alpha)
        cells = [f"{alpha:g}"]
        for side, metric in (
            (measured.rare, "clip_t"),
            (measured.common, "clip_t"),
            (measured.rare, "success"),
            (measured.common, "success"),
        ):
            cells.append(_said(_mean(side.values(method, guidance, metric)) if method else None))
        cells.append(_far(far[alpha]) if alpha in far else "not measured")
        rows.append((*cells, *_ALPHA[alpha]))
    distance = {frozenset({"fid"}): "FID", frozenset({"kid"}): "KID x 1000"}.get(frozenset(kinds), "FID or KID")
    head = ("alpha", "CLIP-T, rare", "CLIP-T, common", "success, rare", "success, common", f"{distance}, common")
    notes = ["alpha 1 is the untouched pipeline, bit for bit."]
    widest = [
        stats.detectable(*found)
        for alpha, method in measured.lifts.items()
        if alpha != 1 and (found := _apart(measured.rare, method, guidance, "clip_t"))
    ]
    if widest:
        notes.append(
            f"A difference of {max(widest):.3f} of CLIP-T, rare, to alpha 1 would be found four times in five at every "
            "alpha; smaller ones may be there unseen."
        )
    if "kid" in kinds:
        notes.append(
            "KID instead of FID, which needs 2,000 pictures a side. The second interval is that of the paired "
            "difference to alpha 1; below 0 is nearer to the real pictures. Of CLIP it sees unit vectors times sqrt(D)."
        )
    published = ("CLIP-T rare", "CLIP-T common", "FID")
    return Table("Alpha", (*head, *(f"{name}, published" for name in published)), rows, notes)


def _far(found: Distance) -> str:
    if found.metric == "fid":
        return f"{found.value.value:.2f}"

    def thousand(value: Estimate, spec: str) -> str:
        return format(stats.Estimate(*(1000 * v for v in (value.value, value.low, value.high))), spec)

    apart = "" if found.difference is None else f"; {thousand(found.difference, '+.1f')}"
    return thousand(found.value, ".1f") + apart


def markdown(found: Iterable[Table]) -> str:
    """The tables under their titles, and under each its notes."""
    parts = []
    for table in found:
        lines = [table.head, ("---",) * len(table.head), *table.rows]
        shown = "".join(f"| {' | '.join(line)} |\n" for line in lines)
        parts.append(f"### {table.title}\n\n{shown}\n{''.join(f'- {note}{chr(10)}' for note in table.notes)}")
    return "\n".join(parts)


def report(measured: Measured, real: Reference | None = None) -> str:
    """All tables at every guidance of the runs, as Markdown."""
    plan = measured.records[0].plan
    counts = {record.plan["suite"]["name"]: record.plan["suite"]["n"] for record in measured.records}
    suites = ", ".join(f"{name} ({n} prompts)" for name, n in counts.items())
    head = (
        f"Model {plan['model']}; {suites}; {len(plan['seeds'])} seed{'s' * (len(plan['seeds']) > 1)} a prompt, the "
        "same noise for every method. Intervals are of 95% and resample prompts."
        f"{f' Real pictures: {real.said}.' if real else ''}\n\n"
        f'Columns that end in "published": {PUBLISHED}. Rows that are {NOT_BUILT} say so.\n'
    )
    for record in measured.records:
        made = record.manifest.get("made", {})
        head += f"\n{record.folder.name}: begun {made.get('at')} by rarelift {made.get('rarelift')}"
        head += f", commit {made['commit']}.\n" if made.get("commit") else ".\n"
    missing = sum(record.total - record.made for record in measured.records)
    if missing:
        head += f"\nUnfinished: {missing} pictures are missing; the commands above draw them.\n"
    title = f"# The paper's three tables, on {plan['model']}\n"
    commands = "".join(f"    {summary.command(record)[0]}\n" for record in measured.records)
    again = " ".join(record.folder.name for record in measured.records)
    parts = [title, f"{commands}    rarelift report paper {again}\n", head]
    for guidance in measured.guidances:
        parts.append(f"## guidance_scale {summary.guidance(guidance)}\n")
        parts.append(markdown(tables(measured, guidance, real)))
    return "\n".join(parts)


def figures(measured: Measured) -> dict[str, str]:
    """SVG files by name: success against alpha at every guidance, and rare against common success of every method."""
    from . import plots

    found = {}
    sides = {"rare": (measured.rare, 1), "common": (measured.common, 0)}
    for guidance in measured.guidances:
        lines = []
        for name, (side, series) in sides.items():
            means = {a: _mean(side.values(m, guidance, "success")) for a, m in sorted(measured.lifts.items())}
            known = {alpha: value for alpha, value in means.items() if value is not None}
            if len(known) > 1:
                lines.append(plots.Line(f"{name} prompts", series, tuple(known), tuple(known.values())))
        if lines:
            svg = plots.by_guidance(lines, "alpha", axis="alpha", value="success", legend=True)
            found[f"alpha-g{summary.guidance(guidance)}"] = plots.standalone(svg)
    curves = []
    for i, (_, method) in enumerate(sorted(measured.lifts.items())):
        points = {
            g: (up, along)
            for g in measured.guidances
            if (up := _mean(measured.rare.values(method, g, "success")))
            and (along := _mean(measured.common.values(method, g, "success")))
        }
        if points:
            rare, common = zip(*points.values(), strict=True)
            curves.append(plots.Curve(method, i, tuple(points), rare, common))
    if curves and len(measured.guidances) > 1:
        found["curves"] = plots.standalone(plots.rare_against_common(curves, "success", "curves", legend=True))
    return found
