"""A folder appears whole or not at all: written beside its place, flushed, renamed."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rekindle.errors import RekindleError
from rekindle.store.lock import alone, check_not_trained, lock_of
from rekindle.store.system import explained


def partial_path(out: Path, part: str = "") -> Path:
    """Where OUT, or a part of it, is written until it is complete: a hidden sibling, a rename away from its place."""
    return out.parent / f".{out.name}.partial{f'-{part}' if part else ''}"


def retired_path(out: Path) -> Path:
    """Where an OUT that is replaced lies for a moment."""
    return out.parent / f".{out.name}.retired"


# -- what is refused before anything is computed -----------------------------------------------------------------


def check_free(out: Path, overwrite: bool) -> None:
    """Refuse an OUT that cannot be replaced by a rename; and one that is not empty, unless `overwrite`."""
    check_is_folder(out)
    with explained(out):
        check_own(retired_path(out))
        if out.exists() and Path.cwd().is_relative_to(out.resolve()):
            raise RekindleError(f"{out} holds the folder you are in, and would be replaced.", hint="another OUT")
        check_no_mount(out)
        if overwrite:
            return
        if out.exists() and any(out.iterdir()):
            raise RekindleError(f"{out} exists and is not empty.", hint="another OUT, or --overwrite to replace it")
        if not out.exists() and (retired := retired_path(out)).is_dir():
            what = f"{out} was being replaced when that was cut short: what it was is in {retired}."
            raise RekindleError(what, hint=f"--overwrite to replace it, or: mv {retired} {out}")


def check_is_folder(out: Path) -> None:
    """Refuse an OUT that is something else, or whose name is no text."""
    check_name(out)
    with explained(out):
        if out.is_symlink() or (out.exists() and not out.is_dir()):
            kind = "link" if out.is_symlink() else "file"
            raise RekindleError(f"{out} is a {kind}, not a folder.", hint="another OUT")


def check_no_mount(out: Path) -> None:
    """Refuse an OUT that no rename can put in its place."""
    if out.is_dir() and _is_mount(out):
        why = "OUT appears by a rename, and a mount point cannot be renamed"
        raise RekindleError(f"{out} is a mount point.", why=why, hint=str(out / "run"))


def check_spares(out: Path, source: str | Path | None, *others: str | Path | None, in_place: bool = False) -> None:
    """Refuse an OUT that holds what is read to make it, and so would be deleted; or that lies in `source`.

    `in_place`: it may be the source itself, whose own model is what is written.
    """
    with explained(out):
        target = out.resolve()
        for path in (source, *others):
            if path is None:
                continue
            check_name(path)
            place = Path(os.path.expanduser(path)).resolve()
            if path != source:
                if place.is_relative_to(target) and place.exists():
                    raise RekindleError(f"{out} holds {path}, which is read.", hint="another OUT")
            elif place.exists() and not (in_place and place == target):
                check_beside(out, target, place)


def check_beside(out: Path, target: Path, source: Path) -> None:
    """Refuse an OUT, at `target`, that is, holds or lies in the source."""
    if target == source:
        raise RekindleError(f"{out} is the source, and would be replaced.", hint="another OUT")
    if source.is_relative_to(target):
        raise RekindleError(f"{out} holds the source, {source}.", hint="another OUT")
    if target.is_relative_to(source):
        raise RekindleError(f"{out} lies in the source, {source}.", hint="another OUT")


def check_name(path: str | Path) -> None:
    """Refuse a name that is not UTF-8: no config, card or recipe could hold it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise RekindleError(f"The name {str(path)!a} is not UTF-8.", hint="rename it, or another name") from None


def check_own(path: Path) -> None:
    """Refuse a hidden folder that is a link or another user's: what is in it would be taken over, or deleted."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        kind = "another user's" if stat.S_ISDIR(found.st_mode) else "no folder, or a link to one"
        raise RekindleError(f"{path} is {kind}.", why="OUT is written there first", hint="remove it, or another OUT")


def _is_mount(path: Path) -> bool:
    if os.path.ismount(path):
        return True
    try:  # a bind mount on the same disc looks like any folder, but Linux lists it
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return False
    points = (re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split(" ")[4]) for line in lines)
    return str(path.resolve()) in points


# -- writing -----------------------------------------------------------------------------------------------------


@contextmanager
def publishing(
    out: str | Path,
    *,
    overwrite: bool = False,
    keep_partial: bool = False,
    resume: bool | None = None,
    trained: bool = False,
) -> Iterator[Path]:
    """Yield an empty folder beside OUT that becomes OUT when the block ends well.

    With `keep_partial` an attempt that is cut short leaves its folder beside OUT, and the next one is given it as it
    stands unless `resume` is False: that is what --resume finds. Refusals leave nothing behind. Raises RekindleError
    where another process writes OUT, or trains into it; `trained`: this is that training, which has its lock.
    """
    out = Path(os.path.abspath(out))
    check_free(out, overwrite)
    resume = keep_partial if resume is None else resume
    with alone(lock_of(out), f"writing {out}"):
        check_free(out, overwrite)  # again: another process may have finished it since
        if not trained:
            check_not_trained(out)
        with staged(out, partial_path(out), _publish, keep_partial=keep_partial, resume=resume) as partial:
            yield partial


@contextmanager
def staged(
    out: Path, partial: Path, publish: Callable[[Path, Path], object], *, keep_partial: bool, resume: bool
) -> Iterator[Path]:
    """Yield the folder `partial`, and `publish(partial, out)` when the block ends well."""
    with explained(out):
        partial.parent.mkdir(parents=True, exist_ok=True)
        if not partial.is_symlink():
            partial.mkdir(exist_ok=True)
        check_own(partial)
        if not resume:
            shutil.rmtree(partial)
            partial.mkdir()
    try:
        with explained(out):
            yield partial
            publish(partial, out)
    except BaseException as error:
        if not keep_partial or isinstance(error, RekindleError):
            shutil.rmtree(partial, ignore_errors=True)
        raise


def _publish(partial: Path, out: Path) -> None:
    for path in partial.rglob("*"):
        sync(path)
    sync(partial)
    retired = retired_path(out)
    if out.exists():
        shutil.rmtree(retired, ignore_errors=True)
        out.rename(retired)
        try:
            partial.rename(out)
        except BaseException:
            retired.rename(out)
            raise
    else:
        partial.rename(out)
    sync(out.parent)
    shutil.rmtree(retired, ignore_errors=True)  # also one that a kill between the two renames left


def write_whole(path: Path, text: str) -> None:
    """Write a small file in one piece: what is cut off leaves the file as it was before, or none."""
    half = path.with_name(f"{path.name}.part")
    half.write_text(text, encoding="utf-8")
    half.replace(path)


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
