"""`rekindle.json`: what a folder is, where it came from, and the checksums of its bytes.

Its `lineage` is a graph, written as a list of records, oldest first: one for each verb that had a part in these
weights. A record goes on from the one before it where nothing else is said, so that a checkpoint of one source has a
plain list; what was made of several names them, and where in the list each one's own records end. See `store.lineage`.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePath
from typing import Any

from rekindle.errors import RekindleError

NAME = "rekindle.json"
PREVIOUS = -1  # the record before, wherever that is


@dataclass(frozen=True, kw_only=True)
class Source:
    """One of several checkpoints that a step was made of."""

    source: str  # as given
    fingerprint: str | None = None  # see store.folder
    after: int | None = None  # the place in the lineage of the last record of its own; None: it has none


@dataclass(frozen=True, kw_only=True)
class Record:
    """One step of a checkpoint's life."""

    verb: str  # "upcycle", "train", "init", ...
    command: str  # what to type to do it again
    options: dict[str, dict[str, Any]]  # {name: {"value", "origin"}}, see config.Resolved.options
    source: str | None = None  # the SRC it started from, as given
    source_fingerprint: str | None = None  # see store.folder: headers, config and sizes of the source
    summary: str = ""  # one sentence for the report: "64 experts from 1 feed-forward, top-2"
    tokens: int = 0  # trained in this step
    flops: float = 0.0  # training FLOPs of this step, attention included
    sources: dict[str, Source] = field(default_factory=dict)  # of a step that has several, in place of `source`
    after: int | None = PREVIOUS  # the place of the record it goes on from; None: it begins with what has no record

    def to_dict(self) -> dict[str, Any]:
        """As it is written: what a step of one source, behind the record before it, need not say is left out."""
        data = asdict(self)
        if not self.sources:
            del data["sources"]
        if self.after == PREVIOUS:
            del data["after"]
        return data


@dataclass(frozen=True, kw_only=True)
class Manifest:
    version: str
    lineage: list[Record] = field(default_factory=list)
    parameters: dict[str, int] = field(default_factory=dict)  # {"total", "active"}
    promise: dict[str, str] | None = None  # {"kind": "exact" | "lossy" | ..., "text": ...}
    made_of: dict[str, str] = field(default_factory=dict)  # of a joined one: which tensors -> of which of its sources
    measured: dict[str, dict[str, float]] = field(default_factory=dict)  # row -> column -> what making it has found
    shards: dict[str, dict[str, Any]] = field(default_factory=dict)  # {file: {"bytes", "sha256" if hashed}}

    def text(self) -> str:
        """What rekindle.json holds."""
        data = asdict(self) | {"lineage": [record.to_dict() for record in self.lineage]}
        if not self.made_of:
            del data["made_of"]
        return json.dumps(data, indent=2) + "\n"

    def write(self, folder: Path) -> None:
        (folder / NAME).write_text(self.text(), encoding="utf-8")


def read_manifest(folder: Path) -> Manifest | None:
    """The folder's manifest, or None where it has none (a checkpoint that Rekindle did not make)."""
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        data["lineage"] = _lineage(data.get("lineage", []))
        manifest = _checked(Manifest(**data))
        for file, entry in manifest.shards.items():
            if (
                PurePath(file).name != file
                or not isinstance(entry, dict)
                or not isinstance(entry.get("sha256", ""), str)
            ):
                raise TypeError(f"its entry of the shard {file!r} is none")
        if not all(type(count) is int for count in manifest.parameters.values()):
            raise TypeError("its parameters are no whole numbers")
        for key in ("kind", "text"):
            if manifest.promise and not isinstance(manifest.promise.get(key), str):
                raise TypeError("its promise has no kind and text")
        return manifest
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RekindleError(
            f"This manifest cannot be read: {error}.", where=path, hint=f"delete it: {NAME} holds no weights"
        ) from None


def _lineage(data: Iterable[Any]) -> list[Record]:
    """The records, each behind those that it goes on from; raises TypeError, or what Python raises of odd data."""
    found = []
    for place, given in enumerate(data):
        values = dict(given)
        sources = values.get("sources", {})
        if not isinstance(sources, dict):
            raise TypeError(f"sources is {type(sources).__name__}")
        values["sources"] = {key: _checked(Source(**source)) for key, source in sources.items()}
        record = _checked(Record(**values))
        if sources and ("after" in given or record.source is not None or record.source_fingerprint is not None):
            raise TypeError(f"its record {place} has a source beside its sources")
        stated = [given["after"]] if "after" in given else [source.after for source in record.sources.values()]
        for after in stated:
            if after is not None and not 0 <= after < place:
                raise TypeError(f"its record {place} goes on from record {after}, which is none before it")
        found.append(record)
    return found


def _checked(record: Any) -> Any:
    """A Record, Source or Manifest whose fields are of their types; raises TypeError."""
    for f in fields(record):
        value, plain = getattr(record, f.name), typing.get_type_hints(type(record))[f.name]
        if not isinstance(value, _types(plain)) or isinstance(value, bool):
            raise TypeError(f"{f.name} is {type(value).__name__}")
        if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
            raise TypeError(f"{f.name} has keys that are no texts")
    return record


def _types(hint: Any) -> tuple[type, ...]:
    """ "dict[str, int] | None" -> (dict, NoneType); an int where a float may be."""
    if isinstance(hint, types.UnionType):
        return tuple(kind for part in typing.get_args(hint) for kind in _types(part))
    kind = typing.get_origin(hint) or hint
    return (int, float) if kind is float else (kind,)
