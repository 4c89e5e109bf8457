"""Moments of the inputs of attention on text: of any family, whole or block by block, padded or not; and their use."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from tiny_models import DECODERS
from train.train_helpers import write_corpus

from rekindle import api
from rekindle.apply.calibrate import Calibration, nbytes
from rekindle.apply.load import load_model
from rekindle.apply.probe import PROBES
from rekindle.errors import RekindleError
from rekindle.store.manifest import read_manifest


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(a llama with a tokenizer, trained a little, its corpus)"""
    folder = tmp_path_factory.mktemp("calibrate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REKINDLE_CACHE", str(folder / "cache"))
        corpus = folder / "stories.jsonl"
        write_corpus(corpus)
        shape = {"hidden": 32, "layers": 2, "heads": 4, "ffn": 64, "context": 64, "tokenizer": "bpe:300"}
        api.init(folder / "start", data=str(corpus), **shape)
        how = {"batch_tokens": 512, "seq_len": 32, "lr": 1e-2, "eval_tokens": 512}
        api.train(folder / "start", folder / "model", data=str(corpus), tokens=30 * 512, **how)
        yield folder / "model", corpus


def some_ids(checkpoint, rows=6, length=12):
    import torch

    return torch.from_numpy(np.random.default_rng(0).integers(3, checkpoint.settings.vocab_size, (rows, length)))


def moments(checkpoint, batches, **how):
    made = Calibration(checkpoint, batches, **how)
    reads = next(iter(checkpoint.settings.towers.values()), checkpoint.settings)
    return np.stack([made.attention_inputs(layer) for layer in range(reads.num_layers)])


TWO_TOWERS = ["t5", "t5gemma", "t5gemma2"]


