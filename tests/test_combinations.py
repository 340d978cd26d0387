"""What people combine rarelift with: adapters, wrappers, offloading, quantised weights, ControlNets, threads."""

from __future__ import annotations

import inspect
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import pytest
import torch
import torch.distributed as dist
from torch import nn

import rarelift
from families import FAMILIES, B, noise
from rarelift import attach, locate
from rarelift.hooks import links_of
from rarelift.variance import spread
from tiny_pipelines import PIPELINES, PROMPT, draw

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

diffusers.utils.logging.set_verbosity_error()
FLUX = FAMILIES["Flux"]


@torch.no_grad()
def run(model: Any, name: str = "Flux", **more: Any) -> Tensor:
    return model(**FAMILIES[name].arguments(), **more, return_dict=False)[0].clone()  # type: ignore[no-any-return]


def lifted(model: Any, **settings: Any) -> Tensor:
    with rarelift.apply(model, **settings):
        return run(model)


def in_any_order(model: Any, put_on: Callable[[], object], take_off: Callable[[], object]) -> None:
    """Ours and theirs, put on and taken off in every order; theirs changes the output by rounding at most."""
    plain, alone = run(model), lifted(model)
    assert not torch.equal(plain, alone)
    for theirs_first_on in (True, False):
        for theirs_first_off in (True, False):
            if theirs_first_on:
                put_on()
            handle = rarelift.apply(model)
            if not theirs_first_on:
                put_on()
            assert torch.equal(run(model), alone)
            assert handle.calls == len(handle.sites)
            if theirs_first_off:
                take_off()
                assert torch.equal(run(model), alone)
                handle.remove()
            else:
                handle.remove()
                assert torch.equal(run(model), plain)
                take_off()
            assert torch.equal(run(model), plain)
            assert not any(links_of(m) for m in model.modules())


# ---------------------------------------------------------------- adapters


def add_lora(model: Any) -> None:
    from peft import LoraConfig

    torch.manual_seed(2)
    model.add_adapter(
        LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "add_k_proj"], init_lora_weights=False), "style"
    )


