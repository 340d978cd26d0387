"""The nearest neighbours of a lift: methods that act on the text of a joint transformer, without training.

Two act on what the text encoders gave, once a picture; two on the text stream between blocks; one on how the image
attends to the text.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..locate import Site
from ..menagerie.world import ATTRIBUTES, PHRASINGS, VALUES, Thing, caption
from ..settings import BRANCHES, Spread, one_of
from ..tokens import FUNCTION_WORDS
from ..variance import spread
from .access import Attend, Forward, Joint, around, attention, sites_of, step_of
from .base import Asked, Cost, Rival
from .checks import blocks, chosen, number, whole
from .encoding import Encoded, encoding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from diffusers import DiffusionPipeline

    from ..prompts import Prompt

# ---------------------------------------------------------------- what the text encoders gave


@dataclass(frozen=True)
class EncoderSpread(Rival):
    """The text encoders' output spread about its token mean, once, before the transformer.

    z' = mean + alpha (z - mean): the formula of a lift with alpha = 1 + w, in another place. ComfyUI has it as the
    slider "contrast" (w) of a node for FLUX.2 Klein, whose tokens come from one encoder; here each encoder's tokens
    have their own mean. The pooled embedding is left alone.

    Args:
        alpha: factor on the deviations, 0 or more; 1 changes nothing. The slider goes to 3.
        tokens: which take part, as in `Spread.tokens`. The node takes those that the attention mask marks: "valid".
        branch: which half of guidance. The node acts on the prompt it is connected to: "cond".
    """

    alpha: float = 1.5
    tokens: str | tuple[str, ...] = "valid"
    branch: str = "cond"

    name = "encoder-spread"
    summary = "the text encoders' output spread about its mean, once"
    source = "github capitan01R/ComfyUI-Flux2Klein-Enhancer, README and the line of the formula; no paper"

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", number("alpha", self.alpha, 0))
        object.__setattr__(self, "tokens", Spread(tokens=self.tokens).tokens)
        one_of("branch", self.branch, BRANCHES)

    @contextmanager
    def on(self, pipe: DiffusionPipeline, prompts: Sequence[Prompt], call: Mapping[str, Any]) -> Iterator[Asked]:
        def change(said: Encoded) -> Tensor:
            if self.branch not in ("both", said.branch):
                return said.embeds
            parts = (torch.split(side, list(said.sizes), 1) for side in (said.embeds, said.weights(self.tokens)))
            return torch.cat([spread(z, self.alpha, taking) for z, taking in zip(*parts, strict=True)], 1)

        with encoding(pipe, self.name, call, change):
            yield Asked([prompt.text for prompt in prompts], dict(call))

    def cost(self, call: Mapping[str, Any]) -> Cost:
        return Cost()


@dataclass(frozen=True)
class WordWeights(Rival):
    """Weights on words, as compel's `word++` and ComfyUI's `(word:1.3)` have them.

    z' = z_empty + weight (z - z_empty) on the tokens of the chosen words, z_empty being the embedding of the empty
    prompt at the same positions. In the prompted half; the pooled embedding is left alone. compel has this for weights
    above 1; below, it blends with the prompt without the words, and we, in our reading, stay with the formula.

    Args:
        weight: 0 or more; 1 changes nothing. compel's documentation finds pictures getting weird from 1.5 on.
        words: "content", all but function words; phrases, that each prompt must hold; or "rare", the words for what
            is rare with the animal of a Menagerie prompt. The last is an oracle: nobody has that list for a real
            model, so it is an upper bound of the method and not a rival.
    """

    weight: float = 1.3
    words: str | tuple[str, ...] = "content"

    name = "word-weights"
    summary = "embeddings of chosen words moved away from the empty prompt's, as compel does"
    source = "compel, doc/README.md (part on weighting); the formula for weights above 1 as we know it, not read there"

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", number("weight", self.weight, 0))
        if isinstance(self.words, str):
            one_of("words", self.words, ("content", "rare"), hint=f" For a word of the prompt use ({self.words!r},).")
        else:
            object.__setattr__(self, "words", Spread(tokens=self.words).tokens)

    @contextmanager
    def on(self, pipe: DiffusionPipeline, prompts: Sequence[Prompt], call: Mapping[str, Any]) -> Iterator[Asked]:
        asked = [rare_words(prompt) if self.words == "rare" else self.words for prompt in prompts]

        def change(said: Encoded) -> Tensor:
            if said.branch == "uncond" or self.weight == 1:
                return said.embeds
            # a prompt without a rare word has none to weigh
            rows = [said.weights(words, i) if words else _none(said) for i, words in enumerate(asked)]
            empty = said.empty().to(said.embeds.dtype)
            return torch.lerp(empty, said.embeds, _factors(torch.cat(rows), self.weight, said.embeds))

        with encoding(pipe, self.name, call, change):
            yield Asked([prompt.text for prompt in prompts], dict(call))

    def cost(self, call: Mapping[str, Any]) -> Cost:
        return Cost(encodes=1.0)


def _none(said: Encoded) -> Tensor:
    return said.embeds.new_zeros(len(said.embeds) // said.prompts, said.embeds.shape[1], dtype=torch.float32)


def _factors(taking: Tensor, weight: float, like: Tensor) -> Tensor:
    """What each token's distance is multiplied by, `[rows, L, 1]`; exactly 1 for those that take no part."""
    return torch.where(taking > 0, weight, 1.0)[:, :, None].to(like.dtype)


