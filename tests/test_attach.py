from __future__ import annotations

import copy
import gc
import shutil
import subprocess
import sys
import types
import warnings
import weakref
from typing import TYPE_CHECKING, Any

import diffusers
import pytest
import torch
import torch._dynamo.testing
from diffusers.hooks import (
    FirstBlockCacheConfig,
    HookRegistry,
    LayerSkipConfig,
    ModelHook,
    apply_first_block_cache,
    apply_layer_skip,
)
from torch import Tensor

import rarelift
from rarelift import attach, hooks
from rarelift.attach import RareliftWarning
from rarelift.variance import spread

if TYPE_CHECKING:
    from collections.abc import Callable

PROMPT = "a striped purple lion wearing a crown"


def draw(pipe: Any, prompt: Any = PROMPT, **options: Any) -> Tensor:
    options = {"guidance_scale": 3.0, "num_inference_steps": 2, "max_sequence_length": 4} | options
    images = options.pop("num_images_per_prompt", 1)
    if prompt is not None:
        options |= {"prompt": prompt}
    count = images * (len(prompt) if isinstance(prompt, list) else 1)
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(7)).to(pipe.transformer.dtype)
    latents = latents.repeat(count, 1, 1, 1)
    return pipe(latents=latents, num_images_per_prompt=images, output_type="latent", **options).images  # type: ignore[no-any-return]


def inputs(batch: int = 2) -> dict[str, Any]:
    g = torch.Generator().manual_seed(3)
    return {
        "hidden_states": torch.randn(batch, 4, 4, 4, generator=g),
        "encoder_hidden_states": torch.randn(batch, 6, 32, generator=g),
        "pooled_projections": torch.randn(batch, 32, generator=g),
        "timestep": torch.full((batch,), 500.0),
    }


@torch.no_grad()
def run(transformer: Any, batch: int = 2) -> Tensor:
    return transformer(**inputs(batch)).sample  # type: ignore[no-any-return]


def attributes(pipe: Any) -> list[tuple[str, ...]]:
    """Names of every instance attribute, without the pipeline's own notes of its last call."""
    public = tuple(sorted(n for n in vars(pipe) if not n.startswith("_")))
    return [public, *(tuple(sorted(vars(m))) for m in pipe.transformer.modules())]


# ---------------------------------------------------------------- exactness


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("carry", [False, 0.4, True])
@pytest.mark.parametrize("tokens", ["all", "valid"])
def test_alpha_one_changes_no_bit(pipe: Any, dtype: torch.dtype, carry: bool | float, tokens: str) -> None:
    pipe.to(dtype)
    before = draw(pipe)
    with rarelift.apply(pipe, alpha=1.0, carry=carry, tokens=tokens) as handle:
        assert torch.equal(draw(pipe), before)
        assert handle.calls == 2 * 3


@pytest.mark.parametrize("carry", [False, 0.4, True])
def test_alpha_changes_the_picture_and_removal_restores_it(pipe: Any, carry: bool | float) -> None:
    before, names = draw(pipe), attributes(pipe)
    with rarelift.apply(pipe, alpha=1.5, carry=carry):
        lifted = draw(pipe)
    assert lifted.isfinite().all()
    assert not torch.allclose(lifted, before, atol=1e-4)
    assert torch.equal(draw(pipe), before)
    assert attributes(pipe) == names


def test_against_blocks_called_by_hand(transformer: Any) -> None:
    """A block reads spread text, and its text output is relieved of what was added, but for the share that carries."""
    seen: Any = []
    original = [type(b).forward for b in transformer.transformer_blocks]
    block = transformer.transformer_blocks[1]
    spy = block.register_forward_hook(
        lambda _m, _a, k, out: seen.append((k["encoder_hidden_states"], k, out)), with_kwargs=True
    )
    for carry in (False, 0.25, True):
        seen.clear()
        with rarelift.apply(transformer, alpha=1.7, carry=carry):
            run(transformer)
        z, kwargs, out = seen[0]
        lifted = spread(z, 1.7)
        with torch.no_grad():
            text, image = original[1](block, **{**kwargs, "encoder_hidden_states": lifted})
        torch.testing.assert_close(out[1], image)
        torch.testing.assert_close(out[0], text - (1 - carry) * (lifted - z))
    spy.remove()


