"""Attend-and-Excite on real tiny pipelines, against an update that is worked out here, with attention by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rarelift.prompts import Prompt
from rarelift.rivals import make
from rarelift.rivals.access import around
from rarelift.rivals.attend_excite import AttendExcite, neglect, shares, smooth
from rarelift.rivals.base import UnsupportedPipelineError
from tiny_pipelines import LENGTH, NEGATIVE, flux, flux_kontext, picture, qwen_image, sd3

if TYPE_CHECKING:
    from collections.abc import Sequence

PROMPTS = ("a striped purple lion", "the pink crown of an ugly blue lion")
STEPS = 5
SD3 = {"height": 16, "width": 24, "max_sequence_length": LENGTH, "num_inference_steps": STEPS, "output_type": "latent"}
FLUX = {**SD3, "height": 64, "width": 96}
CASES = {
    "SD3": (sd3, {**SD3, "guidance_scale": 1.0}),
    "SD3, guided": (sd3, {**SD3, "guidance_scale": 3.0}),
    "Flux": (flux, FLUX),
    "Flux, guided": (flux, {**FLUX, "true_cfg_scale": 3.0, "negative_prompt": [NEGATIVE] * 2}),
}
# by hand: a token a word and no begin; SD3 has the words in CLIP's twelve positions and again in T5's
PLACES = {"striped": 1, "purple": 2, "lion": 3}, {"pink": 1, "crown": 2, "ugly": 5, "blue": 6, "lion": 7}
SPOKEN = 4, 8
GRIDS = {"SD3": (4, 6), "Flux": (4, 6)}
PLAIN = AttendExcite(scale=3.0, refinements=0)


def made(which: str) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    build, call = CASES[which]
    pipe = build()
    pipe.set_progress_bar_config(disable=True)
    for parameter in pipe.transformer.parameters():  # sharp enough for words to differ
        parameter.data.mul_(1.5)
    return pipe, call


def draw(pipe: Any, call: dict[str, Any], texts: Sequence[str] = PROMPTS, first: int = 0) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(first + i) for i in range(len(texts))]
    return pipe(prompt=list(texts), generator=generators, return_dict=False, **call)[0]


def drawn(rival: AttendExcite, pipe: Any, call: dict[str, Any], texts: Sequence[str] = PROMPTS, first: int = 0) -> Any:
    with rival.on(pipe, [Prompt(f"p{i}", t, "single_property") for i, t in enumerate(texts)], call) as asked:
        assert asked.texts == list(texts)
        return draw(pipe, asked.call, asked.texts, first)


def state(pipe: Any) -> list[set[str]]:
    return [set(vars(o)) for o in (pipe, pipe.scheduler, *pipe.transformer.modules())]


def spied(
    pipe: Any, call: dict[str, Any], rival: AttendExcite | None, texts: Sequence[str] = PROMPTS, first: int = 0
) -> tuple[list[dict[str, Any]], torch.Tensor]:
    """The arguments of every pass of the transformer, and what is drawn."""
    seen: list[dict[str, Any]] = []

    def spy(forward: Any, arguments: dict[str, Any]) -> Any:
        seen.append({**arguments, "grad": torch.is_grad_enabled()})
        return forward(arguments)

    with around(pipe.transformer, spy):
        latents = draw(pipe, call, texts, first) if rival is None else drawn(rival, pipe, call, texts, first)
    return seen, latents


# ---------------------------------------------------------------- the maths


def by_loops(attended: Any, words: list[list[list[int]]], spoken: list[list[int]], grid: Any, sharpness: float) -> Any:
    """`neglect` without a tensor operation."""
    losses = []
    for a, tokens_of, said in zip(attended.tolist(), words, spoken, strict=True):
        losses.append(0.0)
        for tokens in tokens_of:
            place = np.zeros(grid)
            for p, row in enumerate(a):
                whole = sum(math.exp(sharpness * row[j]) for j in said) if sharpness else 1.0
                each = [math.exp(sharpness * row[j]) if sharpness else row[j] for j in tokens]
                place[divmod(p, grid[1])] = sum(each) / whole
            smoothed = np.zeros(grid)
            edge = np.pad(place, 1, mode="reflect")
            weight = {(i, j): math.exp(-2 * (i * i + j * j)) for i in (-1, 0, 1) for j in (-1, 0, 1)}  # 1/(2 0.5^2)
            for y in range(grid[0]):
                for x in range(grid[1]):
                    total = sum(w * edge[y + 1 + i, x + 1 + j] for (i, j), w in weight.items())
                    smoothed[y, x] = total / sum(weight.values())
            losses[-1] = max(losses[-1], 1 - smoothed.max())
    return losses


@pytest.mark.parametrize("sharpness", [0.0, 7.0])
def test_neglect(sharpness: float) -> None:
    attended = torch.rand(2, 12, 6).softmax(-1)
    tokens: list[list[list[int]]] = [[[0], [1, 4]], [[2], [3], [5]]]
    said = [[0, 1, 2, 4], [1, 2, 3, 5]]
    words, spoken = torch.zeros(2, 3, 6), torch.zeros(2, 6)
    for b in range(2):
        spoken[b, said[b]] = 1
        for w, where in enumerate(tokens[b]):
            words[b, w, where] = 1
    found = neglect(attended, words, spoken, (3, 4), sharpness)
    expected = by_loops(attended, tokens, said, (3, 4), sharpness)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))


def test_smoothing_keeps_what_is_even() -> None:
    torch.testing.assert_close(smooth(torch.full((1, 2, 3, 5), 0.25)), torch.full((1, 2, 3, 5), 0.25))


@pytest.mark.parametrize("over", ["text", "all"])
def test_shares(over: str) -> None:
    query, key = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 9, 8)
    found = shares(query, key, 0.5, slice(2, 7), over)
    whole = torch.einsum("bhpd,bhkd->bhpk", query, key).mul(0.5).exp()
    of = whole[..., 2:7] if over == "text" else whole
    torch.testing.assert_close(found, (whole[..., 2:7] / of.sum(-1, keepdim=True)).mean(1))


# ---------------------------------------------------------------- the update, by hand


def reference(pipe: Any, model: str, arguments: dict[str, Any], rows: list[int], x: torch.Tensor, rival: Any) -> Any:
    """Losses of some samples and the gradient by their latents `x`, from attention written out as a matrix."""
    maps: list[torch.Tensor] = []
    length = 2 * LENGTH if model == "SD3" else LENGTH

    def written_out(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
        weights = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)
        if query.shape[2] != length + math.prod(GRIDS[model]):  # the image alone
            return weights @ value
        text = slice(-length, None) if model == "SD3" else slice(0, length)
        image = slice(0, -length) if model == "SD3" else slice(length, None)
        seen = weights[:, :, image, text]
        maps.append((seen / seen.sum(-1, keepdim=True) if rival.over == "text" else seen).mean(1))
        return weights @ value

    x = x.clone().requires_grad_()
    some = {}
    for name in ("encoder_hidden_states", "pooled_projections", "timestep", "guidance"):
        if isinstance(arguments.get(name), torch.Tensor):
            some[name] = arguments[name][-2:][rows]
    with pytest.MonkeyPatch.context() as patch, torch.enable_grad():
        patch.setattr(F, "scaled_dot_product_attention", written_out)
        passed = {k: v for k, v in arguments.items() if k != "grad"}
        pipe.transformer(**{**passed, **some, "hidden_states": x})
        chosen = maps if rival.blocks is None else [maps[i] for i in rival.blocks]
        attended = torch.stack(chosen).mean(0)
        losses = []
        for b, row in enumerate(rows):
            parts = (0, LENGTH) if model == "SD3" else (0,)
            said = [part + i for part in parts for i in range(SPOKEN[row])]
            each = (rival.sharpness * attended[b][:, said]).softmax(-1)
            peaks = []
            for place in PLACES[row].values():
                map_ = sum(each[:, said.index(part + place)] for part in parts)
                peaks.append(smooth(map_.view(1, 1, *GRIDS[model])).max())
            losses.append(max(1 - peak for peak in peaks))
        (slope,) = torch.autograd.grad(torch.stack(losses).sum(), x)
    return [float(loss.detach()) for loss in losses], slope


def test_smoothing_of_the_reference() -> None:
    spike = torch.zeros(1, 1, 5, 5)
    spike[0, 0, 2, 2] = 1
    side = np.exp(-2 * np.arange(-1.0, 2) ** 2)
    np.testing.assert_allclose(smooth(spike)[0, 0, 1:4, 1:4], np.outer(side, side) / side.sum() ** 2, rtol=1e-5)


@pytest.mark.parametrize("which", CASES)
@pytest.mark.parametrize("changes", [{}, {"over": "all", "sharpness": 40.0, "blocks": (0, -1)}], ids=["plain", "other"])
def test_one_update(which: str, changes: dict[str, Any]) -> None:
    pipe, call = made(which)
    rival, model = replace(PLAIN, **changes), which.split(",")[0]
    before, _ = spied(pipe, call, None)
    seen, _ = spied(pipe, call, rival)
    latents = before[0]["hidden_states"][-2:]
    _, slope = reference(pipe, model, before[0], [0, 1], latents, rival)
    assert slope.abs().amax((1, *range(2, slope.ndim))).min() > 1e-4
    expected = latents - rival.scale * slope
    moved = [arguments["hidden_states"] for arguments in seen if not arguments["grad"]]
    torch.testing.assert_close(moved[0][-2:], expected, rtol=1e-4, atol=1e-5)
    if which == "SD3, guided":
        assert torch.equal(moved[0][:2], moved[0][2:])
    if which == "Flux, guided":
        assert torch.equal(moved[0], moved[1])
    extra = [arguments for arguments in seen if arguments["grad"]]
    assert len(extra) == 3  # one in each step that is early: 0, 1 and 2 of 5, below 2.5
    assert all(len(arguments["hidden_states"]) == 2 for arguments in extra)  # the conditional half alone


def test_the_scheduler_goes_on_from_the_update_and_its_size_decays() -> None:
    pipe, call = made("SD3")
    seen, end = spied(pipe, call, replace(PLAIN, stop=1.0))
    passes = [arguments for arguments in seen if not arguments["grad"]]
    sigmas = pipe.scheduler.sigmas
    for i in range(STEPS):
        with torch.no_grad():
            x = passes[i]["hidden_states"]
            velocity = pipe.transformer(**{k: v for k, v in passes[i].items() if k != "grad"})[0]
            after = x + (sigmas[i + 1] - sigmas[i]) * velocity
        if i + 1 == STEPS:
            torch.testing.assert_close(end, after)
            break
        _, slope = reference(pipe, "SD3", passes[i + 1], [0, 1], after, PLAIN)
        size = 3.0 * [1, math.sqrt(0.875), math.sqrt(0.75), math.sqrt(0.625), math.sqrt(0.5)][i + 1]
        torch.testing.assert_close(passes[i + 1]["hidden_states"], after - size * slope, rtol=1e-3, atol=1e-4)


def test_refinement() -> None:
    """Each sample is moved until its own loss is low enough, then once more, as the others are."""
    pipe, call = made("SD3, guided")
    before, _ = spied(pipe, call, None)
    x = before[0]["hidden_states"][-2:]
    first, _ = reference(pipe, "SD3", before[0], [0, 1], x, PLAIN)
    assert abs(first[0] - first[1]) > 1e-3
    threshold = 1 - (first[0] + first[1]) / 2  # one has reached it from the start
    rival = replace(PLAIN, refinements=3, thresholds=(threshold, 0.0, 0.0))
    expected, times = x.clone(), [0, 0]
    for row in range(2):
        for _ in range(3):
            (loss,), slope = reference(pipe, "SD3", before[0], [row], expected[row : row + 1], rival)
            if loss <= 1 - threshold:
                break
            expected[row] -= 3.0 * slope[0]
            times[row] += 1
        _, slope = reference(pipe, "SD3", before[0], [row], expected[row : row + 1], rival)
        expected[row] -= 3.0 * slope[0]
    assert sorted(map(bool, times)) == [False, True]
    seen, _ = spied(pipe, call, rival)
    assert [len(a["hidden_states"]) for a in seen[: 2 + max(times)]] == [2, *[1] * max(times), 4]
    torch.testing.assert_close(seen[1 + max(times)]["hidden_states"][-2:], expected, rtol=1e-3, atol=1e-4)


def test_thresholds_come_at_their_times() -> None:
    pipe, call = made("SD3")
    call = {**call, "num_inference_steps": 10}
    for thresholds, extra in (
        ((1.0, 0.0, 0.0), [3, 1, 1, 1, 1]),
        ((0.0, 1.0, 0.0), [1, 1, 3, 1, 1]),
        ((0.0, 0.0, 1.0), [1, 1, 1, 1, 3]),
    ):
        seen, _ = spied(pipe, call, replace(PLAIN, thresholds=thresholds, refinements=2))
        count, found = 0, []
        for arguments in seen:
            count += arguments["grad"]
            if not arguments["grad"]:
                found.append(count)
                count = 0
        assert found == [*extra, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("which", CASES)
def test_samples_do_not_see_each_other(which: str) -> None:
    pipe, call = made(which)
    rival = replace(PLAIN, refinements=2)
    both = drawn(rival, pipe, call)
    for i, text in enumerate(PROMPTS):
        one = {**call, "negative_prompt": [NEGATIVE]} if "negative_prompt" in call else call
        torch.testing.assert_close(both[i : i + 1], drawn(rival, pipe, one, [text], i), rtol=1e-3, atol=1e-3)


def test_the_loss_falls() -> None:
    pipe, call = made("SD3")
    before, _ = spied(pipe, call, None)
    x = before[0]["hidden_states"][-2:]
    seen, _ = spied(pipe, call, replace(PLAIN, scale=0.5, refinements=15, thresholds=(1.0, 0.0, 0.0)))
    moved = next(arguments for arguments in seen if not arguments["grad"])["hidden_states"]
    was, _ = reference(pipe, "SD3", before[0], [0, 1], x, PLAIN)
    now, _ = reference(pipe, "SD3", before[0], [0, 1], moved, PLAIN)
    assert all(b < a for a, b in zip(was, now, strict=True))


def test_phrases_and_images_of_one_prompt() -> None:
    pipe, call = made("SD3, guided")
    named = replace(PLAIN, words=("striped", "purple", "lion"))
    assert torch.equal(drawn(named, pipe, call, PROMPTS[:1]), drawn(PLAIN, pipe, call, PROMPTS[:1]))
    one = replace(PLAIN, words="purple lion")
    assert one.words == ("purple lion",)
    assert not torch.equal(drawn(one, pipe, call, PROMPTS[:1]), drawn(PLAIN, pipe, call, PROMPTS[:1]))
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    with PLAIN.on(pipe, [Prompt("p", PROMPTS[0], "k")], call):
        both = pipe(PROMPTS[0], num_images_per_prompt=2, generator=generators, return_dict=False, **call)[0]
    torch.testing.assert_close(both[1:], drawn(PLAIN, pipe, call, PROMPTS[:1], 1), rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------- on and off


@pytest.mark.parametrize("which", CASES)
def test_it_comes_off_exactly(which: str) -> None:
    pipe, call = made(which)
    before, attributes = draw(pipe, call), state(pipe)
    assert not torch.equal(drawn(PLAIN, pipe, call), before)
    assert state(pipe) == attributes
    assert torch.equal(draw(pipe, call), before)
    assert all(parameter.grad is None for parameter in pipe.transformer.parameters())
    for neutral in (replace(PLAIN, scale=0), replace(PLAIN, stop=0)):
        seen, same = spied(pipe, call, neutral)
        assert torch.equal(same, before)
        assert not any(arguments["grad"] for arguments in seen)

    def fail(forward: Any, arguments: dict[str, Any]) -> Any:
        raise ZeroDivisionError

    with around(pipe.transformer, fail), pytest.raises(ZeroDivisionError):
        drawn(PLAIN, pipe, call)
    assert state(pipe) == attributes
    assert torch.equal(draw(pipe, call), before)


def test_half_precision_and_inference_mode() -> None:
    pipe, call = made("SD3, guided")
    expected = drawn(PLAIN, pipe, call)
    with torch.inference_mode():
        torch.testing.assert_close(drawn(PLAIN, pipe, call), expected)
    pipe.to(torch.bfloat16)
    half = drawn(PLAIN, pipe, call)
    assert half.dtype == torch.bfloat16
    assert half.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scale": -1}, "scale must be at least 0, got -1"),
        ({"scale": "much"}, "scale must be at least 0, got 'much'"),
        ({"stop": 2}, "stop must be from 0 to 1, got 2"),
        ({"thresholds": (0.1, 0.2)}, "thresholds must be 3 numbers"),
        ({"thresholds": 0.1}, "thresholds must be 3 numbers"),
        ({"thresholds": (0.1, 0.2, 3)}, "thresholds must be from 0 to 1, got 3"),
        ({"refinements": 1.5}, "refinements must be a whole number"),
        ({"over": "texts"}, "Did you mean 'text'"),
        ({"words": 3}, "words must be 'content', a phrase"),
        ({"words": ()}, "words must be"),
        ({"blocks": "5-3"}, "does not count upwards"),
        ({"sharpnes": 1}, "Did you mean 'sharpness'"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make("attend-excite", settings)


def test_settings_of_the_command_line() -> None:
    from rarelift.bench.runs import Method

    method = Method.parse("attend-excite:thresholds=0.1+0.2+0.3,blocks=0-1+-1,words=lion,scale=2")
    assert method.settings == AttendExcite(("lion",), 2.0, thresholds=(0.1, 0.2, 0.3), blocks=(0, 1, -1))
    cost = PLAIN.cost({"num_inference_steps": 16, "guidance_scale": 5.0})
    assert cost.forwards == cost.backwards == 0.25
    assert AttendExcite().cost({"num_inference_steps": 16}).forwards == (8 + 60) / 16


def test_wrong_calls() -> None:
    pipe, call = made("SD3")
    draw(pipe, call)
    attributes, prompt = state(pipe), [Prompt("p", PROMPTS[0], "k")]
    with pytest.raises(ValueError, match="has the blocks 0 to 2, so there is no block 7"):
        drawn(replace(PLAIN, blocks=(7,)), pipe, call)
    with pytest.raises(ValueError, match="the phrase 'crown', which is not in the prompt"):
        drawn(replace(PLAIN, words="crown"), pipe, call, PROMPTS[:1])
    with pytest.raises(ValueError, match="the prompt 'a the' has no word to look for"):
        drawn(PLAIN, pipe, call, ["a the"])
    with pytest.raises(RuntimeError, match="never called"), PLAIN.on(pipe, prompt, call):
        pass
    with torch.no_grad():
        text, _, pooled, _ = pipe.encode_prompt(*[PROMPTS[0]] * 3, max_sequence_length=LENGTH)
    with pytest.raises(ValueError, match="pass prompt, not prompt_embeds"), PLAIN.on(pipe, prompt, call):
        pipe(prompt_embeds=text, pooled_prompt_embeds=pooled, **call)
    assert state(pipe) == attributes


def test_unsupported_pipelines() -> None:
    prompt = [Prompt("p", PROMPTS[0], "k")]
    with pytest.raises(UnsupportedPipelineError, match="QwenImage"), PLAIN.on(qwen_image(), prompt, {}):
        pass
    pipe, call = made("SD3")
    pipe.transformer.compile(backend="eager")
    with pytest.raises(UnsupportedPipelineError, match="compiled"), PLAIN.on(pipe, prompt, call):
        pass
    edit = flux_kontext()
    edit.set_progress_bar_config(disable=True)
    how = {"num_inference_steps": 2, "height": 64, "width": 64, "max_sequence_length": LENGTH}
    how |= {"max_area": 4096, "_auto_resize": False}
    with pytest.raises(UnsupportedPipelineError, match="more than the picture's latents"), PLAIN.on(edit, prompt, {}):
        edit(picture(), PROMPTS[0], **how)
    assert not {"step"} & set(vars(edit.scheduler))
