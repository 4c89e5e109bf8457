import json
import math

import pytest
from report_runs import MOE, Curve, demo, rows, write_rows, write_run

from rekindle.report.runs import read_runs
from rekindle.report.table import rows as table_rows
from rekindle.report.verdict import CONSERVATIVE, UNKNOWN_TEXT, cautions, compare, headline, sentence


def runs_of(tmp_path, **curves):
    return read_runs([write_run(tmp_path / name, curve, seed=i) for i, (name, curve) in enumerate(curves.items())])


def test_the_lower_loss_at_equal_flops_wins(tmp_path):
    runs = read_runs(demo(tmp_path))
    found = compare(runs, "flops")
    assert [r.run.name for r in found.readings] == ["dense-continued", "upcycled", "moe-from-scratch"]
    assert found.margin(found.readings[1]) == pytest.approx(0.07)
    assert found.error(found.readings[1]) == pytest.approx(math.sqrt(2) * 0.012)
    assert not found.tied
    assert not found.early  # the budgets differ by less than 2 %
    assert headline(found) == "dense-continued ends 0.070 nats below upcycled at equal FLOPs"
    assert sentence(found, runs) == (
        "At equal training FLOPs (1.6×10¹³) of this stage, dense-continued ends 0.070 ± 0.017 nats below "
        "upcycled and 0.599 ± 0.017 nats below moe-from-scratch; one seed each, so this is a direction, "
        "not a result."
    )
    assert "conservative" in cautions(found, runs)[0]


@pytest.mark.parametrize(("gap", "decided"), [(0.033, False), (0.035, True)])
def test_within_twice_the_combined_standard_error_it_is_undecided(tmp_path, gap, decided):
    runs = runs_of(tmp_path, a=Curve(3.4, 3.0), b=Curve(3.4, 3.0 + gap), c=Curve(7.0, 3.9))
    found = compare(runs, "flops")
    assert found.decided(found.readings[1]) is decided
    assert ("undecided between a and b" in sentence(found, runs)) is not decided
    assert ("cannot be told apart" in headline(found)) is not decided
    assert "nats below c" in sentence(found, runs)


def test_without_standard_errors_nothing_is_decided(tmp_path):
    runs = runs_of(tmp_path, a=Curve(3.4, 3.0, stderr=math.nan), b=Curve(3.4, 3.3))
    assert "undecided" in sentence(compare(runs, "flops"), runs)
    assert "a's lead of 0.300 nats is measured without a standard error" in sentence(compare(runs, "flops"), runs)


def test_a_longer_run_is_read_where_the_shorter_ends(tmp_path):
    runs = runs_of(tmp_path, long=Curve(3.4, 3.0, tokens=3_000_000), short=Curve(3.4, 3.2, tokens=1_500_000))
    found = compare(runs, "flops")
    long = next(r for r in found.readings if r.run.name == "long")
    assert found.budget == 1_500_000 * 7.2e6
    assert (found.early, found.verb) == (["long"], "is")
    assert long.loss == pytest.approx(Curve(3.4, 3.0).loss(0.5))
    short = runs_of(tmp_path / "b", a=Curve(3.4, 3.0, tokens=3_000_000), b=Curve(3.4, 3.2, tokens=1_600_000))
    found = compare(short, "flops")
    between = next(r for r in found.readings if r.run.name == "a")
    left, right = Curve(3.4, 3.0).loss(0.5), Curve(3.4, 3.0).loss(0.625)
    assert not between.ended
    assert between.loss == pytest.approx(left + (right - left) * (1.6 - 1.5) / (1.875 - 1.5))
    assert any("which went further, is read" in line for line in cautions(found, short))


def test_tokens_and_flops_are_compared_each_on_its_own(tmp_path):
    runs = runs_of(tmp_path, dense=Curve(3.4, 3.0, tokens=2_200_000), moe=Curve(3.4, 3.05, **MOE))
    assert compare(runs, "tokens").budget == 1_500_000
    assert compare(runs, "flops").budget == pytest.approx(2_200_000 * 7.2e6)


