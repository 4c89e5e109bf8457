"""Chats through the tokenizer's own template, and losses on the answers alone."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from train_helpers import WORDS, rows

from rekindle import api
from rekindle.apply.load import load_model
from rekindle.errors import RekindleError
from rekindle.train.device import make_accelerator
from rekindle.train.encoder import Encoder
from rekindle.train.evaluate import validation_loss
from rekindle.train.losses import inputs_and_targets
from rekindle.train.model import load_tokenizer
from rekindle.train.objectives.next_token import NextToken
from rekindle.train.text import Chat, open_source
from rekindle.train.tokens import cache_folder, open_corpus

SPECIAL = ["<|im_start|>", "<|im_end|>", "[INST]", "[/INST]"]
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + PROMPT
# as Qwen3's: the thoughts of the last answer only, empty where there are none
THINKING = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.index0 > ns.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}" + PROMPT
)
# as Mistral's: no words that ask for an answer
BRACKETS = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\\n' }}{% endfor %}"
)
# a prompt that ends in a space, which the answer's first token takes up
SPACED = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: "
SPACED += "{% endif %}"
# history is written in another way once an answer follows it
UPSIDE_DOWN = "{% for m in messages|reverse %}{{ m.role }}: {{ m.content }}\n{% endfor %}"

TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "the cat?"},
    {"role": "assistant", "content": "sat <b>"},
    {"role": "user", "content": "on a"},
    {"role": "assistant", "content": "old mat\n\n"},
]


@pytest.fixture(scope="module")
def chatty(small: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """chatty(template, "mixtral"): a small model whose tokenizer has the template and its special tokens."""

    def make(template: str | None = CHATML, family: str = "llama") -> Path:
        folder = tmp_path_factory.mktemp("chatty") / "model"
        shutil.copytree(small(family), folder)
        tokenizer = load_tokenizer(folder)
        tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
        model = load_model(folder)
        model.resize_token_embeddings(len(tokenizer))
        model.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chats of one to three turns, with answers short and long."""
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("talks") / "talks.jsonl"
    with path.open("w") as file:
        for n in range(60):
            messages = []
            for _ in range(rng.randint(1, 3)):
                messages.append(
                    {"role": "user", "content": f"{n} " + " ".join(rng.choices(WORDS, k=rng.randint(1, 60)))}
                )
                messages.append({"role": "assistant", "content": " ".join(rng.choices(WORDS, k=rng.randint(1, 30)))})
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def documents(path: Path, **options: Any) -> list[Any]:
    return [
        d.messages if isinstance(d, Chat) else d for d in open_source(str(path), **options).documents()
    ]  # fmt: skip


def in_answers(folder: Path, messages: list[dict]) -> list[str]:
    """The runs of tokens that have a loss, as text."""
    tokenizer = load_tokenizer(folder)
    ((ids, loss),) = Encoder(tokenizer, mask_prompt=True).documents([Chat(messages, "here")])
    ((plain, everything),) = Encoder(tokenizer).documents([Chat(messages, "here")])
    assert ids.tolist() == plain.tolist()
    assert everything is None
    edges = np.flatnonzero(np.diff(np.concatenate([[0], loss, [0]]))).reshape(-1, 2)
    return [tokenizer.decode(ids[start:end]) for start, end in edges]


