"""Preference scores: a CLIP that was trained further on which of two pictures people chose."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .embed import Clip

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image


class Preference(Clip):
    """PickScore (Kirstain et al. 2023, arXiv 2305.01569), or another of its kind, from a local path.

    Takes what `Clip` takes. PickScore_v1 comes without tokenizer and image processor: name the directory of
    CLIP-ViT-H-14-laion2B-s32B-b79K as `processor`. HPS v2 (Wu et al. 2023, arXiv 2306.09341) is a file of open_clip's:
    `backend="open_clip", architecture="ViT-H-14"`. The number that its authors report is the cosine, which `ClipT` of
    the same file gives; their script resizes a tensor, and not a PIL picture, which moves it a little.
    """

    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[float]:
        """exp(logit_scale) * cosine of each picture and its text, in -scale..scale; higher is better.

        Only differences between pictures of the same text mean something: the softmax of two scores is the
        probability that the one is preferred.

        Raises:
            ValueError: the two have different lengths, nothing to score, or a picture that is empty or not RGB.
        """
        scores: list[float] = (self.scale * self.cosines(images, texts)).tolist()
        return scores
