"""Is the bundled model the one the question needs: does it know rare things, and drown them?

    python benchmarks/bars.py            draw, judge, print and write docs/menagerie.md
    python benchmarks/bars.py --table    only from benchmarks/results/bars.jsonl

Guidance is chosen on the tune half; everything else is on the report half.
"""

from __future__ import annotations

import argparse
import os
import random
from pathlib import Path

import numpy as np
import torch

from measure import NOT_RUN, RESULTS, Bench, Cell, Drawing, clusters, folder_of, table, write_section
from rarelift.bench import stats
from rarelift.menagerie.judge import to_pixels
from rarelift.menagerie.suite import Suite
from rarelift.menagerie.world import ATTRIBUTES, draw_thing, render

GUIDANCE = (1.0, 1.5, 2.0, 3.0, 5.0)
STEPS = 16
TUNE = 128
REPORT = 400
SEEDS = 4
DRAWS = 8
PAGE = Path(__file__).parents[1] / "docs" / "menagerie.md"
SUITES: tuple[Suite, ...] = ("common", "rare", "never")


def tuning(suite: Suite, guidance: float) -> Cell:
    return Cell(suite, "tune", TUNE, 1, guidance, STEPS)


def best_guidance(bench: Bench) -> float:
    """The guidance with the highest mean of rare and common success on the tune half."""
    return max(GUIDANCE, key=lambda g: sum(bench.right(tuning(s, g)).all(1).mean() for s in ("common", "rare")))


def report(suite: Suite, guidance: float) -> Cell:
    n = REPORT if suite != "never" else 256
    return Cell(suite, "report", n, DRAWS if suite == "rare" else SEEDS, guidance, STEPS)


def psnr(bench: Bench, n: int = 512) -> float:
    """Reconstruction PSNR of the autoencoder on balanced renders, in dB, mean over pictures, in float32."""
    from diffusers import AutoencoderKL
    from PIL import Image

    rng = random.Random("bars/psnr")
    pixels = to_pixels([Image.fromarray(render(draw_thing(rng, balanced=True), rng)) for _ in range(n)])
    vae = AutoencoderKL.from_pretrained(folder_of(bench.drawing.model) / "vae", torch_dtype=torch.float32)
    with torch.no_grad():
        out = torch.cat(
            [vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1) for x in torch.split(pixels, 64)]
        )
    return float(10 * torch.log10(4 / (out - pixels).square().mean((1, 2, 3))).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="make the tables from the results, draw nothing")
    parser.add_argument("--model", default="menagerie", help="a folder made by `rarelift train`")
    parser.add_argument("--file", type=Path, default=RESULTS / "bars.jsonl")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    args = parser.parse_args()
    bench = Bench(args.file, Drawing(args.model, workers=args.workers))
    if not args.table:
        bench.run(tuning(s, g) for g in GUIDANCE for s in ("common", "rare"))
        best = best_guidance(bench)
        bench.run(report(s, best) for s in SUITES)
    text = render_tables(bench)
    print(text)
    if args.model == "menagerie":
        write_section(PAGE, "bars", text)


def render_tables(bench: Bench) -> str:
    """Everything drawn so far; an unfinished run says so."""
    unfinished = "Not drawn to the end yet; the command goes on where it stopped."
    sweep = [[f"{g:g}", *(share(bench, tuning(s, g)) for s in ("common", "rare"))] for g in GUIDANCE]
    parts = [
        f"The autoencoder alone gives 512 balanced renders back at {psnr(bench):.1f} dB PSNR.",
        f"Every attribute right, tune half, {TUNE} prompts a suite, one seed, by guidance_scale:",
        table(["guidance_scale", "common", "rare"], sweep),
    ]
    if any(NOT_RUN in row for row in sweep):
        return "\n\n".join([*parts, unfinished])
    best = best_guidance(bench)
    rows = [[suite, *report_row(bench, report(suite, best))] for suite in SUITES]
    parts += [
        f"At the best of these, guidance_scale {best:g}, report half; 95% interval clustered by thing:",
        table(["suite", "prompts x seeds", "every attribute right", *ATTRIBUTES], rows),
    ]
    if report("rare", best).key not in bench.done:
        return "\n\n".join([*parts, unfinished])
    rare = bench.right(report("rare", best)).all(1).reshape(REPORT, DRAWS).sum(1)
    cases = {
        "known and drawn: right in half of the draws or more": rare >= DRAWS / 2,
        "known and drowned: right at least once, in fewer than half": (rare > 0) & (rare < DRAWS / 2),
        "not known: never right": rare == 0,
    }
    parts += [
        f"The {REPORT} rare prompts by their {DRAWS} draws; best of {DRAWS} right for {np.mean(rare > 0):.3f} of them:",
        table(["case", "share"], [[name, f"{np.mean(case):.3f}"] for name, case in cases.items()]),
    ]
    return "\n\n".join(parts)


def share(bench: Bench, cell: Cell) -> str:
    return f"{bench.right(cell).all(1).mean():.3f}" if cell.key in bench.done else NOT_RUN


def report_row(bench: Bench, cell: Cell) -> list[str]:
    size = f"{cell.n} x {cell.seeds}"
    if cell.key not in bench.done:
        return [size, *[NOT_RUN] * (1 + len(ATTRIBUTES))]
    right = bench.right(cell)
    rate = stats.mean(right.all(1).astype(float), clusters(cell))
    return [size, f"{rate}", *(f"{v:.3f}" for v in right.mean(0))]


if __name__ == "__main__":
    main()
