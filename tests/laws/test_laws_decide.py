"""Decisions: crossings, splits and verdicts against closed forms and the figures worked out from the paper."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store.safetensors_bytes import file_of

from rekindle import api
from rekindle.errors import RekindleError
from rekindle.laws.allocate import best_split
from rekindle.laws.config import PlanConfig
from rekindle.laws.crossing import least_for, lowest
from rekindle.laws.decide import Answer, decide
from rekindle.laws.law import law_named, published
from rekindle.laws.plan import Checkpoint, plan
from rekindle.laws.question import Question

LAW = published()["upcycling-2025"]
UP = LAW.row("upcycled").values
# N1, D1: D*, or none below 5e12
D_STAR = {
    (1e8, 1e10): 13347427344.5,
    (1e9, 1e10): 7074696912.6,
    (1e9, 1e11): 50643775460.8,
    (2e9, 1e12): 701920943878.1,
    (7e9, 1e12): 157541588559.3,
    (1e9, 1e12): math.inf,
    (1e8, 1e12): math.inf,
}


@pytest.mark.parametrize("size", D_STAR, ids=str)
def test_the_crossing_is_the_lowest_root(size):
    found = decide(LAW, Question(*size, tokens=5e10)).crossing
    assert found.mid == pytest.approx(D_STAR[size], rel=1e-6)
    assert found.low <= found.mid <= found.high


def test_rounding_moves_the_crossing_by_a_factor_of_three():
    found = decide(LAW, Question(1e9, 1e11, 5e10)).crossing
    assert found.low == pytest.approx(2.1e10, rel=0.15)
    assert found.high == pytest.approx(1.8e11, rel=0.25)


@settings(max_examples=30, deadline=None)
@given(st.floats(8, 9.8), st.floats(10, 11.5))
def test_the_crossing_rises_with_the_sunk_cost_and_falls_with_size(log_n, log_d1):
    def crossing(n: float, d1: float) -> float:
        return decide(LAW, Question(n, d1, 5e10)).crossing.mid

    here = crossing(10**log_n, 10**log_d1)
    assert crossing(10**log_n, 1.5 * 10**log_d1) >= here
    assert crossing(1.5 * 10**log_n, 10**log_d1) <= here


def test_tokens_to_regain_the_source_in_closed_form():
    n, d1 = 1e9, 7.4e10
    floor = LAW.row("dense").loss(params=n, tokens=d1) - UP["B"] * n ** -UP["beta"] - UP["E"]
    nu = UP["alpha2"] - UP["alpha3"] * math.log(d1)
    expected = (UP["A"] * d1 ** -UP["alpha1"] / floor) ** (1 / nu)
    assert decide(LAW, Question(n, d1, 5e10)).regain.mid == pytest.approx(expected, rel=1e-9)
    assert expected == pytest.approx(9.2e9, rel=0.01)


@pytest.mark.parametrize("d1", [1e10, 1e11, 1e12])
def test_the_best_split_is_the_closed_form(d1):
    question, budget = Question(1e9, d1, 5e10), 1e21
    nu = UP["alpha2"] - UP["alpha3"] * math.log(d1)
    data = UP["A"] * d1 ** -UP["alpha1"]
    tokens_and_size = budget / (6 * question.ratio)
    share = 1 / (nu + UP["beta"])
    size = (UP["beta"] * UP["B"] / (nu * data)) ** share * tokens_and_size ** (nu * share)
    found = best_split(LAW, question, budget, 50)
    assert found.params == pytest.approx(size, rel=1e-5)
    assert found.tokens == pytest.approx(tokens_and_size / size, rel=1e-5)
    assert found.params_low < found.params < found.params_high
    if d1 == 1e11:
        assert (found.params, found.loss) == (pytest.approx(5.655e9, rel=1e-3), pytest.approx(2.04706, abs=1e-5))


def test_options_are_given_the_tokens_that_their_names_say():
    q = Question(1e9, 1e11, 5e10)
    found = decide(LAW, q).options
    dense, scratch, up = (LAW.row(name) for name in ("dense", "scratch", "upcycled"))
    assert found["dense"].loss == dense.loss(params=1e9, tokens=1.5e11)
    assert found["dense_flops"].loss == dense.loss(params=1e9, tokens=1e11 + 5e10 * 1.735)
    assert found["upcycled"].loss == up.loss(params=1e9, sunk=1e11, tokens=5e10)
    assert found["scratch"].loss == scratch.loss(params=1e9, tokens=5e10)
    assert found["scratch_d1d2"].loss == scratch.loss(params=1e9, tokens=1.5e11)
    assert found["scratch_flops"].loss == pytest.approx(scratch.loss(params=1e9, tokens=5e10 + 1e11 / 1.735))
    assert found["upcycled"].flops == pytest.approx(found["dense_flops"].flops)
    assert found["scratch_flops"].flops == pytest.approx(6 * 1e9 * 1e11 + found["upcycled"].flops)
    assert all(option.low < option.loss < option.high for option in found.values())


@pytest.mark.parametrize(
    ("question", "verdict", "because"),
    [
        (Question(1e8, 1e11, 2e10), "worth it", "below “mixture from scratch"),
        (Question(1e8, 1e10, 3e11), "not worth it", "above “mixture from scratch, as many tokens"),
        (Question(1e9, 1e11, 5e10), "undecided", "interval of the difference holds 0"),
        (Question(7e9, 1e12, 1e11), "undecided", "out of its reach"),
        (Question(1e9, 1e11, 1e15), "undecided", "cross a second time"),
    ],
)
def test_the_three_verdicts(question, verdict, because):
    found = decide(LAW, question)
    assert (found.verdict, because in found.reason) == (verdict, True), found.reason


@settings(max_examples=40, deadline=None)
@given(st.floats(7.5, 10), st.floats(9, 12), st.floats(8, 12), st.sampled_from([2, 8, 64]))
def test_a_verdict_is_what_its_difference_says(log_n, log_d1, log_d2, experts):
    found = decide(LAW, Question(10**log_n, 10**log_d1, 10**log_d2, experts=experts))
    assert found.verdict in get_args(Answer)
    if found.verdict != "undecided":
        assert (found.difference.high < 0) == (found.verdict == "worth it")
        assert abs(found.difference.mid) >= 0.03
    assert ("experts 8" in str(found.outside)) is False
    assert any(line.startswith("experts") for line in found.outside) == (experts != 8)


def test_a_law_with_draws_decides_below_the_margin_of_an_unknown_fit():
    draws = {
        name: {p: np.full(20, row.values[p]) * (1 + 1e-6 * np.arange(20)) for p in row.form.parameters}
        for name, row in LAW.rows.items()
    }
    fitted = replace(LAW, draws=draws)
    question = Question(1e9, 1e11, 6e10)
    assert decide(LAW, question).verdict == "undecided"
    assert decide(fitted, question).verdict == "not worth it"


def test_one_stage_laws_tell_their_options_and_no_verdict():
    found = decide(published()["joint-moe-2025"], Question(1e9, 1e11, 5e10))
    assert set(found.options) == {"scratch", "scratch_d1d2", "scratch_flops"}
    assert (found.verdict, found.crossing) == ("undecided", None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"params": "1B", "sunk": "1e11"}, "--tokens 50B"),
        ({"params": "1B", "tokens": "1e11"}, "--sunk 100B"),
        ({"sunk": "100B", "tokens": "1e11"}, "--params 1B"),
        ({"params": "1", "sunk": "1e11", "tokens": "1e10"}, "not billions"),
        ({"params": "-1B", "sunk": "1e11", "tokens": "1e10"}, "params is -1e"),
        ({"params": "1B", "sunk": "1e11", "budget_flops": "-1"}, "budget_flops is -1"),
        ({"params": "1B", "sunk": "1e11", "budget_flops": "1e20", "days": "3"}, "leave --days"),
        ({"params": "1B", "sunk": "1e11", "tokens": "1e10", "mfu": "40"}, "a share of the peak"),
        ({"params": "1e300", "sunk": "1e11", "tokens": "1e10"}, "more than there is"),
        ({"params": "1B", "sunk": "1e11", "budget_flops": "1e10"}, "tokens of the mixture"),
        ({"params": "1B", "sunk": "1e11", "tokens": "1e10", "html": "no/such/page.html"}, "is not there"),
        ({"params": "1B", "sunk": "1e11", "tokens": "1e10", "html": "."}, "is a folder"),
        ({"params": "1B", "sunk": "1e11", "tokens": "1e10", "gpus": "0"}, "gpus is 0"),
        ({"params": "1B", "sunk": "1e11", "tokens": "1e10", "price": "-1"}, "price is -1"),
        ({"params": "1B", "sunk": "1e11", "tokens": "1e10", "experts": "2", "top_k": "4"}, "4 of 2 experts"),
        ({"params": "1B", "sunk": "1e11", "tokens": "1e10", "gpu": "h10"}, "one of a100"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_in_a_sentence(given, said):
    with pytest.raises(RekindleError, match=said):
        api.plan(**given)


def test_a_budget_gives_the_tokens():
    found = api.plan(params="1B", sunk="100B", gpus=64, gpu="h200", days=3, price=2).to_dict()
    flops = 64 * 989e12 * 0.4 * 3 * 86400
    assert found["question"]["tokens"] == pytest.approx(flops / 6 / 1.735e9)
    cost = found["options"]["upcycled"]["cost"]
    assert (cost["days"], cost["gpu_hours"], cost["money"]) == pytest.approx((3, 64 * 72, 64 * 72 * 2))


def test_a_checkpoint_tells_its_size_shape_and_sunk_tokens(tiny, tmp_path):
    folder = tiny("llama")
    found = api.plan(ckpt=str(folder), sunk="1M", tokens="1M").to_dict()
    inspected = api.inspect(folder)
    assert found["question"]["params"] == inspected["parameters"]["total"]
    moe = api.upcycle(api.open(folder), experts=8, top_k=2).checkpoint.parameters()
    routers = inspected["layers"] * inspected["hidden_size"] * 8
    assert found["question"]["total"] == pytest.approx(moe["total"] - routers)
    assert found["question"]["active"] == pytest.approx(moe["active"] - routers)
    heads = inspected["heads"]
    expected = 2 * 2 * inspected["layers"] * heads["key_value"] * heads["dim"]
    assert found["serving"]["mixture"]["kv_bytes_per_token"] == expected
    with pytest.raises(RekindleError, match="--sunk"):
        api.plan(ckpt=str(folder), tokens="1M")
    with pytest.raises(RekindleError, match="experts already"):
        api.plan(ckpt=str(tiny("mixtral")), sunk="1M", tokens="1M")
    assert found["notes"] == []


def test_other_models_than_decoders_are_told_apart(tiny, tmp_path):
    """Their numbers are theirs, all towers counted, and the laws' are not of their kind: on the page as well."""
    page = tmp_path / "page.html"
    found = api.plan(ckpt=str(tiny("t5")), sunk="1M", tokens="1M", html=page).to_dict()
    settings = api.open(tiny("t5")).checkpoint.settings.towers["decoder"]
    kept = 2 * 2 * settings.num_layers * settings.num_heads * settings.head_dim  # a key and a value, in bf16
    assert found["question"]["params"] == api.inspect(tiny("t5"))["parameters"]["total"]
    assert found["serving"]["dense"]["kv_bytes_per_token"] == kept
    assert found["notes"] == [
        "this t5 writes a text for the one it reads: published laws are of decoders alone",
        f"the KV cache is that of a token which is written; one that is read takes {kept} bytes",
    ]
    assert "This t5 writes a text for the one it reads" in page.read_text()
    (note,) = api.plan(ckpt=str(tiny("bert")), sunk="1M", tokens="1M").to_dict()["notes"]
    assert note == "this bert has no language-model head: published laws are of decoders alone"


