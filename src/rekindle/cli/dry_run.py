"""What a dry run says: tensors, bytes, memory, and what becomes of each."""

from __future__ import annotations

from itertools import islice
from typing import Any

from rekindle.anatomy import opaque_name
from rekindle.apply.parts import Part
from rekindle.apply.save import Job, nbytes_read
from rekindle.cli.out import count, nbytes, table
from rekindle.edit import Checkpoint
from rekindle.errors import counted, some

SHOWN = 4  # tensors named one by one


def dry_data(job: Job, part: Part | None, workers: int) -> dict[str, Any]:
    return {
        "tensors": len(job.plan.tensors),
        "bytes": job.nbytes,
        "shards": len(job.share(None)),
        "peak_memory": job.memory(workers),
        "measured": {"count": len({m.name for m in job.measurements}), "bytes": job.nbytes_measured},
        "fates": job.plan.counts,
        "dropped": job.plan.dropped,
        "opaque": _opaque(job),
        "parameters": job.checkpoint.parameters(),
        "promise": {"kind": job.checkpoint.promise.kind, "text": job.checkpoint.promise.text},
        "notes": job.checkpoint.notes,
        "config": job.plan.config,
    } | ({"part": _part(job, part)} if part else {})


def _opaque(job: Job) -> list[str]:
    """Tensors of the result that no row of its table names."""
    return [name for role in job.checkpoint.opaque if (name := opaque_name(role)) is not None]


def _part(job: Job, part: Part) -> dict[str, Any]:
    own = job.share(part)
    size = sum(shard.nbytes for shard in own)
    return {"part": str(part), "shards": len(own), "bytes": size, "measured": nbytes_read(job.needed(part))}


def dry_text(job: Job, part: Part | None, workers: int) -> str:
    rows = [("", "tensors", "bytes")]
    rows += [(fate, str(n["tensors"]), nbytes(n["bytes"])) for fate, n in job.plan.counts.items()]
    if job.moments:
        rows.append(("moments", str(len(job.moments)), nbytes(sum(x.nbytes for x in job.moments.values()))))
    rows.append(("total", str(len(job.plan.tensors) + len(job.moments)), nbytes(job.nbytes)))
    lines = ["[dry-run] " + job.checkpoint.summary + ", " + parameters(job.checkpoint)]
    lines.append(table(rows, indent=2, right=(1, 2)))
    changed = len(job.plan.tensors) - job.plan.counts["copied"]["tensors"]
    for name, fate in islice(job.plan.changed(), SHOWN):
        expr = job.plan.tensors[name]
        lines.append(f"  {fate}: {name} {expr.dtype} {list(expr.shape)}")
    lines += [f"  ... and {changed - SHOWN} more"] if changed > SHOWN else []
    lines.append(f"  dropped: {', '.join(job.plan.dropped) or 'nothing'}")
    if unknown := _opaque(job):
        lines.append(f"  opaque:  {counted(len(unknown), 'tensor')} that no table names: {some(unknown, SHOWN)}")
    if job.measurements:
        texts = sorted({m.data for m in job.measurements if m.data})
        by = "".join(f", and the source run on {text}" for text in texts)
        lines.append(
            f"  measure: {len({m.name for m in job.measurements})} tensors, {nbytes(job.nbytes_measured)} read{by}"
        )
    lines.append(f"  shards:  {len(job.share(None))}")
    if part:
        own = _part(job, part)
        measured = f", after measuring {nbytes(own['measured'])}" if own["measured"] else ""
        lines[-1] += f", of which part {part} writes {own['shards']}: {nbytes(own['bytes'])}{measured}"
    lines.append(f"  memory:  at most {nbytes(job.memory(workers))} of blocks, {workers} workers")
    lines.append(f"  promise: {job.checkpoint.promise.kind}: {job.checkpoint.promise.text}")
    return "\n".join(lines)


def cost_text(cost: dict[str, Any]) -> str:
    """Of `api.train_cost`, or `api.init_cost`."""
    if "steps" not in cost:
        most = f"vocabulary of at most {cost['vocab_size']}"
        return f"[dry-run] {_parameters(cost['parameters'])}, {most}, at most {nbytes(cost['bytes'])} of weights"
    saves, out, state = cost["saves"], nbytes(cost["bytes"]["out"]), nbytes(cost["bytes"]["state"])
    time = "unknown: no run of this model on this device has left its speed beside it"
    if cost["hours"]:
        time = f"{cost['hours']:.3g} hours at the {count(cost['tokens_per_s'])} tokens/s that the parent's own run had"
    goes_on = "; ".join([f"from step {cost['from_step']}: what follows is of the rest", *cost["changes"]])
    rows = [
        ("steps", f"{cost['steps']:,}, {cost['tokens']:,} tokens of {cost['data']} (not read)"),
        *([("goes on", goes_on)] if cost["from_step"] else []),
        ("rate", f"{cost['lr']:g} at its peak, {cost['schedule']}"),
        ("FLOPs", f"{cost['flops']:.3g}"),
        ("memory", f"at least {nbytes(cost['memory'])}: weights, gradients, moments, logits; activations on top"),
        ("evaluations", str(cost["evaluations"])),
        ("saved", f"{saves} state{'s' * (saves > 1)} of {state}, two at a time"),
        ("OUT", f"{out}, with moments"),
        ("time", time),
    ]
    return f"[dry-run] {_parameters(cost['parameters'])}\n{table(rows, indent=2)}"


def parameters(checkpoint: Checkpoint) -> str:
    """46.70B parameters, 12.88B active"""
    return _parameters(checkpoint.parameters())


def _parameters(n: dict[str, int]) -> str:
    if n["total"] == n["active"]:
        return f"{count(n['total'])} parameters"
    return f"{count(n['total'])} parameters, {count(n['active'])} active"
