"""Linear combination of saved checkpoints, small: are there better models along a run than its last and any average?

Source: Liu et al. 2024, "Linear Combination of Saved Checkpoints Makes Consistency and Diffusion Models Better", arXiv
2404.02241. Its search was never released; what is called evolution here has the operators of EEP, by the same first
authors.

Three kinds of denoisers of the digits and a language model save their weights often. Averages of every length, single
checkpoints and searches are judged on the same draws of noise, against images (or text) that nothing was chosen by.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from rekindle.lab.claims import LOSS, Claim, Metric, Whose
from rekindle.lab.compared import FOUND, LAST, SAMPLER
from rekindle.lab.denoisers import Kind, Recipe, save, saved_at, train
from rekindle.lab.figures import dots
from rekindle.lab.page import Page, Table
from rekindle.lab.spent import End
from rekindle.lab.study import Seeded, Size, seeded
from rekindle.report.coefficients import coefficients_chart
from rekindle.sweep.steps import Step

COMPARED = "rekindle.lab.compared"
FIRST = 100  # the seed of the first run: a pilot had 0 and 1
KINDS: dict[str, tuple[Kind, str]] = {  # in claims: the kind, and its name
    "CT": ("training", "Consistency training"),
    "CD": ("distillation", "Consistency distillation"),
    "DM": ("diffusion", "Diffusion"),
}
RECIPES: dict[Kind, Recipe] = {
    "training": Recipe("training", 1e-3, 64),
    "distillation": Recipe("distillation", 3e-3, 32),
    "diffusion": Recipe("diffusion", 1e-3, 64),
}
AIMS = {"CT": 0.25, "CD": 0.15, "DM": 0.25}  # share below the best EMA that gradient search is to reach
ABOVE = 1.1  # times the EMA's: what a distance that was not searched may become
LENGTHS = (4000, 60), (1200, 30)  # steps of a denoiser, and between those that are saved; with --quick
SAMPLES = 2000  # images of each evaluation
LEAST = 40  # evaluations of a search, with --quick
BUDGETS = {"random": 500, "evolution": 500, "gradient": 100, "gradient, FD alone": 100}
SHAPE = {"hidden": 64, "heads": 4, "layers": 3, "ffn": 192, "context": 128, "tokenizer": "bpe:512", "data": "python"}
TRAIN = {"data": "python", "seq_len": 128, "batch_tokens": 2048, "lr": 3e-3, "eval_tokens": 32768}
TOKENS, SAVES = 1_228_800, 50  # of the language model's run, and its states that are saved
TEXT_BUDGETS = {"random": 200, "evolution": 200, "gradient": 50}
TEXT_SEARCH = {"data": "python", "seq_len": 128, "batch_tokens": 8192}

FD = Metric("Fréchet distance, logarithm", "ln")  # so that a difference is a share
SLICED = Metric("sliced Wasserstein, logarithm", "ln")
KID = Metric("kernel distance, of the best EMA's", "")  # unbiased, so it may be below 0: no logarithm
PLAIN = Metric("Fréchet distance", "")


class Said(NamedTuple):
    """A claim that is made of each kind of denoiser: of two arms, with what the paper reports."""

    key: str
    text: str
    arm: str
    rival: str
    paper: str = ""
    of: Whose = "paper"
    metric: Metric = FD


SAID = (
    Said("evolution-below-ema", "evolution finds a combination below the best EMA", "evolution", "EMA", "so for both"),
    Said("ema-below-single", "the best EMA is below the best single checkpoint", "EMA", "single"),
    Said("single-below-last", "the best single checkpoint is below the last", "single", "last"),
    Said("half-below-whole", "half of the run, combined, is below every EMA, of the whole or of a part",
         "half, evolution", "EMA of any part", "CM training 23 and 15 times faster"),
    Said("quarter-below-whole", "a quarter of the run, combined, is below every EMA too", "quarter, evolution",
         "EMA of any part"),
    Said("fewer-steps", "combined, fewer steps of the sampler are enough", "evolution", "EMA, more steps",
         "1 step better than 2; 15 steps to 9"),
    Said("evolution-below-random", "evolution is below random search", "evolution", "random", of="ours"),
    Said("gradient-below-evolution", "gradient search is below evolution, at far fewer evaluations", "gradient",
         "evolution", of="ours"),
    Said("gradient-far-below-ema", "gradient search is so far below the best EMA as was aimed at", "gradient",
         "EMA, aimed at", of="ours"),
    Said("sliced-no-worse", "gradient search is less than a tenth above it in sliced Wasserstein, not searched",
         "gradient", "EMA and a tenth", of="ours", metric=SLICED),
    Said("kid-no-worse", "nor is it in kernel distance, not searched either", "gradient", "EMA and a tenth",
         of="ours", metric=KID),
)  # fmt: skip
CLAIMS = (
    *(
        Claim(f"{short.lower()}-{said.key}", f"{name}: {said.text}", said.paper, f"{short}: {said.arm}",
              f"{short}: {said.rival}", metric=said.metric, of=said.of)
        for short, (_, name) in KINDS.items()
        for said in SAID
    ),
    Claim("lm-gradient-below-ema", "Language model: gradient search is below the best EMA", "", "LM: gradient",
          "LM: EMA", of="ours"),
    Claim("lm-gradient-below-evolution", "Language model: gradient search is below evolution", "", "LM: gradient",
          "LM: evolution", of="ours"),
    Claim("lm-decayed-nothing", "Language model, its rate decayed: no combination beats the last checkpoint",
          "WSM, LAWA: averages gain little after a decay", "LM decayed: gradient", "LM decayed: last", alike=True,
          of="another"),
)  # fmt: skip


# -- steps -----------------------------------------------------------------------------------------------------------


def steps(seed: int, size: Size) -> list[Step]:
    own, share = FIRST + seed, 4 if size.quick else 1
    total, every = LENGTHS[size.quick]
    made = []
    for short in ("DM", "CT", "CD"):
        kind, run = KINDS[short][0], short.lower()
        how: dict[str, Any] = {"kind": kind, "seed": own, "total": total, "every": every}
        made.append(Step(run, f"{__name__}:train_images", "dm" if short == "CD" else "", how))
        budgets = {arm: n // share * (3 if short == "DM" else 5) // 5 for arm, n in BUDGETS.items()}
        budgets |= {arm: max(LEAST, n) for arm, n in budgets.items() if arm.startswith("gradient")}
        judged = {"budgets": budgets, "n": SAMPLES // (2 if size.quick else 1)}
        made.append(Step(f"{run}-found", f"{COMPARED}:search_images", run, {**how, **judged}))
    tokens = TOKENS // share
    made.append(Step("lm-start", "init", options={**SHAPE, "seed": own}))
    for run, schedule in (("lm", "constant"), ("lm-decayed", "wsd")):
        how = {"schedule": schedule, "tokens": tokens, "seed": own, "saves": SAVES // (2 if size.quick else 1)}
        made.append(Step(run, f"{__name__}:train_text", "lm-start", how))
        budgets = {arm: max(LEAST, n // share) for arm, n in TEXT_BUDGETS.items()}
        found = {"seed": own, "first": tokens, "budgets": budgets, "options": TEXT_SEARCH}
        made.append(Step(f"{run}-found", f"{COMPARED}:search_text", run, found))
    return made


def train_images(source: Path, out: Path, kind: Kind, seed: int, total: int, every: int) -> None:
    """OUT/checkpoint-*; what is distilled is the last checkpoint of `source`."""
    teacher = saved_at(source, total // every * every) if kind == "distillation" else None
    recipe = RECIPES[kind]._replace(steps=total, every=every)
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of one that was cut off
    save(part, kind, train(recipe, seed, teacher)).rename(out)


def train_text(source: Path, out: Path, schedule: str, tokens: int, seed: int, saves: int) -> None:
    """OUT/series.rk, so many states of a run at a constant rate, or of one that decays over its second half."""
    from rekindle import api

    part = out.with_name(f"{out.name}.part")  # a run that is cut off goes on in there
    part.mkdir(exist_ok=True)
    how = {**TRAIN, "tokens": tokens, "schedule": schedule, "seed": seed, "decay": 0.5, "eval_every": tokens}
    archive = str(part / "series.rk")
    if not (part / "end").exists():
        api.train(source, part / "end", **how, save_every=tokens // saves, archive=archive, resume=True)
    part.rename(out)


# -- what came out ---------------------------------------------------------------------------------------------------


def read(runs: Path, size: Size) -> Page:
    found = {
        run: [_found(runs, run, seed) for seed in range(size.seeds)] for run in ("ct", "cd", "dm", "lm", "lm-decayed")
    }
    values: dict[Metric, dict[str, list[float]]] = {FD: {}, SLICED: {}, KID: {}, LOSS: {}}
    for short in KINDS:
        arms = [one["arms"] for one in found[short.lower()]]
        for arm in arms[0]:
            values[FD][f"{short}: {arm}"] = [math.log(own[arm]["fd"]) for own in arms]
            values[SLICED][f"{short}: {arm}"] = [math.log(own[arm]["sliced W"]) for own in arms]
            values[KID][f"{short}: {arm}"] = [own[arm]["kid"] / own["EMA"]["kid"] for own in arms]
        both = zip(values[FD][f"{short}: EMA"], values[FD][f"{short}: online EMA"], strict=True)
        values[FD][f"{short}: EMA"] = [min(each) for each in both]  # by what is reported: in its favour
        aimed = math.log(1 - AIMS[short])
        values[FD][f"{short}: EMA, aimed at"] = [x + aimed for x in values[FD][f"{short}: EMA"]]
        parts = zip(*(values[FD][f"{short}: {part}EMA"] for part in ("", "half, ", "quarter, ")), strict=True)
        values[FD][f"{short}: EMA of any part"] = [min(each) for each in parts]
        values[SLICED][f"{short}: EMA and a tenth"] = [x + math.log(ABOVE) for x in values[SLICED][f"{short}: EMA"]]
        values[KID][f"{short}: EMA and a tenth"] = [ABOVE] * size.seeds
    for run, name in (("lm", "LM"), ("lm-decayed", "LM decayed")):
        for arm in found[run][0]["arms"]:
            values[LOSS][f"{name}: {arm}"] = [one["arms"][arm]["loss"] for one in found[run]]
    return Page(
        title="Better models along a run than its last one, and than any average",
        paper="Liu et al. 2024, Linear Combination of Saved Checkpoints",
        url="https://arxiv.org/abs/2404.02241",
        setting=_setting(found, size),
        values=values,
        charts=[
            *(_distances(short, found[short.lower()]) for short in KINDS),
            _losses(found["lm"]),
            _coefficients(found["ct"][0]),
        ],
        tables=[
            *(_all_metrics(short, found[short.lower()]) for short in KINDS),
            _seconds(found),
            _by_seed_of_search(found),
        ],
        limits=(
            "Networks of 150 thousand parameters on 1,797 images of 8 x 8; distances in the features of a small "
            "classifier of theirs, not FID. The paper's own tables were not at hand to compare with.",
            "Kernel distance is compared as a share of the EMA's, and where that is near 0, as in one seed of "
            "distillation, it tells nothing.",
            "Every arm's held-out images are the same 397, and intervals say nothing of other images.",
            "The paper's search is known from its text and from EEP's code alone.",
        ),
    )


def _found(runs: Path, run: str, seed: int) -> dict[str, Any]:
    return json.loads((runs / seeded(f"{run}-found", seed) / FOUND).read_text(encoding="utf-8"))


def _setting(found: Mapping[str, Sequence[Mapping[str, Any]]], size: Size) -> str:
    few, more = SAMPLER["diffusion"]
    k, text = len(found["ct"][0]["steps"]), len(found["lm"][0]["steps"])
    return (
        f"The checkpoints of the last {LAST:.0%} of each run: {k} of denoisers, {text} of a language model, all at a "
        f"constant learning rate but for the decayed one. Consistency models sample in 1 step (or 2), diffusion "
        f"in {few} (or {more}). Single checkpoints, EMAs and other averages are the best of their kind by the images "
        f"that are searched with; in the claims the best EMA is that, or one that was kept while training, whichever is"
        " lower. "
        f"{size.seeds} seed{'s' * (size.seeds > 1)}: each draws the networks, their data order and all noise."
    )


SHOWN = ("last", "single", "uniform", "WSM", "post-hoc EMA", "EMA", "online EMA", "random", "evolution",
         "gradient, FD alone", "gradient")  # fmt: skip


def _distances(short: str, found: Sequence[Mapping[str, Any]]) -> Any:
    arms = {arm: [one["arms"][arm]["fd"] for one in found] for arm in SHOWN}
    return dots(f"{short.lower()}-fd", KINDS[short][1], arms, PLAIN)


def _losses(found: Sequence[Mapping[str, Any]]) -> Any:
    arms = {arm: [one["arms"][arm]["loss"] for one in found] for arm in SHOWN if arm in found[0]["arms"]}
    return dots("lm-loss", "Language model", arms)


def _coefficients(found: Mapping[str, Any]) -> Any:
    own = {arm: found["alphas"][arm] for arm in ("EMA", "evolution", "gradient", "gradient again")}
    negative = sum(a < 0 for a in own["gradient"])
    title = (
        f"Consistency training: {negative} of {len(own['gradient'])} coefficients of the gradient search are negative"
    )
    caption = "The first seed's. The second search along the gradient saw other noise."
    return coefficients_chart("coefficients", title, caption, found["steps"], own)


METRICS = {
    "fd": "FD",
    "kid": "KID",
    "pixel fd": "FD of pixels",
    "sliced W": "sliced W",
    "nearest": "to the nearest",
}


def _all_metrics(short: str, found: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for arm in found[0]["arms"]:
        own = [fmean(one["arms"][arm][metric] for one in found) for metric in METRICS]
        rows.append((arm, *(f"{x:.4g}" for x in own)))
    note = (
        "Means over seeds. Searched are FD (random, evolution, gradient FD alone), or FD and that of pixels "
        "(gradient); KID, sliced Wasserstein and the distance to the nearest training image are only told."
    )
    return Table(f"{KINDS[short][1]}: every distance", ("", *METRICS.values()), rows, note)


def _seconds(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    rows = []
    for run, name in (*((short.lower(), name) for short, (_, name) in KINDS.items()), ("lm", "Language model")):
        own = {arm: fmean(one["seconds"][arm] for one in found[run]) for arm in ("random", "evolution", "gradient")}
        rows.append((name, *(f"{x:.1f} s" for x in own.values()), f"{own['gradient'] / own['evolution']:.2f}"))
    columns = ("", "random", "evolution", "gradient", "gradient / evolution")
    return Table("What each search took", columns, rows, "One thread, two runs at a time; means over seeds.")


def _by_seed_of_search(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    rows = []
    for short, (_, name) in KINDS.items():
        pairs = [(one["alphas"]["gradient"], one["alphas"]["gradient again"]) for one in found[short.lower()]]
        alike = fmean(float(np.corrcoef(*pair)[0, 1]) for pair in pairs)
        largest = fmean(max(map(abs, one)) for one, _ in pairs)
        below = fmean(sum(a < 0 for a in one) for one, _ in pairs)
        rows.append((name, f"{alike:.2f}", f"{largest:.2f}", f"{below:.1f}"))
    columns = ("", "correlation of two searches", "largest |coefficient|", "negative ones")
    return Table("Coefficients of two searches of one run, along the gradient", columns, rows,
                 "Two searches with other noise, of the same checkpoints; means over seeds.")  # fmt: skip


def ends_in(arm: str) -> End:
    """No arm is the end of a training."""
    return End("")


STUDY = Seeded("lcsc", CLAIMS, steps, read, ends_in)
