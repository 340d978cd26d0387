"""Ways into a pipeline that several rivals share: its transformer, its joint blocks, their attention.

Each is a context manager that puts back on leaving exactly what was there. A compiled transformer is refused: what is
put on it after it was traced would be ignored, silently.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..locate import Site, UnsupportedModelError, is_compiled, locate
from .base import UnsupportedPipelineError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Forward = Callable[[dict[str, Any]], Any]
"""A module's forward, by the names of its arguments."""
Attend = Callable[[Tensor, Tensor, Tensor, dict[str, Any]], Tensor]
"""`scaled_dot_product_attention`: queries, keys, values `[B, heads, S, D]`, and its further arguments by name."""

_TEXT_LAST = {"JointTransformerBlock": True, "FluxTransformerBlock": False, "FluxSingleTransformerBlock": False}
"""Whether the text follows the image in the sequence that a block attends over. Source: diffusers 0.42.1,
attention_processor.py (JointAttnProcessor2_0) and transformer_flux.py (FluxAttnProcessor)."""


def sites_of(pipe: DiffusionPipeline, rival: str) -> tuple[Site, ...]:
    """The joint blocks of a pipeline whose attention is known, in order.

    Raises:
        UnsupportedPipelineError: it has none, they are of a class whose sequence is not known, or it is compiled.
    """
    try:
        sites = locate(pipe)
    except UnsupportedModelError as error:
        raise UnsupportedPipelineError(f"{rival} needs joint attention: {error}") from error
    for site in sites:
        kind = type(site.module).__name__
        if kind not in _TEXT_LAST:
            raise UnsupportedPipelineError(
                f"{rival} knows the attention of {', '.join(_TEXT_LAST)}, not of {kind} in {type(pipe).__name__}"
            )
    for module in (pipe.transformer, *(site.module for site in sites)):
        if is_compiled(module):
            raise UnsupportedPipelineError(f"{rival} cannot be put on a compiled transformer; load it anew")
    return sites


@contextmanager
def around(module: nn.Module, function: Callable[[Forward, dict[str, Any]], Any]) -> Iterator[None]:
    """Call `function(forward, arguments)` in place of a module's forward, while inside.

    `arguments` holds all of them by name, defaults too, and is the function's own to change and pass on.
    """
    before = vars(module).get("forward")
    inner = module.forward
    signature = inspect.signature(type(module).forward)

    def forward(arguments: dict[str, Any]) -> Any:
        bound = inspect.BoundArguments(signature, {"self": module, **arguments})
        return inner(*bound.args[1:], **bound.kwargs)

    @functools.wraps(inner)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(module, *args, **kwargs)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        del arguments["self"]
        return function(forward, arguments)

    module.forward = wrapped
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


@contextmanager
def around_method(owner: object, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Call `function(inner, *args, **kwargs)` in place of a method of a pipeline or scheduler, while inside."""
    before = vars(owner).get(name)
    inner = getattr(owner, name)
    setattr(owner, name, functools.update_wrapper(functools.partial(function, inner), inner))
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@dataclass(frozen=True)
class Branches:
    """Which rows of a transformer call belong to which half of classifier-free guidance; `uncond` None without."""

    cond: slice
    uncond: slice | None
    guidance: float
    """The guidance_scale that the pipeline combines the halves with; 1 without."""


def branches_of(pipe: DiffusionPipeline, rows: int) -> Branches:
    """The halves of a call of the transformer with so many rows.

    A pipeline that brings its branches in a call each (FLUX with true_cfg_scale) is seen as having no halves.
    """
    guided = getattr(pipe, "do_classifier_free_guidance", False)
    if not guided or rows % 2:
        return Branches(slice(0, rows), None, 1.0)
    half = rows // 2
    return Branches(slice(half, rows), slice(0, half), float(pipe.guidance_scale))


@dataclass(frozen=True)
class Joint:
    """One attention over text and image under way.

    `text` is where the text is in the sequence, `image` where the image is.
    """

    block: int
    text: slice
    image: slice


@contextmanager
def attention(
    pipe: DiffusionPipeline,
    rival: str,
    function: Callable[[Attend, Joint, Tensor, Tensor, Tensor, dict[str, Any]], Tensor],
) -> Iterator[None]:
    """Call `function(attend, joint, query, key, value, arguments)` in place of each attention over text and image.

    `attend` is the attention itself. An attention over the image alone, which SD3.5 has in some blocks, is left alone.
    """
    sites = sites_of(pipe, rival)
    now: list[tuple[Site, int, int]] = []  # the block under way, its text tokens and its image tokens

    def entered(site: Site) -> Callable[[Forward, dict[str, Any]], Any]:
        def block(forward: Forward, arguments: dict[str, Any]) -> Any:
            now.append((site, arguments["encoder_hidden_states"].shape[1], arguments["hidden_states"].shape[1]))
            try:
                return forward(arguments)
            finally:
                now.pop()

        return block

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is not F.scaled_dot_product_attention or not now:
                return func(*args, **(kwargs or {}))
            further = {**dict(zip(_ARGUMENTS, args, strict=False)), **(kwargs or {})}
            query, key, value = (further.pop(name) for name in _ARGUMENTS[:3])
            site, length, pixels = now[-1]
            total = key.shape[2]
            if total != length + pixels:
                return func(query, key, value, **further)
            last = _TEXT_LAST[type(site.module).__name__]
            text = slice(total - length, total) if last else slice(0, length)
            image = slice(0, pixels) if last else slice(length, total)
            return function(_attend, Joint(site.index, text, image), query, key, value, further)

    with ExitStack() as stack:
        for site in sites:
            stack.enter_context(around(site.module, entered(site)))
        stack.enter_context(Mode())
        yield


_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


def _attend(query: Tensor, key: Tensor, value: Tensor, further: dict[str, Any]) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, **further)
