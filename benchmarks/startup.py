"""How soon something happens: --help, and a dry run on a header of 100,000 tensors."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.measure import BIN, Row, middle, record, run
from rekindle.anatomy import FAMILIES
from rekindle.store.header import build_header

LAYERS = 11_111  # 9 tensors each
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 256, "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 4,
    "torch_dtype": "bfloat16", "rope_theta": 10000.0,
}  # fmt: skip


def main(work: Path) -> None:
    source = many_tensors(work / "many")
    bare = middle([run([BIN / "python", "-c", "import click, numpy"]) for _ in range(5)])
    python = middle([run([BIN / "python", "-c", "pass"]) for _ in range(5)])
    shown = middle([run([BIN / "rekindle", "--help"]) for _ in range(5)])
    rows = [Row("rekindle --help", f"{shown.wall:.2f} s", f"python alone {python.wall:.2f} s", "", "<= 0.3 s")]
    for experts in (2, 8):
        dry = ["upcycle", source, work / "none", "--experts", str(experts), "--dry-run"]
        took = middle([run([BIN / "rekindle", *dry]) for _ in range(5)])
        against = f"imports alone {bare.wall:.2f} s"
        what = f"dry run, 100,002 tensors, {experts} experts"
        rows.append(Row(what, f"{took.wall:.2f} s, {took.cpu:.2f} s CPU", against, "", "<= 2 s"))
    record("Start-up", rows)


def many_tensors(folder: Path) -> Path:
    """A llama of 100,002 tiny tensors; the data is a hole in the file."""
    if not (folder / "config.json").exists():
        folder.mkdir(parents=True)
        family = FAMILIES["llama"]
        table = family.table(family.settings(CONFIG))
        head, data = build_header({name: ("BF16", shape) for _, (name, shape, _) in table}, {})
        with (folder / "model.safetensors").open("wb") as file:
            file.write(head)
            file.truncate(len(head) + data)
        (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder
