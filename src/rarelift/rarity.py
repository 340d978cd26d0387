"""Which words of a prompt are rare to a model: asked of the model itself, without training and without data.

Leave a word out of the pooled embedding, and compare what the model predicts at its first step with what it predicts
for the whole prompt. Where the other words make a word likely ("orange", of a fox), the model expects it anyway and
little changes; where they make it unlikely, more does. So a word is rare in its context, which no list of word
frequencies knows. How far to trust this, and what else was tried: docs/beyond.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .hooks import paused
from .locate import UnsupportedModelError, is_compiled, transformers_of
from .tokens import FUNCTION_WORDS

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_WORD = re.compile(r"\w+(?:['-]\w+)*")
_KNOWN = "SD3Transformer2DModel"
RELIABILITY = """\
Higher: rarer, among words of one kind. Weak evidence: on the bundled model a rare word of a rare prompt is above the
same word of a common prompt in 65 of 100 pairs (50: chance). Whether the model has never seen a thing, or knows it and
drowns it, these scores do not tell."""
"""What `generate --explain` says of such scores; the figures are those of docs/beyond.md."""


@dataclass(frozen=True)
class Score:
    """How rare one word of a prompt is: 0 or more, higher is rarer; `span` is where it starts and ends."""

    word: str
    span: tuple[int, int]
    score: float


def words(prompt: str) -> list[tuple[str, tuple[int, int]]]:
    """The content words of a prompt, and where each starts and ends: all but `tokens.FUNCTION_WORDS`."""
    return [(m[0], m.span()) for m in _WORD.finditer(prompt) if m[0].lower() not in FUNCTION_WORDS]


def without(prompt: str, span: tuple[int, int]) -> str:
    """The prompt less the characters of `span`, with single spaces."""
    return " ".join(f"{prompt[: span[0]]} {prompt[span[1] :]}".split())


@torch.no_grad()
def scores(pipe: DiffusionPipeline, prompt: str, *, max_sequence_length: int = 256, seed: int = 0) -> list[Score]:
    """How rare each content word of `prompt` is to the model, in the order of the prompt.

    |v(prompt) - v(word left out)|^2 / |v(prompt) - v(empty prompt)|^2, v being the first prediction, and the word left
    out of the pooled embedding but not of the text stream: the share of what the prompt does that hangs on the word. It
    is for comparing words of one kind: across kinds, a scene changes more of a picture than a hat.

    Costs one call of the transformer with n + 2 rows for n words. The scheduler and torch's random numbers are left
    alone; a lift is put aside meanwhile.

    Args:
        pipe: a `StableDiffusion3Pipeline`, or another that keeps its conventions.
        max_sequence_length: as in a call of the pipeline.
        seed: of the noise that the model is shown.

    Raises:
        TypeError: given a transformer without its pipeline.
        UnsupportedModelError: the transformer is of another class, compiled, or caches its blocks.
        ValueError: the prompt has no content word, or the model predicts the same for it as for no prompt.
    """
    root = _transformer(pipe)
    found = words(prompt)
    if not found:
        raise ValueError(f"{prompt!r} has no content word to score; name something to draw")
    with paused(root):
        texts = [prompt, *(without(prompt, span) for _, span in found), ""]
        # by the class: a lift listens to the method of the instance
        embeds, _, pooled, _ = type(pipe).encode_prompt(
            pipe, texts, None, None, do_classifier_free_guidance=False, max_sequence_length=max_sequence_length
        )
        kept = torch.cat([pooled[-1:], pooled[:-1]])  # the empty prompt, the whole, the words left out
        text = torch.cat([embeds[-1:], embeds[:1].expand(len(found) + 1, -1, -1)])
        nothing, whole, left_out = torch.split(_first_prediction(root, text, kept, seed), [1, 1, len(found)])
    done = _squares(nothing - whole)
    if not done > 0:
        raise ValueError(f"the model predicts the same for {prompt!r} as for no prompt at all")
    shares = (_squares(left_out - whole) / done).tolist()
    return [Score(word, span, share) for (word, span), share in zip(found, shares, strict=True)]


def _transformer(pipe: DiffusionPipeline) -> nn.Module:
    """The transformer of a pipeline, where it is known how to call it by itself."""
    if isinstance(pipe, nn.Module):
        raise TypeError(f"rarity needs the text encoders: give the pipeline, not its {type(pipe).__name__}")
    root = next(iter(transformers_of(pipe).values()))
    if _KNOWN not in [kind.__name__ for kind in type(root).__mro__]:
        raise UnsupportedModelError(
            f"rarity is measured by calling the transformer directly, which is known for {_KNOWN}, not for "
            f"{type(root).__name__}; name the rare words yourself: tokens=('striped', 'crown')"
        )
    if is_compiled(pipe.transformer) or any(is_compiled(module) for module in root.modules()):
        raise UnsupportedModelError(
            f"{type(root).__name__} is compiled, and a batch of words would compile it anew; measure before compiling"
        )
    registries = (getattr(module, "_diffusers_hook", None) for module in root.modules())
    if any(hook._is_stateful for registry in registries if registry for hook in registry.hooks.values()):
        raise UnsupportedModelError(
            f"{type(root).__name__} caches from step to step, and would take a batch of words for a step; turn the "
            "cache off first"
        )
    return root


def _first_prediction(root: nn.Module, text: Tensor, pooled: Tensor, seed: int) -> Tensor:
    """What the transformer says of pure noise, the same for every row, `[N, C, H, W]` in float32."""
    config: Any = root.config
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, config.in_channels, config.sample_size, config.sample_size, generator=generator)
    said: Tensor = root(
        hidden_states=noise.to(text).expand(len(text), -1, -1, -1),
        timestep=torch.full((len(text),), 1000.0, device=text.device),  # of pure noise, as diffusers counts
        encoder_hidden_states=text,
        pooled_projections=pooled,
        return_dict=False,
    )[0]
    return said.float()


def _squares(difference: Tensor) -> Tensor:
    return difference.flatten(1).square().sum(1)
