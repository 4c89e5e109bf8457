"""How families spell what differs from layer to layer: attention windows, which layers have experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rekindle.anatomy.settings import Settings
from rekindle.anatomy.spelling import Config, Reading, Spelling
from rekindle.errors import RekindleError

# -- attention windows -------------------------------------------------------------------------------------

Windows = tuple[int | None, ...]
_KINDS = ("full_attention", "sliding_attention")
_GLOBAL = "global_attn_every_n_layers"


def _no_windows(config: Config, family: Reading, layers: int) -> Windows:
    return (None,) * layers


def _write_no_windows(settings: Settings, config: dict[str, Any]) -> str | None:
    return f"has no attention window; the parent has one of {max(_widths(settings))}" if _widths(settings) else None


def _uniform(config: Config, family: Reading, layers: int) -> Windows:
    return (family.value(config, "sliding_window"),) * layers


def _write_uniform(settings: Settings, config: dict[str, Any]) -> str | None:
    config["sliding_window"] = settings.windows[0] if settings.windows else None
    return None if len(set(settings.windows)) <= 1 else "has one attention window for all layers; the parent's differ"


def _switched(config: Config, family: Reading, layers: int) -> Windows:
    on = family.value(config, "use_sliding_window")
    return (family.value(config, "sliding_window") or 4096 if on else None,) * layers


def _write_switched(settings: Settings, config: dict[str, Any]) -> str | None:
    config["use_sliding_window"] = bool(_widths(settings))
    return _write_uniform(settings, config)


def _listed(config: Config, family: Reading, layers: int) -> Windows:
    window = (family.value(config, "sliding_window") or 4096) if family.value(config, "use_sliding_window") else None
    kinds = config.get("layer_types")
    if kinds is not None:
        return _by_kind(kinds, window, layers)
    first = family.value(config, "max_window_layers")
    if family.model_type == "qwen2_moe":  # transformers: every other layer among the first ones
        return tuple(window if layer % 2 == 0 and layer < first else None for layer in range(layers))
    return tuple(window if layer >= first else None for layer in range(layers))


def _write_listed(settings: Settings, config: dict[str, Any]) -> str | None:
    widths = _widths(settings)
    config["use_sliding_window"] = bool(widths)
    config["sliding_window"] = max(widths) if widths else None
    config["layer_types"] = _kinds(settings)
    if widths:  # for readers that know no layer_types: the first layers are full, the rest have the window
        full = next((i for i, w in enumerate(settings.windows) if w is not None), settings.num_layers)
        config["max_window_layers"] = full
    return _one_width(settings)


def _patterned(config: Config, family: Reading, layers: int) -> Windows:
    window = family.value(config, "sliding_window")
    kinds = config.get("layer_types")
    if kinds is not None:
        return _by_kind(kinds, window, layers)
    step = config.get("sliding_window_pattern", 6)
    if type(step) is not int or step < 1:
        raise RekindleError(f"sliding_window_pattern is {step!r}, not a positive whole number.", where="config.json")
    return tuple(window if (layer + 1) % step else None for layer in range(layers))


def _write_patterned(settings: Settings, config: dict[str, Any]) -> str | None:
    """A list, and for readers that know none the pattern, where there is one: every n-th layer is full."""
    _write_width(settings, config)
    config["layer_types"] = _kinds(settings)
    full = [layer + 1 for layer, width in enumerate(settings.windows) if width is None]
    step = full[0] if full else settings.num_layers + 1
    if full == list(range(step, settings.num_layers + 1, step)):
        config["sliding_window_pattern"] = step
    return _one_width(settings)


def _alternating(config: Config, family: Reading, layers: int) -> Windows:
    """Where no list says otherwise, every other layer from the first on has the window."""
    window = family.value(config, "sliding_window")
    kinds = config.get("layer_types")
    if kinds is not None:
        return _by_kind(kinds, window, layers)
    return tuple(None if layer % 2 else window for layer in range(layers))


def _write_alternating(settings: Settings, config: dict[str, Any]) -> str | None:
    _write_width(settings, config)
    config["layer_types"] = _kinds(settings)
    return _one_width(settings)


def _local(config: Config, family: Reading, layers: int) -> Windows:
    """ModernBERT's, which says both sides of a window together, and where no list is, every n-th layer is full."""
    window = family.value(config, "local_attention") // 2
    kinds = config.get("layer_types")
    if kinds is not None:
        return _by_kind(kinds, window, layers)
    step = config.get(_GLOBAL, 3)
    if type(step) is not int or step < 1:
        raise RekindleError(f"{_GLOBAL} is {step!r}, not a positive whole number.", where="config.json")
    return tuple(window if layer % step else None for layer in range(layers))