def test_last_block_returns_no_text(transformer: Any) -> None:
    block = transformer.transformer_blocks[-1]
    kwargs = {"hidden_states": torch.randn(1, 4, 16), "encoder_hidden_states": torch.randn(1, 5, 16)}
    with rarelift.apply(transformer) as handle:
        text, _ = block(**kwargs, temb=torch.randn(1, 16))
        assert text is None
        assert handle.calls == 1


def test_positional_arguments_and_checkpointing(transformer: Any) -> None:
    with rarelift.apply(transformer):
        lifted = run(transformer)
        transformer.enable_gradient_checkpointing()
        transformer.train()
        recomputed = transformer(**inputs()).sample
        torch.testing.assert_close(recomputed, lifted)
        recomputed.sum().backward()
    assert transformer.proj_out.weight.grad.isfinite().all()


# ---------------------------------------------------------------- removal


def test_removal_after_an_exception(pipe: Any) -> None:
    before, names = draw(pipe), attributes(pipe)

    def fail(*_: Any) -> dict[str, Any]:
        raise KeyError("callback")

    with pytest.raises(KeyError, match="callback"), rarelift.apply(pipe):
        draw(pipe, callback_on_step_end=fail)
    assert attributes(pipe) == names
    assert torch.equal(draw(pipe), before)


def test_removal_is_idempotent_and_possible_without_the_handle(pipe: Any) -> None:
    names = attributes(pipe)
    handle = rarelift.apply(pipe)
    rarelift.remove(pipe.transformer)
    assert attributes(pipe) == names
    assert not handle.active
    for _ in range(2):
        handle.remove()
        rarelift.remove(pipe)
    assert attributes(pipe) == names
    with pytest.raises(RuntimeError, match="removed or replaced"):
        handle.set(alpha=2.0)


def test_applying_again_replaces(pipe: Any) -> None:
    names = attributes(pipe)
    first = rarelift.apply(pipe, alpha=3.0)
    second = rarelift.apply(pipe, alpha=1.2)
    lifted = draw(pipe)
    assert (first.active, first.calls, second.calls) == (False, 0, 6)
    first.remove()
    assert torch.equal(draw(pipe), lifted)
    second.remove()
    assert attributes(pipe) == names


