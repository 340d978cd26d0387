"""Words in every family: through real pipelines, what takes part is what moves when only the words are changed."""

from __future__ import annotations

import copy
from typing import Any

import diffusers
import pytest
import torch
import torch._dynamo.testing
import transformers
from torch import Tensor, nn

import families
import rarelift
from rarelift import hooks
from rarelift.streams import FAMILIES, Family
from rarelift.tokens import MEAN, MOVES
from tiny_pipelines import PIPELINES, Processor, clip, decoder, draw, flow, qwen3_vl, t5, tokenizer, transformer

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
            moves = (scale[:, :, 0] != 1).expand(len(z), -1)
            counts = (share[:, 0] > 0).expand(len(z), -1)
            assert counts[moves].all()
            assert (counts & ~moves).any(1)[moves.any(1)].all()  # the mean is that of the other words too
            seen.append((z.clone(), moves))
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
        rarelift.apply(pipe, tokens=(word,), alpha=2.0)
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


@pytest.mark.parametrize("name", ["QwenImage", "ZImage", "Flux2Klein", "Krea2", "NucleusMoE", "Mochi"])
def test_padding_on_the_left(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = PIPELINES[name].pipe()
    for part in ("tokenizer", "processor"):
        if hasattr(getattr(pipe, part, None), "padding_side"):
            getattr(pipe, part).padding_side = "left"
    without_attention(pipe)
    template = put_into_templates(pipe)
    found = []
    for word in ("striped", "purple"):
        rarelift.apply(pipe, tokens=(word,), alpha=2.0)
        prompts = [text.replace("WORD", word) for text in (PROMPT, OTHER)]
        found += first_blocks(pipe, {**PIPELINES[name].arguments(*prompts), **template}, monkeypatch)[:1]
    (one, words), (other, _) = found
    assert words.any()
    assert torch.equal((one != other).any(-1), words)


def glyphs(quoted: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    pipe = PIPELINES["HunyuanImage"].pipe()
    without_attention(pipe)
    pipe.tokenizer_2_max_length = 8
    rarelift.apply(pipe, tokens=(quoted,), alpha=2.0)
    call = PIPELINES["HunyuanImage"].arguments(f'a lion and " {quoted} " with {quoted}')
    return first_blocks(pipe, call, monkeypatch)[0]


def test_an_encoder_for_what_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The states of the quoted words stand in front of the prompt's, the padding of both behind."""
    (one, words), (other, _) = glyphs("striped", monkeypatch), glyphs("purple", monkeypatch)
    assert torch.equal((one != other).any(-1), words)
    assert words.sum() == 3


def test_which_prompt_is_quoted_cannot_be_told() -> None:
    case = PIPELINES["HunyuanImage"]
    pipe = case.pipe()
    rarelift.apply(pipe, tokens=("lion",))
    with pytest.raises(ValueError, match="text_encoder_2 .* read 1 texts for 2 prompts"):
        draw(pipe, case.arguments('a " red " lion', "a lion"))


EXACT = ["Flux", "QwenImage", "Chroma", "ZImage", "HiDream", "AuraFlow", "Lumina2", "ErnieImage", "HunyuanVideo1.5"]


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("tokens", ["content", ("striped", "purple lion")])
def test_exact_and_reversible(name: str, tokens: str | tuple[str, ...]) -> None:
    case = PIPELINES[name]
    pipe, call = case.pipe(), case.arguments("a striped purple lion with a crown", guided=False not in case.modes)
    plain = draw(pipe, call)
    pictures = []
    with rarelift.apply(pipe, tokens=tokens, alpha=1.0) as handle:
        assert torch.equal(draw(pipe, call), plain)
        for chosen in (tokens, "all"):
            handle.set(alpha=1.5, tokens=chosen)
            pictures.append(draw(pipe, call))
    assert all(picture.isfinite().all() for picture in pictures)
    assert not torch.equal(pictures[0], plain)
    assert not torch.equal(pictures[0], pictures[1])
    assert torch.equal(draw(pipe, call), plain)


def test_phrases_may_change_half_way() -> None:
    case = PIPELINES["QwenImage"]
    pipe, call = case.pipe(), case.arguments("a striped purple lion", guided=True)
    handle = rarelift.apply(pipe, tokens=("striped",))
    seen: list[list[int]] = []
    hook = handle.sites[0].module.register_forward_hook
    hook(lambda *_: seen.append((handle._lift.live_words == MOVES).nonzero()[:, 1].tolist()))  # type: ignore[union-attr]

    def change(*_: Any) -> dict[str, Any]:
        handle.set(tokens=("lion",))
        return {}

    draw(pipe, {**call, "callback_on_step_end": change})
    assert seen == [[1], [], [3], []]


def test_embeddings_have_no_words() -> None:
    case = PIPELINES["Flux"]
    pipe = case.pipe()
    embeds, pooled, _ = pipe.encode_prompt("a lion", max_sequence_length=12)
    given = {**case.arguments(""), "prompt": None, "prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
    handle = rarelift.apply(pipe, tokens=("lion",))
    pipe.encode_prompt("a red lion", max_sequence_length=12)  # by hand: not of the call that follows
    with pytest.raises(ValueError, match="give the pipeline the prompt in place of prompt_embeds"):
        draw(pipe, given)
    with pytest.raises(ValueError, match="prompt: where the words behind prompt_embeds stand"):
        handle.set(prompt="a lion")
    draw(pipe, case.arguments("a lion"))


def test_negative_embeddings_have_no_words() -> None:
    case = PIPELINES["Flux2Klein"]
    pipe, call = case.pipe(), case.arguments("a lion", guided=True)
    handle = rarelift.apply(pipe, tokens=("lion",))
    with pytest.raises(ValueError, match="needs the words of the negative prompt"):
        draw(pipe, call)
    handle.set(branch="cond")
    calls = handle.calls
    draw(pipe, call)
    assert handle.calls > calls


@pytest.mark.parametrize("name", ["Flux", "ErnieImage"])
def test_the_branch_that_is_lifted_must_hold_the_phrase(name: str) -> None:
    case = PIPELINES[name]
    pipe, call = case.pipe(), case.arguments("a purple lion", guided=True)  # against "blurry red ground"
    plain = draw(pipe, call)
    handle = rarelift.apply(pipe, tokens=("red ground",), branch="uncond")
    assert not torch.equal(draw(pipe, call), plain)
    handle.set(tokens=("purple lion",))
    with pytest.raises(ValueError, match="the phrase 'purple lion', which is not in the prompt 'blurry red ground'"):
        draw(pipe, call)
    handle.set(branch="both")
    assert not torch.equal(draw(pipe, call), plain)


def test_words_that_take_no_part_need_no_place() -> None:
    case = PIPELINES["HunyuanImage, with a guider"]
    pipe, call = case.pipe(), case.arguments("a lion", "a red lion", guided=True)
    call["negative_prompt"] = ['a " red " lion', "a lion"]
    handle = rarelift.apply(pipe, tokens=("lion",), branch="cond")
    calls = handle.calls
    draw(pipe, call)
    assert handle.calls > calls
    handle.set(branch="both")
    with pytest.raises(ValueError, match="text_encoder_2 .* read 1 texts for 2 prompts"):
        draw(pipe, call)


def test_a_branch_that_was_not_heard_has_no_words() -> None:
    pipe = PIPELINES["QwenImage"].pipe()
    handle = rarelift.apply(pipe, tokens=("lion",))
    pipe.encode_prompt("a lion")
    for branch, expected in (("cond", 1), ("uncond", 0)):
        with pipe.transformer.cache_context(branch):
            assert handle._lift.words is not None
            assert (handle._lift.words == MOVES).sum() == expected


def failing(*_: Any) -> dict[str, Any]:
    raise OSError("in the middle of the call")


def embeddings(name: str) -> dict[str, Any]:
    """A call that brings no words, where check_inputs does not say that it begins."""
    pipe, call = PIPELINES[name].pipe(), PIPELINES[name].arguments("")
    embeds = pipe.encode_prompt("a red crown", torch.device("cpu"))
    return {**call, "prompt": None, "prompt_embeds": embeds if name == "ErnieImage" else embeds[0]}


@pytest.mark.parametrize(
    ("name", "failure"),
    [
        ("ErnieImage", {"callback_on_step_end": failing}),
        ("ZImage", {"callback_on_step_end": failing}),
        ("ZImage", {"output_type": "pil"}),  # after the loop: there is no VAE
    ],
)
def test_words_do_not_outlive_a_call_that_fails(name: str, failure: dict[str, Any]) -> None:
    pipe = PIPELINES[name].pipe()
    rarelift.apply(pipe, tokens=("lion",))
    with pytest.raises((OSError, AttributeError)):
        draw(pipe, {**PIPELINES[name].arguments("a red lion"), **failure})
    with pytest.raises((RuntimeError, ValueError), match=r"needs the words.*the prompt in place of prompt_embeds"):
        draw(pipe, embeddings(name))


def test_words_do_not_reach_a_pipeline_that_shares_the_transformer() -> None:
    case = PIPELINES["Flux"]
    pipe, call = case.pipe(), case.arguments("a red lion")
    other = diffusers.FluxPipeline(**pipe.components)
    other.set_progress_bar_config(disable=True)
    rarelift.apply(pipe, tokens=("lion",))
    with pytest.raises(OSError, match="in the middle"):
        draw(pipe, {**call, "callback_on_step_end": failing})
    with pytest.raises(RuntimeError, match="nothing told this call"):
        draw(other, call)


def test_a_copy_made_in_a_call_has_none_of_its_words() -> None:
    case, copies = PIPELINES["Flux"], []
    pipe = case.pipe()
    rarelift.apply(pipe, tokens=("lion",))

    def copied(*_: Any) -> dict[str, Any]:
        copies.append(copy.deepcopy(pipe.transformer))
        return {}

    draw(pipe, {**case.arguments("a red lion"), "callback_on_step_end": copied})
    held = vars(hooks.links_of(copies[0])[0].lift)
    assert [held[name] for name in ("reading", "heard", "words", "live_words", "words_by")] == [None] * 4 + [{}]
    with pytest.raises(RuntimeError, match="needs the words of the prompt, and nothing told this call"):
        copies[0](**families.FAMILIES["Flux"].arguments())


@pytest.mark.parametrize("given", ["prompt_embeds", "negative_prompt_embeds"])
def test_one_branch_as_embeddings_where_each_is_encoded_apart(given: str) -> None:
    """The words that were heard may be of either, so they must not land on the prompt's rows."""
    case = PIPELINES["ErnieImage"]
    pipe, call = case.pipe(), case.arguments("a red lion", guided=True)
    embeds = pipe.encode_prompt("a pink crown", torch.device("cpu"))
    if given == "prompt_embeds":
        call["prompt"] = None
    plain = draw(pipe, {**call, given: embeds})
    handle = rarelift.apply(pipe, tokens=("red",))  # in both the prompt and the negative prompt
    with pytest.raises(ValueError, match="one branch of guidance came as embeddings, and which cannot be told"):
        draw(pipe, {**call, given: embeds})
    handle.set(tokens="all")
    assert not torch.equal(draw(pipe, {**call, given: embeds}), plain)

    def change(*_: Any) -> dict[str, Any]:
        handle.set(tokens=("red",))
        return {}

    with pytest.raises(ValueError, match="give both prompts as words, or use tokens='all'"):
        draw(pipe, {**call, given: embeds, "callback_on_step_end": change})


@pytest.mark.parametrize("guided", [False, True])
def test_image_tokens_among_the_words_of_hunyuan_video(guided: bool) -> None:
    case = PIPELINES["HunyuanVideo, from an image"]
    pipe = case.pipe()
    rarelift.apply(pipe, tokens=("lion",))
    with pytest.raises(ValueError, match="so words cannot be placed; use tokens='all'"):
        draw(pipe, case.arguments("a lion", guided=guided))


def test_a_template_of_unknown_length_is_an_error_only_for_words() -> None:
    case = PIPELINES["HunyuanVideo"]
    pipe, call = case.pipe(), {**case.arguments("a lion"), "prompt_template": {"template": "a {} </s>"}}
    pipe.tokenizer.model_max_length = 5  # of the template, where its length is not said
    handle = rarelift.apply(pipe)
    draw(pipe, call)
    handle.set(tokens="content")
    with pytest.raises(
        ValueError, match=r"does not say how much of its template is cut off \(crop_start\); use tokens"
    ):
        draw(pipe, call)


def test_a_family_without_words_says_why() -> None:
    model = families.FAMILIES["GlmImage"].make()
    with pytest.raises(ValueError, match="only what the prompt puts in quotes stands there"):
        rarelift.apply(model, tokens=("lion",))


def test_phrases_compiled() -> None:
    torch._dynamo.reset()
    case = PIPELINES["Flux"]
    pipe, call = case.pipe(), case.arguments("a striped lion", guided=True)
    expected = []
    for alpha, tokens in ((1.5, "striped"), (2.0, "striped"), (2.0, "lion")):
        with rarelift.apply(pipe, alpha=alpha, tokens=(tokens,)):
            expected.append(draw(pipe, call))
    counter = torch._dynamo.testing.CompileCounter()
    handle = rarelift.apply(pipe, alpha=1.5, tokens=("striped",))
    pipe.transformer.compile(backend=counter, dynamic=False, fullgraph=True)
    torch.testing.assert_close(draw(pipe, call), expected[0])
    graphs = counter.frame_count
    for picture, changes in zip(expected[1:], ({"alpha": 2.0}, {"tokens": ("lion",)}), strict=True):
        handle.set(**changes)
        torch.testing.assert_close(draw(pipe, call), picture)
    assert counter.frame_count == graphs


def test_phrases_compiled_where_branches_have_no_name() -> None:
    torch._dynamo.reset()
    case = PIPELINES["Chroma"]
    pipe = case.pipe()
    rarelift.apply(pipe, tokens=("lion",))
    pipe.transformer.compile(backend="eager", fullgraph=True)
    draw(pipe, case.arguments("a lion"))
    with pytest.raises(RuntimeError, match=r"tokens=\('lion',\): this pipeline does not name its branches"):
        draw(pipe, case.arguments("a lion", guided=True))


def of_encoder(kind: str, family: str, **parts: Any) -> Any:
    given = {"scheduler": flow(), "vae": None, "tokenizer": tokenizer(), **parts}
    return getattr(diffusers, kind)(transformer=transformer(family), **given)


def framepack() -> Any:
    both = {"text_encoder_2": clip(8, 77), "tokenizer_2": tokenizer(), "image_encoder": None, "feature_extractor": None}
    llama = decoder("LlamaConfig", "LlamaModel")
    return of_encoder("HunyuanVideoFramepackPipeline", "Framepack", text_encoder=llama, **both)


def easy_animate() -> Any:
    return of_encoder("EasyAnimatePipeline", "EasyAnimate", text_encoder=decoder("LlamaConfig", "LlamaModel"))


def motif() -> Any:
    return of_encoder("MotifVideoPipeline", "MotifVideo", text_encoder=t5(), guider=None)


def prx() -> Any:
    pipe = of_encoder("PRXPipeline", "PRX", text_encoder=t5())
    pipe.text_preprocessor.clean_text = str.lower  # the whole needs ftfy
    return pipe


def qwen_image21() -> Any:
    words = tokenizer()
    images = transformers.Qwen2VLImageProcessorPil(size={"shortest_edge": 3136, "longest_edge": 3136})
    processor = Processor(
        image_processor=images, tokenizer=words, video_processor=None, chat_template=words.chat_template
    )
    parts = {"processor": processor, "text_encoder": qwen3_vl("Qwen3VLForConditionalGeneration")}
    pipe = diffusers.QwenImage21Pipeline(transformer=transformer("QwenImage2.1"), scheduler=flow(), vae=None, **parts)
    pipe.prompt_template_t2i, pipe._drop_idx = f"{BEFORE} {{}} {AFTER}", 3
    return pipe


ENCODERS = {
    "EasyAnimate": (easy_animate, 1, {"max_sequence_length": 16}),
    "Framepack": (
        framepack,
        None,
        {"prompt_template": {"template": f"{BEFORE} {{}} {AFTER}", "crop_start": 3}, "max_sequence_length": 12},
    ),
    "MotifVideo": (motif, 1, {}),
    "PRX": (prx, 2, {}),
    "QwenImage2.1": (qwen_image21, None, {}),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_what_encode_prompt_returns(name: str) -> None:
    """Of pipelines that are not run to the end here: their text encoders, and the text stream that they make."""
    make, negative, more = ENCODERS[name]
    pipe = make()
    without_attention(pipe)
    put_into_templates(pipe)
    found = []
    for word in ("striped", "purple"):
        handle = rarelift.apply(pipe, tokens=(word,))
        prompts = [text.replace("WORD", word) for text in (PROMPT, OTHER)]
        given = {} if negative is None else {"negative_prompt": [NEGATIVE.replace("WORD", word)] * 2}
        result = pipe.encode_prompt(prompts, **given, **more)
        words = handle._lift.words_by
        assert words["cond"] is not None
        if negative is None:
            found.append((result[0], words["cond"]))
        elif "uncond" in words:
            assert words["uncond"] is not None
            longest = max(words["cond"].shape[1], words["uncond"].shape[1])
            both = [hooks._fitted(w, longest) for w in (words["uncond"], words["cond"]) if w is not None]
            found.append((torch.cat([result[negative], result[0]]), torch.cat(both)))
        else:
            found.append((torch.cat([result[negative], result[0]]), words["cond"]))
    (one, roles), (other, again) = found
    assert torch.equal(roles, again)
    marked = roles == MOVES
    assert marked.any(1).all()
    assert (roles == MEAN).any(1)[: len(prompts)].all()
    assert torch.equal((one != other).any(-1), hooks._fitted(marked, one.shape[1]))
