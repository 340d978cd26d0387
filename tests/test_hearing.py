"""Which tokens are of which words, held against the offsets that fast tokenizers give."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn

from rarelift.hearing import Branch, Line, listening
from rarelift.streams import FAMILIES, Run
from rarelift.tokens import _content_spans, _phrase_spans, word_weights

CORPUS = ["a striped purple lion wearing a crown", "the owl's t-shirt, un café très loin", "system user assistant"]
TEXTS = [
    "a striped lion wearing a striped crown",
    "The  STRIPED\tlion's crown, (unstriped) t-shirt!",
    "un café 🦁 très striped crown 王冠",
    "crown",
]
PHRASES = ("striped", "crown", "t-shirt", "café", "🦁 très")


def byte_level() -> Any:
    """As of Qwen, Llama 3, GLM and SmolLM: a character may be several tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    return made


def metaspace(fallback: bool) -> Any:
    """As of Gemma, Mistral and Llama 2, where what is not in the vocabulary is bytes; of T5, where it is unknown."""
    vocabulary = ["<unk>", *(f"<0x{i:02X}>" for i in range(256))] if fallback else ["<unk>"]
    letters = sorted({*"".join(CORPUS), *"ABCDEFGHIJKLMNOPQRSTUVWXYZ()!"} - {" "})
    pieces = [*vocabulary, "▁", *letters, "▁cr", "▁crown", "own", "striped", "▁str", "iped", "▁lion"]
    made = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], 0, byte_fallback=fallback))
    if not fallback:
        made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    parts = [decoders.ByteFallback(), decoders.Fuse()] if fallback else []
    made.decoder = decoders.Sequence([decoders.Metaspace(), *parts]) if fallback else decoders.Metaspace()
    return made


KINDS = {
    "byte-level": byte_level,
    "with bytes to fall back on": functools.partial(metaspace, True),
    "with unknown pieces": functools.partial(metaspace, False),
}


@functools.cache
def tokenizer(kind: str) -> Any:
    unknown = {} if kind == "byte-level" else {"unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=KINDS[kind](), pad_token="<pad>", **unknown)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_tokens_of_a_phrase_are_those_of_its_offsets(kind: str, text: str) -> None:
    coded = tokenizer(kind)(text, return_offsets_mapping=True, add_special_tokens=False)
    line = Line(tokenizer(kind), (), tuple(coded["input_ids"]), text)
    for phrase in PHRASES:
        if kind == "with unknown pieces" and "🦁" in phrase:
            continue  # what was unknown cannot be found again
        wanted = list(_phrase_spans(text, (phrase,)))
        expected = [any(max(a, c) < min(b, d) for c, d in wanted) for a, b in coded["offset_mapping"]]
        found = line.marks(of(phrase))
        assert found == expected, (phrase, coded.tokens())
        assert any(found) == (phrase in text.lower())


def of(*phrases: str) -> Any:
    return functools.partial(_phrase_spans, phrases=phrases)


def marked(line: Line, spans_of: Any) -> str:
    """The text of the marked tokens, without spaces."""
    tokens = [token for token, mark in zip(line.ids, line.marks(spans_of), strict=True) if mark]
    return "".join(line.tokenizer.decode(tokens).split())


def line(text: str, prompt: str, kind: str = "byte-level", before: str = "") -> Line:
    ids = [tuple(tokenizer(kind)(part, add_special_tokens=False)["input_ids"]) for part in (before, text)]
    return Line(tokenizer(kind), *ids, prompt)


def test_only_the_prompt_counts_not_its_template() -> None:
    before, prompt = "system striped crown\nuser\n", "a striped crown"
    whole = line(f"{before}{prompt}\nassistant", prompt)
    cut = line(f"{prompt}\nassistant", prompt, before=before)
    assert marked(whole, of("striped")) == marked(cut, of("striped")) == "striped"
    assert marked(whole, _content_spans) == marked(cut, _content_spans) == "stripedcrown"
    assert sum(whole.marks(of("striped"))[: -len(cut.ids)]) == 0


def test_a_prompt_that_was_cut_off_or_written_otherwise() -> None:
    prompt = "a striped purple lion wearing the crown, a striped crown"
    for said, phrase, expected in (
        ("striped user " + prompt[:-8], "striped", "striped"),
        ("striped user " + prompt[:-2], "striped", "stripedstriped"),
        ("crown user A STRIPED  purple\nlion wearing the crown, a striped crown", "crown", "crowncrown"),
    ):
        assert marked(line(said, prompt), of(phrase)) == expected
    unknown = line("a 🦁 striped 王 crown", "a 🦁 striped 王 crown", "with unknown pieces")
    assert marked(unknown, of("crown")) == "crown"


def test_a_prompt_of_one_letter_and_none() -> None:
    assert sum(line("user a assistant", "a").marks(of("a"))) == 1
    assert not any(line("user assistant", "").marks(_content_spans))


def test_a_tokenizer_without_offsets() -> None:
    """ByT5, as of HunyuanImage: a byte a token."""
    bytes_of = transformers.ByT5Tokenizer()
    text = 'Text "très" crown'
    said = Line(bytes_of, (), tuple(bytes_of(text)["input_ids"]), text)
    found = said.marks(of("très"))
    assert [i for i, mark in enumerate(found) if mark] == list(range(6, 11))  # è is two bytes


def test_listening_ends_with_the_call() -> None:
    class Pipe:
        text_encoder = nn.Embedding(5, 2)
        other = None

    with pytest.raises(TypeError), listening(Pipe(), (Run(), Run("other"))) as heard:  # noqa: PT012
        Pipe.text_encoder(torch.tensor([[1, 2], [3, 4]]))
        Pipe.text_encoder(torch.tensor([3]))
        Pipe.text_encoder("three")
    Pipe.text_encoder(torch.tensor([[1, 1]]))
    assert heard == [[(1, 2), (3, 4)], []]


def test_words_of_a_branch() -> None:
    short, long = line("a striped lion", "a striped lion"), line("the crown, striped", "the crown, striped")
    branch = Branch(((short,), (long,), (short,)))
    weights = word_weights(branch, ("striped",))
    assert weights.shape == (3, len(long.ids))
    assert torch.equal(weights[0], weights[2])
    assert weights[0].sum() == sum(short.marks(of("striped")))
    seen: list[str] = []
    branch.weights(lambda text: iter(seen.append(text) or ()))  # type: ignore[func-returns-value]
    assert len(seen) == 2  # each prompt once
    with pytest.raises(ValueError, match="phrase 'crown', which is not in the prompt 'a striped lion'"):
        word_weights(branch, ("striped", "crown"))
    assert word_weights(branch, ("crown",), must_hold=False).any(1).tolist() == [False, True, False]
    with pytest.raises(ValueError, match="'crown' lies past the"):
        word_weights(Branch(((line("a striped lion", "a striped lion, crown"),),)), ("crown",))
    with pytest.raises(ValueError, match="nobody knows"):
        word_weights(Branch((), "nobody knows"), "content")


def test_every_family_knows_its_words_or_says_why_not() -> None:
    for model, rows in FAMILIES.items():
        for row in rows:
            said = row.wordless != type(row).wordless
            assert row.words_known != said or "ControlNet" in model, model
            assert not (row.segments and row.runs), model
