"""From the words of a prompt to the positions of the text stream that take part.

The transformer never sees words, and models such as SD3 have no mask either, so this reads what one `encode_prompt`
call was given and lays the pipeline's own tokenizers beside the segments of the text stream (`streams.Segment`), or
takes what its text encoders were heard to read (`hearing`).
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import hearing
from .streams import ONE_CALL

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .hearing import Branch, Ids
    from .streams import Family, Segment

_FUNCTION_WORDS = """
a an the this that these those and or but nor of in on at by to from for with without as is are was were be been being
has have had it its his her their there into onto over under up down out off than then
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""Words left out by tokens="content": articles, conjunctions, common prepositions, auxiliaries, pronouns."""


@dataclass(frozen=True)
class Reading:
    """What one `encode_prompt` call said.

    `cond` and `uncond` map prompt arguments ("prompt", "prompt_2", ...) to one text per prompt, None where the call
    brought embeddings without text. `rows` is the batch of one branch, prompts times images; `length` the tokens,
    0 where the embeddings are a list; `guided`: both branches are in one batch. `branches` is what the text encoders
    were heard to read, see `hearing.branches`; `apart`: negative prompts are encoded by an `encode_prompt` call of
    their own.
    """

    cond: Mapping[str, tuple[str, ...]] | None
    uncond: Mapping[str, tuple[str, ...]] | None
    guided: bool
    rows: int
    length: int
    segments: tuple[int, ...]
    branches: tuple[Branch | None, ...] = ()
    apart: bool = False

    @property
    def half(self) -> bool:
        """Whether only one of two branches that are encoded apart was heard, and it is not known which."""
        return self.guided and self.apart and len(self.branches) == 1

    @property
    def prompts(self) -> int:
        """The number of prompts, where known; else the rows."""
        return len(next(iter(self.cond.values()))) if self.cond else self.rows


def read(
    pipe: object,
    family: Family,
    arguments: Mapping[str, Any],
    embeds: Tensor | list[Tensor],
    heard: list[list[Ids]] | None = None,
) -> Reading:
    """Read a finished `encode_prompt` call: its arguments by name, and the prompt embeddings, one row per image.

    `heard` is what `hearing.listening` noted meanwhile.
    """
    names = _prompts(family)
    given = arguments.get("prompt_embeds") is None and arguments.get("prompt") is not None
    cond = _texts(arguments, names, "", 1) if given else None
    n = len(next(iter(cond.values()))) if cond else len(embeds)
    guided = family.batch in ONE_CALL and _guided(pipe, arguments)
    brought = any(value is not None for name, value in arguments.items() if name.startswith("negative_prompt_embeds"))
    uncond = None if brought else _texts(arguments, names, "negative_", n)
    length = embeds.shape[1] if isinstance(embeds, Tensor) else 0
    sizes = tuple(_length(pipe, s, arguments) if s.length else length for s in family.segments)
    said = () if not heard else hearing.branches(pipe, family, arguments, heard, (cond, uncond), length)
    apart = "negative_prompt" not in arguments
    return Reading(cond, uncond if guided else None, guided, len(embeds), length, sizes, said, apart)


def _prompts(family: Family) -> list[str]:
    """The arguments of `encode_prompt` that hold words, the first being "prompt"."""
    named = [prompt for segment in family.segments for _, prompt in segment.tokenizers]
    return list(dict.fromkeys(("prompt", *named, *(run.prompt for run in family.runs))))


def _guided(pipe: object, arguments: Mapping[str, Any]) -> bool:
    """Whether this call is guided, by the argument, the pipeline's property, or the scale."""
    told = arguments.get("do_classifier_free_guidance", getattr(pipe, "do_classifier_free_guidance", None))
    return bool(arguments.get("guidance_scale", 1) > 1 if told is None else told)


def with_prompt(reading: Reading, prompt: str | tuple[str, ...], family: Family) -> Reading:
    """The reading of a call that brought embeddings, with the text that they were made of.

    Raises:
        ValueError: the rows are not a multiple of the prompts.
    """
    texts = (prompt,) if isinstance(prompt, str) else prompt
    if reading.rows % len(texts):
        raise ValueError(f"prompt holds {len(texts)} texts, but the call has {reading.rows} rows of prompt_embeds")
    cond = dict.fromkeys(_prompts(family), texts)
    return Reading(cond, reading.uncond, reading.guided, reading.rows, reading.length, reading.segments)


