"""laws, plan, fit."""

from __future__ import annotations

import shlex
from typing import Any

import click

from rekindle import api
from rekindle.cli import failures
from rekindle.cli.options import options_of, resolved
from rekindle.cli.out import FORMAT, count, echo, narrator, nbytes, result, say, table
from rekindle.cli.sweep import COMMANDS as SWEEP
from rekindle.cli.training import CONFIG
from rekindle.errors import counted
from rekindle.laws.config import FitConfig, PlanConfig
from rekindle.recovery.config import SimulateConfig


@click.command("laws")
@FORMAT
def laws(format_: str) -> None:
    """Published scaling laws: forms, numbers, where they were fitted, and how sure we are of them.

    \b
    rekindle laws
    """
    found = api.laws()
    result(found, "\n\n".join(_law(name, law) for name, law in found.items()), format_)


def _law(name: str, law: dict[str, Any]) -> str:
    lines = [f"{name}: {law['title']}", f"  {law['source']} ({law['seen']}); {law['unit']}"]
    for row, data in law["rows"].items():
        numbers = ", ".join(f"{key} {value:g}" for key, value in data["coefficients"].items())
        domain = ", ".join(f"{key} {low:g} to {high:g}" for key, (low, high) in data["domain"].items())
        lines += [f"  {row:<9} {data['formula']}", f"  {'':<9} {numbers}", f"  {'':<9} fitted on {domain}"]
    return "\n".join(lines)


@click.command("plan")
@options_of(PlanConfig, SimulateConfig)
@click.option("--out", metavar="DIR", help="where the figure (PNG, SVG, CSV) and its page go")
@click.option("--html", metavar="FILE", help="where the page alone goes: sliders, and the law in the browser")
@click.option("--overwrite", is_flag=True, help="replace DIR and FILE")
@CONFIG
@FORMAT
def plan(
    out: str | None,
    html: str | None,
    overwrite: bool,
    config_file: str | None,
    format_: str,
    **given: Any,
) -> None:
    """Upcycle, continue, or start over? What scaling laws say, with intervals.

    \b
    D1 sunk tokens, D2 tokens of the second stage, N1 all parameters of the dense model, N2 those active in the
    mixture; training costs 6 FLOPs per active parameter and token. Intervals hold 90 % of what the rounding of the
    published numbers, or a fit's bootstrap, leaves open.

    \b
    rekindle plan --params 1B --sunk 100B --tokens 50B
    rekindle plan --params 1B --sunk 100B --gpus 64 --gpu h200 --days 3 --price 2.5
    rekindle plan --ckpt SRC --sunk 100M --tokens 20M --html page.html

    \b
    Another question, with --failures: stages of a pipeline die, which policy of `train --recover` is there first? It
    reads --stages and what stands below it, and says what its numbers rest on.

    \b
    rekindle plan --failures 0.1/h --stages 24
    """
    if failures.asked(given, config_file, {"out": out, "html": html, "overwrite": overwrite}):
        failures.plan_failures(given, config_file, format_)
        return
    options = resolved(PlanConfig, given, config_file, out, html)
    echo("rekindle plan", options)
    found = api.plan(options, out=out, html=html, overwrite=overwrite).to_dict()
    result(found, _answer(found), format_)
    for line in found["notes"]:
        say(f"note: {line}")
    for line in found["outside"]:
        say(f"note: outside the law's domain: {line}")
    if not found["law"]["fit_error_known"]:
        say("note: the law's fit error is unknown: intervals hold what rounding leaves open")
    if found["law"]["seen"] in ("second-hand", "recalled"):
        say(f"note: the law's numbers are {found['law']['seen']}; `rekindle laws` says where from")


def _answer(found: dict[str, Any]) -> str:
    """Verdict first, then the options from the lowest loss up, then crossings and costs."""
    lines = [f"{found['verdict']}: {found['reason']}", ""]
    rows = [("", "loss", "90 %", "FLOPs", "GPU-hours", "cost")]
    priced = any(option["cost"]["money"] is not None for option in found["options"].values())
    for option in sorted(found["options"].values(), key=lambda option: option["loss"]):
        cost = option["cost"]
        money = "" if cost["money"] is None else f"{cost['money']:,.0f}"
        band = f"{option['low']:.3f} to {option['high']:.3f}"
        rows.append((option["title"], f"{option['loss']:.4f}", band, f"{cost['flops']:.3g}", _hours(cost), money))
    lines += [table(rows if priced else [row[:-1] for row in rows], right=(1, 2, 3, 4, 5)), ""]
    return "\n".join(lines + [table(_facts(found))])


def _facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    facts = []
    if found["source_loss"] is not None:
        facts.append(("source", f"{found['source_loss']:.4f} nats per token, by the law"))
    if found["crossing"]:
        facts.append(("crossing D*", f"{_range(found['crossing'])}: from there a mixture from scratch is lower"))
    if found["regain"]:
        facts.append(("regained", f"{_range(found['regain'])}: from there the law puts it below its source"))
    if found["best"]:
        best = found["best"]
        sizes = f"{count(best['params'])} ({count(best['params_low'])} to {count(best['params_high'])})"
        text = f"N1 {sizes}, D2 {count(best['tokens'])} tokens: loss {best['loss']:.4f}"
        text += f"; outside the law: {', '.join(best['outside'])}" if best["outside"] else ""
        what = "from scratch" if "dense_scratch" in found["options"] else "best"
        facts.append((f"{what} for {found['budget_flops']:.3g} FLOPs", text))
    for name, cost in found["serving"].items():
        estimated = " (typical for its size)" if cost["kv_estimated"] else ""
        facts.append(
            (
                f"serving, {name}",
                f"{count(cost['active'])} active of {count(cost['total'])}, {nbytes(cost['weight_bytes'])} in bf16, "
                f"KV cache {nbytes(cost['kv_bytes_per_token'])} a token{estimated}",
            )
        )
    return facts


