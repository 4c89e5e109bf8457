"""The pass before the write: each thing looked at once, in order, kept beside the result."""

from __future__ import annotations

import numpy as np
import pytest
from edit.test_expressions import Memory

from rekindle.apply.measure import fingerprint, read_found, settle, write_found
from rekindle.edit.measure import Measurement, Statistics
from rekindle.errors import RekindleError


class Counted(Measurement):
    """Finds how often it looked; `after`: what must have been found before."""

    looked: list[str] = []

    def __init__(self, name, after=(), data=""):
        super().__init__(name, (), data)
        self.after = after

    def find(self, reader, activations):
        assert all(m.found is not None for m in self.after)
        self.looked.append(self.name)
        return {"text": np.asarray(0 if activations is None else activations), "name": np.arange(len(self.name))}


def found(*wanted, known=(), calibrate=None, workers=2):
    Counted.looked.clear()
    progress = []
    made = settle(wanted, workers=workers, known=dict(known), calibrate=calibrate, progress=progress.append)
    return made, sorted(Counted.looked), progress


def test_equal_names_are_looked_at_once_and_all_settled():
    one, same, other = Counted("a"), Counted("a"), Counted("b")
    made, looked, progress = found(one, same, other)
    assert looked == ["a", "b"]
    assert one.found is same.found
    assert list(made) == ["a", "b"]
    assert len(progress) == 2


def test_what_is_known_is_not_looked_at():
    m = Counted("a")
    _, looked, progress = found(m, known={"a": {"text": np.float32(3)}}, calibrate=None)
    assert looked == []
    assert m.found["text"] == 3
    assert progress == [0]


def test_a_text_is_run_once_for_all_that_ask_and_only_then():
    texts = []
    ask = [Counted("a", data="stdlib:1k"), Counted("b", data="stdlib:1k"), Counted("c", data="other"), Counted("d")]
    _, looked, _ = found(*ask, calibrate=lambda source, text: texts.append(text) or len(texts))
    assert looked == ["a", "b", "c", "d"]
    assert sorted(texts) == ["other", "stdlib:1k"]
    assert ask[0].found["text"] == ask[1].found["text"] != ask[2].found["text"]
    found(Counted("a", data="stdlib:1k"), known={"a": {}} | {"a": {"text": np.zeros(())}}, calibrate=None)


def test_what_was_found_is_read_back_shape_and_all(tmp_path):
    arrays = {
        "std": np.asarray(0.5, np.float32),
        "turn": np.eye(3)[None, :, ::-1],
        "groups": np.arange(4).reshape(2, 2),
    }
    write_found(tmp_path, {"pooling/layer.0": arrays, "statistics/a.b": {"std": np.asarray(1, np.float32)}}, {})
    back = read_found(tmp_path)
    assert {(name, key): a.shape for name, keys in back.items() for key, a in keys.items()} == {
        ("pooling/layer.0", "std"): (), ("pooling/layer.0", "turn"): (1, 3, 3), ("pooling/layer.0", "groups"): (2, 2),
        ("statistics/a.b", "std"): (),
    }  # fmt: skip
    for key, a in arrays.items():
        np.testing.assert_array_equal(back["pooling/layer.0"][key], a)
        assert back["pooling/layer.0"][key].dtype == a.dtype
    assert fingerprint(back) == fingerprint({"statistics/a.b": back["statistics/a.b"], "pooling/layer.0": arrays})
    assert fingerprint(back) != fingerprint({"pooling/layer.0": arrays})


def test_nothing_measured_leaves_nothing(tmp_path):
    write_found(tmp_path, {}, {})
    assert not list(tmp_path.iterdir())
    with pytest.raises(RekindleError, match="No measurements were kept"):
        read_found(tmp_path)


def test_numbers_read_back_are_numbers(tmp_path):
    reader = Memory()
    leaf = reader.leaf(np.arange(6, dtype=np.float32).reshape(2, 3))
    first, second = Statistics(leaf), Statistics(leaf)
    first.settle(first.find(reader, None))
    write_found(tmp_path, {first.name: first.found}, {})
    second.settle(read_found(tmp_path)[second.name])
    from rekindle.edit.measure import number

    assert number(second["std"] * 2) == number(first["std"] * 2)
