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
from collections.abc import Iterator
from pathlib import Path

from measure import NOT_RUN, RESULTS, Bench, Cell, Drawing, clusters, lift, table, write_section
from rarelift.bench import stats
from rarelift.menagerie.suite import Suite

ALPHAS = (1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 3.0)
GUIDANCE = (1.0, 1.5, 2.0, 3.0, 5.0)
TOKENS = ("valid", "all", "content")
STEPS = 16
COARSE_STEPS = 8  # half the price; the success of untouched pictures is within 0.025 of that at 16, guidance 1 and 2
BLOCKS = 8  # joint blocks of the bundled model
SUITES: tuple[Suite, ...] = ("rare", "common")
PAGE = Path(__file__).parents[1] / "docs" / "defaults.md"

Lift = tuple[tuple[str, object], ...]


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
    """What is reported at one guidance; chosen on the tune half."""
    alphas = (1.1, 1.2, 1.35, 1.5, 2.0) if guidance <= 2 else (1.2, 1.5)
    return [None, *(lift(alpha=alpha) for alpha in alphas)]


def report(suite: Suite, guidance: float, setting: Lift | None) -> Cell:
    return Cell(suite, "report", 512, 2, guidance, STEPS, setting)


def report_cells() -> list[Cell]:
    return [report(suite, g, s) for g in GUIDANCE for s in report_lifts(g) for suite in SUITES]


# ---------------------------------------------------------------------------------------------- tables


def effect(bench: Bench, cell: Cell) -> str:
    """Difference from the untouched pipeline at the same guidance, paired, with its interval; bold if not zero."""
    if any(c.key not in bench.done for c in (cell, cell.untouched())):
        return NOT_RUN
    off = stats.difference(
        bench.right(cell).all(1).astype(float), bench.right(cell.untouched()).all(1).astype(float), clusters(cell)
    )
    text = f"{off:+.3f}"
    return f"**{text}**" if off.excludes_zero else text


def level(bench: Bench, cell: Cell) -> str:
    if cell.key not in bench.done:
        return NOT_RUN
    return f"{stats.mean(bench.right(cell).all(1).astype(float), clusters(cell))}"


def describe(setting: Lift) -> str:
    return ", ".join(f"{k} {v}" for k, v in setting)


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
        parts.append(f"**{suite}**\n\n" + table(["setting", *(f"guidance {g:g}" for g in GUIDANCE)], rows))
    return "\n\n".join(parts)


def where_table(bench: Bench) -> str:
    rows = []
    for name, setting in where_lifts().items():
        cells = [Cell(suite, "tune", 256, 1, g, COARSE_STEPS, setting) for g in (1.0, 2.0) for suite in SUITES]
        rows.append([name, *(effect(bench, cell) for cell in cells)])
    return table(["alpha 1.5 in", *(f"{s}, guidance {g:g}" for g in (1, 2) for s in SUITES)], rows)


def report_table(bench: Bench) -> str:
    rows = []
    for g in GUIDANCE:
        for setting in report_lifts(g):
            cells = [report(suite, g, setting) for suite in SUITES]
            shown = [level(bench, c) if setting is None else effect(bench, c) for c in cells]
            rows.append([f"{g:g}", "untouched" if setting is None else describe(setting), *shown])
    return table(["guidance_scale", "setting", *SUITES], rows)


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
        cells = {"coarse": coarse_cells, "where": where_cells, "report": report_cells}
        bench.run(cells[args.stage]())
    write_section(PAGE, "coarse", coarse_table(benches["coarse"]))
    write_section(PAGE, "where", where_table(benches["where"]))
    write_section(PAGE, "report", report_table(benches["report"]))


if __name__ == "__main__":
    main()
