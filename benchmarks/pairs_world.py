"""Two animals of the Menagerie in one picture, side by side or one above the other: what `pairs.py` trains on.

Colours, patterns, wearables and their long tail are those of `rarelift.menagerie.world`, animal by animal; so are the
glyphs. New are the second animal and the place of each. One scene holds both: it is of either animal's, in turn.

The canvas is 96 x 96. An animal is 35 pixels wide, hats rise 12 above it, so a tile of 50 holds one with all it wears,
and 96 is the least that takes two tiles either way (they may lap by a few clear pixels). Its 144 image tokens are 0.56
of those of 128 x 128, where animals would be as large as in the Menagerie; what is lost is a quarter of their width.
"""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from PIL import Image

from rarelift.menagerie import world
from rarelift.menagerie.world import VALUES, Attribute, Thing, draw_thing, habitat, value_shares

SIZE = 96
TILE = 50  # side of a figure with what it wears; the animal's width is 0.70 of it
BODY = (25, 31)  # the middle of the animal in its tile, right and down

Relation = Literal["and", "left of", "above"]
Suite = Literal["common", "rare"]
Split = Literal["tune", "report"]
Kind = Literal["multi_joined", "multi_related", "multi_complex"]
RELATIONS: tuple[Relation, ...] = get_args(Relation)
KINDS: tuple[Kind, ...] = get_args(Kind)
ARRANGEMENTS = ("side by side", "stacked")
OF_SUBJECT: tuple[Attribute, ...] = ("animal", "colour", "pattern", "wearable")
ASKED = (*OF_SUBJECT, "scene", "relation")  # what a verdict is about
BARE = 1 / 3  # share of pictures in which neither animal wears anything
PHRASINGS = 4
# what the judge names, in this order: the first animal in reading order, the second, how they stand, the scene
HEADS = (*[len(VALUES[a]) for a in OF_SUBJECT] * 2, len(ARRANGEMENTS), len(VALUES["scene"]))


@dataclass(frozen=True)
class Pair:
    """What a picture shows: two different animals, each with its attributes, in one scene."""

    first: Thing
    second: Thing
    relation: Relation

    def __post_init__(self) -> None:
        if self.relation not in RELATIONS:
            raise ValueError(f"relation {self.relation!r} is unknown; there are {', '.join(RELATIONS)}")
        if self.first.animal == self.second.animal:
            raise ValueError(f"a pair is of two animals, not two of one ({self.first.animal})")
        if self.first.scene != self.second.scene:
            raise ValueError(f"a pair has one scene, not {self.first.scene} and {self.second.scene}")


def draw_pair(rng: random.Random) -> Pair:
    """One pair as training shows it."""
    first = draw_thing(rng)
    second = draw_thing(rng)
    while second.animal == first.animal:
        second = draw_thing(rng)
    scene = rng.choice((first.scene, second.scene))
    worn = {"wearable": "nothing"} if rng.random() < BARE else {}
    return Pair(replace(first, scene=scene, **worn), replace(second, scene=scene, **worn), rng.choice(RELATIONS))


def frequency(pair: Pair) -> float:
    """Probability that one training picture shows exactly `pair`, asked for in this order."""
    things = (pair.first, pair.second)
    n = len(VALUES["animal"])
    share = 1 / (n * (n - 1) * len(RELATIONS))
    share *= sum(value_shares(t.animal, "scene")[t.scene] for t in things) / 2
    worn = 1 - BARE
    for thing in things:
        share *= (
            value_shares(thing.animal, "colour")[thing.colour] * value_shares(thing.animal, "pattern")[thing.pattern]
        )
        worn *= value_shares(thing.animal, "wearable")[thing.wearable]
    return share * (worn + BARE * all(t.wearable == "nothing" for t in things))


def placed(pair: Pair, rng: random.Random) -> tuple[int, ...]:
    """The labels of a picture of `pair`, in the order of `HEADS`; "and" leaves order and arrangement to `rng`."""
    things, arrangement = [pair.first, pair.second], RELATIONS.index(pair.relation) - 1
    if pair.relation == "and":
        rng.shuffle(things)
        arrangement = rng.randrange(len(ARRANGEMENTS))
    return (*things[0].labels[:4], *things[1].labels[:4], arrangement, things[0].labels[4])


