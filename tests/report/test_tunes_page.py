"""The page of tunes: what it escapes, and in headless Chromium what it plays, lights and stops."""

from __future__ import annotations

import json
import re
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
from headless import CHROMIUM, browse, overflowing

from rekindle.report.tunes import ShownTune, tunes_page

pytestmark = pytest.mark.xdist_group("pages")

EVIL = "</script><img src=x onerror=alert(1)>\"' & \x00\x1b\u202e\ud800\u2028"
SEEN = "</script><img src=x onerror=alert(1)>\"' & \ufffd\ufffd\ufffd\ufffd\ufffd"
PITCHES = (69, 76, 60)
SCORE = '<svg viewBox="0 0 760 90" fill="currentColor">{}</svg>'.format(
    "".join(f'<g data-note="{number}"><path d="M{90 * number} 20h40v40h-40z"/></g>' for number in range(3))
)


def shown(**changes):
    """Three notes of half a second each; the first and the third are the first and the third of the score."""
    given = {
        "title": "Steps",
        "prompt": "Three notes.",
        "abc": "X:1\nL:1/4\nK:C\nA e C|",
        "sounds": tuple((i / 2, 0.5, pitch, i) for i, pitch in enumerate(PITCHES)),
        "wide": SCORE,
        "narrow": SCORE,
        "facts": (("Bars", "1 of 1 adds up"),),
        "files": {"ABC": "1.abc", "WAV": "1.wav"},
    }
    return ShownTune(**given | changes)


class Tags(HTMLParser):
    """Elements and their attributes, and the text outside scripts and styles."""

    def __init__(self, html):
        super().__init__()
        self.found, self.said, self.within = [], "", ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.within = tag

    def handle_endtag(self, tag):
        self.within = ""

    def handle_data(self, data):
        self.said += data if self.within not in ("script", "style") else ""


def test_texts_are_text_whatever_they_hold():
    evil = shown(title=EVIL, prompt=EVIL, abc=EVIL, wide="", no_score=EVIL, facts=((EVIL, EVIL),), files={EVIL: EVIL})
    html = tunes_page([evil], title=EVIL, lead=EVIL, notes=[EVIL])
    html.encode("utf-8")
    page, plain = Tags(html), Tags(tunes_page([shown(wide="", files={"ABC": "1.abc"})], title="", lead="", notes=[""]))
    assert [tag for tag, _ in page.found] == [tag for tag, _ in plain.found]
    assert not [name for _, attributes in page.found for name in attributes if name.startswith("on")]
    assert page.said.count(SEEN) == 11  # title twice, lead, note, heading, prompt, why, name, value, a label, the text
    assert ("button", {"type": "button", "aria-label": f"Play {SEEN}"}) in page.found


def test_the_page_asks_no_network():
    page = Tags(tunes_page([shown()], title="Tunes", lead="Of a test."))
    links = [v for _, attributes in page.found for name, v in attributes.items() if name in ("href", "src", "srcset")]
    assert sorted(links) == ["1.abc", "1.wav", "data:,"]
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp", tunes_page([shown()], title="Tunes", lead=""))


def test_what_is_played_stands_in_the_page_as_numbers():
    html = tunes_page([shown(), shown(sounds=())], title="Tunes", lead="")
    data = json.loads(re.search(r'id="data">(.*?)</script>', html, re.S)[1])
    assert data == [{"sounds": [[0.0, 0.5, 69, 0], [0.5, 0.5, 76, 1], [1.0, 0.5, 60, 2]], "seconds": 1.5},
                    {"sounds": [], "seconds": 0.0}]  # fmt: skip
    assert html.count('class="player"') == 1  # what has no sound has no button
    assert "0:01" in html


def test_a_tune_without_a_score_says_why():
    html = tunes_page([shown(wide="", narrow="", no_score="Verovio is not there.")], title="Tunes", lead="")
    assert "No score: Verovio is not there." in html
    assert "data-note=" not in html


# -- in the browser ---------------------------------------------------------------------------------------------------

# The page plays into an OfflineAudioContext, which stops every 50 ms for its script and for us to look.
PROBE = """
<body><iframe id="held"></iframe><script>
const held = document.getElementById("held").contentDocument;
held.open();  // this page has loaded, and is printed, once that is closed
async function probe() {
  const page = document.getElementById("page").contentWindow, rate = 22050;
  const offline = new OfflineAudioContext(1, 3 * rate, rate);
  const go = offline.resume.bind(offline);
  offline.resume = () => {};
  page.AudioContext = function () { return offline; };
  const [first, second] = page.document.querySelectorAll(".tune"), seen = [];
  const button = (article) => article.querySelector(".player button");
  const lit = (article) => [...article.querySelectorAll(".wide .sounding")].map((note) => note.dataset.note).join();
  const says = (article) => button(article).getAttribute("aria-label");
  const look = () => seen.push([offline.currentTime, lit(first), lit(second), says(first)]);
  const act = ACT;
  for (let time = 0.05; time < 2.9; time += 0.05)
    offline.suspend(time).then(() => { page.tick(); act(time); look(); go(); });
  act(0);
  const heard = (await offline.startRendering()).getChannelData(0);
  document.body.dataset.result = JSON.stringify({ seen, rate, heard: [...heard].map((x) => Math.round(x * 1e4)) });
  held.close();
}
</script><iframe id="page" src="page.html" onload="probe()" style="width:1200px;height:1600px;border:0"></iframe></body>
"""


