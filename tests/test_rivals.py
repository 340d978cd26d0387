"""Every rival, whatever it does: its settings, how it goes on and comes off, what it refuses."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import diffusers
import pytest
import torch

from rarelift import rivals
from rarelift.bench.runs import Method
from rarelift.prompts import Prompt
from rarelift.rivals import RIVALS
from rarelift.rivals.base import Rival, UnsupportedPipelineError
from rival_cases import MODES, asked, attributes, call, draw_with
from tiny_pipelines import PIPELINES, draw


@pytest.mark.parametrize("name", RIVALS)
def test_settings_survive_json_and_the_command_line(name: str) -> None:
    kind = rivals.kind(name)
    rival = kind()
    assert kind.name == name
    assert kind.summary
    assert kind.source
    values = json.loads(json.dumps(rival.to_dict()))
    assert values.pop("rival") == name
    assert kind.from_dict(values) == rival
    assert Method.parse(name).settings == rival
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        value = values[field.name]
        if isinstance(value, (bool, int, float)):
            parsed = Method.parse(f"{name}:{field.name}={json.dumps(value)}").settings
            assert parsed == rival, field.name


@pytest.mark.parametrize("name", RIVALS)
def test_an_unknown_setting_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"unknown setting of {name} 'strenght'"):
        Method.parse(f"{name}:strenght=1")


def test_an_unknown_rival_gets_the_nearest() -> None:
    with pytest.raises(ValueError, match="Did you mean 'taca'"):
        rivals.make("tacca", {})


# ---------------------------------------------------------------- on and off

STRONG: dict[str, dict[str, Any]] = {
    "guidance": {"scale": 5},
    "cfg-zero": {},
    "skip-layers": {"blocks": 1, "start": 0, "stop": 1},
    "perturbed-attention": {"blocks": "0-1"},
    "encoder-spread": {"alpha": 3},
    "word-weights": {"weight": 3},
    "double-text": {"factor": 3},
    "reinject": {"weight": 2},
    "taca": {"gamma": 3, "threshold": 0},
}
"""Settings that are seen on any tiny pipeline, of the rivals that work on those; another rival is tested elsewhere."""
NEUTRAL: dict[str, dict[str, Any]] = {
    "guidance": {"scale": 3.0},  # what the guided call has
    "skip-layers": {"scale": 0, "start": 0, "stop": 1},
    "perturbed-attention": {"scale": 0},
    "encoder-spread": {"alpha": 1, "branch": "both"},
    "word-weights": {"weight": 1},
    "double-text": {"factor": 1, "blocks": None},
    "reinject": {"weight": 0},
    "taca": {"gamma": 1, "threshold": 0},
}
ON = [
    pytest.param(name, kind, guided, id=f"{name}, {kind}{', guided' if guided else ''}")
    for name in STRONG
    for kind, guided in MODES
    if not (name == "guidance" and (kind, guided) != ("SD3", True))
]


@pytest.mark.parametrize(("name", "kind", "guided"), ON)
def test_a_rival_shows_and_comes_off_exactly(name: str, kind: str, guided: bool) -> None:
    pipe, arguments = PIPELINES[kind].pipe(), call(kind, guided)
    untouched = draw(pipe, arguments)
    before = attributes(pipe)
    rival = rivals.make(name, STRONG[name])
    lifted = draw_with(pipe, rival, arguments)
    assert lifted.isfinite().all()
    assert all(not torch.equal(a, b) for a, b in zip(lifted, untouched, strict=True))
    assert attributes(pipe) == before
    assert torch.equal(draw(pipe, arguments), untouched)
    assert torch.equal(draw_with(pipe, rival, arguments), lifted)
    assert rival.cost(asked(arguments)[1]).forwards >= 0


@pytest.mark.parametrize(("name", "kind", "guided"), [case for case in ON if case.values[0] in NEUTRAL])
def test_a_neutral_setting_changes_no_bit(name: str, kind: str, guided: bool) -> None:
    pipe, arguments = PIPELINES[kind].pipe(), call(kind, guided)
    assert torch.equal(draw_with(pipe, rivals.make(name, NEUTRAL[name]), arguments), draw(pipe, arguments))


@pytest.mark.parametrize(("name", "kind", "guided"), ON)
def test_a_rival_comes_off_after_an_exception(name: str, kind: str, guided: bool) -> None:
    pipe, arguments = PIPELINES[kind].pipe(), call(kind, guided)
    untouched = draw(pipe, arguments)
    before = attributes(pipe)
    block = pipe.transformer.transformer_blocks[-1]
    handle = block.register_forward_pre_hook(_fails)
    with pytest.raises(ZeroDivisionError):
        draw_with(pipe, rivals.make(name, STRONG[name]), arguments)
    handle.remove()
    pipe.maybe_free_model_hooks()
    assert attributes(pipe) == before
    assert torch.equal(draw(pipe, arguments), untouched)


def _fails(*_: object) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("name", STRONG)
def test_each_prompt_of_a_batch_is_drawn_as_alone(name: str) -> None:
    pipe, arguments = PIPELINES["SD3"].pipe(), call("SD3", True)
    rival = rivals.make(name, STRONG[name])
    both = draw_with(pipe, rival, arguments)
    for i in range(2):
        one = {key: value[i : i + 1] if isinstance(value, list) else value for key, value in arguments.items()}
        assert torch.allclose(draw_with(pipe, rival, one)[0], both[i], atol=2e-4)


# ---------------------------------------------------------------- what is refused


def on(rival: Rival, pipe: Any, **more: Any) -> None:
    with rival.on(pipe, [Prompt("p", "a lion", "single_complex")], more):
        pass


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # the compiler's own
@pytest.mark.parametrize("name", [name for name in STRONG if name != "guidance"])
def test_pipelines_it_does_not_fit_are_refused(name: str) -> None:
    rival = rivals.make(name, STRONG[name])
    with pytest.raises(UnsupportedPipelineError, match="QwenImage"):
        on(rival, PIPELINES["QwenImage"].pipe())

    class Crossed:
        transformer = diffusers.PixArtTransformer2DModel(
            num_attention_heads=1, attention_head_dim=4, num_layers=1, cross_attention_dim=4, caption_channels=4
        )

    with pytest.raises(UnsupportedPipelineError, match=f"{name}.*PixArt"):
        on(rival, Crossed())
    compiled = PIPELINES["SD3"].pipe()
    compiled.transformer.compile()
    with pytest.raises(UnsupportedPipelineError, match="compiled"):
        on(rival, compiled)


@pytest.mark.parametrize("name", [name for name in STRONG if name != "guidance"])
def test_doing_nothing_is_an_error(name: str) -> None:
    pipe = PIPELINES["SD3"].pipe()
    before = attributes(pipe)
    with pytest.raises(RuntimeError, match=f"{name}: .*nothing was done"):
        on(rivals.make(name, STRONG[name]), pipe)
    assert attributes(pipe) == before
