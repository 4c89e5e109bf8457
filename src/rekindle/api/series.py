"""Which step a checkpoint is, and the numbered checkpoints that a folder is full of."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

from rekindle.errors import RekindleError, some
from rekindle.store.reading import unreadable

WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt"}
_NUMBERED = re.compile(r"(?:^|[-_.])(?:global_)?(?:step|checkpoint|ckpt|iter|state|epoch)[-_]?(\d{1,18})$")


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
    """Of each its step; of several files, what their names end with if they differ in nothing else."""
    found = [step_of(path) for path in paths]
    ends = [re.fullmatch(r"(.*?)(\d{1,18})", path.stem) for path in paths if path.is_file()]
    if len(paths) > 1 and len(ends) == len(paths) and set(found) == {None}:
        told = [match for match in ends if match]
        if len(told) == len(paths) and len({(match[1], path.suffix) for match, path in zip(told, paths)}) == 1:
            return [int(match[2]) for match in told]
    return found


def number_in(path: Path) -> int | None:
    """The step that a name ends with, as trainers call their checkpoints; that of a link's own name."""
    match = _NUMBERED.search(path.stem if path.suffix in WEIGHTS else path.name)
    return int(match[1]) if match else None


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
