"""Torch's own files in archives: to the byte, and seen by the modes that change moments."""

from __future__ import annotations

import json
import zipfile

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from rekindle import api
from rekindle.codec.archive import Archive
from rekindle.codec.moments import moments_of
from rekindle.codec.source import open_source
from rekindle.store.files import Files

STEPS = (10, 20, 30)
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 4}  # fmt: skip


def tiny():
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))


def adamw(model):
    """Groups as Trainer makes them."""
    decay = [name for name, _ in model.named_parameters() if "norm" not in name]
    groups = [[p for n, p in model.named_parameters() if (n in decay) == with_decay] for with_decay in (True, False)]
    return torch.optim.AdamW([{"params": groups[0], "weight_decay": 0.1}, {"params": groups[1]}], lr=1e-3)


def numbers():
    """Of each parameter its number in the optimizer's state."""
    model = tiny()
    at = {id(p): i for i, p in enumerate(p for group in adamw(model).param_groups for p in group["params"])}
    return {name: at[id(p)] for name, p in model.named_parameters()}


def learn(model, optimizer, steps, seed=0):
    losses = []
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        ids = torch.randint(0, 16, (4, 32), generator=draw).sort().values
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def trainer_like(base, save):
    """Folders as Trainer saves them, `save(model, folder)` writing the weights."""
    model = tiny()
    optimizer, folders = adamw(model), []
    for step in STEPS:
        learn(model, optimizer, 10, seed=step)
        folders.append(base / f"checkpoint-{step}")
        model.save_pretrained(folders[-1])
        save(model, folders[-1])
        torch.save(optimizer.state_dict(), folders[-1] / "optimizer.pt")
        torch.save({"cpu": torch.get_rng_state(), "python": (3, (1, 2), None)}, folders[-1] / "rng_state.pth")
        (folders[-1] / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return folders


def as_pickle(model, folder):
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


@pytest.fixture(params=["safetensors", "pickles"])
def folders(request, tmp_path):
    return trainer_like(tmp_path, as_pickle if request.param == "pickles" else lambda *_: None)


def unpacked(path, step, out):
    api.unpack(f"{path}@{step}", out)
    return out


def weights(folder):
    path = folder / "model.safetensors"
    return load_file(path) if path.exists() else torch.load(folder / "pytorch_model.bin", weights_only=True)


def test_lossless_is_to_the_byte_and_moments_are_coded_as_moments(tmp_path, folders):
    info = api.pack(folders, tmp_path / "r.rk")
    assert api.archive_verify(tmp_path / "r.rk") == []
    assert info["notes"] == []
    for folder, step in zip(folders, STEPS):
        out = unpacked(tmp_path / "r.rk", step, tmp_path / f"out-{step}")
        assert {p.name: p.read_bytes() for p in out.iterdir()} == {p.name: p.read_bytes() for p in folder.iterdir()}
    with Archive(tmp_path / "r.rk") as archive:
        state = torch.load(folders[1] / "optimizer.pt", weights_only=True)["state"]
        assert (archive[20]["state.3.exp_avg"] == state[3]["exp_avg"].numpy()).all()
        index = archive[20].index
        assert sum(t.key.endswith(".exp_avg") for t in index.tensors) == len(state)
        assert all(index.tensors[i].key.endswith(".exp_avg") for i in index.beside)
        assert len(index.beside) == len(state)


@pytest.mark.parametrize("mode", ["near-lossless", "strong", "excp"])
def test_a_mode_sees_moments_in_torchs_files(tmp_path, folders, mode):
    info = api.pack(folders, tmp_path / "r.rk", mode=mode)
    assert info["notes"] == []
    assert [x["mode"] for x in info["steps"]] == [mode] * 3
    # the same state as safetensors takes as much: 1.33 where moments were bytes
    assert all(x["ratio"] > {"near-lossless": 6, "strong": 8, "excp": 6}[mode] for x in info["steps"][1:])
    assert api.archive_verify(tmp_path / "r.rk") == []
    for folder, step in zip(folders, STEPS):
        out = unpacked(tmp_path / "r.rk", step, tmp_path / f"out-{step}")
        for path in out.iterdir():
            assert path.stat().st_size == (folder / path.name).stat().st_size
            assert not zipfile.is_zipfile(path) or zipfile.ZipFile(path).testzip() is None  # sums are right
        was, now = (torch.load(x / "optimizer.pt", weights_only=True) for x in (folder, out))
        assert now["param_groups"] == was["param_groups"]
        for i, state in was["state"].items():
            assert torch.equal(now["state"][i]["step"], state["step"])


def test_moments_are_dealt_to_their_own_weights(tmp_path, folders):
    with Files() as files:
        source = open_source(folders[0], files)
        found = moments_of(source)
        keys = [tensor.key for tensor in source.tensors]
    told = {keys[m.weight]: keys[m.first] for m in found if m.weight is not None}
    assert told == {name: f"state.{i}.exp_avg" for name, i in numbers().items()}


@pytest.mark.parametrize("mode", ["near-lossless", "strong", "excp"])
def test_values_come_out_as_from_a_state_that_names_its_weights(tmp_path, folders, mode):
    """The same moments under the names of their weights, in safetensors: that they are alike is the pairing."""
    number = numbers()
    for folder, step in zip(folders, STEPS):
        state = torch.load(folder / "optimizer.pt", weights_only=True)["state"]
        named = {f"{n}.{kind}": state[i][kind] for n, i in number.items() for kind in ("exp_avg", "exp_avg_sq")}
        (tmp_path / f"step-{step}").mkdir()
        save_file(weights(folder) | named, tmp_path / f"step-{step}" / "model.safetensors")
    api.pack(folders, tmp_path / "r.rk", mode=mode)
    api.pack([tmp_path / f"step-{step}" for step in STEPS], tmp_path / "twin.rk", mode=mode)
    for step in STEPS:
        out, twin = (unpacked(tmp_path / f"{name}.rk", step, tmp_path / f"{name}-{step}") for name in ("r", "twin"))
        state, expected = torch.load(out / "optimizer.pt", weights_only=True)["state"], weights(twin)
        for name, i in number.items():
            assert torch.equal(weights(out)[name], expected[name])
            assert torch.equal(state[i]["exp_avg"], expected[f"{name}.exp_avg"])
            assert torch.equal(state[i]["exp_avg_sq"], expected[f"{name}.exp_avg_sq"])


def test_a_run_goes_on_from_what_comes_out(tmp_path, folders):
    api.pack(folders, tmp_path / "r.rk", mode="near-lossless")
    ends = []
    for folder in (folders[-1], unpacked(tmp_path / "r.rk", 30, tmp_path / "out")):
        model = transformers.LlamaForCausalLM.from_pretrained(folder)
        optimizer = adamw(model)
        optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
        ends.append(learn(model, optimizer, 10, seed=99))
    assert ends[1][0] == pytest.approx(ends[0][0], abs=0.01)
    assert ends[1] == pytest.approx(ends[0], abs=0.1)  # some two steps behind, for the momentum that is not kept
    assert ends[1][-1] < ends[1][0] - 0.1


def test_one_file_with_the_model_and_its_optimizer(tmp_path):
    model = tiny()
    optimizer = adamw(model)
    for step in STEPS:
        learn(model, optimizer, 10, seed=step)
        both = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iter_num": step}
        torch.save(both, tmp_path / f"ckpt_{step}.pt")
    files = [tmp_path / f"ckpt_{step}.pt" for step in STEPS]
    exact = api.pack(files, tmp_path / "exact.rk")
    near = api.pack(files, tmp_path / "near.rk", mode="near-lossless")
    assert [x["step"] for x in exact["steps"]] == list(STEPS)
    assert near["notes"] == []
    assert all(x["ratio"] > 6 for x in near["steps"][1:])
    for file, step in zip(files, STEPS):
        out = unpacked(tmp_path / "exact.rk", step, tmp_path / f"out-{step}")
        assert (out / file.name).read_bytes() == file.read_bytes()
        found = torch.load(unpacked(tmp_path / "near.rk", step, tmp_path / f"near-{step}") / file.name)
        assert found["iter_num"] == step


def test_two_models_beside_an_optimizer_are_not_told_apart(tmp_path):
    model = tiny()
    optimizer = adamw(model)
    for step in (1, 2):
        learn(model, optimizer, 5, seed=step)
        held = {"model": model.state_dict(), "ema": {n: x.clone() for n, x in model.state_dict().items()}}
        torch.save(held | {"optimizer": optimizer.state_dict()}, tmp_path / f"ckpt_{step}.pt")
    info = api.pack([tmp_path / f"ckpt_{step}.pt" for step in (1, 2)], tmp_path / "r.rk", mode="near-lossless")
    assert "not known for sure" in info["notes"][0]
    assert info["steps"][1]["mode"] == "near-lossless"  # of moments
    out = unpacked(tmp_path / "r.rk", 2, tmp_path / "out")
    was, now = (torch.load(x / "ckpt_2.pt", weights_only=True) for x in (tmp_path, out))
    for table in ("model", "ema"):
        assert all(torch.equal(x, now[table][n]) for n, x in was[table].items())


def test_a_mode_that_finds_no_moments_says_so_and_is_called_lossless(tmp_path):
    for step in (1, 2):
        model = tiny()
        model.save_pretrained(tmp_path / f"step-{step}")
        torch.save({"state": {}, "param_groups": []}, tmp_path / f"step-{step}" / "optimizer.pt")
    folders = [tmp_path / "step-1", tmp_path / "step-2"]
    (folders[1] / "note").write_text("another")
    info = api.pack(folders, tmp_path / "r.rk", mode="near-lossless")
    assert info["notes"] == [
        "near-lossless, 2 of 2 checkpoint(s): no moments in float32 were found (exp_avg beside exp_avg_sq), "
        "so all of it is packed lossless"
    ]
    assert {x["mode"] for x in info["steps"]} == {"lossless"}


def test_moments_of_bfloat16_weights_take_less_and_the_weights_stay(tmp_path):
    model = tiny().to(torch.bfloat16)
    optimizer = adamw(model)
    for step in (1, 2):
        learn(model, optimizer, 3, seed=step)
        state = optimizer.state_dict()
        wide = {i: {k: x.float() for k, x in s.items()} for i, s in state["state"].items()}
        model.save_pretrained(tmp_path / f"step-{step}")
        torch.save(state | {"state": wide}, tmp_path / f"step-{step}" / "optimizer.pt")
    info = api.pack([tmp_path / "step-1", tmp_path / "step-2"], tmp_path / "r.rk", mode="near-lossless")
    assert "not float32" in info["notes"][0]
    out = unpacked(tmp_path / "r.rk", 2, tmp_path / "out")
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "step-2" / "model.safetensors").read_bytes()
    assert info["steps"][1]["ratio"] > 4


