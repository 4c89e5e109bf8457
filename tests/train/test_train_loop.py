"""Runs: what they compute, what they leave, what they refuse."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import pickle
import pkgutil
import re
import shutil
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from train_helpers import broken, curve, defaults, rows, write_corpus

from rekindle import api
from rekindle.apply.load import load_model
from rekindle.apply.moments import read_info
from rekindle.cli import main
from rekindle.errors import CheckFailed, Ended, RekindleError
from rekindle.store.folder import open_folder
from rekindle.store.manifest import read_manifest
from rekindle.train import step as step_module
from rekindle.train.device import reproducible
from rekindle.train.losses import cross_entropy
from rekindle.train.model import load_tokenizer
from rekindle.train.objectives import labelled
from rekindle.train.optimizer import load_optimizer, make_optimizer
from rekindle.train.state import work_folder
from rekindle.train.tokens import open_corpus

Run = Callable[..., tuple[Path, dict]]
Small = Callable[..., Path]


def test_what_a_run_leaves(small: Small, run: Run):
    src = small("mixtral", dtype="bfloat16")
    out, summary = run(src, tokens=12 * 256 + 100)
    assert {path.name for path in out.iterdir()} == {
        "config.json", "generation_config.json", "metrics.jsonl", "model.safetensors", "optimizer",
        "rekindle.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    before, after = open_folder(src), open_folder(out)
    layout = lambda folder: {n: (t.dtype, t.shape) for n, t in folder.tensors.items()}  # noqa: E731
    assert layout(before) == layout(after)
    assert after.config == before.config
    assert (summary["tokens"], summary["steps"]) == (12 * 256, 12)
    manifest = read_manifest(out)
    assert manifest is not None
    assert [record.verb for record in manifest.lineage] == ["init", "train"]
    record = manifest.lineage[-1]
    assert (record.tokens, record.flops) == (summary["tokens"], summary["flops"])
    assert (record.source, record.source_fingerprint) == (str(src), before.fingerprint)
    assert "validation loss" in record.summary
    assert not work_folder(out).exists()
    assert load_tokenizer(out).get_vocab() == load_tokenizer(src).get_vocab()


def test_metrics(small: Small, run: Run):
    out, summary = run(small("mixtral"))
    (described,) = rows(out, "run")
    steps, evals = rows(out, "step"), rows(out, "eval")
    assert (described["model_type"], described["tokens_planned"], described["device"]) == ("mixtral", 3072, "cpu")
    assert [row["tokens"] for row in steps] == [256 * n for n in range(1, 13)]
    assert [row["tokens"] for row in evals] == [0, 1024, 2048, 3072]
    assert steps[-1]["flops"] == evals[-1]["flops"] == summary["flops"]
    assert all(row["tokens_per_s"] > 0 and row["peak_memory"] > 10**6 for row in steps)
    assert all(0.9 < row["aux_loss"] < 4 and row["z_loss"] >= 0 and row["grad_norm"] > 0 for row in steps)
    last = evals[-1]
    assert [len(layer) for layer in last["expert_load"]] == [4, 4]
    assert [sum(layer) for layer in last["expert_load"]] == pytest.approx([1, 1], abs=1e-5)
    assert all(0 <= x <= 1 for x in last["expert_entropy"])
    assert len(last["dead_experts"]) == 2
    assert summary["val_loss"] == last["val_loss"] < summary["val_loss_before"] == evals[0]["val_loss"]
    assert sum(last["val_losses"]) / len(last["val_losses"]) == pytest.approx(last["val_loss"], abs=1e-5)
    assert "val_losses" not in evals[0]
    assert len(described["val_set"]) == 16


def test_a_dense_model_has_no_router_numbers(small: Small, run: Run):
    out, _ = run(small(), tokens=256)
    assert (rows(out, "step")[0]["aux_loss"], rows(out, "step")[0]["z_loss"]) == (None, None)
    assert rows(out, "eval")[0]["expert_load"] is None


def test_the_reported_loss_is_the_language_models_alone(small: Small, run: Run, corpus: Path):
    src = small("mixtral")
    out, _ = run(src, tokens=512, aux_loss=50.0, z_loss=50.0)
    batch = torch.from_numpy(open_corpus(str(corpus), load_tokenizer(src)).batch(0, 8, 32, seed=0))
    model = load_model(src)
    with torch.no_grad():
        expected = cross_entropy(model(input_ids=batch[:, :-1]).logits, batch[:, 1:]).item()
    first = rows(out, "step")[0]
    assert first["loss"] == pytest.approx(expected, rel=1e-6)
    assert first["aux_loss"] > 0.9  # and yet they were trained on
    plain, _ = run(src, "plain", tokens=512, aux_loss=0.0, z_loss=0.0)
    assert rows(plain, "step")[0]["grad_norm"] < first["grad_norm"] / 2
    assert rows(plain, "eval")[0] == rows(out, "eval")[0]


def test_the_update_is_adamw_by_hand(small: Small, run: Run, corpus: Path):
    src = small()
    out, _ = run(src, tokens=512, schedule="constant", warmup=0.0, clip=0.5)
    made = open_corpus(str(corpus), load_tokenizer(src))
    model = load_model(src)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), fused=False, foreach=False)
    for n in range(2):
        batch = torch.from_numpy(made.batch(8 * n, 8, 32, seed=0))
        cross_entropy(model(input_ids=batch[:, :-1]).logits, batch[:, 1:]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    for mine, theirs in zip(load_model(out).parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "mixtral"])
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_accumulated_small_batches_are_the_large_batch(small: Small, run: Run, family: str, micro_batch: int):
    whole, _ = run(small(family), "whole", aux_loss=0.0)
    parts, _ = run(small(family), "parts", aux_loss=0.0, micro_batch=micro_batch)
    for a, b in zip(rows(whole, "step"), rows(parts, "step"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
    assert rows(whole, "step")[0]["grad_norm"] == pytest.approx(rows(parts, "step")[0]["grad_norm"], rel=1e-5)


def test_checkpointing_changes_no_number(small: Small, run: Run):
    plain, _ = run(small("mixtral"), "plain")
    checkpointed, _ = run(small("mixtral"), "checkpointed", gradient_checkpointing=True)
    for a, b in zip(curve(plain), curve(checkpointed), strict=True):
        assert a.get("loss", 0) == pytest.approx(b.get("loss", 0), rel=1e-5)
        assert a.get("aux_loss", 0) == pytest.approx(b.get("aux_loss", 0), rel=1e-5)


def test_compile_is_asked_for(small: Small, run: Run, monkeypatch: pytest.MonkeyPatch):
    """Compiling for real takes a minute; that the numbers stay was checked by hand."""
    asked = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: asked.append(type(module).__name__))
    run(small(), tokens=256, compile=True)
    run(small(), "other", tokens=256)
    assert asked == ["LlamaForCausalLM"]


def test_bf16_arithmetic_is_close_and_reaches_the_experts(small: Small, run: Run, monkeypatch: pytest.MonkeyPatch):
    seen = set()
    grouped_mm = torch.nn.functional.grouped_mm

    def spy(a: torch.Tensor, b: torch.Tensor, **kw: Any) -> torch.Tensor:
        seen.add((a.dtype, b.dtype))
        return grouped_mm(a, b, **kw)

    monkeypatch.setattr(torch.nn.functional, "grouped_mm", spy)
    exact, _ = run(small("mixtral"), "exact", precision="fp32")
    assert seen == {(torch.float32, torch.float32)}
    seen.clear()
    rough, _ = run(small("mixtral"), "rough", precision="bf16")
    assert seen == {(torch.bfloat16, torch.bfloat16)}
    ends = [rows(out, "eval")[-1]["val_loss"] for out in (exact, rough)]
    assert ends[0] == pytest.approx(ends[1], rel=1e-2)
    assert {t.dtype for t in open_folder(rough).tensors.values()} == {"F32"}


@pytest.mark.slow
def test_the_same_run_twice_is_the_same(small: Small, run: Run):
    """On two threads, with three experts per token, where the order of additions would show."""
    torch.set_num_threads(2)
    try:
        runs = [run(small("qwen3_moe", top_k=3, hidden=128), name)[0] for name in ("a", "b")]
    finally:
        torch.set_num_threads(1)
    assert curve(runs[0]) == curve(runs[1])
    assert (runs[0] / "model.safetensors").read_bytes() == (runs[1] / "model.safetensors").read_bytes()
    assert not torch.are_deterministic_algorithms_enabled()


def test_runs_at_once_leave_the_settings_as_they_were():
    """They are the process's: the run that began second ends second."""
    first, second = reproducible(torch.device("cpu")), reproducible(torch.device("cpu"))
    with ExitStack() as stack:
        with first:
            stack.enter_context(second)
            assert torch.are_deterministic_algorithms_enabled()
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_another_pass_over_the_text_is_said(small: Small, run: Run, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, logger="rekindle"):
        out, summary = run(small(), tokens=40_000, batch_tokens=2048, lr=1e-3)
    assert summary["epochs"] > 1
    assert "passes over the training text" in caplog.text


