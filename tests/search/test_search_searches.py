"""The searches, on functions whose best coefficients are known."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
import torch
from search.run_made import ledger, store_of

from rekindle.errors import CheckFailed, RekindleError
from rekindle.search.coefficients import ema, single, uniform
from rekindle.search.config import SearchConfig
from rekindle.search.find import SEARCHES, find, search_named
from rekindle.search.ledger import Journal
from rekindle.search.problem import Problem

K, P = 8, 400
NAMES = [f"step-{k}" for k in range(1, K + 1)]
RNG = np.random.default_rng(0)
THETAS = RNG.standard_normal((K, P)).astype(np.float32)
TARGET = torch.from_numpy(0.6 * THETAS[2] + 0.7 * THETAS[5] - 0.3 * THETAS[7] + 0.05 * RNG.standard_normal(P)).float()


def quadratic(tensors):
    return ((tensors["w"] - TARGET) ** 2).mean()


def plain(tensors):
    return float(quadratic(tensors))


def drawn(tensors, draw):
    """Other coordinates for each draw."""
    rows = torch.randperm(P, generator=torch.Generator().manual_seed(draw.seed))[: int(P * 0.3 * draw.share)]
    return ((tensors["w"] - TARGET)[rows] ** 2).mean()


def best() -> tuple[np.ndarray, float]:
    """The least of the quadratic among coefficients that sum to 1, in closed form."""
    rows = (THETAS[:-1] - THETAS[-1]).astype(np.float64)
    beta = np.linalg.lstsq(rows.T, TARGET.numpy().astype(np.float64) - THETAS[-1], rcond=None)[0]
    alpha = np.append(beta, 1 - beta.sum())
    return alpha, float(((alpha @ THETAS - TARGET.numpy()) ** 2).mean())


def problem(function, budget, kind="one", **how):
    return Problem(ledger(store_of(THETAS), function, **how), [uniform(K), ema(K, 0.7)], budget, kind)


@pytest.mark.parametrize(
    ("search", "budget", "near"), [("gradient", 150, 1.05), ("cma", 600, 1.05), ("evolution", 900, 2)]
)
def test_a_search_approaches_the_best_there_is(search, budget, near):
    found = search_named(search)(problem(quadratic, budget))
    alpha, least = best()
    assert least - 1e-9 <= found[0].score < near * least
    assert found[0].score < plain({"w": torch.from_numpy(THETAS.mean(axis=0))}) / 5
    assert abs(found[0].alpha.sum() - 1) < 1e-6
    if near < 2:
        assert np.abs(found[0].alpha - alpha).max() < 0.05


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("kind", ["one", "free", "convex"])
def test_groups_find_what_one_sum_cannot(search, kind):
    """Halves of the vector that want other coefficients; where none is negative, one checkpoint each."""
    want = np.concatenate([THETAS[2, : P // 2], THETAS[5, P // 2 :]])

    def function(tensors):
        return ((tensors["w"] - torch.from_numpy(want)) ** 2).mean()

    parts, starts = [slice(0, P // 2), slice(P // 2, P)], [uniform(K), ema(K, 0.7), single(K, 2)]
    both = []
    for own in ((), parts):
        one = Problem(ledger(store_of(THETAS, parts=own), function), starts, 300, kind, seed=1)
        both.append(search_named(search)(one))
        assert one.ledger.spent <= 303
    (whole, *_), (grouped, *_) = both
    assert grouped.alpha.shape == (2, K)
    assert kind == "free" or np.abs(grouped.alpha.sum(axis=1) - 1).max() < 1e-6
    assert kind != "convex" or grouped.alpha.min() >= 0
    if search == "gradient":
        assert grouped.score < 0.1 * whole.score
        assert grouped.alpha[0, 2] > 0.8
        assert grouped.alpha[1, 5] > 0.8
    elif search != "random":
        assert grouped.score < whole.score


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("kind", ["one", "free", "convex"])
def test_sums_budgets_and_that_nothing_gets_worse(search, kind):
    for budget in (1, 3, 11, 40):
        one = problem(quadratic, budget, kind)
        starts = one.ledger.spent
        found = search_named(search)(one)
        assert one.ledger.spent - starts == budget
        assert (
            found[0].score <= min(plain({"w": torch.from_numpy(x)}) for x in start_vectors()) + 1e-6 or kind == "free"
        )
        for score, alpha in found:
            assert np.isfinite(score)
            assert kind == "free" or abs(alpha.sum() - 1) < 1e-6
            assert kind != "convex" or alpha.min() >= 0


def start_vectors():
    store = store_of(THETAS)
    return [store.mix(alpha, np.empty(P, np.float32)) for alpha in (uniform(K), ema(K, 0.7))]


@pytest.mark.parametrize("search", SEARCHES)
def test_the_same_seed_the_same_answer_for_any_number_of_workers(search):
    found = [search_named(search)(problem(drawn, 60, workers=workers)) for workers in (1, 2, 5)]
    for other in found[1:]:
        assert [one.score for one in other] == [one.score for one in found[0]]
        assert all(np.array_equal(a.alpha, b.alpha) for a, b in zip(other, found[0], strict=True))


@pytest.mark.parametrize("search", SEARCHES)
def test_a_search_that_was_cut_off_goes_on_from_its_journal(search, tmp_path):
    def cut(tensors, draw):
        cut.calls += 1
        if cut.calls > 45:
            raise KeyboardInterrupt
        return drawn(tensors, draw)

    config, every = SearchConfig(search=search, budget=70), []

    def all_of_it(tensors, draw):
        every.append(draw)
        return drawn(tensors, draw)

    whole = find(ledger(store_of(THETAS), all_of_it), config, NAMES)
    for _ in range(2):  # cut twice: the first time early
        cut.calls = 0
        with pytest.raises(KeyboardInterrupt), closing(Journal(tmp_path / "j", "a", resume=True)) as journal:
            find(ledger(store_of(THETAS), cut, journal=journal), config, NAMES)
    with (tmp_path / "j").open("a") as file:
        file.write('{"key": "torn')
    calls = []

    def counted(tensors, draw):
        calls.append(draw)
        return drawn(tensors, draw)

    with closing(Journal(tmp_path / "j", "a", resume=True)) as journal:
        known = len(journal)
        again = find(ledger(store_of(THETAS), counted, journal=journal), config, NAMES)
    assert 88 <= known <= 90  # what was being scored together when it was cut off is scored again
    assert len(calls) + known == len(every)
    assert whole.evaluations == again.evaluations
    assert sum(whole.evaluations.values()) == pytest.approx(sum(draw.share for draw in every))
    assert np.array_equal(again.result.alpha, whole.result.alpha)
    assert again.combination.reported == whole.combination.reported
    with pytest.raises(RekindleError, match="journal is of another search"):
        Journal(tmp_path / "j", "b", resume=True)


def by_numpy(tensors):
    return float(np.square(tensors["w"].numpy() - TARGET.numpy()).mean())


def test_gradient_where_there_is_one_and_cma_where_there_is_none():
    for function, search in ((quadratic, "gradient"), (plain, "cma"), (drawn, "gradient"), (by_numpy, "cma")):
        assert find(ledger(store_of(THETAS), function), SearchConfig(budget=60), NAMES).search == search
    with pytest.raises(RekindleError, match="without a gradient"):
        find(ledger(store_of(THETAS), plain), SearchConfig(budget=60, search="gradient"), NAMES)


def test_what_is_reported_was_never_searched():
    seen = []

    def watched(tensors, draw):
        seen.append(draw)
        return drawn(tensors, draw)

    outcome = find(ledger(store_of(THETAS), watched), SearchConfig(budget=60, search="cma"), NAMES)
    splits = {split: {draw.seed for draw in seen if draw.split == split} for split in ("search", "rerank", "report")}
    assert len(splits["search"]) == 1  # one noise for all candidates
    assert len(splits["rerank"]) == 3
    assert len(splits["report"]) == 8
    assert len(set.union(*splits.values())) == 12
    reports = [draw for draw in seen if draw.split == "report"]
    assert len(reports) == 8 * len({row.alpha.tobytes() for row in outcome.rows})  # each model once on each draw
    assert seen.index(reports[0]) > max(i for i, draw in enumerate(seen) if draw.split != "report")
    assert outcome.held_out


def test_free_sums_are_held_against_a_scaled_average():
    outcome = find(ledger(store_of(THETAS), quadratic), SearchConfig(budget=60, sum="free"), NAMES)
    assert "scaled EMA" in [row.kind for row in outcome.rows]
    assert "scaled EMA" not in [
        row.kind for row in find(ledger(store_of(THETAS), quadratic), SearchConfig(budget=60), NAMES).rows
    ]


def test_where_nothing_is_better_the_rival_is_the_result():
    """The target is the last checkpoint: nothing can beat it."""
    last = torch.from_numpy(THETAS[-1])
    outcome = find(ledger(store_of(THETAS), lambda x: ((x["w"] - last) ** 2).mean()), SearchConfig(budget=60), NAMES)
    assert outcome.result is outcome.rival
    assert outcome.rival.kind == "last"
    assert np.array_equal(outcome.result.alpha, single(K, K - 1))


def test_where_an_average_that_was_kept_is_better_it_is_the_result():
    rng = np.random.default_rng(0)
    near = TARGET.numpy() + 0.001 * rng.standard_normal((2, P)).astype(np.float32)
    store = store_of(np.concatenate([near + [[0.1], [0]], THETAS]), averages=2)
    found = find(ledger(store, drawn), SearchConfig(budget=40), NAMES, averages=["sigma 0.05", "sigma 0.1"])
    assert found.result is found.rival
    assert (found.result.kind, found.result.name) == ("kept EMA", "sigma 0.1")
    assert found.result.alpha.tolist() == single(2 + K, 1).tolist()
    assert found.combination.alpha.shape == (K,)


def test_searches_of_groups_that_end_at_a_start_are_of_groups_too():
    def at_the_last(tensors):
        return float(((tensors["w"] - torch.from_numpy(THETAS[-1])) ** 2).mean())

    store = store_of(THETAS, parts=[slice(0, 9), slice(9, P)])
    found = find(ledger(store, at_the_last), SearchConfig(budget=2 * K, seeds=2, search="cma"), NAMES)
    assert [alpha.shape for alpha in found.others] == [(2, K)] * 2
    assert found.combination.alpha.tolist() == single(K, K - 1).tolist()


def breaks(tensors):
    """Without a finite gradient but for the first time."""
    breaks.calls = getattr(breaks, "calls", 0) + tensors["w"].requires_grad
    return quadratic(tensors) + (torch.sqrt((tensors["w"] * 0).sum()) if breaks.calls > 1 else 0)


def test_objectives_that_are_none():
    def of(function, **config):
        return find(ledger(store_of(THETAS), function), SearchConfig(budget=60, **config), NAMES)

    with pytest.raises(RekindleError, match="raised ZeroDivisionError") as raised:
        of(lambda x: 1 / 0)
    assert "test_search_searches.py" in str(raised.value)
    with pytest.raises(RekindleError, match="gave a tensor"):
        of(lambda x: x["w"])
    with pytest.raises(RekindleError, match="gave str"):
        of(lambda x: "low")
    with pytest.raises(RekindleError, match="no finite number for any checkpoint"):
        of(lambda x: float("nan"))
    with pytest.raises(RekindleError, match="no spread"):
        of(lambda x: 3.0)
    with pytest.raises(RekindleError, match="cannot search 8 coefficients"):
        find(ledger(store_of(THETAS), plain), SearchConfig(budget=5, search="cma"), NAMES)
    with pytest.raises(RekindleError, match="takes 3 values"):
        of(lambda x, draw, more: 3.0)
    with pytest.raises(CheckFailed, match="no finite gradient"):
        of(breaks, search="gradient")


def test_candidates_without_a_number_lose_and_are_told():
    def sometimes(tensors):
        value = plain(tensors)
        return float("nan") if value > 1.1 else value

    for search in ("cma", "evolution"):
        outcome = find(ledger(store_of(THETAS), sometimes), SearchConfig(budget=60, search=search), NAMES)
        assert outcome.invalid > 0
        assert np.isfinite(outcome.combination.searched)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("last", [True, False])
def test_a_search_whose_best_is_a_corner_ends(search, last):
    """Convex sums, and the best is the last checkpoint or lies beyond it: every candidate is projected onto one."""
    goal = torch.from_numpy(THETAS[-1] if last else 2 * THETAS[-1] - THETAS[0])
    for count in (3, K):
        store = store_of(THETAS[-count:])
        how = {"search": search, "budget": 300, "sum": "convex"}
        outcome = find(ledger(store, lambda x: ((x["w"] - goal) ** 2).mean()), SearchConfig(**how), NAMES[-count:])
        assert outcome.combination.alpha.min() >= 0
        assert outcome.evaluations["search"] <= 300


def test_random_search_is_another_one_and_has_as_many_evaluations():
    outcome = find(ledger(store_of(THETAS), drawn), SearchConfig(search="random", budget=40), NAMES)
    assert outcome.evaluations["search"] == outcome.evaluations["random search"] == 40
    several = find(ledger(store_of(THETAS), drawn), SearchConfig(search="cma", budget=40, seeds=2), NAMES)
    assert several.evaluations["random search"] == 80
    assert not np.array_equal(*several.others)
    with pytest.raises(RekindleError, match="2 searches along its gradient are one"):
        find(ledger(store_of(THETAS), quadratic), SearchConfig(budget=40, seeds=2), NAMES)


def test_a_gradient_that_never_reaches_the_tensors_is_none():
    """What load_state_dict into a model of one's own leads to."""
    own = torch.zeros(P, requires_grad=True)

    def loaded(tensors):
        own.data.copy_(tensors["w"].detach())
        return ((own - TARGET) ** 2).mean()

    def in_place(tensors):
        x = tensors["w"] * 1
        y = x.exp()
        x += 1
        y += x
        return (y.exp() * y).sum() if not y.add_(1).requires_grad else (x.sigmoid() * y.mul_(2) * x.add_(1)).sum()

    assert find(ledger(store_of(THETAS), loaded), SearchConfig(budget=40), NAMES).search == "cma"
    assert find(ledger(store_of(THETAS), in_place), SearchConfig(budget=40), NAMES).search == "cma"


