"""Time and memory of the lift: the same call untouched and lifted, in alternation, in one process.

    python benchmarks/overhead.py                      the bundled model, one picture a call
    python benchmarks/overhead.py --batch 16 --pairs 40
    python benchmarks/overhead.py --compile blocks     each joint block compiled
    python benchmarks/overhead.py --family flux --random-weights --json benchmarks/results/overhead.jsonl
    python benchmarks/overhead.py --table              docs/overhead.md from the records, nothing is timed

Prints the ratio lifted / untouched of the wall time, as the median over pairs with a bootstrap interval, and of the
peak memory. With `--family`, one denoising step (one call of the transformer) of a released model's size (`sizes.py`)
with random weights: the real class, width, heads, blocks and tokens. docs/overhead.md says what is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import inspect
import itertools
import json
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import diffusers
import numpy as np
import torch
import torch._dynamo.utils
from torch import Tensor, nn
from tqdm import tqdm

import rarelift
from measure import RESULTS, table, versions, write_section
from rarelift import fused, pipelines
from rarelift.bench.stats import Estimate
from rarelift.locate import Site, locate
from rarelift.settings import Spread
from sizes import SIZES, Size

PROMPT = "a purple striped lion wearing a crown at night"
PAGE = Path(__file__).parents[1] / "docs" / "overhead.md"
FILE = RESULTS / "overhead.jsonl"
TIME_BAR = {"cpu": 1.01, "cuda": 1.001}
ENOUGH = 20  # pairs; a bootstrap of fewer has intervals that are too narrow
PROCESSES = 5  # a side; peaks of a process differ by a percent from one to the next
CPU_DEPTH, CPU_TOKENS = 2, 1024
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
MIB = 1 << 20


def alternate(
    untouched: Callable[[], float], lifted: Callable[[], float], pairs: int, label: str
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of each untouched and each lifted call; the order within a pair alternates, and nothing is collected."""
    sides: tuple[list[float], list[float]] = ([], [])
    gc.collect()
    gc.disable()
    try:
        for i in tqdm(range(pairs), desc=label, leave=False):
            for side in (0, 1) if i % 2 else (1, 0):
                sides[side].append((untouched, lifted)[side]())
    finally:
        gc.enable()
    return np.array(sides[0]), np.array(sides[1])


def alternate_on_gpu(
    untouched: Callable[[], object], lifted: Callable[[], object], pairs: int, label: str
) -> tuple[np.ndarray, np.ndarray]:
    """As `alternate`, for calls that a GPU works off one after the other, as in a pipeline's loop.

    The clock is the GPU's own, and nobody waits for it between calls: a wait would let it run empty, and all that
    Python does before its first kernel would count, which in a loop it does while the GPU is busy with the last step.
    """
    marks: list[Any] = [torch.cuda.Event(enable_timing=True) for _ in range(2 * pairs + 1)]  # type: ignore[no-untyped-call]
    order = [side for i in range(pairs) for side in ((0, 1) if i % 2 else (1, 0))]
    gc.collect()
    gc.disable()
    try:
        torch.cuda.synchronize()
        marks[0].record()
        for side, mark in zip(tqdm(order, desc=label, leave=False), marks[1:], strict=True):
            (untouched, lifted)[side]()
            mark.record()
        torch.cuda.synchronize()
    finally:
        gc.enable()
    seconds = np.array([a.elapsed_time(b) / 1000 for a, b in itertools.pairwise(marks)])
    sides = np.array(order)
    return seconds[sides == 0], seconds[sides == 1]


def peak_resident() -> int:
    """Peak resident KiB of this process alone: `ru_maxrss` of a fresh process begins at its parent's, on Linux."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1)


def forget_peak() -> None:
    """Let `peak_resident` begin anew at what is resident now; where Linux does not let us, it goes on."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


# ---------------------------------------------------------------- the bundled model


def call(model: pipelines.Model, batch: int) -> float:
    started = time.perf_counter()
    pipelines.text_to_image(model, [PROMPT] * batch, range(batch), batch_size=batch)
    return time.perf_counter() - started


