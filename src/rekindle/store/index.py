"""JSON objects out of files, and the index that says in which shard a tensor lies."""

from __future__ import annotations

import json
from pathlib import Path, PurePath
from typing import Any

from rekindle.errors import RekindleError
from rekindle.store.reading import opened, refuse_pointer, unreadable

LARGEST = 1 << 28  # bytes of a JSON file; the index of a million tensors has half of that


def read_json(path: Path, missing: str) -> dict[str, Any]:
    """A JSON object from a file; errors name the file and the line."""
    text = b""
    try:
        with opened(path) as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise RekindleError(f"This file is over {LARGEST // 10**6} MB: too large to be JSON.", where=path)
        data = json.loads(text.decode("utf-8"))
    except FileNotFoundError:
        raise RekindleError(missing, where=path) from None
    except OSError as error:
        raise unreadable(path, error) from None
    except (ValueError, RecursionError) as error:
        refuse_pointer(path, text)
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
        if not is_plain(file):
            raise RekindleError(
                f"The index places {name} in {file!r}, which is not a file name inside the folder.",
                where=index_path,
            )
    return weight_map


def is_plain(file: object) -> bool:
    """Whether this is the name of a file in the folder itself."""
    return isinstance(file, str) and file not in ("", ".", "..") and PurePath(file).name == file and "\\" not in file
