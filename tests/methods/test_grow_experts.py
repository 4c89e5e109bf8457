"""Expert growth: what is copied where, where the noise goes, who gets more copies, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from apply.apply_moments import write_moments
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from rekindle import api
from rekindle.apply.load import load_model
from rekindle.errors import RekindleError
from rekindle.methods.grow_experts import MOST_COPIES, _places, _share_out

E, K, D, X = 4, 2, 32, 48  # of the tiny mixtral
LAYERS = 3
PARTS = ("w1", "w2", "w3")


def tensors(folder: Path) -> dict:
    return load_file(folder / "model.safetensors")


def expert(layer: int, number: int, part: str) -> str:
    return f"model.layers.{layer}.block_sparse_moe.experts.{number}.{part}.weight"


def router(layer: int) -> str:
    return f"model.layers.{layer}.block_sparse_moe.gate.weight"


def experts_of(folder: Path, number: int) -> list:
    held = tensors(folder)
    return [held[expert(layer, number, part)] for layer in range(LAYERS) for part in PARTS]


# -- copies and noise ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [2, 3])
def test_copies_follow_the_originals_in_order(tiny, tmp_path, factor):
    out = api.grow_experts(tiny("mixtral"), factor=factor, noise=0).save(tmp_path / "out")
    parent, child = tensors(tiny("mixtral")), tensors(out)
    for layer in range(LAYERS):
        assert (child[router(layer)] == parent[router(layer)].repeat(factor, 1)).all()
        for new in range(factor * E):
            for part in PARTS:
                assert (child[expert(layer, new, part)] == parent[expert(layer, new % E, part)]).all()
    others = [name for name in parent if "block_sparse_moe" not in name]
    assert all((child[name] == parent[name]).all() for name in others)
    config = json.loads((out / "config.json").read_text())
    assert (config["num_local_experts"], config["num_experts_per_tok"]) == (factor * E, factor * K)
    assert config["router_aux_loss_coef"] == pytest.approx(0.001 / factor)


def test_exact_copies_are_plain_copies(tiny):
    counts = api.grow_experts(tiny("mixtral"), noise=0).job().plan.counts
    assert counts["computed"]["tensors"] == counts["new"]["tensors"] == 0
    assert not api.grow_experts(tiny("mixtral"), noise=0).job().measurements


def test_noise_is_a_share_of_each_tensors_own_spread_and_on_copies_alone(tiny, tmp_path):
    out = api.grow_experts(tiny("mixtral"), factor=3, noise=0.1).save(tmp_path / "out")
    parent = tiny("mixtral")
    for old in range(E):
        originals = experts_of(parent, old)
        assert all((x == y).all() for x, y in zip(experts_of(out, old), originals, strict=True))
        noises = [[x - y for x, y in zip(experts_of(out, old + copy * E), originals, strict=True)] for copy in (1, 2)]
        for one, other, x in zip(*noises, originals, strict=True):
            assert one.std() / x.std() == pytest.approx(0.1, rel=0.1)
            assert abs(float(np.corrcoef(one.flatten(), other.flatten())[0, 1])) < 0.1
            assert abs(float(np.corrcoef(one.flatten(), x.flatten())[0, 1])) < 0.1
    for layer in range(LAYERS):
        assert (tensors(out)[router(layer)] == tensors(parent)[router(layer)].repeat(3, 1)).all()


def test_router_noise_is_on_the_copies_rows(tiny, tmp_path):
    child = tensors(api.grow_experts(tiny("mixtral"), noise=0.1, noise_router=True).save(tmp_path / "out"))
    for layer in range(LAYERS):
        old = tensors(tiny("mixtral"))[router(layer)]
        assert (child[router(layer)][:E] == old).all()
        assert (child[router(layer)][E:] - old).std() / old.std() == pytest.approx(0.1, rel=0.2)


def test_a_parent_with_stacked_experts_gives_the_same_bytes(tiny, tmp_path):
    single, stacked = tiny("mixtral", dtype="bfloat16"), tiny("mixtral", dtype="bfloat16", fused=True)
    one, other = (api.grow_experts(p).save(tmp_path / f"{i}") for i, p in enumerate((single, stacked)))
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def test_growth_follows_upcycling_in_one_pass(tiny, tmp_path):
    model = api.grow_experts(api.upcycle(tiny("llama"), experts=2, top_k=1), factor=4, noise=0)
    out = model.save(tmp_path / "out")
    assert api.inspect(out)["experts"] == {"count": 8, "top_k": 4, "layers": [0, 1, 2], "choice": "tokens"}
    verdict = api.verify(out, against=tiny("llama"), tokens=128)
    assert (verdict.promise, verdict.held) == ("exact", True)


def test_a_second_growth_draws_other_noise(tiny, tmp_path):
    out = api.grow_experts(api.grow_experts(tiny("mixtral"))).save(tmp_path / "out")
    held = tensors(out)
    assert len({held[expert(0, number, "w1")].numpy().tobytes() for number in range(4 * E)}) == 4 * E


@pytest.mark.parametrize("options", [{}, {"noise_router": True}, {"top_k": "keep"}, {"top_k": "keep", "noise": 0}])
def test_what_is_not_exact_is_promised_lossy_and_measured(tiny, tmp_path, options):
    model = api.grow_experts(tiny("olmoe"), **options)
    assert model.checkpoint.promise.kind == "lossy"
    verdict = api.verify(model.save(tmp_path / "out"), against=tiny("olmoe"), tokens=128)
    assert verdict.held
    assert verdict.relative_difference > 1e-3


def test_keep_keeps_the_visits(tiny):
    parent, child = api.open(tiny("mixtral")).checkpoint, api.grow_experts(tiny("mixtral"), top_k="keep").checkpoint
    assert child.settings.num_experts == 2 * E
    assert child.settings.top_k == K
    assert child.settings.aux_loss_coef == parent.settings.aux_loss_coef
    assert child.parameters()["active"] == parent.parameters()["active"] + LAYERS * E * D  # the router is larger


# -- the real routers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "olmoe"])
def test_whole_sets_of_copies_are_chosen(tiny, tmp_path, family, dtype):
    """Unless two experts of the parent have the very same score at the edge, which happens in bfloat16 alone."""
    import torch

    parent = tiny(family, dtype=dtype)
    child = load_model(api.grow_experts(parent, factor=3, noise=0).save(tmp_path / "out"), dtype)
    x_ND = torch.randn(4096, D, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))
    with torch.no_grad():
        logits_NE, _, old_NK = load_model(parent, dtype).model.layers[1].mlp.gate(x_ND)
        _, weights_Nk, new_Nk = child.model.layers[1].mlp.gate(x_ND)
    ranked = logits_NE.float().softmax(-1).sort(-1, descending=True).values
    clear = ranked[:, K - 1] > ranked[:, K]
    assert clear.float().mean() > (0.95 if dtype == "bfloat16" else 0.9999)
    sets = torch.cat([old_NK + copy * E for copy in range(3)], -1)
    assert torch.equal(new_Nk.sort(-1).values[clear], sets.sort(-1).values[clear])
    each = torch.zeros(len(x_ND), 3 * E).scatter_(1, new_Nk, weights_Nk.float()).view(-1, 3, E)[clear]
    torch.testing.assert_close(each, each[:, :1].expand(-1, 3, -1))


def test_load_balance_loss_grows_as_its_coefficient_falls(tiny, tmp_path):
    """transformers' auxiliary loss, on the logits of parent and child."""
    import torch

    ids = torch.arange(64).view(1, 64)
    totals = []
    for folder in (tiny("mixtral"), api.grow_experts(tiny("mixtral"), factor=3, noise=0).save(tmp_path / "out")):
        model = load_model(folder)
        with torch.no_grad():
            out = model(input_ids=ids, output_router_logits=True)
        totals.append((float(out.aux_loss), float(out.aux_loss) * model.router_aux_loss_coef))
    (parent, parent_weighed), (child, child_weighed) = totals
    assert child == pytest.approx(3 * parent, rel=1e-4)
    assert child_weighed == pytest.approx(parent_weighed, rel=1e-4)


