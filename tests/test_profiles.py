"""Profiles: what is written is read, what is not for this model is refused, and what is given wins."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

import rarelift
from rarelift import attach, pictures, profiles
from rarelift.bench.drawing import Worker
from rarelift.bench.runs import Method, Plan
from rarelift.lifting import RareliftWarning
from rarelift.pipelines import Model
from rarelift.profiles import Profile
from rarelift.prompts import Prompt, Suite
from rarelift.settings import Spread
from test_cli import PROMPT, refused
from test_cli import rarelift as command

SETTINGS = {"alpha": 1.2, "carry": 0.3, "tokens": ["lion", "crown"], "blocks": [0, 2], "stop": 0.5}


def of(pipe: Any, **settings: Any) -> Profile:
    return Profile(*attach.identity(pipe), settings, {"command": "by hand"})


def written(profile: Profile, path: Path) -> str:
    path.write_text(profile.to_json())
    return str(path)


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in the place of the packaged one."""
    folder = tmp_path / "packaged"
    folder.mkdir()
    monkeypatch.setattr(profiles, "PACKAGED", folder)
    return folder


def test_round_trip(pipe: Any, tmp_path: Path) -> None:
    profile = of(pipe, **SETTINGS)
    assert profiles.read(Path(written(profile, tmp_path / "p.json"))) == profile
    assert rarelift.apply(pipe, profile=tmp_path / "p.json").settings == Spread.from_dict(SETTINGS)


def test_what_is_given_wins_even_where_it_is_the_default(pipe: Any, tmp_path: Path) -> None:
    path = written(of(pipe, **SETTINGS), tmp_path / "p.json")
    handle = rarelift.apply(pipe, profile=path, alpha=1.5, carry=False, tokens="valid", prompt="a lion")
    assert handle.settings == Spread(1.5, False, "valid", (0, 2), 0.0, 0.5)
    handle = rarelift.apply(target=pipe.transformer, profile=written(of(pipe, alpha=1.2), tmp_path / "q.json"))
    assert handle.settings == Spread(1.2)
    with pytest.raises(ValueError, match="either settings=.* or profile="):
        rarelift.apply(pipe, profile=path, settings=Spread())
    with pytest.raises(TypeError, match="target"):
        rarelift.apply(profile=path)  # type: ignore[call-arg]


def test_another_model_is_refused_and_nothing_changed(pipe: Any, tmp_path: Path) -> None:
    model, config = attach.identity(pipe)
    path = tmp_path / "p.json"
    for profile, said in (
        (Profile("FluxTransformer2DModel", config, {}, {}), "its class is FluxTransformer2DModel, and this is SD3Tr"),
        (
            Profile(model, {**config, "num_layers": 9}, {"alpha": 1.1}, {}),
            r"num_layers is 9 there and 3 here.*alpha=1.1",
        ),
        (Profile(model, {**config, **dict.fromkeys(list(config)[:5], "x")}, {}, {}), "and 2 more"),
    ):
        with pytest.raises(ValueError, match=said):
            rarelift.apply(pipe, profile=written(profile, path))
        assert rarelift.inspect(pipe).settings is None
    fewer = {key: config[key] for key in list(config)[:3]}  # as an older diffusers writes it
    assert Profile(model, {**fewer, "new": 1}, {}, {}).differences(model, config) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no JSON"),
        ("[]", "is no profile of form 1"),
        ('{"form": 2}', "its form is 2; .* newer rarelift"),
        ('{"form": 1, "model": "M", "config": {}, "settings": {}}', "'made' should be a dict, and is None"),
        (
            '{"form": 1, "model": "M", "config": {}, "settings": {"alpa": 1}, "made": {}}',
            r"p.json: unknown setting 'alpa'.*Did you mean 'alpha'",
        ),
        (
            '{"form": 1, "model": "M", "config": {}, "settings": {"alpha": -1}, "made": {}}',
            "p.json: alpha must be >= 0",
        ),
        (
            '{"form": 1, "model": "M", "config": {}, "settings": {"alpha": "x"}, "made": {}}',
            "p.json: alpha must be a num",
        ),
    ],
)
def test_files_that_are_no_profiles(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ValueError, match=said):
        profiles.load(str(tmp_path / "p.json"))
    with pytest.raises(ValueError, match=r"none.json' cannot be read: No such file"):
        profiles.load(tmp_path / "none.json")


