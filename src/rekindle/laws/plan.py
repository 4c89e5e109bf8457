"""plan: from what is known of a checkpoint and a budget to the answer, with its costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rekindle.errors import RekindleError, some, together
from rekindle.laws.allocate import Split, best_split
from rekindle.laws.config import PlanConfig
from rekindle.laws.cost import Machines, serving
from rekindle.laws.decide import Decision, decide
from rekindle.laws.law import Law
from rekindle.laws.options import DRAWS, dense_alone
from rekindle.laws.question import FEED_FORWARD, FLOPS, LEAST, Question


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint on disk says of itself; None where it does not."""

    params: int | None = None
    sunk: int | None = None
    unrecorded: tuple[str, ...] = ()  # sources of which it is not known what they were trained on
    feed_forward: float = FEED_FORWARD  # share of the parameters
    kv_bytes: float | None = None  # of a token
    notes: tuple[str, ...] = ()  # what the user should know


@dataclass(frozen=True)
class Plan:
    law: Law
    question: Question
    decision: Decision
    machines: Machines
    budget: float  # FLOPs of the second stage
    split: Split | None
    serving: Mapping[str, Mapping[str, Any]]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Everything at full precision, for `--format json`."""
        found = self.decision.to_dict()
        for option in found["options"].values():
            option["cost"] = self.machines.cost(option["flops"])
        q = self.question
        return {
            "law": {key: getattr(self.law, key) for key in ("name", "source", "seen", "fit_error_known")},
            "question": asdict(q) | {"active": q.active, "total": q.total},
            **found,
            "budget_flops": self.budget,
            "best": None if self.split is None else asdict(self.split),
            "serving": dict(self.serving),
            "notes": list(self.notes),
        }


def plan(law: Law, config: PlanConfig, known: Checkpoint) -> Plan:
    """Answer what the options ask; raises RekindleError with all that is missing or cannot be."""
    machines = Machines(config.gpus, config.gpu, config.mfu, config.price)
    params = config.params if config.params is not None else known.params
    sunk = config.sunk if config.sunk is not None else known.sunk
    budget = _budget(config, machines)
    problems = []
    if params is None:
        problems.append(RekindleError("How large the checkpoint is is not given.", hint="--params 1B, or --ckpt SRC"))
    if sunk is None:
        why = "its lineage does not say" if config.ckpt else None
        if known.unrecorded:
            why = f"what was spent on {some(known.unrecorded, 3)} is not recorded"
        problems.append(RekindleError("What it was trained on is not given.", why=why, hint="--sunk 100B"))
    told = (("parameters", config.params, known.params), ("tokens behind it", config.sunk, known.sunk))
    for name, given, found in told:
        if given is None and found is not None and found < LEAST:
            what = f"{config.ckpt} has {found:,} {name}: too few for any law."
            problems.append(RekindleError(what, hint="a larger checkpoint" if name == "parameters" else "--sunk 100B"))
    if config.tokens is None and budget is None:
        hint = "--tokens 50B, or --budget-flops 1e21, or --gpus 64 --gpu h200 --days 3"
        problems.append(RekindleError("How much may still be spent is not given.", hint=hint))
    if problems:
        raise together(problems)
    assert params is not None
    assert sunk is not None
    alone = dense_alone(law)
    experts, top_k = (1, 1) if alone else (config.experts, config.top_k)
    shape = {"experts": experts, "top_k": top_k, "feed_forward": known.feed_forward}
    if config.tokens is not None:
        question = Question(float(params), float(sunk), float(config.tokens), **shape)
    else:
        assert budget is not None
        cost_of_a_token = FLOPS * Question(float(params), float(sunk), 1000.0, **shape).active
        if budget < 1000 * cost_of_a_token:
            model = "model" if alone else "mixture"
            what = f"{budget:g} FLOPs are {budget / cost_of_a_token:.3g} tokens of the {model}."
            raise RekindleError(what, hint=f"--budget-flops {1e9 * cost_of_a_token:.1g}")
        question = Question(float(params), float(sunk), budget / cost_of_a_token, **shape)
    budget = budget or question.flops
    split = best_split(law, question, budget, DRAWS)
    served = serving(question, known.kv_bytes)
    served = {"dense": served["dense"]} if alone else served
    return Plan(law, question, decide(law, question), machines, budget, split, served, known.notes)


def _budget(config: PlanConfig, machines: Machines) -> float | None:
    """FLOPs of the second stage, where they are given."""
    given = {"budget_flops": config.budget_flops, "days": config.days}
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        if not 0 < value < math.inf:
            raise RekindleError(f"{name} is {value:g}.", hint="--budget-flops 1e21" if "flops" in name else "--days 3")
    if len(given) == 2:
        what = f"budget_flops is {config.budget_flops:g} and days {config.days:g}: one of them says what may be spent."
        raise RekindleError(what, hint="leave --days or --budget-flops out")
    return machines.flops(config.days) if config.days is not None else config.budget_flops
