"""The world of two animals, and its models end to end at the tiny preset."""

from __future__ import annotations

import json
import random
import sys
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import pairs
import pairs_world as pw
from pairs import Bench, Easel, Plan, packed, token_ids, unpack
from pairs_world import (
    HEADS,
    KINDS,
    SIZE,
    TILE,
    Pair,
    caption,
    draw_pair,
    frequency,
    placed,
    prompts,
    split_of,
    verdict,
)
from rarelift import pipelines
from rarelift.menagerie import recipe, train, world
from rarelift.menagerie.world import VALUES, Thing, habitat, never

if TYPE_CHECKING:
    from collections.abc import Iterator

CAT = Thing("cat", "blue", "plain", "hat", "snow")
DOG = Thing("dog", "red", "striped", "nothing", "snow")


@pytest.fixture(scope="module", autouse=True)
def _few_figures() -> Iterator[None]:
    """Every animal but the cat is drawn as the dog: the figures of one take two seconds."""
    real = pw.figures
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pw, "figures", lambda animal: real("cat" if animal == "cat" else "dog"))
        yield


@pytest.fixture(scope="module")
def drawn() -> list[Pair]:
    rng = random.Random(0)
    return [draw_pair(rng) for _ in range(20_000)]


@pytest.fixture(scope="module")
def easel() -> Easel:
    return Easel(np.stack([pw.figures(animal) for animal in VALUES["animal"]]), "cpu")


# ---------------------------------------------------------------------------------------------- the tail


def test_draws_follow_frequency(drawn: list[Pair]) -> None:
    """What a frequency says of two animals with one relation, summed over the rest, against draws of them all."""
    wearables = [(a, b) for a in VALUES["wearable"] for b in VALUES["wearable"]]
    scenes = VALUES["scene"]
    usual = {a: {k: v[0] for k, v in habitat(a).items()} for a in VALUES["animal"]}
    cat, dog = (replace(t, **usual[t.animal]) for t in (CAT, DOG))
    share = world.value_shares("cat", "colour")[cat.colour] * world.value_shares("cat", "pattern")[cat.pattern]
    share *= world.value_shares("dog", "colour")[dog.colour] * world.value_shares("dog", "pattern")[dog.pattern]
    every = [
        frequency(Pair(replace(cat, wearable=a, scene=s), replace(dog, wearable=b, scene=s), "above"))
        for a, b in wearables
        for s in scenes
    ]
    assert sum(every) == pytest.approx(share / (16 * 15 * 3))

    bare = sum(p.first.wearable == p.second.wearable == "nothing" for p in drawn) / len(drawn)
    given = [
        sum(every[i * len(scenes) + k] for k in range(len(scenes))) / sum(every)
        for i, (a, b) in enumerate(wearables)
        if a == b == "nothing"
    ]
    assert given[0] == pytest.approx(1 / 3 + 2 / 3 * 0.3 * 0.3)  # both wear nothing in 30 of 100 where they are alone
    assert bare == pytest.approx(1 / 3 + 2 / 3 * _both_bare(), abs=0.015)
    for scene in scenes:
        seen = sum(p.first.scene == scene for p in drawn) / len(drawn)
        assert seen == pytest.approx(
            np.mean([world.value_shares(a, "scene")[scene] for a in VALUES["animal"]]), abs=0.015
        )
    assert Counter(p.relation for p in drawn)["above"] / len(drawn) == pytest.approx(1 / 3, abs=0.015)


def _both_bare() -> float:
    """Mean over ordered pairs of different animals."""
    alone = [world.value_shares(a, "wearable")["nothing"] for a in VALUES["animal"]]
    return sum(p * q for i, p in enumerate(alone) for k, q in enumerate(alone) if i != k) / (16 * 15)