MEAN, MOVES = 1, 2
"""What a token may be: counted in the mean, or counted and moved too; 0 for none of the two."""


def roles(moves: Tensor, content: Tensor) -> Tensor:
    """What each token is, `[prompts, L]`, uint8: `MOVES`, `MEAN`, or 0.

    Where phrases are named, the mean is that of all content words and the phrases: the mean of a single word is the
    word, and nothing would move.

    Args:
        moves: which tokens move, `[prompts, L]`, 0 or 1.
        content: which belong to content words, likewise.
    """
    return torch.where(moves > 0, MOVES, torch.where(content > 0, MEAN, 0)).to(torch.uint8)


def token_weights(
    pipe: object,
    family: Family,
    texts: Mapping[str, tuple[str, ...]],
    tokens: str | tuple[str, ...],
    segments: tuple[int, ...],
    *,
    must_hold: bool = True,
) -> Tensor:
    """Which positions take part, one row per prompt: `[prompts, sum(segments)]`, float32, 0 or 1.

    Args:
        pipe: holds the tokenizers and text encoders that `family.segments` names.
        family: how the text stream is laid out.
        texts: prompt argument to one text per prompt, as in `Reading`.
        tokens: "all", "valid", "content" or phrases, as in `Spread.tokens`.
        segments: the number of positions of each segment.
        must_hold: raise when a phrase is in no text of a prompt; False for negative prompts.

    Raises:
        ValueError: a phrase is not in its prompt, or lies past the tokens that the text encoders see; a tokenizer
            gives no offsets.
    """
    number = len(next(iter(texts.values())))
    if tokens == "all":
        return torch.ones(number, sum(segments))
    if must_hold and not isinstance(tokens, str):
        for i in range(number):
            _check_phrases([t[i] for t in texts.values()], tokens)
    parts = [
        _segment_weights(pipe, segment, size, texts, tokens)
        for segment, size in zip(family.segments, segments, strict=True)
    ]
    weights = torch.cat(parts, dim=1)
    if must_hold and not isinstance(tokens, str):
        _check_seen(pipe, family, texts, tokens, segments)
    return weights


def word_weights(branch: Branch, tokens: str | tuple[str, ...], *, must_hold: bool = True) -> Tensor:
    """Which positions hold the words, by what the text encoders read: `[prompts, L]`, float32, 0 or 1.

    L is the number of text tokens of the longest prompt; behind it no text takes part.

    Args:
        branch: the prompts, as in `Reading.branches`.
        tokens: "content" or phrases, as in `Spread.tokens`.
        must_hold: raise when a phrase is not in a prompt; False for negative prompts.

    Raises:
        ValueError: the words cannot be placed; a phrase is not in its prompt, or lies past the tokens that reach the
            transformer.
    """
    if isinstance(tokens, str):
        return branch.weights(_content_spans)
    parts = []
    for phrase in tokens:
        weights = branch.weights(functools.partial(_phrase_spans, phrases=(phrase,)))
        for lines, found in zip(branch.prompts, weights.any(1).tolist(), strict=True):
            if must_hold and not found:
                prompts = [line.prompt for line in lines]
                _check_phrases(prompts, (phrase,))
                raise _unseen(phrase, len(lines[0].ids), prompts[0])
        parts.append(weights)
    return torch.stack(parts).amax(0)


def _texts(arguments: Mapping[str, Any], names: list[str], prefix: str, n: int) -> dict[str, tuple[str, ...]]:
    """Texts by prompt argument; an argument not given takes the one before the underscore, as the pipelines do."""
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        value = arguments.get(prefix + name) or found.get("prompt") or ""
        found[name] = (value,) * n if isinstance(value, str) else tuple(value)
    return found


