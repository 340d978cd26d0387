"""What the lift does on Menagerie, setting by setting, and which defaults that supports.

    python benchmarks/defaults.py coarse         the whole grid on the tune half, 128 + 128 prompts
    python benchmarks/defaults.py where          block subsets and parts of the denoising steps, tune half
    python benchmarks/defaults.py report         chosen settings on the report half, 512 + 512 prompts x 2 seeds
    python benchmarks/defaults.py --table        only the tables in docs/defaults.md, from benchmarks/results/

All runs are resumable and share their noise picture by picture. Cells that matter most come first, so the tables
of an unfinished run are those of the settings nearest to the defaults.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from measure import NOT_RUN, RESULTS, Bench, Cell, Drawing, clusters, lift, table, write_section
from rarelift.bench import stats
from rarelift.menagerie.suite import Suite
from rarelift.menagerie.world import ATTRIBUTES

Lift = tuple[tuple[str, object], ...]

ALPHAS = (1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 3.0)
GUIDANCE = (1.0, 1.5, 2.0, 3.0, 5.0)
TOKENS = ("valid", "all", "content")
STEPS = 16
COARSE_STEPS = 8  # half the price; the untouched rows beside those of bars.py, at 16, say what that does
BLOCKS = 8  # joint blocks of the bundled model
BEST_GUIDANCE = 5.0  # of the untouched pipeline, by bars.py on the tune half
DEFAULT: Lift = (("alpha", 1.5),)  # every other setting at its default
SUITES: tuple[Suite, ...] = ("rare", "common")
README = Path(__file__).parents[1] / "README.md"
PAGE = Path(__file__).parents[1] / "docs" / "defaults.md"


def coarse_lifts(guidance: float) -> Iterator[Lift]:
    """Every setting of the grid at one guidance. Without guidance there is one branch, so no choice of it."""
    branches = ("both", "cond") if guidance > 1 else ("both",)
    for carry, tokens, branch, alpha in itertools.product((False, True), TOKENS, branches, ALPHAS):
        yield lift(alpha=alpha, carry=carry, tokens=tokens, branch=branch)


def coarse(suite: Suite, guidance: float, setting: Lift | None) -> Cell:
    return Cell(suite, "tune", 128, 1, guidance, COARSE_STEPS, setting)


def coarse_cells() -> list[Cell]:
    """The grid, nearest to the defaults first."""
    settings = [(g, s) for g in GUIDANCE for s in (None, *coarse_lifts(g))]

    def distance(item: tuple[float, Lift | None]) -> tuple[int, float]:
        guidance, setting = item
        if setting is None:
            return (-1, guidance)
        chosen = dict(setting)
        away = (chosen["carry"] is True) + (chosen["tokens"] != "valid") + (chosen["branch"] != "both")
        return (away, guidance)

    return [coarse(suite, g, s) for g, s in sorted(settings, key=distance) for suite in SUITES]


def where_lifts() -> dict[str, Lift]:
    """Parts of the network and of the denoising steps, each lifted alone at alpha 1.5."""
    third = (BLOCKS + 2) // 3
    parts: dict[str, dict[str, object]] = {
        "all blocks, all steps": {},
        "first block": {"blocks": "0"},
        f"blocks 0-{third - 1}": {"blocks": f"0-{third - 1}"},
        f"blocks {third}-{2 * third - 1}": {"blocks": f"{third}-{2 * third - 1}"},
        f"blocks {2 * third}-{BLOCKS - 1}": {"blocks": f"{2 * third}-{BLOCKS - 1}"},
        "first third of the steps": {"stop": 1 / 3},
        "first half of the steps": {"stop": 0.5},
        "second half of the steps": {"start": 0.5},
        "last third of the steps": {"start": 2 / 3},
    }
    return {name: lift(alpha=1.5, **part) for name, part in parts.items()}


def where_cells() -> list[Cell]:
    settings = [None, *where_lifts().values()]
    return [Cell(suite, "tune", 256, 1, g, COARSE_STEPS, s) for g in (1.0, 2.0) for s in settings for suite in SUITES]


def report_lifts(guidance: float) -> list[Lift | None]:
    """What is reported at one guidance: the default, and where guidance is best the runner-up of the tune half."""
    return [None, DEFAULT, *([lift(alpha=1.35)] if guidance in (2.0, BEST_GUIDANCE) else [])]


def report(suite: Suite, guidance: float, setting: Lift | None, steps: int = STEPS) -> Cell:
    return Cell(suite, "report", 512, 2, guidance, steps, setting)


def report_cells() -> list[Cell]:
    order = (BEST_GUIDANCE, 1.0, 2.0, 3.0, 1.5)  # a run that stops early holds what matters most
    return [report(suite, g, s) for g in order for s in report_lifts(g) for suite in SUITES]


def repeat_cells() -> list[Cell]:
    """What the grid shows most plainly, drawn again as the grid draws it, on the report half."""
    return [report(suite, 2.0, s, COARSE_STEPS) for s in (None, DEFAULT) for suite in SUITES]


# ---------------------------------------------------------------------------------------------- tables


def effect(bench: Bench, *cells: Cell) -> str:
    """Difference from the untouched pipeline at the same guidance, paired, with its interval; bold if not zero.

    Over several cells of one suite it is their mean, resampled by thing, so that a thing's cells stay together.
    """
    return versus(bench, cells, [cell.untouched() for cell in cells])


def versus(bench: Bench, cells: Sequence[Cell], others: Sequence[Cell]) -> str:
    """Difference of paired cells."""
    if any(c.key not in bench.done for c in (*cells, *others)):
        return NOT_RUN
    first, second = (np.concatenate([bench.right(c).all(1) for c in side]).astype(float) for side in (cells, others))
    off = stats.difference(first, second, [name for cell in cells for name in clusters(cell)])
    text = f"{off:+.3f}"
    return f"**{text}**" if off.excludes_zero else text


def level(bench: Bench, cell: Cell) -> str:
    if cell.key not in bench.done:
        return NOT_RUN
    return f"{stats.mean(bench.right(cell).all(1).astype(float), clusters(cell))}"


def describe(setting: Lift) -> str:
    return ", ".join(f"{k} {v}" for k, v in setting)


def shape_table(bench: Bench) -> str:
    """The grid at a glance: each setting's effect, averaged over every guidance above 1."""
    parts = []
    for suite in SUITES:
        rows = []
        for carry, tokens, branch in itertools.product((False, True), TOKENS, ("both", "cond")):
            settings = [lift(alpha=alpha, carry=carry, tokens=tokens, branch=branch) for alpha in ALPHAS]
            shown = [effect(bench, *(coarse(suite, g, setting) for g in GUIDANCE[1:])) for setting in settings]
            rows.append([f"carry {carry}, tokens {tokens}, branch {branch}", *shown])
        parts.append(f"**{suite}**\n\n" + table(["setting", *(f"alpha {alpha:g}" for alpha in ALPHAS)], rows))
    return "\n\n".join(parts)


