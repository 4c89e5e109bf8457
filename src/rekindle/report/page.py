"""The page: everything the runs say, in one HTML file that needs no network and no script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from rekindle.errors import RekindleError
from rekindle.report import lineage, table, verdict
from rekindle.report.chart import Chart, Picture, publish
from rekindle.report.curves import loss_chart, optimisation_chart
from rekindle.report.experts import expert_chart
from rekindle.report.recoveries import recovery_chart
from rekindle.report.runs import Run, read_runs
from rekindle.report.style import PALETTE, series_name
from rekindle.report.table import Row
from rekindle.report.words import count, listed
from rekindle.store.lineage import origins, sunk
from rekindle.store.publish import publishing

FIGURES = "figures"


@dataclass(frozen=True)
class Report:
    """What was written and what it says."""

    page: Path
    verdict: str
    rows: list[Row]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for `--format json`."""
        return {"page": str(self.page), "verdict": self.verdict, "rows": [asdict(row) for row in self.rows]}


def write_report(
    runs: Sequence[Path],
    out: Path,
    *,
    title: str | None = None,
    command: str = "",
    verdict_note: str = "",
    overwrite: bool = False,
) -> Report:
    """Write OUT/index.html and, for every figure, a PNG, an SVG and a CSV under OUT/figures.

    `command` is shown as the one that made the page. Raises RekindleError where a run cannot be read, OUT is
    not empty (unless `overwrite`) or OUT holds one of the runs.
    """
    out = Path(out).absolute()
    found = readable(runs, out)
    with publishing(out, overwrite=overwrite) as folder:
        (folder / FIGURES).mkdir()
        pictures = [publish(chart, folder / FIGURES) for chart in _charts(found)]
        comparison = verdict.compare(found, "flops")
        rows = table.rows(found)
        said = verdict.sentence(comparison, found)
        context = {
            "title": title or _title(found),
            "verdict": said,
            "verdict_note": verdict_note,
            "winner": _colour_of(comparison, found),
            "regime": _regime(found),
            "cautions": verdict.cautions(comparison, found) + _gaps(found),
            "pictures": pictures,
            "losses": [p for p in pictures if p.chart.name.startswith("loss-")],
            "others": [p for p in pictures if not p.chart.name.startswith("loss-")],
            "rows": rows,
            "table": table.displayed(rows),
            "runs": [_run(run, i) for i, run in enumerate(found)],
            "commands": lineage.commands(found),
            "command": command,
        }
        (folder / "index.html").write_text(render(context), encoding="utf-8")
    return Report(out / "index.html", said, rows)


def readable(runs: Sequence[Path], out: Path) -> list[Run]:
    """The runs, read; raises RekindleError where one cannot be, or OUT would replace it."""
    found = read_runs(runs)
    for run in found:
        if run.folder.resolve().is_relative_to(Path(out).resolve()):
            raise RekindleError(
                f"The report would replace the run {run.folder}.", where=f"OUT is {out}", hint="another OUT"
            )
    return found


def render(context: dict[str, Any], template: str = "page.html.j2") -> str:
    """The page's HTML. Everything in `context` is escaped, but for the `<svg>` elements we drew."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("rekindle.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css = Markup((resources.files("rekindle.report") / "page.css").read_text(encoding="utf-8"))
    given = {"css": css, "palette": PALETTE, "figures": FIGURES, "drawn": _drawn}
    return environment.get_template(template).render(context, **given)


def _drawn(picture: Picture) -> dict[str, Any]:
    from markupsafe import Markup

    return {"wide": Markup(picture.wide), "narrow": Markup(picture.narrow)}


def _charts(runs: Sequence[Run]) -> list[Chart]:
    experts = [expert_chart(run, i, f"experts-{i + 1}") for i, run in enumerate(runs)]
    died = [recovery_chart(run, i, f"recoveries-{i + 1}") for i, run in enumerate(runs)]
    charts = [loss_chart(runs, "flops"), loss_chart(runs, "tokens"), *died, *experts, optimisation_chart(runs)]
    return [chart for chart in charts if chart is not None]


def _title(runs: Sequence[Run]) -> str:
    names = [run.name for run in runs]
    return listed(names) if len(names) <= 4 else f"{listed(names[:3] + [f'{len(names) - 3} more'])}"


def _colour_of(comparison: verdict.Comparison | None, runs: Sequence[Run]) -> str:
    """The winner's colour beside the verdict; a neutral one where there is no winner."""
    if comparison is None or comparison.tied or len(comparison.readings) < 2:
        return "muted"
    return series_name(next(i for i, run in enumerate(runs) if run is comparison.best.run))


def _regime(runs: Sequence[Run]) -> list[str]:
    """The two lengths on which the sign depends, for each run that has ancestors."""
    found = []
    for run in runs:
        before = sunk(run.ancestry).tokens
        if before and run.tokens:
            known, at = ("", "") if not origins(run.lineage) else ("at least ", "at most ")
            ratio = f"{at}{run.tokens / before:.2f} times as many"
            found.append(f"{run.name}: {known}{count(before)} tokens sunk, then {count(run.tokens)} here, {ratio}")
    return found


def _gaps(runs: Sequence[Run]) -> list[str]:
    found = []
    for run in runs:
        for what, rows in (("validation", run.metrics.evaluations), ("training", run.metrics.steps)):
            bad = [row.step for row in rows if not math.isfinite(row.loss)]
            if bad:
                times = "once" if len(bad) == 1 else f"{len(bad)} times"
                found.append(f"{run.name}: the {what} loss is not a number {times}, first at step {bad[0]}.")
        if run.metrics.torn:
            found.append(f"{run.name}: the last line of metrics.jsonl is cut off and was left out.")
    foreign = [run.name for run in runs if not run.lineage]
    if foreign:
        found.append(f"{listed(foreign)}: no lineage is recorded, so what was sunk before is unknown.")
    return found


def _run(run: Run, index: int) -> dict[str, Any]:
    return {"name": run.name, "colour": series_name(index), "lines": lineage.lines(run.lineage)}
