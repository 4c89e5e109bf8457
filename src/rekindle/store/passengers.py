"""What travels with the weights: tokenizer, processors, templates, licence, and whatever these files name.

A name in a JSON file that is the name of a file here, the code of an `auto_map`, the modules of sentence-transformers:
all of it comes along, so that nothing in the result refers to what is not there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from rekindle.errors import RekindleError
from rekindle.store.links import check_links
from rekindle.store.reading import opened, unreadable
from rekindle.store.weights import SUFFIXES as WEIGHTS

SUFFIXES = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".spm", ".bpe", ".vocab", ".codes"}
NAMES = {"LICENSE", "NOTICE", "LICENSE.md", "USE_POLICY.md"}
STAY_BEHIND = {"config.json", "rekindle.json", "verify.json", "trainer_state.json", "all_results.json",
               "train_results.json", "eval_results.json", "adapter_config.json"}  # fmt: skip
MODULES = "modules.json"  # of sentence-transformers: folders, each a module behind the model
TEMPLATES = "additional_chat_templates"
READ = 1 << 20  # bytes of a JSON file that is looked through for names; a vocabulary is larger, and names none


def travels(name: str) -> bool:
    """Whether a file of this name, at the top of a folder, comes along for its name alone."""
    path = PurePosixPath(name)
    return (path.suffix in SUFFIXES or name in NAMES) and name not in STAY_BEHIND and not name.endswith(".index.json")


def passengers(folder: Path, config: Mapping[str, Any]) -> list[Path]:
    """Files that travel unchanged into what is made from this folder, some of them in folders of their own.

    `config`: what the result's config will say of files; config.json itself does not travel.
    """
    there = {path.name: path for path in folder.iterdir() if path.is_file()}
    found = {name for name in there if travels(name)}
    named = set(_names(config))
    for name in sorted(found):
        if name.endswith(".json") and there[name].stat().st_size <= READ:
            named |= set(_names(_parsed(there[name])))
    own = {name for name in there if name not in STAY_BEHIND and not name.endswith(WEIGHTS)}
    found |= own & named
    if any(f"{word}.py" in there for word in named):  # modules import one another: all of them or none
        found |= {name for name in there if name.endswith(".py")}
    below = [folder / TEMPLATES, *_modules(folder)]
    travelling = [there[name] for name in sorted(found)] + [p for path in below for p in _files(path)]
    check_links(folder, travelling)
    return travelling


def modules(parsed: object) -> Iterator[str]:
    """The folders that a modules.json names, other than the model's own."""
    for module in parsed if isinstance(parsed, list) else ():
        path = module.get("path") if isinstance(module, dict) else None
        if isinstance(path, str) and path and path not in (".", "./"):
            yield path


def carry(folder: Path, config: Mapping[str, Any], out: Path) -> None:
    """Copy them; raises RekindleError where one cannot be read."""
    for path in passengers(folder, config):
        to = out / path.relative_to(folder)
        try:
            source = opened(path)
        except OSError as error:
            raise unreadable(path, error) from None
        to.parent.mkdir(parents=True, exist_ok=True)
        with source, to.open("wb") as target:
            shutil.copyfileobj(source, target)


def _modules(folder: Path) -> list[Path]:
    parsed = _parsed(folder / MODULES) if (folder / MODULES).is_file() else None
    found = []
    for name in modules(parsed):
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise RekindleError(f"{MODULES} names {name!r}, which leads out of the folder.", where=folder / MODULES)
        found.append(folder / name)
    return found  # one that needs no files may be missing: git keeps no empty folders


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []


def _parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _names(value: Any, key: str = "") -> Iterator[str]:
    """Every text in a JSON value; of an `auto_map` the module that holds the class."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _names(inner, "auto_map" if "auto_map" in (key, name) else name)
    elif isinstance(value, list):
        for inner in value:
            yield from _names(inner, key)
    elif isinstance(value, str):
        yield value.partition(".")[0] if key == "auto_map" and "--" not in value else value
