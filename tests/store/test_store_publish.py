"""A folder appears whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rekindle.errors import RekindleError
from rekindle.store import publish
from rekindle.store.folder import open_folder
from rekindle.store.lock import alone
from rekindle.store.publish import check_free, check_spares, partial_path, publishing, retired_path
from rekindle.store.system import explained


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


@pytest.mark.parametrize(("out", "where"), [("/proc/x", "/proc/x"), ("file/x", "file"), ("file/x/y", "file")])
def test_what_is_said_is_of_names_that_were_given(tmp_path, monkeypatch, out, where):
    """Not of the locks and folders beside OUT."""
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(RekindleError) as refused, publishing(out):
        pass
    assert Path(os.path.abspath(refused.value.where)) == Path(os.path.abspath(where))


def test_other_errors_are_not_explained_away(tmp_path):
    with pytest.raises(ZeroDivisionError), explained(tmp_path):
        raise ZeroDivisionError
    with pytest.raises(BrokenPipeError), explained(tmp_path):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_a_name_that_is_too_long(tmp_path):
    with pytest.raises(RekindleError, match="File name too long"):
        check_free(tmp_path / ("x" * 300), overwrite=False)


# -- one writer at a time --------------------------------------------------------------------------------------

WRITER = """
import os, sys, time
from pathlib import Path
from rekindle.errors import RekindleError
from rekindle.store.publish import publishing
try:
    with publishing(sys.argv[1], keep_partial=True, resume=True, overwrite=True) as folder:
        for i in range(40):
            (folder / f"{i}").write_text(sys.argv[2])
            time.sleep(0.0005)
        assert {path.read_text() for path in folder.iterdir()} == {sys.argv[2]}
except RekindleError as error:
    print(error.what)
"""


def writers(out: Path, count: int) -> list[str]:
    """What processes that were started at once say."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(out), str(i)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for i in range(count)
    ]
    ended = [process.communicate() for process in running]
    assert not [error for _, error in ended if error]
    return [said.strip() for said, _ in ended]


def test_of_writers_at_once_one_writes_and_the_others_are_refused(out):
    for _ in range(4):
        shutil.rmtree(out, ignore_errors=True)
        said = writers(out, 4)
        assert "" in said
        assert set(said) <= {"", f"Another process is writing {out}."}
        texts = {path.read_text() for path in out.iterdir()}
        assert len(texts) == 1, "of one writer"
        assert said[int(texts.pop())] == ""
        assert left(out) == {"out"}


def test_a_lock_whose_process_was_killed_is_no_lock(out):
    text = WRITER.replace("time.sleep(0.0005)", "os.kill(os.getpid(), 9)")
    assert subprocess.run([sys.executable, "-c", text, str(out), "0"], check=False).returncode == -9
    assert left(out) == {".out.lock", ".out.partial"}
    write(out)
    assert left(out) == {"out"}


def test_what_appeared_while_one_waited_for_the_lock_is_seen(out, monkeypatch):
    alone = publish.alone

    def late(*how):
        out.mkdir(parents=True)
        (out / "theirs").touch()
        return alone(*how)

    monkeypatch.setattr(publish, "alone", late)
    with pytest.raises(RekindleError, match="exists and is not empty"):
        write(out)
    assert (out / "theirs").exists()


def test_a_lock_that_is_shared(tmp_path):
    lock = tmp_path / "lock"
    with alone(lock, "first", shared=True):
        with alone(lock, "second", shared=True), pytest.raises(RekindleError, match="Another process is third"):
            alone(lock, "third").__enter__()
        assert lock.exists(), "one holds it still"
        with pytest.raises(RekindleError, match="Another process is third"):
            alone(lock, "third").__enter__()
    assert not lock.exists()
    with alone(lock, "third"), pytest.raises(RekindleError, match="Another process is first"):
        alone(lock, "first", shared=True).__enter__()


# -- places that are not ours ----------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [partial_path, retired_path])
@pytest.mark.parametrize("resume", [True, False])
def test_a_hidden_folder_that_is_a_link_is_neither_followed_nor_emptied(out, tmp_path, hidden, resume):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "theirs").write_text("theirs")
    out.parent.mkdir()
    hidden(out).symlink_to(victim)
    with pytest.raises(RekindleError, match="is no folder, or a link to one"):
        write(out, keep_partial=True, resume=resume)
    assert (victim / "theirs").read_text() == "theirs"
    assert hidden(out).is_symlink()
    assert not out.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
