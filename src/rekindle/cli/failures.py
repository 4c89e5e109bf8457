"""plan --failures: which policy of recovery pays."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

from rekindle import api
from rekindle.cli.options import resolved
from rekindle.cli.out import echo, result, say, table
from rekindle.config import read_yaml
from rekindle.errors import RekindleError, counted
from rekindle.recovery.config import SimulateConfig
from rekindle.report.words import listed


def asked(given: dict[str, Any], config_file: str | None, others: dict[str, Any]) -> bool:
    """Whether failures are what is asked about; raises RekindleError where flags of both questions are given.

    `others`: what is read for scaling laws alone.
    """
    own = {f.name for f in fields(SimulateConfig)}
    about = given.get("failures") is not None or bool(config_file and "failures" in read_yaml(config_file))
    named = given | others
    mixed = [name for name, value in named.items() if value not in (None, False) and (name in own) != about]
    if mixed:
        flags = listed([f"--{name.replace('_', '-')}" for name in mixed])
        what = f"{flags} would not be read {'beside' if about else 'without'} --failures."
        why = "scaling laws and failures are two questions"
        hint = "leave it out" if about else "--failures 0.1/h, a stage's chance to die within an hour"
        raise RekindleError(what, why=why, hint=hint)
    return about


def plan_failures(given: dict[str, Any], config_file: str | None, format_: str) -> None:
    options = resolved(SimulateConfig, given, config_file)
    echo("rekindle plan", options)
    found = api.simulate(options).to_dict()
    result(found, answer(found), format_)
    for line in found["notes"]:
        say(f"note: {line}")


def answer(found: dict[str, Any]) -> str:
    """Verdict first, then the policies from the soonest up."""
    rows = [("", "hours", "90 %", "times", "steps a death", "deaths", "went back", "steps redone", "steps a save")]
    for name, one in found["policies"].items():
        rows.append((
            name, _ends(one["hours"], ",.0f"), _ends([one["low"], one["high"]], ",.0f"), _ends(one["times"], ".2f"),
            _ends([one["damage"]["low"], one["damage"]["high"]], ".1f"), f"{one['deaths'][0]:,.0f}",
            f"{one['back'][0]:,.1f}", f"{one['redone'][0]:,.0f}", f"{one['checkpoint_every']:,}",
        ))  # fmt: skip
    facts = [
        ("nobody dies", f"{found['none_hours']:,.1f} h: {found['steps']:,} steps of {found['step_seconds']:g} s"),
        ("failures", f"{found['deaths_per_hour']:.3g} an hour in {found['stages']:,} stages, the same for all; "
                     f"{counted(found['draws'], 'draw')}"),
        ("low to high", "a death costs the fewest and the most steps that its source allows; counts are at the fewest"),
    ]  # fmt: skip
    lines = [f"{found['verdict']}: {found['reason']}", "", table(rows, right=range(1, len(rows[0]))), "", table(facts)]
    return "\n".join(lines)


def _ends(ends: list[float], form: str) -> str:
    """At the least damage and at the greatest, where these are two."""
    return " to ".join(dict.fromkeys("never" if math.isinf(end) else f"{end:{form}}" for end in ends))