def test_all_or_nothing(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    names, tap = attributes(pipe), hooks.tap_method

    def breaks(target: object, name: str, lift: Any) -> None:
        if name == "maybe_free_model_hooks":
            raise OSError("late")
        tap(target, name, lift)

    monkeypatch.setattr(attach, "tap_method", breaks)
    with pytest.raises(OSError, match="late"):
        rarelift.apply(pipe)
    assert attributes(pipe) == names


def test_nothing_is_kept_alive(pipe: Any) -> None:
    handle = rarelift.apply(pipe)
    draw(pipe)
    handle.remove()
    lift = weakref.ref(handle._lift)
    del handle
    gc.collect()
    assert lift() is None


class Doubling(ModelHook):  # type: ignore[misc]
    """A `new_forward` hook of somebody else: doubles the image stream."""

    def new_forward(self, _module: Any, *args: Any, **kwargs: Any) -> Any:
        text, image = self.fn_ref.original_forward(*args, **kwargs)
        return text, image * 2


class Shifting(ModelHook):  # type: ignore[misc]
    """A pre/post hook of somebody else."""

    def post_forward(self, _module: Any, output: Any) -> Any:
        return output[0], output[1] + 1


def _double(transformer: Any) -> Callable[[], None]:
    registry = HookRegistry.check_if_exists_or_initialize(transformer.transformer_blocks[1])
    registry.register_hook(Doubling(), "double")
    return lambda: registry.remove_hook("double")


def _shift(transformer: Any) -> Callable[[], None]:
    registry = HookRegistry.check_if_exists_or_initialize(transformer.transformer_blocks[1])
    registry.register_hook(Shifting(), "shift")
    return lambda: registry.remove_hook("shift")


def _accelerate(transformer: Any) -> Callable[[], None]:
    from accelerate.hooks import ModelHook as AccelerateHook  # type: ignore[import-untyped]
    from accelerate.hooks import add_hook_to_module, remove_hook_from_module

    class Halving(AccelerateHook):  # type: ignore[misc]
        def post_forward(self, _module: Any, output: Any) -> Any:
            return output[0], output[1] / 2

    add_hook_to_module(transformer.transformer_blocks[1], Halving())
    return lambda: remove_hook_from_module(transformer.transformer_blocks[1])


OTHERS = {"new_forward": _double, "post_forward": _shift, "accelerate": _accelerate}


@pytest.mark.parametrize("other", OTHERS)
def test_any_order_with_other_hooks(transformer: Any, other: str) -> None:
    plain = run(transformer)
    undo = OTHERS[other](transformer)
    hooked = run(transformer)
    undo()
    with rarelift.apply(transformer):
        lifted = run(transformer)
    assert not torch.equal(plain, hooked)

    undo = OTHERS[other](transformer)  # theirs first, ours first off
    handle = rarelift.apply(transformer)
    both = run(transformer)
    handle.remove()
    assert torch.equal(run(transformer), hooked)
    handle = rarelift.apply(transformer)  # theirs first off
    undo()
    assert torch.equal(run(transformer), lifted)
    handle.remove()
    assert torch.equal(run(transformer), plain)

    handle = rarelift.apply(transformer)  # ours first
    undo = OTHERS[other](transformer)
    assert torch.equal(run(transformer), both)
    handle.remove()
    assert torch.equal(run(transformer), hooked)
    undo()
    assert torch.equal(run(transformer), plain)
    assert not any(hooks.links_of(m) for m in transformer.modules())


def test_removal_leaves_no_memory_in_a_hook_above(transformer: Any) -> None:
    block = transformer.transformer_blocks[1]
    handle = rarelift.apply(transformer)
    _double(transformer)
    handle.remove()
    assert block.forward.__wrapped__ == hooks.bare_forward(block)


def test_removal_from_under_two_hooks_keeps_them(transformer: Any) -> None:
    """diffusers' own remove_hook kills the hook above the one removed; ours must not."""
    undo_a, undo_b = _double(transformer), _shift(transformer)
    hooked = run(transformer)
    handle = rarelift.apply(transformer)
    run(transformer)
    handle.remove()
    assert torch.equal(run(transformer), hooked)
    undo_b()
    undo_a()


@pytest.mark.parametrize("ours_first", [True, False])
def test_first_block_cache_skips_us_too(transformer: Any, ours_first: bool) -> None:
    if not ours_first:
        apply_first_block_cache(transformer, FirstBlockCacheConfig(threshold=1e9))
    handle = rarelift.apply(transformer)
    if ours_first:
        apply_first_block_cache(transformer, FirstBlockCacheConfig(threshold=1e9))
    manager = transformer.transformer_blocks[0]._diffusers_hook.hooks["fbc_leader_block_hook"].state_manager
    manager.set_context(types.SimpleNamespace(name="cond"))
    blocks = transformer.transformer_blocks
    blocks[-1]._diffusers_hook.hooks["fbc_block_hook"].is_tail = False  # SD3's last block returns no text
    state = manager.get_state()
    run(transformer)
    assert handle.calls == 3
    state.tail_block_residuals = (torch.zeros(()), torch.zeros(()))
    run(transformer)
    assert handle.calls == 4  # only the head block ran
    handle.remove()
    state.head_block_residual = None
    ran: list[int] = []
    inner = blocks[1]._diffusers_hook._fn_refs[0].original_forward

    def noted(*args: Any, **kwargs: Any) -> Any:
        ran.append(1)
        return inner(*args, **kwargs)

    blocks[1]._diffusers_hook._fn_refs[0].original_forward = noted
    run(transformer)
    assert ran  # and the cache still works without us
    run(transformer)
    assert len(ran) == 1


def test_layer_skip_skips_us_too(transformer: Any) -> None:
    handle = rarelift.apply(transformer)
    apply_layer_skip(transformer, LayerSkipConfig(indices=[1], fqn="transformer_blocks"))
    with torch.no_grad():
        transformer.transformer_blocks[1](
            hidden_states=torch.randn(1, 4, 16), encoder_hidden_states=torch.randn(1, 4, 16), temb=torch.randn(1, 16)
        )
    assert handle.calls == 0


# ---------------------------------------------------------------- what is lifted


def test_blocks(pipe: Any) -> None:
    whole = draw(pipe)
    handle = rarelift.apply(pipe, blocks=(-1,))
    assert [s.name for s in handle.sites] == ["transformer_blocks.2"]
    last = draw(pipe)
    assert handle.calls == 2
    handle.set(blocks="0-1")
    assert [s.index for s in handle.sites] == [0, 1]
    assert not torch.equal(draw(pipe), last)
    assert handle.calls == 6
    handle.set(blocks=None, alpha=1.0)
    assert torch.equal(draw(pipe), whole)
    with pytest.raises(ValueError, match="blocks holds 3, but there are 3 joint blocks"):
        handle.set(blocks=3)
    assert len(handle.sites) == 3
    handle.remove()


def test_set_takes_effect_and_a_wrong_set_changes_nothing(pipe: Any) -> None:
    with rarelift.apply(pipe, alpha=1.3):
        expected = draw(pipe)
    with rarelift.apply(pipe, alpha=2.0) as handle:
        draw(pipe)
        tensor = handle._lift.scale
        handle.set(alpha=1.3)
        assert handle._lift.scale is tensor
        assert torch.equal(draw(pipe), expected)
        for wrong in ({"alpha": -1}, {"aplha": 1}, {"branch": "x"}, {"blocks": 9}):
            with pytest.raises(ValueError, match=r"alpha|branch|blocks"):
                handle.set(**wrong)
        assert handle.settings == rarelift.Spread(1.3)
        assert torch.equal(draw(pipe), expected)


def test_set_in_the_middle_of_a_call(pipe: Any) -> None:
    with rarelift.apply(pipe, stop=0.5):
        expected = draw(pipe)
    with rarelift.apply(pipe) as handle:

        def switch_off(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            handle.set(alpha=1.0)
            return tensors

        assert torch.equal(draw(pipe, callback_on_step_end=switch_off), expected)


def test_start_and_stop(pipe: Any) -> None:
    live: Any = []
    with rarelift.apply(pipe, alpha=1.5, start=0.25, stop=0.75, tokens="all") as handle:
        pipe.transformer.proj_out.register_forward_hook(lambda *_: live.append(float(handle._lift.live_scale.max())))
        draw(pipe, num_inference_steps=4)
        assert live == [1.0, 1.5, 1.5, 1.0]
        with pytest.raises(ValueError, match="hold none of the 1 steps"):
            draw(pipe, num_inference_steps=1)
        handle.set(start=0.0, stop=0.01)
        live.clear()
        draw(pipe, num_inference_steps=3)
        assert live == [1.5, 1.0, 1.0]


def test_branch(pipe: Any) -> None:
    live: Any = []
    pipe.transformer.proj_out.register_forward_hook(
        lambda *_: live.append(handle._lift.live_scale.amax((1, 2)).tolist())
    )
    handle: rarelift.Handle = rarelift.apply(pipe, branch="cond")
    draw(pipe, ["a lion", "a crown"], num_inference_steps=1)
    handle.set(branch="uncond")
    draw(pipe, num_inference_steps=1)
    with pytest.raises(ValueError, match="guidance off lifts nothing"):
        draw(pipe, guidance_scale=1.0)
    handle.set(branch="cond")
    draw(pipe, guidance_scale=1.0, num_inference_steps=1)
    assert live == [[1.0, 1.0, 1.5, 1.5], [1.5, 1.0], [1.5]]


def test_one_alpha_per_sample_is_one_by_one(pipe: Any) -> None:
    prompts, alphas = ["a lion", "a purple crown on a pink ground"], (1.3, 2.0)
    one_by_one = []
    for prompt, alpha in zip(prompts, alphas, strict=True):
        with rarelift.apply(pipe, alpha=alpha):
            one_by_one.append(draw(pipe, prompt))
    with rarelift.apply(pipe, alpha=alphas):
        torch.testing.assert_close(draw(pipe, prompts), torch.cat(one_by_one), rtol=1e-4, atol=1e-5)
        twice = draw(pipe, prompts, num_images_per_prompt=2)
        torch.testing.assert_close(twice, torch.cat(one_by_one).repeat_interleave(2, 0), rtol=1e-4, atol=1e-5)
        with pytest.raises(ValueError, match=r"alpha holds 2 values, but the call has 3 prompts \(3 images\)"):
            draw(pipe, ["a lion"] * 3)


def test_one_alpha_per_sample_of_a_bare_transformer(transformer: Any) -> None:
    with rarelift.apply(transformer, alpha=(1.0, 2.0)):
        lifted = run(transformer)
        with pytest.raises(ValueError, match="for a batch of 2, but the transformer was called with 4"):
            run(transformer, 4)
    plain = run(transformer)
    assert torch.equal(lifted[0], plain[0])
    assert not torch.allclose(lifted[1], plain[1], atol=1e-5)


def test_tokens_reach_their_rows(pipe: Any) -> None:
    rows: Any = []
    hook = pipe.transformer.proj_out.register_forward_hook
    hook(lambda *_: rows.append((handle._lift.live_scale, handle._lift.live_share)))
    handle: rarelift.Handle = rarelift.apply(pipe, tokens=("crown",))
    said = ["a crown and a lion", "a red crown"]
    draw(pipe, said, negative_prompt="red crown", num_images_per_prompt=2, num_inference_steps=1)
    scale, share = rows[0]
    assert (scale[:, :, 0] != 1).nonzero().tolist() == [[row, at] for row, at in enumerate([2, 2, 2, 2, 2, 2, 3, 3])]
    assert share[:, 0].nonzero()[:, 1].tolist() == [1, 2] * 4 + [2, 5] * 2 + [2, 3] * 2  # with the other content word
    handle.set(tokens="valid")
    draw(pipe, "a lion", num_inference_steps=1)
    assert rows[1][1].count_nonzero(2).flatten().tolist() == [2, 4]  # the empty negative prompt: begin and end
    handle.set(tokens=("crown",))
    with pytest.raises(ValueError, match="'crown', which is not in the prompt 'a lion'"):
        draw(pipe, "a lion")


@pytest.mark.parametrize("tokens", [("crown",), "content"])
def test_a_named_word_moves_and_a_lone_one_is_told(pipe: Any, tokens: Any) -> None:
    plain, lone = draw(pipe, "a red crown"), draw(pipe, "a crown")
    with rarelift.apply(pipe, tokens=tokens, alpha=2.0):
        assert not torch.equal(draw(pipe, "a red crown"), plain)
        with pytest.warns(RareliftWarning, match="a prompt has a single token that takes part"):
            assert torch.equal(draw(pipe, "a crown"), lone)
    with (
        rarelift.apply(pipe, tokens=tokens, branch="uncond"),
        pytest.warns(RareliftWarning, match="a prompt has a single token that takes part"),
    ):
        draw(pipe, "a red lion", negative_prompt="crown")


def test_padding_is_untouched_by_default(pipe: Any) -> None:
    seen: Any = []
    block = pipe.transformer.transformer_blocks[0]
    block.register_forward_pre_hook(lambda _m, _a, k: seen.append((k["encoder_hidden_states"], k)), with_kwargs=True)
    block.norm1_context.register_forward_pre_hook(lambda _m, a: seen.append((a[0], a[0])))
    with rarelift.apply(pipe, alpha=2.0):
        draw(pipe, num_inference_steps=1)
    before, read = seen[0][0], seen[1][0]
    assert torch.equal(read[1, 9:], before[1, 9:])
    assert not torch.allclose(read[1, :9], before[1, :9])


def test_embeddings_without_text(pipe: Any) -> None:
    embeds, negative, pooled, negative_pooled = pipe.encode_prompt(PROMPT, None, None, max_sequence_length=4)
    given = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
    given |= {"negative_prompt_embeds": negative, "negative_pooled_prompt_embeds": negative_pooled}
    with rarelift.apply(pipe, tokens="all") as handle:
        everything = draw(pipe, None, **given)
        handle.set(tokens="valid")
        assert torch.equal(draw(pipe, None, **given), everything)
        assert "prompt_embeds came without their text" in handle.note
        assert "prompt_embeds came without" in str(rarelift.inspect(pipe))
        handle.set(tokens="content")
        with pytest.raises(ValueError, match=r"pass prompt= to rarelift.apply"):
            draw(pipe, None, **given)
        handle.set(prompt=PROMPT, branch="cond")
        assert not torch.equal(draw(pipe, None, **given), everything)
        assert handle.note == ""
    with rarelift.apply(pipe, tokens="content", branch="cond"):
        expected = draw(pipe)
    with rarelift.apply(pipe, tokens="content", branch="cond", prompt=PROMPT):
        assert torch.equal(draw(pipe, None, **given), expected)


def test_skip_layer_guidance_calls_are_conditional(pipe: Any) -> None:
    live: Any = []
    pipe.transformer.proj_out.register_forward_hook(
        lambda *_: live.append(handle._lift.live_scale.amax((1, 2)).tolist())
    )
    handle: rarelift.Handle = rarelift.apply(pipe, branch="cond", alpha=(1.2, 1.4))
    draw(
        pipe,
        ["a lion", "a crown"],
        num_inference_steps=2,
        skip_guidance_layers=[1],
        skip_layer_guidance_stop=1.0,
    )
    shown = [[round(a, 4) for a in rows] for rows in live]
    assert shown == [[1.0, 1.0, 1.2, 1.4], [1.0, 1.0, 1.2, 1.4], [1.2, 1.4]]
    assert handle.calls == 3 + 3 + 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"start": 0.5}, "need the steps of the scheduler"),
        ({"branch": "cond"}, "which rows of the batch are conditional"),
        ({"tokens": "content"}, "needs the words of the prompt"),
        ({"tokens": ("crown",)}, "needs the words of the prompt"),
        ({"prompt": "a lion"}, "needs the pipeline's tokenizers"),
    ],
)
def test_what_a_bare_transformer_cannot_honour(transformer: Any, setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"{message}.*give the pipeline"):
        rarelift.apply(transformer, **setting)
    assert not any(hooks.links_of(m) for m in transformer.modules())