# ---------------------------------------------------------------------------------------------- captions


def caption(
    pair: Pair,
    phrasing: int = 0,
    *,
    colours: tuple[bool, bool] = (True, True),
    plain: bool = True,
    scene: bool = True,
) -> str:
    """`pair` in words.

    Args:
        phrasing: 0 to 3; odd ones put the pattern before the colour, from 2 on the scene comes first.
        colours, plain, scene: False leaves a subject's colour, the word "plain" or the scene unsaid.
    """
    if not 0 <= phrasing < PHRASINGS:
        raise ValueError(f"phrasing is 0 to {PHRASINGS - 1}, not {phrasing}")
    first, second = (
        world.caption(thing, phrasing % 2, colour=said, plain=plain, scene=False)
        for thing, said in zip((pair.first, pair.second), colours, strict=True)
    )
    where = [_in(pair.first.scene)] if scene else []
    parts = [first, pair.relation, second]
    return " ".join([*where, *parts] if phrasing >= 2 else [*parts, *where])


@functools.cache
def _in(scene: str) -> str:
    thing = Thing("cat", "red", "plain", "nothing", scene)
    bare = world.caption(thing, 0, scene=False)
    return world.caption(thing, 0).removeprefix(bare).strip()


def draw_caption(pair: Pair, rng: random.Random) -> str:
    """A caption as training sees it: the scene unsaid in a quarter, each colour in one of twelve."""
    return caption(
        pair,
        rng.randrange(PHRASINGS),
        colours=(rng.random() > 1 / 12, rng.random() > 1 / 12),
        plain=rng.random() > 1 / 2,
        scene=rng.random() > 1 / 4,
    )


@functools.cache
def lexicon() -> tuple[str, ...]:
    """Every word that a caption can hold, in a fixed order."""
    ground = Thing("cat", "red", "striped", "hat", "meadow")
    things = [replace(ground, **{a: value}) for a in VALUES for value in VALUES[a]]
    said = {word for thing in things for p in range(2) for word in world.caption(thing, p).split()}
    return tuple(sorted(said | {word for relation in RELATIONS for word in relation.split()}))


@functools.cache
def max_words() -> int:
    """Words of the longest caption."""
    cat = Thing("cat", "red", "striped", "hat", "meadow")
    longest = Pair(cat, replace(cat, animal="dog"), "left of")
    return max(len(caption(longest, p).split()) for p in range(PHRASINGS))


NO_WORD = 255


