"""Models from scratch."""

from __future__ import annotations

import json
import math
import os
import shlex
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from train_helpers import rows

from rekindle import api
from rekindle.anatomy import FAMILIES, family_of
from rekindle.apply.load import load_model, model_class, quietly
from rekindle.config import resolve
from rekindle.errors import RekindleError
from rekindle.store.folder import open_folder
from rekindle.store.manifest import read_manifest
from rekindle.train.config import InitConfig
from rekindle.train.init import init_model
from rekindle.train.model import load_tokenizer

TOWERS = {"hidden": 16, "layers": 2, "heads": 4, "ffn": 24, "tokenizer": "bpe:300"}
SIZES = TOWERS | {"context": 64}


EYED = "t5gemma2"  # with a vision tower that --set alone shapes
EYE = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
       "patch_size": 4}  # fmt: skip
CAUSAL = [name for name, family in FAMILIES.items() if "causal" in family.classes]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_loads_where_its_users_load_it(family: str, tmp_path: Path, corpus: Path):
    """With nothing but a family said, and how small an eye is.

    As transformers has it of the folder alone, as `inspect` and a price see it.
    """
    told = {"family": family, "tokenizer": "bpe:300", "data": str(corpus)}
    told |= {"set": {"encoder": {"vision_config": EYE}}} if family == EYED else {}
    made = api.init(tmp_path / "m", **told)
    seen, price = api.inspect(made), api.init_cost(**told)
    assert seen["family"] == family
    assert not seen["notes"]
    settings = family_of(open_folder(made).config).settings(open_folder(made).config)
    with quietly():
        model, report = model_class(settings.output).from_pretrained(made, output_loading_info=True)
    assert not any(report.values())
    assert type(model).__name__ == FAMILIES[family].classes[settings.output]
    assert settings.output == next((output for output in FAMILIES[family].classes if output != "none"), "none")
    assert seen["parameters"]["total"] == price["parameters"]["total"] == sum(p.numel() for p in model.parameters())
    assert price["bytes"] == 4 * price["parameters"]["total"]
    vocab_size = 400 if FAMILIES[family].towers else 300  # T5's 100 sentinels come after the tokenizer's own
    assert (seen["hidden_size"], seen["layers"], seen["heads"]["query"]) == (64, 2, 4)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    again = api.run(made / "rekindle.yaml", tmp_path / "again")
    alike = ["model.safetensors", "config.json", *([] if seen["images"] else ["tokenizer.json"])]
    for name in alike:
        assert (again / name).read_bytes() == (made / name).read_bytes()
    if seen["images"]:
        assert model(torch.zeros(1, 3, 224, 224))[0].shape[0] == 1
        assert not (made / "tokenizer.json").exists()
        return
    assert seen["vocab_size"] == vocab_size
    assert {model.config.vocab_size, json.loads((made / "config.json").read_text())["vocab_size"]} == {vocab_size}
    two = {"decoder_input_ids": torch.arange(10)[None]} if FAMILIES[family].towers else {}
    out = model(input_ids=torch.arange(10)[None], **two)
    outputs = out.last_hidden_state if settings.output == "none" else out.logits
    assert outputs.shape == (1, 10, 64 if settings.output == "none" else vocab_size)
    assert torch.isfinite(outputs).all()