@pytest.mark.parametrize(("noise", "same"), [(0.0, True), (0.01, False)])
def test_exact_copies_stay_copies_in_training(tiny, tmp_path, noise, same):
    from adam_step import LR, step

    from rekindle.train.optimizer import make_optimizer

    model = load_model(api.grow_experts(tiny("mixtral"), noise=noise).save(tmp_path / "out"))
    optimizer = make_optimizer(model, weight_decay=0.1, beta2=0.95)
    for seed in range(3):
        step(model, optimizer, seed)
    stack = model.model.layers[1].mlp.experts.gate_up_proj
    apart = float((stack[:E] - stack[E:]).abs().max().detach())
    assert apart < LR / 10 if same else apart > LR


# -- groups of experts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"noise": 0}, {"n_group": 8, "topk_group": 4, "num_experts_per_tok": 4}),
        ({"noise": 0, "factor": 3}, {"n_group": 12, "topk_group": 6, "num_experts_per_tok": 6}),
        ({"top_k": "keep"}, {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 2}),
    ],
)
def test_groups_grow_with_the_visits(tiny, options, changed):
    config = api.grow_experts(tiny("deepseek_v3"), **options).checkpoint.config
    assert changed.items() <= config.items()
    assert config["n_routed_experts"] == options.get("factor", 2) * 8
    assert config["routed_scaling_factor"] == 2.5


