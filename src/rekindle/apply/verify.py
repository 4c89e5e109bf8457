"""Reload a result as its users will, and hold it to its promise.

Whole models by default. Block by block, only the module that is computing has its weights in memory: accelerate's
hooks ask for them one module at a time, and the checkpoint's own expressions answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rekindle.anatomy.settings import meaning
from rekindle.apply.load import config_of, fit_experts, load_model, model_class, quietly, unloadable
from rekindle.apply.probe import HALVES, Probe, probe_of
from rekindle.edit.checkpoint import Checkpoint
from rekindle.edit.expressions import Expr
from rekindle.edit.plan import plan
from rekindle.errors import RekindleError, first_line
from rekindle.store.dtypes import COMPUTED, TORCH
from rekindle.store.files import Files


@dataclass(frozen=True)
class Verdict:
    """What verify measured."""

    promise: str  # "exact", "lossy" or "none"
    held: bool | None  # None: nothing was promised
    compared: str  # what the model puts out, see apply.probe
    relative_difference: float | None  # max |difference of logits| / max |logit|, or of hidden states, float32
    stored_difference: float | None  # the same with both sides in the stored dtype; None where that is float32
    dtype: str
    loss_parent: float | None  # nats per token; None where the next token is not predicted
    loss_child: float | None
    tokens: int
    text: str  # what the tokens are
    not_finite: dict[str, int]  # tensors of the child with NaN or infinite values
    blockwise: bool
    alone: str = ""  # why there was nothing to compare with: differences and the parent's loss are None then

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
    half: str = "",
) -> Verdict:
    """Compare outputs on `tokens` [N, T], int64, or on images [N, channels, height, width], float32.

    `promise`: what the child was made under; `bad`: see scan.not_finite. `half`: the tower of a child that was joined
    which the parent has become.

    Where the parent has lost tensors, or computes NaN, a lossy child is looked at alone. Raises RekindleError where the
    two cannot be compared.
    """
    _check_half(child, parent, half) if half else _check(child, parent)
    dtype = TORCH[child.dtype] if child.dtype in COMPUTED else "float32"  # nothing computes in 8 bits
    probe = HALVES[half] if half else probe_of(child.settings)
    size = int(tokens.size) if tokens.ndim == 2 else len(tokens) * child.settings.context
    about = {"promise": promise, "compared": probe.compared, "dtype": dtype, "tokens": size, "text": text,
             "not_finite": bad, "blockwise": blockwise}  # fmt: skip
    alone = f"{parent.folder.named} has lost tensors" if parent.folder.without else ""
    difference, loss_parent, loss_child = float("nan"), None, None
    if not alone:
        difference, loss_parent, loss_child = compare(child, parent, tokens, "float32", blockwise, half)
        if np.isnan(difference) and promise == "lossy" and not bad:
            alone = f"{parent.folder.named} computes NaN"
    if alone:
        finite, loss_child = _outputs(child, tokens, blockwise)
        unknown = {"relative_difference": None, "stored_difference": None, "loss_parent": None}
        held = None if promise == "none" else finite and not bad
        return Verdict(held=held, loss_child=loss_child, alone=alone, **unknown, **about)
    stored = compare(child, parent, tokens, dtype, blockwise, half)[0] if dtype != "float32" else None
    finite = bool(np.isfinite(difference)) and not bad
    held = None if promise == "none" else finite and (promise != "exact" or difference <= probe.exact)
    measured = {"relative_difference": difference, "stored_difference": stored}
    return Verdict(held=held, loss_parent=loss_parent, loss_child=loss_child, **measured, **about)


def _outputs(child: Checkpoint, tokens: np.ndarray, blockwise: bool) -> tuple[bool, float | None]:
    """Whether all that it puts out is finite, and its loss."""
    import torch

    probe, ids = probe_of(child.settings), _shown(tokens)
    with torch.no_grad():
        (found,) = run(child, [ids], "float32", blockwise, unaided=True)
    return bool(found.isfinite().all()), probe.loss(found, probe.shown(ids))


def _shown(tokens: np.ndarray) -> Any:
    """Ids as torch looks them up, and pixels as they are."""
    import torch

    return torch.from_numpy(tokens if tokens.dtype.kind == "f" else tokens.astype(np.int64))


def _check(child: Checkpoint, parent: Checkpoint) -> None:
    ours, theirs = child.settings, parent.settings
    if child.family.name != parent.family.name and "class" in (ours.output, theirs.output):
        what = f"A {child.family.name} and a {parent.family.name} cannot be compared."
    elif ours.vocab_size != theirs.vocab_size:
        what = f"The vocabularies differ: {ours.vocab_size} and {theirs.vocab_size} tokens."
    elif ours.output != theirs.output:
        what = f"This one {meaning('output', ours.output)}, the parent {meaning('output', theirs.output)}."
    elif (ours.num_channels, ours.image_size) != (theirs.num_channels, theirs.image_size):
        what = f"They read other images: {_images(child)} and {_images(parent)}."
    elif ours.num_labels != theirs.num_labels:
        what = f"{ours.num_labels} labels and {theirs.num_labels} cannot be compared."
    elif ours.output == "none" and ours.hidden_size != theirs.hidden_size:
        what = f"Hidden states of {ours.hidden_size} and {theirs.hidden_size} dimensions cannot be compared."
    else:
        return
    raise RekindleError(what, where=child.folder.path)


def _images(checkpoint: Checkpoint) -> str:
    settings = checkpoint.settings
    return " x ".join(map(str, (settings.num_channels, *settings.image_size)))


def _check_half(child: Checkpoint, parent: Checkpoint, half: str) -> None:
    ours, theirs = child.settings.towers[half], parent.settings
    if half == "decoder" and theirs.output != "causal":
        what = f"The decoder looks back only, as this {parent.family.name} never did: nothing can be compared."
        raise RekindleError(what, where=parent.folder.path, hint="--against what became its encoder")
    if ours.vocab_size != theirs.vocab_size:
        what = f"The vocabularies differ: {ours.vocab_size} tokens of the {half} and {theirs.vocab_size}."
        raise RekindleError(what, where=child.folder.path)


def compare(
    child: Checkpoint, parent: Checkpoint, tokens: np.ndarray, dtype: str, blockwise: bool, half: str = ""
) -> tuple[float, float | None, float | None]:
    """(max |difference| / max |output|, the parent's loss, the child's loss), computed in `dtype`."""
    import torch

    probe = HALVES[half] if half else probe_of(parent.settings)
    ids = _shown(tokens)
    batches = [ids] if blockwise else list(ids.split(max(1, 512 // ids[0].numel())))
    shown = [probe.shown(batch) for batch in batches]
    with torch.no_grad():
        before = [outputs.clone() for outputs in run(parent, batches, dtype, blockwise, probe=probe)]
        largest = max(float(outputs.abs().max()) for outputs in before)
        losses = [probe.loss(outputs, batch) for outputs, batch in zip(before, shown, strict=True)]
        worst, losses_child = 0.0, []
        made = run(child, batches, dtype, blockwise, unaided=True, half=half, probe=probe)
        for outputs, reference, batch in zip(made, before, shown, strict=True):
            difference = float((outputs - reference).abs().max())
            worst = max(worst, difference) if difference == difference else float("nan")
            losses_child.append(probe.loss(outputs, batch))
    return probe.difference(worst, largest), _mean(losses), _mean(losses_child)


def run(
    checkpoint: Checkpoint,
    batches: list[Any],
    dtype: str,
    blockwise: bool,
    *,
    unaided: bool = False,
    half: str = "",
    probe: Probe | None = None,
) -> Iterator[Any]:
    """The outputs [N, T, ...] in float32 for each batch of text [N, T], from a model that is gone afterwards."""
    probe = probe or probe_of(checkpoint.settings)
    with loaded(checkpoint, dtype, blockwise, unaided=unaided) as whole:
        model = (
            getattr(whole, half, whole) if half else whole
        )  # of a class of both towers it is the whole, see `Writing`
        for batch in batches:
            try:
                out = model(**probe.inputs(model, probe.shown(batch)))
            except Exception as error:  # of a class that wants other inputs
                if checkpoint.settings.output != "class":
                    raise
                what = f"A {type(model).__name__} computes nothing on a text alone: {first_line(error)}."
                raise RekindleError(what, where=checkpoint.folder.path) from None
            yield probe.outputs(out)


@contextmanager
def loaded(checkpoint: Checkpoint, dtype: str, blockwise: bool, *, unaided: bool = False) -> Iterator[Any]:
    """The model of a folder, whole or a block at a time; no cycle holds it, so it is gone when its caller lets go.

    `unaided`: see `load_model`.
    """
    with Files() as files:
        if blockwise:
            yield _blockwise(checkpoint, dtype, files, unaided)
        else:
            yield load_model(checkpoint.folder, dtype, checkpoint.settings.output, unaided=unaided).eval()


def _mean(losses: Sequence[float | None]) -> float | None:
    known = [loss for loss in losses if loss is not None]
    return float(np.mean(known)) if known else None


def _blockwise(checkpoint: Checkpoint, dtype: str, files: Files, unaided: bool) -> Any:
    import torch
    from accelerate import init_empty_weights
    from accelerate.hooks import attach_align_device_hook

    try:
        if unaided and not checkpoint.folder.native:
            raise ValueError("it does not read these weights")
        config = config_of(checkpoint.folder, unaided=unaided)
        with quietly(), init_empty_weights(include_buffers=False):
            made = model_class(checkpoint.settings.output)
            model = made.from_config(config, dtype=getattr(torch, dtype), trust_remote_code=False)
    except Exception as error:  # of configs, down to assertions
        raise unloadable(error, checkpoint.folder, unaided) from None
    fit_experts(model)
    weights = Weights(checkpoint, dtype, files)
    whole = ["MultiheadAttention"]  # reads the weights of the modules in it
    attach_align_device_hook(
        model, execution_device=torch.device("cpu"), offload=True, weights_map=weights, preload_module_classes=whole
    )
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
