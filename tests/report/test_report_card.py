from dataclasses import replace

import pytest
import yaml
from report_runs import INIT, PARENT, UPCYCLE

from rekindle.report import write_card
from rekindle.store.manifest import Manifest, Record

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
