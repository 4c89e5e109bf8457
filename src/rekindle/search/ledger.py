"""Scores of candidates: each counted against the budget, remembered, and noted in a journal that a search goes on from.

A search asks for scores and is a function of them alone. So one that was killed is run again from its beginning with
what the journal knows, and ends as it would have; and as candidates are scored together only where none waits for
another's score, any number of workers gives the same answer.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rekindle.errors import RekindleError
from rekindle.search.candidate import Candidate
from rekindle.search.coefficients import Alpha
from rekindle.search.draw import Draw
from rekindle.search.objective import Objective, number_of
from rekindle.search.series import Place
from rekindle.search.store import Store

TOGETHER = 8  # candidates that are mixed at once, where memory allows
ROOM = 1 << 28  # bytes of them

Numbers = dict[str, float]


class Ledger:
    """Scores `objective` on mixtures of a store. A score is infinite where the objective gave no finite number."""

    def __init__(
        self,
        objective: Objective,
        store: Store,
        places: Mapping[str, Place],
        kept: Mapping[str, torch.Tensor],
        *,
        journal: Journal | None = None,
        workers: int = 1,
        progress: Callable[[float, float], object] = lambda share, best: None,
    ):
        self.objective, self.store, self.workers = objective, store, workers
        self.journal = Journal() if journal is None else journal
        self._progress = progress
        self.spent, self.invalid = 0.0, 0  # evaluations, and how many of them gave no number
        self.best = math.inf
        self._counted: set[str] = set()
        size = max(workers, min(TOGETHER, ROOM // (4 * store.size)), 1)
        self._thetas = np.empty((size, store.size), np.float32)
        self._candidates = [Candidate(places, kept, theta) for theta in self._thetas]

    def scores(self, alphas: Sequence[Alpha], draw: Draw) -> list[float]:
        """The score of each on one draw, in order."""
        return [_score(numbers) for numbers in self.numbers(alphas, draw)]

    def numbers(self, alphas: Sequence[Alpha], draw: Draw) -> list[Numbers]:
        """All that the objective says of each; what was asked before is not asked again, and not counted."""
        draw = self._seen(draw)
        new = {key_of(alpha, draw): alpha for alpha in alphas if self.journal.known(alpha, draw) is None}
        todo, size = list(new.values()), len(self._candidates)
        for lo in range(0, len(todo), size):
            some = todo[lo : lo + size]
            self.store.mix_many(np.stack(some), self._thetas[: len(some)])
            with closing(self._evaluated(len(some), draw)) as evaluated:
                for alpha in some:
                    self.journal.note(alpha, draw, next(evaluated))
        return [self._count(key_of(alpha, draw), self._known(alpha, draw), draw) for alpha in alphas]

    def slope(self, alpha: Alpha, draw: Draw) -> tuple[float, Alpha | None]:
        """The score and its gradient in alpha: None where the objective has none, or it is not finite."""
        draw = self._seen(draw)
        known = self.journal.known(alpha, draw, slope=True)
        numbers, gradient = _numbers(known), _gradient(known)
        if numbers is None:
            candidate = self._candidates[0]
            self.store.mix(alpha, candidate.theta)
            leaves, total = candidate.leaves()
            with torch.enable_grad(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Converting a tensor with requires_grad")  # a float: no gradient
                found = self.objective(leaves, draw)
                first = next(iter(found.values()))
                if isinstance(first, torch.Tensor) and first.requires_grad:
                    first.backward()
                    gradient = self.store.gradient(total)
            numbers = {name: number_of(value) for name, value in found.items()}
            self.journal.note(alpha, draw, numbers, gradient, slope=True)
        self._count(key_of(alpha, draw, slope=True), numbers, draw)
        usable = gradient is not None and np.isfinite(gradient).all()
        return _score(numbers), gradient if usable else None

    def _evaluated(self, count: int, draw: Draw) -> Generator[Numbers]:
        """Each as it is there, in order."""

        def evaluate(candidate: Candidate) -> Numbers:
            with torch.no_grad():
                found = self.objective(candidate.tensors, draw)
            return {name: number_of(value) for name, value in found.items()}

        some = self._candidates[:count]
        if self.workers == 1 or count == 1:
            yield from map(evaluate, some)
            return
        with ThreadPoolExecutor(self.workers) as pool:
            yield from pool.map(evaluate, some)

    def _known(self, alpha: Alpha, draw: Draw) -> Numbers:
        found = _numbers(self.journal.known(alpha, draw))
        assert found is not None, draw
        return found

    def _seen(self, draw: Draw) -> Draw:
        """The draw that the objective is told of: one alone, where it takes none."""
        return draw if self.objective.draws else Draw("search")

    def _count(self, key: str, numbers: Numbers, draw: Draw) -> Numbers:
        if key not in self._counted:
            self._counted.add(key)
            self.spent += draw.share
            self.invalid += math.isinf(_score(numbers))
            if draw.split == "search":
                self.best = min(self.best, _score(numbers))
            self._progress(draw.share, self.best)
        return numbers


class Journal:
    """What was scored, by coefficients and draw; in a file, where there is one, a line for each as it comes."""

    def __init__(self, path: Path | None = None, of: str = "", *, resume: bool = False):
        """`of` names what is searched; raises RekindleError where a file that is gone on with is of another search."""
        self._known: dict[str, dict[str, Any]] = {}
        self._file = None
        if path is None:
            return
        lines = path.read_text(encoding="utf-8").splitlines() if resume and path.exists() else []
        whole = [line for line in lines if line.endswith("}")]  # the last may have been cut off
        try:
            rows = [json.loads(line) for line in whole]
        except ValueError:
            raise RekindleError("This is no journal of a search.", where=path, hint="without --resume") from None
        if rows and rows[0].get("of") != of:
            what = "This journal is of another search: other checkpoints, another objective, or other options."
            raise RekindleError(what, where=path, hint="the same command with --resume, or without it")
        self._known = {row["key"]: row for row in rows[1:]}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in whole or [json.dumps({"of": of})]), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def __len__(self) -> int:
        return len(self._known)

    def known(self, alpha: Alpha, draw: Draw, *, slope: bool = False) -> dict[str, Any] | None:
        return self._known.get(key_of(alpha, draw, slope=slope))

    def note(
        self, alpha: Alpha, draw: Draw, numbers: Numbers, gradient: NDArray | None = None, *, slope: bool = False
    ) -> None:
        row: dict[str, Any] = {"key": key_of(alpha, draw, slope=slope)}
        row["numbers"] = {name: None if math.isnan(x) else x for name, x in numbers.items()}
        if slope:
            row["gradient"] = None if gradient is None or not np.isfinite(gradient).all() else gradient.tolist()
        self._known[row["key"]] = row
        if self._file:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

    def close(self) -> None:
        if self._file:
            self._file.close()


def key_of(alpha: Alpha, draw: Draw, *, slope: bool = False) -> str:
    """Names an evaluation."""
    said = f"{draw.split}/{draw.number}/{draw.share!r}/{draw.key}/{slope}".encode()
    return hashlib.blake2b(np.ascontiguousarray(alpha, np.float64).tobytes() + said, digest_size=12).hexdigest()


def _numbers(row: dict[str, Any] | None) -> Numbers | None:
    return None if row is None else {name: math.nan if x is None else x for name, x in row["numbers"].items()}


def _gradient(row: dict[str, Any] | None) -> NDArray[np.float64] | None:
    return None if row is None or row["gradient"] is None else np.array(row["gradient"])


def _score(numbers: Numbers) -> float:
    score = next(iter(numbers.values()))
    return score if math.isfinite(score) else math.inf