@pytest.mark.parametrize("family", [*DECODERS, "bert", *TWO_TOWERS])
def test_moments_are_those_of_what_enters_attention(tiny, family):
    """Of the first layer, of what reads the text, where transformers calls its attention."""
    import torch

    checkpoint = api.open(tiny(family)).checkpoint
    if checkpoint.settings.latent_attention:
        with pytest.raises(RekindleError, match="latent attention"):
            Calibration(checkpoint, [])
        return
    probe, ids, seen = PROBES[checkpoint.settings.output], some_ids(checkpoint), {}
    with torch.no_grad():
        model = load_model(checkpoint.folder.path, output=checkpoint.settings.output).eval()
        ends = (".0.self_attn", ".0.attention", ".0.attn", ".0.SelfAttention")
        block = next(m for name, m in model.named_modules() if name.endswith(ends) and "vision" not in name)
        block.register_forward_pre_hook(
            lambda module, args, kwargs: seen.update(x=args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
        model.base_model(**probe.inputs(model, probe.shown(ids)))
    x = seen["x"].flatten(0, 1).double().numpy()
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    found = moments(checkpoint, map(probe.shown, ids.split(2)))
    np.testing.assert_allclose(found[0], x.T @ x / len(x), rtol=1e-4, atol=1e-6)
    assert (found[:, -1, -1] == 1).all()


@pytest.mark.parametrize("family", ["llama", "phi3", "mixtral", "bert", *TWO_TOWERS])
def test_block_by_block_finds_the_same(tiny, family):
    checkpoint = api.open(tiny(family)).checkpoint
    batches = [PROBES[checkpoint.settings.output].shown(some_ids(checkpoint))]
    whole, blocks = (moments(checkpoint, batches, blockwise=blockwise) for blockwise in (False, True))
    np.testing.assert_allclose(whole, blocks, rtol=1e-4, atol=1e-5)


def test_padding_does_not_count(tiny):
    import torch

    checkpoint = api.open(tiny("bert")).checkpoint
    ids = some_ids(checkpoint, rows=2)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    padded = moments(checkpoint, [{"input_ids": ids, "attention_mask": mask}])
    apart = moments(checkpoint, [{"input_ids": ids[:1]}, {"input_ids": ids[1:, :5]}])
    np.testing.assert_allclose(padded, apart, rtol=1e-4, atol=1e-5)


def test_memory_of_the_moments_is_as_said(tiny):
    checkpoint = api.open(tiny("llama")).checkpoint
    assert nbytes(checkpoint) == Calibration(checkpoint, [])._moments.nbytes == 8 * 3 * 33 * 33


def test_a_model_that_computes_nan_is_refused(tiny, tmp_path):
    from safetensors.torch import load_file, save_file

    spoilt = api.rewrite(tiny("llama")).save(tmp_path / "spoilt")
    weights = load_file(spoilt / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(weights, spoilt / "model.safetensors", metadata={"format": "pt"})
    checkpoint = api.open(spoilt).checkpoint
    with pytest.raises(RekindleError, match="NaN or infinite values on this text"):
        Calibration(checkpoint, [{"input_ids": some_ids(checkpoint)}])


# -- gqa --data ------------------------------------------------------------------------------------------------


def losses(folder, corpus, out, **options):
    child = api.gqa(folder, **options).save(out)
    return api.verify(child, against=folder, data=str(corpus), tokens=4096).loss_child


def test_heads_measured_on_text_lose_less_of_it(trained, tmp_path):
    folder, corpus = trained
    mean = losses(folder, corpus, tmp_path / "mean", kv_heads=1)
    weights = losses(folder, corpus, tmp_path / "weights", kv_heads=1, pool="aligned")
    text = losses(folder, corpus, tmp_path / "text", kv_heads=1, pool="aligned", data=str(corpus), data_tokens=4096)
    assert text < weights < mean


def test_heads_of_an_encoder_are_measured_on_what_it_reads(trained, tmp_path):
    _, corpus = trained
    shape = {"family": "t5gemma", "hidden": 32, "layers": 2, "heads": 4, "ffn": 64, "tokenizer": "bpe:300"}
    folder = api.init(tmp_path / "start", data=str(corpus), **shape)
    options = {"kv_heads": 1, "pool": "aligned", "tower": "encoder"}
    measured = api.gqa(folder, **options, data=str(corpus), data_tokens=512).save(tmp_path / "text")
    by_weights = api.gqa(folder, **options).save(tmp_path / "weights")
    rows = [read_manifest(out).measured for out in (measured, by_weights)]
    assert rows[0].keys() == rows[1].keys() == {f"encoder, layer {i}, 4 to 1 key-value heads" for i in (0, 1)}
    assert all(rows[0][row] != rows[1][row] for row in rows[0])
    assert api.verify(measured, against=folder, tokens=128).loss_child


def test_text_is_of_the_training_part_and_leads_to_the_same_bytes_again(trained, tmp_path, monkeypatch):
    folder, corpus = trained
    ids = []
    old = Calibration.__init__
    monkeypatch.setattr(
        Calibration,
        "__init__",
        lambda self, checkpoint, batches, **how: old(
            self, checkpoint, [ids.append(batch["input_ids"]) or batch for batch in batches], **how
        ),
    )
    options = {"kv_heads": 2, "pool": "aligned", "data": str(corpus), "data_tokens": 512}
    first = api.gqa(folder, **options).save(tmp_path / "first")
    second = api.gqa(folder, **options).save(tmp_path / "second")
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert len(ids) == 2  # one run for all layers
    assert 256 <= ids[0].numel() <= 512
    from rekindle.train.tokens import sample_tokens

    training = sample_tokens(folder, str(corpus), 512, 64, "train")
    assert (ids[0].numpy() == training).all()


def test_rows_may_have_their_text_under_another_name(trained, tmp_path):
    folder, corpus = trained
    rows = [json.loads(line) for line in corpus.read_text().splitlines()]
    other = tmp_path / "rows.jsonl"
    other.write_text("".join(json.dumps({"title": "a:b", "body: text": row["text"]}) + "\n" for row in rows))
    options = {"kv_heads": 2, "pool": "aligned", "data_tokens": 512}
    with pytest.raises(RekindleError) as refused:
        api.gqa(folder, data=str(other), **options).save(tmp_path / "refused")
    assert "--text-column" in refused.value.hint
    first = api.gqa(folder, data=str(corpus), **options).save(tmp_path / "first")
    second = api.gqa(folder, data=str(other), text_column="body: text", **options).save(tmp_path / "second")
    third = api.gqa(folder, data=str(corpus), text_column="text", **options).save(tmp_path / "third")
    assert len({(out / "model.safetensors").read_bytes() for out in (first, second, third)}) == 1
    with pytest.raises(RekindleError, match="--text-column would have no effect"):
        api.gqa(folder, text_column="text", kv_heads=2, pool="aligned")


def test_kept_measurements_need_no_text(trained, tmp_path, monkeypatch):
    folder, corpus = trained
    options = {"kv_heads": 1, "pool": "aligned", "data": str(corpus), "data_tokens": 512}
    first = api.gqa(folder, **options).save(tmp_path / "first")
    monkeypatch.setattr("rekindle.apply.calibrate.Calibration.__init__", None)
    second = api.gqa(folder, **options).save(tmp_path / "second", measurements=str(first))
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_kept_measurements_are_of_the_text_that_was_read(trained, tmp_path):
    folder, corpus = trained
    text = tmp_path / "text.jsonl"
    text.write_bytes(corpus.read_bytes())
    options = {"kv_heads": 1, "pool": "aligned", "data": str(text), "data_tokens": 512}
    first = api.gqa(folder, **options).save(tmp_path / "first")
    again = api.gqa(shutil.copytree(folder, tmp_path / "copy"), **options)
    assert again.save(tmp_path / "of-a-copy", measurements=str(first))
    text.write_bytes(corpus.read_bytes()[:-2] + b"\n\n")
    with pytest.raises(RekindleError, match=r"text\.jsonl:512 is not what it was when it was measured there"):
        api.gqa(folder, **options).save(tmp_path / "no", measurements=str(first))
    text.unlink()
    assert api.gqa(folder, **options).save(tmp_path / "again", measurements=str(first))


def test_text_without_a_tokenizer_is_refused_and_nothing_is_left(tiny, tmp_path):
    model = api.gqa(tiny("llama"), kv_heads=1, pool="aligned", data="stdlib")
    assert model.job().nbytes_measured > 0
    with pytest.raises(RekindleError, match="No tokenizer"):
        model.save(tmp_path / "out")
    assert not list(tmp_path.iterdir())
