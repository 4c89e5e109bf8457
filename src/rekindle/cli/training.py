"""init, train, evaluate, utility, report."""

from __future__ import annotations

import shlex
from pathlib import Path
from statistics import median
from typing import Any

import click

from rekindle import api
from rekindle.api.training import check_apart, lends, settled
from rekindle.cli.dry_run import cost_text
from rekindle.cli.options import options_of, resolved
from rekindle.cli.out import FORMAT, count, echo, note_default_data, result, say, table
from rekindle.config import Resolved
from rekindle.errors import counted
from rekindle.report.config import ReportConfig
from rekindle.train.config import EvaluateConfig, InitConfig, TrainConfig, UtilityConfig

CONFIG = click.option("--config", "config_file", metavar="FILE", help="YAML with values for these options")
DRY_RUN = click.option("--dry-run", is_flag=True, help="say what would be done and what it costs; write nothing")
OVERWRITE = click.option("--overwrite", is_flag=True, help="replace OUT")


@click.command("init")
@click.argument("out")
@options_of(InitConfig)
@CONFIG
@DRY_RUN
@OVERWRITE
@FORMAT
def init(out: str, config_file: str | None, dry_run: bool, overwrite: bool, format_: str, **given: Any) -> None:
    """Make a model from scratch, with a tokenizer trained on its data.

    \b
    rekindle init OUT --hidden 64 --layers 2 --heads 4 --tokenizer bpe:1024
    rekindle init OUT --family mixtral --hidden 64 --layers 2 --heads 4 --experts 8
    """
    options = resolved(InitConfig, given, config_file, out)
    echo(f"rekindle init: {out}", options)
    if options.config.tokenizer.startswith("bpe:"):
        note_default_data(options, "the tokenizer is trained on")
    if dry_run:
        cost = api.init_cost(options)
        result(cost, cost_text(cost), format_)
        return
    path = api.init(out, options, overwrite=overwrite)
    data = api.inspect(path)
    n = data["parameters"]
    human = f"{path}: {data['summary']}, {count(n['total'])} parameters, vocabulary {data['vocab_size']}"
    result({"out": str(path), "parameters": n, "vocab_size": data["vocab_size"]}, human, format_)


@click.command("train")
@click.argument("ckpt")
@click.argument("out")
@options_of(TrainConfig)
@CONFIG
@DRY_RUN
@OVERWRITE
@click.option(
    "--resume", is_flag=True, help="go on where an interrupted run stopped; starts afresh where there is none"
)
@FORMAT
def train(
    ckpt: str,
    out: str,
    config_file: str | None,
    dry_run: bool,
    overwrite: bool,
    resume: bool,
    format_: str,
    **given: Any,
) -> None:
    """Continue the training of a checkpoint.

    \b
    rekindle train CKPT OUT --tokens 100k --seq-len 128 --batch-tokens 4096
    rekindle train CKPT OUT --tokens 50k --data corpus/ --schedule cosine --lr 3e-4
    rekindle train CKPT OUT --tokens 100k --seq-len 128 --batch-tokens 4096 --stages 2
    rekindle train CKPT OUT --tokens 2B --dry-run
    """
    options = resolved(TrainConfig, given, config_file)
    if lends(options.config):
        _lend(ckpt, out, options, dry_run, format_)
        return
    check_apart(ckpt, out, options.config, config_file)
    options = settled(ckpt, options)
    echo(f"rekindle train: {ckpt} -> {out}", options)
    note_default_data(options, "trains on")
    if dry_run:
        cost = api.train_cost(ckpt, options, out=out, resume=resume, overwrite=overwrite)
        result(cost, cost_text(cost), format_)
        return
    summary = api.train(ckpt, out, options, overwrite=overwrite, resume=resume)
    if summary:  # of several ranks the main one has it
        result(summary, table([(key.replace("_", " "), _short(value)) for key, value in summary.items()]), format_)
        page = Path(f"{Path(out)}-report")
        say(f"next:  {shlex.join(['rekindle', 'report', out, '--out', str(page), *['--overwrite'] * page.exists()])}")


def _lend(ckpt: str, out: str, options: Resolved[TrainConfig], dry_run: bool, format_: str) -> None:
    """Of `train` on a machine that another one supervises."""
    from rekindle.recovery.meeting import workers_of

    number, to = workers_of(options.config), options.config.join or "the main rank"
    echo(f"rekindle train: lends {counted(number, 'worker')} to {to}", options)
    if dry_run:
        result({"lends": number, "to": to}, f"[dry-run] lends {counted(number, 'worker')} to {to}", format_)
        return
    api.train(ckpt, out, options)
    say(f"{counted(number, 'worker')} lent to {to}: the run there has ended")


