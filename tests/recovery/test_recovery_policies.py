"""What a lost stage is made of: the paper's formula, and what is covered."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rekindle.errors import RekindleError
from rekindle.recovery.dying import MOMENTS
from rekindle.recovery.injected import injected
from rekindle.recovery.policies import EPS, Uncovered, remedies

NORMS = st.lists(st.floats(0, 1e6), min_size=4, max_size=8)


@settings(deadline=None)
@given(NORMS, st.sampled_from([0.0, 1.0, 2.0]), st.data())
def test_neighbours_are_weighed_by_their_gradients(norms, power, data):
    stage = data.draw(st.integers(1, len(norms) - 2))
    (before, left), (after, right) = remedies("checkfree", [stage], len(norms), norms, power)[stage].sources
    assert (before, after) == (stage - 1, stage + 1)
    assert left + right == pytest.approx(1)
    a, b = (norms[at] + EPS for at in (before, after))
    assert left * b**power == pytest.approx(right * a**power, rel=1e-9)
    if power == 0:
        assert left == right == 0.5


def test_a_larger_gradient_counts_more_and_none_is_a_plain_mean():
    assert remedies("checkfree", [1], 4, [3 - EPS, 9, 1 - EPS, 9], 1.0)[1].sources == ((0, 0.75), (2, 0.25))
    assert remedies("checkfree", [1], 4, [0, 0, 0, 0], 1.0)[1].sources == ((0, 0.5), (2, 0.5))


def test_ends_that_take_turns_are_copies_of_each_other():
    found = remedies("checkfree+", [0, 2, 5], 6, [1.0] * 6, 1.0)
    assert {stage: remedy.sources for stage, remedy in found.items()} == {
        0: ((1, 1.0),), 2: ((1, 0.5), (3, 0.5)), 5: ((4, 1.0),)
    }  # fmt: skip
    with pytest.raises(Uncovered, match="stage 1, which takes turns with stage 0, is lost as well"):
        remedies("checkfree+", [0, 1], 6, [1.0] * 6, 1.0)


@settings(deadline=None)
@given(st.integers(2, 9), st.data())
def test_no_stage_is_made_of_one_that_is_lost(stages, data):
    lost = data.draw(st.sets(st.integers(0, stages - 1), min_size=1, max_size=stages))
    for policy in ("shadow", "checkfree", "copy", "random"):
        try:
            found = remedies(policy, sorted(lost), stages, [1.0] * stages, 1.0)
        except Uncovered:
            apart = {"shadow": {(one + 1) % stages for one in lost}, "copy": {one - 1 for one in lost}}
            ends = set() if policy == "shadow" else {0, stages - 1}
            near = apart.get(policy, {one + side for one in lost for side in (-1, 1)})
            assert policy != "random"
            assert lost & near or lost & ends
        else:
            assert found.keys() == lost
            assert not any(source in lost for remedy in found.values() for source, _ in remedy.sources)


@pytest.mark.parametrize(
    ("policy", "lost", "average", "copy"),
    [
        ("checkfree", [2], ((1, 0.25), (3, 0.75)), ((1, 0.25),)),  # as their layers weigh
        ("checkfree+", [0], ((1, 1.0),), ((1, 1.0),)),
        ("shadow", [2], ((1, 0.5), (3, 0.5)), ((1, 0.5),)),
        ("shadow", [0], ((1, 0.5),), ((1, 0.5),)),
        ("random", [1, 2], ((0, 0.5),), ((0, 0.5),)),
        ("redundant", [2], (), ()),
    ],
)
def test_moments_come_from_those_who_give_layers_or_live_beside(policy, lost, average, copy):
    norms = [9, 1 - EPS, 9, 3 - EPS, 9, 9]
    for how, wanted in (("average", average), ("copy", copy), ("reset", ())):
        found = remedies(policy, lost, 6, norms, 1.0, how)  # type: ignore[arg-type]
        assert [one for one, _ in found[lost[0]].moments] == [one for one, _ in wanted]
        assert [share for _, share in found[lost[0]].moments] == pytest.approx([share for _, share in wanted])


@pytest.mark.parametrize("text", ["3", "3:1", "a:1:begin", "3:1:never", "3:1:begin:2", "rate=1", "rate=x/h", "seed="])
def test_a_failure_that_is_none_is_a_sentence(text):
    with pytest.raises(RekindleError, match="is no failure"):
        injected(text, 4)


def test_failures_by_step_stage_and_phase():
    found = injected("3:1:forward, 3:2:commit", 4)
    asked = {(step, stage, kind): found.due(step, stage, kind)
             for step in (2, 3, None) for stage in range(4) for kind in ("step", "commit", "form")}  # fmt: skip
    assert {at: moment for at, moment in asked.items() if moment} == {
        (3, 1, "step"): "forward", (3, 2, "commit"): "commit"
    }  # fmt: skip
    assert found.due(3, 1, "step") is None  # once
    with pytest.raises(RekindleError, match="names stage 4, and there are 4"):
        injected("3:4:begin", 4)


def test_failures_at_a_rate_come_by_the_clock_as_often_as_they_should(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    deaths = []
    for _ in range(2):
        clock[0] = 0.0
        found, died = injected("rate=36/h, seed=3", 4), []
        for step in range(10_000):  # of a second each
            clock[0] += 1
            died += [(step, stage, moment) for stage in range(4) for kind in ("step", "commit")
                     if (moment := found.due(step, stage, kind))]  # fmt: skip
        deaths.append(died)
    assert deaths[0] == deaths[1]  # by the same clock
    assert 320 < len(deaths[0]) < 480  # 400, within four standard deviations
    assert {moment for _, _, moment in deaths[0]} == set(MOMENTS)
    counts = [sum(stage == one for _, stage, _ in deaths[0]) for one in range(4)]
    assert max(counts) < 1.5 * min(counts)
