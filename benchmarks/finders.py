"""Which words of a prompt are rare, model in hand: finders against the known rarity of the Menagerie.

    pip install wordfreq                       for the finder that looks words up; its word lists are those of 2021
    python benchmarks/finders.py tune          score the words of the tune half, to choose
    python benchmarks/finders.py report        the same on the report half
    python benchmarks/finders.py table         print the tables and write docs/beyond.md, from benchmarks/results/

A *finder* gives every content word of a prompt a number. It is held against the habitats of the Menagerie by the area
under the ROC curve (AUC): how often a rare word is above a common one of the same kind, 0.5 being chance. A run goes on
where it was stopped.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import bars
from measure import RESULTS, Bench, fingerprint, table, versions, write_section
from rarelift import pipelines
from rarelift.anatomy import captured
from rarelift.bench.stats import Estimate
from rarelift.locate import locate
from rarelift.menagerie.suite import MenageriePrompt, Split, Suite, prompts
from rarelift.menagerie.world import ATTRIBUTES, PHRASINGS, VALUES, Thing, caption, lexicon, value_shares
from rarelift.rivals.access import Attend, Joint, attention
from rarelift.tokens import FUNCTION_WORDS, token_weights

FILE = RESULTS / "finders.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "beyond.md"
SIZES: dict[Split, dict[Suite, int]] = {
    "tune": {"rare": 64, "common": 64, "property": 48, "texture": 32, "never": 24},
    "report": {"rare": 192, "common": 192, "property": 64, "never": 64, "texture": 64},
}
SIGMAS = (1.0, 0.8, 0.6, 0.4, 0.2)  # noise levels of the Euler steps, from pure noise
ROWS = 64  # of one call of the transformer
GUIDANCE = 5.0  # best for the untouched pipeline, by bars.py
ALONE_NOISES = 4  # that the effect of a word on its own is averaged over


# the questions
WITHIN, SAME, WHICH = "words: rare prompts, common prompts", "the same word there", "one rare word a prompt: which"
PROMPT = "prompt: rare or common"
NEVER, SUITES = "word: never or seldom seen", "prompt: never or rare"
SELDOM, UNKNOWN = "rare prompt: right in fewer than half of the draws", "never right, or at least once"
ANIMAL, ABOVE, WRONG = "animal: rare prompts, common prompts", "animal above the rare words", "animal that fails"
QUESTIONS = (WITHIN, SAME, WHICH, PROMPT, NEVER, SUITES, SELDOM, UNKNOWN, ANIMAL, ABOVE, WRONG)


# ---------------------------------------------------------------------------------------------- words


def words_of(text: str) -> list[str]:
    """The content words of a Menagerie caption, which has each word once."""
    return [word for word in text.split() if word not in FUNCTION_WORDS]


def without(text: str, word: str) -> str:
    return " ".join(w for w in text.split() if w != word)


@functools.cache
def kind_of() -> dict[str, str]:
    """Word to the attribute that it names; words such as "wearing" name none and are left out."""
    ground = Thing("cat", "red", "striped", "hat", "meadow")
    kinds: dict[str, str] = {}
    for attribute in ATTRIBUTES:
        for phrasing in range(PHRASINGS):
            said = [set(caption(replace(ground, **{attribute: v}), phrasing).split()) for v in VALUES[attribute]]
            for i, words in enumerate(said):
                others = set().union(*(other for j, other in enumerate(said) if j != i))
                kinds.update(dict.fromkeys(words - others - FUNCTION_WORDS, attribute))
    return kinds


# ---------------------------------------------------------------------------------------------- the model


class Probe:
    """The bundled pipeline, one forward at a time."""

    def __init__(self) -> None:
        self.model = pipelines.load(dtype=torch.float32, device="cpu")
        self.pipe = self.model.pipe
        self.family = locate(self.pipe)[0].family

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Text stream `[N, L, D]` and pooled embedding `[N, P]` of each text."""
        length = self.model.defaults["max_sequence_length"]
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            list(texts), None, None, do_classifier_free_guidance=False, max_sequence_length=length
        )
        return embeds, pooled

    def predict(self, x: Tensor, sigma: float, embeds: Tensor, pooled: Tensor) -> Tensor:
        """The velocity at `x`, `[N, C, H, W]`."""
        parts = (torch.split(each, ROWS) for each in (x, embeds, pooled))
        return torch.cat(
            [
                self.pipe.transformer(
                    hidden_states=a,
                    timestep=torch.full((len(a),), 1000 * sigma),
                    encoder_hidden_states=b,
                    pooled_projections=c,
                    return_dict=False,
                )[0]
                for a, b, c in zip(*parts, strict=True)
            ]
        )

    def places(self, text: str, word: str) -> Tensor:
        """Which positions of the text stream hold a word, `[L]`, 0 or 1."""
        return self._weights(text, (word,))

    def valid(self, text: str) -> Tensor:
        return self._weights(text, "valid")

    def _weights(self, text: str, tokens: str | tuple[str, ...]) -> Tensor:
        sizes = (self.pipe.tokenizer_max_length, self.model.defaults["max_sequence_length"])
        said = {"prompt": (text,), "prompt_2": (text,), "prompt_3": (text,)}
        return token_weights(self.pipe, self.family, said, tokens, sizes)[0]

    def noise(self, seed: int) -> Tensor:
        side = self.pipe.transformer.config.sample_size
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(1, self.pipe.transformer.config.in_channels, side, side, generator=generator)


