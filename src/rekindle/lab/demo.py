"""The demo: one checkpoint recycled end to end, and compared at equal training FLOPs.

A small dense llama is trained on Python's own standard library and upcycled to 8 experts, top-2. From there three
ways on for the same FLOPs: train the upcycled model, continue the dense one, train the same mixture from scratch.

Expected on 2 CPU cores: about 6 minutes. The mixture from scratch ends far above the others. Which of the other two
is ahead depends on the regime, and that is the point: continuing dense wins while the parent is still improving
fast, upcycling once the parent is saturated and the second stage long enough (notes/LOG.md has both signs).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rekindle import api
from rekindle.config import resolve
from rekindle.errors import CheckFailed, RekindleError
from rekindle.lab.cost import times
from rekindle.methods import method_named
from rekindle.report.config import ReportConfig
from rekindle.store.manifest import read_manifest
from rekindle.train.config import InitConfig, TrainConfig
from rekindle.train.metrics import NAME as METRICS
from rekindle.train.metrics import summarise

SHAPE = {"hidden": 64, "layers": 2, "heads": 4, "ffn": 256, "context": 256}
EXPERTS = {"experts": 8, "top_k": 2}
FIRST_STAGE = 3_600_000  # tokens of the dense parent
SECOND_STAGE = 1_900_000  # tokens of the mixtures; the dense model gets as many more as it is cheaper
TRAINING = {"seq_len": 128, "batch_tokens": 4096, "lr": 3e-3}
VALIDATION = 32_768  # tokens of each evaluation
NOTE = (
    "The second stage here is about half as long as the first. How far the parent was trained and how long the second "
    "stage is decide who is ahead: at other sizes of this demo both answers were seen."
)

Say = Callable[[str], object]


@dataclass(frozen=True)
class Demo:
    page: Path
    verdict: str
    runs: list[Path]


def demo(out: Path, say: Say, *, scale: float = 1.0, overwrite: bool = False) -> Demo:
    """Run it all into `out`; `say` hears each command before it runs. `scale` shortens both stages (for tests).

    One that was cut off goes on where it stopped. Raises RekindleError where one has come to its end, or where
    something else lies in its folders, unless `overwrite`.
    """
    if (out / "report").exists() and not overwrite:
        raise RekindleError(f"{out} holds a demo that has come to its end.", hint="another OUT, or --overwrite")
    dense, moe, blank = out / "dense", out / "moe", out / "blank"
    upcycled, continued, scratch = out / "upcycled", out / "dense-continued", out / "moe-from-scratch"
    first, second = int(FIRST_STAGE * scale), int(SECOND_STAGE * scale)
    train = partial(_train, say=say, overwrite=overwrite, eval_tokens=max(1024, int(VALIDATION * scale)))

    say("(a) a small dense llama, trained on the sources of Python's standard library")
    _init(out / "start", say, overwrite, tokenizer="bpe:1024", **SHAPE)
    train(out / "start", dense, tokens=first, schedule="constant")

    say("(b) upcycled: each feed-forward becomes 8 equal experts behind a new router")
    typed = api.command("upcycle", [str(dense), str(moe)], resolve(method_named("upcycle").config, EXPERTS))
    say(f"    $ {typed}")
    if overwrite or not _is_there(moe, typed):
        api.upcycle(dense, **EXPERTS).save(moe, overwrite=overwrite, resume=not overwrite)

    say("(c) do the two compute the same function?")
    say(f"    $ rekindle verify {moe} --against {dense}")
    verdict = api.verify(moe, against=dense)
    if not verdict.held:
        raise CheckFailed("The upcycled model does not compute the parent's function.", where=moe)
    say(f"    logits differ by {verdict.relative_difference:.1e} of the largest: the promise (exact) holds")

    ratio = times(moe, dense, TRAINING["seq_len"])
    say(f"(d) three ways on at equal training FLOPs: a token costs the mixture {ratio:.2f} x the dense model's")
    train(moe, upcycled, tokens=second)
    train(dense, continued, tokens=int(second * ratio))
    _init(blank, say, overwrite, family="mixtral", tokenizer=str(dense), **SHAPE, **EXPERTS, seed=1)
    train(blank, scratch, tokens=second)

    say("(e) the report")
    runs = [upcycled, continued, scratch]
    say(f"    $ rekindle report {' '.join(map(str, runs))} --out {out / 'report'}")
    options = resolve(ReportConfig, {"title": "One dense checkpoint, three ways on", "verdict_note": NOTE})
    made = api.report(runs, out / "report", options, overwrite=overwrite)
    return Demo(made.page, made.verdict, runs)


def _init(out: Path, say: Say, overwrite: bool, **given: Any) -> None:
    options = resolve(InitConfig, given)
    typed = api.command("init", [str(out)], options)
    say(f"    $ {typed}")
    if overwrite or not _is_there(out, typed):
        api.init(out, options, overwrite=overwrite)


def _train(source: Path, out: Path, *, say: Say, overwrite: bool, **given: Any) -> None:
    options = resolve(TrainConfig, TRAINING | given)
    typed = api.command("train", [str(source), str(out)], options)
    say(f"    $ {typed}")
    if overwrite or not _is_there(out, typed):
        api.train(source, out, options, overwrite=overwrite, resume=not overwrite)
    summary = summarise(out / METRICS)
    say(
        f"    val loss {summary['val_loss_before']:.3f} -> {summary['val_loss']:.3f}"
        f" in {summary['seconds']:.0f} s, {summary['tokens_per_s']:,.0f} tokens/s"
    )


def _is_there(out: Path, command: str) -> bool:
    """Whether this very command has made `out`, in a demo that was cut off later."""
    manifest = read_manifest(out)
    return manifest is not None and manifest.lineage[-1:] != [] and manifest.lineage[-1].command == command
