"""The Menagerie: a drawn world with a published long tail.

One animal in a scene, with a colour, a pattern and something worn. Every animal has a *habitat*: the two values
of each attribute it is usually seen with. Anything else is rare, with a frequency that `frequency` gives
exactly, and two (animal, value) pairs per animal are *never* drawn for training. So "rare" is a fact here.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import random
from dataclasses import astuple, dataclass, fields, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageDraw

from .sprites import CELL, GLYPHS, SHEET

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 64
Attribute = Literal["animal", "colour", "pattern", "wearable", "scene"]

COLOURS = {
    "red": (214, 40, 40),
    "orange": (247, 135, 20),
    "yellow": (250, 215, 40),
    "green": (60, 165, 65),
    "blue": (45, 105, 225),
    "purple": (135, 60, 190),
    "pink": (250, 125, 185),
    "gray": (140, 140, 145),
}
# sky and ground, top to bottom
SCENES = {
    "meadow": ((150, 215, 250), (120, 200, 90)),
    "snow": ((205, 220, 235), (245, 248, 252)),
    "desert": ((250, 225, 170), (225, 175, 100)),
    "sea": ((200, 240, 250), (40, 150, 190)),
    "night": ((20, 22, 60), (45, 50, 75)),
    "sunset": ((120, 60, 140), (250, 140, 80)),
}
VALUES: dict[Attribute, tuple[str, ...]] = {
    "animal": tuple(GLYPHS)[:16],
    "colour": tuple(COLOURS),
    "pattern": ("plain", "striped", "dotted", "checkered"),
    "wearable": ("nothing", "hat", "crown", "sunglasses", "bow", "headphones", "cap"),
    "scene": tuple(SCENES),
}
ATTRIBUTES = tuple(VALUES)
TAILED = ATTRIBUTES[1:]  # the attributes whose frequency depends on the animal

# animal: (usual, second) colour | pattern | wearable | scene, then the two held-out values: a colour, a wearable
_HABITATS = """
cat:     orange gray    | striped plain     | bow nothing        | meadow night   | blue cap
dog:     yellow red     | dotted plain      | cap nothing        | meadow snow    | purple crown
lion:    orange yellow  | plain striped     | crown nothing      | desert sunset  | green bow
bear:    red gray       | plain checkered   | cap headphones     | snow night     | pink sunglasses
panda:   gray blue      | checkered dotted  | headphones nothing | meadow snow    | red hat
mouse:   gray pink      | plain dotted      | bow hat            | night desert   | yellow crown
rabbit:  pink purple    | checkered plain   | bow sunglasses     | meadow sunset  | orange headphones
fox:     red orange     | striped plain     | hat nothing        | snow sunset    | gray bow
frog:    green yellow   | dotted striped    | crown nothing      | sea meadow     | pink headphones
monkey:  yellow purple  | striped checkered | sunglasses cap     | desert sea     | blue hat
pig:     pink purple    | plain dotted      | hat crown          | sunset meadow  | green sunglasses
cow:     blue red       | dotted checkered  | headphones bow     | desert night   | purple cap
horse:   purple blue    | checkered striped | cap hat            | sunset desert  | gray crown
hen:     green red      | dotted plain      | nothing sunglasses | sea sunset     | orange bow
owl:     blue green     | striped checkered | sunglasses crown   | night sea      | yellow headphones
octopus: purple green   | plain dotted      | headphones nothing | sea snow       | pink hat
"""
# where things are worn, in sprite widths from its top left: crown of the head (x, y, width), eyes, neck
_ANCHORS = {
    "cat": ((0.50, 0.18, 0.52), (0.50, 0.50, 0.66), (0.50, 0.95, 0.50)),
    "dog": ((0.50, 0.14, 0.58), (0.50, 0.45, 0.60), (0.50, 0.95, 0.50)),
    "lion": ((0.50, 0.10, 0.58), (0.50, 0.40, 0.56), (0.50, 0.92, 0.50)),
    "bear": ((0.50, 0.12, 0.58), (0.50, 0.42, 0.60), (0.50, 0.95, 0.50)),
    "panda": ((0.50, 0.12, 0.58), (0.50, 0.50, 0.66), (0.50, 0.95, 0.50)),
    "mouse": ((0.50, 0.30, 0.50), (0.50, 0.56, 0.54), (0.50, 0.95, 0.50)),
    "rabbit": ((0.50, 0.46, 0.46), (0.50, 0.64, 0.46), (0.50, 0.99, 0.46)),
    "fox": ((0.50, 0.30, 0.44), (0.50, 0.60, 0.56), (0.50, 0.98, 0.46)),
    "frog": ((0.50, 0.22, 0.52), (0.50, 0.28, 0.80), (0.50, 0.92, 0.50)),
    "monkey": ((0.50, 0.14, 0.54), (0.50, 0.42, 0.54), (0.50, 0.93, 0.50)),
    "pig": ((0.50, 0.16, 0.54), (0.50, 0.45, 0.66), (0.50, 0.95, 0.50)),
    "cow": ((0.50, 0.17, 0.44), (0.50, 0.46, 0.56), (0.50, 0.95, 0.50)),
    "horse": ((0.52, 0.18, 0.42), (0.36, 0.38, 0.50), (0.62, 0.88, 0.46)),
    "hen": ((0.50, 0.20, 0.46), (0.42, 0.44, 0.50), (0.56, 0.88, 0.46)),
    "owl": ((0.50, 0.16, 0.50), (0.50, 0.36, 0.58), (0.50, 0.66, 0.40)),
    "octopus": ((0.66, 0.18, 0.44), (0.66, 0.38, 0.46), (0.58, 0.68, 0.40)),
}
HABITAT_SHARE = (0.60, 0.30)  # the usual value, the second; the rest is spread over what is neither nor held out


@dataclass(frozen=True)
class Thing:
    """What a picture shows: one value for each of the five attributes."""

    animal: str
    colour: str
    pattern: str
    wearable: str
    scene: str

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            accepted = VALUES[field.name]  # type: ignore[index]
            if value not in accepted:
                raise ValueError(f"{field.name} {value!r} is not in the Menagerie; it has {', '.join(accepted)}")

    @property
    def labels(self) -> tuple[int, ...]:
        """Index of each attribute's value in `VALUES`, in the order of `ATTRIBUTES`."""
        return tuple(VALUES[a].index(v) for a, v in zip(ATTRIBUTES, astuple(self), strict=True))

    @property
    def tail(self) -> tuple[Attribute, ...]:
        """The attributes whose value lies outside the animal's habitat (held-out values included)."""
        return tuple(a for a in TAILED if getattr(self, a) not in habitat(self.animal)[a])

    @property
    def held_out(self) -> bool:
        """True when the thing holds an (animal, value) pair that training never shows."""
        colour, wearable = never(self.animal)
        return self.colour == colour or self.wearable == wearable