def rare_words(prompt: Prompt) -> tuple[str, ...]:
    """The words of a Menagerie prompt that name what is rare with its animal; none of a common prompt.

    Raises:
        ValueError: the prompt does not say what a picture of it shows, or was not worded by the Menagerie.
    """
    if any(attribute not in prompt.meta for attribute in ATTRIBUTES):
        raise ValueError(f"words='rare' reads the meta of Menagerie prompts, and {prompt.id!r} has none")
    thing = Thing(*(prompt.meta[attribute] for attribute in ATTRIBUTES))
    phrasing = next((i for i in range(PHRASINGS) if caption(thing, i) == prompt.text), None)
    if phrasing is None:
        raise ValueError(f"words='rare' knows the wordings of the Menagerie, and {prompt.text!r} is none of them")
    found: list[str] = []
    for attribute in thing.tail:
        others = (v for v in VALUES[attribute] if v != getattr(thing, attribute))
        shared = {word for v in others for word in caption(replace(thing, **{attribute: v}), phrasing).split()}
        found += [word for word in prompt.text.split() if word not in shared | FUNCTION_WORDS]
    return tuple(found)


# ---------------------------------------------------------------- the text stream between blocks


@contextmanager
def _between(sites: Sequence[Site], rival: str, change: Callable[[Site, Tensor], Tensor]) -> Iterator[None]:
    """Put `change(site, text)` in place of the text that these blocks get; what they make of it is carried on.

    Raises:
        RuntimeError: on leaving, none of them ran.
    """
    seen = False

    def entered(site: Site) -> Callable[[Forward, dict[str, Any]], Any]:
        def block(forward: Forward, arguments: dict[str, Any]) -> Any:
            nonlocal seen
            seen = True
            text = change(site, arguments["encoder_hidden_states"])
            return forward({**arguments, "encoder_hidden_states": text})

        return block

    with ExitStack() as stack:
        for site in sites:
            stack.enter_context(around(site.module, entered(site)))
        yield
    if not seen:
        raise RuntimeError(f"{rival}: none of the chosen blocks ran, so nothing was done")


@dataclass(frozen=True)
class DoubleText(Rival):
    """The text stream multiplied before selected blocks: c -> factor c (Li et al. 2026, arXiv 2601.02211).

    In both halves of guidance, and carried on. Blocks of SD3 and FLUX normalise their text before they read it, so
    attention in the block itself is all but unchanged (the norm's epsilon apart): what changes is the share that this
    block and the following ones have in the stream, which they add to. Before the last block, which only reads, it
    does nothing; over many blocks it compounds, and half precision runs out at factor^blocks of some thousands.

    Args:
        factor: 0 or more; 1 changes nothing; 2 is the paper's.
        blocks: before which, as in `Spread.blocks`; with more than one range, "0-3+7"; None for all. Which are best is
            found for each model in the paper, whose lists we have not read; the first is our choice.
    """

    factor: float = 2.0
    blocks: Any = (0,)

    name = "double-text"
    summary = "the text stream doubled before selected blocks"
    source = "arXiv 2601.02211, abstract and two summaries of its method; not its lists of blocks"

    def __post_init__(self) -> None:
        object.__setattr__(self, "factor", number("factor", self.factor, 0))
        object.__setattr__(self, "blocks", blocks(self.blocks))

    @contextmanager
    def on(self, pipe: DiffusionPipeline, prompts: Sequence[Prompt], call: Mapping[str, Any]) -> Iterator[Asked]:
        sites = sites_of(pipe, self.name)
        at = sites if self.blocks is None else [sites[i] for i in chosen(sites, self.blocks, self.name)]
        with _between(at, self.name, lambda _, text: text * self.factor):
            yield Asked([prompt.text for prompt in prompts], dict(call))

    def cost(self, call: Mapping[str, Any]) -> Cost:
        return Cost()


