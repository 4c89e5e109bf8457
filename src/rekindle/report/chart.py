"""A chart: a finding, the numbers behind it and how to draw them; published as picture files and as page SVG."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rekindle.report.style import DASHES, SERIES, Sheet, drawing, png, series_name, svg, themed

WIDE, NARROW = 760, 360  # pixels


@dataclass(frozen=True)
class Chart:
    """`draw` fills a sheet and says whether it named its lines there; if not, the page shows `key` beside it."""

    name: str  # of its files
    title: str  # the finding
    caption: str
    columns: tuple[str, ...]  # of the CSV: exactly the numbers drawn
    rows: Sequence[tuple[Any, ...]]
    draw: Callable[[Sheet], bool]
    height: int  # pixels, at 760 wide
    narrow_height: int  # pixels, at 360 wide
    key: tuple[tuple[str, int], ...] = ()  # (run name, index of its colour)


@dataclass(frozen=True)
class Picture:
    """A chart as the page shows it; `wide` and `narrow` are `<svg>` elements."""

    chart: Chart
    wide: str
    narrow: str
    labelled: bool  # the wide picture names its lines

    @property
    def key(self) -> list[dict[str, str]]:
        """Name, colour variable and CSS border style of each line."""
        styles = ("solid", "dashed", "dotted")
        return [
            {"name": name, "colour": series_name(i), "style": styles[i // len(SERIES) % len(DASHES)]}
            for name, i in self.chart.key
        ]


def publish(chart: Chart, folder: Path) -> Picture:
    """Write NAME.png, NAME.svg and NAME.csv into `folder` and return the picture for the page."""
    with (folder / f"{chart.name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(chart.columns)
        writer.writerows(chart.rows)
    with drawing():
        titled = Sheet(WIDE, chart.height, title=chart.title)
        labelled = chart.draw(titled)
        if not labelled:
            _legend(titled, chart)
        (folder / f"{chart.name}.png").write_bytes(png(titled.figure))
        (folder / f"{chart.name}.svg").write_text(svg(titled.figure), encoding="utf-8")
        wide = Sheet(WIDE, chart.height)
        chart.draw(wide)
        narrow = Sheet(NARROW, chart.narrow_height, narrow=True)
        chart.draw(narrow)
        return Picture(
            chart,
            themed(wide.figure, f"{chart.name}-w", chart.title),
            themed(narrow.figure, f"{chart.name}-n", chart.title),
            labelled,
        )


def _legend(sheet: Sheet, chart: Chart) -> None:
    """The key as one row under the title of a picture file whose lines are not named in place."""
    from matplotlib.lines import Line2D

    from rekindle.report.style import series

    if not chart.key:
        return
    handles = [Line2D([], [], **series(i), label=name.lstrip("_") or name) for name, i in chart.key]
    columns = max(1, min(len(handles), 4))
    rows = -(-len(handles) // columns)
    grown = (sheet.full_height + 22 * rows) / 72
    for axes in sheet.figure.axes:  # keep what is drawn where it is, and put the key below
        box = axes.get_position()
        share = sheet.full_height / 72 / grown
        axes.set_position((box.x0, 1 - (1 - box.y0) * share, box.width, box.height * share))
    for text in sheet.figure.texts:
        text.set_y(1 - (1 - text.get_position()[1]) * sheet.full_height / 72 / grown)
    sheet.figure.set_figheight(grown)
    sheet.figure.legend(handles=handles, loc="lower left", ncols=columns, frameon=False, borderaxespad=0.4)
