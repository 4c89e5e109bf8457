"""What a report says of stages that died."""

from __future__ import annotations

import json
import math

from report.report_runs import Curve, write_run

from rekindle.report.metrics import Recovery, Step
from rekindle.report.page import write_report
from rekindle.report.recoveries import AROUND, cost


def steps(losses):
    return [Step(i, 10.0 * i, 0.0, loss, 0.1, 1.0, 1.0) for i, loss in enumerate(losses, 1)]


def at(step):
    return Recovery(step, 1, "shadow", 0.5)


def test_a_jump_is_regained_when_the_mean_is_down_again():
    found = cost(steps([2.0] * 10 + [2.5] * 10 + [2.0] * 10), at(10))
    assert found.jump == 0.5
    assert found.regained == 10 + AROUND
    assert cost(steps([2.0] * 10 + [2.5] * 10), at(10)).regained is None
    assert cost(steps([2.0] * 10 + [1.5] * 10), at(10)).regained == AROUND
    assert math.isnan(cost(steps([2.0] * 10), at(10)).jump)  # in the last step
    assert math.isnan(cost(steps([2.0] * 10), at(0)).jump)  # before the first


def test_deaths_are_a_figure_of_their_own(tmp_path):
    run = write_run(tmp_path / "run", Curve(3.0, 2.5))
    with (run / "metrics.jsonl").open("a") as file:
        for stage in (1, 2):  # at once
            row = {"kind": "recovery", "step": 3, "stage": stage, "policy": "checkpoint", "seconds": 1.25}
            row |= {"distance": 0.21} if stage == 2 else {}
            file.write(json.dumps(row) + "\n")
    page = write_report([run], tmp_path / "page").page.read_text()
    assert "a stage died 2 times, 1.2 s were lost; the loss moved by" in page
    assert "Once stages were averaged that had come near to each other, to 0.21 of their norm" in page
    lines = (tmp_path / "page/figures/recoveries-1.csv").read_text().splitlines()
    assert [line.split(",")[4:7] for line in lines if line.startswith("recovery")] == [
        ["1", "checkpoint", "1.25"], ["2", "checkpoint", "1.25"]
    ]  # fmt: skip
