"""Ideas that act on what the transformer is given: its text, its pooled embedding, and what guidance is against."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rarelift.menagerie.world import PHRASINGS, caption
from rarelift.variance import spread
from studio import NEUTRAL, Batch, Predict, Text, says_something, untouched, within


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
        places = [i for i, word in enumerate(words) if says_something(word)]
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


IDEAS = (contrast, weak, weak_each, compressed, third, every, pooled, encoder_spread, schedule, paraphrased)
