"""The page of tunes: each with its prompt, its score, its sound and what was measured of it, in one file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from rekindle.report.page import render


@dataclass(frozen=True)
class ShownTune:
    """A tune in plain values.

    `sounds`: for each note that is played its start and length in seconds, its MIDI number and the number that it has
    in the score (`data-note`). `wide`, `narrow`: drawings of 760 and 340 CSS pixels, as `rekindle.music.score.engrave`
    makes them; they stand in the page as they are. Where there are none, `no_score` says why. `facts`: (name, value).
    `files`: label and address of each file beside the page, such as ABC: 1.abc.
    """

    title: str
    prompt: str
    abc: str
    sounds: tuple[tuple[float, float, int, int], ...] = ()
    wide: str = ""
    narrow: str = ""
    no_score: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """From the beginning to the end of the last note."""
        return max((start + length for start, length, _, _ in self.sounds), default=0.0)


@dataclass(frozen=True)
class Scores:
    """A table under the tunes: a title, its columns, rows of as many cells, and what is to be known of them."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def tunes_page(
    tunes: Sequence[ShownTune], *, title: str, lead: str, notes: Sequence[str] = (), scores: Scores | None = None
) -> str:
    """The page's HTML, which needs no network and makes the sound itself.

    `lead`: what was done, in a sentence or two under the title; `notes`: further sentences, smaller. All texts may hold
    anything: they are escaped, and what does not print is shown as the replacement character.

    >>> "<h1>Two tunes</h1>" in tunes_page([], title="Two tunes", lead="By a small model.")
    True
    """
    from markupsafe import Markup

    script = (resources.files("rekindle.report") / "tunes.js").read_text(encoding="utf-8")
    style = (resources.files("rekindle.report") / "tunes.css").read_text(encoding="utf-8")
    data = [{"sounds": tune.sounds, "seconds": tune.seconds} for tune in tunes]
    context = {
        "title": _printable(title),
        "lead": _printable(lead),
        "notes": [_printable(note) for note in notes],
        "scores": scores,
        "tunes": [_shown(tune) for tune in tunes],
        "style": Markup(style),
        "script": Markup(script),
        "data": Markup(_json(data)),
    }
    return render(context, "tunes.html.j2")


def _shown(tune: ShownTune) -> dict[str, Any]:
    from markupsafe import Markup

    return {
        "title": _printable(tune.title) or "Untitled",
        "prompt": _printable(tune.prompt),
        "abc": _printable(tune.abc.strip("\n")),
        "score": {"wide": Markup(tune.wide), "narrow": Markup(tune.narrow)} if tune.wide else None,
        "no_score": _printable(tune.no_score),
        "facts": [(_printable(name), _printable(value)) for name, value in tune.facts],
        "files": {_printable(label): _printable(address) for label, address in tune.files.items()},
        "length": f"{int(tune.seconds) // 60}:{int(tune.seconds) % 60:02}" if tune.sounds else "",
    }


def _printable(text: str) -> str:
    """Without what HTML cannot hold and what turns the direction of the text around it."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in text)


def _json(data: Any) -> str:
    """Such that a <script> can hold it."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))  # ASCII: U+2028 is escaped already
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text
