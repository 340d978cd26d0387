"""Differences of pictures against references in numpy and scipy."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from rarelift.metrics.edit import lpips, mse, psnr, ssim, unedited

pytest.importorskip("torchmetrics", reason="the bench extra")


def picture(seed: int, size: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size + 8, 3), dtype=np.uint8))


def noisy(image: Image.Image, amount: float, seed: int = 9) -> Image.Image:
    noise = np.random.default_rng(seed).normal(0, amount, np.asarray(image).shape)
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


REFERENCES = [picture(0), picture(1)]
IMAGES = [noisy(REFERENCES[0], 10), noisy(REFERENCES[1], 40)]


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(np.float64) / 255


def ssim_reference(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2004, equation 13, channel by channel, with scipy's Gaussian."""

    def blur(x: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(x, 1.5, truncate=3.5, mode="mirror")

    c1, c2 = 0.01**2, 0.03**2
    maps = []
    for x, y in zip(np.moveaxis(a, -1, 0), np.moveaxis(b, -1, 0), strict=True):
        mx, my = blur(x), blur(y)
        vx, vy, vxy = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
        maps.append((2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return float(np.mean(maps))


def test_agrees_with_reference() -> None:
    errors = [((pixels(a) - pixels(b)) ** 2).mean() for a, b in zip(IMAGES, REFERENCES, strict=True)]
    np.testing.assert_allclose(mse(IMAGES, REFERENCES), errors, rtol=1e-10)
    np.testing.assert_allclose(psnr(IMAGES, REFERENCES), -10 * np.log10(errors), rtol=1e-6)
    expected = [ssim_reference(pixels(a), pixels(b)) for a, b in zip(IMAGES, REFERENCES, strict=True)]
    np.testing.assert_allclose(ssim(IMAGES, REFERENCES), expected, atol=1e-6)
    assert expected[0] > expected[1] + 0.05


def test_equal_pictures() -> None:
    assert mse(REFERENCES, REFERENCES) == [0.0, 0.0]
    assert psnr(REFERENCES, REFERENCES) == [np.inf, np.inf]
    assert ssim(REFERENCES, REFERENCES) == pytest.approx([1.0, 1.0])


@pytest.mark.filterwarnings("ignore:.*pictures are of one colour")
def test_pictures_of_one_colour_in_closed_form() -> None:
    """Values that follow from the definitions: no variance, so ssim is its luminance term."""
    black, white, gray = (Image.new("RGB", (16, 12), (v, v, v)) for v in (0, 255, 51))
    assert mse([black, black], [white, gray]) == pytest.approx([1.0, 0.04])
    assert psnr([black, black, white], [white, gray, white]) == pytest.approx([0.0, 13.9794, np.inf], abs=1e-4)
    c = 0.01**2
    assert ssim([black, gray], [white, white]) == pytest.approx(
        [c / (1 + c), (2 * 0.2 + c) / (1 + 0.2**2 + c)], abs=1e-6
    )


def test_masks_of_pie_bench_as_its_evaluation_reads_them() -> None:
    """Against its loop over pixels: what is to be edited, and the outermost pixels, count as edited."""
    runs, (width, height) = [9, 3, 14, 1, 25, 2, 38, 90], (8, 6)
    edited = [[y in (0, height - 1) or x in (0, width - 1) for x in range(width)] for y in range(height)]
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        for i in range(start, min(start + length, width * height)):
            edited[i // width][i % width] = True
    mask = unedited(runs, (width, height))
    assert (mask.mode, mask.size) == ("L", (width, height))
    np.testing.assert_array_equal(np.asarray(mask), np.where(edited, 0, 255))
    assert 0 < np.count_nonzero(np.asarray(mask)) < 4 * 6
    assert unedited([]).size == (512, 512)
    assert mse(IMAGES[:1], REFERENCES[:1], [unedited([0, 200], (40, 32))])[0] > 0


@pytest.mark.parametrize(
    ("runs", "error"), [([3], "runs holds 1 numbers"), ([48, 1], "1 pixels from 48"), ([-1, 2], "2 pixels from -1")]
)
def test_bad_runs_are_refused(runs: list[int], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        unedited(runs, (8, 6))


@pytest.mark.parametrize("mode", ["L", "1"])
def test_only_what_the_mask_keeps_counts(mode: str) -> None:
    keep = np.zeros((32, 40), dtype=bool)
    keep[5:20, 8:30] = True
    mask = Image.fromarray((keep * 255).astype(np.uint8)).convert(mode)
    errors = [((pixels(a) - pixels(b)) ** 2)[keep].mean() for a, b in zip(IMAGES, REFERENCES, strict=True)]
    np.testing.assert_allclose(mse(IMAGES, REFERENCES, [mask] * 2), errors, rtol=1e-10)
    np.testing.assert_allclose(psnr(IMAGES, REFERENCES, [mask] * 2), -10 * np.log10(errors), rtol=1e-6)
    edited = np.asarray(IMAGES[0]).copy()
    edited[~keep] = 255 - edited[~keep]
    assert mse([Image.fromarray(edited)], REFERENCES[:1], [mask]) == mse(IMAGES[:1], REFERENCES[:1], [mask])
    assert mse([Image.fromarray(edited)], REFERENCES[:1]) > mse(IMAGES[:1], REFERENCES[:1])


@pytest.mark.parametrize("metric", [mse, psnr, ssim, lpips])
@pytest.mark.parametrize(
    ("images", "references", "error"),
    [
        ([], [], "no pictures"),
        (IMAGES, REFERENCES[:1], "2 pictures but 1 references"),
        (IMAGES, [picture(0, 16), REFERENCES[1]], r"images\[0\] is \(40, 32\), references\[0\] \(24, 16\)"),
        (IMAGES, [REFERENCES[0], REFERENCES[1].convert("L")], r"references\[1\] has mode L"),
        ([IMAGES[0], Image.new("RGB", (40, 0))], REFERENCES, r"images\[1\] has no pixels"),
    ],
)
def test_bad_pictures_are_refused(metric: Any, images: Any, references: Any, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        metric(images, references)


@pytest.mark.parametrize("metric", [mse, psnr])
@pytest.mark.parametrize(
    ("masks", "error"),
    [
        ([Image.new("L", (40, 32), 1)], "2 pictures but 1 masks"),
        ([Image.new("L", (40, 32), 1), Image.new("L", (40, 32))], r"masks\[1\] is black all over"),
        ([Image.new("L", (40, 32), 1), Image.new("L", (32, 40), 1)], r"masks\[1\] is \(32, 40\)"),
        ([Image.new("RGB", (40, 32), 1)] * 2, r"masks\[0\] is RGB; pass a PIL picture of mode L or 1"),
        ([np.ones((32, 40))] * 2, r"masks\[0\] is ndarray"),
    ],
)
def test_bad_masks_are_refused(metric: Any, masks: Any, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        metric(IMAGES, REFERENCES, masks)


def test_ssim_needs_a_window() -> None:
    with pytest.raises(ValueError, match="ssim needs 11 pixels a side"):
        ssim([picture(0, 10)], [picture(1, 10)])


def test_lpips_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.delitem(sys.modules, "torchvision.models", raising=False)
    with pytest.raises(ImportError, match="needs torchvision: pip install torchvision"):
        lpips(IMAGES, REFERENCES)
    with pytest.raises(ValueError, match="no net 'resnet'; there are: alex, vgg, squeeze"):
        lpips(IMAGES, REFERENCES, net="resnet")  # type: ignore[arg-type]


def test_lpips_downloads_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    torchvision = pytest.importorskip("torchvision", reason="an optional package", exc_type=ImportError)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="nothing is downloaded: put https://.*alexnet"):
        lpips(IMAGES, REFERENCES)
    name = torchvision.models.AlexNet_Weights.DEFAULT.url.rpartition("/")[2]
    (tmp_path / "checkpoints").mkdir()
    weights, loaded = torchvision.models.alexnet(weights=None).state_dict(), []
    monkeypatch.setattr(
        torchvision.models.AlexNet_Weights.DEFAULT, "get_state_dict", lambda *_, **__: loaded.append(1) or weights
    )
    (tmp_path / "checkpoints" / name).touch()
    big = [image.resize((80, 64)) for image in (*REFERENCES, *IMAGES)]
    same, other = lpips([big[0], big[3]], [big[0], big[1]])
    assert same == 0.0
    assert other > 0
    assert len(loaded) == 1, "a network for every pair takes seconds each"
