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
    *("pumpkin", "windmill", "trumpet", "bathtub", "tractor", "toaster", "submarine", "accordion", "hourglass"),
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


_ALL = ANIMALS + OBJECTS
_SPOTTED = (
    *("octopus", "toad", "crab", "seahorse", "lobster", "beetle", "moth", "snail", "goldfish", "giraffe", "iguana"),
    *("squid", "jellyfish"),
)
_SEAFOOD = ("octopus", "squid", "crab", "lobster")  # a popcorn squid is a dish
_CLOTH = ("suitcase", "umbrella", "armchair", "boot")  # often sewn, woven or printed
_HAS = {  # words: what it has, and what it may be said of
    "bearded": ("a beard", _but(_ALL, "goat", "lion", "snowman", "moose", "camel", "iguana", "cactus")),
    "mustachioed": ("a moustache", _but(_ALL, "walrus", "otter", "snowman")),
    "winged": ("wings", _but(_ALL, *BIRDS, "moth", "beetle", "boot", "windmill", "lion", "squirrel", "hourglass")),
    "antlered": ("antlers", _but(_ALL, "moose", "beetle")),
    "horned": ("horns", _but(_ALL, "goat", "rhino", "owl", "snail", "beetle", "toad", "giraffe", "moose", "iguana")),
    "tusked": ("tusks", _but(ANIMALS, "walrus", "hippo")),
    "feathered": ("feathers", _but(_ALL, *BIRDS, "moth")),
    "furry": ("fur", _but(_ALL, *MAMMALS, "boot", "moth", "crab", "lobster", "beetle", "armchair", "cactus")),
    "scaly": ("scales", _but(_ALL, *SCALED, "pineapple", "moth")),
    "two-headed": ("two heads", _but(ANIMALS, "tortoise")),
    "six-legged": ("six legs", (*_but(ANIMALS, *OTHERS, "seahorse", "goldfish"), "armchair", "piano", "bathtub")),
    "maned": ("a mane", _but(ANIMALS, "lion", "zebra", "giraffe", "donkey", "camel", "moose", "alpaca", "sloth")),
    "freckled": ("freckles", _but(_ALL, *_SPOTTED, "owl", "falcon", "pineapple")),
    "tattooed": ("tattoos", _but(_ALL)),
    "ponytailed": ("a ponytail", _but(_ALL)),
    "curly-haired": ("curly hair", _but(_ALL, "alpaca", "goat", "donkey", "camel", "cactus")),
    # not one: in profile every animal shows a single eye
    "three-eyed": ("exactly three eyes", _but(ANIMALS, "jellyfish", "iguana")),
}
PROPERTIES = tuple(Attribute(w, f"Does the {{}} have {has}?", nouns) for w, (has, nouns) in _HAS.items())

_LIKE = (
    *("a star", "a heart", "a banana", "a pear", "a pyramid", "a ring", "a cube", "a mushroom", "a key", "a hand"),
    *("a crescent", "a teardrop", "a leaf", "a cloud", "a doughnut", "an arrow", "a snowflake", "a spoon", "a cone"),
    *("a carrot", "a shoe", "a bell", "a swan", "a lightning bolt"),
)
# left out: what has no shape of its own, or is made in many
_SHAPED = _but(
    _ALL,
    *("octopus", "jellyfish", "squid", "snowman", "hourglass", "ladder", "boot", "armchair", "lantern", "guitar"),
    "cactus",
)
_ALIKE = {  # a shape that a noun has already, or nearly, or is known for
    "a star": ("crab", "tortoise"),
    "a heart": ("suitcase", "basketball", "owl", "traffic light", "wristwatch", "watermelon", "teapot", "umbrella"),
    "a banana": ("canoe",),
    "a pear": (
        *("light bulb", "ukulele", "teapot", "kettle", "pumpkin", "rhino", "hippo", "walrus", "penguin", "owl"),
        *("koala", "puffin", "toad", "tortoise"),
    ),
    "a pyramid": ("igloo", "watermelon", "tortoise"),
    "a ring": ("wristwatch", "pineapple", "light bulb"),
    "a doughnut": ("pineapple",),
    "a cube": ("mailbox", "toaster", "suitcase", "teapot", "watermelon", "phone booth", "traffic light", "bathtub"),
    "a mushroom": ("umbrella", "pumpkin", "light bulb"),
    "a hand": ("crab",),
    "a crescent": ("canoe",),
    "a teardrop": ("light bulb", "ukulele", "pumpkin", "penguin", "wristwatch", "canoe"),
    "a leaf": ("moth", "canoe", "seahorse", "beetle", "iguana"),
    "a cloud": ("alpaca",),
    "an arrow": ("crab", "traffic light", "canoe"),
    "a cone": ("lighthouse", "windmill", "trumpet", "snail", "kettle"),
    "a shoe": ("bathtub",),
    "a bell": ("light bulb", "umbrella", "teapot", "kettle"),
    "a swan": (*BIRDS, "canoe", "teapot", "watering can"),
}


