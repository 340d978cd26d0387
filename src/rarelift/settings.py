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
BY_RANK, BY_AMOUNT = ("principal", "residual"), ("whiten", "align")
SPACES = ("all", *BY_RANK, *BY_AMOUNT)
TOWARD = ("first", "content")
_LARGEST = 3.4e38  # of float32, the precision of the arithmetic


@dataclass(frozen=True)
class Spread:
    """How the text stream is spread. Defaults are those of `rarelift.apply`.

    Args:
        alpha: factor on the deviations from the token mean, finite and >= 0; 1 changes nothing, an `amount` aside. A
            tuple gives one per sample of the batch (per prompt).
        carry: True sends the spread stream on to the next block, where it compounds; False spreads only what each
            block reads.
        tokens: which tokens take part: "all"; "valid", those that are not padding (all, where that cannot be told);
            "content", valid without begin, end, punctuation and function words; or a tuple of phrases of the prompt.
        blocks: which joint blocks, counted from 0, negative from the end; None for all. Also takes a range, a list,
            one number, or text such as "0-3,7"; stored as a tuple.
        start: share of the denoising steps after which lifting begins: step i of n is lifted when
            start <= i / n < stop.
        stop: see start.
        branch: which half of classifier-free guidance is lifted.
        space: which part of the deviations alpha multiplies: "all"; "principal", the part along the strongest
            principal components of the tokens that take part; "residual", what these leave. "whiten" first makes the
            components more alike, at the same total variance, and "align" first turns each deviation toward a target;
            alpha then multiplies all of it.
        rank: of "principal" and "residual": how many components, or, below 1, the share of the variance that the fewest
            of them must hold. n tokens have n - 1 components.
        amount: of "whiten" and "align", from 0, which leaves the spread alone, to 1: the exponent p of s^(1 - p) on the
            singular values, or the share of the angle to the target.
        toward: of "align", the target: "first", what the same token was at the first block; "content" or a tuple of
            phrases, the mean deviation of these words (of `tokens`) at the same block.

    Raises:
        ValueError, TypeError: a value is not accepted; the message says what is.
    """

    alpha: float | tuple[float, ...] = 1.5
    carry: bool = False
    tokens: str | tuple[str, ...] = "valid"
    blocks: tuple[int, ...] | None = None
    start: float = 0.0
    stop: float = 1.0
    branch: str = "both"
    space: str = "all"
    rank: int | float | None = None
    amount: float | None = None
    toward: str | tuple[str, ...] = "first"

    def __post_init__(self) -> None:
        for field, value in (
            ("alpha", _alpha(self.alpha)),
            ("tokens", _phrases("tokens", self.tokens, TOKENS)),
            ("blocks", _blocks(self.blocks)),
            ("start", _number("start", self.start)),
            ("stop", _number("stop", self.stop)),
            ("branch", one_of("branch", self.branch, BRANCHES)),
            ("space", one_of("space", self.space, SPACES)),
            ("toward", _phrases("toward", self.toward, TOWARD)),
        ):
            object.__setattr__(self, field, value)
        if not isinstance(self.carry, bool):
            raise TypeError(f"carry must be True or False, got {self.carry!r}")
        if not 0 <= self.start < self.stop <= 1:
            raise ValueError(
                f"start and stop are shares of the steps with 0 <= start < stop <= 1, got start={self.start}, "
                f"stop={self.stop}; for the first half use start=0, stop=0.5"
            )
        _check_rank(self.rank, self.space)
        _check_amount(self.amount, self.space)
        if self.space != "align" and self.toward != "first":
            raise ValueError(f"toward={self.toward!r} does nothing with space={self.space!r}; it is for space='align'")
        if self.space == "align" and self.toward == "first" and self.blocks is not None and 0 not in self.blocks:
            raise ValueError(
                f"toward='first' reads the text at block 0, which is not among blocks={self.blocks}; add 0, or give "
                "words as toward"
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


def _phrases(name: str, value: object, accepted: tuple[str, ...]) -> str | tuple[str, ...]:
    if isinstance(value, str):
        return one_of(name, value, accepted, hint=f" For a phrase of the prompt use {name}=({value!r},).")
    if not isinstance(value, (tuple, list)) or not all(isinstance(v, str) for v in value):
        raise TypeError(f"{name} must be one of {', '.join(accepted)} or a tuple of phrases, got {value!r}")
    if not value or not all(v.strip() for v in value):
        raise ValueError(f"{name} holds no phrase or an empty one: {value!r}; give words of the prompt")
    return tuple(value)


def _check_rank(rank: object, space: str) -> None:
    accepted = "a whole number of components from 1, or a share of the variance between 0 and 1"
    if space not in BY_RANK:
        if rank is not None:
            raise ValueError(f"rank={rank} does nothing with space={space!r}; it is for {_listed(BY_RANK)}")
    elif rank is None:
        raise ValueError(f"space={space!r} needs rank, {accepted}")
    elif isinstance(rank, bool) or not isinstance(rank, (int, float)):
        raise TypeError(f"rank must be {accepted}, got {rank!r} ({type(rank).__name__})")
    elif not (rank >= 1 if isinstance(rank, int) else 0 < rank < 1):
        raise ValueError(f"rank must be {accepted}, got {rank}")


def _check_amount(amount: object, space: str) -> None:
    if space not in BY_AMOUNT:
        if amount is not None:
            raise ValueError(f"amount={amount} does nothing with space={space!r}; it is for {_listed(BY_AMOUNT)}")
    elif amount is None:
        raise ValueError(f"space={space!r} needs amount, a number from 0 to 1")
    elif not 0 <= _number("amount", amount) <= 1:
        raise ValueError(f"amount must be from 0 to 1, got {amount}")


def _listed(spaces: tuple[str, ...]) -> str:
    return " and ".join(f"space={space!r}" for space in spaces)


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