def test_what_is_held_out_is_never_drawn(drawn: list[Pair]) -> None:
    for pair in drawn:
        assert frequency(pair) > 0
        for thing in (pair.first, pair.second):
            assert thing.colour != never(thing.animal)[0]
            assert thing.wearable != never(thing.animal)[1]


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        (lambda: Pair(CAT, replace(DOG, scene="sea"), "and"), "one scene"),
        (lambda: Pair(CAT, replace(CAT, colour="red"), "and"), "two of one"),
        (lambda: Pair(CAT, DOG, "below"), "relation 'below' is unknown; there are and, left of, above"),
    ],
)
def test_a_pair_that_cannot_be_is_refused(pair: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        pair()


# ---------------------------------------------------------------------------------------------- captions


def test_captions_read_as_english() -> None:
    pair = Pair(CAT, DOG, "left of")
    assert caption(pair) == "a blue plain cat wearing a top hat left of a red striped dog in the snow"
    assert caption(pair, 1, plain=False) == "a blue cat with a top hat left of a striped red dog in the snow"
    assert caption(pair, 2, colours=(True, False)) == (
        "in the snow a blue plain cat wearing a top hat left of a striped dog"
    )
    joined = replace(pair, relation="and")
    assert caption(joined, 3, plain=False, scene=False) == "a blue cat with a top hat and a striped red dog"
    with pytest.raises(ValueError, match="phrasing is 0 to 3, not 4"):
        caption(pair, 4)


def test_every_caption_is_a_token_a_word_and_fits(drawn: list[Pair]) -> None:
    tokenizer = recipe.build_tokenizer(frozenset(pw.lexicon()), pw.max_words() + 2)
    rng = random.Random(0)
    texts = {pw.draw_caption(pair, rng) for pair in drawn}
    assert {word for text in texts for word in text.split()} == set(pw.lexicon())
    assert max(len(text.split()) for text in texts) == pw.max_words()
    for text in sorted(texts)[:200]:
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)
        assert tokens[1:-1] == [f"{word}</w>" for word in text.split()]


def test_rows_hold_what_the_tokenizer_makes_of_their_captions() -> None:
    tokenizer = recipe.build_tokenizer(frozenset(pw.lexicon()), pw.max_words() + 2)
    labels, words = pw.draw_rows("rows", 50)
    ids, empty = token_ids(words, tokenizer)
    rng = random.Random("rows")
    for row in range(50):
        pair = draw_pair(rng)
        assert labels[row].tolist() == list(placed(pair, rng))
        expected = tokenizer(pw.draw_caption(pair, rng), padding="max_length").input_ids
        assert ids[row].tolist() == expected
    assert empty.tolist() == tokenizer("", padding="max_length").input_ids


# ----------------------------------------------------------------------------------------------- pictures


def test_labels_say_who_is_first_in_reading_order() -> None:
    rng = random.Random(0)
    cat, dog = CAT.labels[:4], DOG.labels[:4]
    scene = CAT.labels[4]
    assert placed(Pair(CAT, DOG, "left of"), rng) == (*cat, *dog, 0, scene)
    assert placed(Pair(DOG, CAT, "above"), rng) == (*dog, *cat, 1, scene)
    anyhow = {placed(Pair(CAT, DOG, "and"), rng) for _ in range(100)}
    assert anyhow == {(*a, *b, k, scene) for a, b in ((cat, dog), (dog, cat)) for k in range(2)}
    assert all(0 <= value < size for row in anyhow for value, size in zip(row, HEADS, strict=True))


def test_places_are_apart_inside_and_in_reading_order() -> None:
    corners = torch.tensor(
        [[[[a, b], [c, d]]] for a in (0.0, 1.0) for b in (0.0, 1.0) for c in (0, 1.0) for d in (0, 1.0)]
    )
    for arrangement, axis in ((0, 0), (1, 1)):
        for chance in corners:
            first, second = pairs.middles(torch.tensor([arrangement]), chance)[0]
            body = round(0.7 * TILE)
            assert second[axis] - first[axis] >= body  # they do not cover one another
            assert first.sum() < second.sum()
            for x, y in (first, second):
                assert x - body // 2 >= 0
                assert x + body // 2 <= SIZE
                assert y - body // 2 - 10 >= 0  # a hat is cut by two pixels at most
                assert y + body // 2 <= SIZE


def test_an_easel_paints_what_plain_slicing_does(easel: Easel) -> None:
    """Against a picture put together figure by figure, from figures in floats."""
    labels = torch.tensor([placed(Pair(CAT, DOG, "left of"), random.Random(0))])
    corner = torch.tensor([[[-3, 20], [49, 30]]])
    made = easel.compose(labels, corner, torch.tensor([[True, False]]), torch.tensor([17]))
    expected = pw.grounds()[VALUES["scene"].index("snow")][:, 17 : 17 + SIZE].astype(float)
    wide = np.pad(expected, ((TILE, TILE), (TILE, TILE), (0, 0)))
    for thing, (x, y), mirrored in ((CAT, (-3, 20), True), (DOG, (49, 30), False)):
        figure = world._figure(thing.animal, thing.colour, thing.pattern, thing.wearable, TILE)
        figure = figure[:, ::-1] if mirrored else figure
        window = wide[TILE + y : 2 * TILE + y, TILE + x : 2 * TILE + x]
        window[:] = 255 * figure[..., :3] + (1 - figure[..., 3:]) * window
    picture = ((made[0] + 1) * 127.5).permute(1, 2, 0).numpy()
    assert np.abs(picture - wide[TILE:-TILE, TILE:-TILE]).max() < 2  # the easel's figures are in 8 bits


