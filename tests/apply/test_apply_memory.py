"""Memory does not grow with the model, and copies need no torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from store.folders import TINY_LLAMA, write_llama

from rekindle.apply.shards import Shard, write_index
from rekindle.edit.arithmetic import Fill

MEASURE = """
import resource, sys
from rekindle.cli import main
try:
    main()
except SystemExit as ended:
    code = ended.code
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kB
print(f"{code} {peak} {'torch' in sys.modules}", file=sys.stderr)
"""


def measured(*arguments: str) -> tuple[int, float, bool]:
    """(exit code, peak resident MB, whether torch was imported) of a command, in a process of its own."""
    # what pytest forks counts pytest's memory as its own, exec or not; what a shell forks counts the shell's
    shell = ["/bin/sh", "-c", '"$@"; exit $?', "sh"]
    ran = subprocess.run(
        [*shell, sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, check=False
    )
    code, peak, torch = ran.stderr.splitlines()[-1].split()
    assert code == "0", ran.stderr
    return int(code), int(peak) / 1000, torch == "True"


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A bf16 llama of 300 MB in 2 shards, all zeros and mostly holes in its files."""
    from rekindle.anatomy import FAMILIES

    folder = tmp_path_factory.mktemp("large")
    config = TINY_LLAMA | {
        "vocab_size": 16000, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 7,
        "num_attention_heads": 16, "num_key_value_heads": 16,
    }  # fmt: skip
    table = [(name, shape) for _, (name, shape, _) in FAMILIES["llama"].table(FAMILIES["llama"].settings(config))]
    halves = table[: len(table) // 2], table[len(table) // 2 :]
    shards = [
        Shard(f"model-{i:05d}-of-00002.safetensors", {name: Fill("BF16", shape, 0.0) for name, shape in half})
        for i, half in enumerate(halves, 1)
    ]
    for shard in shards:
        head, size = shard.header()
        with (folder / shard.file).open("wb") as file:
            file.write(head)
            file.truncate(size)
    write_index(shards, folder)
    (folder / "config.json").write_text(json.dumps(config))
    assert sum(shard.header()[1] for shard in shards) > 290e6
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [["--experts", "2"], ["--experts", "2", "--init", "noise", "--layers", "all"]],
    ids=["copied", "computed"],
)
def test_upcycling_300_MB_takes_less_than_150(large, tmp_path, flags):
    _, peak, torch = measured("upcycle", str(large), str(tmp_path / "out"), *flags)
    assert peak < 150
    assert not torch


@pytest.mark.slow
def test_casting_300_MB_takes_less_than_150(large, tmp_path):
    _, peak, torch = measured("rewrite", str(large), str(tmp_path / "out"), "--dtype", "float32", "--workers", "4")
    assert peak < 150
    assert not torch


def test_copies_need_no_torch(tmp_path):
    parent = write_llama(tmp_path / "parent")
    for verb, *flags in (
        ("upcycle", "--experts", "2"),
        ("rewrite", "--checksum"),
        ("upcycle", "--experts=2", "--dry-run"),
    ):
        _, _, torch = measured(verb, str(parent), str(tmp_path / verb / flags[-1]), *flags)
        assert not torch, (verb, flags)
    _, _, torch = measured("inspect", str(parent))
    assert not torch
