"""A real, tiny StableDiffusion3Pipeline with random weights: what is tested is what users run."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

DEFAULTS = {"height": 16, "width": 8, "num_inference_steps": 3, "max_sequence_length": 4, "guidance_scale": 2.0}
WORDS = "a an the of in on at with and striped purple lion wearing crown pink ground red blue"


@pytest.fixture(autouse=True)
def _quiet() -> None:
    torch.manual_seed(0)


def _tokenizer() -> CLIPTokenizer:
    """Every word of WORDS is one token; other words fall into letters."""
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    letters = list("abcdefghijklmnopqrstuvwxyz.,")
    trained.train_from_iterator(
        [WORDS, " ".join(letters)],
        trainers.BpeTrainer(
            vocab_size=4096,
            min_frequency=1,
            show_progress=False,
            end_of_word_suffix="</w>",
            special_tokens=["<|startoftext|>", "<|endoftext|>"],
            initial_alphabet=letters,
        ),
    )
    model = json.loads(trained.to_str())["model"]
    return CLIPTokenizer(vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]], model_max_length=16)


def _text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config).eval()


def tiny_transformer(blocks: int = 3) -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=blocks,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=4,
        qk_norm="rms_norm",
    ).eval()


@pytest.fixture(scope="session")
def _prototype() -> StableDiffusion3Pipeline:
    torch.manual_seed(1)
    tokenizer = _tokenizer()
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
        sample_size=8,
        shift_factor=0.0,
    ).eval()
    pipe = StableDiffusion3Pipeline(
        transformer=tiny_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae,
        text_encoder=_text_encoder(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=_text_encoder(tokenizer),
        tokenizer_2=copy.deepcopy(tokenizer),
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def saved(_prototype: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with that pipeline and how it is called."""
    folder = tmp_path_factory.mktemp("model")
    _prototype.save_pretrained(folder)
    (folder / "generation.json").write_text(json.dumps(DEFAULTS))
    return folder


@pytest.fixture
def pipe(_prototype: StableDiffusion3Pipeline) -> StableDiffusion3Pipeline:
    return copy.deepcopy(_prototype)


@pytest.fixture
def transformer() -> SD3Transformer2DModel:
    return tiny_transformer()


@pytest.fixture
def server() -> Iterator[Any]:
    """A chat endpoint of this machine; test_endpoint.py says what it answers."""
    from test_endpoint import Server

    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()
