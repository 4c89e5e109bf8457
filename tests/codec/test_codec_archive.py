"""Archives: folders come back to the byte, steps by name, changes that leave the rest alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import rekindle
from rekindle import api
from rekindle.errors import RekindleError

STEPS = (100, 200, 300, 400)


def checkpoint(folder, step, *, n=40, dtype=np.float32, extra=None):
    """A folder with weights that move a little from step to step, moments, and the files beside them."""
    fixed, moved = np.random.default_rng(0), np.random.default_rng(step)
    tensors = {
        name: (fixed.normal(size=shape) + 1e-3 * moved.normal(size=shape)).astype(dtype)
        for name, shape in {
            "model.embed.weight": (n, 16),
            "model.norm.weight": (16,),
            "model.up.weight": (300, n),
        }.items()
    }
    tensors["model.position_ids"] = np.arange(50)
    tensors |= extra or {}
    (folder / "optimizer").mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt", "step": str(step)})
    moments = {}
    for name, x in tensors.items():
        second = np.exp(fixed.normal(size=x.shape) + 0.01 * moved.normal(size=x.shape))
        moments[f"{name}.exp_avg_sq"] = np.asarray(second, np.float32)
        moments[f"{name}.exp_avg"] = np.asarray(moved.normal(size=x.shape) * np.sqrt(second), np.float32)
    save_file(moments, folder / "optimizer" / "optimizer.safetensors")
    (folder / "config.json").write_text('{"model_type": "llama"}\n')
    (folder / "state.json").write_text(json.dumps({"step": step}))
    (folder / "empty").write_bytes(b"")
    return folder


def same(a, b):
    files = [sorted(p.relative_to(x).as_posix() for p in x.rglob("*") if p.is_file()) for x in (a, b)]
    assert files[0] == files[1]
    for name in files[0]:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


@pytest.fixture
def series(tmp_path):
    return [checkpoint(tmp_path / f"step-{step}", step) for step in STEPS]


@pytest.fixture
def packed(tmp_path, series):
    api.pack(series, tmp_path / "run.rk", keyframe_every=3)
    return tmp_path / "run.rk"


def test_every_step_comes_back_to_the_byte(tmp_path, series, packed):
    for folder, step in zip(series, STEPS):
        api.unpack(f"{packed}@{step}", tmp_path / f"out-{step}")
        same(folder, tmp_path / f"out-{step}")
    found = api.archive_info(packed)
    assert [x["step"] for x in found["steps"]] == list(STEPS)
    assert [x["keyframe"] for x in found["steps"]] == [True, False, False, True]
    assert found["steps"][1]["bytes"] < found["steps"][0]["bytes"]
    assert api.archive_verify(packed) == []
    api.unpack(packed, tmp_path / "last")
    same(series[-1], tmp_path / "last")


def test_numbered_folders_are_packed_by_their_numbers(tmp_path, series):
    api.pack(list(reversed(series)), tmp_path / "r.rk")
    assert [x["step"] for x in api.archive_info(tmp_path / "r.rk")["steps"]] == list(STEPS)


def test_the_same_bytes_whatever_the_workers(tmp_path, series, packed):
    api.pack(series, tmp_path / "one.rk", keyframe_every=3, workers=1)
    assert (tmp_path / "one.rk").read_bytes() == packed.read_bytes()


@pytest.mark.parametrize("tier", ["fast", "max"])
def test_numpy_writes_the_same_bytes(tmp_path, series, monkeypatch, tier):
    from rekindle.codec import fallback, kernel

    packed = tmp_path / "c.rk"
    api.pack(series, packed, keyframe_every=3, tier=tier)
    monkeypatch.setattr("rekindle.codec.pack.kernel", lambda: fallback.Numpy())
    monkeypatch.setattr("rekindle.codec.archive.kernel", lambda: fallback.Numpy())
    api.pack(series, tmp_path / "numpy.rk", keyframe_every=3, tier=tier, workers=1)
    assert (tmp_path / "numpy.rk").read_bytes() == packed.read_bytes()
    assert api.archive_verify(packed, workers=1) == []
    assert kernel.kernel().name in ("C", "numpy")


def test_one_tensor_and_rows_of_it(series, packed):
    from safetensors.numpy import load_file

    weights = load_file(series[1] / "model.safetensors")
    with rekindle.Archive(packed) as archive:
        assert list(archive) == list(STEPS)
        step = archive[200]
        assert set(weights) < set(step)
        for name, x in weights.items():
            assert step[name].dtype == x.dtype
            assert np.array_equal(step[name], x)
        assert np.array_equal(step["model.up.weight", 7:100:9], weights["model.up.weight"][7:100:9])
        assert step["model.up.weight", 5:5].shape == (0, 40)
        with pytest.raises(RekindleError, match="no tensor 'model.down'"):
            step["model.down"]
        with pytest.raises(RekindleError, match="no step 7"):
            archive[7]


def test_what_was_read_cannot_be_written_into(packed):
    with rekindle.Archive(packed) as archive:
        found = archive[200]["model.norm.weight"]
        with pytest.raises(ValueError, match="read-only"):
            found[:] = 7


def test_a_link_to_an_archive_is_that_archive(tmp_path, packed):
    from rekindle.codec.pack import lock_of
    from rekindle.store.lock import alone

    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link.rk").symlink_to(packed)
    more = checkpoint(tmp_path / "step-500", 500)
    with alone(lock_of(packed), "adding"), pytest.raises(RekindleError, match="Another process"):
        api.archive_add(more, tmp_path / "elsewhere" / "link.rk")
    api.archive_add(more, tmp_path / "elsewhere" / "link.rk")
    api.archive_drop(f"{tmp_path / 'elsewhere' / 'link.rk'}@100")
    assert (tmp_path / "elsewhere" / "link.rk").is_symlink()
    assert [x["step"] for x in api.archive_info(packed)["steps"]] == [200, 300, 400, 500]


@pytest.mark.parametrize("first", ["add", "pack"])
@pytest.mark.parametrize("second", ["add", "pack"])
def test_of_two_runs_into_one_archive_the_second_is_refused(tmp_path, series, packed, monkeypatch, first, second):
    """Else a new archive takes the place of one whose last step has just been reported to be there."""
    from rekindle.codec import pack

    (tmp_path / "link.rk").symlink_to(packed)
    more, real = [checkpoint(tmp_path / f"step-{step}", step) for step in (500, 600)], pack.add_step
    runs = {
        "add": lambda place: api.archive_add(more, place),
        "pack": lambda place: api.pack(more, place, overwrite=True),
    }

    def meddling(*args, **options):
        monkeypatch.setattr(pack, "add_step", real)
        with pytest.raises(RekindleError, match="Another process is writing link.rk"):
            runs[second](tmp_path / "link.rk")
        return real(*args, **options)

    monkeypatch.setattr(pack, "add_step", meddling)
    runs[first](packed)
    assert [x["step"] for x in api.archive_info(packed)["steps"]] == [*(STEPS if first == "add" else ()), 500, 600]
    runs["pack"](tmp_path / "link.rk")
    assert (tmp_path / "link.rk").is_symlink()
    assert packed.is_file()
    assert not list(tmp_path.glob(".*"))


def test_an_archive_that_is_being_changed_is_not_replaced(tmp_path, series, packed):
    from rekindle.codec.pack import lock_of
    from rekindle.store.lock import alone

    before = packed.read_bytes()
    with alone(lock_of(packed), "dropping"), pytest.raises(RekindleError, match="Another process is changing run.rk"):
        api.pack(series[:1], packed, overwrite=True)
    assert packed.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_many_checkpoints_need_few_open_files(tmp_path):
    import resource

    folders = [checkpoint(tmp_path / f"step-{step}", step) for step in range(40)]
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 40, limits[1]))
    try:
        api.pack(folders, tmp_path / "x.rk")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(api.archive_info(tmp_path / "x.rk")["steps"]) == 40


def test_a_dropped_step_leaves_the_others(tmp_path, series, packed):
    for step in (200, 400, 100):
        api.archive_drop(f"{packed}@{step}")
        assert api.archive_verify(packed) == []
    assert [x["step"] for x in api.archive_info(packed)["steps"]] == [300]
    api.unpack(f"{packed}@300", tmp_path / "out")
    same(series[2], tmp_path / "out")
    with pytest.raises(RekindleError, match="no step 200"):
        api.archive_drop(f"{packed}@200")
    with pytest.raises(RekindleError, match="Which step"):
        api.archive_drop(packed)


def test_steps_are_added(tmp_path, packed):
    more = checkpoint(tmp_path / "step-500", 500)
    api.archive_add(more, packed)
    assert not api.archive_info(packed)["steps"][-1]["keyframe"]
    with pytest.raises(RekindleError, match="step 500 already"):
        api.archive_add(more, packed)
    assert api.archive_verify(packed) == []
    plain = checkpoint(tmp_path / "plain", 0)
    (plain / "state.json").unlink()
    with pytest.raises(RekindleError, match="has no step number"):
        api.archive_add(plain, packed)
    api.archive_add(plain, packed, step=600)
    assert api.archive_info(packed)["steps"][-1]["step"] == 600


def test_without_numbers_steps_go_by_position(tmp_path):
    folders = [checkpoint(tmp_path / name, i) for i, name in enumerate(("a", "b"))]
    for folder in folders:
        (folder / "state.json").unlink()
    api.pack(folders, tmp_path / "x.rk")
    assert [x["step"] for x in api.archive_info(tmp_path / "x.rk")["steps"]] == [0, 1]
    with pytest.raises(RekindleError, match="this very checkpoint"):
        api.archive_add(folders[0], tmp_path / "x.rk")
    with pytest.raises(RekindleError, match="step number, and those in the archive have no"):
        api.archive_add(folders[0], tmp_path / "x.rk", step=3)
    assert api.archive_verify(tmp_path / "x.rk") == []


@pytest.mark.parametrize("gone", [0, 1, 2, 3])
def test_a_dropped_step_leaves_the_others_their_places(tmp_path, gone):
    folders = [checkpoint(tmp_path / f"run-{i}-x", i) for i in range(4)]
    for folder in folders:
        (folder / "state.json").unlink()
    api.pack(folders, tmp_path / "x.rk", keyframe_every=2)
    api.archive_drop(f"{tmp_path / 'x.rk'}@{gone}")
    left = [i for i in range(4) if i != gone]
    assert [x["step"] for x in api.archive_info(tmp_path / "x.rk")["steps"]] == left
    assert api.archive_verify(tmp_path / "x.rk") == []
    for i in left:
        api.unpack(f"{tmp_path / 'x.rk'}@{i}", tmp_path / f"out-{i}")
        same(folders[i], tmp_path / f"out-{i}")


def test_tensors_come_and_go_and_change_their_shape(tmp_path):
    """Frozen, added, removed, reshaped, of another dtype; zero-size, 0-d, odd, special values; sharded anew."""
    odd = np.array([np.nan, -0.0, 0.0, np.inf, -np.inf, 1e-45, -1e-45], np.float32)
    payload = np.array([0x7F800001, 0xFFC12345, 0x80000000], np.uint32).view(np.float32)
    frozen = {"frozen": np.ones((64, 64), np.float32), "none": np.zeros((0, 4), np.float32), "one": np.array(3.0)}
    first = checkpoint(tmp_path / "step-1", 1, extra=frozen | {"old": odd, "wide": np.ones((4, 6), np.float16)})
    second = checkpoint(tmp_path / "step-2", 2, n=44, extra=frozen | {"new": payload, "wide": np.ones((4, 6))})
    third = checkpoint(
        tmp_path / "step-3", 3, n=44, dtype=np.float16, extra=frozen | {"flags": np.array([True, False, True])}
    )
    tensors = {"a": odd, "b": np.arange(7, dtype=np.uint8), "c": np.arange(-9, 9, dtype=np.int16)}
    save_file(tensors, third / "model-00002.safetensors")
    fourth = checkpoint(tmp_path / "step-4", 4, n=44, dtype=np.float16)
    api.pack([first, second, third, fourth], tmp_path / "x.rk")
    for folder in (first, second, third, fourth):
        api.unpack(f"{tmp_path / 'x.rk'}@{folder.name[5:]}", tmp_path / f"out-{folder.name}")
        same(folder, tmp_path / f"out-{folder.name}")
    assert api.archive_verify(tmp_path / "x.rk") == []
    rows = {row["name"]: row for row in api.archive_diff(tmp_path / "x.rk", 1, 2)}
    assert rows["frozen"]["what"] == "same"
    assert rows["old"]["what"] == "removed"
    assert rows["new"]["what"] == "added"
    assert rows["wide"]["what"] == "reshaped"
    assert rows["model.norm.weight"]["largest"] > 0
    assert rows["model.norm.weight"]["changed"] == 1


def test_one_name_in_two_files_is_two_tensors(tmp_path):
    folder = tmp_path / "adapters"
    for name in ("first", "second"):
        (folder / name).mkdir(parents=True)
        save_file({"lora.weight": np.full(5, len(name), np.float32)}, folder / name / "adapter.safetensors")
    api.pack(folder, tmp_path / "x.rk")
    api.unpack(tmp_path / "x.rk", tmp_path / "out")
    same(folder, tmp_path / "out")
    with rekindle.Archive(tmp_path / "x.rk") as archive:
        assert archive[0]["second/adapter.safetensors:lora.weight"].tolist() == [6.0] * 5


def test_a_reference_changed_on_disc_meanwhile_is_not_used(tmp_path, series, monkeypatch):
    """What the archive holds counts: the folder of the step before is only a faster way to the same values."""
    from rekindle.codec import pack

    real = pack.add_step

    def meddling(path, source, step, **options):
        if step == 200:
            weights = bytearray((series[0] / "model.safetensors").read_bytes())
            weights[-5000:] = bytes(5000)
            (series[0] / "model.safetensors").write_bytes(weights)
        return real(path, source, step, **options)

    monkeypatch.setattr(pack, "add_step", meddling)
    api.pack(series[:2], tmp_path / "x.rk")
    assert api.archive_verify(tmp_path / "x.rk") == []
    api.unpack(f"{tmp_path / 'x.rk'}@200", tmp_path / "out")
    same(series[1], tmp_path / "out")


@pytest.mark.parametrize("whole", [True, False], ids=["folder", "file"])
@pytest.mark.parametrize("replaced", [True, False], ids=["replaced", "in place"])
def test_a_source_changed_while_it_is_packed_is_refused(tmp_path, packed, monkeypatch, whole, replaced):
    """What was read first would be of one state, and the rest of another."""
    from rekindle.codec import pack

    real, folder = pack.write_step, checkpoint(tmp_path / "step-500", 500)
    weights, before = folder / "model.safetensors", packed.read_bytes()
    source = folder if whole else weights

    def meddling(*args):
        target = tmp_path / "new" if replaced else weights
        target.write_bytes(weights.read_bytes()[:-1] + b"!")
        target.replace(weights)
        return real(*args)

    monkeypatch.setattr(pack, "write_step", meddling)
    with pytest.raises(RekindleError, match="source was changed while it was read: model.safetensors"):
        api.archive_add(source, packed, step=500)
    assert packed.read_bytes() == before
    with pytest.raises(RekindleError, match="source was changed while it was read: model.safetensors"):
        api.pack(source, tmp_path / "new.rk")
    assert not (tmp_path / "new.rk").exists()
    monkeypatch.undo()
    api.archive_add(source, packed, step=500)
    api.unpack(packed, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights.read_bytes()


@pytest.mark.parametrize("place", [".", "optimizer"])
def test_a_file_that_comes_while_it_is_packed_is_a_change_too(tmp_path, packed, monkeypatch, place):
    """The checkpoint would lack it, as if it were whole."""
    from rekindle.codec import pack

    real, folder, before = pack.write_step, checkpoint(tmp_path / "step-500", 500), packed.read_bytes()

    def meddling(*args):
        (folder / place / "late.json").write_text("{}")
        return real(*args)

    monkeypatch.setattr(pack, "write_step", meddling)
    with pytest.raises(RekindleError, match="source was changed while it was read"):
        api.archive_add(folder, packed)
    assert packed.read_bytes() == before
    monkeypatch.undo()
    api.archive_add(folder, packed)
    api.unpack(packed, tmp_path / "out")
    assert (tmp_path / "out" / place / "late.json").exists()


def test_an_archive_within_a_checkpoint_is_told(tmp_path, packed):
    folder = checkpoint(tmp_path / "step-500", 500)
    (folder / "old.rk").write_bytes(packed.read_bytes())
    for dry in (True, False):
        notes = api.pack(folder, tmp_path / "x.rk", dry_run=dry)["notes"]
        assert [note.split(":")[0] for note in notes] == [f"old.rk in {folder} is an archive itself"]
    with pytest.raises(RekindleError, match="is an archive of .* steps, not a checkpoint") as refused:
        api.pack(packed, tmp_path / "y.rk")
    last = api.archive_info(packed)["steps"][-1]["step"]
    assert refused.value.hint.startswith(f"{packed}@{last}, its last")
    with pytest.raises(RekindleError, match="not a checkpoint"):
        api.inspect(packed)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: api.pack(p / "nowhere", p / "x.rk"), "no checkpoint"),
        (lambda p: api.pack(p / "step-100", p), "is a folder"),
        (lambda p: api.pack(p / "step-100", p / "run.rk"), "exists"),
        (lambda p: api.pack(p / "step-100", p / "x.rk", keyframe_every=0), "keyframe_every is 0"),
        (lambda p: api.pack(p / "step-100", p / "x.rk", tier="best"), "no tier 'best'"),
        (lambda p: api.pack([p / "step-100", p / "step-200"], p / "x.rk", step=3), "names one checkpoint"),
        (lambda p: api.pack(p / "step-100", p / "run.rk", mode="lossy", overwrite=True), "no mode 'lossy'"),
        (lambda p: api.pack(p / "step-100", p / "step-100" / "x.rk"), "packed into itself"),
        (lambda p: api.pack(p / "step-100", p / "x.rk", step=-1), "-1 is no step"),
        (lambda p: api.archive_add(p / "step-100", p / "run.rk", step=2**62), "is no step"),
        (lambda p: api.pack(p / "step-100", p / "x.rk", keyframe_every=1000), "from 1 to 100"),
        (lambda p: api.pack(p / "step-100", p / "nowhere" / "x.rk"), "is not there"),
        (lambda p: api.pack(p / "step-100", p / "step-200" / "state.json", overwrite=True), "no archive"),
        (lambda p: api.unpack(f"{p / 'run.rk'}@\u00b2", p / "out"), "is no step"),
        (lambda p: api.unpack(p / "step-100" / "config.json", p / "out"), "no archive"),
        (lambda p: api.unpack(p / "none.rk", p / "out"), "cannot be read"),
        (lambda p: api.unpack(f"{p / 'run.rk'}@last", p / "out"), "'last' is no step"),
        (lambda p: api.unpack(f"{p / 'run.rk'}@5", p / "out"), "no step 5"),
        (lambda p: api.unpack(p / "run.rk", p / "step-100"), "not empty"),
        (lambda p: api.pack(p / "step-100", p / "x.rk", mode="lossless", error="rel:1e-3"), "mode of its own"),
        (lambda p: api.pack([p / "step-100", p / "step-100"], p / "x.rk"), "are step 100"),
        (lambda p: api.pack(p / "step-100", p / "x.rk", workers=0), "workers is 0"),
        (lambda p: api.pack(p / "step-100", p / "x.rk", workers=-1, dry_run=True), "workers is -1"),
        (lambda p: api.archive_add(p / "step-100", p / "run.rk", step=7, workers=0), "workers is 0"),
        (lambda p: api.unpack(p / "run.rk", p / "out", workers=-1), "workers is -1"),
        (lambda p: api.unpack(p / "run.rk", p / "out", workers=0), "workers is 0"),
        (lambda p: api.archive_verify(p / "run.rk", workers=0), "workers is 0"),
        (lambda p: api.archive_drop(f"{p / 'run.rk'}@100", workers=-1), "workers is -1"),
        (lambda p: rekindle.Archive(p), "is a folder"),
        (lambda p: rekindle.Archive(p / "run.rk")[200]["w", 1:2, 3], "are no rows"),
    ],
)
def test_a_wrong_request_is_refused_in_a_sentence(tmp_path, packed, make, said):
    before = packed.read_bytes()
    with pytest.raises(RekindleError, match=said):
        make(tmp_path)
    assert packed.read_bytes() == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["a\\b.txt", "sub/a\\b.txt", "a\\b.safetensors"])
@pytest.mark.parametrize("dry", [True, False])
def test_a_name_that_is_another_elsewhere_is_refused_before_anything_is_written(tmp_path, series, packed, name, dry):
    folder, before = tmp_path / "odd", packed.read_bytes()
    shutil.copytree(tmp_path / "step-100", folder)
    (folder / name).parent.mkdir(exist_ok=True)
    shutil.copy(next(folder.glob("*.safetensors")), folder / name)
    for path in (folder, folder / name):
        with pytest.raises(RekindleError, match="it has a backslash in its name") as caught:
            api.pack(path, tmp_path / "x.rk", dry_run=dry)
        assert caught.value.where == folder / name
        with pytest.raises(RekindleError, match="it has a backslash in its name"):
            api.archive_add(path, packed, step=900, dry_run=dry)
    assert not (tmp_path / "x.rk").exists()
    assert packed.read_bytes() == before


def test_an_archive_is_replaced_when_the_new_one_is_whole(tmp_path, series, packed, monkeypatch):
    from rekindle.codec import pack

    before, real = packed.read_bytes(), pack.add_step

    def full(path, source, step, **options):
        if step == 200:
            raise RekindleError("The disc is full.")
        return real(path, source, step, **options)

    monkeypatch.setattr(pack, "add_step", full)
    with pytest.raises(RekindleError, match="disc is full"):
        api.pack(series, packed, overwrite=True)
    assert packed.read_bytes() == before
    monkeypatch.undo()
    api.pack(series[:2], packed, overwrite=True)
    assert [x["step"] for x in api.archive_info(packed)["steps"]] == [100, 200]
    assert {path.name for path in tmp_path.iterdir()} == {"run.rk", *(folder.name for folder in series)}


def test_what_cannot_come_back_is_not_packed(tmp_path, series):
    (series[0] / "a\\b").write_text("a name that other systems take for a path")
    with pytest.raises(RekindleError, match="cannot be kept in an archive"):
        api.pack(series[0], tmp_path / "x.rk")
    (series[0] / "a\\b").unlink()
    (series[0] / "more").symlink_to(series[1])
    with pytest.raises(RekindleError, match="link to a folder"):
        api.pack(series[0], tmp_path / "y.rk")


def test_a_truncated_checkpoint_is_refused_before_anything_is_replaced(tmp_path, series, packed):
    data = (series[2] / "model.safetensors").read_bytes()
    (series[2] / "model.safetensors").write_bytes(data[:-10])
    before = packed.read_bytes()
    with pytest.raises(RekindleError, match="broken"):
        api.pack(series, packed, overwrite=True)
    assert packed.read_bytes() == before
