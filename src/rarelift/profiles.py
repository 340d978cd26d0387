"""Profiles: settings that were found for one model, in a JSON file that says where they come from.

    {"form": 1,
     "model": "SD3Transformer2DModel",      what they were found on: the transformer's class
     "config": {"num_layers": 8, ...},      and its configuration
     "settings": {"alpha": 1.35},           any of those of `Spread`; the others keep their defaults
     "made": {"command": ..., ...}}         how: command, budget, seeds, what was measured, with intervals

A profile holds for one architecture. Weights are not compared, for an adapter, a quantised file or another dtype is
the same model to a user. Another architecture is an error, not a warning: blocks are counted on the one it was made
for, and so was its success. Whoever wants the settings all the same takes them out and passes them as settings.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .settings import Spread, one_of

if TYPE_CHECKING:
    from collections.abc import Mapping

FORM = 1  # of the file; a newer one may be unreadable for an older rarelift
AUTO = "auto"
PACKAGED = Path(__file__).with_suffix("")
"""The folder of the profiles that come with rarelift, NAME.json each."""


@dataclass(frozen=True)
class Profile:
    """Settings for one model.

    Args:
        model: class name of the transformer.
        config: its configuration, as values of JSON.
        settings: any of the fields of `Spread`.
        made: how they were found; for readers, nothing here looks into it.

    Raises:
        ValueError, TypeError: `settings` holds a name that `Spread` does not have, or a value that it refuses.
    """

    model: str
    config: Mapping[str, Any]
    settings: Mapping[str, Any]
    made: Mapping[str, Any]

    def __post_init__(self) -> None:
        Spread.from_dict(self.settings)

    @property
    def untouched(self) -> bool:
        """Whether it says that the model is best left as it is."""
        return Spread.from_dict(self.settings).alpha == 1

    def differences(self, model: str, config: Mapping[str, Any]) -> list[str]:
        """How another model differs from the one this was made for; a key that one of the two lacks says nothing."""
        if model != self.model:
            return [f"its class is {self.model}, and this is {model}"]
        both = sorted(set(self.config) & set(config))
        return [
            f"{key} is {self.config[key]} there and {config[key]} here" for key in both if not _same(self, config, key)
        ]

    def check(self, name: str, model: str, config: Mapping[str, Any]) -> None:
        """Raise ValueError, with the differences, where this is for another model; `name` is what it is called."""
        if found := self.differences(model, config):
            more = f", and {len(found) - 3} more" if len(found) > 3 else ""
            raise ValueError(
                f"profile {name!r} was made for another model: {'; '.join(found[:3])}{more}. Make one for this model "
                f"with `rarelift tune`, or take its settings over, unmeasured: {Spread.from_dict(self.settings)}"
            )

    def to_json(self) -> str:
        """What `read` reads."""
        held = {"model": self.model, "config": self.config, "settings": self.settings, "made": self.made}
        return json.dumps({"form": FORM, **held}, indent=2) + "\n"


def _same(profile: Profile, config: Mapping[str, Any], key: str) -> bool:
    """As JSON has it: a tuple is a list."""
    return json.dumps(profile.config[key], default=str) == json.dumps(config[key], default=str)


def read(path: Path) -> Profile:
    """The profile in a file.

    Raises:
        ValueError: there is none, it cannot be read, or it is of another form; or a setting is not known or refused.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"profile {str(path)!r} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"profile {str(path)!r} is no JSON: {error}") from error
    form = held.get("form") if isinstance(held, dict) else None
    if form != FORM:
        raise ValueError(
            f"{path} is no profile of form {FORM}, which this rarelift reads: its form is {form!r}; `rarelift tune` "
            "writes profiles, and a newer form needs a newer rarelift"
        )
    kinds = {"model": str, "config": dict, "settings": dict, "made": dict}
    for key, kind in kinds.items():
        if not isinstance(held.get(key), kind):
            raise ValueError(f"{path}: {key!r} should be a {kind.__name__}, and is {held.get(key)!r}")
    try:
        return Profile(*(held[key] for key in kinds))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def packaged() -> dict[str, Profile]:
    """The profiles that come with rarelift, by name."""
    return {path.stem: read(path) for path in sorted(PACKAGED.glob("*.json"))}


def load(name: str | Path) -> Profile:
    """The profile in a file (a `Path`, or text that ends with .json), or the packaged one of this name.

    Raises:
        ValueError: as `read`, or there is none of this name; the message lists what there is.
    """
    if isinstance(name, Path) or name.endswith(".json"):
        return read(Path(name).expanduser())
    held = packaged()
    if not held:
        raise ValueError(f"unknown profile {name!r}: {_listed(held)} Give a file that ends with .json")
    return held[one_of("profile", name, held, f" {_listed(held)} A file ends with .json.")]


def find(name: str | Path, model: str, config: Mapping[str, Any]) -> Profile:
    """The profile of this name or in this file, for this model; "auto" looks for a packaged one of the model.

    Args:
        model, config: as in `Profile`, of the model at hand.

    Raises:
        ValueError: as `load`; it was made for another model; or "auto" finds none.
    """
    if name != AUTO:
        found = load(name)
        found.check(str(name), model, config)
        return found
    held = packaged()
    for candidate in held.values():
        if not candidate.differences(model, config):
            return candidate
    raise ValueError(
        f"profile='auto': no packaged profile is for this {model}. {_listed(held)} Make one with `rarelift tune`, or "
        "leave profile out"
    )


def _listed(held: Mapping[str, Profile]) -> str:
    found = ", ".join(f"{name} (for a {profile.model})" for name, profile in held.items())
    return f"Profiles that come with rarelift: {found}." if found else "No profile comes with this rarelift."
