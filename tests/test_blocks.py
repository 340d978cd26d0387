"""Every block class of diffusers is joint, and named by a row of streams.py, or is not, for a reason given here.

A *block class* is a torch module with a forward of its own, defined in `diffusers.models.transformers` or in
`diffusers.models.attention`, whose name has the word Block or Layer in it, or that the sources there put into a
`ModuleList(...)`. The second half catches blocks of other names.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from typing import TYPE_CHECKING

import diffusers.models.attention
import diffusers.models.transformers
from torch import nn

from rarelift.streams import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from types import ModuleType

    import pytest

NOT_JOINT = {
    "its text or audio prompt enters by cross-attention": """
        AceStepTransformerBlock AllegroTransformerBlock AnyFlowTransformerBlock AudioDiTBlock BasicTransformerBlock
        BasicTransformerBlockDreamLite CosmosTransformerBlock FreeNoiseTransformerBlock HeliosTransformerBlock
        HunyuanDiTBlock Kandinsky5TransformerDecoderBlock Kandinsky6FusedTransformerDecoderBlock
        LTX2VideoTransformerBlock
        LTXVideoTransformerBlock LuminaNextDiTBlock SanaTransformerBlock SanaVideoMSCamCtrlBlock
        SanaVideoTransformerBlock SanaWMLTX2RefinerTransformerBlock SkipFFTransformerBlock SkyReelsV2TransformerBlock
        StableAudio3DiTBlock StableAudioDiTBlock Transformer2DModel WanAnimate2TransformerBlock WanTransformerBlock
        WanVACETransformerBlock""",
    "it is a part of a T5 decoder for notes, which cross-attends": """
        DecoderLayer T5FiLMLayer T5LayerCrossAttention T5LayerFFCond T5LayerSelfAttentionCond""",
    "it refines or sums up the text before it meets the image": """
        AudioDiTConvNeXtV2Block BriaFibo2PerceiverLayer HunyuanImageIndividualTokenRefinerBlock
        HunyuanVideo15IndividualTokenRefinerBlock HunyuanVideoIndividualTokenRefinerBlock
        Kandinsky5TransformerEncoderBlock Kandinsky6TransformerEncoderBlock Krea2TextFusionBlock
        MiniMaxH3TokenRefinerBlock""",
    "it works on one modality at a time": "Flux3ModeTransformerBlock",
    "it takes no text": """
        Kandinsky6SRTransformerBlock MiniMaxMusic3DepthDecoderBlock MiniMaxMusic3TransformerBlock MotionEncoderResBlock
        PerceiverAttention PerceiverCrossAttention RFD4ProteinaTrunkLayer SD3SingleTransformerBlock SanaWMConvLayer
        TemporalBasicTransformerBlock WanAnimateFaceBlockCrossAttention""",
    "it makes the output of what the blocks return": """
        AuraFlowPreFinalBlock FinalLayer Ideogram4FinalLayer Kandinsky5OutLayer Kandinsky6OutLayer
        Kandinsky6OutLayerAudio Kandinsky6SROutLayer Krea2FinalLayer T2IFinalLayer""",
    "it is a part of a block that is lifted": """
        HiDreamImageFeedForwardSwiGLU HiDreamImageSingleTransformerBlock HiDreamImageTransformerBlock
        NucleusMoELayer""",
    "it places tokens": "QwenEmbedLayer3DRope",
}


def modules() -> list[ModuleType]:
    package = diffusers.models.transformers
    inside = (importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__))
    return [*inside, diffusers.models.attention]


def block_classes(places: Iterable[ModuleType]) -> set[str]:
    defined, listed = set(), set()
    for place in places:
        for name, value in vars(place).items():
            own = inspect.isclass(value) and value.__module__ == place.__name__
            if own and issubclass(value, nn.Module) and "forward" in vars(value):
                defined.add(name)
        for call in ast.walk(ast.parse(inspect.getsource(place))):
            if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("ModuleList"):
                listed |= {node.id for node in ast.walk(call) if isinstance(node, ast.Name)}
    return {name for name in defined if name in listed or re.search(r"(Block|Layer)(?![a-z]|Norm)", name)}


def known() -> tuple[set[str], set[str]]:
    """Names that are joint, and names that are not."""
    joint = {name for families in FAMILIES.values() for family in families for name in family.block_names}
    return joint, {name for names in NOT_JOINT.values() for name in names.split()}


def unclassified(places: Iterable[ModuleType]) -> set[str]:
    joint, others = known()
    return block_classes(places) - joint - others


def test_every_block_class_is_classified() -> None:
    new = unclassified(modules())
    assert not new, f"joint? add a row to streams.py; else a name to NOT_JOINT: {sorted(new)}"


def test_no_name_is_stale_or_both() -> None:
    joint, others = known()
    assert not joint & others
    assert not (joint | others) - block_classes(modules())
    assert sum(len(names.split()) for names in NOT_JOINT.values()) == len(others)


def test_an_invented_block_would_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes = ("MarvelTransformerBlock", "MarvelMixer", "MarvelAttention", "MarvelLayerNorm")
    source = ["from torch import nn"]
    source += [f"class {name}(nn.Module):\n    def forward(self, hidden_states): ..." for name in classes]
    source += [
        "class MarvelPlan:\n    pass",
        "def stack():\n    return nn.ModuleList([MarvelMixer() for _ in range(2)])",
    ]
    (tmp_path / "transformer_marvel.py").write_text("\n".join(source))
    monkeypatch.syspath_prepend(tmp_path)
    invented = importlib.import_module("transformer_marvel")
    assert unclassified([*modules(), invented]) == {"MarvelTransformerBlock", "MarvelMixer"}
