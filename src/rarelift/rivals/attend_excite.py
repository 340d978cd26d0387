"""Attend-and-Excite, carried over to joint attention: latents are moved until each word has a place in the picture."""

from __future__ import annotations

import inspect
import math
import re
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..settings import one_of
from ..tokens import FUNCTION_WORDS, Reading, token_weights
from .access import Attend, Forward, Joint, around, around_method, attention, sites_of
from .base import Asked, Cost, Rival, UnsupportedPipelineError
from .checks import blocks as read_blocks
from .checks import chosen
from .prompted import Encode, Steps, counting, encoding, pooled_at, reading_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from diffusers import DiffusionPipeline

    from ..locate import Site
    from ..prompts import Prompt

CONTENT = "content"
OVER = ("text", "all")
_TIMES = (0.0, 0.2, 0.4)  # of the thresholds, as shares of the steps: 0, 10 and 20 of the paper's 50
_LAST_STEP = 0.5  # size of the last step's update, before the root, where the first one's is 1
_SIGMA = 0.5  # of the 3x3 Gaussian
_BY_SAMPLE = ("encoder_hidden_states", "pooled_projections", "timestep", "guidance")  # transformer arguments with rows


@dataclass(frozen=True)
class AttendExcite(Rival):
    """Attend-and-Excite: in early steps, x <- x - size_i * d/dx max over words s of (1 - max over places of A_s(x)).

    A_s is the map of attention from the picture to word s, averaged over heads and blocks and smoothed by a 3x3
    Gaussian of sigma 0.5; size_i = scale * sqrt(1 - i / (2 (n - 1))) in step i of n. At the first step, and after a
    fifth and two fifths of them, the update is repeated until each word's map has reached a threshold (Chefer et al.
    2023, arXiv 2301.13826, for the cross-attention of Stable Diffusion 1).

    Our reading, for joint attention. A place attends to text and image in one softmax; by default the softmax is taken
    over the text alone, as cross-attention has it, without which the thresholds would mean nothing. The authors' code
    then takes a softmax of 100 A over the tokens of the prompt without its begin; here these are the tokens of its
    words, in every text encoder's part of the stream, for padding is a large part of it. The map of a word is the sum
    over its tokens. All joint blocks count, where the paper takes the maps of 16x16 places.

    Args:
        words: "content" for the prompt's words without articles, prepositions and the like, each on its own; else a
            phrase of the prompt, or a tuple of them.
        scale: of the update, at least 0; 0 changes nothing.
        stop: share of the steps after which nothing is updated any more, 0 to 1.
        thresholds: what each word's map has to reach, from 0 to 1, at the three times.
        refinements: how often the update is repeated for that at most, at each of them.
        blocks: which joint blocks count, as in `Spread`; all when None.
        over: "text", or "all" for the softmax that the model itself takes, over text and image.
        sharpness: factor of the second softmax; 0 leaves it out.
    """

    words: str | tuple[str, ...] = CONTENT
    scale: float = 20.0
    stop: float = 0.5
    thresholds: tuple[float, ...] = (0.05, 0.5, 0.8)
    refinements: int = 20
    blocks: Any = None
    over: str = "text"
    sharpness: float = 100.0

    name = "attend-excite"
    summary = "Attend-and-Excite on joint attention: latents moved until each word has a place"
    source = "arXiv 2301.13826, by the pipeline in diffusers 0.42.1 that its authors' code became"

    def __post_init__(self) -> None:
        phrases = (self.words,) if isinstance(self.words, str) else self.words
        if not isinstance(phrases, (tuple, list)) or not phrases or not all(isinstance(p, str) and p for p in phrases):
            raise ValueError(f"words must be {CONTENT!r}, a phrase or a tuple of phrases, got {self.words!r}")
        thresholds = self.thresholds if isinstance(self.thresholds, (tuple, list)) else (self.thresholds,)
        if len(thresholds) != len(_TIMES):
            raise ValueError(f"thresholds must be {len(_TIMES)} numbers, such as 0.05+0.5+0.8, got {self.thresholds!r}")
        for name, value in (
            ("words", self.words if self.words == CONTENT else tuple(phrases)),
            ("scale", _number("scale", self.scale, math.inf)),
            ("stop", _number("stop", self.stop, 1.0)),
            ("thresholds", tuple(_number("thresholds", t, 1.0) for t in thresholds)),
            ("sharpness", _number("sharpness", self.sharpness, math.inf)),
            ("over", one_of("over", self.over, OVER)),
            ("blocks", read_blocks(self.blocks)),
        ):
            object.__setattr__(self, name, value)
        if type(self.refinements) is not int or self.refinements < 0:
            raise ValueError(f"refinements must be a whole number of at least 0, got {self.refinements!r}")

    @contextmanager
    def on(self, pipe: DiffusionPipeline, prompts: Sequence[Prompt], call: Mapping[str, Any]) -> Iterator[Asked]:
        pooled_at(pipe, self.name)
        sites = sites_of(pipe, self.name)
        with ExitStack() as stack:
            under = _Under(self, pipe, sites, stack.enter_context(counting(pipe)))
            stack.enter_context(encoding(pipe, under.encode))
            stack.enter_context(around(pipe.transformer, under.transform))
            stack.enter_context(around_method(pipe.scheduler, "step", under.step))
            yield Asked([prompt.text for prompt in prompts], dict(call))
        if under.steps.index < 0 or under.moved is not None:
            what = "the transformer was" if under.steps.index < 0 else "the scheduler's step was"
            raise RuntimeError(f"{self.name}: {what} never called, so nothing was done")

    def cost(self, call: Mapping[str, Any]) -> Cost:
        """At most, with every refinement; only the conditional half is passed through."""
        steps = int(call.get("num_inference_steps", 50))
        if not self.scale or not self.stop:
            return Cost()
        repeated = self.refinements * sum(at < self.stop for at in _TIMES)
        passes = (math.ceil(self.stop * steps) + repeated) / steps
        share = passes / 2 if call.get("guidance_scale", 1.0) > 1 else passes
        return Cost(forwards=share, backwards=share)


