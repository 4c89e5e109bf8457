"""A grid of runs as steps: every cell of sizes x D1 x D2 x ways x experts x seeds, the trunks shared.

A trunk is trained once at constant learning rate, and at each length that the grid asks for a branch leaves it and is
annealed (WSD: Hu et al. 2024, arXiv 2404.06395). The dense trunk's branches are the cells of `dense` and what the other
ways start from; each of those has a trunk of its own with branches at each D2. A branch of D tokens leaves its trunk at
(1 - decay) D, so that trunk and branch together have read D.

Every step reads text that no earlier one on its way has read: it passes over as many tokens as its source has seen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rekindle.anatomy import FAMILIES
from rekindle.config import Count, parse, read_yaml, resolve
from rekindle.errors import RekindleError, nearest, together
from rekindle.methods import METHODS, method_named
from rekindle.sweep.steps import Step
from rekindle.train.config import InitConfig, TrainConfig

KEYS = ("model", "sizes", "train", "sunk", "tokens", "ways", "experts", "top_k", "seeds", "decay")
_KINDS = (("model", dict, "{heads: 4}"), ("train", dict, "{lr: 0.003}"), ("ways", list, "[dense, upcycled]"),
          ("seeds", list, "[0]"), ("decay", float, "0.2"))  # fmt: skip
WAYS = ("dense", "scratch", "upcycled")
_SIZES = ("hidden", "layers", "heads")  # that a size must say: the points of a law are no defaults


@dataclass(frozen=True)
class Cell:
    """A run that the table has a row for: `step` ends it."""

    way: str
    size: int
    sunk: int
    tokens: int
    experts: int
    top_k: int
    seed: int
    step: str
    trunk: str  # what cells of a trunk share


@dataclass(frozen=True)
class Grid:
    model: Mapping[str, Any]  # init's options for all sizes
    sizes: tuple[Mapping[str, Any], ...]  # and of each
    train: Mapping[str, Any]
    sunk: tuple[int, ...]
    tokens: tuple[int, ...]
    ways: Mapping[str, Mapping[str, Any]]  # name -> {verb: options}; {} for those known
    experts: tuple[int, ...] = (8,)
    top_k: tuple[int, ...] = (2,)
    seeds: tuple[int, ...] = (0,)
    decay: float = 0.2
    step: int = 16384  # tokens of one: every stage is made of whole ones

    @property
    def mixtures(self) -> list[tuple[int, int]]:
        return [(e, k) for e in self.experts for k in self.top_k if k <= e]


def read_grid(path: Path) -> Grid:
    """Raises RekindleError with all that is wrong with the file."""
    data = read_yaml(path)
    problems = [
        RekindleError(f"A grid has no key {key!r}.", where=path, hint=nearest(key, KEYS) or ", ".join(KEYS))
        for key in data
        if key not in KEYS
    ]
    for key, example in (("sizes", "[{hidden: 32, layers: 2, heads: 4}]"), ("sunk", "[1M, 2M]"), ("tokens", "[1M]")):
        if not isinstance(data.get(key), list) or not data[key]:
            problems.append(RekindleError(f"A grid needs {key}.", where=path, hint=f"{key}: {example}"))
    for key, kind, example in _KINDS:
        if not isinstance(data.get(key, kind()), kind):
            problems.append(RekindleError(f"{key} is {data[key]!r}.", where=path, hint=f"{key}: {example}"))
    if not problems:
        problems += [RekindleError(f"A size is {size!r}.", where=path, hint="{hidden: 32, layers: 2, heads: 4}")
                     for size in data["sizes"] if not isinstance(size, dict)]  # fmt: skip
        problems += [RekindleError(f"A seed is {seed!r}.", where=path, hint="seeds: [0, 1]")
                     for seed in data.get("seeds", [0]) if type(seed) is not int]  # fmt: skip
    if problems:
        raise together(problems)
    step = _step(data.get("train") or {}, path)
    grid = Grid(
        model=data.get("model") or {},
        sizes=tuple(data["sizes"]),
        train=data.get("train") or {},
        sunk=_counts(data["sunk"], "sunk", path, step),
        tokens=_counts(data["tokens"], "tokens", path, step),
        ways=_ways(data.get("ways") or list(WAYS), path),
        experts=_counts(data.get("experts", [8]), "experts", path),
        top_k=_counts(data.get("top_k", [2]), "top_k", path),
        seeds=tuple(data.get("seeds") or [0]),
        decay=float(data.get("decay", 0.2)),
        step=step,
    )
    _check(grid, path)
    return grid


def _step(train: Mapping[str, Any], path: Path) -> int:
    try:
        return resolve(TrainConfig, {**train, "tokens": 1}).config.batch_tokens
    except RekindleError as error:
        raise RekindleError(f"train: {error.what}", where=path, hint=error.hint) from None


def _counts(values: Any, name: str, path: Path, unit: int = 1) -> tuple[int, ...]:
    """Sorted, each once, in whole units."""
    try:
        found = tuple(parse(value, Count) for value in (values if isinstance(values, list) else [values]))
    except ValueError as error:
        raise RekindleError(f"{name} is {values!r}, but {error}.", where=path) from None
    if any(value < 1 for value in found):
        raise RekindleError(f"{name} is {list(found)}: it must be positive.", where=path)
    return tuple(sorted({max(1, round(value / unit)) * unit for value in found}))


def _ways(given: list, path: Path) -> dict[str, Mapping[str, Any]]:
    """Those known by name, and further ones as {name: {verb: options}}."""
    found: dict[str, Mapping[str, Any]] = {}
    for way in given:
        if isinstance(way, str) and way in WAYS:
            found[way] = {}
        elif isinstance(way, dict) and len(way) == 1 and isinstance(next(iter(way.values())), dict):
            ((name, step),) = way.items()
            if name in WAYS or not re.fullmatch(r"[\w-]+", str(name)):
                hint = f"a name of letters, other than {', '.join(WAYS)}"
                raise RekindleError(f"A way cannot be called {name!r}.", where=path, hint=hint)
            if len(step) != 1 or next(iter(step)) not in METHODS:
                raise RekindleError(
                    f"The way {name} is {step!r}.", where=path, hint=f"{name}: {{grow-depth: {{factor: 2}}}}"
                )
            ((verb, options),) = step.items()
            if METHODS[verb].takes == "models":
                what = f"The way {name} is {verb}, which takes several models: a step of a grid is made of one."
                others = [verb for verb, method in METHODS.items() if method.takes != "models"]
                raise RekindleError(what, where=path, hint=", ".join(others))
            try:
                resolve(method_named(verb).config, options or {})
            except RekindleError as error:
                raise RekindleError(f"The way {name}: {error.what}", where=path, hint=error.hint) from None
            found[name] = {verb: options or {}}
        else:
            hint = nearest(str(way), WAYS) or ", ".join(WAYS) + ", or grown: {grow-depth: {factor: 2}}"
            raise RekindleError(f"There is no way {way!r}.", where=path, hint=hint)
    return found


def _check(grid: Grid, path: Path) -> None:
    """Every size and option, before anything is trained."""
    problems = []
    if not 0 < grid.decay < 1:
        problems.append(
            RekindleError(f"decay is {grid.decay:g}: the annealed share of a run.", where=path, hint="decay: 0.2")
        )
    for i, size in enumerate(grid.sizes):
        try:
            config = resolve(InitConfig, {**grid.model, **size}).config
        except RekindleError as error:
            problems.append(RekindleError(f"Size {i}: {error.what}", where=path, hint=error.hint))
            continue
        if silent := [name for name in _SIZES if name not in {**grid.model, **size}]:
            what = f"Size {i} does not say {', '.join(silent)}."
            problems.append(RekindleError(what, where=path, hint="{hidden: 32, layers: 2, heads: 4}"))
        if "scratch" in grid.ways and config.family in FAMILIES and not sparse_twin(config.family):
            what = f"Size {i} is a {config.family}, of which no family with experts is known: there is no way scratch."
            problems.append(RekindleError(what, where=path, hint=f"ways: {[w for w in grid.ways if w != 'scratch']}"))
    for lengths in (grid.sunk, grid.tokens):
        marks = [0, *(leaves(grid, length) for length in lengths)]
        short = any(b - a < grid.step for a, b in zip(marks, marks[1:]))
        if short or any(length - leaves(grid, length) < grid.step for length in lengths):
            what = f"Between {', '.join(map(str, lengths))} tokens a trunk or its annealed branch has no step."
            problems.append(RekindleError(what, where=path, hint=f"longer stages, or batch_tokens below {grid.step}"))
    if not grid.mixtures:
        problems.append(RekindleError("No top_k is within the experts.", where=path, hint="top_k: [2]"))
    if problems:
        raise together(problems)


def sparse_twin(family: str) -> str | None:
    """The family of a mixture from scratch beside dense models of `family`: that which upcycling makes of them."""
    own = FAMILIES.get(family)
    return next(iter(own.twins), own.model_type if own.sparse else None) if own else None


def steps_of(grid: Grid) -> tuple[list[Step], list[Cell]]:
    """All steps, each after what it reads, and the cells that they make."""
    steps: dict[str, Step] = {}
    cells: list[Cell] = []
    for seed in grid.seeds:
        for size in range(len(grid.sizes)):
            made = _of_size(grid, size, seed)
            for found in made:
                if isinstance(found, Step):
                    steps.setdefault(found.name, found)
                else:
                    cells.append(found)
    return list(steps.values()), cells


def _of_size(grid: Grid, size: int, seed: int) -> Iterator[Step | Cell]:
    base = f"size{size}-seed{seed}"
    shape = {**grid.model, **grid.sizes[size], "seed": seed}
    yield Step(f"{base}-start", "init", options=shape)
    yield from _trunk(grid, f"{base}-dense", f"{base}-start", grid.sunk, seed, 0)
    if "dense" in grid.ways:
        for sunk in grid.sunk:
            yield Cell("dense", size, 0, sunk, 1, 1, seed, f"{base}-dense-{sunk}", base)
    for way, step in grid.ways.items():
        if way == "dense":
            continue
        for experts, top_k in grid.mixtures if not step else [(1, 1)]:
            name = f"{base}-{way}" + (f"-{experts}x{top_k}" if not step else "")
            if way == "scratch":
                twin = sparse_twin(resolve(InitConfig, shape).config.family)
                mixture = {**shape, "family": twin, "experts": experts, "top_k": top_k}
                yield Step(f"{name}-start", "init", options=mixture)
                yield from _trunk(grid, name, f"{name}-start", grid.tokens, seed, 0)
                for tokens in grid.tokens:
                    yield Cell(way, size, 0, tokens, experts, top_k, seed, f"{name}-{tokens}", name)
                continue
            ((verb, options),) = (step or {"upcycle": {"experts": experts, "top_k": top_k, "seed": seed}}).items()
            for sunk in grid.sunk:
                own = f"{name}-after{sunk}"
                yield Step(f"{own}-start", verb, f"{base}-dense-{sunk}", options)
                yield from _trunk(grid, own, f"{own}-start", grid.tokens, seed, sunk)
                for tokens in grid.tokens:
                    yield Cell(way, size, sunk, tokens, experts, top_k, seed, f"{own}-{tokens}", base)


def _trunk(grid: Grid, name: str, source: str, lengths: tuple[int, ...], seed: int, read: int) -> Iterator[Step]:
    """A trunk from `source`, which has read `read` tokens, and its annealed branches NAME-LENGTH."""
    at = 0
    for length in lengths:
        to = leaves(grid, length)
        trunk = f"{name}-trunk{to}"
        warmup = 0.0 if at else min(1.0, grid.train.get("warmup", 0.02) * lengths[-1] / to)
        on = {**grid.train, "schedule": "constant", "warmup": warmup, "skip": read + at, "tokens": to - at}
        yield Step(trunk, "train", source, on, warm=at > 0, seed=seed)
        down = {**grid.train, "schedule": "wsd", "warmup": 0.0, "decay": 1.0, "skip": read + to, "tokens": length - to}
        yield Step(f"{name}-{length}", "train", trunk, down, warm=True, seed=seed)
        source, at = trunk, to


def leaves(grid: Grid, length: int) -> int:
    """Where a branch of `length` tokens leaves its trunk, in whole steps."""
    return round(length * (1 - grid.decay) / grid.step) * grid.step
