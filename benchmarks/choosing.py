"""Can the model itself choose among its pictures of one prompt, and is that worth more than one picture?

    python benchmarks/choosing.py           draw, choose, and write docs/beyond.md
    python benchmarks/choosing.py --table   from benchmarks/results/choosing.jsonl, nothing is drawn

Five candidates for each of 128 rare and 128 common reporting prompts at guidance 3: five seeds untouched, or one seed
at five alphas. Each is scored by the model as a classifier (Li et al. 2023, arXiv 2303.16203): noise is added to the
picture, and the score is how much worse the best of the other animals' prompts predicts it than the prompt itself does.
The list of animals is the world's own, so this is an upper bound. It costs five pictures and, for the score, as much
again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import rarelift
from ideas import Studio
from measure import RESULTS, Artist, Cell, Drawing, pictures_of, table, versions, write_section
from rarelift.bench import stats
from rarelift.menagerie.suite import MenageriePrompt, Suite
from rarelift.menagerie.world import VALUES

FILE = RESULTS / "choosing.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "beyond.md"
GUIDANCE, PROMPTS, ROWS = 3.0, 128, 32
SUITES: tuple[Suite, ...] = ("rare", "common")
LEVELS = (600.0, 750.0)
"""Timesteps at which a picture is scored; on 64 tuning prompts a scratch run found no better ones from 400 to 930."""
ALPHAS = (1.0, 0.8, 1.2, 1.5, 2.0)
"""The first is untouched, and what is chosen is held against it."""


def margins(studio: Studio, prompts: Sequence[MenageriePrompt], latents: Tensor, seed: int) -> np.ndarray:
    """How much worse the best other animal's prompt predicts each picture than its own, `[B]`, as a share."""
    texts = []
    for animal in VALUES["animal"]:
        said = [" ".join(animal if word == p.thing.animal else word for word in p.text.split()) for p in prompts]
        texts.append(studio.encode(said))
    noise = studio.noise([seed] * len(prompts))
    loss = torch.zeros(len(texts), len(prompts))
    for level in LEVELS:
        share = level / 1000  # of noise: rectified flow
        noisy, velocity = torch.lerp(latents, noise, share), (noise - latents).float()
        for row, text in zip(loss, texts, strict=True):
            found = studio.predict(noisy, torch.tensor(level), text)[0].float()
            row += (found - velocity).square().mean((1, 2, 3))
    own = torch.tensor([VALUES["animal"].index(p.thing.animal) for p in prompts])[None]
    mine = loss.gather(0, own)[0]
    return ((loss.scatter(0, own, torch.inf).amin(0) - mine) / mine).numpy()


def made(studio: Studio, prompts: Sequence[MenageriePrompt], seeds: Sequence[int], alpha: float) -> Tensor:
    """Latents of the pipeline's pictures, `[B, C, H, W]`."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    with rarelift.apply(studio.pipe, alpha=alpha):
        found: Tensor = studio.pipe(
            prompt=[p.text for p in prompts],
            generator=generators,
            output_type="latent",
            **{**studio.defaults, "guidance_scale": GUIDANCE},
        ).images
    return found


@torch.no_grad()
def drawn(suite: Suite, by: str) -> dict[str, Any]:
    """Verdicts and margins of all candidates, `[candidates][prompts]`."""
    artist = Artist(Drawing())
    studio = Studio(artist.untouched)
    cell = Cell(suite, "report", PROMPTS, len(ALPHAS), GUIDANCE, 16)
    prompts, seeds = pictures_of(cell)
    right, scores = [], []
    for k in tqdm(range(len(ALPHAS)), desc=f"{suite}, {by}"):
        asked = prompts[:: len(ALPHAS)]
        noise = seeds[k if by == "seeds" else 0 :: len(ALPHAS)]
        alpha = ALPHAS[k] if by == "alphas" else 1.0
        for i in range(0, len(asked), ROWS):
            some = asked[i : i + ROWS]
            latents = made(studio, some, noise[i : i + ROWS], alpha)
            right.append(artist.judge.right(studio.decode(latents), [p.thing for p in some]).all(1))
            scores.append(margins(studio, some, latents, seed=10**6 + i))
    shape = (len(ALPHAS), PROMPTS)
    rights = np.concatenate(right).reshape(shape).astype(int)
    return {
        "suite": suite,
        "by": by,
        "right": ["".join(map(str, row)) for row in rights],
        "margins": np.concatenate(scores).reshape(shape).round(5).tolist(),
        "versions": versions(),
    }


def written(records: Sequence[dict[str, Any]]) -> str:
    header = ["five", "prompts", "the first", "the chosen one", "difference", "any of five", "AUC of the score"]
    rows = []
    for record in records:
        right = np.array([[int(c) for c in row] for row in record["right"]], float)
        scores = np.array(record["margins"])
        chosen = right[scores.argmax(0), np.arange(right.shape[1])]
        ids = list(range(right.shape[1]))
        good, bad = scores[right == 1], scores[right == 0]
        auc = np.mean(good[:, None] > bad[None]) + np.mean(good[:, None] == bad[None]) / 2
        rows.append(
            [
                record["by"],
                record["suite"],
                f"{right[0].mean():.3f}",
                f"{chosen.mean():.3f}",
                f"{stats.difference(chosen, right[0], ids):+.3f}",
                f"{right.max(0).mean():.3f}",
                f"{auc:.2f}",
            ]
        )
    return table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    records = [json.loads(line) for line in FILE.read_text().splitlines()] if FILE.is_file() else []
    if not args.table:
        for by in ("seeds", "alphas"):
            for suite in SUITES:
                if any((r["by"], r["suite"]) == (by, suite) for r in records):
                    continue
                records.append(drawn(suite, by))
                with FILE.open("a") as file:
                    file.write(json.dumps(records[-1]) + "\n")
    write_section(PAGE, "choosing", written(records))
    print(PAGE)


if __name__ == "__main__":
    main()
