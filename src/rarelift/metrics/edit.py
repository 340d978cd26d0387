"""How far an edited picture is from its original: mse, psnr, ssim, lpips.

All compare picture i with reference i. `masks` restricts mse and psnr to where no edit was asked for: PIL pictures of
mode "L" or "1" and the same size, anything but black where a pixel counts; `unedited` makes those of PIE-Bench. Ssim
and lpips look at neighbourhoods, which reach over the edge of a mask, and take none.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from PIL import Image

from . import _checks

if TYPE_CHECKING:
    from collections.abc import Sequence

_SSIM_WINDOW = 11


def _pairs(images: Sequence[Image.Image], references: Sequence[Image.Image]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs as float64 in 0..1, [3, H, W] each."""
    a, b = _checks.pictures(images), _checks.pictures(references, "references")
    _checks.same_length(a, b, "references")
    for i, (image, reference) in enumerate(zip(a, b, strict=True)):
        if image.size != reference.size:
            raise ValueError(f"images[{i}] is {image.size}, references[{i}] {reference.size}; resize one of them")
    return [(_tensor(image), _tensor(reference)) for image, reference in zip(a, b, strict=True)]


def _tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).double() / 255


def _masked(
    images: Sequence[Image.Image], references: Sequence[Image.Image], masks: Sequence[Image.Image] | None
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The pixels that count, [3, P] each."""
    pairs = _pairs(images, references)
    if masks is None:
        return [(a.flatten(1), b.flatten(1)) for a, b in pairs]
    _checks.same_length(pairs, masks, "masks")
    kept = []
    for i, ((a, b), mask) in enumerate(zip(pairs, masks, strict=True)):
        if not isinstance(mask, Image.Image) or mask.mode not in ("L", "1"):
            given = mask.mode if isinstance(mask, Image.Image) else type(mask).__name__
            raise ValueError(f"masks[{i}] is {given}; pass a PIL picture of mode L or 1")
        if mask.size != images[i].size:
            raise ValueError(f"masks[{i}] is {mask.size}, images[{i}] {images[i].size}; resize one of them")
        counts = torch.from_numpy(np.array(mask)) != 0
        if not counts.any():
            raise ValueError(f"masks[{i}] is black all over, so no pixel counts; white is where pixels are compared")
        kept.append((a[:, counts], b[:, counts]))
    return kept


def unedited(runs: Sequence[int], size: tuple[int, int] = (512, 512)) -> Image.Image:
    """The mask, for `mse` and `psnr`, of where PIE-Bench asks for no edit: a picture of mode L, white there.

    The outermost pixels are black, as in its own evaluation.

    Args:
        runs: `mask` of an entry of its mapping file: first pixel and length in turn of what is to be edited, pixels
            counted row by row.
        size: width and height of the picture.

    Raises:
        ValueError: an odd number of runs, or one that is negative or begins outside of the picture.
    """
    width, height = size
    if len(runs) % 2:
        raise ValueError(f"runs holds {len(runs)} numbers; pass first pixel and length in turn")
    mask = np.full((height, width), 255, dtype=np.uint8)
    keep = mask.reshape(-1)
    for first, length in zip(runs[::2], runs[1::2], strict=True):
        if not (0 <= first < keep.size and length >= 0):
            raise ValueError(f"runs has {length} pixels from {first} on; a picture of {size} has {keep.size}")
        keep[first : first + length] = 0
    mask[[0, -1]] = mask[:, [0, -1]] = 0
    return Image.fromarray(mask)


def mse(
    images: Sequence[Image.Image], references: Sequence[Image.Image], masks: Sequence[Image.Image] | None = None
) -> list[float]:
    """Mean squared difference of pixels in 0..1, one number a pair, in 0..1; lower is better.

    Raises:
        ValueError: lengths or sizes differ, a picture that is empty or not RGB, or a mask that keeps nothing.
    """
    return [float((a - b).square().mean()) for a, b in _masked(images, references, masks)]


def psnr(
    images: Sequence[Image.Image], references: Sequence[Image.Image], masks: Sequence[Image.Image] | None = None
) -> list[float]:
    """Peak signal-to-noise ratio, -10 log10(mse), in decibels, 0 or more, inf for equal pixels; higher is better.

    Raises:
        ValueError: lengths or sizes differ, a picture that is empty or not RGB, or a mask that keeps nothing.
    """
    pairs = _masked(images, references, masks)
    functional = _checks.need("torchmetrics.functional.image", "'rarelift[bench]'")
    return [float(functional.peak_signal_noise_ratio(a, b, data_range=1.0)) for a, b in pairs]


def ssim(images: Sequence[Image.Image], references: Sequence[Image.Image]) -> list[float]:
    """Structural similarity, a Gaussian window of sigma 1.5, mean of the three colours, in -1..1; higher is better.

    Wang et al. 2004 (IEEE TIP 13(4), doi 10.1109/TIP.2003.819861).

    Raises:
        ValueError: lengths or sizes differ, a picture that is empty or not RGB, or one narrower than the window.
    """
    pairs = _pairs(images, references)
    for i, (a, _) in enumerate(pairs):
        if min(a.shape[1:]) < _SSIM_WINDOW:
            raise ValueError(f"images[{i}] is {images[i].size}; ssim needs {_SSIM_WINDOW} pixels a side")
    functional = _checks.need("torchmetrics.functional.image", "'rarelift[bench]'")
    return [float(functional.structural_similarity_index_measure(a[None], b[None], data_range=1.0)) for a, b in pairs]


def lpips(
    images: Sequence[Image.Image], references: Sequence[Image.Image], net: Literal["alex", "vgg", "squeeze"] = "alex"
) -> list[float]:
    """Learned perceptual distance, 0 or more; lower is better. Zhang et al. 2018 (arXiv 1801.03924).

    Needs torchvision, and the weights of its network in the cache of torch.hub.

    Raises:
        ValueError: lengths or sizes differ, a picture that is empty or not RGB, or an unknown net.
        ImportError: torchvision is missing.
        FileNotFoundError: the weights are not in the cache; the error says which file belongs where.
    """
    kinds = {"alex": "AlexNet_Weights", "vgg": "VGG16_Weights", "squeeze": "SqueezeNet1_1_Weights"}
    if net not in kinds:
        raise ValueError(f"no net {net!r}; there are: {', '.join(kinds)}")
    pairs = _pairs(images, references)
    torchvision = _checks.need("torchvision.models", "torchvision")
    image = _checks.need("torchmetrics.image.lpip", "'rarelift[bench]'")
    url = getattr(torchvision, kinds[net]).DEFAULT.url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not file.is_file():
        raise FileNotFoundError(f"nothing is downloaded: put {url} at {file}")
    network = image.LearnedPerceptualImagePatchSimilarity(net_type=net, normalize=True)
    return [float(network(a[None].float(), b[None].float())) for a, b in pairs]