@pytest.mark.parametrize("resume", [True, False])
def test_a_hidden_folder_of_another_user_is_refused(out, resume):
    partial_path(out).mkdir(parents=True)
    (partial_path(out) / "theirs").touch()
    os.chown(partial_path(out), 65534, 65534)
    with pytest.raises(RekindleError, match="is another user's"):
        write(out, keep_partial=True, resume=resume)
    assert (partial_path(out) / "theirs").exists()


def test_a_lock_that_is_a_link_makes_no_file(out, tmp_path):
    out.parent.mkdir()
    (out.parent / ".out.lock").symlink_to(tmp_path / "made")
    with pytest.raises(RekindleError, match="symbolic links"):
        write(out)
    assert not (tmp_path / "made").exists()


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="mounting needs root")
@pytest.mark.parametrize("kind", [["-t", "tmpfs", "tmpfs"], ["--bind"]])
def test_a_mount_point_is_refused_before_anything_is_computed(out, tmp_path, kind):
    out = out.with_name("o u t")
    out.mkdir(parents=True)
    (tmp_path / "volume").mkdir()
    what = [*kind, str(tmp_path / "volume")] if kind == ["--bind"] else kind
    if subprocess.run(["mount", *what, str(out)], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        for overwrite in (True, False):
            with pytest.raises(RekindleError, match="is a mount point") as refused:
                check_free(out, overwrite)
            assert refused.value.hint == str(out / "run")
        write(out / "run")
        assert (out / "run" / "sub" / "file").read_text() == "new"
    finally:
        subprocess.run(["umount", str(out)], check=True)


def test_a_name_that_is_no_text_is_refused(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    with pytest.raises(RekindleError, match="is not UTF-8") as refused:
        check_free(tmp_path / name, overwrite=False)
    assert str(refused.value).encode()
    with pytest.raises(RekindleError, match="is not UTF-8"):
        check_spares(tmp_path / "out", tmp_path / name)


# -- what must survive -----------------------------------------------------------------------------------------


def test_out_must_not_hold_what_is_read(out, tmp_path):
    for name in ("run.rk", "text/c.jsonl"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).touch()
    (tmp_path / "link").symlink_to(out / "text")
    for inside in (out / "run.rk", out / "text" / "c.jsonl", out / "text", tmp_path / "link", out):
        with pytest.raises(RekindleError, match="which is read"):
            check_spares(out, None, inside)
    with pytest.raises(RekindleError, match=r"holds the source, .*run\.rk"):
        check_spares(out, out / "run.rk")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(out))
        for inside in ("~/text/c.jsonl", "~"):
            with pytest.raises(RekindleError, match="~.*which is read"):
                check_spares(out, None, inside)
        check_spares(out, None, "~nobody-by-this-name/text")
    check_spares(out, tmp_path / "source", None, tmp_path / "elsewhere", out / "not-there", "stdlib")


def test_out_is_not_the_source_and_does_not_lie_in_it(out, tmp_path, monkeypatch):
    (out / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to(out)
    monkeypatch.chdir(out.parent)
    for same in (out, tmp_path / "link", "out", "out/sub/..", "../link", f"{tmp_path}/link/sub/../../out/."):
        with pytest.raises(RekindleError, match="is the source, and would be replaced"):
            check_spares(out, same)
        check_spares(out, same, in_place=True)
        for inside in (out / "new", out / "sub" / "new", tmp_path / "link" / "new", Path("out/sub/../new")):
            with pytest.raises(RekindleError, match="lies in the source"):
                check_spares(inside, same)
    check_spares(out.with_name("outer"), out)


def test_between_the_two_renames_of_a_replacement(out):
    """A kill there leaves OUT hidden: whoever comes back hears where it is, and nothing is lost on the way."""
    write(out, "old")
    out.rename(retired_path(out))
    with pytest.raises(RekindleError, match="was being replaced when that was cut short") as refused:
        write(out)
    assert str(retired_path(out)) in refused.value.what
    assert f"mv {retired_path(out)} {out}" in refused.value.hint
    assert (retired_path(out) / "sub" / "file").read_text() == "old"
    with pytest.raises(RekindleError, match="does not exist") as unopened:
        open_folder(out)
    assert f"mv {retired_path(out)} {out}" in unopened.value.hint
    with publishing(out, overwrite=True) as folder:
        assert retired_path(out).exists(), "until the new one is there"
        (folder / "file").touch()
    assert left(out) == {"out"}


def test_a_full_disc_is_a_sentence_in_every_library_s_words(tmp_path):
    """safetensors gives no number, but the words of another language."""
    from safetensors import SafetensorError

    with pytest.raises(RekindleError, match="The disc is full"), explained(tmp_path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(SafetensorError), explained(tmp_path):
        raise SafetensorError("Error while deserializing header: invalid UTF-8")
