"""init, train, evaluate, utility, report."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rekindle import __version__
from rekindle.api.model import command
from rekindle.api.options import takes
from rekindle.api.source import files_read, local, place
from rekindle.config import Resolved, dump_yaml, resolve, to_dict
from rekindle.errors import RekindleError
from rekindle.report.config import ReportConfig
from rekindle.store.publish import check_spares, explained
from rekindle.train.config import EvaluateConfig, InitConfig, TrainConfig, UtilityConfig

if TYPE_CHECKING:
    from rekindle.report.page import Report


@takes(InitConfig)
def init(
    out: str | Path, options: Resolved[InitConfig] | None = None, *, overwrite: bool = False, **given: Any
) -> Path:
    """A model from scratch, with a tokenizer trained on its data. Returns `out`."""
    from rekindle.train.init import init_model

    out = Path(out)
    options = options or resolve(InitConfig, given)
    check_spares(out, None, *files_read(options.config))
    typed = command("init", [str(out)], options)
    recipe = dump_yaml({"rekindle": __version__, "steps": [{"init": to_dict(options.config)}]})
    init_model(out, options.config, command=typed, options=options.options(), recipe=recipe, overwrite=overwrite)
    return out


@takes(TrainConfig)
def train(
    source: str | Path,
    out: str | Path,
    options: Resolved[TrainConfig] | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    **given: Any,
) -> dict[str, Any]:
    """Continue a checkpoint's training into `out`.

    Returns final losses (nats per token, the language model's alone), tokens, FLOPs and speed.
    """
    from rekindle.train.loop import train as run

    options = options or resolve(TrainConfig, given)
    check_spares(Path(out), place(source), *files_read(options.config))
    summary = run(
        local(source),
        Path(out),
        options.config,
        command=command("train", [str(source), str(out)], options),
        options=options.options(),
        source_name=str(source),
        resume=resume,
        overwrite=overwrite,
    )
    if summary:  # of several ranks the main one writes
        step = {**to_dict(options.config), "archive": None}  # like OUT itself, which a recipe never holds
        _write_recipe(Path(out), {"rekindle": __version__, "source": str(source), "steps": [{"train": step}]})
    return summary


@takes(EvaluateConfig)
def evaluate(source: str | Path, options: Resolved[EvaluateConfig] | None = None, **given: Any) -> dict[str, Any]:
    """Loss and perplexity on text, with standard errors."""
    from rekindle.train.evaluate import evaluate as measure

    return measure(local(source), (options or resolve(EvaluateConfig, given)).config)


@takes(UtilityConfig)
def utility(
    source: str | Path,
    out: str | Path | None = None,
    options: Resolved[UtilityConfig] | None = None,
    *,
    overwrite: bool = False,
    **given: Any,
) -> dict[str, Any]:
    """A score of every expert, as JSON in the file `out` for `grow-experts`."""
    from rekindle.train.utility import utility as measure

    if out is not None and Path(out).exists() and not overwrite:
        raise RekindleError("The file exists already.", where=out, hint="--overwrite replaces it")
    scores = measure(local(source), (options or resolve(UtilityConfig, given)).config)
    if out is not None:
        with explained(Path(out)):
            Path(out).write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    return scores


@takes(ReportConfig)
def report(
    runs: Sequence[str | Path],
    out: str | Path,
    options: Resolved[ReportConfig] | None = None,
    *,
    overwrite: bool = False,
    **given: Any,
) -> Report:
    """Curves, costs and a verdict of several runs in one HTML page."""
    from rekindle.report.page import write_report

    options = options or resolve(ReportConfig, given)
    typed = shlex.join(["rekindle", "report", *map(str, runs), "--out", str(out)])
    folders = [Path(run) for run in runs]
    return write_report(folders, Path(out), command=typed, overwrite=overwrite, **to_dict(options.config))


def _write_recipe(out: Path, recipe: dict[str, Any]) -> None:
    with explained(out):
        (out / "rekindle.yaml").write_text(dump_yaml(recipe), encoding="utf-8")
