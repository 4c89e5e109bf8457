"""docs/format.md holds: a reader written from it alone reads archives of today, and today's reads those of the past."""

from __future__ import annotations

import hashlib
from pathlib import Path

import fuzz
import pytest
from reader import read

from rekindle import api
from rekindle.codec.archive import Archive
from rekindle.codec.block import Codec, From

GOLDEN = Path(__file__).parent / "golden"


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("tier", ["fast", "max"])
def test_a_reader_written_from_the_page_reads_archives(tmp_path, tier):
    folders = [fuzz._folder(tmp_path / f"step-{step}", 600, step) for step in (1, 2, 3)]
    (folders[2] / "same.txt").write_bytes((folders[1] / "notes.txt").read_bytes())
    fuzz.pack(folders, tmp_path / "x.rk", tier)
    found = read((tmp_path / "x.rk").read_bytes())
    assert found == {step: files_of(folder) for step, folder in zip((1, 2, 3), folders)}


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.glob("*.rk")))
def test_golden_archives_stay_readable(tmp_path, name):
    sums = dict(reversed(line.split("  ")) for line in (GOLDEN / "SHA256SUMS").read_text().splitlines())
    assert api.archive_verify(GOLDEN / name) == []
    for step, files in read((GOLDEN / name).read_bytes()).items():
        api.unpack(f"{GOLDEN / name}@{step}", tmp_path / f"{step}")
        assert files_of(tmp_path / f"{step}") == files
        for path, data in files.items():
            assert sums[f"{name}@{step}/{path}"] == hashlib.sha256(data).hexdigest()


def test_golden_archives_hold_every_codec():
    seen, origins = set(), set()
    for path in GOLDEN.glob("*.rk"):
        with Archive(path) as archive:
            for step in archive:
                entry = archive[step].entry
                heads = [archive.read(entry.offset + block.offset, 4) for block in archive[step].index.blocks]
                seen |= {head[0] for head in heads}
                origins |= {(head[2], head[3] > 0) for head in heads if head[0] in (Codec.DELTA, Codec.ADAPTIVE)}
    assert seen == set(Codec)
    assert origins >= {(From.REFERENCE, False), (From.GRID, False), (From.REFERENCE, True)}
