"""Plots as SVG to be put into a page: text stays text, and colours are the page's, so that it can be light or dark."""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .stats import Estimate

SERIES = 6
"""How many colours the page has: its variables --s0 (the untouched pipeline) to --s5."""
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES: tuple[Any, ...] = ("--", "-", (0, (6, 2)), (0, (1, 1.2)), "-.", (0, (8, 1, 1, 1, 1, 1)))
# colours that stand for the page's variables until the SVG is text
_INK, _MUTED, _LINE = "#010101", "#010102", "#010103"
_STANDS_FOR = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _LINE: "var(--line)",
    **{f"#0202{i:02x}": f"var(--s{i})" for i in range(SERIES)},
}
# the page's colours by day, for plots outside of it
_SERIES_BY_DAY = ("#55565c", "#0072b2", "#b85a00", "#00785a", "#a8477f", "#7a6a00")
_LIGHT = {"ink": "#1d1d1f", "muted": "#5f6067", "line": "#dcdcdf"} | {
    f"s{i}": colour for i, colour in enumerate(_SERIES_BY_DAY)
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rarelift",  # ids by content: the same numbers make the same file
    "text.parse_math": False,  # a $ in the name of a method is a $
    "font.size": 10.5,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "text.color": _INK,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "axes.unicode_minus": True,
}


def require() -> None:
    """Raise ImportError, with the command that helps, where plots cannot be made."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'rarelift[bench]'") from error


@contextmanager
def _style() -> Iterator[None]:
    """Around all of the drawing: matplotlib reads some settings only when a tick is first seen."""
    require()
    from matplotlib import rc_context

    with rc_context(_STYLE), warnings.catch_warnings():
        # a letter that the font lacks is measured as a box; the browser has it, for text stays text
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


@dataclass(frozen=True)
class Line:
    """What one method says at one guidance after the other; `series` is its place among the methods of the page."""

    method: str
    series: int
    guidances: tuple[float | None, ...]
    values: tuple[Estimate, ...]


@dataclass(frozen=True)
class Curve:
    """Rare and common success of one method by guidance."""

    method: str
    series: int
    guidances: tuple[float | None, ...]
    rare: tuple[Estimate, ...]
    common: tuple[Estimate, ...]


@_style()
def by_guidance(
    lines: Sequence[Line],
    prefix: str,
    *,
    zero: bool = False,
    axis: str = "guidance_scale",
    value: str = "",
    legend: bool = False,
) -> str:
    """Values with intervals against guidance, or one under the other where there is a single guidance.

    Args:
        prefix: of the ids in the SVG, different for every plot of a page.
        zero: mark zero, for differences.
        axis: what the numbers along it are, where they are no guidances.
        value: what is plotted, and `legend`: name the lines in the plot; the page says both outside of it.
    """
    places = list(dict.fromkeys(guidance for line in lines for guidance in line.guidances))
    figure, axes = _figure((4.6, 3.1) if len(places) > 1 else (4.6, 0.9 + 0.45 * len(lines)))
    if len(places) > 1:
        _along(axes, lines, places, zero)
        axes.set_xlabel(axis)
        axes.set_ylabel(value)
        if legend:
            _legend(axes, {line.method: line.series for line in lines})
    else:
        _stacked(axes, lines, zero)
    return _svg(figure, prefix)


def _along(axes: Axes, lines: Sequence[Line], places: list[float | None], zero: bool) -> None:
    numeric = sorted(place for place in places if place is not None)
    at: dict[float | None, float] = {place: place for place in numeric}
    if len(numeric) < len(places):  # "default" has no place on a scale
        at = {place: float(i) for i, place in enumerate(places)}
    sorted_at = sorted(at.values())
    gap = min(b - a for a, b in pairwise(sorted_at))
    if zero:
        axes.axhline(0, color=_MUTED, linewidth=1)
    step = min(max(0.06 * gap, 0.014 * (sorted_at[-1] - sorted_at[0])), 0.8 * gap / len(lines))
    for i, line in enumerate(lines):
        aside = (i - (len(lines) - 1) / 2) * step  # intervals beside each other, not over
        x = [at[guidance] + aside for guidance in line.guidances]
        colour = _colour(line.series)
        axes.vlines(x, [v.low for v in line.values], [v.high for v in line.values], color=colour, linewidth=1.4)
        axes.plot(x, [v.value for v in line.values], color=colour, **_mark(line.series))
    axes.set_xticks(sorted_at, [_said(next(p for p in places if at[p] == x)) for x in sorted_at])
    axes.grid(axis="x", visible=False)


def _stacked(axes: Axes, lines: Sequence[Line], zero: bool) -> None:
    if zero:
        axes.axvline(0, color=_MUTED, linewidth=1)
    for i, line in enumerate(lines):
        value, colour = line.values[0], _colour(line.series)
        axes.hlines([i], [value.low], [value.high], color=colour, linewidth=1.4)
        axes.plot([value.value], [i], color=colour, **_mark(line.series))
    names = [textwrap.fill(line.method.replace(",", ", "), 22) for line in lines]
    axes.set_yticks(range(len(lines)), names)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


@_style()
def rare_against_common(curves: Sequence[Curve], metric: str, prefix: str, *, legend: bool = False) -> str:
    """Rare success against common success: a line per method, a point with both intervals per guidance."""
    figure, axes = _figure((5.2, 4.0))
    for curve in curves:
        colour = _colour(curve.series)
        x, y = [v.value for v in curve.common], [v.value for v in curve.rare]
        axes.vlines(x, [v.low for v in curve.rare], [v.high for v in curve.rare], color=colour, linewidth=1, alpha=0.55)
        axes.hlines(
            y, [v.low for v in curve.common], [v.high for v in curve.common], color=colour, linewidth=1, alpha=0.55
        )
        axes.plot(x, y, color=colour, **_mark(curve.series))
        below = curve.series % 2 == 0  # so that labels of two methods do not lie on each other
        for a, b, guidance in zip(x, y, curve.guidances, strict=True):
            axes.annotate(
                _said(guidance),
                (a, b),
                (6, -6 if below else 6),
                textcoords="offset points",
                color=colour,
                fontsize=9,
                va="top" if below else "bottom",
            )
    axes.set_xlabel(f"{metric}, common prompts")
    axes.set_ylabel(f"{metric}, rare prompts")
    axes.margins(0.08)
    if legend:
        _legend(axes, {curve.method: curve.series for curve in curves})
    return _svg(figure, prefix)


def swatch(series: int) -> str:
    """A method's line and marker as a small SVG, for a legend."""
    shapes = (
        '<circle cx="14" cy="6" r="3.6"/>',
        '<path d="M10.6 2.6h6.8v6.8h-6.8z"/>',
        '<path d="M14 1.6l4.2 8h-8.4z"/>',
        '<path d="M14 1.4l4.4 4.6-4.4 4.6-4.4-4.6z"/>',
        '<path d="M14 10.4l4.2-8h-8.4z"/>',
        '<path d="M12.4 2h3.2v2.4H18v3.2h-2.4V10h-3.2V7.6H10V4.4h2.4z"/>',
    )
    dashes = ("4 3", "", "7 3", "1.5 2", "6 2 1.5 2", "8 1.5 1.5 1.5")
    i = _place(series)
    return (
        f'<svg class="swatch" viewBox="0 0 28 12" aria-hidden="true" style="color:var(--s{i})">'
        f'<path d="M0 6h28" stroke="currentColor" stroke-width="2" stroke-dasharray="{dashes[i]}"/>'
        f'<g fill="currentColor">{shapes[i]}</g></svg>'
    )


