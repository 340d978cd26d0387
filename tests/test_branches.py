"""`branch`: which half of guidance is lifted, in each way that pipelines bring the two, held against the words."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
import torch._dynamo.testing

import rarelift
from families import FAMILIES
from rarelift.attach import RareliftWarning
from tiny_pipelines import OTHER, PIPELINES, PROMPT, branches, draw

diffusers.utils.logging.set_verbosity_error()
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
GUIDED = [name for name, case in PIPELINES.items() if True in case.modes]
UNGUIDED = [name for name, case in PIPELINES.items() if False in case.modes]


def alphas(pipe: Any, handle: rarelift.Handle) -> list[Any]:
    """Of each call of the transformer, the factor of each row of its batch; one number where all rows have the same."""
    seen: list[Any] = []
    pipe.transformer.register_forward_hook(lambda *_: seen.append(handle._lift.live_scale.amax((1, 2)).tolist()))
    return seen


@pytest.mark.parametrize("name", GUIDED)
def test_only_the_branch_is_lifted(name: str) -> None:
    case = PIPELINES[name]
    prompts = (PROMPT, OTHER) if case.guided_lists else (PROMPT,)
    pipe, call = case.pipe(), case.arguments(*prompts, guided=True, images=2 if case.many else 1)
    truth = branches(pipe, call)
    assert {row for rows in truth for row in rows} == {"cond", "uncond"}
    handle = rarelift.apply(pipe, alpha=2.0)
    seen = alphas(pipe, handle)
    pictures = {}
    for branch in ("cond", "uncond", "both"):
        seen.clear()
        handle.set(branch=branch)
        pictures[branch] = draw(pipe, call)
        for rows, found in zip(truth, seen, strict=True):
            expected = [2.0 if branch in (row, "both") else 1.0 for row in rows]
            assert (found * len(rows) if len(found) == 1 else found) == expected
    assert not torch.equal(pictures["cond"], pictures["both"])
    assert not torch.equal(pictures["uncond"], pictures["both"])
    handle.remove()
    assert "cache_context" not in vars(pipe.transformer)


@pytest.mark.parametrize("name", UNGUIDED)
def test_without_guidance_everything_is_conditional(name: str) -> None:
    case = PIPELINES[name]
    pipe, call = case.pipe(), case.arguments(PROMPT)
    handle = rarelift.apply(pipe, alpha=2.0)
    both = draw(pipe, call)
    handle.set(branch="cond")
    assert torch.equal(draw(pipe, call), both)
    if handle.sites[0].family.batch == "cond":
        with pytest.raises(ValueError, match="is only called with the prompt"):
            handle.set(branch="uncond")
        return
    handle.set(branch="uncond")  # not passed over in silence
    if case.scheme in ("uncond_cond", "cond_uncond"):
        with pytest.raises(ValueError, match="guidance off lifts nothing"):
            draw(pipe, call)
    else:  # known only when the call is over
        with pytest.warns(RareliftWarning, match="no unconditional branch"):
            draw(pipe, call)


@pytest.mark.parametrize("name", ["SD3", "CogVideoX", "ZImage", "Flux", "Chroma"])
def test_one_alpha_per_prompt_goes_with_the_branch(name: str) -> None:
    case = PIPELINES[name]
    pipe, call = case.pipe(), case.arguments(PROMPT, OTHER, guided=True)
    handle = rarelift.apply(pipe, alpha=(1.5, 2.0), branch="cond")
    seen = alphas(pipe, handle)
    draw(pipe, call)
    rows = {"uncond_cond": [[1.0, 1.0, 1.5, 2.0]], "cond_uncond": [[1.5, 2.0, 1.0, 1.0]]}
    assert seen == 2 * rows.get(str(case.scheme), [[1.5, 2.0], [1.0, 1.0]])


@pytest.mark.parametrize("name", ["SD3", "CogVideoX", "ZImage", "HiDream"])
def test_alphas_are_not_taken_for_branches(name: str) -> None:
    case = PIPELINES[name]
    pipe, call = case.pipe(), case.arguments(PROMPT, guided=True)
    with (
        rarelift.apply(pipe, alpha=(1.0, 1.5)),
        pytest.raises(ValueError, match="2 values, but the call has 1 prompts"),
    ):
        draw(pipe, call)


def test_guidance_that_ends_early() -> None:
    case = PIPELINES["ZImage"]
    call = {**case.arguments(PROMPT, OTHER, guided=True, images=2), "cfg_truncation": 0.1}
    pipe = case.pipe()
    handle = rarelift.apply(pipe, alpha=2.0, branch="cond")
    seen = alphas(pipe, handle)
    draw(pipe, call)
    assert seen == [[2.0] * 4 + [1.0] * 4, [2.0] * 4]


def test_compiled_where_the_pipeline_names_the_branch() -> None:
    torch._dynamo.reset()
    case = PIPELINES["Flux"]
    pipe, call = case.pipe(), case.arguments(PROMPT, guided=True)
    expected = {}
    for branch in ("cond", "uncond"):
        with rarelift.apply(pipe, alpha=2.0, branch=branch):  # type: ignore[arg-type]
            expected[branch] = draw(pipe, call)
    counter = torch._dynamo.testing.CompileCounter()
    handle = rarelift.apply(pipe, alpha=2.0)
    pipe.transformer.compile(backend=counter, dynamic=False)
    draw(pipe, call)
    graphs = counter.frame_count
    for branch, picture in expected.items():
        handle.set(branch=branch)
        torch.testing.assert_close(draw(pipe, call), picture)
    assert counter.frame_count == graphs


def test_compiled_where_it_does_not() -> None:
    torch._dynamo.reset()
    case = PIPELINES["Chroma"]
    pipe, call = case.pipe(), case.arguments(PROMPT, guided=True)
    handle = rarelift.apply(pipe, alpha=2.0, branch="cond")
    expected = draw(pipe, call)
    for site in handle.sites:
        site.module.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(draw(pipe, call), expected)
    pipe = case.pipe()
    rarelift.apply(pipe, alpha=2.0, branch="cond")
    pipe.transformer.compile(backend="eager", fullgraph=True)
    with pytest.raises(RuntimeError, match="does not name its branches, and compiled code cannot tell them apart"):
        draw(pipe, call)


@torch.no_grad()
def test_a_third_text_is_an_error() -> None:
    pipe = PIPELINES["Chroma"].pipe()
    rarelift.apply(pipe, alpha=2.0, branch="cond")
    calls = [FAMILIES["Chroma"].arguments() for _ in range(3)]
    for call in calls[:2]:
        pipe.transformer(**call)
    with pytest.raises(RuntimeError, match="brings a third text"):
        pipe.transformer(**calls[2])
