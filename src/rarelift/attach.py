"""The doors: `apply`, `Handle`, `remove`, `inspect`. All is found and checked first, then attached, or nothing."""

from __future__ import annotations

import functools
import itertools
import json
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, ParamSpec

import torch
from torch import nn

from . import profiles
from .hooks import (
    AFTER,
    adding_up,
    lifted_block,
    lifted_reader,
    lifted_root,
    link_forward,
    links_of,
    refuse_cached_text,
    retire,
    tap_method,
    taps_of,
    unlink,
    untap,
)
from .lifting import Lift, RareliftWarning
from .locate import (
    DENOISERS,
    Site,
    UnsupportedModelError,
    check_diffusers,
    is_compiled,
    locate,
    transformers_of,
    unwrap,
)
from .settings import Spread, one_of
from .streams import FAMILIES

_P = ParamSpec("_P")


def _over_profile(function: Callable[_P, Handle]) -> Callable[_P, Handle]:
    """Lay the keywords of a call over its profile: only here can a keyword that was given be told from a default."""

    @functools.wraps(function)
    def filled(*args: _P.args, **kwargs: _P.kwargs) -> Handle:
        name: Any = kwargs.get("profile")
        told = args or "target" in kwargs  # else the call below says that it lacks
        if told and name is not None and kwargs.get("settings") is None:
            kwargs.update(profiled(args[0] if args else kwargs["target"], name, kwargs))
        return function(*args, **kwargs)

    return filled


