"""Near-lossless: what is kept, how near it is, and that errors do not add up."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from safetensors.numpy import load_file, save_file

from rekindle import api
from rekindle.codec import fallback
from rekindle.codec.lossy import RULES, _centres, _of_steps, nearest, step_width
from rekindle.codec.rounding import rounded
from rekindle.errors import RekindleError
from rekindle.store.dtypes import COMPUTED, to_float

N = (96, 128)


def run(folder, steps=6, seed=0):
    """A weight that Adam moves: folders with its states, and the states."""
    random = np.random.default_rng(seed)
    w = (0.05 * random.normal(size=N)).astype(np.float32)
    scale = np.exp(0.7 * random.normal(size=N)).astype(np.float32)
    m, v = np.zeros(N, np.float32), 1e-6 * scale**2
    states = []
    for step in range(1, steps + 1):
        for _ in range(20):
            g = (1e-3 * scale * random.normal(size=N)).astype(np.float32)
            m, v = 0.9 * m + 0.1 * g, (0.999 * v + 0.001 * g * g).astype(np.float32)
            w = w - 1e-4 * m / np.sqrt(v)
        states.append(
            {"w": w.copy(), "w.exp_avg": m.astype(np.float32), "w.exp_avg_sq": v.copy(), "b": w[0, :100].copy()}
        )
        (folder / f"step-{step}").mkdir(parents=True)
        save_file(states[-1], folder / f"step-{step}" / "model.safetensors")
    return states


@pytest.fixture
def states(tmp_path):
    return run(tmp_path)


def packed(tmp_path, mode, steps=6, **options):
    api.pack([tmp_path / f"step-{i}" for i in range(1, steps + 1)], tmp_path / f"{mode}.rk", mode=mode, **options)
    made = []
    for i in range(1, steps + 1):
        api.unpack(f"{tmp_path / f'{mode}.rk'}@{i}", tmp_path / f"{mode}-{i}")
        made.append(load_file(tmp_path / f"{mode}-{i}" / "model.safetensors"))
    return made, api.archive_info(tmp_path / f"{mode}.rk")


@pytest.mark.parametrize("mode", RULES)
def test_small_and_near(tmp_path, states, mode):
    made, info = packed(tmp_path, mode)
    assert api.archive_verify(tmp_path / f"{mode}.rk") == []
    least = {"near-lossless": 14, "strong": 25, "excp": 14}[mode]
    assert all(step["ratio"] > least for step in info["steps"][1:])
    moved = np.abs(states[-1]["w"] - states[-2]["w"])
    for then, now in zip(states, made):
        assert np.array_equal(then["b"], now["b"])  # too small, and without moments: as it was
        assert np.abs(now["w"] - then["w"]).max() < 3 * moved.max()
    assert np.array_equal(states[0]["w"], made[0]["w"])  # a keyframe
    apart = [np.abs(now["w"] - then["w"]).mean() for then, now in zip(states[1:], made[1:])]
    assert apart[-1] < 2.5 * apart[0]  # each is coded against what was made of the one before


def test_the_second_moment_is_kept_whole_by_our_rule_and_not_by_the_published_one(tmp_path, states):
    near, _ = packed(tmp_path, "near-lossless")
    excp, _ = packed(tmp_path, "excp")
    for then, now, published in zip(states, near, excp):
        ratio = now["w.exp_avg_sq"] / then["w.exp_avg_sq"]
        low, high = np.quantile(ratio, (0.01, 0.99))
        assert 0.5 < low < high < 2
        assert ratio.min() > 0.1  # the few at the ends take the last centre
        assert (published["w.exp_avg_sq"] == 0).mean() > 0.8
        gone = published["w.exp_avg"] == 0
        assert np.array_equal(gone, published["w.exp_avg_sq"] == 0)  # one mask for both
        assert np.abs(then["w.exp_avg"][~gone]).min() > 2 * np.abs(then["w.exp_avg"]).mean()


def test_errors_are_written_down(tmp_path, states):
    made, _ = packed(tmp_path, "near-lossless")
    for i, (then, now) in enumerate(zip(states, made), 1):
        told = {x["name"]: x["error"] for x in api.archive_contents(f"{tmp_path / 'near-lossless.rk'}@{i}")["tensors"]}
        assert told["b"] is None
        for name in ("w", "w.exp_avg", "w.exp_avg_sq"):
            if told[name] is None:
                assert np.array_equal(then[name], now[name])
                continue
            off, own = then[name].astype(np.float64) - now[name], then[name].astype(np.float64)
            assert told[name]["largest"] == pytest.approx(np.abs(off).max())
            assert told[name]["relative_rms"] == pytest.approx(np.sqrt((off**2).sum() / (own**2).sum()))


def test_what_is_not_finite_stays_as_it_is(tmp_path):
    run(tmp_path, steps=2)
    path = tmp_path / "step-2" / "model.safetensors"
    state = load_file(path)
    state["w"][3, 4], state["w.exp_avg_sq"][5, 6] = np.nan, -1.0
    save_file(state, path)
    made, _ = packed(tmp_path, "near-lossless", steps=2)
    for name, x in state.items():
        assert made[1][name].tobytes() == x.tobytes()


def test_a_frozen_weight_and_moments_of_zero(tmp_path):
    for step in (1, 2, 3):
        zero = np.zeros(N, np.float32)
        (tmp_path / f"step-{step}").mkdir()
        state = {"w": np.ones(N, np.float32), "w.exp_avg": zero, "w.exp_avg_sq": zero}
        save_file(state, tmp_path / f"step-{step}" / "model.safetensors")
    made, info = packed(tmp_path, "near-lossless", steps=3)
    assert all(np.array_equal(made[2][name], x) for name, x in state.items())
    assert info["steps"][2]["ratio"] > 100


def test_a_step_dropped_from_between_leaves_the_values_of_the_others(tmp_path, states):
    made, _ = packed(tmp_path, "near-lossless")
    path = tmp_path / "near-lossless.rk"
    errors = api.archive_contents(f"{path}@4")["tensors"]
    api.archive_drop(f"{path}@3")
    assert api.archive_verify(path) == []
    api.unpack(f"{path}@6", tmp_path / "six")
    after = load_file(tmp_path / "six" / "model.safetensors")
    assert all(np.array_equal(after[name], x) for name, x in made[5].items())
    told = api.archive_contents(f"{path}@4")["tensors"]
    assert [x["error"] for x in told] == [x["error"] for x in errors]


def test_numpy_makes_the_same_archive(tmp_path, monkeypatch):
    run(tmp_path, steps=2)
    packed(tmp_path, "near-lossless", steps=2, workers=2)
    whole = (tmp_path / "near-lossless.rk").read_bytes()
    monkeypatch.setattr("rekindle.codec.pack.kernel", lambda: fallback.Numpy())
    api.pack([tmp_path / "step-1", tmp_path / "step-2"], tmp_path / "x.rk", mode="near-lossless", workers=1)
    assert (tmp_path / "x.rk").read_bytes() == whole


def test_centres():
    values = np.concatenate([np.full(50, x, np.float32) for x in (-2, -1, 1, 4)])
    assert np.allclose(nearest(values, _centres(values)), values, atol=0.4)
    spread = np.exp(np.random.default_rng(0).normal(size=20_000) * 3).astype(np.float32)
    ratio = nearest(spread, _centres(spread, logarithmic=True), logarithmic=True) / spread
    assert np.mean(np.abs(np.log(ratio))) < 0.5
    assert len(_centres(np.zeros(10, np.float32))) == 0
    assert _centres(np.zeros(10, np.float32), logarithmic=True).tolist() == [0.0]


BOUNDS = st.sampled_from([0.25, 0.1, 1e-2, 1e-3, 2.0**-10, 1e-6, 1e-15])


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@given(data=st.data(), bound=BOUNDS)
def test_rounded_values_stay_within_their_bound(dtype, data, bound):
    width = {"F64": 8, "F32": 4}.get(dtype, 2)
    values = data.draw(npst.arrays(np.dtype(f"<u{width}"), st.integers(1, 200)))
    made = rounded(values, dtype, bound)
    with np.errstate(invalid="ignore"):
        given_, found = (to_float(x.view(COMPUTED[dtype]), dtype).astype(np.float64) for x in (values, made))
        within = np.abs(found - given_) <= bound * np.abs(given_)
    assert (within | (made == values)).all()  # what is no number keeps its bits
    for a, b in zip(given_.tolist(), found.tolist()):
        if np.isfinite(a):  # in fractions: the product with a bound is rounded too
            assert abs(Fraction(b) - Fraction(a)) <= Fraction(bound) * abs(Fraction(a))
    assert np.array_equal(np.signbit(found), np.signbit(given_))
    sound = np.isfinite(given_) & (np.abs(given_) > 2 * np.finfo(np.float32).tiny) & (np.abs(given_) < 6e4)
    if dtype in ("F32", "BF16") and bound >= 0.1 and sound.any():
        assert not (made[sound] & 1).any()  # and takes fewer bits than it had


def test_a_bound_on_the_error_holds_along_a_series(tmp_path, states):
    folders = [tmp_path / f"step-{i}" for i in range(1, 7)]
    info = api.pack(folders, tmp_path / "r.rk", error="rel:1e-3")
    assert api.archive_verify(tmp_path / "r.rk") == []
    assert {step["mode"] for step in info["steps"]} == {"rel:0.001"}
    assert all(step["ratio"] > 2.2 for step in info["steps"][1:])
    for i, state in enumerate(states, 1):
        api.unpack(f"{tmp_path / 'r.rk'}@{i}", tmp_path / f"out-{i}")
        made = load_file(tmp_path / f"out-{i}" / "model.safetensors")
        assert np.array_equal(made["b"], state["b"])
        for name, value in state.items():
            assert (np.abs(made[name] - value) <= 1e-3 * np.abs(value)).all()
            assert np.array_equal(made[name], value) == (name == "b")
    errors = {x["name"].rpartition(":")[2]: x["error"] for x in api.archive_contents(tmp_path / "r.rk")["tensors"]}
    assert 0 < errors["w"]["relative_rms"] < 1e-3
    assert errors["b"] is None


def test_errors_are_numbers_whatever_is_in_a_tensor(tmp_path):
    (tmp_path / "step-1").mkdir()
    w = np.random.default_rng(0).normal(size=(64, 64))
    w[0, :4] = np.nan, np.inf, -np.inf, 1e200
    save_file({"w": w, "h": w.clip(-9, 9).astype(np.float32)}, tmp_path / "step-1" / "model.safetensors")
    api.pack(tmp_path / "step-1", tmp_path / "r.rk", error="rel:1e-3")
    assert api.archive_verify(tmp_path / "r.rk") == []
    for tensor in api.archive_contents(tmp_path / "r.rk")["tensors"][1:]:
        assert 0 < tensor["error"]["relative_rms"] < 1e-3
        assert 0 < tensor["error"]["largest"] < 1


@pytest.mark.parametrize(
    ("error", "says"),
    [("1e-3", "no bound"), ("rel:x", "no bound"), ("rel:0", "no bound"), ("rel:nan", "no bound"), ("abs:1", "no bound"),
     ("rel:0.5", "at most 0.25")],
)  # fmt: skip
def test_what_is_no_bound_is_refused(tmp_path, states, error, says):
    with pytest.raises(RekindleError, match=says):
        api.pack(tmp_path / "step-1", tmp_path / "r.rk", error=error)
    with pytest.raises(RekindleError, match="mode of its own"):
        api.pack(tmp_path / "step-1", tmp_path / "r.rk", error="rel:1e-3", mode="strong")
    assert not (tmp_path / "r.rk").exists()


@pytest.mark.parametrize("moved", [1.0, 0.1, 0.003])
def test_what_few_values_move_by_is_kept_up_with(moved):
    """Rows of an embedding that text hardly touches: steps must reach what moves, not be fine for what does not."""
    random = np.random.default_rng(0)
    residual = np.where(random.random(20_000) < moved, random.normal(size=20_000), 0).astype(np.float32)
    for bits in (1.05, 2.5):
        step = step_width(residual, bits)
        made = np.where(np.abs(residual) > step / 2, nearest(residual, _of_steps(residual, step)), 0)
        assert np.abs(residual - made).max() < 5 * step  # what is beyond comes with the next link
        assert ((residual - made) ** 2).sum() < {1.05: 0.4, 2.5: 0.06}[bits] * (residual**2).sum()
    assert step_width(np.zeros(100, np.float32), 2.5) == 0
