"""Models of two towers, and models that no table knows: opened, grown tower by tower, against transformers' classes."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tiny_models import ENCODER_DECODERS, V1_1, save_tiny, tiny_config

from rekindle import api
from rekindle.anatomy import FAMILIES, OPAQUE, Nameless, Role, families, family_of
from rekindle.apply.load import quietly
from rekindle.cli.verbs import rekindle
from rekindle.errors import RekindleError
from rekindle.store.manifest import read_manifest

CASES = [
    *((family, {}) for family in ENCODER_DECODERS), ("t5", V1_1), ("t5", {"num_decoder_layers": None}),
    ("t5gemma", {"tie_word_embeddings": False}), ("t5gemma2", {"tie_word_embeddings": False}),
    ("switch_transformers", {"num_sparse_decoder_layers": 4}),
]  # fmt: skip


def label(value):
    return value if isinstance(value, str) else ",".join(f"{k}={v}" for k, v in value.items())


def logits(folder):
    """Strictly loaded: nothing missing, nothing left over."""
    import transformers

    with quietly():
        model, told = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        return model.eval()(input_ids=ids, decoder_input_ids=ids[:, :20]).logits


def same(child, parent):
    """To the last bits: where the file has a tensor decides by which of its loops BLAS multiplies it."""
    a, b = logits(child), logits(parent)
    return float((a - b).abs().max() / b.abs().max()) < 1e-6


@pytest.mark.parametrize(("family", "changes"), CASES, ids=label)
def test_every_tensor_is_opened_and_counted(tiny, tmp_path, family, changes):
    import transformers

    folder = tiny(family, **changes)
    checkpoint = api.open(folder).checkpoint
    with quietly():
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert checkpoint.parameters()["total"] == sum(p.numel() for p in model.parameters())
    assert len(checkpoint.settings.towers["encoder"].windows) == (4 if family == "switch_transformers" else 2)
    assert {role.tower for role in checkpoint.tensors if role.layer >= 0} == {"encoder", "decoder"}
    again = api.rewrite(folder).save(tmp_path / "again")
    assert same(again, folder)
    stored, written = load_file(folder / "model.safetensors"), load_file(again / "model.safetensors")
    assert stored.keys() == written.keys()
    assert api.open(again).checkpoint.settings == checkpoint.settings


@pytest.mark.parametrize("tower", ["encoder", "decoder", "both"])
@pytest.mark.parametrize("family", [f for f in ENCODER_DECODERS if f != "switch_transformers"])
def test_a_tower_grows_by_itself(tiny, tmp_path, family, tower):
    folder = tiny(family)
    before = api.open(folder).checkpoint.settings.towers
    grown = api.grow_depth(folder, factor=2, order="llama-pro", tower=tower)
    after = grown.checkpoint.settings.towers
    for name in before:
        assert after[name].num_layers == before[name].num_layers * (2 if tower in (name, "both") else 1)
    out = grown.save(tmp_path / "out")
    assert grown.checkpoint.promise.exact
    assert same(out, folder)
    lossy = api.grow_depth(folder, factor=2, order="interpose", tower=tower)
    assert not lossy.checkpoint.promise.exact
    assert (logits(lossy.save(tmp_path / "lossy")) - logits(folder)).abs().max() > 1e-3


def test_one_tower_after_the_other_is_both(tiny, tmp_path):
    folder = tiny("t5")
    one = api.grow_depth(folder, factor=2, tower="encoder")
    both = api.grow_depth(one, factor=2, tower="decoder").save(tmp_path / "one")
    once = api.grow_depth(folder, factor=2, tower="both").save(tmp_path / "both")
    assert (both / "model.safetensors").read_bytes() == (once / "model.safetensors").read_bytes()
    assert (both / "config.json").read_bytes() == (once / "config.json").read_bytes()


def test_what_was_measured_in_two_towers_is_told_of_both(tiny, tmp_path):
    out = api.gqa(tiny("t5gemma2"), kv_heads=1, tower="both").save(tmp_path / "out")
    depths = {"encoder": 2, "decoder": 3}
    rows = [f"{tower}, layer {i}, 2 to 1 key-value heads" for tower, depth in depths.items() for i in range(depth)]
    measured = read_manifest(out).measured
    assert [*measured] == rows
    assert len({tuple(found.values()) for found in measured.values()}) == len(rows)
    alone = read_manifest(api.gqa(tiny("t5gemma2"), kv_heads=1, tower="decoder").save(tmp_path / "alone")).measured
    assert alone == {row: measured[row] for row in rows[2:]}


def test_a_note_says_of_which_tower_it_is(tiny):
    new = "are new: LLaMA-Pro trains these alone"
    grown = {"order": "llama-pro", "factor": 2}
    both = api.grow_depth(tiny("t5", num_decoder_layers=2), tower="both", **grown)
    assert both.checkpoint.notes == [f"encoder and decoder: layers 1, 3 {new}"]
    unlike = api.grow_depth(tiny("t5"), tower="both", **grown).checkpoint.notes
    assert unlike[:2] == [f"encoder: layers 1, 3 {new}", f"decoder: layers 1, 3, 5 {new}"]


def test_switch_keeps_experts_where_its_config_can_say_so(tiny, tmp_path):
    everywhere = tiny("switch_transformers", num_sparse_encoder_layers=4, num_sparse_decoder_layers=4)
    out = api.grow_depth(everywhere, factor=2, order="llama-pro", tower="both").save(tmp_path / "out")
    assert same(out, everywhere)
    with pytest.raises(RekindleError, match="cannot say which layers are which"):
        api.grow_depth(tiny("switch_transformers"), factor=2, order="llama-pro", tower="encoder")
    stacked = api.grow_depth(tiny("switch_transformers"), factor=2, order="stack", tower="encoder")
    assert stacked.checkpoint.settings.towers["encoder"].sparse_layers == (1, 3, 5, 7)
    logits(stacked.save(tmp_path / "stacked"))


@pytest.mark.parametrize("order", ["interpose", "llama-pro"])
def test_an_order_that_cannot_be_names_those_that_can(tiny, order):
    """All of them: each makes a child of that depth."""
    for depth, orders in ((8, ["stack", "solar"]), (5, ["stack"])):
        with pytest.raises(RekindleError, match="cannot say which layers are which") as error:
            api.grow_depth(tiny("switch_transformers"), layers=depth, order=order, tower="encoder")
        assert error.value.hint == f"--order {' or '.join(orders)}"
        for able in orders:
            child = api.grow_depth(tiny("switch_transformers"), layers=depth, order=able, tower="encoder").checkpoint
            assert child.settings.towers["encoder"].num_layers == depth


def test_inspect_says_which_flags_would_do(tiny):
    can = api.inspect(tiny("switch_transformers"))["can"]
    assert can["grow-depth"].endswith("asked for are layers 2, 3, 6, 7 of 8. (--order stack or solar)")
    assert can["grow-experts"].endswith("(--top-k keep)")
    assert all(text.startswith(("yes", "no")) for text in can.values())


@pytest.mark.parametrize("tower", ["encoder", "decoder"])
@pytest.mark.parametrize(
    ("family", "verb", "options"),
    [
        *((family, "upcycle", {"experts": 2}) for family in ("t5gemma", "t5gemma2")),
        *((family, "grow-experts", {}) for family in ("t5gemma", "t5gemma2")),
    ],
)
def test_a_refusal_names_the_model_and_not_what_the_config_calls_its_tower(tiny, family, verb, options, tower):
    own = FAMILIES[family].towers[tower].model_type
    with pytest.raises(RekindleError) as refused:
        api.apply(verb, tiny(family), tower=tower, **options)
    assert own not in str(refused.value)
    assert family in str(refused.value)


def test_switch_gets_more_experts_in_both_towers_at_once(tiny, tmp_path):
    """Its config has one number of experts for both, and one expert for each token."""
    folder = tiny("switch_transformers")
    grown = api.grow_experts(folder, tower="both", top_k="keep", noise=0)
    out = grown.save(tmp_path / "out")
    before, after = (load_file(f / "model.safetensors") for f in (folder, out))
    moved = 0
    for name, x in after.items():
        if "router" in name:
            assert torch.equal(x, before[name].repeat(2, 1))
        elif "expert_" in name:
            head, _, tail = name.partition("expert_")
            number, _, rest = tail.partition(".")
            assert torch.equal(x, before[f"{head}expert_{int(number) % 3}.{rest}"])
            moved += int(number) >= 3
        else:
            assert torch.equal(x, before[name])
    assert moved == 2 * 2 * 3 * 2  # towers, layers with experts, copies, matrices
    assert json.loads((out / "config.json").read_text())["num_experts"] == 6
    assert logits(out).isfinite().all()
    assert grown.checkpoint.promise.text == "6 experts compete for 1 place"
    with pytest.raises(RekindleError, match="one value of num_experts for all towers: 3, not 6") as error:
        api.grow_experts(folder, tower="encoder", top_k="keep")
    assert error.value.hint == "--tower both"
    with pytest.raises(RekindleError, match="has top_k 1 and no other: --top-k scale would have it 2") as error:
        api.grow_experts(folder, tower="both")
    assert error.value.hint == "--top-k keep"


def test_what_a_method_asks_for_is_not_said_to_be_the_parents(tiny):
    with pytest.raises(RekindleError, match="has top_k 1; what is asked for has top_k 2"):
        api.open(tiny("switch_transformers")).checkpoint.tower("decoder").as_family("switch_transformers", top_k=2)


def test_a_decoder_deeper_than_its_encoder_is_told_of_as_long_as_transformers_cannot_cache_it(tiny, tmp_path):
    from transformers import AutoModelForSeq2SeqLM

    grown = api.grow_depth(tiny("t5"), factor=2, tower="decoder")
    assert any("use_cache=False" in note for note in grown.checkpoint.notes)
    assert not any(
        "use_cache" in note for note in api.grow_depth(tiny("t5gemma"), factor=2, tower="decoder").checkpoint.notes
    )
    model = AutoModelForSeq2SeqLM.from_pretrained(grown.save(tmp_path / "out"))
    how = {"input_ids": torch.arange(3, 9)[None], "max_new_tokens": 3, "do_sample": False}
    assert torch.equal(model.generate(**how), model.generate(**how, use_cache=False))
    with pytest.raises(IndexError):  # where this passes, the note can go
        model.generate(**how, use_cache=True)


@pytest.mark.parametrize("travels", [True, False], ids=["with generation_config.json", "without"])
@pytest.mark.parametrize("family", ["t5", "mt5", "umt5", "switch_transformers"])
def test_what_is_made_of_a_deeper_decoder_generates_without_a_cache(tiny, tmp_path, family, travels):
    """Whatever verb made it; of its source a note says that it does not."""
    from transformers import AutoModelForSeq2SeqLM

    src = shutil.copytree(tiny(family, num_layers=2, num_decoder_layers=4), tmp_path / "src")
    if not travels:
        (src / "generation_config.json").unlink()
    how = {"input_ids": torch.arange(3, 9)[None], "max_new_tokens": 3, "do_sample": False}
    with pytest.raises(IndexError):
        AutoModelForSeq2SeqLM.from_pretrained(src).generate(**how)
    assert sum("use_cache=False" in note for note in api.inspect(src)["notes"]) == 1
    grown = api.grow_depth(src, layers=6, order="stack", tower="decoder")
    said = [note for note in grown.checkpoint.notes if "use_cache" in note]
    assert [note.partition(",")[0] for note in said] == ["the decoder has 6 layers"]
    for number, made in enumerate((api.rewrite(src), api.merge([src, src], how="linear", weights=(0.5, 0.5)), grown)):
        out = made.save(tmp_path / str(number))
        model = AutoModelForSeq2SeqLM.from_pretrained(out)
        assert torch.equal(model.generate(**how), model.generate(**how, use_cache=False))
        assert (out / "generation_config.json").exists() == travels
        assert not any("use_cache" in note for note in api.inspect(out)["notes"])
    even = api.grow_depth(src, layers=4, order="stack", tower="encoder")
    assert not any("use_cache" in note for note in even.checkpoint.notes)
    assert AutoModelForSeq2SeqLM.from_pretrained(even.save(tmp_path / "even")).config.use_cache


def test_a_tower_must_be_named_where_there_are_two(tiny):
    for tower, said in ((None, "which of them is meant?"), ("vision", "none is named 'vision'")):
        with pytest.raises(RekindleError, match="2 towers, encoder and decoder") as error:
            api.grow_depth(tiny("t5"), factor=2, tower=tower)
        assert said in error.value.what
        assert error.value.hint == "--tower encoder, decoder or both"
    with pytest.raises(RekindleError, match="it has one tower"):
        api.grow_depth(tiny("llama"), factor=2, tower="decoder")


def test_towers_that_share_a_key_cannot_differ_in_it(tiny):
    checkpoint = api.open(tiny("t5")).checkpoint
    decoder = checkpoint.tower("decoder")
    wider = decoder.as_family("t5", intermediate_size=96)
    with pytest.raises(
        RekindleError, match="one value of intermediate_size for all towers: 96, not 48 for its encoder"
    ):
        checkpoint.with_towers({"decoder": wider})


def test_what_does_not_fit_two_towers_is_refused(tiny):
    for family, verb, options, said in (
        ("t5", "gqa", {"kv_heads": 1, "tower": "decoder"}, "each query head of it has its own"),
        ("t5gemma", "gqa", {"kv_heads": 1, "tower": "decoder", "data": "text"}, "not run through the decoder"),
        ("t5gemma2", "gqa", {"kv_heads": 1, "tower": "both", "data": "text"}, "not run through the decoder"),
        ("t5", "upcycle", {"experts": 2, "tower": "decoder"}, "both towers of this t5"),
        ("switch_transformers", "grow-experts", {"tower": "both"}, "top_k 1"),
    ):
        with pytest.raises(RekindleError, match=said):
            api.apply(verb, tiny(family), **options)


# -- T5's head --------------------------------------------------------------------------------------------------


def with_head(tiny, tmp_path, head, **says):
    folder = shutil.copytree(tiny("t5"), tmp_path / "t5")
    tensors = load_file(folder / "model.safetensors")
    shared = tensors["shared.weight"]
    tensors |= {"none": {}, "equal": {"lm_head.weight": shared.clone()}, "own": {"lm_head.weight": shared * 2}}[head]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    for key in ("tie_word_embeddings", "scale_decoder_outputs"):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config | says))
    return folder


@pytest.mark.parametrize("scale", [None, True, False])
@pytest.mark.parametrize("tie", [None, True, False])
@pytest.mark.parametrize("head", ["none", "equal", "own"])
def test_the_head_is_tied_and_scaled_as_transformers_has_it(tiny, tmp_path, head, tie, scale):
    """By the weights alone, and by the config alone; what is written says the same again."""
    says = {"tie_word_embeddings": tie, "scale_decoder_outputs": scale}
    folder = with_head(tiny, tmp_path, head, **{key: value for key, value in says.items() if value is not None})
    settings = api.open(folder).checkpoint.settings
    assert settings.tie_word_embeddings == (head != "own")
    assert settings.scaled_output == (tie is not False if scale is None else scale)
    out = api.rewrite(folder).save(tmp_path / "out")
    assert same(out, folder)
    assert ("lm_head.weight" in load_file(out / "model.safetensors")) == (head == "own")


def test_embeddings_that_are_stored_three_times_are_one(tiny, tmp_path):
    folder = shutil.copytree(tiny("t5"), tmp_path / "t5")
    tensors = load_file(folder / "model.safetensors")
    for tower in ("encoder", "decoder"):
        tensors[f"{tower}.embed_tokens.weight"] = tensors["shared.weight"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    job = api.rewrite(folder).job()
    assert job.plan.dropped == ["decoder.embed_tokens.weight", "encoder.embed_tokens.weight"]
    tensors["decoder.embed_tokens.weight"] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RekindleError, match="decoder.embed_tokens.weight differs from shared.weight"):
        api.open(folder)


def test_a_feed_forward_that_transformers_does_not_know_is_refused(tiny, tmp_path):
    folder = shutil.copytree(tiny("t5"), tmp_path / "t5")
    config = json.loads((folder / "config.json").read_text())
    for said in ("gated-wild", "half-gelu", "wild"):
        (folder / "config.json").write_text(json.dumps(config | {"feed_forward_proj": said}))
        with pytest.raises(RekindleError, match=f"feed_forward_proj is '{said}'"):
            api.open(folder)


# -- opaque tensors, and models that no table knows --------------------------------------------------------------


def test_an_eye_is_copied_counted_and_listed(tiny, tmp_path):
    folder = tiny("t5gemma2")
    checkpoint = api.open(folder).checkpoint
    eye = [role for role in checkpoint.opaque if "vision_tower" in role.part]
    assert len(eye) > 20
    grown = api.grow_depth(folder, factor=2, tower="encoder")
    assert set(eye) <= set(grown.checkpoint.tensors)
    before, after = (load_file(f / "model.safetensors") for f in (folder, grown.save(tmp_path / "out")))
    for role in checkpoint.opaque:
        name = role.part.removeprefix(OPAQUE)
        assert torch.equal(after[name], before[name])


def test_what_no_row_names_goes_with_its_layer(tiny, tmp_path, monkeypatch):
    """Of a class whose layers have tensors that the table does not name."""
    from dataclasses import replace

    known = replace(FAMILIES["llama"], opaque=("model.layers.{layer}.adapter.", "extra."))
    monkeypatch.setitem(families.FAMILIES, "llama", known)
    folder = shutil.copytree(tiny("llama"), tmp_path / "llama")
    tensors = load_file(folder / "model.safetensors")
    tensors |= {f"model.layers.{i}.adapter.w": torch.full((2,), float(i)) for i in (0, 2)}
    tensors["extra.w"] = torch.ones(3)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    grown = api.grow_depth(folder, factor=2)
    assert sorted(r.layer for r in grown.checkpoint.opaque) == [-1, 0, 1, 4, 5]
    written = load_file(grown.save(tmp_path / "out") / "model.safetensors")
    assert [float(written[f"model.layers.{i}.adapter.w"][0]) for i in (0, 1, 4, 5)] == [0, 0, 2, 2]
    assert torch.equal(written["extra.w"], torch.ones(3))
    upcycled = api.upcycle(folder, experts=2, target="mixtral")
    assert upcycled.checkpoint.opaque == []  # mixtral is not known to have such
    with pytest.raises(RekindleError, match=r"layers have tensors .*adapter"):
        api.grow_depth(folder, factor=2, order="llama-pro")


@pytest.fixture(scope="module")
def mamba(tmp_path_factory):
    import transformers

    folder = tmp_path_factory.mktemp("mamba")
    with quietly():
        config = transformers.MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, state_size=4)
        transformers.MambaForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_class_that_no_table_knows_is_known_by_its_names(mamba, tmp_path):
    model = api.open(mamba)
    assert isinstance(model.checkpoint.family, Nameless)
    assert "22 tensors by their names alone" in str(model)
    out = api.rewrite(mamba, dtype="bfloat16").save(tmp_path / "out")
    stored, written = (load_file(f / "model.safetensors") for f in (mamba, out))
    assert stored.keys() == written.keys()
    assert all(torch.equal(written[name], stored[name].bfloat16()) for name in stored)
    config, child = (json.loads((f / "config.json").read_text()) for f in (mamba, out))
    assert child == config | {"dtype": "bfloat16"}
    again = api.rewrite(out, dtype="float32").save(tmp_path / "again", max_shard_size=2000)
    import transformers

    with quietly():
        transformers.AutoModelForCausalLM.from_pretrained(again)
    for verb, options in (("upcycle", {"experts": 2}), ("grow-depth", {"factor": 2}), ("gqa", {"kv_heads": 1})):
        with pytest.raises(RekindleError, match="'mamba' is not known") as error:
            api.apply(verb, mamba, **options)
        assert error.value.why == f"{verb} must know what each tensor is"


@pytest.fixture
def unknown(tmp_path):
    """unknown("bart"): a tiny model of a class without a table: of two towers, of text, of pictures, of both."""
    import transformers as hf

    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    bart = {"d_model": 16, "vocab_size": 64, "max_position_embeddings": 32}
    bart |= {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    eyes = small | {"image_size": 8, "patch_size": 4}
    clip = {"text_config": small | {"vocab_size": 64, "max_position_embeddings": 32}, "vision_config": eyes}
    made = {
        "bart": lambda: hf.BartForConditionalGeneration(hf.BartConfig(**bart)),
        "falcon": lambda: hf.FalconForCausalLM(hf.FalconConfig(vocab_size=64, **small)),
        "beit": lambda: hf.BeitForImageClassification(hf.BeitConfig(**eyes)),
        "clip": lambda: hf.CLIPModel(hf.CLIPConfig(**clip)),
    }

    def make(name):
        with quietly():
            torch.manual_seed(0)
            made[name]().save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


@pytest.mark.parametrize("name", ["bart", "falcon"])
def test_a_text_model_that_no_table_knows_is_verified_by_its_class(tiny, unknown, tmp_path, name):
    src = unknown(name)
    whole = api.verify(api.rewrite(src).save(tmp_path / "whole", max_shard_size=8000), src)
    assert (whole.held, whole.relative_difference, whole.compared) == (True, 0.0, "first outputs")
    rounded = api.verify(api.rewrite(src, dtype="bfloat16").save(tmp_path / "rounded"), src)
    assert rounded.held
    assert 1e-6 < rounded.relative_difference < 0.1
    tensors = load_file(src / "model.safetensors")
    save_file({n: x * 1.01 for n, x in tensors.items()}, src / "model.safetensors", metadata={"format": "pt"})
    assert api.verify(tmp_path / "whole", src).held is False
    with pytest.raises(RekindleError, match=f"A {name} and a llama cannot be compared"):
        api.verify(tmp_path / "whole", tiny("llama"))
    with pytest.raises(RekindleError, match="no model whose blocks are known"):
        api.verify(tmp_path / "whole", src, blockwise=True)


OTHER_CLASSES = {
    "t5": ("EncoderModel", "Model", "ForSequenceClassification"), "mt5": ("EncoderModel",), "umt5": ("EncoderModel",),
    "switch_transformers": ("EncoderModel",), "t5gemma": ("EncoderModel", "Model"), "t5gemma2": ("Model",),
}  # fmt: skip


def of_class(tiny, folder, family, ending, seed=0):
    """A tiny model of another class than the family's; that class."""
    import transformers

    torch.manual_seed(seed)
    with quietly():
        config = transformers.AutoConfig.for_model(**tiny_config(family) | {"model_type": family})
        config.is_encoder_decoder = "Encoder" not in ending
        own = getattr(transformers, type(config).__name__.removesuffix("Config") + ending)
        own(config).save_pretrained(folder)
    return own


