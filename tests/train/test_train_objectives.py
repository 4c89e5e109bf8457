"""Objectives of encoder-decoders: what a batch holds, transformers' own losses, and short runs of real models."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_models import V1_1, save_tiny
from train_helpers import WORDS, curve, defaults, rows

from rekindle import api
from rekindle.anatomy.flops import forward_flops
from rekindle.apply.load import quietly
from rekindle.errors import RekindleError
from rekindle.train import session
from rekindle.train.config import TrainConfig
from rekindle.train.device import make_accelerator, reproducible
from rekindle.train.evaluate import validation_loss
from rekindle.train.held import whole_of
from rekindle.train.losses import router_logits, router_losses
from rekindle.train.objectives import OF_ONE_TOWER, TABLE, Objective, split_batch
from rekindle.train.objectives.next_token import NextToken
from rekindle.train.objectives.prefix import Prefix
from rekindle.train.objectives.prefix_lm import PrefixLM
from rekindle.train.objectives.seq2seq import Seq2Seq
from rekindle.train.objectives.span_corruption import Denoiser, SpanCorruption, sentinels_of, spans_of
from rekindle.train.objectives.ul2 import END, MIXTURE, UL2, _kinds
from rekindle.train.optimizer import make_optimizer
from rekindle.train.plan import make_plan
from rekindle.train.state import find_state, load_state, save_state
from rekindle.train.step import Stepper
from rekindle.train.text import open_source
from rekindle.train.tokenizer import train_bpe
from rekindle.train.tokens import open_corpus

VOCABULARY = 340  # 300 of the tokenizer, 40 of the model alone
SIZES = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
         "pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 0}  # fmt: skip
SWITCH = {"num_experts": 4, "expert_capacity": 64, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}


@pytest.fixture(scope="module")
def tokenizer(corpus: Path) -> Any:
    return train_bpe(open_source(str(corpus)), 300, 512)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To write is what is to be read, backwards."""
    rng, path = random.Random(1), tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    texts = [rng.choices(WORDS, k=rng.randint(2, 9)) for _ in range(200)]
    path.write_text("".join(json.dumps({"source": " ".join(t), "target": " ".join(t[::-1])}) + "\n" for t in texts))
    return path


def made(family: str = "t5", **changes: Any) -> Any:
    torch.manual_seed(0)
    sizes = SIZES | (SWITCH if family == "switch_transformers" else {}) | changes
    return transformers.AutoModelForSeq2SeqLM.from_config(transformers.AutoConfig.for_model(family, **sizes))


def options(data: Path, **changes: Any) -> TrainConfig:
    given = {"data": str(data), "tokens": 30 * 256, "batch_tokens": 256, "seq_len": 32, "lr": 1e-2}
    return TrainConfig(**(given | changes))


def seq2seq(pairs: Path, tokenizer: Any, **changes: Any) -> Seq2Seq:
    return Seq2Seq.open(options(pairs, **changes), 32, tokenizer, VOCABULARY)


def span_corruption(corpus: Path, tokenizer: Any, seq_len: int = 32, **changes: Any) -> SpanCorruption:
    return SpanCorruption.open(options(corpus, **changes), seq_len, tokenizer, VOCABULARY)


@pytest.fixture(params=["seq2seq", "span-corruption", "ul2", "prefix-lm"])
def objective(request: pytest.FixtureRequest, pairs: Path, corpus: Path, tokenizer: Any) -> Objective:
    if request.param == "seq2seq":
        return seq2seq(pairs, tokenizer, target_len=24)
    kind = {"span-corruption": SpanCorruption, "ul2": UL2, "prefix-lm": PrefixLM}[request.param]
    return kind.open(options(corpus), 32, tokenizer, VOCABULARY)


def stepper(model: Any, objective: Objective, config: TrainConfig, micro_batch: int = 8) -> Stepper:
    optimizer = make_optimizer(model, 0.1, 0.95)
    accelerator = make_accelerator("fp32")
    return Stepper(model, model.train(), optimizer, accelerator, objective, make_plan(config, 1), config, micro_batch)


def test_every_objective_says_what_it_is():
    from importlib import import_module

    for table in (TABLE, OF_ONE_TOWER):
        for name, place in table.items():
            module, _, kind = place.partition(":")
            assert getattr(import_module(module), kind).name == name


# Pairs


def test_pairs_are_read_cut_and_padded(pairs: Path, tokenizer: Any):
    objective = seq2seq(pairs, tokenizer, target_len=6)
    batch = objective.sample("all", 10**6)
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    expected = Counter((row["source"], tuple(tokenizer(row["target"])["input_ids"])) for row in rows)
    end = tokenizer.eos_token_id
    found = Counter()
    for ids, mask, labels in zip(*(batch[name].tolist() for name in batch), strict=True):
        source = [id_ for id_, seen in zip(ids, mask, strict=True) if seen]
        assert mask == [1] * len(source) + [0] * (len(mask) - len(source))
        target = [id_ for id_ in labels if id_ != -100]
        assert labels == target + [-100] * (len(labels) - len(target))
        assert source[-1] == target[-1] == end
        assert len(source) <= 32
        assert len(target) <= 6
        found[tokenizer.decode(source[:-1]), tuple(target)] += 1
    cut = Counter()
    for (source, target), count in expected.items():
        cut[source, (*target[:5], end) if len(target) > 5 else (*target, end)] += count
    assert found == cut
    assert objective.targets(batch).tolist() == (batch["labels"] != -100).sum(1).tolist()


