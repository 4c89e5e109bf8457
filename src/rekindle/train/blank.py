"""A model that has no weights yet, of any family that the table knows: `blank_model`.

Sizes that no option gives follow from those that are given, by one row for all families: `_row`. A family takes from it
what it has a config key for. What `--set` says goes over both, and the whole is then read as any config.json is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rekindle.anatomy import FAMILIES, Family, Settings, family_named
from rekindle.anatomy.kinds import SYNONYMS, fits, misfits
from rekindle.errors import RekindleError, first_line, nearest, together
from rekindle.train.config import InitConfig

DEFAULT_EXPERTS, DEFAULT_TOP_K = 8, 2
DEFAULT_CONTEXT = 2048
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
MARKS = (*TOKENS, "cls_token_id", "sep_token_id")
_PARTS_OF_A_HEAD = {"none": 1, "latent": 4}  # RoPE turns pairs: of whole heads, or of a half of latent attention's


@dataclass(frozen=True)
class Blank:
    """A model that has no weights yet."""

    family: Family
    settings: Settings
    config: dict[str, Any]  # config.json, every value written out

    def parameters(self) -> dict[str, int]:
        """{"total", "active"}, see Family.parameters; with those that no row of the table names, such as an eye's."""
        return {key: count + self._unnamed for key, count in self.family.parameters(self.settings).items()}

    @cached_property
    def _unnamed(self) -> int:
        if not self.family.opaque:
            return 0
        import torch
        from transformers import AutoConfig

        from rekindle.apply.load import model_class, quietly

        try:
            with quietly(), torch.device("meta"):
                model = model_class(self.settings.output).from_config(AutoConfig.for_model(**self.config))
        except Exception as error:  # of values that the table does not judge
            raise unmakeable(error) from None
        return sum(p.numel() for p in model.parameters()) - self.family.parameters(self.settings)["total"]


def unmakeable(error: Exception) -> RekindleError:
    """What transformers said of a config, as a sentence."""
    return RekindleError(f"transformers cannot make this model: {first_line(error)}.")


def blank_model(config: InitConfig, tokenizer: Any) -> Blank:
    """What `init` makes of these options and a tokenizer; raises RekindleError with all that is wrong with them."""
    family = family_of_options(config)
    check_sizes(config, family)
    row = _row(config, family, tokenizer)
    given = _canonical(config.set or {}, family)
    known = family.config(family.settings(row), row, family).keys()
    if problems := [*_unknown(given, family, known), *_misfits(given, family)]:
        raise together(problems)
    written = _written(_over(row, given), family)
    settings = family.settings(written)
    if family.copies and family.tied == "config" and not settings.tie_word_embeddings:
        what = f"A {family.model_type} whose embeddings are not tied has matrices that no table names."
        raise RekindleError(what, hint="leave --tie-embeddings as it is")
    if problems := [*_idle(row, given, written, family), *_beyond(settings, written, tokenizer)]:
        raise together(problems)
    return Blank(family, settings, written)


