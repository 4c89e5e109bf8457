"""Tokenizers that differ in a merge: refused with what differs, or rows found by token."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from found.folders import logits
from found.tokenizers_made import save_bytes_tokenizer
from safetensors.torch import load_file
from tiny_models import MASKED

import rekindle
from rekindle import api
from rekindle.errors import RekindleError

TEXTS = ["The quick brown fox", "  naïve café 12345\n", "def f(x):\n\treturn x<end>"]
NEW = ["<|user|>", "<|bot|>"]


def rows_of(folder: Path) -> torch.Tensor:
    return load_file(folder / "model.safetensors")["model.embed_tokens.weight"]


def tokenizer_of(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def model(tiny, tmp_path):
    """model(name, tokens, rows=...): a llama of its own values, with a tokenizer of bytes and these tokens more."""

    def make(name: str, tokens: list[str], rows: int = 264, **changes) -> Path:
        folder = shutil.copytree(tiny("llama", vocab_size=rows, seed=len(name), **changes), tmp_path / name)
        tokenizer = save_bytes_tokenizer(folder)
        tokenizer.add_tokens(tokens, special_tokens=True)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def refused(*args, **how) -> str:
    with pytest.raises(RekindleError) as error:
        rekindle.merge(*args, **how)
    return str(error.value)


# -- same -------------------------------------------------------------------------------------------------------


def test_tokens_that_differ_are_named(model):
    said = refused([model("a", ["<x>", "<y>"]), model("bb", ["<y>", "<z>"])])
    assert "1 token only in" in said
    assert "('<x>')" in said
    assert "('<z>')" in said
    assert "1 token with other numbers ('<y>' 258 and 257)" in said
    assert "--vocab base" in said


def test_padding_is_named_so(model):
    said = refused([model("a", NEW, rows=264), model("bb", NEW, rows=320)])
    assert "The tokens are the same, 259, and the rows of embeddings are 264 and 320" in said
    assert "padding" in said


@pytest.mark.parametrize("vocab", ["base", "union"])
def test_only_what_the_configs_differ_in_is_said(model, vocab):
    """Not in how they are spelt: one of them is written anew with other rows."""
    a, b = model("a", NEW, rows=264), model("bb", NEW, rows=320)
    notes = rekindle.merge([a, b], vocab=vocab).checkpoint.notes
    assert not [note for note in notes if "configs differ" in note]
    config = json.loads((b / "config.json").read_text())
    (b / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.25, "mine": 1}))
    notes = rekindle.merge([a, b], vocab=vocab).checkpoint.notes
    assert [note for note in notes if "configs differ" in note] == [
        f"the configs differ in attention_dropout, mine: that of {a} is taken"
    ]


def test_the_same_config_in_an_older_spelling_is_the_same(model):
    a, b = model("a", NEW), model("bb", NEW)
    config = json.loads((b / "config.json").read_text())
    theta = config.pop("rope_parameters")["rope_theta"]
    (b / "config.json").write_text(json.dumps(config | {"rope_theta": theta}))
    assert not [note for note in rekindle.merge([a, b]).checkpoint.notes if "configs differ" in note]


def test_the_same_tokens_in_files_that_differ_are_the_same(model):
    a, b = model("a", NEW), model("bb", NEW)
    file = b / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()), indent=1))
    assert file.read_bytes() != (a / "tokenizer.json").read_bytes()
    rekindle.merge([a, b]).job()


def test_without_tokenizers_sizes_must_agree(tiny):
    said = refused([tiny("llama"), tiny("llama", vocab_size=72)])
    assert "64" in said
    assert "72" in said
    assert "rows cannot be matched by token" in said
    assert "has no tokenizer.json" in refused([tiny("llama"), tiny("llama", vocab_size=72)], vocab="base")


def test_sentencepiece_alone_is_not_read(model):
    a, b = model("a", NEW), model("bb", [])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (b / name).unlink()
    (b / "spiece.model").write_bytes(b"x")
    assert "has only spiece.model, which is not read here" in refused([a, b], vocab="base")


@pytest.mark.parametrize("beside", ["added_tokens.json", "tokenizer_config.json"])
def test_the_same_tokens_in_other_files(model, beside):
    """vocab.json with what was added beside it, against tokenizer.json."""
    a, b = model("a", NEW), model("bb", NEW)
    (b / "vocab.json").write_text(json.dumps(json.loads((b / "tokenizer.json").read_text())["model"]["vocab"]))
    (b / "tokenizer.json").unlink()
    listed = {token: 257 + i for i, token in enumerate(NEW)}
    told = {"added_tokens_decoder": {str(i): {"content": token} for token, i in listed.items()}}
    (b / beside).write_text(json.dumps(listed if beside == "added_tokens.json" else told))
    rekindle.merge([a, b]).job()
    (b / beside).write_text("{}")
    assert "2 tokens only in" in refused([a, b])
    assert "Tokens are added to a tokenizer.json, and" in refused([b, a], vocab="union")


# -- base -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_rows_of_the_base_are_found_by_token(model, tmp_path, tied):
    a = model("a", ["<x>", "<y>"], rows=264, tie_word_embeddings=tied)
    b = model("bb", ["<y>", "<z>"], rows=280, tie_word_embeddings=tied)
    out = rekindle.merge([a, b], vocab="base", weights="0.25,0.75").save(tmp_path / "out")
    names = ["model.embed_tokens.weight"] + ["lm_head.weight"] * (not tied)
    for name in names:
        one, two, found = (load_file(f / "model.safetensors")[name] for f in (a, b, out))
        theirs = one.clone()  # what b lacks, padding included, is a's
        theirs[:257], theirs[258] = two[:257], two[257]
        torch.testing.assert_close(found, 0.25 * one + 0.75 * theirs, rtol=1e-6, atol=1e-6)
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 264
    assert (out / "tokenizer.json").read_bytes() == (a / "tokenizer.json").read_bytes()
    assert logits(out).shape[-1] == 264


def test_only_padding_differs(model, tmp_path):
    a, b = model("a", NEW, rows=264), model("bb", NEW, rows=320)
    one = rows_of(rekindle.merge([a, b], vocab="base").save(tmp_path / "one"))
    torch.testing.assert_close(one[:259], (rows_of(a)[:259] + rows_of(b)[:259]) / 2)
    assert torch.equal(one[259:], rows_of(a)[259:])
    other = rekindle.merge([b, a], vocab="base", weights="0,1")
    assert other.job().plan.counts["computed"]["tensors"] == 0  # a's rows, and b's own padding, as they are
    other = rows_of(other.save(tmp_path / "other"))
    assert torch.equal(other, torch.cat([rows_of(a)[:259], rows_of(b)[259:]]))


def test_the_base_of_task_vectors_says_the_tokens(model, tmp_path):
    base, tuned = model("a", NEW), model("bb", NEW[::-1])
    out = rekindle.merge(tuned, base=base, how="task", weights="0.5", vocab="base").save(tmp_path / "out")
    w0, w1, found = rows_of(base), rows_of(tuned)[:264].clone(), rows_of(out)
    w1[[257, 258]] = w1[[258, 257]]
    w1[259:] = w0[259:]
    torch.testing.assert_close(found, w0 + 0.5 * (w1 - w0), rtol=1e-6, atol=1e-6)
    assert (out / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("family", "changes", "names"),
    [
        ("gpt2", {}, ["transformer.wte.weight"]), ("phi3", {}, ["model.embed_tokens.weight", "lm_head.weight"]),
        ("gpt_neox", {}, ["gpt_neox.embed_in.weight", "embed_out.weight"]),
        ("bert", MASKED, ["bert.embeddings.word_embeddings.weight", "cls.predictions.bias"]),
        ("bert", {}, ["embeddings.word_embeddings.weight"]),
    ],
)  # fmt: skip
def test_rows_of_tokens_in_families(tiny, tmp_path, family, changes, names):
    """A bias of the head, tied heads, other names; all else is merged as ever."""
    folders = []
    for i, tokens in enumerate((["<x>", "<y>"], ["<y>"])):
        made = tiny(family, vocab_size=264 + 8 * i, seed=i, **changes)
        folders.append(shutil.copytree(made, tmp_path / str(i)))
        tokenizer = save_bytes_tokenizer(folders[-1])
        tokenizer.add_tokens(tokens)
        tokenizer.save_pretrained(folders[-1])
    out = rekindle.merge(folders, vocab="base").save(tmp_path / "out")
    one, two, found = (load_file(f / "model.safetensors") for f in (*folders, out))
    assert found.keys() == one.keys()
    for name, x in found.items():
        theirs = two[name]
        if name in names:
            theirs = one[name].clone()
            theirs[:257], theirs[258] = two[name][:257], two[name][257]
        torch.testing.assert_close(x, (one[name] + theirs) / 2, rtol=1e-6, atol=1e-6)


def test_numbers_that_are_all_others(model, tmp_path):
    """Every token under another number: rows are gathered one by one, in fours of workers alike."""
    a, b = model("a", NEW), model("bb", NEW)
    file = b / "tokenizer.json"
    described = json.loads(file.read_text())
    vocab, order = described["model"]["vocab"], torch.randperm(257, generator=torch.Generator().manual_seed(0)).tolist()
    described["model"]["vocab"] = {token: order[i] for token, i in vocab.items()}
    for entry in described["added_tokens"]:
        entry["id"] = described["model"]["vocab"].get(entry["content"], entry["id"])
    file.write_text(json.dumps(described))
    out = rekindle.merge([a, b], vocab="base", weights="0,1").save(tmp_path / "out")
    theirs = rows_of(a).clone()
    theirs[:259] = rows_of(b)[[*order, 257, 258]]
    assert torch.equal(rows_of(out), theirs)


def test_moments_are_found_by_token_too(model):
    a, b = model("a", ["<x>", "<y>"]), model("bb", ["<y>", "<z>"])
    tensors = rekindle.merge([a, b], vocab="base").job().plan.tensors
    moment = tensors["model.embed_tokens.weight"].moment(1, lambda leaf, order: leaf)
    assert {leaf.source for leaf in moment.leaves()} == {"s1", "s2"}
    assert moment.shape == (264, 32)


# -- union ------------------------------------------------------------------------------------------------------


def test_tokens_of_all(model, tmp_path):
    a, b, c = (
        model("a", ["<x>"], rows=258),
        model("bb", ["<y>", "<x>"], rows=264),
        model("ccc", ["<y>", "<z>"], rows=300),
    )
    merge = rekindle.merge([a, b, c], vocab="union", weights="0.2,0.3,0.5")
    out = merge.save(tmp_path / "out")
    one, two, three, found = map(rows_of, (a, b, c, out))
    mean = lambda *terms: sum(w * x for w, x in terms) / sum(w for w, _ in terms)  # noqa: E731
    close = lambda i, x: torch.testing.assert_close(found[i], x, rtol=1e-5, atol=1e-5)  # noqa: E731
    close(slice(0, 257), mean((0.2, one[:257]), (0.3, two[:257]), (0.5, three[:257])))
    close(257, mean((0.2, one[257]), (0.3, two[258])))  # <x>
    close(258, mean((0.3, two[257]), (0.5, three[257])))  # <y>
    close(259, three[258])  # <z>
    assert found.shape[0] == 260  # 258 is even, and 260 too
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 260
    assert any("258 rows of embeddings become 260, a multiple of 2 again" in note for note in merge.checkpoint.notes)
    old, new = tokenizer_of(a), tokenizer_of(out)
    assert [new.encode(text) for text in TEXTS] == [old.encode(text) for text in TEXTS]
    assert new.convert_tokens_to_ids(["<x>", "<y>", "<z>"]) == [257, 258, 259]
    assert new.encode("a<z>b<y>") == [*old.encode("a"), 259, *old.encode("b"), 258]
    assert new.decode(new.encode("a<z>b"), skip_special_tokens=True) == "ab"
    assert (
        tokenizer_of(b).get_vocab().keys() | tokenizer_of(c).get_vocab().keys() | old.get_vocab().keys()
        == new.get_vocab().keys()
    )


def test_padding_gives_its_rows_to_new_tokens(model, tmp_path):
    a, b = model("a", [], rows=264), model("bb", NEW, rows=264)
    found = rows_of(rekindle.merge([a, b], vocab="union").save(tmp_path / "out"))
    assert found.shape[0] == 264
    assert torch.equal(found[257:259], rows_of(b)[257:259])
    assert torch.equal(found[259:], rows_of(a)[259:])
    torch.testing.assert_close(found[:257], (rows_of(a)[:257] + rows_of(b)[:257]) / 2)


def test_over_a_base_that_lacks_them(model, tmp_path):
    base, b, c = model("a", []), model("bb", NEW), model("ccc", NEW[:1])
    out = rekindle.merge([b, c], base=base, how="task", vocab="union", weights="1,1").save(tmp_path / "out")
    w0, one, two, found = map(rows_of, (base, b, c, out))
    torch.testing.assert_close(found[:257], (one + two - w0)[:257], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[257], (one[257] + two[257]) / 2, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[258], one[258], rtol=1e-5, atol=1e-5)


def test_t5_and_its_shared_rows(tiny, tmp_path):
    folders = []
    for i, tokens in enumerate(([], NEW)):
        folders.append(shutil.copytree(tiny("t5", vocab_size=264, seed=i), tmp_path / f"t5-{i}"))
        tokenizer = save_bytes_tokenizer(folders[-1])
        tokenizer.add_tokens(tokens)
        tokenizer.save_pretrained(folders[-1])
    out = rekindle.merge(folders, vocab="union").save(tmp_path / "out")
    one, two, found = (load_file(f / "model.safetensors")["shared.weight"] for f in (*folders, out))
    assert torch.equal(found[257:259], two[257:259])
    torch.testing.assert_close(found[:257], (one[:257] + two[:257]) / 2)


def test_pieces_of_another_vocabulary_are_no_added_tokens(model, tmp_path):
    a, b = model("a", []), model("bb", [])
    file = b / "tokenizer.json"
    described = json.loads(file.read_text())
    described["model"]["vocab"]["Ġthe"] = 257
    file.write_text(json.dumps(described))
    assert "1 token of" in (said := refused([a, b], vocab="union"))
    assert "pieces of its own vocabulary, such as 'Ġthe'" in said
    rekindle.merge([a, b], vocab="base").job()


def test_a_union_needs_a_row_for_each_token(model):
    assert "token of number 258, and the embeddings have 257 rows" in refused(
        [model("a", NEW, rows=257), model("bb", [])], vocab="union"
    )


def test_a_union_is_repeated_and_goes_through_a_recipe(model, tmp_path):
    a, b = model("a", []), model("bb", NEW)
    out = rekindle.merge([a, b], vocab="union").save(tmp_path / "out")
    api.run(out / "rekindle.yaml", tmp_path / "again")
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()
    deeper = api.grow_depth(rekindle.merge([a, b], vocab="union"), factor=2).save(tmp_path / "deeper")
    assert (deeper / "tokenizer.json").read_bytes() == (out / "tokenizer.json").read_bytes()


def test_parts_of_a_union(model, tmp_path):
    merge = rekindle.merge([model("a", []), model("bb", NEW)], vocab="union")
    whole = merge.save(tmp_path / "whole", max_shard_size="60KB")
    for part in ("1/2", "2/2"):
        merge.save(tmp_path / "out", part=part, max_shard_size="60KB")
    api.join(tmp_path / "out")
    for path in whole.glob("*"):
        if path.suffix in (".safetensors", ".json") and path.name != "rekindle.json":
            assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name


WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "and", "runs", "away", "from", "them"]


def word_piece(folder: Path):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {
        token: i for i, token in enumerate(["[PAD]", "[UNK]", *WORDS, *(f"##{c}" for c in "abcdefgh"), *"abcdefgh"])
    }
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")


def unigram(folder: Path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [
        ("<unk>", 0.0),
        ("\u2581", -2.0),
        *((f"\u2581{w}", -3.0) for w in WORDS),
        *((c, -5.0) for c in "abcdefgh"),
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.mark.parametrize("make", [word_piece, unigram])
def test_other_kinds_of_tokenizers(tiny, tmp_path, make):
    """As the library itself adds them: the same numbers, flags and cuts."""
    from tokenizers import AddedToken

    folders, added = [], [AddedToken("<Tool>", special=True), AddedToken("lazier", single_word=True, normalized=True)]
    for i in range(2):
        folders.append(shutil.copytree(tiny("llama", vocab_size=64, seed=i), tmp_path / str(i)))
        tokenizer = make(folders[-1])
        tokenizer.add_tokens(added if i else [])
        tokenizer.save_pretrained(folders[-1])
    out = rekindle.merge(folders, vocab="union").save(tmp_path / "out")
    old, new = tokenizer_of(folders[0]), tokenizer_of(out)
    old_texts = ["the quick fox", "lazy dogs, bad cafe", "<tool> them"]
    assert [new.encode(text) for text in old_texts] == [old.encode(text) for text in old_texts]
    old.add_tokens(added)
    assert old.get_vocab() == new.get_vocab()
    texts = [*old_texts, "the lazier dogs", "the<Tool>fox", "lazierfox Lazier"]
    assert [new.encode(text) for text in texts] == [old.encode(text) for text in texts]
    assert (
        new.decode(new.encode("<Tool> fox"), skip_special_tokens=True).strip()
        == old.decode(old.encode("<Tool> fox"), skip_special_tokens=True).strip()
    )


def test_lists_of_tokens_beside_are_kept_up(model, tmp_path):
    """As transformers 4 wrote them: added_tokens_decoder, and added_tokens.json."""
    a, b = model("a", []), model("bb", NEW)
    (a / "added_tokens.json").write_text(json.dumps({"<end>": 256}))
    file = a / "tokenizer_config.json"
    described = json.loads(file.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    file.write_text(json.dumps(described | {"added_tokens_decoder": {"256": {"content": "<end>"} | flags}}))
    out = rekindle.merge([a, b], vocab="union").save(tmp_path / "out")
    numbers = {"<end>": 256, NEW[0]: 257, NEW[1]: 258}
    assert json.loads((out / "added_tokens.json").read_text()) == numbers
    told = json.loads((out / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert told == {str(i): {"content": token} | flags for token, i in numbers.items()}
    assert tokenizer_of(out).convert_tokens_to_ids(NEW) == [257, 258]
    assert [tokenizer_of(out).encode(text) for text in TEXTS] == [tokenizer_of(a).encode(text) for text in TEXTS]
