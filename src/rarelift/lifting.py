"""What one lift knows: its settings, and the tensors that they become for the call under way.

What changes from call to call lives in tensors, filled where no tracing happens; the traced part has no branch on
values. Traced calls are counted in a tensor too, since a Python counter would recompile the model at every call. Run
eagerly, a small model spends its time on the number of operations, so there the tensors are left alone where nothing
depends on them.
"""

from __future__ import annotations

import math
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import directions, fused
from .settings import Spread
from .streams import Family
from .tokens import Reading, token_weights, with_prompt
from .variance import factors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_EVER = (math.inf, -math.inf)
_ONE_CALL = ("uncond_cond", "cond_uncond")


class RareliftWarning(UserWarning):
    """Something is probably not what the user meant."""


class Lift:
    """The state that the links and taps of one `apply` share. Holds no module, so a deep copy of either is whole."""

    def __init__(
        self, settings: Spread, prompt: tuple[str, ...] | None, families: tuple[Family, ...], *, bare: bool
    ) -> None:
        self.settings, self.prompt, self.family, self.bare = settings, prompt, families[0], bare
        self.packed = next((family for family in families if family.layout == "packed"), None)
        self.scattered = any(family.scattered for family in families)
        self.active = True
        self.note = ""
        self.reading: Reading | None = None
        self.steps: tuple[float, ...] | None = None
        self.pipe: weakref.ref[Any] | None = None
        # read in traced code: plain flags and tensors
        self.carry = settings.carry
        self.masked = settings.tokens == "valid"
        self.places = torch.zeros(1, 0, dtype=torch.bool)  # of the text in the call under way, where it is scattered
        self.length = self.leading = 0  # of the text, and of the image tokens before it, in the call under way
        self.add_up: Callable[[Tensor], Tensor] | None = None  # over the processes that share the call under way
        self.guided = False
        self.uniform = True
        self.missing: str | None = None
        self.scale = torch.ones(1, 1, 1)
        self.share: Tensor | None = None
        self.window = torch.tensor([math.inf, -math.inf])
        self.gated = False
        self.windowed = False  # not read in traced code, where start and stop may change without recompilation
        # where the branches of guidance come in a call each
        self.taking = torch.ones((), dtype=torch.bool)  # whether that of the call under way takes part
        self.took = True
        self.branch = "cond"  # its name
        self.named = False  # the pipeline tells the name
        self.branches: tuple[weakref.ref[Tensor], ...] = ()  # else: the texts of this pipeline call so far
        self.seen: frozenset[str] = frozenset()
        self.live_scale = self.scale
        self.live_share: Tensor | None = None
        self.autocast = False
        self.kept: tuple[Any, ...] | None = None  # the factors of the last masked block, and what they were made of
        self.fused = False  # whether the kernels of `fused` are there for the call under way
        # of a lift of part of the deviation
        self.directed = settings.space != "all"
        self.space, self.rank = settings.space, settings.rank
        self.amount: Tensor | None = None
        self.live_amount: Tensor | None = None
        self.aim: Tensor | None = None  # each token's share of the mean that all turn toward
        self.live_aim: Tensor | None = None
        self.first: Tensor | None = None  # the deviations at the first block of the call under way
        self.among: tuple[Tensor, Tensor] | None = None  # a share, and the positions that have one in any sample
        self.traced_calls = torch.zeros((), dtype=torch.int64)
        self.eager_calls = 0

    def __getstate__(self) -> dict[str, Any]:
        # a copy belongs to another pipeline; its tap tells which
        return {**vars(self), "pipe": None, "branches": (), "add_up": None, "kept": None, "first": None, "among": None}

    def refill(
        self, pipe: object | None, *, settings: Spread | None = None, prompt: tuple[str, ...] | None = ()
    ) -> None:
        """Work out the tensors from the settings and what is known of the call; on error nothing has changed.

        Settings and prompt stay as they are when not given; None takes the prompt away.
        """
        settings, prompt = settings or self.settings, self.prompt if prompt == () else prompt
        _refuse(settings, self.family)
        if self.scattered and settings.space != "all":
            raise ValueError(
                f"space={settings.space!r}: in {self.family.model} text stands among image tokens, at other places in "
                "each sample, where parts of the deviation are not worked out; use space='all'"
            )
        reading = self._usable(prompt)
        unknown = _unknown(settings, reading, self.steps, self.family, self.bare)
        if self.bare and unknown:
            raise ValueError(f"{unknown}; give the pipeline to rarelift.apply instead of its transformer")
        if prompt and not self.family.segments:
            raise ValueError(
                f"prompt: where the words stand in the text stream of {self.family.model} is not known; leave it out"
            )
        if self.bare and prompt:
            raise ValueError("prompt needs the pipeline's tokenizers; give the pipeline instead of its transformer")
        rows = _alpha_rows(settings, reading, self.family)
        amounts = _amount_rows(settings, reading, self.family, len(rows))
        weights, note = (None, "") if reading is None else _weight_rows(settings, reading, pipe, self.family)
        aim = _aim_rows(settings, reading, pipe, self.family)
        window = _window(settings, self.steps)
        self.gated = settings.branch != "both" and self.family.batch == "separate"
        self.settings, self.prompt, self.note = settings, prompt, note
        self.carry, self.masked, self.missing = settings.carry, settings.tokens == "valid", unknown
        self.guided = reading is not None and reading.guided
        self.uniform = len(set(rows)) == 1 and len(set(amounts)) <= 1 and weights is None and aim is None
        self.directed, self.space, self.rank = settings.space != "all", settings.space, settings.rank
        device = self.traced_calls.device
        with torch.inference_mode(False):
            scale, self.share = factors(torch.tensor(rows, device=device)[:, None, None], weights, self.scale)
            self.scale = _filled(self.scale, scale)
            self.amount = _filled(self.amount, _amounts(amounts, weights, device)) if amounts else None
            self.aim = None if aim is None else factors(1.0, aim, self.scale)[1]
        self._take(self.branch)
        self._limit(window)

    def begin_steps(self, steps: tuple[float, ...]) -> None:
        """The denoising loop is about to run these timesteps."""
        window = _window(self.settings, steps)
        self.steps = steps
        self.missing = _unknown(self.settings, self.reading, steps, self.family, self.bare)
        self._limit(window)

    def begin_call(self) -> None:
        """A pipeline call begins, or is over: nothing is known of its branches yet."""
        self.named, self.branches, self.seen = False, (), frozenset()
        self._take("cond")

    def begin_branch(self, name: str) -> None:
        """The pipeline says of which branch the next call of the transformer is: "cond", "pred_uncond", ..."""
        self.named = True
        branch = "uncond" if "uncond" in name.split("_") else "cond"
        self.seen |= {branch}
        self._take(branch)

    @property
    def lacking(self) -> bool:
        """Whether the pipeline call now over never brought the branch that was to be lifted."""
        return bool(self.seen) and self.settings.branch == "uncond" and "uncond" not in self.seen

    def _take(self, branch: str) -> None:
        self.branch = branch
        taking = self.settings.branch in ("both", branch)
        if taking != self.took:
            self.took = taking
            with torch.inference_mode(False):
                self.taking.fill_(taking)

    def _tell_branch(self, text: Tensor) -> None:
        """Where the pipeline names no branch: the first text that it brings is the conditional one."""
        if torch.compiler.is_compiling():
            raise RuntimeError(
                f"branch={self.settings.branch!r}: this pipeline does not name its branches, and compiled code cannot "
                "tell them apart; use branch='both', or do not compile the whole model"
            )
        known = [reference() for reference in self.branches]
        index = next((i for i, one in enumerate(known) if one is text), len(known))
        if index > 1:
            raise RuntimeError(
                f"branch={self.settings.branch!r}: this pipeline brings a third text, so its branches cannot be told "
                "apart; use branch='both'"
            )
        if index == len(known):
            self.branches = (*self.branches, weakref.ref(text))
        branch = ("cond", "uncond")[index]
        self.seen |= {branch}
        self._take(branch)

    def _limit(self, window: tuple[float, float]) -> None:
        self.windowed = window != _EVER
        with torch.inference_mode(False):
            self.window = _filled(self.window, torch.tensor(window, device=self.traced_calls.device))

    def _usable(self, prompt: tuple[str, ...] | None) -> Reading | None:
        reading = self.reading
        if reading is None or (reading.guided and self.family.batch not in _ONE_CALL):
            return None
        return with_prompt(reading, prompt, self.family) if prompt and reading.cond is None else reading

    def to(self, device: torch.device) -> None:
        self.scale, self.window, self.taking = self.scale.to(device), self.window.to(device), self.taking.to(device)
        self.traced_calls = self.traced_calls.to(device)
        self.share = None if self.share is None else self.share.to(device)
        self.amount = None if self.amount is None else self.amount.to(device)
        self.aim = None if self.aim is None else self.aim.to(device)

    def begin(self, text: Tensor | Sequence[Any], timestep: object) -> None:
        """Set what the blocks of one call read. Traced under torch.compile; branches on shapes only.

        `text` has one row per sample of the batch, or is a list of samples, or one-dimensional: the only sample.
        """
        if self.missing is not None:
            raise RuntimeError(
                f"{self.missing}: this call did not come from the pipeline that rarelift.apply was given"
            )
        rows, first = 1 if isinstance(text, Tensor) and text.ndim == 1 else len(text), text
        while not isinstance(first, Tensor):
            first = first[0]
        if self.traced_calls.device != first.device:
            self.to(first.device)
        scale = self._rows(self.scale, rows)
        amount = None if self.amount is None else self._rows(self.amount, rows)
        told = timestep if isinstance(timestep, Tensor) and timestep.numel() else None
        if told is not None and (torch.compiler.is_compiling() or self.windowed):
            t = told.detach().to(self.window).reshape(-1, 1, 1)[:rows]  # a token each, where there is one sample
            if self.family.timestep_scale is not None:
                t = t * self.family.timestep_scale + self.family.timestep_zero
            inside = (t < self.window[0]) & (t >= self.window[1])
            scale, amount = torch.where(inside, scale, 1.0), _amount_where(inside, amount)
        elif self.windowed:
            raise RuntimeError(f"start and stop: {self.family.model_timestep} of this call tells no step")
        if self.family.batch == "separate":
            if not self.named and self.gated:
                self._tell_branch(first)
            if torch.compiler.is_compiling() or self.gated:
                scale, amount = torch.where(self.taking, scale, 1.0), _amount_where(self.taking, amount)
        self.live_scale = scale
        self.live_share = None if self.share is None else self._rows(self.share, rows).expand(rows, -1, -1)
        self.autocast = torch.is_autocast_enabled(first.device.type)
        self.kept = None
        self.fused = fused.here(first)
        if self.directed:
            if self.add_up is not None:
                raise RuntimeError(
                    f"space={self.space!r}: context parallelism splits the text, and parts of the deviation need all "
                    "of it; use space='all'"
                )
            self.first, self.live_amount = None, amount
            self.live_aim = None if self.aim is None else self._rows(self.aim, rows)

    def spread_part(self, z: Tensor, scale: Tensor, share: Tensor | None) -> Tensor:
        """What a block reads where part of the deviation is lifted. Traced under torch.compile."""
        target = amount = None
        if self.space == "align":
            target = self._target(z, share)
        if self.live_amount is not None:
            amount = self.live_amount if share is None else self.live_amount * (share.mT > 0)
        among = None if share is None or torch.compiler.is_compiling() else self._among(share)
        space, rank = self.space, self.rank
        return directions.spread_part(
            z, scale, share, space=space, rank=rank, amount=amount, target=target, among=among
        )

    def _target(self, z: Tensor, share: Tensor | None) -> Tensor:
        """What "align" turns to: at the first block, which has what it turns to, that is each token itself."""
        if self.live_aim is not None:
            return directions.deviation_of_some(z, share, self.live_aim)
        if self.first is None:
            self.first = directions.deviations_of(z, share)
        if self.first.shape != z.shape:
            raise RuntimeError(
                f"toward='first': the text is {tuple(z.shape)} at one block and was {tuple(self.first.shape)} at the "
                f"first of {self.family.model}; give words as toward"
            )
        return self.first

    def _among(self, share: Tensor) -> Tensor:
        """The positions that take part in any sample; the blocks of a call mostly have one share."""
        if self.among is None or self.among[0] is not share:
            self.among = share, (share > 0).any(0).flatten().nonzero().flatten()
        return self.among[1]

    def count(self) -> None:
        """A block was lifted. Traced under torch.compile."""
        if torch.compiler.is_compiling():
            self.traced_calls.add_(1)
        else:
            self.eager_calls += 1

    @property
    def calls(self) -> int:
        return self.eager_calls + int(self.traced_calls)

    def _rows(self, table: Tensor, batch: int) -> Tensor:
        """The rows of one call: all of them, or the conditional half where a call leaves the other out."""
        rows = table.shape[0]
        if rows == batch:
            return table
        if self.guided and rows == 2 * batch:
            return table[-batch:] if self.family.batch == "uncond_cond" else table[:batch]
        if self.uniform:
            return table[:1]
        raise ValueError(
            f"settings are for a batch of {rows}, but the transformer was called with {batch}. With the transformer "
            f"alone, guidance doubles the batch: give the pipeline to rarelift.apply. For other batches use one alpha, "
            f"tokens='all' and branch='both'"
        )