def coarse_table(bench: Bench) -> str:
    parts = []
    for suite in SUITES:
        rows = [["untouched", *(level(bench, coarse(suite, g, None)) for g in GUIDANCE)]]
        for setting in coarse_lifts(2.0):
            cells = [
                coarse(suite, g, setting if g > 1 else lift(**{**dict(setting), "branch": "both"})) for g in GUIDANCE
            ]
            if dict(setting)["branch"] == "cond":
                shown = ["as both", *(effect(bench, cell) for cell in cells[1:])]
            else:
                shown = [effect(bench, cell) for cell in cells]
            if any(text not in (NOT_RUN, "as both") for text in shown):
                rows.append([describe(setting), *shown])
        body = table(["setting", *(f"guidance {g:g}" for g in GUIDANCE)], rows)
        parts.append(f"<details><summary>{suite}, every cell</summary>\n\n{body}\n\n</details>")
    return "\n\n".join(parts)


def where_table(bench: Bench) -> str:
    rows = []
    for name, setting in where_lifts().items():
        cells = [Cell(suite, "tune", 256, 1, g, COARSE_STEPS, setting) for g in (1.0, 2.0) for suite in SUITES]
        rows.append([name, *(effect(bench, cell) for cell in cells)])
    return table(["alpha 1.5 in", *(f"{s}, guidance {g:g}" for g in (1, 2) for s in SUITES)], rows)


