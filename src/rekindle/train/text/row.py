"""The document of a row: the text in one of its columns, or the messages of a chat.

Chats are spelled in three ways: `messages` (role, content), ShareGPT's `conversations` (from, value), and Alpaca's
`instruction`, `input`, `output`. All become messages with a role and a content.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from rekindle.errors import RekindleError, some

FIELD = "text"
MESSAGES = ("messages", "conversations", "conversation")
ALPACA = ("instruction", "output")
_BESIDE = ("input", "system", "tools")  # what changes a chat that stands in another column
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
_KINDS = {str: "a string", list: "an array", bool: "true or false", type(None): "null"}
_SHOWN = 12  # names of columns in a sentence


@dataclass(frozen=True)
class Chat:
    """A conversation, to be written down by a tokenizer's chat template. `where` it was found."""

    messages: list[dict[str, Any]]
    where: str

    @property
    def text(self) -> str:
        """What was said, without a template."""
        return "\n\n".join(str(message.get("content") or "") for message in self.messages)


@dataclass(frozen=True)
class Pair:
    """A text to read, and one to write when it was read. `where` it was found."""

    source: str
    target: str
    where: str

    @property
    def text(self) -> str:
        """Both; nothing where there is nothing to read or nothing to write."""
        return f"{self.source}\n\n{self.target}" if self.source.strip() and self.target.strip() else ""


Document = str | Chat | Pair


@dataclass(frozen=True)
class Reading:
    """What of each row is read: `column`, or else `text`, or else a chat; with `chat` a chat before `text`."""

    column: str | None = None
    chat: bool = False

    @property
    def leading(self) -> str:
        """The column that is looked for first."""
        return self.column or FIELD

    def columns(self, names: Collection[str]) -> list[str] | None:
        """Those that a document is made of, the leading one first; None where no column will do."""
        if self.column is not None:
            leading = [[self.column]]
        else:
            leading = [[name] for name in MESSAGES] + [list(ALPACA)]
            leading.insert(len(leading) if self.chat else 0, [FIELD])
        for chosen in leading:
            if all(name in names for name in chosen):
                return chosen if chosen == [FIELD] else chosen + [name for name in _BESIDE if name in names]
        return None

    def document(self, row: Any, where: str) -> Document:
        """Raises RekindleError for a row without such a column, and for one that holds something else."""
        if not isinstance(row, dict):
            kind = _KINDS.get(type(row), "a number")
            raise RekindleError(
                f'There is no field "{self.column or FIELD}": the row is {kind}, no object.',
                where=where,
                hint=f'rows such as {{"{FIELD}": "..."}}; of plain lines of text a file whose name ends in .txt',
            )
        if not self.chat and isinstance(text := row.get(self.column or FIELD), str):
            return text  # of nearly all rows, at once
        chosen = self.columns(row)
        if chosen is None:
            raise self.no_column(row, [name for name, value in row.items() if isinstance(value, str)], where)
        leading, value = chosen[0], row[chosen[0]]
        if leading in MESSAGES and leading != self.column and isinstance(value, str):
            value = _parsed(value, leading, where)
        if leading == ALPACA[0] and leading != self.column:
            value = _alpaca(row, where)
        if isinstance(value, list) and (leading in MESSAGES or not value or isinstance(value[0], dict)):
            return _chat(value, row, leading, where)
        if not isinstance(value, str | None):
            raise RekindleError(f'"{leading}" holds {type(value).__name__}, not text.', where=where)
        return value or ""

    def no_column(self, names: Iterable[str], strings: Iterable[str], where: object) -> RekindleError:
        """What to say of a table with columns of these names, of which `strings` hold text."""
        able = list(strings)
        hint = "rows with a column of text, or of chat messages"
        if able:
            hint = f"--text-column {able[0]}" if len(able) == 1 else f"--text-column COLUMN: {few(able)}"
            hint += f'; or rename the column to "{FIELD}"'
        what = f'There is no field "{self.column or FIELD}"'
        what += f", only {known}." if (known := few(names)) else ": the row is empty."
        return RekindleError(what, where=where, hint=hint)


def _parsed(value: str, name: str, where: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise RekindleError(
            f'"{name}" holds a string that is no list of messages.', where=where, hint=f"--text-column {name} reads it"
        ) from None


def _alpaca(row: dict[str, Any], where: str) -> list[dict[str, Any]]:
    asked = [row[name] for name in ("instruction", "input") if row.get(name)]
    for name in ("instruction", "input", "output"):
        if not isinstance(row.get(name), str | None):
            raise RekindleError(f'"{name}" holds {type(row[name]).__name__}, not text.', where=where)
    if not asked and not row["output"]:
        return []
    return [{"role": "user", "content": "\n\n".join(asked)}, {"role": "assistant", "content": row["output"] or ""}]


def _chat(value: list[Any], row: dict[str, Any], name: str, where: str) -> Document:
    if row.get("tools"):
        raise RekindleError(
            'The chat stands beside a list of "tools", which is not read.', where=where, hint="leave such rows out"
        )
    messages = [_message(entry, name, where) for entry in value]
    system = row.get("system")
    if isinstance(system, str) and system.strip() and messages and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return Chat(messages, where)


def _message(entry: Any, name: str, where: str) -> dict[str, Any]:
    """role and content, and what else a template may ask for, such as tool_calls."""
    if isinstance(entry, dict):
        spelled = {key: value for key, value in entry.items() if value is not None}
        role, content = spelled.pop("role", None) or spelled.pop("from", None), spelled.pop("content", None)
        content = spelled.pop("value", None) if content is None else content
        if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
            content = "".join(str(part.get("text") or "") for part in content)
        if isinstance(role, str) and (isinstance(content, str) or (content is None and "tool_calls" in spelled)):
            return {"role": _ROLES.get(role, role), "content": content or "", **spelled}
    raise RekindleError(
        f'"{name}" holds {few([json.dumps(entry, default=str)])}, which is no message of text.',
        where=where,
        why='a message is {"role": "user", "content": "..."} or {"from": "human", "value": "..."}',
    )


def few(names: Iterable[str]) -> str:
    shown = [name if len(name) <= 60 else name[:57] + "..." for name in map(str, names)]
    return some(shown, _SHOWN)
