"""Every field of an expression is part of what it is: another value is another signature, and what is measured in it
is found. Of every class there is.
"""

from __future__ import annotations

import copy
from importlib import import_module
from pkgutil import walk_packages
from typing import NamedTuple

import numpy as np
import pytest

import rekindle.edit
import rekindle.methods
from rekindle.edit.arithmetic import Alike, Cast, Computed, Fill, Fresh, Normal, Rounded, Scale, Sum, Twin
from rekindle.edit.choose import Chosen
from rekindle.edit.combine import Dropped, Elected, Kept, Linear
from rekindle.edit.expressions import Columns, Expr, Leaf, Rows, Transposed, fields_of, signature
from rekindle.edit.heads import Folded, Heads
from rekindle.edit.joining import Beside, Joined
from rekindle.edit.keyed import Keyed
from rekindle.edit.lowrank import LowRank
from rekindle.edit.measure import Found, Measurement, Statistics, measurements
from rekindle.edit.weighing import Products, Sizes
from rekindle.errors import RekindleError
from rekindle.methods.merging.karcher import Middle
from rekindle.methods.merging.model_stock import Stock
from rekindle.methods.merging.slerp import Arc
from rekindle.methods.pooling import Pooling
from rekindle.methods.warming.sandwich import BranchSizes
from rekindle.store.header import Stored

ABSTRACT = {Expr, Alike, Computed}
OF_A_LAYER = {Pooling, BranchSizes}  # of a model: tests of their methods have them
UNSAID = {(Leaf, "stored")}  # where the bytes lie; their names stand for them


def leaf(name, shape=(4, 4), source=""):
    return Leaf(name, Stored("file", "F32", shape, 0, 4 * int(np.prod(shape))), source)


def examples():
    x, y, vector = leaf("x"), leaf("y"), leaf("v", (4,))
    return [
        x, Rows(x, 1, 3, (2, 4)), Columns(x, 0, 2), Transposed(x), Joined([x, y], (8, 4)), Beside([x, y]), Twin(x, 3),
        Fresh(x), Rounded(x), Fill("F32", (4, 4), 1.0), Normal("F32", (4, 4), 0.1, 7, "key", 0.2), Sum(x, y),
        Scale(x, 0.3), Cast(x, "BF16"), Chosen(x, np.array([1, 0, 2, 3])), Folded(vector, x, leaf("w", (4,))),
        Heads(x, 2, np.array([[0], [1]]), turn_HAA=np.ones((2, 2, 2)), scale_J=np.ones(2)),
        Normal("F32", (4, 4), Statistics(x)["std"] * 0.5, 7, "key"),
        LowRank(x, leaf("a", (2, 4)), leaf("b", (4, 2)), 0.5),
        Linear([x, y], (0.3, 0.7)), Linear([x, y], Products([x, y])["weights"]), Kept(x, y, 0.1, 0.2),
        Kept(x, y, Sizes(x, y, 7, 1)["lo"], Sizes(x, y, 7, 1)["hi"]), Dropped(x, y, 0.5, 7, "key"),
        Elected([x, y], leaf("base"), (0.3, 0.7)),
    ]  # fmt: skip


def classes(cls=Expr):
    """Its subclasses in Rekindle, whatever package of the language they are in."""
    for package in (rekindle.edit, rekindle.methods):
        for info in walk_packages(package.__path__, f"{package.__name__}."):
            import_module(info.name)
    for sub in cls.__subclasses__():
        if sub.__module__.startswith("rekindle."):
            yield sub
            yield from classes(sub)


