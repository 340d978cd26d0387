"""What a pipeline makes of the prompts of a call, and which step and rows of it a call of the transformer is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..streams import Family, Segment
from ..tokens import Reading, read
from .access import around_method, sites_of
from .base import UnsupportedPipelineError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor

Encode = Callable[[Mapping[str, Any]], tuple[Any, ...]]
"""A pipeline's `encode_prompt`, by the names of its arguments."""

_POOLED = {"SD3Transformer2DModel": 2, "FluxTransformer2DModel": 1}
"""Where the pooled embedding is in what `encode_prompt` returns, by class of the transformer; the embedding of the
tokens is first. Source: diffusers 0.42.1, the pipelines of both."""
FLUX_TEXT = (Segment((("tokenizer_2", "prompt_2"),), "text_encoder_2", "max_sequence_length"),)
"""How FLUX lays out its text stream, which `streams` does not say: there padding takes part, as in the model. Source:
pipeline_flux.py."""


def pooled_at(pipe: DiffusionPipeline, rival: str) -> int:
    """Where the pooled embedding is in what `encode_prompt` returns.

    Raises:
        UnsupportedPipelineError: that is not known, or the pipeline has no joint attention that is.
    """
    model = type(sites_of(pipe, rival)[0].root).__name__
    if model not in _POOLED:
        raise UnsupportedPipelineError(
            f"{rival} knows how the pipelines of {', '.join(_POOLED)} encode a prompt, not {type(pipe).__name__}"
        )
    return _POOLED[model]


@contextmanager
def encoding(pipe: DiffusionPipeline, function: Callable[[Encode, dict[str, Any]], tuple[Any, ...]]) -> Iterator[None]:
    """Call `function(encode, arguments)` in place of the first `encode_prompt` while inside: that of the prompts.

    A pipeline with guidance encodes the negative prompts in the same call, or in one after it.
    """
    first = True

    def wrapped(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal first
        if not first:
            return inner(*args, **kwargs)
        first = False
        bound = inspect.signature(inner).bind(*args, **kwargs)
        bound.apply_defaults()
        return function(lambda arguments: inner(**arguments), dict(bound.arguments))

    with around_method(pipe, "encode_prompt", wrapped):
        yield


def reading_of(
    pipe: DiffusionPipeline, family: Family, arguments: Mapping[str, Any], embeds: Tensor
) -> tuple[Family, Reading]:
    """What a finished `encode_prompt` call said, and the family with a layout of the stream that goes with it."""
    if family.segments:
        return family, read(pipe, family, arguments, embeds)
    known = replace(family, segments=FLUX_TEXT)
    return known, read(pipe, known, {**arguments, "prompt_2": arguments["prompt_2"] or arguments["prompt"]}, embeds)


class Steps:
    """Counts the steps of a denoising loop: calls of the transformer before one of the scheduler are of one step.

    The timestep would not tell: a step of second order has one twice, and bfloat16 rounds neighbours together.
    """

    def __init__(self, pipe: DiffusionPipeline) -> None:
        self._pipe, self._under_way = pipe, False
        self.index = -1
        """Of the step under way, from 0."""

    @property
    def total(self) -> int:
        return int(self._pipe.num_timesteps)

    def begins(self) -> bool:
        """Whether a call of the transformer is the first one of its step."""
        if self._under_way:
            return False
        self._under_way = True
        self.index += 1
        return True

    def end(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._under_way = False
        return step(*args, **kwargs)


@contextmanager
def counting(pipe: DiffusionPipeline) -> Iterator[Steps]:
    """The steps of the call of a pipeline while inside."""
    steps = Steps(pipe)
    with around_method(pipe.scheduler, "step", steps.end):
        yield steps
