"""Attaching the operator to a model and taking it off again without a trace.

Two parts. *Links* sit directly around the `forward` of the transformer and of each joint block, below every hook of
diffusers and accelerate, so a cache that skips a block skips us too. A link is a `functools.partial` of a function of
this module and is not an entry of diffusers' `HookRegistry`: an entry there is a closure over the original module, so
a deep copy would compute with the original's weights, and `HookRegistry.remove_hook` cuts the hook above the one it
removes. *Taps* are set on the pipeline object only (`encode_prompt`, `progress_bar`, `maybe_free_model_hooks`) and
read what the transformer never sees: the words, the guidance, the steps. They run outside compiled code.

What changes from call to call lives in tensors, filled where no tracing happens; the traced part has no branch on
values. Calls are counted in a tensor too, since a Python counter would recompile the model at every call.
"""

from __future__ import annotations

import functools
import inspect as _inspect
import math
import types
import warnings
import weakref
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from .locate import Site, is_compiled, locate, transformers_of
from .settings import Spread, one_of
from .tokens import Reading, read, token_weights, with_prompt
from .variance import factors, spread_by, take_off

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from .streams import Family

_ONE_CALL = ("uncond_cond", "cond_uncond")


class RareliftWarning(UserWarning):
    """Something is probably not what the user meant."""


# ---------------------------------------------------------------- the doors


def apply(
    target: object,
    *,
    alpha: float | tuple[float, ...] = 1.5,
    carry: bool = False,
    tokens: str | tuple[str, ...] = "valid",
    blocks: tuple[int, ...] | range | str | None = None,
    start: float = 0.0,
    stop: float = 1.0,
    branch: Literal["both", "cond", "uncond"] = "both",
    prompt: str | list[str] | None = None,
    settings: Spread | None = None,
) -> Handle:
    """Spread the text stream at the joint-attention blocks of a pipeline or transformer, until the handle is removed.

    Give the pipeline where there is one: it knows the words, the branches and the steps. Applying again replaces.
    Other pipelines that share the transformer are lifted too, without their words being seen.

    Args:
        target: a diffusers pipeline, or its transformer, compiled or not.
        alpha, carry, tokens, blocks, start, stop, branch: see `Spread`.
        prompt: the text behind `prompt_embeds`, for calls that pass embeddings instead of words.
        settings: all of them in one object, in place of the single keywords.

    Returns:
        A `Handle`, also a context manager that removes on exit.

    Raises:
        UnsupportedModelError: no joint-attention block was found; nothing was changed.
        ValueError, TypeError: a setting is wrong, or the target cannot honour it; nothing was changed.
    """
    given = Spread(alpha, carry, tokens, blocks, start, stop, branch)  # type: ignore[arg-type]
    if settings is not None and given not in (settings, Spread()):
        raise ValueError("give either settings=Spread(...) or single keywords, not both; see Spread.replace")
    return Handle(target, settings or given, prompt)


def remove(target: object) -> None:
    """Take every lift off a pipeline or transformer, whoever holds its handle. Does nothing when there is none."""
    for root in transformers_of(target).values():
        for module in root.modules():
            for link in _links(module):
                _unlink(module, link)
                _retire(link.lift)
    for tap in _taps(target):
        _untap(target, tap)


def inspect(target: object) -> Inspection:
    """Say what `apply` would lift, or has lifted, in a pipeline or transformer. Prints well.

    Raises:
        UnsupportedModelError: there is nothing to lift.
    """
    sites = locate(target)
    lifted = {site.name: link.lift for site in sites for link in _links(site.module)}
    lift = next(iter(lifted.values()), None)
    left_out = [(s.name, "not in blocks") for s in sites if lifted and s.name not in lifted]
    if getattr(target, "controlnet", None) is not None:
        left_out.append(("controlnet", "has joint blocks of its own, which are not touched"))
    family = sites[0].family
    return Inspection(
        model=" + ".join(dict.fromkeys(type(s.root).__name__ for s in sites)),
        layout=family.layout,
        stream=f"{family.block}.{family.text}",
        blocks=tuple(s.name for s in sites if not lifted or s.name in lifted),
        left_out=tuple(left_out),
        notes=tuple(_notes(target, sites, lift)),
        settings=lift.settings if lift else None,
    )


