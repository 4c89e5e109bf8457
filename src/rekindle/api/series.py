"""Which checkpoints `pack` and `add` are given: folders, files, or a folder full of either, by their step numbers."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from rekindle.api.source import local
from rekindle.errors import RekindleError
from rekindle.store.reading import unreadable

WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt"}
_NUMBERED = re.compile(r"(?:^|[-_.])(?:global_)?(?:step|checkpoint|ckpt|iter|state|epoch)[-_]?(\d{1,18})$")


def series(
    checkpoints: str | Path | Sequence[str | Path], step: int | None, say: Callable[[str], object] = lambda text: None
) -> list[tuple[Path, int | None]]:
    """Checkpoints with their step numbers, in the order in which they are packed."""
    given = [checkpoints] if isinstance(checkpoints, (str, Path)) else list(checkpoints)
    if not given:
        raise RekindleError("There is no checkpoint to pack.", hint="rekindle pack CKPT... ARCHIVE")
    try:
        paths = [path for each in given for path in _within(local(each), say)]
    except PermissionError as error:
        raise unreadable(error.filename, error) from None
    if step is not None and len(paths) > 1:
        raise RekindleError(f"--step {step} names one checkpoint, not {len(paths)}.", hint="one at a time")
    found = list(zip(paths, _numbers(paths) if step is None else [step], strict=True))
    if all(number is not None for _, number in found):
        found.sort(key=lambda pair: pair[1] or 0)
    for (path, number), (other, after) in zip(found, found[1:]):
        if number is None or after is None:
            if number != after:
                without = path if number is None else other
                what = "Some of these checkpoints have a step number, and this one has none."
                raise RekindleError(what, where=without, hint="--step, one at a time")
        elif number == after:
            raise RekindleError(f"Two of these are step {number}: {path} and {other}.", hint="leave one out")
    return found


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


def _numbers(paths: list[Path]) -> list[int | None]:
    """Of each its step; of several files, what their names end with if they differ in nothing else."""
    found = [step_of(path) for path in paths]
    ends = [re.fullmatch(r"(.*?)(\d{1,18})", path.stem) for path in paths if path.is_file()]
    if len(paths) > 1 and len(ends) == len(paths) and set(found) == {None}:
        told = [match for match in ends if match]
        if len(told) == len(paths) and len({(match[1], path.suffix) for match, path in zip(told, paths)}) == 1:
            return [int(match[2]) for match in told]
    return found


def _number(path: Path) -> int | None:
    resolved = path.resolve()
    match = _NUMBERED.search(resolved.stem if resolved.is_file() else resolved.name)
    return int(match[1]) if match else None


def _within(path: Path, say: Callable[[str], object]) -> list[Path]:
    """The checkpoint itself, or the numbered ones in a folder that is none. Raises RekindleError where it is both."""
    if not path.is_dir() or _number(path) is not None:
        return [path]
    inside = sorted(path.iterdir())
    files = [x for x in inside if x.is_file() and x.suffix in WEIGHTS]
    folders = [x for x in inside if x.is_dir() and _number(x) is not None and not x.name.startswith(".")]
    if files:
        folders = [x for x in folders if not x.name.startswith("global_step")]  # DeepSpeed's half of the checkpoint
    numbered = [x for x in files if _number(x) is not None]
    if folders and files:
        what = f"{path} holds a checkpoint of its own, and {len(folders)} numbered ones such as {folders[0].name}."
        raise RekindleError(what, hint=f"{shlex.quote(str(path))}/{_star(folders)}, or a copy of {path} without them")
    if not folders and (len(numbered) < 2 or len(numbered) < len(files)):
        lone = [x for x in inside if x.is_dir() and any(y.suffix in WEIGHTS for y in x.iterdir())]
        if len(lone) > 1 and len(lone) == len(inside):
            say(f"{path}: all of it is one checkpoint, since none of its {len(lone)} folders has a step number")
        return [path]
    found = folders or numbered
    left = [x.name for x in inside if x not in found]
    note = f"; left out: {', '.join(left[:4])}{' ...' if len(left) > 4 else ''}" if left else ""
    say(f"{path}: {len(found)} numbered checkpoint(s), {found[0].name} and so on{note}")
    return found


def _star(folders: list[Path]) -> str:
    return re.sub(r"\d+$", "*", folders[0].name)
