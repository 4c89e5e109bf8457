"""The options of `combine`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rekindle.config import Count, option
from rekindle.train.config import SOURCE_COLUMN, TARGET_COLUMN


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How coefficients are searched."""

    budget: int | None = option(
        None, help="evaluations of each search, behind those of its starts (default: 500, of gradient search 100)"
    )
    search: Literal["auto", "gradient", "cma", "evolution", "random"] = option(
        "auto", help="how; auto: by gradient where the objective has one, else CMA-ES; evolution is the paper's"
    )
    sum: Literal["one", "free", "convex"] = option(
        "one", help="of the coefficients: 1, anything, or 1 without negative ones"
    )
    groups: Literal["layer", "role"] | None = option(
        None, help="coefficients for each layer, or for each kind of tensor (attn, ffn, ...), of each checkpoint"
    )
    seed: int = option(0, help="random seed of the search and of its draws")
    seeds: int = option(
        1, help="searches, each with a seed of its own: the best of them after re-ranking is the result"
    )
    store: Literal["float32", "bfloat16"] = option(
        "float32", help="how checkpoints are held: in memory where half of it is enough, else in a file"
    )


@dataclass(frozen=True, kw_only=True)
class CombineConfig(SearchConfig):
    """What is searched for, and on which data."""

    objective: str = option(
        help="what is to become smaller: loss, or a loss by name (seq2seq, ...); fd or kid of images; FILE.py:function"
    )
    held_out: str | None = option(None, help="FILE.py:function that is reported, where the objective knows no draws")
    averages: str | None = option(
        None, help="RUN-averages of train --keep-averages: those of every step's weights are held against it too"
    )
    data: str = option("stdlib", help="loss: text, see train --data; fd, kid: images, as an npz or a folder")
    text_column: str | None = option(None, help="loss: column of the rows that holds the text")
    source_column: str | None = option(None, help=SOURCE_COLUMN)
    target_column: str | None = option(None, help=TARGET_COLUMN)
    target_len: int | None = option(None, help="seq2seq: tokens per target (default: as per source, --seq-len)")
    batch_tokens: Count = option(Count(8192), help="loss: tokens of each evaluation")
    held_out_tokens: Count = option(Count(65536), help="loss: most tokens of held-out documents that are reported")
    skip: Count | None = option(
        None, help="loss: tokens of the run's order to pass over (default: those that its lineage says it has read)"
    )
    seq_len: int | None = option(
        None, help="loss: tokens per sequence (default: as the run's, else the context, 512 at most)"
    )
    precision: Literal["auto", "fp32", "bf16"] = option("auto", help="loss: arithmetic of the model")
    component: str | None = option(None, help="fd, kid: what of a pipeline's folder is combined (default: unet)")
    features: str = option("pixels", help="fd, kid: what images are compared in: pixels, or FILE.py:function")
    samples: Count = option(Count(2000), help="fd, kid: images that each evaluation makes")
    sampling_steps: int | None = option(
        None, help="fd, kid: steps of the sampler (default: 10, of a consistency model 1)"
    )
    pixel_weight: float = option(2.0, help="fd: share of the distance in pixels in what is searched, beside features")
