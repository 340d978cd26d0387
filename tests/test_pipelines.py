from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rarelift
from conftest import DEFAULTS
from rarelift import pipelines
from rarelift.anatomy import captured
from rarelift.pipelines import Model, ModelError, load, text_to_image

PARTS = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "vae")
PROMPTS = ["a purple lion", "a red crown on the ground", "a lion"]


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.fixture(scope="session")
def model(saved: Path) -> Model:
    return load(str(saved), device="cpu")


def arrays(images: list[Any]) -> list[np.ndarray]:
    return [np.asarray(image).astype(int) for image in images]


# ---------------------------------------------------------------------------------------------- drawing


def test_defaults_of_the_model_are_used_and_overridden(model: Model) -> None:
    assert model.defaults == DEFAULTS
    assert not model.bundled
    with captured(model.pipe) as streams:
        (image,) = text_to_image(model, ["a lion"], [0])
    assert image.size == (8, 16)
    calls = streams["transformer_blocks.0"]
    assert len(calls) == 3  # steps
    assert calls[0].shape[:2] == (2, 16 + 4)  # both halves of guidance; CLIP tokens and the T5 slot
    with captured(model.pipe) as streams:
        (image,) = text_to_image(model, ["a lion"], [0], height=8, num_inference_steps=2, guidance_scale=1.0)
    assert image.size == (8, 8)
    assert [z.shape[0] for z in streams["transformer_blocks.0"]] == [1, 1]
    assert model.defaults == DEFAULTS


def test_a_pair_gives_one_picture_in_whatever_batch(model: Model) -> None:
    seeds = [11, 5, 7]
    together = arrays(text_to_image(model, PROMPTS, seeds))
    pairs = arrays(text_to_image(model, PROMPTS, seeds, batch_size=2))
    turned = arrays(text_to_image(model, PROMPTS[::-1], seeds[::-1]))[::-1]
    for i, (prompt, seed) in enumerate(zip(PROMPTS, seeds, strict=True)):
        (alone,) = arrays(text_to_image(model, [prompt], [seed]))
        for other in (together[i], pairs[i], turned[i]):
            assert np.abs(other - alone).max() <= 1  # a batch may round the last bit elsewhere
    (again,) = arrays(text_to_image(model, PROMPTS[:1], seeds[:1]))
    assert (again == arrays(text_to_image(model, PROMPTS[:1], seeds[:1]))[0]).all()


def test_seeds_and_prompts_tell_pictures_apart(model: Model) -> None:
    one, same, other_seed, other_prompt = arrays(
        text_to_image(model, [PROMPTS[0]] * 3 + [PROMPTS[1]], [1, 1, 2, 1], guidance_scale=5.0)
    )
    assert np.abs(one - same).max() <= 1
    assert np.abs(one - other_seed).max() > 10
    assert (one != other_prompt).any()


def test_batches_are_counted(model: Model) -> None:
    made: list[int] = []
    images = text_to_image(model, ["a lion"] * 5, range(5), batch_size=2, on_batch=made.append)
    assert made == [2, 2, 1]
    assert len(images) == 5
    assert text_to_image(model, [], []) == []


