"""benchmarks/rivals.py: what is chosen on the tuning prompts, what the tables say, and that the page holds them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import rivals
from rarelift.bench.runs import Method


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "PROMPTS", {"tune": 10, "report": 10})
    monkeypatch.setattr(rivals, "SEEDS", {"tune": 1, "report": 2})
    monkeypatch.setattr(rivals, "GUIDANCES", {"tune": (1.0, 2.0), "report": (1.0, 2.0)})
    rivals.suite_of.cache_clear()
    yield
    rivals.suite_of.cache_clear()


def rows(stage: str, **methods: tuple[tuple[int, int], tuple[int, int]]) -> list[dict[str, Any]]:
    """Of ten pictures a seed, how many are right: (rare, common) at guidance 1, and at guidance 2."""
    found = []
    for method, points in methods.items():
        for guidance, point in zip((1.0, 2.0), points, strict=True):
            for side, n in zip(("rare", "common"), point, strict=True):
                right = ("1" * n + "0" * (10 - n)) * rivals.SEEDS[stage]
                row = {"stage": stage, "side": side, "method": method, "guidance": guidance, "right": right}
                found.append({**row, "failed": 0, "clip_t": [0.5, 0.4, 0.6], "kid": [0.01, 0.0, 0.02]})
    return found


def spent(name: str, share: float) -> dict[str, Any]:
    return {"name": name, "untouched": [1.0] * 8, "seconds": [share] * 8, "peaks": [[100, 100], [150, 150]]}


def test_every_method_of_the_search_can_be_read() -> None:
    for name, tried in rivals.SEARCH.items():
        assert len(set(tried)) == len(tried)
        for settings in tried:
            assert Method.parse(rivals.spelled(name, settings)).settings is not None


def test_the_highest_rare_success_that_keeps_common_success_is_chosen() -> None:
    """Untouched is best at guidance 2, where 9 common ones are right; so at 1, where 5 are, nothing is allowed."""
    found = rows(
        "tune",
        untouched=((5, 5), (4, 9)),
        lift=((9, 5), (5, 9)),
        **{"lift:alpha=2": ((10, 5), (6, 9)), "lift:alpha=3": ((10, 5), (8, 8)), "taca": ((7, 6), (5, 8))},
    )
    assert rivals.chosen(found) == {"lift": "lift:alpha=2", "taca": "taca"}


def test_what_was_not_drawn_at_every_guidance_is_not_chosen() -> None:
    found = rows("tune", untouched=((5, 9), (5, 9)), lift=((6, 9), (6, 9)), taca=((9, 9), (9, 9)))
    assert rivals.chosen(found) == {"lift": "lift", "taca": "taca"}
    assert rivals.chosen(found[:-1]) == {"lift": "lift"}


def test_tables_say_what_the_rows_do() -> None:
    found = rows("tune", untouched=((4, 9), (5, 9)), lift=((4, 9), (6, 9)), taca=((4, 9), (5, 9)))
    found += rows("report", untouched=((3, 9), (4, 9)), lift=((3, 8), (6, 9)), taca=((3, 9), (5, 9)))
    at_two = rivals.compared(found, 2.0).splitlines()
    assert at_two[2].startswith("| `untouched` | 0.400 [")
    assert at_two[3].startswith("| `lift` | 0.600 [")
    assert "| +0.200 [" in at_two[3]
    assert "10.0 [0.0, 20.0] |" in at_two[3]
    costs = [spent("lift", 1.02), spent("taca", 1.04)]
    equal = rivals.equal_common(found, costs)
    assert "| `lift` | 2 | 0.600 [" in equal
    assert "| 1.020 [1.020, 1.020] | 1.500 [1.500, 1.500] |" in equal
    assert "| `taca`, guidance 2 | 2 | +0.100 [" in rivals.against_lift(found, costs)
    assert "taca" not in rivals.against_lift(found, [spent("lift", 1.02), spent("taca", 1.06)])
    assert "| **`lift`** | 0.400 / 0.900 | 0.600 / 0.900 |" in rivals.searched(found)


def test_runs_become_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real run of the bundled model, two prompts a side; what it lacks is left out."""
    from rarelift.bench.session import bench, planned

    monkeypatch.setattr(rivals, "PROMPTS", {"tune": 2, "report": 2})
    monkeypatch.setattr(rivals, "SEEDS", {"tune": 1, "report": 1})
    rivals.suite_of.cache_clear()
    for side, suite in rivals.SUITES.items():
        plan = planned(
            suite, split="tune", first=2, methods=["untouched", "cfg-zero"], guidances=[2.0], num_inference_steps=2
        )
        bench(plan, tmp_path / "tune" / f"{side}-g2-quick")
    cut = tmp_path / "tune" / "rare-g2-quick" / "scores.jsonl"
    cut.write_text("".join(cut.read_text().splitlines(keepends=True)[:-1]))
    about, *found = rivals.collected("tune", tmp_path)
    assert about["about"] == "tune"
    assert {(row["side"], row["method"]) for row in found} == {
        ("rare", "untouched"),
        ("common", "untouched"),
        ("common", "cfg-zero"),
    }
    assert all(len(row["right"]) == 2 and set(row["right"]) <= {"0", "1"} for row in found)
    whole = tmp_path / "tune" / "common-g2-quick" / "scores.jsonl"
    lines = [json.loads(line) for line in whole.read_text().splitlines()]
    right = [str(int(line["scores"]["success"])) for line in lines if line["method"] == "cfg-zero"]
    assert next(row["right"] for row in found if row["method"] == "cfg-zero") == "".join(right)


def test_some_methods_are_drawn_later_beside_the_records_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rivals, "FILE", tmp_path / "rivals.jsonl")
    monkeypatch.setattr(rivals, "tables", lambda: None)
    asked: list[Any] = []
    monkeypatch.setattr(rivals, "drawn", lambda *given: asked.append(given[1:3]))
    about = {"about": "tune", "versions": {}}
    for only, made in (
        ([], rows("tune", untouched=((5, 9), (5, 9)), lift=((6, 9), (6, 9)))),
        (["--only", "taca", "--guidance", "2"], rows("tune", taca=((9, 9), (9, 9)))[2:]),
    ):
        monkeypatch.setattr(rivals, "collected", lambda *_, made=made: [dict(about), *made])
        monkeypatch.setattr(sys, "argv", ["rivals.py", "tune", str(tmp_path), *only])
        rivals.main()
    kept = rivals.read(rivals.FILE)
    assert [row["about"] for row in kept if "about" in row] == ["tune", "tune: taca"]
    assert [row["method"] for row in kept if "stage" in row] == ["untouched"] * 4 + ["lift"] * 4 + ["taca"] * 2
    assert asked[0][0][:2] == ["untouched", "lift:alpha=1.1"]
    assert {rivals.name_of(method) for method in asked[1][0]} == {"taca"}
    assert asked[1][1] == [2.0]
    monkeypatch.setattr(rivals, "collected", lambda *_: [dict(about)])
    monkeypatch.setattr(sys, "argv", ["rivals.py", "tune", str(tmp_path)])
    rivals.main()
    assert rivals.read(rivals.FILE) == [about]


def test_the_page_holds_the_records(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    rivals.suite_of.cache_clear()
    page = rivals.PAGE.read_text()
    copy = tmp_path / "rivals.md"
    copy.write_text(page)
    monkeypatch.setattr(rivals, "PAGE", copy)
    rivals.tables()
    assert copy.read_text() == page
