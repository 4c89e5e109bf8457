"""Scores of candidates: each counted against the budget, remembered, and noted in a journal that a search goes on from.

A search asks for scores and is a function of them alone. So one that was killed is run again from its beginning with
what the journal knows, and ends as it would have; and as candidates are scored together only where none waits for
another's score, any number of workers gives the same answer.
"""

from __future__ import annotations

import builtins
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

from rekindle.errors import RekindleError, first_line
from rekindle.search.candidate import Candidate
from rekindle.search.coefficients import Alpha
from rekindle.search.draw import Draw
from rekindle.search.objective import Objective, number_of
from rekindle.search.series import Place
from rekindle.search.store import Store
from rekindle.store.system import explained

TOGETHER = 8  # candidates that are mixed at once, where memory allows
ROOM = 1 << 28  # bytes of them

Numbers = dict[str, float]
Rounding = Callable[[NDArray], object]  # of a vector, in place


class Ledger:
    """Scores `objective` on mixtures of a store. A score is infinite where the objective gave no finite number.

    `name` tells it from another that shares the journal. `written`: rounds a vector as it would be stored.
    """

    def __init__(
        self,
        objective: Objective,
        store: Store,
        places: Mapping[str, Place],
        kept: Mapping[str, torch.Tensor],
        *,
        name: str = "",
        written: Rounding | None = None,
        journal: Journal | None = None,
        workers: int = 1,
        progress: Callable[[float, float], object] = lambda share, best: None,
    ):
        self.objective, self.store, self.name, self.workers = objective, store, name, workers
        self.journal = Journal() if journal is None else journal
        self._progress, self._written = progress, written
        self.spent, self.invalid = 0.0, 0  # evaluations, and how many of them gave no number
        self.best = math.inf
        self._counted: set[str] = set()
        self._pool = ThreadPoolExecutor(workers) if workers > 1 else None  # one for all: each thread keeps its model
        size = max(workers, min(TOGETHER, ROOM // (4 * store.size)), 1)
        self._thetas = np.empty((size, store.size), np.float32)
        self._candidates = [Candidate(places, kept, theta) for theta in self._thetas]

    def scores(self, alphas: Sequence[Alpha], draw: Draw, *, as_written: bool = False) -> list[float]:
        """The score of each on one draw, in order."""
        return [_score(numbers) for numbers in self.numbers(alphas, draw, as_written=as_written)]

    def numbers(self, alphas: Sequence[Alpha], draw: Draw, *, as_written: bool = False) -> list[Numbers]:
        """All that the objective says of each; what was asked before is not asked again, and not counted.

        `as_written`: of what would be on disc, rounded to its dtype.
        """
        draw, rounding = self._seen(draw), self._written if as_written else None
        keys = [self._key(alpha, draw, "written" if rounding else "") for alpha in alphas]
        new = {key: alpha for key, alpha in zip(keys, alphas, strict=True) if key not in self.journal}
        todo, size = [*new.items()], len(self._candidates)
        for lo in range(0, len(todo), size):
            some = todo[lo : lo + size]
            thetas = self.store.mix_many([alpha for _, alpha in some], self._thetas[: len(some)])
            if rounding:
                for theta in thetas:
                    rounding(theta)
            with closing(self._evaluated(len(some), draw)) as evaluated:
                for key, _ in some:
                    self.journal.note(key, next(evaluated))
        return [self._count(key, _numbers(self.journal[key]), draw) for key in keys]

    def slope(self, alpha: Alpha, draw: Draw) -> tuple[float, Alpha | None]:
        """The score and its gradient in alpha: None where there is none, or it is not finite.

        Raises RekindleError where the objective cannot be differentiated.
        """
        draw = self._seen(draw)
        key = self._key(alpha, draw, "slope")
        if key not in self.journal:
            self.journal.note(key, *self._differentiated(alpha, draw))
        numbers, gradient = _numbers(self.journal[key]), self.journal[key]["gradient"]
        self._count(key, numbers, draw)
        return _score(numbers), None if gradient is None else np.array(gradient)

    def _differentiated(self, alpha: Alpha, draw: Draw) -> tuple[Numbers, NDArray | None]:
        candidate, gradient = self._candidates[0], None
        self.store.mix(alpha, candidate.theta)
        leaves, total = candidate.leaves()
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Converting a tensor with requires_grad")  # a float: no gradient
            found = self.objective(leaves, draw)
            first = next(iter(found.values()))
            if isinstance(first, torch.Tensor) and first.requires_grad:
                try:
                    first.backward()
                except RuntimeError as error:
                    what = f"The gradient of {self.objective.name} cannot be taken: {first_line(error)}."
                    raise RekindleError(what, hint="--search cma") from error
                gradient = self.store.gradient(total)
        return {name: number_of(value) for name, value in found.items()}, gradient

    def _evaluated(self, count: int, draw: Draw) -> Generator[Numbers]:
        """Each as it is there, in order."""

        def evaluate(candidate: Candidate) -> Numbers:
            with torch.no_grad():
                found = self.objective(candidate.tensors, draw)
            return {name: number_of(value) for name, value in found.items()}

        yield from (self._pool or builtins).map(evaluate, self._candidates[:count])

    def _seen(self, draw: Draw) -> Draw:
        """The draw that the objective is told of: one alone, where it takes none."""
        return draw if self.objective.draws else Draw("search")

    def _key(self, alpha: Alpha, draw: Draw, kind: str) -> str:
        """Names an evaluation."""
        said = f"{self.name}/{draw.split}/{draw.number}/{draw.share!r}/{draw.key}/{kind}".encode()
        return hashlib.blake2b(np.ascontiguousarray(alpha, np.float64).tobytes() + said, digest_size=12).hexdigest()

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
    """What was scored, by the name of the evaluation; in a file, where there is one, a line for each as it comes."""

    def __init__(self, path: Path | None = None, of: str = "", *, resume: bool = False):
        """`of` names what is searched; raises RekindleError where a file that is gone on with is of another search."""
        self._known: dict[str, dict[str, Any]] = {}
        self._file = None
        if path is None:
            return
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = _rows(path) if resume and path.exists() else []
            if rows and rows[0].get("of") != of:
                what = "This journal is of another search: other checkpoints, another objective, or other options."
                raise RekindleError(what, where=path, hint="the same command with --resume, or without it")
            self._known = {row["key"]: row for row in rows[1:]}
            text = "".join(f"{json.dumps(row)}\n" for row in rows or [{"of": of}])
            path.write_text(text, encoding="utf-8")
            self._file = path.open("a", encoding="utf-8")

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._known[key]

    def note(self, key: str, numbers: Numbers, gradient: NDArray | None = None) -> None:
        finite = gradient is not None and np.isfinite(gradient).all()
        row: dict[str, Any] = {"key": key, "numbers": {n: None if math.isnan(x) else x for n, x in numbers.items()}}
        row["gradient"] = gradient.tolist() if gradient is not None and finite else None
        self._known[key] = row
        if self._file:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

    def close(self) -> None:
        if self._file:
            self._file.close()


def _rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal, but for a last one that was cut off; raises RekindleError where it is none."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not ("of" in row if number == 0 else {"key", "numbers"} <= row.keys()):
                raise ValueError(line)
        except ValueError:
            if number == len(lines) - 1 and number > 0:
                break
            raise RekindleError("This is no journal of a search.", where=path, hint="without --resume") from None
        rows.append(row)
    return rows


def _numbers(row: Mapping[str, Any]) -> Numbers:
    return {name: math.nan if x is None else x for name, x in row["numbers"].items()}


def _score(numbers: Numbers) -> float:
    score = next(iter(numbers.values()))
    return score if math.isfinite(score) else math.inf
