from __future__ import annotations

import hashlib
import json
import random
import re
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import make_rare_prompts
from rarelift.menagerie.suite import prompts as menagerie_prompts
from rarelift.metrics.edit import unedited
from rarelift.prompts import FORMATS, KINDS, SUITES, Prompt, Suite, load

if TYPE_CHECKING:
    from collections.abc import Callable

CONSONANT = ("ukulele", "unicorn", "unicycle", "one-eyed")  # by their sound
RARE_DIGEST = "b0c83fe98a6a8404c807128d553103c8f05bed31fa408b0317c20d1f4b8e06e9"
GENEVAL = {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}], "prompt": "a photo of a red dog"}
GENEVAL2 = {
    "prompt": "two red dogs",
    "atom_count": 3,
    "vqa_list": [["How many dogs are there?", "two"], ["Are the dogs red?", "Yes"]],
    "skills": ["count", "attribute"],
}
PIE = {
    "image_path": "0_random_140/000.jpg",
    "original_prompt": "a bicycle on the road",
    "editing_prompt": "a [rusty] bicycle on the road",
    "editing_instruction": "Make it rusty",
    "editing_type_id": "7",
    "blended_word": "bicycle bicycle",
    "mask": [0, 4, 600, 2],
}
OWN = {"id": "a", "text": "a red dog", "kind": "single_property"}
VBENCH = [
    {"prompt_en": "a dog runs", "dimension": ["color"], "auxiliary_info": {"color": "red"}},
    {"prompt_en": "a cat sits", "dimension": ["subject_consistency", "motion_smoothness"]},
]
DPG_HEAD = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language\n"
)


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def jsonl(path: Path, *rows: Any) -> Path:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


# ------------------------------------------------------------------------------------------------ the list "rare"


def test_recipe_writes_the_committed_file() -> None:
    assert make_rare_prompts.TARGET.read_bytes() == make_rare_prompts.written().encode()


def test_recipe_does_not_depend_on_the_hash_seed() -> None:
    code = "import hashlib, make_rare_prompts as m; print(hashlib.sha256(m.written().encode()).hexdigest())"
    folder = str(Path(make_rare_prompts.__file__).parent)
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == hashlib.sha256(make_rare_prompts.TARGET.read_bytes()).hexdigest()


def test_rare_changes_only_with_its_version() -> None:
    suite = load("rare")
    assert (suite.version, suite.digest) == ("1", RARE_DIGEST), "a changed list needs a new _VERSION, then a new digest"


def test_rare_holds_45_of_each_kind_and_none_twice() -> None:
    prompts = load("rare").prompts
    assert Counter(p.kind for p in prompts) == dict.fromkeys(KINDS, 45)
    assert len({p.text for p in prompts}) == len({p.id for p in prompts}) == 360
    assert {p.kind for p in prompts[:8]} == set(KINDS)
    assert all(p.rare is True for p in prompts)


def test_rare_names_in_the_text_what_it_asks_about() -> None:
    for prompt in load("rare").prompts:
        nouns, attributes = prompt.meta["nouns"], prompt.meta["attributes"]
        assert all(word in prompt.text for word in nouns + attributes), prompt
        assert len(set(nouns)) == len(nouns) == (1 if prompt.kind.startswith("single") else 2)
        # a question for each noun and each attribute, whatever else
        assert len(prompt.atoms) == len(nouns) + len(attributes)
        assert all(question.endswith("?") and answer == "yes" for question, answer in prompt.atoms)
        assert all(any(noun in question for noun in nouns) for question, _ in prompt.atoms)


def test_rare_is_written_in_plain_english() -> None:
    for prompt in load("rare").prompts:
        assert re.fullmatch(r"[a-z][a-z -]*[a-z]", prompt.text), prompt.text
        for text in (prompt.text, *(question for question, _ in prompt.atoms)):
            for article, word in re.findall(r"\b(an?) ([a-z-]+)", text):
                vowel = word == "hourglass" or (word[0] in "aeiou" and word not in CONSONANT)
                assert article == ("an" if vowel else "a"), text


def test_rare_repeats_no_word_too_often() -> None:
    prompts = load("rare").prompts
    for kind in KINDS:
        words = Counter(w for p in prompts if p.kind == kind for w in p.meta["nouns"] + p.meta["attributes"])
        assert max(words.values()) <= 7, (kind, words.most_common(3))
    nouns = Counter(noun for p in prompts for noun in p.meta["nouns"])
    assert set(nouns) == set(make_rare_prompts.ANIMALS + make_rare_prompts.OBJECTS)
    assert min(nouns.values()) >= 3
    assert max(nouns.values()) <= 9


