"""Which files of a folder are data. What is left out is said, and why."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rekindle.errors import RekindleError
from rekindle.train.text.format import ROW_SUFFIXES, SUFFIXES, TEXT_SUFFIXES, identify, suffix_of
from rekindle.train.text.read import documents_of
from rekindle.train.text.row import Reading

log = logging.getLogger(__name__)

_SHOWN = 12  # kinds of files in a sentence
_ABOUT = re.compile(
    r"(readme|licen[cs]e|copying|notice|authors|changelog|contributing|citation|code_of_conduct|security)([-_.].*)?",
    re.IGNORECASE,
)
_CACHE = re.compile(r"(cache|indices|tmp)-?\w+\.arrow")  # what `datasets` leaves beside the rows: copies, changed
_SPLIT = re.compile(r"(train|training|validation|valid|val|dev|test|testing|eval)([-_.0-9].*)?", re.IGNORECASE)

HELD_OUT = ("validation", "valid", "val", "dev")  # splits that a training may look at


def files_of(folder: Path, reading: Reading) -> tuple[list[Path], list[Path]]:
    """The files with documents to train on, and those that are held out, sorted.

    Raises RekindleError where there are none to train on, or one cannot be looked at.
    """
    left: Counter[str] = Counter()
    rows, texts = [], []
    for path in sorted(_walk(folder, left)):
        try:
            kind = _kind(path, reading)
        except OSError as error:
            raise RekindleError(f"The data cannot be read: {error.strerror or error}.", where=path) from None
        if kind == "rows":
            rows.append(path)
        elif kind == "text":
            texts.append(path)
        else:
            left[kind] += 1
    held_out: list[Path] = []
    if rows:
        rows, held_out = _training(rows, folder, left)
        texts = _without_words_about(texts, left)
    found = sorted([*rows, *texts])
    apart = _counted(left)
    if not found:
        raise RekindleError(
            f"The folder has no file of text: none ends in {', '.join(SUFFIXES)}, or is compressed from one.",
            where=folder,
            why=f"left out: {apart}" if left else None,
            hint="--text-column COLUMN, where rows have their text under another name",
        )
    if left:
        read = _counted(Counter(map(_ending, [*found, *held_out])))
        log.warning("%s: reads %s; left out: %s", folder, read, apart)
    return found, held_out


def _walk(folder: Path, left: Counter[str]) -> Iterator[Path]:
    """Every regular file; hidden ones, links to folders, pipes and their like are only counted."""

    def refuse(error: OSError) -> None:
        raise RekindleError(f"The folder cannot be read: {error.strerror}.", where=error.filename) from None

    for root, folders, names in os.walk(folder, onerror=refuse):
        for name in [name for name in folders if name.startswith(".") or Path(root, name).is_symlink()]:
            folders.remove(name)
            left["hidden folder" if name.startswith(".") else "link to a folder"] += 1
        for path in (Path(root, name) for name in names):
            if path.name.startswith("."):
                left["hidden file"] += 1
            elif path.is_file():
                yield path
            else:
                left["dangling link" if path.is_symlink() else "pipe or device"] += 1


def _kind(path: Path, reading: Reading) -> str:
    """ "rows", "text", or what the file is counted as where it is left out."""
    suffix = suffix_of(path)
    if _CACHE.fullmatch(path.name):
        return "cache of datasets"
    if suffix in ROW_SUFFIXES and suffix != ".json":
        return "rows"
    form = identify(path, reading.column)
    if form.kind == "text" or (form.kind is None and suffix in TEXT_SUFFIXES):  # the latter is refused when it is read
        return "text" if suffix in TEXT_SUFFIXES else _ending(path)
    if form.kind is None or (form.kind == "object" and not _is_row(path, reading)):
        return _ending(path)
    return "rows"


def _is_row(path: Path, reading: Reading) -> bool:
    """Whether a lone JSON object, such as a config.json, is a document."""
    try:
        first = next(documents_of(path, reading), None)
    except RekindleError:
        return False
    return first is not None


def _ending(path: Path) -> str:
    """.jsonl.gz, or a name without an ending, its numbers left open."""
    suffix = suffix_of(path)
    packed = path.suffix.lower() if path.suffix.lower() != suffix else ""
    return suffix + packed or re.sub(r"\d+", "N", path.name)


def _training(rows: list[Path], folder: Path, left: Counter[str]) -> tuple[list[Path], list[Path]]:
    """Of rows in splits, by the names of files or folders: those to train on, or of no split; and those held out."""
    splits = {path: _split(path.relative_to(folder)) for path in rows}
    if "train" not in splits.values():
        return rows, []
    left.update(f"of the split {split}" for split in splits.values() if split not in (None, "train", *HELD_OUT))
    held_out = [path for path, split in splits.items() if split in HELD_OUT]
    return [path for path, split in splits.items() if split in (None, "train")], held_out


def _split(path: Path) -> str | None:
    for part in reversed(path.parts):
        if match := _SPLIT.fullmatch(part):
            return "train" if match[1].lower() == "training" else match[1].lower()
    return None


def _without_words_about(texts: list[Path], left: Counter[str]) -> list[Path]:
    """Texts that lie beside rows, without those that tell about them."""
    left.update(path.name for path in texts if _ABOUT.fullmatch(path.name))
    return [path for path in texts if not _ABOUT.fullmatch(path.name)]


def _counted(names: Counter[str]) -> str:
    shown = [f"{count} {name}" for name, count in names.most_common(_SHOWN)]
    rest = sum(names.values()) - sum(count for _, count in names.most_common(_SHOWN))
    return ", ".join(shown + ([f"{rest} others"] if rest else []))
