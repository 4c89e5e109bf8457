"""Tables as trackers export them: columns guessed and told, histories and crashed runs, units and numbers by hand."""

from __future__ import annotations

import csv
import json
import shlex

import numpy as np
import pytest
from click.testing import CliRunner

from rekindle import api
from rekindle.cli.verbs import rekindle
from rekindle.errors import RekindleError
from rekindle.laws.columns import columns_of
from rekindle.laws.law import law_named, published
from rekindle.laws.read import read_table

LAW = published()["chinchilla-epoch"].row("dense")
RUNS = [(n, n * ratio, float(LAW.loss(params=n, tokens=n * ratio)))
        for n in (3e7, 7e7, 1.6e8, 1.3e9) for ratio in (5.0, 20.0, 60.0, 200.0)]  # fmt: skip
PARAMS, TOKENS, LOSSES = zip(*RUNS, strict=True)


def table(path, header, rows, delimiter=","):
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header.split(","), *rows])
    return path


def same(found, params=PARAMS, tokens=TOKENS, losses=LOSSES):
    for name, wanted in (("params", params), ("tokens", tokens), ("loss", losses)):
        assert found.numbers[name] == pytest.approx(np.array(wanted), rel=1e-12), name


def short(n):
    return f"{n / 1e9:g}B" if n >= 1e9 else f"{n / 1e6:g}M"


@pytest.mark.parametrize("header", [
    "config.model.n_params,config.tokens,val/loss", "params.n_params,params.tokens,metrics.eval_loss",
    "num_parameters,num_input_tokens_seen,eval/loss", "Model Size,Total Tokens,Validation Loss", "N,D,L",
])  # fmt: skip
def test_columns_of_trackers_are_guessed_and_told(tmp_path, header):
    found = read_table(table(tmp_path / "runs.csv", header, RUNS))
    same(found)
    for name in header.split(","):
        assert f"from {name}" in found.notes[0]


def test_numbers_are_read_as_people_write_them(tmp_path):
    rows = [(short(n), f"{d:,.0f}" if i % 2 else f"{d:_.0f}", loss) for i, (n, d, loss) in enumerate(RUNS)]
    same(read_table(table(tmp_path / "runs.csv", "params,tokens,loss", rows)))


@pytest.mark.parametrize("loss", ["2,345", "3M", "1.2.3", "[2]"])
def test_a_loss_is_never_read_as_another_number(tmp_path, loss):
    with pytest.raises(RekindleError, match="is no number"):
        read_table(table(tmp_path / "runs.csv", "params,tokens,loss", [*RUNS, ("1e9", "1e9", loss)]))


def test_a_unit_in_a_name_is_a_factor_and_told(tmp_path):
    rows = [(n / 1e6, d / 1e9, loss) for n, d, loss in RUNS]
    found = read_table(table(tmp_path / "runs.tsv", "model size (M),tokens_b,loss", rows, "\t"))
    same(found)
    assert any("tokens is tokens_b times 1e+09" in note for note in found.notes)
    rows = [(n, 6 * n * d / 1e9, loss) for n, d, loss in RUNS]
    path = table(tmp_path / "flops.csv", "params,total_gflops,loss", rows)
    same(read_table(path))
    same(read_table(path, {"flops": "total_gflops"}))
    rate = table(tmp_path / "rate.csv", "params,tflops_per_s,loss", rows)
    with pytest.raises(RekindleError, match="is a rate"):
        read_table(rate, {"flops": "tflops_per_s"})
    with pytest.raises(RekindleError, match="lacks tokens"):
        read_table(rate)


def test_a_unit_counted_twice_is_refused(tmp_path):
    with pytest.raises(RekindleError, match=r"params_m times 1e\+06, as its name says, is up to"):
        read_table(table(tmp_path / "runs.csv", "params_m,tokens,loss", [(n * 1e3, d, loss) for n, d, loss in RUNS]))


def test_sizes_in_millions_without_a_word_are_refused(tmp_path):
    with pytest.raises(RekindleError, match="not millions or billions"):
        read_table(table(tmp_path / "runs.csv", "params,tokens,loss", [(n / 1e6, d, loss) for n, d, loss in RUNS]))


def test_tokens_in_another_unit_than_parameters_are_doubted(tmp_path):
    found = read_table(table(tmp_path / "runs.csv", "params,tokens,loss", [(n, d / 1e5, loss) for n, d, loss in RUNS]))
    assert any("tokens for a parameter" in note for note in found.notes)


