"""What torch.compile makes of a joint block, untouched and lifted, at a released model's size.

    python benchmarks/graphs.py                        writes docs/overhead.md
    python benchmarks/graphs.py --family flux qwen     prints these alone

No GPU is needed and nothing is computed: the tensors are fakes, of the released width and number of tokens, in bf16 on
a CPU, and inductor is stopped once it has put its kernels into order. Shows for each class of joint block how many
kernels it takes (calls of libraries among them), how many of the tensors given to it it changes, and the peak of memory
that inductor reckons with in the order of the model's code and in the one it settles for. Where the two are equal, the
order is that of the model's code.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import diffusers
import torch
import torch._dynamo
import torch._functorch.config
import torch._inductor.exc
import torch._inductor.memory
import torch._inductor.scheduler
from torch._subclasses import FakeTensorMode
from tqdm import tqdm

import rarelift
from measure import table, write_section
from overhead import MIB, PAGE, step
from rarelift.locate import locate
from sizes import SIZES, Size


class Stopped(Exception):
    """Inductor has come as far as is wanted."""


@dataclass(frozen=True)
class Order:
    """Kernels of a graph, tensors of its caller that it changes, bytes at the peak as written and as settled for."""

    kernels: int
    changed: int
    written: int
    settled: int


def order_of(model: torch.nn.Module, arguments: dict[str, Any], block: torch.nn.Module) -> Order:
    """How inductor orders a block of a model of fake tensors."""
    found: list[Order] = []
    reorder = torch._inductor.memory.reorder_for_peak_memory

    def stop(nodes: Any, buffers: Any, fused: Any, inputs: Any, outputs: Any) -> Any:
        def peak(these: Any) -> int:
            freeable = torch._inductor.memory.prepare_planning_info(these, buffers, fused, inputs, outputs)[1]
            return int(torch._inductor.memory.estimate_peak_memory(these, freeable, outputs)[0])

        settled = reorder(nodes, buffers, fused, inputs, outputs)
        changed = torch._inductor.virtualized.V.graph.mutated_inputs
        found.append(Order(len(nodes), len(changed), peak(nodes), peak(settled)))
        raise Stopped

    torch._dynamo.reset()
    block.compile(fullgraph=True, dynamic=False)
    uncached = torch._inductor.config.patch(fx_graph_cache=False)
    unsaved = torch._functorch.config.patch(enable_autograd_cache=False)
    with uncached, unsaved, mock.patch.object(torch._inductor.memory, "reorder_for_peak_memory", stop):
        try:
            step(model, arguments)
        except torch._inductor.exc.InductorError as error:
            if not isinstance(error.inner_exception, Stopped):
                raise
    if not found:
        raise RuntimeError("inductor looked for no order: its reorder_for_peak_memory is off, or torch has changed")
    return found[0]


def faked(size: Size) -> tuple[torch.nn.Module, dict[str, Any]]:
    """A model in bf16 and the arguments of a call, without memory; within a `FakeTensorMode`."""
    with torch._subclasses.fake_tensor.unset_fake_temporarily(), torch.device("meta"):
        model: torch.nn.Module = getattr(diffusers, size.model)(**size.config)
        torch.nn.Module.to(model, torch.bfloat16)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        arguments = size.call(size)
    finally:
        torch.set_default_dtype(before)
    return model.to_empty(device="cpu").eval().requires_grad_(False), arguments


def orders(size: Size) -> Iterator[tuple[str, Order, Order]]:
    """The class of each kind of joint block, and its orders untouched and lifted."""
    names: dict[str, str] = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        model, _ = faked(size)
        for site in locate(model):
            names.setdefault(type(site.module).__name__, site.name)
        for kind, name in names.items():
            sides = []
            for lifted in (False, True):
                model, arguments = faked(size)
                if lifted:
                    rarelift.apply(model)
                sides.append(order_of(model, arguments, model.get_submodule(name)))
            yield kind, sides[0], sides[1]


def render(names: Sequence[str]) -> str:
    rows = []
    for name in tqdm(names, leave=False):
        for kind, *sides in orders(SIZES[name].reduced(2, None)):
            for side, order in zip(("untouched", "lifted"), sides, strict=True):
                peaks = [f"{peak / MIB:.1f}" for peak in (order.written, order.settled)]
                rows.append([name, kind, side, str(order.kernels), str(order.changed), *peaks])
    return table(["model", "block", "", "kernels", "tensors changed", "peak as written, MiB", "as settled, MiB"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="+", choices=list(SIZES), help="some of the models, for the page all")
    args = parser.parse_args(arguments)
    text = render(args.family or list(SIZES))
    print(text)
    if not args.family:
        write_section(PAGE, "graphs", text)


if __name__ == "__main__":
    main()