def test_rare_says_nothing_twice_and_nothing_usual() -> None:
    """No noun has the same attribute again anywhere in the list, nor one that the recipe calls usual."""
    drafts = [draft for some in make_rare_prompts.drafts().values() for draft in some]
    said = [pair for draft in drafts for pair in draft.said]
    assert len(said) == len(set(said)) > 600
    assert all(noun in draft.nouns and words in draft.attributes for draft in drafts for noun, words in draft.said)
    usual = {("lion", "winged"), ("beetle", "polka-dotted"), ("kettle", "popcorn"), ("sloth", "maned")}
    for attribute in make_rare_prompts.PROPERTIES + make_rare_prompts.SHAPES + make_rare_prompts.TEXTURES:
        assert len(set(attribute.nouns)) == len(attribute.nouns), attribute
        assert not {(noun, attribute.words) for noun in attribute.nouns} & usual


def test_rare_gives_no_part_that_is_there_already() -> None:
    rng = random.Random(0)
    winged, moose = (
        make_rare_prompts.Draft("", [], [noun], [words], [])
        for noun, words in (("otter", "winged"), ("moose", "scaly"))
    )
    assert "butterfly wings" not in {make_rare_prompts._part(rng, winged) for _ in range(200)}
    parts = {make_rare_prompts._part(rng, moose) for _ in range(200)}
    assert parts == set(make_rare_prompts.PARTS) - {"deer antlers"}


@pytest.mark.parametrize(
    ("phrase", "said"),
    [
        ("owl", "an owl"),
        ("unicycle", "a unicycle"),
        ("hourglass", "an hourglass"),
        ("one-eyed lion", "a one-eyed lion"),
    ],
)
def test_article(phrase: str, said: str) -> None:
    assert make_rare_prompts.article(phrase) == said


# --------------------------------------------------------------------------------------------- Menagerie's suites


@pytest.mark.parametrize("split", ["report", "tune"])
@pytest.mark.parametrize("name", ["rare", "common", "never", "property", "texture"])
def test_menagerie_suites_hold_its_prompts(name: Any, split: Any) -> None:
    suite = load(f"menagerie-{name}", split=split)
    drawn = menagerie_prompts(name, 512, split=split)
    assert [p.text for p in suite.prompts] == [d.text for d in drawn]
    assert [{k: p.meta[k] for k in asdict(d.thing)} for p, d in zip(suite.prompts, drawn, strict=True)] == [
        asdict(d.thing) for d in drawn
    ]
    assert {p.rare for p in suite.prompts} == {name != "common"}
    kinds = {"property": "single_property", "texture": "single_texture"}
    assert {p.kind for p in suite.prompts} == {kinds.get(name, "single_complex")}


def test_menagerie_reports_unless_told_to_tune() -> None:
    assert load("menagerie-rare").digest == load("menagerie-rare", split="report").digest
    tuned = {p.text for p in load("menagerie-rare", split="tune").prompts}
    assert not tuned & {p.text for p in load("menagerie-rare").prompts}
    with pytest.raises(ValueError, match=r"unknown split 'tunes'.*Did you mean 'tune'"):
        load("menagerie-rare", split="tunes")


# --------------------------------------------------------------------------------------------- suites and digests


@pytest.mark.parametrize("name", SUITES)
def test_loading_twice_gives_the_same(name: str) -> None:
    first, second = load(name), load(name)
    assert first == second
    assert first.digest == second.digest
    assert re.fullmatch("[0-9a-f]{64}", first.digest)
    assert first.licence == "Apache-2.0"
    assert load(name, limit=3).prompts == first.prompts[:3]


def test_digest_sees_every_field_but_where_the_picture_lies() -> None:
    prompt = Prompt("a", "a dog", "k", True, (("Is there a dog?", "yes"),), "a cat", "/x/1.png", {"n": 1})
    suite = Suite("s", "1", "MIT", "here", (prompt,))

    def other(**changes: Any) -> str:
        return replace(suite, prompts=(replace(prompt, **changes),)).digest

    changed = [{"id": "b"}, {"text": "a cat"}, {"kind": "l"}, {"rare": None}, {"atoms": ()}, {"source_text": None}]
    digests = {suite.digest, other(meta={"n": 2}), *(other(**change) for change in changed)}
    assert len(digests) == len(changed) + 2
    assert other(image="/y/1.png") == suite.digest
    assert replace(suite, name="t", version="2").digest == suite.digest


