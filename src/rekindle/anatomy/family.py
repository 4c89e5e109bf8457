"""A family of models as a table: names to roles, config keys to settings, defaults, what it fixes.

Adding a family is adding a row of data in `families.py`; see docs/families.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from rekindle.anatomy.layout import ROPE_KEYS, SPARSE, WINDOWS, read_rope
from rekindle.anatomy.settings import Role, Settings, meaning, role_of
from rekindle.errors import RekindleError, together


@dataclass(frozen=True)
class Tensor:
    """One row: its role, its name on disk, its shape in letters (see Settings.dims), when it is there.

    `when` names the setting that must be true, or "setting=value". `neutral` is the value it takes in a child
    whose parent lacks it, chosen so that the function is kept and training is not blocked: "zeros", "ones", or
    "first ROLE" (the first units of the parent's tensor).
    """

    part: str
    name: str
    shape: str
    when: str = ""
    neutral: str = ""


Shaped = list[tuple[Tensor, tuple[int, ...]]]


@dataclass(frozen=True)
class Family:
    model_type: str
    architecture: str  # the transformers class
    top: tuple[Tensor, ...]  # tensors outside the layers
    block: tuple[Tensor, ...]  # of every layer
    dense: tuple[Tensor, ...]  # of layers with one feed-forward
    sparse: tuple[Tensor, ...]  # of layers with experts; `{expert}` in the name: one for each
    keys: Mapping[str, str]  # setting -> config key
    fixed: Mapping[str, Any]  # setting -> the only value this architecture has
    defaults: Mapping[str, Any]  # config key -> value where config.json is silent, as in transformers
    rope_theta: float = 10_000.0  # the default
    windows: str = "none"  # how attention windows are spelt, see layout.WINDOWS
    sparsity: str = "none"  # which layers may have experts, see layout.SPARSE
    twins: tuple[str, ...] = ()  # the sparse families that can hold it, best first
    ignorable: tuple[str, ...] = ("rotary_emb.inv_freq",)  # ends of buffer names that old files have and no model reads
    runtime: Mapping[str, str] | None = None  # names transformers gives in memory where they differ from disk

    # -- config.json -> Settings ---------------------------------------------------------------------------

    def value(self, config: Mapping[str, Any], key: str) -> Any:
        """A config value, under any of its spellings, or the family's default; a null that is written is a value."""
        for spelling in (key, *SYNONYMS.get(key, ())):
            if spelling in config:
                return config[spelling]
        return self.defaults.get(key)

    def settings(self, config: Mapping[str, Any]) -> Settings:
        """Read a config.json; raises RekindleError where a value is missing or makes no sense."""
        given = {name: self.value(config, key) for name, key in self.keys.items()}
        given |= self.fixed
        given["rope_theta"], given["rope_scaling"] = read_rope(config, self.rope_theta)
        heads, layers = given["num_heads"], given["num_layers"]
        for name in ("vocab_size", "hidden_size", "num_layers", "num_heads"):
            if type(given[name]) is not int or given[name] < 1:
                raise RekindleError(
                    f"{self.keys[name]} is {given[name]!r}, not a positive whole number.", where="config.json"
                )
        given["num_kv_heads"] = given["num_kv_heads"] or heads
        given["head_dim"] = given.get("head_dim") or config.get("head_dim") or given["hidden_size"] // heads
        given["sparse_layers"] = SPARSE[self.sparsity].read(config, self, layers)
        given["windows"] = WINDOWS[self.windows].read(config, self, layers)
        return Settings(**given)

    # -- Settings -> config.json ---------------------------------------------------------------------------

    def config(self, settings: Settings, parent: Mapping[str, Any], parent_family: Family) -> dict[str, Any]:
        """A config.json for `settings` that inherits all else from the parent's, every value written out.

        Raises RekindleError with every reason why this family cannot compute what the settings say.
        """
        config: dict[str, Any] = {"architectures": [self.architecture], "model_type": self.model_type}
        spoken_for = {*parent_family.defaults, *self.defaults, *config, *ROPE_KEYS, *_SPELLINGS}
        for key, default in self.defaults.items():
            known = key in parent_family.defaults or key in parent
            config[key] = parent_family.value(parent, key) if known else default
        config |= {key: value for key, value in parent.items() if key not in spoken_for}
        problems = self._write_keys(settings, config)
        for spelling in (WINDOWS[self.windows], SPARSE[self.sparsity]):
            reason = spelling.write(settings, config)
            problems += [f"{self.model_type} {reason}"] if reason else []
        if problems:
            raise together([RekindleError(f"{problem}.") for problem in problems])
        config["rope_theta"] = settings.rope_theta
        config["rope_scaling"] = dict(settings.rope_scaling) if settings.rope_scaling else None
        dtype = parent.get("torch_dtype", parent.get("dtype"))
        return config | ({"torch_dtype": dtype} if dtype is not None else {})

    def _write_keys(self, settings: Settings, config: dict[str, Any]) -> list[str]:
        problems: list[str] = []
        written: dict[str, Any] = {}
        for setting in (f.name for f in fields(Settings)):
            wanted = getattr(settings, setting)
            if setting in self.fixed and self.fixed[setting] != wanted:
                reason = (
                    f"{self.model_type} {meaning(setting, self.fixed[setting])}; the parent {meaning(setting, wanted)}"
                )
                problems.append(reason)
            key = self.keys.get(setting)
            if key is None:
                continue
            if written.setdefault(key, wanted) != wanted:
                problems.append(
                    f"{self.model_type} has one switch, {key}, where the parent {meaning(setting, wanted)} only"
                )
            config[key] = wanted
        if "head_dim" not in self.keys and settings.head_dim * settings.num_heads != settings.hidden_size:
            problems.append(f"{self.model_type} has no head_dim of its own; the parent has {settings.head_dim}")
        return problems

    # -- the table -----------------------------------------------------------------------------------------

    def shapes(self, settings: Settings) -> tuple[Shaped, Shaped, Shaped]:
        """Tensors and shapes outside the layers, of a layer with experts, and of one without."""
        dims = settings.dims()

        def shaped(rows: tuple[Tensor, ...]) -> Shaped:
            return [(row, _shape(row, dims)) for row in rows if _present(row.when, settings)]

        return shaped(self.top), shaped(self.block + self.sparse), shaped(self.block + self.dense)

    def parameters(self, settings: Settings) -> dict[str, int]:
        """{"total", "active"}: a token uses all parameters but those of the experts it is not routed to."""
        total = active = 0
        sparse = len(settings.sparse_layers)
        for times, rows in zip((1, sparse, settings.num_layers - sparse), self.shapes(settings), strict=True):
            for row, shape in rows:
                each = "{expert}" in row.name
                total += times * math.prod(shape) * (settings.num_experts if each else 1)
                active += times * math.prod(shape) * (settings.top_k if each else 1)
        return {"total": total, "active": active}

    def table(self, settings: Settings) -> Iterator[tuple[Role, tuple[str, tuple[int, ...], Tensor]]]:
        """role, (name on disk, shape, row) of every tensor, in the order they are written."""
        sparse = frozenset(settings.sparse_layers)
        top, with_experts, without = self.shapes(settings)
        for row, shape in top:
            yield Role(row.part), (row.name, shape, row)
        for layer in range(settings.num_layers):
            for row, shape in with_experts if layer in sparse else without:
                before, one_each, after = row.name.replace("{layer}", str(layer)).partition("{expert}")
                if not one_each:
                    yield role_of((row.part, layer, -1)), (before, shape, row)
                    continue
                part = row.part
                for expert in range(settings.num_experts):
                    yield role_of((part, layer, expert)), (f"{before}{expert}{after}", shape, row)


def _shape(row: Tensor, dims: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(dims[letter] for letter in row.shape.split())


def _present(when: str, settings: Settings) -> bool:
    if not when:
        return True
    name, _, value = when.removeprefix("not ").partition("=")
    there = getattr(settings, name)
    return str(there) == value if value else bool(there) != when.startswith("not ")


# The same thing under two names: transformers v4 and v5, or one family's own history. The first is written.
SYNONYMS = {
    "num_experts": ("num_local_experts",),
    "num_local_experts": ("num_experts",),
    "norm_topk_prob": (),
}
_SPELLINGS = {
    "architectures",
    "model_type",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "layer_types",
} | {name for names in SYNONYMS.values() for name in names}