def test_a_checkpoint_that_no_law_can_be_asked_about(tmp_path):
    """A class that no table knows; and one that has read too little, or is too small, to be a point of any law."""
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
    (tmp_path / "model.safetensors").write_bytes(file_of({"w": ("F32", (2,), bytes(8))}))
    with pytest.raises(RekindleError, match="'unheard-of' is not known") as error:
        api.plan(ckpt=str(tmp_path), sunk="1M", tokens="1M")
    assert error.value.why == "plan must know what each tensor is"
    known = Checkpoint(params=999, sunk=512)
    with pytest.raises(RekindleError) as error:
        plan(law_named("upcycling-2025"), PlanConfig(ckpt="SRC", tokens=10**6), known)
    assert "SRC has 999 parameters: too few for any law" in str(error.value)
    assert "SRC has 512 tokens behind it: too few for any law" in str(error.value)
    assert "billions" not in str(error.value)


@pytest.mark.parametrize(
    ("law", "question", "said"),
    [
        ("joint-moe-2025", Question(2e9, 1e11, 5e10), "params 3.47e+09"),
        ("sparsity-2025", Question(2e9, 1e11, 5e10, experts=64, top_k=1), "active_share 0.0156"),
        ("upcycling-2025", Question(1e9, 3.6e11, 3.6e11), "tokens 7.2e+11"),
        ("granularity-2024", Question(1e8, 1e11, 5e10), "experts 8"),
    ],
)
def test_what_an_option_is_given_is_what_must_lie_within(law, question, said):
    assert any(line.startswith(said) for line in decide(published()[law], question).outside)


def test_small_questions_have_crossings_below_a_million_tokens():
    assert lowest(lambda d2: d2 - 12345.0, least_for(5e5)) == pytest.approx([12345.0])
    assert lowest(lambda d2: 12345.0 - d2, least_for(5e5)) == pytest.approx([500.0])
    assert lowest(lambda d2: -d2, least_for(5e5)) == math.inf
