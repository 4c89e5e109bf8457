"""Loss and perplexity of a checkpoint."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from train_helpers import broken

from rekindle.apply.load import load_model
from rekindle.errors import CheckFailed, RekindleError
from rekindle.train.config import EvaluateConfig
from rekindle.train.evaluate import evaluate
from rekindle.train.model import load_tokenizer
from rekindle.train.tokens import open_corpus


def config(corpus: Path, **changes: Any) -> EvaluateConfig:
    return EvaluateConfig(**({"data": str(corpus), "tokens": 500, "seq_len": 16} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_loss_by_hand(small: Callable[..., Path], corpus: Path, family: str):
    folder = small(family)
    found = evaluate(folder, config(corpus, micro_batch=3))
    windows = open_corpus(str(corpus), load_tokenizer(folder)).sample("validation", 500, 16)
    model = load_model(folder)
    with torch.no_grad():
        each = [
            F.cross_entropy(model(input_ids=torch.tensor(window[None, :-1])).logits[0], torch.tensor(window[1:])).item()
            for window in windows
        ]
    losses = torch.tensor(each, dtype=torch.float64)
    assert found["loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert found["loss_stderr"] == pytest.approx((losses.std() / math.sqrt(len(each))).item(), rel=1e-4)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found["objective"] == "next-token"
    assert found["perplexity_stderr"] == pytest.approx(found["perplexity"] * found["loss_stderr"])
    assert (found["tokens"], found["sequences"]) == (len(each) * 16, len(each))


def test_all_of_a_users_own_file(small: Callable[..., Path], corpus: Path):
    validation = evaluate(small(), config(corpus, tokens=10**6))
    everything = evaluate(small(), config(corpus, tokens=10**6, split="all"))
    assert everything["tokens"] > 5 * validation["tokens"]


def test_bf16_is_close(small: Callable[..., Path], corpus: Path):
    exact, rough = (evaluate(small("mixtral"), config(corpus, precision=p))["loss"] for p in ("fp32", "bf16"))
    assert rough != exact
    assert rough == pytest.approx(exact, rel=2e-2)


def test_a_checkpoint_that_is_not_finite_has_no_loss_and_is_named(
    small: Callable[..., Path], corpus: Path, tmp_path: Path
):
    sick = broken(small(), tmp_path / "sick", "model.norm.weight", math.nan)
    with pytest.raises(CheckFailed, match=r"holds 1 NaN or infinite value in model\.norm\.weight"):
        evaluate(sick, config(corpus))


def test_refused(small: Callable[..., Path], corpus: Path):
    with pytest.raises(RekindleError, match="context is 64"):
        evaluate(small(), config(corpus, seq_len=65))
    with pytest.raises(RekindleError, match="micro_batch is 0"):
        evaluate(small(), config(corpus, micro_batch=0))
    with pytest.raises(RekindleError, match="pip install 'rekindle"):
        evaluate(small(), config(corpus, tasks=("hellaswag",)))


def test_tasks_through_lm_eval(small: Callable[..., Path], corpus: Path, monkeypatch: pytest.MonkeyPatch):
    def simple_evaluate(model: str, model_args: str, tasks: list[str]) -> dict:
        assert (model, model_args) == ("hf", f"pretrained={small()},trust_remote_code=False")
        if tasks == ["nonsense"]:
            raise KeyError("nonsense")
        return {"results": {task: {"acc,none": 0.25, "alias": task} for task in tasks}}

    monkeypatch.setitem(sys.modules, "lm_eval", SimpleNamespace(simple_evaluate=simple_evaluate))
    found = evaluate(small(), config(corpus, tasks=("arc",)))
    assert found["tasks"] == {"arc": {"acc,none": 0.25}}
    with pytest.raises(RekindleError, match="lm-eval cannot run nonsense"):
        evaluate(small(), config(corpus, tasks=("nonsense",)))


def test_one_sequence_has_no_standard_error(small: Callable[..., Path], corpus: Path):
    found = evaluate(small(), EvaluateConfig(data=str(corpus), tokens=64, seq_len=64))  # type: ignore[arg-type]
    assert found["sequences"] == 1
    assert found["loss_stderr"] is None
    assert found["perplexity_stderr"] is None
