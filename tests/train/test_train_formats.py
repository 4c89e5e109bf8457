"""The same rows in every format that people have them in, and what is no text."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import pickle
import resource
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import ipc, parquet

from rekindle.errors import RekindleError
from rekindle.train.text import open_source
from rekindle.train.text.stream import json_values

ROWS = [{"id": n, "text": f'Story {n}: "ä" of {n},\n\nand more; \\ \t'} for n in range(300)]
TEXTS = [row["text"] for row in ROWS]


def documents(path: Path, **options: Any) -> list[Any]:
    return list(open_source(str(path), **options).documents())


def held_out(path: Path) -> list[Any]:
    """What is held out because a split is named for it."""
    apart = open_source(str(path)).held_out
    return list(apart.documents()) if apart else []


def refused(path: Path | str, **options: Any) -> str:
    with pytest.raises(RekindleError) as caught:
        list(open_source(str(path), **options).documents())
    return str(caught.value)


def lines(rows: list[dict] = ROWS) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def cells(mark: str, column: str = "text") -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=mark)
    writer.writerow(["id", column])
    writer.writerows(row.values() for row in ROWS)
    return out.getvalue().encode()


def table() -> pa.Table:
    return pa.table({name: [row[name] for row in ROWS] for name in ("id", "text")})


def as_parquet() -> bytes:
    out = io.BytesIO()
    parquet.write_table(table(), out)
    return out.getvalue()


def as_arrow(new: Callable) -> bytes:
    out = io.BytesIO()
    with new(out, table().schema) as writer:
        writer.write_table(table(), max_chunksize=70)
    return out.getvalue()


def zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


FORMATS = {
    "lines.jsonl": lines,
    "lines.json": lines,
    "lines.txt": lines,
    "part-00000": lines,
    "lines.data": lines,
    "mark.jsonl": lambda: b"\xef\xbb\xbf" + lines(),
    "array.json": lambda: json.dumps(ROWS).encode(),
    "pretty.json": lambda: json.dumps(ROWS, indent=2).encode(),
    "array.jsonl": lambda: json.dumps(ROWS).encode(),
    "array.txt": lambda: json.dumps(ROWS).encode(),
    "objects.json": lambda: b"\n".join(json.dumps(row, indent=1).encode() for row in ROWS),
    "cells.csv": lambda: cells(","),
    "cells.tsv": lambda: cells("\t"),
    "europe.csv": lambda: cells(";"),
    "rows.parquet": as_parquet,
    "rows": as_parquet,
    "file.arrow": lambda: as_arrow(ipc.new_file),
    "rows.feather": lambda: as_arrow(ipc.new_file),
    "stream.arrow": lambda: as_arrow(ipc.new_stream),
}
COMPRESSIONS = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress, ".zst": zstd}
UNPACKED = ("rows.parquet", "rows", "file.arrow", "rows.feather")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_documents(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(FORMATS[name]())
    assert documents(tmp_path / name) == TEXTS
    assert documents(tmp_path) == TEXTS


@pytest.mark.parametrize("ending", COMPRESSIONS)
@pytest.mark.parametrize("name", [name for name in FORMATS if name not in UNPACKED])
def test_compressed_too(tmp_path: Path, name: str, ending: str):
    path = tmp_path / (name + ending)
    path.write_bytes(COMPRESSIONS[ending](FORMATS[name]()))
    assert documents(path) == TEXTS
    path.rename(tmp_path / "named-otherwise.jsonl" if "jsonl" in name else path)
    assert documents(tmp_path) == TEXTS


@pytest.mark.parametrize("ending", COMPRESSIONS)
def test_streams_one_after_the_other_and_torn_ones(tmp_path: Path, ending: str):
    pack = COMPRESSIONS[ending]
    path = tmp_path / ("x.jsonl" + ending)
    path.write_bytes(pack(lines(ROWS[:100])) + pack(lines(ROWS[100:])))
    assert documents(path) == TEXTS
    path.write_bytes(pack(lines())[:-50])
    assert "cannot be read" in refused(path)
    (tmp_path / "book.txt").write_bytes(pack(b"a plain text\n"))
    assert documents(tmp_path / "book.txt") == ["a plain text\n"]


def test_text_is_taken_for_rows_only_where_its_lines_share_a_text(tmp_path: Path):
    path = tmp_path / "notes.txt"
    for text in ('{"id": 1}\n{"id": 2}\n', '{"text": "a"}\nand then\n', '{"a": "x"}\n{"b": "x"}\n', '{"text": null}\n'):
        path.write_text(text)
        assert documents(path) == [text]
    path.write_text('{"text": null}\n\n' + 99 * '{"text": "c"}\n' + "{torn\n")  # beyond what is looked at
    assert "line 102" in refused(path)
    path.write_text('{"content": "x"}\n')  # rows, and then a column is asked for
    assert "--text-column content" in refused(path)
    path.write_text('["not", "rows"]\n')
    assert documents(path) == ['["not", "rows"]\n']


def seems(tmp_path: Path) -> dict[str, tuple[bytes, str]]:
    import torch
    from safetensors.numpy import save

    torch.save({"a": torch.zeros(3)}, tmp_path / "torch")
    np.save(tmp_path / "numpy.npy", np.zeros(3))
    with tarfile.open(tmp_path / "tar", "w") as tar:
        tar.add(tmp_path / "torch")
    return {
        "model.pt": ((tmp_path / "torch").read_bytes(), "zip archive"),
        "notes.txt": (b"\x89PNG\r\n\x1a\n", "PNG picture"),
        "n.npy": ((tmp_path / "numpy.npy").read_bytes(), "numpy array"),
        "x.tar": ((tmp_path / "tar").read_bytes(), "tar archive"),
        "x.tar.gz": (gzip.compress((tmp_path / "tar").read_bytes()), "tar archive, compressed with gzip"),
        "x.jsonl.gz": (gzip.compress(gzip.compress(lines())), "compressed with gzip"),
        "w.safetensors": (save({"a": np.zeros(3)}), "safetensors"),
        "p.jsonl": (pickle.dumps(ROWS), "pickle"),
        "wide.txt": ("some words".encode("utf-16"), "UTF-16"),
        "wide.csv": ("some words".encode("utf-16-le"), "UTF-16"),
        "zeros.txt": (b"text\0text", "binary"),
        "lfs.jsonl": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "pointer of Git LFS"),
        "page.json": (b"<!DOCTYPE html><p>Log in</p>", "no JSON of rows"),
        "rows.parquet": (lines(), "no Parquet"),
        "rows.parquet.gz": (gzip.compress(as_parquet()), "Parquet compressed with gzip"),
        "d.db": (b"SQLite format 3\0" + bytes(80), "SQLite"),
        "c.rk": (b"REKINDLE" + bytes(80), "archive of checkpoints"),
    }


def test_what_is_no_text_is_named_and_refused(tmp_path: Path):
    for name, (content, words) in seems(tmp_path).items():
        (tmp_path / name).write_bytes(content)
        said = refused(tmp_path / name)
        assert "cannot be read as text" in said
        assert words in said
        assert name in said


def test_bad_rows_are_named_with_the_place(tmp_path: Path):
    def said(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        return refused(tmp_path / name)

    assert "row 2" in said("a.json", b'[{"text": "a"}, 3]')
    assert "row 3" in said("a.json", json.dumps(ROWS[:3]).encode()[:-9])
    assert "comma is missing" in said("a.json", b'[{"text": "a"} {"text": "b"}]')
    assert "no end" in said("a.json", b'[{"text": "a"}')
    assert "follows the end" in said("a.json", b'[{"text": "a"}] {}')
    assert "not JSON" in said("a.json", b'[{"text": ' + b"[" * 100_000)
    assert 'no field "text", only data' in said("a.json", json.dumps({"data": ROWS}).encode())
    assert "3 cells, but the header has 2" in said("a.csv", b"id,text\n1,a,b\n")
    assert "not CSV" in said("a.csv", b'id,text\n1,"a\nb\n')
    assert "line 2" in said("a.csv", b"id,text\n1,caf\xe9\n")
    assert 'no field "text", only id, body' in said("a.csv", b"id,body\n1,a\n")
    assert '"text" more than once' in said("a.csv", b"text,text\n1,a\n")
    for name in ("a.csv", "a.json", "a.jsonl", "a.txt"):
        (tmp_path / name).write_bytes(b"")
        assert documents(tmp_path / name) == []


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 1000])
@pytest.mark.parametrize("indent", [None, 1])
def test_json_in_windows_of_any_size(monkeypatch: pytest.MonkeyPatch, size: int, indent: int | None):
    from rekindle.train.text import stream

    monkeypatch.setattr(stream, "_BLOCK_BYTES", size)
    rows: list[dict] = [{}, {"a": [1, {"b": None}], 'ä"}': "]😀\\"}, {"c": -1.5e3, "d": [[], {}]}, {"": True}]
    for some in (rows, rows[:1], []):
        data = json.dumps(some, indent=indent, ensure_ascii=False).encode()
        assert [row for _, row in json_values(io.BytesIO(data), Path("x"))] == some


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.txt"])
def test_a_row_without_an_end_is_refused_in_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    from rekindle.train.text import read, source, stream

    for module in (read, source, stream):
        monkeypatch.setattr(module, "LONGEST", 1 << 22)
    head = {"x.json": b'[{"text": "', "x.csv": b'id,text\n1,"'}.get(name, b'{"text": "')
    with (tmp_path / name).open("wb") as file:
        file.write(head)
        for _ in range(64):
            file.write(b"x" * (1 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if name == "x.txt":  # a text without line breaks is only cut
        assert sum(map(len, documents(tmp_path / name))) == (1 << 26) + len(head)
    else:
        assert "longer than 4 MiB" in refused(tmp_path / name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.json", '["one", "two"]', r"it is a JSON array of strings, where rows are objects"),
        ("x.json", '"one"', r"""it begins with '"one"'\."""),
        ("x.jsonl", '"one"\n"two"\n', 'There is no field "text": the row is a string, no object'),
        ("x.jsonl", "[1]\n", 'There is no field "text": the row is an array, no object'),
        ("x.jsonl", '{"text": "a"}\n{}\n', r'There is no field "text": the row is empty'),
        ("x.csv", '1,"Hello, you"\n2,Bye\n', "the first line, which names the columns, looks like a row"),
        ("x.tsv", "It was a dark night\tfiction\n", "the first line, which names the columns, looks like a row"),
        ("x.csv", "id,body text\n1,Bye\n", "--text-column COLUMN: id, body text"),
    ],
)
def test_rows_of_other_things_are_told_as_what_they_are(tmp_path: Path, name: str, content: str, said: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(RekindleError, match=said) as caught:
        documents(tmp_path / name)
    assert "b'" not in str(caught.value)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "This is a pipe" in refused(tmp_path / "pipe.jsonl")
    assert "This is a device" in refused("/dev/zero")
    assert "empty name" in refused("")
    assert "empty name" in refused("  ")
    assert "cannot be read" in refused("x" * 5000)
    assert "cannot be read" in refused("a\0b")
    (tmp_path / "a.txt").write_text("text")
    assert documents(tmp_path) == ["text"]


# --- folders


def folder(root: Path, **files: bytes) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def test_words_about_the_data_are_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    about = {"README.md": b"# about", "LICENSE.txt": b"mit", "LICENSE": b"mit", "a.bin": b"\0", "b.bin": b"\0"}
    configs = {"config.json": b'{\n "a": 1}', "vocab.json": b'{"a": 1}', ".git/x.txt": b"x"}
    folder(tmp_path, **{"c4.json.gz": gzip.compress(lines())}, **about, **configs)
    assert documents(tmp_path) == TEXTS
    assert "reads 1 .json.gz; left out: 2 .bin, 2 .json, 1 hidden folder" in caplog.text
    assert all(f"1 {name}" in caplog.text for name in ("README.md", "LICENSE", "LICENSE.txt"))


def test_a_readme_among_texts_is_a_text(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    assert documents(folder(tmp_path, **{"a.txt": b"one", "README.md": b"two"})) == ["two", "one"]
    assert not caplog.text


def test_of_splits_the_one_to_train_on_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    shards = {f"data/train-0000{n}-of-00002.jsonl": lines(ROWS[100 * n : 100 * n + 100]) for n in range(2)}
    folder(tmp_path / "hub", **shards, **{"data/test-00000-of-00001.jsonl": lines(), "README.md": b"card"})
    assert documents(tmp_path / "hub") == TEXTS[:200]
    assert "1 of the split test" in caplog.text
    folder(
        tmp_path / "dirs",
        **{"train/0.jsonl": lines(ROWS[:9]), "validation/0.jsonl": lines(), "x.jsonl": b'{"text": "x"}'},
    )
    assert documents(tmp_path / "dirs") == TEXTS[:9] + ["x"]
    assert held_out(tmp_path / "dirs") == TEXTS
    assert documents(folder(tmp_path / "alone", **{"test/0.jsonl": lines(ROWS[:9])})) == TEXTS[:9]


def test_a_folder_never_hides_what_it_cannot_read(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    assert "PNG" in refused(folder(tmp_path / "a", **{"a.txt": b"\x89PNG\r\n", "b.txt": b"text"}))
    assert 'no field "text"' in refused(folder(tmp_path / "b", **{"a.jsonl": lines(), "b.csv": b"id,body\n1,x\n"}))
    only = folder(tmp_path / "c", **{"a.json": b'{"content": "x"}', "b.dat": b"x"})
    assert "left out: 1 .json, 1 .dat" in refused(only)
    assert documents(only, column="content") == ["x"]
    root = folder(tmp_path / "d", **{"a.txt": b"one"})
    os.mkfifo(root / "pipe.txt")
    (root / "gone.txt").symlink_to("nowhere")
    (root / "linked").symlink_to(tmp_path / "c")
    assert documents(root) == ["one"]
    assert all(words in caplog.text for words in ("1 link to a folder", "1 pipe or device", "1 dangling link"))


def test_a_saved_dataset(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    import datasets

    rows = datasets.Dataset.from_list(ROWS)
    rows.filter(lambda row: row["id"] < 50).save_to_disk(tmp_path / "one")
    assert documents(tmp_path / "one") == TEXTS[:50]
    datasets.load_from_disk(tmp_path / "one").map(lambda row: {"text": row["text"] * 2})
    assert documents(tmp_path / "one") == TEXTS[:50]  # not what map left beside it
    assert documents(tmp_path) == TEXTS[:50]
    datasets.DatasetDict({"test": rows, "train": rows.select(range(9))}).save_to_disk(tmp_path / "two")
    assert documents(tmp_path / "two") == TEXTS[:9]
    assert "reads train; left out: test" in caplog.text
    three = {"test": rows, "train": rows.select(range(9)), "validation": rows.select(range(9, 12))}
    datasets.DatasetDict(three).save_to_disk(tmp_path / "three")
    assert (documents(tmp_path / "three"), held_out(tmp_path / "three")) == (TEXTS[:9], TEXTS[9:12])
    assert "reads train and validation; left out: test" in caplog.text


# --- columns


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.dat", "a.parquet", "a.arrow", "one.csv", "saved"]
)
def test_a_column_of_another_name(tmp_path: Path, name: str):
    path, rows = tmp_path / name, [{"id": n, "content": text} for n, text in enumerate(TEXTS)]
    if name == "saved":
        import datasets

        datasets.Dataset.from_list(rows).save_to_disk(path)
    elif name == "a.parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif name == "a.arrow":
        with ipc.new_file(str(path), pa.Table.from_pylist(rows).schema) as writer:
            writer.write_table(pa.Table.from_pylist(rows))
    elif name == "one.csv":
        path.write_text("content\n" + "".join('"' + text.replace('"', '""') + '"\n' for text in TEXTS))
    else:
        path.write_bytes({"a.jsonl": lines(rows), "a.json": json.dumps(rows).encode()}.get(name, cells(",", "content")))
    assert documents(path, column="content") == TEXTS
    assert 'no field "nothing"' in refused(path, column="nothing") or name in ("a.txt", "a.dat")
    if name not in ("a.txt", "a.dat"):
        assert "--text-column" in refused(path)
        assert "content" in refused(path).splitlines()[-1]


def test_plain_text_has_no_columns(tmp_path: Path):
    (tmp_path / "a.txt").write_text("some text")
    assert "plain text" in refused(tmp_path / "a.txt", column="body")


@pytest.mark.parametrize(
    "verb", [pytest.param("init", marks=pytest.mark.slow), "train", "evaluate", "utility", "verify"]
)
def test_every_verb_that_reads_rows_is_told_the_column(verb: str, small: Callable[..., Path], tmp_path: Path):
    """What is typed with the column gives the numbers of the same rows with `text`, and without it is refused."""
    from click.testing import CliRunner

    from rekindle.cli.verbs import rekindle

    folder = small("mixtral")
    for name in ("text", "content"):
        (tmp_path / f"{name}.jsonl").write_bytes(lines([{"id": row["id"], name: row["text"]} for row in ROWS]))
    sizes = ["--tokens", "128", "--batch-tokens", "64", "--seq-len", "16"]
    words = {
        "init": ["init", "OUT", "--hidden", "16", "--layers", "1", "--heads", "2", "--tokenizer", "bpe:300"],
        "train": ["train", str(folder), "OUT", "--lr", "1e-3", *sizes],
        "evaluate": ["evaluate", str(folder), "--tokens", "128", "--seq-len", "16"],
        "utility": ["utility", str(folder), "--batches", "1", *sizes[2:]],
        "verify": ["verify", str(folder), "--against", str(folder), "--tokens", "64"],
    }[verb]

    def typed(name: str, *more: str) -> Any:
        said = [str(tmp_path / f"out-{name}-{len(more)}") if word == "OUT" else word for word in words]
        data = ["--data", str(tmp_path / f"{name}.jsonl"), "--format", "json"]
        return CliRunner().invoke(rekindle, [*said, *data, *more])

    refused = typed("content")
    assert isinstance(refused.exception, RekindleError)
    assert refused.exception.hint.startswith("--text-column content")
    told, usual = (json.loads(typed(*said).stdout) for said in (("content", "--text-column", "content"), ("text",)))
    numbers = {"init": ["vocab_size"], "train": ["loss", "val_loss"], "evaluate": ["loss"], "utility": ["layers"]}
    for number in numbers.get(verb, ["loss_child"]):
        assert told[number] == usual[number]
