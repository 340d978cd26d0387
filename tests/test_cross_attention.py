"""`benchmarks/cross_attention.py`: a U-Net is trained, goes on, loads, and is lifted; the page says what came out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import cross_attention as bench
import rarelift
from rarelift import pipelines
from rarelift.menagerie.train import Run, Stopped

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


def test_the_page_says_what_came_out() -> None:
    training = {"parameters": 6_100_000, "steps": 10, "batch": 4, "seconds": 3600, "losses": [1.0, 0.25]}
    records: list[dict[str, Any]] = [{"about": {"prompts": 8, "seeds": 2}, "training": training}]
    row = {"side": "rare", "method": bench.UNTOUCHED, "guidance": 1.0, "success": [0.5, 0.4, 0.6]}
    lifted = {"side": "rare", "method": bench.METHODS[2], "guidance": 1.0, "difference": [0.1, 0.05, 0.15]}
    records += [row, {**lifted, "adjusted": 0.01}, {**lifted, "guidance": 2.0, "adjusted": 0.2}]
    text = bench.render(records)
    assert "6.1 M parameters, 10 steps of 4 pictures, 1.0 hours, last loss 0.250. 8 prompts a suite, 2 seeds" in text
    assert "| untouched | 0.500 | not run |" in text
    assert "| alpha 1.5, tokens valid | **+0.100 [+0.050, +0.150]** | +0.100 [+0.050, +0.150] | not run |" in text
