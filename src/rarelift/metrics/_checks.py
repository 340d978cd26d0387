"""What every metric asks of its input, so that a wrong picture is an error and not a low score."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

if TYPE_CHECKING:
    import numpy as np


def pictures(images: Sequence[Image.Image], name: str = "images") -> list[Image.Image]:
    """The pictures as a list: PIL, RGB, at least one.

    A picture of one colour is what a safety checker or a NaN in the decoder leaves behind. It is what the model drew,
    so it has a score; a warning names it.
    """
    if isinstance(images, Image.Image):
        raise ValueError(f"{name} is one picture; pass a list: [{name}]")
    if not len(images):
        raise ValueError(f"no pictures to score: {name} is empty")
    for i, image in enumerate(images):
        if not isinstance(image, Image.Image):
            raise ValueError(f"{name}[{i}] is a {type(image).__name__}; pass a PIL picture (Image.fromarray)")
        if image.mode != "RGB":
            raise ValueError(f"{name}[{i}] has mode {image.mode}; pass {name}[{i}].convert('RGB')")
        if not image.width * image.height:
            raise ValueError(f"{name}[{i}] has no pixels, it is {image.width} x {image.height}; leave it out")
    if blank := [i for i, image in enumerate(images) if image.getcolors(1)]:
        warnings.warn(
            f"{len(blank)} of {len(images)} pictures are of one colour, {name}[{blank[0]}] first, as safety checkers "
            "and overflows leave them; they are scored as they are",
            stacklevel=3,
        )
    return list(images)


def texts(given: Sequence[str], name: str = "texts") -> list[str]:
    """The texts as a list: strings with something in them."""
    if isinstance(given, str):
        raise ValueError(f"{name} is one string; pass a list: [{given!r}]")
    for i, text in enumerate(given):
        if not isinstance(text, str):
            raise ValueError(f"{name}[{i}] is a {type(text).__name__}; pass a string")
        if not text.strip():
            raise ValueError(f"{name}[{i}] is empty; a picture is scored against words")
    return list(given)


def same_length(images: Sequence[object], others: Sequence[object], name: str) -> None:
    if len(images) != len(others):
        raise ValueError(f"{len(images)} pictures but {len(others)} {name}; pass one for each picture")


def features(array: np.ndarray | torch.Tensor, name: str) -> torch.Tensor:
    """Features as float64 on the CPU, [N, D], N at least 2, all finite."""
    tensor = torch.as_tensor(array).detach().cpu().double()
    if tensor.ndim != 2 or not tensor.shape[1]:
        raise ValueError(f"{name} has shape {list(tensor.shape)}; pass features [N, D], one row a picture")
    if len(tensor) < 2:
        raise ValueError(f"{name} has {len(tensor)} rows; a distribution needs at least 2")
    return finite(tensor, name)


def finite(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """The tensor, if it holds neither NaN nor infinity in any row."""
    bad = (~torch.isfinite(tensor)).reshape(len(tensor), -1).any(1).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"{name}: row {bad[0]} is not finite ({len(bad)} of {len(tensor)}); compute it in float32")
    return tensor


def checkpoint(path: str) -> str:
    """The path, if a directory is there: a name that is not one would be looked for on the network."""
    from pathlib import Path

    if not Path(path).is_dir():
        raise ValueError(f"{path!r} is not a directory; save the checkpoint there first, nothing is downloaded")
    return str(path)


def complete(path: str, info: dict[str, Any]) -> None:
    """What transformers reports of a load: weights that are missing would be random numbers, and so would scores."""
    lost = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in info.get(kind) or ())
    if lost:
        raise ValueError(f"{path!r} lacks {len(lost)} weights of the model, {lost[0]} first; it is another checkpoint")


def need(module: str, install: str) -> Any:
    """An optional module, or how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"this metric needs {module.split('.')[0]}: pip install {install}") from error
    except RuntimeError as error:  # torchvision made for another torch: "operator torchvision::nms does not exist"
        raise ImportError(
            f"{module.split('.')[0]} does not import beside torch {torch.__version__}: {error}; install torch and "
            "torchvision from one index, both for CPU or both for the same CUDA"
        ) from error
