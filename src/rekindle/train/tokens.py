"""Documents as memory-mapped tokens, split by document.

A corpus is tokenised once into a cache folder: `train.bin` and `validation.bin` hold the documents of each side
(see split.py) one after the other, each ended by the end-of-text token, as uint16 or uint32.

T tokens per sequence   N windows of T tokens
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rekindle.errors import RekindleError
from rekindle.progress import Progress
from rekindle.store.publish import explained, sync
from rekindle.train.order import sample_windows
from rekindle.train.split import held_out_share, no_text, place
from rekindle.train.text import Source, open_source

FORMAT = 1  # raise it when the same text would give other files
_DAY = 24 * 3600
_CHUNK_CHARS = 1 << 18  # per core: what is encoded at once, about 15 MB of working memory


@dataclass(frozen=True)
class Meta:
    dtype: str
    train_tokens: int
    validation_tokens: int
    train_documents: int
    validation_documents: int
    empty_documents: int
    largest_id: int


@dataclass(frozen=True)
class Corpus:
    """`train` and `validation` are flat arrays of token ids, mapped from disk."""

    train: np.ndarray
    validation: np.ndarray
    meta: Meta

    def windows(self, seq_len: int) -> int:
        """How many training windows of T tokens, each with the token that follows its last: one epoch."""
        return max(0, len(self.train) - 1) // seq_len

    def batch(self, first: int, count: int, seq_len: int, seed: int) -> np.ndarray:
        """Samples `first` to `first + count` of the endless training order [count, T + 1]; see order.py."""
        order = sample_windows(first, count, self.windows(seq_len), seed)
        return _gather(self.train, order * seq_len, seq_len + 1)

    def sample(self, split: Literal["validation", "train", "all"], tokens: int, seq_len: int) -> np.ndarray:
        """About `tokens` tokens in windows spread evenly over the documents of one side, or over all [N, T + 1].

        At least one window; raises RekindleError where the text is shorter than that.
        """
        sides = {"validation": [self.validation], "train": [self.train], "all": [self.train, self.validation]}
        streams = sides[split]
        total = sum(map(len, streams))
        streams = [stream for stream in streams if len(stream) > seq_len]
        if not streams:
            raise RekindleError(
                f"The {split} text is {total} tokens, too short for a sequence of {seq_len}.",
                hint="a smaller --seq-len, or more --data",
            )
        return np.concatenate([_spread(stream, tokens * len(stream) // total, seq_len) for stream in streams])


def sample_tokens(
    folder: Path, data: str, tokens: int, seq_len: int, split: Literal["validation", "train"] = "validation"
) -> np.ndarray:
    """About `tokens` tokens of one side of `data` in a checkpoint's own vocabulary [N, T], int64."""
    from rekindle.train.model import load_tokenizer

    corpus = open_corpus(data, load_tokenizer(folder))
    return corpus.sample(split, tokens, seq_len)[:, :-1]


def open_corpus(data: str, tokenizer: Any) -> Corpus:
    """The tokens of `data`, from the cache or made now.

    `tokenizer` is a transformers tokenizer. Raises RekindleError for data that is unreadable, holds no text, or
    cannot be split.
    """
    source = open_source(data)
    encoder = Encoder(tokenizer)
    key = _hash([FORMAT, source.listing(), encoder.fingerprint, encoder.end])
    folder = cache_folder() / "tokens" / key
    corpus = _open(folder)
    if corpus is None:
        _make(source, encoder, folder)
        corpus = _open(folder)
    if corpus is None:
        raise RekindleError("The tokens just written cannot be read back.", where=folder)
    return corpus


