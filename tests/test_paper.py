"""The paper's tables from runs with known numbers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rarelift import pictures, prompts
from rarelift.bench import paper
from rarelift.bench.runs import SCORES, Method, Plan, Run, append
from rarelift.menagerie.world import ATTRIBUTES, Thing, render

NAMES = ("untouched", "lift:carry=true", "lift:alpha=1.2", "lift", "lift:alpha=2", "rewrite", "taca")
METHODS = tuple(map(Method.parse, NAMES))
RARE = {"untouched": 0.5, "lift:alpha=1.2": 0.55, "lift": 0.6, "lift:alpha=2": 0.4, "lift:carry=true": 0.0}
RARE |= {"rewrite": 0.45, "taca": 0.5}


def score(method: str, rare: bool, i: int) -> dict[str, float]:
    """CLIP-T that differs by prompt and by method; more attributes than untouched in three prompts of four."""
    clip_t = RARE[method] + (0.0 if rare else 0.2) + i / 100
    more = method != "untouched" and i % 4
    return {"clip_t": clip_t, "success": float(i % 2), "attributes": 0.8 if more else 0.6}


def held(folder: Path, suite: str, guidances: tuple[float, ...] = (1.0, 5.0), n: int = 8, **changed: Any) -> Path:
    """A run with these scores, and true drawings as its pictures; common ones of alpha 2 are noise."""
    given = {"methods": METHODS, "guidances": guidances, "seeds": (0,), **changed}
    plan = Plan(prompts.load(suite, limit=n), **given)
    with Run(folder, plan).open() as run:
        run.begin()
    lines = []
    for method, guidance in plan.groups:
        for i, unit in enumerate(plan.units(method, guidance)):
            thing = Thing(*(plan.suite.prompts[i].meta[a] for a in ATTRIBUTES))
            drawn = render(thing, random.Random(f"{method.name}{i}"))
            noise = np.random.default_rng(i).integers(0, 255, drawn.shape, np.uint8)
            image = Image.fromarray(noise if method.name == "lift:alpha=2" else drawn)
            pictures.save(image, folder / unit.path, {})
            seconds = (1.0 if method.name == "untouched" else 1.1) * (1 + i)
            name = {"method": unit.method, "guidance": unit.guidance, "prompt": unit.prompt, "seed": unit.seed}
            lines.append({**name, "scores": score(method.name, suite == "menagerie-rare", i), "seconds": seconds})
    append(folder / SCORES, lines)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [held(folder / "rare", "menagerie-rare"), held(folder / "common", "menagerie-common")]


@pytest.fixture(scope="module")
def measured(runs: list[Path]) -> paper.Measured:
    return paper.read(runs)


def test_runs_are_taken_apart(measured: paper.Measured) -> None:
    assert measured.lifts == {1.0: "untouched", 1.2: "lift:alpha=1.2", 1.5: "lift", 2.0: "lift:alpha=2"}
    assert measured.guidances == (1.0, 5.0)
    assert len(measured.rare.values("lift", 5.0, "clip_t")) == len(measured.common.values("lift", 5.0, "clip_t")) == 8


def test_methods(measured: paper.Measured) -> None:
    table = paper.tables(measured, 5.0)[0]
    rows = {row[0]: row[1:] for row in table.rows}
    mean = 0.5 + np.arange(8).mean() / 100
    assert rows["untouched"][0].startswith(f"{mean:.3f} [")
    assert rows["lift"][0].startswith(f"{mean + 0.1:.3f} [")
    # better in six of eight, the others as good: 6/8 + 2/8 / 2
    assert rows["lift"][2].startswith("0.875 [")
    assert rows["lift"][3] == "see below"
    assert rows["lift"][4:] == ("0.328", "+0.5%")
    assert rows["prompt rewriting, `rewrite`"][0].startswith(f"{mean - 0.05:.3f} [")
    assert rows["prompt rewriting, `rewrite`"][4:] == ("0.301", "+35%")
    lacking = rows["optimisation at denoising time"]
    assert lacking == ("not in these runs: --method attend-excite", "", "", "", "0.312", "+200%")
    assert any(note.startswith("CLIP-T, lift minus untouched: +0.100 [+0.100, +0.100]") for note in table.notes)
    assert any(note.startswith("CLIP-T, prompt rewriting minus untouched: -0.050 [") for note in table.notes)
    assert len(set(table.notes)) == len(table.notes)


def test_a_preference_model_is_asked_first(runs: list[Path], measured: paper.Measured) -> None:
    side = paper.Side(
        {
            (name, 5.0): {
                (p, s): {**line, "scores": {"preference": 1.0 if name == "lift" else float(p[-1] == "g")}}
                for (p, s), line in group.items()
            }
            for (name, _), group in measured.rare.groups.items()
        }
    )
    name, share = paper.preferred(side, "lift", 5.0) or ("", None)
    base = [line["scores"]["preference"] for line in side.groups["untouched", 5.0].values()]
    assert name == "preference"
    assert share is not None
    assert share.value == pytest.approx(np.mean([1 / (1 + np.exp(b - 1)) for b in base]))


def test_tasks(measured: paper.Measured) -> None:
    rows = {row[0]: row[1:] for row in paper.tables(measured, 5.0)[1].rows}
    gain = 100 * 0.1 / (0.5 + np.arange(8).mean() / 100)
    assert rows["image"][2].startswith(f"{gain:+.1f}% [")
    assert rows["image"][3] == "+15.1%"
    # all differences are alike, so any would be found
    assert "A repeat would find a gain of 0.0% four times in five." in paper.tables(measured, 5.0)[1].notes
    assert rows["video"] == (*("not built yet",) * 3, "+13.8%")
    assert rows["editing"] == (*("not built yet",) * 3, "+10.6%")


def test_alpha_with_distances(measured: paper.Measured) -> None:
    real = paper.reference(measured)
    assert real is not None
    assert "32 drawings of the world, 4 a prompt, seen by the bundled CLIP" in real.said
    table = paper.tables(measured, 1.0, real)[2]
    rows = {row[0]: row[1:] for row in table.rows}
    assert list(rows) == ["1", "1.2", "1.5", "2", "3"]
    assert [rows[a][0][:5] for a in ("1", "1.2", "1.5", "2")] == ["0.535", "0.585", "0.635", "0.435"]
    assert rows["1.5"][1].startswith("0.835")
    assert rows["3"] == (*("not measured",) * 5, "0.318", "0.295", "18.5")
    far = paper.distances(measured, real, 1.0)
    assert set(far) == {1.0, 1.2, 1.5, 2.0}
    assert far[1.0].difference is None
    noise, drawn = far[2.0].difference, far[1.5].difference
    assert noise is not None
    assert drawn is not None
    assert noise.low > 0  # noise is farther from the drawings
    assert abs(drawn.value) < noise.value / 5
    assert f"{1000 * noise.value:+.1f} [" in rows["2"][4]
    assert table.head[5] == "KID x 1000, common"
    assert any("KID instead of FID" in note for note in table.notes)


def test_the_report_says_what_is_not_ours(measured: paper.Measured) -> None:
    text = paper.report(measured)
    assert "published summary, other model, not reproduced here" in text
    assert text.count("### Alpha") == text.count("### Methods") == text.count("### Tasks") == 2
    assert "menagerie-rare (8 prompts), menagerie-common (8 prompts); 1 seed a prompt" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 3  # as many as there are tables


def test_an_unfinished_run_is_said_to_be_so(measured: paper.Measured, tmp_path: Path) -> None:
    assert "Unfinished" not in paper.report(measured)
    folder = held(tmp_path / "rare", "menagerie-rare")
    lines = (folder / SCORES).read_text().splitlines(keepends=True)
    (folder / SCORES).write_text("".join(lines[:-3]))
    assert "Unfinished: 3 pictures are missing" in paper.report(paper.read([folder]))


def test_guidances_may_lie_in_several_runs(runs: list[Path], tmp_path: Path) -> None:
    more = [held(tmp_path / s, f"menagerie-{s}", guidances=(2.0,)) for s in ("rare", "common")]
    both = paper.read([*runs, *more])
    assert both.guidances == (1.0, 5.0, 2.0)
    assert set(paper.figures(both)) == {"alpha-g1", "alpha-g5", "alpha-g2", "curves"}


def test_figures_are_files_of_their_own(measured: paper.Measured) -> None:
    from xml.etree import ElementTree

    for svg in paper.figures(measured).values():
        assert "var(--" not in svg
        ElementTree.fromstring(svg)
    assert ">rare prompts<" in paper.figures(measured)["alpha-g1"]
    for said in (">alpha<", ">success<"):
        assert said in paper.figures(measured)["alpha-g1"]


def test_what_makes_no_table_is_said(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give the folders of runs"):
        paper.read([])
    with pytest.raises(ValueError, match="no prompt is said to be rare"):
        paper.read([runs[1]])
    other = held(tmp_path / "other", "menagerie-common", batch_size=2)
    with pytest.raises(ValueError, match="differ in batch_size"):
        paper.read([runs[0], other])
    with pytest.raises(ValueError, match="is no run"):
        paper.read([tmp_path])
    alone = paper.read([runs[0]])
    assert paper.reference(alone) is None
    assert paper.tables(alone, 5.0)[2].rows[0][2] == "not measured"