def test_raw_sigmoid_weights_are_scaled(tiny):
    parent = tiny("deepseek_v3", norm_topk_prob=False)
    assert api.grow_experts(parent, factor=4).checkpoint.settings.routed_scaling == 2.5 / 4
    assert api.grow_experts(parent, top_k="keep").checkpoint.settings.routed_scaling == 2.5


def test_without_new_groups_the_function_is_lost(tiny, tmp_path):
    out = api.grow_experts(tiny("deepseek_v3"), noise=0).save(tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"n_group": 4, "topk_group": 2}))
    assert api.verify(out, against=tiny("deepseek_v3"), tokens=128).held is False


@pytest.mark.parametrize(
    ("top_k", "order"),
    [("scale", [*range(8), *range(8)]), ("keep", [0, 1, 0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7, 6, 7])],
)
def test_the_bias_of_the_choice_goes_where_its_expert_goes(tiny, tmp_path, top_k, order):
    model = api.grow_experts(tiny("deepseek_v3"), top_k=top_k, noise_router=True)
    parent, child = tensors(tiny("deepseek_v3")), tensors(model.save(tmp_path / "out"))
    name = "model.layers.{}.mlp.gate.e_score_correction_bias"
    assert all((child[name.format(layer)] == parent[name.format(layer)][order]).all() for layer in (1, 2))
    assert name.format(0) not in child
    up = "model.layers.1.mlp.experts.{}.up_proj.weight"
    for new, old in enumerate(order):
        same = (child[up.format(new)] == parent[up.format(old)]).all()
        assert same == (order.index(old) == new)


# -- who gets copies -------------------------------------------------------------------------------------------

UTILITY = st.integers(1, 4).flatmap(
    lambda groups: st.tuples(
        st.just(groups),
        st.integers(1, 4),
        st.integers(1, 8).flatmap(
            lambda size: st.lists(st.floats(0, 1e6), min_size=groups * size, max_size=groups * size)
        ),
    )
)


@given(UTILITY)
def test_copies_are_shared_out_by_utility_per_copy(drawn):
    groups, factor, utility = drawn
    counts = _share_out(utility, factor, groups)
    size = len(utility) // groups
    for first in range(0, len(utility), size):
        members = range(first, first + size)
        assert sum(counts[e] for e in members) == factor * size
        assert all(1 <= counts[e] <= 1 + MOST_COPIES for e in members)
        for poor in members:
            for rich in members:
                if counts[poor] <= MOST_COPIES and counts[rich] > 1:
                    assert utility[poor] / counts[poor] <= utility[rich] / (counts[rich] - 1)