def _place(series: int) -> int:
    """Beyond the last colour they begin again, without that of the untouched pipeline."""
    return series if series < SERIES else 1 + (series - 1) % (SERIES - 1)


def _colour(series: int) -> str:
    return f"#0202{_place(series):02x}"


def _mark(series: int) -> dict[str, Any]:
    i = _place(series)
    return {"marker": MARKERS[i], "linestyle": DASHES[i], "linewidth": 1.6, "markersize": 6}


def _said(guidance: float | None) -> str:
    return "default" if guidance is None else f"{guidance:g}"


def _legend(axes: Axes, names: dict[str, int]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=_colour(series), label=name, **_mark(series)) for name, series in names.items()]
    axes.legend(handles=handles, frameon=False, fontsize=9, handlelength=3)


def standalone(svg: str) -> str:
    """A plot of a page as a file of its own: dark on white, in the reader's sans-serif."""
    for name, colour in _LIGHT.items():
        svg = svg.replace(f"var(--{name})", colour)
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" font-family="sans-serif" '
    )
    return svg.replace("<svg ", f'{head}style="background:#ffffff" ', 1) + "\n"


def _figure(size: tuple[float, float]) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(size, layout="constrained")
    axes = figure.add_subplot()
    axes.tick_params(length=0)
    return figure, axes


def _svg(figure: Figure, prefix: str) -> str:
    out = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->\s*|<metadata>.*?</metadata>\s*|<style .*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r" font-family: [^;\"]*;", "", text)  # the page's font
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)  # ids are of the whole page
    for stand_in, meant in _STANDS_FOR.items():
        text = text.replace(stand_in, meant)
    return re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="presentation">', text, count=1)