@pytest.mark.parametrize("ours_first", [True, False])
def test_adapters(ours_first: bool) -> None:
    model = FLUX.make()
    plain, alone = run(model), lifted(model)
    handle = rarelift.apply(model) if ours_first else None
    add_lora(model)
    handle = handle or rarelift.apply(model)
    with_lora = run(model)
    assert not torch.equal(with_lora, alone)
    model.fuse_lora()
    torch.testing.assert_close(run(model), with_lora, atol=1e-5, rtol=1e-4)
    model.unfuse_lora()
    model.disable_adapters()
    torch.testing.assert_close(run(model), alone, atol=1e-5, rtol=1e-4)  # fusing and unfusing rounds the weights
    model.enable_adapters()
    handle.remove()
    styled = run(model)
    with rarelift.apply(model):
        torch.testing.assert_close(run(model), with_lora, atol=1e-5, rtol=1e-4)
        model.unload_lora()
        torch.testing.assert_close(run(model), alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(run(model), plain, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(styled, plain, atol=1e-4)


def test_lora_weights_of_a_pipeline(tmp_path: Path) -> None:
    from peft.utils import get_peft_model_state_dict

    case = PIPELINES["Flux"]
    donor, pipe = case.pipe(), case.pipe()
    add_lora(donor.transformer)
    weights = get_peft_model_state_dict(donor.transformer, adapter_name="style")
    diffusers.FluxPipeline.save_lora_weights(tmp_path, transformer_lora_layers=weights)
    call = case.arguments(PROMPT)
    plain = draw(pipe, call)
    with rarelift.apply(donor):
        expected = draw(donor, call)
    handle = rarelift.apply(pipe)
    alone = draw(pipe, call)
    pipe.load_lora_weights(tmp_path)
    assert torch.equal(draw(pipe, call), expected)
    assert not torch.equal(expected, alone)
    pipe.unload_lora_weights()
    assert torch.equal(draw(pipe, call), alone)
    handle.remove()
    assert torch.equal(draw(pipe, call), plain)


def test_ip_adapter() -> None:
    model, width = FLUX.make(), 32
    torch.manual_seed(4)
    attention = {}
    for i in range(2):
        for kind in ("k", "v"):
            attention |= {f"{i}.to_{kind}_ip.weight": noise(width, 16), f"{i}.to_{kind}_ip.bias": noise(width)}
    image = {"proj.weight": noise(64, 8), "proj.bias": noise(64), "norm.weight": noise(16), "norm.bias": noise(16)}
    picture = noise(B, 1, 8)
    without = run(model)
    model._load_ip_adapter_weights([{"image_proj": image, "ip_adapter": attention}], low_cpu_mem_usage=False)

    def pictured() -> Tensor:
        return run(model, joint_attention_kwargs={"ip_adapter_image_embeds": [picture]})

    plain = pictured()
    assert not torch.equal(plain, without)
    with rarelift.apply(model, alpha=1.0) as handle:
        assert torch.equal(pictured(), plain)
        handle.set(alpha=1.5)
        assert not torch.equal(pictured(), plain)
        assert handle.calls == 2 * FLUX.blocks
    assert torch.equal(pictured(), plain)


# ---------------------------------------------------------------- wrappers


@pytest.fixture
def one_process(tmp_path: Path) -> Any:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def wrapped_by_peft(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(target_modules=["to_q"]))


def wrapped_for_data(model: Any) -> Any:
    return nn.parallel.DistributedDataParallel(model)


@pytest.mark.parametrize("wrap", [wrapped_by_peft, wrapped_for_data])
def test_wrappers_are_seen_through(wrap: Callable[[Any], Any], one_process: None) -> None:
    model = FLUX.make()
    plain, alone = run(model), lifted(model)
    outer = wrap(model)
    assert torch.equal(run(outer), plain)
    with rarelift.apply(outer) as handle:
        assert torch.equal(run(outer), alone)
        assert handle.calls == FLUX.blocks
    assert torch.equal(run(outer), plain)
    with rarelift.apply(model):
        assert torch.equal(run(outer), alone)
        rarelift.remove(outer)
        assert torch.equal(run(outer), plain)


class Mine(diffusers.FluxTransformer2DModel):  # type: ignore[misc]
    """A user's own."""


def test_a_subclass_of_a_known_transformer() -> None:
    torch.manual_seed(0)
    model = Mine(**FLUX.config).eval()
    assert len(rarelift.inspect(model).blocks) == FLUX.blocks
    plain = run(model)
    assert not torch.equal(lifted(model), plain)
    assert torch.equal(run(model), plain)


# ---------------------------------------------------------------- where the weights are


def test_offloading_by_accelerate() -> None:
    """What `enable_sequential_cpu_offload` does to a transformer."""
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_module

    model = FLUX.make()
    in_any_order(
        model,
        lambda: cpu_offload(model, execution_device=torch.device("cpu")),
        lambda: remove_hook_from_module(model, recurse=True),
    )


@pytest.mark.parametrize("how", ["enable_model_cpu_offload", "enable_group_offload"])
@pytest.mark.parametrize("ours_first", [True, False])
def test_offloading_of_a_pipeline(how: str, ours_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = PIPELINES["SD3"]
    pipe, call = case.pipe(), case.arguments(PROMPT, guided=True)
    plain = draw(pipe, call)
    with rarelift.apply(pipe, branch="cond", stop=0.5):
        alone = draw(pipe, call)
    assert not torch.equal(plain, alone)

    def offload() -> None:
        if how == "enable_group_offload":
            pipe.enable_group_offload(torch.device("cpu"), num_blocks_per_group=1)
            assert hasattr(pipe.transformer, "_diffusers_hook")
        else:
            pipe.enable_model_cpu_offload(device="cpu")
            assert hasattr(pipe.transformer, "_hf_hook")

    # there is no card here, and diffusers asks its memory to be emptied
    monkeypatch.setattr(torch.cpu, "empty_cache", lambda: None, raising=False)
    if not ours_first:
        offload()
    handle = rarelift.apply(pipe, branch="cond", stop=0.5)
    if ours_first:
        offload()
    assert torch.equal(draw(pipe, call), alone)
    assert torch.equal(draw(pipe, call), alone)
    handle.remove()
    assert torch.equal(draw(pipe, call), plain)
    assert not any(links_of(m) for m in pipe.transformer.modules())


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_group_offloading(kind: str) -> None:
    from diffusers.hooks import HookRegistry

    model, names = FLUX.make(), ("group_offloading", "layer_execution_tracker", "lazy_prefetch_group_offloading")
    groups = {"num_blocks_per_group": 1} if kind == "block_level" else {}

    def take_off() -> None:
        registry = HookRegistry.check_if_exists_or_initialize(model)
        for name in names:
            registry.remove_hook(name, recurse=True)

    in_any_order(model, lambda: model.enable_group_offload(torch.device("cpu"), offload_type=kind, **groups), take_off)


@pytest.mark.parametrize("ours_first", [True, False])
def test_weights_stored_in_eight_bits(ours_first: bool) -> None:
    model = FLUX.make(torch.bfloat16)

    def output() -> Tensor:
        with torch.no_grad():
            return model(**FLUX.arguments(torch.bfloat16), return_dict=False)[0]  # type: ignore[no-any-return]

    handle = rarelift.apply(model) if ours_first else None
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    handle = handle or rarelift.apply(model)
    apart = output()
    assert apart.isfinite().all()
    assert model.transformer_blocks[0].attn.to_q.weight.dtype == torch.float8_e4m3fn
    handle.set(alpha=1.0)
    exact = output()
    assert handle.calls == 2 * FLUX.blocks
    handle.remove()
    assert torch.equal(output(), exact)
    assert not torch.equal(apart, exact)


def test_gguf(tmp_path: Path) -> None:
    import gguf

    model = FAMILIES["QwenImage"].make()
    model.save_config(tmp_path)
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "qwen_image")
    for name, value in model.state_dict().items():
        whole = value.ndim < 2 or value.shape[-1] % 32 or "blocks" not in name
        kind = gguf.GGMLQuantizationType.F32 if whole else gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(value.numpy(), kind), raw_dtype=kind)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    loaded = diffusers.QwenImageTransformer2DModel.from_single_file(
        str(tmp_path / "tiny.gguf"),
        config=str(tmp_path),
        quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=torch.float32),
        torch_dtype=torch.float32,
    )
    assert loaded.transformer_blocks[0].attn.to_q.weight.dtype == torch.uint8
    plain = run(loaded, "QwenImage")
    with rarelift.apply(loaded, alpha=1.0) as handle:
        assert torch.equal(run(loaded, "QwenImage"), plain)
        handle.set(alpha=1.5)
        assert not torch.equal(run(loaded, "QwenImage"), plain)
    assert torch.equal(run(loaded, "QwenImage"), plain)


