"""Write docs/cli.md: the help of every verb. `make docs` runs it; a test compares."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click
from click.testing import CliRunner

from rekindle.cli.verbs import GROUPS, rekindle

PAGE = Path(__file__).parent / "cli.md"


HEAD = """# The command line

Written by `make docs`. Results go to stdout, all else to stderr; exit codes: 0 done, 1 a check failed, 2 the request
was wrong, 130 interrupted (143 and 129: by SIGTERM, by SIGHUP). `SRC` is a folder, `org/model[@revision]`,
`hf://org/model` or `ARCHIVE@step`. Where several are taken it may also be a series: steps of an archive
(`run.rk@1000:5000`, `run.rk@*`), a pattern (`run/checkpoint-*`) or a folder full of numbered checkpoints. A series is
taken in the order of its steps, all else in the order given.
"""


def page() -> str:
    parts = [HEAD]
    for group, verbs in GROUPS.items():
        parts.append(f"## {group}\n")
        for verb in all_verbs(verbs):
            parts.append(f"### rekindle {verb}\n\n```text\n{_help(verb)}\n```\n")
    return "\n".join(parts)


def all_verbs(verbs: Iterable[str]) -> list[str]:
    """These, and after each its own: archive, archive ls, ..."""
    found = []
    for verb in verbs:
        command = rekindle.get_command(click.Context(rekindle), verb)
        found += [verb, *(f"{verb} {name}" for name in getattr(command, "commands", ()))]
    return found


def _help(verb: str) -> str:
    shown = CliRunner().invoke(rekindle, [*verb.split(), "--help"], prog_name="rekindle", terminal_width=100)
    if shown.exit_code:
        raise click.ClickException(shown.output)
    return "\n".join(line.rstrip() for line in shown.output.rstrip().splitlines())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
