"""`rarelift tune`: budgets, races on simulated scores where the truth is known, and whole tunings of a tiny model."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import rarelift
from rarelift import pipelines, prompts
from rarelift.bench import candidates, racing, rounds, stats, tune
from rarelift.bench.drawing import Made
from rarelift.bench.racing import Round, Schedule, Scores, deal, race
from rarelift.bench.rounds import Drawing
from rarelift.bench.runs import UNTOUCHED, Method, Plan, read_scores
from rarelift.bench.shares import halves, share
from rarelift.menagerie.world import ATTRIBUTES
from rarelift.profiles import Profile, read
from rarelift.settings import Spread

# ---------------------------------------------------------------- the budget


@pytest.mark.parametrize("common", [True, False])
@pytest.mark.parametrize("guidances", [1, 4])
def test_a_budget_is_kept_and_halved(common: bool, guidances: int) -> None:
    for budget in (700, 1000, 2345, 20_000):
        found = deal(budget, guidances=guidances, common=common)
        assert found.pictures <= budget < 1.2 * found.pictures + 50
        counts = [one.methods - 1 for one in found.race]
        assert counts == [found.settings >> i for i in range(len(counts))]
        assert counts[-1] == 2
        sizes = [one.rare for one in found.race]
        assert sizes == sorted(sizes)
        assert sizes[0] >= racing.FEWEST
        assert (found.sweep is None) == (guidances == 1)
        assert all(one.common == (one.rare // 2 if common else 0) for one in (*found.race, found.confirm))
    assert [one.methods for one in deal(5000, settings=5).race] == [6, 4, 3]
    assert deal(60, settings=1).race == ()


@pytest.mark.parametrize(("settings", "guidances"), [(None, 1), (None, 3), (7, 1), (1, 1)])
def test_a_budget_too_small_says_what_will_do(settings: int | None, guidances: int) -> None:
    with pytest.raises(ValueError, match="too small for .* give at least") as told:
        deal(20, settings=settings, guidances=guidances)
    least = int(str(told.value).rpartition(" ")[2])
    assert deal(least, settings=settings, guidances=guidances).confirm.rare >= racing.FEWEST_CONFIRMED
    with pytest.raises(ValueError, match="too small"):
        deal(least - 1, settings=settings, guidances=guidances)


# ---------------------------------------------------------------- simulated races


def world(seed: int, rare: dict[str, float], common: dict[str, float]) -> racing.Draw:
    """Verdicts of right and wrong: a method draws most pictures as untouched, and others right by its own chance."""
    rng = np.random.default_rng(seed)

    def side(name: str, n: int, methods: Sequence[str], effects: dict[str, float], level: float) -> Scores:
        chance = rng.uniform(level - 0.3, level + 0.3, n).clip(0, 1)
        plain = rng.random(n) < chance
        table = {UNTOUCHED: plain}
        for method in methods[1:]:
            effect = effects.get(method, 0.0)
            anew = rng.random(n) < np.clip(chance + 2 * effect, 0, 1)  # of the half that is drawn anew
            table[method] = np.where(rng.random(n) < 0.5, plain, anew)
        return {m: {(f"{name}{i}", 0): float(v) for i, v in enumerate(values)} for m, values in table.items()}

    def draw(one: Round, methods: Sequence[str]) -> tuple[Scores, Scores]:
        assert methods[0] == UNTOUCHED
        return (
            side(f"{one.name}-rare", one.rare, methods, rare, 0.5),
            side(f"{one.name}-common", one.common, methods, common, 0.9),
        )

    return draw


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer resamples, for many races."""
    mean, p_value = stats.mean, stats.p_value
    monkeypatch.setattr(stats, "mean", lambda *given, **named: mean(*given, **{**named, "resamples": 999}))
    monkeypatch.setattr(stats, "p_value", lambda *given: p_value(*given, resamples=999))


METHODS = [f"m{i}" for i in range(8)]
SCHEDULE = deal(3000, settings=8)


