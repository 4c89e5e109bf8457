"""Documents as memory-mapped tokens, split by document.

A corpus is tokenised once into a cache folder: `train.bin` and `validation.bin` hold the documents of each side
(see split.py) one after the other, each ended by the end-of-text token, as uint16 or uint32. Where only answers have a
loss, `train.loss` and `validation.loss` hold a byte for each token: whether it has one as a target. In windows a token
without a loss stands as its complement, ~id, a negative number (see losses.inputs_and_targets).

T tokens per sequence   N windows of T tokens
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from rekindle.errors import RekindleError
from rekindle.progress import Progress
from rekindle.store.publish import sync
from rekindle.store.system import explained
from rekindle.train.encoder import CHUNK_CHARS, Encoder, chunks, short_hash, size_of
from rekindle.train.order import sample_windows
from rekindle.train.split import no_text, sides
from rekindle.train.text import Chat, Document, PairReading, Source, open_source

FORMAT = 2  # raise it when the same text would give other files
_DAY = 24 * 3600
Side = Literal["train", "validation"]


@dataclass(frozen=True)
class Meta:
    dtype: str
    train_tokens: int
    validation_tokens: int
    train_documents: int
    validation_documents: int
    empty_documents: int
    largest_id: int
    train_losses: int  # tokens that have a loss as a target
    validation_losses: int
    digest: str  # of all tokens and losses, in their order


@dataclass(frozen=True)
class Corpus:
    """`train` and `validation` are flat arrays of token ids, mapped from disk.

    `losses` are which of them have a loss, where not all have; windows without any are then left out everywhere.
    """

    train: np.ndarray
    validation: np.ndarray
    meta: Meta
    losses: dict[str, np.ndarray] = field(default_factory=dict)
    _useful: dict[tuple[str, int], np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    @property
    def digest(self) -> str:
        """What the text is, its order and the tokenizer included: equal for equal tokens and losses alone."""
        return self.meta.digest

    def windows(self, seq_len: int) -> int:
        """How many training windows of T tokens, each with the token that follows its last: one epoch."""
        return self._windows("train", seq_len)

    def batch(self, first: int, count: int, seq_len: int, seed: int) -> np.ndarray:
        """Samples `first` to `first + count` of the endless training order [count, T + 1]; see order.py."""
        return self._gather("train", sample_windows(first, count, self.windows(seq_len), seed), seq_len)

    def sample(self, split: Literal["validation", "train", "all"], tokens: int, seq_len: int) -> np.ndarray:
        """About `tokens` tokens in windows spread evenly over the documents of one side, or over all [N, T + 1].

        At least one window; raises RekindleError where the text is shorter than that.
        """
        sides: list[Side] = ["train", "validation"] if split == "all" else [split]
        total = sum(len(self._stream(side)) for side in sides)
        sides = [side for side in sides if self._windows(side, seq_len)]
        if not sides:
            answers = " with an answer in it" if self.losses else ""
            raise RekindleError(
                f"The {split} text is {total} tokens, too short for a sequence of {seq_len}{answers}.",
                hint="a smaller --seq-len, or more --data",
            )
        return np.concatenate([self._spread(s, tokens * len(self._stream(s)) // total, seq_len) for s in sides])

    def _stream(self, side: Side) -> np.ndarray:
        return self.train if side == "train" else self.validation

    def _windows(self, side: Side, seq_len: int) -> int:
        if self.losses:
            return len(self._answered(side, seq_len))
        return max(0, len(self._stream(side)) - 1) // seq_len

    def _answered(self, side: Side, seq_len: int) -> np.ndarray:
        """The windows that have a loss."""
        if (side, seq_len) not in self._useful:
            count = max(0, len(self._stream(side)) - 1) // seq_len
            targets = self.losses[side][1 : count * seq_len + 1].reshape(count, seq_len)
            self._useful[side, seq_len] = np.flatnonzero(targets.any(axis=1))
        return self._useful[side, seq_len]

    def _spread(self, side: Side, tokens: int, seq_len: int) -> np.ndarray:
        available = self._windows(side, seq_len)
        wanted = min(available, max(1, tokens // seq_len))
        return self._gather(side, np.arange(wanted, dtype=np.int64) * available // wanted, seq_len)

    def _gather(self, side: Side, windows: np.ndarray, seq_len: int) -> np.ndarray:
        if not self.losses:
            return _cut_out(self._stream(side), windows * seq_len, seq_len + 1).astype(np.int64)
        starts = self._answered(side, seq_len)[windows] * seq_len
        tokens = _cut_out(self._stream(side), starts, seq_len + 1).astype(np.int64)
        return np.where(_cut_out(self.losses[side], starts, seq_len + 1), tokens, ~tokens)


def sample_tokens(
    folder: Path, data: str, tokens: int, seq_len: int, split: Side = "validation", *, column: str | None = None
) -> np.ndarray:
    """About `tokens` tokens of one side of `data` in a checkpoint's own vocabulary [N, T], int64."""
    from rekindle.train.model import load_tokenizer

    corpus = open_corpus(data, load_tokenizer(folder), column)
    return corpus.sample(split, tokens, seq_len)[:, :-1]


