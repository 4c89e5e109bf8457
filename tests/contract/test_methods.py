"""One contract for every method, on every family: read from the table of methods."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from dataclasses import fields

import pytest
import yaml
from safetensors.torch import load_file
from tiny_models import DECODERS, DENSE, FAMILIES, MASKED, NO_HEAD, OF_IMAGES, SPARSE

from rekindle import api
from rekindle.config import dump_yaml, resolve, to_dict
from rekindle.errors import RekindleError
from rekindle.methods import METHODS
from rekindle.store.header import read_header

TWIN = {"llama": "mixtral", "mistral": "mixtral", "qwen2": "qwen2_moe", "qwen3": "qwen3_moe", "olmo2": "flex_olmo"}

TOWERS = ("t5", "mt5", "umt5", "t5gemma", "t5gemma2")
EVERYWHERE = {"num_sparse_encoder_layers": 4, "num_sparse_decoder_layers": 4}  # experts, of a switch

NO_KV_HEADS = ("gpt2", "gpt_neox", "deepseek_v3")
KV_HEADS = tuple(family for family in DECODERS if family not in NO_KV_HEADS)
WINDOWS = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
GROUPS = {"init": "virtual-group", "granularity": 4}

# (verb, options, families it works on, config changes of the parent)
ROWS = [
    ("upcycle", {"experts": 4}, DENSE, {}),
    ("upcycle", {"experts": 4, "top_k": 1}, DENSE, {}),
    ("upcycle", {"experts": 3, "top_k": 3, "router_std": 1.0}, DENSE, {}),
    ("upcycle", {"experts": 1, "top_k": 1}, DENSE, {}),
    ("upcycle", {"experts": 4, "target": "qwen2_moe"}, ("llama", "mistral", "qwen2"), {}),
    ("upcycle", {"experts": 4, "layers": "every:2"}, ("llama", "mistral", "qwen2", "qwen3"), {}),
    ("upcycle", {"experts": 4, "layers": "0,2"}, ("qwen3",), {}),
    ("upcycle", {"experts": 4}, ("llama", "qwen2", "olmo2"), {"tie_word_embeddings": True}),
    ("upcycle", {"experts": 4}, ("llama", "mistral", "qwen3"), {"head_dim": 16}),
    ("upcycle", {"experts": 4}, ("mistral",), {"sliding_window": 8}),
    ("upcycle", {"experts": 4}, ("qwen2",), WINDOWS),
    ("upcycle", {"experts": 4}, ("qwen3", "olmo2"), {"attention_bias": True}),
    ("upcycle", {"experts": 4}, DENSE, {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 3e3}}),
    ("upcycle", {"experts": 4}, DENSE, {"rms_norm_eps": 0.1}),
    ("upcycle", {"experts": 4, "init": "noise", "noise": 0.0}, ("llama",), {}),
    ("upcycle", {"experts": 4, "init": "drop", "drop_ratio": 0.0}, (*DENSE, "phi3"), {}),
    ("upcycle", {"experts": 8, "top_k": 4} | GROUPS, (*DENSE, "phi3"), {}),
    ("upcycle", {"experts": 8, "top_k": 8, "router_std": 1.0} | GROUPS, (*DENSE, "phi3"), {}),
    ("upcycle", {"experts": 4, "shared_experts": 1}, ("llama", "mistral", "qwen2"), {}),
    ("upcycle", {"experts": 4, "init": "drop", "shared_experts": 1}, ("llama", "mistral", "qwen2"), {}),
    ("upcycle", {"experts": 6, "top_k": 3, "shared_experts": 1} | GROUPS, ("llama", "mistral", "qwen2"), {}),
    ("upcycle", {"experts": 1, "layers": "all", "tower": "both"}, ("t5",), {}),
    ("upcycle", {"experts": 4}, ("vit",), {}),
    ("upcycle", {"experts": 8, "top_k": 1, "group": "batch", "layers": "all", "router_std": 1.0}, ("vit",), NO_HEAD),
    ("upcycle", {"experts": 4, "routing": "tokens"}, ("vit",), {"qkv_bias": False}),
    ("grow-depth", {"factor": 2, "order": "llama-pro"}, (*DECODERS, *OF_IMAGES), {}),
    ("grow-depth", {"layers": 4, "order": "llama-pro"}, ("llama", "olmo2", "flex_olmo"), {"attention_bias": True}),
    ("grow-depth", {"factor": 3, "order": "llama-pro"}, ("llama",), {"mlp_bias": True}),
    ("grow-depth", {"layers": 5, "order": "llama-pro"}, ("mistral", "mixtral"), {"sliding_window": 8}),
    ("grow-depth", {"layers": 5, "order": "llama-pro"}, ("qwen2", "qwen3"), WINDOWS),
    ("grow-depth", {"layers": 3}, ("llama", "qwen2_moe"), {}),
    ("grow-depth", {"factor": 2, "order": "llama-pro", "tower": "decoder"}, TOWERS, {}),
    ("grow-depth", {"factor": 2, "order": "llama-pro", "tower": "both"}, ("t5", "t5gemma2"), {}),
    ("grow-depth", {"factor": 2, "order": "llama-pro", "tower": "both"}, ("switch_transformers",), EVERYWHERE),
    ("grow-experts", {"noise": 0.0}, (*SPARSE, "vmoe"), {}),
    ("grow-experts", {"noise": 0.0, "factor": 3}, ("vmoe",), {"routing": "tokens", "moe_layers": [0, 2]}),
    ("grow-experts", {"noise": 0.0, "factor": 3}, SPARSE, {}),
    ("grow-experts", {"noise": 0.0}, ("qwen2_moe", "qwen3_moe", "olmoe", "flex_olmo"), {"norm_topk_prob": True}),
    ("grow-experts", {"noise": 0.0}, ("qwen3_moe",), {"mlp_only_layers": [1]}),
    ("grow-experts", {"noise": 0.0}, ("deepseek_v3",), {"norm_topk_prob": False}),
    ("grow-experts", {"noise": 0.0}, ("deepseek_v3",), {"n_group": 1, "topk_group": 1, "norm_topk_prob": False}),
    ("grow-experts", {"factor": 1}, SPARSE, {}),
    ("gqa", {"kv_heads": 4}, KV_HEADS, {}),
    ("gqa", {"kv_heads": 4}, ("llama", "olmo2", "phi3"), {"num_key_value_heads": 1}),
    ("gqa", {"kv_heads": 4}, ("llama", "qwen3", "olmoe"), {"attention_bias": True}),
    ("gqa", {"kv_heads": 2}, KV_HEADS, {}),
    ("gqa", {"kv_heads": 4, "tower": "decoder"}, ("t5gemma", "t5gemma2"), {}),
    ("rewrite", {}, FAMILIES, {}),
    ("rewrite", {}, ("bert",), MASKED),
    ("rewrite", {}, ("llama", "qwen2_moe"), {"tie_word_embeddings": True}),
]
PARENT = {"grow-experts": "mixtral"}  # what the tests of every method give it, where that is not a llama
NAMED = {"encoder": "bert", "decoder": "gpt2"}
CASES = [(verb, options, family, changes) for verb, options, families, changes in ROWS for family in families]


def label(value):
    return value if isinstance(value, str) else ",".join(f"{k}={v}" for k, v in value.items() if k != "rope_parameters")


def parent_of(verb, tiny, **changes):
    """What a method is given: a folder, two of a method that takes several, or those that its options name."""
    if METHODS[verb].named_by:
        return {name: tiny(family, **changes) for name, family in NAMED.items()}
    family = PARENT.get(verb, "llama")
    first = tiny(family, **changes)
    return [first, tiny(family, seed=1, **changes)] if METHODS[verb].takes == "models" else first


def folders(parent):
    return [*parent.values()] if isinstance(parent, dict) else parent if isinstance(parent, list) else [parent]


def tensors(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(("verb", "options", "family", "changes"), CASES, ids=label)
def test_promise_holds_on_logits_and_output_loads(tiny, tmp_path, verb, options, family, changes):
    parent = tiny(family, **changes)
    out = api.apply(verb, parent, **options).save(tmp_path / "out")
    verdict = api.verify(out, against=parent, tokens=128)
    assert verdict.promise == "exact"
    assert verdict.held, verdict
    assert verdict.loss_child == pytest.approx(verdict.loss_parent, abs=1e-5)  # None of encoders


@pytest.mark.parametrize("family", DENSE)
def test_promise_holds_block_by_block(tiny, tmp_path, family):
    out = api.upcycle(tiny(family), experts=4).save(tmp_path / "out")
    blockwise = api.verify(out, against=tiny(family), tokens=128, blockwise=True)
    whole = api.verify(out, against=tiny(family), tokens=128, blockwise=False)
    assert blockwise.held
    assert blockwise.blockwise
    assert blockwise.loss_child == pytest.approx(whole.loss_child, abs=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("verb", METHODS)
def test_dtype_is_kept(tiny, tmp_path, verb, dtype):
    parent = parent_of(verb, tiny, dtype=dtype)
    out = api.apply(verb, parent, **METHODS[verb].trial).save(tmp_path / "out")
    stored = {t.dtype for t in read_header(out / "model.safetensors")[0].values()}
    first = folders(parent)[0]
    assert stored == {t.dtype for t in read_header(first / "model.safetensors")[0].values()}
    verdict = api.verify(out, against=first, tokens=128)
    assert verdict.held
    assert (verdict.stored_difference is None) == (dtype == "float32")


@pytest.mark.parametrize("verb", METHODS)
def test_same_seed_same_bytes(tiny, tmp_path, verb):
    model = api.apply(verb, parent_of(verb, tiny), **METHODS[verb].trial)
    one = model.save(tmp_path / "one", checksum=True)
    many = model.save(tmp_path / "many", checksum=True, workers=3)
    assert (one / "model.safetensors").read_bytes() == (many / "model.safetensors").read_bytes()


def test_neutral_configs_give_the_parent_back(tiny, tmp_path):
    """rewrite changes nothing; one expert holds the parent's bytes."""
    parent = tensors(tiny("llama"))
    again = tensors(api.rewrite(tiny("llama")).save(tmp_path / "again"))
    assert parent.keys() == again.keys()
    assert all((parent[name] == again[name]).all() for name in parent)
    single = tensors(api.upcycle(tiny("llama"), experts=1, top_k=1).save(tmp_path / "single"))
    expert = single["model.layers.1.block_sparse_moe.experts.0.w3.weight"]
    assert (expert == parent["model.layers.1.mlp.up_proj.weight"]).all()
    heads = tensors(api.gqa(tiny("llama"), kv_heads=2).save(tmp_path / "heads"))
    assert all((parent[name] == heads[name]).all() for name in parent)