def test_packaged_profiles_by_name_and_by_model(pipe: Any, packaged: Path) -> None:
    model, config = attach.identity(pipe)
    with pytest.raises(ValueError, match="No profile comes with this rarelift"):
        profiles.load("tiny")
    with pytest.raises(ValueError, match="no packaged profile is for this SD3Transformer2DModel. No profile comes"):
        rarelift.apply(pipe, profile="auto")
    written(Profile(model, {**config, "num_layers": 9}, {"alpha": 1.1}, {}), packaged / "other.json")
    with pytest.raises(ValueError, match=r"that come with rarelift: other \(for a SD3Transformer2DModel\)"):
        rarelift.apply(pipe, profile="auto")
    with pytest.raises(ValueError, match=r"unknown profile 'othr'.*mean 'other'.*file ends with .json"):
        rarelift.apply(pipe, profile="othr")
    written(of(pipe, alpha=1.3), packaged / "tiny.json")
    assert rarelift.apply(pipe, profile="auto").settings == Spread(1.3)
    assert rarelift.apply(pipe, profile="tiny", branch="cond").settings == Spread(1.3, branch="cond")


def test_a_profile_of_bad_news_says_so(pipe: Any, tmp_path: Path) -> None:
    path = written(of(pipe, alpha=1.0), tmp_path / "p.json")
    with pytest.warns(RareliftWarning, match="no setting beat the untouched model") as told:
        assert rarelift.apply(pipe, profile=path).settings.alpha == 1
    assert told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rarelift.apply(pipe, profile=path, alpha=1.5).settings.alpha == 1.5


def test_a_bench_takes_a_profile(pipe: Any, tmp_path: Path) -> None:
    path = written(of(pipe, **SETTINGS), tmp_path / "p.json")
    method = Method.parse(f"lift:profile={path},alpha=1.4")
    assert method.settings == Spread.from_dict({**SETTINGS, "alpha": 1.4})
    suite = Suite("s", "1", "none", "here", (Prompt("a", "a lion", "k"),))
    Worker(Plan(suite, (method,), (None,), (0,)), Model("tiny", pipe), [])
    path = written(Profile("Other", {}, {}, {}), tmp_path / "p.json")
    with pytest.raises(ValueError, match="made for another model"):
        Worker(Plan(suite, (Method.parse(f"lift:profile={path}"),), (None,), (0,)), Model("tiny", pipe), [])
    with pytest.raises(ValueError, match="so name the profile or its file"):
        Method.parse("lift:profile=auto")


def test_generate_takes_a_profile(tmp_path: Path) -> None:
    from rarelift import pipelines

    path = written(of(pipelines.load().pipe, alpha=1.2, tokens="content", stop=0.5), tmp_path / "p.json")
    out = tmp_path / "lion.png"
    done = command("generate", PROMPT, "--profile", path, "--tokens", "valid", "--steps", 1, "--out", out)
    assert done.returncode == 0, done.stderr
    record = pictures.read_metadata(out)
    assert Spread.from_dict(record["settings"]) == Spread(1.2, stop=0.5)
    text = json.loads(Path(path).read_text())
    Path(path).write_text(json.dumps({**text, "model": "FluxTransformer2DModel"}))
    refused("generate", PROMPT, "--profile", path, says="made for another model")
    refused(
        "generate", PROMPT, "--profile", "nowhere.json", "--model", "./nowhere", says="nowhere.json' cannot be read"
    )
