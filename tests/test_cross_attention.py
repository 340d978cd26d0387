"""`benchmarks/cross_attention.py`: a U-Net is trained, goes on, loads, and is lifted; the page says what came out."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import cross_attention as bench
import rarelift
from rarelift import pipelines
from rarelift.bench import stats
from rarelift.menagerie.train import Run, Stopped
from rarelift.prompts import Prompt, load

diffusers.utils.logging.set_verbosity_error()
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
TINY = bench.Size((32, 32), (1, 1))


def run_in(folder: Path) -> Run:
    return Run(folder, "tiny", compile=False, progress=False)


def test_trained_resumed_loaded_and_lifted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bench.train_and_export(run_in(tmp_path / "whole"), TINY, steps=3, batch=2, rate=1e-3)
    fit, calls = bench.v_loss, []

    def stop_at_the_second(*args: Any) -> torch.Tensor:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fit(*args)

    apart = run_in(tmp_path / "apart")
    monkeypatch.setattr(bench, "v_loss", stop_at_the_second)
    monkeypatch.setattr(bench.train, "SAVE_SECONDS", -1)
    with pytest.raises(Stopped):
        bench.train_and_export(apart, TINY, steps=3, batch=2, rate=1e-3)
    resumed = bench.train_and_export(apart, TINY, steps=3, batch=2, rate=1e-3)
    assert len(calls) == 4  # one step, one that was cut off, and the two that were left
    models = [pipelines.load(str(folder)) for folder in (whole, resumed)]
    for one, two in zip(*(model.pipe.unet.parameters() for model in models), strict=True):
        assert torch.equal(one, two)
    model = models[0]

    def draw() -> Any:
        return pipelines.text_to_image(model, ["a red cat"], [0], num_inference_steps=2, output_type="pt")[0]

    plain = draw()
    assert plain.shape == (3, 64, 64)
    with rarelift.apply(model.pipe, alpha=3.0, tokens="content", cross_attention=True) as handle:
        assert not torch.equal(draw(), plain)
    assert handle.calls == 2 * len(handle.sites)
    assert torch.equal(draw(), plain)


def test_the_loss_is_that_of_v() -> None:
    """Against v = sqrt(a) noise - sqrt(1 - a) x, of a network that says 0."""
    scheduler = bench.build_pipeline(TINY).scheduler
    assert scheduler.alphas_cumprod[-1] == 0
    latents = torch.randn(5, 8, 16, 16)
    given: list[Any] = []

    def network(mixed: torch.Tensor, steps: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        given.append((mixed, steps))
        return (torch.zeros_like(mixed),)

    loss = bench.v_loss(network, scheduler, latents, torch.zeros(5, 16, 224), torch.zeros(5, 128))
    mixed, steps = given[0]
    a = scheduler.alphas_cumprod[steps].double()[:, None, None, None]
    noise = (mixed.double() - a.sqrt() * latents) / (1 - a).sqrt()
    expected = (a.sqrt() * noise - (1 - a).sqrt() * latents).square().mean()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-4)


HEAD = {
    "about": {"weights": "0" * 12, "versions": {}},
    "training": {"parameters": 6_100_000, "steps": 10, "batch": 4, "seconds": 3600, "losses": [1.0, 0.25]},
}
METHODS, GUIDANCES, SEEDS, N = bench.METHODS[:3], (1.0, 2.5), (0, 1), 160
Verdict = Callable[[str, str, float, Prompt, int], bool]


def write_runs(folder: Path, verdict: Verdict) -> None:
    """What `rarelift bench` leaves, of both sides, by hand: lines in no order, with a second metric beside success."""
    for side, name in bench.SUITES.items():
        suite = load(name, limit=N, split="report")
        plan = {
            "suite": {"name": name, "version": suite.version, "digest": suite.digest, "n": N},
            "methods": [{"name": method, "settings": None} for method in METHODS],
            **{"guidances": GUIDANCES, "seeds": SEEDS, "model": "m", "batch_size": 32, "dtype": None, "call": {}},
        }
        lines = [
            {
                **{"method": method, "guidance": guidance, "prompt": prompt.id, "seed": seed},
                "scores": {"colour": 1.0, "success": float(verdict(side, method, guidance, prompt, seed))},
            }
            for method, guidance, prompt, seed in product(METHODS, GUIDANCES, suite.prompts, SEEDS)
        ]
        random.Random(0).shuffle(lines)
        (folder / side).mkdir(parents=True)
        (folder / side / "manifest.json").write_text(json.dumps({"form": 1, "plan": plan}))
        (folder / side / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def by_thing(side: str, method: str, guidance: float, prompt: Prompt, seed: int) -> bool:
    """Verdicts that all phrasings of a thing share, lifted ones a little better."""
    kept = {key: value for key, value in prompt.meta.items() if key not in ("suite", "split")}
    chance = random.Random(f"{sorted(kept.items())} {seed}").random()
    return chance < 0.4 + 0.008 * METHODS.index(method) * guidance


def table_of(text: str, side: str) -> dict[str, list[str]]:
    """The cells of a side's table, by the first of each line."""
    below = text.partition(f"{side.capitalize()} prompts, by guidance_scale:")[2].strip().partition("\n\n")[0]
    rows = [line.strip("| ").split(" | ") for line in below.splitlines()]
    return {row[0]: row[1:] for row in rows}


