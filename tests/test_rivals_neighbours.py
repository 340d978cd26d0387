"""Methods that act on the text, against their equations written a second time."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rarelift import prompts as suites
from rarelift.menagerie.world import PHRASINGS, Thing, caption
from rarelift.prompts import Prompt
from rarelift.rivals.neighbours import DoubleText, EncoderSpread, Reinject, Taca, WordWeights, _matched, rare_words
from rival_cases import MODES, TEXTS, asked, call, draw_with
from tiny_pipelines import LENGTH, NEGATIVE, PIPELINES, Call, draw

if TYPE_CHECKING:
    from collections.abc import Callable

# ---------------------------------------------------------------- what the text encoders gave

SEGMENTS = {"SD3": 2, "Flux": 1}  # each of LENGTH tokens


def encode(pipe: Any, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Token and pooled embeddings, prompts one by one."""
    more = {"prompt_3": None, "do_classifier_free_guidance": False} if "3Pipeline" in type(pipe).__name__ else {}
    made = [pipe.encode_prompt(t, prompt_2=None, max_sequence_length=LENGTH, **more) for t in texts]
    pooled = 2 if more else 1
    return torch.cat([m[0] for m in made]), torch.cat([m[pooled] for m in made])


def draw_from(pipe: Any, arguments: Call, cond: Callable[[Tensor], Tensor], uncond: Callable[[Tensor], Tensor]) -> Any:
    """The latents of embeddings that were changed by hand."""
    embeds, pooled = encode(pipe, arguments["prompt"])
    given = {"prompt_embeds": cond(embeds), "pooled_prompt_embeds": pooled}
    if "negative_prompt" in arguments:
        embeds, pooled = encode(pipe, arguments["negative_prompt"])
        given |= {"negative_prompt_embeds": uncond(embeds), "negative_pooled_prompt_embeds": pooled}
    return draw(pipe, {k: v for k, v in arguments.items() if "prompt" not in k} | given)


def same(embeds: Tensor) -> Tensor:
    return embeds


@pytest.mark.parametrize(("kind", "guided"), MODES)
@pytest.mark.parametrize("branch", ["cond", "both"])
def test_encoder_spread_is_its_equation(kind: str, guided: bool, branch: str) -> None:
    pipe, arguments = PIPELINES[kind].pipe(), call(kind, guided)

    def spread(texts: tuple[str, ...]) -> Callable[[Tensor], Tensor]:
        def changed(embeds: Tensor) -> Tensor:
            embeds = embeds.clone()
            for row, text in enumerate(texts):
                for segment in range(SEGMENTS[kind]):
                    active = slice(
                        segment * LENGTH, segment * LENGTH + len(text.split()) + 1
                    )  # a word a token, the end
                    mean = embeds[row, active].mean(0)
                    embeds[row, active] = mean + (embeds[row, active] - mean) * 2.5
            return embeds

        return changed

    expected = draw_from(pipe, arguments, spread(TEXTS), spread((NEGATIVE,) * 2) if branch == "both" else same)
    made = draw_with(pipe, EncoderSpread(alpha=2.5, branch=branch), arguments)
    assert torch.allclose(made, expected, atol=1e-4)


@pytest.mark.parametrize(("kind", "guided"), MODES)
@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_word_weights_are_their_equation(kind: str, guided: bool, weight: float) -> None:
    pipe, arguments = PIPELINES[kind].pipe(), call(kind, guided)
    empty = encode(pipe, [""])[0][0]
    little = {"a", "the", "of", "an"}

    def changed(embeds: Tensor) -> Tensor:
        embeds = embeds.clone()
        for row, text in enumerate(TEXTS):
            for segment in range(SEGMENTS[kind]):
                for i, word in enumerate(text.split()):
                    at = segment * LENGTH + i
                    if word not in little:
                        embeds[row, at] = empty[at] + weight * (embeds[row, at] - empty[at])
        return embeds

    made = draw_with(pipe, WordWeights(weight=weight), arguments)
    assert torch.allclose(made, draw_from(pipe, arguments, changed, same), atol=1e-4)


