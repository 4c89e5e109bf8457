"""What is written: the very bytes where copied, the same bytes however it is cut where computed."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import deserialize
from store.folders import TINY_LLAMA, llama_tensors, write_llama

from rekindle import api
from rekindle.apply import write
from rekindle.apply.shards import cut
from rekindle.apply.write import merged
from rekindle.edit.arithmetic import Fill
from rekindle.edit.expressions import Span
from rekindle.errors import CheckFailed, RekindleError
from rekindle.store import files
from rekindle.store.files import Files
from rekindle.store.folder import open_folder


def contents(folder) -> dict[str, tuple[str, list[int], bytes]]:
    """Every tensor as the safetensors library reads it."""
    files = sorted(folder.glob("*.safetensors"))
    read = [item for file in files for item in deserialize(file.read_bytes())]
    assert len({name for name, _ in read}) == len(read)
    return {name: (entry["dtype"], list(entry["shape"]), bytes(entry["data"])) for name, entry in read}


def random_bits(dtype: str = "BF16") -> dict:
    """A llama of random bits: NaN of every payload, infinities and subnormals among them."""
    rng = np.random.default_rng(0)
    return {name: (dtype, shape, rng.bytes(len(data))) for name, (_, shape, data) in llama_tensors(dtype).items()}


@pytest.fixture
def parent(tmp_path):
    return write_llama(tmp_path / "parent", shards=2)


# -- copies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_rewrite_carries_every_bit(tmp_path, dtype):
    tensors = random_bits(dtype)
    out = api.rewrite(write_llama(tmp_path / "parent", tensors=tensors)).save(tmp_path / "out")
    assert contents(out) == {name: (kind, list(shape), data) for name, (kind, shape, data) in tensors.items()}


def test_upcycle_carries_every_bit(tmp_path):
    """NaN payloads too: what is copied is not looked at."""
    tensors = random_bits()
    out = api.upcycle(write_llama(tmp_path / "parent", tensors=tensors), experts=3).save(tmp_path / "out")
    made = contents(out)
    names = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
    for layer in range(TINY_LLAMA["num_hidden_layers"]):
        for expert in range(3):
            for child, ours in names.items():
                data = made.pop(f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{child}.weight")[2]
                assert data == tensors[f"model.layers.{layer}.mlp.{ours}.weight"][2]
        assert made.pop(f"model.layers.{layer}.block_sparse_moe.gate.weight")[1] == [3, 32]
    assert {name: data for name, (_, _, data) in made.items()} == {
        name: data for name, (_, _, data) in tensors.items() if ".mlp." not in name
    }


def test_fused_and_back_is_the_same(parent, tmp_path):
    moe = api.upcycle(parent, experts=4).save(tmp_path / "moe")
    fused = api.rewrite(moe).save(tmp_path / "fused", fused=True)
    assert len(contents(fused)) < len(contents(moe))
    back = api.rewrite(fused).save(tmp_path / "back")
    assert contents(back) == contents(moe)


@pytest.mark.parametrize("call", ["missing", "declining", "short"])
def test_copies_are_the_same_without_the_kernels_help(parent, tmp_path, monkeypatch, call):
    whole = contents(api.rewrite(parent).save(tmp_path / "whole"))
    kernel = os.copy_file_range
    monkeypatch.setattr(files, "PAGE", 1)  # every copy is the kernel's
    if call == "missing":
        monkeypatch.delattr(os, "copy_file_range")
    elif call == "declining":
        monkeypatch.setattr(os, "copy_file_range", lambda *_: (_ for _ in ()).throw(OSError(18, "EXDEV")))
    else:
        monkeypatch.setattr(os, "copy_file_range", lambda a, b, n, *rest: kernel(a, b, min(n, 999), *rest))
    assert contents(api.rewrite(parent).save(tmp_path / "out")) == whole


def test_in_place(parent):
    before = contents(parent)
    api.rewrite(parent).save(parent, overwrite=True)
    assert contents(parent) == before
    assert len(open_folder(parent).shards) == 1


# -- shards ----------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 40), max_size=20), st.integers(0, 100))
def test_shards_hold_each_tensor_once_in_order_within_the_limit(sizes, limit):
    tensors = {f"t{i}": Fill("F32", (size,), 0.0) for i, size in enumerate(sizes)}
    shards = cut(tensors, limit)
    assert [name for shard in shards for name in shard.tensors] == list(tensors)
    for shard, after in zip(shards, [*shards[1:], None]):
        size = sum(expr.nbytes for expr in shard.tensors.values())
        assert size <= limit or len([x for x in shard.tensors.values() if x.nbytes]) == 1
        assert after is None or size + next(iter(after.tensors.values())).nbytes > limit, "no shard is cut too early"


@pytest.mark.parametrize("limit", ["1", "5kB", "20kB", "5GB"])
def test_max_shard_size(parent, tmp_path, limit):
    out = api.upcycle(parent, experts=2).save(tmp_path / "out", max_shard_size=limit)
    folder = open_folder(out)
    data: dict[str, list[int]] = {}
    for tensor in folder.tensors.values():
        data.setdefault(tensor.path, []).append(tensor.nbytes)
    largest = {"1": 1, "5kB": 5000, "20kB": 20_000, "5GB": 5 * 10**9}[limit]
    assert all(sum(sizes) <= largest or len(sizes) == 1 for sizes in data.values())
    assert len(data) == {"1": len(folder.tensors), "5GB": 1}.get(limit, len(data))
    assert (out / "model.safetensors.index.json").exists() == (len(data) > 1)
    whole = api.upcycle(parent, experts=2).save(tmp_path / "whole")
    assert contents(out) == contents(whole)


@pytest.mark.parametrize("size", ["0", "-5GB"])
def test_a_shard_of_nothing_is_refused(parent, size):
    with pytest.raises(RekindleError, match="holds nothing"):
        api.rewrite(parent).job(max_shard_size=size)


def test_data_begins_on_a_multiple_of_eight(parent, tmp_path):
    folder = open_folder(api.upcycle(parent, experts=2).save(tmp_path / "out", max_shard_size="5kB"))
    assert all(min(t.offset for t in folder.tensors.values() if t.path == str(s)) % 8 == 0 for s in folder.shards)


# -- runs of bytes ---------------------------------------------------------------------------------------------

spans = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 20), st.integers(0, 5)).map(lambda t: Span(*t)))


@given(spans)
def test_merged_runs_are_the_same_bytes(found):
    def places(runs):
        return [(run.path, at) for run in runs for at in range(run.offset, run.offset + run.nbytes)]

    joined = list(merged(found))
    assert places(joined) == places(found)
    assert all(run.nbytes for run in joined)
    assert len(joined) <= len(found)


def test_neighbours_are_one_run():
    runs = [Span("a", 0, 4), Span("a", 4, 4), Span("a", 8, 1), Span("b", 9, 1), Span("a", 10, 1), Span("a", 0, 2)]
    assert list(merged(runs)) == [Span("a", 0, 9), Span("b", 9, 1), Span("a", 10, 1), Span("a", 0, 2)]


def test_stacked_experts_that_lie_together_are_copied_together(parent, tmp_path, monkeypatch):
    """down_proj of all experts in one call: that is how a fused checkpoint is rewritten at disc speed."""
    fused = api.upcycle(parent, experts=4).save(tmp_path / "moe", fused=True)
    copies = []
    copy = Files.copy
    monkeypatch.setattr(Files, "copy", lambda self, *place: copies.append(place) or copy(self, *place))
    again = api.rewrite(fused).save(tmp_path / "again", fused=True)
    assert contents(again) == contents(fused)
    assert len(copies) == len(contents(fused))


# -- what is computed ------------------------------------------------------------------------------------------

CUTS = [
    {"window": 1},
    {"window": 4096, "workers": 3},
    {"max_shard_size": "5kB", "workers": 2},
    {"window": 777, "max_shard_size": "1", "workers": 4},
    {"checksum": True},
]


@pytest.mark.parametrize("how", CUTS, ids=str)
@pytest.mark.parametrize("verb", ["upcycle", "rewrite"])
def test_computed_bytes_do_not_depend_on_how_they_are_cut(parent, tmp_path, monkeypatch, verb, how):
    options = {"upcycle": {"experts": 3, "init": "noise", "seed": 7}, "rewrite": {"dtype": "float16"}}[verb]
    whole = api.apply(verb, parent, **options).save(tmp_path / "whole", workers=1)
    how = dict(how)
    monkeypatch.setattr(write, "WINDOW", how.pop("window", write.WINDOW))
    assert contents(api.apply(verb, parent, **options).save(tmp_path / "out", **how)) == contents(whole)


def test_noise_has_its_seed_and_its_size(parent, tmp_path):
    made = [
        contents(api.upcycle(parent, experts=2, init="noise", noise=0.25, seed=seed).save(tmp_path / str(i)))
        for i, seed in enumerate((1, 1, 2))
    ]
    assert made[0] == made[1]
    assert made[0] != made[2]
    was = bf16(contents(parent)["model.layers.0.mlp.up_proj.weight"][2])
    experts = [bf16(made[0][f"model.layers.0.block_sparse_moe.experts.{e}.w3.weight"][2]) for e in (0, 1)]
    assert not torch.equal(*experts)
    assert float((experts[0] - was).std()) == pytest.approx(0.25 * float(was.std()), rel=0.1)


def bf16(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.bfloat16).float()


WIDE = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("stored", ["BF16", "F16", "F32"])
def test_casts_are_torchs(tmp_path, stored, dtype):
    parent = write_llama(tmp_path / "parent", tensors=llama_tensors(stored))
    made = contents(api.rewrite(parent, dtype=dtype).save(tmp_path / "out"))
    for name, (_, _, data) in contents(parent).items():
        expected = torch.frombuffer(bytearray(data), dtype=WIDE[stored]).to(getattr(torch, dtype))
        assert made[name][2] == expected.view(torch.uint8).numpy().tobytes(), name


# -- NaN and infinite values -----------------------------------------------------------------------------------


def spoilt(tensors: dict, name: str, value: float) -> dict:
    dtype, shape, data = tensors[name]
    values = torch.frombuffer(bytearray(data), dtype=WIDE[dtype]).clone()
    values[5] = value
    return tensors | {name: (dtype, shape, values.view(torch.uint8).numpy().tobytes())}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_in_what_is_computed_is_reported(tmp_path, value):
    name = "model.layers.1.mlp.up_proj.weight"
    parent = write_llama(tmp_path / "parent", tensors=spoilt(llama_tensors(), name, value))
    with pytest.raises(CheckFailed, match="2 computed values are NaN or infinite") as failed:
        api.upcycle(parent, experts=2, init="noise", noise=0.1).save(tmp_path / "out")
    assert "model.layers.1.block_sparse_moe.experts.0.w3.weight" in str(failed.value.where)
    assert api.not_finite(parent) == {name: 1}
    assert api.upcycle(parent, experts=2).save(tmp_path / "copies").is_dir()


def test_overflow_of_float16_is_reported(tmp_path):
    parent = write_llama(tmp_path / "parent", tensors=spoilt(llama_tensors("F32"), "lm_head.weight", 65520.0))
    with pytest.raises(CheckFailed, match="1 computed value is NaN or infinite") as failed:
        api.rewrite(parent, dtype="float16").save(tmp_path / "out")
    assert "lm_head.weight" in str(failed.value.where)


def test_nan_is_still_known_after_a_resume(tmp_path):
    """The shard that holds it was finished by the attempt that was cut short."""
    name = "model.embed_tokens.weight"
    parent = write_llama(tmp_path / "parent", tensors=spoilt(llama_tensors(), name, float("nan")))
    model, options = api.rewrite(parent, dtype="float32"), {"max_shard_size": "10kB", "workers": 1}

    def stop(done, calls=[]):  # noqa: B006
        calls.append(done)
        if len(calls) > 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.save(tmp_path / "out", progress=stop, **options)
    with pytest.raises(CheckFailed, match="1 computed value is"):
        model.save(tmp_path / "out", resume=True, **options)


def test_the_price_is_what_is_paid(parent, tmp_path):
    job = api.upcycle(parent, experts=4, init="noise", noise=0.1).job()
    out = api.upcycle(parent, experts=4, init="noise", noise=0.1).save(tmp_path / "out")
    assert job.nbytes == sum(len(data) for _, _, data in contents(out).values())


def test_progress_counts_every_byte(parent, tmp_path):
    done = []
    model = api.upcycle(parent, experts=2)
    model.save(tmp_path / "out", progress=done.append, workers=2, max_shard_size="10kB")
    assert sum(done) == model.job().nbytes
