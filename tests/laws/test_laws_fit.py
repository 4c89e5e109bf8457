"""Fits: noise-free data give the numbers back, and intervals, doubts and refusals are what they should be."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from rekindle import api
from rekindle.errors import RekindleError
from rekindle.laws.config import FitConfig
from rekindle.laws.decide import decide
from rekindle.laws.doubt import identified, left_out, rivals
from rekindle.laws.fit import fit
from rekindle.laws.fitted import fitted
from rekindle.laws.intervals import bootstrap, percentiles, profile, standard_errors
from rekindle.laws.law import law_named, published, read_law
from rekindle.laws.question import Question
from rekindle.laws.read import read_table
from rekindle.laws.solve import solve
from rekindle.laws.table import Table, make_table
from rekindle.laws.write import law_of, write_law

LAW = published()["upcycling-2025"]


def grid(noise: float = 0.0, seed: int = 0, ways: tuple[str, ...] = ("dense", "scratch", "upcycled")) -> Table:
    """Runs of the published law: 4 sizes, 4 D1, 4 D2."""
    random, rows = np.random.default_rng(seed), []
    for n in np.geomspace(15e6, 1e9, 4):
        for d1 in np.geomspace(2e9, 74e9, 4):
            rows += [(way, n, 0.0, d1) for way in ("dense", "scratch") if way in ways]
            rows += [("upcycled", n, d1, d2) for d2 in np.geomspace(1e9, 37e9, 4) if "upcycled" in ways]
    return make_table([row(way, n, d1, d2, random.normal(0, noise)) for way, n, d1, d2 in rows], "a grid")


def row(way: str, n: float, d1: float, d2: float, error: float = 0.0) -> dict:
    loss = LAW.row(way).loss(params=n, sunk=d1, tokens=d2) + error
    return {"way": way, "params": n, "sunk": d1, "tokens": d2, "loss": float(loss)}


@pytest.mark.parametrize("objective", ["huber", "squares"])
def test_ways_that_share_a_number_are_found_again_together(objective):
    found = fit(grid(), "upcycling", objective)
    assert found.converged
    for way in ("dense", "scratch", "upcycled"):
        for name, value in LAW.row(way).values.items():
            assert found.values[name if name == "E" else f"{way}.{name}"] == pytest.approx(value, rel=1e-6)


FORMS = {
    "chinchilla": ("chinchilla-epoch", "dense"),
    "moe-joint": ("joint-moe-2025", "scratch"),
    "moe-sparsity": ("sparsity-2025", "scratch"),
    "moe-granularity": ("granularity-2024", "scratch"),
    "moe-routed": ("clark-2022", "s-base"),
}


@pytest.mark.parametrize("objective", ["huber", "squares"])
@pytest.mark.parametrize("form", FORMS)
def test_noise_free_runs_give_every_published_law_back(form, objective):
    law, name = FORMS[form]
    known, random = published()[law].row(name), np.random.default_rng(1)
    points = {
        "params": np.exp(random.uniform(np.log(1e8), np.log(1e10), 250)),
        "tokens": np.exp(random.uniform(np.log(1e9), np.log(1e12), 250)),
        "experts": random.choice([1.0, 2, 4, 8, 16, 32], 250),
        "granularity": random.choice([1.0, 2, 4, 8, 16], 250),
        "active_share": random.choice([1, 0.5, 0.25, 0.1, 0.05], 250),
    }
    columns = {**points, "loss": known.loss(**points)}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    found = fit(make_table(rows, "drawn"), form, objective)
    assert {n: known.values[n] for n in found.values} == pytest.approx(found.values, rel=1e-6)


def test_coordinates_turn_back_exactly_and_gradients_hold():
    found = fit(grid(0.005), "upcycling")
    design, z = found.design, found.z
    assert design.coordinates(design.values(z)) == pytest.approx(z, rel=1e-9, abs=1e-9)
    jacobian = design.jacobian(z[None])[0]
    for i in range(len(z)):
        step = 1e-6 * np.eye(len(z))[i]
        slope = (design.predict((z + step)[None]) - design.predict((z - step)[None]))[0] / 2e-6
        assert jacobian[:, i] == pytest.approx(slope, abs=1e-7)


def test_tightening_the_tolerance_a_thousand_times_moves_no_interval():
    """Loose stopping once cut the coverage of 90 % intervals to 57 %."""
    found = fit(grid(0.005, ways=("upcycled",)), "upcycling")
    tight = replace(found, problem=replace(found.problem, tolerance=found.problem.tolerance / 1000))
    loose, close = (percentiles(f.design.values(bootstrap(f, 400).z)) for f in (found, tight))
    assert np.all(np.abs(loose - close) < 0.02 * (close[1] - close[0]))


def test_a_batch_is_the_fits_one_by_one():
    found = fit(grid(0.005, ways=("dense",)), "chinchilla")
    random = np.random.default_rng(0)
    weights = random.multinomial(16, np.full(16, 1 / 16), 20).astype(float)
    batch = solve(found.problem, np.repeat(found.z[None], 20, axis=0), weights)
    for i in range(20):
        alone = solve(found.problem, found.z[None], weights[i])
        assert alone.objective[0] == pytest.approx(batch.objective[i], rel=1e-9, abs=1e-15)


def test_squares_agree_with_least_squares_of_scipy():
    from scipy.optimize import least_squares

    table = grid(0.005, ways=("dense",))
    found = fit(table, "chinchilla", "squares")

    def residuals(z: np.ndarray) -> np.ndarray:
        return found.design.predict(z[None])[0] - table.numbers["loss"]

    theirs = least_squares(residuals, found.z + 0.1, x_scale="jac", ftol=1e-15, xtol=1e-15, gtol=1e-15)
    assert found.objective == pytest.approx(theirs.cost, rel=1e-9)


def test_with_little_noise_a_profile_is_student_s_interval():
    from scipy.special import stdtrit

    found = fit(grid(1e-5, ways=("dense",)), "chinchilla", "squares")
    design = found.design.uncentred()
    errors = standard_errors(found, design, design.coordinates(found.design.values(found.z)))
    low, high = profile(found)
    half = float(stdtrit(16 - 5, 0.95)) * errors
    for i, name in enumerate(found.design.names):
        width = math.log(high[i] / low[i]) if name in ("A", "B") else high[i] - low[i]
        assert width / 2 == pytest.approx(half[i], rel=0.02)


def test_a_number_that_nothing_tells_is_unbounded_and_named():
    rows = [row("dense", n, 0, d) for n in (1e9, 1.02e9) for d in np.geomspace(1e10, 1e11, 8)]
    random = np.random.default_rng(0)
    for r in rows:
        r["loss"] += random.normal(0, 0.003)
    found = fit(make_table(rows, "hardly two sizes"), "chinchilla")
    assert not np.isfinite(profile(found)).all()
    assert identified(found).weak


def test_left_out_is_worse_than_fitted_and_finds_the_outlier():
    table = grid(0.003, ways=("upcycled",))
    loss = table.numbers["loss"].copy()
    loss[17] += 0.2
    found = fit(Table({**table.numbers, "loss": loss}, table.labels, "a grid"), "upcycling")
    assert int(np.abs(left_out(found)).argmax()) == 17


def test_the_form_that_made_the_runs_holds_out_best():
    found = {r.form: r for r in rivals(grid(0.001), FitConfig())}
    assert found["upcycling"].left_out < found["additive"].left_out
    for variable in ("sunk", "tokens"):
        assert found["upcycling"].held_out[variable] < found["additive"].held_out[variable]


def test_branches_of_a_trunk_are_drawn_together():
    table = grid(0.005, ways=("upcycled",))
    trunks = np.array([f"{n}" for n in table.numbers["params"]])
    shared = Table(table.numbers, {**table.labels, "trunk": trunks}, "a grid")
    found = fitted(shared, FitConfig(bootstrap=200))
    assert (found.drawn.by, found.drawn.clusters) == ("trunk", 4)
    assert any("only 4 trunks" in note for note in found.notes)


def test_a_law_file_of_a_fit_decides_as_the_fit(tmp_path):
    source, out = tmp_path / "runs.csv", tmp_path / "law.yaml"
    write_csv(grid(0.002), source)
    found = api.fit(source, out=out, bootstrap=300)
    law = law_named(out)
    assert law.fit_error_known
    for name, value in found.found.values.items():
        way, _, parameter = name.rpartition(".")
        assert law.row(way or "dense").values[parameter] == value
    answer = api.plan(params="500M", sunk="30B", tokens="5B", law=str(out)).to_dict()
    assert answer["verdict"] in ("worth it", "not worth it", "undecided")
    assert not answer["outside"]
    with pytest.raises(RekindleError, match="exists"):
        api.fit(source, out=out, bootstrap=300)


def write_csv(table: Table, path) -> None:
    names = [*table.numbers, "way"]
    columns = [*table.numbers.values(), table.labels["way"]]
    lines = [",".join(names), *(",".join(map(str, values)) for values in zip(*columns, strict=True))]
    path.write_text("\n".join(lines) + "\n")


def test_columns_are_found_by_the_names_that_people_use(tmp_path):
    path = tmp_path / "epoch.csv"
    lines = ["Model Size,Training FLOP,loss"]
    for n in (1e8, 1e9, 4e9):
        for d in np.geomspace(1e10, 1e12, 4):
            loss = float(published()["chinchilla-epoch"].row("dense").loss(params=n, tokens=d))
            lines.append(f"{n},{6 * n * d},{loss}")
    path.write_text("\n".join(lines))
    table = read_table(path)
    assert table.numbers["tokens"][:4] == pytest.approx(np.geomspace(1e10, 1e12, 4))
    assert len(read_table(path, max_loss=3.0)) < 12
    found = api.fit(path, form="chinchilla", bootstrap=100).to_dict()
    assert found["numbers"]["beta"]["value"] == pytest.approx(0.3658, rel=1e-6)


HEAD = "params,sunk,tokens,loss\n"
FULL = "".join(f"{n},{d1},{d2},{3 - 0.1 * i}\n" for i, (n, d1, d2) in enumerate(
    (n, d1, d2) for n in (1e8, 1e9) for d1 in (1e9, 1e10) for d2 in (1e9, 1e10, 1e11)))  # fmt: skip


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("", {}, "no rows"),
        ("params,tokens\n1e9,1e9\n", {}, "lacks loss"),
        ("params,loss\n1e9,3\n", {}, "lacks tokens"),
        (HEAD + "1e9,1e9,1e9,x\n", {}, "loss is 'x'"),
        (HEAD + FULL + "1e9,1e9,1e9,0\n", {}, "row 13 .0."),
        (HEAD + "1e9,1e9,1e9,nan\n", {}, "None of 1 runs ended with a loss"),
        (HEAD + FULL.replace("100000000.0", "0.1").replace("1000000000.0", "1"), {}, "not millions or billions"),
        (HEAD + FULL + "1e9,1e10,1e11,2.1\n", {}, "more than once"),
        (HEAD + FULL + "1e9,inf,1e11,2.1\n", {}, "sunk is no positive number in 1 rows: row 13"),
        (HEAD + FULL + "nan,1e9,1e11,2.1\n", {}, "params is no positive number"),
        (HEAD + FULL + ",1e9,1e11,2.1\n", {}, "params is ''"),
        (HEAD + FULL, {"max_loss": "0.1"}, "No loss is 0.1"),
        (HEAD + FULL, {"seed": "-1"}, "seed is -1"),
        (HEAD.replace("loss", "loss,run") + FULL.replace("\n", ",a\n"), {}, "one run"),
        (HEAD + FULL.replace("\n", ",,\n"), {"columns": ("params=M",)}, "no column 'M'"),
        (HEAD + FULL.replace("-", ""), {"form": "upcyclin"}, "upcycling"),
        (HEAD + "".join(FULL.splitlines(keepends=True)[:7]), {}, "cannot tell the 7 numbers"),
        (HEAD + FULL, {"columns": ("params=M",)}, "no column 'M'"),
        (HEAD + FULL, {"columns": ("paramz=params",)}, "params"),
        (HEAD + FULL, {"columns": ("params",)}, "names nothing"),
        (HEAD + FULL, {"form": "moe-joint"}, "needs experts"),
        (HEAD + FULL, {"bootstrap": "5"}, "5 bootstrap fits"),
        (HEAD + FULL, {"objective": "mean"}, "huber, squares"),
    ],
)
def test_a_table_that_cannot_carry_a_law_is_refused_in_a_sentence(tmp_path, text, options, said):
    path = tmp_path / "runs.csv"
    path.write_text(text)
    with pytest.raises(RekindleError, match=said):
        api.fit(path, **options)


def test_one_d1_cannot_tell_its_exponent(tmp_path):
    path = tmp_path / "runs.csv"
    rows = [f"{n},1e10,{d2},3" for n in (1e8, 1e9, 2e9) for d2 in (1e9, 1e10, 1e11, 2e11)]
    path.write_text(HEAD + "\n".join(rows))
    with pytest.raises(RekindleError, match="All rows of upcycled have sunk 1e"):
        api.fit(path)


def test_a_loss_that_rises_with_tokens_is_noted():
    rows = [row("dense", 1e9, 0, d) for d in (1e9, 1e10, 1e11)]
    rows[2]["loss"] += 2
    assert "rises with tokens 1 time" in make_table(rows, "rising").notes[0]


def test_the_next_run_narrows_the_difference_as_it_says():
    """The suggested run, added to the table, lowers the standard error to what was promised, and more than others."""
    from rekindle.laws.intervals import covariance
    from rekindle.laws.next_run import _deciding, next_run
    from rekindle.laws.question import Question

    table, question = grid(0.003), Question(2e9, 1e11, 5e10)
    found = fit(table, "upcycling", "squares")
    best = next_run(found, question)
    assert best.after < best.before

    def error_with(way: str, n: float, d1: float, d2: float) -> float:
        rows = [dict(zip([*table.numbers, "way"], values, strict=True))
                for values in zip(*table.numbers.values(), table.labels["way"], strict=True)]  # fmt: skip
        law = found.predict(found.z[None], way, params=n, sunk=max(d1, 1.0), tokens=d2)
        more = make_table(
            [*rows, {"way": way, "params": n, "sunk": d1, "tokens": d2, "loss": float(law.item())}], "more"
        )
        refit = fit(more, "upcycling", "squares")
        c = _deciding(refit, question)
        return float(np.sqrt(c @ covariance(refit) @ c))

    n = len(table)
    spare = math.sqrt((n - len(found.z)) / (n + 1 - len(found.z)))  # the noise is estimated with one more to spare
    assert error_with(best.way, best.params, best.sunk, best.tokens) == pytest.approx(best.after * spare, rel=0.02)
    assert error_with("dense", 1e8, 0.0, 1e10) > best.after


@pytest.mark.parametrize("words", ["params=1B", "params=1B,sunk=x,tokens=1B", "params=1B,sunk=1,tokens=1B"])
def test_a_next_that_is_no_question_is_refused(tmp_path, words):
    path = tmp_path / "runs.csv"
    write_csv(grid(0.003), path)
    with pytest.raises(RekindleError, match="next is|sunk is"):
        api.fit(path, bootstrap=100, next=words)


def test_a_blank_run_is_a_run_of_its_own_and_replicas_are_no_rise():
    rows = [row("dense", n, 0, d, e) for n in (1e8, 1e9) for d in (1e9, 1e10, 1e11) for e in (0.0, 0.01)]
    table = make_table([{**r, "run": "" if i % 3 else f"r{i}"} for i, r in enumerate(rows)], "blanks")
    assert len(set(table.labels["run"])) == len(rows)
    assert not table.notes


def test_the_same_row_of_the_same_run_twice_is_refused():
    rows = [{**row("dense", n, 0, d), "run": f"{n} {d}"} for n in (1e8, 1e9) for d in (1e9, 1e10, 1e11)]
    with pytest.raises(RekindleError, match="more than once"):
        make_table([*rows, rows[0]], "twice")


def test_what_a_table_says_nothing_of_is_no_ground_for_a_verdict(tmp_path):
    """Two sizes fit any exponent of N: a bootstrap stays where it starts, and the verdict must not."""
    law, noise = published()["upcycling-2025"], np.random.default_rng(0)
    rows = []
    for n in (1e8, 2e8):
        for d2 in (1e9, 4e9, 16e9, 64e9):
            for way, d1 in (("scratch", 0.0), ("upcycled", 1e9), ("upcycled", 8e9), ("upcycled", 64e9)):
                loss = float(law.row(way).loss(params=n, sunk=d1, tokens=d2)) + 0.003 * noise.standard_normal()
                rows.append({"way": way, "params": n, "sunk": d1, "tokens": d2, "loss": loss})
    found = fitted(make_table(rows, "two sizes"), FitConfig(bootstrap=400))
    assert any("a bootstrap stays where it starts" in note for note in found.notes)
    write_law(law_of(found.found, found.drawn, "two"), tmp_path / "two.yaml")
    far = decide(read_law(tmp_path / "two.yaml"), Question(4e9, 6e10, 1e10))
    assert far.verdict == "undecided"
    assert "say nothing of" in far.reason
    assert "say nothing of" not in decide(read_law(tmp_path / "two.yaml"), Question(1.5e8, 8e9, 1e10)).reason


def test_the_way_with_the_fewest_clusters_is_named():
    rows = [{"way": way, "params": n, "sunk": 0.0 if way == "dense" else d1, "tokens": d2, "trunk": f"{way}{n}{d1}",
             "run": f"{way}{n}{d1}{d2}", "loss": 2 + n**-0.1 + d2**-0.1 + 0.01 * d1**-0.1}
            for way, first in (("dense", (1e9,)), ("upcycled", (1e9, 4e9, 1.6e10)))
            for d1 in first for n in (1e8, 2e8, 4e8, 8e8) for d2 in (1e9, 4e9, 1.6e10)]  # fmt: skip
    found = fit(make_table(rows, "few"), "upcycling", "squares")
    assert bootstrap(found, 100, "trunk").note == "only 4 trunks of dense to draw from: intervals are too narrow"