def draw_rows(seed: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """`n` training examples: labels [n, 10], and captions as numbers in `lexicon()`, [n, max_words()], then NO_WORD."""
    rng = random.Random(seed)
    number = {word: i for i, word in enumerate(lexicon())}
    labels = np.empty((n, len(HEADS)), np.uint8)
    words = np.full((n, max_words()), NO_WORD, np.uint8)
    for row in range(n):
        pair = draw_pair(rng)
        labels[row] = placed(pair, rng)
        said = [number[word] for word in draw_caption(pair, rng).split()]
        words[row, : len(said)] = said
    return labels, words


# ----------------------------------------------------------------------------------------------- pictures


@functools.cache  # seconds
def figures(animal: str) -> np.ndarray:
    """Every figure of `animal`: premultiplied RGBA, uint8 [colours * patterns * wearables, TILE, TILE, 4]."""
    values = [(c, p, w) for c in VALUES["colour"] for p in VALUES["pattern"] for w in VALUES["wearable"]]
    drawn = np.stack([world._figure.__wrapped__(animal, *v, TILE) for v in values])
    return np.asarray((drawn * 255).round(), np.uint8)


def grounds() -> np.ndarray:
    """Every scene, uint8 [scenes, SIZE, 2 * SIZE, 3]: those of the Menagerie, half as large again."""
    wide = [Image.fromarray((world._ground(s) * 255).round().astype(np.uint8)) for s in VALUES["scene"]]
    return np.stack([np.asarray(g.resize((2 * SIZE, SIZE), Image.Resampling.BICUBIC)) for g in wide])


# ------------------------------------------------------------------------------------------------ prompts


@dataclass(frozen=True)
class PairPrompt:
    """A prompt, what its picture must show, and how much of that it names."""

    text: str
    pair: Pair
    kind: Kind

    @property
    def named(self) -> tuple[Attribute, ...]:
        """The attributes that the text names, of each subject or of the scene."""
        return (*OF_SUBJECT, "scene") if self.kind == "multi_complex" else OF_SUBJECT[:3]


def split_of(pair: Pair, kind: Kind) -> Split:
    """The half that a prompt for `pair` belongs to, whatever is asked for beside it."""
    digest = hashlib.sha256(f"{kind} {pair}".encode()).digest()
    return "report" if digest[0] % 2 else "tune"


def prompts(suite: Suite, n: int, *, split: Split, seed: int = 0) -> list[PairPrompt]:
    """`n` different prompts of `suite`, the kinds in turn, in an order fixed by `seed`.

    common: all that is named is of its animal's habitat. rare: so it is for one of the two, while nothing that is
    named of the other is of its habitat, though training shows each of it with that animal now and then.

    multi_joined: "a blue cat and a red dog", in any place. multi_related: left of or above. multi_complex: any of the
    three, both wear something, and the scene is named.
    """
    rng = random.Random(f"pairs/{suite}/{split}/{seed}")
    found: dict[str, PairPrompt] = {}
    while len(found) < n:
        kind = KINDS[len(found) % len(KINDS)]
        pair = _propose(suite, kind, rng)
        if pair is not None and split_of(pair, kind) == split:
            text = caption(pair, rng.randrange(PHRASINGS), scene=kind == "multi_complex")
            found.setdefault(text, PairPrompt(text, pair, kind))
    return list(found.values())


def _propose(suite: Suite, kind: Kind, rng: random.Random) -> Pair | None:
    """A pair of `suite`, or None where the two have no scene that would do."""
    animals = rng.sample(VALUES["animal"], 2)
    odd = animals[rng.randrange(2)] if suite == "rare" else ""
    scenes = [s for s in VALUES["scene"] if all((s in habitat(a)["scene"]) != (a == odd) for a in animals)]
    if not scenes:
        return None
    scene = rng.choice(scenes)
    things = []
    for animal in animals:
        colour, pattern, wearable = (rng.choice(_values(animal, a, animal == odd)) for a in OF_SUBJECT[1:])
        things.append(Thing(animal, colour, pattern, wearable if kind == "multi_complex" else "nothing", scene))
    first, second = things
    if kind == "multi_joined":
        return Pair(first, second, "and")
    return Pair(first, second, rng.choice(RELATIONS if kind == "multi_complex" else RELATIONS[1:]))


def _values(animal: str, attribute: Attribute, rare: bool) -> list[str]:
    """What `animal` is usually, or now and then, seen with; "nothing" has no name."""
    shares, usual = value_shares(animal, attribute), habitat(animal)[attribute]
    return [v for v, share in shares.items() if share > 0 and (v not in usual) == rare and v != "nothing"]


def verdict(prompt: PairPrompt, seen: Sequence[int]) -> list[bool]:
    """Which of `ASKED` is right in a picture that the judge reads as `seen` (in the order of `HEADS`).

    A subject's attribute is right where both have theirs; what is not named is right. The two are told apart by the
    order in which more is right, so that animals in each other's place are a wrong relation, not wrong animals.
    """
    want = np.array([prompt.pair.first.labels[:4], prompt.pair.second.labels[:4]])
    got = np.array([seen[:4], seen[4:8]])
    unnamed = np.array([a not in prompt.named for a in OF_SUBJECT])
    fits = [(want == got[order]).all(0) | unnamed for order in ([0, 1], [1, 0])]
    as_placed = fits[0].sum() >= fits[1].sum()
    relation = prompt.pair.relation
    return [
        *map(bool, fits[0] if as_placed else fits[1]),
        "scene" not in prompt.named or seen[9] == prompt.pair.first.labels[4],
        relation == "and" or bool(as_placed and seen[8] == RELATIONS.index(relation) - 1),
    ]
