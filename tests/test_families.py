"""Every family of joint models, on its real class at tiny size: reached, exact, reversible, lifted where text is."""

from __future__ import annotations

import functools
import inspect
import math
from typing import Any

import diffusers
import pytest
import torch
import torch._dynamo.testing
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache
from torch import Tensor

import rarelift
from families import FAMILIES, L, Tiny, ragged
from rarelift import fused, streams
from rarelift.hooks import _mask, _taking, _text_span, links_of
from rarelift.locate import locate
from rarelift.spans import RESOLVERS
from rarelift.variance import spread_by, take_off

diffusers.utils.logging.set_verbosity_error()
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
names = pytest.mark.parametrize("name", FAMILIES)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


@torch.no_grad()
def run(model: Any, tiny: Tiny, **changed: Any) -> Tensor:
    output = model(**{**tiny.arguments(model.dtype), **changed}, return_dict=False)[0]
    output = torch.stack(list(output)) if isinstance(output, (list, tuple)) else output
    return output[tiny.read] if tiny.read else output


def other_prompt(tiny: Tiny) -> dict[str, Any]:
    """Every argument that carries text, with other values."""
    noise = torch.Generator().manual_seed(9)

    def other(value: Any) -> Any:
        if isinstance(value, list):
            return [other(v) for v in value]
        return torch.randn(value.shape, generator=noise) if value.is_floating_point() else value + 1

    return {key: other(tiny.arguments()[key]) for key in (tiny.prompt, *tiny.more_text)}


@names
@dtypes
def test_every_block_is_reached_and_left_as_it_was(name: str, dtype: torch.dtype) -> None:
    tiny = FAMILIES[name]
    model = tiny.make(dtype)
    attributes = {n: set(vars(m)) for n, m in model.named_modules()}
    plain = run(model, tiny)
    handle = rarelift.apply(model, alpha=1.0)
    assert torch.equal(run(model, tiny), plain)
    assert len(handle.sites) == handle.calls == tiny.blocks
    handle.set(alpha=1.5)
    lifted = run(model, tiny)
    assert not torch.equal(lifted, plain)
    assert lifted.isfinite().all()
    handle.set(alpha=1.2, carry=handle.sites[0].family.hands_on)
    assert not torch.equal(run(model, tiny), lifted)
    assert handle.calls == 3 * tiny.blocks
    handle.remove()
    assert torch.equal(run(model, tiny), plain)
    assert {n: set(vars(m)) for n, m in model.named_modules()} == attributes


@pytest.mark.parametrize("name", [n for n, tiny in FAMILIES.items() if tiny.samples > 1])
def test_each_sample_has_its_alpha(name: str) -> None:
    tiny = FAMILIES[name]
    model = tiny.make()
    plain = run(model, tiny)
    with rarelift.apply(model, alpha=1.5):
        lifted = run(model, tiny)
    with rarelift.apply(model, alpha=(1.0, 1.5)):
        mixed = run(model, tiny)
    torch.testing.assert_close(mixed[0], plain[0])
    torch.testing.assert_close(mixed[1], lifted[1])


# where filling or padding of the text moves too: where the images are
ALL = slice(None)
FILLED: dict[str, list[tuple[Any, slice]]] = {
    "ZImage": [(ALL, slice(32))],
    "ZImage, omni": [(0, slice(64, None)), (1, slice(96, None))],
    "BriaFibo2, padded": [(ALL, slice(24))],
    "QwenImage2.1": [(ALL, slice(L, None))],
    "OmniGen": [(0, slice(2, 18)), (ALL, slice(23, None))],
}


def batch_first(stream: Tensor, token_dim: int) -> Tensor:
    """Any stream as `[B, S, D]`."""
    return stream[None] if stream.ndim == 2 else stream.transpose(0, 1 - token_dim)


