"""A byte-level tokenizer of 257 entries, made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def save_bytes_tokenizer(folder: Path, **changes: Any) -> Any:
    """Write it to `folder`; `changes` go to PreTrainedTokenizerFast."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=257, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["a"], trainer=trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **({"eos_token": "<end>"} | changes))
    made.save_pretrained(folder)
    return made
