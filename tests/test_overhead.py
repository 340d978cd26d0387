from __future__ import annotations

import json
import mmap
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import graphs
import overhead
import parts
import rarelift
from overhead import Run, Stream
from rarelift import pipelines
from rarelift.hooks import links_of
from sizes import SIZES, Size
from test_measure import PAGE

if TYPE_CHECKING:
    from collections.abc import Callable

HEADS = {"attention_head_dim": 16, "num_attention_heads": 2}
TINY: dict[str, Size] = {
    "flux": replace(
        SIZES["flux"],
        config={
            **SIZES["flux"].config,
            **HEADS,
            "in_channels": 4,
            "num_layers": 2,
            "num_single_layers": 3,
            "joint_attention_dim": 16,
            "pooled_projection_dim": 16,
            "axes_dims_rope": (4, 4, 8),
        },
        grid=(1, 3, 3),
        text=5,
        batch=2,
    ),
    "sd35-medium": replace(
        SIZES["sd35-medium"],
        config={
            **SIZES["sd35-medium"].config,
            **HEADS,
            "num_layers": 3,
            "caption_projection_dim": 32,
            "joint_attention_dim": 16,
            "pooled_projection_dim": 16,
            "pos_embed_max_size": 8,
            "sample_size": 8,
        },
        grid=(1, 4, 4),
        text=7,
    ),
    "qwen": replace(
        SIZES["qwen"],
        config={
            **SIZES["qwen"].config,
            **HEADS,
            "in_channels": 16,
            "num_layers": 2,
            "joint_attention_dim": 16,
            "axes_dims_rope": (8, 4, 4),
        },
        grid=(1, 4, 4),
        text=6,
    ),
    "cogvideox-5b": replace(
        SIZES["cogvideox-5b"],
        config={
            **SIZES["cogvideox-5b"].config,
            **HEADS,
            "in_channels": 4,
            "num_layers": 2,
            "time_embed_dim": 8,
            "text_embed_dim": 16,
            "max_text_seq_length": 6,
        },
        grid=(2, 3, 4),
        text=6,
    ),
    "hunyuanvideo": replace(
        SIZES["hunyuanvideo"],
        config={
            **SIZES["hunyuanvideo"].config,
            **HEADS,
            "num_layers": 2,
            "num_single_layers": 2,
            "num_refiner_layers": 1,
            "text_embed_dim": 16,
            "pooled_projection_dim": 16,
            "rope_axes_dim": (4, 6, 6),
        },
        grid=(2, 3, 4),
        text=8,
    ),
}
CPU = Run("cpu", "fp32", "none", 2)
COMPILER = any(map(shutil.which, ("g++", "c++", "clang++")))


@pytest.fixture(autouse=True)
def _no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "peak_apart", lambda *_: 1 << 30)
    monkeypatch.setattr(overhead, "bandwidth", lambda _device: 10e9)


@torch.no_grad()
def draw(model: Any, arguments: Any) -> torch.Tensor:
    return model(**arguments, return_dict=False)[0]  # type: ignore[no-any-return]


def written(size: Size, run: Run = CPU, full: Size | None = None) -> dict[str, Any]:
    """A record as it comes out of its file."""
    return json.loads(json.dumps(overhead.measured(size, run, full)))  # type: ignore[no-any-return]


# ---------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("name", list(SIZES))
def test_a_size_is_of_a_class_that_is_there(name: str) -> None:
    """Its configuration holds nothing that the class does not know, and makes the blocks that it promises."""
    size = SIZES[name]
    with torch.device("meta"):
        model = getattr(diffusers, size.model)(**size.reduced(1, None).config)
    assert {key: model.config[key] for key in size.config} == size.reduced(1, None).config
    assert len(rarelift.inspect(model).blocks) == len(size.counts)


def test_what_is_known_of_the_released_models() -> None:
    told = {n: (s.depth, s.tokens, s.text, s.batch) for n, s in SIZES.items()}
    assert told == {
        "flux": ((19, 38), 4096, 512, 1),
        "sd35-medium": ((24,), 4096, 333, 2),
        "sd35-large": ((38,), 4096, 333, 2),
        "qwen": ((60,), 4096, 512, 1),
        "cogvideox-5b": ((42,), 17550, 226, 2),
        "hunyuanvideo": ((20, 40), 118800, 256, 1),
    }


