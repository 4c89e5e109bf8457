"""Functions that say which options they take: signature and help out of a Config, as the command line's are."""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import MISSING, fields
from inspect import Parameter, Signature, signature
from textwrap import wrap
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def takes(config: type) -> Callable[[F], F]:
    """Give a function with `**given` the signature and the help of the Config that those are for."""

    def describe(function: F) -> F:
        own = [p for p in signature(function).parameters.values() if p.kind is not Parameter.VAR_KEYWORD]
        taken = {parameter.name for parameter in own}
        given = [parameter for parameter in _parameters(config) if parameter.name not in taken]
        returns = signature(function).return_annotation
        vars(function)["__signature__"] = Signature([*own, *given], return_annotation=returns)
        function.__doc__ = f"{(function.__doc__ or '').rstrip()}\n\n{_help(config)}\n"
        return function

    return describe


def _parameters(config: type) -> list[Parameter]:
    types_ = typing.get_type_hints(config)
    return [
        Parameter(
            f.name,
            Parameter.KEYWORD_ONLY,
            default=Parameter.empty if f.default is MISSING else f.default,
            annotation=types_[f.name],
        )
        for f in fields(config)
    ]


def _help(config: type) -> str:
    """Each option on lines of its own, required ones said to be so."""
    lines = ["Options:"]
    for f in fields(config):
        default = " [required]" if f.default is MISSING else f" [{f.default!r}]" if f.default is not None else ""
        lines += wrap(f"{f.name}: {f.metadata['help']}{default}", 100, initial_indent="    ", subsequent_indent=" " * 8)
    return "\n".join(lines)
