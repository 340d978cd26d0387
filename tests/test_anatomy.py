from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rarelift.anatomy import captured, concentration
from rarelift.locate import UnsupportedModelError, locate


def reference(z: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Norm of the mean over root mean square distance to it, token by token in float64."""
    out = []
    for rows, weights in zip(z.astype(np.float64), w.astype(np.float64), strict=True):
        mean = sum(weight * row for weight, row in zip(weights, rows, strict=True)) / weights.sum()
        squares = [weight * ((row - mean) ** 2).sum() for weight, row in zip(weights, rows, strict=True)]
        out.append(np.sqrt((mean**2).sum()) / np.sqrt(sum(squares) / weights.sum()))
    return np.array(out)


WEIGHTS = {
    "all": None,
    "mask": torch.tensor([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1], [0, 0, 1, 1, 0]], dtype=torch.bool),
    "whole numbers": torch.tensor([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1], [0, 0, 1, 1, 0]]),
    "shares": torch.tensor([[0.1, 1, 0.3, 0, 0.7], [0.5] * 5, [1, 0, 0, 0.2, 0.9]]),
}


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-5)])
def test_agrees_with_reference(weights: Tensor | None, dtype: torch.dtype, tolerance: float) -> None:
    z = (torch.randn(3, 5, 7) + torch.tensor([0.0, 1.0, 30.0])[:, None, None]).to(dtype)
    every = torch.ones(3, 5) if weights is None else weights
    got = concentration(z, weights)
    assert (got.shape, got.dtype) == ((3,), torch.float32)
    np.testing.assert_allclose(got.numpy(), reference(z.float().numpy(), every.numpy()), rtol=tolerance)


def test_known_cases() -> None:
    opposite = torch.tensor([[[1.0, 2.0], [-1.0, -2.0]]])
    assert concentration(opposite).item() == 0
    assert concentration(torch.tensor([[[3.0, 0.0], [5.0, 0.0]]])).item() == pytest.approx(4)
    assert concentration(torch.ones(1, 4, 3)).item() == float("inf")
    z = torch.randn(2, 6, 4)
    torch.testing.assert_close(concentration(10 * z), concentration(z))  # a ratio has no scale
    padded = torch.cat([z, 1e3 * torch.ones(2, 3, 4)], 1)
    mask = torch.tensor([1.0] * 6 + [0.0] * 3).expand(2, 9)
    torch.testing.assert_close(concentration(padded, mask), concentration(z))


# ---------------------------------------------------------------------------------------------- capture


def inputs() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(3)
    return {
        "hidden_states": torch.randn(2, 4, 4, 4, generator=g),
        "encoder_hidden_states": torch.randn(2, 6, 32, generator=g),
        "pooled_projections": torch.randn(2, 32, generator=g),
        "timestep": torch.full((2,), 500.0),
    }


def state(module: torch.nn.Module) -> dict[str, Any]:
    hooks = {
        name: (len(part._forward_pre_hooks), len(part._forward_hooks), sorted(vars(part)))
        for name, part in module.named_modules()
    }
    return hooks | {name: tensor.numpy().tobytes() for name, tensor in module.state_dict().items()}


@torch.no_grad()
def test_one_tensor_per_site_and_call_and_nothing_changed(transformer: Any) -> None:
    before, untouched = state(transformer), transformer(**inputs()).sample
    with captured(transformer) as streams:
        assert list(streams) == [site.name for site in locate(transformer)]
        assert all(calls == [] for calls in streams.values())
        during = transformer(**inputs()).sample
        assert [len(calls) for calls in streams.values()] == [1, 1, 1]
        transformer(**{**inputs(), "timestep": torch.full((2,), 10.0)})
    assert torch.equal(during, untouched)
    assert state(transformer) == before
    assert torch.equal(transformer(**inputs()).sample, untouched)
    assert [len(calls) for calls in streams.values()] == [2, 2, 2]  # and none after the block
    assert {z.shape for calls in streams.values() for z in calls} == {(2, 6, 16)}
    # what is read: the embedded text, then what each block made of it, which depends on the step
    first, second, _ = streams.values()
    embedded = transformer.context_embedder(inputs()["encoder_hidden_states"])
    assert torch.equal(first[0], embedded)
    assert torch.equal(first[1], embedded)
    assert not torch.equal(second[0], embedded)
    assert not torch.equal(second[0], second[1])


def test_captured_survives_writing_into_the_stream(transformer: Any) -> None:
    block = transformer.transformer_blocks[0]
    hidden, text, temb = torch.randn(1, 4, 16), torch.randn(1, 6, 16), torch.randn(1, 16)
    kept = text.clone()
    with captured(transformer) as streams, torch.no_grad():
        block(hidden, text, temb)  # by position
        block(hidden_states=hidden, temb=temb, encoder_hidden_states=text)  # by name
        text.zero_()
    calls = streams["transformer_blocks.0"]
    assert len(calls) == 2
    assert all(torch.equal(z, kept) for z in calls)


def test_captured_keeps_no_graph(transformer: Any) -> None:
    with captured(transformer) as streams:
        transformer(**inputs())
    assert not any(z.requires_grad for calls in streams.values() for z in calls)


def test_an_error_inside_removes_everything(transformer: Any) -> None:
    before = state(transformer)
    with pytest.raises(RuntimeError, match="stop"), captured(transformer):
        raise RuntimeError("stop")
    assert state(transformer) == before


def test_a_pipeline_is_captured_step_by_step(pipe: Any) -> None:
    with captured(pipe) as streams:
        pipe("a lion", num_inference_steps=2, max_sequence_length=4, guidance_scale=3.0, output_type="latent")
    assert [[z.shape for z in calls] for calls in streams.values()] == [[(2, 20, 16)] * 2] * 3


def test_what_has_no_joint_attention_is_refused(pipe: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="AutoencoderKL"), captured(pipe.vae):
        pass
