"""Writes src/rarelift/data/rare_prompts.jsonl, the suite "rare": python benchmarks/make_rare_prompts.py

Eight kinds, named after those of RareBench ("Rare-to-Frequent", arXiv 2410.22376). The words below are our own, and so
is every prompt; nothing was taken from a benchmark. A prompt joins an attribute with a noun that does not have it.
"Rare" is by construction only: no corpus was counted and no model asked. Each prompt carries yes/no questions, one for
what is there and one for each attribute, action or relation.

The list is a function of the words and SEED. Change either, and `_VERSION` of rarelift.prompts must rise.
"""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parents[1] / "src" / "rarelift" / "data" / "rare_prompts.jsonl"
SEED = 1
EACH = 45  # prompts a kind

BIRDS = ("owl", "penguin", "flamingo", "pelican", "ostrich", "falcon", "heron", "puffin")
MAMMALS = (
    *("lion", "hedgehog", "otter", "walrus", "giraffe", "goat", "badger", "koala", "camel", "moose", "sloth", "alpaca"),
    *("rhino", "hippo", "kangaroo", "zebra", "squirrel", "donkey"),
)
SCALED = ("tortoise", "iguana", "goldfish", "crocodile", "seahorse")
OTHERS = ("octopus", "snail", "crab", "lobster", "squid", "moth", "beetle", "toad", "jellyfish")
ANIMALS = (*BIRDS, *MAMMALS, *SCALED, *OTHERS)
OBJECTS = (
    *("teapot", "bicycle", "lighthouse", "piano", "cactus", "umbrella", "kettle", "wristwatch", "suitcase", "guitar"),
    *("mailbox", "lantern", "armchair", "pineapple", "hammer", "telescope", "canoe", "typewriter", "ladder", "boot"),
    *(
        "pumpkin",
        "windmill",
        "trumpet",
        "bathtub",
        "tractor",
        "toaster",
        "submarine",
        "accordion",
        "hourglass",
        "igloo",
    ),
    *("igloo", "traffic light", "phone booth", "light bulb", "watering can", "basketball", "watermelon", "snowman"),
    "ukulele",
)


@dataclass(frozen=True)
class Attribute:
    """`words` stand before the noun; `asks`, formatted with the noun, is the question whose answer is yes."""

    words: str
    asks: str
    nouns: tuple[str, ...]  # what it can be said of and is rare for


def _but(nouns: tuple[str, ...], *usual: str) -> tuple[str, ...]:
    """`nouns` without those that have the attribute anyway, or of which it cannot be said."""
    return tuple(noun for noun in nouns if noun not in usual)


_HAS = {  # words: what it has, and what it may be said of
    "bearded": ("a beard", _but(ANIMALS + OBJECTS, "goat", "lion", "snowman", "moose", "camel")),
    "mustachioed": ("a moustache", _but(ANIMALS + OBJECTS, "walrus", "otter", "snowman")),
    "winged": ("wings", _but(ANIMALS + OBJECTS, *BIRDS, "moth", "beetle", "boot", "windmill")),
    "antlered": ("antlers", _but(ANIMALS + OBJECTS, "moose", "beetle")),
    "horned": ("horns", _but(ANIMALS + OBJECTS, "goat", "rhino", "owl", "snail", "beetle", "toad", "giraffe", "moose")),
    "tusked": ("tusks", _but(ANIMALS, "walrus", "hippo")),
    "feathered": ("feathers", _but(ANIMALS + OBJECTS, *BIRDS, "moth")),
    "furry": ("fur", _but(ANIMALS + OBJECTS, *MAMMALS, "boot", "moth")),
    "scaly": ("scales", _but(ANIMALS + OBJECTS, *SCALED, "pineapple", "moth")),
    "two-headed": ("two heads", _but(ANIMALS)),
    "six-legged": ("six legs", (*_but(ANIMALS, *OTHERS, "seahorse", "goldfish"), "armchair", "piano", "bathtub")),
    "maned": ("a mane", _but(ANIMALS, "lion", "zebra", "giraffe", "donkey", "camel", "moose", "alpaca")),
    "freckled": ("freckles", _but(ANIMALS + OBJECTS, "goldfish", "toad", "crab", "owl", "falcon")),
    "tattooed": ("tattoos", _but(ANIMALS + OBJECTS)),
    "ponytailed": ("a ponytail", _but(ANIMALS + OBJECTS)),
    "curly-haired": ("curly hair", _but(ANIMALS + OBJECTS, "alpaca")),
    "one-eyed": ("exactly one eye", _but(ANIMALS, "jellyfish")),
}
PROPERTIES = tuple(Attribute(w, f"Does the {{}} have {has}?", nouns) for w, (has, nouns) in _HAS.items())

