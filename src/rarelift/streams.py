"""What is known about each joint-attention model, as data: which block class carries the text, and where.

A new model is a new row; no other file asks what model it has. Names, not classes, so that nothing heavy is imported
and a row may describe a class that the installed diffusers does not have. Source: the sources of diffusers 0.42.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Segment:
    """One run of positions of the text stream, as the pipeline's `encode_prompt` lays it out.

    `tokenizers` holds (tokenizer attribute, prompt argument) pairs that share the positions, their states being
    concatenated on channels; `encoder` is the pipeline attribute without which the segment is zeros; `length` names
    the `encode_prompt` argument or pipeline attribute that says how many positions the segment has.
    """

    tokenizers: tuple[tuple[str, str], ...]
    encoder: str
    length: str


@dataclass(frozen=True)
class Family:
    """One list of joint blocks in one transformer class."""

    model: str
    """Class name of the transformer."""
    blocks: str
    """Attribute that holds the ModuleList."""
    block: str
    """Class name of its blocks."""
    layout: Literal["dual", "packed"]
    """dual: the text is an argument of its own; packed: it is a span of the block's only sequence."""
    text: str
    """Block argument that carries the text stream."""
    token_dim: int = 1
    """Dimension of the text stream that counts tokens."""
    returns: Literal[0, 1] | None = None
    """Where the text is in the block's return; None when the block returns one tensor without it."""
    mask: str | None = None
    """Block argument with the mask of valid text tokens; None when the model attends to padding."""
    batch: Literal["uncond_cond", "cond_uncond", "separate", "none"] = "none"
    """How the model call holds the branches of classifier-free guidance."""
    model_text: str = "encoder_hidden_states"
    """Transformer argument that carries the text."""
    model_timestep: str = "timestep"
    """Transformer argument that carries the scheduler's timestep."""
    segments: tuple[Segment, ...] = ()
    """How the prompt becomes positions; empty when that is not known."""
    note: str = ""
    """What a user should know; shown by `rarelift.inspect`."""


FAMILIES: dict[str, tuple[Family, ...]] = {}
"""Model class name to its lists of joint blocks."""


def register(family: Family) -> None:
    """Make a list of joint blocks known; a row for the same model and list is replaced.

    Raises:
        ValueError: the layout is not supported yet, or the row is for a model known not to be joint.
    """
    if family.layout != "dual" or family.token_dim != 1:
        raise ValueError(
            f"{family.model}.{family.blocks}: only dual layouts with tokens on dimension 1 are supported so far, got "
            f"layout={family.layout!r}, token_dim={family.token_dim}"
        )
    if family.model in CROSS_ATTENTION:
        raise ValueError(f"{family.model} has no joint attention: {CROSS_ATTENTION[family.model]}")
    others = tuple(f for f in FAMILIES.get(family.model, ()) if f.blocks != family.blocks)
    FAMILIES[family.model] = (*others, family)


_CROSS = "text enters through cross-attention, and its tokens are never updated beside the image's"
CROSS_ATTENTION: dict[str, str] = dict.fromkeys(
    (
        "AceStepTransformer1DModel",
        "AllegroTransformer3DModel",
        "AnyFlowFARTransformer3DModel",
        "AnyFlowTransformer3DModel",
        "ChronoEditTransformer3DModel",
        "CosmosTransformer3DModel",
        "DreamLiteTransformer2DModel",
        "HeliosTransformer3DModel",
        "HunyuanDiT2DModel",
        "Kandinsky6Transformer3DModel",
        "LTX2VideoTransformer3DModel",
        "LTXVideoTransformer3DModel",
        "LatteTransformer3DModel",
        "LongCatAudioDiTTransformer",
        "LuminaNextDiT2DModel",
        "MiniMaxMusic3Transformer1DModel",
        "PixArtTransformer2DModel",
        "SanaTransformer2DModel",
        "SanaVideoTransformer3DModel",
        "SanaWMTransformer3DModel",
        "SkyReelsV2Transformer3DModel",
        "StableAudio3DiTModel",
        "StableAudioDiTModel",
        "Transformer2DModel",
        "UNet2DConditionModel",
        "UNet3DConditionModel",
        "WanAnimate2Transformer3DModel",
        "WanAnimateTransformer3DModel",
        "WanTransformer3DModel",
        "WanVACETransformer3DModel",
    ),
    _CROSS,
) | {
    "DiTTransformer2DModel": "it is conditioned on a class label, not on text",
    "Kandinsky5Transformer3DModel": "text tokens attend to themselves only, and the visual blocks cross-attend to them",
    "Kandinsky6SRTransformer3DModel": "it takes no text",
    "PriorTransformer": "its sequence holds text and an image embedding, not image tokens",
    "UNet2DModel": "it takes no text",
}
"""Models known not to do joint attention, with the reason, for errors that explain."""

register(
    Family(
        model="SD3Transformer2DModel",
        blocks="transformer_blocks",
        block="JointTransformerBlock",
        layout="dual",
        text="encoder_hidden_states",
        returns=0,
        batch="uncond_cond",
        segments=(
            Segment((("tokenizer", "prompt"), ("tokenizer_2", "prompt_2")), "text_encoder", "tokenizer_max_length"),
            Segment((("tokenizer_3", "prompt_3"),), "text_encoder_3", "max_sequence_length"),
        ),
        note="padding is attended to; the pooled text embedding also carries the caption, through AdaLN, and is not "
        "touched",
    )
)
