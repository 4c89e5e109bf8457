"""Warm starts: each half is what its source was, what is shared is one, and the paper's table of parameters."""

from __future__ import annotations

import json
import shutil
import string
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from train.train_helpers import rows

import rekindle
from rekindle import api
from rekindle.apply.load import quietly
from rekindle.errors import RekindleError
from rekindle.train.encoder import Encoder
from rekindle.train.model import load_tokenizer
from rekindle.train.text import Pair

READS, WRITES = ("bert", "roberta", "bert-generation", "modernbert"), ("bert", "roberta", "bert-generation", "gpt2")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def loaded(folder: Path):
    from transformers import EncoderDecoderModel

    with quietly():
        return EncoderDecoderModel.from_pretrained(folder).eval()


def shown(vocab_size: int = 64) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    source, target = (torch.randint(4, vocab_size, (2, n), generator=draw) for n in (9, 7))
    return {"input_ids": source, "attention_mask": torch.ones_like(source), "decoder_input_ids": target}


@pytest.mark.parametrize("writes", WRITES)
@pytest.mark.parametrize("reads", READS)
def test_the_encoder_reads_as_before_and_plain_transformers_loads_the_pair(tiny, tmp_path, reads, writes):
    source = tiny(reads)
    out = rekindle.warm_start(source, tiny(writes, seed=1)).save(tmp_path / "out")
    verdict = api.verify(out, against=source, tokens=128)
    assert verdict.promise == "exact"
    assert verdict.compared == "hidden states of the encoder"
    assert verdict.held, verdict
    model, inputs = loaded(out), shown()
    with torch.no_grad():
        one = model(**inputs).logits
        later = inputs["decoder_input_ids"].clone()
        later[:, 4:] = 5
        assert torch.equal(model(**{**inputs, "decoder_input_ids": later}).logits[:, :4], one[:, :4])  # causal
        other = model(**{**inputs, "input_ids": inputs["input_ids"].flip(1)}).logits
        assert (other - one).abs().max() > 1e-4  # it looks at the source
        made = [
            model.generate(inputs["input_ids"], max_new_tokens=12, do_sample=False, use_cache=x) for x in (True, False)
        ]
    assert torch.equal(*made)
    model(**inputs).logits.square().sum().backward()
    crossed = [p for name, p in model.named_parameters() if "crossattention" in name and p.ndim == 2]
    assert crossed
    assert all(p.grad is not None and p.grad.any() for p in crossed)


@pytest.mark.parametrize(("family", "name"), [("bert", "BertForMaskedLM"), ("roberta", "RobertaForMaskedLM")])
def test_what_had_a_head_for_masked_tokens_reads_as_before_too(tiny, tmp_path, family, name):
    source = tiny(family, architectures=[name])
    out = rekindle.warm_start(source, "same").save(tmp_path / "out")
    assert api.verify(out, against=source, tokens=128).held


