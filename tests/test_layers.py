"""Who may import whom: the table of DESIGN section 3, compared with what the sources import."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "rarelift"
FACTS = {"variance", "settings", "streams", "locate"}
# room: what it may import besides itself. The longest name that fits a module is its room; a new room needs a row.
MAY_IMPORT: dict[str, set[str]] = {
    "variance": set(),
    "directions": {"variance"},
    "settings": set(),
    "streams": set(),
    "spans": set(),
    "fused": {"_triton"},
    "_triton": set(),
    "pictures": set(),
    "metrics": set(),
    "bench.stats": set(),
    "locate": {"streams"},
    "tokens": FACTS,
    "strength": FACTS,
    "anatomy": FACTS,
    "lifting": FACTS | {"directions", "fused", "tokens", "strength"},
    "hooks": FACTS | {"fused", "lifting", "spans", "tokens"},
    "attach": {"hooks", "lifting", "locate", "settings", "streams"},
    "__init__": {"attach", "settings"},
    "pipelines": {"menagerie"},
    "prompts": {"menagerie", "settings"},
    "menagerie": {"metrics", "prompts"},
    "rivals": FACTS | {"attach", "anatomy", "menagerie", "metrics", "pipelines", "prompts", "spans", "tokens"},
    "bench": {
        "attach",
        "bench.stats",
        "menagerie",
        "metrics",
        "pictures",
        "pipelines",
        "prompts",
        "rivals",
        "settings",
    },
    "generating": {"attach", "settings", "pipelines", "pictures", "bench.stats", "menagerie"},
    "comfy": {"variance", "settings"},
}
MAY_IMPORT["web"] = set(MAY_IMPORT)  # anything but cli
MAY_IMPORT["cli"] = set(MAY_IMPORT)  # anything; nobody else has cli or web in its row


def room(module: str) -> str:
    """`menagerie` for `menagerie.world`, `bench.stats` for itself, `__init__` for what `rarelift` itself defines."""
    return max((row for row in MAY_IMPORT if f"{module}.".startswith(f"{row}.")), key=len, default="__init__")


def imports(source: str, package: list[str]) -> set[str]:
    """Rooms of ours, and `diffusers.hooks`, that a module of `package` imports anywhere, TYPE_CHECKING included."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            names |= {".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names}
    names.discard("rarelift.__version__")
    rooms = {room(n.removeprefix("rarelift.")) for n in names if f"{n}.".startswith("rarelift.")}
    return rooms | {"diffusers.hooks" for n in names if f"{n}.".startswith("diffusers.hooks.")}


def test_every_room_has_a_row() -> None:
    rooms = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or any(path.glob("*.py"))}
    assert not rooms - set(MAY_IMPORT), "say in MAY_IMPORT, and in DESIGN section 3, what the new room may import"


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_table(path: Path) -> None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    here = room(".".join(parts))
    forbidden = imports(path.read_text(encoding="utf-8"), ["rarelift", *parts[:-1]]) - MAY_IMPORT[here] - {here}
    assert not forbidden, f"{here} may import {sorted(MAY_IMPORT[here]) or 'nothing of ours'}, not {sorted(forbidden)}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from .stats import mean\nfrom .. import attach, __version__", {"bench.stats", "attach"}),
        ("def f():\n    from ..menagerie.judge import Judge", {"menagerie"}),
        ("if TYPE_CHECKING:\n    import rarelift.web.study, torch", {"web"}),
        ("import rarelift", {"__init__"}),
        ("from rarelift import apply", {"__init__"}),
        ("from diffusers import hooks, Flux2Pipeline", {"diffusers.hooks"}),
        ("from diffusers.hooks.hooks import ModelHook", {"diffusers.hooks"}),
    ],
)
def test_imports_are_seen(source: str, expected: set[str]) -> None:
    assert imports(source, ["rarelift", "bench"]) == expected
