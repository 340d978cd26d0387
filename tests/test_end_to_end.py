"""Through real pipelines, prompt in and picture out: what holds for a transformer's call holds for users' calls."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

import rarelift
from rarelift.lifting import _window
from tiny_pipelines import OTHER, PIPELINES, PROMPT, Case, branches, draw

diffusers.utils.logging.set_verbosity_error()
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

MODES = [(name, guided) for name, case in PIPELINES.items() for guided in case.modes]
IN_LISTS = [(name, guided) for name, guided in MODES if not guided or PIPELINES[name].guided_lists]


def modes(chosen: list[tuple[str, bool]]) -> pytest.MarkDecorator:
    ids = [f"{name}{', guided' * guided}" for name, guided in chosen]
    return pytest.mark.parametrize(("name", "guided"), chosen, ids=ids)


def attributes(pipe: Any) -> list[set[str]]:
    """Names of every instance attribute of the pipeline and of all modules of its transformer."""
    return [set(vars(owner)) for owner in (pipe, *pipe.transformer.modules())]


def calls_of(case: Case, guided: bool) -> int:
    """Transformer calls of two steps."""
    return 4 if guided and case.scheme == "two calls" else 2


@modes(MODES)
@pytest.mark.parametrize("prompts", [(PROMPT,), (PROMPT, OTHER)], ids=["one", "two"])
def test_exact_counted_and_reversible(name: str, guided: bool, prompts: tuple[str, ...]) -> None:
    case = PIPELINES[name]
    prompts = prompts if (name, guided) in IN_LISTS else (OTHER,)
    pipe, call = case.pipe(), case.arguments(*prompts, guided=guided)
    plain, kept, calls = draw(pipe, call), attributes(pipe), calls_of(case, guided)
    handle = rarelift.apply(pipe, alpha=1.0)
    assert torch.equal(draw(pipe, call), plain)
    assert handle.calls == case.blocks * calls
    handle.set(alpha=1.5)
    lifted = draw(pipe, call)
    assert handle.calls == 2 * case.blocks * calls
    assert lifted.isfinite().all()
    assert all((one != two).any() for one, two in zip(lifted, plain, strict=True))
    handle.remove()
    assert attributes(pipe) == kept
    assert torch.equal(draw(pipe, call), plain)


@modes(MODES)
def test_the_second_step_alone(name: str, guided: bool) -> None:
    case = PIPELINES[name]
    pipe, call = case.pipe(), case.arguments(PROMPT, guided=guided)
    plain = draw(pipe, call)
    handle = rarelift.apply(pipe, alpha=1.5, start=0.5)
    live: list[float] = []
    handle.sites[0].module.register_forward_pre_hook(lambda *_: live.append(float(handle._lift.live_scale.max())))
    late = draw(pipe, call)
    half = calls_of(case, guided) // 2
    assert live == [1.0] * half + [1.5] * half
    handle.set(start=0.0, stop=0.5)
    early = draw(pipe, call)
    assert live[2 * half :] == [1.5] * half + [1.0] * half
    assert len({tuple(p.flatten().tolist()) for p in (plain, early, late)}) == 3


@modes(IN_LISTS)
def test_each_prompt_has_its_alpha(name: str, guided: bool) -> None:
    case, prompts, alphas = PIPELINES[name], (PROMPT, OTHER), (1.0, 1.5)
    pipe = case.pipe()
    one_by_one, plain = [], []
    for i, (prompt, alpha) in enumerate(zip(prompts, alphas, strict=True)):
        call = case.arguments(prompt, guided=guided, seed=i)
        plain.append(draw(pipe, call))
        with rarelift.apply(pipe, alpha=alpha):
            one_by_one.append(draw(pipe, call))
    with rarelift.apply(pipe, alpha=alphas):
        batch = draw(pipe, case.arguments(*prompts, guided=guided))
    torch.testing.assert_close(batch, torch.cat(one_by_one), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(batch[:1], plain[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(batch[1:], plain[1], rtol=1e-4, atol=1e-4)


@modes(MODES)
def test_how_calls_hold_the_branches(name: str, guided: bool) -> None:
    case = PIPELINES[name]
    images = 2 if case.many else 1
    prompts = (PROMPT, OTHER) if (name, guided) in IN_LISTS else (PROMPT,)
    found = branches(case.pipe(), case.arguments(*prompts, guided=guided, images=images))
    rows = len(prompts) * images
    cond, uncond = ["cond"] * rows, ["uncond"] * rows
    steps = {"uncond_cond": [uncond + cond], "cond_uncond": [cond + uncond], "two calls": [cond, uncond]}
    assert found == 2 * (steps[case.scheme] if guided else [cond])


def test_guidance_that_stops_half_way() -> None:
    """Z-Image and Lumina 2 can end guidance early; Stable Diffusion 3 can add a call that skips layers."""
    for name, early, expected in (
        ("ZImage", {"cfg_truncation": 0.1}, [["cond", "uncond"], ["cond"]]),
        ("Lumina2", {"cfg_trunc_ratio": 0.5}, [["cond"], ["uncond"], ["cond"]]),
        (
            "SD3",
            {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0},
            [["uncond", "cond"], ["uncond", "cond"], ["cond"]],
        ),
    ):
        case = PIPELINES[name]
        call = {**case.arguments(PROMPT, guided=True), **early}
        pipe = case.pipe()
        assert branches(pipe, call) == expected
        plain = draw(pipe, call)
        with rarelift.apply(pipe, alpha=1.0) as handle:
            assert torch.equal(draw(pipe, call), plain)
            handle.set(alpha=1.5)
            assert not torch.equal(draw(pipe, call), plain)


def test_a_step_that_is_taken_twice() -> None:
    """A scheduler of second order has the timesteps 1000, 667, 667, 334, 334, 1, 1 for four steps."""
    pipe, call = PIPELINES["SD3"].pipe(), {**PIPELINES["SD3"].arguments(PROMPT), "num_inference_steps": 4}
    pipe.scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    live: list[float] = []
    handle = rarelift.apply(pipe, alpha=1.5, start=0.5)
    handle.sites[0].module.register_forward_pre_hook(lambda *_: live.append(float(handle._lift.live_scale.max())))
    draw(pipe, call)
    handle.set(start=0.0, stop=0.4)
    draw(pipe, call)
    handle.set(start=0.2, stop=0.3)
    draw(pipe, call)
    assert live == 3 * [1.0] + 4 * [1.5] + 3 * [1.5] + 4 * [1.0] + [1.0] + 2 * [1.5] + 4 * [1.0]


def test_steps_of_either_direction_and_none() -> None:
    late = rarelift.Spread(start=0.5)
    falling, rising = (900.0, 600.0, 300.0, 0.0), (0.0, 300.0, 600.0, 900.0)
    for steps in (falling, rising):
        below, lowest = _window(late, steps)
        assert [lowest <= t < below for t in steps] == [False, False, True, True]
    with pytest.raises(ValueError, match="all fall or all rise"):
        _window(late, (900.0, 300.0, 600.0, 0.0))
