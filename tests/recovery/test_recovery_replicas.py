"""Pipelines side by side: the training of one process, and what a living replica is good for."""

from __future__ import annotations

import pytest
from recovery.test_recovery_train import losses, nothing_is_left, options
from store.folders import hashes
from train.train_helpers import recoveries, rows

import rekindle
from rekindle.errors import CheckFailed, RekindleError

pytestmark = [pytest.mark.xdist_group("recovery"), pytest.mark.slow]
__all__ = ["nothing_is_left"]


def told(out) -> list[tuple]:
    return [(row["step"], row["stage"], row["replica"], row["policy"]) for row in recoveries(out)]


@pytest.mark.parametrize(
    ("family", "recover"), [("llama", "shadow"), ("mixtral", "checkfree"), ("llama", "redundant"), ("gpt2", "shadow")]
)
def test_replicas_train_as_one_process_does_and_whoever_dies_alone_is_copied_to_the_bit(
    small, corpus, tmp_path, family, recover
):
    """Ranks 2 and 3 are stages 0 and 1 of the second replica. A mixture's balance is weighed by the pass."""
    source = small(family, layers=4, tie_embeddings=True) if family == "llama" else small(family, layers=4)
    how = options(corpus, aux_loss=0.0, micro_batch=2)
    rekindle.train(source, tmp_path / "one", **how)
    how |= {"stages": 2, "replicas": 2, "recover": recover, "spares": 2}
    rekindle.train(source, tmp_path / "many", **how)
    if family != "gpt2":  # which drops out
        assert losses(tmp_path / "many") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
        norms = [[row["grad_norm"] for row in rows(tmp_path / out, "step")] for out in ("many", "one")]
        assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    rekindle.train(source, tmp_path / "died", **how, inject="1:2:backward,3:0:ready,4:1:commit,6:3:begin,6:0:begin")
    wanted = {(1, 0, 1), (3, 0, 0), (5, 1, 0), (6, 1, 1), (6, 0, 0)}
    assert {row[:3] for row in told(tmp_path / "died")} == wanted
    assert {row[3] for row in told(tmp_path / "died")} == {"replica"}
    assert losses(tmp_path / "died") == losses(tmp_path / "many")
    for folder in ("", "optimizer"):
        one, other = (hashes(tmp_path / out / folder) for out in ("died", "many"))
        assert {name: x for name, x in one.items() if "safetensors" in name} == {
            name: x for name, x in other.items() if "safetensors" in name
        }


@pytest.mark.parametrize("recover", ["shadow", "checkfree+", "redundant", "checkpoint"])
def test_a_stage_that_is_lost_in_all_replicas_is_made_again_and_they_stay_alike(small, corpus, tmp_path, recover):
    stages = 4 if recover == "checkfree+" else 2
    how = options(corpus, stages=stages, replicas=2, recover=recover, spares=2, micro_batch=1)
    how |= {"batch_tokens": 512, "tokens": 4096} if stages == 4 else {}
    both = f"3:1:begin,3:{stages + 1}:begin"
    rekindle.train(small(layers=4), tmp_path / "out", **how, inject=both)
    assert told(tmp_path / "out") == [(3, 1, 0, recover), (3, 1, 1, recover)]
    later = ",".join(
        [both, *(f"{4 + at % stages}:{at}:ready" for at in range(stages))]
    )  # all that were copied give theirs back
    rekindle.train(small(layers=4), tmp_path / "again", **how, inject=later)
    assert losses(tmp_path / "again") == losses(tmp_path / "out")


@pytest.mark.parametrize("recover", ["shadow", "redundant"])
def test_what_others_hold_for_a_stage_is_taken_where_it_still_is(small, corpus, tmp_path, recover):
    """Stage 0 in both replicas, and in the first one stage 1 too, which held its shadow or its twin."""
    how = options(corpus, stages=4, replicas=2, recover=recover, spares=3, micro_batch=1)
    how |= {"batch_tokens": 512, "tokens": 4096}
    both = "3:0:begin,3:4:begin"
    for out, inject in (("two", both), ("three", f"{both},3:1:begin"), ("other", f"{both},3:5:begin")):
        rekindle.train(small(layers=4), tmp_path / out, **how, inject=inject)
    assert [row[3] for row in told(tmp_path / "three")] == [recover, "replica", recover]
    assert losses(tmp_path / "two") == losses(tmp_path / "three") == losses(tmp_path / "other")


def test_what_cannot_be_shared_out_is_a_sentence(small, corpus, tmp_path):
    how = options(corpus, stages=2)
    for more, words in (
        ({"replicas": 3}, "3 replicas cannot have as many each"),
        ({"replicas": 8}, "sequences for each replica, and 2 stages need one each at least"),
        ({"replicas": 0}, "replicas is 0: 1 is the least"),
        ({"replicas": 2, "stages": 1}, "cannot be 1 stages"),
    ):
        with pytest.raises(RekindleError, match=words):
            rekindle.train(small(layers=4), tmp_path / "out", **how | more)
    with pytest.raises(CheckFailed, match="The process of stage 1 died"):
        rekindle.train(small(layers=4), tmp_path / "out", **how, replicas=2, recover="none", inject="2:3:begin")
