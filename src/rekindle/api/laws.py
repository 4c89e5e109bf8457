"""laws, plan, fit: what scaling laws say before anything is spent, and laws of your own runs."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rekindle.anatomy import Nameless
from rekindle.anatomy.counts import cached, dense_parameters, parameters_of
from rekindle.anatomy.settings import meaning
from rekindle.api.options import takes
from rekindle.api.saving import command
from rekindle.api.source import place
from rekindle.config import Resolved, resolve
from rekindle.errors import RekindleError, counted
from rekindle.laws.config import FitConfig, PlanConfig
from rekindle.report.text import nbytes
from rekindle.store.publish import check_free, check_spares
from rekindle.store.system import explained

if TYPE_CHECKING:
    from rekindle.laws.fitted import Asked, Fitted
    from rekindle.laws.plan import Checkpoint, Plan
    from rekindle.laws.table import Table

_FEED_FORWARD = ("ffn.gate", "ffn.up", "ffn.down")  # what each expert has a copy of


def laws() -> dict[str, dict[str, Any]]:
    """The published laws by name: title, source, how sure, and for each row form, numbers and domain."""
    from rekindle.laws.law import published

    return {
        law.name: {
            "title": law.title,
            "source": law.source,
            "seen": law.seen,
            "unit": law.unit,
            "note": law.note,
            "rows": {
                name: {
                    "form": row.form.name,
                    "formula": row.form.formula,
                    "coefficients": dict(row.values),
                    "params": row.params,
                    "domain": {variable: list(limits) for variable, limits in row.domain.items()},
                }
                for name, row in law.rows.items()
            },
        }
        for law in published().values()
    }


@takes(PlanConfig)
def plan(
    options: Resolved[PlanConfig] | None = None,
    *,
    out: str | Path | None = None,
    html: str | Path | None = None,
    overwrite: bool = False,
    **given: Any,
) -> Plan:
    """Upcycle, continue, or start over?

    The answer has the loss of each option with an interval (nats per token), where curves cross (tokens), a verdict,
    the best size for the budget, and costs; `to_dict()` has all of it as plain values. The folder `out` gets the figure
    (PNG, SVG, CSV) and the page; `html` the page alone, one file that recomputes all of it in the browser.
    """
    from rekindle.laws.law import law_named
    from rekindle.laws.plan import Checkpoint
    from rekindle.laws.plan import plan as answer

    options = options or resolve(PlanConfig, given)
    config = options.config
    if out is not None:
        check_spares(Path(out), None, config.ckpt, config.law, html)
    if html is not None:
        check_spares(Path(html), None if config.ckpt is None else place(config.ckpt), config.law)
        _writable(html, "html", overwrite)
    known = _checkpoint(config.ckpt) if config.ckpt is not None else Checkpoint()
    found = answer(law_named(config.law), config, known)
    if out is not None or html is not None:
        from rekindle.report.decision import page, write_plan

        further = _further(options)
        if out is not None:
            write_plan(found, Path(out), further=further, overwrite=overwrite)
        if html is not None:
            with explained(Path(html), "another --html"):
                Path(html).write_text(page(found, further), encoding="utf-8")
    return found


def _further(options: Resolved[PlanConfig]) -> str:
    """The flags that were given, but for those that the page's sliders stand for."""
    moved = ("params", "sunk", "tokens", "experts", "budget_flops", "days")
    given = {
        name: o["value"] for name, o in options.options().items() if o["origin"] != "default" and name not in moved
    }
    return "".join(f" --{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in given.items())


def _writable(path: str | Path, flag: str, overwrite: bool) -> None:
    """Refuse a file that cannot be written, before anything is computed for it."""
    path = Path(path)
    if path.is_dir():
        raise RekindleError(f"{path} is a folder.", hint=f"--{flag} {path / 'FILE'}")
    if path.exists() and not overwrite:
        raise RekindleError(f"{path} exists.", hint=f"another --{flag}, or --overwrite")
    if not path.absolute().parent.is_dir():
        raise RekindleError(f"The folder {path.parent} is not there.", hint=f"mkdir -p {path.parent}")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise RekindleError("No permission to write here.", where=path, hint=f"another --{flag}")


def _checkpoint(source: str | Path) -> Checkpoint:
    """Size, shape and trained tokens of a dense checkpoint, from headers and lineage."""
    from rekindle.api.model import open
    from rekindle.laws.plan import Checkpoint
    from rekindle.store.lineage import origins, sunk
    from rekindle.store.manifest import read_manifest

    checkpoint = open(source).checkpoint
    family, s = checkpoint.family, checkpoint.settings
    if isinstance(family, Nameless):
        raise family.refusing("plan")
    if s.num_experts:
        what = f"{source} has {s.num_experts} experts already: the laws here start from a dense model."
        raise RekindleError(what, hint="the dense checkpoint that it was made from")
    manifest = read_manifest(checkpoint.folder.path)
    lineage = manifest.lineage if manifest else []
    unrecorded = tuple(origins(lineage))
    total = checkpoint.parameters()["total"]
    written, read = (2.0 * values for values in cached(family, s))  # bytes in bf16
    notes = [f"this {family.model_type} {meaning('output', s.output)}: published laws are of decoders alone"]
    if read:
        notes.append(f"the KV cache is that of a token which is written; one that is read takes {nbytes(read)}")
    return Checkpoint(
        params=total,
        sunk=None if unrecorded else sunk(lineage).tokens or None,
        unrecorded=unrecorded,
        feed_forward=parameters_of(family, s, *_FEED_FORWARD) / total,
        kv_bytes=written,
        notes=() if s.output == "causal" else tuple(notes),
    )


@takes(FitConfig)
def fit(
    sources: str | Path | Sequence[str | Path],
    options: Resolved[FitConfig] | None = None,
    *,
    out: str | Path | None = None,
    report: str | Path | None = None,
    overwrite: bool = False,
    say: Callable[[str], object] = lambda text: None,
    **given: Any,
) -> Fitted:
    """Fit a law to runs: a table with named columns, or folders that `train` wrote.

    The table is CSV, TSV, JSON lines or Parquet. `out` is written as a law file that `plan` reads, the folder `report`
    as a page with the curves through the points. `say` hears of each part of the work as it begins. `to_dict()` of the
    answer has every number with its intervals.
    """
    from rekindle.laws.fitted import fitted
    from rekindle.laws.write import law_of, write_law

    options = options or resolve(FitConfig, given)
    config = options.config
    sources = [sources] if isinstance(sources, (str, Path)) else list(sources)
    table, _ = to_fit(sources, config, out=out, report=report, overwrite=overwrite)
    found = fitted(table, config, say)
    if out is not None:
        with explained(Path(out), "another --out"):
            write_law(law_of(found.found, found.drawn, Path(out).stem), Path(out))
    if report is not None:
        from rekindle.report.fitting import write_fit

        typed = command("fit", [str(source) for source in sources], options)
        write_fit(found, Path(report), command=typed, overwrite=overwrite)
    return found


def to_fit(
    sources: Sequence[str | Path],
    config: FitConfig,
    *,
    out: str | Path | None = None,
    report: str | Path | None = None,
    overwrite: bool = False,
) -> tuple[Table, Asked]:
    """The runs that `fit` would fit, and how. Raises RekindleError for all that it refuses but for what fails in it."""
    from rekindle.laws.fitted import asked_of

    if report is not None:
        check_spares(Path(report), None, *sources, out)
        check_free(Path(report), overwrite)
    if out is not None:
        check_spares(Path(out), None, *sources)
        _writable(out, "out", overwrite)
        if report is not None and Path(out).resolve().is_relative_to(Path(report).resolve()):
            what = f"The law {out} would lie in {report}, which the page replaces."
            raise RekindleError(what, hint="another --out, or another --report")
    table = _table([Path(source) for source in sources], config)
    return table, asked_of(table, config)


def _table(sources: Sequence[Path], config: FitConfig) -> Table:
    from rekindle.laws.read import read_table
    from rekindle.laws.table import make_table

    limit = float("inf") if config.max_loss is None else config.max_loss
    if all(source.is_dir() for source in sources):
        return make_table([_ending(source) for source in sources], counted(len(sources), "run"), limit)
    if len(sources) > 1:
        raise RekindleError("Give one table, or folders of runs.", hint="rekindle fit runs.csv")
    pairs = [pair.partition("=") for pair in config.columns]
    if wrong := [name for name, equals, column in pairs if not (name and equals and column)]:
        raise RekindleError(f"columns has {wrong[0]!r}, which names nothing.", hint="--columns params=N,tokens=D2")
    return read_table(sources[0], {name: column for name, _, column in pairs}, limit)


def _ending(folder: Path) -> dict[str, Any]:
    """How a training run ended, as a row of a table.

    N1 counts the dense model, also where a mixture was trained from scratch: its active parameters less those of all
    experts but one and of the routers.
    """
    from rekindle.api.model import open
    from rekindle.report.runs import read_runs
    from rekindle.store.lineage import before, sunk

    (run,) = read_runs([folder])
    checkpoint = open(folder).checkpoint
    experts = checkpoint.settings.num_experts
    verbs = [record.verb for record in run.lineage]
    grown = [i for i, verb in enumerate(verbs) if verb not in ("init", "train", "rewrite")]
    spent, total = sunk(before(run.lineage, grown[-1]) if grown else []).tokens, sunk(run.lineage).tokens
    way = (
        {"upcycle": "upcycled"}.get(verbs[grown[-1]], verbs[grown[-1]]) if grown else "scratch" if experts else "dense"
    )
    source = run.lineage[grown[-1]].source if grown else None
    return {
        "way": way,
        "params": dense_parameters(checkpoint.family, checkpoint.settings),
        "sunk": spent,
        "tokens": total - spent,
        "experts": max(experts, 1),
        "loss": run.final.loss,
        "run": str(folder),
        "trunk": source or str(folder),
    }
