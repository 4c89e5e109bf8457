"""What counts is settled in a file before the runs: no row, no run; changed after they began, no page."""

from __future__ import annotations

from pathlib import Path

import pytest

from rekindle.errors import RekindleError
from rekindle.lab import study as bench
from rekindle.lab.claims import Claim
from rekindle.lab.margin import Margin, Margins, begun_with, margins_of
from rekindle.lab.study import Seeded, run

LOWER = Claim("lower", "a ends below b", "yes", "a", "b")
ALIKE = Claim("alike", "a ends as low as b", "yes", "a", "b", alike=True)
GOOD = "pilot: none\nclaims:\n  lower: {least: 0.02, spread: 0.01, why: a}\n  alike: {within: 0.01, why: b}\n"


def written(folder: Path, text: str) -> Path:
    (folder / "one.yaml").write_text(text)
    return folder


def test_rows_are_read_with_the_digest_of_their_file(tmp_path):
    found = margins_of("one", [LOWER, ALIKE], written(tmp_path, GOOD))
    assert {key: row.size for key, row in found.rows.items()} == {"lower": 0.02, "alike": 0.01}
    assert (found.file, found.pilot, len(found.digest)) == ("margins/one.yaml", "none", 12)
    again = margins_of("one", [LOWER, ALIKE], written(tmp_path, GOOD + "\n"))
    assert again.digest != found.digest


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("claims: {}\n", "'a ends below b' has no margin"),
        (GOOD.replace("least: 0.02", "within: 0.02"), "'a ends below b' has no margin"),
        (GOOD.replace("least: 0.02", "least: 0"), "'a ends below b' has no margin"),
        (GOOD.replace("least: 0.02", "least: .nan"), "'a ends below b' has no margin"),
        (GOOD.replace("within: 0.01", "within: 0.01, least: 0.01"), "'a ends as low as b' has no margin"),
        (GOOD.replace("spread: 0.01", "spread: -1"), "'a ends below b' has no margin"),
        (GOOD.replace("why: b", "because: b"), "There is no option 'because'"),
        (GOOD + "  more: {least: 1, why: c}\n", "There is no claim 'more'"),
    ],
)
def test_a_claim_without_its_row_is_refused(tmp_path, text, said):
    with pytest.raises(RekindleError) as refused:
        margins_of("one", [LOWER, ALIKE], written(tmp_path, text))
    assert said in str(refused.value)
    assert "one.yaml" in str(refused.value)


def test_a_study_with_an_unsettled_claim_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "perform", lambda *_, **__: pytest.fail("it ran"))
    unsettled = Seeded("gqa", [LOWER], lambda seed, size: [], lambda runs, size: pytest.fail("it was read"))
    with pytest.raises(RekindleError, match="has no margin"):
        run(unsettled, tmp_path / "out", print, seeds=1, quick=True)
    assert not (tmp_path / "out").exists()


def test_margins_that_change_after_the_runs_began_are_refused(tmp_path):
    def rows(digest, **row):
        return Margins({"lower": Margin(**row)}, "margins/one.yaml", digest)

    assert begun_with(rows("first", least=0.02, why="a"), tmp_path).digest == "first"
    assert begun_with(rows("second", least=0.02, why="said in better words"), tmp_path).digest == "first"
    for other in ({"least": 0.001}, {"within": 0.02}):
        with pytest.raises(RekindleError, match="The margins of lower were others when these runs began"):
            begun_with(rows("third", why="a", **other), tmp_path)