def squared(difference: Tensor) -> Tensor:
    """Sum of squares of each row, `[N]`."""
    return difference.flatten(1).square().sum(1)


def apart(one: Tensor, other: Tensor) -> Tensor:
    """1 - cosine of each row, `[N]`."""
    return 1 - F.cosine_similarity(one.flatten(1), other.flatten(1))


@dataclass
class Trajectory:
    """Euler steps of the prompt itself, and what leaving each word out changes at each of them, `[words]` each."""

    effect: list[Tensor]
    turned: list[Tensor]
    first: Tensor  # the first prediction of all rows

    @property
    def surprisal(self) -> Tensor:
        """Nats between pictures of the prompt and of the prompt without the word, were the model exact.

        KL = integral over sigma of |dv|^2 (1 - sigma) / sigma, along the path of the prompt: what the two predictions
        of a rectified flow differ by, seen through noise of that strength (the path-wise form of the relation between
        mutual information and mean square error).
        """
        ends = (*SIGMAS[1:], 0.0)
        return torch.stack(
            [e * (1 - s) / s * (s - end) for e, s, end in zip(self.effect, SIGMAS, ends, strict=True)]
        ).sum(0)


def follow(probe: Probe, x: Tensor, embeds: Tensor, pooled: Tensor, steps: int = len(SIGMAS)) -> Trajectory:
    """Euler steps of row 0, and what all other rows predict along its way."""
    effect, turned, predictions = [], [], []
    for sigma, lower in list(zip(SIGMAS, (*SIGMAS[1:], 0.0), strict=True))[:steps]:
        v = probe.predict(x.expand(len(embeds), -1, -1, -1), sigma, embeds, pooled)
        clean = x - sigma * v
        effect.append(squared(v[1:] - v[:1]))
        turned.append(apart(clean[1:], clean[:1].expand_as(clean[1:])))
        predictions.append(v)
        x = x + (lower - sigma) * v[:1]
    return Trajectory(effect, turned, predictions[0])


# ---------------------------------------------------------------------------------------------- the finders


@dataclass(frozen=True)
class Said:
    """What all finders of one prompt share."""

    text: str
    words: tuple[str, ...]
    x: Tensor


def look_up(probe: Probe, said: Said) -> dict[str, Tensor]:
    """How often a word is met: in English, by the tokenizer's order, in the captions that trained the model."""
    zipf = importlib.import_module("wordfreq").zipf_frequency
    vocabulary = probe.pipe.tokenizer.get_vocab()
    return {
        "english": torch.tensor([-zipf(word, "en") for word in said.words]),
        "tokenizer": torch.tensor([float(vocabulary[f"{word}</w>"]) for word in said.words]),
        "training": torch.tensor([-math.log(_marginal(word)) for word in said.words]),
    }


