"""Published laws: the numbers that the papers and their checks print."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from rekindle.errors import RekindleError
from rekindle.laws.forms import saturated
from rekindle.laws.law import law_named, published, read_law

# N1, D1, D2: dense at D1, upcycled, scratch at D2, scratch at D1 + D2; from arXiv 2502.03009's table 2
VECTORS = [
    (1e8, 1e10, 1e10, 2.780815082, 2.554771799, 2.565568548, 2.482622875),
    (1e9, 7.4e10, 3.7e10, 2.252530417, 2.144203582, 2.144660908, 2.041504183),
    (1e9, 1e11, 1e11, 2.227007636, 2.065400036, 2.050537902, 1.993285497),
    (1e9, 1e12, 1e12, 2.052665735, 1.874964802, 1.882589611, 1.843071722),
    (7e9, 1e12, 1e11, 1.828075012, 1.847070589, 1.856879472, 1.683232331),
]
# experts: m, mu, n, nu of L = m N^mu + n D^nu + c; Ludziejewski et al. 2025, table 4, beside table 3's numbers
TABLE_4 = {
    1: (30.3640, -0.1817, 53.9838, -0.1965),
    2: (27.7982, -0.1780, 66.8401, -0.2065),
    4: (24.8462, -0.1731, 87.7022, -0.2192),
    8: (21.8330, -0.1676, 119.9126, -0.2338),
    16: (19.0159, -0.1617, 167.5073, -0.2494),
    32: (16.5424, -0.1557, 234.6726, -0.2652),
}


@pytest.mark.parametrize(("n", "d1", "d2", "dense", "upcycled", "scratch", "both"), VECTORS)
def test_the_upcycling_law_s_vectors(n, d1, d2, dense, upcycled, scratch, both):
    law = published()["upcycling-2025"]
    assert law.row("dense").loss(params=n, tokens=d1) == pytest.approx(dense, abs=1e-9)
    assert law.row("upcycled").loss(params=n, sunk=d1, tokens=d2) == pytest.approx(upcycled, abs=1e-9)
    assert law.row("scratch").loss(params=n, tokens=d2) == pytest.approx(scratch, abs=1e-9)
    assert law.row("scratch").loss(params=n, tokens=d1 + d2) == pytest.approx(both, abs=1e-9)


@pytest.mark.parametrize("experts", TABLE_4)
def test_table_3_gives_table_4(experts):
    row = published()["joint-moe-2025"].row("scratch")
    v, (m, mu, n, nu) = row.values, TABLE_4[experts]
    log_e = math.log(float(saturated(experts, v["E_start"], v["E_max"])))
    loss = m * 1e9**mu + n * 1e11**nu + 1.3637
    assert v["a"] * math.exp(v["delta"] * log_e) == pytest.approx(m, rel=0.003)
    assert v["b"] * math.exp(v["omega"] * log_e) == pytest.approx(n, rel=0.003)
    assert v["alpha"] + v["gamma"] * log_e == pytest.approx(mu, abs=1.5e-4)
    assert v["beta"] + v["zeta"] * log_e == pytest.approx(nu, abs=1.5e-4)
    assert row.loss(params=1e9, tokens=1e11, experts=experts) == pytest.approx(loss, rel=0.004)


def test_saturated_experts_of_the_paper():
    found = [float(saturated(e, 2.0732, 290.4521)) for e in (1, 8, 32)]
    assert found == pytest.approx([2.0732, 8.8124, 29.7042], abs=1e-4)


def test_a_printed_number_may_lie_anywhere_within_its_rounding():
    law = published()["upcycling-2025"]
    assert law.row("upcycled").rounding["alpha3"] == pytest.approx(0.005e-4)
    assert law.row("scratch").rounding["A"] == pytest.approx(0.05)
    sample = law.sample(400)
    for name, row in law.rows.items():
        for key, value in row.values.items():
            drawn = sample[name][key]
            assert drawn.shape == (400, 1)
            assert np.all(abs(drawn - value) <= row.rounding[key] * (1 + 1e-9))
    assert np.array_equal(sample["dense"]["E"], sample["upcycled"]["E"])  # one number in all rows
    assert not np.array_equal(sample["dense"]["A"], sample["upcycled"]["A"])


def test_a_printed_standard_error_is_drawn_too():
    law = published()["granularity-2024"]
    drawn = law.sample(4000)["scratch"]["c"]
    assert drawn.std() == pytest.approx(math.hypot(0.015, 0.005 / math.sqrt(3)), rel=0.05)
    assert abs(drawn.mean() - 0.47) < 0.001
    assert not law.fit_error_known  # of the dense row none is printed


def test_rounding_alone_moves_predictions_by_about_a_hundredth():
    law = published()["upcycling-2025"]
    drawn = law.row("upcycled").form.predict(
        law.sample(2000)["upcycled"], {"params": np.array(1e9), "sunk": np.array(1e11), "tokens": np.array(5e10)}
    )
    assert 0.008 < drawn.std() < 0.018


def test_outside_its_domain_a_law_says_so():
    row = published()["upcycling-2025"].row("upcycled")
    assert row.outside({"params": 1e9, "sunk": 1e11, "tokens": 5e10}) == []
    assert "sunk 1e+12" in row.outside({"params": 1e9, "sunk": 1e12, "tokens": 5e10})[0]


GOOD = """
name: mine
rows:
  dense: {form: chinchilla, coefficients: {A: 400, alpha: 0.34, B: 410, beta: 0.28, E: 1.7}}
"""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("chinchilla", "chinchila"), "no form 'chinchila'"),
        (("A: 400, ", ""), "needs A"),
        (("A: 400", "A: four"), "'four' is not a number"),
        (("A: 400", "A: .nan"), "nan is not a number"),
        (("E: 1.7", "E: 1.7, z: 1"), "has no z"),
        (("name:", "nome:"), "no key 'nome'"),
        (("rows:", "row:"), "needs rows"),
        (("rows:", "domain: {params: 5}\nrows:"), "domain of params"),
        (("rows:", "seen: maybe\nrows:"), "seen is 'maybe'"),
        (("rows:", "draws: {dense: {A: [1]}}\nrows:"), "draws are broken"),
        (("chinchilla,", "chinchilla, params: some,"), "params is 'some'"),
        (("chinchilla,", "chinchilla, domian: {},"), "no key 'domian'"),
        (("rows:", "shared: 5\nrows:"), "shared is 5"),
        (("rows:", "domain: {params: [a, b]}\nrows:"), "domain of params"),
        (("rows:", "domain: {params: [1, .inf]}\nrows:"), "domain of params"),
    ],
)
def test_a_broken_law_file_is_refused_in_a_sentence(tmp_path: Path, change, said):
    path = tmp_path / "law.yaml"
    path.write_text(GOOD)
    assert read_law(path).row("dense").values["A"] == 400
    path.write_text(GOOD.replace(*change))
    with pytest.raises(RekindleError, match=said):
        read_law(path)


def test_a_law_that_is_not_there_is_told_its_nearest_name():
    with pytest.raises(RekindleError, match="upcycling-2025"):
        law_named("upcyling-2025")
