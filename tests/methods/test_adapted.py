"""Decoders adapted: gemma2 into T5Gemma, gemma3 into T5Gemma 2, which transformers loads, writes with, and trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import rekindle
from rekindle import api
from rekindle.apply.load import quietly
from rekindle.errors import RekindleError

CROSS = ("random", "copy", "silent")


def loaded(folder: Path):
    from transformers import AutoModelForSeq2SeqLM

    with quietly():
        return AutoModelForSeq2SeqLM.from_pretrained(folder).eval()


def shown(length: int = 12) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    source, target = (torch.randint(3, 64, (2, length), generator=draw) for _ in range(2))
    return {"input_ids": source, "attention_mask": torch.ones_like(source), "decoder_input_ids": target}


@pytest.mark.parametrize("cross", CROSS)
@pytest.mark.parametrize("tied", [True, False])
def test_a_gemma_twice_looks_back_reads_and_is_saved_as_it_was_loaded(tiny, tmp_path, cross, tied):
    out = rekindle.warm_start(tiny("gemma2", tie_word_embeddings=tied), "same", cross=cross).save(tmp_path / "out")
    model, inputs = loaded(out), shown()
    assert type(model).__name__ == "T5GemmaForConditionalGeneration"
    with torch.no_grad():
        one = model(**inputs).logits
        later = inputs["decoder_input_ids"].clone()
        later[:, 7:] = 5
        assert torch.equal(model(**{**inputs, "decoder_input_ids": later}).logits[:, :7], one[:, :7])  # causal
        other = model(**{**inputs, "input_ids": inputs["input_ids"].flip(1)}).logits
        assert ((other - one).abs().max() > 1e-4) == (cross != "silent")
        read = model.get_encoder()(inputs["input_ids"]).last_hidden_state
        changed = model.get_encoder()(torch.cat([inputs["input_ids"][:, :-1], later[:, -1:]], 1)).last_hidden_state
        assert (read[:, 0] - changed[:, 0]).abs().max() > 1e-6  # the encoder looks ahead too
        written = [
            model.generate(inputs["input_ids"], max_new_tokens=14, do_sample=False, use_cache=c) for c in (True, False)
        ]
        assert torch.equal(*written)
        model.save_pretrained(tmp_path / "again")
        assert torch.equal(loaded(tmp_path / "again")(**inputs).logits, one)


@pytest.mark.parametrize(("cross", "promise"), [("silent", "exact"), ("copy", "lossy"), ("random", "lossy")])
def test_the_decoder_writes_as_before_where_cross_attention_is_silent(tiny, tmp_path, cross, promise):
    writes = tiny("gemma2", seed=1)
    out = rekindle.warm_start(tiny("gemma2"), writes, cross=cross).save(tmp_path / "out")
    verdict = api.verify(out, against=writes, tokens=256)
    assert verdict.promise == promise
    assert verdict.held, verdict
    assert verdict.compared == "logits of the decoder"
    assert (verdict.relative_difference == 0.0) == (promise == "exact")
    read = api.verify(out, against=tiny("gemma2"), tokens=256)
    assert read.promise == "lossy"  # it looks both ways now
    assert read.compared == "hidden states of the encoder"


def test_each_tensor_is_where_t5gemma_has_it(tiny, tmp_path):
    source = tiny("gemma2")
    child = load_file(rekindle.warm_start(source, "same", cross="silent").save(tmp_path / "out") / "model.safetensors")
    before = load_file(source / "model.safetensors")
    for tower in ("encoder", "decoder"):
        assert torch.equal(child[f"model.{tower}.embed_tokens.weight"], before["model.embed_tokens.weight"])
        for ours, theirs in (("pre_self_attn", "input"), ("post_self_attn", "post_attention")):
            name = f"model.{tower}.layers.1.{ours}_layernorm.weight"
            assert torch.equal(child[name], before[f"model.layers.1.{theirs}_layernorm.weight"])
    for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
        mine = child[f"model.decoder.layers.2.cross_attn.{part}.weight"]
        assert torch.equal(mine, before[f"model.layers.2.self_attn.{part}.weight"])
    assert (child["model.decoder.layers.2.post_cross_attn_layernorm.weight"] == -1).all()


def test_silence_is_by_gain_and_does_not_block_the_gradient(tiny, tmp_path):
    """By an output projection of 0, whose norm has a slope of 1 / sqrt(eps), the gradient is tens of times as large."""
    model = loaded(rekindle.warm_start(tiny("gemma2"), "same", cross="silent").save(tmp_path / "out"))
    own = shown()
    model(**own, labels=own["decoder_input_ids"]).loss.backward()
    gains = [p.grad.norm() for n, p in model.named_parameters() if "post_cross" in n]
    assert all(0 < gain < 50 for gain in gains)


def test_halves_of_two_sizes(tiny, tmp_path):
    reads = tiny("gemma2", seed=1, hidden_size=48, num_hidden_layers=2)
    out = rekindle.warm_start(reads, tiny("gemma2")).save(tmp_path / "out")
    model = loaded(out)
    assert model.model.decoder.layers[0].cross_attn.k_proj.weight.shape == (32, 48)
    with torch.no_grad():
        assert model(**shown()).logits.isfinite().all()
    config = json.loads((out / "config.json").read_text())
    assert config["decoder"]["cross_attention_hidden_size"] == 48
    with pytest.raises(RekindleError, match="48 and 32 wide"):
        rekindle.warm_start(reads, tiny("gemma2"), cross="copy")


def test_some_layers_keep_their_windows(tiny, tmp_path):
    out = rekindle.warm_start(tiny("gemma2"), "same", encoder_layers="0,2").save(tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert config["encoder"]["layer_types"] == ["sliding_attention", "sliding_attention"]
    assert config["decoder"]["layer_types"] == ["sliding_attention", "full_attention", "sliding_attention"]
    assert loaded(out)


def test_one_drawn(tiny, tmp_path):
    for encoder, decoder in (("random", tiny("gemma2")), (tiny("gemma2"), "random")):
        out = rekindle.warm_start(encoder, decoder).save(tmp_path / str(encoder).rpartition("/")[2])
        assert loaded(out).model.encoder.layers[0].pre_self_attn_layernorm.weight.shape == (32,)


@pytest.mark.parametrize(
    ("reads", "writes", "words"),
    [
        ("bert", "gemma2", "joins a bert that reads and a gemma2 that writes"),
        ("gemma2", "gpt2", "joins a gemma2 that reads and a gpt2 that writes"),
        ("olmo2", "same", "No class of transformers holds this olmo2"),
    ],
)
def test_no_class_joins_them(tiny, reads, writes, words):
    with pytest.raises(RekindleError, match=words):
        rekindle.warm_start(tiny(reads), writes if writes == "same" else tiny(writes))


# T5Gemma 2


def test_a_gemma3_twice_is_a_t5gemma2_with_nothing_new_but_an_eye(tiny, tmp_path):
    source = tiny("gemma3_text")
    out = rekindle.warm_start(source, "same").save(tmp_path / "out")
    child, before = load_file(out / "model.safetensors"), load_file(source / "model.safetensors")
    eye = [name for name in child if "vision" in name or "multi_modal" in name or "eoi" in name]
    assert sum(child[name].numel() for name in eye) < 2000
    assert len(child) - len(eye) == 2 * len(before) - 1  # one embedding matrix
    assert torch.equal(child["model.encoder.embed_tokens.weight"], before["model.embed_tokens.weight"])
    for tower in ("encoder", "decoder"):
        mine = child[f"model.{tower}.layers.1.self_attn.k_norm.weight"]
        assert torch.equal(mine, before["model.layers.1.self_attn.k_norm.weight"])
    verdict = api.verify(out, against=source, tokens=256)
    assert verdict.promise == "exact"
    assert verdict.relative_difference < 1e-5
    model, inputs = loaded(out), shown()
    assert type(model).__name__ == "T5Gemma2ForConditionalGeneration"
    with torch.no_grad():
        one = model(**inputs).logits
        other = model(**{**inputs, "input_ids": inputs["input_ids"].flip(1)}).logits
        assert (other - one).abs().max() > 1e-4  # it looks at what was read
        later = inputs["decoder_input_ids"].clone()
        later[:, 7:] = 5
        assert torch.equal(model(**{**inputs, "decoder_input_ids": later}).logits[:, :7], one[:, :7])
        written = [
            model.generate(inputs["input_ids"], max_new_tokens=14, do_sample=False, use_cache=c) for c in (True, False)
        ]
        assert torch.equal(*written)
        model.save_pretrained(tmp_path / "again")
        assert torch.equal(loaded(tmp_path / "again")(**inputs).logits, one)


def test_it_trains(tiny, tmp_path):
    model = loaded(rekindle.warm_start(tiny("gemma3_text"), "same").save(tmp_path / "out")).train()
    own = shown()
    model(**own, labels=own["decoder_input_ids"]).loss.backward()
    without = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert all("vision" in name or "multi_modal" in name or "eoi" in name for name in without)


def test_some_of_its_layers_and_a_half_that_is_drawn(tiny, tmp_path):
    source = tiny("gemma3_text")
    for number, how in enumerate(({"decoder": "same", "encoder_layers": "first:2"}, {"decoder": "random"})):
        out = rekindle.warm_start(source, how.pop("decoder"), **how).save(tmp_path / str(number))
        assert loaded(out)(**shown()).logits.isfinite().all()
    out = rekindle.warm_start("random", source).save(tmp_path / "drawn")
    embed = load_file(source / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(load_file(out / "model.safetensors")["model.encoder.embed_tokens.weight"], embed)
    assert api.verify(out, against=source, tokens=256).relative_difference < 1e-5


@pytest.mark.parametrize(
    ("changes", "seeds", "how", "words"),
    [
        ({}, 1, {"cross": "silent"}, "has no cross-attention that could begin as anything"),
        ({}, 2, {}, "one embedding matrix, and these two checkpoints each their own"),
        ({"tie_word_embeddings": False}, 1, {}, "head is its embeddings, and this one's is not"),
    ],
)
def test_what_a_t5gemma2_cannot_be(tiny, changes, seeds, how, words):
    writes = tiny("gemma3_text", seed=1, **changes) if seeds == 2 else "same"
    with pytest.raises(RekindleError, match=words):
        rekindle.warm_start(tiny("gemma3_text", **changes), writes, **how)


# Decoders of another kind


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"{n} and {n * n} are a number and its square.\n\n" for n in range(4000)))
    return path


@pytest.fixture(scope="module")
def learned(text, tmp_path_factory):
    """Tiny decoders that have learned a little: of drawn ones nothing is of one size."""
    made = {}

    def make(family: str, **own) -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            size = {"hidden": 32, "layers": 2, "heads": 4, "ffn": 64, "context": 64}
            api.init(folder / "start", family=family, tokenizer="bpe:400", data=str(text), **size, **own)
            api.train(
                folder / "start", folder / "end", data=str(text), tokens="60k", seq_len=64, batch_tokens=1024, lr=1e-2
            )
            made[family] = folder / "end"
        return made[family]

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "own", "becomes"),
    [
        ("llama", {"tie_embeddings": False}, "T5Gemma"),
        ("mistral", {"tie_embeddings": True}, "T5Gemma"),
        ("qwen2", {}, "T5Gemma"),
        ("qwen3", {"tie_embeddings": True}, "T5Gemma2"),
    ],
)
def test_a_decoder_of_another_kind_writes_nearly_as_before(learned, text, tmp_path, family, own, becomes):
    """What its branches put out has one size each, measured; with gains of 1 it would write something else."""
    source = learned(family, **own)
    cross = {} if becomes == "T5Gemma2" else {"cross": "silent"}
    out = rekindle.warm_start(source, "same", data=str(text), data_tokens=8192, **cross).save(tmp_path / "out")
    assert type(loaded(out)).__name__ == f"{becomes}ForConditionalGeneration"
    verdict = api.verify(out, against=source, tokens=512, data=str(text))
    assert verdict.promise == "lossy"
    assert verdict.compared == "logits of the decoder"
    lost = verdict.loss_child - verdict.loss_parent
    assert lost < 0.35
    kept = load_file(out / "model.safetensors")
    for name, gain in kept.items():
        if "post_self_attn" in name or "post_feedforward" in name:
            gain.zero_()
    save_file(kept, out / "model.safetensors", metadata={"format": "pt"})
    spoilt = api.verify(out, against=source, tokens=512, data=str(text))
    assert spoilt.loss_child - spoilt.loss_parent > 2 * abs(lost) + 0.05


@pytest.mark.slow
def test_sizes_of_branches_are_those_of_transformers(learned, text, tmp_path):
    source = learned("llama", tie_embeddings=False)
    out = rekindle.warm_start(source, "same", data=str(text), data_tokens=4096).save(tmp_path / "out")
    from rekindle.train.tokens import sample_tokens

    rows = torch.from_numpy(sample_tokens(source, str(text), 4096, 64, "train")).long()
    from transformers import LlamaForCausalLM

    model, sizes = LlamaForCausalLM.from_pretrained(source), {}
    for layer, block in enumerate(model.model.layers):
        for of, module in (("self_attn", block.self_attn.o_proj), ("feedforward", block.mlp.down_proj)):

            def keep(_, __, y, key=(layer, of)):
                sizes[key] = y.pow(2).mean(-1).sqrt().mean().item()

            module.register_forward_hook(keep)
    with torch.no_grad():
        model(rows)
    child = load_file(out / "model.safetensors")
    for (layer, of), size in sizes.items():
        for tower in ("encoder", "decoder"):
            gain = child[f"model.{tower}.layers.{layer}.post_{of}_layernorm.weight"]
            assert torch.allclose(1 + gain, torch.tensor(size), rtol=1e-4)


def test_a_text_is_for_what_is_measured(tiny):
    with pytest.raises(RekindleError, match="Nothing is measured"):
        rekindle.warm_start(tiny("gemma2"), "same", data="stdlib")
    with pytest.raises(RekindleError, match="this one's is not"):
        rekindle.warm_start(tiny("qwen3", tie_word_embeddings=False), "same")
