"""All verbs, each loaded when it is asked for, so that --help starts at once."""

from __future__ import annotations

from importlib import import_module

import click

from rekindle.errors import nearest
from rekindle.methods import METHODS
from rekindle.version import __version__

GROUPS = {
    "look": {
        "inspect": "What a checkpoint is, and what can be done with it.",
        "env": "Versions and device, ready to paste into an issue.",
    },
    "recycle": {
        **{method.verb: method.summary for method in METHODS.values()},
        "average": "An average of any length, out of those that a run kept.",
        "combine": "A better model out of a run's saved checkpoints: searched coefficients.",
        "run": "Apply a recipe of several steps, one pass over the bytes.",
        "join": "Make one model of the parts that several machines wrote.",
    },
    "check": {"verify": "Does a result still compute what it promised to?"},
    "train": {
        "init": "Make a model from scratch.",
        "train": "Continue the training of a checkpoint.",
        "evaluate": "Loss and perplexity with a standard error.",
        "utility": "How much the loss leans on each expert: scores for grow-experts.",
    },
    "decide": {
        "plan": "Upcycle, continue, or start over? What scaling laws say, with intervals.",
        "sweep": "A grid of runs for a law: trunks shared, resumed, one table.",
        "fit": "A law of your own runs, with intervals.",
        "laws": "Published scaling laws, and how sure we are of them.",
    },
    "keep": {
        "pack": "A series of checkpoints in one file, a fraction of the size, every bit kept.",
        "unpack": "A checkpoint out of an archive, as it was.",
        "archive": "What is in an archive, whether it is whole, and changes to it.",
    },
    "play": {
        "music": "A model that writes tunes for texts: its data, its training.",
        "compose": "Tunes for a sentence: score, sound, and a page that plays them.",
    },
    "tell": {"report": "Curves, costs and a verdict of several runs: one HTML page."},
    "try": {
        "demo": "All of it on a small model, in minutes.",
        "lab": "A paper's claims, rerun small with seeds and intervals.",
    },
}
MODULES = {
    "look": "look",
    "recycle": "recycle",
    "check": "look",
    "train": "training",
    "decide": "laws",
    "keep": "archive",
    "play": "music",
    "tell": "training",
    "try": "lab",
}
OWN = {"combine": "combine", "average": "combine"}  # verbs with a module of their own


class Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return [verb for verbs in GROUPS.values() for verb in verbs]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for group, verbs in GROUPS.items():
            if cmd_name in verbs:
                module = OWN.get(cmd_name) or MODULES[group]
                return import_module(f"rekindle.cli.{module}").COMMANDS[cmd_name]
        return None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple:
        verb = args[0]
        if self.get_command(ctx, verb) is None:
            close = nearest(verb, self.list_commands(ctx))
            raise click.UsageError(f"There is no verb {verb!r}." + (f" Did you mean {close}?" if close else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.list_commands(ctx)))
        for group, verbs in GROUPS.items():
            with formatter.section(group):
                formatter.write_dl([(verb.ljust(width), text) for verb, text in verbs.items()])


@click.command(cls=Verbs, no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rekindle")
def rekindle() -> None:
    """Recycle trained checkpoints into the models you need next.

    \b
    rekindle inspect SRC
    rekindle upcycle SRC OUT --experts 8 --top-k 2
    rekindle verify OUT --against SRC
    """