def timings(batch: int, pairs: int, how: str) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of each untouched and each lifted call; attaching and compiling are not counted."""
    model = pipelines.load()
    if how == "none":
        handle = rarelift.apply(model.pipe)
        handle.remove()

        def lifted() -> float:
            with rarelift.apply(model.pipe):
                return call(model, batch)

    else:  # a model each, so that neither is compiled again when they take turns
        other = pipelines.load()
        handle = rarelift.apply(other.pipe)
        for one in (model, other):
            compile_as(one.pipe.transformer, how)

        def lifted() -> float:
            return call(other, batch)

    for _ in range(3):
        call(model, batch)
        lifted()
    assert how == "none" or handle.calls, "the compiled model was not lifted"
    graphs = _graphs()
    seconds = alternate(lambda: call(model, batch), lifted, pairs, f"batch {batch}")
    if _graphs() > graphs:
        raise SystemExit(f"{_graphs() - graphs} graphs were compiled while timing; nothing was measured")
    return seconds


def peak_memory(batch: int, lifted: bool, how: str) -> int:
    """Peak resident KiB of a fresh process that makes two calls."""
    command = [sys.executable, __file__, "--batch", str(batch), "--compile", how]
    command += ["--memory", "lifted" if lifted else "untouched"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1]))


def bundled(batch: int, pairs: int, how: str) -> None:
    untouched, lifted = timings(batch, pairs, how)
    print(
        f"batch {batch}, compile {how}, {pairs} pairs, median call {1000 * np.median(untouched):.1f} ms untouched, "
        f"{1000 * np.median(lifted - untouched):.1f} ms more lifted"
    )
    print(f"time   lifted / untouched {ratio_of(untouched, lifted):.4f}")
    peaks = [[peak_memory(batch, side, how) for side in (False, True)] for _ in range(PROCESSES)]
    memory = np.median(peaks, axis=0)
    shares = [side[1] / side[0] for side in peaks]
    print(
        f"memory lifted / untouched {memory[1] / memory[0]:.4f}, {min(shares):.4f} to {max(shares):.4f} in {PROCESSES} "
        f"pairs of processes ({memory[0] / 1024:.0f} MiB untouched)"
    )


# ---------------------------------------------------------------- one step of a released model's size


@dataclass(frozen=True)
class Run:
    """How a size is timed."""

    device: Literal["cpu", "cuda"]
    dtype: Literal["bf16", "fp32"]
    compile: Literal["none", "blocks", "whole"]
    pairs: int


@dataclass(frozen=True)
class Stream:
    """The text at one joint block: `[B, L, D]`; `returned`: the block gives it back, so that something is taken off;
    `pasted`: the lift cannot hand over what it made, but copies it into the stream."""

    shape: tuple[int, int, int]
    returned: bool
    pasted: bool


def build(size: Size, run: Run) -> tuple[nn.Module, dict[str, Any]]:
    """A model with random weights, made in their dtype on their device, and the arguments of one call."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[run.dtype])
    try:
        with torch.device(run.device):
            torch.manual_seed(0)
            model: nn.Module = getattr(diffusers, size.model)(**size.config)
            arguments = size.call(size)
    finally:
        torch.set_default_dtype(before)
    nn.Module.to(model, DTYPES[run.dtype])  # buffers that are made in fp32; the `to` of diffusers warns for nothing
    return model.eval().requires_grad_(False), arguments