@pytest.mark.parametrize("header", ["params,tokens,loss,val_loss", "params,tokens,val_loss,eval_loss"])
def test_two_columns_that_could_be_meant_are_a_question(tmp_path, header):
    rows = [(n, d, loss, loss + 1) for n, d, loss in RUNS]
    path = table(tmp_path / "runs.csv", header, rows)
    first, second = header.split(",")[2:]
    with pytest.raises(RekindleError, match=f"--columns loss={first}, or loss={second}"):
        read_table(path)
    same(read_table(path, {"loss": second}), losses=[loss + 1 for loss in LOSSES])


def test_two_columns_of_one_name_are_refused(tmp_path):
    with pytest.raises(RekindleError, match="Two columns are called 'loss'"):
        read_table(table(tmp_path / "runs.csv", "params,tokens,loss,loss", [(*row, 2.0) for row in RUNS]))


@pytest.mark.parametrize("delimiter", [";", "\t", ","])
def test_the_delimiter_is_seen(tmp_path, delimiter):
    path = table(tmp_path / "runs.csv", "params,tokens,loss", RUNS, delimiter)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as a spreadsheet writes it
    same(read_table(path))


def test_a_training_loss_is_taken_last_and_told(tmp_path):
    rows = [(n, d, loss + 1, loss) for n, d, loss in RUNS]
    same(read_table(table(tmp_path / "runs.csv", "params,tokens,train/loss,val/loss", rows)))
    found = read_table(table(tmp_path / "train.csv", "params,tokens,train/loss", [row[:3] for row in rows]))
    assert any("is a training loss" in note for note in found.notes)


def test_what_is_lacking_is_said_with_the_columns_that_are_there(tmp_path):
    path = table(tmp_path / "runs.csv", "size,Step,valid_ppl", [(1, 2, 3)])
    with pytest.raises(RekindleError) as error:
        read_table(path)
    said = str(error.value)
    assert "lacks loss, params, tokens" in said
    assert "size, Step, valid_ppl" in said
    assert "Step counts steps" in said
    assert "--columns loss=NAME_IN_FILE,params=NAME_IN_FILE" in said
    chart = table(tmp_path / "chart.csv", "Step,r - val/loss,r - val/loss__MIN", [(1, 2, 3)])
    with pytest.raises(RekindleError, match="chart's export"):
        read_table(chart)


def test_crashed_runs_are_left_out_and_counted(tmp_path):
    ends = {3: ("", "finished"), 5: ("NaN", "finished"), 7: ("inf", "finished"), 9: (2.0, "crashed"), 11: (2, "FAILED")}
    rows = [(n, d, *ends.get(i, (loss, "finished"))) for i, (n, d, loss) in enumerate(RUNS)]
    found = read_table(table(tmp_path / "runs.csv", "params,tokens,loss,State", rows))
    kept = [i for i in range(len(RUNS)) if i not in ends]
    same(found, *([column[i] for i in kept] for column in (PARAMS, TOKENS, LOSSES)))
    assert "5 of 16 runs left out: 2 crashed" in found.notes[-1]
    assert "rows 4, 6, 8" in found.notes[-1]
    with pytest.raises(RekindleError, match="None of 2 runs ended with a loss"):
        read_table(table(tmp_path / "none.csv", "params,tokens,loss", [(1e9, 1e9, "nan"), (1e9, 2e9, "")]))


def history(header="run,_step,n_params,tokens,val/loss"):
    """Ten rows of each run, the loss logged at every other one, the last but one among them, then a row without."""
    for i, (n, d, loss) in enumerate(RUNS):
        for k in range(1, 11):
            logged = "" if k % 2 else loss + 0.1 * (10 - k)
            yield (f"r{i}", 100 * k, n, d * k / 10, logged)
        yield (f"r{i}", 1010, "", "", "")


def test_of_a_history_the_last_row_with_a_loss_is_read(tmp_path):
    found = read_table(table(tmp_path / "runs.csv", "run,_step,n_params,tokens,val/loss", history()))
    same(found)
    assert "176 rows are the history of 16 runs" in found.notes[1]


def test_a_history_that_ends_in_nan_is_a_run_that_diverged(tmp_path):
    rows = [(*row[:4], "nan") if row[:2] == ("r2", 1000) else row for row in history()]
    found = read_table(table(tmp_path / "runs.csv", "run,_step,n_params,tokens,val/loss", rows))
    assert len(found) == 15
    assert "1 without a finite loss" in found.notes[2]


