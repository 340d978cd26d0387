"""The settings that race where none are named: sampled around the defaults, from what the pipeline can honour."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from ..attach import apply
from ..settings import Spread
from .runs import LIFT, Method
from .shares import SEED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from diffusers import DiffusionPipeline

# What is sampled. alpha 1 and tokens="all" are no hopefuls.
_ALPHAS = (1.5, 1.2, 1.35, 2.0, 1.1, 1.75)
_OTHERS = (
    ("carry=0.1", "carry=0.3", "carry=1"),
    ("tokens=content",),
    ("blocks={first_half}", "blocks={second_half}", "blocks={first_quarter}"),
    ("start=0,stop=0.5", "start=0.5,stop=1", "start=0,stop=0.25"),
    ("branch=cond",),
)


def sampled(pipe: DiffusionPipeline, n: int, fails: Callable[[Method], str]) -> tuple[list[Method], dict[str, str]]:
    """Settings to race on a pipeline, and by name what was left out, with the reason.

    At most `n`, of twice as many that are tried, different and in the order of their distance from the defaults. The
    alphas alone come first; then alphas with others of `_OTHERS`, of each group one or, as often, none. What the
    pipeline cannot honour is passed by.

    Args:
        fails: the reason why a method fails in the call that is tuned, empty where it does not: some show only there.
    """
    handle = apply(pipe, alpha=1.0)
    blocks = 1 + max(site.index for site in handle.sites)
    handle.remove()
    half, quarter = max(blocks // 2, 1), max(blocks // 4, 1)
    parts = {
        "first_half": f"0-{half - 1}",
        "second_half": f"{blocks - half}-{blocks - 1}",
        "first_quarter": f"0-{quarter - 1}",
    }
    seen: set[Spread] = set()
    found: list[Method] = []
    left_out: dict[str, str] = {}
    for words in _draws(random.Random(SEED)):
        if len(found) == n or len(seen) == 2 * n:
            break
        method = Method.parse(f"{LIFT}:{','.join(words).format(**parts)}")
        settings = method.settings
        if not isinstance(settings, Spread) or settings in seen or not _honoured(pipe, settings):
            continue
        seen.add(settings)
        if why := fails(method):
            left_out[method.name] = why
        else:
            found.append(method)
    return found, left_out


def _draws(rng: random.Random, tries: int = 4000) -> Iterator[list[str]]:
    """What is set, in the words of `Method.parse`."""
    yield from ([f"alpha={alpha:g}"] for alpha in _ALPHAS)
    for _ in range(tries):
        others = [rng.choice(values) for values in _OTHERS if rng.random() < 0.5]
        yield [f"alpha={rng.choice(_ALPHAS):g}", *others]


def _honoured(pipe: DiffusionPipeline, settings: Spread) -> bool:
    try:
        apply(pipe, settings=settings).remove()
    except ValueError:
        return False
    return True
