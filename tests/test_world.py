from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.stats import chisquare

from rarelift.menagerie import world
from rarelift.menagerie.sprites import CELL, GLYPHS, SHEET
from rarelift.menagerie.world import (
    ATTRIBUTES,
    MAX_WORDS,
    PHRASINGS,
    TAILED,
    VALUES,
    Thing,
    all_things,
    caption,
    check_prompt,
    draw_caption,
    draw_thing,
    frequency,
    habitat,
    lexicon,
    never,
    render,
    value_shares,
)

LION = Thing("lion", "purple", "striped", "crown", "night")
FLAGS = [
    dict(zip(("colour", "plain", "scene"), said, strict=True)) for said in itertools.product((True, False), repeat=3)
]


@pytest.fixture(scope="module")
def things() -> list[Thing]:
    return list(all_things())


# ---------------------------------------------------------------------------------------------- the tail


def test_the_world_is_whole(things: list[Thing]) -> None:
    assert len(set(things)) == 21_504
    assert sum(map(frequency, things)) == pytest.approx(1, abs=1e-12)
    assert all((frequency(t) == 0) == t.held_out for t in things)


def test_draws_follow_frequency(things: list[Thing]) -> None:
    n = 60_000
    rng = random.Random(0)
    drawn = Counter(draw_thing(rng) for _ in range(n))
    assert not any(thing.held_out for thing in drawn)
    # each value of each attribute with each animal, from the frequencies of whole things
    expected: dict[tuple[str, str, str], float] = defaultdict(float)
    seen: Counter[tuple[str, str, str]] = Counter()
    for thing in things:
        for attribute in ATTRIBUTES:
            key = (thing.animal, attribute, getattr(thing, attribute))
            expected[key] += n * frequency(thing)
            seen[key] += drawn[thing]
    for animal, attribute in itertools.product(VALUES["animal"], TAILED):
        keys = [k for k in expected if k[:2] == (animal, attribute) and expected[k]]
        share = np.array([expected[k] for k in keys]) / sum(expected[k] for k in keys)
        counts = np.array([seen[k] for k in keys])
        assert chisquare(counts, share * counts.sum()).pvalue > 1e-4, (animal, attribute)
    animals = [seen[a, "animal", a] for a in VALUES["animal"]]
    assert chisquare(animals).pvalue > 1e-3
    # how rare the whole thing is: attributes are independent given the animal
    rarity = np.zeros((2, 5))
    for thing in things:
        rarity[:, len(thing.tail)] += drawn[thing], n * frequency(thing)
    assert chisquare(*rarity).pvalue > 1e-3


def test_balanced_draws_are_flat_and_hold_what_training_never_shows() -> None:
    rng = random.Random(0)
    drawn = [draw_thing(rng, balanced=True) for _ in range(10_000)]
    for attribute in ATTRIBUTES:
        counts = Counter(getattr(t, attribute) for t in drawn)
        assert set(counts) == set(VALUES[attribute])
        assert chisquare(list(counts.values())).pvalue > 1e-3, attribute
    assert any(t.held_out for t in drawn)


@pytest.mark.parametrize("animal", VALUES["animal"])
def test_habitats_are_well_formed(animal: str) -> None:
    assert tuple(habitat(animal)) == TAILED
    for attribute, pair in habitat(animal).items():
        assert len(set(pair)) == 2
        assert set(pair) <= set(VALUES[attribute])
        shares = value_shares(animal, attribute)
        assert (shares[pair[0]], shares[pair[1]]) == (0.6, 0.3)
        assert sum(shares.values()) == pytest.approx(1)
    colour, wearable = never(animal)
    assert colour in VALUES["colour"]
    assert wearable in VALUES["wearable"]
    assert wearable != "nothing"
    assert colour not in habitat(animal)["colour"]
    assert wearable not in habitat(animal)["wearable"]
    assert value_shares(animal, "animal")[animal] == 1


@pytest.mark.parametrize("attribute", TAILED)
def test_every_value_is_common_somewhere(attribute: world.Attribute) -> None:
    assert {v for a in VALUES["animal"] for v in habitat(a)[attribute]} == set(VALUES[attribute])


def test_what_a_thing_says_of_itself() -> None:
    at_home = Thing("lion", "orange", "striped", "crown", "sunset")
    assert (at_home.tail, at_home.held_out) == ((), False)
    assert (LION.tail, LION.held_out) == (("colour", "scene"), False)
    green = replace(at_home, colour="green")
    assert (green.tail, green.held_out) == (("colour",), True)
    assert replace(at_home, wearable="bow").held_out
    assert LION.labels == (2, 5, 1, 2, 4)
    assert [VALUES[a][i] for a, i in zip(ATTRIBUTES, LION.labels, strict=True)] == list(vars(LION).values())


