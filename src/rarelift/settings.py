"""`Spread`: every setting of a lift, checked once, when it is made.

One frozen object serves the library, the command line, the pages, the ComfyUI node and the manifests, so all of them
accept the same values and say the same thing about a wrong one.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

TOKENS = ("all", "valid", "content")
BRANCHES = ("both", "cond", "uncond")
_LARGEST = 3.4e38  # of float32, the precision of the arithmetic


@dataclass(frozen=True)
class Spread:
    """How the text stream is spread. Defaults are those of `rarelift.apply`.

    Args:
        alpha: factor on the deviations from the token mean, finite and >= 0; 1 changes nothing. A tuple gives one
            per sample of the batch (per prompt).
        carry: how much of what was added to the text stream goes on to the next block, in [0, 1]. 1 or True: all,
            so that it compounds; 0 or False: none, so that only what each block reads is spread. The ends are stored
            as True and False.
        tokens: which tokens take part: "all"; "valid", those that are not padding (all, where that cannot be told);
            "content", valid without begin, end, punctuation and function words; or a tuple of phrases of the prompt,
            which alone move, away from the mean of all content words and theirs.
        blocks: which joint blocks, counted from 0, negative from the end; None for all. Also takes a range, a list,
            one number, or text such as "0-3,7"; stored as a tuple.
        start: share of the denoising steps after which lifting begins: step i of n is lifted when
            start <= i / n < stop.
        stop: see start.
        branch: which half of classifier-free guidance is lifted.
        cross_attention: lift what blocks that cross-attend to the text read of it, in place of joint blocks;
            experimental. The text goes through such a model unchanged, so there is nothing to carry.

    Raises:
        ValueError, TypeError: a value is not accepted; the message says what is.
    """

    alpha: float | tuple[float, ...] = 1.5
    carry: bool | float = False
    tokens: str | tuple[str, ...] = "valid"
    blocks: tuple[int, ...] | None = None
    start: float = 0.0
    stop: float = 1.0
    branch: str = "both"
    cross_attention: bool = False

    def __post_init__(self) -> None:
        for field, value in (
            ("alpha", _alpha(self.alpha)),
            ("carry", _carry(self.carry)),
            ("tokens", _tokens(self.tokens)),
            ("blocks", _blocks(self.blocks)),
            ("start", _number("start", self.start)),
            ("stop", _number("stop", self.stop)),
            ("branch", one_of("branch", self.branch, BRANCHES)),
        ):
            object.__setattr__(self, field, value)
        if not isinstance(self.cross_attention, bool):
            raise TypeError(f"cross_attention must be True or False, got {self.cross_attention!r}")
        if self.cross_attention and self.carry:
            raise ValueError(
                f"carry={self.carry} with cross_attention=True: every block reads the same text and hands none on, so "
                "there is nothing to carry; leave carry out"
            )
        if not 0 <= self.start < self.stop <= 1:
            raise ValueError(
                f"start and stop are shares of the steps with 0 <= start < stop <= 1, got start={self.start}, "
                f"stop={self.stop}; for the first half use start=0, stop=0.5"
            )

    def to_dict(self) -> dict[str, Any]:
        """The settings as a dict that `json.dumps` takes; tuples become lists."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Spread:
        """The settings from `to_dict` or a part of it; a missing key takes its default, an unknown one raises."""
        for key in values:
            one_of("setting", key, [f.name for f in dataclasses.fields(cls)])
        return cls(**values)

    def replace(self, **changes: Any) -> Spread:
        """A copy with some settings changed; an unknown name raises ValueError with the nearest one."""
        return Spread.from_dict({**self.to_dict(), **changes})


def one_of(what: str, given: object, accepted: Iterable[str], hint: str = "") -> str:
    """Return `given` when it is one of `accepted`; else raise ValueError with the nearest name."""
    names = list(accepted)
    if isinstance(given, str) and given in names:
        return given
    near = difflib.get_close_matches(str(given), names, n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown {what} {given!r}; accepted: {', '.join(map(repr, names))}.{guess}{hint}")


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__})")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return float(value)


def _alpha(value: object) -> float | tuple[float, ...]:
    if isinstance(value, (tuple, list)):
        if not value:
            raise ValueError("alpha is empty; give one number, or one number per sample of the batch")
        return tuple(_one_alpha(v) for v in value)
    return _one_alpha(value)


def _one_alpha(value: object) -> float:
    if not isinstance(value, Real):
        raise TypeError(
            f"alpha must be a number or a tuple of numbers, one per sample, got {value!r} ({type(value).__name__}); "
            "use alpha.tolist() for a tensor or array"
        )
    number = _number("alpha", value)
    if not 0 <= number <= _LARGEST:
        raise ValueError(f"alpha must be >= 0 and fit float32, got {number}; 1 changes nothing, below 1 contracts")
    return number


def _carry(value: object) -> bool | float:
    """Its ends as bools: they have been stored so from the start, and the model runs other code for them."""
    if isinstance(value, bool):
        return value
    number = _number("carry", value)
    if not 0 <= number <= 1:
        raise ValueError(f"carry is a share, 0 (False) to 1 (True), got {number}")
    return bool(number) if number in (0, 1) else number


def _tokens(value: object) -> str | tuple[str, ...]:
    if isinstance(value, str):
        return one_of("tokens", value, TOKENS, hint=f" For a phrase of the prompt use tokens=({value!r},).")
    if not isinstance(value, (tuple, list)) or not all(isinstance(v, str) for v in value):
        raise TypeError(f"tokens must be one of {', '.join(TOKENS)} or a tuple of phrases, got {value!r}")
    if not value or not all(v.strip() for v in value):
        raise ValueError(f"tokens holds no phrase or an empty one: {value!r}; give words of the prompt")
    return tuple(value)


def _blocks(value: object) -> tuple[int, ...] | None:
    if value is None:
        return None
    if isinstance(value, str):
        value = _parse_blocks(value)
    elif isinstance(value, int):
        value = (value,)
    if not isinstance(value, (tuple, list, range)) or not all(type(v) is int for v in value):
        raise TypeError(f'blocks must be None, whole numbers, a range or text such as "0-3,7", got {value!r}')
    if not value:
        raise ValueError("blocks is empty, so nothing would be lifted; use None for all blocks")
    return tuple(dict.fromkeys(value))


def _parse_blocks(text: str) -> tuple[int, ...]:
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(-?\d+)(?:-(-?\d+))?\s*", part)
        if match is None:
            raise ValueError(f'cannot read blocks {text!r} at {part!r}; write numbers and ranges, such as "0-3,7"')
        first = int(match[1])
        last = first if match[2] is None else int(match[2])
        if last < first or (first < 0) != (last < 0):
            raise ValueError(f"blocks {text!r} holds the range {part.strip()!r}, which does not count upwards")
        found += range(first, last + 1)
    return tuple(found)
