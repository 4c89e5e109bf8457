"""Nothing is promised for a config that transformers cannot read: an odd one is refused, or its child loads.

The table of kinds is held to transformers' own classes, and to what they do with values of other kinds.
"""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
import types
import typing
from dataclasses import fields
from typing import Any

import pytest
import torch
from found.folders import edit_config, logits
from found.tokenizers_made import save_bytes_tokenizer
from tiny_models import ENCODER_DECODERS, OF_IMAGES, OF_TEXT
from tiny_models import FAMILIES as NAMES

from rekindle import api
from rekindle.anatomy import FAMILIES, kinds
from rekindle.apply.load import class_called, quietly
from rekindle.errors import RekindleError
from rekindle.methods import METHODS

ODD = [None, True, 0, 1, -1, 2.5, 1e30, float("nan"), 10**30, "", "x", "5", [], [1], ["x"], [None], {}, {"a": 1}, [[1]]]


def classes():
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    import rekindle.models  # noqa: F401

    return {name: CONFIG_MAPPING[name] for name in NAMES}


def made_of(kind) -> str:
    """Of a Literal texts, of a config, or what one is made of, a table."""
    return "str" if typing.get_origin(kind) is typing.Literal else "table"


def test_the_kinds_are_those_of_transformers():
    names = {int: "int", float: "float", bool: "bool", str: "str", list[int]: "ints", list[str]: "strs"}
    names[tuple[int, int]] = "ints"  # as JSON has it
    checked = 0
    for name, cls in classes().items():
        for field in fields(cls):
            if isinstance(field.type, str) or kinds.kind(FAMILIES[name], field.name) is None:
                continue  # transformers checks no type that is written as a text
            union = typing.get_args(field.type) if isinstance(field.type, types.UnionType) else (field.type,)
            null = "?" if type(None) in union else ""
            own = {names.get(kind) or made_of(kind) for kind in union if kind is not type(None)}
            told = {"int", "float"} <= own and "number" or (own == {"int", "ints"} and "id or ids") or own.pop()
            assert kinds.kind(FAMILIES[name], field.name) == told + null, (name, field.name)
            checked += 1
    assert checked > 250


def test_the_activations_are_those_of_transformers():
    from transformers.activations import ACT2FN

    assert set(ACT2FN) == kinds.ACTIVATIONS


@pytest.mark.parametrize("family", NAMES)
def test_odd_values_are_refused_or_the_child_can_be_read(tiny, tmp_path, family):
    """Every key, every odd value: a sentence, or a child whose config transformers takes."""
    from transformers import AutoConfig

    source = tmp_path / "source"
    shutil.copytree(tiny(family), source)
    path = source / "config.json"
    whole = json.loads(path.read_text())
    read = 0
    for key in whole:
        for value in ODD:
            config = copy.deepcopy(whole) | {key: value}
            path.write_text(json.dumps(config))
            try:
                child = api.rewrite(source).checkpoint.config
            except RekindleError:
                continue
            if key == "model_type":  # known by the names of its tensors alone, and told as it was
                assert child == config
                continue
            with quietly():
                AutoConfig.for_model(**json.loads(json.dumps(child)))
            read += 1
    assert read > 20


@pytest.mark.slow
@pytest.mark.parametrize("family", NAMES)
def test_methods_meet_odd_configs_with_a_sentence(tiny, tmp_path, family):
    from transformers import AutoConfig

    source = tmp_path / "source"
    shutil.copytree(tiny(family), source)
    path = source / "config.json"
    whole, usual = json.loads(path.read_text()), api.open(source).checkpoint.config
    for key in whole:
        for value in ODD:
            path.write_text(json.dumps(whole | {key: value}))
            try:
                model = api.open(source)
            except RekindleError:
                continue
            if model.checkpoint.config == usual or key == "model_type":
                continue  # a value that another one says already, or a class that no table knows
            for verb, method in METHODS.items():
                try:
                    child = api.apply(verb, model, **method.trial)
                    child.job()
                except RekindleError:
                    continue
                with quietly():
                    AutoConfig.for_model(**child.checkpoint.config)


def refusal(tiny, tmp_path, family: str, **changes: Any) -> str:
    shutil.copytree(tiny(family), tmp_path / "source")
    edit_config(tmp_path / "source", **changes)
    with pytest.raises(RekindleError) as refused:
        api.open(tmp_path / "source")
    return str(refused.value)


