"""Grouped-query attention: the key and value heads of each group become one, which all their queries share.

Preserves the function exactly when the heads of a group are equal, and always when heads are added: each is then
repeated for its share of the queries. Pooling unequal heads is lossy; what each layer loses is measured and told.

`mean` is the paper's. `aligned` first brings the heads of a group together by the maps that attention leaves free,
and folds those into queries and output projection: see `alignment`. Without `data` it goes by the weights alone, as
if the norm before attention saw white noise; with it, by what the checkpoint computes on that text.

Departures from the paper, with reasons:
- `aligned` and `similar`: heads have bases of their own, so a plain mean averages things with nothing in common;
- where the output projection has a bias, that of the values is folded into it first: exact, so nothing of it is pooled;
- `repeated`: transformers' T5 has no grouped heads, so a pooled one is written for each of its queries, and `train`
  averages their gradients, as if they were one;
- cross-attention is pooled with self-attention, whose number of heads it has; by its weights alone, what the encoder
  has read being taken as white noise;
- keys are not aligned where queries and keys are normalised or clipped, nor values where they are clipped: there
  the maps are not free. `random` heads have the standard deviation of the parent's, not of a fresh model's.

Source: Ainslie et al. 2023, "GQA", arXiv 2305.13245, section 2.1; alignment after Jin et al. 2024, arXiv 2412.20677.

H query heads   K key-value heads of the parent, J of the child   A head dim
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rekindle.anatomy import FAMILIES
from rekindle.config import Count, option
from rekindle.edit import REPEATED, Checkpoint, Normal, exact, lossy
from rekindle.edit.arithmetic import Fill, Twin
from rekindle.edit.checkpoint import Block
from rekindle.edit.choose import Chosen
from rekindle.edit.expressions import Expr
from rekindle.edit.heads import Folded, Heads, picked
from rekindle.edit.measure import Statistics
from rekindle.errors import RekindleError, together
from rekindle.methods.pooling import Pooling, Rule


@dataclass(frozen=True, kw_only=True)
class Config:
    kv_heads: int = option(help="key-value heads per layer (J); 1: multi-query; more than now: each is repeated")
    pool: Literal["mean", "first", "random", "aligned"] = option(
        "mean", help="a group's head: the mean, the first, a new one, or (loses least) the mean of aligned heads"
    )
    grouping: Literal["consecutive", "similar"] = option("consecutive", help="which heads are pooled together")
    data: str | None = option(None, help="text to measure heads on: see train --data (default: the weights alone)")
    text_column: str | None = option(None, help="column of its rows that holds the text, as for train")
    data_tokens: Count = option(Count(65536), help="tokens of that text")
    repeated: bool = option(
        False, help="write each pooled head for all of its queries, where a class has no number of key-value heads"
    )
    restore_norm: bool = option(False, help="scale each pooled head to the norm that its members had")
    seed: int = option(0, help="seed of the search for similar heads, and of random ones")


def gqa(parent: Checkpoint, config: Config) -> Checkpoint:
    _check(parent, config)
    heads = {} if config.repeated else {"num_kv_heads": config.kv_heads}
    child = parent.as_family(parent.family.model_type, **heads)
    if config.kv_heads >= parent.settings.num_kv_heads:
        return replicated(parent, child)
    return pooled(parent, child, config)


def replicated(parent: Checkpoint, child: Checkpoint) -> Checkpoint:
    """Fill `child`, which has a multiple of the parent's key-value heads, with each of them repeated."""
    before, times = parent.settings.num_kv_heads, child.settings.num_kv_heads // parent.settings.num_kv_heads
    for layer in range(parent.settings.num_layers):
        for part in (part for of in _attentions(parent) for part in _per_kv_head(parent, layer, of)):
            heads = picked(parent[layer][part], parent.settings.head_dim, np.repeat(np.arange(before), times).tolist())
            child[layer][part] = Twin(heads, times)
    return child.with_rest_of(parent).promising(exact())


