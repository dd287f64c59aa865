"""One look for every figure of the report, and matplotlib's SVG made fit to stand inside a page.

Colours are written as CSS variables with a fallback, so that the page decides between light and dark. The two series
colours (Okabe and Ito's orange and blue) are told apart in every common form of colour blindness, and never by colour
alone: full precision is hollow or thin, quantized is solid.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Drawn with these, then replaced by the variable: values no picture uses by chance.
INK, MUTED, GRID, FLOAT, QUANTIZED = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05"
_VARIABLES = {
    INK: "var(--ink, #20242a)",
    MUTED: "var(--muted, #5d6672)",
    GRID: "var(--line, #dfe3e8)",
    FLOAT: "var(--float, #c26a00)",
    QUANTIZED: "var(--quantized, #0072b2)",
}
PRINTED = {drawn: variable.split()[-1].rstrip(")") for drawn, variable in _VARIABLES.items()}
"""The same colours for a picture that is no part of a page: what the page falls back to."""
# Both ends of cividis keep their contrast against white and black, and it reads the same to the colour-blind.
HEAT = "cividis"

_STYLE = {
    "svg.fonttype": "none",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "text.parse_math": False,  # a name may hold dollars
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


@contextmanager
def figure_style(name: str, printed: bool = False) -> Iterator[None]:
    """Draw in the common style.

    Args:
        name: keeps the element ids of several figures in one page apart.
        printed: on white paper with the colours :data:`PRINTED`, for a file of its own.
    """
    style = dict(_STYLE)
    if printed:
        style = {key: PRINTED.get(value, value) for key, value in _STYLE.items()} | {"figure.facecolor": "white"}
    with matplotlib.rc_context({**style, "svg.hashsalt": f"s2q-{name}"}):
        yield


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of ``width`` x ``height`` inches with one set of axes, made without pyplot's global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def inline_svg(figure: Figure, label: str) -> str:
    """``figure`` as an ``<svg>`` element for a page: no header, no metadata, no links, the same text every time.

    Args:
        label: what a screen reader says in place of the picture; escaped here.
    """
    target = io.StringIO()
    FigureCanvasSVG(figure).print_svg(target, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = target.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s(?:xmlns(?::xlink)?|version)="[^"]*"', "", text)
    text = text.replace("xlink:href=", "href=")
    # Group names repeat from figure to figure and nothing refers to them; ids under <defs> are salted and stay.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    # The page's own sans-serif: matplotlib names the machine's.
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    # matplotlib's rule would reach every element of the page; inherited from the root it reaches this figure only.
    text = re.sub(r"\s*<style.*?</style>", "", text, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    # Fill the column it stands in, up to the size at which its letters are as large as the page's small print.
    natural = figure.get_figwidth() * 72
    text = re.sub(
        r' width="[^"]*" height="[^"]*"',
        f' style="--natural: {natural:.0f}px; max-width: {1.4 * natural:.0f}px"',
        text,
        count=1,
    )
    safe = label.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
    return text.replace("<svg ", f'<svg role="img" aria-label="{safe}" stroke-linejoin="round" ', 1).strip()
