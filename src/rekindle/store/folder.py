"""A Hugging Face folder: config.json, weights in one file or in shards, and the files that travel along."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from rekindle.errors import RekindleError, nearest
from rekindle.store.header import Stored, read_header, unreadable
from rekindle.store.legacy import Held, read_pickles

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PARTS = "parts"  # in a folder whose parts are not joined yet

# Tokenizer, generation config, chat template, licence: what a model folder needs besides its weights.
PASSENGER_SUFFIXES = {".json", ".txt", ".model", ".jinja", ".tiktoken"}
PASSENGER_NAMES = {"LICENSE", "NOTICE", "LICENSE.md", "USE_POLICY.md"}
STAY_BEHIND = {"config.json", "rekindle.json", "verify.json", "trainer_state.json", "all_results.json"}


@dataclass(frozen=True)
class Folder:
    """A checkpoint folder, opened: headers read, no tensor touched."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, Stored | Held]
    fingerprint: str  # of config and headers: names the checkpoint's layout, not the values in it
    notice: str | None = None  # something the user should know
    bare: bool = False  # only a config: enough to plan, and nothing to read

    @property
    def shards(self) -> list[Path]:
        return [] if self.bare else sorted({Path(t.path) for t in self.tensors.values()})

    def need_weights(self) -> None:
        """Raise RekindleError where there is only a config."""
        if self.bare:
            what = f"{self.path} is only a config.json: there are no weights to read."
            raise RekindleError(what, hint="--dry-run says what it would cost; or the folder with the weights")

    def passengers(self) -> list[Path]:
        """Files that travel unchanged into what is made from this folder."""
        return [
            path
            for path in sorted(self.path.iterdir())
            if path.is_file()
            and (path.suffix in PASSENGER_SUFFIXES or path.name in PASSENGER_NAMES)
            and path.name not in STAY_BEHIND
            and not path.name.endswith(".index.json")
        ]


def open_folder(path: str | Path, *, bare: bool = False) -> Folder:
    """Read a folder's config and headers. Raises RekindleError where it is no checkpoint, or a broken one.

    `bare`: a config alone will do, in a folder or as a JSON file of any name.
    """
    path = Path(path)
    try:
        if bare and path.suffix == ".json" and path.is_file():
            return _only_config(path, path)
        if not path.is_dir():
            what = "is a file, not a checkpoint folder" if path.exists() else "does not exist"
            raise RekindleError(f"{path} {what}.", hint=_similar_folder(path))
    except OSError as error:
        raise RekindleError(f"The folder cannot be read: {error.strerror}.", where=path) from None
    if (path / PARTS).is_dir() and not (path / "config.json").exists():
        raise RekindleError(f"{path} is unfinished: its parts are not joined.", hint=f"rekindle join {path}")
    config = read_json(path / "config.json", missing=f"{path} is not a checkpoint: it has no config.json.")
    notice = None
    tensors: dict[str, Stored | Held] = {}
    if (path / INDEX).exists():
        tensors |= _read_shards(path, path / INDEX)
    elif (path / SINGLE).exists():
        tensors |= read_header(path / SINGLE)[0]
    elif list(path.glob("pytorch_model*.bin")):
        tensors |= read_pickles(path)
        notice = (
            "these weights are pickles, read through torch's weights-only loader; "
            f"`rekindle rewrite {path} OUT` converts them to safetensors"
        )
    elif bare:
        return _only_config(path, path / "config.json")
    else:
        raise RekindleError(f"{path} has no weights.", where=f"{SINGLE}, {INDEX} or pytorch_model.bin in {path}")
    return Folder(path, config, tensors, _fingerprint(config, tensors), notice)


def _only_config(path: Path, file: Path) -> Folder:
    config = read_json(file, missing=f"{path} is not a checkpoint: it has no config.json.")
    notice = "this is only a config.json: a plan can be priced, and nothing can be written"
    return Folder(path, config, {}, _fingerprint(config, {}), notice, bare=True)


def _fingerprint(config: dict[str, Any], tensors: dict[str, Stored | Held]) -> str:
    layout = "".join(f"{name} {t.dtype} {t.shape};" for name, t in tensors.items())
    return hashlib.sha256(f"{json.dumps(config, sort_keys=True)}{layout}".encode()).hexdigest()[:16]


def read_json(path: Path, missing: str) -> dict[str, Any]:
    """A JSON object from a file; errors name the file and the line."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RekindleError(missing, where=path) from None
    except OSError as error:
        raise unreadable(path, error) from None
    except (ValueError, RecursionError) as error:
        raise RekindleError(f"This file is not JSON: {error}.", where=path) from None
    if not isinstance(data, dict):
        raise RekindleError("This file must hold a JSON object.", where=path)
    return data


def shard_names(index_path: Path) -> dict[str, str]:
    """The weight_map of an index: tensor name to file name, each a plain name inside the folder."""
    index = read_json(index_path, missing="There is no index.")
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise RekindleError("The index has no weight_map.", where=index_path)
    for name, file in weight_map.items():
        plain = isinstance(file, str) and file not in ("", ".", "..") and PurePath(file).name == file
        if not plain or "\\" in file:
            raise RekindleError(
                f"The index places {name} in {file!r}, which is not a file name inside the folder.",
                where=index_path,
            )
    return weight_map


def _read_shards(path: Path, index_path: Path) -> dict[str, Stored]:
    weight_map = shard_names(index_path)
    headers: dict[str, dict[str, Stored]] = {}
    for file in sorted(set(weight_map.values())):
        if not os.path.exists(path / file):
            raise RekindleError(
                f"The shard {file} is missing.", where=path / file, hint="download or copy the folder again"
            )
        headers[file] = read_header(path / file)[0]
    tensors: dict[str, Stored] = {}
    for name, file in weight_map.items():
        if name not in headers[file]:
            raise RekindleError(f"The index places {name} in {file}, which does not hold it.", where=index_path)
        tensors[name] = headers[file][name]
    unlisted = [(name, file) for file, header in headers.items() for name in header if name not in tensors]
    if unlisted:
        name, file = unlisted[0]
        raise RekindleError(
            f"{file} holds {len(unlisted)} tensor(s) that the index does not list, such as {name}.",
            where=index_path,
        )
    doubled = [n for file, header in headers.items() for n in header if weight_map.get(n, file) != file]
    if doubled:
        raise RekindleError(f"{doubled[0]} is in two shards.", where=index_path)
    return tensors


def _similar_folder(path: Path) -> str | None:
    parent = path.parent
    siblings = [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
    close = nearest(path.name, siblings)
    return str(parent / close) if close else None
