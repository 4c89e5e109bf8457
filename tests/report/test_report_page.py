import csv
import json
import math
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from report_runs import INIT, PARENT, UPCYCLE, Curve, averaged, demo, merged, rows, stage, write_rows, write_run

from rekindle.errors import RekindleError
from rekindle.report.page import write_report


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return write_report(demo(folder / "runs"), folder / "out", command="rekindle report A B C --out report")


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class Strict(HTMLParser):
    """Tags that close in order, ids that are unique, and nothing fetched."""

    void = {"meta", "link", "br", "img"}

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag not in self.void:
            self.open.append(tag)
        self.ids += [attributes["id"]] if "id" in attributes else []
        assert "src" not in attributes
        if tag == "link":
            assert attributes["href"] == "data:,"

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag not in self.void:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parsed(page):
    parser = Strict()
    parser.feed(page.read_text())
    assert not parser.open
    assert len(parser.ids) == len(set(parser.ids))
    return " ".join(" ".join(parser.text).split())


def of_life(folder, life):
    """The report on a run that was trained on from the end of a life."""
    run = write_run(folder / "on", Curve(3.4, 3.0), [*life, stage("on", 1_500_000, 1.59e13, "work/merged")])
    report = write_report([run], folder / "out")
    return report.rows[0], parsed(report.page)


def test_lives_that_part_and_meet_are_named_lines(tmp_path):
    row, text = of_life(tmp_path, merged())
    assert row.lineage == (
        "A: init → train\u00a03.00M; B: A → train\u00a01.50M; C: A → train\u00a0900k; D: org/some-model-7b; "
        "B + C + D + A → merge → train\u00a01.50M"
    )
    assert row.sunk_flops == 1.44e13 + 7.2e12 + 4.2e12  # the parent of two, and base of the merge, once
    assert not row.sunk_complete
    assert "at least 5.40M tokens sunk, then 1.50M here, at most 0.28 times as many" in text
    assert "B A train 1.50M tokens" in text
    assert text.count("rekindle train work/init work/parent") == 2  # in its own place, and among all commands


def test_states_of_one_run_are_one_step_as_far_as_the_run_came(tmp_path):
    row, text = of_life(tmp_path, averaged())
    assert row.lineage == "init → train\u00a0(40 states, 100k to 4.00M) → merge → train\u00a01.50M"
    assert (row.sunk_flops, row.sunk_complete) == (4.8e11 * 40, True)
    assert "40 states of one run, 100k to 4.00M tokens" in text


def test_two_runs_that_came_equally_far_are_not_said_to_be_one(tmp_path):
    """The same command in two folders, on other text: what was sunk counts both, and so do the words."""
    (tmp_path / "one").mkdir()
    row, text = of_life(tmp_path / "one", averaged(1, twice=True))
    assert row.sunk_flops == 2 * 4.8e11
    assert "of one run" not in text
    assert row.lineage == "A: init; B: A → train\u00a0100k; C: A → train\u00a0100k; B + C → merge → train\u00a01.50M"


def test_one_life_is_a_chain_without_names(tmp_path):
    row, _ = of_life(tmp_path, [INIT, PARENT])
    assert row.lineage == "init → train\u00a03.00M → train\u00a01.50M"


def test_the_page_is_one_well_formed_file_that_says_it_all(report):
    text = parsed(report.page)
    html = report.page.read_text()
    assert "@import" not in html
    assert "url(http" not in html
    assert "6 ×" not in html  # FLOPs are counted from the family's table
    for part in ("dense-continued ends 0.070 nats below upcycled at equal FLOPs", "3.041 ± 0.012",
                 "dense-continued is 0.057 nats below upcycled at equal tokens",
                 "exact, held (3.1×10⁻⁷)",
                 "rekindle upcycle work/parent work/upcycled-start --experts 8 --top-k 2", "router_std",
                 "rekindle report A B C --out report", "moe-from-scratch starts at 7.620, above the frame",
                 "3.00M tokens sunk, then 1.50M here, 0.50 times as many",
                 "all 24 experts work"):  # fmt: skip
        assert part in text, part
    assert html.count("rekindle train work/init work/parent") == 1 + 2  # once to repeat all, once for each child


def test_colours_in_the_page_follow_the_theme_and_text_stays_text(report):
    html = report.page.read_text()
    drawings = html[html.index("<svg") : html.rindex("</svg>")]
    assert "var(--s0)" in drawings
    assert "<text" in drawings
    assert "#1b6cb5" not in drawings
    assert "#000000" not in drawings
    assert "font-family:" not in drawings


