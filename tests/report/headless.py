"""Pages in headless Chromium, without a console error."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

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
