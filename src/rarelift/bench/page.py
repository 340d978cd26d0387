"""The report of runs as one HTML file: tables, plots and pictures, without a network.

Everything that a run says, and prompts come from anywhere, is escaped: as text in the page, as JSON in the data that
page.js reads, and page.js makes text of it.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..pictures import check_writable
from . import plots, stats, summary
from .runs import UNTOUCHED, Unit, write
from .summary import guidance as said_guidance

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .summary import Group, Record, Row

PICTURES = 200
"""Pairs per method and guidance that a page holds when nothing else is said."""
_SIDE = 320  # of an embedded picture at most: two side by side on a phone, four on a desk
_HERE = Path(__file__).parent
_MEANS = {
    "success": "1 where the judge sees every attribute of the prompt, else 0",
    "attributes": "share of the prompt's attributes that the judge sees",
    "clip_t": "cosine of picture and prompt by a CLIP model",
}


def build(folders: Sequence[Path | Record], out: Path, *, pictures: int = PICTURES, worst: bool = False) -> None:
    """Write the page of one or more runs, whole or not at all.

    Args:
        folders: of runs, or what `summary.read` has read of them.
        pictures: pairs per method and guidance to embed at most: those of the first prompts, whatever came out.
        worst: embed the worst losses instead, and show them first.

    Raises:
        ValueError: a folder holds no run that can be read, or is given twice; `worst` where nothing can be lost.
        OSError: `out` cannot be written.
        ImportError: matplotlib or scipy is not installed.
    """
    stats.require()
    plots.require()
    paths = [folder if isinstance(folder, Path) else folder.folder for folder in folders]
    if not paths or len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"a report is of one run or more, each given once; got {', '.join(map(str, paths)) or 'none'}")
    if pictures < 0:
        raise ValueError(f"pictures must be at least 0, got {pictures}")
    check_writable(out)
    runs = _named([summary.read(folder) if isinstance(folder, Path) else folder for folder in folders])
    if worst and not any(_differences(run.record) for run in runs):
        raise ValueError("the worst losses need pairs with a metric, with and without a method; these runs have none")
    methods = list(dict.fromkeys(name for run in runs for name in run.record.methods))
    methods.sort(key=lambda name: name != UNTOUCHED)
    data = _data(runs, methods, pictures, worst)
    sections = [_section(run, i, methods) for i, run in enumerate(runs)]
    text = Template(_file("page.html")).substitute(
        title=_e("rarelift: " + ", ".join(dict.fromkeys(run.suite for run in runs))),
        css=_file("page.css"),
        js=_file("page.js"),
        lead="".join(map(_lead, runs)),
        main="\n".join([*_curves(runs, methods), *sections, _browse(data, runs, pictures, worst)]),
        data=_script_safe(data),
        version=_e(__version__),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write(out, text)


@dataclass(frozen=True)
class _Named:
    """A run, its rows, and what the page calls it."""

    name: str
    record: Record
    rows: list[Row]

    @property
    def suite(self) -> str:
        return str(self.record.plan["suite"]["name"])


def _named(records: list[Record]) -> list[_Named]:
    """Called by their suites, and by their folders too where that does not tell them apart."""
    suites = [str(record.plan["suite"]["name"]) for record in records]
    names = [s if suites.count(s) == 1 else f"{s}, {r.folder.name}" for s, r in zip(suites, records, strict=True)]
    again = {name for name in names if names.count(name) > 1}
    names = [f"{name} ({i})" if name in again else name for i, name in enumerate(names, 1)]
    return [_Named(name, record, record.rows) for name, record in zip(names, records, strict=True)]


def _file(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _e(text: object) -> str:
    return html.escape(str(text))


def _script_safe(value: object) -> str:
    """JSON that no browser takes for the end of its script element, or for a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _many(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


# ---------------------------------------------------------------- what was run


def _lead(run: _Named) -> str:
    """A sentence on what was drawn and one on what was found."""
    record, plan = run.record, run.record.plan
    guidances = ", ".join(map(said_guidance, plan["guidances"]))
    said = (
        f"{_many(plan['suite']['n'], 'prompt')} of {run.name}, {_many(len(plan['seeds']), 'seed')} each, by "
        f"{_many(len(record.methods), 'method')} at guidance_scale {guidances}, drawn by {plan['model']} with the "
        f"same noise for every method: {_many(record.made, 'picture')}, {record.failed} of them NaN."
    )
    warn = ""
    if record.made < record.total:
        missing = record.total - record.made
        warn = (
            f'<p class="warn">Unfinished: {missing} of {_many(record.total, "picture")} '
            f"{'is' if missing == 1 else 'are'} missing. The command below, again, draws what is missing.</p>"
        )
    return f"<p>{_e(said)} {_e(_found(run.rows))}</p>{warn}"


def _found(rows: list[Row]) -> str:
    tests = [row for row in rows if row.adjusted is not None]
    if not tests:
        return ""
    held = sum(row.adjusted <= 0.05 for row in tests if row.adjusted is not None)
    return (
        f"Of {_many(len(tests), 'difference')} to untouched that {'was' if len(tests) == 1 else 'were'} tested, "
        f"{held or 'none'} stands at 0.05 after correction."
        if held < 2
        else f"Of {len(tests)} differences to untouched that were tested, {held} stand at 0.05 after correction."
    )


def _facts(run: _Named) -> str:
    record, plan = run.record, run.record.plan
    made, suite = record.manifest.get("made", {}), record.plan["suite"]
    call = ", ".join(f"{key}={value}" for key, value in plan.get("call", {}).items())
    commit, machine = made.get("commit"), made.get("machine", {})
    facts = {
        "Model": plan["model"],
        "Suite": f"{suite['name']}, version {suite.get('version')}, {_many(suite['n'], 'prompt')}",
        "Digest of the prompts": suite.get("digest"),
        "Seeds": ", ".join(map(str, plan["seeds"])),
        "guidance_scale": ", ".join(map(said_guidance, plan["guidances"])),
        **{f"Method {method['name']}": _settings(method["settings"]) for method in plan["methods"]},
        "Arguments of the call": call or "the model's defaults",
        "Metrics": ", ".join(plan.get("metrics", ())) or "none",
        "Pictures": f"{record.made} of {record.total}, {record.failed} NaN, {plan.get('batch_size')} at once",
        "Begun": made.get("at"),
        "rarelift": f"{made.get('rarelift')}, commit {commit}" if commit else made.get("rarelift"),
        "Versions": ", ".join(f"{name} {version}" for name, version in made.get("versions", {}).items()),
        "Machine": ", ".join(f"{key} {value}" for key, value in machine.items()),
    }
    listed = "".join(f"<dt>{_e(name)}</dt><dd>{_e(value)}</dd>" for name, value in facts.items())
    command, besides = summary.command(record)
    note = f'<p class="muted">{_e(besides)}</p>' if besides else ""
    return (
        f"<details><summary>What was run, and how to run it again</summary><dl>{listed}</dl>"
        f"<pre><code>{_e(command)}</code></pre>{note}</details>"
    )


def _settings(settings: dict[str, Any] | None) -> str:
    if settings is None:
        return "nothing is done to the model"
    return ", ".join(f"{key}={json.dumps(value)}" for key, value in settings.items())


# ---------------------------------------------------------------- tables


def _section(run: _Named, index: int, methods: list[str]) -> str:
    parts = [f"<h2>{_e(run.name)}, drawn by {_e(run.record.plan['model'])}</h2>", _facts(run)]
    if run.rows:
        parts += [_plots(run, index, methods), "<h3>Numbers</h3>", *_tables(run.rows, "these tables")]
    else:
        parts.append("<p>No metric has pictures of two prompts or more: there are no tables and no plots.</p>")
    return "\n".join([*parts, _kinds(run.record), _counts(run.record)])


def _tables(rows: list[Row], of: str, *, notes: Sequence[str] | None = None) -> Iterable[str]:
    """A table per metric, and what the columns mean."""
    tested = any(row.difference for row in rows)
    heads = ["guidance", "method", "pictures", "mean [95% interval]"]
    heads += ["minus untouched [95% interval]", "p", "p, Holm", "detectable"] if tested else []
    for metric in dict.fromkeys(row.metric for row in rows):
        means = f" <small>{_e(_MEANS[metric])}</small>" if metric in _MEANS else ""
        lines, last = [], object()
        for row in (row for row in rows if row.metric == metric):
            guidance, method, _, pictures, value, difference, *tests = summary.cells(row)
            stands = row.adjusted is not None and row.adjusted <= 0.05
            shown = f"<strong>{_estimate(difference)}</strong>" if stands else _estimate(difference)
            cells = [pictures, _estimate(value), *([shown, *map(_e, tests)] if tested else [])]
            first = ' class="first"' if row.guidance != last else ""
            lines.append(
                f'<tr{first}><td class="text">{_e(guidance)}</td><th scope="row">{_e(method)}</th>'
                f"{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
            )
            last = row.guidance
        yield _table(f"{_e(metric)}{means}", heads, lines, metric)
    said = [*(summary.notes(rows, of) if notes is None else notes)]
    if any(row.adjusted is not None and row.adjusted <= 0.05 for row in rows):
        said.append("Bold: p after Holm's correction is at most 0.05.")
    if said:
        yield f'<ul class="notes">{"".join(f"<li>{_e(note)}</li>" for note in said)}</ul>'


def _estimate(text: str) -> str:
    """The interval in a smaller hand than the value; a true minus sign."""
    value, _, interval = text.replace("-", "\N{MINUS SIGN}").partition(" ")
    return f"{value} <small>{interval}</small>" if interval else value


def _table(caption: str, heads: Sequence[str], lines: Iterable[str], label: str) -> str:
    """A table that scrolls inside itself where it is wider than the screen; the first two columns are words."""
    cells = "".join(
        f'<th scope="col"{" class=text" if i < 2 else ""}>{_e(head).replace(" [", "<br>[")}</th>'
        for i, head in enumerate(heads)
    )
    return (
        f'<p class="caption">{caption}</p><div class="scroll" role="region" tabindex="0" aria-label="{_e(label)}">'
        f'<table aria-label="{_e(label)}"><thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _kinds(record: Record) -> str:
    if len({prompt["kind"] for prompt in record.prompts.values()}) < 2:
        return ""
    tables = summary.by_kind(record)
    together = [row for rows in tables.values() for row in rows]
    if not together:
        return ""
    parts = ["<h3>By kind of prompt</h3>"]
    for kind, rows in tables.items():
        body = "".join(_tables(rows, "", notes=())) if rows else "<p>Fewer than two prompts have numbers.</p>"
        n = sum(prompt["kind"] == kind for prompt in record.prompts.values())
        parts.append(f"<details><summary>{_e(kind)}, {_many(n, 'prompt')}</summary>{body}</details>")
    notes = summary.notes(together, "the tables of all kinds together")
    return "".join([*parts, f'<ul class="notes">{"".join(f"<li>{_e(note)}</li>" for note in notes)}</ul>'])


# ---------------------------------------------------------------- pairs


def _differences(record: Record) -> dict[tuple[str, float | None, str], list[tuple[float, float]]]:
    """(with the method, untouched) of every pair, by method, guidance and metric; empty ones are left out."""
    found = {}
    for (method, guidance), metric in product(record.groups, record.metrics):
        group, base = record.groups[method, guidance], record.groups.get((UNTOUCHED, guidance), {})
        if method != UNTOUCHED and (pairs := _pairs(group, base, metric)):
            found[method, guidance, metric] = list(pairs.values())
    return found


def _pairs(group: Group, base: Group, metric: str) -> dict[summary.Key, tuple[float, float]]:
    found = {}
    for key in group.keys() & base.keys():
        lifted, plain = summary.number(group[key], metric), summary.number(base[key], metric)
        if lifted is not None and plain is not None:
            found[key] = lifted, plain
    return found


def _binary(records: Iterable[Record], metric: str) -> bool:
    lines = (line for record in records for group in record.groups.values() for line in group.values())
    return {value for line in lines if (value := summary.number(line, metric)) is not None} <= {0.0, 1.0}


def _counts(record: Record) -> str:
    """Wins and losses of all pairs of a run, embedded or not."""
    found = _differences(record)
    parts = []
    for metric in record.metrics:
        binary, lines, last = _binary([record], metric), [], object()
        for guidance, method in product(record.plan["guidances"], record.methods):
            pairs = found.get((method, guidance, metric))
            if not pairs:
                continue
            won, lost = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
            same = [a > 0 for a, b in pairs if a == b]
            numbers = [len(pairs), won, lost, *([sum(same), len(same) - sum(same)] if binary else [len(same)])]
            first = ' class="first"' if guidance != last else ""
            lines.append(
                f'<tr{first}><td class="text">{_e(said_guidance(guidance))}</td><th scope="row">{_e(method)}</th>'
                f"{''.join(f'<td>{number}</td>' for number in numbers)}</tr>"
            )
            last = guidance
        heads = ["guidance", "method", "pairs"]
        heads += ["won", "lost", "both right", "neither right"] if binary else ["higher", "lower", "the same"]
        if lines:
            parts.append(_table(_e(metric), heads, lines, f"pairs, {metric}"))
    if not parts:
        return ""
    said = "The same prompt, seed and noise, with the method and untouched. All pairs of the run are counted here."
    return "".join(["<h3>Wins and losses</h3>", f'<p class="muted">{_e(said)}</p>', *parts])


# ---------------------------------------------------------------- plots


def _legend(names: Iterable[str], methods: list[str]) -> str:
    items = (f"<li>{plots.swatch(_series(name, methods))}{_e(name)}</li>" for name in names)
    return f'<ul class="legend">{"".join(items)}</ul>'


def _series(method: str, methods: list[str]) -> int:
    """The place of its colour: that of the untouched pipeline is its own."""
    return methods.index(method) + (UNTOUCHED not in methods)


def _plots(run: _Named, index: int, methods: list[str]) -> str:
    """Each metric by guidance, and its paired difference."""
    figures = []
    for i, metric in enumerate(dict.fromkeys(row.metric for row in run.rows)):
        rows = [row for row in run.rows if row.metric == metric]
        tested = [row for row in rows if row.difference]
        for rows_, what in ((rows, metric), (tested, f"{metric}, minus untouched")):
            paired = what != metric
            lines = _lines(rows_, methods, paired)
            if not lines:
                continue
            said = "; ".join(
                f"{line.method} "
                + ", ".join(
                    f"{value:{'+' * paired}.3f} at guidance {said_guidance(guidance)}"
                    for guidance, value in zip(line.guidances, line.values, strict=True)
                )
                for line in lines
            )
            svg = plots.by_guidance(lines, f"r{index}m{i}{'d' * paired}", zero=paired)
            figures.append(_figure(svg, what, f"{what} by guidance_scale, with 95% intervals. {said}."))
    names = [name for name in methods if name in run.record.methods]
    return (
        f"<h3>Plots</h3>{_legend(names, methods)}"
        f'<p class="muted">Bars are 95% intervals, point by point.</p><div class="plots">{"".join(figures)}</div>'
    )


def _lines(rows: list[Row], methods: list[str], paired: bool) -> list[plots.Line]:
    lines = []
    for method in methods:
        found = [(r.guidance, r.difference if paired else r.value) for r in rows if r.method == method]
        whole = sorted(
            ((guidance, value) for guidance, value in found if value), key=lambda pair: (pair[0] is None, pair[0] or 0)
        )
        if whole:
            guidances, values = zip(*whole, strict=True)
            lines.append(plots.Line(method, _series(method, methods), guidances, values))
    return lines


def _figure(svg: str, caption: str, alt: str, name: str = "") -> str:
    shown = f' class="{name}"' if name else ""
    labelled = svg.replace('role="presentation"', f'role="img" aria-label="{_e(alt)}"', 1)
    return f"<figure{shown}><figcaption>{_e(caption)}</figcaption>{labelled}</figure>"


def _curves(runs: list[_Named], methods: list[str]) -> Iterable[str]:
    """Rare success against common success, for every two runs that differ in their prompts alone."""
    sides: dict[bool, list[tuple[_Named, list[Row]]]] = {True: [], False: []}
    for run, rare in product(runs, (True, False)):
        names = [name for name, prompt in run.record.prompts.items() if prompt["rare"] is rare]
        whole = len(names) == len(run.record.prompts)
        rows = (run.rows if whole else summary.table(run.record, names)) if names else []
        if rows:
            sides[rare].append((run, rows))
    parts = []
    for i, ((first, first_rows), (second, second_rows)) in enumerate(product(sides[True], sides[False])):
        if drawn := _curve(first, first_rows, second, second_rows, methods, f"c{i}"):
            parts.append(drawn)
    if parts:
        yield "<h2>Rare success against common success</h2>"
        yield from parts


def _curve(
    rare: _Named, rare_rows: list[Row], common: _Named, common_rows: list[Row], methods: list[str], prefix: str
) -> str:
    """The figure, a sentence where two runs cannot be laid over each other, or nothing."""
    title = f"{rare.name} against {common.name}" if rare is not common else rare.name
    for key in ("model", "call"):
        if rare.record.plan.get(key) != common.record.plan.get(key):
            return f"<p>{_e(title)}: no curve, for the two runs differ in their {key}.</p>"
    metrics = [m for m in rare.record.metrics if m in common.record.metrics]
    if not metrics:
        return ""
    metric = "success" if "success" in metrics else metrics[0]
    ours, theirs = ({m["name"]: m["settings"] for m in run.record.plan["methods"]} for run in (rare, common))
    curves = []
    for method in methods:
        if method not in ours or method not in theirs or ours[method] != theirs[method]:
            continue
        up, along = (
            {row.guidance: row.value for row in rows if (row.method, row.metric) == (method, metric)}
            for rows in (rare_rows, common_rows)
        )
        both = sorted(up.keys() & along.keys(), key=lambda g: (g is None, g or 0))
        if both:
            place, points = _series(method, methods), tuple(both)
            rares, commons = tuple(up[g] for g in both), tuple(along[g] for g in both)
            curves.append(plots.Curve(method, place, points, rares, commons))
    if not curves:
        return f"<p>{_e(title)}: no curve, for the two runs share no method with the same settings and guidance.</p>"
    said = "; ".join(
        f"{curve.method} "
        + ", ".join(
            f"at guidance {said_guidance(g)} rare {r.value:.3f} and common {c.value:.3f}"
            for g, r, c in zip(curve.guidances, curve.rare, curve.common, strict=True)
        )
        for curve in curves
    )
    svg = plots.rare_against_common(curves, metric, prefix)
    alt = f"Rare against common {metric}, a point per guidance_scale with both 95% intervals. {said}."
    note = (
        "Each point is a guidance_scale, written beside it; bars are 95% intervals of both, point by point. Up and to "
        "the right is better. The highest point of a curve was found by looking, so it promises too much."
    )
    figure = _figure(svg, title, alt, "wide")
    return f'{_legend([c.method for c in curves], methods)}{figure}<p class="muted">{_e(note)}</p>'


# ---------------------------------------------------------------- pictures

_BROWSE = """<h2>Pictures</h2>
<p id="held">HELD</p>
<noscript><p>Searching the pictures needs JavaScript; all the numbers and plots above do not.</p></noscript>
<div id="browse" hidden>
<div class="controls" role="search">
<label class="search">Search the prompts <input id="search" type="search" autocomplete="off" spellcheck="false"></label>
<label>Run <select id="run"></select></label>
<label>Method <select id="method"></select></label>
<label>guidance_scale <select id="guidance"></select></label>
<label>Kind <select id="kind"></select></label>
<label>Metric <select id="metric"></select></label>
<label>Outcome <select id="outcome"></select></label>
<label>Order <select id="order"></select></label>
</div>
<p id="count" class="muted" aria-live="polite"></p>
<ol id="pairs" class="pairs"></ol>
<p><button id="more" type="button" hidden>Show more</button></p>
<div id="end"></div>
</div>"""


def _browse(data: dict[str, Any], runs: list[_Named], pictures: int, worst: bool) -> str:
    """The controls, and what part of the pictures they reach."""
    held = len(data["pairs"])
    total = sum(len(_keys(run.record, guidance)) for run in runs for guidance in run.record.plan["guidances"])
    few = "the pictures of one prompt, one seed and one guidance_scale, side by side, by every method"
    if not total:
        said = "No picture has been made yet."
    elif held == total:
        said = f"Each of the {_many(total, 'pair')} is here: {few}."
    elif worst:
        said = (
            f"{held} of {_many(total, 'pair')} are in this file, the {pictures} worst at most for each method and "
            "guidance_scale. They show what a method can break, not how often: that is counted above, over all pairs."
        )
    else:
        said = (
            f"{held} of {_many(total, 'pair')} are in this file: {few}, of the first prompts, {pictures} at most for a "
            "method at one guidance_scale, chosen without a look at what came out. Counted above are all pairs."
        )
    lost = sum(not (cell["i"] or cell["nan"]) for pair in data["pairs"] for cell in pair["c"])
    if lost:
        said += f" {_many(lost, 'picture')} could not be read from the folder."
    return _BROWSE.replace("HELD", _e(said))


def _keys(record: Record, guidance: float | None) -> list[summary.Key]:
    """Prompt and seed of what is there at a guidance, prompt by prompt in the order of the suite."""
    there = {key for method in record.methods for key in record.groups.get((method, guidance), ())}
    place = {name: i for i, name in enumerate(record.prompts)}
    return sorted(there, key=lambda key: (place.get(key[0], len(place)), key))


def _chosen(
    record: Record, guidance: float | None, metrics: list[str], pictures: int, worst: bool
) -> list[tuple[summary.Key, list[str]]]:
    """What to embed at a guidance: prompt and seed, and the methods whose pictures are shown."""
    keys = _keys(record, guidance)
    groups = {name: record.groups.get((name, guidance), {}) for name in record.methods}
    if not worst:
        return [(key, [name for name in groups if key in groups[name]]) for key in keys[:pictures]]
    wanted: dict[summary.Key, list[str]] = {}
    for name in (name for name in groups if name != UNTOUCHED):
        pairs = [_pairs(groups[name], groups.get(UNTOUCHED, {}), metric) for metric in metrics]
        rank = {  # by the first metric; what ties there, by the next
            key: [pair[key][0] - pair[key][1] if key in pair else math.inf for pair in pairs]
            for key in keys
            if any(key in pair for pair in pairs)
        }
        for key in sorted(rank, key=rank.__getitem__)[:pictures]:
            wanted.setdefault(key, [UNTOUCHED]).append(name)
    return [(key, wanted[key]) for key in keys if key in wanted]


def _data(runs: list[_Named], methods: list[str], pictures: int, worst: bool) -> dict[str, Any]:
    """What page.js reads: pairs of cells, with names by their place in a list."""
    metrics = list(dict.fromkeys(metric for run in runs for metric in run.record.metrics))
    metrics.sort(key=lambda metric: metric != "success")
    guidances = list(dict.fromkeys(g for run in runs for g in run.record.plan["guidances"]))
    prompts: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    for i, run in enumerate(runs):
        record = run.record
        place = {name: len(prompts) + j for j, name in enumerate(record.prompts)}
        prompts += [{"text": p["text"], "kind": p["kind"], "run": i} for p in record.prompts.values()]
        for guidance in record.plan["guidances"]:
            for (prompt, seed), names in _chosen(record, guidance, metrics, pictures, worst):
                cells = []
                for name in names:
                    line = record.groups[name, guidance][prompt, seed]
                    path = record.folder / Unit(name, guidance, prompt, seed).path
                    numbers = [summary.number(line, metric) for metric in metrics]
                    cells.append(
                        {
                            "m": methods.index(name),
                            "i": None if "failed" in line else _embedded(path),
                            "nan": "failed" in line,
                            "v": [number if number is None else round(number, 6) for number in numbers],
                        }
                    )
                pairs.append({"g": guidances.index(guidance), "p": place[prompt], "s": seed, "c": cells})
    records = [run.record for run in runs]
    return {
        "methods": methods,
        "metrics": [{"name": metric, "binary": _binary(records, metric)} for metric in metrics],
        "guidances": [*map(said_guidance, guidances)],
        "kinds": list(dict.fromkeys(prompt["kind"] for prompt in prompts)),
        "runs": [run.name for run in runs],
        "prompts": prompts,
        "pairs": pairs,
        "worst": worst,
    }


def _embedded(path: Path) -> str | None:
    """A picture as a data URI, smaller where it is large; None where there is none that can be read."""
    from PIL import Image

    out = io.BytesIO()
    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
    except (OSError, SyntaxError, ValueError):  # what Pillow raises at a file that is no picture, or half of one
        return None
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    small.save(out, "WEBP", quality=90)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"