def test_the_spellings_of_a_chat(tmp_path: Path):
    def read(row: dict, **options: Any) -> Any:
        (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
        (found,) = documents(tmp_path / "x.jsonl", **options)
        return found

    two = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    share = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    assert read({"messages": two}) == two
    assert read({"conversations": share}) == two
    assert read({"conversations": share, "system": "s"}) == [{"role": "system", "content": "s"}, *two]
    assert read({"messages": json.dumps(two)}) == two
    assert read({"dialogue": two}, column="dialogue") == two
    assert read({"instruction": "a", "input": "", "output": "b"}) == two
    assert read({"instruction": "a", "input": "i", "output": "b"})[0]["content"] == "a\n\ni"
    assert read({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}) == two[:1]
    assert read({"messages": two, "text": "plain"}) == "plain"
    assert read({"messages": two, "text": "plain"}, chat=True) == two
    assert read({"instruction": "a", "output": "b"}, column="output") == "b"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "no message of text"),
        ({"messages": ["a"]}, "no message of text"),
        ({"messages": "a"}, "no list of messages"),
        ({"messages": [{"role": "user", "content": "a"}], "tools": [{}]}, '"tools"'),
        ({"messages": 3}, "holds int"),
        ({"text": ["a"]}, '"text" holds list, not text'),
        ({"instruction": 3, "output": "b"}, "holds int"),
    ],
)
def test_what_is_no_chat_is_refused(tmp_path: Path, row: dict, words: str):
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(RekindleError, match=words):
        documents(tmp_path / "x.jsonl")


def test_chats_in_parquet_have_no_empty_keys(tmp_path: Path):
    import pyarrow as pa
    from pyarrow import parquet

    call = {"role": "assistant", "content": "x", "name": "n"}
    parquet.write_table(pa.Table.from_pylist([{"n": 1, "messages": [TALK[1], call]}]), tmp_path / "x.parquet")
    assert documents(tmp_path / "x.parquet") == [[TALK[1], call]]


def test_a_chat_is_what_the_template_writes_and_ends_once(chatty: Callable[..., Path], tmp_path: Path):
    tokenizer = load_tokenizer(chatty())
    (ids, _), (text, _) = Encoder(tokenizer).documents([Chat(TALK, ""), "text"])
    assert ids.tolist() == [*tokenizer.apply_chat_template(TALK)["input_ids"], tokenizer.eos_token_id]
    assert text.tolist() == [*tokenizer("text")["input_ids"], tokenizer.eos_token_id]
    tokenizer.eos_token = "<|im_end|>"  # which the template writes
    ((ids, _),) = Encoder(tokenizer).documents([Chat(TALK, "")])
    assert ids.tolist() == tokenizer.apply_chat_template(TALK)["input_ids"]


def test_the_answers_of_each_template(chatty: Callable[..., Path]):
    end = "<|endoftext|>"
    assert in_answers(chatty(), TALK) == ["sat <b><|im_end|>\n", f"old mat\n\n<|im_end|>\n{end}"]
    thoughts = "<think>\n\n</think>\n\n"
    assert in_answers(chatty(THINKING), TALK) == ["sat <b><|im_end|>\n", f"{thoughts}old mat\n\n<|im_end|>\n{end}"]
    assert in_answers(chatty(BRACKETS), TALK[1:]) == [f" sat <b>{end}", f" old mat\n\n{end}"]
    assert in_answers(chatty(MARKED), TALK) == ["sat <b><|im_end|>", "old mat\n\n<|im_end|>", end]
    assert in_answers(chatty(), TALK[:4]) == ["sat <b><|im_end|>\n"]
    assert in_answers(chatty(), TALK[:2]) == []


def test_the_librarys_own_mask_is_the_same(chatty: Callable[..., Path]):
    tokenizer = load_tokenizer(chatty(MARKED))
    theirs = tokenizer.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
    ((ids, loss),) = Encoder(tokenizer, mask_prompt=True).documents([Chat(TALK, "")])
    assert ids.tolist()[:-1] == theirs["input_ids"]
    assert loss.astype(int).tolist()[:-1] == theirs["assistant_masks"]


def test_where_answers_cannot_be_told_apart_it_says_so(chatty: Callable[..., Path], corpus: Path, talks: Path):
    for template, words in (
        (SPACED, "begins or ends inside a token"),
        (UPSIDE_DOWN, "does not tell where answer 1 stands"),
        ("{{ raise_exception('no system, please') }}", "refuses this chat: no system, please"),
        (None, "no chat template"),
    ):
        with pytest.raises(RekindleError, match=words) as error:
            in_answers(chatty(template), TALK)
        assert error.value.where == "here"
    with pytest.raises(RekindleError, match="begins with an answer"):
        in_answers(chatty(), TALK[2:])
    tokenizer = load_tokenizer(chatty())
    with pytest.raises(RekindleError, match="mask_prompt asks for a loss on answers"):
        open_corpus(str(corpus), tokenizer, mask_prompt=True)
    with pytest.raises(RekindleError, match="no chat template"):
        open_corpus(str(talks), load_tokenizer(chatty(None)))


