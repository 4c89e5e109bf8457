"""Which step a checkpoint is, which checkpoints are a series, and the numbered ones that a folder is full of."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

from rekindle.errors import RekindleError, some
from rekindle.store.reading import unreadable

WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt"}
_NUMBERED = re.compile(r"(?:^|[-_.])(?:global_)?(?:step|checkpoint|ckpt|iter|iteration|state|epoch)[-_=]?(\d{1,18})$")
_STEP = re.compile(r"(?:^|[^a-zA-Z])step[-_=]?(\d{1,18})")  # wherever in a name: epoch=3-step=1200, net_step_40_ema
_LAST = re.compile(r"(\d{1,18})(?=\D*$)")


def step_of(checkpoint: Path) -> int | None:
    """A checkpoint's step: from what its trainer wrote, or from its name."""
    for name, key in (("trainer_state.json", "global_step"), ("state.json", "step")):
        try:
            number = json.loads((checkpoint / name).read_text(encoding="utf-8"))[key]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if type(number) is int and number >= 0:
            return number
    return _number(checkpoint)


def steps_of(paths: list[Path]) -> list[int | None]:
    """Of each its step; of several without one, the number that their names differ in."""
    found = [step_of(path) for path in paths]
    if len(paths) > 1 and set(found) == {None}:
        told = [_place_in_series(path) for path in paths]
        if None not in told and len({place[0] for place in told if place}) == 1:
            return [place[1] for place in told if place]
    return found


def by_steps(sources: Sequence[str]) -> list[str]:
    """Neighbours that differ in their number alone, in the order of a shell, put in that of their numbers."""
    places = [_place_in_series(Path(os.path.expanduser(source))) for source in sources]
    found: list[str] = []
    for series, group in groupby(zip(sources, places, strict=True), key=lambda x: x[1] and x[1][0]):
        ones = list(group)
        in_shell = [source for source, _ in ones] == sorted(source for source, _ in ones)
        found += [source for source, _ in (sorted(ones, key=lambda x: x[1] or ()) if series and in_shell else ones)]
    return found


def _place_in_series(path: Path) -> tuple[str, int] | None:
    """What those that differ in their number alone have in common, and the number; None where there is none.

    That of the name as trainers call their checkpoints, a link's own, or the whole name; else the last one in the name
    of a file; else that of the nearest folder above.
    """
    is_file = path.suffix in WEIGHTS or path.is_file()
    name = path.stem if is_file else path.name
    if step := _STEP.search(name):
        return str(path.with_name(re.sub(r"\d+", "*", path.name))), int(step[1])  # whatever else counts along
    found = _NUMBERED.search(name) or re.fullmatch(r"(\d{1,18})", name) or (_LAST.search(name) if is_file else None)
    if found:
        lo, hi = found.span(1)
        return str(path.with_name(f"{path.name[:lo]}*{path.name[hi:]}")), int(found[1])
    above = _place_in_series(path.parent) if path.parent.name else None
    return above and (f"{above[0]}/{path.name}", above[1])


def within(path: Path, say: Callable[[str], object] = lambda text: None) -> list[Path]:
    """The checkpoint itself, or the numbered ones in a folder that is none, by their numbers."""
    if not path.is_dir() or _number(path) is not None:
        return [path]
    try:
        inside = sorted(path.iterdir())
        files, folders = _parts(inside)
        lone = [x for x in inside if x.is_dir() and any(y.suffix in WEIGHTS for y in x.iterdir())]
    except PermissionError as error:
        raise unreadable(error.filename, error) from None
    numbered = [x for x in files if _number(x) is not None]
    if (files and folders) or (not folders and (len(numbered) < 2 or len(numbered) < len(files))):
        if len(lone) > 1 and len(lone) == len(inside):
            say(f"{path}: all of it is one checkpoint, since none of its {len(lone)} folders has a step number")
        return [path]
    found = sorted(folders or numbered, key=lambda x: (_number(x) or 0, x.name))
    left = [x.name for x in inside if x not in found]
    note = f"; left out: {some(left)}" if left else ""
    say(f"{path}: {len(found)} numbered checkpoint(s), {found[0].name} and so on{note}")
    return found


def refuse_both(path: Path) -> None:
    """Raise RekindleError where a folder is a checkpoint and holds numbered ones, which would be packed with it."""
    if not path.is_dir() or _number(path) is not None:
        return
    files, folders = _parts(sorted(path.iterdir()))
    if files and folders:
        what = f"{path} holds a checkpoint of its own, and {len(folders)} numbered ones such as {folders[0].name}."
        star = re.sub(r"\d+$", "*", folders[0].name)
        raise RekindleError(what, hint=f"{shlex.quote(str(path))}/{star}, or a copy of {path} without them")


def _parts(inside: list[Path]) -> tuple[list[Path], list[Path]]:
    """Of what is in a folder its weights, and its numbered folders."""
    files = [x for x in inside if x.is_file() and x.suffix in WEIGHTS]
    folders = [x for x in inside if x.is_dir() and _number(x) is not None and not x.name.startswith(".")]
    if files:
        folders = [x for x in folders if not x.name.startswith("global_step")]  # DeepSpeed's half of the checkpoint
    return files, folders


def _number(path: Path) -> int | None:
    resolved = path.resolve()
    match = _NUMBERED.search(resolved.stem if resolved.is_file() else resolved.name)
    return int(match[1]) if match else None
