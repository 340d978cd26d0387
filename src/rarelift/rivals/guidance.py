"""Knobs of guidance: what is done to the two halves of classifier-free guidance before they are put together.

The pipeline puts them together itself, uncond + guidance_scale (cond - uncond). So each method here changes the halves
that it is given in such a way that the pipeline's own formula comes to the method's.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .access import Forward, around, branches_of, sites_of
from .base import Asked, Cost, Rival

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from diffusers import DiffusionPipeline
    from torch import Tensor

    from ..prompts import Prompt


@dataclass(frozen=True)
class CfgZero(Rival):
    """CFG-Zero*: the unconditional half scaled to fit the conditional one, and no movement in the first steps.

    uncond is multiplied by s = <cond, uncond> / |uncond|^2, a number for each sample, and the prediction of the first
    `zero_steps` steps is zero (Fan et al. 2025, arXiv 2503.18886).

    Args:
        zero_steps: steps that are left out, 0 or more. The authors' repository advises 4% of them: 1 in 16 steps.
    """

    zero_steps: int = 1

    name = "cfg-zero"
    summary = "CFG-Zero*: uncond scaled to fit cond, the first steps left out"
    source = "arXiv 2503.18886; abstract and README of the authors' repository"

    def __post_init__(self) -> None:
        if type(self.zero_steps) is not int or self.zero_steps < 0:
            raise ValueError(f"zero_steps must be a whole number of at least 0, got {self.zero_steps!r}")

    @contextmanager
    def on(self, pipe: DiffusionPipeline, prompts: Sequence[Prompt], call: Mapping[str, Any]) -> Iterator[Asked]:
        sites_of(pipe, self.name)
        seen = 0

        def function(forward: Forward, arguments: dict[str, Any]) -> tuple[Tensor, ...]:
            nonlocal seen
            seen += 1
            velocity = _first(forward(arguments))
            if seen <= self.zero_steps:
                return (torch.zeros_like(velocity),)
            branches = branches_of(pipe, len(velocity))
            if branches.uncond is None:
                return (velocity,)
            cond, uncond = velocity[branches.cond].float(), velocity[branches.uncond].float()
            over = tuple(range(1, velocity.ndim))
            fit = (cond * uncond).sum(over, keepdim=True) / (uncond.square().sum(over, keepdim=True) + 1e-8)
            return (torch.cat([(fit * uncond).to(velocity.dtype), velocity[branches.cond]]),)

        with around(pipe.transformer, function):
            yield Asked([prompt.text for prompt in prompts], dict(call))
        if not seen:
            raise RuntimeError(f"{self.name}: the transformer was never called, so nothing was done")

    def cost(self, call: Mapping[str, Any]) -> Cost:
        return Cost()


def _first(output: Any) -> Tensor:
    """What a transformer returned, with return_dict or without."""
    found: Tensor = output[0] if isinstance(output, tuple) else output.sample
    return found
