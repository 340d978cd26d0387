from __future__ import annotations

import dataclasses
import inspect
import json
from typing import Any

import pytest

import rarelift
from rarelift.settings import Spread


def test_defaults_are_those_of_apply() -> None:
    parameters = inspect.signature(rarelift.apply).parameters
    for field in dataclasses.fields(Spread):
        assert parameters[field.name].default == field.default


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("0-3,7", (0, 1, 2, 3, 7)),
        ("-1", (-1,)),
        ("-3--1", (-3, -2, -1)),
        (range(2, 5), (2, 3, 4)),
        ([1, 1, 0], (1, 0)),
        (4, (4,)),
        (None, None),
    ],
)
def test_blocks_are_read(given: Any, stored: tuple[int, ...] | None) -> None:
    assert Spread(blocks=given).blocks == stored


@pytest.mark.parametrize(
    "settings",
    [
        Spread(),
        Spread((1.2, 2), True, ("purple lion",), (0, -1), 0.1, 0.9, "cond"),
        Spread(0, tokens="content"),
        Spread(space="principal", rank=3),
        Spread(space="residual", rank=0.5),
        Spread(space="align", amount=0.2, toward=("lion", "crown")),
    ],
)
def test_round_trip_through_json(settings: Spread) -> None:
    assert Spread.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown setting 'alhpa'.*Did you mean 'alpha'"):
        Spread.from_dict({"alhpa": 2})


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"alpha": float("nan")}, ValueError, "alpha must be finite, got nan"),
        ({"alpha": float("inf")}, ValueError, "alpha must be finite"),
        ({"alpha": -0.5}, ValueError, "alpha must be >= 0.*-0.5"),
        ({"alpha": 1e300}, ValueError, "fit float32"),
        ({"alpha": ()}, ValueError, "alpha is empty"),
        ({"alpha": (1.0, -1.0)}, ValueError, "alpha must be >= 0"),
        ({"alpha": "1.5"}, TypeError, "alpha must be a number or a tuple.*'1.5'"),
        ({"alpha": True}, TypeError, "alpha must be a number"),
        ({"alpha": None}, TypeError, "alpha must be a number"),
        ({"carry": 1}, TypeError, "carry must be True or False, got 1"),
        ({"tokens": "vaild"}, ValueError, "Did you mean 'valid'"),
        ({"tokens": "crown"}, ValueError, r"tokens=\('crown',\)"),
        ({"tokens": ()}, ValueError, "no phrase"),
        ({"tokens": ("crown", " ")}, ValueError, "empty one"),
        ({"tokens": (1,)}, TypeError, "tuple of phrases"),
        ({"tokens": 3}, TypeError, "tuple of phrases"),
        ({"blocks": ()}, ValueError, "blocks is empty"),
        ({"blocks": "3-1"}, ValueError, "count upwards"),
        ({"blocks": "a-b"}, ValueError, "cannot read blocks"),
        ({"blocks": ""}, ValueError, "cannot read blocks"),
        ({"blocks": (1.5,)}, TypeError, "whole numbers"),
        ({"blocks": (True,)}, TypeError, "whole numbers"),
        ({"start": 0.5, "stop": 0.5}, ValueError, "start < stop"),
        ({"start": -0.1}, ValueError, "start=-0.1"),
        ({"stop": 1.1}, ValueError, "stop=1.1"),
        ({"start": "0"}, TypeError, "start must be a number"),
        ({"start": float("nan")}, ValueError, "start must be finite"),
        ({"space": "principle", "rank": 1}, ValueError, "unknown space 'principle'.*'principal'"),
        ({"space": "principal"}, ValueError, "space='principal' needs rank, a whole number of components"),
        ({"space": "residual", "rank": 0}, ValueError, "rank must be a whole number of components.*got 0"),
        ({"space": "residual", "rank": 1.5}, ValueError, "rank must be.*between 0 and 1, got 1.5"),
        ({"space": "residual", "rank": float("nan")}, ValueError, "rank must be"),
        ({"space": "principal", "rank": "2"}, TypeError, "rank must be.*got '2'"),
        ({"space": "principal", "rank": True}, TypeError, "rank must be.*got True"),
        ({"rank": 2}, ValueError, "rank=2 does nothing with space='all'; it is for space='principal' and"),
        ({"space": "whiten"}, ValueError, "space='whiten' needs amount, a number from 0 to 1"),
        ({"space": "whiten", "amount": 1.1}, ValueError, "amount must be from 0 to 1, got 1.1"),
        ({"space": "align", "amount": "0"}, TypeError, "amount must be a number"),
        ({"space": "principal", "rank": 1, "amount": 0.5}, ValueError, "amount=0.5 does nothing.*space='whiten'"),
        ({"toward": "content"}, ValueError, "toward='content' does nothing with space='all'.*space='align'"),
        ({"space": "align", "amount": 0.5, "toward": "fist"}, ValueError, "Did you mean 'first'"),
        ({"space": "align", "amount": 0.5, "toward": ()}, ValueError, "toward holds no phrase"),
        ({"space": "align", "amount": 0.5, "blocks": "3-5"}, ValueError, "block 0, which is not among"),
        ({"branch": "conditional"}, ValueError, "unknown branch 'conditional'.*'cond'"),
    ],
)
def test_wrong_values_teach(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Spread(**wrong)


def test_replace_checks() -> None:
    assert Spread().replace(alpha=2).alpha == 2.0
    with pytest.raises(ValueError, match="Did you mean 'branch'"):
        Spread().replace(branhc="both")


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Spread().alpha = 2.0  # type: ignore[misc]
