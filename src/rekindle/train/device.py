"""Where the arithmetic happens: accelerate's devices and ranks, precision, memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from rekindle.errors import RekindleError
from rekindle.train.config import Precision

if TYPE_CHECKING:
    from accelerate import Accelerator

_LOGITS_BYTES = 1 << 30  # what the float32 logits of one forward pass may take
_FORWARD_TOKENS = 16384


def make_accelerator(precision: Precision, **options: Any) -> Accelerator:
    """accelerate's view of this process. Raises RekindleError for sharded set-ups, which are not supported yet."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    AcceleratorState._reset_state()  # it would refuse another precision than an earlier call's in this process
    bf16 = precision == "bf16" or (
        precision == "auto" and torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    )
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no", **options)
    alone = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if accelerator.distributed_type not in alone:
        raise RekindleError(
            f"Training under {accelerator.distributed_type.value} is not supported.",
            why="the weights would be sharded, and checkpoints and optimizer state are written from whole ones",
            hint="accelerate launch --multi_gpu (each device holds the model), with --gradient-checkpointing",
        )
    return accelerator


def micro_batch_size(asked: int | None, seq_len: int, vocab_size: int) -> int:
    """Sequences per forward pass: as asked, or as many as keep the float32 logits within 1 GiB."""
    if asked is not None:
        return asked
    return max(1, min(_FORWARD_TOKENS, _LOGITS_BYTES // (4 * vocab_size)) // seq_len)


def peak_memory(device: torch.device) -> int:
    """The most memory this process has held, bytes: of the GPU on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Have the CPU give the same bits each time; on a GPU that would cost speed, and resuming is close, not equal.

    Without this the backward pass of an index adds in the order its threads come.
    """
    before = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


@contextmanager
def out_of_memory_explained(lower: str) -> Iterator[None]:
    """Running out of memory as a sentence that says what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in text:
            raise
        raise RekindleError(
            f"Out of memory: {text.splitlines()[0].rstrip('.') if text else 'an allocation failed'}.", hint=lower
        ) from None
