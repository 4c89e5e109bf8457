"""What reading a config needs to know of a family; and a spelling: settings that are not one config key each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from rekindle.anatomy.settings import Settings

Config = Mapping[str, Any]


class Reading(Protocol):
    """A family, as far as its config is read by it."""

    @property
    def model_type(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def classes(self) -> Mapping[str, str]: ...
    @property
    def keys(self) -> Mapping[str, str]: ...
    @property
    def defaults(self) -> Mapping[str, Any]: ...
    @property
    def only(self) -> Mapping[str, Any] | None: ...
    @property
    def rope_theta(self) -> float: ...
    @property
    def whole_heads(self) -> bool: ...

    def value(self, config: Config, key: str) -> Any: ...


class Spelling(NamedTuple):
    settings: tuple[str, ...]  # the settings it is about
    read: Callable[[Config, Reading, Mapping[str, Any]], dict[str, Any]]  # config, family, settings read so far
    write: Callable[[Settings, dict[str, Any]], str | None]  # into a config; returns why it cannot be spelt, or None
