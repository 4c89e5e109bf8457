"""A chart: a finding, the numbers behind it and how to draw them; published as files and as page SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rekindle.report.csv_file import write_csv
from rekindle.report.style import DASHES, SERIES, Sheet, drawing, png, series_name, svg, themed

WIDE, NARROW = 760, 360  # pixels


@dataclass(frozen=True)
class Chart:
    """`draw` fills a sheet and says whether it named its lines there; if not, `key` is shown above it."""

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
    write_csv(folder / f"{chart.name}.csv", chart.columns, chart.rows)
    with drawing():
        wide, narrow = Sheet(WIDE, chart.height), Sheet(NARROW, chart.narrow_height, narrow=True)
        labelled = chart.draw(wide)
        chart.draw(narrow)
        alone = Sheet(WIDE, chart.height, title=chart.title, key=() if labelled else chart.key)
        chart.draw(alone)
        (folder / f"{chart.name}.png").write_bytes(png(alone.figure))
        (folder / f"{chart.name}.svg").write_text(svg(alone.figure), encoding="utf-8")
        return Picture(
            chart,
            themed(wide.figure, f"{chart.name}-w", chart.title),
            themed(narrow.figure, f"{chart.name}-n", chart.title),
            labelled,
        )