def twin(model: nn.Module) -> nn.Module:
    """A second model on the same parameters and buffers, so that one can be lifted while the other is never touched,
    and neither is recompiled when they take turns."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def compile_as(model: nn.Module, how: str) -> None:
    if how == "whole":
        model.compile(dynamic=False)
    elif how == "blocks":
        for site in locate(model):
            site.module.compile(fullgraph=True, dynamic=False)


def step(model: nn.Module, arguments: Mapping[str, Any]) -> None:
    """One call of the transformer."""
    with torch.no_grad():
        model(**arguments, return_dict=False)


def seconds_of(model: nn.Module, arguments: Mapping[str, Any]) -> float:
    """Of one call of the transformer on a CPU."""
    started = time.perf_counter()
    step(model, arguments)
    return time.perf_counter() - started


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def streams_of(model: nn.Module, arguments: Mapping[str, Any]) -> list[Stream]:
    """The text stream at each joint block, as one call of an untouched model shows it."""
    found: list[Stream] = []
    taps = []

    def listen(site: Site) -> None:
        family, signature = site.family, inspect.signature(type(site.module).forward)
        place = family.returns
        if family.layout != "dual" or family.token_dim != 1 or place is None:
            raise ValueError(f"{site.name}: bytes are counted for text that is an argument and a result of its own")

        def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            text: Tensor = signature.bind(module, *args, **kwargs).arguments[family.text]
            batch, length, width = text.shape
            pasted = bool(family.registers or family.leading)
            found.append(Stream((batch, length, width), output[place] is not None, pasted))

        taps.append(site.module.register_forward_hook(note, with_kwargs=True))

    try:
        for site in locate(model):
            listen(site)
        with torch.no_grad():
            model(**arguments, return_dict=False)
    finally:
        for tap in taps:
            tap.remove()
    return found


def traffic(streams: Sequence[Stream], dtype: torch.dtype) -> dict[str, int]:
    """Bytes that the default lift reads and writes in one step.

    "eager" is what single operations touch, widening to fp32 and saturating included; "least" is each tensor once for
    each pass over it, which is what a compiler that fuses can reach: the text twice (its mean comes first), the mean,
    the spread text, and for the take-off three reads and a write. "kernels" is what our own kernels touch: they read
    the text once. Masks, weights and scales are left out: one number a token.
    """
    size, wide = dtype.itemsize, max(dtype.itemsize, 4)
    narrow = size < wide
    eager = least = kernels = 0
    for stream in streams:
        batch, length, width = stream.shape
        n, mean = batch * length * width, batch * width
        cast, saturate, copied = n * (size + wide), 2 * n * wide, 2 * n * size
        back = narrow * (saturate + cast)
        eager += narrow * cast + (n + mean) * wide + (2 * n + mean) * wide + back + stream.pasted * copied
        least += 3 * n * size + 2 * mean * wide
        kernels += 2 * n * size + stream.pasted * copied
        if stream.returned:
            eager += narrow * 3 * cast + 2 * 3 * n * wide + back + stream.pasted * copied
            least += 4 * n * size
            kernels += 4 * n * size + stream.pasted * copied
    return {"eager": eager, "least": least, "kernels": kernels}


def bandwidth(device: str, size: int = 256 * MIB, repeats: int = 20) -> float:
    """Bytes a second of a copy between two tensors too large for caches, read and written; the fastest of some."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    seconds = []
    for _ in range(repeats):
        _wait(device)
        started = time.perf_counter()
        target.copy_(source)
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return 2 * size / min(seconds)


def peak_of(size: Size, run: Run, lifted: bool) -> int:
    """Peak resident bytes of this process in two steps of one side; meant for a process of its own."""
    model, arguments = build(size, run)
    handle = rarelift.apply(model) if lifted else None
    compile_as(model, run.compile)
    gc.collect()
    forget_peak()  # making the weights can take more than a step
    for _ in range(2):
        step(model, arguments)
    assert handle is None or handle.calls
    return 1024 * peak_resident()


def peak_apart(size: Size, run: Run, lifted: bool) -> int:
    """`peak_of` in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(peak_of, size, run, lifted).result()


def peak_cuda(model: nn.Module, arguments: Mapping[str, Any]) -> int:
    """Peak allocated bytes of one step."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step(model, arguments)
    return torch.cuda.max_memory_allocated()