@pytest.mark.parametrize("ours_first", [True, False])
def test_torchao_int8(ours_first: bool) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = FLUX.make()
    exact = run(model)
    handle = rarelift.apply(model) if ours_first else None
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    assert type(model.transformer_blocks[0].attn.to_q.weight).__name__ == "Int8Tensor"
    handle = handle or rarelift.apply(model)
    apart = run(model)
    handle.set(alpha=1.0)
    plain = run(model)
    assert handle.calls == 2 * FLUX.blocks
    handle.remove()
    assert torch.equal(run(model), plain)
    assert 0 < (plain - exact).abs().max() < 0.05  # weights in eight bits
    assert not torch.allclose(apart, plain, atol=1e-4)


# ---------------------------------------------------------------- cache-dit


def cache_dit(model: Any, threshold: float) -> tuple[Callable[[], object], Callable[[], object]]:
    """Ways to put it on and take it off; steps that differ by less than the threshold are taken from the cache."""
    module = pytest.importorskip("cache_dit")
    config = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "max_warmup_steps": 0, "num_inference_steps": 2}

    def put_on() -> object:
        chosen = module.DBCacheConfig(residual_diff_threshold=threshold, **config)
        return module.enable_cache(model, cache_config=chosen)

    return put_on, lambda: module.disable_cache(model)


def test_cache_dit_that_finds_nothing_to_save() -> None:
    model = FLUX.make()
    in_any_order(model, *cache_dit(model, 0.0))


def test_cache_dit_saves_lifted_blocks_too() -> None:
    model = FLUX.make()
    put_on, take_off = cache_dit(model, 1e6)
    alone = lifted(model)
    put_on()
    with rarelift.apply(model) as handle:
        assert torch.equal(run(model), alone)
        first = handle.calls
        again = run(model)
        assert 0 < handle.calls - first < first
        torch.testing.assert_close(again, alone, atol=1e-5, rtol=1e-4)
        take_off()
        each = tuple(3.0 * (i + 1) for i in range(B))
        handle.set(alpha=each)  # new tensors, which blocks read only where the transformer's own link has run
        assert torch.equal(run(model), lifted(model, alpha=each))


# ---------------------------------------------------------------- ControlNets

CONTROLNETS: dict[str, tuple[str, dict[str, Any]]] = {
    "SD3": ("SD3ControlNetModel", {}),
    "Flux": ("FluxControlNetModel", {}),
    "Flux, union": ("FluxControlNetModel", {"num_mode": 3}),
    "QwenImage": ("QwenImageControlNetModel", {}),
}


