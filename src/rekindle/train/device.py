"""Where the arithmetic happens: accelerate's devices and ranks, precision, memory."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from rekindle.errors import RekindleError
from rekindle.ranks import number_of_ranks
from rekindle.train.config import Precision

if TYPE_CHECKING:
    from accelerate import Accelerator

_LOGITS_BYTES = 1 << 30  # what the float32 logits of one forward pass may take
_FORWARD_TOKENS = 16384
_SHARDED = {  # what `accelerate launch` sets
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}


def make_accelerator(precision: Precision, **options: Any) -> Accelerator:
    """accelerate's view of this process; of several, each holds the whole model and takes its share of the data."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    refuse_sharded()
    AcceleratorState._reset_state()  # it would refuse another precision than an earlier call's in this process
    bf16 = precision == "bf16" or (
        precision == "auto" and torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    )
    # Without a GPU accelerate joins the ranks only where the CPU is asked for; else each believes itself alone.
    cpu = number_of_ranks() > 1 and not torch.accelerator.is_available()
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no", cpu=cpu, **options)
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise _sharded(accelerator.distributed_type.value)
    return accelerator


def refuse_sharded() -> None:
    """Raises RekindleError where `accelerate launch` was told to shard: before anything is read or loaded."""
    for variable, name in _SHARDED.items():
        if os.environ.get(variable, "false").lower() in ("true", "1", "yes"):
            raise _sharded(name)


def _sharded(name: str) -> RekindleError:
    return RekindleError(
        f"Training under {name} is not supported: each device holds the whole model here.",
        why="the weights would be sharded, and checkpoints and optimizer state are written from whole ones",
        hint="torchrun, or accelerate launch --multi_gpu, with --gradient-checkpointing",
    )


def device_name(device: torch.device | None = None) -> str:
    """What metrics.jsonl calls a device; without one, that on which a run would be."""
    cuda = torch.cuda.is_available() if device is None else device.type == "cuda"
    return torch.cuda.get_device_name(device) if cuda else device.type if device else "cpu"


def micro_batch_size(asked: int | None, seq_len: int, vocab_size: int) -> int:
    """Sequences per forward pass: as asked, or as many as keep the float32 logits within 1 GiB."""
    if asked is not None:
        return asked
    return max(1, min(_FORWARD_TOKENS, _LOGITS_BYTES // (4 * max(1, vocab_size))) // seq_len)


def peak_memory(device: torch.device) -> int:
    """The most memory this process has held, bytes: of the GPU on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class _Determinism:
    """torch's settings for the same bits each time. They are the process's: the first of several runs at once sets them
    and the last that ends sets them back.
    """

    def __init__(self) -> None:
        self.runs, self.lock, self.before = 0, threading.Lock(), (False, True)

    @staticmethod
    def _set(algorithms: bool, filled: bool) -> None:
        torch.use_deterministic_algorithms(algorithms)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]

    def __enter__(self) -> None:
        with self.lock:
            self.runs += 1
            if self.runs == 1:
                filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
                self.before = torch.are_deterministic_algorithms_enabled(), filled
                self._set(True, False)

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.runs -= 1
            if self.runs == 0:
                self._set(*self.before)


_DETERMINISM = _Determinism()


def reproducible(device: torch.device) -> AbstractContextManager[None]:
    """Have the CPU give the same bits each time; on a GPU that would cost speed, and resuming is close, not equal.

    Without this the backward pass of an index adds in the order its threads come.
    """
    return _DETERMINISM if device.type == "cpu" else nullcontext()


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
