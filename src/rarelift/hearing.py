"""What the text encoders of a pipeline read while it encodes a prompt, and where its words stand in the text stream.

Pipelines put prompts into chat templates, cut these off again, pad left, right or between, and join several encoders.
What holds for all of them is that token ids go into a text encoder: they are noted there, turned back to text, and the
prompt is looked for in that text. What a pipeline does to the encoder's positions afterwards is in `streams.Run`.
"""

from __future__ import annotations

import functools
import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from .streams import Family, Run

Ids = tuple[int, ...]
Spans = list[tuple[int, int]]

_ENOUGH = 32  # characters by which a prompt is found whose end was cut off
_PART = "\ufffd"  # stands for a character of which not all bytes are there yet


@contextmanager
def listening(pipe: object, runs: tuple[Run, ...]) -> Iterator[list[list[Ids]]]:
    """Note the token ids that the encoder of each run is given while inside, one tuple per sample, in their order."""
    heard: list[list[Ids]] = [[] for _ in runs]
    hooks = []
    try:
        for run, rows in zip(runs, heard, strict=True):
            encoder = _attribute(pipe, run.encoder)
            if isinstance(encoder, nn.Module):
                hooks.append(encoder.register_forward_pre_hook(functools.partial(_note, rows), with_kwargs=True))
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


