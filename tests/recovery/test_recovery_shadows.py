"""Shadows of three stages, in processes of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from rekindle.recovery.shadows import Shadows
from rekindle.recovery.stage import Place
from rekindle.recovery.stages import Stages
from rekindle.train.config import TrainConfig

STAGES, ROUNDS = 3, 6


def weights(stage: int, at: int) -> list[torch.Tensor]:
    """Of a stage after so many rounds; stages differ in size."""
    g = torch.Generator().manual_seed(stage)
    x = 0.1 * torch.randn(40 + stage, 60, generator=g)
    for _ in range(at):
        x = x + 1e-3 * torch.randn(x.shape, generator=g)
    return [x, torch.full((60,), float(at))]


def live(stage: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=stage, world_size=STAGES)
    own = [torch.nn.Parameter(x) for x in weights(stage, 0)]
    shadows = Shadows(Place(stage, STAGES, stage, 1), own, torch.device("cpu"))
    shadows.lend(range(STAGES))
    held = [shadows.held]
    for at in range(1, ROUNDS):
        with torch.no_grad():
            for p, x in zip(own, weights(stage, at), strict=True):
                p.copy_(x)
        shadows.begin()
        with torch.no_grad():
            own[0].zero_()  # which the copy does not see
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(STAGES)]
        dist.all_gather(sizes, torch.tensor([shadows.nbytes()]))
        if at == 3:  # a group that breaks: nothing of this round counts
            shadows.forget()
            held.append(held[-1])
            continue
        with shadows.on_their_way([int(size) for size in sizes]):
            pass
        assert shadows.held is held[-1]
        shadows.count()
        held.append(shadows.held)
    np.savez(f"{folder}/{stage}.npz", held=np.array(held), known=shadows.known)
    dist.destroy_process_group()


def test_a_round_that_a_death_cut_off_begins_again_in_the_next_step():
    stages = object.__new__(Stages)
    stages.config, stages._coded, stages._due, stages.shadow_bytes = TrainConfig(shadow_every=10), [], False, 0
    assert stages.shading(9) is None
    assert stages.shading(10) == []
    assert stages.shading(10) == []  # it was cut off before all had answered
    assert not stages.shaded([], [5, 7])
    assert stages.shading(11) == [5, 7]
    stages._coded = []  # another group: the messages are gone
    assert stages.shading(11) == []
    assert not stages.shaded([], [6, 8])
    assert stages.shading(12) == [6, 8]
    assert stages.shaded([6, 8], [6, 8])
    assert stages.shading(13) is None
    assert stages.shadow_bytes == 14


@pytest.mark.slow
def test_each_stage_holds_what_the_one_before_it_was(tmp_path):
    torch.multiprocessing.spawn(live, (str(tmp_path),), STAGES)
    found = [np.load(tmp_path / f"{stage}.npz") for stage in range(STAGES)]
    for stage in range(STAGES):
        held = found[(stage + 1) % STAGES]["held"]
        assert np.array_equal(held[-1], found[stage]["known"])
        for at in range(ROUNDS):
            x, gain = weights(stage, at if at != 3 else 2)
            error = np.abs(held[at][: x.numel()] - x.flatten().numpy())
            assert np.sqrt(np.mean(error**2)) < (0.3 * 1e-3 * (1 + (at == 4)) if at else 1e-12)
            assert np.array_equal(held[at][x.numel() :], gain.numpy())  # small: to the bit
