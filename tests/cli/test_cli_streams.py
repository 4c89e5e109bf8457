"""What cannot be said stops no work, and what a verb found is its exit code whoever listens."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from store.folders import hashes, write_llama

from rekindle import api

FULL = "Not all of the answer arrived on stdout: No space left on device."


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    desk = tmp_path_factory.mktemp("streams")
    write_llama(desk / "model", shards=2)
    api.pack(desk / "model", desk / "whole.rk")
    data = bytearray((desk / "whole.rk").read_bytes())
    data[9000] ^= 1
    (desk / "damaged.rk").write_bytes(data)
    api.upcycle(desk / "model", experts=2).save(desk / "made")
    (desk / "runs.csv").write_text(
        "params,tokens,loss\n"
        + "".join(f"{n}e6,{d}e8,{1.7 + 400 / (n * 1e6) ** 0.34 + 410 / (d * 1e8) ** 0.28:.4f}\n"
                  for n in (1, 2, 4) for d in (1, 2, 4))
    )  # fmt: skip
    return desk


def typed(desk: Path, verb: str, where: str, **environment: str) -> tuple[int, str]:
    """Exit code of a verb in a shell, its streams led somewhere, and what it said on stderr."""
    command = f"{sys.executable} -m rekindle {verb} {where}; echo ${{PIPESTATUS[0]}} >&3"
    read, write = os.pipe()
    script = ["bash", "-c", f"exec 3>&{write}; {command}"]
    how = {"cwd": desk, "env": os.environ | environment, "pass_fds": [write]}
    ran = subprocess.run(script, capture_output=True, text=True, check=False, **how)
    os.close(write)
    with os.fdopen(read) as told:
        return int(told.read()), ran.stderr


NOBODY = ["| true", "2>&1 | true", "2>&1 >/dev/null | true"]


VERBS = ["archive ls whole.rk", "inspect model", "fit runs.csv --dry-run", "--help"]


@pytest.mark.parametrize(
    ("verb", "where"),
    [
        *((VERBS[0], where) for where in (*NOBODY, "2>/dev/full", ">&-", "2>&-")),
        *((verb, where) for verb in VERBS[1:] for where in ("| true", "2>/dev/full")),
    ],
)
def test_nobody_who_listens_is_no_error(desk, verb, where):
    code, said = typed(desk, verb, where)
    assert (code, "Error" in said) == (0, False), said


@pytest.mark.parametrize("where", ["2>&1 | true", "2>/dev/full", ">/dev/full", ">/dev/full 2>&1"])
def test_the_work_is_done_whatever_can_be_said(desk, tmp_path, where):
    code, said = typed(desk, f"upcycle model {tmp_path / 'out'} --experts 2", where)
    assert hashes(tmp_path / "out") == hashes(desk / "made")
    assert code == where.startswith(">/dev/full")
    assert (FULL in said) == (where == ">/dev/full")
    assert "bug" not in said


@pytest.mark.parametrize("verb", VERBS[1:3])
def test_an_answer_that_did_not_arrive_is_told(desk, verb):
    code, said = typed(desk, verb, ">/dev/full")
    assert code == 1
    assert said.endswith(f"{FULL} The work itself is done.\n")
    assert typed(desk, verb, ">/dev/full 2>&1")[0] == 1


@pytest.mark.parametrize("where", ["", "2>&1 | true", ">/dev/full 2>&1"])
def test_what_was_found_is_the_exit_code(desk, where):
    code, said = typed(desk, "archive verify damaged.rk", where)
    assert code == 1
    assert "itself is done" not in said
    assert typed(desk, "archive verify nothing.rk", where)[0] == 2


def test_what_an_encoding_lacks_is_written_as_its_number(desk):
    (desk / "模.rk").write_bytes((desk / "whole.rk").read_bytes())
    assert typed(desk, "archive ls 模.rk", "", PYTHONIOENCODING="latin-1") == (0, "")
