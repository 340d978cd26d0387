"""What a run scores its pictures with: metrics by name, as functions of pictures and prompts."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import metrics
from ..menagerie import CLIP
from ..settings import one_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

    from ..prompts import Prompt, Suite
    from .drawing import Scorer

KEY = "RARELIFT_JUDGE_KEY"  # environment variable of the judge's key, which no manifest should hold


@dataclass(frozen=True)
class Kind:
    """One kind of scorer: what it takes after the equals sign, None for nothing, and what makes it."""

    takes: str | None
    gives: str
    make: Callable[[str], Scorer]


def parse(text: str) -> tuple[str, str]:
    """Name and value of "clip_t" or "clip_t=PATH".

    Raises:
        ValueError: the name is not known, or a value is lacking or too much, or names nothing.
    """
    name, equals, value = text.strip().partition("=")
    one_of("metric", name, KINDS)
    takes = KINDS[name].takes
    if takes is None and equals:
        raise ValueError(f"metric {text!r}: {name} takes no value")
    if takes is not None and not value and name != "clip_t":
        raise ValueError(f"metric {text!r} needs a value: {name}={takes}")
    path = Path(value).expanduser()
    if value and takes == _PATH and not (path.is_dir() or (path.is_file() and name == "preference")):
        raise ValueError(f"metric {text!r}: there is no folder {value!r}; give one with a checkpoint in it")
    if name == "judge":
        _address(value)
    return name, value


def check(text: str, suite: Suite) -> None:
    """Whether a scorer can score the pictures of a suite.

    Raises:
        ValueError: as `parse`, or the suite's prompts have no attributes to look for.
    """
    from ..menagerie.world import ATTRIBUTES

    name, _ = parse(text)
    for prompt in suite.prompts if name == "attributes" else ():
        lacking = [attribute for attribute in ATTRIBUTES if attribute not in prompt.meta]
        if lacking:
            raise ValueError(
                f"metric 'attributes' is for Menagerie prompts; {prompt.id!r} of suite {suite.name!r} says nothing of "
                f"{', '.join(lacking)}; leave the metric out"
            )


def make(text: str, suite: Suite) -> Scorer:
    """The scorer that `text` names, loaded; `KINDS` says what each gives.

    Raises:
        ValueError: as `check`, or the checkpoint is not what the metric needs.
        FileNotFoundError: files of the bundled judge or CLIP model are not there.
    """
    check(text, suite)
    name, value = parse(text)
    return KINDS[name].make(value)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _attributes(_: str) -> Scorer:
    from ..menagerie.judge import Judge
    from ..menagerie.world import ATTRIBUTES, Thing

    judge = Judge.load()

    def score(images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[dict[str, float | str]]:
        right = judge.right(images, [Thing(*(p.meta[a] for a in ATTRIBUTES)) for p in prompts])
        return [{"success": float(row.all()), "attributes": float(np.mean(row))} for row in right]

    return score


def _by_text(name: str) -> Callable[[str], Scorer]:
    """A metric that is made of a checkpoint's path, and called with pictures and texts."""

    def build(path: str) -> Scorer:
        given = Path(path or CLIP).expanduser()
        how = {"backend": "open_clip"} if given.is_file() or (given / "open_clip_config.json").is_file() else {}
        if given.is_file():
            how["architecture"] = _HPS
        scorer = metrics.get(name).load()(given, device=_device(), **how)

        def score(images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[dict[str, float | str]]:
            return [{name: value} for value in scorer(images, [p.text for p in prompts])]

        return score

    return build


def _vqa(path: str) -> Scorer:
    from ..metrics.vqa import atoms

    model = metrics.get("vqa").load().from_path(Path(path).expanduser(), device=_device())

    def score(images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[dict[str, float | str]]:
        rows: list[dict[str, float | str]] = []
        for image, prompt in zip(images, prompts, strict=True):
            if prompt.atoms:
                found = atoms(model.soft_tifa([image], [prompt.atoms])[0])
                rows.append({"vqa_mean": found.arithmetic, "vqa_geometric": found.geometric})
            else:
                rows.append({"vqa_score": model.vqa_score([image], [prompt.text])[0]})
        return rows

    return score


def _address(value: str) -> tuple[str, str]:
    url, sharp, model = value.rpartition("#")
    if not sharp or not model or not url.startswith(("http://", "https://")):
        raise ValueError(f"metric 'judge={value}': give {KINDS['judge'].takes}")
    return url, model


def _judge(value: str) -> Scorer:
    url, model = _address(value)
    judge = metrics.get("judge").load()(url, model, key=os.environ.get(KEY))

    def score(images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[dict[str, float | str]]:
        rows: list[dict[str, float | str]] = []
        for verdict in judge(images, [p.text for p in prompts]):
            row: dict[str, float | str] = {"judge_said": verdict.raw or f"no answer: {verdict.error}"}
            rows.append(row if verdict.score is None else {"judge": verdict.score, **row})
        return rows

    return score


_PATH = "PATH"
_HPS = "ViT-H-14"  # of open_clip, for a file of weights: HPS v2 comes as one
KINDS = {
    "attributes": Kind(None, "success, attributes: for Menagerie, whether all is there, and the share", _attributes),
    "clip_t": Kind(_PATH, "clip_t: cosine of picture and prompt; the bundled CLIP without a path", _by_text("clip_t")),
    "preference": Kind(_PATH, "preference: PickScore from a folder, HPS v2 from its file", _by_text("preference")),
    "vqa": Kind(_PATH, "vqa_mean, vqa_geometric: Soft-TIFA over a prompt's questions; vqa_score without any", _vqa),
    "judge": Kind("URL#MODEL", f"judge: 1 to 5 by a chat endpoint, its key in {KEY}; answers are kept", _judge),
}
DEFAULT = ("attributes", "clip_t")
"""For the suites of Menagerie."""