_LIKE = (
    *("a star", "a heart", "a banana", "a pear", "a pyramid", "a ring", "a cube", "a mushroom", "a key", "a hand"),
    *("a crescent", "a teardrop", "a leaf", "a cloud", "a doughnut", "an arrow", "a snowflake", "a spoon", "a cone"),
    *("a carrot", "a shoe", "a bell", "a swan", "a lightning bolt"),
)
_SHAPED = _but(ANIMALS + OBJECTS, "octopus", "jellyfish", "squid", "snowman", "hourglass", "ladder", "boot")
_ALIKE = {  # a shape a noun has already, or nearly
    "a star": ("crab",),
    "a pyramid": ("igloo",),
    "a heart": ("suitcase", "basketball"),
    "a ring": ("wristwatch",),
    "a pear": ("light bulb", "guitar", "ukulele"),
    "a teardrop": ("light bulb", "ukulele"),
    "a bell": ("light bulb", "lantern", "jellyfish"),
    "a swan": (*BIRDS, "canoe"),
    "a banana": ("canoe",),
    "a leaf": ("moth", "canoe"),
    "a crescent": ("canoe",),
    "a cone": ("lighthouse", "windmill", "trumpet"),
    "a cube": ("mailbox", "toaster", "suitcase"),
    "a mushroom": ("umbrella",),
}


def _shape(like: str) -> Attribute:
    name = like.split(" ", 1)[1].replace(" ", "-")
    return Attribute(f"{name}-shaped", f"Is the {{}} shaped like {like}?", _but(_SHAPED, *_ALIKE.get(like, ())))


SHAPES = tuple(_shape(like) for like in _LIKE)

_ALL = ANIMALS + OBJECTS
_MADE = {  # words: how the question ends, and what it may be said of
    "knitted": ("knitted from wool", _but(_ALL)),
    "crocheted": ("crocheted from yarn", _but(_ALL)),
    "marble": ("made of marble", _but(_ALL, "lion", "bathtub")),
    "glass": ("made of glass", _but(_ALL, "teapot", "lantern", "light bulb", "hourglass", "kettle", "phone booth")),
    "wooden": (
        "made of wood",
        _but(_ALL, "ladder", "guitar", "piano", "canoe", "ukulele", "windmill", "armchair", "hammer", "mailbox"),
    ),
    "wicker": ("woven from wicker", _but(_ALL, "armchair", "suitcase")),
    "denim": ("made of denim", _but(_ALL, "suitcase")),
    "velvet": ("made of velvet", _but(_ALL, "armchair", "boot")),
    "quilted": ("made of quilted fabric", _but(_ALL, "suitcase", "boot", "armchair")),
    "rusty": (
        "covered with rust",
        (*ANIMALS, "pineapple", "watermelon", "snowman", "igloo", "cactus", "ukulele"),
    ),
    "mossy": ("covered with moss", _but(_ALL, "sloth", "tortoise")),
    "checkered": ("covered with a checkered pattern", _but(_ALL, "suitcase", "boot", "lantern")),
    "polka-dotted": ("covered with polka dots", _but(_ALL, "umbrella", "octopus", "boot")),
    "zebra-striped": ("covered with zebra stripes", _but(_ALL, "zebra")),
    "leopard-spotted": ("covered with leopard spots", _but(_ALL, "giraffe")),
    "tartan": ("covered with a tartan pattern", _but(_ALL, "suitcase", "umbrella")),
    "origami": ("folded from paper", _but(_ALL, "lantern")),
    "chocolate": ("made of chocolate", _but(_ALL)),
    "cardboard": ("made of cardboard", _but(_ALL, "suitcase")),
}
TEXTURES = tuple(Attribute(w, f"Is the {{}} {ends}?", nouns) for w, (ends, nouns) in _MADE.items())