@pytest.mark.usefixtures("quick")
def test_the_best_setting_is_found_and_wins() -> None:
    outcomes = [race(METHODS, SCHEDULE, world(seed, {"m5": 0.2, "m2": 0.05}, {}), margin=0.05) for seed in range(20)]
    assert sum(outcome.winner == "m5" for outcome in outcomes) >= 18
    verdict = outcomes[0].verdict
    assert verdict is not None
    assert verdict.difference.excludes_zero
    assert verdict.pictures == SCHEDULE.confirm.rare
    assert [len(found) for _, found in outcomes[0].standings] == [8, 4, 2]


@pytest.mark.usefixtures("quick")
def test_where_nothing_helps_nothing_wins() -> None:
    small, won = deal(600, settings=8), 0
    for seed in range(100):
        won += race(METHODS, small, world(seed, {}, {}), margin=0.5).winner is not None
    assert won <= 0.05 * 100


@pytest.mark.usefixtures("quick")
def test_what_harms_common_prompts_is_out() -> None:
    outcomes = [
        race(METHODS, SCHEDULE, world(seed, {"m5": 0.2, "m2": 0.15}, {"m5": -0.2}), margin=0.05) for seed in range(20)
    ]
    assert all(outcome.winner != "m5" for outcome in outcomes)
    assert sum(outcome.winner == "m2" for outcome in outcomes) >= 14
    told = race(["m5"], deal(1000, settings=1), world(0, {"m5": 0.2}, {"m5": -0.2}), margin=0.02).verdict
    assert told is not None
    assert (told.won, told.why) == (False, "common prompts lose more than the margin of 0.02")


def test_a_picture_of_nan_is_out_and_silence_of_the_metric_is_not() -> None:
    draw = world(0, {"m5": 0.2, "m2": 0.15}, {})

    def spoilt(one: Round, methods: Sequence[str]) -> tuple[Scores, Scores]:
        rare, common = draw(one, methods)
        first = next(iter(rare[UNTOUCHED]))
        table = {m: dict(scores) for m, scores in rare.items()}
        if "m5" in table:
            table["m5"][first] = math.nan
        if "m2" in table:
            del table["m2"][first]
        return table, common

    found = race(METHODS, SCHEDULE, spoilt, margin=0.02)
    assert found.winner == "m2"
    assert not next(standing for standing in found.standings[0][1] if standing.method == "m5").kept
    told = race(["m5"], deal(1000, settings=1), spoilt, margin=0.02).verdict
    assert told is not None
    assert told.why == "a picture came out as NaN"


@pytest.mark.parametrize("scored", [0, 1, 20])
def test_common_prompts_without_scores_let_nothing_win(scored: int) -> None:
    draw = world(0, {"m": 0.3}, {})

    def silent(one: Round, methods: Sequence[str]) -> tuple[Scores, Scores]:
        rare, common = draw(one, methods)
        return rare, {m: dict(list(scores.items())[:scored]) for m, scores in common.items() if scored}

    told = race(["m"], deal(1000, settings=1), silent, margin=0.5).verdict
    assert told is not None
    assert told.won == (scored > 1)
    assert told.won or told.why.startswith(f"of the common prompts that were drawn, {scored} have a score")
    assert race(["m"], deal(1000, settings=1, common=False), silent, margin=0.5).winner == "m"


def test_few_changes_of_one_direction_are_no_win() -> None:
    """Four pictures of forty better and none worse: the interval excludes zero, and chance does it often."""
    base = {(f"p{i}", 0): 0.0 for i in range(40)}
    rare = {UNTOUCHED: base, "m": {**base, **{(f"p{i}", 0): 1.0 for i in range(4)}}}
    found = racing.judge("m", rare, {}, margin=0.02, guarded=False)
    assert found.difference.low > 0
    assert found.p == pytest.approx(0.125, abs=0.01)
    assert not found.won
    assert "sign-flip test says p = 0.12" in found.why


def test_a_race_without_hope_ends_before_the_last_test() -> None:
    drawn: list[str] = []
    draw = world(1, dict.fromkeys(METHODS, -0.3), {})

    def told(one: Round, methods: Sequence[str]) -> tuple[Scores, Scores]:
        drawn.append(one.name)
        return draw(one, methods)

    found = race(METHODS, SCHEDULE, told, margin=0.02)
    assert (found.verdict, found.winner) == (None, None)
    assert drawn == ["race1", "race2", "race3"]


