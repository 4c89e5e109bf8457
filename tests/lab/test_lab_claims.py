"""A claim is judged by the interval of paired differences."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rekindle.lab.claims import Claim, interval, judge
from rekindle.lab.page import verdict

LOWER = Claim("a ends below b", "yes", "a", "b")
ALIKE = Claim("a ends as low as b", "yes", "a", "b", alike=0.01)


def test_interval_of_three_is_students():
    """Mean 2, standard deviation 1, n = 3: the half width is 4.302653 / sqrt(3)."""
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.half == pytest.approx(4.302653 / math.sqrt(3))


@pytest.mark.parametrize(("n", "t"), [(2, 12.706), (11, 2.228), (12, 2.201), (31, 2.042), (121, 1.980)])
def test_the_quantile_is_students_for_any_number_of_seeds(n, t):
    """The printed table of t, 95 %, two-sided."""
    values = [float(i) for i in range(n)]
    deviation = math.sqrt(n * (n + 1) / 12)
    assert interval(values).half * math.sqrt(n) / deviation == pytest.approx(t, abs=6e-4)


def test_one_seed_has_no_interval():
    assert math.isnan(interval([1.0]).half)
    assert judge(LOWER, {"a": [1.0], "b": [2.0]}).judgement == "direction only"


@pytest.mark.parametrize(
    ("claim", "a", "b", "judgement"),
    [
        (LOWER, [1.0, 2.0, 3.0], [1.1, 2.1, 3.1], "reproduces"),  # the seeds differ, their differences don't
        (LOWER, [1.1, 2.1, 3.1], [1.0, 2.0, 3.0], "does not reproduce"),
        (LOWER, [1.0, 1.0, 1.0], [1.1, 0.9, 1.2], "undecided"),
        (ALIKE, [1.0, 2.0, 3.0], [1.001, 2.001, 3.002], "reproduces"),
        (ALIKE, [1.0, 2.0, 3.0], [1.1, 2.1, 3.1], "does not reproduce"),
        (ALIKE, [1.0, 2.0, 3.0], [1.02, 1.98, 3.0], "undecided"),
    ],
)
def test_judgements(claim, a, b, judgement):
    assert judge(claim, {"a": a, "b": b}).judgement == judgement


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), min_size=2, max_size=6))
def test_exchanging_the_arms_never_confirms_both_ways(pairs):
    a, b = zip(*pairs)
    both = {judge(LOWER, {"a": a, "b": b}).judgement, judge(LOWER, {"a": b, "b": a}).judgement}
    assert both in ({"undecided"}, {"reproduces", "does not reproduce"})


def test_unequal_numbers_of_seeds_are_an_error():
    with pytest.raises(ValueError):
        judge(LOWER, {"a": [1.0], "b": [1.0, 2.0]})


def test_verdict_names_what_does_not_reproduce():
    losses = {"a": [1.0, 2.0, 3.0], "b": [1.1, 2.1, 3.1]}
    worse = Claim("b ends below a", "yes", "b", "a")
    said = verdict([judge(LOWER, losses), judge(worse, losses)])
    assert said == "1 of 2 claims reproduce at this size; “b ends below a” does not."
    assert "1 of 2 directions" in verdict([judge(c, {"a": [1.0], "b": [2.0]}) for c in (LOWER, worse)])
