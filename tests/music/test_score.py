"""Scores: what is drawn is what sounds, a broken engraver is a sentence, and a drawing may stand in a page."""

import os
import re
import signal
import subprocess
import sys
import time
from fractions import Fraction as F
from importlib.util import find_spec
from xml.etree import ElementTree

import psutil
import pytest

from rekindle.errors import RekindleError
from rekindle.music import score
from rekindle.music.abc.playing import played
from rekindle.music.abc.reader import read_tune
from rekindle.music.mei import mei
from rekindle.music.score import NoScore, engrave

needs_verovio = pytest.mark.skipif(find_spec("verovio") is None, reason="verovio is not installed")

TUNE = """X:1
T:</script><b>
M:6/8
L:1/8
K:D
|: A | d2A F2A | B2G E2G | (3FGA d c2A | {gf}f2e d2 A |
"&<"d>fA ~F2A | B^GB [EG]2z | A2c e-ec |1 d3 d2 :|2 d3 d2 f |]
[K:Em][M:3/4] E3 F G5/ A/|(5ABcde z2 Z|"^slower"e6-|e6|]
"""


def header(metre="4/4", key="C"):
    return f"X:1\nM:{metre}\nL:1/8\nK:{key}\n"


def tree(text):
    """MEI without its namespace."""
    return ElementTree.fromstring(mei(read_tune(text)).replace(' xmlns="http://www.music-encoding.org/ns/mei"', ""))


def lasts(element):
    """In whole notes, of what is written in MEI: notes, rests and chords, within tuplets."""
    length = F(0)
    for child in element:
        if child.tag in ("note", "rest", "chord"):
            base = F(2) if child.get("dur") == "breve" else F(1, int(child.get("dur")))
            length += base * (2 - F(1, 2 ** int(child.get("dots", 0))))
        elif child.tag == "tuplet":
            length += lasts(child) * F(int(child.get("numbase")), int(child.get("num")))
        elif child.tag != "graceGrp":
            length += lasts(child)
    return length


# -- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [TUNE, header() + "A5 B7|c9/ A11/8|Z3|(3A2B (3Az/B/c|(4ABcd (2AB|A>>B c<<<d|A60|"])
def test_every_bar_is_written_as_long_as_it_was_read(text):
    bars, measures = read_tune(text).bars, tree(text).findall(".//measure")
    assert [lasts(measure.find("staff")) for measure in measures] == [bar.length for bar in bars]


def test_key_metre_lines_and_endings():
    root = tree(TUNE)
    first, changed = root.findall(".//scoreDef")
    assert (first.get("keysig"), first.get("meter.count"), first.get("meter.unit")) == ("2s", "6", "8")
    assert (changed.get("keysig"), changed.get("meter.count")) == ("1s", "3")
    measures = root.findall(".//measure")
    assert measures[0].get("left") == "rptstart"
    assert [ending.get("n") for ending in root.findall(".//ending")] == ["1", "2"]
    assert [[m.get("right") for m in ending] for ending in root.findall(".//ending")] == [["rptend"], ["end"]]
    assert tree(header(key="Eb") + "A|").find(".//scoreDef").get("keysig") == "3f"
    assert tree(header() + "[1,3 A8 :|[2,4 B8 |]").find(".//ending").get("n") == "1, 3"


def test_pitches_are_spelt_as_in_the_text():
    notes = tree(header() + "^F,_b'=c [^^CE]|").findall(".//note")
    spelt = [(note.get("pname"), note.get("oct"), note.get("accid")) for note in notes]
    assert spelt == [("f", "3", "s"), ("b", "6", "f"), ("c", "5", "n"), ("c", "4", "x"), ("e", "4", None)]


def test_ties_join_notes_and_the_parts_of_one():
    ties = [note.get("tie") for note in tree(header() + "A5 B-|B-B A|").findall(".//note")]
    assert ties == ["i", "t", "i", "m", "t", None]


@pytest.mark.parametrize(
    ("text", "beams"),
    [
        (header() + "ABcd efga|A2Bc d2ef|", [4, 4, 2, 2]),
        (header("6/8") + "ABc def|A2B c2d|AB/c/d e>fg|", [3, 3, 4, 3]),
        (header("3/4") + "ABcdef|", [2, 2, 2]),
        (header("6/8") + "ABc|ABc def|", [3, 3, 3]),
        (header("2/4") + "B|zAB2|", []),
        (header() + "d|(3efg fe d2cB|", [5, 2]),
        (header("6/8") + "FGABc|Bcd efg|", [2, 3, 3, 3]),  # an upbeat is beamed by where its bar ends
    ],
)
def test_beams_go_by_the_beat(text, beams):
    assert [len(beam.findall(".//note")) for beam in tree(text).findall(".//beam")] == beams


def test_grace_notes_words_and_ornaments_belong_to_the_note_behind():
    root = tree(TUNE)
    xml_id = "{http://www.w3.org/XML/1998/namespace}id"
    assert [note.get("pname") for note in root.findall(".//graceGrp//note")] == ["g", "f"]
    number = {note.get(xml_id): note.get("pname") for note in root.iter("note") if note.get(xml_id)}
    said = [(e.tag, e.text, number[e.get("startid")[1:]]) for e in root.iter() if e.get("startid")]
    assert said == [("harm", "&<", "d"), ("turn", None, "f"), ("dir", "slower", "e")]


