"""What is said of a combination, by its numbers; and its page in a browser."""

from __future__ import annotations

import pytest
from headless import CHROMIUM, browse, overflowing

from rekindle.report.combination import combination_text, rows_of, verdict, write_combination

METRICS = ("fd", "kid", "pixel fd", "sliced W", "nearest")
KINDS = ("last", "single", "uniform", "EMA", "WSM", "post-hoc EMA", "random search", "combination")


def found(*, result: str = "combination", rival: str = "EMA", held_out: bool = True, apart=(-0.3, -0.4, -0.2), draws=3):
    """As OUT/combine.json has it: 40 checkpoints, five metrics."""
    mean, lo, hi = apart if draws > 1 else (apart[0], None, None)
    rows = []
    for i, kind in enumerate(KINDS):
        value = 2.0 if kind == rival else 2.0 + mean if kind == result else 2.4
        less = dict.fromkeys(METRICS, {"mean": value - 2.0, "lo": lo, "hi": hi})
        row = {"kind": kind, "name": f"over {i + 2}", "less_ema": less, "less_rival": less, "distance": 0.1 * i}
        row["searched"] = None if kind == "combination" else value
        row["reported"] = {name: [value * (1 + j)] * draws for j, name in enumerate(METRICS)}
        row["coefficients"] = [(-1) ** k * 0.1 if kind == "combination" else 1 / 40 for k in range(40)]
        rows.append(row)
    return {
        "objective": "fd",
        "search": "gradient",
        "sum": "one",
        "seed": 0,
        "options": {},
        "values": 151_104,
        "checkpoints": [f"step-{60 * k}" for k in range(1, 41)],
        "searched": "searched",
        "alone": [2.5 - 0.01 * k for k in range(39)] + [None],
        "held_out": held_out,
        "evaluations": {"rivals": 92, "search": 100.0},
        "invalid": 0,
        "rival": rival,
        "result": result,
        "rows": rows,
        "groups": [],
        "floor": dict.fromkeys(METRICS, 0.25),
        "seeds": [[0.025] * 40, [0.1, -0.05] * 20, [0.08, -0.03] * 20],
        "notes": ["a restart"],
    }


BELOW = "the combination: fd 1.7, 0.3 (15.0 %) below the best EMA (over 5), the best without a search, on data that"
NOTHING = "Nothing that was found beats the best EMA (over 5), on data that nothing was chosen by: that is the result."
RANDOM = "random search's best, which gradient did not reach: fd 1.7, 0.3 (15.0 %) below the last checkpoint, "


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (found(), f"{BELOW} nothing was chosen by; 95 % interval 0.2 to 0.4."),
        (found(apart=(-0.01, -0.05, 0.03)), "95 % interval −0.03 to 0.05, so it may be chance."),
        (found(draws=1, held_out=False), "where it was searched, not held out; of one value no interval is known."),
        (found(result="EMA"), NOTHING),
        (
            found() | {"result": "EMA"},
            "The best EMA (over 5) came before all that was found, on data that they were ranked",
        ),
        (found(result="single", rival="single"), "Nothing that was found beats the single checkpoint over 3, "),
        (found(result="random search", rival="last"), RANDOM),
    ],
)
def test_the_verdict_says_what_the_numbers_do(data, said):
    assert said in verdict(data)


def test_every_row_has_every_metric_and_no_number_is_made_up():
    head, *rows = rows_of(found())
    assert head[3:8] == METRICS
    assert [row[0] for row in rows] == [*KINDS, "real data"]
    assert rows[3][3:8] == ("2", "4", "6", "8", "10")
    assert rows[-2][2] == ""  # its own score is of data that no other row saw
    assert rows[-1] == ("real data", "its two halves", "", *["0.25"] * 5, "", "", "")
    assert len(rows_of(found() | {"floor": {}})) == len(rows)
    assert rows[3][8:10] == ("", "")  # the EMA less itself
    text = combination_text(found() | {"invalid": 3})
    assert "3 gave no finite number, and lost" in text
    assert "note: a restart" in text


def test_seeds_that_found_one_and_the_same_have_no_correlation(tmp_path):
    same = write_combination(found() | {"seeds": [[0.025] * 40] * 2}, tmp_path / "same").read_text()
    assert "What 2 searches found" in same
    assert "correlate" not in same
    assert "correlate by 1.00<" in write_combination(found(), tmp_path / "page").read_text()


def in_groups():
    """As where each of 12 layers has coefficients of its own, and an average that was kept is the result."""
    data = found() | {"groups": [str(layer) for layer in range(12)], "result": "kept EMA"}
    grouped = [[(-1) ** (k + layer) * 0.01 * layer for k in range(40)] for layer in range(12)]
    data["rows"][-1]["coefficients"] = grouped
    data["rows"].insert(0, data["rows"][0] | {"kind": "kept EMA", "coefficients": [1.0] + [0.0] * 41})
    return data | {"seeds": [grouped, grouped[::-1]]}


def test_groups_have_a_picture_of_their_own(tmp_path):
    page = write_combination(in_groups(), tmp_path / "page").read_text()
    assert "in each of 12 groups" in page
    assert "averaged over the groups, are negative" in page
    rows = (tmp_path / "page/figures/groups.csv").read_text().splitlines()
    assert rows[0] == "group,step,value"
    assert rows[1 + 40 * 11].startswith("11,60")
    assert len(rows) == 1 + 12 * 40
    lines = (tmp_path / "page/figures/coefficients.csv").read_text().splitlines()
    assert {line.split(",")[0] for line in lines[1:]} == {"EMA", "combination", "what was searched alone"}


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no browser")
@pytest.mark.parametrize("width", [390, 860, 1400])
@pytest.mark.parametrize("data", [found(), in_groups()], ids=["one", "groups"])
def test_nothing_of_the_page_is_cut(tmp_path, width, data):
    page = write_combination(data, tmp_path / "page")
    assert overflowing(page, tmp_path, width) == []
    assert browse(page, "--dump-dom", "--window-size=1280,3600").count("<svg") == 2 * (2 + bool(data["groups"]))
