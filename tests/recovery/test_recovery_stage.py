"""Stages, one behind the other in one process, are the whole model: of every decoder that has a table."""

from __future__ import annotations

import pytest
import torch

from rekindle.anatomy import FAMILIES
from rekindle.apply.load import load_model
from rekindle.edit import checkpoint_at
from rekindle.errors import RekindleError
from rekindle.recovery.split import parts_of
from rekindle.recovery.stage import Stage
from rekindle.train.config import TrainConfig
from rekindle.train.losses import cross_entropy, forward, router_logits, router_losses

DECODERS = [name for name, family in FAMILIES.items() if family.classes.get("causal") and not family.towers]
WEIGHING = {"aux_loss": 0.3, "z_loss": 0.1}


def options(stages: int, recover: str = "shadow", **changes) -> TrainConfig:
    return TrainConfig(stages=stages, recover=recover, **changes)  # type: ignore[arg-type]


def stages_of(folder, count: int, recover: str = "shadow") -> tuple[list[Stage], torch.nn.Module]:
    parent = checkpoint_at(folder)
    whole = load_model(parent.folder).eval()
    made = []
    for place, config in parts_of(parent, options(count, recover)):
        stage = Stage(config, place, torch.device("cpu")).eval()
        stage.fill(whole.state_dict())
        stage.weighing = WEIGHING
        made.append(stage)
    return made, whole


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("count", [2, 3])
def test_stages_are_the_whole_model_forward_and_backward(small, family, count):
    stages, whole = stages_of(small(family, layers=4), count)
    ids = torch.randint(0, 300, (2, 24), generator=torch.Generator().manual_seed(0))
    sparse = stages[0].place.routers > 0
    out = forward(whole, {"input_ids": ids, "use_cache": False}, sparse)
    h = ids
    for stage in stages:
        h = stage(h)
    assert (h - out.logits).abs().max() <= 1e-5 * out.logits.abs().max()
    loss, routers = cross_entropy(out.logits[:, :-1], ids[:, 1:]), {}
    if sparse:
        routers = router_losses(router_logits(out), stages[0].top_k)
    (loss + sum(WEIGHING[name] * x for name, x in routers.items())).backward()
    cross_entropy(h[:, :-1], ids[:, 1:]).backward()
    for name, x in routers.items():
        told = sum(stage.told.get(name, torch.zeros(())) for stage in stages)
        assert told.item() == pytest.approx(x.item(), rel=1e-5)
    wanted, found = dict(whole.named_parameters()), {}
    for stage in stages:
        for name, p in stage.body.named_parameters():
            assert p.grad is not None, name
            found[stage.names[name]] = found.get(stage.names[name], 0) + p.grad
    assert found.keys() == wanted.keys()
    for name, p in wanted.items():
        assert (found[name] - p.grad).abs().max() <= 1e-5 * max(p.grad.abs().max(), 1e-3), name


ALIKE = [name for name in DECODERS if name != "deepseek_v3"]  # whose layers differ


@pytest.mark.parametrize("family", ALIKE)
@pytest.mark.parametrize("tied", [False, True])
def test_with_ends_swapped_it_is_the_whole_model_with_its_layers_in_that_order(small, family, tied):
    try:
        folder = small(family, layers=8, tie_embeddings=tied)
    except RekindleError:
        pytest.skip(f"a {family} is not tied, or always")
    stages, whole = stages_of(folder, 4, "checkfree+")
    order = stages[0].place.order
    assert order == [1, 0, 3, 2]
    ids = torch.randint(0, 300, (2, 24), generator=torch.Generator().manual_seed(0))
    for way in (range(4), order):
        h = ids
        for at, stage in enumerate(way):
            stages[stage].first, stages[stage].last = at == 0, at == 3
            h = stages[stage](h)
        cross_entropy(h[:, :-1], ids[:, 1:]).backward()
    found = {}
    for stage in stages:
        for name, p in stage.own.items():
            found[name] = found.get(name, 0) + (0 if p.grad is None else p.grad)
    sparse = stages[0].place.routers > 0
    for layers in ([*range(8)], [2, 3, 0, 1, 6, 7, 4, 5]):
        reordered(whole, layers)
        out = forward(whole, {"input_ids": ids, "use_cache": False}, sparse)
        reordered(whole, layers)  # each order is its own inverse
        loss = cross_entropy(out.logits[:, :-1], ids[:, 1:])
        if sparse:
            routers = router_losses(router_logits(out), stages[0].top_k)
            loss = loss + sum(WEIGHING[name] * x for name, x in routers.items())
        loss.backward()
    wanted = dict(whole.named_parameters())
    assert found.keys() == wanted.keys()
    for name, p in wanted.items():
        assert (found[name] - p.grad).abs().max() <= 1e-5 * max(p.grad.abs().max(), 1e-3), name


