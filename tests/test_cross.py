"""Cross-attention, on real classes at tiny size: what the blocks read is lifted, and nothing else."""

from __future__ import annotations

import copy
import functools
from typing import TYPE_CHECKING, Any

import diffusers
import pytest
import torch
import torch._dynamo.testing
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from torch import Tensor, nn

import rarelift
from cross_families import CROSS
from families import FAMILIES, B, L, Tiny, noise
from rarelift import streams
from rarelift.hooks import links_of
from rarelift.locate import UnsupportedModelError, locate
from tiny_pipelines import LENGTH, NEGATIVE, OTHER, PROMPT, clip, draw, flow, t5, tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

diffusers.utils.logging.set_verbosity_error()
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
names = pytest.mark.parametrize("name", CROSS)
lift = functools.partial(rarelift.apply, cross_attention=True)


@torch.no_grad()
def run(model: Any, tiny: Tiny, **changed: Any) -> Tensor:
    output: Tensor = model(**{**tiny.arguments(model.dtype), **changed}, return_dict=False)[0]
    return output


def by_hand(z: Tensor, alpha: float, keep: list[list[int]] | None = None) -> Tensor:
    """The formula in float64, sample by sample; `keep` lists the tokens of each sample that take part."""
    out = z.double().clone()
    for i, sample in enumerate(z.double()):
        rows = list(range(len(sample))) if keep is None else keep[i]
        mean = torch.stack([sample[r] for r in rows]).sum(0) / len(rows)
        for r in rows:
            out[i, r] = mean + alpha * (sample[r] - mean)
    return out.to(z.dtype)


# ---------------------------------------------------------------- the network


@names
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_every_block_is_reached_and_left_as_it_was(name: str, dtype: torch.dtype) -> None:
    tiny = CROSS[name]
    model = tiny.make(dtype)
    attributes = {n: set(vars(m)) for n, m in model.named_modules()}
    plain = run(model, tiny)
    handle = lift(model, alpha=1.0)
    assert torch.equal(run(model, tiny), plain)
    assert len(handle.sites) == handle.calls == tiny.blocks
    handle.set(alpha=2.0)
    lifted = run(model, tiny)
    assert lifted.isfinite().all()
    assert not torch.equal(lifted, plain)
    rarelift.remove(model)
    assert torch.equal(run(model, tiny), plain)
    assert {n: set(vars(m)) for n, m in model.named_modules()} == attributes


