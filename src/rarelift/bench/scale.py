"""Many workers on a local Ray or a Ray cluster: each holds a pipeline of its own, and only the caller writes.

A batch is the unit of work. It depends on nothing but the plan, so a worker that dies is started anew and its batch
drawn again, and the run comes to the same pictures. Workers need no disk in common with the caller.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..pipelines import first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from .drawing import Made
    from .runs import Unit

RESTARTS = 3  # of one worker; a model that kills its worker every time must come to an end


@contextmanager
def workers(
    make: Callable[[], Callable[[list[Unit]], list[Made]]], n: int, address: str | None = None
) -> Iterator[Callable[[Iterable[list[Unit]]], Iterator[tuple[list[Unit], list[Made]]]]]:
    """`n` processes that each call `make` once; gives a function from batches to made batches, as they come.

    The CPU cores are shared out, as threads, and so are the GPUs: one for each worker, or one for several where there
    are fewer.

    Args:
        make: must be picklable; makes what draws a batch.
        n: at least 1.
        address: of a Ray cluster, or "auto"; None starts a Ray on this machine, and stops it at the end.

    Raises:
        ImportError: ray is not installed.
        ValueError: n is below 1, or above the CPU cores that Ray has.
        ConnectionError: there is no cluster at that address.
        RuntimeError: a worker died, or was out of reach, more than `RESTARTS` times.
    """
    if n < 1:
        raise ValueError(f"workers must be at least 1, got {n}")
    try:
        import ray
        from ray.util import ActorPool
    except ImportError as error:
        raise ImportError("several workers need ray: pip install 'rarelift[ray]'") from error
    ours = not ray.is_initialized()
    if ours:
        _check_address(address)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
        ray.init(address=address or "local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        threads = share([int(node.get("CPU", 0)) for node in nodes], n)
        gpus = sum(int(node.get("GPU", 0)) for node in nodes)
        actor = ray.remote(
            num_cpus=threads,
            num_gpus=1 / math.ceil(n / gpus) if gpus else 0,
            max_restarts=RESTARTS,
            max_task_retries=RESTARTS,
        )
        pool = ActorPool([actor(_Actor).remote(make, threads) for _ in range(n)])

        def run(batches: Iterable[list[Unit]]) -> Iterator[tuple[list[Unit], list[Made]]]:
            try:
                yield from pool.map_unordered(lambda worker, batch: worker.draw.remote(batch), batches)
            except ray.exceptions.RayActorError as error:
                raise RuntimeError(
                    f"a worker died or was out of reach {RESTARTS + 1} times, the last time so: {first_line(error)}; "
                    "what is drawn is kept. Try fewer workers or a smaller batch_size: memory may be short"
                ) from error
            except ray.exceptions.RayTaskError as error:
                raise error.as_instanceof_cause() from None

        yield run
    finally:
        if ours:
            ray.shutdown()


def _check_address(address: str | None) -> None:
    """Ray itself waits for minutes where nothing listens."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon:
        return  # this machine, or "auto"
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"no Ray cluster answers at {address!r} ({error}); give host:port as `ray start --head` prints it"
        ) from error


def share(cores: Sequence[int], n: int) -> int:
    """The most cores that each of `n` workers can have on machines with so many cores; no worker spans two.

    Raises:
        ValueError: there are fewer cores than workers.
    """
    for each in range(max(cores, default=0), 0, -1):
        if sum(have // each for have in cores) >= n:
            return each
    raise ValueError(f"{n} workers were asked for, and Ray has {sum(cores)} CPU cores; ask for so many at most")


class _Actor:
    """A worker's side. The model is loaded at the first batch, so that what goes wrong there is an error of it."""

    def __init__(self, make: Callable[[], Callable[[list[Unit]], list[Made]]], threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._make = functools.cache(make)

    def draw(self, units: list[Unit]) -> tuple[list[Unit], list[Made]]:
        return units, self._make()(units)
