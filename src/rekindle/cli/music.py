"""music data, music train, compose: tunes from sentences."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from rekindle import api
from rekindle.cli.options import options_of, resolved
from rekindle.cli.out import FORMAT, count, echo, plain, result, say, table
from rekindle.cli.training import CONFIG, OVERWRITE
from rekindle.errors import counted
from rekindle.music.config import ComposeConfig, MusicDataConfig, MusicEvaluateConfig, MusicTrainConfig


@click.group("music")
def music() -> None:
    """A model that writes tunes for texts: its data, and its training.

    \b
    rekindle music data OUT --source tunes/ --test 0.2 --validation 0.2
    rekindle compose TUNER "a lively reel in D major" --strict --out OUT
    """


@music.command("data")
@click.argument("out")
@options_of(MusicDataConfig)
@CONFIG
@OVERWRITE
@FORMAT
def data(out: str, config_file: str | None, overwrite: bool, format_: str, **given: Any) -> None:
    """Texts and tunes to train on, from music21's books, ABC files or rows of both.

    What a text says of a tune is what its header says: kind, metre, key, mood, title, book; a key only where the notes
    bear it out. Versions of one tune, in any key, are on one side of the split.

    \b
    rekindle music data OUT --source tunes/ --test 0.2 --validation 0.2
    rekindle music data OUT --source pairs_of_tunes.jsonl --keys 1 --test 0.2 --validation 0.2
    """
    options = resolved(MusicDataConfig, given, config_file, out)
    echo(f"rekindle music data: {options.config.source} -> {out}", options)
    told = api.music_data(out, options, overwrite=overwrite)
    for book, terms in told["terms"].items():
        say(f"note: {book}: {terms}; what is made of it stays with you")
    rows = [("", "tunes", "pairs")]
    rows += [(side, count(n), count(told["rows"][side])) for side, n in told["tunes"].items()]
    left = ", ".join(f"{n} {why}" for why, n in told["left_out"].items())
    human = table(rows, right=(1, 2)) + (f"\nleft out: {left}" if left else "")
    result(told, human, format_)
    say(f"next:  {shlex.join(['rekindle', 'music', 'train', 'MODEL', '--data', plain(out)])}")


@music.command("train")
@click.argument("out")
@options_of(MusicTrainConfig)
@CONFIG
@OVERWRITE
@click.option("--resume", is_flag=True, help="go on where an interrupted run stopped")
@FORMAT
def train(out: str, config_file: str | None, overwrite: bool, resume: bool, format_: str, **given: Any) -> None:
    """A warm start out of an encoder and a decoder, trained on texts and tunes. About 25 minutes on 2 cores.

    Wu and Sun 2022, text-to-music from pre-trained checkpoints (arXiv 2211.11216)

    \b
    rekindle music train OUT --data TUNES --hidden 32 --layers 1 --heads 2 --tunes 64 --pairs 64
    rekindle music train OUT --data TUNES --encoder BERT --decoder random --hidden 32 --heads 2 --pairs 64
    """
    options = resolved(MusicTrainConfig, given, config_file, out)
    echo(f"rekindle music train: {options.config.data} -> {out}", options)
    found = api.music_train(out, options, overwrite=overwrite, resume=resume, say=say)
    shown = {key: f"{value:.6g}" if isinstance(value, float) else str(value) for key, value in found.items()}
    result(found, table([(key.replace("_", " "), value) for key, value in shown.items()]), format_)
    words = ["rekindle", "compose", plain(out), "a lively reel in D major", "--strict", "--out", "TUNES"]
    say(f"next:  {shlex.join(words)}")


@music.command("evaluate")
@click.argument("ckpt")
@options_of(MusicEvaluateConfig)
@CONFIG
@FORMAT
def evaluate(ckpt: str, config_file: str | None, format_: str, **given: Any) -> None:
    """A model's tunes for texts of tunes that it never saw, beside a 5-gram, the nearest text's tune, and the tunes.

    Shares of tunes, but for BLEU and edit similarity (to the tune of the text), likeness (to the most alike training
    tune; too alike is 0.3), cost (of the grammar, nats) and diversity (of tunes for one text: 1 is nothing in common).

    \b
    rekindle music evaluate TUNER --data TUNES --texts 10 --each 1
    """
    options = resolved(MusicEvaluateConfig, given, config_file)
    echo(f"rekindle music evaluate: {ckpt}", options)
    found = api.music_evaluate(ckpt, options)
    authors, measures = list(found), list(next(iter(found.values())))
    shown = [(name, *(_number(found[author][name]) for author in authors)) for name in measures]
    result(found, table([("", *authors), *shown], right=tuple(range(1, len(authors) + 1))), format_)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if abs(value) >= 10 else f"{value:.2f}"


@click.command("compose")
@click.argument("ckpt")
@click.argument("text", default="")
@options_of(ComposeConfig)
@click.option("--out", metavar="FOLDER", help="where files and page go; without it the tunes are printed as ABC")
@OVERWRITE
@FORMAT
def compose(ckpt: str, text: str, out: str | None, overwrite: bool, format_: str, **given: Any) -> None:
    """Tunes for a text: as ABC, score, MIDI and WAV, and one page that shows and plays them.

    \b
    rekindle compose TUNER "a lively reel in D major" --strict --out OUT
    rekindle compose TUNER "a jig in G major" --begin "M:6/8\\nL:1/8\\nK:G\\nGBd gdB|" --count 5
    rekindle compose TUNER --like tune.abc --out OUT
    """
    from rekindle.store.publish import check_free

    options = resolved(ComposeConfig, given)
    if out:
        check_free(Path(out), overwrite)
    echo(f"rekindle compose: {ckpt}" + (f" -> {out}" if out else ""), options)
    made = api.compose(ckpt, text, options)
    told = made.data()
    if out:
        page = made.save(out, overwrite=overwrite)
        valid = sum(one.valid for one in made.judged)
        human = f"{counted(len(made.tunes), 'tune')}, {valid} whole\n{page}"
        result({"page": str(page), **told}, human, format_)
        return
    result(told, "\n\n".join(tune.text for tune in made.tunes), format_)


COMMANDS = {"music": music, "compose": compose}