def cache_folder() -> Path:
    """REKINDLE_CACHE, or rekindle/ in the user's cache (XDG_CACHE_HOME, ~/.cache)."""
    if own := os.environ.get("REKINDLE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rekindle"


class Encoder:
    """Text to token ids, on all cores (the tokenizers library's own threads)."""

    def __init__(self, tokenizer: Any):
        known = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.sep_token_id)
        end = next((token for token in known if token is not None), None)
        if end is None:
            raise RekindleError(
                "The tokenizer has no end-of-text token to put between documents.",
                where=tokenizer.name_or_path,
                hint='set "eos_token" in tokenizer_config.json',
            )
        self.end: int = end
        self.largest: int = max(tokenizer.get_vocab().values())
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        self._slow = tokenizer
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()

    @property
    def fingerprint(self) -> str:
        description = self._backend.to_str() if self._backend else [repr(self._slow), self._slow.get_vocab()]
        return _hash(description)

    def __call__(self, texts: list[str]) -> Iterator[np.ndarray]:
        """The ids of each text, int64."""
        if self._backend is not None:
            for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False):
                yield np.array(encoding.ids, dtype=np.int64)
        else:
            for ids in self._slow(texts, add_special_tokens=False, verbose=False)["input_ids"]:
                yield np.array(ids, dtype=np.int64)


def _make(source: Source, encoder: Encoder, folder: Path) -> None:
    """Tokenise into `folder`, which appears whole; of two processes at it the second's work is dropped."""
    with explained(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
        try:
            meta = _write(source, encoder, partial)
            if not (meta.train_documents and meta.validation_documents):
                raise no_text(source)
            (partial / "meta.json").write_text(json.dumps(asdict(meta)), encoding="utf-8")
            for path in partial.iterdir():
                sync(path)
            if folder.exists():
                shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        except OSError:
            if _open(folder) is None:
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _sweep(cache: Path) -> None:
    """Remove what killed processes left: partial folders that nobody has written to for a day."""
    for partial in cache.glob(".partial-*"):
        written = max((path.stat().st_mtime for path in (partial, *partial.glob("*"))), default=0)
        if time.time() - written > _DAY:
            shutil.rmtree(partial, ignore_errors=True)


def _write(source: Source, encoder: Encoder, folder: Path) -> Meta:
    share = held_out_share(source)
    dtype = np.dtype("uint16" if encoder.largest < 2**16 else "uint32")
    documents, tokens, largest = [0, 0], [0, 0], 0
    with (
        open(folder / "train.bin", "wb") as train,
        open(folder / "validation.bin", "wb") as validation,
        Progress(f"tokenise {source.name}", None, "characters") as progress,
    ):
        for texts in _chunks(source.documents(), _CHUNK_CHARS * (os.cpu_count() or 1)):
            for text, ids in zip(texts, encoder(texts), strict=True):
                side = int(place(text) < share)
                (train, validation)[side].write(np.append(ids, encoder.end).astype(dtype).tobytes())
                documents[side] += 1
                tokens[side] += len(ids) + 1
                largest = max(largest, int(ids.max(initial=encoder.end)))
            progress.update(sum(map(len, texts)))
    return Meta(dtype.name, tokens[0], tokens[1], documents[0], documents[1], source.empty, largest)


def _chunks(documents: Iterable[str], chars: int) -> Iterator[list[str]]:
    chunk, size = [], 0
    for text in documents:
        chunk.append(text)
        size += len(text)
        if size >= chars:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _open(folder: Path) -> Corpus | None:
    """The corpus in a cache folder, or None where it is missing or not what its meta.json says."""
    try:
        meta = Meta(**json.loads((folder / "meta.json").read_text(encoding="utf-8")))
        # As plain arrays: slicing a memmap object costs ten times a plain array's slice.
        train, validation = (
            np.memmap(folder / f"{side}.bin", dtype=meta.dtype, mode="r").view(np.ndarray)
            for side in ("train", "validation")
        )
    except (OSError, ValueError, TypeError):
        return None
    if (len(train), len(validation)) != (meta.train_tokens, meta.validation_tokens):
        return None
    return Corpus(train, validation, meta)


def _spread(stream: np.ndarray, tokens: int, seq_len: int) -> np.ndarray:
    available = (len(stream) - 1) // seq_len
    wanted = min(available, max(1, tokens // seq_len))
    return _gather(stream, np.arange(wanted, dtype=np.int64) * available // wanted * seq_len, seq_len + 1)


def _gather(stream: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    return np.stack([stream[start : start + length] for start in starts]).astype(np.int64)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
