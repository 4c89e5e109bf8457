"""Forms: values and gradients against what calculus and the papers say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rekindle.errors import RekindleError
from rekindle.laws.forms import FORMS, form_named, saturated
from rekindle.laws.law import published

VARIABLES = {
    "params": st.floats(1e7, 1e11),
    "sunk": st.floats(1e9, 1e12),
    "tokens": st.floats(1e9, 1e12),
    "experts": st.floats(1, 256),
    "granularity": st.floats(1, 32),
    "active_share": st.floats(0.01, 1),
}
ROWS = [(law.name, name) for law in published().values() for name in law.rows]


@given(st.sampled_from(ROWS), st.fixed_dictionaries(VARIABLES))
def test_gradients_are_those_of_finite_differences(which, point):
    row = published()[which[0]].rows[which[1]]
    points = {name: np.array([value]) for name, value in point.items()}
    gradient = row.form.gradient(row.values, points)
    assert gradient.keys() == set(row.form.parameters)
    for name in row.form.parameters:
        step = 1e-6 * max(abs(row.values[name]), 1e-2)
        up, down = (row.form.predict({**row.values, name: row.values[name] + s}, points) for s in (step, -step))
        slope = (up - down) / (2 * step)
        assert gradient[name] == pytest.approx(slope, rel=1e-4, abs=1e-7 * abs(up).max() / step)


def test_clark_is_bilinear_in_decimal_logarithms():
    row = published()["clark-2022"].rows["s-base"]
    e_hat = float(saturated(64, 1.847, 314.478))
    log_n, log_e = math.log10(3e8), math.log10(e_hat)
    expected = 10 ** (-0.082 * log_n - 0.108 * log_e + 0.009 * log_n * log_e + 1.104)
    assert row.loss(params=3e8, experts=64) == pytest.approx(expected, rel=1e-12)


@given(st.floats(1, 1e5))
def test_experts_saturate_between_start_and_most(experts):
    found = float(saturated(experts, 2.0732, 290.4521))
    assert 2.0732 * (1 - 1e-9) <= found < 290.4521
    assert float(saturated(experts * 2, 2.0732, 290.4521)) > found


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_form_names_each_parameter_once(form):
    assert len(set(form.parameters)) == len(form.parameters)
    assert not set(form.parameters) & set(form.constants)


def test_an_unknown_form_is_told_its_nearest_name():
    with pytest.raises(RekindleError, match="chinchilla"):
        form_named("chinchila")
