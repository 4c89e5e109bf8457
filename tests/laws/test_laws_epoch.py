"""Epoch's 240 points of Hoffmann's figure 4: no licence, so the file is the reader's own (REKINDLE_EPOCH_CSV)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from rekindle.laws.fit import fit
from rekindle.laws.intervals import bootstrap
from rekindle.laws.read import read_table

PATH = os.environ.get("REKINDLE_EPOCH_CSV")
OPTIMUM = {"A": 477.8258, "B": 2143.417, "E": 1.8172181, "alpha": 0.3473105, "beta": 0.36717243}
# 2.5th and 97.5th percentiles of Epoch's own 4,000 bootstraps
INTERVALS = {
    "A": (285.2, 743.6),
    "B": (1042.4, 5810.3),
    "E": (1.769, 1.871),
    "alpha": (0.317, 0.373),
    "beta": (0.331, 0.415),
}


@pytest.mark.skipif(not PATH, reason="REKINDLE_EPOCH_CSV names no file: svg_extracted_data.csv of analyzing-chinchilla")
def test_the_objective_and_the_numbers_of_epoch_s_refit():
    table = read_table(Path(str(PATH)), max_loss=3.44)  # without the five highest, as Epoch
    assert len(table) == 240
    found = fit(table, "chinchilla")
    assert found.objective == pytest.approx(0.0010182740, abs=1e-8)
    assert found.values == pytest.approx(OPTIMUM, rel=1e-3)
    drawn = found.design.values(bootstrap(found, 2000).z)
    for i, name in enumerate(found.design.names):
        low, high = INTERVALS[name]
        assert low < np.median(drawn[:, i]) < high
        assert np.percentile(drawn[:, i], [2.5, 97.5]) == pytest.approx((low, high), rel=0.1)
