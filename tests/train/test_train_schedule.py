"""Schedules against their closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rekindle.errors import RekindleError
from rekindle.train.config import TrainConfig
from rekindle.train.schedule import Schedule, make_schedule

NAMES = ("wsd", "cosine", "constant", "inverse-sqrt")


def schedule(name: str, tokens: int = 1000, **changes: Any) -> Schedule:
    return make_schedule(TrainConfig(tokens=tokens, schedule=name, lr=2.0, **changes), tokens)  # type: ignore[arg-type]


def test_warm_up_is_linear_in_every_schedule():
    for name in NAMES:
        made = schedule(name, warmup=0.1)
        assert [made(t) for t in (0, 25, 50, 100)] == pytest.approx([0, 0.5, 1, 2])


def test_wsd_is_flat_and_then_falls_to_zero():
    made = schedule("wsd", warmup=0.1, decay=0.2)
    assert [made(t) for t in (100, 500, 800, 900, 1000)] == pytest.approx([2, 2, 2, 1, 0])


def test_cosine_ends_at_a_tenth():
    made = schedule("cosine", warmup=0.1)
    assert [made(t) for t in (100, 550, 1000, 2000)] == pytest.approx([2, 1.1, 0.2, 0.2])
    assert made(325) == pytest.approx(2 * (0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2))


def test_inverse_sqrt_halves_at_four_times_the_warm_up():
    made = schedule("inverse-sqrt", warmup=0.1)
    assert [made(t) for t in (100, 400, 900)] == pytest.approx([2, 1, 2 / 3])


def test_constant_without_warm_up():
    assert schedule("constant", warmup=0.0)(0) == 2


@given(st.sampled_from(NAMES), st.integers(1, 10**6), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_rate_is_never_negative_nor_above_the_peak(name: str, tokens: int, warmup: float, decay: float, at: float):
    made = schedule(name, tokens, warmup=warmup, decay=decay)
    assert 0 <= made(at * tokens) <= 2.0


@given(st.sampled_from(NAMES), st.integers(0, 1000), st.integers(0, 2000))
def test_a_continued_schedule_is_the_same_curve(name: str, stopped: int, later: int):
    first = schedule(name, warmup=0.1)
    assert Schedule(**first.at(stopped))(later) == first(stopped + later)


def test_continue_takes_the_sources_rates_and_warms_up_again():
    saved = schedule("inverse-sqrt", warmup=0.1).at(1000)
    made = make_schedule(TrainConfig(tokens=500, schedule="continue", warmup=0.1), 500, saved)  # type: ignore[arg-type]
    assert made(25) == pytest.approx(made.peak * math.sqrt(100 / 1025) / 2)
    assert made(200) == pytest.approx(2 * math.sqrt(100 / 1200))
    again = make_schedule(TrainConfig(tokens=500, schedule="continue", warmup=0), 500, made.at(500))  # type: ignore[arg-type]
    assert again(1) == pytest.approx(2 * math.sqrt(100 / 1501))


def test_continue_needs_a_schedule_with_something_left():
    config = TrainConfig(tokens=100, schedule="continue")  # type: ignore[arg-type]
    for saved in (None, {}, {"name": "wsd"}):
        with pytest.raises(RekindleError, match="no schedule to continue"):
            make_schedule(config, 100, saved)
    with pytest.raises(RekindleError, match="nothing is left"):
        make_schedule(config, 100, schedule("wsd").at(1000))


def test_fractions_are_fractions():
    with pytest.raises(RekindleError, match="warmup is 100"):
        schedule("wsd", warmup=100)
