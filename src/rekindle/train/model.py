"""Checkpoint folder <-> transformers model and tokenizer."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import reduce
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from rekindle.anatomy import family_of, runtime_names, serving_spelling
from rekindle.apply.load import fit_experts, quietly
from rekindle.apply.scan import not_finite
from rekindle.edit import ONCE, open_checkpoint, plan
from rekindle.edit.special import WRITER
from rekindle.errors import RekindleError, counted, first_line
from rekindle.store.folder import Folder
from rekindle.train.ties import with_copies

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_SHARD_SIZE = "5GB"
_COPY_TOKENIZER = "copy the tokenizer files of the original checkpoint into the folder"
_TOKENIZER_NAMES = {"tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "merges.txt", "tekken.json"}
_TOKENIZER_JSON = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)
_PARTS = ("model", "added_tokens")  # what every tokenizer.json has
_TOKENIZER_SUFFIXES = {".model", ".tiktoken", ".spm", ".bpe", ".vocab"}


def load_tokenizer(folder: Path | str) -> Any:
    """The tokenizer of a folder or a hub name; raises RekindleError where there is none.

    One that is code of the folder's own is refused: that code never runs, and nobody is asked to let it.
    """
    from transformers import AutoTokenizer

    missing = RekindleError("No tokenizer can be loaded: there is none.", where=folder, hint=_COPY_TOKENIZER)
    if Path(folder).is_dir() and not any(map(_is_of_a_tokenizer, Path(folder).iterdir())):
        raise missing  # transformers would make up an empty one
    try:
        with quietly():
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except BaseException as error:  # libraries of tokenizers raise what they like, down to panics of their own
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise RekindleError(
            f"No tokenizer can be loaded: {_why_none(Path(folder), error)}.",
            where=folder,
            hint=_COPY_TOKENIZER,
        ) from None
    if not tokenizer.get_vocab():
        raise missing
    return tokenizer


def _why_none(folder: Path, error: BaseException) -> str:
    """Why the library loads no tokenizer: the file that is none, where one is; else in its own words."""
    if "trust_remote_code" in str(error):
        return "it is code of the folder's own, which is never run"
    for path in (folder / name for name in _TOKENIZER_JSON):
        try:
            found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except (OSError, ValueError, RecursionError) as broken:
            return f"{path.name} is not JSON ({_first_line(broken)})"
        if not isinstance(found, dict):
            return f"{path.name} is no JSON object"
        lacking = [part for part in _PARTS if part not in found]
        if lacking and path.name == "tokenizer.json" and path.is_file():
            return f'{path.name} has no "{lacking[0]}"'
    return _first_line(error)


def _is_of_a_tokenizer(path: Path) -> bool:
    return path.name in _TOKENIZER_NAMES or path.suffix in _TOKENIZER_SUFFIXES


def stored_dtypes(source: Folder) -> dict[str, torch.dtype]:
    """The dtype that a checkpoint has each tensor in, by the name that the tensor is saved under."""
    tensors = plan(open_checkpoint(source)).tensors
    return {name: _DTYPES.get(tensor.dtype, torch.float32) for name, tensor in tensors.items()}


def as_stored(weights: Mapping[str, torch.Tensor], source: Folder) -> dict[str, torch.Tensor]:
    """Weights in the dtypes that their source has them in; of stacked experts in the widest of theirs.

    transformers casts all of them to the config's dtype where it loads a folder, but engines and readers of files
    do not, and a router or a bias is in float32 for a reason.
    """
    names, dtypes, cast = runtime_names(source.config, weights), stored_dtypes(source), {}
    for name, tensor in weights.items():
        disk = names.get(name, name)
        held = {dtypes[part] for part in ([disk] if isinstance(disk, str) else chain(*disk)) if part in dtypes}
        fits = held and tensor.is_floating_point()
        cast[name] = tensor.to(reduce(torch.promote_types, held)) if fits else tensor
    return cast


def not_finite_weights(source: Folder) -> str | None:
    """Which of a checkpoint's stored weights are NaN or infinite, in words; None where none is.

    Reads all of them: for when a loss is no number, and not before.
    """
    found = not_finite(source)
    if not found:
        return None
    name, values = next(iter(found.items()))
    others = f" and {counted(len(found) - 1, 'other tensor')}" if len(found) > 1 else ""
    return f"{counted(values, 'NaN or infinite value')} in {name}{others}"


def save_model(model: Any, folder: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
    """Weights in the original per-expert layout and config.json as the serving engines read it.

    `weights`: all that are saved, by the model's names for them; those that it holds itself where they are not given.
    """
    if model.can_generate():
        # A source's own generation settings travel as a file; transformers would refuse to write many of them.
        model.generation_config = type(model.generation_config).from_model_config(model.config)
    once = getattr(model.config, ONCE, False)
    held = weights if weights is None or once else with_copies(model, weights)
    with quietly():
        model.save_pretrained(folder, max_shard_size=_SHARD_SIZE, state_dict=held)
    path = folder / "config.json"
    written = weights or dict(model.named_parameters())
    config = json.loads(path.read_text(encoding="utf-8")) | {"dtype": _dtype_of_most(written.values())}
    if (head := model.get_output_embeddings()) is not None:  # transformers says that a T5's is tied whatever it is
        embeddings = (module for module in model.modules() if isinstance(module, torch.nn.Embedding))
        config["tie_word_embeddings"] = any(module.weight is head.weight for module in embeddings)
    config = serving_spelling(config)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _dtype_of_most(weights: Iterable[torch.Tensor]) -> str:
    """Of most bytes; transformers would write the first tensor's."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in weights:
        sizes[tensor.dtype] += tensor.nbytes
    return str(sizes.most_common(1)[0][0]).removeprefix("torch.")


