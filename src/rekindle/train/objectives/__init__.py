"""What a run learns: what a batch holds, what the model is called with, which losses come out of its outputs.

labelled.py         what all objectives share whose targets are tokens
next_token.py       each next token of a text
seq2seq.py          a target text, given a source text
prefix.py           the same by a model of one tower, which reads the source first
span_corruption.py  the spans that were taken out of a text, given the rest
ul2.py              the same of spans of several kinds
prefix_lm.py        the end of a text, given its beginning
image_classification.py  the label of an image

b rows of a batch
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Literal, Protocol

import torch

from rekindle.anatomy import family_of
from rekindle.apply.load import check_output
from rekindle.apply.probe import check_shift
from rekindle.errors import RekindleError
from rekindle.store.folder import Folder
from rekindle.train.config import EvaluateConfig, TrainConfig
from rekindle.train.losses import IGNORED
from rekindle.train.model import check_vocabulary, check_written, tokenizers_of, vocabularies, writer_folder

Batch = dict[str, torch.Tensor]  # named tensors, a row of each along the first axis
Split = Literal["train", "validation", "all"]


class Objective(Protocol):
    """Rows of data, and what a model's outputs on them are worth.

    What the model is called with is made apart from what its outputs are held to, as a pipeline needs them on
    different processes. Balance and z losses of routers are the model's own, and no objective's.
    """

    name: str
    output: str
    """Of models that can learn it, see Settings.output."""
    length: int
    """Targets of a row that has all it can have."""
    measures: tuple[str, ...]
    """What an evaluation finds: `loss`, and what else `each` gives."""

    @classmethod
    def foreseen(cls, config: TrainConfig, source: Folder) -> int:
        """`length`, without the data; raises RekindleError for what of a folder `open` would refuse."""
        ...

    @property
    def rows(self) -> int:
        """Training rows, one epoch; raises RekindleError where there are none."""
        ...

    def batch(self, first: int, count: int) -> Batch:
        """Rows `first` to `first + count` of the endless training order: a function of these numbers alone.

        So any rank makes its own share, and a run continues anywhere from its step.
        """
        ...

    def sample(self, split: Split, tokens: int) -> Batch:
        """About so many tokens of one side or both, spread evenly; raises RekindleError where there is no row."""
        ...

    def total(self, first: int, count: int) -> int:
        """Targets of all those rows of the training order together."""
        ...

    def targets(self, batch: Batch) -> torch.Tensor:
        """How many targets each row has [b]: what its part of a mean over targets weighs."""
        ...

    def seen(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Where rows are padded, which tokens of "encoder" and "decoder" are not: experts are balanced over those."""
        ...

    def inputs(self, model: Any, batch: Batch) -> dict[str, Any]:
        """What `model` is called with."""
        ...

    def losses(self, out: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """Means over the batch's targets; `loss` is what training lowers, others are only told."""
        ...

    def each(self, out: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """The same of each row [b], divided by `length`, of an evaluation: `loss` is what `val_loss` is made of."""
        ...

    @property
    def digest(self) -> str:
        """Of all the data that is read."""
        ...

    def text(self) -> dict[str, Any]:
        """What a run that is resumed must agree on."""
        ...

    def described(self) -> dict[str, Any]:
        """Of the data, for the run row of metrics.jsonl."""
        ...


# module:class, with `open(config, seq_len, tokenizer, vocab_size)`, and of seq2seq `writer`; or with `of_images`
TABLE = {
    "next-token": "rekindle.train.objectives.next_token:NextToken",
    "seq2seq": "rekindle.train.objectives.seq2seq:Seq2Seq",
    "span-corruption": "rekindle.train.objectives.span_corruption:SpanCorruption",
    "ul2": "rekindle.train.objectives.ul2:UL2",
    "prefix-lm": "rekindle.train.objectives.prefix_lm:PrefixLM",
    "image-classification": "rekindle.train.objectives.image_classification:ImageClassification",
}
OF_ONE_TOWER = {"seq2seq": "rekindle.train.objectives.prefix:Prefix"}  # where a decoder learns it otherwise
DEFAULTS = {
    "seq2seq": "span-corruption",
    "labels": "image-classification",
}  # by Settings.output; the next token where there is none
_OPTIONS = {  # which objective an option is for
    "text_column": ("next-token", "span-corruption", "ul2", "prefix-lm"),
    "mask_prompt": ("next-token",),
    "source_column": ("seq2seq",),
    "target_column": ("seq2seq",),
    "target_len": ("seq2seq", "prefix-lm"),
    "label_smoothing": ("seq2seq",),
    "beams": ("seq2seq",),
}


def objective_of(config: TrainConfig | EvaluateConfig, source: Folder) -> type[Any]:
    """The objective that was asked for, or the one that models such as that in `source` learn by.

    Raises RekindleError for options of another objective, and for a model that cannot learn it.
    """
    output = family_of(source.config).settings(source.config).output
    default = default_objective(source)
    name = config.objective or default
    for option, able in _OPTIONS.items():
        if getattr(config, option, None) and name not in able:
            flag = option.replace("_", "-")
            other = next((f"--objective {o}, or " for o in able if _class(o, output).output == output), "")
            raise RekindleError(
                f"{option} is an option of {' and '.join(able)}, but the objective is {name}.",
                where=f"option {option}",
                hint=f"{other}without --{flag}",
            )
    found = _class(name, output)
    check_output(source, found.output, None if name == default else f"--objective {default}")
    check_shift(source)
    if writer_folder(source) and name != "seq2seq":
        what = (
            f"What this model reads and what it writes have tokens of their own, and {name} takes both from one text."
        )
        raise RekindleError(what, where=source.path, hint="--objective seq2seq, of pairs")
    return found


def open_objective(kind: type[Any], config: TrainConfig | EvaluateConfig, seq_len: int, source: Folder) -> Objective:
    """With its data, in the tokens of the folder's tokenizers, where it is text; raises RekindleError for a misfit."""
    if hasattr(kind, "of_images"):
        return kind.of_images(config, source)
    (reads, writes), sizes = tokenizers_of(source), vocabularies(source.config)
    check_vocabulary(reads, sizes[0], source.path)
    check_vocabulary(writes, sizes[-1], writer_folder(source) or source.path)
    other = () if writes is reads else (writes,)
    objective = kind.open(config, seq_len, reads, max(sizes), *other)
    check_written(objective.length, source.config)
    return objective


def default_objective(source: Folder) -> str:
    """What models such as that in `source` learn by."""
    return DEFAULTS.get(family_of(source.config).settings(source.config).output, "next-token")


def _class(name: str, output: str) -> type[Any]:
    module, _, kind = (OF_ONE_TOWER if output == "causal" and name in OF_ONE_TOWER else TABLE)[name].partition(":")
    return getattr(import_module(module), kind)


def split_batch(batch: Batch, size: int) -> list[Batch]:
    """Parts of at most `size` rows, each as wide as its longest row."""
    parts = zip(*(tensor.split(size) for tensor in batch.values()), strict=True)
    return [narrowed(dict(zip(batch, part, strict=True))) for part in parts]


def narrowed(part: Batch) -> Batch:
    """Without the columns at the end that are padding in all of its rows."""
    widths = {}
    if "attention_mask" in part:
        widths |= dict.fromkeys(("input_ids", "attention_mask"), _width(part["attention_mask"].bool()))
    if "labels" in part:
        widths["labels"] = _width(part["labels"] != IGNORED)
    return {name: tensor[:, : widths[name]] if name in widths else tensor for name, tensor in part.items()}


def _width(seen: torch.Tensor) -> int:
    return int(seen.any(0).nonzero().max()) + 1 if seen.any() else 1


def rows_of(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def on(batch: Batch, device: torch.device) -> Batch:
    return {name: tensor.to(device) for name, tensor in batch.items()}
