"""The spellings that are not one key to one setting: windows, which layers are sparse, RoPE."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from rekindle.anatomy.family import Family
    from rekindle.anatomy.settings import Settings

Config = Mapping[str, Any]

ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters")


class Spelling(NamedTuple):
    read: Callable[[Config, Family, int], tuple]
    write: Callable[[Settings, dict[str, Any]], str | None]  # returns why it cannot be spelt, or None


def read_rope(config: Config, default_theta: float) -> tuple[float, dict[str, Any] | None]:
    """theta and scaling out of v5's rope_parameters or v4's rope_theta and rope_scaling."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = dict(given)
    theta = rope.pop("rope_theta", None) or config.get("rope_theta") or default_theta
    kind = rope.pop("rope_type", None) or rope.pop("type", None) or "default"
    return float(theta), None if kind == "default" and not rope else {"rope_type": kind, **rope}


# -- attention windows -------------------------------------------------------------------------------------


def _no_windows(config: Config, family: Family, layers: int) -> tuple[int | None, ...]:
    return (None,) * layers


def _write_no_windows(settings: Settings, config: dict[str, Any]) -> str | None:
    return f"has no attention window; the parent has one of {max(_widths(settings))}" if _widths(settings) else None


def _uniform(config: Config, family: Family, layers: int) -> tuple[int | None, ...]:
    return (family.value(config, "sliding_window"),) * layers


def _write_uniform(settings: Settings, config: dict[str, Any]) -> str | None:
    config["sliding_window"] = settings.windows[0] if settings.windows else None
    return None if len(set(settings.windows)) <= 1 else "has one attention window for all layers; the parent's differ"


def _switched(config: Config, family: Family, layers: int) -> tuple[int | None, ...]:
    on = family.value(config, "use_sliding_window")
    return (family.value(config, "sliding_window") or 4096 if on else None,) * layers


def _write_switched(settings: Settings, config: dict[str, Any]) -> str | None:
    config["use_sliding_window"] = bool(_widths(settings))
    return _write_uniform(settings, config)


def _listed(config: Config, family: Family, layers: int) -> tuple[int | None, ...]:
    window = (family.value(config, "sliding_window") or 4096) if family.value(config, "use_sliding_window") else None
    kinds = config.get("layer_types")
    if kinds is not None:
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    first = family.value(config, "max_window_layers")
    if family.model_type == "qwen2_moe":  # transformers: every other layer among the first ones
        return tuple(window if layer % 2 == 0 and layer < first else None for layer in range(layers))
    return tuple(window if layer >= first else None for layer in range(layers))


def _write_listed(settings: Settings, config: dict[str, Any]) -> str | None:
    widths = _widths(settings)
    config["use_sliding_window"] = bool(widths)
    config["sliding_window"] = max(widths) if widths else None
    config["layer_types"] = ["full_attention" if w is None else "sliding_attention" for w in settings.windows]
    if widths:  # for readers that know no layer_types: the first layers are full, the rest have the window
        full = next((i for i, w in enumerate(settings.windows) if w is not None), settings.num_layers)
        config["max_window_layers"] = full
    return None if len(widths) <= 1 else "has one width for its attention windows; the parent has several"


def _widths(settings: Settings) -> set[int]:
    return {width for width in settings.windows if width is not None}


WINDOWS = {
    "none": Spelling(_no_windows, _write_no_windows),
    "uniform": Spelling(_uniform, _write_uniform),
    "switched": Spelling(_switched, _write_switched),
    "listed": Spelling(_listed, _write_listed),
}

# -- layers with experts -----------------------------------------------------------------------------------


def _no_experts(config: Config, family: Family, layers: int) -> tuple[int, ...]:
    return ()


def _write_no_experts(settings: Settings, config: dict[str, Any]) -> str | None:
    return "has no experts" if settings.sparse_layers else None


def _all_experts(config: Config, family: Family, layers: int) -> tuple[int, ...]:
    return tuple(range(layers))


def _write_all_experts(settings: Settings, config: dict[str, Any]) -> str | None:
    if settings.sparse_layers == tuple(range(settings.num_layers)):
        return None
    return f"has experts in every layer; asked for are {len(settings.sparse_layers)} of {settings.num_layers}"


def _stepped(config: Config, family: Family, layers: int) -> tuple[int, ...]:
    dense = set(family.value(config, "mlp_only_layers") or ())
    step = family.value(config, "decoder_sparse_step")
    return tuple(layer for layer in range(layers) if layer not in dense and (layer + 1) % step == 0)


def _write_stepped(settings: Settings, config: dict[str, Any]) -> str | None:
    sparse = set(settings.sparse_layers)
    config["decoder_sparse_step"] = 1  # a list says it all, and survives a change of depth
    config["mlp_only_layers"] = [layer for layer in range(settings.num_layers) if layer not in sparse]
    return None


SPARSE = {
    "none": Spelling(_no_experts, _write_no_experts),
    "all": Spelling(_all_experts, _write_all_experts),
    "stepped": Spelling(_stepped, _write_stepped),
}
