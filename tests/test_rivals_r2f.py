"""Rare-to-Frequent on real tiny pipelines: which prompt the transformer reads in which step, and the way back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from rarelift import prompts
from rarelift.menagerie.suite import prompts as menagerie_prompts
from rarelift.menagerie.world import ATTRIBUTES, Thing, caption, check_prompt
from rarelift.prompts import Prompt
from rarelift.rivals import make
from rarelift.rivals.access import around
from rarelift.rivals.base import UnsupportedPipelineError
from rarelift.rivals.rare_to_frequent import RareToFrequent, usual_animal, usual_attributes, written_by
from test_endpoint import Server, answer
from tiny_pipelines import LENGTH, NEGATIVE, flux, qwen_image, sd3

if TYPE_CHECKING:
    from pathlib import Path

RARE, OTHER = "a striped purple lion", "the pink crown"
FIRST, SECOND = "a red lion", "a striped lion"
STEPS = 10
SD3 = {"height": 16, "width": 16, "max_sequence_length": LENGTH, "num_inference_steps": STEPS, "output_type": "latent"}
FLUX = {**SD3, "height": 64, "width": 64}
CASES = {
    "SD3": (sd3, {**SD3, "guidance_scale": 1.0}),
    "SD3, guided": (sd3, {**SD3, "guidance_scale": 3.0}),
    "SD3, skipping layers": (
        sd3,
        {**SD3, "guidance_scale": 3.0, "skip_guidance_layers": [0], "skip_layer_guidance_stop": 0.5},
    ),
    "Flux": (flux, FLUX),
    "Flux, guided": (flux, {**FLUX, "true_cfg_scale": 3.0, "negative_prompt": [NEGATIVE] * 2}),
}


def asked(*texts: str) -> list[Prompt]:
    return [Prompt(f"p{i}", text, "single_property") for i, text in enumerate(texts)]


def made(which: str) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    build, call = CASES[which]
    pipe = build()
    pipe.set_progress_bar_config(disable=True)
    return pipe, call


def draw(pipe: Any, call: dict[str, Any], texts: list[str]) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(i) for i in range(len(texts))]
    return pipe(prompt=texts, generator=generators, return_dict=False, **call)[0]


def drawn(rival: RareToFrequent, pipe: Any, call: dict[str, Any], *texts: str) -> torch.Tensor:
    with rival.on(pipe, asked(*texts), call) as what:
        return draw(pipe, what.call, what.texts)


def state(pipe: Any) -> list[set[str]]:
    return [set(vars(o)) for o in (pipe, pipe.scheduler, *pipe.transformer.modules())]


@pytest.fixture
def mapping(tmp_path: Path) -> str:
    path = tmp_path / "mapping.json"
    phases = [{"frequent": SECOND, "level": 5}, {"frequent": FIRST, "until": 0.4}]  # in no order
    path.write_text(json.dumps({RARE: phases, OTHER: []}))
    return str(path)


def embeddings(pipe: Any, call: dict[str, Any], texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        found = pipe.encode_prompt(**dict.fromkeys(_prompts(pipe), texts), max_sequence_length=LENGTH)
    return found[0], found[2 if len(found) == 4 else 1]


def _prompts(pipe: Any) -> list[str]:
    return ["prompt", "prompt_2", "prompt_3"] if hasattr(pipe, "text_encoder_3") else ["prompt", "prompt_2"]


@pytest.mark.parametrize("which", CASES)
def test_the_prompts_take_turns(which: str, mapping: str) -> None:
    pipe, call = made(which)
    seen: list[tuple[float, torch.Tensor, torch.Tensor]] = []

    def spy(forward: Any, arguments: dict[str, Any]) -> Any:
        seen.append(
            (float(arguments["timestep"][0]), arguments["encoder_hidden_states"], arguments["pooled_projections"])
        )
        return forward(arguments)

    with around(pipe.transformer, spy):
        untouched = draw(pipe, call, [RARE, OTHER])
        before, seen[:] = list(seen), []
        touched = drawn(make("rare-to-frequent", {"mapping": mapping}), pipe, call, RARE, OTHER)  # type: ignore[arg-type]
    assert not torch.equal(untouched, touched)
    assert len(seen) == len(before)  # no further pass of the transformer
    turns = [FIRST, RARE, FIRST, RARE, SECOND, RARE, SECOND, RARE, RARE, RARE]  # until 4 and until 8 of 10
    times = sorted({time for time, *_ in seen}, reverse=True)
    assert len(times) == STEPS
    negative = {id(text) for _, text, _ in before[1::2]} if which == "Flux, guided" else set()
    changed = 0
    for (time, text, pooled), (_, own_text, own_pooled) in zip(seen, before, strict=True):
        expected, expected_pooled = own_text.clone(), own_pooled.clone()
        if id(own_text) not in negative:
            now = turns[times.index(time)]
            expected[-2:], expected_pooled[-2:] = embeddings(pipe, call, [now, OTHER])
            changed += now != RARE
        torch.testing.assert_close(text, expected)
        torch.testing.assert_close(pooled, expected_pooled)
    assert changed >= 4
    assert (changed > 4) == (which == "SD3, skipping layers")  # its further passes are of the same prompt


def test_steps_that_bfloat16_rounds_together(mapping: str) -> None:
    pipe, call = made("Flux")
    pipe.to(torch.bfloat16)
    times, texts = [], []

    def spy(forward: Any, arguments: dict[str, Any]) -> Any:
        times.append(float(arguments["timestep"][0]))
        texts.append(arguments["encoder_hidden_states"])
        return forward(arguments)

    with around(pipe.transformer, spy):
        drawn(RareToFrequent(mapping), pipe, {**call, "sigmas": [1.0, 0.9999, 0.5, 0.4]}, RARE)
    assert times[0] == times[1]
    own, frequent = (embeddings(pipe, call, [text])[0] for text in (RARE, FIRST))
    assert torch.equal(texts[0], frequent)
    assert torch.equal(texts[1], own)


def test_images_of_one_prompt_and_a_single_prompt(mapping: str) -> None:
    pipe, call = made("SD3, guided")
    rival, texts = RareToFrequent(mapping), [RARE, OTHER]
    generators = [torch.Generator().manual_seed(i) for i in range(4)]
    with rival.on(pipe, asked(*texts), call) as what:
        every = pipe(prompt=texts, num_images_per_prompt=2, generator=generators, return_dict=False, **what.call)[0]
    for i in range(4):
        generators = [torch.Generator().manual_seed(i)]
        with rival.on(pipe, asked(texts[i // 2]), call) as what:
            alone = pipe(prompt=texts[i // 2], generator=generators, return_dict=False, **what.call)[0]
        torch.testing.assert_close(every[i : i + 1], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("which", CASES)
def test_it_comes_off_exactly(which: str, mapping: str) -> None:
    pipe, call = made(which)
    before, attributes = draw(pipe, call, [RARE, OTHER]), state(pipe)
    rival = RareToFrequent(mapping)
    drawn(rival, pipe, call, RARE, OTHER)
    assert state(pipe) == attributes
    assert torch.equal(draw(pipe, call, [RARE, OTHER]), before)
    with pytest.raises(ZeroDivisionError), rival.on(pipe, asked(RARE, OTHER), call):
        raise ZeroDivisionError
    assert state(pipe) == attributes
    assert torch.equal(drawn(RareToFrequent(mapping, stop=0), pipe, call, RARE, OTHER), before)
    assert torch.equal(drawn(rival, pipe, call, OTHER, OTHER), draw(pipe, call, [OTHER, OTHER]))  # nothing rare


def test_what_is_left_open_ends_at_stop(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps({RARE: [{"frequent": FIRST}]}))
    pipe, call = made("SD3")
    (tmp_path / "n.json").write_text(json.dumps({RARE: [{"frequent": FIRST, "level": 2}]}))
    ours, level = RareToFrequent(str(tmp_path / "m.json"), stop=0.2), RareToFrequent(str(tmp_path / "n.json"))
    assert torch.equal(drawn(ours, pipe, call, RARE), drawn(level, pipe, call, RARE))


# ---------------------------------------------------------------- the Menagerie's mappings


def test_usual_things() -> None:
    rare = Thing("lion", "purple", "dotted", "hat", "desert")
    assert rare.tail == ("colour", "pattern", "wearable")
    assert usual_attributes(rare) == Thing("lion", "orange", "plain", "crown", "desert")
    # the hat is usual for foxes and pigs, the dots for pigs alone; purple is second for them
    assert usual_animal(rare) == Thing("pig", "purple", "dotted", "hat", "desert")
    assert usual_animal(Thing("lion", "orange", "checkered", "bow", "meadow")).animal == "rabbit"
    common = Thing("lion", "orange", "plain", "crown", "desert")
    assert usual_attributes(common) == usual_animal(common) == common


@pytest.mark.parametrize("suite", ["common", "rare", "never", "property", "texture"])
def test_menagerie_prompts_have_frequent_ones_that_the_model_reads(suite: Any) -> None:
    known = None
    for prompt in prompts.load(f"menagerie-{suite}", limit=60, split="tune").prompts:
        for mapping in ("menagerie", "menagerie-animal"):
            phases = RareToFrequent(mapping, stop=0.3)._phases(prompt, known)
            assert len(phases) == (suite != "common")
            for phase in phases:
                check_prompt(phase.text)
                assert phase.until == 0.3
                same = [a for a in ATTRIBUTES if str(prompt.meta[a]) in phase.text]
                assert ("animal" in same) == (mapping == "menagerie")
    drawn_now = menagerie_prompts("rare", 1, split="tune")[0]
    prompt = prompts.load("menagerie-rare", limit=1, split="tune").prompts[0]
    (phase,) = RareToFrequent("menagerie")._phases(prompt, None)
    assert phase.text in [caption(usual_attributes(drawn_now.thing), p) for p in range(4)]


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"stop": 1.5}, "stop must be a share of the steps from 0 to 1, got 1.5"),
        ({"stop": True}, "stop must be a share"),
        ({"mapping": 3}, "'menagerie', 'menagerie-animal' or the path"),
        ({"stops": 1}, "Did you mean 'stop'"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make("rare-to-frequent", settings)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "holds a list"),
        ('{"a": {}}', "should hold a list"),
        ('{"a": [{"level": 1}]}', "should hold"),
        ('{"a": [{"frequent": "b", "level": 6}]}', "level must be 1 to 5, got 6"),
        ('{"a": [{"frequent": "b", "level": 1, "until": 0.1}]}', "until or level"),
        ('{"a": [{"frequent": "b", "stage": 1}]}', "until or level"),
        ('{"a": [{"frequent": "b", "until": 20}]}', "from 0 to 1, got 20"),
    ],
)
def test_wrong_mappings_are_found_before_anything_is_drawn(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=said):
        RareToFrequent(str(path)).prepare(None)  # type: ignore[arg-type]


def test_wrong_calls(mapping: str) -> None:
    pipe, call = made("SD3")
    draw(pipe, call, [RARE])  # sets what a pipeline keeps of a call
    rival, attributes = RareToFrequent(mapping), state(pipe)
    with pytest.raises(ValueError, match="maps 2 prompts, and 'a crown' is not among them"):
        drawn(rival, pipe, call, "a crown")
    with pytest.raises(ValueError, match="for Menagerie prompts, and 'a striped purple lion' has no animal"):
        drawn(RareToFrequent(), pipe, call, RARE)
    with pytest.raises(RuntimeError, match="never called"), rival.on(pipe, asked(RARE), call):
        pass
    with pytest.raises(ValueError, match="for 1 prompts, and got 2"), rival.on(pipe, asked(RARE), call):
        draw(pipe, call, [RARE, OTHER])
    text, pooled = embeddings(pipe, call, [RARE])
    with pytest.raises(ValueError, match="pass prompt, not prompt_embeds"), rival.on(pipe, asked(RARE), call):
        pipe(prompt_embeds=text, pooled_prompt_embeds=pooled, **call)
    assert state(pipe) == attributes


def test_unsupported_pipelines(mapping: str) -> None:
    rival = RareToFrequent(mapping)
    with pytest.raises(UnsupportedPipelineError, match="QwenImage"), rival.on(qwen_image(), asked(RARE), {}):
        pass
    pipe, _ = made("SD3")
    pipe.transformer.compile(backend="eager")
    with pytest.raises(UnsupportedPipelineError, match="compiled"), rival.on(pipe, asked(RARE), {}):
        pass


def test_the_manifest_tells_mappings_apart(mapping: str, tmp_path: Path) -> None:
    before = RareToFrequent(mapping).to_dict()
    assert before["rival"] == "rare-to-frequent"
    with open(mapping, "w") as file:
        file.write("{}")
    assert RareToFrequent(mapping).to_dict()["mapping_digest"] != before["mapping_digest"]
    assert RareToFrequent().to_dict() == {"rival": "rare-to-frequent", "mapping": "menagerie-animal", "stop": 0.4}


# ---------------------------------------------------------------- a language model that makes the mapping


def test_a_model_writes_a_mapping(server: Server, tmp_path: Path) -> None:
    rows = [{"frequent": FIRST, "level": 2}]
    server.replies = [answer(f"<think>[hm]</think>Here it is:\n```json\n{json.dumps(rows)}\n```"), answer("[]")]
    found = written_by(f"{server.url}#m", [RARE, OTHER])
    assert found == {RARE: rows, OTHER: []}
    assert f"Description: {RARE}" in server.requests[0][1]["messages"][0]["content"]
    (tmp_path / "m.json").write_text(json.dumps(found))
    RareToFrequent(str(tmp_path / "m.json")).prepare(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("said", ["I cannot", "[1]", '[{"frequent": "b", "level": 9}]'])
def test_a_model_writes_something_else(server: Server, said: str) -> None:
    server.replies = [answer(said)]
    with pytest.raises(RuntimeError, match=f"no mapping for the prompt '{RARE}'"):
        written_by(f"{server.url}#m", [RARE])
