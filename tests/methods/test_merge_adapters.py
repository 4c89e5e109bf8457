"""LoRA adapters in a merge: every tensor against the formula in torch, and against peft where it is installed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from adapters_made import QKV, matrices, write_adapter
from apply.apply_moments import write_moments
from found.folders import edit_config, logits
from safetensors.torch import load_file, save_file

import rekindle
from rekindle import api
from rekindle.cli import main
from rekindle.errors import RekindleError
from rekindle.store.manifest import read_manifest


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def merged(adapter, base, out, **how) -> dict[str, torch.Tensor]:
    return weights(rekindle.merge(adapter, base=base, **how).save(out))


def check(found, base, changed, bound=1e-6):
    """The tensors of `changed` are those, all others the base's, byte for byte."""
    assert found.keys() == base.keys()
    for name, x in found.items():
        if name in changed:
            assert x.dtype == base[name].dtype
            assert not torch.equal(x, base[name]), name
            torch.testing.assert_close(x, changed[name].to(x.dtype), rtol=bound, atol=bound)
        else:
            assert torch.equal(x, base[name]), name


# -- one adapter ------------------------------------------------------------------------------------------------


def test_matrices_are_added_and_all_else_is_copied(tiny, tmp_path):
    base = tiny("llama")
    names = ["model.layers.0.self_attn.q_proj", "model.layers.2.mlp.down_proj"]
    ab = matrices(weights(base), names, rank=4)
    adapter = write_adapter(tmp_path / "adapter", ab, r=4, lora_alpha=6)
    job = rekindle.merge(adapter, base=base).job()
    assert (job.plan.counts["computed"]["tensors"], job.plan.counts["new"]["tensors"]) == (2, 0)
    assert job.plan.dropped == []
    found = merged(adapter, base, tmp_path / "out")
    old = weights(base)
    check(found, old, {f"{n}.weight": old[f"{n}.weight"] + 1.5 * (b @ a) for n, (a, b) in ab.items()})


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sums_are_rounded_once(tiny, tmp_path, dtype):
    base = tiny("llama", dtype=dtype)
    ab = matrices(weights(base), ["model.layers.1.mlp.up_proj"], rank=2)
    found = merged(write_adapter(tmp_path / "adapter", ab, r=2), base, tmp_path / "out")
    a, b = ab["model.layers.1.mlp.up_proj"]
    name = "model.layers.1.mlp.up_proj.weight"
    exact = (weights(base)[name].double() + 4 * (b.double() @ a.double())).to(getattr(torch, dtype))
    assert (found[name] != exact).float().mean() < 0.002  # but for ties that float32 decides otherwise
    torch.testing.assert_close(found[name], exact, rtol=0.01, atol=1e-3)


def test_each_module_has_its_own_rank_and_alpha(tiny, tmp_path):
    base = tiny("llama")
    q, v = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"
    ab = matrices(weights(base), [q], rank=3) | matrices(weights(base), [v], rank=2)
    how = {"r": 3, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {r"layers\.0\.self_attn\.q_proj": 5}}
    adapter = write_adapter(tmp_path / "adapter", ab, lora_alpha=8, use_rslora=True, **how)
    old = weights(base)
    changed = {
        f"{n}.weight": old[f"{n}.weight"] + s * (ab[n][1] @ ab[n][0]) for n, s in ((q, 5 / 3**0.5), (v, 8 / 2**0.5))
    }
    check(merged(adapter, base, tmp_path / "out"), old, changed)


