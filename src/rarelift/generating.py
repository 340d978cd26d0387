"""Draw one prompt, untouched and lifted, and write what came of it: the work behind `generate` and `demo`."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from . import attach, pictures, pipelines, profiles, rarity
from .bench import stats
from .menagerie import suite
from .menagerie.judge import Judge
from .menagerie.world import check_prompt
from .settings import Spread

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from PIL import Image

    from .bench.stats import Estimate


def generate(
    prompt: str,
    model_name: str,
    given: Mapping[str, Any],
    seeds: Sequence[int],
    out: Path,
    *,
    profile: str | None = None,
    compare: bool = False,
    explain: Callable[[list[rarity.Score]], object] | None = None,
    **call: Any,
) -> list[Path]:
    """Draw `prompt` once per seed, lifted, and write PNGs that hold their settings.

    Args:
        given: fields of `Spread`; what is missing is the profile's, or the default.
        profile: as `rarelift.apply` takes it.
        out: a `.png` file (one picture, or the grid of `compare`) or a folder.
        compare: one grid, untouched above and lifted below, in place of single pictures.
        explain: given how rare each word is to the model, before anything is drawn.
        call: arguments of the pipeline, e.g. `guidance_scale`.

    Returns the paths written.
    """
    pictures.check_suffix(out)
    single = out.suffix.lower() == ".png"
    if single and len(seeds) > 1 and not compare:
        raise ValueError(f"{len(seeds)} pictures do not fit into one file {out}; give a folder or --compare")
    Spread.from_dict(given)  # what is wrong is said before a model is loaded
    if profile not in (None, profiles.AUTO):
        profiles.load(profile)
    pictures.check_writable(out if single else out / "picture.png")
    if model_name == pipelines.BUNDLED:
        check_prompt(prompt)
    model = pipelines.load(model_name)
    settings = Spread.from_dict(given if profile is None else attach.profiled(model.pipe, profile, given))
    stem = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "picture"
    alpha = "-".join(f"{a:g}" for a in np.atleast_1d(settings.alpha))
    names = ["compare"] if compare else [f"seed{seed}" for seed in seeds]
    paths = [out] if single else [out / f"{stem}-alpha{alpha}-{name}.png" for name in names]
    for path in paths:
        pictures.check_writable(path)
    if explain:
        told = {k: v for k, v in {**model.defaults, **call}.items() if k == "max_sequence_length"}
        explain(rarity.scores(model.pipe, prompt, seed=seeds[0], **told))
    record = {"prompt": prompt, "model": model_name, "settings": settings.to_dict(), "call": {**model.defaults, **call}}
    texts = [prompt] * len(seeds)
    with tqdm(desc="drawing", total=len(seeds) * (1 + compare), leave=False) as bar:
        # a released model fills the memory with one picture
        kwargs = {"on_batch": bar.update, "batch_size": 16 if model.bundled else 1, **call}
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
class Row:
    """One line of the demo: what was done, and how often every attribute of the prompt came out right."""

    guidance: float
    name: str
    rate: Estimate


def demo(settings: Spread, out: Path, *, n: int, guidances: Sequence[float], shown: int = 8) -> list[Row]:
    """Draw the first `n` rare report prompts of the Menagerie untouched and lifted, and write the first `shown`.

    One seed per prompt, the same noise everywhere, nothing picked: wins and losses as they fall.

    Args:
        out: the PNG to write.
        guidances: guidance_scale values; two rows of the picture and three of the table for each.
    """
    stats.require()
    if out.suffix.lower() != ".png":
        raise ValueError(f"the picture is a PNG; give a file that ends with .png, not {out}")
    chosen = suite.prompts("rare", n, split="report")
    texts, things, seeds = [p.text for p in chosen], [p.thing for p in chosen], list(range(n))
    pictures.check_writable(out)
    model, judge = pipelines.load(), Judge.load()
    images: list[list[Image.Image]] = []
    labels: list[str] = []
    rows: list[Row] = []
    verdicts: list[np.ndarray] = []
    with tqdm(desc="drawing", total=2 * n * len(guidances), leave=False) as bar:
        for guidance in guidances:
            draw = functools.partial(pipelines.text_to_image, model, texts, seeds, on_batch=bar.update)
            plain = draw(guidance_scale=guidance)
            with attach.apply(model.pipe, settings=settings):
                lifted = draw(guidance_scale=guidance)
            before, after = (np.all(judge.right(each, things), 1).astype(float) for each in (plain, lifted))
            rows += [
                Row(guidance, "untouched", stats.mean(before, texts)),
                Row(guidance, f"lifted, alpha {settings.alpha:g}", stats.mean(after, texts)),
                Row(guidance, "difference", stats.difference(after, before, texts)),
            ]
            images += [plain[:shown], lifted[:shown]]
            verdicts += [before[:shown] == 1, after[:shown] == 1]
            labels += [f"guidance {guidance:g}\nuntouched", f"guidance {guidance:g}\nlifted, alpha {settings.alpha:g}"]
    sheet = pictures.grid(images, labels, texts[:shown], marks=[list(verdict) for verdict in verdicts])
    record = {"settings": settings.to_dict(), "guidance_scale": list(guidances), "call": model.defaults}
    pictures.save(sheet, out, {**record, "prompts": texts[:shown], "seeds": seeds[:shown]})
    return rows
