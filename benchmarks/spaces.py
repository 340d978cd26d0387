"""CPU time of each `space` of a lift on the bundled model: calls untouched and lifted in alternation, in one process.

    python benchmarks/spaces.py
    python benchmarks/spaces.py lift:space=whiten,amount=0.5 --batch 16 --pairs 40

Prints, for each method, milliseconds of one denoising step untouched, the median of what it takes more, and the ratio
of the two with a bootstrap interval over pairs of calls. All are of the processor, added up over threads, which others
on the machine disturb less than the clock on the wall; `overhead.py` has that.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import numpy as np

import rarelift
from overhead import PROMPT, alternate, call, ratio_of
from rarelift import pipelines
from rarelift.bench.runs import Method

METHODS = (
    "lift",
    "lift:space=principal,rank=2",
    "lift:space=residual,rank=2",
    "lift:space=whiten,amount=0.5",
    "lift:space=align,amount=0.25",
    "lift:space=align,amount=0.25,toward=content",
)


def timed(model: pipelines.Model, settings: rarelift.Spread, batch: int, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of each untouched and each lifted call, decoding included, attaching not."""

    def untouched() -> float:
        started = time.process_time()
        call(model, batch)
        return time.process_time() - started

    def lifted() -> float:
        with rarelift.apply(model.pipe, settings=settings):
            return untouched()

    for _ in range(2):
        untouched()
        lifted()
    return alternate(untouched, lifted, pairs, f"batch {batch}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=METHODS, help="as in rarelift bench (default: each space)")
    parser.add_argument("--batch", type=int, default=1, help="pictures a call (default: 1)")
    parser.add_argument("--pairs", type=int, default=20)
    args = parser.parse_args(arguments)
    model = pipelines.load()
    steps = model.defaults["num_inference_steps"]
    print(f"{PROMPT!r}, batch {args.batch}, {steps} steps, {args.pairs} pairs of calls")
    for name in args.methods:
        settings = Method.parse(name).settings
        if not isinstance(settings, rarelift.Spread):
            parser.error(f"{name} is no lift")
        untouched, lifted = timed(model, settings, args.batch, args.pairs)
        more = 1000 * np.median(lifted - untouched) / steps
        print(
            f"{name}: {1000 * np.median(untouched) / steps:.2f} ms a step untouched, {more:.2f} more, "
            f"ratio {ratio_of(untouched, lifted):.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
