"""What counts, settled before the runs: margins/STUDY.yaml has a row for each claim, and the page names its digest.

    pilot: three seeds of 2026-11-21     where the spreads come from
    claims:
      drop-below-copy:
        least: 0.01        of a claim that an arm ends better: the smallest effect that would be worth the name
        spread: 0.0077     standard deviation of the paired difference in the pilot; it gives the number of seeds
        why: a tenth of what upcycling gains over scratch
      noisy-as-copies:
        within: 0.01       of a claim that two arms end alike

A study whose claims and rows are not the same does not run, nor does one go on whose rows changed after it began. With
how many seeds its runs were judged is noted too: what is looked at again as it grows decides more often than p says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from math import inf
from pathlib import Path
from typing import Any, Protocol

from rekindle.config import option, read_yaml, resolve
from rekindle.errors import RekindleError, together
from rekindle.store.index import read_json
from rekindle.store.publish import write_whole

NOTED = "margins.json"  # in the folder of a study: what it began with


class Judged(Protocol):
    """A claim, as far as its size goes."""

    @property
    def key(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def alike(self) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class Margin:
    """A claim's row; sizes in the unit of its metric."""

    least: float | None = option(None, help="least effect of a claim that an arm ends better")
    within: float | None = option(None, help="margin of a claim that two arms end alike")
    spread: float | None = option(None, help="standard deviation of the paired difference in the pilot")
    why: str = option(help="why this size")

    @property
    def size(self) -> float:
        """The least effect, or the margin."""
        return self.within or self.least or 0.0


@dataclass(frozen=True)
class Margins:
    rows: Mapping[str, Margin]
    file: str
    digest: str = ""  # of the file's bytes, SHA-256, its first twelve digits
    pilot: str = ""
    judged: tuple[int, ...] = ()  # other numbers of seeds that the same runs were judged with


def margins_of(study: str, claims: Sequence[Judged], folder: Path | None = None) -> Margins:
    """The rows of a study's claims; raises RekindleError where they are not one for each, or hold no size."""
    path = (folder or Path(str(resources.files("rekindle.lab") / "margins"))) / f"{study}.yaml"
    if not claims:
        return Margins({}, "")
    data = read_yaml(path)
    rows: dict[str, Margin] = {}
    problems: list[RekindleError] = []
    stated = data.get("claims")
    given = stated if isinstance(stated, dict) else {}
    for key, values in given.items():
        try:
            rows[key] = resolve(Margin, {}, values if isinstance(values, dict) else {}).config
        except RekindleError as error:
            problems.append(RekindleError(error.what, where=f"{path.name}: {key}", hint=error.hint))
    known = {claim.key for claim in claims}
    problems += [RekindleError(f"There is no claim {key!r}.", where=path) for key in rows if key not in known]
    read = [claim for claim in claims if claim.key in rows or claim.key not in given]
    problems += [problem for claim in read if (problem := _problem(claim, rows.get(claim.key), path)) is not None]
    if problems:
        raise together(problems)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return Margins(rows, f"margins/{path.name}", digest, str(data.get("pilot", "")))


def _problem(claim: Judged, row: Margin | None, path: Path) -> RekindleError | None:
    """What keeps a claim's row from deciding it."""
    where, wanted = f"{path}: claims: {claim.key}", "within" if claim.alike else "least"
    if lacking := _lacking(row, wanted):
        return RekindleError(
            f"The claim {claim.text!r} has no margin that could decide it: {lacking}.",
            where=where,
            why="what counts is settled before the runs",
            hint=f"{claim.key}: {{{wanted}: 0.01, why: ...}}",
        )
    if row and row.spread is not None and not 0 < row.spread < inf:
        what = f"The spread of {claim.text!r} is {row.spread:g}, but a standard deviation is above 0."
        return RekindleError(what, where=where, hint="the column spread of a pilot's findings.csv, or no spread")
    return None


def _lacking(row: Margin | None, wanted: str) -> str:
    if row is None:
        return "there is no row"
    size, other = (row.within, row.least) if wanted == "within" else (row.least, row.within)
    if other is not None:
        return f"its kind has {wanted!r} alone"
    if size is None:
        return f"there is no {wanted!r}"
    return "" if 0 < size < inf else f"{wanted} is {size:g}"


def begun_with(margins: Margins, out: Path) -> Margins:
    """The margins with the digest that their file had when the study in OUT began, which is noted there.

    Raises RekindleError where it began with other sizes; words and spreads may change.
    """
    path = out / NOTED
    if not margins.rows and not path.exists():
        return margins
    now = {key: ["within" if row.within else "least", row.size] for key, row in margins.rows.items()}
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        _write(path, {"digest": margins.digest, "sizes": now})
        return margins
    noted = _noted(path)
    before = noted["sizes"]
    if changed := [key for key in {**before, **now} if before.get(key) != now.get(key)]:
        raise RekindleError(
            f"The margins of {changed[0]} were others when these runs began.",
            where=path,
            why="a margin that is set after the runs decides nothing",
            hint="--out, for a study with today's margins",
        )
    return replace(margins, digest=noted["digest"])


def judged_before(margins: Margins, out: Path, seeds: int) -> Margins:
    """The margins with the other numbers of seeds that the study in OUT was judged with; this one is noted as well."""
    path = out / NOTED
    if not margins.rows:
        return margins
    noted = _noted(path)
    before = noted.get("seeds", [])
    if seeds not in before:
        _write(path, {**noted, "seeds": [*before, seeds]})
    return replace(margins, judged=tuple(n for n in before if n != seeds))


def _noted(path: Path) -> dict[str, Any]:
    """What a study's folder says of its margins; raises RekindleError where it does not say it."""
    noted = read_json(path, missing=f"There is no {NOTED}.")
    sizes, seeds = noted.get("sizes"), noted.get("seeds", [])
    whole = isinstance(seeds, list) and all(type(n) is int for n in seeds)
    if not (whole and isinstance(sizes, dict) and isinstance(noted.get("digest"), str)):
        raise RekindleError(
            "This file does not say what margins these runs began with.",
            where=path,
            why="what counts is settled before the runs",
            hint="--out, for a study from the beginning",
        )
    return noted


def _write(path: Path, noted: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(noted, indent=1) + "\n")
