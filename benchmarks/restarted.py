"""What torchrun does about a dead stage: all processes are started again, and load what was saved last.

    torchrun --nproc-per-node 4 --max-restarts 9 benchmarks/restarted.py CKPT FOLDER

The stages, schedule and sizes are Rekindle's, so that the way of recovering is all that differs. FOLDER/log gets a line
`seconds step` for each step, FOLDER/pids the process of each stage.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist

from rekindle.edit import checkpoint_at
from rekindle.recovery.passes import Passes
from rekindle.recovery.split import parts_of
from rekindle.recovery.stage import Stage
from rekindle.train.config import TrainConfig
from rekindle.train.losses import cross_entropy
from rekindle.train.optimizer import make_optimizer

ROWS, CHUNK, LENGTH, SAVE_EVERY = 32, 4, 64, 25


def main(source: str, folder: Path) -> None:
    rank, stages = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    place, config = parts_of(checkpoint_at(source), TrainConfig(stages=stages, recover="none"))[rank]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    device = torch.device("cpu")
    stage = Stage(config, place, device).train()
    for p in stage.parameters():
        torch.nn.init.normal_(p, std=0.02)
    optimizer = make_optimizer(stage, 0.1, 0.95)
    begin, saved = 0, folder / f"stage-{rank}.pt"
    if saved.exists():
        state = torch.load(saved)
        begin = state["step"]
        stage.load_state_dict(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
    how = SimpleNamespace(micro_batch=CHUNK, chunks=ROWS // CHUNK, seq_len=LENGTH, bf16=False, pipeline="1f1b")
    passes = Passes(stage, how, lambda logits, rows: cross_entropy(logits, rows[:, 1:]) / how.chunks, device, None)
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    for step in range(begin, 10**6):
        rows = torch.randint(
            0, stage.settings.vocab_size, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(step)
        )
        passes.run(rows if place.embeds or place.heads else None)
        dist.barrier()
        for group in optimizer.param_groups:
            group["lr"] = 1e-3
        optimizer.step()
        optimizer.zero_grad()
        if rank == 0:
            with (folder / "log").open("a") as log:
                log.write(f"{time.time()} {step}\n")
        if (step + 1) % SAVE_EVERY == 0:
            torch.save({"step": step + 1, "weights": stage.state_dict(), "optimizer": optimizer.state_dict()}, saved)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
