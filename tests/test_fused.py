"""The Triton kernels against `variance`: on a GPU, or interpreted on a CPU with Triton and TRITON_INTERPRET=1 set."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch
from torch import Tensor

import rarelift
from rarelift import fused, hooks, variance

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF = (torch.float16, torch.bfloat16)
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # two steps of half types
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not (torch.cuda.is_available() or INTERPRETED),
        reason="needs a CUDA device, or Triton and TRITON_INTERPRET=1",
    ),
]


def text(shape: tuple[int, int, int], dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(shape, generator=generator) + 1).to(dtype).to(DEVICE)


def same(got: Tensor, wanted: Tensor) -> None:
    """Bit for bit on a GPU; Triton's interpreter cuts bfloat16 off where everything else rounds it."""
    if torch.cuda.is_available() or got.dtype is not torch.bfloat16:
        assert torch.equal(got, wanted)
    else:
        torch.testing.assert_close(got, wanted)


def both(z: Tensor, alpha: float | Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """What `variance` makes of a text in float64, and what the kernel does."""
    scale, share = variance.factors(alpha, weights, z)
    share = None if share is None else share.expand(len(z), -1, -1)
    wide = variance.spread(z.double(), alpha, weights)
    return wide, fused.spread_by(z, scale, share)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 40), (2, 16, 96), (3, 33, 130), (1, 512, 64)], ids=str)
@pytest.mark.parametrize("most", [1024, 16], ids=["held", "twice"])
def test_spread_is_that_of_variance(
    shape: tuple[int, int, int], dtype: torch.dtype, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "_MOST", most)
    z = text(shape, dtype)
    batch, length, _ = shape
    weights = torch.rand(batch, length, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    for alpha in (0.0, 1.5, torch.linspace(0.5, 2, batch, device=DEVICE)[:, None, None]):
        for w in (None, weights > 0.4, weights, weights[:1] > 0.4):
            wanted, got = both(z, alpha, w)
            assert got.dtype is dtype
            assert got.shape == z.shape
            torch.testing.assert_close(got.double(), wanted, rtol=TOLERANCE[dtype], atol=4 * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_alpha_one_is_bit_identical(dtype: torch.dtype) -> None:
    z = text((2, 33, 96), dtype)
    for w in (None, torch.rand(2, 33, device=DEVICE)):
        assert torch.equal(both(z, 1.0, w)[1], z)
    unread = torch.ones(2, 33, dtype=torch.bool, device=DEVICE)
    unread[:, 5:] = False
    assert torch.equal(both(z, 2.0, unread)[1][:, 5:], z[:, 5:])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_take_off_is_that_of_variance_bit_by_bit(dtype: torch.dtype) -> None:
    z, lifted, output = (text((2, 9, 5000), dtype, seed) for seed in range(3))
    wanted = variance.take_off(output, z, lifted)
    same(fused.take_off(output, z, lifted), wanted)
    same(output, wanted)  # written in place


def test_take_off_leaves_a_tensor_that_repeats_itself_alone() -> None:
    z, lifted = text((2, 9, 40), torch.float32), text((2, 9, 40), torch.float32, 1)
    output = text((1, 9, 40), torch.float32, 2).expand(2, -1, -1)
    before = output.clone()
    assert torch.equal(fused.take_off(output, z, lifted), variance.take_off(before, z, lifted))
    assert torch.equal(output, before)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_reads_parts_of_larger_tensors(dtype: torch.dtype) -> None:
    whole = text((2, 20, 96), dtype)
    z = whole[:, 3:12]
    assert torch.equal(fused.spread_by(z, *variance.factors(1.5, None, z)), both(z.contiguous(), 1.5, None)[1])
    lifted = both(z, 1.5, None)[1]
    output = text((2, 20, 96), dtype, 1)
    part, before = output[:, :9], output.clone()
    same(fused.take_off(part, z, lifted), variance.take_off(before[:, :9], z, lifted))
    assert torch.equal(output[:, 9:], before[:, 9:])


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_types_saturate_and_nan_stays(dtype: torch.dtype) -> None:
    limit = torch.finfo(dtype).max
    z = torch.full((1, 4, 8), 0.9 * limit, device=DEVICE).to(dtype)
    z[:, 0] = -0.9 * limit
    lifted = both(z, 3.0, None)[1]
    assert lifted.isfinite().all()
    assert lifted.abs().max() == limit
    assert fused.take_off(lifted.clone(), lifted, -lifted).isfinite().all()
    z[0, 0, 0] = torch.nan
    assert both(z, 3.0, None)[1][0, :, 0].isnan().all()
    assert fused.take_off(z.clone(), z, z)[0, 0, 0].isnan()


def test_takes_texts_of_one_kind_without_gradients() -> None:
    z = text((1, 4, 8), torch.float32)
    assert fused.takes(z)
    assert fused.takes(z, z.clone(), z + 1)
    for other in (z.half(), z[:, :3], z.double(), z.clone().requires_grad_(), z.mT.contiguous().mT):
        assert not fused.takes(z, other)
    assert not fused.takes(z[:, :0])
    assert not fused.takes(torch.nn.Parameter(z))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_lifted_model_on_a_gpu_uses_them(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        in_channels=8,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    model = model.to(DEVICE, dtype).eval().requires_grad_(False)
    generator = torch.Generator(DEVICE).manual_seed(0)
    random = {"generator": generator, "device": DEVICE, "dtype": dtype}
    arguments = {
        "hidden_states": torch.randn(2, 16, 8, **random),
        "encoder_hidden_states": torch.randn(2, 12, 32, **random),
        "pooled_projections": torch.randn(2, 32, **random),
        "timestep": torch.full((2,), 0.5, device=DEVICE, dtype=dtype),
        "img_ids": torch.zeros(16, 3, device=DEVICE),
        "txt_ids": torch.zeros(12, 3, device=DEVICE),
    }
    plain = model(**arguments, return_dict=False)[0]
    with rarelift.apply(model, alpha=1.0):
        assert torch.equal(model(**arguments, return_dict=False)[0], plain)
    calls = []
    launch = fused._launch
    monkeypatch.setattr(fused, "_launch", lambda *a, **k: (calls.append(a[0]), launch(*a, **k)))
    with rarelift.apply(model, alpha=1.5) as handle:
        fast = model(**arguments, return_dict=False)[0]
        assert len(calls) == 2 * handle.calls == 8
        monkeypatch.setattr(fused, "takes", lambda *_: False)
        slow = model(**arguments, return_dict=False)[0]
        assert len(calls) == 8
    assert not torch.equal(fast, plain)
    assert (fast - slow).abs().max() < 0.2 * (fast - plain).abs().max()
    assert torch.equal(model(**arguments, return_dict=False)[0], plain)
    assert not hooks.links_of(model)
