"""Every way to merge, against formulas written from the papers in float64; closed forms; equal sources; copies."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from store.safetensors_bytes import file_of

from rekindle import api
from rekindle.edit.noise import uniform_block
from rekindle.methods.merging.karcher import middle
from rekindle.methods.merging.model_stock import ratio
from rekindle.methods.merging.series import ema, mean, wsm
from rekindle.methods.merging.slerp import arc
from rekindle.store.dtypes import COMPUTED, from_float, to_float
from rekindle.store.folder import open_folder

TENSORS = {"a.weight": (17, 23), "b.weight": (8, 3, 5), "c.bias": (31,), "d.scale": ()}
EPS = {"F64": 1e-11, "F32": 3e-7, "F16": 1e-3, "BF16": 8e-3}
DTYPES = list(EPS)


def written(folder: Path, arrays: dict[str, np.ndarray], dtype: str = "F64") -> Path:
    """A model of a class that no table knows, with these tensors."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    stored = {name: from_float(np.asarray(array), dtype) for name, array in arrays.items()}
    rows = {name: (dtype, array.shape, array.tobytes()) for name, array in stored.items()}
    (folder / "model.safetensors").write_bytes(file_of(rows))
    return folder


def read(folder: Path) -> dict[str, np.ndarray]:
    """Its tensors as float64, each exactly."""
    found = {}
    for name, stored in open_folder(folder).tensors.items():
        data = Path(stored.path).read_bytes()[stored.offset : stored.offset + stored.nbytes]
        raw = np.frombuffer(data, COMPUTED[stored.dtype]).reshape(stored.shape)
        found[name] = to_float(raw, stored.dtype).astype(np.float64)
    return found


def models(tmp_path: Path, count: int, dtype: str = "F64", spread: float = 0.3) -> list[Path]:
    """Models near each other; the last is the base."""
    rng = np.random.default_rng(7)
    base = {name: rng.standard_normal(shape) for name, shape in TENSORS.items()}
    made = [{name: w + spread * rng.standard_normal(w.shape) for name, w in base.items()} for _ in range(count - 1)]
    return [written(tmp_path / f"m{i}", arrays, dtype) for i, arrays in enumerate([*made, base])]


# -- the papers' formulas, of one tensor of each -------------------------------------------------------------------


def paper_linear(ws, w0, weights=(0.2, 0.5, 0.3)):
    return sum(a * w for a, w in zip(weights, ws))


def paper_slerp(ws, w0, t=0.3):
    """Shoemake: sin((1 - t) a) / sin a, sin(t a) / sin a."""
    one, two = ws
    angle = np.arccos((one * two).sum() / np.sqrt((one**2).sum() * (two**2).sum()))
    if np.sin(angle) < 1e-8:
        return (1 - t) * one + t * two
    return (np.sin((1 - t) * angle) * one + np.sin(t * angle) * two) / np.sin(angle)


def paper_karcher(ws, w0, weights=None):
    """Buss and Fillmore, algorithm A1, on the vectors themselves; the mean of the lengths. No arc: the line."""
    weights = np.full(len(ws), 1 / len(ws)) if weights is None else weights
    lengths = [np.linalg.norm(w) for w in ws]
    units = [w / n for w, n in zip(ws, lengths)]
    if min((u * v).sum() for u in units for v in units) < -1 + 1e-12:
        return paper_linear(ws, None, weights)
    q = paper_linear(units, None, weights)
    q = q / np.linalg.norm(q)
    for _ in range(300):
        tangents = []
        for u in units:
            cosine = np.clip((q * u).sum(), -1, 1)
            across = u - cosine * q
            size = np.linalg.norm(across)
            tangents.append(np.arctan2(size, cosine) / size * across if size > 1e-300 else 0 * u)
        step = paper_linear(tangents, None, weights)
        size = np.linalg.norm(step)
        if size < 1e-15:
            break
        q = np.cos(size) * q + np.sin(size) / size * step
    return q * (np.asarray(weights) @ lengths)


def paper_task(ws, w0, weights=(0.4, -0.2, 0.9), lambda_=0.7):
    return w0 + lambda_ * sum(a * (w - w0) for a, w in zip(weights, ws))


def largest(tau, keep, skip=0):
    """tau with all but `keep` of its entries, after the `skip` largest, at zero; of those of one size all count."""
    sizes = np.sort(np.abs(tau), axis=None)[::-1]
    within = (np.abs(tau) <= sizes[skip]) & (np.abs(tau) >= sizes[min(tau.size, skip + keep) - 1])
    return np.where(within, tau, 0)