def played(folder, act, *tunes):
    """What is seen at each time, and what is heard [samples], where `act(time)` of JavaScript presses buttons."""
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on PATH")
    inside = folder / "pages"
    inside.mkdir()
    (inside / "page.html").write_text(tunes_page(tunes, title="Tunes", lead="Of a test."), encoding="utf-8")
    (inside / "probe.html").write_text(PROBE.replace("ACT", act))
    html = browse(inside / "probe.html", "--dump-dom", "--window-size=1400,1800")
    found = re.search(r'data-result="([^"]*)"', html)
    assert found is not None
    result = json.loads(unescape(found[1]))
    return result["seen"], np.array(result["heard"]) / 1e4, result["rate"]


def hertz(heard, rate):
    """Of the lowest strong partial."""
    strength = np.abs(np.fft.rfft(heard * np.hanning(len(heard)), 1 << 18))
    strong = np.flatnonzero(strength > strength.max() / 3)[0]
    return (strong + strength[strong : strong + 300].argmax()) * rate / (1 << 18)


@pytest.mark.slow
def test_play_sounds_the_notes_and_lights_them(tmp_path):
    seen, heard, rate = played(tmp_path, "(time) => { if (!time) button(first).click(); }", shown(), shown())
    for number in range(3):
        assert {notes for time, notes, _, _ in seen if 0.1 < time - number / 2 < 0.55} == {str(number)}
    assert {notes for time, notes, _, _ in seen if time > 1.65} == {""}
    assert {other for _, _, other, _ in seen} == {""}
    assert seen[10][3] == "Pause Steps"
    assert seen[-1][3] == "Play Steps"
    for number, pitch in enumerate(PITCHES):
        note = heard[int((0.12 + number / 2) * rate) : int((0.54 + number / 2) * rate)]
        assert abs(1200 * np.log2(hertz(note, rate) / (440 * 2 ** ((pitch - 69) / 12)))) < 10
    assert np.abs(heard[int(1.7 * rate) :]).max() == 0
    assert 0.05 < np.abs(heard).max() < 1


@pytest.mark.slow
def test_another_tune_stops_the_first_without_a_click(tmp_path):
    act = "(time) => { if (!time) button(first).click(); if (Math.abs(time - 0.75) < 1e-6) button(second).click(); }"
    low, later = shown(sounds=((0.0, 2.0, 48, 0), (0.8, 1.0, 50, 1))), shown(sounds=((0.0, 0.5, 84, 1),))
    seen, heard, rate = played(tmp_path, act, low, later)
    assert {notes for time, notes, _, _ in seen if time > 0.76} == {""}
    assert {notes for time, _, notes, _ in seen if 0.9 < time < 1.3} == {"1"}
    assert seen[-1][3] == "Play Steps"
    assert abs(hertz(heard[int(0.95 * rate) : int(1.25 * rate)], rate) - 440 * 2 ** (15 / 12)) < 6
    steps = np.abs(np.diff(heard))
    assert steps[int(0.74 * rate) : int(0.825 * rate)].max() < steps[int(0.65 * rate) : int(0.74 * rate)].max() * 1.05
    assert np.abs(heard[int(0.815 * rate) : int(0.825 * rate)]).max() < 0.01 * np.abs(heard).max()


@pytest.mark.slow
def test_tempo_and_place_are_kept_to_while_it_plays(tmp_path):
    act = """(time) => {
      const set = (input, value) => { input.value = value; input.dispatchEvent(new Event("input")); };
      if (!time) { set(page.document.getElementById("tempo"), 50); button(first).click(); }
      if (Math.abs(time - 0.6) < 1e-6) set(first.querySelector(".player input"), 667);
    }"""
    seen, heard, rate = played(tmp_path, act, shown(), shown())
    assert {notes for time, notes, _, _ in seen if 0.1 < time < 0.55} == {"0"}  # at half the tempo it lasts 1 s
    assert {notes for time, notes, _, _ in seen if 0.6 < time < 1.6} == {"2"}
    assert abs(hertz(heard[int(0.8 * rate) : int(1.5 * rate)], rate) - 440 * 2 ** (-9 / 12)) < 2
    assert np.abs(heard[int(1.8 * rate) :]).max() == 0


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 860, 1400])
def test_nothing_is_wider_than_the_screen(tmp_path, width):
    long = shown(title="W" * 90, prompt="word" * 60, facts=(("A fact" * 9, "x" * 200),), abc="X:1\nK:C\n" + "A" * 300)
    page = tmp_path / "page.html"
    page.write_text(tunes_page([shown(), long], title="T" * 99, lead="l" * 300), encoding="utf-8")
    assert overflowing(page, tmp_path, width) == []
