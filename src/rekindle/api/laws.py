"""laws, plan: what scaling laws say, before anything is spent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rekindle.config import Resolved, resolve
from rekindle.errors import RekindleError

if TYPE_CHECKING:
    from rekindle.laws.config import PlanConfig
    from rekindle.laws.plan import Checkpoint, Plan

_FEED_FORWARD = ("ffn.gate", "ffn.up", "ffn.down")  # what each expert has a copy of


def laws() -> dict[str, dict[str, Any]]:
    """The published laws by name: title, source, how sure, and for each row form, numbers and domain."""
    from rekindle.laws.law import published

    return {
        law.name: {
            "title": law.title,
            "source": law.source,
            "seen": law.seen,
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


def plan(options: Resolved[PlanConfig] | None = None, **given: Any) -> Plan:
    """Upcycle, continue, or start over? Options: laws.config.PlanConfig.

    The answer has the loss of each option with an interval (nats per token), where curves cross (tokens), a verdict,
    the best size for the budget, and costs; `to_dict()` has all of it as plain values.
    """
    from rekindle.laws.config import PlanConfig
    from rekindle.laws.law import law_named
    from rekindle.laws.plan import Checkpoint
    from rekindle.laws.plan import plan as answer

    config = (options or resolve(PlanConfig, given)).config
    known = _checkpoint(config.ckpt) if config.ckpt is not None else Checkpoint()
    return answer(law_named(config.law), config, known)


def _checkpoint(source: str | Path) -> Checkpoint:
    """Size, shape and trained tokens of a dense checkpoint, from headers and lineage."""
    from rekindle.api.model import open
    from rekindle.laws.plan import Checkpoint
    from rekindle.store.manifest import read_manifest

    checkpoint = open(source).checkpoint
    s = checkpoint.settings
    if s.num_experts:
        what = f"{source} has {s.num_experts} experts already: the laws here start from a dense model."
        raise RekindleError(what, hint="the dense checkpoint that it was made from")
    manifest = read_manifest(checkpoint.folder.path)
    total = checkpoint.parameters()["total"]
    branches = [x for role, x in checkpoint.tensors.items() if role.part.startswith(_FEED_FORWARD)]
    return Checkpoint(
        params=total,
        sunk=sum(record.tokens for record in manifest.lineage) or None if manifest else None,
        feed_forward=sum(x.num_rows * x.row_size for x in branches) / total,
        kv_bytes=2.0 * 2 * s.num_layers * s.num_kv_heads * s.head_dim,
    )
