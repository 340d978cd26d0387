"""Prompts of the Menagerie world: which are common, rare or never seen, and which may be used to choose a setting.

Every thing belongs to one of two halves, `tune` and `report`, even for each animal and suite. Settings are chosen on
`tune` and their results printed on `report`, so no prompt ever does both.
"""

from __future__ import annotations

import functools
import hashlib
import random
from dataclasses import astuple, dataclass
from typing import Literal, get_args

from .world import PHRASINGS, TAILED, Thing, all_things, caption

VERSION = 1
Suite = Literal["common", "rare", "never", "property", "texture"]
Split = Literal["tune", "report"]


@dataclass(frozen=True)
class MenageriePrompt:
    """A prompt and what a picture of it must show."""

    text: str
    thing: Thing


def belongs(thing: Thing, suite: Suite) -> bool:
    """Whether `thing` is part of `suite`.

    common: colour, pattern, wearable and scene are all of the animal's habitat. rare: none of them is, and training
    shows each of them with this animal now and then. never: training never shows the colour or the wearable with
    this animal; the other attributes are of its habitat. property, texture: one attribute alone is not of the
    habitat, and seen now and then: the colour or the wearable, or the pattern.
    """
    if suite == "common":
        return not thing.tail
    if suite == "rare":
        return len(thing.tail) == len(TAILED) and not thing.held_out
    if suite == "never":
        return thing.held_out and len(thing.tail) == 1
    if suite == "property":
        return thing.tail in (("colour",), ("wearable",)) and not thing.held_out
    if suite == "texture":
        return thing.tail == ("pattern",) and not thing.held_out
    raise ValueError(f"suite {suite!r} is unknown; there are {', '.join(get_args(Suite))}")


@functools.cache
def _reported() -> frozenset[Thing]:
    """Half of the things: of each animal and suite, every second one in the order of their hashes."""
    groups: dict[tuple[str, ...], list[Thing]] = {}
    for thing in all_things():
        groups.setdefault((thing.animal, *(s for s in get_args(Suite) if belongs(thing, s))), []).append(thing)
    ranked = (sorted(group, key=_digest) for group in groups.values())
    return frozenset(thing for group in ranked for thing in group[::2])


def _digest(thing: Thing) -> bytes:
    return hashlib.sha256(" ".join(astuple(thing)).encode()).digest()


def split_of(thing: Thing) -> Split:
    """The half `thing` belongs to: a fixed property of the thing, whatever the suite, size or seed asked for."""
    return "report" if thing in _reported() else "tune"


def prompts(suite: Suite, n: int, *, split: Split, seed: int = 0) -> list[MenageriePrompt]:
    """`n` different prompts of `suite`, in an order fixed by `seed`; every attribute is named.

    Things come first in their first phrasing, and again in another one only when the suite has no fresh thing left.

    Raises:
        ValueError: `n` is below 1 or above what the suite holds in that split.
    """
    if split not in get_args(Split):
        raise ValueError(f"split {split!r} is unknown; there are {', '.join(get_args(Split))}")
    things = [t for t in all_things() if belongs(t, suite) and split_of(t) == split]
    if not 1 <= n <= len(things) * PHRASINGS:
        raise ValueError(f"suite {suite!r}, split {split!r} has {len(things) * PHRASINGS} prompts; {n} were asked for")
    rng = random.Random(f"{suite}/{split}/{seed}/{VERSION}")
    rng.shuffle(things)
    first = [rng.randrange(PHRASINGS) for _ in things]
    rounds = [(i, (first[i] + r) % PHRASINGS) for r in range(PHRASINGS) for i in range(len(things))]
    return [MenageriePrompt(caption(things[i], phrasing), things[i]) for i, phrasing in rounds[:n]]
