"""Packed tensors: taken apart into roles as the library's own code reads them, and put together as plain copies."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.torch import load_file
from tiny_models import PACKED, SPARSE

from rekindle import api
from rekindle.anatomy import Role, stacks
from rekindle.edit import Fill, plan
from rekindle.edit.plan import put_together
from rekindle.errors import RekindleError
from rekindle.store.files import Files

TINY = {"num_heads": 4, "head_dim": 8, "hidden": 32}


def values(expr):
    with Files() as files:
        return expr.values(0, expr.num_rows, files).reshape(expr.shape)


def roles_as_read(family, tensors, layer=1):
    """q, k and v [out, in] the way the modelling code of transformers slices them."""
    heads, dim, hidden = TINY["num_heads"], TINY["head_dim"], TINY["hidden"]
    if family == "phi3":
        packed = tensors[f"model.layers.{layer}.self_attn.qkv_proj.weight"]
        return packed[: heads * dim], packed[heads * dim : -2 * dim], packed[-2 * dim :]
    if family == "gpt_neox":
        packed = tensors[f"gpt_neox.layers.{layer}.attention.query_key_value.weight"].view(heads, 3 * dim, hidden)
        return tuple(part.reshape(heads * dim, hidden) for part in packed.split(dim, dim=1))
    packed = tensors[f"transformer.h.{layer}.attn.c_attn.weight"]
    return tuple(part.T for part in packed.split(hidden, dim=1))


@pytest.mark.parametrize("family", PACKED)
def test_roles_are_what_the_library_reads(tiny, family):
    folder = tiny(family)
    tensors = api.open(folder).checkpoint.tensors
    for part, expected in zip("qkv", roles_as_read(family, load_file(folder / "model.safetensors")), strict=True):
        np.testing.assert_array_equal(values(tensors[Role(f"attn.{part}", 1)]), expected.numpy())


@pytest.mark.parametrize("family", PACKED)
def test_what_nobody_changed_is_the_stored_tensor(tiny, tmp_path, family):
    model = api.rewrite(tiny(family))
    job = model.job()
    assert job.plan.counts["copied"]["tensors"] == len(job.plan.tensors)
    assert job.plan.dropped == []
    for name, expr in job.plan.tensors.items():
        assert expr.label() == name  # the leaf itself
        assert len(expr.spans()) == 1
    before = load_file(tiny(family) / "model.safetensors")
    after = load_file(model.save(tmp_path / "out") / "model.safetensors")
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)


@pytest.mark.parametrize("family", PACKED)
def test_one_role_changed_leaves_the_others_copies(tiny, family):
    """Zeros for v: q and k are still file bytes where the layout lets them be, and all values are right."""
    checkpoint = api.open(tiny(family)).checkpoint
    role = Role("attn.v", 1)
    shape = checkpoint.tensors[role].shape
    changed = checkpoint.derive(tensors=checkpoint.tensors | {role: Fill("F32", shape, 0.0)})
    planned = plan(changed)
    names = [name for name, _ in planned.changed()]
    assert names == [checkpoint.rows[role][0]]
    q, k, v = (part.clone() for part in roles_as_read(family, load_file(tiny(family) / "model.safetensors")))
    v[:] = 0
    read = roles_as_read(family, {names[0]: _tensor(values(planned.tensors[names[0]]))})
    for part, expected in zip(read, (q, k, v), strict=True):
        np.testing.assert_array_equal(part.numpy(), expected.numpy())


def _tensor(array):
    import torch

    return torch.from_numpy(np.ascontiguousarray(array))


@pytest.mark.parametrize("family", PACKED)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_another_dtype_is_each_value_rounded(tiny, tmp_path, family, dtype):
    import torch

    out = api.rewrite(tiny(family), dtype=dtype).save(tmp_path / "out")
    before, after = load_file(tiny(family) / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    assert all((before[name].to(getattr(torch, dtype)) == after[name]).all() for name in before)


def test_a_packed_tensor_of_another_shape_or_missing_is_named(tiny, tmp_path):
    import shutil

    from safetensors.torch import save_file

    shutil.copytree(tiny("phi3"), tmp_path / "spoilt")
    path = tmp_path / "spoilt" / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.0.mlp.gate_up_proj.weight"]
    name = "model.layers.2.self_attn.qkv_proj.weight"
    tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(RekindleError) as error:
        api.open(tmp_path / "spoilt")
    for words in ("2 problems", "layers.0.mlp.gate_up_proj.weight is missing", "is [63, 32], but the config says [64"):
        assert words in str(error.value)


@pytest.mark.parametrize("family", SPARSE)
def test_experts_stacked_in_memory_are_packed_too(tiny, tmp_path, family):
    separate, fused = tiny(family), tiny(family, fused=True)
    checkpoint = api.open(fused).checkpoint
    for stack in stacks(checkpoint.family, checkpoint.settings):
        assert put_together(stack, checkpoint.tensors).label() == stack.name
    apart = api.rewrite(fused).save(tmp_path / "apart")
    together = api.rewrite(separate).save(tmp_path / "together", fused=True)
    for made, expected in ((apart, separate), (together, fused)):
        ours, theirs = load_file(made / "model.safetensors"), load_file(expected / "model.safetensors")
        assert ours.keys() == theirs.keys()
        assert all((ours[name] == theirs[name]).all() for name in ours)


@pytest.mark.parametrize("family", PACKED)
def test_optimizer_state_goes_by_the_tensors_on_disk(tiny, tmp_path, family):
    import torch
    from safetensors.torch import save_file

    weights = load_file(tiny(family) / "model.safetensors")
    state = {f"{n}.{m}": torch.rand_like(w) for n, w in weights.items() for m in ("exp_avg", "exp_avg_sq")}
    folder = tmp_path / "optimizer"
    folder.mkdir()
    save_file(state, folder / "optimizer.safetensors")
    (folder / "optimizer.json").write_text(json.dumps({"algorithm": "adamw", "steps": dict.fromkeys(weights, 7)}))
    out = api.rewrite(tiny(family)).save(tmp_path / "out", optimizer_state=str(folder))
    after = load_file(out / "optimizer" / "optimizer.safetensors")
    assert after.keys() == state.keys()
    assert all((after[name] == state[name]).all() for name in state)
    assert set(json.loads((out / "optimizer" / "optimizer.json").read_text())["steps"].values()) == {7}
    del state[next(iter(state))]
    save_file(state, folder / "optimizer.safetensors")
    with pytest.raises(RekindleError, match="lacks exp_avg"):
        api.rewrite(tiny(family)).job(optimizer_state=str(folder))
