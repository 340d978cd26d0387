from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from rarelift.metrics.clip_t import HIGHER_IS_BETTER, clip_t

END = 49


@pytest.fixture
def model() -> CLIPModel:
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**shape, "vocab_size": 50, "max_position_embeddings": 8, "eos_token_id": END, "pad_token_id": END}
    vision = {**shape, "image_size": 16, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    return CLIPModel(config).eval()


def texts(n: int) -> torch.Tensor:
    """Texts of 2 to 6 tokens, ended and padded to 8."""
    ids = torch.full((n, 8), END)
    for i in range(n):
        ids[i, : 2 + i % 5] = torch.randint(1, END, (2 + i % 5,))
    return ids


@torch.no_grad()
def reference(model: CLIPModel, pixels: torch.Tensor, ids: torch.Tensor) -> np.ndarray:
    """Pooled states, projection and cosine by hand, one pair at a time, in float64."""
    scores = []
    for picture, text in zip(pixels, ids, strict=True):
        seen = model.vision_model(picture[None]).pooler_output[0].double().numpy()
        end = (text == END).nonzero()[0, 0]
        read = model.text_model(text[None]).last_hidden_state[0, end].double().numpy()
        a = model.visual_projection.weight.double().numpy() @ seen
        b = model.text_projection.weight.double().numpy() @ read
        scores.append(a @ b / np.sqrt((a @ a) * (b @ b)))
    return np.array(scores)


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_agrees_with_reference(model: CLIPModel, batch_size: int) -> None:
    pixels, ids = torch.randn(7, 3, 16, 16), texts(7)
    got = clip_t(model, pixels, ids, batch_size=batch_size)
    expected = reference(model, pixels, ids)
    assert got.shape == (7,)
    assert not got.requires_grad
    assert np.ptp(expected) > 0.05  # the pairs are told apart at all
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)


def test_the_scale_of_the_logits_does_not_enter(model: CLIPModel) -> None:
    pixels, ids = torch.randn(3, 3, 16, 16), texts(3)
    before = clip_t(model, pixels, ids)
    with torch.no_grad():
        model.logit_scale.fill_(0.0)
        model.visual_projection.weight.mul_(5)
    torch.testing.assert_close(clip_t(model, pixels, ids), before)
    assert HIGHER_IS_BETTER


def test_nothing_has_no_score(model: CLIPModel) -> None:
    with pytest.raises(ValueError, match="no pictures to score"):
        clip_t(model, torch.randn(0, 3, 16, 16), texts(0))


def test_pictures_and_texts_must_pair(model: CLIPModel) -> None:
    with pytest.raises(ValueError, match=r"^3 pictures but 2 texts$"):
        clip_t(model, torch.randn(3, 3, 16, 16), texts(2))
