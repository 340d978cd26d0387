"""A run can be stopped anywhere and goes on to the same end. Run as a script, this file kills runs of its own."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tqdm import tqdm

import rarelift
from rarelift import pictures, pipelines
from rarelift.bench import runs, session, stats, summary
from rarelift.bench.drawing import Worker
from rarelift.bench.runs import SCORES, UNTOUCHED, Method, Plan, Run, Unit, read_scores
from rarelift.menagerie import PIPELINE
from rarelift.prompts import Prompt, Suite
from rarelift.rivals import make
from rarelift.settings import Spread
from tiny_pipelines import LENGTH, sd3

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

WORDS = ("striped", "purple", "lion", "crown", "pink", "red", "blue", "ugly")
CALL = {"num_inference_steps": 2, "height": 16, "width": 16, "max_sequence_length": LENGTH}
KILLS = 50


def suite(n: int = 6) -> Suite:
    texts = [f"a {WORDS[i]} {WORDS[(i + 1) % len(WORDS)]}" for i in range(n)]
    prompts = tuple(Prompt(f"p{i}", text, "single_property") for i, text in enumerate(texts))
    return Suite("some", "1", "none", "made here", prompts)


def plan(**changed: Any) -> Plan:
    methods = (Method(UNTOUCHED), Method("lift:alpha=3", Spread(alpha=3.0)))
    given = Plan(suite(), methods, (1.0, 3.0), (0, 1), "tiny", 4, tuple(sorted(CALL.items())), ("brightness",))
    return replace(given, **changed)


def brightness(images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[dict[str, float]]:
    return [
        {"brightness": float(np.asarray(i).mean()), "length": len(p.text)} for i, p in zip(images, prompts, strict=True)
    ]


def model() -> pipelines.Model:
    torch.manual_seed(0)
    pipe = sd3()
    pipe.set_progress_bar_config(disable=True)
    return pipelines.Model("tiny", pipe)


@pytest.fixture(scope="module")
def tiny() -> pipelines.Model:
    return model()


def finish(folder: Path, tiny: pipelines.Model, chosen: Plan | None = None, **more: Any) -> Run:
    run = Run(folder, chosen or plan())
    draw = Worker(run.plan, tiny, [brightness])
    with run.open():
        run.take((batch, draw(batch)) for batch in run.missing(**more))
    return run


def outcome(folder: Path) -> dict[str, Any]:
    """What a run says and shows, without the time that it took."""
    lines = {unit: {k: v for k, v in line.items() if k != "seconds"} for unit, line in read_scores(folder)}
    shown = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.png"))}
    return {"lines": lines, "pictures": shown}


@pytest.fixture(scope="module")
def whole(tiny: pipelines.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing has stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    finish(folder, tiny)
    return folder


# ---------------------------------------------------------------- what a run holds


def test_every_method_gets_the_same_noise_and_the_pictures_say_what_they_are(
    whole: Path, tiny: pipelines.Model
) -> None:
    found = dict(read_scores(whole))
    assert len(found) == plan().total == 2 * 2 * 2 * 6
    unit = Unit("lift:alpha=3", 3.0, "p4", 1)
    with rarelift.apply(tiny.pipe, alpha=3.0):
        # alone, where the run drew it among others
        alone = pipelines.text_to_image(tiny, [suite().prompts[4].text], [1], guidance_scale=3.0, **CALL)[0]
    from PIL import Image

    with Image.open(whole / unit.path) as image:
        assert np.abs(np.asarray(image, float) - np.asarray(alone, float)).max() <= 1
        assert found[unit]["scores"]["brightness"] == np.asarray(image).mean()
    said = pictures.read_metadata(whole / unit.path)
    assert (said["prompt"], said["prompt_id"], said["seed"], said["guidance"]) == ("a pink red", "p4", 1, 3.0)
    assert said["settings"] == Spread(alpha=3.0).to_dict()
    untouched = whole / replace(unit, method=UNTOUCHED).path
    assert untouched.read_bytes() != (whole / unit.path).read_bytes()
    assert pictures.read_metadata(untouched)["settings"] is None
    manifest = runs.read_manifest(whole)
    assert manifest["plan"]["suite"] == {"name": "some", "version": "1", "digest": suite().digest, "n": 6}
    assert manifest["made"]["versions"]["torch"] == torch.__version__
    assert manifest["prompts"][4] == {"id": "p4", "text": "a pink red", "kind": "single_property", "rare": None}


def test_a_second_start_makes_nothing(whole: Path, tiny: pipelines.Model) -> None:
    before = outcome(whole)
    with Run(whole, plan()).open() as run:
        assert not list(run.missing())
    assert outcome(whole) == before


def test_a_limit_stops_early_and_the_rest_follows(tmp_path: Path, whole: Path, tiny: pipelines.Model) -> None:
    finish(tmp_path / "run", tiny, limit=5)
    assert len(read_scores(tmp_path / "run")) == 8  # two batches of four
    finish(tmp_path / "run", tiny)
    assert outcome(tmp_path / "run") == outcome(whole)


def test_what_is_lost_of_a_batch_is_drawn_again_as_it_was(tmp_path: Path, whole: Path, tiny: pipelines.Model) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    lines = (folder / SCORES).read_text().splitlines(keepends=True)
    random.Random(0).shuffle(lines)
    (folder / SCORES).write_text("".join(lines[:30]) + lines[30][:20])  # cut off in the middle of a line
    finish(folder, tiny)
    assert outcome(folder) == outcome(whole)
    assert len((folder / SCORES).read_text().splitlines()) == plan().total


def kill_runs(folder: Path) -> None:
    """Kill runs at random moments, and begin a new one where one has come to its end. Writes how often."""
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is shared with forked processes, and one killed would keep it for ever
    tiny = model()
    finish(folder / "whole", tiny, limit=4)  # what is made once is made here
    rng, kills, ended = random.Random(time.time_ns()), 0, []
    while kills < KILLS:
        at = folder / f"run{len(ended)}"
        child = os.fork()
        if child == 0:
            code = 1
            try:
                finish(at, tiny)
                code = 0
            finally:
                os._exit(code)
        time.sleep(rng.uniform(0, 0.25))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            kills += 1
        elif os.WEXITSTATUS(status):
            raise SystemExit(f"{at}: the run failed")
        else:
            ended.append(at)
    at = folder / f"run{len(ended)}"
    finish(at, tiny)
    (folder / "kills.json").write_text(json.dumps({"kills": kills, "ended": len(ended) + 1}))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_killed_at_any_moment_nothing_is_lost_and_nothing_twice(tmp_path: Path, whole: Path) -> None:
    done = subprocess.run([sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads((tmp_path / "kills.json").read_text())
    assert said["kills"] >= KILLS
    for i in range(said["ended"]):
        found = outcome(tmp_path / f"run{i}")
        assert found == outcome(whole)
        assert not list((tmp_path / f"run{i}").glob(".*.part"))


# ---------------------------------------------------------------- what goes wrong


def test_a_model_that_does_not_load_leaves_nothing(tmp_path: Path) -> None:
    for model_folder, said in ((tmp_path / "none", "no model folder"), (shutil.copytree(PIPELINE, tmp_path / "m"), "")):
        if not said:
            (tmp_path / "m" / "scheduler" / "scheduler_config.json").unlink()
            said = "scheduler_config.json"
        with pytest.raises(pipelines.ModelError, match=said):
            session.bench(plan(model=str(model_folder), metrics=()), tmp_path / "run")
        assert [path.name for path in (tmp_path / "run").iterdir()] in ([], [".lock"])


def test_two_benches_in_one_folder(tmp_path: Path) -> None:
    first, second = (Run(tmp_path / "run", plan()) for _ in range(2))
    with first.open(), pytest.raises(RuntimeError, match="another bench runs in"), second.open():
        pass


def test_another_plan_or_another_folder(tmp_path: Path, tiny: pipelines.Model) -> None:
    finish(tmp_path / "run", tiny, limit=1)
    for changed, said in (
        ({"seeds": (0,)}, "seeds = \\[0, 1\\]"),
        ({"suite": suite(5)}, "suite = "),
        ({"batch_size": 2}, "batch_size = 4"),
    ):
        with pytest.raises(ValueError, match=f"holds a run with {said}"), Run(tmp_path / "run", plan(**changed)).open():
            pass
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with (
        pytest.raises(ValueError, match=r"is no run: it has 'letter.txt' but no manifest"),
        Run(tmp_path / "mine", plan()).open(),
    ):
        pass


def test_lines_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = tmp_path / SCORES
    good = {"method": UNTOUCHED, "guidance": 1.0, "prompt": "p0", "seed": 0, "scores": {}}
    path.write_text(json.dumps(good) + "\n{\n")
    with pytest.raises(ValueError, match=r"line 2 cannot be read"):
        read_scores(tmp_path)
    path.write_text(json.dumps(good) + "\n" + json.dumps(good) + "\n")
    with pytest.raises(ValueError, match=r"line 2 is the second of"):
        read_scores(tmp_path)
    with pytest.raises(ValueError, match=r"is no run: it has no manifest"):
        runs.read_manifest(tmp_path)
    (tmp_path / runs.MANIFEST).write_text('{"form": 99}')
    with pytest.raises(ValueError, match=r"form 99, and this rarelift reads 1"):
        runs.read_manifest(tmp_path)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_short_memory_halves_the_batch(
    tmp_path: Path,
    whole: Path,
    tiny: pipelines.Model,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    real, most, sizes = pipelines.text_to_image, 2, []

    def limited(chosen: pipelines.Model, texts: Sequence[str], *rest: Any, **more: Any) -> list[Image.Image]:
        if len(texts) > most:
            raise error
        sizes.append(len(texts))
        return real(chosen, texts, *rest, **more)

    monkeypatch.setattr(pipelines, "text_to_image", limited)
    finish(tmp_path / "run", tiny, limit=4)
    assert sizes == [2, 2]
    assert "memory is short for 4 pictures at once; drawing 2" in "".join(capsys.readouterr())
    most = 0
    with pytest.raises(RuntimeError, match="memory is short for one picture at a time"):
        finish(tmp_path / "run", tiny)
    assert len(read_scores(tmp_path / "run")) == 4


def test_guidances_that_are_near_have_folders_of_their_own() -> None:
    paths = {Unit(UNTOUCHED, guidance, "p", 0).path for guidance in (1.0, 1.0000001, 10.0, None)}
    assert len(paths) == 4
    assert Unit(UNTOUCHED, 7.5, "p", 0).path == "images/untouched/g7.5/p-s0.png"
    assert Unit(UNTOUCHED, 10.0, "p", 0).path == "images/untouched/g10/p-s0.png"


def test_a_picture_of_nan_is_a_failure_and_the_others_of_its_batch_are_not(
    tmp_path: Path, tiny: pipelines.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pipelines.text_to_image

    def broken(chosen: pipelines.Model, texts: Sequence[str], *rest: Any, **more: Any) -> list[Image.Image]:
        if suite().prompts[2].text in texts:
            raise FloatingPointError("NaN")
        return real(chosen, texts, *rest, **more)

    monkeypatch.setattr(pipelines, "text_to_image", broken)
    finish(tmp_path / "run", tiny, limit=4)
    failed = [unit.prompt for unit, line in read_scores(tmp_path / "run") if "failed" in line]
    assert failed == ["p2"]
    assert len(list((tmp_path / "run").rglob("*.png"))) == 3
    row = next(r for r in summary.rows(tmp_path / "run") if r.metric == "brightness")
    assert (row.n, row.failed) == (4, 1)


def test_a_full_disk_loses_nothing(
    tmp_path: Path, whole: Path, tiny: pipelines.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = pictures.save, [6]

    def full(*arguments: Any) -> None:
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= 1
        real(*arguments)

    monkeypatch.setattr(pictures, "save", full)
    with pytest.raises(OSError, match="No space left"):
        finish(tmp_path / "run", tiny)
    monkeypatch.undo()
    assert len(read_scores(tmp_path / "run")) == 4
    finish(tmp_path / "run", tiny)
    assert outcome(tmp_path / "run") == outcome(whole)


# ---------------------------------------------------------------- plans and methods


def test_methods_are_read() -> None:
    assert Method.parse("untouched") == Method(UNTOUCHED)
    assert Method.parse("lift").settings == Spread()
    read = Method.parse("lift:alpha=2,carry=true,tokens=striped+crown,blocks=0-3,stop=0.5").settings
    assert read == Spread(alpha=2.0, carry=True, tokens=("striped", "crown"), blocks=(0, 1, 2, 3), stop=0.5)
    assert Method.parse("lift:tokens=purple lion+").settings == Spread(tokens=("purple lion",))
    assert Method.parse("taca:gamma=1.5").settings == make("taca", {"gamma": 1.5})
    for wrong, said in (
        ("lifted", "Did you mean 'lift'"),
        ("tacca", "Did you mean 'taca'"),
        ("taca:gama=2", "Did you mean 'gamma'"),
        ("lift:alpa=2", "Did you mean 'alpha'"),
        ("lift:alpha", "is no setting"),
        ("untouched:alpha=2", "takes no settings"),
        ("lift:alpha=-1", "alpha must be >= 0"),
    ):
        with pytest.raises(ValueError, match=said):
            Method.parse(wrong)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"methods": ()}, "needs methods"),
        ({"seeds": (1, 1)}, "seeds holds a value twice"),
        ({"guidances": ()}, "needs guidances"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"methods": (Method("a b"), Method("a/b"))}, "two methods would share the file name 'a-b'"),
        ({"suite": Suite("s", "1", "none", "here", (Prompt("a b", "x", "k"), Prompt("a/b", "y", "k")))}, "two prompts"),
    ],
)
def test_plans_that_cannot_be(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        plan(**changed)


# ---------------------------------------------------------------- what it says


def test_the_summary_is_paired_and_follows_the_plan(whole: Path) -> None:
    found = summary.rows(whole)
    assert [(r.guidance, r.method, r.metric) for r in found] == [
        (g, m, k) for g in (1.0, 3.0) for m in (UNTOUCHED, "lift:alpha=3") for k in ("brightness", "length")
    ]
    by_unit = dict(read_scores(whole))
    for row in found:
        own = [u for u in by_unit if (u.method, u.guidance) == (row.method, row.guidance)]
        values = np.array([by_unit[u]["scores"][row.metric] for u in own])
        assert row.value.value == pytest.approx(values.mean())
        if row.method == UNTOUCHED:
            assert row.difference is None
        else:
            base = np.array([by_unit[replace(u, method=UNTOUCHED)]["scores"][row.metric] for u in own])
            assert row.difference is not None
            assert row.difference.value == pytest.approx((values - base).mean(), abs=1e-12)
            clusters = [u.prompt for u in own]
            assert row.p == stats.p_value(values - base, clusters)
            assert row.detectable == stats.detectable(values - base, clusters)
    tests = [row for row in found if row.p is not None]
    assert len(tests) == 4  # every test of the table is one of the family, the other metric's and guidance's too
    assert [row.adjusted for row in tests] == stats.correct([row.p for row in tests]).tolist()
    assert [row.adjusted for row in tests] != [row.p for row in tests]
    for row in found:
        assert (row.p is None) == (row.adjusted is None) == (row.detectable is None) == (row.method == UNTOUCHED)


def test_the_summary_as_text(whole: Path) -> None:
    found = summary.rows(whole)
    table, _, notes = summary.markdown(found).partition("\n\n")
    lines = table.splitlines()
    assert len(lines) == len(found) + 2
    assert len({line.count("|") for line in lines}) == 1
    assert lines[0].endswith("| p | p, Holm | detectable |")
    row = next(row for row in found if row.p is not None)
    told = [cell.strip() for cell in lines[2 + found.index(row)].split("|")]
    assert told[-4:-1] == [summary.chance(row.p), summary.chance(row.adjusted), f"{row.detectable:.3f}"]
    assert "over all 4 tests of this table" in notes
    assert "detectable" in notes.lower()
    read = list(csv.DictReader(io.StringIO(summary.as_csv([("one", found), ("two", found[:1])]))))
    assert [line["run"] for line in read] == ["one"] * len(found) + ["two"]
    for line, row in zip(read, [*found, found[0]], strict=True):
        for name, value in (("p", row.p), ("p_holm", row.adjusted), ("detectable", row.detectable)):
            assert line[name] == ("" if value is None else repr(value))
        assert float(line["value"]) == row.value.value


def test_chances_are_not_rounded_to_nothing() -> None:
    assert [summary.chance(p) for p in (None, 0.0001, 0.001, 0.05, 1.0)] == ["", "<0.001", "0.001", "0.050", "1.000"]


if __name__ == "__main__":
    kill_runs(Path(sys.argv[1]))
