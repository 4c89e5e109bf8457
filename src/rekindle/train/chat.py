"""Chats written down by a tokenizer's own template, and where in them the assistant answers.

An answer is what the template writes of an assistant's message after the prompt that asks for it
(`add_generation_prompt`), its end-of-turn token included: what a served model has to generate. It is found by writing
the chat without the answer and with it, and checked twice: both must be beginnings of the whole, as text and as tokens.
A template that marks its answers itself ({% generation %}) is taken at its word.
"""

from __future__ import annotations

import re
from typing import Any

from rekindle.errors import RekindleError, first_line
from rekindle.train.text import Chat
from rekindle.train.text.source import characters

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Template:
    """The chat template of a transformers tokenizer."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        found = getattr(tokenizer, "chat_template", None)
        self.source: str | None = found.get("default") if isinstance(found, dict) else found

    def write(self, chat: Chat, upto: int | None = None, prompt: bool = False) -> str:
        """The first `upto` messages, or all; with `prompt` what asks for an answer. Raises RekindleError."""
        if self.source is None:
            raise RekindleError(
                "The rows are chats, but the tokenizer has no chat template to write them down with.",
                where=chat.where,
                hint="copy chat_template.jinja of the instruction-tuned checkpoint into the folder",
            )
        try:
            text = self._tokenizer.apply_chat_template(
                chat.messages[:upto], tokenize=False, add_generation_prompt=prompt
            )
        except Exception as error:  # the template is a program of others, and raises what it likes
            raise RekindleError(
                f"The tokenizer's chat template refuses this chat: {first_line(error)}.",
                where=chat.where,
            ) from None
        return characters(text)

    def answers(self, chat: Chat, whole: str) -> list[tuple[int, int]]:
        """Where in `whole`, the chat written down, each answer begins and ends."""
        if _MARKED.search(self.source or ""):
            return self._marked(chat, whole)
        found = []
        for number, message in enumerate(chat.messages):
            if message["role"] != "assistant":
                continue
            if number == 0:
                raise RekindleError(
                    "The chat begins with an answer, which no prompt asks for.",
                    where=chat.where,
                    hint="leave such chats out, or without --mask-prompt",
                )
            before, after = self.write(chat, number, prompt=True), self.write(chat, number + 1)
            end = _end(whole, len(before), after, message["content"])
            if not (whole.startswith(before) and after.startswith(before) and end):
                raise RekindleError(
                    f"The chat template does not tell where answer {len(found) + 1} stands.",
                    where=chat.where,
                    why="what it writes with the answer does not begin with what it writes before it",
                    hint="without --mask-prompt, or a template with {% generation %} around the answers",
                )
            found.append((len(before), end))
        return found

    def _marked(self, chat: Chat, whole: str) -> list[tuple[int, int]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        written, spans = render_jinja_template(
            [chat.messages],
            chat_template=self.source,
            return_assistant_tokens_mask=True,
            **self._tokenizer.special_tokens_map,
        )
        if characters(written[0]) != whole or len(written[0]) != len(whole):
            raise RekindleError("The chat template writes the same chat in two ways.", where=chat.where)
        return [(int(start), int(end)) for start, end in spans[0]]


def _end(whole: str, start: int, after: str, content: str) -> int | None:
    """Where the answer that starts at `start` ends; `after` is the chat as it was written when this was its last.

    Some templates write only the last answer with its thoughts, or with an empty place for them. An earlier one is
    then its content, and what follows the content of a last answer.
    """
    if whole.startswith(after):
        return len(after)
    for text in (content, content.strip()):
        _, found, tail = after[start:].rpartition(text) if text else ("", "", "")
        if found and whole.startswith(text + tail, start):
            return start + len(text + tail)
    return None
