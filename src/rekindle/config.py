"""Strict dataclasses <-> YAML and flags, remembering where each value came from.

A `Config` is a frozen dataclass whose fields are made with `option`; the class is the documentation: the command
line takes its flags and help from it, YAML its keys. Flags win over YAML, YAML over defaults.
"""

from __future__ import annotations

import os
import re
import stat
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Generic, Literal, NewType, TypeVar, Union, get_args, get_origin

from rekindle.errors import RekindleError, nearest, together

Count = NewType("Count", int)  # a number of things, written 50M or 5e7
Size = NewType("Size", int)  # a number of bytes, written 5GB or 500MB (powers of ten) or 4GiB

Table = NewType("Table", dict[str, Any])  # keys and plain values; on the command line KEY=VALUE, as often as wanted

C = TypeVar("C")

_LONGEST = 1 << 22  # bytes of a file of options or a recipe
_MOST = 100_000  # values in it
_LONGEST_PLACE = 1000  # characters that say where
_COUNT_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_SIZE_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def option(default: Any = MISSING, *, help: str, never: Mapping[str, str] | None = None) -> Any:
    """A field of a Config: its default (none: required) and one line of help with the unit.

    `never`: values that might be expected, each with the reason why it cannot be.
    """
    return field(default=default, metadata={"help": help, "never": never or {}})


@dataclass(frozen=True)
class Resolved(Generic[C]):
    """A Config and, for each field, where its value came from: default, file or flag."""

    config: C
    origins: dict[str, str]

    def options(self) -> dict[str, dict[str, Any]]:
        """{name: {"value": ..., "origin": ...}}, as echoed at the start and kept in rekindle.json."""
        values = to_dict(self.config)
        return {name: {"value": values[name], "origin": self.origins[name]} for name in values}


def resolve(cls: type[C], flags: Mapping[str, Any], file: Mapping[str, Any] | None = None) -> Resolved[C]:
    """Build a Config from flags over a file's values over defaults; raises RekindleError with every problem."""
    known = {option_name(f): f for f in fields(cls)}  # type: ignore[arg-type]
    types_ = typing.get_type_hints(cls)
    problems: list[RekindleError] = []
    values: dict[str, Any] = {}
    origins = dict.fromkeys(known, "default")
    for origin, given in (("file", file or {}), ("flag", flags)):
        for name, value in given.items():
            name = name.rstrip("_")
            if name not in known:
                problems.append(unknown_key(name, known))
                continue
            try:
                own = known[name].name
                values[own] = parse(value, types_[own])
                origins[name] = origin
            except ValueError as error:
                why = known[name].metadata.get("never", {}).get(str(value))
                what = f"{name} is {_shown(value)}, but {error}."
                problems.append(RekindleError(what, where=f"option {name}", why=why))
    for name, f in known.items():
        given = f.name in values or name in flags or name in (file or {})
        if not given and _default(f) is MISSING:
            typed = f"{name}: ..." if file is not None and not flags else f"--{name.replace('_', '-')} ..."
            problems.append(RekindleError(f"{name} is not given.", hint=typed))
    if problems:
        raise together(problems)
    return Resolved(cls(**values), origins)


def option_name(f: Field) -> str:
    """What a field is called where Python's grammar does not matter: `lambda_` is lambda."""
    return f.name.rstrip("_")


def only_in_files(kind: Any) -> bool:
    """Whether a field of this kind has no flag: keys whose values have a kind of their own."""
    return any(get_origin(part) is dict for part in (kind, *get_args(kind)))


