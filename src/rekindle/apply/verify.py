"""Reload a result as its users will, and hold it to its promise.

Whole models by default. Block by block, only the module that is computing has its weights in memory: accelerate's
hooks ask for them one module at a time, and the checkpoint's own expressions answer.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rekindle.apply.load import load_model, quietly
from rekindle.edit.checkpoint import Checkpoint
from rekindle.edit.expressions import Expr
from rekindle.edit.plan import plan
from rekindle.edit.promise import EXACT
from rekindle.errors import RekindleError
from rekindle.store.dtypes import TORCH
from rekindle.store.files import Files

if TYPE_CHECKING:
    import torch

Forward = Callable[[Any], Any]  # token ids [N, T] -> logits [N, T, V] in float32


@dataclass(frozen=True)
class Verdict:
    """What verify measured."""

    promise: str  # "exact", "lossy" or "none"
    held: bool | None  # None: nothing was promised
    relative_difference: float  # max |difference of logits| / max |logit|, float32
    stored_difference: float | None  # the same with both sides in the stored dtype; None where that is float32
    dtype: str
    loss_parent: float  # nats per token
    loss_child: float
    tokens: int
    text: str  # what the tokens are
    not_finite: dict[str, int]  # tensors of the child with NaN or infinite values
    blockwise: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def verify(
    child: Checkpoint,
    parent: Checkpoint,
    tokens: np.ndarray,
    *,
    text: str,
    promise: str,
    bad: dict[str, int],
    blockwise: bool,
) -> Verdict:
    """Compare logits on `tokens` [N, T]. `promise`: what the child was made under; `bad`: see scan.not_finite."""
    if child.settings.vocab_size != parent.settings.vocab_size:
        raise RekindleError(
            f"The vocabularies differ: {child.settings.vocab_size} and {parent.settings.vocab_size} tokens.",
            where=child.folder.path,
        )
    dtype = TORCH.get(child.dtype, "float32")
    difference, loss_parent, loss_child = compare(child, parent, tokens, "float32", blockwise)
    stored = compare(child, parent, tokens, dtype, blockwise)[0] if dtype != "float32" else None
    finite = bool(np.isfinite(difference)) and not bad
    held = None if promise == "none" else finite and (promise != "exact" or difference <= EXACT)
    return Verdict(
        promise,
        held,
        difference,
        stored,
        dtype,
        loss_parent,
        loss_child,
        int(tokens.size),
        text,
        bad,
        blockwise,
    )


def compare(
    child: Checkpoint, parent: Checkpoint, tokens: np.ndarray, dtype: str, blockwise: bool
) -> tuple[float, float, float]:
    """(max |difference| / max |logit|, the parent's loss, the child's loss), computed in `dtype`."""
    import torch

    ids = torch.from_numpy(tokens.astype(np.int64))
    batches = [ids] if blockwise else list(ids.split(max(1, 512 // ids.shape[1])))
    with torch.no_grad():
        before = [logits.clone() for logits in run(parent, batches, dtype, blockwise)]
        largest = max(float(logits.abs().max()) for logits in before)
        loss_parent = float(np.mean([_loss(x, b) for x, b in zip(before, batches, strict=True)]))
        worst, losses = 0.0, []
        for logits, reference, batch in zip(run(child, batches, dtype, blockwise), before, batches, strict=True):
            difference = float((logits - reference).abs().max())
            worst = max(worst, difference) if difference == difference else float("nan")
            losses.append(_loss(logits, batch))
    return worst / largest if largest else float("inf"), loss_parent, float(np.mean(losses))


def run(checkpoint: Checkpoint, batches: list[Any], dtype: str, blockwise: bool) -> Iterator[Any]:
    """Logits in float32 of each batch, from a model that is gone afterwards."""
    with Files() as files:
        model = _blockwise(checkpoint, dtype, files) if blockwise else load_model(checkpoint.folder.path, dtype).eval()
        for batch in batches:
            yield model(input_ids=batch, use_cache=False).logits.float()
        del model
    gc.collect()


def _loss(logits: torch.Tensor, ids: torch.Tensor) -> float:
    from torch.nn.functional import cross_entropy

    return float(cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))


def _blockwise(checkpoint: Checkpoint, dtype: str, files: Files) -> Any:
    import torch
    from accelerate import init_empty_weights
    from accelerate.hooks import attach_align_device_hook
    from transformers import AutoConfig, AutoModelForCausalLM

    with quietly(), init_empty_weights(include_buffers=False):
        config = AutoConfig.from_pretrained(checkpoint.folder.path)
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    weights = Weights(checkpoint, dtype, files)
    attach_align_device_hook(model, execution_device=torch.device("cpu"), offload=True, weights_map=weights)
    for name, buffer in model.named_buffers():  # the hooks ask for parameters only
        if name in weights:
            buffer.data = weights.in_float32(name)
    return model.eval()


class Weights(Mapping[str, Any]):
    """The parameters by transformers' names, each made when it is asked for and kept by nobody."""

    def __init__(self, checkpoint: Checkpoint, dtype: str, files: Files):
        self._exprs: dict[str, Expr] = plan(checkpoint, fused=True).tensors
        for name, same in checkpoint.family.aliases(checkpoint.settings).items():
            self._exprs[name] = self._exprs[same]
        self._dtype, self._files = dtype, files

    def __getitem__(self, name: str) -> Any:
        import torch

        return self.in_float32(name).to(getattr(torch, self._dtype))

    def in_float32(self, name: str) -> Any:
        """A tensor in float32, whatever dtype the model computes in."""
        import torch

        expr = self._exprs[name]
        return torch.from_numpy(np.array(expr.values(0, expr.num_rows, self._files).reshape(expr.shape)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._exprs)

    def __len__(self) -> int:
        return len(self._exprs)
