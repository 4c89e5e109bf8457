"""A plain tune as a file for people: a header, and four bars a line."""

from __future__ import annotations

from rekindle.music.abc.lexer import tokens

BARS = 4  # of a line


def laid_out(body: str) -> str:
    """With a line break behind every fourth bar line, and behind each that ends a section."""
    lines, line, bars = [], "", 0
    for token in tokens(body):
        line += token.text
        if token.kind != "bar" or not line.strip("|:[]"):
            continue
        bars += 1
        if bars >= BARS or (len(token.text) > 1 and bars > 1):
            lines.append(line)
            line, bars = "", 0
    return "\n".join([*lines, line] if line else lines)


def abc_file(text: str, *, number: int, title: str, tempo: str, notes: tuple[str, ...] = ()) -> str:
    """`text` is a plain tune: fields and body. `notes` become N: fields; what does not print becomes a space.

    >>> print(abc_file("M:2/4\\nL:1/8\\nK:D\\nABAF|D4|]", number=1, title="One", tempo="1/4=96"))
    X:1
    T:One
    M:2/4
    L:1/8
    Q:1/4=96
    K:D
    ABAF|D4|]
    <BLANKLINE>
    """
    lines = text.split("\n")
    fields, body = [line for line in lines[:3] if line[1:2] == ":"], "\n".join(lines[3:])
    before = [field for field in fields if not field.startswith("K:")]
    head = [f"X:{number}", f"T:{_said(title)}", *(f"N:{_said(note)}" for note in notes), *before, f"Q:{tempo}"]
    key = [field for field in fields if field.startswith("K:")]
    return "\n".join([*head, *key, laid_out(body)]) + "\n"


def _said(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).replace("%", "\\%").split())
