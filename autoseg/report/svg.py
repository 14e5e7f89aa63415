"""Charts of matplotlib as SVG inside the page: text stays text, and colours are those of the page, light or dark.

A chart is drawn in stand-in colours, one per role. In the SVG each is replaced by a variable of the style sheet, so
that the same chart is readable on both backgrounds and in print. Identifiers get the chart's name in front, because all
charts share one page.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.4, 3.0  # inches; at 72 units each, text of 9 is readable at the width of a phone
INK, MUTED, GRID = "#010203", "#040506", "#070809"  # text, secondary text, lines
ON_FIRST = "#0a0b0c"  # text on a field of the first colour
SERIES = ("#0d0e0f", "#101112", "#131415", "#161718", "#191a1b", "#1c1d1e", "#1f2021")  # one per label or fold
ROLES = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    ON_FIRST: "var(--on-c1)",
    **{stand_in: f"var(--c{i})" for i, stand_in in enumerate(SERIES, start=1)},
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.parse_math": False,  # names are shown as they are written
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.titlesize": 9.5,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "lines.linewidth": 1.4,
}


def colour(index: int) -> str:
    """The stand-in colour of a label or fold, by its position."""
    return SERIES[index % len(SERIES)]


@contextmanager
def chart(*, width: float = WIDTH, height: float = HEIGHT) -> "Iterator[tuple[Figure, Axes]]":
    """An empty figure of one panel in the report's style, to draw on and then to pass to `inline`."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots()


def logarithmic(axis: "Axis") -> None:
    """Number a logarithmic axis of powers of ten in plain figures: 0.1, 10, 10 k, 1 M."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    axis.set_minor_formatter(NullFormatter())


def plain(value: float) -> str:
    """A number in few characters, without an exponent where it is between 0.001 and a billion."""
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == ' k' else size):.4g}{letter}"
    return f"{value:.4g}".replace("-", "−")


def inline(figure: "Figure", name: str, title: str) -> Markup:
    """A figure as an SVG element.

    Args:
        name: unique on the page, of letters and digits.
        title: what it shows, for screen readers.
    """
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*|<style[^>]*>.*?</style>\s*", "", text, flags=re.DOTALL)
    view = re.search(r'viewBox="([^"]+)"', text)
    assert view is not None
    body = text[text.index(">") + 1 :]
    body = re.sub(r'<g id="(?:figure|axes|patch|text|line2d|xtick|ytick|matplotlib\.axis)_\d+">', "<g>", body)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = body.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    body = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", body)
    for stand_in, role in ROLES.items():
        body = body.replace(stand_in, role)
    label = Markup('role="img" aria-label="{}"').format(title)
    return Markup(f'<svg class="chart" viewBox="{view[1]}" {label}>' + re.sub(r"\n\s*", "\n", body).strip())
