"""Moments on their way: by closed forms."""

from __future__ import annotations

import pytest
import torch

from rekindle.recovery.moments import moments_of, put_moments

BETAS = (0.9, 0.95)


def after(gradients: list[float], steps: list[int]) -> tuple[torch.optim.Optimizer, list[torch.nn.Parameter]]:
    """Parameters that had one gradient again and again, so many times each."""
    own = [torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(4))]
    optimizer = torch.optim.AdamW(own, lr=1e-3, betas=BETAS)
    for at in range(max(steps)):
        for p, g, n in zip(own, gradients, steps, strict=True):
            p.grad = torch.full_like(p, g) if at < n else None
        optimizer.step()
    return optimizer, own


def test_means_are_averaged_whatever_the_number_of_updates():
    given = [moments_of(*after([1.0, 2.0], [5, 5])), moments_of(*after([3.0, 2.0], [50, 0]))]
    optimizer, own = after([0.0, 0.0], [0, 0])
    put_moments(optimizer, own, given, [0.25, 0.75])
    for p, step, mean, square in ((own[0], 50, 2.5, 7.0), (own[1], 5, 2.0, 4.0)):
        state = optimizer.state[p]
        assert float(state["step"]) == step
        assert torch.allclose(state["exp_avg"], torch.full_like(p, mean * (1 - BETAS[0] ** step)))
        assert torch.allclose(state["exp_avg_sq"], torch.full_like(p, square * (1 - BETAS[1] ** step)))
        assert state["exp_avg"].shape == p.shape


def test_those_of_one_are_copied_to_the_bit():
    optimizer, own = after([0.3, 0.7], [4, 9])
    other, theirs = after([0.0, 0.0], [0, 0])
    put_moments(other, theirs, [moments_of(optimizer, own)], [0.5])
    for p, q in zip(own, theirs, strict=True):
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizer.state[p][key], other.state[q][key])


def test_what_nobody_has_updated_begins_anew_and_the_next_step_is_taken():
    optimizer, own = after([0.0, 0.0], [0, 0])
    put_moments(optimizer, own, [moments_of(*after([1.0, 1.0], [0, 3]))], [1.0])
    assert own[0] not in optimizer.state
    for p in own:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert [float(optimizer.state[p]["step"]) for p in own] == pytest.approx([1, 4])