def _number(name: str, value: object, most: float) -> float:
    """A number, or the text of one: "0.05+0.5" on the command line comes as texts."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not (0 <= number <= most and math.isfinite(number)):
        upto = "at least 0" if most == math.inf else f"from 0 to {most:g}"
        raise ValueError(f"{name} must be {upto}, got {value!r}")
    return number


# ---------------------------------------------------------------- the maths


def shares(query: Tensor, key: Tensor, scale: float, text: slice, over: str) -> Tensor:
    """How each place attends to each text token, averaged over heads: [B, places, text], in float32.

    Args:
        query: of the places, [B, heads, places, D].
        key: of text and image, [B, heads, S, D].
        scale: of their product.
        text: where the text is among the S.
        over: "text": of the attention to the text; "all": of all attention.
    """
    seen = key[:, :, text] if over == "text" else key
    weights = (query.float() @ seen.float().transpose(-1, -2) * scale).softmax(-1).mean(1)
    return weights if over == "text" else weights[..., text]


def neglect(attended: Tensor, words: Tensor, spoken: Tensor, grid: tuple[int, int], sharpness: float) -> Tensor:
    """1 - the peak of the word's map that has the lowest one, for each sample: [B].

    Args:
        attended: how each place attends to each text token, [B, places, L].
        words: which tokens are of which word, [B, W, L]; a row of zeros is no word.
        spoken: which tokens are of any word of the prompt, [B, L].
        grid: rows and columns of the places.
        sharpness: of the softmax over the spoken tokens; 0 for none.
    """
    if sharpness:
        attended = (sharpness * attended).masked_fill(~spoken.bool().unsqueeze(1), -math.inf).softmax(-1)
    maps = torch.einsum("bpl,bwl->bwp", attended, words)
    peaks = smooth(maps.view(*maps.shape[:2], *grid)).flatten(2).amax(-1)
    none = words.sum(-1) == 0
    return (1 - peaks.masked_fill(none, math.inf).amin(1)).clamp(min=0)


def smooth(maps: Tensor) -> Tensor:
    """Maps [B, W, H, W] after a Gaussian of 3x3; beyond an edge they are mirrored."""
    side = torch.exp(-torch.arange(-1.0, 2.0).square() / (2 * _SIGMA**2))
    kernel = (side[:, None] * side).to(maps)
    padded = F.pad(maps.flatten(0, 1).unsqueeze(1), (1, 1, 1, 1), mode="reflect")
    return F.conv2d(padded, (kernel / kernel.sum())[None, None]).view(maps.shape)


# ---------------------------------------------------------------- one call of a pipeline


class _Under:
    """One call of a pipeline under way: its words, its step, and the latents of the step after the update."""

    def __init__(self, rival: AttendExcite, pipe: DiffusionPipeline, sites: tuple[Site, ...], steps: Steps) -> None:
        self.rival, self.pipe, self.family, self.steps = rival, pipe, sites[0].family, steps
        wanted = range(len(sites)) if rival.blocks is None else rival.blocks
        self.blocks = frozenset(chosen(sites, wanted, rival.name))
        self.moved: Tensor | None = None
        self._words: tuple[Tensor, Tensor] | None = None

    def encode(self, encode: Encode, arguments: dict[str, Any]) -> tuple[Any, ...]:
        found = encode(arguments)
        if self.rival.scale and self.rival.stop:
            self.family, reading = reading_of(self.pipe, self.family, arguments, found[0])
            if reading.cond is None:
                raise ValueError(f"{self.rival.name} needs the words of a call; pass prompt, not prompt_embeds")
            each, spoken = self._positions(reading, reading.cond)
            self._words = each.to(found[0].device), spoken.to(found[0].device)
        return found

    def transform(self, forward: Forward, arguments: dict[str, Any]) -> Any:
        if self.steps.begins():
            early = self.steps.index < self.rival.stop * self.steps.total
            self.moved = self._excite(forward, arguments) if self.rival.scale and early else None
        if self.moved is not None:  # both halves of guidance have the same latents, in one call or in two
            latents = arguments["hidden_states"]
            times = len(latents) // len(self.moved)
            arguments["hidden_states"] = self.moved.repeat(times, *[1] * (latents.ndim - 1))
        return forward(arguments)

    def step(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The scheduler's, from the latents after the update: the pipeline knows only those before it."""
        if self.moved is None:
            return step(*args, **kwargs)
        bound = inspect.signature(step).bind(*args, **kwargs)
        sample = bound.arguments["sample"]
        if sample.shape != self.moved.shape:
            raise self._more()
        bound.arguments["sample"] = self.moved.to(sample.dtype)
        self.moved = None
        return step(*bound.args, **bound.kwargs)

    def _excite(self, forward: Forward, arguments: dict[str, Any]) -> Tensor:
        """The latents of this step after its updates; samples do not see each other."""
        if self._words is None:
            raise RuntimeError(
                f"{self.rival.name}: the pipeline drew without encode_prompt, so its words are not known"
            )
        rows, step, total = len(self._words[0]), self.steps.index, self.steps.total
        size = self.rival.scale * math.sqrt(1 - (1 - _LAST_STEP) * step / max(total - 1, 1))
        latents: Tensor = arguments["hidden_states"][-rows:].clone()  # the conditional half is the last one

        def towards(which: Tensor) -> tuple[Tensor, Tensor]:
            return self._gradient(forward, arguments, latents, which)

        loss, slope = towards(torch.arange(rows, device=latents.device))
        for threshold, at in zip(self.rival.thresholds, _TIMES, strict=True):
            for _ in range(self.rival.refinements if step == round(at * total) else 0):
                left = (loss > 1 - threshold).nonzero().flatten()
                if not len(left):
                    break
                latents[left] -= (size * slope[left]).to(latents)
                loss[left], slope[left] = towards(left)
        return latents - (size * slope).to(latents)

    def _gradient(
        self, forward: Forward, arguments: dict[str, Any], latents: Tensor, which: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of some samples the loss [B], and its gradient by the latents in float32, from a conditional pass."""
        assert self._words is not None
        rows, maps = len(self._words[0]), []

        def collect(
            attend: Attend, joint: Joint, query: Tensor, key: Tensor, value: Tensor, further: dict[str, Any]
        ) -> Tensor:
            if further.get("attn_mask") is not None:
                raise UnsupportedPipelineError(f"{self.rival.name} does not know attention with a mask")
            if joint.block in self.blocks:
                scale = further.get("scale") or query.shape[-1] ** -0.5
                maps.append(shares(query[:, :, joint.image], key, scale, joint.text, self.rival.over))
            return attend(query, key, value, further)

        with torch.inference_mode(False), torch.enable_grad():
            x = latents[which].detach().requires_grad_()
            words, spoken = (part[which] for part in self._words)
            some = {n: arguments[n][-rows:][which] for n in _BY_SAMPLE if isinstance(arguments.get(n), Tensor)}
            with attention(self.pipe, self.rival.name, collect):
                forward({**arguments, **some, "hidden_states": x})
            grid = self._grid(x, arguments)
            loss = neglect(sum(maps[1:], maps[0]) / len(maps), words, spoken, grid, self.rival.sharpness)
            (slope,) = torch.autograd.grad(loss.sum(), x)
        return loss.detach(), slope.float()

    def _grid(self, latents: Tensor, arguments: dict[str, Any]) -> tuple[int, int]:
        """Rows and columns of the image tokens."""
        if latents.ndim == 4:
            patch = self.pipe.transformer.config.patch_size
            return latents.shape[2] // patch, latents.shape[3] // patch
        last = arguments["img_ids"].reshape(-1, 3).amax(0)
        rows, columns = int(last[1]) + 1, int(last[2]) + 1
        if rows * columns != latents.shape[1]:
            raise self._more()
        return rows, columns

    def _more(self) -> UnsupportedPipelineError:
        pipe = type(self.pipe).__name__
        return UnsupportedPipelineError(
            f"{self.rival.name}: {pipe} gives the transformer more than the picture's latents"
        )

    def _positions(self, reading: Reading, texts: Mapping[str, tuple[str, ...]]) -> tuple[Tensor, Tensor]:
        """Which tokens are of which word, [rows, W, L], and which of any word of the prompt, [rows, L]."""
        each, spoken = [], []
        for i in range(reading.prompts):
            own = {name: (values[i],) for name, values in texts.items()}
            main = own["prompt"][0] if "prompt" in own else next(iter(own.values()))[0]
            phrases = _content_words(main) if self.rival.words == CONTENT else list(self.rival.words)
            named = self.rival.words != CONTENT  # a phrase has to be there; a word may be cut off with the prompt's end

            def where(phrase: str, must: bool, own: Mapping[str, tuple[str, ...]] = own) -> Tensor:
                return token_weights(self.pipe, self.family, own, (phrase,), reading.segments, must_hold=must)[0]

            found = [tokens for tokens in (where(phrase, named) for phrase in phrases) if tokens.any()]
            if not found:
                raise ValueError(f"{self.rival.name}: the prompt {main!r} has no word to look for; name some by words=")
            each.append(torch.stack(found))
            # other encoders may be given other texts
            spoken.append(torch.stack([where(text, False) for (text,) in set(own.values())]).amax(0))
        most = max(map(len, each))
        padded = torch.stack([F.pad(words, (0, 0, 0, most - len(words))) for words in each])
        images = reading.rows // reading.prompts
        return padded.repeat_interleave(images, 0), torch.stack(spoken).repeat_interleave(images, 0)


def _content_words(text: str) -> list[str]:
    """The different words of a prompt without function words, in their order."""
    return list(dict.fromkeys(word for word in re.findall(r"\w+", text.lower()) if word not in FUNCTION_WORDS))
