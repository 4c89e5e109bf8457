"""The command line: verbs, options out of Configs, and the only place that prints."""

from __future__ import annotations

import os
import sys


def main(arguments: list[str] | None = None) -> None:
    """The console script.

    Exit codes: 0 done, 1 a check failed, 2 the request was wrong, 130 interrupted (143 and 129: by SIGTERM, by SIGHUP).
    """
    from rekindle.cli.streams import open_streams

    answer = open_streams()
    import click

    from rekindle.cli.signals import heard
    from rekindle.cli.verbs import rekindle
    from rekindle.errors import RekindleError

    words = sys.argv[1:] if arguments is None else arguments
    debug = bool(os.environ.get("REKINDLE_DEBUG")) or "--debug" in words
    try:
        with heard():
            rekindle.main(args=arguments, prog_name="rekindle", standalone_mode=False)
        code = 0
    except RekindleError as error:
        _explain(error, debug)
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = 2
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except (KeyboardInterrupt, click.Abort) as stop:
        code = _stopped(stop, words)
    except Exception as error:
        if stop := _interrupt_behind(error):
            code = _stopped(stop, words)
        elif debug:
            raise
        else:
            click.echo(f"Error: {type(error).__name__}: {error}\n  This is a bug in rekindle.", err=True)
            click.echo("  try:   the same with --debug, and report it with the output of `rekindle env`", err=True)
            code = 1
    sys.stdout.flush()
    if answer and answer.lost:
        done = "" if code else " The work itself is done."
        click.echo(f"Error: Not all of the answer arrived on stdout: {answer.lost.strerror}.{done}", err=True)
        code = code or 1
    sys.exit(code)


def _interrupt_behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """The interrupt that an error was made of: Python wraps what is raised while a class is made, as imports do."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


def _stopped(stop: BaseException, words: list[str]) -> int:
    """Say that the verb was interrupted, and return its exit code."""
    import click

    from rekindle.errors import Ended

    cause = stop.__cause__ or stop  # click makes an Abort of it
    said, code = (cause.said, 128 + cause.number) if isinstance(cause, Ended) else ("", 130)
    click.echo(f"\n{said or 'Interrupted.'}{_way_on(words)}", err=True)
    return code


def _way_on(words: list[str]) -> str:
    """How an interrupted verb is taken up again, where it can be."""
    import click

    from rekindle.cli.verbs import rekindle

    if words[:1] in (["lab"], ["demo"], ["sweep"]):
        return " The same command goes on where it stopped."
    try:
        command = rekindle.get_command(click.Context(rekindle), words[0]) if words else None
        if isinstance(command, click.Group) and len(words) > 1:
            command = command.get_command(click.Context(command), words[1])
    except ImportError:  # it was interrupted in the middle of an import, and numpy cannot be imported twice
        return ""
    resumes = command is not None and any(parameter.name == "resume" for parameter in command.params)
    return " The same command with --resume goes on where it stopped." if resumes else ""


def _explain(error: Exception, debug: bool) -> None:
    import click

    from rekindle.cli.out import plain

    if debug:
        import traceback

        click.echo(traceback.format_exc(), err=True)
    text = "\n".join(map(plain, str(error).split("\n")))  # names in it come from files
    click.echo(f"Error: {text}", err=True)
