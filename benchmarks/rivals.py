"""Every method side by side on the bundled model: rare success, common success, CLIP-T, KID, time and memory.

    python benchmarks/rivals.py tune runs/rivals      draw the search on the tuning prompts
    python benchmarks/rivals.py report runs/rivals    draw what it chose on the reporting prompts, guidance swept
    python benchmarks/rivals.py cost                  time and memory of each beside the untouched pipeline
    python benchmarks/rivals.py memory                memory alone; the times stay
    python benchmarks/rivals.py table                 docs/rivals.md from the records, nothing is drawn

`tune` and `report` are runs of `rarelift bench`, which the folders hold and a second start goes on with; one run for
each suite and guidance, so that `--jobs` of them can go on at once. `--batch-size` and `--dtype` go to the bench.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from measure import RESULTS, table, thing_in, versions, write_section
from overhead import PROCESSES, alternate, machine, peak_resident, ratio_of
from rarelift import pipelines, prompts
from rarelift.bench import drawing, plots, sets, stats, summary
from rarelift.bench.runs import LIFT, MANIFEST, UNTOUCHED, Method
from rarelift.bench.stats import Estimate, Verdicts
from rarelift.menagerie import CLIP
from rarelift.rivals.base import Rival

PAGE = Path(__file__).parents[1] / "docs" / "rivals.md"
FILE, COSTS = RESULTS / "rivals.jsonl", RESULTS / "rivals-cost.jsonl"
SUITES = {"rare": "menagerie-rare", "common": "menagerie-common"}
GUIDANCES = {"tune": (1.0, 2.0, 5.0), "report": (1.0, 2.0, 3.0, 5.0)}
PROMPTS, SEEDS = {"tune": 128, "report": 512}, {"tune": 1, "report": 2}
MARGIN = 0.01
CHEAP = 1.05  # of the untouched time: what costs less is as cheap as a lift

SEARCH: dict[str, tuple[str, ...]] = {
    LIFT: ("alpha=1.1", "alpha=1.2", "", "alpha=2", "tokens=content", "alpha=2,tokens=content", "alpha=0.8"),
    "cfg-zero": ("zero_steps=0", "zero_steps=1"),
    "encoder-spread": ("alpha=1.2", "", "alpha=2", "branch=both"),
    "taca": ("", "threshold=900", "threshold=500", "gamma=1.1,threshold=0", "gamma=1.4,threshold=900"),
    "rewrite": ("",),
    "rare-to-frequent": (
        *("mapping=menagerie,stop=0.1", "mapping=menagerie,stop=0.2", "mapping=menagerie"),
        *("mapping=menagerie-animal,stop=0.2", "mapping=menagerie-animal"),
    ),
    "word-weights": ("weight=1.1", "", "weight=1.5"),
    "reinject": ("weight=0.05", "", "weight=0.3", "match=true", "match=true,weight=0.3"),
    "double-text": ("", "factor=1.5", "blocks=3", "blocks=1-3,factor=1.5"),
    "skip-layers": ("scale=1", "", "stop=0.5"),
    "perturbed-attention": ("scale=0.5", "scale=1", "", "scale=1,blocks=2"),
    "attend-excite": ("scale=5,refinements=0", "scale=20,refinements=0", "scale=20,refinements=5"),
}
"""What is tried of each method, on the tuning prompts alone; those that cost most stand last."""
SLOW = ("attend-excite",)


def spelled(name: str, settings: str) -> str:
    return f"{name}:{settings}" if settings else name


def name_of(method: str) -> str:
    return method.partition(":")[0]


def drawn(
    stage: str,
    methods: Sequence[str],
    guidances: Sequence[float],
    folder: Path,
    jobs: int,
    further: Sequence[str],
    seconds: float | None,
) -> None:
    """Draw methods, by one bench for each suite and guidance; the slow ones apart, so that nobody waits for them.

    After `seconds` all are stopped, and the same command goes on with them.
    """
    slow = [method for method in methods if name_of(method) in SLOW]
    quick = [method for method in methods if method not in slow]
    commands = []
    for kind, chosen in (("quick", quick), ("slow", slow)):
        for guidance in guidances if chosen else ():
            for side, suite in SUITES.items():
                run = folder / stage / f"{side}-g{guidance:g}-{kind}"
                command = [sys.executable, "-m", "rarelift.cli", "bench", str(run), "--suite", suite]
                command += ["--split", stage, "--prompts", str(PROMPTS[stage]), "--seeds", str(SEEDS[stage])]
                command += ["--guidance", f"{guidance:g}", *further]
                commands.append([*command, *(word for method in chosen for word in ("--method", method))])
    threads = max(1, (os.cpu_count() or 1) // jobs)
    end = math.inf if seconds is None else time.monotonic() + seconds
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(commands), desc=stage, unit="run") as bar:

        def go(command: list[str]) -> None:
            left = end - time.monotonic()
            if left > 0:
                environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
                limit = None if math.isinf(left) else left
                try:
                    done = subprocess.run(
                        command, env=environment, capture_output=True, text=True, check=False, timeout=limit
                    )
                except subprocess.TimeoutExpired:
                    return
                if done.returncode:
                    tqdm.write(f"{' '.join(command)}\n{done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                    return
            bar.update()

        list(pool.map(go, commands))


def collected(stage: str, folder: Path) -> list[dict[str, Any]]:
    """A record for each method, guidance and side: every picture's verdict, and the numbers of all of them."""
    found = []
    groups: dict[tuple[str, str, float | None], summary.Group] = {}
    records = [summary.read(run) for run in sorted((folder / stage).iterdir()) if (run / MANIFEST).is_file()]
    for record in records:
        side = next(side for side, suite in SUITES.items() if suite == record.plan["suite"]["name"])
        groups |= {(side, *key): group for key, group in record.groups.items()}
    for (side, method, guidance), group in groups.items():
        keys = [(p.id, seed) for seed in range(SEEDS[stage]) for p in suite_of(stage, side).prompts]
        if not all(key in group for key in keys):
            print(f"left out, not drawn to the end: {method} at guidance {guidance} on {side} prompts")
            continue
        lines, base = [group[key] for key in keys], groups.get((side, UNTOUCHED, guidance), {})
        clip = [line["scores"].get("clip_t", np.nan) for line in lines]
        before = [base[key]["scores"].get("clip_t", np.nan) for key in keys if key in base]
        ids = [prompt for prompt, _ in keys]
        found.append(
            {
                "stage": stage,
                "side": side,
                "method": method,
                "guidance": guidance,
                "right": "".join(str(int(line["scores"].get("success", 0))) for line in lines),
                "failed": sum("failed" in line for line in lines),
                "clip_t": told(stats.mean(clip, ids)),
                "clip_t_difference": told(stats.difference(clip, before, ids))
                if method != UNTOUCHED and len(before) == len(clip)
                else None,
            }
        )
    about = {
        "about": stage,
        "suites": {record.plan["suite"]["name"]: record.plan["suite"] for record in records},
        "call": {key: records[0].plan[key] for key in ("model", "batch_size", "dtype", "call")},
        "made": records[0].manifest["made"],
        "versions": versions(),
    }
    common = [record for record in records if record.plan["suite"]["name"] == SUITES["common"]]
    if stage == "report":
        for row, distance in zip(found, kids(found, common), strict=True):
            row |= distance
    return [about, *found]


