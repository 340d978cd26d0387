"""Scores of videos, made of scores of their frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch

from . import _checks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from PIL import Image

T = TypeVar("T")


def consistency(
    videos: Sequence[Sequence[Image.Image]], embed: Callable[[list[Image.Image]], torch.Tensor]
) -> list[float]:
    """Mean cosine between the CLIP embeddings of neighbouring frames, one number a video, in -1..1; higher is better.

    Esser et al. 2023 (arXiv 2302.03011). A video that stands still has 1: read it beside a score of the content.

    Args:
        videos: frames of each video in their order, at least two.
        embed: N frames to vectors [N, D], `Clip.images` for one.

    Raises:
        ValueError: no videos, one with fewer than two frames, a frame that is empty or not RGB, or no [N, D].
    """
    if not len(videos):
        raise ValueError("no videos to score")
    scores = []
    for i, video in enumerate(videos):
        frames = _checks.pictures(video, f"videos[{i}]")
        if len(frames) < 2:
            raise ValueError(f"videos[{i}] has one frame; a frame is compared with its neighbour")
        vectors = _checks.features(embed(frames), f"embeddings of videos[{i}]")
        if len(vectors) != len(frames):
            raise ValueError(f"embed made {len(vectors)} vectors of the {len(frames)} frames of videos[{i}]")
        scores.append(float(torch.cosine_similarity(vectors[:-1], vectors[1:], dim=-1).mean()))
    return scores


class Success(NamedTuple):
    """One video, from what was right in each frame: the share of frames, whether any was right, whether all were."""

    share: float
    any: bool
    all: bool


def success(frames: Sequence[bool]) -> Success:
    """Aggregates of the verdicts on one video's frames, in their order; higher is better.

    Raises:
        ValueError: no frames, or a verdict that is neither true nor false.
    """
    if not len(frames):
        raise ValueError("no frames to aggregate")
    verdicts = [bool(frame) for frame in frames]
    for i, (frame, verdict) in enumerate(zip(frames, verdicts, strict=True)):
        if frame != verdict:  # a score, or NaN: where it counts as right is for the caller to say
            raise ValueError(f"frames[{i}] is {frame}; pass true or false, a score compared with a threshold")
    return Success(sum(verdicts) / len(verdicts), any(verdicts), all(verdicts))


def frame_success(
    videos: Sequence[Sequence[Image.Image]],
    wanted: Sequence[T],
    right: Callable[[list[Image.Image], list[T]], Sequence[bool] | np.ndarray],
) -> list[Success]:
    """Whether each frame shows what its video was to show, one `Success` a video; higher is better.

    Args:
        videos: frames of each video in their order.
        wanted: what each video was to show, in whatever form `right` takes: a text, a list of atoms, a thing.
        right: N frames and N of `wanted` to N verdicts, or to [N, K] verdicts of which all must be true, as
            `rarelift.menagerie.judge.Judge.right` gives them. It is called once.

    Raises:
        ValueError: no videos, lengths that differ, a video without frames, a frame that is empty or not RGB, or
            verdicts that are neither true nor false.
    """
    if not len(videos):
        raise ValueError("no videos to score")
    if len(videos) != len(wanted):
        raise ValueError(f"{len(videos)} videos but {len(wanted)} wanted; pass one for each video")
    checked = [_checks.pictures(video, f"videos[{i}]") for i, video in enumerate(videos)]
    frames = [frame for video in checked for frame in video]
    verdicts = np.asarray(right(frames, [want for video, want in zip(checked, wanted, strict=True) for _ in video]))
    if verdicts.dtype != bool or verdicts.ndim not in (1, 2) or len(verdicts) != len(frames):
        raise ValueError(
            f"right made {verdicts.dtype} of shape {list(verdicts.shape)} of {len(frames)} frames; it has to say true "
            "or false of each, [N] or [N, K]"
        )
    each = verdicts.reshape(len(frames), -1).all(1)
    ends = np.cumsum([len(video) for video in checked])[:-1]
    return [success(part.tolist()) for part in np.split(each, ends)]