def test_a_size_is_reduced_in_depth_and_tokens_only() -> None:
    size = SIZES["cogvideox-5b"]
    small = size.reduced(2, 1000)
    assert (small.depth, small.grid, small.tokens) == ((2,), (1, 31, 31), 961)
    assert small == replace(size, config={**size.config, "num_layers": 2}, grid=(1, 31, 31))
    for depth, tokens in ((None, None), (100, 10**6)):
        assert size.reduced(depth, tokens) == size
    assert SIZES["flux"].reduced(25, None).depth == (19, 25)


# ---------------------------------------------------------------------------------------------- the two sides


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", list(TINY))
def test_one_side_is_lifted_and_the_other_untouched(name: str, dtype: Any) -> None:
    model, arguments = overhead.build(TINY[name], replace(CPU, dtype=dtype))
    assert {p.dtype for p in model.parameters()} == {overhead.DTYPES[dtype]}
    before = draw(model, arguments)
    assert before.isfinite().all()
    names = [sorted(vars(module)) for module in model.modules()]
    other = overhead.twin(model)
    handle = rarelift.apply(other, alpha=4.0)
    for _ in range(2):
        assert not torch.equal(draw(other, arguments), before)
        assert torch.equal(draw(model, arguments), before)
    assert handle.calls == 2 * sum(TINY[name].depth)
    assert not any(links_of(module) for module in model.modules())
    assert [sorted(vars(module)) for module in model.modules()] == names
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    assert all(a.data_ptr() == b.data_ptr() for a, b in pairs)  # one set of weights
    assert not {id(m) for m in model.modules()} & {id(m) for m in other.modules()}


def test_the_order_alternates_and_nothing_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    import gc

    order: list[tuple[str, bool]] = []

    def side(name: str, seconds: float) -> Callable[[], float]:
        return lambda: order.append((name, gc.isenabled())) or seconds  # type: ignore[func-returns-value]

    seconds = overhead.alternate(side("untouched", 1.0), side("lifted", 2.0), 4, "")
    assert [name[0] for name, _ in order] == list("luulluul")
    assert not any(on for _, on in order)
    assert gc.isenabled()
    assert [list(s) for s in seconds] == [[1.0] * 4, [2.0] * 4]
    with pytest.raises(ZeroDivisionError):
        overhead.alternate(side("untouched", 1.0), lambda: 1 / 0, 4, "")
    assert gc.isenabled()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_timed_without_waiting() -> None:
    small, large = (torch.randn(n, n, device="cuda") for n in (256, 4096))
    small @ small, large @ large
    seconds = overhead.alternate_on_gpu(lambda: small @ small, lambda: large @ large, 4, "")
    assert [len(side) for side in seconds] == [4, 4]
    assert (seconds[1] > 2 * seconds[0]).all()
    assert (seconds[0] > 0).all()


def test_the_lifted_step_is_timed_on_the_lifted_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides take the same call; attaching is over before the first is timed."""
    timed: list[tuple[bool, Any]] = []
    real = overhead.seconds_of

    def seconds_of(model: Any, arguments: Any) -> float:
        real(model, arguments)
        lifted = any(map(links_of, model.modules()))
        timed.append((lifted, arguments))
        return 2.0 if lifted else 1.0

    monkeypatch.setattr(overhead, "seconds_of", seconds_of)
    record = written(TINY["flux"])
    assert (record["untouched"], record["lifted"]) == ([1.0] * 2, [2.0] * 2)
    assert [lifted for lifted, _ in timed] == [True, False, False, True]
    assert len({id(arguments) for _, arguments in timed}) == 1


@pytest.mark.slow
@pytest.mark.skipif(not COMPILER, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("how", ["blocks", "whole"])
def test_taking_turns_compiles_nothing(how: Any) -> None:
    torch._dynamo.reset()
    record = written(TINY["sd35-medium"], replace(CPU, compile=how, pairs=3))
    assert overhead._graphs() > 0
    assert record["compiled_while_timing"] == 0
    assert record["lifted_blocks"] == 3


# ---------------------------------------------------------------------------------------------- memory and bytes


def test_peaks_are_of_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ru_maxrss` of a child would begin at this process's."""
    monkeypatch.undo()
    held = torch.ones(1 << 30, dtype=torch.uint8)
    own = 1024 * overhead.peak_resident()
    assert own > len(held)
    untouched, lifted = (overhead.peak_apart(TINY["flux"], CPU, side) for side in (False, True))
    assert 50 * overhead.MIB < untouched < own - len(held) // 2
    assert abs(lifted - untouched) < 50 * overhead.MIB