def _filled(old: Tensor | None, new: Tensor) -> Tensor:
    """The new values, in the old tensor where it fits."""
    return old.copy_(new) if old is not None and old.shape == new.shape and old.device == new.device else new


def _refuse(settings: Spread, family: Family) -> None:
    """Raise for what is not known of a family."""
    if not family.segments and settings.tokens not in ("all", "valid"):
        raise ValueError(
            f"tokens={settings.tokens!r}: where the words of a prompt stand in the text stream of {family.model} is "
            "not known; use tokens='valid' or 'all'"
        )
    if not family.segments and settings.toward != "first":
        raise ValueError(
            f"toward={settings.toward!r}: where the words of a prompt stand in the text stream of {family.model} is "
            "not known; use toward='first'"
        )
    if settings.branch != "both" and family.batch == "unknown":
        raise ValueError(
            f"branch={settings.branch!r}: the branches of guidance cannot be told apart in {family.model}; use "
            "branch='both'"
        )
    if settings.branch == "uncond" and family.batch == "cond":
        raise ValueError(f"branch='uncond': {family.model} is only called with the prompt; use branch='both'")
    if family.timestep_scale is None and (settings.start, settings.stop) != (0, 1):
        raise ValueError(
            f"start={settings.start}, stop={settings.stop}: how {family.model} is told the timestep is not known; use "
            "start=0, stop=1"
        )


