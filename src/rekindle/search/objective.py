"""What is to become smaller: any function of a model's tensors, by name, that gives a number.

    def f(tensors): ...                a number, or a torch scalar; with a gradient, that is searched along
    def f(tensors, draw): ...          of data and noise that `draw` names, see Draw: then it is re-ranked and reported
                                       on data that the search never saw
    {"fd": ..., "sw": ...}             several numbers: the first is searched, all are reported

`tensors` are float32 views that change from call to call: what is to be kept of them is copied.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from rekindle.errors import Ended, RekindleError, first_line
from rekindle.search.draw import Draw

Tensors = Mapping[str, torch.Tensor]
Function = Callable[..., Any]
SCORE = "score"  # what the number of a function that names none is called


@dataclass(frozen=True)
class Objective:
    """A function and how it is called."""

    function: Function
    draws: bool  # whether it is told of a draw
    name: str = "objective"
    notes: tuple[str, ...] = ()  # what the user should know
    floor: Mapping[str, float] = field(default_factory=dict)  # what real data have of what is reported
    fused: bool = False  # tensors by transformers' names, a layer's experts stacked; else by the names on disk

    def __call__(self, tensors: Tensors, draw: Draw) -> dict[str, Any]:
        """Numbers or torch scalars by name; raises RekindleError for what is no number, and where it raises itself."""
        try:
            found = self.function(tensors, draw) if self.draws else self.function(tensors)
        except (RekindleError, Ended, KeyboardInterrupt, MemoryError):
            raise
        except Exception as error:
            what = f"The objective {self.name} raised {type(error).__name__}: {first_line(error)}."
            raise RekindleError(what, where=_line_of(error)) from error
        numbers = dict(found) if isinstance(found, Mapping) else {SCORE: found}
        if not numbers:
            raise RekindleError(f"The objective {self.name} gave no number: an empty table.")
        for name, value in numbers.items():
            if not _is_number(value):
                kind = type(value).__name__ if not isinstance(value, torch.Tensor) else f"a tensor {list(value.shape)}"
                what = f"The objective {self.name} gave {kind}{f' for {name!r}' if len(numbers) > 1 else ''}."
                raise RekindleError(what, hint="a number, or a torch scalar")
        return numbers


def objective_of(function: Function | Objective) -> Objective:
    """A function as an objective: whether it takes a draw is read off its parameters."""
    if isinstance(function, Objective):
        return function
    try:
        parameters = inspect.signature(function).parameters
        own = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        count = len([p for p in own if p.default is p.empty or p.name == "draw"])
    except (TypeError, ValueError):
        count = 1
    name = getattr(function, "__name__", type(function).__name__)
    if count not in (1, 2):
        what = f"The objective {name} takes {count} values."
        raise RekindleError(what, hint="f(tensors), or f(tensors, draw)")
    return Objective(function, count == 2, name)


def number_of(value: Any) -> float:
    """As a Python float; NaN of anything that is not finite."""
    number = float(value.detach() if isinstance(value, torch.Tensor) else np.asarray(value).item())
    return number if math.isfinite(number) else math.nan


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1 and not value.is_complex()
    if isinstance(value, np.ndarray):
        return value.size == 1 and value.dtype.kind in "iuf"
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _line_of(error: BaseException) -> str | None:
    """Where in the objective's own file it was raised."""
    trace = error.__traceback__
    own = None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename != __file__:
            own = own or f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    return own