def paper_ties(ws, w0, density=0.4, lambda_=0.8, weights=(1, 2, 1)):
    """Algorithm 1: trim, elect the sign, mean of those that agree; weights weigh votes and mean."""
    keep = max(1, round(density * w0.size))
    taus = [largest(w - w0, keep) for w in ws]
    sign = np.sign(sum(a * tau for a, tau in zip(weights, taus)))
    agree = [(np.sign(tau) == sign) & (sign != 0) for tau in taus]
    total = sum(a * tau * ok for a, tau, ok in zip(weights, taus, agree))
    count = sum(a * ok for a, ok in zip(weights, agree))
    return w0 + lambda_ * total / np.where(count, count, 1)


def paper_dare(ws, w0, key, density=0.6, seed=5, weights=(1, 1, 1)):
    taus = []
    for i, w in enumerate(ws):
        kept = uniform_block(seed, f"{key}/{i}", 0, w.size).reshape(w.shape) < density
        taus.append((w - w0) * kept / density)
    return w0 + sum(a * tau for a, tau in zip(weights, taus))


def paper_breadcrumbs(ws, w0, density=0.5, gamma=0.1, weights=(1, 1, 1)):
    keep, skip = max(1, round(density * w0.size)), round(gamma * w0.size)
    return w0 + sum(a * largest(w - w0, keep, skip) for a, w in zip(weights, ws))


def paper_stock(ws, w0):
    """Section 4.2: t = k cos / (1 + (k - 1) cos) between the base and the mean."""
    taus = [(w - w0).reshape(-1) for w in ws]
    pairs = [(x, y) for i, x in enumerate(taus) for y in taus[i + 1 :]]
    cosine = max(0, np.mean([x @ y / (np.linalg.norm(x) * np.linalg.norm(y)) for x, y in pairs]))
    t = len(ws) * cosine / (1 + (len(ws) - 1) * cosine)
    return t * sum(ws) / len(ws) + (1 - t) * w0


def paper_mean(ws, w0):
    return sum(ws) / len(ws)


def paper_ema(ws, w0, decay=0.8):
    average = ws[0]
    for w in ws[1:]:
        average = decay * average + (1 - decay) * w
    return average


def paper_wsm(ws, w0):
    """The updates between checkpoints, each times what 1-sqrt decay leaves of its learning rate."""
    return ws[0] + sum((1 - np.sqrt(i / len(ws))) * (y - x) for i, (x, y) in enumerate(pairwise(ws), 1))