def test_a_drawn_decoder_of_a_modernbert_has_its_sizes_and_its_embeddings(tiny, tmp_path):
    source = tiny("modernbert", architectures=["ModernBertForMaskedLM"])
    model = rekindle.warm_start(source)
    out = model.save(tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert [config[half]["model_type"] for half in ("encoder", "decoder")] == ["modernbert", "bert-generation"]
    assert [config[half]["hidden_size"] for half in ("encoder", "decoder")] == [32, 32]
    held = tensors(out)
    one = held["encoder.embeddings.tok_embeddings.weight"], held["decoder.bert.embeddings.word_embeddings.weight"]
    assert torch.equal(*one)
    assert torch.equal(one[0], tensors(source)["model.embeddings.tok_embeddings.weight"])
    assert api.verify(out, against=source, tokens=128).held


def test_a_silent_decoder_writes_what_it_wrote(tiny, tmp_path):
    source = tiny("gpt2")
    out = rekindle.warm_start(tiny("bert"), source, cross="silent").save(tmp_path / "out")
    verdict = api.verify(out, against=source, tokens=128)
    assert (verdict.promise, verdict.compared) == ("exact", "logits of the decoder")
    assert verdict.relative_difference == 0.0
    assert verdict.loss_child == verdict.loss_parent
    model, inputs = loaded(out), shown()
    model(**inputs).logits.square().sum().backward()
    silent = [p for name, p in model.named_parameters() if "crossattention.c_proj.weight" in name]
    assert all(not p.any() and p.grad.any() for p in silent)  # and learns to speak
    loud = rekindle.warm_start(tiny("bert"), source).save(tmp_path / "loud")
    assert api.verify(loud, against=source, tokens=128).promise == "lossy"


def test_copied_cross_attention_is_self_attention(tiny, tmp_path):
    held = tensors(rekindle.warm_start(tiny("bert"), "same", cross="copy", share="none").save(tmp_path / "out"))
    at = "decoder.bert.encoder.layer.1."
    for part in ("self.query.weight", "self.value.bias", "output.dense.weight", "output.LayerNorm.bias"):
        assert torch.equal(held[f"{at}crossattention.{part}"], held[f"{at}attention.{part}"])


@pytest.mark.parametrize(("share", "fewer"), [("none", 0), ("embeddings", 1), ("all", None)])
def test_what_is_shared_is_written_twice_and_counted_once(tiny, tmp_path, share, fewer):
    model = rekindle.warm_start(tiny("bert"), "same", share=share)
    out = model.save(tmp_path / "out")
    tied = json.loads((out / "config.json").read_text()).get("tied_weights", {})
    held = tensors(out)
    assert all(torch.equal(held[name], held[of]) for name, of in tied.items())
    total = sum(x.numel() for x in held.values())
    assert model.checkpoint.parameters()["total"] == total - sum(held[name].numel() for name in tied)
    if fewer is None:  # all that both have
        both = {name for name in held if name.startswith("decoder.bert.") and "crossattention" not in name}
        assert set(tied) == both
    else:
        assert len(tied) == fewer


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """A BERT and a GPT-2 of other tokens."""
    work, bert = tmp_path_factory.mktemp("halves"), {"family": "bert", "set": {"architectures": ["BertModel"]}}
    texts = [json.dumps({"text": f"{string.printable} words {i} and squares of {i * i}; " * 9}) for i in range(300)]
    (work / "texts.jsonl").write_text("\n".join(texts))
    size = {"hidden": 32, "layers": 1, "heads": 2, "data": str(work / "texts.jsonl")}
    return [
        rekindle.init(work / f"bpe-{n}", tokenizer=f"bpe:{n}", **size, **own)
        for n, own in ((340, bert), (300, {"family": "gpt2"}))
    ]


@pytest.mark.parametrize("share", ["embeddings", "all"])
def test_training_ties_them_again_and_writes_both(halves, tmp_path, share):
    base = halves[0]
    pairs = [json.dumps({"source": f"words {i} and {i * i}", "target": f"{i * i} and {i}"}) for i in range(400)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(pairs))
    source = rekindle.warm_start(base, "same", share=share).save(tmp_path / "start")
    how = {
        "objective": "seq2seq",
        "data": str(tmp_path / "pairs.jsonl"),
        "seq_len": 32,
        "batch_tokens": 512,
        "lr": 1e-3,
    }
    rekindle.train(source, tmp_path / "out", tokens=4096, **how)
    tied = json.loads((tmp_path / "out" / "config.json").read_text())["tied_weights"]
    before, after = tensors(source), tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], after[of]) for name, of in tied.items())
    assert not any(torch.equal(before[name], after[name]) for name in tied if name.endswith("query.weight"))
    rekindle.train(tmp_path / "out", tmp_path / "more", tokens=2048, **how)
    more = tensors(tmp_path / "more")
    assert all(torch.equal(more[name], more[of]) for name, of in tied.items())
    assert rows(tmp_path / "more", "step")[0]["loss"] < rows(tmp_path / "out", "step")[0]["loss"]
    moments = load_file(tmp_path / "out" / "optimizer" / "optimizer.safetensors")
    assert {name.rpartition(".")[0] for name in moments} == after.keys()  # of copies too
    assert all(torch.equal(moments[f"{name}.exp_avg"], moments[f"{of}.exp_avg"]) for name, of in tied.items())
    state = str(tmp_path / "out" / "optimizer")
    rekindle.train(tmp_path / "out", tmp_path / "on", tokens=512, optimizer_state=state, **how)
    deep = api.grow_depth(tmp_path / "out", factor=2, order="stack", tower="both")
    deep.save(tmp_path / "deep", optimizer_state=state)
    state = str(tmp_path / "deep" / "optimizer")
    rekindle.train(tmp_path / "deep", tmp_path / "deeper", tokens=512, optimizer_state=state, **how)


