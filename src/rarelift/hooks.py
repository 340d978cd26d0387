"""How a lift gets into a model and out again without a trace.

*Links* sit directly around the `forward` of the transformer and of each joint block, below every hook of diffusers
and accelerate, so a cache that skips a block skips us too. A link is a partial of a function of this module and is
not an entry of diffusers' `HookRegistry`: an entry there is a closure over the original module, so a deep copy would
compute with the original's weights, and `HookRegistry.remove_hook` cuts the hook above the one it removes. *Taps* are
set on methods of the pipeline object (`check_inputs`, `encode_prompt`, `prepare_latents`, `progress_bar`,
`maybe_free_model_hooks`) and on the transformer's `cache_context`, and read what its `forward` never sees: the words,
the guidance, the steps, the branch. While a prompt is encoded, the text encoders are listened to. Taps run outside
compiled code.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import operator
import sys
import types
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import fused
from .hearing import listening
from .lifting import Lift, Mark, RareliftWarning, role_factors
from .spans import RESOLVERS
from .streams import ONE_CALL, Family
from .tokens import read
from .variance import spread_by, take_off

# ---------------------------------------------------------------- taps on the pipeline


@dataclass(eq=False)
class Tap:
    """One pipeline method that is listened to. `fresh`: the instance had no attribute of that name before."""

    owner: object
    name: str
    inner: Callable[..., Any]
    lift: Lift
    fresh: bool

    @functools.cached_property
    def signature(self) -> inspect.Signature:
        return inspect.signature(self.inner)


def _tapped(tap: Tap, *args: Any, **kwargs: Any) -> Any:
    if not tap.lift.active:
        return tap.inner(*args, **kwargs)
    bound = tap.signature.bind(*args, **kwargs)
    bound.apply_defaults()
    # some pipelines write their templates into the list of prompts
    arguments = {name: list(v) if isinstance(v, list) else v for name, v in bound.arguments.items()}
    if tap.name != "encode_prompt":
        result = tap.inner(*args, **kwargs)
    else:
        with listening(tap.owner, tap.lift.family.runs) as tap.lift.heard:
            result = tap.inner(*args, **kwargs)
    if tap.lift.active:
        if not isinstance(tap.owner, nn.Module):
            tap.lift.pipe = weakref.ref(tap.owner)
        AFTER[tap.name](tap.lift, tap.owner, arguments, result)
    return result


def _after_check(lift: Lift, pipe: object, _arguments: Mapping[str, Any], _result: Any) -> None:
    """A pipeline call begins, and nothing is known of its words."""
    lift.forget(pipe)


@contextlib.contextmanager
def _forgetting(lift: Lift, pipe: object) -> Iterator[None]:
    """An exception inside ends the pipeline call before the end that we listen to."""
    try:
        yield
    except BaseException:
        lift.forget(pipe)
        raise


def _after_encode(lift: Lift, pipe: object, arguments: Mapping[str, Any], result: Any) -> None:
    before, heard = lift.reading if lift.steps is None else None, lift.heard
    lift.reading = lift.steps = lift.heard = None
    lift.begin_call()
    embeds = result[0] if isinstance(result, tuple) else result
    if isinstance(embeds, (Tensor, list)) and len(embeds) and isinstance(embeds[0], Tensor):
        lift.to(embeds[0].device)
        lift.reading = read(pipe, lift.family, arguments, embeds, heard)
        if before is not None and lift.reading.apart:  # this call is the second
            most = 1 if lift.family.batch in ONE_CALL and not lift.reading.guided else 2
            branches = (*before.branches, *lift.reading.branches)[-most:]
            lift.reading = replace(lift.reading, branches=branches)
    with _forgetting(lift, pipe):
        lift.refill(pipe)


def _after_latents(lift: Lift, pipe: object, arguments: Mapping[str, Any], _result: Any) -> None:
    """Some pipelines repeat the text for each image of a prompt only after it was encoded."""
    lift.begin_call()
    rows = arguments.get("batch_size")
    if lift.family.batch in ("cond_uncond", "cond") and isinstance(rows, int):
        reading = lift.reading if lift.steps is None else None  # with steps, it is that of a call that failed
        lift.steps = None
        lift.reading = replace(reading or read(pipe, lift.family, {}, []), rows=rows)
        with _forgetting(lift, pipe):
            lift.refill(pipe)


def _after_context(lift: Lift, _root: object, arguments: Mapping[str, Any], _result: Any) -> None:
    lift.begin_branch(arguments["name"])


def _after_progress(lift: Lift, pipe: object, arguments: Mapping[str, Any], result: Any) -> None:
    """The denoising loop begins: its timesteps are set. img2img runs only the last `total` of them."""
    scheduler = getattr(pipe, "scheduler", None)
    timesteps = getattr(scheduler, "timesteps", None)
    total = arguments.get("total")
    if isinstance(timesteps, Tensor) and total:
        skipped = max(len(timesteps) - total * getattr(scheduler, "order", 1), 0)
        with _forgetting(lift, pipe):
            lift.begin_steps(tuple(timesteps[skipped:].tolist()))
        _forget_on_error(lift, pipe, result)


def _forget_on_error(lift: Lift, pipe: object, bar: Any) -> None:
    """Forget the call when its loop ends by an exception; tqdm closes its bar while that is handled."""
    inner, before, call = getattr(bar, "close", None), sys.exc_info()[1], (lift.reading, lift.steps)
    if inner is None:
        return

    def close() -> None:
        del bar.close  # the next may come at any time, by the garbage collector
        ours = all(map(operator.is_, call, (lift.reading, lift.steps)))
        if ours and sys.exc_info()[1] is not before:
            lift.forget(pipe)
        inner()

    bar.close = close


def _after_end(lift: Lift, pipe: object, _arguments: Mapping[str, Any], _result: Any) -> None:
    """The call is over: what was known of it must not be used for another pipeline's call."""
    note, lacking = lift.note, lift.lacking
    lift.forget(pipe)
    lift.note = note
    if lacking:
        warnings.warn(
            "branch='uncond', but this call had no unconditional branch, so nothing was lifted; turn guidance on or "
            "use branch='both'",
            RareliftWarning,
            stacklevel=2,
        )


