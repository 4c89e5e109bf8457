"""Where the folders behind a checkpoint lie now, told from what was typed to make it.

A command names OUT and SRC as they were typed, in some folder: what is left of the result's own path when OUT is taken
off its end. There SRC is looked for, whatever the current folder is; and what lies behind it in the same way.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path, PurePath

from rekindle.errors import RekindleError
from rekindle.store.lineage import parents, sources
from rekindle.store.manifest import Record, Source


def source_folders(folder: Path, lineage: Sequence[Record]) -> list[dict[str, Path]]:
    """Of each record, the folders of what it was made of, by the source's key, as far as they are found."""
    found: list[dict[str, Path]] = [{} for _ in lineage]
    folder = folder.absolute()
    made = {len(lineage) - 1: folder.with_name(published_name(folder))}
    for place in reversed(range(len(lineage))):
        named = sources(lineage, place)
        for key, source in named.items():
            there = _place(source, made.get(place), lineage[place])
            if there and os.path.isdir(there):
                found[place][key] = there
            if there and source.after is not None:
                made[source.after] = there
        if not named and place in made:  # a later step of a recipe
            made |= dict.fromkeys(parents(lineage)[place], made[place])
    return found


def published_name(folder: Path) -> str:
    """The name a folder will have: while it is written it is called .NAME.partial, a part .NAME.partial-1-of-2."""
    return re.sub(r"^\.(.+)\.partial(-\d+-of-\d+)?$", r"\1", folder.name)


def out_of(record: Record) -> str | None:
    """The OUT that a record's command names: the last of what stands before its options."""
    try:
        words = shlex.split(record.command)[2:]
    except ValueError:
        return None
    options = [i for i, word in enumerate(words) if word.startswith("--")]
    arguments = words[: options[0] if options else None]
    return arguments[-1] if arguments else None


def _place(source: Source, made: Path | None, record: Record) -> Path | None:
    """Where the folder that a source names lies, or lay; None where that cannot be told."""
    typed = Path(os.path.expanduser(source.source))
    if typed.is_absolute():
        return typed
    if start := _start(made, record):
        return start / typed
    return typed.absolute() if os.path.isdir(typed) and _is_still(typed, source.fingerprint) else None


def _start(made: Path | None, record: Record) -> Path | None:
    """The folder in which the command was typed, where OUT is a path below it and what it made is still there."""
    out = PurePath(out_of(record) or "/").parts
    return Path(*made.parts[: -len(out)]) if made and out and made.parts[-len(out) :] == out else None


def _is_still(folder: Path, fingerprint: str | None) -> bool:
    """Whether a folder below the current one, which may be any, holds what the record says; true where it does not."""
    if fingerprint is None:
        return True
    from rekindle.store.folder import open_folder

    try:
        return open_folder(folder).fingerprint == fingerprint
    except RekindleError:
        return False