def others(value):
    """Values that differ from this one in one thing."""
    if isinstance(value, Expr):
        yield leaf("other", value.shape)
    elif isinstance(value, tuple):
        for i, item in enumerate(value):
            for other in others(item):
                yield (*value[:i], other, *value[i + 1 :])
        yield (*value, leaf("more") if any(isinstance(item, Expr) for item in value) else 1)
    elif isinstance(value, np.ndarray):
        yield value + 1
        yield value.astype(np.float64) if value.dtype != np.float64 else value.astype(np.float32)
    elif isinstance(value, Found):
        yield Found(value.measurement, "mean", value.by)
        yield Found(value.measurement, value.key, value.by + 1)
        yield Found(Statistics(leaf("elsewhere")), value.key, value.by)
    elif isinstance(value, str):
        yield f"{value}x"
    else:
        yield 2.5 if value is None else value + 1


def with_field(x, name, value):
    made = copy.copy(x)
    setattr(made, name, value)
    return made


def test_every_class_has_an_example():
    assert {type(x) for x in examples()} == set(classes()) - ABSTRACT


def measured():
    """Of every class of measurements some of which none is another."""
    x, y, z = leaf("x"), leaf("y"), leaf("z")
    for cls, given in ((Arc, (0.1,)), (Middle, (0.5, 0.5)), (Stock, ())):
        yield from (cls([x, y], given=given), cls([y, x], given=given), cls([x, y, z], given=given))
        yield from (cls([x, y], z, given), cls([x, z], y, given), cls([x, y], given=(0.2, 0.8)))
    yield from (Statistics(x), Statistics(y), Statistics(Scale(x, 0.1)), Statistics(Scale(x, 0.2)))
    yield from (Sizes(x, y, 1, 2), Sizes(y, x, 1, 2), Sizes(x, z, 1, 2), Sizes(x, y, 1, 3), Sizes(x, y, 0, 2))


def test_measurements_of_other_names_are_others():
    names = [m.name for m in measured()]
    assert sorted(set(names)) == sorted(names)
    assert {*map(type, measured())} == {*classes(Measurement)} - {Products, *OF_A_LAYER}
    assert all(fields_of(cls) for cls in classes(Measurement))


@pytest.mark.parametrize("x", examples(), ids=lambda x: type(x).__name__)
def test_every_field_counts(x):
    for name in fields_of(type(x)):
        if (type(x), name) in UNSAID:
            continue
        for value in others(getattr(x, name)):
            assert signature(with_field(x, name, value)) != signature(x), name


@pytest.mark.parametrize("x", examples(), ids=lambda x: type(x).__name__)
def test_what_is_measured_in_a_field_is_found(x):
    wanted = Statistics(leaf("measured"))
    for name in fields_of(type(x)):
        value = getattr(x, name)
        if (type(x), name) in UNSAID or any(isinstance(item, Expr) for item in flat(value)):
            continue
        assert wanted in measurements([with_field(x, name, wanted["std"])]), name
        assert wanted in measurements([with_field(x, name, (0.5, (wanted["std"],)))]), name


def test_expressions_in_a_field_are_children_or_said():
    for x in examples():
        held = [value for name in fields_of(type(x)) for value in flat(getattr(x, name)) if isinstance(value, Expr)]
        assert [id(value) for value in held if not any(value is child for child in x.children())] == []


def flat(value):
    return [inner for item in value for inner in flat(item)] if isinstance(value, tuple) else [value]


def test_tensors_of_two_sources_are_two():
    a, b = leaf("w", source="a"), leaf("w", source="b")
    assert signature(Sum(a, b)) != signature(Sum(b, a))
    assert signature(a) != signature(b) != signature(leaf("w"))
    assert len({m.name for m in measurements([], [Statistics(a), Statistics(b), Statistics(leaf("w"))])}) == 3


def held(value):
    """An expression with this in a field."""
    return with_field(Fill("F32", (2, 2), 0.0), "value", value)


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, Statistics(leaf("x")), np.array([object()]), np.dtype("f4"), lambda x: x, Fill]
)
def test_a_field_that_does_not_say_what_it_is_is_no_field(value):
    for inside in (value, (0.5, value), [value], {"key": value}):
        with pytest.raises(TypeError, match="does not say what it is"):
            signature(held(inside))