@click.command("evaluate")
@click.argument("ckpt")
@options_of(EvaluateConfig)
@CONFIG
@FORMAT
def evaluate(ckpt: str, config_file: str | None, format_: str, **given: Any) -> None:
    """Loss and perplexity on text, with a standard error.

    \b
    rekindle evaluate CKPT --tokens 16k
    rekindle evaluate CKPT --data corpus.jsonl --split all
    """
    options = resolved(EvaluateConfig, given, config_file)
    echo(f"rekindle evaluate: {ckpt}", options)
    note_default_data(options, "evaluates on")
    found = api.evaluate(ckpt, options)
    result(found, table([(key.replace("_", " "), _short(value)) for key, value in found.items()]), format_)


@click.command("utility")
@click.argument("ckpt")
@options_of(UtilityConfig)
@click.option("--out", metavar="FILE", help="where the scores go, as JSON; else only what is shown")
@click.option("--overwrite", is_flag=True, help="replace FILE")
@CONFIG
@FORMAT
def utility(ckpt: str, out: str | None, overwrite: bool, config_file: str | None, format_: str, **given: Any) -> None:
    """How much the loss leans on each expert: scores for grow-experts.

    Dwivedi et al. 2026, Expert Upcycling (arXiv 2604.19835)

    \b
    rekindle utility MOE --out scores.json
    rekindle utility MOE --batches 4 --batch-tokens 2048 --score weight-gradient --format json
    """
    options = resolved(UtilityConfig, given, config_file, out)
    echo(f"rekindle utility: {ckpt}", options)
    note_default_data(options, "scores on")
    found = api.utility(ckpt, out, options, overwrite=overwrite)
    rows = [("layer", "least", "median", "most", "highest experts")]
    rows += [(layer, *_spread(scores)) for layer, scores in found["layers"].items()]
    result(found, table(rows, right=(0, 1, 2, 3)), format_)
    if out:
        words = ["rekindle", "grow-experts", ckpt, "OUT", "--top-k", "keep", "--copies", "utility", "--scores", out]
        say(f"next:  {shlex.join(words)}")


def _spread(scores: list[float]) -> tuple[str, str, str, str]:
    best = sorted(range(len(scores)), key=lambda expert: -scores[expert])[:4]
    least, most = f"{min(scores):.3g}", f"{max(scores):.3g}"
    return least, f"{median(scores):.3g}", most, ", ".join(map(str, best))


@click.command("report")
@click.argument("runs", nargs=-1, required=True)
@click.option("--out", required=True, metavar="DIR", help="where the page and its figures go")
@options_of(ReportConfig)
@OVERWRITE
@click.option("--dry-run", is_flag=True, help="what the runs are; nothing is written")
@FORMAT
def report(runs: tuple[str, ...], out: str, overwrite: bool, dry_run: bool, format_: str, **given: Any) -> None:
    """Curves, costs and a verdict of several runs: one HTML page, with PNG, SVG and CSV of every figure.

    \b
    rekindle report RUN --out OUT
    """
    options = resolved(ReportConfig, given)
    if dry_run:
        _report_dry(runs, out, overwrite, format_)
        return
    made = api.report([Path(run) for run in runs], out, options, overwrite=overwrite)
    result({"page": str(made.page), "verdict": made.verdict}, f"{made.verdict}\n{made.page}", format_)


def _report_dry(runs: tuple[str, ...], out: str, overwrite: bool, format_: str) -> None:
    from rekindle.report.page import readable
    from rekindle.report.verdict import same_text
    from rekindle.store.publish import check_free

    found = readable([Path(run) for run in runs], Path(out))
    check_free(Path(out), overwrite)
    alike = same_text(found)
    rows = [(run.name, counted(len(run.metrics.evaluations), "evaluation"), f"{count(run.tokens)} tokens",
             "" if run in alike else "measured on another validation set: not compared") for run in found]  # fmt: skip
    text = f"[dry-run] {counted(len(found), 'run')}\n{table(rows, indent=2)}\n  writes: {out}/index.html, {out}/figures"
    result({"runs": [run.name for run in found], "writes": out}, text, format_)


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


COMMANDS = {"init": init, "train": train, "evaluate": evaluate, "utility": utility, "report": report}
