"""Stronger ideas than the plain spread, each tried on the bundled model: does any lift rare prompts without harm?

    python benchmarks/ideas.py tune       every setting below, 128 rare and 128 common tuning prompts
    python benchmarks/ideas.py report     what the tuning chose, 512 + 512 reporting prompts x 2 seeds
    python benchmarks/ideas.py table      docs/beyond.md from benchmarks/results/ideas.jsonl, nothing is drawn

An idea is a function from a prompt and a picture under way to a prediction. It is drawn by a loop of its own, which
without an idea gives the pipeline's pictures (tests/test_ideas.py), from the same noise for all. Runs are resumable.

`word` below is the animal of the prompt: the word that rare prompts of the Menagerie get wrong, told by the world, so
what an idea gains here is the most that it could gain with a perfect way of finding that word.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from measure import NOT_RUN, RESULTS, Artist, Bench, Cell, Drawing, clusters, lift, pictures_of, table, write_section
from rarelift import pipelines
from rarelift.anatomy import captured, concentration
from rarelift.bench import stats
from rarelift.locate import locate
from rarelift.menagerie.suite import MenageriePrompt, Suite
from rarelift.menagerie.world import ATTRIBUTES, PHRASINGS, VALUES, Thing, caption
from rarelift.rivals.access import Attend, Forward, Joint, around, attention
from rarelift.tokens import FUNCTION_WORDS, token_weights
from rarelift.variance import spread, take_off

PAGE = Path(__file__).parents[1] / "docs" / "beyond.md"
STEPS = 16
GUIDANCE = 3.0
SUITES: tuple[Suite, ...] = ("rare", "common")
NEUTRAL = "picture"  # a word of the captions that says nothing of what is in them

Predict = Callable[[Tensor, Tensor, float], Tensor]
"""Latents `[B, C, H, W]`, timestep and the share of the steps that are done, to a velocity."""


@dataclass(frozen=True)
class Text:
    """What the text encoders made of prompts: token embeddings `[B, L, D]` and pooled ones `[B, P]`."""

    tokens: Tensor
    pooled: Tensor

    def towards(self, other: Text, share: float, pooled: float | None = None) -> Text:
        """Moved a share of the way to another text; away from it with a share below 0."""
        by = share if pooled is None else pooled
        return Text(torch.lerp(self.tokens, other.tokens, share), torch.lerp(self.pooled, other.pooled, by))

    def away(self, other: Text, strength: float, pooled: float | None = None) -> Text:
        return self.towards(other, -strength, None if pooled is None else -pooled)


class Studio:
    """A pipeline taken apart: texts in, pictures out."""

    def __init__(self, model: pipelines.Model) -> None:
        self.pipe, self.defaults = model.pipe, model.defaults
        self.length: int = model.defaults["max_sequence_length"]

    def encode(self, texts: Sequence[str]) -> Text:
        found = self.pipe.encode_prompt(
            list(texts), None, None, do_classifier_free_guidance=False, max_sequence_length=self.length
        )
        return Text(found[0], found[2])

    def predict(self, latents: Tensor, timestep: Tensor, *texts: Text) -> tuple[Tensor, ...]:
        """The velocity for each text, in one pass."""
        n, like = len(texts), self.pipe.transformer.dtype
        found = self.pipe.transformer(
            hidden_states=torch.cat([latents] * n).to(like),
            timestep=timestep.expand(n * len(latents)),
            encoder_hidden_states=torch.cat([text.tokens for text in texts]).to(like),
            pooled_projections=torch.cat([text.pooled for text in texts]).to(like),
            return_dict=False,
        )[0]
        return tuple(found.chunk(n))

    def noise(self, seeds: Sequence[int]) -> Tensor:
        config, like = self.pipe.transformer.config, self.pipe.transformer.dtype
        shape = (1, config.in_channels, config.sample_size, config.sample_size)
        return torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(s), dtype=like) for s in seeds])

    def denoise(self, latents: Tensor, predict: Predict, steps: int) -> Tensor:
        scheduler = self.pipe.scheduler
        scheduler.set_timesteps(steps)
        for i, timestep in enumerate(scheduler.timesteps):
            latents = scheduler.step(predict(latents, timestep, i / steps), timestep, latents, return_dict=False)[0]
        return latents

    def decode(self, latents: Tensor) -> list[Any]:
        vae = self.pipe.vae
        images = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor, return_dict=False)[0]
        return list(self.pipe.image_processor.postprocess(images, output_type="pil"))

    @cached_property
    def nearest(self) -> dict[str, list[str]]:
        """The other animals for each, the nearest by the text encoders' word embeddings first."""
        animals, likeness = VALUES["animal"], torch.zeros(())
        for encoder, tokenizer in (
            (self.pipe.text_encoder, self.pipe.tokenizer),
            (self.pipe.text_encoder_2, self.pipe.tokenizer_2),
        ):
            words = encoder.get_input_embeddings().weight
            own = normalize((words - words.mean(0))[[tokenizer(a)["input_ids"][1] for a in animals]], dim=-1)
            likeness = likeness + own @ own.T
        order = likeness.argsort(descending=True).tolist()
        return {a: [animals[j] for j in row if animals[j] != a] for a, row in zip(animals, order, strict=True)}


