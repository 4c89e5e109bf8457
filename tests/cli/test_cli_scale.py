"""The numbers of docs/scale.md are those of its commands."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from rekindle.cli.out import count, nbytes
from rekindle.cli.verbs import rekindle

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "scale.md").read_text()
COMMANDS = re.findall(r"^rekindle (.* docs/configs/.*) --dry-run$", PAGE, re.M)
MACHINES = 8
DRY = ["--dry-run", "--workers", "2", "--format", "json"]


def rate(kind: str) -> float:
    """Bytes per second that the page counts with."""
    return float(re.search(rf"([\d.]+) GB/s {kind}", PAGE)[1]) * 1e9


def plan(command: str, *flags: str) -> dict:
    ran = CliRunner().invoke(rekindle, [*shlex.split(command), *DRY, *flags])
    assert ran.exit_code == 0, ran.exception
    return json.loads(ran.stdout)


def row(command: str) -> str:
    """The line of the table: bytes, and the time of one machine and of the slowest of several."""
    whole = plan(command)
    copied = whole["fates"]["copied"]["bytes"]
    made = whole["bytes"] - copied
    measured = whole["measured"]["bytes"]
    writing = copied / rate("copied") + made / rate("computed")
    parts = [plan(command, "--part", f"{i}/{MACHINES}")["part"] for i in (1, MACHINES)]
    slowest = max(p["bytes"] / whole["bytes"] * writing + p["measured"] / rate("copied") for p in parts)
    times = [f"{t / 60:.0f} min" if t >= 100 else f"{t:.0f} s" for t in (writing + measured / rate("copied"), slowest)]
    n = whole["parameters"]
    parameters = count(n["total"]) + (f", {count(n['active'])} active" if n["active"] != n["total"] else "")
    memory = nbytes(whole["peak_memory"])
    cells = [f"`{command}`", parameters, nbytes(copied), nbytes(made), nbytes(measured), memory, *times]
    line = f"| {' | '.join(cells)} |".replace(" 0 bytes ", " – ")
    return line.replace(" docs/configs/", " ").replace(".json OUT", "")


@pytest.mark.slow
def test_every_row_is_what_its_command_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert len(COMMANDS) > 5
    expected = [row(command) for command in COMMANDS]
    assert [line for line in PAGE.splitlines() if line.startswith("| `")] == expected, "\n".join(expected)


def test_what_is_shown_is_what_is_said(monkeypatch):
    monkeypatch.chdir(ROOT)
    shown = re.findall(r"```text\n(.*?)```", PAGE, re.S)[0]
    said = CliRunner().invoke(rekindle, [*shlex.split(COMMANDS[0]), "--dry-run", "--workers", "2"])
    assert shown == said.stdout


def test_the_rates_were_measured():
    readings = (ROOT / "benchmarks" / "results.md").read_text()
    copied = [
        float(gb) / float(s) for gb, s in re.findall(r"upcycle to \d+ experts, ([\d.]+) GB out \| ([\d.]+) s", readings)
    ]
    assert rate("copied") / 1e9 <= min(copied) + 0.005
