"""What time, discs and kills do to an archive: never a crash, never a wrong byte, and finished steps still read."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from rekindle import api
from rekindle.codec.archive import Archive
from rekindle.codec.bits import Broken
from rekindle.codec.container import SLOT, START, checksum, create
from rekindle.codec.index import read_index, shrink, unshrink
from rekindle.codec.kernel import kernel
from rekindle.codec.pack import add_step, lock_of
from rekindle.codec.source import held_source
from rekindle.errors import CheckFailed, RekindleError
from rekindle.store.lock import alone


def small(folder, step):
    random = np.random.default_rng(step)
    folder.mkdir()
    w = (np.random.default_rng(0).normal(size=900) + 1e-3 * random.normal(size=900)).astype(np.float32)
    save_file({"w": w, "w.exp_avg": w * 2, "w.exp_avg_sq": w * w, "n": np.arange(5)}, folder / "model.safetensors")
    (folder / "notes.txt").write_text(f"step {step}, " * 20)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An archive of three steps, its bytes, and what each step's tensors are."""
    base = tmp_path_factory.mktemp("whole")
    api.pack([small(base / f"step-{i}", i) for i in (1, 2, 3)], base / "x.rk")
    with Archive(base / "x.rk") as archive:
        values = {(i, key): archive[i][key].tobytes() for i in archive for key in archive[i].by_key}
    return base, (base / "x.rk").read_bytes(), values


def readable(path, values):
    """Every tensor that can be read is what was packed; returns how many can."""
    found = 0
    try:
        with Archive(path) as archive:
            for step in archive:
                for key in list(archive[step].by_key) if _opens(archive, step) else []:
                    try:
                        assert archive[step][key].tobytes() == values[step, key]
                        found += 1
                    except RekindleError:
                        pass
    except RekindleError:
        pass
    return found


def _opens(archive, step):
    try:
        return bool(archive[step].index.tensors)
    except CheckFailed:
        return False


def verified(path):
    try:
        return api.archive_verify(path, workers=1)
    except RekindleError as error:
        return [str(error)]


