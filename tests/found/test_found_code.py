"""No code of a folder's own runs, and nothing asks to let it; where no tokenizer loads, models are still compared."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from found.folders import edit_config, logits

from rekindle import api
from rekindle.apply.load import load_model
from rekindle.errors import RekindleError
from rekindle.train.model import load_tokenizer

PLACES = ("configuration_own", "modeling_own", "tokenization_own", "processing_own", "custom_generate/generate", "own")


@pytest.fixture
def planted(tiny, tmp_path) -> Path:
    """A llama whose every file that may name code does so; that code leaves a mark where it runs."""
    folder = tmp_path / "planted"
    shutil.copytree(tiny("llama"), folder)
    for place in PLACES:
        path = folder / f"{place}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            f"open({str(tmp_path / 'mark')!r}, 'a').write({place!r})\n"
            "class Own: pass\nOwnConfig = OwnModel = OwnTokenizer = OwnProcessor = Own\n"
        )
    maps = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModel": "modeling_own.OwnModel",
        "AutoModelForCausalLM": "modeling_own.OwnModel",
        "AutoTokenizer": ["tokenization_own.OwnTokenizer", None],
        "AutoProcessor": "processing_own.OwnProcessor",
    }
    edit_config(folder, auto_map=maps, attn_implementation="evil/kernel", experts_implementation="evil/kernel",
                custom_pipelines={"text-generation": {"impl": "own.Own", "pt": ["AutoModel"]}})  # fmt: skip
    tokenizer = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": maps["AutoTokenizer"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "vocab.json").write_text("{}")
    return folder


def typed(words: list[str], tmp_path: Path) -> subprocess.CompletedProcess:
    """A command line whose user says yes to everything."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "REKINDLE_CACHE": str(tmp_path / "cache")}
    return subprocess.run([sys.executable, "-m", "rekindle", *words], input="y\n" * 50, capture_output=True, text=True,
                          env=environment, timeout=200)  # fmt: skip


def test_no_tokenizer_and_no_model_runs_code(planted, tmp_path):
    with pytest.raises(RekindleError, match="code of the folder's own, which is never run"):
        load_tokenizer(planted)
    load_model(planted)
    assert not (tmp_path / "mark").exists()


@pytest.mark.slow
def test_no_verb_runs_code_or_asks(planted, tmp_path):
    child = api.upcycle(planted, experts=4).save(tmp_path / "child")
    for blockwise in ("--whole", "--blockwise"):
        done = typed(["verify", str(child), "--against", str(planted), blockwise], tmp_path)
        assert done.returncode == 0, done.stderr
        assert "random tokens" in done.stdout
        assert "remote code" not in done.stdout.split("random tokens")[0]
    for words in (
        ["evaluate", str(planted)],
        ["train", str(planted), str(tmp_path / "out"), "--tokens", "32k", "--seq-len", "32", "--lr", "1e-3"],
        ["init", str(tmp_path / "new"), "--hidden", "16", "--layers", "1", "--heads", "2", "--tokenizer", str(planted)],
        ["gqa", str(planted), str(tmp_path / "gqa"), "--kv-heads", "1", "--pool", "aligned", "--data", "stdlib"],
    ):
        done = typed(words, tmp_path)
        assert done.returncode == 2, (words, done.stdout, done.stderr)
        assert "No tokenizer can be loaded" in done.stderr
    assert not (tmp_path / "mark").exists()


def test_code_is_no_part_of_the_child_and_is_told(planted, tmp_path):
    told = next(n for n in api.inspect(planted)["notes"] if "modeling_own" in n or "configuration_own" in n)
    assert told.endswith("what is made names no such code"), "where a tokenizer's code travels, all .py files do"
    for child in (api.rewrite(planted).save(tmp_path / "same"), api.upcycle(planted, experts=4).save(tmp_path / "moe")):
        config = json.loads((child / "config.json").read_text())
        assert config["auto_map"].keys() == {"AutoTokenizer", "AutoProcessor"}
        assert not {"attn_implementation", "experts_implementation", "custom_pipelines"} & config.keys()
        for name in ("tokenization_own.py", "processing_own.py", "tokenizer_config.json"):
            assert (child / name).is_file()  # what is still referred to
        logits(child)


@pytest.mark.parametrize("broken", ["", "{", '{"tokenizer_class": "Nothing"}'])
def test_a_broken_tokenizer_is_no_reason_not_to_compare(tiny, tmp_path, broken):
    parent = tmp_path / "parent"
    shutil.copytree(tiny("llama"), parent)
    (parent / "tokenizer.json").write_text(broken)
    (parent / "tokenizer.model").write_bytes(b"\x0a\x0e")
    verdict = api.verify(api.rewrite(parent).save(tmp_path / "child"), against=parent, tokens=64)
    assert verdict.held
    assert verdict.text.startswith("random tokens (No tokenizer can be loaded")


def test_a_missing_text_is_still_an_error(tiny, tmp_path):
    from found.tokenizers_made import save_bytes_tokenizer

    parent = tmp_path / "parent"
    shutil.copytree(tiny("llama", vocab_size=300), parent)
    save_bytes_tokenizer(parent)
    with pytest.raises(RekindleError, match="no such file"):
        api.verify(parent, against=parent, data=str(tmp_path / "gone.txt"))