@given(UTILITY)
def test_every_copy_has_its_place_in_its_group(drawn):
    groups, factor, utility = drawn
    counts = _share_out(utility, factor, groups)
    places = _places(counts, groups)
    expected = sorted((old, copy, n) for old, n in enumerate(counts) for copy in range(n))
    assert sorted(places) == expected
    size = len(utility) // groups
    for group in range(groups):
        block = places[group * factor * size : (group + 1) * factor * size]
        assert {place.old // size for place in block} == {group}
        assert [place.old for place in block[:size]] == list(range(group * size, (group + 1) * size))


def scores_file(path: Path, folder: Path, layers: object) -> str:
    found = {"checkpoint": api.inspect(folder)["fingerprint"], "layers": layers}
    path.write_text(json.dumps(found))
    return str(path)


ROWS = {str(layer): [1.0, 5.0, 0.0, 2.0] for layer in range(LAYERS)}
UTILITY_COPIES = {"top_k": "keep", "copies": "utility", "noise": 0}


def test_utility_copies_are_of_the_experts_with_the_largest_scores(tiny, tmp_path):
    """Shares of 1, 5, 0, 2: the first three copies go to 5, 5/2 and 2, and the fourth to 5/3 before 1."""
    rows = ROWS | {"1": [3.0, 3.0, 3.0, 3.0]}
    scores = scores_file(tmp_path / "scores.json", tiny("mixtral"), rows)
    model = api.grow_experts(tiny("mixtral"), scores=scores, **UTILITY_COPIES)
    parent, child = tensors(tiny("mixtral")), tensors(model.save(tmp_path / "out"))
    for layer, olds in ((0, [0, 1, 2, 3, 1, 3, 1, 1]), (1, [0, 1, 2, 3, 0, 1, 2, 3])):
        assert (child[router(layer)] == parent[router(layer)][olds]).all()
        for new, old in enumerate(olds):
            assert (child[expert(layer, new, "w3")] == parent[expert(layer, old, "w3")]).all()
    assert not any("another checkpoint" in note for note in model.checkpoint.notes)


def test_scores_of_another_checkpoint_are_noted(tiny, tmp_path):
    scores = scores_file(tmp_path / "scores.json", tiny("olmoe"), ROWS)
    model = api.grow_experts(tiny("mixtral"), scores=scores, **UTILITY_COPIES)
    assert any("another checkpoint" in note for note in model.checkpoint.notes)


# -- moments -------------------------------------------------------------------------------------------------------


def recycled(model: api.Model, parent: Path, tmp_path: Path) -> tuple[dict, dict, dict]:
    """(the child's moments, the parent's, the steps of the child's)"""
    state = write_moments(tmp_path / "state", parent)
    out = model.save(tmp_path / "out", optimizer_state=str(state))
    steps = json.loads((out / "optimizer" / "optimizer.json").read_text())["steps"]
    files = (out / "optimizer" / "optimizer.safetensors", state / "optimizer.safetensors")
    return *(load_file(file) for file in files), steps


def test_copies_and_their_router_rows_share_the_gradient(tiny, tmp_path):
    made, was, steps = recycled(api.grow_experts(tiny("mixtral"), factor=3, noise=0), tiny("mixtral"), tmp_path)
    for moment, by in (("exp_avg", 3), ("exp_avg_sq", 9)):
        for new in range(3 * E):
            child, parent = f"{expert(2, new, 'w2')}.{moment}", f"{expert(2, new % E, 'w2')}.{moment}"
            np.testing.assert_allclose(made[child], was[parent] / by, rtol=1e-6)
        rows = was[f"{router(0)}.{moment}"].repeat(3, 1)
        np.testing.assert_allclose(made[f"{router(0)}.{moment}"], rows / by, rtol=1e-6)
    assert set(steps.values()) == {100}


def test_noisy_copies_start_empty(tiny, tmp_path):
    made, was, steps = recycled(api.grow_experts(tiny("mixtral"), noise_router=True), tiny("mixtral"), tmp_path)
    for new in range(2 * E):
        name = expert(0, new, "w1")
        if new < E:
            np.testing.assert_allclose(made[f"{name}.exp_avg"], was[f"{name}.exp_avg"] / 2, rtol=1e-6)
        else:
            assert not made[f"{name}.exp_avg"].any()
            assert not made[f"{name}.exp_avg_sq"].any()
        assert steps[name] == (100 if new < E else 0)
    assert made[f"{router(0)}.exp_avg"][:E].all()
    assert not made[f"{router(0)}.exp_avg"][E:].any()


def test_utility_copies_share_by_their_number(tiny, tmp_path):
    scores = scores_file(tmp_path / "scores.json", tiny("mixtral"), ROWS)
    model = api.grow_experts(tiny("mixtral"), scores=scores, **UTILITY_COPIES)
    made, was, _ = recycled(model, tiny("mixtral"), tmp_path)
    for new, (old, of) in enumerate([(0, 1), (1, 4), (2, 1), (3, 2), (1, 4), (3, 2), (1, 4), (1, 4)]):
        name, parent = f"{expert(1, new, 'w1')}.exp_avg_sq", f"{expert(1, old, 'w1')}.exp_avg_sq"
        np.testing.assert_allclose(made[name], was[parent] / of**2, rtol=1e-6)
        row = was[f"{router(1)}.exp_avg"][old] / of
        np.testing.assert_allclose(made[f"{router(1)}.exp_avg"][new], row, rtol=1e-6)


# -- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"factor": 0}, "0 times as many experts are none"),
        ({"noise": -1.0}, "noise is -1.0"),
        ({"noise": float("nan")}, "noise is nan"),
        ({"copies": "utility"}, "2 problems.*cannot have top-k scale.*need the experts' scores"),
        ({"copies": "utility", "top_k": "keep"}, "need the experts' scores"),
        ({"copies": "utility", "top_k": "keep", "factor": 5}, "do not make 5 times as many"),
        ({"scores": "scores.json"}, "ask for no scores"),
        ({"copies": "utility", "top_k": "keep", "scores": "no/such/file"}, "cannot be read: No such file"),
    ],
)
def test_what_does_not_fit_is_refused(tiny, options, words):
    with pytest.raises(RekindleError, match=f"(?s){words}"):
        api.grow_experts(tiny("mixtral"), **options)


