"""Models that cross-attend to their text, at tiny size: the real class, random weights, and one call's arguments.

Of a call with a mask, the last two tokens of the second sample are padding, as in `families.ragged`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from families import HEADS, STEPS, Arguments, B, L, N, Tiny, noise, ragged, text

if TYPE_CHECKING:
    from collections.abc import Callable

UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "attention_head_dim": 2,
}
SD15 = {
    **UNET,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 16,
}
SDXL = {
    **UNET,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "cross_attention_dim": 32,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 16,
}
DIT = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 2,
    "cross_attention_dim": 16,
    "sample_size": 8,
    "patch_size": 2,
    "caption_channels": 16,
}
SANA = {
    **HEADS,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 16,
    "cross_attention_dim": 32,
    "caption_channels": 16,
}
WAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 16,
    "num_layers": 2,
}
IMAGE = {"image_dim": 8, "added_kv_proj_dim": 24}
WAN_TEXT = 512  # its blocks that read a picture too take the last 512 tokens for the text


def unet(width: int = 16, **more: Any) -> Arguments:
    return {"sample": noise(B, 4, 8, 8), "timestep": 500, "encoder_hidden_states": text(width), **more}


def sdxl() -> Arguments:
    return unet(32, added_cond_kwargs={"text_embeds": noise(B, 16), "time_ids": noise(B, 6)})


def dit(*shape: int, **more: Any) -> Arguments:
    """The arguments of most transformers; `shape` is that of the latents without samples."""
    return {"hidden_states": noise(B, *shape), "encoder_hidden_states": text(), "timestep": STEPS, **more}


def masked(*shape: int, **more: Any) -> Arguments:
    return dit(*shape, encoder_attention_mask=ragged(), **more)


def hunyuan() -> Arguments:
    return {
        "hidden_states": noise(B, 4, 8, 8),
        "timestep": STEPS,
        "encoder_hidden_states": noise(B, 3, 16),
        "text_embedding_mask": torch.ones(B, 3),
        "encoder_hidden_states_t5": noise(B, L - 3, 16),
        "text_embedding_mask_t5": ragged()[:, 3:],
    }


def lumina() -> Arguments:
    from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

    rotary = get_2d_rotary_pos_embed_lumina(8, 8, 8)
    return dit(
        4, 8, 8, timestep=STEPS / 1000, encoder_mask=ragged(), image_rotary_emb=rotary, cross_attention_kwargs={}
    )


def wan_from_image(frames: int = 1) -> Arguments:
    return dit(4, frames, 8, 8, encoder_hidden_states=text(16, WAN_TEXT), encoder_hidden_states_image=noise(B, 3, 8))


def case(
    model: str, blocks: int, config: dict[str, Any], call: Callable[[], Arguments], mask: str | None = None, **more: Any
) -> Tiny:
    return Tiny(model, blocks, config, call, mask=mask, **more)


MASK = "encoder_attention_mask"
CROSS: dict[str, Tiny] = {
    "SD1.5": case("UNet2DConditionModel", 4, SD15, unet),
    "SDXL": case("UNet2DConditionModel", 8, SDXL, sdxl),
    "PixArt": case(
        "PixArtTransformer2DModel",
        2,
        {**DIT, "use_additional_conditions": False},
        lambda: masked(4, 8, 8, added_cond_kwargs={"resolution": None, "aspect_ratio": None}),
        MASK,
    ),
    "LTX": case(
        "LTXVideoTransformer3DModel",
        2,
        {k: v for k, v in {**DIT, "patch_size": 1, "out_channels": 4}.items() if k != "sample_size"},
        lambda: masked(N, 4, num_frames=1, height=4, width=4),
        MASK,
    ),
    "Sana": case("SanaTransformer2DModel", 2, {**SANA, "sample_size": 4}, lambda: masked(4, 4, 4), MASK),
    "SanaVideo": case("SanaVideoTransformer3DModel", 2, {**SANA, "sample_size": 4}, lambda: masked(4, 1, 4, 4), MASK),
    "Allegro": case(
        "AllegroTransformer3DModel",
        2,
        {
            **{k: v for k, v in DIT.items() if k != "sample_size"},
            "sample_height": 8,
            "sample_width": 8,
            "sample_frames": 2,
        },
        lambda: masked(4, 2, 8, 8),
        MASK,
    ),
    "Latte": case(
        "LatteTransformer3DModel",
        2,
        {
            **DIT,
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False,
            "num_embeds_ada_norm": 1000,
            "video_length": 2,
        },
        lambda: dit(4, 2, 8, 8),
    ),
    "HunyuanDiT": case(
        "HunyuanDiT2DModel",
        4,
        {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "in_channels": 4,
            "patch_size": 2,
            "sample_size": 8,
            "hidden_size": 16,
            "num_layers": 4,
            "cross_attention_dim": 16,
            "cross_attention_dim_t5": 16,
            "pooled_projection_dim": 8,
            "text_len": 3,
            "text_len_t5": L - 3,
            "use_style_cond_and_image_meta_size": False,
        },
        hunyuan,
        "text_embedding_mask_t5",
        prompt="encoder_hidden_states_t5",
        gone=True,
    ),
    "LuminaNext": case(
        "LuminaNextDiT2DModel",
        2,
        {
            "sample_size": 8,
            "in_channels": 4,
            "hidden_size": 16,
            "num_layers": 2,
            "num_attention_heads": 2,
            "num_kv_heads": 2,
            "multiple_of": 8,
            "cross_attention_dim": 16,
        },
        lumina,
        "encoder_mask",
    ),
    "Wan": case("WanTransformer3DModel", 2, WAN, lambda: dit(4, 1, 8, 8)),
    "Wan, from an image": case("WanTransformer3DModel", 2, {**WAN, **IMAGE}, wan_from_image),
    "WanVACE": case(
        "WanVACETransformer3DModel",
        4,
        {**WAN, "vace_layers": [0, 1], "vace_in_channels": 8},
        lambda: dit(4, 1, 8, 8, control_hidden_states=noise(B, 8, 1, 8, 8)),
    ),
    "ChronoEdit": case("ChronoEditTransformer3DModel", 2, {**WAN, **IMAGE}, lambda: wan_from_image(2)),
    "SkyReelsV2": case("SkyReelsV2Transformer3DModel", 2, WAN, lambda: dit(4, 1, 8, 8)),
}
