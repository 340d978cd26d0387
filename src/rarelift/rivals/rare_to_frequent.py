"""Rare-to-Frequent: in early steps a more usual prompt in turn with the rare one, then the rare one alone."""

from __future__ import annotations

import json
import math
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..menagerie.world import VALUES, Thing, caption, frequency, habitat, value_shares
from . import language
from .access import Forward, around
from .base import Asked, Cost, Rival
from .prompted import Encode, Steps, counting, encoding, pooled_at
from .rewrite import phrasing_of, thing_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from diffusers import DiffusionPipeline
    from torch import Tensor

    from ..prompts import Prompt

LEVELS = (0.1, 0.2, 0.4, 0.6, 0.8)
"""Share of the steps at which alternation ends, by level of visual detail from 1 to 5."""
MENAGERIE, MENAGERIE_ANIMAL = "menagerie", "menagerie-animal"
_INSTRUCTION = Path(__file__).parents[1] / "data" / "frequent_instruction.txt"


@dataclass(frozen=True)
class Phase:
    """A usual prompt, and the share of the steps until which it takes turns with the rare one."""

    text: str
    until: float


@dataclass(frozen=True)
class RareToFrequent(Rival):
    """R2F: step i of n is drawn with a frequent prompt where i is even and i / n < until, else with the rare one.

    With several frequent prompts, that with the lowest `until` not yet reached takes its turn (Park et al. 2025, arXiv
    2410.22376). The paper lets a language model find them and give each a level of visual detail from 1 to 5, which
    the authors' SD3 pipeline turns into 10, 20, 40, 60 and 80% of the steps.

    Args:
        mapping: "menagerie-animal" keeps what is rare for a Menagerie prompt's animal and puts the animal in its place
            that is seen with it most often, as the paper's own examples do. "menagerie" keeps the animal and replaces
            what is rare by what it is usually seen with, all in one frequent prompt. Or the path of a JSON file,
            {prompt: [{"frequent": text, "until": share} or {"frequent": text, "level": 1 to 5}]}; `written_by` makes
            one. The Menagerie's mappings are our stand-ins for the language model.
        stop: `until` of the frequent prompts that the mapping gives none; 0 turns the method off.
    """

    mapping: str = MENAGERIE_ANIMAL
    stop: float = 0.4

    name = "rare-to-frequent"
    summary = "R2F: a more frequent prompt in turn with the rare one in early steps"
    source = "arXiv 2410.22376; abstract, and how the authors' SD3 pipeline takes turns and reads levels"

    def __post_init__(self) -> None:
        if not isinstance(self.mapping, str) or not self.mapping:
            raise ValueError(
                f"mapping must be {MENAGERIE!r}, {MENAGERIE_ANIMAL!r} or the path of a JSON file, got {self.mapping!r}"
            )
        object.__setattr__(self, "stop", _share("stop", self.stop))

    def prepare(self, pipe: DiffusionPipeline) -> None:
        self._file()

    @contextmanager
    def on(self, pipe: DiffusionPipeline, prompts: Sequence[Prompt], call: Mapping[str, Any]) -> Iterator[Asked]:
        pooled = pooled_at(pipe, self.name)
        known = self._file()
        phases = [self._phases(prompt, known) for prompt in prompts]
        with ExitStack() as stack:
            turns = _Turns(stack.enter_context(counting(pipe)), pooled, phases)
            stack.enter_context(encoding(pipe, turns.encode))
            stack.enter_context(around(pipe.transformer, turns.transform))
            yield Asked([prompt.text for prompt in prompts], dict(call))
        if not turns.seen:
            raise RuntimeError(f"{self.name}: the transformer was never called with the prompts, so nothing was done")

    def cost(self, call: Mapping[str, Any]) -> Cost:
        return Cost(encodes=float(self.stop > 0), language_model=self.mapping not in (MENAGERIE, MENAGERIE_ANIMAL))

    def to_dict(self) -> dict[str, Any]:
        """With the digest of the mapping's file, which may change behind its path."""
        known = self._file()
        return super().to_dict() if known is None else {**super().to_dict(), "mapping_digest": known[1]}

    def _file(self) -> tuple[dict[str, tuple[Phase, ...]], str] | None:
        """The mapping in the file, and its digest."""
        if self.mapping in (MENAGERIE, MENAGERIE_ANIMAL):
            return None
        return _read(Path(self.mapping).expanduser(), self.stop)

    def _phases(self, prompt: Prompt, known: tuple[dict[str, tuple[Phase, ...]], str] | None) -> tuple[Phase, ...]:
        """In the order of their ends; none where nothing is rare, or the method is off."""
        if known is None:
            usual = usual_animal if self.mapping == MENAGERIE_ANIMAL else usual_attributes
            thing = thing_of(prompt, f"{self.name}:mapping={self.mapping}")
            text = caption(usual(thing), phrasing_of(prompt.text, thing))
            found: tuple[Phase, ...] = () if text == prompt.text else (Phase(text, self.stop),)
        elif prompt.text in known[0]:
            found = known[0][prompt.text]
        else:
            raise ValueError(f"{self.mapping} maps {len(known[0])} prompts, and {prompt.text!r} is not among them")
        return tuple(sorted(found, key=lambda phase: phase.until)) if self.stop else ()


