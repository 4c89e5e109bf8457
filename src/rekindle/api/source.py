"""What a SRC names: a folder, a name on the hub, a step of an archive, or a series of them. The one grammar of it all.

    runs/base  org/model[@revision]  hf://org/model      one checkpoint
    run.rk@1000                                          one step of an archive, unpacked for as long as it is needed;
                                                         what `merge` reads of it stays packed
    run.rk@1000:5000  run.rk@1000:  run.rk@:5000         its steps from the one to the other, both included
    run.rk@*                                             all of its steps
    run/checkpoint-*                                     what matches, as a shell would find it
    run                                                  the numbered checkpoints in a folder that is none itself

What is there under its whole name is that, whatever is in the name.
"""

from __future__ import annotations

import atexit
import glob
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rekindle.api.series import WEIGHTS, by_steps, step_of, steps_of, within
from rekindle.errors import RekindleError, counted, some
from rekindle.store.folder import Folder
from rekindle.store.hub import locate
from rekindle.store.reading import unreadable
from rekindle.store.stamps import Stamp, stamp
from rekindle.store.weights_alone import open_source

if TYPE_CHECKING:
    from rekindle.codec.archive import Archive

READ = ("data", "scores", "tokenizer", "optimizer_state", "measurements", "averages")  # options that name files to read

LONGEST = 18  # digits of a step: the format's limit is 2^62
NAMED = 4  # steps in a sentence
Range = tuple[int | None, int | None]  # of steps, both ends included
Say = Callable[[str], object]


@dataclass(frozen=True)
class Located:
    """One checkpoint of those that were named."""

    given: str  # what names this one alone
    step: int | None = None  # its number, where it has one
    archive: Path | None = None  # the archive that it is a step of

    @property
    def path(self) -> Path:
        """Its local folder, or file. A name on the hub is fetched, and a step unpacked, when this is first asked for.

        A step is unpacked under the system's folder for temporary files (TMPDIR), and removed when the process ends.
        """
        if self.archive is None or self.step is None:
            return locate(self.given)
        return _unpacked(str(self.archive.resolve()), self.step, stamp(self.archive))

    def folder(self) -> Folder:
        """It opened, a config alone, an adapter, or weights without a config too.

        Of a step of an archive the tensors stay in there, and are read out of it.
        """
        if self.archive is None or self.step is None:
            return replace(open_source(locate(self.given, adapter=True)), given=self.given)
        try:
            opened = _opened(str(self.archive.resolve()), self.step, stamp(self.archive)) or open_source(self.path)
        except RekindleError as error:
            error.where = self.given if error.where else None  # not the folder that it was unpacked to
            raise
        return replace(opened, given=self.given)


def local(source: str | Path) -> Path:
    """The local folder of the one checkpoint that `source` names; raises RekindleError where it names several."""
    text = os.path.expanduser(source)
    if text and os.path.isfile(os.path.join(text, "config.json")):  # whatever lies in it besides
        return Path(text)
    found = _named(str(source))
    if len(found) > 1:
        raise _several(str(source), found)
    return found[0].path


def located(
    sources: str | Path | Sequence[str | Path], say: Say = lambda text: None, *, whatever: bool = False
) -> list[Located]:
    """The checkpoints that one or several SRC name, in the order given; a series in the order of its steps.

    Raises RekindleError where a SRC names nothing, or no checkpoint; `whatever`: to `pack` any file or folder is one.
    """
    given = [sources] if isinstance(sources, (str, Path)) else list(sources)
    found = [one for source in given for one in _named(str(source), say)]
    if len(found) > 1 and not whatever:
        _refuse_others([one.given for one in found if one.archive is None])
    if all(one.step is None for one in found):  # what differs in a number has it for a step
        steps = steps_of([Path(os.path.expanduser(one.given)) for one in found])
        found = [replace(one, step=step) for one, step in zip(found, steps, strict=True)]
    return found


