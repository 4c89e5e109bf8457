"""A family of models as a table: names to roles, config keys to settings, defaults, what it fixes.

Adding a family is adding a row of data; see docs/families.md.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from rekindle.anatomy.kinds import SYNONYMS, fits, mended, misfits
from rekindle.anatomy.layout import SPARSE, WINDOWS
from rekindle.anatomy.rope import ROPE, ROPE_KEYS
from rekindle.anatomy.settings import ROUTING, Role, Settings, meaning, role_of
from rekindle.anatomy.sizes import check_each, check_together
from rekindle.anatomy.spelling import Spelling
from rekindle.anatomy.tensor import OPAQUE, Placed, Shaped, Tensor, is_present, shape_of
from rekindle.errors import RekindleError, together


@dataclass(frozen=True)
class Family:
    model_type: str
    classes: Mapping[str, str]  # Settings.output -> the transformers class
    top: tuple[Tensor, ...]  # tensors outside the layers
    block: tuple[Tensor, ...]  # of every layer
    dense: tuple[Tensor, ...]  # of layers with one feed-forward
    sparse: tuple[Tensor, ...]  # of layers with experts; `{expert}` in the name: one for each
    keys: Mapping[str, str]  # setting -> config key
    fixed: Mapping[str, Any]  # setting -> the only value this architecture has, where it is not the default
    defaults: Mapping[str, Any]  # config key -> value where config.json is silent, as in transformers
    prefix: str = "model."  # of the base model's tensors; a file may lack it
    rope: str = "whole"  # how RoPE is spelt, see rope.ROPE
    rope_theta: float = 10_000.0  # the default
    windows: str = "none"  # how attention windows are spelt, see layout.WINDOWS
    sparsity: str = "none"  # which layers may have experts, see layout.SPARSE
    spelt: tuple[Spelling, ...] = ()  # what else is not one key to one setting
    twins: tuple[str, ...] = ()  # the sparse families that can hold it, best first
    only: Mapping[str, Any] | None = None  # config key -> the one value that is known here
    written: Mapping[str, Any] | None = None  # config key -> what the engines want to read besides
    extra_layers: str = ""  # config key that counts layers which a file has beyond the last, and no model reads
    ignorable: tuple[str, ...] = ("rotary_emb.inv_freq",)  # ends of names of tensors that no model reads
    older: Mapping[str, str] | None = None  # parts of names in old files -> what they are called now
    runtime: Mapping[str, str] | None = None  # names transformers gives in memory where they differ from disk
    whole_heads: bool = False  # transformers insists that the hidden size is a multiple of the heads
    copies: Mapping[str, str] | None = None  # in memory, name -> name of the tensor that it is too, unless it has a row
    stand_ins: Mapping[str, str] = field(default_factory=dict)  # config key -> the key whose value it has where null
    tied: str = "config"  # what says whether the head is the embeddings: the config, or the "weights" alone
    called: str = ""  # what users know it by, if not its model_type: a tower's model, or the class that no table knows
    section: tuple[str, ...] = ()  # of a tower: the keys that lead to its own config; (): it shares the model's
    towers: Mapping[str, Family] = field(default_factory=dict)  # of a model of several, see `towers`
    renamed: tuple[str, ...] = ()  # what transformers called its class in other times
    module: str = "transformers"  # that has its classes
    beyond: Mapping[str, Any] = field(default_factory=dict)  # config key -> value with which no row names its tensors
    opaque: tuple[str, ...] = ()  # beginnings of names, `{layer}` in some, of tensors that the class has and no row

    @property
    def name(self) -> str:
        """What users know it by."""
        return self.called or self.model_type

    @property
    def spellings(self) -> tuple[Spelling, ...]:
        return (ROPE[self.rope], WINDOWS[self.windows], SPARSE[self.sparsity], *self.spelt)

    @property
    def reads_images(self) -> bool:
        return "num_channels" in self.keys

    @property
    def embed(self) -> Role:
        """The embeddings, which are the head too where that is tied."""
        return Role("embed")

    # -- config.json -> Settings ---------------------------------------------------------------------------

    def value(self, config: Mapping[str, Any], key: str) -> Any:
        """A config value, under any of its spellings, or the family's default; a null that is written is a value."""
        for spelling in (key, *SYNONYMS.get(key, ())):
            if spelling in config:
                found = config[spelling]
                break
        else:
            found = self.defaults.get(key)
        return self.value(config, self.stand_ins[key]) if found is None and key in self.stand_ins else found

    def mended(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The same config, each number of the kind that transformers insists on, see `kinds`."""
        return mended(self, config)

    def settings(self, config: Mapping[str, Any]) -> Settings:
        """Read a config.json; raises RekindleError where a value is missing or makes no sense."""
        config = mended(self, config)
        if problems := list(misfits(self, config)):
            raise together(problems)
        given = {name: self.value(config, key) for name, key in self.keys.items()}
        given |= self.fixed
        check_each(self, given, config)
        heads = given["num_heads"]
        given["num_kv_heads"] = given.get("num_kv_heads") or heads
        given["head_dim"] = given.get("head_dim") or config.get("head_dim") or given["hidden_size"] // heads
        if given["tie_word_embeddings"] is None:  # T5's, which goes by the weights
            given["tie_word_embeddings"] = True
        if given.get("intermediate_size", 0) is None:  # gpt2
            given["intermediate_size"] = 4 * given["hidden_size"]
        if given.get("norm_topk_prob", True) is None:  # no, to transformers
            given["norm_topk_prob"] = False
        if self.classes:
            given["output"] = self._output(config)
        for spelling in self.spellings:
            given |= spelling.read(config, self, given)
        settings = Settings(**given)
        check_together(self, settings)
        return settings

    def own(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """A tower's part of the model's config."""
        for key in self.section:
            config = config.get(key) or {}
        return config

    def put(self, config: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
        """The model's config with the tower's part replaced."""
        for depth in range(len(self.section), 0, -1):
            inner: Mapping[str, Any] = config
            for key in self.section[: depth - 1]:
                inner = inner.get(key) or {}
            own = {**inner, self.section[depth - 1]: own}
        return dict(own)

    def _output(self, config: Mapping[str, Any]) -> str:
        """By the class that the config names, where the family has several."""
        if len(self.classes) == 1:
            return next(iter(self.classes))
        names = config.get("architectures") or list(self.classes.values())[:1]
        for output, name in self.classes.items():
            if names == [name]:
                return output
        raise RekindleError(
            f"A {self.name} of the class {', '.join(map(str, names))} is not known.",
            where="config.json: architectures",
            hint=" or ".join(self.classes.values()),
        )

    # -- Settings -> config.json ---------------------------------------------------------------------------

    def config(
        self, settings: Settings, parent: Mapping[str, Any], parent_family: Family, asked: Container[str] = ()
    ) -> dict[str, Any]:
        """A config.json for `settings` that inherits all else from the parent's, every value written out.

        `asked`: the settings that are not the parent's own, for what is said of them.
        Raises RekindleError with every reason why this family cannot compute what the settings say.
        """
        config = self._class(settings)
        spoken_for = {*parent_family.defaults, *self.defaults, *config, *ROPE_KEYS, *_SPELLINGS}
        for key, default in self.defaults.items():
            known = key in parent_family.defaults or key in parent
            value = parent_family.value(parent, key) if known else default
            config[key] = value if fits(self, key, value) or type(value) is int else default
        config |= {key: value for key, value in parent.items() if key not in spoken_for}
        config |= self.written or {}
        problems = self._write_keys(settings, config, parent_family, asked)
        for spelling in self.spellings:
            reason = spelling.write(settings, config)
            problems += [f"{self.name} {reason}"] if reason else []
        if problems:
            raise together([RekindleError(f"{problem}.") for problem in problems])
        if self.extra_layers:
            config[self.extra_layers] = 0  # they are not carried
        dtype = parent.get("torch_dtype", parent.get("dtype"))
        config = mended(self, config)
        if problems := list(misfits(self, config)):
            raise together(problems)
        return config | ({"torch_dtype": dtype} if dtype is not None else {})

    def _class(self, settings: Settings) -> dict[str, Any]:
        """What says which class it is; a tower has none."""
        named = self.classes.get(settings.output, next(iter(self.classes.values()), None))
        return ({"architectures": [named]} if named else {}) | {"model_type": self.model_type}

    def _write_keys(
        self, settings: Settings, config: dict[str, Any], parent_family: Family, asked: Container[str]
    ) -> list[str]:
        problems: list[str] = []
        written: dict[str, Any] = {}
        silent = () if parent_family.sparse else ROUTING
        free = {"towers", "head_dim", "num_kv_heads", "output", *silent}
        free |= {name for spelling in self.spellings for name in spelling.settings}
        for f in fields(Settings):
            setting, wanted = f.name, getattr(settings, f.name)
            key = self.keys.get(setting)
            if key is None:
                known = self.fixed.get(setting, f.default)
                if setting not in free and known is not MISSING and known != wanted:
                    problems.append(self._differs(setting, known, wanted, setting in asked))
                continue
            if wanted is None and setting not in parent_family.keys:
                continue  # the parent's family cannot say it: the default stays
            if written.setdefault(key, wanted) != wanted:
                problems.append(f"{self.name} has one switch, {key}, where the parent {meaning(setting, wanted)} only")
            config[key] = wanted
        return [*problems, *self._misfits(settings)]

    def _differs(self, setting: str, known: Any, wanted: Any, asked: bool = False) -> str:
        other = "what is asked for" if asked else "the parent"
        return f"{self.name} {meaning(setting, known)}; {other} {meaning(setting, wanted)}"

    def _misfits(self, settings: Settings) -> Iterator[str]:
        if self.classes and settings.output not in self.classes:
            yield self._differs("output", next(iter(self.classes)), settings.output)
        if settings.latent_attention:
            return
        if "head_dim" not in self.keys and settings.head_dim * settings.num_heads != settings.hidden_size:
            yield f"{self.name} has no head_dim of its own; the parent has {settings.head_dim}"
        if "num_kv_heads" not in self.keys and settings.num_kv_heads != settings.num_heads:
            yield f"{self.name} has keys and values for each of its heads; asked for are {settings.num_kv_heads}"

    # -- the table -----------------------------------------------------------------------------------------

    def shapes(self, settings: Settings) -> tuple[Shaped, Shaped, Shaped]:
        """Tensors and shapes outside the layers, of a layer with experts, and of one without."""
        dims = settings.dims()

        def shaped(rows: tuple[Tensor, ...]) -> Shaped:
            return [(row, shape_of(row, dims)) for row in rows if is_present(row.when, settings)]

        return shaped(self.top), shaped(self.block + self.sparse), shaped(self.block + self.dense)

    def generating(self, settings: Settings) -> dict[str, Any]:
        """What config.json and generation_config.json must say for transformers to generate from such a model."""
        return {}

    def unsaid(self, config: Mapping[str, Any]) -> str | None:
        """The config key, where it is null, of a token without which a model is shown no target."""
        return None

    def remarks(self, settings: Settings) -> list[str]:
        """What users of a model with these settings should know."""
        return []

    def parameters(self, settings: Settings) -> dict[str, int]:
        """{"total", "active"}: a token uses all parameters but those of the experts it is not routed to."""
        total = active = 0
        sparse = len(settings.sparse_layers)
        for times, rows in zip((1, sparse, settings.num_layers - sparse), self.shapes(settings), strict=True):
            for row, shape in rows:
                if row.buffer:
                    continue
                each, those = "{expert}" in row.name, max(times - row.from_layer, 0)
                total += those * math.prod(shape) * (settings.num_experts if each else 1)
                active += those * math.prod(shape) * (settings.top_k if each else 1)
        return {"total": total, "active": active}

    def table(self, settings: Settings, *, fused: bool = False) -> Iterator[tuple[Role, Placed]]:
        """role, (name of its tensor, shape of the role, row) of every role, in the order they are written.

        `fused`: by the names that transformers v5 gives in memory, where a layer's experts are stacked.
        """
        sparse = frozenset(settings.sparse_layers)
        top, with_experts, without = (self._named(rows, settings, fused) for rows in self.shapes(settings))
        for row, name, shape in top:
            yield Role(row.part), (name, shape, row)
        for layer in range(settings.num_layers):
            for row, name, shape in with_experts if layer in sparse else without:
                if layer < row.from_layer:
                    continue
                before, one_each, after = name.replace("{layer}", str(layer)).partition("{expert}")
                part = row.part
                if not part.startswith("expert."):
                    yield role_of((part, layer, -1, "")), (before, shape, row)
                    continue
                for expert in range(settings.num_experts):
                    own = f"{before}{expert}{after}" if one_each else before
                    yield role_of((part, layer, expert, "")), (own, shape, row)

    def names_of(self, part: str, settings: Settings) -> tuple[str, ...]:
        """The names on disk of a part outside the layers, whether these settings have it or not (a tied head)."""
        rows: Shaped = [(row, ()) for row in self.top if row.part == part and is_present(row.when, settings)]
        if part == "head" and not rows and settings.output != "none":
            rows = [(row, ()) for row in self.top if row.part == "head"]
        return tuple(name for _, name, _ in self._named(rows, settings, fused=False))

    def opaque_role(self, name: str) -> Role | None:
        """The role of a tensor that no row names and the class has all the same: its name, and its layer."""
        for beginning in self.opaque:
            before, layered, after = beginning.partition("{layer}")
            if not layered and name.startswith(before):
                return Role(OPAQUE + name)
            number, dot, rest = name.removeprefix(before).partition(".")
            if layered and name.startswith(before) and number.isdecimal() and (dot + rest).startswith(after):
                return Role(f"{OPAQUE}{before}{{layer}}{dot}{rest}", int(number))
        return None

    def aliases(self, settings: Settings) -> dict[str, str]:
        """In memory, name -> name of the tensor that it is too: a tied head is the embeddings."""
        if settings.output == "none" or self.reads_images:
            return {}
        tied = {self._in_memory("head", settings): self._in_memory("embed", settings)}
        own = {row.name for row, _ in self.shapes(settings)[0]}  # a tensor with a row is no other
        copies = {name: of for name, of in (self.copies or {}).items() if name not in own}
        return (tied if settings.tie_word_embeddings else {}) | copies

    def name_in_memory(self, name: str) -> str:
        """What transformers calls a tensor of this name on disk, where it does not stack it."""
        for disk, memory in (self.runtime or {}).items():
            name = name.replace(disk, memory)
        return name

    def name_on_disk(self, name: str) -> str:
        """The same the other way round."""
        for disk, memory in (self.runtime or {}).items():
            name = name.replace(memory, disk)
        return name

    def _in_memory(self, part: str, settings: Settings) -> str:
        """transformers' name of a part outside the layers, whether these settings have it or not."""
        return self._named([(row, ()) for row in self.top if row.part == part], settings, fused=True)[0][1]

    def _named(self, rows: Shaped, settings: Settings, fused: bool) -> list[tuple[Tensor, str, tuple[int, ...]]]:
        named = []
        for row, shape in rows:
            name = row.stacked if fused and row.stacked else row.name
            name = self.name_in_memory(name) if fused else name
            named.append((row, name.removeprefix(self.prefix) if settings.output == "none" else name, shape))
        return named


_SPELLINGS = {
    "architectures",
    "model_type",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "layer_types",
    "mlp_layer_types",
    "sliding_window_pattern",
    "_sliding_window_pattern",
    "global_attn_every_n_layers",
} | {name for names in SYNONYMS.values() for name in names}