@dataclass(frozen=True)
class Inspection:
    """What is or would be lifted. `settings` is None while nothing is; `left_out` pairs names with reasons."""

    model: str
    layout: str
    stream: str
    blocks: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    settings: Spread | None

    def __str__(self) -> str:
        lines = [
            f"{self.model}: {len(self.blocks)} joint blocks, {self.layout}, text in {self.stream}",
            f"  {'lifted' if self.settings else 'would be lifted'}: {', '.join(self.blocks)}",
            *(f"  left out: {name} ({why})" for name, why in self.left_out),
            *(f"  note: {note}" for note in self.notes),
            f"  settings: {self.settings or 'not lifted'}",
        ]
        return "\n".join(lines)


class Handle:
    """The way out of `apply`. A context manager: leaving removes, and warns when nothing was lifted inside."""

    def __init__(self, target: object, settings: Spread, prompt: str | list[str] | None = None) -> None:
        sites = locate(target)
        self._target = target
        self._all = sites
        self._lift = _Lift(settings, _as_prompts(prompt), sites[0].family, bare=isinstance(target, nn.Module))
        self._entered_at = 0
        self.sites = _chosen(sites, settings.blocks)
        """The blocks that are lifted."""
        self._lift.refill(None)
        device = next((p.device for p in sites[0].module.parameters()), torch.device("meta"))
        if device.type != "meta":  # else the first call tells
            self._lift.to(device)
        remove(target)
        self._attach()

    def __enter__(self) -> Handle:
        self._entered_at = self.calls
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.remove()
        if kind is None and self.calls == self._entered_at:
            warnings.warn(
                "nothing was lifted inside this `with`: no lifted block ran. Call the pipeline that was given to "
                "apply; after torch.compile, call torch.compiler.reset() once",
                RareliftWarning,
                stacklevel=2,
            )

    def __repr__(self) -> str:
        state = "on" if self.active else "removed"
        return f"<rarelift.Handle {state}: {len(self.sites)} blocks, {self.calls} calls, {self.settings}>"

    @property
    def active(self) -> bool:
        """False once removed or replaced."""
        return self._lift.active

    @property
    def settings(self) -> Spread:
        """The settings now in force."""
        return self._lift.settings

    @property
    def calls(self) -> int:
        """How often a lifted block has run. Reads a tensor on the model's device."""
        return int(self._lift.count)

    @property
    def note(self) -> str:
        """What the last pipeline call could not be told and did instead; empty when there was nothing."""
        return self._lift.note

    def set(self, **changes: Any) -> None:
        """Change settings (fields of `Spread`, and `prompt`) in place, also from a callback in the middle of a call.

        alpha, start, stop and branch take effect without recompilation; blocks and carry are another graph. On error
        nothing has changed.

        Raises:
            RuntimeError: the handle was removed or replaced.
            ValueError, TypeError: as in `apply`.
        """
        if not self.active:
            raise RuntimeError("this handle was removed or replaced; call rarelift.apply again")
        for name in changes:
            one_of("setting", name, [f.name for f in fields(Spread)] + ["prompt"])
        prompt = _as_prompts(changes.pop("prompt")) if "prompt" in changes else self._lift.prompt
        settings = self.settings.replace(**changes)
        sites = _chosen(self._all, settings.blocks)
        self._lift.refill(self._pipe(), settings=settings, prompt=prompt)
        if sites != self.sites:
            self._detach()
            self.sites = sites
            self._attach()

    def remove(self) -> None:
        """Restore the model and the pipeline exactly. Safe to call again."""
        self._detach()
        _retire(self._lift)

    def _pipe(self) -> object | None:
        return None if self._lift.bare else self._target

    def _attach(self) -> None:
        """Link and tap everything, or nothing."""
        try:
            for root in dict.fromkeys(s.root for s in self.sites):
                _link(root, _lifted_root, self._lift)
            for site in self.sites:
                _link(site.module, _lifted_block, self._lift, site.family)
            for name in _AFTER if not self._lift.bare else ():
                _tap(self._target, name, self._lift)
        except BaseException:
            self.remove()
            raise

    def _detach(self) -> None:
        for module in (*dict.fromkeys(s.root for s in self._all), *(s.module for s in self._all)):
            for link in _links(module):
                if link.lift is self._lift:
                    _unlink(module, link)
        for tap in _taps(self._target):
            if tap.lift is self._lift:
                _untap(self._target, tap)


def _as_prompts(prompt: str | list[str] | None) -> tuple[str, ...] | None:
    return (prompt,) if isinstance(prompt, str) else tuple(prompt) if prompt is not None else None


def _chosen(sites: tuple[Site, ...], blocks: tuple[int, ...] | None) -> tuple[Site, ...]:
    if blocks is None:
        return sites
    count = 1 + max(s.index for s in sites)
    for b in blocks:
        if not -count <= b < count:
            raise ValueError(
                f"blocks holds {b}, but there are {count} joint blocks: 0 to {count - 1} or -{count} to -1"
            )
    wanted = {b % count for b in blocks}
    return tuple(s for s in sites if s.index in wanted)