def usual_attributes(thing: Thing) -> Thing:
    """The same animal, with what is rare for it replaced by what it is usually seen with."""
    return replace(thing, **{attribute: habitat(thing.animal)[attribute][0] for attribute in thing.tail})


def usual_animal(thing: Thing) -> Thing:
    """The animal in its place that is most often seen with what is rare for it, and then with the rest."""

    def often(other: Thing) -> tuple[float, float]:
        rare = math.prod(value_shares(other.animal, a)[getattr(other, a)] for a in thing.tail)
        return rare, frequency(other)

    others = (replace(thing, animal=animal) for animal in VALUES["animal"])
    return max(others, key=often) if thing.tail else thing


class _Turns:
    """One call of a pipeline under way."""

    def __init__(self, steps: Steps, pooled: int, phases: Sequence[tuple[Phase, ...]]) -> None:
        self._steps, self._pooled, self._phases = steps, pooled, phases
        self._own: Tensor | None = None
        self._texts = self._vectors = torch.empty(0)  # the prompt's own, then its frequent ones: [1 + most, rows, ...]
        self.seen = False

    def encode(self, encode: Encode, arguments: dict[str, Any]) -> tuple[Any, ...]:
        given = arguments["prompt"]
        if given is None:
            raise ValueError("rare-to-frequent needs the words of a call; pass prompt, not prompt_embeds")
        own = [given] if isinstance(given, str) else list(given)
        if len(own) != len(self._phases):
            raise ValueError(f"rare-to-frequent was put on for {len(self._phases)} prompts, and got {len(own)}")
        changes: dict[str, Any] = dict.fromkeys(("prompt_2", "prompt_3"))
        changes["do_classifier_free_guidance"] = False  # the negative prompts stay as they are
        others = []
        for k in range(max(map(len, self._phases))):
            texts = [
                phases[k].text if k < len(phases) else text for phases, text in zip(self._phases, own, strict=True)
            ]
            changed = {name: value for name, value in {**changes, "prompt": texts}.items() if name in arguments}
            others.append(encode({**arguments, **changed}))
        found = encode(arguments)  # last, so that whoever listens has heard the prompts
        self._own = found[0]
        self._texts = torch.stack([found[0], *(other[0] for other in others)])
        self._vectors = torch.stack([found[self._pooled], *(other[self._pooled] for other in others)])
        return found

    def transform(self, forward: Forward, arguments: dict[str, Any]) -> Any:
        self._steps.begins()
        text = arguments["encoder_hidden_states"]
        rows = self._conditional(text)
        if rows is not None:
            self.seen = True
            turn = self._turn()
            if any(turn):
                index = torch.tensor(turn, device=text.device)
                for name, kept in (("encoder_hidden_states", self._texts), ("pooled_projections", self._vectors)):
                    changed = arguments[name].clone()
                    changed[rows] = kept[index, torch.arange(len(turn), device=text.device)].to(changed)
                    arguments[name] = changed
        return forward(arguments)

    def _conditional(self, text: Tensor) -> slice | None:
        """The rows of a call that hold the prompts; None where it is one of negative prompts alone."""
        if self._own is None:
            return None
        if text is self._own:
            return slice(0, len(text))
        return slice(len(self._own), len(text)) if len(text) == 2 * len(self._own) else None

    def _turn(self) -> list[int]:
        """Whose turn it is, for each row: 0 for the prompt itself, k for its k-th frequent one."""
        assert self._own is not None
        step, total = self._steps.index, self._steps.total
        now = [
            next((k for k, phase in enumerate(phases, 1) if step < phase.until * total), 0) if step % 2 == 0 else 0
            for phases in self._phases
        ]
        return [k for k in now for _ in range(len(self._own) // len(now))]


def _share(what: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{what} must be a share of the steps from 0 to 1, got {value!r}")
    return float(value)


def _read(path: Path, stop: float) -> tuple[dict[str, tuple[Phase, ...]], str]:
    """A mapping's file and its digest; every entry is checked, so that a run does not end at the last of them."""
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text)
    except (OSError, ValueError) as error:
        raise ValueError(f"mapping {str(path)!r} cannot be read as JSON: {error}") from error
    if not isinstance(document, dict):
        raise ValueError(f"mapping {str(path)!r} holds a {type(document).__name__}, not frequent prompts by prompt")
    found = {prompt: _entries(f"mapping {str(path)!r}: {prompt!r}", rows, stop) for prompt, rows in document.items()}
    return found, language.digest(text)


def _entries(where: str, rows: object, stop: float) -> tuple[Phase, ...]:
    if not isinstance(rows, list):
        raise ValueError(f"{where} should hold a list, got {rows!r}")
    phases = []
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("frequent"), str) or not row["frequent"].strip():
            raise ValueError(
                f'{where} should hold objects such as {{"frequent": "a hairy dog", "level": 3}}, got {row!r}'
            )
        if {"until", "level"} <= set(row) or set(row) - {"frequent", "until", "level"}:
            raise ValueError(f"{where} takes frequent, and until or level, got {row!r}")
        until = row.get("until", stop)
        if "level" in row:
            if type(row["level"]) is not int or not 1 <= row["level"] <= len(LEVELS):
                raise ValueError(f"{where}: level must be 1 to {len(LEVELS)}, got {row['level']!r}")
            until = LEVELS[row["level"] - 1]
        phases.append(Phase(row["frequent"].strip(), _share(f"{where}: until", until)))
    return tuple(phases)


def written_by(model: str, texts: Iterable[str], *, instruction: str = "", device: str = "cpu") -> dict[str, Any]:
    """A mapping for these prompts as a language model writes it; `json.dump` makes it the file that `mapping` names.

    Args:
        model: a folder or URL#MODEL, as for `rewrite`.
        instruction: path of a text file with {prompt} in it; ours when empty, which is not the paper's.

    Raises:
        RuntimeError: an answer is no list of this form; the message names the prompt.
    """
    ask = language.asking(model, device=device, max_new_tokens=512)
    told = language.read_instruction(instruction, _INSTRUCTION)
    found: dict[str, Any] = {}
    for text in texts:
        said = ask(told.replace("{prompt}", text))
        try:
            rows = json.loads(said[said.index("[") : said.rindex("]") + 1])
            _entries("the answer", rows, 0.0)
        except ValueError as error:
            raise RuntimeError(f"{model} gave no mapping for the prompt {text!r}: {error}; it said {said!r}") from error
        found[text] = rows
    return found