def kids(rows: Sequence[Mapping[str, Any]], common: Sequence[summary.Record]) -> Iterator[dict[str, Any]]:
    """KID of the common pictures of each row from drawings of the world, and its difference to untouched."""
    suite = suite_of("report", "common")
    see = sets.extractor(f"clip={CLIP}")
    real = see(sets.renders([p.meta for p in suite.prompts]))
    folders = {(name, guidance): record.folder for record in common for name, guidance in record.groups}
    keys = [(p.id, seed) for seed in range(SEEDS["report"]) for p in suite.prompts]
    ids = [prompt for prompt, _ in keys]
    kept: dict[float, np.ndarray] = {}
    # untouched first at each guidance: the others are held against it
    order = sorted(range(len(rows)), key=lambda i: rows[i]["method"] != UNTOUCHED)
    made: dict[int, dict[str, Any]] = {}
    for i in tqdm(order, desc="KID"):
        row = rows[i]
        made[i] = {}
        if row["side"] == "common" and not row["failed"]:
            features = see(list(pictures(folders[row["method"], row["guidance"]], row, keys)))
            if row["method"] == UNTOUCHED:
                kept[row["guidance"]] = features
            far = sets.kid(real, features, ids, None if row["method"] == UNTOUCHED else kept.get(row["guidance"]))
            made[i] = {"kid": told(far.value), "kid_difference": far.difference and told(far.difference)}
    yield from (made[i] for i in range(len(rows)))


