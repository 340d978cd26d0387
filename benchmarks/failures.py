"""What do the pictures look like whose animal the judge does not find?

    python benchmarks/failures.py            docs/failures.png and a table in docs/beyond.md

The first rare tuning prompts at guidance 3, untouched. Shown are the first pictures that fail, none picked, above
drawings of what was asked for.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from measure import Artist, Cell, Drawing, pictures_of, table, write_section
from rarelift import pictures, pipelines
from rarelift.menagerie.world import ATTRIBUTES, VALUES, Thing, render
from studio import Studio

DOCS = Path(__file__).parents[1] / "docs"
GUIDANCE = 3.0
SHOWN = 10


def usual(animal: str, asked: Thing) -> int:
    """How many of the attributes asked for an animal is usually seen with."""
    return len(ATTRIBUTES) - 1 - len(replace(asked, animal=animal).tail)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=256)
    args = parser.parse_args()
    chosen, seeds = pictures_of(Cell("rare", "tune", args.prompts, 1, GUIDANCE, 16))
    artist, asked = Artist(Drawing()), [p.thing for p in chosen]
    images = pipelines.text_to_image(
        artist.untouched, [p.text for p in chosen], seeds, batch_size=32, guidance_scale=GUIDANCE
    )
    odds = artist.judge.probabilities(images)[0].numpy()
    seen = [VALUES["animal"][i] for i in odds.argmax(1)]
    own = np.array([odds[i, VALUES["animal"].index(thing.animal)] for i, thing in enumerate(asked)])
    wrong = [i for i, thing in enumerate(asked) if seen[i] != thing.animal]
    near = Studio(artist.untouched).nearest
    places = [1 + near[asked[i].animal].index(seen[i]) for i in wrong]
    others = [usual(a, asked[i]) for i in wrong for a in VALUES["animal"] if a != asked[i].animal]
    pairs = Counter(tuple(sorted((asked[i].animal, seen[i]))) for i in wrong)
    rows = [
        ("pictures whose animal is not found", f"{len(wrong)} of {len(chosen)}"),
        ("of these, the judge gives the animal it sees less than 0.9", f"{np.mean(odds[wrong].max(1) < 0.9):.2f}"),
        ("the same of pictures whose animal is found", f"{np.mean(np.delete(odds.max(1), wrong) < 0.9):.2f}"),
        ("of these, the animal asked for is the judge's second", f"{np.mean(_second(odds, own, wrong)):.2f}"),
        (
            "attributes asked for that the animal seen usually has, of 4",
            f"{np.mean([usual(seen[i], asked[i]) for i in wrong]):.2f}",
        ),
        ("the same of any other animal", f"{np.mean(others):.2f}"),
        (
            "place of the animal seen among the 15 others, nearest word in the text encoders first, mean",
            f"{np.mean(places):.1f}",
        ),
        ("most frequent pairs", ", ".join(f"{a} and {b} ({n})" for (a, b), n in pairs.most_common(6))),
    ]
    write_section(DOCS / "beyond.md", "failures", table(("", ""), rows))
    shown = wrong[:SHOWN]
    clean = [Image.fromarray(render(asked[i], random.Random(0))) for i in shown]
    labels = [f"{asked[i].animal}; the judge sees {seen[i]}" for i in shown]
    sheet = pictures.grid([[images[i] for i in shown], clean], ["drawn by\nthe model", "asked for"], labels, cell=112)
    pictures.save(
        sheet, DOCS / "failures.png", {"prompts": [chosen[i].text for i in shown], "guidance_scale": GUIDANCE}
    )
    print(DOCS / "beyond.md")


def _second(odds: np.ndarray, own: np.ndarray, wrong: list[int]) -> np.ndarray:
    """Whether one animal alone is more likely than that asked for."""
    return np.asarray((odds[wrong] > own[wrong][:, None]).sum(1) == 1)


if __name__ == "__main__":
    main()
