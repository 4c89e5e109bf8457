"""`make bench`: every benchmark, each with its ratio to the limit in the same run, appended to results.md."""

from __future__ import annotations

import sys
import tempfile
from importlib import import_module
from pathlib import Path

ALL = (
    "startup",
    "laws",
    "bytes",
    "computed",
    "growth",
    "merge",
    "combine",
    "recipe",
    "training",
    "seq2seq",
    "recovery",
    "codec",
    "archives",
)


def main(chosen: list[str]) -> None:
    """Run the named benchmarks, or all; needs 20 GB of disc while it runs."""
    with tempfile.TemporaryDirectory(prefix="rekindle-bench-") as work:
        for name in chosen or ALL:
            import_module(f"benchmarks.{name}").main(Path(work))


if __name__ == "__main__":
    main(sys.argv[1:])