def test_learning_rates_are_those_of_the_schedule(small: Small, run: Run):
    out, _ = run(small(), schedule="wsd", warmup=0.25, decay=0.25, lr=1e-3)
    rates = [row["lr"] / 1e-3 for row in rows(out, "step")]
    assert rates == pytest.approx([1 / 6, 3 / 6, 5 / 6, *[1] * 6, 5 / 6, 3 / 6, 1 / 6])


def test_continuing_a_schedule_and_its_optimizer_is_one_long_run(small: Small, run: Run, tmp_path: Path):
    """At the level of rates and moments: the data starts over, as the run is a new one."""
    first, _ = run(small(), "first", schedule="inverse-sqrt", warmup=0.25)
    saved = read_info(first / "optimizer")
    assert saved["schedule"]["start"] == 12 * 256
    state = str(first / "optimizer")
    second, _ = run(first, "second", schedule="continue", optimizer_state=state, warmup=0.0)
    rate = lambda step: 1e-2 * math.sqrt(3 / (step + 0.5))  # noqa: E731
    assert [row["lr"] for row in rows(second, "step")] == pytest.approx([rate(step) for step in range(12, 24)])
    assert set(read_info(second / "optimizer")["steps"].values()) == {24}
    assert read_info(second / "optimizer")["schedule"]["start"] == 24 * 256
    without, _ = run(first, "without", schedule="continue")  # found beside the weights; fresh moments
    assert set(read_info(without / "optimizer")["steps"].values()) == {12}
    with pytest.raises(RekindleError, match="no schedule to continue"):
        run(small(), "third", schedule="continue")


