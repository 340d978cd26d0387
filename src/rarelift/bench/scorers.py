"""What a run scores its pictures with: metrics by name, as functions of pictures and prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..menagerie import CLIP
from ..settings import one_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from PIL import Image

    from ..prompts import Prompt, Suite
    from .drawing import Scorer

NAMES = ("attributes", "clip_t")


def check(name: str, suite: Suite) -> None:
    """Whether a scorer can score the pictures of a suite.

    Raises:
        ValueError: the name is not known, or the suite's prompts have no attributes to look for.
    """
    from ..menagerie.world import ATTRIBUTES

    one_of("metric", name, NAMES)
    for prompt in suite.prompts if name == "attributes" else ():
        lacking = [attribute for attribute in ATTRIBUTES if attribute not in prompt.meta]
        if lacking:
            raise ValueError(
                f"metric 'attributes' is for Menagerie prompts; {prompt.id!r} of suite {suite.name!r} says nothing of "
                f"{', '.join(lacking)}; leave the metric out"
            )


def make(name: str, suite: Suite, *, clip: Path = CLIP) -> Scorer:
    """The scorer of that name.

    "attributes", for Menagerie prompts: `success`, 1 where the judge sees every attribute of the prompt, else 0, and
    `attributes`, the share that it sees. "clip_t": the cosine of picture and prompt by the CLIP model in `clip`.

    Raises:
        ValueError: as `check`.
        FileNotFoundError: the judge's or the CLIP model's files are not there.
    """
    check(name, suite)
    return _attributes() if name == "attributes" else _clip_t(clip)


def _attributes() -> Scorer:
    from ..menagerie.judge import Judge
    from ..menagerie.world import ATTRIBUTES, Thing

    judge = Judge.load()

    def score(images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[dict[str, float]]:
        right = judge.right(images, [Thing(*(p.meta[a] for a in ATTRIBUTES)) for p in prompts])
        return [{"success": float(row.all()), "attributes": float(np.mean(row))} for row in right]

    return score


def _clip_t(clip: Path) -> Scorer:
    from ..metrics.clip_t import ClipT

    scorer = ClipT(clip)

    def score(images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[dict[str, float]]:
        return [{"clip_t": value} for value in scorer(images, [p.text for p in prompts])]

    return score
