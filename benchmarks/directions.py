"""Do parts of the deviation lift rare prompts where the whole of it does not?

    python benchmarks/directions.py

128 rare and 128 common tuning prompts, without guidance and at 3, the same noise as `measure.pictures_of` gives all.
Resumable; one line for each setting, guidance and side in benchmarks/results/directions.jsonl.
"""

from __future__ import annotations

from measure import RESULTS, Bench, Cell, Drawing, lift
from rarelift.menagerie.suite import Suite

SUITES: tuple[Suite, ...] = ("rare", "common")
GUIDANCES = (3.0, 1.0)
SETTINGS = (
    None,
    lift(alpha=1.5),
    lift(alpha=1.5, space="principal", rank=1),
    lift(alpha=1.5, space="principal", rank=3),
    lift(alpha=2.0, space="principal", rank=3),
    lift(alpha=1.5, space="residual", rank=3),
    lift(alpha=2.0, space="residual", rank=3),
    lift(alpha=1.0, space="whiten", amount=0.25),
    lift(alpha=1.0, space="whiten", amount=0.5),
    lift(alpha=1.5, space="whiten", amount=0.25),
    lift(alpha=1.0, space="align", amount=0.25),
    lift(alpha=1.0, space="align", amount=0.5),
    lift(alpha=1.5, space="align", amount=0.25),
    lift(alpha=1.0, space="align", amount=0.25, toward="content"),
)

if __name__ == "__main__":
    cells = (Cell(suite, "tune", 128, 1, g, 16, setting) for g in GUIDANCES for setting in SETTINGS for suite in SUITES)
    Bench(RESULTS / "directions.jsonl", Drawing(rows=64)).run(cells)