@pytest.mark.parametrize(
    ("family", "module"),
    [
        ("phi3", "model.layers.1.self_attn.qkv_proj"), ("phi3", "model.layers.0.mlp.gate_up_proj"),
        ("gpt_neox", "gpt_neox.layers.1.attention.query_key_value"), ("gpt2", "transformer.h.2.attn.c_attn"),
        ("gpt2", "transformer.h.0.mlp.c_proj"), ("bert", "encoder.layer.0.attention.self.query"),
        ("mixtral", "model.layers.0.block_sparse_moe.experts.3.w2"),
        ("t5", "decoder.block.1.layer.1.EncDecAttention.k"),
        ("olmo2", "model.layers.0.self_attn.o_proj"), ("deepseek_v3", "model.layers.1.self_attn.q_b_proj"),
    ],
)  # fmt: skip
def test_tensors_of_several_roles_and_turned_ones(tiny, tmp_path, family, module):
    base = tiny(family)
    old = weights(base)
    turned = family == "gpt2"
    ab = matrices(old, [module], rank=2, turned=turned)
    adapter = write_adapter(tmp_path / "adapter", ab, r=2, fan_in_fan_out=turned)
    added = 4 * (ab[module][1] @ ab[module][0])
    name = f"{module}.weight"
    check(merged(adapter, base, tmp_path / "out"), old, {name: old[name] + (added.T if turned else added)})


def test_names_of_memory_are_found(tiny, tmp_path):
    """A module of v5's memory, and one without the base model's prefix."""
    base, old = tiny("mixtral"), weights(tiny("mixtral"))
    ab = matrices(old, ["model.layers.0.block_sparse_moe.gate", "model.layers.0.self_attn.q_proj"], rank=2)
    gate, q = ab.values()
    adapter = write_adapter(
        tmp_path / "adapter", {"model.layers.0.mlp.gate": gate, "layers.0.self_attn.q_proj": q}, r=2
    )
    changed = {f"{n}.weight": old[f"{n}.weight"] + 4 * (b @ a) for n, (a, b) in ab.items()}
    check(merged(adapter, base, tmp_path / "out"), old, changed)


@pytest.mark.parametrize(
    ("family", "module"), [("llama", "model.layers.0.mlp.up_proj"), ("gpt2", "transformer.h.1.attn.c_attn")]
)
def test_a_class_that_no_table_knows(tiny, tmp_path, family, module):
    """Names are those on disk, and only the adapter says whether matrices are [in, out]."""
    base = shutil.copytree(tiny(family), tmp_path / "base")
    edit_config(base, model_type="wild", architectures=["WildModel"])
    old, turned = weights(base), family == "gpt2"
    ab = matrices(old, [module], rank=2, turned=turned)
    adapter = write_adapter(tmp_path / "adapter", ab, r=2, fan_in_fan_out=turned)
    added = 4 * (ab[module][1] @ ab[module][0])
    changed = {f"{module}.weight": old[f"{module}.weight"] + (added.T if turned else added)}
    check(merged(adapter, base, tmp_path / "out"), old, changed)


@pytest.mark.parametrize("fused", [False, True])
def test_a_stack_of_experts_is_changed_expert_by_expert(tiny, tmp_path, fused):
    """As peft's ParamWrapper has it: rank after rank the experts in A, and expert after expert the ranks in B."""
    base, old = tiny("mixtral", fused=fused), weights(tiny("mixtral"))
    gen = torch.Generator().manual_seed(3)
    rand = lambda *shape: torch.randn(*shape, generator=gen) * 0.3  # noqa: E731
    E, R, D, F = 4, 3, 32, 24  # noqa: N806
    w1 = old["model.layers.1.block_sparse_moe.experts.0.w1.weight"]
    F = w1.shape[0]  # noqa: N806
    pairs = {"experts.base_layer": (rand(R * E, D), rand(2 * F, R * E)), "experts": (rand(R * E, F), rand(D, R * E))}
    adapter = write_adapter(
        tmp_path / "adapter", {f"model.layers.1.mlp.{m}": ab for m, ab in pairs.items()}, r=R,
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], alpha_pattern={"experts.down_proj": 9},
    )  # fmt: skip
    changed = {}
    for e in range(E):
        (a, b), (c, d) = ((a.reshape(E, R, -1)[e], b.reshape(len(b), R, E)[:, :, e]) for a, b in pairs.values())
        at = f"model.layers.1.block_sparse_moe.experts.{e}"
        for name, delta in (
            (f"{at}.w1", (8 / R) * b[:F] @ a),
            (f"{at}.w3", (8 / R) * b[F:] @ a),
            (f"{at}.w2", 3 * d @ c),
        ):
            changed[f"{name}.weight"] = old[f"{name}.weight"] + delta
    check(merged(adapter, base, tmp_path / "out"), old, changed)