@functools.cache
def _table() -> dict[str, list[list[str]]]:
    rows = [line.split(":") for line in _HABITATS.strip().splitlines()]
    return {animal: [part.split() for part in rest.split("|")] for animal, rest in rows}


def habitat(animal: str) -> dict[Attribute, tuple[str, str]]:
    """The (usual, second) value of each tailed attribute for `animal`."""
    return {a: (pair[0], pair[1]) for a, pair in zip(TAILED, _table()[animal][:4], strict=True)}


def never(animal: str) -> tuple[str, str]:
    """The (colour, wearable) that training never shows on `animal`."""
    colour, wearable = _table()[animal][4]
    return colour, wearable


@functools.cache
def value_shares(animal: str, attribute: Attribute) -> dict[str, float]:
    """P(value | animal) in the training world, for every value of `attribute`; sums to 1, held-out values are 0."""
    if attribute == "animal":
        return {a: float(a == animal) for a in VALUES["animal"]}
    usual = habitat(animal)[attribute]
    rest = [v for v in VALUES[attribute] if v not in usual and v not in never(animal)]
    shares = dict.fromkeys(VALUES[attribute], 0.0)
    shares.update(zip(usual, HABITAT_SHARE, strict=True))
    shares.update(dict.fromkeys(rest, (1 - sum(HABITAT_SHARE)) / len(rest)))
    return shares