def test_a_thing_of_another_world_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^colour 'mauve' is not in the Menagerie; it has red, orange, .*gray$"):
        replace(LION, colour="mauve")
    with pytest.raises(ValueError, match=r"^animal 'zebu' is not in the Menagerie; it has cat, .*octopus$"):
        replace(LION, animal="zebu")
    with pytest.raises(ValueError, match="wearable 'lion'"):
        replace(LION, wearable="lion")


# ---------------------------------------------------------------------------------------------- captions


def test_lexicon_is_every_word_of_every_caption(things: list[Thing]) -> None:
    said = {caption(thing, p) for thing in things for p in range(PHRASINGS)}
    assert max(len(text.split()) for text in said) == MAX_WORDS
    # things that differ are never called the same, in whatever phrasing
    assert len(said) == len(things) * PHRASINGS
    # what is left unsaid adds no word; colours and patterns with two animals, "a" and "an", say it all
    fewer = [t for t in things if t.animal in ("cat", "owl") and t.scene in ("sea", "night")]
    said |= {caption(thing, p, **flags) for thing in fewer for p in range(PHRASINGS) for flags in FLAGS}
    assert {word for text in said for word in text.split()} == lexicon()
    assert min(len(text.split()) for text in said) == 2
    for text in said:
        words = text.split()
        for article, word in itertools.pairwise(words):
            if article in ("a", "an"):
                assert article == ("an" if word[0] in "aeiou" else "a"), text


PATTERNS = {"plain": {"plain"}, "striped": {"striped", "stripes"}, "dotted": {"dotted", "dots"}}
PATTERNS["checkered"] = {"checkered", "checks"}


@pytest.mark.parametrize("phrasing", range(PHRASINGS))
def test_a_caption_says_what_it_should_and_no_more(phrasing: int) -> None:
    rng = random.Random(phrasing)
    for thing, flags in itertools.product([draw_thing(rng, balanced=True) for _ in range(300)], FLAGS):
        words = set(caption(thing, phrasing, **flags).split())
        assert words & set(VALUES["animal"]) == {thing.animal}
        assert words & set(VALUES["colour"]) == ({thing.colour} if flags["colour"] else set())
        assert words & set(VALUES["scene"]) == ({thing.scene} if flags["scene"] else set())
        assert words & set(VALUES["wearable"]) == {thing.wearable} - {"nothing"}
        named = {pattern for pattern, forms in PATTERNS.items() if words & forms}
        assert named == ({thing.pattern} if flags["plain"] else {thing.pattern} - {"plain"})


def test_captions_as_written() -> None:
    owl = Thing("owl", "orange", "striped", "hat", "sea")
    assert caption(owl) == "an orange striped owl wearing a top hat at the sea"
    assert caption(owl, 1) == "a striped orange owl with a top hat at the sea"
    assert caption(owl, 2) == "at the sea an orange striped owl wearing a top hat"
    assert caption(owl, 3) == "picture of an orange owl with stripes wearing a top hat at the sea"
    bare = replace(owl, pattern="plain", wearable="nothing")
    assert caption(bare, 3) == "picture of an orange plain owl at the sea"
    assert caption(bare, colour=False, plain=False, scene=False) == "an owl"
    with pytest.raises(ValueError, match="phrasing is 0 to 3, not 4"):
        caption(owl, 4)


def test_training_captions_leave_out_one_in_twelve() -> None:
    rng = random.Random(0)
    thing = replace(LION, pattern="plain")
    drawn = [draw_caption(thing, rng).split() for _ in range(6000)]
    rates = [np.mean([word not in words for words in drawn]) for word in ("purple", "night", "plain")]
    assert rates == pytest.approx([1 / 12, 1 / 12, 1 / 2], abs=0.02)
    assert {words[0] for words in drawn} == {"a", "at", "picture"}