def test_whole_tensors_stand_for_the_bases(tiny, tmp_path):
    """Modules that were saved whole, biases, and those that B has, in the dtype of the base."""
    base, old = tiny("qwen2", dtype="bfloat16"), weights(tiny("qwen2", dtype="bfloat16"))
    q = "model.layers.0.self_attn.q_proj"
    ab = matrices(old, [q], rank=2)
    gen = torch.Generator().manual_seed(5)
    whole = {
        "base_model.model.lm_head.weight": torch.randn(64, 32, generator=gen),
        "base_model.model.model.norm.modules_to_save.default.weight": torch.randn(32, generator=gen),
        "base_model.model.model.layers.0.self_attn.k_proj.bias": torch.randn(16, generator=gen),
        "base_model.model.model.layers.1.self_attn.q_proj.base_layer.bias": torch.randn(32, generator=gen),
    }
    lora_bias = torch.randn(32, generator=gen)
    adapter = write_adapter(
        tmp_path / "adapter", ab, more=whole | {f"base_model.model.{q}.lora_B.bias": lora_bias}, r=2, lora_bias=True
    )
    names = ["lm_head.weight", "model.norm.weight"]
    names += ["model.layers.0.self_attn.k_proj.bias", "model.layers.1.self_attn.q_proj.bias"]
    changed = dict(zip(names, whole.values(), strict=True))
    changed[f"{q}.weight"] = old[f"{q}.weight"].float() + 4 * ab[q][1] @ ab[q][0]
    changed[f"{q}.bias"] = old[f"{q}.bias"].float() + 4 * lora_bias
    check(merged(adapter, base, tmp_path / "out"), old, changed, bound=0.008)


def test_embeddings_have_their_matrices_turned(tiny, tmp_path):
    base, old = tiny("llama"), weights(tiny("llama"))
    gen = torch.Generator().manual_seed(5)
    a, b = torch.randn(2, 64, generator=gen), torch.randn(32, 2, generator=gen)
    stem = "base_model.model.model.embed_tokens.lora_embedding_"
    adapter = write_adapter(tmp_path / "adapter", {}, more={f"{stem}A": a, f"{stem}B": b}, r=2)
    name = "model.embed_tokens.weight"
    check(merged(adapter, base, tmp_path / "out"), old, {name: old[name] + 4 * (b @ a).T})


def test_a_tied_head_that_the_adapter_changes_alone_is_untied(tiny, tmp_path):
    base, old = tiny("llama", tie_word_embeddings=True), weights(tiny("llama", tie_word_embeddings=True))
    head = torch.randn(64, 32, generator=torch.Generator().manual_seed(5))
    adapter = write_adapter(tmp_path / "adapter", {}, more={"base_model.model.lm_head.weight": head})
    model = rekindle.merge(adapter, base=base)
    assert any("head is a matrix of its own" in note for note in model.checkpoint.notes)
    found = weights(model.save(tmp_path / "out"))
    assert torch.equal(found.pop("lm_head.weight"), head)
    check(found, old, {})
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    assert not torch.allclose(logits(tmp_path / "out"), logits(base))


# -- several ----------------------------------------------------------------------------------------------------


@pytest.fixture
def two(tiny, tmp_path):
    base = tiny("llama")
    ab = [matrices(weights(base), [f"model.layers.{i}.self_attn.{q}" for q in QKV], rank=2, seed=i) for i in (0, 1)]
    return [write_adapter(tmp_path / f"adapter-{i}", pairs, r=2) for i, pairs in enumerate(ab)], ab