@settings(max_examples=400, deadline=None)
@given(at=st.integers(0, 10**9), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found(whole, at, bit):
    base, data, values = whole
    changed = bytearray(data)
    changed[at % len(data)] ^= 1 << bit
    (base / "flipped.rk").write_bytes(changed)
    assert verified(base / "flipped.rk")
    readable(base / "flipped.rk", values)


def test_every_byte_of_the_slots_counts(whole):
    base, data, values = whole
    for at in (*range(0, 80), 2000, SLOT - 1, *range(SLOT, SLOT + 80), START - 1):
        changed = bytearray(data)
        changed[at] ^= 1
        (base / "slot.rk").write_bytes(changed)
        assert verified(base / "slot.rk"), at
        assert readable(base / "slot.rk", values) >= len(values) * 2 // 3  # the other slot is a commit back at most


def test_an_archive_whose_last_commit_is_damaged_is_not_changed(whole, tmp_path):
    """Else an older commit would be gone on from, and the steps since overwritten."""
    base, data, _ = whole
    path, newest = tmp_path / "x.rk", max((0, SLOT), key=lambda at: struct.unpack_from("<Q", data, at + 16)[0])
    changed = bytearray(data)
    changed[newest + 20] ^= 1
    path.write_bytes(changed)
    more = small(tmp_path / "step-4", 4)
    for change in (lambda: api.archive_add(more, path), lambda: api.archive_drop(f"{path}@1")):
        with pytest.raises(CheckFailed, match="damaged, and is not changed"):
            change()
    assert path.read_bytes() == bytes(changed)


def test_cut_off_anywhere(whole):
    base, data, values = whole
    ends = []
    for length in [*range(0, START, 509), *range(START, len(data), 97), len(data) - 1]:
        (base / "cut.rk").write_bytes(data[:length])
        assert verified(base / "cut.rk"), length
        ends.append(readable(base / "cut.rk", values))
    assert ends[-1] == len(values) * 2 // 3  # the last commit is lost, the steps before it are there


def test_a_torn_tail_is_told_of_and_written_over(whole, tmp_path):
    base, data, values = whole
    path = tmp_path / "x.rk"
    path.write_bytes(data + os.urandom(5000))
    assert any("follow the last finished step" in line for line in verified(path))
    assert readable(path, values) == len(values)
    api.archive_add(small(tmp_path / "step-4", 4), path)
    assert verified(path) == []
    assert readable(path, values | _values(path, 4)) == len(values) * 4 // 3


def _values(path, step):
    with Archive(path) as archive:
        return {(step, key): archive[step][key].tobytes() for key in archive[step].by_key}


@pytest.mark.parametrize("moment", [0.02, 0.05, 0.1, 0.2, 0.4])
def test_a_kill_loses_at_most_the_step_being_added(whole, tmp_path, moment):
    base, data, values = whole
    path = tmp_path / "x.rk"
    path.write_bytes(data)
    big = tmp_path / "step-9"
    big.mkdir()
    save_file({"w": np.random.default_rng(0).normal(size=3_000_000)}, big / "model.safetensors")
    code = f"from rekindle import api; print('on', flush=True); api.archive_add({str(big)!r}, {str(path)!r})"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    process.stdout.readline()
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert readable(path, values | (_values(path, 9) if 9 in _steps(path) else {})) >= len(values)
    if 9 not in _steps(path):
        api.archive_add(big, path)
    assert verified(path) == []


def _steps(path):
    with Archive(path) as archive:
        return list(archive)


@pytest.mark.parametrize("flush", [1, 2])
def test_an_interruption_while_a_step_is_committed_loses_that_step_at_most(whole, tmp_path, monkeypatch, flush):
    """Once the slot may be on the disc, what it points to must stay."""
    path, left = tmp_path / "x.rk", [flush]
    path.write_bytes(whole[1])
    flushed = os.fsync

    def interrupted(fd):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        flushed(fd)

    monkeypatch.setattr("rekindle.codec.container.os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        api.archive_add(small(tmp_path / "step-4", 4), path)
    monkeypatch.undo()
    assert api.archive_verify(path) == []
    assert _steps(path) == ([1, 2, 3] if flush == 1 else [1, 2, 3, 4])


def test_a_step_that_may_be_lost_is_told_of(whole, tmp_path):
    path = tmp_path / "x.rk"
    path.write_bytes(whole[1][:-3])
    assert api.unpack(path, tmp_path / "out")["damage"]
    with pytest.raises(RekindleError, match="may have lost it"):
        api.unpack(f"{path}@3", tmp_path / "gone")


def test_one_folder_is_unpacked_to_by_one(whole, tmp_path):
    with alone(tmp_path / ".out.lock", "here"), pytest.raises(RekindleError, match="Another process is writing"):
        api.unpack(whole[0] / "x.rk", tmp_path / "out")
    with Archive(whole[0] / "x.rk") as archive:
        step = archive[2]
    archive.close()
    with pytest.raises(RekindleError, match="was closed"):
        step["w"]


def test_a_second_writer_is_refused(whole, tmp_path):
    base, data, _ = whole
    path = tmp_path / "x.rk"
    path.write_bytes(data)
    more = small(tmp_path / "step-4", 4)
    with alone(lock_of(path), "adding"):
        for change in (lambda: api.archive_add(more, path), lambda: api.archive_drop(f"{path}@1")):
            with pytest.raises(RekindleError, match="Another process"):
                change()
    assert path.read_bytes() == data


def test_a_full_disc_leaves_the_archive_as_it_was(whole, tmp_path):
    """A limit on the size of files stands for the disc; the checkpoint does not fit."""
    base, data, _ = whole
    path = tmp_path / "x.rk"
    path.write_bytes(data)
    big = tmp_path / "step-9"
    big.mkdir()
    save_file({"w": np.random.default_rng(0).normal(size=400_000)}, big / "model.safetensors")
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(data)} + 100_000,) * 2);"
        f"from rekindle.cli import main; main(['archive', 'add', {str(big)!r}, {str(path)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "file system takes no file this large" in done.stderr
    assert path.read_bytes() == data