def typed(sources: Sequence[str], by_order: Sequence[str] = ()) -> list[str]:
    """Several SRC of a command line, where what a shell made of a pattern is taken as the pattern is.

    Neighbours that differ in their step alone, in the order of a shell, are put in that of their steps. Raises
    RekindleError where flags, `by_order`, go by an order that the user may have meant.
    """
    meant = by_steps(sources)
    if by_order and meant != list(sources):
        before, after = next(pair for pair in zip(sources, meant) if pair[0] != pair[1])
        what = f"{' and '.join(by_order)} goes by the order of the sources, and that is in doubt."
        why = f"{before} comes first, as where a shell sorts a pattern, and {after} is the earlier step"
        raise RekindleError(what, why=why, hint="the pattern in quotes, or the earlier step first")
    return meant


def place(source: str | Path) -> Path | None:
    """The folder or the archive here that `source` names; None for a name on the hub."""
    text = os.path.expanduser(source)
    path, _ = _split(text, there=True)
    if not os.path.isfile(path) and not os.path.isfile(os.path.join(text, "config.json")):
        found = _named(text)
        path = Path(found[0].given) if len(found) == 1 else path
    return path if os.path.exists(path) else None


def files_read(*configs: Any) -> list[str]:
    """What the options of these Configs name to be read: files and folders, or words such as stdlib."""
    values = [getattr(config, name, None) for config in configs for name in READ]
    return [path for value in values for path in ([value] if isinstance(value, str) else value or ())]


def digest_of(folder: Path) -> str | None:
    """Names what is in a step that was unpacked here, wherever that is; None for any other folder."""
    return _DIGESTS.get(folder)


_DIGESTS: dict[Path, str] = {}


def split_name(source: str | Path) -> tuple[Path, int | None]:
    """ "runs.rk@1200" -> runs.rk, 1200; what is there under its whole name is all path. Raises RekindleError."""
    path, asked = _split(str(source))
    if not isinstance(asked, tuple):
        return path, asked
    found = _steps(path, asked)
    if len(found) > 1:
        raise _several(str(source), found)
    return path, found[0].step


def _named(text: str, say: Say = lambda text: None) -> list[Located]:
    if not text:
        raise RekindleError("A SRC is empty.", why="it would be the folder you are in", hint=". for that one")
    archive, asked = _split(text, there=True)
    if isinstance(asked, int):
        return [Located(text, asked, archive)]
    if asked:
        return _steps(archive, asked, say)
    path = Path(os.path.expanduser(text))
    if os.path.isfile(path):
        _refuse_archive(path)
    if os.path.exists(path):
        return [Located(text if one == path else str(one), step_of(one)) for one in within(path, say)]
    if not glob.has_magic(text):
        return [Located(text)]  # a name on the hub, or nothing
    return [one for match in by_steps(_matching(text)) for one in _named(match, say)]


def _split(text: str, *, there: bool = False) -> tuple[Path, int | Range | None]:
    """ARCHIVE and what of it is asked for. With `there` only of an archive that is there: else a hub's revision."""
    name, at, asked = text.rpartition("@")
    path = Path(os.path.expanduser(name))
    if not at or os.path.exists(text) or (there and not os.path.isfile(path)):
        return Path(text), None
    if asked == "*":
        return path, (None, None)
    first, colon, last = asked.partition(":")
    if not colon:
        return path, _number(first, text)
    return path, (_number(first, text) if first else None, _number(last, text) if last else None)


def _number(number: str, text: str) -> int:
    if not (number.isascii() and number.isdigit() and len(number) <= LONGEST):
        what = f"{number!r} is no step: a number of at most {LONGEST} digits."
        raise RekindleError(what, where=text, hint=f"rekindle archive ls {text.rpartition('@')[0]}")
    return int(number)