@dataclass(frozen=True)
class Reinject(Rival):
    """Prompt reinjection: the text of an early block added to that of deeper ones (Yao et al. 2026, arXiv 2602.06886).

    c_l -> c_l + weight c_origin before each block l from `first` to `last`, in both halves of guidance and carried on,
    c_origin being what block `origin` got in the same pass. With `match`, for each token over its channels:
    c_l -> std(c_l) LN(norm(c_l) + weight norm(c_origin)) + mean(c_l), norm taking mean 0 and standard deviation 1. The
    paper's full form also turns c_origin by a matrix fitted offline (Procrustes), which needs data and is left out.

    Args:
        origin: the block that the text is taken before. 1 is what the authors' scripts use.
        first, last: the blocks it is added before; `first` comes after `origin`. Negative ones count from the end.
        weight: 0 or more; 0 changes nothing. The paper's are not known to us.
        match: bring both to one scale first.
    """

    origin: int = 1
    first: int = 2
    last: int = -1
    weight: float = 0.1
    match: bool = False

    name = "reinject"
    summary = "the text of an early block added to that of deeper ones (Prompt Reinjection)"
    source = "arXiv 2602.06886, summaries; the equations from an earlier repository of its first author, SD3.5 part"

    def __post_init__(self) -> None:
        for field in ("origin", "first", "last"):
            whole(field, getattr(self, field))
        object.__setattr__(self, "weight", number("weight", self.weight, 0))
        if not isinstance(self.match, bool):
            raise TypeError(f"match must be true or false, got {self.match!r}")

    @contextmanager
    def on(self, pipe: DiffusionPipeline, prompts: Sequence[Prompt], call: Mapping[str, Any]) -> Iterator[Asked]:
        sites = sites_of(pipe, self.name)
        origin, first, last = (chosen(sites, [i], self.name)[0] for i in (self.origin, self.first, self.last))
        if not origin < first <= last:
            raise ValueError(
                f"{self.name}: origin must come before first and first not after last; of {len(sites)} blocks they are "
                f"{origin}, {first} and {last}"
            )
        kept: list[Tensor] = []

        def change(site: Site, text: Tensor) -> Tensor:
            if site.index == origin:
                kept[:] = [text]
                return text
            if self.weight == 0:
                return text
            return _matched(text, kept[0], self.weight) if self.match else text + self.weight * kept[0]

        with _between([sites[origin], *sites[first : last + 1]], self.name, change):
            yield Asked([prompt.text for prompt in prompts], dict(call))

    def cost(self, call: Mapping[str, Any]) -> Cost:
        return Cost()


def _matched(text: Tensor, early: Tensor, weight: float) -> Tensor:
    """`text` with `early` mixed in at its own scale, and with the mean and deviation of each token kept."""
    wide, size = text.float(), text.shape[-1:]
    deviation, mean = torch.std_mean(wide, -1, keepdim=True)
    mixed = F.layer_norm(wide, size) + weight * F.layer_norm(early.float(), size)
    return (F.layer_norm(mixed, size) * deviation + mean).to(text.dtype)


# ---------------------------------------------------------------- how the image attends to the text


@dataclass(frozen=True)
class Taca(Rival):
    """TACA: the image's attention to the text sharpened in the first steps (Lv et al. 2025, arXiv 2506.07986).

    softmax over [q k_text gamma(t), q k_image], divided by sqrt(d) as ever, for image queries q; text queries are left
    alone. gamma(t) is gamma where t >= threshold, else 1. Both halves of guidance. The paper adds a LoRA against
    artefacts; this is its training-free part.

    Args:
        gamma: above 0; 1 changes nothing. The authors' code has 1.2.
        threshold: of the scheduler's timestep t, 1000 (noise) to 0; 0 for all steps. 970 is the paper's, as we know
            it; the authors' code takes the first three of 30 steps instead.
    """

    gamma: float = 1.2
    threshold: float = 970.0

    name = "taca"
    summary = "the image's attention to the text sharpened in the first steps (TACA)"
    source = "arXiv 2506.07986, abstract; github Vchitect/TACA at a170b35, the two pipelines"

    def __post_init__(self) -> None:
        object.__setattr__(self, "gamma", number("gamma", self.gamma, 0))
        object.__setattr__(self, "threshold", number("threshold", self.threshold, 0, 1000))
        if self.gamma == 0:
            raise ValueError("gamma must be above 0, got 0; 1 changes nothing")

    @contextmanager
    def on(self, pipe: DiffusionPipeline, prompts: Sequence[Prompt], call: Mapping[str, Any]) -> Iterator[Asked]:
        acted = False
        times: list[float] = []  # of the call under way, read once: asking a GPU in each step would stall it

        def function(
            attend: Attend, joint: Joint, query: Tensor, key: Tensor, value: Tensor, further: dict[str, Any]
        ) -> Tensor:
            nonlocal acted
            step, steps = step_of(pipe)
            if len(times) != steps or (step == 0 and joint.block == 0):
                times[:] = pipe.scheduler.timesteps.tolist()
            if times[step] < self.threshold:
                return attend(query, key, value, further)
            acted = True
            if self.gamma == 1:
                return attend(query, key, value, further)
            sharp = key.clone()
            sharp[:, :, joint.text] *= self.gamma
            image = attend(query[:, :, joint.image], sharp, value, further)
            text = attend(query[:, :, joint.text], key, value, further)
            return torch.cat([image, text] if joint.image.start == 0 else [text, image], 2)

        with attention(pipe, self.name, function):
            yield Asked([prompt.text for prompt in prompts], dict(call))
        if not acted:
            raise RuntimeError(
                f"{self.name}: no joint attention ran at a timestep of at least {self.threshold:g}, so nothing was done"
            )

    def cost(self, call: Mapping[str, Any]) -> Cost:
        return Cost()