@pytest.mark.parametrize("count", [2, 6])
def test_layer_types_of_another_depth(tiny, tmp_path, count):
    kinds_ = ["sliding_attention", "full_attention"] * 3
    said = refusal(tiny, tmp_path, "gemma3_text", layer_types=kinds_[:count])
    assert f"layer_types has {count} entries, but num_hidden_layers is 3" in said


def test_a_null_where_a_number_is_needed(tiny, tmp_path):
    shutil.copytree(tiny("qwen3"), tmp_path / "source")
    path = tmp_path / "source" / "config.json"
    odd = {"max_window_layers": None, "use_sliding_window": True}
    config = {key: value for key, value in json.loads(path.read_text()).items() if key != "layer_types"} | odd
    path.write_text(json.dumps(config))
    with pytest.raises(RekindleError, match="max_window_layers is null, but of qwen3 it is a whole number"):
        api.open(tmp_path / "source")


def test_a_whole_number_where_transformers_wants_a_point(tiny, tmp_path):
    shutil.copytree(tiny("deepseek_v3"), tmp_path / "source")
    edit_config(tmp_path / "source", routed_scaling_factor=2)
    child = api.rewrite(tmp_path / "source").save(tmp_path / "child")
    assert repr(json.loads((child / "config.json").read_text())["routed_scaling_factor"]) == "2.0"
    assert api.verify(child, against=tmp_path / "source", tokens=64).held


def test_a_null_that_the_new_family_does_not_take(tiny, tmp_path):
    shutil.copytree(tiny("llama"), tmp_path / "source")
    edit_config(tmp_path / "source", attention_dropout=0)
    path = tmp_path / "source" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attention_dropout": None}))
    logits(api.upcycle(tmp_path / "source", experts=4).save(tmp_path / "child"))


@pytest.mark.parametrize("pad", [64, 999])
def test_a_pad_token_beyond_the_embeddings_is_no_reason(tiny, tmp_path, pad):
    shutil.copytree(tiny("llama"), tmp_path / "source")
    edit_config(tmp_path / "source", pad_token_id=pad)
    child = api.upcycle(tmp_path / "source", experts=4).save(tmp_path / "child")
    assert api.verify(child, against=tmp_path / "source", tokens=64).held
    logits(child)
    assert any(f"pad_token_id {pad}" in note for note in api.inspect(tmp_path / "source")["notes"])


@pytest.mark.parametrize("eos", [64, [2, 99], -1])
def test_an_end_token_beyond_the_embeddings_is_told(tiny, tmp_path, eos):
    shutil.copytree(tiny("llama"), tmp_path / "source")
    edit_config(tmp_path / "source", eos_token_id=eos)
    beyond = eos[1] if isinstance(eos, list) else eos
    assert any(f"eos_token_id {beyond} is no row" in note for note in api.inspect(tmp_path / "source")["notes"])
    assert api.verify(api.rewrite(tmp_path / "source").save(tmp_path / "child"), against=tmp_path / "source").held


@pytest.mark.parametrize(
    ("added", "words"), [(["pad"], "validation text"), (["end"], "random tokens (The data holds token 2")]
)
def test_a_tokenizer_with_ids_beyond_the_embeddings(tiny, tmp_path, added, words):
    """An unused pad token beyond the table is no reason; an end that every document has is, and it is named."""
    source = tmp_path / "source"
    shutil.copytree(tiny("llama", vocab_size=257), source)
    tokenizer = save_bytes_tokenizer(source)
    if added == ["pad"]:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    else:
        tokenizer.add_special_tokens({"eos_token": "<another end>"})
    tokenizer.save_pretrained(source)
    verdict = api.verify(api.rewrite(source).save(tmp_path / "child"), against=source, tokens=64)
    assert verdict.held
    assert verdict.text.startswith(words)


def test_whole_numbers_are_no_weights(tiny, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny("llama"), tmp_path / "source")
    path = tmp_path / "source" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].to(torch.int32)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(RekindleError, match="whole numbers, not weights"):
        api.open(tmp_path / "source")


