"""init, train, evaluate, utility, report."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rekindle.api.model import open
from rekindle.api.options import takes
from rekindle.api.saving import command
from rekindle.api.source import files_read, local, place
from rekindle.config import Resolved, resolve, to_dict
from rekindle.errors import RekindleError
from rekindle.ranks import alone
from rekindle.report.config import ReportConfig
from rekindle.store.publish import check_spares
from rekindle.store.system import explained
from rekindle.train.config import EvaluateConfig, InitConfig, TrainConfig, UtilityConfig
from rekindle.version import __version__

if TYPE_CHECKING:
    from rekindle.recovery.meeting import Meeting
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
    recipe = {"rekindle": __version__, "steps": [{"init": to_dict(options.config)}]}
    how = {"command": typed, "options": options.options(), "recipe": recipe, "overwrite": overwrite}
    return init_model(out, options.config, **how)


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

    Returns final losses (nats per token, the language model's alone), tokens, FLOPs and speed; of several ranks, and
    of machines that join one another, the main one alone, the others an empty dict.
    """
    from rekindle.recovery.meeting import met
    from rekindle.train.loop import train as run

    options = options or resolve(TrainConfig, given)
    with met(options.config) as meeting:
        if meeting and not meeting.door:
            from rekindle.recovery.lender import lend

            lend(meeting)
            return {}
        check_apart(source, out, options.config)
        options = settled(source, options)
        elsewhere = {"archive": None, "join": None, "workers": None}  # like OUT itself, which a recipe never holds
        step = {**to_dict(options.config), **elsewhere}
        spread = {"spread": _pipeline(source, Path(out), options.config, meeting)} if meeting else {}
        return run(
            local(source),
            Path(out),
            options.config,
            command=command("train", [str(source), str(out)], options),
            options=options.options(),
            recipe={"rekindle": __version__, "source": str(source), "steps": [{"train": step}]},
            source_name=str(source),
            resume=resume,
            overwrite=overwrite,
            **spread,
        )


def _pipeline(source: str | Path, out: Path, config: TrainConfig, meeting: Meeting) -> Callable[..., Any]:
    """What spreads a run over the processes of a pipeline; raises RekindleError where there can be none."""
    from rekindle.recovery.pipeline import pipelined
    from rekindle.recovery.split import parts_of

    parts_of(open(source).checkpoint, config)
    return lambda stepper, folder, step: pipelined(stepper, folder, Path(os.path.abspath(out)), step, meeting)


def lends(config: TrainConfig) -> bool:
    """Whether `train` here would lend its processes to a run that another one supervises: no SRC is read, no OUT made.

    Raises RekindleError where --join and --workers are no request that can be met.
    """
    from rekindle.recovery import meeting

    return meeting.lends(config)


def check_apart(source: str | Path, out: str | Path, config: TrainConfig, *others: str | Path | None) -> None:
    """Refuse an OUT or an archive of `train` in whose place something lies that it reads, `others` among that."""
    read = place(source), *files_read(config), *others
    check_spares(Path(out), *read)
    if config.archive and (archive := Path(config.archive).expanduser().resolve()).exists():
        for path in read:
            if path is not None and Path(os.path.expanduser(path)).resolve() == archive:
                what = f"--archive {config.archive} would be written over {path}, which is read."
                raise RekindleError(what, hint="another --archive")


def settled(source: str | Path, options: Resolved[TrainConfig]) -> Resolved[TrainConfig]:
    """Options of `train` with the defaults that follow the parent, and where these came from."""
    from rekindle.train.budget import check_numbers
    from rekindle.train.plan import with_whole_images
    from rekindle.train.rate import with_rate

    check_numbers(options.config)
    parent = open(source).checkpoint
    return with_rate(with_whole_images(options, parent.settings), parent)


def train_cost(
    source: str | Path,
    options: Resolved[TrainConfig] | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **given: Any,
) -> dict[str, Any]:
    """What `train` would do and take: parameters, steps, tokens, FLOPs, memory, bytes. Nothing is read but headers.

    With an `out` of what is left to do there; raises RekindleError where `train` would refuse it.
    """
    from rekindle.recovery.meeting import check_joining
    from rekindle.recovery.split import parts_of
    from rekindle.train.price import price_training

    options, place = settled(source, options or resolve(TrainConfig, given)), Path(out) if out is not None else None
    checkpoint, config = open(source).checkpoint, options.config
    check_joining(config)
    if not config.pipelined:
        return price_training(checkpoint, config, place, resume=resume, overwrite=overwrite)
    parts_of(checkpoint, config)
    with alone():
        return price_training(checkpoint, config, place, resume=resume, overwrite=overwrite)


def init_cost(options: Resolved[InitConfig] | None = None, **given: Any) -> dict[str, Any]:
    """Parameters and bytes of what `init` would make."""
    from rekindle.train.init import price_init

    return price_init((options or resolve(InitConfig, given)).config)


def load(source: str | Path) -> Any:
    """The model of a folder in transformers, its parameters that are one made one: also where they are written once.

    In float32, on the CPU, in evaluation mode. Raises RekindleError where transformers has no class for it.
    """
    from rekindle.apply.load import load_model
    from rekindle.train.ties import tie

    checkpoint = open(source).checkpoint
    checkpoint.folder.need_weights()
    model = load_model(checkpoint.folder, output=checkpoint.settings.output)
    tie(model)
    return model.eval()


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

    config = (options or resolve(UtilityConfig, given)).config
    if out is not None:
        check_spares(Path(out), place(source), *files_read(config))
        if Path(out).exists() and not overwrite:
            raise RekindleError("The file exists already.", where=out, hint="--overwrite replaces it")
    scores = measure(local(source), config)
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