def report_table(bench: Bench) -> str:
    """Levels untouched; lifted, the differences from untouched at the same guidance and at the best one."""
    rows = []
    for g in GUIDANCE:
        for setting in report_lifts(g):
            cells = [report(suite, g, setting) for suite in SUITES]
            best = [report(suite, BEST_GUIDANCE, None) for suite in SUITES]
            same = [level(bench, c) if setting is None else effect(bench, c) for c in cells]
            beside = [versus(bench, [c], [b]) if c != b else "" for c, b in zip(cells, best, strict=True)]
            rows.append([f"{g:g}", "untouched" if setting is None else describe(setting), *same, *beside])
    titles = ["rare", "common", *(f"{suite} against untouched at {BEST_GUIDANCE:g}" for suite in SUITES)]
    return table(["guidance_scale", "setting", *titles], rows)


def result_table(bench: Bench) -> str:
    """The report in short: the default setting at each guidance that was drawn."""
    rows = []
    for g in GUIDANCE:
        cells = [(report(suite, g, None), report(suite, g, DEFAULT)) for suite in SUITES]
        shown = [text for plain, lifted in cells for text in (level(bench, plain), effect(bench, lifted))]
        if NOT_RUN not in shown:
            rows.append([f"{g:g}", *shown])
    alpha = dict(DEFAULT)["alpha"]
    titles = [t for suite in SUITES for t in (f"{suite}, untouched", f"{suite}, alpha {alpha}: difference")]
    return table(["guidance_scale", *titles], rows)


def repeat_table(bench: Bench, grid: Bench) -> str:
    tune = lift(alpha=1.5, branch="both", carry=False, tokens="valid")
    rows = [
        ["tune, 128 x 1", str(COARSE_STEPS), *(effect(grid, coarse(s, 2.0, tune)) for s in SUITES)],
        ["report, 512 x 2", str(COARSE_STEPS), *(effect(bench, report(s, 2.0, DEFAULT, COARSE_STEPS)) for s in SUITES)],
        ["report, 512 x 2", str(STEPS), *(effect(bench, report(s, 2.0, DEFAULT)) for s in SUITES)],
    ]
    return table(["prompts x seeds", "steps", *SUITES], rows)


def attribute_table(bench: Bench) -> str:
    """Which attribute of the rare prompts the default setting changes, by guidance."""
    rows = []
    for g in GUIDANCE:
        lifted, plain = report("rare", g, DEFAULT), report("rare", g, None)
        if any(c.key not in bench.done for c in (lifted, plain)):
            rows.append([f"{g:g}", *[NOT_RUN] * len(ATTRIBUTES)])
            continue
        sides = bench.right(lifted).astype(float), bench.right(plain).astype(float)
        off = [stats.difference(sides[0][:, i], sides[1][:, i], clusters(plain)) for i in range(len(ATTRIBUTES))]
        rows.append([f"{g:g}", *(f"**{e:+.3f}**" if e.excludes_zero else f"{e:+.3f}" for e in off)])
    return table(["guidance_scale", *ATTRIBUTES], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", nargs="?", choices=["coarse", "where", "report"])
    parser.add_argument("--table", action="store_true", help="make the tables, draw nothing")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    args = parser.parse_args()
    if not args.table and args.stage is None:
        parser.error("say which stage to draw, or --table")
    # the parts of the network are a graph each, so `where` would mostly compile
    drawing = Drawing(workers=args.workers, compiled=args.stage != "where")
    benches = {stage: Bench(RESULTS / f"{stage}.jsonl", drawing) for stage in ("coarse", "where", "report")}
    if not args.table:
        bench = benches[args.stage]
        plan = {"coarse": coarse_cells, "where": where_cells, "report": report_cells}
        bench.run(plan[args.stage]())
        if args.stage == "report":
            bench.run(repeat_cells())
    for name, text in sections(benches).items():
        write_section(README if name == "result" else PAGE, name, text)


def sections(benches: Mapping[str, Bench]) -> dict[str, str]:
    """What stands between the markers of the page, and of the README."""
    return {
        "shape": shape_table(benches["coarse"]),
        "coarse": coarse_table(benches["coarse"]),
        "where": where_table(benches["where"]),
        "report": report_table(benches["report"]),
        "result": result_table(benches["report"]),
        "repeat": repeat_table(benches["report"], benches["coarse"]),
        "attributes": attribute_table(benches["report"]),
    }


if __name__ == "__main__":
    main()