def test_a_saved_optimizer_fits_the_saved_model(small: Small, run: Run):
    out, _ = run(small("qwen3_moe"), tokens=512)
    model = load_model(out)
    optimizer = make_optimizer(model, 0.1, 0.95)
    load_optimizer(model, optimizer, open_folder(out).config, out / "optimizer")
    assert {int(state["step"]) for state in optimizer.state.values()} == {2}


def test_a_loss_that_is_no_number_stops_the_run(small: Small, run: Run, monkeypatch: pytest.MonkeyPatch):
    reference, _ = run(small(), "reference")
    real = labelled.cross_entropy
    calls = 0

    def sick(*args: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return real(*args) * (float("nan") if calls == 7 else 1.0)

    monkeypatch.setattr(labelled, "cross_entropy", sick)
    with pytest.raises(CheckFailed) as caught:
        run(small(), "out")
    assert "diverged in step 7 of 12: loss nan" in str(caught.value)
    assert "--resume (from step 6) with a lower --lr (now 0.01)" in str(caught.value)
    out, _ = run(small(), "out", resume=True)  # the sickness was the test's own, so the curve is the healthy one
    assert curve(out) == curve(reference)


def test_a_saved_state_that_is_itself_sick_is_not_to_be_resumed_again(
    small: Small, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Finite, and still too large for any loss: no lower rate from there on helps."""
    with monkeypatch.context() as patch:
        patch.setattr(labelled, "cross_entropy", fails_at(7, math.nan))
        with pytest.raises(CheckFailed, match=r"--resume \(from step 6\) with a lower --lr"):
            run(small(), "out")
    with monkeypatch.context() as patch:
        patch.setattr(labelled, "cross_entropy", fails_at(1, math.nan))
        with pytest.raises(CheckFailed, match="diverged in step 7 of 12") as caught:
            run(small(), "out", resume=True, lr=1e-4)
    assert "start afresh (--overwrite, without --resume) with a lower --lr (now 0.0001)" in str(caught.value)
    assert "--resume (from" not in str(caught.value)
    with monkeypatch.context() as patch:
        patch.setattr(labelled, "cross_entropy", fails_at(3, math.nan))
        with pytest.raises(CheckFailed, match=r"--resume \(from step 8\) with a lower --lr"):
            run(small(), "out", resume=True)
    out, _ = run(small(), "out", overwrite=True)
    assert curve(out) == curve(run(small(), "reference")[0])


def fails_at(number: int, factor: float) -> Callable[..., torch.Tensor]:
    """The loss, times `factor` when it is computed for that time."""
    calls = itertools.count(1)
    return lambda *args: cross_entropy(*args) * (factor if next(calls) == number else 1.0)


def test_a_gradient_that_is_no_number_stops_the_run_before_anything_is_saved(
    small: Small, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(math.inf))
    with pytest.raises(CheckFailed, match="step 1 of 12: loss .*, gradient norm inf"):
        run(small())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_source_that_is_not_finite_is_named_and_not_the_learning_rate(
    small: Small, run: Run, tmp_path: Path, value: float
):
    name = "model.layers.1.mlp.up_proj.weight"
    sick = broken(small(), tmp_path / "sick", name, value)
    with pytest.raises(CheckFailed, match=f"the source holds 1 NaN or infinite value in {name}\n") as caught:
        run(sick)
    assert "--lr" not in str(caught.value)
    assert "rekindle inspect SRC --nan" in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"sick"}


def test_a_first_loss_that_is_no_number_is_no_matter_of_the_rate(
    small: Small, run: Run, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(labelled, "cross_entropy", lambda *args: cross_entropy(*args) * math.nan)
    with pytest.raises(CheckFailed, match="no matter of --lr") as caught:
        run(small())
    assert "a lower --lr" not in str(caught.value)


@pytest.mark.parametrize("steps", [1, 4])
def test_an_update_that_makes_weights_infinite_is_never_saved(small: Small, run: Run, tmp_path: Path, steps: int):
    with pytest.raises(CheckFailed, match=r"diverged in step 1 of .: its update made weights NaN or infinite"):
        run(small(), tokens=steps * 256, save_every=256, lr=1e38, warmup=0.0, schedule="constant")
    assert not list(tmp_path.iterdir())


def test_moments_that_are_not_finite_are_refused(small: Small, run: Run, tmp_path: Path):
    out, _ = run(small())
    name = "model.layers.1.mlp.up_proj.weight.exp_avg_sq"
    sick = broken(out / "optimizer", tmp_path / "sick", name, math.nan, "optimizer.safetensors")
    with pytest.raises(CheckFailed, match=f"holds NaN or infinite values, in {name}"):
        run(out, "on", optimizer_state=str(sick))


def test_out_of_memory_says_what_to_lower(small: Small, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ):

        def fail(*_: Any, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(step_module, "forward", fail)
        with pytest.raises(RekindleError, match="Out of memory") as caught:
            run(small())
        assert "--micro-batch" in str(caught.value)
    assert not list(tmp_path.iterdir())


FULL = "Error while serializing: I/O error: No space left on device (os error 28)"


@pytest.mark.parametrize(
    ("where", "call", "goes_on"),
    [
        ("rekindle.train.state.save_file", 1, "then start it again"),
        ("rekindle.train.state.save_file", 4, r"then --resume \(from step 4\)"),
        ("rekindle.train.optimizer.write_moments", 1, r"then --resume \(from step 12\)"),
        ("rekindle.train.finish.save_model", 1, r"then --resume \(from step 12\)"),
    ],
)
def test_a_full_disc_leaves_the_last_state(
    small: Small, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str, call: int, goes_on: str
):
    reference, _ = run(small(), "reference")
    calls, real = 0, pkgutil.resolve_name(where)

    def full(*args: Any, **how: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise SafetensorError(FULL)
        return real(*args, **how)

    with monkeypatch.context() as patch:
        patch.setattr(where, full)
        with pytest.raises(RekindleError, match="The disc is full") as caught:
            run(small())
    assert re.search(goes_on, str(caught.value))
    assert not list(work_folder(tmp_path / "out").glob("state.new"))
    out, _ = run(small(), resume=True)
    assert curve(out) == curve(reference)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_resume_continues(
    small: Small, run: Run, monkeypatch: pytest.MonkeyPatch, number: int, tmp_path: Path
):
    reference, _ = run(small("mixtral"), "reference")
    real, calls, before = labelled.cross_entropy, 0, signal.getsignal(number)

    def interrupted(*args: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 6:
            os.kill(os.getpid(), number)
        return real(*args)

    monkeypatch.setattr(labelled, "cross_entropy", interrupted)
    with pytest.raises(KeyboardInterrupt, match="Stopped after step 6 of 12") as stopped:
        run(small("mixtral"), "out")
    again = pickle.loads(pickle.dumps(stopped.value))  # as from a worker
    assert isinstance(again, Ended)
    assert (again.number, str(again)) == (number, "Stopped after step 6 of 12.")
    assert signal.getsignal(number) == before
    with pytest.raises(RekindleError, match="unfinished run .* stopped after step 6"):
        run(small("mixtral"), "out")
    with pytest.raises(RekindleError, match="another one: seed was 0, is 1"):
        run(small("mixtral"), "out", resume=True, seed=1)
    out, _ = run(small("mixtral"), "out", resume=True)
    assert curve(out) == curve(reference)
    assert (out / "model.safetensors").read_bytes() == (reference / "model.safetensors").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"out", "reference"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_the_command_line_says_where_it_stopped(
    small: Small,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    number: int,
    code: int,
):
    real = labelled.cross_entropy

    def interrupted(*args: Any) -> torch.Tensor:
        os.kill(os.getpid(), number)
        monkeypatch.undo()
        return real(*args)

    words = [w for key, value in defaults(corpus).items() for w in (f"--{key.replace('_', '-')}", str(value))]
    source = str(small())
    before = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    monkeypatch.setattr(labelled, "cross_entropy", interrupted)
    try:
        with pytest.raises(SystemExit) as ended:
            main(["train", source, str(tmp_path / "out"), *words])
    finally:
        signal.signal(number, before)
    assert ended.value.code == code
    last = "Stopped after step 1 of 12. The same command with --resume goes on where it stopped."
    assert capsys.readouterr().err.splitlines()[-1] == last


def test_a_run_outside_the_main_thread(small: Small, run: Run):
    """Signals reach only the main thread; elsewhere a run goes without them."""
    found: list[dict] = []
    thread = threading.Thread(target=lambda: found.append(run(small(), tokens=256)[1]))
    thread.start()
    thread.join()
    assert found[0]["steps"] == 1


def test_overwrite(small: Small, run: Run):
    out, _ = run(small(), tokens=256)
    with pytest.raises(RekindleError, match="exists and is not empty"):
        run(small(), tokens=256)
    run(small(), tokens=512, overwrite=True)
    assert len(rows(out, "step")) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokens": 100}, "tokens is 100, less than one batch of 256"),
        ({"batch_tokens": 250}, "not a multiple of the 32 tokens of a sequence"),
        ({"seq_len": 128, "batch_tokens": 256}, "the model's context is 64"),
        ({"lr": 0.0}, "lr is 0.0, but it must be positive"),
        ({"lr": -1.0, "clip": -1.0}, "2 problems"),
        ({"beta2": 1.0}, r"beta2 is 1.0"),
        ({"micro_batch": 0}, "micro_batch is 0"),
        ({"data": "./nothing.txt"}, "no such file"),
        ({"trackers": ("guesswork",)}, "no tracker 'guesswork'"),
        ({"optimizer_state": "/nowhere"}, "holds no optimizer state"),
    ],
)
def test_refused(small: Small, run: Run, tmp_path: Path, changes: dict, said: str):
    with pytest.raises(RekindleError, match=said):
        run(small(), **changes)
    assert not list(tmp_path.iterdir())


def test_text_that_is_too_short_for_a_sequence(small: Small, run: Run, tmp_path: Path):
    (tmp_path / "short.jsonl").write_text('{"text": "a b"}\n{"text": "c d"}\n')
    with pytest.raises(RekindleError, match="too short for one sequence of 32"):
        run(small(), data=str(tmp_path / "short.jsonl"))


def copied(src: Path, to: Path, **config: Any) -> Path:
    import shutil

    shutil.copytree(src, to)
    path = to / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return to


def test_a_tokenizer_of_another_model(small: Small, run: Run, tmp_path: Path, corpus: Path):
    from rekindle.train.config import InitConfig
    from rekindle.train.init import init_model

    config = InitConfig(hidden=16, layers=1, heads=2, tokenizer="bpe:260", data=str(corpus))
    init_model(tmp_path / "narrow", config, command="", options={})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "narrow" / name).write_bytes((small() / name).read_bytes())
    with pytest.raises(RekindleError, match="ids go up to 299, but the model's vocabulary ends at 259"):
        run(tmp_path / "narrow")


def test_a_token_out_of_range(small: Small, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A cache that some other program touched."""
    monkeypatch.setenv("REKINDLE_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "data.jsonl"
    write_corpus(data)
    run(small(), data=str(data), tokens=256)
    (meta,) = (tmp_path / "cache" / "tokens").glob("*/meta.json")
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"largest_id": 300}))
    with pytest.raises(RekindleError, match="token 300, but the model's vocabulary ends at 299"):
        run(small(), "other", data=str(data), tokens=256)


