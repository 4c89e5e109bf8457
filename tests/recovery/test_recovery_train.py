"""Training in a pipeline of processes, whole: with no failure, and with real ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from api.commands import refused
from safetensors.torch import load_file
from store.folders import hashes
from train.train_helpers import defaults, recoveries, rows

import rekindle
from rekindle import api
from rekindle.errors import CheckFailed, RekindleError

pytestmark = pytest.mark.xdist_group("recovery")  # each sees to it that no process is left behind

QUICK = {"tokens": 2048, "eval_every": 2048, "save_every": 1024}


def options(corpus: Path, **changes) -> dict:
    return {**defaults(corpus), "micro_batch": 2, **QUICK, **changes}


def left_behind() -> list[str]:
    """Workers of these tests that still live: they, and where they come from, have one command line."""
    found = psutil.process_iter(["cmdline", "environ"])
    named = [one for one in found if "rekindle.recovery" in " ".join(one.info["cmdline"] or [])]
    key = "REKINDLE_CACHE"
    ours = [one for one in named if (one.info["environ"] or {}).get(key) == os.environ[key]]
    return [str(one) for one in ours if one.ppid() in {other.pid for other in ours}]


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path):
    yield
    until = time.monotonic() + 10
    while left_behind() and time.monotonic() < until:
        time.sleep(0.1)
    assert left_behind() == []
    assert not list(tmp_path.glob("*.workers.json*"))


def losses(out: Path) -> list[float]:
    steps = rows(out, "step")
    assert [row["step"] for row in steps] == list(range(1, len(steps) + 1))  # each once
    return [row["loss"] for row in steps]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "changes", "how"),
    [
        ("llama", {"tie_embeddings": True}, {"pipeline": "1f1b"}),
        ("mixtral", {}, {"pipeline": "gpipe"}),
    ],
)
def test_with_no_failure_it_is_the_training_of_one_process(small, corpus, tmp_path, family, changes, how):
    source = small(family, layers=4, **changes)
    shared = options(corpus, tokens=5120, archive=str(tmp_path / "run.rk"))
    for name, more in (("one", {}), ("many", {"stages": 4, **how})):
        rekindle.train(source, tmp_path / name, **shared | {"archive": str(tmp_path / f"{name}.rk")}, **more)
    assert losses(tmp_path / "many")[:20] == pytest.approx(losses(tmp_path / "one")[:20], rel=1e-5)
    for kind, name in (("step", "aux_loss"), ("step", "grad_norm"), ("eval", "val_loss"), ("eval", "expert_load")):
        one, many = ([row.get(name) for row in rows(tmp_path / out, kind)] for out in ("one", "many"))
        assert len(one) == len(many)
        for a, b in zip(one, many, strict=True):
            assert b == pytest.approx(a, rel=1e-3) if isinstance(a, float) else type(a) is type(b)
    assert rekindle.evaluate(tmp_path / "many", data=str(corpus), seq_len=32)["loss"] == pytest.approx(
        rekindle.evaluate(tmp_path / "one", data=str(corpus), seq_len=32)["loss"], rel=1e-4
    )
    for folder in ("optimizer",):
        assert {path.name for path in (tmp_path / "many" / folder).iterdir()} == {
            path.name for path in (tmp_path / "one" / folder).iterdir()
        }
    assert all(row["peak_memory"] > 10**8 for row in rows(tmp_path / "many", "step"))  # of a stage, torch included
    one, many = (api.archive_info(tmp_path / f"{name}.rk")["steps"] for name in ("one", "many"))
    assert [step["step"] for step in one] == [step["step"] for step in many]


MOMENTS = "1:1:begin,2:1:forward,3:2:backward,4:1:ready,5:2:commit,6:1:committed"


@pytest.mark.slow
@pytest.mark.parametrize("recover", ["checkfree", "checkfree+", "shadow", "copy", "random"])
def test_a_stage_that_is_killed_at_any_moment_is_made_again(small, corpus, tmp_path, recover):
    source = small(layers=4)
    how = options(corpus, stages=4, recover=recover, inject=MOMENTS, shadow_every=2)
    again = recover in ("checkfree", "shadow")
    for out in ("out", "again")[: 1 + again]:
        rekindle.train(source, tmp_path / out, **how)
        told = recoveries(tmp_path / out)
        assert [(row["step"], row["stage"], row["policy"]) for row in told] == [
            (1, 1, recover), (2, 1, recover), (3, 2, recover), (4, 1, recover), (6, 2, recover), (7, 1, recover)
        ]  # fmt: skip
        assert all(0 < row["seconds"] < 60 for row in told)
        apart = [row.get("distance") for row in told]
        if recover == "checkfree":  # strangers, until stage 1 is made of 2, and 2 of 1
            assert 1.3 < apart[0] < 1.5
            assert min(apart) < 1.2
        else:
            assert (recover == "checkfree+") or set(apart) == {None}
    if again:  # the same failures give the same bits
        assert losses(tmp_path / "out") == losses(tmp_path / "again")
        one, other = hashes(tmp_path / "out"), hashes(tmp_path / "again")
        assert one["model.safetensors"] == other["model.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recover", "inject"),
    [("shadow", "5:1:begin,5:2:begin"), ("checkfree", "5:0:backward"), ("checkpoint", "5:2:ready")],
)
def test_what_nothing_can_be_made_of_goes_back_to_the_saved_state(small, corpus, tmp_path, recover, inject):
    """And so gives what a run without failures gives."""
    source, shared = small(layers=4), options(corpus, stages=4, recover=recover)
    rekindle.train(source, tmp_path / "whole", **shared)
    rekindle.train(source, tmp_path / "out", **shared, inject=inject)
    assert {row["policy"] for row in recoveries(tmp_path / "out")} == {"checkpoint"}
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")
    assert hashes(tmp_path / "out")["model.safetensors"] == hashes(tmp_path / "whole")["model.safetensors"]


@pytest.mark.slow
def test_redundant_stages_lose_nothing(small, corpus, tmp_path):
    """And so give what a run without failures gives; two neighbours at once go back to the saved state."""
    source = small("mixtral", layers=4, tie_embeddings=True)
    shared = options(corpus, stages=4, recover="redundant")
    rekindle.train(source, tmp_path / "whole", **shared)
    inject = "1:0:begin,2:3:forward,3:1:commit,3:3:committed,5:2:ready,6:1:begin,6:2:begin"
    rekindle.train(source, tmp_path / "out", **shared, inject=inject)
    told = [(row["step"], row["stage"], row["policy"]) for row in recoveries(tmp_path / "out")]
    exact = [(1, 0), (2, 3), (4, 1), (4, 3), (5, 2)]
    assert told == [(*at, "redundant") for at in exact] + [(6, 1, "checkpoint"), (6, 2, "checkpoint")]
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


@pytest.mark.slow
def test_both_ends_have_shadows(small, corpus, tmp_path):
    how = options(corpus, stages=2, recover="shadow", inject="3:0:forward,5:1:backward")
    rekindle.train(small(layers=4), tmp_path / "out", **how)
    assert [row["policy"] for row in recoveries(tmp_path / "out")] == ["shadow", "shadow"]
    assert losses(tmp_path / "out")[-1] < losses(tmp_path / "out")[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "policy"),
    [
        ({"stages": 2, "inject": "5:0:begin,7:1:backward"}, "shadow"),
        ({"stages": 2, "inject": "5:0:begin", "recover": "checkfree"}, "checkpoint"),
        ({"stages": 4, "inject": "3:0:commit,5:1:begin,6:2:begin,7:3:begin", "recover": "checkfree+"}, "checkfree+"),
    ],
)
def test_stages_that_hold_the_same_embeddings_agree_on_them(small, corpus, tmp_path, how, policy):
    source = small(layers=4, tie_embeddings=True, dtype="bfloat16")
    rekindle.train(source, tmp_path / "out", **options(corpus, **how))
    assert {row["policy"] for row in recoveries(tmp_path / "out")} == {policy}
    told = rows(tmp_path / "out", "eval")[-1]["val_loss"]
    sizes = {"data": str(corpus), "seq_len": 32, "tokens": 256}
    assert rekindle.evaluate(tmp_path / "out", **sizes)["loss"] == pytest.approx(told, abs=0.02)  # rounded to bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("recover", ["checkfree", "shadow"])
def test_moments_of_a_stage_come_from_its_neighbours_where_that_is_asked(small, corpus, tmp_path, recover):
    """After the last of 8 steps' commits: those that begin anew have seen as many updates as came since."""
    how = options(corpus, stages=4, recover=recover, inject="5:1:begin", optimizer_state=None)
    seen = {}
    for moments in ("reset", "average", "copy"):
        rekindle.train(small(layers=4), tmp_path / moments, **how, recover_moments=moments)
        info = json.loads((tmp_path / moments / "optimizer" / "optimizer.json").read_text())
        seen[moments] = {name: step for name, step in info["steps"].items() if "layers.1." in name}
    assert set(seen["reset"].values()) == {3}
    assert set(seen["average"].values()) == set(seen["copy"].values()) == {8}
    ends = {moments: losses(tmp_path / moments) for moments in seen}
    assert ends["reset"][:6] == ends["average"][:6] == ends["copy"][:6]
    assert len({tuple(x) for x in ends.values()}) == 3


