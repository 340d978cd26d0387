"""What a tuning came to: as the record that its profile keeps, and as text."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import stats
from .runs import made_with
from .shares import SEED, share
from .tuning import command

if TYPE_CHECKING:
    from pathlib import Path

    from ..profiles import Profile
    from .racing import Outcome, Round, Schedule
    from .tuning import Tuning


@dataclass(frozen=True)
class Found:
    """What a tuning came to: the profile, where it is, and how it was found."""

    path: Path
    profile: Profile
    outcome: Outcome
    pictures: int


def record(
    tuning: Tuning, folder: Path, schedule: Schedule, guidance: float | None, outcome: Outcome, pictures: int
) -> dict[str, Any]:
    """What a profile keeps of its tuning; `guidance` is the one that was raced at, `pictures` those of all rounds."""
    verdict = outcome.verdict

    def drawn(one: Round) -> dict[str, Any]:
        """Of each method, untouched included."""
        found: dict[str, Any] = {}
        for side, suite in (("rare", tuning.rare), ("common", tuning.common)):
            chosen, seeds = share(schedule, one, side, suite) if suite else ((), ())
            found[side] = {"prompts": len(chosen), "seeds": list(seeds)}
        return found

    return {
        "command": command(tuning, folder),
        "source": tuning.model,
        "asked": tuning.to_dict(),
        "guidance_scale": guidance,
        "pictures": pictures,
        "race": [
            {
                "round": one.name,
                "drawn": drawn(one),
                "settings": [dataclasses.asdict(s) for s in found],
            }
            for one, found in outcome.standings
        ],
        "confirm": verdict and {"drawn": drawn(schedule.confirm), **{k: _list(v) for k, v in vars(verdict).items()}},
        "seed": SEED,
        "with": made_with(),
    }


def _list(value: Any) -> Any:
    """An estimate as [value, low, high]."""
    return list(dataclasses.astuple(value)) if isinstance(value, stats.Estimate) else value


def told(found: Found) -> str:
    """What came of a tuning, as text."""
    made, outcome = found.profile.made, found.outcome
    guidance = "the model's own" if made["guidance_scale"] is None else f"{made['guidance_scale']:g}"
    lines = [f"{found.pictures} pictures, guidance_scale {guidance}"]
    lines += [f"Left out, since it fails here: {name}: {why}" for name, why in made["left_out"].items()]
    for one, standings in outcome.standings:
        best = standings[0]
        common = "" if best.common is None else f", common {best.common:+.3f}"
        lines.append(f"{one.name}: {len(standings)} settings; best so far {best.method}: rare {best.rare:+.3f}{common}")
    verdict = outcome.verdict
    if verdict is None:
        lines.append("No setting did better than the untouched model, so none was tested further.")
    else:
        lines += [
            f"Tested on {verdict.pictures} pictures of {verdict.things} things that had no part in the choice: "
            f"{verdict.method}",
            f"rare: untouched {verdict.untouched:.3f}, lifted {verdict.lifted:.3f}, difference "
            f"{verdict.difference:+.3f}, p {verdict.p:.3f}",
            f"A repeat of this size would be likely to find a true difference of {verdict.detectable:.3f}."
            if not math.isclose(verdict.detectable, 0.0, abs_tol=1e-9)
            else "The difference is the same for every thing, so its scatter cannot be told."
            if verdict.difference.value
            else "No score differs between the two.",
            _told_of_common(verdict.common, given=made["asked"]["common"] is not None),
        ]
    if outcome.winner:
        lines += [f"The profile holds {outcome.winner}.", _told_of_guidance(made["guidance_scale"], found.path)]
    else:
        why = f" ({verdict.why})" if verdict else ""
        lines.append(f"Nothing beats the untouched model here{why}: the profile says alpha 1, which changes nothing.")
    return "\n".join(lines) + "\n"


def _told_of_guidance(guidance: float | None, path: Path) -> str:
    if guidance is None:
        return "It was tested at the model's own guidance_scale, and says nothing of another one."
    return (
        f"It was tested at guidance_scale {guidance:g}, which a profile does not set, and says nothing of another one: "
        f"pass it too, as in rarelift generate ... --profile {path} --guidance {guidance:g}"
    )


def _told_of_common(common: stats.Estimate | None, *, given: bool) -> str:
    if common is None:
        return "common: too few scores to compare" if given else "common: not guarded, for no common prompts were given"
    ruled_out = f"; a loss of {-common.low:.3f} is not ruled out" if common.low < 0 else ""
    return f"common: difference {common:+.3f}{ruled_out}"