def test_adapters_are_merged_as_models_are(tiny, two, tmp_path):
    base = tiny("llama")
    adapters, ab = two
    old, changed = weights(base), {}
    for weight, pairs in zip((0.25, 0.75), ab, strict=True):
        changed |= {f"{n}.weight": old[f"{n}.weight"] + weight * 4 * (b @ a) for n, (a, b) in pairs.items()}
    check(merged(adapters, base, tmp_path / "linear", weights="0.25,0.75"), old, changed)
    changed = {name: old[name] + 2 * (x - old[name]) for name, x in changed.items()}
    check(merged(adapters, base, tmp_path / "task", how="task", weights="0.5,1.5"), old, changed, bound=3e-6)


def test_the_base_is_one_source_for_all(tiny, two, tmp_path):
    adapters, _ = two
    model = rekindle.merge({"code": adapters[0], "maths": adapters[1]}, base=tiny("llama"), how="task")
    assert list(model.checkpoint.sources) == ["base", "code", "maths"]
    counts = model.job().plan.counts
    assert counts["computed"]["tensors"] == 6
    assert counts["copied"]["tensors"] == 30 - 6
    record = read_manifest(model.save(tmp_path / "out")).lineage[-1]
    assert {name: source.source for name, source in record.sources.items()} == {
        "code": str(adapters[0]), "maths": str(adapters[1]), "base": str(tiny("llama")),
    }  # fmt: skip
    assert len({source.fingerprint for source in record.sources.values()}) == 3
    assert f"--base {tiny('llama')}" in record.command


def test_a_series_out_of_an_archive(tiny, two, tmp_path):
    (run := tmp_path / "run").mkdir()
    for step, adapter in enumerate(two[0], 1):
        shutil.copytree(adapter, run / f"checkpoint-{step}")
    api.pack(sorted(run.iterdir()), tmp_path / "run.rk")
    one = rekindle.merge(run, base=tiny("llama"), how="mean")
    other = rekindle.merge(f"{tmp_path / 'run.rk'}@1:2", base=tiny("llama"), how="mean")
    assert list(one.given)[:2] == ["step-1", "step-2"]
    one, other = one.save(tmp_path / "one"), other.save(tmp_path / "other")
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def test_what_is_read_is_never_replaced(tiny, two, tmp_path):
    base = shutil.copytree(tiny("llama"), tmp_path / "base")
    for out in (two[0][0], base):
        with pytest.raises(RekindleError):
            rekindle.merge(two[0][0], base=base).save(out, overwrite=True)
    assert (two[0][0] / "adapter_config.json").exists()
    assert (base / "model.safetensors").exists()


def test_an_adapter_that_changes_meanwhile(tiny, two, tmp_path):
    model = rekindle.merge(two[0][0], base=tiny("llama"))
    config = two[0][0] / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 80'))
    with pytest.raises(RekindleError, match="changed"):
        model.save(tmp_path / "out")


def test_an_adapter_beside_a_model(tiny, two, tmp_path):
    """A fine-tune and an adapter over one base."""
    base, (adapters, ab) = tiny("llama"), two
    full = weights(merged_folder := rekindle.merge(adapters[1], base=base).save(tmp_path / "full"))
    found = merged([adapters[0], merged_folder], base, tmp_path / "out")
    old = weights(base)
    changed = {f"{n}.weight": old[f"{n}.weight"] + 2 * (b @ a) for n, (a, b) in ab[0].items()}
    changed |= {n: (x + old[n]) / 2 for n, x in full.items() if not torch.equal(x, old[n])}
    check(found, old, changed)


def test_a_recipe_does_it_again(tiny, two, tmp_path):
    rekindle.merge(two[0], base=tiny("llama"), how="ties").save(tmp_path / "out")
    api.run(tmp_path / "out" / "rekindle.yaml", tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "out/model.safetensors").read_bytes()


def test_the_base_that_an_adapter_names(tiny, tmp_path):
    base = tiny("llama")
    ab = matrices(weights(base), ["model.layers.0.self_attn.q_proj"], rank=2)
    adapter = write_adapter(tmp_path / "adapter", ab, r=2, base_model_name_or_path=str(base))
    model = rekindle.merge(adapter)
    assert model.given == {"s1": str(adapter), "base": str(base)}
    assert not model.checkpoint.promise.exact
    one, other = model.save(tmp_path / "one"), rekindle.merge(adapter, base=base).save(tmp_path / "other")
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert (one / "rekindle.yaml").read_bytes() == (other / "rekindle.yaml").read_bytes()