def test_prompts_can_be_keys() -> None:
    assert len({*load("rare").prompts, *load("rare").prompts}) == 360


@pytest.mark.parametrize("prompts", [(), (Prompt("a", "x", "k"), Prompt("a", "y", "k"))])
def test_suite_refuses_nothing_and_an_id_twice(prompts: tuple[Prompt, ...]) -> None:
    with pytest.raises(ValueError, match="suite 's' holds (no prompts|the id 'a' twice)"):
        Suite("s", "1", "MIT", "here", prompts)


# --------------------------------------------------------------------------------------------------------- formats


def make_rarebench(root: Path) -> Path:
    write(root / "rarebench_multi_1and.txt", "a dog and a cat\r\n\r\na hen and a pig")
    write(root / "single_4action.txt", "\ufeffa dog knits\u2028in rain\n")
    return root


def make_compbench(root: Path) -> Path:
    write(root / "color.txt", "not this\n")
    write(root / "color_val.txt", "a red dog\n")
    write(root / "color_val_unseen.txt", "nor this\n")
    write(root / "3d_spatial_val.txt", "a dog behind a cat\n")
    write(root / "complex_val.txt", "The red dog is big.\nThe red dog is big.\n")
    return root


def make_geneval(root: Path) -> Path:
    include = [{"class": "dog", "count": 1}, {"class": "cow", "count": 2, "position": ["left of", 0]}]
    jsonl(root / "evaluation_metadata.jsonl", GENEVAL, {"tag": "position", "include": include, "prompt": "cows, a dog"})
    return root


def make_geneval2(root: Path) -> Path:
    return jsonl(root / "geneval2_data.jsonl", GENEVAL2)


def make_dpg(root: Path) -> Path:
    write(root / "prompts" / "7.txt", "A long text,\nin two lines. \n")
    write(root / "prompts" / "partiprompts1.txt", "Another.")
    rows = '7,"A long, text",,1,0,entity,whole,entity - whole (dog),Is there a dog?\n7,,,2,1,,,,"Is it red, or so?"\n'
    write(root / "dpg_bench.csv", DPG_HEAD + rows + ",,,,,,,,\nelsewhere,,,1,0,,,,Is it?\n")
    return root


def make_vbench(root: Path) -> Path:
    return write(root / "VBench_full_info.json", json.dumps(VBENCH))


def make_vbench2(root: Path) -> Path:
    return write(root / "VBench2_full_info.json", json.dumps(VBENCH))


def make_pie(root: Path) -> Path:
    write(root / "mapping_file.json", json.dumps({"000": PIE}, indent=1))
    return root