def pooled(parent: Checkpoint, child: Checkpoint, config: Config) -> Checkpoint:
    """Fill `child`, which has fewer key-value heads, with those of each group pooled."""
    before, after = parent.settings.num_kv_heads, config.kv_heads
    rule, text = _rule(parent, config), f"{config.data}:{config.data_tokens}" if config.data else ""
    size = parent.settings.head_dim
    if text and config.text_column is not None:
        text += f"\0{config.text_column}"  # which no name of a file has in it
    for layer, of in ((layer, of) for layer in range(parent.settings.num_layers) for of in _attentions(parent)):
        old, new = parent[layer], child[layer]
        settled = _settled_biases(parent, child, layer) if of == "attn" else {}
        parts = [part for part in _per_kv_head(parent, layer, of) if part not in settled]
        if config.pool == "random":
            filled = {part: _fresh(old[part], part, config, child, f"{layer}/{part}") for part in parts}
        else:
            biases = [part for x in "qkv" if (part := f"{of}.{x}.bias") in old and part not in settled]
            pooling = Pooling(parent, layer, after, rule, biases, text, of)
            child.telling(pooling)
            filled = {part: _of_each_group(old[part], part, pooling, config) for part in parts}
            filled |= _readers(old, pooling)
        for part, expr in (filled | settled).items():
            again = config.repeated and part in parts
            new[part] = picked(expr, size, np.repeat(np.arange(after), before // after).tolist()) if again else expr
    if config.repeated:
        child.config[REPEATED] = {**child.config.get(REPEATED, {}), parent.which: after}
    child.noting(*_notes(parent, config, rule))
    promise = lossy(f"{before} key-value heads pooled to {after}: exact only where the heads of a group are equal")
    return child.with_rest_of(parent).promising(promise)


def _of_each_group(x: Expr, part: str, pooling: Pooling, config: Config) -> Expr:
    """The one head of each group, out of the heads of k or v, their biases or their norms."""
    size, kind = pooling.settings.head_dim, "keys" if part.split(".")[1].startswith("k") else "values"
    if config.pool == "first" and not pooling.rule.similar:
        return picked(x, size, pooling.neighbours[:, 0].tolist())
    if config.pool == "first":
        return Chosen(x, pooling["firsts"], count=pooling.count * size)
    a_norm = part == "attn.k_norm"
    turn = pooling[f"{kind}.encode"] if kind in pooling.rule.aligned and not a_norm else None
    scale = pooling[f"{kind}.scale"] if config.restore_norm and not a_norm else None
    return Heads(x, size, pooling.groups, count=pooling.count, turn_HAA=turn, scale_J=scale)


def _readers(old: Block, pooling: Pooling) -> dict[str, Expr]:
    """What reads the pooled heads: queries and output projection, turned as those were and in their order."""
    s, of, filled = pooling.settings, pooling.attention, {}
    readers = [(f"{of}.q", "keys", 0), (f"{of}.q.bias", "keys", 0), (f"{of}.o", "values", 1)]
    readers += [("attn.q_norm", "keys", 0)] if s.qk_norm == "full" else []
    for part, kind, axis in readers:
        if part not in old:
            continue
        if kind in pooling.rule.aligned:
            turn = pooling[f"{kind}.decode"]
            filled[part] = Heads(old[part], s.head_dim, pooling.queries, count=s.num_heads, turn_HAA=turn, axis=axis)
        elif pooling.rule.similar:
            filled[part] = Chosen(old[part], pooling["query_rows"], axis, count=s.num_heads * s.head_dim)
    return filled


def _settled_biases(parent: Checkpoint, child: Checkpoint, layer: int) -> dict[str, Expr]:
    """Biases that need no pooling, since the function can do without them."""
    s, old, settled = parent.settings, parent[layer], {}
    none = Fill(parent.dtype, (child.settings.num_kv_heads * s.head_dim,), 0.0)  # all of them, repeated or not
    if "attn.k.bias" in old and not s.rotary_dim and _free(parent, "keys"):
        # it adds the same to all scores of a query, which softmax does not see
        settled["attn.k.bias"] = none
    if "attn.v.bias" in old and s.o_bias and _free(parent, "values"):
        # attention weights sum to 1: what the bias adds to the output is always the same
        each = np.repeat(np.arange(s.num_kv_heads), s.num_heads // s.num_kv_heads).tolist()
        constant = picked(old["attn.v.bias"], s.head_dim, each)
        settled["attn.o.bias"] = Folded(old["attn.o.bias"], old["attn.o"], constant)
        settled["attn.v.bias"] = none
    return settled


def _fresh(x: Expr, part: str, config: Config, child: Checkpoint, key: str) -> Expr:
    """New heads as wide as the parent's: normal weights, no biases, gains of 1."""
    shape = (config.kv_heads * child.settings.head_dim, *x.shape[1:])
    if part.endswith((".k", ".v")):
        return Normal(x.dtype, shape, Statistics(x)["std"], config.seed, key)
    return Fill(x.dtype, shape, 1.0 - child.settings.norm_offset if part == "attn.k_norm" else 0.0)


def _attentions(parent: Checkpoint) -> tuple[str, ...]:
    """Self-attention, and cross-attention where there is one: they have one number of key-value heads."""
    return ("attn", "cross") if parent.settings.cross_size else ("attn",)


def _per_kv_head(parent: Checkpoint, layer: int, of: str) -> list[str]:
    """Parts of an attention that have a block of rows for each key-value head."""
    norm = ["attn.k_norm"] if parent.settings.qk_norm == "full" else []  # one for each head is the same for all
    return [p for p in (f"{of}.k", f"{of}.k.bias", f"{of}.v", f"{of}.v.bias", *norm) if p in parent[layer]]


def _rule(parent: Checkpoint, config: Config) -> Rule:
    aligned = [kind for kind in ("keys", "values") if config.pool == "aligned" and _free(parent, kind)]
    pool = "first" if config.pool == "first" else "mean"
    return Rule(pool, tuple(aligned), config.grouping == "similar", config.seed)


def _free(parent: Checkpoint, kind: str) -> bool:
    """Whether heads may be mapped, and what reads them mapped back, without a change of function."""
    s = parent.settings
    return s.clip_qkv is None and (kind == "values" or (s.qk_norm == "none" and not s.rope_interleaved))


# -- what is asked for ---------------------------------------------------------------------------------------------


def _check(parent: Checkpoint, config: Config) -> None:
    name, s = parent.family.name, parent.settings
    if s.latent_attention:
        what = (
            f"{name} has latent attention: all heads share one vector of {s.kv_rank} per token, and none can be pooled."
        )
        raise RekindleError(what, hint=f"a checkpoint of {_families()}")
    able = "num_kv_heads" in parent.family.keys
    if not able and not config.repeated:
        what = f"{name} has no number of key-value heads: in transformers each query head of it has its own."
        raise RekindleError(what, hint=f"a checkpoint of {_families()}; or --repeated, which saves nothing")
    if able and config.repeated:
        what = f"{name} has a number of key-value heads: repeated ones would only be larger."
        raise RekindleError(what, hint="without --repeated")
    if not able and any(row.packed for row in parent.family.block if row.part.startswith("attn.k")):
        what = f"The keys of a {name} stand in one tensor with its queries, and cannot be trained as repeated ones."
        raise RekindleError(what, hint=f"a checkpoint of {_families()}")
    problems = [
        *_wrong_order(parent, config),
        *_wrong_counts(s.num_heads, s.num_kv_heads, config.kv_heads),
        *_without_effect(s.num_kv_heads, config),
    ]
    if config.data_tokens < 1:
        problems.append(RekindleError(f"data_tokens is {config.data_tokens}.", hint="--data-tokens 64k"))
    if config.data and not _reads_text(parent):
        what = f"A text is not run through the decoder of a {name}: its keys are made of what its encoder read too."
        problems.append(RekindleError(what, hint="--tower encoder, or no --data"))
    if config.data and parent.made_of:
        problems.append(
            RekindleError(
                f"--data {config.data} is run through the checkpoint on disk, which earlier steps have changed.",
                where=parent.folder.path,
                hint="gqa as the first step, or another run for it, on what these steps write",
            )
        )
    if problems:
        raise together(problems)


def _wrong_order(parent: Checkpoint, config: Config) -> Iterator[RekindleError]:
    """Query heads that cannot change places: they have biases of their own, by distance, which all layers share."""
    if config.grouping == "similar" and parent.settings.relative_buckets:
        what = f"The query heads of a {parent.family.name} cannot change places: each has its own relative positions."
        yield RekindleError(what, hint="--grouping consecutive")


def _wrong_counts(heads: int, before: int, after: int) -> list[RekindleError]:
    whole = [n for n in range(1, heads + 1) if heads % n == 0 and (before % n == 0 or n % before == 0)]
    if after in whole:
        return []
    hint = "--kv-heads " + ", ".join(map(str, whole[:-1])) + f" or {whole[-1]}" if len(whole) > 1 else "--kv-heads 1"
    if after < 1:
        what = f"{after} key-value heads are too few."
    elif after > heads:
        what = f"{after} key-value heads are more than the {heads} query heads that would share them."
    elif heads % after:
        what = f"{heads} query heads cannot share {after} key-value heads: {heads} is not a multiple of {after}."
    elif after < before:
        what = f"{before} key-value heads cannot be pooled into {after}: {before} is not a multiple of {after}."
    else:
        what = f"{before} key-value heads cannot be repeated to {after}: {after} is not a multiple of {before}."
    return [RekindleError(what, where="--kv-heads", hint=hint)]


def _without_effect(before: int, config: Config) -> list[RekindleError]:
    """Options that would do nothing."""
    given = {
        "--grouping similar": config.grouping == "similar",
        "--data": config.data is not None,
        "--text-column": config.text_column is not None,
        "--restore-norm": config.restore_norm,
    }
    useless = [flag for flag, on in given.items() if on]
    if config.kv_heads >= before:
        why = f"{before} key-value heads are kept or repeated, not pooled"
    elif config.pool == "random":
        why = "random heads owe nothing to those there were"
    elif config.pool == "first":
        why, useless = "first heads are copied as they are", [flag for flag in useless if flag == "--restore-norm"]
    elif config.text_column is not None and not config.data:
        why, useless = "no --data is read", ["--text-column"]
    else:
        return []
    return [RekindleError(f"{flag} would have no effect.", why=why, hint=f"leave {flag} out") for flag in useless]


def _families() -> str:
    named = [f.model_type for f in FAMILIES.values() if "num_kv_heads" in f.keys]
    return f"{', '.join(named[:-1])} or {named[-1]}"


def _reads_text(parent: Checkpoint) -> bool:
    """Whether a text can be run through it: not so of a tower that writes for another one."""
    return parent.settings.output != "seq2seq"


def _notes(parent: Checkpoint, config: Config, rule: Rule) -> list[str]:
    notes = []
    if config.repeated:
        notes.append(
            "each pooled head is written for all of its queries: train moves them as one, and nothing is smaller"
        )
    if config.pool != "aligned" and _reads_text(parent) and any(_free(parent, kind) for kind in ("keys", "values")):
        flags = "--pool aligned" + ("" if config.data else " --data TEXT")
        notes.append(f"{flags} loses less than {config.pool} wherever both were measured: docs/methods/gqa.md")
    if config.pool == "aligned" and "keys" not in rule.aligned:
        reason = "clipped" if parent.settings.clip_qkv else "normalised"
        which = "values alone are aligned" if rule.aligned else "nothing is aligned"
        notes.append(f"queries and keys are {reason} in this model, so their heads cannot be turned: {which}")
    if rule.aligned and not config.data and _reads_text(parent):
        notes.append("heads are aligned by the weights alone; measured on text, with --data, pooling loses less")
    return notes
