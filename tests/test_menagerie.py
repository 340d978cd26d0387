"""The shipped Menagerie models, as a user gets them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rarelift import pipelines
from rarelift.menagerie import CLIP, JUDGE, PIPELINE, WEIGHTS
from rarelift.menagerie.judge import Judge, to_pixels
from rarelift.menagerie.suite import prompts
from rarelift.menagerie.world import ATTRIBUTES, caption, draw_thing, render


def test_the_weights_fit_the_budget() -> None:
    size = sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file())
    assert size < 40e6


def test_the_judge_names_clean_renders() -> None:
    rng = random.Random("not seen in training")
    things = [draw_thing(rng, balanced=True) for _ in range(768)]
    right = Judge.load(JUDGE).right([Image.fromarray(render(thing, rng)) for thing in things], things)
    assert (right.mean(0) >= 0.99).all(), dict(zip(ATTRIBUTES, right.mean(0), strict=True))


def test_the_judge_says_no() -> None:
    rng = random.Random(1)
    things = [draw_thing(rng, balanced=True) for _ in range(64)]
    shuffled = things[1:] + things[:1]
    right = Judge.load(JUDGE).right([Image.fromarray(render(thing, rng)) for thing in things], shuffled)
    assert right.all(1).mean() < 0.05


def test_clip_prefers_the_caption_of_the_picture() -> None:
    from transformers import AutoTokenizer, CLIPModel

    from rarelift.metrics.clip_t import clip_t

    model, tokenizer = CLIPModel.from_pretrained(CLIP).float(), AutoTokenizer.from_pretrained(CLIP)
    rng = random.Random(2)
    things = [draw_thing(rng, balanced=True) for _ in range(128)]
    pixels = to_pixels([Image.fromarray(render(thing, rng)) for thing in things])
    ids = tokenizer([caption(t) for t in things], padding="max_length", return_tensors="pt")["input_ids"]
    fitting = clip_t(model, pixels, ids)
    other = clip_t(model, pixels, ids.roll(1, 0))
    assert (fitting > other).float().mean() > 0.97


def test_the_pipeline_draws_common_things_right() -> None:
    model = pipelines.load()
    chosen = prompts("common", 24, split="tune")
    images = pipelines.text_to_image(model, [p.text for p in chosen], range(24), batch_size=24)
    right = Judge.load().right(images, [p.thing for p in chosen])
    assert right.mean() > 0.85


def test_stock_diffusers_loads_it() -> None:
    from diffusers import StableDiffusion3Pipeline

    pipe = StableDiffusion3Pipeline.from_pretrained(PIPELINE, text_encoder_3=None, tokenizer_3=None)
    assert pipe.transformer.config.num_layers == 8
    assert json.loads((PIPELINE / "generation.json").read_text())["max_sequence_length"] == pipe.tokenizer_max_length


def test_a_picture_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(ValueError, match="64 x 64 pixels; got one of 32 x 64"):
        Judge.load().read([Image.new("RGB", (32, 64))])


def test_no_pictures_are_no_verdict() -> None:
    with pytest.raises(ValueError, match="no pictures to look at"):
        Judge.load().right([], [])


def test_a_missing_judge_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no judge at"):
        Judge.load(tmp_path)


def test_pictures_and_things_must_pair_up() -> None:
    image = Image.fromarray(np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="1 pictures but 0 things"):
        Judge.load().right([image], [])
