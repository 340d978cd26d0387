"""FID and KID: how far the features of drawn pictures are from those of real ones. The sums are torchmetrics'."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch

from . import _checks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from PIL import Image

    Features = np.ndarray | torch.Tensor

ENOUGH = 2000  # pictures a side, below which the bias of FID is as large as what it is to tell apart


class Kid(NamedTuple):
    """Mean over subsets, and their standard deviation: subsets overlap, so this is no confidence interval."""

    mean: float
    std: float


class Distance(NamedTuple):
    """What `distance` measured: by which metric, the number, its std over subsets (KID only), pictures a side."""

    metric: Literal["fid", "kid"]
    value: float
    std: float | None
    real: int
    fake: int


class _Given(torch.nn.Module):
    """Stands where torchmetrics has its network: the features are there already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def _pair(real: Features, fake: Features) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = _checks.features(real, "real"), _checks.features(fake, "fake")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"real has {a.shape[1]} features and fake {b.shape[1]}; use one extractor for both")
    return a, b


def _compute(metric: Any, real: torch.Tensor, fake: torch.Tensor) -> Any:
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return metric.compute()


def fid(real: Features, fake: Features) -> float:
    """Frechet distance of two Gaussians fitted to the features, 0 or more; lower is better.

    |m - n|^2 + Tr(C + D - 2 (CD)^(1/2)), Heusel et al. 2017 (arXiv 1706.08500), in float64, with unbiased covariances.
    It is biased upwards, the more the fewer the pictures: compare only sets of the same size, thousands each.

    Args:
        real: features of real pictures, [N, D].
        fake: features of drawn pictures, [M, D].

    Raises:
        ValueError: other shapes, fewer than 2 rows, different D, or a NaN.
    """
    a, b = _pair(real, fake)
    torchmetrics = _checks.need("torchmetrics.image.fid", "'rarelift[bench]'")
    return float(_compute(torchmetrics.FrechetInceptionDistance(feature=_Given(a.shape[1])), a, b))


def kid(real: Features, fake: Features, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> Kid:
    """Squared maximum mean discrepancy with the kernel (x.y / D + 1)^3; lower is better, and below 0 by chance.

    Binkowski et al. 2018 (arXiv 1801.01401): unbiased at any number of pictures, averaged over random subsets.

    Args:
        real: features of real pictures, [N, D].
        fake: features of drawn pictures, [M, D].
        subsets: how many are drawn, each without replacement.
        subset_size: pictures in each, at most N and M; at N and M themselves the std is that of equal subsets, 0.
        seed: of the subsets; the global random state is left alone.

    Raises:
        ValueError: other shapes, fewer than 2 rows, different D, a NaN, or a subset that does not fit.
    """
    a, b = _pair(real, fake)
    if not 2 <= subset_size <= min(len(a), len(b)):
        raise ValueError(
            f"subset_size is {subset_size}, with {len(a)} real and {len(b)} drawn pictures; "
            f"it has to be in 2..{min(len(a), len(b))}"
        )
    if subsets < 1:
        raise ValueError(f"subsets is {subsets}; at least 1")
    torchmetrics = _checks.need("torchmetrics.image.kid", "'rarelift[bench]'")
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save all")  # so do we
        torch.manual_seed(seed)
        metric = torchmetrics.KernelInceptionDistance(_Given(a.shape[1]), subsets=subsets, subset_size=subset_size)
        mean, std = _compute(metric, a, b)
    return Kid(float(mean), float(std))


def distance(
    real: Sequence[Image.Image],
    fake: Sequence[Image.Image],
    extractor: Callable[[list[Image.Image]], Features],
) -> Distance:
    """FID of two sets of pictures; below 2,000 a side KID, and a warning that says so. Lower is better.

    Args:
        real: real pictures.
        fake: drawn pictures.
        extractor: N pictures to features [N, D]: `Inception`, which published numbers are of, or `Clip.images`. Numbers
            compare within one extractor only.

    Raises:
        ValueError: a picture that is empty or not RGB, fewer than 4 a side for KID, or features that are no [N, D].
    """
    a, b = _checks.pictures(real, "real"), _checks.pictures(fake, "fake")
    fewest = min(len(a), len(b))
    if fewest < 4:
        raise ValueError(f"{len(a)} real and {len(b)} drawn pictures; a distance of distributions needs 4 or more each")
    x, y = extractor(a), extractor(b)
    for pictures, features, name in ((a, x, "real"), (b, y, "drawn")):
        if len(features) != len(pictures):
            raise ValueError(f"the extractor made {len(features)} rows of {len(pictures)} {name} pictures")
    if fewest >= ENOUGH:
        return Distance("fid", fid(x, y), None, len(a), len(b))
    warnings.warn(f"KID instead of FID: FID needs {ENOUGH} pictures a side, here are {fewest}", stacklevel=2)
    mean, std = kid(x, y, subset_size=min(1000, fewest // 2))  # halves, or the subsets would all be the same
    return Distance("kid", mean, std, len(a), len(b))


class Inception:
    """The 2,048 features that published FID and KID are of, by torch-fidelity, with its weights from a local file.

    Args:
        weights: pt_inception-2015-12-05-6726825d.pth or another that torch-fidelity reads. It is unpickled: trust it.
        device: where it runs.
        batch_size: pictures at a time; does not change the features beyond rounding.

    Raises:
        ImportError: torch-fidelity is missing.
        ValueError: no such file.
    """

    def __init__(self, weights: str | os.PathLike[str], *, device: str = "cpu", batch_size: int = 32) -> None:
        if not Path(weights).is_file():
            raise ValueError(f"{os.fspath(weights)!r} is not a file; save the weights there, nothing is downloaded")
        fidelity = _checks.need("torch_fidelity.feature_extractor_inceptionv3", "torch-fidelity")
        self.network = fidelity.FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=os.fspath(weights)
        ).to(device)
        self.device, self.batch_size = device, batch_size

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Features of N pictures of one size, [N, 2048] float32 on the CPU.

        Raises:
            ValueError: nothing to score, a picture that is empty or not RGB, or sizes that differ.
        """
        pictures = _checks.pictures(images)
        if len(sizes := {image.size for image in pictures}) > 1:
            raise ValueError(f"pictures of {len(sizes)} sizes, {sorted(sizes)[:3]}; resize them to one, the same way")
        parts = []
        for i in range(0, len(pictures), self.batch_size):
            pixels = np.stack([np.array(image) for image in pictures[i : i + self.batch_size]])
            parts.append(self.network(torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.device))[0].cpu())
        return torch.cat(parts)
