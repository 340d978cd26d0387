"""Settings of rivals, checked where they are made, and blocks, checked against the pipeline that they are for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ..settings import Spread

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..locate import Site


def number(name: str, value: object, low: float, high: float = math.inf) -> float:
    """A finite number from low to high.

    Raises:
        TypeError: it is no number.
        ValueError: it is not finite or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__})")
    if not (math.isfinite(value) and low <= value <= high):
        wanted = f"of at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise ValueError(f"{name} must be a finite number {wanted}, got {value!r}")
    return float(value)


def whole(name: str, value: object) -> int:
    """A whole number; negative ones count from the end."""
    if type(value) is not int:
        raise TypeError(f"{name} must be a whole number, got {value!r} ({type(value).__name__})")
    return value


def window(start: object, stop: object) -> tuple[float, float]:
    """The share of the steps that a method acts in: step i of n when start <= i / n < stop."""
    first, last = number("start", start, 0, 1), number("stop", stop, 0, 1)
    if first >= last:
        raise ValueError(f"start must be below stop, got start={first:g}, stop={last:g}")
    return first, last


def blocks(value: Any) -> tuple[int, ...] | None:
    """Blocks as `Spread` takes them, and as `--method` cuts them: 3, [3, 4], "0-3", or "0-3+7", which is two texts."""
    if isinstance(value, (tuple, list)) and any(isinstance(part, str) for part in value):
        value = ",".join(map(str, value))
    return Spread(blocks=value).blocks


def chosen(sites: Sequence[Site], wanted: Sequence[int], rival: str) -> tuple[int, ...]:
    """The blocks counted from 0, of a pipeline that has these.

    Raises:
        ValueError: it has no such block.
    """
    for block in wanted:
        if not -len(sites) <= block < len(sites):
            model = type(sites[0].root).__name__
            raise ValueError(f"{rival}: {model} has the blocks 0 to {len(sites) - 1}, so there is no block {block}")
    return tuple(dict.fromkeys(block % len(sites) for block in wanted))


def true_guidance(call: Mapping[str, Any]) -> float:
    """What a FLUX pipeline combines its two calls with, as it decides it itself; 1 for one call only."""
    negative = call.get("negative_prompt") is not None or call.get("negative_prompt_embeds") is not None
    return float(call.get("true_cfg_scale", 1.0)) if negative else 1.0
