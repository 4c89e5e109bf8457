"""Which weight the moments in a torch optimizer's state belong to: for sure, or not at all."""

from __future__ import annotations

import pytest
import torch
from tiny_models import DECODERS, ENCODERS, make, tiny_config

from rekindle.anatomy.adam import adam_of, deal, parameters_of
from rekindle.store.torch_file import read_torch


class Plain(torch.nn.Module):
    def __init__(self, *shapes):
        super().__init__()
        self.weights = torch.nn.ParameterList([torch.nn.Parameter(torch.ones(shape)) for shape in shapes])


def state(tmp_path, groups, cls=torch.optim.AdamW, trained=lambda p: True):
    groups = [{"params": list(group)} for group in groups]
    optimizer = cls(groups, lr=1e-3)
    for group in groups:
        for p in group["params"]:
            p = p[1] if isinstance(p, tuple) else p
            p.grad = torch.ones_like(p) if trained(p) else None
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    return adam_of(read_torch(tmp_path / "optimizer.pt").tree)


def dealt(adam, model):
    return deal(adam, {name: tuple(p.shape) for name, p in model.named_parameters()})


@pytest.mark.parametrize("family", DECODERS + ENCODERS)
def test_groups_of_weights_with_and_without_decay(tmp_path, family):
    config = tiny_config(family, model_type=family)
    model = make(config)
    named = list(model.named_parameters())
    groups = [[(n, p) for n, p in named if (p.ndim >= 2) == decayed] for decayed in (True, False)]
    adam = state(tmp_path, [[p for _, p in group] for group in groups if group])
    truth = dict(enumerate(name for group in groups for name, _ in group))
    config["architectures"] = [type(model).__name__]
    assert deal(adam, parameters_of(config)) == truth


def test_one_group_and_what_is_frozen(tmp_path):
    model = Plain((4, 3), (3,), (3,), (5, 3), (3, 3))
    named = list(model.named_parameters())
    assert dealt(state(tmp_path, [[p for _, p in named]]), model) == dict(enumerate(n for n, _ in named))
    without = [x for i, x in enumerate(named) if i != 3]
    assert dealt(state(tmp_path, [[p for _, p in without]]), model) == dict(enumerate(n for n, _ in without))


def test_what_could_be_otherwise_is_not_told(tmp_path):
    model = Plain((4, 3), (3, 3), (3, 3), (3,))
    a, b, c, d = model.parameters()
    assert dealt(state(tmp_path, [[a, b, d]]), model) is None  # b or c
    assert dealt(state(tmp_path, [[a, c, d], [b]]), model) is None  # b and c, in two groups
    assert dealt(state(tmp_path, [[b, a, c, d]]), model) is None  # in an order of its own
    assert dealt(state(tmp_path, [[a, b, c, d]], trained=lambda p: p is not d), model) is None  # no shape to go by
    assert dealt(state(tmp_path, [[a, b, c, d]]), Plain((4, 3), (3, 3), (3, 3))) is None


def test_names_that_were_told_hold(tmp_path):
    model = Plain((3, 3), (3, 3), (3, 3))
    named = list(model.named_parameters())[::-1]
    assert dealt(state(tmp_path, [named[:1], named[1:]]), model) == dict(enumerate(name for name, _ in named))
    assert dealt(state(tmp_path, [named]), Plain((3, 3), (3, 3))) is None


def test_what_is_no_adam(tmp_path):
    model = Plain((3, 3))
    assert (
        state(tmp_path, [model.parameters()], lambda groups, lr: torch.optim.SGD(groups, lr=lr, momentum=0.9)) is None
    )
    for tree in (None, {}, {"state": {}, "param_groups": []}, {"state": {}, "param_groups": [{"params": [[]]}]}, [1]):
        assert adam_of(tree) is None


def test_many_equal_layers_are_dealt_in_no_time(tmp_path):
    model = Plain(*[(3, 3), (3,)] * 300)
    named = list(model.named_parameters())
    groups = [[p for _, p in named if p.ndim == n] for n in (2, 1)]
    assert len(dealt(state(tmp_path, groups), model)) == 600
    assert dealt(state(tmp_path, [[p for _, p in named[:-40]]]), model) is None


def test_only_transformers_models_are_built():
    for name in ("AutoConfig", "pipeline", "nothing", ["x"], None):
        assert parameters_of({"model_type": "llama", "architectures": [name]}) is None
    assert parameters_of({}) is None
