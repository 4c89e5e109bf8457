"""A LoRA adapter as peft saves it: which module each of its tensors belongs to, and the factor on their product.

    base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight      A of a module, by the name it has in memory
    base_model.model.model.layers.0.mlp.experts.base_layer.lora_B.weight     B of one of the parameters of a module
    base_model.model.model.embed_tokens.lora_embedding_A                A of embeddings, turned
    base_model.model.lm_head.weight                                     a tensor that was trained whole

The adapter's own name may stand behind lora_A and its kin. What changes the function in another way is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from rekindle.anatomy import OPAQUE, Role, adapter
from rekindle.edit.checkpoint import Checkpoint
from rekindle.edit.expressions import Expr, Leaf
from rekindle.errors import RekindleError, some, together
from rekindle.store.folder import Folder

PREFIX = "base_model.model."
MATRIX = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.(?!(?:weight|bias)$)[^.]+)?(?:\.(weight|bias))?")
WRAPPED = re.compile(r"\.base_layer\b|\.modules_to_save(?:\.(?!(?:weight|bias)$)[^.]+(?=\.(?:weight|bias)$))?")
NOT_LORA = {  # key of the config -> what it makes of an adapter
    "use_dora": "DoRA, which also gives each weight a new norm",
    "use_qalora": "QA-LoRA, which pools its inputs",
    "use_bdlora": "block-diagonal LoRA",
    "kasa_config": "KaSA, which takes singular values from the base",
    "monteclora_config": "MonteCLoRA, which samples",
    "arrow_config": "Arrow, which chooses among adapters token by token",
    "alora_invocation_tokens": "activated LoRA, which begins at a token of the text",
    "layer_replication": "LoRA over layers of the base that stand there several times",
    "trainable_token_indices": "LoRA with trained rows of single tokens",
}
MOVES_BASE = (
    "pissa",
    "olora",
    "corda",
    "loftq",
    "lora_ga",
)  # ways to begin that take something from the base's weights


@dataclass
class Pair:
    """The matrices of one module: a [R, in], b [out, R], and the bias of b, where there is one."""

    module: str  # as the adapter names it, without its prefix
    a: Expr | None = None
    b: Expr | None = None
    bias: Expr | None = None
    embedding: bool = False

    def both(self) -> tuple[Expr, Expr]:
        """A and B, of a pair that is whole."""
        assert self.a is not None
        assert self.b is not None
        return self.a, self.b


@dataclass
class Lora:
    """What an adapter holds."""

    config: Mapping[str, Any]
    pairs: dict[str, Pair] = field(default_factory=dict)  # by module, wrappers in its name included
    whole: dict[str, Expr] = field(default_factory=dict)  # tensors that stand for the base's, by name
    given: dict[str, list[str]] = field(default_factory=dict)  # module or name -> the adapter's tensors behind it

    def rank(self, name: str) -> int:
        """R of a module or parameter of this name."""
        return _of(self.config.get("rank_pattern"), name, self.config["r"])

    def scale(self, name: str) -> float:
        """The factor on B A."""
        rank = self.rank(name)
        alpha = _of(self.config.get("alpha_pattern"), name, self.config.get("lora_alpha", 8))
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def modules(self) -> set[str]:
        """All modules that it changes."""
        return {pair.module for pair in self.pairs.values()} | {name.rpartition(".")[0] for name in self.whole}

    def turned(self) -> Lora:
        """The same for weights that are stored [in, out]."""
        pairs = {}
        for module, pair in self.pairs.items():
            a, b = pair.both()
            pairs[module] = pair if pair.embedding else replace(pair, a=b.transposed(), b=a.transposed())
        return replace(self, pairs=pairs)


def _of(patterns: Mapping[str, Any] | None, name: str, usual: Any) -> Any:
    """The value of the first pattern that a name ends with, as peft reads them: regular expressions."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return usual


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def adapter_of(folder: Folder) -> Checkpoint:
    """An adapter as a source: its tensors by their names; raises RekindleError for any other than plain LoRA."""
    _check(folder)
    base = folder.config.get("base_model_name_or_path")
    family = adapter(base if isinstance(base, str) and base else None, str(folder.path))
    child = Checkpoint(family, family.settings({}), dict(folder.config), {}, folder, list(folder.notes))
    for name, stored in folder.tensors.items():
        child.tensors[Role(OPAQUE + name)] = Leaf(name, stored)
    return child