@pytest.mark.parametrize(("family", "ending"), [(f, e) for f, endings in OTHER_CLASSES.items() for e in endings])
def test_a_class_that_the_table_of_its_family_does_not_know_is_known_by_its_names(tiny, tmp_path, family, ending):
    """It stays what it is: some have fewer tensors, others the same, and other outputs."""
    src, other = tmp_path / "src", tmp_path / "other"
    own = of_class(tiny, src, family, ending)
    of_class(tiny, other, family, ending, seed=1)
    assert isinstance(api.open(src).checkpoint.family, Nameless)
    out = api.rewrite(src).save(tmp_path / "out", max_shard_size=20_000)
    both = api.merge([src, other], how="linear", weights=(0.25, 0.75)).save(tmp_path / "both")
    assert [json.loads((f / "config.json").read_text())["architectures"] for f in (out, both)] == [[own.__name__]] * 2
    with quietly():
        loaded = [own.from_pretrained(f, output_loading_info=True) for f in (src, out, other, both)]
    assert not any(any(told.values()) for _, told in loaded)
    a, same, b, mean = (model.state_dict() for model, _ in loaded)
    for name, x in a.items():
        assert torch.equal(same[name], x)
        torch.testing.assert_close(mean[name], 0.25 * x + 0.75 * b[name])
    if ending != "ForSequenceClassification":  # which counts the ends of its texts
        assert api.verify(out, src).relative_difference == 0
        assert api.verify(both, src).relative_difference != 0
    for refused in (
        lambda: api.grow_depth(src, factor=2, tower="encoder"),
        lambda: api.gqa(src, kv_heads=1, tower="both"),
        lambda: api.train_cost(src, tokens=512, seq_len=32, batch_tokens=256, lr=1e-3),
        lambda: api.evaluate(src, tokens=256, seq_len=32),
    ):
        with pytest.raises(RekindleError, match=f"Of {family} the class '{own.__name__}' is not known"):
            refused()
    for together in (lambda: api.verify(out, tiny(family)), lambda: api.merge([tiny(family), src], how="linear")):
        with pytest.raises(RekindleError, match=f"A {own.__name__} and a {family}|A {family} and a {own.__name__}"):
            together()