def reordered(model: torch.nn.Module, layers: list[int]) -> None:
    """The same layers in another order."""
    (modules,) = (m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == len(layers))
    moved = [modules[layer] for layer in layers]
    for at, module in enumerate(moved):
        modules[at] = module


@pytest.mark.parametrize("family", DECODERS)
def test_in_float64_they_are_so_to_ten_digits(small, family):
    stages, whole = stages_of(small(family, layers=4), 4)
    ids = torch.randint(0, 300, (2, 24), generator=torch.Generator().manual_seed(0))
    for model in (whole, *(stage.body for stage in stages)):
        model.set_experts_implementation("eager")  # others know no float64
        model.double()
    h = ids
    for stage in stages:
        stage.weighing = dict.fromkeys(WEIGHING, 0.0)
        h = stage(h)
    logits = whole(input_ids=ids, use_cache=False).logits
    one, other = (cross_entropy(x[:, :-1], ids[:, 1:]) for x in (logits, h))
    assert h.dtype == torch.float64
    assert other.item() == pytest.approx(one.item(), rel=1e-10)
    one.backward()
    other.backward()
    found = {}
    for stage in stages:
        for name, p in stage.own.items():
            found[name] = found.get(name, 0) + p.grad
    for name, p in whole.named_parameters():
        assert (found[name] - p.grad).abs().max() <= 1e-10 * max(p.grad.abs().max(), 1e-3), name


def test_tied_embeddings_are_held_by_both_ends(small):
    stages, whole = stages_of(small(layers=4, tie_embeddings=True), 4)
    names = [[long for long in stage.names.values() if "embed" in long] for stage in stages]
    assert names == [["model.embed_tokens.weight"], [], [], ["model.embed_tokens.weight"]]
    held = {"model.embed_tokens.weight": (0, 3)}
    assert [stage.shared for stage in stages] == [held, {}, {}, held]
    assert torch.equal(stages[0].body.embed_tokens.weight, whole.get_input_embeddings().weight)
    assert torch.equal(stages[-1].body.lm_head.weight, stages[0].body.embed_tokens.weight)


def test_layers_of_all_stages_are_in_one_order(small):
    stages, whole = stages_of(small("qwen2", layers=4), 4)
    own = dict(whole.named_parameters())
    for layer, stage in enumerate(stages):
        found = stage.of_layers()
        wanted = [p for name, p in sorted(own.items()) if f"layers.{layer}." in name]
        assert [p.shape for p in found] == [p.shape for p in wanted]
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    ("family", "asked", "words"),
    [
        ("llama", {"stages": 5}, "4 layers cannot be 5 stages"),
        ("llama", {"stages": 0}, "4 layers cannot be 0 stages"),
        ("llama", {"stages": 3, "recover": "checkfree"}, "--stages 2 or 4; or --recover shadow"),
        ("llama", {"stages": 2, "recover": "checkfree+"}, "2 stages are no two pairs"),
        ("llama", {"stages": 2, "objective": "seq2seq"}, "learns each next token, and not seq2seq"),
        ("llama", {"stages": 2, "keep_averages": True}, "--keep-averages is not possible in a pipeline"),
        ("llama", {"stages": 2, "spares": -1}, "spares is -1: 0 is the least"),
        ("llama", {"stages": 3, "recover_moments": "average"}, "takes moments of a stage from its neighbours"),
        ("deepseek_v3", {"stages": 4, "recover": "copy"}, "layers of this deepseek_v3 differ"),
        ("bert", {"stages": 2}, "is no decoder"),
        ("t5", {"stages": 2}, "is no decoder"),
    ],
)
def test_what_makes_no_pipeline_is_a_sentence(small, tiny, family, asked, words):
    folder = tiny(family) if family in ("bert", "t5") else small(family, layers=4)
    with pytest.raises(RekindleError, match=words):
        parts_of(checkpoint_at(folder), options(**asked))
