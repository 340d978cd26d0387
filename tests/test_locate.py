from __future__ import annotations

import importlib.util
import types
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import pytest
import torch
from torch import nn

from rarelift import streams
from rarelift.locate import UnsupportedModelError, is_compiled, locate
from rarelift.streams import CROSS_ATTENTION, FAMILIES, Family, Segment, register

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]


def test_pipeline_and_transformer_give_the_same_blocks(pipe: diffusers.StableDiffusion3Pipeline) -> None:
    sites = locate(pipe)
    assert [s.name for s in sites] == [f"transformer_blocks.{i}" for i in range(3)]
    assert sites == locate(pipe.transformer)
    assert all(s.module is b for s, b in zip(sites, pipe.transformer.transformer_blocks, strict=True))


def test_compiled_wrappers_are_opened(transformer: Any) -> None:
    assert locate(torch.compile(transformer, backend="eager")) == locate(transformer)
    assert not is_compiled(transformer)
    blocks = transformer.transformer_blocks
    blocks[1] = torch.compile(blocks[1], backend="eager")
    assert is_compiled(blocks[1])
    assert locate(transformer)[1].module is blocks[1]._orig_mod
    transformer.compile(backend="eager")
    assert is_compiled(transformer)


def test_second_transformer(transformer: Any) -> None:
    both = types.SimpleNamespace(transformer=transformer, transformer_2=type(transformer)(**_config()))
    assert [s.name for s in locate(both)][3:] == ["transformer_2.transformer_blocks.0"]


def _config() -> dict[str, int]:
    return {"num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 1, "caption_projection_dim": 8}


@pytest.mark.parametrize("name", ["PixArtTransformer2DModel", "WanTransformer3DModel", "SanaTransformer2DModel"])
def test_cross_attention_models_are_refused_with_the_reason(name: str) -> None:
    model = type(name, (nn.Module,), {})()
    for target in (model, types.SimpleNamespace(transformer=model)):
        with pytest.raises(
            UnsupportedModelError, match=f"{name}.*no joint attention.*cross-attention.*SD3Transformer2D"
        ):
            locate(target)


def test_unknown_targets() -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"Linear, which is not a model.*Supported: .*SD3Transformer2DModel"
    ):
        locate(nn.Linear(1, 1))
    with pytest.raises(UnsupportedModelError, match="int: it has no `transformer`"):
        locate(3)
    unet = type("UNet2DConditionModel", (nn.Module,), {})()
    with pytest.raises(UnsupportedModelError, match=r"UNet2DConditionModel, which has no joint.*cross_attention=True"):
        locate(types.SimpleNamespace(unet=unet))


def test_joint_model_without_its_blocks(transformer: Any) -> None:
    transformer.transformer_blocks[2] = nn.Linear(1, 1)
    with pytest.raises(UnsupportedModelError, match=r"transformer_blocks\[2\] is a Linear.*JointTransformerBlock"):
        locate(transformer)
    transformer.transformer_blocks = nn.ModuleList()
    with pytest.raises(UnsupportedModelError, match="empty"):
        locate(transformer)


def test_names_exist_in_diffusers() -> None:
    missing = [n for n in (*CROSS_ATTENTION, *FAMILIES) if not hasattr(diffusers, n) and not _defined(n)]
    assert not missing


def _defined(name: str) -> bool:
    import diffusers.models.transformers as home

    return hasattr(home, name)


@pytest.fixture
def _clean_registry() -> Iterator[None]:
    before = dict(FAMILIES)
    yield
    FAMILIES.clear()
    FAMILIES.update(before)


@pytest.mark.usefixtures("_clean_registry")
def test_register_a_model_of_ones_own() -> None:
    class MyBlock(nn.Module):
        pass

    class MyModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stack = nn.ModuleList([MyBlock(), MyBlock()])

    register(Family(model="MyModel", blocks="stack", block="MyBlock", layout="dual", text="words", returns=1))
    assert [s.name for s in locate(MyModel())] == ["stack.0", "stack.1"]


def test_register_refuses_what_cannot_work() -> None:
    good = Family(model="M", blocks="b", block="B", layout="packed", text="x")
    for change, message in (
        ({"layout": "triple"}, r"M\.b: layout must be one of \('dual', 'packed'\), got 'triple'"),
        ({"span": "middle"}, "span must be one of"),
        ({"token_dim": 2}, "token_dim must be one of"),
        ({"returns": 2}, "returns must be one of"),
        ({"mask": "m", "segments": (Segment((("tokenizer", "prompt"),), "text_encoder", "max_length"),)}, "segments"),
    ):
        with pytest.raises(ValueError, match=message):
            register(replace(good, **change))
    with pytest.raises(ValueError, match="no joint attention"):
        register(Family(model="WanTransformer3DModel", blocks="blocks", block="B", layout="dual", text="x"))
    assert "M" not in streams.FAMILIES


def test_the_page_of_models_is_the_table() -> None:
    spec = importlib.util.spec_from_file_location("make_models", ROOT / "docs" / "make_models.py")
    assert spec is not None
    assert spec.loader is not None
    make_models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_models)
    text = make_models.PAGE.read_text(encoding="utf-8")
    assert all(name in make_models.table() for name in FAMILIES if "ControlNet" not in name)
    assert text == make_models.page(text), "run python docs/make_models.py"
    stale = text.replace("| SD3Transformer2DModel |", "| SD4Transformer2DModel |")
    assert make_models.page(stale) == text != stale