def test_a_call_without_text(transformer: Any) -> None:
    rarelift.apply(transformer)
    with pytest.raises(RuntimeError, match="encoder_hidden_states of this call is None, so there is no text to lift"):
        transformer(**{**inputs(), "encoder_hidden_states": None})


def test_the_branch_that_is_lifted_must_hold_the_phrase(pipe: Any) -> None:
    plain = draw(pipe, negative_prompt="a red crown")
    handle = rarelift.apply(pipe, tokens=("red crown",), branch="uncond")
    assert not torch.equal(draw(pipe, negative_prompt="a red crown"), plain)
    handle.set(tokens=("purple lion",))
    with pytest.raises(ValueError, match="the phrase 'purple lion', which is not in the prompt 'a red crown'"):
        draw(pipe, negative_prompt="a red crown")
    handle.set(branch="both")
    assert not torch.equal(draw(pipe, negative_prompt="a red crown"), plain)


# ---------------------------------------------------------------- sharing, copying, saving


def test_two_pipelines_sharing_one_transformer(pipe: Any) -> None:
    other = diffusers.StableDiffusion3Pipeline(**pipe.components)
    other.set_progress_bar_config(disable=True)
    names, plain = attributes(pipe), draw(other)
    handle = rarelift.apply(pipe, tokens="content", alpha=2.0)
    draw(pipe)
    with pytest.raises(RuntimeError, match=r"nothing told this call: call the pipeline that .* was given"):
        draw(other)
    handle.set(tokens="valid")
    assert not torch.equal(draw(other), plain)  # lifted, on every token
    replaced = rarelift.apply(other)
    assert not handle.active
    assert attributes(pipe)[0] == names[0]
    rarelift.remove(pipe)  # takes it off the shared transformer, and its taps off the other pipeline
    assert not replaced.active
    assert attributes(other) == names
    assert torch.equal(draw(other), plain)


