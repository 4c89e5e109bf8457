"""Steps compose: planned together and written in one pass they are the same as one by one through disk."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from apply.apply_moments import moments_of, write_moments
from hypothesis import given, settings
from hypothesis import strategies as st

from rekindle import api
from rekindle.config import resolve
from rekindle.errors import RekindleError
from rekindle.methods import METHODS

# Steps that often fit one after the other; which do, the test finds out.
STEPS = [
    ("upcycle", {"experts": 2, "top_k": 1}),
    ("upcycle", {"experts": 4, "init": "drop"}),
    ("upcycle", {"experts": 4, "init": "virtual-group", "granularity": 2}),
    ("grow-depth", {"factor": 2}),
    ("grow-depth", {"factor": 1.5, "order": "stack"}),
    ("grow-depth", {"layers": 4, "order": "llama-pro"}),
    ("grow-depth", {"layers": 4, "order": "solar"}),
    ("grow-experts", {"noise": 0.0}),
    ("grow-experts", {"noise": 0.1, "noise_router": True, "seed": 3}),
    ("grow-experts", {"noise": 0.0, "top_k": "keep"}),
    ("gqa", {"kv_heads": 1}),
    ("gqa", {"kv_heads": 4}),
    ("rewrite", {}),
    ("repair", {"lost": "layers:1"}),
    ("repair", {"lost": "layers:0-1"}),
]
FAMILIES = ("llama", "qwen2", "olmo2", "phi3", "gpt2", "qwen2_moe", "deepseek_v3")


def files(folder: Path) -> dict[str, bytes]:
    """What a step makes: weights, config and moments, by name."""
    paths = [*folder.glob("*.safetensors"), folder / "config.json", *folder.glob("optimizer/*")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def through_disk(source: Path, state: Path, steps: list, work: Path) -> Path:
    """The folder after the last step."""
    for i, (verb, options) in enumerate(steps):
        source = api.apply(verb, source, **options).save(work / str(i), optimizer_state=str(state))
        state = source / "optimizer"
    return source


def chained(source: Path, steps: list) -> api.Model:
    model = api.open(source)
    for verb, options in steps:
        model = api.apply(verb, model, **options)
    return model


STEPS_FILE = "optimizer/optimizer.json"


def assert_no_later(ours: bytes, theirs: bytes) -> None:
    ours_steps, their_steps = json.loads(ours)["steps"], json.loads(theirs)["steps"]
    assert ours_steps.keys() == their_steps.keys()
    assert all(ours_steps[name] in (0, their_steps[name]) for name in ours_steps)


def fitting(model: api.Model) -> list:
    """The steps that a model can take next."""
    return [step for step in STEPS if not refused(model, *step)]


def refused(model: api.Model, verb: str, options: dict) -> bool:
    known = resolve(METHODS[verb].config, options)
    try:
        model.then(verb, known).job()
    except RekindleError:
        return True
    return False


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(family=st.sampled_from(FAMILIES), dtype=st.sampled_from(["float32", "bfloat16"]), data=st.data())
def test_one_pass_is_the_steps_one_by_one(tiny, family, dtype, data):
    parent, steps = tiny(family, dtype=dtype), []
    while len(steps) < 3 and (fits := fitting(chained(parent, steps))):
        steps.append(data.draw(st.sampled_from(fits)))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        state = write_moments(work / "state", parent)
        apart = through_disk(parent, state, steps, work)
        together = chained(parent, steps)
        in_one, one_by_one = files(together.save(work / "together", optimizer_state=str(state))), files(apart)
        if family == "phi3":  # one step for a packed tensor is all that a disk between the steps can tell
            assert_no_later(in_one.pop(STEPS_FILE), one_by_one.pop(STEPS_FILE))
        assert in_one == one_by_one
        assert fitting(together) == fitting(api.open(apart))


def test_every_method_is_among_the_steps():
    """But for one that joins others than these are."""
    joins = {verb for verb, method in METHODS.items() if method.named_by}
    assert {verb for verb, _ in STEPS} | {verb for verb, *_ in MERGES} == METHODS.keys() - joins


# How two models that were grown become one, over a third where the way needs a base, and what is done to that.
MERGES = [
    ("merge", {"how": "linear", "weights": ("0.3", "0.7")}, ("upcycle", {"experts": 2})),
    ("merge", {"how": "slerp", "t": "0:1"}, ("grow-depth", {"layers": 7})),
    ("merge", {"how": "karcher", "by_role": {"attn": ("1", "0")}}, ("rewrite", {})),
    ("merge", {"how": "ties", "base": True}, ("gqa", {"kv_heads": 1})),
    ("merge", {"how": "dare", "base": True}, ("upcycle", {"experts": 2, "init": "noise"})),
    ("merge", {"how": "stock", "base": True}, ("rewrite", {"dtype": "float16"})),
]


@pytest.mark.parametrize(
    ("verb", "options", "after"), MERGES, ids=lambda x: x.get("how") if isinstance(x, dict) else ""
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_in_one_pass_is_merged_through_disk(tiny, tmp_path, verb, options, after, dtype):
    """Each parent computes something before: pooled heads are rounded once, and then merged, as on disk."""
    before = ("gqa", {"kv_heads": 1})
    folders = [tiny("llama", dtype=dtype, seed=seed) for seed in range(2 + ("base" in options))]
    states = [
        str(write_moments(tmp_path / f"state-{i}", folder, moments_of(folder, seed=i)))
        for i, folder in enumerate(folders)
    ]
    planned = [chained(folder, [before]) for folder in folders]
    places = [tmp_path / f"grown-{i}" for i in range(len(folders))]
    saved = [through_disk(*given, [before], place) for *given, place in zip(folders, states, places)]

    def merged(models):
        *models, base = models if "base" in options else [*models, None]
        return api.apply(verb, models, **(options | ({"base": base} if base else {})))

    together = api.apply(after[0], merged(planned), **after[1])
    together.save(tmp_path / "together", optimizer_state=tuple(states))
    middle = merged(saved).save(tmp_path / "merged", optimizer_state=tuple(str(x / "optimizer") for x in saved))
    apart = api.apply(after[0], middle, **after[1])
    apart.save(tmp_path / "apart", optimizer_state=str(middle / "optimizer"))
    assert files(tmp_path / "together") == files(tmp_path / "apart")
    recipe = api.run(tmp_path / "together" / "rekindle.yaml", tmp_path / "again")
    assert files(recipe) == files(tmp_path / "together")


NOISE = ("grow-experts", {"noise": 0.1, "noise_router": True})
CALCULATED_TWICE = {
    "narrowed": ("mixtral", "float32", [("rewrite", {"dtype": "bfloat16"}), NOISE]),
    "noise": ("llama", "bfloat16", [("upcycle", {"experts": 2, "init": "noise"}), NOISE]),
    "noise-f16": ("llama", "float16", [("upcycle", {"experts": 2, "init": "noise"}), NOISE]),
    "pooled": ("mixtral", "bfloat16", [("gqa", {"kv_heads": 2}), ("gqa", {"kv_heads": 1})]),
}


@pytest.mark.parametrize(("family", "dtype", "steps"), CALCULATED_TWICE.values(), ids=CALCULATED_TWICE)
def test_steps_round_as_on_disk(tiny, tmp_path, family, dtype, steps):
    """Where two steps calculate with one tensor, the second starts from the values the first would have saved."""
    parent = tiny(family, dtype=dtype, num_key_value_heads=4)
    state = write_moments(tmp_path / "state", parent)
    apart = through_disk(parent, state, steps, tmp_path)
    together = chained(parent, steps).save(tmp_path / "together", optimizer_state=str(state))
    assert files(together) == files(apart)


@pytest.mark.parametrize(
    ("steps", "kind"),
    [
        ([("grow-depth", {"factor": 2, "order": "llama-pro"}), ("upcycle", {"experts": 2})], "exact"),
        ([("upcycle", {"experts": 2}), ("grow-experts", {"noise": 0.0}), ("rewrite", {})], "exact"),
        ([("grow-depth", {"factor": 2}), ("upcycle", {"experts": 2})], "lossy"),
        ([("upcycle", {"experts": 2}), ("grow-experts", {"noise": 0.1}), ("rewrite", {})], "lossy"),
        ([("upcycle", {"experts": 2}), ("rewrite", {"dtype": "bfloat16"})], "lossy"),
    ],
)
def test_a_promise_is_as_good_as_the_worst_of_its_steps(tiny, tmp_path, steps, kind):
    model = chained(tiny("llama"), steps)
    assert model.checkpoint.promise.kind == kind
    verdict = api.verify(model.save(tmp_path / "out"), against=tiny("llama"), tokens=128)
    assert verdict.held
    assert (verdict.relative_difference > 1e-5) == (kind == "lossy")
