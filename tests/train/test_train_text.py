"""Documents, and every kind of bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rekindle.errors import RekindleError
from rekindle.train.text import DOCUMENT_CHARS, open_source


def documents(path: Path | str) -> list[str]:
    return list(open_source(str(path)).documents())


def refused(path: Path | str) -> str:
    with pytest.raises(RekindleError) as caught:
        documents(path)
    return str(caught.value)


def test_each_kind_of_file(tmp_path: Path):
    import pyarrow as pa
    from pyarrow import parquet

    (tmp_path / "a.txt").write_text("plain text")
    (tmp_path / "b.jsonl").write_text('{"text": "first"}\n\n{"text": "zweite ä"}\n{"text": ""}\n{"text": null}\n')
    (tmp_path / "deep").mkdir()
    parquet.write_table(pa.table({"id": [1, 2], "text": ["row one", None]}), tmp_path / "deep" / "c.parquet")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff")
    source = open_source(str(tmp_path))
    assert list(source.documents()) == ["plain text", "first", "zweite ä", "row one"]
    assert source.empty == 3


def test_the_standard_library_without_its_tests():
    source = open_source("stdlib")
    names = [path.as_posix() for path in source.files]
    assert names == sorted(names)
    assert any(name.endswith("/argparse.py") for name in names)
    assert not any("/test/" in name or "site-packages" in name or "/idlelib/" in name for name in names)
    assert source.size > 5_000_000


def test_python_is_the_standard_library_and_the_packages_needed():
    source, part = open_source("python"), open_source("stdlib")
    assert source.files[: len(part.files)] == part.files
    assert source.size > 3 * part.size > 3e7
    assert not any({"test", "tests"} & set(path.parts) for path in source.files)
    assert {path.suffix for path in source.files} == {".py"}


def test_a_long_text_is_cut_at_blank_lines_and_loses_nothing(tmp_path: Path):
    text = "\n\n".join(f"paragraph {n} " + "word " * 50 for n in range(3000))
    (tmp_path / "long.txt").write_text(text)
    parts = documents(tmp_path / "long.txt")
    assert "".join(parts) == text
    assert len(parts) > 5
    assert all(len(part) <= DOCUMENT_CHARS and part.endswith("\n\n") for part in parts[:-1])


@settings(max_examples=20)
@given(st.text(alphabet="aé\n😀", min_size=1, max_size=40), st.integers(1, 6000))
def test_any_text_survives_the_cutting(tmp_path_factory: pytest.TempPathFactory, piece: str, times: int):
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_bytes((piece * times).encode())
    parts = list(open_source(str(path))._all())
    assert "".join(parts) == piece * times


def test_bad_files_are_named_with_the_place(tmp_path: Path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"text": "torn')
    assert "not JSON" in refused(bad)
    assert "line 2" in refused(bad)
    bad.write_text('{"content": "x", "id": 3}\n')
    assert 'no field "text", only content, id' in refused(bad)
    bad.write_text('["text"]\n')
    assert 'no field "text"' in refused(bad)
    bad.write_text('{"text": 3}\n')
    assert "holds int, not text" in refused(bad)
    bad.write_bytes(b'{"text": "\xff\xfe"}\n')
    assert "not JSON" in refused(bad)
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"x" * 100 + b"\xe9t\xe9")
    assert "not UTF-8: byte 0xe9 near offset 100" in refused(latin)
    torn = tmp_path / "torn.parquet"
    torn.write_bytes(b"PAR1 and nothing more")
    assert "Parquet" in refused(torn)
    assert str(torn) in refused(torn)


def test_parquet_without_text(tmp_path: Path):
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "numbers.parquet"
    parquet.write_table(pa.table({"text": [1, 2]}), path)
    assert "holds int, not text" in refused(path)
    parquet.write_table(pa.table({"body": ["a"]}), path)
    assert 'no field "text", only body' in refused(path)


def test_missing_and_empty(tmp_path: Path):
    assert "no such file" in refused(tmp_path / "missing.jsonl")
    assert "no such file" in refused("./missing")
    (tmp_path / "empty").mkdir()
    assert "no file of text" in refused(tmp_path / "empty")


def test_a_dataset_that_cannot_be_loaded():
    assert "no dataset that can be loaded" in refused("nobody/has-this-dataset")


def test_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets

    rows = datasets.Dataset.from_dict({"text": ["one", "", "two"], "n": [1, 2, 3]})
    rows.save_to_disk(tmp_path / "rows")
    asked = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or datasets.load_from_disk(tmp_path / "rows")
    )
    source = open_source("name/of-it:config")
    assert asked == [(("name/of-it", "config"), {"split": "train"})]
    assert list(source.documents()) == ["one", "two"]
    assert source.size > 0


def test_half_a_character_becomes_a_question_mark(tmp_path: Path):
    path = tmp_path / "half.jsonl"
    path.write_text(json.dumps({"text": "\ud800 half"}) + "\n")
    assert documents(path) == ["? half"]
