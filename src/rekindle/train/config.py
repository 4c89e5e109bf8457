"""The options of `init`, `train`, `evaluate`, `utility`. No torch here: the command line builds its help from these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rekindle.anatomy.families import FAMILIES
from rekindle.config import Count, Table, option

Objective = Literal["next-token", "seq2seq", "span-corruption", "ul2", "prefix-lm", "image-classification"]
Precision = Literal["auto", "fp32", "bf16"]
Recover = Literal["shadow", "checkfree", "checkfree+", "copy", "random", "redundant", "checkpoint", "none"]
RecoverMoments = Literal["reset", "average", "copy"]

DATA = (
    "text, JSON, CSV, Parquet or Arrow, a folder of them, a datasets NAME, stdlib, or python; images (docs/images.md)"
)
SOURCE_COLUMN = "seq2seq: column of the rows that holds the texts to read (default: source, or input beside output)"
TARGET_COLUMN = "seq2seq: column of the rows that holds the texts to write (default: target, or output)"
TEXT_COLUMN = "column of the rows that holds the text, or a chat (default: text, or else a chat)"


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """A model from scratch."""

    family: str = option("llama", help=f"architecture: {', '.join(FAMILIES)}")
    hidden: int = option(64, help="hidden size")
    layers: int = option(2, help="number of layers")
    decoder_layers: int | None = option(None, help="of the decoder of a model with two towers (default: as layers)")
    heads: int = option(4, help="attention heads per layer")
    kv_heads: int | None = option(None, help="key-value heads per layer (default: as many as heads)")
    ffn: int | None = option(None, help="intermediate size, of each expert in a MoE (default: 4 x hidden)")
    experts: int | None = option(None, help="experts per layer, MoE families only (default: 8)")
    top_k: int | None = option(None, help="experts per token, MoE families only (default: 2)")
    context: int | None = option(None, help="longest sequence, tokens (default: 2048)")
    rope_theta: float | None = option(None, help="base of the rotary position embedding (default: 10000)")
    tie_embeddings: bool | None = option(
        None, help="the output layer is the embedding matrix (default: as the family's models have it)"
    )
    labels: int | None = option(None, help="labels of a model that reads images (default: 2)")
    init_std: float | None = option(None, help="standard deviation of the initial weights (default: 0.02)")
    aux_loss: float = option(0.01, help="load-balance coefficient written to the config of a MoE")
    tokenizer: str = option("bpe:2048", help="bpe:SIZE, trained on the data, or a tokenizer's folder or name")
    data: str = option("stdlib", help="data the tokenizer is trained on: see train --data")
    text_column: str | None = option(None, help=TEXT_COLUMN)
    dtype: Literal["float32", "bfloat16"] = option("float32", help="dtype of the weights on disk")
    seed: int = option(0, help="random seed: the same seed gives the same bytes")
    set: Table | None = option(None, help="a key of config.json, over what follows from the other options; repeatable")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Training of a checkpoint on text."""

    data: str = option("stdlib", help=DATA)
    text_column: str | None = option(None, help=TEXT_COLUMN)
    objective: Objective | None = option(None, help="what it learns (default: what its family was trained by)")
    source_column: str | None = option(None, help=SOURCE_COLUMN)
    target_column: str | None = option(None, help=TARGET_COLUMN)
    target_len: int | None = option(
        None, help="seq2seq, prefix-lm: tokens per target (default: as per source, --seq-len)"
    )
    label_smoothing: float = option(
        0.0, help="seq2seq: part of each target's weight that goes to all tokens alike; losses are told without"
    )
    mask_prompt: bool = option(False, help="of chats only the assistant's answers have a loss")
    tokens: Count | None = option(None, help="tokens to train on, rounded down to whole steps")
    fraction_of_parent: float | None = option(None, help="instead: of the tokens the parent was trained on, e.g. 0.05")
    parent_tokens: Count | None = option(None, help="those tokens, where the lineage does not know them")
    batch_tokens: Count = option(Count(16384), help="tokens per step, over all devices; of images as many as are whole")
    seq_len: int = option(512, help="tokens per sequence; of an image those that the model makes of it")
    lr: float | None = option(
        None, help="peak learning rate (default: the parent's peak; 1e-3 for an untrained model; else it is asked for)"
    )
    schedule: Literal["wsd", "cosine", "constant", "inverse-sqrt", "continue"] = option(
        "wsd", help="learning rate over the run; continue carries on the source run's"
    )
    warmup: float = option(0.02, help="linear warm-up, fraction of the tokens")
    decay: float = option(0.2, help="linear decay to 0 at the end of wsd, fraction of the tokens")
    weight_decay: float = option(0.1, help="decoupled weight decay of the matrices")
    beta2: float = option(0.95, help="decay of Adam's second moment (the first: 0.9)")
    clip: float = option(1.0, help="largest norm of the gradient; 0: no clipping")
    freeze: tuple[str, ...] = option(
        (), help="what stays as it is: encoder, embed, decoder.cross, ...; encoder:1000 for so many steps"
    )
    aux_loss: float = option(0.01, help="coefficient of the load-balance loss of a MoE")
    z_loss: float = option(0.001, help="coefficient of the router z loss of a MoE")
    precision: Precision = option("auto", help="arithmetic; weights stay fp32; auto: bf16 where a GPU has it")
    micro_batch: int | None = option(None, help="sequences per forward pass of a device (default: what fits)")
    gradient_checkpointing: bool = option(False, help="recompute activations: less memory, more time")
    compile: bool = option(False, help="torch.compile the model")
    seed: int = option(0, help="random seed of the data order")
    skip: Count = option(Count(0), help="tokens of that order to pass over, such as those that an earlier stage read")
    eval_every: Count | None = option(None, help="tokens between evaluations (default: a tenth of the run)")
    eval_tokens: Count = option(Count(32768), help="validation tokens of each evaluation")
    save_every: Count | None = option(None, help="tokens between saved states (default: a tenth of the run)")
    archive: str | None = option(None, help="archive that saved states go into too, as checkpoints, while it trains")
    keep_averages: bool = option(
        False, help="keep averages of the weights too, in OUT-averages at each saved state: see `rekindle average`"
    )
    optimizer_state: str | None = option(None, help="folder or optimizer.pt: moments to start from (default: fresh)")
    trackers: tuple[str, ...] = option((), help="accelerate's trackers: tensorboard, wandb, trackio, ...")
    stages: int = option(1, help="processes in a pipeline, each with some of the layers; 1: no pipeline")
    pipeline: Literal["1f1b", "gpipe"] = option("1f1b", help="order of the passes in a pipeline")
    recover: Recover = option("shadow", help="what a stage is made of whose process died, see docs/recovery.md")
    shadow_every: int = option(10, help="shadow: steps between copies of each stage's weights to the next one")
    recover_power: float = option(1.0, help="checkfree: of the neighbours' gradient norms, which weigh their layers")
    recover_moments: RecoverMoments = option(
        "reset", help="of a stage that was made again: none, its neighbours' averaged, or one's (the stage before)"
    )
    recover_lr: float = option(1.1, help="times the learning rate, of a stage that was made of others")
    on_adjacent: Literal["checkpoint", "stop"] = option(
        "checkpoint", help="where nothing is left to make a stage of: go back to the last saved state, or stop"
    )
    replicas: int = option(1, help="pipelines side by side, each with its part of a step's sequences")
    spares: int = option(1, help="processes that stand by to take the place of a stage")
    patience: float = option(10.0, help="seconds without a sign of life after which a stage counts as dead")
    join: str | None = option(
        None, help="HOST:PORT of the machine that supervises: the same command on several, see docs/recovery.md"
    )
    workers: int | None = option(
        None, help="join: processes that this machine gives, as stages and spares (default: one for each GPU, or 1)"
    )
    inject: str | None = option(None, help="failures for tests: STEP:STAGE:MOMENT, or rate=0.1/h,seed=3 of each stage")

    @property
    def pipelined(self) -> bool:
        """Whether the model is spread over processes of its own."""
        return (self.stages, self.replicas) != (1, 1)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Loss and perplexity of a checkpoint."""

    data: str = option("stdlib", help=DATA)
    text_column: str | None = option(None, help=TEXT_COLUMN)
    objective: Objective | None = option(None, help="what is measured (default: what its family was trained by)")
    source_column: str | None = option(None, help=SOURCE_COLUMN)
    target_column: str | None = option(None, help=TARGET_COLUMN)
    target_len: int | None = option(
        None, help="seq2seq, prefix-lm: tokens per target (default: as per source, --seq-len)"
    )
    split: Literal["validation", "all"] = option("validation", help="documents train never sees, or all")
    tokens: Count = option(Count(262144), help="most tokens to evaluate on")
    seq_len: int | None = option(None, help="tokens per sequence (default: the context, 1024 at most)")
    precision: Precision = option("auto", help="arithmetic; auto: bf16 where a GPU has it")
    micro_batch: int | None = option(None, help="sequences per forward pass (default: what fits)")
    beams: int | None = option(None, help="seq2seq: write a text for each source too, by a search of so many beams")
    predictions: str | None = option(None, help="beams: file for sources, targets and texts, a JSON object a line")
    tasks: tuple[str, ...] = option((), help="lm-eval tasks to run as well")


@dataclass(frozen=True, kw_only=True)
class UtilityConfig:
    """How much the loss leans on each expert."""

    data: str = option("stdlib", help=DATA)
    text_column: str | None = option(None, help=TEXT_COLUMN)
    score: Literal["gradient", "weight-gradient", "weight"] = option(
        "gradient", help="|g|^2, |w| |g| or |w|^2, norms over all weights of an expert"
    )
    batches: int = option(10, help="batches of training text that the gradient is averaged over")
    batch_tokens: Count = option(Count(16384), help="tokens of each batch")
    seq_len: int | None = option(None, help="tokens per sequence (default: the context, 1024 at most)")
    precision: Precision = option("auto", help="arithmetic; auto: bf16 where a GPU has it")
    micro_batch: int | None = option(None, help="sequences per forward pass (default: what fits)")