# ---------------------------------------------------------------- whole tunings


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """Rare and common prompts in words that the tiny model knows."""
    colours, things = ("striped", "purple", "pink", "red", "blue"), ("lion", "crown", "ground", "lion wearing a crown")
    rare = [f"a {a} {b} {c}" for a in colours for b in colours[1:] for c in things]
    (tmp_path / "rare.txt").write_text("\n".join(dict.fromkeys(rare[:48])))
    (tmp_path / "common.txt").write_text("\n".join(f"the {a} {c}" for a in colours for c in things[:3]))
    return str(tmp_path / "rare.txt"), str(tmp_path / "common.txt")


def asked(saved: Path, files: tuple[str, str], **changed: Any) -> tune.Tuning:
    given = {
        "common": files[1],
        "metric": "clip_t",
        "budget": 240,
        "methods": ("lift:alpha=3", "lift:alpha=2,carry=0.5", "lift:alpha=1.5"),
        "model": str(saved),
        "batch_size": 8,
        "num_inference_steps": 1,
    }
    return tune.planned(files[0], **{**given, **changed})


class Table:
    """In the place of the worker: scores of a world in which one setting is known to be best."""

    def __init__(self, plan: Plan, _model: object, _scorers: object) -> None:
        self.plan = plan

    def __call__(self, units: Sequence[Any]) -> list[Made]:
        image = Image.new("RGB", (2, 2))
        better = {"lift:alpha=2,carry=0.5": 0.3, "lift:alpha=3": -0.3}
        made = []
        for unit in units:
            luck = np.random.default_rng(zlib.crc32(f"{unit.prompt} {unit.seed}".encode())).random()
            score = luck + better.get(unit.method, 0.0) - abs((unit.guidance or 3.0) - 3.0)
            made.append(Made(image, {"clip_t": score, "more": 0.0}, {}, 0.1, {}))
        return made


def test_what_is_known_to_be_best_is_in_the_profile(
    saved: Path, files: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "Worker", Table)
    tuning = asked(saved, files, budget=600, guidances=(1.0, 3.0, 5.0))
    found = tune.tune(tuning, tmp_path / "tune")
    assert found.outcome.winner == "lift:alpha=2,carry=0.5"
    profile = read(tmp_path / "tune" / "profile.json")
    assert Spread.from_dict(profile.settings) == Spread(2.0, 0.5)
    assert found.pictures <= 600
    made = profile.made
    assert (made["guidance_scale"], made["pictures"]) == (3.0, found.pictures)
    low, high = made["confirm"]["difference"][1:]
    assert low <= 0.3 + 1e-9
    assert high >= 0.3 - 1e-9
    assert "lift:alpha=2,carry=0.5" in tune.told(found)
    assert tune.told(found).endswith(f"--profile {found.path} --guidance 3\n")
    assert made["command"].startswith(f"rarelift tune tune --model {saved} --budget 600 --suite PATH-OF-rare --common")
    assert rarelift.apply(pipelines.load(str(saved)).pipe, profile=found.path).settings == Spread(2.0, 0.5)


def told_of(**changed: Any) -> str:
    """What is said of a test with these numbers, in a profile at guidance_scale 3."""
    zero = stats.Estimate(0.0, 0.0, 0.0)
    given = {
        "untouched": zero,
        "lifted": zero,
        "difference": zero,
        "p": 1.0,
        "detectable": 0.0,
        "common": zero,
        "won": False,
        "why": "",
    }
    verdict = racing.Verdict("lift", things=9, pictures=9, **{**given, **changed})
    made = {"guidance_scale": 3.0, "asked": {"common": {}}, "left_out": {"lift:start=0.5": "no step"}}
    profile = Profile("M", {}, {"alpha": 1.5}, made)
    return tune.told(tune.Found(Path("tune/profile.json"), profile, racing.Outcome((), verdict), 18))