def test_a_history_without_steps_is_a_question_that_two_answers_settle(tmp_path):
    ends = [("abc"[i % 3], n, d, loss) for i, (n, d, loss) in enumerate(RUNS)]
    rows = [(f"r{i}", n, d * k, loss + 1 - k) for i, (n, d, loss) in enumerate(RUNS) for k in (0.5, 1)]
    path = table(tmp_path / "runs.csv", "name,params,tokens,loss", rows)
    with pytest.raises(RekindleError, match="has 2 rows with growing tokens, and 15 others") as error:
        read_table(path)
    assert "step=NAME_IN_FILE" in str(error.value)
    same(read_table(path, {"step": "tokens"}))
    path = table(tmp_path / "ends.csv", "name,params,tokens,loss", ends)  # sizes differ: no histories
    assert len(read_table(path)) == 16
    path = table(tmp_path / "named.csv", "name,params,tokens,loss", [(f"{n:g}", n, d, loss) for n, d, loss in RUNS])
    found = read_table(path, {"trunk": "name"})
    same(found)
    assert len(set(found.labels["trunk"])) == 4


def test_json_lines_and_parquet_are_tables_too(tmp_path):
    from pyarrow import Table, parquet

    rows = [{"config": {"n_params": n, "tokens": d}, "summary": {"val/loss": loss}} for n, d, loss in RUNS]
    (tmp_path / "runs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "runs.json").write_text(json.dumps(rows))
    parquet.write_table(Table.from_pylist(rows), tmp_path / "runs.parquet")
    for name in ("runs.jsonl", "runs.json", "runs.parquet"):
        same(read_table(tmp_path / name))
    (tmp_path / "runs.parquet").write_text("no such thing")
    with pytest.raises(RekindleError, match="cannot be read"):
        read_table(tmp_path / "runs.parquet")


@pytest.mark.parametrize(("name", "plain"), [("a/total_flos", "total_flos"), ("train/loss", "train_loss"),
                                             ("Config.Model.N-Params", "n_params"), ("d", "d")])  # fmt: skip
def test_names_are_freed_of_folders_and_signs(name, plain):
    from rekindle.laws.columns import _plain

    assert _plain(name) == (plain if not name.startswith("a/") else "a_total_flos")


def test_a_column_is_ours_by_name_before_any_guess():
    found = columns_of(["n_params", "params", "tokens", "n_tokens", "loss"], {}, "x").found
    assert (found["params"].name, found["tokens"].name) == ("params", "tokens")


# -- laws of dense runs ----------------------------------------------------------------------------------------


def run(*words):
    return CliRunner().invoke(rekindle, list(map(str, words)))


@pytest.mark.parametrize("staged", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_next_line_of_a_fit_works(tmp_path, monkeypatch, staged):
    monkeypatch.chdir(tmp_path)
    upcycling, rows = published()["upcycling-2025"], []
    for n in (1e8, 2e8, 4e8):
        for d1 in (1e9, 4e9, 16e9):
            rows.append(("dense", n, 0, d1))
            rows += [("upcycled", n, d1, d2) for d2 in (1e9, 4e9, 16e9)] if staged else []
    lines = [(way, n, s, d, float(upcycling.row(way).loss(params=n, sunk=s, tokens=d))) for way, n, s, d in rows]
    header = "way,params,sunk,tokens,loss" if staged else "way,params,planned,tokens,loss"
    table(tmp_path / "my runs.csv", header, lines)
    first = run("fit", "my runs.csv", "--bootstrap", 100)
    assert first.exit_code == 0, first.exception
    for _ in range(2):  # each line leads to the next
        (line,) = [line for line in first.stderr.splitlines() if line.startswith("next:")]
        words = shlex.split(line.removeprefix("next:"))
        first = run(*words[1:], *(["--bootstrap", 100] if words[1] == "fit" else []))
        assert first.exit_code == 0, first.exception
    assert first.stdout.startswith(("undecided: ", "worth it: ", "not worth it: "))
    assert (tmp_path / "law.yaml").exists()
    assert (tmp_path / "OUT" / "index.html").exists()


def test_a_law_of_dense_runs_answers_what_it_can(tmp_path):
    api.fit(table(tmp_path / "runs.csv", "params,tokens,loss", RUNS), out=tmp_path / "law.yaml", bootstrap=100)
    assert set(law_named(tmp_path / "law.yaml").rows) == {"dense"}
    found = api.plan(law=str(tmp_path / "law.yaml"), params="1B", sunk="20B", tokens="50B").to_dict()
    options = found["options"]
    assert options["dense"]["loss"] == pytest.approx(float(LAW.loss(params=1e9, tokens=70e9)), rel=1e-4)
    assert options["dense_scratch"]["loss"] == pytest.approx(float(LAW.loss(params=1e9, tokens=50e9)), rel=1e-4)
    assert {option["cost"]["flops"] for option in options.values()} == {6 * 1e9 * 50e9}
    assert found["verdict"] == "undecided"
    assert "of upcycling it says nothing" in found["reason"]
    budget = api.plan(law=str(tmp_path / "law.yaml"), params="1B", sunk="20B", budget_flops=6e20).to_dict()
    assert budget["question"]["tokens"] == pytest.approx(1e11)
    ours = {n: float(LAW.loss(params=n, tokens=1e20 / n)) for n in np.geomspace(1e8, 1e11, 400)}
    assert budget["best"]["params"] == pytest.approx(min(ours, key=ours.get), rel=0.03)


def test_a_form_of_two_stages_names_the_true_cause(tmp_path):
    path = table(tmp_path / "runs.csv", "params,tokens,loss", RUNS)
    with pytest.raises(RekindleError, match="--form chinchilla") as error:
        api.fit(path, form="upcycling")
    assert "the table has loss, params, tokens" in str(error.value)


def test_a_law_without_a_row_of_an_option_says_which_it_has(tmp_path):
    rows = [(way, *row) for row in RUNS for way in ("adam", "muon")]
    path = table(tmp_path / "runs.csv", "way,params,tokens,loss", rows)
    api.fit(path, out=tmp_path / "law.yaml", bootstrap=100)
    with pytest.raises(RekindleError, match="its rows are adam, muon"):
        api.plan(law=str(tmp_path / "law.yaml"), params="1B", sunk="20B", tokens="50B")


def test_fit_says_what_it_does(tmp_path):
    said: list[str] = []
    api.fit(table(tmp_path / "runs.csv", "params,tokens,loss", RUNS), bootstrap=100, say=said.append)
    assert [
        word for word in ("starts", "bootstrap", "profiles", "left out") if not any(word in line for line in said)
    ] == []


def test_a_dry_run_of_fit_reads_and_writes_nothing_else(tmp_path):
    path = table(tmp_path / "runs.csv", "params,tokens,val_loss", RUNS)
    tried = run(
        "fit", path, "--out", tmp_path / "law.yaml", "--report", tmp_path / "page", "--dry-run", "--format", "json"
    )
    found = json.loads(tried.stdout)
    assert (found["points"], found["form"], found["ways"]) == (16, "chinchilla", {"dense": 16})
    assert found["writes"] == [str(tmp_path / "law.yaml"), str(tmp_path / "page")]
    assert "loss from val_loss" in found["notes"][0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["runs.csv"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (RUNS[:3], ""),
        (RUNS, "--form nonsense"),
        (RUNS, "--form upcycling"),
        (RUNS, "--bootstrap 20"),
        (RUNS, "--delta 0"),
        (RUNS, "--seed -1"),
        (RUNS, "--next params=1B"),
        (RUNS, "--out runs.csv --overwrite"),
        (RUNS, "--out page/law.yaml --report page"),
        (RUNS, "--out law.yaml --report law.yaml"),
        (RUNS, "--report full"),
        (RUNS, "--report runs.csv --overwrite"),
    ],
)
def test_a_dry_run_of_fit_refuses_what_the_fit_would_and_both_before_it(tmp_path, monkeypatch, rows, words):
    """Nothing is fitted, and nothing of what is there is lost."""
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "runs.csv", "params,tokens,loss", rows)
    (tmp_path / "page").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("precious")
    before = (tmp_path / "runs.csv").read_bytes()
    monkeypatch.setattr("rekindle.laws.fit.solve", None)
    for dry in ((), ("--dry-run",)):
        tried = run("fit", "runs.csv", *words.split(), *dry)
        assert isinstance(tried.exception, RekindleError), tried.output
    assert (tmp_path / "runs.csv").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full", "page", "runs.csv"]


@pytest.mark.parametrize("cell", ["0,010", "1,500", "-3,25"])
def test_a_decimal_comma_is_never_a_thousand(tmp_path, cell):
    (tmp_path / "runs.csv").write_text(f"params;tokens;loss\n{cell};1000;3.1\n")
    with pytest.raises(RekindleError, match="may have a decimal comma"):
        api.fit(tmp_path / "runs.csv")
    (tmp_path / "runs.csv").write_text('params,tokens,loss\n"0,010",1000,3.1\n')
    with pytest.raises(RekindleError, match="which is no number"):
        api.fit(tmp_path / "runs.csv")