@pytest.mark.parametrize("verb", METHODS)
def test_config_survives_yaml_both_ways(verb):
    options = resolve(METHODS[verb].config, METHODS[verb].trial)
    back = resolve(METHODS[verb].config, {}, yaml.safe_load(dump_yaml(to_dict(options.config))))
    assert back.config == options.config
    assert set(back.origins.values()) == {"file"}


@pytest.mark.parametrize("verb", METHODS)
def test_command_line_is_the_api(tiny, tmp_path, verb):
    options = {name.replace("_", "-"): value for name, value in METHODS[verb].trial.items()}
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    parent = parent_of(verb, tiny)
    sources = [] if isinstance(parent, dict) else map(str, folders(parent))
    named = parent.items() if isinstance(parent, dict) else ()
    flags += [word for name, source in named for word in (f"--{name}", str(source))]
    command = [sys.executable, "-m", "rekindle", verb, *sources, str(tmp_path / "cli"), *flags]
    subprocess.run(command, check=True, capture_output=True)
    api.apply(verb, parent_of(verb, tiny), **METHODS[verb].trial).save(tmp_path / "api")
    for name in ("model.safetensors", "config.json", "rekindle.yaml"):
        assert (tmp_path / "cli" / name).read_bytes() == (tmp_path / "api" / name).read_bytes()


