"""Microseconds of what a lift adds to a block on a GPU: as single operations, as our kernels, and compiled.

    python benchmarks/kernels.py

At the text of each size of `sizes.py`, in bf16, by CUDA graphs, so that no launch waits for Python. Caches are warm; in
a model they hold other things too, so read these as the least that it takes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from measure import table
from rarelift import fused, variance
from sizes import SIZES

LAUNCHES, REPEATS = 50, 20
Spreads = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Takes = Callable[[Tensor, Tensor, Tensor], Tensor]


def microseconds(function: Callable[[], object]) -> float:
    """Of one call, the fastest of some graphs of many."""
    for _ in range(3):
        function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(LAUNCHES):
            function()
    best = float("inf")
    for _ in range(REPEATS):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        first.record()
        graph.replay()
        last.record()
        torch.cuda.synchronize()
        best = min(best, first.elapsed_time(last))
    return 1000 * best / LAUNCHES


def rows() -> list[list[str]]:
    found = []
    for size in SIZES.values():
        width = size.config.get("caption_projection_dim") or (
            size.config["num_attention_heads"] * size.config["attention_head_dim"]
        )
        shape = (size.batch, size.text, width)
        z, output, lifted = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(3))
        scale = torch.full((1, 1, 1), 1.5, device="cuda")
        spread: Spreads = partial(variance.spread_by, autocast=False)
        ways: tuple[tuple[Spreads, Takes], ...] = (
            (spread, variance.take_off),
            (fused.spread_by, fused.take_off),
            (torch.compile(spread, dynamic=False), torch.compile(variance.take_off, dynamic=False)),
        )
        times = [
            f"{microseconds(partial(one, z, scale, None)):.2f} + {microseconds(partial(other, output, z, lifted)):.2f}"
            for one, other in ways
        ]
        found.append([size.name, " x ".join(map(str, shape)), *times])
    return found


def main() -> None:
    if not torch.cuda.is_available():
        raise SystemExit("kernels.py is for a GPU; on a CPU, benchmarks/parts.py says where the time goes")
    print(torch.cuda.get_device_name())
    print(table(["size", "text", "operations, us", "our kernels, us", "compiled, us"], rows()))


if __name__ == "__main__":
    main()
