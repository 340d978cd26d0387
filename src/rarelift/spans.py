"""Where the text is in sequences that hold it at different places in each sample, read off the transformer's call.

Each function takes the call's arguments by name, and beneath them the entries of the transformer's config. It returns
the positions of text tokens as a boolean mask `[B or 1, S']` from the sequence's start; positions after S' hold no
text. Learned padding tokens do not count as text.
Source: the sources of diffusers 0.42.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Call = Mapping[str, Any]

_MULTIPLE = 32  # Z-Image fills images and captions up to multiples of this
_TEXT = 3  # Ideogram 4's mark of text tokens
_TAG = 1  # MiniMax H3's
_SLOT = 4  # image tokens for each of Qwen-Image 2.1's image slots


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


def interleaved(call: Call) -> Tensor:
    """Qwen-Image 2.1: words and images in turn, alike in all samples; none of the words where their keys are cached."""
    images: Tensor = call["img_mask"][:1]
    if call.get("kv_cache_mode") == "cached":
        return images.new_zeros(1, 0)
    return ~images.repeat_interleave(torch.where(images[0], _SLOT, 1), dim=1)


def before_time(call: Call) -> Tensor:
    """OmniGen: [words with images in their midst, time, image], padded on the left.

    The time token attends to all words, so its row of the mask tells them from padding.
    """
    ids: Tensor = call["input_ids"]
    mask: Tensor | None = call.get("attention_mask")
    length = ids.shape[1]
    if mask is None:
        text = torch.ones_like(ids, dtype=torch.bool)
    else:  # 1 and 0, or, with a dimension for heads, 0 and a large negative number
        text = mask[:, length, :length] > 0 if mask.ndim == 3 else mask[:, 0, length, :length] == 0
    for sample, images in call["input_image_sizes"].items():
        for first, last in images:
            text[sample, first:last] = False
    return text


def gist(call: Call) -> Tensor:
    """Bria Fibo 2: [summary, image, more images]; [image, more images, summary] where its length differs by sample."""
    from diffusers.models.transformers.transformer_bria_fibo2 import compute_gist_count

    states: Tensor = call["encoder_hidden_states"]
    mask: Tensor | None = call.get("encoder_attention_mask")
    lengths = [states.shape[2]] * len(states) if mask is None else mask.sum(1).tolist()
    counts = compute_gist_count(
        lengths,
        min_gist=call["min_num_gist_tokens"],
        max_gist=call["max_num_gist_tokens"],
        gist_step=call["gist_step"],
        min_text_len=call["gist_min_text_len"],
        max_text_len=call["gist_max_text_len"],
    )
    places = torch.arange(max(counts), device=states.device)
    text = places < torch.tensor(counts, device=states.device)[:, None]
    if min(counts) == max(counts):
        return text
    patch = call["patch_size"]
    pictures: list[Tensor] = [call["hidden_states"], *(call.get("context_latents") or ())]
    return F.pad(text, (sum((x.shape[-2] // patch) * (x.shape[-1] // patch) for x in pictures), 0))


def behind_images(call: Call) -> Tensor:
    """HunyuanVideo 1.5: [image, words, padding]; [words, image, padding] where the image is blank: text to video."""
    image: Tensor = call["image_embeds"]
    words = torch.cat([call["encoder_attention_mask"].bool(), call["encoder_attention_mask_2"].bool()], 1)
    places = torch.arange(image.shape[1] + words.shape[1], device=image.device)
    first = torch.where((image == 0).all(), words.sum(1, keepdim=True), 0)
    return (places < first) | (places >= first + image.shape[1])


def unpadded(call: Call) -> Tensor:
    """Hunyuan-DiT: the words of CLIP and T5, one after the other; padding becomes a learned token before the blocks."""
    return torch.cat([call["text_embedding_mask"].bool(), call["text_embedding_mask_t5"].bool()], 1)


def _filled(tokens: int) -> int:
    return tokens + -tokens % _MULTIPLE


def _device(value: Any) -> torch.device:
    while not isinstance(value, Tensor):
        value = value[0]
    return value.device


RESOLVERS: dict[str, Callable[[Call], Tensor]] = {
    f.__name__: f
    for f in (in_front, indicated, tagged, z_image, interleaved, before_time, gist, behind_images, unpadded)
}
"""What `streams.Family.scattered` may name."""
