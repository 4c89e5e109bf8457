"""A tune as a score: SVG that may stand in a page, made by verovio.

Verovio is C++ that ends its process on some input, so it always runs in a child process, one for each tune.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from rekindle.errors import RekindleError
from rekindle.music.abc.reader import Tune, read_tune
from rekindle.music.mei import ID, mei

WIDE, NARROW = 760, 340  # CSS pixels
_STAFF = {WIDE: 0.4, NARROW: 0.36}  # pixels for each of verovio's units: a staff is 72 high
_OPTIONS = {
    "inputFrom": "mei", "expandNever": True, "header": "none", "footer": "none", "breaks": "auto",
    "adjustPageHeight": True, "pageHeight": 60_000, "pageMarginLeft": 0, "pageMarginRight": 0, "pageMarginTop": 10,
    "pageMarginBottom": 10, "svgViewBox": True, "svgFormatRaw": True, "svgRemoveXlink": True, "smuflTextFont": "none",
    "minLastJustification": 0.6, "spacingSystem": 6,
}  # fmt: skip
# What an SVG keeps; all else that verovio writes, such as styles and names of its own, goes.
_KEPT = {
    "svg": ("viewBox",), "g": ("transform",), "defs": (), "use": ("transform",),
    "path": ("d", "transform", "stroke-width"),
    "polygon": ("points",), "polyline": ("points", "fill", "stroke-width"), "ellipse": ("cx", "cy", "rx", "ry"),
    "rect": ("x", "y", "width", "height"), "text": ("x", "y", "font-size", "text-anchor"),
    "tspan": ("x", "y", "font-size", "font-weight", "font-style"),
}  # fmt: skip
_PLAIN = re.compile(r"(?:(?:translate|scale|rotate)\(|[\w\s.,)%+-])*")  # values of those attributes
_NOTE = re.compile(rf"{ID}(\d+)(?:-\d+)?")
_NUMBER = re.compile(r"-?\d+\.\d+")


class NoScore(RekindleError):
    """The tune is shown without a score; the sentence says why."""


@dataclass(frozen=True)
class Score:
    """Two drawings of one tune, 760 and 340 CSS pixels wide, in the colour of the text around them.

    `<g data-note="5">` is note 5 of `Tune.notes`, which is what `Sound.written` says; there are several where its
    length takes several note values. Rests have none.
    """

    wide: str
    narrow: str


def engrave(tune: str | Tune, *, prefix: str = "tune", timeout: float = 30.0) -> Score:
    """The score of an ABC text, or of what was read of it. Takes about 0.3 s.

    `prefix` begins the ids in the drawings: scores that stand in one page each need another. `timeout`: seconds. Raises
    NoScore where verovio is not installed, ends without a drawing or takes longer, or nothing in the tune can be drawn.

    >>> 'data-note="0"' in engrave("X:1\\nM:2/4\\nL:1/8\\nK:D\\nd2 A2|").wide
    True
    """
    if find_spec("verovio") is None:
        raise NoScore("Scores need verovio, which is not installed.", hint="pip install 'rekindle[music]'")
    try:
        written = mei(tune if isinstance(tune, Tune) else read_tune(tune))
    except RekindleError as error:
        raise NoScore(error.what, where=error.where) from None
    layouts = [_OPTIONS | {"pageWidth": round(width / staff)} for width, staff in _STAFF.items()]
    wide, narrow = _asked({"mei": written, "layouts": layouts, "seconds": timeout}, timeout)
    return Score(_safe(wide, f"{prefix}-wide-"), _safe(narrow, f"{prefix}-narrow-"))


def _asked(what: dict[str, Any], timeout: float) -> list[str]:
    """An SVG of each layout, by a child that ends with this process's wait."""
    command = [sys.executable, "-P", "-m", "rekindle.music.score"]  # nothing of the current folder is imported
    try:
        done = subprocess.run(command, input=json.dumps(what), capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise NoScore(f"Verovio took longer than {timeout:g} s for this tune.") from None
    if done.returncode < 0:
        raise NoScore(f"Verovio broke down on this tune ({signal.Signals(-done.returncode).name}).")
    if done.returncode or not done.stdout:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise NoScore(f"Verovio could not draw this tune: {said[:200]}.")
    return json.loads(done.stdout)


def _child() -> None:
    import verovio

    what = json.load(sys.stdin)
    if hasattr(signal, "alarm"):
        signal.alarm(int(what["seconds"]) + 2)  # it ends though its parent was killed
    verovio.enableLog(verovio.LOG_OFF)
    kit, drawn = verovio.toolkit(), []
    for layout in what["layouts"]:
        kit.setOptions(layout)
        if not kit.loadData(what["mei"]) or not kit.getPageCount():
            raise SystemExit("it read no music")
        drawn.append(kit.renderToSVG(1))
    sys.stdout.write(json.dumps(drawn))


# -- what may stand in a page --


def _safe(svg: str, prefix: str) -> str:
    """The drawing alone: no style, script, link or name of its own; ids begin with `prefix`."""
    try:
        root = ElementTree.fromstring(svg)
    except ElementTree.ParseError:
        raise NoScore("What verovio drew is no SVG.") from None
    inner = root.find("{*}svg")
    if inner is None or not root.findall(f".//{{*}}g[@id='{ID}0']"):
        raise NoScore("Verovio drew no note of this tune.")
    kept = Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "viewBox": inner.get("viewBox", ""), "role": "img"})
    kept.attrib |= {"aria-label": "Score", "fill": "currentColor", "stroke": "currentColor", "stroke-width": "0"}
    kept.attrib |= {"font-family": "inherit"}
    for child in [*root.findall("{*}defs"), *inner]:
        kept.extend(_cleaned(child, prefix))
    return ElementTree.tostring(kept, encoding="unicode")


def _cleaned(element: Element, prefix: str) -> Iterator[Element]:
    """The element, or what is in it where it says nothing itself."""
    name = element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""
    if name not in _KEPT or "placeholder" in element.get("class", ""):  # which a style would hide
        return
    made = Element(name, _attributes(element, name, prefix))
    made.text = element.text if name in ("text", "tspan") else None
    made.extend(kept for child in element for kept in _cleaned(child, prefix))
    if name != "g" or (made.attrib and len(made)):
        yield made
    else:
        yield from made


def _attributes(element: Element, name: str, prefix: str) -> dict[str, str]:
    found = {key: element.get(key, "") for key in _KEPT[name] if _PLAIN.fullmatch(element.get(key, "\0"))}
    found = {key: _NUMBER.sub(lambda number: f"{float(number[0]):.4g}", value) for key, value in found.items()}
    if name == "use":
        found["href"] = f"#{prefix}{element.get('href', '').removeprefix('#').split('-')[0]}"
    note = _NOTE.fullmatch(element.get("id", ""))
    if name == "g" and note and element.get("class") != "rest":
        found["data-note"] = note[1]
    elif name == "g" and re.fullmatch(r"[0-9A-F]{4,6}-\w+", element.get("id", "")):  # a glyph
        found["id"] = prefix + element.get("id", "").split("-")[0]
    return found


if __name__ == "__main__":
    _child()
