import math

import pytest

from rekindle.report.words import count, exponent_of, listed, nats, scaled, scientific, shortened, unit


@pytest.mark.parametrize(
    ("value", "text"),
    [(3_000_000, "3.00M"), (412_300, "412k"), (87, "87"), (999_999, "1.00M"), (7.24e9, "7.24B"), (None, "–")],
)
def test_counts(value, text):
    assert count(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1.59e13, "1.6×10¹³"), (3.1e-7, "3.1×10⁻⁷"), (0, "0"), (0.5, "0.5"), (math.nan, "–")]
)
def test_scientific(value, text):
    assert scientific(value) == text


def test_a_column_has_one_unit_and_small_values_do_not_vanish():
    exponent = exponent_of([1.59e13, 0.0, math.nan])
    assert (exponent, scaled(1.59e13, exponent), scaled(0, exponent)) == (12, "15.9", "0")
    assert scaled(808_000, 9) == "0.00081"
    assert exponent_of([3e-3]) == -3
    assert exponent_of([1000.0]) == 3
    assert exponent_of([]) == 0
    assert (unit(6, "tokens"), unit(0, "tokens"), unit(-3, "")) == ("million tokens", "tokens", "×10⁻³")


def test_lists_losses_and_long_names():
    assert [listed(list("abc")[:n]) for n in (1, 2, 3)] == ["a", "a and b", "a, b and c"]
    assert (nats(-0.07, sign=True), nats(3.0412)) == ("−0.070", "3.041")
    assert shortened("abcdefghij", 5) == "ab…ij"
    assert shortened("abc", 5) == "abc"
