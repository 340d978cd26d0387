"""Time and memory of the lift: the same pipeline call untouched and lifted, in alternation, in one process.

    python benchmarks/overhead.py                      the bundled model, one picture a call
    python benchmarks/overhead.py --batch 16 --pairs 40

Prints the ratio lifted / untouched of the wall time, as the median over pairs with a bootstrap interval, and of the
peak memory, each side in a process of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import subprocess
import sys
import time

import numpy as np
from scipy.stats import bootstrap
from tqdm import tqdm

import rarelift
from rarelift import pipelines

PROMPT = "a purple striped lion wearing a crown at night"


def call(model: pipelines.Model, batch: int) -> float:
    started = time.perf_counter()
    pipelines.text_to_image(model, [PROMPT] * batch, range(batch), batch_size=batch)
    return time.perf_counter() - started


def timings(batch: int, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of each untouched and each lifted call; the order within a pair alternates."""
    model = pipelines.load()
    handle = rarelift.apply(model.pipe)
    handle.remove()
    for _ in range(3):
        call(model, batch)
    sides: tuple[list[float], list[float]] = ([], [])
    gc.collect()
    gc.disable()
    for i in tqdm(range(pairs), desc=f"batch {batch}", leave=False):
        for side in (0, 1) if i % 2 else (1, 0):
            if side:
                with rarelift.apply(model.pipe):
                    sides[1].append(call(model, batch))
            else:
                sides[0].append(call(model, batch))
    gc.enable()
    return np.array(sides[0]), np.array(sides[1])


def peak_memory(batch: int, lifted: bool) -> int:
    """Peak resident KiB of a fresh process that makes two calls."""
    command = [sys.executable, __file__, "--batch", str(batch), "--memory", "lifted" if lifted else "untouched"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--memory", choices=["lifted", "untouched"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        model = pipelines.load()
        if args.memory == "lifted":
            rarelift.apply(model.pipe)
        for _ in range(2):
            call(model, args.batch)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    untouched, lifted = timings(args.batch, args.pairs)
    ratio = bootstrap((lifted / untouched,), np.median, n_resamples=4000, rng=np.random.default_rng(0))
    low, high = ratio.confidence_interval
    print(f"batch {args.batch}, {args.pairs} pairs, median call {1000 * np.median(untouched):.1f} ms untouched")
    print(f"time   lifted / untouched {np.median(lifted / untouched):.4f} [{low:.4f}, {high:.4f}]")
    memory = [peak_memory(args.batch, side) for side in (False, True)]
    print(f"memory lifted / untouched {memory[1] / memory[0]:.4f} ({memory[0] // 1024} MiB untouched)")


if __name__ == "__main__":
    main()