def test_deep_copies_are_whole(pipe: Any) -> None:
    plain = draw(pipe)
    handle = rarelift.apply(pipe)
    lifted = draw(pipe)
    twin = copy.deepcopy(pipe)
    with torch.no_grad():
        for parameter in pipe.transformer.parameters():
            parameter.zero_()
    assert torch.equal(draw(twin), lifted)  # with its own weights and its own words
    assert handle.calls == 6
    rarelift.remove(twin)
    assert torch.equal(draw(twin), plain)
    assert handle.active
    lone = copy.deepcopy(pipe.transformer)
    rarelift.remove(lone)
    assert handle.active
    handle.remove()


def test_save_pretrained_leaves_no_trace(pipe: Any, tmp_path: Any) -> None:
    plain, keys = draw(pipe), list(pipe.transformer.state_dict())
    with rarelift.apply(pipe):
        lifted = draw(pipe)
        assert list(pipe.transformer.state_dict()) == keys
        pipe.transformer.save_pretrained(tmp_path)
        assert torch.equal(draw(pipe), lifted)
    pipe.transformer = diffusers.SD3Transformer2DModel.from_pretrained(tmp_path)
    assert torch.equal(draw(pipe), plain)
    assert "rarelift" not in (tmp_path / "config.json").read_text()


