"""The simulator against closed forms, against the live pipeline's rules, and against the paper's table 2."""

from __future__ import annotations

import json
import math
import re
from statistics import fmean, stdev

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import rekindle
from rekindle.cli.verbs import rekindle as command
from rekindle.errors import RekindleError
from rekindle.recovery.compare import POLICIES, STANDING, compare
from rekindle.recovery.damage import CHANCES, STEPS, TABLE_2, Damage, damage_of, measured
from rekindle.recovery.failures import Deaths, chance_of, drawn, hourly, read_deaths
from rekindle.recovery.policies import Uncovered, remedies
from rekindle.recovery.simulate import HOUR, Machine, Outages, best_interval, simulate

MACHINE = Machine(stages=6, step=91.3, recovery=30.0, save=30.0)
COVERING = [policy for policy in POLICIES if policy != "checkpoint"]


def died(*when: tuple[float, int], end: float = 1e4) -> Deaths:
    hours, stages = zip(*when, strict=True) if when else ((), ())
    return Deaths(np.array(hours, float), np.array(stages, int), end)


def run(policy, deaths, *, machine=MACHINE, damage=0.0, steps=1000.0, every=50, step=None):
    outages = Outages(deaths, machine)
    return simulate(outages, outages.uncovered(policy), step or machine.step, every, damage, steps)


# -- closed forms ----------------------------------------------------------------------------------------------------


@given(st.integers(1, 10_000), st.floats(0.01, 1000), st.sampled_from(POLICIES))
def test_where_nobody_dies_a_run_takes_its_steps(steps, seconds, policy):
    found = run(policy, died(end=math.inf), steps=steps, step=seconds)
    assert found.hours == pytest.approx(steps * seconds / HOUR, rel=1e-12)
    assert (found.deaths, found.back, found.redone, found.regained) == (0, 0, 0, 0)


def test_a_death_costs_the_step_that_it_cut_off_the_recovery_and_what_was_lost():
    step, recovery = 100.0, 30.0
    machine, at = Machine(6, step, recovery, 0.0), died((250 / HOUR, 2))  # in the middle of the third
    seconds = {
        policy: run(policy, at, machine=machine, damage=5, steps=10, every=4).hours * HOUR for policy in POLICIES
    }
    assert seconds["shadow"] == pytest.approx(250 + recovery + (8 + 5) * step)
    assert seconds["checkpoint"] == pytest.approx(250 + recovery + 10 * step)  # nothing was saved yet
    late = died((950 / HOUR, 2))
    assert run("checkpoint", late, machine=machine, steps=10, every=4).redone == 1  # nine were done, eight saved
    assert run("checkfree", died((950 / HOUR, 0)), machine=machine, damage=5, steps=10, every=4).redone == 1  # an end


def test_going_back_undoes_what_deaths_have_cost_since():
    machine = Machine(6, 100.0, 0.0, 0.0)
    inner, end = (150 / HOUR, 2), (650 / HOUR, 0)  # behind step 1; behind step 6, an end
    found = run("checkfree", died(inner, end), machine=machine, damage=3, steps=20, every=100)
    assert (found.back, found.redone, found.regained) == (1, 6, 0)
    kept = run("checkfree", died(inner, end), machine=machine, damage=3, steps=20, every=4)
    assert (kept.back, kept.redone, kept.regained) == (1, 2, 3)  # the save of step 4 came after it


@pytest.mark.parametrize("every", [1, 5, 20])
def test_a_poisson_process_takes_checkpoints_as_long_as_daly_says(every):
    """M e^(R/M) (e^((t + d) / M) - 1) for each stretch of t seconds, restart R, save d: Daly 2006, equation 12."""
    stages, rate, steps = 8, 0.2, 400
    machine, mean = Machine(stages, 60.0, 20.0, 30.0), HOUR / (stages * rate)
    stretch = every * machine.step + machine.save
    hours = [
        run("checkpoint", drawn(rate, stages, 200.0, seed), machine=machine, steps=steps, every=every,
            step=stretch / every).hours for seed in range(300)
    ]  # fmt: skip
    exact = mean * math.exp(machine.recovery / mean) * math.expm1(stretch / mean) * steps / every / HOUR
    error = stdev(hours) / math.sqrt(len(hours))
    # within a stretch whole steps are counted with their share of its save, which is exact at its ends
    assert abs(fmean(hours) - exact) < 4 * error


