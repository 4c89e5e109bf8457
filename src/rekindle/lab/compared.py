"""What the study of combinations compares, of one run: averages, searches at stated costs, shorter trainings.

An arm is a model made of saved checkpoints; all arms are judged on the same draws, which none was chosen by.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rekindle.config import Count
from rekindle.edit import checkpoint_at
from rekindle.lab.denoisers import Kind, Tensors, images, online_averages
from rekindle.lab.digits import digits, features
from rekindle.search.candidate import kept_of
from rekindle.search.coefficients import rivals
from rekindle.search.draw import Draw
from rekindle.search.find import search_named
from rekindle.search.judge import EMA, REPORTS, RERANKED, Row, best_of_each, report, reranked
from rekindle.search.ledger import Ledger
from rekindle.search.objective import Objective
from rekindle.search.problem import Problem
from rekindle.search.quality import Quality, Real, real
from rekindle.search.series import Series, series_of
from rekindle.search.store import fill

LAST = 0.6  # of a run: the part whose checkpoints are combined
FOUND = "found.json"
PIXELS = 2.0  # share of pixels in what the gradient follows
SAMPLER: dict[Kind, tuple[int, int]] = {"training": (1, 2), "distillation": (1, 2), "diffusion": (9, 15)}  # steps, more

Budgets = Mapping[str, int]  # evaluations of each arm that searches
SEARCHES = {"random": "random", "evolution": "evolution", "CMA-ES": "cma", "gradient": "gradient",
            "gradient, FD alone": "gradient"}  # fmt: skip
Numbers = dict[str, float]


def steps_in(total: int, every: int) -> list[int]:
    """The saved steps of the last part of a run of so many."""
    return [step for step in range(every, total + 1, every) if step > (1 - LAST) * total]


def series_at(run: Path, steps: Sequence[int]) -> Series:
    return series_of({f"step-{step}": checkpoint_at(run / f"checkpoint-{step}") for step in steps})


def arms_of(
    ledger: Ledger, judges: Mapping[str, Ledger], series: Series, steps: Sequence[int], key: int, budgets: Budgets
) -> tuple[list[Row], Numbers]:
    """The best of each kind of rival, and what each search finds, with the seconds that each took.

    `judges`: of searches that have one of their own.
    """
    first, names = Draw("search", key=key), series.names
    rows = best_of_each(ledger, rivals(names, [float(step) for step in steps]), first)
    starts = [*rivals(names)[EMA].values(), *(row.alpha for row in rows)]
    seconds = {}
    for arm, budget in budgets.items():
        judge, begun = judges.get(arm, ledger), time.perf_counter()
        problem = Problem(judge, starts, budget, "one", key, first, races=False)  # the paper's search has no races
        found = search_named(SEARCHES[arm])(problem)[:RERANKED]
        seconds[arm] = time.perf_counter() - begun
        rows.append(reranked(judge, [Row(arm, "", one.alpha, one.score) for one in found], key)[0])
    return rows, seconds


# -- images ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """How images of a kind of denoiser are judged, `n` at a time."""

    kind: Kind
    n: int

    def quality(self, more: bool = False, plain: float = 0.0) -> Quality:
        """By the sampler's usual steps or `more` of them; `plain`: the share of pixels in what is searched."""
        steps = SAMPLER[self.kind][more]

        def sampler(tensors: Mapping[str, torch.Tensor], n: int, seed: int) -> torch.Tensor:
            return images(dict(tensors), self.kind, n, steps, seed)

        searched, held_out = self._real
        return Quality(sampler, features, searched, held_out, digits().train, self.n, plain=plain)

    @cached_property
    def _real(self) -> tuple[Real, Real]:
        return real(digits().search, features), real(digits().report, features)

    def told(self, tensors: Tensors, key: int) -> Numbers:
        """What is reported of one model, on the draws of every arm."""
        quality = self.quality()
        with torch.no_grad():
            found = [quality(tensors, Draw("report", number, key=key)) for number in range(REPORTS)]
        return {name: float(np.mean([float(one[name]) for one in found])) for name in found[0]}


