"""A dry run says what the run then does, and leaves nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from train_helpers import defaults, rows

from rekindle import api
from rekindle.cli.verbs import rekindle
from rekindle.errors import RekindleError
from rekindle.train import state


def said(*words: object) -> dict:
    ran = CliRunner().invoke(rekindle, [*map(str, words), "--format", "json"])
    assert ran.exit_code == 0, ran.exception
    return json.loads(ran.stdout)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_training_does_what_was_said(
    small: Callable, run: Callable, corpus: Path, monkeypatch: pytest.MonkeyPatch, family: str
):
    expected = api.train_cost(small(family), **defaults(corpus))
    states: list[int] = []
    real = state.save_state

    def counted(work: Path, *args: object, **how: object) -> None:
        real(work, *args, **how)  # type: ignore[arg-type]
        states.append(sum(path.stat().st_size for path in work.glob("state-*/*.safetensors")))

    monkeypatch.setattr("rekindle.train.session.save_state", counted)
    out, summary = run(small(family))
    for name in ("steps", "tokens", "flops"):
        assert expected[name] == summary[name]
    assert expected["evaluations"] == len(rows(out, "eval"))
    assert expected["saves"] == len(states)
    assert expected["parameters"] == rows(out, "run")[0]["parameters"]
    assert expected["lr"] == rows(out, "run")[0]["lr"]
    assert states[-1] == pytest.approx(expected["bytes"]["state"], rel=0.2)  # and the headers
    written = sum(path.stat().st_size for path in out.rglob("*.safetensors"))
    assert written == pytest.approx(expected["bytes"]["out"], rel=0.2)
    assert expected["memory"] < summary["peak_memory"]
    assert expected["hours"] is None


def test_hours_are_those_of_the_parents_own_speed(small: Callable, run: Callable, corpus: Path, tmp_path: Path):
    out, _ = run(small())
    cost = api.train_cost(out, tokens="1M", seq_len=64, lr=1e-3)
    speeds = [row["tokens_per_s"] for row in rows(out, "step")]
    assert min(speeds) <= cost["tokens_per_s"] <= max(speeds)
    assert cost["hours"] == pytest.approx(cost["tokens"] / cost["tokens_per_s"] / 3600)
    moe = api.upcycle(out, experts=4).save(tmp_path / "moe")  # another model's speed is not its own
    (moe / "metrics.jsonl").write_bytes((out / "metrics.jsonl").read_bytes())
    assert api.train_cost(moe, tokens="1M", seq_len=64, lr=1e-3)["hours"] is None
    (out / "metrics.jsonl").write_text('{"kind": "run"}\n[]')
    assert api.train_cost(out, tokens="1M", seq_len=64, lr=1e-3)["hours"] is None


def test_nothing_is_written_or_read(small: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("REKINDLE_CACHE", str(tmp_path / "cache"))
    words = ("train", small(), tmp_path / "out", "--tokens", "1M", "--seq-len", "64", "--dry-run")
    assert said(*words)["steps"] == 61
    assert said("init", tmp_path / "out", "--hidden", 16, "--layers", 1, "--heads", 2, "--dry-run")["bytes"] > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tokens": 100}, "less than one batch"),
        ({"tokens": "1M", "seq_len": 128}, "the model's context is 64"),
        ({}, "tokens is not given"),
        ({"tokens": "1M", "data": "./nothing.txt"}, "no such file"),
        ({"tokens": "1M", "schedule": "continue"}, "no schedule to continue"),
    ],
)
def test_what_training_would_refuse(small: Callable, options: dict, says: str):
    with pytest.raises(RekindleError, match=says):
        api.train_cost(small(), **({"seq_len": 32} | options))


def test_numbers_are_checked_before_the_rate_is_asked_for(tiny: Callable, tmp_path: Path):
    for words, says in (
        (["--tokens", "-3k"], "tokens is -3000, but it must be positive"),
        ([], "tokens is not given"),
        (["--tokens", "1M", "--micro-batch", "0"], "micro_batch is 0"),
    ):
        done = CliRunner().invoke(rekindle, ["train", str(tiny("llama")), str(tmp_path / "out"), *words])
        assert says in str(done.exception)
        assert "learning rate" not in str(done.exception)


@pytest.mark.parametrize(("told", "ranks"), [({}, 1), ({"LOCAL_RANK": "0"}, 3)])
def test_machines_that_a_cluster_numbers_are_no_ranks(
    small: Callable, monkeypatch: pytest.MonkeyPatch, told: dict, ranks: int
):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for name, value in ({"WORLD_SIZE": "3"} | told).items():
        monkeypatch.setenv(name, value)
    wanted = {"tokens": "1M", "seq_len": 32, "batch_tokens": 64, "lr": 1e-3}
    if ranks == 1:
        assert api.train_cost(small(), **wanted)["steps"] == 15625
    else:
        with pytest.raises(RekindleError, match="on 3 devices"):
            api.train_cost(small(), **wanted)


@pytest.mark.parametrize("family", ["llama", "qwen2_moe", "olmoe"])
def test_a_model_from_scratch_is_what_was_said(corpus: Path, tmp_path: Path, family: str):
    sizes = {"family": family, "hidden": 16, "layers": 2, "heads": 2, "tokenizer": "bpe:300", "data": str(corpus)}
    expected = api.init_cost(**sizes)
    found = api.inspect(api.init(tmp_path / "out", **sizes))
    assert found["parameters"] == expected["parameters"]
    assert found["vocab_size"] == expected["vocab_size"]
    assert expected["bytes"] == found["parameters"]["total"] * 4


@pytest.mark.parametrize("tokenizer", ["bpe:10", "bpe:many", "bpe:²³⁴", "bpe:"])
def test_a_vocabulary_that_init_refuses_has_no_price(corpus: Path, tmp_path: Path, tokenizer: str):
    sizes = {"hidden": 16, "layers": 1, "heads": 2, "tokenizer": tokenizer, "data": str(corpus)}
    with pytest.raises(RekindleError, match="at least 257"):
        api.init_cost(**sizes)
    with pytest.raises(RekindleError, match="at least 257"):
        api.init(tmp_path / "out", **sizes)


def test_recipes_that_train_have_a_dry_run_too(small: Callable, corpus: Path, tmp_path: Path):
    api.train(small(), tmp_path / "out", **defaults(corpus))
    assert said("run", tmp_path / "out" / "rekindle.yaml", tmp_path / "again", "--dry-run")["steps"] == 12
    assert not (tmp_path / "again").exists()
    api.init(tmp_path / "blank", hidden=16, layers=1, heads=2, tokenizer="bpe:300", data=str(corpus))
    cost = said("run", tmp_path / "blank" / "rekindle.yaml", tmp_path / "again", "--dry-run")
    assert cost["parameters"] == api.inspect(tmp_path / "blank")["parameters"]


@pytest.mark.parametrize("verb", ["init", "train"])
@pytest.mark.parametrize("key", ["source", "options"])
def test_a_key_that_is_no_option_is_named(tmp_path: Path, verb: str, key: str):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"source: SRC\nsteps:\n- {verb}:\n    {key}: 1\n")
    with pytest.raises(RekindleError, match=f"no option {key!r}"):
        api.run_cost(recipe)


def test_a_config_alone_is_priced_too(tmp_path: Path):
    """DeepSeek-V3: 671B parameters, 37B of them active, 0.9B of these embeddings; a token sees half of 4096 others."""
    configs = Path(__file__).parents[2] / "docs" / "configs"
    cost = api.train_cost(configs / "deepseek-v3.json", tokens="1T", seq_len=4096, batch_tokens=2**22, lr=2e-4)
    attention = 61 * 128 * 2 * (192 + 128) * 4097 / 2
    assert cost["flops"] == pytest.approx((6 * 36.63e9 + 3 * attention) * 1e12, rel=0.001)
    assert cost["memory"] > 16 * 671e9
    assert cost["hours"] is None
    with pytest.raises(RekindleError, match="1e-05 to 1e-04"):  # as 13B, the nearest of the table
        api.train_cost(configs / "deepseek-v3.json", tokens="1T")
