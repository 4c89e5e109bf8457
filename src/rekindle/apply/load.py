"""Load a folder with the library its users will load it with, strictly and quietly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rekindle.errors import RekindleError


@contextmanager
def quietly() -> Iterator[None]:
    """transformers without its progress bars and advice: stderr is the user's."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def load_model(folder: Path, dtype: str = "float32") -> Any:
    """The causal language model of a folder in `dtype`, on the CPU, with grouped expert kernels.

    Raises RekindleError where weights are missing, superfluous or misshaped.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with quietly():
            model, report = AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, dtype), output_loading_info=True
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RekindleError(f"transformers cannot load this model: {reason}.", where=folder) from None
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, report[kind])):
            raise RekindleError(
                f"The weights do not fit the config: {len(names)} {kind.replace('_', ' ')}, such as {names[0]}.",
                where=folder,
            )
    return model
