"""Ranged reads and copies between files, inside the kernel and without it."""

from __future__ import annotations

import errno
import os
import random
import resource
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rekindle.errors import RekindleError
from rekindle.store import files
from rekindle.store.files import Files

CONTENT = bytes(range(256)) * 40
PREAD = os.pread


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    return str(path)


@pytest.fixture
def out(tmp_path):
    fd = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def copied(source, out, offset=100, nbytes=9000, at=100) -> bytes:
    with Files() as opened:
        opened.copy(source, offset, nbytes, out, at)
    return PREAD(out, 1 << 20, at)


def refuse(number):
    def declined(*_):
        raise OSError(number, os.strerror(number))

    return declined


@pytest.mark.parametrize("reason", ["EXDEV", "ENOSYS", "EOPNOTSUPP", "EINVAL", "EPERM"])
def test_a_kernel_that_declines_is_done_without(source, out, monkeypatch, reason):
    monkeypatch.setattr(os, "copy_file_range", refuse(getattr(errno, reason)))
    assert copied(source, out) == CONTENT[100:9100]


def test_a_system_without_the_call_is_done_without(source, out, monkeypatch):
    monkeypatch.delattr(os, "copy_file_range")
    assert copied(source, out) == CONTENT[100:9100]


def test_a_kernel_that_declines_midway_is_done_without(source, out, monkeypatch):
    """Some of a file may be on another file system than the rest says."""
    kernel, calls = os.copy_file_range, []

    def sometimes(fd, to, nbytes, offset, at):
        calls.append(nbytes)
        return kernel(fd, to, 1000, offset, at) if len(calls) == 1 else refuse(errno.EXDEV)()

    monkeypatch.setattr(os, "copy_file_range", sometimes)
    assert copied(source, out) == CONTENT[100:9100]
    assert len(calls) == 2


def test_a_file_system_that_says_it_has_ended_is_read(source, out, monkeypatch):
    """Some return 0 from copy_file_range, not an error, for files that they make up."""
    monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
    assert copied(source, out) == CONTENT[100:9100]


@pytest.mark.parametrize("kernel", [True, False])
def test_short_copies_are_continued(source, out, monkeypatch, kernel):
    if kernel:
        call = os.copy_file_range
        monkeypatch.setattr(os, "copy_file_range", lambda a, b, n, *rest: call(a, b, min(n, 777), *rest))
    else:
        read, write = os.pread, os.pwrite
        monkeypatch.delattr(os, "copy_file_range")
        monkeypatch.setattr(os, "pread", lambda fd, n, at: read(fd, min(n, 1000), at))
        monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[:300], at))
    assert copied(source, out) == CONTENT[100:9100]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_real_failure_is_not_taken_for_a_refusal(source, out, monkeypatch, number):
    monkeypatch.setattr(os, "copy_file_range", refuse(number))
    with pytest.raises(OSError, match=os.strerror(number)):
        copied(source, out)


def test_bytes_that_lie_differently_on_their_pages_go_through_a_loop(source, out, monkeypatch):
    """The kernel would split every page in two."""
    monkeypatch.setattr(os, "copy_file_range", refuse(errno.EIO))
    assert copied(source, out, at=7) == CONTENT[100:9100]


def test_large_copies_go_in_steps(source, out, monkeypatch):
    asked, kernel = [], os.copy_file_range
    monkeypatch.setattr(files, "COPY_STEP", 1 << 10)
    monkeypatch.setattr(os, "copy_file_range", lambda a, b, n, *rest: asked.append(n) or kernel(a, b, n, *rest))
    assert copied(source, out) == CONTENT[100:9100]
    assert max(asked) == 1 << 10


@pytest.mark.parametrize("kernel", [True, False])
def test_a_source_that_ended_early_is_broken(source, out, monkeypatch, kernel):
    if not kernel:
        monkeypatch.setattr(os, "copy_file_range", refuse(errno.EXDEV))
    with pytest.raises(RekindleError, match="it ended while it was copied") as refused:
        copied(source, out, offset=len(CONTENT) - 10, nbytes=11)
    assert refused.value.where == source


def test_reads_are_exact_or_broken(source, monkeypatch):
    read = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, n, at: read(fd, min(n, 1000), at))
    with Files() as opened:
        assert opened.read(source, 5, 9000) == CONTENT[5:9005]
        assert opened.read(source, 5, 0) == b""
        with pytest.raises(RekindleError, match="it ended while it was read"):
            opened.read(source, len(CONTENT) - 10, 11)


def test_a_source_that_is_gone_is_named(tmp_path):
    with Files() as opened, pytest.raises(RekindleError, match="No such file") as refused:
        opened.read(str(tmp_path / "gone"), 0, 1)
    assert refused.value.where == str(tmp_path / "gone")


def test_each_file_is_opened_once_and_closed(source):
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    with Files() as opened, opened.using(source) as fd, opened.using(source) as again:
        assert fd == again
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert before is None or len(os.listdir("/proc/self/fd")) == before


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(st.integers(0, len(CONTENT)), st.integers(0, len(CONTENT)), st.integers(0, 100), st.booleans())
def test_any_range_arrives(source, out, a, b, at, kernel):
    lo, hi = sorted((a, b))
    os.ftruncate(out, 0)
    with pytest.MonkeyPatch.context() as patch, Files() as opened:
        if not kernel:
            patch.setattr(os, "copy_file_range", refuse(errno.EXDEV))
        opened.copy(source, lo, hi - lo, out, at)
    assert os.pread(out, 1 << 20, at) == CONTENT[lo:hi]


# -- more files than may be open -------------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path):
    for i in range(200):
        (tmp_path / f"{i}").write_bytes(bytes([i]) * 5000)
    return [str(tmp_path / f"{i}") for i in range(200)]


def test_more_files_than_may_be_open_at_once(many, monkeypatch):
    """By several threads in any order: each read is of the file that was asked for, and few stay open."""
    monkeypatch.setattr(files, "_most_open", lambda: 10)
    order = [random.Random(seed).sample(range(200), 200) for seed in range(8)]
    with Files() as opened, ThreadPoolExecutor(8) as pool:

        def read_all(numbers):
            for i in numbers:
                assert opened.read(many[i], 1000, 3000) == bytes([i]) * 3000

        list(pool.map(read_all, order))
        assert len(opened._open) <= 10 + 8


def test_a_file_in_use_is_not_closed(many, monkeypatch):
    monkeypatch.setattr(files, "_most_open", lambda: 2)
    with Files() as opened, ExitStack() as stack:
        held = [stack.enter_context(opened.using(path)) for path in many[:5]]
        opened.read(many[10], 0, 1)
        assert [os.pread(fd, 1, 0)[0] for fd in held] == [0, 1, 2, 3, 4]


def test_a_quarter_of_what_the_process_may_open(monkeypatch):
    for limit, most in ((256, 64), (1024, 256), (1 << 20, 1024), (16, 8)):
        monkeypatch.setattr(resource, "getrlimit", lambda which, n=limit: (n, n))
        assert files._most_open() == most