def test_the_size_of_a_figure_changes_nothing_at_the_worlds_own() -> None:
    assert np.array_equal(
        world._figure("cat", "red", "dotted", "hat"), world._figure("cat", "red", "dotted", "hat", world.SIZE)
    )
    assert world._figure("cat", "red", "dotted", "hat", TILE).shape == (TILE, TILE, 4)


# ------------------------------------------------------------------------------------------------ prompts


@pytest.mark.parametrize("suite", ["common", "rare"])
@pytest.mark.parametrize("split", ["tune", "report"])
def test_suites_are_what_they_say(suite: pw.Suite, split: pw.Split) -> None:
    chosen = prompts(suite, 150, split=split)
    assert len({p.text for p in chosen}) == 150
    assert Counter(p.kind for p in chosen) == dict.fromkeys(KINDS, 50)
    for prompt in chosen:
        pair = prompt.pair
        assert split_of(pair, prompt.kind) == split
        assert prompt.text in [caption(pair, p, scene=prompt.kind == "multi_complex") for p in range(4)]
        assert (pair.relation == "and") or prompt.kind != "multi_joined"
        assert (pair.relation != "and") or prompt.kind != "multi_related"
        tails = [{a for a in t.tail if a in prompt.named} for t in (pair.first, pair.second)]
        whole = set(prompt.named) - {"animal"}
        assert sorted(map(len, tails)) == ([0, 0] if suite == "common" else [0, len(whole)])
        for thing in (pair.first, pair.second):
            assert (thing.wearable == "nothing") == (prompt.kind != "multi_complex")
            for attribute in whole:  # training shows it
                assert world.value_shares(thing.animal, attribute)[getattr(thing, attribute)] > 0


def test_more_prompts_begin_with_the_same_and_halves_share_none() -> None:
    assert prompts("rare", 40, split="report")[:10] == prompts("rare", 10, split="report")
    tune, report = ({p.text for p in prompts("common", 300, split=s)} for s in ("tune", "report"))
    assert not tune & report


def test_a_verdict_takes_either_order_for_and_alone() -> None:
    rng = random.Random(0)
    seen = placed(Pair(CAT, DOG, "left of"), rng)
    other = placed(Pair(DOG, CAT, "left of"), rng)
    stacked = placed(Pair(CAT, DOG, "above"), rng)

    def judged(relation: pw.Relation, labels: tuple[int, ...], kind: pw.Kind = "multi_complex") -> list[bool]:
        return verdict(pw.PairPrompt("", Pair(CAT, DOG, relation), kind), labels)

    right, misplaced = [True] * 6, [True] * 5 + [False]
    assert all(judged("and", labels) == right for labels in (seen, other, stacked))
    assert [judged("left of", labels) for labels in (seen, other, stacked)] == [right, misplaced, misplaced]
    assert [judged("above", labels) for labels in (seen, other, stacked)] == [misplaced, misplaced, right]


@pytest.mark.parametrize(
    ("place", "named"), [(0, "animal"), (5, "colour"), (2, "pattern"), (7, "wearable"), (9, "scene")]
)
def test_a_verdict_names_what_is_wrong_and_leaves_out_what_was_not_asked(place: int, named: str) -> None:
    seen = list(placed(Pair(CAT, DOG, "left of"), random.Random(0)))
    seen[place] = (seen[place] + 1) % HEADS[place]
    for kind in KINDS:
        prompt = pw.PairPrompt("", Pair(CAT, DOG, "left of"), kind)
        asked = named in prompt.named
        assert verdict(prompt, seen) == [a != named or not asked for a in pw.ASKED]


def test_verdicts_survive_their_file() -> None:
    right = np.random.default_rng(0).random((500, 6)) < 0.5
    assert np.array_equal(unpack(json.loads(json.dumps(packed(right)))), right)