@names
def test_every_block_reads_what_the_formula_says(name: str) -> None:
    tiny = CROSS[name]
    model = tiny.make()
    handle = lift(model, alpha=1.7)
    length = L if "image" not in tiny.model and name not in ("Wan, from an image", "ChronoEdit") else 512
    before: list[Tensor] = []
    after: list[Tensor] = []
    for site in handle.sites:
        link = links_of(site.module)[0]
        at = link.at[link.text]

        def outer(_m: Any, args: Any, kwargs: Any, at: int = at, name: str = link.text) -> None:
            before.append(kwargs[name] if name in kwargs else args[at])

        def inner(bare: Any, *args: Any, at: int = at, name: str = link.text, **kwargs: Any) -> Any:
            after.append(kwargs[name] if name in kwargs else args[at])
            return bare(*args, **kwargs)

        site.module.register_forward_pre_hook(outer, with_kwargs=True)
        link.inner = functools.partial(inner, link.inner)
    run(model, tiny)
    assert len(before) == len(after) == tiny.blocks
    everything = list(range(length))
    keep = [everything, everything[: -2 if tiny.mask else None]]
    for given, read in zip(before, after, strict=True):
        images = given.shape[1] - length
        assert torch.equal(read[:, :images], given[:, :images])
        frames = len(given) // B
        rows = [keep[i // frames] for i in range(len(given))]
        torch.testing.assert_close(read[:, images:], by_hand(given[:, images:], 1.7, rows), atol=1e-5, rtol=1e-5)
        if tiny.mask:
            assert torch.equal(read[-1, -2:], given[-1, -2:])


@pytest.mark.parametrize("name", ["SD1.5", "SDXL"])
def test_a_u_net_that_is_lifted_is_one_that_is_given_lifted_text(name: str) -> None:
    tiny = CROSS[name]
    model = tiny.make()
    text = tiny.arguments()["encoder_hidden_states"]
    expected = run(model, tiny, encoder_hidden_states=by_hand(text, 1.7))
    with lift(model, alpha=1.7):
        torch.testing.assert_close(run(model, tiny), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [n for n, tiny in CROSS.items() if tiny.mask])
def test_padding_stays_inert(name: str) -> None:
    tiny = CROSS[name]
    model = tiny.make()
    changed = tiny.arguments()[tiny.prompt].clone()
    changed[1, -2:] += 1
    if name == "HunyuanDiT":  # its pooled embedding sees all of T5's states
        model.time_extra_emb.pooler.forward = lambda states: states[:, 0, :8]
    with lift(model, alpha=2.0):
        torch.testing.assert_close(run(model, tiny), run(model, tiny, **{tiny.prompt: changed}), atol=1e-5, rtol=1e-5)
    if tiny.gone:
        return
    with lift(model, alpha=2.0, tokens="all"):  # else the test above would show nothing
        moved = run(model, tiny, **{tiny.prompt: changed})
        assert not torch.allclose(run(model, tiny), moved, atol=1e-5, rtol=1e-5)


@names
def test_each_sample_has_its_alpha(name: str) -> None:
    tiny = CROSS[name]
    model = tiny.make()
    plain = run(model, tiny)
    with lift(model, alpha=1.5):
        lifted = run(model, tiny)
    with lift(model, alpha=(1.0, 1.5)):
        mixed = run(model, tiny)
    torch.testing.assert_close(mixed[0], plain[0])
    torch.testing.assert_close(mixed[1], lifted[1])


def test_an_ip_adapters_image_stays_as_it_is() -> None:
    tiny = CROSS["SD1.5"]
    model = tiny.make()
    model.register_to_config(encoder_hid_dim_type="ip_image_proj")
    model.encoder_hid_proj = nn.Identity()
    for module in model.modules():
        attention = getattr(module, "attn2", None)
        if attention is not None:
            width = attention.to_q.in_features
            attention.set_processor(IPAdapterAttnProcessor2_0(width, cross_attention_dim=16, num_tokens=(3,)))
    images = {"added_cond_kwargs": {"image_embeds": [noise(B, 1, 3, 16)]}}
    text = by_hand(tiny.arguments()["encoder_hidden_states"], 2.0)
    expected = run(model, tiny, encoder_hidden_states=text, **images)
    assert not torch.allclose(expected, run(model, tiny, **images), atol=1e-4)
    with lift(model, alpha=2.0) as handle:
        torch.testing.assert_close(run(model, tiny, **images), expected, atol=1e-5, rtol=1e-5)
    assert handle.calls == tiny.blocks


@pytest.mark.parametrize("name", ["SD1.5", "PixArt", "Wan, from an image"])
@pytest.mark.parametrize("regional", [False, True], ids=["whole", "blocks"])
def test_compiled(name: str, regional: bool) -> None:
    torch._dynamo.reset()
    tiny = CROSS[name]
    model = tiny.make()
    with lift(model, alpha=1.5):
        expected = run(model, tiny)
    counter = torch._dynamo.testing.CompileCounter()
    handle = lift(model, alpha=2.0)
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


def test_every_row_is_tested() -> None:
    assert set(streams.CROSS_FAMILIES) == {tiny.model for tiny in CROSS.values()}
    assert set(streams.CROSS_FAMILIES) <= set(streams.CROSS_ATTENTION)


# ---------------------------------------------------------------- refusals, and what is said


def test_what_does_not_go_together() -> None:
    unet = CROSS["SD1.5"].make()
    with pytest.raises(UnsupportedModelError, match=r"UNet2DConditionModel.*no joint attention.*cross_attention=True"):
        rarelift.apply(unet)
    with pytest.raises(UnsupportedModelError, match=r"Flux.*has joint attention: leave out cross_attention=True"):
        lift(FAMILIES["Flux"].make())
    with pytest.raises(ValueError, match=r"carry=True with cross_attention=True: .*nothing to carry"):
        lift(unet, carry=True)
    with pytest.raises(TypeError, match="cross_attention must be True or False"):
        rarelift.Spread(cross_attention="yes")  # type: ignore[arg-type]
    unknown = type("StableAudioDiTModel", (nn.Module,), {})()
    with pytest.raises(UnsupportedModelError, match=r"how its text reaches its blocks is not known.*Supported: .*Wan"):
        lift(unknown)
    with pytest.raises(UnsupportedModelError, match="nothing for rarelift to lift"):
        rarelift.apply(unknown)
    with pytest.raises(ValueError, match="there are 4 cross-attention blocks"):
        lift(unet, blocks=4)
    handle = lift(unet, blocks=-1)
    with pytest.raises(ValueError, match=r"call rarelift\.apply again"):
        handle.set(cross_attention=False)
    with pytest.raises(ValueError, match="has joint attention; leave out cross=True"):
        streams.register(
            streams.Family("FluxTransformer2DModel", "blocks", "Block", "dual", "encoder_hidden_states", cross=True)
        )


def test_blocks_of_a_u_net_in_the_order_in_which_they_run() -> None:
    sites = [site.name for site in locate(CROSS["SDXL"].make(), cross=True)]
    assert sites[0] == "down_blocks.1.attentions.0.transformer_blocks.0"
    assert sites[2:4] == [f"mid_block.attentions.0.transformer_blocks.{i}" for i in range(2)]
    assert sites[-1] == "up_blocks.0.attentions.1.transformer_blocks.1"


def test_inspect_says_it() -> None:
    unet = CROSS["SD1.5"].make()
    text = str(rarelift.inspect(unet))
    assert "UNet2DConditionModel: 4 cross-attention blocks to lift" in text
    assert "experimental: lifted with cross_attention=True only" in text
    with lift(unet, blocks="1-3"):
        text = str(rarelift.inspect(unet))
    assert "3 cross-attention blocks lifted" in text
    assert "left out: down_blocks.0.attentions.0.transformer_blocks.0 (not in blocks)" in text
    assert "last in encoder_hidden_states" in str(rarelift.inspect(CROSS["Wan"].make()))
    with pytest.raises(UnsupportedModelError, match="not a model that rarelift knows"):
        rarelift.inspect(nn.Linear(1, 1))


# ---------------------------------------------------------------- through pipelines


def sd15() -> Any:
    return diffusers.StableDiffusionPipeline(
        vae=None,
        unet=CROSS["SD1.5"].make(),
        scheduler=diffusers.DDIMScheduler(),
        text_encoder=clip(),
        tokenizer=tokenizer(LENGTH),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> Any:
    return diffusers.StableDiffusionXLPipeline(
        vae=None,
        unet=CROSS["SDXL"].make(),
        scheduler=diffusers.EulerDiscreteScheduler(),
        text_encoder=clip(),
        tokenizer=tokenizer(LENGTH),
        text_encoder_2=clip(projection=16),
        tokenizer_2=tokenizer(LENGTH),
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


def pixart() -> Any:
    return diffusers.PixArtAlphaPipeline(
        vae=None,
        transformer=CROSS["PixArt"].make(),
        scheduler=diffusers.DDIMScheduler(),
        text_encoder=t5(),
        tokenizer=tokenizer(),
    )


def ltx() -> Any:
    return diffusers.LTXPipeline(
        vae=None, transformer=CROSS["LTX"].make(), scheduler=flow(), text_encoder=t5(), tokenizer=tokenizer()
    )


def wan() -> Any:
    return diffusers.WanPipeline(
        vae=None,
        transformer=CROSS["Wan"].make(),
        scheduler=flow(),
        text_encoder=t5(kind="UMT5"),
        tokenizer=tokenizer(),
    )


SMALL = {"height": 64, "width": 64}
PIPELINES: dict[str, tuple[Callable[[], Any], int, dict[str, Any]]] = {
    "SD1.5": (sd15, 4, SMALL),
    "SDXL": (sdxl, 8, SMALL),
    "PixArt": (
        pixart,
        2,
        {**SMALL, "max_sequence_length": LENGTH, "use_resolution_binning": False, "clean_caption": False},
    ),
    "LTX": (ltx, 2, {**SMALL, "num_frames": 1, "max_sequence_length": LENGTH}),
    "Wan": (wan, 2, {**SMALL, "num_frames": 1, "max_sequence_length": LENGTH}),
}
pipes = pytest.mark.parametrize("name", PIPELINES)
WORDED = ["SD1.5", "SDXL", "LTX"]


@functools.cache
def _made(name: str) -> Any:
    torch.manual_seed(0)
    pipe = PIPELINES[name][0]()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pipeline(name: str) -> tuple[Any, Callable[..., dict[str, Any]]]:
    """A pipeline, and what makes the arguments of one guided call of it."""

    def arguments(*prompts: str, seed: int = 0) -> dict[str, Any]:
        return {
            "prompt": list(prompts),
            "negative_prompt": [NEGATIVE] * len(prompts),
            "guidance_scale": 3.0,
            "num_inference_steps": 2,
            "output_type": "latent",
            "generator": [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))],
            **PIPELINES[name][2],
        }

    return copy.deepcopy(_made(name)), arguments


def network(pipe: Any) -> Any:
    return getattr(pipe, "unet", None) or pipe.transformer


@pipes
def test_pipelines_exact_counted_and_reversible(name: str) -> None:
    pipe, arguments = pipeline(name)
    call = arguments(PROMPT, OTHER)
    plain = draw(pipe, call)
    kept = [set(vars(owner)) for owner in (pipe, *network(pipe).modules())]
    runs = 2 * (2 if name == "Wan" else 1)  # steps, and a call for each branch
    handle = lift(pipe, alpha=1.0)
    assert torch.equal(draw(pipe, call), plain)
    assert handle.calls == PIPELINES[name][1] * runs
    handle.set(alpha=1.5)
    lifted = draw(pipe, call)
    assert all((one != two).any() for one, two in zip(lifted, plain, strict=True))
    handle.remove()
    assert torch.equal(draw(pipe, call), plain)
    assert [set(vars(owner)) for owner in (pipe, *network(pipe).modules())] == kept


@pipes
def test_pipelines_branch_steps_and_alphas(name: str) -> None:
    pipe, arguments = pipeline(name)
    handle = lift(pipe, alpha=2.0)
    seen: list[Any] = []
    network(pipe).register_forward_hook(lambda *_: seen.append(handle._lift.live_scale.amax((1, 2)).tolist()))

    def live(**settings: Any) -> list[list[float]]:
        seen.clear()
        handle.set(**{"alpha": 2.0, "branch": "both", "start": 0.0, "stop": 1.0, **settings})
        draw(pipe, arguments(PROMPT, OTHER))
        rows = [step * 2 if len(step) == 1 else step for step in seen]
        if name == "Wan":  # one call a branch, the conditional one first
            return [[*uncond, *cond] for cond, uncond in zip(rows[::2], rows[1::2], strict=True)]
        return [step * 2 if len(step) == 2 else step for step in rows]

    assert live(branch="cond") == 2 * [[1.0, 1.0, 2.0, 2.0]]
    assert live(branch="uncond") == 2 * [[2.0, 2.0, 1.0, 1.0]]
    assert live(start=0.5) == [[1.0] * 4, [2.0] * 4]
    assert live(alpha=(1.2, 2.0), branch="cond") == 2 * [[1.0, 1.0, pytest.approx(1.2), 2.0]]


def factors(pipe: Any, handle: rarelift.Handle, call: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """In one call of a pipeline: the factor on each token's deviation and its share of the mean, both `[rows, L]`."""
    seen: list[tuple[Tensor, Tensor]] = []

    def look(*_: object) -> None:
        share = handle._lift.live_share
        assert share is not None
        seen.append((handle._lift.live_scale[:, :, 0], share[:, 0]))

    hook = network(pipe).register_forward_hook(look)
    draw(pipe, call)
    hook.remove()
    return seen[0]


def shares(pipe: Any, handle: rarelift.Handle, call: dict[str, Any]) -> Tensor:
    return factors(pipe, handle, call)[1]


def ids(pipe: Any, *texts: str) -> Tensor:
    return torch.tensor(pipe.tokenizer(list(texts), padding="max_length", max_length=LENGTH)["input_ids"])


@pytest.mark.parametrize("name", WORDED)
def test_a_phrase_is_where_its_tokens_are(name: str) -> None:
    """Just those tokens that another word in its place would change."""
    pipe, arguments = pipeline(name)
    texts = (PROMPT, OTHER.replace("pink", "purple"))
    handle = lift(pipe, alpha=2.0, tokens=("purple",))
    scale, share = factors(pipe, handle, arguments(*texts))
    found = scale != 1
    moved = ids(pipe, *texts) != ids(pipe, *(text.replace("purple", "red") for text in texts))
    assert moved.sum() == 2
    assert torch.equal(found[2:], moved)
    assert not found[:2].any()  # the negative prompt is without it
    assert (share[2:][moved] > 0).all()
    assert (share > 0).sum() > moved.sum()  # the mean is that of the other words too
    handle.set(tokens=("lionn",))
    with pytest.raises(ValueError, match="'lionn', which is not in the prompt"):
        draw(pipe, arguments(PROMPT))


@pytest.mark.parametrize("name", ["SD1.5", "SDXL"])
def test_valid_leaves_padding_out_in_both_branches(name: str) -> None:
    pipe, arguments = pipeline(name)
    found = shares(pipe, lift(pipe), arguments(PROMPT, OTHER))
    assert torch.equal(found > 0, ids(pipe, NEGATIVE, NEGATIVE, PROMPT, OTHER) != pipe.tokenizer.pad_token_id)


def test_a_refiner_has_its_second_tokenizer_only() -> None:
    pipe, arguments = pipeline("SDXL")
    expected = shares(pipe, lift(pipe, tokens=("purple",)), arguments(PROMPT))
    pipe.tokenizer = pipe.text_encoder = None
    handle = lift(pipe, tokens=("purple",))
    pipe.encode_prompt(PROMPT, device="cpu", negative_prompt=NEGATIVE, do_classifier_free_guidance=True)
    assert handle._lift.share is not None
    assert torch.equal(handle._lift.share[:, 0], expected)
    pipe.tokenizer_2 = None
    with pytest.raises(ValueError, match="has no tokenizer or tokenizer_2, so words cannot be placed"):
        handle.set(alpha=2.0)


@pytest.mark.parametrize("name", ["PixArt", "Wan"])
def test_words_that_are_not_known_are_refused(name: str) -> None:
    pipe, _ = pipeline(name)
    with pytest.raises(ValueError, match="where the words of a prompt stand in the text stream"):
        lift(pipe, tokens=("purple",))
