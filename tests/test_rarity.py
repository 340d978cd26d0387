from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FirstBlockCacheConfig, FluxTransformer2DModel
from diffusers.hooks import apply_first_block_cache

import rarelift
from rarelift import rarity
from rarelift.hooks import paused
from rarelift.locate import UnsupportedModelError

PROMPT = "a striped purple lion wearing a crown"
CALL = {"num_inference_steps": 2, "max_sequence_length": 4, "guidance_scale": 2.0, "output_type": "latent"}


def scores(pipe: Any, prompt: str = PROMPT, **more: Any) -> dict[str, float]:
    return {s.word: s.score for s in rarity.scores(pipe, prompt, max_sequence_length=4, **more)}


def drawn(pipe: Any) -> torch.Tensor:
    return torch.as_tensor(pipe(PROMPT, generator=torch.Generator().manual_seed(0), **CALL).images)


@torch.no_grad()
def reference(pipe: Any, prompt: str, shorter: list[str], seed: int) -> list[float]:
    """The shares one prompt and one forward at a time, in float64 after the model."""

    def encoded(text: str) -> tuple[torch.Tensor, torch.Tensor]:
        parts = pipe.encode_prompt(text, text, text, max_sequence_length=4, do_classifier_free_guidance=False)
        return parts[0], parts[2]

    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(seed))

    def predicted(embeds: torch.Tensor, pooled: torch.Tensor) -> np.ndarray:
        said = pipe.transformer(noise, embeds, pooled, torch.tensor([1000.0])).sample
        return said.double().numpy()

    embeds, pooled = encoded(prompt)
    whole, nothing = predicted(embeds, pooled), predicted(*encoded(""))
    return [
        float(((predicted(embeds, encoded(text)[1]) - whole) ** 2).sum() / ((nothing - whole) ** 2).sum())
        for text in shorter
    ]


def test_agrees_with_reference(pipe: Any) -> None:
    shorter = [
        "a purple lion wearing a crown",
        "a striped lion wearing a crown",
        "a striped purple wearing a crown",
        "a striped purple lion a crown",
        "a striped purple lion wearing a",
    ]
    found = rarity.scores(pipe, PROMPT, max_sequence_length=4, seed=3)
    assert [s.word for s in found] == ["striped", "purple", "lion", "wearing", "crown"]
    assert all(PROMPT[slice(*s.span)] == s.word for s in found)
    expected = reference(pipe, PROMPT, shorter, 3)
    assert min(expected) > 1e-4  # a difference to measure
    np.testing.assert_allclose([s.score for s in found], expected, rtol=1e-3)


def test_the_pipeline_is_left_as_it_was(pipe: Any) -> None:
    before, random = drawn(pipe), torch.get_rng_state()
    held = {name: set(vars(part)) for name, part in pipe.transformer.named_modules()}
    steps = pipe.scheduler.timesteps
    scores(pipe)
    assert torch.equal(torch.get_rng_state(), random)
    assert pipe.scheduler.timesteps is steps
    assert {name: set(vars(part)) for name, part in pipe.transformer.named_modules()} == held
    assert torch.equal(drawn(pipe), before)


@pytest.mark.parametrize("settings", [{"alpha": 2.0}, {"alpha": 2.0, "tokens": ("crown",), "start": 0.5}])
def test_a_lift_is_put_aside(pipe: Any, settings: dict[str, Any]) -> None:
    untouched = scores(pipe)
    with rarelift.apply(pipe, **settings) as handle:
        lifted, calls = drawn(pipe), handle.calls
        assert scores(pipe) == untouched
        assert handle.calls == calls
        assert handle.active
        assert torch.equal(drawn(pipe), lifted)


def test_a_lift_comes_back_after_an_error(pipe: Any) -> None:
    with rarelift.apply(pipe) as handle:
        with pytest.raises(TypeError):
            rarity.scores(pipe, PROMPT, max_sequence_length="four")  # type: ignore[arg-type]
        assert handle.active
        drawn(pipe)
        assert handle.calls > 0


def test_a_lift_that_is_taken_off_meanwhile_stays_off(pipe: Any) -> None:
    handle = rarelift.apply(pipe)
    with paused(pipe.transformer):
        handle.remove()
    assert not handle.active


def test_words_are_those_with_content() -> None:
    assert rarity.words("The cat's red-and-blue hat, on a\tmat") == [
        ("cat's", (4, 9)),
        ("red-and-blue", (10, 22)),
        ("hat", (23, 26)),
        ("mat", (33, 36)),
    ]
    assert rarity.without("a red  hat", (2, 5)) == "a hat"


def test_what_cannot_be_measured_is_refused(pipe: Any) -> None:
    with pytest.raises(ValueError, match="no content word"):
        scores(pipe, "of the and a")
    with pytest.raises(TypeError, match="give the pipeline"):
        scores(pipe.transformer)
    same = copy.deepcopy(pipe)
    torch.nn.init.zeros_(same.transformer.proj_out.weight)
    torch.nn.init.zeros_(same.transformer.proj_out.bias)
    with pytest.raises(ValueError, match="the same for"):
        scores(same)
    cached = copy.deepcopy(pipe)
    apply_first_block_cache(cached.transformer, FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(UnsupportedModelError, match="turn the cache off"):
        scores(cached)
    pipe.transformer.transformer_blocks[1].compile(backend="eager")
    with pytest.raises(UnsupportedModelError, match="compiled"):
        scores(pipe)


def test_another_model_is_refused(pipe: Any) -> None:
    pipe.transformer = FluxTransformer2DModel(
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
        in_channels=4,
    )
    with pytest.raises(UnsupportedModelError, match=r"SD3Transformer2DModel, not for FluxTransformer2DModel"):
        scores(pipe)


def test_the_figure_told_is_the_measured_one() -> None:
    page = (Path(__file__).parents[1] / "docs" / "beyond.md").read_text()
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| pooled embedding alone, share |")]
    same_word = next(row[3] for row in rows if "[" in row[3])  # on the report half
    assert f"{100 * float(same_word.split()[0]):.0f} of 100 pairs" in rarity.RELIABILITY.replace("\n", " ")