def test_the_best_interval_is_where_daly_s_time_is_least():
    step, save, rate = 91.3, 30.0, 0.5
    mean = HOUR / rate
    cost = {n: math.expm1((n * step + save) / mean) / n for n in range(1, 200)}
    assert best_interval(step, save, rate, 10_000) == min(cost, key=cost.__getitem__)
    assert best_interval(step, 0.0, rate, 10_000) == 1
    assert best_interval(step, save, 0.0, 10_000) == 1000


def test_redundant_stages_take_their_factor_where_no_two_die_together():
    machine, factor = Machine(6, 100.0, 0.0, 0.0), 1.5
    at = died((150 / HOUR, 1), (300 / HOUR, 4), (1200 / HOUR, 0))  # two of them on a step's end
    found = run("redundant", at, machine=machine, steps=100, step=100 * factor)
    assert found.hours * HOUR == pytest.approx(100 * 150, abs=150)
    assert (found.back, found.regained) == (0, 0)


# -- properties -------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 9), st.sampled_from(COVERING), st.data())
def test_all_go_back_exactly_where_the_live_pipeline_does(stages, policy, data):
    """Stages that die in one outage are covered if and only if `remedies` has something for all of them."""
    if policy == "checkfree+" and stages < 4:
        return
    lost = data.draw(st.lists(st.integers(0, stages - 1), min_size=1, max_size=stages))
    machine = Machine(stages, 100.0, 60.0, 0.0)
    deaths = died(*((5 + i / HOUR, stage) for i, stage in enumerate(lost)))
    try:
        remedies(policy, sorted(set(lost)), stages, [1.0] * stages, 1.0)
        back = False
    except Uncovered:
        back = True
    assert Outages(deaths, machine).uncovered(policy).tolist() == [back]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.floats(0.01, 0.6), st.sampled_from(["shadow", "copy", "redundant", "checkpoint"]))
def test_more_deaths_never_help_and_more_damage_neither(seed, rate, policy):
    """Where every step of progress is a state, so that going back is no way to be rid of damage."""
    deaths = drawn(rate, 6, 60.0, seed)
    fewer = Deaths(deaths.hour[::2], deaths.stage[::2], deaths.end)
    machine = Machine(6, 91.3, 0.0, 0.0)
    many, few = (run(policy, one, machine=machine, damage=2, steps=400, every=1).hours for one in (deaths, fewer))
    assert few <= many + 1e-9
    assert run(policy, deaths, machine=machine, damage=1, steps=400, every=1).hours <= many + 1e-9


def test_the_same_seed_gives_the_same_deaths_at_the_rate_asked_for():
    one, again, other = (drawn(0.1, 24, 2000.0, seed) for seed in (3, 3, 4))
    assert np.array_equal(one.hour, again.hour)
    assert np.array_equal(one.stage, again.stage)
    assert not np.array_equal(one.hour[:9], other.hour[:9])
    expected = 0.1 * 24 * 2000
    assert abs(len(one.hour) - expected) < 4 * math.sqrt(expected)
    assert np.bincount(one.stage, minlength=24).min() > 0.6 * expected / 24
    assert np.all(np.diff(one.hour) >= 0)
    assert one.hour[-1] < 2000


# -- the paper's table 2 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", TABLE_2)
@pytest.mark.parametrize("which", range(3), ids=["5 %", "10 %", "16 %"])
def test_hours_of_table_2_come_out_again(policy, which):
    """Damage was derived from them. The table has no recoveries, no steps cut off and, of CheckFree, no ends."""
    (hours, seconds), chance = TABLE_2[policy][which], CHANCES[which]
    machine, rate = Machine(6, seconds, 0.0, 0.0), hourly(chance)
    damage = damage_of(policy, 6, rate * seconds / HOUR)
    found = []
    for seed in range(20):
        deaths = drawn(rate, 6, 5 * hours, seed)
        if policy == "checkfree":
            inner = (deaths.stage > 0) & (deaths.stage < 5)
            deaths = Deaths(deaths.hour[inner], deaths.stage[inner], deaths.end)
        found.append(run(policy, deaths, machine=machine, damage=damage.high, steps=STEPS).hours)
    assert fmean(found) == pytest.approx(hours, rel=0.02)


