"""Measurements: numbers that are not there before the pass, and what the pass must look at, in which order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_expressions import Memory, whole

from rekindle.edit.arithmetic import Normal, Scale, Sum
from rekindle.edit.measure import Measurement, Statistics, array, measurements, number


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 50))
def test_statistics_are_those_of_all_values(rows, columns, step):
    reader = Memory()
    values = np.random.default_rng(rows).normal(3, 2, (rows, columns)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rekindle.edit.measure.STEP", step)
        found = Statistics(reader.leaf(values)).find(reader, None)
    assert found["mean"] == pytest.approx(values.mean(dtype=np.float64), rel=1e-5)
    assert found["std"] == pytest.approx(values.std(dtype=np.float64), rel=1e-3, abs=1e-3)
    assert {a.dtype for a in found.values()} == {np.dtype(np.float32)}


def test_a_measured_number_is_used_as_a_given_one():
    reader = Memory()
    leaf = reader.leaf(np.arange(12, dtype=np.float32).reshape(3, 4))
    statistics = Statistics(leaf)
    noisy = Normal("F32", (3, 4), statistics["std"] * 0.5, 0, "n")
    with pytest.raises(AssertionError, match="was not measured"):
        whole(noisy, reader)
    statistics.settle(statistics.find(reader, None))
    std = float(np.arange(12).std(dtype=np.float64))
    assert number(statistics["std"] * 0.5) == pytest.approx(std / 2)
    np.testing.assert_allclose(whole(noisy, reader), whole(Normal("F32", (3, 4), std / 2, 0, "n"), reader), rtol=1e-5)
    assert array(statistics["mean"]).shape == ()


def test_equal_tensors_share_a_measurement_by_name_and_changed_ones_do_not():
    leaf = Memory().leaf(np.ones((2, 2), np.float32))
    assert Statistics(leaf).name == Statistics(leaf).name
    assert Statistics(leaf).name != Statistics(Scale(leaf, 2.0)).name
    assert Statistics(leaf.rows(0, 1)).name != Statistics(leaf.rows(1, 2)).name


def test_what_a_measurement_reads_is_measured_before_it():
    leaf = Memory().leaf(np.ones((3, 4), np.float32))
    inner = Statistics(leaf)
    noisy = Sum(leaf, Normal("F32", (3, 4), inner["std"], 0, "n"))
    outer = Statistics(noisy)
    found = measurements([Normal("F32", (2, 2), outer["std"], 0, "m"), noisy])
    assert found == [inner, outer]
    assert measurements([leaf]) == []


def test_measurements_that_no_tensor_waits_for_are_made_where_asked():
    leaf = Memory().leaf(np.ones((3, 4), np.float32))
    told = Statistics(leaf)
    assert measurements([leaf], [told, told]) == [told]
    assert told.nbytes == leaf.nbytes
    with pytest.raises(AssertionError, match="does not know how to look"):
        Measurement("none", ()).find(Memory(), None)