def _notes(target: object, sites: tuple[Site, ...], lift: _Lift | None) -> Iterator[str]:
    yield from dict.fromkeys(s.family.note for s in sites if s.family.note)
    if isinstance(target, nn.Module):
        yield "given without its pipeline: every token takes part; tokens, start, stop and branch need the pipeline"
    else:
        yield "tokens='valid' is read from the prompt; a call that passes prompt_embeds without text uses every token"
    held = (*(getattr(target, n, None) for n in ("transformer", "transformer_2")), target, *(s.module for s in sites))
    if any(isinstance(m, nn.Module) and is_compiled(m) for m in held):
        yield "compiled: applying and removing costs one recompilation"
    if lift and lift.note:
        yield f"last call: {lift.note}"


# ---------------------------------------------------------------- what one lift knows


class _Lift:
    """The state that the links and taps of one `apply` share. Holds no module, so a deep copy of either is whole."""

    def __init__(self, settings: Spread, prompt: tuple[str, ...] | None, family: Family, *, bare: bool) -> None:
        self.settings, self.prompt, self.family, self.bare = settings, prompt, family, bare
        self.active = True
        self.note = ""
        self.reading: Reading | None = None
        self.steps: tuple[float, ...] | None = None
        self.pipe: weakref.ref[Any] | None = None
        # read in traced code: plain flags and tensors
        self.carry = settings.carry
        self.guided = False
        self.uniform = True
        self.missing: str | None = None
        self.scale = torch.ones(1, 1, 1)
        self.share: Tensor | None = None
        self.window = torch.tensor([math.inf, -math.inf])
        self.live_scale = self.scale
        self.live_share: Tensor | None = None
        self.count = torch.zeros((), dtype=torch.int64)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "pipe": None}  # a copy belongs to another pipeline; its tap tells which

    def refill(
        self, pipe: object | None, *, settings: Spread | None = None, prompt: tuple[str, ...] | None = None
    ) -> None:
        """Work out the tensors from the settings and what is known of the call; on error nothing has changed."""
        settings, prompt = settings or self.settings, prompt or self.prompt
        reading = self._usable(prompt)
        unknown = _unknown(settings, reading, self.steps)
        if self.bare and unknown:
            raise ValueError(f"{unknown}; give the pipeline to rarelift.apply instead of its transformer")
        if self.bare and prompt:
            raise ValueError("prompt needs the pipeline's tokenizers; give the pipeline instead of its transformer")
        rows = _alpha_rows(settings, reading, self.family)
        weights, note = (None, "") if reading is None else _weight_rows(settings, reading, pipe, self.family)
        window = _window(settings, self.steps) if self.steps else (math.inf, -math.inf)
        self.settings, self.prompt, self.note = settings, prompt, note
        self.carry, self.missing = settings.carry, unknown
        self.guided = reading is not None and reading.guided
        self.uniform = len(set(rows)) == 1 and weights is None
        device = self.count.device
        with torch.inference_mode(False):
            scale, self.share = factors(torch.tensor(rows, device=device)[:, None, None], weights, self.scale)
            self.scale = _filled(self.scale, scale)
            self.window = _filled(self.window, torch.tensor(window, device=device))

    def _usable(self, prompt: tuple[str, ...] | None) -> Reading | None:
        reading = self.reading
        if reading is None or (reading.guided and self.family.batch not in _ONE_CALL):
            return None
        return with_prompt(reading, prompt, self.family) if prompt and reading.cond is None else reading

    def to(self, device: torch.device) -> None:
        self.scale, self.window, self.count = self.scale.to(device), self.window.to(device), self.count.to(device)
        self.share = None if self.share is None else self.share.to(device)

    def begin(self, text: Tensor, timestep: object) -> None:
        """Set what the blocks of one call read. Traced under torch.compile; branches on shapes only."""
        if self.missing is not None:
            raise RuntimeError(
                f"{self.missing}: this call did not come from the pipeline that rarelift.apply was given"
            )
        if self.count.device != text.device:
            self.to(text.device)
        scale = self._rows(self.scale, text.shape[0])
        if isinstance(timestep, Tensor):
            t = timestep.detach().to(self.window).reshape(-1, 1, 1)
            scale = torch.where((t < self.window[0]) & (t >= self.window[1]), scale, 1.0)
        self.live_scale = scale
        self.live_share = None if self.share is None else self._rows(self.share, text.shape[0])

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


