from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rarelift.streams import FAMILIES
from rarelift.tokens import Reading, read, token_weights, with_prompt

FAMILY = FAMILIES["SD3Transformer2DModel"][0]
SEGMENTS = (16, 4)  # CLIP, then the T5 segment, zeros here
PROMPT = "a striped purple lion wearing a crown"


def texts(*prompts: str, **others: str) -> dict[str, tuple[str, ...]]:
    same = dict.fromkeys(("prompt", "prompt_2", "prompt_3"), prompts)
    return same | {name: (text,) * len(prompts) for name, text in others.items()}


def positions(pipe: Any, tokens: str | tuple[str, ...], said: dict[str, tuple[str, ...]], row: int = 0) -> list[int]:
    weights = token_weights(pipe, FAMILY, said, tokens, SEGMENTS)
    assert weights.shape == (len(said["prompt"]), 20)
    return weights[row].nonzero().flatten().tolist()


def test_all_is_every_position(pipe: Any) -> None:
    assert positions(pipe, "all", texts(PROMPT)) == list(range(20))


def test_valid_is_begin_words_end(pipe: Any) -> None:
    assert positions(pipe, "valid", texts(PROMPT)) == list(range(9))
    assert positions(pipe, "valid", texts("")) == [0, 1]
    assert positions(pipe, "valid", texts(PROMPT, "lion"), row=1) == [0, 1, 2]


def test_content_leaves_out_function_words(pipe: Any) -> None:
    assert positions(pipe, "content", texts(PROMPT)) == [2, 3, 4, 5, 7]
    assert positions(pipe, "content", texts("the lion, with a crown.")) == [2, 6]
    assert positions(pipe, "content", texts("")) == []


def test_phrases_at_every_occurrence_and_sub_word(pipe: Any) -> None:
    assert positions(pipe, ("striped", "crown"), texts(PROMPT)) == [2, 7]
    assert positions(pipe, ("Purple  LION",), texts(PROMPT)) == [3, 4]
    assert positions(pipe, ("lion",), texts("a lion on a lion")) == [2, 5]
    assert positions(pipe, ("zebu",), texts("a zebu lion")) == [2, 3, 4, 5]  # four letters, four tokens


def test_a_phrase_is_whole_words(pipe: Any) -> None:
    with pytest.raises(ValueError, match="phrase 'own', which is not in the prompt 'a striped purple lion"):
        positions(pipe, ("own",), texts(PROMPT))
    with pytest.raises(ValueError, match=r"phrase 'crown'.*'a lion'"):
        positions(pipe, ("crown",), texts(PROMPT, "a lion"))


def test_a_phrase_that_was_cut_off(pipe: Any) -> None:
    with pytest.raises(ValueError, match="'crown' lies past"):
        positions(pipe, ("crown",), texts("red " * 20 + "crown"))


def test_phrases_of_a_negative_prompt_may_be_absent(pipe: Any) -> None:
    assert token_weights(pipe, FAMILY, texts("red"), ("crown",), SEGMENTS, must_hold=False).sum() == 0


def test_second_prompt_is_united(pipe: Any) -> None:
    said = texts("a lion", prompt_2="a red red crown")
    assert positions(pipe, "valid", said) == list(range(6))
    assert positions(pipe, ("lion", "crown"), said) == [2, 4]


def test_t5_segment_counts_when_there_is_an_encoder(pipe: Any) -> None:
    pipe.text_encoder_3, pipe.tokenizer_3 = object(), pipe.tokenizer
    with_t5 = SimpleNamespace(**{k: getattr(pipe, k) for k in ("tokenizer", "tokenizer_2", "tokenizer_3")})
    with_t5.text_encoder = with_t5.text_encoder_3 = object()
    weights = token_weights(with_t5, FAMILY, texts("a red lion", prompt_3="a lion"), ("lion",), (16, 8))
    assert weights[0].nonzero().flatten().tolist() == [3, 18]


def test_slow_tokenizers_are_refused_for_words_only(pipe: Any) -> None:
    class Slow:
        is_fast = False

        def __call__(self, texts: list[str], **options: Any) -> dict[str, list[list[int]]]:
            return {"attention_mask": [[1] * 3 + [0] * (options["max_length"] - 3)] * len(texts)}

    slow = SimpleNamespace(tokenizer=Slow(), tokenizer_2=Slow(), text_encoder=object())
    assert positions(slow, "valid", texts("lion")) == [0, 1, 2]
    with pytest.raises(ValueError, match="no character offsets"):
        positions(slow, "content", texts("lion"))


def call(pipe: Any, **arguments: Any) -> Reading:
    rows = arguments.pop("rows", 1)
    arguments = {"max_sequence_length": 4, "do_classifier_free_guidance": True} | arguments
    return read(pipe, FAMILY, arguments, torch.zeros(rows, 20, 8))


def test_read_follows_the_pipelines_fallbacks(pipe: Any) -> None:
    reading = call(pipe, prompt=["a", "b"], prompt_3=["c", "d"], negative_prompt="red", rows=4)
    assert reading.cond == {"prompt": ("a", "b"), "prompt_2": ("a", "b"), "prompt_3": ("c", "d")}
    assert reading.uncond == dict.fromkeys(("prompt", "prompt_2", "prompt_3"), ("red", "red"))
    assert (reading.rows, reading.prompts, reading.length, reading.segments) == (4, 2, 20, (16, 4))
    assert call(pipe, prompt="a", do_classifier_free_guidance=False).uncond is None


def test_read_embeddings_without_text(pipe: Any) -> None:
    embeds = torch.zeros(2, 20, 8)
    reading = call(pipe, prompt_embeds=embeds, negative_prompt_embeds=embeds, rows=2)
    assert reading.cond is None
    assert reading.uncond is None
    assert with_prompt(reading, "a lion", FAMILY).cond == texts("a lion")
    with pytest.raises(ValueError, match="prompt holds 3 texts, but the call has 2 rows"):
        with_prompt(reading, ("a", "b", "c"), FAMILY)
