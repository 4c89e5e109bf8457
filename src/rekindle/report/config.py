"""Options of `rekindle report`."""

from __future__ import annotations

from dataclasses import dataclass

from rekindle.config import option


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """How the page is introduced; everything else on it comes from the runs."""

    title: str | None = option(None, help="Heading of the page; by default the names of the runs.")
    verdict_note: str = option("", help="A sentence of your own, shown under the verdict.")
