"""Questions about a picture, put to a local vision-language model: the probability of the right answer is the score.

VQAScore (Lin et al. 2024, arXiv 2404.01291) asks one question about the whole text; TIFA (Hu et al. 2023, arXiv
2303.11897) and Soft-TIFA (GenEval 2, Kamath et al. 2025, arXiv 2512.16853) ask one about each atom of it, and average.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from . import _checks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

# the wording is part of a metric: section 3 of the VQAScore paper, and evaluation.py of GenEval 2
VQA_SCORE = 'Does this figure show "{}"? Please answer yes or no.'
SOFT_TIFA = "{} Answer in one word."
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


class Atoms(NamedTuple):
    """Means over the atoms of one picture, Soft-TIFA AM and GM of GenEval 2.

    The geometric one is near 0 as soon as one atom is missing: it estimates whether the whole prompt is there, the
    arithmetic one how much of it.
    """

    arithmetic: float
    geometric: float


def atoms(probabilities: Sequence[float]) -> Atoms:
    """Arithmetic and geometric mean of one picture's atoms, in 0..1; higher is better.

    Raises:
        ValueError: no atoms, or one that is not in 0..1.
    """
    if not len(probabilities):
        raise ValueError("no atoms to average; ask at least one question about each picture")
    values = torch.as_tensor(list(probabilities), dtype=torch.float64)
    if not ((values >= 0) & (values <= 1)).all():  # NaN fails both
        raise ValueError(f"atoms are probabilities in 0..1, not {list(probabilities)}")
    return Atoms(float(values.mean()), float(values.log().mean().exp()))


class Vqa:
    """A vision-language model that is asked and answers with one word. Nothing is sampled.

    Args:
        model: a decoder-only model of transformers that takes pictures, such as Qwen2.5-VL or LLaVA.
        processor: its processor, with a chat template.
        batch_size: questions at a time; does not change the numbers beyond rounding.

    Raises:
        ValueError: an encoder-decoder, no chat template, or batch_size below 1.
    """

    def __init__(self, model: Any, processor: Any, batch_size: int = 8) -> None:
        if getattr(model.config, "is_encoder_decoder", False):
            raise ValueError(f"{type(model).__name__} has a decoder of its own; pass a decoder-only model")
        if not getattr(processor, "chat_template", None):
            raise ValueError(f"{type(processor).__name__} has no chat template; set processor.chat_template")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; at least 1")
        self.model, self.processor, self.batch_size = model.eval(), processor, batch_size

    @classmethod
    def from_path(
        cls, path: str | os.PathLike[str], *, device: str = "cpu", dtype: torch.dtype | None = None, batch_size: int = 8
    ) -> Vqa:
        """Any AutoModelForImageTextToText from a local directory, in `dtype` or that of the checkpoint.

        Its processor resizes by torchvision where that is installed, else by PIL, which moves scores in the fourth
        digit: compare only what was scored in one environment.

        Raises:
            ValueError: no such directory, or weights are missing.
        """
        import transformers

        local = _checks.checkpoint(os.fspath(path))
        model, info = transformers.AutoModelForImageTextToText.from_pretrained(
            local, local_files_only=True, output_loading_info=True, dtype=dtype or "auto"
        )
        _checks.complete(local, info)
        processor = transformers.AutoProcessor.from_pretrained(local, local_files_only=True)
        return cls(model.to(device), processor, batch_size)

    def __call__(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        answers: Sequence[str] | None = None,
        *,
        against: Literal["yes/no", "vocabulary"] = "yes/no",
    ) -> list[float]:
        """Probability that the first token said is that of the expected answer, in 0..1; higher is better.

        Args:
            images: one picture a question; the same one several times for several atoms.
            questions: put as they stand, so say in them how to answer.
            answers: what is expected, "yes" for all if None. It counts in lower case and capitalised, with a space
                before it and without, and a number up to ten as a word and in digits.
            against: "yes/no" weighs yes and no against each other only, whatever else the model would rather say;
                "vocabulary" against every token, as VQAScore does, and takes other answers ("four").

        Raises:
            ValueError: lengths differ, nothing to score, a picture that is empty or not RGB, an answer other than yes
                and no against "yes/no", or one that the tokenizer does not know.
        """
        pictures, asked = _checks.pictures(images), _checks.texts(questions, "questions")
        _checks.same_length(pictures, asked, "questions")
        expected = [
            a.strip().lower() for a in _checks.texts(["yes"] * len(asked) if answers is None else answers, "answers")
        ]
        _checks.same_length(pictures, expected, "answers")
        if against not in ("yes/no", "vocabulary"):
            raise ValueError(f"against is {against!r}; 'yes/no' or 'vocabulary'")
        if against == "yes/no" and (other := sorted(set(expected) - {"yes", "no"})):
            raise ValueError(f"the answer {other[0]!r} is neither yes nor no; pass against='vocabulary'")
        tokens = {
            answer: self._tokens(answer) for answer in {*expected, *(("yes", "no") if against == "yes/no" else ())}
        }
        scores: list[float] = []
        for i in range(0, len(asked), self.batch_size):
            part = slice(i, i + self.batch_size)
            rows = self._first(pictures[part], asked[part])
            for row, answer in zip(rows, expected[part], strict=True):
                rivals = torch.cat([row[tokens["yes"]], row[tokens["no"]]]) if against == "yes/no" else row
                scores.append(float((row[tokens[answer]].logsumexp(0) - rivals.logsumexp(0)).exp()))
        return scores

    def soft_tifa(self, images: Sequence[Image.Image], asked: Sequence[Sequence[tuple[str, str]]]) -> list[list[float]]:
        """Probability of the right answer to each question about each picture, in 0..1; higher is better.

        The soft scores of GenEval 2, against the whole vocabulary; `atoms` makes Soft-TIFA AM and GM of a picture's.
        Its authors use Qwen3-VL-8B-Instruct: numbers of another model do not compare with theirs.

        Args:
            images: N pictures.
            asked: N lists of (question, expected answer), `Prompt.atoms` for one.

        Raises:
            ValueError: a picture without questions, or as when called.
        """
        _checks.same_length(images, asked, "lists of questions")
        for i, pairs in enumerate(asked):
            if not len(pairs):
                raise ValueError(f"asked[{i}] is empty; ask at least one question about each picture")
        scores = iter(
            self(
                [image for image, pairs in zip(images, asked, strict=True) for _ in pairs],
                [SOFT_TIFA.format(question) for pairs in asked for question, _ in pairs],
                [answer for pairs in asked for _, answer in pairs],
                against="vocabulary",
            )
        )
        return [[next(scores) for _ in pairs] for pairs in asked]

    def vqa_score(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[float]:
        """VQAScore: P("Yes") to the paper's question about each text, in 0..1; higher is better.

        Raises:
            ValueError: as when called.
        """
        return self(images, [VQA_SCORE.format(text) for text in _checks.texts(texts)], against="vocabulary")

    def _tokens(self, answer: str) -> list[int]:
        """First tokens of the ways to write an answer; whole words where the tokenizer has them."""
        tokenizer, words = self.processor.tokenizer, {answer, answer.capitalize()}
        for digits, number in enumerate(_NUMBERS):
            if answer in (str(digits), number):
                words |= {str(digits), number, number.capitalize()}
        ways = [space + word for space in ("", " ") for word in words]
        found = [tokenizer.encode(way, add_special_tokens=False) for way in ways]
        found = [ids for ids in found if ids and ids[0] != tokenizer.unk_token_id and tokenizer.decode(ids[:1]).strip()]
        whole = [ids for ids in found if len(ids) == 1]
        if not found:
            raise ValueError(f"the tokenizer of {type(self.model).__name__} does not know {answer!r}")
        return sorted({ids[0] for ids in whole or found})

    @torch.no_grad()
    def _first(self, images: list[Image.Image], questions: list[str]) -> torch.Tensor:
        """Logits of the first token of the answer, [N, vocabulary], float32 on the CPU."""
        prompts = [
            self.processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}],
                add_generation_prompt=True,
                tokenize=False,
            )
            for question in questions
        ]
        start = self.processor.tokenizer.bos_token
        # padded on the right, whatever the tokenizer's habit: then no model's positions move with the batch
        inputs = self.processor(
            text=prompts,
            images=[[image] for image in images],
            padding=True,
            padding_side="right",
            add_special_tokens=not (start and prompts[0].startswith(start)),  # some templates hold them, LLaVA's not
            return_tensors="pt",
        ).to(self.model.device)
        for name, value in inputs.items():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                inputs[name] = value.to(self.model.dtype)
        logits = self.model(**inputs).logits
        last = inputs["attention_mask"].sum(1) - 1
        rows: torch.Tensor = logits[torch.arange(len(last), device=logits.device), last].float().cpu()
        return _checks.finite(rows, "logits of the answers")