MAKERS: dict[str, Callable[[Path], Path]] = {
    "rarebench": make_rarebench,
    "t2i-compbench": make_compbench,
    "geneval": make_geneval,
    "geneval2": make_geneval2,
    "dpg": make_dpg,
    "vbench": make_vbench,
    "vbench2": make_vbench2,
    "pie": make_pie,
    "lines": lambda root: write(root / "mine.txt", "a dog\n\na cat\n"),
    "jsonl": lambda root: jsonl(root / "mine.jsonl", OWN),
}
EXPECTED: dict[str, list[Prompt]] = {
    "rarebench": [
        Prompt("rarebench_multi_1and-0001", "a dog and a cat", "multi_joined", True),
        Prompt("rarebench_multi_1and-0003", "a hen and a pig", "multi_joined", True),
        Prompt("single_4action-0001", "a dog knits\u2028in rain", "single_action", True),
    ],
    "t2i-compbench": [
        Prompt("3d_spatial_val-0001", "a dog behind a cat", "3d_spatial"),
        Prompt("color_val-0001", "a red dog", "color"),
        Prompt("complex_val-0001", "The red dog is big.", "complex"),
        Prompt("complex_val-0002", "The red dog is big.", "complex"),
    ],
    "geneval": [
        Prompt(
            "geneval-0001",
            "a photo of a red dog",
            "colors",
            atoms=(("Does the picture show this: dog?", "yes"), ("What color is the dog?", "red")),
        ),
        Prompt(
            "geneval-0002",
            "cows, a dog",
            "position",
            atoms=(
                ("Does the picture show this: dog?", "yes"),
                ("How many of this does the picture show: cow?", "2"),
                ("Is the cow left of the dog?", "yes"),
            ),
        ),
    ],
    "geneval2": [
        Prompt(
            "geneval2-0001",
            "two red dogs",
            "atoms_3",
            atoms=(("How many dogs are there?", "two"), ("Are the dogs red?", "Yes")),
        )
    ],
    "dpg": [
        Prompt(
            "7",
            "A long text, in two lines.",
            "dense",
            atoms=(("Is there a dog?", "yes"), ("Is it red, or so?", "yes")),
        ),
        Prompt("partiprompts1", "Another.", "dense"),
    ],
    "vbench": [
        Prompt("vbench-0001", "a dog runs", "color"),
        Prompt("vbench-0002", "a cat sits", "subject_consistency+motion_smoothness"),
    ],
    "vbench2": [
        Prompt("vbench-0001", "a dog runs", "color"),
        Prompt("vbench-0002", "a cat sits", "subject_consistency+motion_smoothness"),
    ],
    "pie": [
        Prompt("000", "a rusty bicycle on the road", "change_attribute_material", source_text="a bicycle on the road")
    ],
    "lines": [Prompt("mine-0001", "a dog", "prompt"), Prompt("mine-0003", "a cat", "prompt")],
    "jsonl": [Prompt("a", "a red dog", "single_property")],
}


@pytest.mark.parametrize("guessed", [True, False])
@pytest.mark.parametrize("format", FORMATS)
def test_formats(format: str, guessed: bool, tmp_path: Path) -> None:
    made = MAKERS[format](tmp_path / "there")
    suite = load(made, format=None if guessed else format)
    assert [replace(p, image=None) for p in suite.prompts] == EXPECTED[format]
    assert suite.name == ("mine" if format in ("lines", "jsonl") else format)
    assert suite.digest == load(MAKERS[format](tmp_path / "elsewhere"), format).digest
    assert load(str(made), limit=1).prompts == suite.prompts[:1]
    with pytest.raises(ValueError, match=r"split='tune' is for the suites of the Menagerie"):
        load(made, split="tune")


def test_what_formats_keep_beside(tmp_path: Path) -> None:
    (pie,) = load(make_pie(tmp_path)).prompts
    assert pie.image == str(tmp_path / "annotation_images" / "0_random_140" / "000.jpg")
    assert pie.meta["instruction"] == "Make it rusty"
    assert np.count_nonzero(np.asarray(unedited(pie.meta["mask"])) == 0) == 4 * 511 + 2
    assert load(make_geneval2(tmp_path)).prompts[0].meta["skills"] == ["count", "attribute"]
    assert load(make_vbench(tmp_path)).prompts[0].meta["auxiliary_info"] == {"color": "red"}
    asked = load(make_dpg(tmp_path / "dpg")).prompts[0].meta["questions"]
    assert [row["dependency"] for row in asked] == ["0", "1"]


def test_dpg_finds_its_questions_beside_the_folder(tmp_path: Path) -> None:
    assert load(make_dpg(tmp_path)).prompts == load(tmp_path / "prompts").prompts


def test_vbench2_folder_as_its_repository_has_it(tmp_path: Path) -> None:
    write(tmp_path / "VBench2_full_text.txt", "a red dog\n")
    write(tmp_path / "prompt" / "Material.txt", "a red dog\n")
    suite = load(tmp_path)
    assert (suite.name, suite.prompts) == ("vbench2", (Prompt("Material-0001", "a red dog", "Material"),))
    assert "2503.21755" in suite.source


def test_vbench_folder_leaves_out_the_files_that_repeat(tmp_path: Path) -> None:
    write(tmp_path / "prompts_per_dimension" / "color.txt", "a red dog\n")
    write(tmp_path / "prompts_per_dimension" / "all_dimension.txt", "a red dog\n")
    assert load(tmp_path).prompts == (Prompt("color-0001", "a red dog", "color"),)
    assert load(tmp_path / "prompts_per_dimension", "vbench").prompts == load(tmp_path).prompts