def test_the_command(tiny, two, tmp_path, capsys):
    out, name = tmp_path / "out", "model.layers.0.self_attn.q_proj.weight"
    with pytest.raises(SystemExit) as stop:
        main(["merge", str(two[0][0]), str(out), "--base", str(tiny("llama"))])
    assert stop.value.code == 0, capsys.readouterr().err
    assert not torch.equal(weights(out)[name], weights(tiny("llama"))[name])


def test_what_the_adapter_changed_begins_anew(tiny, tmp_path):
    """All else keeps the base's moments, of which an adapter has none."""
    base, q = tiny("llama"), "model.layers.0.self_attn.q_proj"
    head = {"base_model.model.lm_head.weight": torch.randn(64, 32)}
    adapter = write_adapter(tmp_path / "adapter", matrices(weights(base), [q], rank=2), more=head, r=2)
    state = write_moments(tmp_path / "state", base)
    out = rekindle.merge(adapter, base=base).save(tmp_path / "out", optimizer_state=[str(state)])
    given, found = load_file(state / "optimizer.safetensors"), load_file(out / "optimizer" / "optimizer.safetensors")
    assert found.keys() == given.keys()
    for name, x in found.items():
        if name.rsplit(".", 1)[0] in (f"{q}.weight", "lm_head.weight"):
            assert not x.any()
        else:
            assert torch.equal(x, given[name])


# -- refusals ---------------------------------------------------------------------------------------------------


def refused(adapter, base=None, **how) -> str:
    with pytest.raises(RekindleError) as error:
        rekindle.merge(adapter, base=base, **how)
    return str(error.value)


def test_what_fits_nothing_is_named(tiny, tmp_path):
    base = tiny("llama")
    ab = matrices(weights(base), ["model.layers.0.self_attn.q_proj"], rank=2)
    (a, b) = ab["model.layers.0.self_attn.q_proj"]
    said = refused(write_adapter(tmp_path / "one", ab | {"model.layers.7.self_attn.q_proj": (a, b)}, r=2), base)
    assert "2 tensors of the adapter fit nothing" in said
    assert "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight" in said
    said = refused(write_adapter(tmp_path / "two", {"model.layers.0.self_attn.k_proj": (a, b)}, r=2), base)
    assert "would be [32, 32], and model.layers.0.self_attn.k_proj.weight is [16, 32]" in said
    more = {"base_model.model.model.layers.0.self_attn.q_proj.bias": torch.ones(32)}
    assert "q_proj.bias" in refused(write_adapter(tmp_path / "three", ab, more=more, r=2), base)
    assert "q_proj" in refused(write_adapter(tmp_path / "four", ab, r=2), tiny("gpt2"))


def test_halves_and_ranks(tiny, tmp_path):
    base = tiny("llama")
    ab = matrices(weights(base), ["model.layers.0.self_attn.q_proj"], rank=2)
    assert "have rank 2, and the config says 8" in refused(write_adapter(tmp_path / "one", ab, r=8), base)
    folder = write_adapter(tmp_path / "two", ab, r=2)
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({n: x for n, x in tensors.items() if "lora_A" in n}, folder / "adapter_model.safetensors")
    assert "one is missing" in refused(folder, base)
    folder = write_adapter(tmp_path / "three", ab, r=2)
    save_file({n: x.flatten() for n, x in tensors.items()}, folder / "adapter_model.safetensors")
    assert "before its shards were gathered" in refused(folder, base)
    (folder / "adapter_model.safetensors").unlink()
    assert "an adapter without weights" in refused(folder, base)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"use_dora": True}, "DoRA"), ({"peft_type": "IA3"}, "is IA3, not LoRA"),
        ({"peft_type": "PREFIX_TUNING"}, "not LoRA"), ({"layer_replication": [[0, 2], [1, 3]]}, "several times"),
        ({"init_lora_weights": "pissa_niter_4"}, "began by pissa_niter_4"), ({"r": "8"}, "not '8'"),
        ({"trainable_token_indices": [1]}, "single tokens"), ({"rank_pattern": {"(": 2}}, "regular expressions"),
    ],
)  # fmt: skip
def test_what_is_not_plain_lora_is_refused(tiny, tmp_path, config, said):
    ab = matrices(weights(tiny("llama")), ["model.layers.0.self_attn.q_proj"], rank=2)
    assert said in refused(write_adapter(tmp_path / "adapter", ab, **({"r": 2} | config)), tiny("llama"))


