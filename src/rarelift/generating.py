"""Draw one prompt, untouched and lifted, and write what came of it: the work behind `generate` and `demo`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from . import attach, pictures, pipelines
from .menagerie.world import check_prompt
from .settings import Spread

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from PIL import Image

    from .bench.stats import Estimate
    from .menagerie.suite import MenageriePrompt


def generate(
    prompt: str,
    model_name: str,
    settings: Spread,
    seeds: Sequence[int],
    out: Path,
    *,
    compare: bool = False,
    **call: Any,
) -> list[Path]:
    """Draw `prompt` once per seed, lifted, and write PNGs that hold their settings.

    Args:
        out: a `.png` file (one picture, or the grid of `compare`) or a folder.
        compare: one grid, untouched above and lifted below, in place of single pictures.
        call: arguments of the pipeline, e.g. `guidance_scale`.

    Returns the paths written.
    """
    single = out.suffix.lower() == ".png"
    if single and len(seeds) > 1 and not compare:
        raise ValueError(f"{len(seeds)} pictures do not fit into one file {out}; give a folder or --compare")
    stem = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "picture"
    names = ["compare"] if compare else [f"seed{seed}" for seed in seeds]
    paths = [out] if single else [out / f"{stem}-{name}.png" for name in names]
    if model_name == pipelines.BUNDLED:
        check_prompt(prompt)
    for path in paths:
        pictures.check_writable(path)
    model = pipelines.load(model_name)
    record = {"prompt": prompt, "model": model_name, "settings": settings.to_dict(), "call": {**model.defaults, **call}}
    texts = [prompt] * len(seeds)
    with tqdm(desc="drawing", total=len(seeds) * (1 + compare), leave=False) as bar:
        kwargs = {"on_batch": bar.update, **call}
        plain = pipelines.text_to_image(model, texts, seeds, **kwargs) if compare else []
        with attach.apply(model.pipe, settings=settings):
            lifted = pipelines.text_to_image(model, texts, seeds, **kwargs)
    if compare:
        labels = ["untouched", f"lifted, alpha {settings.alpha:g}"]
        sheet = pictures.grid([plain, lifted], labels, [f"seed {seed}" for seed in seeds])
        pictures.save(sheet, paths[0], {**record, "seeds": list(seeds)})
    else:
        for image, path, seed in zip(lifted, paths, seeds, strict=True):
            pictures.save(image, path, {**record, "seed": seed})
    return paths


@dataclass(frozen=True)
class Demo:
    """Both sides of the demo: pictures, which of them are right in every attribute, and the summary."""

    prompts: list[MenageriePrompt]
    untouched: list[Image.Image]
    lifted: list[Image.Image]
    untouched_right: np.ndarray
    lifted_right: np.ndarray
    rates: dict[str, Estimate]


def demo(settings: Spread, out: Path, *, n: int, shown: int = 8, **call: Any) -> Demo:
    """Draw the first `n` rare report prompts of the Menagerie with and without the lift; write the first `shown`.

    Same noise on both sides, one seed per prompt, nothing picked: wins and losses as they fall.
    """
    from .bench import stats
    from .menagerie.judge import Judge
    from .menagerie.suite import prompts

    pictures.check_writable(out)
    chosen = prompts("rare", n, split="report")
    texts, things = [p.text for p in chosen], [p.thing for p in chosen]
    seeds = list(range(n))
    model, judge = pipelines.load(), Judge.load()
    with tqdm(desc="drawing", total=2 * n, leave=False) as bar:
        kwargs = {"on_batch": bar.update, **call}
        plain = pipelines.text_to_image(model, texts, seeds, **kwargs)
        with attach.apply(model.pipe, settings=settings):
            lifted = pipelines.text_to_image(model, texts, seeds, **kwargs)
    plain_right, lifted_right = (np.all(judge.right(images, things), 1) for images in (plain, lifted))
    rates = {
        "untouched": stats.mean(plain_right, texts),
        "lifted": stats.mean(lifted_right, texts),
        "difference": stats.difference(lifted_right, plain_right, texts),
    }
    sheet = pictures.grid(
        [plain[:shown], lifted[:shown]],
        ["untouched", f"lifted, alpha {settings.alpha:g}"],
        texts[:shown],
        marks=[plain_right[:shown].tolist(), lifted_right[:shown].tolist()],
    )
    record = {"settings": settings.to_dict(), "call": {**model.defaults, **call}}
    pictures.save(sheet, out, {**record, "prompts": texts[:shown], "seeds": seeds[:shown]})
    return Demo(chosen, plain, lifted, plain_right, lifted_right, rates)