@pytest.mark.parametrize("name", ["T5WithLMHeadModel", "FSDPT5ForConditionalGeneration"])
def test_other_names_of_its_class_are_its_own(tiny, tmp_path, name):
    """That of the hub's first t5-small, and what a trainer puts before it."""
    src = shutil.copytree(tiny("t5"), tmp_path / "src")
    config = json.loads((src / "config.json").read_text())
    (src / "config.json").write_text(json.dumps(config | {"architectures": [name]}))
    out = api.grow_depth(src, factor=2, order="llama-pro", tower="both").save(tmp_path / "out")
    assert same(out, src)
    assert json.loads((out / "config.json").read_text())["architectures"] == ["T5ForConditionalGeneration"]


@pytest.mark.parametrize("name", ["beit", "clip"])
def test_what_reads_no_text_alone_is_not_verified(tiny, unknown, tmp_path, name):
    """verify says why, on either side; no verb proposes it, nor does the card."""
    src, out = unknown(name), tmp_path / "out"
    for words in (["merge", src, src], ["rewrite", src]):
        said = CliRunner().invoke(rekindle, [*map(str, words), str(out), "--overwrite"])
        assert said.exit_code == 0, said.output
        assert "next:" not in said.output
        assert "rekindle verify" not in (out / "README.md").read_text()
    with pytest.raises(
        RekindleError, match="'beit' is not known" if name == "beit" else "computes nothing on a text alone"
    ) as error:
        api.verify(out, src)
    assert error.value.why == ("verify must know what the model is shown" if name == "beit" else None)
    for child, against in ((out, tiny("llama")), (tiny("llama"), src)):
        with pytest.raises(RekindleError, match="is not known|cannot be compared"):
            api.verify(child, against)


