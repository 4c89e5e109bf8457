"""A study's page: what the paper says, what was seen here, figures, and how to repeat it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rekindle.lab.claims import Finding
from rekindle.report.chart import Chart, publish
from rekindle.report.csv_file import write_csv
from rekindle.report.page import FIGURES, render
from rekindle.report.words import listed
from rekindle.store.publish import publishing


@dataclass(frozen=True)
class Table:
    """Figures that are not losses: sizes, speeds."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[Any, ...]]
    note: str = ""


@dataclass(frozen=True)
class Study:
    """What a study found; `setting` says on what, `limits` what it cannot show."""

    title: str
    paper: str
    url: str
    setting: str
    findings: Sequence[Finding]
    charts: Sequence[Chart]
    limits: Sequence[str]
    command: str
    tables: Sequence[Table] = ()
    verdict: str = ""  # in place of one on the findings


def verdict(findings: Sequence[Finding]) -> str:
    """One sentence: how many claims hold here, and which do not."""
    n = len(findings)
    by = {kind: [f for f in findings if f.judgement == kind] for kind in
          ("reproduces", "does not reproduce", "undecided", "direction only")}  # fmt: skip
    if by["direction only"]:
        agree = sum(f.difference.mean > 0 for f in findings if not f.claim.alike)
        of = sum(not f.claim.alike for f in findings)
        return f"One seed: {agree} of {of} directions are the paper's. More seeds would give intervals."
    said = f"{len(by['reproduces'])} of {n} claims reproduce at this size"
    for kind, words in (("does not reproduce", "does not"), ("undecided", "cannot be decided")):
        if by[kind]:
            said += f"; {listed([_short(f) for f in by[kind]])} {words}"
    return said + "."


def _short(finding: Finding) -> str:
    return f"“{finding.claim.text}”"


def write_study(study: Study, out: Path, overwrite: bool) -> Path:
    """Write OUT/index.html, its figures and findings.csv. Returns the page."""
    with publishing(out, overwrite=overwrite) as folder:
        (folder / FIGURES).mkdir()
        context = {
            "title": study.title,
            "study": study,
            "verdict": study.verdict or verdict(study.findings),
            "pictures": [publish(chart, folder / FIGURES) for chart in study.charts],
        }
        (folder / "index.html").write_text(render(context, "study.html.j2"), encoding="utf-8")
        columns = ("claim", "paper", "low", "high", "difference_nats", "half_width_95", "seeds", "judgement")
        rows = [(f.claim.text, f.claim.paper, f.claim.low, f.claim.high, f.difference.mean, f.difference.half,
                 f.difference.seeds, f.judgement) for f in study.findings]  # fmt: skip
        write_csv(folder / "findings.csv", columns, rows)
    return out / "index.html"