def test_several_pictures_of_a_prompt_are_weighed_alike() -> None:
    pipe = PIPELINES["SD3"].pipe()
    arguments = call("SD3", True)
    arguments |= {"generator": [torch.Generator().manual_seed(i) for i in (0, 0, 1, 1)], "num_images_per_prompt": 2}
    for rival in (WordWeights(2), EncoderSpread(2)):
        made = draw_with(pipe, rival, arguments)
        assert torch.allclose(made[0], made[1], atol=1e-5)
        assert torch.allclose(made[2], made[3], atol=1e-5)
        assert not torch.allclose(made[0], made[2], atol=1e-2)


def test_phrases_are_words_of_every_prompt() -> None:
    pipe, arguments = PIPELINES["SD3"].pipe(), call("SD3", True)
    assert not torch.equal(draw_with(pipe, WordWeights(2, ("lion",)), arguments), draw(pipe, arguments))
    with pytest.raises(ValueError, match="'striped'.*not in the prompt"):
        draw_with(pipe, WordWeights(2, ("striped",)), arguments)


def test_embeddings_without_words_are_refused() -> None:
    pipe, arguments = PIPELINES["SD3"].pipe(), call("SD3", False)
    embeds, pooled = encode(pipe, arguments["prompt"])
    prompts, rest = asked(arguments)
    given = rest | {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled, "generator": arguments["generator"]}
    for rival in (EncoderSpread(), WordWeights()):
        with pytest.raises(ValueError, match="brings prompt_embeds; give prompt"), rival.on(pipe, prompts, rest):
            draw(pipe, given)


def menagerie(thing: Thing, phrasing: int) -> Prompt:
    names = ("animal", "colour", "pattern", "wearable", "scene")
    meta = dict(zip(names, astuple(thing), strict=True))
    return Prompt("m", caption(thing, phrasing), "single_complex", meta=meta)


def test_rare_words_are_those_of_the_unusual_attributes() -> None:
    rare = Thing("panda", "purple", "striped", "crown", "night")
    assert rare_words(menagerie(rare, 0)) == ("purple", "striped", "crown", "night")
    assert rare_words(menagerie(rare, 3)) == ("purple", "stripes", "crown", "night")
    assert rare_words(menagerie(Thing("panda", "gray", "dotted", "hat", "snow"), 1)) == ("top", "hat")
    assert rare_words(menagerie(Thing("panda", "gray", "dotted", "nothing", "snow"), 1)) == ()
    for suite in ("rare", "never", "texture", "property"):
        for prompt in suites.load(f"menagerie-{suite}", limit=64, split="tune").prompts:
            words = rare_words(prompt)
            thing = Thing(*(prompt.meta[a] for a in ("animal", "colour", "pattern", "wearable", "scene")))
            named = [a for a in thing.tail if (a, getattr(thing, a)) != ("wearable", "nothing")]
            assert len(words) == len(named) + ("top" in words)
    with pytest.raises(ValueError, match="reads the meta of Menagerie prompts, and 'p' has none"):
        rare_words(Prompt("p", "a lion", "single_complex"))
    strange = menagerie(rare, 0)
    with pytest.raises(ValueError, match="knows the wordings of the Menagerie"):
        rare_words(Prompt("m", "one purple panda", "single_complex", meta=strange.meta))
    assert PHRASINGS == 4


