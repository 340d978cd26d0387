"""The bundled pipeline taken apart, so that an idea can act on its text, on guidance and inside its blocks.

What is drawn here without an idea are the pipeline's pictures, bit for bit (tests/test_ideas.py). `word` is the animal
of a prompt: the word that rare prompts of the Menagerie get wrong, told by the world, so what an idea gains with it is
the most that it could gain with a perfect way of finding that word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rarelift import pipelines
from rarelift.menagerie.suite import MenageriePrompt
from rarelift.menagerie.world import VALUES
from rarelift.tokens import FUNCTION_WORDS, token_weights

STEPS = 16
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
        content = [[i for i, w in enumerate(p.text.split()) if says_something(w)] for p in self.prompts]
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
        return self.weights_of([tokens or (p.thing.animal,) for p in self.prompts])

    def weights_of(self, tokens: Sequence[str | tuple[str, ...]]) -> Tensor:
        """The same with a choice for each prompt; an empty tuple chooses none."""
        pipe, sizes = self.studio.pipe, (self.studio.pipe.tokenizer_max_length, self.studio.length)
        rows = []
        for prompt, chosen in zip(self.prompts, tokens, strict=True):
            texts = dict.fromkeys(("prompt", "prompt_2", "prompt_3"), (prompt.text,))
            rows.append(token_weights(pipe, _family(), texts, chosen, sizes))
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


def says_something(word: str) -> bool:
    return word not in {*FUNCTION_WORDS, NEUTRAL, "wearing"}


@cache
def _family() -> Any:
    from rarelift.streams import FAMILIES

    return FAMILIES["SD3Transformer2DModel"][0]


def within(inside: Predict, outside: Predict, start: float, stop: float) -> Predict:
    def predict(latents: Tensor, timestep: Tensor, share: float) -> Tensor:
        return (inside if start <= share < stop else outside)(latents, timestep, share)

    return predict


def untouched(batch: Batch) -> Predict:
    return batch.guided(batch.cond)
