"""The way of a part into OUT, and from all parts to the whole.

Until it is joined, OUT holds the shards that are finished, and OUT/parts a record of each part, what it measured, and
once the files that belong beside the shards: there is no config and no index, so nothing takes OUT for a model.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rekindle.apply.crew import JOURNAL
from rekindle.apply.measure import FOLDER as MEASURED
from rekindle.apply.measure import Found, read_found, was_found_in, write_found
from rekindle.apply.parts import Identity, Part, Record, clashes, missing_parts, read_record, read_records
from rekindle.apply.write import Written
from rekindle.errors import RekindleError, together
from rekindle.store.folder import PARTS
from rekindle.store.lock import alone, check_not_trained, lock_of
from rekindle.store.manifest import NAME, read_manifest
from rekindle.store.publish import check_is_folder, check_no_mount, partial_path, staged, sync
from rekindle.store.system import explained

RECORD = ".part"  # of a part, in the folder where it is written
CONFIG = "config.json"  # comes last: what makes a folder a model


def rest_of(out: Path) -> Path:
    """Where the files wait that belong beside the shards."""
    return out / PARTS / "rest"


# -- a part ----------------------------------------------------------------------------------------------------


def is_there(out: Path, part: Part, identity: Identity, *, overwrite: bool, resume: bool) -> bool:
    """Whether this part is finished; raises RekindleError where it has no place in OUT."""
    _check_no_whole(out)
    records = read_records(out)
    own = [record for record in records if record.part == part]
    if problems := clashes([r for r in records if not (overwrite and r in own)], part, identity, {}):
        raise together(problems)
    if own and not overwrite and not resume:
        hint = "--resume to keep it, --overwrite to write it again"
        raise RekindleError(f"Part {part} of {out} is there already.", hint=hint)
    return bool(own) and not overwrite and not _damaged(out, own)


def _check_no_whole(out: Path) -> None:
    check_is_folder(out)
    with explained(out):
        check_no_mount(out)
        if out.exists() and any(out.iterdir()) and not (out / PARTS).is_dir():
            raise RekindleError(f"{out} exists and is not empty.", why="a part replaces no whole", hint="another OUT")
    if (out / CONFIG).exists():
        raise RekindleError(f"{out} is whole but for its last step.", hint=f"rekindle join {out}")


def measured_by_others(out: Path, part: Part) -> Found:
    """What other parts have measured already."""
    return _measured(out, [record for record in read_records(out) if record.part != part])


@contextmanager
def publishing_part(out: str | Path, part: Part, *, resume: bool) -> Iterator[Path]:
    """Yield a folder beside OUT whose shards then appear in OUT, and then its record, which says that all are there.

    An attempt that is cut short leaves its folder for `resume`; a refusal leaves nothing. Parts may be written at once,
    but nothing else of OUT.
    """
    out = Path(os.path.abspath(out))
    staging = partial_path(out, part.stem)
    with (
        alone(lock_of(out), f"writing {out}", shared=True),
        alone(staging.with_name(f"{staging.name}.lock"), f"writing part {part} of {out}"),
    ):
        check_not_trained(out)
        _check_no_whole(out)  # again: another process may have finished one since
        with staged(out, staging, _publish_part, keep_partial=True, resume=resume) as folder:
            yield folder


def _publish_part(staging: Path, out: Path) -> None:
    record = read_record(staging / RECORD)
    others = [other for other in read_records(out) if other.part != record.part]
    if problems := clashes(others, record.part, record.identity, record.measured):
        raise together(problems)
    final = out / PARTS / f"{record.part.stem}.json"
    rest_of(out).mkdir(parents=True, exist_ok=True)
    final.unlink(missing_ok=True)
    for path in _files(staging):
        sync(path)
        name = path.relative_to(staging)
        if name.parts[0] == MEASURED:
            _move(path, final.with_suffix("") / name)
        elif str(name) not in (RECORD, JOURNAL):
            _move(path, (out if str(name) in record.written else rest_of(out)) / name)
    _sync_folders(out)
    os.replace(staging / RECORD, final)
    sync(final.parent)
    shutil.rmtree(staging)


# -- the whole -------------------------------------------------------------------------------------------------


def join(out: Path) -> dict[str, Written]:
    """Make OUT the model that a single write would have made. Returns what became of each shard, in order.

    Raises RekindleError with everything that is missing or does not belong together, and changes nothing then.
    """
    with explained(out):
        if not (out / PARTS).is_dir():
            if (out / CONFIG).exists():
                raise RekindleError(f"{out} is whole: there is nothing to join.")
            hint = "a verb with --part 1/2 writes one"
            raise RekindleError(f"{out} has no parts: there is nothing to join.", hint=hint)
    with alone(lock_of(Path(os.path.abspath(out))), f"writing {out}"), explained(out):
        check_not_trained(Path(os.path.abspath(out)))
        if (out / CONFIG).exists():  # an earlier attempt was cut short while it cleared up
            shutil.rmtree(out / PARTS)
            return {}
        records = read_records(out)
        problems = [*_strangers(records), *_missing(out, records), *_damaged(out, records)]
        if problems:
            raise together(problems)
        written = {file: entry for record in records for file, entry in record.written.items()}
        written = {file: written[file] for file in records[0].owners}
        found, measured = _measured(out, records), [record for record in records if record.measured]
        found_in = was_found_in(out / PARTS / measured[0].part.stem) if measured else {}
        write_found(rest_of(out), found, found_in)
        _complete_manifest(out, written)
        for path in sorted(_files(rest_of(out)), key=lambda path: path == rest_of(out) / CONFIG):
            _move(path, out / path.relative_to(rest_of(out)))
        _sync_folders(out)
        shutil.rmtree(out / PARTS)
    return written


def _strangers(records: Sequence[Record]) -> list[RekindleError]:
    """Parts of another result than most are of."""
    if not records:
        return []
    kinds = Counter((record.part.of, record.identity) for record in records)
    most = kinds.most_common(1)[0][0]
    model = next(record for record in records if (record.part.of, record.identity) == most)
    problems = clashes([r for r in records if (r.part.of, r.identity) != most], model.part, model.identity, {})
    for i, record in enumerate(() if problems else records):
        problems += clashes(records[:i], record.part, record.identity, record.measured)
    return problems


def _missing(out: Path, records: Sequence[Record]) -> Iterator[RekindleError]:
    if not records:
        yield RekindleError(f"No part of {out} is finished.", hint="the command that makes it, with --part 1/2")
        return
    of = records[0].part.of
    if missing := missing_parts(records):
        hint = f"the same command with --part {missing[0]}/{of}, or copy here what another machine wrote"
        yield RekindleError(f"{out} lacks part {', '.join(map(str, missing))} of {of}.", hint=hint)
    if not any((folder / CONFIG).exists() for folder in (out, rest_of(out))):
        hint = "copy them from where a part was written, or write a part again with --overwrite"
        yield RekindleError("The files that belong beside the shards are missing.", where=rest_of(out), hint=hint)


def _damaged(out: Path, records: Sequence[Record]) -> list[RekindleError]:
    """Shards that are not what their part's record says."""
    problems = []
    for record in records:
        for file, written in record.written.items():
            size = (out / file).stat().st_size if (out / file).is_file() else None
            if size != written.bytes:
                found = "is not there" if size is None else f"has {size} bytes"
                what = f"{file}, of {written.bytes} bytes, {found}."
                hint = f"copy it again, or write part {record.part} again with --overwrite"
                problems.append(RekindleError(what, where=out / file, hint=hint))
    return problems


def _measured(out: Path, records: Sequence[Record]) -> Found:
    """All that these parts have measured."""
    found: Found = {}
    for record in records:
        if record.measured:
            found |= read_found(out / PARTS / record.part.stem)
    return found


def _complete_manifest(out: Path, written: dict[str, Written]) -> None:
    """No part knows the others' shards; those of the weights are listed."""
    if manifest := read_manifest(rest_of(out)):
        shards = {file: entry.entry for file, entry in written.items() if "/" not in file}
        replace(manifest, shards=shards).write(out / PARTS)
        _move(out / PARTS / NAME, rest_of(out) / NAME)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _move(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    os.replace(path, to)


def _sync_folders(out: Path) -> None:
    for path in (out, *out.rglob("*")):
        if path.is_dir():
            sync(path)
