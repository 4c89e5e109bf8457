"""plan's figure, and its page in headless Chromium: the browser says what Python says."""

from __future__ import annotations

import csv
import json
import re

import pytest
from headless import CHROMIUM, browse, overflowing

from rekindle import api
from rekindle.errors import RekindleError

pytestmark = pytest.mark.xdist_group("pages")

FIRST = {"params": "1B", "sunk": "100B", "tokens": "50B", "price": 2}
ASKED = [
    {"params": 1e9, "sunk": 1e11, "tokens": 5e10, "experts": 8},
    {"params": 1e8, "sunk": 1e11, "tokens": 2e10, "experts": 8},
    {"params": 7e9, "sunk": 1e12, "tokens": 2e11, "experts": 32},
    {"params": 1e8, "sunk": 1e10, "tokens": 3e11, "experts": 2},
    {"params": 1e9, "sunk": 1e11, "tokens": 1e15, "experts": 8},
    {"params": 1e5, "sunk": 1e6, "tokens": 5e5, "experts": 8},
]


def test_the_figure_s_csv_holds_what_plan_says(tmp_path):
    found = api.plan(**FIRST, out=tmp_path / "plan")
    rows = list(csv.DictReader((tmp_path / "plan" / "plan.csv").read_text().splitlines()))
    for name, option in found.decision.options.items():
        here = next(r for r in rows if r["option"] == name and float(r["tokens"]) == pytest.approx(5e10))
        assert [float(here[k]) for k in ("loss", "low", "high")] == pytest.approx(
            [option.loss, option.low, option.high]
        )
    for name in ("plan.png", "plan.svg", "index.html"):
        assert (tmp_path / "plan" / name).stat().st_size > 10_000
    with pytest.raises(RekindleError, match="overwrite"):
        api.plan(**FIRST, out=tmp_path / "plan")


def test_a_law_without_upcycling_has_a_page_too(tmp_path):
    api.plan(**FIRST, law="joint-moe-2025", html=tmp_path / "page.html", out=tmp_path / "plan")
    assert "Ludziejewski" in (tmp_path / "page.html").read_text()
    with pytest.raises(RekindleError, match="exists"):
        api.plan(**FIRST, html=tmp_path / "page.html")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on PATH")
    path = tmp_path_factory.mktemp("browser") / "pages" / "page.html"
    path.parent.mkdir()
    api.plan(**FIRST, html=path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_the_browser_says_what_python_says(page, asked):
    fragment = "#" + "&".join(f"{name}={value:.0f}" for name, value in asked.items())
    html = browse(page, "--dump-dom", "--window-size=1280,1600", fragment=fragment)
    theirs = json.loads(re.search(r'id="answer">(.*?)</script>', html, re.S)[1])
    ours = api.plan(**{name: int(value) for name, value in asked.items()}).to_dict()
    assert theirs["verdict"] == ours["verdict"]
    assert theirs["reason"] == ours["reason"]
    assert [line.split()[0] for line in theirs["outside"]] == [line.split()[0] for line in ours["outside"]]
    assert theirs["source"] == pytest.approx(ours["source_loss"], rel=1e-9)
    for name, option in ours["options"].items():
        for key in ("loss", "low", "high"):
            assert theirs["options"][name][key] == pytest.approx(option[key], abs=1e-6)
        assert theirs["options"][name]["flops"] == pytest.approx(option["flops"], rel=1e-6)
    for name in ("crossing", "regain"):
        for key, value in ours[name].items():
            assert theirs[name][key] == (None if value is None else pytest.approx(value, rel=1e-6))
    for key in ("mid", "low", "high"):
        assert theirs["difference"][key] == pytest.approx(ours["difference"][key], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(page, width):
    probe = page.parent / f"probe-{width}.html"
    probe.write_text(PROBE.replace("WIDTH", str(width)))
    html = browse(probe, "--dump-dom", "--window-size=1400,900", "--virtual-time-budget=4000")
    scroll, lines, text = map(float, re.search(r'data-result="([^"]+)"', html)[1].split())
    assert (scroll, lines) == (width, 12)
    assert text >= 10


PROBE = """
<body><iframe src="page.html" style="width:WIDTHpx;height:6000px;border:0"></iframe><script>
window.onload = () => {
  const page = document.querySelector("iframe").contentDocument;
  const heights = [...page.querySelectorAll("svg text")].map((item) => item.getBoundingClientRect().height);
  document.body.dataset.result = [page.documentElement.scrollWidth, page.querySelectorAll("#chart polyline").length,
    Math.min(...heights)].join(" ");
};
</script></body>
"""


@pytest.mark.slow
def test_the_page_is_whole_on_a_phone_and_its_key_is_in_the_table_s_order(page, tmp_path):
    assert overflowing(page, tmp_path, 390) == []
    html = browse(page, "--dump-dom", "--window-size=1280,1600")
    key = re.findall(r'<li style="color: var\(--(s\d)\)', html)
    assert key == re.findall(r'<span class="dot" style="background: var\(--(s\d)\)', html)
    assert len(set(key)) == 6
    assert ">Cost<" in html
    assert "D* is where a mixture from scratch" in html


@pytest.mark.slow
def test_a_law_of_dense_runs_says_the_same_in_the_browser(tmp_path):
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on PATH")
    path = tmp_path / "pages" / "dense.html"
    path.parent.mkdir()
    asked = {"params": 1e9, "sunk": 2e10, "tokens": 1e10, "law": "chinchilla-epoch"}
    ours = api.plan(**asked, html=path).to_dict()
    html = browse(path, "--dump-dom", "--window-size=1280,1600")
    theirs = json.loads(re.search(r'id="answer">(.*?)</script>', html, re.S)[1])
    assert theirs["reason"] == ours["reason"]
    for name, option in ours["options"].items():
        assert theirs["options"][name]["loss"] == pytest.approx(option["loss"], abs=1e-6)
        assert theirs["options"][name]["flops"] == pytest.approx(option["flops"])
    assert ">Cost<" not in html
    assert "D* is where" not in html
    assert "--experts" not in re.search(r'id="command">(.*?)</code>', html)[1]
    assert overflowing(path, tmp_path, 390) == []