def profiled(target: object, profile: str | Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a profile for a pipeline or transformer, with those that were given over them.

    Warns where the profile says that the model is best left untouched and nothing given says otherwise.

    Raises:
        UnsupportedModelError: there is no transformer.
        ValueError: as `profiles.find`.
    """
    found = profiles.find(profile, *identity(target))
    if found.untouched and "alpha" not in given:
        warnings.warn(
            f"profile {str(profile)!r} says that no setting beat the untouched model, so alpha is 1 and nothing is "
            "lifted; give alpha= to lift all the same",
            RareliftWarning,
            stacklevel=3,  # past `filled`
        )
    return {**found.settings, **given}


def identity(target: object) -> tuple[str, dict[str, Any]]:
    """What a profile knows a model by: class and configuration of its transformer, as values of JSON.

    Raises:
        UnsupportedModelError: there is no transformer.
    """
    root = next(iter(transformers_of(target).values()))
    config = dict(getattr(root, "config", {}))
    own = {key: config[key] for key in config if not key.startswith("_") and key != "quantization_config"}
    return type(root).__name__, json.loads(json.dumps(own, default=str))


@_over_profile
def apply(
    target: object,
    *,
    alpha: float | tuple[float, ...] = 1.5,
    carry: bool | float = False,
    tokens: str | tuple[str, ...] = "valid",
    blocks: tuple[int, ...] | range | str | None = None,
    start: float = 0.0,
    stop: float = 1.0,
    branch: Literal["both", "cond", "uncond"] = "both",
    cross_attention: bool = False,
    prompt: str | list[str] | None = None,
    settings: Spread | None = None,
    profile: str | Path | None = None,
) -> Handle:
    """Spread the text stream at the joint-attention blocks of a pipeline or transformer, until the handle is removed.

    Give the pipeline where there is one: it knows the words, the branches and the steps. Applying again replaces.
    Other pipelines that share the transformer are lifted too, without their words being seen.

    Args:
        target: a diffusers pipeline, or its transformer or U-Net, compiled or not.
        alpha, carry, tokens, blocks, start, stop, branch, cross_attention: see `Spread`.
        prompt: the text behind `prompt_embeds`, for calls that pass embeddings instead of words.
        settings: all of them in one object, in place of the single keywords; one of these beside it that differs from
            its default is an error.
        profile: settings that were tuned on this model: a .json file as `rarelift tune` writes it, the name of one that
            comes with rarelift, or "auto" for the one that is for this model. Single keywords beside it win.

    Returns:
        A `Handle`, also a context manager that removes on exit.

    Raises:
        UnsupportedModelError: no block of the kind asked for (joint, or with cross_attention=True cross-attending) was
            found; nothing was changed.
        ImportError: the installed diffusers is too old.
        ValueError, TypeError: a setting is wrong, or the target cannot honour it, or a profile is not there or for
            another model; nothing was changed.
    """
    if settings is not None and profile is not None:
        raise ValueError("give either settings=Spread(...) or profile=, not both; single keywords beside a profile win")
    given = Spread(alpha, carry, tokens, blocks, start, stop, branch, cross_attention)  # type: ignore[arg-type]
    if settings is not None and given not in (settings, Spread()):
        raise ValueError("give either settings=Spread(...) or single keywords, not both; see Spread.replace")
    return Handle(target, settings or given, prompt)


def remove(target: object) -> None:
    """Take every lift off a pipeline or transformer, whoever holds its handle. Does nothing when there is none."""
    for root in transformers_of(target).values():
        for module in root.modules():
            for link in links_of(module):
                unlink(module, link)
                retire(link.lift)
        for tap in taps_of(root):
            untap(root, tap)
    for tap in taps_of(target):
        untap(target, tap)


def inspect(target: object) -> Inspection:
    """Say what `apply` would lift, or has lifted, in a pipeline or transformer. Prints well.

    Raises:
        UnsupportedModelError: there is nothing to lift.
    """
    try:
        sites = locate(target)
    except UnsupportedModelError as error:
        try:
            sites = locate(target, cross=True)
        except UnsupportedModelError:
            raise error from None
    lifted = {site.name: link.lift for site in sites for link in links_of(site.module)}
    lift = next(iter(lifted.values()), None)
    left_out = [(s.name, "not in blocks") for s in sites if lifted and s.name not in lifted]
    left_out += _controlnets(target)
    taking = [s for s in sites if not lifted or s.name in lifted]
    return Inspection(
        model=" + ".join(dict.fromkeys(type(s.root).__name__ for s in sites)),
        table=tuple(_table(taking)),
        kind=sites[0].family.kind,
        blocks=tuple(s.name for s in taking),
        left_out=tuple(left_out),
        notes=tuple(_notes(target, sites, lift)),
        settings=lift.settings if lift else None,
    )


def _controlnets(target: object) -> Iterator[tuple[str, str]]:
    """Those of a pipeline that have joint blocks and are not lifted, and how to lift them."""
    held = getattr(target, "controlnet", None)
    if not isinstance(held, nn.Module):
        return
    nets = getattr(held, "nets", None)
    named = {f"controlnet.nets[{i}]": net for i, net in enumerate(nets)} if nets else {"controlnet": held}
    for name, net in named.items():
        if type(unwrap(net)).__name__ in FAMILIES and not links_of(unwrap(net)):
            yield name, f"has joint blocks of its own; rarelift.apply(pipe.{name}) lifts them"


@dataclass(frozen=True)
class Inspection:
    """What is or would be lifted.

    `table` has one row per list of blocks, (blocks, class, layout, text, mask); `kind` is "joint" or "cross-attention";
    `settings` is None while nothing is lifted; `left_out` pairs names with reasons.
    """

    model: str
    kind: str
    table: tuple[tuple[str, str, str, str, str], ...]
    blocks: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    settings: Spread | None

    def __str__(self) -> str:
        rows = [("blocks", "class", "layout", "text", "mask"), *self.table]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            f"{self.model}: {len(self.blocks)} {self.kind} blocks {'lifted' if self.settings else 'to lift'}",
            *("  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows),
            *(f"  left out: {name} ({why})" for name, why in self.left_out),
            *(f"  note: {note}" for note in self.notes),
            f"  settings: {self.settings or 'not lifted'}",
        ]
        return "\n".join(lines)


def _table(sites: list[Site]) -> Iterator[tuple[str, str, str, str, str]]:
    """One row for sites that stand one after the other in one list and are of one class."""

    def of(site: Site) -> tuple[str, str]:
        return site.name.rpartition(".")[0], type(site.module).__name__

    for (blocks, kind), group in itertools.groupby(sites, of):
        found = list(group)
        numbers = _ranges([int(s.name.rpartition(".")[2]) for s in found])
        family = found[0].family
        text = family.text if family.layout == "dual" else f"{family.scattered or family.span} in {family.text}"
        yield f"{blocks}.{numbers}", kind, family.layout, text, family.mask or "none"


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] as "0-2,5"."""
    runs = [list(run) for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ",".join(f"{r[0][1]}-{r[-1][1]}" if len(r) > 1 else f"{r[0][1]}" for r in runs)


class Handle:
    """The way out of `apply`. A context manager: leaving removes, and warns when nothing was lifted inside."""

    def __init__(self, target: object, settings: Spread, prompt: str | list[str] | None = None) -> None:
        check_diffusers()
        sites = locate(target, cross=settings.cross_attention)
        self._target = target
        self._all = sites
        families = tuple(dict.fromkeys(site.family for site in sites))
        self._lift = Lift(settings, _as_prompts(prompt), families, bare=isinstance(target, nn.Module))
        self._entered_at = 0
        self.sites = _chosen(sites, settings.blocks)
        """The blocks that are lifted."""
        for site in sites:
            adding_up(site.root, site.family)
            refuse_cached_text(site.root, site.family)
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
        """How many block calls were lifted.

        A block counts once for each call of its transformer. Where that is compiled as a whole, all calls between two
        looks count as one; `repr` and leaving `with` look too.
        """
        return self._lift.calls

    @property
    def note(self) -> str:
        """What the last pipeline call could not be told and did instead; empty when there was nothing."""
        return self._lift.note

    def set(self, **changes: Any) -> None:
        """Change settings (fields of `Spread`, and `prompt`) in place, also from a callback in the middle of a call.

        alpha, start, stop and branch take effect without recompilation, and so does carry between 0 and 1; blocks,
        and carry to and from its ends, are another graph, and so may other tokens be, which can change a shape. On
        error nothing has changed.

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
        if settings.cross_attention != self.settings.cross_attention:
            raise ValueError("cross_attention says which model is lifted; call rarelift.apply again to change it")
        sites = _chosen(self._all, settings.blocks)
        self._lift.refill(self._pipe(), settings=settings, prompt=prompt)
        if sites != self.sites:
            self._detach()
            self.sites = sites
            self._attach()

    def remove(self) -> None:
        """Restore the model and the pipeline exactly. Safe to call again."""
        self._detach()
        retire(self._lift)

    def _pipe(self) -> object | None:
        return None if self._lift.bare else self._target

    def _attach(self) -> None:
        """Link and tap everything, or nothing."""
        try:
            for root in dict.fromkeys(s.root for s in self.sites):
                link_forward(root, lifted_root, self._lift)
            for site in self.sites:
                function = lifted_reader if site.family.cross else lifted_block
                link_forward(site.module, function, self._lift, site.family)
            if not self._lift.bare:
                self._lift.pipe = weakref.ref(self._target)
                for owner in (self._target, *dict.fromkeys(s.root for s in self.sites)):
                    for name in AFTER:
                        tap_method(owner, name, self._lift)
        except BaseException:
            self.remove()
            raise

    def _detach(self) -> None:
        self._lift.settle()
        self._lift.marks.clear()
        for module in (*dict.fromkeys(s.root for s in self._all), *(s.module for s in self._all)):
            for link in links_of(module):
                if link.lift is self._lift:
                    unlink(module, link)
        for owner in (self._target, *dict.fromkeys(s.root for s in self._all)):
            for tap in taps_of(owner):
                if tap.lift is self._lift:
                    untap(owner, tap)


def _as_prompts(prompt: str | list[str] | None) -> tuple[str, ...] | None:
    return (prompt,) if isinstance(prompt, str) else tuple(prompt) if prompt is not None else None


def _chosen(sites: tuple[Site, ...], blocks: tuple[int, ...] | None) -> tuple[Site, ...]:
    if blocks is None:
        return sites
    count, kind = 1 + max(s.index for s in sites), sites[0].family.kind
    for b in blocks:
        if not -count <= b < count:
            raise ValueError(
                f"blocks holds {b}, but there are {count} {kind} blocks: 0 to {count - 1} or -{count} to -1"
            )
    wanted = {b % count for b in blocks}
    return tuple(s for s in sites if s.index in wanted)


def _notes(target: object, sites: tuple[Site, ...], lift: Lift | None) -> Iterator[str]:
    if sites[0].family.cross:
        yield "experimental: lifted with cross_attention=True only; the blocks read one text, and none changes it"
    yield from dict.fromkeys(s.family.note for s in sites if s.family.note)
    families = tuple(dict.fromkeys(s.family for s in sites))
    if not families[0].segments or families[0].mask:
        if any(f.mask for f in families):
            yield "tokens='valid' follows the mask that the blocks are given; without one every token takes part"
        else:
            yield "every token of the text takes part: no mask tells padding from words, and padding is attended to"
    elif isinstance(target, nn.Module):
        yield "given without its pipeline: every token takes part; tokens, start, stop and branch need the pipeline"
    else:
        yield "tokens='valid' is read from the prompt; a call that passes prompt_embeds without text uses every token"
    if families[0].runs:
        yield "tokens by words are read off what the pipeline's text encoders are given: prompt_embeds have none"
    refused = [
        what
        for what, unknown in (
            ("tokens by words", not families[0].words_known),
            ("branch", families[0].batch == "unknown"),
            ("start and stop", families[0].timestep_scale is None),
        )
        if unknown
    ]
    if refused:
        yield f"not known for this model, and refused: {', '.join(refused)}"
    held = (*(getattr(target, n, None) for n in DENOISERS), target, *(s.module for s in sites))
    if any(isinstance(m, nn.Module) and is_compiled(m) for m in held):
        yield "compiled: applying and removing costs one recompilation"
    if lift and lift.note:
        yield f"last call: {lift.note}"
