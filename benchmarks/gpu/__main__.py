"""`python -m benchmarks.gpu OUT`: all parts, checks first, in the order of their use."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is not deterministic; before torch
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.gpu import checks
from benchmarks.gpu.bench import DEVICE, Bench
from benchmarks.gpu.decoding import measure_decoding
from benchmarks.gpu.sizes import FULL, TINY
from benchmarks.gpu.training import measure_peak, measure_training


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for gpu.json and gpu.md")
    parser.add_argument("--budget", type=float, default=450, help="seconds; a part that is left with none is skipped")
    parser.add_argument(
        "--only", nargs="+", metavar="WORDS", help="parts whose names begin so; `peak` is always measured"
    )
    parser.add_argument("--tiny", action="store_true", help="small sizes, without a GPU too: to see that it runs")
    given = parser.parse_args()
    if DEVICE.type == "cpu" and not given.tiny:
        parser.error("no GPU here; --tiny runs without one")
    given.out.mkdir(parents=True, exist_ok=True)
    sizes = TINY if given.tiny else FULL
    with tempfile.TemporaryDirectory(prefix="rekindle-gpu-") as work:
        os.environ["REKINDLE_CACHE"] = f"{work}/cache"
        bench = Bench(given.out, Path(work), sizes, given.budget, (*given.only, "peak") if given.only else ("",))
        bench.part("GPU against CPU", 120, checks.processors)
        bench.part("resume", 75, checks.resume)
        bench.part("bf16 and verify", 60, checks.bf16)
        bench.part("peak", 20, measure_peak)
        for family in ("llama", "t5"):
            bench.part(f"training {family}", 60, partial(measure_training, family=family))
        for heads in sizes.kv_heads:
            bench.part(f"decoding, {heads} key-value heads", 120, partial(measure_decoding, heads=heads))
        bench.part("training llama, 32 rows a pass", 40, partial(measure_training, family="llama", micro_batch=32))
        bench.part("training mixtral", 100, partial(measure_training, family="mixtral"))
        for family in ("llama", "t5"):
            compiled = partial(measure_training, family=family, compile=True)
            bench.part(f"training {family}, compiled", 100, compiled)
    print(bench.section(), flush=True)
    return 1 if bench.undone else 0


if __name__ == "__main__":
    sys.exit(main())
