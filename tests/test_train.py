"""Training at the tiny preset: the whole recipe in seconds, stopped and resumed, exported and loaded."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rarelift import pipelines
from rarelift.menagerie import recipe, train, world
from rarelift.menagerie.judge import Judge
from rarelift.menagerie.train import Run, Stopped, fit


def run_in(folder: Path) -> Run:
    return Run(folder, "tiny", compile=False, progress=False)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train.train(run_in(tmp_path_factory.mktemp("run")))


def test_every_word_of_the_world_is_one_token() -> None:
    tokenizer = recipe.build_tokenizer()
    for word in world.lexicon():
        assert tokenizer.convert_ids_to_tokens(tokenizer(word).input_ids)[1:-1] == [f"{word}</w>"]
    longest = max((world.caption(t, p) for t in world.all_things() for p in range(4)), key=lambda c: len(c.split()))
    assert len(tokenizer(longest).input_ids) == recipe.TEXT_LENGTH


def test_words_have_the_same_numbers_in_every_process() -> None:
    """Training goes on in another process than it began in; a hash that breaks ties would mix the words up."""
    code = """if True:
        from rarelift.menagerie import recipe, world
        print(recipe._vocabulary(world.lexicon()))
    """
    said = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, stdout=subprocess.PIPE, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert said == {f"{recipe._vocabulary(world.lexicon())}\n".encode()}


def test_the_exported_folder_is_a_pipeline_that_draws(exported: Path) -> None:
    model = pipelines.load(str(exported / "pipeline"))
    assert type(model.pipe).__name__ == "StableDiffusion3Pipeline"
    image = pipelines.text_to_image(model, ["a red cat at night"], [0], num_inference_steps=2)[0]
    assert image.size == (world.SIZE, world.SIZE)
    judge = Judge.load(exported / "judge")
    assert judge.right([image], [world.Thing("cat", "red", "plain", "nothing", "night")]).shape == (1, 5)
    facts = json.loads((exported / "training.json").read_text())
    assert set(facts["stages"]) == set(train.STAGES)
    assert all(dtype == torch.float16 for dtype in _dtypes(exported / "pipeline" / "transformer"))


def _dtypes(folder: Path) -> set[torch.dtype]:
    from safetensors.torch import load_file

    return {t.dtype for path in folder.glob("*.safetensors") for t in load_file(path).values()}


def test_the_text_stream_is_the_pipelines_own(exported: Path) -> None:
    pipe = pipelines.load(str(exported / "pipeline")).pipe
    texts = ["a purple striped lion wearing a crown at night", ""]
    theirs, _, pooled, _ = pipe.encode_prompt(
        texts, None, None, do_classifier_free_guidance=False, max_sequence_length=recipe.TEXT_LENGTH
    )
    encoders = nn.ModuleDict({"encoder_0": pipe.text_encoder, "encoder_1": pipe.text_encoder_2})
    ours, ours_pooled = train.text_stream(encoders, train.Tokens("cpu")(texts))
    assert torch.equal(ours, theirs)
    assert torch.equal(ours_pooled, pooled)


@pytest.mark.parametrize(("presses", "says"), [(1, "at step 6 of 12"), (2, "at once; .* from the last save")])
def test_an_interrupted_stage_goes_on_to_the_same_weights(tmp_path: Path, presses: int, says: str) -> None:
    def stage(folder: Path, stop_at: int | None) -> dict[str, torch.Tensor]:
        run = run_in(folder)
        torch.manual_seed(0)
        networks = nn.ModuleDict({"line": nn.Linear(3, 1)})

        def loss_of(step: int) -> torch.Tensor:
            if step == stop_at:
                for _ in range(presses):
                    signal.raise_signal(signal.SIGINT)
            run.rng("line", step)
            x = torch.randn(8, 3)
            return (networks["line"](x) - x.sum(1, keepdim=True)).square().mean()

        fit(run, "line", networks, loss_of, steps=12, learning_rate=1e-2, decay_from=0.5, ema=0.9)
        return networks.state_dict()

    whole = stage(tmp_path / "whole", None)
    with pytest.raises(Stopped, match=says):
        stage(tmp_path / "parts", 5)
    resumed = stage(tmp_path / "parts", None)
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    assert not [p for p in (tmp_path / "parts").iterdir() if p.name.startswith(".")]


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    train.train_text(run)
    with pytest.raises(ValueError, match=r"text\.pt was trained with seed 0, this run has seed 7"):
        train.train_text(dataclasses.replace(run, seed=7))
    with pytest.raises(ValueError, match=r"text\.pt was trained with preset tiny, this run has preset cpu"):
        train.train_text(dataclasses.replace(run, preset_name="cpu"))
    path = tmp_path / "text.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"text\.pt cannot be read .* remove it"):
        train.train_text(run)


def test_models_do_not_take_the_place_of_other_things(tmp_path: Path, exported: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for out, says in ((tmp_path, "holds other things"), (tmp_path / "thesis.txt", "is a file")):
        with pytest.raises(ValueError, match=says):
            train.train(run_in(tmp_path / "run"), out)
    with pytest.raises(OSError, match="cannot write models to"):
        train.train(run_in(tmp_path / "run"), tmp_path / "thesis.txt" / "models")
    assert not (tmp_path / "run").exists()  # known before anything is trained
    train.check_out(tmp_path / "new" / "models")
    train.check_out(exported)


def test_a_failed_export_leaves_the_former_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "training.json").write_text("former")
    real = os.replace

    def broken(source: Path, target: Path) -> None:
        if target == folder and not str(source).endswith(".old"):
            raise OSError("no space")
        real(source, target)

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="no space"), train._replaced(folder) as new:
        (new / "training.json").write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == ["weights"]
    assert (folder / "training.json").read_text() == "former"


def test_no_compiler_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler .* --no-compile"):
        Run(tmp_path, "tiny")
    Run(tmp_path, "tiny", compile=False)


def test_a_finished_stage_is_not_trained_again(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    first, record = train.train_text(run)
    second, again = train.train_text(run)
    assert record == again
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_checkpoint_of_another_length_is_refused(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    train.train_text(run)
    longer = dataclasses.replace(recipe.PRESETS["tiny"], text_steps=3)
    recipe.PRESETS["longer"] = longer
    try:
        with pytest.raises(ValueError, match="trained with (preset tiny|steps 2)"):
            train.train_text(dataclasses.replace(run, preset_name="longer"))
    finally:
        del recipe.PRESETS["longer"]


def test_a_loss_that_is_not_finite_stops_and_keeps_what_was_saved(tmp_path: Path) -> None:
    networks = nn.ModuleDict({"line": nn.Linear(2, 1)})
    with pytest.raises(FloatingPointError, match="stage 'line': the loss is nan at step 0"):
        fit(
            run_in(tmp_path),
            "line",
            networks,
            lambda step: networks["line"](torch.full((1, 2), float("nan"))).sum(),
            steps=3,
            learning_rate=1e-2,
        )
    assert not (tmp_path / "line.pt").exists()


def test_the_data_of_a_step_depends_on_nothing_but_seed_stage_and_step(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    things, images, _ = train._draw(run, "vae", 3, 4, balanced=True)
    train._draw(run, "vae", 4, 4, balanced=True)
    again, same, _ = train._draw(run, "vae", 3, 4, balanced=True)
    assert things == again
    assert torch.equal(images, same)
    other, _, _ = train._draw(dataclasses.replace(run, seed=1), "vae", 3, 4, balanced=True)
    assert other != things


def test_contrastive_counts_equal_captions_as_positives() -> None:
    torch.manual_seed(0)
    images, texts = torch.randn(4, 8), torch.randn(4, 8)
    texts[1] = texts[0]
    ids = torch.tensor([[1], [1], [2], [3]])
    scale = torch.tensor(1.0)
    a = (images / images.norm(dim=1, keepdim=True)).double().numpy()
    b = (texts / texts.norm(dim=1, keepdim=True)).double().numpy()
    logits = np.exp(1.0) * a @ b.T
    target = np.array([[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])

    def cross_entropy(scores: np.ndarray) -> float:
        return float(-(target * (scores - np.log(np.exp(scores).sum(1, keepdims=True)))).sum(1).mean())

    expected = (cross_entropy(logits) + cross_entropy(logits.T)) / 2
    assert float(train.contrastive(images, texts, ids, scale)) == pytest.approx(expected, rel=1e-5)
