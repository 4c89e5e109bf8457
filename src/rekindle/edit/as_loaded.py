"""A folder as transformers takes it with these weights, whatever its config says: what is code, codes, or left over.

The config of what comes out says it rightly, and names no code: what transformers is handed from here on never asks
for any.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from rekindle.edit.checkpoint import ONCE, REPEATED, TIED
from rekindle.errors import RekindleError
from rekindle.store.folder import Folder
from rekindle.store.weights import Tensors

FLOATS = {"F64", "F32", "F16", "BF16"}
# Ends of the names that tensors have beside codes: scales, zero points, look-up tables.
OF_CODES = (
    "_scale", "_scale_inv", ".scales", ".qzeros", ".qweight", ".g_idx", ".absmax", ".quant_map", "_packed", "_blocks",
    ".SCB", "weight_format", ".codebooks", ".codes",
)  # fmt: skip
# What a config may say of how to run it, and of files that it would be run from; no part of a checkpoint.
TO_RUN = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation",
          "transformers_weights", "custom_pipelines", "return_dict")  # fmt: skip
NO_MODELS = ("AutoTokenizer", "AutoProcessor", "AutoImageProcessor", "AutoFeatureExtractor", "AutoVideoProcessor")
WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # torch.compile, FSDP


def as_loaded(folder: Folder) -> Folder:
    """The same folder, its config as transformers takes it; raises RekindleError for weights that are codes."""
    config = {key: value for key, value in folder.config.items() if key not in TO_RUN}
    left_over = _without_left_over(config, folder)  # it would have transformers look for codes
    _check_told(config)
    notes = [*_without_code(config), *left_over, *_with_todays_rope(config)]
    plain = not left_over and "transformers_weights" not in folder.config  # which this config no longer names
    tensors = folder.tensors
    if config.get(ONCE):
        copies = {name: tensors[of] for name, of in config.get(TIED, {}).items() if of in tensors}
        tensors = dict(tensors) | copies
        plain = False  # transformers would draw the copies anew
    return replace(
        folder, config=config, tensors=tensors, notes=(*folder.notes, *notes), native=folder.native and plain
    )


def _check_told(config: Mapping[str, Any]) -> None:
    """What Rekindle tells itself of parameters that are one; raises RekindleError for what it cannot have written."""
    for key, kind in ((TIED, str), (REPEATED, int)):
        told = config.get(key)
        if told and not (isinstance(told, dict) and all(type(value) is kind for value in told.values())):
            wanted = "names to names" if kind is str else "towers to numbers"
            raise RekindleError(
                f"{key} is no map of {wanted}.", where="config.json", hint=f"no {key}, or what wrote it"
            )


def _without_code(config: dict[str, Any]) -> list[str]:
    """Take the model's own code out of a config: the class is the library's, here and in all that is made of it."""
    named = config.get("auto_map")
    if not isinstance(named, dict):
        return []
    kept = {name: where for name, where in named.items() if name in NO_MODELS}
    config.pop("auto_map")
    if kept:
        config["auto_map"] = kept
    if kept == named:
        return []
    code = next(where for name, where in named.items() if name not in kept)
    used = "the library's class is used, and what is made names no such code"
    return [f"the config names code of its own ({code}): {used}"]


def _without_left_over(config: dict[str, Any], folder: Folder) -> list[str]:
    """Take out a quantization_config that was left where the weights are plain floats again."""
    said = config.get("quantization_config")
    if not said or folder.bare or not _are_floats(folder.tensors):
        return []
    method = said.get("quant_method", "unknown") if isinstance(said, dict) else said
    del config["quantization_config"]
    return [
        f"config.json says quantised ({method}), but all weights are plain floats: the entry is left over, and ends"
    ]


def _with_todays_rope(config: dict[str, Any]) -> list[str]:
    """phi3's first name for longrope, under which transformers 5 no longer finds its lengths."""
    scaling = config.get("rope_scaling")
    if config.get("model_type") != "phi3" or not isinstance(scaling, dict):
        return []
    key = "rope_type" if "rope_type" in scaling else "type"
    if scaling.get(key) != "su":
        return []
    config["rope_scaling"] = scaling | {key: "longrope"}
    return ["RoPE of the kind su is read as longrope, its name today"]


def _are_floats(tensors: Tensors) -> bool:
    return all(t.dtype in FLOATS and not name.endswith(OF_CODES) for name, t in tensors.items())


def unwrapped(names: Iterable[str], known: Mapping[str, Any]) -> tuple[dict[str, str], str] | None:
    """{name: name without the wrapper's part}, and that part, where most names are known then; else None.

    torch.compile, FSDP and checkpointing put a word of their own between a model's names, of some layers or of all; DDP
    and trainers put the name of an attribute before all. `known` are names that a model may have.
    """
    names = list(names)
    plain = {name: ".".join(part for part in name.split(".") if part not in WRAPPERS) for name in names}
    parts = {part for name in names for part in name.split(".") if part in WRAPPERS}
    some_known = any(name in known for name in plain.values())
    first = [] if some_known else _common(plain.values())
    for count in range(len(first) + 1):
        cut = {name: ".".join(text.split(".")[count:]) for name, text in plain.items()}
        if (count or parts) and sum(name in known for name in cut.values()) * 2 > len(names):
            return cut, ".".join([*first[:count], *sorted(parts)])
    return None


def half_wrapped(unknown: Collection[str], missing: Collection[str]) -> str | None:
    """What stands before all the names that are missing, where they are there with that before them: else None."""
    one = next(iter(missing), None)
    befores = (name.removesuffix(one) for name in unknown if one and name.endswith(f".{one}"))
    return next((before for before in befores if all(before + name in unknown for name in missing)), None)


def _common(names: Iterable[str]) -> list[str]:
    """The leading parts that all names share, short of a whole name."""
    split = [name.split(".") for name in names]
    common = []
    for parts in zip(*(parts[:-1] for parts in split), strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return common


def refuse_codes(names: Iterable[str], folder: Folder) -> None:
    """Raise RekindleError where a scale or the like lies among tensors that no model has: others are codes."""
    if found := next((name for name in names if name.endswith(OF_CODES)), None):
        raise RekindleError(
            f"These weights are quantised ({found}), but config.json has no quantization_config.",
            where=folder.path,
            why="transformers would take the codes for the weights",
            hint="the checkpoint this one was quantised from",
        )


def refuse_adapters(names: Iterable[str], folder: Folder) -> None:
    """Raise RekindleError where an adapter's matrices lie among the weights."""
    if found := next((name for name in names if ".lora_" in name or ".base_layer." in name), None):
        raise RekindleError(
            f"Among the weights are those of an adapter, such as {found}.",
            where=folder.path,
            hint="peft's merge_and_unload(), then save_pretrained(MERGED), and MERGED here",
        )