def check_vocabulary(tokenizer: Any, vocab_size: int, where: object) -> None:
    """Refuse a tokenizer that makes ids the model has no embedding for.

    Tokens that were added to it, such as a pad token beyond the embeddings, are no reason: nothing may use them. The
    end of a document is used, and the ids of a text are checked when they are known, see `check_ids`.
    """
    added = tokenizer.get_added_vocab()
    largest = max((id_ for token, id_ in tokenizer.get_vocab().items() if token not in added), default=-1)
    if largest >= vocab_size:
        raise RekindleError(
            f"The tokenizer's ids go up to {largest}, but the model's vocabulary ends at {vocab_size - 1}.",
            where=where,
            why="this tokenizer belongs to another model",
            hint=_COPY_TOKENIZER,
        )
    ends = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.sep_token_id)
    check_ids(next((token for token in ends if token is not None), -1), vocab_size, where)


def check_ids(largest: int, vocab_size: int, where: object = None) -> None:
    """Refuse ids beyond the model's embeddings, naming the largest."""
    if largest >= vocab_size:
        raise RekindleError(
            f"The data holds token {largest}, but the model's vocabulary ends at {vocab_size - 1}.",
            where=where,
            why="the tokenizer belongs to another model, or has tokens the embeddings were not made larger for",
        )


def check_lengths(seq_len: int, config: Mapping[str, Any], micro_batch: int | None) -> None:
    """Refuse sequences the model of a config.json has no positions for; a T5's distances have no end.

    Of an encoder-decoder it is the encoder that reads them.
    """
    whole = family_of(config).settings(config)
    settings = whole.towers.get("encoder", whole)
    context = settings.context
    if settings.num_channels and seq_len != context:
        what = f"seq_len is {seq_len}, but an image is {context} tokens of this model."
        raise RekindleError(what, hint="leave --seq-len out")
    if seq_len < 1 or (seq_len > context and not settings.relative_buckets):
        raise RekindleError(
            f"seq_len is {seq_len}, but the model's context is {context} tokens.", hint=f"--seq-len {min(context, 512)}"
        )
    if micro_batch is not None and micro_batch < 1:
        raise RekindleError(f"micro_batch is {micro_batch}, but it must be at least 1.", where="option micro_batch")


def check_written(length: int, config: Mapping[str, Any]) -> None:
    """Refuse rows of which a model of a config.json would have to write, or to read before it writes, too much."""
    whole = family_of(config).settings(config)
    settings = whole.towers.get("decoder", whole)
    if length > settings.context and not settings.relative_buckets:
        what = f"A row has up to {length} tokens where the model writes, but its context is {settings.context}."
        raise RekindleError(what, hint="a smaller --target-len or --seq-len")


def vocabularies(config: Mapping[str, Any]) -> list[int]:
    """The number of tokens of each tower, that of a model of one alone."""
    settings = family_of(config).settings(config)
    return [own.vocab_size for own in settings.towers.values()] or [settings.vocab_size]


def writer_folder(source: Folder) -> Path | None:
    """Where the tokenizer of what an encoder-decoder writes lies, if that is another than that of what it reads."""
    return source.path / WRITER if source.config.get(WRITER) and (source.path / WRITER).is_dir() else None


def tokenizers_of(source: Folder) -> tuple[Any, Any]:
    """Of what a model reads and of what it writes: one tokenizer, but for encoder-decoders with two vocabularies."""
    reads, folder = load_tokenizer(source.path), writer_folder(source)
    return reads, load_tokenizer(folder) if folder else reads


def model_sizes(config: Mapping[str, Any]) -> tuple[int, int]:
    """(vocabulary, context) of a config.json; raises RekindleError for an unknown architecture."""
    settings = family_of(config).settings(config)
    return settings.vocab_size, settings.context


def cast_experts(model: Any) -> None:
    """Have a mixture of experts compute its experts in the autocast dtype.

    torch's grouped matmul is not on autocast's list, so with float32 weights the experts, most of the arithmetic,
    would stay in float32 under bf16 autocast (github.com/pytorch/pytorch/issues/174763).
    """
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    if not fit_experts(model, torch.bfloat16.itemsize):  # then they are plain products, which autocast knows
        return
    if _AUTOCAST not in ALL_EXPERTS_FUNCTIONS:
        ALL_EXPERTS_FUNCTIONS.register(_AUTOCAST, _autocast_experts)
    model.set_experts_implementation(_AUTOCAST)


_AUTOCAST = "rekindle_autocast"


def _autocast_experts(
    self: torch.nn.Module, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """transformers' grouped experts on weights cast to the autocast dtype."""
    from transformers.integrations.moe import grouped_mm_experts_forward

    if not torch.is_autocast_enabled(hidden.device.type):
        return grouped_mm_experts_forward(self, hidden, index, weights)
    dtype = torch.get_autocast_dtype(hidden.device.type)
    same = ("num_experts", "has_gate", "has_bias", "is_transposed", "has_post_expert_norm", "_is_expert_parallel")
    cast: Any = SimpleNamespace(
        gate_up_proj=self.gate_up_proj.to(dtype),
        down_proj=self.down_proj.to(dtype),
        _apply_gate=self._apply_gate,
        **{name: getattr(self, name) for name in same},
    )
    return grouped_mm_experts_forward(cast, hidden, index, weights)


def _first_line(error: BaseException) -> str:
    logging.getLogger(__name__).debug("from transformers", exc_info=error)
    return first_line(error)
