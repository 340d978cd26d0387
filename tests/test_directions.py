"""Parts of the deviation: the maths against singular value decompositions, and the lift on real tiny models."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import rarelift
from families import FAMILIES
from rarelift.directions import deviation_of_some, deviations_of, spread_part
from rarelift.hooks import links_of
from rarelift.variance import factors, spread
from test_attach import attributes, draw, run

Keywords = dict[str, Any]
PARTS: dict[str, Keywords] = {
    "principal": {"space": "principal", "rank": 2},
    "principal by share": {"space": "principal", "rank": 0.6},
    "residual": {"space": "residual", "rank": 1},
    "residual by share": {"space": "residual", "rank": 0.3},
    "whiten": {"space": "whiten", "amount": 0.5},
    "whiten wholly": {"space": "whiten", "amount": 1.0},
    "align": {"space": "align", "amount": 0.3},
    "align wholly": {"space": "align", "amount": 1.0},
}
parts = pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}


def neutral(part: Keywords) -> Keywords:
    return {**part, "amount": 0.0} if "amount" in part else part


def lifted(z: Tensor, alpha: float, w: Tensor | None = None, *, target: Tensor | None = None, **part: Any) -> Tensor:
    """`spread_part` from weights; the target is a fixed one where none is given."""
    scale, share = factors(alpha, w, z)
    share = None if share is None else share.expand(len(z), -1, -1)
    amount = part.pop("amount", None)
    if amount is not None:
        amount = torch.full((1, 1, 1), amount, dtype=scale.dtype)
        amount = amount if w is None else amount * w.to(scale.dtype)[..., None]
    if part["space"] == "align" and target is None:
        target = target_for(z)
    return spread_part(z, scale, share, amount=amount, target=target, **part)


def target_for(z: Tensor) -> Tensor:
    """One for each token, the same wherever the token stands."""
    return torch.sin(3 * z.double()).roll(1, 2).to(z.dtype)


def reference(z: Tensor, alpha: float, mask: Tensor, *, target: Tensor | None = None, **part: Any) -> Tensor:
    """Sample by sample over the tokens that take part, by singular vectors and plane rotations, in float64."""
    out = z.double().clone()
    target = (target_for(z) if target is None else target).double()
    for b in range(len(z)):
        x = z[b, mask[b]].double()
        if len(x):
            mean = x.mean(0)
            out[b, mask[b]] = mean + _moved(x - mean, alpha, target[b, mask[b]], **part)
    return out


def _moved(
    x: Tensor, alpha: float, target: Tensor, *, space: str, rank: float | None = None, amount: float | None = None
) -> Tensor:
    if space == "align":
        assert amount is not None
        turned = torch.stack([_rotation(v, t, amount) @ v for v, t in zip(x, target, strict=True)])
        return alpha * (turned - turned.mean(0))
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    if space == "whiten":
        assert amount is not None
        there = s > 1e-6 * s.amax()
        flat = torch.where(there, s, 1) ** (1 - amount) * there
        flat = flat * (s.square().sum() / flat.square().sum().clamp_min(1e-300)).sqrt()
        return alpha * u @ torch.diag(flat) @ vt
    assert rank is not None
    k = rank if isinstance(rank, int) else 1 + int((s.square().cumsum(0) < rank * s.square().sum()).sum())
    strongest = x @ vt[: int(k)].T @ vt[: int(k)]
    return x + (alpha - 1) * (strongest if space == "principal" else x - strongest)


def _rotation(v: Tensor, t: Tensor, share: float) -> Tensor:
    """A matrix `[D, D]` that turns v toward t by a share of the angle between them."""
    eye = torch.eye(len(v), dtype=torch.float64)
    if not v.any() or not t.any():
        return eye
    first = v / v.norm()
    second = t - (t @ first) * first
    if second.norm() < 1e-12 * t.norm():
        return eye
    second = second / second.norm()
    angle = share * math.acos(max(-1.0, min(1.0, float(t @ first / t.norm()))))
    plane = torch.outer(first, first) + torch.outer(second, second)
    swap = torch.outer(second, first) - torch.outer(first, second)
    return eye + math.sin(angle) * swap + (math.cos(angle) - 1) * plane


def bits(x: Tensor) -> Tensor:
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def spectrum(b: int = 2, n: int = 6, d: int = 8) -> Tensor:
    """Tokens whose singular values lie well apart, so that components can be told in half precision."""
    u = torch.linalg.qr(torch.cat([torch.ones(b, n, 1), torch.randn(b, n, n - 1)], 2).double())[0][..., 1:]
    v = torch.linalg.qr(torch.randn(b, d, n - 1).double())[0]
    return u @ torch.diag(2.0 ** -torch.arange(n - 1).double()) @ v.mT + torch.randn(b, 1, d)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, float, Tensor]:
    b, n, d = draw(st.integers(1, 3)), draw(st.integers(0, 6)), draw(st.integers(2, 8))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    z = torch.randn(b, n, d, generator=generator, dtype=torch.float64) * draw(st.sampled_from([1e-2, 1.0, 50.0]))
    mask = torch.rand(b, n, generator=generator) > draw(st.sampled_from([0.0, 0.4]))
    return z, draw(st.floats(0, 4)), mask


# ---------------------------------------------------------------- the maths


@parts
@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_agrees_with_reference(part: Keywords, case: tuple[Tensor, float, Tensor]) -> None:
    z, alpha, mask = case
    expected = reference(z, alpha, mask, **part)
    torch.testing.assert_close(lifted(z, alpha, mask, **part), expected, rtol=1e-6, atol=1e-7)


@parts
@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_in_every_precision(part: Keywords, dtype: torch.dtype) -> None:
    z, mask = spectrum().to(dtype), torch.tensor([[True] * 6, [True] * 6])
    out = lifted(z, 1.7, **part)
    assert out.dtype == dtype
    scale = z.double().abs().max()
    torch.testing.assert_close(
        out.double() / scale, reference(z, 1.7, mask, **part) / scale, rtol=0, atol=TOLERANCE[dtype]
    )


@parts
@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_properties(part: Keywords, case: tuple[Tensor, float, Tensor]) -> None:
    z, alpha, mask = case
    out = lifted(z, alpha, mask, **part)
    assert out.isfinite().all()
    assert torch.equal(bits(out[~mask]), bits(z[~mask]))
    for b in range(len(z)):
        if mask[b].any():
            torch.testing.assert_close(out[b][mask[b]].mean(0), z[b][mask[b]].mean(0), rtol=1e-6, atol=1e-7)
    order = torch.randperm(z.shape[1])
    again = lifted(z[:, order], alpha, mask[:, order], **part)
    torch.testing.assert_close(again, out[:, order], rtol=1e-6, atol=1e-7)
    assert torch.equal(bits(lifted(z, 1.0, mask, **neutral(part))), bits(z))


@parts
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weights", [None, torch.tensor([[1.0, 0.5, 0.0, 1.0, 1.0]])])
def test_neutral_is_bit_identical(part: Keywords, dtype: torch.dtype, weights: Tensor | None) -> None:
    z = torch.randn(2, 5, 7).to(dtype)
    z[1, :, 0] = torch.finfo(dtype).max / 16
    z[0, :, 0] = -0.0  # which a sum would lose the sign of
    assert torch.equal(bits(lifted(z, 1.0, weights, **neutral(part))), bits(z))


@pytest.mark.parametrize("rank", [1, 3, 0.5])
def test_the_two_halves_make_the_whole(rank: int | float) -> None:
    z, w = torch.randn(2, 7, 5).double(), torch.rand(2, 7)
    both = [lifted(z, 2.5, w, space=space, rank=rank) - z for space in ("principal", "residual")]
    torch.testing.assert_close(z + both[0] + both[1], spread(z, 2.5, w))


def test_whitening_keeps_the_variance() -> None:
    z = torch.randn(3, 6, 9).double()
    for amount in (0.0, 0.4, 1.0):
        out = lifted(z, 1.5, space="whiten", amount=amount)
        torch.testing.assert_close(out.var(1).sum(1), 2.25 * z.var(1).sum(1))
    values = torch.linalg.svdvals(out - out.mean(1, keepdim=True))  # of the last amount, 1
    torch.testing.assert_close(values[:, :5], values[:, :1].expand(-1, 5))
    torch.testing.assert_close(lifted(z, 1.5, space="whiten", amount=0.0), spread(z, 1.5))


def test_alignment_turns_as_far_as_it_is_told() -> None:
    """Two tokens: their deviations are opposite, and so are their targets, so there is no mean to take off."""
    z = torch.tensor([[[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]])
    target = torch.tensor([[[0.0, 2.0, 0.0], [0.0, -2.0, 0.0]]])
    half = math.sqrt(0.5)
    expected = torch.tensor([[[half, half, 0.0], [-half, -half, 0.0]]])
    torch.testing.assert_close(lifted(z, 1.0, target=target, space="align", amount=0.5), expected)
    torch.testing.assert_close(lifted(z, 3.0, target=target, space="align", amount=0.5), 3 * expected)
    for same in (z, -z, 0 * z):  # there, opposite to it, or no target at all
        torch.testing.assert_close(lifted(z, 1.0, target=same, space="align", amount=1.0), z)


@parts
@pytest.mark.parametrize("length", [0, 1])
def test_short_streams(part: Keywords, length: int) -> None:
    z = torch.randn(2, length, 3)
    for weights in (None, torch.ones(2, length), torch.zeros(2, length)):
        torch.testing.assert_close(lifted(z, 5.0, weights, **part), z)


@parts
def test_few_or_equal_components(part: Keywords) -> None:
    """One token that takes part, equal tokens, and components that are equally strong, which have no order."""
    z = torch.randn(2, 4, 6)
    one = torch.tensor([[True, False, False, False]] * 2)
    torch.testing.assert_close(lifted(z, 2.0, one, **part), z)
    still = z[:, :1].expand(-1, 4, -1).contiguous()
    torch.testing.assert_close(lifted(still, 2.0, **part), still)
    even = torch.eye(6, dtype=torch.float64)[None, :4]
    out = lifted(even, 2.0, target=even.roll(1, 2), **part)
    order = torch.tensor([2, 0, 3, 1])
    again = lifted(even[:, order], 2.0, target=even.roll(1, 2)[:, order], **part)
    torch.testing.assert_close(again, out[:, order])


@parts
def test_a_token_that_takes_no_part_changes_nothing_and_is_not_changed(part: Keywords) -> None:
    z = torch.randn(1, 5, 6)
    clean = lifted(z[:, :4], 2.0, **part)
    z[0, 4] = 1e20
    mask = torch.tensor([[True, True, True, True, False]])
    out = lifted(z, 2.0, mask, target=target_for(z), **part)
    torch.testing.assert_close(out[:, :4], clean)
    assert torch.equal(bits(out[0, 4]), bits(z[0, 4]))
    among = mask[0].nonzero().flatten()
    torch.testing.assert_close(lifted(z, 2.0, mask, among=among, **part), out)


@parts
def test_half_types_stay_finite_and_nan_is_not_hidden(part: Keywords) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        limit = min(torch.finfo(dtype).max, 1e15)
        z = torch.tensor([[[limit, 1.0, 0.0], [-limit, 1.0, 6e-8], [limit, 1.0, -0.0]]]).to(dtype)
        assert lifted(z, 1e10, **part).isfinite().all()
    z = torch.randn(1, 4, 6)
    z[0, 0, 0] = math.nan
    assert lifted(z, 2.0, **part).isnan().any()


@parts
def test_gradients_are_finite(part: Keywords) -> None:
    z = torch.randn(1, 4, 6, requires_grad=True)
    (gradient,) = torch.autograd.grad(lifted(z, 1.5, target=torch.randn(1, 4, 6), **part).square().sum(), z)
    assert gradient.isfinite().all()


@parts
def test_traces_without_breaks_or_recompilation(part: Keywords) -> None:
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(spread_part, backend=counter, fullgraph=True, dynamic=False)
    z, target = torch.randn(2, 6, 8), torch.randn(2, 6, 8)
    scale, share = factors(1.0, torch.ones(2, 6), z)
    amount = torch.zeros(1, 1, 1) if "amount" in part else None
    given = {**part, "amount": amount, "target": target}
    for alpha, dial in ((1.0, 0.0), (1.5, 0.5), (3.0, 1.0)):
        scale.fill_(alpha)
        if amount is not None:
            amount.fill_(dial)
        torch.testing.assert_close(compiled(z, scale, share, **given), spread_part(z, scale, share, **given))
    assert counter.frame_count == 1


@parts
def test_autocast_changes_nothing(part: Keywords) -> None:
    z = spectrum().float()
    expected = lifted(z, 1.7, **part)
    with torch.autocast("cpu", torch.bfloat16):
        result = lifted(z, 1.7, **part)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected)


def test_deviations() -> None:
    z, w = torch.randn(2, 5, 3), torch.tensor([[1.0, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    some = torch.tensor([[0.0, 1, 1, 0, 0], [0, 0, 0, 0, 0]])
    share, words = factors(1.0, w, z)[1], factors(1.0, some, z)[1]
    assert share is not None
    assert words is not None
    found = deviations_of(z, share)
    torch.testing.assert_close(found[0], z[0] - z[0, :3].mean(0))
    torch.testing.assert_close(deviation_of_some(z, share, words)[0, 0], found[0, 1:3].mean(0))
    assert not deviation_of_some(z, share, words)[1].any()  # has none of the words
    torch.testing.assert_close(deviations_of(z, None)[1], z[1] - z[1].mean(0))


# ---------------------------------------------------------------- the lift


@parts
def test_neutral_changes_no_bit_and_removal_is_exact(pipe: Any, part: Keywords) -> None:
    before, names = draw(pipe), attributes(pipe)
    with rarelift.apply(pipe, alpha=1.0, **neutral(part)) as handle:
        assert torch.equal(draw(pipe), before)
        assert handle.calls == 2 * 3
        handle.set(alpha=1.8, **part)
        out = draw(pipe)
    assert out.isfinite().all()
    assert not torch.allclose(out, before, atol=1e-5)
    assert torch.equal(draw(pipe), before)
    assert attributes(pipe) == names


@parts
@pytest.mark.parametrize("name", ["SD3", "Flux", "QwenImage"])
def test_every_block_reads_what_the_formula_says(name: str, part: Keywords) -> None:
    """In a stream of its own, packed with the image, and under a mask: text moves, nothing else does."""
    tiny = FAMILIES[name]
    model = tiny.make()
    seen: list[Any] = []
    handle = rarelift.apply(model, alpha=1.7, **part)
    for site in handle.sites:
        text, at = site.family.text, links_of(site.module)[0].at
        site.module.register_forward_pre_hook(
            lambda _m, a, k, text=text, at=at: seen.append([k[text] if text in k else a[at[text]]]), with_kwargs=True
        )
        link = links_of(site.module)[0]

        def spy(*args: Any, inner: Any = link.inner, text: str = text, at: Any = at, **kwargs: Any) -> Any:
            seen[-1].append(kwargs[text] if text in kwargs else args[at[text]])
            return inner(*args, **kwargs)

        link.inner = spy
    with torch.no_grad():
        model(**tiny.arguments(), return_dict=False)
    assert len(seen) == tiny.blocks
    length = 7
    mask = torch.ones(2, length, dtype=torch.bool)
    if tiny.mask:
        mask[1, -2:] = False
    first = seen[0][0][:, :length].double()
    weight = mask.double()[..., None]
    target = first - (weight * first).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
    for before, after in seen:
        expected = reference(before[:, :length], 1.7, mask, target=target, **part)
        torch.testing.assert_close(after[:, :length].double(), expected, atol=2e-4, rtol=2e-4)
        assert torch.equal(after[:, length:], before[:, length:])
        assert not torch.allclose(after[:, :length], before[:, :length], atol=1e-3)


def test_toward_words(pipe: Any) -> None:
    """Each token turns to the mean deviation of the words, at each block; where a prompt has none, none turns."""
    seen: list[Tensor] = []
    block = pipe.transformer.transformer_blocks[1]
    block.register_forward_pre_hook(lambda _m, _a, k: seen.append(k["encoder_hidden_states"]), with_kwargs=True)
    block.norm1_context.register_forward_pre_hook(lambda _m, a: seen.append(a[0]))
    with rarelift.apply(pipe, alpha=1.0, space="align", amount=0.4, toward=("purple lion",), tokens="all"):
        draw(pipe, num_inference_steps=1)
    z, read = seen
    assert torch.equal(read[0], z[0])  # the empty negative prompt
    target = (z[1:] - z[1:].mean(1, keepdim=True))[:, 3:5].mean(1, keepdim=True).expand(-1, z.shape[1], -1)
    mask = torch.ones(1, z.shape[1], dtype=torch.bool)
    expected = reference(z[1:], 1.0, mask, target=target, space="align", amount=0.4)
    torch.testing.assert_close(read[1:].double(), expected, atol=1e-5, rtol=1e-4)
    with rarelift.apply(pipe, space="align", amount=0.4, toward="content"):
        assert not torch.equal(draw(pipe), draw(pipe, "a crown"))
    rarelift.apply(pipe, space="align", amount=0.4, toward=("zebra",))
    with pytest.raises(ValueError, match=r"toward=\('zebra',\).*not in the prompt"):
        draw(pipe)


@pytest.mark.parametrize("part", [PARTS["whiten"], PARTS["align"]], ids=["whiten", "align"])
def test_amount_keeps_to_steps_and_branch(pipe: Any, part: Keywords) -> None:
    """alpha 1 alone says nothing here: outside, amount must be 0."""
    live: list[Any] = []
    pipe.transformer.proj_out.register_forward_hook(
        lambda *_: live.append(handle._lift.live_amount.amax((1, 2)).tolist())
    )
    handle: rarelift.Handle = rarelift.apply(pipe, alpha=1.0, branch="cond", start=0.5, tokens="all", **part)
    draw(pipe)
    dial = pytest.approx(part["amount"])
    assert live == [[0.0, 0.0], [0.0, dial]]
    handle.set(branch="uncond", start=0.0, tokens="valid")
    draw(pipe, num_inference_steps=1)
    assert live[2:] == [[dial, 0.0]]


@parts
def test_a_batch_is_one_by_one(pipe: Any, part: Keywords) -> None:
    """Samples of different lengths share the positions that are worked on."""
    prompts = ["a lion", "a striped purple lion wearing a crown"]
    with rarelift.apply(pipe, alpha=1.6, **part):
        together = draw(pipe, prompts)
        one_by_one = torch.cat([draw(pipe, prompt) for prompt in prompts])
    torch.testing.assert_close(together, one_by_one, atol=1e-3, rtol=1e-3)


@parts
def test_compiled(pipe: Any, part: Keywords) -> None:
    """The whole transformer is one graph, and alpha, amount, steps and branch do not make another."""
    torch._dynamo.reset()
    changed = {"alpha": 1.3, "branch": "cond", "start": 0.5} | ({"amount": 0.2} if "amount" in part else {})
    with rarelift.apply(pipe, **{**part, **changed}):
        expected = draw(pipe)
    counter = torch._dynamo.testing.CompileCounter()
    handle = rarelift.apply(pipe, alpha=2.0, **part)
    pipe.transformer.compile(backend=counter, fullgraph=True, dynamic=False)
    draw(pipe)
    compiled = counter.frame_count
    handle.set(**changed)
    torch.testing.assert_close(draw(pipe), expected, atol=1e-4, rtol=1e-4)
    assert counter.frame_count == compiled


def test_compiled_block_by_block(pipe: Any) -> None:
    torch._dynamo.reset()
    part = {"space": "align", "amount": 0.3}
    with rarelift.apply(pipe, alpha=1.3, **part):
        expected = draw(pipe)
    handle = rarelift.apply(pipe, alpha=2.0, **part)
    counter = torch._dynamo.testing.CompileCounter()
    for block in pipe.transformer.transformer_blocks:
        block.compile(backend=counter, fullgraph=True, dynamic=False)
    draw(pipe)
    compiled = counter.frame_count
    handle.set(alpha=1.3)
    torch.testing.assert_close(draw(pipe), expected, atol=1e-4, rtol=1e-4)
    assert counter.frame_count == compiled


def test_what_cannot_be_honoured(transformer: Any) -> None:
    with pytest.raises(ValueError, match=r"toward=\('lion',\) needs the words.*give the pipeline"):
        rarelift.apply(transformer, space="align", amount=0.5, toward=("lion",))
    with pytest.raises(ValueError, match=r"toward='content'.*QwenImageTransformer2DModel is not known"):
        rarelift.apply(FAMILIES["QwenImage"].make(), space="align", amount=0.5, toward="content")
    with pytest.raises(ValueError, match=r"space='whiten'.*text stands among image tokens.*space='all'"):
        rarelift.apply(FAMILIES["ZImage"].make(), space="whiten", amount=0.5)
    handle = rarelift.apply(transformer, space="align", amount=0.5)
    run(transformer)
    handle._lift.first = torch.zeros(2, 3, 16)
    block, text = transformer.transformer_blocks[1], torch.randn(2, 6, 16)
    with pytest.raises(RuntimeError, match=r"toward='first': the text is \(2, 6, 16\).*was \(2, 3, 16\)"):
        block(hidden_states=torch.randn(2, 4, 16), encoder_hidden_states=text, temb=torch.randn(2, 16))


def test_a_split_text_is_refused(transformer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = rarelift.apply(transformer, space="whiten", amount=0.5)
    monkeypatch.setattr("rarelift.hooks.adding_up", lambda *_: lambda part: part)
    with pytest.raises(RuntimeError, match="space='whiten': context parallelism splits the text"):
        run(transformer)
    handle.remove()


def test_bench_reads_them() -> None:
    from rarelift.bench.runs import Method

    read = Method.parse("lift:space=principal,rank=2,alpha=1.5").settings
    assert read == rarelift.Spread(1.5, space="principal", rank=2)
    read = Method.parse("lift:space=align,amount=0.25,toward=purple lion+").settings
    assert read == rarelift.Spread(space="align", amount=0.25, toward=("purple lion",))
