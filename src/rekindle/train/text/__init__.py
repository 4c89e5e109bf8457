"""Documents out of what `--data` names: files of any common format, folders, a dataset, or Python's own sources.

source.py  what a name stands for
folder.py  which files of a folder are read, and which are left out
format.py  what a file is, by its content
stream.py  lines, blocks and JSON values, as they come
read.py    rows and texts out of a file, streamed
row.py     the document of a row: its text, or its chat messages
pair.py    rows with two texts, a source and a target
docstrings.py  such pairs out of Python sources: what a docstring says, and the name of what it is about

Everything streams: no file is ever in memory whole.
"""

from rekindle.train.text.pair import PairReading
from rekindle.train.text.read import DOCUMENT_CHARS, cut
from rekindle.train.text.row import Chat, Document, Pair, Reading
from rekindle.train.text.source import Source, open_source

__all__ = ["DOCUMENT_CHARS", "Chat", "Document", "Pair", "PairReading", "Reading", "Source", "cut", "open_source"]