def test_inference_mode_does_not_poison_the_state(pipe: Any) -> None:
    with rarelift.apply(pipe) as handle:
        with torch.inference_mode():
            inside = draw(pipe)
        handle.set(alpha=1.6)
        handle.set(alpha=1.5)
        assert torch.equal(draw(pipe), inside)


# ---------------------------------------------------------------- silence, and what is said


def test_leaving_without_a_call_warns(pipe: Any) -> None:
    with pytest.warns(RareliftWarning, match="nothing was lifted"), rarelift.apply(pipe):
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(KeyError), rarelift.apply(pipe):
            raise KeyError


def test_settings_and_keywords_do_not_mix(pipe: Any) -> None:
    with pytest.raises(ValueError, match="not both"):
        rarelift.apply(pipe, alpha=2.0, settings=rarelift.Spread())
    assert rarelift.apply(pipe, settings=rarelift.Spread(2.0)).settings.alpha == 2.0


def test_inspect(pipe: Any) -> None:
    text = str(rarelift.inspect(pipe))
    assert "SD3Transformer2DModel: 3 joint blocks to lift" in text
    assert "transformer_blocks.0-2  JointTransformerBlock  dual    encoder_hidden_states  none" in text
    assert "not lifted" in text
    rarelift.apply(pipe, blocks=(0,))
    seen = rarelift.inspect(pipe)
    assert seen.blocks == ("transformer_blocks.0",)
    assert "1 joint blocks lifted" in str(seen)
    rarelift.apply(pipe, blocks=(0, 2))
    assert rarelift.inspect(pipe).table[0][0] == "transformer_blocks.0,2"
    rarelift.apply(pipe, blocks=(0,))
    assert seen.left_out == (("transformer_blocks.1", "not in blocks"), ("transformer_blocks.2", "not in blocks"))
    assert seen.settings == rarelift.Spread(blocks=(0,))
    pipe.transformer.compile(backend="eager")
    assert any("compiled" in note for note in rarelift.inspect(pipe).notes)