def test_redundant_stages_take_at_most_what_table_2_has():
    """The table's hours are those of no failures; a step that is cut off takes up to 2 % more. Ours: 1.02 at least."""
    machine, rate = Machine(6, 91.3, 0.0, 0.0), hourly(0.1)
    quiet = compare(machine, 10_000, rate, [died()]).to_dict()["policies"]["redundant"]
    assert quiet["hours"] == pytest.approx([1.02 * 10_000 * 91.3 / HOUR, 419.6], rel=1e-3)
    found = compare(machine, 10_000, rate, [drawn(rate, 6, 1300.0, seed) for seed in range(10)]).to_dict()
    assert 419.6 < found["policies"]["redundant"]["hours"][1] < 1.02 * 419.6


def test_checkpoints_of_table_2_do_not_come_out():
    """It has 558, 622 and 634 h, of states saved every 100 steps: by the rates it names the first is too many, the last
    too few."""
    found = []
    for chance in CHANCES:
        traces = [drawn(hourly(chance), 6, 1300.0, seed) for seed in range(20)]
        options = compare(Machine(6, 91.3, 0.0, 0.0), 10_000, hourly(chance), traces, every=100).to_dict()["policies"]
        found.append(options["checkpoint"]["hours"][0])
    assert found[0] < 0.75 * 558
    assert found[1] == pytest.approx(622, rel=0.05)
    assert found[2] > 1.5 * 634


def test_damage_has_its_ends_and_its_source():
    inside = hourly(0.1) * 91.32 / HOUR
    assert damage_of("redundant", 24, inside) == Damage(0, 0, "exact")
    six, many = damage_of("checkfree+", 6, inside), damage_of("checkfree+", 24, inside)
    assert (six.low, many.high, many.low) == (six.high, six.high, pytest.approx(six.low / 4))
    assert damage_of("shadow", 6, inside).low == 0
    with pytest.raises(KeyError):
        damage_of("random", 6, inside)
    assert damage_of("checkfree+", 6, 1e-9) == damage_of("checkfree+", 6, hourly(0.05) * 91.32 / HOUR)


@settings(deadline=None)
@given(st.floats(0.1, 30), st.integers(1, 12))
def test_damage_that_was_put_into_curves_is_found_in_them(each, deaths):
    def loss(step):
        return 2 + 10 / (step + 10)

    none = [(step, loss(step)) for step in range(0, 4001, 5)]
    behind = [(step, loss(step - each * deaths)) for step in range(2000, 4001, 500)]
    found = measured(none, [(behind, list(range(deaths)))])
    assert found.low == pytest.approx(each, rel=0.02)
    assert found.high == pytest.approx(each, rel=0.02)
    with pytest.raises(ValueError, match="no stage died"):
        measured(none, [(behind, [5000])])


# -- which one pays ---------------------------------------------------------------------------------------------------


def asked(**options):
    return rekindle.simulate(**{"failures": "0.1/h", "stages": 12, "steps": 2000, "seeds": 20, **options})


def test_a_verdict_holds_at_both_ends_of_what_is_known():
    found = asked()
    assert found.verdict()[0] == "undecided"
    assert "shadow" in {one.policy for one in found.open()}
    slow = asked(save_seconds=20_000)  # states that take hours
    assert slow.verdict()[0] != "checkpoint"
    sure = asked(save_seconds=0, recovery_seconds=0, stages=6)  # states that cost nothing
    assert sure.verdict()[0] == "undecided"
    assert {one.policy: one.every for one in sure.options}["checkpoint"] == 1


def test_where_a_death_costs_less_than_breaks_even_a_policy_is_as_soon():
    found = asked(stages=24)
    options = {one.policy: one for one in found.options}
    even = found.breaks_even(options["shadow"])
    rate = hourly(0.1)
    traces = [drawn(rate, 24, 5 * found.none, seed) for seed in range(20)]
    again = compare(found.machine, 2000, rate, traces, known={"shadow": Damage(even, even, "put in")})
    hours = {one.policy: one.to_dict(found.none)["hours"][0] for one in again.options}
    assert hours["shadow"] == pytest.approx(hours["checkpoint"], rel=0.02)