@pytest.mark.parametrize("family", CAUSAL)
def test_each_decoder_tokenises_and_trains(family: str, small: Callable[..., Path], run: Callable):
    table = FAMILIES[family]
    folder = small(family, **{"kv_heads": 1} if "num_kv_heads" in table.keys else {})
    opened = open_folder(folder)
    assert opened.config["model_type"] == family
    if table.rope == "whole":
        assert opened.config["rope_theta"] == 10000.0  # the spelling that serving engines read
    table.settings(opened.config)  # the anatomy knows what we wrote
    assert not any("gate_up_proj" in name for name in opened.tensors) or family == "phi3"
    text = "def f(x):\n    return  x + 1  # naïve\t😀"
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    out, summary = run(folder, tokens=1024)
    assert summary["val_loss"] < summary["val_loss_before"]
    assert set(open_folder(out).tensors) == set(opened.tensors)
    sparse = rows(out, "eval")[0]["expert_load"] is not None
    assert sparse == bool(table.sparse)
    loaded = load_model(out)
    assert loaded.config.pad_token_id is None  # a padding row would never be trained
    assert loaded.config.eos_token_id == tokenizer.eos_token_id
    windows = opened.config.get("use_sliding_window") or opened.config.get("sliding_window") is None
    assert windows or table.windows in ("patterned", "alternating")


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
        ({"family": "lama"}, "'lama' is not known(.|\n)*--family llama"),
        ({"family": "gpt2", "experts": 4}, "gpt2 has no experts(.|\n)*deepseek_v3"),
        ({"family": "gpt2", "kv_heads": 2}, "Each head of a gpt2"),
        ({"family": "deepseek_v3", "kv_heads": 2}, "Each head of a deepseek_v3"),
        ({"family": "deepseek_v3", "hidden": 24}, "4 heads do not divide a hidden size of 24"),
        ({"family": "gpt2", "hidden": 18}, "4 heads do not divide a hidden size of 18 into equal parts"),
        ({"family": "bert", "rope_theta": 1e6}, "bert has no rotary"),
        ({"decoder_layers": 2}, "llama is one column of layers"),
        ({"decoder_layers": 0}, "decoder_layers is 0"),
        ({"set": {"hiden_act": "gelu"}}, "llama has no key 'hiden_act'(.|\n)*hidden_act"),
        ({"set": {"model_type": "gpt2", "dtype": "bfloat16"}}, "2 problems(.|\n)*--family(.|\n)*--dtype"),
        ({"set": {"mlp_bias": 1}}, "mlp_bias is 1, but of llama it is true or false"),
        ({"set": {"hidden_act": "sillu"}}, "'sillu', which transformers does not know"),
        ({"set": {"num_attention_heads": 3}}, "3 heads cannot share 4"),
        ({"set": {"num_hidden_layers": 0}}, "num_hidden_layers is 0"),
        ({"family": "gpt_neox", "set": {"hidden_size": 2}}, "leaves nothing to each of 4 heads"),
        ({"family": "deepseek_v3", "set": {"moe_intermediate_size": 0}}, "no expert has any units"),
        ({"set": {"vocab_size": 299}}, "vocab_size is 299, but the tokenizer has ids up to 299"),
        ({"family": "t5gemma", "set": {"vocab_size": 500}}, "vocab_size is 500, but the embeddings have 400 rows"),
        ({"family": EYED, "tie_embeddings": False}, "t5gemma2 whose embeddings are not tied"),
        ({"set": {"pad_token_id": 300}}, "pad_token_id is 300, but the vocabulary ends at 299"),
        ({"set": {"rope_scaling": {"rope_type": "foo"}}}, "RoPE of the kind 'foo'"),
        ({"set": {"architectures": ["BertModel"]}}, "llama has no key 'architectures'"),
        ({"family": "bert", "set": {"architectures": ["BertFor"]}}, "class BertFor is not known"),
        ({"family": "t5", "context": 1024}, "t5 has no longest length(.|\n)*--context"),
        ({"family": "umt5", "init_std": 0.5}, "umt5 have a standard deviation for each(.|\n)*initializer_factor"),
        ({"family": "switch_transformers", "top_k": 2}, "goes to one expert(.|\n)*--top-k"),
        ({"family": "qwen2", "set": {"use_sliding_window": True}}, "changes nothing"),
        ({"family": "gpt2", "set": {"resid_pdrop": 2.0}}, "transformers cannot make this model: dropout"),
    ],
)
def test_refused(tmp_path: Path, corpus: Path, changes: dict[str, Any], said: str):
    config = InitConfig(**({"data": str(corpus)} | SIZES | changes))  # type: ignore[arg-type]
    with pytest.raises(RekindleError, match=said):
        init_model(tmp_path / "m", config, command="", options={})
    assert not list(tmp_path.iterdir())


def test_a_t5_is_as_wide_at_first_as_its_factor_says(tmp_path: Path, corpus: Path):
    told = {"family": "t5", "data": str(corpus), **TOWERS}
    one, two = (
        load_model(api.init(tmp_path / str(x), **told, set={"initializer_factor": x}), output="seq2seq").state_dict()
        for x in (1.0, 2.0)
    )
    assert all(torch.equal(one[name] * 2, two[name]) for name in one)


