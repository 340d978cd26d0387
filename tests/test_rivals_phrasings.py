"""Phrasings that take turns, on real tiny pipelines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from rarelift import prompts
from rarelift.menagerie.world import ATTRIBUTES, Thing, caption
from rarelift.rivals import make
from rarelift.rivals.access import around
from rarelift.rivals.phrasings import Phrasings
from test_rivals_r2f import CASES, OTHER, RARE, STEPS, asked, draw, drawn, embeddings, made, state

if TYPE_CHECKING:
    from pathlib import Path

SECOND, THIRD = "a purple lion", "the striped lion"


@pytest.fixture
def texts(tmp_path: Path) -> str:
    path = tmp_path / "texts.json"
    path.write_text(json.dumps({RARE: [SECOND, RARE, THIRD], OTHER: ["the crown"]}))
    return str(path)


@pytest.mark.parametrize("which", ["SD3, guided", "Flux", "Flux, guided"])
def test_each_step_reads_the_next_phrasing(which: str, texts: str) -> None:
    pipe, call = made(which)
    seen: list[tuple[float, torch.Tensor, torch.Tensor]] = []

    def spy(forward: Any, arguments: dict[str, Any]) -> Any:
        seen.append(
            (float(arguments["timestep"][0]), arguments["encoder_hidden_states"], arguments["pooled_projections"])
        )
        return forward(arguments)

    plain = draw(pipe, call, [RARE, OTHER])
    before = state(pipe)
    with around(pipe.transformer, spy):
        draw(pipe, call, [RARE, OTHER])
        untouched, seen[:] = list(seen), []
        drawn(make("phrasings", {"texts": texts}), pipe, call, RARE, OTHER)  # type: ignore[arg-type]
    assert len(seen) == len(untouched)  # no further pass of the transformer
    times = sorted({time for time, *_ in seen}, reverse=True)
    assert len(times) == STEPS
    calls = seen[::2] if which == "Flux, guided" else seen  # the prompts come first, in a call of their own
    for time, text, pooled in calls:
        i = times.index(time)
        now = [[RARE, SECOND, THIRD][i % 3], [OTHER, "the crown"][i % 2]]
        expected, expected_pooled = embeddings(pipe, call, now)
        torch.testing.assert_close(text[-2:], expected)
        torch.testing.assert_close(pooled[-2:], expected_pooled)
    assert state(pipe) == before
    assert torch.equal(draw(pipe, call, [RARE, OTHER]), plain)


def test_the_worlds_phrasings_are_each_read(monkeypatch: pytest.MonkeyPatch) -> None:
    (prompt,) = prompts.load("menagerie-rare", limit=1).prompts
    thing = Thing(*(prompt.meta[a] for a in ATTRIBUTES))
    assert Phrasings()._cycle(prompt, None) == [caption(thing, i) for i in range(4)]
    assert prompt.text in Phrasings()._cycle(prompt, None)
    assert Phrasings().cost({}).encodes == 3


def test_what_does_not_fit(texts: str, tmp_path: Path) -> None:
    pipe, call = made("SD3")
    with pytest.raises(ValueError, match="'a hen' is not among them"):
        drawn(Phrasings(texts), pipe, call, "a hen")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is for Menagerie prompts"):
        drawn(Phrasings(), pipe, call, RARE)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="texts must be"):
        Phrasings("")
    broken = tmp_path / "broken.json"
    for content, message in (
        ("[", "cannot be read as JSON"),
        ("[]", "holds a list"),
        ('{"a": []}', "other phrasings"),
        ('{"a": ["a"]}', "other phrasings"),
    ):
        broken.write_text(content)
        with pytest.raises(ValueError, match=message):
            Phrasings(str(broken)).prepare(pipe)
    assert set(CASES) >= {"SD3", "Flux"}
    with pytest.raises(RuntimeError, match="nothing was done"), Phrasings(texts).on(pipe, asked(RARE), call):
        pass


def test_another_file_is_another_method(texts: str, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps({RARE: [SECOND]}))
    first, second = (Phrasings(path).to_dict() for path in (texts, str(other)))
    assert first["texts_digest"] != second["texts_digest"]
    assert "texts_digest" not in Phrasings().to_dict()
