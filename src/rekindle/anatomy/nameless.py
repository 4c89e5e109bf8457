"""A model of a class that no table knows: tensors by their names, and a config that nobody reads."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rekindle.anatomy.families import FAMILIES
from rekindle.anatomy.family import Family
from rekindle.anatomy.settings import Role, Settings
from rekindle.anatomy.tensor import Placed
from rekindle.errors import RekindleError

NOTHING = Settings(
    vocab_size=0, hidden_size=0, num_layers=0, num_heads=0, num_kv_heads=0, head_dim=0, intermediate_size=0,
    hidden_act="", norm_eps=0.0, tie_word_embeddings=False, max_position_embeddings=0, windows=(), rope_theta=0.0,
    rope_scaling=None, rotary_dim=0, qkv_bias=False, o_bias=False, mlp_bias=False, output="class",
)  # fmt: skip
NO_TABLE: dict[str, Any] = {
    "classes": {}, "top": (), "block": (), "dense": (), "sparse": (), "keys": {}, "fixed": {}, "defaults": {},
    "prefix": "", "rope": "none", "opaque": ("",),
}  # fmt: skip


@dataclass(frozen=True)
class Nameless(Family):
    unknown: RekindleError | None = None  # why no table says more of it

    def refusing(self, verb: str, needs: str = "what each tensor is") -> RekindleError:
        """Why a verb that must know more than names cannot have it."""
        unknown, why = self.unknown, f"{verb} must know {needs}"
        what, where = (unknown.what, unknown.where) if unknown else ("This architecture is not known.", None)
        return RekindleError(what, where=where, why=why, hint="merge, rewrite and pack take any; docs/families.md")

    def settings(self, config: Mapping[str, Any]) -> Settings:
        return NOTHING

    def config(
        self, settings: Settings, parent: Mapping[str, Any], parent_family: Family, asked: Container[str] = ()
    ) -> dict[str, Any]:
        return dict(parent)

    def mended(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return dict(config)

    def aliases(self, settings: Settings) -> dict[str, str]:
        return {}

    def table(self, settings: Settings, *, fused: bool = False) -> Iterator[tuple[Role, Placed]]:
        return iter(())


@dataclass(frozen=True)
class Adapter(Nameless):
    """No model, but what is added to one: its tensors by their names alone."""

    base: str | None = None  # what it says that it was trained on
    path: str = ""

    def refusing(self, verb: str, needs: str = "") -> RekindleError:
        what = f"{self.path} is an adapter for {self.base or 'a model it does not name'}, not a checkpoint."
        return RekindleError(what, hint=f"rekindle merge {self.path} MERGED --base {self.base or 'SRC'}")


def adapter(base: str | None, path: str) -> Adapter:
    """For a folder of peft's; `base`: what it names."""
    return Adapter("adapter", **NO_TABLE, base=base, path=path)


def nameless(config: Mapping[str, Any], unknown: RekindleError) -> Nameless:
    """For a config that no table fits; `unknown` says why."""
    names = [config[key] for key in ("model_type", "_class_name") if isinstance(config.get(key), str)]
    named = next(iter(names), "model without a model_type" if config else "model without a config.json")
    called = config["architectures"][0] if named in FAMILIES else ""  # then the class is what no table knows
    return Nameless(named, **NO_TABLE, unknown=unknown, called=called)
