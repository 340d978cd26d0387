"""What the tests of rivals share: tiny real pipelines with guidance on and off, one call with a rival on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rarelift.prompts import Prompt
from tiny_pipelines import OTHER, PIPELINES, PROMPT, Call, draw

if TYPE_CHECKING:
    from torch import Tensor

    from rarelift.rivals.base import Rival

MODES = [("SD3", False), ("SD3", True), ("Flux", False), ("Flux", True)]
TEXTS = (PROMPT, OTHER)


def call(kind: str, guided: bool, steps: int = 2, **more: Any) -> Call:
    """Arguments for two prompts, that ask for latents."""
    case = PIPELINES[kind]
    made = case.arguments(*TEXTS, guided=guided)
    return {**made, "num_inference_steps": steps, "output_type": "latent", **more}


def asked(arguments: Call) -> tuple[list[Prompt], Call]:
    """Prompts and arguments, as a bench hands them to a rival."""
    prompts = [Prompt(f"p{i}", text, "single_complex") for i, text in enumerate(arguments["prompt"])]
    return prompts, {name: value for name, value in arguments.items() if name not in ("prompt", "generator")}


def draw_with(pipe: Any, rival: Rival, arguments: Call) -> Tensor:
    prompts, rest = asked(arguments)
    with rival.on(pipe, prompts, rest) as wanted:
        return draw(pipe, {**arguments, **wanted.call, "prompt": wanted.texts})


def attributes(pipe: Any) -> list[set[str]]:
    """The names that a pipeline, its scheduler and its modules hold."""
    return [set(vars(part)) for part in (pipe, pipe.scheduler, *pipe.transformer.modules())]
