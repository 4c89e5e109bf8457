"""Documents to token ids, on all cores (the tokenizers library's own threads)."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from rekindle.errors import RekindleError
from rekindle.train.chat import Template
from rekindle.train.text import Chat, Document, Pair, cut
from rekindle.train.text.source import characters

log = logging.getLogger(__name__)

CHUNK_CHARS = 1 << 18  # per core: what is encoded at once, about 15 MB of working memory
_PIECE_CHARS = 1 << 20  # a longer document is encoded piece by piece, between lines where it has any


class Encoder:
    """A tokenizer, and what stands between documents.

    That is the end-of-text token, or the beginning's or the separator's where there is none. A tokenizer without any
    has a blank line there, or nothing where it knows no line breaks. A chat ends as its template ends it, and with the
    end-of-text token where the template does not write that.
    """

    def __init__(self, tokenizer: Any, *, mask_prompt: bool = False, pairs: bool = False, writer: Any = None):
        """`writer`: the tokenizer of targets, where that is another one."""
        self.mask_prompt, self.pairs = mask_prompt, pairs
        self._writer = self if writer is None else Encoder(writer, pairs=True)
        self.largest: int = max(tokenizer.get_vocab().values())
        if writer is not None:
            self.largest = max(self.largest, self._writer.largest)
        self.template = Template(tokenizer)
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        self._slow = tokenizer
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()
        self._ends = [token for token in (tokenizer.eos_token_id, tokenizer.sep_token_id) if token is not None]
        if pairs and not self._ends:
            raise RekindleError(
                "The tokenizer has no end-of-text token: nothing would say where a target ends.",
                where=tokenizer.name_or_path or None,
                hint="eos_token in its tokenizer_config.json",
            )
        known = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.sep_token_id)
        self.end: list[int] = [token for token in known if token is not None][:1] or self._blank_line(tokenizer)

    def _blank_line(self, tokenizer: Any) -> list[int]:
        (ids,) = self(["\n\n"])
        unknown = getattr(tokenizer, "unk_token_id", None)
        end = [] if unknown is not None and unknown in ids else ids.tolist()
        log.warning(
            "%s has no end-of-text token: %s parts the documents (eos_token in tokenizer_config.json sets one)",
            tokenizer.name_or_path or "the tokenizer",
            "a blank line" if end else "nothing",
        )
        return end

    @property
    def masks(self) -> bool:
        """Whether some tokens have no loss."""
        return self.mask_prompt or self.pairs

    @property
    def fingerprint(self) -> str:
        description = self._backend.to_str() if self._backend else [repr(self._slow), self._slow.get_vocab()]
        how = ["pairs", self._ends] if self.pairs else [self.mask_prompt]
        how += [] if self._writer is self else [self._writer.fingerprint]
        return short_hash([description, self.end, self.template.source, *how])

    def __call__(self, texts: list[str]) -> Iterator[np.ndarray]:
        """The ids of each text, int64."""
        short = [text for text in texts if len(text) <= _PIECE_CHARS]
        encoded = self._encoded(short)
        for text in texts:
            if len(text) <= _PIECE_CHARS:
                yield next(encoded)
            else:
                yield np.concatenate([next(self._encoded([piece])) for piece in _pieces(text)])

    def _encoded(self, texts: list[str], special: bool = False) -> Iterator[np.ndarray]:
        if self._backend is not None:
            for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=special):
                yield np.array(encoding.ids, dtype=np.int64)
        elif texts:
            for ids in self._slow(texts, add_special_tokens=special, verbose=False)["input_ids"]:
                yield np.array(ids, dtype=np.int64)

    def _of_pairs(self, pairs: Sequence[Document]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Source and target of each, one after the other, both as their tokenizer begins and ends a text by itself.

        And with the end-of-text token, where it writes none. Only the target has a loss.
        """
        texts = zip(*map(_source_and_target, pairs), strict=True)
        sources, targets = (one.whole(list(of)) for one, of in zip((self, self._writer), texts, strict=True))
        for source, target in zip(sources, targets, strict=True):
            yield np.concatenate([source, target]), np.repeat([False, True], [len(source), len(target)])

    def whole(self, texts: list[str]) -> Iterator[np.ndarray]:
        """Each text as its tokenizer begins and ends one by itself, with the end-of-text token where it writes none."""
        return map(self._ended, self._encoded(texts, special=True))

    def _ended(self, ids: np.ndarray) -> np.ndarray:
        return ids if len(ids) and ids[-1] in self._ends else np.append(ids, self._ends[:1]).astype(np.int64)

    def documents(self, documents: Sequence[Document]) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """For each document its ids with their end, and which of them have a loss, None being all of them."""
        if self.pairs:
            yield from self._of_pairs(documents)
            return
        texts = [self._written(d) for d in documents]
        spans = [self._answers(d, text) for d, text in zip(documents, texts, strict=True)]
        wanted = (text[:end] for text, cuts in zip(texts, spans, strict=True) for end in (None, *sum(cuts, ())))
        encoded = (ids for some in chunks(wanted, CHUNK_CHARS * (os.cpu_count() or 1)) for ids in self(some))
        for document, cuts in zip(documents, spans, strict=True):
            ids = next(encoded)
            loss = np.zeros(len(ids), bool) if self.mask_prompt else None
            for _ in cuts:
                before, after = next(encoded), next(encoded)
                if not all(np.array_equal(part, ids[: len(part)]) for part in (before, after)):
                    raise _unclear(document)
                assert loss is not None
                loss[len(before) : len(after)] = True
            if isinstance(document, str) or not set(self.end) & set(ids.tolist()):
                ids = np.append(ids, self.end).astype(np.int64)
                answered = loss is not None and isinstance(document, Chat) and _answered(document)
                loss = None if loss is None else np.append(loss, np.full(len(self.end), answered))
            yield ids, loss

    def _written(self, document: Document) -> str:
        if isinstance(document, Chat):
            return self.template.write(document)
        return document if isinstance(document, str) else document.text

    def _answers(self, document: Document, text: str) -> list[tuple[int, int]]:
        if not self.mask_prompt:
            return []
        if isinstance(document, Chat):
            return self.template.answers(document, text)
        raise RekindleError(
            f"mask_prompt asks for a loss on answers, but this document is plain text: {text[:60]!r}.",
            where="option mask_prompt",
            hint="rows with messages, conversations, or instruction and output; or without --mask-prompt",
        )


