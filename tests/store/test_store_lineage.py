"""Lineages as graphs: each step counted once, however often its descendants meet."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rekindle.store.lineage import (
    Spent,
    ancestors,
    before,
    extended,
    last_sources,
    origins,
    parents,
    stem,
    sunk,
    united,
)
from rekindle.store.manifest import NAME, PREVIOUS, Manifest, Record, Source, read_manifest

INIT = Record(verb="init", command="rekindle init a", options={})
TRUNK = Record(verb="train", command="rekindle train a b", options={}, source="a", tokens=100, flops=1e3)
MERGE = Record(verb="merge", command="rekindle merge l r out", options={})


def trained(name, tokens=10, **more):
    said = {"verb": "train", "command": f"rekindle train b {name}", "options": {}, "source": "b", "tokens": tokens}
    return Record(**(said | {"flops": 10.0 * tokens} | more))


def manifest(*records):
    return Manifest(version="1", lineage=list(records))


def merged(*lineages, record=MERGE):
    return extended({f"s{i}": (f"src{i}", f"f{i}", manifest(*x)) for i, x in enumerate(lineages)}, record)


def test_of_one_source_the_lineage_is_the_list_of_before():
    child = extended({"": ("b", "mark", manifest(INIT, TRUNK))}, trained("c", source=None))
    assert child == [INIT, TRUNK, trained("c", source="b", source_fingerprint="mark")]
    assert extended({"": ("org/m", None, None)}, INIT) == [replace(INIT, source="org/m")]
    assert extended({}, INIT) == [INIT]
    assert parents(child) == [[], [0], [1]]


def test_one_of_one_source_is_written_to_the_byte_as_before_there_were_several(tmp_path):
    manifest(INIT, TRUNK).write(tmp_path)
    text = (tmp_path / NAME).read_text()
    record = {"verb": "train", "command": "rekindle train a b", "options": {}, "source": "a",
              "source_fingerprint": None, "summary": "", "tokens": 100, "flops": 1000.0}  # fmt: skip
    whole = {"version": "1", "lineage": [record | {"verb": "init", "command": "rekindle init a", "source": None,
                                                   "tokens": 0, "flops": 0.0}, record],
             "parameters": {}, "promise": None, "measured": {}, "shards": {}}  # fmt: skip
    assert text == json.dumps(whole, indent=2) + "\n"


def test_what_two_children_share_counts_once():
    left, right = [INIT, TRUNK, trained("l")], [INIT, TRUNK, trained("r", 7)]
    child = merged(left, right)
    assert [record.verb for record in child] == ["init", "train", "train", "train", "merge"]
    assert parents(child) == [[], [0], [1], [1], [2, 3]]
    assert sunk(child) == Spent(117, 1170.0)
    assert child[-1].sources == {
        "s0": Source(source="src0", fingerprint="f0", after=2),
        "s1": Source(source="src1", fingerprint="f1", after=3),
    }
    assert child[3].after == 1
    assert before(child, 2) == [INIT, TRUNK]
    assert before(child, 3) == [INIT, TRUNK]
    assert before(child, 4) == child[:4]
    assert ancestors(child, 3) == [0, 1]
    assert last_sources(child) == ["src0", "src1"]


def test_strangers_count_in_full_and_say_where_they_begin(tmp_path):
    other = Record(verb="train", command="rekindle train org/m x", options={}, source="org/m", tokens=5)
    child = merged([INIT, TRUNK], [other], [])
    assert (child[2].after, child[0].after, child[1].after) == (None, PREVIOUS, PREVIOUS)
    assert sunk(child).tokens == 105
    assert origins(child) == ["org/m", "src2"]
    assert child[-1].sources["s2"].after is None
    manifest(*child).write(tmp_path)
    assert read_manifest(tmp_path) == manifest(*child)


def test_a_source_that_is_another_ones_ancestor_is_no_second_life():
    child = merged([INIT, TRUNK], [INIT, TRUNK, trained("r")])
    assert [s.after for s in child[-1].sources.values()] == [1, 2]
    assert sunk(child).tokens == 110


def test_states_of_one_run_count_as_far_as_the_run_came():
    early, late = trained("run", 10, summary="loss 5"), trained("run", 40, summary="loss 3")
    child = merged([INIT, TRUNK, late], [INIT, TRUNK, early])
    assert sunk(child) == Spent(140, 1400.0)
    assert [s.after for s in child[-1].sources.values()] == [2, 3]
    assert parents(child)[2:4] == [[1], [1]]
    grown = [*child, trained("on", 1000, source="out")]  # and whatever comes behind counts as well
    assert sunk(grown).tokens == 1140
    twice = trained("run", 40, summary="loss 4")  # at the same place another loss: another run
    assert sunk(merged([INIT, TRUNK, late], [INIT, TRUNK, early], [INIT, TRUNK, twice])).tokens == 180


def test_what_went_on_from_two_states_of_a_run_are_two_lives():
    early, late = trained("run", 10), trained("run", 40)
    on = Record(verb="train", command="rekindle train state out", options={}, source="state", tokens=3)
    assert sunk(merged([early, on], [late, on])).tokens == 46


def test_what_one_text_was_trained_on_is_counted_by_the_same_rule():
    """Two saved states of a run, their average, and a training of it on: the run once, as far as it came."""
    a, b = ({"data": {"value": data, "origin": "flag"}} for data in ("a", "b"))
    early, late = trained("run", 10, options=a), trained("run", 40, options=a)
    child = [
        *merged([INIT, TRUNK, early], [INIT, TRUNK, late]),
        trained("on", 7, options=b),
        trained("on", 5, options=a),
    ]
    assert [sunk(child, data).tokens for data in ("a", "b", "c", None)] == [45, 7, 0, 152]


def test_a_step_repeated_counts_each_time():
    """Two records that say the same are two steps where one goes on from the other."""
    assert sunk([TRUNK, TRUNK]).tokens == 200
    assert sunk(merged([TRUNK, TRUNK], [TRUNK])).tokens == 200


def test_the_stem_ends_where_lives_met():
    child = [*merged([INIT, TRUNK, trained("l")], [INIT, TRUNK, trained("r")]), trained("on"), trained("further")]
    assert stem(child) == [4, 5, 6]
    assert stem([INIT, TRUNK]) == [0, 1]
    assert stem([]) == []
    assert stem([INIT, replace(TRUNK, after=None)]) == [1]
    assert last_sources([INIT]) == []
    assert last_sources([INIT, replace(TRUNK, source="b"), MERGE]) == ["b"]  # the second step of a recipe names none


steps = st.sampled_from([trained(name, tokens) for name in "abc" for tokens in (1, 2, 30)])


@st.composite
def lives(draw):
    """Lineages that share steps: each new one goes on from one or more of those before."""
    pool = [[INIT], [Record(verb="init", command="rekindle init z", options={})], []]
    for _ in range(draw(st.integers(1, 7))):
        picked = draw(st.lists(st.sampled_from(range(len(pool))), min_size=1, max_size=3))
        step = draw(steps)
        if len(picked) == 1:
            pool.append([*pool[picked[0]], step])
        else:
            pool.append(merged(*(pool[i] for i in picked), record=replace(MERGE, command=f"merge {picked}")))
    return pool


def distinct(lineage):
    """Each record with all behind it, spelt out: what makes it one step and no other."""
    found = []
    for record, behind in zip(lineage, parents(lineage)):
        ends = [found[s.after] if s.after is not None else None for s in record.sources.values()]
        said = record.to_dict() | {"after": [found[i] for i in behind]}
        said.pop("sources", None)
        found.append(json.dumps([said, ends], sort_keys=True))
    return found


@settings(deadline=None, max_examples=150)
@given(lives(), st.randoms())
def test_unions_hold_each_step_once_in_order_and_count_the_same_in_any(pool, shuffle):
    whole, ends = united(pool)
    assert len(set(distinct(whole))) == len(whole)
    assert set(distinct(whole)) == {step for lineage in pool for step in distinct(lineage)}
    assert all(after < place for place, behind in enumerate(parents(whole)) for after in behind)
    for lineage, end in zip(pool, ends):
        if end is None:
            assert lineage == []
            continue
        again = [*before(whole, end), whole[end]]
        assert sorted(distinct(again[:-1])) == sorted(distinct(lineage[:-1]))
        assert distinct(lineage)[-1] == distinct(whole)[end]
    assert united([whole]) == (whole, [len(whole) - 1])
    assert united([whole, *pool])[0] == whole
    order = list(pool)
    shuffle.shuffle(order)
    assert sunk(united(order)[0]) == sunk(whole)


@settings(deadline=None, max_examples=100)
@given(lives())
def test_the_sum_is_over_distinct_runs_each_at_its_farthest(pool):
    whole, _ = united(pool)
    runs = {}
    for record, step in zip(whole, distinct(whole)):
        said, ends = json.loads(step)
        rest = json.dumps([{k: v for k, v in said.items() if k not in ("tokens", "flops", "summary")}, ends])
        runs[rest] = max(runs.get(rest, 0), record.tokens)
    assert sunk(whole).tokens == sum(runs.values())


@settings(deadline=None, max_examples=50)
@given(lives())
def test_what_is_written_is_read(tmp_path_factory, pool):
    folder = tmp_path_factory.mktemp("m")
    whole = manifest(*united(pool)[0])
    whole.write(folder)
    assert read_manifest(folder) == whole


@pytest.mark.parametrize("n", [400])
def test_a_long_life_is_no_deep_one(n):
    line = [INIT, *(trained(str(i)) for i in range(n))]
    assert sunk(merged(line, [*line, trained("x")])).tokens == 10 * (n + 1)