def lora_of(source: Checkpoint) -> Lora:
    """What the tensors of an adapter are; raises RekindleError for halves of pairs."""
    found = Lora(source.config)
    for role, x in source.tensors.items():
        name = role.part.removeprefix(OPAQUE)
        own = name.removeprefix(PREFIX)
        if match := MATRIX.fullmatch(own):
            module, embedding, side, kind = match.groups()
            if kind != "bias" and (len(x.shape) != 2 or 0 in x.shape):
                why = "one of a sharded training may have been saved before its shards were gathered"
                raise RekindleError(f"{name} is {list(x.shape)}, no matrix.", where=source.folder.path, why=why)
            pair = found.pairs.setdefault(module, Pair(WRAPPED.sub("", module)))
            _put(pair, embedding, side, kind, x)
            found.given.setdefault(module, []).append(name)
        else:
            plain = WRAPPED.sub("", own)
            found.whole[plain] = x
            found.given.setdefault(plain, []).append(name)
    for module, pair in found.pairs.items():
        if pair.a is None or pair.b is None or pair.a.shape[0] != pair.b.shape[1]:
            held = {name: list(source.tensors[Role(OPAQUE + name)].shape) for name in found.given[module]}
            shapes = ", ".join(f"{name} {shape}" for name, shape in held.items())
            what = f"Of the adapter's matrices for {pair.module} one is missing, or they do not fit together."
            raise RekindleError(what, where=f"{shapes} in {source.folder.path}")
    return found


def _put(pair: Pair, embedding: str | None, side: str, kind: str | None, x: Expr) -> None:
    if kind == "bias":
        pair.bias = x
    elif embedding:  # turned: A is [R, tokens], and B [hidden, R]
        pair.embedding = True
        side, x = "BA"["AB".index(side)], x.transposed()
        pair.a, pair.b = (x, pair.b) if side == "A" else (pair.a, x)
    elif side == "A":
        pair.a = x
    else:
        pair.b = x


def _check(folder: Folder) -> None:
    config, where = folder.config, folder.path / "adapter_config.json"
    hint = "peft's merge_and_unload(), then save_pretrained(MERGED), and MERGED here"
    problems = []
    kind = config.get("peft_type")
    if kind != "LORA":
        raise RekindleError(f"This adapter is {kind or 'of no kind that is named'}, not LoRA.", where=where, hint=hint)
    for key, what in NOT_LORA.items():
        if config.get(key):
            problems.append(RekindleError(f"This adapter is {what}.", where=f"{key} in {where}", hint=hint))
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(MOVES_BASE):
        what = f"This adapter began by {start}, and belongs to a base from which that took its own part."
        problems.append(RekindleError(what, where=f"init_lora_weights in {where}", hint=hint))
    patterns = [config.get(key) or {} for key in ("rank_pattern", "alpha_pattern")]
    if not all(isinstance(pattern, dict) and all(map(_is_pattern, pattern)) for pattern in patterns):
        raise RekindleError("rank_pattern and alpha_pattern are tables of regular expressions.", where=where)
    numbers: list[Any] = [config.get("r"), config.get("lora_alpha", 8), *chain(*(p.values() for p in patterns))]
    if bad := [value for value in numbers if type(value) not in (int, float) or not 0 < value < math.inf]:
        problems.append(RekindleError(f"Ranks and alphas are numbers above 0, not {bad[0]!r}.", where=where))
    if not folder.tensors:
        problems.append(RekindleError("This adapter holds no tensors: nothing would change.", where=folder.named))
    if magnitudes := [name for name in folder.tensors if ".lora_magnitude_vector" in name]:
        what = f"This adapter is {NOT_LORA['use_dora']}: it has {some(magnitudes, most=1)}."
        problems += [] if config.get("use_dora") else [RekindleError(what, where=folder.path, hint=hint)]
    if problems:
        raise together(problems)
