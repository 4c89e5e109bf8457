"""Claims are judged by paired differences, against what was settled before, and together on a page."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rekindle.errors import RekindleError
from rekindle.lab.claims import LOSS, Claim, Metric, deciding, judge, planned
from rekindle.lab.margin import Margin, Margins
from rekindle.lab.page import verdict
from rekindle.lab.stats import Sample

LOWER = Claim("lower", "a ends below b", "yes", "a", "b")
ALIKE = Claim("alike", "a ends as low as b", "yes", "a", "b", alike=True)
SETTLED = Margins({"lower": Margin(least=0.05, why=""), "alike": Margin(within=0.02, why="")}, "margins/test.yaml")
SEEDS = [1.0, 2.0, 3.0, 4.0, 5.0]  # the seeds differ by far more than the arms


def judged(claim, apart, quick=False):
    """Of one claim, `apart` being how much b's loss is above a's, for each seed."""
    b = [seed + d for seed, d in zip(SEEDS, apart)]
    return judge([claim], SETTLED, {claim.metric: {"a": SEEDS[: len(apart)], "b": b}}, quick=quick)[0]


@pytest.mark.parametrize(
    ("claim", "apart", "judgement"),
    [
        (LOWER, [0.10, 0.11, 0.09, 0.10, 0.10], "holds"),
        (LOWER, [-0.10, -0.11, -0.09, -0.10, -0.10], "does not hold"),
        (LOWER, [0.00, 0.01, -0.01, 0.00, 0.01], "does not hold"),  # an effect of 0.05 is excluded
        (LOWER, [0.010, 0.011, 0.009, 0.010, 0.010], "does not hold"),  # real, and too small to be what is claimed
        (LOWER, [0.040, 0.041, 0.039, 0.040, 0.040], "holds"),  # nearer to the least effect than to nothing
        (LOWER, [0.30, -0.20, 0.10, 0.05, -0.10], "undecided"),
        (ALIKE, [0.001, 0.001, 0.002, 0.000, 0.001], "holds"),
        (ALIKE, [0.10, 0.11, 0.09, 0.10, 0.10], "does not hold"),
        (ALIKE, [-0.10, -0.11, -0.09, -0.10, -0.10], "does not hold"),
        (ALIKE, [0.02, -0.02, 0.01, 0.03, -0.03], "undecided"),
    ],
)
def test_three_outcomes(claim, apart, judgement):
    found = judged(claim, apart)
    assert found.judgement == judgement
    assert (found.decides is not None) == (judgement == "undecided")
    assert found.gain.mean == pytest.approx(np.mean(apart))


def test_alike_is_two_one_sided_tests_at_ninety_per_cent():
    """Mean 0.012, spread 0.0075: within 0.02 by its 90 % interval (t 2.132), not by that of 95 % (2.776)."""
    apart = 0.012 + 0.0075 * np.array([-1, -0.5, 0, 0.5, 1]) / math.sqrt(0.625)
    found = judged(ALIKE, apart.tolist())
    half = found.gain.half(0.95)
    assert (
        found.gain.mean + half > 0.02 > found.interval[1] == pytest.approx(0.012 + 2.1318 * 0.0075 / 5**0.5, abs=1e-5)
    )
    assert found.judgement == "holds"


def test_fewer_than_five_seeds_or_a_quick_run_give_directions():
    assert judged(LOWER, [0.10, 0.11, 0.09, 0.10]).judgement == "direction only"
    assert judged(LOWER, [0.10, 0.11, 0.09, 0.10, 0.10], quick=True).judgement == "direction only"
    one = judged(LOWER, [0.1])
    assert math.isnan(one.half)
    assert (one.judgement, one.measured, one.shown_p) == ("direction only", "+0.100 nats", "–")


def test_a_metric_of_which_more_is_better():
    points = Metric("BLEU", "points", lower_is_better=False)
    claim = Claim("lower", "a ends above b", "yes", "a", "b", metric=points)
    values = {points: {"a": [27.1, 27.3, 27.2, 27.0, 27.1], "b": [26.1, 26.2, 26.3, 26.0, 26.0]}}
    found = judge([claim], SETTLED, values, quick=False)[0]
    assert found.judgement == "holds"
    assert found.gain.mean == pytest.approx(1.02)
    assert found.measured == "+1.02 ± 0.10 points"
    assert judge([claim], SETTLED, {points: {"a": values[points]["b"], "b": values[points]["a"]}}, quick=False)[
        0
    ].judgement == "does not hold"  # fmt: skip


def test_claims_of_a_page_are_adjusted_together():
    """p is about 0.03 alone: enough for one claim, not for the least sure of two."""
    apart = [0.06, 0.03, 0.08, 0.01, 0.05]
    alone = judged(LOWER, apart)
    assert alone.judgement == "holds"
    assert 0.01 < alone.p == alone.adjusted < 0.05
    other = Claim("lower", "as unsure", "yes", "a", "b")
    values = {LOSS: {"a": SEEDS, "b": [seed + d for seed, d in zip(SEEDS, apart)]}}
    both = judge([LOWER, other, LOWER, LOWER, LOWER], SETTLED, values, quick=False)
    assert {f.judgement for f in both} == {"undecided"}
    assert both[0].adjusted == pytest.approx(5 * alone.p)


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), min_size=5, max_size=8))
def test_exchanging_the_arms_never_confirms_both_ways(pairs):
    a, b = zip(*pairs)
    both = [judge([LOWER], SETTLED, {LOSS: {"a": x, "b": y}}, quick=False)[0].judgement for x, y in ((a, b), (b, a))]
    assert both.count("holds") < 2


@pytest.mark.parametrize("spread", [0.02, 0.2])
def test_errors_stay_within_their_rate(spread):
    """Of a true difference of 0, and of one as large as the least effect: wrong in 2.5 % of the cases at most."""
    draws = np.random.default_rng(3).normal(0, spread, (2000, 5))
    for truth, wrong in ((0.0, "holds"), (0.05, "does not hold")):
        found = [judged(LOWER, (draw + truth).tolist()).judgement for draw in draws]
        assert found.count(wrong) / len(found) == pytest.approx(0.025 if spread > 0.05 else 0.005, abs=0.01)


def test_seeds_that_would_decide_are_counted_from_what_was_seen():
    undecided = judged(LOWER, [0.30, -0.20, 0.10, 0.05, -0.10])
    assert undecided.decides is not None
    assert undecided.decides > 100  # a spread of 0.19 beside an effect of 0.05
    row = Margin(within=0.02, why="")
    assert deciding(ALIKE, row, Sample(0.02, 0.01, 5), 0.05) is None  # on the margin itself
    assert deciding(ALIKE, row, Sample(0.0, 1e-6, 5), 0.05) == 5


def test_the_number_of_seeds_is_planned_from_the_pilot():
    """A least effect of one standard deviation: 10 pairs at 5 %, and more where two claims share it."""

    def rows(spread):
        return Margins(
            {key: Margin(least=0.05, spread=spread, why="") for key in ("lower", "second")}, "margins/x.yaml"
        )

    second = Claim("second", "c", "", "a", "b")
    assert planned([LOWER], rows(0.05)) == 10
    assert planned([LOWER, second], rows(0.05)) == 13
    assert planned([LOWER], rows(1e-4)) == planned([LOWER], rows(None)) == 5
    with pytest.raises(RekindleError, match="over 1000 seeds"):
        planned([LOWER], rows(10.0))


def test_what_diverged_is_not_judged():
    with pytest.raises(RekindleError, match="b ends at nan with seed 1"):
        judge([LOWER], SETTLED, {LOSS: {"a": [1.0, 1.0], "b": [1.0, math.nan]}}, quick=False)


def test_unequal_numbers_of_seeds_are_an_error():
    with pytest.raises(ValueError):
        judge([LOWER], SETTLED, {LOSS: {"a": [1.0], "b": [1.0, 2.0]}}, quick=False)


def test_verdict_names_what_does_not_hold():
    values = {LOSS: {"a": SEEDS, "b": [seed + 0.1 for seed in SEEDS]}}
    worse = Claim("lower", "b ends below a", "yes", "b", "a")
    said = verdict(judge([LOWER, worse], SETTLED, values, quick=False))
    assert said == "1 of the paper's 2 claims hold at this size; “b ends below a” does not."
    unsure = judged(LOWER, [0.30, -0.20, 0.10, 0.05, -0.10])
    assert verdict([unsure]).endswith(f"; undecided: “a ends below b” ({unsure.decides} seeds would decide).")
    one = judge([LOWER, worse], SETTLED, {LOSS: {"a": [1.0], "b": [2.0]}}, quick=False)
    assert verdict(one).startswith("One seed: 1 of the paper's 2 directions are as claimed. ")


def test_claims_are_counted_apart_by_whose_they_are():
    """Of this page's paper, of another, and our own: none of them counts as another's."""
    values = {LOSS: {"a": SEEDS, "b": [seed + 0.1 for seed in SEEDS]}}
    worse = Claim("lower", "b ends below a", "yes", "b", "a", of="another")
    ours = Claim("lower", "a, we say", "", "a", "b", of="ours")
    alike = replace(ALIKE, of="ours")
    claims = [LOWER, worse, replace(worse, arm="a", rival="b"), ours, alike]
    said = verdict(judge(claims, SETTLED, values, quick=False))
    counts = "1 of the paper's 1 claims, 1 of another paper's 2 and 1 of our 2 hold at this size"
    assert said == f"{counts}; “b ends below a” and “a ends as low as b” do not."
    said = verdict(judge(claims, SETTLED, values, quick=True))
    counts = "1 of the paper's 1 directions, 1 of another paper's 2 and 1 of our 1 are as claimed"
    assert said.startswith(f"5 seeds: {counts}. ")
    assert verdict(judge([ours, alike], SETTLED, values, quick=True)).startswith("5 seeds: 1 of our 1 directions are")
    assert verdict(judge([alike], SETTLED, values, quick=True)).startswith("5 seeds. Directions only")
