"""Which documents are held out for validation.

Where the data has a split that is named for it, that one. Else a document's place in [0, 1) is the hash of its content;
those below the corpus's share are held out. So a duplicate never lands on both sides, and what is held out of a large
corpus is held out of a small one too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator

from rekindle.errors import RekindleError
from rekindle.train.text import Chat, Document, Source

_SMALL = 10**8  # bytes


def place(document: Document) -> float:
    if isinstance(document, Chat):
        text = json.dumps(document.messages, sort_keys=True, default=str)
    else:
        text = document if isinstance(document, str) else json.dumps([document.source, document.target])
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def sides(source: Source) -> Iterator[tuple[Iterator[Document], Callable[[Document], bool]]]:
    """All documents of a source, in one stream or two, each with what says of a document whether it is held out."""
    if source.held_out is None:
        share = held_out_share(source)
        yield source.documents(), lambda document: place(document) < share
    else:
        yield source.documents(), lambda document: False
        yield source.held_out.documents(), lambda document: True


def held_out_share(source: Source) -> float:
    """The place below which a document is held out: 5 % of a small corpus, less of a large one.

    In a small corpus it is moved so that both sides have a document; raises RekindleError where none can.
    """
    if source.size >= _SMALL:
        return 0.01 if source.size < 100 * _SMALL else 0.001
    least: list[float] = []
    greatest = 0.0
    for document in source.documents():
        here = place(document)
        greatest = max(greatest, here)
        if here not in least:
            least = sorted([*least, here])[:2]
    if not least:
        raise no_text(source)
    if len(least) == 1:
        raise RekindleError(
            "The data is one document, which cannot be split into training and validation.",
            where=source.name,
            hint="more documents: JSONL with one per line, or a folder of text files",
        )
    return min(max(0.05, least[1]), greatest)


def no_text(source: Source) -> RekindleError:
    return RekindleError(f"The data holds no text ({source.empty} empty documents).", where=source.name)
