"""Intervals, tests and adjustments against scipy, closed forms and published numbers; power against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rekindle.lab.stats import FEWEST, Sample, chance_alike, chance_apart, holm, sample, seeds_for

VALUES = st.lists(st.floats(-9, 9).map(lambda x: round(x, 3)), min_size=2, max_size=9).filter(lambda v: len(set(v)) > 1)


@pytest.mark.parametrize(("n", "t"), [(2, 12.706), (3, 4.303), (11, 2.228), (12, 2.201), (31, 2.042), (121, 1.980)])
def test_the_quantile_is_students_for_any_number_of_seeds(n, t):
    """The printed table of t, 95 %, two-sided."""
    values = [float(i) for i in range(n)]
    deviation = math.sqrt(n * (n + 1) / 12)
    assert sample(values).half() * math.sqrt(n) / deviation == pytest.approx(t, abs=6e-4)


def test_two_values_follow_cauchy():
    """t of one degree of freedom is Cauchy's: of 0 and 2 the 90 % interval is 1 +- tan(0.45 pi)."""
    two = sample([0.0, 2.0])
    assert two.half(0.9) == pytest.approx(math.tan(0.45 * math.pi))
    assert two.above(0.0) == pytest.approx(0.25)  # t = 1, the upper quarter


@given(VALUES, st.floats(-3, 3))
def test_tests_are_scipys(values, bound):
    seen = sample(values)
    for alternative, p in (("greater", seen.above(bound)), ("less", seen.below(bound))):
        assert p == pytest.approx(stats.ttest_1samp(values, bound, alternative=alternative).pvalue, abs=1e-9)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert (seen.mean - seen.half(0.9), seen.mean + seen.half(0.9)) == pytest.approx((low, high), abs=1e-9)


def test_two_one_sided_tests_as_published():
    """TOSTER's example of one sample (Lakens 2017): m 0.54 against 0.5, sd 1.2, n 100, bounds 0.36.

    t 3.33 and -2.67, p 0.001 and 0.004, 90 % interval -0.159 to 0.239, 95 % -0.198 to 0.278.
    """
    seen = Sample(0.04, 1.2, 100)
    assert seen.above(-0.36) == pytest.approx(0.001, abs=5e-4)
    assert seen.within(0.36) == seen.below(0.36) == pytest.approx(0.0045, abs=5e-5)
    assert seen.mean - seen.half(0.90) == pytest.approx(-0.159, abs=5e-4)
    assert seen.mean + seen.half(0.95) == pytest.approx(0.278, abs=5e-4)


@given(VALUES, st.floats(0.01, 5))
def test_alike_is_the_ninety_per_cent_interval_inside_the_margin(values, margin):
    seen = sample(values)
    inside = abs(seen.mean) + seen.half(0.90) <= margin
    assert inside == (seen.within(margin) <= 0.05) or seen.within(margin) == pytest.approx(0.05, abs=1e-9)
    outside = abs(seen.mean) - seen.half(0.95) >= margin
    assert outside == (seen.beyond(margin) <= 0.05) or seen.beyond(margin) == pytest.approx(0.05, abs=1e-9)


def test_values_without_spread():
    assert (Sample(1.0, 0.0, 5).above(0.0), Sample(1.0, 0.0, 5).below(0.0)) == (0.0, 1.0)
    assert Sample(0.0, 0.0, 5).above(0.0) == 0.5
    assert math.isnan(sample([1.0]).half())


def test_holm_of_a_textbook():
    """Holm's own four: 0.01, 0.04, 0.03, 0.005 (R: p.adjust gives 0.03, 0.06, 0.06, 0.02)."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.5]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_rejects_step_by_step(ps):
    """The i-th smallest of m falls at 0.05 / (m - i + 1), until the first that does not."""
    order, rejected = sorted(range(len(ps)), key=ps.__getitem__), set()
    for rank, i in enumerate(order):
        if ps[i] * (len(ps) - rank) > 0.05:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(holm(ps)) if p <= 0.05} == rejected


def test_power_as_published():
    """The paired t test, effect half a standard deviation, two-sided 5 %, power 0.8: 34 pairs (Cohen 1988; G*Power)."""
    assert seeds_for(lambda n: chance_apart(n, 1.0, 0.5)) == 34
    assert chance_apart(5, 1.0, 1.5) == pytest.approx(
        1 - stats.nct.cdf(stats.t.ppf(0.975, 4), 4, 1.5 * 5**0.5), abs=1e-4
    )


@pytest.mark.parametrize(("spread", "effect", "margin"), [(1.0, 0.0, 1.0), (1.0, 0.3, 1.0), (0.5, 0.9, 1.2)])
def test_the_seeds_that_decide_do_so_in_four_cases_of_five(spread, effect, margin):
    n = seeds_for(lambda n: chance_alike(n, spread, effect, margin))
    drawn = np.random.default_rng(7).normal(effect, spread, (20_000, n))
    mean, error = drawn.mean(1), drawn.std(1, ddof=1) / math.sqrt(n)
    held = (np.abs(mean) + stats.t.ppf(0.95, n - 1) * error <= margin).mean()
    assert held == pytest.approx(chance_alike(n, spread, effect, margin), abs=0.01)
    assert held > 0.79
    assert n == FEWEST or chance_alike(n - 1, spread, effect, margin) < 0.8
    told = (mean - stats.t.ppf(0.975, n - 1) * error > 0).mean()
    assert told == pytest.approx(chance_apart(n, spread, effect) if effect else 0.025, abs=0.01)


def test_what_no_thousand_seeds_decide():
    assert seeds_for(lambda n: chance_apart(n, 1.0, 0.01)) is None
    assert seeds_for(lambda n: chance_apart(n, 1.0, 100.0)) == FEWEST
