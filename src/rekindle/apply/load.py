"""Load a folder with the library its users will load it with, strictly and quietly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rekindle.anatomy import family_of
from rekindle.anatomy.settings import meaning
from rekindle.edit.checkpoint import Checkpoint
from rekindle.errors import RekindleError
from rekindle.store.folder import read_json


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


def model_class(output: str) -> Any:
    """The transformers class that loads models with this output, see Settings.output."""
    import transformers

    names = {"causal": "AutoModelForCausalLM", "masked": "AutoModelForMaskedLM", "none": "AutoModel"}
    return getattr(transformers, names[output])


def load_model(folder: Path, dtype: str = "float32", output: str = "causal") -> Any:
    """The model of a folder in `dtype`, on the CPU, with grouped expert kernels.

    Raises RekindleError where its output is another, and where weights are missing, superfluous or misshaped.
    """
    import torch

    config = read_json(folder / "config.json", missing=f"{folder} is not a checkpoint: it has no config.json.")
    found = family_of(config).settings(config).output
    if found != output:
        raise RekindleError(
            f"This {config['model_type']} {meaning('output', found)}; needed is one that {meaning('output', output)}.",
            where=folder,
        )
    try:
        with quietly():
            model, report = model_class(output).from_pretrained(
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


def fit(*checkpoints: Checkpoint, besides: int = 0) -> bool:
    """Whether these models in float32, and so many bytes, leave a third of the free memory for activations."""
    import psutil

    needed = besides + sum(4 * checkpoint.parameters()["total"] for checkpoint in checkpoints)
    return needed < psutil.virtual_memory().available * 2 / 3