AFTER: dict[str, Callable[[Lift, object, Mapping[str, Any], Any], None]] = {
    "check_inputs": _after_check,
    "encode_prompt": _after_encode,
    "prepare_latents": _after_latents,
    "progress_bar": _after_progress,
    "maybe_free_model_hooks": _after_end,
    "cache_context": _after_context,
}


def tap_method(owner: object, name: str, lift: Lift) -> None:
    """Listen to a method of a pipeline, or of its transformer; where there is none, do nothing."""
    inner = getattr(owner, name, None)
    if inner is not None:
        tap = Tap(owner, name, inner, lift, fresh=name not in vars(owner))
        setattr(owner, name, functools.update_wrapper(functools.partial(_tapped, tap), inner))


def taps_of(owner: object) -> list[Tap]:
    return [v.args[0] for v in vars(owner).values() if isinstance(v, functools.partial) and v.func is _tapped]


def untap(owner: object, tap: Tap) -> None:
    delattr(owner, tap.name)
    if not tap.fresh:
        setattr(owner, tap.name, tap.inner)


def retire(lift: Lift) -> None:
    """Make a lift inert, wherever something may still hold one of its links, and free its pipeline."""
    lift.active = False
    pipe = lift.pipe() if lift.pipe else None
    for tap in taps_of(pipe) if pipe is not None else ():
        if tap.lift is lift:
            untap(pipe, tap)


