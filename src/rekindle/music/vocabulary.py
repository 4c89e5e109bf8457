"""The tokens of plain tunes: a field, a bar line or a tuplet is one, and else each character.

The vocabulary is the same whatever the data: every metre, unit and key that plain tunes may have.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from rekindle.music.abc.keys import LETTERS, all_keys
from rekindle.music.abc.metre import PLAIN
from rekindle.music.abc.plain import ENDINGS, LINES, TUPLETS, UNITS

PAD, END = "<pad>", "<end>"
CHARACTERS = [*LETTERS, *LETTERS.lower(), *"^_=,'/0123456789><-z ", "\n"]


@cache
def vocabulary() -> tuple[str, ...]:
    fields = [f"M:{metre}\n" for metre in PLAIN] + [f"L:{unit}\n" for unit in UNITS]
    fields += [f"K:{key.spelt}\n" for key in all_keys()]
    lines = [line + ending for line in LINES for ending in ("", *ENDINGS)]
    return (PAD, END, *fields, *lines, *TUPLETS, *CHARACTERS)


@cache
def _pattern() -> re.Pattern[str]:
    longest_first = sorted(vocabulary()[2:], key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first)))


def pieces(text: str) -> list[str] | None:
    """The tokens of a plain tune; None of a text that they cannot spell.

    >>> pieces("K:D\\nA2|:")
    ['K:D\\n', 'A', '2', '|:']
    """
    found = _pattern().findall(text)
    return found if sum(map(len, found)) == len(text) else None


def make_tune_tokenizer(context: int) -> Any:
    """A tokenizer of transformers with this vocabulary; what it cannot spell is left out."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    numbers = {token: number for number, token in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_pattern().pattern), "removed", invert=True)
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", END], pair=["$A", "$B", END], special_tokens=[(END, numbers[END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        bos_token=END,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def is_of_tunes(tokenizer: Any) -> bool:
    """Whether a tokenizer's vocabulary is this one."""
    return tokenizer.get_vocab() == {token: number for number, token in enumerate(vocabulary())}