def test_a_diverged_run_is_left_out_and_named(tmp_path):
    curve = Curve(3.4, 3.0)
    runs = [write_run(tmp_path / name, curve) for name in ("a", "b", "gone")]
    lines = [r | {"val_loss": math.nan} if r["kind"] == "eval" and r["step"] > 60 else r for r in rows(curve)]
    write_rows(runs[2], lines)
    found = read_runs(runs)
    comparison = compare(found, "flops")
    assert [r.run.name for r in comparison.readings] == ["a", "b"]
    assert comparison.budget == 1_500_000 * 7.2e6
    assert any(line.startswith("gone: no validation loss") for line in cautions(comparison, found))


def test_one_run_has_no_verdict(tmp_path):
    runs = runs_of(tmp_path, only=Curve(3.4, 3.0))
    found = compare(runs, "flops")
    assert sentence(found, runs) == "There is nothing to compare: only goes from 3.400 to 3.000 nats per token."
    assert headline(found) == "only goes from 3.400 to 3.000"
    write_rows(runs[0].folder, [row for row in rows(Curve(3.4, 3.0)) if row.get("step", 0) == 0])
    runs = read_runs([runs[0].folder])
    assert compare(runs, "flops") is None
    assert "no verdict" in sentence(None, runs)


def test_many_runs_still_make_a_sentence(tmp_path):
    runs = runs_of(tmp_path, **{f"r{i}": Curve(3.4, 3.0 + 0.1 * i) for i in range(6)})
    assert "0.300 to 0.500 nats below the other 3" in sentence(compare(runs, "flops"), runs)


def test_different_data_is_a_caution(tmp_path):
    runs = runs_of(tmp_path, a=Curve(3.4, 3.0), b=Curve(3.4, 3.2))
    lines = rows(Curve(3.4, 3.2))
    lines[0] |= {"data": "books"}
    write_rows(runs[1].folder, lines)
    runs = read_runs([run.folder for run in runs])
    assert any("different data (books and stdlib)" in line for line in cautions(compare(runs, "flops"), runs))