@pytest.mark.parametrize("body", ["", "|||", "A///////|", "A1/31|"])
def test_what_cannot_be_written_is_a_sentence(body):
    with pytest.raises(RekindleError, match=r"\.$|\.\n"):
        mei(read_tune(header() + body))


# -- what is drawn ----------------------------------------------------------------------------------------------------


def numbers(svg):
    return {int(found) for found in re.findall(r'data-note="(\d+)"', svg)}


@needs_verovio
def test_every_note_that_sounds_is_in_both_drawings():
    tune = read_tune(TUNE)
    drawn = engrave(tune)
    sounding = {number for number, note in enumerate(tune.notes) if note.pitches}
    assert numbers(drawn.wide) == numbers(drawn.narrow) == sounding
    assert {sound.written for sound in played(tune)} <= sounding
    width = [float(re.search(r'viewBox="0 0 (\d+)', svg)[1]) for svg in (drawn.wide, drawn.narrow)]
    assert width[0] / width[1] == pytest.approx(760 / 0.4 / (340 / 0.36), rel=0.01)


@needs_verovio
def test_drawings_are_safe_in_a_page_and_apart_from_each_other():
    drawn = [engrave(TUNE, prefix=prefix) for prefix in ("a", "b")]
    svgs = [svg for one in drawn for svg in (one.wide, one.narrow)]
    ids = [found for svg in svgs for found in re.findall(r' id="([^"]*)"', svg)]
    assert len(ids) == len(set(ids)) > 20
    for svg in svgs:
        root = ElementTree.fromstring(svg)
        names = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert names <= {"svg", "g", "defs", "use", "path", "polygon", "polyline", "ellipse", "rect", "text", "tspan"}
        assert {e.get("href")[1:] for e in root.iter() if e.get("href")} <= set(re.findall(r' id="([^"]*)"', svg))
        assert not {key for e in root.iter() for key in e.attrib if key.startswith("on") or key in ("style", "color")}
        assert "black" not in svg
        assert "".join(root.itertext()).count("&<") == 1
    assert "</script>" not in "".join(svgs)


@needs_verovio
def test_what_an_engraver_might_add_goes():
    evil = (
        '<svg xmlns="http://www.w3.org/2000/svg" onload="x()"><style>*{}</style><svg viewBox="0 0 9 9" color="black">'
        '<script>x()</script><g id="written-0" onclick="x()"><path d="M0 0" style="x"/><a href="javascript:x()"/>'
        '<use href="http://e.vil/#a" transform="url(x)"/><text x="&quot;">said</text></g></svg></svg>'
    )
    safe = score._safe(evil, "p-")
    assert re.findall(r"<(\w+)", safe) == ["svg", "g", "path", "use", "text"]
    assert 'href="#p-http://e.vil/#a"' in safe  # within the page
    assert not re.search("x\\(\\)|script|style|onclick|url|black", safe)


@needs_verovio
@pytest.mark.parametrize("text", ["X:1\nT:no key\n", 'X:1\nK:C\n"A|'])
def test_a_crash_is_a_sentence(text):
    """Verovio's own reader of ABC, which we do not use, ends its process on these two."""
    with pytest.raises(NoScore, match=r"broke down on this tune \(SIG(SEGV|ABRT)\)"):
        score._asked({"mei": text, "layouts": [{"inputFrom": "abc"}], "seconds": 9}, 9)


@needs_verovio
def test_what_verovio_cannot_read_is_a_sentence():
    with pytest.raises(NoScore, match="could not draw this tune: it read no music"):
        score._asked({"mei": "<mei>", "layouts": [{"inputFrom": "mei"}], "seconds": 9}, 9)


@needs_verovio
def test_one_that_takes_too_long_is_ended():
    begun = time.monotonic()
    with pytest.raises(NoScore, match=r"longer than 0\.2 s"):
        engrave(header() + "A" * 3000 + "|", timeout=0.2)
    assert time.monotonic() - begun < 5
    assert not psutil.Process().children()


def test_a_tune_of_nothing_is_a_sentence():
    with pytest.raises(NoScore, match="no note"):
        engrave("X:1\nK:C\n")


def test_without_verovio_the_sentence_says_what_to_type(monkeypatch):
    monkeypatch.setattr(score, "find_spec", lambda name: None)
    with pytest.raises(NoScore, match=r"pip install 'rekindle\[music\]'"):
        engrave(TUNE)


@needs_verovio
@pytest.mark.slow
def test_an_interrupt_ends_the_child_too():
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # which a job of a shell ignores
    code = f"{heard}; from rekindle.music.score import engrave; engrave({header()!r} + 'A' * 3000 + '|')"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as parent:
        waited = time.monotonic()
        while not (children := psutil.Process(parent.pid).children()):
            assert time.monotonic() - waited < 30
            time.sleep(0.05)
        time.sleep(0.3)
        os.kill(parent.pid, signal.SIGINT)
        parent.wait(timeout=10)
    assert not psutil.wait_procs(children, timeout=5)[1]
