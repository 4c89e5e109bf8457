"""One look for every picture: a calm palette for light and dark, and the way from matplotlib to a themed SVG.

Pictures are drawn in the light colours. Inside the page each colour becomes the CSS variable of its name, so
that text, axes and lines follow the reader's theme; text stays text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# name: (light, dark). The series differ under common colour-vision deficiencies and reach 4.5:1 as text.
PALETTE = {
    "paper": ("#fcfcfa", "#14171b"),
    "ink": ("#1c2026", "#e8eaed"),
    "muted": ("#666d78", "#9ba4b0"),
    "grid": ("#e4e5e1", "#2a3038"),
    "s0": ("#1b6cb5", "#6fb4f5"),
    "s1": ("#c04a12", "#ff9a66"),
    "s2": ("#087a5e", "#4ecfa8"),
    "s3": ("#8a4fb0", "#cf9df0"),
    "s4": ("#8f6b00", "#e2bb4a"),
    "s5": ("#55606e", "#b3bdc9"),
}
SERIES = tuple(name for name in PALETTE if re.fullmatch(r"s\d", name))
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)))  # once the colours are used up

_FONTS = ("Inter", "Source Sans 3", "Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans")
_VARIABLES = {light: f"var(--{name})" for name, (light, _) in PALETTE.items()}


def colour(name: str) -> str:
    """The light colour of that name, which the page turns into its variable."""
    return PALETTE[name][0]


def series_name(index: int) -> str:
    """The palette's name for the index-th run."""
    return SERIES[index % len(SERIES)]


def series(index: int) -> dict[str, Any]:
    """Colour and dash of the index-th run, as arguments of `Axes.plot`."""
    return {"color": colour(series_name(index)), "linestyle": DASHES[index // len(SERIES) % len(DASHES)]}


@dataclass
class Sheet:
    """A figure measured in CSS pixels from its top left corner.

    One that stands alone, in a file, has a header: its `title` and a `key` of (name, index of its colour).
    """

    width: int
    height: int
    title: str = ""
    key: Sequence[tuple[str, int]] = ()
    narrow: bool = False

    def __post_init__(self) -> None:
        import textwrap

        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.figure: Figure = Figure(figsize=(self.width / 72, self.height / 72), dpi=72)
        FigureCanvasAgg(self.figure)
        wide = text_width(self.figure, [self.title], fontsize=17, fontweight="bold") / max(1, len(self.title))
        lines = textwrap.wrap(self.title, int((self.width - 28) / wide)) if self.title else []
        places = _flowing([text_width(self.figure, [name]) + 44 for name, _ in self.key], self.width - 28)
        key_top = 22 * len(lines) + 20
        self.header = (22 if lines else 0) + 22 * len(lines) + (22 * (places[-1][1] + 1) if places else 0)
        self.full_height = self.height + self.header
        self.figure.set_figheight(self.full_height / 72)
        for i, line in enumerate(lines):
            self._write(14, 12 + 22 * i, line, color=colour("ink"), fontsize=17, fontweight="bold")
        for (name, index), (x, row) in zip(self.key, places):
            self._swatch(14 + x, key_top + 22 * row + 8, index)
            self._write(14 + x + 24, key_top + 22 * row, name, color=colour(series_name(index)), fontweight="bold")

    def _write(self, x: float, y: float, text: str, **look: Any) -> None:
        self.figure.text(x / self.width, 1 - y / self.full_height, text, va="top", **look)

    def _swatch(self, x: float, y: float, index: int) -> None:
        self.line((x, self.full_height - y), (x + 18, self.full_height - y), linewidth=2.5, **series(index))

    def line(self, start: tuple[float, float], end: tuple[float, float], **look: Any) -> None:
        """A line between two points in pixels from the lower left corner, as matplotlib counts them."""
        from matplotlib.lines import Line2D

        xs, ys = zip(start, end)
        shares = [x / self.width for x in xs], [y / self.full_height for y in ys]
        self.figure.add_artist(Line2D(*shares, **look))

    def axes(self, left: float, top: float, right: float, bottom: float) -> Axes:
        """Axes between those distances, in pixels, from the sheet's left, top, left and top."""
        box = (
            left / self.width,
            1 - (bottom + self.header) / self.full_height,
            (right - left) / self.width,
            (bottom - top) / self.full_height,
        )
        axes = self.figure.add_axes(box)
        axes.patch.set_visible(False)
        axes.tick_params(length=0, pad=7)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="y")
        return axes

    def caption(self, axes: Axes, above: str, below: str, gap: float = 30) -> None:
        """What the axes show: the vertical quantity above them, the horizontal below, level with the eye."""
        offset = {"textcoords": "offset points", "annotation_clip": False, "color": colour("muted")}
        axes.annotate(above, (0, 1), (-2, 12), "axes fraction", ha="left", va="bottom", **offset)
        axes.annotate(below, (1, 0), (0, -gap), "axes fraction", ha="right", va="top", **offset)


@contextmanager
def drawing() -> Iterator[None]:
    """matplotlib in our style, wherever the user's own settings point."""
    import matplotlib
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    fonts = [font for font in _FONTS if font in installed] or ["DejaVu Sans"]
    settings = {
        "font.family": [fonts[0], "DejaVu Sans"] if fonts[0] != "DejaVu Sans" else fonts[:1],
        "font.size": 13.0,
        "text.parse_math": False,
        "text.color": colour("ink"),
        "axes.edgecolor": colour("muted"),
        "axes.labelcolor": colour("muted"),
        "axes.linewidth": 0.8,
        "axes.axisbelow": True,
        "axes.unicode_minus": True,
        "grid.color": colour("grid"),
        "grid.linewidth": 0.8,
        "lines.linewidth": 2.0,
        "lines.solid_capstyle": "round",
        "xtick.color": colour("muted"),
        "ytick.color": colour("muted"),
        "svg.fonttype": "none",
        "svg.hashsalt": "rekindle",
    }
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        yield


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, facecolor=colour("paper"), metadata={"Software": None})
    return buffer.getvalue()


