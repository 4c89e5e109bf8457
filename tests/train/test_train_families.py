"""Training of every family: moments lie under the names on disk, packed as the weights are, and load again."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file
from tiny_models import MASKED, PLAIN

from rekindle import api
from rekindle.errors import RekindleError

SIZES = {"vocab_size": 320, "initializer_range": 0.05}


def with_tokenizer(model, source, to):
    shutil.copytree(model, to)
    for path in source.glob("tokenizer*"):
        shutil.copy(path, to)
    return to


@pytest.mark.parametrize("family", [*PLAIN, "deepseek_v3"])
def test_moments_are_those_of_the_tensors_on_disk(tiny, small, run, tmp_path, family):
    parent = with_tokenizer(tiny(family, **SIZES), small("llama"), tmp_path / "parent")
    trained, summary = run(parent, tokens=3 * 256)
    weights = load_file(trained / "model.safetensors")
    before = load_file(parent / "model.safetensors")
    assert weights.keys() == before.keys()
    moments = load_file(trained / "optimizer" / "optimizer.safetensors")
    buffers = {name for name in weights if name.endswith("e_score_correction_bias")}
    assert bool(buffers) == (family == "deepseek_v3")
    assert moments.keys() == {f"{n}.{m}" for n in weights.keys() - buffers for m in ("exp_avg", "exp_avg_sq")}
    assert all(moment.shape == weights[name.rpartition(".")[0]].shape for name, moment in moments.items())
    assert all((weights[name] == before[name]).all() for name in buffers)
    again = api.rewrite(trained).save(tmp_path / "again", optimizer_state=str(trained / "optimizer"))
    copied = load_file(again / "optimizer" / "optimizer.safetensors")
    assert copied.keys() == moments.keys()
    assert all((copied[name] == moments[name]).all() for name in moments)
    continued, later = run(again, out="continued", tokens=2 * 256, optimizer_state=str(again / "optimizer"))
    assert later["val_loss"] < summary["val_loss"]
    steps = json.loads((continued / "optimizer" / "optimizer.json").read_text())["steps"]
    assert set(steps.values()) == {5}


def test_encoders_are_not_trained_to_predict_the_next_token(tiny, small, run, tmp_path):
    for changes, words in (({}, "has no language-model head"), (MASKED, "predicts masked tokens")):
        folder = tmp_path / words.replace(" ", "")
        parent = with_tokenizer(tiny("bert", **SIZES, **changes), small("llama"), folder)
        with pytest.raises(RekindleError, match=f"This bert {words}; needed is one that predicts the next token"):
            run(parent)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_experts_whose_sizes_grouped_kernels_do_not_take(small, run, precision):
    """Rows of 18 and 30 numbers are no whole 16 bytes."""
    _, summary = run(small("mixtral", hidden=18, heads=3, ffn=30), precision=precision)
    assert summary["val_loss"] < summary["val_loss_before"]


@pytest.mark.parametrize("blockwise", [False, True])
def test_verify_of_such_experts(small, tmp_path, blockwise):
    dense = small(hidden=18, heads=3, ffn=30)
    moe = api.upcycle(dense, experts=4).save(tmp_path / "moe")
    assert api.verify(moe, against=dense, tokens=64, data="stdlib", blockwise=blockwise).held


def test_experts_whose_rows_are_whole_16_bytes_in_float32_alone(small, run):
    out = [run(small("mixtral", hidden=12, heads=2, ffn=20), p, precision=p)[1] for p in ("fp32", "bf16")]
    assert out[0]["val_loss"] == pytest.approx(out[1]["val_loss"], rel=1e-2)


def test_a_bias_that_is_not_trained_keeps_its_bits_in_out_and_archive(tiny, small, run, tmp_path):
    parent = with_tokenizer(tiny("deepseek_v3", "bfloat16", **SIZES), small("llama"), tmp_path / "parent")
    out, _ = run(parent, tokens=3 * 256, archive=str(tmp_path / "run.rk"))
    api.unpack(f"{tmp_path / 'run.rk'}@3", tmp_path / "unpacked")
    before, *after = (load_file(folder / "model.safetensors") for folder in (parent, out, tmp_path / "unpacked"))
    biases = [name for name in before if name.endswith("e_score_correction_bias")]
    assert biases
    for weights in after:
        assert {n: x.dtype for n, x in weights.items()} == {n: x.dtype for n, x in before.items()}
        assert all((weights[name] == before[name]).all() for name in biases)