def test_the_oracle_weighs_the_rare_words_of_each_prompt() -> None:
    pipe, arguments = PIPELINES["SD3"].pipe(), call("SD3", True)
    things = (
        Thing("panda", "purple", "striped", "headphones", "snow"),
        Thing("panda", "gray", "dotted", "nothing", "snow"),
    )
    prompts = [menagerie(thing, 0) for thing in things]
    arguments["prompt"] = [prompt.text for prompt in prompts]
    rest = {k: v for k, v in arguments.items() if k not in ("prompt", "generator")}
    untouched = draw(pipe, arguments)
    with WordWeights(3, "rare").on(pipe, prompts, rest) as wanted:
        made = draw(pipe, {**arguments, "prompt": wanted.texts})
    assert not torch.allclose(made[0], untouched[0], atol=1e-3)
    assert torch.equal(made[1], untouched[1])  # nothing about it is rare


# ---------------------------------------------------------------- the text stream between blocks


def draw_changed(pipe: Any, arguments: Call, change: Callable[[int, Tensor], Tensor]) -> Tensor:
    """The latents with `change(block, text)` in place of the text that a block gets."""
    blocks = [*pipe.transformer.transformer_blocks, *getattr(pipe.transformer, "single_transformer_blocks", ())]

    def before(i: int) -> Callable[..., Any]:
        def hook(_module: Any, args: Any, kwargs: Call) -> Any:
            return args, {**kwargs, "encoder_hidden_states": change(i, kwargs["encoder_hidden_states"])}

        return hook

    with ExitStack() as stack:
        for i, block in enumerate(blocks):
            stack.callback(block.register_forward_pre_hook(before(i), with_kwargs=True).remove)
        return draw(pipe, arguments)


@pytest.mark.parametrize(("kind", "guided"), MODES)
@pytest.mark.parametrize("blocks", [(0,), (1, 2), None])
def test_double_text_is_its_equation(kind: str, guided: bool, blocks: tuple[int, ...] | None) -> None:
    pipe, arguments = PIPELINES[kind].pipe(), call(kind, guided)
    expected = draw_changed(pipe, arguments, lambda i, c: 2 * c if blocks is None or i in blocks else c)
    assert torch.equal(draw_with(pipe, DoubleText(2, blocks), arguments), expected)


@pytest.mark.parametrize("kind", ["SD3", "Flux"])
def test_double_text_does_nothing_before_the_last_block(kind: str) -> None:
    """As its docstring says: the block normalises its text, and nobody reads what it makes of it."""
    pipe, arguments = PIPELINES[kind].pipe(), call(kind, False)
    untouched = draw(pipe, arguments)
    shift = (draw_with(pipe, DoubleText(2, -1), arguments) - untouched).abs().max()
    assert shift < 1e-2 * (draw_with(pipe, DoubleText(2, 0), arguments) - untouched).abs().max()