def test_python_sources_are_pairs_of_what_a_docstring_says_and_a_name(tmp_path: Path):
    from rekindle.train.text import PairReading, open_source

    (tmp_path / "a.py").write_text(
        'class HTTPServer2:\n    """Serve files over HTTP. For tests only."""\n'
        '    def get_fileName(self):\n        """Return the name\n        of a file.\n\n        More.\n        """\n'
        '    def __repr__(self):\n        """Return a short text."""\n'
        '    def run(self):\n        """run(self) -> None, at once."""\n'
        '    def stop(self):\n        """Stop it."""\n'
    )
    (tmp_path / "broken.py").write_text('def f(:\n    """A sentence of many words."""\n')
    documents = open_source(str(tmp_path), reading=PairReading()).documents()
    assert [(pair.source, pair.target) for pair in documents] == [
        ("Serve files over HTTP.", "http server 2"),
        ("Return the name of a file.", "get file name"),
    ]


def test_rows_of_other_names_and_formats(tmp_path: Path, tokenizer: Any, pairs: Path):
    import pyarrow
    from pyarrow import parquet

    rows = [json.loads(line) for line in pairs.read_text().splitlines()][:40]
    whole = seq2seq(pairs, tokenizer).sample("all", 10**6)
    asked = {"source_column": "de", "target_column": "en"}
    texts = [(row["source"], row["target"]) for row in rows]
    (tmp_path / "a.csv").write_text("id,de,en\n" + "".join(f"{n},{x},{y}\n" for n, (x, y) in enumerate(texts)))
    parquet.write_table(
        pyarrow.table({"de": [x for x, _ in texts], "en": [y for _, y in texts]}), tmp_path / "a.parquet"
    )
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"input": x, "output": y}) + "\n" for x, y in texts))
    batches = [seq2seq(tmp_path / name, tokenizer, **how).sample("all", 10**6) for name, how in
               (("a.csv", asked), ("a.parquet", asked), ("b.jsonl", {}))]  # fmt: skip
    for batch in batches:
        assert all(torch.equal(batch[name], batches[0][name]) for name in batch)
    assert len(batches[0]["labels"]) == 40 < len(whole["labels"])


@pytest.mark.parametrize(
    ("row", "how", "words"),
    [
        ({"a": "x", "b": "y"}, {}, 'no fields "source" and "target", only a, b. --source-column a --target-column b'),
        ({"source": "x", "b": "y"}, {"target_column": "c"}, 'no fields "source" and "c", only source, b'),
        ({"source": "x", "target": 3}, {}, '"target" holds int, not text'),
        ({"instruction": "x", "input": "", "output": "y"}, {}, "--source-column instruction --target-column output"),
        ({"source": " ", "target": "y"}, {}, "holds no text (2 empty documents)"),
    ],
)
def test_rows_without_a_pair_are_refused(row: dict, how: dict, words: str, tmp_path: Path, tokenizer: Any):
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(RekindleError) as caught:
        seq2seq(data, tokenizer, **how)
    told = " ".join(filter(None, (caught.value.what, caught.value.hint)))
    assert words in told


def test_one_text_is_no_pair(corpus: Path, tokenizer: Any, tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"the cat {name}")
    with pytest.raises(RekindleError, match="this document is one text: 'the cat"):
        seq2seq(tmp_path, tokenizer)


# Spans


@pytest.mark.parametrize("seq_len", [4, 5, 8, 31, 32, 114, 512])
@pytest.mark.parametrize("denoiser", [Denoiser(), Denoiser(12, 0.5), Denoiser(32, 0.15), Denoiser(32, 0.5)])
def test_inputs_are_exactly_as_long_as_asked(denoiser: Denoiser, seq_len: int):
    raw = denoiser.raw(seq_len)
    assert denoiser.lengths(raw)[0] == seq_len
    kept, taken = spans_of(raw, denoiser, 3, np.arange(50))
    assert (kept.sum(1) + taken.sum(1) == raw).all()
    assert min(kept.min(), taken.min()) >= 1


def test_the_lengths_are_those_of_the_paper():
    """512 tokens of inputs: t5's random_spans_helper has texts of 568 tokens and targets of 114."""
    assert Denoiser().raw(512) == 568
    assert Denoiser().lengths(568) == (512, 114)
    assert Denoiser().counts(568) == (85, 28)