def test_a_peak_is_forgotten() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peaks are forgotten on Linux only")
    with mmap.mmap(-1, 1 << 29) as big:  # given back at once, whatever the allocator is told to keep
        big.write(b"x" * len(big))
    peak = overhead.peak_resident()
    overhead.forget_peak()
    assert overhead.peak_resident() < peak - (1 << 18)


def test_streams_are_what_the_blocks_get() -> None:
    def of(name: str) -> list[Stream]:
        return overhead.streams_of(*overhead.build(TINY[name], CPU))

    assert of("flux") == [Stream((2, 5, 32), True, False)] * 5
    assert of("sd35-medium") == [Stream((2, 7, 32), True, False)] * 2 + [Stream((2, 7, 32), False, False)]
    assert of("qwen") == [Stream((1, 6, 32), True, False)] * 2
    assert of("cogvideox-5b") == [Stream((2, 6, 32), True, False)] * 2
    assert of("hunyuanvideo") == [Stream((1, 8, 32), True, False)] * 4


def test_bytes_by_hand() -> None:
    """A stream of 2 x 3 x 4 = 24 numbers, a mean of 2 x 4 = 8."""
    stream = Stream((2, 3, 4), True, False)
    mean = 24 + 8
    lerp = 24 + 8 + 24
    take_off = 3 * 24 + 3 * 24
    assert overhead.traffic([stream], torch.float32) == {
        "eager": 4 * (mean + lerp + take_off),
        "least": 4 * (7 * 24 + 2 * 8),
        "kernels": 4 * 6 * 24,
    }
    spread_only = replace(stream, returned=False)
    assert overhead.traffic([spread_only], torch.float32) == {
        "eager": 4 * (mean + lerp),
        "least": 4 * (3 * 24 + 2 * 8),
        "kernels": 4 * 2 * 24,
    }
    pasted = replace(stream, pasted=True)
    copies = 2 * 2 * 24
    assert overhead.traffic([pasted], torch.float32)["eager"] == 4 * (mean + lerp + take_off + copies)
    assert overhead.traffic([pasted], torch.float32)["kernels"] == 4 * (6 * 24 + copies)
    widened = 24 * (2 + 4)
    saturated = 24 * (4 + 4) + 24 * (4 + 2)
    eager = widened + 4 * (mean + lerp) + saturated + 3 * widened + 4 * take_off + saturated
    narrow = overhead.traffic([stream], torch.bfloat16)
    assert narrow == {"eager": eager, "least": 2 * 7 * 24 + 4 * 2 * 8, "kernels": 2 * 6 * 24}
    assert overhead.traffic([stream, spread_only], torch.bfloat16)["least"] == 2 * (7 + 3) * 24 + 4 * 4 * 8


