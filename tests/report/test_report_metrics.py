import json
import math
import os
from dataclasses import replace

import pytest
from report_runs import Curve, rows, write_rows, write_run

from rekindle.errors import RekindleError
from rekindle.report.metrics import read_metrics
from rekindle.report.runs import distinct_names, read_runs


def test_reads_what_the_trainer_writes(tmp_path):
    curve = Curve(3.4, 3.0, experts=8)
    metrics = read_metrics(write_run(tmp_path / "run", curve))
    assert metrics.header["model_type"] == "mixtral"
    assert [s.step for s in metrics.steps] == list(range(1, 121))
    assert [e.step for e in metrics.evaluations] == [0, 15, 30, 45, 60, 75, 90, 105, 120]
    last = metrics.evaluations[-1]
    assert (last.loss, last.tokens, last.flops) == (3.0, 1_500_000, 1_500_000 * 7.2e6)
    assert len(last.load) == 3
    assert sum(last.load[0]) == pytest.approx(1)


def test_a_torn_last_line_is_left_out_and_said(tmp_path):
    run = write_run(tmp_path / "run", Curve(3.4, 3.0))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "st')
    metrics = read_metrics(run)
    assert metrics.torn
    assert len(metrics.steps) == 120


def test_a_broken_line_inside_is_named(tmp_path):
    run = write_run(tmp_path / "run", Curve(3.4, 3.0))
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[6] = lines[6][:20]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    with pytest.raises(RekindleError, match="line 7"):
        read_metrics(run)


def test_the_later_of_two_rows_of_one_step_counts(tmp_path):
    run = write_run(tmp_path / "run", Curve(3.4, 3.0))
    lines = rows(Curve(3.4, 3.0))
    again = next(row for row in lines if row.get("step") == 50) | {"loss": 9.0}
    write_rows(run, [*lines, again])
    metrics = read_metrics(run)
    assert [s.loss for s in metrics.steps if s.step == 50] == [9.0]
    assert len(metrics.steps) == 120


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val_loss": "low"}, "'val_loss' should be a number"),
        ({"tokens": None}, "no usable 'tokens'"),
        ({"flops": math.inf}, "no usable 'flops'"),
        ({"step": -1}, "no usable 'step'"),
        ({"expert_load": [1, 2]}, "one list of numbers for each layer"),
        ({"expert_entropy": 0.5}, "should be a list of numbers"),
        ({"val_loss_stderr": True}, "should be a number"),
        ({"val_loss_stderr": -0.1}, "never negative"),
        ({"tokens": 1e308}, "no usable 'tokens'"),
        ({"expert_load": [[-1.0, 2.0]]}, "'expert_load' holds -1"),
    ],
)
def test_values_of_the_wrong_kind_are_named_with_their_line(tmp_path, change, message):
    run = write_run(tmp_path / "run", Curve(3.4, 3.0))
    lines = rows(Curve(3.4, 3.0))
    lines[1] |= change
    write_rows(run, lines)
    with pytest.raises(RekindleError, match=message) as error:
        read_metrics(run)
    assert "line 2" in str(error.value)


def test_a_pipe_in_place_of_the_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(RekindleError, match="no file to read"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("line", ["[1]", "3", "null", "[" * 3000 + "]" * 3000])
def test_a_line_that_is_no_object_is_refused(tmp_path, line):
    run = write_run(tmp_path / "run", Curve(3.4, 3.0))
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(line + "\n" + text)
    with pytest.raises(RekindleError, match="line 1"):
        read_metrics(run)


def test_missing_folder_file_and_evaluations_are_sentences(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for path, message in (
        ("none", "does not exist"),
        ("file", "not a folder"),
        ("empty", "no metrics.jsonl"),
    ):
        with pytest.raises(RekindleError, match=message):
            read_runs([tmp_path / path])
    run = write_run(tmp_path / "run", Curve(3.4, 3.0))
    write_rows(run, [row for row in rows(Curve(3.4, 3.0)) if row["kind"] != "eval"])
    with pytest.raises(RekindleError, match="holds no evaluation"):
        read_runs([run])
    with pytest.raises(RekindleError, match="no run"):
        read_runs([])


def test_names_are_the_shortest_that_tell_the_runs_apart(tmp_path):
    a, b, c = (write_run(tmp_path / p, Curve(3.4, 3.0)) for p in ("x/run", "y/run", "z/other"))
    assert [run.name for run in read_runs([a, b, c, a])] == ["x/run", "y/run", "other"]
    assert distinct_names([tmp_path / "x" / "run"]) == ["run"]


def test_verification_is_found_in_the_run_or_in_its_source(tmp_path, monkeypatch):
    from report_runs import UPCYCLE, stage

    monkeypatch.chdir(tmp_path)
    source = write_run(tmp_path / "start", Curve(3.4, 3.0))
    (source / "verify.json").write_text(json.dumps({"promise": "exact", "held": True}))
    run = write_run(tmp_path / "run", Curve(3.4, 3.0), [UPCYCLE, stage("run", 1, 1.0, "start")])
    assert read_runs([run])[0].verify == {"promise": "exact", "held": True}
    (run / "verify.json").write_text("[]")
    with pytest.raises(RekindleError, match="not a JSON object"):
        read_runs([run])


def test_verification_is_looked_for_where_the_run_was_made(tmp_path, monkeypatch):
    """Not in what has the same name in the folder from which the report is made, nor behind a merge."""
    from report_runs import UPCYCLE, merged, stage

    for desk, held in (("desk", True), ("elsewhere", False)):
        source = write_run(tmp_path / desk / "work" / "start", Curve(3.4, 3.0))
        (source / "verify.json").write_text(json.dumps({"held": held}))
    monkeypatch.chdir(tmp_path / "elsewhere")
    line = [UPCYCLE, stage("run", 1, 1.0, "work/start")]
    run = write_run(tmp_path / "desk" / "work" / "run", Curve(3.4, 3.0), line)
    assert read_runs([run])[0].verify == {"held": True}
    moved = [UPCYCLE, replace(line[1], source_fingerprint="of what it was")]
    assert read_runs([write_run(tmp_path / "moved", Curve(3.4, 3.0), moved)])[0].verify is None
    (tmp_path / "desk" / "work" / "parent").mkdir()
    (tmp_path / "desk" / "work" / "parent" / "verify.json").write_text(json.dumps({"held": True}))
    life = [*merged(), stage("on", 1, 1.0, "work/merged")]
    assert read_runs([write_run(tmp_path / "desk" / "work" / "on", Curve(3.4, 3.0), life)])[0].verify is None