ACTIONS = (
    *("playing the violin", "juggling oranges", "ironing a shirt", "reading a newspaper", "knitting a scarf"),
    *("riding a unicycle", "painting a portrait", "typing on a laptop", "flipping pancakes", "lifting a barbell"),
    *("blowing soap bubbles", "brushing its teeth", "pouring tea", "playing chess", "mowing the lawn"),
    *("walking on a tightrope", "hammering a nail", "taking a photograph", "doing a handstand", "vacuuming a carpet"),
    *("skiing down a slope", "slicing a cake", "washing the dishes", "playing the drums", "roller-skating"),
    *("waving a flag", "dancing ballet", "throwing a javelin", "surfing a wave", "fishing from a pier"),
)
PARTS = (
    *("butterfly wings", "spider legs", "rabbit ears", "a peacock tail", "an elephant trunk", "human hands"),
    *("octopus arms", "deer antlers", "a unicorn horn", "bicycle wheels", "a mermaid tail", "cat whiskers"),
)
_LACKS: dict[str, tuple[str, ...]] = {  # a part: nouns that have it, or something much like it
    "butterfly wings": ("moth",),
    "spider legs": ("crab", "lobster"),
    "rabbit ears": ("kangaroo", "donkey"),
    "a peacock tail": BIRDS,
    "octopus arms": ("octopus", "squid", "jellyfish"),
    "deer antlers": ("moose",),
    "a unicorn horn": ("rhino",),
    "bicycle wheels": ("bicycle", "tractor"),
    "a mermaid tail": SCALED,
    "cat whiskers": ("lion", "otter", "walrus", "squirrel"),
}
PLACES = (
    *("on a frozen lake", "in a library", "on the moon", "at the bottom of the sea", "on a rooftop at night"),
    *("in a greenhouse", "in a supermarket aisle", "on a desert highway", "in a snowy forest", "on a theater stage"),
)
RELATIONS = (
    *("chasing", "hugging", "riding on", "pushing", "leaning against", "standing on top of", "hiding behind"),
    *("painting", "looking through a magnifying glass at", "dancing with", "carrying"),
)


@dataclass(frozen=True)
class Draft:
    """A prompt before it has an id; `words` are what no prompt list should repeat too often."""

    text: str
    atoms: list[tuple[str, str]]
    nouns: list[str]
    attributes: list[str]

    @property
    def words(self) -> list[str]:
        return self.nouns + self.attributes


def article(phrase: str) -> str:
    """`phrase` with a or an, by its sound."""
    silent, spoken = ("hour",), ("uni", "ukulele", "one-")
    vowel = phrase.startswith(silent) or (phrase[0] in "aeiou" and not phrase.startswith(spoken))
    return f"{'an' if vowel else 'a'} {phrase}"


def _there(noun: str) -> tuple[str, str]:
    return f"Is there {article(noun)} in the picture?", "yes"


def _is(noun: str, doing: str) -> tuple[str, str]:
    return f"Is the {noun} {doing}?", "yes"


def _described(rng: random.Random, attribute: Attribute, among: tuple[str, ...]) -> Draft:
    noun = rng.choice([n for n in attribute.nouns if n in among])
    atoms = [_there(noun), (attribute.asks.format(noun), "yes")]
    return Draft(article(f"{attribute.words} {noun}"), atoms, [noun], [attribute.words])


def _part(rng: random.Random, noun: str) -> str:
    return rng.choice([part for part in PARTS if noun not in _LACKS.get(part, ())])


def _single(attributes: tuple[Attribute, ...]) -> Callable[[random.Random], Draft]:
    return lambda rng: _described(rng, rng.choice(attributes), _ALL)


def _action(rng: random.Random) -> Draft:
    noun, action = rng.choice(ANIMALS), rng.choice(ACTIONS)
    return Draft(f"{article(noun)} {action}", [_there(noun), _is(noun, action)], [noun], [action])