class Counted(TorchDispatchMode):
    """Bytes of the tensors that go into and come out of each operation, views and scalars left out."""

    VIEWS = ("aten.slice", "aten.narrow", "aten.view", "aten.transpose", "aten.t.", "aten.unsqueeze", "aten.expand")

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not str(function).startswith(self.VIEWS):
            inputs = [t for a in args for t in (a if isinstance(a, list) else [a])]
            tensors = [t for t in (*inputs, result) if isinstance(t, torch.Tensor) and t.numel() > 1]
            self.bytes += sum(t.numel() * t.itemsize for t in tensors)
        return result


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["flux", "sd35-medium", "qwen", "cogvideox-5b"])
def test_bytes_are_those_of_the_operations(name: str, dtype: Any) -> None:
    """Counted from shapes, against what the operations of a lifted step are really given, less an untouched step."""
    run = replace(CPU, dtype=dtype)
    model, arguments = overhead.build(TINY[name], run)
    streams = overhead.streams_of(model, arguments)
    lifted = overhead.twin(model)
    rarelift.apply(lifted)
    counts = []
    for one in (model, lifted):
        draw(one, arguments)  # a first call also fills caches of rotary angles
        with Counted() as counted:
            draw(one, arguments)
        counts.append(counted.bytes)
    assert counts[1] - counts[0] == overhead.traffic(streams, overhead.DTYPES[dtype])["eager"]


def test_packed_text_is_not_counted() -> None:
    model = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=16,
        pos_embed_max_size=64,
    )
    with pytest.raises(ValueError, match=r"single_transformer_blocks\.0: bytes are counted for"):
        overhead.streams_of(model, {})
    assert not any(module._forward_hooks for module in model.modules())  # the dual block before it was listened to


def test_bandwidth_is_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert 1e8 < overhead.bandwidth("cpu", 1 << 22, 3) < 1e13


# ---------------------------------------------------------------------------------------------- records and tables


def test_a_record_is_complete() -> None:
    full = SIZES["sd35-medium"]
    record = written(TINY["sd35-medium"], replace(CPU, pairs=3), full)
    assert len(record["untouched"]) == len(record["lifted"]) == 3
    assert all(s > 0 for s in record["untouched"] + record["lifted"])
    assert record["run"] == {"device": "cpu", "dtype": "fp32", "compile": "none", "pairs": 3}
    assert record["settings"]["alpha"] == 1.5
    assert record["config"]["num_layers"] == 3
    assert (record["family"], record["model"]) == ("sd35-medium", "SD3Transformer2DModel")
    assert (record["depth"], record["grid"], record["text"], record["batch"]) == ([3], [1, 4, 4], 7, 2)
    assert record["full"] == {"depth": [24], "grid": [1, 64, 64]}
    assert record["lifted_blocks"] == len(record["streams"]) == 3
    assert set(record["versions"]) == {"python", "commit", "torch", "diffusers", "transformers"}
    assert record["versions"]["torch"] == torch.__version__
    assert set(record["machine"]) == {"device", "system", "cores", "threads"}
    assert all(record["machine"].values())
    assert record["peak"] == [1 << 30] * 2
    assert record["bytes"]["eager"] > record["bytes"]["least"] > 0
    assert record["source"]
    assert record["at"].endswith("+00:00")


def example(**changes: Any) -> dict[str, Any]:
    """A record with round numbers, as if of a GPU."""
    ratios = np.linspace(0.9999, 1.0003, 41)
    return {
        "family": "flux",
        "model": "FluxTransformer2DModel",
        "depth": [19, 38],
        "grid": [1, 64, 64],
        "text": 512,
        "batch": 1,
        "full": {"depth": [19, 38], "grid": [1, 64, 64]},
        "run": {"device": "cuda", "dtype": "bf16", "compile": "none", "pairs": 41},
        "untouched": [0.5] * 41,
        "lifted": [0.5 * r for r in ratios],
        "compiled_while_timing": 0,
        "peak": [1000 << 20, 1003 << 20],
        "streams": [{"shape": [1, 512, 3072], "returned": True, "pasted": False}],
        "bytes": {"eager": 100 << 20, "least": 20 << 20},
        "bandwidth": 2e12,
        "machine": {"device": "GPU", "threads": 8},
    } | changes


def slower(by: float) -> dict[str, Any]:
    return example(lifted=[0.5 * r for r in np.linspace(by - 2e-4, by + 2e-4, 41)])