@pytest.mark.parametrize("verb", METHODS)
def test_saved_recipe_repeats_it(tiny, tmp_path, verb):
    out = api.apply(verb, parent_of(verb, tiny), **METHODS[verb].trial).save(tmp_path / "out", max_shard_size=50_000)
    model, save_options = api.load_recipe(out / "rekindle.yaml")
    again = model.save(tmp_path / "again", **save_options)
    for shard in out.glob("*.safetensors"):
        assert shard.read_bytes() == (again / shard.name).read_bytes()


@pytest.mark.parametrize("verb", METHODS)
def test_dry_run_writes_nothing(tiny, tmp_path, verb):
    job = api.apply(verb, parent_of(verb, tiny), **METHODS[verb].trial).job()
    out = api.apply(verb, parent_of(verb, tiny), **METHODS[verb].trial).save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == [out]
    header = read_header(out / "model.safetensors")[0]
    assert {name: (x.dtype, x.shape) for name, x in job.plan.tensors.items()} == {
        name: (stored.dtype, stored.shape) for name, stored in header.items()
    }
    assert job.nbytes == sum(stored.nbytes for stored in header.values())


@pytest.mark.parametrize("verb", METHODS)
def test_card_and_lineage_say_where_it_came_from(tiny, tmp_path, verb):
    parent = parent_of(verb, tiny)
    out = api.apply(verb, parent, **METHODS[verb].trial).save(tmp_path / "out")
    card = (out / "README.md").read_text()
    assert all(str(folder) in card for folder in folders(parent))
    assert METHODS[verb].url in card
    assert api.inspect(out)["lineage"][-1]["verb"] == verb


