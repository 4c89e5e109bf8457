"""A folder appears whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from rekindle.errors import RekindleError
from rekindle.store import publish
from rekindle.store.publish import check_free, explained, partial_path, publishing


@pytest.fixture
def out(tmp_path):
    return tmp_path / "home" / "out"


def write(out: Path, text: str = "new", **options) -> None:
    with publishing(out, **options) as folder:
        (folder / "sub").mkdir(exist_ok=True)
        (folder / "sub" / "file").write_text(text)
        assert not (out / "sub").exists() or (out / "sub" / "file").read_text() == "old"


def cut_short(out: Path, error: BaseException, **options) -> None:
    def fail(folder):
        (folder / "half").touch()
        raise error

    with pytest.raises(type(error)), publishing(out, **options) as folder:
        fail(folder)


def left(out: Path) -> set[str]:
    return {path.name for path in out.parent.iterdir()} if out.parent.exists() else set()


def test_out_appears_when_all_is_well(out):
    write(out)
    assert (out / "sub" / "file").read_text() == "new"
    assert left(out) == {"out"}


def test_an_empty_out_is_taken(out):
    out.mkdir(parents=True)
    write(out)
    assert left(out) == {"out"}


def test_out_that_is_not_empty_is_refused_before_anything_happens(out):
    write(out, "old")
    with pytest.raises(RekindleError, match="exists and is not empty") as refused:
        write(out)
    assert "--overwrite" in refused.value.hint
    assert (out / "sub" / "file").read_text() == "old"
    assert left(out) == {"out"}


def test_overwrite_replaces_the_whole_folder(out):
    write(out, "old")
    (out / "other").write_text("old")
    write(out, overwrite=True)
    assert {path.name for path in out.iterdir()} == {"sub"}
    assert (out / "sub" / "file").read_text() == "new"
    assert left(out) == {"out"}


@pytest.mark.parametrize("overwrite", [True, False])
def test_out_that_is_a_file_is_refused(out, overwrite):
    out.parent.mkdir()
    out.write_text("mine")
    with pytest.raises(RekindleError, match="is a file, not a folder"):
        write(out, overwrite=overwrite)
    assert out.read_text() == "mine"


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("target", [".", "nowhere"])
def test_out_that_is_a_link_is_refused(out, overwrite, target):
    """A rename would replace the link and leave what it names as it was."""
    out.parent.mkdir()
    out.symlink_to(target)
    with pytest.raises(RekindleError, match="is a link, not a folder"):
        write(out, overwrite=overwrite)


@pytest.mark.parametrize("name", [".", "..", "/", "../../home"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_out_that_holds_the_current_folder_is_refused(out, monkeypatch, name, overwrite):
    """`rekindle rewrite model . --overwrite` would delete the model, and all else that is here."""
    out.mkdir(parents=True)
    (out / "mine").touch()
    monkeypatch.chdir(out)
    with pytest.raises(RekindleError, match="holds the folder you are in"):
        check_free(Path(name), overwrite)
    assert (out / "mine").exists()


def test_out_inside_a_file_is_refused(out):
    out.parent.write_text("a file")
    with pytest.raises(RekindleError, match="is a file, not a folder"):
        write(out)


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_failure_leaves_out_as_it_was(out, overwrite):
    if overwrite:
        write(out, "old")
    cut_short(out, ZeroDivisionError(), overwrite=overwrite)
    assert left(out) == ({"out"} if overwrite else set())
    assert not overwrite or (out / "sub" / "file").read_text() == "old"


def test_what_was_cut_short_is_kept_for_resume(out):
    cut_short(out, KeyboardInterrupt(), keep_partial=True)
    assert left(out) == {partial_path(out).name}
    with publishing(out, keep_partial=True, resume=True) as folder:
        assert (folder / "half").exists()
    assert left(out) == {"out"}


def test_what_was_cut_short_is_dropped_without_resume(out):
    cut_short(out, KeyboardInterrupt(), keep_partial=True)
    with publishing(out, keep_partial=True, resume=False) as folder:
        assert not list(folder.iterdir())


def test_refusals_leave_nothing_even_where_the_partial_is_kept(out):
    cut_short(out, RekindleError("No."), keep_partial=True)
    assert left(out) == set()


def test_a_rename_that_fails_puts_the_old_out_back(out, monkeypatch):
    write(out, "old")
    rename = Path.rename

    def failing(self, target):
        if self == partial_path(out):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(RekindleError, match="Input/output error"):
        write(out, overwrite=True)
    assert (out / "sub" / "file").read_text() == "old"


def test_everything_is_flushed_before_the_rename(out, monkeypatch):
    flushed: list[Path] = []
    rename = Path.rename
    monkeypatch.setattr(publish, "sync", flushed.append)

    def renamed(self, target):
        assert {path.name for path in flushed} == {partial_path(out).name, "sub", "file"}
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", renamed)
    write(out)
    assert flushed[-1] == out.parent, "the rename itself is flushed too"


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        ("ENOSPC", "The disc is full"),
        ("EDQUOT", "The disc is full"),
        ("EACCES", "No permission to write here"),
        ("EPERM", "No permission to write here"),
        ("EROFS", "No permission to write here"),
        ("ENOTDIR", "This is a file, not a folder"),
        ("EFBIG", "takes no file this large"),
        ("EIO", "Input/output error"),
        ("ENAMETOOLONG", "File name too long"),
    ],
)
def test_the_systems_refusals_are_sentences(number, sentence, tmp_path):
    code = getattr(errno, number)
    with pytest.raises(RekindleError, match=sentence), explained(tmp_path):
        raise OSError(code, os.strerror(code))


def test_other_errors_are_not_explained_away(tmp_path):
    with pytest.raises(ZeroDivisionError), explained(tmp_path):
        raise ZeroDivisionError
    with pytest.raises(BrokenPipeError), explained(tmp_path):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_a_name_that_is_too_long(tmp_path):
    with pytest.raises(RekindleError, match="File name too long"):
        check_free(tmp_path / ("x" * 300), overwrite=False)
