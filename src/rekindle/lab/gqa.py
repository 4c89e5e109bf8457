"""GQA, small: how to pool key-value heads, and how much uptraining brings back.

Source: Ainslie et al. 2023, "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints",
arXiv 2305.13245, figures 3 to 6; alignment before pooling from Jin et al. 2024, arXiv 2412.20677.

A small dense llama with 8 key-value heads is converted to 2 and to 1, by each way of pooling, and uptrained on a
fraction of its own training tokens. Decode speed and cache bytes are measured on a larger model of random weights,
since they do not depend on what the weights are.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rekindle.lab.claims import LOSS, Claim
from rekindle.lab.figures import Line, ranked
from rekindle.lab.page import Page, Table
from rekindle.lab.spent import End
from rekindle.lab.study import Seeded, Size, losses, seeds_drawn
from rekindle.store.publish import write_whole
from rekindle.sweep.steps import Step

HEADS = 8
SHAPE = {"hidden": 64, "heads": HEADS, "ffn": 256, "layers": 2, "context": 256, "tokenizer": "bpe:1024"}
TRAIN = {"data": "python", "seq_len": 128, "batch_tokens": 4096, "lr": 3e-3, "eval_tokens": 65536}
PARENT = 5_000_000  # tokens
FRACTIONS = (1, 5, 10)  # per cent of the parent's tokens
GROUPS = (2, 1)  # key-value heads after conversion
POOLS = {
    "mean": "mean",
    "first": "first head",
    "random": "fresh head",
    "aligned": "mean of aligned heads",
}
CLAIMS = (
    Claim("one-mean-below-first", "One head: the mean ends below the first head", "mean > first > random",
          "mean-1-5", "first-1-5"),
    Claim("one-first-below-fresh", "One head: the first head ends below a fresh one", "mean > first > random",
          "first-1-5", "random-1-5"),
    Claim("two-below-one", "Two heads end below one", "47.1 against 46.6 points", "mean-2-5", "mean-1-5"),
    Claim("two-as-all", "Two heads end as low as all eight trained on", "47.1 against 47.2 points",
          "mean-2-5", "all-5", alike=True),
    Claim("aligned-below-mean-before", "Aligned heads pool better before any training",
          "perplexity, Jin et al.: 77.0 to 81.8 points", "aligned-2-0", "mean-2-0", of="another"),
    Claim("aligned-below-mean", "... and after 5 % uptraining", "Jin et al.", "aligned-2-5", "mean-2-5", of="another"),
)  # fmt: skip

# The model that decodes: random weights, since speed and bytes do not depend on them.
DECODER = {"hidden_size": 512, "num_attention_heads": 16, "num_hidden_layers": 8, "intermediate_size": 1024}
BATCH, PROMPT, NEW = 8, 1024, 24


def steps(seed: int, size: Size) -> list[Step]:
    parent = size.tokens(PARENT)
    made = [
        Step("start", "init", options={**SHAPE, "seed": seed}),
        Step("parent", "train", "start", {**TRAIN, "tokens": parent, "schedule": "constant"}),
    ]
    for percent in FRACTIONS:
        tokens = size.tokens(PARENT * percent // 100)
        made.append(Step(f"all-{percent}", "train", "parent", {**TRAIN, "tokens": tokens}))
        for groups in GROUPS:
            made += [
                Step(f"{pool}-{groups}-{percent}", "train", f"{pool}-{groups}", {**TRAIN, "tokens": tokens})
                for pool in POOLS
            ]
    for groups in GROUPS:
        for pool in POOLS:
            options = {"kv_heads": groups, "pool": pool, "seed": seed}
            options |= {"data": TRAIN["data"]} if pool == "aligned" else {}
            made.append(Step(f"{pool}-{groups}", "gqa", "parent", options))
    return made


def read(runs: Path, size: Size) -> Page:
    arms = ["all", *(f"{pool}-{groups}" for groups in GROUPS for pool in POOLS)]
    ends = {f"{arm}-{p}": losses(runs, f"{arm}-{p}", size.seeds) for arm in arms for p in FRACTIONS}
    # before any training: what the first evaluation of an uptraining run reads
    ends |= {f"{arm}-0": losses(runs, f"{arm}-{FRACTIONS[0]}", size.seeds, start=True) for arm in arms}
    fractions = (0, *FRACTIONS)
    whole = Line(f"all {HEADS} heads", {float(p): ends[f"all-{p}"] for p in fractions})

    def by_fraction(groups: int, first: int) -> list[Line]:
        shown = fractions[first:]
        return [
            *(Line(words, {float(p): ends[f"{pool}-{groups}-{p}"] for p in shown}) for pool, words in POOLS.items()),
            Line(whole.name, {x: v for x, v in whole.points.items() if x in shown}),
        ]

    below, after = "uptraining, % of the parent's tokens", f"after {FRACTIONS[-1]} % uptraining"
    return Page(
        title="Fewer key-value heads at the size of two cores",
        paper="Ainslie et al. 2023, GQA",
        url="https://arxiv.org/abs/2305.13245",
        setting=(
            f"A {SHAPE['layers']}-layer llama of {HEADS} heads, hidden size {SHAPE['hidden']}, trained on "
            f"{size.tokens(PARENT):,} tokens of Python's libraries, converted to 2 key-value heads and to 1. "
            f"{seeds_drawn(size)}"
        ),
        values={LOSS: ends},
        charts=[
            ranked("two", f"{HEADS} key-value heads to 2, {after}", by_fraction(2, 0), below),
            ranked("two-after", "To 2, from 1 % on", by_fraction(2, 1), below),
            ranked("one", f"{HEADS} key-value heads to 1, {after}", by_fraction(1, 0), below),
            ranked("one-after", "To 1, from 1 % on", by_fraction(1, 1), below),
        ],
        tables=[_decode_table(runs)],
        limits=(
            "Heads of 8 dimensions have 4 rotation planes to align in; the paper's have 64 or more.",
            "The paper pools T5's decoder and measures tasks after fine-tuning; this is a language model's loss.",
            "Decode speed is a CPU's, whose attention repeats the pooled heads; an engine's kernels on a GPU do not.",
        ),
    )


def _decode_table(runs: Path) -> Table:
    path = runs / "decode.json"
    if not path.exists():
        write_whole(path, json.dumps([decode(groups) for groups in (16, 4, 1)]))
    found = json.loads(path.read_text(encoding="utf-8"))
    rows = [(f"{r['kv_heads']} of 16", f"{r['cache_bytes'] / 1e6:.1f}", f"{r['tokens_per_s']:.0f}") for r in found]
    note = (
        f"{DECODER['num_hidden_layers']} layers, hidden size {DECODER['hidden_size']}, float32; {BATCH} sequences of "
        f"{PROMPT} tokens in the cache, the best of three times {NEW} new tokens each, on the CPU that made this page."
    )
    return Table("Decoding", ("key-value heads", "cache, MB", "tokens/s"), rows, note)


def decode(kv_heads: int) -> dict[str, Any]:
    """{"kv_heads", "cache_bytes", "tokens_per_s"} of greedy decoding behind a long prompt."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**DECODER, num_key_value_heads=kv_heads, vocab_size=1024)
    model = LlamaForCausalLM(config).eval()
    prompt = torch.randint(0, 1024, (BATCH, PROMPT), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = model(prompt, use_cache=True, logits_to_keep=1)
        cache, token = out.past_key_values, out.logits[:, -1:].argmax(-1)
        layers = cache.layers
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
        best = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            for _ in range(NEW):
                out = model(token, past_key_values=cache, use_cache=True)
                token = out.logits[:, -1:].argmax(-1)
            best = min(best, time.perf_counter() - start)
    return {"kv_heads": kv_heads, "cache_bytes": held, "tokens_per_s": BATCH * NEW / best}


def ends_in(arm: str) -> End:
    """Before any training is what the first evaluation of an uptraining run reads."""
    return End(f"{arm.removesuffix('-0')}-{FRACTIONS[0]}", 0) if arm.endswith("-0") else End(arm)


STUDY = Seeded("gqa", CLAIMS, steps, read, ends_in)