def _range(found: dict[str, float | None]) -> str:
    low, mid, high = (
        "none below 5T" if tokens is None else count(tokens) for tokens in (found["low"], found["mid"], found["high"])
    )
    if low == mid == high:
        return f"{mid} tokens"
    return f"{mid} tokens ({low} to {high})"


def _hours(cost: dict[str, Any]) -> str:
    return f"{cost['gpu_hours']:,.1f}" if cost["gpu_hours"] < 100 else f"{cost['gpu_hours']:,.0f}"


@click.command("fit")
@click.argument("runs", nargs=-1, required=True)
@options_of(FitConfig)
@click.option("--out", metavar="FILE", help="where the law goes, as YAML that `plan --law` reads")
@click.option(
    "--report", metavar="DIR", help="where a page with figures goes: the curves through the points, residuals"
)
@click.option("--overwrite", is_flag=True, help="replace FILE and DIR")
@click.option("--dry-run", is_flag=True, help="which runs and columns are read, and what would be written")
@CONFIG
@FORMAT
def fit(
    runs: tuple[str, ...],
    out: str | None,
    report: str | None,
    overwrite: bool,
    dry_run: bool,
    config_file: str | None,
    format_: str,
    **given: Any,
) -> None:
    """A law of your own runs: numbers with intervals, and what the runs cannot tell.

    RUNS is a table (CSV, TSV, JSON lines, Parquet) with named columns: params, sunk, tokens, loss; way, run and trunk
    where there are; or folders that `rekindle train` wrote. Names that trackers use are guessed, and told.

    \b
    rekindle fit runs.csv --dry-run
    rekindle fit runs.csv --out law.yaml
    rekindle fit runs.csv --form chinchilla --objective squares
    """
    options = resolved(FitConfig, given, config_file, out, report)
    echo(f"rekindle fit: {' '.join(runs)}", options)
    if dry_run:
        _fit_dry(runs, options.config, out, report, overwrite, format_)
        return
    from rekindle.report.fitting import question_in_words

    found = api.fit(runs, options, out=out, report=report, overwrite=overwrite, say=narrator()).to_dict()
    result(found, _fitted(found), format_)
    for note in found["notes"]:
        say(f"note: {note}")
    typed = shlex.join(runs)
    if out and (asked := question_in_words(found)):
        say(f"next:  rekindle plan --law {shlex.quote(out)} {asked}")
    elif not out:
        say(f"next:  rekindle fit {typed} --out law.yaml --report OUT")


def _fit_dry(
    runs: tuple[str, ...], config: FitConfig, out: str | None, report: str | None, overwrite: bool, format_: str
) -> None:
    from rekindle.api.laws import to_fit

    read, asked = to_fit(runs, config, out=out, report=report, overwrite=overwrite)
    ways = {way: int((read.labels["way"] == way).sum()) for way in read.ways}
    data = {"points": len(read), "ways": ways, "form": asked.form, "notes": list(read.notes),
            "writes": [path for path in (out, report) if path]}  # fmt: skip
    lines = [f"[dry-run] {counted(len(read), 'run')}: {', '.join(f'{number} {way}' for way, number in ways.items())}"]
    lines += [f"  {name:<8} {column.min():.4g} to {column.max():.4g}" for name, column in read.numbers.items()]
    lines.append(f"  form:    {data['form']}, {config.bootstrap} bootstrap fits of resampled {asked.by}s")
    lines.append(f"  writes:  {', '.join(data['writes']) or 'nothing; --out law.yaml and --report DIR would'}")
    result(data, "\n".join(lines), format_)
    for note in read.notes:
        say(f"note: {note}")


def _fitted(found: dict[str, Any]) -> str:
    rows = [("", "", "90 %, bootstrap", "90 %, profile")]
    for name, number in found["numbers"].items():
        rows.append((name, f"{number['value']:.5g}", _between(number, ""), _between(number, "profile_")))
    by, errors = found["bootstrap"], (found["rms"], found["rms_left_out"])
    lines = [f"{way}: L = {formula}" for way, formula in found["forms"].items()]
    lines += ["", table(rows, right=(1, 2, 3)), ""]
    lines.append(f"{counted(found['points'], 'point')}; {by['fits']} bootstrap fits by {by['by']} ({by['clusters']})")
    lines.append(f"error {errors[0]:.4f} nats on its points, {errors[1]:.4f} on runs left out")
    if found["rivals"]:
        held = [("form", "left out", "largest D1 held out", "largest D2 held out")]
        held += [(r["form"], *(f"{e:.4f}" for e in (r["left_out"], *r["held_out"].values()))) for r in found["rivals"]]
        lines += ["", table(held, right=(1, 2, 3))]
    if found["interaction"]:
        lines += ["", found["interaction"]["sentence"]]
    if found["next"]:
        lines += ["", found["next"]["sentence"]]
    return "\n".join(lines)


def _between(number: dict[str, Any], which: str) -> str:
    low, high = number[f"{which}low"], number[f"{which}high"]
    return f"{'-inf' if low is None else f'{low:.4g}'} to {'inf' if high is None else f'{high:.4g}'}"


COMMANDS = {"laws": laws, "plan": plan, "fit": fit, **SWEEP}
