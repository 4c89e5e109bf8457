"""The page in headless Chromium: no console errors, figures drawn, light, dark and phone."""

import re

import pytest
from headless import CHROMIUM, browse, overflowing
from report_runs import Curve, averaged, demo, merged, stage, write_run

from rekindle.report.page import write_report

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("pages")]  # made once

PROBE = """
<body><iframe src="index.html" style="width:WIDTHpx;height:8000px;border:0"></iframe><script>
window.onload = () => {
  const page = document.querySelector("iframe").contentDocument;
  const boxes = (what) => [...page.querySelectorAll(what)].map((item) => item.getBoundingClientRect())
    .filter((box) => box.width > 0);
  const shown = boxes("svg");
  const least = (sizes) => Math.min(...sizes);
  document.body.dataset.result = [page.documentElement.scrollWidth, shown.length,
    least(shown.map((box) => box.width)), least(boxes("svg text").map((box) => box.height))].join(" ");
};
</script></body>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on PATH")
    folder = tmp_path_factory.mktemp("browser")
    return write_report(demo(folder / "runs"), folder / "out").page


def pixels(path):
    from matplotlib.image import imread

    return imread(path)[:, :, :3]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_both_themes_are_drawn_in_their_own_colours(page, tmp_path, theme):
    dark = ["--blink-settings=preferredColorScheme=0"] if theme == "dark" else []
    shot = tmp_path / "shot.png"
    browse(page, "--window-size=1280,3600", f"--screenshot={shot}", *dark)
    image = pixels(shot)
    paper = image[5, 5]
    assert bool(paper.mean() < 0.2) is (theme == "dark")
    written = abs(image - paper).max(axis=2) > 0.3
    assert 0.005 < written.mean() < 0.3
    figure = written[900:1300, 150:750]  # the first curve
    assert figure.mean() > 0.005


def test_the_page_runs_its_script_and_lays_out_its_figures(page):
    html = browse(page, "--dump-dom", "--window-size=1280,3600")
    assert html.count("<svg") == 2 * 5


@pytest.mark.parametrize("width", [390, 700, 900, 1280])
def test_nothing_is_wider_than_the_screen(page, tmp_path, width):
    """Measured inside a frame of that width: a headless window is never narrower than about 500 pixels."""
    probe = page.parent / f"probe-{width}.html"
    probe.write_text(PROBE.replace("WIDTH", str(width)))
    html = browse(probe, "--dump-dom", "--window-size=1400,900", "--virtual-time-budget=4000")
    scroll, shown, narrowest, text = map(float, re.search(r'data-result="([^"]+)"', html)[1].split())
    assert scroll == width
    assert shown == 5  # one of the two layouts of each figure
    assert narrowest > min(width, 760) * 0.85
    assert text >= 11  # pixels: legible without zooming


@pytest.mark.parametrize("width", [390, 860, 1400])
def test_no_cell_is_cut_and_no_button_lies_on_a_command(page, tmp_path, width):
    assert overflowing(page, tmp_path, width) == []


@pytest.mark.parametrize("width", [390, 860])
@pytest.mark.skipif(CHROMIUM is None, reason="no browser")
def test_lives_that_part_and_meet_fit_the_screen(tmp_path_factory, tmp_path, width):
    folder = tmp_path_factory.mktemp("merged")
    lives = {"merged": merged(), "mean": averaged()}
    runs = [write_run(folder / name, Curve(3.4, 3.0), [*life, stage(name, 1, 1.0, f"work/{name}-start")])
            for name, life in lives.items()]  # fmt: skip
    assert overflowing(write_report(runs, folder / "out").page, tmp_path, width) == []


def test_a_chart_is_as_wide_as_a_wide_screen_allows(page):
    probe = page.parent / "probe-wide.html"
    probe.write_text(PROBE.replace("WIDTH", "1400"))
    html = browse(probe, "--dump-dom", "--window-size=1600,900", "--virtual-time-budget=4000")
    assert float(re.search(r'data-result="([^"]+)"', html)[1].split()[2]) > 900