@dataclass(frozen=True)
class Batch:
    """Prompts being drawn, and texts made from them."""

    studio: Studio
    prompts: Sequence[MenageriePrompt]
    guidance: float

    def encoded(self, change: Callable[[MenageriePrompt, list[str]], list[str]]) -> Text:
        return self.studio.encode([" ".join(change(p, p.text.split())) for p in self.prompts])

    @cached_property
    def cond(self) -> Text:
        return self.encoded(lambda _, words: words)

    @cached_property
    def empty(self) -> Text:
        return self.studio.encode([""] * len(self.prompts))

    @cached_property
    def without(self) -> Text:
        """The word left out."""
        return self.encoded(lambda p, words: [w for w in words if w != p.thing.animal])

    @cached_property
    def neutral(self) -> Text:
        """The word replaced by one that says nothing."""
        return self.encoded(lambda p, words: [NEUTRAL if w == p.thing.animal else w for w in words])

    def others(self, n: int) -> Text:
        """The mean text over the word's n nearest neighbours in its place."""
        texts = [
            self.encoded(lambda p, words, i=i: [self.studio.nearest[w][i] if w == p.thing.animal else w for w in words])  # type: ignore[misc]
            for i in range(n)
        ]
        return Text(torch.stack([t.tokens for t in texts]).mean(0), torch.stack([t.pooled for t in texts]).mean(0))

    @cached_property
    def each_neutral(self) -> list[Text]:
        """For each place of a content word, the prompt with that word made neutral.

        As many as the longest prompt of the batch has words; a shorter one begins again, so that its first words are
        there twice.
        """
        content = [[i for i, w in enumerate(p.text.split()) if _says_something(w)] for p in self.prompts]
        texts = []
        for k in range(max(map(len, content))):
            said = []
            for prompt, places in zip(self.prompts, content, strict=True):
                words = prompt.text.split()
                words[places[k % len(places)]] = NEUTRAL
                said.append(" ".join(words))
            texts.append(self.studio.encode(said))
        return texts

    def weights(self, tokens: str | tuple[str, ...] | None = None) -> Tensor:
        """Which tokens are those of the word, or of a choice as in `Spread.tokens`, `[B, L]`."""
        pipe, sizes = self.studio.pipe, (self.studio.pipe.tokenizer_max_length, self.studio.length)
        rows = [
            token_weights(
                pipe,
                _family(),
                dict.fromkeys(("prompt", "prompt_2", "prompt_3"), (p.text,)),
                tokens or (p.thing.animal,),
                sizes,
            )
            for p in self.prompts
        ]
        return torch.cat(rows)

    def guided(self, cond: Text, weak: Text | None = None) -> Predict:
        """Classifier-free guidance, against another text than the empty one where one is given."""
        weak = weak or self.empty

        def predict(latents: Tensor, timestep: Tensor, _share: float) -> Tensor:
            if self.guidance == 1:
                return self.studio.predict(latents, timestep, cond)[0]
            right, wrong = self.studio.predict(latents, timestep, cond, weak)
            return wrong + self.guidance * (right - wrong)

        return predict


def _says_something(word: str) -> bool:
    return word not in {*FUNCTION_WORDS, NEUTRAL, "wearing"}


@cache
def _family() -> Any:
    from rarelift.streams import FAMILIES

    return FAMILIES["SD3Transformer2DModel"][0]


