"""fit's page: its numbers are the fit's, its figures are there."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from headless import overflowing

from rekindle import api
from rekindle.laws.law import published

pytestmark = pytest.mark.xdist_group("fit")  # one page for all


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder, law = tmp_path_factory.mktemp("fit"), published()["upcycling-2025"]
    random, lines = np.random.default_rng(0), ["way,params,sunk,tokens,loss"]
    for n in np.geomspace(15e6, 1e9, 3):
        for d1 in np.geomspace(2e9, 74e9, 3):
            for way, sunk, tokens in [("dense", 0, d1), *(("upcycled", d1, d2) for d2 in np.geomspace(1e9, 37e9, 3))]:
                loss = law.row(way).loss(params=n, sunk=sunk, tokens=tokens) + random.normal(0, 0.003)
                lines.append(f"{way},{n},{sunk},{tokens},{loss}")
    (folder / "runs.csv").write_text("\n".join(lines) + "\n")
    return folder, api.fit(folder / "runs.csv", report=folder / "page", bootstrap=200)


def test_the_page_s_numbers_are_the_fit_s(fitted):
    folder, found = fitted
    rows = list(csv.DictReader((folder / "page" / "numbers.csv").read_text().splitlines()))
    assert {row["name"]: float(row["value"]) for row in rows} == found.found.values
    text = (folder / "page" / "index.html").read_text()
    for name, number in found.numbers.items():
        assert f'<th scope="row">{name}</th><td class="number" data-label="Value">{number.value:.5g}</td>' in text
    for form in ("upcycling", "no-interaction", "additive"):
        assert form in text


def test_every_figure_s_csv_holds_a_row_for_each_run(fitted):
    folder, found = fitted
    figures = folder / "page" / "figures"
    sizes = {"curves-dense": 9, "curves-upcycled": 27, "residuals": 36}
    for name, count in sizes.items():
        rows = list(csv.DictReader((figures / f"{name}.csv").read_text().splitlines()))
        assert len(rows) == count
        assert (figures / f"{name}.png").stat().st_size > 10_000
    residual = [float(row["residual"]) for row in rows]
    assert residual == pytest.approx(found.found.residuals)


def test_the_page_says_what_to_ask_the_law_and_its_best_sizes(fitted):
    folder, _ = fitted
    text = (folder / "page" / "index.html").read_text()
    assert "rekindle plan --law law.yaml --params 1.00B --sunk 74.0B --tokens 74.0B" in text
    assert "The best size for a budget" in text


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 860, 1400])
def test_nothing_is_wider_than_the_screen(fitted, tmp_path, width):
    assert overflowing(fitted[0] / "page" / "index.html", tmp_path, width) == []
