"""Data of texts and tunes: what is in it, on which side, in which words and keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tune_helpers import book, random_tune

from rekindle import api
from rekindle.errors import RekindleError
from rekindle.music import books
from rekindle.music.abc.header import tunes_of, written
from rekindle.music.abc.keys import Key
from rekindle.music.abc.plain import plain
from rekindle.music.abc.reader import read_tune
from rekindle.music.likeness import SAME, likeness, shapes
from rekindle.music.vocabulary import END, PAD, is_of_tunes, make_tune_tokenizer, pieces, vocabulary
from rekindle.music.words import asked


@pytest.fixture(scope="module")
def abc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 drawn tunes; of every tenth a version in another key, under another name."""
    folder = tmp_path_factory.mktemp("abc")
    text = book(range(60))
    versions = [
        f"X:{100 + at}\nT:Another Name\nR:{tune.first('R')}\n{plain(tune).transposed('A').text}\n"
        for at, tune in enumerate(list(tunes_of(text))[::10])
    ]
    (folder / "one.abc").write_text(text)
    (folder / "more").mkdir()
    (folder / "more" / "two.ABC").write_text("\n".join(versions), encoding="latin-1")
    (folder / "README.txt").write_text("not a tune")
    return folder


@pytest.fixture(scope="module")
def data(abc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "data"
    api.music_data(out, source=str(abc), validation=0.2, test=0.2)
    return out


def rows(data: Path, side: str, kind: str = "pairs") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (data / kind / f"{side}.jsonl").read_text().splitlines()]


def test_versions_of_a_tune_are_on_one_side(data: Path):
    sides = {side: {row["target"] for row in rows(data, side)} for side in ("train", "validation", "test")}
    found = {side: [shapes(read_tune(written(text))) for text in texts] for side, texts in sides.items()}
    across = [
        likeness(a, b)
        for one, other in (("train", "validation"), ("train", "test"), ("validation", "test"))
        for a in found[one]
        for b in found[other]
    ]
    assert max(across) < SAME
    learnt = {row["target"] for row in rows(data, "train", "tunes")}
    assert learnt >= sides["train"]  # and what a decoder learns beforehand is of that side, too
    held = found["validation"] + found["test"]
    assert max(likeness(shapes(read_tune(written(text))), other) for text in learnt for other in held) < SAME
    told = json.loads((data / "data.json").read_text())
    assert sum(told["tunes"].values()) == 66
    assert told["groups"] == 60
    assert {row["title"] for side in sides for row in rows(data, side)} >= {"Another Name", "The Drawn Tune, No. 3"}


def test_rows_say_what_is_true_of_their_tune(data: Path):
    for row in rows(data, "train") + rows(data, "test"):
        tune, wanted = read_tune(written(row["target"])), asked(row["source"].replace(row["title"], ""))
        assert wanted.metre in ("", tune.metre)
        assert wanted.key in (None, tune.key)
        assert plain(written(row["target"])).text == row["target"]


def test_keys_and_wordings(data: Path):
    train = rows(data, "train")
    numbers = {row["tune"] for row in train}
    for number in numbers:
        own = [row for row in train if row["tune"] == number]
        assert len(own) == 4
        keys = {read_tune(written(row["target"])).key for row in own}
        assert 1 <= len(keys) == len({row["target"] for row in own}) <= 3  # where it is too wide for other keys: less
    assert 2 * len(numbers) < len(rows(data, "train", "tunes")) <= 3 * len(numbers)
    held_out = rows(data, "validation")
    assert len({row["target"] for row in held_out}) == len({row["tune"] for row in held_out})
    assert {row["target"] for row in rows(data, "validation", "tunes")} == {row["target"] for row in held_out}
    assert not (data / "tunes" / "test.jsonl").exists()


def test_the_same_options_give_the_same_bytes(data: Path, abc: Path, tmp_path: Path):
    again = tmp_path / "again"
    api.music_data(again, source=str(abc), validation=0.2, test=0.2)
    for path in sorted(data.rglob("*.jsonl")):
        assert (again / path.relative_to(data)).read_bytes() == path.read_bytes()
    api.music_data(tmp_path / "other", source=str(abc), validation=0.2, test=0.2, seed=1)
    assert rows(tmp_path / "other", "test") != rows(data, "test")


def test_rows_of_texts_and_tunes(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    tunes = [random_tune(seed, keys=(Key("D", "major"),)) for seed in range(20)]
    lines = [json.dumps({"said": f"tune {at} \x07", "abc": f"X:1\n{tune}"}) for at, tune in enumerate(tunes)]
    lines += [lines[0].replace("tune 0", "another text"), lines[0]]  # a tune may have several texts, each once
    path.write_text("\n".join(lines))
    made = {"source": str(path), "source_column": "said", "target_column": "abc", "keys": 1}
    told = api.music_data(tmp_path / "out", **made, validation=0.2, test=0.2)
    assert (sum(told["tunes"].values()), told["groups"], told["left_out"]) == (21, 20, {"is there already": 1})
    texts = {side: {row["source"] for row in rows(tmp_path / "out", side)} for side in told["tunes"]}
    assert set().union(*texts.values()) == {*(f"tune {at} \x07" for at in range(20)), "another text \x07"}
    assert [text for text in texts.values() if {"tune 0 \x07", "another text \x07"} <= text]  # on one side


@pytest.mark.parametrize(
    ("options", "why"),
    [({"keys": 0}, "at least 1"), ({"validation": 0.0}, "shares above 0"), ({"test": 0.9}, "shares above 0"),
     ({"essen": True}, "music21"), ({"source": "nowhere.jsonl"}, "no such file"), ({"longest": 9}, "too few")],
)  # fmt: skip
def test_what_cannot_be(abc: Path, tmp_path: Path, options: dict[str, Any], why: str):
    with pytest.raises(RekindleError, match=why):
        api.music_data(tmp_path / "out", **({"source": str(abc)} | options))
    assert not (tmp_path / "out").exists()


def test_files_without_tunes_and_no_music21(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.abc").write_text("nothing but words\n")
    with pytest.raises(RekindleError, match="no tune in it"):
        books.open_shelf(str(tmp_path))
    monkeypatch.setattr(books, "find_spec", lambda name: None)
    with pytest.raises(RekindleError, match=r"(?s)not installed.*rekindle\[music\]"):
        books.open_shelf("music21")


def test_music21_s_books_are_read_and_their_terms_said():
    shelf = books.open_shelf("music21")
    assert len(shelf.entries) == 4248
    assert set(shelf.terms) == {"O'Neill's Music of Ireland", "Ryan's Mammoth Collection", "Aird's Airs"}
    assert all("no licence" in terms for terms in shelf.terms.values())
    assert not [entry for entry in shelf.entries if "=20" in entry.written.body]


def test_the_vocabulary_spells_plain_tunes(tmp_path: Path):
    assert len(set(vocabulary())) == len(vocabulary())
    tokenizer = make_tune_tokenizer(512)
    text = random_tune(1)
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == [*(pieces(text) or ()), END]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token) == (PAD, END, END)
    assert pieces("A@B") is None
    assert tokenizer.convert_ids_to_tokens(tokenizer("A@B")["input_ids"]) == ["A", "B", END]
    tokenizer.save_pretrained(tmp_path)
    from rekindle.train.model import load_tokenizer

    assert is_of_tunes(load_tokenizer(tmp_path))
