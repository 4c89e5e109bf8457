"""No text twice: what each training of a study begins to read where its line left off, and whether the text lasts.

A line is a training and what it was made from. Its trainings read one order of a text (`train`'s seed), one after the
other, so `skip` is what the earlier ones read of it. Arms that share a parent read the same text after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rekindle.config import resolve
from rekindle.errors import RekindleError, together
from rekindle.sweep.steps import Step
from rekindle.train.config import TrainConfig


@dataclass(frozen=True)
class Read:
    """From where to where a training reads its order of a text, in tokens."""

    data: str
    start: int
    stop: int
    order: tuple[int, int]  # tokens of a sequence, seed: what the order follows from


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
    return Read(config.data, start, start + config.tokens // config.batch_tokens * config.batch_tokens, order)


def check_text(steps: Sequence[Step], runs: Path) -> None:
    """Raises RekindleError where a text does not last as long as it is read; the models to begin with are there."""
    lengths: dict[tuple[str, str, int], int] = {}
    by_name, reads, problems = {step.name: step for step in steps}, reads_of(steps), []
    for step in steps:
        if step.verb != "train":
            continue
        config = resolve(TrainConfig, step.options).config
        key = (_line(step, by_name)[-1].name, config.data, config.seq_len)
        if key not in lengths:
            lengths[key] = _tokens(runs / key[0], config)
        stop = reads[step.name].stop
        if stop > lengths[key]:
            what = f"{step.name} reads up to token {stop:,} of {config.data}, which has {lengths[key]:,} to train on."
            problems.append(RekindleError(what))
    if problems:
        raise RekindleError(
            str(together(problems)),
            why="no text is read twice, but by a study that says its data set is a fixed one",
            hint="shorter trainings, or a larger text",
        )


def check_equal(arms: Iterable[str], steps: Sequence[Step]) -> None:
    """Raises RekindleError where trainings did not read a data set of fixed size equally often, parents included."""
    by_name, reads = {step.name: step for step in steps}, reads_of(steps)
    lines = {arm: _line(by_name[arm], by_name) for arm in arms}
    totals = {
        arm: _passed(reads[arm].data, [reads[s.name] for s in line if s.verb == "train"]) for arm, line in lines.items()
    }
    if len(set(totals.values())) > 1:
        what = f"The arms do not read the data set equally often: {', '.join(f'{a} {n:,}' for a, n in totals.items())}."
        raise RekindleError(what, why="what is read more often is known better", hint="the same tokens for each")


def _passed(data: str, line: Iterable[Read]) -> int:
    """Tokens of a data set that a line reads."""
    return sum(read.stop - read.start for read in line if read.data == data)


def _line(step: Step, by_name: Mapping[str, Step]) -> list[Step]:
    """A step and what it was made from, back to a model to begin with."""
    line = [step]
    while line[-1].source and line[-1].verb != "init":
        line.append(by_name[line[-1].source])
    return line


def _tokens(model: Path, config: TrainConfig) -> int:
    from rekindle.train.model import load_tokenizer
    from rekindle.train.tokens import open_corpus

    corpus = open_corpus(config.data, load_tokenizer(model), config.text_column, mask_prompt=config.mask_prompt)
    return corpus.windows(config.seq_len) * config.seq_len


@dataclass(frozen=True)
class Trained:
    """What an arm's last training cost, and what its whole line read of its text; `digest` is the text's, tokenised."""

    tokens: int
    flops: float
    line_tokens: int
    data: str
    digest: str
    text_tokens: int  # to train on

    @property
    def epochs(self) -> float:
        return self.line_tokens / self.text_tokens


def trained(run: Path) -> Trained:
    """Of a finished training."""
    from rekindle.lab.cost import training_flops
    from rekindle.report.metrics import read_metrics
    from rekindle.store.manifest import read_manifest

    header, manifest = read_metrics(run).header, read_manifest(run)
    assert manifest is not None
    tokens, length, data = int(header["tokens_planned"]), int(header["seq_len"]), str(header["data"])
    return Trained(
        tokens=tokens,
        flops=training_flops(run, tokens, length),
        line_tokens=sum(r.tokens for r in manifest.lineage if r.options.get("data", {}).get("value") == data),
        data=data,
        digest=str(header["text"]),
        text_tokens=int(header["train_tokens"]),
    )


def by_arm(arms: Mapping[str, str], runs: Path) -> dict[str, Trained]:
    """arm -> the training it ends in; raises RekindleError where they did not read one text."""
    found = {arm: trained(runs / run) for arm, run in arms.items()}
    if len({made.digest for made in found.values()}) > 1:
        texts = "; ".join(f"{arm} {made.data} {made.digest}" for arm, made in found.items())
        raise RekindleError(
            f"The arms did not read one text: {texts}.",
            where=runs,
            why="python and stdlib are the packages installed here, and other versions are another text",
            hint="--out, for a study from the beginning",
        )
    return found