def test_copies_that_were_trained_apart_stay_two(tiny, tmp_path, caplog):
    from rekindle.train.ties import tie

    out = rekindle.warm_start(tiny("bert"), "same", share="embeddings").save(tmp_path / "out")
    model = loaded(out)
    with torch.no_grad():
        model.decoder.get_input_embeddings().weight[0] += 1
    tie(model)
    assert model.decoder.get_input_embeddings().weight is not model.encoder.get_input_embeddings().weight
    assert "are said to be copies and are none" in caplog.text


def test_each_half_has_its_own_tokens(halves, tmp_path):
    """Both tokenizers travel, and train."""
    model = rekindle.warm_start(*halves, cross="silent")
    assert any("the decoder's, which is another one, lies in decoder_tokenizer" in x for x in model.checkpoint.notes)
    out = model.save(tmp_path / "out")
    text = str(halves[0].parent / "texts.jsonl")
    assert api.verify(out, against=halves[0], tokens=128, data=text).held
    assert api.verify(out, against=halves[1], tokens=128, data=text).held
    texts = [(f"words {i} and {i * i}", f"squares of {i}") for i in range(200)]
    rows_ = [json.dumps({"source": source, "target": target}) for source, target in texts]
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows_))
    how = {"data": str(tmp_path / "pairs.jsonl"), "seq_len": 16, "batch_tokens": 512}
    trained = tmp_path / "trained"
    rekindle.train(out, trained, objective="seq2seq", tokens=4096, lr=1e-3, **how)
    losses = [row["loss"] for row in rows(trained, "step")]
    assert losses[-1] < losses[0]
    told = rekindle.evaluate(trained, objective="seq2seq", tokens=2048, seq_len=16, data=how["data"])["loss"]
    assert told == pytest.approx(rows(trained, "eval")[-1]["val_loss"], abs=0.05)
    again = api.grow_depth(trained, factor=2, order="llama-pro", tower="decoder").save(tmp_path / "again")
    for folder in (out, trained, again):
        reads, writes = load_tokenizer(folder), load_tokenizer(folder / "decoder_tokenizer")
        assert (len(reads), len(writes)) == (340, 300)
    with pytest.raises(RekindleError, match="span-corruption takes both from one text"):
        rekindle.train(out, tmp_path / "x", objective="span-corruption", tokens=4096, **how)


def test_pairs_are_in_the_tokens_of_both(halves):
    """Sources in those of one tokenizer, targets in those of the other."""
    made = [*map(load_tokenizer, halves)]
    encoder = Encoder(made[0], pairs=True, writer=made[1])
    (ids, loss), *_ = encoder.documents([Pair("def a return", "import self", "")])
    texts = zip(made, ("def a return", "import self"), strict=True)
    parts = [one(text)["input_ids"] + [one.eos_token_id] for one, text in texts]
    assert ids.tolist() == sum(parts, [])
    assert loss.tolist() == [False] * len(parts[0]) + [True] * len(parts[1])
    assert encoder.fingerprint != Encoder(made[0], pairs=True).fingerprint
    assert encoder.largest == 339


