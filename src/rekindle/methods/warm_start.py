"""Warm start: an encoder-decoder whose halves are filled from checkpoints that there are.

encoder   A bert, bert-generation, roberta or modernbert without a head: its hidden states stay what they were. A bert
          becomes a bert-generation, whose positions have the vector of token type 0 added, the only one that occurs.
decoder   The first three, or a gpt2. Self-attention now looks back only, and each layer has cross-attention.
both      Or a gemma2 each, of one size or of two, which become a T5Gemma: the encoder's layers now look both ways. Or
          one gemma3_text twice, a T5Gemma 2: its decoder's self-attention looks at what was read as well. A llama,
          mistral or qwen becomes of Gemma's kind first, which is lossy (see warming.sandwich).
share     embeddings: one matrix of both halves; all: one of whatever both have, which is all but cross-attention. It is
          written twice, and the config says what is one (`tied_weights`), so that any library reads it and `train` ties
          it again.
cross     random, as published; copy: what self-attention is; silent: that with an output of 0, so that a gpt2 writes
          what it wrote before, whatever it reads. Where a norm follows (gemma2's), its gain is 0: a norm of zeros has a
          slope of 1 / sqrt(eps). A layer that normalises the sum with its branches cannot be silent.

Preserves the encoder's function exactly (of a BERT in 16 bits but for the rounding of those sums; of a gemma2 not), the
decoder's where cross-attention is silent; of the two as one nothing.

Departures from the paper: of a BERT's decoder no head is new but its bias, as `bert-generation` has none beside the
embeddings; positions of a GPT-2 stay as many as they are.

Source: Rothe, Narayan and Severyn 2020, "Leveraging Pre-trained Checkpoints for Sequence Generation Tasks", arXiv
1907.12461, section 3 and table 1; of decoders Zhang et al. 2025, "Encoder-Decoder Gemma", arXiv 2504.06225, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from rekindle.anatomy import Role
from rekindle.anatomy.towers import Towers
from rekindle.config import Count, option
from rekindle.edit import ONCE, TIED, Checkpoint, Expr, Fill, Normal, lossy, united
from rekindle.edit.arithmetic import Fresh
from rekindle.edit.special import WRITER, Tokens, special_tokens, tokenizer_of
from rekindle.edit.vocabulary import unlike
from rekindle.errors import RekindleError, together
from rekindle.methods.warming.alike import check_cross, check_one_dtype, check_sharing, shared_by_default
from rekindle.methods.warming.eye import CONFIG, eye
from rekindle.methods.warming.halves import ADAPTED, CLASSES, RANDOM, Half, halves_of
from rekindle.methods.warming.sandwich import AS_GEMMA, as_gemma
from rekindle.methods.warming.variants import ALONE, alone, as_published


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: str = option(RANDOM, help="SRC of what reads; random, in the decoder's size; or random:SRC, in its size")
    decoder: str = option(RANDOM, help="SRC of what writes; same: that of the encoder; random, or random:SRC")
    variant: str = option("", help="one of the paper's by name, as bert2bert or bertshare: it sets share and random")
    share: Literal["auto", "none", "embeddings", "all"] = option(
        "auto", help="what both halves have as one; auto: embeddings, where both have one SRC or one half is drawn"
    )
    cross: Literal["random", "copy", "silent"] = option("random", help="how cross-attention begins")
    encoder_layers: str = option("all", help="which layers of its SRC the encoder has: all, every:2, first:6 or 0,3,5")
    decoder_layers: str = option("all", help="the same of the decoder")
    data: str | None = option(None, help="llama, mistral, qwen: text to measure branches on (default: stdlib)")
    data_tokens: Count = option(Count(65536), help="tokens of that text")
    one_copy: bool = option(False, help="write what is one once: half the size, and read by rekindle.load alone")
    seed: int = option(0, help="seed of what is drawn")


def warm_start(parents: Mapping[str, Checkpoint], config: Config) -> Checkpoint:
    if config.variant.lower() == ALONE:
        return alone(parents, config)
    config, parents = as_published(parents, config), _of_gemma_s_kind(parents, config)
    layers = {"encoder": config.encoder_layers, "decoder": config.decoder_layers}
    reads, writes = halves_of(parents, config.encoder, config.decoder, layers)
    share = shared_by_default(reads, writes) if config.share == "auto" else config.share
    _check(reads, writes, share, config.cross)
    child = _empty(reads, writes)
    if child.family.opaque:
        child.tensors |= eye(child.origin.dtype, reads.like.settings.hidden_size, config.seed)
    one: dict[str, str] = {}
    for role, (name, shape, _) in child.rows.items():
        half, first = (reads if role.tower == reads.name else writes), role._replace(tower=reads.name)
        both = first in child.rows and _is_one(role.part, share)
        if both and half is writes:
            child.tensors[role], one[name] = child.tensors[first], child.rows[first][0]
            continue
        x = _cross(writes, role, config.cross) if role.part.startswith("cross.") else half.tensor(role)
        if x is None and (both or (role.part == "embed" and role._replace(tower=writes.name) not in child.rows)):
            x = writes.tensor(role)
        child.tensors[role] = _new(child, role, shape, config.seed) if x is None else x
    if one:
        child.config |= {TIED: one, **({ONCE: True} if config.one_copy else {})}
    elif config.one_copy:
        raise RekindleError("The halves have nothing as one that could be written once.", hint="no --one-copy")
    if config.one_copy:
        child.noting("plain transformers draws anew what is written once here: rekindle.load reads it")
    return child.promising(_promise(reads, writes, config.cross))


def _of_gemma_s_kind(parents: Mapping[str, Checkpoint], config: Config) -> Mapping[str, Checkpoint]:
    """Those that can become it, so that a class has room for them; raises RekindleError where nothing is measured."""
    able = [name for name, parent in parents.items() if parent.family.model_type in AS_GEMMA]
    if not able and config.data:
        raise RekindleError("Nothing is measured on a text here.", hint="without --data")
    text = f"{config.data or 'stdlib'}:{config.data_tokens}"
    return {name: as_gemma(parent, text) if name in able else parent for name, parent in parents.items()}


def _promise(reads: Half, writes: Half, cross: str) -> Any:
    """Of the whole, and of each half beside its own source."""
    merged = writes.settings().merged_attention  # which adds nothing: where nothing was read, it is self-attention
    kept = {reads.name: reads.kept, writes.name: writes.kept and (cross == "silent" or merged)}
    halves = {name: "exact" if exact else "lossy" for name, exact in kept.items()}
    each = " and ".join(f"the {name} by itself is {kind}" for name, kind in halves.items())
    each += ", where it reads nothing" if merged else ""
    return lossy(f"its decoder looks at what the encoder has read, which it never did; {each}", halves)


def _check(reads: Half, writes: Half, share: str, cross: str) -> None:
    problems = [
        *check_one_dtype(reads, writes),
        *check_sharing(reads, writes, share),
        *check_cross(reads, writes, cross),
    ]
    if problems:
        raise together(problems)


# -- what they are as one ----------------------------------------------------------------------------------------


def _empty(reads: Half, writes: Half) -> Checkpoint:
    """The child, to be filled."""
    pair, halves = CLASSES[reads.table.name, writes.table.name], (reads, writes)
    tokens = special_tokens(writes.like, apart=pair.name in ADAPTED)  # whose classes hide what looks like padding
    config = _config(pair, reads, writes, tokens)
    said = [half.parent for half in halves if half.parent is not None] + [half.like for half in halves]
    used = list({id(one): one for one in said}.values())
    child = united(used, used[0])
    of_sizes = [note for one in used if one.folder.bare for note in one.folder.notes]
    child.notes = [note for note in child.notes if note not in of_sizes]  # which is about its weights
    files = {**child.files, **tokens.files}
    child = replace(child, family=pair, settings=pair.settings(config), config=config, tensors={}, files=files)
    if unlike(reads.like, writes.like):
        theirs = tokenizer_of(writes.like)
        child = replace(child, files=child.files | theirs, config=child.config | {WRITER: sorted(theirs)})
        child.noting(f"its tokenizer is the encoder's; the decoder's, which is another one, lies in {WRITER}")
    return child.noting(tokens.told)


def _config(pair: Towers, reads: Half, writes: Half, tokens: Tokens) -> dict[str, Any]:
    """A class of its own looks for tokens in the config of each half as well, and says above them what is tied."""
    own_class, merged = pair.name in ADAPTED, writes.table.fixed.get("merged_attention", False)
    read, written = (half.like.settings.hidden_size for half in (reads, writes))
    tied = writes.like.settings.tie_word_embeddings or not own_class
    decides = {
        "cross_size": 0 if merged else read,
        "cross_projected": read != written and not own_class,
        "tie_word_embeddings": tied,
    }
    config: dict[str, Any] = {
        "architectures": [*pair.classes.values()],
        "model_type": pair.model_type,
        "is_encoder_decoder": True,
        **tokens.ids,
    }
    if own_class:
        size = writes.like.settings.vocab_size
        config |= {"vocab_size": size, "tie_word_embeddings": tied, **tokens.of_a_half}
    if pair.opaque:
        config["encoder"] = dict(CONFIG)
    for half, own in ((reads, reads.settings()), (writes, writes.settings(**decides))):
        made = half.table.config(own, half.like.config, half.like.family)
        config = half.table.put(config, made | (tokens.of_a_half if own_class else {}))
    return config


def _is_one(part: str, share: str) -> bool:
    """Whether both halves have it as one, where both have it."""
    return share == "all" or (share == "embeddings" and part == "embed")


def _cross(writes: Half, role: Role, how: str) -> Expr | None:
    """What cross-attention begins as; None where it is drawn."""
    if how == "random" or role.layer < 0:
        return None
    x = writes.tensor(role._replace(part=role.part.replace("cross.", "attn.", 1)))
    if x is None:
        return None
    s = writes.settings()
    last = ("cross.post_norm",) if s.norm_order == "sandwich" else ("cross.o", "cross.o.bias")
    return Fill(x.dtype, x.shape, -s.norm_offset) if how == "silent" and role.part in last else Fresh(x)


def _new(child: Checkpoint, role: Role, shape: tuple[int, ...], seed: int) -> Expr:
    """As the classes draw it: N(0, initializer_range), biases 0, gains of norms 1."""
    dtype, tower = child.origin.dtype, child.family.towers[role.tower or "decoder"]
    if role.part.endswith(".bias"):
        return Fill(dtype, shape, 0.0)
    if role.part.endswith("norm"):
        return Fill(dtype, shape, 1.0 - tower.fixed.get("norm_offset", 0.0))
    std = tower.own(child.config).get("initializer_range", 0.02)
    return Normal(dtype, shape, std, seed, str(role))
