"""A model from scratch: `init_model`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rekindle.errors import RekindleError, counted, together
from rekindle.store.manifest import Record
from rekindle.store.publish import publishing
from rekindle.train.config import InitConfig
from rekindle.train.finish import write_manifest
from rekindle.train.flops import count_parameters
from rekindle.train.model import save_model
from rekindle.train.tokenizer import make_tokenizer

SPARSE = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "flex_olmo")
DEFAULT_EXPERTS = 8


def init_model(
    out: Path,
    config: InitConfig,
    *,
    command: str,
    options: dict[str, dict[str, Any]],
    recipe: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a model with random weights and a tokenizer to `out`; the same config gives the same bytes.

    `command` is what to type, `recipe` what rekindle.yaml says.
    Raises RekindleError for sizes that make no model and data that make no tokenizer.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    check_sizes(config)
    with publishing(out, overwrite=overwrite) as partial:
        tokenizer = make_tokenizer(config.tokenizer, config.data, config.context, config.text_column)
        tokenizer.save_pretrained(partial)
        settings = AutoConfig.for_model(config.family, **model_settings(config, tokenizer))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
        parameters = count_parameters(model)
        save_model(model.to(getattr(torch, config.dtype)), partial)
        record = Record(verb="init", command=command, options=options, summary=_sentence(config, parameters))
        write_manifest(partial, [record], parameters, recipe)
    return Path(out)


def model_settings(config: InitConfig, tokenizer: Any) -> dict[str, Any]:
    """The config.json of the family, every value that matters written out."""
    ffn = config.ffn or 4 * config.hidden
    settings: dict[str, Any] = {
        "vocab_size": max(tokenizer.get_vocab().values()) + 1,
        "hidden_size": config.hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads or config.heads,
        "max_position_embeddings": config.context,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tie_embeddings,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if config.family in ("llama", "mistral", "mixtral", "qwen3", "qwen3_moe"):
        settings["head_dim"] = config.hidden // config.heads
    if config.family in ("mistral", "mixtral"):
        settings["sliding_window"] = None
    if config.family in SPARSE:
        experts = config.experts or DEFAULT_EXPERTS
        settings |= {
            "num_local_experts" if config.family == "mixtral" else "num_experts": experts,
            "num_experts_per_tok": config.top_k,
            "router_aux_loss_coef": config.aux_loss,
        }
    if config.family in SPARSE and config.family != "mixtral":  # which always renormalises
        settings["norm_topk_prob"] = True
    if config.family in ("qwen2_moe", "qwen3_moe"):
        settings["moe_intermediate_size"] = ffn
    if config.family == "qwen2_moe":
        settings["shared_expert_intermediate_size"] = ffn
    return settings


def check_sizes(config: InitConfig) -> None:
    """All that is wrong with the sizes, at once."""
    problems = []
    for name in ("hidden", "layers", "heads", "kv_heads", "ffn", "experts", "top_k", "context", "rope_theta"):
        value = getattr(config, name)
        if value is not None and value <= 0:
            problems.append(RekindleError(f"{name} is {value}, but it must be positive.", where=f"option {name}"))
    if problems:
        raise together(problems)
    kv_heads = config.kv_heads or config.heads
    if config.hidden % (2 * config.heads):
        problems.append(
            RekindleError(
                f"{config.heads} heads do not divide a hidden size of {config.hidden} into even parts.",
                why="rotary embeddings turn pairs of numbers",
                hint=f"--hidden {2 * config.heads * -(-config.hidden // (2 * config.heads))}",
            )
        )
    if config.heads % kv_heads:
        problems.append(RekindleError(f"{config.heads} heads cannot share {kv_heads} key-value heads evenly."))
    if config.family not in SPARSE and config.experts is not None:
        problems.append(
            RekindleError(f"{config.family} has no experts.", hint=f"--family {', '.join(SPARSE[:-1])} or {SPARSE[-1]}")
        )
    experts = config.experts or DEFAULT_EXPERTS
    if config.family in SPARSE and config.top_k > experts:
        problems.append(RekindleError(f"A token cannot be sent to {config.top_k} of {experts} experts."))
    if problems:
        raise together(problems)


def _sentence(config: InitConfig, parameters: dict[str, int]) -> str:
    return (
        f"{config.family} from scratch: hidden {config.hidden}, {counted(config.layers, 'layer')}, "
        f"{parameters['total']:,} parameters ({parameters['active']:,} active)"
    )
