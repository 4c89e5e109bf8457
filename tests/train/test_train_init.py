"""Models from scratch."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from train_helpers import rows

from rekindle.anatomy import family_of
from rekindle.apply.load import load_model
from rekindle.errors import RekindleError
from rekindle.store.folder import open_folder
from rekindle.store.manifest import read_manifest
from rekindle.train.config import Family, InitConfig
from rekindle.train.init import init_model
from rekindle.train.model import load_tokenizer

SIZES = {"hidden": 16, "layers": 2, "heads": 4, "ffn": 24, "context": 64, "tokenizer": "bpe:300"}


@pytest.mark.parametrize("family", get_args(Family))
def test_each_family_loads_tokenises_and_trains(family: str, small: Callable[..., Path], run: Callable):
    folder = small(family, kv_heads=1)
    opened = open_folder(folder)
    assert opened.config["model_type"] == family
    assert opened.config["rope_theta"] == 10000.0  # the spelling that serving engines read
    family_of(opened.config).settings(opened.config)  # the anatomy knows what we wrote
    assert not any("gate_up_proj" in name for name in opened.tensors)
    text = "def f(x):\n    return  x + 1  # naïve\t😀"
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    out, summary = run(folder, tokens=1024)
    assert summary["val_loss"] < summary["val_loss_before"]
    assert set(open_folder(out).tensors) == set(opened.tensors)
    sparse = rows(out, "eval")[0]["expert_load"] is not None
    assert sparse == (family not in ("llama", "mistral", "qwen2", "qwen3", "olmo2"))
    loaded = load_model(out)
    assert loaded.config.pad_token_id is None  # a padding row would never be trained
    assert loaded.config.eos_token_id == tokenizer.eos_token_id
    assert opened.config.get("use_sliding_window") or opened.config.get("sliding_window") is None


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, corpus: Path):
    def made(name: str, seed: int) -> dict[str, bytes]:
        config = InitConfig(family="mixtral", experts=4, data=str(corpus), seed=seed, **SIZES)  # type: ignore[arg-type]
        init_model(tmp_path / name, config, command="same", options={})
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    before = torch.random.get_rng_state()
    first = made("a", 0)
    assert made("b", 0) == first
    assert made("c", 1)["model.safetensors"] != first["model.safetensors"]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_is_asked_for_is_what_is_written(tmp_path: Path, corpus: Path):
    config = InitConfig(
        family="qwen3_moe", experts=6, top_k=3, kv_heads=2, tie_embeddings=True, dtype="bfloat16", rope_theta=5e5,
        aux_loss=0.02, data=str(corpus), **SIZES,
    )  # type: ignore[arg-type] # fmt: skip
    init_model(tmp_path / "m", config, command="rekindle init m", options={"seed": {"value": 0, "origin": "default"}})
    written = json.loads((tmp_path / "m" / "config.json").read_text())
    expected = {
        "num_experts": 6, "num_experts_per_tok": 3, "norm_topk_prob": True, "moe_intermediate_size": 24,
        "num_key_value_heads": 2, "tie_word_embeddings": True, "rope_theta": 5e5, "router_aux_loss_coef": 0.02,
        "max_position_embeddings": 64, "vocab_size": 300, "head_dim": 4,
    }  # fmt: skip
    assert {key: written[key] for key in expected} == expected
    tensors = open_folder(tmp_path / "m").tensors
    assert {tensor.dtype for tensor in tensors.values()} == {"BF16"}
    assert "lm_head.weight" not in tensors
    manifest = read_manifest(tmp_path / "m")
    assert manifest is not None
    (record,) = manifest.lineage
    assert (record.verb, record.command, record.tokens) == ("init", "rekindle init m", 0)
    assert manifest.parameters["active"] < manifest.parameters["total"]


def test_an_existing_tokenizer(tmp_path: Path, small: Callable[..., Path]):
    config = InitConfig(**{**SIZES, "tokenizer": str(small())})  # type: ignore[arg-type]
    init_model(tmp_path / "m", config, command="", options={})
    assert load_tokenizer(tmp_path / "m").get_vocab() == load_tokenizer(small()).get_vocab()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden": 18}, "4 heads do not divide a hidden size of 18"),
        ({"hidden": 0}, "hidden is 0"),
        ({"kv_heads": 3}, "cannot share 3 key-value heads"),
        ({"experts": 4}, "llama has no experts"),
        ({"family": "olmoe", "experts": 4, "top_k": 5}, "sent to 5 of 4 experts"),
        ({"tokenizer": "bpe:100"}, "at least 257"),
        ({"tokenizer": "bpe:many"}, "at least 257"),
        ({"tokenizer": "no/such-tokenizer"}, "No tokenizer can be loaded"),
        ({"data": "./missing.txt"}, "no such file"),
    ],
)
def test_refused(tmp_path: Path, corpus: Path, changes: dict[str, Any], said: str):
    config = InitConfig(**({"data": str(corpus)} | SIZES | changes))  # type: ignore[arg-type]
    with pytest.raises(RekindleError, match=said):
        init_model(tmp_path / "m", config, command="", options={})
    assert not list(tmp_path.iterdir())


def test_weights_are_readable_by_whom_other_files_are(run: Callable, corpus: Path, tmp_path: Path):
    """safetensors writes for the owner alone."""
    before = os.umask(0o027)
    try:
        config = InitConfig(**SIZES, data=str(corpus))
        blank = init_model(tmp_path / "blank", config, command="", options={})
        trained, _ = run(blank)
    finally:
        os.umask(before)
    files = [path for folder in (blank, trained) for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".safetensors" for path in files)
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o640}
