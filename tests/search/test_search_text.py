"""What a search for a loss reads of a text that a run has read a part of."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from rekindle.search.draw import Draw
from rekindle.search.text import FEWEST, Reading

KEYS = st.integers(0, 2**31)


def rows_of(batches, draw):
    first = batches.first_of(draw)
    return set(range(first, first + batches.rows))


@settings(deadline=None)
@given(st.integers(1, 500), st.integers(0, 1500), st.integers(1, 200), st.lists(KEYS, min_size=2, max_size=3))
def test_no_row_is_read_that_the_run_has_read_as_long_as_there_are_others(there, passed, rows, keys):
    batches, notes = Reading(64, passed=passed).batches(there, rows)
    split = {
        split: [rows_of(batches, Draw(split, n, key=key)) for key in keys for n in range(batches.count)]
        for split in ("search", "rerank")
    }
    searched, again = set().union(*split["search"]), set().union(*split["rerank"])
    assert searched.isdisjoint(again)
    assert min(searched | again) >= passed
    if passed + FEWEST <= there:
        assert max(searched | again) < there
        assert not any("come again" in note for note in notes)
    else:
        told = f"has read {min(passed, there):,} of the {there:,} rows"
        assert not passed or told in notes[0]
    assert batches.rows == rows or "at a time instead of" in notes[-1]
    assert batches.rows <= rows


@settings(deadline=None)
@given(st.integers(0, 300), KEYS)
def test_all_batches_are_read_before_one_comes_again(passed, key):
    batches, _ = Reading(64, passed=passed).batches(800, 10)
    drawn = {split: [batches.first_of(Draw(split, n, key=key)) for n in range(60)] for split in ("search", "rerank")}
    count = (800 - passed) // 10
    assert len(set(drawn["search"])) == count - count // 4
    assert len(set(drawn["rerank"][: count // 4])) == len(set(drawn["rerank"])) == count // 4


def test_another_seed_reads_in_another_order():
    batches, _ = Reading(64).batches(1000, 10)
    one, other = ([batches.first_of(Draw("search", n, key=key)) for n in range(75)] for key in (0, 1))
    assert one != other
    assert sorted(one) == sorted(other)
