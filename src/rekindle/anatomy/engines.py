"""What serving engines do with the experts of each family, as their sources say.

A result is exact in transformers. An engine has code of its own for each family, and where that code weighs the chosen
experts by another rule, the same files are another function there. This table holds what was read: of which file, at
which commit, when. What was not read is unknown, and unknown is never called exact. It speaks of experts, and of what
the engine's code for a dense parent has and that for its sparse kin lacks; the rest is the engine's own, for the one
as for the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from rekindle.anatomy.settings import Settings

Engine = Literal["transformers", "llama.cpp", "vllm", "sglang"]

READ_ON = "2026-11-27"
REPOSITORIES = {"llama.cpp": "ggml-org/llama.cpp", "vllm": "vllm-project/vllm", "sglang": "sgl-project/sglang"}


@dataclass(frozen=True)
class Reading:
    """What the source of an engine says of a family."""

    weights: str  # of the chosen experts, see WEIGHTS
    source: str  # the file
    commit: str
    experts: str = "mlp.experts.{expert}.{gate,up,down}_proj"  # the names it loads, in each layer
    shared: str = "none"  # "plain", "sigmoid(switch x)", or "silu(switch x) / (switch x)", undefined where that is 0
    wants: tuple[str, ...] = ()  # of WANTS

    @property
    def divides(self) -> bool:
        """Whether the top-k weights can be divided by their sum there."""
        return self.weights in ("divided", "config")


def _rope(settings: Settings) -> str:
    return str((settings.rope_scaling or {}).get("rope_type"))


WEIGHTS = {
    "divided": "it divides the top-k weights by their sum, whatever norm_topk_prob says",
    "kept": "it keeps the top-k weights as they are, whatever norm_topk_prob says",
    "config": "norm_topk_prob decides",
    "unknown": "what it does with this family is unknown",
}
# What an engine needs for a family -> whether settings have it, and what is said where they have not.
WANTS: dict[str, tuple[Callable[[Settings], bool], str]] = {
    "own head": (lambda s: not s.tie_word_embeddings, "it reads no head that is tied to the embeddings"),
    "all sparse": (lambda s: len(s.sparse_layers) == s.num_layers, "it has experts in every layer"),
    "qkv bias": (lambda s: s.qkv_bias, "it has biases on q, k and v"),
    "no scaled rope": (lambda s: not s.rope_scaling, "it scales no RoPE"),
    "no rope factors": (lambda s: _rope(s) not in ("llama3", "longrope"), "it reads no factors of llama3 or longrope"),
    "no longrope": (lambda s: _rope(s) != "longrope", "it reads no factors of longrope"),
    "even heads": (lambda s: s.head_dim * s.num_heads == s.hidden_size, "it has no head_dim of its own"),
}

W123 = "block_sparse_moe.experts.{expert}.{w1,w3,w2}"
SWITCHED = "sigmoid(switch x)"
_CPP, _VLLM, _SGLANG = "src/models/", "vllm/model_executor/models/", "python/sglang/srt/models/"

READINGS: dict[str, dict[str, Reading]] = {
    "llama.cpp": {
        "mixtral": Reading("divided", _CPP + "llama.cpp", "069be0a", W123, wants=("no longrope",)),
        "qwen2_moe": Reading(
            "kept", _CPP + "qwen2moe.cpp", "623ac8d",
            shared="silu(switch x) / (switch x)", wants=("own head", "all sparse", "no rope factors"),
        ),
        "qwen3_moe": Reading(
            "divided", _CPP + "qwen3moe.cpp", "069be0a", wants=("all sparse", "no rope factors")
        ),
        "olmoe": Reading("kept", _CPP + "olmoe.cpp", "82234e0", wants=("own head", "no rope factors")),
        "flex_olmo": Reading("unknown", "conversion/olmo.py, which does not name it", "051139f"),
        "deepseek_v3": Reading("config", _CPP + "deepseek2.cpp", "07bede6", shared="plain"),
    },
    "vllm": {
        "mixtral": Reading("divided", _VLLM + "mixtral.py", "f0e2695", W123),
        "qwen2_moe": Reading("config", _VLLM + "qwen2_moe.py", "8bbabf0", shared=SWITCHED, wants=("qkv bias",)),
        "qwen3_moe": Reading("config", _VLLM + "qwen3_moe.py", "2e0831b"),
        "olmoe": Reading("kept", _VLLM + "olmoe.py", "048a32c", wants=("own head",)),
        "flex_olmo": Reading("kept", _VLLM + "flex_olmo.py", "1b36043", wants=("own head",)),
        "deepseek_v3": Reading("config", _VLLM + "deepseek_v2.py", "002d607", shared="plain"),
    },
    "sglang": {
        "mixtral": Reading("divided", _SGLANG + "mixtral.py", "7f1f5bc", W123,
                           wants=("own head", "even heads", "no scaled rope")),
        "qwen2_moe": Reading(
            "config", _SGLANG + "qwen2_moe.py", "0115497", shared=SWITCHED, wants=("own head", "all sparse")
        ),
        "qwen3_moe": Reading("config", _SGLANG + "qwen3_moe.py", "008af3a", wants=("own head", "all sparse")),
        "olmoe": Reading("kept", _SGLANG + "olmoe.py", "067e8f4", wants=("own head",)),
        "flex_olmo": Reading("unknown", "no file of this name was found", ""),
        "deepseek_v3": Reading("config", _SGLANG + "deepseek_v2.py", "3e4a39e", shared="plain"),
    },
}  # fmt: skip


def differs(engine: str, family: str, settings: Settings) -> Iterator[str]:
    """Each reason why an engine would not compute of these settings what transformers does; none: none was read."""
    reading = READINGS[engine].get(family)
    if reading is None or reading.weights == "unknown":
        yield WEIGHTS["unknown"]
        return
    some = settings.top_k < settings.num_experts  # the weights of all experts sum to 1 as they are
    if some and reading.weights != "config" and reading.divides != settings.norm_topk_prob:
        cancelled = settings.norm_order == "post"
        yield WEIGHTS[reading.weights] + (
            ", and the norm that follows evens that out but for its eps" if cancelled else ""
        )
    for want in reading.wants:
        has, otherwise = WANTS[want]
        if not has(settings):
            yield otherwise


def elsewhere(family: str, settings: Settings) -> dict[str, str]:
    """engine -> why the function is another there, or may be; only those of which that was read, or nothing was."""
    found = {engine: "; ".join(differs(engine, family, settings)) for engine in READINGS}
    return {engine: why for engine, why in found.items() if why}


def where_not(family: str, settings: Settings) -> list[str]:
    """A note on the engines that do not serve the function of these settings; none where there is none."""
    found = elsewhere(family, settings)
    unknown = [engine for engine, why in found.items() if why == WEIGHTS["unknown"]]
    other = [f"{engine} ({why})" for engine, why in found.items() if engine not in unknown]
    parts = [f"not served as the same function by {' and '.join(other)}"] if other else []
    parts += [f"unknown of {' and '.join(unknown)}"] if unknown else []
    return [f"{'; '.join(parts)}: see --engine"] if parts else []


def alike(family: str, settings: Settings) -> str:
    """ "--engine vllm or --engine transformers": where these settings are the same function."""
    return " or ".join(
        f"--engine {name}" for name in (*READINGS, "transformers") if name not in elsewhere(family, settings)
    )
