"""What the documents show is true: their python blocks run, and what they link to exists.

A block that cannot run has `<!-- not run: the reason -->` on the line above it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pytest

from rarelift import streams

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]

_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,}|~{3,})(?P<language>\w*)")
_NOT_RUN = re.compile(r"^\s*<!--\s*not run\s*:?\s*(?P<reason>.*?)\s*-->\s*$")
_LINK = re.compile(r"""\]\(\s*<?([^)\s>]+)|(?:src|href)\s*=\s*["']([^"']+)|^\s*\[[^\]]+\]:\s*(\S+)""", re.MULTILINE)
_REMOTE = re.compile(r"^(?:[a-z][a-z0-9+.-]*:|//|#)", re.IGNORECASE)


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its code, the line its code starts at, and the reason not to run it, if any."""

    language: str
    code: str
    line: int
    not_run: str | None


def blocks(text: str) -> tuple[list[Block], str]:
    """The fenced blocks of a page of Markdown, and the page without them."""
    lines, found, prose, i = text.splitlines(), [], [], 0
    while i < len(lines):
        fence = _FENCE.match(lines[i])
        if not fence:
            prose.append(lines[i])
            i += 1
            continue
        closing = re.compile(rf" *{fence['ticks']}{fence['ticks'][0]}*\s*$")
        end = next((j for j in range(i + 1, len(lines)) if closing.match(lines[j])), len(lines))
        mark = _NOT_RUN.match(lines[i - 1]) if i else None
        code = [line.removeprefix(fence["indent"]) for line in lines[i + 1 : end]]
        found.append(Block(fence["language"], "\n".join(code), i + 2, mark["reason"] if mark else None))
        i = end + 1
    return found, "\n".join(prose)


def links(text: str) -> list[str]:
    """Targets of links and pictures that are files of ours: no address, no anchor alone, nothing inside code."""
    prose = re.sub(r"`[^`\n]*`", "", blocks(text)[1])
    targets = [next(filter(None, groups)) for groups in _LINK.findall(prose)]
    return [unquote(re.split("[#?]", target)[0]) for target in targets if not _REMOTE.match(target)]


def python_blocks(page: Path) -> list[Block]:
    return [block for block in blocks(page.read_text(encoding="utf-8"))[0] if block.language == "python"]


def test_readme_shows_code_that_runs() -> None:
    assert README.exists(), "README.md is missing"
    assert any(block.not_run is None for block in python_blocks(README)), "README.md has no python block that is run"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block after block in one namespace, as a reader would type them, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(streams, "FAMILIES", dict(streams.FAMILIES))
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in python_blocks(page):
        if block.not_run is not None:
            assert block.not_run, f"{page.name}:{block.line - 2}: say why this block is not run"
            continue
        # empty lines in front make a traceback name the line of the page
        exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page.read_text(encoding="utf-8")):
        place = (page.parent / target).resolve()
        assert place.is_relative_to(ROOT), f"{page.name} links to {target}, outside the repository"
        assert place.exists(), f"{page.name} links to {target}, which does not exist"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_said_to_be_printed_is_printed(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of blocks in which each print has a comment behind it; a comment may say more after a colon."""
    for block in python_blocks(page):
        told = [line.partition("#")[2].strip() for line in block.code.splitlines() if line.startswith("print(")]
        if block.not_run is not None or not told or not all(told):
            continue
        exec(compile(block.code, str(page), "exec"), {})
        printed = capsys.readouterr().out.splitlines()
        assert [text.partition(":")[0] for text in told] == printed


def test_a_page_is_read_as_markdown() -> None:
    page = """[a](docs/a.md#part) and ![b](b%20c.png "title") and <img src="d.png"> [e](https://e.org) `[g](g.md)`
```python
x = 1
```
<!-- not run: needs a GPU -->
```python
[h](h.md)
```
<!-- not run -->
  ```python
  y = 2
    ```
[i]: i.md
"""
    found, _ = blocks(page)
    assert [(b.language, b.code, b.line, b.not_run) for b in found] == [
        ("python", "x = 1", 3, None),
        ("python", "[h](h.md)", 7, "needs a GPU"),
        ("python", "y = 2", 11, ""),
    ]
    assert links(page) == ["docs/a.md", "b c.png", "d.png", "i.md"]