@pytest.mark.parametrize(
    ("prompts", "seeds", "options", "message"),
    [
        (["a lion", ""], [0, 1], {}, "^the prompt is empty; say what to draw"),
        (["  \n"], [0], {}, "the prompt is empty"),
        (["a lion"], [0, 1], {}, "^1 prompts but 2 seeds$"),
        (["a lion", "a crown"], [0], {}, "^2 prompts but 1 seeds$"),
        (["a lion"], [0], {"batch_size": 0}, "^batch_size must be at least 1, not 0$"),
    ],
)
def test_wrong_requests_teach(
    model: Model, prompts: list[str], seeds: list[int], options: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        text_to_image(model, prompts, seeds, **options)


# ---------------------------------------------------------------------------------------------- loading


def test_a_loaded_model_is_the_saved_one(model: Model, pipe: Any) -> None:
    for name in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        expected = getattr(pipe, name).state_dict()
        found = getattr(model.pipe, name).state_dict()
        assert all(torch.equal(found[k], v) for k, v in expected.items()), name
    assert model.pipe.text_encoder_3 is None
    assert model.pipe.transformer.dtype == torch.float32  # on a CPU


def test_the_bundled_name_is_its_folder(saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pipelines, "PIPELINE", saved)
    model = load(dtype=torch.bfloat16, device="cpu")
    assert model.bundled
    assert model.pipe.transformer.dtype == torch.bfloat16
    monkeypatch.setattr(pipelines, "PIPELINE", tmp_path / "gone")
    with pytest.raises(
        ModelError, match=r"^the bundled model is not at .*gone; reinstall rarelift or run `rarelift train`"
    ):
        load()


def test_a_model_without_defaults(folder: Path) -> None:
    (folder / "generation.json").unlink()
    assert load(str(folder)).defaults == {}


def refused(folder: Path | str) -> str:
    with pytest.raises(ModelError) as caught:
        load(str(folder), device="cpu")
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize("name", ["menagarie", "/no/such/folder", "./sd3", "~/sd3", "a/b/c"])
def test_no_such_model(name: str) -> None:
    message = refused(name)
    assert repr(name) in message
    assert "'menagerie'" in message
    assert "hub id" in message


def test_a_folder_that_is_no_pipeline(tmp_path: Path) -> None:
    assert refused(tmp_path) == f"{tmp_path} has no model_index.json, so it is not a diffusers pipeline"


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_folder_is_named(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    assert refused(folder) == f"{folder} lacks the folder {part!r} that its model_index.json names"


@pytest.mark.parametrize("part", ["tokenizer", "tokenizer_2"])
def test_a_tokenizer_without_words_is_named(folder: Path, part: str) -> None:
    for path in (folder / part).iterdir():
        if path.name in ("tokenizer.json", "vocab.json", "merges.txt"):
            path.unlink()
    assert list((folder / part).iterdir())  # the rest of it is there
    assert refused(folder).startswith(f"{folder / part} holds no vocabulary")


def test_settings_in_the_index_are_no_parts(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"levels": [], "sizes": [1, 2, 3], "strict": True}))
    assert load(str(folder), device="cpu").pipe.text_encoder_3 is None


@pytest.mark.parametrize("part", PARTS)
def test_an_empty_folder_is_named(folder: Path, part: str) -> None:
    for path in (folder / part).iterdir():
        path.unlink()
    assert part in refused(folder).replace(str(folder), "")


@pytest.mark.parametrize(
    "file", ["model_index.json", "generation.json", "transformer/config.json", "tokenizer_2/tokenizer_config.json"]
)
@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe\x00", b"[]", b"3"])
def test_damaged_json_is_named(folder: Path, file: str, content: bytes) -> None:
    (folder / file).write_bytes(content)
    assert str(folder / file) in refused(folder)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "text_encoder_2"])
@pytest.mark.parametrize("keep", [0.5, 0.01, 0.0])
def test_cut_weights_are_named(folder: Path, part: str, keep: float) -> None:
    (weights,) = (folder / part).glob("*.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[: int(len(content) * keep)])
    message = refused(folder)
    assert part in message.replace(str(folder), "")


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "text_encoder_2"])
def test_missing_weights_are_named(folder: Path, part: str) -> None:
    (weights,) = (folder / part).glob("*.safetensors")
    weights.unlink()
    message = refused(folder).replace(str(folder), "")
    assert part in message


@pytest.mark.parametrize(
    ("part", "file"),
    [
        ("tokenizer", "tokenizer_config.json"),
        ("text_encoder", "config.json"),
        ("transformer", "config.json"),
        ("transformer", "diffusion_pytorch_model.safetensors"),
        ("vae", "diffusion_pytorch_model.safetensors"),
    ],
)
def test_a_part_without_a_file_it_needs_is_named(folder: Path, part: str, file: str) -> None:
    (folder / part / file).unlink()
    said = refused(folder)
    assert str(folder / part) in said
    assert ("safetensors" if file.endswith("safetensors") else file) in said


def test_a_vocabulary_that_is_empty_is_named(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    assert str(folder / "tokenizer" / "tokenizer.json") in refused(folder)


def test_the_folder_above_the_pipeline_is_told_from_it(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "weights" / "pipeline")
    assert str(tmp_path / "weights" / "pipeline") in refused(tmp_path / "weights")


def test_numbers_that_are_none_are_refused(model: Model) -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="guidance_scale must be a finite number"):
            text_to_image(model, ["a lion"], [0], guidance_scale=value)


def test_a_picture_of_nan_is_an_error(model: Model) -> None:
    with rarelift.apply(model.pipe, alpha=1e30), pytest.raises(FloatingPointError, match="came out as NaN"):
        text_to_image(model, ["a lion"], [0])
