"""Ideas that act inside the joint blocks: on attention, on the text between blocks, and on how much it is spread."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from measure import Cell, pictures_of
from rarelift.anatomy import captured, concentration
from rarelift.locate import locate
from rarelift.menagerie.suite import MenageriePrompt
from rarelift.menagerie.world import TAILED, Thing
from rarelift.rarity import scores
from rarelift.rivals.access import Attend, Forward, Joint, around, attention
from rarelift.variance import spread, take_off
from studio import STEPS, Batch, Predict, Studio, says_something, untouched


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


Move = Callable[[int, float, Tensor], Tensor]
"""Block, share of the steps that are done, and the text that the block reads `[B or 2 B, L, D]`, to what it is to read.

The prompted half comes first; without guidance it is all there is.
"""


def moving(batch: Batch, move: Move) -> Predict:
    """What each block reads of the text is moved, and what that added is taken off what it hands on."""
    modules = [site.module for site in locate(batch.studio.pipe)]

    def block(i: int, share: float, forward: Forward, arguments: dict[str, Any]) -> tuple[Tensor | None, Tensor]:
        text = arguments["encoder_hidden_states"]
        moved = arguments["encoder_hidden_states"] = move(i, share, text)
        after, image = forward(arguments)
        return None if after is None else take_off(after, text, moved), image

    def predict(latents: Tensor, timestep: Tensor, share: float) -> Tensor:
        with ExitStack() as stack:
            for i, module in enumerate(modules):
                stack.enter_context(around(module, functools.partial(block, i, share)))
            return untouched(batch)(latents, timestep, share)

    return predict


def valid_in_both(batch: Batch) -> Tensor:
    """Which tokens are no padding, `[2 B, L]`, those of the empty prompts last."""
    blank = replace(batch, prompts=[_BLANK] * len(batch.prompts))
    return torch.cat([batch.weights("valid"), blank.weights("valid")])


def lifted(batch: Batch, alphas: Alphas) -> Predict:
    """A lift as rarelift's, of both halves and without carrying on, with an alpha for each block, step and prompt."""
    weights = valid_in_both(batch)

    def move(block: int, share: float, text: Tensor) -> Tensor:
        return spread(text, alphas(block, share).repeat(len(text) // len(batch.prompts)), weights[: len(text)])

    return moving(batch, move)


def words(batch: Batch, of: str, alpha: float, n: int = 1) -> Predict:
    """Chosen words alone spread, away from the mean of all content words, as `tokens=(...)` of `rarelift.apply`.

    Args:
        of: "found": the n words of each prompt that `rarity.scores` puts highest; "rare": those that are rare with the
            animal, none in a common prompt, told by the world; "animal"; "content": all of them.
    """
    content = batch.weights("content")
    if of == "found":
        length = batch.studio.length
        found = [scores(batch.studio.pipe, p.text, max_sequence_length=length) for p in batch.prompts]
        best = [sorted(row, key=lambda one: -one.score)[:n] for row in found]
        chosen = batch.weights_of([tuple(one.word for one in row) for row in best])
    elif of == "rare":
        chosen = batch.weights_of([_rare_words(p) for p in batch.prompts])
    else:
        chosen = batch.weights(None if of == "animal" else of)

    def move(_block: int, _share: float, text: Tensor) -> Tensor:
        here = len(batch.prompts)
        return torch.cat([spread(text[:here], alpha, chosen, content), text[here:]])

    return moving(batch, move)


def _rare_words(prompt: MenageriePrompt) -> tuple[str, ...]:
    if not prompt.thing.tail:
        return ()
    if len(prompt.thing.tail) < len(TAILED):
        raise ValueError(f"{prompt.text!r}: which of its words are rare is told for the suites rare and common alone")
    return tuple(w for w in prompt.text.split() if says_something(w) and w != prompt.thing.animal)


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
        half = slice(0, len(batch.prompts))  # the prompted one
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


IDEAS = (attended, undrifted, ramp, auto, words)