@pytest.mark.parametrize("verb", METHODS)
def test_method_reads_like_a_method_section(verb):
    module = METHODS[verb].module
    assert "Preserves the" in module.__doc__
    assert all(f.metadata["help"] for f in fields(module.Config))
    first = "parents" if METHODS[verb].takes == "models" else "parent"
    assert list(inspect.signature(METHODS[verb].function).parameters) == [first, "config"]
    assert METHODS[verb].paper == "" or "arXiv" in module.__doc__


@pytest.mark.parametrize("verb", METHODS)
def test_wrong_option_names_the_nearest(verb, tiny):
    known = fields(METHODS[verb].config)[0].name
    with pytest.raises(RekindleError, match=f"no option '{known}z'") as error:
        api.apply(verb, parent_of(verb, tiny), **{known + "z": 1}, **METHODS[verb].trial)
    assert error.value.hint == known


# -- sparse upcycling's own ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "changes", "options", "words"),
    [
        ("llama", {}, {"target": "qwen3_moe"}, "normalises queries and keys head by head"),
        ("llama", {}, {"target": "olmoe"}, "normalises queries and keys over all heads"),
        ("llama", {}, {"target": "flex_olmo"}, "normalises after each branch"),
        ("qwen2", {}, {"target": "mixtral"}, "has no biases on q, k and v"),
        ("llama", {"attention_bias": True}, {}, "has no bias on the attention output"),
        ("llama", {"mlp_bias": True}, {}, "has no biases in its feed-forwards"),
        ("llama", {"head_dim": 16}, {"target": "qwen2_moe"}, "no head_dim of its own"),
        ("olmo2", {}, {"layers": "every:2"}, "has experts in every layer"),
        ("llama", {}, {"target": "mixtral", "layers": "0"}, "has experts in every layer"),
        ("mistral", {"sliding_window": 8}, {"target": "olmoe"}, "has no attention window"),
        ("mixtral", {}, {}, "has experts already"),
        ("llama", {}, {"top_k": 9}, "9 of 4 experts cannot be chosen"),
        ("llama", {}, {"experts": 0}, "0 experts are too few"),
        ("llama", {}, {"layers": "7"}, "There is no layer 7"),
        ("llama", {}, {"layers": "some"}, "names no layers"),
        ("llama", {}, {"layers": "last:9"}, "asks for 9 of 3"),
        ("llama", {}, {"router_std": -1.0}, "not a standard deviation"),
    ],
    ids=label,
)
def test_upcycling_is_refused_with_the_reason(tiny, family, changes, options, words):
    with pytest.raises(RekindleError, match=words):
        api.upcycle(tiny(family, **changes), **({"experts": 4} | options))