def _shape(like: str) -> Attribute:
    name = like.split(" ", 1)[1].replace(" ", "-")
    return Attribute(f"{name}-shaped", f"Is the {{}} shaped like {like}?", _but(_SHAPED, *_ALIKE.get(like, ())))


SHAPES = tuple(_shape(like) for like in _LIKE)

# Toys and ornaments make knitted, carved, folded and blown animals common: those are said of objects only.
_MADE = {  # words: how the question ends, and what it may be said of
    "knitted": ("knitted from wool", _but(OBJECTS, "boot", "snowman", "armchair", "lantern", "teapot")),
    "crocheted": (
        "crocheted from yarn",
        _but(OBJECTS, "cactus", "snowman", "pumpkin", "boot", "armchair", "lantern", "teapot"),
    ),
    "marble": ("made of marble", _but(OBJECTS, "bathtub", "lantern")),
    "glass": (
        "made of glass",
        _but(
            OBJECTS,
            *("teapot", "lantern", "light bulb", "hourglass", "kettle", "phone booth", "igloo", "pumpkin", "cactus"),
            *("snowman", "pineapple", "lighthouse", "watering can", "boot"),
        ),
    ),
    "wooden": (
        "made of wood",
        (
            *("teapot", "umbrella", "kettle", "igloo", "traffic light", "light bulb", "watering can", "basketball"),
            *("toaster", "trumpet"),
        ),
    ),
    "wicker": (
        "woven from wicker",
        _but(OBJECTS, "armchair", "suitcase", "lantern", "pineapple", "pumpkin", "snowman"),
    ),
    "quilted": ("made of quilted fabric", _but(OBJECTS, *_CLOTH, "snowman")),
    "velvet": ("made of velvet", _but(OBJECTS, *_CLOTH, "pumpkin", "snowman")),
    "origami": ("folded from paper", _but(OBJECTS, "lantern", "canoe", "umbrella", "snowman")),
    "gingerbread": ("made of gingerbread", _but(OBJECTS, "lighthouse", "windmill", "snowman", "igloo", "phone booth")),
    "denim": ("made of denim", _but(_ALL, *_CLOTH)),
    "corduroy": ("made of corduroy", _but(_ALL, *_CLOTH)),
    "bubble-wrap": ("made of bubble wrap", _but(_ALL)),
    "brick": ("made of bricks", _but(_ALL, "lighthouse", "windmill", "mailbox", "igloo", "bathtub", "phone booth")),
    "popcorn": ("made of popcorn", _but(_ALL, *_SEAFOOD, "kettle", "snowman")),
    "spaghetti": ("made of spaghetti", _but(_ALL, *_SEAFOOD, "pumpkin")),
    "chain-mail": ("made of chain mail", _but(_ALL)),
    "rust-covered": ("covered with rust", (*ANIMALS, "pineapple", "watermelon", "igloo", "cactus", "ukulele")),
    "moss-covered": (
        "covered with moss",
        (
            *_but(ANIMALS, "sloth", "tortoise", "crab", "snail", "toad", "crocodile", "iguana", "beetle"),
            *("teapot", "piano", "wristwatch", "guitar", "typewriter", "trumpet", "toaster", "accordion", "telescope"),
            *("basketball", "ukulele", "traffic light", "light bulb", "hourglass", "umbrella"),
        ),
    ),
    "checkered": ("covered with a checkered pattern", _but(_ALL, *_CLOTH, "lantern", "lighthouse")),
    "polka-dotted": (
        "covered with polka dots",
        _but(_ALL, *_SPOTTED, *_CLOTH, "teapot", "kettle", "mailbox", "watering can", "lantern"),
    ),
    "zebra-striped": (
        "covered with zebra stripes",
        _but(_ALL, *_CLOTH, "zebra", "moth", "goldfish", "seahorse", "lighthouse"),
    ),
    "leopard-spotted": ("covered with leopard spots", _but(_ALL, *_SPOTTED, *_CLOTH, "tortoise")),
    "tartan": ("covered with a tartan pattern", _but(_ALL, *_CLOTH)),
    "argyle": ("covered with an argyle pattern", _but(_ALL, *_CLOTH)),
    "paisley": ("covered with a paisley pattern", _but(_ALL, *_CLOTH)),
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
_UNFIT = {  # an action: who does it anyway, or lacks what it takes
    "brushing its teeth": (*BIRDS, *OTHERS, "tortoise", "goldfish", "seahorse"),
    "fishing from a pier": ("pelican", "heron", "puffin", "otter"),
    "juggling oranges": ("otter",),
    "surfing a wave": ("penguin", "otter", "seahorse", "goldfish"),
    "skiing down a slope": ("penguin",),
}
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
_TWICE: dict[str, tuple[str, ...]] = {  # a part: attributes that say the same, or the opposite
    "butterfly wings": ("winged",),
    "spider legs": ("six-legged",),
    "octopus arms": ("six-legged",),
    "deer antlers": ("antlered", "horned"),
    "a unicorn horn": ("antlered", "horned"),
    "a peacock tail": ("feathered",),
    "cat whiskers": ("mustachioed",),
    "human hands": ("hand-shaped",),
}
PLACES = (
    *("on a frozen lake", "in a library", "on the moon", "at the bottom of the sea", "on a rooftop at night"),
    *("in a greenhouse", "in a supermarket aisle", "on a desert highway", "in a snowy forest", "on a theater stage"),
)
RELATIONS = (
    *("chasing", "hugging", "riding on", "pushing", "leaning against", "standing on top of", "hiding behind"),
    *("photographing", "looking through a magnifying glass at", "dancing with", "carrying"),
)


@dataclass(frozen=True)
class Draft:
    """A prompt before it has an id.

    `words` are what no list should repeat too often, `said`, what is said of which noun, what it should say once only.
    """

    text: str
    atoms: list[tuple[str, str]]
    nouns: list[str]
    attributes: list[str]
    said: list[tuple[str, str]]

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


def _described(rng: random.Random, attributes: tuple[Attribute, ...], among: tuple[str, ...]) -> Draft:
    attribute = rng.choice([a for a in attributes if not set(among).isdisjoint(a.nouns)])
    noun = rng.choice([n for n in attribute.nouns if n in among])
    atoms = [_there(noun), (attribute.asks.format(noun), "yes")]
    return Draft(article(f"{attribute.words} {noun}"), atoms, [noun], [attribute.words], [(noun, attribute.words)])


def _part(rng: random.Random, thing: Draft) -> str:
    """A part that the only thing in the draft lacks."""
    noun, words = thing.nouns[0], thing.attributes[0]
    fit = [part for part in PARTS if noun not in _LACKS.get(part, ()) and words not in _TWICE.get(part, ())]
    return rng.choice(fit)


def _act(rng: random.Random, noun: str) -> str:
    return rng.choice([action for action in ACTIONS if noun not in _UNFIT.get(action, ())])


def _single(attributes: tuple[Attribute, ...]) -> Callable[[random.Random], Draft]:
    return lambda rng: _described(rng, attributes, _ALL)


def _action(rng: random.Random) -> Draft:
    noun = rng.choice(ANIMALS)
    action = _act(rng, noun)
    return Draft(f"{article(noun)} {action}", [_there(noun), _is(noun, action)], [noun], [action], [(noun, action)])


def _complex(rng: random.Random) -> Draft:
    """Two attributes, a texture or a shape and a part, and then an action or a place."""
    acts = rng.random() < 0.5
    thing = _described(rng, TEXTURES if acts else SHAPES, ANIMALS if acts else OBJECTS)
    noun, part = thing.nouns[0], _part(rng, thing)
    end = _act(rng, noun) if acts else rng.choice(PLACES)
    atoms = [*thing.atoms, (f"Does the {noun} have {part}?", "yes"), _is(noun, end)]
    text = f"{thing.text} with {part} {'is ' * acts}{end}"  # without "is", it is the part that acts
    said = [*thing.said, (noun, part), (noun, end)]
    return Draft(text, atoms, [noun], [*thing.attributes, part, end], said)


def _pair(rng: random.Random, first: tuple[str, ...]) -> tuple[Draft, Draft]:
    """Two described nouns, different ones, with attributes of different sorts."""
    one, two = rng.sample((PROPERTIES, SHAPES, TEXTURES), 2)
    a = _described(rng, one, first)
    b = _described(rng, two, _but(_ALL, *a.nouns))
    return a, b


def _joined(rng: random.Random) -> Draft:
    a, b = _pair(rng, _ALL)
    text = f"{a.text} and {b.text}"
    return Draft(text, a.atoms + b.atoms, a.nouns + b.nouns, a.attributes + b.attributes, a.said + b.said)


def _related(rng: random.Random) -> Draft:
    """One described animal, and what it does to another thing."""
    a = _described(rng, PROPERTIES + SHAPES + TEXTURES, ANIMALS)
    noun, relation = rng.choice(_but(_ALL, *a.nouns)), rng.choice(RELATIONS)
    atoms = [*a.atoms, _there(noun), _is(a.nouns[0], f"{relation} the {noun}")]
    said = [*a.said, (noun, relation)]
    return Draft(f"{a.text} {relation} {article(noun)}", atoms, [*a.nouns, noun], [*a.attributes, relation], said)


def _several(rng: random.Random) -> Draft:
    """Two described things: the first acts, the second has a part that it lacks."""
    a, b = _pair(rng, ANIMALS)
    action, part = _act(rng, a.nouns[0]), _part(rng, b)
    atoms = [*a.atoms, _is(a.nouns[0], action), *b.atoms, (f"Does the {b.nouns[0]} have {part}?", "yes")]
    text = f"{a.text} {action} beside {b.text} with {part}"
    said = [*a.said, (a.nouns[0], action), *b.said, (b.nouns[0], part)]
    return Draft(text, atoms, a.nouns + b.nouns, [*a.attributes, action, *b.attributes, part], said)


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


def drafts() -> dict[str, list[Draft]]:
    """`EACH` prompts a kind, in which no word comes much more often than it has to, and nothing is said twice."""
    rng = random.Random(SEED)
    found: dict[str, list[Draft]] = {kind: [] for kind in KINDS}
    used: Counter[str] = Counter()
    said: set[tuple[str, str]] = set()
    most = dict.fromkeys(KINDS, 1)  # times that a word may have come before; one more where 200 tries find nothing
    # one of each kind in turn, or the later kinds would be left with the words that the earlier did not take
    for kind in list(KINDS) * EACH:
        for tried in itertools.count(1):
            draft = KINDS[kind](rng)
            if all(used[word] < most[kind] for word in draft.words) and said.isdisjoint(draft.said):
                break
            most[kind] += tried % 200 == 0
        found[kind].append(draft)
        used.update(draft.words)
        said.update(draft.said)
    return found


def rows() -> list[dict[str, Any]]:
    """The suite, one kind after another in turn, so that its first eight prompts show all of them."""
    by_kind = drafts()
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
