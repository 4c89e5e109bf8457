"""How a model is cut into the stages of a pipeline."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from rekindle.edit import Checkpoint
from rekindle.edit.layers import empty_of
from rekindle.errors import RekindleError, together
from rekindle.recovery.injected import injected
from rekindle.recovery.stage import Place
from rekindle.train.config import TrainConfig


class Part(NamedTuple):
    """A stage, and the config of a model of its layers."""

    place: Place
    config: dict[str, Any]


def parts_of(parent: Checkpoint, config: TrainConfig) -> list[Part]:
    """Of all replicas, rank by rank; raises RekindleError for a model or options that make no pipeline."""
    _check(parent, config)
    places = _places(parent, config.stages, swapped=config.recover == "checkfree+")
    if config.recover in ("checkfree", "checkfree+", "copy"):
        _check_alike(parent, places, f"{config.recover} makes a stage of its neighbours", "--recover shadow")
    elif config.recover in ("shadow", "random") and config.recover_moments != "reset":
        how = f"recover_moments {config.recover_moments} takes moments of a stage from its neighbours"
        _check_alike(parent, places, how, "--recover-moments reset")
    parts = [Part(place, empty_of(parent, _layers(place)).config) for place in places]
    n = config.replicas
    return [Part(replace(place, replica=r, replicas=n), of_one) for r in range(n) for place, of_one in parts]


def chunk_of(batch: int, most: int, place: Place, seq_len: int) -> int:
    """Rows of a forward pass: as many as fit, and so few that all stages have work at once, whichever way they go."""
    stages, ways = place.stages, 2 if place.swapped else 1
    if batch % place.replicas:
        what = f"A step has {batch} sequences, and {place.replicas} replicas cannot have as many each."
        raise RekindleError(what, hint=f"--batch-tokens {place.replicas * (batch // place.replicas + 1) * seq_len}")
    batch //= place.replicas
    if batch < ways * stages or batch % ways:
        each = "one each" if ways == 1 else f"{ways} each, and an even number,"
        of = "" if place.replicas == 1 else " for each replica"
        what = f"A step has {batch} sequences{of}, and {stages} stages need {each} at least."
        raise RekindleError(what, hint=f"--batch-tokens {place.replicas * ways * stages * seq_len} or more")
    return next(size for size in range(min(most, batch // (ways * stages)), 0, -1) if batch % (ways * size) == 0)


def _check(parent: Checkpoint, config: TrainConfig) -> None:
    s, problems = parent.settings, []
    if s.output != "causal" or s.towers:
        what = f"A {parent.family.name} is no decoder, and pipelines are of these alone."
        problems.append(RekindleError(what, hint="no --stages"))
    elif not 2 <= config.stages <= s.num_layers:
        what = f"{s.num_layers} layers cannot be {config.stages} stages."
        problems.append(
            RekindleError(what, hint=f"--stages 2 to {s.num_layers}" if s.num_layers > 1 else "no --stages")
        )
    if config.recover == "checkfree+" and 2 <= config.stages < 4:
        what = f"checkfree+ swaps stages at both ends, and {config.stages} stages are no two pairs."
        problems.append(RekindleError(what, hint="--stages 4 or more; or --recover checkfree"))
    for name in ("compile", "keep_averages", "freeze"):
        if getattr(config, name):
            flag = f"--{name.replace('_', '-')}"
            problems.append(RekindleError(f"{flag} is not possible in a pipeline.", hint=f"no {flag}, or no --stages"))
    if config.objective not in (None, "next-token"):
        what = f"A pipeline learns each next token, and not {config.objective}."
        problems.append(RekindleError(what, hint="no --objective, or no --stages"))
    injected(config.inject, config.stages * max(1, config.replicas))
    for name, least in (("shadow_every", 1), ("replicas", 1), ("spares", 0), ("patience", 1)):
        if getattr(config, name) < least:
            what = f"{name} is {getattr(config, name)}: {least} is the least."
            problems.append(RekindleError(what, hint=f"--{name.replace('_', '-')} {least}"))
    if problems:
        raise together(problems)


def _places(parent: Checkpoint, stages: int, *, swapped: bool) -> list[Place]:
    """As equal as they can be, longer ones first."""
    each, more = divmod(parent.settings.num_layers, stages)
    sizes = [each + (stage < more) for stage in range(stages)]
    routers = len(parent.settings.sparse_layers)
    return [Place(stage, stages, sum(sizes[:stage]), size, routers, swapped) for stage, size in enumerate(sizes)]


def _layers(place: Place) -> range:
    return range(place.first, place.first + place.layers)


def _check_alike(parent: Checkpoint, places: list[Place], because: str, instead: str) -> None:
    """Raise RekindleError where layers of one stage cannot stand in for those of another."""
    n = parent.settings.num_layers
    if n % len(places):
        fit = [size for size in range(2, n + 1) if n % size == 0]
        what = f"{n} layers are no {len(places)} equal stages, and {because}."
        raise RekindleError(what, hint=f"--stages {' or '.join(map(str, fit))}; or {instead}")
    shapes = [
        [{key: x.shape for key, x in parent.by_layer[layer].items()} for layer in _layers(place)] for place in places
    ]
    if any(one != shapes[0] for one in shapes):
        what = f"The layers of this {parent.family.name} differ, and {because}."
        raise RekindleError(what, hint=instead)
