"""Knobs of guidance: what is done to the two halves of classifier-free guidance before they are put together.

The pipeline puts them together itself, uncond + guidance_scale (cond - uncond). So each method here changes the halves
that it is given in such a way that the pipeline's own formula comes to the method's.
"""

from __future__ import annotations

import abc
import inspect
import math
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .access import Attend, Forward, Joint, around, around_method, attention, branches_of, sites_of, step_of
from .base import Asked, Cost, Rival, UnsupportedPipelineError
from .checks import blocks, chosen, number, true_guidance, window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from diffusers import DiffusionPipeline

    from ..locate import Site
    from ..prompts import Prompt


@dataclass(frozen=True)
class Guidance(Rival):
    """Nothing but another guidance_scale: the knob that everyone has, and the first that a method must beat.

    Args:
        scale: 1 or more; 1 turns classifier-free guidance off. What `--guidance` asks for is not used.
    """

    scale: float = 7.0

    name = "guidance"
    summary = "another guidance_scale"
    source = "the pipelines of diffusers 0.42.1; classifier-free guidance is arXiv 2207.12598"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", number("scale", self.scale, 1))

    @contextmanager
    def on(self, pipe: DiffusionPipeline, prompts: Sequence[Prompt], call: Mapping[str, Any]) -> Iterator[Asked]:
        kind = type(pipe).__name__
        if "guidance_scale" not in inspect.signature(type(pipe).__call__).parameters:
            raise UnsupportedPipelineError(f"{self.name} sets guidance_scale, which {kind} does not take")
        if getattr(getattr(getattr(pipe, "transformer", None), "config", None), "guidance_embeds", None) is False:
            raise UnsupportedPipelineError(
                f"{self.name}: {kind} takes guidance_scale, but its transformer was not trained to be told it "
                "(guidance_embeds is False), so nothing would change"
            )
        yield Asked([prompt.text for prompt in prompts], {**call, "guidance_scale": self.scale})
        if getattr(pipe, "guidance_scale", self.scale) != self.scale:
            raise RuntimeError(f"{self.name}: {kind} was not called with guidance_scale={self.scale:g}")

    def cost(self, call: Mapping[str, Any]) -> Cost:
        return Cost()


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


@dataclass(frozen=True)
class _Away(Rival):
    """What the two methods share that push the prediction away from that of a weakened model.

    pred = usual + scale (cond - weak), where `weak` is a further pass of the conditional rows alone. It is folded into
    the conditional half, cond' = cond + scale / g (cond - weak), from which the pipeline's own combination at guidance
    g makes just that. Without guidance g is 1.
    """

    blocks: Any = None
    scale: float = 3.0
    start: float = 0.0
    stop: float = 1.0

    def __post_init__(self) -> None:
        start, stop = window(self.start, self.stop)
        settings = {
            "blocks": blocks(self.blocks),
            "scale": number("scale", self.scale, 0),
            "start": start,
            "stop": stop,
        }
        for field, value in settings.items():
            object.__setattr__(self, field, value)

    @abc.abstractmethod
    def _default(self, depth: int) -> Sequence[int]:
        """The blocks of a model so deep, where none are given."""

    @abc.abstractmethod
    def _weakened(self, pipe: DiffusionPipeline, sites: Sequence[Site]) -> AbstractContextManager[object]:
        """The model is weak while inside; `sites` are the chosen blocks."""

    @contextmanager
    def on(self, pipe: DiffusionPipeline, prompts: Sequence[Prompt], call: Mapping[str, Any]) -> Iterator[Asked]:
        sites = sites_of(pipe, self.name)
        wanted = self._default(len(sites)) if self.blocks is None else self.blocks
        at = [sites[i] for i in chosen(sites, wanted, self.name)]
        acted, half = False, "cond"

        def entered(inner: Callable[[str], Any], name: str) -> Any:
            nonlocal half
            half = name
            return inner(name)

        def function(forward: Forward, arguments: dict[str, Any]) -> tuple[Tensor, ...]:
            nonlocal acted
            usual = _first(forward(arguments))
            step, steps = step_of(pipe)
            if half == "uncond" or not self.start <= step / steps < self.stop:
                return (usual,)
            acted = True
            if self.scale == 0:
                return (usual,)
            branches = branches_of(pipe, len(usual))
            few = arguments if branches.uncond is None else _rows(arguments, len(usual), branches.cond)
            with self._weakened(pipe, at):
                weak = _first(forward(few))
            guidance = true_guidance(call) if branches.uncond is None else branches.guidance
            cond = usual[branches.cond]
            pushed = cond + (self.scale / guidance) * (cond - weak)
            return (pushed if branches.uncond is None else torch.cat([usual[branches.uncond], pushed]),)

        with ExitStack() as stack:
            stack.enter_context(around(pipe.transformer, function))
            if hasattr(pipe.transformer, "cache_context"):  # where FLUX says which half it calls for
                stack.enter_context(around_method(pipe.transformer, "cache_context", entered))
            yield Asked([prompt.text for prompt in prompts], dict(call))
        if not acted:
            raise RuntimeError(
                f"{self.name}: the transformer was not called in a step from start={self.start:g} to "
                f"stop={self.stop:g}, so nothing was done"
            )

    def cost(self, call: Mapping[str, Any]) -> Cost:
        """A pass of one half of guidance in each step of the window. FLUX.1-dev has one half, whatever guidance_scale
        it is told, so there it is twice what is declared.
        """
        if self.scale == 0:
            return Cost()
        steps = int(call.get("num_inference_steps", 28))
        acting = sum(self.start <= i / steps < self.stop for i in range(steps)) / steps
        guided = max(true_guidance(call), float(call.get("guidance_scale", 1))) > 1
        return Cost(forwards=acting / 2 if guided else acting)


