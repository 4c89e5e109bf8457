"""Which files of a folder hold its weights: those that transformers reads, and what lies beside them unread.

transformers (5.23, `_get_resolved_checkpoint_files`) takes the first that is there of: the file its config names as
`transformers_weights`, model.safetensors, its index, pytorch_model.bin, its index. Shards that lost their index are
read here too, where names and headers leave no doubt.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rekindle.errors import RekindleError, nearest, some
from rekindle.store.header import Stored, read_header
from rekindle.store.index import is_plain, shard_names
from rekindle.store.legacy import Held, read_pickle

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
DIFFUSERS = "diffusion_pytorch_model"  # what diffusers calls the weights of a part of a pipeline
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<of>\d{5})\.(?P<kind>safetensors|bin)")
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".gguf", ".h5", ".msgpack", ".ot", ".onnx", ".npz")
_OF_A_TRAINER = ("optimizer", "scheduler", "rng_state", "training_args", "scaler")

Tensors = dict[str, Stored | Held]


class Weights(NamedTuple):
    tensors: Tensors
    notes: tuple[str, ...]  # what the user should know of the choice
    native: bool  # whether transformers reads the same from this folder
    lost: frozenset[str] = frozenset()  # tensors of shards that are left out, as far as an index lists them


def choice(names: Iterable[str], config: Mapping[str, Any]) -> str | None:
    """The file, or the index of files, that transformers, or diffusers, reads where there are files of these names."""
    names = set(names)
    named = config.get("transformers_weights")
    first = (named,) if is_plain(named) else ()
    if stem_of(config) == DIFFUSERS:
        first = (f"{DIFFUSERS}.safetensors", f"{DIFFUSERS}.safetensors.index.json")
    return next((name for name in (*first, SINGLE, INDEX, PICKLE, PICKLE_INDEX) if name in names), None)


def stem_of(config: Mapping[str, Any]) -> str:
    """What the files of weights beside this config are called, without their ending."""
    return DIFFUSERS if "_diffusers_version" in config else "model"


def read_weights(folder: Path, config: Mapping[str, Any], without: Collection[str] = ()) -> Weights | None:
    """The tensors of a folder, or None where it has no weights at all; raises RekindleError for unclear ones.

    `without`: names of shards that are not read, since they are gone or broken.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    chosen = choice(names, config)
    if chosen is None:
        _refuse_dead_links(folder)
        _refuse_folders(folder)
        return _without_index(folder, config, names, without)
    lost: frozenset[str] = frozenset()
    if not chosen.endswith(".index.json"):
        files = [chosen]
        _check_known(folder, without, [chosen])
        tensors: Tensors = {**(read_pickle if chosen == PICKLE else _header)(folder / chosen)}
    else:
        weight_map = shard_names(folder / chosen)
        files = sorted(set(weight_map.values()))
        _check_known(folder, without, files)
        kept = {name: file for name, file in weight_map.items() if file not in without}
        tensors = _indexed(folder, folder / chosen, kept)
        lost = frozenset(weight_map.keys() - kept.keys())
    notes = [_pickle_note(folder, config)] if chosen in (PICKLE, PICKLE_INDEX) else []
    return Weights(tensors, (*notes, *_beside(folder, chosen, files, names)), native=True, lost=lost)