def _marginal(word: str) -> float:
    """Share of training pictures that show what a word names, whatever the animal."""
    attribute: Any = kind_of().get(word)
    if attribute in (None, "animal"):
        return 1.0 if attribute is None else 1 / len(VALUES["animal"])
    ground = Thing("cat", "red", "striped", "hat", "meadow")
    value = next(
        v
        for v in VALUES[attribute]
        if any(word in caption(replace(ground, **{attribute: v}), p).split() for p in range(PHRASINGS))
    )
    return float(np.mean([value_shares(animal, attribute)[value] for animal in VALUES["animal"]]))


def one_forward(probe: Probe, said: Said) -> dict[str, Tensor]:
    """What one forward of the first step shows: drift of each token toward the mean, attention it receives."""
    embeds, pooled = probe.encode([said.text])
    share = torch.zeros(embeds.shape[1])

    def listen(
        attend: Attend, joint: Joint, query: Tensor, key: Tensor, value: Tensor, further: dict[str, Any]
    ) -> Tensor:
        logits = query[:, :, joint.image] @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        share.add_(logits.softmax(-1)[..., joint.text].mean((0, 1, 2)))
        return attend(query, key, value, further)

    with captured(probe.pipe.transformer) as streams, attention(probe.pipe, "finders", listen):
        probe.predict(said.x, 1.0, embeds, pooled)
    valid = probe.valid(said.text).bool()
    deviations = []
    for calls in streams.values():
        z = calls[0][0]
        deviations.append(z - z[valid].mean(0))
    places = torch.stack([probe.places(said.text, word) for word in said.words])
    places = places / places.sum(1, keepdim=True)
    last = len(deviations) - 1

    def pulled(block: int) -> Tensor:
        """log of how much nearer to the mean a token is than in block 0, against what all tokens do."""
        nearer = [d.norm(dim=-1) / d[valid].square().sum(-1).mean().sqrt() for d in (deviations[0], deviations[block])]
        found: Tensor = places @ (nearer[0].clamp_min(1e-9) / nearer[1].clamp_min(1e-9)).log()
        return found

    turned = 1 - F.cosine_similarity(deviations[0], deviations[last], dim=-1)
    return {
        "drift 2": pulled(2),
        "drift 4": pulled(4),
        f"drift {last}": pulled(last),
        "drift in direction": places @ turned,
        "attention": places @ share / len(deviations),
    }


def left_out(probe: Probe, said: Said, steps: int) -> tuple[dict[str, Tensor], Trajectory]:
    """What leaving a word out changes: the embeddings, the first prediction, those along the way."""
    n = len(said.words)
    embeds, pooled = probe.encode([said.text, *(without(said.text, word) for word in said.words), ""])
    track = follow(probe, said.x, embeds, pooled, steps)
    # the word left out of the pooled embedding only, and not of the text stream
    pool = probe.predict(said.x.expand(n, -1, -1, -1), 1.0, embeds[:1].expand(n, -1, -1), pooled[1 : n + 1])
    undone, whole = squared(pool - track.first[:1]), track.effect[0][n]
    scores = {
        "encoder": apart(pooled[1 : n + 1], pooled[:1].expand(n, -1)),
        **{f"effect {s:g}": e[:n] for s, e in zip(SIGMAS, track.effect, strict=False)},
        "effect 1, share of the prompt's": track.effect[0][:n] / whole,
        "pooled embedding alone": undone,
        "pooled embedding alone, share": undone / whole,
        **{f"turn of the prediction {s:g}": t[:n] for s, t in zip(SIGMAS, track.turned, strict=False)},
    }
    return scores, track