def test_bars_follow_the_interval() -> None:
    assert overhead.time_bar(example()) == "held"
    assert overhead.time_bar(slower(1.002)) == "missed"
    assert overhead.time_bar(slower(1.001)).startswith("undecided")
    on_cpu = {"device": "cpu", "dtype": "fp32", "compile": "none", "pairs": 41}
    assert overhead.time_bar({**slower(1.002), "run": on_cpu}) == "held"
    assert overhead.time_bar({**slower(1.02), "run": on_cpu}) == "missed"
    few = example(untouched=[0.5] * 3, lifted=[0.5] * 3, run={**on_cpu, "pairs": 3})
    assert overhead.time_bar(few) == "undecided, fewer than 20 pairs"
    assert overhead.memory_bar(example()) == "held"  # exactly one stream of 3 MiB
    assert overhead.memory_bar(example(peak=[1000 << 20, (1003 << 20) + 1])) == "missed"
    assert overhead.memory_bar(example(run=on_cpu)) is None


def test_the_ratio_is_the_median_over_pairs() -> None:
    record = example(untouched=[1.0, 2.0, 4.0], lifted=[1.1, 2.0, 8.0])
    ratio = overhead.ratio_of(record["untouched"], record["lifted"])
    assert (ratio.value, ratio.low, ratio.high) == (1.1, 1.0, 2.0)
    assert overhead.ratio_of([1.0] * 3, [1.5] * 3).high == 1.5


def test_bytes_become_time_and_share() -> None:
    count, seconds, share = overhead.moved(example())
    assert (count, seconds) == (100 << 20, (100 << 20) / 2e12)
    assert share == seconds / 0.5
    compiled = example(run={**example()["run"], "compile": "blocks"})
    assert overhead.moved(compiled)[0] == 20 << 20


def test_what_is_reduced_or_spoilt_is_said() -> None:
    plain = overhead.told(example())
    assert "REDUCED" not in plain + overhead.told(written(TINY["flux"]))
    assert "SPOILT" not in plain
    assert "bar    time <= 1.001: held" in plain
    assert "bar    memory at most one text stream more: held" in plain
    reduced = overhead.told(example(depth=[1, 1], grid=[1, 8, 8]))
    assert "REDUCED: 1 + 1 of 19 + 38 blocks, 64 of 4096 image tokens" in reduced
    assert "SPOILT: 2 graphs" in overhead.told(example(compiled_while_timing=2))


def test_a_table_holds_the_last_record_of_each_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, page = tmp_path / "new" / "overhead.jsonl", tmp_path / "page.md"
    first, again = slower(1.5), example(run={**example()["run"], "pairs": 41})
    small = example(depth=[1, 1], grid=[1, 8, 8])
    for record in (first, small, again):
        overhead.append(file, record)
    assert overhead.read(file) == [first, small, again]
    page.write_text(PAGE.replace("one", "overhead"))
    monkeypatch.setattr(overhead, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["overhead.py", "--table", "--json", str(file)])
    overhead.main()
    lines = page.read_text().partition("<!-- overhead -->\n")[2].partition("\n<!-- /overhead -->")[0].splitlines()
    assert lines == overhead.render([first, small, again]).splitlines()
    assert len(lines) == 2 + 2
    full, less = lines[2:]
    assert full.startswith("| flux | GPU | bf16, eager, 41 pairs | 19 + 38 | 1 x (4096 + 512) | 500.00 | 1.0001 [")
    assert full.endswith("| 1.001: held | +3.0 (held) | 3.0 | 100.0 | 0.010% |")
    assert "| 1 + 1 of 19 + 38 | 1 x (64 of 4096 + 512) |" in less
    assert "spoilt" in overhead.render([example(compiled_while_timing=1)])
    assert overhead.render(overhead.read(tmp_path / "none")) == "Not run yet."


def test_the_page_holds_the_records() -> None:
    text = overhead.render(overhead.read(overhead.FILE))
    assert f"<!-- overhead -->\n{text}\n<!-- /overhead -->" in overhead.PAGE.read_text()


# ---------------------------------------------------------------------------------------------- the command line


