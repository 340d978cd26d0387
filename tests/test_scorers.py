"""What a bench scores with: every kind, against the metric itself."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rarelift import pipelines, prompts
from rarelift.bench import scorers
from rarelift.bench.drawing import Worker
from rarelift.bench.runs import Method, Plan, Run, read_scores
from rarelift.menagerie import CLIP
from rarelift.menagerie.world import ATTRIBUTES, VALUES, Thing, render
from rarelift.metrics.clip_t import ClipT
from rarelift.metrics.preference import Preference
from rarelift.metrics.vqa import Vqa
from rarelift.prompts import Prompt, Suite
from test_endpoint import Server, answer
from test_vqa import model, picture, processor  # noqa: F401

SUITE = prompts.load("menagerie-rare", limit=3)


def draw(prompt: Prompt, **changed: str) -> Image.Image:
    thing = Thing(**{a: prompt.meta[a] for a in ATTRIBUTES} | changed)
    return Image.fromarray(render(thing, random.Random(0)))


def test_attributes_are_what_the_judge_sees() -> None:
    score = scorers.make("attributes", SUITE)
    first, second, third = SUITE.prompts
    other = next(c for c in VALUES["colour"] if c != second.meta["colour"])
    found = score([draw(first), draw(second, colour=other), draw(third)], SUITE.prompts)
    assert found == [
        {"success": 1.0, "attributes": 1.0},
        {"success": 0.0, "attributes": 0.8},
        {"success": 1.0, "attributes": 1.0},
    ]


def test_clip_t_and_preference_are_those_of_the_checkpoint() -> None:
    images, texts = [draw(p) for p in SUITE.prompts], [p.text for p in SUITE.prompts]
    for name in ("clip_t", f"clip_t={CLIP}"):
        assert [r["clip_t"] for r in scorers.make(name, SUITE)(images, SUITE.prompts)] == ClipT(CLIP)(images, texts)
    found = scorers.make(f"preference={CLIP}", SUITE)(images, SUITE.prompts)
    assert [r["preference"] for r in found] == Preference(CLIP)(images, texts)


def test_questions_are_asked_of_each_prompt(model: Any, processor: Any, tmp_path: Path) -> None:  # noqa: F811
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    asked = [
        Prompt("a", "lion", "x", atoms=(("is the lion purple", "yes"), ("is the lion striped", "no"))),
        Prompt("b", "lion", "x", atoms=(("how many lions", "four"),)),
        Prompt("c", "a purple lion", "x"),
    ]
    images = [picture(i) for i in range(3)]
    found = scorers.make(f"vqa={tmp_path}", SUITE)(images, asked)
    vqa = Vqa(model, processor)
    (one, two), (four,) = vqa.soft_tifa(images[:2], [p.atoms for p in asked[:2]])
    assert found[0] == pytest.approx({"vqa_mean": (one + two) / 2, "vqa_geometric": (one * two) ** 0.5}, rel=1e-4)
    assert found[1] == pytest.approx({"vqa_mean": four, "vqa_geometric": four}, rel=1e-4)
    assert found[2] == pytest.approx({"vqa_score": vqa.vqa_score([images[2]], ["a purple lion"])[0]}, rel=1e-4)


def test_a_judge_that_answers_nonsense_is_kept_word_for_word(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(scorers.KEY, "secret")
    server.replies = [answer("Score: 4"), answer("a lovely day"), answer("Score: 2")]
    spec = f"judge={server.url}#some-model"
    plan = Plan(SUITE, (Method.parse("untouched"),), (1.0,), (0,), metrics=(spec,), call=(("num_inference_steps", 1),))
    worker = Worker(plan, pipelines.load(), [scorers.make(spec, SUITE)])
    with Run(tmp_path / "run", plan).open() as run:
        run.take((batch, worker(batch)) for batch in run.missing())
    lines = [line for _, line in read_scores(tmp_path / "run")]
    assert [line["scores"] for line in lines] == [{"judge": 4.0}, {}, {"judge": 2.0}]
    assert [line["answers"]["judge_said"] for line in lines] == ["Score: 4", "a lovely day", "Score: 2"]
    assert {headers["Authorization"] for headers, _ in server.requests} == {"Bearer secret"}
    assert {body["model"] for _, body in server.requests} == {"some-model"}
    assert "secret" not in "".join(path.read_text() for path in (tmp_path / "run").glob("*.json*"))


def test_an_endpoint_that_is_silent_is_no_grade(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from rarelift.metrics import endpoint

    monkeypatch.setattr(endpoint.time, "sleep", lambda _: None)
    server.replies = [(503, "busy")]
    (row,) = scorers.make(f"judge={server.url}#m", SUITE)([draw(SUITE.prompts[0])], SUITE.prompts[:1])
    assert row == {"judge_said": "no answer: HTTP 503: busy (after 4 tries)"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("clipt", "Did you mean 'clip_t'"),
        ("attributes=./x", "attributes takes no value"),
        ("vqa", "needs a value: vqa=PATH"),
        ("preference=./nowhere", "there is no folder './nowhere'"),
        ("judge=localhost#m", "give URL#MODEL"),
        ("judge=http://localhost/v1", "give URL#MODEL"),
    ],
)
def test_what_cannot_score_is_said_before_anything_is_drawn(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        scorers.check(text, SUITE)


def test_attributes_need_a_menagerie_prompt() -> None:
    suite = Suite("mine", "1", "none", "here", (Prompt("p", "a lion", "x", meta={"animal": "lion"}),))
    with pytest.raises(ValueError, match="'p' of suite 'mine' says nothing of colour, pattern, wearable, scene"):
        scorers.check("attributes", suite)
