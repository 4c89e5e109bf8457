"""Recipes: what is wrong with a step is said with its place, before any byte is written."""

from __future__ import annotations

import shutil

import pytest

from rekindle import api
from rekindle.config import dump_yaml
from rekindle.errors import RekindleError
from rekindle.store.manifest import read_manifest


def recipe(tmp_path, source, *steps, **more):
    path = tmp_path / "recipe.yaml"
    named = {"sources": source} if isinstance(source, dict) else {"source": str(source)}
    path.write_text(dump_yaml(named | {"steps": list(steps)} | more))
    return path


def test_every_unknown_key_is_named_with_its_step(tiny, tmp_path):
    path = recipe(tmp_path, tiny("llama"), {"rewrite": {"dtyp": "keep"}}, {"upcycle": {"expert": 4}}, {"upcicle": {}})
    with pytest.raises(RekindleError) as error:
        api.load_recipe(path)
    text = str(error.value)
    assert "'dtyp'" in text
    assert "step 1, rewrite" in text
    assert "'expert'" in text
    assert "step 2, upcycle" in text
    assert "no method 'upcicle'" in text
    assert "try:   upcycle" in text


def test_steps_that_do_not_compose_say_which_and_why(tiny, tmp_path):
    path = recipe(tmp_path, tiny("llama"), {"upcycle": {"experts": 4}}, {"upcycle": {"experts": 2}})
    with pytest.raises(RekindleError, match="Step 2, upcycle, does not fit .* has experts already") as error:
        api.run(path, tmp_path / "out")
    assert "mixtral, 4 experts" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_chaining_in_python_says_the_same(tiny):
    once = api.upcycle(tiny("llama"), experts=4)
    with pytest.raises(RekindleError, match="Step 2, upcycle"):
        api.upcycle(once, experts=2)


