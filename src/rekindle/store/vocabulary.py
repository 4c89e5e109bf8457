"""Which token has which number: read out of a tokenizer's files, without its library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from rekindle.errors import RekindleError
from rekindle.store.index import read_json
from rekindle.store.reading import opened, unreadable

FAST, SLOW, LINES = "tokenizer.json", "vocab.json", "vocab.txt"
CONFIG, ADDED, SPECIAL = "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"
ALL = (FAST, SLOW, LINES, CONFIG, ADDED, SPECIAL, "merges.txt", "chat_template.jinja")
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


class Vocabulary:
    """The tokens of a folder's tokenizer; raises RekindleError where its files are broken."""

    def __init__(self, folder: Path, named: str = ""):
        self.folder = folder
        self.named = named or str(folder)  # to whoever named it
        self.file = next((folder / name for name in (FAST, SLOW, LINES) if (folder / name).is_file()), None)

    @property
    def why_none(self) -> str:
        """Why no tokens can be read here."""
        if found := [path.name for path in sorted(self.folder.glob("*")) if path.suffix in (".model", ".tiktoken")]:
            return f"{self.named} has only {found[0]}, which is not read here: save it with {FAST} first"
        return f"{self.named} has no {FAST}, {SLOW} or {LINES}"

    @cached_property
    def digest(self) -> str:
        """Of the files the tokens are read from: the same, the same tokens."""
        state = hashlib.sha256()
        beside = [] if self.file and self.file.name == FAST else [self.folder / ADDED, self.folder / CONFIG]
        for path in [self.file, *beside]:
            try:
                if path is not None and path.is_file():
                    with opened(path) as file:
                        state.update(path.name.encode() + hashlib.sha256(file.read()).digest())
            except OSError as error:
                raise unreadable(path, error) from None
        return state.hexdigest()

    @cached_property
    def ids(self) -> dict[str, int]:
        """token -> number."""
        if self.file is None:
            return {}
        if self.file.name == LINES:
            found = {token: i for i, token in enumerate(self._lines())}
        elif self.file.name == SLOW:
            found = read_json(self.file, missing="")
        else:
            held = self._parsed.get("model")
            vocab = held.get("vocab") if isinstance(held, dict) else None
            if isinstance(vocab, list):  # of a unigram model: [token, score], in order
                vocab = {
                    row[0]: i
                    for i, row in enumerate(vocab)
                    if isinstance(row, list) and row and isinstance(row[0], str)
                }
            found = dict(vocab) if isinstance(vocab, dict) else {}
        found |= {token: entry["id"] for token, entry in self.added.items()}
        if not found or not all(type(i) is int and i >= 0 for i in found.values()):
            raise RekindleError("This tokenizer has no table of tokens and their numbers.", where=self.file)
        return found

    @cached_property
    def added(self) -> dict[str, dict[str, Any]]:
        """The tokens that were added to the model's own, as tokenizer.json describes them."""
        if self.file is not None and self.file.name == FAST:
            entries = self._parsed.get("added_tokens") or []
        else:
            beside = [self._beside(name) for name in (ADDED, CONFIG)]
            told = beside[1].get("added_tokens_decoder")
            entries = [{"content": token, "id": i} for token, i in beside[0].items()]
            rows = told.items() if isinstance(told, dict) else ()
            entries += [row | {"id": int(i)} for i, row in rows if i.isdecimal() and isinstance(row, dict)]
        if not isinstance(entries, list) or not all(
            isinstance(e, dict) and isinstance(e.get("content"), str) and "id" in e for e in entries
        ):
            raise RekindleError("The added tokens of this tokenizer cannot be read.", where=self.file)
        return {entry["content"]: FLAGS | entry for entry in entries}

    @cached_property
    def special(self) -> dict[str, int]:
        """cls_token, eos_token and their like, as far as the tokenizer names them -> number."""
        if self.file is None:
            return {}
        named = self._beside(SPECIAL) | self._beside(CONFIG)
        texts = {
            key: x.get("content") if isinstance(x, dict) else x for key, x in named.items() if key.endswith("_token")
        }
        return {key: self.ids[text] for key, text in texts.items() if isinstance(text, str) and text in self.ids}

    def texts(self) -> dict[str, str]:
        """Its files as they are, by name; raises RekindleError where one is no text."""
        return {name: _text(self.folder / name) for name in ALL if (self.folder / name).is_file()}

    def with_tokens(self, new: Iterable[Mapping[str, Any]]) -> dict[str, str]:
        """{file: its text} with these tokens added, each a row of `added` with its new number.

        Raises RekindleError where the tokenizers library would give them other numbers.
        """
        new = [dict(entry) for entry in new]
        made = self._parsed | {"added_tokens": [*(self._parsed.get("added_tokens") or []), *new]}
        files = {FAST: json.dumps(made, ensure_ascii=False, indent=2)}
        self._check(files[FAST], new)
        if (self.folder / ADDED).is_file():
            listed = self._beside(ADDED) | {entry["content"]: entry["id"] for entry in new}
            files[ADDED] = json.dumps(listed, ensure_ascii=False, indent=2)
        described = self._beside(CONFIG)
        if isinstance(told := described.get("added_tokens_decoder"), dict):
            rows = {str(entry["id"]): {key: entry[key] for key in ("content", *FLAGS)} for entry in new}
            described["added_tokens_decoder"] = told | rows
            files[CONFIG] = json.dumps(described, ensure_ascii=False, indent=2)
        return files

    def _check(self, text: str, new: Iterable[Mapping[str, Any]]) -> None:
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library raises no other
            raise RekindleError(f"No tokens can be added to this tokenizer: {error}.", where=self.file) from None
        for entry in new:
            if (found := tokenizer.token_to_id(entry["content"])) != entry["id"]:
                what = f"{entry['content']!r} would have the number {found}, not {entry['id']}."
                raise RekindleError(what, where=self.file, why="its numbers have gaps")

    @cached_property
    def _parsed(self) -> dict[str, Any]:
        assert self.file is not None
        return read_json(self.file, missing="")

    def _beside(self, name: str) -> dict[str, Any]:
        return read_json(self.folder / name, missing="") if (self.folder / name).is_file() else {}

    def _lines(self) -> list[str]:
        assert self.file is not None
        return _text(self.file).splitlines()


def _text(path: Path) -> str:
    try:
        with opened(path) as file:
            return file.read().decode("utf-8")
    except OSError as error:
        raise unreadable(path, error) from None
    except UnicodeDecodeError:
        raise RekindleError("This file is not UTF-8.", where=path) from None