def test_same_windows_pair_the_errors(tmp_path):
    """Two runs whose windows differ a lot, but by nearly the same amount from one another: decided."""
    import json

    from rekindle.report.runs import read_runs
    from rekindle.report.verdict import PAIRED, cautions

    hard = [2.0 + 0.5 * (i % 7) for i in range(64)]
    for name, shift, which in (("a", 0.0, "x"), ("b", 0.02, "x"), ("c", 0.02, "y")):
        folder = tmp_path / name
        folder.mkdir()
        losses = [loss + shift + 0.001 * (i % 3) * bool(shift) for i, loss in enumerate(hard)]
        mean = sum(losses) / len(losses)
        rows = [{"kind": "run", "val_set": which}]
        rows += [
            {"kind": "eval", "step": s, "tokens": s, "flops": s, "val_loss": mean, "val_loss_stderr": 0.12}
            | {"val_losses": losses}
            for s in (0, 10)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    a, b, c = read_runs([tmp_path / name for name in "abc"])
    paired = compare([a, b], "flops")
    assert paired.decided(paired.readings[1])
    assert paired.error(paired.readings[1]) < 0.001
    assert PAIRED in cautions(paired, [a, b])
    apart = compare([a, c], "flops")
    assert [reading.run for reading in apart.readings] == [a]
    assert apart.elsewhere == (c,)
    assert PAIRED not in cautions(apart, [a, c])


def measured(folder, loss, text, *, tokens=64, paired=False, stderr=0.01, corpus=None):
    """A run of one evaluation, on the windows with hash `text`, or None where that was not recorded."""
    folder.mkdir(parents=True)
    end = {"kind": "eval", "step": 10, "tokens": 10, "flops": 10, "val_loss": loss, "val_loss_stderr": stderr}
    end |= {"val_losses": [loss + 0.001 * (i % 2) for i in range(tokens)]} if paired else {}
    known = {"val_set": text, "text": corpus}
    write_rows(folder, [{"kind": "run", "seq_len": 1} | {name: x for name, x in known.items() if x}, end])
    return folder


def test_the_same_text_read_unpaired_is_conservative(tmp_path):
    runs = read_runs([measured(tmp_path / "a", 3.0, "x"), measured(tmp_path / "b", 3.1, "x", paired=True)])
    found = compare(runs, "flops")
    assert found.decided(found.readings[1])
    assert cautions(found, runs)[0] == CONSERVATIVE


def test_where_the_text_is_not_recorded_nothing_is_said_of_it(tmp_path):
    runs = read_runs([measured(tmp_path / "a", 3.0, "x"), measured(tmp_path / "b", 3.1, None)])
    found = compare(runs, "flops")
    assert cautions(found, runs)[0] == UNKNOWN_TEXT
    assert "see the same" not in " ".join(cautions(found, runs))


@pytest.mark.parametrize(
    ("texts", "apart"),
    [
        ((("x", 64), ("y", 64)), "different text"),
        (((None, 32768), (None, 1000)), "different validation sets"),
        ((("x", 64), ("y", 1000)), "different validation sets"),
        ((("x", 64, "all"), ("y", 1000, "all")), "different amounts of the same text"),
        ((("x", 64, "all"), ("y", 1000, "others")), "different validation sets"),
        ((("x", 64, "all"), ("y", 64, "all")), "different windows of the same text"),
    ],
)
def test_different_text_is_no_comparison(tmp_path, texts, apart):
    folders = [measured(tmp_path / name, loss, text, tokens=tokens, paired=True, corpus=(*corpus, None)[0])
               for name, loss, (text, tokens, *corpus) in zip("ab", (3.0, 3.5), texts)]  # fmt: skip
    runs = read_runs(folders)
    found = compare(runs, "flops")
    said = sentence(found, runs)
    assert said.startswith(f"It is undecided between a and b: measured on {apart}, so their losses cannot be compared")
    assert headline(found) == f"Undecided: measured on {apart}"
    told = " ".join(cautions(found, runs))
    assert f"b on {texts[1][1]:,} tokens" in told
    assert "conservative" not in told
    assert [row.difference for row in table_rows(runs)] == [None, None]


@pytest.mark.parametrize("text", ["x", None])
def test_losses_of_two_objectives_are_not_compared(tmp_path, text):
    """Their validation rows differ too, of the same text; that is not what they differ in."""
    folders = [measured(tmp_path / name, loss, text and f"{text}{name}", corpus="all")
               for name, loss in zip("ab", (3.0, 3.5))]  # fmt: skip
    rows = [json.loads(line) for line in (folders[1] / "metrics.jsonl").read_text().splitlines()]
    write_rows(folders[1], [rows[0] | {"objective": "span-corruption"}, *rows[1:]])
    runs = read_runs(folders)
    found = compare(runs, "flops")
    apart = "measured on different objectives (next-token and span-corruption)"
    assert headline(found) == f"Undecided: {apart}"
    assert f"b was {apart}, so no difference is claimed. The same --objective, --data," in " ".join(
        cautions(found, runs)
    )
    write_rows(folders[0], [rows[0] | {"objective": "next-token"}, *rows[1:]])
    write_rows(folders[1], rows)
    again = read_runs(folders)
    assert "objective" not in " ".join([headline(compare(again, "flops")), *cautions(compare(again, "flops"), again)])


def test_of_several_runs_those_on_one_text_are_compared(tmp_path):
    names = {"a": (3.0, "x"), "b": (3.2, "x"), "other": (2.0, "y")}
    runs = read_runs([measured(tmp_path / name, loss, text, paired=True) for name, (loss, text) in names.items()])
    found = compare(runs, "flops")
    assert "a ends 0.200" in sentence(found, runs)
    assert "other" not in sentence(found, runs)
    assert any(line.startswith("other was measured on different text") for line in cautions(found, runs))
    assert [row.difference for row in table_rows(runs)] == [0, pytest.approx(0.2), None]


def test_an_error_of_zero_of_a_single_window_decides_nothing(tmp_path):
    runs = read_runs([measured(tmp_path / n, loss, "x", tokens=1, paired=True, stderr=0.0)
                      for n, loss in (("a", 3.0), ("b", 3.001))])  # fmt: skip
    assert "undecided between a and b" in sentence(compare(runs, "flops"), runs)
