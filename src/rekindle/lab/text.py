"""No text twice, and one text in a study: where each training begins to read, whether the text lasts and stays.

A line is a training and what it was made from. Its trainings read one order of a text (`train`'s seed), one after the
other, so `skip` is what the earlier ones read of it. Arms that share a parent read the same text after it. A study may
go on for days, and be called again with more seeds: what its trainings read is compared by digest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rekindle.config import resolve, to_dict
from rekindle.errors import RekindleError, together
from rekindle.lab.spent import OTHER_TEXT, End
from rekindle.report.metrics import NAME as METRICS
from rekindle.report.metrics import read_metrics
from rekindle.store.manifest import read_manifest
from rekindle.sweep.steps import Step
from rekindle.train.config import TrainConfig

if TYPE_CHECKING:
    from rekindle.train.objectives import Objective

_READING = ("data", "text_column", "objective", "source_column", "target_column", "mask_prompt")  # one text by these


@dataclass(frozen=True)
class Read:
    """From where to where a training reads its order of a text, in tokens."""

    data: str
    start: int
    stop: int
    order: tuple[int, int]  # tokens of a sequence, seed: what the order follows from
    batch: int  # tokens of a step


def carried_on(steps: Sequence[Step]) -> list[Step]:
    """The steps, each training with the `skip` that lets it go on where its line left off, unless it says its own."""
    reads = reads_of(steps)
    return [
        replace(step, options={**step.options, "skip": reads[step.name].start}) if step.verb == "train" else step
        for step in steps
    ]


def reads_of(steps: Sequence[Step]) -> dict[str, Read]:
    """What each training reads; raises RekindleError where that begins before what its line has read."""
    by_name, found = {step.name: step for step in steps}, dict[str, Read]()
    for step in steps:
        for each in reversed(_line(step, by_name)):  # parents first
            if each.verb == "train" and each.name not in found:
                parents = [found[s.name] for s in _line(each, by_name)[1:] if s.verb == "train"]
                found[each.name] = _read(each, parents)
    return found


def _read(step: Step, parents: Sequence[Read]) -> Read:
    config = resolve(TrainConfig, step.options).config
    order = config.seq_len, int(step.options.get("seed", step.seed))
    of_this = [read for read in parents if read.data == config.data]
    before = max((read.stop for read in of_this), default=0)
    start = config.skip if "skip" in step.options else before
    if start < before:
        what = f"The training {step.name} begins at token {start:,} of its text, of which {before:,} are read."
        raise RekindleError(what, why="no text is read twice", hint="leave out skip")
    if any(read.order != order for read in of_this):
        what = (
            f"The training {step.name} reads {config.data} in another order than its parents: seq_len or seed differs."
        )
        raise RekindleError(what, why="what they have read would come again")
    assert config.tokens is not None
    step_tokens = int(config.batch_tokens)
    return Read(config.data, start, start + config.tokens // step_tokens * step_tokens, order, step_tokens)


def check_text(steps: Sequence[Step], runs: Path, *, fixed: bool = False) -> None:
    """Raises RekindleError where a text is not what a training read that is there, or does not last as it is read.

    It is opened for each model to begin with that is there; `fixed`: it need not last.
    """
    opened: dict[tuple[str, tuple[Any, ...], int], Objective] = {}
    by_name, reads, problems = {step.name: step for step in steps}, reads_of(steps), []
    for step in steps:
        begun = _line(step, by_name)[-1].name
        if step.verb != "train" or not (runs / begun).is_dir():
            continue
        config = resolve(TrainConfig, step.options).config
        key = begun, _reading(to_dict(config)), config.seq_len
        if key not in opened:
            opened[key] = _opened(runs / begun, config)
        stop, there = reads[step.name].stop, opened[key].rows * config.seq_len
        if stop > there:
            what = f"{step.name} reads up to token {stop:,} of {config.data}, which has {there:,} to train on."
            problems.append(RekindleError(what))
    now = [Text(f"from {begun} on it is now", how, text.digest) for (begun, how, _), text in opened.items()]
    check_one_text([*texts_of(steps, runs), *now], runs)
    if problems and not fixed:
        raise RekindleError(
            str(together(problems)),
            why="no text is read twice, but by a study that says its data set is a fixed one",
            hint="shorter trainings, or a larger text",
        )


class Text(NamedTuple):
    """Who reads, how the data are read, and the digest of all that is read."""

    who: str
    reading: tuple[Any, ...]
    digest: str


def texts_of(steps: Sequence[Step], runs: Path) -> list[Text]:
    """What the trainings that are there have read, those that a step of another kind has in its folder included."""
    found = []
    for step in steps:
        for path in sorted((runs / step.name).glob(f"**/{METRICS}")):
            manifest, digest = read_manifest(path.parent), str(read_metrics(path.parent).header["text"])
            if manifest is not None:
                options = {name: given["value"] for name, given in manifest.lineage[-1].options.items()}
                found.append(Text(f"{step.name} read", _reading(options), digest))
    return found


def check_one_text(texts: Iterable[Text], runs: Path) -> None:
    """Raises RekindleError where what should be one text is two: its files, or the packages, are others by now."""
    found: dict[tuple[Any, ...], dict[str, str]] = {}
    for text in texts:
        found.setdefault(text.reading, {}).setdefault(text.digest, text.who)
    for (data, *_), readers in found.items():
        if len(readers) > 1:
            told = ", ".join(f"{who} {digest[:12]}" for digest, who in readers.items())
            hint = "the text as it was, or --out, for a study from the beginning"
            raise RekindleError(f"{data} is not one text: {told}.", where=runs, why=OTHER_TEXT, hint=hint)


def _reading(options: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(options.get(name) for name in _READING)


def check_equal(arms: Iterable[End], steps: Sequence[Step]) -> None:
    """Raises RekindleError where arms did not read a data set of fixed size equally often, parents included."""
    by_name, reads = {step.name: step for step in steps}, reads_of(steps)
    totals = {end: _passed(end, by_name, reads) for end in arms}
    if len(set(totals.values())) > 1:
        told = ", ".join(f"{end.run} {n:,}" for end, n in totals.items())
        what = f"The arms do not read the data set equally often: {told}."
        raise RekindleError(what, why="what is read more often is known better", hint="the same tokens for each")


def _passed(end: End, by_name: Mapping[str, Step], reads: Mapping[str, Read]) -> int:
    """Tokens of its data set that an arm's line has read by its end."""
    last = reads[end.run]
    line = [reads[step.name] for step in _line(by_name[end.run], by_name) if step.verb == "train"]
    whole = sum(read.stop - read.start for read in line if read.data == last.data)
    return whole if end.step is None else whole - (last.stop - last.start) + end.step * last.batch


def _line(step: Step, by_name: Mapping[str, Step]) -> list[Step]:
    """A step and what it was made from, back to a model to begin with."""
    line = [step]
    while line[-1].source and line[-1].verb != "init":
        line.append(by_name[line[-1].source])
    return line


def _opened(model: Path, config: TrainConfig) -> Objective:
    """What a training from `model` learns, its data opened."""
    from rekindle.edit import checkpoint_at
    from rekindle.train.objectives import objective_of, open_objective

    source = checkpoint_at(model).folder
    return open_objective(objective_of(config, source), config, config.seq_len, source)