def test_a_command_is_planned() -> None:
    args = overhead.parse(["--family", "flux", "--random-weights", "--device", "cpu"])
    [(size, run, full)] = overhead.planned(args)
    assert (size.depth, size.tokens, size.text) == ((2, 2), 1024, 512)
    assert full == SIZES["flux"]
    assert run == Run("cpu", "fp32", "none", 60)
    args = overhead.parse(["--family", "flux", "--random-weights", "--device", "cuda", "--compile", "whole"])
    [(size, run, full)] = overhead.planned(args)
    assert size == full
    assert run == Run("cuda", "bf16", "whole", 60)
    several = "--family flux qwen --compile none blocks --random-weights --device cuda"
    runs = [(size.name, run.compile) for size, run, _ in overhead.planned(overhead.parse(several.split()))]
    assert runs == [("flux", "none"), ("flux", "blocks"), ("qwen", "none"), ("qwen", "blocks")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--family flux", "add --random-weights"),
        ("--depth 2 --random-weights", "--random-weights, --depth go with --family"),
        ("--family flux --random-weights --batch 2", "without --batch"),
        ("--family flux --random-weights --pairs 1", "--pairs must be at least 2, got 1"),
        ("--family flux --random-weights --tokens 0", "--tokens must be at least 1, got 0"),
        ("--json x.jsonl", "--json goes with --family or --table"),
        ("--family other --random-weights", "invalid choice"),
    ],
)
def test_commands_that_make_no_sense(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        overhead.parse(line.split())
    assert message in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- where the time goes


def test_steps_untouched_bare_and_lifted_take_turns(pipe: Any) -> None:
    def draw() -> np.ndarray:
        noise = torch.Generator().manual_seed(0)
        arguments = {"height": 8, "width": 8, "max_sequence_length": 4, "output_type": "np"}
        return pipe("a lion", num_inference_steps=2, generator=noise, **arguments).images  # type: ignore[no-any-return]

    plain = draw()
    with rarelift.apply(pipe):
        lifted = draw()
    forwards = [vars(module).get("forward") for module in pipe.transformer.modules()]
    drawn = []
    turns = parts.listened(pipelines.Model("tiny", pipe), lambda: drawn.append(draw()), 3)
    assert all(np.array_equal(picture, lifted) for picture in drawn)
    assert {way: len(seconds) for way, seconds in turns.seconds.items()} == dict.fromkeys(parts.WAYS, 3 * 2)
    untouched, bare, last = (turns.outputs[way][0] for way in parts.WAYS)
    assert torch.equal(bare, last)
    assert not torch.equal(untouched, last)
    assert [vars(module).get("forward") for module in pipe.transformer.modules()] == forwards
    assert np.array_equal(draw(), plain)


@pytest.mark.skipif(not COMPILER, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("name", ["sd35-medium", "flux"])
def test_a_compiled_block_takes_a_few_kernels_and_one_stream_more(name: str) -> None:
    size = TINY[name]
    stream = 2 * size.batch * size.text * HEADS["attention_head_dim"] * HEADS["num_attention_heads"]
    found = list(graphs.orders(size))
    assert [kind for kind, *_ in found] == {
        "sd35-medium": ["JointTransformerBlock"],
        "flux": ["FluxTransformerBlock", "FluxSingleTransformerBlock"],
    }[name]
    for _, untouched, lifted in found:
        assert untouched.kernels < lifted.kernels <= untouched.kernels + 3
        assert untouched.changed == lifted.changed == 0
        assert lifted.written <= untouched.written + stream
        assert untouched.settled <= lifted.settled <= untouched.settled + stream


def test_what_a_way_costs_is_told_for_a_call() -> None:
    seconds = {"untouched": [0.1, 0.2] * 20, "bare operations": [0.101, 0.202] * 20, "lifted": [0.102, 0.204] * 20}
    more, percents = parts.beyond(seconds, "lifted", 2)
    assert (more.value, more.low, more.high) == pytest.approx((6, 4, 8))
    assert (percents.value, percents.low, percents.high) == pytest.approx((2, 2, 2))
    assert "20 calls of 2 steps, which take 300 ms" in parts.told(seconds, 20)
