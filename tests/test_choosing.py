"""Choosing among five: previews, records, and tables counted by hand."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import choosing
import rarelift
import studio
from choosing import ALPHAS, SEEDS, WAYS, Candidate, Choosing, Five, Part, Seen
from measure import Cell, Drawing, pictures_of
from rarelift import pipelines

SMALL = Part("rare", 0, 2, steps=3, after=2)


@pytest.fixture(scope="module")
def drawer() -> choosing.Drawer:
    return choosing.Drawer(Drawing(rows=4))


def arrays(images: list[object]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


# ---------------------------------------------------------------- pictures


def test_the_first_candidate_is_the_untouched_cell(drawer: choosing.Drawer) -> None:
    cell = Cell("rare", "report", 2, 1, choosing.GUIDANCE, SMALL.steps)
    assert SMALL.pictures == pictures_of(cell)
    prompts, seeds = pictures_of(cell)
    theirs = pipelines.text_to_image(
        drawer.artist.untouched,
        [p.text for p in prompts],
        seeds,
        guidance_scale=cell.guidance,
        num_inference_steps=cell.steps,
    )
    np.testing.assert_array_equal(arrays(drawer.pictures(SMALL)["finished"]), arrays(theirs))
    np.testing.assert_array_equal(drawer(SMALL).right, drawer.artist.draw(cell))


def test_candidates_are_drawn_by_their_alpha_and_seed(drawer: choosing.Drawer) -> None:
    model = drawer.artist.untouched
    prompts, seeds = pictures_of(Cell("rare", "report", 3, len(SEEDS), choosing.GUIDANCE, 3))
    for candidate in (Candidate(alpha=2.0), Candidate(seed=3)):
        part = replace(SMALL, start=1, stop=3, candidate=candidate)
        own = [5 + candidate.seed, 10 + candidate.seed]
        with rarelift.apply(model.pipe, alpha=candidate.alpha):
            theirs = pipelines.text_to_image(
                model,
                [prompts[i].text for i in own],
                [seeds[i] for i in own],
                guidance_scale=choosing.GUIDANCE,
                num_inference_steps=3,
            )
        np.testing.assert_array_equal(arrays(drawer.pictures(part)["finished"]), arrays(theirs))


def test_a_preview_after_the_last_step_is_the_finished_picture(drawer: choosing.Drawer) -> None:
    images = drawer.pictures(replace(SMALL, after=SMALL.steps))
    np.testing.assert_array_equal(arrays(images["preview"]), arrays(images["finished"]))
    with pytest.raises(ValueError, match="after 1 to 3 steps; got 4"):
        drawer.pictures(replace(SMALL, after=4))


@torch.no_grad()
def test_a_preview_goes_on_straight_from_the_steps_that_were_made() -> None:
    model = pipelines.load(dtype=torch.float32)  # rounded latents hold no velocity
    batch = studio.Batch(studio.Studio(model), SMALL.pictures[0], choosing.GUIDANCE)
    seeds = SMALL.pictures[1]
    path = [batch.studio.noise(seeds)]
    step, guided = model.pipe.scheduler.step, studio.untouched(batch)

    def predict(latents: torch.Tensor, timestep: torch.Tensor, share: float) -> torch.Tensor:
        path.append(latents)
        return guided(latents, timestep, share)

    with choosing.previewed(model.pipe.scheduler, 2) as predicted:
        batch.studio.denoise(path.pop(), predict, 3)
    assert model.pipe.scheduler.step == step
    before, after = path[1], path[2]
    first, second = model.pipe.scheduler.sigmas[1:3]
    torch.testing.assert_close(predicted, [after - second * (after - before) / (second - first)], rtol=1e-4, atol=1e-4)


def test_the_scheduler_is_left_as_it_was_after_an_error() -> None:
    scheduler = pipelines.load().pipe.scheduler
    with pytest.raises(RuntimeError, match="stopped"), choosing.previewed(scheduler, 1):
        raise RuntimeError("stopped")
    assert "step" not in vars(scheduler)


def test_scores_are_clip_t_of_each_picture(drawer: choosing.Drawer) -> None:
    images, texts = drawer.pictures(SMALL), [p.text for p in SMALL.pictures[0]]
    found = drawer(SMALL).scores
    for name in choosing.SCORES:
        seen, read = drawer.clip.images(images[name]), drawer.clip.texts(texts)
        np.testing.assert_allclose(found[name], [float(a @ b) for a, b in zip(seen, read, strict=True)], atol=1e-5)
    assert (found["preview"] != found["finished"]).any()


# ---------------------------------------------------------------- records


class Stub(Choosing):
    """Every part is real but the drawing: what is seen follows from the part."""

    def __init__(self, file: Path, stop_after: int = 10**6) -> None:
        super().__init__(file, Drawing(rows=4))
        self.drawn: list[Part] = []
        self.stop_after = stop_after

    def draw(self, part: Part) -> Seen:  # type: ignore[override]
        if len(self.drawn) == self.stop_after:
            raise KeyboardInterrupt
        self.drawn.append(part)
        return made_up(part)


@cache
def made_up(part: Part) -> Seen:
    rng = np.random.default_rng(int.from_bytes(part.key.encode(), "big"))
    n = part.stop - part.start
    return Seen(rng.random((n, 5)) < 0.8, {name: rng.random(n).round(6) for name in choosing.SCORES})


def test_ways_share_the_first_candidate_and_cost_the_same() -> None:
    assert ALPHAS[0] == SEEDS[0] == Candidate()
    assert len(ALPHAS) == len(SEEDS) == 5
    assert len({*ALPHAS, *SEEDS}) == 9


def test_a_run_that_was_killed_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "choosing.jsonl"
    with pytest.raises(KeyboardInterrupt):
        Stub(file, stop_after=7).run(5)
    file.write_text(file.read_text()[:-20])  # killed while it wrote the seventh line
    rest = Stub(file)
    rest.run(5)
    assert len(rest.drawn) == 2 * 9 * 3 - 6  # suites, candidates, batches of two, two and one
    assert [part.start for part in rest.drawn] == sorted(part.start for part in rest.drawn)
    again = Stub(file)
    again.run(5)
    assert not again.drawn
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {line["weights"] for line in lines} == {again.weights}
    assert set(lines[0]["made"]) == {"commit", "suite", "dtype", "compiled", "torch", "diffusers", "transformers"}
    file.write_text(json.dumps({**lines[0], "weights": "0" * 12}) + "\n")
    with pytest.raises(ValueError, match="drawn with other weights"):
        Stub(file)


def test_candidates_are_put_together_from_their_parts(tmp_path: Path) -> None:
    bench = Stub(tmp_path / "choosing.jsonl")
    bench.run(5)
    read = Stub(bench.file)
    for way, suite in itertools.product(WAYS, choosing.SUITES):
        found = read.five(way, suite, 5)
        assert found is not None
        assert found.things == [repr(p.thing) for p in Part(suite, 0, 5).pictures[0]]
        for i, candidate in enumerate(WAYS[way]):
            for start, stop in ((0, 2), (2, 4), (4, 5)):
                seen = made_up(Part(suite, start, stop, candidate))
                np.testing.assert_array_equal(found.success[i, start:stop], seen.right.all(1))
                for name in choosing.SCORES:
                    np.testing.assert_array_equal(found.scores[name][i, start:stop], seen.scores[name])
    assert read.five("alphas", "rare", 4) is not None  # fewer prompts, in whole batches
    assert read.five("alphas", "rare", 6) is None


# ---------------------------------------------------------------- tables

FIVE = Five(
    success=np.array([[0, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]], float),
    scores={
        "preview": np.array(
            [
                [0.1, 0.9, 0.5, 0.2],
                [0.8, 0.2, 0.5, 0.1],
                [0.3, 0.1, 0.5, 0.1],
                [0.2, 0.0, 0.4, 0.9],
                [0.7, 0.3, 0.3, 0.0],
            ]
        ),
        "finished": np.zeros((5, 4)),
    },
    things=["a", "b", "c", "d"],
)


def test_the_highest_score_chooses_and_the_first_of_equals() -> None:
    assert FIVE.picks("preview").tolist() == [1, 0, 0, 3]
    assert FIVE.chosen("preview").tolist() == [1, 1, 0, 0]
    assert FIVE.chosen("finished").tolist() == FIVE.success[0].tolist()
    assert FIVE.chosen("judge").tolist() == [1, 1, 0, 1]
    assert FIVE.against(FIVE.success[0], "preview").startswith("+0.250 [")


def test_auc_counts_pairs_of_one_prompt() -> None:
    # a: 2 right, 3 wrong, all 6 pairs won. b: 4 of 4. d: 0.1 and 0.1 against 0.2, 0.9, 0.0: 1 of 3 each
    assert FIVE.auc("preview").startswith(f"{(6 + 4 + 2) / 16:.2f} [")
    assert FIVE.auc("finished").startswith("0.50 [")
    one = Five(FIVE.success[:, :1], {"preview": FIVE.scores["preview"][:, :1]}, ["a"])
    assert one.auc("preview") == "too few pairs"


def test_tables_say_what_was_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Stub(tmp_path / "choosing.jsonl")
    monkeypatch.setattr(bench, "five", lambda _way, suite, _n: FIVE if suite == "rare" else None)
    (alphas, missing, seeds, _) = choosing.ways(bench, 4)
    assert alphas[:4] == ["alphas", "rare", "0.250", "0.500"]
    assert alphas[7] == "0.750"
    assert alphas[-2:] == [f"{(1.25 + 1 + 1 + 2) / 4:.2f}", "1.00"]
    assert seeds[-2:] == ["", ""]
    assert missing[:3] == ["alphas", "common", "not run"]
    fixed, by_preview, _, by_judge, absent = choosing.rivals(bench, 4)
    assert fixed == ["rare", "success of one alpha", "", "0.500", "0.250", "0.000", "0.250"]
    assert [cell.split()[0] for cell in by_preview[2:]] == ["+0.000", "+0.000", "+0.250", "+0.500", "+0.250"]
    assert by_judge[:2] == ["rare", "any of five"]
    assert absent[:2] == ["common", "not run"]
    text = choosing.written(bench, 4)
    for part in text.split("\n\n")[1::2]:
        assert len({line.count("|") for line in part.splitlines()}) == 1


def test_the_page_is_written_without_drawing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "beyond.md"
    page.write_text("<!-- choosing -->\n<!-- /choosing -->\n")
    monkeypatch.setattr(choosing, "PAGE", page)
    monkeypatch.setattr(choosing, "FILE", tmp_path / "choosing.jsonl")
    choosing.main(["--table", "--prompts", "2"])
    assert "| alphas | rare | not run |" in page.read_text()
    with pytest.raises(SystemExit):
        choosing.main(["--prompts", "1"])
