"""`rarelift tune`: settings for one model, found by drawing with it, and written down as a profile.

    tune.json       what was asked, and the settings that race: written once, before the first picture
    guidance-rare/  runs as `rarelift bench` makes them, one for each round and side: the sweep of guidance_scale, where
    race1-rare/     there are several, the rounds of the race, and the test of what was left
    race1-common/
    confirm-rare/
    profile.json    what came of it, for rarelift.apply(pipe, profile=...)

Which settings a round draws follows from the scores of the rounds before it, so the same command goes on where it was
stopped and comes to the same end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..profiles import Profile
from ..settings import Spread
from . import racing, stats
from .candidates import sampled
from .findings import Found, record, told
from .rounds import Drawing
from .runs import UNTOUCHED, Method, write
from .tuning import Tuning, command, planned

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .racing import Round, Scores

__all__ = ["Found", "Tuning", "command", "planned", "sampled", "told", "tune"]

PROFILE = "profile.json"


def tune(tuning: Tuning, folder: Path) -> Found:
    """Draw what the folder lacks of a tuning, and write its profile.

    Raises:
        ValueError: the folder holds another tuning, or something else; or no untouched picture of a round has a score.
        pipelines.ModelError: the model does not load.
        RuntimeError: another process draws in the folder, or memory is short.
    """
    stats.require()
    drawing = Drawing(tuning, folder)
    about = drawing.begun()
    methods = {m.name: m for m in tuning.methods or map(Method.parse, about["methods"])}
    schedule = tuning.schedule(len(methods))
    guidance = drawing.best_guidance(schedule)

    def draw(one: Round, names: Sequence[str]) -> tuple[Scores, Scores]:
        chosen = [methods.get(name) or Method(UNTOUCHED) for name in names]
        rare, common = drawing.scores(schedule, one, chosen, (guidance,))
        return {m: rare[m, guidance] for m, _ in rare}, {m: common[m, guidance] for m, _ in common}

    outcome = racing.race(list(methods), schedule, draw, margin=tuning.margin)
    settings = methods[outcome.winner].settings if outcome.winner else None
    chosen = settings.to_dict() if isinstance(settings, Spread) else {"alpha": 1.0}
    made = record(tuning, folder, schedule, guidance, outcome, drawing.pictures)
    made |= {key: about[key] for key in ("dtype", "left_out")}
    profile = Profile(about["model"], about["config"], chosen, made)
    write(folder / PROFILE, profile.to_json())
    return Found(folder / PROFILE, profile, outcome, drawing.pictures)
