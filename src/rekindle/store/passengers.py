"""What travels with the weights: tokenizer, processors, templates, licence, and whatever these files name.

A name in a JSON file that is the name of a file here, the code of an `auto_map`, the modules of sentence-transformers:
all of it comes along, so that nothing in the result refers to what is not there.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from rekindle.errors import RekindleError
from rekindle.store.links import check_links
from rekindle.store.reading import LARGEST_POINTER, opened, refuse_pointer, unreadable
from rekindle.store.weights import SUFFIXES as WEIGHTS

SUFFIXES = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".spm", ".bpe", ".vocab", ".codes"}
TERMS = re.compile(  # what says under which terms the model may be used, however it is spelt
    r"(.*[-_. ])?(licen[cs]es?|copying|copyright|notices?|patents|use_policy|terms(_of_use)?)([-_. ](?!.*py$).*)?", re.I
)
VERSIONED = re.compile(r"tokenizer\..*model\.v\d+\w*")  # of mistral's: tokenizer.model.v3
STAY_BEHIND = {"config.json", "rekindle.json", "verify.json", "trainer_state.json", "all_results.json",
               "train_results.json", "eval_results.json", "adapter_config.json", "combine.json",
               "average.json"}  # fmt: skip
OWN = {"README.md", "rekindle.yaml", "metrics.jsonl", "optimizer", "measurements", "original", "__pycache__"}
GENERATION = "generation_config.json"
MODULES = "modules.json"  # of sentence-transformers: folders, each a module behind the model
TEMPLATES, LICENSES = "additional_chat_templates", "LICENSES"
READ = 1 << 20  # bytes of a JSON file that is looked through for names; a vocabulary is larger, and names none


def travels(name: str) -> bool:
    """Whether a file of this name, at the top of a folder, comes along for its name alone."""
    known = PurePosixPath(name).suffix in SUFFIXES or TERMS.fullmatch(name) or VERSIONED.fullmatch(name)
    return bool(known) and name not in STAY_BEHIND and not name.endswith(".index.json")


def passengers(folder: Path, config: Mapping[str, Any]) -> list[Path]:
    """Files that travel unchanged into what is made from this folder, some of them in folders of their own.

    `config`: what the result's config will say of files; config.json itself does not travel.
    """
    there = {path.name: path for path in folder.iterdir() if path.is_file()}
    parsed = parsed_below(folder)
    below = {path for name in folders(parsed) for path in _files(_inside(folder, name))}
    below |= {folder / name for name in named(parsed, config) if _is_below(folder, name)}
    found = [*(there[name] for name in sorted(chosen(there, parsed, config))), *sorted(below)]
    check_links(folder, found)
    for path in found:
        if path.stat().st_size <= LARGEST_POINTER:
            refuse_pointer(path, _bytes(path))
    return found


def left_behind(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """What lies in a folder and does not travel, but for weights, hidden files, and a run's or our own."""
    there = {path.name: path.is_dir() for path in folder.iterdir()}
    said = (*WEIGHTS, ".index.json")
    others = {
        name
        for name, inside in there.items()
        if (inside or not travels(name)) and name not in STAY_BEHIND | OWN and not name.startswith((".", "checkpoint-"))
    }
    others = {name for name in others if not name.endswith(said)}
    if others:  # else no file need be looked into
        parsed = parsed_below(folder)
        kept = (*chosen(there, parsed, config), *folders(parsed))
        others -= {PurePosixPath(name).parts[0] for name in kept}
        others -= {PurePosixPath(name).parts[0] for name in named(parsed, config) if _is_below(folder, name)}
    return [f"{name}/" if there[name] else name for name in sorted(others)]


def chosen(names: Iterable[str], parsed: Mapping[str, Any], config: Mapping[str, Any]) -> set[str]:
    """The files at the top of a folder that travel; `parsed`: its JSON files that may name some."""
    own = {name for name in names if name not in STAY_BEHIND and not name.endswith(WEIGHTS)}
    words = named(parsed, config)
    found = {name for name in own if travels(name) or name in words}
    if any(f"{word}.py" in own for word in words):  # modules import one another: all of them or none
        found |= {name for name in own if name.endswith(".py")}
    return found


def named(parsed: Mapping[str, Any], config: Mapping[str, Any]) -> set[str]:
    """Every text in the config and in these JSON files: what is the name of a file among them, refers to it."""
    return {*_names(config), *(name for value in parsed.values() for name in _names(value))}


def folders(parsed: Mapping[str, Any]) -> list[str]:
    """The folders inside a folder that travel whole."""
    return [TEMPLATES, LICENSES, *modules(parsed.get(MODULES))]


def parsed_below(folder: Path) -> dict[str, Any]:
    """Name -> value of the JSON files of a folder that travel and are small enough to name other files."""
    return {
        path.name: _parsed(path)
        for path in folder.iterdir()
        if path.suffix == ".json" and travels(path.name) and path.is_file() and path.stat().st_size <= READ
    }


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


def have_say(folder: Path, said: Mapping[str, Any]) -> None:
    """Write these settings into the generation_config.json that came along, where one did and says otherwise."""
    there = _parsed(folder / GENERATION) if said and (folder / GENERATION).is_file() else None
    if isinstance(there, dict) and {**there, **said} != there:
        (folder / GENERATION).write_text(json.dumps({**there, **said}, indent=2) + "\n", encoding="utf-8")


def _bytes(path: Path) -> bytes:
    try:
        with opened(path) as file:
            return file.read(LARGEST_POINTER)
    except OSError as error:
        raise unreadable(path, error) from None


def _inside(folder: Path, name: str) -> Path:
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise RekindleError(f"{MODULES} names {name!r}, which leads out of the folder.", where=folder / MODULES)
    return folder / name  # a module that needs no files may lack its folder: git keeps no empty ones


def _is_below(folder: Path, name: str) -> bool:
    """Whether this text is the name of a file in a folder of the folder."""
    path = PurePosixPath(name)
    if not 1 < len(path.parts) < 8 or len(name) > 255 or path.is_absolute() or ".." in path.parts or "\0" in name:
        return False
    return not name.endswith(WEIGHTS) and (folder / name).is_file()


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
