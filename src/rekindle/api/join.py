"""From parts to the whole."""

from __future__ import annotations

from pathlib import Path

from rekindle.apply.join import join as join_parts
from rekindle.apply.save import check_finite
from rekindle.store.lineage import last_sources
from rekindle.store.manifest import read_manifest


def join(out: str | Path) -> Path:
    """Make one checkpoint of the parts that `save(out, part="1/8")` wrote: the same files as a single write.

    Returns `out`. Raises RekindleError with every part and shard that is missing or does not belong, CheckFailed where
    computed values are NaN or infinite.
    """
    out = Path(out)
    written = join_parts(out)
    manifest = read_manifest(out)
    sources = last_sources(manifest.lineage) if manifest else []
    check_finite(written, out, *(sources or [str(out)]))
    return out
