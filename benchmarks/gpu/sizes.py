"""What is trained and decoded: as it is measured, and so small that a CPU is done with it in a minute."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

Shape = dict[str, Any]  # options of `rekindle init`

SIZE: Shape = {"hidden": 64, "layers": 2, "heads": 4, "tokenizer": "bpe:512"}
SMALL: Shape = SIZE | {"context": 128}
CHECKED: dict[str, Shape] = {
    "llama": SMALL,
    "mixtral": SMALL | {"family": "mixtral", "ffn": 64, "experts": 4},
    "t5": SIZE | {"family": "t5", "set": {"dropout_rate": 0.0}},  # what is dropped differs between CPU and GPU
    "t5 with dropout": SIZE | {"family": "t5"},
}
LLAMA: Shape = {"hidden": 768, "layers": 12, "heads": 12, "context": 1024, "tokenizer": "bpe:32000"}
LLAMA |= {"tie_embeddings": True}
T5: Shape = {"family": "t5", "hidden": 512, "layers": 8, "heads": 8, "tokenizer": "bpe:32000"}


@dataclass(frozen=True)
class Sizes:
    trained: dict[str, Shape]
    length: dict[str, int]  # tokens of a row
    batch_tokens: int = 65536
    data: str | None = "stdlib"
    warm: int = 3  # steps before the first that is timed
    steps: int = 8  # of a round
    rounds: int = 3
    matrix: int = 8192
    served: dict[str, int] | None = None  # over the config of `benchmarks.model`, a llama of 1.0 B
    layers: int = 16
    kv_heads: tuple[int, ...] = (32, 8, 1)  # the first as it is made, the others by `rekindle gqa`
    batches: tuple[int, ...] = (1, 16, 64)
    prompt: int = 1024
    new: int = 128
    repeats: int = 3


FULL = Sizes(
    trained={
        "llama": LLAMA | {"ffn": 2048},
        "mixtral": LLAMA | {"family": "mixtral", "ffn": 1024, "experts": 8, "top_k": 2},  # as many active as the llama
        "t5": T5 | {"ffn": 2048, "set": {"dropout_rate": 0.0}},
    },
    length={"llama": 1024, "mixtral": 1024, "t5": 512},
)
TINY = replace(
    FULL,
    trained={name: CHECKED[name] for name in FULL.trained},
    length=dict.fromkeys(FULL.trained, 64),
    batch_tokens=512,
    data=None,
    warm=1,
    steps=2,
    rounds=2,
    matrix=512,
    served={"hidden_size": 128, "intermediate_size": 256},
    layers=1,
    batches=(1, 2),
    prompt=16,
    new=4,
    repeats=2,
)
