"""The knobs of guidance against their equations, from predictions that are worked out here by other means."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rarelift.rivals import RIVALS
from rarelift.rivals.base import UnsupportedPipelineError
from rarelift.rivals.guidance import CfgZero, Guidance, PerturbedAttention, SkipLayers
from rival_cases import MODES, asked, call, draw_with
from tiny_pipelines import PIPELINES, draw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TRUE_CFG, GUIDANCE = 3.0, 3.0


def transformer_calls(pipe: Any, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """What the transformer is called with, call by call."""
    seen: list[dict[str, Any]] = []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(dict(kwargs)), with_kwargs=True
    )
    draw(pipe, arguments)
    handle.remove()
    return seen


def one_step(pipe: Any, kind: str, guided: bool, scale: float, weak: Callable[[dict[str, Any]], Tensor]) -> Tensor:
    """The latents after one step at pred = u + g (c - u) + scale (c - weak(arguments of c)); unguided, u is c."""
    calls = transformer_calls(pipe, call(kind, guided, steps=1))
    with torch.no_grad():
        if kind == "SD3" and guided:
            half = {k: v[2:] if isinstance(v, Tensor) else v for k, v in calls[0].items()}
            u, c = pipe.transformer(**calls[0])[0].chunk(2)
        else:
            half = calls[0]
            c = pipe.transformer(**half)[0]
            u = pipe.transformer(**calls[1])[0] if guided else None
        push = scale * (c - weak(half))
        pred = push + (c if u is None else u + GUIDANCE * (c - u))
    sigma = pipe.scheduler.sigmas
    return half["hidden_states"] + (sigma[1] - sigma[0]) * pred


@contextmanager
def attending(monkeypatch: pytest.MonkeyPatch, function: Callable[..., Tensor]) -> Iterator[None]:
    """Have all attention computed by function(n, query, key, value), n counting from 0."""
    count = iter(range(10**6))
    with monkeypatch.context() as patch:
        patch.setattr(
            F, "scaled_dot_product_attention", lambda query, key, value, **_: function(next(count), query, key, value)
        )
        yield


def softmax_attention(query: Tensor, key: Tensor, value: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    logits = query @ key.mT / query.shape[-1] ** 0.5
    return change(logits).softmax(-1) @ value


@pytest.mark.parametrize(("kind", "guided"), MODES)
def test_perturbed_attention_is_its_equation(kind: str, guided: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = PIPELINES[kind].pipe()

    def perturbed(half: dict[str, Any]) -> Tensor:
        length = half["encoder_hidden_states"].shape[1]
        which = 2 if kind == "SD3" else 1  # block 1: block 0 of SD3 has a second attention, over the image alone

        def alone(logits: Tensor) -> Tensor:
            n = logits.shape[-1]
            image = range(n - length) if kind == "SD3" else range(length, n)
            blind = torch.zeros(n, n, dtype=torch.bool)
            for i in image:
                for j in image:
                    blind[i, j] = i != j
            return logits.masked_fill(blind, float("-inf"))

        def attend(n: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return softmax_attention(q, k, v, alone if n == which else lambda logits: logits)

        with attending(monkeypatch, attend):
            return pipe.transformer(**half)[0]

    expected = one_step(pipe, kind, guided, 2.0, perturbed)
    made = draw_with(pipe, PerturbedAttention(blocks=1, scale=2), call(kind, guided, steps=1))
    assert torch.allclose(made, expected, atol=1e-4)
    assert not torch.allclose(made, draw(pipe, call(kind, guided, steps=1)), atol=1e-2)


@pytest.mark.parametrize(("kind", "guided"), MODES)
@pytest.mark.parametrize("block", [1, 2])
def test_skip_layers_is_its_equation(kind: str, guided: bool, block: int) -> None:
    pipe = PIPELINES[kind].pipe()
    without = copy.deepcopy(pipe.transformer)
    blocks = "transformer_blocks" if kind == "SD3" or block < 2 else "single_transformer_blocks"
    at = block if kind == "SD3" or block < 2 else block - 2
    setattr(without, blocks, nn.ModuleList(b for i, b in enumerate(getattr(without, blocks)) if i != at))
    expected = one_step(pipe, kind, guided, 2.0, lambda half: without(**half)[0])
    rival = SkipLayers(blocks=block, scale=2, start=0, stop=1)
    made = draw_with(pipe, rival, call(kind, guided, steps=1))
    assert torch.allclose(made, expected, atol=1e-4)


@pytest.mark.parametrize(("start", "stop"), [(0.01, 0.5), (0.2, 1.0)])
def test_skip_layers_is_what_the_sd3_pipeline_does_itself(start: float, stop: float) -> None:
    pipe, arguments = PIPELINES["SD3"].pipe(), call("SD3", True, steps=4)
    native = {"skip_guidance_layers": [1], "skip_layer_guidance_scale": 2.8}
    native |= {"skip_layer_guidance_start": start, "skip_layer_guidance_stop": stop}
    expected = draw(pipe, arguments | native)
    assert torch.allclose(draw_with(pipe, SkipLayers(1, 2.8, start, stop), arguments), expected, atol=1e-4)
    assert not torch.allclose(draw(pipe, arguments), expected, atol=1e-2)


def test_only_conditional_rows_are_passed_again_and_only_in_the_window() -> None:
    pipe, arguments = PIPELINES["SD3"].pipe(), call("SD3", True, steps=4)
    rows: list[int] = []
    handle = pipe.transformer.pos_embed.register_forward_hook(lambda _m, args, _o: rows.append(len(args[0])))
    rival = PerturbedAttention(blocks=1, start=0.25, stop=0.75)
    draw_with(pipe, rival, arguments)
    handle.remove()
    assert rows == [4, 4, 2, 4, 2, 4]
    assert rival.cost({**arguments}).forwards == 0.25


def test_a_window_that_holds_no_step_is_an_error() -> None:
    pipe, arguments = PIPELINES["SD3"].pipe(), call("SD3", True, steps=4)
    with pytest.raises(RuntimeError, match="not called in a step from start=0.3 to stop=0.4, so nothing was done"):
        draw_with(pipe, PerturbedAttention(start=0.3, stop=0.4), arguments)


def test_cfg_zero_is_its_equation() -> None:
    pipe, arguments = PIPELINES["SD3"].pipe(), call("SD3", True, steps=1)
    kwargs = transformer_calls(pipe, arguments)[0]
    with torch.no_grad():
        u, c = pipe.transformer(**kwargs)[0].chunk(2)
    fit = torch.stack([(a * b).sum() / (b * b).sum() for a, b in zip(c, u, strict=True)])[:, None, None, None]
    sigma = pipe.scheduler.sigmas
    expected = kwargs["hidden_states"][2:] + (sigma[1] - sigma[0]) * (fit * u + GUIDANCE * (c - fit * u))
    assert torch.allclose(draw_with(pipe, CfgZero(zero_steps=0), arguments), expected, atol=1e-4)
    assert torch.equal(draw_with(pipe, CfgZero(zero_steps=1), arguments), kwargs["hidden_states"][2:])


def test_guidance_is_the_argument() -> None:
    pipe, arguments = PIPELINES["SD3"].pipe(), call("SD3", True)
    made = draw_with(pipe, Guidance(scale=5), arguments)
    assert torch.equal(made, draw(pipe, {**arguments, "guidance_scale": 5}))


def test_guidance_refuses_what_it_would_not_change() -> None:
    prompts, rest = asked(call("Flux", False))
    with (
        pytest.raises(UnsupportedPipelineError, match="guidance_embeds is False"),
        Guidance().on(PIPELINES["Flux"].pipe(), prompts, rest),
    ):
        pass

    class Plain:
        def __call__(self, prompt: str) -> None: ...

    with pytest.raises(UnsupportedPipelineError, match="Plain does not take"), Guidance().on(Plain(), prompts, rest):
        pass
    pipe = PIPELINES["SD3"].pipe()
    draw(pipe, call("SD3", True))
    with pytest.raises(RuntimeError, match="not called with guidance_scale=5"), Guidance(5).on(pipe, prompts, rest):
        pass


@pytest.mark.parametrize("kind", ["SD3", "Flux"])
@pytest.mark.parametrize("name", ["skip-layers", "perturbed-attention"])
def test_blocks_by_default_and_from_the_end(name: str, kind: str) -> None:
    rival = {"skip-layers": SkipLayers, "perturbed-attention": PerturbedAttention}[name]
    assert name in RIVALS
    pipe, arguments = PIPELINES[kind].pipe(), call(kind, True)
    depth = PIPELINES[kind].blocks
    assert draw_with(pipe, rival(start=0, stop=1), arguments).isfinite().all()
    last, same = (draw_with(pipe, rival(blocks=b, start=0, stop=1), arguments) for b in (-2, depth - 2))
    assert torch.equal(last, same)
    with pytest.raises(ValueError, match=f"blocks 0 to {depth - 1}, so there is no block {depth}"):
        draw_with(pipe, rival(blocks=depth), arguments)


def test_default_blocks_are_those_of_their_sources() -> None:
    assert list(SkipLayers()._default(24)) == [7, 8, 9]
    assert list(PerturbedAttention()._default(24)) == [13]
    for depth in range(1, 60):
        assert SkipLayers()._default(depth)
        assert max(SkipLayers()._default(depth)) < depth


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Guidance(scale=0.5), ValueError, "scale must be a finite number of at least 1, got 0.5"),
        (lambda: SkipLayers(scale=-1), ValueError, "scale must be a finite number of at least 0"),
        (lambda: SkipLayers(scale="much"), TypeError, "scale must be a number, got 'much'"),
        (lambda: SkipLayers(start=0.5, stop=0.5), ValueError, "start must be below stop, got start=0.5, stop=0.5"),
        (lambda: SkipLayers(stop=2), ValueError, "stop must be a finite number from 0 to 1, got 2"),
        (lambda: PerturbedAttention(blocks="x"), ValueError, "cannot read blocks 'x'"),
        (lambda: PerturbedAttention(blocks=()), ValueError, "blocks is empty"),
        (lambda: PerturbedAttention(scale=float("nan")), ValueError, "scale must be a finite number"),
        (lambda: CfgZero(zero_steps=-1), ValueError, "zero_steps"),
    ],
)
def test_settings_that_make_no_sense_say_so(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


def test_ranges_of_blocks_from_the_command_line() -> None:
    assert SkipLayers(blocks=("0-1", "3")).blocks == (0, 1, 3)
    assert SkipLayers(blocks="7-9").blocks == (7, 8, 9)
    assert SkipLayers(blocks=2).blocks == (2,)
