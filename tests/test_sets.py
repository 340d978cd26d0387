"""Distances of sets against sums written out, against torchmetrics, and against known truth."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from rarelift.bench import sets
from rarelift.menagerie import CLIP
from rarelift.menagerie.world import ATTRIBUTES
from rarelift.metrics import distribution
from rarelift.prompts import load

if TYPE_CHECKING:
    from pathlib import Path


def cloud(seed: int, n: int, shift: float = 0.0, d: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, (n, d))


def by_hand(real: np.ndarray, fake: np.ndarray) -> float:
    """One pair after the other."""

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3)

    def among(z: np.ndarray) -> float:
        pairs = [k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]
        return float(np.mean(pairs))

    return among(real) + among(fake) - 2 * float(np.mean([k(a, b) for a in real for b in fake]))


def test_kid_is_that_of_the_paper_and_its_error_the_jackknifes() -> None:
    real, fake, other = cloud(0, 9), cloud(1, 12, 0.4), cloud(2, 12, 0.2)
    clusters = [0, 1, 2, 3] * 3
    index = np.array(clusters)
    found = sets.kid(real, fake, clusters).value
    assert found.value == pytest.approx(by_hand(real, fake))
    parts = np.array([by_hand(real, fake[index != g]) for g in range(4)])
    error = np.sqrt(3 / 4 * ((parts - parts.mean()) ** 2).sum())
    assert (found.low, found.high) == pytest.approx((found.value - 1.96 * error, found.value + 1.96 * error))
    apart = sets.kid(real, fake, clusters, other).difference
    assert apart is not None
    assert apart.value == pytest.approx(by_hand(real, fake) - by_hand(real, other))
    parts -= [by_hand(real, other[index != g]) for g in range(4)]
    error = np.sqrt(3 / 4 * ((parts - parts.mean()) ** 2).sum())
    assert apart.high - apart.value == pytest.approx(1.96 * error)


def test_kid_agrees_with_torchmetrics() -> None:
    real, fake = cloud(0, 50), cloud(1, 50, 0.3)
    other = distribution.kid(real.astype(np.float32), fake.astype(np.float32), subsets=1, subset_size=50)
    assert sets.kid(real, fake, list(range(50))).value.value == pytest.approx(other.mean, rel=1e-4)


def test_intervals_hold_the_truth() -> None:
    """Prompts shift all their pictures alike; the truth is the mean over many repeats."""
    real = cloud(0, 200)

    def draw(seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        prompts = np.repeat(rng.normal(0.3, 0.5, (40, 6)), 3, axis=0)
        noise = rng.normal(0, 0.8, prompts.shape)
        return prompts + noise, prompts + 0.15 + rng.normal(0, 0.8, prompts.shape)

    clusters = list(np.repeat(np.arange(40), 3))
    found = [e for a, b in map(draw, range(1000, 1400)) if (e := sets.kid(real, b, clusters, a).difference)]
    assert len(found) == 400
    truth = np.mean([e.value for e in found])
    assert truth > 0
    assert 0.91 <= np.mean([e.low <= truth <= e.high for e in found]) <= 0.985


def test_fid_from_2000_pictures_on() -> None:
    real, fake = cloud(0, 2000), cloud(1, 2000, 0.3)
    found = sets.distance(real, fake, list(range(2000)), fake)
    assert (found.metric, found.difference) == ("fid", None)
    assert found.value.value == pytest.approx(distribution.fid(real, fake))
    few = sets.distance(real[:1999], fake, list(range(2000)), fake)
    assert few.metric == "kid"
    assert few.difference is not None
    assert few.difference.value == 0


def test_real_pictures_are_nearer_than_others() -> None:
    see = sets.extractor(f"clip={CLIP}")
    suite = load("menagerie-common", limit=24)
    about = [{a: p.meta[a] for a in ATTRIBUTES} for p in suite.prompts]
    real, again = sets.renders(about), sets.renders(about, seed=1)
    noise = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8)) for i in range(96)]
    clusters = [i // sets.RENDERS for i in range(96)]
    near, far = (sets.kid(see(real), see(images), clusters).value for images in (again, noise))
    assert len(real) == 96
    assert (
        abs(near.value) < far.low / 10
    )  # not 0: the same prompts are on both sides, so the two are alike beyond chance


def test_pictures_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no picture"):
        sets.folder_of_pictures(tmp_path)
    for name in ("b.png", "a.JPG", "note.txt"):
        Image.new("L", (4, random.Random(name).randint(4, 9))).save(tmp_path / name, "PNG")
    assert [image.mode for image in sets.folder_of_pictures(tmp_path)] == ["RGB", "RGB"]


def test_what_does_not_fit_is_said() -> None:
    x, y = cloud(0, 5), cloud(1, 4)
    for arguments, said in (
        ((x, y, [1, 2, 3]), "4 pictures and 3 prompts"),
        ((x, y, [1] * 4), "two prompts and two real pictures"),
        ((x, y[:2], [1, 2]), "too few to leave one prompt out"),
        ((x[:, :3], y, [1, 2, 3, 4]), "real has 3 features and fake 6"),
    ):
        with pytest.raises(ValueError, match=said):
            sets.kid(*arguments)
    with pytest.raises(ValueError, match="paired features"):
        sets.kid(x, y, [1, 2, 3, 4], y[:3])
    with pytest.raises(ValueError, match="unknown features 'clop'"):
        sets.extractor("clop=./x")
