"""Prompt rewriting: the pipeline as it is, and a language model that says the prompt in other words first."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..menagerie.world import ATTRIBUTES, PHRASINGS, Thing, caption
from . import language
from .base import Asked, Cost, Rival

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from diffusers import DiffusionPipeline

    from ..prompts import Prompt

RULES = "rules"
_INSTRUCTION = Path(__file__).parents[1] / "data" / "rewrite_instruction.txt"
_FULLEST = 3  # the phrasing that gives a pattern words of its own: "a purple lion with stripes"


@dataclass(frozen=True)
class Rewrite(Rival):
    """The prompt, rewritten by a language model so that nothing in it is overlooked.

    The practice of the field rather than one paper: after the recaptioning of DALL-E 3 (Betker et al. 2023) models are
    given long and plain prompts by a language model. The instruction is our own. A model is loaded before anything is
    timed; asking it is timed with the call.

    Args:
        model: "rules", a stand-in for the Menagerie's world, whose model reads 14 words of a small vocabulary: the
            same picture in the fullest phrasing that the world has, where each attribute has words of its own; a
            prompt that is in it already is said in another. Or the folder of any causal language model of
            transformers, which decodes greedily. Or URL#MODEL for a chat endpoint, its key in RARELIFT_LLM_KEY.
        instruction: path of a text file that says what to do, with {prompt} where the prompt goes; ours when empty.
        cache: path of a JSONL file that keeps answers. One that is found there is not asked for, nor timed; leave it
            empty to measure time.
        max_new_tokens: of an answer, 1 or more.
        max_words: a longer answer is an error, for the model did not do what it was told.
    """

    model: str = RULES
    instruction: str = ""
    cache: str = ""
    max_new_tokens: int = 128
    max_words: int = 80

    name = "rewrite"
    summary = "the prompt rewritten by a language model, or by rules for Menagerie prompts"
    source = "practice; recaptioning as in DALL-E 3 (Betker et al. 2023), known to us by name; instruction our own"

    def __post_init__(self) -> None:
        language.check(self.model)
        for name in ("instruction", "cache"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} must be the path of a file, or empty, got {getattr(self, name)!r}")
        for name in ("max_new_tokens", "max_words"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")

    def prepare(self, pipe: DiffusionPipeline) -> None:
        if self.model != RULES:
            self._ask(pipe)
            self._instruction()

    @contextmanager
    def on(self, pipe: DiffusionPipeline, prompts: Sequence[Prompt], call: Mapping[str, Any]) -> Iterator[Asked]:
        yield Asked([self._rewritten(pipe, prompt) for prompt in prompts], dict(call))

    def cost(self, call: Mapping[str, Any]) -> Cost:
        return Cost(language_model=self.model != RULES)

    def to_dict(self) -> dict[str, Any]:
        """With the digest of the instruction, which may change behind its path."""
        asked = {} if self.model == RULES else {"instruction_digest": language.digest(self._instruction())}
        return {**super().to_dict(), **asked}

    def _rewritten(self, pipe: DiffusionPipeline, prompt: Prompt) -> str:
        if self.model == RULES:
            return by_rules(prompt)
        instruction, kept = self._instruction(), language.Cache(self.cache)
        asked = {"model": self.model, "instruction": language.digest(instruction), "prompt": prompt.text}
        answer = kept.get(**asked)
        if answer is None:
            try:
                said = self._ask(pipe)(instruction.replace("{prompt}", prompt.text))
            except RuntimeError as error:
                raise RuntimeError(f"{self.name}: prompt {prompt.text!r}: {error}") from error
            answer = " ".join(said.split()).strip("\"'“” ")
            if not answer or len(answer.split()) > self.max_words:
                what = f"{len(answer.split())} words, more than {self.max_words}" if answer else "nothing"
                raise RuntimeError(f"{self.name}: {self.model} answered {what} to the prompt {prompt.text!r}: {said!r}")
            kept.put(answer, **asked)
        return answer

    def _ask(self, pipe: DiffusionPipeline) -> language.Ask:
        return language.asking(self.model, device=str(pipe.device), max_new_tokens=self.max_new_tokens)

    def _instruction(self) -> str:
        return language.read_instruction(self.instruction, _INSTRUCTION)


def thing_of(prompt: Prompt, method: str) -> Thing:
    """What a Menagerie prompt asks for.

    Raises:
        ValueError: it is another prompt.
    """
    lacking = [attribute for attribute in ATTRIBUTES if attribute not in prompt.meta]
    if lacking:
        raise ValueError(f"{method} is for Menagerie prompts, and {prompt.text!r} has no {lacking[0]} in its meta")
    return Thing(*(prompt.meta[attribute] for attribute in ATTRIBUTES))


def phrasing_of(text: str, thing: Thing) -> int:
    """Which phrasing of the world a prompt for `thing` is in; the first one when in none."""
    return next((p for p in range(PHRASINGS) if caption(thing, p) == text), 0)


def by_rules(prompt: Prompt) -> str:
    """A Menagerie prompt in the fullest phrasing of its world, or, where it is in that already, with the scene first.

    Raises:
        ValueError: it is another prompt.
    """
    thing = thing_of(prompt, "rewrite:model=rules")
    return caption(thing, 2 if phrasing_of(prompt.text, thing) == _FULLEST else _FULLEST)