def tried(probe: Probe, said: Said, track: Trajectory, alone: Mapping[str, Alone]) -> dict[str, Tensor]:
    """What was measured on the tune half only, and did not do better than what it is a variant of."""
    n = len(said.words)
    embeds, pooled = probe.encode([said.text, *(without(said.text, word) for word in said.words), ""])
    places = torch.stack([probe.places(said.text, word) for word in said.words])[:, :, None]
    swapped = torch.lerp(embeds[:1].expand(n, -1, -1), embeds[-1:].expand(n, -1, -1), places)
    rows = torch.cat([swapped, embeds[1 : n + 1]]), pooled[:1].expand(2 * n, -1)
    v = probe.predict(said.x.expand(2 * n, -1, -1, -1), 1.0, *rows)
    swap, stream = torch.split(squared(v - track.first[:1]), n)
    lone_embeds, lone_pooled = probe.encode([f"a {word}" for word in said.words])
    lone = probe.predict(said.x.expand(n, -1, -1, -1), 1.0, lone_embeds, lone_pooled) - track.first[-1:]
    by_word = [alone[word] for word in said.words]
    effect, surprisal = track.effect[0][:n], track.surprisal[:n]
    return {
        "effect 1, against the word alone": (effect / torch.tensor([a.effect for a in by_word])).log(),
        "states of the empty prompt": swap,
        "text stream alone": stream,
        "interaction": squared(track.first[:1] - track.first[1 : n + 1] - lone),
        "surprisal": surprisal,
        "surprisal, beyond the word alone": surprisal - torch.tensor([a.surprisal for a in by_word]),
        "surprisal, against the word alone": (surprisal / torch.tensor([a.surprisal for a in by_word])).log(),
    }


@dataclass(frozen=True)
class Alone:
    """What a word on its own does against the empty prompt, a mean over noises."""

    effect: float
    surprisal: float


def words_alone(probe: Probe) -> dict[str, Alone]:
    found = {}
    words = sorted(lexicon() - FUNCTION_WORDS)
    for word in tqdm(words, desc="words alone", leave=False):
        embeds, pooled = probe.encode([f"a {word}", ""])
        tracks = [follow(probe, probe.noise(9000 + i), embeds, pooled) for i in range(ALONE_NOISES)]
        effect = np.mean([float(track.effect[0]) for track in tracks])
        found[word] = Alone(float(effect), float(np.mean([float(track.surprisal) for track in tracks])))
    return found


# ---------------------------------------------------------------------------------------------- measuring


@torch.no_grad()
def measure(split: Split, file: Path = FILE) -> None:
    """Score every word of a half that the file does not hold yet, a suite a line.

    Raises:
        ValueError: the file holds scores of other weights than those of the bundled model.
    """
    made = {**versions(), "weights": fingerprint(pipelines.BUNDLED)}
    done = set()
    for record in read(file):
        if record["made"]["weights"] != made["weights"]:
            raise ValueError(f"{file} was drawn with other weights ({record['made']['weights']}); move it away")
        done.add((record["split"], record["suite"]))
    probe = Probe()
    alone: dict[str, Alone] = {}
    for suite, n in SIZES[split].items():
        if (split, suite) in done:
            continue
        if split == "tune":
            alone = alone or words_alone(probe)
        scores: dict[str, list[list[float]]] = {}
        for i, prompt in enumerate(tqdm(prompts(suite, n, split=split), desc=f"{split} {suite}")):
            said = Said(prompt.text, tuple(words_of(prompt.text)), probe.noise(i))
            found, track = left_out(probe, said, len(SIGMAS) if split == "tune" else 1)
            found |= look_up(probe, said)
            if split == "tune":  # what did not do better there than what is reported
                found |= {**one_forward(probe, said), **tried(probe, said, track, alone)}
            for name, values in found.items():
                scores.setdefault(name, []).append([float(f"{v:.3g}") for v in values.tolist()])
        with file.open("a") as lines:
            lines.write(json.dumps({"split": split, "suite": suite, "n": n, "scores": scores, "made": made}) + "\n")


def read(file: Path = FILE) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


# ---------------------------------------------------------------------------------------------- judging


@dataclass(frozen=True)
class Pooled:
    """One value per word or prompt, those that should be higher, what they are compared within, and their things."""

    values: np.ndarray
    positive: np.ndarray
    strata: list[str]
    things: list[str]


