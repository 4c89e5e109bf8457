"""Two processes do together what one does alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from train_helpers import rows

from rekindle.errors import RekindleError

SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from rekindle.train.config import TrainConfig
from rekindle.train.loop import train
sys.path.insert(0, {tests!r})
from train_helpers import defaults

config = TrainConfig(**(defaults(Path(sys.argv[3])) | {{"aux_loss": 0.0}}))
train(Path(sys.argv[1]), Path(sys.argv[2]), config, command="", options={{}})
"""


@pytest.mark.slow
@pytest.mark.parametrize("told", [{"ACCELERATE_USE_CPU": "true"}, {}], ids=["accelerate", "torchrun"])
def test_two_ranks(small: Callable, run: Callable, corpus: Path, tmp_path: Path, told: dict[str, str]):
    alone, _ = run(small("mixtral"), "alone", aux_loss=0.0)
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(
        [*launch, str(small("mixtral")), str(tmp_path / "together"), str(corpus)],
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | told,
    )
    assert done.returncode == 0, done.stderr.decode()
    together = tmp_path / "together"
    assert rows(together, "run")[0]["devices"] == 2
    for a, b in zip(rows(alone, "step"), rows(together, "step"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["tokens"] == b["tokens"]
    for a, b in zip(rows(alone, "eval"), rows(together, "eval"), strict=True):
        assert a["val_loss"] == pytest.approx(b["val_loss"], rel=1e-4)
        assert a["val_loss_stderr"] == pytest.approx(b["val_loss_stderr"], rel=1e-3)
        assert sum(map(sum, b["expert_load"])) == pytest.approx(2, abs=1e-4)


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_shards_are_refused_before_anything_is_read(
    small: Callable, run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(RekindleError, match=f"(?i)under {name} is not supported: each device holds the whole model"):
        run(tmp_path / "nowhere", data="./nothing.txt")