def test_where_redundant_steps_take_less_than_breaks_even_they_are_as_soon(monkeypatch):
    found = asked(stages=24)
    reason = found.verdict()[1]
    even = float(re.search(r"redundant \(below ([\d.]+) times a step's time\)", reason)[1])
    assert STANDING["redundant"][0] < even < STANDING["redundant"][1]
    monkeypatch.setitem(STANDING, "redundant", (even, even))
    again = asked(stages=24)
    hours = {one.policy: one.to_dict(found.none)["hours"] for one in again.options}
    assert hours["redundant"] == pytest.approx(hours["checkpoint"], rel=0.02)


def test_what_is_left_out_says_why():
    assert "random" in asked().left_out
    assert {"random", "checkfree+"} == set(asked(stages=3).left_out)
    assert {"random", "checkfree+", "checkfree", "copy"} == set(asked(stages=2).left_out)


def test_at_worst_nobody_may_be_there():
    found = asked(failures="0.36/h", stages=100, save_seconds=100, seeds=2)
    assert found.verdict()[0] == "undecided"
    assert "at worst no policy is there" in found.verdict()[1]


def test_where_steps_are_longer_than_stages_live_nobody_arrives():
    found = asked(failures="0.9/h", stages=200, seeds=2).to_dict()
    assert found["verdict"] == "none"
    assert all(math.isinf(one["hours"][0]) for one in found["policies"].values())


def test_a_log_of_deaths_is_replayed(tmp_path):
    log = tmp_path / "deaths.csv"
    log.write_text("hours,stage\n3.5,2\n1.25,0\n\n3.501,3\n")
    deaths = read_deaths(log, 4)
    assert deaths.hour.tolist() == [1.25, 3.5, 3.501]
    assert deaths.stage.tolist() == [0, 2, 3]
    found = asked(failures=str(log), stages=4).to_dict()
    assert found["draws"] == 1
    assert found["policies"]["shadow"]["back"] == [1, 1]  # 2 and whoever holds its shadow
    assert any("at 3.5 h, nobody dies" in note for note in found["notes"])
    assert found["deaths_per_hour"] == pytest.approx(
        3 / found["none_hours"]
    )  # of all the run, not until the last of them


# -- the command line -------------------------------------------------------------------------------------------------


def told(*words):
    ran = CliRunner().invoke(command, ["plan", *words], catch_exceptions=True)
    return ran, ran.exception if isinstance(ran.exception, RekindleError) else None


def test_plan_says_which_policy_pays():
    ran, _ = told("--failures", "0.1/h", "--stages", "24", "--steps", "500", "--seeds", "10")
    assert ran.exit_code == 0, ran.output
    assert ran.stdout.startswith("undecided: checkpoint takes")
    assert "table 2" in ran.stderr
    ran, _ = told("--failures", "0.1/h", "--stages", "24", "--steps", "500", "--seeds", "10", "--format", "json", "-q")
    found = json.loads(ran.stdout)
    assert set(found["policies"]) == set(POLICIES) - {"random"}
    assert found["policies"]["checkfree"]["hours"][1] is None  # never


@pytest.mark.parametrize(("words", "says"), [
    (["--failures", "0/h", "--stages", "24"], "between 0 and 1"),
    (["--failures", "1.5/h", "--stages", "24"], "between 0 and 1"),
    (["--failures", "1e/h", "--stages", "24"], "between 0 and 1"),
    (["--failures", "abc", "--stages", "24"], "neither a chance in an hour nor a file"),
    (["--failures", ".", "--stages", "24"], "neither a chance in an hour nor a file"),
    (["--failures", "0.1/h"], "How many stages there are is not given"),
    (["--failures", "0.1/h", "--stages", "-3"], "stages is -3: at least 2"),
    (["--failures", "0.1/h", "--stages", "1"], "stages is 1: at least 2"),
    (["--failures", "0.1/h", "--stages", "24", "--step-seconds", "0"], "step_seconds is 0"),
    (["--failures", "0.1/h", "--stages", "24", "--save-seconds", "nan"], "save_seconds is nan"),
    (["--failures", "0.1/h", "--stages", "24", "--checkpoint-every", "0"], "checkpoint_every is 0"),
    (["--failures", "0.1/h", "--stages", "10000000"], "deaths would be drawn"),
    (["--failures", "0.1/h", "--stages", "24", "--params", "1B"], "--params would not be read beside --failures"),
    (["--failures", "0.1/h", "--stages", "24", "--html", "page.html"], "--html would not be read beside --failures"),
    (["--stages", "24", "--params", "1B"], "--stages would not be read without --failures"),
    (["--failures", "0.1/h", "--stages", "24", "--runs", "RUN"], "no metrics.jsonl"),
])  # fmt: skip
def test_what_cannot_be_is_a_sentence_with_a_hint(words, says):
    _, error = told(*words)
    assert error is not None
    assert says in str(error)
    assert error.hint
    assert error.exit_code == 2