def test_what_no_table_names_is_planned_in_the_order_of_its_file(tiny, mamba):
    """In whatever process: parts and --resume compare plans that several of them have made."""
    for folder in (mamba, tiny("t5gemma2")):
        model = api.rewrite(folder)
        opaque = {role.part.removeprefix(OPAQUE) for role in model.checkpoint.opaque}
        stored = [name for name in model.checkpoint.folder.tensors if name in opaque]
        assert len(stored) > 20
        assert [name for name in model.job().plan.tensors if name in opaque] == stored


def test_whole_numbers_of_an_unknown_class_stay_what_they_are(tmp_path):
    (tmp_path / "src").mkdir()
    tensors = {"w": torch.ones(2, 2), "ids": torch.arange(3)}
    save_file(tensors, tmp_path / "src" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "src" / "config.json").write_text('{"width": 2}')
    out = api.rewrite(tmp_path / "src", dtype="float16").save(tmp_path / "out")
    assert {n: t.dtype for n, t in load_file(out / "model.safetensors").items()} == {
        "w": torch.float16,
        "ids": torch.int64,
    }


def test_code_of_an_unknown_class_comes_along_and_is_not_run(mamba, tmp_path):
    folder = shutil.copytree(mamba, tmp_path / "own")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "wild", "auto_map": {"AutoModelForCausalLM": "modeling_wild.Wild"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_wild.py").write_text("raise SystemExit('run')")
    out = api.rewrite(folder).save(tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["auto_map"] == config["auto_map"]
    assert (out / "modeling_wild.py").exists()


def test_roles_of_towers_are_told_apart():
    role = Role("attn.q", 3, tower="encoder")
    assert str(role) == "attn.q of layer 3 of the encoder"
    assert role != Role("attn.q", 3)


def test_a_tiny_model_is_what_it_says(tmp_path):
    """The fixtures' own: v1.1 has a head of its own."""
    folder = save_tiny(tmp_path / "t5", "t5", "float32", False, V1_1)
    assert not api.open(folder).checkpoint.settings.tie_word_embeddings
    assert not family_of({"model_type": "t5"}).settings({"model_type": "t5"} | V1_1).scaled_output
