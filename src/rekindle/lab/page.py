"""A study's page: what the paper says, what was seen here, figures, and how to repeat it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rekindle.lab.claims import Finding, Metric, Values, Whose, planned
from rekindle.lab.margin import Margins
from rekindle.lab.spent import Trained
from rekindle.lab.stats import MOST
from rekindle.report.chart import Chart, publish
from rekindle.report.csv_file import write_csv
from rekindle.report.page import FIGURES, render
from rekindle.report.words import count, listed, scientific
from rekindle.store.publish import publishing

COLUMNS = (
    "claim", "of", "paper", "metric", "unit", "arm", "rival", "kind", "margin", "n", "gain", "spread", "confidence",
    "low", "high", "p", "p_holm", "judgement", "seeds_to_decide", "epochs_arm", "epochs_rival", "text", "margins",
    "judged_with",
)  # fmt: skip
NAMED = 6  # claims of one kind that a verdict names one by one
WHOSE: Mapping[Whose, tuple[str, str]] = {
    "paper": ("the paper", "the paper's"),
    "another": ("another paper", "another paper's"),
    "ours": ("us", "our"),
}


@dataclass(frozen=True)
class Table:
    """Figures that are not losses: sizes, speeds."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[Any, ...]]
    note: str = ""


@dataclass(frozen=True)
class Page:
    """What a study found: `values` of each metric's arms; `setting` says on what, `limits` what it cannot show."""

    title: str
    paper: str
    url: str
    setting: str
    charts: Sequence[Chart]
    limits: Sequence[str]
    values: Mapping[Metric, Values] = field(default_factory=dict)
    tables: Sequence[Table] = ()


def verdict(findings: Sequence[Finding]) -> str:
    """One sentence: how many claims hold here, and which do not."""
    by = {kind: [f for f in findings if f.judgement == kind] for kind in
          ("holds", "does not hold", "undecided", "direction only")}  # fmt: skip
    if by["direction only"]:
        seeds = findings[0].gain.n
        much = "One seed" if seeds == 1 else f"{seeds} seeds"
        agree = [(f.claim.of, f.gain.mean > 0) for f in findings if not f.claim.alike]
        seen = f": {_apart(agree, 'directions')} are as claimed" if agree else ""
        return f"{much}{seen}. Directions only: nothing is decided by so little."
    said = f"{_apart([(f.claim.of, f in by['holds']) for f in findings], 'claims')} hold at this size"
    if by["does not hold"]:
        said += f"; {listed([_short(f) for f in by['does not hold']])} {_do(by['does not hold'])} not"
    if len(by["undecided"]) > NAMED:
        said += f"; {len(by['undecided'])} are undecided"
    elif by["undecided"]:
        said += f"; undecided: {listed([f'{_short(f)} ({deciding(f)})' for f in by['undecided']])}"
    return said + "."


def _apart(found: Sequence[tuple[Whose, bool]], what: str) -> str:
    """1 of the paper's 4 claims, 2 of another paper's 2 and 0 of our 3: how many are so, whoever claims them apart."""
    groups = [(whose, [so for of, so in found if of == key]) for key, (_, whose) in WHOSE.items()]
    first, *rest = [f"{sum(sos)} of {whose} {len(sos)}" for whose, sos in groups if sos]
    return listed([f"{first} {what}", *rest])


def _short(finding: Finding) -> str:
    return f"“{finding.claim.text}”"


def _do(findings: Sequence[Finding]) -> str:
    return "does" if len(findings) == 1 else "do"


def deciding(finding: Finding) -> str:
    """What would decide a claim that is undecided."""
    return f"{finding.decides or f'over {MOST}'} seeds would decide"


def write_page(
    page: Page,
    findings: Sequence[Finding],
    trained: Mapping[str, Trained],
    margins: Margins,
    out: Path,
    command: str,
    said: str = "",
) -> Path:
    """Write OUT/index.html, its figures and findings.csv. Returns the page; `said`: a verdict that is not of claims."""
    with publishing(out, overwrite=True) as folder:
        (folder / FIGURES).mkdir()
        context = {
            "title": page.title,
            "study": page,
            "findings": [(f, deciding(f) if f.judgement == "undecided" else "") for f in findings],
            "margins": margins,
            "whose": WHOSE,
            "asked": planned([f.claim for f in findings], margins),
            "command": command,
            "verdict": said or verdict(findings),
            "tables": [*page.tables, *([_spent(trained)] if trained else [])],
            "pictures": [publish(chart, folder / FIGURES) for chart in page.charts],
        }
        (folder / "index.html").write_text(render(context, "study.html.j2"), encoding="utf-8")
        write_csv(folder / "findings.csv", COLUMNS, [_row(f, trained, margins) for f in findings])
    return out / "index.html"


def _row(f: Finding, trained: Mapping[str, Trained], margins: Margins) -> tuple[Any, ...]:
    claim, kind = f.claim, "alike" if f.claim.alike else "better"
    arm, rival = trained.get(claim.arm), trained.get(claim.rival)
    text = next((made.digest for made in (arm, rival) if made), "")
    return (
        claim.text, claim.of, claim.paper, claim.metric.name, claim.metric.unit, claim.arm, claim.rival,
        kind, f.margin.size, f.gain.n, f.gain.mean, f.gain.spread, f.confidence, *f.interval, f.p, f.adjusted,
        f.judgement, f.decides or "", arm.epochs if arm else "", rival.epochs if rival else "", text, margins.digest,
        " ".join(map(str, [*margins.judged, f.gain.n])),
    )  # fmt: skip


def _spent(trained: Mapping[str, Trained]) -> Table:
    text = next(iter(trained.values()))
    rows = [
        (arm, count(made.tokens), scientific(made.flops, 3), count(made.line_tokens), f"{made.epochs:.3f}")
        for arm, made in trained.items()
    ]
    measured = {arm: made.measured_tokens for arm, made in trained.items() if made.measured_tokens}
    again = any(made.epochs > 1 for made in trained.values())
    note = (
        "Tokens and FLOPs are those of the last training up to where the arm is read off, tokens in all those of its "
        "parents too. FLOPs: forward and "
        f"backward, attention in, input embedding out. The text is “{text.data}”, {count(text.text_tokens)} tokens to "
        f"train on, digest {text.digest[:12]}: "
        + ("a data set of fixed size, read several times" if again else "no training reads again what its parents read")
        + "."
    )
    if measured:
        each = listed([f"{arm} ({count(n)})" for arm, n in measured.items()])
        note += (
            f" {each} came from a step that ran the model on so many tokens, spread over all of the text; these count "
            "in no column, and trainings may read them too."
        )
    return Table("What each arm read and cost", ("arm", "tokens", "FLOPs", "tokens in all", "epochs"), rows, note)