def test_import_does_no_work() -> None:
    code = "import sys, rarelift; rarelift.__version__; assert not {'torch', 'diffusers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_under_autocast(pipe: Any) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        plain = draw(pipe)
        handle = rarelift.apply(pipe, alpha=1.0)
        assert torch.equal(draw(pipe), plain)
        handle.set(alpha=1.5)
        assert not torch.equal(draw(pipe), plain)
        assert draw(pipe).isfinite().all()


def test_a_prompt_is_taken_away_again(pipe: Any) -> None:
    handle = rarelift.apply(pipe, tokens=("lion",), prompt=PROMPT)
    assert handle._lift.prompt == (PROMPT,)
    handle.set(alpha=1.2)
    assert handle._lift.prompt == (PROMPT,)
    handle.set(prompt=None)
    assert handle._lift.prompt is None


# ---------------------------------------------------------------- torch.compile


@pytest.mark.parametrize("style", ["wrapper", "in place", "blocks"])
@pytest.mark.parametrize("lift_first", [True, False])
def test_compiled(pipe: Any, style: str, lift_first: bool) -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    plain = draw(pipe)
    with rarelift.apply(pipe, alpha=1.3):
        expected = draw(pipe)
    with rarelift.apply(pipe, alpha=1.3, branch="cond", start=0.5):
        expected_late = draw(pipe)
    names = attributes(pipe)
    handle = rarelift.apply(pipe, alpha=2.0) if lift_first else None
    model = pipe.transformer
    if style == "wrapper":
        pipe.transformer = torch.compile(model, backend=counter, fullgraph=True, dynamic=False)
    elif style == "in place":
        model.compile(backend=counter, fullgraph=True, dynamic=False)
    else:
        for block in model.transformer_blocks:
            block.compile(backend=counter, fullgraph=True, dynamic=False)
    if handle is None:
        assert torch.equal(draw(pipe), plain)
        handle = rarelift.apply(pipe, alpha=2.0)
    draw(pipe)
    compiled = counter.frame_count
    handle.set(alpha=1.3)
    assert torch.equal(draw(pipe), expected)
    handle.set(branch="cond", start=0.5)
    assert torch.equal(draw(pipe), expected_late)
    assert torch.equal(draw(pipe, num_inference_steps=3), draw(pipe, num_inference_steps=3))
    assert counter.frame_count == compiled
    # of a model compiled as a whole, all runs since the last look are one
    assert handle.calls == ((2 + 2 + 2 + 3 + 3) * 3 if style == "blocks" else 3)
    draw(pipe)
    handle.remove()
    assert handle.calls == ((2 + 2 + 2 + 3 + 3 + 2) * 3 if style == "blocks" else 6)
    assert torch.equal(draw(pipe), plain)
    if style == "blocks":
        assert compiled <= 4  # blocks share graphs: a whole one, the last, and their unlifted twins
        assert attributes(pipe)[0] == names[0]