def test_every_figure_has_png_svg_and_csv(report):
    folder = report.page.parent / "figures"
    names = ["experts-1", "experts-3", "loss-flops", "loss-tokens", "optimisation"]
    assert sorted({p.stem for p in folder.iterdir()}) == names
    for name in names:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "dense-continued" in (folder / f"{name}.svg").read_text() or name.startswith("experts")
        assert (folder / f"{name}.csv").stat().st_size > 200


def test_the_csv_holds_exactly_what_was_evaluated(report):
    found = table(report.page.parent / "figures" / "loss-flops.csv")
    curve = Curve(3.465, 3.041, tokens=2_200_000)
    expected = [row for row in rows(curve, 2) if row["kind"] == "eval"]
    drawn = [row for row in found if (row["run"], row["series"]) == ("dense-continued", "validation")]
    assert [float(row["loss"]) for row in drawn] == [row["val_loss"] for row in expected]
    assert [float(row["flops"]) for row in drawn] == [row["flops"] for row in expected]
    assert {row["stderr"] for row in drawn} == {"0.012"}
    training = [float(row["loss"]) for row in found if (row["run"], row["series"]) == ("dense-continued", "training")]
    steps = [row["loss"] for row in rows(curve, 2) if row["kind"] == "step"]
    assert training == pytest.approx([(a + b) / 2 for a, b in zip(steps[::2], steps[1::2])])


def test_expert_csv_holds_the_last_load_and_all_entropies(report):
    found = table(report.page.parent / "figures" / "experts-1.csv")
    load = [float(row["value"]) for row in found if row["quantity"] == "load"]
    assert len(load) == 24
    assert sum(load) == pytest.approx(3)
    assert sum(row["quantity"] == "entropy" for row in found) == 9 * (3 + 1)


def test_the_summary_is_for_programs_too(report):
    summary = json.loads(json.dumps(report.to_dict()))
    best = summary["rows"][1]
    assert summary["verdict"] == report.verdict
    assert (best["name"], best["difference"], best["sunk_flops"]) == ("dense-continued", 0, 1.44e13)
    assert summary["rows"][0]["lineage"] == "init → train\u00a03.00M → upcycle → train\u00a01.50M"
    assert (summary["rows"][2]["sunk_flops"], summary["rows"][2]["sunk_complete"]) == (0, True)
    assert summary["rows"][0]["tokens_per_s"] == pytest.approx(8_400, rel=0.02)


def test_a_hostile_name_is_harmless(tmp_path):
    name = "<script>alert('$x_1$')<&script>"
    run = write_run(tmp_path / name, Curve(3.4, 3.0, experts=4), [INIT, UPCYCLE])
    lines = rows(Curve(3.4, 3.0, experts=4))
    lines[0] |= {"model_type": "<script>alert(2)</script>", "data": "<b>"}
    write_rows(run, lines)
    (run / "verify.json").write_text('{"promise": "<script>3</script>", "held": false}')
    report = write_report([run], tmp_path / "out", title="<script>4", verdict_note="<script>5", command="<script>6")
    html = report.page.read_text()
    assert html.count("<script") == 1  # the copy button's
    assert "alert(&#39;$x_1$&#39;)" in html
    assert name in parsed(report.page)
    assert "broken" in html


def test_a_name_never_becomes_a_formula(tmp_path):
    runs = [write_run(tmp_path / name, Curve(3.4, 3.0, experts=4)) for name in ("=1+2", "@sum", "-a")]
    report = write_report(runs, tmp_path / "out")
    cells = [cell for path in sorted((report.page.parent / "figures").glob("*.csv"))
             for row in csv.reader(path.read_text().splitlines()) for cell in row]  # fmt: skip
    assert {"'=1+2", "'@sum", "'-a"} <= set(cells)
    for cell in cells:
        assert not cell.startswith(("=", "@")), cell
        assert not cell.startswith(("+", "-")) or float(cell) < 0, cell


