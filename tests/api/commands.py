"""The command line as tests type it."""

from __future__ import annotations

from click.testing import CliRunner, Result

from rekindle.cli.verbs import rekindle
from rekindle.errors import RekindleError


def typed(*words: object) -> Result:
    return CliRunner().invoke(rekindle, [*map(str, words)], prog_name="rekindle")


def ran(*words: object) -> str:
    """What it says of the result, and all else it says."""
    done = typed(*words)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def refused(*words: object) -> str:
    """Of a request that cannot be met, why."""
    done = typed(*words)
    assert isinstance(done.exception, RekindleError), (done.output, done.exception)
    return str(done.exception)