def search_images(
    source: Path, out: Path, kind: Kind, seed: int, total: int, every: int, budgets: Budgets, n: int
) -> None:
    """OUT/found.json: what is reported of every arm of a run of `total` steps, and of its first half and quarter."""
    judged, arms, shape = Judged(kind, n), {}, {}
    for part, share in (("", 1.0), ("half, ", 0.5), ("quarter, ", 0.25)):
        steps = steps_in(round(share * total), every)
        series = series_at(source, steps)
        store, kept = fill(series), kept_of(series)
        one, both, more = (
            Ledger(Objective(quality, True, "fd"), store, series.places, kept)
            for quality in (judged.quality(), judged.quality(plain=PIXELS), judged.quality(more=True))
        )
        own = budgets if not part else {arm: budgets[arm] for arm in ("evolution", "gradient")}
        rows, seconds = arms_of(one, {"gradient": both}, series, steps, seed, own)
        report(one, rows, seed)
        arms |= {f"{part}{row.kind}": _means(row) for row in rows}
        if not part:
            twice, _ = arms_of(one, {"gradient": both}, series, steps, seed + 1000, {"gradient": budgets["gradient"]})
            alphas = {row.kind: row.alpha.tolist() for row in rows} | {"gradient again": twice[-1].alpha.tolist()}
            shape = {"steps": steps, "alphas": alphas, "values": store.size, "seconds": seconds}
            best = best_of_each(more, {EMA: rivals(series.names)[EMA]}, Draw("search", key=seed))
            report(more, best, seed)
            arms["EMA, more steps"] = _means(best[0])
            arms["online EMA"] = _online(source / f"checkpoint-{steps[-1]}", judged, seed)
    _write(out, {"arms": arms, **shape})


def _online(checkpoint: Path, judged: Judged, key: int) -> Numbers:
    """Of the averages that were kept while it trained, the best on the search's data."""
    quality, averages = judged.quality(), online_averages(checkpoint)
    with torch.no_grad():
        scores = [float(quality(own, Draw("search", key=key))["fd"]) for own in averages]
    return judged.told(averages[int(np.argmin(scores))], key)


# -- a language model ------------------------------------------------------------------------------------------------


def search_text(source: Path, out: Path, seed: int, first: int, budgets: Budgets, options: Mapping[str, Any]) -> None:
    """OUT/found.json of a run's archive: losses of every arm; the search reads training text from token `first` on."""
    from rekindle.api.merging import named
    from rekindle.search.config import CombineConfig
    from rekindle.search.losses import loss_of

    models = {name: model.as_parent for name, model in named(f"{source / 'series.rk'}@*").items()}
    steps = [int(name.removeprefix("step-")) for name in models]
    chosen = [step for step in steps if step > (1 - LAST) * steps[-1]]
    series = series_of({f"step-{step}": models[f"step-{step}"] for step in chosen}, fused=True)
    config = CombineConfig(objective="loss", seed=seed, skip=Count(first), **options)
    objective = loss_of([*models.values()][-1].folder, config)
    ledger = Ledger(objective, fill(series), series.places, kept_of(series))
    rows, seconds = arms_of(ledger, {}, series, chosen, seed, budgets)
    report(ledger, rows, seed)
    arms = {row.kind: _means(row) for row in rows}
    alphas = {row.kind: row.alpha.tolist() for row in rows}
    _write(out, {"arms": arms, "steps": chosen, "alphas": alphas, "values": series.size, "seconds": seconds})


def _means(row: Row) -> Numbers:
    return {name: float(np.mean(values)) for name, values in row.reported.items()}


def _write(out: Path, found: Mapping[str, Any]) -> None:
    part = out.with_name(f"{out.name}.part")
    part.mkdir(exist_ok=True)
    (part / FOUND).write_text(json.dumps(found, indent=1), encoding="utf-8")
    part.rename(out)
