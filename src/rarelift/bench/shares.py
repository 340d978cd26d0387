"""Which prompts, with which seeds, each round of a tuning draws: no picture twice, and the last test has its own."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING

from ..menagerie.world import ATTRIBUTES
from . import racing

if TYPE_CHECKING:
    from collections.abc import Hashable

    from ..prompts import Prompt, Suite
    from .racing import Round, Schedule

SEED = 0  # of the halves and of the settings; pictures have others


def thing(prompt: Prompt) -> Hashable:
    """What is asked for: of a Menagerie prompt, which is one of several phrasings, the thing; else the text."""
    held = tuple(prompt.meta.get(attribute) for attribute in ATTRIBUTES)
    return prompt.text if None in held else held


def halves(suite: Suite) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts that choose, and those of the last test, which ask for other things.

    In both, a second phrasing of a thing comes when each thing has had its first. A text that is there twice is one.
    """
    things: dict[Hashable, list[Prompt]] = {}
    for prompt in {prompt.text: prompt for prompt in suite.prompts}.values():
        things.setdefault(thing(prompt), []).append(prompt)
    shuffled = list(things.values())
    random.Random(f"{suite.digest}/{SEED}").shuffle(shuffled)
    search, confirm = (
        [prompt for turn in itertools.zip_longest(*half) for prompt in turn if prompt is not None]
        for half in (shuffled[: len(shuffled) // 2], shuffled[len(shuffled) // 2 :])
    )
    return search, confirm


def share(schedule: Schedule, one: Round, side: str, suite: Suite) -> tuple[list[Prompt], range]:
    """The prompts and seeds of a round. Each round has its own seeds, so no picture is drawn, or counted, twice.

    It takes the next prompts in turn, with so many seeds that they are enough for its pictures: of n pictures at most
    seeds - 1 are left over. A seed is the same noise for all prompts, so the last test has two at least, where that
    leaves it `racing.FEWEST_CONFIRMED` prompts.
    """
    search, confirm = halves(suite)
    passed = seed = 0
    for other in filter(None, (schedule.sweep, *schedule.race, schedule.confirm)):
        n, last = getattr(other, side), other is schedule.confirm
        half, first = (confirm, 0) if last else (search, passed)
        seeds = max(-(-n // len(half)), 2 if last and n >= 2 * racing.FEWEST_CONFIRMED else 1)
        count = n // seeds
        if other is one:
            return [half[(first + i) % len(half)] for i in range(count)], range(seed, seed + seeds)
        passed, seed = passed + count, seed + seeds
    raise ValueError(f"{one.name!r} is no round of this schedule")
