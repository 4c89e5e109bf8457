"""Which text a search for a loss reads: what the run has not read, in the run's own rows.

Checkpoints know by heart what they were trained on last. Searched on that, each is best on its own batches, and what is
found is of no use elsewhere. So a search draws from the rest of the run's round through its text, which begins where
the lineage says that the run ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rekindle.errors import some
from rekindle.search.config import CombineConfig
from rekindle.search.draw import Draw
from rekindle.search.judge import RERANKS
from rekindle.store.folder import Folder
from rekindle.store.manifest import read_manifest
from rekindle.train.objectives import default_objective
from rekindle.train.order import sample_windows

SEQ_LEN = 512  # tokens of a row, where nothing is known
ROWS = ("text_column", "source_column", "target_column")  # options that say what of the data is a row
FEWEST = 1 + RERANKS  # batches: one to search on, and those of the re-ranking


@dataclass(frozen=True)
class Batches:
    """So many batches of `rows` rows each, from row `first` of an order on; the last quarter is for the re-ranking."""

    first: int
    rows: int
    count: int

    def first_of(self, draw: Draw) -> int:
        """Its first row: of each seed all batches in another order, before one comes again."""
        later = max(RERANKS, self.count // 4)
        begin, count = (0, self.count - later) if draw.split == "search" else (self.count - later, later)
        return self.first + self.rows * (begin + int(sample_windows(draw.number, 1, count, draw.key)[0]))


@dataclass(frozen=True)
class Reading:
    """The order that `seed` gives to rows of `seq_len` tokens; `passed` of them are passed over."""

    seq_len: int
    seed: int = 0
    passed: int = 0
    asked: bool = False  # for that by the user; else it is what the run has read
    notes: tuple[str, ...] = ()  # what the user should know

    def batches(self, there: int, rows: int) -> tuple[Batches, tuple[str, ...]]:
        """Of `rows` rows, or as many as are left; and all notes. `there`: how many rows the text is."""
        left = there - self.passed % there
        first, over = self.passed, self.passed >= there
        if left < FEWEST:
            first, left, over = first + left, there, True
        size = max(1, min(rows, left // FEWEST))
        notes = []
        if over and self.passed:
            who = "--skip passes over" if self.asked else "the run has read"
            notes.append(f"{who} {min(self.passed, there):,} of the {there:,} rows of the text: they come again")
        if size < rows:
            notes.append(f"{left:,} rows of the text are left: the search reads {size:,} at a time instead of {rows:,}")
        return Batches(first, size, max(FEWEST, left // size)), (*self.notes, *notes)


def reading_of(source: Folder, config: CombineConfig, objective: str, context: int) -> Reading:
    """That of models such as in `source`; what `config` says itself holds. `objective`: that which is searched."""
    runs = list(_trainings(source, config, objective))
    last = runs[-1] if runs else {}
    seq_len = config.seq_len or min(context, last.get("seq_len") or SEQ_LEN)
    seed = last.get("seed") or 0
    if config.skip is not None:
        return Reading(seq_len, seed, config.skip // seq_len, asked=True)
    alike = [run for run in runs if run["alike"] and (run.get("seq_len"), run.get("seed") or 0) == (seq_len, seed)]
    notes = ()
    if len(alike) < len(runs):
        what = f"the run read this text in other rows than of {seq_len}, or in another order"
        notes = (f"{what}: which of it the search reads again is open",)
    elif not runs and (others := _other_texts(source)):
        notes = (f"the lineage knows of training on {some(others)} alone: if this is that text, --skip passes it over",)
    return Reading(seq_len, seed, max((run["end"] for run in alike), default=0) // seq_len, notes=notes)


def _trainings(source: Folder, config: CombineConfig, objective: str) -> Iterator[dict[str, Any]]:
    """Options of all trainings on this text behind a checkpoint, whether their rows were `alike`, and at which token of
    their order they `end`."""
    life = read_manifest(source.path)
    for record in life.lineage if life else ():
        told = {name: option.get("value") for name, option in record.options.items()}
        if record.verb == "train" and _is_same(str(told.get("data")), config.data):
            alike = (told.get("objective") or default_objective(source)) == objective
            alike = alike and all(told.get(name) == getattr(config, name) for name in ROWS)
            yield {**told, "alike": alike, "end": int(told.get("skip") or 0) + record.tokens}


def _other_texts(source: Folder) -> list[str]:
    life = read_manifest(source.path)
    told = (
        [record.options.get("data", {}).get("value") for record in life.lineage if record.verb == "train"]
        if life
        else []
    )
    return [str(data) for data in dict.fromkeys(told) if data]


def _is_same(data: str, other: str) -> bool:
    """By name alone, since folders are named from where a command was typed: to pass over too much costs nothing."""
    return data == other or Path(data).name == Path(other).name
