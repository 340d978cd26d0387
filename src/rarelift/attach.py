"""The doors: `apply`, `Handle`, `remove`, `inspect`. All is found and checked first, then attached, or nothing."""

from __future__ import annotations

import itertools
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import nn

from .hooks import (
    AFTER,
    adding_up,
    lifted_block,
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
from .locate import Site, check_diffusers, is_compiled, locate, transformers_of, unwrap
from .settings import Spread, one_of
from .streams import FAMILIES


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
    space: Literal["all", "principal", "residual", "whiten", "align"] = "all",
    rank: int | float | None = None,
    amount: float | None = None,
    toward: str | tuple[str, ...] = "first",
    prompt: str | list[str] | None = None,
    settings: Spread | None = None,
) -> Handle:
    """Spread the text stream at the joint-attention blocks of a pipeline or transformer, until the handle is removed.

    Give the pipeline where there is one: it knows the words, the branches and the steps. Applying again replaces.
    Other pipelines that share the transformer are lifted too, without their words being seen.

    Args:
        target: a diffusers pipeline, or its transformer, compiled or not.
        alpha, carry, tokens, blocks, start, stop, branch, space, rank, amount, toward: see `Spread`.
        prompt: the text behind `prompt_embeds`, for calls that pass embeddings instead of words.
        settings: all of them in one object, in place of the single keywords; one of these beside it that differs from
            its default is an error.

    Returns:
        A `Handle`, also a context manager that removes on exit.

    Raises:
        UnsupportedModelError: no joint-attention block was found; nothing was changed.
        ImportError: the installed diffusers is too old.
        ValueError, TypeError: a setting is wrong, or the target cannot honour it; nothing was changed.
    """
    given = Spread(alpha, carry, tokens, blocks, start, stop, branch, space, rank, amount, toward)  # type: ignore[arg-type]
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
    sites = locate(target)
    lifted = {site.name: link.lift for site in sites for link in links_of(site.module)}
    lift = next(iter(lifted.values()), None)
    left_out = [(s.name, "not in blocks") for s in sites if lifted and s.name not in lifted]
    left_out += _controlnets(target)
    taking = [s for s in sites if not lifted or s.name in lifted]
    return Inspection(
        model=" + ".join(dict.fromkeys(type(s.root).__name__ for s in sites)),
        table=tuple(_table(taking)),
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

    `table` has one row per list of blocks, (blocks, class, layout, text, mask); `settings` is None while nothing is
    lifted; `left_out` pairs names with reasons.
    """

    model: str
    table: tuple[tuple[str, str, str, str, str], ...]
    blocks: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    settings: Spread | None

    def __str__(self) -> str:
        rows = [("blocks", "class", "layout", "text", "mask"), *self.table]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            f"{self.model}: {len(self.blocks)} joint blocks {'lifted' if self.settings else 'to lift'}",
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
        sites = locate(target)
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
        """How often a lifted block has run. Reads a tensor on the model's device."""
        return self._lift.calls

    @property
    def note(self) -> str:
        """What the last pipeline call could not be told and did instead; empty when there was nothing."""
        return self._lift.note

    def set(self, **changes: Any) -> None:
        """Change settings (fields of `Spread`, and `prompt`) in place, also from a callback in the middle of a call.

        alpha, start, stop, branch and amount take effect without recompilation; blocks, carry, space, rank and toward
        are another graph. On error nothing has changed.

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
        retire(self._lift)

    def _pipe(self) -> object | None:
        return None if self._lift.bare else self._target

    def _attach(self) -> None:
        """Link and tap everything, or nothing."""
        try:
            for root in dict.fromkeys(s.root for s in self.sites):
                link_forward(root, lifted_root, self._lift)
            for site in self.sites:
                link_forward(site.module, lifted_block, self._lift, site.family)
            if not self._lift.bare:
                self._lift.pipe = weakref.ref(self._target)
                for owner in (self._target, *dict.fromkeys(s.root for s in self.sites)):
                    for name in AFTER:
                        tap_method(owner, name, self._lift)
        except BaseException:
            self.remove()
            raise

    def _detach(self) -> None:
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
    count = 1 + max(s.index for s in sites)
    for b in blocks:
        if not -count <= b < count:
            raise ValueError(
                f"blocks holds {b}, but there are {count} joint blocks: 0 to {count - 1} or -{count} to -1"
            )
    wanted = {b % count for b in blocks}
    return tuple(s for s in sites if s.index in wanted)


def _notes(target: object, sites: tuple[Site, ...], lift: Lift | None) -> Iterator[str]:
    yield from dict.fromkeys(s.family.note for s in sites if s.family.note)
    families = tuple(dict.fromkeys(s.family for s in sites))
    if not families[0].segments:
        if any(f.mask for f in families):
            yield "tokens='valid' follows the mask that the blocks are given; without one every token takes part"
        else:
            yield "every token of the text takes part: no mask tells padding from words, and padding is attended to"
    elif isinstance(target, nn.Module):
        yield "given without its pipeline: every token takes part; tokens, start, stop and branch need the pipeline"
    else:
        yield "tokens='valid' is read from the prompt; a call that passes prompt_embeds without text uses every token"
    refused = [
        what
        for what, unknown in (
            ("tokens by words", not families[0].segments),
            ("branch", families[0].batch == "unknown"),
            ("start and stop", families[0].timestep_scale is None),
        )
        if unknown
    ]
    if refused:
        yield f"not known for this model, and refused: {', '.join(refused)}"
    held = (*(getattr(target, n, None) for n in ("transformer", "transformer_2")), target, *(s.module for s in sites))
    if any(isinstance(m, nn.Module) and is_compiled(m) for m in held):
        yield "compiled: applying and removing costs one recompilation"
    if lift and lift.note:
        yield f"last call: {lift.note}"