@pytest.mark.parametrize("tower", ["decoder", "both"])
def test_what_a_method_changes_is_one_no_more(tiny, tmp_path, tower):
    """Layers that a tower gets, or that get another number; what was not touched stays one."""
    pair = rekindle.warm_start(tiny("bert"), "same", share="all").save(tmp_path / "pair")
    model = rekindle.grow_depth(pair, factor=2, order="interpose", tower=tower)
    tied, held = model.checkpoint.config["tied_weights"], tensors(model.save(tmp_path / "out"))
    assert "decoder.bert.embeddings.word_embeddings.weight" in tied
    assert {int(name.split(".")[4]) for name in tied if ".layer." in name} == {0}
    assert all(torch.equal(held[name], held[of]) for name, of in tied.items())
    total = sum(x.numel() for x in held.values())
    assert model.checkpoint.parameters()["total"] == total - sum(held[name].numel() for name in tied)
    untouched = rekindle.rewrite(pair).checkpoint
    assert len(untouched.config["tied_weights"]) > len(tied)


# -- published ---------------------------------------------------------------------------------------------------

BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
CONFIGS = {
    "BERT": {"model_type": "bert", "architectures": ["BertModel"], "vocab_size": 30522, "type_vocab_size": 2, **BASE},
    "ROBERTA": {"model_type": "roberta", "architectures": ["RobertaModel"], "vocab_size": 50265, "type_vocab_size": 1,
                "max_position_embeddings": 514, **BASE},
    "GPT": {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 50257, "n_positions": 512,
            "n_embd": 768, "n_layer": 12, "n_head": 12},
}  # fmt: skip
TABLE = [  # millions of all parameters: table 1 of arXiv 1907.12461
    ("rnd2rnd", {"encoder": "random:BERT"}, 221),
    ("bert2rnd", {"encoder": "BERT"}, 221),
    ("rnd2bert", {"decoder": "BERT"}, 221),
    ("bert2bert", {"encoder": "BERT"}, 221),
    ("bertshare", {"encoder": "BERT"}, 136),
    ("robertashare", {"encoder": "ROBERTA"}, 152),
    ("rnd2gpt", {"decoder": "GPT"}, 238),
    ("bert2gpt", {"encoder": "BERT", "decoder": "GPT"}, 260),
    ("roberta2gpt", {"encoder": "ROBERTA", "decoder": "GPT"}, 276),
]


@pytest.mark.parametrize(
    ("variant", "halves", "millions"), TABLE, ids=lambda value: value if isinstance(value, str) else ""
)
def test_the_papers_variants_have_its_parameters(tmp_path, monkeypatch, variant, halves, millions):
    monkeypatch.chdir(tmp_path)
    for name, config in CONFIGS.items():
        Path(name).mkdir()
        (Path(name) / "config.json").write_text(json.dumps(config))
    found = rekindle.warm_start(**halves, variant=variant).checkpoint.parameters()["total"] / 1e6
    assert found == pytest.approx(millions, rel=0.011)


