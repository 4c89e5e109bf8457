"""One spelling of a tune, which is what models read and write.

    M:6/8
    L:1/8
    K:D
    A|dAF DFA|Bcd AFD|...:|

What sounds is kept, and beams; ornaments, slurs, words, chord symbols and line breaks are left out, a chord is its
highest note. A tie between two pitches, as old files have them for slurs, is left out too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from rekindle.music.abc.header import Written, written
from rekindle.music.abc.keys import LETTERS, Key, all_keys, parse_key
from rekindle.music.abc.lexer import PITCH, Token, tokens
from rekindle.music.abc.metre import parse_metre
from rekindle.music.abc.playing import begins, ending, ends, is_section
from rekindle.music.abc.reader import note_length, read_tune

UNITS = ("1/4", "1/8", "1/16")
TUPLETS = tuple(f"({n}" for n in range(2, 10))
LINES = ("|", "||", "|:", ":|", "::", "|]")
ENDINGS = ("1", "2", "3", "4")
_NOTE = re.compile(rf"({PITCH})(.*)", re.DOTALL)
_PITCH = re.compile(r"(\^\^|\^|__|_|=)?([A-Ga-g])([,']*)")
_SPELT = {-2: "__", -1: "_", 0: "=", 1: "^", 2: "^^"}
_RAISED = {spelt: by for by, spelt in _SPELT.items()}


class NotPlain(ValueError):
    """A tune that has no plain spelling: the rest of a sentence that begins with "it"."""


@dataclass(frozen=True)
class Plain:
    metre: str
    unit: str
    key: Key
    body: str

    @property
    def text(self) -> str:
        return f"M:{self.metre}\nL:{self.unit}\nK:{self.key.spelt}\n{self.body}"

    @property
    def written(self) -> Written:
        return Written({"M": (self.metre,), "L": (self.unit,), "K": (self.key.spelt,)}, self.body)

    def transposed(self, tonic: str, octaves: int = 0) -> Plain:
        """The same tune on another tonic, at most six steps up; `octaves` up from there.

        Each note moves by as many letters as the tonic, and is raised as much above the new signature as above the old.
        """
        key = Key(tonic, self.key.mode)
        letters = (LETTERS.index(tonic[0]) - LETTERS.index(self.key.tonic[0])) % 7 + 7 * octaves
        moved = [
            _moved(token.text, letters, self.key, key) if token.kind == "note" else token.text
            for token in tokens(self.body)
        ]
        return replace(self, key=key, body="".join(moved))


def plain(source: Written) -> Plain:
    """Raises NotPlain where there is no such spelling.

    >>> plain(written('M:C\\nK:Gmaj\\n"G"B2{c}(d//e//) [GB]2-|A1/2 z1||')).text
    'M:4/4\\nL:1/8\\nK:G\\nB2d/4e/4 B2|A/z|]'
    """
    metre, key = parse_metre(source.first("M")), parse_key(source.first("K"))
    tune = read_tune(source)
    sounds = [note for note in tune.notes if note.pitches]
    if metre is None or key is None or not sounds:
        raise NotPlain("has no metre, no key or no notes")
    if tune.problems:
        raise NotPlain(f"cannot be read: {tune.problems[0]}")
    unit = f"1/{tune.unit.denominator}"
    if unit not in UNITS or key not in all_keys():
        raise NotPlain("has an unusual unit or key")
    ties = {note.place: note.tied for note in tune.notes}
    for note, after in zip(sounds, [*sounds[1:], None], strict=True):
        ties[note.place] = note.tied and after is not None and max(note.pitches) == max(after.pitches)
    return Plain(metre, unit, key, _tidied([_respelt(token, ties) for token in tokens(source.body)]))


def _respelt(token: Token, ties: dict[int, bool]) -> tuple[str, str]:
    """Kind and text of what stands for a token; "" of what is left out."""
    if token.kind == "field":
        raise NotPlain("changes its key, metre or unit on the way")
    if token.kind == "bars of rest":
        raise NotPlain("rests for whole bars")
    if token.kind == "tuplet" and token.text not in TUPLETS:
        raise NotPlain(f"has an unusual tuplet, {token.text}")
    if token.kind in ("note", "chord", "rest"):
        name, length = _name_and_length(token)
        return "note", name + length_text(length) + "-" * ties.get(token.place, False)
    if token.kind in ("space", "line"):
        return "space", " "
    if token.kind in ("bar", "broken", "tuplet"):
        return token.kind, token.text
    return "", ""


def _name_and_length(token: Token) -> tuple[str, Fraction]:
    if token.kind == "rest":
        return "z", note_length(token.text[1:])
    if token.kind == "note":
        found = _NOTE.fullmatch(token.text)
        assert found, token
        return found[1], note_length(found[2])
    inside, _, after = token.text[1:].rpartition("]")
    names = re.findall(rf"({PITCH})(\d*(?:/+\d*)?)", inside)
    highest = max(names, key=lambda name: _height(name[0]))
    return highest[0], note_length(names[0][1]) * note_length(after)


def _height(name: str) -> tuple[int, int]:
    """By letter and octave, then by its accidental."""
    accidental, letter, octaves = _parts(name)
    return letters_up(letter, octaves), _RAISED.get(accidental, 0)


def letters_up(letter: str, octaves: str) -> int:
    """Letters above C."""
    return LETTERS.index(letter.upper()) + 7 * (letter.islower() + octaves.count("'") - octaves.count(","))


def length_text(length: Fraction) -> str:
    """Of so many units: "", "2", "3/2", "/", "/4"."""
    above = "" if length.numerator == 1 else str(length.numerator)
    below = {1: "", 2: "/"}.get(length.denominator, f"/{length.denominator}")
    return above + (f"{below}2" if below == "/" and above else below)


def line_text(line: str, last: bool = False) -> str:
    """One of LINES, and an ending's number, of all that may stand for it."""
    if ends(line) and begins(line) and not last:
        spelt = "::"
    elif ends(line):
        spelt = ":|"
    elif begins(line) and not last:
        spelt = "|:"
    elif last or "]" in line:
        spelt = "|]"
    else:
        spelt = "||" if is_section(line) else "|"
    turns = ending(line)
    if not turns or last:
        return spelt
    if len(turns) > 1 or str(min(turns)) not in ENDINGS:
        raise NotPlain("has an ending for several turns")
    return spelt + str(min(turns))