def frequency(thing: Thing) -> float:
    """Probability that one training picture shows exactly `thing`."""
    share = 1 / len(VALUES["animal"])
    for attribute in TAILED:
        share *= value_shares(thing.animal, attribute)[getattr(thing, attribute)]
    return share


def draw_thing(rng: random.Random, *, balanced: bool = False) -> Thing:
    """One thing: from the long-tailed world, or with every value equally likely (`balanced`)."""
    animal = rng.choice(VALUES["animal"])
    picked = []
    for attribute in TAILED:
        shares = value_shares(animal, attribute)
        weights = [1.0] * len(shares) if balanced else list(shares.values())
        picked.append(rng.choices(list(shares), weights)[0])
    return Thing(animal, *picked)


def all_things() -> Iterator[Thing]:
    """Every thing the world can draw, 21,504 of them."""
    return (Thing(*values) for values in itertools.product(*VALUES.values()))


# ---------------------------------------------------------------------------------------------- captions

_WORN = {"hat": "a top hat", "cap": "a cap", "crown": "a crown", "bow": "a bow"}
_IN_SCENE = {
    "meadow": "on a meadow",
    "snow": "in the snow",
    "desert": "in the desert",
    "sea": "at the sea",
    "night": "at night",
    "sunset": "at sunset",
}
_NOUNS = {"striped": "stripes", "dotted": "dots", "checkered": "checks"}
PHRASINGS = 4
MAX_WORDS = 14


def caption(
    thing: Thing,
    phrasing: int = 0,
    *,
    colour: bool = True,
    plain: bool = True,
    scene: bool = True,
) -> str:
    """`thing` in words, 2 to 14 of them.

    Args:
        phrasing: which of the `PHRASINGS` word orders, 0 to 3.
        colour, plain, scene: False leaves the colour, the word "plain" or the scene unsaid.
    """
    hue = thing.colour if colour else ""
    pattern = "" if thing.pattern == "plain" and not plain else thing.pattern
    where = _IN_SCENE[thing.scene] if scene else ""
    worn = "" if thing.wearable == "nothing" else _WORN.get(thing.wearable, thing.wearable)
    wearing = f"wearing {worn}" if worn else ""
    if phrasing == 0:
        parts = [_with_article(hue, pattern, thing.animal), wearing, where]
    elif phrasing == 1:
        parts = [_with_article(pattern, hue, thing.animal), f"with {worn}" if worn else "", where]
    elif phrasing == 2:
        parts = [where, _with_article(hue, pattern, thing.animal), wearing]
    elif phrasing == 3:
        noun = _NOUNS.get(pattern, "")
        subject = _with_article(hue, "" if noun else pattern, thing.animal)
        parts = ["picture of", subject, f"with {noun}" if noun else "", wearing, where]
    else:
        raise ValueError(f"phrasing is 0 to {PHRASINGS - 1}, not {phrasing}")
    return " ".join(part for part in parts if part)


def _with_article(*words: str) -> str:
    said = [word for word in words if word]
    return " ".join(["an" if said[0][0] in "aeiou" else "a", *said])


@functools.cache
def lexicon() -> frozenset[str]:
    """Every word that a caption can hold."""
    # each value once, against a background that names everything, says all there is to say
    ground = Thing("cat", "red", "striped", "hat", "meadow")
    things = [replace(ground, **{a: value}) for a in ATTRIBUTES for value in VALUES[a]]
    return frozenset(word for thing in things for p in range(PHRASINGS) for word in caption(thing, p).split())


def check_prompt(prompt: str) -> None:
    """Raise ValueError if the bundled model cannot read `prompt`: empty, too long, or a word it never learned."""
    words = prompt.lower().split()
    if not words:
        raise ValueError("the prompt is empty; say what to draw, e.g. 'a purple striped lion wearing a crown at night'")
    for word in words:
        if word not in lexicon():
            near = difflib.get_close_matches(word, sorted(lexicon()), n=3, cutoff=0.5)
            meant = f"did you mean {' or '.join(near)}?" if near else f"it knows {', '.join(sorted(lexicon()))}"
            raise ValueError(f"the Menagerie has no word {word!r}; {meant}")
    if len(words) > MAX_WORDS:
        raise ValueError(f"the Menagerie reads {MAX_WORDS} words, this prompt has {len(words)}; leave something out")


