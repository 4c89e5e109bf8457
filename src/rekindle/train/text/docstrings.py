"""Pairs out of Python sources: a docstring's first sentence to read, and the name of what it is about to write."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from rekindle.train.text.row import Pair

_LONGEST = 300  # characters of a sentence; more is a list, or a table
_LEAST = 3  # words of a sentence
_NAMED = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def described(stream: IO[bytes], path: Path) -> Iterator[Pair]:
    """("Return the file's name.", "get file name") of each function and class; nothing of what does not parse."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the sources, not of this
        try:
            tree = ast.parse(stream.read())
        except (SyntaxError, ValueError, RecursionError):
            return
    for node in ast.walk(tree):
        if isinstance(node, _NAMED) and (said := ast.get_docstring(node)):
            sentence, name = first_sentence(said), words_of(node.name)
            if name and _is_told(sentence, node.name):
                yield Pair(sentence, name, f"{path}, line {node.lineno}")


def first_sentence(docstring: str) -> str:
    """On one line, without what follows the first full stop or the first paragraph."""
    paragraph = " ".join(re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0].split())
    return re.split(r"(?<=[.!?])\s", paragraph, maxsplit=1)[0]


def words_of(name: str) -> str:
    """get_fileName2 -> get file name 2; nothing of __repr__ and of tests."""
    if (name.startswith("__") and name.endswith("__")) or name.startswith("test"):
        return ""
    return " ".join(_WORD.findall(name)).lower()


def _is_told(sentence: str, name: str) -> bool:
    """Whether it is a sentence, and no signature that begins with the name."""
    return len(sentence) <= _LONGEST and len(sentence.split()) >= _LEAST and f"{name}(" not in sentence
