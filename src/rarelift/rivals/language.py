"""Language models that a user names: a local folder of transformers, or an OpenAI-compatible endpoint."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..metrics.endpoint import Chat

KEY = "RARELIFT_LLM_KEY"
"""Environment variable with the endpoint's key, which no manifest should hold."""
Ask = Callable[[str], str]
"""A message in, what the model says to it out."""


def check(model: object) -> None:
    """Raise ValueError when `model` is not of a form that `asking` takes."""
    if not isinstance(model, str) or not model:
        raise ValueError(f"model must be the path of a folder or URL#MODEL, got {model!r}")
    if model.startswith(("http://", "https://")) and not model.rpartition("#")[0]:
        raise ValueError(f"model is {model!r}; name the model behind a #, https://.../v1/chat/completions#MODEL")


def asking(model: str, *, device: str = "cpu", max_new_tokens: int = 128) -> Ask:
    """What asks `model`, greedily: "URL#MODEL" with the full address of a chat endpoint, else a folder.

    A folder is loaded once and kept.

    Raises:
        ValueError: there is no such folder, or no causal language model in it.
    """
    check(model)
    if model.startswith(("http://", "https://")):
        url, _, name = model.rpartition("#")
        chat = Chat(url, name, os.environ.get(KEY), options={"temperature": 0, "max_tokens": max_new_tokens})
        return functools.partial(_ask_endpoint, chat)
    return functools.partial(_ask_local, *_loaded(str(Path(model).expanduser().resolve()), device), max_new_tokens)


def _ask_endpoint(chat: Chat, message: str) -> str:
    reply = chat.ask(message)
    if reply.answer is None:
        raise RuntimeError(f"{chat.url} gave no answer: {reply.error or reply.raw[:200]!r}")
    return _thought_through(reply.answer)


@functools.lru_cache(maxsize=2)
def _loaded(folder: str, device: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not Path(folder).is_dir():
        raise ValueError(f"there is no language model at {folder}; give a folder that holds config.json, or URL#MODEL")
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} holds no causal language model of transformers: {error}") from error
    return model.to(device).eval(), tokenizer


def _ask_local(model: Any, tokenizer: Any, max_new_tokens: int, message: str) -> str:
    import torch

    if tokenizer.chat_template:
        chat = [{"role": "user", "content": message}]
        message = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    # a template writes the first special token itself
    given = tokenizer(message, return_tensors="pt", add_special_tokens=not tokenizer.chat_template)
    inputs = {name: given[name].to(model.device) for name in ("input_ids", "attention_mask")}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    with torch.no_grad():
        said = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad)
    answer: str = tokenizer.decode(said[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return _thought_through(answer)


def _thought_through(answer: str) -> str:
    """Without what a reasoning model thinks aloud before it answers."""
    return re.sub(r"<think>.*?(</think>|$)", "", answer, flags=re.DOTALL)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read_instruction(path: str, default: Path) -> str:
    """The text of an instruction, which holds {prompt} where the prompt goes; `default` when `path` is empty.

    Raises:
        ValueError: it cannot be read, or does not say where the prompt goes.
    """
    file = Path(path).expanduser() if path else default
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"instruction {str(file)!r} cannot be read: {error}") from error
    if "{prompt}" not in text:
        raise ValueError(f"instruction {str(file)!r} does not say where the prompt goes; write {{prompt}} there")
    return text


class Cache:
    """Answers by what was asked, in a file of a JSON object a line; nothing is kept when the path is empty."""

    def __init__(self, path: str) -> None:
        self._path = Path(path).expanduser() if path else None

    def get(self, **asked: object) -> str | None:
        """The last answer to this very question."""
        found = None
        for line in self._lines():
            try:
                row = json.loads(line)
            except ValueError:  # half written, by a process that was stopped
                continue
            if isinstance(row, dict) and {k: v for k, v in row.items() if k != "answer"} == asked:
                found = row.get("answer")
        return found

    def put(self, answer: str, **asked: object) -> None:
        if self._path is None:
            return
        lines = self._lines()
        start = "\n" if lines and not lines[-1].endswith("\n") else ""  # never go on in a half-written line
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{start}{json.dumps({**asked, 'answer': answer})}\n")

    def _lines(self) -> list[str]:
        if self._path is None or not self._path.is_file():
            return []
        return self._path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