def test_a_diverged_run_is_a_gap_and_a_sentence(tmp_path):
    curve = Curve(3.4, 3.0, experts=4)
    runs = [write_run(tmp_path / name, curve) for name in ("fine", "gone")]
    lines = rows(curve)
    for row in lines:
        if row.get("step", 0) > 60:
            row["val_loss" if row["kind"] == "eval" else "loss"] = math.nan
    write_rows(runs[1], lines)
    report = write_report(runs, tmp_path / "out")
    text = parsed(report.page)
    assert "gone: the validation loss is not a number 4 times, first at step 75." in text
    assert "diverged" in text
    assert "A gap in gone" in text
    assert report.rows[1].final_loss is None


@pytest.mark.parametrize("number", [1e308, -1e308, 10**400])
@pytest.mark.parametrize(("kind", "key"), [("eval", "val_loss"), ("step", "loss"), ("step", "grad_norm")])
def test_a_number_beyond_all_measure_is_a_gap(tmp_path, kind, key, number):
    curve = Curve(3.4, 3.0)
    runs = [write_run(tmp_path / name, curve) for name in ("fine", "far")]
    lines = rows(curve)
    [row for row in lines if row["kind"] == kind][-1][key] = number
    lines[0]["parameters"] = {"total": 10**400, "active": -1}
    write_rows(runs[1], lines)
    report = write_report(runs, tmp_path / "out")
    assert ("far: the" in parsed(report.page)) is (key != "grad_norm")
    assert report.rows[1].total_parameters is None


def test_all_nan_and_step_zero_only_still_make_a_page(tmp_path):
    run = write_run(tmp_path / "run", Curve(3.4, 3.0))
    write_rows(run, [rows(Curve(3.4, 3.0))[1] | {"val_loss": math.nan}])
    report = write_report([run], tmp_path / "out")
    assert "no verdict" in report.verdict
    parsed(report.page)


def test_dead_experts_are_counted_and_marked(tmp_path):
    run = write_run(tmp_path / "run", Curve(3.4, 3.0, experts=8))
    lines = rows(Curve(3.4, 3.0, experts=8))
    lines[-1]["expert_load"][1][3] = 0.0
    lines[-1]["dead_experts"] = [0, 1, 0]
    write_rows(run, lines)
    report = write_report([run], tmp_path / "out")
    assert "1 of 24 experts are dead" in parsed(report.page)
    dead = [row for row in table(tmp_path / "out/figures/experts-1.csv") if row["dead"] == "True"]
    assert [(row["layer"], row["expert"]) for row in dead] == [("1", "3")]
    assert ">×<" in report.page.read_text()


def test_many_runs_get_a_key_instead_of_labels(tmp_path):
    runs = [write_run(tmp_path / f"run-{i}", Curve(3.4, 3.0 + i / 50), seed=i) for i in range(20)]
    report = write_report(runs, tmp_path / "out")
    parsed(report.page)
    assert '<ul class="key">' in report.page.read_text()


def test_out_is_not_overwritten_unasked_and_never_over_a_run(tmp_path):
    run = write_run(tmp_path / "runs" / "a", Curve(3.4, 3.0))
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("x")
    with pytest.raises(RekindleError, match="not empty"):
        write_report([run], out)
    assert (out / "mine").exists()
    for target in (run, tmp_path / "runs", tmp_path):
        with pytest.raises(RekindleError, match="would replace the run"):
            write_report([run], target, overwrite=True)
    report = write_report([run], out, overwrite=True)
    assert [p.name for p in sorted(out.iterdir())] == ["figures", "index.html"]
    assert report.page == out / "index.html"


def test_the_same_runs_make_the_same_page(tmp_path, report):
    again = write_report(demo(tmp_path / "runs"), tmp_path / "out", command="rekindle report A B C --out report")
    assert again.page.read_bytes() == report.page.read_bytes()


def test_importing_the_room_imports_nothing_heavy():
    heavy = "('torch', 'matplotlib', 'jinja2', 'numpy')"
    code = f"import sys, rekindle.report.page; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_dry_run_reads_the_runs_and_writes_nothing(tmp_path):
    from click.testing import CliRunner

    from rekindle.cli.verbs import rekindle

    runs, out = demo(tmp_path / "runs"), tmp_path / "out"
    words = ["report", *map(str, runs), "--out", str(out), "--dry-run", "--format", "json"]
    tried = CliRunner().invoke(rekindle, words)
    assert json.loads(tried.stdout) == {"runs": [run.name for run in runs], "writes": str(out)}
    assert not out.exists()
    assert "would replace" in str(
        CliRunner().invoke(rekindle, [*words[:4], "--out", str(tmp_path), "--dry-run"]).exception
    )
