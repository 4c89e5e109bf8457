"""Load a folder with the library its users will load it with, strictly and quietly."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rekindle.anatomy import family_of
from rekindle.anatomy.settings import meaning
from rekindle.edit.checkpoint import ONCE, Checkpoint
from rekindle.edit.opening import checkpoint_at, open_checkpoint
from rekindle.edit.plan import plan
from rekindle.errors import CheckFailed, RekindleError, first_line
from rekindle.store.dtypes import TORCH
from rekindle.store.files import Files
from rekindle.store.folder import Folder
from rekindle.store.index import read_json
from rekindle.store.stamps import unchanged

_LOADING = threading.RLock()  # transformers changes functions of torch while it loads: one thread at a time


@contextmanager
def quietly() -> Iterator[None]:
    """transformers without its progress bars and advice: stderr is the user's."""
    from transformers.utils import logging

    with _LOADING:
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
    """The transformers class that loads models with this output, see Settings.output; for "class": `named_class`."""
    import transformers

    import rekindle.models  # noqa: F401  # whose classes transformers finds by then

    names = {
        "causal": "AutoModelForCausalLM",
        "masked": "AutoModelForMaskedLM",
        "none": "AutoModel",
        "seq2seq": "AutoModelForSeq2SeqLM",
        "labels": "AutoModelForImageClassification",
        "taught": "AutoModelForImageClassification",
    }
    return getattr(transformers, names[output])


def class_called(name: str) -> Any:
    """transformers' class of this name, or ours."""
    import transformers

    import rekindle.models

    return getattr(rekindle.models, name, None) or getattr(transformers, name)


def named_class(folder: Folder) -> Any:
    """The class of transformers that a config names; None where it names none."""
    import transformers

    names = folder.config.get("architectures")
    found = getattr(transformers, str(names[0]), None) if isinstance(names, list) and names else None
    return found if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) else None


def reads_text(folder: Folder) -> bool:
    """Whether the class that a config names is shown a text."""
    named = named_class(folder)
    return named is not None and named.main_input_name == "input_ids" and text_sizes(folder)[0] > 0


def text_sizes(folder: Folder) -> tuple[int, int]:
    """How many tokens a model that no table knows can be shown (0: none), and how long a text.

    Half of its positions: some classes count them from 2 on.
    """
    try:
        config = config_of(folder).get_text_config()
    except Exception as error:  # of configs, down to assertions
        raise unloadable(error, folder, unaided=False) from None
    vocab_size, positions = (getattr(config, name, None) for name in ("vocab_size", "max_position_embeddings"))
    sure = [x if type(x) is int and x > 0 else 0 for x in (vocab_size, positions)]
    return sure[0], sure[1] // 2 or 128


def config_of(folder: Folder, *, unaided: bool = False) -> Any:
    """transformers' config of an opened checkpoint; `unaided`: of the file alone, even where it is read otherwise here.

    No code of the folder's own runs, and nothing asks for any.
    """
    from transformers import AutoConfig

    import rekindle.models  # noqa: F401  # see `model_class`

    with quietly():
        if unaided:
            return AutoConfig.from_pretrained(folder.path, trust_remote_code=False)
        return AutoConfig.for_model(**folder.config)


def check_output(folder: Folder, output: str, hint: str | None = None) -> None:
    """Raises RekindleError where a checkpoint's model puts out something else, see Settings.output."""
    found = family_of(folder.config).settings(folder.config).output
    if found != output:
        raise RekindleError(
            f"This {folder.config['model_type']} {meaning('output', found)}; "
            f"needed is one that {meaning('output', output)}.",
            where=folder.path,
            hint=hint,
        )


def load_model(source: Folder | Path, dtype: str = "float32", output: str = "causal", *, unaided: bool = False) -> Any:
    """The model of an opened checkpoint's folder, or of a path, in `dtype`, on the CPU, with grouped expert kernels
    where its sizes allow them.

    `unaided`: as transformers has it of the folder alone, even where that is read otherwise here. Raises RekindleError
    where its output is another, and where weights are missing, superfluous or misshaped.
    """
    import torch

    folder = source if isinstance(source, Folder) else checkpoint_at(source).folder
    unaided = unaided and not folder.config.get(ONCE)
    by_class = named_class(folder) if output == "class" else None
    if by_class is None:
        check_output(folder, output)
    try:
        with unchanged(folder.check_unchanged), quietly(), Files() as files:
            how = {"dtype": getattr(torch, dtype), "output_loading_info": True}
            if not unaided and not _is_on_disk(folder):
                how["config"] = config_of(folder)  # else transformers reads it as any user has it read
            if unaided or folder.native:
                own = by_class or model_class(output)
                model, report = own.from_pretrained(folder.path, trust_remote_code=False, **how)
            else:
                own = by_class or class_called(family_of(folder.config).classes[output])
                how["config"] = config_of(folder)
                model, report = own.from_pretrained(None, state_dict=_state(folder, files), **how)
    except RekindleError:
        raise
    except Exception as error:  # of configs, files and shapes, down to assertions
        raise unloadable(error, folder, unaided) from None
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, report[kind])):
            found = f"{len(names)} {kind.replace('_', ' ')}, such as {names[0]}"
            if unaided and not folder.native:
                raise unloadable(ValueError(found), folder, unaided)
            raise RekindleError(f"The weights do not fit the config: {found}.", where=folder.path)
    fit_experts(model)
    return model


def _is_on_disk(folder: Folder) -> bool:
    """Whether its config is, to the letter, the file's."""
    on_disk = read_json(folder.path / "config.json", missing="")
    return json.dumps(folder.config, sort_keys=True) == json.dumps(on_disk, sort_keys=True)


def unloadable(error: Exception, folder: Folder, unaided: bool) -> RekindleError:
    """What transformers said, as a sentence; a failed check where it was left `unaided` with what only is read here."""
    reason = first_line(error)
    if unaided and not (folder.native and _is_on_disk(folder)):
        what, hint = f"transformers itself cannot load this model: {reason}.", f"rekindle rewrite {folder.path} MENDED"
        return CheckFailed(what, where=folder.path, why="here it is read with notes, see `inspect`", hint=hint)
    return RekindleError(f"transformers cannot load this model: {reason}.", where=folder.path)


def fit_experts(model: Any, itemsize: int | None = None) -> bool:
    """Whether torch's grouped kernels take a model's experts, of values of `itemsize` bytes: rows of whole 16 bytes.

    Where they do not, it computes one expert after the other from now on.
    """
    stacks = [p for name, p in model.named_parameters() if ".experts." in name and p.ndim == 3]
    fit = not any(size * (itemsize or p.itemsize) % 16 for p in stacks for size in p.shape[1:])
    if not fit:
        model.set_experts_implementation("eager")
    return fit


def _state(folder: Folder, files: Files) -> dict[str, Any]:
    """The tensors of a folder that transformers cannot read itself, under the names it would look for."""
    import torch

    state = {}
    for name, expr in plan(open_checkpoint(folder), whole=True).tensors.items():
        raw = expr.raw(0, expr.num_rows, files).reshape(expr.shape)
        state[name] = torch.from_numpy(np.array(raw)).view(getattr(torch, TORCH[expr.dtype]))
    return state


def fit(*checkpoints: Checkpoint, besides: int = 0) -> bool:
    """Whether these models in float32, and so many bytes, leave a third of the free memory for activations."""
    import psutil

    needed = besides + sum(4 * checkpoint.parameters()["total"] for checkpoint in checkpoints)
    return needed < psutil.virtual_memory().available * 2 / 3