CASES = {
    "linear": ({"weights": ("0.2", "0.5", "0.3")}, paper_linear, 3),
    "slerp": ({"t": "0.3"}, paper_slerp, 2),
    "karcher": ({}, paper_karcher, 3),
    "task": ({"weights": ("0.4", "-0.2", "0.9"), "lambda_": 0.7}, paper_task, 3),
    "ties": ({"weights": ("1", "2", "1"), "density": 0.4, "lambda_": 0.8}, paper_ties, 3),
    "breadcrumbs": ({"density": 0.5, "gamma": 0.1}, paper_breadcrumbs, 3),
    "stock": ({}, paper_stock, 3),
    "mean": ({}, paper_mean, 3),
    "ema": ({"decay": 0.8}, paper_ema, 3),
    "wsm": ({}, paper_wsm, 3),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("how", [*CASES, "dare"])
def test_a_way_is_its_formula(tmp_path, how, dtype):
    options, formula, count = CASES.get(how, ({"density": 0.6, "seed": 5}, None, 3))
    *folders, base = models(tmp_path, count + 1, dtype)
    over = {"base": base} if how in ("task", "ties", "dare", "breadcrumbs", "stock") else {}
    found = read(api.merge(folders, how=how, **options, **over).save(tmp_path / "out"))
    ws, w0 = [read(folder) for folder in folders], read(base)
    for name in TENSORS:
        tensor = [w[name] for w in ws]
        expected = formula(tensor, w0[name]) if formula else paper_dare(tensor, w0[name], f"tensor {name}")
        scale = max(1, *(np.abs(w).max() for w in tensor))
        assert np.abs(found[name] - expected).max() <= EPS[dtype] * scale, name


# -- closed forms and hand examples ---------------------------------------------------------------------------------


def products(*vectors):
    return np.array([[x @ y for y in vectors] for x in map(np.asarray, vectors)], float)


def test_slerp_of_known_angles():
    """At right angles sin and cos of t's share of it; on a line, and where there is no arc, the line."""
    right = products([1, 0], [0, 1])
    for t in (0.0, 0.25, 0.5, 1.0):
        assert arc(right, t) == pytest.approx([np.cos(t * np.pi / 2), np.sin(t * np.pi / 2)])
    assert arc(products([1, 0], [np.cos(1.2), np.sin(1.2)]), 0.5) == pytest.approx(np.full(2, 0.5 / np.cos(0.6)))
    for same in (
        products([3, 4], [3, 4]),
        products([3, 4], [6, 8]),
        products([1, 0], [-1, 0]),
        products([0, 0], [1, 0]),
    ):
        assert arc(same, 0.3) == pytest.approx([0.7, 0.3], abs=0)


def test_karcher_of_two_is_slerp_halfway_and_of_any_number_has_no_order():
    rng = np.random.default_rng(0)
    vectors = [x / np.linalg.norm(x) for x in rng.standard_normal((5, 9))]
    assert middle(products(*vectors[:2]), np.full(2, 0.5)) == pytest.approx(arc(products(*vectors[:2]), 0.5))
    for angle in (2e-4, 1e-3, 4e-3, 1e-2):  # as fine-tunes of one parent are
        near = products([1, 0], [np.cos(angle), np.sin(angle)])
        assert middle(near, np.full(2, 0.5)) == pytest.approx(arc(near, 0.5), rel=1e-12)
    weights = np.array([0.1, 0.3, 0.2, 0.25, 0.15])
    found = middle(products(*vectors), weights) @ vectors
    order = [3, 1, 4, 0, 2]
    again = middle(products(*[vectors[i] for i in order]), weights[order]) @ [vectors[i] for i in order]
    assert again == pytest.approx(found, abs=1e-9)
    assert np.linalg.norm(found) == pytest.approx(1)
    assert middle(products([1, 0], [0, 1], [1, 0]), np.full(3, 1 / 3)) @ [[1, 0], [0, 1], [1, 0]] == pytest.approx(
        [np.cos(np.pi / 6), np.sin(np.pi / 6)]  # a third of the way round the right angle
    )
    for opposite in (products([1, 0], [-1, 0]), products([2.0], [-3.0]), products([1, 0.0], [-1, 1e-9])):
        assert middle(opposite, np.full(2, 0.5)).tolist() == [0.5, 0.5]
    assert middle(products([1.0], [1.0], [-1.0]), np.full(3, 1 / 3)).tolist() == [1 / 3] * 3
    assert middle(products([2, 0], [0, 4]), np.full(2, 0.5)) @ [[2, 0], [0, 4]] == pytest.approx(
        3 * np.sqrt([0.5, 0.5])
    )


def test_stock_at_the_ends_and_between():
    same, apart = products([1, 2], [1, 2]), products([1, 0], [0, 1])
    assert ratio(same) == pytest.approx(1)
    assert ratio(apart) == 0
    half = products([1, 0], [0.5, np.sqrt(0.75)])
    assert ratio(half) == pytest.approx(2 * 0.5 / 1.5)
    assert ratio(products([1, 0], [-1, 0.1])) == 0
    assert ratio(products([1, 0], [0, 0])) == 0


def test_weights_of_a_series_by_hand():
    assert mean(4) == [0.25] * 4
    assert ema(3, 0.5) == [0.25, 0.25, 0.5]
    assert ema(3, 0.9) == pytest.approx([0.81, 0.09, 0.1])
    assert wsm(4, "linear") == pytest.approx(mean(4))
    assert wsm(4, "1-sqrt") == pytest.approx(
        [np.sqrt(0.25), np.sqrt(0.5) - 0.5, np.sqrt(0.75) - np.sqrt(0.5), 1 - np.sqrt(0.75)]
    )
    assert wsm(3, "cosine") == pytest.approx([0.25, 0.5, 0.25])
    for count in (1, 2, 7, 40):
        for weights in (mean(count), ema(count, 0.9), *(wsm(count, shape) for shape in ("linear", "cosine", "1-sqrt"))):
            assert sum(weights) == pytest.approx(1)
            assert min(weights) >= 0
            shares = np.cumsum(weights[::-1])[::-1]  # what each update between two checkpoints counts
            assert (np.diff(shares) <= 1e-15).all()


def vectors(tmp_path, *rows, dtype="F64"):
    return [written(tmp_path / f"v{i}", {"w": np.array(row, float)}, dtype) for i, row in enumerate(rows)]


def test_ties_by_hand(tmp_path):
    """Trim the small, elect the sign with the larger mass, take the mean of those that agree."""
    base, one, two, three = vectors(
        tmp_path, [1, 1, 1, 1, 1, 1], [4, 1.1, -1, 3, 1, 5], [2, -3, 0.9, -1, 1, 1], [3, -1, -4, 1, 1, 0]
    )
    # task vectors 3 .1 -2 2 0 4 | 1 -4 -.1 -2 0 0 | 2 -2 -5 0 0 -1, and of them the largest half, with those as large:
    # 3 . -2 2 . 4 | 1 -4 . -2 . . | 2 -2 -5 . . .
    out = api.merge([one, two, three], how="ties", base=base).save(tmp_path / "out")
    assert read(out)["w"].tolist() == [1 + 2, 1 - 3, 1 - 3.5, 1, 1, 1 + 4]
    out = api.merge([one, two, three], how="ties", base=base, weights=(1, 3, 0)).save(tmp_path / "more")
    assert read(out)["w"].tolist() == [1 + (3 + 3) / 4, 1 - 4, 1 - 2, 1 - 2, 1, 1 + 4]


def test_dare_keeps_its_share_and_the_expectation(tmp_path):
    rng = np.random.default_rng(1)
    base, one = rng.standard_normal(9000), rng.standard_normal(9000)
    folders = [written(tmp_path / name, {"w": x}) for name, x in (("base", base), ("one", one))]
    sums = np.zeros(9000)
    for seed in range(10):
        out = api.merge([folders[1]], how="dare", base=folders[0], density=0.3, seed=seed).save(tmp_path / str(seed))
        found = read(out)["w"]
        kept = found != base
        assert abs(kept.mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / kept.size)
        assert found[kept] == pytest.approx((base + (one - base) / 0.3)[kept])
        sums += found
    assert abs(((sums / 10 - one) / (one - base)).mean()) < 5 * np.sqrt(0.7 / 0.3 / 10 / kept.size)


@pytest.mark.parametrize("how", ["dare", "slerp", "ties", "breadcrumbs", "stock", "karcher"])
def test_workers_and_parts_make_the_same_bytes(tmp_path, how):
    *folders, base = models(tmp_path, 3, "BF16")
    over = {"base": base} if how not in ("slerp", "karcher") else {}
    model = api.merge(folders, how=how, **over)
    one = model.save(tmp_path / "one", workers=1, max_shard_size=500)
    many = model.save(tmp_path / "many", workers=4, max_shard_size=500)
    for part in ("1/3", "2/3", "3/3"):
        api.merge(folders, how=how, **over).save(tmp_path / "parts", part=part, max_shard_size=500)
    api.join(tmp_path / "parts")
    for shard in sorted(one.glob("*.safetensors")):
        assert shard.read_bytes() == (many / shard.name).read_bytes() == (tmp_path / "parts" / shard.name).read_bytes()
    assert api.merge(folders, how=how, **over).save(tmp_path / "again", measurements=one if how != "dare" else None)
    assert read(tmp_path / "again").keys() == read(one).keys()
    assert all((read(tmp_path / "again")[name] == x).all() for name, x in read(one).items())


# -- equal sources, and copies --------------------------------------------------------------------------------------

KEEPS = {  # how -> (options, number of sources) of which equal ones come back bit for bit
    "linear": ({"weights": ("0.3", "0.9", "-0.2")}, 3),
    "slerp": ({"t": "0.3"}, 2),
    "karcher": ({"weights": ("0.2", "0.5", "0.3")}, 3),
    "ties": ({"density": 1.0, "weights": ("0.3", "0.1", "0.2")}, 3),
    "mean": ({}, 3),
    "ema": ({"decay": 0.7}, 3),
    "wsm": ({"shape": "cosine"}, 3),
}
RANGE = {"F16": 1e4, "BF16": 1e37, "F32": 1e37, "F64": 1e150}  # whose squares are numbers


def assert_kept(tmp: Path, how: str, dtype: str, values: list[float], others: list[float]) -> None:
    options, count = KEEPS[how]
    folders = [written(tmp / str(i), {"w": np.array(values)}, dtype) for i in range(count)]
    over = {"base": written(tmp / "base", {"w": np.array(others)}, dtype)} if how == "ties" else {}
    out = api.merge(folders, how=how, **options, **over).save(tmp / "out")
    assert stored(out) == stored(folders[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("how", KEEPS)
def test_equal_sources_come_back_bit_for_bit(tmp_path, how, dtype):
    """Zeros of both signs, numbers too small to be normal, large ones: the bits of each."""
    rng = np.random.default_rng(3)
    odd = [0.0, -0.0, 0.0, -0.0, 1.0, -1.0, 6e-8, -6e-8, 1e-40, 1e-44, RANGE[dtype], -RANGE[dtype]]
    others = [0.0, 0.0, -0.0, -0.0, 1.0, 1.0, 6e-8, 6e-8, 0.0, -0.0, 1.0, -1.0]
    assert_kept(tmp_path / "odd", how, dtype, odd, others)
    assert_kept(tmp_path / "usual", how, dtype, list(rng.standard_normal(999)), list(rng.standard_normal(999)))


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(how=st.sampled_from(list(KEEPS)), dtype=st.sampled_from(DTYPES), data=st.data())
def test_whatever_equal_sources_hold_comes_back(tmp_path_factory, how, dtype, data):
    size = RANGE[dtype]
    numbers = st.one_of(st.sampled_from([0.0, -0.0, size, -size, 6e-8]), st.floats(-4, 4), st.floats(-size, size))
    values = data.draw(st.lists(numbers, min_size=1, max_size=40))
    others = data.draw(st.lists(numbers, min_size=len(values), max_size=len(values)))
    assert_kept(tmp_path_factory.mktemp("equal"), how, dtype, values, others)


def stored(folder: Path) -> dict[str, bytes]:
    return {
        name: Path(x.path).read_bytes()[x.offset : x.offset + x.nbytes]
        for name, x in open_folder(folder).tensors.items()
    }


@pytest.mark.parametrize(
    ("how", "options", "which"),
    [
        ("linear", {"weights": ("0", "1", "0")}, 1),
        ("linear", {"weights": ("2", "0", "0"), "normalize": True}, 0),
        ("karcher", {"weights": ("0", "0", "1")}, 2),
        ("task", {"weights": ("0", "1", "0")}, 1),
        ("task", {"weights": ("0", "0", "0")}, None),
        ("ema", {"decay": 0.0}, 2),
        ("dare", {"weights": ("0", "1", "0"), "density": 1.0}, 1),
    ],
)
def test_a_source_of_weight_one_is_copied(tmp_path, how, options, which):
    *folders, base = models(tmp_path, 4)
    over = {"base": base} if how in ("task", "dare") else {}
    model = api.merge(folders, how=how, **options, **over)
    assert model.job().plan.counts["copied"]["tensors"] == len(TENSORS)
    assert model.checkpoint.promise.exact
    assert stored(model.save(tmp_path / "out")) == stored(base if which is None else folders[which])


@pytest.mark.parametrize(("t", "which"), [("0", 0), ("1", 1)])
def test_slerp_at_its_ends_is_a_copy(tmp_path, t, which):
    folders = models(tmp_path, 2)
    model = api.merge(folders, how="slerp", t=t)
    assert model.job().plan.counts["copied"]["tensors"] == len(TENSORS)
    assert model.job().measurements == []
    assert stored(model.save(tmp_path / "out")) == stored(folders[which])


# -- ranks ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    values=st.lists(st.sampled_from([0.0, 0.1, -0.1, 0.25, 1.0, -3.0, 1e-30, 7.0, 7.0000001]), min_size=1, max_size=60),
    density=st.floats(0.01, 1),
    gamma=st.floats(0, 0.5),
)
def test_what_is_kept_is_at_exact_ranks(tmp_path_factory, dtype, values, density, gamma):
    """Against np.partition, with values that repeat, and ones that float32 cannot tell apart."""
    assume(gamma + density <= 1)
    tmp = tmp_path_factory.mktemp("ranks")
    n = len(values)
    folders = [written(tmp / str(i), {"w": x}, dtype) for i, x in enumerate([np.zeros(n), np.array(values)])]
    out = api.merge([folders[1]], how="breadcrumbs", base=folders[0], density=density, gamma=gamma).save(tmp / "out")
    tau, first = read(folders[1])["w"], round(gamma * n)
    last = min(n, first + max(1, round(density * n))) - 1
    ranked = -np.partition(-np.abs(tau), sorted({min(first, n - 1), last}))
    expected = np.where((np.abs(tau) <= ranked[min(first, n - 1)]) & (np.abs(tau) >= ranked[last]), tau, 0)
    assert read(out)["w"].tolist() == expected.tolist()


def test_ranks_that_float32_cannot_tell_apart(tmp_path):
    base, one = vectors(tmp_path, [0] * 6, [0.1, 0.1, 0.1, 0.1 + 1e-12, 0.1 - 1e-12, 0.3])
    kept = read(api.merge([one], how="ties", base=base, density=1 / 3).save(tmp_path / "out"))["w"]
    assert kept.tolist() == [0, 0, 0, 0.1 + 1e-12, 0, 0.3]
    equal = read(api.merge([one], how="ties", base=base, density=0.5).save(tmp_path / "equal"))["w"]
    assert equal.tolist() == [0.1, 0.1, 0.1, 0.1 + 1e-12, 0, 0.3]  # all of one size
