"""Tokenised corpora: nothing lost, nothing leaked, the same order from anywhere."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from train_helpers import WORDS, write_corpus

from rekindle import api
from rekindle.errors import RekindleError
from rekindle.train.model import load_tokenizer
from rekindle.train.order import permuted, sample_windows
from rekindle.train.split import place
from rekindle.train.text import open_source
from rekindle.train.tokens import Corpus, cache_folder, open_corpus, sample_tokens


@pytest.fixture(scope="module")
def tokenizer(small: Callable[..., Path]) -> Any:
    return load_tokenizer(small())


def decoded(tokenizer: Any, stream: np.ndarray) -> list[str]:
    """The documents in a token stream."""
    ends = np.flatnonzero(stream == tokenizer.eos_token_id)
    assert ends[-1] == len(stream) - 1
    return [tokenizer.decode(ids[ids != tokenizer.eos_token_id]) for ids in np.split(stream, ends[:-1] + 1)]


def test_every_document_is_there_once_and_on_one_side(tmp_path: Path, tokenizer: Any):
    texts = write_corpus(tmp_path / "a.jsonl", 80, seed=1)
    repeated = [*texts, *texts[:40]]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in repeated))
    corpus = open_corpus(str(tmp_path), tokenizer)
    train, validation = (decoded(tokenizer, stream) for stream in (corpus.train, corpus.validation))
    assert sorted(train + validation) == sorted(repeated)
    assert validation
    assert not set(train) & set(validation)
    assert corpus.meta.train_documents == len(train)
    assert (corpus.train.dtype, corpus.meta.empty_documents) == (np.uint16, 0)


def test_a_split_that_is_named_for_it_is_held_out_as_it_is(tmp_path: Path, tokenizer: Any):
    def rows(*texts: str) -> str:
        return "\n".join(json.dumps({"text": text}) for text in texts)

    (tmp_path / "train.jsonl").write_text(rows("one cat", "two cats", "three cats"))
    (tmp_path / "valid.jsonl").write_text(rows("a dog", "one cat"))
    (tmp_path / "test.jsonl").write_text(rows("a bird"))
    corpus = open_corpus(str(tmp_path), tokenizer)
    assert decoded(tokenizer, corpus.train) == ["one cat", "two cats", "three cats"]
    assert decoded(tokenizer, corpus.validation) == ["a dog", "one cat"]
    (tmp_path / "valid.jsonl").write_text(rows("a bird", "one cat"))
    assert decoded(tokenizer, open_corpus(str(tmp_path), tokenizer).validation) == ["a bird", "one cat"]


def test_what_a_large_corpus_holds_out_a_small_one_does_too(tmp_path: Path, tokenizer: Any):
    texts = write_corpus(tmp_path / "a.jsonl", 200, seed=2)
    held_out = set(decoded(tokenizer, open_corpus(str(tmp_path), tokenizer).validation))
    assert {text for text in texts if place(text) < 0.01} <= held_out


def test_two_documents_are_enough_and_one_is_not(tmp_path: Path, tokenizer: Any):
    path = tmp_path / "two.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\n{"text": "two"}\n')
    corpus = open_corpus(str(path), tokenizer)
    sides = [set(decoded(tokenizer, stream)) for stream in (corpus.train, corpus.validation)]
    assert sides in ([{"one"}, {"two"}], [{"two"}, {"one"}])
    path.write_text('{"text": "one"}\n{"text": "one"}\n')
    with pytest.raises(RekindleError, match="one document, which cannot be split"):
        open_corpus(str(path), tokenizer)
    path.write_text('{"text": " "}\n{"text": ""}\n')
    with pytest.raises(RekindleError, match=r"no text \(2 empty documents\)"):
        open_corpus(str(path), tokenizer)
    assert not list(cache_folder().rglob(".partial-*"))


def test_the_cache_is_used_renewed_and_mended(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("REKINDLE_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "a.jsonl"
    write_corpus(data)
    first = open_corpus(str(data), tokenizer).train.tolist()
    (made,) = (tmp_path / "cache" / "tokens").iterdir()
    stamp = (made / "train.bin").stat().st_mtime_ns
    assert open_corpus(str(data), tokenizer).train.tolist() == first
    assert (made / "train.bin").stat().st_mtime_ns == stamp
    os.truncate(made / "train.bin", 10)  # a torn copy is made again
    assert open_corpus(str(data), tokenizer).train.tolist() == first
    write_corpus(data, seed=5)
    assert open_corpus(str(data), tokenizer).train.tolist() != first
    assert len(list((tmp_path / "cache" / "tokens").iterdir())) == 2


def test_what_another_process_made_meanwhile_stays(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch):
    """It is open there already, or about to be."""
    from rekindle.train import tokens

    monkeypatch.setenv("REKINDLE_CACHE", str(tmp_path / "cache"))
    data, real, theirs = tmp_path / "a.jsonl", tokens._write, []
    write_corpus(data)

    def late(*args):
        meta = real(*args)
        monkeypatch.setattr(tokens, "_write", real)
        open_corpus(str(data), tokenizer)
        theirs.extend((tmp_path / "cache" / "tokens").glob("[!.]*"))
        theirs.append(theirs[0].stat().st_ino)
        return meta

    monkeypatch.setattr(tokens, "_write", late)
    ours = open_corpus(str(data), tokenizer)
    made, inode = theirs
    assert made.stat().st_ino == inode
    assert list(made.parent.iterdir()) == [made]
    assert ours.train.tolist() == open_corpus(str(data), tokenizer).train.tolist()


def test_what_a_killed_process_left_is_swept_away(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, corpus: Path
):
    monkeypatch.setenv("REKINDLE_CACHE", str(tmp_path))
    for name, age in ((".partial-old", 10**6), (".partial-busy", 10)):
        (tmp_path / "tokens" / name).mkdir(parents=True)
        (tmp_path / "tokens" / name / "train.bin").write_bytes(b"1")
        for path in (tmp_path / "tokens" / name / "train.bin", tmp_path / "tokens" / name):
            os.utime(path, (time.time() - age,) * 2)
    open_corpus(str(corpus), tokenizer)
    assert [path.name for path in (tmp_path / "tokens").glob(".partial-*")] == [".partial-busy"]


def test_a_full_disc_of_the_cache_names_the_cache(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    corpus = tmp_path / "corpus.jsonl"
    write_corpus(corpus)
    monkeypatch.setenv("REKINDLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("rekindle.train.tokens._write", full)
    with pytest.raises(RekindleError, match="The disc is full") as caught:
        open_corpus(str(corpus), tokenizer)
    assert "REKINDLE_CACHE" in caught.value.hint
    assert "OUT" not in caught.value.hint


def test_the_cache_lies_where_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("REKINDLE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "rekindle"


def test_a_slow_tokenizer_and_one_without_an_end(corpus: Path, caplog: pytest.LogCaptureFixture):
    class Slow:
        eos_token_id, bos_token_id, sep_token_id, name_or_path = None, 7, None, "slow"

        def get_vocab(self) -> dict[str, int]:
            return {word: n + 8 for n, word in enumerate(WORDS)} | {"?": 70_000}

        def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
            return {"input_ids": [[self.get_vocab().get(w, 70_000) for w in text.split()] for text in texts]}

        def __repr__(self) -> str:
            return "Slow()"

    slow = Slow()
    made = open_corpus(str(corpus), slow)
    assert made.train.dtype == np.uint32
    assert made.meta.largest_id == 70_000
    assert made.train[-1] == 7
    slow.bos_token_id = None  # type: ignore[assignment]
    caplog.clear()
    bare = open_corpus(str(corpus), slow)
    assert "slow has no end-of-text token: nothing parts the documents" in caplog.text
    assert bare.train.tolist() == made.train[made.train != 7].tolist()


def test_a_tokenizer_without_special_tokens_has_blank_lines_between_documents(
    corpus: Path, small: Callable[..., Path], caplog: pytest.LogCaptureFixture, tmp_path: Path
):
    folder = Path(shutil.copytree(small(), tmp_path / "bare"))
    described = json.loads((folder / "tokenizer_config.json").read_text())
    described.pop("eos_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    bare = load_tokenizer(folder)
    assert bare.eos_token_id is None
    made, usual = open_corpus(str(corpus), bare), open_corpus(str(corpus), load_tokenizer(small()))
    assert "no end-of-text token: a blank line parts the documents" in caplog.text
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    assert sorted(bare.decode(made.train).split("\n\n") + bare.decode(made.validation).split("\n\n"))[2:] == sorted(
        texts
    )
    assert made.meta.train_documents == usual.meta.train_documents
    found = api.evaluate(folder, data=str(corpus), tokens=500, seq_len=16)
    assert found["loss"] > 0
    made_of = api.rewrite(folder).save(tmp_path / "rewritten")
    assert api.verify(made_of, against=folder, data=str(corpus), tokens=64).held
    trained = api.train(
        folder, tmp_path / "trained", data=str(corpus), tokens=256, batch_tokens=128, seq_len=16, lr=1e-3
    )
    assert trained["steps"] == 2


def test_a_change_that_leaves_size_and_time_is_seen(tmp_path: Path, tokenizer: Any):
    data = tmp_path / "a.jsonl"
    write_corpus(data)
    first, before = open_corpus(str(data), tokenizer), data.stat()
    lines = data.read_bytes().splitlines(keepends=True)

    def rewrite(content: bytes) -> Corpus:
        data.write_bytes(content)
        os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (data.stat().st_size, data.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        return open_corpus(str(data), tokenizer)

    shuffled = rewrite(b"".join(lines[::-1]))
    assert shuffled.train.tolist() != first.train.tolist()
    assert sorted(shuffled.train) == sorted(first.train)
    assert shuffled.digest != first.digest
    changed = rewrite(b"".join(lines).replace(b"cat", b"dog"))
    assert changed.digest != first.digest
    assert rewrite(b"".join(lines)).digest == first.digest


def test_data_that_changes_while_it_is_read_is_refused(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch):
    from rekindle.train import split

    data = tmp_path / "a.jsonl"
    write_corpus(data)
    real = split.place

    def place(text: str) -> float:
        if text.startswith("Story 0.30:"):
            with data.open("a") as file:
                file.write(json.dumps({"text": "late"}) + "\n")
        return real(text)

    monkeypatch.setattr(split, "place", place)
    with pytest.raises(RekindleError, match="changed while it was read"):
        open_corpus(str(data), tokenizer)


def test_a_long_document_is_encoded_in_pieces_and_is_one_document(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
):
    from rekindle.train import encoder

    text = "".join(f"{n} " + " ".join(WORDS[: n % 9]) + "\n" * (1 + n % 2) for n in range(300))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in ("one", text, "two")))
    whole = open_corpus(str(tmp_path), tokenizer)
    monkeypatch.setenv("REKINDLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(encoder, "_PIECE_CHARS", 500)
    asked = []
    real = encoder.Encoder._encoded
    monkeypatch.setattr(encoder.Encoder, "_encoded", lambda self, texts: asked.extend(texts) or real(self, texts))
    pieces = open_corpus(str(tmp_path / "a.jsonl"), tokenizer)
    assert max(map(len, asked)) <= 500
    assert pieces.digest == whole.digest


@given(st.integers(1, 3000), st.integers(0, 2**31), st.integers(0, 5))
def test_an_epoch_is_a_permutation(size: int, seed: int, epoch: int):
    order = permuted(np.arange(size), size, (seed, epoch))
    assert np.array_equal(np.sort(order), np.arange(size))


@given(st.integers(1, 50), st.integers(0, 200), st.integers(1, 30), st.integers(1, 30))
def test_the_order_does_not_depend_on_how_it_is_read(windows: int, first: int, one: int, two: int):
    together = sample_windows(first, one + two, windows, seed=3)
    apart = [sample_windows(first, one, windows, 3), sample_windows(first + one, two, windows, 3)]
    assert np.array_equal(together, np.concatenate(apart))


def test_epochs_and_seeds_differ():
    first, second = (sample_windows(epoch * 1000, 1000, 1000, seed=0) for epoch in (0, 1))
    assert (first != second).mean() > 0.9
    assert (first != sample_windows(0, 1000, 1000, seed=1)).mean() > 0.9
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.1


def test_a_batch_is_windows_of_the_stream_with_the_token_that_follows(corpus: Path, tokenizer: Any):
    made = open_corpus(str(corpus), tokenizer)
    windows = made.windows(32)
    batch = made.batch(0, windows, 32, seed=0)
    assert batch.shape == (windows, 33)
    assert sorted(map(tuple, batch)) == sorted(tuple(made.train[32 * n : 32 * n + 33].tolist()) for n in range(windows))


def test_samples_are_spread_over_the_validation_text(corpus: Path, small: Callable[..., Path], tokenizer: Any):
    made = open_corpus(str(corpus), tokenizer)
    sample = sample_tokens(small(), str(corpus), 64, 16)
    assert (sample.shape, sample.dtype) == ((4, 16), np.int64)
    assert sample[0].tolist() == made.validation[:16].tolist()
    everything = made.sample("all", 10**9, 16)
    assert len(everything) == sum((len(s) - 1) // 16 for s in (made.train, made.validation))
    with pytest.raises(RekindleError, match="too short for a sequence of 100000"):
        made.sample("validation", 10, 100_000)


def test_tokens_are_made_without_holding_the_text(tmp_path: Path, tokenizer: Any):
    """The documents come in chunks: no more than one chunk is asked for before the one before it is written."""
    from rekindle.train import encoder

    (tmp_path / "long.txt").write_text("word " * 400_000)
    chunks = list(encoder.chunks(open_source(str(tmp_path)).documents(), 100_000))
    assert all(sum(map(len, chunk)) <= 100_000 + 2**16 for chunk in chunks)
    assert len(chunks) > 10


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer.json", None, 'tokenizer.json has no "added_tokens"'),
        ("tokenizer.json", "{", "tokenizer.json is not JSON"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json is no JSON object"),
    ],
)
def test_a_tokenizer_that_cannot_be_loaded_names_its_file(
    small: Callable[..., Path], tmp_path: Path, name: str, content: str | None, said: str
):
    shutil.copytree(small(), tmp_path / "model")
    path = tmp_path / "model" / name
    whole = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(content or json.dumps({key: x for key, x in whole.items() if key != "added_tokens"}))
    with pytest.raises(RekindleError, match=f"No tokenizer can be loaded: {said}"):
        load_tokenizer(tmp_path / "model")