def _unknown(
    settings: Spread, reading: Reading | None, steps: tuple[float, ...] | None, family: Family, bare: bool
) -> str | None:
    """What the settings need and nobody has told, or None."""
    if reading is None and settings.tokens not in ("all", "valid"):
        return f"tokens={settings.tokens!r} needs the words of the prompt"
    if reading is None and settings.toward != "first":
        return f"toward={settings.toward!r} needs the words of the prompt"
    told = family.batch == "cond" or (family.batch == "separate" and not bare)
    if reading is None and settings.branch != "both" and not told:
        return f"branch={settings.branch!r} needs to know which rows of the batch are conditional"
    if steps is None and (settings.start, settings.stop) != (0, 1):
        return f"start={settings.start}, stop={settings.stop} need the steps of the scheduler"
    return None


def _alpha_rows(settings: Spread, reading: Reading | None, family: Family) -> list[float]:
    """alpha for each row of the batch that the transformer is called with."""
    alpha = settings.alpha if isinstance(settings.alpha, tuple) else (settings.alpha,)
    if reading is None:
        return list(alpha)
    if isinstance(settings.alpha, tuple) and len(alpha) not in (reading.prompts, reading.rows):
        raise ValueError(
            f"alpha holds {len(alpha)} values, but the call has {reading.prompts} prompts ({reading.rows} images); "
            "give one number, or one per prompt or image"
        )
    rows = [a for a in alpha for _ in range(reading.rows // len(alpha))]
    if not reading.guided:
        if settings.branch == "uncond" and family.batch in _ONE_CALL:
            raise ValueError("branch='uncond' with guidance off lifts nothing; use guidance_scale > 1 or branch='both'")
        return rows
    return _by_branch(rows, 1.0, settings, family)


def _by_branch(rows: list[float], neutral: float, settings: Spread, family: Family) -> list[float]:
    """Both halves of a guided batch, one of them neutral where it is not lifted."""
    uncond = rows if settings.branch != "cond" else [neutral] * len(rows)
    cond = rows if settings.branch != "uncond" else [neutral] * len(rows)
    return uncond + cond if family.batch == "uncond_cond" else cond + uncond


def _amount_rows(settings: Spread, reading: Reading | None, family: Family, rows: int) -> list[float]:
    """amount for each of the `rows` of the batch; none where the space has no amount."""
    if settings.amount is None:
        return []
    if reading is None or not reading.guided:
        return [settings.amount] * rows
    return _by_branch([settings.amount] * reading.rows, 0.0, settings, family)


def _amounts(rows: list[float], weights: Tensor | None, device: torch.device) -> Tensor:
    """amount for each row, `[rows, 1, 1]`, or for each of its tokens, `[rows, L, 1]`."""
    amounts = torch.tensor(rows, device=device)[:, None, None]
    return amounts if weights is None else amounts * weights.to(device)[:, :, None]


def _amount_where(taking: Tensor, amount: Tensor | None) -> Tensor | None:
    return None if amount is None else torch.where(taking, amount, 0.0)


def _aim_rows(settings: Spread, reading: Reading | None, pipe: object, family: Family) -> Tensor | None:
    """The words that deviations turn toward, as token weights for each row of the batch."""
    if reading is None or settings.toward == "first":
        return None
    try:
        return _weight_rows(settings.replace(tokens=settings.toward), reading, pipe, family)[0]
    except ValueError as error:
        raise ValueError(f"toward={settings.toward!r}, read as tokens are: {error}") from error


def _weight_rows(settings: Spread, reading: Reading, pipe: object, family: Family) -> tuple[Tensor | None, str]:
    """Token weights for each row of the batch, and what could not be told."""
    tokens = settings.tokens
    if tokens == "all" or not family.segments:
        return None, ""
    if reading.cond is None:
        if tokens == "valid":
            return None, "prompt_embeds came without their text, so every token took part"
        raise ValueError(f"tokens={tokens!r} needs the words: pass prompt= to rarelift.apply, or use tokens='all'")
    if sum(reading.segments) != reading.length:
        raise ValueError(
            f"{type(pipe).__name__} made {reading.length} text tokens where {sum(reading.segments)} were expected, so "
            "words cannot be placed; use tokens='all'"
        )
    cond = token_weights(pipe, family, reading.cond, tokens, reading.segments)
    cond = cond.repeat_interleave(reading.rows // len(cond), 0)
    if not reading.guided:
        return cond, ""
    uncond, note = torch.ones_like(cond), ""
    if reading.uncond is not None:
        uncond = token_weights(pipe, family, reading.uncond, tokens, reading.segments, must_hold=False)
        uncond = uncond.repeat_interleave(reading.rows // len(uncond), 0)
    elif tokens == "valid":
        note = "negative_prompt_embeds came without their text, so every token of the negative prompt took part"
    elif settings.branch != "cond":
        raise ValueError(f"tokens={tokens!r} needs the words of the negative prompt: pass them, or use branch='cond'")
    return torch.cat([uncond, cond] if family.batch == "uncond_cond" else [cond, uncond]), note


def _window(settings: Spread, steps: tuple[float, ...] | None) -> tuple[float, float]:
    """The timesteps that take part, as (below, from): half-way to their neighbours, so that rounding cannot matter.

    Schedulers of second order have most timesteps twice, and the two cannot be told apart: both take part.
    """
    if not steps or (settings.start, settings.stop) == (0, 1):
        return _EVER
    n = len(steps)
    inside = [i for i in range(n) if settings.start <= i / n < settings.stop]
    if not inside:
        raise ValueError(f"start={settings.start}, stop={settings.stop} hold none of the {n} steps; widen them")
    if len(inside) < n and list(steps) not in (sorted(steps), sorted(steps, reverse=True)):
        raise ValueError("start and stop need a scheduler whose timesteps all fall or all rise; use start=0, stop=1")
    highest, lowest = max(steps[i] for i in inside), min(steps[i] for i in inside)
    above, below = [t for t in steps if t > highest], [t for t in steps if t < lowest]
    return (min(above) + highest) / 2 if above else math.inf, (max(below) + lowest) / 2 if below else -math.inf