def within(inside: Predict, outside: Predict, start: float, stop: float) -> Predict:
    def predict(latents: Tensor, timestep: Tensor, share: float) -> Tensor:
        return (inside if start <= share < stop else outside)(latents, timestep, share)

    return predict


# ---------------------------------------------------------------- the ideas


def untouched(batch: Batch) -> Predict:
    return batch.guided(batch.cond)


def contrasted(batch: Batch, k: float, against: str, pooled: float = 1.0, only: str = "") -> Text:
    """The prompt's text moved away from another's: z + k (z - z').

    Args:
        against: z' is the text with the word left out ("without"), made neutral ("neutral"), or the mean of those with
            the word's n nearest neighbours in its place ("n").
        pooled: the same for the pooled embedding, as a share of k.
        only: "word" moves the tokens of the word alone.
    """
    other = batch.others(int(against)) if against.isdigit() else getattr(batch, against)
    moved = batch.cond.away(other, k, k * pooled)
    if only != "word":
        return moved
    here = batch.weights()[:, :, None].to(moved.tokens)
    return Text(torch.lerp(batch.cond.tokens, moved.tokens, here), moved.pooled)


def contrasted_each(batch: Batch, k: float, pooled: float = 1.0) -> Text:
    """Every content word's own tokens moved away from what they are with a neutral word there; nothing is told.

    Args:
        pooled: the pooled embedding is moved by pooled * k times the mean of what the words change.
    """
    tokens = batch.cond.tokens.clone()
    vectors = torch.zeros_like(batch.cond.pooled)
    for row, prompt in enumerate(batch.prompts):
        words = prompt.text.split()
        places = [i for i, word in enumerate(words) if _says_something(word)]
        said = [" ".join([*words[:i], NEUTRAL, *words[i + 1 :]]) for i in places]
        neutral = batch.studio.encode(said)
        for i, place in enumerate(places):
            here = replace(batch, prompts=[prompt]).weights((words[place],))[0].bool()
            tokens[row, here] += k * (batch.cond.tokens[row, here] - neutral.tokens[i, here])
        vectors[row] = (batch.cond.pooled[row] - neutral.pooled).mean(0)
    return Text(tokens, batch.cond.pooled + pooled * k * vectors)


def contrast(batch: Batch, start: float = 0.0, stop: float = 1.0, **settings: Any) -> Predict:
    """`contrasted`, in the steps from start to stop."""
    return within(batch.guided(contrasted(batch, **settings)), untouched(batch), start, stop)


def weak(batch: Batch, against: str, mix: float = 0.0) -> Predict:
    """Guidance against the prompt without the word, in place of the empty prompt; `mix` is the share of that one."""
    other = batch.others(int(against)) if against.isdigit() else getattr(batch, against)
    return batch.guided(batch.cond, other.towards(batch.empty, mix))


def weak_each(batch: Batch, mix: float = 0.0) -> Predict:
    """Guidance against the mean of the texts in which one content word each is neutral, `Batch.each_neutral`."""
    texts = batch.each_neutral
    mean = Text(torch.stack([t.tokens for t in texts]).mean(0), torch.stack([t.pooled for t in texts]).mean(0))
    return batch.guided(batch.cond, mean.towards(batch.empty, mix))


def compressed(batch: Batch, alpha: float, mix: float = 0.0) -> Predict:
    """Guidance against the prompt's own text pulled together about its mean."""
    own = Text(spread(batch.cond.tokens, alpha, batch.weights("valid")), batch.empty.towards(batch.cond, alpha).pooled)
    return batch.guided(batch.cond, own.towards(batch.empty, mix))


def third(batch: Batch, against: str, r: float, start: float = 0.0, stop: float = 1.0) -> Predict:
    """A third branch beside the empty prompt: + r (cond - cond without the word)."""
    other = batch.others(int(against)) if against.isdigit() else getattr(batch, against)

    def predict(latents: Tensor, timestep: Tensor, _share: float) -> Tensor:
        right, wrong, lacking = batch.studio.predict(latents, timestep, batch.cond, batch.empty, other)
        return wrong + batch.guidance * (right - wrong) + r * (right - lacking)

    return within(predict, untouched(batch), start, stop)


