"""CLIP-T: how well a picture fits its text, by the cosine between CLIP embeddings (Radford et al. 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .embed import Clip

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image
    from transformers import CLIPModel

HIGHER_IS_BETTER = True


@torch.no_grad()
def clip_t(model: CLIPModel, pixels: torch.Tensor, input_ids: torch.Tensor, batch_size: int = 256) -> torch.Tensor:
    """Cosine of each picture and its text, [N], in -1..1; higher is better.

    Args:
        model: any CLIP of transformers.
        pixels: what its image processor makes of N pictures, [N, 3, H, W].
        input_ids: what its tokenizer makes of N texts, [N, L].

    Raises:
        ValueError: the two have different lengths, or there is nothing to score.
    """
    if not len(pixels):
        raise ValueError("no pictures to score")
    if len(pixels) != len(input_ids):
        raise ValueError(f"{len(pixels)} pictures but {len(input_ids)} texts")
    scores = []
    for i in range(0, len(pixels), batch_size):
        out = model(input_ids=input_ids[i : i + batch_size], pixel_values=pixels[i : i + batch_size])
        scores.append((out.image_embeds * out.text_embeds).sum(-1))  # transformers normalises both
    return torch.cat(scores)


class ClipT(Clip):
    """CLIP-T of PIL pictures and texts, with a checkpoint from a local path; takes what `Clip` takes."""

    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[float]:
        """Cosine of each picture and its text, in -1..1; higher is better.

        Raises:
            ValueError: the two have different lengths, nothing to score, or a picture that is empty or not RGB.
        """
        scores: list[float] = self.cosines(images, texts).tolist()
        return scores
