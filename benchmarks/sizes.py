"""The size of released models, as data: what `overhead.py` times with random weights.

A row holds the transformer's class, its configuration, and one call of it as the model's pipeline makes it by default:
image tokens, text tokens, batch. Widths, heads and blocks were read in copies of the released transformer/config.json
and agree with the defaults and conversion scripts of diffusers; the released repositories themselves, some of them
gated, were not opened, and `unchecked` says what else is a choice. Source of tokens and batch: the pipelines of
diffusers 0.42.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch import Tensor

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """One model at its size.

    `counts` names the entries of `config` that count blocks; `grid` is frames, rows and columns of image tokens, `text`
    the number of text tokens; `call` makes the transformer's arguments, floating ones in the default dtype.
    """

    name: str
    model: str
    config: dict[str, Any]
    counts: tuple[str, ...]
    grid: tuple[int, int, int]
    text: int
    batch: int
    call: Callable[[Size], Arguments]
    source: str
    unchecked: str = ""

    @property
    def tokens(self) -> int:
        """Image tokens."""
        return math.prod(self.grid)

    @property
    def depth(self) -> tuple[int, ...]:
        """Blocks in each list."""
        return tuple(self.config[name] for name in self.counts)

    def reduced(self, depth: int | None, tokens: int | None) -> Size:
        """At most so many blocks a list, and the largest square picture of at most so many tokens."""
        config = {**self.config, **{n: min(self.config[n], depth or self.config[n]) for n in self.counts}}
        if tokens is None or tokens >= self.tokens:
            return replace(self, config=config)
        side = math.isqrt(tokens)
        return replace(self, config=config, grid=(1, side, side))


def _flux(size: Size) -> Arguments:
    return {
        "hidden_states": torch.randn(size.batch, size.tokens, size.config["in_channels"]),
        "encoder_hidden_states": torch.randn(size.batch, size.text, size.config["joint_attention_dim"]),
        "pooled_projections": torch.randn(size.batch, size.config["pooled_projection_dim"]),
        "timestep": torch.full((size.batch,), 0.5),
        "guidance": torch.full((size.batch,), 3.5, dtype=torch.float32),
        "img_ids": torch.zeros(size.tokens, 3),
        "txt_ids": torch.zeros(size.text, 3),
    }


def _sd3(size: Size) -> Arguments:
    _, rows, columns = size.grid
    patch = size.config["patch_size"]
    return {
        "hidden_states": torch.randn(size.batch, size.config["in_channels"], patch * rows, patch * columns),
        "encoder_hidden_states": torch.randn(size.batch, size.text, size.config["joint_attention_dim"]),
        "pooled_projections": torch.randn(size.batch, size.config["pooled_projection_dim"]),
        "timestep": torch.full((size.batch,), 500.0, dtype=torch.float32),
    }


def _qwen(size: Size) -> Arguments:
    return {
        "hidden_states": torch.randn(size.batch, size.tokens, size.config["in_channels"]),
        "encoder_hidden_states": torch.randn(size.batch, size.text, size.config["joint_attention_dim"]),
        "encoder_hidden_states_mask": None,
        "timestep": torch.full((size.batch,), 0.5),
        "img_shapes": [[size.grid]] * size.batch,
    }


def _cogvideox(size: Size) -> Arguments:
    frames, rows, columns = size.grid
    patch = size.config["patch_size"]
    shape = (size.batch, frames, size.config["in_channels"], patch * rows, patch * columns)
    return {
        "hidden_states": torch.randn(shape),
        "encoder_hidden_states": torch.randn(size.batch, size.text, size.config["text_embed_dim"]),
        "timestep": torch.full((size.batch,), 500),
        "image_rotary_emb": _rotary(size),
    }


def _rotary(size: Size) -> tuple[Tensor, Tensor]:
    frames, rows, columns = size.grid
    cosine, sine = get_3d_rotary_pos_embed(
        size.config["attention_head_dim"], ((0, 0), (rows, columns)), (rows, columns), frames
    )
    return torch.as_tensor(cosine), torch.as_tensor(sine)


def _hunyuanvideo(size: Size) -> Arguments:
    frames, rows, columns = size.grid
    patch = size.config["patch_size"]
    mask = torch.zeros(size.batch, size.text, dtype=torch.int64)
    mask[:, : max(size.text // 4, 1)] = 1
    return {
        "hidden_states": torch.randn(size.batch, size.config["in_channels"], frames, patch * rows, patch * columns),
        "encoder_hidden_states": torch.randn(size.batch, size.text, size.config["text_embed_dim"]),
        "encoder_attention_mask": mask,
        "pooled_projections": torch.randn(size.batch, size.config["pooled_projection_dim"]),
        "timestep": torch.full((size.batch,), 500),
        "guidance": torch.full((size.batch,), 6000.0),
    }


_SD35: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "qk_norm": "rms_norm",
}

_ALL = (
    Size(
        name="flux",
        model="FluxTransformer2DModel",
        config={
            "patch_size": 1,
            "in_channels": 64,
            "num_layers": 19,
            "num_single_layers": 38,
            "attention_head_dim": 128,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 768,
            "guidance_embeds": True,
            "axes_dims_rope": (16, 56, 56),
        },
        counts=("num_layers", "num_single_layers"),
        grid=(1, 64, 64),
        text=512,
        batch=1,
        call=_flux,
        source="FLUX.1-dev, 1024x1024; guidance is embedded, so one row",
    ),
    Size(
        name="sd35-medium",
        model="SD3Transformer2DModel",
        config={
            **_SD35,
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "pos_embed_max_size": 384,
            "dual_attention_layers": tuple(range(13)),
        },
        counts=("num_layers",),
        grid=(1, 64, 64),
        text=77 + 256,
        batch=2,
        call=_sd3,
        source="Stable Diffusion 3.5 medium, 1024x1024; guidance makes two rows",
    ),
    Size(
        name="sd35-large",
        model="SD3Transformer2DModel",
        config={
            **_SD35,
            "num_layers": 38,
            "num_attention_heads": 38,
            "caption_projection_dim": 2432,
            "pos_embed_max_size": 192,
        },
        counts=("num_layers",),
        grid=(1, 64, 64),
        text=77 + 256,
        batch=2,
        call=_sd3,
        source="Stable Diffusion 3.5 large, 1024x1024; guidance makes two rows",
    ),
    Size(
        name="qwen",
        model="QwenImageTransformer2DModel",
        config={
            "patch_size": 2,
            "in_channels": 64,
            "out_channels": 16,
            "num_layers": 60,
            "attention_head_dim": 128,
            "num_attention_heads": 24,
            "joint_attention_dim": 3584,
            "guidance_embeds": False,
            "axes_dims_rope": (16, 56, 56),
        },
        counts=("num_layers",),
        grid=(1, 64, 64),
        text=512,
        batch=1,
        call=_qwen,
        source="Qwen-Image, 1024x1024; guidance makes two calls of one row",
        unchecked="the text is as long as the prompt; 512 is the pipeline's default limit, so the most that is lifted",
    ),
    Size(
        name="cogvideox-5b",
        model="CogVideoXTransformer3DModel",
        config={
            "num_attention_heads": 48,
            "attention_head_dim": 64,
            "in_channels": 16,
            "out_channels": 16,
            "time_embed_dim": 512,
            "text_embed_dim": 4096,
            "num_layers": 42,
            "sample_width": 90,
            "sample_height": 60,
            "sample_frames": 49,
            "patch_size": 2,
            "temporal_compression_ratio": 4,
            "max_text_seq_length": 226,
            "spatial_interpolation_scale": 1.875,
            "temporal_interpolation_scale": 1.0,
            "use_rotary_positional_embeddings": True,
        },
        counts=("num_layers",),
        grid=(13, 30, 45),
        text=226,
        batch=2,
        call=_cogvideox,
        source="CogVideoX-5b, 49 frames of 720x480; guidance makes two rows",
    ),
    Size(
        name="hunyuanvideo",
        model="HunyuanVideoTransformer3DModel",
        config={
            "in_channels": 16,
            "out_channels": 16,
            "num_attention_heads": 24,
            "attention_head_dim": 128,
            "num_layers": 20,
            "num_single_layers": 40,
            "num_refiner_layers": 2,
            "mlp_ratio": 4.0,
            "patch_size": 2,
            "patch_size_t": 1,
            "qk_norm": "rms_norm",
            "guidance_embeds": True,
            "text_embed_dim": 4096,
            "pooled_projection_dim": 768,
            "rope_theta": 256.0,
            "rope_axes_dim": (16, 56, 56),
        },
        counts=("num_layers", "num_single_layers"),
        grid=(33, 45, 80),
        text=256,
        batch=1,
        call=_hunyuanvideo,
        source="HunyuanVideo, 129 frames of 1280x720; guidance is embedded, so one row",
        unchecked="a quarter of the text is taken to be valid, the rest padding",
    ),
)

SIZES = {size.name: size for size in _ALL}
"""What `--family` may name."""
