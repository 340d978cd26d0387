"""Where the text is in sequences that hold it at different places in each sample, read off the transformer's call.

Each function takes the call's arguments by name and returns the positions of text tokens as a boolean mask
`[B, S']` from the sequence's start; positions after S' hold no text. Learned padding tokens do not count as text.
Source: the sources of diffusers 0.42.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Call = Mapping[str, Any]

_MULTIPLE = 32  # Z-Image fills images and captions up to multiples of this
_TEXT = 3  # Ideogram 4's mark of text tokens
_TAG = 1  # MiniMax H3's


def in_front(call: Call) -> Tensor:
    """Lumina 2: each sample begins with its valid text tokens, the image following at once."""
    mask: Tensor = call["encoder_attention_mask"]
    places = torch.arange(mask.shape[1], device=mask.device)
    return places < mask.sum(1, keepdim=True)


def indicated(call: Call) -> Tensor:
    """Ideogram 4: tokens are marked one by one."""
    text: Tensor = call["indicator"] == _TEXT
    return text


def tagged(call: Call) -> Tensor:
    """MiniMax H3: one row of tags for all samples."""
    text: Tensor = call["token_tags"] == _TAG
    return text[None]


def z_image(call: Call) -> Tensor:
    """Z-Image: [image, caption]; with several images (omni), [captions, images, ...]; each part filled up."""
    images, captions = call["x"], call["cap_feats"]
    patch, frames = call.get("patch_size", 2), call.get("f_patch_size", 1)
    rows: list[list[bool]] = []
    for image, caption in zip(images, captions, strict=True):
        row: list[bool] = []
        if isinstance(image, Tensor):
            _, f, h, w = image.shape
            row += [False] * _filled((f // frames) * (h // patch) * (w // patch))
        for part in caption if isinstance(caption, (list, tuple)) else [caption]:
            row += [True] * len(part) + [False] * (_filled(len(part)) - len(part))
        rows.append(row)
    longest = max(map(len, rows))
    return torch.tensor([row + [False] * (longest - len(row)) for row in rows], device=_device(captions))


def _filled(tokens: int) -> int:
    return tokens + -tokens % _MULTIPLE


def _device(value: Any) -> torch.device:
    while not isinstance(value, Tensor):
        value = value[0]
    return value.device


RESOLVERS: dict[str, Callable[[Call], Tensor]] = {f.__name__: f for f in (in_front, indicated, tagged, z_image)}
"""What `streams.Family.scattered` may name."""