# --------------------------------------------------------------------------------------------- end to end


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pairs") / "models"
    options = ["--preset", "tiny", "--device", "cpu", "--workers", "1", "--no-compile", "--budget", "60"]
    pairs.main(["train", "--folder", str(made), *options, "--pack", str(made.parent / "tars")])
    return made


def test_training_leaves_models_and_tars_of_them(folder: Path, tmp_path: Path) -> None:
    facts = json.loads((folder / "training.json").read_text())
    assert {name: stage["steps"] for name, stage in facts["stages"].items()} == {
        "vae": 3,
        "judge": 3,
        "text": 3,
        "transformer": 4,
    }
    for tar in (folder.parent / "tars").iterdir():
        assert tar.stat().st_size <= 15 * 2**20
        with tarfile.open(tar) as parts:
            parts.extractall(tmp_path, filter="data")
    original = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert original == {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def test_the_pipeline_reads_and_draws_as_the_transformer_was_trained(folder: Path, easel: Easel) -> None:
    model = pipelines.load(str(folder / "pipeline"), dtype=torch.float32, device="cpu")
    pipe, length = model.pipe, model.defaults["max_sequence_length"]
    labels, words = pw.draw_rows("stream", 3)
    ids, _ = token_ids(words, pipe.tokenizer)
    texts = [pipe.tokenizer.decode(row, skip_special_tokens=True) for row in ids]
    encoders = nn.ModuleDict({"encoder_0": pipe.text_encoder, "encoder_1": pipe.text_encoder_2})
    theirs = pipe.encode_prompt(texts, None, None, do_classifier_free_guidance=False, max_sequence_length=length)
    ours, pooled = train.text_stream(encoders, ids)
    assert torch.equal(ours, theirs[0])
    assert torch.equal(pooled, theirs[2])
    with torch.no_grad():
        latents = pipe.vae.encode(easel.paint(torch.from_numpy(labels))).latent_dist.mean
    latents = (latents - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
    assert latents.mean().abs() < 0.3
    assert 0.5 < latents.std() < 2


def test_measuring_draws_each_cell_once_and_says_what_was_not_drawn(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pairs.jsonl"
    command = ["measure", "--folder", str(folder), "--device", "cpu", "--prompts", "6", "--tune", "2", "--seeds", "2"]
    command += ["--out", str(out), "--batch", "12"]
    pairs.main([*command, "--limit", "0"])
    assert not out.exists()
    assert "not run" in out.with_suffix(".md").read_text()
    pairs.main(command)
    lines = out.read_text().splitlines()
    assert len(lines) == 2 * len(pairs.GUIDANCE) + 4
    assert [len(json.loads(line)["right"]) for line in lines[-4:]] == [12, 48, 12, 12]
    section = out.with_suffix(".md").read_text()
    assert "not run" not in section
    assert section.strip() in capsys.readouterr().out
    pairs.main(command)
    assert out.read_text().splitlines() == lines


def test_bars_hold_or_not() -> None:
    facts = {"stages": {"vae": {"psnr_db": 27.0}, "judge": {"accuracy": {"scene": 1.0, "first animal": 0.98}}}}
    right = np.ones((80, 6), bool)
    right[::16, 5] = False
    rare = right.reshape(10, 8, 6).copy()
    rare[:, :3] = False
    rare[:1] = False
    rows = pairs.bars(facts, Plan(report=20, seeds=4), {"common": right, "rare": rare.reshape(80, 6)})
    assert [row[3] for row in rows] == ["yes", "yes", "yes", "yes", "no"]
    assert [row[3] for row in pairs.bars(facts, Plan(), {"common": rare.reshape(80, 6)})] == ["no", "", "", "yes", "no"]


def test_a_picture_for_the_eye(folder: Path, tmp_path: Path) -> None:
    pairs.main(["picture", "--folder", str(folder), "--out", str(tmp_path / "grid.png"), "--seeds", "1"])
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width > 2 * 2 * SIZE  # untouched and lifted, twice as large as drawn
        assert grid.height > 15 * 2 * SIZE  # three that were drawn, six prompts of each suite


def test_verdicts_of_other_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"weights": "others", "cell": {}, "right": ""}) + "\n")
    with pytest.raises(ValueError, match=r"other weights \(others\); move it away"):
        Bench(folder, file, "cpu", 4)
