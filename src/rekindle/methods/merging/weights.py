"""A weight as it runs over the layers: one number, or several that stand at equal distances, joined by lines."""

from __future__ import annotations

import math
from typing import NamedTuple

from rekindle.anatomy import Role, Settings
from rekindle.errors import RekindleError

AFTER = ("norm", "head", "mlm", "pooler")  # roles outside the layers that stand behind them


class Course(NamedTuple):
    values: tuple[float, ...]

    def at(self, role: Role, settings: Settings) -> float:
        """The weight of a role's tensor, by its layer; `settings`: of the model."""
        if len(self.values) == 1:
            return self.values[0]
        if role.layer < 0:
            return self.values[-1 if role.part.split(".")[0] in AFTER else 0]
        layers = (settings.towers.get(role.tower) or settings).num_layers
        place = role.layer * (len(self.values) - 1) / max(1, layers - 1)
        before = min(int(place), len(self.values) - 2)
        share = place - before
        return (1 - share) * self.values[before] + share * self.values[before + 1]


def course(text: str, option: str) -> Course:
    """ "0.3", or "0:0.5:1" over the layers; raises RekindleError for anything else."""
    try:
        values = tuple(float(part) for part in str(text).split(":"))
    except ValueError:
        values = ()
    if not values or not all(map(math.isfinite, values)):
        what = f"{option} has {text!r}, which is no number, nor several joined by colons."
        raise RekindleError(what, hint="0.3, or 0:1 from the first layer to the last")
    return Course(values)
