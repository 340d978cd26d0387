from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace
from typing import get_args

import pytest

from rarelift.menagerie.suite import VERSION, Split, Suite, belongs, prompts, split_of
from rarelift.menagerie.world import PHRASINGS, TAILED, Thing, all_things, caption, frequency, habitat, never

SUITES = get_args(Suite)
SPLITS = get_args(Split)


@pytest.fixture(scope="module")
def sizes() -> dict[tuple[str, str], int]:
    """How many things each suite has in each split, counted thing by thing."""
    found = dict.fromkeys(itertools.product(SUITES, SPLITS), 0)
    for thing in all_things():
        for suite in SUITES:
            found[suite, split_of(thing)] += belongs(thing, suite)
    return found


def test_belongs_is_what_it_says() -> None:
    """Against the definitions, said again over values."""
    seen = dict.fromkeys(SUITES, 0)
    for thing in all_things():
        at_home = [getattr(thing, a) in habitat(thing.animal)[a] for a in TAILED]
        banned = [thing.colour == never(thing.animal)[0], thing.wearable == never(thing.animal)[1]]
        expected = {
            "common": all(at_home),
            "rare": not any(at_home) and not any(banned),
            "never": (banned[0] and at_home[1:] == [True] * 3) or (banned[1] and at_home.count(True) == 3),
            "property": at_home.count(False) == 1 and not (at_home[0] and at_home[2]) and not any(banned),
            "texture": at_home == [True, False, True, True] and not any(banned),
        }
        for suite in SUITES:
            assert belongs(thing, suite) == expected[suite], (suite, thing)
            seen[suite] += expected[suite]
    assert seen == {"common": 16 * 2**4, "rare": 16 * 5 * 2 * 4 * 4, "never": 16 * 2 * 2**3} | {
        "property": 16 * (5 + 4) * 2**3,
        "texture": 16 * 2 * 2**3,
    }


def test_common_is_seen_rare_is_seldom_seen_never_is_never_seen() -> None:
    chances = {s: [frequency(p.thing) for p in prompts(s, 256, split="report")] for s in SUITES}
    assert max(chances["never"]) == 0
    assert min(chances["rare"]) > 0
    assert min(chances["common"]) > 100 * max(chances["rare"])
    # one unusual value of five or more, where the usual one has 0.3 or more
    assert max(chances["property"] + chances["texture"]) < max(chances["common"]) / 4


def test_splits_share_no_thing_and_no_text() -> None:
    for suite in SUITES:
        tune, report = (prompts(suite, 400, split=split) for split in ("tune", "report"))
        assert not {p.thing for p in tune} & {p.thing for p in report}
        assert not {p.text for p in tune} & {p.text for p in report}
        assert {split_of(p.thing) for p in tune} == {"tune"}
        assert {split_of(p.thing) for p in report} == {"report"}


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("split", SPLITS)
def test_all_prompts_of_a_suite_differ_and_match_their_thing(
    suite: Suite, split: Split, sizes: dict[tuple[str, str], int]
) -> None:
    things = sizes[suite, split]
    every = prompts(suite, things * PHRASINGS, split=split)
    assert len({p.text for p in every}) == len(every)
    assert all(belongs(p.thing, suite) for p in every)
    assert all(p.text in {caption(p.thing, k) for k in range(PHRASINGS)} for p in every)
    for i in range(0, len(every), things):  # a thing returns only when all others had their turn
        assert len({p.thing for p in every[i : i + things]}) == things
    with pytest.raises(
        ValueError, match=rf"suite '{suite}', split '{split}' has {len(every)} prompts; {len(every) + 1}"
    ):
        prompts(suite, len(every) + 1, split=split)


@pytest.mark.parametrize("suite", ["rare", "common", "property", "texture"])
def test_the_report_has_512(suite: Suite) -> None:
    assert len(prompts(suite, 512, split="report")) == 512


def test_shorter_lists_are_the_head_of_longer_ones() -> None:
    longer = prompts("common", 300, split="report")
    for n in (1, 50, 130):  # within the first phrasings and past them
        assert prompts("common", n, split="report") == longer[:n]


def test_the_order_is_that_of_the_seed() -> None:
    first, again, other = (prompts("rare", 100, split="tune", seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert len({p.thing.animal for p in first}) == 16  # shuffled, not in the order of the world


def test_nothing_moved_without_a_new_version() -> None:
    """What this version of the suite holds, in order; a change here is a new `VERSION` and new results."""

    def digest(*suites: Suite) -> str:
        texts = "\n".join(p.text for s in suites for split in SPLITS for p in prompts(s, 400, split=split))
        return hashlib.sha256(texts.encode()).hexdigest()[:16]

    assert VERSION == 1
    assert digest("common", "rare", "never") == "24713d569f24ff72"
    assert digest("property", "texture") == "7a2b200993c6317b"


def test_the_split_is_a_coin_not_an_attribute() -> None:
    base = Thing("cat", "orange", "striped", "bow", "meadow")
    assert split_of(base) == split_of(replace(base))
    share = sum(split_of(t) == "tune" for t in all_things()) / 21_504
    assert share == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("uncommon", 1, "tune"), "suite 'uncommon' is unknown; there are common, rare, never"),
        (("rare", 1, "test"), "split 'test' is unknown; there are tune, report"),
        (("rare", 0, "tune"), "has [0-9]+ prompts; 0 were asked for"),
        (("rare", -3, "tune"), "has [0-9]+ prompts; -3 were asked for"),
    ],
)
def test_wrong_requests_teach(arguments: tuple[Suite, int, Split], message: str) -> None:
    suite, n, split = arguments
    with pytest.raises(ValueError, match=message):
        prompts(suite, n, split=split)
