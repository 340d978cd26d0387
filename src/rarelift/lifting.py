"""What one lift knows: its settings, and the tensors that they become for the call under way.

What changes from call to call lives in tensors, filled where no tracing happens; the traced part has no branch on
values, and changes no tensor: inductor puts a graph that does into another order, and makes no CUDA graph of it. Run
eagerly, a small model spends its time on the number of operations, so there the tensors are left alone where nothing
depends on them.
"""

from __future__ import annotations

import math
import warnings
import weakref
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import fused
from .settings import Spread
from .streams import ONE_CALL, Family
from .tokens import MEAN, MOVES, Reading, roles, token_weights, with_prompt, word_weights
from .variance import factors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .hearing import Branch, Ids

_EVER = (math.inf, -math.inf)


class RareliftWarning(UserWarning):
    """Something is probably not what the user meant."""


class Mark:
    """Whether a block has run since somebody looked.

    In compiled code a counter would compile the model again at every call if it were a number, and a tensor would be
    changed if it were one. Setting an attribute is replayed by Python after the graph has run.
    """

    def __init__(self) -> None:
        self.ran = False


class Lift:
    """The state that the links and taps of one `apply` share. Holds no module, so a deep copy of either is whole."""

    def __init__(
        self, settings: Spread, prompt: tuple[str, ...] | None, families: tuple[Family, ...], *, bare: bool
    ) -> None:
        self.settings, self.prompt, self.family, self.bare = settings, prompt, families[0], bare
        self.packed = next((family for family in families if family.layout == "packed"), None)
        self.active = True
        self.note = ""
        self.reading: Reading | None = None
        self.heard: list[list[Ids]] | None = None  # by the text encoders, in the encode_prompt under way
        self.steps: tuple[float, ...] | None = None
        self.pipe: weakref.ref[Any] | None = None
        # read in traced code: plain flags and tensors
        self.carry = settings.carry is True
        self.partly = not isinstance(settings.carry, bool)
        self.part = torch.ones(())  # of what was added, what a block's output is relieved of where `partly`
        self.masked = settings.tokens == "valid"
        self.places = torch.zeros(1, 0, dtype=torch.bool)  # of the text in the call under way, where it is scattered
        self.length = self.leading = 0  # of the text, and of the image tokens before it, in the call under way
        self.add_up: Callable[[Tensor], Tensor] | None = None  # over the processes that share the call under way
        self.guided = False
        self.uniform = True
        self.missing: str | None = None
        self.scale = torch.ones(1, 1, 1)
        self.share: Tensor | None = None
        self.words: Tensor | None = None  # `[rows, L]`, `tokens.roles`, where the text encoders were heard
        self.words_by: dict[str, Tensor | None] = {}  # the same by branch, None where its words are not known
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
        self.live_words: Tensor | None = None
        self.autocast = False
        self.kept: tuple[Any, ...] | None = None  # the factors of the last masked block, and what they were made of
        self.fused = False  # whether the kernels of `fused` are there for the call under way
        self.counted = 0  # blocks that ran, up to the last look at their marks
        self.marks: list[Mark] = []
        self.marked = False  # whether the blocks of the call under way were marked by the root

    def __getstate__(self) -> dict[str, Any]:
        # a copy belongs to another pipeline, whose tap tells which, and to none of its calls
        nothing = ("pipe", "reading", "heard", "steps", "add_up", "share", "live_share", "words", "live_words", "kept")
        missing = _unknown(self.settings, None, None, self.family, self.bare)
        return {**vars(self), **dict.fromkeys(nothing), "branches": (), "words_by": {}, "missing": missing}

    def refill(
        self, pipe: object | None, *, settings: Spread | None = None, prompt: tuple[str, ...] | None = ()
    ) -> None:
        """Work out the tensors from the settings and what is known of the call; on error nothing has changed.

        Settings and prompt stay as they are when not given; None takes the prompt away.
        """
        settings, prompt = settings or self.settings, self.prompt if prompt == () else prompt
        _refuse(settings, self.family)
        reading = self._usable(prompt)
        unknown = _unknown(settings, reading, self.steps, self.family, self.bare)
        if self.bare and unknown:
            raise ValueError(f"{unknown}; give the pipeline to rarelift.apply instead of its transformer")
        if prompt and not self.family.segments:
            why = "its text encoders have to be heard" if self.family.runs else self.family.wordless
            raise ValueError(
                f"prompt: where the words behind prompt_embeds stand in the text stream of {self.family.model} is not "
                f"known: {why}; leave it out, or give the pipeline the words"
            )
        if self.bare and prompt:
            raise ValueError("prompt needs the pipeline's tokenizers; give the pipeline instead of its transformer")
        rows = _alpha_rows(settings, reading, self.family)
        taking, note = (None, "") if reading is None else _role_rows(settings, reading, pipe, self.family)
        if self.steps is not None:
            _refuse_half(settings, reading, self.family)
        words = {} if reading is None else _word_rows(settings, reading, self.family)
        if self.branch in words and words[self.branch] is None:
            raise _wordless(settings)
        window = _window(settings, self.steps)
        self.gated = self.family.batch == "separate" and (settings.branch != "both" or len(words) > 1)
        self.words_by = words
        self.settings, self.prompt, self.note = settings, prompt, note
        self.carry, self.partly = settings.carry is True, not isinstance(settings.carry, bool)
        self.masked, self.missing = settings.tokens == "valid", unknown
        self.guided = reading is not None and reading.guided
        self.uniform = len(set(rows)) == 1 and taking is None and not words
        device = self.part.device
        with torch.inference_mode(False):
            scale, self.share = role_factors(torch.tensor(rows, device=device)[:, None, None], taking, self.scale)
            self.scale = _filled(self.scale, scale)
            self.part.fill_(1 - settings.carry)
        self._take(self.branch)
        self._limit(window)

    def begin_steps(self, steps: tuple[float, ...]) -> None:
        """The denoising loop is about to run these timesteps.

        Raises:
            ValueError: the words of one branch are not known, and of which cannot be told; start and stop hold none of
                these timesteps, or cannot be told by them.
        """
        _refuse_half(self.settings, self.reading, self.family)
        window = _window(self.settings, steps)
        self.steps = steps
        self.missing = _unknown(self.settings, self.reading, steps, self.family, self.bare)
        self._limit(window)

    def begin_call(self) -> None:
        """A pipeline call begins, or is over: nothing is known of its branches yet."""
        self.named, self.branches, self.seen = False, (), frozenset()
        self._take("cond")

    def forget(self, pipe: object) -> None:
        """Nothing that is known of a pipeline call holds any longer: it is over, or another begins."""
        self.reading = self.steps = None
        self.begin_call()
        self.refill(pipe)

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
        if self.words_by:
            words = self.words_by["cond"]
            if words is not None and branch == "uncond" and self.family.batch not in ONE_CALL:
                words = self.words_by.get(branch, torch.zeros_like(words))  # not heard: without any
            if words is None:
                raise _wordless(self.settings)
            with torch.inference_mode(False):
                self.words = _filled(self.words, words.to(self.part.device))
        else:
            self.words = None
        taking = self.settings.branch in ("both", branch)
        if taking != self.took:
            self.took = taking
            with torch.inference_mode(False):
                self.taking.fill_(taking)

    def _tell_branch(self, text: Tensor) -> None:
        """Where the pipeline names no branch: the first text that it brings is the conditional one."""
        asked, instead = f"branch={self.settings.branch!r}", "branch='both'"
        if self.settings.branch == "both":
            asked, instead = f"tokens={self.settings.tokens!r}", "tokens='valid'"
        if torch.compiler.is_compiling():
            raise RuntimeError(
                f"{asked}: this pipeline does not name its branches, and compiled code cannot tell them apart; use "
                f"{instead}, or do not compile the whole model"
            )
        known = [reference() for reference in self.branches]
        index = next((i for i, one in enumerate(known) if one is text), len(known))
        if index > 1:
            raise RuntimeError(
                f"{asked}: this pipeline brings a third text, so its branches cannot be told apart; use {instead}"
            )
        if index == len(known):
            self.branches = (*self.branches, weakref.ref(text))
        branch = ("cond", "uncond")[index]
        self.seen |= {branch}
        self._take(branch)

    def _limit(self, window: tuple[float, float]) -> None:
        self.windowed = window != _EVER
        with torch.inference_mode(False):
            self.window = _filled(self.window, torch.tensor(window, device=self.part.device))

    def _usable(self, prompt: tuple[str, ...] | None) -> Reading | None:
        reading = self.reading
        if reading is None or reading.cond is not None or not prompt:
            return reading
        return with_prompt(reading, prompt, self.family)

    def to(self, device: torch.device) -> None:
        self.scale, self.window, self.taking = self.scale.to(device), self.window.to(device), self.taking.to(device)
        self.part = self.part.to(device)
        self.share = None if self.share is None else self.share.to(device)
        self.words = None if self.words is None else self.words.to(device)

    def begin(self, text: Tensor | Sequence[Any] | None, timestep: object) -> None:
        """Set what the blocks of one call read. Traced under torch.compile; branches on shapes only.

        `text` has one row per sample of the batch, or is a list of samples, or one-dimensional: the only sample.

        Raises:
            RuntimeError: there is no text; what the settings need was not told, or is not told by this call.
            ValueError: the batch is not the one that the settings are for.
        """
        if text is None:
            raise RuntimeError(
                f"{self.family.model_text} of this call is None, so there is no text to lift; remove the handle for "
                "calls without text"
            )
        if self.missing is not None:
            raise RuntimeError(
                f"{self.missing}, and nothing told this call: call the pipeline that rarelift.apply was given, with "
                "the prompt in place of prompt_embeds; or use tokens='valid', start=0, stop=1 and branch='both'"
            )
        tracing = torch.compiler.is_compiling()
        rows, first = 1 if isinstance(text, Tensor) and text.ndim == 1 else len(text), text
        while not isinstance(first, Tensor):
            first = first[0]
        if self.part.device != first.device:
            self.to(first.device)
        # inside compiled gradient checkpointing no block can set an attribute; those that a call skips are marked too
        self.marked = tracing and torch.is_grad_enabled()
        if self.marked:
            for mark in self.marks:
                mark.ran = True
        elif not tracing:
            self.settle()
        scale = self._rows(self.scale, rows)
        told = timestep if isinstance(timestep, Tensor) and timestep.numel() else None
        if told is not None and (tracing or self.windowed):
            t = told.detach().to(self.window)
            if t.ndim > 1:  # one for each token or frame of a sample, those of a picture that is given at 0
                t = t.flatten(1).amax(1)
            t = t.reshape(-1, 1, 1)[:rows]  # a token each, where there is one sample
            if self.family.timestep_scale is not None:
                t = t * self.family.timestep_scale + self.family.timestep_zero
            scale = torch.where((t < self.window[0]) & (t >= self.window[1]), scale, 1.0)
        elif self.windowed:
            raise RuntimeError(f"start and stop: {self.family.model_timestep} of this call tells no step")
        if self.family.batch == "separate":
            if not self.named and self.gated:
                self._tell_branch(first)
            if tracing or self.gated:
                scale = torch.where(self.taking, scale, 1.0)
        self.live_scale = scale
        self.live_share = None if self.share is None else self._rows(self.share, rows).expand(rows, -1, -1)
        self.live_words = None if self.words is None else self._rows(self.words, rows).expand(rows, -1)
        self.autocast = torch.is_autocast_enabled(first.device.type)
        self.kept = None
        self.fused = fused.here(first)

    def settle(self) -> None:
        """Count the blocks that have run since this was last done, each once."""
        for mark in self.marks:
            self.counted += mark.ran
            mark.ran = False

    @property
    def calls(self) -> int:
        self.settle()
        return self.counted

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
    if old is None or old.shape != new.shape or old.device != new.device:
        return new.clone()
    return old.copy_(new)


