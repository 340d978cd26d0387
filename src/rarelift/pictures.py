"""Write pictures: settings inside the PNG, labelled grids, never half a file."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.PngImagePlugin import PngInfo

from . import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

KEY = "rarelift"  # the PNG text chunk that holds the settings
_INK, _PAPER, _GOOD, _BAD = (30, 30, 40), (255, 255, 255), (40, 150, 70), (205, 60, 50)


def check_writable(path: Path) -> None:
    """Raise OSError in plain words if `path` cannot be written; makes nothing."""
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error
    if path.is_dir():
        raise OSError(f"cannot write {path}: it is a folder")


def check_suffix(path: Path) -> None:
    """Raise ValueError for a file name of another picture format: settings travel in PNGs."""
    if path.suffix.lower() in Image.registered_extensions() and path.suffix.lower() != ".png":
        raise ValueError(f"pictures are PNGs, with their settings inside; give a .png file or a folder, not {path}")


@functools.cache
def versions() -> dict[str, str]:
    """Of the packages that a picture depends on; asked once, for each answer reads a file."""
    return {name: version(name) for name in ("torch", "diffusers", "transformers")}


def save(image: Image.Image, path: Path, metadata: dict[str, Any]) -> None:
    """Write a PNG with `metadata` and package versions as JSON in its `rarelift` text chunk, whole or not at all."""
    check_writable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    info = PngInfo()
    info.add_itxt(KEY, json.dumps({**metadata, "versions": {"rarelift": __version__, **versions()}}))
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".png")
    os.close(handle)
    try:
        image.save(name, pnginfo=info)
        os.chmod(name, 0o644)  # mkstemp's 0600 is for secrets
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def read_metadata(path: Path) -> dict[str, Any]:
    """The settings that `save` put into a PNG; empty if there are none."""
    with Image.open(path) as image:
        found: dict[str, Any] = json.loads(image.info.get(KEY, "{}"))
    return found


def grid(
    rows: Sequence[Sequence[Image.Image]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    *,
    marks: Sequence[Sequence[bool | None]] | None = None,
    cell: int = 160,
) -> Image.Image:
    """Labelled rows and columns of pictures, column labels wrapped; `marks` frames each green (right) or red.

    A picture keeps its proportions inside a square of `cell` pixels.
    """
    widths = {len(row) for row in rows} | {len(column_labels)}
    if len(widths) != 1 or len(rows) != len(row_labels):
        raise ValueError(f"{len(rows)} rows of {[len(r) for r in rows]} pictures do not fit the labels")
    font = ImageFont.load_default(size=15)
    names = [label.splitlines() or [""] for label in row_labels]
    gap, left = 10, 22 + max((round(font.getlength(line)) for lines in names for line in lines), default=0)
    wrapped = [_wrap(label, font, cell) for label in column_labels]
    top = 12 + 19 * max((len(lines) for lines in wrapped), default=0)
    sheet = Image.new("RGB", (left + len(column_labels) * (cell + gap), top + len(rows) * (cell + gap)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for j, lines in enumerate(wrapped):
        draw.multiline_text((left + j * (cell + gap), 6), "\n".join(lines), _INK, font, spacing=4)
    for i, row in enumerate(rows):
        y = top + i * (cell + gap)
        draw.multiline_text((8, y + cell // 2 - 10 * len(names[i])), "\n".join(names[i]), _INK, font, spacing=4)
        for j, image in enumerate(row):
            x = left + j * (cell + gap)
            mark = marks[i][j] if marks else None
            if mark is not None:
                draw.rectangle([x - 4, y - 4, x + cell + 3, y + cell + 3], _GOOD if mark else _BAD)
            small = max(image.size) < cell
            fitted = ImageOps.contain(
                image, (cell, cell), Image.Resampling.BICUBIC if small else Image.Resampling.LANCZOS
            )
            sheet.paste(fitted, (x + (cell - fitted.width) // 2, y + (cell - fitted.height) // 2))
    return sheet


def _wrap(text: str, font: Any, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
