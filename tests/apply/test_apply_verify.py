"""Verify block by block: the same numbers in a fraction of the memory."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tiny_models import PLAIN

from rekindle import api
from rekindle.apply.verify import Weights
from rekindle.store.files import Files

# Runs verify in a process of its own and prints its peak memory.
CODE = """
import json, resource, sys
from rekindle import api
out, parent, blockwise = sys.argv[1:]
verdict = api.verify(out, against=parent, tokens=256, blockwise=blockwise == "True")
print(json.dumps([verdict.held, verdict.loss_child, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""


def test_weights_are_made_when_asked_for_and_kept_by_nobody(tiny):
    checkpoint = api.open(tiny("mixtral")).checkpoint
    with Files() as files:
        weights = Weights(checkpoint, "float32", files)
        name = "model.layers.1.mlp.experts.gate_up_proj"
        assert tuple(weights[name].shape) == (4, 96, 32)
        assert weights[name] is not weights[name]
        assert len(weights) == len(list(weights))


@pytest.mark.parametrize("family", (*PLAIN, "deepseek_v3"))
def test_block_by_block_is_the_whole(tiny, tmp_path, family):
    out = api.rewrite(tiny(family)).save(tmp_path / "out")
    whole = api.verify(out, against=tiny(family), tokens=128, blockwise=False)
    blockwise = api.verify(out, against=tiny(family), tokens=128, blockwise=True)
    assert blockwise.held
    assert blockwise.relative_difference == 0
    assert blockwise.loss_child == pytest.approx(whole.loss_child, abs=1e-5)


@pytest.mark.slow
def test_block_by_block_needs_the_memory_of_a_block(tiny, tmp_path):
    big = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 10, "initializer_range": 0.02}
    parent = tiny("llama", dtype="bfloat16", **big)
    out = api.upcycle(parent, experts=4).save(tmp_path / "out")
    weights = 4 * api.inspect(out)["parameters"]["total"]  # bytes of the child in float32
    found = {}
    for blockwise in (False, True):
        command = [sys.executable, "-c", CODE, str(out), str(parent), str(blockwise)]
        found[blockwise] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert found[True][0] is found[False][0] is True
    assert found[True][1] == pytest.approx(found[False][1], abs=1e-5)
    assert weights > 5e8
    assert found[False][2] - found[True][2] > 0.6 * weights
