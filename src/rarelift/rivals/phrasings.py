"""One prompt in several phrasings, each of which has its turn."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..menagerie.world import PHRASINGS, caption
from . import language
from .base import Asked, Cost, Rival
from .rewrite import thing_of
from .turns import taking_turns

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from diffusers import DiffusionPipeline

    from ..prompts import Prompt

MENAGERIE = "menagerie"


@dataclass(frozen=True)
class Phrasings(Rival):
    """Step i reads phrasing i modulo their number: what one wording hides from the model, another may say.

    Over the steps this adds up to about the mean prediction of all phrasings, without a further pass.

    Args:
        texts: "menagerie", the four phrasings that the captions of its world have; or the path of a JSON file,
            {prompt: [other phrasings]}, which take their turns after the prompt itself.
    """

    texts: str = MENAGERIE

    name = "phrasings"
    summary = "ours: the prompt in several phrasings, each step another"
    source = "ours; CLIP averages a class over templates in this spirit (Radford et al. 2021, arXiv 2103.00020)"

    def __post_init__(self) -> None:
        if not isinstance(self.texts, str) or not self.texts:
            raise ValueError(f"texts must be {MENAGERIE!r} or the path of a JSON file, got {self.texts!r}")

    def prepare(self, pipe: DiffusionPipeline) -> None:
        self._file()

    @contextmanager
    def on(self, pipe: DiffusionPipeline, prompts: Sequence[Prompt], call: Mapping[str, Any]) -> Iterator[Asked]:
        known = self._file()
        cycles = [self._cycle(prompt, known) for prompt in prompts]
        own = [prompt.text for prompt in prompts]
        others = [[text for text in cycle if text != mine] for cycle, mine in zip(cycles, own, strict=True)]
        orders = [
            [0 if text == mine else 1 + rest.index(text) for text in cycle]
            for cycle, mine, rest in zip(cycles, own, others, strict=True)
        ]
        with taking_turns(pipe, self.name, others, lambda step, _: [order[step % len(order)] for order in orders]):
            yield Asked(own, dict(call))

    def cost(self, call: Mapping[str, Any]) -> Cost:
        """For Menagerie; a file may hold more or fewer phrasings."""
        return Cost(encodes=PHRASINGS - 1)

    def to_dict(self) -> dict[str, Any]:
        """With the digest of the file, which may change behind its path."""
        known = self._file()
        return super().to_dict() if known is None else {**super().to_dict(), "texts_digest": known[1]}

    def _cycle(self, prompt: Prompt, known: tuple[dict[str, list[str]], str] | None) -> list[str]:
        """All phrasings of a prompt in the order of their turns, none twice; for Menagerie those of the world alone."""
        if known is None:
            thing = thing_of(prompt, f"{self.name}:texts={self.texts}")
            return list(dict.fromkeys(caption(thing, i) for i in range(PHRASINGS)))
        if prompt.text not in known[0]:
            raise ValueError(f"{self.texts} has {len(known[0])} prompts, and {prompt.text!r} is not among them")
        return list(dict.fromkeys([prompt.text, *known[0][prompt.text]]))

    def _file(self) -> tuple[dict[str, list[str]], str] | None:
        """The phrasings in the file, and its digest; every entry is checked before the first is drawn."""
        if self.texts == MENAGERIE:
            return None
        path = Path(self.texts).expanduser()
        try:
            text = path.read_text(encoding="utf-8")
            found = json.loads(text)
        except (OSError, ValueError) as error:
            raise ValueError(f"texts {str(path)!r} cannot be read as JSON: {error}") from error
        if not isinstance(found, dict):
            raise ValueError(f"texts {str(path)!r} holds a {type(found).__name__}, not phrasings by prompt")
        for prompt, rows in found.items():
            whole = isinstance(rows, list) and all(isinstance(row, str) and row.strip() for row in rows)
            if not whole or set(rows) <= {prompt}:
                raise ValueError(f"texts {str(path)!r}: {prompt!r} should hold a list of other phrasings, got {rows!r}")
        return found, language.digest(text)