def _shown(value: Any) -> str:
    """A value as it was given, cut short."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def unknown_key(name: str, known: Mapping[str, Any]) -> RekindleError:
    close = nearest(name, known)
    hint = f"{close}" if close else "one of " + ", ".join(known)
    return RekindleError(f"There is no option {name!r}.", hint=hint)


def parse(value: Any, kind: Any) -> Any:
    """`value` (a YAML value or a flag's text) as `kind`; raises ValueError with the rest of a sentence."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None or (value == "none" and str not in args):
            return None
        return parse(value, next(a for a in args if a is not type(None)))
    if origin is Literal:
        if value not in args:
            raise ValueError("it must be one of " + ", ".join(map(str, args)))
        return value
    if origin is tuple:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise ValueError("it must be a list")
        return tuple(parse(item, args[0]) for item in items)
    if kind is Table:
        return _table(value)
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError("it must be keys and values")
        return {str(name): parse(item, args[1]) for name, item in value.items()}
    if kind is Count:
        return _scaled(value, _COUNT_UNITS, "a whole number such as 1000, 50M or 5e7")
    if kind is Size:
        return _scaled(value, _SIZE_UNITS, "a size such as 500MB, 5GB or 4GiB", suffix="b?")
    return _plain(value, kind)


def _table(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        pairs = list(value.items())
    else:
        given = [value] if isinstance(value, str) else value
        if not isinstance(given, (list, tuple)) or not all(isinstance(item, str) and "=" in item for item in given):
            raise ValueError("it must be KEY=VALUE")
        pairs = [(key.strip(), _yaml_value(text)) for key, _, text in (item.partition("=") for item in given)]
    if not all(isinstance(key, str) and key for key, _ in pairs):
        raise ValueError("its keys must be texts")
    if len(table := dict(pairs)) < len(pairs):
        raise ValueError("a key stands there twice")
    try:
        _check_plain(table, "", iter(range(_MOST)))
    except RekindleError as error:
        raise ValueError(error.what) from None
    return table


def _yaml_value(text: str) -> Any:
    import yaml

    try:
        return yaml.load(text, _loader())
    except (yaml.YAMLError, RecursionError, ValueError):
        raise ValueError(f"{text!r} is no YAML value") from None


def _plain(value: Any, kind: Any) -> Any:
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise ValueError("it must be true or false")
    if kind is int:
        return _scaled(value, {"": 1}, "a whole number")
    if kind is float:
        try:
            if isinstance(value, bool):
                raise TypeError
            return float(value)
        except (TypeError, ValueError):
            raise ValueError("it must be a number") from None
    if kind is str:
        if isinstance(value, (str, Path)) or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            return str(value)
        raise ValueError("it must be text")
    raise TypeError(f"a Config field has a type that options do not know: {kind}")


def _scaled(value: Any, units: Mapping[str, int], wanted: str, suffix: str = "") -> int:
    problem = ValueError(f"it must be {wanted}")
    if isinstance(value, bool):
        raise problem
    match = re.fullmatch(rf"([-+]?[\d_.]+(?:e[+-]?\d+)?)\s*([a-z]*?){suffix}", str(value).strip().lower())
    if not match or match[2] not in units:
        raise problem
    try:
        text = match[1].replace("_", "")
        number = (int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)) * units[match[2]]
        whole = int(number)
    except (ValueError, OverflowError):
        raise problem from None
    if number != whole:
        raise problem
    return whole


def to_dict(config: Any) -> dict[str, Any]:
    """A Config as plain YAML values (tuples become lists)."""
    values = asdict(config)
    return {option_name(f): _plain_value(values[f.name]) for f in fields(config)}


def _plain_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain_value(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML mapping of plain values; a missing file, broken YAML or anything else is an error that names the line."""
    import yaml

    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise RekindleError("This is no file: options are read from one.", where=path)
        with Path(path).open("rb") as file:
            text = file.read(_LONGEST + 1)
        if len(text) > _LONGEST:
            raise RekindleError(f"The file is over {_LONGEST // 2**20} MB: too long for options.", where=path)
        data = yaml.load(text.decode("utf-8"), _loader())
    except OSError as error:
        raise RekindleError(f"The file cannot be read: {error.strerror}.", where=path) from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{path}, line {mark.line + 1}" if mark else path
        raise RekindleError(f"This is not YAML: {getattr(error, 'problem', error)}.", where=line) from None
    if not isinstance(data, dict):
        raise RekindleError("The file must hold keys and values.", where=path)
    try:
        _check_plain(data, str(path), iter(range(_MOST)))
    except RecursionError:
        raise RekindleError("The file holds itself, or values too deep within values.", where=path) from None
    return data


def _check_plain(value: Any, where: str, left: Iterator[int]) -> None:
    """Keys are texts, values what JSON has; raises RekindleError for dates, bytes, sets and numbers as keys.

    `left` counts down: a few lines of YAML's aliases can stand for gigabytes, or for themselves.
    """
    if next(left, None) is None:
        what = f"The file stands for more than {_MOST} values: what *name repeats counts each time."
        raise RekindleError(what, where=where.partition(":")[0])
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise RekindleError(f"The key {key!r} is not a text.", where=where)
            _check_plain(inner, f"{where}: {key}"[:_LONGEST_PLACE], left)
    elif isinstance(value, list):
        for inner in value:
            _check_plain(inner, where, left)
    elif not isinstance(value, str | int | float | None):
        raise RekindleError(f"{value!r} is a {type(value).__name__}, not text or a number.", where=where)


@cache
def _loader() -> type:
    """PyYAML's safe loader, to which 1e-3 is a number as in YAML 1.2, and not text for want of a point."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    number = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    return Loader


def dump_yaml(data: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True, width=100)


def _default(f: Field) -> Any:
    return f.default if f.default is not MISSING else f.default_factory