@contextlib.contextmanager
def paused(root: nn.Module) -> Iterator[None]:
    """Let a transformer run untouched, whatever lifts it, while inside; what is taken off meanwhile stays inert."""
    lifts = {lift for lift in _lifts_of(root) if lift.active}
    for lift in lifts:
        lift.active = False
    try:
        yield
    finally:
        for lift in lifts & _lifts_of(root):
            lift.active = True


def _lifts_of(root: nn.Module) -> set[Lift]:
    return {link.lift for module in root.modules() for link in links_of(module)}


# ---------------------------------------------------------------- links around forwards


class _Bound(functools.partial):  # type: ignore[type-arg]
    """A partial that binds like the bound method whose place it takes: cache-dit binds what it puts back."""

    def __get__(self, instance: object, owner: type | None = None) -> _Bound:
        return self


@dataclass(eq=False)
class Link:
    """One wrapped forward.

    `module` is whose forward it is; `at` holds argument positions; `fresh`: the instance had no `forward` of its own
    before; `whole`: the stream is nothing but text, and no mask comes with it. `text`, `place` and `returns` say of a
    block where its stream is: name and position of the argument, and position in what it returns. `config` is the
    transformer's, where it says where the text is. `mark` is set whenever the block is lifted.
    """

    module: nn.Module
    inner: Callable[..., Any]
    lift: Lift
    at: dict[str, int]
    family: Family
    fresh: bool
    whole: bool
    text: str
    place: int
    returns: int | None
    config: dict[str, Any]
    mark: Mark


def adding_up(root: nn.Module, family: Family) -> Callable[[Tensor], Tensor] | None:
    """How to add a tensor up over the processes that a transformer's text is split over; None when it is not split.

    Raises:
        ValueError: it is split, and where the text then lies is not known.
    """
    context = getattr(getattr(root, "_parallel_config", None), "context_parallel_config", None)
    if context is None:
        return None
    if not family.parallel:
        raise ValueError(
            f"context parallelism splits the text of {type(root).__name__} in a way that rarelift does not know; "
            "lift it without `enable_parallelism`"
        )
    from torch.distributed._functional_collectives import all_reduce  # traced by torch.compile

    group = context._flattened_mesh.get_group()
    return lambda part: all_reduce(part, "sum", group) + 0  # an operation waits for the result


def refuse_cached_text(root: nn.Module, family: Family) -> None:
    """Raise where diffusers' TextKVCache makes the keys of the text before any block of ours runs."""
    if family.hands_on:
        return  # that cache is for models whose text is not updated
    if "text_kv_cache_transformer" in getattr(getattr(root, "_diffusers_hook", None), "hooks", ()):
        raise ValueError(
            f"{type(root).__name__} caches its text keys (TextKVCacheConfig): they are made from untouched text, once "
            "for all steps, so neither alpha nor start and stop would reach them; call its disable_cache() first"
        )


def lifted_root(link: Link, *args: Any, **kwargs: Any) -> Any:
    lift, family = link.lift, link.family
    if lift.active:
        refuse_cached_text(link.module, family)
        lift.add_up = adding_up(link.module, family)
        if family.cached and _argument(link, family.cached, args, kwargs) is not None and lift.windowed:
            raise RuntimeError(
                f"start={lift.settings.start}, stop={lift.settings.stop}: the text's keys and values are kept from the "
                f"first step for all others ({family.cached}); use start=0, stop=1, or turn that off"
            )
        text = _argument(link, family.model_text, args, kwargs)
        lift.begin(text, _argument(link, family.model_timestep, args, kwargs))
        if lift.add_up is not None and lift.live_words is not None:
            raise RuntimeError(
                f"tokens={lift.settings.tokens!r}: which words each process of context parallelism has is not known; "
                "use tokens='valid'"
            )
        if family.scattered is not None:
            call = {**link.config, **{name: args[i] for name, i in link.at.items() if i < len(args)}, **kwargs}
            lift.places = RESOLVERS[family.scattered](call)
            if lift.live_words is not None:
                lift.places = _of_words(lift.places, lift.live_words)
        elif lift.packed is not None:
            sizes = lift.packed.length or ((lift.packed.model_text, 1, 1),)
            lift.length = sum(_argument(link, name, args, kwargs).shape[dim] * times for name, dim, times in sizes)
        if family.leading is not None:
            leading = _argument(link, family.leading, args, kwargs)
            lift.leading = 0 if leading is None else leading.shape[1]
    return link.inner(*args, **kwargs)