def chunks(texts: Iterable[Any], chars: int) -> Iterator[list[Any]]:
    """Texts or documents, so many together that they have about `chars` characters."""
    chunk, size = [], 0
    for text in texts:
        chunk.append(text)
        size += size_of(text)
        if size >= chars:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def size_of(document: Document) -> int:
    return len(document if isinstance(document, str) else document.text)


def short_hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def _pieces(text: str) -> Iterator[str]:
    while len(text) > _PIECE_CHARS:
        end = cut(text, _PIECE_CHARS)
        yield text[:end]
        text = text[end:]
    yield text


def _source_and_target(document: Document) -> tuple[str, str]:
    if isinstance(document, Pair):
        return characters(document.source), characters(document.target)
    shown = document if isinstance(document, str) else document.text
    raise RekindleError(
        f"seq2seq reads a source and a target text, but this document is one text: {shown[:60]!r}.",
        where="option data",
        hint="rows with the columns source and target, or --source-column and --target-column",
    )


def _answered(chat: Chat) -> bool:
    return chat.messages[-1]["role"] == "assistant"


def _unclear(document: Document) -> RekindleError:
    return RekindleError(
        "An answer begins or ends inside a token, so that a loss on answers alone would be on other tokens.",
        where=document.where if isinstance(document, Chat) else None,
        why="the chat template puts no special token or line break there",
        hint="without --mask-prompt",
    )