def svg(figure: Figure, transparent: bool = False) -> str:
    """The figure as a file that looks the same everywhere, in the light colours."""
    buffer = io.StringIO()
    nameless = {"Date": None, "Creator": None}
    figure.savefig(buffer, format="svg", metadata=nameless, transparent=transparent, facecolor=colour("paper"))
    return buffer.getvalue()


def themed(figure: Figure, prefix: str, label: str) -> str:
    """The figure as an `<svg>` for the page: CSS variables for colours, the page's font, unique ids."""
    from html import escape

    text = svg(figure, transparent=True)
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", text, flags=re.S)
    text = re.sub(r"<[^>]+>", lambda tag: _themed_tag(tag[0], prefix), text[text.index("<svg") :])
    opening = f'<svg role="img" aria-label="{escape(label)}" '
    return re.sub(r">\s+<", "><", text.replace("<svg ", opening, 1)).strip()


def _themed_tag(tag: str, prefix: str) -> str:
    if tag.startswith("<svg"):
        return re.sub(r' (?:width|height|version|xmlns)="[^"]*"', "", tag)
    tag = re.sub(r"font: (?:(\w+) )?([\d.]+px)[^;\"]*", r"font-size: \2; font-weight: \1", tag)  # before 3.11
    tag = re.sub(r"font-family:[^;\"]*;?", "", tag)
    tag = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", tag)
    tag = re.sub(r"#[0-9a-f]{6}\b", lambda hexadecimal: _VARIABLES.get(hexadecimal[0], hexadecimal[0]), tag)
    return re.sub(r"(\d\.\d\d)\d+", r"\1", tag).replace("xlink:href", "href")


def text_width(figure: Figure, texts: Sequence[str], **font: Any) -> float:
    """Width of the widest of `texts` in pixels, with some slack for the reader's own font."""
    from matplotlib.text import Text

    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    widths = []
    for content in texts:
        text = Text(0, 0, content, **font)
        text.set_figure(figure)
        widths.append(text.get_window_extent(renderer).width)
    return 1.08 * max(widths, default=0.0)


def _flowing(widths: Sequence[float], available: float) -> list[tuple[float, int]]:
    """(x, row) of items set one after the other like words in a line."""
    places: list[tuple[float, int]] = []
    x, row = 0.0, 0
    for width in widths:
        if x > 0 and x + width > available:
            x, row = 0.0, row + 1
        places.append((x, row))
        x += width
    return places
