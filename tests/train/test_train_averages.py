"""Averages that a run keeps: they are what they say, survive interruptions, and give those of other lengths."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file
from store.folders import hashes

from rekindle import api
from rekindle.cli.verbs import rekindle
from rekindle.errors import RekindleError
from rekindle.methods.merging.post_hoc import SIGMAS, Profile, exponent, misfit, post_hoc, product
from rekindle.train import session

STEPS = 24
RUN = {"tokens": STEPS * 256, "save_every": 2 * 256, "eval_every": 8 * 256, "keep_averages": True}


def exact(weights: list[dict[str, np.ndarray]], sigma: float) -> dict[str, np.ndarray]:
    """The power-function average of a run's weights after every step, by its recursion, in float64."""
    average = {name: x.astype(np.float64) for name, x in weights[0].items()}
    for step, own in enumerate(weights[1:], 2):
        b = (1 - 1 / step) ** (exponent(sigma) + 1)
        average = {name: b * x + (1 - b) * own[name] for name, x in average.items()}
    return average


def apart(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], last: dict[str, np.ndarray]) -> float:
    """Of all tensors: how far one is from the other, in units of the average's distance from the last weights."""
    names = [name for name in wanted if name in found]
    assert names
    off = sum(float(np.square(found[name] - wanted[name]).sum()) for name in names)
    way = sum(float(np.square(last[name] - wanted[name]).sum()) for name in names)
    return (off / way) ** 0.5


def test_they_are_the_averages_of_every_step_and_others_are_made_of_them(
    small: Callable, run: Callable, tmp_path: Path
):
    out, _ = run(small("mixtral"), "out", **RUN | {"archive": str(tmp_path / "all.rk"), "save_every": 256})
    weights = []
    for step in range(1, STEPS + 1):
        api.unpack(f"{tmp_path / 'all.rk'}@{step}", tmp_path / f"{step}")
        weights.append(load_file(tmp_path / f"{step}" / "model.safetensors"))
    kept = Path(f"{out}-averages")
    assert sorted(path.name for path in kept.iterdir()) == [f"sigma-{sigma:.2f}" for sigma in SIGMAS]
    for sigma in SIGMAS:
        own = load_file(kept / f"sigma-{sigma:.2f}" / f"checkpoint-{STEPS}" / "model.safetensors")
        assert apart(own, exact(weights, sigma), weights[-1]) < 1e-4
    for sigma, near in ((0.05, 1e-3), (0.07, 0.02), (0.10, 1e-3), (0.15, 0.05)):
        made = load_file(api.average(kept, sigma=sigma).save(tmp_path / f"of-{sigma}") / "model.safetensors")
        assert apart(made, exact(weights, sigma), weights[-1]) < near
    early = load_file(api.average(kept, sigma=0.08, step=12).save(tmp_path / "early") / "model.safetensors")
    assert apart(early, exact(weights[:12], 0.08), weights[11]) < 0.05
    told = api.evaluate(tmp_path / "of-0.07", data="stdlib", tokens=512, seq_len=32)
    assert np.isfinite(told["loss"])


def test_an_interrupted_run_keeps_the_same_averages(small: Callable, run: Callable, tmp_path: Path, monkeypatch):
    run(small(), "whole", **RUN)
    real = session.Session._step

    def interrupted(self, step, boundary, wanted):
        real(self, step, boundary, wanted)
        return step == 10

    monkeypatch.setattr(session.Session, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(small(), "cut", **RUN)
    monkeypatch.setattr(session.Session, "_step", real)
    with pytest.raises(RekindleError, match="keep_averages was True, is False"):
        run(small(), "cut", resume=True, **RUN | {"keep_averages": False})
    shutil.rmtree(tmp_path / "cut-averages" / "sigma-0.05" / "checkpoint-11")  # as if cut off before it was there
    run(small(), "cut", resume=True, **RUN)
    for sigma in SIGMAS:
        for step in range(2, STEPS + 1, 2):
            at = f"sigma-{sigma:.2f}/checkpoint-{step}"
            places = [tmp_path / name / at for name in ("whole-averages", "cut-averages")]
            assert hashes(places[0])["model.safetensors"] == hashes(places[1])["model.safetensors"]
        assert (tmp_path / "cut-averages" / f"sigma-{sigma:.2f}" / "checkpoint-11").is_dir()


def test_what_lies_in_the_way_is_refused_or_replaced(small: Callable, run: Callable, tmp_path: Path):
    (tmp_path / "out-averages").mkdir()
    (tmp_path / "out-averages" / "mine").touch()
    with pytest.raises(RekindleError, match="out-averages exists and is not empty"):
        run(small(), "out", **RUN)
    run(small(), "out", overwrite=True, **RUN)
    assert not (tmp_path / "out-averages" / "mine").exists()
    run(small(), "plain", **RUN | {"keep_averages": False})
    assert not (tmp_path / "plain-averages").exists()


def test_average_as_it_is_typed(small: Callable, run: Callable, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(small(), "out", **RUN)

    def typed(*words: object):
        return CliRunner().invoke(rekindle, [*map(str, words)], prog_name="rekindle")

    done = typed("average", "out-averages", "made", "--sigma", 0.07)
    assert done.exit_code == 0, done.output
    assert "its profile is within" in done.output
    assert not Path("made/average.json").exists()
    assert typed("run", "made/rekindle.yaml", "again").exit_code == 0
    assert hashes(Path("again"))["model.safetensors"] == hashes(Path("made"))["model.safetensors"]
    for words, said in (
        (("average", "out", "x", "--sigma", 0.07), "holds no averages"),
        (("average", "out-averages", "x", "--sigma", 0.9), "sigma is 0.9"),
        (("average", "out-averages", "x", "--sigma", 0.07, "--step", 99), "No average after step 99"),
        (("average", "out-averages", "x"), "sigma is not given"),
    ):
        assert said in str(typed(*words).exception)


def test_profiles_in_closed_form():
    grid = (np.arange(400_000) + 0.5) / 400_000 * 50
    profiles = [Profile(0.05, 50), Profile(0.10, 50), Profile(0.10, 20), Profile(0.2, 35)]

    def values(p: Profile) -> np.ndarray:
        g = exponent(p.sigma)
        return np.where(grid <= p.step, (g + 1) * grid**g / p.step ** (g + 1), 0)

    for one in profiles:
        assert values(one).mean() * 50 == pytest.approx(1, rel=1e-4)
        mean = (values(one) * grid).mean() * 50
        spread = np.sqrt((values(one) * (grid - mean) ** 2).mean() * 50)
        assert spread / one.step == pytest.approx(one.sigma, rel=1e-3)
        for other in profiles:
            assert product(one, other) == pytest.approx((values(one) * values(other)).mean() * 50, rel=1e-3)
    kept = [Profile(sigma, step) for sigma in SIGMAS for step in (10, 20, 30, 40, 50)]
    assert np.allclose(post_hoc(kept, kept[4]), np.eye(10)[4], atol=1e-4)
    between = post_hoc(kept, Profile(0.07, 50))
    assert between.sum() == pytest.approx(1)
    made = sum(x * values(p) for x, p in zip(between, kept, strict=True))
    wanted = values(Profile(0.07, 50))
    off = np.sqrt(np.square(made - wanted).mean() / np.square(wanted).mean())
    assert misfit(kept, between, Profile(0.07, 50)) == pytest.approx(off, rel=0.02)
    assert off < 0.03