def every(batch: Batch, r: float) -> Predict:
    """A branch for each text of `Batch.each_neutral`: + r times the mean of (cond - that)."""
    texts = batch.each_neutral

    def predict(latents: Tensor, timestep: Tensor, _share: float) -> Tensor:
        right, wrong, *lacking = batch.studio.predict(latents, timestep, batch.cond, batch.empty, *texts)
        push = torch.stack([right - v for v in lacking]).mean(0)
        return wrong + batch.guidance * (right - wrong) + r * push

    return predict


def pooled(batch: Batch, k: float) -> Predict:
    """The pooled embedding alone moved away from that of the empty prompt."""
    return batch.guided(batch.cond.away(batch.empty, 0, k))


def encoder_spread(batch: Batch, alpha: float, null: float = 1.0) -> Predict:
    """The text spread once, and the null prompt's by another factor."""
    weights = batch.weights("valid")
    cond = Text(spread(batch.cond.tokens, alpha, weights), batch.cond.pooled)
    empty = Text(spread(batch.empty.tokens, null), batch.empty.pooled)
    return batch.guided(cond, empty)


def schedule(batch: Batch, early: float, stop: float) -> Predict:
    """Another guidance_scale in the first steps."""
    first = Batch(batch.studio, batch.prompts, early)
    return within(first.guided(batch.cond, batch.empty), untouched(batch), 0, stop)


def paraphrased(batch: Batch, how: str, alpha: float = 1.0, early: float | None = None, **contrast: Any) -> Predict:
    """The prompt in all four phrasings of the world, that it was asked in among them.

    Args:
        how: "turns": each step reads the next phrasing, which costs no pass; "mean": the mean prediction of all;
            "pooled": the mean of their pooled embeddings, beside the tokens of the prompt as it was asked.
        alpha: the tokens of each spread once, as in `encoder_spread`.
        early: guidance_scale in the first fifth of the steps, as in `schedule`.
        contrast: moves the text of each, as `contrasted` does, or without `against` as `contrasted_each`.
    """
    said = [
        replace(batch, prompts=[replace(p, text=caption(p.thing, i)) for p in batch.prompts]) for i in range(PHRASINGS)
    ]
    move = contrasted if "against" in contrast else contrasted_each
    texts = [move(one, **contrast) if contrast else one.cond for one in said]
    if alpha != 1:
        texts = [Text(spread(text.tokens, alpha), text.pooled) for text in texts]
    mean = torch.stack([text.pooled for text in texts]).mean(0)
    if how == "pooled" and (alpha != 1 or contrast):
        raise ValueError("how='pooled' leaves the tokens alone; leave out alpha and contrast")
    step = 0

    def predict(latents: Tensor, timestep: Tensor, share: float) -> Tensor:
        nonlocal step
        if how == "turns":
            read, step = [texts[step % PHRASINGS]], step + 1
        else:
            read = texts if how == "mean" else [Text(batch.cond.tokens, mean)]
        wrong, *right = batch.studio.predict(latents, timestep, batch.empty, *read)
        guidance = early if early is not None and share < 0.2 else batch.guidance
        return wrong + guidance * (torch.stack(right).mean(0) - wrong)

    return predict


def attended(batch: Batch, beta: float, tokens: str = "word") -> Predict:
    """log(beta) more on the logits from image to the word's tokens, or to all content words', in the prompted half."""
    bias = torch.log(torch.tensor(beta)) * batch.weights(None if tokens == "word" else tokens)

    def attend(
        inner: Attend, joint: Joint, query: Tensor, key: Tensor, value: Tensor, further: dict[str, Any]
    ) -> Tensor:
        more = torch.zeros(len(query), 1, 1, key.shape[2], dtype=query.dtype)
        more[: len(bias), 0, 0, joint.text] = bias.to(query)
        image = inner(query[:, :, joint.image], key, value, {**further, "attn_mask": more})
        text = inner(query[:, :, joint.text], key, value, further)
        return torch.cat([image, text] if joint.image.start == 0 else [text, image], 2)

    def predict(latents: Tensor, timestep: Tensor, share: float) -> Tensor:
        with attention(batch.studio.pipe, "attended", attend):
            return untouched(batch)(latents, timestep, share)

    return predict


