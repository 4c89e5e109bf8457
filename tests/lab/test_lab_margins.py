"""What counts is settled in a file before the runs: no row, no run; changed after they began, no page."""

from __future__ import annotations

import csv
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest

from rekindle.errors import RekindleError
from rekindle.lab import study as bench
from rekindle.lab.claims import LOSS, Claim, judge
from rekindle.lab.margin import NOTED, Margin, Margins, begun_with, judged_before, margins_of
from rekindle.lab.page import Page, write_page
from rekindle.lab.study import Seeded, run

LOWER = Claim("lower", "a ends below b", "yes", "a", "b")
ALIKE = Claim("alike", "a ends as low as b", "yes", "a", "b", alike=True)
SETTLED = Margins({"lower": Margin(least=0.02, why="a")}, "margins/one.yaml", "first")
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
        (GOOD.replace("least: 0.02", "least: -1"), "least is -1"),
        (GOOD.replace("least: 0.02", "within: 0.02"), "its kind has 'least' alone"),
        (GOOD.replace("spread: 0.01", "spread: -1"), "The spread of 'a ends below b' is -1"),
        (GOOD.replace("spread: 0.01", "spread: .inf"), "The spread of 'a ends below b' is inf"),
        (GOOD.replace(", why: b", ""), "try:   why: ..."),
        (GOOD.replace("why: b", "because: b"), "There is no option 'because'"),
        (GOOD + "  more: {least: 1, why: c}\n", "There is no claim 'more'"),
    ],
)
def test_a_claim_without_its_row_is_refused(tmp_path, text, said):
    with pytest.raises(RekindleError) as refused:
        margins_of("one", [LOWER, ALIKE], written(tmp_path, text))
    assert said in str(refused.value)
    assert "one.yaml" in str(refused.value)


def test_a_row_that_cannot_be_read_is_told_once(tmp_path):
    """It is no row, but that there is none is not what to mend."""
    with pytest.raises(RekindleError) as refused:
        margins_of("one", [LOWER, ALIKE], written(tmp_path, GOOD.replace(", why: b", "")))
    assert str(refused.value) == "why is not given.\n  where: one.yaml: alike\n  try:   why: ..."


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
    assert [path.name for path in tmp_path.iterdir()] == [NOTED]


NOTES = (
    "{}",
    '{"digest": "a"}',
    '{"sizes": {}, "digest": 3}',
    '{"sizes": [], "digest": ""}',
    '{"sizes": {}, "digest": "", "seeds": 5}',
    '{"sizes": {}, "digest": "", "seeds": ["5"]}',
    "{",
    "[]",
)


@pytest.mark.parametrize("text", NOTES)
def test_a_note_that_does_not_say_its_margins_is_refused(tmp_path, text):
    (tmp_path / NOTED).write_text(text)
    with pytest.raises(RekindleError) as refused:
        begun_with(SETTLED, tmp_path)
    assert str(tmp_path / NOTED) in str(refused.value)
    assert (tmp_path / NOTED).read_text() == text


def test_a_note_that_is_cut_off_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        begun_with(SETTLED, tmp_path)
    assert not (tmp_path / NOTED).exists()


def test_a_study_without_claims_notes_no_margins(tmp_path):
    none = Margins({}, "")
    assert judged_before(begun_with(none, tmp_path), tmp_path, 5) == none
    assert not any(tmp_path.iterdir())


def test_runs_that_are_judged_again_with_more_seeds_say_so(tmp_path):
    def judged(seeds):
        return judged_before(begun_with(SETTLED, tmp_path), tmp_path, seeds).judged

    assert [judged(n) for n in (5, 5, 14, 14, 5)] == [(), (), (5,), (5,), (14,)]
    text = page_of(tmp_path / "page", judged(5))
    assert "These runs were judged before, with 14 seeds." in text
    assert "judged before" not in page_of(tmp_path / "page", ())


def page_of(out: Path, before: tuple[int, ...]) -> str:
    margins = replace(SETTLED, judged=before)
    values = {LOSS: {"a": [1.0] * 5, "b": [1.1, 1.2, 1.3, 1.2, 1.1]}}
    page = Page("t", "p", "https://x", "on what", [], [], values)
    path = write_page(page, judge([LOWER], margins, values, quick=False), {}, margins, out, "rekindle lab one")
    with (out / "findings.csv").open() as file:
        assert [row["judged_with"] for row in csv.DictReader(file)] == [" ".join(map(str, [*before, 5]))]
    return unescape(" ".join(path.read_text().split()))