@pytest.mark.parametrize("family", [name for name in OF_TEXT if name != "bert"])
def test_a_child_loads_with_every_class_that_its_parent_loads_with(tiny, tmp_path, family):
    import transformers

    source = tmp_path / "source"
    shutil.copytree(tiny(family, vocab_size=257), source)
    save_bytes_tokenizer(source)
    (source / "generation_config.json").write_text(json.dumps({"max_length": 40, "top_k": 5}))
    child = api.rewrite(source).save(tmp_path / "child")
    autos = ("AutoConfig", "AutoTokenizer", "AutoProcessor", "AutoModel", "AutoModelForCausalLM", "GenerationConfig",
             "AutoModelForSequenceClassification", "AutoModelForSeq2SeqLM")  # fmt: skip
    loaded = []
    for name in autos:
        cls = getattr(transformers, name)
        try:
            with quietly():
                cls.from_pretrained(source)
        except Exception:
            continue
        with quietly():
            cls.from_pretrained(child)
        loaded.append(name)
    own = {"AutoModelForSeq2SeqLM" if family in ENCODER_DECODERS else "AutoModelForCausalLM"}
    own = set() if family == "modernbert" else own  # which has no class that looks back only
    assert {"AutoConfig", "AutoTokenizer", "AutoModel", "GenerationConfig"} | own <= set(loaded)


@pytest.mark.parametrize(
    "kinds_", [["full_attention", "sliding_attention", "full_attention"], ["full_attention"] * 3, None]
)
def test_a_mistral_that_lists_its_layers_is_another_model(tiny, tmp_path, kinds_):
    shutil.copytree(tiny("mistral", sliding_window=8), tmp_path / "source")
    path = tmp_path / "source" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layer_types": kinds_}))
    with pytest.raises(RekindleError, match="is a ministral to transformers"):
        api.open(tmp_path / "source")


def test_verify_has_the_child_read_as_any_user_would(tiny, tmp_path, monkeypatch):
    """The config as it lies on disk is what transformers is given, not one of our making."""
    import transformers

    child = api.rewrite(tiny("llama")).save(tmp_path / "child")
    seen = []
    real = transformers.AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        transformers.AutoModelForCausalLM,
        "from_pretrained",
        lambda *args, **how: seen.append(how) or real(*args, **how),
    )
    assert api.verify(child, against=tiny("llama"), tokens=64).held
    assert seen
    assert not any("config" in how for how in seen)


@pytest.mark.parametrize("family", NAMES)
def test_a_null_is_taken_where_transformers_runs_with_it(tiny, tmp_path, family):
    """Key by key: a model that runs is opened and its child computes the same; one that cannot run is refused."""

    source, child = tmp_path / "source", tmp_path / "child"
    as_deep = {"num_decoder_layers": 2} if "t5" in family and "gemma" not in family else {}  # which a null means
    shutil.copytree(tiny(family, **as_deep), source)
    path = source / "config.json"
    whole = json.loads(path.read_text())
    ids, pixels = torch.arange(2, 22)[None], torch.linspace(-1, 1, 64).view(1, 1, 8, 8)

    def run(folder):
        with quietly(), torch.no_grad():
            cls, how = class_called(whole["architectures"][0]), {"dtype": torch.float32}
            model, report = cls.from_pretrained(folder, output_loading_info=True, **how)
            if report["missing_keys"]:
                raise ValueError("a null that is another model")
            written = {"decoder_input_ids": ids} if family in ENCODER_DECODERS else {}
            if family in OF_IMAGES:
                return model.eval()(pixel_values=pixels)[0]
            return model.eval()(input_ids=ids, use_cache=False, **written)[0]

    for key in sorted({*FAMILIES[family].defaults, *whole} - {"model_type", "architectures"}):
        if kinds.kind(FAMILIES[family], key) is None:
            continue
        path.write_text(json.dumps(whole | {key: None}))
        try:
            # a tower that is null is the default one: gigabytes, and not of these weights
            expected = None if key in FAMILIES[family].towers else run(source)
        except Exception:
            expected = None
        with contextlib.suppress(RekindleError):
            api.rewrite(source).save(child, overwrite=True)
        found = run(child) if child.exists() else None
        assert (found is None) == (expected is None), key
        assert found is None or torch.equal(found, expected), key
        shutil.rmtree(child, ignore_errors=True)


def test_layers_with_a_window_that_is_not_given(tiny, tmp_path):
    kinds_ = ["sliding_attention", "full_attention", "full_attention"]
    said = refusal(tiny, tmp_path, "qwen2", layer_types=kinds_, use_sliding_window=False)
    assert "layer_types has layers with a window, but" in said
    with pytest.raises(ValueError, match="sliding_window"):
        logits(tmp_path / "source")
