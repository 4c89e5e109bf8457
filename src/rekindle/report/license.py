"""The license of what was made of others: what their cards state in their heads, where that is the same.

Each way back through the lineage is asked by itself: the nearest card that states a license speaks for what lies behind
it. Where parents differ, or one states none, nothing is claimed for the child, and each is named.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from html import unescape
from pathlib import Path
from typing import Any

from rekindle.report.places import source_folders
from rekindle.store.lineage import parents, sources, stem
from rekindle.store.manifest import Manifest

LICENSE = "## License\n\n"  # and one line
_CARD = "README.md"
_KEYS = ("license", "license_name", "license_link")
_MOST_BYTES = 1_000_000  # of a parent's card that are read
_NOTHING = ("", "~", "null", "Null", "NULL")  # as YAML writes it


def inherited(card: Path, manifest: Manifest, made_of: Mapping[str, Path] | None) -> tuple[dict[str, str], str]:
    """The license of the model beside `card`, as fields of its head, and in words.

    `made_of` are the folders of what it was made of, by the sources' keys; without it what the card there says stays.
    """
    if made_of is None and (kept := _kept(card)):
        return kept
    found = _behind(card.parent, manifest, made_of or {})
    stated = [terms for terms in found.values() if terms]
    if not stated:
        return {}, "Unknown: no parent's card states one. Ask its authors before you share this model."
    if all(terms == stated[0] for terms in found.values()):
        of = "the parent's card" if len(found) == 1 else "the parents' cards, which agree"
        return stated[0], f"Inherited from {of}: {stated[0]['license']}."
    each = "; ".join(f"{source}: {_called(terms)}" for source, terms in found.items())
    return {}, f"None is claimed, since the parents' cards do not state the same: {each}."


def _called(terms: Mapping[str, str]) -> str:
    return " ".join(f"({terms[key]})" if key != "license" else terms[key] for key in _KEYS if key in terms) or "none"


def _behind(folder: Path, manifest: Manifest, made_of: Mapping[str, Path]) -> dict[str, dict[str, str]]:
    """What the nearest card on each way back states, by the source as it was given; empty where none states any."""
    lineage, there = manifest.lineage, source_folders(folder, manifest.lineage)
    near = next((place for place in reversed(stem(lineage)) if sources(lineage, place)), None)
    behind, found = parents(lineage), dict[str, dict[str, str]]()
    seen, waiting = set[int](), stem(lineage)[-1:]
    while waiting:
        place = waiting.pop(0)
        further = behind[place]
        if named := sources(lineage, place):
            further = []
            for key, source in named.items():
                path = (made_of.get(key) if place == near else None) or there[place].get(key)
                terms = _terms(path / _CARD) if path else {}
                if terms or source.after is None:
                    found[source.source] = terms
                else:
                    further.append(source.after)
        waiting += [after for after in further if after not in seen]
        seen.update(further)
    return found


def _kept(card: Path) -> tuple[dict[str, str], str] | None:
    """What a card of ours said of the license before; None where there is none, or it says nothing."""
    terms, line = _terms(card), re.search(rf"^{LICENSE}(.+)\n\Z", _text(card), re.M)
    if line:
        return terms, unescape(line[1])
    return (terms, f"Inherited from the parent's card: {terms['license']}.") if terms else None


def _terms(card: Path) -> dict[str, str]:
    """The license that a card states in its head; empty where it states none."""
    head = _front_matter(card)
    stated = {key: str(head[key]) for key in _KEYS if isinstance(head.get(key), str)}
    return stated if "license" in stated else {}


def _text(path: Path) -> str:
    """A card, or what can be read of it."""
    if not os.path.isfile(path):  # a pipe would never end
        return ""
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES).decode("utf-8", "ignore")
    except OSError:
        return ""


def _front_matter(path: Path) -> dict[str, Any]:
    """The head of a card, its values as text; empty where the file, or a head that can be read, is missing.

    Nothing of it is interpreted: a date that is none, or a number of any length, is no reason to lose the rest.
    """
    import yaml

    match = re.match(r"---\r?\n(.*?)\r?\n---\s", _text(path), re.S)
    try:
        head = yaml.load(match[1], yaml.BaseLoader) if match else {}
    except (ValueError, RecursionError, yaml.YAMLError):
        return {}
    return {key: value for key, value in head.items() if value not in _NOTHING} if isinstance(head, dict) else {}
