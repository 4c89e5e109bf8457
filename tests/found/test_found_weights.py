"""Folders as people have them: what is opened is what transformers opens, by its logits, or a sentence says why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from found.folders import edit_config, logits, rename_all, retie
from safetensors.torch import load_file, save_file
from tiny_models import MASKED

from rekindle import api
from rekindle.errors import RekindleError


def copied(source: Path, to: Path) -> Path:
    shutil.copytree(source, to)
    return to


def same(child: Path, parent: Path) -> bool:
    return torch.equal(logits(child), logits(parent))


def refused(source) -> str:
    with pytest.raises(RekindleError) as error:
        api.open(source)
    return str(error.value)


# -- one matrix, or two ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_a_head_that_is_stored_and_differs_is_not_tied(tiny, tmp_path, family):
    parent = retie(copied(tiny(family, tie_word_embeddings=True), tmp_path / "parent"), head="random")
    child = api.rewrite(parent).save(tmp_path / "child")
    assert same(child, parent)
    assert json.loads((child / "config.json").read_text())["tie_word_embeddings"] is False
    assert any("they are two matrices" in note for note in api.inspect(parent)["notes"])
    for blockwise in (False, True):
        assert api.verify(child, against=parent, tokens=64, blockwise=blockwise).held


def test_verify_sees_a_dropped_head_block_by_block_too(tiny, tmp_path):
    parent = retie(copied(tiny("llama", tie_word_embeddings=True), tmp_path / "parent"), head="random")
    without = api.rewrite(tiny("llama", tie_word_embeddings=True)).save(tmp_path / "without")
    for blockwise in (False, True):
        assert not api.verify(without, against=parent, tokens=64, blockwise=blockwise).held


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_stored_head_that_differs_is_upcycled_too(tiny, tmp_path, family):
    parent = retie(copied(tiny(family, tie_word_embeddings=True), tmp_path / "parent"), head="random")
    child = api.upcycle(parent, experts=4).save(tmp_path / "child")
    assert api.verify(child, against=parent, tokens=64).held


def test_a_stored_head_that_is_equal_stays_tied(tiny, tmp_path):
    parent = retie(copied(tiny("qwen2", tie_word_embeddings=True), tmp_path / "parent"), head="equal")
    child = api.rewrite(parent).save(tmp_path / "child")
    assert same(child, parent)
    assert "lm_head.weight" not in load_file(child / "model.safetensors")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_tied_model_may_store_only_its_head(tiny, tmp_path, family):
    parent = retie(copied(tiny(family, tie_word_embeddings=True), tmp_path / "parent"), head="alone")
    child = api.rewrite(parent).save(tmp_path / "child")
    assert same(child, parent)
    assert same(child, tiny(family, tie_word_embeddings=True))


def test_a_pickle_of_a_tied_model_holds_one_matrix_under_two_names(tiny, tmp_path):
    parent = retie(copied(tiny("llama", tie_word_embeddings=True), tmp_path / "parent"), head="equal")
    torch.save(load_file(parent / "model.safetensors"), parent / "pytorch_model.bin")
    (parent / "model.safetensors").unlink()
    assert api.open(parent).checkpoint.settings.tie_word_embeddings


# -- which files -------------------------------------------------------------------------------------------


def shards(folder: Path, to: Path, size: str = "20kB") -> Path:
    return api.rewrite(folder).save(to, max_shard_size=size)


def test_a_single_file_wins_over_an_index(tiny, tmp_path):
    parent = shards(tiny("llama"), tmp_path / "parent")
    changed = {name: tensor * 1.5 for name, tensor in load_file(tiny("llama") / "model.safetensors").items()}
    save_file(changed, parent / "model.safetensors", metadata={"format": "pt"})
    child = api.rewrite(parent).save(tmp_path / "child")
    assert same(child, parent)
    assert not same(child, tiny("llama"))
    assert any("model.safetensors is read" in note and "index" in note for note in api.inspect(parent)["notes"])


def test_a_stale_index_whose_shards_are_gone(tiny, tmp_path):
    parent = shards(tiny("llama"), tmp_path / "parent")
    for path in parent.glob("model-*.safetensors"):
        path.unlink()
    shutil.copy(tiny("llama") / "model.safetensors", parent)
    assert same(api.rewrite(parent).save(tmp_path / "child"), tiny("llama"))


def test_safetensors_win_over_pickles(tiny, tmp_path):
    parent = copied(tiny("llama"), tmp_path / "parent")
    torch.save({"x": torch.ones(1)}, parent / "pytorch_model.bin")
    assert same(api.rewrite(parent).save(tmp_path / "child"), parent)
    assert any("pytorch_model.bin" in note for note in api.inspect(parent)["notes"])


def test_a_single_pickle_wins_over_its_index(tiny, tmp_path):
    parent = copied(tiny("llama"), tmp_path / "parent")
    tensors = load_file(parent / "model.safetensors")
    torch.save(tensors, parent / "pytorch_model.bin")
    (parent / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"x": "gone.bin"}}))
    (parent / "model.safetensors").unlink()
    assert same(api.rewrite(parent).save(tmp_path / "child"), parent)


def test_the_file_that_the_config_names(tiny, tmp_path):
    parent = copied(tiny("llama"), tmp_path / "parent")
    other = {name: tensor * 1.5 for name, tensor in load_file(parent / "model.safetensors").items()}
    save_file(other, parent / "other.safetensors", metadata={"format": "pt"})
    edit_config(parent, transformers_weights="other.safetensors")
    child = api.rewrite(parent).save(tmp_path / "child")
    assert same(child, parent)
    assert not same(child, tiny("llama"))
    assert "transformers_weights" not in json.loads((child / "config.json").read_text())
    assert api.verify(child, against=parent, tokens=64).held


def test_shards_without_an_index(tiny, tmp_path):
    parent = shards(tiny("llama"), tmp_path / "parent")
    (parent / "model.safetensors.index.json").unlink()
    child = api.upcycle(parent, experts=4).save(tmp_path / "child")
    assert api.verify(child, against=tiny("llama"), tokens=64).held
    assert api.verify(child, against=parent, tokens=64).held  # which transformers cannot load by itself
    assert any("no index" in note for note in api.inspect(parent)["notes"])
    next(iter(sorted(parent.glob("model-*.safetensors")))).unlink()
    assert "model-00001-of-" in refused(parent)
    assert "missing" in refused(parent)


def test_a_link_that_leads_nowhere(tiny, tmp_path):
    """A cache whose blobs were cleaned away: transformers goes on to the index, where there is one."""
    parent = shards(tiny("llama"), tmp_path / "parent")
    (parent / "model.safetensors").symlink_to("../../blobs/gone")
    assert same(api.rewrite(parent).save(tmp_path / "child"), parent)
    (parent / "model.safetensors.index.json").unlink()
    for path in parent.glob("model-*"):
        path.unlink()
    assert "link that leads nowhere" in refused(parent)


@pytest.mark.parametrize("name", ["consolidated.safetensors", "diffusion_pytorch_model.safetensors", "model.gguf"])
def test_weights_under_another_name_are_named(tiny, tmp_path, name):
    parent = copied(tiny("llama"), tmp_path / "parent")
    (parent / "model.safetensors").rename(parent / name)
    assert name in refused(parent)


def test_what_lies_beside_the_weights_is_told_and_stays(tiny, tmp_path):
    parent = copied(tiny("llama"), tmp_path / "parent")
    for name in ("consolidated.safetensors", "original/consolidated.00.pth", "checkpoint-5/model.safetensors"):
        (parent / name).parent.mkdir(exist_ok=True)
        (parent / name).write_bytes(b"x")
    (note,) = (note for note in api.inspect(parent)["notes"] if "as transformers does" in note)
    for name in ("consolidated.safetensors", "original/", "checkpoint-5/"):
        assert name in note
    child = api.rewrite(parent).save(tmp_path / "child")
    assert {p.name for p in child.iterdir()}.isdisjoint({"consolidated.safetensors", "original", "checkpoint-5"})


# -- adapters ----------------------------------------------------------------------------------------------


def adapter(folder: Path) -> Path:
    described = {"peft_type": "LORA", "base_model_name_or_path": "meta/llama", "r": 8, "target_modules": ["q_proj"]}
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(described))
    save_file({"base_model.model.x.lora_A.weight": torch.ones(2, 2)}, folder / "adapter_model.safetensors")
    return folder


def test_an_adapter_beside_the_weights_is_never_half_taken(tiny, tmp_path):
    said = refused(adapter(copied(tiny("llama"), tmp_path / "parent")))
    assert "LORA" in said
    assert "merge_and_unload" in said


def test_an_adapter_alone_is_named(tmp_path):
    said = refused(adapter(tmp_path / "adapter"))
    assert "adapter (LORA) for meta/llama" in said
    assert f"rekindle merge {tmp_path / 'adapter'} MERGED --base meta/llama" in said


def test_an_adapters_matrices_among_the_weights(tiny, tmp_path):
    parent = copied(tiny("llama"), tmp_path / "parent")
    rename_all(parent, lambda name: name.replace("q_proj.weight", "q_proj.base_layer.weight"))
    assert "merge_and_unload" in refused(parent)


# -- the true cause ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "net.backbone.", "model."])
def test_a_wrappers_prefix_is_read_through(tiny, tmp_path, prefix):
    parent = copied(tiny("llama"), tmp_path / "parent")
    rename_all(parent, lambda name: prefix + name)
    child = api.rewrite(parent).save(tmp_path / "child")
    assert same(child, tiny("llama"))
    assert api.verify(child, against=parent, tokens=64).held
    assert any(prefix.rstrip(".") in note for note in api.inspect(parent)["notes"])


def test_fsdps_wrapper_stands_between_names(tiny, tmp_path):
    parent = copied(tiny("qwen3"), tmp_path / "parent")
    rename_all(parent, lambda name: name.replace("layers.", "layers._fsdp_wrapped_module."))
    rename_all(parent, lambda name: f"_fsdp_wrapped_module.{name}")
    assert same(api.rewrite(parent).save(tmp_path / "child"), tiny("qwen3"))


def test_a_left_over_quantisation_entry(tiny, tmp_path):
    parent = copied(tiny("llama", "bfloat16"), tmp_path / "parent")
    edit_config(parent, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    child = api.upcycle(parent, experts=4).save(tmp_path / "child")
    assert api.verify(child, against=parent, tokens=64).held
    assert api.verify(child, against=tiny("llama", "bfloat16"), tokens=64).held
    assert "quantization_config" not in json.loads((child / "config.json").read_text())
    assert any("left over" in note for note in api.inspect(parent)["notes"])


def test_weights_that_are_codes_stay_refused(tiny, tmp_path):
    parent = copied(tiny("llama"), tmp_path / "parent")
    edit_config(parent, quantization_config={"quant_method": "fp8"})
    tensors = load_file(parent / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight_scale_inv"] = torch.ones(1)
    save_file(tensors, parent / "model.safetensors", metadata={"format": "pt"})
    assert "quantised (fp8)" in refused(parent)


def test_a_base_model_without_a_head(tiny, tmp_path):
    parent = copied(tiny("llama"), tmp_path / "parent")
    tensors = load_file(parent / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file({n.removeprefix("model."): t for n, t in tensors.items()}, parent / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    edit_config(parent, architectures=["LlamaModel"])
    said = refused(parent)
    assert "base model (LlamaModel)" in said
    assert "tie_word_embeddings" in said


def test_a_classifier_is_named(tiny, tmp_path):
    parent = copied(tiny("llama"), tmp_path / "parent")
    rename_all(parent, lambda name: name.replace("lm_head", "score"))
    edit_config(parent, architectures=["LlamaForSequenceClassification"])
    assert "This is a LlamaForSequenceClassification; of llama, LlamaForCausalLM is known" in refused(parent)


@pytest.mark.parametrize("changes", [{}, MASKED], ids=["BertModel", "BertForMaskedLM"])
def test_a_missing_architectures_is_read_off_the_tensors(tiny, tmp_path, changes):
    parent = copied(tiny("bert", **changes), tmp_path / "parent")
    edit_config(parent, architectures=None)
    child = api.rewrite(parent).save(tmp_path / "child")
    assert json.loads((child / "config.json").read_text())["architectures"] == (
        changes.get("architectures") or ["BertModel"]
    )
    assert api.verify(child, against=tiny("bert", **changes), tokens=64).held


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "pytorch_model.bin"])
def test_a_git_lfs_pointer_is_named(tiny, tmp_path, file):
    parent = copied(tiny("llama"), tmp_path / "parent")
    if file == "pytorch_model.bin":
        (parent / "model.safetensors").unlink()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123\n"
    (parent / file).write_text(pointer)
    said = refused(parent)
    assert "Git LFS pointer" in said
    assert file in said


@pytest.mark.parametrize(
    ("head", "word"), [(b"PK\x03\x04", "zip"), (b"<!DOCTYPE html>", "web page"), (b"GGUF\x03\0\0\0", "GGUF")]
)
def test_a_file_of_another_kind_is_named(tiny, tmp_path, head, word):
    parent = copied(tiny("llama"), tmp_path / "parent")
    (parent / "model.safetensors").write_bytes(head.ljust(100, b"\0"))
    assert word in refused(parent)


# -- the true cause, of folders that others would only call broken -----------------------------------------


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("layers.0.", "layers.0._checkpoint_wrapped_module."),
        (".self_attn.", ".self_attn._orig_mod."),
        ("model.", "_orig_mod.model."),
    ],
)
def test_a_wrapper_of_some_of_the_modules_is_read_through(tiny, tmp_path, old, new):
    parent = copied(tiny("llama"), tmp_path / "parent")
    rename_all(parent, lambda name: name.replace(old, new, 1))
    assert same(api.rewrite(parent).save(tmp_path / "child"), tiny("llama"))
    assert any("the names of" in note for note in api.inspect(parent)["notes"])


def test_a_tensor_that_is_there_with_a_wrappers_name_and_without(tiny, tmp_path):
    parent = copied(tiny("llama"), tmp_path / "parent")
    tensors = load_file(parent / "model.safetensors")
    tensors["model._orig_mod.norm.weight"] = torch.ones(32)
    save_file(tensors, parent / "model.safetensors", metadata={"format": "pt"})
    assert "model.norm.weight is there twice" in refused(parent)


def test_names_of_two_kinds(tiny, tmp_path):
    parent = copied(tiny("llama"), tmp_path / "parent")
    rename_all(parent, lambda name: f"module.{name}" if "layers.0" in name else name)
    assert "9 of 30 names begin with 'module.', and the others do not" in refused(parent)


def test_a_model_inside_a_larger_one(tiny, tmp_path):
    parent = copied(tiny("llama"), tmp_path / "parent")
    rename_all(parent, lambda name: f"language_model.{name}")
    tensors = load_file(parent / "model.safetensors") | {"vision_tower.a.weight": torch.ones(2, 2)}
    save_file(tensors, parent / "model.safetensors", metadata={"format": "pt"})
    assert "30 of 31 names begin with 'language_model.', and the others do not" in refused(parent)


@pytest.mark.parametrize("file", ["model.Q4_K_M.gguf", "consolidated.00.pth"])
def test_another_programs_weights_without_a_config(tiny, tmp_path, file):
    parent = copied(tiny("llama"), tmp_path / "parent")
    (parent / "model.safetensors").rename(parent / file)
    (parent / "config.json").unlink()
    assert f"it has no config.json, only {file}" in refused(parent)


def test_a_folder_in_the_place_of_the_weights(tiny, tmp_path):
    parent = copied(tiny("llama"), tmp_path / "parent")
    (parent / "model.safetensors").unlink()
    (parent / "model.safetensors" / "inner").mkdir(parents=True)
    said = refused(parent)
    assert "model.safetensors is a folder, not a file" in said
    assert "inner" in said


@pytest.mark.parametrize("config", [True, False])
@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("__0_0.distcp", "format_utils dcp_to_torch"),
        ("pytorch_model_fsdp_0/__0_0.distcp", "accelerate merge-weights"),
        ("global_step10/zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_to_fp32.py"),
    ],
)
def test_weights_in_the_pieces_of_many_processes(tiny, tmp_path, file, words, config):
    parent = copied(tiny("llama"), tmp_path / "parent")
    (parent / "model.safetensors").unlink()
    if not config:
        (parent / "config.json").unlink()
    (parent / file).parent.mkdir(exist_ok=True)
    (parent / file).write_bytes(b"pieces")
    said = refused(parent)
    assert "pieces" in said
    assert words in said


def test_files_under_each_others_names(tiny, tmp_path):
    parent, other = (copied(tiny("llama"), tmp_path / name) for name in ("parent", "other"))
    (parent / "model.safetensors").rename(parent / "pytorch_model.bin")
    said = refused(parent)
    assert "it is a safetensors file, not a file of torch's" in said
    assert "model.safetensors is what transformers calls it" in said
    torch.save(load_file(other / "model.safetensors"), other / "weights")
    (other / "weights").rename(other / "model.safetensors")
    assert "pytorch_model.bin is what transformers calls it" in refused(other)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_trainings_state_around_the_weights(tiny, tmp_path, key, monkeypatch):
    parent = copied(tiny("llama"), tmp_path / "parent")
    tensors = load_file(parent / "model.safetensors")
    torch.save({"epoch": 3, key: tensors, "loops": {}}, parent / "pytorch_model.bin")
    (parent / "model.safetensors").unlink()
    said = refused(parent)
    assert f"{key} is not a tensor but a table of {len(tensors)}" in said
    monkeypatch.chdir(parent)
    exec(said.split("in Python: ")[1], {"torch": torch})
    assert same(api.rewrite(parent).save(tmp_path / "child"), tiny("llama"))


def test_codes_whose_config_does_not_say_so(tiny, tmp_path):
    parent = copied(tiny("llama"), tmp_path / "parent")
    tensors = load_file(parent / "model.safetensors")
    for name in [name for name in tensors if "mlp" in name]:
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = torch.ones(1, 1)
    save_file(tensors, parent / "model.safetensors", metadata={"format": "pt"})
    said = refused(parent)
    assert "quantised" in said
    assert "no quantization_config" in said


@pytest.mark.parametrize("rows", [60, 70])
def test_a_tied_head_of_another_size(tiny, tmp_path, rows):
    parent = copied(tiny("llama", tie_word_embeddings=True), tmp_path / "parent")
    tensors = load_file(parent / "model.safetensors")
    tensors["lm_head.weight"] = torch.ones(rows, 32)
    save_file(tensors, parent / "model.safetensors", metadata={"format": "pt"})
    assert f"lm_head.weight is [{rows}, 32], but the config says [64, 32]" in refused(parent)
    with pytest.raises(RuntimeError):
        logits(parent)


@pytest.mark.parametrize(
    "pointer",
    [
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123\n",
        f"# xet version 0\nfilesize = 123\nhash = '{'0' * 64}'\n",
    ],
)
def test_a_passenger_that_was_not_downloaded(tiny, tmp_path, pointer):
    parent = copied(tiny("llama"), tmp_path / "parent")
    (parent / "tokenizer.json").write_text(pointer)
    with pytest.raises(RekindleError, match="pointer: the file itself was not downloaded") as error:
        api.rewrite(parent).job()
    assert "tokenizer.json" in str(error.value)
    (parent / "tokenizer.json").unlink()
    (parent / "model.safetensors").write_text(pointer)
    assert "pointer" in refused(parent)


@pytest.mark.parametrize("value", [{"hidden_size": 8}, {"model_type": "llama"}])
@pytest.mark.parametrize("key", ["text_config", "decoder", "generator"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_config_in_the_config(tiny, tmp_path, family, key, value):
    parent = copied(tiny(family), tmp_path / "parent")
    edit_config(parent, vision_config={"hidden_size": 8})
    assert same(api.rewrite(parent).save(tmp_path / "child"), parent)
    edit_config(parent, **{key: value})
    assert f"has a {key} too" in refused(parent)
    with pytest.raises(AttributeError):
        logits(parent)


# -- where two readers meet --------------------------------------------------------------------------------


def test_eight_bit_floats_are_numbers_however_they_are_read(tiny, tmp_path):
    parent = copied(tiny("llama"), tmp_path / "parent")
    tensors = {
        name: tensor.to(torch.float8_e4m3fn) if "mlp" in name else tensor
        for name, tensor in load_file(parent / "model.safetensors").items()
    }
    save_file(tensors, parent / "model.safetensors", metadata={"format": "pt"})
    split = copied(parent, tmp_path / "split")
    (split / "model.safetensors").rename(split / "model-00001-of-00001.safetensors")
    assert not api.open(split).checkpoint.folder.native
    verdict = api.verify(parent, against=split, tokens=64)
    assert verdict.relative_difference == 0.0


def test_lm_eval_is_not_handed_a_folder_that_transformers_reads_otherwise(tiny, tmp_path, monkeypatch):
    import sys
    from types import SimpleNamespace

    parent = copied(tiny("llama"), tmp_path / "parent")
    rename_all(parent, lambda name: f"module.{name}")
    monkeypatch.setitem(sys.modules, "lm_eval", SimpleNamespace(simple_evaluate=None))
    with pytest.raises(RekindleError, match="transformers cannot read this one as it is"):
        api.evaluate(parent, tasks=("hellaswag",))


def test_weights_that_change_before_they_are_loaded(tiny, tmp_path):
    from rekindle.apply.load import load_model

    parent = copied(tiny("llama"), tmp_path / "parent")
    folder = api.open(parent).checkpoint.folder
    (parent / "model.safetensors").write_bytes((parent / "model.safetensors").read_bytes())
    with pytest.raises(RekindleError, match="was changed while it was read"):
        load_model(folder)


@pytest.mark.parametrize("name", ["optimizer.pt", "optimizer.bin"])
def test_a_run_is_not_replaced_by_its_weights_alone(tiny, tmp_path, name):
    parent = copied(tiny("llama"), tmp_path / "parent")
    (parent / name).write_bytes(b"moments")
    with pytest.raises(RekindleError, match="would lose its optimizer state"):
        api.rewrite(parent).save(parent, overwrite=True)
    assert (parent / name).exists()


def test_a_license_is_found_wherever_the_parent_came_from(tiny, tmp_path):
    parent = copied(tiny("llama"), tmp_path / "parent")
    (parent / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    api.pack(parent, tmp_path / "run.rk", step=3)
    shutil.rmtree(parent)
    child = api.rewrite(f"{tmp_path / 'run.rk'}@3").save(tmp_path / "child")
    assert "license: apache-2.0" in (child / "README.md").read_text()
    api.verify(child, against=f"{tmp_path / 'run.rk'}@3", tokens=64)
    assert "license: apache-2.0" in (child / "README.md").read_text()
