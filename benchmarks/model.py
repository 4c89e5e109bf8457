"""The checkpoint that the benchmarks work on: random weights, made once, nothing downloaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from rekindle.anatomy import FAMILIES
from rekindle.apply.shards import Shard, write_index
from rekindle.edit.arithmetic import Fill
from rekindle.store.dtypes import from_float

LLAMA_2GB = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000, "hidden_size": 2048,
    "intermediate_size": 6144, "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 16,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "hidden_act": "silu",
}  # fmt: skip


def make(folder: Path, shards: int = 4, layers: int = 16, **sizes: int) -> Path:
    """A bf16 llama of 2.0 GB, or with more layers or other sizes another, in `shards` files; kept for the next run."""
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    family, config = FAMILIES["llama"], LLAMA_2GB | {"num_hidden_layers": layers} | sizes
    table = [(name, shape) for _, (name, shape, _) in family.table(family.settings(config))]
    rng = np.random.default_rng(0)
    # one block of noise, rolled: random enough for bytes to be moved, and made at memory speed
    noise = from_float(rng.standard_normal(1 << 24, np.float32) * 0.02, "BF16")
    size = sum(2 * int(np.prod(shape)) for _, shape in table) / shards
    groups: list[dict] = [{} for _ in range(shards)]
    done = 0.0
    for name, shape in table:
        groups[min(shards - 1, int(done / size))][name] = Fill("BF16", shape, 0.0)
        done += 2 * int(np.prod(shape))
    made = [Shard(f"model-{i:05d}-of-{shards:05d}.safetensors", group) for i, group in enumerate(groups, 1)]
    for shard in made:
        head, _ = shard.header()
        with (folder / shard.file).open("wb") as file:
            file.write(head)
            for i, expr in enumerate(shard.tensors.values()):
                left = expr.nbytes // 2
                while left:
                    take = np.roll(noise, i)[:left]
                    file.write(take.tobytes())
                    left -= take.size
    write_index(made, folder)
    _tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def _tokenizer(folder: Path) -> None:
    """A tokenizer of a few words: mergekit will not start without one."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({str(i): i for i in range(100)}, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "0", "pad_token": "1"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
