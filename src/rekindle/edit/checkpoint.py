"""A checkpoint as methods see it: settings, and a table role -> tensor expression. No weight is in memory.

child = parent.as_family("mixtral", num_experts=8, ...)    a target to fill
child[layer].expert[e] = parent[layer].ffn                 role by role, a group at a time
child[layer]["router"] = Normal(...)
return child.with_rest_of(parent).promising(exact())
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from rekindle.anatomy import Family, Nameless, Placed, Role, Settings, Tensor, family_named, opaque_name
from rekindle.anatomy.settings import role_of
from rekindle.edit.arithmetic import Computed, Fill, Fresh, Rounded
from rekindle.edit.expressions import Expr
from rekindle.edit.feedforward import PARTS, FeedForward
from rekindle.edit.keyed import Keyed, joint
from rekindle.edit.measure import Measurement
from rekindle.edit.promise import Promise, exact
from rekindle.errors import RekindleError, counted
from rekindle.store.folder import Folder

REPEATED = "repeated_kv_heads"  # the key of a config: tower -> how many key-value heads there are, each repeated
ONCE = "tied_weights_once"  # the key of a config: these are written once, and read by Rekindle alone
TIED = "tied_weights"  # the key of a config: name -> name of the tensor that is the same parameter, both written


class Finding(NamedTuple):
    """A measurement that finds what the user should know, and where: of which source, in which tower."""

    measurement: Measurement
    tower: str = ""
    source: str = ""

    def told(self) -> tuple[str, dict[str, float]]:
        """A row of a table: its name, and a number by column."""
        row, numbers = self.measurement.told()
        return ", ".join(part for part in (self.source, self.tower, row) if part), numbers


@dataclass
class Checkpoint:
    """A family, its settings and config, and what each of its tensors is made of."""

    family: Family
    settings: Settings
    config: dict[str, Any]
    tensors: dict[Role, Expr]
    folder: Folder  # where its bytes are; of several sources the first, whose other files travel along
    notes: list[str] = field(default_factory=list)  # what the user should know
    promise: Promise = field(default_factory=exact)
    unused: list[str] = field(default_factory=list)  # tensors of the folder that the family does not read
    made_of: dict[str, Checkpoint] = field(default_factory=dict)  # by key what was opened, where this is not it
    findings: list[Finding] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)  # name -> text, of files that travel along otherwise
    beside: Mapping[str, Checkpoint] = field(default_factory=dict)  # others that a method's option may name
    which: str = ""  # the tower that it is, as methods see one

    def __getitem__(self, layer: int) -> Block:
        return Block(self, layer)

    @property
    def dtype(self) -> str:
        """The dtype of the weights: that of the embeddings, or of the first tensor of a tower without its own."""
        embed = self.family.embed
        return (self.tensors[embed] if embed in self.tensors else next(iter(self.tensors.values()))).dtype

    @cached_property
    def rows(self) -> dict[Role, Placed]:
        """Every role this checkpoint must have: role -> (name of its tensor on disk, its shape, row of the table)."""
        return dict(self.family.table(self.settings))

    def layers(self, chosen: str) -> tuple[int, ...]:
        """Layer numbers out of "all", "every:2" (every second), "last:6", "first:6" or "0,3,5"."""
        count = self.settings.num_layers
        word, _, number = chosen.partition(":")
        try:
            if chosen == "all":
                return tuple(range(count))
            if word in ("every", "last", "first"):
                n = int(number)
                if not 1 <= n <= count:
                    raise RekindleError(f"--layers {chosen} asks for {n} of {count} layers.", hint=f"1 to {count}")
                return tuple(
                    {"every": range(n - 1, count, n), "last": range(count - n, count), "first": range(n)}[word]
                )
            layers = tuple(sorted({int(item) for item in chosen.split(",")}))
        except ValueError:
            raise RekindleError(f"--layers {chosen!r} names no layers.", hint="all, every:2, last:6 or 0,3,5") from None
        outside = [layer for layer in layers if not 0 <= layer < count]
        if outside:
            what = f"There is no layer {outside[0]}: the model has layers 0 to {count - 1}."
            raise RekindleError(what, hint=f"--layers all, or up to {count - 1}")
        return layers

    @cached_property
    def by_layer(self) -> dict[int, dict[tuple[str, int], Expr]]:
        """layer -> (part, expert) -> expression, of a checkpoint that is filled; expert is -1 where there is none."""
        layers: dict[int, dict[tuple[str, int], Expr]] = {layer: {} for layer in range(self.settings.num_layers)}
        for (part, layer, expert, _), expr in self.tensors.items():
            if layer >= 0:
                layers[layer][part, expert] = expr
        return layers

    @property
    def opaque(self) -> list[Role]:
        """Tensors that no row of the table names: copied with their layer, and never looked at."""
        return [role for role in self.tensors if opaque_name(role) is not None] if self.family.opaque else []

    @property
    def sources(self) -> dict[str, Checkpoint]:
        """The checkpoints over bytes on disk that this one is made of, by their keys; the key of an only one is ""."""
        return self.made_of or {"": self}

    @property
    def origin(self) -> Checkpoint:
        """The first of its sources."""
        return next(iter(self.sources.values()))

    # -- towers ----------------------------------------------------------------------------------------------

    def tower(self, name: str) -> Checkpoint:
        """One tower by itself, as methods see it: its layers, its settings, its part of the config."""
        family = self.family.towers[name]
        tensors = {role._replace(tower=""): x for role, x in self.tensors.items() if role.tower == name}
        own = {"notes": [], "findings": [], "unused": [], "promise": exact()}
        config = dict(family.own(self.config))
        settings = self.settings.towers[name]
        return replace(self, family=family, settings=settings, config=config, tensors=tensors, which=name, **own)

    def with_towers(self, children: Mapping[str, Checkpoint]) -> Checkpoint:
        """This checkpoint with towers replaced by what a method made of each; their config is written once, for all.

        Raises RekindleError where towers would differ in what the config has one key for.
        """
        family, config = self._family_of(children), self.config
        towers = {**self.settings.towers, **{name: child.settings for name, child in children.items()}}
        tensors = {role: x for role, x in self.tensors.items() if role.tower not in children}
        for name, child in children.items():
            here, before = child.family.own(config), child.family.own(self.config)
            changed = {key: x for key, x in here.items() if key not in before or before[key] != x}  # by other towers
            config = child.family.put(config, child.config | changed) if family is self.family else config
            tensors |= {role._replace(tower=name): x for role, x in child.tensors.items()}
        try:
            config = family.config(replace(self.settings, towers=towers), config, self.family)
        except RekindleError as refused:
            refused.hint = refused.hint or ("--tower both" if len(children) < len(family.towers) else None)
            raise
        made = self.derive(family=family, settings=family.settings(config), config=config, tensors=tensors)
        made._untie(self)
        said: dict[str, list[str]] = {}
        for name, child in children.items():
            made.promising(child.promise).findings += [finding._replace(tower=name) for finding in child.findings]
            for note in child.notes:
                said.setdefault(note, []).append(name)
        before = family.remarks(self.settings)
        made.notes = [note for note in made.notes if note not in before]
        made.noting(*(f"{' and '.join(names)}: {note}" for note, names in said.items()))
        return made.noting(*family.remarks(made.settings))

    def _family_of(self, children: Mapping[str, Checkpoint]) -> Family:
        """This one's, or another that all of its towers go into; raises RekindleError where only some do."""
        names = {child.family.model_type for child in children.values()}
        if names <= {tower.model_type for tower in self.family.towers.values()}:
            return self.family
        (name,) = names
        if len(children) < len(self.family.towers):
            what = f"{name} is another family, which both towers of this {self.family.model_type} go into."
            raise RekindleError(what, hint="--tower both")
        return family_named(name)

    def _untie(self, before: Checkpoint) -> None:
        """Parameters of towers that were one are two where one of them has been changed."""
        if tied := self.config.get(TIED):
            roles = {name: role for role, (name, _, _) in self.rows.items()}
            kept = {name for name, role in roles.items() if self.tensors.get(role) is before.tensors.get(role)}
            left = {name: of for name, of in tied.items() if {name, of} <= kept}
            others = {key: value for key, value in self.config.items() if key != TIED}
            self.config = others | ({TIED: left} if left else {})

    # -- making a child --------------------------------------------------------------------------------------

    def derive(self, **changes: Any) -> Checkpoint:
        """A child that is this checkpoint but for the changes."""
        own = {"made_of": self.sources, "notes": list(self.notes), "findings": list(self.findings)}
        return replace(self, **(own | changes))

    def keyed(self, key: str) -> Checkpoint:
        """The same as one of several: its sources, and all that is made of them, under this key."""
        under = Keyed(key)
        made_of = {joint(key, inner): source for inner, source in self.sources.items()}
        tensors = {role: under(x) for role, x in self.tensors.items()}
        findings = [Finding(under(of), tower, joint(key, source)) for of, tower, source in self.findings]
        return replace(self, made_of=made_of, tensors=tensors, findings=findings)

    def table_of(self, name: str) -> Family:
        """The table of another family; of a tower that of the same one in a model of that family."""
        if name == self.family.model_type:
            return self.family
        family = family_named(name)
        return family.towers.get(self.which, family)

    def as_family(self, name: str, **changes: Any) -> Checkpoint:
        """An empty child of another family with these settings changed; refused with every reason it cannot be."""
        family = self.table_of(name)
        settings = replace(self.settings, **changes)
        config = family.config(settings, self.config, self.family, changes)
        return self.derive(family=family, settings=family.settings(config), config=config, tensors={})

    def with_rest_of(self, parent: Checkpoint) -> Checkpoint:
        """Fill what is still empty: the parent's tensor of the same role, or else the family's neutral value."""
        filled, inherited = self.tensors, parent.tensors
        for role, (_, shape, row) in self.rows.items():
            if role in filled:
                continue
            expr = inherited.get(role)
            if expr is not None and expr.shape == shape:
                filled[role] = expr
            elif row.neutral:
                filled[role] = _neutral(row, shape, role, parent)
        same = self.settings.num_layers == parent.settings.num_layers
        for role in parent.opaque:
            if role.layer < 0 or same:
                filled.setdefault(role, inherited[role])
        return self

    def promising(self, promise: Promise) -> Checkpoint:
        """Exact after exact is exact; anything lossy stays so."""
        self.promise = promise if self.promise.exact else self.promise
        return self

    def noting(self, *notes: str) -> Checkpoint:
        self.notes += notes
        return self

    def telling(self, *measurements: Measurement) -> Checkpoint:
        self.findings += map(Finding, measurements)
        return self

    @property
    def told(self) -> dict[str, dict[str, float]]:
        """Row -> column -> number of what was measured for the user to know; empty before the measuring pass."""
        return dict(finding.told() for finding in self.findings if finding.measurement.found is not None)

    def as_saved(self) -> Checkpoint:
        """This checkpoint as the next step of a recipe finds it: what was calculated is rounded as on disk."""
        rounded = {id(x): Rounded(x) for x in self.tensors.values() if isinstance(x, Computed)}
        return self.derive(tensors={role: rounded.get(id(x), x) for role, x in self.tensors.items()})

    # -- in numbers ------------------------------------------------------------------------------------------

    @property
    def summary(self) -> str:
        """One line on what this is: "mixtral, 8 experts, top-2 in 16 of 16 layers"."""
        s, name = self.settings, self.family.model_type
        if isinstance(self.family, Nameless):
            return f"{self.family.name}, {counted(len(self.tensors), 'tensor')} by their names alone"
        if s.towers:
            return f"{name}, " + ", ".join(f"{tower}: {_column(own)}" for tower, own in s.towers.items())
        return f"{name}, {_column(s)}"

    def parameters(self) -> dict[str, int]:
        """Total parameters, and those active for one token: all but the experts it is not routed to."""
        counts = self.family.parameters(self.settings)
        others = sum(math.prod(self.tensors[role].shape) for role in self.opaque)
        tied = self.config.get(TIED)
        twice = sum(math.prod(shape) for name, shape, _ in self.rows.values() if name in tied) if tied else 0
        return {key: count + others - twice for key, count in counts.items()}