def auc(data: Pooled, resamples: int = 1000) -> Estimate:
    """How often a positive is above a negative of its stratum, ties counting half, resampled by thing.

    Raises:
        ValueError: no stratum has both.
    """
    names = {name: i for i, name in enumerate(dict.fromkeys(data.things))}
    index = np.array([names[thing] for thing in data.things])
    drawn = np.random.default_rng(0).multinomial(len(names), [1 / len(names)] * len(names), size=resamples)
    counts = np.concatenate([np.ones((1, len(names))), drawn])
    wins, pairs = np.zeros(resamples + 1), np.zeros(resamples + 1)
    strata = np.array(data.strata)
    for stratum in dict.fromkeys(data.strata):
        high, low = ((strata == stratum) & side for side in (data.positive, ~data.positive))
        above, below = data.values[high][:, None], data.values[low][None]
        better = (above > below) + 0.5 * (above == below)
        weight_high, weight_low = counts[:, index[high]], counts[:, index[low]]
        wins += ((weight_high @ better) * weight_low).sum(1)
        pairs += weight_high.sum(1) * weight_low.sum(1)
    if not pairs[0]:
        raise ValueError("nothing to compare: no stratum has both a positive and a negative")
    shares = wins[1:][pairs[1:] > 0] / pairs[1:][pairs[1:] > 0]
    value = float(wins[0] / pairs[0])
    low_end, high_end = np.quantile(shares, [0.025, 0.975]) if resamples else (value, value)
    return Estimate(value, float(low_end), float(high_end))


@dataclass(frozen=True)
class Word:
    """One word of a scored prompt."""

    prompt: int
    text: str
    kind: str | None
    rare: bool
    held_out: bool


@dataclass(frozen=True)
class Scored:
    """The words of one suite and the scores of each finder, in one order."""

    prompts: list[MenageriePrompt]
    words: list[Word]
    scores: dict[str, np.ndarray]

    def of(self, finder: str) -> list[tuple[Word, float]]:
        return list(zip(self.words, self.scores[finder].tolist(), strict=True))


Half = dict[str, Scored]  # suite to its words


def scored(split: Split, file: Path = FILE) -> Half:
    """What the file holds of a half."""
    found: Half = {}
    for record in read(file):
        if record["split"] != split:
            continue
        asked = prompts(record["suite"], record["n"], split=split)
        words = [_word(i, prompt.thing, word) for i, prompt in enumerate(asked) for word in words_of(prompt.text)]
        scores = {name: np.concatenate([np.array(v) for v in rows]) for name, rows in record["scores"].items()}
        found[record["suite"]] = Scored(asked, words, scores)
    return found


def _word(prompt: int, thing: Thing, word: str) -> Word:
    kind = kind_of().get(word)
    rare = kind in thing.tail
    return Word(prompt, word, kind, rare, rare and value_shares(thing.animal, kind)[getattr(thing, kind)] == 0)  # type: ignore[arg-type]


def by_word(half: Half, finder: str, wanted: Mapping[str, Callable[[Word], bool | None]], strata: str) -> Pooled:
    """Words pooled over suites; `wanted` says for each suite which are positive, None leaves a word out."""
    rows = [
        (score, sign, getattr(word, strata), repr(half[suite].prompts[word.prompt].thing))
        for suite, says in wanted.items()
        for word, score in half[suite].of(finder)
        if (sign := says(word)) is not None
    ]
    values, positive, groups, things = zip(*rows, strict=True)
    return Pooled(np.array(values), np.array(positive, bool), list(groups), list(things))


def by_prompt(half: Half, finder: str, positive: Mapping[str, Sequence[bool | None] | bool], how: str) -> Pooled:
    """One value per prompt: the max or mean of its content words; `positive` may leave a prompt out with None."""
    values, signs, things = [], [], []
    for suite, says in positive.items():
        data = half[suite]
        ends = np.cumsum(np.bincount([word.prompt for word in data.words]))[:-1]
        for i, scores in enumerate(np.split(data.scores[finder], ends)):
            sign = says if isinstance(says, bool) else says[i]
            if sign is not None:
                values.append(scores.max() if how == "max" else scores.mean())
                signs.append(sign)
                things.append(repr(data.prompts[i].thing))
    return Pooled(np.array(values), np.array(signs, bool), [""] * len(values), things)


