"""`benchmarks/ceiling.py`: trained on with the words that the pipeline reads, stopped and gone on, and told."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import bars
import ceiling
from measure import pack
from rarelift import pipelines
from rarelift.menagerie import world
from rarelift.menagerie.train import Run

diffusers.utils.logging.set_verbosity_error()
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def trained(folder: Path, *, balanced: bool = True, batch: int = 2, steps: int = 2) -> dict[str, Any]:
    run = Run(folder, "tiny", compile=False, progress=False)
    return ceiling.train_on(run, balanced, steps=steps, batch=batch, rate=1e-3)


def test_it_is_trained_with_what_the_pipeline_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    read: list[tuple[torch.Tensor, torch.Tensor]] = []
    caption, loss = world.draw_caption, ceiling.train.flow_loss

    def told(thing: world.Thing, rng: random.Random) -> str:
        said.append(caption(thing, rng))
        return said[-1]

    def seen(forward: Any, latents: torch.Tensor, stream: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        read.append((stream, pooled))
        return loss(forward, latents, stream, pooled)

    monkeypatch.setattr(world, "draw_caption", told)
    monkeypatch.setattr(ceiling.train, "flow_loss", seen)
    monkeypatch.setattr(random.Random, "random", lambda _: 0.5)  # no caption is left empty
    trained(tmp_path / "run", steps=1)
    model: Any = pipelines.load()
    length = model.defaults["max_sequence_length"]
    stream, _, pooled, _ = model.pipe.encode_prompt(
        said, None, None, do_classifier_free_guidance=False, max_sequence_length=length
    )
    assert torch.equal(read[0][0], stream)
    assert torch.equal(read[0][1], pooled)


def test_it_changes_the_transformer_alone_and_loads(tmp_path: Path) -> None:
    record = trained(tmp_path / "run")
    assert record["step"] == 2
    ours: Any = pipelines.load(str(tmp_path / "run" / "pipeline"))
    shipped: Any = pipelines.load()
    for name in ("vae", "text_encoder", "text_encoder_2", "transformer"):
        pairs = zip(getattr(ours.pipe, name).parameters(), getattr(shipped.pipe, name).parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) == (name != "transformer"), name
    assert ours.defaults == shipped.defaults
    assert json.loads((tmp_path / "run" / "training.json").read_text())["batch"] == 2


@pytest.mark.parametrize("other", [{"batch": 3}, {"balanced": False}])
def test_it_goes_on_with_nothing_else(tmp_path: Path, other: dict[str, Any]) -> None:
    trained(tmp_path / "run", steps=1)
    with pytest.raises(ValueError, match="go on with the former, or give another folder"):
        trained(tmp_path / "run", steps=1, **other)


def test_a_model_that_was_not_trained_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run `train .*` to its end first"):
        ceiling.drawn("balanced", tmp_path)


def records() -> list[dict[str, Any]]:
    """The shipped model is best at guidance 3, the balanced one at 5; common prompts come out alike."""
    rng = np.random.default_rng(0)
    found = []
    for name, best, rare in (("shipped", 3.0, 0.5), ("balanced", 5.0, 0.9)):
        training = None if name == "shipped" else {"steps": 7, "batch": 4, "seconds": 120.0}
        found.append({"model": name, "weights": name, "training": training, "versions": {}})
        for suite, chance in (("rare", rare), ("common", 0.95)):
            for cell in (*(bars.tuning(suite, g) for g in bars.GUIDANCE), ceiling.reporting(suite, best)):  # type: ignore[arg-type]
                worse = 0.5 if cell.split == "tune" and cell.guidance != best else 1.0
                right = np.ones((cell.n * cell.seeds, 5), bool)
                right[:, 0] = rng.random(len(right)) < chance * worse
                found.append({"model": name, "key": cell.key, "right": pack(right)})
    return found


def test_each_model_is_told_at_its_own_best_guidance() -> None:
    text = ceiling.render(records())
    shipped, balanced = text.splitlines()[-2:]
    assert shipped.startswith("| shipped | 3 | 0.5")
    assert balanced.startswith("| trained on, balanced | 5 | 0.8")
    assert "trained on, balanced: 7 steps of 4 pictures, 2 minutes" in text
    difference = balanced.split("(")[1].split()[0]
    assert 0.3 < float(difference) < 0.5


def test_differences_are_paired_by_picture() -> None:
    told = records()
    for record in told:
        if record["model"] == "balanced" and "key" in record and json.loads(record["key"])["split"] == "report":
            key = record["key"].replace("5.0", "3.0")
            record["right"] = next(r["right"] for r in told if r.get("key") == key and r["model"] == "shipped")
    balanced = ceiling.render(told).splitlines()[-1]
    assert balanced.count("(+0.000 [+0.000, +0.000])") == 2


def test_the_page_holds_the_records() -> None:
    page = ceiling.PAGE.read_text().partition("<!-- ceiling -->\n")[2].partition("\n<!-- /ceiling -->")[0]
    assert page == ceiling.render([json.loads(line) for line in ceiling.FILE.read_text().splitlines()]).strip()
