"""The loop that ideas are drawn by, and what the ideas make of a prompt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import directions
import ideas
import ideas_blocks
import ideas_text
import rarelift
import studio
from rarelift import pipelines
from rarelift.menagerie import suite


@pytest.fixture(scope="module")
def model() -> pipelines.Model:
    return pipelines.load()


@pytest.fixture
def batch(model: pipelines.Model) -> studio.Batch:
    return studio.Batch(studio.Studio(model), suite.prompts("rare", 2, split="tune"), 3.0)


@torch.no_grad()
def drawn(batch: studio.Batch, predict: studio.Predict) -> list[np.ndarray]:
    latents = batch.studio.denoise(batch.studio.noise([5, 6]), predict, 3)
    return [np.asarray(image) for image in batch.studio.decode(latents)]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_without_an_idea_it_is_the_pipeline(model: pipelines.Model, batch: studio.Batch, guidance: float) -> None:
    texts = [p.text for p in batch.prompts]
    theirs = pipelines.text_to_image(model, texts, [5, 6], guidance_scale=guidance, num_inference_steps=3)
    same = studio.Batch(batch.studio, batch.prompts, guidance)
    for ours, image in zip(drawn(same, studio.untouched(same)), theirs, strict=True):
        np.testing.assert_array_equal(ours, np.asarray(image))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("contrast", {"against": "3", "k": 0.0}),
        ("weak", {"against": "without", "mix": 1.0}),
        ("weak_each", {"mix": 1.0}),
        ("compressed", {"alpha": 0.5, "mix": 1.0}),
        ("third", {"against": "neutral", "r": 0.0}),
        ("every", {"r": 0.0}),
        ("pooled", {"k": 0.0}),
        ("encoder_spread", {"alpha": 1.0}),
        ("schedule", {"early": 3.0, "stop": 0.5}),
        ("attended", {"beta": 1.0}),
        ("undrifted", {"k": 0.0, "first": 4}),
        ("ramp", {"over": "steps", "first": 1.0, "last": 1.0}),
        ("auto", {"rule": "change", "to": 0.0}),
        ("words", {"of": "found", "alpha": 1.0}),
        ("directed", {"space": "principal", "alpha": 1.0, "rank": 1}),
        ("directed", {"space": "whiten", "alpha": 1.0, "amount": 0.0}),
        ("directed", {"space": "align", "alpha": 1.0, "amount": 0.0}),
    ],
)
def test_at_nothing_an_idea_changes_nothing(batch: studio.Batch, name: str, settings: dict[str, Any]) -> None:
    for ours, plain in zip(
        drawn(batch, ideas.IDEAS[name](batch, **settings)), drawn(batch, studio.untouched(batch)), strict=True
    ):
        np.testing.assert_allclose(ours.astype(int), plain.astype(int), atol=2)  # a wider batch rounds otherwise


@pytest.mark.parametrize(("name", "settings"), ideas.SEARCH)
def test_every_setting_changes_the_picture(batch: studio.Batch, name: str, settings: dict[str, Any]) -> None:
    ours, plain = drawn(batch, ideas.IDEAS[name](batch, **settings)), drawn(batch, studio.untouched(batch))
    assert any((a != b).any() for a, b in zip(ours, plain, strict=True))


def test_words_are_taken_out_where_they_stand(batch: studio.Batch) -> None:
    first = batch.prompts[0]
    said: list[str] = []
    batch.studio.encode = lambda texts: said.append(texts[0])  # type: ignore[method-assign,assignment,return-value]
    _ = batch.without, batch.neutral
    assert said == [
        first.text.replace(f" {first.thing.animal}", ""),
        first.text.replace(first.thing.animal, studio.NEUTRAL),
    ]
    assert first.thing.animal not in batch.studio.nearest[first.thing.animal]
    assert len(batch.studio.nearest[first.thing.animal]) == 15


def test_phrasings_take_turns_and_mean_the_same_when_they_are_the_same(
    batch: studio.Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ideas_text, "caption", lambda thing, _: next(p.text for p in batch.prompts if p.thing == thing))
    plain = drawn(batch, studio.untouched(batch))
    for how in ("turns", "mean", "pooled"):
        for ours, image in zip(drawn(batch, ideas_text.paraphrased(batch, how)), plain, strict=True):
            np.testing.assert_allclose(ours.astype(int), image.astype(int), atol=2)


@torch.no_grad()
def test_a_level_ramp_is_a_lift(model: pipelines.Model, batch: studio.Batch) -> None:
    texts = [p.text for p in batch.prompts]
    with rarelift.apply(model.pipe, alpha=1.5):
        theirs = pipelines.text_to_image(model, texts, [5, 6], guidance_scale=3.0, num_inference_steps=3)
    ours = drawn(batch, ideas_blocks.ramp(batch, "blocks", 1.5, 1.5))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one.astype(int), np.asarray(other).astype(int), atol=2)


@torch.no_grad()
def test_rules_reach_what_they_aim_at(batch: studio.Batch) -> None:
    latents, timestep = batch.studio.noise([5, 6]), torch.tensor(1000.0)
    for rule, to in (("change", 0.03), ("entropy", 0.0)):
        alphas = ideas_blocks._chosen_alphas(batch, rule, to, latents, timestep)
        assert alphas.shape == (8, 2)
        assert (alphas[0] == alphas).all()
        aim = to or float(ideas_blocks._of_common(batch.studio, "entropy", 3.0))
        for i, alpha in enumerate(alphas[0].tolist()):
            seen = [
                float(ideas_blocks.measured(batch, rule, a, latents, timestep)[i]) for a in (*ideas_blocks.GRID, alpha)
            ]
            assert abs(seen[-1] - aim) <= min(abs(v - aim) for v in seen[:-1]) + 1e-3
    first = ideas_blocks._chosen_alphas(batch, "first", 0.0, latents, timestep)
    assert (first[0] == 1).all()
    own = ideas_blocks.spreads(batch, latents, timestep)
    torch.testing.assert_close(first * own, own[:1].expand_as(own))


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_told_words_are_the_lift_that_names_them(model: pipelines.Model, guidance: float) -> None:
    chosen = suite.prompts("rare", 1, split="tune")
    batch = studio.Batch(studio.Studio(model), chosen, guidance)
    named = tuple(w for w in chosen[0].text.split() if studio.says_something(w) and w != chosen[0].thing.animal)
    assert len(named) >= 4
    for of, tokens in (("rare", named), ("animal", (chosen[0].thing.animal,)), ("content", "content")):
        ours = batch.studio.denoise(batch.studio.noise([5]), ideas_blocks.words(batch, of, 2.0), 3)
        with rarelift.apply(model.pipe, alpha=2.0, tokens=tokens, branch="cond"):
            theirs = model.pipe(
                prompt=[chosen[0].text],
                generator=[torch.Generator().manual_seed(5)],
                output_type="latent",
                **{**model.defaults, "guidance_scale": guidance, "num_inference_steps": 3},
            ).images
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_common_prompts_have_no_rare_words(batch: studio.Batch) -> None:
    common = suite.prompts("common", 1, split="tune")[0]
    assert ideas_blocks._rare_words(common) == ()
    with pytest.raises(ValueError, match="for the suites rare and common alone"):
        ideas_blocks._rare_words(suite.prompts("texture", 1, split="tune")[0])


@torch.no_grad()
def test_the_whole_space_is_the_lift(batch: studio.Batch) -> None:
    """All components together are the deviation itself."""
    whole = batch.studio.denoise(batch.studio.noise([5, 6]), ideas_blocks.ramp(batch, "blocks", 1.5, 1.5), 3)
    for space, rank in (("principal", 32), ("whiten", 0), ("align", 0)):
        part = directions.directed(batch, space, 1.5, rank=rank)
        torch.testing.assert_close(batch.studio.denoise(batch.studio.noise([5, 6]), part, 3), whole, atol=2e-3, rtol=0)
