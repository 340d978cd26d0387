from __future__ import annotations

import itertools
import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import bars
import defaults
import rarelift
from measure import (
    RESULTS,
    Artist,
    Bench,
    Cell,
    Drawing,
    clusters,
    lift,
    pack,
    passes,
    pictures_of,
    table,
    unpack,
    write_section,
)
from rarelift import pipelines
from rarelift.menagerie import PIPELINE
from rarelift.menagerie.train import GENERATION_DEFAULTS
from rarelift.menagerie.world import Thing
from rarelift.settings import Spread

if TYPE_CHECKING:
    from PIL import Image

CELL = Cell("rare", "tune", 6, 2, 2.0, 16)


class Stub(Bench):
    """Every part is real but the drawing: verdicts follow from the cell."""

    def __init__(self, file: Path, stop_after: int = 10**6) -> None:
        super().__init__(file)
        self.drawn: list[Cell] = []
        self.stop_after = stop_after

    def draw(self, cell: Cell) -> np.ndarray:
        if len(self.drawn) == self.stop_after:
            raise KeyboardInterrupt
        self.drawn.append(cell)
        return verdicts(cell)


def verdicts(cell: Cell) -> np.ndarray:
    seed = int.from_bytes(cell.key.encode()[-40:], "big")
    return np.random.default_rng(seed).random((cell.n * cell.seeds, 5)) < 0.7


def some_cells() -> list[Cell]:
    settings = [None, lift(alpha=1.5), lift(alpha=2.0, tokens=("lion", "crown")), lift(alpha=1.5, blocks="0-3")]
    return [replace(CELL, suite=suite, lift=s) for s in settings for suite in ("rare", "common")]


# ---------------------------------------------------------------------------------------------- records


def test_a_line_cut_short_is_drawn_again(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    Stub(file).run(some_cells()[:3])
    whole = file.read_text()
    file.write_text(whole[:-20])
    bench = Stub(file)
    bench.run(some_cells()[:3])
    assert bench.drawn == some_cells()[2:3]
    keys = [json.loads(line)["key"] for line in file.read_text().splitlines()]
    assert keys == [json.loads(line)["key"] for line in whole.splitlines()]


def test_results_of_other_weights_are_not_mixed_in(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    Stub(file).run(some_cells()[:1])
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "weights": "0" * 12}) + "\n")
    with pytest.raises(ValueError, match="drawn with other weights"):
        Stub(file)


def test_results_of_other_prompts_are_not_mixed_in(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    Stub(file).run(some_cells()[:1])
    record = json.loads(file.read_text())
    assert set(record["made"]) == {"commit", "suite", "dtype", "compiled", "torch", "diffusers", "transformers"}
    record["made"]["suite"] = "other"
    file.write_text(json.dumps(record) + "\n")
    with pytest.raises(ValueError, match="drawn with other prompts"):
        Stub(file)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(*[st.booleans()] * 5), min_size=1, max_size=70))
def test_verdicts_survive_packing(rows: list[tuple[bool, ...]]) -> None:
    right = np.array(rows)
    text = json.loads(json.dumps(pack(right)))
    assert len(text) == len(rows)
    assert text.isascii()
    assert text.isprintable()
    assert unpack(text).dtype == bool
    assert (unpack(text) == right).all()


def test_the_letters_of_verdicts_stay_what_they_are() -> None:
    """Files drawn earlier must read the same."""
    rows = np.array([[0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1]], dtype=bool)
    assert pack(rows) == "@AP_"


def test_pairs_and_noise_do_not_depend_on_the_setting() -> None:
    base = pictures_of(CELL)
    assert len(base[0]) == len(base[1]) == len(clusters(CELL)) == 12
    for other in (
        replace(CELL, lift=lift(alpha=2.0, carry=True)),
        replace(CELL, guidance=1.0),
        replace(CELL, steps=4),
        CELL.untouched(),
    ):
        assert pictures_of(other) == base
        assert clusters(other) == clusters(CELL)
    assert replace(CELL, lift=lift(alpha=2.0)).untouched() == CELL


