"""The registry, what every metric refuses, and the metrics made of CLIP embeddings, on a tiny real CLIP."""

from __future__ import annotations

import copy
import importlib
import inspect
import json
import random
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertConfig, CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from rarelift import metrics
from rarelift.menagerie.judge import Judge
from rarelift.menagerie.world import draw_thing, render
from rarelift.metrics import _checks
from rarelift.metrics.clip_t import ClipT, clip_t
from rarelift.metrics.embed import Clip
from rarelift.metrics.preference import Preference
from rarelift.metrics.video import Success, consistency, frame_success, success

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = ["a striped purple lion", "the pink crown", "a lion", "blue ground with a red lion in a crown"]


def picture(seed: int, size: tuple[int, int] = (20, 24)) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


PICTURES = [picture(i) for i in range(4)]


@pytest.fixture(scope="session")
def checkpoint(_prototype: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(2)
    tokenizer = _prototype.tokenizer
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = {**shape, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
    model = CLIPModel(
        CLIPConfig(text_config=text, vision_config={**shape, "image_size": 16, "patch_size": 8}, projection_dim=12)
    )
    path = tmp_path_factory.mktemp("clip")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(path)
    return path


@torch.no_grad()
def vectors(path: Path, images: list[Image.Image], texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings by hand: resized, cropped and normalised in numpy, one at a time, projected in float64."""
    model, tokenizer = CLIPModel.from_pretrained(path).eval(), CLIPTokenizer.from_pretrained(path)
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    seen, read = [], []
    for image in images:
        scale = 16 / min(image.size)
        size = (int(image.width * scale), int(image.height * scale))
        small = np.asarray(image.resize(size, Image.Resampling.BICUBIC), dtype=np.float64)
        top, left = (small.shape[0] - 16) // 2, (small.shape[1] - 16) // 2
        pixels = (small[top : top + 16, left : left + 16] / 255 - mean) / std
        state = model.vision_model(torch.tensor(pixels).permute(2, 0, 1)[None].float()).pooler_output[0]
        v = model.visual_projection.weight.double().numpy() @ state.double().numpy()
        seen.append(v / np.sqrt(v @ v))
    for text in texts:
        state = model.text_model(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0, -1]
        v = model.text_projection.weight.double().numpy() @ state.double().numpy()
        read.append(v / np.sqrt(v @ v))
    return np.array(seen), np.array(read)


@pytest.fixture
def cosines(checkpoint: Path) -> np.ndarray:
    seen, read = vectors(checkpoint, PICTURES, TEXTS)
    return (seen * read).sum(-1)


# ---------------------------------------------------------------- registry


@pytest.mark.parametrize("entry", metrics.METRICS.values(), ids=lambda entry: entry.name)
def test_every_entry_is_there(entry: metrics.Entry) -> None:
    found = entry.load()
    assert callable(found)
    assert metrics.get(entry.name) is entry
    text = inspect.getdoc(found.__call__ if inspect.isclass(found) else found)
    assert text is not None
    assert f"{'higher' if entry.higher_is_better else 'lower'} is better" in text.lower()
    assert "ValueError" in text
    module = importlib.import_module(f"rarelift.metrics.{entry.module}")
    assert getattr(module, "HIGHER_IS_BETTER", entry.higher_is_better) == entry.higher_is_better


@pytest.mark.parametrize(("name", "near"), [("clipt", "'clip_t'"), ("FID", "'fid'"), ("x", "there are: clip_t, ")])
def test_an_unknown_name_gets_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=near):
        metrics.get(name)


def test_listing_imports_nothing_heavy() -> None:
    code = (
        "import sys; before = set(sys.modules); import rarelift.metrics.edit, rarelift.metrics.distribution, "
        "rarelift.metrics.vqa, rarelift.metrics.embed, rarelift.metrics.endpoint; "
        "print([m for m in ('torchmetrics', 'open_clip', 'torchvision', 'torch_fidelity') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("images", "error"),
    [
        ([], "no pictures to score"),
        (PICTURES[0], r"images is one picture; pass a list"),
        ([PICTURES[0], np.zeros((8, 8, 3))], r"images\[1\] is a ndarray; pass a PIL picture"),
        ([PICTURES[0].convert("RGBA")], r"images\[0\] has mode RGBA; pass images\[0\].convert\('RGB'\)"),
        ([Image.fromarray(np.full((8, 8), np.nan, dtype=np.float32))], r"mode F"),
        ([PICTURES[0], Image.new("RGB", (0, 8))], r"images\[1\] has no pixels, it is 0 x 8"),
    ],
)
def test_pictures_are_checked(images: Any, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        _checks.pictures(images)


def test_a_picture_of_one_colour_is_scored_with_a_warning(checkpoint: Path) -> None:
    """A safety checker leaves black pictures; one of them must not take the scores of all others away."""
    black = Image.new("RGB", (8, 8))
    with pytest.warns(UserWarning, match=r"^2 of 3 pictures are of one colour, images\[1\] first") as caught:
        scores = ClipT(checkpoint)([PICTURES[0], black, black], ["a lion"] * 3)
    assert len(caught) == 1
    assert caught[0].filename.endswith("clip_t.py") or caught[0].filename.endswith("embed.py")
    assert scores[0] == pytest.approx(ClipT(checkpoint)(PICTURES[:1], ["a lion"])[0], abs=1e-6)
    assert scores[1] == scores[2] != scores[0]
    black.putpixel((3, 4), (0, 0, 1))
    assert _checks.pictures([black]) == [black]


@pytest.mark.parametrize(
    ("texts", "error"),
    [("a lion", "one string"), (["a", " "], r"texts\[1\] is empty"), ([3], r"texts\[0\] is a int")],
)
def test_texts_are_checked(texts: Any, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        _checks.texts(texts)


def test_a_missing_package_says_how_to_get_it() -> None:
    with pytest.raises(ImportError, match="needs nowhere: pip install 'rarelift"):
        _checks.need("nowhere.at", "'rarelift[bench]'")


def test_a_torchvision_of_another_torch_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(
        ImportError, match=r"open_clip does not import beside torch .*::nms .*torchvision from one index"
    ):
        _checks.need("open_clip", "open_clip_torch")


# ---------------------------------------------------------------- CLIP


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_clip_t_agrees_with_reference(checkpoint: Path, cosines: np.ndarray, batch_size: int) -> None:
    got = ClipT(checkpoint, batch_size=batch_size)(PICTURES, TEXTS)
    assert np.ptp(cosines) > 0.05
    np.testing.assert_allclose(got, cosines, atol=1e-5)


def test_preference_is_the_scaled_cosine(checkpoint: Path, cosines: np.ndarray) -> None:
    metric = Preference(checkpoint)
    with torch.no_grad():
        metric.model.logit_scale.fill_(np.log(100.0))
    assert metric.scale == pytest.approx(100.0)
    np.testing.assert_allclose(metric(PICTURES, TEXTS), 100 * cosines, atol=1e-3)


def test_preference_finds_its_processor_elsewhere(checkpoint: Path, cosines: np.ndarray, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    metric = Preference(tmp_path, processor=checkpoint)
    np.testing.assert_allclose(metric(PICTURES, TEXTS), metric.scale * cosines, rtol=1e-4, atol=1e-4)


def test_the_plain_function_gives_the_same(checkpoint: Path, cosines: np.ndarray) -> None:
    pixels = CLIPImageProcessorPil.from_pretrained(checkpoint)(images=PICTURES, return_tensors="pt")["pixel_values"]
    ids = CLIPTokenizer.from_pretrained(checkpoint)(TEXTS, padding=True, return_tensors="pt")["input_ids"]
    got = clip_t(CLIPModel.from_pretrained(checkpoint).eval(), pixels, ids)
    np.testing.assert_allclose(got.numpy(), cosines, atol=1e-5)


def test_what_transformers_4_returned_is_taken_too(checkpoint: Path, cosines: np.ndarray) -> None:
    metric = ClipT(checkpoint)
    see, read = metric.model.get_image_features, metric.model.get_text_features
    metric.model.get_image_features = lambda **inputs: see(**inputs).pooler_output
    metric.model.get_text_features = lambda **inputs: read(**inputs).pooler_output
    np.testing.assert_allclose(metric(PICTURES, TEXTS), cosines, atol=1e-5)


def test_a_long_text_is_cut_with_a_warning(checkpoint: Path) -> None:
    metric = ClipT(checkpoint)
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than 16 tokens"):
        long, _ = metric(PICTURES[:2], ["lion " * 40, "a lion"])
    assert long == pytest.approx(metric(PICTURES[:1], ["lion " * 14])[0], abs=1e-6)


def test_lengths_must_agree(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="4 pictures but 3 texts"):
        ClipT(checkpoint)(PICTURES, TEXTS[:3])


def test_a_model_that_overflows_is_an_error(checkpoint: Path) -> None:
    metric = ClipT(checkpoint)
    with torch.no_grad():
        metric.model.visual_projection.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="embeddings of images: row 0 is not finite"):
        metric(PICTURES, TEXTS)


def test_what_is_no_clip_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'openai/clip' is not a directory"):
        Clip("openai/clip")
    with pytest.raises(ValueError, match="no backend 'jax'; there are: transformers, open_clip"):
        Clip(checkpoint, "jax")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size is 0"):
        Clip(checkpoint, batch_size=0)
    with pytest.raises(ValueError, match="architecture 'ViT-H-14' is for backend='open_clip'"):
        Clip(checkpoint, architecture="ViT-H-14")
    with pytest.raises(ValueError, match="'nowhere' is not a directory"):
        Clip("nowhere", "open_clip")
    with pytest.raises(ValueError, match=r"architecture is None and path '.*config.json'; a file of weights needs one"):
        Clip(checkpoint / "config.json", "open_clip")
    with pytest.raises(ValueError, match="architecture is 'ViT-H-14' and path"):
        Clip(checkpoint, "open_clip", architecture="ViT-H-14")
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="of type 'bert', not 'clip'"):
        Clip(tmp_path)


def test_missing_weights_are_not_made_up(checkpoint: Path, tmp_path: Path) -> None:
    model = CLIPModel.from_pretrained(checkpoint)
    kept = {k: v.clone() for k, v in model.state_dict().items() if k != "text_projection.weight"}
    model.save_pretrained(tmp_path, state_dict=kept)
    with pytest.raises(ValueError, match="lacks 1 weights of the model, text_projection.weight first"):
        Clip(tmp_path, processor=checkpoint)


def test_open_clip_from_a_directory_and_from_a_file(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip", reason="an optional backend", exc_type=ImportError)
    tower = {"width": 16, "layers": 1}
    shape = {
        "embed_dim": 12,
        "vision_cfg": {**tower, "image_size": 16, "patch_size": 8, "head_width": 8},
        "text_cfg": {**tower, "context_length": 16, "vocab_size": 49408, "heads": 2},
    }
    model = open_clip.CLIP(**copy.deepcopy(shape)).eval()
    config = {"model_cfg": shape, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    torch.save(model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    pixels = [image.resize((16, 16)) for image in PICTURES]
    seen = torch.stack([torch.tensor(np.array(p)).permute(2, 0, 1) / 127.5 - 1 for p in pixels])
    with torch.no_grad():
        looked = model.encode_image(seen)
        read = model.encode_text(open_clip.SimpleTokenizer(context_length=16)(TEXTS))
    expected = torch.cosine_similarity(looked, read)
    got = ClipT(tmp_path, "open_clip", batch_size=3)(pixels, TEXTS)
    np.testing.assert_allclose(got, expected, atol=1e-5)

    # as HPS v2 comes: the state of a training run in a file that says nothing of its architecture
    (tmp_path / "tiny.json").write_text(json.dumps(shape))
    open_clip.add_model_config(tmp_path / "tiny.json")
    with torch.no_grad():
        model.logit_scale.fill_(np.log(50.0))
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, tmp_path / "HPS.pt")
    mean, std = torch.tensor(open_clip.OPENAI_DATASET_MEAN), torch.tensor(open_clip.OPENAI_DATASET_STD)
    seen = torch.stack([((torch.tensor(np.array(p)) / 255 - mean) / std).permute(2, 0, 1) for p in pixels])
    with torch.no_grad():
        expected = torch.cosine_similarity(model.encode_image(seen), read)
    np.testing.assert_allclose(
        ClipT(tmp_path / "HPS.pt", "open_clip", architecture="tiny")(pixels, TEXTS), expected, atol=1e-5
    )
    scaled = Preference(tmp_path / "HPS.pt", "open_clip", architecture="tiny")(pixels, TEXTS)
    np.testing.assert_allclose(scaled, 50 * expected, atol=1e-3)
    with pytest.raises(ValueError, match="open_clip knows no architecture 'huge'"):
        Clip(tmp_path / "HPS.pt", "open_clip", architecture="huge")


# ---------------------------------------------------------------- videos


def test_consistency_agrees_with_reference(checkpoint: Path) -> None:
    seen, _ = vectors(checkpoint, PICTURES, [])
    got = consistency([PICTURES, PICTURES[:2], [PICTURES[0]] * 3], Clip(checkpoint).images)
    expected = [np.mean([seen[i] @ seen[i + 1] for i in range(3)]), seen[0] @ seen[1], 1.0]
    assert expected[0] != pytest.approx(seen[0] @ seen[3], abs=1e-4)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_vectors_need_not_be_of_unit_length() -> None:
    steps = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 5.0]])
    assert consistency([PICTURES[:3]], lambda _: steps) == pytest.approx([0.5**0.5])


@pytest.mark.parametrize(
    ("videos", "embed", "error"),
    [
        ([], len, "no videos"),
        ([PICTURES[:1]], len, r"videos\[0\] has one frame"),
        ([[]], len, r"videos\[0\] is empty"),
        (
            [PICTURES, [PICTURES[0], PICTURES[1].convert("L")]],
            lambda f: torch.eye(len(f)),
            r"videos\[1\]\[1\] has mode L",
        ),
        ([PICTURES], lambda _: torch.eye(3), "embed made 3 vectors of the 4 frames"),
        ([PICTURES], lambda _: torch.full((4, 2), torch.nan), "not finite"),
    ],
)
def test_consistency_refuses(videos: Any, embed: Any, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        consistency(videos, embed)


def test_success_of_frames() -> None:
    assert success([True, False, True, True]) == Success(0.75, True, False)
    assert success([False, 0]) == Success(0.0, False, False)
    assert success([1, True]) == Success(1.0, True, True)
    with pytest.raises(ValueError, match="no frames"):
        success([])
    with pytest.raises(ValueError, match=r"frames\[1\] is 0.7; pass true or false"):
        success([True, 0.7])  # type: ignore[list-item]


def test_success_of_videos_by_the_judge_of_menagerie() -> None:
    """Two videos of another length: a thing in every frame, and one that is itself in the last frame only."""
    rng, judge = random.Random(3), Judge.load()
    wanted = [draw_thing(rng) for _ in range(2)]
    one, two = (Image.fromarray(render(thing, rng)) for thing in wanted)
    assert frame_success([[one] * 2, [one, one, one, two]], wanted, judge.right) == [
        Success(1.0, True, True),
        Success(0.25, True, False),
    ]


def test_success_of_frames_asks_once_and_in_order() -> None:
    calls: list[Any] = []

    def right(frames: list[Image.Image], wanted: list[str]) -> list[bool]:
        calls.append((frames, wanted))
        return [frame is PICTURES[0] for frame in frames]

    got = frame_success([PICTURES[:3], [PICTURES[0]]], ["a", "b"], right)
    assert got == [Success(1 / 3, True, False), Success(1.0, True, True)]
    assert calls == [([*PICTURES[:3], PICTURES[0]], ["a", "a", "a", "b"])]


@pytest.mark.parametrize(
    ("videos", "wanted", "verdicts", "error"),
    [
        ([], [], [], "no videos"),
        ([PICTURES[:1]], [], [True], "1 videos but 0 wanted"),
        ([PICTURES[:1], []], ["a", "b"], [True], r"videos\[1\] is empty"),
        ([PICTURES[:2]], ["a"], [True], r"right made bool of shape \[1\] of 2 frames"),
        ([PICTURES[:2]], ["a"], [0.2, 0.9], r"right made float64 of shape \[2\]"),
    ],
)
def test_success_of_frames_refuses(videos: Any, wanted: Any, verdicts: Any, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        frame_success(videos, wanted, lambda *_: verdicts)