def _wordless(settings: Spread) -> ValueError:
    return ValueError(
        f"tokens={settings.tokens!r} needs the words of the negative prompt: pass them, or use branch='cond'"
    )


def _refuse(settings: Spread, family: Family) -> None:
    """Raise for what is not known of a family."""
    if not family.words_known and settings.tokens not in ("all", "valid"):
        raise ValueError(
            f"tokens={settings.tokens!r}: where the words of a prompt stand in the text stream of {family.model} is "
            f"not known: {family.wordless}; use tokens='valid' or 'all'"
        )
    if settings.carry and not settings.cross_attention and not family.hands_on:
        raise ValueError(
            f"carry={settings.carry}: every block of {family.model} reads the same text and hands none on, so there is "
            "nothing to carry; leave carry out"
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


def _refuse_half(settings: Spread, reading: Reading | None, family: Family) -> None:
    """Raise where no more is encoded before the loop, and words are wanted of a branch that may be either."""
    if reading is not None and reading.half and _by_ear(settings, family):
        raise ValueError(
            f"tokens={settings.tokens!r}: one branch of guidance came as embeddings, and which cannot be told; give "
            "both prompts as words, or use tokens='all'"
        )


def _by_ear(settings: Spread, family: Family) -> bool:
    """Whether the settings ask for words that only the text encoders tell."""
    return settings.tokens not in ("all", "valid") and bool(family.runs)


def _unknown(
    settings: Spread, reading: Reading | None, steps: tuple[float, ...] | None, family: Family, bare: bool
) -> str | None:
    """What the settings need and nobody has told, or None."""
    if reading is None and settings.tokens not in ("all", "valid"):
        return f"tokens={settings.tokens!r} needs the words of the prompt"
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
        if settings.branch == "uncond" and family.batch in ONE_CALL:
            raise ValueError("branch='uncond' with guidance off lifts nothing; use guidance_scale > 1 or branch='both'")
        return rows
    uncond = rows if settings.branch != "cond" else [1.0] * reading.rows
    cond = rows if settings.branch != "uncond" else [1.0] * reading.rows
    return uncond + cond if family.batch == "uncond_cond" else cond + uncond


def role_factors(
    alpha: Tensor, taking: Tensor | None, like: Tensor, add_up: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor | None]:
    """`variance.factors` of tokens by their `tokens.roles`, or by whether they take part, `[B or 1, L]`."""
    if taking is None or taking.dtype is torch.bool:
        return factors(alpha, taking, like, add_up)
    return factors(alpha, taking == MOVES, like, add_up, about=taking >= MEAN)


def _role_rows(settings: Spread, reading: Reading, pipe: object, family: Family) -> tuple[Tensor | None, str]:
    """What each token is for each row of the batch, as `role_factors` takes it, and what could not be told."""
    tokens = settings.tokens
    if tokens == "all" or not family.segments or (tokens == "valid" and family.mask):
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

    def taking(texts: Mapping[str, tuple[str, ...]], must_hold: bool) -> Tensor:
        found = token_weights(pipe, family, texts, tokens, reading.segments, must_hold=must_hold)
        if isinstance(tokens, str):
            found = found.bool()
        else:
            found = roles(found, token_weights(pipe, family, texts, "content", reading.segments))
        _warn_of_single(tokens, found, must_hold)
        return found.repeat_interleave(reading.rows // len(found), 0)

    cond = taking(reading.cond, settings.branch != "uncond")
    if not reading.guided:
        return cond, ""
    uncond, note = torch.full_like(cond, MOVES), ""
    if settings.branch == "cond":  # the other takes no part, whatever its words are
        pass
    elif reading.uncond is not None:
        uncond = taking(reading.uncond, settings.branch == "uncond")
    elif tokens == "valid":
        note = "negative_prompt_embeds came without their text, so every token of the negative prompt took part"
    else:
        raise _wordless(settings)
    return torch.cat([uncond, cond] if family.batch == "uncond_cond" else [cond, uncond]), note


def _word_rows(settings: Spread, reading: Reading, family: Family) -> dict[str, Tensor | None]:
    """What each token is, `[rows, L]`, by branch; both are under "cond" where they come in one batch.

    Nothing where the settings ask for no words, or the tokenizers alone can tell, or before the second branch is
    encoded. None for an unconditional branch whose words were not given.
    """
    if reading.half or not _by_ear(settings, family):
        return {}
    first, *others = reading.branches or (None,)
    if first is None:
        raise ValueError(
            f"tokens={settings.tokens!r} needs the words: give the pipeline the prompt in place of prompt_embeds, or "
            "use tokens='all'"
        )

    def taking(branch: Branch, must_hold: bool) -> Tensor:
        found = word_weights(branch, settings.tokens, must_hold=must_hold)
        found = roles(found, word_weights(branch, "content"))
        _warn_of_single(settings.tokens, found, must_hold)
        return found.repeat_interleave(reading.rows // len(found), 0)

    cond = taking(first, settings.branch != "uncond")
    rows: dict[str, Tensor | None] = {"cond": cond}
    for other in others:
        if settings.branch == "cond":  # the other takes no part, whatever its words are
            rows["uncond"] = torch.zeros_like(cond)
        elif other is None:
            rows["uncond"] = None
        else:
            rows["uncond"] = taking(other, settings.branch == "uncond")
    if not reading.guided:
        return rows
    uncond = rows.get("uncond", None if settings.branch == "uncond" else torch.zeros_like(cond))
    if uncond is None:
        raise _wordless(settings)
    longest = max(cond.shape[1], uncond.shape[1])
    cond, uncond = (F.pad(part, (0, longest - part.shape[1])) for part in (cond, uncond))
    return {"cond": torch.cat([uncond, cond] if family.batch == "uncond_cond" else [cond, uncond])}


def _warn_of_single(tokens: str | tuple[str, ...], taking: Tensor, lifted: bool) -> None:
    if lifted and ((taking > 0).sum(1) == 1).any():
        warnings.warn(
            f"tokens={tokens!r}: a prompt has a single token that takes part; it is its own mean, so nothing of that "
            "prompt moves; write more words, or use tokens='valid'",
            RareliftWarning,
            stacklevel=2,
        )


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