def outcomes(split: Split, n: int) -> np.ndarray:
    """[n, draws, 5] verdicts of the untouched pipeline on the first rare prompts, by benchmarks/bars.py."""
    bench = Bench(RESULTS / "bars.jsonl")
    cell = bars.report("rare", GUIDANCE) if split == "report" else bars.tuning("rare", GUIDANCE)
    return bench.right(cell).reshape(cell.n, cell.seeds, -1)[:n]


def questions(half: Half, split: Split) -> dict[str, Callable[[str], Pooled]]:
    """What each finder is asked, by the heading of the column."""
    right = outcomes(split, len(half["rare"].prompts))
    often = right.all(2).mean(1)
    animal_wrong = right[:, :, 0].mean(1) < 0.5

    def named(word: Word) -> bool | None:
        return word.rare if word.kind not in (None, "animal") else None

    def held(word: Word) -> bool | None:
        return word.held_out if word.rare else None

    def animal(sign: bool) -> Callable[[Word], bool | None]:
        return lambda word: sign if word.kind == "animal" else None

    def against_own(word: Word) -> bool | None:
        return word.kind == "animal" if word.kind else None

    def animals_wrong(word: Word) -> bool | None:
        return bool(animal_wrong[word.prompt]) if word.kind == "animal" else None

    one = {"property": named, "texture": named}
    asked: dict[str, Callable[[str], Pooled]] = {
        WITHIN: lambda f: by_word(half, f, {"rare": named, "common": named}, "kind"),
        SAME: lambda f: by_word(half, f, {"rare": named, "common": named}, "text"),
        WHICH: lambda f: by_word(half, f, one, "kind"),
        **{
            f"{PROMPT}, {how}": functools.partial(_prompts_of, half, {"rare": True, "common": False}, how)
            for how in ("max", "mean")
        },
        NEVER: lambda f: by_word(half, f, {"never": held, "property": held}, "kind"),
        ANIMAL: lambda f: by_word(half, f, {"rare": animal(True), "common": animal(False)}, "text"),
        ABOVE: lambda f: by_word(half, f, {"rare": against_own}, "prompt"),
        WRONG: lambda f: by_word(half, f, {"rare": animals_wrong}, "text"),
    }
    failing = [bool(share < 0.5) for share in often]
    drowned = [None if share >= 0.5 else bool(share == 0) for share in often]
    for how in ("max", "mean"):
        asked[f"{SELDOM}, {how}"] = functools.partial(_prompts_of, half, {"rare": failing}, how)
        if split == "report":
            asked[f"{UNKNOWN}, {how}"] = functools.partial(_prompts_of, half, {"rare": drowned}, how)
        asked[f"{SUITES}, {how}"] = functools.partial(_prompts_of, half, {"never": True, "rare": False}, how)
    return asked


def _prompts_of(half: Half, positive: Mapping[str, Any], how: str, finder: str) -> Pooled:
    return by_prompt(half, finder, positive, how)


# ---------------------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Judged:
    """A finder's AUC for each question, its directions taken from the tune half."""

    finder: str
    answers: dict[str, Estimate]
    turned: dict[str, bool]

    def cell(self, question: str, *, whole: bool = False) -> str:
        found, low = self.answers[question], self.turned[question]
        return f"{found:.2f}" * whole + f"{found.value:.2f}" * (not whole) + " low" * low


def judged(finder: str, tune: Half, report: Half, resamples: int) -> Judged:
    """Answers on `report`; a direction is turned round, and max or mean taken for a prompt, by the tune half."""
    on_tune = {name: auc(make(finder), 0).value for name, make in questions(tune, "tune").items()}
    made = questions(report, "report" if report is not tune else "tune")
    answers, turned = {}, {}
    for name in dict.fromkeys(name.removesuffix(", max").removesuffix(", mean") for name in made):
        as_on_tune = SELDOM if name == UNKNOWN else name  # the tune half has one draw of each
        options = [o for o in ("", ", max", ", mean") if f"{as_on_tune}{o}" in on_tune]
        how = max(options, key=lambda o: abs(on_tune[f"{as_on_tune}{o}"] - 0.5))
        low = turned[name] = on_tune[f"{as_on_tune}{how}"] < 0.5
        found = auc(made[f"{name}{how}"](finder), resamples)
        answers[name] = Estimate(1 - found.value, 1 - found.high, 1 - found.low) if low else found
    return Judged(finder, answers, turned)


