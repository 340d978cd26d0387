"""A tiny real LLaVA with random weights and a tokenizer of words: what is asked of it is what users ask of theirs."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from rarelift.metrics.vqa import VQA_SCORE, Atoms, Vqa, atoms
from tiny_pipelines import Processor, qwen_vl, tokenizer

if TYPE_CHECKING:
    from pathlib import Path

WORDS = (
    "<pad> </s> <unk> <image> <s> user: said: yes no Yes No YES four 4 Four "
    "is the lion purple striped in a crown how many lions Answer one word."
)
TEMPLATE = (
    "{% for m in messages %}user: {% for c in m['content'] %}"
    "{{ '<image> ' if c['type'] == 'image' else c['text'] }}{% endfor %} {% endfor %}said:"
)
ASKED = ["is the lion purple", "how many lions", "is a striped purple lion in the crown", "lion"]


@pytest.fixture(scope="module")
def processor() -> Any:
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS.split())}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 4)])
    chat = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        padding_side="left",  # as those of chat models are
    )
    return transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessorPil(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
        ),
        tokenizer=chat,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(3)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **shape, "image_size": 16, "patch_size": 8},
        text_config={
            "model_type": "llama",
            **shape,
            "vocab_size": len(WORDS.split()),
            "initializer_range": 0.5,
            "pad_token_id": 0,
            "bos_token_id": 4,
            "eos_token_id": 1,
        },
        image_token_index=3,
        pad_token_id=0,
    )
    return transformers.LlavaForConditionalGeneration(config).eval()


def picture(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((20, 20), Image.Resampling.NEAREST)


PICTURES = [picture(i) for i in range(4)]


@torch.no_grad()
def reference(model: Any, processor: Any, image: Image.Image, question: str) -> dict[str, float]:
    """Probability of every word as the next, one question at a time, with nothing padded."""
    pixels = processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]
    ids = [WORDS.split().index(w) for w in f"<s> user: {'<image> ' * 4}{question} said:".split()]
    logits = model(input_ids=torch.tensor([ids]), pixel_values=pixels).logits[0, -1].double().numpy()
    p = np.exp(logits - logits.max())
    return dict(zip(WORDS.split(), p / p.sum(), strict=True))


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_agrees_with_reference(model: Any, processor: Any, batch_size: int) -> None:
    vqa = Vqa(model, processor, batch_size)
    ps = [reference(model, processor, *pair) for pair in zip(PICTURES, ASKED, strict=True)]
    yes = np.array([p["yes"] + p["Yes"] for p in ps])  # not "YES", which GenEval 2 does not count either
    no = np.array([p["no"] + p["No"] for p in ps])
    assert yes.max() > 2 * yes.min()
    np.testing.assert_allclose(vqa(PICTURES, ASKED), yes / (yes + no), rtol=1e-4)
    np.testing.assert_allclose(vqa(PICTURES, ASKED, against="vocabulary"), yes, rtol=1e-4)
    mixed = vqa(PICTURES, ASKED, ["Yes", "No ", "no", "YES"])
    share = yes / (yes + no)
    np.testing.assert_allclose(mixed, [share[0], 1 - share[1], 1 - share[2], share[3]], rtol=1e-4)
    for number in ("four", "4", "Four"):
        counts = vqa(PICTURES, ASKED, [number] * 4, against="vocabulary")
        np.testing.assert_allclose(counts, [p["four"] + p["Four"] + p["4"] for p in ps], rtol=1e-4)
    assert min(p["4"] for p in ps) > 1e-4


def test_the_picture_and_the_question_matter(model: Any, processor: Any) -> None:
    vqa = Vqa(model, processor)
    scores = vqa([PICTURES[0], PICTURES[1], PICTURES[0]], [ASKED[0], ASKED[0], ASKED[2]])
    assert len({round(score, 5) for score in scores}) == 3
    assert vqa(PICTURES, ASKED) == vqa(PICTURES, ASKED)


def test_a_template_that_holds_the_start_gets_no_second(model: Any, processor: Any) -> None:
    with_start = copy.deepcopy(processor)
    with_start.chat_template = "<s> " + TEMPLATE
    assert Vqa(model, with_start)(PICTURES, ASKED) == Vqa(model, processor)(PICTURES, ASKED)


def test_qwen_does_not_move_with_the_batch() -> None:
    """Its positions have three axes, and its pictures become as many tokens as their size asks for."""
    torch.manual_seed(4)
    words = tokenizer()
    qwen = Processor(
        image_processor=transformers.Qwen2VLImageProcessorPil(size={"shortest_edge": 3136, "longest_edge": 12544}),
        tokenizer=words,
        video_processor=None,
        chat_template="<|vision_start|> <|image_pad|> <|vision_end|> {{ messages[0]['content'][1]['text'] }}",
    )
    model = qwen_vl()
    images = [PICTURES[0].resize((56, 56)), PICTURES[1].resize((112, 84)), PICTURES[2].resize((84, 112))]
    asked = ["a striped lion", "a purple lion wearing a pink crown", "red"]
    alone, together = (
        Vqa(model, qwen, size)(images, asked, ["red", "blue", "red"], against="vocabulary") for size in (1, 3)
    )
    np.testing.assert_allclose(together, alone, rtol=1e-4)
    assert len({round(score, 6) for score in alone}) == 3


def test_soft_tifa_is_that_of_geneval_2(model: Any, processor: Any) -> None:
    """Its evaluation.py: first token against the whole vocabulary, the answer written as "How many" and others are."""
    listed = [[("is the lion purple", "Yes"), ("how many lions", "four")], [("is a lion in the crown", "Yes")]]
    got = Vqa(model, processor, 2).soft_tifa(PICTURES[:2], listed)
    expected = []
    for image, pairs in zip(PICTURES, listed, strict=False):
        ps = [reference(model, processor, image, f"{question} Answer in one word.") for question, _ in pairs]
        ways = [("yes", "Yes") if answer == "Yes" else ("four", "Four", "4") for _, answer in pairs]
        expected.append([sum(p[way] for way in some) for p, some in zip(ps, ways, strict=True)])
    assert [len(some) for some in got] == [2, 1]
    for some, those in zip(got, expected, strict=True):
        np.testing.assert_allclose(some, those, rtol=1e-4)
    am, gm = atoms(got[0])
    assert am == pytest.approx(sum(expected[0]) / 2, rel=1e-4)
    assert gm == pytest.approx((expected[0][0] * expected[0][1]) ** 0.5, rel=1e-4)
    with pytest.raises(ValueError, match=r"asked\[1\] is empty; ask at least one question"):
        Vqa(model, processor).soft_tifa(PICTURES[:2], [listed[0], []])
    with pytest.raises(ValueError, match="2 pictures but 1 lists of questions"):
        Vqa(model, processor).soft_tifa(PICTURES[:2], listed[:1])


def test_vqa_score_asks_the_question_of_the_paper(model: Any, processor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    vqa, asked = Vqa(model, processor), []
    first = vqa._first
    monkeypatch.setattr(vqa, "_first", lambda images, questions: asked.extend(questions) or first(images, questions))
    scores = vqa.vqa_score(PICTURES[:1], ["a {purple} lion"])
    assert asked == ['Does this figure show "a {purple} lion"? Please answer yes or no.']
    assert scores == vqa(PICTURES[:1], [VQA_SCORE.format("a {purple} lion")], against="vocabulary")


def test_from_path(model: Any, processor: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = Vqa.from_path(tmp_path, batch_size=2)
    # where torchvision is installed, the loaded processor resizes by it, and not by PIL
    np.testing.assert_allclose(loaded(PICTURES, ASKED), Vqa(model, processor)(PICTURES, ASKED), rtol=1e-3)
    half = Vqa.from_path(tmp_path, dtype=torch.bfloat16)
    np.testing.assert_allclose(half(PICTURES, ASKED), loaded(PICTURES, ASKED), atol=0.1)
    with pytest.raises(ValueError, match="'llava/llava' is not a directory"):
        Vqa.from_path("llava/llava")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (([], []), "no pictures"),
        ((PICTURES, ASKED[:2]), "4 pictures but 2 questions"),
        ((PICTURES, ASKED, ["yes"]), "4 pictures but 1 answers"),
        ((PICTURES, ASKED, ["yes", "four", "no", "no"]), "'four' is neither yes nor no; pass against='vocabulary'"),
        (([PICTURES[0].convert("L")], ASKED[:1]), "has mode L"),
        ((PICTURES[:1], [""]), r"questions\[0\] is empty"),
    ],
)
def test_bad_input_is_refused(model: Any, processor: Any, arguments: Any, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        Vqa(model, processor)(*arguments)


def test_what_cannot_be_asked_is_refused(model: Any, processor: Any) -> None:
    vqa = Vqa(model, processor)
    with pytest.raises(ValueError, match="does not know 'seven'"):
        vqa(PICTURES, ASKED, ["seven"] * 4, against="vocabulary")
    with pytest.raises(ValueError, match="against is 'maybe'"):
        vqa(PICTURES, ASKED, against="maybe")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="PreTrainedTokenizerFast has no chat template|TokenizersBackend has no chat"):
        Vqa(model, processor.tokenizer)
    with pytest.raises(ValueError, match="batch_size is 0"):
        Vqa(model, processor, 0)


def test_means_of_atoms() -> None:
    assert atoms([0.5, 0.125]) == pytest.approx(Atoms(0.3125, 0.25))
    assert atoms([1.0, 0.0, 1.0]) == pytest.approx(Atoms(2 / 3, 0.0))
    assert atoms([1.0]) == Atoms(1.0, 1.0)


@pytest.mark.parametrize("values", [[], [0.5, 1.5], [-0.1], [float("nan")]])
def test_atoms_are_probabilities(values: list[float]) -> None:
    with pytest.raises(ValueError, match="atoms"):
        atoms(values)
