"""A box at the top of each page of known.yaml: what is known to be off with it. `make docs` runs this; a test compares.

The box belongs to the results it speaks of. A page that was written anew comes without one and gets none.
"""

from __future__ import annotations

import hashlib
import re
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from rekindle.config import read_yaml

LAB = Path(__file__).parent
_STYLE = re.compile(r"\* \{ box-sizing: border-box; \}.*?\n(?=\n?</style>)", re.DOTALL)
_BOX = re.compile(r'<aside class="known".*?</aside>\n', re.DOTALL)
_PLACE = re.compile(r'(?=  <p class="verdict")')
_LOOK = "margin: 0 0 24px; padding: 12px 20px; border: 1px solid var(--s1); border-radius: 6px; font-size: 14px"


def entries() -> dict[str, dict[str, Any]]:
    return read_yaml(LAB / "known.yaml")["pages"]


def speaks_of(name: str, entry: dict[str, Any]) -> bool:
    """Whether the page's results are those that the entry was written for."""
    found = {file: hashlib.sha256((LAB / name / file).read_bytes()).hexdigest()[:12] for file in entry["results"]}
    return found == entry["results"]


def page(name: str) -> str:
    """A page in today's style, with its box where it needs one."""
    text = (LAB / name / "index.html").read_text(encoding="utf-8")
    css = (resources.files("rekindle.report") / "page.css").read_text(encoding="utf-8")
    text = _BOX.sub("", _STYLE.sub(lambda _: css, text, count=1))
    entry = entries().get(name)
    return _PLACE.sub(lambda _: box(entry), text, count=1) if entry and speaks_of(name, entry) else text


def box(entry: dict[str, Any]) -> str:
    known = read_yaml(LAB / "known.yaml")
    lines = [*entry["notes"], *([known["common"]] if entry.get("common", True) else [])]
    items = "".join(f"<li>{escape(line, quote=False)}</li>\n" for line in lines)
    head = f"Known to be off with this page, {known['noted']}. It stands as it was until its study is run again."
    return (
        f'<aside class="known" style="{_LOOK}">\n'
        f'<strong>{head}</strong>\n<ul class="cautions" style="margin-top: 8px">\n{items}</ul></aside>\n'
    )


def pages() -> list[str]:
    return sorted(path.parent.name for path in LAB.glob("*/index.html"))


if __name__ == "__main__":
    for found in pages():
        (LAB / found / "index.html").write_text(page(found), encoding="utf-8")
