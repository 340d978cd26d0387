"""Caches of diffusers: what runs is lifted, what is skipped is not, and taking either off first leaves the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import diffusers
import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks import HookRegistry, TextKVCacheConfig

import rarelift
from families import FAMILIES, Tiny
from rarelift.hooks import links_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

diffusers.utils.logging.set_verbosity_error()

TIMES = (900, 600, 300)
STEPS = len(TIMES)
NOW = [0]  # the timestep, as a pipeline tells it
CACHES: dict[str, Callable[[], Any]] = {
    "FirstBlockCache": lambda: FirstBlockCacheConfig(threshold=1e9),
    "MagCache": lambda: MagCacheConfig(
        threshold=1e9, max_skip_steps=9, retention_ratio=0.0, num_inference_steps=99, mag_ratios=[1.0] * 99
    ),
    "TaylorSeer": lambda: TaylorSeerCacheConfig(
        cache_interval=2, disable_cache_before_step=1, taylor_factors_dtype=torch.float32
    ),
    "PyramidAttentionBroadcast": lambda: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 1001),
        spatial_attention_block_identifiers=("transformer_blocks",),
        current_timestep_callback=lambda: NOW[0],
    ),
    "FasterCache": lambda: FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 700),  # it has nothing to go by in the first step
        spatial_attention_block_identifiers=("transformer_blocks.*attn", "single_transformer_blocks.*attn"),
        attention_weight_callback=lambda _: 0.5,
        is_guidance_distilled=True,
        current_timestep_callback=lambda: NOW[0],
    ),
}
SKIPS_BLOCKS = ("FirstBlockCache", "MagCache")


@torch.no_grad()
def steps(model: Any, tiny: Tiny) -> list[Tensor]:
    """Some steps of one picture, as a pipeline runs them."""
    call = tiny.arguments()
    with model.cache_context("cond"):
        found = []
        for NOW[0] in TIMES:
            found.append(model(**call, return_dict=False)[0].clone())
    model._reset_stateful_cache()
    return found


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", ["Flux", "CogVideoX"])
@pytest.mark.parametrize("cache", CACHES)
def test_caches_in_any_order(name: str, cache: str) -> None:
    tiny = FAMILIES[name]
    model = tiny.make()
    plain = steps(model, tiny)
    with rarelift.apply(model) as handle:
        lifted = steps(model, tiny)
    model.enable_cache(CACHES[cache]())
    cached = steps(model, tiny)

    handle = rarelift.apply(model)  # on top of the cache; ours first off
    both = steps(model, tiny)
    if cache in SKIPS_BLOCKS:
        before = 0 if cache == "MagCache" else STEPS - 1
        assert handle.calls == tiny.blocks + before  # the first step, and the block that decides on the others
    else:
        assert handle.calls == STEPS * tiny.blocks
    assert not same(both, cached)
    assert torch.equal(both[0], lifted[0])
    handle.remove()
    assert same(steps(model, tiny), cached)

    handle = rarelift.apply(model)  # on top; the cache first off
    model.disable_cache()
    assert same(steps(model, tiny), lifted)
    handle.remove()
    assert same(steps(model, tiny), plain)

    handle = rarelift.apply(model)  # under the cache; ours first off
    model.enable_cache(CACHES[cache]())
    assert same(steps(model, tiny), both)
    handle.remove()
    assert same(steps(model, tiny), cached)

    handle = rarelift.apply(model)  # under and above: put on again, the cache first off
    model.disable_cache()
    assert same(steps(model, tiny), lifted)
    handle.remove()
    assert same(steps(model, tiny), plain)
    assert not any(links_of(module) for module in model.modules())


def test_cached_text_keys_are_refused() -> None:
    """They are made above the block, from text that we have not seen: the lift would do nothing, silently."""
    tiny = FAMILIES["NucleusMoE"]
    model = tiny.make()
    plain = steps(model, tiny)
    handle = rarelift.apply(model)
    lifted = steps(model, tiny)
    assert not same(lifted, plain)
    model.enable_cache(TextKVCacheConfig())
    with pytest.raises(ValueError, match="neither alpha nor start and stop would reach them"):
        steps(model, tiny)
    model.disable_cache()
    assert same(steps(model, tiny), lifted)
    handle.remove()
    model.enable_cache(TextKVCacheConfig())
    cached = steps(model, tiny)
    with pytest.raises(ValueError, match=r"caches its text keys.*disable_cache\(\)"):
        rarelift.apply(model)
    assert same(steps(model, tiny), cached)
    assert "text_kv_cache_transformer" in HookRegistry.check_if_exists_or_initialize(model).hooks
