from __future__ import annotations

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rarelift.variance import factors, spread, spread_by, take_off

HALF = (torch.float16, torch.bfloat16)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def reference(z: np.ndarray, alpha: np.ndarray, w: np.ndarray, about: np.ndarray | None = None) -> np.ndarray:
    """The formula token by token, in float64, written without looking at the implementation."""
    out = z.astype(np.float64).copy()
    about = w if about is None else about
    for b in range(z.shape[0]):
        counted = about[b].sum() > 0
        mean = np.average(z[b].astype(np.float64), axis=0, weights=about[b]) if counted else np.zeros(z.shape[2])
        for t in range(z.shape[1]):
            lifted = alpha[b] * (z[b, t] - mean) + mean
            out[b, t] = (1 - w[b, t]) * z[b, t] + w[b, t] * lifted
    return out


def bits(x: Tensor) -> Tensor:
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, float, Tensor]:
    b, n, d = draw(st.integers(1, 3)), draw(st.integers(0, 6)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    z = torch.randn(b, n, d, generator=generator, dtype=torch.float64) * draw(st.sampled_from([1e-2, 1.0, 50.0]))
    w = torch.rand(b, n, generator=generator, dtype=torch.float64)
    if draw(st.booleans()):
        w = (w > 0.4).double()
    return z, draw(st.floats(0, 4)), w


@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from(list(TOLERANCE)))
def test_agrees_with_reference(case: tuple[Tensor, float, Tensor], dtype: torch.dtype) -> None:
    z, alpha, w = case
    z = z.to(dtype)
    expected = reference(z.double().numpy(), np.full(len(z), alpha), w.numpy())
    scale = 1 + np.abs(expected).max(initial=0)
    assert spread(z, alpha, w).dtype == dtype
    np.testing.assert_allclose(spread(z, alpha, w).double().numpy() / scale, expected / scale, atol=TOLERANCE[dtype])


@settings(max_examples=60, deadline=None)
@given(cases(), st.booleans())
def test_the_mean_of_other_tokens_agrees_with_reference(case: tuple[Tensor, float, Tensor], all_move: bool) -> None:
    z, alpha, about = case
    w = torch.ones_like(about) if all_move else (about < 0.7).double()
    expected = reference(z.numpy(), np.full(len(z), alpha), w.numpy(), about.numpy())
    got = spread(z, alpha, None if all_move else w, about)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-9 * (1 + np.abs(expected).max(initial=0)))


def test_one_token_moves_away_from_the_others() -> None:
    z = torch.tensor([[[0.0], [2.0], [4.0]]])
    one, every = torch.tensor([0.0, 0.0, 1.0]), torch.ones(3)
    assert torch.equal(spread(z, 2.0, one), z)  # its own mean
    assert spread(z, 2.0, one, every).flatten().tolist() == [0, 2, 6]
    with pytest.raises(ValueError, match=r"weights must have shape \[3\]"):
        spread(z, 2.0, one, torch.ones(4))


@settings(max_examples=60, deadline=None)
@given(cases())
def test_properties_under_a_mask(case: tuple[Tensor, float, Tensor]) -> None:
    z, alpha, w = case
    mask = w > 0.5
    out = spread(z, alpha, mask)
    assert torch.equal(bits(out[~mask]), bits(z[~mask]))
    for b in range(len(z)):
        kept, old = out[b][mask[b]], z[b][mask[b]]
        if len(kept):
            torch.testing.assert_close(kept.mean(0), old.mean(0), rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(kept - kept.mean(0), alpha * (old - old.mean(0)), rtol=1e-9, atol=1e-9)
    order = torch.randperm(z.shape[1])
    torch.testing.assert_close(spread(z[:, order], alpha, mask[:, order]), out[:, order])


def test_no_weights_is_all_ones() -> None:
    z = torch.randn(2, 5, 3)
    torch.testing.assert_close(spread(z, 1.7), spread(z, 1.7, torch.ones(5)))
    assert torch.equal(spread(z, 1.7, torch.ones(1, 5)), spread(z, 1.7, torch.ones(2, 5)))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("alpha", [1.0, torch.tensor(1.0), torch.ones(2), torch.ones(2, 1, 1)])
@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 0.5, 0.0, 1.0, 1.0])])
def test_alpha_one_is_bit_identical(dtype: torch.dtype, alpha: float | Tensor, weights: Tensor | None) -> None:
    z = torch.randn(2, 5, 7).to(dtype)
    z[1, :, 0] = torch.finfo(dtype).max / 16
    assert torch.equal(bits(spread(z, alpha, weights)), bits(z))
    output = torch.randn(2, 5, 7).to(dtype)
    assert torch.equal(bits(take_off(output, z, spread(z, alpha, weights))), bits(output))


def test_zero_weights_leave_z_as_it_is() -> None:
    z = torch.randn(2, 4, 3)
    assert torch.equal(bits(spread(z, 3.0, torch.zeros(2, 4))), bits(z))


def test_a_token_that_takes_no_part_changes_nothing_and_is_not_changed() -> None:
    z = torch.randn(1, 4, 3)
    clean = spread(z[:, :3], 2.0)
    z[0, 3] = 1e20
    out = spread(z, 2.0, torch.tensor([True, True, True, False]))
    torch.testing.assert_close(out[:, :3], clean)
    assert torch.equal(bits(out[0, 3]), bits(z[0, 3]))


