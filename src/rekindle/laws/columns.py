"""Which column of a file is which of ours: by our name, or guessed from the names that trackers and papers use.

A guess is told; where two columns could be meant, or the one that is needed is not there, the file's columns are
listed with what to type. A unit in a name (`total_gflops`, `tokens (B)`) is a factor on its numbers, and told too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rekindle.errors import RekindleError, nearest, some

NUMBERS = ("loss", "params", "sunk", "tokens", "flops", "experts", "top_k", "granularity", "active_share")
LABELS = ("way", "run", "trunk", "seed")
OTHERS = ("step", "state")  # of a history, and how a run ended
OURS = (*NUMBERS, *LABELS, *OTHERS)
SHOWN = 24  # columns of a file in a sentence

# Names for each of ours as they read once folders, brackets and signs are gone. Of several that are there the first
# group counts; two of one group are a question.
_NAMES: dict[str, tuple[str, ...]] = {
    "loss": ("loss l val_loss valid_loss validation_loss eval_loss test_loss final_loss final_val_loss loss_val "
             "loss_valid loss_eval eval_val_loss", "train_loss training_loss loss_train"),
    "params": ("n n1 parameters model_size n_params num_params params_count param_count parameter_count n_parameters "
               "num_parameters total_params total_parameters params_total model_params model_parameters "
               "non_embedding_params params_non_embedding n_params_non_embedding num_non_embedding_params",),
    "sunk": ("d1 sunk_tokens pretrain_tokens pretraining_tokens",),
    "tokens": ("d d2 n_tokens num_tokens tokens_seen tokens_trained trained_tokens total_tokens tokens_total "
               "num_train_tokens training_tokens consumed_tokens num_input_tokens_seen num_tokens_seen",),
    "flops": ("c flop training_flop training_flops train_flops total_flops total_flop flops_total total_flos "
              "train_total_flos compute total_compute train_compute training_compute",),
    "way": ("option arm",),
    "run": ("run_id id", "run_name", "name"),
    "trunk": ("branch",),
    "step": ("global_step train_global_step trainer_global_step iteration iter",),
    "state": ("status",),
}  # fmt: skip
_FOLDERS = ("config", "summary", "metrics", "params", "tags", "hparams", "model", "data", "train", "args", "cfg")
_RATE = re.compile(r"_(per_?)?(s|sec|second|gpu|device|step|token)$")
_UNITS = {
    "k": 1e3, "thousand": 1e3, "thousands": 1e3, "m": 1e6, "mn": 1e6, "million": 1e6, "millions": 1e6, "b": 1e9,
    "bn": 1e9, "billion": 1e9, "billions": 1e9, "t": 1e12, "tn": 1e12, "trillion": 1e12, "trillions": 1e12,
}  # fmt: skip
_PREFIXES = {"k": 1e3, "kilo": 1e3, "m": 1e6, "mega": 1e6, "g": 1e9, "giga": 1e9, "t": 1e12, "tera": 1e12,
             "p": 1e15, "peta": 1e15, "e": 1e18, "exa": 1e18, "z": 1e21, "zetta": 1e21}  # fmt: skip
_COUNTED = ("params", "sunk", "tokens", "flops")


@dataclass(frozen=True)
class Column:
    """The file's name for one of ours, and what its numbers are multiplied with."""

    name: str
    factor: float = 1.0


@dataclass(frozen=True)
class Columns:
    """Our name -> the file's column; `notes` say what was guessed and scaled."""

    found: Mapping[str, Column]
    notes: tuple[str, ...]


def columns_of(header: Sequence[str], given: Mapping[str, str], where: object) -> Columns:
    """Raises RekindleError where a given name is not there, or two columns could be meant."""
    header = [name for name in header if name]
    for ours, theirs in given.items():
        if ours not in OURS:
            raise RekindleError(
                f"There is no column {ours!r} to name.", where="--columns", hint=nearest(ours, OURS) or ", ".join(OURS)
            )
        if theirs not in header:
            hint = nearest(theirs, header) or some(header, SHOWN)
            raise RekindleError(f"The table has no column {theirs!r}.", where=where, hint=hint)
    found = {ours: _given(ours, theirs) for ours, theirs in given.items()}
    taken = {theirs for ours, theirs in given.items() if ours != "step"}  # what counts tokens may order a history too
    free, guessed = [name for name in header if name not in taken], []
    for ours in OURS:
        meant = None if ours in found else _matching(ours, free, where)
        if meant is not None:
            found[ours] = meant
            guessed += [ours] if meant.name.strip().lower() != ours else []
    return Columns(found, tuple(_notes(found, guessed)))


def _notes(found: Mapping[str, Column], guessed: Sequence[str]) -> Iterator[str]:
    if guessed:
        pairs = ", ".join(f"{ours} from {found[ours].name}" for ours in guessed)
        yield f"columns guessed: {pairs}; --columns {guessed[0]}=NAME says otherwise"
    for ours, column in found.items():
        if column.factor != 1:
            yield f"{ours} is {column.name} times {column.factor:g}, as its name says"
    if "loss" in found and "train" in _plain(found["loss"].name):
        yield f"{found['loss'].name} is a training loss; a law is of the validation loss"


def _given(ours: str, theirs: str) -> Column:
    plain, factor = _split(ours, theirs)
    if ours == "flops" and _RATE.search(plain):
        what = f"{theirs} is a rate by its name; flops are those of the whole run."
        raise RekindleError(what, where="--columns", hint="--columns tokens=NAME_IN_FILE")
    return Column(theirs, factor)


def _matching(ours: str, header: Sequence[str], where: object) -> Column | None:
    """The column that is meant: one of our name, or else the only one of the first group of names that is there."""
    exact = [name for name in header if name.strip().lower() == ours]
    if exact and ours != "loss":
        return Column(exact[0])
    for group in (ours + " " + _NAMES.get(ours, ("",))[0], *_NAMES.get(ours, ("",))[1:]):
        there = {name: factor for name in header for base, factor in [_split(ours, name)] if base in group.split()}
        if len(there) > 1:
            names = list(there)
            what = f"{' and '.join(names)} could each be {ours}."
            raise RekindleError(what, where=where, hint=f"--columns {ours}={names[0]}, or {ours}={names[1]}")
        if there:
            return Column(*next(iter(there.items())))
    return None


def _plain(name: str) -> str:
    """`config.n_params`, `Val/Loss` and `model size` as n_params, val_loss and model_size."""
    parts = [part for part in re.split(r"[./]", name.strip().lower()) if part]
    while len(parts) > 1 and parts[0] in _FOLDERS and parts != ["train", "loss"]:
        parts = parts[1:]
    return re.sub(r"[\s:|_-]+", "_", "_".join(parts)).strip("_")


def _split(ours: str, name: str) -> tuple[str, float]:
    """A name without its unit, and the unit's factor: `tokens (B)`, `n_params_millions`, `total_gflops`."""
    plain = _plain(re.sub(r"[\[(]\s*([\w.]+)\s*[\])]", r"_\1", name))
    if ours not in _COUNTED:
        return plain, 1.0
    base, _, unit = plain.rpartition("_")
    if base and unit in _UNITS:
        return base, _UNITS[unit]
    if ours == "flops":
        prefix = re.fullmatch(r"(.*_)?(kilo|mega|giga|tera|peta|exa|zetta|[kmgtpez])_?(flops?|flos)", plain)
        if prefix:
            return (prefix[1] or "bare_") + prefix[3], _PREFIXES[prefix[2]]  # "gflops" alone may be a rate: no guess
    return plain, 1.0
