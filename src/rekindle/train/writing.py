"""Texts that an encoder-decoder writes, beside those that it should have written.

Both are as the tokenizer gives them back: what it cannot say, such as capitals where it has none, counts in neither.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from rekindle.apply.load import quietly
from rekindle.errors import RekindleError
from rekindle.store.system import explained
from rekindle.train.losses import IGNORED
from rekindle.train.objectives import Batch, on, rows_of, split_batch
from rekindle.train.rouge import rouge


@dataclass(frozen=True)
class Written:
    source: str
    target: str
    written: str


def check_writing(beams: int, predictions: str | None) -> None:
    """Before anything takes its time: raises RekindleError without sacrebleu, or where the file is there already."""
    if beams < 1:
        raise RekindleError(f"beams is {beams}: 1 is the least, which takes the likeliest token each time.")
    load_sacrebleu()
    if predictions and Path(predictions).exists():
        raise RekindleError("The file exists already.", where=predictions, hint="another FILE, or without it")


@torch.no_grad()
def written_by(
    model: Any, objective: Any, rows: Batch, reads: Any, writes: Any, *, beams: int, device: torch.device, at_once: int
) -> list[Written]:
    """One text for each row of a `Seq2Seq` objective, by beam search; of at most so many tokens as its targets have.

    `reads`, `writes`: the tokenizers of sources and of targets.
    """
    how = {"num_beams": beams, "do_sample": False, "max_new_tokens": objective.target_len}
    found, both = [], model.config.is_encoder_decoder
    for part in split_batch(on(rows, device), at_once):
        shown = objective.prompts(part)
        with quietly():
            ids = model.generate(**shown, **how, **({} if both else {"pad_token_id": objective.pad}))
        ids = ids if both else ids[:, shown["input_ids"].shape[1] :]  # which begins with what was read
        sources = reads.batch_decode(_without_padding(shown), skip_special_tokens=True)
        targets = writes.batch_decode([row[row != IGNORED] for row in part["labels"]], skip_special_tokens=True)
        texts = writes.batch_decode(ids, skip_special_tokens=True)
        found += [Written(*(text.strip() for text in row)) for row in zip(sources, targets, texts, strict=True)]
    assert len(found) == rows_of(rows)
    return found


def _without_padding(part: Batch) -> list[torch.Tensor]:
    return [ids[mask.bool()] for ids, mask in zip(part["input_ids"], part["attention_mask"], strict=True)]


def scores(texts: Sequence[Written]) -> dict[str, Any]:
    """BLEU (Papineni et al. 2002) and chrF (Popović 2015) of all texts as one, as sacrebleu defines them, ROUGE's
    means, and the share that is the target to the letter, with its standard error.
    """
    sacrebleu = load_sacrebleu()
    ours, theirs = [text.written for text in texts], [[text.target for text in texts]]
    bleu = sacrebleu.BLEU(lowercase=False)
    exact = sum(text.written == text.target for text in texts) / len(texts)
    return {
        "bleu": bleu.corpus_score(ours, theirs).score,
        "chrf": sacrebleu.CHRF().corpus_score(ours, theirs).score,
        **rouge(ours, theirs[0]),
        "exact": exact,
        "exact_stderr": math.sqrt(exact * (1 - exact) / len(texts)),
        "bleu_signature": str(bleu.get_signature()),
    }


def save(texts: Sequence[Written], path: Path) -> None:
    """A JSON object a line."""
    with explained(path):
        path.write_text("".join(f"{json.dumps(asdict(one), ensure_ascii=False)}\n" for one in texts), encoding="utf-8")


def load_sacrebleu(otherwise: str = "or without --beams") -> Any:
    """The library; raises RekindleError where it is not installed. `otherwise`: what else to do."""
    try:
        import sacrebleu
    except ImportError:
        what = "BLEU and chrF are sacrebleu's, which is not installed."
        raise RekindleError(what, hint=f"pip install 'rekindle[seq2seq]', {otherwise}") from None
    return sacrebleu
