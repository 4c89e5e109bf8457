"""How families spell rotary embeddings: v5's rope_parameters, or v4's keys, of which each family has its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rekindle.anatomy.settings import Settings
from rekindle.anatomy.spelling import Config, Reading, Spelling
from rekindle.errors import RekindleError

_TRAINED = "original_max_position_embeddings"  # positions before they were stretched
_FACTORS = ("short_factor", "long_factor")  # lists, a number for each pair of dims

# What each kind must say, by transformers' own check (5.23, `modeling_rope_utils`).
_KINDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor", _TRAINED),
    "longrope": (*_FACTORS, _TRAINED),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", _TRAINED),
}
OLD_LONGROPE = ("su", "yarn")  # what phi3 called it before
_NOT_NUMBERS = {"rope_type", "type", "truncate", "finetuned", "mrope_section"}

_SETTINGS = ("rope_theta", "rope_scaling", "rotary_dim")

Rope = tuple[float, dict[str, Any] | None]  # theta, scaling


def _said(config: Config) -> dict[str, Any]:
    """What the config says in a table of its own; v4's name goes before v5's where both are there."""
    for name in ("rope_scaling", "rope_parameters"):
        said = config.get(name)
        if said and not isinstance(said, dict):
            raise _unread(f"{name} is {said!r}, not a table of keys and values", name)
        if said:
            return dict(said)
    return {}


def _split(rope: dict[str, Any], default_theta: Any, config: Config, rotary_dim: int) -> Rope:
    """theta and scaling out of v5's rope_parameters, or of v4's rope_scaling, which has no theta."""
    theta = rope.pop("rope_theta", default_theta)
    if not _is_number(theta) or not theta > 0:
        raise _unread(f"rope_theta is {theta!r}, not a positive number", "rope_theta")
    kind = rope.pop("rope_type", rope.get("type") or "default")
    rope.pop("type", None)
    if not isinstance(kind, str) or kind not in _KINDS:
        what = f"RoPE of the kind {kind!r} is not known (rope_type); known are {', '.join(_KINDS)}"
        raise _unread(what, "rope_scaling")
    if kind == "default":
        return float(theta), None
    if _TRAINED in _KINDS[kind]:
        rope.setdefault(_TRAINED, config.get("max_position_embeddings"))
    if missing := [key for key in _KINDS[kind] if rope.get(key) is None]:
        raise _unread(f"RoPE of the kind {kind} lacks {' and '.join(missing)} (rope_type {kind})", "rope_scaling")
    for key, value in rope.items():
        if key in _FACTORS:
            _check_factors(key, value, rotary_dim // 2)
        elif not (key in _NOT_NUMBERS or value is None or _is_number(value)):
            raise _unread(f"RoPE has {key} {value!r}, which is not a number", "rope_scaling")
    return float(theta), {"rope_type": kind, **rope}


def _check_factors(key: str, value: Any, pairs: int) -> None:
    if not isinstance(value, list) or not all(map(_is_number, value)):
        raise _unread(f"RoPE has {key} {value!r}, not a list of numbers", "rope_scaling")
    if len(value) != pairs:
        raise _unread(f"RoPE turns {pairs} pairs of dims, but {key} has {len(value)} numbers", "rope_scaling")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _unread(what: str, key: str) -> RekindleError:
    return RekindleError(f"{what}.", where=f"config.json: {key}", why="transformers cannot run such a model either")


def _read(config: Config, family: Reading, rotary_dim: int) -> Rope:
    rope = _said(config)
    partial = rope.pop("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    theta, scaling = _split(rope, config.get("rope_theta", family.rope_theta), config, rotary_dim)
    if scaling and partial != 1.0:  # without a scaling it is ignored
        what = f"partial_rotary_factor is {partial!r}, but {family.name} turns whole heads"
        raise _unread(what, "partial_rotary_factor")
    return theta, scaling


def _scaling(settings: Settings) -> dict[str, Any] | None:
    return dict(settings.rope_scaling) if settings.rope_scaling else None


# -- every dim of a head is turned -------------------------------------------------------------------------


def _read_whole(config: Config, family: Reading, given: Mapping[str, Any]) -> dict[str, Any]:
    theta, scaling = _read(config, family, given["head_dim"])
    return {"rope_theta": theta, "rope_scaling": scaling, "rotary_dim": given["head_dim"]}


def _write_whole(settings: Settings, config: dict[str, Any]) -> str | None:
    config |= {"rope_theta": settings.rope_theta, "rope_scaling": _scaling(settings)}
    if settings.rotary_dim == settings.head_dim:
        return None
    return f"turns all {settings.head_dim} dims of a head by RoPE; the parent {settings.rotary_dim}"


# -- the first dims of a head are turned, the others pass --------------------------------------------------


def _partial(theta_key: str, factor_key: str, default: float, kind_key: str) -> Spelling:
    def read(config: Config, family: Reading, given: Mapping[str, Any]) -> dict[str, Any]:
        rope = _said(config)
        factor = rope.pop("partial_rotary_factor", config.get(factor_key, default))
        if not _is_number(factor) or not 0 < factor <= 1:
            raise _unread(f"{factor_key} is {factor!r}, not a share of a head", factor_key)
        rotary_dim = int(given["head_dim"] * factor)
        if _TRAINED in family.defaults:  # phi3 says it beside, and calls longrope by two older names
            rope[_TRAINED] = family.value(config, _TRAINED)
            kind = rope.get("rope_type", rope.get("type"))
            if kind in OLD_LONGROPE:
                rope["rope_type"] = "longrope"
            elif kind not in (None, "default", "longrope"):
                raise _unread(f"RoPE of the kind {kind!r} is none of {family.name} (rope_type)", "rope_scaling")
        theta, scaling = _split(rope, config.get(theta_key, family.rope_theta), config, rotary_dim)
        return {"rope_theta": theta, "rope_scaling": scaling, "rotary_dim": rotary_dim}

    def write(settings: Settings, config: dict[str, Any]) -> str | None:
        factor = settings.rotary_dim / settings.head_dim
        if int(settings.head_dim * factor) < settings.rotary_dim:  # rounded the wrong way
            factor = math.nextafter(factor, 1.0)
        scaling = _scaling(settings)
        if scaling:
            scaling = {kind_key: scaling.pop("rope_type"), **scaling}
            if _TRAINED in config and _TRAINED in scaling:  # phi3 says it beside, and v4 refuses it here
                config[_TRAINED] = scaling.pop(_TRAINED)
        config |= {theta_key: settings.rope_theta, factor_key: factor, "rope_scaling": scaling}
        return None if settings.rotary_dim else "turns queries and keys by RoPE; the parent does not"

    return Spelling(("rope_theta", "rope_scaling", "rotary_dim"), read, write)


# -- layers with a window have a theta of their own (gemma3, modernbert) ------------------------------------

_LOCAL = ("full_attention", "sliding_attention")


def _local(theta_key: str, local_key: str, *, scales: bool) -> Spelling:
    """`scales`: rope_scaling is of the other layers. Else transformers takes it for all, which is refused."""

    def read(config: Config, family: Reading, given: Mapping[str, Any]) -> dict[str, Any]:
        rotary = given["head_dim"]
        nested = config.get("rope_parameters") or {}
        scaled = config.get("rope_scaling") or {}
        kinds = [said.get(kind) or {} for said in (nested,) if isinstance(said, dict) for kind in _LOCAL]
        if not all(isinstance(said, dict) for said in (nested, scaled, *kinds)):
            raise _unread("rope_parameters or rope_scaling is not a table of keys and values", "rope_parameters")
        theta = config.get(theta_key, family.rope_theta)
        theta, scaling = _split({**kinds[0], **scaled}, theta, config, rotary)
        local, local_scaling = _split(dict(kinds[1]), config.get(local_key, 10_000.0), config, rotary)
        if refused := local_scaling or (None if scales else scaling):
            where = "RoPE of the layers with a window" if scales else "RoPE"
            raise RekindleError(
                f"{where} is scaled ({refused['rope_type']}).",
                where="config.json: rope_parameters",
                why=f"{family.name} can say this in transformers v5 alone, no serving engine reads it",
            )
        return {"rope_theta": theta, "rope_scaling": scaling, "local_rope_theta": local, "rotary_dim": rotary}

    def write(settings: Settings, config: dict[str, Any]) -> str | None:
        problem = _write_whole(settings, config)
        config |= {theta_key: config.pop("rope_theta"), local_key: settings.local_rope_theta or settings.rope_theta}
        if not scales and config.pop("rope_scaling"):
            return "has no scaled RoPE; the parent has"
        return problem

    return Spelling((*_SETTINGS, "local_rope_theta"), read, write)


# -- some dims of a head are turned, which latent attention keeps apart (deepseek) -------------------------


def _read_latent(config: Config, family: Reading, given: Mapping[str, Any]) -> dict[str, Any]:
    turned, others = (family.value(config, key) for key in ("qk_rope_head_dim", "qk_nope_head_dim"))
    if config.get("head_dim") not in (None, turned):
        what = f"head_dim is {config['head_dim']}, but RoPE turns qk_rope_head_dim {turned}"
        raise _unread(what, "head_dim")
    theta, scaling = _read(config, family, turned)
    return {"rope_theta": theta, "rope_scaling": scaling, "rotary_dim": turned, "head_dim": turned + others}


def _write_latent(settings: Settings, config: dict[str, Any]) -> str | None:
    config |= {"rope_theta": settings.rope_theta, "rope_scaling": _scaling(settings)}
    config["qk_rope_head_dim"] = settings.rotary_dim
    config["qk_nope_head_dim"] = settings.head_dim - settings.rotary_dim
    return None


# -- no RoPE -----------------------------------------------------------------------------------------------


def _read_none(config: Config, family: Reading, given: Mapping[str, Any]) -> dict[str, Any]:
    return {"rope_theta": 0.0, "rope_scaling": None, "rotary_dim": 0}


def _write_none(settings: Settings, config: dict[str, Any]) -> str | None:
    return "has no RoPE" if settings.rotary_dim else None


ROPE = {
    "whole": Spelling(_SETTINGS, _read_whole, _write_whole),
    # phi3 in v4 and the engines insists on `type`
    "factor": _partial("rope_theta", "partial_rotary_factor", 1.0, "type"),
    "percent": _partial("rotary_emb_base", "rotary_pct", 0.25, "rope_type"),
    "local": _local("rope_theta", "rope_local_base_freq", scales=True),
    "global": _local("global_rope_theta", "local_rope_theta", scales=False),
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
    "global_rope_theta",
    "local_rope_theta",
)