@names
def test_the_span_is_where_the_prompt_moves(name: str) -> None:
    """Of what the first block reads, just the positions called text depend on the prompt; padding may move or not."""
    tiny = FAMILIES[name]
    model = tiny.make()
    handle = rarelift.apply(model, alpha=1.0)
    family = handle.sites[0].family
    link = links_of(handle.sites[0].module)[0]
    inner, seen = link.inner, []

    def spy(*args: Any, **kwargs: Any) -> Any:
        stream = kwargs[family.text] if family.text in kwargs else args[link.at[family.text]]
        start, stop = _text_span(link.lift, family, stream)
        mask = _mask(link, args, kwargs)
        seen.append((stream, start, stop, _taking(family, mask, link.lift.places, None, stream, start, stop)))
        return inner(*args, **kwargs)

    link.inner = spy
    run(model, tiny)
    run(model, tiny, **other_prompt(tiny))
    (before, start, stop, valid), (after, *_) = seen
    moved = batch_first(before != after, family.token_dim).any(-1)
    assert not moved[:, :start].any()
    assert not moved[:, stop:].any()
    valid = None if valid is None else valid.expand(len(moved), -1)
    assert moved[:, start:stop][slice(None) if valid is None else valid].all()
    if family.scattered and name not in FILLED:
        assert not moved[~valid].any()
    elif family.scattered:
        assert not any(moved[images].any() for images in FILLED[name])
    if tiny.mask:
        assert valid is not None
        assert not valid.all()


@names
@pytest.mark.parametrize("carry", [False, 0.3, True])
def test_every_block_computes_what_the_formula_says(name: str, carry: bool | float) -> None:
    """Block by block against the formula in float64; what is no text passes through, bit for bit."""
    tiny = FAMILIES[name]
    model = tiny.make()
    if carry and not any(site.family.hands_on for site in rarelift.apply(model).sites):
        with pytest.raises(ValueError, match=f"carry={carry}: .* hands none on, so there is nothing to carry"):
            rarelift.apply(model, carry=carry)
        return
    handle = rarelift.apply(model, alpha=1.7, carry=carry)
    for site in handle.sites:
        site.module.register_forward_pre_hook(lambda _m, a, k, site=site: given.append((a, k, site)), with_kwargs=True)
        site.module.register_forward_hook(lambda _m, _a, out: returned.append(out))
        link = links_of(site.module)[0]
        link.inner = functools.partial(watched, link.inner)
    given: list[Any] = []
    returned: list[Any] = []
    inside.clear()
    run(model, tiny)
    assert len(given) == len(inside) == len(returned) == tiny.blocks
    for (args, kwargs, site), (inner_args, inner_kwargs, raw), out in zip(given, inside, returned, strict=True):
        family, link = site.family, links_of(site.module)[0]
        at = link.at[family.text]
        before = kwargs[family.text] if family.text in kwargs else args[at]
        after = inner_kwargs[family.text] if family.text in inner_kwargs else inner_args[at]
        start, stop = _text_span(link.lift, family, before)
        valid = _taking(family, _mask(link, args, kwargs), link.lift.places, None, before, start, stop)
        dim = family.token_dim
        z, new = (batch_first(stream, dim)[:, start:stop].double() for stream in (before, after))
        w = torch.ones(z.shape[:2]) if valid is None else valid.double()
        w = (w.double() if w.shape[0] == z.shape[0] else w.expand(len(z), -1))[..., None]
        mean = (w * z).sum(1, keepdim=True) / w.sum(1, keepdim=True)
        expected = z + 0.7 * w * (z - mean)
        torch.testing.assert_close(new, expected, atol=1e-5, rtol=1e-5)
        rest = [after, before]
        if family.returns is not None or family.layout == "packed":
            got, plain = (o if family.returns is None else o[family.returns] for o in (out, raw))
            if plain is None:
                assert got is None
                continue
            off = plain.double() - got.double()
            assert (batch_first(off, dim)[:, start:stop] - (1 - carry) * (new - z)).abs().max() < 1e-5
            rest += [got, plain]
        for one, two in zip(rest[::2], rest[1::2], strict=True):
            one, two = batch_first(one, dim), batch_first(two, dim)
            assert torch.equal(one[:, :start], two[:, :start])
            assert torch.equal(one[:, stop:], two[:, stop:])