@pytest.mark.parametrize(("kind", "guided"), MODES)
@pytest.mark.parametrize("match", [False, True])
def test_reinject_is_its_equation(kind: str, guided: bool, match: bool) -> None:
    pipe, arguments = PIPELINES[kind].pipe(), call(kind, guided)
    first, last = (1, 2)
    kept: dict[str, Tensor] = {}

    def norm(x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / x.var(-1, correction=0, keepdim=True).sqrt()

    def change(i: int, c: Tensor) -> Tensor:
        if i == 0:
            kept["c"] = c
        if not first <= i <= last:
            return c
        if not match:
            return c + 3 * kept["c"]
        return c.std(-1, keepdim=True) * norm(norm(c) + 3 * norm(kept["c"])) + c.mean(-1, keepdim=True)

    rival = Reinject(origin=0, first=first, last=last, weight=3, match=match)
    made = draw_with(pipe, rival, arguments)
    assert torch.allclose(made, draw_changed(pipe, arguments, change), atol=1e-5)
    assert not torch.allclose(made, draw(pipe, arguments), atol=1e-3)


def test_what_is_matched_keeps_the_mean_and_deviation_of_each_token() -> None:
    """Which no picture shows: blocks normalise the mean away."""
    text, early = torch.randn(2, 3, 16) * 5 + 2, torch.randn(2, 3, 16) * 100 - 7
    mixed = _matched(text, early, 0.5)
    assert torch.allclose(mixed.mean(-1), text.mean(-1), atol=1e-4)
    assert torch.allclose(mixed.std(-1), text.std(-1), rtol=0.05)
    assert _matched(text.bfloat16(), early.bfloat16(), 0.5).dtype is torch.bfloat16


def test_reinject_wants_its_blocks_in_order() -> None:
    pipe, arguments = PIPELINES["SD3"].pipe(), call("SD3", False)
    with pytest.raises(ValueError, match="of 3 blocks they are 2, 2 and 2"):
        draw_with(pipe, Reinject(origin=2), arguments)
    with pytest.raises(ValueError, match="there is no block 3"):
        draw_with(pipe, Reinject(last=3), arguments)


# ---------------------------------------------------------------- how the image attends to the text


@pytest.mark.parametrize(("kind", "guided"), MODES)
@pytest.mark.parametrize(("threshold", "steps"), [(970, 1), (400, 2), (0, 3)])
def test_taca_is_its_equation(
    kind: str, guided: bool, threshold: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, arguments = PIPELINES[kind].pipe(), call(kind, guided, steps=3)
    length = SEGMENTS[kind] * LENGTH
    total = length + 16  # 4 x 4 image tokens
    usual, reached = F.scaled_dot_product_attention, 0

    def attend(query: Tensor, key: Tensor, value: Tensor, **more: Any) -> Tensor:
        nonlocal reached
        if key.shape[2] != total or (pipe.scheduler.step_index or 0) >= steps:
            return usual(query, key, value, **more)
        reached += 1
        logits = query @ key.mT / query.shape[-1] ** 0.5
        text = range(16, total) if kind == "SD3" else range(length)
        for i in set(range(total)) - set(text):
            logits[:, :, i, list(text)] *= 1.5
        return logits.softmax(-1) @ value

    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", attend)
        expected = draw(pipe, arguments)
    calls = steps * (2 if kind == "Flux" and guided else 1)
    assert reached == PIPELINES[kind].blocks * calls
    made = draw_with(pipe, Taca(gamma=1.5, threshold=threshold), arguments)
    assert torch.allclose(made, expected, atol=1e-4)
    assert not torch.allclose(made, draw(pipe, arguments), atol=1e-3)


def test_taca_that_reaches_no_step_is_an_error() -> None:
    pipe, arguments = PIPELINES["SD3"].pipe(), call("SD3", True, sigmas=[0.5, 0.2])
    with pytest.raises(RuntimeError, match="no joint attention ran at a timestep of at least 970"):
        draw_with(pipe, Taca(), arguments)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: EncoderSpread(alpha=-1), ValueError, "alpha must be a finite number of at least 0, got -1"),
        (lambda: EncoderSpread(tokens="word"), ValueError, "unknown tokens 'word'"),
        (lambda: EncoderSpread(branch="condi"), ValueError, "Did you mean 'cond'"),
        (lambda: WordWeights(weight=True), TypeError, "weight must be a number"),
        (lambda: WordWeights(words="rarely"), ValueError, "accepted: 'content', 'rare'"),
        (lambda: WordWeights(words=()), ValueError, "no phrase"),
        (lambda: DoubleText(factor="2"), TypeError, "factor must be a number"),
        (lambda: DoubleText(blocks="3-1"), ValueError, "does not count upwards"),
        (lambda: Reinject(origin=0.5), TypeError, "origin must be a whole number"),
        (lambda: Reinject(weight=-1), ValueError, "weight must be a finite number of at least 0"),
        (lambda: Reinject(match=1), TypeError, "match must be true or false"),
        (lambda: Taca(gamma=0), ValueError, "gamma must be above 0"),
        (lambda: Taca(threshold=2000), ValueError, "threshold must be a finite number from 0 to 1000, got 2000"),
    ],
)
def test_settings_that_make_no_sense_say_so(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()