def _tidied(parts: list[tuple[str, str]]) -> str:
    """Bar lines that only space parts are one; no space beside a bar line; a last line that ends."""
    out: list[tuple[str, str]] = []
    for kind, text in parts:
        if not kind or (kind == "space" and (not out or out[-1][0] != "note")):
            continue
        if kind == "bar" and out and out[-1][0] in ("space", "broken"):
            out.pop()
        if kind == "bar" and out and out[-1][0] == "bar":
            out[-1] = "bar", out[-1][1] + "".join(text.split())
        elif kind == "tuplet" and out and out[-1][0] == "tuplet":
            out[-1] = kind, text
        elif kind == "broken" and (not out or out[-1][0] != "note"):
            if out and out[-1][0] == "space":
                out[-1] = kind, text
        else:
            out.append((kind, "".join(text.split()) if kind == "bar" else text))
    while out and out[-1][0] in ("space", "broken", "tuplet"):
        out.pop()
    first = next((i for i, (kind, _) in enumerate(out) if kind in ("note", "tuplet")), 0)
    at_end = out[-1][0] == "bar"
    spelt = [text if kind != "bar" else line_text(text, last=i == len(out) - 1) for i, (kind, text) in enumerate(out)]
    opening = "".join(spelt[:first])
    return (opening if opening == "|:" else "") + "".join(spelt[first:]) + ("" if at_end else "|]")


def _parts(name: str) -> tuple[str, str, str]:
    found = _PITCH.match(name)
    assert found, name
    return found[1] or "", found[2], found[3]


def _moved(text: str, letters: int, old: Key, new: Key) -> str:
    found = _NOTE.fullmatch(text)
    assert found, text
    accidental, letter, octaves = _parts(found[1])
    to = letters_up(letter, octaves) + letters
    there = LETTERS[to % 7]
    spelt = ""
    if accidental:
        raised = _RAISED[accidental] - old.signature[letter.upper()] + new.signature[there]
        if raised not in _SPELT:
            raise NotPlain(f"has no spelling in {new.words}")
        spelt = _SPELT[raised]
    return spelt + pitch_text(there, to // 7) + found[2]


def pitch_text(letter: str, octave: int) -> str:
    """A letter in an octave; 0 begins at middle C."""
    return letter.lower() + "'" * (octave - 1) if octave > 0 else letter + "," * -octave


__all__ = ["ENDINGS", "LINES", "TUPLETS", "UNITS", "NotPlain", "Plain", "plain", "written"]