def test_dora_is_known_by_its_tensors(tiny, tmp_path):
    q = "model.layers.0.self_attn.q_proj"
    more = {f"base_model.model.{q}.lora_magnitude_vector": torch.ones(32)}
    ab = matrices(weights(tiny("llama")), [q], rank=2)
    assert "DoRA" in refused(write_adapter(tmp_path / "adapter", ab, more=more, r=2), tiny("llama"))


def test_tokens_that_the_base_lacks(tiny, tmp_path):
    more = {"base_model.model.model.embed_tokens.weight": torch.ones(66, 32)}
    said = refused(write_adapter(tmp_path / "adapter", {}, more=more), tiny("llama"))
    assert "[66, 32], and model.embed_tokens.weight of the base [64, 32]" in said
    assert "tokens were added to the base" in said


def test_an_adapter_needs_one_base(tiny, two, tmp_path):
    adapters, ab = two
    assert "for a model it does not name" in refused(adapters[0])
    gone = write_adapter(tmp_path / "gone", ab[0], r=2, base_model_name_or_path=str(tmp_path / "nowhere"))
    assert "and that is not here" in refused(gone)
    assert "name different bases" in refused([adapters[0], gone])
    assert "is an adapter" in refused(adapters[0], base=adapters[1])
    assert "--base would have no effect" in refused([tiny("llama"), tiny("llama")], base=tiny("llama"))
    assert "stock needs 2 sources" in refused(adapters[0], base=tiny("llama"), how="stock")


def test_an_adapter_of_nothing_is_refused(tiny, tmp_path):
    said = refused(write_adapter(tmp_path / "adapter", {}), tiny("llama"))
    assert "holds no tensors: nothing would change" in said
    assert f"where: {tmp_path / 'adapter'}" in said


@pytest.mark.parametrize(
    ("said", "noted"),
    [
        (None, False), ("org/base", False), ("/somewhere/base", False), ("hf://org/base@v1", False),
        ("../base/", False), ("link", False), ("org/other-7b", True), ("two", True),
    ],
)  # fmt: skip
def test_another_base_than_the_one_it_names_is_said(tiny, tmp_path, monkeypatch, said, noted):
    monkeypatch.chdir(tmp_path)
    for name in ("base", "two"):
        shutil.copytree(tiny("llama"), name)
    Path("link").symlink_to("base")
    ab = matrices(weights(Path("base")), ["model.layers.0.self_attn.q_proj"], rank=2)
    write_adapter(Path("adapter"), ab, r=2, base_model_name_or_path=said)
    note = f"adapter says that it was trained on {said}, and is put on base"
    assert (note in rekindle.merge("adapter", base="base").checkpoint.notes) == noted
    assert (note in rekindle.merge("adapter", base=rekindle.open("base")).checkpoint.notes) == noted


def test_all_other_verbs_refuse_it(two, tiny, tmp_path):
    adapter = two[0][0]
    for verb in (api.open, api.inspect, api.rewrite):
        with pytest.raises(RekindleError, match="rekindle merge .* MERGED --base SRC"):
            verb(adapter)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"sources: {{a: {adapter}, b: {tiny('llama')}}}\nsteps:\n- rewrite: {{}}\n  of: a\n")
    with pytest.raises(RekindleError, match="is an adapter"):
        api.run(recipe, tmp_path / "out")