@pytest.mark.parametrize(("text", "says"), [
    ("", "not hours,stage"), ("time,stage\n1,2\n", "not hours,stage"), ("hours,stage\n", "Nobody dies"),
    ("hours,stage\n1\n", "is no hour and stage"), ("hours,stage\n-1,2\n", "is no hour and stage"),
    ("hours,stage\nnan,2\n", "is no hour and stage"), ("hours,stage\n1,2.5\n", "is no hour and stage"),
    ("hours,stage\n1,2,3\n", "is no hour and stage"), ("hours,stage\n1,4\n", "Stage 4 died, and there are 4 stages"),
    ("hours,stage\n1,-1\n", "Stage -1 died"), ("hours,stage\n1,x\n2,9\n", "2 problems"),
])  # fmt: skip
def test_a_log_that_is_none_is_a_sentence(tmp_path, text, says):
    log = tmp_path / "deaths.csv"
    log.write_text(text)
    with pytest.raises(RekindleError, match=says):
        read_deaths(log, 4)


def test_a_chance_is_written_by_the_hour():
    assert chance_of("0.1/h") == 0.1
    assert chance_of(" 1e-3/H ") == 1e-3
    assert chance_of("deaths.csv") is None
    assert hourly(1 - math.exp(-2)) == pytest.approx(2)


# -- runs of one's own ------------------------------------------------------------------------------------------------


def diary(folder, losses, recoveries=(), policy="shadow"):
    folder.mkdir()
    rows = [{"kind": "eval", "step": step, "tokens": step, "flops": step, "val_loss": loss, "val_loss_stderr": 0.01}
            for step, loss in losses]  # fmt: skip
    rows += [{"kind": "recovery", "step": step, "stage": 1, "policy": policy, "seconds": 0.2} for step in recoveries]
    head = {"kind": "run", "flops_per_token": 1}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (head, *rows)))
    return str(folder)


def test_what_a_death_costs_is_taken_from_runs(tmp_path):
    none = diary(tmp_path / "none", [(0, 4.0), (100, 3.0), (200, 2.0)])
    lost = diary(tmp_path / "lost", [(0, 4.0), (100, 3.1), (200, 2.2)], [10, 20])
    found = asked(runs=f"{none},{lost}").to_dict()
    damage = found["policies"]["shadow"]["damage"]
    assert (damage["low"], damage["high"]) == (pytest.approx(5), pytest.approx(10))
    assert damage["source"] == "2 deaths of 1 run"
    assert any(note.startswith("shadow: what a death costs is measured, 2 deaths of 1 run") for note in found["notes"])
    random = diary(tmp_path / "random", [(0, 4.0), (200, 2.2)], [10], "random")
    assert "random" not in asked(runs=f"{none},{random}").left_out
    with (tmp_path / "lost" / "metrics.jsonl").open("a") as file:  # exact copies cost nothing
        for policy in ("replica", "left"):
            row = {"kind": "recovery", "step": 30, "stage": 2, "policy": policy, "seconds": 0.2}
            file.write(json.dumps(row) + "\n")
    assert asked(runs=f"{none},{lost}").to_dict()["policies"]["shadow"]["damage"] == damage


def test_runs_that_say_nothing_are_a_sentence(tmp_path):
    none = diary(tmp_path / "none", [(0, 4.0), (200, 2.0)])
    lost = diary(tmp_path / "lost", [(0, 4.0), (200, 2.2)], [10])
    late = diary(tmp_path / "late", [(0, 4.0), (200, 2.2)], [300])
    for runs, says in (
        (none, "names one folder"),
        (f"{lost},{none}", "1 stage died in"),
        (f"{none},{none}", "no policy"),
        (f"{none},{late}", "no stage died before"),
    ):
        with pytest.raises(RekindleError, match=says):
            asked(runs=runs)
