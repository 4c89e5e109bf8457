"""What travels is what something refers to: children load with every class their parent loads with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from found.folders import edit_config
from found.tokenizers_made import save_bytes_tokenizer

from rekindle import api
from rekindle.errors import RekindleError


def passengers(folder: Path) -> list[Path]:
    return api.open(folder).checkpoint.folder.passengers()


@pytest.fixture
def parent(tiny, tmp_path) -> Path:
    shutil.copytree(tiny("llama", vocab_size=300), tmp_path / "parent")
    return tmp_path / "parent"


def test_several_chat_templates(parent, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = save_bytes_tokenizer(parent)
    tokenizer.chat_template = {"default": "{{ messages[0]['content'] }}", "tool_use": "tools: {{ tools }}"}
    tokenizer.save_pretrained(parent)
    assert AutoTokenizer.from_pretrained(parent).chat_template.keys() == {"default", "tool_use"}
    child = api.upcycle(parent, experts=4).save(tmp_path / "child")
    assert AutoTokenizer.from_pretrained(child).chat_template == AutoTokenizer.from_pretrained(parent).chat_template


def test_a_sentence_transformer_keeps_its_modules(minilm, tmp_path):
    parent = tmp_path / "parent"
    shutil.copytree(minilm, parent)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
    ]
    (parent / "modules.json").write_text(json.dumps(modules))
    for folder in ("1_Pooling", "2_Dense", "3_Other"):
        (parent / folder).mkdir(exist_ok=True)
        (parent / folder / "config.json").write_text("{}")
    (parent / "2_Dense" / "model.safetensors").write_bytes(b"weights of a module")
    child = api.rewrite(parent).save(tmp_path / "child")
    assert json.loads((child / "modules.json").read_text()) == modules
    for file in ("1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"):
        assert (child / file).read_bytes() == (parent / file).read_bytes()
    assert not (child / "3_Other").exists()


def test_sentence_transformers_loads_the_child(minilm, tmp_path):
    import numpy as np
    from sentence_transformers import SentenceTransformer

    from rekindle.apply.load import quietly

    with quietly():
        SentenceTransformer(str(minilm)).save(str(tmp_path / "parent"))
        texts = ["A dog runs.", "Der Hund läuft.", ""]
        before = SentenceTransformer(str(tmp_path / "parent"), local_files_only=True).encode(texts)
        for made in (api.rewrite(tmp_path / "parent"), api.grow_depth(tmp_path / "parent", factor=2)):
            child = made.save(tmp_path / made.steps[0].verb)
            after = SentenceTransformer(str(child), local_files_only=True).encode(texts)
            assert after.shape == before.shape
            assert np.isfinite(after).all()
            if made.steps[0].verb == "rewrite":
                assert np.array_equal(before, after)


@pytest.mark.parametrize("path", ["../parent2", "/etc"])
def test_a_module_outside_the_folder_is_refused(parent, tmp_path, path):
    (tmp_path / "parent2").mkdir()
    (parent / "modules.json").write_text(json.dumps([{"path": "", "type": "x"}, {"path": path, "type": "y"}]))
    with pytest.raises(RekindleError, match="leads out of the folder"):
        api.rewrite(parent).save(tmp_path / "child")
    assert not (tmp_path / "child").exists()


def test_a_module_without_files_may_be_missing(parent, tmp_path):
    (parent / "modules.json").write_text(json.dumps([{"path": "2_Normalize", "type": "x"}]))
    assert (api.rewrite(parent).save(tmp_path / "child") / "modules.json").is_file()


def test_a_file_that_a_config_names_travels(parent, tmp_path):
    (parent / "tokenizer_config.json").write_text(json.dumps({"vocab_file": "bpe.data", "merges_file": "gone.data"}))
    (parent / "bpe.data").write_text("x")
    (parent / "other.data").write_text("y")
    names = {path.name for path in passengers(parent)}
    assert "bpe.data" in names
    assert "other.data" not in names


def test_weights_and_leftovers_never_travel(parent):
    named = ["optimizer.pt", "training_args.bin", "old.safetensors", "pytorch_model.bin"]
    (parent / "extra.json").write_text(json.dumps(named))
    for name in (*named, "trainer_state.json", "rng_state.pth"):
        (parent / name).write_bytes(b"{}")
    names = {path.name for path in passengers(parent)}
    assert names.isdisjoint({*named, "trainer_state.json", "rng_state.pth"})


def test_code_travels_only_with_what_names_it(parent):
    for name in ("modeling_own.py", "tokenization_own.py", "helpers.py"):
        (parent / name).write_text("")
    assert not [path for path in passengers(parent) if path.suffix == ".py"]
    edit_config(parent, auto_map={"AutoModel": "modeling_own.OwnModel"})  # which the child's config will not name
    assert not [path for path in passengers(parent) if path.suffix == ".py"]
    named = {"auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}}
    (parent / "tokenizer_config.json").write_text(json.dumps(named))
    assert len([path for path in passengers(parent) if path.suffix == ".py"]) == 3


def test_training_carries_the_same(parent, tmp_path):
    save_bytes_tokenizer(parent)
    (parent / "modules.json").write_text(json.dumps([{"path": "1_Pooling", "type": "x"}]))
    (parent / "1_Pooling").mkdir()
    (parent / "1_Pooling" / "config.json").write_text('{"a": 1}')
    (tmp_path / "data.txt").write_text("\n\n".join(f"{n} words of a text " * 50 for n in range(400)))
    how = {"tokens": 1024, "seq_len": 32, "batch_tokens": 256, "lr": 1e-3, "eval_tokens": 256}
    api.train(parent, tmp_path / "out", data=str(tmp_path / "data.txt"), **how)
    assert (tmp_path / "out" / "1_Pooling" / "config.json").read_text() == '{"a": 1}'


TERMS = ("LICENSE", "license", "LICENCE.txt", "License.md", "COPYING", "COPYING.LESSER", "NOTICE.txt", "MODEL_LICENSE",
         "LICENSE-MODEL", "LICENSE.pdf", "USE_POLICY.md", "Terms_of_Use.pdf", "LICENSES/Apache-2.0.txt")  # fmt: skip


def test_what_says_the_terms_travels_however_it_is_spelt(parent, tmp_path):
    for name in TERMS:
        (parent / name).parent.mkdir(exist_ok=True)
        (parent / name).write_text(f"the terms of {name}")
    child = api.rewrite(parent).save(tmp_path / "child")
    for name in TERMS:
        assert (child / name).read_text() == f"the terms of {name}"


def test_mistrals_tokenizers_travel(parent, tmp_path):
    names = ("tokenizer.model.v3", "tokenizer.mm.model.v2", "tokenizer.model.v7m1", "tekken.json")
    for name in names:
        (parent / name).write_text("{}")
    child = api.rewrite(parent).save(tmp_path / "child")
    assert all((child / name).exists() for name in names)


def test_what_does_not_travel_is_named(parent, tmp_path):
    assert not any("taken along" in note for note in api.inspect(parent)["notes"])
    for name in ("tool_parser.py", "custom_generate/generate.py", "tokenizer/tokenizer.json", "runs/1/events"):
        (parent / name).parent.mkdir(parents=True, exist_ok=True)
        (parent / name).write_text("{}")
    for name in ("README.md", "trainer_state.json", "optimizer.pt", ".gitattributes", "metrics.jsonl", "LICENSE"):
        (parent / name).write_text("{}")
    [note] = [note for note in api.inspect(parent)["notes"] if "taken along" in note]
    assert note.endswith(": custom_generate/, runs/, tokenizer/, tool_parser.py")
    child = api.rewrite(parent).save(tmp_path / "child")
    assert {path.name for path in child.iterdir()} - {path.name for path in parent.iterdir()} == {
        "rekindle.json",
        "rekindle.yaml",
    }


def test_a_file_in_a_folder_travels_where_it_is_named(parent, tmp_path):
    for name in ("sub/deep/vocab.json", "sub/other.json", "../outside.json"):
        (parent / name).parent.mkdir(parents=True, exist_ok=True)
        (parent / name).write_text("{}")
    named = {"vocab_file": "sub/deep/vocab.json", "a": "../outside.json", "b": "sub/none.json", "c": "/etc/hostname",
             "d": "a/" * 200, "e": "sub/deep"}  # fmt: skip
    (parent / "tokenizer_config.json").write_text(json.dumps(named))
    child = api.rewrite(parent).save(tmp_path / "child")
    assert (child / "sub" / "deep" / "vocab.json").read_text() == "{}"
    assert not (child / "sub" / "other.json").exists()
    assert not any("taken along" in note for note in api.inspect(parent)["notes"])