def _refuse_dead_links(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        if path.is_symlink() and not path.exists() and path.name.endswith(SUFFIXES):
            where = f"{path} -> {path.readlink()}"
            raise RekindleError("This is a link that leads nowhere.", where=where, hint="download the folder again")


def _refuse_folders(folder: Path) -> None:
    """Where files of weights should be, or beside: a folder of that name, or those that many processes write."""
    if named := next((name for name in (SINGLE, INDEX, PICKLE, PICKLE_INDEX) if (folder / name).is_dir()), None):
        inside = some(sorted(path.name for path in (folder / named).iterdir())) or "nothing"
        raise RekindleError(f"{named} is a folder, not a file.", where=folder / named, why=f"in it is {inside}")
    if refusal := in_pieces(folder):
        raise refusal


def in_pieces(folder: Path) -> RekindleError | None:
    """A folder that the processes of a training wrote together: what it is, and what makes weights of it."""
    below = [folder, *(path for path in sorted(folder.iterdir()) if path.is_dir())]
    if place := next((path for path in below if next(path.glob("*.distcp"), None)), None):
        hint = f"accelerate merge-weights {place} {folder}"
        if not place.name.startswith("pytorch_model_fsdp"):
            hint = f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {place} FILE, and its weights"
        return RekindleError(
            f"{folder} has its weights in pieces, as many processes saved them.", where=place, hint=hint
        )
    if place := next((path for path in below if next(path.glob("*_model_states.pt"), None)), None):
        run = folder if place != folder else folder.parent
        hint = f"python zero_to_fp32.py {run} OUT, the script that DeepSpeed left there"
        return RekindleError(f"{folder} has its weights in the pieces of a DeepSpeed training.", where=place, hint=hint)
    return None


def _without_index(
    folder: Path, config: Mapping[str, Any], names: list[str], without: Collection[str]
) -> Weights | None:
    """Numbered shards whose index is missing: read where they are one whole set."""
    shards = {name: match for name in names if (match := SHARD.fullmatch(name))}
    sets = {(match["stem"], match["of"], match["kind"]) for match in shards.values()}
    if not shards:
        if others := [name for name in names if name.endswith(SUFFIXES)]:
            raise RekindleError(
                f"{folder} has no weights that transformers would read, only {some(others)}.",
                where=f"{SINGLE}, {INDEX} or {PICKLE} in {folder}",
                hint=f"if {others[0]} is the model in transformers' names, call it {SINGLE}; or convert it first"
                if others[0].endswith(".safetensors")
                else "the model in the layout of transformers",
            )
        return None
    if len(sets) > 1:
        listed = ", ".join(f"{stem}-*-of-{of}.{kind}" for stem, of, kind in sorted(sets))
        raise RekindleError(f"There are shards of several models, and no index: {listed}.", where=folder)
    (stem, of, kind), first = next(iter(sets)), next(iter(shards))
    wanted = [f"{stem}-{number:05d}-of-{of}.{kind}" for number in range(1, int(of) + 1)]
    _check_known(folder, without, wanted)
    if missing := [name for name in wanted if name not in shards and name not in without]:
        what = f"There is no index, and of its {int(of)} shards {some(missing)} {_are(missing)} missing."
        raise RekindleError(what, where=folder / first, hint=_again(folder, missing))
    tensors: Tensors = {}
    for name in [name for name in wanted if name not in without]:
        held = (read_pickle if kind == "bin" else _header)(folder / name)
        if doubled := sorted(held.keys() & tensors.keys()):
            raise RekindleError(f"{doubled[0]} is in two shards, and no index says which is right.", where=folder)
        tensors |= held
    note = f"{folder} has no index; its {int(of)} shards are one whole set, and are read (transformers would not)"
    return Weights(tensors, (note, *([_pickle_note(folder, config)] if kind == "bin" else [])), native=False)


def _indexed(folder: Path, index_path: Path, weight_map: dict[str, str]) -> Tensors:
    headers: dict[str, Mapping[str, Stored | Held]] = {}
    for file in sorted(set(weight_map.values())):
        if not _exists(folder / file):
            raise RekindleError(f"The shard {file} is missing.", where=folder / file, hint=_again(folder, [file]))
        try:
            headers[file] = (read_pickle if index_path.name == PICKLE_INDEX else _header)(folder / file)
        except RekindleError as error:
            error.hint = _again(folder, [file], error.hint)
            raise
    everywhere = [name for header in headers.values() for name in header]
    if len(everywhere) > len(set(everywhere)):
        twice = next(name for name, times in Counter(everywhere).items() if times > 1)
        raise RekindleError(f"{twice} is in two shards.", where=index_path)
    tensors: Tensors = {}
    for name, file in weight_map.items():
        if name not in headers[file]:
            raise RekindleError(f"The index places {name} in {file}, which does not hold it.", where=index_path)
        tensors[name] = headers[file][name]
    unlisted = [(name, file) for file, header in headers.items() for name in header if name not in tensors]
    if unlisted:
        name, file = unlisted[0]
        raise RekindleError(
            f"{file} holds {len(unlisted)} tensor(s) that the index does not list, such as {name}.",
            where=index_path,
        )
    return tensors


def _check_known(folder: Path, without: Collection[str], shards: list[str]) -> None:
    """Raise RekindleError where what is lost is no shard, or all that there is."""
    for name in without:
        if name not in shards:
            hint = nearest(name, shards) or some(shards) or None
            raise RekindleError(f"{folder} has no shard {name}.", hint=hint)
    if without and not set(shards) - set(without):
        what = f"{folder} has no weights but {some(sorted(without))}: nothing is left to repair."
        raise RekindleError(what, hint="download or copy it again")


def _again(folder: Path, files: list[str], hint: str | None = None) -> str:
    lost = ",".join(f"shard:{file}" for file in files)
    return f"{hint or 'download or copy the folder again'}; or rekindle repair {folder} OUT --lost {lost}"


def _header(path: Path) -> dict[str, Stored]:
    return read_header(path)[0]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _beside(folder: Path, chosen: str, files: list[str], names: list[str]) -> list[str]:
    """What else looks like weights here, that transformers does not read."""
    read = {chosen, *files}
    stale = [name for name in (SINGLE, INDEX, PICKLE, PICKLE_INDEX) if name in names and name not in read]
    others = [name for name in names if name.endswith(SUFFIXES) and name not in {*read, *stale} and is_of_a_model(name)]
    others += [f"{path.name}/" for path in sorted(folder.glob("checkpoint-*")) if path.is_dir()]
    others += ["original/"] if (folder / "original").is_dir() else []
    if not (stale or others):
        return []
    found = [*stale, *others]
    return [f"{chosen} is read, as transformers does; {some(found)} beside it {_are(found)} not"]


def is_of_a_model(name: str) -> bool:
    """Whether a file of this name holds weights, or says where they are; a trainer's own state does not."""
    return name.endswith((*SUFFIXES, ".index.json")) and not name.startswith(_OF_A_TRAINER)


def _pickle_note(folder: Path, config: Mapping[str, Any]) -> str:
    note = "these weights are pickles, read through torch's weights-only loader"
    return f"{note}; `rekindle rewrite {folder} OUT` converts them to safetensors" if config else note


def _are(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"
