"""A spelling: settings that are not one config key each, how they are read and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from rekindle.anatomy.family import Family
    from rekindle.anatomy.settings import Settings

Config = Mapping[str, Any]


class Spelling(NamedTuple):
    settings: tuple[str, ...]  # the settings it is about
    read: Callable[[Config, Family, Mapping[str, Any]], dict[str, Any]]  # config, family, settings read so far
    write: Callable[[Settings, dict[str, Any]], str | None]  # into a config; returns why it cannot be spelt, or None