def test_one_pass_is_the_steps_one_by_one(tiny, tmp_path):
    """The bytes of a recipe are those of its steps through disk."""
    path = recipe(tmp_path, tiny("llama"), {"rewrite": {"dtype": "bfloat16"}}, {"upcycle": {"experts": 4}})
    together = api.run(path, tmp_path / "together")
    first = api.rewrite(tiny("llama"), dtype="bfloat16").save(tmp_path / "first")
    second = api.upcycle(first, experts=4).save(tmp_path / "second")
    assert (together / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert (together / "config.json").read_bytes() == (second / "config.json").read_bytes()


@pytest.mark.parametrize("key", ["of", "as", "tower"])
@pytest.mark.parametrize("given", [5, 0, False, "", [], ["a", 5], {"a": "b"}])
def test_what_stands_beside_a_verb_is_a_name(tmp_path, key, given):
    path = recipe(tmp_path, "SRC", {"gqa": {}, key: given}, {"upcicle": {}, key: given})
    with pytest.raises(RekindleError, match="of, as and tower beside gqa must be names") as error:
        api.run(path, tmp_path / "out")
    assert "beside upcicle" in str(error.value)


@pytest.mark.parametrize(
    ("verb", "key"),
    [
        *((verb, key) for verb in ("init", "train") for key in ("of", "as", "tower")),
        ("merge", "tower"),
        ("rewrite", "tower"),
    ],
)
def test_what_a_verb_does_not_read_is_refused_beside_it(tmp_path, verb, key):
    path = recipe(tmp_path, tmp_path / "nothing", {verb: {}, key: "decoder"})
    with pytest.raises(RekindleError, match=f"^{key} beside {verb} would not be read"):
        api.run(path, tmp_path / "out")


def test_a_tower_of_several_models_is_no_word_of_merge(tiny, tmp_path):
    sources = {"one": str(tiny("t5")), "other": str(tiny("t5", seed=1))}
    path = recipe(tmp_path, sources, {"merge": {}, "tower": "decoder"})
    with pytest.raises(RekindleError, match="tower beside merge would not be read"):
        api.run(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_is_named_once(tmp_path):
    path = recipe(tmp_path, {"a": "SRC", "b": "SRC2"}, {"merge": {}, "of": ["a", "b", "a"]})
    with pytest.raises(RekindleError, match="of beside merge has a twice"):
        api.load_recipe(path)


@pytest.mark.parametrize("options", [0, False, [], "dtype"])
def test_options_are_keys_and_values(tmp_path, options):
    with pytest.raises(RekindleError, match="options of rewrite must be keys and values"):
        api.load_recipe(recipe(tmp_path, "SRC", {"rewrite": options}))


@pytest.mark.parametrize("save", [5, 0, ["fused"], "fused"])
def test_save_is_keys_and_values(tmp_path, save):
    with pytest.raises(RekindleError, match="save must be keys and values"):
        api.load_recipe(recipe(tmp_path, "SRC", {"rewrite": {}}, save=save))


@pytest.mark.parametrize("key", ["part", "overwrite", "out", "shards"])
def test_save_has_options_of_writing_alone(tiny, tmp_path, key):
    with pytest.raises(RekindleError, match=f"no option {key!r}") as error:
        api.run(recipe(tmp_path, tiny("llama"), {"rewrite": {}}, save={key: "1/2"}), tmp_path / "out")
    assert "save in" in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["init", "train"])
def test_training_has_no_options_of_save(tmp_path, verb):
    with pytest.raises(RekindleError, match=f"save beside {verb} would not be read"):
        api.run(recipe(tmp_path, "SRC", {verb: {}}, save={"fused": True}), tmp_path / "out")


def test_a_source_of_several_has_a_name(tmp_path):
    with pytest.raises(RekindleError, match="names no source"):
        api.load_recipe(recipe(tmp_path, {"": "SRC", "b": "SRC2"}, {"rewrite": {}}))


def test_a_series_is_more_than_one_model(tiny, tmp_path):
    for step in (1, 2):
        shutil.copytree(tiny("llama"), tmp_path / "run" / f"checkpoint-{step}")
    for of in ({}, {"of": "run"}, {"of": ["run/step-1", "run/step-2"]}):
        path = recipe(tmp_path, {"run": str(tmp_path / "run")}, {"rewrite": {}} | of)
        with pytest.raises(RekindleError, match="rewrite takes one model, and there are 2") as error:
            api.load_recipe(path)
        assert "of: run/step-1, beside rewrite" in str(error.value)


def series(source, folder, *steps):
    for step in steps:
        shutil.copytree(source, folder / f"checkpoint-{step}")
    return f"{folder}/checkpoint-*"


def test_a_model_of_a_series_is_named_once(tiny, tmp_path):
    sources = {"run": series(tiny("llama"), tmp_path / "run", 1, 2), "x": str(tiny("llama"))}
    path = recipe(tmp_path, sources, {"merge": {}, "of": ["run", "x", "run/step-2"]})
    with pytest.raises(RekindleError, match="of has run/step-2 twice") as error:
        api.load_recipe(path)
    assert error.value.hint == "of: [run/step-1, run/step-2, x]"


REWRITE_A = {"rewrite": {}, "of": "a"}


@pytest.mark.parametrize(
    ("steps", "left"),
    [
        ([REWRITE_A], "b, run"),
        ([{"merge": {}, "of": ["a", "b", "run/step-1"]}], "run/step-2"),
        ([REWRITE_A, {"merge": {}, "of": ["b", "run"]}], "a"),  # what a step made, not the source
        ([REWRITE_A | {"as": "x"}, {"merge": {}, "of": ["a", "b", "run"]}], "x"),
        ([REWRITE_A | {"as": "b"}, {"merge": {}}], "b"),  # the source, whose name a result takes
    ],
)
def test_a_recipe_makes_nothing_in_vain(tiny, tmp_path, steps, left):
    """Neither a source is left out, nor what a step made; the hint names all of it."""
    sources = {name: str(tiny("llama")) for name in "ab"} | {"run": series(tiny("llama"), tmp_path / "run", 1, 2)}
    with pytest.raises(RekindleError, match=f"^Nothing is made of {left}\\.") as error:
        api.load_recipe(recipe(tmp_path, sources, *steps))
    assert error.value.hint == f"of: [{left}]"


def test_what_has_no_name_is_not_left_out_either(tiny, tmp_path):
    sources = {name: str(tiny("llama")) for name in "abc"}
    for last in ({"merge": {}, "of": ["a", "c"]}, {"rewrite": {}, "of": "c"}):
        path = recipe(tmp_path, sources, {"merge": {}, "of": ["a", "b"]}, last)
        with pytest.raises(RekindleError, match="^Nothing is made of what a step made without a name") as error:
            api.load_recipe(path)
        assert error.value.hint == "as: NAME beside that step, and of: [NAME]"


def test_what_was_measured_in_two_sources_is_told_of_both(tiny, tmp_path):
    """By the sources' names; of an only source as it always was."""
    each = [{"gqa": {"kv_heads": 1}, "of": name} for name in "ab"]
    path = recipe(tmp_path, {"a": str(tiny("llama")), "b": str(tiny("llama", seed=1))}, *each, {"merge": {}})
    measured = read_manifest(api.run(path, tmp_path / "out")).measured
    alone = {
        name: read_manifest(api.gqa(tiny("llama", seed=seed), kv_heads=1).save(tmp_path / name)).measured
        for seed, name in enumerate("ab")
    }
    assert [*alone["a"]] == [f"layer {layer}, 2 to 1 key-value heads" for layer in range(3)]
    assert measured == {f"{name}, {row}": found for name in "ab" for row, found in alone[name].items()}


def test_a_name_that_is_free_again_is_given_again(tiny, tmp_path):
    sources = {name: str(tiny("llama")) for name in "ab"}
    path = recipe(tmp_path, sources, {"merge": {}, "as": "b"}, {"rewrite": {}, "of": "b", "as": "a"})
    model, _ = api.load_recipe(path)
    assert [step.verb for step in model.steps] == ["merge", "rewrite"]