@pytest.mark.slow
def test_shadows_are_held_from_the_first_step_on(small, corpus, tmp_path):
    how = options(corpus, stages=4, inject="0:1:begin,5:1:begin,5:2:begin,7:1:begin")
    rekindle.train(small(layers=4), tmp_path / "out", **how)
    told = [(row["step"], row["policy"]) for row in recoveries(tmp_path / "out")]
    assert told == [(0, "shadow"), (5, "checkpoint"), (5, "checkpoint"), (7, "shadow")]  # of two, one held the other's
    assert len(losses(tmp_path / "out")) == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "words"),
    [({"recover": "none"}, "The process of stage 1, 2 died"),
     ({"recover": "copy", "on_adjacent": "stop"}, "nothing is left to make it of: stage 1, which is to stand in")],
)  # fmt: skip
def test_a_run_that_ends_with_its_stage_goes_on_from_its_state(small, corpus, tmp_path, how, words):
    source, shared = small(layers=4), options(corpus, stages=4)
    with pytest.raises(CheckFailed, match=words):
        rekindle.train(source, tmp_path / "out", **shared | how, inject="6:1:begin,6:2:begin")
    assert not (tmp_path / "out").exists()
    rekindle.train(source, tmp_path / "out", **shared | how, resume=True)
    rekindle.train(source, tmp_path / "whole", **shared)
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")