def _written(said: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """The whole of a config.json that says no more than this."""
    return family.config(family.settings(said), said, family)


def family_of_options(config: InitConfig) -> Family:
    if config.family not in FAMILIES:
        what = f"The architecture {config.family!r} is not known; known are: {', '.join(FAMILIES)}."
        close = nearest(config.family, FAMILIES)
        raise RekindleError(what, where="option family", hint=f"--family {close}" if close else None)
    return family_named(config.family)


def _row(config: InitConfig, family: Family, tokenizer: Any) -> dict[str, Any]:
    """The config that options and their row of sizes decide, each tower's part where it belongs."""
    with_head = [name for output, name in family.classes.items() if output != "none"]
    own = with_head[:1] or list(family.classes.values())[:1]
    row = {"model_type": family.model_type, "architectures": own, **_keys(config, family, tokenizer, config.layers)}
    end = tokenizer.eos_token_id  # what is written begins with it where the tokenizer has no token for that
    ids = {name: end if getattr(tokenizer, name) is None else getattr(tokenizer, name) for name in TOKENS}
    for number, tower in enumerate(family.towers.values(), 1):
        layers = config.layers if number < len(family.towers) else config.decoder_layers or config.layers
        own_ids = ids if tower.section else ids | {"decoder_start_token_id": ids["pad_token_id"]}
        row = tower.put(row, {**tower.own(row), **_keys(config, tower, tokenizer, layers), **own_ids})
    if family.tied == "weights" and config.tie_embeddings is None:
        # embeddings as wide as a T5's are no head unless what they are multiplied by is scaled, which an mT5's is not
        row["tie_word_embeddings"] = family.settings(row).scaled_output
    if not fits(family, "pad_token_id", row.get("pad_token_id")):
        row["pad_token_id"] = end or 0
    settings = family.settings(row)
    if settings.first_position:
        row[family.keys["max_position_embeddings"]] = settings.max_position_embeddings + settings.first_position
    return row


def _keys(config: InitConfig, family: Family, tokenizer: Any, layers: int) -> dict[str, Any]:
    """The config keys that options and their row of sizes decide, of those that the family, or a tower, has.

    F = 4 D where it is not given, also of each expert and of a shared one. A head has D / H dims. In latent attention
    those are the dims without RoPE and those of a value, with half as many for RoPE, as in DeepSeek-V3; the ranks are
    D / 2 of queries, D / 4 of keys and values. Of a family with dense layers first there is one, and of groups of
    experts too.

    D hidden size   H heads   F feed-forward
    """
    d, heads = config.hidden, config.heads
    ffn, dim = config.ffn or 4 * d, d // heads
    context = config.context or DEFAULT_CONTEXT
    by_setting: dict[str, Any] = {
        "hidden_size": d,
        "intermediate_size": ffn,
        "num_layers": layers,
        "num_heads": heads,
        "head_dim": dim,
        "query_scalar": dim,
        "cross_size": d,
        "max_position_embeddings": context,
        "num_experts": config.experts or DEFAULT_EXPERTS,
        "top_k": config.top_k or DEFAULT_TOP_K,
        "expert_size": ffn,
        "shared_size": ffn,
        "aux_loss_coef": config.aux_loss,
        "norm_topk_prob": True,
        "num_groups": 1,
        "top_k_groups": 1,
        "q_rank": max(1, d // 2),
        "kv_rank": max(1, d // 4),
        "value_dim": dim,
    }
    by_key: dict[str, Any] = {
        "vocab_size": _entries(tokenizer),  # also where a model says again what its towers say
        "num_key_value_heads": config.kv_heads or heads,
        "qk_nope_head_dim": dim,
        "qk_rope_head_dim": dim // 2,
        "first_k_dense_replace": min(1, layers - 1),
        "num_sparse_encoder_layers": max(1, config.layers // 2),
        "num_sparse_decoder_layers": max(1, (config.decoder_layers or config.layers) // 2),
        "original_max_position_embeddings": context,
        "initializer_range": 0.02 if config.init_std is None else config.init_std,
        **{name: getattr(tokenizer, name) for name in MARKS},
    }
    row: dict[str, Any] = {family.keys[s]: value for s, value in by_setting.items() if s in family.keys}
    row |= {key: value for key, value in by_key.items() if key in family.defaults}
    if family.windows == "uniform":
        row["sliding_window"] = None
    if family.rope != "none":
        key = {"percent": "rotary_emb_base", "global": "global_rope_theta"}.get(family.rope, "rope_theta")
        row[key] = 10_000.0 if config.rope_theta is None else config.rope_theta
    if config.labels is not None:
        row["num_labels"] = config.labels
    if config.tie_embeddings is not None:
        row["tie_word_embeddings"] = config.tie_embeddings
    return row


def _entries(tokenizer: Any) -> int:
    return max(tokenizer.get_vocab().values()) + 1


# -- --set KEY=VALUE ---------------------------------------------------------------------------------------


def _canonical(given: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Keys under the one of their names that the family writes, whole numbers as floats where those are wanted."""
    own = {other: key for key, others in SYNONYMS.items() if key in family.defaults for other in others}
    return family.mended({key if key in family.defaults else own.get(key, key): x for key, x in given.items()})


def _over(row: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The one with the other over it; a tower's part of the config, key by key."""
    parts = {
        key: _over(row[key], x) for key, x in given.items() if isinstance(x, dict) and isinstance(row.get(key), dict)
    }
    return {**row, **given, **parts}


def _unknown(given: Mapping[str, Any], family: Family, written: Iterable[str]) -> Iterator[RekindleError]:
    """A sentence for each key that says nothing to the family: `written` are those of its config.json."""
    known = {*written, "head_dim"} if "head_dim" in family.keys else {*written}
    known |= {"rope_parameters"} if "rope_scaling" in known else set()
    known -= {"model_type"} | (set() if len(family.classes) > 1 else {"architectures"})
    options = {"model_type": "--family", "dtype": "--dtype", "torch_dtype": "--dtype"}
    for key in given:
        if key not in known:
            what = f"The config of a {family.model_type} has no key {key!r}."
            hint = options.get(key) or nearest(key, known) or ", ".join(sorted(known))
            yield RekindleError(what, where="option set", hint=hint)


def _misfits(given: Mapping[str, Any], family: Family) -> Iterator[RekindleError]:
    """A sentence for each value of another kind than transformers takes."""
    for error in misfits(family, given):
        yield RekindleError(error.what, where="option set", why=error.why)


def _idle(
    row: Mapping[str, Any], given: Mapping[str, Any], written: Mapping[str, Any], family: Family
) -> Iterator[RekindleError]:
    """A sentence for each value that a model of these sizes does not show, such as a window of layers that are none."""
    for key, value in given.items():
        if value is not None and written.get(key) != value:
            rest = {other: held for other, held in given.items() if other != key}
            if _written(_over(row, rest), family) == written:
                yield RekindleError(f"{key} {value!r} changes nothing in a {family.model_type} of these sizes.",
                                    where="option set", hint=f"leave {key} out, or set what it needs too")  # fmt: skip


def _beyond(settings: Settings, written: Mapping[str, Any], tokenizer: Any) -> Iterator[RekindleError]:
    """Ids that the embeddings have no row for."""
    rows, most = settings.vocab_size, _entries(tokenizer) - 1
    if rows <= most:
        what = f"vocab_size is {rows}, but the tokenizer has ids up to {most}."
        yield RekindleError(what, where="option set", hint="leave vocab_size out, or a smaller --tokenizer")
    if (said := written.get("vocab_size", rows)) != rows:
        what = f"vocab_size is {said}, but the embeddings have {rows} rows."
        yield RekindleError(what, where="option set", hint="the same for the model and for each tower, or leave it out")
    pad = written.get("pad_token_id")
    if pad is not None and not 0 <= pad < rows:
        yield RekindleError(f"pad_token_id is {pad}, but the vocabulary ends at {rows - 1}.", where="option set")


# -- sizes -------------------------------------------------------------------------------------------------


def check_sizes(config: InitConfig, family: Family) -> None:
    """All that is wrong with the sizes, at once."""
    problems = [
        RekindleError(f"{name} is {value}, but it must be positive.", where=f"option {name}")
        for name in ("hidden", "layers", "decoder_layers", "heads", "kv_heads", "ffn", "experts", "top_k", "context",
                     "labels", "rope_theta")
        if (value := getattr(config, name)) is not None and value <= 0
    ]  # fmt: skip
    if problems := problems or [*_misfitting(config, family)]:
        raise together(problems)


def _misfitting(config: InitConfig, family: Family) -> Iterator[RekindleError]:
    name, heads, kv_heads = family.model_type, config.heads, config.kv_heads or config.heads
    towers = list(family.towers.values()) or [family]
    parts = max(_PARTS_OF_A_HEAD.get(tower.rope, 2) for tower in towers)
    if config.hidden % (parts * heads):
        yield RekindleError(
            f"{heads} heads do not divide a hidden size of {config.hidden} into "
            f"{'equal' if parts == 1 else 'even'} parts.",
            why=None if parts == 1 else "rotary embeddings turn pairs of numbers",
            hint=f"--hidden {parts * heads * -(-config.hidden // (parts * heads))}",
        )
    if heads % kv_heads:
        yield RekindleError(f"{heads} heads cannot share {kv_heads} key-value heads evenly.")
    elif kv_heads != heads and not any("num_kv_heads" in tower.keys for tower in towers):
        yield RekindleError(f"Each head of a {name} has keys and values of its own.", hint="leave --kv-heads out")
    sparse = any(tower.sparse for tower in towers)
    if config.experts is not None and not sparse:
        able = [o.model_type for o in FAMILIES.values() if any(t.sparse for t in (o, *o.towers.values()))]
        yield RekindleError(f"{name} has no experts.", hint=f"--family {', '.join(able[:-1])} or {able[-1]}")
    experts, top_k = config.experts or DEFAULT_EXPERTS, config.top_k or DEFAULT_TOP_K
    if any("top_k" in tower.keys for tower in towers):
        if top_k > experts:
            yield RekindleError(f"A token cannot be sent to {top_k} of {experts} experts.")
    elif sparse and config.top_k is not None:
        yield RekindleError(f"Each token of a {name} goes to one expert.", hint="leave --top-k out")
    if config.context is not None and family.reads_images:
        yield RekindleError(f"An image is as many tokens of a {name} as it has patches.",
                            hint="leave --context out; --set image_size=224, --set patch_size=16")  # fmt: skip
    elif config.context is not None and not any("max_position_embeddings" in tower.keys for tower in towers):
        yield RekindleError(f"A text of a {name} has no longest length: its positions are distances.",
                            hint="leave --context out")  # fmt: skip
    if config.labels is not None and not family.reads_images:
        yield RekindleError(f"A {name} gives nothing a label.", hint="--family vit, or leave --labels out")
    if config.init_std is not None and not any("initializer_range" in tower.defaults for tower in towers):
        yield RekindleError(f"The initial weights of a {name} have a standard deviation for each kind of them.",
                            hint="--set initializer_factor=FACTOR multiplies them all")  # fmt: skip
    if config.rope_theta is not None and all(tower.rope == "none" for tower in towers):
        yield RekindleError(f"{name} has no rotary embeddings.", hint="leave --rope-theta out")
    if config.decoder_layers is not None and not family.towers:
        yield RekindleError(f"{name} is one column of layers: it has no decoder beside them.", hint="--layers alone")
