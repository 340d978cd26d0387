"""The page of a report: what it holds, what it refuses, and what a browser makes of it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from rarelift.bench import page, plots, runs, stats, summary
from rarelift.bench.runs import UNTOUCHED, Method, Plan, Run, Unit
from rarelift.prompts import Prompt, Suite
from rarelift.settings import Spread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from selenium.webdriver import Chrome

LIFT = "lift:alpha=3"
EVIL = "</script ></script><img src=x onerror=\"document.title='pwned'\"><!-- ${title} & 'quoted'"


def suite(n: int = 8, *, name: str = "some", rare: bool | None = True, kinds: int = 1, text: str = "") -> Suite:
    kind = ("property", "texture", "shape")
    prompts = [Prompt(f"p{i}", f"a lion number {i}{text}", kind[i % kinds], rare=rare) for i in range(n)]
    return Suite(name, "7", "none", "made here", tuple(prompts))


def plan(chosen: Suite | None = None, methods: tuple[str, ...] = (UNTOUCHED, LIFT), **changed: Any) -> Plan:
    given = {"guidances": (1.0, 3.0), "seeds": (0, 1), "model": "tiny", "batch_size": 4, **changed}
    return Plan(chosen or suite(), tuple(map(Method.parse, methods)), **given)


def verdict(method: str, guidance: float | None, prompt: int, seed: int) -> dict[str, float]:
    """Of eight prompts the lift loses 2 and 5 and wins 3, at every guidance and seed."""
    right = prompt in ((1, 3, 7) if method != UNTOUCHED else (1, 2, 5, 7))
    return {"success": float(right), "warmth": prompt / 10 + (method != UNTOUCHED) * (0.01 * prompt - 0.02) + seed}


def held(folder: Path, chosen: Plan | None = None, scores: Any = verdict, *, keep: float = 1) -> Path:
    """A run as `rarelift bench` leaves it, with a plain picture for each line; NaN where `scores` says None."""
    chosen = chosen or plan()
    with Run(folder, chosen).open() as run:
        run.begin()
    units = [unit for method, guidance in chosen.groups for unit in chosen.units(method, guidance)]
    place = {prompt.id: i for i, prompt in enumerate(chosen.suite.prompts)}
    lines = []
    for unit in units[: round(keep * len(units))]:
        found = scores(unit.method, unit.guidance, place[unit.prompt], unit.seed)
        line = {"method": unit.method, "guidance": unit.guidance, "prompt": unit.prompt, "seed": unit.seed}
        lines.append(
            {**line, "scores": found or {}, "seconds": 0.1, **({} if found is not None else {"failed": "NaN"})}
        )
        if found is not None:
            path = folder / unit.path
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (20 * place[unit.prompt], 90 * unit.seed, 200)).save(path)
    runs.append(folder / runs.SCORES, lines)
    return folder


def built(tmp_path: Path, *folders: Path, **more: Any) -> str:
    page.build(folders, tmp_path / "page.html", **more)
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def data(text: str) -> Any:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text).group(1))


# ---------------------------------------------------------------- what it holds


def test_tables_hold_every_row_of_the_summary(tmp_path: Path) -> None:
    folder = held(tmp_path / "run")
    text, rows = built(tmp_path, folder), summary.rows(folder)
    plain = re.sub(r"<[^>]+>", "", text).replace("\N{MINUS SIGN}", "-")
    for row in rows:
        _, _, _, n, value, difference, *tests = summary.cells(row)
        assert f"{row.method}{n}{value}{difference}{''.join(tests)}" in plain.replace("&lt;", "<")
    assert "over all 4 tests of these tables" in plain  # 2 guidances, 2 metrics, 1 method against untouched
    assert plain.count("detectable") == 2


def test_the_head_says_what_was_run(tmp_path: Path) -> None:
    text = built(tmp_path, held(tmp_path / "run"))
    manifest = runs.read_manifest(tmp_path / "run")
    for said in (
        suite().digest,
        "some, version 7, 8 prompts",
        "drawn by tiny",
        "64 of 64, 0 NaN",
        "alpha=3.0, carry=false",
        f"torch {manifest['made']['versions']['torch']}",
        manifest["made"]["at"],
        manifest["made"]["machine"]["system"],
    ):
        assert said in text
    assert "Unfinished" not in text


@pytest.mark.parametrize("split", [None, "tune"])
def test_the_command_draws_the_same_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str | None) -> None:
    from typer.testing import CliRunner

    from rarelift.bench import session
    from rarelift.cli import app

    chosen = session.planned(
        "menagerie-rare",
        split=split,
        first=5,
        methods=("untouched", "lift:alpha=2,tokens=striped+crown"),
        guidances=(1.5, 3),
        seeds=2,
        metrics=("clip_t",),
        batch_size=3,
        num_inference_steps=4,
    )
    folder = held(tmp_path / "my run", chosen, lambda *_: {"clip_t": 0.5})
    command = re.search(r"<pre><code>(.*?)</code>", built(tmp_path, folder)).group(1)
    seen: list[Plan] = []
    monkeypatch.setattr(session, "bench", lambda plan, *_, **__: seen.append(plan) or (0, 0))
    import html

    words = shlex.split(html.unescape(command))
    assert words[:3] == ["rarelift", "bench", "my run"]
    CliRunner().invoke(app, words[1:])
    assert seen[0].to_dict() == chosen.to_dict()


def test_a_file_that_is_called_as_a_suite_of_ours_is_not_taken_for_it(tmp_path: Path) -> None:
    from rarelift.bench import session

    (tmp_path / "rare.txt").write_text("a purple lion\na red frog\n")
    chosen = session.planned(str(tmp_path / "rare.txt"), methods=("untouched",))
    folder = held(tmp_path / "run", chosen, lambda *_: {})
    said, besides = summary.command(summary.read(folder))
    assert "--suite PATH-OF-rare" in said
    assert besides


def test_what_is_missing_and_what_is_nan_is_said(tmp_path: Path) -> None:
    def scores(method: str, guidance: float | None, prompt: int, seed: int) -> dict[str, float] | None:
        return None if method != UNTOUCHED and prompt == 4 else verdict(method, guidance, prompt, seed)

    text = built(tmp_path, held(tmp_path / "run", scores=scores, keep=0.75))
    assert "Unfinished: 16 of 64 pictures are missing" in text
    assert "48 pictures, 2 of them NaN" in text
    assert "16, 2 NaN" in text
    assert "pictures that came out as no picture" in text
    nan = [cell for pair in data(text)["pairs"] for cell in pair["c"] if cell["nan"]]
    assert len(nan) == 2
    assert all(cell["i"] is None and cell["v"] == [0.0, None] for cell in nan)


def test_wins_and_losses_of_all_pairs_are_counted(tmp_path: Path) -> None:
    text = built(tmp_path, held(tmp_path / "run"), pictures=1)
    counted = re.search(r"<h3>Wins and losses</h3>.*?</table>", text).group()
    assert re.findall(r"<td>(\d+)</td>", counted) == ["16", "2", "4", "4", "6"] * 2  # pairs, won, lost, both, neither


def test_kinds_are_corrected_together(tmp_path: Path) -> None:
    folder = held(tmp_path / "run", plan(suite(24, kinds=3)))
    text = built(tmp_path, folder)
    for kind in ("property", "texture", "shape"):
        assert f"<summary>{kind}, 8 prompts</summary>" in text
    assert "over all 12 tests of the tables of all kinds together" in text
    rows = [row for found in summary.by_kind(summary.read(folder)).values() for row in found if row.p is not None]
    assert [row.adjusted for row in rows] == stats.correct([row.p for row in rows]).tolist()
    assert "By kind of prompt" not in built(tmp_path, held(tmp_path / "one"))


def test_it_is_one_file_that_asks_for_nothing(tmp_path: Path) -> None:
    folder = held(tmp_path / "run")
    text = built(tmp_path, folder)
    assert not re.search(r"https?:|url\((?!#)|@import|<script[^>]* src", text)
    assert "default-src 'none'" in text
    assert text == built(tmp_path, folder)  # the same numbers make the same file
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:href="#|url\(#)([^")]*)', text))
    assert used <= set(ids)
    for figure in re.findall(r"<figure.*?</figure>", text, re.DOTALL):
        assert 'role="img" aria-label="' in figure
        assert "</text>" in figure  # text, not outlines


def test_what_the_page_is_made_of_lies_beside_it() -> None:
    for name in ("page.html", "page.css", "page.js"):
        assert (Path(page.__file__).parent / name).is_file()


# ---------------------------------------------------------------- curves


def test_rare_and_common_make_a_curve(tmp_path: Path) -> None:
    rare = held(tmp_path / "rare", plan(suite(name="odd")))
    common = held(tmp_path / "common", plan(suite(10, name="usual", rare=False)), lambda *a: verdict(a[0], a[1], 1, 0))
    text = built(tmp_path, rare, common)
    label = re.search(r'aria-label="Rare against common success[^"]*"', text).group()
    for method, share in ((UNTOUCHED, 4 / 8), (LIFT, 3 / 8)):
        assert f"{method} at guidance 1 rare {share:.3f} and common 1.000, at guidance 3 rare {share:.3f}" in label
    assert "odd against usual" in text
    assert "Rare against common" not in built(tmp_path, rare)


def test_runs_that_differ_in_more_than_their_prompts_make_none(tmp_path: Path) -> None:
    rare = held(tmp_path / "rare", plan(suite(name="odd")))
    usual = suite(name="usual", rare=False)
    other = held(tmp_path / "model", plan(usual, model="other"))
    assert "odd against usual: no curve, for the two runs differ in their model" in built(tmp_path, rare, other)
    other = held(tmp_path / "guidance", plan(usual, guidances=(7.0,)))
    assert "no curve, for the two runs share no method with the same settings and guidance" in built(
        tmp_path, rare, other
    )
    settings = Plan(usual, (Method(LIFT, Spread(alpha=2.0)),), (1.0, 3.0), (0, 1), "tiny", 4)
    other = held(tmp_path / "settings", settings)
    assert "no curve, for the two runs share no method" in built(tmp_path, rare, other)


def test_plots_take_one_guidance_the_default_and_many_methods() -> None:
    value = stats.Estimate(0.5, 0.4, 0.6)
    one = [plots.Line(f"m$x$<{i}>", i, (None,), (value,)) for i in range(9)]
    one.append(plots.Line("\u732b", 9, (None,), (value,)))  # a letter that matplotlib's font lacks
    text = plots.by_guidance(one, "a", zero=True)
    assert ">\u732b<" in text
    assert all(f"m$x$&lt;{i}&gt;" in text for i in range(9))
    assert all(f"var(--s{i})" in text for i in range(plots.SERIES))
    mixed = plots.by_guidance([plots.Line("m", 0, (None, 2.0), (value, value))], "b")
    assert ">default<" in mixed
    assert ">2<" in mixed


# ---------------------------------------------------------------- pictures


def embedded(text: str) -> dict[tuple[str, str], list[tuple[str, int]]]:
    """(prompt, seed) by method and guidance."""
    found, known = defaultdict(list), data(text)
    for pair in known["pairs"]:
        for cell in pair["c"]:
            key = known["methods"][cell["m"]], known["guidances"][pair["g"]]
            found[key].append((known["prompts"][pair["p"]]["text"].split()[-1], pair["s"]))
    return found


def test_pictures_are_chosen_without_a_look_at_what_came_out(tmp_path: Path) -> None:
    first = built(tmp_path, held(tmp_path / "run"), pictures=3)
    assert set(map(tuple, embedded(first).values())) == {(("0", 0), ("0", 1), ("1", 0))}
    assert len(embedded(first)) == 4
    assert "6 of 32 pairs are in this file" in first
    other = built(tmp_path, held(tmp_path / "other", scores=lambda *a: verdict(a[0], a[1], 7 - a[2], a[3])), pictures=3)
    assert embedded(other) == embedded(first)


def test_the_worst_losses_on_request(tmp_path: Path) -> None:
    third = "lift:alpha=9"  # loses 1, where the other lift loses 2 and 5

    def scores(method: str, guidance: float | None, prompt: int, seed: int) -> dict[str, float]:
        return {"success": float(prompt > 1)} if method == third else verdict(method, guidance, prompt, seed)

    folder = held(tmp_path / "run", plan(methods=(UNTOUCHED, LIFT, third)), scores)
    text = built(tmp_path, folder, pictures=3, worst=True)
    found = embedded(text)
    assert data(text)["worst"] is True
    # of two losses 2 is worse: warmth falls by nothing there and rises at 5
    assert found[LIFT, "1"] == found[LIFT, "3"] == [("2", 0), ("2", 1), ("5", 0)]
    assert found[third, "1"] == [("0", 0), ("1", 0), ("1", 1)]  # 0 is a tie, the first of them
    assert all(len(pairs) <= 3 for (method, _), pairs in found.items() if method != UNTOUCHED)
    assert "3 worst at most" in text


def test_large_pictures_are_made_smaller_and_lost_ones_are_said(tmp_path: Path) -> None:
    import base64
    import io

    folder = held(tmp_path / "run")
    Image.effect_noise((1024, 512), 90).save(folder / Unit(UNTOUCHED, 1.0, "p0", 0).path)
    (folder / Unit(UNTOUCHED, 1.0, "p0", 1).path).write_bytes(b"no picture")
    cut = folder / Unit(UNTOUCHED, 1.0, "p1", 0).path
    cut.write_bytes(cut.read_bytes()[:60])
    (folder / Unit(UNTOUCHED, 1.0, "p1", 1).path).unlink()
    text = built(tmp_path, folder)
    cells = [pair["c"][0]["i"] for pair in data(text)["pairs"][:5]]
    assert cells[1:4] == [None] * 3
    assert "3 pictures could not be read from the folder" in text
    with Image.open(io.BytesIO(base64.b64decode(cells[0].partition(",")[2]))) as image:
        assert image.size == (320, 160)
    with Image.open(io.BytesIO(base64.b64decode(cells[4].partition(",")[2]))) as image:
        assert image.size == (16, 16)
        assert np.abs(np.asarray(image, int) - (40, 0, 200)).max() < 12
    shutil.rmtree(folder / runs.IMAGES)
    assert "64 pictures could not be read" in built(tmp_path, folder)


def test_a_run_without_metrics_or_without_lines(tmp_path: Path) -> None:
    bare = built(tmp_path, held(tmp_path / "bare", scores=lambda *_: {}))
    assert "there are no tables and no plots" in bare
    assert len(data(bare)["pairs"]) == 32
    empty = built(tmp_path, held(tmp_path / "empty", keep=0))
    assert "Unfinished: 64 of 64 pictures are missing" in empty
    assert "No picture has been made yet" in empty
    alone = built(tmp_path, held(tmp_path / "alone", plan(methods=(LIFT,))))
    assert "minus untouched" not in alone
    assert "Wins and losses" not in alone


# ---------------------------------------------------------------- what goes wrong


def test_what_cannot_be_reported_is_refused(tmp_path: Path) -> None:
    folder, out = held(tmp_path / "run"), tmp_path / "page.html"
    with pytest.raises(ValueError, match="is no run: it has no manifest"):
        page.build([tmp_path], out)
    with pytest.raises(ValueError, match="each given once"):
        page.build([folder, tmp_path / "x" / ".." / "run"], out)
    with pytest.raises(ValueError, match="each given once; got none"):
        page.build([], out)
    with pytest.raises(ValueError, match="worst losses need pairs with a metric"):
        page.build([held(tmp_path / "bare", scores=lambda *_: {})], out, worst=True)
    with pytest.raises(OSError, match="it is a folder"):
        page.build([folder], tmp_path)
    (folder / runs.SCORES).write_text('{"method": "untouched", "guidance": 1.0, "prompt": "p0", "seed": 0}\n')
    with pytest.raises(ValueError, match="has no scores"):
        page.build([folder], out)
    (folder / runs.SCORES).unlink()
    (folder / runs.MANIFEST).write_text(json.dumps({"form": runs.FORM, "plan": {}}))
    with pytest.raises(ValueError, match="the manifest cannot be read: KeyError"):
        page.build([folder], out)
    assert not out.exists()


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = held(tmp_path / "run")
    text = built(tmp_path, folder)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        page.build([folder], tmp_path / "page.html", pictures=0)
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == text
    assert not list(tmp_path.glob(".*.part"))


def test_an_older_manifest_without_prompts_shows_their_ids(tmp_path: Path) -> None:
    folder = held(tmp_path / "run")
    manifest = json.loads((folder / runs.MANIFEST).read_text())
    del manifest["prompts"]
    (folder / runs.MANIFEST).write_text(json.dumps(manifest))
    assert data(built(tmp_path, folder))["prompts"][3] == {"text": "p3", "kind": "", "run": 0}


# ---------------------------------------------------------------- on the command line


def test_the_command_writes_all_that_it_is_asked_for(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from rarelift.cli import app

    first, second = held(tmp_path / "first"), held(tmp_path / "second", plan(suite(name="usual", rare=False)))
    files = {name: tmp_path / "new" / f"report.{name}" for name in ("html", "markdown", "csv")}
    asked = [part for name, path in files.items() for part in (f"--{name}", str(path))]
    done = CliRunner().invoke(app, ["report", str(first), str(second), *asked, "--worst"])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-3:] == [str(files[name]) for name in ("csv", "markdown", "html")]
    told = files["markdown"].read_text()
    assert done.output.startswith(told)
    assert [line for line in told.splitlines() if line.startswith("#")] == [f"## {first}", f"## {second}"]
    assert len(files["csv"].read_text().splitlines()) == 1 + len(summary.rows(first)) + len(summary.rows(second))
    page_ = files["html"].read_text()
    assert data(page_)["worst"] is True
    assert "some against usual" in page_


def test_a_run_without_metrics_is_a_page_but_no_table(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from rarelift.cli import app

    folder = held(tmp_path / "bare", scores=lambda *_: {})
    done = CliRunner().invoke(app, ["report", str(folder)])
    assert "has no metric with pictures of two prompts" in str(done.exception)
    done = CliRunner().invoke(app, ["report", str(folder), "--html", str(tmp_path / "page.html")])
    assert (done.exit_code, done.output) == (0, f"{tmp_path / 'page.html'}\n")


# ---------------------------------------------------------------- in a browser

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    names = ("chromium", "chromium-browser", "google-chrome")
    browser, driver = next(filter(None, map(shutil.which, names)), None), shutil.which("chromedriver")
    if not browser or not driver:
        said = "needs chromium and chromedriver, and they are not on the path"
        if os.environ.get("RARELIFT_NEEDS_CHROMIUM"):
            pytest.fail(said)
        pytest.skip(said)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()


class Shown:
    """A page in the browser, seen through what a reader can do."""

    def __init__(self, chrome: Chrome, path: Path, width: int = 1280) -> None:
        self.chrome = chrome
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        chrome.get_log("performance")
        chrome.get_log("browser")
        chrome.get(path.as_uri())

    def js(self, code: str) -> Any:
        return self.chrome.execute_script(f"return {code}")

    def choose(self, control: str, text: str) -> None:
        from selenium.webdriver.common.by import By
        from selenium.webdriver.support.ui import Select

        Select(self.chrome.find_element(By.ID, control)).select_by_visible_text(text)

    def options(self, control: str) -> list[str]:
        return self.js(f"[...document.getElementById('{control}').options].map((option) => option.text)")

    def search(self, text: str) -> None:
        from selenium.webdriver.common.by import By

        box = self.chrome.find_element(By.ID, "search")
        box.clear()
        box.send_keys(text)

    @property
    def pairs(self) -> list[str]:
        """Prompt and what is said of each method, for each pair in the page."""
        code = """[...document.querySelectorAll('.pair')].map((pair) =>
            [...pair.querySelectorAll('.prompt, .about, .chip')].map((e) => e.textContent).join(' | '))"""
        return self.js(code)

    @property
    def count(self) -> int:
        return int(self.js("document.getElementById('count').textContent").split()[0])

    def requests(self) -> list[str]:
        sent = [json.loads(entry["message"])["message"] for entry in self.chrome.get_log("performance")]
        return [m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"]


def test_searching_choosing_and_ordering(chromium: Chrome, tmp_path: Path) -> None:
    built(tmp_path, held(tmp_path / "run", plan(suite(kinds=2))))
    shown = Shown(chromium, tmp_path / "page.html")
    assert shown.count == 32
    assert shown.pairs[0] == "a lion number 0 | guidance 1 · seed 0 · property | not right | neither right"
    assert [p.split(" | ")[0] for p in shown.pairs[:4]] == [f"a lion number {i}" for i in (0, 0, 1, 1)]
    shown.search("LION 5")
    assert shown.count == 4
    assert shown.pairs[0].endswith("texture | right | ▼ lost")
    shown.search("zebra")
    assert (shown.count, shown.pairs) == (0, [])
    shown.search(" ")
    for outcome, prompts in (("won", {3}), ("lost", {2, 5}), ("both right", {1, 7}), ("neither right", {0, 4, 6})):
        shown.choose("outcome", next(o for o in shown.options("outcome") if o.startswith(outcome)))
        assert {int(p.split(" | ")[0].split()[-1]) for p in shown.pairs} == prompts
    shown.choose("outcome", "all")
    shown.choose("guidance", "3")
    shown.choose("kind", "texture")
    assert shown.count == 8
    assert all("guidance 3" in pair and "texture" in pair for pair in shown.pairs)
    shown.choose("kind", "all")
    shown.choose("order", "worst losses first")
    numbers = [int(p.split(" | ")[0].split()[-1]) for p in shown.pairs]
    assert numbers[:4] == [2, 2, 5, 5]  # tied in success; warmth rises less at 2
    assert numbers[-1] == 3
    shown.choose("order", "biggest wins first")
    assert [int(p.split(" | ")[0].split()[-1]) for p in shown.pairs][:2] == [3, 3]
    shown.choose("metric", "warmth")
    assert shown.pairs[0] == "a lion number 7 | guidance 3 · seed 0 · texture | 0.700 | 0.750 (+0.050)"
    assert shown.options("outcome") == ["all", "higher than untouched", "lower than untouched", "the same"]
    shown.choose("outcome", "lower than untouched")
    assert {int(p.split(" | ")[0].split()[-1]) for p in shown.pairs} == {0, 1}
    assert shown.chrome.get_log("browser") == []


def test_the_worst_are_first_when_asked_for_on_the_command_line(chromium: Chrome, tmp_path: Path) -> None:
    built(tmp_path, held(tmp_path / "run"), worst=True)
    shown = Shown(chromium, tmp_path / "page.html")
    assert all("▼ lost" in pair for pair in shown.pairs[:8])
    assert "▼ lost" not in shown.pairs[8]


def test_on_a_phone_nothing_sticks_out_and_nothing_is_asked_for(chromium: Chrome, tmp_path: Path) -> None:
    long = "lift:alpha=3,carry=false,tokens=striped+crown+wearing,blocks=0-3,start=0.25,stop=0.75"
    rare = held(tmp_path / "rare", plan(suite(kinds=3, text=" " + "very" * 30), (UNTOUCHED, LIFT, long)))
    common = held(tmp_path / "common", plan(suite(name="usual", rare=False), (UNTOUCHED, LIFT, long)), keep=0.9)
    built(tmp_path, rare, common)
    for width in (360, 1280):
        shown = Shown(chromium, tmp_path / "page.html", width)
        shown.js("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
        assert shown.js("innerWidth") == width
        assert shown.js("document.documentElement.scrollWidth") <= width
        shown.js("window.scrollTo(0, document.body.scrollHeight)")
        assert shown.js("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
        assert shown.chrome.get_log("browser") == []
        sent = shown.requests()
        assert sent[0] == (tmp_path / "page.html").as_uri()
        assert all(url.startswith("data:") for url in sent[1:]), sent
    levels = shown.js("[...document.querySelectorAll('h1, h2, h3')].map((heading) => Number(heading.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert max(b - a for a, b in pairwise(levels)) == 1
    assert shown.js("[...document.querySelectorAll('input, select')].every((control) => control.labels.length === 1)")
    assert shown.js("[...document.images].every((image) => image.alt)")
    assert shown.js("document.documentElement.lang") == "en"


def test_pairs_come_as_they_are_scrolled_to(chromium: Chrome, tmp_path: Path) -> None:
    built(tmp_path, held(tmp_path / "run", plan(suite(100))))
    shown = Shown(chromium, tmp_path / "page.html", 360)
    assert shown.count == 400
    assert len(shown.pairs) <= 48
    for _ in range(60):
        chromium.execute_async_script(
            "const done = arguments[0]; window.scrollTo(0, document.body.scrollHeight);"
            "requestAnimationFrame(() => requestAnimationFrame(done))"
        )
    assert len(shown.pairs) == 400
    assert shown.js("document.getElementById('more').hidden")


def test_a_prompt_that_is_markup_is_shown_and_does_nothing(chromium: Chrome, tmp_path: Path) -> None:
    prompts = tuple(Prompt(f"p{i}", f"{EVIL} {i}", f"{EVIL} kind {i % 2}", rare=bool(i % 2)) for i in range(8))
    chosen = Suite(f"{EVIL} suite", f"{EVIL} 1", "none", "made here", prompts)
    methods = (Method(UNTOUCHED), Method(f"{EVIL} method", Spread()))
    folder = held(
        tmp_path / "run",
        Plan(chosen, methods, (1.0, 2.0), (0,), f"{EVIL} model", 4, (("x", EVIL),), (EVIL,)),
        lambda *a: {**verdict(*a), f"{EVIL} metric": 0.5 * a[2]},
    )
    built(tmp_path, folder)
    shown = Shown(chromium, tmp_path / "page.html")
    assert shown.count == 16
    assert shown.pairs[0].startswith(f"{EVIL} 0 | ")
    assert shown.js("document.title") == f"rarelift: {EVIL} suite"
    assert shown.js("[...document.images].every((image) => image.src.startsWith('data:image/webp'))")
    assert shown.js("document.querySelectorAll('script').length") == 2
    assert shown.js("document.querySelector('figure text, .legend').textContent").count("<img") <= 1
    shown.search("onerror 3")
    assert shown.count == 2
    assert shown.chrome.get_log("browser") == []
    assert all(url.startswith("data:") for url in shown.requests()[1:])


def test_without_javascript_the_numbers_are_there(chromium: Chrome, tmp_path: Path) -> None:
    built(tmp_path, held(tmp_path / "run"))
    chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        shown = Shown(chromium, tmp_path / "page.html")
        seen = shown.chrome.find_element("tag name", "body").text
        assert "Searching the pictures needs JavaScript" in seen
        assert "Search the prompts" not in seen
        assert "0.375" in seen
        assert len(shown.chrome.find_elements("css selector", "figure svg")) == 4
    finally:
        chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