def _note(rows: list[Ids], _encoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    ids = kwargs.get("input_ids", args[0] if args else None)
    if isinstance(ids, Tensor) and ids.ndim == 2 and not ids.is_floating_point():
        rows.extend(map(tuple, ids.tolist()))


@dataclass(frozen=True, eq=False)
class Line:
    """One prompt as one text encoder read it.

    `ids` are those whose states reach the text stream, in the order of its positions, and `before` those in front of
    them that do not; `tokenizer` turns both to text.
    """

    tokenizer: Any
    before: Ids
    ids: Ids
    prompt: str

    @functools.cached_property
    def _decoded(self) -> tuple[str, Spans]:
        """The text of all ids, and the characters of each of `ids`; special tokens have none."""
        decode = functools.partial(self.tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        every, spans, text = [*self.before, *self.ids], [], decode(list(self.before))
        for number in range(len(self.before) + 1, len(every) + 1):
            longer = decode(every[:number])
            spans.append((len(text.rstrip(_PART)), len(longer)))
            text = longer
        special = set(self.tokenizer.all_special_ids)
        for i in reversed(range(len(spans) - 1)):  # some tokenizers write no bytes before the character is whole
            if spans[i][0] == spans[i][1] == spans[i + 1][0] and self.ids[i] not in special:
                spans[i] = spans[i + 1]
        return text, spans

    def marks(self, spans_of: Callable[[str], Iterator[tuple[int, int]]]) -> list[bool]:
        """Which of `ids` hold characters of the spans that the function finds in the prompt."""
        text, characters = self._decoded
        first, last = _found(text, self.prompt)
        wanted = [(first + a, first + b) for a, b in spans_of(text[first:last])]
        return [overlaps(span, wanted) for span in characters]


def overlaps(span: tuple[int, int], others: Spans) -> bool:
    """Whether a span of characters has one in common with any of the others."""
    return any(max(span[0], a) < min(span[1], b) for a, b in others)


def _found(text: str, prompt: str) -> tuple[int, int]:
    """Where a prompt is in the text that an encoder read: its last occurrence, as templates put it last.

    White space, capitals and the end of the prompt may have been lost. Where not even its beginning is found, the text
    is taken to be the prompt, as its tokenizer writes it.
    """
    letters = "".join(prompt.split())
    if not letters:
        return 0, 0
    for part, after in ((letters, r"(?!\w)"), (letters[:_ENOUGH], "")):
        pattern = r"(?<!\w)" + r"\s*".join(map(re.escape, part)) + after
        found = list(re.finditer(pattern, text, re.IGNORECASE))
        if found:
            return found[-1].start(), found[-1].end() if after else len(text)
    return 0, len(text)


@dataclass(frozen=True, eq=False)
class Branch:
    """The prompts of one branch of guidance, as all text encoders read them: lines by prompt, then by run.

    `problem` says why they cannot be placed, if so.
    """

    prompts: tuple[tuple[Line, ...], ...]
    problem: str = ""

    def weights(self, spans_of: Callable[[str], Iterator[tuple[int, int]]]) -> Tensor:
        """Which positions of the text stream hold what the function finds: `[prompts, L]`, float32, 0 or 1.

        L is the length of the longest; behind it no text takes part.

        Raises:
            ValueError: the words cannot be placed.
        """
        if self.problem:
            raise ValueError(self.problem)
        once = dict.fromkeys(self.prompts)  # several seeds of one prompt are common
        marks = {lines: [float(mark) for line in lines for mark in line.marks(spans_of)] for lines in once}
        rows = [torch.tensor(marks[lines]) for lines in self.prompts]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def branches(
    pipe: object,
    family: Family,
    arguments: Mapping[str, Any],
    heard: list[list[Ids]],
    texts: tuple[Mapping[str, tuple[str, ...]] | None, Mapping[str, tuple[str, ...]] | None],
    length: int,
) -> tuple[Branch | None, ...]:
    """The branches of one finished `encode_prompt` call: the prompts, then the negative ones where it had any.

    Args:
        pipe, family, arguments: as in `tokens.read`.
        heard: what `listening` noted.
        texts: prompt argument to one text per prompt, of both branches; None where embeddings were given.
        length: of the text stream that was returned; 0 where that is not one tensor of text alone.

    Returns:
        None for a branch that was given as embeddings. Without an entry: a branch without any words.
    """
    first, second = texts
    number = len(next(iter((first or second or {"": ()}).values())))
    if first is None:
        return (None,)
    halves: list[list[list[Ids]]] = [[], []]
    for rows in heard:
        one, other = rows[:number], rows[number:]
        if family.uncond_first and len(rows) == 2 * number:
            one, other = other, one
        halves[0].append(one)
        halves[1].append(other * number if len(other) == 1 else other)
    found: list[Branch | None] = [_branch(pipe, family, arguments, halves[0], first, length)]
    if second is None:
        found.append(None)
    elif any(halves[1]):
        found.append(_branch(pipe, family, arguments, halves[1], second, 0))
    return tuple(found)


def _branch(
    pipe: object,
    family: Family,
    arguments: Mapping[str, Any],
    heard: list[list[Ids]],
    texts: Mapping[str, tuple[str, ...]],
    length: int,
) -> Branch:
    number = len(next(iter(texts.values())))
    problem = "" if any(heard) else f"no text encoder of {type(pipe).__name__} was heard to read the prompt"
    columns: list[list[Line]] = []
    for run, rows in zip(family.runs, heard, strict=True):
        tokenizer = _attribute(pipe, run.tokenizer)
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        if len(rows) not in (0, number):
            problem = (
                f"{run.encoder} of {type(pipe).__name__} read {len(rows)} texts for {number} prompts, and which is of "
                "which cannot be told; give one prompt at a time"
            )
        elif rows and tokenizer is None:
            problem = f"{type(pipe).__name__} has no {run.tokenizer}"
        elif rows:
            cuts = [_cut(pipe, tokenizer, arguments, said) for said in (run.front, run.back)]
            if None in cuts:
                problem = f"{type(pipe).__name__} does not say how much of its template is cut off ({run.front})"
            front, back = (cut or 0 for cut in cuts)
            read = list(zip(rows, texts[run.prompt], strict=True))
            known = {one: _line(pipe, run, tokenizer, front, back, *one) for one in dict.fromkeys(read)}
            columns.append([known[one] for one in read])
    made = max((len(line.ids) for column in columns for line in column), default=0)
    alone = family.runs[0] if len(family.runs) == 1 else None  # else the length is that of one of several
    if not problem and length and alone and not alone.trimmed and made > length:
        problem = (
            f"{type(pipe).__name__} made {length} text tokens where {made} were expected, so words cannot be placed"
        )
    return Branch(() if problem else tuple(zip(*columns, strict=True)), problem and f"{problem}; use tokens='all'")


def _line(pipe: object, run: Run, tokenizer: Any, front: int, back: int, ids: Ids, prompt: str) -> Line:
    if run.trimmed:
        padding = tokenizer.pad_token_id if run.padding is None else run.padding
        words = [i for i, token in enumerate(ids) if token != padding]
        ids = ids[words[0] : words[-1] + 1] if words else ()
    last = max(len(ids) - back, front)
    image = None if run.skipped is None else getattr(pipe, run.skipped)
    return Line(tokenizer, ids[:front], tuple(token for token in ids[front:last] if token != image), prompt)


def _cut(pipe: object, tokenizer: Any, arguments: Mapping[str, Any], said: int | str) -> int | None:
    """How many tokens `Run.front` or `Run.back` takes off; None where the pipeline does not say."""
    if isinstance(said, int):
        return said
    template = arguments.get("prompt_template")
    named = {**(template if isinstance(template, dict) else {}), **arguments}
    value = named[said] if said in named else getattr(pipe, said, None)
    if isinstance(value, str):
        return len(tokenizer(value, add_special_tokens=False)["input_ids"])
    return value if isinstance(value, int) else None


def _attribute(pipe: object, name: str) -> Any:
    """A dotted attribute; None where there is none."""
    for part in name.split("."):
        pipe = getattr(pipe, part, None)
    return pipe