def _filled(old: Tensor, new: Tensor) -> Tensor:
    """The new values, in the old tensor where it fits."""
    return old.copy_(new) if old.shape == new.shape and old.device == new.device else new


def _unknown(settings: Spread, reading: Reading | None, steps: tuple[float, ...] | None) -> str | None:
    """What the settings need and nobody has told, or None."""
    if reading is None and settings.tokens not in ("all", "valid"):
        return f"tokens={settings.tokens!r} needs the words of the prompt"
    if reading is None and settings.branch != "both":
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
        if settings.branch == "uncond":
            raise ValueError("branch='uncond' with guidance off lifts nothing; use guidance_scale > 1 or branch='both'")
        return rows
    uncond = rows if settings.branch != "cond" else [1.0] * reading.rows
    cond = rows if settings.branch != "uncond" else [1.0] * reading.rows
    return uncond + cond if family.batch == "uncond_cond" else cond + uncond


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


def _window(settings: Spread, steps: tuple[float, ...]) -> tuple[float, float]:
    """The timesteps that take part, as (below, from): half-way to their neighbours, so that rounding cannot matter."""
    n = len(steps)
    inside = [i for i in range(n) if settings.start <= i / n < settings.stop]
    if not inside:
        raise ValueError(f"start={settings.start}, stop={settings.stop} hold none of the {n} steps; widen them")
    if len(inside) < n and sorted(steps, reverse=True) != list(steps):
        raise ValueError("start and stop need a scheduler whose timesteps fall; use start=0, stop=1")
    first, last = inside[0], inside[-1]
    below = math.inf if first == 0 else (steps[first - 1] + steps[first]) / 2
    lowest = -math.inf if last == n - 1 else (steps[last] + steps[last + 1]) / 2
    return below, lowest


# ---------------------------------------------------------------- taps on the pipeline


@dataclass(eq=False)
class _Tap:
    """One pipeline method that is listened to. `fresh`: the instance had no attribute of that name before."""

    owner: object
    name: str
    inner: Callable[..., Any]
    lift: _Lift
    fresh: bool


def _tapped(tap: _Tap, *args: Any, **kwargs: Any) -> Any:
    result = tap.inner(*args, **kwargs)
    if tap.lift.active:
        tap.lift.pipe = weakref.ref(tap.owner)
        arguments = _inspect.signature(tap.inner).bind(*args, **kwargs)
        arguments.apply_defaults()
        _AFTER[tap.name](tap.lift, tap.owner, arguments.arguments, result)
    return result


def _after_encode(lift: _Lift, pipe: object, arguments: Mapping[str, Any], result: Any) -> None:
    lift.reading = lift.steps = None
    if lift.family.segments:
        lift.to(result[0].device)
        lift.reading = read(pipe, lift.family, arguments, result[0])
    try:
        lift.refill(pipe)
    except Exception:
        lift.reading = None  # this call ends here
        raise


def _after_progress(lift: _Lift, pipe: object, arguments: Mapping[str, Any], _result: Any) -> None:
    """The denoising loop begins: its timesteps are set. img2img runs only the last `total` of them."""
    scheduler = getattr(pipe, "scheduler", None)
    timesteps = getattr(scheduler, "timesteps", None)
    total = arguments.get("total")
    if isinstance(timesteps, Tensor) and total:
        skipped = max(len(timesteps) - total * getattr(scheduler, "order", 1), 0)
        lift.steps = tuple(timesteps[skipped:].tolist())
        lift.refill(pipe)


def _after_end(lift: _Lift, pipe: object, _arguments: Mapping[str, Any], _result: Any) -> None:
    """The call is over: what was known of it must not be used for another pipeline's call."""
    note, lift.reading, lift.steps = lift.note, None, None
    lift.refill(pipe)
    lift.note = note


_AFTER: dict[str, Callable[[_Lift, object, Mapping[str, Any], Any], None]] = {
    "encode_prompt": _after_encode,
    "progress_bar": _after_progress,
    "maybe_free_model_hooks": _after_end,
}


def _tap(pipe: object, name: str, lift: _Lift) -> None:
    inner = getattr(pipe, name, None)
    if inner is not None:
        lift.pipe = weakref.ref(pipe)
        tap = _Tap(pipe, name, inner, lift, fresh=name not in vars(pipe))
        setattr(pipe, name, functools.update_wrapper(functools.partial(_tapped, tap), inner))


def _taps(pipe: object) -> list[_Tap]:
    return [v.args[0] for v in vars(pipe).values() if isinstance(v, functools.partial) and v.func is _tapped]


