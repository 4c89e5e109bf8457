"""A model for each thread: a functional call puts tensors into the module for as long as it runs."""

from __future__ import annotations

import copy
import threading
from typing import Any


class Copies:
    def __init__(self, model: Any):
        self._model, self._held = model, threading.local()

    @property
    def own(self) -> Any:
        """This thread's."""
        if not hasattr(self._held, "model"):
            self._held.model = copy.deepcopy(self._model)
        return self._held.model