def test_broken_sources(small: Small, run: Run, tmp_path: Path):
    with pytest.raises(RekindleError, match="does not exist"):
        run(tmp_path / "missing")
    with pytest.raises(RekindleError, match="'mamba' is not known"):
        run(copied(small(), tmp_path / "unknown", model_type="mamba"))
    with pytest.raises(RekindleError, match="is missing"):
        run(copied(small(), tmp_path / "deeper", num_hidden_layers=3))
    bare = copied(small(), tmp_path / "bare")
    for path in bare.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(RekindleError, match="No tokenizer can be loaded"):
        run(bare)


def test_trackers_hear_every_row(small: Small, run: Run, monkeypatch: pytest.MonkeyPatch):
    import accelerate

    heard: list[tuple[dict, int]] = []
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["tensorboard"])
    monkeypatch.setattr("rekindle.train.prepare.make_accelerator", lambda *_, **__: accelerate.Accelerator())
    monkeypatch.setattr(accelerate.Accelerator, "init_trackers", lambda *_: None)
    monkeypatch.setattr(accelerate.Accelerator, "log", lambda _, values, step: heard.append((values, step)))
    run(small(), tokens=512, trackers=("tensorboard",))
    assert [step for _, step in heard] == [0, 1, 2, 2]
    assert {"loss", "lr", "tokens_per_s"} <= heard[1][0].keys()


