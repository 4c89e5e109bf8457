"""rekindle.json: what was written is read; what is broken is refused by name."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rekindle.errors import RekindleError
from rekindle.store.lineage import parents, sunk
from rekindle.store.manifest import NAME, Manifest, Record, read_manifest

RECORD = Record(verb="upcycle", command="rekindle upcycle A B", options={"experts": {"value": 8, "origin": "flag"}})
WHOLE = Manifest(version="1", lineage=[RECORD], parameters={"total": 2}, shards={"a": {"bytes": 1, "sha256": "00"}})

FIRST = '{"verb": "init", "command": "", "options": {}}'

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def test_what_was_written_is_read(tmp_path):
    WHOLE.write(tmp_path)
    assert read_manifest(tmp_path) == WHOLE


def test_a_folder_of_others_has_none(tmp_path):
    assert read_manifest(tmp_path) is None


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "1", "null", "{}", '{"version": "1", "what": 1}', '{"version": "1", "lineage": [{}]}',
     '{"version": "1", "lineage": 1}', '{"version": "1", "lineage": ["x"]}', '{"version": "1", "shards": []}',
     '{"version": "1", "shards": {"a": 1}}', '{"version": "1", "shards": {"../a": {}}}',
     '{"version": "1", "shards": {"a": {"sha256": 1}}}', '{"version": 1}',
     '{"version": "1", "parameters": {"total": "x"}}',
     '{"version": "1", "promise": {"kind": 1, "text": ""}}', '{"version": "1", "promise": "exact"}',
     '{"version": "1", "lineage": [{"verb": 1, "command": "", "options": {}}]}',
     '{"version": "1", "lineage": [{"verb": "x", "command": "", "options": {}, "tokens": "many"}]}',
     *(f'{{"version": "1", "lineage": [{FIRST}, {{"verb": "x", "command": "", "options": {{}}, {more}}}]}}'
       for more in ('"after": 1', '"after": 2', '"after": -1', '"after": "0"', '"after": true', '"after": 0.0',
                    '"sources": []', '"sources": null', '"sources": {"a": 1}', '"sources": {"a": {}}',
                    '"sources": {"a": {"source": 1}}', '"sources": {"a": {"source": "s", "after": 1}}',
                    '"sources": {"a": {"source": "s", "after": -1}}', '"sources": {"a": {"source": "s", "what": 1}}',
                    '"source": "s", "sources": {"a": {"source": "s"}}',
                    '"after": 0, "sources": {"a": {"source": "s"}}',
                    '"source_fingerprint": "f", "sources": {"a": {"source": "s"}}')),
     "[" * 100_000, "\udcff"],
)  # fmt: skip
def test_broken_manifests_are_refused_by_name(tmp_path, text):
    (tmp_path / NAME).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(RekindleError, match="cannot be read") as refused:
        read_manifest(tmp_path)
    assert refused.value.where == tmp_path / NAME
    assert "holds no weights" in refused.value.hint


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(st.dictionaries(st.sampled_from(["version", "lineage", "parameters", "promise", "shards", "x"]), values))
def test_any_json_is_read_or_refused(tmp_path, data):
    (tmp_path / NAME).write_text(json.dumps(data))
    try:
        manifest = read_manifest(tmp_path)
    except RekindleError:
        return
    assert all(isinstance(entry, dict) for entry in manifest.shards.values())


afters = st.none() | st.integers(-2, 4) | values


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(
    st.lists(
        st.fixed_dictionaries(
            {"verb": st.just("x"), "command": st.just(""), "options": st.just({})},
            optional={
                "after": afters,
                "sources": values
                | st.dictionaries(
                    st.text(max_size=2), st.fixed_dictionaries({"source": st.text()}, optional={"after": afters})
                ),
            },
        ),
        max_size=4,
    )
)
def test_any_graph_is_read_as_one_that_can_be_walked_or_refused(tmp_path, records):
    (tmp_path / NAME).write_text(json.dumps({"version": "1", "lineage": records}))
    try:
        manifest = read_manifest(tmp_path)
    except RekindleError:
        return
    for place, behind in enumerate(parents(manifest.lineage)):
        assert all(0 <= after < place for after in behind)
    assert sunk(manifest.lineage).tokens == 0
    manifest.write(tmp_path)
    assert read_manifest(tmp_path) == manifest