def _write_local(settings: Settings, config: dict[str, Any]) -> str | None:
    """A list, and for readers that know none the pattern, where there is one."""
    if widths := _widths(settings):
        config["local_attention"] = 2 * max(widths)
    config["layer_types"] = _kinds(settings)
    full = [layer for layer, width in enumerate(settings.windows) if width is None]
    step = full[1] if len(full) > 1 else max(settings.num_layers, 1)
    if full == list(range(0, settings.num_layers, step)):
        config[_GLOBAL] = step
    return _one_width(settings)


def _by_kind(kinds: list[str], window: int | None, layers: int) -> Windows:
    if len(kinds) != layers:
        raise RekindleError(
            f"layer_types has {len(kinds)} entries, but num_hidden_layers is {layers}.",
            where="config.json",
            hint=f"the {layers} entries of the layers that are there, where some were cut out"
            if len(kinds) > layers
            else "an entry for each layer",
        )
    if window is None and "sliding_attention" in kinds:
        what = "layer_types has layers with a window, but sliding_window is null, or use_sliding_window false."
        raise RekindleError(what, where="config.json", why="transformers cannot run such a model either")
    kinds = [{"attention": "full_attention"}.get(kind, kind) for kind in kinds]  # as transformers called it once
    if other := next((kind for kind in kinds if kind not in _KINDS), None):
        raise RekindleError(f"layer_types has {other!r}; known are {' and '.join(_KINDS)}.", where="config.json")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _kinds(settings: Settings) -> list[str]:
    return ["full_attention" if width is None else "sliding_attention" for width in settings.windows]


def _widths(settings: Settings) -> set[int]:
    return {width for width in settings.windows if width is not None}


def _write_width(settings: Settings, config: dict[str, Any]) -> None:
    """Where no layer has one, any that there is: transformers makes the mask all the same."""
    own = max(_widths(settings), default=None)
    config["sliding_window"] = own or config.get("sliding_window") or settings.max_position_embeddings


def _one_width(settings: Settings) -> str | None:
    return "has one width for its attention windows; the parent has several" if len(_widths(settings)) > 1 else None


def _windows(
    read: Callable[[Config, Reading, int], Windows], write: Callable[[Settings, dict[str, Any]], str | None]
) -> Spelling:
    return Spelling(("windows",), lambda c, family, given: {"windows": read(c, family, given["num_layers"])}, write)


WINDOWS = {
    "none": _windows(_no_windows, _write_no_windows),
    "uniform": _windows(_uniform, _write_uniform),
    "switched": _windows(_switched, _write_switched),
    "listed": _windows(_listed, _write_listed),
    "patterned": _windows(_patterned, _write_patterned),
    "alternating": _windows(_alternating, _write_alternating),
    "local": _windows(_local, _write_local),
}

# -- layers with experts -----------------------------------------------------------------------------------

Layers = tuple[int, ...]


def _no_experts(config: Config, family: Reading, layers: int) -> Layers:
    return ()


def _write_no_experts(settings: Settings, config: dict[str, Any]) -> str | None:
    return "has no experts" if settings.sparse_layers else None


def _all_experts(config: Config, family: Reading, layers: int) -> Layers:
    return tuple(range(layers))


def _write_all_experts(settings: Settings, config: dict[str, Any]) -> str | None:
    if settings.sparse_layers == tuple(range(settings.num_layers)):
        return None
    return f"has experts in every layer; asked for are {len(settings.sparse_layers)} of {settings.num_layers}"


def _stepped(config: Config, family: Reading, layers: int) -> Layers:
    dense = set(family.value(config, "mlp_only_layers") or ())
    step = family.value(config, "decoder_sparse_step")
    if step < 1:
        raise RekindleError(f"decoder_sparse_step is {step}, not a positive whole number.", where="config.json")
    return tuple(layer for layer in range(layers) if layer not in dense and (layer + 1) % step == 0)