@pytest.mark.parametrize("role", ["user", "bot-2"])
def test_chats_without_any_answer_are_told_so(chatty: Callable[..., Path], tmp_path: Path, role: str):
    path = tmp_path / "asked.jsonl"
    chats = ([{"role": "user", "content": f"question {n}"}, {"role": role, "content": "and?"}] for n in range(4))
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    roles = ", ".join(sorted({"user", role}))
    for _ in range(2):  # the second time out of the cache
        with pytest.raises(RekindleError, match=f"no chat has one: the roles are {roles}\\."):
            open_corpus(str(path), load_tokenizer(chatty()), mask_prompt=True)


def test_windows_hold_every_answer_and_no_window_is_without(chatty: Callable[..., Path], talks: Path):
    tokenizer = load_tokenizer(chatty())
    plain, masked = (open_corpus(str(talks), tokenizer, mask_prompt=mask) for mask in (False, True))
    assert masked.train.tolist() == plain.train.tolist()
    assert masked.digest != plain.digest
    assert masked.meta.train_losses == masked.losses["train"].sum() < plain.meta.train_losses == len(plain.train)
    assert masked.windows(8) < plain.windows(8)
    batch = masked.batch(0, masked.windows(8), 8, seed=0)
    assert (batch[:, 1:] >= 0).any(axis=1).all()
    covered = len(plain.train[1 : plain.windows(8) * 8 + 1])
    assert (batch[:, 1:] >= 0).sum() == masked.losses["train"][1 : covered + 1].sum()
    inputs, targets = inputs_and_targets(torch.from_numpy(batch))
    restored = {tuple(row) for row in plain.batch(0, plain.windows(8), 8, seed=0).tolist()}
    for row, target, ids in zip(batch, targets, inputs, strict=True):
        whole = np.where(row < 0, ~row, row)
        assert tuple(whole.tolist()) in restored
        assert ids.tolist() == whole[:-1].tolist()
        assert target.tolist() == [int(t) if t >= 0 else -100 for t in row[1:]]
    assert open_corpus(str(talks), tokenizer, mask_prompt=True).digest == masked.digest  # out of the cache
    for path in (cache_folder() / "tokens").glob("*/train.loss"):
        path.unlink()
    again = open_corpus(str(talks), tokenizer, mask_prompt=True)
    assert again.losses["train"].tolist() == masked.losses["train"].tolist()


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_loss_of_the_answers_by_hand(chatty: Callable[..., Path], talks: Path, tmp_path: Path, family: str):
    folder = chatty(family=family)
    options = {"data": str(talks), "mask_prompt": True, "tokens": 512, "batch_tokens": 256, "seq_len": 16, "lr": 1e-3}
    options |= {"aux_loss": 0.0, "z_loss": 0.0, "schedule": "constant", "warmup": 0.0, "eval_tokens": 10**6}
    for name, size in (("whole", 16), ("parts", 3)):
        api.train(folder, tmp_path / name, **options, micro_batch=size)
    corpus = open_corpus(str(talks), load_tokenizer(folder), mask_prompt=True)
    windows = corpus.batch(0, 16, 16, seed=0)
    model = load_model(folder)
    total, count = torch.zeros(()), 0
    for window in windows:  # each alone, and token by token
        tokens = torch.from_numpy(np.where(window < 0, ~window, window))
        logits = model(input_ids=tokens[None, :-1]).logits[0]
        for place in np.flatnonzero(window[1:] >= 0):
            total = total + cross_entropy(logits[place], tokens[place + 1])
            count += 1
    (total / count).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9).item()
    for name in ("whole", "parts"):
        first = rows(tmp_path / name, "step")[0]
        assert first["loss"] == pytest.approx((total / count).item(), rel=1e-5)
        assert first["grad_norm"] == pytest.approx(norm, rel=1e-4)
    described = rows(tmp_path / "whole", "run")[0]
    assert described["train_losses"] == corpus.meta.train_losses < described["train_tokens"]


