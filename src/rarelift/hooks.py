"""How a lift gets into a model and out again without a trace.

*Links* sit directly around the `forward` of the transformer and of each joint block, below every hook of diffusers
and accelerate, so a cache that skips a block skips us too. A link is a `functools.partial` of a function of this
module and is not an entry of diffusers' `HookRegistry`: an entry there is a closure over the original module, so a
deep copy would compute with the original's weights, and `HookRegistry.remove_hook` cuts the hook above the one it
removes. *Taps* are set on the pipeline object only (`encode_prompt`, `progress_bar`, `maybe_free_model_hooks`) and
read what the transformer never sees: the words, the guidance, the steps. They run outside compiled code.
"""

from __future__ import annotations

import functools
import inspect
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .lifting import Lift
from .streams import Family
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


def _tapped(tap: Tap, *args: Any, **kwargs: Any) -> Any:
    result = tap.inner(*args, **kwargs)
    if tap.lift.active:
        tap.lift.pipe = weakref.ref(tap.owner)
        arguments = inspect.signature(tap.inner).bind(*args, **kwargs)
        arguments.apply_defaults()
        AFTER[tap.name](tap.lift, tap.owner, arguments.arguments, result)
    return result


def _after_encode(lift: Lift, pipe: object, arguments: Mapping[str, Any], result: Any) -> None:
    lift.reading = lift.steps = None
    if lift.family.segments:
        lift.to(result[0].device)
        lift.reading = read(pipe, lift.family, arguments, result[0])
    try:
        lift.refill(pipe)
    except Exception:
        lift.reading = None  # this call ends here
        raise


def _after_progress(lift: Lift, pipe: object, arguments: Mapping[str, Any], _result: Any) -> None:
    """The denoising loop begins: its timesteps are set. img2img runs only the last `total` of them."""
    scheduler = getattr(pipe, "scheduler", None)
    timesteps = getattr(scheduler, "timesteps", None)
    total = arguments.get("total")
    if isinstance(timesteps, Tensor) and total:
        skipped = max(len(timesteps) - total * getattr(scheduler, "order", 1), 0)
        lift.begin_steps(tuple(timesteps[skipped:].tolist()))


def _after_end(lift: Lift, pipe: object, _arguments: Mapping[str, Any], _result: Any) -> None:
    """The call is over: what was known of it must not be used for another pipeline's call."""
    note, lift.reading, lift.steps = lift.note, None, None
    lift.refill(pipe)
    lift.note = note


AFTER: dict[str, Callable[[Lift, object, Mapping[str, Any], Any], None]] = {
    "encode_prompt": _after_encode,
    "progress_bar": _after_progress,
    "maybe_free_model_hooks": _after_end,
}


def tap_method(pipe: object, name: str, lift: Lift) -> None:
    inner = getattr(pipe, name, None)
    if inner is not None:
        lift.pipe = weakref.ref(pipe)
        tap = Tap(pipe, name, inner, lift, fresh=name not in vars(pipe))
        setattr(pipe, name, functools.update_wrapper(functools.partial(_tapped, tap), inner))


def taps_of(pipe: object) -> list[Tap]:
    return [v.args[0] for v in vars(pipe).values() if isinstance(v, functools.partial) and v.func is _tapped]


def untap(pipe: object, tap: Tap) -> None:
    delattr(pipe, tap.name)
    if not tap.fresh:
        setattr(pipe, tap.name, tap.inner)


def retire(lift: Lift) -> None:
    """Make a lift inert, wherever something may still hold one of its links, and free its pipeline."""
    lift.active = False
    pipe = lift.pipe() if lift.pipe else None
    for tap in taps_of(pipe) if pipe is not None else ():
        if tap.lift is lift:
            untap(pipe, tap)


# ---------------------------------------------------------------- links around forwards


@dataclass(eq=False)
class Link:
    """One wrapped forward. `at` holds argument positions; `fresh`: the instance had no `forward` of its own before."""

    inner: Callable[..., Any]
    lift: Lift
    at: dict[str, int]
    family: Family
    fresh: bool


def lifted_root(link: Link, *args: Any, **kwargs: Any) -> Any:
    lift = link.lift
    if lift.active:
        text = _argument(link, link.family.model_text, args, kwargs)
        lift.begin(text, _argument(link, link.family.model_timestep, args, kwargs))
    return link.inner(*args, **kwargs)


def lifted_block(link: Link, *args: Any, **kwargs: Any) -> Any:
    lift, name, place = link.lift, link.family.text, link.family.returns
    if not lift.active:
        return link.inner(*args, **kwargs)
    z = _argument(link, name, args, kwargs)
    lifted = spread_by(z, lift.live_scale, lift.live_share)
    lift.count()
    if name in kwargs:
        kwargs = {**kwargs, name: lifted}
    else:
        args = (*args[: link.at[name]], lifted, *args[link.at[name] + 1 :])
    output = link.inner(*args, **kwargs)
    if lift.carry or place is None or output[place] is None:
        return output
    return (*output[:place], take_off(output[place], z, lifted), *output[place + 1 :])


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
    link = Link(inner, lift, {name: i for i, name in enumerate(parameters)}, family or lift.family, fresh)
    holder[key] = functools.update_wrapper(functools.partial(function, link), inner)


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
    found = ((holder, key, holder.get(key)) for holder, key in _slots(module))
    ours = (lifted_root, lifted_block)
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
