"""What arms cost and read on their way: told from the trainings that they are read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rekindle.errors import RekindleError

OTHER_TEXT = "python and stdlib are the packages installed here, and other versions are another text"


class End(NamedTuple):
    """What an arm is read from: a training, once it has come to its end, or after so many of its steps."""

    run: str
    step: int | None = None


@dataclass(frozen=True)
class Trained:
    """What an arm's last training cost, as far as it went, and what its whole line read of its text by then.

    `digest` is the text's, as it was read; `text_tokens` and `line_tokens` count the tokens of rows, as trainings do.
    """

    tokens: int
    flops: float
    line_tokens: int
    measured_tokens: int  # of it, that a step on the way ran the model on without training it
    data: str
    digest: str
    text_tokens: int  # to train on

    @property
    def epochs(self) -> float:
        return self.line_tokens / self.text_tokens


def trained(run: Path, step: int | None = None) -> Trained:
    """Of a finished training: all of it, or its first so many steps."""
    from rekindle.report.metrics import read_metrics
    from rekindle.store.lineage import sunk
    from rekindle.store.manifest import read_manifest

    metrics, manifest = read_metrics(run), read_manifest(run)
    assert manifest is not None
    header, end = metrics.header, metrics.evaluations[-1]
    planned, length, data = int(header["tokens_planned"]), int(header["seq_len"]), str(header["data"])
    tokens = planned if step is None else step * int(header["batch_tokens"])
    options = [{name: given["value"] for name, given in record.options.items()} for record in manifest.lineage]
    return Trained(
        tokens=tokens,
        flops=end.flops / end.tokens * tokens,
        line_tokens=sunk(manifest.lineage, data).tokens - planned + tokens,
        measured_tokens=sum(given.get("data_tokens", 0) for given in options if given.get("data") == data),
        data=data,
        digest=str(header["text"]),
        text_tokens=round(planned / length / header["epochs"]) * length,
    )


def by_arm(arms: Mapping[str, End], runs: Path) -> dict[str, Trained]:
    """arm -> the training it ends in; raises RekindleError where they did not read one text."""
    found = {arm: trained(runs / end.run, end.step) for arm, end in arms.items()}
    if len({made.digest for made in found.values()}) > 1:
        texts = "; ".join(f"{arm} {made.data} {made.digest}" for arm, made in found.items())
        raise RekindleError(
            f"The arms did not read one text: {texts}.",
            where=runs,
            why=OTHER_TEXT,
            hint="--out, for a study from the beginning",
        )
    return found
