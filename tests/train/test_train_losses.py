"""Router losses and expert load."""

from __future__ import annotations

import math

import pytest
import torch

from rekindle.train.losses import cross_entropy, describe_load, expert_counts, load_balance_loss, router_z_loss


def logits(tokens: int = 64, experts: int = 8, layers: int = 1) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    return tuple(torch.randn(tokens, experts) for _ in range(layers))


def test_balance_is_one_and_collapse_is_the_number_of_experts_over_k():
    even = torch.eye(8).repeat(4, 1) * 1e-3  # each token prefers another expert, by nearly nothing
    assert load_balance_loss((even,), 1).item() == pytest.approx(1, abs=1e-3)
    collapsed = torch.tensor([[50.0, 0, 0, 0]]).repeat(10, 1)
    assert load_balance_loss((collapsed,), 1).item() == pytest.approx(4)


def test_one_layer_against_transformers():
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    given = logits()
    theirs = load_balancing_loss_func(given, 8, 2)
    assert load_balance_loss(given, 2).item() == pytest.approx(theirs.item() / 2, rel=1e-6)


def test_imbalances_of_two_layers_do_not_cancel():
    left, right = torch.tensor([[9.0, 0]]).repeat(8, 1), torch.tensor([[0, 9.0]]).repeat(8, 1)
    assert load_balance_loss((left, right), 1).item() == pytest.approx(2, rel=1e-3)


def test_z_loss_is_the_mean_square_of_the_log_partition():
    (given,) = logits()
    expected = (given.exp().sum(-1).log() ** 2).mean()
    assert router_z_loss((given,)).item() == pytest.approx(expected.item(), rel=1e-6)


def test_counts_and_their_description():
    given = torch.tensor([[3.0, 2, 1, 0], [3, 2, 0, 1]])
    counts = expert_counts(given, 2)
    assert counts.tolist() == [2, 2, 0, 0]
    told = describe_load(torch.stack([counts, torch.ones(4)]))
    assert told["expert_load"] == [[0.5, 0.5, 0, 0], [0.25] * 4]
    assert told["expert_entropy"] == pytest.approx([math.log(2) / math.log(4), 1], abs=1e-6)
    assert told["dead_experts"] == [2, 0]


def test_cross_entropy_is_a_mean_in_nats():
    assert cross_entropy(torch.zeros(2, 3, 7), torch.zeros(2, 3, dtype=torch.long)).item() == pytest.approx(math.log(7))