@pytest.mark.parametrize(
    ("family", "given", "read"),
    [
        ("llama", {"mlp_bias": True, "head_dim": 6}, {"mlp_bias": True, "head_dim": 6}),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, {"rope_theta": 7.0}),
        ("llama", {"vocab_size": 320, "initializer_range": 1}, {"vocab_size": 320}),
        ("gpt2", {"hidden_size": 32}, {"hidden_size": 32}),  # under another name of the key
        ("gemma3_text", {"sliding_window_pattern": 2, "sliding_window": 8}, {"windows": (8, None)}),
        ("gemma3_text", {"layer_types": ["full_attention"] * 2}, {"windows": (None, None)}),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 1}, {"windows": (None, 4096)}),
        ("qwen3_moe", {"decoder_sparse_step": 2}, {"sparse_layers": (1,)}),
        ("qwen2_moe", {"num_local_experts": 4, "shared_expert_intermediate_size": 8}, {"num_experts": 4}),
        ("deepseek_v3", {"q_lora_rank": None, "n_shared_experts": 2}, {"q_rank": None, "shared_size": 48}),
        ("gpt_neox", {"rotary_pct": 1}, {"rotary_dim": 4}),
        ("bert", {"architectures": ["BertModel"]}, {"output": "none"}),
        ("roberta", {"architectures": ["RobertaModel"]}, {"output": "none", "context": 64}),
        ("bert-generation", {"hidden_act": "relu"}, {"output": "none", "context": 64}),
    ],
)
def test_any_key_of_the_config_can_be_set(family: str, given: dict, read: dict, tmp_path: Path, corpus: Path):
    made = api.init(tmp_path / "m", family=family, data=str(corpus), set=given, **SIZES)
    settings = api.open(made).checkpoint.settings
    assert {name: getattr(settings, name) for name in read} == read
    load_model(made, output=settings.output)
    again = api.run(made / "rekindle.yaml", tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()


def test_what_is_typed_again_is_the_same(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch):
    """`--set` as it was given, over and over, and a family's ties undone."""
    from click.testing import CliRunner

    from rekindle.cli.verbs import rekindle

    monkeypatch.chdir(tmp_path)
    typed = ["init", "m", "--family", "gpt2", "--no-tie-embeddings", "--set", "n_head=2", "--set", "n_inner=20",
             "--tokenizer", "bpe:300", "--data", str(corpus)]  # fmt: skip
    assert CliRunner().invoke(rekindle, typed).exit_code == 0
    settings = api.open("m").checkpoint.settings
    assert (settings.num_heads, settings.intermediate_size, settings.tie_word_embeddings) == (2, 20, False)
    manifest = read_manifest(Path("m"))
    assert manifest is not None
    again = shlex.split(manifest.lineage[0].command.replace(" m ", " again "))[1:]
    assert CliRunner().invoke(rekindle, again).exit_code == 0
    assert Path("again/model.safetensors").read_bytes() == Path("m/model.safetensors").read_bytes()


@pytest.mark.parametrize("text", ["mlp_bias", "=true", "mlp_bias=[1", "mlp_bias=2020-01-01"])
def test_what_says_no_key_and_value(text: str):
    with pytest.raises(RekindleError, match="set is"):
        resolve(InitConfig, {"set": (text,)})


@pytest.mark.parametrize("family", [name for name, table in FAMILIES.items() if table.towers and name != EYED])
def test_a_decoder_of_its_own_depth(family: str, tmp_path: Path, corpus: Path):
    made = api.init(tmp_path / "m", family=family, decoder_layers=3, **TOWERS | {"data": str(corpus)})
    settings = api.open(made).checkpoint.settings
    assert [tower.num_layers for tower in settings.towers.values()] == [2, 3]
    manifest = read_manifest(made)
    assert manifest is not None
    assert "encoder of 2 layers and decoder of 3 layers, " in manifest.lineage[0].summary
    with quietly():
        model = model_class(settings.output).from_pretrained(made)
    model(input_ids=torch.arange(10)[None], labels=torch.arange(7)[None]).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if ".experts." not in name}
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients.values())


@pytest.mark.parametrize("family", ["t5", "mt5", "umt5"])
@pytest.mark.parametrize("said", ["option", "set", "default"])
def test_a_t5_has_the_head_that_is_asked_for(family: str, said: str, tmp_path: Path, corpus: Path, run: Callable):
    """Counted, written, said and trained as such; where it is said or not, a loss begins near that of a guess."""
    asked = {"option": {"tie_embeddings": False}, "set": {"set": {"tie_word_embeddings": False}}, "default": {}}[said]
    told = {"family": family, "data": str(corpus), **TOWERS, "hidden": 64, **asked}
    made, price = api.init(tmp_path / "m", **told), api.init_cost(**told)
    own = bool(asked) or family == "mt5"  # as real ones have: its output is not scaled
    assert ("lm_head.weight" in open_folder(made).tensors) == own
    with quietly():
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(made)
    assert torch.equal(model.lm_head.weight, model.shared.weight) == (not own)
    manifest, total = read_manifest(made), sum(p.numel() for p in model.parameters())
    assert manifest is not None
    assert manifest.parameters["total"] == price["parameters"]["total"] == total
    assert f"{total:,} parameters" in manifest.lineage[0].summary
    assert not api.inspect(made)["notes"]
    generator = torch.Generator().manual_seed(0)
    ids, labels = torch.randint(0, 400, (2, 16, 32), generator=generator)
    loss = model(input_ids=ids, labels=labels).loss.item()
    assert loss == pytest.approx(math.log(400), abs=1.5)
    if own:
        out, summary = run(made, tokens=1024, seq_len=16)
        assert summary["val_loss"] < summary["val_loss_before"]
        assert "lm_head.weight" in open_folder(out).tensors


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


@pytest.mark.parametrize("family", ["t5", "switch_transformers", "t5gemma"])
def test_a_decoder_deeper_than_its_encoder_generates_as_it_is_made(
    family: str, tmp_path: Path, corpus: Path, caplog: pytest.LogCaptureFixture
):
    """A T5 without a cache, which a note says."""
    told = {name: size for name, size in SIZES.items() if name != "context"}
    made = api.init(tmp_path / "m", family=family, decoder_layers=3, data=str(corpus), **told)
    with quietly():
        model = model_class("seq2seq").from_pretrained(made)
    model.generate(torch.arange(10)[None], max_new_tokens=3, do_sample=False)
    assert ("use_cache=False" in caplog.text) == (family != "t5gemma")
