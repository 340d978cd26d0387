"""The command line as a user meets it: real processes, real files, one clear line per error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from rarelift import pictures
from rarelift.menagerie import PIPELINE
from rarelift.menagerie.world import SIZE

PROMPT = "a purple striped lion wearing a crown at night"


def rarelift(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rarelift.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


def refused(*arguments: object, says: str) -> None:
    done = rarelift(*arguments)
    assert done.returncode != 0
    assert says in done.stderr.replace("\n", " "), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_generate_writes_a_picture_with_its_settings(tmp_path: Path) -> None:
    started = time.monotonic()
    done = rarelift("generate", PROMPT, "--seed", 3, "--alpha", 1.2, "--out", tmp_path / "lion.png")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 30
    assert done.stdout.split() == [str(tmp_path / "lion.png")]
    with Image.open(tmp_path / "lion.png") as image:
        assert image.size == (SIZE, SIZE)
    record = pictures.read_metadata(tmp_path / "lion.png")
    assert (record["prompt"], record["seed"], record["settings"]["alpha"]) == (PROMPT, 3, 1.2)
    assert set(record["versions"]) == {"rarelift", "torch", "diffusers", "transformers"}


def test_compare_makes_one_grid(tmp_path: Path) -> None:
    done = rarelift("generate", PROMPT, "--compare", "--seeds", 3, "--steps", 4, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    [path] = tmp_path.iterdir()
    assert pictures.read_metadata(path)["seeds"] == [0, 1, 2]
    with Image.open(path) as image:
        assert image.width > 3 * 160


def test_explain_scores_the_words_first(tmp_path: Path) -> None:
    done = rarelift("generate", PROMPT, "--explain", "--steps", 1, "--out", tmp_path / "lion.png")
    assert done.returncode == 0, done.stderr
    *scores, path = done.stdout.splitlines()
    words = dict(reversed(line.split()) for line in scores[:6])
    assert list(words) == ["purple", "striped", "lion", "wearing", "crown", "night"]
    assert all(float(score) >= 0 for score in words.values())
    assert "65 of 100" in " ".join(scores[6:])
    assert path == str(tmp_path / "lion.png")


def test_inspect_names_blocks_and_stream() -> None:
    done = rarelift("inspect")
    assert done.returncode == 0, done.stderr
    assert "SD3Transformer2DModel: 8 joint blocks" in done.stdout
    assert "transformer_blocks.0-7  JointTransformerBlock" in done.stdout
    assert "torchao" not in done.stderr  # what libraries tell programmers


@pytest.mark.parametrize(
    "command", [[], ["generate"], ["inspect"], ["train"], ["demo"], ["bench"], ["report"], ["tune"]]
)
def test_help_has_an_example(command: list[str]) -> None:
    done = rarelift(*command, "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout
    if command:
        assert f"rarelift {command[0]}" in done.stdout.split("Usage")[1][20:]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["generate", ""], "the prompt is empty"),
        (["generate", "   "], "the prompt is empty"),
        (["generate", "a purple zebra"], "no word 'zebra'"),
        (["generate", "a purpel lion"], "did you mean purple"),
        (["generate", PROMPT, "--alpha", "nan"], "alpha must be finite"),
        (["generate", PROMPT, "--guidance", "nan"], "guidance_scale must be a finite number"),
        (["generate", PROMPT, "--out", "cat.jpg"], "pictures are PNGs"),
        (["demo", "--out", "cat.jpg"], "ends with .png"),
        (["generate", PROMPT, "--alpha", "-1"], "alpha must be >= 0"),
        (["generate", PROMPT, "--alpha", "much"], "Invalid value for '--alpha'"),
        (["generate", PROMPT, "--blocks", "0-99"], "blocks holds"),
        (["generate", PROMPT, "--blocks", "x"], "cannot read blocks"),
        (["generate", PROMPT, "--start", "0.9", "--stop", "0.1"], "start < stop"),
        (["generate", PROMPT, "--branch", "left"], "left"),
        (["generate", PROMPT, "--tokens", "frog"], "'frog'"),
        (["generate", PROMPT, "--model", "./nowhere"], "no model folder './nowhere'"),
        (["generate", PROMPT, "--seeds", "2", "--out", "two.png"], "2 pictures do not fit"),
        (["inspect", "/nowhere/model"], "no model folder"),
        (["train", "--preset", "huge"], "unknown preset 'huge'"),
        (["train", "--device", "abacus"], "abacus"),
        (["demo", "--prompts", "999999"], "prompts"),
        (["bench"], "give a folder for the run"),
        (["bench", "run", "--suite", "menagerie-rear"], "mean 'menagerie-rare'"),
        (["bench", "run", "--suite", "./none.txt"], "no such file"),
        (["bench", "run", "--suite", "rare"], "the Menagerie has no word"),
        (["bench", "run", "--method", "lifted"], "Did you mean 'lift'"),
        (["bench", "run", "--metric", "vqa"], "needs a value: vqa=PATH"),
        (["bench", "run", "--model", "./nowhere", "--steps", "1"], "no model folder './nowhere'"),
        (["bench", "run", "--address", "auto"], "say how many"),
        (["generate", PROMPT, "--carry", "2"], "carry is a share"),
        (["generate", PROMPT, "--profile", "none.json"], "none.json' cannot be read"),
        (["generate", PROMPT, "--profile", "flux"], "unknown profile 'flux'"),
        (["bench", "run", "--method", "lift:profile=none.json"], "none.json' cannot be read"),
        (["tune", "--budget", "60"], "give at least"),
        (["tune", "--budget", "600", "--method", "lift:alpa=2"], "Did you mean 'alpha'"),
        (["tune", "--model", "./nowhere", "--metric", "clip_t"], "no model folder './nowhere'"),
        (["tune", "--model", "./nowhere"], "needs a metric"),
        (["report", "nowhere"], "nowhere is no run"),
        (["report", "paper"], "give the folders of runs"),
        (["report", "paper", "nowhere", "--html", "x.html"], "leave out --html"),
        (["report", "nowhere", "--features", "clip=x"], "are for `rarelift report paper RUN...`"),
        (["report", ".", "--html", "page.html"], "is no run: it has no manifest.json"),
        (["report", ".", "--html", "/proc/page.html"], "cannot write /proc/page.html"),
        (["report", ".", "--worst"], "give --html FILE too"),
        (["report"], "Missing argument"),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(*arguments, says=says)
    assert list(tmp_path.rglob("*.png")) == []


def test_a_bench_and_its_reports(tmp_path: Path) -> None:
    arguments = ("--prompts", 2, "--steps", 1, "--guidance", 1, "--limit", 1)
    for suite in ("rare", "common"):
        done = rarelift("bench", suite, "--suite", f"menagerie-{suite}", *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"{suite}: 2 pictures made, 2 of 4 there" in done.stdout
        assert "| 1 | untouched | success | 2 |" in done.stdout
    rest = rarelift("bench", "rare", *arguments[:-2], cwd=tmp_path)
    assert "rare: 2 pictures made, 4 of 4 there" in rest.stdout
    out = ("--html", "a.html", "--csv", "b.csv", "--markdown", "c.md")
    done = rarelift("report", "rare", "common", *out, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "## rare" in done.stdout
    assert (tmp_path / "c.md").read_text() in done.stdout
    assert (tmp_path / "b.csv").read_text().count("\n") == 1 + 3 * 3
    assert (tmp_path / "a.html").read_text().startswith("<!doctype html>")
    done = rarelift("report", "paper", "rare", "common", "--markdown", "paper.md", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "### Alpha" in (tmp_path / "paper.md").read_text()


def test_a_bench_of_one_prompt_has_no_table_and_is_no_error(tmp_path: Path) -> None:
    done = rarelift("bench", "one", "--prompts", 1, "--steps", 1, "--guidance", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "one: 2 pictures made, 2 of 2 there\n"


def test_a_bench_says_what_there_is() -> None:
    done = rarelift("bench", "--list")
    for name in ("menagerie-texture", "geneval2", "lift:NAME=VALUE", "judge=URL#MODEL"):
        assert f"  {name}" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 160


def test_an_unwritable_output_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    refused("generate", PROMPT, "--out", tmp_path / "file" / "lion.png", says="cannot write")


def test_a_damaged_model_is_named(tmp_path: Path) -> None:
    import shutil

    shutil.copytree(PIPELINE, tmp_path / "model")
    weights = next((tmp_path / "model" / "transformer").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    refused("generate", PROMPT, "--model", tmp_path / "model", says=f"{weights.name} cannot be read")
    weights.unlink()
    refused("generate", PROMPT, "--model", tmp_path / "model", says="lacks")


def interrupted(*arguments: object, after: str) -> subprocess.CompletedProcess[str]:
    """Start, press Ctrl-C two seconds after `after` has appeared on stderr, and wait."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "rarelift.cli", *map(str, arguments)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell ignores it
    )
    assert process.stderr is not None
    seen = b""
    while after.encode() not in seen:
        read = process.stderr.read1()  # type: ignore[attr-defined]
        assert read, seen
        seen += read
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    out, rest = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out.decode(), (seen + rest).decode())


