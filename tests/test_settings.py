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
    [Spread(), Spread((1.2, 2), True, ("purple lion",), (0, -1), 0.1, 0.9, "cond"), Spread(0, 0.3, "content")],
)
def test_round_trip_through_json(settings: Spread) -> None:
    assert Spread.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


def test_the_ends_of_carry_are_stored_as_they_always_were() -> None:
    assert [Spread(carry=c).to_dict()["carry"] for c in (0, 0.0, False, 1, 1.0, True)] == [False] * 3 + [True] * 3
    assert all(isinstance(Spread(carry=c).carry, bool) for c in (0.0, 1))
    assert Spread(carry=0.25).to_dict()["carry"] == 0.25


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
        ({"carry": "yes"}, TypeError, "carry must be a number, got 'yes'"),
        ({"carry": 1.5}, ValueError, r"carry is a share, 0 \(False\) to 1 \(True\), got 1.5"),
        ({"carry": -0.1}, ValueError, "carry is a share"),
        ({"carry": float("nan")}, ValueError, "carry must be finite"),
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
