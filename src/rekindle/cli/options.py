"""A Config dataclass becomes flags; flags over --config FILE over defaults."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import click

from rekindle.config import Count, Resolved, Size, Table, only_in_files, option_name, read_yaml, resolve
from rekindle.store.publish import check_spares

F = TypeVar("F", bound=Callable[..., Any])


def options_of(*configs: type) -> Callable[[F], F]:
    """Add a flag for each field of these Configs; the values are looked up with `resolved`."""

    def decorate(function: F) -> F:
        for cls in reversed(configs):
            hints = typing.get_type_hints(cls)
            for f in reversed(fields(cls)):  # type: ignore[arg-type]
                if not only_in_files(hints[f.name]):
                    function = _flag(f, hints[f.name])(function)
        return function

    return decorate


def resolved(cls: type, given: dict[str, Any], file: str | None = None, *written: str | None) -> Resolved[Any]:
    """The Config out of the flags that were given and a YAML file's values; that file must not be what is `written`."""
    for out in written:
        if out is not None:
            check_spares(Path(out), None, file)
    names = {f.name for f in fields(cls)}
    flags = {name: value for name, value in given.items() if name in names and value is not None}
    return resolve(cls, flags, read_yaml(file) if file else None)


def _flag(f: Any, kind: Any) -> Callable[[F], F]:
    name, text = option_name(f).replace("_", "-"), f.metadata["help"]
    if f.default is not MISSING and f.default is not None and kind is not bool:
        text += f"  [{_short(f.default, kind)}]"
    if f.default is MISSING:
        text += "  [required]"
    # None: not given, so that a file's value or the default holds
    if bool in (kind, *get_args(kind)):
        if f.default is False:
            return click.option(f"--{name}", f.name, default=None, is_flag=True, flag_value=True, help=text)
        return click.option(f"--{name}/--no-{name}", f.name, default=None, is_flag=True, type=bool, help=text)
    if Table in (kind, *get_args(kind)):
        once = {"multiple": True, "callback": lambda context, parameter, value: value or None}
        return click.option(f"--{name}", f.name, type=str, metavar=_metavar(kind), help=text, **once)
    return click.option(f"--{name}", f.name, default=None, type=str, metavar=_metavar(kind), help=text)


def _metavar(kind: Any) -> str:
    if get_origin(kind) in (Union, types.UnionType):
        return _metavar(next(a for a in get_args(kind) if a is not type(None)))
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return _metavar(get_args(kind)[0]) + ",..."
    return {int: "N", float: "X", str: "TEXT", Count: "COUNT", Size: "SIZE", Table: "KEY=VALUE"}[kind]


def _short(value: Any, kind: Any) -> str:
    if kind in (Count, Size) and value >= 1000:
        for unit, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
            if value % unit == 0:
                return f"{value // unit}{'GB' if kind is Size and letter == 'B' else letter}"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
