"""How far the pictures of a method are from real ones, as sets: FID, or KID with an interval where they are few."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..metrics import distribution
from ..settings import one_of
from .stats import Estimate

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from PIL import Image

    Extractor = Callable[[Sequence[Image.Image]], np.ndarray]

RENDERS = 4  # real pictures of each Menagerie prompt
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Distance:
    """Of one set of pictures from the real ones; lower is better.

    `value` has an interval for KID alone, and `difference` is that to the untouched set, for KID alone.
    """

    metric: Literal["fid", "kid"]
    value: Estimate
    difference: Estimate | None = None


def kid(
    real: np.ndarray, fake: np.ndarray, clusters: Sequence[Hashable], untouched: np.ndarray | None = None
) -> Distance:
    """KID of two sets of features with a 95% interval, by leaving out one prompt after the other.

    The unbiased squared maximum mean discrepancy with the kernel (x.y / D + 1)^3 (Binkowski et al. 2018, arXiv
    1801.01401) over all pairs, and the delete-a-group jackknife (Efron and Stein 1981, Ann. Statist. 9:586-596). The
    real pictures are taken as given. Where the two sets are of one distribution the interval is wide rather than
    narrow.

    Args:
        real: features [N, D].
        fake: features [M, D].
        clusters: the prompt of each of the M.
        untouched: features [M, D] paired row by row with `fake`, for the difference; a prompt is left out of both.

    Raises:
        ValueError: fewer than two prompts, or than two pictures a side, or shapes that differ.
    """
    if untouched is not None and fake.shape != untouched.shape:
        raise ValueError(f"paired features are needed; got {fake.shape} and {untouched.shape}")
    own = _left_out(real, fake, clusters)
    difference = None if untouched is None else _estimate(own - _left_out(real, untouched, clusters))
    return Distance("kid", _estimate(own), difference)


def _left_out(real: np.ndarray, fake: np.ndarray, clusters: Sequence[Hashable]) -> np.ndarray:
    """KID of everything, and then of everything but each prompt."""
    names = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    if len(clusters) != len(fake):
        raise ValueError(f"{len(fake)} pictures and {len(clusters)} prompts; one prompt is needed for each")
    if len(names) < 2 or len(real) < 2:
        raise ValueError(f"two prompts and two real pictures are needed; got {len(names)} and {len(real)}")
    x, y = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"real has {x.shape[1]} features and fake {y.shape[1]}; use one extractor for both")

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.asarray((a @ b.T / x.shape[1] + 1) ** 3)

    index = np.array([names[name] for name in clusters])
    among, across = kernel(y, y), kernel(y, x).mean(1)
    np.fill_diagonal(among, 0)
    by_prompt = np.zeros((len(names), len(y)))
    np.add.at(by_prompt, index, among)  # rows of a prompt added up
    size = np.bincount(index)
    own = by_prompt[index, np.arange(len(y))]  # what each picture shares with those of its own prompt
    within = np.bincount(index, own)
    without = among.sum() - 2 * by_prompt.sum(1) + within
    left = len(y) - size
    if (left < 2).any():
        raise ValueError(f"{len(y)} pictures of {len(names)} prompts are too few to leave one prompt out")
    whole = among.sum() / (len(y) * (len(y) - 1)) - 2 * across.mean()
    parts = without / (left * (left - 1)) - 2 * (across.sum() - np.bincount(index, across)) / left
    real_among = kernel(x, x)
    constant = (real_among.sum() - np.trace(real_among)) / (len(x) * (len(x) - 1))
    return np.asarray(np.concatenate([[whole], parts]) + constant)


def _estimate(values: np.ndarray) -> Estimate:
    whole, parts = values[0], values[1:]
    error = math.sqrt((len(parts) - 1) / len(parts) * ((parts - parts.mean()) ** 2).sum())
    return Estimate(float(whole), float(whole - 1.96 * error), float(whole + 1.96 * error))


def distance(
    real: np.ndarray, fake: np.ndarray, clusters: Sequence[Hashable], untouched: np.ndarray | None = None
) -> Distance:
    """FID of 2,000 pictures a side or more, else KID.

    Args:
        real: features [N, D].
        fake: features [M, D], of the prompts `clusters`.
        untouched: features [M, D] of the untouched pictures, in the same order.
    """
    if min(len(real), len(fake)) >= distribution.ENOUGH:
        value = distribution.fid(real, fake)
        return Distance("fid", Estimate(value, value, value))
    return kid(real, fake, clusters, untouched)


def extractor(text: str) -> Extractor:
    """What makes features of pictures: "clip=FOLDER", or "inception=FILE", which published numbers are of.

    CLIP features are unit vectors times sqrt(D), so that x.y / D is their cosine.

    Raises:
        ValueError: another name, or nothing at the path.
    """
    name, _, path = text.partition("=")
    one_of("features", name, ("clip", "inception"))
    if name == "inception":
        inception = distribution.Inception(Path(path).expanduser())
        return lambda images: inception(images).numpy()
    from ..metrics.embed import Clip

    clip = Clip(Path(path).expanduser())

    def see(images: Sequence[Image.Image]) -> np.ndarray:
        vectors = clip.images(images).numpy()
        return np.asarray(vectors * math.sqrt(vectors.shape[1]))

    return see


def folder_of_pictures(folder: Path) -> list[Image.Image]:
    """Every picture in a folder, in the order of the names.

    Raises:
        ValueError: there is none.
    """
    from PIL import Image

    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _ENDINGS) if folder.is_dir() else []
    if not paths:
        raise ValueError(f"{folder} holds no picture ({', '.join(_ENDINGS)}); give a folder of real ones")
    found = []
    for path in paths:
        with Image.open(path) as image:
            found.append(image.convert("RGB"))
    return found


def renders(prompts: Sequence[Mapping[str, str]], seed: int = 0) -> list[Image.Image]:
    """`RENDERS` drawings of the Menagerie world for each prompt's attributes, as a model that learned it would draw."""
    from PIL import Image

    from ..menagerie.world import ATTRIBUTES, Thing, render

    rng = random.Random(seed)
    things = [Thing(*(meta[a] for a in ATTRIBUTES)) for meta in prompts]
    return [Image.fromarray(render(thing, rng)) for thing in things for _ in range(RENDERS)]
