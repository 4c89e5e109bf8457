"""Tunes from where a user has them: the books that music21 brings, ABC files, rows of texts and tunes.

Nothing of them is in this package, and nothing is downloaded: what is read is what is installed or named.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rekindle.errors import RekindleError
from rekindle.music.abc.header import Written, tunes_of
from rekindle.train.text import Pair, PairReading, open_source

MUSIC21 = "music21"
# The folder of a book in music21's corpus: what a sentence calls it, and what its own files say of its use.
BOOKS = {
    "oneills1850": ("O'Neill's Music of Ireland", "credits of those who typed it in (Z:), no licence"),
    "ryansMammoth": ("Ryan's Mammoth Collection", "credits of those who typed it in (Z:), no licence"),
    "airdsAirs": ("Aird's Airs", "credits of him who typed it in (Z:), no licence"),
}
ESSEN = {"essenFolksong": ("", "permission for non-commercial use, status otherwise unclear (its license.txt)")}
SUFFIXES = (".abc", ".ABC")


@dataclass(frozen=True)
class Entry:
    """A tune as somebody wrote it down. `book`: where it is from; `said`: what rows of pairs say of it."""

    written: Written
    book: str = ""
    said: str = ""


@dataclass(frozen=True)
class Shelf:
    """Where tunes are read from, and under which terms, as far as these are known: name -> terms."""

    name: str
    entries: list[Entry]
    terms: dict[str, str]


def open_shelf(source: str, *, essen: bool = False, reading: PairReading | None = None) -> Shelf:
    """music21's books, an ABC file or a folder of them, or rows with a text and a tune (see train.text).

    Raises RekindleError where there are no tunes, and where music21 is asked for and not installed.
    """
    if source == MUSIC21:
        return _music21(essen)
    if essen:
        raise RekindleError("Essen's songs are a book of music21's.", hint="--essen with --source music21")
    path = Path(source).expanduser()
    files = _abc_files(path)
    if files:
        entries = [Entry(tune) for file in files for tune in _tunes(file)]
        shelf = Shelf(source, entries, {})
    else:
        shelf = Shelf(source, list(_rows(source, reading or PairReading())), {})
    if not shelf.entries:
        raise RekindleError("There is no tune in it.", where=source, hint="ABC: each tune begins with X:")
    return shelf


def _music21(essen: bool) -> Shelf:
    spec = find_spec("music21")
    if spec is None or spec.origin is None:
        what = "The tunes are those that music21 brings, which is not installed."
        raise RekindleError(what, hint="pip install 'rekindle[music]', or --source FOLDER of ABC files")
    corpus = Path(spec.origin).parent / "corpus"
    books = BOOKS | ESSEN if essen else BOOKS
    if missing := [name for name in books if not (corpus / name).is_dir()]:
        what = f"This music21 was packed without its corpus: {', '.join(missing)}."
        raise RekindleError(what, where=corpus, hint="--source FOLDER of ABC files")
    entries = [
        Entry(tune, title)
        for name, (title, _) in books.items()
        for file in sorted((corpus / name).glob("*.abc"))
        for tune in _tunes(file)
    ]
    return Shelf(MUSIC21, entries, {title or name: terms for name, (title, terms) in books.items()})


def _abc_files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    return [path] if path.suffix in SUFFIXES else []


def _tunes(file: Path) -> Iterator[Written]:
    """Without what is above the first X: of a book. Some of Ryan's files came by mail, with its line ends (=, =20)."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise RekindleError(f"The tunes cannot be read: {error.strerror}.", where=file) from None
    text = decoded(data).replace("\r\n", "\n").replace("=20\n", "\n").replace(" =\n", " ")
    return (tune for tune in tunes_of(text) if "X" in tune.fields or "K" in tune.fields)


def decoded(data: bytes) -> str:
    """UTF-8, or else Latin-1, as old files have it."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _rows(source: str, reading: PairReading) -> Iterator[Entry]:
    """Of each row what is to be read is what is said, and what is to be written the tune."""
    found = open_source(source, reading=reading)
    for document in [*found.documents(), *(found.held_out.documents() if found.held_out else ())]:
        if isinstance(document, Pair):
            yield from (Entry(tune, said=document.source) for tune in [*tunes_of(document.target)][:1])
