"""From what a user has in hand, a pipeline or a transformer, to the blocks that do joint attention.

Everything that can be wrong with the target is found here, before anything is attached.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from torch import nn

from .streams import CROSS_ATTENTION, FAMILIES, Family

if TYPE_CHECKING:
    from collections.abc import Iterator


class UnsupportedModelError(TypeError):
    """The target has no joint-attention blocks that rarelift knows."""


@dataclass(frozen=True)
class Site:
    """One joint block: `name` such as "transformer_blocks.3", `index` among the sites of its transformer."""

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
    """The transformers of a pipeline by attribute name, or the transformer itself under the name "", unwrapped.

    Raises:
        UnsupportedModelError: there is none.
    """
    if isinstance(target, nn.Module):
        return {"": unwrap(target)}
    held = {name: getattr(target, name, None) for name in ("transformer", "transformer_2")}
    found = {name: unwrap(module) for name, module in held.items() if isinstance(module, nn.Module)}
    if found:
        return found
    unet = getattr(target, "unet", None)
    reason = f"its denoiser is {_refusal(unet)}" if isinstance(unet, nn.Module) else "it has no `transformer`"
    raise UnsupportedModelError(f"{type(target).__name__}: {reason}. {_supported()}")


def locate(target: object) -> tuple[Site, ...]:
    """Every joint block of a pipeline or transformer, in the order in which it runs.

    Raises:
        UnsupportedModelError: no transformer, one that is not known, one without joint attention, or one whose
            blocks are not of the known class.
    """
    found = transformers_of(target)
    sites = [site for name, root in found.items() if _families(root) for site in _sites(root, name)]
    if sites:
        return tuple(sites)
    for root in found.values():
        if _families(root):
            lists = " and ".join(f"`{family.blocks}`" for family in _families(root))
            raise UnsupportedModelError(f"{type(root).__name__} should hold joint blocks in {lists}: empty")
    raise UnsupportedModelError(f"{'; '.join(_refusal(root) for root in found.values())}. {_supported()}")


def _sites(root: nn.Module, name: str) -> Iterator[Site]:
    prefix = "" if name in ("", "transformer") else f"{name}."
    index = 0
    for family in _families(root):
        blocks = getattr(root, family.blocks, None)
        if not isinstance(blocks, nn.ModuleList):
            raise UnsupportedModelError(f"{type(root).__name__} should hold joint blocks in `{family.blocks}`: no list")
        spared = getattr(getattr(root, "config", None), family.spared, 0) if family.spared else 0
        for i, block in enumerate(blocks[: len(blocks) - spared]):
            inner = unwrap(block)
            if not set(family.block_names) & set(_names(inner)):
                raise UnsupportedModelError(
                    f"{type(root).__name__}.{family.blocks}[{i}] is a {type(inner).__name__}; the joint block known "
                    f"there is {' or '.join(family.block_names)}. Describe your block with rarelift.streams.register"
                )
            yield Site(f"{prefix}{family.blocks}.{i}", index, inner, root, family)
            index += 1


def _names(module: nn.Module) -> list[str]:
    return [c.__name__ for c in type(module).__mro__]


def _families(root: nn.Module) -> tuple[Family, ...]:
    return next((FAMILIES[name] for name in _names(root) if name in FAMILIES), ())


def _refusal(root: nn.Module) -> str:
    name = type(root).__name__
    reason = next((CROSS_ATTENTION[n] for n in _names(root) if n in CROSS_ATTENTION), None)
    if reason:
        return f"{name}, which has no joint attention ({reason}), so there is nothing for rarelift to lift"
    return f"{name}, which is not a model that rarelift knows"


def _supported() -> str:
    return f"Supported: {', '.join(sorted(FAMILIES))}; rarelift.streams.register describes a model of your own"
