"""Cut the glyphs that the Menagerie world is drawn with out of an emoji font.

Run once, by hand, when the glyph list changes; the sheet it writes is committed, so neither training nor
tests need the font:

    python -m rarelift.menagerie.sprites NotoColorEmoji.ttf
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

CELL = 128
GLYPHS = {
    "cat": "\U0001f431",
    "dog": "\U0001f436",
    "lion": "\U0001f981",
    "bear": "\U0001f43b",
    "panda": "\U0001f43c",
    "mouse": "\U0001f42d",
    "rabbit": "\U0001f430",
    "fox": "\U0001f98a",
    "frog": "\U0001f438",
    "monkey": "\U0001f435",
    "pig": "\U0001f437",
    "cow": "\U0001f42e",
    "horse": "\U0001f434",
    "hen": "\U0001f414",
    "owl": "\U0001f989",
    "octopus": "\U0001f419",
    "hat": "\U0001f3a9",
    "crown": "\U0001f451",
    "sunglasses": "\U0001f576",
    "bow": "\U0001f380",
    "headphones": "\U0001f3a7",
    "cap": "\U0001f9e2",
}
SHEET = Path(__file__).parent / "data" / "sprites.png"


def cut(font_path: Path) -> Image.Image:
    """Return the sheet, one square RGBA cell of `CELL` pixels per glyph, side by side in the order of `GLYPHS`."""
    font = ImageFont.truetype(str(font_path), 109)  # the one bitmap size that Noto Color Emoji holds
    sheet = Image.new("RGBA", (CELL * len(GLYPHS), CELL))
    for i, glyph in enumerate(GLYPHS.values()):
        canvas = Image.new("RGBA", (200, 200))
        ImageDraw.Draw(canvas).text((30, 30), glyph, font=font, embedded_color=True)
        bounds = canvas.getbbox()
        if bounds is None:
            raise ValueError(f"{font_path} has no colour glyph for {glyph!r}")
        glyph_image = canvas.crop(bounds)
        glyph_image.thumbnail((CELL, CELL))
        x = (CELL - glyph_image.width) // 2
        y = (CELL - glyph_image.height) // 2
        sheet.paste(glyph_image, (CELL * i + x, y))
    return sheet


if __name__ == "__main__":
    cut(Path(sys.argv[1])).save(SHEET, optimize=True)