def _length(pipe: object, segment: Segment, arguments: Mapping[str, Any]) -> int:
    value = arguments.get(segment.length, getattr(pipe, segment.length, None))
    if not isinstance(value, int):
        raise TypeError(f"{type(pipe).__name__} says nothing about {segment.length}; use tokens='all'")
    return value


def _segment_weights(
    pipe: object, segment: Segment, size: int, texts: Mapping[str, tuple[str, ...]], tokens: str | tuple[str, ...]
) -> Tensor:
    number = len(next(iter(texts.values())))
    weights = torch.zeros(number, size)
    if segment.encoder and getattr(pipe, segment.encoder, None) is None:  # the pipeline fills this segment with zeros
        return weights
    held = [names for names in segment.tokenizers if getattr(pipe, names[0], None) is not None]
    if not held:
        sought = " or ".join(attribute for attribute, _ in segment.tokenizers)
        raise ValueError(f"{type(pipe).__name__} has no {sought}, so words cannot be placed; use tokens='all'")
    for attribute, prompt in held:
        marks = _marks(getattr(pipe, attribute), attribute, texts[prompt], size, tokens)
        weights = torch.maximum(weights, torch.tensor(marks, dtype=torch.float32))
    return weights


def _marks(
    tokenizer: Any, name: str, texts: tuple[str, ...], size: int, tokens: str | tuple[str, ...]
) -> list[list[bool]]:
    """Which of the `size` positions take part, for each text, by one tokenizer."""
    by_words = tokens != "valid"
    if by_words and not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"{name} ({type(tokenizer).__name__}) gives no character offsets; use tokens='valid' or 'all'")
    once = list(dict.fromkeys(texts))  # several seeds of one prompt are common
    coded = tokenizer(once, padding="max_length", max_length=size, truncation=True, return_offsets_mapping=by_words)
    marks: dict[str, list[bool]] = {}
    for i, text in enumerate(once):
        marks[text] = [bool(m) for m in coded["attention_mask"][i]]
        if by_words:
            spans = list(_content_spans(text)) if tokens == "content" else list(_phrase_spans(text, tokens))
            pairs = zip(marks[text], coded["offset_mapping"][i], strict=True)
            marks[text] = [valid and hearing.overlaps(offset, spans) for valid, offset in pairs]
    return [marks[text] for text in texts]


def _content_spans(text: str) -> Iterator[tuple[int, int]]:
    return (m.span() for m in re.finditer(r"\w+", text) if m[0].lower() not in FUNCTION_WORDS)


def _phrase_spans(text: str, phrases: str | tuple[str, ...]) -> Iterator[tuple[int, int]]:
    """Every occurrence of every phrase, whole words, any case, any white space between words."""
    for phrase in phrases:
        pattern = r"(?<!\w)" + r"\s+".join(map(re.escape, phrase.split())) + r"(?!\w)"
        yield from (m.span() for m in re.finditer(pattern, text, re.IGNORECASE))


def _check_phrases(texts: list[str], phrases: tuple[str, ...]) -> None:
    for phrase in phrases:
        if not any(True for text in texts for _ in _phrase_spans(text, (phrase,))):
            shown = " / ".join(repr(t) for t in dict.fromkeys(texts))
            raise ValueError(f"tokens names the phrase {phrase!r}, which is not in the prompt {shown}")


def _check_seen(
    pipe: object,
    family: Family,
    texts: Mapping[str, tuple[str, ...]],
    phrases: tuple[str, ...],
    segments: tuple[int, ...],
) -> None:
    """Raise for a phrase that was cut off with the end of a long prompt."""
    for phrase in phrases:
        parts = [
            _segment_weights(pipe, segment, size, texts, (phrase,))
            for segment, size in zip(family.segments, segments, strict=True)
        ]
        for row in torch.cat(parts, dim=1).sum(1).eq(0).nonzero().flatten().tolist():
            raise _unseen(phrase, max(segments), next(iter(texts.values()))[row])


def _unseen(phrase: str, tokens: int, prompt: str) -> ValueError:
    return ValueError(
        f"the phrase {phrase!r} lies past the {tokens} tokens that the text encoders see of the prompt {prompt!r}; "
        "shorten the prompt or name an earlier phrase"
    )
