"""What the engine that will serve a result asks of it; see anatomy.engines for what was read of each.

Preserves the function there too, or refuses. What an engine lacks is written out for it: a head where it ties none to
the embeddings, and a switch next to zero, not zero, where it divides by that.
"""

from __future__ import annotations

from collections.abc import Iterable

from rekindle.anatomy import Role
from rekindle.anatomy.engines import READINGS, Engine, Reading, alike, differs
from rekindle.edit import Checkpoint, Fill
from rekindle.edit.arithmetic import Fresh
from rekindle.errors import RekindleError

SPECK = 2.0**-40  # next to zero for a sigmoid: 1e-12
SPECK_F16 = 2.0**-24  # the smallest that float16 has


def reading_of(engine: Engine, family: str) -> Reading | None:
    """What was read of a family in an engine; None for transformers, where results are exact."""
    return None if engine == "transformers" else READINGS[engine].get(family)


def check_engine(child: Checkpoint, engine: Engine, besides: str = "") -> None:
    """Raises RekindleError where the engine computes another function of the child's settings, or may."""
    family, settings = child.family.model_type, child.settings
    if engine == "transformers" or not (reasons := list(differs(engine, family, settings))):
        return
    what = f"{engine} does not serve this {family} as the same function, or may not: {'; '.join(reasons)}."
    raise RekindleError(what, hint=besides + alike(family, settings))


def fill_for_engine(parent: Checkpoint, child: Checkpoint, engine: Engine, layers: Iterable[int]) -> None:
    """The child's head, where the parent's is tied and the engine reads none that is; and its switches."""
    reading = reading_of(engine, child.family.model_type)
    if parent.settings.tie_word_embeddings and not child.settings.tie_word_embeddings:
        # once apart, neither gets the gradient that was the sum of both: their moments start empty
        embeddings = Fresh(parent.tensors[Role("embed")])
        child.tensors |= {Role("embed"): embeddings, Role("head"): embeddings}
    if reading and reading.shared.startswith("silu"):
        speck = Fill(parent.dtype, (1, parent.settings.hidden_size), SPECK_F16 if parent.dtype == "F16" else SPECK)
        for layer in layers:
            child[layer]["shared.switch"] = speck
