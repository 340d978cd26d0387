"""What we are compared with: other methods under one interface, each written by us from its paper.

`RIVALS` has them by name. docs/rivals.md says of each what it does, where it comes from, and what is our reading.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ..settings import one_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .base import Rival

# name: module and class; modules are imported when they are asked for
RIVALS: dict[str, tuple[str, str]] = {
    "guidance": ("guidance", "Guidance"),
    "cfg-zero": ("guidance", "CfgZero"),
    "skip-layers": ("guidance", "SkipLayers"),
    "perturbed-attention": ("guidance", "PerturbedAttention"),
    "encoder-spread": ("neighbours", "EncoderSpread"),
    "word-weights": ("neighbours", "WordWeights"),
    "double-text": ("neighbours", "DoubleText"),
    "reinject": ("neighbours", "Reinject"),
    "taca": ("neighbours", "Taca"),
    "rewrite": ("rewrite", "Rewrite"),
    "rare-to-frequent": ("rare_to_frequent", "RareToFrequent"),
    "attend-excite": ("attend_excite", "AttendExcite"),
}


def kind(name: str) -> type[Rival]:
    """The class of a rival.

    Raises:
        ValueError: there is none of this name; the message has the nearest.
    """
    module, cls = RIVALS[one_of("method", name, RIVALS)]
    found: type[Rival] = getattr(importlib.import_module(f"{__name__}.{module}"), cls)
    return found


def make(name: str, settings: Mapping[str, Any]) -> Rival:
    """A rival with its settings; those that are missing take their defaults."""
    return kind(name).from_dict(settings)
