"""Words in every family: through real pipelines, what takes part is what moves when only the words are changed."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

import families
import rarelift
from rarelift import hooks
from rarelift.streams import FAMILIES, Family
from tiny_pipelines import PIPELINES, draw

diffusers.utils.logging.set_verbosity_error()
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def family(name: str) -> Family:
    base = max((tiny for tiny in families.FAMILIES if name.startswith(tiny)), key=len)
    return FAMILIES[families.FAMILIES[base].model][0]


PROMPT = "a WORD lion on a WORD ground"
OTHER = "the pink crown of an ugly WORD lion"
NEGATIVE = "blurry WORD ground"
BEFORE, AFTER = "striped striped lion", "wearing"  # a template, with the word in it
CHAT = (
    "{% for message in messages %}{% set said = message['content'] %}"
    f"{BEFORE} {{{{ said if said is string else said[0]['text'] }}}} {AFTER}{{% endfor %}}"
)


def put_into_templates(pipe: Any) -> dict[str, Any]:
    """Where the pipeline has a template, three tokens in front of the prompt and one behind it; arguments for that."""
    for name in ("tokenizer", "processor"):
        if getattr(getattr(pipe, name, None), "chat_template", None):
            getattr(pipe, name).chat_template = CHAT
    if isinstance(getattr(pipe, "prompt_template_encode", None), str):
        pipe.prompt_template_encode = f"{BEFORE} {pipe.prompt_template_encode} {AFTER}"
    if hasattr(pipe, "prompt_template_encode_prefix"):
        pipe.prompt_template_encode_prefix = f"{BEFORE} "
    for name in ("prompt_template_encode_start_idx", "user_prompt_begin_id"):
        if hasattr(pipe, name):
            setattr(pipe, name, 3)
    if isinstance(pipe, diffusers.HunyuanVideoPipeline):
        return {"prompt_template": {"template": f"{BEFORE} {{}} {AFTER}", "crop_start": 3}}
    if isinstance(pipe, diffusers.Lumina2Pipeline):
        return {"system_prompt": BEFORE, "max_sequence_length": 16}
    if isinstance(pipe, (diffusers.Flux2KleinPipeline, diffusers.Ideogram4Pipeline, diffusers.ZImagePipeline)):
        return {"max_sequence_length": 16}
    return {}


def without_attention(pipe: Any) -> None:
    """Let no token learn of another before the first joint block, so that only a word's own tokens move with it."""
    for part in pipe.components.values():
        for name, module in part.named_modules() if isinstance(part, nn.Module) else ():
            if name.endswith(("o_proj", ".o", "out_proj", "to_out.0", ".dense", ".text_embedder")):
                for weight in module.parameters():
                    nn.init.zeros_(weight)


def first_blocks(pipe: Any, call: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """Of each transformer call, the text that its first joint block is given and the tokens that take part."""
    seen: list[tuple[Tensor, Tensor]] = []
    spread, fresh = hooks._spread, [False]

    def noted(lift: Any, z: Tensor, scale: Tensor, share: Tensor | None) -> Tensor:
        if fresh[0]:
            assert share is not None
            seen.append((z.clone(), (share[:, 0] > 0).expand(len(z), -1)))
        fresh[0] = False
        return spread(lift, z, scale, share)

    hook = pipe.transformer.register_forward_pre_hook(lambda *_: fresh.__setitem__(0, True))
    with monkeypatch.context() as patch:
        patch.setattr(hooks, "_spread", noted)
        draw(pipe, call)
    hook.remove()
    return seen


UNKNOWN = {("Flux2Klein", True), ("HunyuanVideo, from an image", False), ("HunyuanVideo, from an image", True)}
KNOWN = [(n, g) for n, case in PIPELINES.items() if family(n).words_known for g in case.modes if (n, g) not in UNKNOWN]


@pytest.mark.parametrize(("name", "guided"), KNOWN, ids=[f"{n}{', guided' * g}" for n, g in KNOWN])
def test_the_words_take_part(name: str, guided: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = PIPELINES[name]
    pipe = case.pipe()
    without_attention(pipe)
    template = put_into_templates(pipe)
    many = case.guided_lists or not guided
    found = []
    for word in ("striped", "purple"):
        rarelift.apply(pipe, tokens=(word,), alpha=1.0)
        prompts = [text.replace("WORD", word) for text in ((PROMPT, OTHER) if many else (PROMPT,))]
        call = {**case.arguments(*prompts, guided=guided, images=2 if case.many else 1), **template}
        if "negative_prompt" in call:
            negative = NEGATIVE.replace("WORD", word)
            call["negative_prompt"] = [negative] * len(prompts) if many else negative
        found.append(first_blocks(pipe, call, monkeypatch))
    for (one, words), (other, again) in zip(*found, strict=True):
        assert torch.equal(words, again)
        moved = (one != other).any(-1)
        assert moved.any()
        assert torch.equal(moved, words), (moved.int(), words.int())