@pytest.mark.slow
def test_a_stage_that_dies_whenever_it_tries_ends_the_run_in_a_sentence(small, corpus, tmp_path, monkeypatch):
    from rekindle.recovery import pipeline
    from rekindle.recovery.injected import Injected

    monkeypatch.setattr(pipeline, "MOST", 4)
    monkeypatch.setattr(Injected, "due", lambda self, step, stage, kind: "begin" if (step, stage) == (3, 1) else None)
    with pytest.raises(CheckFailed, match="Stage 1 died, and in step 4 a stage has died 4 times already"):
        rekindle.train(small(layers=4), tmp_path / "out", **options(corpus, stages=2))


@pytest.mark.slow
@pytest.mark.parametrize("recover", ["checkpoint", "none"])
def test_states_are_saved_while_steps_go_on_and_waited_for_where_they_are_needed(
    small, corpus, tmp_path, monkeypatch, recover
):
    from rekindle.recovery.pipeline import Pipeline
    from rekindle.train import session

    save, take, taken, seen = session.save_state, Pipeline._step, threading.Event(), []

    def slowly(work: Path, *given, step: int, **named) -> None:
        if step == 4 and taken.wait(20):
            seen.append(step)
            time.sleep(1)  # meanwhile the next one dies
        save(work, *given, step=step, **named)

    def step(self, at: int) -> None:
        take(self, at)
        if at == 5:
            taken.set()

    monkeypatch.setattr(session, "save_state", slowly)
    monkeypatch.setattr(Pipeline, "_step", step)
    source, how = small(layers=4), options(corpus, stages=2, recover=recover, inject="6:1:begin")
    if recover == "none":
        with pytest.raises(CheckFailed, match="died"):
            rekindle.train(source, tmp_path / "out", **how)
        rekindle.train(source, tmp_path / "out", **how | {"inject": None}, resume=True)
    else:
        rekindle.train(source, tmp_path / "out", **how)
        assert [(row["step"], row["policy"]) for row in recoveries(tmp_path / "out")] == [(6, "checkpoint")]
    assert seen == [4]
    rekindle.train(source, tmp_path / "whole", **how | {"inject": None})
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")