def lifted_block(link: Link, *args: Any, **kwargs: Any) -> Any:
    lift, name = link.lift, link.text
    if not lift.active:
        return link.inner(*args, **kwargs)
    named = name in kwargs
    stream = kwargs[name] if named else args[link.place] if link.place < len(args) else None
    if stream is None:
        return link.inner(*args, **kwargs)
    if link.whole and lift.add_up is None and lift.live_words is None:
        z = stream
        lifted = new = _spread(lift, z, lift.live_scale, lift.live_share)
    elif link.family.scattered is not None and not lift.places.shape[1]:
        return link.inner(*args, **kwargs)
    else:
        first, last = _text_span(lift, link.family, stream)
        z = _cut(stream, link.family, first, last)
        scale, share = _live_factors(link, args, kwargs, stream, z, first, last)
        lifted = _spread(lift, z, scale, share)
        new = _paste(stream, lifted, link.family, first, last)
    if not lift.marked:
        link.mark.ran = True
    if named:
        kwargs[name] = new
    else:
        args = (*args[: link.place], new, *args[link.place + 1 :])
    output = link.inner(*args, **kwargs)
    place = link.returns
    if lift.carry or (place is None and link.family.layout == "dual"):
        return output
    after = output if place is None else output[place]
    if after is None:
        return output
    if link.whole:
        back = _take_off(lift, after, z, lifted)
    else:
        text = _cut(after, link.family, first, last)
        back = _take_off(lift, text, z, lifted)
        back = after if back is text else _paste(after, back, link.family, first, last)  # in place: it is there
    return back if place is None else (*output[:place], back, *output[place + 1 :])


def lifted_reader(link: Link, *args: Any, **kwargs: Any) -> Any:
    """A block that cross-attends to the text and hands none on: the argument is all that changes.

    An IP-Adapter's image tokens come beside the text, in a tuple; videos may have the text once for each frame.
    """
    lift, name = link.lift, link.text
    if not lift.active:
        return link.inner(*args, **kwargs)
    named = name in kwargs
    given = kwargs[name] if named else args[link.place] if link.place < len(args) else None
    if given is None:
        return link.inner(*args, **kwargs)
    stream, *beside = given if isinstance(given, tuple) else (given,)
    first, last = _text_span(lift, link.family, stream)
    z = _cut(stream, link.family, first, last)
    scale, share = _live_factors(link, args, kwargs, stream, z, first, last)
    scale, share = _for_each_frame(scale, len(z)), None if share is None else _for_each_frame(share, len(z))
    text = _paste(stream, _spread(lift, z, scale, share), link.family, first, last)
    if not lift.marked:
        link.mark.ran = True
    new = (text, *beside) if beside else text
    if named:
        kwargs[name] = new
    else:
        args = (*args[: link.place], new, *args[link.place + 1 :])
    return link.inner(*args, **kwargs)