def test_a_dense_model_is_refused_with_what_to_type(tiny):
    with pytest.raises(RekindleError, match="is dense") as error:
        api.grow_experts(tiny("llama"))
    assert error.value.hint.startswith("rekindle upcycle")


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (None, "holds no scores"),
        ({"0": ROWS["0"]}, "scores for layers 0, but experts in 0, 1, 2"),
        (ROWS | {"1": [1.0, 2.0]}, "Layer 1 has 2 scores for 4 experts"),
        (ROWS | {"1": 3}, "Layer 1 has no scores for 4 experts"),
        (ROWS | {"2": [1.0, float("nan"), 1.0, 1.0]}, "layer 2 is nan"),
        (ROWS | {"2": [1.0, -1.0, 1.0, 1.0]}, "layer 2 is -1.0"),
        (ROWS | {"2": [1.0, "x", 1.0, True]}, "layer 2 is 'x'"),
        ({"0": [1.0], "1": [2.0]}, "3 problems"),
    ],
)
def test_scores_that_do_not_fit_are_refused(tiny, tmp_path, layers, words):
    scores = scores_file(tmp_path / "scores.json", tiny("mixtral"), layers)
    with pytest.raises(RekindleError, match=words) as error:
        api.grow_experts(tiny("mixtral"), scores=scores, **UTILITY_COPIES)
    assert "rekindle utility SRC" in str(error.value)


@pytest.mark.parametrize("text", ["", "[1", "[1]", "{}", '"x"', "[" * 100_000, "\xff"])
def test_files_that_are_no_scores_are_refused(tiny, tmp_path, text):
    path = tmp_path / "scores.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(RekindleError, match="scores"):
        api.grow_experts(tiny("mixtral"), scores=str(path), **UTILITY_COPIES)