def test_auto_takes_the_first_twin_that_can_hold_it(tiny):
    for family, twin in TWIN.items():
        assert api.upcycle(tiny(family), experts=4).checkpoint.family.model_type == twin
    assert api.upcycle(tiny("llama"), experts=4, layers="last:1").checkpoint.family.model_type == "qwen2_moe"


def test_config_is_written_out_for_engines_with_other_defaults(tiny, tmp_path):
    """Mixtral's default theta is 1e6 and its eps 1e-5, llama's 1e4 and 1e-6."""
    out = api.upcycle(tiny("llama"), experts=4).save(tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert config["rope_theta"] == 10000.0
    assert config["rms_norm_eps"] == 1e-6
    assert config["sliding_window"] is None
    assert config["num_local_experts"] == 4
    assert config["architectures"] == ["MixtralForCausalLM"]


def test_routing_weights_are_renormalised(tiny):
    for family in ("qwen2", "qwen3", "olmo2"):
        assert api.upcycle(tiny(family), experts=4).checkpoint.config["norm_topk_prob"] is True


def test_one_expert_per_token_warns(tiny):
    assert any("no gradient" in note for note in api.upcycle(tiny("llama"), experts=4, top_k=1).checkpoint.notes)


def test_shared_expert_is_stated_and_silent(tiny, tmp_path):
    model = api.upcycle(tiny("qwen2"), experts=4)
    assert any("6 of the parent's 48 units" in note and "6.2%" in note for note in model.checkpoint.notes)
    child, parent = tensors(model.save(tmp_path / "out")), tensors(tiny("qwen2"))
    shared = "model.layers.0.mlp.shared_expert"
    assert (child[f"{shared}.up_proj.weight"] == parent["model.layers.0.mlp.up_proj.weight"][:6]).all()
    assert not child[f"{shared}.down_proj.weight"].any()
    assert not child[f"{shared}_gate.weight"].any()


def test_noise_is_lossy_and_says_by_how_much(tiny, tmp_path):
    out = api.upcycle(tiny("llama"), experts=4, init="noise", noise=0.05).save(tmp_path / "out")
    verdict = api.verify(out, against=tiny("llama"), tokens=128)
    assert verdict.promise == "lossy"
    assert verdict.held
    assert verdict.relative_difference > 1e-3
    child, parent = tensors(out), tensors(tiny("llama"))
    gate = parent["model.layers.0.mlp.gate_proj.weight"]
    added = [child[f"model.layers.0.block_sparse_moe.experts.{e}.w1.weight"] - gate for e in range(4)]
    assert all(abs(noise.std() / gate.std() / 0.05 - 1) < 0.1 for noise in added)
    assert len({noise[0, 0].item() for noise in added}) == 4


def test_router_has_the_asked_for_spread(tiny, tmp_path):
    child = tensors(api.upcycle(tiny("llama"), experts=32, router_std=0.5).save(tmp_path / "out"))
    router = child["model.layers.2.block_sparse_moe.gate.weight"]
    assert router.shape == (32, 32)
    assert abs(router.std().item() / 0.5 - 1) < 0.1


def test_a_broken_promise_is_found(tiny, tmp_path):
    """Spoil one expert of an exact child: verify says so."""
    from safetensors.torch import save_file

    out = api.upcycle(tiny("llama"), experts=4).save(tmp_path / "out")
    spoilt = tensors(out)
    spoilt["model.layers.1.block_sparse_moe.experts.2.w2.weight"] *= 1.01
    save_file(spoilt, out / "model.safetensors", metadata={"format": "pt"})
    assert api.verify(out, against=tiny("llama"), tokens=128).held is False


def test_wrong_rope_theta_is_found(tiny, tmp_path):
    """The silent fault of hand-written conversions: the target's default theta instead of the parent's."""
    out = api.upcycle(tiny("llama"), experts=4).save(tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    del config["rope_theta"], config["rope_scaling"]
    (out / "config.json").write_text(json.dumps(config))
    assert api.verify(out, against=tiny("llama"), tokens=128).held is False
