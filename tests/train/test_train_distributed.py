"""Two processes do together what one does alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from train_helpers import curve, rows

from rekindle import api
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
@pytest.mark.parametrize(
    ("family", "told"),
    [("mixtral", {"ACCELERATE_USE_CPU": "true"}), ("mixtral", {}), ("t5", {})],
    ids=["accelerate", "torchrun", "two towers"],
)
def test_two_ranks(small: Callable, run: Callable, corpus: Path, tmp_path: Path, family: str, told: dict[str, str]):
    own = {"set": {"dropout_rate": 0.0}, "context": None, "init_std": None} if family == "t5" else {}
    source = small(family, **own)
    alone, _ = run(source, "alone", aux_loss=0.0)
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(
        [*launch, str(source), str(tmp_path / "together"), str(corpus)],
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
        if family == "mixtral":
            assert sum(map(sum, b["expert_load"])) == pytest.approx(2, abs=1e-4)


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_shards_are_refused_before_anything_is_read(
    small: Callable, run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(RekindleError, match=f"(?i)under {name} is not supported: each device holds the whole model"):
        run(tmp_path / "nowhere", data="./nothing.txt")


SHARDED = """
import signal, sys
signal.alarm(100)  # ranks that wait for one another would wait forever
from functools import partial
from pathlib import Path
import torch
import torch.distributed as dist
torch.set_num_threads(1)
from rekindle.train import prepare, session
from rekindle.train.config import TrainConfig
from rekindle.train.held import Whole, whole_of
from rekindle.train.loop import train
sys.path.insert(0, {tests!r})
from train_helpers import defaults

src, out, corpus = map(Path, sys.argv[1:])
calls = 0

def sharded(model, optimizer, main):
    # A rank has every second value of each tensor; what it asks for, the others ask for in the same breath.
    global calls
    calls += 1
    rank, mine = dist.get_rank(), whole_of(model, optimizer)

    def gathered(name, x):
        parts = [None, None]
        dist.all_gather_object(parts, (calls, name, x.flatten()[rank::2].clone()))
        assert parts[0][:2] == parts[1][:2], parts
        together = torch.full_like(x.flatten(), float("nan"))
        for number, (_, _, part) in enumerate(parts):
            together[number::2] = part
        return together.reshape(x.shape)

    parameters, buffers = ({{n: gathered(n, x) for n, x in some.items()}} for some in (mine.parameters, mine.buffers))
    moments = {{n: {{k: gathered(n + k, x) for k, x in state.items()}} for n, state in mine.moments.items()}}
    return Whole(parameters, buffers, moments, mine.betas) if main else None

def go(name, **how):
    config = TrainConfig(**defaults(corpus), archive=str(out / (name + ".rk")))
    train(src, out / name, config, command="", options={{}}, **how)

go("replicated")
prepare.Stepper = partial(prepare.Stepper, hold=sharded)
real = session.Session._step

def broken_off(self, step, *rest):
    if step == 7:
        raise KeyboardInterrupt
    return real(self, step, *rest)

session.Session._step = broken_off
try:
    go("sharded")
except KeyboardInterrupt:
    session.Session._step = real
go("sharded", resume=True)
counts = [None, None]
dist.all_gather_object(counts, calls)
assert counts == [5, 5], counts  # the state after 4, the same when resumed, those after 8 and 12, and what is left
"""


@pytest.mark.slow
def test_all_ranks_gather_what_is_spread_over_them(small: Callable, corpus: Path, tmp_path: Path):
    script = tmp_path / "run.py"
    script.write_text(SHARDED.format(tests=str(Path(__file__).parent)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(
        [*launch, str(small("mixtral")), str(tmp_path), str(corpus)],
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr.decode()
    for name in ("model.safetensors", "optimizer/optimizer.safetensors", "optimizer/optimizer.json"):
        assert (tmp_path / "sharded" / name).read_bytes() == (tmp_path / "replicated" / name).read_bytes()
    assert curve(tmp_path / "sharded") == curve(tmp_path / "replicated")
    archives = [api.archive_info(tmp_path / f"{name}.rk")["steps"] for name in ("sharded", "replicated")]
    digests = [[step["digest"] for step in steps] for steps in archives]
    assert digests[0] == digests[1]
