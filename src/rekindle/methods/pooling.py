"""What pooling the key and value heads of a layer takes and costs, measured before anything is written.

With inputs x of attention, each with a 1 appended so that biases count, and their second moment C = E[x x'], the
moments of queries, keys and values are W C W'. Without a text the weights alone decide: C is then that of white noise
after the gain of the norm before attention, where there is one.

H query heads   K key-value heads   J of them after pooling   N = K / J   A head dim   D hidden size
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rekindle.edit import Checkpoint
from rekindle.edit.expressions import Reader, signature
from rekindle.edit.measure import STEP, Activations, Array, Measurement
from rekindle.errors import RekindleError
from rekindle.methods import alignment
from rekindle.methods.alignment import Lost, Maps, Matrix

WHERE = {"keys": "scores", "values": "attention output"}  # where an error of this kind shows


@dataclass(frozen=True)
class Rule:
    """How heads are pooled, which of "keys" and "values" are aligned for it, and whether heads alike are grouped."""

    pool: Literal["mean", "first"]
    aligned: tuple[str, ...] = ()
    similar: bool = False
    seed: int = 0


class Pooling(Measurement):
    """Of one layer. What it finds, KIND being "keys" or "values":

    "groups" [J, N]   the heads of each group; "firsts" [J A]: the rows of their first heads
    "queries" [H, 1]   query heads in the order of their groups; "query_rows" [H A]: their rows
    "KIND.encode" [K, A, A], "KIND.decode" [H, A, A]   maps of aligned heads, those of decode transposed: see alignment
    "KIND.scale" [J]   gives a pooled head the norm its members had
    "KIND.error" []   relative error of the scores (keys) or of the output (values), all else being as it was
    """

    __slots__ = ("attention", "count", "layer", "parts", "rule", "settings")

    def __init__(
        self, parent: Checkpoint, layer: int, count: int, rule: Rule, biases: Iterable[str], data: str = "",
        attention: str = "attn",
    ):  # fmt: skip
        """`count`: J. `biases`: those that go with the rows, such as "attn.k.bias". `attention`: attn or cross."""
        self.settings, self.layer, self.count, self.rule = parent.settings, layer, count, rule
        self.attention, before = attention, f"{attention}.pre_norm"
        norm = [before] if not data and before in parent[layer] else []
        self.parts = (*(f"{attention}.{part}" for part in "qkvo"), *biases, *norm)
        of = [parent[layer][part] for part in self.parts]
        state = f"{self.parts} {[signature(x) for x in of]} {count} {rule} {data}"
        name = f"pooling/layer.{layer}/{hashlib.sha256(state.encode()).hexdigest()[:16]}"
        super().__init__(name, of, data)

    @property
    def groups(self) -> Array:
        return self["groups"] if self.rule.similar else self.neighbours

    @property
    def queries(self) -> Array:
        return self["queries"] if self.rule.similar else np.arange(self.settings.num_heads)[:, None]

    @property
    def neighbours(self) -> NDArray[np.int64]:
        """Consecutive heads in groups [J, N]."""
        return np.arange(self.settings.num_kv_heads).reshape(self.count, -1)

    def told(self) -> tuple[str, dict[str, float]]:
        assert self.found is not None
        of = "cross-attention, " if self.crossed else ""
        row = f"layer {self.layer}, {of}{self.settings.num_kv_heads} to {self.count} key-value heads"
        return row, {f"error of {where}": float(self.found[f"{kind}.error"]) for kind, where in WHERE.items()}

    # -- looking ---------------------------------------------------------------------------------------------------

    def find(self, reader: Reader, activations: Activations | None) -> dict[str, NDArray]:
        kinds = self._look(reader, None if activations is None else activations.attention_inputs(self.layer))
        groups = self._alike(kinds.values()) if self.rule.similar else self.neighbours
        size, sharing = self.settings.head_dim, self.settings.num_heads // self.settings.num_kv_heads
        queries = (groups.reshape(-1, 1) * sharing + np.arange(sharing)).reshape(-1)
        found: dict[str, NDArray] = {
            "groups": groups, "firsts": _rows(groups[:, 0], size),
            "queries": queries[:, None], "query_rows": _rows(queries, size),
        }  # fmt: skip
        for kind, heads in kinds.items():
            maps = [heads.maps(group) for group in groups]
            lost = [heads.lost(group, m) for group, m in zip(groups, maps, strict=True)]
            found[f"{kind}.error"] = np.asarray(_share(lost) ** 0.5)
            found[f"{kind}.scale"] = np.array([(x.there / x.back) ** 0.5 if x.back > 0 else 1.0 for x in lost])
            if kind in self.rule.aligned:
                order = groups.reshape(-1).argsort()
                encode, decode = (np.concatenate(side)[order] for side in zip(*maps, strict=True))
                found[f"{kind}.encode"] = encode * groups.shape[1]  # Heads takes the mean
                found[f"{kind}.decode"] = np.repeat(decode, sharing, axis=0).transpose(0, 2, 1)
        # float32: machines that add in another order agree on most of these digits
        return {k: a if a.dtype == np.int64 else np.asarray(a, np.float32, order="C") for k, a in found.items()}

    def _look(self, reader: Reader, seen: Matrix | None) -> dict[str, Members]:
        """Keys, whose errors count as queries read them, and values, whose errors count as the output does."""
        s = self.settings
        if seen is not None and not self.biased:
            seen = seen[:-1, :-1]
        weights = {"keys": _moments(self._heads("q", reader), seen), "values": self._outputs(reader)}
        turned = 0 if self.crossed else s.rotary_dim
        kinds = {}
        for kind, part in (("keys", "k"), ("values", "v")):
            rows_KAD = self._heads(part, reader)
            weight_KAA = weights[kind].reshape(s.num_kv_heads, -1, s.head_dim, s.head_dim).sum(axis=1)
            if not (np.isfinite(rows_KAD).all() and np.isfinite(weight_KAA).all()):
                what = f"The attention of layer {self.layer} has NaN or infinite weights, which cannot be pooled."
                raise RekindleError(what, hint="rekindle inspect SRC --nan names them")
            pool = "aligned" if kind in self.rule.aligned else self.rule.pool
            kinds[kind] = Members(rows_KAD, seen, weight_KAA, pool, turned if kind == "keys" else 0)
        return kinds

    @property
    def biased(self) -> bool:
        return any(part.endswith("bias") for part in self.parts)

    @property
    def crossed(self) -> bool:
        """Whether keys and values are of what another tower has read, whose size and norm are its own."""
        return self.attention == "cross"

    def _heads(self, part: str, reader: Reader) -> NDArray:
        """Rows of q, k or v as white inputs meet them [heads, A, D]; where there are biases, they are a column more."""
        read = {name.partition(".")[2]: x for name, x in zip(self.parts, self.of, strict=True)}
        x, bias = read[part], read.get(f"{part}.bias")
        rows = x.values(0, x.num_rows, reader)
        if (norm := read.get("pre_norm")) and not (self.crossed and part != "q"):
            rows = rows * (self.settings.norm_offset + norm.values(0, norm.num_rows, reader)).T
        if self.biased:
            last = bias.values(0, bias.num_rows, reader) if bias is not None else np.zeros((len(rows), 1))
            rows = np.concatenate([rows, last], axis=1)
        # a mean is measured in a hurry; eigenvectors of heads that are nearly equal need all digits
        dtype = np.float64 if self.rule.aligned else np.float32
        return rows.astype(dtype, copy=False).reshape(-1, self.settings.head_dim, rows.shape[1])

    def _outputs(self, reader: Reader) -> Matrix:
        """O'O of the columns of each query head [H, A, A]."""
        o, s = self.of[self.parts.index(f"{self.attention}.o")], self.settings
        total = np.zeros((s.num_heads, s.head_dim, s.head_dim))
        step = max(1, STEP // o.row_size)
        for lo in range(0, o.num_rows, step):
            block = o.values(lo, min(lo + step, o.num_rows), reader)
            heads = block.reshape(len(block), s.num_heads, s.head_dim).transpose(1, 0, 2)
            total += heads.transpose(0, 2, 1) @ heads
        return total

    def _alike(self, kinds: Collection[Members]) -> NDArray[np.int64]:
        """Groups of heads whose pairs lose little; the neighbours where those lose less."""
        heads = self.settings.num_kv_heads
        cost = np.zeros((heads, heads))
        for members in kinds:
            there = sum(members.lost(np.array([head])).there for head in range(heads))
            for i, j in combinations(range(heads), 2):
                cost[i, j] += members.lost(np.array([i, j])).lost / (there or 1.0)
        found = alignment.groups_of_alike(cost + cost.T, self.count, self.rule.seed)

        def damage(groups: NDArray) -> float:
            return sum(_share([members.lost(group) for group in groups]) for members in kinds)

        return min((self.neighbours, found), key=damage)


class Members:
    """Heads of one kind, and how much the errors of each count."""

    def __init__(self, rows_KAD: NDArray, seen: Matrix | None, weight_KAA: Matrix, pool: str, rotary_dim: int):
        self.rows, self.weight, self.pool, self.rotary_dim = rows_KAD, weight_KAA, pool, rotary_dim
        self.through = _through(rows_KAD, seen)

    def moment(self, heads: NDArray) -> Matrix:
        """[N, A, N, A]"""
        shape = (len(heads), self.rows.shape[1]) * 2
        wide = self.rows.shape[2]
        wide_moment = self.through[heads].reshape(-1, wide) @ self.rows[heads].reshape(-1, wide).T
        return wide_moment.astype(np.float64, copy=False).reshape(shape)

    def maps(self, heads: NDArray) -> Maps:
        if self.pool == "aligned":
            return alignment.aligned(self.moment(heads), self.weight[heads], self.rotary_dim)
        return (alignment.first if self.pool == "first" else alignment.mean)(len(heads), self.rows.shape[1])

    def lost(self, heads: NDArray, maps: Maps | None = None) -> Lost:
        return alignment.lost(self.moment(heads), self.weight[heads], maps or self.maps(heads))


def _moments(rows_HAD: NDArray, seen: Matrix | None) -> Matrix:
    """Of each head on its own [H, A, A]."""
    return (_through(rows_HAD, seen) @ rows_HAD.transpose(0, 2, 1)).astype(np.float64, copy=False)


def _through(rows_HAD: NDArray, seen: Matrix | None) -> NDArray:
    """W C"""
    return rows_HAD if seen is None else rows_HAD @ seen.astype(rows_HAD.dtype, copy=False)


def _rows(heads: NDArray, size: int) -> NDArray[np.int64]:
    return (heads[:, None] * size + np.arange(size)).reshape(-1)


def _share(lost: Iterable[Lost]) -> float:
    """The part of all there was that is lost."""
    lost = list(lost)
    there = sum(x.there for x in lost)
    return max(0.0, sum(x.lost for x in lost)) / there if there else 0.0