def pictures(folder: Path, row: Mapping[str, Any], keys: Sequence[tuple[str, int]]) -> Iterator[Any]:
    from PIL import Image

    from rarelift.bench.runs import Unit

    for prompt, seed in keys:
        with Image.open(folder / Unit(row["method"], row["guidance"], prompt, seed).path) as image:
            yield image.convert("RGB")


@cache
def suite_of(stage: str, side: str) -> prompts.Suite:
    return prompts.load(SUITES[side], limit=PROMPTS[stage], split=stage)


def told(value: Estimate) -> list[float]:
    return [round(float(number), 6) for number in (value.value, value.low, value.high)]


# ---------------------------------------------------------------- what the records say


def verdicts(rows: Sequence[Mapping[str, Any]], stage: str, method: str) -> list[Verdicts]:
    """One method's curve: its verdicts at each guidance."""
    mine = {(r["side"], r["guidance"]): r["right"] for r in rows if r.get("stage") == stage and r["method"] == method}
    found = []
    for guidance in dict.fromkeys(guidance for _, guidance in mine):
        sides = [np.array(list(mine[side, guidance]), float) for side in SUITES]
        ids = [[thing_in(p) for p in suite_of(stage, side).prompts] * SEEDS[stage] for side in SUITES]
        found.append(Verdicts(guidance, sides[0], ids[0], sides[1], ids[1]))
    return found


def complete(rows: Sequence[Mapping[str, Any]], stage: str, guidances: Sequence[float]) -> list[str]:
    """The methods that were drawn at each of these guidances, for both sides."""
    found: dict[str, int] = {}
    for row in rows:
        if row.get("stage") == stage and row["guidance"] in guidances:
            found[row["method"]] = found.get(row["method"], 0) + 1
    return [method for method, count in found.items() if count == len(SUITES) * len(guidances)]