def _write_stepped(settings: Settings, config: dict[str, Any]) -> str | None:
    sparse = set(settings.sparse_layers)
    config["decoder_sparse_step"] = 1  # a list says it all, and survives a change of depth
    config["mlp_only_layers"] = [layer for layer in range(settings.num_layers) if layer not in sparse]
    return None


def _first_dense(config: Config, family: Reading, layers: int) -> Layers:
    return tuple(range(min(family.value(config, "first_k_dense_replace") or 0, layers), layers))


def _write_first_dense(settings: Settings, config: dict[str, Any]) -> str | None:
    sparse, layers = settings.sparse_layers, settings.num_layers
    config["first_k_dense_replace"] = layers - len(sparse)
    if sparse == tuple(range(layers - len(sparse), layers)):
        return None
    dense = [layer for layer in range(layers) if layer not in set(sparse)]
    return f"has experts in all layers but the first few; asked for are dense layers {', '.join(map(str, dense))}"


def _named(config: Config, family: Reading, layers: int) -> Layers:
    """Listed; where no list is, every second layer."""
    said = family.value(config, "moe_layers")
    named = range(1, layers, 2) if said is None else said
    if any(layer not in range(layers) for layer in named):
        raise RekindleError(f"moe_layers is {said!r}, but there are {layers} layers.", where="config.json")
    return tuple(sorted(set(named)))


def _write_named(settings: Settings, config: dict[str, Any]) -> str | None:
    config["moe_layers"] = list(settings.sparse_layers)
    return None


def _every(step_key: str, count_key: str) -> Spelling:
    """Switch's towers: the second of every so many layers, or all; 0: none. A saved step overrules the count."""

    def at(step: int, layers: int) -> Layers:
        return tuple(layer for layer in range(layers) if step == 1 or (step and layer % step == 1))

    def read(config: Config, family: Reading, layers: int) -> Layers:
        step = config.get(step_key)
        if step is None:
            count = family.value(config, count_key)
            step = layers // count if count > 0 else layers
        if type(step) is not int or step < 0:
            raise RekindleError(f"{step_key} is {step!r}, not a whole number of layers.", where="config.json")
        return at(step, layers)

    def write(settings: Settings, config: dict[str, Any]) -> str | None:
        wanted, layers = settings.sparse_layers, settings.num_layers
        steps = [step for step in range(layers + 1) if at(step, layers) == wanted]
        if not steps:
            listed = ", ".join(map(str, wanted))
            return f"has experts in the second of every so many layers; asked for are layers {listed} of {layers}"
        agrees = [step for step in steps if step and layers // max(1, len(wanted)) == step]
        config |= {step_key: (agrees or steps)[0], count_key: len(wanted)}
        return None

    return _sparsity(read, write)


def _sparsity(
    read: Callable[[Config, Reading, int], Layers], write: Callable[[Settings, dict[str, Any]], str | None]
) -> Spelling:
    def settings(config: Config, family: Reading, given: Mapping[str, Any]) -> dict[str, Any]:
        return {"sparse_layers": read(config, family, given["num_layers"])}

    return Spelling(("sparse_layers",), settings, write)


SPARSE = {
    "none": _sparsity(_no_experts, _write_no_experts),
    "all": _sparsity(_all_experts, _write_all_experts),
    "stepped": _sparsity(_stepped, _write_stepped),
    "first_dense": _sparsity(_first_dense, _write_first_dense),
    "named": _sparsity(_named, _write_named),
    "encoder_step": _every("encoder_sparse_step", "num_sparse_encoder_layers"),
    "decoder_step": _every("decoder_sparse_step", "num_sparse_decoder_layers"),
}

# -- how many shared experts, where their size is that of the others ---------------------------------------


def _read_shared(config: Config, family: Reading, given: Mapping[str, Any]) -> dict[str, Any]:
    return {"shared_size": (family.value(config, "n_shared_experts") or 0) * given["expert_size"]}


def _write_shared(settings: Settings, config: dict[str, Any]) -> str | None:
    config["n_shared_experts"], rest = divmod(settings.shared_size, settings.expert_size)
    if not rest:
        return None
    return f"has shared experts as wide as the others, {settings.expert_size} units; {settings.shared_size} are no such"


COUNTED_SHARED = Spelling(("shared_size",), _read_shared, _write_shared)
