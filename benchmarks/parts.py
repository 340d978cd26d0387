"""Where the time of a lift goes, inside running calls of the bundled model.

    python benchmarks/parts.py
    python benchmarks/parts.py --batch 16

Prints, per joint block, the median microseconds of the operations that spread, of those that take the spread off again,
and of the link around them, beside the block's own; and per call the milliseconds of all links. Taken while the model
runs, since the same operations are two to three times as fast where nothing has put them out of the caches.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import numpy as np
from tqdm import tqdm

import rarelift
from overhead import call
from rarelift import hooks, pipelines

Seconds = dict[str, list[float]]


def timed(function: Callable[..., Any], into: list[float]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        result = function(*args, **kwargs)
        into.append(time.perf_counter() - started)
        return result

    return run


@contextlib.contextmanager
def listening(handle: rarelift.Handle) -> Iterator[Seconds]:
    """Time the parts of a lift while the block of this `with` runs: "spread", "take off", "block" and "link", which
    holds the other three."""
    found: Seconds = defaultdict(list)
    with contextlib.ExitStack() as stack:
        for name, part in (("spread_by", "spread"), ("take_off", "take off")):
            stack.enter_context(mock.patch.object(hooks, name, timed(getattr(hooks, name), found[part])))
        for site in handle.sites:
            link = hooks.links_of(site.module)[0]
            stack.enter_context(mock.patch.object(link, "inner", timed(link.inner, found["block"])))
            stack.enter_context(mock.patch.object(site.module, "forward", timed(site.module.forward, found["link"])))
        yield found


def told(found: Seconds, calls: int) -> str:
    links = np.array(found["link"]) - np.array(found["block"])
    rest = links.sum() - sum(found["spread"]) - sum(found["take off"])
    micro = {part: 1e6 * float(np.median(found[part])) for part in ("block", "spread", "take off")}
    return (
        f"a block takes {micro['block']:.0f} us; spreading {micro['spread']:.1f}, taking off {micro['take off']:.1f}, "
        f"the link around them {1e6 * rest / len(links):.1f} on average\n"
        f"a call has {len(links) // calls} of them: {1e3 * links.sum() / calls:.2f} ms in all links, "
        f"{100 * links.sum() / sum(found['link']):.2f}% of the blocks' time"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1, help="pictures a call (default: 1)")
    parser.add_argument("--calls", type=int, default=20)
    args = parser.parse_args(arguments)
    if args.batch < 1 or args.calls < 1:
        parser.error("--batch and --calls must be at least 1")
    model = pipelines.load()
    with rarelift.apply(model.pipe) as handle:
        call(model, args.batch)
        with listening(handle) as found:
            for _ in tqdm(range(args.calls), leave=False):
                call(model, args.batch)
    print(told(found, args.calls))


if __name__ == "__main__":
    main()