def measured(size: Size, run: Run, full: Size | None = None) -> dict[str, Any]:
    """One record: everything that was timed and what it depends on. `full`: the size that `size` was reduced from."""
    peaks = [peak_apart(size, run, side) for side in (False, True)] if run.device == "cpu" else []
    untouched, arguments = build(size, run)
    streams = streams_of(untouched, arguments)
    lifted = twin(untouched)
    handle = rarelift.apply(lifted)
    for model in (untouched, lifted):
        compile_as(model, run.compile)
    for _ in range(2):
        for model in (untouched, lifted):
            step(model, arguments)
    if run.device == "cuda":
        peaks = [peak_cuda(model, arguments) for model in (untouched, lifted)]
    calls = handle.calls
    step(lifted, arguments)
    blocks, graphs = handle.calls - calls, _graphs()
    if run.device == "cuda":
        seconds = alternate_on_gpu(
            lambda: step(untouched, arguments), lambda: step(lifted, arguments), run.pairs, size.name
        )
    else:
        seconds = alternate(
            lambda: seconds_of(untouched, arguments), lambda: seconds_of(lifted, arguments), run.pairs, size.name
        )
    return {
        "family": size.name,
        "model": size.model,
        "source": size.source,
        "unchecked": size.unchecked,
        "config": size.config,
        "depth": size.depth,
        "grid": size.grid,
        "text": size.text,
        "batch": size.batch,
        "full": {"depth": (full or size).depth, "grid": (full or size).grid},
        "run": asdict(run),
        "settings": asdict(Spread()),
        "untouched": seconds[0].tolist(),
        "lifted": seconds[1].tolist(),
        "lifted_blocks": blocks,
        "compiled_while_timing": _graphs() - graphs,
        "peak": peaks,
        "streams": [asdict(stream) for stream in streams],
        "bytes": traffic(streams, DTYPES[run.dtype]),
        "kernels": run.device == "cuda" and run.compile == "none" and fused.works(),
        "bandwidth": bandwidth(run.device),
        "machine": machine(run.device),
        "versions": {"python": platform.python_version(), **versions()},
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def machine(device: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "device": _processor(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if device == "cuda":
        found |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return found


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


# ---------------------------------------------------------------- what a record says


def ratio_of(untouched: Sequence[float] | np.ndarray, lifted: Sequence[float] | np.ndarray) -> Estimate:
    """lifted / untouched of paired seconds: the median over pairs."""
    return median_of(np.array(lifted) / np.array(untouched))


def median_of(values: np.ndarray) -> Estimate:
    """With a 95% percentile bootstrap interval."""
    drawn = np.random.default_rng(0).choice(values, (4000, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return Estimate(float(np.median(values)), float(low), float(high))


def time_bar(record: Mapping[str, Any]) -> str:
    if record["run"]["pairs"] < ENOUGH:
        return f"undecided, fewer than {ENOUGH} pairs"
    ratio, bar = ratio_of(record["untouched"], record["lifted"]), TIME_BAR[record["run"]["device"]]
    return "held" if ratio.high <= bar else "missed" if ratio.low > bar else "undecided, the interval holds the bar"


def memory_bar(record: Mapping[str, Any]) -> str | None:
    """None where peaks are of whole processes, which are coarser than a stream."""
    if record["run"]["device"] != "cuda":
        return None
    return "held" if extra_peak(record) <= stream_bytes(record) else "missed"


def extra_peak(record: Mapping[str, Any]) -> int:
    untouched, lifted = record["peak"]
    return int(lifted - untouched)


def stream_bytes(record: Mapping[str, Any]) -> int:
    """Bytes of the largest text stream."""
    size = DTYPES[record["run"]["dtype"]].itemsize
    return max(int(np.prod(stream["shape"])) * size for stream in record["streams"])


def moved(record: Mapping[str, Any]) -> tuple[int, float, float]:
    """Bytes that the lift moves, the seconds that these cost at the device's bandwidth, their share of a step."""
    how = "least" if record["run"]["compile"] != "none" else "kernels" if record.get("kernels") else "eager"
    count = record["bytes"][how]
    seconds = count / record["bandwidth"]
    return count, seconds, seconds / float(np.median(record["untouched"]))


def reduction(record: Mapping[str, Any]) -> str:
    """What was left out of the released model; empty when nothing was."""
    full = record["full"]
    parts = []
    if list(record["depth"]) != list(full["depth"]):
        parts.append(f"{_plus(record['depth'])} of {_plus(full['depth'])} blocks")
    if list(record["grid"]) != list(full["grid"]):
        parts.append(f"{np.prod(record['grid'])} of {np.prod(full['grid'])} image tokens")
    return ", ".join(parts)


def _plus(depth: Sequence[int]) -> str:
    return " + ".join(map(str, depth))


def told(record: Mapping[str, Any]) -> str:
    """A record as it is printed."""
    run, reduced = record["run"], reduction(record)
    count, seconds, share = moved(record)
    extra, stream = extra_peak(record) / MIB, stream_bytes(record) / MIB
    kind = "allocated" if run["device"] == "cuda" else "resident, a process each"
    also = f"; {record['bytes']['least'] / MIB:.1f} if fused" if run["compile"] == "none" else ", if fused"
    lines = [
        f"{record['family']}: {record['model']}, {_plus(record['depth'])} blocks, {np.prod(record['grid'])} image + "
        f"{record['text']} text tokens, batch {record['batch']}",
        f"{run['dtype']}, compile {run['compile']}, {record['machine']['device']}, {record['machine']['threads']} "
        "threads, random weights",
    ]
    if reduced:
        lines.append(f"REDUCED: {reduced}; the step of the released model takes longer, and its ratio is another")
    if record["compiled_while_timing"]:
        lines.append(f"SPOILT: {record['compiled_while_timing']} graphs were compiled while timing")
    lines += [
        f"time   median step {1000 * np.median(record['untouched']):.2f} ms untouched; lifted / untouched "
        f"{ratio_of(record['untouched'], record['lifted']):.4f}, {run['pairs']} pairs",
        f"bar    time <= {TIME_BAR[run['device']]}: {time_bar(record)}",
        f"memory peak {record['peak'][0] / MIB:.1f} MiB untouched, {extra:+.1f} lifted ({kind}); one text stream is "
        f"{stream:.1f}",
    ]
    if memory_bar(record) is not None:
        lines.append(f"bar    memory at most one text stream more: {memory_bar(record)}")
    lines.append(
        f"bytes  the lift moves {count / MIB:.1f} MiB a step{also}: {1000 * seconds:.3f} ms at "
        f"{record['bandwidth'] / 1e9:.1f} GB/s (a copy, measured), {100 * share:.3f}% of the untouched step"
    )
    return "\n".join(lines)


def render(records: Sequence[Mapping[str, Any]]) -> str:
    """The last record of each model and setting, as a table."""
    if not records:
        return "Not run yet."
    last = {_key(record): record for record in records}
    header = ["model", "device", "run", "blocks", "tokens", "step, ms", "lifted / untouched", "bar"]
    header += ["extra peak, MiB", "text stream, MiB", "moved, MiB", "share of the step"]
    return table(header, [_row(record) for record in last.values()])


def _key(record: Mapping[str, Any]) -> str:
    parts = [record["family"], record["depth"], record["grid"], record["text"], record["batch"], record["machine"]]
    return json.dumps([*parts, {**record["run"], "pairs": None}], sort_keys=True)


def _row(record: Mapping[str, Any]) -> list[str]:
    run, full, memory = record["run"], record["full"], memory_bar(record)
    blocks, tokens = _plus(record["depth"]), str(np.prod(record["grid"]))
    if list(record["depth"]) != list(full["depth"]):
        blocks += f" of {_plus(full['depth'])}"
    if list(record["grid"]) != list(full["grid"]):
        tokens += f" of {np.prod(full['grid'])}"
    count, _, share = moved(record)
    spoilt = ", spoilt: compiled while timing" if record["compiled_while_timing"] else ""
    how = f"compiled {run['compile']}"
    if run["compile"] == "none":
        how = "eager, our kernels" if record.get("kernels") else "eager"
    return [
        record["family"],
        record["machine"]["device"],
        f"{run['dtype']}, {how}, {run['pairs']} pairs",
        blocks,
        f"{record['batch']} x ({tokens} + {record['text']})",
        f"{1000 * np.median(record['untouched']):.2f}",
        f"{ratio_of(record['untouched'], record['lifted']):.4f}",
        f"{TIME_BAR[run['device']]}: {time_bar(record)}{spoilt}",
        f"{extra_peak(record) / MIB:+.1f}{'' if memory is None else f' ({memory})'}",
        f"{stream_bytes(record) / MIB:.1f}",
        f"{count / MIB:.1f}",
        f"{100 * share:.3f}%",
    ]


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def append(file: Path, record: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as lines:
        lines.write(json.dumps(record) + "\n")


# ---------------------------------------------------------------- the command line


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, help="pictures a call, of the bundled model (default: 1)")
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--memory", choices=["lifted", "untouched"], help=argparse.SUPPRESS)
    parser.add_argument("--family", nargs="+", choices=list(SIZES), help="released models' sizes, one after the other")
    parser.add_argument("--random-weights", action="store_true", help="required with --family: none are loaded")
    parser.add_argument("--depth", type=int, help=f"blocks a list (default: all, on a CPU {CPU_DEPTH})")
    parser.add_argument("--tokens", type=int, help=f"image tokens (default: all, on a CPU {CPU_TOKENS})")
    parser.add_argument("--dtype", choices=list(DTYPES), help="default: bf16, on a CPU fp32")
    parser.add_argument(
        "--compile", nargs="+", choices=["none", "blocks", "whole"], default=["none"], help="default: none"
    )
    parser.add_argument("--device", choices=list(TIME_BAR), help="default: cuda where there is one")
    parser.add_argument("--json", type=Path, help="append the record to this file; with --table, read it")
    parser.add_argument("--table", action="store_true", help="write docs/overhead.md from the records, time nothing")
    args = parser.parse_args(arguments)
    alone = ("random_weights", "depth", "tokens", "dtype", "device")
    given = [f"--{name.replace('_', '-')}" for name in alone if getattr(args, name) not in (None, False)]
    if args.family is None and given:
        parser.error(f"{', '.join(given)} go with --family; the bundled model is timed as it is")
    if args.family is None and args.json and not args.table:
        parser.error("--json goes with --family or --table")
    if args.family and not args.random_weights:
        parser.error("released weights are not loaded here: add --random-weights")
    if args.family and (args.batch or args.memory or args.table):
        parser.error("--family goes without --batch (the size has its own), --memory and --table")
    for name, least in (("pairs", 2), ("depth", 1), ("tokens", 1), ("batch", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            parser.error(f"--{name} must be at least {least}, got {value}")
    return args


def planned(args: argparse.Namespace) -> list[tuple[Size, Run, Size]]:
    """The sizes and runs that a command asks for, each with the size at full."""
    device: Literal["cpu", "cuda"] = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    small = device == "cpu"
    depth = args.depth or (CPU_DEPTH if small else None)
    tokens = args.tokens or (CPU_TOKENS if small else None)
    dtype: Literal["bf16", "fp32"] = args.dtype or ("fp32" if small else "bf16")
    return [
        (full.reduced(depth, tokens), Run(device, dtype, how, args.pairs), full)
        for full in map(SIZES.__getitem__, args.family)
        for how in args.compile
    ]


def main() -> None:
    args = parse()
    if args.memory:
        model = pipelines.load()
        if args.memory == "lifted":
            rarelift.apply(model.pipe)
        compile_as(model.pipe.transformer, args.compile[0])
        for _ in range(2):
            call(model, args.batch or 1)
        print(peak_resident())
    elif args.table:
        text = render(read(args.json or FILE))
        print(text)
        write_section(PAGE, "overhead", text)
    elif args.family:
        for each in planned(args):
            record = measured(*each)
            print(told(record), flush=True)
            if args.json:
                append(args.json, record)
            gc.collect()  # the models hold each other in circles; the next needs their memory
            torch._dynamo.reset()
    else:
        for how in args.compile:
            bundled(args.batch or 1, args.pairs, how)


if __name__ == "__main__":
    main()