def test_noise_of_a_prompt_does_not_depend_on_the_size_of_the_run() -> None:
    def noise(cell: Cell) -> set[tuple[str, int]]:
        return {(p.text, seed) for p, seed in zip(*pictures_of(cell), strict=True)}

    pairs = noise(CELL)
    assert len(pairs) == 12
    assert len({seed for _, seed in pairs}) == 12  # nobody shares noise inside a cell
    assert pairs < noise(replace(CELL, n=20))
    assert pairs < noise(replace(CELL, seeds=5))


def test_pictures_of_a_thing_are_one_cluster() -> None:
    cell = Cell("common", "tune", 400, 2, 1.0, 16)
    things = [p.thing for p in pictures_of(cell)[0]]
    names = clusters(cell)
    assert len(set(names)) == len(set(things)) < 400  # phrasings of a thing stay together
    assert {a == b for a, b in zip(names, map(repr, things), strict=True)} == {True}


# ---------------------------------------------------------------------------------------------- resuming


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path) -> None:
    file, cells = tmp_path / "results" / "run.jsonl", some_cells()
    first = Stub(file, stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        first.run(cells)
    assert first.drawn == cells[:3]
    assert len(file.read_text().splitlines()) == 3
    second = Stub(file)
    second.run(cells)
    assert second.drawn == cells[3:]
    third = Stub(file)
    third.run(cells)
    assert third.drawn == []
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [record["key"] for record in records] == [cell.key for cell in cells]
    for cell in cells:
        assert (third.right(cell) == verdicts(cell)).all()
        assert (second.right(cell) == third.right(cell)).all()


def test_a_cell_that_is_asked_for_twice_is_drawn_once(tmp_path: Path) -> None:
    bench = Stub(tmp_path / "run.jsonl")
    bench.run([CELL, replace(CELL, n=7), CELL])
    assert bench.drawn == [CELL, replace(CELL, n=7)]
    bench.run(iter([CELL, replace(CELL, guidance=1.0)]))
    assert bench.drawn[2:] == [replace(CELL, guidance=1.0)]


def test_every_field_of_a_cell_is_in_its_key() -> None:
    others = [
        replace(CELL, suite="common"),
        replace(CELL, split="report"),
        replace(CELL, n=7),
        replace(CELL, seeds=1),
        replace(CELL, guidance=1.0),
        replace(CELL, steps=8),
        replace(CELL, lift=lift(alpha=1.5)),
        replace(CELL, lift=lift(alpha=1.5, stop=0.5)),
    ]
    assert len({cell.key for cell in (CELL, *others)}) == 9
    assert lift(alpha=1, carry=True) == lift(carry=True, alpha=1)


def test_a_cell_that_was_not_drawn(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match=r"run\.jsonl does not hold .*rare.*without --table"):
        Stub(tmp_path / "run.jsonl").right(CELL)


# ---------------------------------------------------------------------------------------------- drawing


class Watched(Artist):
    """An artist whose pictures are kept as they go to the judge."""

    def __init__(self, drawing: Drawing) -> None:
        super().__init__(drawing)
        self.seen: list[bytes] = []
        self.judge = self  # type: ignore[assignment]

    def right(self, images: list[Image.Image], things: list[Thing]) -> np.ndarray:
        self.seen += [image.tobytes() for image in images]
        return np.ones((len(images), 5), dtype=bool)


def test_a_cell_is_drawn_with_its_settings_and_no_others() -> None:
    small = replace(CELL, n=2, seeds=1, steps=3)
    cells = [
        replace(small, lift=lift(alpha=3.0, carry=True, tokens="all", branch="cond", blocks="0-3", stop=0.5)),
        small,
        replace(small, lift=lift(alpha=2.0)),
        replace(small, guidance=1.0, lift=lift(alpha=2.0)),
    ]
    artist = Watched(Drawing(rows=2))
    for cell in cells:
        assert artist.draw(cell).shape == (2, 5)
    plain = artist.untouched
    for i, cell in enumerate(cells):
        chosen, seeds = pictures_of(cell)
        with rarelift.apply(plain.pipe, **cell.lift_keywords) if cell.lift else nullcontext():
            images = pipelines.text_to_image(
                plain,
                [p.text for p in chosen],
                seeds,
                batch_size=2 if cell.guidance == 1 else 1,
                guidance_scale=cell.guidance,
                num_inference_steps=cell.steps,
            )
        assert [image.tobytes() for image in images] == artist.seen[2 * i : 2 * i + 2]
    assert len(set(artist.seen)) == len(artist.seen)


def test_workers_draw_what_one_process_draws(tmp_path: Path) -> None:
    cells = [replace(CELL, n=2, steps=4, guidance=g, lift=s) for g in (1.0, 2.0) for s in (None, lift(alpha=1.5))]
    benches = [Bench(tmp_path / f"{n}.jsonl", Drawing(workers=n)) for n in (1, 2)]
    for bench in benches:
        bench.run(cells)
    for cell in cells:
        assert (benches[0].right(cell) == benches[1].right(cell)).all()
    lines = [(tmp_path / f"{n}.jsonl").read_text().splitlines() for n in (1, 2)]
    assert {json.loads(line)["key"] for line in lines[1]} == {cell.key for cell in cells}
    assert len(lines[0]) == len(lines[1]) == len(cells)


def test_an_error_in_a_worker_reaches_the_caller(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run.jsonl", Drawing(workers=2))
    with pytest.raises(ValueError, match="branch='uncond' with guidance off"):
        bench.run([replace(CELL, n=2, steps=1, guidance=1.0, lift=lift(alpha=2.0, branch="uncond"))])
    assert not bench.done


def test_guidance_costs_a_second_pass() -> None:
    assert passes(CELL) == 2 * passes(replace(CELL, guidance=1.0)) == 24


# ---------------------------------------------------------------------------------------------- plans


def test_coarse_is_the_whole_grid_once() -> None:
    expected = set()
    for suite, guidance in itertools.product(("rare", "common"), (1.0, 1.5, 2.0, 3.0, 5.0)):
        expected.add(Cell(suite, "tune", 128, 1, guidance, 8, None))
        for alpha in (1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 3.0):
            for carry, tokens in itertools.product((False, True), ("valid", "all", "content")):
                for branch in ("both", "cond") if guidance != 1.0 else ("both",):
                    keywords = {"alpha": alpha, "branch": branch, "carry": carry, "tokens": tokens}
                    expected.add(Cell(suite, "tune", 128, 1, guidance, 8, tuple(keywords.items())))
    cells = defaults.coarse_cells()
    assert len(cells) == len(set(cells)) == 2 * (5 + 42 + 4 * 84)
    assert set(cells) == expected
    # nearest to the defaults first: the untouched, then alpha alone at each guidance
    assert [c.lift for c in cells[:10]] == [None] * 10
    near = [(c.lift_keywords["carry"], c.lift_keywords["tokens"], c.lift_keywords["branch"]) for c in cells[10:80]]
    assert set(near) == {(False, "valid", "both")}


@pytest.mark.parametrize(
    "plan", [defaults.coarse_cells, defaults.where_cells, defaults.report_cells, defaults.repeat_cells]
)
def test_plans_repeat_nothing_and_hold_settings_that_exist(plan: object) -> None:
    cells = plan()  # type: ignore[operator]
    assert len(cells) == len(set(cells))
    for keywords in {c.lift for c in cells if c.lift}:
        Spread(**dict(keywords))
    for cell in cells:  # every effect has what it is compared with
        assert cell.untouched() in cells


def test_choices_are_made_on_tune_and_told_on_report() -> None:
    assert {c.split for c in defaults.coarse_cells() + defaults.where_cells()} == {"tune"}
    assert {c.split for c in defaults.report_cells() + defaults.repeat_cells()} == {"report"}
    assert bars.best_guidance(Bench(RESULTS / "bars.jsonl")) == defaults.BEST_GUIDANCE
    assert GENERATION_DEFAULTS["guidance_scale"] == defaults.BEST_GUIDANCE
    assert json.loads((PIPELINE / "generation.json").read_text()) == GENERATION_DEFAULTS
    assert all(defaults.DEFAULT in defaults.report_lifts(g) for g in defaults.GUIDANCE)
    assert Spread(**dict(defaults.DEFAULT)) == Spread()
    assert {bars.tuning(s, 1.0).split for s in bars.SUITES} == {"tune"}
    assert {bars.report(s, 1.0).split for s in bars.SUITES} == {"report"}


def planned() -> list[Cell]:
    every = defaults.coarse_cells() + defaults.where_cells() + defaults.report_cells()
    every += [bars.tuning(s, 1.0) for s in ("common", "rare")] + [bars.report(s, 1.0) for s in bars.SUITES]
    return list(dict.fromkeys(replace(cell, guidance=1.0, lift=None) for cell in every))


@pytest.mark.parametrize("cell", [pytest.param(c, id=f"{c.suite}-{c.split}-{c.n}") for c in planned()])
def test_the_suites_hold_what_the_plans_ask_for(cell: Cell) -> None:
    assert len(pictures_of(cell)[0]) == cell.n * cell.seeds


def test_best_guidance_weighs_rare_and_common_alike(tmp_path: Path) -> None:
    class Rates(Stub):
        def draw(self, cell: Cell) -> np.ndarray:
            rate = {("rare", 2.0): 0.75, ("common", 2.0): 0.5, ("rare", 5.0): 1.0}.get((cell.suite, cell.guidance), 0.1)
            right = np.ones((cell.n, 5), dtype=bool)
            right[int(rate * cell.n) :, 3] = False  # one wrong attribute is a wrong picture
            return right

    bench = Rates(tmp_path / "bars.jsonl")
    bench.run(bars.tuning(s, g) for g in bars.GUIDANCE for s in ("common", "rare"))
    assert bars.best_guidance(bench) == 2.0


# ---------------------------------------------------------------------------------------------- pages

PAGE = "# Title\n\n<!-- one -->\nold\n<!-- /one -->\n\ntext\n<!-- two -->\nkept\n<!-- /two -->\nend\n"


def test_only_its_section_is_written(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    write_section(page, "one", "\n| a |\n\\1 <b>\n")
    assert page.read_text() == PAGE.replace("old", "| a |\n\\1 <b>")
    write_section(page, "one", "| a |\n\\1 <b>")
    assert page.read_text() == PAGE.replace("old", "| a |\n\\1 <b>")
    write_section(page, "two", "last")
    assert page.read_text() == PAGE.replace("old", "| a |\n\\1 <b>").replace("kept", "last")


@pytest.mark.parametrize("text", ["", PAGE.replace("<!-- one -->\n", ""), PAGE.replace("<!-- /one -->", "")])
def test_a_page_without_the_section_is_left_alone(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match=r"page\.md has no section 'one'"):
        write_section(page, "one", "new")
    assert page.read_text() == text


def test_tables_are_markdown() -> None:
    assert table(["a", "b"], [["1", "2"], ["3", "4"]]) == "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |"


# ---------------------------------------------------------------------------------------------- documents


def test_the_documents_hold_the_results() -> None:
    pages = {page: page.read_text() for page in (bars.PAGE, defaults.PAGE, defaults.README)}
    benches = {stage: Bench(RESULTS / f"{stage}.jsonl") for stage in ("coarse", "where", "report")}
    assert bars.render_tables(Bench(RESULTS / "bars.jsonl")) in pages[bars.PAGE]
    for name, text in defaults.sections(benches).items():
        assert (
            f"<!-- {name} -->\n{text}\n<!-- /{name} -->"
            in pages[defaults.README if name == "result" else defaults.PAGE]
        )
