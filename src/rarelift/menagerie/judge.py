"""What a Menagerie picture shows, by a classifier trained on balanced renders."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from . import JUDGE
from .world import ATTRIBUTES, SIZE, VALUES, Thing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from PIL import Image
    from transformers import ResNetForImageClassification

_SIZES = [len(values) for values in VALUES.values()]


def to_pixels(images: Sequence[Image.Image]) -> torch.Tensor:
    """Pictures as the Menagerie models read them: floats in -1..1, [N, 3, 64, 64].

    Raises:
        ValueError: no pictures, or one of another size.
    """
    if not images:
        raise ValueError("no pictures to look at")
    for image in images:
        if image.size != (SIZE, SIZE):
            raise ValueError(
                f"Menagerie pictures are {SIZE} x {SIZE} pixels; got one of {image.width} x {image.height}"
            )
    array = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1


class Judge:
    """Names the five attributes of a picture.

    `accuracy` on held-out clean renders is in the model card; on generated pictures it is as good as the pictures.
    """

    def __init__(self, model: ResNetForImageClassification) -> None:
        self.model = model.eval()

    @classmethod
    def load(cls, folder: Path = JUDGE) -> Judge:
        """Load from a transformers model folder, the bundled one by default."""
        from transformers import ResNetForImageClassification

        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"no judge at {folder}; `rarelift train` makes one")
        return cls(ResNetForImageClassification.from_pretrained(folder, dtype=torch.float32))

    @torch.no_grad()
    def probabilities(self, images: Sequence[Image.Image]) -> list[torch.Tensor]:
        """One [N, values] tensor of probabilities per attribute, in the order of `ATTRIBUTES`."""
        pixels = to_pixels(images)
        parts = [self.model(some).logits for some in torch.split(pixels, 256)]
        return [part.softmax(-1) for part in torch.split(torch.cat(parts), _SIZES, 1)]

    def read(self, images: Sequence[Image.Image]) -> list[Thing]:
        """The most likely thing for each picture."""
        picks = torch.stack([part.argmax(-1) for part in self.probabilities(images)], 1).tolist()
        return [Thing(*(VALUES[a][i] for a, i in zip(ATTRIBUTES, row, strict=True))) for row in picks]

    def right(self, images: Sequence[Image.Image], things: Sequence[Thing]) -> np.ndarray:
        """[N, 5] booleans: which attributes of each picture are those of its thing, in the order of `ATTRIBUTES`."""
        if len(images) != len(things):
            raise ValueError(f"{len(images)} pictures but {len(things)} things to compare them with")
        seen = np.array([thing.labels for thing in self.read(images)])
        return np.asarray(seen == np.array([thing.labels for thing in things]))
