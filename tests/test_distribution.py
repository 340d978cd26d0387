"""FID and KID against float64 references that are written out, and values known in closed form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import linalg

from rarelift.metrics import distribution
from rarelift.metrics.distribution import Inception, distance, fid, kid

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytest.importorskip("torchmetrics", reason="the bench extra")


def features(n: int, d: int, seed: int, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) / d**0.5 + shift


def fid_reference(x: np.ndarray, y: np.ndarray) -> float:
    """Heusel et al. 2017, equation 6, with scipy's root of a matrix."""
    c, d = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    gap = x.mean(0) - y.mean(0)
    return float(gap @ gap + np.trace(c + d - 2 * linalg.sqrtm(c @ d).real))


def mmd_reference(x: np.ndarray, y: np.ndarray) -> float:
    """Binkowski et al. 2018, equation 4, pair by pair."""
    m, n, d = len(x), len(y), x.shape[1]

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / d + 1) ** 3)

    within_x = sum(k(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    within_y = sum(k(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return within_x + within_y - 2 * sum(k(a, b) for a in x for b in y) / (m * n)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
def test_fid_agrees_with_reference(kind: Callable[[Any], Any]) -> None:
    x, y = features(300, 12, 0), features(200, 12, 1, shift=0.3)
    assert fid(kind(x), kind(y)) == pytest.approx(fid_reference(x, y), rel=1e-8)
    assert fid(x.astype(np.float32), y.astype(np.float32)) == pytest.approx(fid_reference(x, y), rel=1e-5)


def test_fid_with_fewer_pictures_than_features() -> None:
    x, y = features(20, 40, 2), features(25, 40, 3)
    assert fid(x, y) == pytest.approx(fid_reference(x, y), rel=1e-4)


def test_fid_in_closed_form() -> None:
    x = features(100, 6, 4)
    assert fid(x, x) == pytest.approx(0.0, abs=1e-6)
    assert fid(x, x + 2) == pytest.approx(6 * 4)  # the means only
    spread = np.trace(np.cov(x, rowvar=False)) + (x.mean(0) @ x.mean(0))
    assert fid(x, 3 * x) == pytest.approx(4 * spread)  # (3 - 1)^2, of the covariance and of the mean


def test_kid_of_one_whole_subset_is_the_unbiased_mmd() -> None:
    x, y = features(30, 7, 5), features(30, 7, 6, shift=0.5)
    mean, std = kid(x, y, subsets=3, subset_size=30)
    assert mean == pytest.approx(mmd_reference(x, y), rel=1e-8)
    assert std == pytest.approx(0.0, abs=1e-10)


def test_kid_agrees_with_reference_over_subsets() -> None:
    x, y = features(40, 5, 7), features(50, 5, 8, shift=0.2)
    mean, std = kid(x, y, subsets=6, subset_size=15, seed=3)
    drawn = torch.Generator().manual_seed(3)
    scores = []
    for _ in range(6):
        i, j = torch.randperm(40, generator=drawn)[:15].numpy(), torch.randperm(50, generator=drawn)[:15].numpy()
        scores.append(mmd_reference(x[i], y[j]))
    assert mean == pytest.approx(np.mean(scores), rel=1e-8)
    assert std == pytest.approx(np.std(scores), rel=1e-8)
    assert std > 0


def test_kid_is_unbiased() -> None:
    """Two halves of one distribution: on average 0, also where FID is not."""
    rng = np.random.default_rng(0)
    scores = [kid(*rng.normal(size=(2, 40, 4)), subsets=1, subset_size=40).mean for _ in range(60)]
    assert abs(np.mean(scores)) < 3 * np.std(scores) / 60**0.5
    assert min(scores) < 0 < max(scores)
    assert fid(*rng.normal(size=(2, 40, 4))) > 0.05


def test_kid_repeats_and_leaves_the_random_state_alone() -> None:
    x, y = features(40, 5, 9), features(40, 5, 10)
    state = torch.get_rng_state()
    first = kid(x, y, subsets=4, subset_size=10)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(5)
    assert kid(x, y, subsets=4, subset_size=10) == first
    assert kid(x, y, subsets=4, subset_size=10, seed=1) != first


GOOD = features(10, 3, 0)


@pytest.mark.parametrize(
    ("real", "fake", "error"),
    [
        (GOOD[:1], GOOD, "real has 1 rows"),
        (GOOD, GOOD[:0], "fake has 0 rows"),
        (GOOD[0], GOOD, r"real has shape \[3\]; pass features \[N, D\]"),
        (GOOD, GOOD[:, :2], "real has 3 features and fake 2"),
        (GOOD, np.where(np.arange(30).reshape(10, 3) == 7, np.nan, GOOD), r"fake: row 2 is not finite \(1 of 10\)"),
    ],
)
@pytest.mark.parametrize("metric", [fid, lambda a, b: kid(a, b, subset_size=2)], ids=["fid", "kid"])
def test_bad_features_are_refused(metric: Any, real: np.ndarray, fake: np.ndarray, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        metric(real, fake)


@pytest.mark.parametrize(("subsets", "size", "error"), [(0, 5, "subsets is 0"), (1, 11, r"in 2..10"), (1, 1, "in 2..")])
def test_subsets_have_to_fit(subsets: int, size: int, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        kid(GOOD, GOOD, subsets=subsets, subset_size=size)


# ---------------------------------------------------------------- pictures


def pictures(n: int, seed: int) -> list[Image.Image]:
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 2, 2, 3), dtype=np.uint8)
    return [Image.fromarray(p) for p in pixels]


def flat(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=np.float64).ravel() / 255 for image in images])


def test_few_pictures_get_kid_and_a_warning() -> None:
    real, fake = pictures(30, 0), pictures(20, 1)
    with pytest.warns(UserWarning, match="KID instead of FID: FID needs 2000 pictures a side, here are 20"):
        got = distance(real, fake, flat)
    mean, std = kid(flat(real), flat(fake), subset_size=10)
    assert got == ("kid", mean, std, 30, 20)
    assert std > 0


def test_many_pictures_get_fid() -> None:
    real, fake = pictures(2000, 2), pictures(2000, 3)
    got = distance(real, fake, flat)
    assert got == ("fid", fid(flat(real), flat(fake)), None, 2000, 2000)
    with pytest.warns(UserWarning, match="KID instead"):
        assert distance(real, fake[1:], flat).metric == "kid"


def test_distance_refuses() -> None:
    with pytest.raises(ValueError, match="3 real and 9 drawn pictures"):
        distance(pictures(3, 0), pictures(9, 0), flat)
    with pytest.raises(ValueError, match="the extractor made 8 rows of 9 real pictures"):
        distance(pictures(9, 0), pictures(9, 1), lambda images: flat(images)[1:])
    with pytest.raises(ValueError, match=r"fake\[0\] has mode L"):
        distance(pictures(9, 0), [Image.new("L", (2, 2))] * 9, flat)
    assert distribution.ENOUGH == 2000


def test_inception_without_weights() -> None:
    with pytest.raises(ValueError, match="'nowhere.pth' is not a file"):
        Inception("nowhere.pth")


def test_inception_gives_what_torch_fidelity_gives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason="an optional package")
    file = tmp_path / "weights.pth"
    with monkeypatch.context() as patched:  # random weights in place of a file
        patched.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: None)
        patched.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.save(network.state_dict(), file)
    images = [image.resize((40, 30)) for image in pictures(3, 5)]
    alone = [network(torch.tensor(np.array(image)).permute(2, 0, 1)[None])[0] for image in images]
    got = Inception(file, batch_size=2)(images)
    assert got.shape == (3, 2048)
    torch.testing.assert_close(got, torch.cat(alone))
    with pytest.raises(ValueError, match="pictures of 2 sizes"):
        Inception(file)([images[0], images[1].resize((8, 8))])
