"""How families spell rotary embeddings: v5's rope_parameters, or v4's keys, of which each family has its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rekindle.anatomy.spelling import Config, Spelling
from rekindle.errors import RekindleError

if TYPE_CHECKING:
    from rekindle.anatomy.family import Family
    from rekindle.anatomy.settings import Settings

_TRAINED = "original_max_position_embeddings"  # positions before they were stretched

Rope = tuple[float, dict[str, Any] | None]  # theta, scaling


def _said(config: Config) -> dict[str, Any]:
    return dict(config.get("rope_parameters") or config.get("rope_scaling") or {})


def _split(rope: dict[str, Any], default_theta: float) -> Rope:
    """theta and scaling out of v5's rope_parameters, or of v4's rope_scaling, which has no theta."""
    theta = rope.pop("rope_theta", None) or default_theta
    kind = rope.pop("rope_type", None) or rope.get("type") or "default"
    rope.pop("type", None)
    return float(theta), None if kind == "default" and not rope else {"rope_type": kind, **rope}


def _read(config: Config, family: Family) -> Rope:
    return _split(_said(config), config.get("rope_theta") or family.rope_theta)


def _scaling(settings: Settings) -> dict[str, Any] | None:
    return dict(settings.rope_scaling) if settings.rope_scaling else None


# -- every dim of a head is turned -------------------------------------------------------------------------


def _read_whole(config: Config, family: Family, given: Mapping[str, Any]) -> dict[str, Any]:
    theta, scaling = _read(config, family)
    return {"rope_theta": theta, "rope_scaling": scaling, "rotary_dim": given["head_dim"]}


def _write_whole(settings: Settings, config: dict[str, Any]) -> str | None:
    config |= {"rope_theta": settings.rope_theta, "rope_scaling": _scaling(settings)}
    if settings.rotary_dim == settings.head_dim:
        return None
    return f"turns all {settings.head_dim} dims of a head by RoPE; the parent {settings.rotary_dim}"


# -- the first dims of a head are turned, the others pass --------------------------------------------------


def _partial(theta_key: str, factor_key: str, default: float, kind_key: str) -> Spelling:
    def read(config: Config, family: Family, given: Mapping[str, Any]) -> dict[str, Any]:
        rope = _said(config)
        factor = rope.pop("partial_rotary_factor", None) or config.get(factor_key) or default
        theta, scaling = _split(rope, config.get(theta_key) or family.rope_theta)
        if scaling and _TRAINED in family.defaults:
            scaling[_TRAINED] = family.value(config, _TRAINED)
        return {"rope_theta": theta, "rope_scaling": scaling, "rotary_dim": int(given["head_dim"] * factor)}

    def write(settings: Settings, config: dict[str, Any]) -> str | None:
        factor = settings.rotary_dim / settings.head_dim
        if int(settings.head_dim * factor) < settings.rotary_dim:  # rounded the wrong way
            factor = math.nextafter(factor, 1.0)
        scaling = _scaling(settings)
        if scaling:
            scaling = {kind_key: scaling.pop("rope_type"), **scaling}
            if _TRAINED in config:  # phi3 says it beside, and v4 refuses it here
                config[_TRAINED] = scaling.pop(_TRAINED)
        config |= {theta_key: settings.rope_theta, factor_key: factor, "rope_scaling": scaling}
        return None if settings.rotary_dim else "turns queries and keys by RoPE; the parent does not"

    return Spelling(("rope_theta", "rope_scaling", "rotary_dim"), read, write)


# -- layers with a window have a theta of their own (gemma3) -----------------------------------------------


def _read_local(config: Config, family: Family, given: Mapping[str, Any]) -> dict[str, Any]:
    said = config.get("rope_parameters") or {}
    full = said.get("full_attention") or config.get("rope_scaling") or {}
    theta, scaling = _split(dict(full), config.get("rope_theta") or family.rope_theta)
    default = config.get("rope_local_base_freq") or 10_000.0
    local, local_scaling = _split(dict(said.get("sliding_attention") or {}), default)
    if local_scaling:
        raise RekindleError(
            f"RoPE of the layers with a window is scaled ({local_scaling['rope_type']}).",
            where="config.json: rope_parameters",
            why=f"{family.model_type} can say this in transformers v5 alone, no serving engine reads it",
        )
    rotary = given["head_dim"]
    return {"rope_theta": theta, "rope_scaling": scaling, "local_rope_theta": local, "rotary_dim": rotary}


def _write_local(settings: Settings, config: dict[str, Any]) -> str | None:
    config["rope_local_base_freq"] = settings.local_rope_theta or settings.rope_theta
    return _write_whole(settings, config)


# -- some dims of a head are turned, which latent attention keeps apart (deepseek) -------------------------


def _read_latent(config: Config, family: Family, given: Mapping[str, Any]) -> dict[str, Any]:
    theta, scaling = _read(config, family)
    turned, others = (family.value(config, key) for key in ("qk_rope_head_dim", "qk_nope_head_dim"))
    return {"rope_theta": theta, "rope_scaling": scaling, "rotary_dim": turned, "head_dim": turned + others}


def _write_latent(settings: Settings, config: dict[str, Any]) -> str | None:
    config |= {"rope_theta": settings.rope_theta, "rope_scaling": _scaling(settings)}
    config["qk_rope_head_dim"] = settings.rotary_dim
    config["qk_nope_head_dim"] = settings.head_dim - settings.rotary_dim
    return None


# -- no RoPE -----------------------------------------------------------------------------------------------


def _read_none(config: Config, family: Family, given: Mapping[str, Any]) -> dict[str, Any]:
    return {"rope_theta": 0.0, "rope_scaling": None, "rotary_dim": 0}


def _write_none(settings: Settings, config: dict[str, Any]) -> str | None:
    return "has no RoPE" if settings.rotary_dim else None


_SETTINGS = ("rope_theta", "rope_scaling", "rotary_dim")

ROPE = {
    "whole": Spelling(_SETTINGS, _read_whole, _write_whole),
    # phi3 in v4 and the engines insists on `type`
    "factor": _partial("rope_theta", "partial_rotary_factor", 1.0, "type"),
    "percent": _partial("rotary_emb_base", "rotary_pct", 0.25, "rope_type"),
    "local": Spelling((*_SETTINGS, "local_rope_theta"), _read_local, _write_local),
    "latent": Spelling((*_SETTINGS, "head_dim"), _read_latent, _write_latent),
    "none": Spelling(_SETTINGS, _read_none, _write_none),
}
ROPE_KEYS = (
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "partial_rotary_factor",
    "rotary_emb_base",
    "rotary_pct",
    "rope_local_base_freq",
)
