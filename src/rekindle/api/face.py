"""The verbs as Python meets them: arguments checked by name and kind, and hints that name arguments, not flags."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import wraps
from inspect import Parameter, signature
from typing import Any, TypeVar, cast

from rekindle.config import Count, parse
from rekindle.errors import RekindleError, nearest

F = TypeVar("F", bound=Callable[..., Any])

_NO_VALUE = ("with without for and or of in at as to goes is are replaces makes says by one first them beside alone "
             "where").replace(" ", "|")  # fmt: skip
_FLAG = re.compile(
    rf"--(no-)?([a-z][a-z0-9-]*)(?: (-?[\d.][\w.]*|[A-Z_]+\b|(?!(?:{_NO_VALUE})\b)[a-z][\w-]*))?"
)  # and its value
_SWITCHES = ("overwrite", "resume", "dry_run", "checksum", "fused", "blockwise", "mask_prompt", "compile")


def in_python(function: F) -> F:
    """The function, raising RekindleError for arguments that it does not take, and hints as one types them here."""
    known = signature(function).parameters
    any_name = any(p.kind is Parameter.VAR_KEYWORD for p in known.values())

    @wraps(function)
    def call(*values: Any, **named: Any) -> Any:
        for name in named:
            if name not in known and not any_name:
                hint = nearest(name, known) or "one of " + ", ".join(known)
                raise RekindleError(f"There is no option {name!r}.", where=f"{function.__name__}()", hint=hint)
        given = {name: _taken(known[name], value) if name in known else value for name, value in named.items()}
        first = [p for p in known.values() if p.kind is Parameter.POSITIONAL_OR_KEYWORD]
        values = tuple(_taken(p, value) for p, value in zip(first, values)) + values[len(first) :]
        try:
            signature(function).bind_partial(*values, **given)
        except TypeError as error:
            raise RekindleError(f"{function.__name__}: {error}.") from None
        lacking = [p.name for p in first[len(values) :] if p.default is Parameter.empty and p.name not in given]
        if lacking:
            hint = f"{function.__name__}({', '.join(p.name for p in first)}, ...)"
            raise RekindleError(f"{function.__name__} is given no {' and no '.join(lacking)}.", hint=hint)
        try:
            return function(*values, **given)
        except RekindleError as error:
            for name in ("what", "where", "why", "hint"):
                text = getattr(error, name)
                if isinstance(text, str) and (name != "where" or text.startswith("--")):  # else it is a file's name
                    setattr(error, name, spelled(text))
            error.args = (str(error),)
            raise

    return cast(F, call)


def _taken(parameter: Parameter, value: Any) -> Any:
    """A value as its parameter's kind, where that is a plain one; counts may be written 50M. Raises RekindleError."""
    kinds = set(parameter.annotation.split(" | ") if isinstance(parameter.annotation, str) else ("of a Config",))
    if not kinds <= {"int", "bool", "str", "Path", "None", "Sequence[str", "Path]"}:
        return value
    if value is None and "None" in kinds:
        return value
    try:
        if "int" in kinds or "bool" in kinds:
            return parse(value, Count if "int" in kinds else bool)
        paths = value if "Sequence[str" in kinds and isinstance(value, (list, tuple)) else [value]
        if not all(isinstance(path, (str, os.PathLike) if "Path" in kinds else str) for path in paths):
            raise ValueError("it must be a path" if "Path" in kinds else "it must be text")
    except ValueError as error:
        raise RekindleError(f"{parameter.name} is {value!r}, but {error}.") from None
    return paths if kinds == {"Sequence[str", "Path]"} else value  # one run is a list of one


def spelled(text: str) -> str:
    """`--top-k 2` as top_k=2 and `--overwrite` as overwrite=True; what follows `rekindle` is a command and stays."""
    parts = re.split(r"(; |, or |: |\n)", text)
    return "".join(part if "rekindle " in part else _FLAG.sub(_argument, part) for part in parts)


def _argument(flag: re.Match[str]) -> str:
    name, value = flag[2].replace("-", "_"), flag[3]
    rest = f" {value}" if value else ""
    if flag[1]:
        return f"{name}=False{rest}"
    if name in _SWITCHES:
        return f"{name}=True{rest}"
    if value is None or value[0].isupper():
        return f"{name}={value or ''}"
    return f"{name}={value if re.fullmatch(r'-?[0-9.]+(e-?[0-9]+)?', value) else repr(value)}"