def test_the_page_says_what_came_out(tmp_path: Path) -> None:
    write_runs(tmp_path, by_thing)
    records = json.loads(json.dumps(bench.collected(tmp_path, HEAD)))
    text = bench.render(records)
    assert "6.1 M parameters, 10 steps of 4 pictures, 1.0 hours, last loss 0.250." in text
    common = {tuple(map(str, p.meta.values())) for p in load("menagerie-common", limit=N, split="report").prompts}
    assert len(common) < N  # some are asked for in two phrasings, else nothing below tells clusters apart
    assert f"{N} rare and {N} common prompts, 2 seeds each" in text
    assert f"ask for {N} rare and {len(common)} common things" in text
    assert "NaN" not in text
    signs = set()
    for side, name in bench.SUITES.items():
        keys = list(product(load(name, limit=N, split="report").prompts, SEEDS))
        things = [" ".join(map(str, prompt.meta.values())) for prompt, _ in keys]
        plain = {g: [float(by_thing(side, "untouched", g, *key)) for key in keys] for g in GUIDANCES}
        cells, found = table_of(text, side), []
        assert cells["untouched"] == [f"{np.mean(plain[g]):.3f}" for g in GUIDANCES]
        for method, (i, g) in product(METHODS[1:], enumerate(GUIDANCES)):
            off = np.array([float(by_thing(side, method, g, *key)) for key in keys]) - plain[g]
            sums = {thing: off[[thing == other for other in things]].sum() for thing in things}
            cell = cells[bench.short(method)][i]
            value, low, high = map(float, re.findall(r"[+-]\d\.\d+", cell))
            # of the normal approximation, by the scatter of things
            half = (
                1.96 * np.sqrt(sum((s - off.mean() * things.count(thing)) ** 2 for thing, s in sums.items())) / len(off)
            )
            assert value == pytest.approx(off.mean(), abs=6e-4)
            assert (low, high) == pytest.approx((value - half, value + half), abs=0.025)
            found.append((stats.p_value(off, things), cell))
        found.sort()
        holm = 0.0
        for i, (p, cell) in enumerate(found):
            holm = max(holm, p * (len(found) - i))
            assert cell.startswith("**") == (holm <= 0.05)
            signs.add((p <= 0.05, holm <= 0.05))
        assert len(found) == 4
    assert signs == {(True, True), (True, False), (False, False)}  # some are lost to the correction