COST = {
    "english": "0",
    "tokenizer": "0",
    "training": "0",
    "drift": "1",
    "attention": "1",
    "encoder": "0",
    "effect 1, share": "2 + n",
    **{
        f"{found} {sigma:g}": f"{calls} + n"  # the prompt alone up to that noise level, and there without each word too
        for found in ("effect", "turn of the prediction")
        for calls, sigma in enumerate(SIGMAS, 1)
    },
    "pooled embedding alone, share": "2 + n",
    "states": "1 + n",
    "text": "1 + n",
    "pooled": "1 + n",
    "interaction": "2 + 2n",
    "surprisal": f"{len(SIGMAS)} + {len(SIGMAS) - 1}n",  # at pure noise the words weigh nothing: the prompt alone
}
"""The least rows of the transformer for a prompt of n content words, by how the finder's name begins.

What a word does on its own is measured once for all prompts, and not counted.
"""


def cost(finder: str) -> str:
    return next(rows for name, rows in COST.items() if finder.startswith(name))


def calibration(half: Half) -> str:
    """Mean surprisal of colours, patterns, wearables and scenes, against their share in training."""
    rows: dict[str, list[tuple[float, float]]] = {}
    for suite in ("common", "property", "texture", "never"):
        for word, score in half[suite].of("surprisal"):
            thing = half[suite].prompts[word.prompt].thing
            if word.kind in (None, "animal") or (suite == "common" and word.rare):
                continue
            share = value_shares(thing.animal, word.kind)[getattr(thing, word.kind)]
            group = next(name for name, least in CLASSES.items() if share >= least)
            rows.setdefault(group, []).append((share, score))
    return table(
        ["value", "words", "-log share in training", "surprisal, median [quartiles]"],
        [
            [
                group,
                str(len(rows[group])),
                "infinite" if rows[group][0][0] == 0 else f"{np.mean([-math.log(s) for s, _ in rows[group]]):.1f}",
                "{1:.1f} [{0:.1f}, {2:.1f}]".format(*np.quantile([v for _, v in rows[group]], [0.25, 0.5, 0.75])),
            ]
            for group in CLASSES
        ],
    )


CLASSES = {"usual": 0.5, "second": 0.25, "seldom": 1e-9, "never": 0.0}
"""Least share of training pictures of the animal."""


def render() -> str:
    """All finders on the tune half, those that were reported on the report half."""
    tune, report = scored("tune"), scored("report")

    def sizes(half: Half) -> str:
        return ", ".join(f"{len(data.prompts)} {suite}" for suite, data in half.items())

    tried_ = [judged(name, tune, tune, 0) for name in tune["rare"].scores]
    kept = [judged(name, tune, report, 1000) for name in report["rare"].scores]
    shown = [question for question in QUESTIONS if question != UNKNOWN]  # the tune half has one draw of each prompt
    rows = [[r.finder, cost(r.finder), *(r.cell(q) for q in shown)] for r in tried_]
    parts = (QUESTIONS[:4], QUESTIONS[4:8], QUESTIONS[8:])
    return "\n\n".join(
        [
            f"Tune half, all finders ({sizes(tune)} prompts):",
            table(["finder", "rows", *shown], rows),
            f"Report half ({sizes(report)} prompts), with 95% intervals:",
            *(
                table(["finder", *part], [[r.finder, *(r.cell(q, whole=True) for q in part)] for r in kept])
                for part in parts
            ),
            "Surprisal by how often training showed the value with the animal, tune half:",
            calibration(tune),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("tune", "report", "table"))
    args = parser.parse_args()
    if args.do == "table":
        text = render()
        print(text)
        write_section(PAGE, "finders", text)
        return
    measure(args.do)


if __name__ == "__main__":
    main()