def workers(out: Path) -> dict[int, int]:
    """pid by stage, of those that live."""
    listed = json.loads(out.with_name(f"{out.name}.workers.json").read_text())
    return {row["stage"]: row["pid"] for row in listed if row["role"] == "stage"}


def while_it_runs(out: Path, does: Callable[[dict[int, int]], None]) -> threading.Thread:
    """Does something to the workers when the second step is done."""

    def wait():
        metrics = out.parent / f".{out.name}.training" / "metrics.jsonl"
        until = time.monotonic() + 90
        while time.monotonic() < until:
            if metrics.exists() and metrics.read_text().count('"kind": "step"') >= 2:
                return does(workers(out))
            time.sleep(0.02)
        return None

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.slow
def test_a_worker_that_hangs_is_as_good_as_dead(small, corpus, tmp_path):
    thread = while_it_runs(tmp_path / "out", lambda found: os.kill(found[1], signal.SIGSTOP))
    rekindle.train(small(layers=4), tmp_path / "out", **options(corpus, tokens=25600, stages=2, patience=3))
    thread.join()
    assert [row["stage"] for row in recoveries(tmp_path / "out")] == [1]
    assert len(losses(tmp_path / "out")) == 100


@pytest.mark.slow
def test_workers_end_with_their_supervisor(small, corpus, tmp_path):
    words = [sys.executable, "-m", "rekindle", "train", str(small(layers=4)), "out", "--data", str(corpus), "-q",
             "--tokens", "1M", "--seq-len", "32", "--batch-tokens", "256", "--lr", "1e-2", "--stages", "2"]  # fmt: skip
    with subprocess.Popen(words, cwd=tmp_path) as process:
        thread = while_it_runs(tmp_path / "out", lambda found: process.kill())
        assert process.wait(120) == -signal.SIGKILL
        thread.join()
    (tmp_path / "out.workers.json").unlink()  # which it could not


def test_a_pipeline_that_cannot_be_is_refused_before_anything_is_loaded(small, corpus, tmp_path):
    words = ["train", small(layers=4), tmp_path / "out", "--data", corpus, "--tokens", "2k", "--lr", "1e-2"]
    assert "4 layers cannot be 7 stages" in refused(*words, "--stages", 7)
    assert "4 layers cannot be 7 stages" in refused(*words, "--stages", 7, "--dry-run")
    assert "and 4 stages need one each" in refused(*words, "--seq-len", 32, "--batch-tokens", 64, "--stages", 4)
    with pytest.raises(RekindleError, match="names stage 9"):
        rekindle.train(small(layers=4), tmp_path / "out", **options(corpus, stages=2, inject="1:9:begin"))


@pytest.mark.slow
def test_checkfree_is_the_expression_of_repair(small, corpus, tmp_path):
    """A rate so small that no weight moves: what is left of the run is what its lost stage was made of."""
    still = {"stages": 4, "lr": 1e-30, "weight_decay": 0, "recover": "checkfree", "recover_power": 0}
    rekindle.train(small(layers=4), tmp_path / "out", **options(corpus, inject="3:2:forward", **still))
    assert [row["policy"] for row in recoveries(tmp_path / "out")] == ["checkfree"]
    rekindle.repair(small(layers=4), lost="layers:2").save(tmp_path / "repaired")
    live, disk = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "repaired"))
    assert {name for name, x in disk.items() if not x.equal(live[name])} == set()
    assert disk.keys() == live.keys()


@pytest.mark.slow
def test_deaths_outside_of_steps_have_rows(small, corpus, tmp_path, monkeypatch):
    """In the evaluation before the first step, and in the last one."""
    from rekindle.recovery.pipeline import Pipeline

    evaluate, times = Pipeline.evaluate, iter(range(10))

    def killing(self, held_out):
        if next(times) in (0, 1):
            os.kill(workers(tmp_path / "out")[1], signal.SIGKILL)
        return evaluate(self, held_out)

    monkeypatch.setattr(Pipeline, "evaluate", killing)
    rekindle.train(small(layers=4), tmp_path / "out", **options(corpus, stages=2))
    told = [(row["step"], row["stage"], row["policy"]) for row in recoveries(tmp_path / "out")]
    assert told == [(0, 1, "shadow"), (8, 1, "shadow")]
    assert len(losses(tmp_path / "out")) == 8