def test_jsonl_takes_every_field(tmp_path: Path) -> None:
    row = {
        **OWN,
        "rare": False,
        "atoms": [["Red?", "yes"]],
        "source_text": "a dog",
        "image": "in/1.png",
        "meta": {"n": 1},
    }
    (prompt,) = load(jsonl(tmp_path / "x.jsonl", row)).prompts
    assert prompt == Prompt(
        "a", "a red dog", "single_property", False, (("Red?", "yes"),), "a dog", str(tmp_path / "in" / "1.png")
    )
    assert prompt.meta == {"n": 1, "image_path": "in/1.png"}


# ---------------------------------------------------------------------------------------------------------- errors


def bad(row: dict[str, Any], **changes: Any) -> str:
    """A good line, a blank one, then `row` with changes; None drops a key."""
    other = {"id": "b"} if "id" in row else {}
    changed = {k: v for k, v in {**row, **other, **changes}.items() if v is not None}
    return f"{json.dumps(row)}\n\n{json.dumps(changed)}\n"


WRONG = [
    # file, content, format, what the error says
    ("x.txt", b"a dog\na c\xe4t\n", "lines", r"x.txt, line 2: found byte 0xe4; expected UTF-8"),
    ("x.txt", b"", "lines", r"x.txt: found nothing; expected at least one prompt"),
    ("x.txt", b" \n\n", None, r"x.txt: found nothing; expected at least one prompt"),
    ("x.txt", b"a dog", "rarebench", r"x.txt: found a file called 'x.txt'; expected one of single_1property.txt, "),
    ("x.txt", b"a dog", "t2i-compbench", r"x.txt: found a file called 'x.txt'; expected a name that ends in _val.txt"),
    (
        "x.jsonl",
        '{"id": 1}\n{"id"\n',
        "jsonl",
        r"""x.jsonl, line 2: found '{"id"'; expected a JSON object on one line""",
    ),
    ("x.jsonl", "[1]\n", "jsonl", r"x.jsonl, line 1: found \[1\]; expected a JSON object$"),
    (
        "x.jsonl",
        bad(OWN, id="a"),
        None,
        r"x.jsonl, line 3: found the id 'a' of line 1 again; expected an id of its own",
    ),
    ("x.jsonl", bad(OWN, kind=None), None, r"line 3: found the keys 'id', 'text'; expected the key 'kind'"),
    ("x.jsonl", bad(OWN, text=" "), None, r"line 3: found ' '; expected text that is not empty in 'text'"),
    ("x.jsonl", bad(OWN, text=5), None, r"line 3: found 5; expected text that is not empty in 'text'"),
    ("x.jsonl", bad(OWN, colour="red"), None, r"line 3: found the key 'colour'; expected some of 'id', 'text', 'kind'"),
    ("x.jsonl", bad(OWN, rare=1), None, r"line 3: found 1; expected true, false or null in 'rare'"),
    ("x.jsonl", bad(OWN, atoms=[["q"]]), None, r"line 3: found \[\['q'\]\]; expected a list of \[question, answer\]"),
    ("x.jsonl", bad(OWN, meta=[]), None, r"line 3: found \[\]; expected an object in 'meta'"),
    ("x.jsonl", bad(GENEVAL, tag=None), None, r"line 3: found the keys 'include', 'prompt'; expected the key 'tag'"),
    ("x.jsonl", bad(GENEVAL, include=[]), None, r"line 3: found \[\]; expected a list of {class, count"),
    (
        "x.jsonl",
        bad(GENEVAL, include=[{"class": "dog", "count": "1"}]),
        None,
        r"line 3: found '1'; .* in 'count' of 'dog'",
    ),
    (
        "x.jsonl",
        bad(GENEVAL, include=[{"class": "dog", "count": 1, "position": ["above", 1]}]),
        None,
        r"line 3: found \['above', 1\]; expected \[relation, index into 'include'\] in 'position' of 'dog'",
    ),
    (
        "x.jsonl",
        bad(GENEVAL2, skills=["count"]),
        None,
        r"line 3: found \['count'\]; expected a list of 2 names in 'skills'",
    ),
    ("x.jsonl", bad(GENEVAL2, vqa_list=["q"]), None, r"line 3: found \['q'\]; expected a list of \[question, answer\]"),
    ("x.jsonl", bad(GENEVAL2, atom_count=None), None, r"line 3: found None; expected a whole number in 'atom_count'"),
    (
        "x.jsonl",
        '{"prompt": "a dog"}',
        None,
        r"x.jsonl: found nothing that tells its format; expected format= one of 'rare",
    ),
    ("x.json", '[{"prompt_en":\n', "vbench", r"x.json, line 2: found no JSON \(.*; expected a JSON document"),
    ("x.json", "{}", "vbench", r"x.json: found {}; expected a list of {prompt_en, dimension}"),
    ("x.json", json.dumps([*VBENCH, {"prompt_en": "x"}]), None, r"item 3 of the list: found None; .* in 'dimension'"),
    ("x.json", json.dumps([*VBENCH, 3]), None, r"x.json, item 3 of the list: found 3; expected {prompt_en, dimension}"),
    ("x.json", "[]", "pie", r"x.json: found \[\]; expected an object of id"),
    (
        "x.json",
        json.dumps({"7": {**PIE, "editing_type_id": "12"}}),
        None,
        r"entry '7': found '12'; expected one of '0', ",
    ),
    (
        "x.json",
        json.dumps({"7": {**PIE, "mask": [1]}}),
        None,
        r"entry '7': found \[1\]; expected a list of first pixel",
    ),
    ("x.json", json.dumps({"7": {**PIE, "mask": [1, -2]}}), None, r"entry '7': found \[1, -2\]; expected a list of"),
    ("x.json", json.dumps({"7": {**PIE, "editing_prompt": ""}}), None, r"entry '7': found ''; .* in 'editing_prompt'"),
    (
        "x.json",
        f'{{"7": {json.dumps(PIE)},\n"8": {json.dumps(PIE)},\n"7": {json.dumps(PIE)}}}',
        "pie",
        r"x.json, line 3: found the key '7' twice; expected every key once",
    ),
    ("x.json", '{"a": 1}', None, r"x.json: found nothing that tells its format"),
    ("x.yaml", "a: 1", None, r"x.yaml: found nothing that tells its format; expected format= one of 'rarebench'"),
    (
        "dpg_bench.csv",
        "item_id,text\n",
        "dpg",
        r"dpg_bench.csv, line 1: found the columns item_id, text; expected the column",
    ),
    ("dpg_bench.csv", DPG_HEAD + "7,,,1,0,,,,Is it?\n7,x\n", "dpg", r"csv, line 3: found another number of cells"),
    ("dpg_bench.csv", DPG_HEAD + "7,,,1,0,,,, \n", "dpg", r"csv, line 2: found ' '; .* 'question_natural_language'"),
    ("dpg_bench.csv", DPG_HEAD + "8,,,1,0,,,,Is it?\n", "dpg", r"csv: found no question about any prompt"),
]


