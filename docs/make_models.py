"""Write the table of docs/models.md from what is known of the models and what is tested of them.

python docs/make_models.py
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import diffusers

from rarelift.streams import FAMILIES, Family

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "models.md"
COLUMNS = (
    "model",
    "joint blocks",
    "layout",
    "mask",
    "words known",
    "steps known",
    "halves of guidance",
    "tested at tiny size",
)
HALVES = {
    "uncond_cond": "one batch, unconditional first",
    "cond_uncond": "one batch, conditional first",
    "separate": "a call each",
    "cond": "conditional alone",
    "unknown": "not known: `branch` is refused",
}


def tested() -> dict[str, list[str]]:
    """Model to what is tested of it: configurations of its transformer, then pipelines, prompt in and picture out."""
    if str(ROOT / "tests") not in sys.path:
        sys.path.append(str(ROOT / "tests"))
    import families
    import tiny_pipelines

    counts = {name: [0, 0] for name in FAMILIES}
    for tiny in families.FAMILIES.values():
        counts[tiny.model][0] += 1
    for case in tiny_pipelines.PIPELINES:  # "FluxKontext" is of "Flux", and "Flux2Klein" of "Flux2"
        base = max((name for name in families.FAMILIES if case.startswith(name)), key=len)
        counts[families.FAMILIES[base].model][1] += 1
    units = ("configuration", "pipeline")
    return {
        name: [f"{n} {unit}{'s' * (n > 1)}" for n, unit in zip(numbers, units, strict=True) if n]
        for name, numbers in counts.items()
    }


def layout(family: Family) -> str:
    return "scattered" if family.scattered and family.layout == "packed" else family.layout


def table() -> str:
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    tests = tested()
    for name in sorted(n for n in FAMILIES if hasattr(diffusers, n) and "ControlNet" not in n):
        rows = FAMILIES[name]
        cells = (
            name,
            ", ".join(f"`{f.blocks}`" for f in rows),
            ", ".join(dict.fromkeys(map(layout, rows))),
            *("yes" if known else "no" for known in (any(f.mask for f in rows), rows[0].words_known)),
            "no" if rows[0].timestep_scale is None else "yes",
            HALVES[rows[0].batch],
            ", ".join(tests[name]),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def page(old: str) -> str:
    """The page with the table as it is now."""
    return re.sub(r"(?<=<!-- models -->\n).*(?=\n<!-- /models -->)", lambda _: table(), old, count=1, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