def undrifted(batch: Batch, k: float, first: int, tokens: str = "word") -> Predict:
    """k times what the word's tokens were before the second block, added to them before each block from `first` on."""
    modules = [site.module for site in locate(batch.studio.pipe)]
    here = batch.weights(None if tokens == "word" else tokens)[:, :, None]
    early = torch.zeros(())

    def block(index: int, forward: Forward, arguments: dict[str, Any]) -> Any:
        nonlocal early
        text = arguments["encoder_hidden_states"]
        if index == 1:
            early = torch.cat([here.to(text) * text[: len(here)], torch.zeros_like(text[len(here) :])])
        if index >= first:
            arguments["encoder_hidden_states"] = text + k * early
        return forward(arguments)

    def predict(latents: Tensor, timestep: Tensor, share: float) -> Tensor:
        with ExitStack() as stack:
            for i, module in enumerate(modules):
                stack.enter_context(around(module, functools.partial(block, i)))
            return untouched(batch)(latents, timestep, share)

    return predict


# ---------------------------------------------------------------- how much: alpha by prompt, block and step


GRID = (1.0, 1.25, 1.5, 2.0, 3.0)
"""Alphas that the rules with a target choose from, by linear interpolation."""
Alphas = Callable[[int, float], Tensor]
"""Block and share of the steps that are done, to an alpha for each prompt, `[B]`."""


def lifted(batch: Batch, alphas: Alphas) -> Predict:
    """A lift as rarelift's, of both halves and without carrying on, with an alpha for each block, step and prompt."""
    modules = [site.module for site in locate(batch.studio.pipe)]
    weights = torch.cat(
        [batch.weights("valid"), replace(batch, prompts=[_BLANK] * len(batch.prompts)).weights("valid")]
    )

    def block(alpha: Tensor, forward: Forward, arguments: dict[str, Any]) -> tuple[Tensor | None, Tensor]:
        text = arguments["encoder_hidden_states"]
        moved = arguments["encoder_hidden_states"] = spread(text, alpha.repeat(2), weights)
        after, image = forward(arguments)
        return None if after is None else take_off(after, text, moved), image

    def predict(latents: Tensor, timestep: Tensor, share: float) -> Tensor:
        with ExitStack() as stack:
            for i, module in enumerate(modules):
                stack.enter_context(around(module, functools.partial(block, alphas(i, share))))
            return untouched(batch)(latents, timestep, share)

    return predict


_BLANK = MenageriePrompt("", Thing("cat", "red", "plain", "nothing", "meadow"))  # its text alone is read


def ramp(batch: Batch, over: str, first: float, last: float) -> Predict:
    """alpha from `first` to `last`, evenly over the "blocks" or the "steps": the same in total as one between."""
    depth = len(locate(batch.studio.pipe))

    def alphas(block: int, share: float) -> Tensor:
        at = block / (depth - 1) if over == "blocks" else share * STEPS / (STEPS - 1)
        return torch.full((len(batch.prompts),), first + (last - first) * at)

    return lifted(batch, alphas)


def auto(batch: Batch, rule: str, to: float = 0.0) -> Predict:
    """alpha for each prompt, from the first step.

    Args:
        rule: "first": in each block what brings the spread of its tokens, deviation over mean, to that of the first
            block; "common": to the median of common prompts; "entropy": for all blocks what brings the entropy of the
            attention from image to text to the median of common prompts; "change": what changes the prediction by `to`
            of its norm.
    """
    found: Tensor | None = None

    def predict(latents: Tensor, timestep: Tensor, share: float) -> Tensor:
        nonlocal found
        if found is None:
            found = _chosen_alphas(batch, rule, to, latents, timestep)
        chosen = found
        return lifted(batch, lambda block, _: chosen[block])(latents, timestep, share)

    return predict


def _chosen_alphas(batch: Batch, rule: str, to: float, latents: Tensor, timestep: Tensor) -> Tensor:
    """`[blocks, B]`."""
    if rule in ("first", "common"):
        own = spreads(batch, latents, timestep)
        aim = own[:1] if rule == "first" else _of_common(batch.studio, "spreads", batch.guidance)
        return (aim / own).clamp(min(GRID) / 2, max(GRID))
    seen = torch.stack([measured(batch, rule, alpha, latents, timestep) for alpha in GRID])
    aim = torch.tensor(to) if rule == "change" else _of_common(batch.studio, "entropy", batch.guidance)
    alpha = torch.tensor([_crossing(GRID, column, float(aim)) for column in seen.T.tolist()])
    return alpha.expand(len(locate(batch.studio.pipe)), -1)


