"""A byte-level BPE tokenizer trained on the data, for models from scratch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rekindle.errors import RekindleError
from rekindle.train.split import sides
from rekindle.train.text import Source, open_source
from rekindle.train.text.source import characters

END_OF_TEXT = "<|endoftext|>"
PAD = "<pad>"
SENTINELS = 100  # of an encoder-decoder, as T5 has them: what stands for a span that was taken out
SAMPLE_CHARS = 1 << 26  # text enough for any vocabulary that is trained in a minute
_SMALLEST = 257  # every byte and the end of text


def make_tokenizer(choice: str, data: str, context: int, column: str | None = None, *, sentinels: bool = False) -> Any:
    """The tokenizer that `choice` names: bpe:SIZE, trained on `data`, or an existing one's folder or name.

    `column`: of the rows of `data`, see text.Reading. `sentinels`: one that is trained gets them, and a token for
    padding.
    """
    from rekindle.train.model import load_tokenizer

    size = bpe_size(choice)
    if size is None:
        return load_tokenizer(Path(choice).expanduser() if Path(choice).expanduser().exists() else choice)
    return train_bpe(open_source(data, column), size, context, sentinels=sentinels)


def bpe_size(choice: str) -> int | None:
    """SIZE of bpe:SIZE, None of an existing tokenizer's name; raises RekindleError for a size that cannot be."""
    kind, colon, size = choice.partition(":")
    if kind != "bpe" or not colon:
        return None
    if not size.isdecimal() or int(size) < _SMALLEST:
        raise RekindleError(
            f"tokenizer is {choice!r}, but a byte-level vocabulary has at least {_SMALLEST} entries.",
            where="option tokenizer",
            hint="bpe:2048",
        )
    return int(size)


def train_bpe(source: Source, size: int, context: int, *, sentinels: bool = False) -> Any:
    """Byte-level BPE (Radford et al. 2019) of at most `size` entries, from documents that are not held out.

    `sentinels`: on top of these, <extra_id_99> to <extra_id_0>, and of these one for padding; and each text ends with
    the end-of-text token, as with T5's: an encoder is shown the end in training.

    The same text gives the same tokenizer. Raises RekindleError where there is no text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, END_OF_TEXT] if sentinels else [END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(source), trainer=trainer)
    extra: dict[str, Any] = {}
    if sentinels:
        one, end = ["$A", END_OF_TEXT], (END_OF_TEXT, tokenizer.token_to_id(END_OF_TEXT))
        ended = processors.TemplateProcessing(single=one, pair=[*one, "$B", END_OF_TEXT], special_tokens=[end])
        tokenizer.post_processor = ended
        names = [f"<extra_id_{i}>" for i in reversed(range(SENTINELS))]  # the first has the highest number, as T5's
        extra = {"pad_token": PAD, "additional_special_tokens": names}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        **extra,
    )


def _sample(source: Source) -> Iterator[str]:
    documents, held_out = next(sides(source))
    left = SAMPLE_CHARS
    for document in documents:
        if not held_out(document):
            text = document if isinstance(document, str) else document.text
            yield characters(text)
            left -= len(text)
        if left <= 0:
            return