def test_an_adapter_beside_weights_stays_refused(two, tiny, tmp_path):
    folder = shutil.copytree(tiny("llama"), tmp_path / "both")
    for file in two[0][0].iterdir():
        shutil.copy(file, folder)
    assert "Beside the weights lies an adapter" in refused([folder, tiny("llama")])


# -- peft -------------------------------------------------------------------------------------------------------

RANKS = {"target_modules": ["q_proj", "down_proj"], "rank_pattern": {"down_proj": 2}, "use_rslora": True}
TIED = {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True}
ALPHA = {"experts": 32, "down_proj": 16}  # a stack is called by its parameter alone
CHOSEN = {"q_proj": 32, "k_proj.weight": 16}  # so is a weight that is chosen as a parameter
BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "changes", "config"),
    [
        ("llama", {}, RANKS),
        ("llama", {}, {"target_modules": ["embed_tokens", "lm_head"], "modules_to_save": ["norm"]}),
        ("llama", {"tie_word_embeddings": True}, {"target_modules": ["embed_tokens"]}),
        ("llama", {"tie_word_embeddings": True}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
        ("llama", {"tie_word_embeddings": True}, TIED),
        ("qwen2", {}, {"target_modules": ["q_proj"], "bias": "all"}),
        ("gpt2", {}, {"target_modules": ["c_attn", "c_proj"], "bias": "lora_only"}),
        ("phi3", {}, {"target_modules": ["qkv_proj", "gate_up_proj"]}),
        ("bert", {}, {"target_modules": ["query", "dense"]}),
        ("t5", {}, {"target_modules": ["q", "wo"]}),
        ("mixtral", {}, {"target_modules": ["v_proj"]}),
        ("mixtral", {}, {"target_modules": ["v_proj"], "target_parameters": BOTH}),
        ("mixtral", {}, {"target_modules": ["v_proj"], "target_parameters": BOTH, "alpha_pattern": ALPHA}),
        ("llama", {}, {"target_modules": ["q_proj"], "alpha_pattern": {"weight": 32, "q_proj.weight": 16}}),
        ("llama", {}, {"target_modules": [], "target_parameters": ["q_proj.weight", "k_proj.weight"],
                       "alpha_pattern": CHOSEN}),
        ("mixtral", {}, {"target_modules": "all-linear"}),
        ("qwen2_moe", {}, {"target_modules": ["gate_proj"]}),
        ("qwen3_moe", {}, {"target_modules": ["v_proj"], "target_parameters": [*BOTH, "mlp.gate.weight"]}),
    ],
)  # fmt: skip
def test_as_peft_has_it(tiny, tmp_path, family, changes, config):
    """Its model with the adapter in it, as it ran; and its merged weights, but where it adds to a tied matrix."""
    peft = pytest.importorskip("peft")
    import transformers

    base = tiny(family, **changes)
    name = json.loads((base / "config.json").read_text())["architectures"][0]
    opened = lambda folder: getattr(transformers, name).from_pretrained(folder).eval()  # noqa: E731
    torch.manual_seed(0)
    trained = peft.get_peft_model(opened(base), peft.LoraConfig(r=4, **config))
    for parameter in trained.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter.data, std=0.3)
    trained.save_pretrained(tmp_path / "adapter")
    model = peft.PeftModel.from_pretrained(opened(base), tmp_path / "adapter").eval()
    ids = {"input_ids": torch.randint(3, 60, (2, 9))}
    ids |= {"decoder_input_ids": ids["input_ids"]} if family == "t5" else {}
    with torch.no_grad():
        wanted = model(**ids)[0]
        found = opened(rekindle.merge(tmp_path / "adapter", base=base).save(tmp_path / "out"))(**ids)[0]
    assert (found - wanted).abs().max() / wanted.abs().max() < 3e-5
    if changes:
        return
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    theirs, ours = weights(tmp_path / "merged"), weights(tmp_path / "out")
    assert theirs.keys() == ours.keys()
    for key in theirs:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-6, atol=1e-6)
