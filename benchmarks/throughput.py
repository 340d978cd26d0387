"""What a bench costs beside its pictures, and what a second worker brings.

    python benchmarks/throughput.py              bench against a bare loop over the pipeline, the same batches
    python benchmarks/throughput.py --workers    pictures a second of one and of two Ray workers, by core
    python benchmarks/throughput.py --table      docs/bench.md from the records, nothing is timed

The bench draws, scores, writes every picture and line to a new folder and waits for the disk; the loop only calls
`pipe(...)`. Loading is left out of both. They alternate batch by batch; a round is a whole run, and the ratio is the
median of rounds with a bootstrap interval.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from measure import RESULTS, table, versions, write_section
from overhead import ratio_of
from rarelift.bench import scale, session
from rarelift.bench.drawing import Made, Worker
from rarelift.bench.runs import Plan, Run, Unit

PAGE = Path(__file__).parents[1] / "docs" / "bench.md"
FILE = RESULTS / "throughput.jsonl"
BATCH = 16


def planned(prompts: int, metrics: Sequence[str] = ()) -> Plan:
    plan = session.planned("menagerie-rare", first=prompts, methods=("untouched",), batch_size=BATCH)
    return replace(plan, metrics=tuple(metrics))


def bare(worker: Worker, units: Sequence[Unit]) -> float:
    """Seconds of one call of the pipeline, with nothing around it."""
    model, by_id = worker.model, {prompt.id: prompt.text for prompt in worker.plan.suite.prompts}
    started = time.perf_counter()
    generators = [torch.Generator().manual_seed(unit.seed) for unit in units]
    model.pipe(prompt=[by_id[unit.prompt] for unit in units], generator=generators, **model.defaults)
    return time.perf_counter() - started


def one_round(worker: Worker) -> tuple[float, float]:
    """Seconds of the bare calls for all batches of a plan, and of a run of it in a folder of its own.

    Each batch is drawn both ways before the next, in turns which first: what else the machine does hits both.
    """
    alone: list[float] = []

    def made(run: Run) -> Iterator[tuple[list[Unit], list[Made]]]:
        for i, batch in enumerate(run.missing()):
            if i % 2:
                alone.append(bare(worker, batch))
            yield batch, worker(batch)  # and comes back when the batch is kept
            if not i % 2:
                alone.append(bare(worker, batch))

    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as bar, contextlib.redirect_stderr(bar):
        started = time.perf_counter()
        with Run(Path(folder) / "run", worker.plan).open() as run:
            run.take(made(run))
        return sum(alone), time.perf_counter() - started - sum(alone)


def against_loop(rounds: int, prompts: int) -> list[dict[str, Any]]:
    rows = []
    for metrics in ((), ("attributes", "clip_t")):
        worker = session.worker(planned(prompts, metrics))
        one_round(worker)  # warm
        shown = tqdm(range(rounds), desc=", ".join(metrics) or "no metrics", leave=False)
        alone, benched = np.array([one_round(worker) for _ in shown]).T
        ratio = ratio_of(benched, alone)  # of times, so that it reads as a throughput
        row = {"what": "loop", "metrics": list(metrics), "pictures": prompts, "rounds": rounds}
        rows.append(row | {"seconds": float(np.median(alone)), "ratio": [ratio.value, ratio.low, ratio.high]})
        print(f"metrics {', '.join(metrics) or 'none'}: bench / loop, pictures a second {ratio:.3f}")
    return rows


def by_workers(rounds: int, prompts: int) -> list[dict[str, Any]]:
    """Pictures a second of workers that are up. One worker on one core is what the others are held to."""
    plan = planned(prompts)
    seconds: dict[tuple[int, int], list[float]] = {(1, 1): [], (1, 2): [], (2, 1): []}
    for _ in range(rounds):
        for workers, threads in seconds:
            with scale.workers(partial(_worker, plan, threads), workers) as draw:
                batches = list(Run(Path("unused"), plan).missing())
                for _ in draw(batches[:workers]):
                    pass  # each loads its model
                started = time.perf_counter()
                drawn = sum(len(batch) for _, batch in draw(batches))
                seconds[workers, threads].append((time.perf_counter() - started) / drawn)
    one = np.array(seconds[1, 1])
    rows = []
    for (workers, threads), taken in seconds.items():
        efficiency = ratio_of(np.array(taken) * workers * threads, one)
        row = {"what": "workers", "workers": workers, "threads": threads, "pictures": prompts, "rounds": rounds}
        rows.append(
            row | {"rate": 1 / float(np.median(taken)), "ratio": [efficiency.value, efficiency.low, efficiency.high]}
        )
        print(f"{workers} workers of {threads} threads: {rows[-1]['rate']:.2f} pictures/s, a core {efficiency:.3f}")
    return rows


def _worker(plan: Plan, threads: int) -> Worker:
    torch.set_num_threads(threads)
    return session.worker(plan)


def written() -> str:
    """The section of docs/bench.md."""
    found = [json.loads(line) for line in FILE.read_text().splitlines()]
    last = {
        (row["what"], *map(str, (row.get("metrics"), row.get("workers"), row.get("threads")))): row for row in found
    }

    def interval(row: dict[str, Any]) -> str:
        value, low, high = row["ratio"]
        return f"{value:.3f} [{low:.3f}, {high:.3f}]"

    loops = [
        (", ".join(row["metrics"]) or "none", str(row["pictures"]), str(row["rounds"]), interval(row))
        for row in last.values()
        if row["what"] == "loop"
    ]
    workers = [
        (str(row["workers"]), str(row["threads"]), str(row["rounds"]), f"{row['rate']:.2f}", interval(row))
        for row in last.values()
        if row["what"] == "workers"
    ]
    parts = [table(("metrics", "pictures", "rounds", "bench / loop, pictures a second"), loops)]
    if workers:
        header = ("workers", "threads each", "rounds", "pictures a second", "a core, against one worker on one core")
        parts.append(table(header, workers))
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--prompts", type=int, default=64, help="pictures a round (default: 64)")
    parser.add_argument("--workers", action="store_true")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args(arguments)
    if not args.table:
        if args.rounds < 2 or args.prompts < BATCH:
            parser.error(f"--rounds must be at least 2 and --prompts at least {BATCH}")
        rows = (by_workers if args.workers else against_loop)(args.rounds, args.prompts)
        about = {"versions": versions(), "cores": os.cpu_count()}
        with FILE.open("a") as file:
            file.writelines(json.dumps(row | about) + "\n" for row in rows)
    write_section(PAGE, "throughput", written())
    print(PAGE)


if __name__ == "__main__":
    main()