# -- refused, and told -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("halves", "options", "words"),
    [
        (("random", "random"), {}, "nothing says their sizes"),
        (("random:bert", "same"), {}, "same as the encoder, which has no SRC"),
        (("olmo2", "bert"), {}, "holds this olmo2 as the encoder of a pair"),
        (("gpt2", "same"), {}, "holds this gpt2 as the encoder"),
        (("modernbert", "same"), {}, "holds this modernbert as the decoder"),
        (("bert", "olmo2"), {}, "holds this olmo2 as the decoder"),
        (("random", "olmo2"), {}, "^No class of transformers holds this olmo2 as the decoder"),
        (("bert", "same"), {"cross": "silent"}, "Cross-attention of a bert-generation cannot be silent"),
        (("bert", "random"), {"cross": "copy"}, "has no self-attention"),
        (("bert", "gpt2"), {"share": "all"}, "A bert-generation and a gpt2 cannot be one"),
        (("bert", "bert 1"), {"share": "all"}, "come from two checkpoints, and --share all has room for one"),
        (("bert", "same"), {"share": "all", "decoder_layers": "first:1"}, "have other layers of their SRC"),
        (("bert", "same"), {"encoder_layers": "0,9"}, "There is no layer 9"),
        (("bert", "same"), {"encoder_layers": "some"}, "--encoder-layers 'some' names no layers"),
        (("bert", "roberta"), {"variant": "bert2bert"}, "The decoder of bert2bert is a bert, and this is a roberta"),
        (("bert", "random"), {"variant": "roberta2gpt"}, "this is a bert"),
        (("bert", "bert"), {"variant": "bert2rnd"}, "The decoder of bert2rnd is drawn"),
        (("bert", "same"), {"variant": "bert2bret"}, "The paper has no variant 'bert2bret'"),
        (("bert", "same"), {"variant": "bertshare", "share": "none"}, "bertshare has --share all"),
    ],
)
def test_what_cannot_be_joined_is_a_sentence(tiny, halves, options, words):
    def source(name: str) -> Path | str:
        if name in ("random", "same"):
            return name
        word, _, family = name.rpartition(":")
        folder = tiny(family.split()[0], seed=int(family[-1]) if " " in family else 0)
        return f"{word}:{folder}" if word else folder

    own = [source(name) for name in halves]
    with pytest.raises(RekindleError, match=words):
        rekindle.warm_start(*own, **options)


def test_one_model_has_one_dtype_and_one_size_where_it_is_one(tiny):
    with pytest.raises(RekindleError, match="The encoder's weights are F32, the decoder's BF16"):
        rekindle.warm_start(tiny("bert"), tiny("gpt2", dtype="bfloat16"))
    with pytest.raises(RekindleError, match="vocab_size is 64, the decoder's 80"):
        rekindle.warm_start(tiny("bert"), tiny("gpt2", vocab_size=80), share="embeddings")


def test_widths_that_differ_get_a_projection(tiny, tmp_path):
    out = rekindle.warm_start(tiny("bert"), tiny("gpt2", hidden_size=48)).save(tmp_path / "out")
    held = tensors(out)
    assert held["enc_to_dec_proj.weight"].shape == (48, 32)
    assert not held["enc_to_dec_proj.bias"].any()
    with torch.no_grad():
        assert loaded(out)(**shown()).logits.isfinite().all()


def test_layers_are_chosen_and_the_rest_is_said_to_be_left_out(tiny, tmp_path):
    source = tiny("bert", num_hidden_layers=4)
    model = rekindle.warm_start(source, "same", encoder_layers="every:2", decoder_layers="first:1")
    assert [own.num_layers for own in model.checkpoint.settings.towers.values()] == [2, 1]
    held, before = tensors(model.save(tmp_path / "out")), tensors(source)
    assert torch.equal(
        held["encoder.encoder.layer.1.output.dense.weight"], before["encoder.layer.3.output.dense.weight"]
    )
    assert model.checkpoint.promise.halves == {"encoder": "lossy", "decoder": "lossy"}


