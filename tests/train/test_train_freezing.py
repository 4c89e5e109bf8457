"""What is frozen stays to the bit, for as long as it was asked for; all else is trained as if nothing were."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from train_helpers import rows

import rekindle
from rekindle.edit import checkpoint_at
from rekindle.errors import RekindleError
from rekindle.train.freezing import frozen_at, frozen_of, roles_of


def tensors(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def changed(before, after) -> set[str]:
    ours, theirs = tensors(before), tensors(after)
    return {name for name in ours if not torch.equal(ours[name], theirs[name])}


HOW = {"seq_len": 32, "batch_tokens": 256, "tokens": 2048, "eval_tokens": 256, "lr": 1e-2}  # eight steps


@pytest.fixture(scope="module")
def start(small):
    return small("llama", layers=2)


@pytest.fixture(scope="module")
def how(corpus):
    return {**HOW, "data": str(corpus)}


@pytest.mark.parametrize(
    ("freeze", "kept"),
    [
        (("embed",), "embed_tokens"),
        (("attn",), "self_attn"),
        (("ffn.up", "head"), "up_proj"),
        (("norm",), "model.norm"),
    ],
)
def test_what_is_frozen_stays_to_the_bit(start, how, tmp_path, freeze, kept):
    rekindle.train(start, tmp_path / "out", freeze=freeze, **how)
    moved = changed(start, tmp_path / "out")
    assert moved
    assert not any(kept in name for name in moved)
    assert any(kept in name for name in tensors(start))


def test_it_is_trained_once_its_steps_are_over(start, how, tmp_path):
    """Until then as if it were frozen for good; nothing of a schedule is seen by a run that ends before."""
    rekindle.train(start, tmp_path / "for-good", freeze=("attn",), schedule="constant", **how)
    rekindle.train(start, tmp_path / "later", freeze=("attn:4",), schedule="constant", **how)
    good, later = ([row["loss"] for row in rows(tmp_path / out, "step")] for out in ("for-good", "later"))
    assert good[:5] == later[:5]
    assert good[5:] != later[5:]
    assert any("self_attn" in name for name in changed(start, tmp_path / "later"))


def test_a_run_that_is_resumed_is_frozen_as_before(start, how, tmp_path):
    how = {**how, "freeze": ("attn:6",), "save_every": 512}
    rekindle.train(start, tmp_path / "whole", **how)
    with pytest.raises(KeyboardInterrupt):
        interrupted(start, tmp_path / "out", how)
    rekindle.train(start, tmp_path / "out", resume=True, **how)
    assert not changed(tmp_path / "whole", tmp_path / "out")


def interrupted(source, out, how) -> None:
    from rekindle.train.step import Stepper

    step = Stepper.__call__

    def until(self, number, *more):
        if number == 5:
            raise KeyboardInterrupt
        return step(self, number, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stepper, "__call__", until)
        rekindle.train(source, out, **how)


def test_towers_and_their_parts(tiny, tmp_path):
    from rekindle.apply.load import load_model
    from rekindle.train.ties import tie

    pair = rekindle.warm_start(tiny("bert"), "same", share="embeddings").save(tmp_path / "pair")
    model = load_model(checkpoint_at(pair).folder, output="seq2seq")
    tie(model)
    roles = roles_of(model)
    assert set(roles) == {name for name, _ in model.named_parameters()}
    names = {id(p): name for name, p in model.named_parameters()}
    groups = frozen_of(model, ["encoder:10", "decoder.cross"])
    first, later = ({names[id(p)] for p in frozen_at(groups, step)} for step in (9, 10))
    assert all("crossattention" in name for name in later)
    assert {name for name in first - later if not name.startswith("encoder.")} == set()
    assert "encoder.embeddings.word_embeddings.weight" in first  # which is the decoder's too
    with pytest.raises(RekindleError, match="--freeze encoder,decoder leaves nothing to train"):
        frozen_of(model, ["encoder", "decoder"])


@pytest.mark.parametrize(
    ("freeze", "words", "hint"),
    [("encoder", "--freeze encoder names nothing of this model", "attn, embed"), ("atn", "names nothing", "attn"),
     ("attn:x", "--freeze attn:x", "of steps")],
)  # fmt: skip
def test_what_is_not_there_is_a_sentence(start, how, tmp_path, freeze, words, hint):
    with pytest.raises(RekindleError, match=words) as error:
        rekindle.train(start, tmp_path / "out", freeze=(freeze,), **how)
    assert hint in error.value.hint
    assert not (tmp_path / "out").exists()
