"""Several workers come to what one does, a killed one included."""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import torch

from rarelift.bench import scale, session
from rarelift.bench.runs import Run, read_scores

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rarelift.bench.drawing import Made
    from rarelift.bench.runs import Plan, Unit

TEXTS = ["a purple lion", "a red crown on the ground", "a lion", "a striped lion in the ground", "a pink crown"]


@pytest.fixture
def plan(saved: Path, tmp_path: Path) -> Plan:
    (tmp_path / "prompts.txt").write_text("\n".join(TEXTS))
    return session.planned(
        str(tmp_path / "prompts.txt"), methods=("untouched", "lift:alpha=3"), seeds=8, model=str(saved), batch_size=4
    )


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many as each of the workers has: sums in another order are rounded otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(scale.share([os.cpu_count() or 1], 2))
    yield
    torch.set_num_threads(before)


def outcome(folder: Path) -> Any:
    lines = {unit: line["scores"] for unit, line in read_scores(folder)}
    return lines, {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.png"))}


def pids() -> list[int]:
    """Of the workers that are up."""
    found = psutil.Process().children(recursive=True)
    return [process.pid for process in found if process.name().startswith("ray::_Actor")]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two workers need two cores")
def test_two_workers_come_to_what_one_process_does_though_one_is_killed(plan: Plan, tmp_path: Path) -> None:
    session.bench(plan, tmp_path / "here")
    run = Run(tmp_path / "there", plan)
    with run.open(), scale.workers(partial(session.worker, plan), 2) as draw:

        def killing() -> Iterator[tuple[list[Unit], list[Made]]]:
            made = draw(run.missing())
            yield next(made)
            first = pids()
            assert len(first) == 2
            os.kill(first[0], signal.SIGKILL)
            yield from made
            assert first[0] not in pids()

        assert run.take(killing()) == plan.total
    assert len((tmp_path / "there" / "scores.jsonl").read_text().splitlines()) == plan.total == 80
    assert outcome(tmp_path / "there") == outcome(tmp_path / "here")


def kinds_of_failure() -> list[tuple[Any, type[Exception], str]]:
    """Functions inside this one travel to the workers whole; this file does not."""

    def absent() -> Any:
        raise ValueError("no such model")

    def short() -> Any:
        def draw(units: list[Unit]) -> list[Made]:
            raise RuntimeError("memory is short for one picture at a time")

        return draw

    def dying() -> Any:
        import os
        import signal

        return lambda units: os.kill(os.getpid(), signal.SIGKILL)

    return [
        (absent, ValueError, "no such model"),
        (short, RuntimeError, "memory is short for one picture at a time"),
        (dying, RuntimeError, "a worker died or was out of reach 4 times"),
    ]


def test_what_goes_wrong_in_a_worker_is_said(plan: Plan, tmp_path: Path) -> None:
    import ray

    run = Run(tmp_path / "run", plan)
    with ray.init(address="local", include_dashboard=False, log_to_driver=False), run.open():
        for make, kind, said in kinds_of_failure():
            with pytest.raises(kind, match=said), scale.workers(make, 1) as draw:
                run.take(draw(run.missing(1)))
            assert ray.is_initialized()  # not ours, so not stopped
    assert not run.done


def test_cores_are_shared_out_and_no_worker_spans_two_machines() -> None:
    assert scale.share([2], 2) == 1
    assert scale.share([16], 3) == 5
    assert scale.share([8, 8], 3) == 4  # 16 // 3 = 5 would leave one without a place
    assert scale.share([2, 0, 16], 2) == 8
    with pytest.raises(ValueError, match="3 workers were asked for, and Ray has 2 CPU cores"):
        scale.share([2], 3)
    with pytest.raises(ValueError, match="Ray has 0 CPU cores"):
        scale.share([], 1)


def test_workers_are_asked_for_rightly(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"), scale.workers(list, 0):
        pass
    with pytest.raises(ValueError, match="address 'auto' is for workers; say how many"):
        session.bench(plan, tmp_path / "run", address="auto")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'rarelift\[ray\]'"), scale.workers(list, 1):
        pass


def test_no_cluster_at_the_address() -> None:
    with pytest.raises(ConnectionError, match="127.0.0.1:1"), scale.workers(list, 1, "127.0.0.1:1"):
        pass
