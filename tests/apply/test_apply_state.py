"""Optimizer state as torch and a Trainer save it: each moment at its own weight, or the true cause why not."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import make, tiny_config

from rekindle import api
from rekindle.apply.state import read_state
from rekindle.errors import RekindleError
from rekindle.train.held import whole_of
from rekindle.train.optimizer import load_optimizer, make_optimizer, save_optimizer


def trained(family, folder, grouped=True):
    """A checkpoint as a Trainer leaves it, its model and optimizer."""
    torch.manual_seed(0)
    model = make(tiny_config(family, model_type=family))
    named = list(model.named_parameters())
    groups = [[p for _, p in named]]
    if grouped:
        groups = [[p for _, p in named if (p.ndim >= 2) == decayed] for decayed in (True, False)]
    optimizer = torch.optim.AdamW([{"params": group} for group in groups], lr=1e-4, betas=(0.8, 0.95))
    for step in range(3):
        for i, (_, p) in enumerate(named):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * step + i))
        optimizer.step()
    model.save_pretrained(folder)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    (folder / "trainer_state.json").write_text('{"global_step": 3}')
    return model, optimizer


def config(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "phi3", "mixtral", "qwen2_moe", "deepseek_v3"])
def test_moments_come_to_their_own_weights(tmp_path, family):
    folder = tmp_path / "checkpoint-3"
    model, optimizer = trained(family, folder)
    save_optimizer(whole_of(model, optimizer), config(folder), tmp_path / "truth", {})
    truth = load_file(tmp_path / "truth" / "optimizer.safetensors")
    for place in (folder, folder / "optimizer.pt"):
        out = api.rewrite(api.open(folder)).save(tmp_path / "out", optimizer_state=str(place), overwrite=True)
        made = load_file(out / "optimizer" / "optimizer.safetensors")
        assert made.keys() == truth.keys()
        assert all(torch.equal(made[name], x) for name, x in truth.items())
    told = json.loads((out / "optimizer" / "optimizer.json").read_text())
    assert set(told["steps"].values()) == {3}
    assert (told["betas"], told["eps"], told["algorithm"]) == ([0.8, 0.95], 1e-8, "adamw")

    loaded = make_optimizer(model, 0.1, 0.95)
    load_optimizer(model, loaded, config(folder), folder)
    for p in model.parameters():
        for name in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(loaded.state[p][name], optimizer.state[p][name])


def test_a_mixture_starts_from_a_trainers_moments(tmp_path):
    trained("llama", tmp_path / "checkpoint-3")
    out = api.upcycle(api.open(tmp_path / "checkpoint-3"), experts=4).save(
        tmp_path / "out", optimizer_state=str(tmp_path / "checkpoint-3")
    )
    parent = read_state(tmp_path / "checkpoint-3", config(tmp_path / "checkpoint-3")).moments
    made = load_file(out / "optimizer" / "optimizer.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight.exp_avg"
    stored = parent[name]
    with open(stored.path, "rb") as file:
        file.seek(stored.offset)
        raw = file.read(stored.nbytes)
    assert made[name].numpy().tobytes() == raw


@pytest.mark.filterwarnings("ignore")  # that there is one process only
def test_a_state_by_names_is_read_from_torchs_own_conversion(tmp_path):
    """As FSDP saves it: sharded, by name; refused with the command that makes one file of it, which is then read."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    folder = tmp_path / "checkpoint-3"
    model, optimizer = trained("llama", folder, grouped=False)
    (folder / "optimizer.pt").unlink()
    names = [name for name, _ in model.named_parameters()]
    held = optimizer.state_dict()
    state = {"state": {names[i]: x for i, x in held["state"].items()},
             "param_groups": [held["param_groups"][0] | {"params": names}]}  # fmt: skip
    dcp.save({"optimizer": state}, checkpoint_id=folder / "optimizer_0", no_dist=True)
    with pytest.raises(RekindleError, match="holds no optimizer state") as refused:
        api.rewrite(api.open(folder)).save(tmp_path / "out", optimizer_state=str(folder))
    command = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch"
    assert f"{command} {folder / 'optimizer_0'} optimizer.pt" in refused.value.hint
    dcp_to_torch_save(folder / "optimizer_0", tmp_path / "optimizer.pt")
    found = read_state(tmp_path / "optimizer.pt", config(folder))
    save_optimizer(whole_of(model, optimizer), config(folder), tmp_path / "truth", {})
    truth = load_file(tmp_path / "truth" / "optimizer.safetensors")
    out = api.rewrite(api.open(folder)).save(tmp_path / "out", optimizer_state=str(tmp_path / "optimizer.pt"))
    made = load_file(out / "optimizer" / "optimizer.safetensors")
    assert all(torch.equal(made[name], x) for name, x in truth.items())
    assert set(found.info["steps"].values()) == {3}


def test_which_is_which_must_be_sure(tmp_path):
    folder = tmp_path / "checkpoint-3"
    model, _ = trained("llama", folder)
    named = list(model.named_parameters())
    mixed = torch.optim.AdamW([p for _, p in reversed(named)])  # in an order of its own
    for _, p in named:
        p.grad = torch.ones_like(p)
    mixed.step()
    torch.save(mixed.state_dict(), folder / "optimizer.pt")
    with pytest.raises(RekindleError, match="cannot be told for sure") as refused:
        api.rewrite(api.open(folder)).save(tmp_path / "out", optimizer_state=str(folder))
    assert not (tmp_path / "out").exists()
    assert "named_parameters" in refused.value.hint
    with pytest.raises(RekindleError, match="cannot be told for sure"):
        load_optimizer(model, make_optimizer(model, 0.1, 0.95), config(folder), folder)
    by_name = torch.optim.AdamW(reversed(named))
    by_name.step()
    torch.save(by_name.state_dict(), folder / "optimizer.pt")
    api.rewrite(api.open(folder)).save(tmp_path / "out", optimizer_state=str(folder))


CAUSES = {
    "nowhere": (lambda f: f / "nowhere", "no such folder"),
    "the folder around it": (lambda f: (write(f / "optimizer" / "optimizer.json", "{}"), f)[1], "the folder around"),
    "weights of FSDP": (lambda f: write(f / "pytorch_model_fsdp_0" / "__0_0.distcp", "").parents[1], "is the weights"),
    "DeepSpeed": (lambda f: write(f / "global_step3" / "zero_pp_rank_0_mp_rank_00_optim_states.pt", "").parents[1],
                  "flat pieces"),
    "none saved": (lambda f: write(f / "trainer_state.json", "{}").parent, "save_only_model"),
    "something else": (lambda f: write(f / "optimizer.pt", "a text"), "no file of torch's"),
}  # fmt: skip


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize("case", CAUSES)
def test_the_true_cause(tmp_path, case):
    make_place, says = CAUSES[case]
    with pytest.raises(RekindleError, match="holds no optimizer state") as refused:
        read_state(make_place(tmp_path), {})
    assert says in refused.value.why


def test_what_torch_saved_is_no_adams(tmp_path):
    torch.save({"last_epoch": 3, "_step_count": 4}, tmp_path / "optimizer.pt")
    with pytest.raises(RekindleError, match="holds no optimizer state") as refused:
        read_state(tmp_path, {})
    assert "two moments" in refused.value.why
    save_file({"x": torch.ones(3)}, tmp_path / "optimizer.bin")
    with pytest.raises(RekindleError, match="no file of torch's"):
        read_state(tmp_path / "optimizer.bin", {})
