"""Every family of joint models, on its real class at tiny size: reached, exact, reversible, lifted where text is."""

from __future__ import annotations

import functools
from typing import Any

import diffusers
import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

import rarelift
from families import FAMILIES, L, Tiny, ragged
from rarelift import streams
from rarelift.hooks import _text_span, _valid, links_of
from rarelift.locate import UnsupportedModelError, locate

diffusers.utils.logging.set_verbosity_error()
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
names = pytest.mark.parametrize("name", FAMILIES)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


@torch.no_grad()
def run(model: Any, tiny: Tiny, **changed: Any) -> Tensor:
    output = model(**{**tiny.arguments(model.dtype), **changed}, return_dict=False)[0]
    return torch.stack(list(output)) if isinstance(output, (list, tuple)) else output


def other_prompt(tiny: Tiny) -> dict[str, Any]:
    """Every argument that carries text, with other values."""
    noise = torch.Generator().manual_seed(9)

    def other(value: Any) -> Any:
        return [other(v) for v in value] if isinstance(value, list) else torch.randn(value.shape, generator=noise)

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
    handle.set(alpha=1.2, carry=True)
    assert not torch.equal(run(model, tiny), lifted)
    assert handle.calls == 3 * tiny.blocks
    handle.remove()
    assert torch.equal(run(model, tiny), plain)
    assert {n: set(vars(m)) for n, m in model.named_modules()} == attributes


@names
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


FILLED = ("ZImage",)


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
        seen.append((stream, start, stop, _valid(link, args, kwargs, stream, start, stop)))
        return inner(*args, **kwargs)

    link.inner = spy
    run(model, tiny)
    run(model, tiny, **other_prompt(tiny))
    (before, start, stop, valid), (after, *_) = seen
    moved = (before != after).any(-1)
    moved = moved if family.token_dim == 1 else moved.T
    assert not moved[:, :start].any()
    assert not moved[:, stop:].any()
    valid = None if valid is None else valid.expand(len(moved), -1)
    assert moved[:, start:stop][slice(None) if valid is None else valid].all()
    if family.scattered and name not in FILLED:
        assert not moved[~valid].any()
    elif family.scattered:  # the caption's own filling, mixed by the refiner, moves; the image does not
        assert not moved[:, :32].any()
    if tiny.mask:
        assert valid is not None
        assert not valid.all()


@names
@pytest.mark.parametrize("carry", [False, True])
def test_every_block_computes_what_the_formula_says(name: str, carry: bool) -> None:
    """Block by block against the formula in float64; what is no text passes through, bit for bit."""
    tiny = FAMILIES[name]
    model = tiny.make()
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
        valid = _valid(link, args, kwargs, before, start, stop)
        dim = family.token_dim
        z, new = (stream.transpose(0, 1 - dim)[:, start:stop].double() for stream in (before, after))
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
            assert (off.transpose(0, 1 - dim)[:, start:stop] - (0 if carry else new - z)).abs().max() < 1e-5
            rest += [got, plain]
        for one, two in zip(rest[::2], rest[1::2], strict=True):
            one, two = one.transpose(0, 1 - dim), two.transpose(0, 1 - dim)
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
    changed[1, L - 2 :] += 1.0
    plain, moved = run(model, tiny), run(model, tiny, **{tiny.prompt: changed})
    torch.testing.assert_close(plain, moved, atol=1e-5, rtol=1e-5)
    with rarelift.apply(model, alpha=2.0):
        lifted = run(model, tiny)
        torch.testing.assert_close(lifted, run(model, tiny, **{tiny.prompt: changed}), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(lifted, plain, atol=1e-5, rtol=1e-5)
    if name in ("HunyuanVideo1.5", "Lumina2"):  # padding is blanked, or left out of the sequence
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
    handle.set(alpha=1.5)
    torch.testing.assert_close(run(model, tiny), expected)
    assert counter.frame_count == compiled
    assert handle.calls == 2 * tiny.blocks


def test_what_is_not_known_of_a_family_is_refused() -> None:
    model = FAMILIES["Flux3"].make()
    for settings, message in (
        ({"tokens": ("lion",)}, "where the words of a prompt stand.*Flux3Transformer2DModel"),
        ({"prompt": "a lion"}, "prompt: where the words stand.*is not known"),
        ({"branch": "cond"}, "branches of guidance cannot be told apart"),
        ({"stop": 0.5}, "how Flux3Transformer2DModel is told the timestep"),
    ):
        with pytest.raises(ValueError, match=message):
            rarelift.apply(model, **settings)  # type: ignore[arg-type]
    assert not any(links_of(module) for module in model.modules())


def test_models_that_are_joint_but_not_reached_yet_say_so() -> None:
    for name in streams.NOT_YET:
        assert hasattr(diffusers, name)
        model = type(name, (torch.nn.Module,), {})()
        with pytest.raises(UnsupportedModelError, match=f"{name}, which has joint attention.*not supported yet"):
            locate(model)


def test_every_transformer_of_diffusers_is_classified() -> None:
    found = {
        n for n in dir(diffusers) if "Transformer" in n and n.endswith(("Model", "Transformer")) and n[0].isupper()
    }
    known = {*streams.FAMILIES, *streams.CROSS_ATTENTION, *streams.NOT_YET}
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
