"""Every joint family of diffusers at tiny size: the real class, random weights, and one call's arguments.

Parameters that start at zero (gates, output layers) are given values, or the text would not reach the output.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

B, L, N = 2, 7, 16  # samples, text tokens, image tokens
STEPS = torch.tensor([500.0, 250.0])
Arguments = dict[str, Any]


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape)


def text(width: int = 16, length: int = L) -> Tensor:
    return noise(B, length, width)


def ragged() -> Tensor:
    """A mask with two padded tokens in the second sample."""
    mask = torch.ones(B, L, dtype=torch.bool)
    mask[1, -2:] = False
    return mask


def ids(*sizes: int) -> Tensor:
    return torch.zeros(*sizes)


@dataclass(frozen=True)
class Tiny:
    """One family: `blocks` is how many joint blocks it has, `prompt` the argument that carries the text (`more_text`
    others that do), `mask` the one with its valid tokens.

    `padded`: the padded tokens of the second sample in `prompt`; `gone`: they are blanked or left out before the blocks
    whatever the setting; `samples`: how many a call can have; `read`: what the pipeline reads of the output; `depth`:
    what of the config gives the depth of the largest release, and `deep_call` its call, where that is another one.
    """

    model: str
    blocks: int
    config: dict[str, Any]
    call: Callable[[], Arguments]
    prompt: str = "encoder_hidden_states"
    mask: str | None = None
    more_text: tuple[str, ...] = ()
    padded: tuple[Any, ...] = (slice(L - 2, None),)
    gone: bool = False
    samples: int = B
    read: tuple[Any, ...] = ()
    depth: dict[str, Any] = field(default_factory=dict)
    deep_call: Callable[[], Arguments] | None = None

    def deep(self) -> Tiny:
        return replace(self, config={**self.config, **self.depth}, call=self.deep_call or self.call)

    def make(self, dtype: torch.dtype = torch.float32) -> Any:
        torch.manual_seed(0)
        model = getattr(diffusers, self.model)(**self.config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.numel() and (parameter == 0).all():
                    parameter.normal_(std=0.2)
        return model.to(dtype)

    def arguments(self, dtype: torch.dtype = torch.float32) -> Arguments:
        torch.manual_seed(1)
        return cast(self.call(), dtype)


def cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {k: cast(v, dtype) for k, v in value.items()}
    if isinstance(value, list):
        return [cast(v, dtype) for v in value]
    return value


HEADS = {"attention_head_dim": 16, "num_attention_heads": 2}
FLUX = {"patch_size": 1, "in_channels": 4, "num_layers": 2, "num_single_layers": 2, "joint_attention_dim": 16, **HEADS}
HUNYUAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "mlp_ratio": 2.0,
    "num_refiner_layers": 1,
    "text_embed_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
}
VIDEO = {
    **HUNYUAN,
    "num_single_layers": 2,
    "patch_size": 2,
    "patch_size_t": 1,
    "guidance_embeds": True,
    "pooled_projection_dim": 8,
    "rope_axes_dim": (2, 2, 4),
}
COGVIDEO = {
    **HEADS,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 8,
    "text_embed_dim": 16,
    "num_layers": 2,
    "sample_width": 8,
    "sample_height": 8,
    "sample_frames": 8,
    "patch_size": 2,
    "temporal_compression_ratio": 4,
    "max_text_seq_length": L,
}
COGVIEW = {
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "num_attention_heads": 2,
    "text_embed_dim": 16,
    "time_embed_dim": 8,
    "condition_dim": 4,
}
QWEN = {
    **HEADS,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 2,
    "joint_attention_dim": 16,
    "axes_dims_rope": (8, 4, 4),
}
JOY = {
    "patch_size": [1, 2, 2],
    "in_channels": 4,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "text_dim": 16,
    "num_layers": 2,
    "rope_dim_list": [4, 6, 6],
    "theta": 256,
}


def flux(axes: int = 3, pooled: bool = True, **more: Any) -> Arguments:
    return {
        "hidden_states": noise(B, N, 4),
        "encoder_hidden_states": text(),
        "timestep": STEPS / 1000,
        "img_ids": ids(N, axes),
        "txt_ids": ids(L, axes),
        **({"pooled_projections": noise(B, 16)} if pooled else {}),
        **more,
    }


def both_streams() -> Tensor:
    """The mask of `ragged` followed by as many image tokens."""
    return torch.cat([ragged(), torch.ones(B, N, dtype=torch.bool)], 1)


def fibo(blocks: int, **more: Any) -> Arguments:
    return flux(pooled=False, text_encoder_layers=[text(12) for _ in range(blocks)], **more)


def hunyuan_video(**more: Any) -> Arguments:
    return {
        "hidden_states": noise(B, 4, 1, 8, 8),
        "timestep": STEPS,
        "encoder_hidden_states": text(),
        "encoder_attention_mask": ragged(),
        "pooled_projections": noise(B, 8),
        "guidance": torch.ones(B),
        **more,
    }


def framepack() -> Arguments:
    call = hunyuan_video(hidden_states=noise(B, 4, 3, 8, 8), image_embeds=noise(B, 3, 16))
    call["indices_latents"] = torch.arange(3)
    for name, frames in (("clean", 2), ("history_2x", 2), ("history_4x", 8)):
        call[f"latents_{name}"] = noise(B, 4, frames, 8, 8)
        call[f"indices_latents_{name}"] = torch.arange(frames)
    return call


def cogvideo() -> Arguments:
    return {
        "hidden_states": noise(B, 2, 4, 8, 8),
        "encoder_hidden_states": text(),
        "timestep": STEPS.long(),
    }


def cogview(**more: Any) -> Arguments:
    return {
        "hidden_states": noise(B, 4, 8, 8),
        "encoder_hidden_states": text(),
        "timestep": STEPS.long(),
        "target_size": torch.full((B, 2), 8.0),
        "crop_coords": torch.zeros(B, 2),
        **more,
    }


def hunyuan_video15(**more: Any) -> Arguments:
    return {
        "hidden_states": noise(B, 4, 1, 4, 4),
        "timestep": STEPS,
        "encoder_hidden_states": text(),
        "encoder_attention_mask": ragged().long(),
        "encoder_hidden_states_2": text(8, 4),
        "encoder_attention_mask_2": torch.ones(B, 4, dtype=torch.long),
        "image_embeds": torch.zeros(B, 3, 12),
        **more,
    }


def omnigen(padding: int) -> Arguments:
    """In the second sample `padding` tokens on the left; in the first an image at 2 to 18."""
    words, total = 23, 23 + 1 + N
    mask = torch.ones(total, total).tril().expand(B, -1, -1).clone()
    mask[:, words + 1 :, words:] = 1
    mask[0, 2:18, 2:18] = 1
    mask[1, padding:, :padding] = 0
    mask[1, :padding] = 1
    return {
        "hidden_states": noise(B, 4, 8, 8),
        "timestep": STEPS,
        "input_ids": torch.randint(1, 50, (B, words)),
        "input_img_latents": [noise(1, 4, 8, 8)],
        "input_image_sizes": {0: [[2, 18]]},
        "attention_mask": mask,
        "position_ids": torch.arange(total).expand(B, -1),
    }


def qwen21(slots: list[int], **more: Any) -> Arguments:
    """`slots` tells the image slots, 1, from the words, 0; the last four are those of the target."""
    images = sum(slots) // 4
    return {
        "hidden_states": noise(B, images * N, 4),
        "encoder_hidden_states": text(16, len(slots) - 4),
        "timestep": STEPS[:1] / 1000,
        "img_shapes": [[(1, 4, 4)] * images] * B,
        "img_mask": torch.tensor([slots] * B, dtype=torch.bool),
        **more,
    }


def fibo2(**more: Any) -> Arguments:
    return image(encoder_hidden_states=noise(B, 2, L, 12), timestep=STEPS / 1000, **more)


def cosmos3(words: int = 5) -> Arguments:
    return {
        "input_ids": torch.randint(0, 30, (words,)),
        "text_indexes": torch.arange(words),
        "position_ids": torch.arange(words + 4).expand(3, -1),
        "und_len": words,
        "sequence_length": words + 4,
        "vision_tokens": [noise(1, 2, 1, 2, 2)],
        "vision_token_shapes": [(1, 2, 2)],
        "vision_sequence_indexes": torch.arange(words, words + 4),
        "vision_mse_loss_indexes": torch.arange(words, words + 4),
        "vision_timesteps": torch.full((4,), 500.0),
        "vision_noisy_frame_indexes": [torch.tensor([0])],
    }


def omni() -> Arguments:
    """Z-Image with two images, the first one clean."""
    return {
        "x": [[noise(4, 1, 8, 8), noise(4, 1, 8, 8)] for _ in range(B)],
        "t": STEPS / 1000,
        "cap_feats": [[noise(L, 16), noise(3, 16)], [noise(5, 16), noise(40, 16)]],
        "siglip_feats": [[noise(2, 2, 8), None] for _ in range(B)],
        "image_noise_mask": [[0, 1]] * B,
    }


def image(**more: Any) -> Arguments:
    return {"hidden_states": noise(B, 4, 8, 8), "encoder_hidden_states": text(), "timestep": STEPS, **more}


FAMILIES: dict[str, Tiny] = {
    "SD3": Tiny(
        "SD3Transformer2DModel",
        3,
        {
            "sample_size": 8,
            "patch_size": 2,
            "in_channels": 4,
            "num_layers": 3,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "joint_attention_dim": 16,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 16,
            "out_channels": 4,
            "pos_embed_max_size": 8,
            "dual_attention_layers": (0,),
            "qk_norm": "rms_norm",
        },
        lambda: image(pooled_projections=noise(B, 16)),
    ),
    "Flux": Tiny("FluxTransformer2DModel", 4, {**FLUX, "axes_dims_rope": (4, 4, 8), "pooled_projection_dim": 16}, flux),
    "Flux2": Tiny(
        "Flux2Transformer2DModel",
        3,
        {
            **FLUX,
            "num_layers": 1,
            "timestep_guidance_channels": 16,
            "mlp_ratio": 2.0,
            "axes_dims_rope": (4, 4, 4, 4),
        },
        lambda: flux(4, pooled=False, guidance=torch.ones(B), img_ids=ids(B, N, 4), txt_ids=ids(B, L, 4)),
    ),
    "Flux3": Tiny(
        "Flux3Transformer2DModel",
        2,
        {
            "in_channels": 4,
            "cond_in_channels": 4,
            "num_layers": 1,
            "num_single_layers": 2,
            "joint_attention_dim": 16,
            "timestep_channels": 16,
            "mlp_ratio": 2.0,
            "axes_dims_rope": (4, 4, 4, 4),
            **HEADS,
        },
        lambda: flux(4, pooled=False),
    ),
    "Chroma": Tiny(
        "ChromaTransformer2DModel",
        4,
        {
            **FLUX,
            "axes_dims_rope": (4, 4, 8),
            "approximator_num_channels": 8,
            "approximator_hidden_dim": 16,
            "approximator_layers": 1,
        },
        lambda: flux(pooled=False, attention_mask=both_streams()),
        mask="attention_mask",
    ),
    "LongCatImage": Tiny(
        "LongCatImageTransformer2DModel",
        4,
        {**FLUX, "axes_dims_rope": [4, 4, 8], "pooled_projection_dim": 16},
        lambda: flux(pooled=False),
    ),
    "OvisImage": Tiny(
        "OvisImageTransformer2DModel",
        4,
        {**FLUX, "axes_dims_rope": (4, 4, 8), "out_channels": 4},
        lambda: flux(pooled=False),
    ),
    "Bria": Tiny("BriaTransformer2DModel", 4, {**FLUX, "axes_dims_rope": [4, 4, 8]}, lambda: flux(pooled=False)),
    "BriaFibo": Tiny(
        "BriaFiboTransformer2DModel",
        4,
        {**FLUX, "axes_dims_rope": [4, 4, 8], "text_encoder_dim": 12},
        lambda: fibo(4),
        deep_call=lambda: fibo(57),
        more_text=("text_encoder_layers",),
    ),
    "BriaFibo, padded": Tiny(
        "BriaFiboTransformer2DModel",
        4,
        {**FLUX, "axes_dims_rope": [4, 4, 8], "text_encoder_dim": 12},
        lambda: fibo(4, joint_attention_kwargs={"attention_mask": both_streams()[:, None, None]}),
        more_text=("text_encoder_layers",),
    ),
    "QwenImage": Tiny(
        "QwenImageTransformer2DModel",
        2,
        QWEN,
        lambda: {
            "hidden_states": noise(B, N, 16),
            "encoder_hidden_states": text(),
            "encoder_hidden_states_mask": ragged(),
            "timestep": STEPS / 1000,
            "img_shapes": [[(1, 4, 4)]] * B,
        },
        mask="encoder_hidden_states_mask",
    ),
    "QwenImage, editing": Tiny(
        "QwenImageTransformer2DModel",
        2,
        {**QWEN, "zero_cond_t": True},
        lambda: {
            "hidden_states": noise(B, 2 * N, 16),
            "encoder_hidden_states": text(),
            "timestep": STEPS / 1000,
            "img_shapes": [[(1, 4, 4), (1, 4, 4)]] * B,
        },
    ),
    "HunyuanImage": Tiny(
        "HunyuanImageTransformer2DModel",
        4,
        {**HUNYUAN, "num_single_layers": 2, "patch_size": (1, 1), "text_embed_2_dim": 16, "rope_axes_dim": (4, 4)},
        lambda: {
            "hidden_states": noise(B, 4, 4, 4),
            "timestep": STEPS,
            "encoder_hidden_states": text(),
            "encoder_attention_mask": ragged(),
            "encoder_hidden_states_2": text(16, 4),
            "encoder_attention_mask_2": torch.ones(B, 4, dtype=torch.bool),
        },
        mask="encoder_attention_mask",
        more_text=("encoder_hidden_states_2",),
    ),
    "HunyuanVideo": Tiny("HunyuanVideoTransformer3DModel", 4, VIDEO, hunyuan_video, mask="encoder_attention_mask"),
    "HunyuanVideo, image to video": Tiny(
        "HunyuanVideoTransformer3DModel",
        4,
        {**VIDEO, "image_condition_type": "token_replace"},
        hunyuan_video,
        mask="encoder_attention_mask",
    ),
    "HunyuanVideo1.5": Tiny(
        "HunyuanVideo15Transformer3DModel",
        2,
        {
            **HUNYUAN,
            "patch_size": 1,
            "patch_size_t": 1,
            "text_embed_2_dim": 8,
            "image_embed_dim": 12,
            "rope_axes_dim": (2, 2, 4),
            "target_size": 16,
            "task_type": "t2v",
        },
        hunyuan_video15,
        mask="encoder_attention_mask",
        more_text=("encoder_hidden_states_2",),
        gone=True,
    ),
    "Framepack": Tiny(
        "HunyuanVideoFramepackTransformer3DModel",
        4,
        {**VIDEO, "has_image_proj": True, "image_proj_dim": 16, "has_clean_x_embedder": True},
        framepack,
        mask="encoder_attention_mask",
    ),
    "CogVideoX": Tiny("CogVideoXTransformer3DModel", 2, COGVIDEO, cogvideo),
    "ConsisID": Tiny("ConsisIDTransformer3DModel", 2, {**COGVIDEO, "is_train_face": False}, cogvideo),
    "CogView3Plus": Tiny(
        "CogView3PlusTransformer2DModel",
        2,
        {**COGVIEW, "attention_head_dim": 8, "pos_embed_max_size": 8, "sample_size": 8},
        lambda: cogview(original_size=torch.full((B, 2), 8.0)),
    ),
    "CogView4": Tiny(
        "CogView4Transformer2DModel",
        2,
        {**COGVIEW, "attention_head_dim": 16, "rope_axes_dim": (8, 8)},
        lambda: cogview(original_size=torch.full((B, 2), 8.0)),
    ),
    "GlmImage": Tiny(
        "GlmImageTransformer2DModel",
        2,
        {**COGVIEW, "attention_head_dim": 8, "prior_vq_quantizer_codebook_size": 16},
        lambda: cogview(
            prior_token_id=torch.zeros(B, N, dtype=torch.long), prior_token_drop=torch.zeros(B, dtype=torch.bool)
        ),
    ),
    "Mochi": Tiny(
        "MochiTransformer3DModel",
        2,
        {
            "patch_size": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 2,
            "pooled_projection_dim": 16,
            "in_channels": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 4,
            "max_sequence_length": L,
        },
        lambda: {
            "hidden_states": noise(B, 4, 2, 8, 8),
            "encoder_hidden_states": text(),
            "timestep": STEPS.long(),
            "encoder_attention_mask": ragged(),
        },
        mask="encoder_attention_mask",
    ),
    "AuraFlow": Tiny(
        "AuraFlowTransformer2DModel",
        3,
        {
            "sample_size": 8,
            "patch_size": 2,
            "in_channels": 4,
            "num_mmdit_layers": 1,
            "num_single_dit_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "caption_projection_dim": 32,
            "joint_attention_dim": 16,
            "out_channels": 4,
            "pos_embed_max_size": 64,
        },
        lambda: image(timestep=STEPS / 1000),
    ),
    "HiDream": Tiny(
        "HiDreamImageTransformer2DModel",
        3,
        {
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "num_single_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "caption_channels": [16, 12],
            "text_emb_dim": 8,
            "num_routed_experts": 2,
            "num_activated_experts": 2,
            "axes_dims_rope": (4, 2, 2),
            "max_resolution": (8, 8),
            "llama_layers": (0, 1, 1),
            "force_inference_output": True,
        },
        lambda: {
            "hidden_states": noise(B, 4, 8, 8),
            "timesteps": STEPS.long(),
            "encoder_hidden_states_t5": text(),
            "encoder_hidden_states_llama3": noise(2, B, 5, 12),
            "pooled_embeds": noise(B, 8),
        },
        prompt="encoder_hidden_states_t5",
        more_text=("encoder_hidden_states_llama3",),
    ),
    "JoyImageEdit": Tiny(
        "JoyImageEditTransformer3DModel",
        2,
        JOY,
        lambda: {"hidden_states": noise(B, 4, 1, 4, 4), "timestep": STEPS, "encoder_hidden_states": text()},
    ),
    "JoyImageEditPlus": Tiny(
        "JoyImageEditPlusTransformer3DModel",
        2,
        JOY,
        lambda: {
            "hidden_states": noise(B, 2, 4, 1, 2, 2),
            "timestep": STEPS,
            "encoder_hidden_states": text(),
            "encoder_hidden_states_mask": ragged().float(),
            "shape_list": [[(1, 1, 1), (1, 1, 1)]] * B,
        },
        mask="encoder_hidden_states_mask",
    ),
    "MotifVideo": Tiny(
        "MotifVideoTransformer3DModel",
        4,
        {
            "in_channels": 5,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "num_layers": 2,
            "num_single_layers": 3,
            "num_decoder_layers": 1,
            "mlp_ratio": 2.0,
            "patch_size": 1,
            "patch_size_t": 1,
            "text_embed_dim": 16,
            "image_embed_dim": 4,
            "rope_axes_dim": (4, 4, 4),
            "enable_text_cross_attention_dual": True,
            "enable_text_cross_attention_single": True,
        },
        lambda: {
            "hidden_states": noise(B, 5, 1, 4, 4),
            "encoder_hidden_states": text(),
            "timestep": STEPS.long(),
            "encoder_attention_mask": ragged(),
        },
        mask="encoder_attention_mask",
    ),
    "EasyAnimate": Tiny(
        "EasyAnimateTransformer3DModel",
        3,
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "mmdit_layers": 2,
            "num_layers": 3,
            "patch_size": 2,
            "sample_height": 60,
            "sample_width": 90,
            "text_embed_dim": 16,
            "time_embed_dim": 8,
            "time_position_encoding_type": "3d_rope",
        },
        lambda: {
            "hidden_states": noise(B, 4, 2, 8, 8),
            "timestep": STEPS.long(),
            "encoder_hidden_states": text(),
        },
    ),
    "NucleusMoE": Tiny(
        "NucleusMoEImageTransformer2DModel",
        2,
        {
            **QWEN,
            "num_attention_heads": 4,
            "moe_enabled": False,
            "capacity_factors": [8.0, 8.0],
        },
        lambda: {
            "hidden_states": noise(B, N, 16),
            "encoder_hidden_states": text(),
            "encoder_hidden_states_mask": ragged(),
            "timestep": STEPS / 1000,
            "img_shapes": [(1, 4, 4)] * B,
        },
        mask="encoder_hidden_states_mask",
    ),
    "PRX": Tiny(
        "PRXTransformer2DModel",
        2,
        {
            "in_channels": 4,
            "patch_size": 2,
            "context_in_dim": 16,
            "hidden_size": 16,
            "mlp_ratio": 2.0,
            "num_heads": 2,
            "depth": 2,
            "axes_dim": [4, 4],
        },
        lambda: image(timestep=STEPS / 1000, attention_mask=ragged()),
        mask="attention_mask",
    ),
    "Krea2": Tiny(
        "Krea2Transformer2DModel",
        2,
        {
            "in_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "intermediate_size": 32,
            "timestep_embed_dim": 8,
            "text_hidden_dim": 8,
            "num_text_layers": 3,
            "text_num_attention_heads": 2,
            "text_num_key_value_heads": 1,
            "text_intermediate_size": 16,
            "num_layerwise_text_blocks": 1,
            "num_refiner_text_blocks": 1,
            "axes_dims_rope": (4, 2, 2),
        },
        lambda: {
            "hidden_states": noise(B, N, 4),
            "encoder_hidden_states": noise(B, L, 3, 8),
            "timestep": STEPS / 1000,
            "position_ids": ids(L + N, 3),
            "encoder_attention_mask": ragged(),
        },
        mask="encoder_attention_mask",
    ),
    "Lumina2": Tiny(
        "Lumina2Transformer2DModel",
        2,
        {
            "sample_size": 8,
            "patch_size": 2,
            "in_channels": 4,
            "hidden_size": 24,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "num_attention_heads": 3,
            "num_kv_heads": 1,
            "multiple_of": 2,
            "axes_dim_rope": (4, 2, 2),
            "axes_lens": (32, 32, 32),
            "cap_feat_dim": 16,
        },
        lambda: image(encoder_attention_mask=ragged()),
        mask="encoder_attention_mask",
        gone=True,
    ),
    "Ideogram4": Tiny(
        "Ideogram4Transformer2DModel",
        2,
        {
            "in_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "adaln_dim": 16,
            "llm_features_dim": 16,
            "rope_theta": 10000,
            "mrope_section": (2, 1, 1),
        },
        lambda: {
            "hidden_states": noise(B, 11, 4),
            "timestep": STEPS / 1000,
            "encoder_hidden_states": text(16, 11),
            "position_ids": torch.arange(11)[None, :, None].expand(B, 11, 3).clone(),
            "segment_ids": torch.zeros(B, 11, dtype=torch.long),
            "indicator": torch.tensor([[3] * 7 + [2] * 4, [-1] * 2 + [3] * 5 + [2] * 4]),
        },
    ),
    "MiniMaxH3": Tiny(
        "MiniMaxH3Transformer3DModel",
        2,
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "hidden_size": 24,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "ffn_dim": 32,
            "in_channels": 4,
            "audio_in_channels": 6,
            "patch_size": (1, 2, 2),
            "text_dim": 8,
            "freq_dim": 8,
            "time_embed_hidden_dim": 24,
            "time_embed_dim": 16,
            "rope_freq_dim": 2,
        },
        lambda: {
            "hidden_states": noise(B, 8, 16),
            "audio_hidden_states": noise(B, 3, 6),
            "encoder_hidden_states": text(8),
            "timestep": STEPS,
            "timestep_indices": torch.zeros(18, dtype=torch.long),
            "token_tags": torch.tensor([0] * 8 + [2] * 3 + [1] * 7),
            "position_ids": ids(18, 3),
            "video_indices": torch.arange(8),
            "audio_indices": torch.arange(8, 11),
            "text_indices": torch.arange(11, 18),
        },
    ),
    "ZImage": Tiny(
        "ZImageTransformer2DModel",
        2,
        {
            "all_patch_size": (2,),
            "all_f_patch_size": (1,),
            "in_channels": 4,
            "dim": 16,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 1,
            "n_kv_heads": 1,
            "cap_feat_dim": 16,
            "axes_dims": [8, 4, 4],
            "axes_lens": [256, 64, 64],
        },
        lambda: {
            "x": [noise(4, 1, 8, 8), noise(4, 1, 8, 8)],
            "t": STEPS / 1000,
            "cap_feats": [noise(L, 16), noise(40, 16)],
        },
        prompt="cap_feats",
    ),
    "ErnieImage": Tiny(
        "ErnieImageTransformer2DModel",
        2,
        {
            "hidden_size": 16,
            "num_attention_heads": 1,
            "num_layers": 2,
            "ffn_hidden_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "patch_size": 1,
            "text_in_dim": 12,
            "rope_axes_dim": (8, 4, 4),
        },
        lambda: {
            "hidden_states": noise(B, 4, 4, 4),
            "timestep": STEPS,
            "text_bth": text(12),
            "text_lens": ragged().sum(1),
        },
        prompt="text_bth",
        mask="text_lens",
    ),
    "QwenImage2.1": Tiny(
        "QwenImage21Transformer2DModel",
        2,
        {
            **HEADS,
            "patch_size": 1,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "context_in_dim": 16,
            "mlp_ratio": 2,
            "axes_dims_rope": (8, 4, 4),
        },
        lambda: qwen21([0] * L + [1] * 4, encoder_hidden_states_mask=ragged()),
        mask="encoder_hidden_states_mask",
        read=(slice(None), slice(-N, None)),
    ),
    "OmniGen": Tiny(
        "OmniGenTransformer2DModel",
        2,
        {
            "hidden_size": 16,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "intermediate_size": 32,
            "num_layers": 2,
            "pad_token_id": 0,
            "vocab_size": 100,
            "in_channels": 4,
            "time_step_dim": 4,
            "pos_embed_max_size": 16,
            "rope_scaling": {"long_factor": [1, 1], "short_factor": [1, 1]},
        },
        lambda: omnigen(2),
        prompt="input_ids",
        mask="attention_mask",
        padded=(slice(2),),
        gone=True,
    ),
    "BriaFibo2": Tiny(
        "BriaFibo2Transformer2DModel",
        2,
        {
            "in_channels": 4,
            "patch_size": 2,
            "dim": 16,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 1,
            "cap_feat_dim": 12,
            "injection_layer_ids": (1,),
            "perceiver_num_layers": 1,
            "min_num_gist_tokens": 4,
            "max_num_gist_tokens": 8,
            "gist_step": 2,
            "gist_min_text_len": 2,
            "gist_max_text_len": 8,
            "axes_dims": (8, 4, 4),
            "axes_lens": (64, 32, 32),
        },
        lambda: fibo2(context_latents=[noise(B, 4, 4, 8)]),
    ),
    "Cosmos3Omni": Tiny(
        "Cosmos3OmniTransformer",
        2,
        {
            "head_dim": 6,
            "hidden_act": "relu2",
            "hidden_size": 12,
            "intermediate_size": 24,
            "latent_channel": 2,
            "latent_patch_size": 1,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "num_key_value_heads": 1,
            "patch_latent_dim": 2,
            "qk_norm_for_text": False,
            "rope_axes_dim": [1, 1, 1],
            "rope_theta": 10000.0,
            "vocab_size": 32,
        },
        cosmos3,
        prompt="input_ids",
        samples=1,
    ),
}


def _packed(name: str, blocks: int, **config: Any) -> Tiny:
    """A family without its dual blocks, which mix text into the image before the packed ones read it."""
    tiny = FAMILIES[name]
    return replace(tiny, blocks=blocks, config={**tiny.config, **config})


FAMILIES |= {
    "Flux2, packed": _packed("Flux2", 2, num_layers=0),
    "Chroma, packed": _packed("Chroma", 2, num_layers=0),
    "BriaFibo, packed": replace(_packed("BriaFibo", 2, num_layers=0), call=lambda: fibo(2)),
    "AuraFlow, packed": _packed("AuraFlow", 2, num_mmdit_layers=0),
    "HiDream, packed": _packed("HiDream", 2, num_layers=0, llama_layers=(0, 1)),
}

FAMILIES |= {
    "HunyuanVideo1.5, image to video": replace(
        FAMILIES["HunyuanVideo1.5"], call=lambda: hunyuan_video15(image_embeds=noise(B, 3, 12))
    ),
    "MotifVideo, image to video": replace(
        FAMILIES["MotifVideo"], call=lambda: {**FAMILIES["MotifVideo"].call(), "image_embeds": noise(B, 3, 4)}
    ),
    "QwenImage2.1, editing": replace(
        FAMILIES["QwenImage2.1"], call=lambda: qwen21([0] * 3 + [1] * 4 + [0] * 3 + [1] * 4), mask=None
    ),
    "BriaFibo2, padded": replace(
        FAMILIES["BriaFibo2"],
        call=lambda: fibo2(encoder_attention_mask=ragged(), context_latents=[noise(B, 4, 4, 8)]),
        mask="encoder_attention_mask",
        padded=(slice(None), slice(L - 2, None)),
        gone=True,
    ),
    "ZImage, omni": replace(FAMILIES["ZImage"], config={**FAMILIES["ZImage"].config, "siglip_feat_dim": 8}, call=omni),
}

# SD3, CogVideoX, ConsisID and Cosmos 3 are known to have larger releases than the defaults of their classes describe
_FLUX = {"num_layers": 19, "num_single_layers": 38}
_HUNYUAN = {"num_layers": 20, "num_single_layers": 40}
DEPTHS: dict[str, dict[str, Any]] = {
    "AuraFlowTransformer2DModel": {"num_mmdit_layers": 4, "num_single_dit_layers": 32},
    "BriaFibo2Transformer2DModel": {"n_layers": 44},
    "BriaFiboTransformer2DModel": _FLUX,
    "BriaTransformer2DModel": _FLUX,
    "ChromaTransformer2DModel": _FLUX,
    "CogVideoXTransformer3DModel": {"num_layers": 42},
    "CogView3PlusTransformer2DModel": {"num_layers": 30},
    "CogView4Transformer2DModel": {"num_layers": 30},
    "ConsisIDTransformer3DModel": {"num_layers": 42},
    "Cosmos3OmniTransformer": {"num_hidden_layers": 64},
    "EasyAnimateTransformer3DModel": {"num_layers": 48, "mmdit_layers": 48},
    "ErnieImageTransformer2DModel": {"num_layers": 24},
    "Flux2Transformer2DModel": {"num_layers": 8, "num_single_layers": 48},
    "Flux3Transformer2DModel": {"num_layers": 5, "num_single_layers": 28},
    "FluxTransformer2DModel": _FLUX,
    "GlmImageTransformer2DModel": {"num_layers": 30},
    "HiDreamImageTransformer2DModel": {"num_layers": 16, "num_single_layers": 32, "llama_layers": (0,) * 48},
    "HunyuanImageTransformer2DModel": _HUNYUAN,
    "HunyuanVideo15Transformer3DModel": {"num_layers": 54},
    "HunyuanVideoFramepackTransformer3DModel": _HUNYUAN,
    "HunyuanVideoTransformer3DModel": _HUNYUAN,
    "Ideogram4Transformer2DModel": {"num_layers": 34},
    "JoyImageEditPlusTransformer3DModel": {"num_layers": 20},
    "JoyImageEditTransformer3DModel": {"num_layers": 20},
    "Krea2Transformer2DModel": {"num_layers": 28},
    "LongCatImageTransformer2DModel": _FLUX,
    "Lumina2Transformer2DModel": {"num_layers": 26},
    "MiniMaxH3Transformer3DModel": {"num_layers": 50},
    "MochiTransformer3DModel": {"num_layers": 48},
    "MotifVideoTransformer3DModel": _HUNYUAN,
    "NucleusMoEImageTransformer2DModel": {"num_layers": 24, "capacity_factors": [8.0] * 24},
    "OmniGenTransformer2DModel": {"num_layers": 32},
    "OvisImageTransformer2DModel": {"num_layers": 6, "num_single_layers": 27},
    "PRXTransformer2DModel": {"depth": 16},
    "QwenImage21Transformer2DModel": {"num_layers": 32},
    "QwenImageTransformer2DModel": {"num_layers": 60},
    "SD3Transformer2DModel": {"num_layers": 38},
    "ZImageTransformer2DModel": {"n_layers": 30},
}
FAMILIES = {name: replace(tiny, depth=DEPTHS[tiny.model]) for name, tiny in FAMILIES.items()}