def test_ctrl_c_in_generating_leaves_nothing_half_written(tmp_path: Path) -> None:
    done = interrupted("generate", PROMPT, "--seeds", 500, "--out", tmp_path / "pictures", after="drawing:")
    assert done.returncode == 130
    assert "nothing half-written" in done.stderr
    assert "Traceback" not in done.stderr
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_ctrl_c_in_training_keeps_the_run(tmp_path: Path) -> None:
    done = interrupted("train", "--run", tmp_path / "run", after="text:")
    assert done.returncode == 130
    assert "the same command goes on" in done.stderr
    assert "Traceback" not in done.stderr
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["text.pt"]


def test_the_allocator_is_set_before_torch_starts() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rarelift.cli", "--version"],
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")},
    )
    assert done.returncode == 0
    assert done.stdout.strip().count(".") == 2


def test_no_command_shows_the_help_and_no_error() -> None:
    done = rarelift()
    assert done.returncode == 2
    assert "Usage" in done.stdout + done.stderr
    assert "error:" not in done.stderr


def test_files_beside_the_user_are_not_imported(tmp_path: Path) -> None:
    script = Path(sys.executable).parent / "rarelift"
    for name in ("typer.py", "random.py"):
        (tmp_path / name).write_text("raise SystemExit('imported the file beside the user')")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run([script, "--version"], capture_output=True, text=True, cwd=tmp_path, env=clean, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_failing_machine_gets_one_line(tmp_path: Path) -> None:
    code = """
import rarelift.cli, rarelift.pipelines
def load(*_):
    raise RuntimeError("out of memory\\nand more")
rarelift.pipelines.load = load
rarelift.cli.main()
"""
    command, here = [sys.executable, "-c", code, "inspect"], os.environ | {"MALLOC_TOP_PAD_": "0"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=here, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("error: out of memory (RARELIFT_TRACEBACK=1 shows where)")
