"""What a search over checkpoints found, and how it is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rekindle.api.merging import merged
from rekindle.api.model import Model
from rekindle.config import resolve
from rekindle.edit.combine import ONE
from rekindle.methods import merge as merge_
from rekindle.report.combination import FILE, combination_text, write_combination
from rekindle.search.coefficients import KEPT_EMA
from rekindle.search.groups import OTHERS, is_by_depth
from rekindle.store.publish import publishing


@dataclass(frozen=True, repr=False)
class Combination:
    """What a search found. `save` writes the model that it came out for: see `data["result"]`."""

    models: Mapping[str, Model]  # oldest first
    averages: Mapping[str, Model]  # that the run kept, which it was held against
    data: dict[str, Any]  # what OUT/combine.json holds
    keep: tuple[str, ...]  # tensors that are the last checkpoint's
    pipeline: Path | None = None  # the last one's folder, where they are parts of pipelines,
    component: str | None = None  # and which part

    @property
    def coefficients(self) -> dict[str, float] | dict[str, dict[str, float]]:
        """Of each checkpoint, by name, those of the result; where groups have their own, {group: {name: number}}."""
        found = self._result["coefficients"]
        if isinstance(found[0], list):
            return {group: self._by_name(own) for group, own in zip(self.data["groups"], found, strict=True)}
        return self._by_name(found)

    def _by_name(self, alpha: Sequence[float]) -> dict[str, float]:
        names = [*self.averages, *self.models][-len(alpha) :]
        return dict(zip(names, alpha, strict=True))

    @property
    def _result(self) -> dict[str, Any]:
        return next(row for row in self.data["rows"] if row["kind"] == self.data["result"])

    @cached_property
    def model(self) -> Model:
        """The result: one linear expression over the series; config and other files are the last checkpoint's."""
        made = self.averages[self._result["name"]] if self._result["kind"] == KEPT_EMA else self._sum
        text = json.dumps(self.data, indent=1) + "\n"
        return replace(made, checkpoint=replace(made.checkpoint, files={FILE: text}))

    @property
    def _sum(self) -> Model:
        found = self._result["coefficients"]
        order = [*self.models][::-1]  # what is no average is the first one's
        options = {"how": "linear", **self._weights(found), "any_sum": is_scaled(found)}
        options |= {"keep": list(self.keep)} if self.keep else {}
        return merged({name: self.models[name] for name in order}, None, resolve(merge_.Config, options))

    def _weights(self, alpha: Sequence[Any]) -> dict[str, Any]:
        """As options of `merge`, of the checkpoints from the last one back."""
        if not isinstance(alpha[0], list):
            return {"weights": [repr(a) for a in alpha[::-1]]}
        last = [0.0] * (len(self.models) - 1) + [1.0]  # where nothing moved
        by_group = dict(zip(self.data["groups"], alpha, strict=True))
        parent = [*self.models.values()][-1].checkpoint
        if is_by_depth(parent, self.data["options"]["groups"]):
            by_layer = [by_group.get(str(layer), last) for layer in range(parent.settings.num_layers)]
            return {"weights": [":".join(map(repr, each)) for each in [*zip(*by_layer, strict=True)][::-1]]}
        usual = by_group.pop(OTHERS, last)
        by_role = {group: [repr(a) for a in own[::-1]] for group, own in by_group.items()}
        return {"weights": [repr(a) for a in usual[::-1]], "by_role": by_role}

    def save(self, out: str | Path, **options: Any) -> Path:
        """Write the result to `out`, as `Model.save` does, with what was found in OUT/combine.json.

        Of pipelines `out` is the last one's folder, with this part of it replaced.
        """
        if self.pipeline is None or self.component is None:
            return self.model.save(out, **options)
        with publishing(out, overwrite=options.pop("overwrite", False)) as folder:
            for path in sorted(self.pipeline.iterdir()):
                if path.name != self.component and not path.name.startswith("."):
                    (shutil.copytree if path.is_dir() else shutil.copy)(path, folder / path.name)
            self.model.save(folder / self.component, **options)
        return Path(out)

    def page(self, out: str | Path, *, overwrite: bool = False) -> Path:
        """Write a page of what was found, with its figures, to the folder `out`; returns the page."""
        return write_combination(self.data, Path(out), overwrite=overwrite)

    def __str__(self) -> str:
        return combination_text(self.data)

    def __repr__(self) -> str:
        return f"<Combination of {len(self.models)} checkpoints: {self.data['result']}>"


def is_scaled(alpha: ArrayLike) -> bool:
    """Whether coefficients of any group do not sum to 1."""
    return bool((np.abs(np.sum(alpha, axis=-1) - 1) > ONE).any())