def chosen(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """By the name of a method, the settings with which it does best on the tuning prompts.

    As `stats.at_equal_common` chooses: the highest rare success, at any guidance, where common success is at most
    `MARGIN` below that of the untouched model at its best guidance; where that is nowhere so, the highest sum of both.
    """
    base = verdicts(rows, "tune", UNTOUCHED)
    bar = max(base, key=lambda v: np.mean(v.rare) + np.mean(v.common))
    least = np.mean(bar.common) - MARGIN - 1e-12

    def worth(method: str) -> tuple[bool, float]:
        curve = [(float(np.mean(v.rare)), float(np.mean(v.common))) for v in verdicts(rows, "tune", method)]
        kept = [rare for rare, common in curve if common >= least]
        return bool(kept), max(kept, default=max(map(sum, curve)))

    tried = [method for method in complete(rows, "tune", GUIDANCES["tune"]) if method != UNTOUCHED]
    names = dict.fromkeys(map(name_of, tried))
    return {name: max((m for m in tried if name_of(m) == name), key=worth) for name in names}


# ---------------------------------------------------------------- time and memory


def timed(method: str, pairs: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of whole calls, untouched and with a method, in alternation, at the model's own guidance."""
    suite = prompts.load(SUITES["rare"], limit=batch, split="tune")
    model = pipelines.load()
    settings = Method.parse(method).settings
    if isinstance(settings, Rival):
        settings.prepare(model.pipe)

    def call(what: Any) -> Callable[[], float]:
        def go() -> float:
            started = time.perf_counter()
            with drawing.attached(what, model.pipe, suite.prompts, dict(model.defaults)) as asked:
                pipelines.text_to_image(model, asked.texts, range(batch), batch_size=batch, **asked.call)
            return time.perf_counter() - started

        return go

    for warm in (call(None), call(settings)):
        warm()
    return alternate(call(None), call(settings), pairs, method)


def peaks(methods: Sequence[str], batch: int) -> dict[str, tuple[list[int], list[int]]]:
    """For each method, peak resident KiB of processes that draw untouched, and of as many with it; all in turns."""
    found: dict[str, list[int]] = {method: [] for method in (UNTOUCHED, *methods)}
    with tqdm(total=PROCESSES * len(found), desc="memory", unit="process") as bar:
        for _ in range(PROCESSES):
            for method, kept in found.items():
                kept.append(peak_apart(method, batch))
                bar.update()
    return {method: (found[UNTOUCHED], found[method]) for method in methods}


def peak_of(method: str, batch: int) -> int:
    suite = prompts.load(SUITES["rare"], limit=batch, split="tune")
    model = pipelines.load()
    settings = Method.parse(method).settings
    if isinstance(settings, Rival):
        settings.prepare(model.pipe)
    with drawing.attached(settings, model.pipe, suite.prompts, dict(model.defaults)) as asked:
        pipelines.text_to_image(model, asked.texts, range(batch), batch_size=batch, **asked.call)
    return peak_resident()


def peak_apart(method: str, batch: int) -> int:
    """`peak_of` in a fresh process."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(peak_of, (method, batch))


def costs(methods: Mapping[str, str], pairs: int, batch: int) -> Iterator[dict[str, Any]]:
    memory = peaks(list(methods.values()), batch)
    for name, method in methods.items():
        untouched, with_it = timed(method, pairs, batch)
        yield {
            "name": name,
            "method": method,
            "batch": batch,
            "pairs": pairs,
            "untouched": untouched.tolist(),
            "seconds": with_it.tolist(),
            "peaks": memory[method],
            "machine": machine("cpu"),
            "versions": versions(),
        }


# ---------------------------------------------------------------- the tables


def searched(rows: Sequence[Mapping[str, Any]]) -> str:
    """Every setting that was tried, at each guidance, as rare / common success on the tuning prompts."""
    picked = set(chosen(rows).values())
    tried = complete(rows, "tune", GUIDANCES["tune"])
    header = ["method", *(f"guidance {g:g}" for g in GUIDANCES["tune"])]
    body = []
    for method in tried:
        curve = {v.guidance: v for v in verdicts(rows, "tune", method)}
        cells = [f"{np.mean(curve[g].rare):.3f} / {np.mean(curve[g].common):.3f}" for g in GUIDANCES["tune"]]
        body.append([f"**`{method}`**" if method in picked else f"`{method}`", *cells])
    return table(header, body)


def compared(rows: Sequence[Mapping[str, Any]], guidance: float) -> str:
    """The methods at one guidance."""
    mine = {(r["side"], r["method"]): r for r in rows if r.get("stage") == "report" and r["guidance"] == guidance}
    methods = complete(rows, "report", [guidance])
    base = next(v for v in verdicts(rows, "report", UNTOUCHED) if v.guidance == guidance)
    header = ["method", "rare success", "difference", "common success", "difference", "CLIP-T, rare", "KID x 1000"]
    body = []
    for method in methods:
        own = next(v for v in verdicts(rows, "report", method) if v.guidance == guidance)
        cells = [f"`{method}`"]
        for now, before, ids in (
            (own.rare, base.rare, own.rare_prompts),
            (own.common, base.common, own.common_prompts),
        ):
            cells.append(f"{stats.mean(now, ids):.3f}")
            cells.append("" if method == UNTOUCHED else f"{stats.difference(now, before, ids):+.3f}")
        clip = Estimate(*mine["rare", method]["clip_t"])
        far = mine["common", method].get("kid")
        cells += [f"{clip:.3f}", f"{Estimate(*(1000 * x for x in far)):.1f}" if far else ""]
        body.append(cells)
    return table(header, body)


def equal_common(rows: Sequence[Mapping[str, Any]], spent: Sequence[Mapping[str, Any]]) -> str:
    """Each method at the guidance that tuning chose, against untouched at its own: the number to compare methods by."""
    time_of = {row["name"]: ratio_of(row["untouched"], row["seconds"]) for row in spent}
    memory_of = {row["name"]: ratio_of(*row["peaks"]) for row in spent}
    header = ["method", "guidance", "rare success", "to untouched", "common, to untouched", "time", "memory"]
    body = []
    for name, method in chosen(rows).items():
        if method not in complete(rows, "report", GUIDANCES["tune"][1:]):
            continue
        found = stats.at_equal_common(
            verdicts(rows, "tune", UNTOUCHED),
            verdicts(rows, "tune", method),
            verdicts(rows, "report", UNTOUCHED),
            verdicts(rows, "report", method),
            margin=MARGIN,
        )
        took = f"{time_of[name]:.3f}" if name in time_of else "not measured"
        held = f"{memory_of[name]:.3f}" if name in memory_of else ""
        if found is None:
            body.append([f"`{method}`", "no guidance keeps common success", "", "", "", took, held])
            continue
        body.append(
            [
                f"`{method}`",
                f"{found.guidance:g}",
                f"{found.rare:.3f}",
                f"{found.difference:+.3f}",
                f"{found.common_difference:+.3f}",
                took,
                held,
            ]
        )
    return table(header, body)


def against_lift(rows: Sequence[Mapping[str, Any]], spent: Sequence[Mapping[str, Any]]) -> str:
    """The lift against each rival that costs less than 5% more, where tuning keeps the rival's common success."""
    picked = chosen(rows)
    lift = picked[LIFT]
    body = []
    for row in spent:
        if row["name"] == LIFT or picked.get(row["name"]) not in complete(rows, "report", GUIDANCES["tune"][1:]):
            continue
        if ratio_of(row["untouched"], row["seconds"]).value >= CHEAP:
            continue
        found = stats.at_equal_common(
            verdicts(rows, "tune", picked[row["name"]]),
            verdicts(rows, "tune", lift),
            verdicts(rows, "report", picked[row["name"]]),
            verdicts(rows, "report", lift),
            margin=MARGIN,
        )
        if found is None:
            body.append([f"`{picked[row['name']]}`", "the lift keeps common success at no guidance", "", ""])
            continue
        body.append(
            [
                f"`{picked[row['name']]}`, guidance {found.untouched_guidance:g}",
                f"{found.guidance:g}",
                f"{found.difference:+.3f}",
                f"{found.common_difference:+.3f}",
            ]
        )
    return table([f"`{lift}` against", "its guidance", "rare", "common"], body)


FIGURES = {
    "text": ("encoder-spread", "taca", "reinject", "double-text"),
    "guidance": ("cfg-zero", "skip-layers", "perturbed-attention"),
    "words": ("word-weights", "rewrite", "rare-to-frequent", "attend-excite"),
}
"""Which methods are in which figure, beside the untouched pipeline and the lift."""


def figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """SVG files by name: rare against common success, a curve over guidance for each method."""
    picked = chosen(rows)
    found = {}
    for figure, names in FIGURES.items():
        curves: list[plots.Curve] = []
        methods = [UNTOUCHED, *(picked[name] for name in (LIFT, *names) if name in picked)]
        for method in methods:
            points = stats.curve(whole) if (whole := verdicts(rows, "report", method)) else []
            if points:
                guidances, rare, common = zip(*((p.guidance, p.rare, p.common) for p in points), strict=True)
                curves.append(plots.Curve(name_of(method), len(curves), guidances, rare, common))
        svg = plots.rare_against_common(curves, "success", f"rivals-{figure}", legend=True)
        found[figure] = plots.standalone(svg)
    return found


def cell(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a row is of; a later one takes its place."""
    keys = ("stage", "side", "method", "guidance")
    return ("about", row["about"]) if "about" in row else tuple(row[key] for key in keys)


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def keep(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def tables() -> None:
    rows, spent = read(FILE), read(COSTS)
    write_section(PAGE, "search", searched(rows))
    if any(row.get("stage") == "report" for row in rows):
        write_section(PAGE, "equal", equal_common(rows, spent))
        write_section(PAGE, "against", against_lift(rows, spent))
        parts = [f"### guidance_scale {g:g}\n\n{compared(rows, g)}" for g in GUIDANCES["report"]]
        write_section(PAGE, "methods", "\n\n".join(parts))
        for name, svg in figures(rows).items():
            PAGE.with_name(f"rivals-{name}.svg").write_text(svg)
    print(PAGE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tune", "report", "cost", "memory", "table"])
    parser.add_argument("folder", nargs="?", type=Path, help="of the runs, for tune and report")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--seconds", type=float, help="stop drawing after these, and take what is whole")
    parser.add_argument("--skip", nargs="*", default=[], help="names of methods to leave out")
    parser.add_argument("--only", nargs="*", help="names of methods to draw; the records of the others stay")
    parser.add_argument("--guidance", nargs="*", type=float, help="of these alone")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--pairs", type=int, default=12, help="for cost: calls of each side")
    args = parser.parse_args()
    if args.what in ("tune", "report") and args.folder is None:
        parser.error(f"{args.what} needs a folder for its runs")
    rows = read(FILE)
    further = ["--batch-size", str(args.batch_size), "--dtype", args.dtype]
    if args.what == "tune":
        methods = [spelled(name, settings) for name, tried in SEARCH.items() for settings in tried]
    elif args.what == "report":
        methods = list(chosen(rows).values())
    if args.what in ("tune", "report"):
        methods = [method for method in methods if name_of(method) not in args.skip]
        methods = [method for method in methods if args.only is None or name_of(method) in args.only]
        if args.only is None:
            methods = [UNTOUCHED, *methods]
        drawn(args.what, methods, args.guidance or GUIDANCES[args.what], args.folder, args.jobs, further, args.seconds)
        fresh = collected(args.what, args.folder)
        if args.only is None:
            rest = [row for row in rows if args.what not in (row.get("stage"), row.get("about", "").split(":")[0])]
        else:
            fresh[0]["about"] += f": {' '.join(args.only)}"
            anew = set(map(cell, fresh))
            rest = [row for row in rows if cell(row) not in anew]
        keep(FILE, [*rest, *fresh])
        tables()
    elif args.what == "cost":
        picked = chosen(rows)
        each = {name: picked.get(name, spelled(name, tried[0])) for name, tried in SEARCH.items()}
        keep(COSTS, list(costs(each, args.pairs, args.batch_size)))
        tables()
    elif args.what == "memory":
        spent = read(COSTS)
        memory = peaks([row["method"] for row in spent], spent[0]["batch"])
        keep(COSTS, [{**row, "peaks": memory[row["method"]], "memory_versions": versions()} for row in spent])
        tables()
    else:
        tables()


if __name__ == "__main__":
    main()
