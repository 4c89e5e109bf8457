"""The options of `plan --failures`. No numpy here: the command line builds its help from these."""

from __future__ import annotations

from dataclasses import dataclass

from rekindle.config import Count, option


@dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    """A pipeline whose stages die; defaults are those of the paper's 500M model, arXiv 2506.15461, table 2."""

    failures: str | None = option(None, help="chance of a stage to die within an hour, 0.1/h, or a CSV of hours,stage")
    stages: int | None = option(None, help="of the pipeline, each of which may die")
    steps: Count = option(Count(10_000), help="that the run takes where nobody dies")
    step_seconds: float = option(91.3, help="of a step")
    recovery_seconds: float = option(30.0, help="from a death until steps are taken again")
    save_seconds: float = option(30.0, help="that all wait for a saved state; assumed, no paper prints it")
    checkpoint_every: int | None = option(None, help="steps between saved states (default: what is best for each)")
    runs: tuple[str, ...] = option((), help="what a death costs, from runs of yours: one without deaths, then others")
    seeds: int = option(100, help="how many times deaths are drawn")
