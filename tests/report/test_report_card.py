import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from report_runs import INIT, PARENT, UPCYCLE

from rekindle import api
from rekindle.apply.load import load_model
from rekindle.errors import RekindleError
from rekindle.report.card import write_card
from rekindle.report.lineage import lines
from rekindle.store.lineage import extended
from rekindle.store.manifest import Manifest, Record, read_manifest

NOTE = "Sparse Upcycling, section 3: https://arxiv.org/abs/2212.05055"
VERIFY = {"promise": "exact", "held": True, "relative_difference": 3.1e-7, "tokens": 8192}


def card(tmp_path, lineage, verify=None, config=None, name="child"):
    folder = tmp_path / name
    folder.mkdir()
    manifest = Manifest(
        version="0.1.0",
        lineage=lineage,
        parameters={"total": 3_950_000, "active": 1_260_000},
        promise={"kind": "exact", "text": "The logits are the parent's."},
    )
    write_card(folder, manifest, config or {"model_type": "mixtral"}, verify, NOTE)
    text = (folder / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def from_hub(source="org/model-7b"):
    return Record(verb="upcycle", command=f"rekindle upcycle {source} out", options={}, source=source,
                  source_fingerprint="abc123", summary="8 experts, top-2")  # fmt: skip


def test_head_and_body_of_a_card(tmp_path):
    head, body = card(tmp_path, [from_hub()], VERIFY)
    assert head == {
        "base_model": ["org/model-7b"],
        "library_name": "transformers",
        "tags": ["rekindle", "upcycle"],
    }
    parts = [
        "# child",
        NOTE,
        "3,950,000 parameters, 1,260,000 active per token",
        "| upcycle | org/model-7b | abc123 |",
        "| relative difference | 3.100×10⁻⁷ |",
        "| held | yes |",
        "rekindle upcycle org/model-7b out",
        "model_type: mixtral",
        "Unknown: no parent's card",
    ]
    for part in parts:
        assert part in body


def test_a_folder_is_not_a_base_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work" / "parent").mkdir(parents=True)
    assert "base_model" not in card(tmp_path, [UPCYCLE])[0]


def test_what_an_earlier_step_wrote_is_not_a_base_model_even_where_it_is_gone(tmp_path):
    head, _ = card(tmp_path, [INIT, PARENT, UPCYCLE])
    assert "base_model" not in head
    assert head["tags"] == ["rekindle", "upcycle", "train", "init"]
    head, _ = card(tmp_path, [from_hub(), replace(UPCYCLE, source="org/model-7b-upcycled")], name="second")
    assert head["base_model"] == ["org/model-7b-upcycled", "org/model-7b"]


@pytest.mark.parametrize("source", ["hf://org/model-7b", "org/model-7b@main"])
def test_hub_names_in_other_spellings(tmp_path, source):
    assert card(tmp_path, [from_hub(source)])[0]["base_model"] == ["org/model-7b"]


def test_the_parents_license_is_inherited(tmp_path):
    parent = tmp_path / "parent"
    parent.mkdir()
    (parent / "README.md").write_text("---\nlicense: other\nlicense_name: acme\ntags: [x]\n---\n# Parent\n")
    head, body = card(tmp_path, [from_hub(str(parent))])
    assert (head["license"], head["license_name"]) == ("other", "acme")
    assert "Inherited from the parent's card: other." in body


@pytest.mark.parametrize("readme", ["no head", "---\n[broken\n---\n", "---\n- list\n---\n", "---\nlicense: [a]\n---\n"])
def test_a_parent_that_states_no_license_leaves_it_unknown(tmp_path, readme):
    parent = tmp_path / "parent"
    parent.mkdir()
    (parent / "README.md").write_text(readme)
    head, body = card(tmp_path, [from_hub(str(parent))])
    assert "license" not in head
    assert "Unknown" in body


ODD = {
    "a date that is none": "license: mit\ndate: 2024-02-30",
    "a number of 5,000 digits": f"license: mit\nsize: {'9' * 5000}",
    "a tag": "license: mit\nx: !!python/object/apply:os.system [true]",
    "an odd time and octal": "license: mit\nt: 2024-01-01T25:61:61Z\no: 0o99",
}
LOST = {"no end of brackets": f"license: mit\nx: {'[' * 20_000}", "no end of keys": "license: mit\n" + "? " * 20_000}


@pytest.mark.parametrize("head", [*ODD.values(), *LOST.values()], ids=[*ODD, *LOST])
def test_an_odd_card_of_the_parent_costs_its_license_at_most(tiny, tmp_path, head):
    """End to end: whatever is there is settled, and never after the bytes are written."""
    parent = shutil.copytree(tiny("llama"), tmp_path / "parent")
    (parent / "README.md").write_text(f"---\n{head}\n---\n# Parent\n")
    text = (api.rewrite(parent).save(tmp_path / "out") / "README.md").read_text()
    assert ("Inherited from the parent's card: mit" in text) == (head in ODD.values())


def test_a_pipe_for_a_card_is_not_waited_for(tiny, tmp_path):
    parent = shutil.copytree(tiny("llama"), tmp_path / "parent")
    os.mkfifo(parent / "README.md")
    words = [sys.executable, "-m", "rekindle", "rewrite", str(parent), str(tmp_path / "out")]
    subprocess.run(words, check=True, capture_output=True, timeout=60)
    assert "Unknown: no parent's card" in (tmp_path / "out" / "README.md").read_text()


def test_what_does_not_show_is_written_out(tmp_path):
    """A terminal obeys escape codes, and a mark that turns text round makes a name another."""
    nasty = Record(verb="up\x1b[2Jcycle", command="run \x07\u202egnp", options={}, source="a\x9bb", summary="\ud800")
    _, body = card(tmp_path, [nasty], config={"x": "\x00"})
    for written in ("up\\u001b", "run \\u0007\\u202egnp", "a\\u009bb", "\\ud800"):
        assert written.replace("[", "&#91;") in body
    assert all(mark.isprintable() or mark == "\n" for mark in body.replace("\u00a0", ""))


def test_the_hub_is_told_what_it_is(tmp_path):
    for i, (name, tag) in enumerate(
        (
            ("MixtralForCausalLM", "text-generation"),
            ("GPT2LMHeadModel", "text-generation"),
            ("BertForMaskedLM", "fill-mask"),
            ("BertModel", "feature-extraction"),
            ("SomethingElse", None),
        )
    ):
        head, _ = card(tmp_path, [from_hub()], config={"architectures": [name]}, name=f"of {i}")
        assert head.get("pipeline_tag") == tag
        assert "base_model_relation" not in head, "made of it, not trained on"
    trained = replace(from_hub(), verb="train", source="child")
    assert card(tmp_path, [from_hub(), trained])[0]["base_model_relation"] == "finetune"


def test_the_card_says_where_it_is_exact_and_who_balances(tiny, tmp_path):
    out = api.upcycle(tiny("qwen2"), experts=4).save(tmp_path / "out")
    text = (out / "README.md").read_text()
    assert "| llama.cpp | it keeps the top-k weights as they are" in text
    assert "| vllm | as transformers does | vllm-project/vllm: " in text
    assert "`output_router_logits` is false" in text
    text = (api.upcycle(tiny("qwen2"), experts=4, engine="llama.cpp").save(tmp_path / "cpp") / "README.md").read_text()
    assert "| llama.cpp | as transformers does | ggml-org/llama.cpp: src/models/qwen2moe.cpp at 623ac8d |" in text
    assert "In serving engines" not in (api.rewrite(tiny("llama")).save(tmp_path / "dense") / "README.md").read_text()


def test_other_trainers_add_no_balance_loss_until_they_are_told(tiny):
    import torch

    ids = torch.arange(32).view(1, 32)
    losses = {}
    for asked in (False, True):
        model = load_model(tiny("mixtral"), "float32")
        model.config.output_router_logits = asked
        losses[asked] = float(model(input_ids=ids, labels=ids).loss.detach())
    assert json.loads((tiny("mixtral") / "config.json").read_text())["output_router_logits"] is False
    assert losses[True] > losses[False]


def test_nothing_from_a_file_becomes_markup(tmp_path):
    nasty = Record(verb="<script>x</script>", command="run ```\n# not a heading", options={},
                   source="a|b <b>", source_fingerprint="[l](u)", summary="<img src=x>")  # fmt: skip
    _, body = card(tmp_path, [nasty], {"<i>": "<script>"}, {"k": "```\n<script>"}, name="<b>")
    outside = "".join(part for i, part in enumerate(body.split("````")) if i % 2 == 0)
    for markup in ("<script", "<img", "<b>", "<i>", "[l]", "a|b"):
        assert markup not in outside


def test_a_card_written_before_its_folder_is_renamed_has_the_final_name(tmp_path):
    assert "# upcycled\n" in card(tmp_path, [from_hub()], name=".upcycled.partial")[1]


def test_the_recipe_in_the_folder_is_quoted(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "rekindle.yaml").write_text("steps:\n- upcycle: {experts: 8}\n")
    write_card(folder, Manifest(version="0.1.0", lineage=[from_hub()]), {}, None, NOTE)
    assert "- upcycle: {experts: 8}" in (folder / "README.md").read_text()


def licensed(folder, text):
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(f"---\n{text}\n---\n")
    return folder


def two(folder, left, right, **more):
    """The lineage of a merge of two sources, neither of which has a record unless `more` has its manifest."""
    made_of = {"a": (str(left), "mark-a", more.get("a")), "b": (str(right), "mark-b", more.get("b"))}
    command = f"rekindle merge {left} {right} {folder}"
    return extended(made_of, Record(verb="merge", command=command, options={}, summary="mean of 2"))


def test_a_merge_names_all_its_parents_and_how_they_are_related(tmp_path):
    head, body = card(tmp_path, two("out", "org/left", "hf://org/right@main"))
    assert (head["base_model"], head["base_model_relation"]) == (["org/left", "org/right"], "merge")
    assert "| merge | org/left | mark-a |\n| merge | hf://org/right@main | mark-b |" in body
    assert "* A: **from** org/left\n* B: **from** hf://org/right@main\n* A + B → **merge** mean of 2" in body
    made = Manifest(version="1", lineage=[from_hub("org/left")])
    tuned = replace(PARENT, source="out")
    head, _ = card(tmp_path, [*two("out", "out", "org/right", a=made), tuned], name="tuned")
    assert head["base_model"] == ["org/right", "org/left"], "`out` is what the command before was told to write"
    assert head["base_model_relation"] == "merge"


def test_parents_that_agree_on_a_license_hand_it_on(tmp_path):
    left, right = (licensed(tmp_path / name, "license: mit") for name in ("left", "right"))
    head, body = card(tmp_path, two("out", left, right))
    assert head["license"] == "mit"
    assert "Inherited from the parents' cards, which agree: mit." in body


@pytest.mark.parametrize("other", ["license: apache-2.0", "license: mit\nlicense_link: elsewhere", "tags: [x]"])
def test_of_parents_that_do_not_agree_none_is_claimed_and_each_is_named(tmp_path, other):
    left, right = licensed(tmp_path / "left", "license: mit"), licensed(tmp_path / "right", other)
    head, body = card(tmp_path, two("out", left, right))
    assert "license" not in head
    stated = {"license: apache-2.0": "apache-2.0", "tags: [x]": "none"}.get(other, "mit (elsewhere)")
    said = f"None is claimed, since the parents' cards do not state the same: {left}: mit; {right}: {stated}."
    assert said in body
    child = tmp_path / "child"  # and so it stays where the card is written anew, when they may be out of reach
    shutil.rmtree(left)
    write_card(child, Manifest(version="1", lineage=two("out", left, right)), {}, VERIFY, NOTE)
    assert said in (child / "README.md").read_text()


def test_each_parent_s_license_is_the_nearest_behind_it(tmp_path):
    base = licensed(tmp_path / "base", "license: mit")
    tuned = Record(verb="train", command="rekindle train x y", options={}, source=str(base))
    made = Manifest(version="1", lineage=[tuned])
    head, _ = card(tmp_path, two("out", tmp_path / "tuned", base, a=made))
    assert head["license"] == "mit"
    scratch = Manifest(version="1", lineage=[INIT])  # what began here has no parent who could state another
    head, _ = card(tmp_path, two("out", "own", base, a=scratch), name="half")
    assert head["license"] == "mit"


def test_a_source_is_looked_for_where_the_command_was_typed(tmp_path, monkeypatch):
    """Whatever the current folder is, and behind the nearest as well; what is here of the same name is another."""
    desk, elsewhere = tmp_path / "desk", tmp_path / "elsewhere"
    licensed(desk / "work" / "init", "license: mit")
    licensed(elsewhere / "work" / "init", "license: wrong")
    monkeypatch.chdir(elsewhere)
    life = [PARENT, UPCYCLE]  # work/init -> work/parent, which is gone -> work/upcycled-start
    head, _ = card(desk / "work", life, name="upcycled-start")
    assert head["license"] == "mit"
    assert "base_model" not in head
    away = [replace(PARENT, source_fingerprint="of what it was"), UPCYCLE]
    assert "license" not in card(tmp_path, away, name="moved")[0]


def test_what_an_option_names_is_not_what_was_written(tmp_path):
    made = replace(PARENT, command="rekindle train 'a b' out --data org/text", source=None)
    assert card(tmp_path, [made, replace(UPCYCLE, source="org/text")])[0]["base_model"] == ["org/text"]


some_text = st.text(max_size=5) | st.sampled_from(["org/m", "~no/one", "a b", "..", "'", "x" * 5000, "work/a"])
some_place = st.none() | st.integers(0, 3)
anything = st.fixed_dictionaries(
    {
        "verb": st.sampled_from(["train", "init", "merge"]),
        "options": st.just({}),
        "command": some_text | st.builds("rekindle merge {} {}".format, some_text, some_text),
    },
    optional={
        "source": some_text,
        "tokens": st.integers(0, 2),
        "after": some_place,
        "sources": st.dictionaries(some_text, st.builds(dict, source=some_text, after=some_place), max_size=3),
    },
)


@settings(deadline=None, max_examples=150)
@given(st.lists(anything, max_size=5))
def test_any_life_that_can_be_read_can_be_told(tmp_path_factory, records):
    folder = tmp_path_factory.mktemp("any")
    (folder / "rekindle.json").write_text(json.dumps({"version": "1", "lineage": records}))
    try:
        manifest = read_manifest(folder)
    except RekindleError:
        return
    write_card(folder, manifest, {}, None, NOTE)
    write_card(folder, manifest, {}, None, NOTE, {"": folder})
    shown = lines(manifest.lineage)
    named = {line.name for line in shown} - {""}
    assert len(named) == len([line for line in shown if line.name])
    assert named == {name for line in shown for name in line.after}
    told = [link for line in shown for link in line.links if link.verb != "from"]
    assert len(told) <= len(manifest.lineage)
    assert {link.verb for link in told} == {record.verb for record in manifest.lineage}