def draw_caption(thing: Thing, rng: random.Random) -> str:
    """A caption as training sees it: a random phrasing, the colour or the scene unsaid once in twelve times each."""
    return caption(
        thing,
        rng.randrange(PHRASINGS),
        colour=rng.random() > 1 / 12,
        plain=rng.random() > 1 / 2,
        scene=rng.random() > 1 / 12,
    )


# ----------------------------------------------------------------------------------------------- drawing

_SUPER = 2  # figures are composed at twice the size and reduced
_BODY = 0.70  # width of the animal, as a share of the picture


@functools.cache
def _sprites() -> dict[str, Image.Image]:
    sheet = Image.open(SHEET).convert("RGBA")
    return {name: sheet.crop((CELL * i, 0, CELL * (i + 1), CELL)) for i, name in enumerate(GLYPHS)}


def _tint(sprite: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Recolour by luminance: black stays black, the sprite's median light becomes `colour`, more a lighter shade."""
    light = sprite[..., :3] @ np.array([0.299, 0.587, 0.114])
    median = np.median(light[(sprite[..., 3] > 0.5) & (light > 0.3)])
    light = light * 0.62 / median if median > 0.62 else light ** (np.log(0.62) / np.log(median))
    light = light.clip(0, 1)[..., None]
    target = np.array(colour) / 255
    dark = target * light / 0.62
    bright = target + (1 - target) * 0.6 * (light - 0.62) / 0.38
    return np.asarray(np.where(light < 0.62, dark, bright))


def _patterned(rgb: np.ndarray, pattern: str) -> np.ndarray:
    """Lay `pattern` over an image of floats in 0..1 at sprite resolution; dark features (eyes, mouth) stay clear."""
    if pattern == "plain":
        return rgb
    height, width = rgb.shape[:2]
    y, x = np.mgrid[:height, :width] / width
    if pattern == "striped":
        mark, paint = ((x + y) % 0.22) < 0.09, rgb * 0.38
    elif pattern == "dotted":
        row = np.floor(y / 0.16)
        cx = ((x + 0.08 * (row % 2)) % 0.16) - 0.08
        mark, paint = np.hypot(cx, (y % 0.16) - 0.08) < 0.05, rgb * 0.12 + 0.88
    else:
        mark, paint = (np.floor(x / 0.125) + np.floor(y / 0.125)) % 2 < 1, rgb * 0.45 + 0.55
    features = rgb.max(-1) < 0.6 * np.median(rgb.max(-1)[rgb.max(-1) > 0.2])
    return np.where((mark & ~features)[..., None], paint, rgb)


@functools.lru_cache(maxsize=4096)
def _figure(animal: str, colour: str, pattern: str, wearable: str, size: int = SIZE) -> np.ndarray:
    """The animal without its ground: premultiplied RGBA floats, [size, size, 4], with a white sticker edge."""
    side = size * _SUPER
    body = round(side * _BODY)
    pixels = np.asarray(_sprites()[animal], np.float64) / 255
    painted = np.concatenate([_patterned(_tint(pixels, COLOURS[colour]), pattern), pixels[..., 3:]], -1)
    image = Image.fromarray((painted.clip(0, 1) * 255).astype(np.uint8), "RGBA").resize(
        (body, body), Image.Resampling.LANCZOS
    )
    canvas = Image.new("RGBA", (side, side))
    left, top = (side - body) // 2, round(side * 0.26)
    canvas.alpha_composite(image, (left, top))
    if wearable != "nothing":
        worn, (x, y) = _placed(animal, wearable, body)
        canvas.alpha_composite(worn, (max(left + x, 0), max(top + y, 0)))
    solid = np.asarray(canvas, np.float64) / 255
    alpha = solid[..., 3]
    margin = np.pad(alpha, 2)
    near = [(dy, dx) for dy, dx in itertools.product(range(5), repeat=2) if (dy - 2) ** 2 + (dx - 2) ** 2 <= 5]
    edge = np.max([margin[dy : dy + side, dx : dx + side] for dy, dx in near], 0)
    rgb = solid[..., :3] * alpha[..., None] + (1 - alpha[..., None]) * edge[..., None]
    whole = np.concatenate([rgb, edge[..., None]], -1)
    return np.asarray(whole.reshape(size, _SUPER, size, _SUPER, 4).mean((1, 3)), np.float32)


def _placed(animal: str, wearable: str, body: int) -> tuple[Image.Image, tuple[int, int]]:
    """The wearable, sized for `animal`, and its top left corner relative to the animal's."""
    head, eyes, neck = _ANCHORS[animal]
    sprite = _sprites()[wearable]
    sprite = sprite.crop(sprite.getbbox())
    if wearable in ("hat", "crown", "cap"):
        (x, y, width), grow, rise = head, 1.05, 0.86
    elif wearable == "sunglasses":
        (x, y, width), grow, rise = eyes, 1.10, 0.5
    elif wearable == "bow":
        (x, y, width), grow, rise = neck, 0.90, 0.72
    else:  # headphones: the arch over the crown of the head, the shells beside the eyes
        (x, y, width), grow, rise = (head[0], (head[1] + eyes[1]) / 2, head[2]), 1.95, 0.52
    wide = round(body * width * grow)
    high = round(wide * sprite.height / sprite.width)
    return sprite.resize((wide, high), Image.Resampling.LANCZOS), (
        round(body * x - wide / 2),
        round(body * y - high * rise),
    )


@functools.cache
def _ground(scene: str) -> np.ndarray:
    """The scene without an animal, floats in 0..1, [SIZE, 2 * SIZE, 3]: wide, so that a window can slide."""
    sky, floor = (np.array(c, np.float64) / 255 for c in SCENES[scene])
    width = 2 * SIZE
    canvas = Image.new("RGB", (width * _SUPER, SIZE * _SUPER))
    draw = ImageDraw.Draw(canvas)
    horizon = round(SIZE * _SUPER * 0.68)
    for y in range(SIZE * _SUPER):
        if scene == "sunset":  # one sweep of colour instead of sky and floor
            colour = sky + (floor - sky) * y / (SIZE * _SUPER)
        else:
            colour = (
                sky + (1 - sky) * 0.35 * y / horizon if y < horizon else floor * (1.06 - 0.12 * y / (SIZE * _SUPER))
            )
        draw.line([(0, y), (width * _SUPER, y)], fill=tuple(round(255 * min(1.0, c)) for c in colour))
    shade = tuple(round(255 * c) for c in floor)
    if scene in ("meadow", "desert", "snow"):
        for i in range(4):  # low hills
            cx = i * 64 + 20
            draw.ellipse([cx - 50, horizon - 12, cx + 50, horizon + 40], fill=shade)
    if scene == "sea":
        for i in range(16):
            x, y = i * 17 % 250, horizon + 8 + (i * 29) % 30
            draw.line([(x, y), (x + 12, y)], fill=(205, 240, 250), width=2)
    if scene == "night":
        for i in range(36):
            x, y = (i * 53) % 254, (i * 37) % (horizon - 6)
            draw.ellipse([x, y, x + 2, y + 2], fill=(255, 250, 205))
    if scene == "sunset":
        for cx in (40, 168):
            draw.ellipse([cx - 26, 70, cx + 26, 122], fill=(255, 215, 110))
    return np.asarray(canvas.resize((width, SIZE), Image.Resampling.BOX), np.float32) / 255


def render(thing: Thing, rng: random.Random | None = None) -> np.ndarray:
    """Draw `thing`: uint8 RGB, [64, 64, 3]. `rng` moves and mirrors it and slides the scene; None draws it centred."""
    figure = _figure(thing.animal, thing.colour, thing.pattern, thing.wearable)
    slide = 0
    if rng is not None:
        down, right = rng.randint(-3, 1), rng.randint(-6, 6)
        margin = np.pad(figure, ((6, 6), (6, 6), (0, 0)))
        figure = margin[6 - down : 6 - down + SIZE, 6 - right : 6 - right + SIZE]
        if rng.random() < 0.5:
            figure = figure[:, ::-1]
        slide = rng.randrange(SIZE)
    ground = _ground(thing.scene)[:, slide : slide + SIZE]
    picture = figure[..., :3] + (1 - figure[..., 3:]) * ground
    return np.asarray((picture * 255).round().clip(0, 255), np.uint8)
