"""Where exact is exact: each engine's rules, as anatomy.engines has them, played in transformers' own classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from apply.apply_moments import write_moments
from safetensors.torch import load_file, save_file
from tiny_models import SPARSE
from torch.nn.functional import silu

from rekindle import api
from rekindle.anatomy import FAMILIES
from rekindle.anatomy.engines import READ_ON, READINGS, WEIGHTS, elsewhere
from rekindle.apply.load import load_model
from rekindle.edit.promise import EXACT
from rekindle.errors import RekindleError

IDS = torch.randint(64, (4, 32), generator=torch.Generator().manual_seed(0))
ENGINES = list(READINGS)
DENSE = ("llama", "qwen2", "qwen3", "olmo2")  # mistral and phi3 become mixtral, as llama does
# What a norm after the branch does not even out: outputs no larger than its eps.
SMALL = {"olmo2": {"initializer_range": 0.02}, "flex_olmo": {"initializer_range": 0.02}}


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS, use_cache=False).logits


def played(folder, engine):
    """The logits of a checkpoint under the engine's rules: routing weights, the switch, a head that is not stored."""
    config, model = json.loads((folder / "config.json").read_text()), load_model(folder, "float32")
    reading = READINGS[engine][config["model_type"]]

    def weigh(module, args, result):
        scores, _, chosen = result
        weights = scores.float().softmax(-1).gather(-1, chosen)
        divides = reading.divides if reading.weights != "config" else config.get("norm_topk_prob", True)
        return scores, weights / weights.sum(-1, keepdim=True) if divides else weights, chosen

    for layer in model.model.layers:
        layer.mlp.gate.register_forward_hook(weigh)
        if reading.shared.startswith("silu"):
            gate = layer.mlp.shared_expert_gate
            gate.register_forward_hook(lambda module, args, x: torch.logit(silu(x) / x))
    if "own head" in reading.wants and "lm_head.weight" not in load_file(folder / "model.safetensors"):
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    return logits(model)


def apart(folder, engine, parent):
    before = logits(load_model(parent, "float32"))
    return float((played(folder, engine) - before).abs().max() / before.abs().max())


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied"])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("family", DENSE)
def test_what_is_asked_for_an_engine_is_exact_there_or_refused(tiny, tmp_path, family, engine, tied):
    parent = tiny(family, tie_word_embeddings=tied, **SMALL.get(family, {}))
    options = {"experts": 4, "engine": engine, "router_std": 1.0}
    if family == "olmo2":
        with pytest.raises(RekindleError, match="keeps the top-k weights|what it does with this family is unknown"):
            api.upcycle(parent, **options)
        return
    model = api.upcycle(parent, **options)
    assert engine in model.checkpoint.promise.text
    child = model.save(tmp_path / "out")
    verdict = api.verify(child, against=parent, tokens=128)
    assert (verdict.promise, verdict.held) == ("exact", True), "in transformers too"
    assert apart(child, engine, parent) <= EXACT


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied"])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("family", DENSE)
def test_the_table_says_where_the_usual_child_is_another_function(tiny, tmp_path, family, engine, tied):
    parent = tiny(family, tie_word_embeddings=tied, **SMALL.get(family, {}))
    model = api.upcycle(parent, experts=4, router_std=1.0)
    why = elsewhere(model.checkpoint.family.model_type, model.checkpoint.settings).get(engine)
    assert (why is not None) == any(f"{engine}" in note for note in model.checkpoint.notes)
    if why != WEIGHTS["unknown"]:
        assert (apart(model.save(tmp_path / "out"), engine, parent) <= EXACT) == (why is None)


def test_a_switch_of_zeros_is_undefined_where_it_is_divided_by(tiny, tmp_path):
    parent = tiny("qwen2")
    usual = api.upcycle(parent, experts=4, shared_experts=1).save(tmp_path / "usual")
    assert apart(usual, "llama.cpp", parent) != apart(usual, "llama.cpp", parent), "NaN"
    for dtype in ("float32", "bfloat16", "float16"):
        parent = tiny("qwen2", dtype=dtype)
        child = api.upcycle(parent, experts=4, engine="llama.cpp").save(tmp_path / dtype)
        assert apart(child, "llama.cpp", parent) <= EXACT, dtype


def test_in_an_engine_that_keeps_the_weights_all_experts_are_exact(tiny, tmp_path):
    parent = tiny("olmo2", tie_word_embeddings=True)
    child = api.upcycle(parent, experts=4, top_k=4, engine="vllm", router_std=1.0).save(tmp_path / "out")
    assert apart(child, "vllm", parent) <= EXACT
    assert api.verify(child, against=parent, tokens=128).held


def moved(folder, to):
    """A checkpoint as training leaves it: every weight elsewhere, so that no two experts are alike and all speak."""
    shutil.copytree(folder, to)
    weights, generator = load_file(to / "model.safetensors"), torch.Generator().manual_seed(1)
    weights = {name: x + 0.1 * torch.randn(x.shape, generator=generator) for name, x in weights.items()}
    save_file(weights, to / "model.safetensors", metadata={"format": "pt"})
    return to


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_what_was_made_for_an_engine_and_trained_is_served_as_it_was_trained(tiny, tmp_path, family, engine):
    parent = tiny(family, tie_word_embeddings=True)
    child = api.upcycle(parent, experts=4, engine=engine).save(tmp_path / "out")
    trained = moved(child, tmp_path / "trained")
    assert apart(trained, engine, trained) <= EXACT
    grown = api.grow_experts(trained, engine=engine, noise=0).save(tmp_path / "grown")
    assert apart(grown, engine, trained) <= EXACT