def test_ranks_weigh_their_answers_by_number(chatty: Callable[..., Path], talks: Path):
    from rekindle.train.config import TrainConfig
    from rekindle.train.plan import make_plan
    from rekindle.train.step import Stepper

    config = TrainConfig(data=str(talks), tokens=512, batch_tokens=256, seq_len=16, lr=1e-3, mask_prompt=True)  # type: ignore[arg-type]
    corpus = open_corpus(str(talks), load_tokenizer(chatty()), mask_prompt=True)
    whole = (corpus.batch(0, 16, 16, 0)[:, 1:] >= 0).sum(1)
    for ranks in (1, 2, 4):
        weights = []
        for rank in range(ranks):
            alone = dataclasses.make_dataclass("Rank", ["num_processes", "process_index", "device"])
            stepper = Stepper.__new__(Stepper)
            stepper.__dict__ |= {"objective": NextToken(corpus, 16), "plan": make_plan(config, ranks), "config": config}
            stepper.micro_batch = 3
            stepper.accelerator = alone(ranks, rank, torch.device("cpu"))  # type: ignore[assignment]
            batch, shares = stepper._batch(0)
            counts = (batch["windows"][:, 1:] >= 0).sum(1).split(3)
            weights += [
                share / ranks * n / part.sum() for share, part in zip(shares, counts, strict=True) for n in part
            ]
        assert torch.stack(weights).tolist() == pytest.approx((whole / whole.sum()).tolist(), rel=1e-5)


def test_validation_loss_is_per_token_with_a_loss(chatty: Callable[..., Path], talks: Path):
    folder = chatty()
    corpus = open_corpus(str(talks), load_tokenizer(folder), mask_prompt=True)
    windows, objective = corpus.sample("all", 10**6, 16), NextToken(corpus, 16)
    model, accelerator = load_model(folder), make_accelerator("fp32")
    found = validation_loss(model, objective, objective.sample("all", 10**6), accelerator, 5)
    inputs, targets = inputs_and_targets(torch.from_numpy(windows))
    with torch.no_grad():
        expected = cross_entropy(model(input_ids=inputs).logits.flatten(0, 1), targets.flatten())
    assert found.loss == pytest.approx(expected.item(), rel=1e-5)
    assert found.tokens == (targets >= 0).sum()
    assert sum(found.losses) / len(found.losses) == pytest.approx(found.loss)
    spread = []  # the standard error is how far the losses of other samples of sequences lie apart
    sums, counts = np.array(found.losses) * found.tokens / len(windows), (targets >= 0).sum(1).numpy()
    rng = np.random.default_rng(0)
    for _ in range(2000):
        drawn = rng.integers(0, len(windows), len(windows))
        spread.append(sums[drawn].sum() / counts[drawn].sum())
    assert found.stderr == pytest.approx(np.std(spread), rel=0.1)


def test_every_verb_reads_chats(chatty: Callable[..., Path], talks: Path, tmp_path: Path):
    folder = chatty(family="mixtral")
    assert api.evaluate(folder, data=str(talks), tokens=500, seq_len=16)["loss"] > 0
    assert api.utility(folder, data=str(talks), batches=1, batch_tokens=64, seq_len=16)["layers"]
    made = api.rewrite(folder).save(tmp_path / "rewritten")
    assert api.verify(made, against=folder, data=str(talks), tokens=64).held
    api.init(tmp_path / "new", hidden=16, layers=1, heads=2, tokenizer="bpe:300", data=str(talks))
    assert len(load_tokenizer(tmp_path / "new")("the cat sat on")["input_ids"]) < 10
