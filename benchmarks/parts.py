"""What of a lift's time is its arithmetic, and what is the code around it, on the bundled model.

    python benchmarks/parts.py
    python benchmarks/parts.py --batch 16

Each denoising step of a pipeline call is run three times, in an order that is drawn anew: untouched; with the bare
operations of a lift at each joint block, and nothing of rarelift around them; lifted. A step is short, so what else the
machine does hits all three alike, which is more than timings of whole calls can say. Prints what the second and the
third cost beyond the first: in milliseconds a pipeline call, and as a share of its steps, the median over steps with a
95% bootstrap interval. What a lift does once a call, around the encoding of the prompt, is not in it.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import rarelift
from overhead import call, median_of
from rarelift import hooks, pipelines
from rarelift.bench.stats import Estimate

WAYS = UNTOUCHED, BARE, LIFTED = "untouched", "bare operations", "lifted"


def bare(forward: Callable[..., Any], scale: Tensor, share: Tensor) -> Callable[..., Any]:
    """A block of Stable Diffusion 3 with the operations of a lift alone, as `variance` has them for float32."""

    def run(*args: Any, **kwargs: Any) -> tuple[Tensor | None, Tensor]:
        z = kwargs["encoder_hidden_states"]
        kwargs["encoder_hidden_states"] = lifted = torch.lerp(torch.bmm(share, z), z, scale)
        text, image = forward(*args, **kwargs)
        return text if text is None else text - (lifted - z), image

    return run


class Turns:
    """Stands in for the forward of a lifted transformer, and runs each step in all `WAYS`. The output of the lifted one
    is handed on."""

    def __init__(self, transformer: torch.nn.Module, handle: rarelift.Handle) -> None:
        self.root, (self.link,) = transformer.forward, hooks.links_of(transformer)
        self.blocks = [(site.module, hooks.links_of(site.module)[0].inner) for site in handle.sites]
        self.seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        self.outputs: dict[str, Any] = {}
        self.order = np.random.default_rng(0)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        lift = self.link.lift
        assert lift.share is not None, "the words of this call are not known"
        share = lift.share.expand(len(lift.scale), -1, -1)
        spread = [(module, bare(inner, lift.scale, share)) for module, inner in self.blocks]
        ways = {UNTOUCHED: (self.link.inner, self.blocks), BARE: (self.link.inner, spread), LIFTED: (self.root, [])}
        for way in self.order.permutation(WAYS):
            forward, blocks = ways[way]
            with contextlib.ExitStack() as stack:
                for module, inner in blocks:
                    stack.enter_context(mock.patch.dict(vars(module), forward=inner))
                started = time.perf_counter()
                self.outputs[way] = forward(*args, **kwargs)
                self.seconds[way].append(time.perf_counter() - started)
        return self.outputs[LIFTED]


def listened(model: pipelines.Model, draw: Callable[[], object], calls: int) -> Turns:
    """The seconds of every step of some calls of the pipeline, after one that is not counted."""
    transformer = model.pipe.transformer
    with rarelift.apply(model.pipe) as handle, mock.patch.dict(vars(transformer)):
        transformer.forward = turns = Turns(transformer, handle)
        gc.collect()
        gc.disable()
        try:
            draw()
            turns.seconds = {way: [] for way in WAYS}
            for _ in tqdm(range(calls), leave=False):
                draw()
        finally:
            gc.enable()
    return turns


def beyond(seconds: dict[str, list[float]], way: str, steps: int) -> tuple[Estimate, Estimate]:
    """What a way costs beyond untouched: milliseconds for so many steps, and percents of them."""
    untouched, other = np.array(seconds[UNTOUCHED]), np.array(seconds[way])
    return median_of(1000 * steps * (other - untouched)), median_of(100 * (other / untouched - 1))


def told(seconds: dict[str, list[float]], calls: int) -> str:
    steps = len(seconds[UNTOUCHED]) // calls
    whole = 1000 * steps * float(np.median(seconds[UNTOUCHED]))
    lines = [f"{calls} calls of {steps} steps, which take {whole:.0f} ms a call untouched"]
    for way in (BARE, LIFTED):
        more, percents = beyond(seconds, way, steps)
        lines.append(f"{way:15} {more:.2f} ms more a call, {percents:.2f} percent")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1, help="pictures a call (default: 1)")
    parser.add_argument("--calls", type=int, default=40)
    args = parser.parse_args(arguments)
    if args.batch < 1 or args.calls < 1:
        parser.error("--batch and --calls must be at least 1")
    model = pipelines.load()
    turns = listened(model, lambda: call(model, args.batch), args.calls)
    print(told(turns.seconds, args.calls))


if __name__ == "__main__":
    main()
