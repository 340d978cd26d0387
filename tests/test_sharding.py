"""Two processes that share a model: context parallelism, where each has half of the text and spreads it about the mean
of the whole; tensor parallelism and FSDP, where each has all of the text and the lift has nothing to do with the other.

Run as a script, this file is one of the two processes.
"""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from diffusers.hooks import tensor_parallel
from torch import Tensor

import rarelift
from families import FAMILIES, B, N, cast, ids, text

LENGTH = 8  # text tokens: a number that two processes can share
NAMES = ("Flux", "Flux2", "QwenImage")
SETTINGS: tuple[dict[str, Any], ...] = ({}, {"carry": True, "alpha": 1.2}, {"tokens": "all", "alpha": 2.0})


def arguments(name: str) -> dict[str, Any]:
    call = FAMILIES[name].arguments()
    torch.manual_seed(5)
    call["encoder_hidden_states"] = cast(text(length=LENGTH), torch.float32)
    call["hidden_states"] = torch.randn(B, N, call["hidden_states"].shape[2])
    if "txt_ids" in call:
        call["txt_ids"] = ids(LENGTH, 3) if name == "Flux" else ids(B, LENGTH, 4)
    if name == "QwenImage":  # all of the padding is with the second process
        call["encoder_hidden_states_mask"] = torch.ones(B, LENGTH, dtype=torch.bool)
        call["encoder_hidden_states_mask"][1, -3:] = False
    return call


@torch.no_grad()
def outputs(model: Any, name: str) -> list[Tensor]:
    """Untouched, with each of the settings, and after removal."""
    run = lambda: model(**arguments(name), return_dict=False)[0].clone()  # noqa: E731
    found = [run()]
    for settings in SETTINGS:
        with rarelift.apply(model, **settings):
            found.append(run())
    return [*found, run()]


def shared(model: Any) -> None:
    model.set_attention_backend("native")
    model.enable_parallelism(config=parallel(2))


def parallel(processes: int) -> Any:
    from diffusers import ContextParallelConfig

    return ContextParallelConfig(ulysses_degree=processes)


def by_tensors(model: Any) -> None:
    from diffusers import TensorParallelConfig

    model.set_attention_backend("native")
    model.enable_parallelism(config=TensorParallelConfig(tp_degree=2))


def by_fsdp(model: Any) -> None:
    from torch.distributed.fsdp import fully_shard

    mesh = dist.init_device_mesh("cpu", (2,))
    for block in (*model.transformer_blocks, *getattr(model, "single_transformer_blocks", ())):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


WHOLE_TEXT = {"tensor": by_tensors, "fsdp": by_fsdp}


def process(rank: int, folder: Path) -> None:
    torch._C._get_accelerator = lambda *_: torch.device("cpu")  # diffusers asks for a card, and there is none
    tensor_parallel._SUPPORTED_TP_DEVICES = ("cpu",)
    torch.accelerator.device_count = lambda: 1
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for name in NAMES:
        first, second = FAMILIES[name].make(), FAMILIES[name].make()
        shared(first)
        handle = rarelift.apply(second, alpha=3.0)  # lifted before it is shared
        shared(second)
        with torch.no_grad():
            second(**arguments(name), return_dict=False)
        handle.set(alpha=1.5)
        with torch.no_grad():
            late = second(**arguments(name), return_dict=False)[0].clone()
        found[name] = [*outputs(first, name), late]
        for kind, put_on in WHOLE_TEXT.items():
            model = FAMILIES[name].make()
            put_on(model)
            assert any(type(weight).__name__ == "DTensor" for weight in model.parameters())
            found[f"{name}, {kind}"] = outputs(model, name)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(folder)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        for rank in range(2)
    ]
    try:
        said = [one.communicate(timeout=200)[1].decode() for one in started]
    finally:
        for one in started:
            one.kill()
    assert [one.returncode for one in started] == [0, 0], "\n".join(said)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed")
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_compute_what_one_does(name: str, ranks: list[dict[str, list[Tensor]]]) -> None:
    plain, *lifted, after = outputs(FAMILIES[name].make(), name)
    expected = [plain, *lifted, after, lifted[0]]
    for one in lifted:
        assert (one - plain).abs().max() > 1e-3
    for rank in ranks:
        for found, value in zip(rank[name], expected, strict=True):
            torch.testing.assert_close(found, value, atol=1e-5, rtol=0)
        assert torch.equal(rank[name][0], rank[name][len(SETTINGS) + 1])


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed")
@pytest.mark.parametrize("kind", WHOLE_TEXT)
@pytest.mark.parametrize("name", NAMES)
def test_weights_that_are_split_leave_the_lift_alone(
    name: str, kind: str, ranks: list[dict[str, list[Tensor]]]
) -> None:
    expected = outputs(FAMILIES[name].make(), name)
    for rank in ranks:
        for found, value in zip(rank[f"{name}, {kind}"], expected, strict=True):
            torch.testing.assert_close(found, value, atol=1e-5, rtol=0)
        assert torch.equal(rank[f"{name}, {kind}"][0], rank[f"{name}, {kind}"][-1])


def test_splitting_that_is_not_known_is_refused() -> None:
    for name in ("MiniMaxH3", "SD3"):
        model = FAMILIES[name].make()
        split = types.SimpleNamespace(context_parallel_config=object())
        handle = rarelift.apply(model)
        model._parallel_config = split
        with pytest.raises(ValueError, match=f"splits the text of {FAMILIES[name].model} in a way"):
            model(**FAMILIES[name].arguments())
        handle.remove()
        with pytest.raises(ValueError, match="lift it without `enable_parallelism`"):
            rarelift.apply(model)


if __name__ == "__main__":
    process(int(sys.argv[1]), Path(sys.argv[2]))
