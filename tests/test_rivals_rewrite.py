"""Prompt rewriting by rules, by a tiny local model and by an endpoint on this machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from rarelift import prompts
from rarelift.menagerie.world import ATTRIBUTES, PHRASINGS, Thing, caption, check_prompt
from rarelift.prompts import Prompt
from rarelift.rivals import RIVALS, language, make
from rarelift.rivals.rewrite import Rewrite, by_rules, phrasing_of
from test_endpoint import Server, answer
from tiny_pipelines import sd3

if TYPE_CHECKING:
    from pathlib import Path

TEXT = "a striped purple lion"
CALL = {"num_inference_steps": 2}


def asked(*texts: str) -> list[Prompt]:
    return [Prompt(f"p{i}", text, "single_property") for i, text in enumerate(texts)]


def rewritten(rival: Rewrite, pipe: Any, *texts: str) -> list[str]:
    with rival.on(pipe, asked(*texts), CALL) as what:
        assert what.call == CALL
        return what.texts


@pytest.fixture(scope="module")
def pipe() -> Any:
    return sd3()


# ---------------------------------------------------------------- by rules


@pytest.mark.parametrize("suite", ["common", "rare", "never", "property", "texture"])
def test_rules_say_the_same_thing_in_other_words(suite: str) -> None:
    for prompt in prompts.load(f"menagerie-{suite}", limit=80, split="tune").prompts:
        said, thing = by_rules(prompt), Thing(*(prompt.meta[a] for a in ATTRIBUTES))
        check_prompt(said)
        assert said != prompt.text
        assert said in [caption(thing, p) for p in range(PHRASINGS)]
        assert len(said.split()) >= len(prompt.text.split()) or prompt.text == caption(thing, 3)


def test_rules_give_each_attribute_words_of_its_own() -> None:
    thing = Thing("lion", "purple", "striped", "crown", "night")
    meta = {a: getattr(thing, a) for a in ATTRIBUTES}
    full = "picture of a purple lion with stripes wearing a crown at night"
    assert [phrasing_of(caption(thing, p), thing) for p in range(PHRASINGS)] == list(range(PHRASINGS))
    for phrasing in range(3):
        assert by_rules(Prompt("p", caption(thing, phrasing), "k", meta=meta)) == full
    assert by_rules(Prompt("p", full, "k", meta=meta)) == "at night a purple striped lion wearing a crown"
    with pytest.raises(ValueError, match="for Menagerie prompts, and 'a lion' has no animal"):
        by_rules(Prompt("p", "a lion", "k"))


def test_rules_need_nothing_loaded(pipe: Any) -> None:
    rival = make("rewrite", {})
    rival.prepare(pipe)
    before = set(vars(pipe))
    prompt = prompts.load("menagerie-rare", limit=1).prompts[0]
    with rival.on(pipe, [prompt], CALL) as what:
        assert what.texts == [by_rules(prompt)]
        assert set(vars(pipe)) == before
    assert not rival.cost(CALL).language_model
    assert "instruction_digest" not in rival.to_dict()


# ---------------------------------------------------------------- a local model

WORDS = "a an red lion crown purple striped wearing on the and blue Description: {prompt} Say this: user assistant"


@pytest.fixture(scope="module", params=["chat", "plain"])
def local(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random causal model with a tokenizer, in a folder."""
    torch.manual_seed(0)
    words = ["<unk>", "</s>", "<s>", *WORDS.split()]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")
    if request.param == "chat":
        fast.chat_template = (
            "{% for m in messages %}{{ m['role'] }} {{ m['content'] }}{% endfor %}"
            "{% if add_generation_prompt %} assistant{% endif %}"
        )
    config = transformers.LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=None,
        initializer_range=0.5,
    )
    folder = tmp_path_factory.mktemp("model")
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture
def instruction(tmp_path: Path) -> str:
    path = tmp_path / "told.txt"
    path.write_text("Say this: {prompt}\n")
    return str(path)


def test_a_local_model_decodes_greedily(local: Path, pipe: Any, instruction: str) -> None:
    rival = Rewrite(model=str(local), instruction=instruction, max_new_tokens=6)
    rival.prepare(pipe)
    texts = [TEXT, "a blue crown"]
    found = rewritten(rival, pipe, *texts)
    assert rewritten(rival, pipe, *texts) == found
    model = transformers.AutoModelForCausalLM.from_pretrained(local)
    tokenizer = transformers.AutoTokenizer.from_pretrained(local)
    for text, said in zip(texts, found, strict=True):
        message = f"Say this: {text}\n"
        if tokenizer.chat_template:
            message = f"user {message} assistant"
        ids = tokenizer(message, return_tensors="pt", add_special_tokens=not tokenizer.chat_template)["input_ids"]
        assert (ids[0, 0] == 2) == (tokenizer.chat_template is None)  # a template begins the text itself
        new: list[int] = []
        while len(new) < 6 and 1 not in new:
            with torch.no_grad():
                new.append(
                    int(model(torch.cat([ids, torch.tensor([new], dtype=torch.long)], 1)).logits[0, -1].argmax())
                )
        assert said == " ".join(tokenizer.decode(new, skip_special_tokens=True).split())
    assert rival.cost(CALL).language_model