def _complex(rng: random.Random) -> Draft:
    """Two attributes, a texture or a shape and a part, and then an action or a place."""
    acts = rng.random() < 0.5
    thing = _described(rng, rng.choice(TEXTURES if acts else SHAPES), ANIMALS if acts else OBJECTS)
    noun = thing.nouns[0]
    part = _part(rng, noun)
    end = rng.choice(ACTIONS if acts else PLACES)
    atoms = [*thing.atoms, (f"Does the {noun} have {part}?", "yes"), _is(noun, end)]
    return Draft(f"{thing.text} with {part} {end}", atoms, [noun], [*thing.attributes, part, end])


def _pair(rng: random.Random, first: tuple[str, ...]) -> tuple[Draft, Draft]:
    """Two described nouns, different ones, with attributes of different sorts."""
    one, two = rng.sample((PROPERTIES, SHAPES, TEXTURES), 2)
    a = _described(rng, rng.choice(one), first)
    b = _described(rng, rng.choice(two), _but(_ALL, *a.nouns))
    return a, b


def _joined(rng: random.Random) -> Draft:
    a, b = _pair(rng, _ALL)
    return Draft(f"{a.text} and {b.text}", a.atoms + b.atoms, a.nouns + b.nouns, a.attributes + b.attributes)


def _related(rng: random.Random) -> Draft:
    """One described animal, and what it does to another thing."""
    a = _described(rng, rng.choice(PROPERTIES + SHAPES + TEXTURES), ANIMALS)
    noun, relation = rng.choice(_but(_ALL, *a.nouns)), rng.choice(RELATIONS)
    atoms = [*a.atoms, _there(noun), _is(a.nouns[0], f"{relation} the {noun}")]
    return Draft(f"{a.text} {relation} {article(noun)}", atoms, [*a.nouns, noun], [*a.attributes, relation])


def _several(rng: random.Random) -> Draft:
    """Two described things: the first acts, the second has a part that it lacks."""
    a, b = _pair(rng, ANIMALS)
    action, part = rng.choice(ACTIONS), _part(rng, b.nouns[0])
    atoms = [*a.atoms, _is(a.nouns[0], action), *b.atoms, (f"Does the {b.nouns[0]} have {part}?", "yes")]
    text = f"{a.text} {action} beside {b.text} with {part}"
    return Draft(text, atoms, a.nouns + b.nouns, [*a.attributes, action, *b.attributes, part])


KINDS: dict[str, Callable[[random.Random], Draft]] = {
    "single_property": _single(PROPERTIES),
    "single_shape": _single(SHAPES),
    "single_texture": _single(TEXTURES),
    "single_action": _action,
    "single_complex": _complex,
    "multi_joined": _joined,
    "multi_related": _related,
    "multi_complex": _several,
}


def drafts(kind: str, n: int = EACH) -> list[Draft]:
    """`n` different prompts of `kind`, in which no word comes much more often than another."""
    rng = random.Random(f"{kind}/{SEED}")
    found: dict[str, Draft] = {}
    used: Counter[str] = Counter()
    most = 1
    for tried in itertools.count(1):
        draft = KINDS[kind](rng)
        if draft.text not in found and all(used[word] < most for word in draft.words):
            found[draft.text] = draft
            used.update(draft.words)
        if len(found) == n:
            break
        most += tried % 200 == 0  # 200 more tries for each time a word may come again
    return list(found.values())


def rows() -> list[dict[str, Any]]:
    """The suite, one kind after another in turn, so that its first eight prompts show all of them."""
    by_kind = {kind: drafts(kind) for kind in KINDS}
    return [
        {
            "id": f"{kind}-{i + 1:02d}",
            "text": by_kind[kind][i].text,
            "kind": kind,
            "rare": True,
            "atoms": by_kind[kind][i].atoms,
            "meta": {"nouns": by_kind[kind][i].nouns, "attributes": by_kind[kind][i].attributes},
        }
        for i in range(EACH)
        for kind in KINDS
    ]


def written() -> str:
    """The text of the file."""
    return "".join(json.dumps(row) + "\n" for row in rows())


if __name__ == "__main__":
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_bytes(written().encode())
    print(f"{EACH * len(KINDS)} prompts in {TARGET}")
