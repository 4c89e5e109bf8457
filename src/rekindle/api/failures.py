"""simulate: which policy of recovery pays, before a pipeline runs for weeks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rekindle.api.options import takes
from rekindle.config import Resolved, resolve
from rekindle.errors import RekindleError, counted, together
from rekindle.recovery.config import SimulateConfig

if TYPE_CHECKING:
    from rekindle.recovery.compare import Comparison
    from rekindle.recovery.damage import Damage
    from rekindle.report.metrics import Metrics

MOST_DEATHS = 3e7  # of all draws: a minute or two


@takes(SimulateConfig)
def simulate(options: Resolved[SimulateConfig] | None = None, **given: Any) -> Comparison:
    """Stages of a pipeline die: which policy of `train --recover` is there first?

    The answer has the hours of each policy with an interval, how often stages died and all went back, and a verdict;
    `to_dict()` has all of it as plain values.
    """
    from rekindle.recovery.compare import MOST, compare
    from rekindle.recovery.failures import chance_of, drawn, hourly, read_deaths
    from rekindle.recovery.simulate import HOUR, Machine

    config = (options or resolve(SimulateConfig, given)).config
    if problems := _problems(config):
        raise together(problems)
    assert config.failures is not None
    assert config.stages is not None
    known = _measured([Path(run) for run in config.runs]) if config.runs else {}
    machine = Machine(config.stages, config.step_seconds, config.recovery_seconds, config.save_seconds)
    end = MOST * config.steps * config.step_seconds / HOUR
    chance = chance_of(config.failures)
    if chance is None:
        trace = read_deaths(Path(config.failures), config.stages)
        last, none = float(trace.hour[-1]), config.steps * config.step_seconds / HOUR
        traces, per_hour = [trace], len(trace.hour) / (config.stages * max(last, none))  # behind the last nobody dies
        remarks = [f"behind the last row of {config.failures}, at {last:,.1f} h, nobody dies"]
    else:
        per_hour = hourly(chance)
        if (deaths := per_hour * config.stages * end * config.seeds) > MOST_DEATHS:
            what = f"{deaths:.1e} deaths would be drawn, and {MOST_DEATHS:.0e} are the most that is simulated."
            raise RekindleError(what, why=f"a draw is of {end:,.0f} h", hint="fewer --seeds, --steps or --stages")
        traces = (drawn(per_hour, config.stages, end, seed) for seed in range(config.seeds))
        remarks = []
    further = {"every": config.checkpoint_every, "known": known, "remarks": remarks}
    return compare(machine, config.steps, per_hour, traces, **further)


def _problems(config: SimulateConfig) -> list[RekindleError]:
    found = []
    if config.failures is None:
        found.append(RekindleError("How often stages die is not given.", hint="--failures 0.1/h"))
    if config.stages is None:
        found.append(RekindleError("How many stages there are is not given.", hint="--stages 24"))
    for name, least, example in (
        ("stages", 2, 24),
        ("steps", 1, 10_000),
        ("checkpoint_every", 1, 100),
        ("seeds", 1, 100),
    ):
        value = getattr(config, name)
        if value is not None and value < least:
            what = f"{name} is {value}: at least {least}."
            found.append(RekindleError(what, hint=f"--{name.replace('_', '-')} {example}"))
    for name, least in (("step_seconds", 1e-6), ("recovery_seconds", 0.0), ("save_seconds", 0.0)):
        value = getattr(config, name)
        if not least <= value < math.inf:
            found.append(RekindleError(f"{name} is {value:g}.", hint=f"--{name.replace('_', '-')} 30"))
    return found


def _measured(folders: Sequence[Path]) -> dict[Any, Damage]:
    """What a death cost runs of `train --stages`, by policy: the first is the one in which nobody died."""
    from rekindle.recovery.damage import measured
    from rekindle.report.metrics import read_metrics

    none, *others = [(folder, read_metrics(folder)) for folder in folders]
    if not others:
        what = "runs names one folder: what a death costs is the difference of two."
        raise RekindleError(what, hint="--runs NONE,RUN: one without deaths, and those with some")
    if none[1].recoveries:
        what = f"{counted(len(none[1].recoveries), 'stage')} died in {none[0]}, the first of the runs."
        raise RekindleError(what, hint="the run without deaths first")
    by_policy: dict[str, list[Metrics]] = {}
    for folder, metrics in others:
        policies = sorted({one.policy for one in metrics.recoveries} - {"checkpoint", "redundant", "replica", "left"})
        if len(policies) != 1:
            what = f"In {folder} {' and '.join(policies) or 'no policy'} made stages of others: one has to."
            raise RekindleError(what, hint="runs of `train --stages 4 --recover shadow` whose stages died")
        by_policy.setdefault(policies[0], []).append(metrics)
    found = {}
    for policy, runs in by_policy.items():
        try:
            found[policy] = measured(_curve(none[1]), [(_curve(run), _deaths(run, policy)) for run in runs])
        except ValueError as error:
            raise RekindleError(f"Of {policy}, {error}.", hint="a run that goes on behind its deaths") from None
    return found


def _curve(metrics: Metrics) -> list[tuple[int, float]]:
    return [(one.step, one.loss) for one in metrics.evaluations]


def _deaths(metrics: Metrics, policy: str) -> list[int]:
    return [one.step for one in metrics.recoveries if one.policy == policy]