@pytest.mark.parametrize(
    ("special", "ids"),
    [
        ({"cls_token": "c", "sep_token": "s", "pad_token": "p", "eos_token": "e"}, (0, 1, 2)),
        ({"bos_token": "c", "eos_token": "e"}, (0, 3, 3)),
        ({"eos_token": {"content": "e", "lstrip": False}}, (3, 3, 3)),
        ({"pad_token": "p"}, (2, 2, 2)),
        ({}, (0, 0, 0)),
    ],
)
def test_tokens_that_bound_a_text_are_the_tokenizers(tiny, tmp_path, special, ids):
    source = tmp_path / "bert"
    shutil.copytree(tiny("bert"), source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(
        json.dumps(config | {f"{name}_token_id": None for name in ("bos", "eos", "pad")})
    )
    (source / "vocab.txt").write_text("\n".join("cspe" + "".join(map(chr, range(0x4E00, 0x4E00 + 60)))))
    (source / "tokenizer_config.json").write_text(json.dumps(special))
    out = rekindle.warm_start(source, "same").save(tmp_path / "out")
    for name in ("config.json", "generation_config.json"):
        said = json.loads((out / name).read_text())
        assert tuple(said[key] for key in ("decoder_start_token_id", "eos_token_id", "pad_token_id")) == ids


def test_a_token_that_has_no_row_bounds_no_text(tiny, tmp_path):
    source = tmp_path / "bert"
    shutil.copytree(tiny("bert"), source)
    (source / "vocab.txt").write_text("\n".join(map(chr, range(0x4E00, 0x4E00 + 80))))
    (source / "tokenizer_config.json").write_text(json.dumps({"cls_token": chr(0x4E00 + 70)}))
    with pytest.raises(RekindleError, match="decoder_start_token_id would be 70, and the decoder's vocabulary has 64"):
        rekindle.warm_start(source, "same")


def test_a_recipe_names_its_halves_and_random_ones_sizes(tiny, tmp_path):
    model = rekindle.warm_start(f"random:{tiny('roberta')}", tiny("gpt2"), seed=3)
    out = model.save(tmp_path / "out")
    again = api.load_recipe(out / "rekindle.yaml")[0].save(tmp_path / "again")
    assert (out / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    assert f"rekindle warm-start {out} --encoder random:{tiny('roberta')}" in (out / "README.md").read_text()
    embed = tensors(out)["encoder.embeddings.word_embeddings.weight"]
    assert float(embed.std()) == pytest.approx(0.3, rel=0.1)  # initializer_range of the tiny ones
    assert not np.allclose(embed, tensors(tiny("roberta"))["embeddings.word_embeddings.weight"])


def test_a_model_says_as_which_half_it_would_do(tiny):
    assert api.inspect(tiny("bert"))["can"]["warm-start"] == "yes: as its encoder or decoder"
    assert api.inspect(tiny("gpt2"))["can"]["warm-start"] == "yes: as its decoder"
    assert api.inspect(tiny("llama"))["can"]["warm-start"] == "yes: as its encoder or decoder"
    assert api.inspect(tiny("olmo2"))["can"]["warm-start"].startswith("no: No class of transformers holds this olmo2")


@pytest.mark.slow
def test_a_real_bert_twice(minilm, tmp_path):
    """Parameters of MiniLM as two models, and as one."""
    counts = {}
    for share in ("none", "embeddings", "all"):
        model = rekindle.warm_start(minilm, "same", share=share)
        counts[share] = model.checkpoint.parameters()["total"]
        out = model.save(tmp_path / share)
        verdict = api.verify(out, against=minilm, tokens=512)
        assert verdict.held, verdict
    assert counts["none"] == 48_712_506
    assert counts["all"] / counts["embeddings"] == pytest.approx(0.70, abs=0.02)
    assert counts["all"] / counts["none"] == pytest.approx(0.54, abs=0.01)


@pytest.mark.parametrize("told", [["a", "b"], "all", {"a": 1}, {"a": ["b"]}])
def test_a_config_that_says_nonsense_of_what_is_one_is_refused(tiny, tmp_path, told):
    out = rekindle.warm_start(tiny("bert"), "same", share="all").save(tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"tied_weights": told}))
    with pytest.raises(RekindleError, match="tied_weights is no map of names to names"):
        api.open(out)