inside: list[Any] = []


def watched(inner: Any, *args: Any, **kwargs: Any) -> Any:
    out = inner(*args, **kwargs)
    inside.append((args, kwargs, out))
    return out


@pytest.mark.parametrize("name", [n for n, tiny in FAMILIES.items() if tiny.mask])
def test_padding_stays_inert(name: str) -> None:
    """With the mean over valid tokens, what stands at padded positions changes nothing, lifted as untouched."""
    tiny = FAMILIES[name]
    model = tiny.make()
    changed = tiny.arguments()[tiny.prompt].clone()
    changed[(1, *tiny.padded)] += 1
    plain, moved = run(model, tiny), run(model, tiny, **{tiny.prompt: changed})
    torch.testing.assert_close(plain, moved, atol=1e-5, rtol=1e-5)
    with rarelift.apply(model, alpha=2.0):
        lifted = run(model, tiny)
        torch.testing.assert_close(lifted, run(model, tiny, **{tiny.prompt: changed}), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(lifted, plain, atol=1e-5, rtol=1e-5)
    if tiny.gone:
        return
    with rarelift.apply(model, alpha=2.0, tokens="all"):  # else the test above would show nothing
        everything = run(model, tiny)
        moved = run(model, tiny, **{tiny.prompt: changed})
    assert not torch.allclose(everything, moved, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["Flux", "Flux2", "QwenImage", "HunyuanVideo", "Krea2", "ErnieImage"])
@pytest.mark.parametrize("regional", [False, True], ids=["whole", "blocks"])
def test_compiled_families(name: str, regional: bool) -> None:
    torch._dynamo.reset()
    tiny = FAMILIES[name]
    model = tiny.make()
    with rarelift.apply(model, alpha=1.5):
        expected = run(model, tiny)
    counter = torch._dynamo.testing.CompileCounter()
    handle = rarelift.apply(model, alpha=2.0)
    if regional:
        for site in handle.sites:
            site.module.compile(backend=counter, fullgraph=True, dynamic=False)
    else:
        model.compile(backend=counter, dynamic=False)
    run(model, tiny)
    compiled = counter.frame_count
    assert compiled > 0
    assert handle.calls == tiny.blocks
    handle.set(alpha=1.5)
    torch.testing.assert_close(run(model, tiny), expected)
    assert counter.frame_count == compiled
    assert handle.calls == 2 * tiny.blocks


# one entry of each model: variants have the same blocks
GROWTH = 2
DEEP = {tiny.model: name for name, tiny in reversed(FAMILIES.items())}


@pytest.mark.slow
@pytest.mark.parametrize("name", DEEP.values())
def test_at_real_depth(name: str) -> None:
    """What `carry` would compound, 1.5 to the power of 60, does not grow without it, and is finite in float16 too."""
    tiny = FAMILIES[name].deep()
    model = tiny.make()
    last = locate(model)[-1]
    at = list(inspect.signature(type(last.module).forward).parameters).index(last.family.text) - 1
    reached: list[Tensor] = []

    def watch(_module: Any, args: Any, kwargs: Any) -> None:
        reached.append(kwargs[last.family.text] if last.family.text in kwargs else args[at])

    last.module.register_forward_pre_hook(watch, with_kwargs=True)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        reached.clear()
        plain = run(model.to(dtype), tiny)
        assert plain.isfinite().all()
        with rarelift.apply(model, alpha=1.5) as handle:
            lifted = run(model, tiny)
        assert handle.calls == len(handle.sites) > 15
        assert lifted.isfinite().all(), dtype
        assert not torch.equal(lifted, plain), dtype
        before, after = (stream.float().norm() for stream in reached)
        assert after < GROWTH * before, dtype


def test_cached_text_is_lifted_where_it_is_read() -> None:
    """Qwen-Image 2.1 keeps keys and values of the text; the calls that use them hold no text."""
    tiny = FAMILIES["QwenImage2.1"]
    model = tiny.make()

    def two_steps() -> list[Tensor]:
        kept = QwenImage21KVCache(tiny.blocks)
        return [run(model, tiny, kv_cache=kept, kv_cache_mode=mode) for mode in ("extract", "cached")]

    plain = two_steps()
    handle = rarelift.apply(model, alpha=1.0)
    assert all(map(torch.equal, two_steps(), plain))
    assert handle.calls == tiny.blocks
    handle.set(alpha=1.5)
    lifted = two_steps()
    assert not any(map(torch.equal, lifted, plain))
    torch.testing.assert_close(lifted[1], run(model, tiny))  # the same step, and the text is the same at each
    handle.remove()
    assert all(map(torch.equal, two_steps(), plain))
    handle = rarelift.apply(model, alpha=1.5)
    handle._lift.windowed = True
    with pytest.raises(RuntimeError, match=r"kept from the first step for all others \(kv_cache_mode\)"):
        two_steps()
    run(model, tiny)  # without the cache there is a step to choose


def test_one_sample_takes_one_alpha() -> None:
    tiny = FAMILIES["Cosmos3Omni"]
    model = tiny.make()
    rarelift.apply(model, alpha=(1.0, 1.5))
    with pytest.raises(ValueError, match="settings are for a batch of 2, but the transformer was called with 1"):
        run(model, tiny)


def test_steps_of_many_timesteps() -> None:
    """Cosmos 3 is told the step once for each noisy token, and not at all where none is noisy."""
    tiny = FAMILIES["Cosmos3Omni"]
    model = tiny.make()
    plain = run(model, tiny)
    lift = rarelift.apply(model, alpha=1.5)._lift
    lifted = run(model, tiny)
    for window, expected in (((math.inf, 400.0), lifted), ((400.0, -math.inf), plain)):
        lift._limit(window)
        assert torch.equal(run(model, tiny), expected)
    empty = {"vision_timesteps": torch.zeros(0), "vision_noisy_frame_indexes": [torch.zeros(0, dtype=torch.long)]}
    with pytest.raises(RuntimeError, match="vision_timesteps of this call tells no step"):
        run(model, tiny, **empty)
    lift._limit((math.inf, -math.inf))
    run(model, tiny, **empty)


def test_image_tokens_of_known_number_are_left_alone() -> None:
    """HunyuanVideo 1.5: in front of the words, or behind them where the image is blank."""
    words = torch.tensor([7, 5]) + 4
    for name, first in (("HunyuanVideo1.5", words), ("HunyuanVideo1.5, image to video", torch.zeros(2))):
        call = FAMILIES[name].arguments()
        expected = torch.ones(2, 14, dtype=torch.bool)
        for sample, place in zip(expected, first.int(), strict=True):
            sample[place : place + 3] = False
        assert torch.equal(RESOLVERS["behind_images"](call), expected)


IMAGES = {
    "HunyuanVideoTransformer3DModel": "image-to-video",
    "JoyImageEditPlusTransformer3DModel": "editing",
    "JoyImageEditTransformer3DModel": "editing",
    "LongCatImageTransformer2DModel": "editing",
    "QwenImageTransformer2DModel": "editing",
}


@names
def test_image_tokens_of_unknown_number_are_told(name: str) -> None:
    tiny = FAMILIES[name]
    printed = str(rarelift.inspect(tiny.make()))
    told = f"note: the text stream of its {IMAGES.get(tiny.model)} variants holds image tokens that cannot be told from"
    assert (told in printed) == (tiny.model in IMAGES)


def test_what_is_not_known_of_a_family_is_refused() -> None:
    model = FAMILIES["Flux3"].make()
    for settings, message in (
        ({"tokens": ("lion",)}, "where the words of a prompt stand.*Flux3Transformer2DModel"),
        ({"prompt": "a lion"}, "prompt: where the words behind prompt_embeds stand.*is not known"),
        ({"branch": "cond"}, "branches of guidance cannot be told apart"),
        ({"stop": 0.5}, "how Flux3Transformer2DModel is told the timestep"),
    ):
        with pytest.raises(ValueError, match=message):
            rarelift.apply(model, **settings)  # type: ignore[arg-type]
    assert not any(links_of(module) for module in model.modules())


def test_every_transformer_of_diffusers_is_classified() -> None:
    found = {
        n for n in dir(diffusers) if "Transformer" in n and n.endswith(("Model", "Transformer")) and n[0].isupper()
    }
    known = {*streams.FAMILIES, *streams.CROSS_ATTENTION}
    unmapped = found - known
    assert not unmapped, f"joint or not? add a row to streams.py: {sorted(unmapped)}"


# ---------------------------------------------------------------- through pipelines


def pipeline(name: str) -> tuple[Any, dict[str, Any]]:
    """A real pipeline around a tiny transformer, with what a call needs when the embeddings are given."""
    tiny = FAMILIES[name]
    arguments, flow = tiny.arguments(), diffusers.FlowMatchEulerDiscreteScheduler()
    prompt = {"prompt_embeds": arguments["encoder_hidden_states"][:1]}
    empty = {"vae": None, "text_encoder": None, "tokenizer": None, "transformer": tiny.make()}
    if name == "Flux":
        prompt["pooled_prompt_embeds"] = arguments["pooled_projections"][:1]
        made = diffusers.FluxPipeline(scheduler=flow, text_encoder_2=None, tokenizer_2=None, **empty)
    elif name == "QwenImage":
        prompt["prompt_embeds_mask"] = ragged()[1:]
        made = diffusers.QwenImagePipeline(scheduler=flow, **empty)
    else:
        prompt["negative_prompt_embeds"] = -prompt["prompt_embeds"]
        made = diffusers.CogVideoXPipeline(scheduler=diffusers.CogVideoXDDIMScheduler(), **empty)
        prompt |= {"num_frames": 5}
    made.set_progress_bar_config(disable=True)
    return made, {**prompt, "height": 64, "width": 64, "output_type": "latent", "num_inference_steps": 4}


@pytest.mark.parametrize("name", ["Flux", "QwenImage", "CogVideoX"])
def test_steps_are_told_from_what_the_transformer_is_told(name: str) -> None:
    pipe, call = pipeline(name)

    def draw() -> Tensor:
        output: Tensor = pipe(generator=torch.Generator().manual_seed(0), **call)[0]
        return output

    plain = draw()
    handle = rarelift.apply(pipe, alpha=2.0, start=0.5)
    live: list[float] = []
    for site in handle.sites[:1]:
        site.module.register_forward_pre_hook(lambda *_: live.append(float(handle._lift.live_scale.max())))
    late = draw()
    assert live == [1.0, 1.0, 2.0, 2.0]
    assert not torch.equal(late, plain)
    handle.remove()
    assert torch.equal(draw(), plain)


@names
def test_what_a_block_returns_may_be_written_in_place(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernels for GPUs do: in no family does a block hand out what somebody else still reads."""
    tiny = FAMILIES[name]
    model = tiny.make()
    with rarelift.apply(model, alpha=1.5):
        apart = run(model, tiny)
    written = []

    def in_place(output: torch.Tensor, z: torch.Tensor, lifted: torch.Tensor) -> torch.Tensor:
        written.append(output.shape)
        return output.copy_(take_off(output, z, lifted))

    monkeypatch.setattr(fused, "here", lambda _: True)
    monkeypatch.setattr(fused, "takes", lambda *_: True)
    monkeypatch.setattr(fused, "spread_by", lambda z, scale, share: spread_by(z, scale, share, autocast=False))
    monkeypatch.setattr(fused, "take_off", in_place)
    with rarelift.apply(model, alpha=1.5) as handle:
        assert torch.equal(run(model, tiny), apart)
    families = {site.family for site in handle.sites}
    assert written or all(family.layout == "dual" and family.returns is None for family in families)
