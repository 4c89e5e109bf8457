"""Recipes: what is wrong with a step is said with its place, before any byte is written."""

from __future__ import annotations

import pytest

from rekindle import api
from rekindle.config import dump_yaml
from rekindle.errors import RekindleError


def recipe(tmp_path, source, *steps, **more):
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_yaml({"source": str(source), "steps": list(steps)} | more))
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