@dataclass(frozen=True)
class SkipLayers(_Away):
    """Skip-layer guidance, as Stability AI released it with SD3.5: away from the model without some of its blocks.

    pred = usual + scale (cond - skipped). For SD3 it is what StableDiffusion3Pipeline does with skip_guidance_layers,
    here with or without guidance and for FLUX too.

    Args:
        blocks: what is left out, as in `Spread.blocks`; with more than one range, "0-3+7". None: those at the depth of
            7-9 of SD3.5-medium's 24, which is what its authors advise.
        scale: 0 or more; 0 changes nothing. The pipeline's own default is 2.8.
        start, stop: step i of n when start <= i / n < stop. The pipeline's own defaults leave out step 0.
    """

    scale: float = 2.8
    start: float = 0.01
    stop: float = 0.2

    name = "skip-layers"
    summary = "away from the model with blocks left out (SLG of SD3.5)"
    source = "diffusers 0.42.1, pipeline_stable_diffusion_3.py; no paper"

    def _default(self, depth: int) -> Sequence[int]:
        return range(7 * depth // 24, math.ceil(10 * depth / 24))

    @contextmanager
    def _weakened(self, pipe: DiffusionPipeline, sites: Sequence[Site]) -> Iterator[None]:
        def skipped(forward: Forward, arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
            return arguments["encoder_hidden_states"], arguments["hidden_states"]

        with ExitStack() as stack:
            for site in sites:
                stack.enter_context(around(site.module, skipped))
            yield


@dataclass(frozen=True)
class PerturbedAttention(_Away):
    """Perturbed-attention guidance: away from the model whose image tokens see no other image token.

    pred = usual + scale (cond - perturbed), where in some blocks the self-attention of the image is the identity
    (Ahn et al. 2024, arXiv 2403.17377). The paper has U-Nets, whose self-attention is a layer of its own. In joint
    attention, in our reading and in diffusers' pipeline for SD3, an image token then attends to itself and to the
    text, and the text attends as ever. An attention over the image alone, as SD3.5-medium has beside the joint one, is
    left as it is.

    Args:
        blocks: where, as in `Spread.blocks`; with more than one range, "0-3+7". None: that at the depth of 13 of 24,
            which diffusers' page on this method takes for SD3.
        scale: 0 or more; 0 changes nothing.
        start, stop: step i of n when start <= i / n < stop.
    """

    name = "perturbed-attention"
    summary = "away from the model whose image tokens do not see each other (PAG)"
    source = "arXiv 2403.17377, abstract, and a summary; for joint attention diffusers' PAGJointAttnProcessor2_0"

    def _default(self, depth: int) -> Sequence[int]:
        return (13 * depth // 24,)

    def _weakened(self, pipe: DiffusionPipeline, sites: Sequence[Site]) -> AbstractContextManager[object]:
        where = {site.index for site in sites}

        def function(
            attend: Attend, joint: Joint, query: Tensor, key: Tensor, value: Tensor, further: dict[str, Any]
        ) -> Tensor:
            if joint.block not in where:
                return attend(query, key, value, further)
            return _alone(attend, joint, query, key, value, further)

        return attention(pipe, self.name, function)


def _alone(attend: Attend, joint: Joint, query: Tensor, key: Tensor, value: Tensor, further: dict[str, Any]) -> Tensor:
    """Joint attention in which an image token attends to itself and to the text only."""
    total, pixels = key.shape[2], joint.image.stop - joint.image.start
    seen = torch.zeros(pixels, total, dtype=torch.bool, device=key.device)
    seen[:, joint.text] = True
    seen[:, joint.image].fill_diagonal_(True)
    image = attend(query[:, :, joint.image], key, value, {**further, "attn_mask": seen})
    text = attend(query[:, :, joint.text], key, value, further)
    return torch.cat([image, text] if joint.image.start == 0 else [text, image], 2)


def _rows(arguments: Mapping[str, Any], rows: int, part: slice) -> dict[str, Any]:
    """Arguments of a transformer for some rows of its batch."""

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[part] if value.ndim and len(value) == rows else value
        return [cut(item) for item in value] if isinstance(value, list) else value

    return {name: cut(value) for name, value in arguments.items()}


def _first(output: Any) -> Tensor:
    """What a transformer returned, with return_dict or without."""
    found: Tensor = output[0] if isinstance(output, tuple) else output.sample
    return found