def _crossing(grid: Sequence[float], values: Sequence[float], aim: float) -> float:
    """Where the values, from their first on, first reach the aim; the nearest of the grid where they do not."""
    for (a, b), (u, v) in zip(itertools.pairwise(grid), itertools.pairwise(values), strict=True):
        if min(u, v) <= aim <= max(u, v) and u != v:
            return a + (b - a) * (aim - u) / (v - u)
    return grid[min(range(len(grid)), key=lambda i: abs(values[i] - aim))]


def spreads(batch: Batch, latents: Tensor, timestep: Tensor) -> Tensor:
    """Root mean square deviation over norm of the mean of the words' tokens that each block reads, `[blocks, B]`."""
    with captured(batch.studio.pipe.transformer) as streams:
        batch.studio.predict(latents, timestep, batch.cond)
    weights = batch.weights("valid")
    return torch.stack([1 / concentration(stream[0], weights) for stream in streams.values()])


def measured(batch: Batch, what: str, alpha: float, latents: Tensor, timestep: Tensor) -> Tensor:
    """The change of the guided prediction, or the entropy of the attention from image to text in nats, `[B]`."""
    predict = lifted(batch, lambda *_: torch.full((len(batch.prompts),), alpha))
    if what == "change":
        plain = untouched(batch)(latents, timestep, 0.0).float().flatten(1)
        moved = predict(latents, timestep, 0.0).float().flatten(1)
        return torch.as_tensor((moved - plain).norm(dim=1) / plain.norm(dim=1))
    entropies = []

    def attend(
        inner: Attend, joint: Joint, query: Tensor, key: Tensor, value: Tensor, further: dict[str, Any]
    ) -> Tensor:
        half = slice(0, len(query) // 2)  # the prompted one
        logits = query[half, :, joint.image].float() @ key[half, :, joint.text].float().mT / query.shape[-1] ** 0.5
        shares = logits.softmax(-1)
        entropies.append(-(shares * shares.clamp_min(1e-12).log()).sum(-1).mean((1, 2)))
        return inner(query, key, value, further)

    with attention(batch.studio.pipe, "auto", attend):
        predict(latents, timestep, 0.0)
    return torch.stack(entropies).mean(0)


@cache
def _of_common(studio: Studio, what: str, guidance: float) -> Tensor:
    """The median over common tuning prompts at the first step: of each block's spread `[blocks, 1]`, or a number."""
    chosen, seeds = pictures_of(Cell("common", "tune", 32, 1, guidance, STEPS))
    batch, latents = Batch(studio, chosen, guidance), studio.noise(seeds)
    studio.pipe.scheduler.set_timesteps(STEPS)
    timestep = studio.pipe.scheduler.timesteps[0]
    if what == "spreads":
        return spreads(batch, latents, timestep).median(1, keepdim=True).values
    return measured(batch, "entropy", 1.0, latents, timestep).median()


_TEXT = (contrast, weak, weak_each, compressed, third, every, pooled, encoder_spread, schedule, paraphrased)
_STATES = (attended, undrifted, ramp, auto)
IDEAS: dict[str, Callable[..., Predict]] = {idea.__name__: idea for idea in (*_TEXT, *_STATES)}

SEARCH: tuple[tuple[str, dict[str, Any]], ...] = (
    ("contrast", {"against": "15", "k": 0.25}),
    ("contrast", {"against": "15", "k": 0.5}),
    ("contrast", {"against": "15", "k": 1.0}),
    ("contrast", {"against": "15", "k": 0.5, "stop": 0.4}),
    ("contrast", {"against": "15", "k": 0.5, "start": 0.4}),
    ("contrast", {"against": "15", "k": 1.0, "pooled": 0.0, "only": "word"}),
    ("contrast", {"against": "15", "k": 0.5, "only": "word"}),
    ("contrast", {"against": "1", "k": 0.5}),
    ("contrast", {"against": "neutral", "k": 0.3}),
    ("contrast", {"against": "without", "k": 0.3, "pooled": 1.0, "only": "word"}),
    ("weak", {"against": "without"}),
    ("weak", {"against": "without", "mix": 0.5}),
    ("weak", {"against": "15", "mix": 0.5}),
    ("weak_each", {"mix": 0.5}),
    ("compressed", {"alpha": 0.5}),
    ("compressed", {"alpha": 0.5, "mix": 0.5}),
    ("third", {"against": "without", "r": 1.0}),
    ("third", {"against": "15", "r": 1.0}),
    ("third", {"against": "15", "r": 2.0, "stop": 0.3}),
    ("every", {"r": 2.0}),
    ("pooled", {"k": 0.2}),
    ("pooled", {"k": 0.5}),
    ("encoder_spread", {"alpha": 1.2}),
    ("encoder_spread", {"alpha": 1.0, "null": 1.5}),
    ("encoder_spread", {"alpha": 1.0, "null": 0.5}),
    ("schedule", {"early": 8.0, "stop": 0.2}),
    ("schedule", {"early": 5.0, "stop": 0.4}),
    ("schedule", {"early": 1.0, "stop": 0.2}),
    ("paraphrased", {"how": "turns"}),
    ("paraphrased", {"how": "mean"}),
    ("paraphrased", {"how": "pooled"}),
    ("paraphrased", {"how": "turns", "alpha": 1.2}),
    ("paraphrased", {"how": "turns", "early": 8.0}),
    ("paraphrased", {"how": "turns", "early": 8.0, "against": "15", "k": 0.5, "only": "word"}),
    ("paraphrased", {"how": "turns", "early": 8.0, "against": "15", "k": 0.35, "only": "word"}),
    ("paraphrased", {"how": "turns", "early": 8.0, "against": "15", "k": 0.25}),
    ("paraphrased", {"how": "turns", "early": 8.0, "against": "neutral", "k": 0.3}),
    ("paraphrased", {"how": "turns", "early": 8.0, "against": "neutral", "k": 0.5, "only": "word"}),
    ("paraphrased", {"how": "turns", "against": "15", "k": 0.5, "only": "word"}),
    ("paraphrased", {"how": "turns", "early": 8.0, "k": 0.5}),
    ("paraphrased", {"how": "turns", "early": 8.0, "k": 0.5, "pooled": 2.0}),
    ("paraphrased", {"how": "turns", "early": 8.0, "k": 1.0}),
    ("paraphrased", {"how": "turns", "early": 8.0, "against": "neutral", "k": 0.7, "only": "word"}),
    ("attended", {"beta": 2.0}),
    ("attended", {"beta": 4.0}),
    ("attended", {"beta": 1.5, "tokens": "content"}),
    ("undrifted", {"k": 0.2, "first": 4}),
    ("undrifted", {"k": 0.5, "first": 4}),
    ("undrifted", {"k": 0.2, "first": 4, "tokens": "content"}),
    ("ramp", {"over": "blocks", "first": 1.5, "last": 1.5}),
    ("ramp", {"over": "blocks", "first": 2.0, "last": 1.0}),
    ("ramp", {"over": "blocks", "first": 1.0, "last": 2.0}),
    ("ramp", {"over": "steps", "first": 2.0, "last": 1.0}),
    ("ramp", {"over": "steps", "first": 1.0, "last": 2.0}),
    ("auto", {"rule": "first"}),
    ("auto", {"rule": "common"}),
    ("auto", {"rule": "entropy"}),
    ("auto", {"rule": "change", "to": 0.02}),
    ("auto", {"rule": "change", "to": 0.05}),
)
"""What is tried, on the tuning prompts alone."""


# ---------------------------------------------------------------- drawing and tables


class Drawer(Bench):
    """Draws cells whose `lift` holds an idea and its settings."""

    @cached_property
    def draw(self) -> Callable[[Cell], np.ndarray]:
        artist = Artist(self.drawing)
        studio = Studio(artist.untouched)

        @torch.no_grad()
        def drawn(cell: Cell) -> np.ndarray:
            chosen, seeds = pictures_of(cell)
            settings = cell.lift_keywords
            idea = IDEAS[settings.pop("idea")] if settings else untouched
            images = []
            for i in range(0, len(chosen), self.drawing.rows // 2):
                part = slice(i, i + self.drawing.rows // 2)
                batch = Batch(studio, chosen[part], cell.guidance)
                images += studio.decode(studio.denoise(studio.noise(seeds[part]), idea(batch, **settings), cell.steps))
            return artist.judge.right(images, [p.thing for p in chosen])

        return drawn


def tuning(suite: Suite, idea: tuple[tuple[str, Any], ...] | None, guidance: float = GUIDANCE) -> Cell:
    return Cell(suite, "tune", 128, 1, guidance, STEPS, idea)


def reporting(suite: Suite, idea: tuple[tuple[str, Any], ...] | None, guidance: float = GUIDANCE) -> Cell:
    return Cell(suite, "report", 512, 2, guidance, STEPS, idea)


SETTINGS = [None, *(lift(idea=name, **settings) for name, settings in SEARCH)]


def spelled(idea: tuple[tuple[str, Any], ...] | None) -> str:
    if idea is None:
        return "untouched"
    settings = dict(idea)
    name = settings.pop("idea")
    return f"{name}({', '.join(f'{k}={v}' for k, v in settings.items())})"


def rows(bench: Bench, cells: Callable[..., Cell], ideas: Sequence[Any]) -> Iterator[list[str]]:
    for idea in ideas:
        row = [f"`{spelled(idea)}`"]
        for suite in SUITES:
            cell = cells(suite, idea)
            if cell.key not in bench.done or cell.untouched().key not in bench.done:
                row += [NOT_RUN, "", *([""] * len(ATTRIBUTES) if suite == "rare" else [])]
                continue
            right, before = bench.right(cell), bench.right(cell.untouched())
            whole, base = (np.asarray(r.all(1), float) for r in (right, before))
            found = stats.difference(whole, base, clusters(cell))
            row += [f"{whole.mean():.3f}", "" if idea is None else f"{found:+.3f}"]
            if suite == "rare":
                row += [f"{right[:, i].mean():.2f}" for i in range(len(ATTRIBUTES))]
        yield row


def more_passes(idea: tuple[tuple[str, Any], ...]) -> bool:
    """Whether an idea runs the transformer more often than guidance alone does."""
    settings = dict(idea)
    to_choose = settings.get("rule") in ("entropy", "change")
    return settings["idea"] in ("third", "every") or settings.get("how") == "mean" or to_choose


def told_the_word(idea: tuple[tuple[str, Any], ...]) -> bool:
    """Whether an idea needs to know which word fails."""
    settings = dict(idea)
    by_word = settings["idea"] in ("attended", "undrifted") and "tokens" not in settings
    return "against" in settings or by_word


def chosen(bench: Bench, margin: float = 0.01) -> list[Any]:
    """Of the settings without further passes, that with the highest rare success on the tuning prompts whose common
    success there is at most `margin` below that of untouched: one that is told the word, and one that is not.
    """

    def success(suite: Suite, idea: Any) -> float:
        return float(bench.right(tuning(suite, idea)).all(1).mean())

    whole = [i for i in SETTINGS if i and all(tuning(s, i).key in bench.done for s in SUITES) and not more_passes(i)]
    kept = [i for i in whole if success("common", i) >= success("common", None) - margin]
    best = sorted(kept, key=lambda i: (-success("rare", i), -success("common", i)))
    found = (next((i for i in best if told_the_word(i) == told), None) for told in (False, True))
    return [idea for idea in found if idea is not None]


def written(bench: Bench) -> None:
    header = ["idea", "rare", "difference", *ATTRIBUTES, "common", "difference"]
    write_section(PAGE, "ideas", table(header, rows(bench, tuning, SETTINGS)))
    reported = [i for i in SETTINGS if any(reporting(suite, i).key in bench.done for suite in SUITES)]
    write_section(PAGE, "ideas-report", table(header, rows(bench, reporting, reported)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tune", "report", "table"])
    parser.add_argument("--only", choices=IDEAS, help="draw the settings of one idea, for tune")
    args = parser.parse_args()
    bench = Drawer(RESULTS / "ideas.jsonl", Drawing(rows=64))
    if args.what == "tune":
        wanted = [i for i in SETTINGS if i is None or args.only in (None, dict(i)["idea"])]
        bench.run(tuning(suite, idea) for idea in wanted for suite in SUITES)
    elif args.what == "report":
        bench.run(reporting(suite, idea) for idea in [None, *chosen(bench)] for suite in SUITES)
    written(bench)
    print(PAGE)


if __name__ == "__main__":
    main()
