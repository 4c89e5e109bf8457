"""Texts that are written: transformers' own search of each source alone, and sacrebleu's numbers of them."""

from __future__ import annotations

import json
import string
import sys

import pytest
import torch

import rekindle
from rekindle.apply.load import quietly
from rekindle.errors import RekindleError
from rekindle.train.model import load_tokenizer
from rekindle.train.rouge import rouge
from rekindle.train.writing import Written, scores

HOW = {"objective": "seq2seq", "seq_len": 16}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A BERT that reads and a GPT-2 of other tokens that writes, trained a little: the folder, and pairs."""
    work = tmp_path_factory.mktemp("made")
    texts = [{"source": f"say {i % 9}, not {i}", "target": f"it is {i % 9}"} for i in range(400)]
    (work / "pairs.jsonl").write_text("\n".join(map(json.dumps, texts)))
    words = [json.dumps({"text": f"{string.printable} {i} " * 8}) for i in range(400)]
    (work / "words.jsonl").write_text("\n".join(words))
    size = {"hidden": 32, "layers": 1, "heads": 2, "data": str(work / "words.jsonl")}
    bert = rekindle.init(
        work / "bert", family="bert", set={"architectures": ["BertModel"]}, tokenizer="bpe:340", **size
    )
    gpt2 = rekindle.init(work / "gpt2", family="gpt2", tokenizer="bpe:300", **size)
    start = rekindle.warm_start(bert, gpt2).save(work / "start")
    how = {**HOW, "data": str(work / "pairs.jsonl"), "batch_tokens": 1024, "tokens": 131072, "lr": 1e-2}
    rekindle.train(start, work / "out", **how)
    return work / "out", str(work / "pairs.jsonl")


@pytest.mark.parametrize("beams", [1, 3])
def test_each_text_is_what_transformers_writes_of_its_source_alone(made, tmp_path, beams):
    from transformers import EncoderDecoderModel

    folder, data = made
    file = tmp_path / "texts.jsonl"
    found = rekindle.evaluate(folder, data=data, tokens=512, beams=beams, predictions=str(file), micro_batch=8, **HOW)
    texts = [Written(**json.loads(line)) for line in file.read_text().splitlines()]
    assert len(texts) == found["sequences"] > 8
    assert {text.target for text in texts} <= {f"it is {i}" for i in range(9)}
    assert found == found | scores(texts)
    assert found["exact"] > 0.2  # of nine
    with quietly():
        model = EncoderDecoderModel.from_pretrained(folder).eval()
    reads, writes = load_tokenizer(folder), load_tokenizer(folder / "decoder_tokenizer")
    for text in texts[:6]:
        ids = torch.tensor([reads(text.source)["input_ids"] + [reads.eos_token_id]])
        with quietly():
            alone = model.generate(ids, attention_mask=torch.ones_like(ids), num_beams=beams, max_new_tokens=16)
        assert writes.decode(alone[0], skip_special_tokens=True).strip() == text.written


def test_scores_are_sacrebleus(made):
    import sacrebleu

    texts = [Written("", "a b c d e", "a b c d e"), Written("", "f g h i j", "f g h x j"), Written("", "k l", "m")]
    found = scores(texts)
    ours, theirs = [text.written for text in texts], [[text.target for text in texts]]
    assert found["bleu"] == sacrebleu.corpus_bleu(ours, theirs).score
    assert found["chrf"] == sacrebleu.corpus_chrf(ours, theirs).score
    assert found["exact"] == pytest.approx(1 / 3)
    assert found["exact_stderr"] == pytest.approx((1 / 3 * 2 / 3 / 3) ** 0.5)
    assert scores(texts[:1])["bleu"] == pytest.approx(100)


@pytest.mark.parametrize(
    ("text", "target", "found"),
    [
        ("the cat sat on the mat", "The cat was on the mat.", (500 / 6, 60, 500 / 6)),
        ("a b c", "c b a", (100, 0, 100 / 3)),
        ("a a a", "a", (50, 0, 50)),
        ("x_train = f(y)", "x train f y", (100, 100, 100)),  # neither signs nor _ are of a word
        ("größer 2", "GRÖSSER 2", (50, 0, 50)),
        ("", "a", (0, 0, 0)),
        ("a", "", (0, 0, 0)),
        ("b c d e x", "a b c d e", (80, 75, 80)),
    ],
)
def test_rouge_by_hand(text, target, found):
    assert tuple(rouge([text], [target]).values()) == pytest.approx(found)
    both = rouge([text, "same here"], [target, "same here"])
    assert tuple(both.values()) == pytest.approx([(x + 100) / 2 for x in found])


def test_nothing_is_written_where_it_would_be_in_vain(made, tmp_path, monkeypatch):
    folder, data = made
    (tmp_path / "there").write_text("")
    for more, words in (
        ({"beams": 0}, "beams is 0: 1 is the least"),
        ({"beams": 2, "predictions": str(tmp_path / "there")}, "The file exists already"),
        ({"beams": 2, "objective": "next-token"}, "beams is an option of seq2seq"),
    ):
        with pytest.raises(RekindleError, match=words):
            rekindle.evaluate(folder, data=data, tokens=512, **HOW | more)
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(RekindleError, match="BLEU and chrF are sacrebleu's, which is not installed"):
        rekindle.evaluate(folder, data=data, tokens=512, beams=2, **HOW)
    assert rekindle.evaluate(folder, data=data, tokens=512, **HOW)["loss"]


@pytest.mark.parametrize("beams", [1, 3])
def test_a_decoder_writes_behind_each_source(made, tmp_path, beams):
    """Shorter sources are padded before their first token, which changes nothing of what is written."""
    from transformers import AutoModelForCausalLM

    work = made[0].parent
    how = {**HOW, "data": str(work / "pairs.jsonl"), "batch_tokens": 1024, "tokens": 65536, "lr": 1e-2}
    alone = rekindle.warm_start(decoder=work / "gpt2", variant="gpt").save(tmp_path / "alone")
    assert rekindle.verify(alone, against=work / "gpt2", tokens=128).relative_difference == 0
    rekindle.train(alone, tmp_path / "trained", **how)
    told = rekindle.evaluate(
        tmp_path / "trained", **HOW, data=str(work / "pairs.jsonl"), beams=beams, predictions=str(tmp_path / "p.jsonl")
    )
    assert told["rouge1"] > 0.6
    with quietly():
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "trained").eval()
    tokenizer = load_tokenizer(tmp_path / "trained")
    end = tokenizer.eos_token_id
    for line in (tmp_path / "p.jsonl").read_text().splitlines():
        row = json.loads(line)
        ids = torch.tensor([[*tokenizer(row["source"])["input_ids"], end]])
        with quietly():
            out = model.generate(ids, num_beams=beams, do_sample=False, max_new_tokens=16, pad_token_id=end)
        assert tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip() == row["written"]


def test_predictions_are_of_texts_that_are_written(made, tmp_path):
    with pytest.raises(RekindleError, match="with --beams alone"):
        rekindle.evaluate(made[0], **HOW, data=str(made[1]), predictions=str(tmp_path / "p.jsonl"))