def test_every_way_to_cut_is_as_likely_as_any():
    denoiser = Denoiser(2.0, 0.4)
    kept, taken = spans_of(15, denoiser, 5, np.arange(28_000))  # 9 kept and 6 taken, both in 3 parts: 28 and 10 ways
    ways = Counter(zip(map(tuple, kept.tolist()), map(tuple, taken.tolist()), strict=True))
    assert len(ways) == 280
    chi2 = sum((count - 100) ** 2 / 100 for count in ways.values())
    assert chi2 < 360  # 279 degrees of freedom: one in a thousand is beyond 357


def test_a_text_comes_back_from_inputs_and_targets(corpus: Path, tokenizer: Any):
    objective = span_corruption(corpus, tokenizer, seq_len=64)
    batch = objective.batch(5, 7)
    windows = objective.corpus.batch(5, 7, objective.raw, 0)[:, :-1]
    assert batch["input_ids"].shape == (7, 64)
    assert batch["labels"].shape == (7, objective.length)
    assert batch["attention_mask"].all()
    spans = objective.denoiser.counts(objective.raw)[1]
    sentinels = [VOCABULARY - 1 - number for number in range(spans)]  # the model's own ids, from the top down
    for text, ids, labels in zip(windows.tolist(), batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        assert ids[-1] == labels[-1] == tokenizer.eos_token_id
        assert [id_ for id_ in ids if id_ in sentinels] == [id_ for id_ in labels if id_ in sentinels] == sentinels
        span_of: dict[int, list[int]] = {}
        for id_ in labels[:-1]:
            if id_ in sentinels:
                span_of[id_] = []
            else:
                span_of[next(reversed(span_of))].append(id_)
        whole = [x for id_ in ids[:-1] for x in (span_of[id_] if id_ in sentinels else [id_])]
        assert whole == text


def test_a_row_is_a_function_of_seed_and_number(corpus: Path, tokenizer: Any):
    objective = span_corruption(corpus, tokenizer)
    many, few = objective.batch(0, 40), objective.batch(17, 3)
    assert all(torch.equal(many[name][17:20], few[name]) for name in many)
    other = span_corruption(corpus, tokenizer, seed=1)
    assert not torch.equal(other.batch(0, 40)["labels"], many["labels"])
    held_out = [run.sample("validation", 500) for run in (objective, other)]
    assert all(torch.equal(held_out[0][name], held_out[1][name]) for name in held_out[0])
    epoch = objective.rows
    assert not torch.equal(objective.batch(0, epoch)["labels"], objective.batch(epoch, epoch)["labels"])


def test_sentinels(tokenizer: Any, corpus: Path):
    assert sentinels_of(tokenizer, 303) == (302, 301, 300)
    with pytest.raises(RekindleError, match="Inputs of 64 tokens have 3 spans, but there are 2 sentinels"):
        SpanCorruption.open(options(corpus), 64, tokenizer, 302)
    for vocab_size, hint in ((301, "there is 1 sentinel.*a smaller --seq-len"), (300, "there are 0 sentinels.*T5's$")):
        with pytest.raises(RekindleError, match=f"(?s){hint}"):
            SpanCorruption.open(options(corpus), 64, tokenizer, vocab_size)
    named = train_bpe(open_source(str(corpus)), 300, 512)
    named.add_tokens([f"<extra_id_{number}>" for number in reversed(range(12))])
    assert sentinels_of(named, VOCABULARY) == tuple(range(311, 299, -1))


def test_a_tokenizer_from_scratch_ends_what_an_encoder_reads(corpus: Path, pairs: Path, tmp_path: Path):
    """Once: a model is trained on what the tokenizer gives, and is shown the same by whoever uses it."""
    sizes = {"hidden": 16, "layers": 1, "heads": 2, "tokenizer": "bpe:300", "data": str(corpus)}
    with quietly():
        tokenizer = transformers.AutoTokenizer.from_pretrained(api.init(tmp_path / "t5", family="t5", **sizes))
        plain = transformers.AutoTokenizer.from_pretrained(api.init(tmp_path / "llama", **sizes))
    end = tokenizer.eos_token_id
    for text in ("the cat", "", "naïve\t😀"):
        ids = tokenizer(text)["input_ids"]
        assert (ids[-1], ids.count(end), tokenizer.decode(ids[:-1])) == (end, 1, text)
        assert end not in tokenizer(text, add_special_tokens=False)["input_ids"]
        assert plain.eos_token_id not in plain(text)["input_ids"]
    assert tokenizer("a", "b")["input_ids"] == [*tokenizer("a")["input_ids"], *tokenizer("b")["input_ids"]]
    shown = {tuple(tokenizer(json.loads(row)["source"])["input_ids"]) for row in pairs.read_text().splitlines()}
    batch = Seq2Seq.open(options(pairs), 64, tokenizer, 400).sample("all", 10**6)
    read = {
        tuple(ids[mask.bool()].tolist()) for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    }
    assert read == shown
    rows = SpanCorruption.open(options(corpus), 32, tokenizer, 400)
    assert (
        rows.corpus.meta.train_tokens
        == sum(len(tokenizer(json.loads(row)["text"])["input_ids"]) for row in corpus.read_text().splitlines())
        - rows.corpus.meta.validation_tokens
    )  # one end for each text
    ids = rows.batch(0, 8)["input_ids"]
    assert (ids[:, -1] == end).all()


# Real models


def test_losses_are_those_of_transformers(objective: Objective):
    model = made().eval()
    batch = objective.batch(0, 6)
    with torch.no_grad():
        out = model(**objective.inputs(model, batch))
        theirs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"])
    assert torch.equal(out.logits, theirs.logits)
    assert objective.losses(out, batch)["loss"].item() == pytest.approx(theirs.loss.item(), rel=1e-6)
    each = objective.each(out, batch)["loss"] * objective.length
    weighted = each.sum() / objective.targets(batch).sum()
    assert weighted.item() == pytest.approx(theirs.loss.item(), rel=1e-6)
    assert objective.total(0, 6) == objective.targets(batch).sum()


def test_smoothed_labels_are_torch_s_and_losses_are_told_without(pairs: Path, tokenizer: Any):
    plain = seq2seq(pairs, tokenizer)
    smoothed, model = replace(plain, smoothing=0.1), made().eval()
    batch = smoothed.batch(0, 6)
    with torch.no_grad():
        out = model(**smoothed.inputs(model, batch))
    found = smoothed.losses(out, batch)
    assert found["loss"] == plain.losses(out, batch)["loss"]
    logits, labels = out.logits.flatten(0, 1), batch["labels"].flatten()
    theirs = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    assert sum(found.values()).item() == pytest.approx(theirs.item(), rel=1e-6)
    assert torch.equal(smoothed.each(out, batch)["loss"], plain.each(out, batch)["loss"])


def test_smoothing_is_trained_with_and_stands_in_its_rows(folder: Callable, run: Callable, pairs: Path, tmp_path: Path):
    how = {"objective": "seq2seq", "data": str(pairs), "seq_len": 16, "batch_tokens": 128, "tokens": 1024, "lr": 1e-3}
    for out, more in (("plain", {}), ("smoothed", {"label_smoothing": 0.2})):
        api.train(folder("t5"), tmp_path / out, **how, **more)
    plain, smoothed = (rows(tmp_path / out, "step") for out in ("plain", "smoothed"))
    assert plain[0]["loss"] == smoothed[0]["loss"]
    assert "smoothing" not in plain[0]
    assert smoothed[0]["smoothing"] > 0
    assert plain[-1]["loss"] != smoothed[-1]["loss"]
    with pytest.raises(RekindleError, match="label_smoothing is 1.0"):
        api.train(folder("t5"), tmp_path / "x", **how, label_smoothing=1.0)
    with pytest.raises(RekindleError, match="label_smoothing is an option of seq2seq"):
        api.train(folder("t5"), tmp_path / "x", **how | {"objective": "span-corruption"}, label_smoothing=0.1)


def test_padding_is_seen_by_nobody(pairs: Path, tokenizer: Any):
    """A row alone, and beside longer ones: the same loss. Without the mask it would be another."""
    objective, model = seq2seq(pairs, tokenizer), made().eval()
    batch = objective.batch(0, 8)
    shortest = int(batch["attention_mask"].sum(1).argmin())
    (source, target) = (int(batch["attention_mask"][shortest].sum()), int(objective.targets(batch)[shortest]))
    assert source < batch["input_ids"].shape[1]
    alone = {"input_ids": source, "attention_mask": source, "labels": target}
    row = {name: batch[name][shortest : shortest + 1, :width] for name, width in alone.items()}
    with torch.no_grad():
        beside = objective.each(model(**objective.inputs(model, batch)), batch)["loss"][shortest]
        by_itself = objective.each(model(**objective.inputs(model, row)), row)["loss"][0]
        forgotten = objective.inputs(model, batch) | {"attention_mask": None}
        wrong = objective.each(model(**forgotten), batch)["loss"][shortest]
    assert beside.item() == pytest.approx(by_itself.item(), rel=1e-5)
    assert abs(wrong - by_itself) > 1e-3 * by_itself


def test_parts_are_as_wide_as_their_longest_rows(pairs: Path, tokenizer: Any):
    """And a batch begins with its shortest rows; all of them are there."""
    objective = seq2seq(pairs, tokenizer)
    batch = objective.batch(0, 8)
    lengths = batch["attention_mask"].sum(1) + objective.targets(batch)
    assert lengths.tolist() == sorted(lengths.tolist())
    assert lengths[0] < lengths[-1]
    parts, widths = split_batch(batch, 2), []
    for i, part in enumerate(parts):
        sources, targets = part["attention_mask"].sum(1).max(), objective.targets(part).max()
        assert part["input_ids"].shape == part["attention_mask"].shape == (2, sources)
        assert part["labels"].shape == (2, targets)
        assert torch.equal(part["input_ids"], batch["input_ids"][2 * i : 2 * i + 2, :sources])
        widths.append(int(sources + targets))
    assert widths[0] < batch["input_ids"].shape[1] + batch["labels"].shape[1]


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_parts_of_a_batch_are_the_batch(objective: Objective, pairs: Path, micro_batch: int):
    config = options(pairs)
    whole, parts = (stepper(made(dropout_rate=0.0), objective, config, size) for size in (8, micro_batch))
    for step in range(2):
        a, b = whole(step), parts(step)
        assert b.losses["loss"] == pytest.approx(a.losses["loss"], rel=1e-4)
        assert b.grad_norm == pytest.approx(a.grad_norm, rel=1e-3)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_each_target_weighs_the_same_on_any_rank(objective: Objective, pairs: Path, ranks: int):
    """8 rows of a step, dealt to ranks and to parts of 3 rows at most."""
    config, shares = options(pairs), []
    for rank in range(ranks):
        one = stepper(made(), objective, config, micro_batch=3)
        one.accelerator = SimpleNamespace(num_processes=ranks, process_index=rank, device=torch.device("cpu"))  # type: ignore[assignment]
        batch, weights = one._batch(0)
        counts = objective.targets(batch).split(3)
        shares += [weight / ranks / int(part.sum()) for weight, part in zip(weights, counts, strict=True)]
    assert shares == pytest.approx([1 / objective.total(0, 8)] * len(shares))


def test_validation_loss_is_per_token(objective: Objective):
    model, held_out = made().eval(), objective.sample("validation", 400)
    found = validation_loss(model, objective, held_out, make_accelerator("fp32"), 3)
    with torch.no_grad():
        labels = held_out["labels"]
        expected = model(input_ids=held_out["input_ids"], attention_mask=held_out["attention_mask"], labels=labels).loss
    assert found.loss == pytest.approx(expected.item(), rel=1e-5)
    assert found.tokens == (labels != -100).sum()


def test_a_resumed_run_is_the_run(objective: Objective, pairs: Path, tmp_path: Path):
    """Dropout included: weights and moments after six steps, and after three and three, are the same bits."""
    config = options(pairs)
    with reproducible(torch.device("cpu")):
        through = stepper(made(), objective, config)
        curve = [through(step) for step in range(6)]
        first = stepper(made(), objective, config)
        assert [first(step) for step in range(3)] == curve[:3]
        (tmp_path / "metrics.jsonl").touch()
        save_state(tmp_path, whole_of(first.model, first.optimizer), step=3, position=0, run={})
        second = stepper(made(), objective, config)
        saved = find_state(tmp_path)
        assert saved is not None
        load_state(saved, second.model, second.optimizer)
        assert [second(step) for step in range(3, 6)] == curve[3:]
    for a, b in zip(through.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
        for moment in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(through.optimizer.state[a][moment], second.optimizer.state[b][moment])


@pytest.mark.slow
def test_t5_learns(objective: Objective, pairs: Path):
    run = stepper(made(dropout_rate=0.0), objective, options(pairs, tokens=150 * 256, warmup=0.1))
    held_out = objective.sample("validation", 2000)
    before = validation_loss(run.model, objective, held_out, run.accelerator, 8).loss
    for step in range(150):
        run(step)
    after = validation_loss(run.model, objective, held_out, run.accelerator, 8).loss
    assert after < 0.7 * before


def test_a_mixture_balances_both_towers(objective: Objective, pairs: Path):
    model = made("switch_transformers", dropout_rate=0.0)
    run = stepper(model, objective, options(pairs))
    stats = run(0)
    assert stats.losses["aux_loss"] is not None
    assert 0.9 < stats.losses["aux_loss"] < 4  # 1: balanced
    assert stats.losses["z_loss"] is not None
    held_out = objective.sample("validation", 400)
    row = validation_loss(model, objective, held_out, run.accelerator, 4).row()
    assert len(row["expert_load"]) == 2  # a sparse layer of the encoder, and one of the decoder
    assert sum(map(sum, row["expert_load"])) == pytest.approx(2, abs=1e-4)


def test_experts_are_balanced_over_what_is_no_padding(pairs: Path, tokenizer: Any):
    """The losses of a batch of padded rows are those of its rows, one by one."""
    objective, model = seq2seq(pairs, tokenizer), made("switch_transformers").eval()
    batch = objective.batch(0, 6)

    def logits(part: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            out = model(**objective.inputs(model, part), output_router_logits=True)
        return router_logits(out, objective.seen(part))

    rows = []
    for number in range(6):
        widths = {"labels": int(objective.targets(batch)[number])}
        widths |= dict.fromkeys(("input_ids", "attention_mask"), int(batch["attention_mask"][number].sum()))
        rows.append(logits({name: batch[name][number : number + 1, :width] for name, width in widths.items()}))
    one_by_one = tuple(map(torch.cat, zip(*rows, strict=True)))
    assert len(one_by_one[0]) == batch["attention_mask"].sum() < batch["attention_mask"].numel()
    found, expected = router_losses(logits(batch), 1), router_losses(one_by_one, 1)
    for name in ("aux_loss", "z_loss"):
        assert found[name].item() == pytest.approx(expected[name].item(), rel=1e-5)


def test_an_objective_may_tell_more(corpus: Path, tokenizer: Any, small: Callable[..., Path]):
    """Named losses beside the one that is lowered, and measures beside the loss of an evaluation."""
    from rekindle.apply.load import load_model

    class Told(NextToken):
        measures = ("loss", "accuracy")

        def losses(self, out: Any, batch: Any) -> dict[str, torch.Tensor]:
            return {**super().losses(out, batch), "largest": out.logits.detach().max()}

        def each(self, out: Any, batch: Any) -> dict[str, torch.Tensor]:
            right = (out.logits.argmax(-1) == self.labels(batch)).float().mean(1)
            return {**super().each(out, batch), "accuracy": right}

    objective = Told(open_corpus(str(corpus), tokenizer), 32)
    run = stepper(load_model(small()), objective, options(corpus))
    assert list(run(0).losses) == ["loss", "aux_loss", "z_loss", "largest"]
    row = validation_loss(run.model, objective, objective.sample("validation", 400), run.accelerator, 4).row()
    assert 0 <= row["val_accuracy"] < 0.5


# From folder to folder


@pytest.fixture(scope="module")
def folder(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """folder("t5"): a tiny one with the tokenizer, and ids beyond it for sentinels."""

    def make(family: str, **changes: Any) -> Path:
        out = tmp_path_factory.mktemp(family) / "model"
        save_tiny(out, family, "float32", False, {"vocab_size": VOCABULARY, "eos_token_id": 0} | changes)
        tokenizer.save_pretrained(out)
        return out

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "changes"),
    [("t5", {}), ("t5", V1_1), ("mt5", {}), ("umt5", {}), ("switch_transformers", {})],
    ids=["t5", "t5 v1.1", "mt5", "umt5", "switch"],
)
def test_a_folder_is_trained_by_its_own_objective_and_resumed(
    folder: Callable, run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, changes: dict
):
    src, archive = folder(family, **changes), {"archive": str(tmp_path / "cut.rk")}
    whole, summary = run(src, "whole", archive=str(tmp_path / "whole.rk"))
    described = rows(whole, "run")[0]
    assert (described["objective"], described["target_len"]) == ("span-corruption", 8)
    checkpoint = api.open(src).checkpoint
    flops = forward_flops(checkpoint.family, checkpoint.settings, 8, source=32)
    assert described["flops_per_token"] == pytest.approx(3 * flops / 32)
    assert summary["val_loss"] < summary["val_loss_before"]
    assert (rows(whole, "step")[0]["aux_loss"] is not None) == (family == "switch_transformers")
    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "_step", stopped_at(7))
        with pytest.raises(KeyboardInterrupt):
            run(src, "cut", **archive)
    with pytest.raises(RekindleError, match="objective was span-corruption, is seq2seq"):
        run(src, "cut", resume=True, objective="seq2seq", data=str(pairs_beside(tmp_path)), **archive)
    cut, _ = run(src, "cut", resume=True, **archive)
    assert curve(cut) == curve(whole)
    for name in ("model.safetensors", "optimizer/optimizer.safetensors", "config.json"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    digests = [[s["digest"] for s in api.archive_info(tmp_path / f"{n}.rk")["steps"]] for n in ("whole", "cut")]
    assert digests[0] == digests[1]
    assert json.loads((whole / "config.json").read_text())["tie_word_embeddings"] is not bool(changes)
    assert not api.inspect(whole).get("notes")
    found = api.evaluate(whole, data=described["data"], tokens=256, seq_len=32)
    assert found["loss"] == pytest.approx(summary["val_loss"], rel=1e-5)
    again = api.rewrite(whole).save(tmp_path / "again")
    verdict = api.verify(again, against=whole, tokens=64)
    assert (verdict.compared, verdict.relative_difference) == ("logits of the decoder", 0)


def stopped_at(number: int) -> Callable[..., bool]:
    real = session.Session._step

    def step(self: session.Session, step: int, *rest: Any) -> bool:
        if step == number:
            raise KeyboardInterrupt
        return real(self, step, *rest)

    return step


def pairs_beside(folder: Path) -> Path:
    path = folder / "few.jsonl"
    path.write_text("".join(json.dumps({"source": f"the cat {n}", "target": f"sat {n}"}) + "\n" for n in range(40)))
    return path


@pytest.mark.slow
def test_a_folder_is_tuned_on_pairs(folder: Callable, run: Callable, pairs: Path):
    how = {"data": str(pairs), "objective": "seq2seq", "target_len": 16}
    out, summary = run(folder("t5"), **how)
    assert summary["val_loss"] < summary["val_loss_before"]
    with pytest.raises(RekindleError, match="span-corruption"):
        api.evaluate(out, data=str(pairs), target_len=16)
    found = api.evaluate(out, tokens=256, seq_len=32, **how)
    assert found["loss"] == pytest.approx(summary["val_loss"], rel=1e-5)


def test_a_t5_reads_what_is_longer_than_it_was_trained_on(folder: Callable, tmp_path: Path):
    """Distances have no end, as in transformers."""
    data, src = tmp_path / "long.jsonl", folder("t5")
    texts = [(" ".join(random.Random(n).choices(WORDS, k=900)), f"the {n}") for n in range(4)]
    data.write_text("".join(json.dumps({"source": x, "target": y}) + "\n" for x, y in texts))
    how = {"data": str(data), "objective": "seq2seq", "seq_len": 600}
    with quietly():
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(src).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(src)
    end, losses, count = [tokenizer.eos_token_id], 0.0, 0
    for x, y in texts:
        source, target = tokenizer(x)["input_ids"][:599] + end, tokenizer(y)["input_ids"] + end
        assert len(source) == 600
        with torch.no_grad():
            losses += model(torch.tensor([source]), labels=torch.tensor([target])).loss.item() * len(target)
        count += len(target)
    found = api.evaluate(src, split="all", **how)
    assert (found["tokens"], found["seq_len"]) == (count, 600)
    assert found["loss"] == pytest.approx(losses / count, rel=1e-5)
    assert found["objective"] == "seq2seq"
    assert api.train_cost(src, lr=1e-3, tokens=6000, batch_tokens=600, **how)["steps"] == 10


@pytest.mark.parametrize("given", [{}, {"objective": "seq2seq", "target_len": 12}, {"objective": "seq2seq"}])
def test_a_dry_run_counts_both_lengths(folder: Callable, corpus: Path, pairs: Path, run: Callable, given: dict):
    told = {"tokens": 512, "data": str(pairs if given else corpus), **given}
    price = api.train_cost(src := folder("t5"), **defaults(corpus) | told)
    _, summary = run(src, **told)
    assert price["flops"] == summary["flops"]
    assert price["memory"] < summary["peak_memory"]


def test_a_dry_run_refuses_what_the_run_would(folder: Callable, corpus: Path):
    src = folder("t5", vocab_size=300)  # no more than the tokenizer has
    with pytest.raises(RekindleError, match="32 tokens have 2 spans, but there are 0 sentinels"):
        api.train_cost(src, **defaults(corpus))
    (src / "model.safetensors").unlink()
    assert api.train_cost(src, **defaults(corpus))["steps"] == 12  # of a config alone, which has no tokenizer


@pytest.mark.parametrize(
    ("family", "given", "words"),
    [
        ("llama", {"objective": "ul2"}, "needed is one that writes a text for the one it reads.*next-token"),
        (
            "llama",
            {"target_len": 8},
            "target_len is an option of seq2seq and prefix-lm, but the objective is next-token.*--objective seq2seq",
        ),
        (
            "t5",
            {"mask_prompt": True},
            "mask_prompt is an option of next-token, but.* is span-corruption.* try: +without",
        ),
        ("t5", {"objective": "next-token"}, "needed is one that predicts the next token.*span-corruption"),
        ("t5", {"source_column": "a"}, "source_column is an option of seq2seq.*--objective seq2seq"),
        ("t5", {"objective": "seq2seq", "text_column": "a"}, "text_column is an option of next-token and span-corr"),
        ("t5", {"objective": "seq2seq", "target_len": 0}, "target_len is 0, but it must be positive"),
    ],
)
def test_what_an_objective_does_not_know_is_refused(
    folder: Callable, small: Callable, run: Callable, family: str, given: dict, words: str
):
    src = small() if family == "llama" else folder(family)
    with pytest.raises(RekindleError) as caught:
        run(src, **given)
    assert re.search(words, str(caught.value), re.DOTALL)
    if "target_len" not in words:
        with pytest.raises(RekindleError):
            api.train_cost(src, tokens=512, seq_len=32, batch_tokens=256, lr=1e-3, **given)


@pytest.mark.parametrize("objective", ["span-corruption", "seq2seq"])
@pytest.mark.parametrize(
    ("family", "key"),
    [("t5", "decoder_start_token_id"), ("t5", "pad_token_id"), ("t5gemma", "decoder.bos_token_id")],
)
def test_a_model_that_cannot_shift_its_targets_is_refused_before_anything_runs(
    folder: Callable, run: Callable, pairs: Path, family: str, key: str, objective: str
):
    src = folder(family)
    config = json.loads((src / "config.json").read_text())
    *section, name = key.split(".")
    (config[section[0]] if section else config)[name] = None
    (src / "config.json").write_text(json.dumps(config))
    given = {"data": str(pairs), "objective": objective}
    for refused in (
        lambda: run(src, **given),
        lambda: api.evaluate(src, tokens=256, seq_len=32, **given),
        lambda: api.train_cost(src, tokens=512, seq_len=32, batch_tokens=256, lr=1e-3, **given),
    ):
        with pytest.raises(RekindleError, match=f"{key} is null: a {family} is shown no target without it") as caught:
            refused()
        assert Path(str(caught.value.where)) == src / "config.json"


@pytest.mark.slow
@pytest.mark.parametrize("travels", [True, False], ids=["with generation_config.json", "without"])
def test_what_is_trained_of_a_deeper_decoder_generates_without_a_cache(folder: Callable, run: Callable, travels: bool):
    src = folder("t5")  # 2 layers and 3
    if not travels:
        (src / "generation_config.json").unlink()
    out, _ = run(src)
    model, how = transformers.AutoModelForSeq2SeqLM.from_pretrained(out), {"max_new_tokens": 3, "do_sample": False}
    source = torch.arange(3, 9)[None]
    assert torch.equal(model.generate(source, **how), model.generate(source, **how, use_cache=False))


# A source as a prefix, and what is cut out of a text


def test_a_decoder_reads_a_source_before_it_writes(pairs: Path, tokenizer: Any):
    both = seq2seq(pairs, tokenizer, target_len=6)
    one = Prefix.open(options(pairs, target_len=6), 32, tokenizer, VOCABULARY)
    assert one.total(0, 50) == both.total(0, 50)
    for ours, theirs in ((one.batch(3, 20), both.batch(3, 20)), (one.sample("all", 4000), both.sample("all", 4000))):
        rows = zip(*(ours[name].tolist() for name in ("input_ids", "attention_mask", "labels")), strict=True)
        for (ids, mask, labels), source, seen, target in zip(
            rows, theirs["input_ids"], theirs["attention_mask"], theirs["labels"], strict=True
        ):
            source, target = source[seen.bool()].tolist(), target[target != -100].tolist()
            whole = source + target
            assert [i for i, m in zip(ids, mask, strict=True) if m] == whole[:-1]
            assert labels[: len(source) - 1] == [-100] * (len(source) - 1)
            assert labels[len(source) - 1 : len(whole) - 1] == target
            assert set(labels[len(whole) - 1 :]) <= {-100}
        prompts = one.prompts(ours)
        for ids, mask, source, seen in zip(
            prompts["input_ids"], prompts["attention_mask"], theirs["input_ids"], theirs["attention_mask"], strict=True
        ):
            assert ids[mask.bool()].tolist() == source[seen.bool()].tolist()
            assert mask.tolist() == sorted(mask.tolist())  # padded before the first


def test_ul2_s_rows_are_each_of_one_kind_and_hold_all_of_the_text(corpus: Path, tokenizer: Any):
    objective = UL2.open(options(corpus), 32, tokenizer, VOCABULARY)
    raw, many = objective.raw, 400
    batch, kinds = objective.batch(0, many), _kinds(0, np.arange(many))
    shares = np.bincount(kinds, minlength=len(MIXTURE)) / many
    assert (shares > 0.07).all()
    wanted = Counter(MIXTURE[kind].lengths(raw) for kind in kinds)
    lengths = zip(batch["attention_mask"].sum(1).tolist(), (batch["labels"] != -100).sum(1).tolist(), strict=True)
    assert Counter(lengths) == wanted
    assert objective.total(0, many) == int((batch["labels"] != -100).sum())
    assert max(inputs for inputs, _ in wanted) <= 32
    windows = objective.corpus.batch(0, many, raw, 0)[:, :-1]
    texts = Counter(tuple(row) for row in windows.tolist())
    sentinels, end = objective.sentinels, objective.end
    found = Counter()
    for ids, mask, labels in zip(*(batch[name].tolist() for name in batch), strict=True):
        read = [i for i, m in zip(ids, mask, strict=True) if m][:-1]
        written = [i for i in labels if i != -100]
        assert written.pop() == end
        spans, last = {}, 0
        for token in written:
            if token in sentinels:
                last = token
                spans[last] = []
            else:
                spans[last].append(token)
        found[tuple(t for token in read for t in (spans[token] if token in sentinels else [token]))] += 1
    assert found == texts


def test_the_last_kind_of_ul2_is_the_end_of_the_text(corpus: Path, tokenizer: Any):
    kept, taken = spans_of(40, END, 0, np.arange(5))
    assert kept.tolist() == [[10]] * 5
    assert taken.tolist() == [[30]] * 5


def test_prefix_lm_cuts_a_text_in_two(corpus: Path, tokenizer: Any):
    objective = PrefixLM.open(options(corpus, target_len=8), 24, tokenizer, VOCABULARY)
    batch, windows = objective.batch(5, 7), objective.corpus.batch(5, 7, 32, 0)
    assert torch.cat([batch["input_ids"], batch["labels"]], 1).tolist() == windows[:, :-1].tolist()
    assert batch["input_ids"].shape == (7, 24)
