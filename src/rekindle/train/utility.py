"""Utility of each expert: how much the language-model loss leans on its weights. `grow-experts` copies by it.

Source: Dwivedi et al. 2026, "Expert Upcycling", arXiv 2604.19835: the squared norm of an expert's gradient, averaged
over ten batches, predicts best which experts are worth copying; |w| |g| and |w|^2 are its other two scores.

L MoE layers   E experts
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rekindle.anatomy import family_of, stacks
from rekindle.apply.load import load_model
from rekindle.apply.probe import one_tower
from rekindle.edit import checkpoint_at
from rekindle.errors import CheckFailed, RekindleError, together
from rekindle.store.folder import Folder
from rekindle.train.config import UtilityConfig
from rekindle.train.device import make_accelerator, micro_batch_size, out_of_memory_explained, reproducible
from rekindle.train.losses import cross_entropy, forward
from rekindle.train.model import cast_experts, check_ids, check_lengths, check_vocabulary, load_tokenizer, model_sizes
from rekindle.train.plan import check_corpus
from rekindle.train.tokens import Corpus, open_corpus

if TYPE_CHECKING:
    from accelerate import Accelerator

_DEFAULT_SEQ_LEN = 1024


def utility(folder: Path, config: UtilityConfig) -> dict[str, Any]:
    """A score of every expert of a checkpoint, from batches of its training text.

    {"checkpoint": fingerprint, "family", "score", "layers": {layer: [E]}, "data", "batches", "tokens", "seq_len"}.
    Raises RekindleError for a dense checkpoint, and for data or options that do not fit the model; CheckFailed
    where a score is no number.
    """
    source = checkpoint_at(folder).folder
    vocab_size, context = model_sizes(source.config)
    seq_len = config.seq_len or min(context, _DEFAULT_SEQ_LEN)
    _check(source, config, seq_len)
    check_lengths(seq_len, source.config, config.micro_batch)
    tokenizer = load_tokenizer(folder)
    check_vocabulary(tokenizer, vocab_size, folder)
    corpus = open_corpus(config.data, tokenizer, config.text_column)
    check_corpus(corpus, seq_len)
    check_ids(corpus.meta.largest_id, vocab_size)
    accelerator = make_accelerator(config.precision)
    model = load_model(source).requires_grad_(False).eval().to(accelerator.device)
    if accelerator.mixed_precision == "bf16":
        cast_experts(model)
    experts = _experts(model, source)
    micro_batch = micro_batch_size(config.micro_batch, seq_len, vocab_size)
    with out_of_memory_explained("a smaller --micro-batch or --seq-len"), reproducible(accelerator.device):
        scores_LE = _scores(model, list(experts.values()), corpus, config, seq_len, micro_batch, accelerator)
    if not bool(scores_LE.isfinite().all()):
        layer, expert = next(iter((~scores_LE.isfinite()).nonzero().tolist()))
        raise CheckFailed(
            f"The utility of expert {expert} of layer {list(experts)[layer]} is {scores_LE[layer, expert].item()}.",
            where=folder,
            hint=f"rekindle inspect {folder} --nan",
        )
    return {
        "checkpoint": source.fingerprint,
        "family": family_of(source.config).model_type,
        "score": config.score,
        "layers": {str(layer): row for layer, row in zip(experts, scores_LE.tolist(), strict=True)},
        "data": config.data,
        "batches": config.batches,
        "tokens": config.batches * (config.batch_tokens // seq_len) * seq_len,
        "seq_len": seq_len,
    }


def _check(source: Folder, config: UtilityConfig, seq_len: int) -> None:
    problems = []
    family = family_of(source.config)
    if not family.settings(source.config).sparse_layers:
        able = f"rekindle upcycle {source.path} OUT --experts 8 makes some"
        hint = able if family.twins else "a mixture, such as mixtral or deepseek_v3"
        problems.append(RekindleError("This checkpoint is dense: it has no experts to score.", hint=hint))
    if config.batches < 1:
        problems.append(RekindleError(f"{config.batches} batches give no gradient.", hint="--batches 10"))
    if not 1 <= seq_len <= config.batch_tokens:
        what = f"A batch of {config.batch_tokens} tokens holds no sequence of {seq_len}."
        problems.append(RekindleError(what, hint=f"--batch-tokens {max(1, seq_len)} or more, or a smaller --seq-len"))
    if problems:
        raise together(problems)


def _experts(model: Any, source: Folder) -> dict[int, list[torch.nn.Parameter]]:
    """The parameters [E, ...] that hold the experts of each layer, which from now on have gradients."""
    family = family_of(source.config)
    parameters = dict(model.named_parameters())
    found: dict[int, list[torch.nn.Parameter]] = {}
    for stack in stacks(family, family.settings(source.config)):
        layer = next(iter(stack.roles)).layer
        found.setdefault(layer, []).append(parameters[stack.name].requires_grad_(True))
    return found


def _scores(
    model: Any,
    stacks: Sequence[Sequence[torch.nn.Parameter]],
    corpus: Corpus,
    config: UtilityConfig,
    seq_len: int,
    micro_batch: int,
    accelerator: Accelerator,
) -> torch.Tensor:
    """[L, E]: |g|^2 averaged over batches, |w| times the average of |g|, or |w|^2."""
    weight_LE = _squared_norms(stacks)
    if config.score == "weight":
        return weight_LE
    power = 1.0 if config.score == "gradient" else 0.5
    total_LE = torch.zeros_like(weight_LE)
    count = config.batch_tokens // seq_len
    for number in range(config.batches):
        batch = torch.from_numpy(corpus.batch(number * count, count, seq_len, seed=0)).to(accelerator.device)
        for part in batch.split(micro_batch):
            with accelerator.autocast():
                logits = forward(model, one_tower(part[:, :-1])).logits
            (cross_entropy(logits, part[:, 1:]) * (len(part) / count)).backward()
        total_LE += _squared_norms([[_gradient(p) for p in layer] for layer in stacks]) ** power
        model.zero_grad(set_to_none=True)
    mean_LE = total_LE / config.batches
    return mean_LE if config.score == "gradient" else weight_LE.sqrt() * mean_LE


@torch.no_grad()
def _squared_norms(stacks: Sequence[Sequence[torch.Tensor]]) -> torch.Tensor:
    """[L, E] of each layer's tensors [E, ...], all weights of an expert together."""

    def squared_norm(p_Exx: torch.Tensor) -> torch.Tensor:
        return torch.linalg.vector_norm(p_Exx, dim=(1, 2), dtype=torch.float64).square()

    return torch.stack([torch.stack([squared_norm(p) for p in layer]).sum(0) for layer in stacks]).cpu()


def _gradient(p: torch.nn.Parameter) -> torch.Tensor:
    assert p.grad is not None
    return p.grad