def _for_each_frame(rows: Tensor, count: int) -> Tensor:
    """A row for each of `count` texts, where a text is repeated for the frames of its video."""
    return rows if len(rows) in (1, count) else rows.repeat_interleave(count // len(rows), 0)


def _live_factors(
    link: Link, args: tuple[Any, ...], kwargs: dict[str, Any], stream: Tensor, z: Tensor, first: int, last: int
) -> tuple[Tensor, Tensor | None]:
    """What the text of a stream is spread by, where a mask, places or other processes have a say in it.

    The blocks of a call are mostly given one mask: what was worked out for the last one is kept, in eager code.
    """
    lift, eager = link.lift, not torch.compiler.is_compiling()
    mask, places, words = _mask(link, args, kwargs), lift.places, lift.live_words
    given = (mask, places, words, lift.live_scale, lift.live_share)
    span = (z.shape, first, last)
    if eager and lift.kept is not None and lift.kept[0] == span and all(map(operator.is_, lift.kept[1], given)):
        found: tuple[Tensor, Tensor | None] = lift.kept[2]
        return found
    scale, share = lift.live_scale, lift.live_share
    taking = _taking(link.family, mask, places, words, stream, first, last)
    if taking is None and lift.add_up is not None:
        taking = z.new_ones(1, z.shape[1], dtype=torch.bool)
    if taking is not None:
        scale, share = role_factors(scale, taking, z, lift.add_up)
        share = share if share is None else share.expand(len(z), -1, -1)
    if eager:
        lift.kept = (span, given, (scale, share))
    return scale, share


def _spread(lift: Lift, z: Tensor, scale: Tensor, share: Tensor | None) -> Tensor:
    if lift.fused and lift.add_up is None and not torch.compiler.is_compiling() and fused.takes(z):
        return fused.spread_by(z, scale, share)
    return spread_by(z, scale, share, autocast=lift.autocast, add_up=lift.add_up)


def _take_off(lift: Lift, output: Tensor, z: Tensor, lifted: Tensor) -> Tensor:
    if lift.partly:  # the kernel takes all of it off, or is not asked
        return take_off(output, z, lifted, lift.part)
    if lift.fused and not torch.compiler.is_compiling() and fused.takes(output, z, lifted):
        return fused.take_off(output, z, lifted)
    return take_off(output, z, lifted)


def _text_span(lift: Lift, family: Family, stream: Tensor) -> tuple[int, int]:
    """First and one past the last text token of a block's stream."""
    total = stream.shape[family.token_dim]
    if family.scattered is not None:
        return 0, total
    before = family.registers + (lift.leading if family.leading is not None else 0)
    if family.layout == "dual":
        return min(before, total), total
    return (before, before + lift.length) if family.span == "first" else (total - lift.length, total)


def _cut(stream: Tensor, family: Family, first: int, last: int) -> Tensor:
    """The text of a stream, `[B, L, D]`."""
    text = stream.narrow(family.token_dim, first, last - first)
    if text.ndim == 2:
        return text[None]
    return text if family.token_dim == 1 else text.transpose(0, 1)


def _paste(stream: Tensor, text: Tensor, family: Family, first: int, last: int) -> Tensor:
    """A stream with its text replaced: a copy, or the text where it is all of it."""
    dim = family.token_dim
    if stream.ndim == 2:
        text = text[0]
    elif dim == 0:
        text = text.transpose(0, 1)
    if last - first == stream.shape[dim]:
        return text
    before, after = stream.narrow(dim, 0, first), stream.narrow(dim, last, stream.shape[dim] - last)
    return torch.cat([before, text, after], dim)


def _mask(link: Link, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The mask of valid tokens that a block is given; None where there is none or it has no say."""
    if link.family.mask is None or not link.lift.masked:
        return None
    name, _, key = link.family.mask.partition(".")
    mask: Any = _argument(link, name, args, kwargs)
    return (mask or {}).get(key) if key else mask


def _taking(
    family: Family, mask: Any, places: Tensor, words: Tensor | None, stream: Tensor, first: int, last: int
) -> Tensor | None:
    """Which tokens between `first` and `last` are text and take part, or in which role, `[B, L]`; None for all."""
    total = stream.shape[family.token_dim]
    text: Tensor | None = None
    if family.scattered is not None:
        text = _fitted(places, total)
    elif words is not None:
        text = _fitted(words, last - first)
    if mask is None:
        return text
    mask = mask.flatten(1)
    if family.layout == "dual":  # a mask over both streams, or over this one alone
        mask = mask[:, :total] if family.span == "first" else mask[:, mask.shape[1] - total :]
    mask = mask[:, first:last]
    valid: Tensor = mask == 0 if family.additive else mask != 0
    return valid if text is None else valid * text


def _of_words(places: Tensor, words: Tensor) -> Tensor:
    """What is at each place of text: the n-th of a sample is that of its n-th token."""
    rows = max(len(places), len(words))
    number = (places.cumsum(1) - 1).clamp(min=0).expand(rows, -1)
    return places * _fitted(words, places.shape[1]).expand(rows, -1).gather(1, number)


def _fitted(places: Tensor, length: int) -> Tensor:
    """`[B, length]`: cut off or filled with what takes no part, as padding is."""
    return F.pad(places[:, :length], (0, max(length - places.shape[1], 0)))


def _argument(link: Link, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if name in kwargs:
        return kwargs[name]
    at = link.at[name]
    return args[at] if at < len(args) else None


def link_forward(module: nn.Module, function: Callable[..., Any], lift: Lift, family: Family | None = None) -> None:
    parameters = list(inspect.signature(type(module).forward).parameters)[1:]
    holder, key = _innermost(module)
    fresh = "forward" not in vars(module)
    inner = holder.get(key, bare_forward(module))
    family = family or lift.family
    whole = family.layout == "dual" and family.token_dim == 1
    whole = whole and not (family.mask or family.registers or family.leading or family.scattered)
    at = {name: i for i, name in enumerate(parameters)}
    config = dict(getattr(module, "config", {})) if family.scattered else {}
    place = at.get(family.text, 0)
    mark = Mark()
    if function is not lifted_root:
        lift.marks.append(mark)
    link = Link(module, inner, lift, at, family, fresh, whole, family.text, place, family.returns, config, mark)
    holder[key] = functools.update_wrapper(_Bound(function, link), inner)
    if key == "forward" and _CACHE_DIT in holder:  # comes back into force, in place of `key`, when that is taken off
        below = holder[_CACHE_DIT]
        holder[_CACHE_DIT] = functools.update_wrapper(_Bound(function, replace(link, inner=below, fresh=False)), below)


_CACHE_DIT = "_original_forward"
"""Where cache-dit keeps what it puts back; what it calls meanwhile, it keeps where nobody can reach it."""


def _slots(module: nn.Module) -> Iterator[tuple[dict[str, Any], str]]:
    """Every place that can hold a module's forward or the next one down its chain of hooks, innermost first."""
    for reference in getattr(vars(module).get("_diffusers_hook"), "_fn_refs", ()):
        yield vars(reference), "original_forward"
        yield vars(reference), "forward"
    yield vars(module), "_old_forward"  # accelerate
    yield vars(module), "forward"


def bare_forward(module: nn.Module) -> Callable[..., Any]:
    return types.MethodType(type(module).forward, module)


def _innermost(module: nn.Module) -> tuple[dict[str, Any], str]:
    """The slot that holds the class's own forward; failing that, the lowest one in use."""
    used = [(holder, key) for holder, key in _slots(module) if holder.get(key) is not None]
    bare = bare_forward(module)
    own = [(holder, key) for holder, key in used if holder[key] == bare]
    return (own or used or [(vars(module), "forward")])[0]


def links_of(module: nn.Module) -> list[Link]:
    return [value.args[0] for _, _, value in _linked(module)]


def _linked(module: nn.Module) -> list[tuple[dict[str, Any], str, functools.partial[Any]]]:
    slots = (*_slots(module), (vars(module), _CACHE_DIT))
    found = ((holder, key, holder.get(key)) for holder, key in slots)
    ours = (lifted_root, lifted_block, lifted_reader)
    return [(h, k, v) for h, k, v in found if isinstance(v, functools.partial) and v.func in ours]


def unlink(module: nn.Module, link: Link) -> None:
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