def open_corpus(
    data: str,
    tokenizer: Any,
    column: str | None = None,
    *,
    mask_prompt: bool = False,
    pairs: PairReading | None = None,
    writer: Any = None,
) -> Corpus:
    """The tokens of `data`, from the cache or made now; of rows, the text or chat in `column` (see text.Reading).

    `tokenizer` is a transformers tokenizer. With `mask_prompt` only the answers of chats have a loss; with `pairs` only
    targets, each after its source, in the tokens of `writer` where that is given. Raises RekindleError for data that is
    unreadable, holds no text, cannot be split, or changes while it is read.
    """
    source = open_source(data, column, chat=mask_prompt, reading=pairs)
    encoder = Encoder(tokenizer, mask_prompt=mask_prompt, pairs=pairs is not None, writer=writer)
    key = short_hash([FORMAT, source.listing(), asdict(source.reading), encoder.fingerprint])
    folder = cache_folder() / "tokens" / key
    corpus = _open(folder, encoder.masks)
    if corpus is None:
        _make(source, encoder, folder)
        corpus = _open(folder, encoder.masks)
    if corpus is None:
        raise RekindleError("The tokens just written cannot be read back.", where=folder)
    if mask_prompt and not (corpus.meta.train_losses or corpus.meta.validation_losses):
        raise _no_answers(source)
    return corpus