@pytest.mark.parametrize("length", [0, 1])
def test_short_streams(length: int) -> None:
    z = torch.randn(2, length, 3)
    for weights in (None, torch.ones(2, length), torch.zeros(length)):
        torch.testing.assert_close(spread(z, 5.0, weights), z)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("alpha", [1.5, 100.0, 1e30, 3.4e38])
def test_finite_half_input_stays_finite(dtype: torch.dtype, alpha: float) -> None:
    limit = min(torch.finfo(dtype).max, 1e30)
    z = torch.tensor([[[limit, 1.0, 0.0], [-limit, 1.0, 6e-8], [limit, 1.0, -0.0]]]).to(dtype)
    lifted = spread(z, alpha)
    assert lifted.isfinite().all()
    assert take_off(lifted, z, lifted).isfinite().all()


def test_per_sample_alpha_is_one_by_one() -> None:
    z, alphas = torch.randn(3, 5, 4), [0.5, 1.0, 2.5]
    weights = torch.rand(3, 5)
    one_by_one = torch.cat([spread(z[i : i + 1], a, weights[i : i + 1]) for i, a in enumerate(alphas)])
    torch.testing.assert_close(spread(z, torch.tensor(alphas), weights), one_by_one)
    torch.testing.assert_close(spread(z, torch.tensor(alphas)[:, None, None], weights), one_by_one)
    assert torch.equal(bits(spread(z, torch.tensor(alphas), weights)[1]), bits(z[1]))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_take_off_restores_what_passes_through(dtype: torch.dtype) -> None:
    z = torch.randn(2, 6, 8).to(dtype)
    lifted = spread(z, 1.9)
    torch.testing.assert_close(take_off(lifted, z, lifted), z, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_take_off_of_a_part_is_the_formula(dtype: torch.dtype) -> None:
    output, z = torch.randn(2, 6, 8).to(dtype), torch.randn(2, 6, 8).to(dtype)
    lifted = spread(z, 1.9)
    for part in (0.0, 0.3, 0.75):
        expected = output.double() - part * (lifted.double() - z.double())
        got = take_off(output, z, lifted, torch.tensor(part, dtype=torch.float64))
        assert got.dtype is dtype
        torch.testing.assert_close(got.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert torch.equal(take_off(output, z, lifted, torch.tensor(1.0)), take_off(output, z, lifted))
    assert torch.equal(bits(take_off(output, z, z, torch.tensor(0.3))), bits(output))


def test_factors_worked_out_once_give_the_same() -> None:
    z, weights = torch.randn(2, 5, 3), torch.rand(2, 5)
    alpha = torch.tensor([0.7, 1.4])[:, None, None]
    scale, share = factors(alpha, weights, z)
    assert (scale.shape, share.shape) == ((2, 5, 1), (2, 1, 5))
    torch.testing.assert_close(share.sum(2), torch.ones(2, 1))
    share = None if share is None else share.expand(len(z), -1, -1)
    assert torch.equal(spread_by(z, scale, share, autocast=False), spread(z, alpha, weights))


def test_gradients_are_finite() -> None:
    z = torch.randn(1, 4, 2, requires_grad=True)
    for weights in (torch.zeros(4), torch.ones(4)):
        (gradient,) = torch.autograd.grad(spread(z, 1.5, weights).sum(), z)
        torch.testing.assert_close(gradient, torch.ones_like(z))  # the mean is kept, so the sum is too


@pytest.mark.parametrize(
    ("z", "alpha", "weights", "error", "message"),
    [
        (torch.zeros(1, 2, 3, dtype=torch.int64), 1.5, None, TypeError, "floating"),
        (torch.zeros(2, 3), 1.5, None, ValueError, "three dimensions"),
        (torch.zeros(2, 3, 4), torch.ones(3), None, ValueError, r"got shape \(3,\)"),
        (torch.zeros(2, 3, 4), torch.ones(2, 3, 4), None, ValueError, "one per sample"),
        (torch.zeros(2, 3, 4), 1.5, torch.ones(4), ValueError, "weights must have shape"),
        (torch.zeros(2, 3, 4), 1.5, torch.ones(3, 3), ValueError, "weights must have shape"),
        (torch.zeros(2, 3, 4), 1.5, torch.ones(2, 3, 1), ValueError, "weights must have shape"),
    ],
)
def test_shapes_that_do_not_fit(
    z: Tensor, alpha: float | Tensor, weights: Tensor | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        spread(z, alpha, weights)


def test_traces_without_breaks_or_recompilation() -> None:
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(spread, backend=counter, fullgraph=True, dynamic=False)
    z, alpha, weights = torch.randn(2, 4, 3), torch.tensor(1.0), torch.rand(2, 4)
    for value in (1.0, 1.5, 0.0, 3.0):
        alpha.fill_(value)
        torch.testing.assert_close(compiled(z, alpha, weights), spread(z, alpha, weights))
    assert counter.frame_count == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    z = torch.randn(2, 5, 8).to(dtype)
    weights = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.5])
    for alpha in (1.0, 1.7):
        expected = spread(z, alpha, weights)
        with torch.autocast("cpu", torch.bfloat16):
            result = spread(z, alpha, weights)
        assert result.dtype == dtype
        torch.testing.assert_close(result, expected, atol=1e-5 if dtype == torch.float32 else 2e-2, rtol=1e-5)
        if alpha == 1:
            assert torch.equal(result, z)