def test_rounding_reaches_into_torchs_files(tmp_path, folders):
    api.pack(folders, tmp_path / "r.rk", error="rel:1e-3")
    out = unpacked(tmp_path / "r.rk", 20, tmp_path / "out")
    assert zipfile.ZipFile(out / "optimizer.pt").testzip() is None
    was, now = (torch.load(x / "optimizer.pt", weights_only=True)["state"] for x in (folders[1], out))
    for i, state in was.items():
        assert ((now[i]["exp_avg"] - state["exp_avg"]).abs() <= 1e-3 * state["exp_avg"].abs()).all()
    assert any(not torch.equal(now[i]["exp_avg"], state["exp_avg"]) for i, state in was.items())


def test_sums_that_torch_left_out_stay_out(tmp_path):
    folders = []
    torch.serialization.set_crc32_options(False)
    try:
        folders = trainer_like(tmp_path, as_pickle)
    finally:
        torch.serialization.set_crc32_options(True)
    api.pack(folders, tmp_path / "exact.rk")
    out = unpacked(tmp_path / "exact.rk", 20, tmp_path / "out")
    assert (out / "optimizer.pt").read_bytes() == (folders[1] / "optimizer.pt").read_bytes()
    info = api.pack(folders, tmp_path / "near.rk", mode="near-lossless")
    assert info["steps"][1]["ratio"] > 6
    near = unpacked(tmp_path / "near.rk", 20, tmp_path / "near")
    assert all(x.CRC == 0 for x in zipfile.ZipFile(near / "optimizer.pt").infolist())
    torch.load(near / "optimizer.pt", weights_only=True)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_same_bytes_whatever_the_workers(tmp_path, folders, workers):
    api.pack(folders, tmp_path / "one.rk", mode="strong", workers=1)
    api.pack(folders, tmp_path / "many.rk", mode="strong", workers=workers)
    assert (tmp_path / "one.rk").read_bytes() == (tmp_path / "many.rk").read_bytes()