@pytest.mark.parametrize(
    "prompt", ["a lion", "A Purple STRIPED lion", "picture of a purple lion with stripes wearing a top hat on a meadow"]
)
def test_readable_prompts_pass(prompt: str) -> None:
    check_prompt(prompt)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "^the prompt is empty; say what to draw"),
        (" , ", "^the Menagerie has no word ','"),
        ("a stripped lion", "^the Menagerie has no word 'stripped'; did you mean striped"),
        ("a lion wearing a crwon", "no word 'crwon'; did you mean crown"),
        ("a qqq", "no word 'qqq'; it knows a, an, at, .*yellow"),
        ("a red " * 7 + "lion", "^the Menagerie reads 14 words, this prompt has 15; leave something out"),
    ],
)
def test_unreadable_prompts_teach(prompt: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_prompt(prompt)


def test_readable_prompts_hold_learned_tokens_only() -> None:
    from rarelift.menagerie.recipe import TEXT_LENGTH, build_tokenizer

    tokenizer = build_tokenizer()
    learned = set(tokenizer(" ".join(sorted(lexicon())), truncation=False)["input_ids"])
    with pytest.raises(ValueError, match="no word 'purple,'; did you mean purple"):  # a comma is not a learned token
        check_prompt("a purple, striped lion")
    for prompt in ("a purple lion at night", "A Purple striped LION at night"):
        check_prompt(prompt)
        ids = tokenizer(prompt)["input_ids"]
        assert len(ids) <= TEXT_LENGTH
        assert set(ids) <= learned


# ---------------------------------------------------------------------------------------------- pictures


def test_a_picture_is_fixed_by_thing_and_seed() -> None:
    first, again, other = (render(LION, random.Random(seed)) for seed in (1, 1, 2))
    assert (first.shape, first.dtype) == ((64, 64, 3), np.uint8)
    assert (first == again).all()
    assert (first != other).any()
    centred = render(LION)
    kept = centred.copy()
    centred[:] = 0  # a caller may paint on what it was given
    assert (render(LION) == kept).all()
    draws = {render(LION, random.Random(seed)).tobytes() for seed in range(20)}
    assert len(draws) > 15


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_every_value_looks_different(attribute: world.Attribute) -> None:
    pictures = {v: render(replace(LION, **{attribute: v})).astype(int) for v in VALUES[attribute]}
    for a, b in itertools.combinations(VALUES[attribute], 2):
        assert np.abs(pictures[a] - pictures[b]).mean() > 2, (a, b)


@pytest.mark.parametrize("animal", VALUES["animal"])
def test_colour_and_pattern_show_on_every_animal(animal: str) -> None:
    base = Thing(animal, "red", "plain", "nothing", "night")
    for attribute in ("colour", "pattern"):
        pictures = [render(replace(base, **{attribute: v})).astype(int) for v in VALUES[attribute]]
        for a, b in itertools.combinations(pictures, 2):
            assert np.abs(a - b).mean() > 2, attribute


class Push(random.Random):
    """Moves the figure as far as `render` ever does, without mirroring or sliding the scene."""

    def __init__(self, end: int) -> None:
        super().__init__(0)
        self.end = end

    def randint(self, a: int, b: int) -> int:
        return (a, b)[self.end]

    def random(self) -> float:
        return 0.9

    def randrange(self, *_: int) -> int:
        return 0


def test_what_is_moved_out_does_not_come_back_on_the_other_side() -> None:
    dressed = [
        Thing(animal, "blue", "plain", wearable, "desert")
        for animal, wearable in itertools.product(VALUES["animal"], VALUES["wearable"])
    ]
    up_left = np.stack([render(thing, Push(0)) for thing in dressed])  # 3 up, 6 left
    down_right = np.stack([render(thing, Push(1)) for thing in dressed])  # 1 down, 6 right
    for freed in (up_left[:, -3:], up_left[:, :, -6:], down_right[:, :1], down_right[:, :, :6]):
        assert (freed == freed[0]).all()  # nothing but the scene, whoever stands in it
    assert (up_left[:, :3] != up_left[0, :3]).any()  # crowns do reach the edge
    # and worn on the head, a crown changes nothing below the eyes
    bare, crowned = (render(replace(LION, wearable=w), Push(0)).astype(int) for w in ("nothing", "crown"))
    assert (bare != crowned).any()
    assert (bare[32:] == crowned[32:]).all()


def test_moving_keeps_the_figure_as_it_is() -> None:
    up_left, down_right = (render(replace(LION, wearable="nothing", scene="desert"), Push(end)) for end in (0, 1))
    face = up_left[20:50, 20:44]  # inside the lion, so the scene does not matter
    moved = down_right[24:54, 32:56]  # 4 rows down, 12 columns right
    assert (face == moved).mean() > 0.95


def test_the_sheet_has_one_cell_per_glyph() -> None:
    with Image.open(SHEET) as sheet:
        assert sheet.size == (CELL * len(GLYPHS), CELL)
        assert sheet.mode == "RGBA"
        cells = [np.asarray(sheet.crop((CELL * i, 0, CELL * (i + 1), CELL))) for i in range(len(GLYPHS))]
    assert len({cell.tobytes() for cell in cells}) == len(GLYPHS)
    assert all(0.1 < (cell[..., 3] > 128).mean() < 0.95 for cell in cells)
    worn = tuple(v for v in VALUES["wearable"] if v != "nothing")
    assert set(GLYPHS) == {*VALUES["animal"], *worn}