def test_a_model_is_loaded_once_and_before_the_call(local: Path, pipe: Any, instruction: str) -> None:
    rival = Rewrite(model=str(local), instruction=instruction, max_new_tokens=2)
    rival.prepare(pipe)
    hits, misses, *_ = language._loaded.cache_info()
    rewritten(rival, pipe, TEXT, TEXT)
    assert language._loaded.cache_info()[:2] == (hits + 2, misses)


def test_models_that_are_not_there(tmp_path: Path, pipe: Any) -> None:
    with pytest.raises(ValueError, match="no language model at .*; give a folder that holds config.json, or URL#MODEL"):
        Rewrite(model=str(tmp_path / "nothing")).prepare(pipe)
    with pytest.raises(ValueError, match="holds no causal language model"):
        Rewrite(model=str(tmp_path)).prepare(pipe)


# ---------------------------------------------------------------- an endpoint


def test_an_endpoint_is_asked_during_the_call(server: Server, pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RARELIFT_LLM_KEY", "secret")
    server.replies = [answer('<think>a "lion"?</think>\n "A lion,  purple\nall over."\n')]
    rival = Rewrite(model=f"{server.url}#some/model-7")
    rival.prepare(pipe)
    assert not server.requests
    assert rewritten(rival, pipe, TEXT) == ["A lion, purple all over."]
    ((headers, body),) = server.requests
    assert headers["Authorization"] == "Bearer secret"
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("some/model-7", 0, 128)
    assert body["messages"][0]["content"].endswith(f"Description: {TEXT}\n")
    assert "secret" not in json.dumps(rival.to_dict()) + repr(rival)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (answer("  "), "answered nothing to the prompt"),
        (answer("<think>for ever"), "answered nothing to the prompt"),
        (answer("very " * 81), "answered 81 words, more than 80 to the prompt"),
        (answer(None), "gave no answer"),
        ((401, "wrong key"), "HTTP 401: wrong key"),
    ],
)
def test_absurd_answers_name_the_prompt(server: Server, pipe: Any, reply: Any, said: str, tmp_path: Path) -> None:
    server.replies = [reply]
    cache = tmp_path / "c.jsonl"
    with pytest.raises(RuntimeError, match=said) as caught:
        rewritten(Rewrite(model=f"{server.url}#m", cache=str(cache)), pipe, TEXT)
    assert TEXT in str(caught.value)
    assert not cache.exists()


def test_answers_are_kept(server: Server, pipe: Any, tmp_path: Path, instruction: str) -> None:
    server.replies = [answer("one"), answer("two"), answer("three"), answer("four"), answer("five")]
    cache = tmp_path / "deep" / "cache.jsonl"
    rival = Rewrite(model=f"{server.url}#m", cache=str(cache))
    assert rewritten(rival, pipe, TEXT, "a crown", TEXT) == ["one", "two", "one"]
    assert rewritten(rival, pipe, "a crown", TEXT) == ["two", "one"]
    assert len(server.requests) == 2
    other = Rewrite(model=f"{server.url}#n", cache=str(cache))
    assert rewritten(other, pipe, TEXT) == ["three"]
    told = Rewrite(model=f"{server.url}#m", cache=str(cache), instruction=instruction)
    assert rewritten(told, pipe, TEXT) == ["four"]
    with cache.open("a") as file:
        file.write('{"model": "half')  # a process was stopped here
    assert rewritten(rival, pipe, TEXT, "a new crown") == ["one", "five"]
    lines = cache.read_text().splitlines()
    assert lines[4] == '{"model": "half'
    assert json.loads(lines[5])["answer"] == "five"
    assert rewritten(rival, pipe, "a new crown") == ["five"]
    assert len(server.requests) == 5


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": ""}, "folder or URL#MODEL"),
        ({"model": ("a", "b")}, "folder or URL#MODEL"),
        ({"model": "http://host/v1/chat/completions"}, "name the model behind a #"),
        ({"max_words": 0}, "max_words must be a whole number of at least 1, got 0"),
        ({"max_new_tokens": 1.5}, "max_new_tokens must be a whole number"),
        ({"cache": 3}, "cache must be the path of a file"),
        ({"modell": "x"}, "Did you mean 'model'"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make("rewrite", settings)


def test_instructions_are_checked_and_told_apart(tmp_path: Path, pipe: Any, instruction: str) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_text("Rewrite.")
    with pytest.raises(ValueError, match="does not say where the prompt goes"):
        Rewrite(model="http://h#m", instruction=str(bad)).prepare(pipe)
    with pytest.raises(ValueError, match="cannot be read"):
        Rewrite(model="http://h#m", instruction=str(tmp_path / "none.txt")).prepare(pipe)
    ours, told = Rewrite(model="http://h#m"), Rewrite(model="http://h#m", instruction=instruction)
    assert ours.to_dict()["instruction_digest"] != told.to_dict()["instruction_digest"]


def test_every_rival_is_what_its_name_says() -> None:
    for name in RIVALS:
        rival = make(name, {})
        assert rival.name == name
        assert rival.summary
        assert rival.source
        json.dumps(rival.to_dict())