def test_what_did_not_change_and_what_was_left_out_is_told() -> None:
    assert "No score differs between the two." in told_of()
    assert "Left out, since it fails here: lift:start=0.5: no step" in told_of()
    one = stats.Estimate(1.0, 1.0, 1.0)
    assert "The difference is the same for every thing" in told_of(lifted=one, difference=one, won=True)
    assert "tested at guidance_scale 3, which a profile does not set" in told_of(lifted=one, difference=one, won=True)
    assert "true difference of 0.250" in told_of(detectable=0.25)


def test_the_common_loss_that_is_not_ruled_out_is_told() -> None:
    assert "a loss of 0.034 is not ruled out" in told_of(common=stats.Estimate(-0.01, -0.034, 0.02))
    assert "ruled out" not in told_of(common=stats.Estimate(0.1, 0.01, 0.2))
    assert "common: too few scores to compare" in told_of(common=None)


@pytest.mark.parametrize(("image", "said"), [(Image.new("RGB", (2, 2)), ""), (None, ", and [0-9]+ came out as NaN")])
def test_a_metric_that_says_nothing_is_an_error(
    image: Image.Image | None,
    said: str,
    saved: Path,
    files: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not "no setting did better", which is what a judge that cannot be reached came to."""

    class Silent(Table):
        def __call__(self, units: Sequence[Any]) -> list[Made]:
            return [Made(image, {}, {}, 0.1, {}) for _ in units]

    monkeypatch.setattr(rounds, "Worker", Silent)
    for _ in range(2):  # when it goes on, too
        with pytest.raises(ValueError, match=f"race1-rare: no untouched picture has a score by 'clip_t'{said}, so"):
            tune.tune(asked(saved, files), tmp_path / "tune")


def test_a_guidance_without_scores_is_not_the_best(
    saved: Path, files: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Spoilt(Table):
        """Scores below zero, and at guidance 1 no picture at all."""

        def __call__(self, units: Sequence[Any]) -> list[Made]:
            made = super().__call__(units)
            if units[0].guidance == 1.0:
                return [replace(one, image=None, scores={}) for one in made]
            return [replace(one, scores={"clip_t": one.scores["clip_t"] - 9}) for one in made]

    monkeypatch.setattr(rounds, "Worker", Spoilt)
    tuning = asked(saved, files, budget=600, guidances=(1.0, 3.0, 5.0))
    assert Drawing(tuning, tmp_path / "tune").best_guidance(tuning.schedule(3)) == 3.0


def test_no_picture_counts_twice_and_the_last_test_has_prompts_of_its_own(
    saved: Path, files: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "Worker", Table)
    tune.tune(asked(saved, files, budget=1500, guidances=(1.0, 3.0)), tmp_path / "tune")
    for side in ("rare", "common"):
        searched: list[tuple[str, int]] = []
        for name in ("guidance", "race1", "race2"):
            units = [unit for unit, _ in read_scores(tmp_path / "tune" / f"{name}-{side}")]
            searched += {(unit.prompt, unit.seed) for unit in units}
        assert len(searched) == len(set(searched)) > 10
        confirmed = {unit.prompt for unit, _ in read_scores(tmp_path / "tune" / f"confirm-{side}")}
        assert confirmed
        assert not confirmed & {prompt for prompt, _ in searched}
        tested = {unit.seed for unit, _ in read_scores(tmp_path / "tune" / f"confirm-{side}")}
        assert len(tested) > 1
        assert not tested & {seed for _, seed in searched}


def test_nearly_all_of_the_budget_is_drawn_and_the_profile_says_what_was(
    saved: Path, files: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve common prompts in each half or fewer: rounds of 1.9 times as many used to draw but one seed."""
    tuning = asked(saved, files, budget=280)
    for budget in range(280, 1200, 90):
        schedule = replace(tuning, budget=budget).schedule(3)
        for one in (*schedule.race, schedule.confirm):
            for n, side, suite in ((one.rare, "rare", tuning.rare), (one.common, "common", tuning.common)):
                assert suite is not None
                chosen, seeds = share(schedule, one, side, suite)
                assert n - len(seeds) < len(chosen) * len(seeds) <= n
                assert len({prompt.id for prompt in chosen}) == len(chosen)

    monkeypatch.setattr(rounds, "Worker", Table)
    made = tune.tune(tuning, tmp_path / "tune").profile.made
    assert made["pictures"] > 0.9 * tuning.budget
    drawn = {**{one["round"]: one["drawn"] for one in made["race"]}, "confirm": made["confirm"]["drawn"]}
    for name, sides in drawn.items():
        for side, said in sides.items():
            units = [unit for unit, _ in read_scores(tmp_path / "tune" / f"{name}-{side}")]
            assert said["prompts"] == len({unit.prompt for unit in units})
            assert said["seeds"] == sorted({unit.seed for unit in units})


def test_stopped_at_any_picture_it_comes_to_the_same_end(
    saved: Path, files: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning = asked(saved, files, metric="clip_t")
    whole = tune.tune(tuning, tmp_path / "tune")
    before = {p.relative_to(tmp_path): p.read_bytes() for p in (tmp_path / "tune").rglob("*.png")}
    assert len(before) == whole.pictures <= 240
    (tmp_path / "tune").rename(tmp_path / "whole")
    real, left = pipelines.text_to_image, [0]

    def stopped(*arguments: Any, **call: Any) -> list[Image.Image]:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(*arguments, **call)

    monkeypatch.setattr(pipelines, "text_to_image", stopped)
    starts = 0
    while True:
        starts, left[0] = starts + 1, 4
        try:
            again = tune.tune(tuning, tmp_path / "tune")
        except KeyboardInterrupt:
            continue
        break
    assert starts > 3
    assert {p.relative_to(tmp_path): p.read_bytes() for p in (tmp_path / "tune").rglob("*.png")} == before
    assert again.profile == whole.profile
    monkeypatch.setattr(pipelines, "load", lambda *_, **__: pytest.fail("a tuning that is done loads no model"))
    assert tune.tune(tuning, tmp_path / "tune").profile == whole.profile


def test_another_tuning_or_another_folder(saved: Path, files: tuple[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "tune"
    tuning = asked(saved, files)
    Drawing(tuning, folder).begun()
    for changed, said in (
        (replace(tuning, budget=300), "budget = 240"),
        (replace(tuning, margin=0.1), "margin = 0.02"),
    ):
        with pytest.raises(ValueError, match=f"holds a tuning with {said}"):
            tune.tune(changed, folder)
    (folder / "tune.json").write_text('{"form": 1}')
    with pytest.raises(ValueError, match="cannot be read: KeyError"):
        tune.tune(tuning, folder)
    (folder / "tune.json").write_text('{"form": 7}')
    with pytest.raises(ValueError, match="has form 7"):
        tune.tune(tuning, folder)
    (folder / "tune.json").rename(folder / "letter.txt")
    with pytest.raises(ValueError, match=r"is no tuning: it has files but no tune.json"):
        tune.tune(tuning, folder)
    with pytest.raises(pipelines.ModelError, match="no model folder"):
        tune.tune(replace(tuning, model=str(tmp_path / "none")), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_killed_while_it_wrote_what_was_asked_it_begins_anew(
    saved: Path, files: tuple[str, str], tmp_path: Path
) -> None:
    (tmp_path / "tune").mkdir()
    (tmp_path / "tune" / ".tune.json.half.part").write_text("{")
    assert Drawing(asked(saved, files), tmp_path / "tune").begun()["methods"]


def test_settings_are_sampled_from_what_the_model_can_honour(pipe: Any) -> None:
    found, left_out = tune.sampled(pipe, 64, lambda _: "")
    assert len({method.settings for method in found}) == len(found) == 64
    assert not left_out
    assert found == tune.sampled(pipe, 64, lambda _: "")[0]
    assert found[0].settings == Spread()
    assert all(Method.parse(method.name) == method for method in found)
    assert not rarelift.inspect(pipe).settings
    told = [method.settings for method in found]
    assert {s.blocks for s in told} == {None, (0,), (2,)}  # of three
    for field in ("alpha", "carry", "tokens", "start", "stop", "branch"):
        assert len({getattr(s, field) for s in told}) > 1
    assert not candidates._honoured(pipe, Spread(blocks=(99,)))


def test_sampled_settings_that_fail_in_the_call_are_left_out(
    saved: Path, files: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "_ALPHAS", (1.5,))
    monkeypatch.setattr(candidates, "_OTHERS", (("start=0.5,stop=1",), ("carry=0.5",)))
    about = Drawing(asked(saved, files, budget=400, methods=()), tmp_path / "tune").begun()
    assert about["methods"] == ["lift:alpha=1.5", "lift:alpha=1.5,carry=0.5"]
    assert set(about["left_out"]) == {"lift:alpha=1.5,start=0.5,stop=1", "lift:alpha=1.5,start=0.5,stop=1,carry=0.5"}
    assert all("hold none of the 1 steps" in why for why in about["left_out"].values())
    assert {path.name for path in (tmp_path / "tune").iterdir()} == {"tune.json"}
    broken = Drawing(asked(saved, files, budget=400, methods=(), height=3), tmp_path / "other")
    with pytest.raises(ValueError, match="divisible by"):  # whatever the setting, so none is to blame
        broken.begun()


def test_a_named_setting_that_fails_is_told_before_anything_is_drawn(
    saved: Path, files: tuple[str, str], tmp_path: Path
) -> None:
    drawing = Drawing(asked(saved, files, methods=("lift:alpha=2", "lift:blocks=99")), tmp_path / "tune")
    with pytest.raises(ValueError, match=r"lift:blocks=99 cannot be drawn with this model and call: .*99"):
        drawing.begun()
    assert not (tmp_path / "tune").exists()


def test_a_tuning_goes_on_with_the_model_it_began_with(saved: Path, files: tuple[str, str], tmp_path: Path) -> None:
    tuning = asked(saved, files)
    Drawing(tuning, tmp_path / "tune").begun()
    path = tmp_path / "tune" / "tune.json"
    held = json.loads(path.read_text())
    for changed, said in (
        ({"dtype": "bfloat16"}, "dtype is bfloat16 there and float32 here"),
        ({"config": {**held["config"], "num_layers": 9}}, "num_layers is 9 there and 3 here"),
        ({"model": "FluxTransformer2DModel"}, "its class is FluxTransformer2DModel, and this is SD3"),
    ):
        path.write_text(json.dumps({**held, **changed}))
        with pytest.raises(ValueError, match=f"holds a tuning of another model .* is now: {said}"):
            tune.tune(tuning, tmp_path / "tune")


def test_the_command_keeps_the_margin_to_the_last_digit(saved: Path, files: tuple[str, str], tmp_path: Path) -> None:
    """A rounded one would be another tuning, which the folder refuses."""
    assert "--margin 0.02 " in tune.command(asked(saved, files), tmp_path)
    assert "--margin 0.0123456789 " in tune.command(asked(saved, files, margin=0.0123456789), tmp_path)


def test_the_command_keeps_the_format(saved: Path, files: tuple[str, str], tmp_path: Path) -> None:
    assert "--format" not in tune.command(asked(saved, files), tmp_path)
    assert " --format lines " in tune.command(asked(saved, files, suite_format="lines"), tmp_path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"budget": 30}, "too small for 3 settings .* give at least"),
        ({"metric": None}, "needs a metric"),
        ({"metric": "clip"}, "Did you mean 'clip_t'"),
        ({"metric": "attributes"}, "is for Menagerie prompts"),
        ({"margin": 1.0}, "margin is the share"),
        ({"guidances": (2.0, 2.0)}, "holds a value twice"),
        ({"methods": ("untouched",)}, "races settings of the lift"),
        ({"methods": ("taca",)}, "races settings of the lift"),
        ({"methods": ("lift", "lift")}, "is there twice"),
        ({"methods": ("lift:alpha=2,carry=1", "lift:alpha=2, carry=1")}, "two methods would share the file name"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"dtype": "float8"}, "unknown dtype"),
        ({"model": pipelines.BUNDLED}, "the Menagerie has no word"),
    ],
)
def test_what_cannot_be_tuned(saved: Path, files: tuple[str, str], changed: dict[str, Any], said: str) -> None:
    Path(files[0]).write_text(Path(files[0]).read_text() + "\na zebra")
    with pytest.raises(ValueError, match=said):
        asked(saved, files, **changed)


def test_prompts_that_would_share_a_file_are_found_before_any_is_drawn(saved: Path, files: tuple[str, str]) -> None:
    """A round holds a few of the prompts, so the two may meet in the last test only."""
    rows = [{"id": f"p{i}", "text": f"a lion {i}", "kind": "own"} for i in range(46)]
    rows += [{"id": name, "text": f"a crown {name}", "kind": "own"} for name in ("a b", "a-b")]
    path = Path(files[0]).with_suffix(".jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="two prompts would share the file name 'a-b'"):
        asked(saved, (str(path), files[1]))


def test_too_few_prompts(saved: Path, files: tuple[str, str]) -> None:
    Path(files[0]).write_text("a lion\na crown")
    with pytest.raises(ValueError, match="has 2 prompts; tuning needs 16"):
        asked(saved, files)


def test_phrasings_of_a_thing_stay_on_one_side_and_count_as_one(
    saved: Path, files: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phrased = prompts.load("menagerie-common", split="tune")
    things = {prompt.id: tuple(prompt.meta[a] for a in ATTRIBUTES) for prompt in phrased.prompts}
    assert len(set(things.values())) < len(things) / 2
    search, confirm = ([things[prompt.id] for prompt in half] for half in halves(phrased))
    assert not set(search) & set(confirm)
    assert len(search) + len(confirm) == len(things)
    assert len(set(search[:40])) == 40

    monkeypatch.setattr(rounds, "Worker", Table)
    tuning = replace(asked(saved, files, budget=450, methods=("lift:alpha=2,carry=0.5",)), rare=phrased)
    verdict = tune.tune(tuning, tmp_path / "tune").outcome.verdict
    assert verdict is not None
    drawn = {unit.prompt for unit, _ in read_scores(tmp_path / "tune" / "confirm-rare")}
    assert verdict.things == len({things[prompt] for prompt in drawn}) < len(drawn)


def test_common_prompts_of_ones_own_need_a_metric_too(files: tuple[str, str]) -> None:
    """It used to say that the metric, which nobody gave, should be left out."""
    with pytest.raises(ValueError, match=r"suite '.*common.txt' needs a metric to tune by: --metric"):
        tune.planned(common=files[1], budget=500)


def test_a_format_of_built_in_suites_is_an_error() -> None:
    with pytest.raises(ValueError, match="format 'lines' is for .*'menagerie-rare' and 'menagerie-common' come with"):
        tune.planned(budget=500, suite_format="lines")
    with pytest.raises(ValueError, match="format 'lines' is for .* and 'rare' comes with rarelift; leave it out"):
        tune.planned("rare", budget=500, metric="clip_t", suite_format="lines")


def test_the_same_text_twice_is_one_thing(saved: Path, files: tuple[str, str]) -> None:
    """Else the last test could draw what had a part in the choice."""
    texts = Path(files[0]).read_text().splitlines()
    Path(files[0]).write_text("\n".join(texts + texts[::-1]))
    search, confirm = ({prompt.text for prompt in half} for half in halves(asked(saved, files).rare))
    assert not search & confirm
    assert search | confirm == set(texts)
    assert sum(map(len, halves(asked(saved, files).rare))) == len(texts)  # and no picture is drawn twice
    Path(files[0]).write_text("\n".join(texts[:9] * 2))
    with pytest.raises(ValueError, match="has 18 prompts, which ask for 9 different things; tuning needs 16"):
        asked(saved, files)


def test_menagerie_is_tuned_on_its_tuning_half() -> None:
    tuning = tune.planned(budget=500)
    assert {prompt.meta["split"] for side in (tuning.rare, tuning.common) for prompt in side.prompts} == {"tune"}
    assert (tuning.rare.name, tuning.common.name, tuning.metric) == ("menagerie-rare", "menagerie-common", "attributes")
    assert isinstance(tuning.schedule(None), Schedule)