def test_pictures_of_one_thing_stay_together() -> None:
    """Copies of a picture tell nothing new: neither the interval nor p may change; over prompts they would."""
    rng = np.random.default_rng(0)
    plain, lifted = ("".join(map(str, rng.integers(0, 2, 30))) for _ in range(2))
    found = []
    for copies in (1, 4):
        rows = [
            {"method": method, "guidance": 1.0, "right": right * copies}
            for method, right in ((bench.UNTOUCHED, plain), ("lift", lifted))
        ]
        found.append(bench.effects(rows, [str(i) for i in range(30)] * copies)["lift", 1.0])
    assert found[0] == found[1]


def test_a_run_that_was_cut_off_or_drew_other_prompts_is_not_reported(tmp_path: Path) -> None:
    write_runs(tmp_path, by_thing)
    scores = tmp_path / "common" / "scores.jsonl"
    whole = scores.read_text()
    scores.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match="of 320 pictures of .* 319 were drawn and judged; the same command"):
        bench.collected(tmp_path, HEAD)
    scores.write_text(whole)
    manifest = tmp_path / "rare" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(load("menagerie-rare", limit=N).digest, "0" * 64))
    with pytest.raises(ValueError, match="the rare pictures are of other prompts"):
        bench.collected(tmp_path, HEAD)


def test_pictures_that_came_out_as_nan_count_as_wrong(tmp_path: Path) -> None:
    write_runs(tmp_path, by_thing)
    scores = tmp_path / "rare" / "scores.jsonl"
    lines = [json.loads(line) for line in scores.read_text().splitlines()]
    right = sum(line["scores"]["success"] for line in lines)
    for line in [line for line in lines if line["scores"]["success"]][:3]:
        line |= {"scores": {}, "failed": "the picture came out as NaN"}
    scores.write_text("".join(json.dumps(line) + "\n" for line in lines))
    records = bench.collected(tmp_path, HEAD)
    assert sum(row["right"].count("1") for row in records[1:] if row["side"] == "rare") == right - 3
    assert "3 pictures came out as NaN, and count as wrong." in bench.render(records)


def values(command: list[str], option: str) -> list[str]:
    return [after for word, after in pairwise(command) if word == option]


def test_report_draws_what_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guidances, prompts and seeds go to the bench, and the page is written of what it drew."""
    page, file, commands = tmp_path / "page.md", tmp_path / "cross.jsonl", []
    page.write_text("<!-- cross -->\n<!-- /cross -->\n")
    monkeypatch.setattr(bench, "PAGE", page)
    monkeypatch.setattr(bench, "FILE", file)
    monkeypatch.setattr(bench.subprocess, "run", lambda command, **_: commands.append(command))
    monkeypatch.setattr(bench, "versions", dict)  # it would run git
    (tmp_path / "training.json").write_text(json.dumps(HEAD["training"]))
    write_runs(tmp_path, by_thing)
    wanted = ["--prompts", str(N), "--seeds", "2", "--guidance", "1", "--guidance", "2.5"]
    bench.main(["report", str(tmp_path), *wanted, "--workers", "2"])
    for command in commands:
        assert command[command.index("--prompts") + 1] == str(N)
        assert command[command.index("--seeds") + 1] == "2"
        assert values(command, "--guidance") == ["1.0", "2.5"]
        assert values(command, "--method") == list(bench.METHODS)
        assert "--workers" in command
    assert [command[command.index("--suite") + 1] for command in commands] == list(bench.SUITES.values())
    written = page.read_text()
    assert written.count("|  | 1 | 2.5 |") == 2
    page.write_text("<!-- cross -->\n<!-- /cross -->\n")
    bench.main(["table"])
    assert page.read_text() == written


def test_the_page_holds_the_records() -> None:
    body = bench.PAGE.read_text().partition("<!-- cross -->\n")[2].partition("<!-- /cross -->")[0].strip()
    drawn = bench.FILE.is_file()
    assert body == (bench.render(bench.read(bench.FILE)) if drawn else "Not drawn yet.")