def controlnet(name: str) -> Any:
    kind, more = CONTROLNETS[name]
    made = getattr(diffusers, kind)
    accepted = inspect.signature(made.__init__).parameters
    known = {k: v for k, v in FAMILIES[name.partition(",")[0]].config.items() if k in accepted}
    torch.manual_seed(0)
    model = made(**{**known, **more}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() and (parameter == 0).all():
                parameter.normal_(std=0.2)
    return model


@torch.no_grad()
def control(model: Any, name: str, **changed: Any) -> Tensor:
    call = FAMILIES[name.partition(",")[0]].arguments() | changed
    call["controlnet_cond"] = torch.ones_like(call["hidden_states"])
    if name == "Flux, union":
        call["controlnet_mode"] = torch.ones(B, 1, dtype=torch.long)
    found = model(**call, return_dict=False)
    nested = [[part] if isinstance(part, torch.Tensor) else part for part in found if part is not None]
    return torch.cat([sample.flatten() for part in nested for sample in part])


@pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")  # by diffusers itself
@pytest.mark.parametrize("name", CONTROLNETS)
def test_controlnets_are_lifted_on_request(name: str) -> None:
    model = controlnet(name)
    plain = control(model, name)
    blocks = len(model.transformer_blocks) + len(getattr(model, "single_transformer_blocks", ()))
    read: list[Tensor] = []  # the text that the first block reads
    with rarelift.apply(model, alpha=1.0) as handle:
        link = links_of(model.transformer_blocks[0])[0]
        bare = link.inner

        def listening(*args: Any, **kwargs: Any) -> Any:
            read.append(kwargs["encoder_hidden_states"])
            return bare(*args, **kwargs)

        link.inner = listening
        assert torch.equal(control(model, name), plain)
        assert len(handle.sites) == handle.calls == blocks
        handle.set(alpha=1.5)
        assert not torch.equal(control(model, name), plain)
        link.inner = bare
    assert torch.equal(control(model, name), plain)
    mode = 1 if "union" in name else 0
    assert torch.equal(read[0][:, :mode], read[1][:, :mode])  # the token of the mode is no text
    words = read[0][:, mode:]
    valid = FAMILIES["QwenImage"].arguments()["encoder_hidden_states_mask"] if name == "QwenImage" else None
    torch.testing.assert_close(read[1][:, mode:], spread(words, 1.5, valid))


def test_controlnets_are_untouched_by_default_and_named() -> None:
    pipe = PIPELINES["SD3"].pipe()
    pipe.controlnet = net = controlnet("SD3")
    plain = control(net, "SD3")
    with rarelift.apply(pipe):
        assert torch.equal(control(net, "SD3"), plain)
        assert ("controlnet", "has joint blocks of its own; rarelift.apply(pipe.controlnet) lifts them") in (
            rarelift.inspect(pipe).left_out
        )
        with rarelift.apply(pipe.controlnet):
            assert not torch.equal(control(net, "SD3"), plain)
            assert not rarelift.inspect(pipe).left_out
        draw(pipe, PIPELINES["SD3"].arguments(PROMPT))
    pipe.controlnet = diffusers.SD3MultiControlNetModel([net])
    assert "rarelift.apply(pipe.controlnet.nets[0]) lifts them" in str(rarelift.inspect(pipe))


# ---------------------------------------------------------------- threads, versions


def test_two_threads() -> None:
    """Two handled pipelines drawing at once draw what each draws alone."""
    cases = [(PIPELINES["SD3"], 1.3), (PIPELINES["Flux"], 1.8)]
    pipes = [case.pipe() for case, _ in cases]
    for pipe, (_, alpha) in zip(pipes, cases, strict=True):
        rarelift.apply(pipe, alpha=alpha, branch="cond", stop=0.75)
    calls = [case.arguments(PROMPT, guided=True) | {"num_inference_steps": 4} for case, _ in cases]
    alone = [draw(pipe, call) for pipe, call in zip(pipes, calls, strict=True)]
    found: dict[int, list[Tensor]] = {0: [], 1: []}
    start = threading.Barrier(2)

    def work(i: int) -> None:
        start.wait()
        for _ in range(4):
            found[i].append(draw(pipes[i], calls[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, pictures in found.items():
        assert len(pictures) == 4
        assert all(torch.equal(one, alone[i]) for one in pictures)


@pytest.mark.parametrize("installed", ["0.39.9", "0.9.1", "0.39.0.dev0"])
def test_an_old_diffusers_is_named(monkeypatch: pytest.MonkeyPatch, installed: str) -> None:
    model = FLUX.make()
    monkeypatch.setattr(locate, "version", lambda _: installed)
    said = f"needs diffusers {locate.OLDEST_DIFFUSERS} or newer, and {installed} is installed: pip install"
    with pytest.raises(ImportError, match=re.escape(said)):
        attach.apply(model)
    assert not any(links_of(m) for m in model.modules())
    monkeypatch.setattr(locate, "version", lambda _: "1.0.0")
    attach.apply(model).remove()


def test_the_oldest_diffusers_is_that_of_pyproject() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert f'"diffusers>={locate.OLDEST_DIFFUSERS}"' in text
