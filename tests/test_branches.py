"""`branch`: which half of guidance is lifted, in each way that pipelines bring the two."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

import rarelift
from families import FAMILIES, both_streams
from rarelift.attach import RareliftWarning

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
EMPTY = {"vae": None, "text_encoder": None, "tokenizer": None}


def flow() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler()


def made(name: str) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """A real pipeline around a tiny transformer; its call for two prompts, and what turns guidance on.

    The embeddings tell the branch: those of the prompt are positive, the others negative.
    """
    tiny = FAMILIES[name]
    cond = tiny.arguments()[tiny.prompt]
    cond = [c.abs()[:7] + 1 for c in cond] if isinstance(cond, list) else cond.abs() + 1
    uncond = [-c for c in cond] if isinstance(cond, list) else -cond
    parts = {**EMPTY, "transformer": tiny.make()}
    call = {"prompt_embeds": cond, "height": 64, "width": 64, "output_type": "latent", "num_inference_steps": 2}
    guided: dict[str, Any] = {"negative_prompt_embeds": uncond}
    if name == "Flux":
        pipe = diffusers.FluxPipeline(scheduler=flow(), text_encoder_2=None, tokenizer_2=None, **parts)
        pooled = torch.randn(2, 16)
        call["pooled_prompt_embeds"] = pooled
        guided |= {"negative_pooled_prompt_embeds": pooled, "true_cfg_scale": 2.0}
    elif name == "Chroma":
        pipe = diffusers.ChromaPipeline(scheduler=flow(), **parts)
        mask = both_streams()[:, :7]
        call |= {"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask, "guidance_scale": 0.0}
        guided["guidance_scale"] = 2.0
    elif name == "ZImage":
        pipe = diffusers.ZImagePipeline(scheduler=flow(), **parts)
        call["guidance_scale"] = 0.0
        guided["guidance_scale"] = 2.0
    else:
        pipe = diffusers.CogVideoXPipeline(scheduler=diffusers.CogVideoXDDIMScheduler(), **parts)
        call |= {"num_frames": 5, "guidance_scale": 1.0}
        guided["guidance_scale"] = 2.0
    pipe.set_progress_bar_config(disable=True)
    return pipe, call, guided


def watched(pipe: Any, handle: rarelift.Handle, prompt: str) -> list[tuple[Any, Any]]:
    """Of each row of each call of the transformer: whether its text is the prompt's, and its alpha."""
    seen: list[tuple[Any, Any]] = []

    def note(_module: Any, args: Any, kwargs: Any, _output: Any) -> None:
        text = kwargs[prompt] if prompt in kwargs else args[2]
        signs = [bool((t > 0).all()) for t in text]
        alphas = handle._lift.live_scale.flatten().tolist()
        seen.extend(zip(signs, alphas * (len(signs) // len(alphas)), strict=True))

    pipe.transformer.register_forward_hook(note, with_kwargs=True)
    return seen


def draw(pipe: Any, **call: Any) -> Tensor:
    output = pipe(generator=torch.Generator().manual_seed(0), **call)[0]
    return torch.stack(list(output)) if isinstance(output, list) else output


NAMES = ("Flux", "Chroma", "ZImage", "CogVideoX")


@pytest.mark.parametrize("name", NAMES)
def test_only_the_branch_is_lifted(name: str) -> None:
    pipe, call, guided = made(name)
    handle = rarelift.apply(pipe, alpha=2.0)
    seen = watched(pipe, handle, FAMILIES[name].prompt)
    plain = {}
    for branch in ("cond", "uncond", "both"):
        seen.clear()
        handle.set(branch=branch)
        plain[branch] = draw(pipe, **{**call, **guided})
        assert len(seen) == 8  # two prompts, two branches, two steps
        for cond, alpha in seen:
            assert alpha == (2.0 if branch in ("both", "cond" if cond else "uncond") else 1.0)
        assert sum(cond for cond, _ in seen) == 4
    assert not torch.equal(plain["cond"], plain["both"])
    handle.set(branch="cond")
    seen.clear()
    draw(pipe, **call)  # without guidance all is conditional
    assert seen == [(True, 2.0)] * 4
    handle.remove()
    assert "cache_context" not in vars(pipe.transformer)


@pytest.mark.parametrize("name", NAMES)
def test_a_branch_that_never_comes_is_not_passed_over_in_silence(name: str) -> None:
    pipe, call, _ = made(name)
    with rarelift.apply(pipe, branch="uncond"):
        if name in ("Flux", "Chroma"):  # known only when the call is over
            with pytest.warns(RareliftWarning, match="no unconditional branch"):
                draw(pipe, **call)
        else:
            with pytest.raises(ValueError, match="guidance off lifts nothing"):
                draw(pipe, **call)


def test_one_alpha_per_prompt_goes_with_the_branch() -> None:
    for name in NAMES:
        pipe, call, guided = made(name)
        handle = rarelift.apply(pipe, alpha=(1.5, 2.0), branch="cond")
        seen = watched(pipe, handle, FAMILIES[name].prompt)
        draw(pipe, **{**call, **guided})
        assert [alpha for cond, alpha in seen if cond] == [1.5, 2.0] * 2
        assert [alpha for cond, alpha in seen if not cond] == [1.0] * 4


def test_compiled_where_the_pipeline_names_the_branch() -> None:
    torch._dynamo.reset()
    pipe, call, guided = made("Flux")
    call |= guided
    expected = {}
    for branch in ("cond", "uncond"):
        with rarelift.apply(pipe, alpha=2.0, branch=branch):  # type: ignore[arg-type]
            expected[branch] = draw(pipe, **call)
    counter = torch._dynamo.testing.CompileCounter()
    handle = rarelift.apply(pipe, alpha=2.0)
    pipe.transformer.compile(backend=counter, dynamic=False)
    draw(pipe, **call)
    graphs = counter.frame_count
    for branch, picture in expected.items():
        handle.set(branch=branch)
        torch.testing.assert_close(draw(pipe, **call), picture)
    assert counter.frame_count == graphs


def test_compiled_where_it_does_not() -> None:
    torch._dynamo.reset()
    pipe, call, guided = made("Chroma")
    rarelift.apply(pipe, alpha=2.0, branch="cond")
    pipe.transformer.compile(backend="eager", fullgraph=True)
    with pytest.raises(RuntimeError, match="does not name its branches, and compiled code cannot tell them apart"):
        draw(pipe, **{**call, **guided})
    pipe, call, guided = made("Chroma")
    with rarelift.apply(pipe, alpha=2.0, branch="cond") as handle:
        expected = draw(pipe, **{**call, **guided})
    handle = rarelift.apply(pipe, alpha=2.0, branch="cond")
    for site in handle.sites:
        site.module.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(draw(pipe, **{**call, **guided}), expected)


@torch.no_grad()
def test_a_third_text_is_an_error() -> None:
    pipe, *_ = made("Chroma")
    rarelift.apply(pipe, alpha=2.0, branch="cond")
    calls = [FAMILIES["Chroma"].arguments() for _ in range(3)]
    for call in calls[:2]:
        pipe.transformer(**call)
    with pytest.raises(RuntimeError, match="brings a third text"):
        pipe.transformer(**calls[2])
