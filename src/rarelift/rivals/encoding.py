"""The way into `encode_prompt` that the rivals share which change what the text encoders gave, once a picture."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ..streams import Family
from ..tokens import read, token_weights
from .access import around_method, sites_of
from .checks import true_guidance
from .prompted import FLUX_TEXT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from diffusers import DiffusionPipeline
    from torch import Tensor


@dataclass(frozen=True)
class Encoded:
    """What the text encoders made of the prompts of one half of guidance.

    `embeds` is `[rows, L, D]`, a prompt's pictures one after the other; `sizes` are the tokens of each segment;
    `texts` maps prompt arguments to one text per prompt. `empty()` encodes the empty prompt, `[1, L, D]`.
    """

    pipe: DiffusionPipeline
    family: Family
    embeds: Tensor
    texts: Mapping[str, tuple[str, ...]]
    sizes: tuple[int, ...]
    branch: Literal["cond", "uncond"]
    empty: Callable[[], Tensor]

    @property
    def prompts(self) -> int:
        return len(next(iter(self.texts.values())))

    def weights(self, tokens: str | tuple[str, ...], prompt: int | None = None) -> Tensor:
        """Which tokens take part, `[rows, L]`, 0 or 1; of one prompt alone, `[rows of it, L]`."""
        texts = self.texts if prompt is None else {name: (said[prompt],) for name, said in self.texts.items()}
        asked = self.branch == "cond"  # a phrase need not be in the negative prompt
        found = token_weights(self.pipe, self.family, texts, tokens, self.sizes, must_hold=asked)
        return found.repeat_interleave(len(self.embeds) // self.prompts, 0).to(self.embeds.device)


@contextmanager
def encoding(
    pipe: DiffusionPipeline, rival: str, call: Mapping[str, Any], change: Callable[[Encoded], Tensor]
) -> Iterator[None]:
    """Put `change(encoded)` in place of the text embeddings of each half; the pooled embedding is left alone.

    Raises:
        UnsupportedPipelineError: as `sites_of`.
        ValueError: the call brings embeddings without words.
        RuntimeError: on leaving, nothing was encoded.
    """
    family = sites_of(pipe, rival)[0].family
    if not family.segments:
        family = replace(family, segments=FLUX_TEXT)
    together = family.batch == "uncond_cond"  # one call encodes both halves
    apart = not together and true_guidance(call) > 1  # a call each, the prompt first
    seen = 0

    def encode(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        bound = inspect.signature(inner).bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        arguments["prompt_2"] = arguments["prompt_2"] or arguments["prompt"]  # as both pipelines do
        result = list(inner(*args, **kwargs))
        reading = read(pipe, family, arguments, result[0])
        if reading.cond is None:
            raise ValueError(f"{rival} needs the words of the prompt, and the call brings prompt_embeds; give prompt")
        if sum(reading.segments) != reading.length:
            raise ValueError(
                f"{rival}: {type(pipe).__name__} made {reading.length} text tokens, and its tokenizers are known for "
                f"{sum(reading.segments)}"
            )

        def empty() -> Tensor:
            blank: dict[str, Any] = {name: None for name in arguments if "prompt" in name}
            blank |= {"prompt": "", "num_images_per_prompt": 1}
            if "do_classifier_free_guidance" in arguments:
                blank["do_classifier_free_guidance"] = False
            found: Tensor = inner(**{**arguments, **blank})[0]
            return found

        branch: Literal["cond", "uncond"] = "uncond" if apart and seen % 2 else "cond"
        seen += 1
        result[0] = change(Encoded(pipe, family, result[0], reading.cond, reading.segments, branch, empty))
        if together and reading.uncond is not None:
            result[1] = change(Encoded(pipe, family, result[1], reading.uncond, reading.segments, "uncond", empty))
        return tuple(result)

    with around_method(pipe, "encode_prompt", encode):
        yield
    if not seen:
        raise RuntimeError(f"{rival}: no prompt was encoded, so nothing was done")