def test_how_much_carries_on_changes_without_recompilation(pipe: Any) -> None:
    torch._dynamo.reset()
    shares = (0.2, 0.9, 0.5)
    expected = []
    for carry in (0, 1, *shares):
        with rarelift.apply(pipe, carry=carry):
            expected.append(draw(pipe))
    assert len({tuple(picture.flatten().tolist()) for picture in expected}) == 5
    with rarelift.apply(pipe, carry=False) as ends:
        assert torch.equal(draw(pipe), expected[0])
        ends.set(carry=True)
        assert torch.equal(draw(pipe), expected[1])
    handle = rarelift.apply(pipe, carry=0.4)
    counter = torch._dynamo.testing.CompileCounter()
    pipe.transformer.compile(backend=counter, fullgraph=True, dynamic=False)
    draw(pipe)
    compiled = counter.frame_count
    for carry, picture in zip(shares, expected[2:], strict=True):
        handle.set(carry=carry)
        assert torch.equal(draw(pipe), picture)
    assert counter.frame_count == compiled
    handle.set(carry=True)  # another graph
    assert torch.equal(draw(pipe), expected[1])
    assert counter.frame_count > compiled


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_compiled_by_inductor(pipe: Any) -> None:
    """The default backend fuses, so it rounds differently; what it computes and when it compiles must not differ."""
    torch._dynamo.reset()
    changes: list[dict[str, Any]] = [
        {"alpha": 2.0},
        {"alpha": 1.3, "branch": "cond"},
        {"branch": "both", "start": 0.5},
        {"tokens": "content"},
    ]
    handle = rarelift.apply(pipe, alpha=1.0)
    expected = [draw(pipe)]
    for change in changes:
        handle.set(**change)
        expected.append(draw(pipe))
    handle.set(alpha=1.0, tokens="valid", start=0.0)
    pipe.transformer.compile(fullgraph=True, dynamic=False)
    torch.testing.assert_close(draw(pipe), expected[0], atol=1e-4, rtol=1e-4)
    torch._dynamo.utils.counters.clear()
    calls = handle.calls
    for change, value in zip(changes, expected[1:], strict=True):
        handle.set(**change)
        torch.testing.assert_close(draw(pipe), value, atol=1e-4, rtol=1e-4)
    assert torch._dynamo.utils.counters["stats"].get("unique_graphs", 0) == 0
    assert handle.calls == calls + 3


@pytest.mark.parametrize("regional", [False, True], ids=["whole", "blocks"])
def test_compiled_code_changes_no_tensor(pipe: Any, regional: bool) -> None:
    """Inductor orders the kernels of a graph that does in another way, and makes no CUDA graph of it."""
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    backend = torch._dynamo.backends.common.aot_autograd(fw_compiler=keep, keep_inference_input_mutations=True)
    with rarelift.apply(pipe, alpha=1.3):
        expected = draw(pipe)
    handle = rarelift.apply(pipe, alpha=1.3)
    for module in pipe.transformer.transformer_blocks if regional else [pipe.transformer]:
        module.compile(backend=backend, fullgraph=True, dynamic=False)
    torch.testing.assert_close(draw(pipe), expected, atol=1e-5, rtol=1e-5)
    assert handle.calls > 0
    assert len(graphs) == (2 if regional else 1)
    changed = [str(node.target) for graph in graphs for node in graph.graph.nodes if "_." in str(node.target)]
    assert changed == []


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")
def test_compiled_with_gradient_checkpointing(transformer: Any) -> None:
    torch._dynamo.reset()
    transformer.train().enable_gradient_checkpointing()
    with rarelift.apply(transformer) as handle:
        expected = transformer(**inputs()).sample
        blocks = handle.calls
        assert blocks == len(handle.sites)
        counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
        transformer.compile(backend=counter, fullgraph=True, dynamic=False)
        found = transformer(**inputs()).sample
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        found.sum().backward()
        assert counter.frame_count == 1
        assert handle.calls == 2 * blocks
    assert transformer.proj_out.weight.grad.isfinite().all()


def test_a_python_counter_would_recompile() -> None:
    """Why compiled blocks leave a mark and count nothing: the premise of `Handle.calls`, in case torch changes."""
    counter = torch._dynamo.testing.CompileCounter()
    box = types.SimpleNamespace(calls=0)

    @torch.compile(backend=counter)
    def count(x: Tensor) -> Tensor:
        box.calls += 1
        return x + 1

    for _ in range(3):
        count(torch.zeros(1))
    assert counter.frame_count > 1
