"""What has been decided to do to checkpoints on disk, and has not been done yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rekindle.config import Resolved, to_dict
from rekindle.edit import Checkpoint, joint


@dataclass(frozen=True)
class Step:
    """One method applied, with its options: to which models, by name, and the name of what comes out."""

    verb: str
    options: Resolved[Any]
    of: tuple[str, ...] = ("",)  # a source's key, or what a step before it has made
    made: str = ""
    tower: str | None = None  # of a model of several

    def keyed(self, key: str) -> Step:
        """The same step where its model is one of several."""
        return replace(self, of=tuple(joint(key, name) for name in self.of), made=joint(key, self.made))

    def written(self) -> dict[str, Any]:
        """As a recipe has it; what is made of the only model there is, or goes on under its name, need not be named."""
        named = {} if self.of == ("",) else {"of": self.of[0] if len(self.of) == 1 else list(self.of)}
        named |= {"as": self.made} if self.made and self.of != (self.made,) else {}
        named |= {"tower": self.tower} if self.tower else {}
        return {self.verb: to_dict(self.options.config)} | named


@dataclass(frozen=True, repr=False)
class Decided:
    """Checkpoints on disk, the steps that were taken from them, and the checkpoint that these make."""

    source: str  # as given; of several the first
    checkpoint: Checkpoint
    steps: tuple[Step, ...] = field(default=())
    sources: Mapping[str, str] = field(default_factory=dict)  # of several: key -> as given

    @property
    def given(self) -> Mapping[str, str]:
        """Every source as given, by its key in the checkpoint."""
        return self.sources or {"": self.source}

    @property
    def as_parent(self) -> Checkpoint:
        """The checkpoint as a further step finds it."""
        return self.checkpoint.as_saved() if self.steps else self.checkpoint
