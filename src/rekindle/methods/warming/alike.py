"""What the halves of a warm start may have as one, and what they must have alike."""

from __future__ import annotations

from collections.abc import Iterator

from rekindle.edit.vocabulary import unlike
from rekindle.errors import RekindleError
from rekindle.methods.warming.halves import ADAPTED, Half

# Settings that decide which tensors a half has, and how large they are
SIZES = ("vocab_size", "hidden_size", "num_heads", "intermediate_size", "context", "token_types", "num_layers")


def shared_by_default(reads: Half, writes: Half) -> str:
    """The embeddings, as published: where both halves come from one SRC, or where one of them is drawn.

    Those of two checkpoints are not one matrix, did they have one vocabulary: each half was trained with its own.
    """
    if writes.table.name in ADAPTED:
        return "none"  # as published
    one = reads.parent is writes.parent or None in (reads.parent, writes.parent)
    return "embeddings" if one and not [*check_sharing(reads, writes, "embeddings")] else "none"


def check_sharing(reads: Half, writes: Half, share: str) -> Iterator[RekindleError]:
    """Why they cannot have that as one."""
    if share == "none":
        return
    hint = "--share none"
    ours, theirs = reads.settings(), writes.settings()
    if share == "all":
        if reads.table.model_type != writes.table.model_type:
            what = f"A {reads.table.model_type} and a {writes.table.model_type} cannot be one."
            yield RekindleError(what, why="--share all is of two halves of one kind", hint=hint)
            return
        if None not in (reads.parent, writes.parent) and reads.parent is not writes.parent:
            what = "The halves come from two checkpoints, and --share all has room for one."
            yield RekindleError(what, hint=f"--decoder same with it; or {hint}")
        if reads.layers != writes.layers:
            what = "The halves have other layers of their SRC, and --share all makes one of both."
            yield RekindleError(what, hint=f"the same --encoder-layers and --decoder-layers; or {hint}")
    for name in SIZES if share == "all" else SIZES[:2]:
        if (here := getattr(ours, name)) != (there := getattr(theirs, name)):
            what = f"The encoder's {name} is {here}, the decoder's {there}: they cannot be one."
            yield RekindleError(what, why=f"--share {share}", hint=hint)
    if ours.vocab_size == theirs.vocab_size and (differ := unlike(reads.like, writes.like)):
        yield RekindleError(f"The tokenizers differ: {differ}.", why=f"--share {share}", hint=hint)


def check_one_dtype(reads: Half, writes: Half) -> Iterator[RekindleError]:
    found = {half.name: half.parent.dtype for half in (reads, writes) if half.parent is not None}
    if len(set(found.values())) > 1:
        what = f"The encoder's weights are {found['encoder']}, the decoder's {found['decoder']}."
        yield RekindleError(what, why="one model has one dtype", hint="rekindle rewrite SRC NEW --dtype ..., first")


def _check_merged(reads: Half, writes: Half, cross: str) -> Iterator[RekindleError]:
    name = writes.table.name
    if cross != "random":
        what = f"A {name} has no cross-attention that could begin as anything: --cross {cross}."
        yield RekindleError(what, why="its self-attention reads what the encoder has read as well", hint="no --cross")
    if None not in (reads.parent, writes.parent) and reads.parent is not writes.parent:
        what = f"The halves of a {name} have one embedding matrix, and these two checkpoints each their own."
        yield RekindleError(what, hint="--decoder same")
    if not writes.like.settings.tie_word_embeddings:
        yield RekindleError(f"A {name}'s head is its embeddings, and this one's is not.", where=writes.like.folder.path)


def check_cross(reads: Half, writes: Half, cross: str) -> Iterator[RekindleError]:
    """A branch that is 0 changes nothing where norms stand before and after branches alone."""
    if writes.settings().merged_attention:
        yield from _check_merged(reads, writes, cross)
        return
    if cross == "random":
        return
    if writes.parent is None:
        what = f"The decoder is drawn, and has no self-attention that --cross {cross} could begin as."
        yield RekindleError(what, hint="--cross random")
    elif writes.table.name in ADAPTED and reads.settings().hidden_size != writes.settings().hidden_size:
        sizes = reads.settings().hidden_size, writes.settings().hidden_size
        what = f"The halves are {sizes[0]} and {sizes[1]} wide: self-attention cannot read what cross-attention will."
        yield RekindleError(what, hint="--cross random")
    elif cross == "silent" and writes.settings().norm_order not in ("pre", "sandwich"):
        what = f"Cross-attention of a {writes.table.model_type} cannot be silent."
        why = "it normalises the sum of each branch and what came before, and so once more for each branch"
        yield RekindleError(what, why=why, hint="--cross copy or random; or a gpt2 or gemma2 as the decoder")
