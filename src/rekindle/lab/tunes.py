"""Models that write tunes, small: the steps of `lab text-to-music`, each from folder to folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rekindle.config import resolve
from rekindle.lab.study import seeded
from rekindle.lab.warm_start import minilm
from rekindle.train.config import TrainConfig

ROWS, SOURCE, TARGET = 16, 48, 401  # pairs in a step, tokens of a text and of a tune
TOKENS = 800 * ROWS * SOURCE
OTHER_TOKENS = 1_600_000  # that a language model of other text reads
SHAPE = {"family": "gpt2", "hidden": 128, "layers": 3, "heads": 4, "context": 512, "init_std": 0.088,
         "set": {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}}  # fmt: skip
TRAIN = {"objective": "seq2seq", "target_len": TARGET, "micro_batch": 8, "lr": 1e-3, "warmup": 0.05,
         "eval_tokens": 16384}  # fmt: skip
OTHER = {"seq_len": 256, "batch_tokens": 2048, "lr": 1e-3, "warmup": 0.05, "eval_tokens": 16384}
TEXTS, PROMPTS, EACH = 100, 5, 8  # that tunes are drawn for: one of each text, and several of some


def make_data(source: Path, out: Path, seed: int) -> None:
    """Texts and tunes, split by this seed."""
    from rekindle import api

    api.music_data(out, seed=seed)


def score_rivals(source: Path, out: Path, seed: int, texts: int) -> None:
    """OUT/scores.json of the held-out tunes, the nearest text's tune and a 5-gram."""
    from rekindle.music.config import MusicEvaluateConfig
    from rekindle.music.evaluate import beside

    config = resolve(MusicEvaluateConfig, {"data": str(source), "texts": texts, "seed": seed}).config
    part = _part(out)
    told = {author: _told(score) for author, score in beside(source, config).items()}
    (part / "scores.json").write_text(json.dumps(told), encoding="utf-8")
    part.rename(out)


def learn_tunes(source: Path, out: Path, share: int, rows: int, seed: int) -> None:
    """OUT/end, a language model of so many per cent of the training tunes, each read from its beginning."""
    from rekindle import api

    part = _part(out)
    _draw(part / "drawn", seed)
    _some(source, part / "tunes", "tunes", share, seed)
    how = {**TRAIN, "data": str(part / "tunes"), "seq_len": 1, "batch_tokens": ROWS, "tokens": rows, "seed": seed}
    if not (part / "end").exists():
        api.train(part / "drawn", part / "end", resolve(TrainConfig, how), resume=True)
    part.rename(out)


def learn_words(source: Path, out: Path, text: str, tokens: int, seed: int) -> None:
    """OUT/end, a language model of Python's sources, or of the English in them: all of it but the embeddings."""
    from rekindle import api

    part = _part(out)
    data = "stdlib" if text == "code" else str(_english(part / "english.jsonl"))
    if not (part / "start").exists():
        api.init(part / "start", **SHAPE, tokenizer="bpe:512", data=data, seed=seed)
    if not (part / "words").exists():
        how = {**OTHER, "data": data, "tokens": tokens, "seed": seed}
        api.train(part / "start", part / "words", resolve(TrainConfig, how), resume=True)
    _draw(part / "end", seed)
    _transplant(part / "words", part / "end")
    part.rename(out)


def train_arm(
    source: Path, out: Path, encoder: str, share: int, rows: int, seed: int, texts: int, prompts: int
) -> None:
    """OUT/end, trained on pairs of so many per cent of the tunes, and OUT/scores.json of what it writes."""
    from rekindle import api

    part, data = _part(out), source.parent / seeded("data", seed)
    decoder = part / "drawn" if source == data else source / "end"
    if source == data:
        _draw(decoder, seed)
    _some(data, part / "pairs", "pairs", share, seed)
    if not (part / "start").exists():
        reads = str(minilm()) if encoder == "minilm" else f"random:{minilm()}"
        start = api.warm_start(reads, decoder, encoder_layers="first:2", share="none", seed=seed)
        start.save(part / "start")
    how = {**TRAIN, "data": str(part / "pairs"), "seq_len": SOURCE, "batch_tokens": ROWS * SOURCE, "seed": seed}
    if not (part / "end").exists():
        every = {"tokens": rows * SOURCE, "eval_every": rows * SOURCE // 4}
        api.train(part / "start", part / "end", resolve(TrainConfig, {**how, **every}), resume=True)
    (part / "scores.json").write_text(json.dumps(_scores(part / "end", data, texts, prompts, seed)), encoding="utf-8")
    part.rename(out)


def _part(out: Path) -> Path:
    """Where a step that is cut off goes on."""
    part = out.with_name(f"{out.name}.part")
    part.mkdir(exist_ok=True)
    return part


def _draw(out: Path, seed: int) -> None:
    """A decoder of the vocabulary of tunes."""
    from rekindle import api
    from rekindle.music.vocabulary import make_tune_tokenizer

    if not out.exists():
        tokenizer = out.with_name("tokenizer")
        make_tune_tokenizer(SHAPE["context"]).save_pretrained(tokenizer)
        api.init(out, **SHAPE, tokenizer=str(tokenizer), seed=seed)


def _some(data: Path, out: Path, kind: str, share: int, seed: int) -> None:
    """Rows of so many per cent of the training tunes, those of a smaller share among them; all that are held out."""
    import numpy as np

    held_out, train = (_lines(data / kind / f"{side}.jsonl") for side in ("validation", "train"))
    numbers = sorted({json.loads(line)["tune"] for line in train})
    chosen = {
        numbers[at] for at in np.random.default_rng(seed).permutation(len(numbers))[: len(numbers) * share // 100]
    }
    out.mkdir(exist_ok=True)
    kept = [line for line in train if json.loads(line)["tune"] in chosen]
    for side, lines in (("train", kept), ("validation", held_out)):
        (out / f"{side}.jsonl").write_text("".join(lines), encoding="utf-8")


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines(keepends=True)


def _english(path: Path) -> Path:
    """The first sentences of the docstrings that `--data python` finds."""
    from rekindle.train.text import Pair, PairReading, open_source

    documents = open_source("python", reading=PairReading()).documents()
    rows = [json.dumps({"text": one.source}) + "\n" for one in documents if isinstance(one, Pair)]
    path.write_text("".join(rows), encoding="utf-8")
    return path


def _transplant(parent: Path, child: Path) -> None:
    """Everything but the embeddings of tokens, from one GPT-2 into another of its sizes."""
    from safetensors.numpy import load_file, save_file

    (file,) = child.glob("*.safetensors")
    theirs, own = load_file(next(parent.glob("*.safetensors"))), load_file(file)
    save_file({name: own[name] if ".wte." in name else theirs[name] for name in own}, file, {"format": "pt"})


def _scores(model: Path, data: Path, texts: int, prompts: int, seed: int) -> dict[str, Any]:
    """Of the tunes that it draws for held-out texts, a value for each text; see music.evaluate."""
    from rekindle.music.compose import Composer
    from rekindle.music.config import MusicEvaluateConfig
    from rekindle.music.evaluate import own_scores

    options = {"data": str(data), "texts": texts, "prompts": max(1, prompts), "each": EACH if prompts else 1}
    config = resolve(MusicEvaluateConfig, {**options, "seed": seed}).config
    return _told(own_scores(Composer.load(model), data, config))


def _told(score: Any) -> dict[str, Any]:
    """A music.evaluate.Score as plain values."""
    return {"values": {name: values.tolist() for name, values in score.values.items()}, "diversity": score.diversity}