def _untap(pipe: object, tap: _Tap) -> None:
    delattr(pipe, tap.name)
    if not tap.fresh:
        setattr(pipe, tap.name, tap.inner)


def _retire(lift: _Lift) -> None:
    """Make a lift inert, wherever something may still hold one of its links, and free its pipeline."""
    lift.active = False
    pipe = lift.pipe() if lift.pipe else None
    for tap in _taps(pipe) if pipe is not None else ():
        if tap.lift is lift:
            _untap(pipe, tap)


# ---------------------------------------------------------------- links around forwards


@dataclass(eq=False)
class _Link:
    """One wrapped forward. `at` holds argument positions; `fresh`: the instance had no `forward` of its own before."""

    inner: Callable[..., Any]
    lift: _Lift
    at: dict[str, int]
    family: Family
    fresh: bool


def _lifted_root(link: _Link, *args: Any, **kwargs: Any) -> Any:
    lift = link.lift
    if lift.active:
        text = _argument(link, link.family.model_text, args, kwargs)
        lift.begin(text, _argument(link, link.family.model_timestep, args, kwargs))
    return link.inner(*args, **kwargs)


def _lifted_block(link: _Link, *args: Any, **kwargs: Any) -> Any:
    lift, name, place = link.lift, link.family.text, link.family.returns
    if not lift.active:
        return link.inner(*args, **kwargs)
    z = _argument(link, name, args, kwargs)
    lifted = spread_by(z, lift.live_scale, lift.live_share)
    lift.count.add_(1)
    if name in kwargs:
        kwargs = {**kwargs, name: lifted}
    else:
        args = (*args[: link.at[name]], lifted, *args[link.at[name] + 1 :])
    output = link.inner(*args, **kwargs)
    if lift.carry or place is None or output[place] is None:
        return output
    return (*output[:place], take_off(output[place], z, lifted), *output[place + 1 :])


def _argument(link: _Link, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if name in kwargs:
        return kwargs[name]
    at = link.at[name]
    return args[at] if at < len(args) else None


def _link(module: nn.Module, function: Callable[..., Any], lift: _Lift, family: Family | None = None) -> None:
    parameters = list(_inspect.signature(type(module).forward).parameters)[1:]
    holder, key = _innermost(module)
    fresh = "forward" not in vars(module)
    inner = holder.get(key, _bare_forward(module))
    link = _Link(inner, lift, {name: i for i, name in enumerate(parameters)}, family or lift.family, fresh)
    holder[key] = functools.update_wrapper(functools.partial(function, link), inner)


def _slots(module: nn.Module) -> Iterator[tuple[dict[str, Any], str]]:
    """Every place that can hold a module's forward or the next one down its chain of hooks, innermost first."""
    for reference in getattr(vars(module).get("_diffusers_hook"), "_fn_refs", ()):
        yield vars(reference), "original_forward"
        yield vars(reference), "forward"
    yield vars(module), "_old_forward"  # accelerate
    yield vars(module), "forward"


def _bare_forward(module: nn.Module) -> Callable[..., Any]:
    return types.MethodType(type(module).forward, module)


def _innermost(module: nn.Module) -> tuple[dict[str, Any], str]:
    """The slot that holds the class's own forward; failing that, the lowest one in use."""
    used = [(holder, key) for holder, key in _slots(module) if holder.get(key) is not None]
    bare = _bare_forward(module)
    own = [(holder, key) for holder, key in used if holder[key] == bare]
    return (own or used or [(vars(module), "forward")])[0]


def _links(module: nn.Module) -> list[_Link]:
    return [value.args[0] for _, _, value in _linked(module)]


def _linked(module: nn.Module) -> list[tuple[dict[str, Any], str, functools.partial[Any]]]:
    found = ((holder, key, holder.get(key)) for holder, key in _slots(module))
    ours = (_lifted_root, _lifted_block)
    return [(h, k, v) for h, k, v in found if isinstance(v, functools.partial) and v.func in ours]


def _unlink(module: nn.Module, link: _Link) -> None:
    """Put back what the link wraps, wherever in the chain of hooks it is."""
    for holder, key, value in _linked(module):
        if value.args[0] is not link:
            continue
        if holder is vars(module) and key == "forward" and link.fresh:
            del holder[key]
        else:
            holder[key] = link.inner
        for above, name in _slots(module):  # a hook registered over us remembers us for `inspect.signature`
            if getattr(above.get(name), "__wrapped__", None) is value:
                above[name].__wrapped__ = link.inner