@pytest.mark.parametrize(("name", "content", "format", "says"), WRONG)
def test_wrong_files_are_told_with_their_place(
    name: str, content: str | bytes, format: str | None, says: str, tmp_path: Path
) -> None:
    path = write(tmp_path / name, content)
    if name.endswith(".csv"):
        write(tmp_path / "7.txt", "a dog")
        path = tmp_path
    with pytest.raises(ValueError, match=says):
        load(path, format)


@pytest.mark.parametrize("format", FORMATS)
def test_a_folder_without_the_files_is_refused(format: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path))}: found .*; expected a (folder with|file)"):
        load(tmp_path, format)


def test_a_folder_of_two_benchmarks_is_ambiguous(tmp_path: Path) -> None:
    make_pie(tmp_path)
    make_geneval(tmp_path)
    with pytest.raises(ValueError, match="found what could be 'geneval' or 'pie'; expected format= one of"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            {"name_or_path": "menagerie-rear"},
            "unknown suite 'menagerie-rear'; accepted: 'rare', .*mean 'menagerie-rare'",
        ),
        (
            {"name_or_path": "no/such.txt"},
            r"no/such.txt: there is no such file or folder; give an existing path or one of",
        ),
        ({"name_or_path": "no-such", "format": "lines"}, "no-such: there is no such file or folder"),
        ({"name_or_path": "rare", "format": "rarebrench"}, "unknown format 'rarebrench'; .*Did you mean 'rarebench'"),
        ({"name_or_path": "rare", "split": "tune"}, "split='tune' is for the suites of the Menagerie"),
        ({"name_or_path": "rare", "limit": 0}, "limit must be a whole number of at least 1, .* got 0"),
        ({"name_or_path": "rare", "limit": 2.0}, "limit must be a whole number of at least 1, .* got 2.0"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        load(**arguments)
