"""Pages in headless Chromium, without a console error."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

HEADLESS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--v=0",
    "--allow-file-access-from-files",
]


def browse(page: Path, *options: str, fragment: str = "") -> str:
    """What Chromium prints of a page, such as its HTML with --dump-dom."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *HEADLESS, f"--user-data-dir={page.parent.parent / 'profile'}", *options]
    done = subprocess.run([*command, page.as_uri() + fragment], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not console, console
    return done.stdout


def overflowing(page: Path, folder: Path, width: int) -> list[str]:
    """What of a page reaches beyond a screen of `width` pixels, or lies under its copy button; commands may scroll.

    Measured inside a frame of that width: a headless window is never narrower than about 500 pixels.
    """
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on PATH")
    inside = folder / "pages"
    inside.mkdir(exist_ok=True)
    shutil.copy(page, inside / "page.html")
    (inside / "probe.html").write_text(_PROBE.replace("WIDTH", str(width)))
    html = browse(inside / "probe.html", "--dump-dom", "--window-size=1600,900", "--virtual-time-budget=4000")
    found = re.search(r'data-result="([^"]*)"', html)
    assert found is not None
    return json.loads(unescape(found[1]))


_PROBE = """
<body><iframe src="page.html" style="width:WIDTHpx;height:9000px;border:0"></iframe><script>
window.onload = () => {
  const page = document.querySelector("iframe").contentDocument, found = [];
  if (page.documentElement.scrollWidth > WIDTH) found.push("the page: " + page.documentElement.scrollWidth);
  for (const item of page.querySelectorAll("main *")) {
    const box = item.getBoundingClientRect();
    if (box.width && box.right > WIDTH + 1 && !item.closest("pre")) found.push(item.outerHTML.slice(0, 80));
  }
  for (const box of page.querySelectorAll(".copyable")) {
    const button = box.querySelector("button") || box.appendChild(page.createElement("button"));
    const [a, b] = [button, box.querySelector("pre")].map((item) => item.getBoundingClientRect());
    const apart = a.left >= b.right || b.left >= a.right || a.top >= b.bottom || b.top >= a.bottom;
    if (!apart) found.push("a button over a command");
  }
  document.body.dataset.result = JSON.stringify(found);
};
</script></body>
"""