def test_the_card_says_which_tensor_is_made_of_which(tiny, tmp_path):
    reads, writes = tiny("bert"), tiny("gpt2")
    out = rekindle.warm_start(reads, writes, cross="silent", encoder_layers="0,2").save(tmp_path / "out")
    made = json.loads((out / "rekindle.json").read_text())["made_of"]
    assert made["encoder: positions"] == "encoder, its positions, token_types"
    own = next(of for what, of in made.items() if what.startswith("encoder, layers 0 to 1: attn.q"))
    assert own == "encoder, layers 0, 2"
    crossed = next(of for what, of in made.items() if what.startswith("decoder, layers 0 to 2: cross.q"))
    assert crossed == "decoder, layers 0 to 2, its attn"
    assert made["decoder, layers 0 to 2: cross.o, cross.o.bias"] == "one value each"
    named = [part for what in made for part in what.rpartition(": ")[2].split(", ")]
    parts = {(role.tower, role.part) for role in api.open(out).checkpoint.rows}
    assert len(named) == len(parts)  # each once
    card = (out / "README.md").read_text()
    assert "## What it is made of" in card
    assert all(of in card for of in made.values())
    api.verify(out, against=reads, tokens=128)  # which writes the card again
    assert "## What it is made of" in (out / "README.md").read_text()
    drawn = rekindle.warm_start(reads, "random").save(tmp_path / "drawn")
    told = json.loads((drawn / "rekindle.json").read_text())["made_of"]
    assert any(of == "drawn anew" and "attn.q" in what for what, of in told.items())
    assert "made_of" not in json.loads((api.rewrite(reads).save(tmp_path / "other") / "rekindle.json").read_text())


@pytest.mark.parametrize("both", [True, False])
def test_sizes_may_come_from_a_config_alone(tiny, tmp_path, both):
    """And nothing that lies beside it travels along."""
    source = tiny("bert", num_hidden_layers=2)
    alone = tmp_path / "some" / "sizes.json"
    alone.parent.mkdir()
    shutil.copy(source / "config.json", alone)
    (alone.parent / "tokenizer.json").write_text("{}")
    encoder = f"random:{alone}" if both else tiny("bert")
    model = rekindle.warm_start(encoder, "random" if both else f"random:{alone}")
    assert not any("nothing can be written" in note for note in model.checkpoint.notes)
    out = model.save(tmp_path / "out")
    assert not list(api.sound(out).problems())
    assert not (out / "tokenizer.json").exists()
    layers = [own.num_layers for own in api.open(out).checkpoint.settings.towers.values()]
    assert layers == ([2, 2] if both else [3, 2])
    with pytest.raises(RekindleError, match=r"only a config\.json: there are no weights"):
        rekindle.warm_start(str(alone), "random").save(tmp_path / "no")


def test_what_is_one_may_be_written_once(halves, tmp_path):
    """Then it is Rekindle alone that reads it, and computes the same to the bit; `train` writes it once again."""
    twice = rekindle.warm_start(halves[0], "same", share="all").save(tmp_path / "twice")
    once = rekindle.warm_start(halves[0], "same", share="all", one_copy=True).save(tmp_path / "once")
    both, one = tensors(twice), tensors(once)
    tied = json.loads((once / "config.json").read_text())["tied_weights"]
    assert both.keys() - one.keys() == tied.keys()
    assert all(torch.equal(one[name], both[name]) for name in one)
    model, inputs = rekindle.load(once), shown()
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, loaded(twice)(**inputs).logits)
        assert not torch.equal(model(**inputs).logits, loaded(once)(**inputs).logits)  # drawn anew, as said
    assert len({id(p) for p in model.parameters()}) == len(one)
    verdict = api.verify(once, against=halves[0], tokens=128)
    assert verdict.held
    assert verdict.promise == "exact"
    assert not list(api.sound(once).problems())
    pairs = [json.dumps({"source": f"words {i}", "target": f"{i * i}"}) for i in range(200)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(pairs))
    how = {
        "objective": "seq2seq",
        "data": str(tmp_path / "pairs.jsonl"),
        "seq_len": 16,
        "batch_tokens": 256,
        "lr": 1e-3,
    }
    rekindle.train(once, tmp_path / "out", tokens=1024, **how)
    assert tensors(tmp_path / "out").keys() == one.keys()
    state = str(tmp_path / "out" / "optimizer")
    rekindle.train(tmp_path / "out", tmp_path / "more", tokens=512, optimizer_state=state, **how)
    again = api.rewrite(tmp_path / "out").save(tmp_path / "again")
    assert tensors(again).keys() == one.keys()
    with pytest.raises(RekindleError, match="nothing as one"):
        rekindle.warm_start(halves[0], "same", share="none", one_copy=True)