def test_the_usual_child_once_trained_is_another_function_where_the_table_says_so(tiny, tmp_path):
    child = api.upcycle(tiny("qwen2"), experts=4).save(tmp_path / "out")
    trained = moved(child, tmp_path / "trained")
    assert apart(trained, "llama.cpp", trained) > 0.01
    assert apart(trained, "vllm", trained) <= EXACT


def test_apart_from_the_embeddings_the_head_has_a_past_of_neither(tiny, tmp_path):
    """What was one gradient is two: the moments of both start empty, those of all else go on."""
    parent = tiny("qwen3", tie_word_embeddings=True)
    state = write_moments(tmp_path / "state", parent)
    out = api.upcycle(parent, experts=4, engine="sglang").save(tmp_path / "out", optimizer_state=str(state))
    moments, weights = load_file(out / "optimizer" / "optimizer.safetensors"), load_file(out / "model.safetensors")
    assert torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        assert not moments[f"{name}.exp_avg"].any()
    assert moments["model.norm.weight.exp_avg"].any()
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("divided", [False, True])
@pytest.mark.parametrize("family", [family for family in SPARSE if family != "deepseek_v3"])
def test_grown_experts_are_exact_where_the_engine_does_as_the_config_says(tiny, tmp_path, family, engine, divided):
    changes = {} if family == "mixtral" else {"norm_topk_prob": divided} | SMALL.get(family, {})
    parent, options = tiny(family, **changes), {"factor": 2, "noise": 0, "engine": engine}
    if READINGS[engine][family].weights != "unknown" and apart(parent, engine, parent) <= EXACT:
        child = api.grow_experts(parent, **options).save(tmp_path / "out")
        assert apart(child, engine, parent) <= EXACT
    else:
        with pytest.raises(RekindleError, match=f"^{engine} does not serve this {family}"):
            api.grow_experts(parent, **options)


@pytest.mark.parametrize(
    ("kind", "engines"), [("llama3", {"sglang"}), ("linear", {"sglang"}), ("longrope", {"sglang", "llama.cpp"})]
)
def test_positions_that_an_engine_does_not_stretch_are_told(tiny, kind, engines):
    scaling = {"rope_type": kind, "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 32}
    if kind == "llama3":
        scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if kind == "longrope":
        scaling |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    parent = tiny("llama", rope_parameters=scaling)
    child = api.upcycle(parent, experts=4).checkpoint
    assert set(elsewhere("mixtral", child.settings)) == engines
    for engine in engines:
        with pytest.raises(RekindleError, match="it scales no RoPE|it reads no factors"):
            api.upcycle(parent, experts=4, engine=engine, target="mixtral")
    assert api.upcycle(parent, experts=4, engine="sglang").checkpoint.family.model_type == "qwen2_moe", "it scales RoPE"


def test_each_refusal_names_the_nearest_that_is_served(tiny):
    for family, options, hint in (
        ("olmo2", {"engine": "vllm"}, "--top-k 4 (the weights of all do), or --engine transformers"),
        ("olmo2", {"engine": "sglang"}, "--engine transformers"),
        (
            "qwen2",
            {"engine": "llama.cpp", "layers": "every:2"},
            "--layers all, or --engine vllm or --engine transformers",
        ),
        (
            "qwen2",
            {
                "engine": "llama.cpp",
                "init": "virtual-group",
                "granularity": 4,
                "shared_experts": 1,
                "top_k": 3,
                "experts": 6,
            },
            "--shared-experts 4, or --engine transformers",
        ),
    ):
        with pytest.raises(RekindleError) as refused:
            api.upcycle(tiny(family), **{"experts": 4} | options)
        assert refused.value.hint == hint
    with pytest.raises(RekindleError, match="engine is 'ollama', but it must be one of transformers, llama.cpp"):
        api.upcycle(tiny("llama"), experts=4, engine="ollama")


def test_the_table_is_whole_and_loads_the_names_that_are_written():
    """Each engine x family has a row, and the names in it are those of our family tables."""
    for engine, readings in READINGS.items():
        assert set(readings) == set(SPARSE)
        for family, reading in readings.items():
            stem, _, parts = reading.experts.partition("{expert}.")
            tail = parts[parts.index("}") + 1 :]
            wanted = {f"{stem}{{expert}}.{part}{tail}.weight" for part in parts[1 : parts.index("}")].split(",")}
            rows = {row.name.split("{layer}.")[1] for row in FAMILIES[family].sparse if "{expert}" in row.name}
            assert wanted == rows, (engine, family)
            assert reading.weights in WEIGHTS
            assert reading.commit or reading.weights == "unknown"


def test_the_page_has_the_table():
    page = (Path(__file__).parents[2] / "docs" / "methods" / "upcycle.md").read_text()
    assert f"| family | {' | '.join(READINGS)} |" in page
    for family in SPARSE:
        cells = [
            f"{r.weights}{'; ' if r.wants else ''}{', '.join(r.wants)}" for r in (READINGS[e][family] for e in ENGINES)
        ]
        assert f"| `{family}` | {' | '.join(cells)} |" in page
    assert f"read on {READ_ON}" in page.replace("\n", " ")