def test_defaults_train_in_a_real_config(corpus: Path):
    from rekindle.config import resolve
    from rekindle.train.config import TrainConfig

    config = resolve(TrainConfig, {"tokens": "50M", "trackers": "tensorboard,wandb"}).config
    assert (config.tokens, config.trackers) == (50_000_000, ("tensorboard", "wandb"))
    assert defaults(corpus).keys() <= set(vars(config))


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_each_weight_keeps_the_dtype_of_its_source(small: Small, run: Run, tmp_path: Path, family: str):
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    mixed, file = tmp_path / "mixed", "model.safetensors"
    shutil.copytree(small(family, dtype="bfloat16"), mixed)
    wide = lambda name: "norm" in name or "embed" in name or name.endswith("gate.weight")  # noqa: E731
    tensors = {n: x.float() if wide(n) else x for n, x in load_file(mixed / file).items()}
    save_file(tensors, mixed / file, metadata={"format": "pt"})
    out, _ = run(mixed, archive=str(tmp_path / "run.rk"))
    before, after = open_folder(mixed), open_folder(out)
    dtypes = {n: t.dtype for n, t in after.tensors.items()}
    assert set(dtypes.values()) == {"BF16", "F32"}
    assert dtypes == {n: t.dtype for n, t in before.tensors.items()}
    assert after.config == before.config
    api.unpack(f"{tmp_path / 'run.rk'}@12", tmp_path / "unpacked")
    stored, unpacked = load_file(out / file), load_file(tmp_path / "unpacked" / file)
    assert all(torch.equal(x, unpacked[n]) and x.dtype == unpacked[n].dtype for n, x in stored.items())
    assert AutoModelForCausalLM.from_pretrained(out).dtype == AutoModelForCausalLM.from_pretrained(mixed).dtype