def cache_folder() -> Path:
    """REKINDLE_CACHE, or rekindle/ in the user's cache (XDG_CACHE_HOME, ~/.cache)."""
    if own := os.environ.get("REKINDLE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rekindle"


def _make(source: Source, encoder: Encoder, folder: Path) -> None:
    """Tokenise into `folder`, which appears whole; of two processes at it the second's work is dropped.

    What is there already gives way only where it cannot be read: the other process may have it open.
    """
    with explained(folder, "REKINDLE_CACHE=FOLDER, for a cache in another place"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
        try:
            before = source.listing()
            meta = _write(source, encoder, partial)
            if source.listing() != before:
                raise RekindleError("The data changed while it was read.", where=source.name, hint="the same once more")
            if not (meta.train_documents and meta.validation_documents):
                raise no_text(source)
            (partial / "meta.json").write_text(json.dumps(asdict(meta)), encoding="utf-8")
            for path in partial.iterdir():
                sync(path)
            if _open(folder, encoder.masks) is None:
                shutil.rmtree(folder, ignore_errors=True)
                partial.rename(folder)
        except OSError:
            if _open(folder, encoder.masks) is None:
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _no_answers(source: Source) -> RekindleError:
    """What to say of chats without an answer; they are read once more for their roles."""
    roles = sorted({str(m["role"]) for d in source.documents() if isinstance(d, Chat) for m in d.messages})
    return RekindleError(
        f"mask_prompt asks for a loss on answers, but no chat has one: the roles are {', '.join(roles[:12])}.",
        where=source.name,
        why="an answer is a message of the role assistant, or gpt",
        hint="other --data, or without --mask-prompt",
    )


def _sweep(cache: Path) -> None:
    """Remove what killed processes left: partial folders that nobody has written to for a day."""
    for partial in cache.glob(".partial-*"):
        written = max((path.stat().st_mtime for path in (partial, *partial.glob("*"))), default=0)
        if time.time() - written > _DAY:
            shutil.rmtree(partial, ignore_errors=True)


def _write(source: Source, encoder: Encoder, folder: Path) -> Meta:
    dtype = np.dtype("uint16" if encoder.largest < 2**16 else "uint32")
    documents, tokens, losses, largest = [0, 0], [0, 0], [0, 0], 0
    digest = hashlib.sha256()
    with (
        ExitStack() as files,
        Progress(f"tokenise {source.name}", None, "B") as progress,
    ):
        bins = [files.enter_context(open(folder / f"{side}.bin", "wb")) for side in get_args(Side)]
        masks = [files.enter_context(open(folder / f"{side}.loss", "wb")) for side in get_args(Side)]
        for texts, held_out in _chunks(source):
            for document, (ids, loss) in zip(texts, encoder.documents(texts), strict=True):
                side = int(held_out(document))
                written = ids.astype(dtype).tobytes()
                bins[side].write(written)
                digest.update(bytes([side]) + written)
                if loss is not None:
                    masks[side].write(loss.tobytes())
                    digest.update(loss.tobytes())
                documents[side] += 1
                tokens[side] += len(ids)
                losses[side] += len(ids) if loss is None else int(loss.sum())
                largest = max(largest, int(ids.max(initial=0)))
            progress.update(sum(map(size_of, texts)))
    if not encoder.masks:
        for side in get_args(Side):
            (folder / f"{side}.loss").unlink()
    return Meta(
        dtype=dtype.name,
        train_tokens=tokens[0],
        validation_tokens=tokens[1],
        train_documents=documents[0],
        validation_documents=documents[1],
        empty_documents=source.empty + (source.held_out.empty if source.held_out else 0),
        largest_id=largest,
        train_losses=losses[0],
        validation_losses=losses[1],
        digest=digest.hexdigest()[:32],
    )


def _chunks(source: Source) -> Iterator[tuple[list[Document], Callable[[Document], bool]]]:
    for documents, held_out in sides(source):
        for texts in chunks(documents, CHUNK_CHARS * (os.cpu_count() or 1)):
            yield texts, held_out


def _open(folder: Path, masked: bool) -> Corpus | None:
    """The corpus in a cache folder, or None where it is missing or not what its meta.json says.

    `masked`: with what says which tokens have a loss.
    """
    try:
        meta = Meta(**json.loads((folder / "meta.json").read_text(encoding="utf-8")))
        train, validation = (_mapped(folder / f"{side}.bin", meta.dtype) for side in get_args(Side))
        losses = {side: _mapped(folder / f"{side}.loss", "bool") for side in get_args(Side)} if masked else {}
    except (OSError, ValueError, TypeError):
        return None
    lengths = (meta.train_tokens, meta.validation_tokens)
    if (len(train), len(validation)) != lengths or (losses and tuple(map(len, losses.values())) != lengths):
        return None
    return Corpus(train, validation, meta, losses)


def _mapped(path: Path, dtype: str) -> np.ndarray:
    """As a plain array: slicing a memmap object costs ten times a plain array's slice."""
    return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)


def _cut_out(stream: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    return np.stack([stream[start : start + length] for start in starts])