def forged(whole, change):
    """An archive of which the last step's index says something else, with all checksums made anew."""
    base, data, _ = whole
    path = base / "forged.rk"
    path.write_bytes(data)
    with Archive(path) as archive:
        directory, entry = archive.directory, archive.directory.steps[-1]
        index = unshrink(archive.read(entry.index.offset, entry.index.nbytes))
        body = unshrink(archive.read(directory.at.offset, directory.at.nbytes))
    change(index)
    packed = shrink(index)
    body["steps"][-1]["index"] = [entry.index.offset, len(packed), checksum(packed)]
    again = shrink(body)
    slot = struct.pack("<8sIIQQQQ", b"REKINDLE", 1, 0, directory.commit, entry.index.offset + len(packed), len(again),
                       int(checksum(again), 16))  # fmt: skip
    slot += struct.pack("<Q", int(checksum(slot), 16))
    with path.open("r+b") as file:
        file.seek(SLOT * (directory.commit % 2))
        file.write(slot)
        file.seek(entry.index.offset)
        file.write(packed + again)
        file.truncate()
    return path


FORGERIES = {
    "a path out of the folder": lambda x: x["files"][0].__setitem__(0, "../evil"),
    "an absolute path": lambda x: x["files"][0].__setitem__(0, "/evil"),
    "a path twice": lambda x: x["files"][0].__setitem__(0, x["files"][1][0]),
    "an overflowing shape": lambda x: x["tensors"][1].__setitem__(2, [2**40, 2**40]),
    "a negative shape": lambda x: x["tensors"][1].__setitem__(2, [-1]),
    "a huge tensor": lambda x: x["tensors"][1].__setitem__(2, [2**50]),
    "an unknown dtype": lambda x: x["tensors"][1].__setitem__(1, "F33"),
    "another dtype": lambda x: x["tensors"][-1].__setitem__(1, "BF16"),
    "a name twice": lambda x: x["tensors"][1].__setitem__(0, x["tensors"][2][0]),
    "a part twice": lambda x: x["blocks"][0][3].append(x["blocks"][0][3][0]),
    "a part of no tensor": lambda x: x["blocks"][0][3][0].__setitem__(0, 99),
    "a part too long": lambda x: x["blocks"][0][3][0].__setitem__(2, 10**12),
    "a missing block": lambda x: x["blocks"].pop(),
    "a longer block": lambda x: x["blocks"][0].__setitem__(0, x["blocks"][0][0] + 1),
    "no checksum": lambda x: x["blocks"][0].__setitem__(1, None),
    "itself beside it": lambda x: x["beside"].append([1, 1]),
    "a circle of moments": lambda x: x["beside"].append(x["beside"][0][::-1]),
    "something beside of another size": lambda x: x["beside"].append([0, 1]),
    "a float for a number": lambda x: x["files"][0].__setitem__(1, 1.0),
    "true for a number": lambda x: x["files"][0].__setitem__(1, True),
    "nothing": lambda x: x.clear(),
}


