"""From what a user has in hand, a pipeline or a transformer, to the blocks that do joint attention, or cross-attention.

Everything that can be wrong with the target is found here, before anything is attached.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from torch import nn

from .streams import CROSS_ATTENTION, CROSS_FAMILIES, FAMILIES, Family

if TYPE_CHECKING:
    from collections.abc import Iterator


class UnsupportedModelError(TypeError):
    """The target has no blocks of the kind asked for that rarelift knows."""


@dataclass(frozen=True)
class Site:
    """One block that is lifted: `name` such as "transformer_blocks.3", `index` among the sites of its transformer."""

    name: str
    index: int
    module: nn.Module
    root: nn.Module
    family: Family


OLDEST_DIFFUSERS = "0.40"
"""As in pyproject.toml."""


def check_diffusers() -> None:
    """Raise ImportError when the installed diffusers is older than what the table was read from."""
    try:
        installed = version("diffusers")
    except PackageNotFoundError:  # a copy on the path; whoever put it there knows
        return
    if _numbers(installed) < _numbers(OLDEST_DIFFUSERS):
        raise ImportError(
            f"rarelift needs diffusers {OLDEST_DIFFUSERS} or newer, and {installed} is installed: "
            f"pip install -U 'diffusers>={OLDEST_DIFFUSERS}'"
        )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:2]))


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside the wrappers of `torch.compile`, data parallelism, FSDP and PEFT."""
    for name in _names(module):
        inner = getattr(module, _WRAPPERS[name], None) if name in _WRAPPERS else None
        if isinstance(inner, nn.Module):
            return unwrap(inner)
    return module


_WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "module",
    "PeftModel": "base_model",  # what get_peft_model returns holds a tuner, which holds the model
    "PeftMixedModel": "base_model",
    "BaseTuner": "model",
}
"""Class name of a wrapper to the attribute with what it wraps."""


def is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile(module)` or `module.compile()` was called on this very module."""
    wrapped = type(module).__name__ == "OptimizedModule"
    return wrapped or getattr(unwrap(module), "_compiled_call_impl", None) is not None


def transformers_of(target: object) -> dict[str, nn.Module]:
    """The denoisers of a pipeline by attribute name, or the denoiser itself under the name "", unwrapped.

    Raises:
        UnsupportedModelError: there is none.
    """
    if isinstance(target, nn.Module):
        return {"": unwrap(target)}
    held = {name: getattr(target, name, None) for name in DENOISERS}
    found = {name: unwrap(module) for name, module in held.items() if isinstance(module, nn.Module)}
    if found:
        return found
    raise UnsupportedModelError(f"{type(target).__name__}: it has no {_or(DENOISERS)}. {_supported(FAMILIES)}")


DENOISERS = ("transformer", "transformer_2", "unet")
"""Pipeline attributes that hold what is lifted."""


def locate(target: object, *, cross: bool = False) -> tuple[Site, ...]:
    """Every joint block of a pipeline or transformer, or every one that cross-attends, in the order in which it runs.

    Args:
        target: the pipeline or transformer.
        cross: every block that cross-attends to the text, in place of the joint blocks.

    Raises:
        UnsupportedModelError: no transformer, one that is not known, one without such attention, or one whose blocks
            are not of the known class.
    """
    found = transformers_of(target)
    table = CROSS_FAMILIES if cross else FAMILIES
    sites = [site for name, root in found.items() for site in _sites(root, name, _families(root, table))]
    if sites:
        return tuple(sites)
    for root in found.values():
        if families := _families(root, table):
            lists = " and ".join(f"`{family.blocks}`" for family in families)
            raise UnsupportedModelError(
                f"{type(root).__name__} should hold {families[0].kind} blocks in {lists}: empty"
            )
    refusal = _no_cross if cross else _refusal
    raise UnsupportedModelError(f"{'; '.join(refusal(root) for root in found.values())}. {_supported(table)}")


def _sites(root: nn.Module, name: str, families: tuple[Family, ...]) -> Iterator[Site]:
    prefix = "" if name in ("", "transformer", "unet") else f"{name}."
    index = 0
    for family in families:
        for path, blocks in _lists(root, family):
            spared = getattr(getattr(root, "config", None), family.spared, 0) if family.spared else 0
            for i, block in enumerate(blocks[: len(blocks) - spared]):
                inner = unwrap(block)
                if not set(family.block_names) & set(_names(inner)):
                    raise UnsupportedModelError(
                        f"{type(root).__name__}.{path}[{i}] is a {type(inner).__name__}; the {family.kind} block known "
                        f"there is {' or '.join(family.block_names)}. Describe your block with "
                        "rarelift.streams.register"
                    )
                yield Site(f"{prefix}{path}.{i}", index, inner, root, family)
                index += 1


def _lists(root: nn.Module, family: Family) -> Iterator[tuple[str, nn.ModuleList]]:
    """The lists of blocks of a family, by their paths from the root."""
    found: list[tuple[str, object]] = [("", root)]
    for part in family.blocks.split("."):
        if part == "*":
            inside = ((path, held) for path, held in found if isinstance(held, nn.ModuleList))
            found = [(f"{path}.{i}", unwrap(module)) for path, held in inside for i, module in enumerate(held)]
        else:
            found = [(f"{path}.{part}", getattr(held, part, None)) for path, held in found]
    lists = [(path[1:], held) for path, held in found if isinstance(held, nn.ModuleList)]
    if not lists and "*" not in family.blocks:
        raise UnsupportedModelError(
            f"{type(root).__name__} should hold {family.kind} blocks in `{family.blocks}`: no list"
        )
    yield from lists


def _names(module: nn.Module) -> list[str]:
    return [c.__name__ for c in type(module).__mro__]


def _families(root: nn.Module, table: dict[str, tuple[Family, ...]]) -> tuple[Family, ...]:
    return next((table[name] for name in _names(root) if name in table), ())


def _refusal(root: nn.Module) -> str:
    name = type(root).__name__
    reason = next((CROSS_ATTENTION[n] for n in _names(root) if n in CROSS_ATTENTION), "")
    if _families(root, CROSS_FAMILIES):
        return (
            f"{name}, which has no joint attention{reason and f' ({reason})'}; cross_attention=True (experimental) "
            "lifts what its cross-attention reads"
        )
    if reason:
        return f"{name}, which has no joint attention ({reason}), so there is nothing for rarelift to lift"
    return f"{name}, which is not a model that rarelift knows"


def _no_cross(root: nn.Module) -> str:
    """Why cross_attention=True finds nothing in a model."""
    name = type(root).__name__
    if _families(root, FAMILIES):
        return f"{name}, which has joint attention: leave out cross_attention=True"
    reason = next((CROSS_ATTENTION[n] for n in _names(root) if n in CROSS_ATTENTION), None)
    if reason:
        return f"{name}: how its text reaches its blocks is not known to rarelift ({reason})"
    return f"{name}, which is not a model that rarelift knows"


def _or(names: tuple[str, ...]) -> str:
    return " or ".join(f"`{name}`" for name in names)


def _supported(table: dict[str, tuple[Family, ...]]) -> str:
    return f"Supported: {', '.join(sorted(table))}; rarelift.streams.register describes a model of your own"
