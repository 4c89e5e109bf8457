"""Lost stages, small: what one is best made of again, and what that costs a run whose processes really die.

Source: "All is Not Lost: LLM Recovery without Checkpoints", arXiv 2506.15461, figures 2 and 4, table 2. Shadows
are ours.

A llama of 8 layers is trained in a pipeline of 4 processes, which are killed (SIGKILL) at steps, stages and moments
that a seed draws before the run: the same for all ways of a seed. In the first part stages between the ends alone die,
as in the paper's figure 2; in the second all do, at three rates, and time counts.

p   chance that a stage dies in a step: the paper's 5, 10 and 16 % an hour are 0.0009, 0.002 and 0.004 in its configs,
    over 10,000 to 25,000 steps; here they are four times as large, over 320
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

from rekindle.lab.claims import LOSS, Claim, Metric
from rekindle.lab.figures import Line, dots, lines
from rekindle.lab.page import Page, Table
from rekindle.lab.spent import End
from rekindle.lab.study import Seeded, Size, losses, seeded, seeds_drawn
from rekindle.recovery.dying import MOMENTS
from rekindle.report.metrics import Metrics, read_metrics
from rekindle.sweep.steps import Step

STAGES, BATCH = 4, 2048
FAN_IN = 0.177  # 1 / sqrt(hidden): at the usual 0.02 so narrow a block is next to the identity, and a new one harmless
SHAPE = {"hidden": 32, "heads": 4, "ffn": 96, "layers": 8, "context": 64, "tokenizer": "bpe:512",
         "init_std": FAN_IN}  # fmt: skip
TRAIN = {"data": "python", "seq_len": 64, "batch_tokens": BATCH, "micro_batch": 4, "lr": 3e-3, "schedule": "constant",
         "eval_every": 20 * BATCH, "eval_tokens": 16384, "stages": STAGES, "spares": 2, "shadow_every": 10,
         "save_every": 25 * BATCH}  # fmt: skip
TOKENS = 320 * BATCH
RATES = {5: 0.0036, 10: 0.008, 16: 0.016}  # p of per cent an hour
BETWEEN = 0.02  # p of the first part, of stages 1 and 2: some 13 deaths
WAYS: dict[str, tuple[str, dict[str, Any]]] = {  # arm -> words, options
    "checkfree": ("weighed average", {"recover": "checkfree"}),
    "uniform": ("plain average", {"recover": "checkfree", "recover_power": 0.0}),
    "copy": ("copy", {"recover": "copy"}),
    "random": ("new values", {"recover": "random"}),
    "plus": ("CheckFree+", {"recover": "checkfree+"}),
    "shadow": ("shadow", {"recover": "shadow"}),
}
SYSTEMS: dict[str, tuple[str, dict[str, Any]]] = {
    "checkpoint": ("checkpoint", {"recover": "checkpoint"}),
    "redundant": ("redundant", {"recover": "redundant"}),
    "plus": WAYS["plus"],
    "shadow": WAYS["shadow"],
}
GAP = Metric("Gap to no failures", "nats per token")
TIME = Metric("Time to a loss", "of the run without failures")
TABLE_2 = "hours to a loss of 2.85, table 2: "
CLAIMS = (
    Claim("weighed-below-uniform", "Weighing neighbours by their gradients ends below a plain average", "figure 2",
          "checkfree", "uniform"),
    Claim("uniform-below-copy", "A plain average of neighbours ends below a copy", "figure 2", "uniform", "copy"),
    Claim("copy-below-random", "A copy ends below new values", "figure 2", "copy", "random"),
    Claim("swap-costs", "Without failures, swapped ends converge more slowly", "figure 4", "none", "plus-none"),
    *(Claim(f"plus-before-checkpoint-{rate}", f"At {rate} % CheckFree+ is at the loss before checkpointing is",
            TABLE_2 + hours, f"plus-{rate}", f"checkpoint-{rate}", metric=TIME)
      for rate, hours in ((5, "355 against 558"), (10, "368 against 622"), (16, "461 against 634"))),
    *(Claim(f"plus-before-redundant-{rate}", f"At {rate} % CheckFree+ is at the loss before redundant computation is",
            TABLE_2 + hours, f"plus-{rate}", f"redundant-{rate}", metric=TIME)
      for rate, hours in ((5, "355 against 420"), (10, "368 against 420"))),
    Claim("shadow-below-weighed", "Shadows end below weighed averages", "", "shadow", "checkfree", of="ours"),
    Claim("shadow-a-fifth", "Shadows leave at most a fifth of the averages' gap", "", "shadow", "a fifth", metric=GAP,
          of="ours"),
    Claim("shadow-as-none", "Shadows end as low as no failures, ends spared", "", "shadow", "none", alike=True,
          of="ours"),
    *(Claim(f"shadow-before-{other}-{rate}", f"At {rate} % shadows are at the loss before {words}", "",
            f"shadow-{rate}", f"{other}-{rate}", metric=TIME, of="ours")
      for rate in (10, 16) for other, words in (("redundant", "redundant stages are"), ("plus", "CheckFree+ is"))),
)  # fmt: skip


def steps(seed: int, size: Size) -> list[Step]:
    tokens = size.tokens(TOKENS)
    often = 1 / max(size.scale, 0.25)  # so that some die in a quick run too
    between = failures(seed, tokens // BATCH, {1: often * BETWEEN, 2: often * BETWEEN})
    runs: dict[str, dict[str, Any]] = {"none": {"recover": "none"}, "plus-none": {"recover": "checkfree+"}}
    runs |= {arm: {**options, "inject": between} for arm, (_, options) in WAYS.items()}
    for rate, p in RATES.items():
        anywhere = failures(seed, tokens // BATCH, dict.fromkeys(range(STAGES), often * p))
        runs |= {f"{arm}-{rate}": {**options, "inject": anywhere} for arm, (_, options) in SYSTEMS.items()}
    made = [Step("start", "init", options={**SHAPE, "seed": seed})]
    return made + [Step(arm, "train", "start", {**TRAIN, "tokens": tokens, **own}) for arm, own in runs.items()]


def failures(seed: int, steps: int, p: dict[int, float]) -> str:
    """As `train --inject` takes them: of each stage with its chance in each step, at some moment; no two neighbours."""
    rng, found = Random(seed), []
    for step in range(steps):
        died: list[int] = []
        for stage, chance in p.items():
            hit, moment = rng.random() < chance, rng.choice(MOMENTS)
            if hit and not any((stage - one) % STAGES in (1, STAGES - 1) for one in died):
                died.append(stage)
                found.append(f"{step}:{stage}:{moment}")
    return ",".join(found)


def read(runs: Path, size: Size) -> Page:
    arms = ["none", "plus-none", *WAYS, *(f"{arm}-{rate}" for rate in RATES for arm in SYSTEMS)]
    ends = {arm: losses(runs, arm, size.seeds) for arm in arms}
    gaps = {arm: [one - none for one, none in zip(ends[arm], ends["none"], strict=True)] for arm in WAYS}
    swap = [one - none for one, none in zip(ends["plus-none"], ends["none"], strict=True)]
    fifth = [gap / 5 for gap in gaps["checkfree"]]
    times = {arm: [_time(runs, arm, seed) for seed in range(size.seeds)] for arm in arms}
    words = {arm: words for arm, (words, _) in WAYS.items()}

    def by_rate(values: dict[str, list[float]]) -> list[Line]:
        return [
            Line(name, {float(rate): values[f"{arm}-{rate}"] for rate in RATES}) for arm, (name, _) in SYSTEMS.items()
        ]

    return Page(
        title="Stages that die, and what they are made of again",
        paper="All is Not Lost: LLM Recovery without Checkpoints",
        url="https://arxiv.org/abs/2506.15461",
        setting=(
            f"A llama of {SHAPE['layers']} layers, hidden size {SHAPE['hidden']}, trained on {size.tokens(TOKENS):,} "
            f"tokens of Python's libraries in a pipeline of {STAGES} processes, which are killed at steps, stages and "
            f"moments that are the same for all ways of a seed. {seeds_drawn(size)}"
        ),
        values={LOSS: ends, GAP: gaps | {"a fifth": fifth}, TIME: times},
        charts=[
            dots("gap", "Stages between the ends die: gap to no failures",
                 {words[arm]: gaps[arm] for arm in words} | {"CheckFree+, none dies": swap}, GAP),
            lines("time", _title(times), by_rate(times), "a stage's chance to die, % an hour", TIME.axis, metric=TIME),
        ],
        tables=[_systems(runs, size)],
        limits=(
            f"{SHAPE['hidden']} dimensions, {STAGES} stages of two layers, {size.tokens(TOKENS) // BATCH} steps; the "
            "paper has 124 million parameters and more. Of four stages CheckFree+ averages none, since all are ends or "
            "swapped with one.",
            f"Per cent an hour are the paper's names for what is {', '.join(f'{p:.2%}' for p in RATES.values())} of a "
            "stage in a step here: four times what its configurations have.",
            "All processes share two cores, so that a stage that waits leaves them to the others: what redundant "
            "stages cost in time is their own work, not bubbles that they could fill.",
            "Time is that of steps and recoveries. Saving, evaluating and the start are left out, which favours "
            "checkpoints; where an arm never comes to the loss, the time of the whole run counts, "
            "which favours that arm.",
            "Redundant stages are copies that make each update again, and a step that was cut off is done again by "
            "all; the paper's rival also runs its neighbour's forward passes.",
        ),
    )  # fmt: skip


def _time(runs: Path, arm: str, seed: int) -> float:
    """Of steps and recoveries until the loss that the run without failures has halfway, over that of this run."""
    none = read_metrics(runs / seeded("none", seed))
    level = none.evaluations[len(none.evaluations) // 2].loss
    return _seconds(read_metrics(runs / seeded(arm, seed)), level) / _seconds(none, level)


def _seconds(metrics: Metrics, level: float) -> float:
    """Between two evaluations the loss is taken to fall evenly."""
    behind = [0.0, *accumulate(BATCH / step.tokens_per_s for step in metrics.steps)]  # after so many steps
    for before, after in pairwise(metrics.evaluations):
        if after.loss <= level:
            part = (before.loss - level) / (before.loss - after.loss) if before.loss > level else 0.0
            return behind[before.step] + part * (behind[after.step] - behind[before.step])
    return behind[-1]


def _title(times: dict[str, list[float]]) -> str:
    last = max(RATES)
    means = {arm: fmean(times[f"{arm}-{last}"]) for arm in SYSTEMS}
    first = min(means, key=lambda arm: means[arm])
    return f"At {last} % an hour first at the loss: {SYSTEMS[first][0]}, {means[first]:.2f} times as long as without"


def _systems(runs: Path, size: Size) -> Table:
    """What each system did, summed over seeds."""
    rows: list[Sequence[Any]] = []
    for arm in ["none", "plus-none", *WAYS, *(f"{arm}-{rate}" for rate in RATES for arm in SYSTEMS)]:
        found = [read_metrics(runs / seeded(arm, seed)) for seed in range(size.seeds)]
        deaths = [one for metrics in found for one in metrics.recoveries]
        back = sum(one.policy == "checkpoint" for one in deaths)
        seconds = sum(
            {(i, one.step, one.seconds): one.seconds for i, m in enumerate(found) for one in m.recoveries}.values()
        )
        usual = sorted(BATCH / step.tokens_per_s for metrics in found for step in metrics.steps)
        apart = [one.distance for one in deaths if one.distance is not None]
        rows.append((arm, len(deaths), back, f"{seconds:.1f}", f"{1e3 * usual[len(usual) // 2]:.0f}",
                     f"{min(apart):.2f}" if apart else "–"))  # fmt: skip
    columns = ("run", "deaths", "back to a checkpoint", "seconds lost", "median step, ms", "nearest two averaged")
    note = "Over all seeds. Nearest two: distance of stages that were averaged, of their norm; 1.4 of strangers."
    return Table("As systems", columns, [tuple(row) for row in rows], note)


def ends_in(arm: str) -> End:
    """A fifth of a gap is no run."""
    return End("" if arm == "a fifth" else arm)


STUDY = Seeded("checkfree", CLAIMS, steps, read, ends_in, alone=True)