@pytest.mark.parametrize("change", FORGERIES.values(), ids=FORGERIES)
def test_a_forged_index_is_refused(whole, tmp_path, change):
    path = forged(whole, change)
    with pytest.raises(CheckFailed):
        api.unpack(f"{path}@3", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert verified(path)
    api.unpack(f"{path}@1", tmp_path / "one")  # the others are whole


def test_an_index_that_inflates_without_end_is_refused(monkeypatch):
    monkeypatch.setattr("rekindle.codec.index.LARGEST_INDEX", 10_000)
    with pytest.raises(Broken, match="does not inflate"):
        unshrink(shrink([0] * 100_000))
    with pytest.raises(Broken):
        unshrink(b"no zlib")
    with pytest.raises(Broken):
        read_index([], 0)


def test_a_small_index_does_not_become_a_large_one():
    bomb = zlib.compress(b"[" + b"[]," * 10_000_000 + b"[]]")
    assert len(bomb) < 100_000
    tracemalloc.start()
    with pytest.raises(Broken, match="more than an index is"):
        unshrink(bomb)
    assert tracemalloc.get_traced_memory()[1] < 8_000_000  # it holds 30 MB of text, which parsed are 600
    tracemalloc.stop()
    alike = [["model.a.long.prefix.that.all.names.have." + "x" * 100, "F32", [0]]] * 100_000
    assert unshrink(shrink(alike)) == alike  # what is written is read, however small it might become


def test_an_archive_whose_directory_is_a_bomb_is_refused(whole, tmp_path):
    base, data, _ = whole
    bomb = zlib.compress(b'{"steps": [' + b"[]," * 3_000_000 + b'[]], "before": null}')
    slot = struct.pack("<8sIIQQQQ", b"REKINDLE", 1, 0, 9, len(data), len(bomb), int(checksum(bomb), 16))
    slot += struct.pack("<Q", int(checksum(slot), 16))
    path = tmp_path / "bomb.rk"
    path.write_bytes(slot.ljust(SLOT, b"\0") + bytes(SLOT) + data[START:] + bomb)
    with pytest.raises(CheckFailed, match="damaged beyond use"):
        api.archive_info(path)


def tiny_steps(path, count, first=0):
    for step in range(first, first + count):
        add_step(path, held_source({"text": b"%d of a few words" % step}), step)
    return path.stat().st_size


def test_many_tiny_steps_are_not_mostly_old_directories(tmp_path, monkeypatch):
    monkeypatch.setattr("rekindle.codec.compact.SPARE", 1 << 11)
    path = tmp_path / "r.rk"
    create(path)
    size = tiny_steps(path, 40)
    with Archive(path) as archive:
        live = sum(entry.nbytes + entry.index.nbytes for entry in archive.directory.steps)
        assert size < START + 3 * live  # 60 kB beside 12, where they pile up
        assert [bytes(archive[n].words(0, 0, 3)) for n in (0, 27, 39)] == [b"0 o", b"27 ", b"39 "]
        assert archive.names == list(range(40))
    assert api.archive_verify(path) == []


def test_a_step_is_there_though_what_is_old_could_not_go(tmp_path, monkeypatch):
    monkeypatch.setattr("rekindle.codec.compact.SPARE", 1 << 10)
    path = tmp_path / "r.rk"
    create(path)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rekindle.codec.compact.create", full)
    tiny_steps(path, 40)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["r.rk"]
    tiny_steps(path, 2, 40)
    assert api.archive_info(path)["steps"][-1]["step"] == 41
    assert api.archive_verify(path) == []


def test_another_format_or_file_is_named(whole, tmp_path):
    base, data, _ = whole
    later = bytearray(data)
    for at in (0, SLOT):
        later[at + 8] = 9
        later[at + 48 : at + 56] = struct.pack("<Q", int(checksum(bytes(later[at : at + 48])), 16))
    (tmp_path / "later.rk").write_bytes(later)
    with pytest.raises(RekindleError, match="has format 9; this Rekindle reads 1"):
        Archive(tmp_path / "later.rk")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(RekindleError, match="no archive"):
        Archive(tmp_path / "text")


def test_mutated_archives_end_in_values_or_a_sentence(tmp_path, monkeypatch):
    """A few hundred of what `make fuzz` makes a hundred thousand of."""
    import fuzz

    monkeypatch.setattr("rekindle.codec.archive.kernel", kernel)  # put back afterwards
    told = fuzz.fuzz(250, 7, kernel(), tmp_path)
    assert told["refused"] > 150
