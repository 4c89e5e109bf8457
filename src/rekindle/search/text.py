"""Which text a search for a loss reads: behind what the run has read, in the run's own rows.

Checkpoints know by heart what they were trained on last. Searched on that, each is best on its own batches, and what is
found is of no use elsewhere. So a search goes on in the run's order of its text, where the lineage says that it ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rekindle.search.config import CombineConfig
from rekindle.store.folder import Folder
from rekindle.store.manifest import read_manifest

SEQ_LEN = 512  # tokens of a row, where nothing is known
SAME = ("text_column", "source_column", "target_column", "objective")  # options that make rows of the data, beside it


@dataclass(frozen=True)
class Reading:
    """`skip` tokens of the order that `seed` gives are passed over, in rows of `seq_len`."""

    seq_len: int
    seed: int = 0
    skip: int = 0
    notes: tuple[str, ...] = ()  # what the user should know

    def behind(self, tokens: int) -> Reading:
        """With a note, where so many tokens are all that there are."""
        if self.skip < tokens:
            return self
        note = f"the run has read all of its {tokens:,} tokens of text: the search reads text that it was trained on"
        return Reading(self.seq_len, self.seed, self.skip, (*self.notes, note))


def reading_of(source: Folder, config: CombineConfig, context: int) -> Reading:
    """That of models such as in `source`; what `config` says itself holds."""
    runs = list(_trainings(source, config))
    last = runs[-1] if runs else {}
    seq_len = config.seq_len or min(context, last.get("seq_len") or SEQ_LEN)
    seed = last.get("seed") or 0
    if config.skip is not None:
        return Reading(seq_len, seed, config.skip)
    alike = [run for run in runs if (run.get("seq_len"), run.get("seed") or 0) == (seq_len, seed)]
    notes = ()
    if len(alike) < len(runs):
        notes = (f"the run read this text in other rows than of {seq_len}: which of it the search reads again is open",)
    return Reading(seq_len, seed, max((run["end"] for run in alike), default=0), notes)


def _trainings(source: Folder, config: CombineConfig) -> Iterator[dict[str, Any]]:
    """Options of all trainings on this text behind a checkpoint, and at which token of their order they `end`."""
    life = read_manifest(source.path)
    for record in life.lineage if life else ():
        told = {name: option.get("value") for name, option in record.options.items()}
        if record.verb == "train" and _is_same(told, config):
            yield {**told, "end": int(told.get("skip") or 0) + record.tokens}


def _is_same(told: dict[str, Any], config: CombineConfig) -> bool:
    data = str(told.get("data"))
    wanted = {"objective": None if config.objective == "loss" else config.objective}
    return (
        data == config.data or Path(data).expanduser().resolve() == Path(config.data).expanduser().resolve()
    ) and all(told.get(name) == wanted.get(name, getattr(config, name)) for name in SAME)