def test_a_class_with_fields_beside_its_slots_is_none():
    loose = type("Loose", (Fill,), {})
    with pytest.raises(TypeError, match="Loose has no __slots__"):
        signature(loose("F32", (2, 2), 0.0))
    with pytest.raises(TypeError, match="Loose has no __slots__"):
        measurements([loose("F32", (2, 2), 0.0)])


class Two(NamedTuple):
    one: object
    other: object


AROUND = (lambda x: (x,), lambda x: [x], lambda x: {"key": x}, lambda x: Two(0.5, x), lambda x: [{"key": (Two(x, 1),)}])


@pytest.mark.parametrize("around", AROUND)
def test_what_is_inside_a_field_counts_is_found_and_gets_its_key(around):
    large = np.arange(5000.0)
    other = np.where(large == 2500, -1, large)  # which numpy's repr leaves out
    assert signature(held(around(large))) != signature(held(around(other)))
    assert signature(held(around(large))) == signature(held(around(large.copy())))
    wanted = Statistics(leaf("measured"))
    x = held(around(wanted["std"]))
    assert measurements([x]) == [wanted]
    assert signature(x) != signature(held(around(wanted["mean"])))
    (keyed,) = measurements([Keyed("a")(x)])
    assert (keyed.name, keyed.source) == ("a:statistics/measured", "a")


def test_numbers_are_the_same_whatever_library_they_are_of():
    for given, plain in ((np.float64(0.5), 0.5), (np.float32(0.5), 0.5), (np.int64(3), 3), (np.bool_(1), True)):
        assert signature(held(given)) == signature(held(plain))
        assert signature(held((given, 1))) == signature(held([plain, 1]))
    x, y = leaf("x"), leaf("y")
    assert Arc([x, y], given=(np.float64(0.5),)).name == Arc([x, y], given=(0.5,)).name
    assert signature(held({"a": 1, "b": 2})) == signature(held({"b": 2, "a": 1})) != signature(held({"a": 2, "b": 1}))


def test_no_name_in_one_source_is_that_of_another_in_another():
    names = ["w", "s1:w", ":w", "s1", "s1:", ":", "s1::w", ""]
    leaves = [leaf(name, source=source) for name in names for source in ("", "s1", "s1/w")]
    assert len({x.label() for x in leaves}) == len({signature(x) for x in leaves}) == len(leaves)
    assert leaf("w").label() == "w"
    assert leaf("w", source="s1").label() == "s1:w"
    with pytest.raises(RekindleError, match="'a:b' is no name of a source"):
        Keyed("a:b")


@pytest.mark.parametrize("x", examples(), ids=lambda x: type(x).__name__)
def test_under_a_key_only_the_source_changes(x):
    """The leaves and the measurements of it have the key, twice as well as once; all else is as it was."""
    once = Keyed("a")(x)
    assert type(once) is type(x)
    assert (once.dtype, once.shape, once.memory()) == (x.dtype, x.shape, x.memory())
    assert [(y.source, y.name, y.stored) for y in once.leaves()] == [("a", y.name, y.stored) for y in x.leaves()]
    assert {y.source for y in Keyed("b")(once).leaves()} <= {"b/a"}
    assert [m.name for m in measurements([once])] == [f"a:{m.name}" for m in measurements([x])]
    assert [m.source for m in measurements([once])] == ["a"] * len(measurements([x]))
    if any(True for _ in x.leaves()) or measurements([x]):
        assert signature(once) != signature(x)
    else:
        assert signature(once) == signature(x)


def test_what_was_shared_is_shared_under_a_key():
    x = Scale(leaf("x"), 2.0)
    under = Keyed("a")
    both = under(Sum(x, x))
    assert both.x is both.y is under(x)
    assert isinstance(under(Statistics(x)), Measurement)
    assert under(Statistics(x)).of == (under(x),)
