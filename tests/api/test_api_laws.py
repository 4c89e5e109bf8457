"""Runs as points of a law."""

from __future__ import annotations

import json
import shutil

import pytest

from rekindle import api
from rekindle.api.laws import _checkpoint, _ending
from rekindle.report.text import inspected
from rekindle.store.lineage import extended
from rekindle.store.manifest import Manifest, Record


@pytest.mark.slow
def test_a_run_s_folder_is_a_row_with_the_dense_model_s_size(tmp_path, monkeypatch):
    """N1 is that of the dense model, of a mixture as well: experts but one and routers left out."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    for i in range(30):
        lines = (f"Line {n} of text {i} says that {n} squared is {n * n}." for n in range(i * 70, i * 70 + 70))
        (tmp_path / "corpus" / f"{i}.txt").write_text("\n".join(lines))
    sizes = {"hidden": 16, "layers": 2, "heads": 2, "ffn": 32, "tokenizer": "bpe:300", "data": "corpus"}
    short = {"data": "corpus", "tokens": "4k", "seq_len": 32, "batch_tokens": 512, "eval_tokens": "1k"}
    api.init("base", **sizes)
    api.train("base", "dense", **short)
    api.upcycle("dense", experts=4).save("moe")
    api.train("moe", "upcycled", **short)
    dense, upcycled = _ending(tmp_path / "dense"), _ending(tmp_path / "upcycled")
    n1 = api.inspect("base")["parameters"]["total"]
    assert dense["params"] == upcycled["params"] == n1
    assert (dense["way"], dense["sunk"], upcycled["way"]) == ("dense", 0, "upcycled")
    assert upcycled["sunk"] == dense["tokens"] == upcycled["tokens"] == 3584
    assert upcycled["loss"] < dense["loss"]


def test_tokens_that_merged_checkpoints_share_are_sunk_once(tiny, tmp_path):
    folder = shutil.copytree(tiny("llama"), tmp_path / "merged")
    trunk = Record(verb="train", command="trunk", options={}, tokens=1000)
    lives = {name: [trunk, Record(verb="train", command=name, options={}, tokens=10)] for name in ("left", "right")}
    made_of = {name: (name, None, Manifest(version="1", lineage=life)) for name, life in lives.items()}
    lineage = extended(made_of, Record(verb="merge", command="", options={}, summary="the mean"))
    Manifest(version="1", lineage=lineage).write(folder)
    assert _checkpoint(folder).sunk == 1020
    told = json.loads(json.dumps(api.inspect(folder)["lineage"]))
    assert told[-1]["sources"]["right"] == {"source": "right", "fingerprint": None, "after": 2}
    assert "sources" not in told[0]
    assert "merge of left, right: the mean" in inspected(api.inspect(folder))