def _steps(path: Path, asked: Range, say: Say = lambda text: None) -> list[Located]:
    """The steps of an archive that lie in a range, in their order."""
    from rekindle.codec.archive import Archive

    with Archive(path) as archive:
        names = sorted(archive.names)
        for damage in archive.directory.torn:  # which may have taken steps with it
            say(f"{path}: {damage}")
    first, last = asked
    found = [name for name in names if (first is None or name >= first) and (last is None or name <= last)]
    if not names:
        raise RekindleError("The archive has no steps yet.", where=path, hint="rekindle archive add")
    if not found:
        ends = [f"from {first}"] * (first is not None) + [f"to {last}"] * (last is not None)
        some = ", ".join(map(str, names)) if len(names) <= NAMED else f"from {names[0]} to {names[-1]}"
        why = f"it has {counted(len(names), 'step')}, {some}"
        raise RekindleError(f"{path} has no step {' '.join(ends)}.", why=why, hint=f"{path}@{names[0]}:{names[-1]}")
    return [Located(f"{path}@{name}", name, path) for name in found]


def _matching(pattern: str) -> list[str]:
    """What a pattern matches, in the order in which a shell gives it."""
    if found := sorted(glob.glob(os.path.expanduser(pattern), recursive=True)):
        return found
    folder = Path(os.path.expanduser(pattern))
    while glob.has_magic(str(folder)):
        folder = folder.parent
    if not os.path.isdir(folder):
        raise RekindleError(f"Nothing is called {pattern}.", why=f"there is no folder {folder}")
    raise RekindleError(f"Nothing is called {pattern}.", why=f"in {folder} there is {_held(folder)}")


def _refuse_others(paths: list[str]) -> None:
    """Raise RekindleError where a file or folder among several is no checkpoint."""
    for path in map(Path, map(os.path.expanduser, paths)):
        if os.path.isfile(path) and path.suffix not in WEIGHTS:
            what = f"{path} is no checkpoint, but a file."
        elif os.path.isdir(path) and not any(x.name == "config.json" or x.suffix in WEIGHTS for x in path.rglob("*")):
            what = f"{path} is no checkpoint: in it there is {_held(path)}."
        else:
            continue
        raise RekindleError(what, hint="a pattern that leaves it out")


def _several(source: str, found: list[Located]) -> RekindleError:
    first, last = found[0], found[-1]
    ends = f"from step {first.step} to step {last.step}"
    if first.step is None or last.step is None:
        ends = f"from {first.given} to {last.given}"
    what = f"{source} is a series of {len(found)} checkpoints, {ends}, and one is asked for."
    return RekindleError(what, hint=f"{last.given}, the last")


def _held(folder: Path) -> str:
    """Some of what lies in a folder, by name."""
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise unreadable(folder, error) from None
    return some(names) or "nothing"


def _refuse_archive(path: Path) -> None:
    """All of an archive is no checkpoint: name its steps."""
    from rekindle.codec.archive import Archive
    from rekindle.codec.container import is_archive

    if is_archive(path):
        with Archive(path) as found:
            steps = found.names
        what = f"{path} is an archive of {counted(len(steps), 'step')}, not a checkpoint."
        raise RekindleError(what, hint=f"{path}@{steps[-1]}, its last; rekindle archive ls {path}" if steps else None)


@cache
def _archive(path: str, state: Stamp | None) -> Archive:
    """An archive that several steps are read out of: each starts from what was decoded for the one before."""
    from rekindle.codec.archive import Archive

    return Archive(Path(path))


@cache
def _opened(archive: str, step: int, state: Stamp | None) -> Folder | None:
    from rekindle.codec.straight import open_step

    found = _archive(archive, state)[step]
    folder = open_step(found, _folder_for(step))
    if folder is not None:
        _DIGESTS[folder.path] = found.entry.digest
    return folder


@cache
def _unpacked(archive: str, step: int, state: Stamp | None) -> Path:
    from rekindle.apply.threads import workers_of
    from rekindle.codec.archive import Archive
    from rekindle.codec.unpack import unpack

    folder = _folder_for(step)
    with Archive(Path(archive)) as found:
        unpack(found[step], folder, workers=workers_of(None))
        _DIGESTS[folder] = found[step].entry.digest
    return folder


def _folder_for(step: int) -> Path:
    """Where what is unpacked of a step lies until the process ends."""
    base = Path(tempfile.mkdtemp(prefix="rekindle-"))
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    return base / f"step-{step}"
