"""Scores: images and texts in, numbers out. Nothing here knows about pipelines.

`METRICS` says what there is without importing it; nothing is downloaded, every checkpoint is a local path.
"""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One metric.

    Attributes:
        name: by which `get` finds it.
        module: of this package.
        attribute: the function or class in it.
        higher_is_better: what a larger number means.
        per_image: one number a picture (or video); else one number for a set of pictures.
        needs: the extra of rarelift that it imports from, None if the plain install has it.
        source: who defined it.
    """

    name: str
    module: str
    attribute: str
    higher_is_better: bool
    per_image: bool
    needs: str | None
    source: str

    def load(self) -> Any:
        """The function or class."""
        return getattr(importlib.import_module(f"{__name__}.{self.module}"), self.attribute)


METRICS: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry("clip_t", "clip_t", "ClipT", True, True, None, "Radford et al. 2021, arXiv 2103.00020"),
        Entry("preference", "preference", "Preference", True, True, None, "Kirstain et al. 2023, arXiv 2305.01569"),
        Entry("vqa", "vqa", "Vqa", True, True, None, "Lin et al. 2024, arXiv 2404.01291; GenEval 2, arXiv 2512.16853"),
        Entry("judge", "endpoint", "Judge", True, True, None, "Park et al. 2025 (RareBench), arXiv 2410.22376"),
        Entry("consistency", "video", "consistency", True, True, None, "Esser et al. 2023, arXiv 2302.03011"),
        Entry(
            "frame_success", "video", "frame_success", True, True, None, "share of frames with all that was asked for"
        ),
        Entry("fid", "distribution", "fid", False, False, "bench", "Heusel et al. 2017, arXiv 1706.08500"),
        Entry("kid", "distribution", "kid", False, False, "bench", "Binkowski et al. 2018, arXiv 1801.01401"),
        Entry("mse", "edit", "mse", False, True, None, "mean squared difference of pixels in 0..1"),
        Entry("psnr", "edit", "psnr", True, True, "bench", "decibels below the largest pixel value, 1"),
        Entry("ssim", "edit", "ssim", True, True, "bench", "Wang et al. 2004, IEEE TIP 13(4)"),
        Entry("lpips", "edit", "lpips", False, True, "bench", "Zhang et al. 2018, arXiv 1801.03924"),
    )
}


def get(name: str) -> Entry:
    """The metric of that name.

    Raises:
        ValueError: there is none; the error names the nearest.
    """
    if name in METRICS:
        return METRICS[name]
    near = difflib.get_close_matches(name.lower(), METRICS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "there are: " + ", ".join(METRICS)
    raise ValueError(f"no metric is called {name!r}; {hint}")