def united(parents: Sequence[Checkpoint], like: Checkpoint) -> Checkpoint:
    """An empty child of `like`, which is one of them, to be filled out of all of them."""
    made_of = {key: source for parent in parents for key, source in parent.sources.items()}
    notes = list(dict.fromkeys(note for parent in parents for note in parent.notes))
    findings = [found for parent in parents for found in parent.findings]
    return replace(like, made_of=made_of, notes=notes, findings=findings, tensors={}, promise=exact())


def _column(s: Settings) -> str:
    """Layers in words."""
    if not s.sparse_layers:
        return f"dense, {counted(s.num_layers, 'layer')}"
    return f"{s.num_experts} experts, top-{s.top_k} in {len(s.sparse_layers)} of {counted(s.num_layers, 'layer')}"


class Block:
    """One layer of a checkpoint, by its parts."""

    def __init__(self, checkpoint: Checkpoint, layer: int):
        self._checkpoint, self._layer = checkpoint, layer

    def __contains__(self, part: str) -> bool:
        return Role(part, self._layer) in self._checkpoint.tensors

    def __getitem__(self, part: str) -> Expr:
        return self._checkpoint.tensors[Role(part, self._layer)]

    def __setitem__(self, part: str, value: Expr) -> None:
        self._checkpoint.tensors[Role(part, self._layer)] = value

    @property
    def ffn(self) -> FeedForward:
        return _group(self._checkpoint, "ffn", self._layer)

    @property
    def expert(self) -> Experts:
        return Experts(self._checkpoint, self._layer)


class Experts:
    def __init__(self, checkpoint: Checkpoint, layer: int):
        self._checkpoint, self._layer = checkpoint, layer

    def __getitem__(self, expert: int) -> FeedForward:
        return _group(self._checkpoint, "expert", self._layer, expert)

    def __setitem__(self, expert: int, value: FeedForward) -> None:
        table, layer = self._checkpoint.tensors, self._layer
        for part, expr in value.items():
            table[role_of(("expert." + part, layer, expert, ""))] = expr


def _group(checkpoint: Checkpoint, kind: str, layer: int, expert: int = -1) -> FeedForward:
    table = checkpoint.tensors
    roles = {part: Role(f"{kind}.{part}", layer, expert) for part in PARTS}
    return FeedForward({part: table[role] for part, role in roles.items() if role in table})


def _neutral(row: Tensor, shape: tuple[int, ...], role: Role, parent: Checkpoint) -> Expr:
    if row.neutral.startswith("first "):
        source = parent.tensors[Role(row.neutral.removeprefix("first "), role.layer)]
        return Fresh(source.first(shape[0]))
    return Fill(parent.dtype, shape, {"zeros": 0.0, "ones": 1.0}[row.neutral])