def test_an_objective_that_no_scale_changes_may_have_free_sums():
    by_sign = find(
        ledger(store_of(THETAS), lambda x: (x["w"].sign() != TARGET.sign()).float().mean()),
        SearchConfig(budget=40, sum="free"),
        NAMES,
    )
    assert next(row for row in by_sign.rows if row.kind == "scaled EMA").searched > 0


def test_racing_takes_more_candidates_for_the_same_budget():
    seen = []

    def watched(tensors, draw):
        seen.append(draw)
        return drawn(tensors, draw)

    one = problem(watched, 40)
    seen.clear()
    found = search_named("evolution")(one)
    assert sum(draw.share for draw in seen) <= 40
    assert sum(draw.share < 1 for draw in seen) > 60
    assert {draw.seed for draw in seen} == {seen[0].seed}
    assert len(found) == 2 + sum(draw.share == 1 for draw in seen)


def test_what_is_judged_is_what_would_be_written():
    """Coefficients of checkpoints in bfloat16 are judged rounded to it."""
    told = []

    def rounding(theta):
        theta[:] = np.round(theta, 1)

    def watched(tensors, draw):
        told.append(
            (
                draw.split,
                bool(
                    (tensors["w"] * 10 % 1).abs().max() < 1e-4
                    or (tensors["w"].mul(10).round() / 10 == tensors["w"]).all()
                ),
            )
        )
        return drawn(tensors, draw)

    find(ledger(store_of(THETAS), watched, written=rounding), SearchConfig(search="cma", budget=20), NAMES)
    assert {split for split, rounded in told if rounded} >= {"rerank", "report"}
    assert not any(rounded for split, rounded in told if split == "search")


@pytest.mark.parametrize("text", ["[1]\n", '{"of": "a"}\n{"key": "b"}\n{"key": 1}\n', "\x00\xff", '{"of"'])
def test_a_file_that_is_no_journal(tmp_path, text):
    (tmp_path / "j").write_text(text)
    with pytest.raises(RekindleError, match="no journal of a search|of another search"):
        Journal(tmp_path / "j", "a", resume=True)


def test_a_journal_cut_off_at_any_byte_goes_on(tmp_path):
    with closing(Journal(tmp_path / "j", "a")) as journal:
        for key in "abc":
            journal.note(key, {"score": 1.5, "other": float("nan")}, np.array([1.0, 2.0]))
    whole = (tmp_path / "j").read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole)):
        (tmp_path / "j").write_bytes(whole[:end])
        with closing(Journal(tmp_path / "j", "a", resume=True)) as journal:
            assert len(journal) in (whole[:end].count(b"\n") - 1, whole[:end].count(b"\n"))
