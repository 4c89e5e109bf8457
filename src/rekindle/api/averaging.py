"""Averages of any length out of those that a run kept (`train --keep-averages`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rekindle.api.merging import merged, named
from rekindle.api.model import Model
from rekindle.api.options import takes
from rekindle.api.source import located
from rekindle.config import resolve
from rekindle.errors import RekindleError, some
from rekindle.methods import merge as merge_
from rekindle.methods.merging.post_hoc import KEPT, SIGMAS, AverageConfig, Profile, misfit, post_hoc

WIDTHS = (0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.10, 0.12, 0.14)  # of `averages_at`
FAR = 0.1  # of a profile: what is said to be another average than was asked for


class Kept(NamedTuple):
    model: Model
    profile: Profile


@takes(AverageConfig)
def average(averages: str | Path, **options: Any) -> Model:
    """The power-function average of any relative width, out of those in a folder that `train --keep-averages` left.

    One linear expression over them; nothing is written until `save`. The width is the standard deviation of how far
    back it looks, as a share of the run.

        rekindle.average("RUN-averages", sigma=0.07).save(OUT)
    """
    config: AverageConfig = resolve(AverageConfig, options).config
    if not 0.005 <= config.sigma <= 0.25:
        what = f"sigma is {config.sigma:g}: widths from 0.005 to 0.25 of a run can be made."
        raise RekindleError(what, hint="--sigma 0.07")
    kept = kept_in(averages)
    last = _steps(kept)[-1]
    wanted = Profile(config.sigma, last if config.step is None else config.step)
    _check_step(wanted.step, kept, f"--step {last:.0f}")
    made, apart = _made(kept, wanted)
    why = f"{some(SIGMAS)} were kept" if wanted.step in _steps(kept) else f"none was kept after step {wanted.step:.0f}"
    far = "" if apart < FAR else f": another average than that, since {why}"
    made.checkpoint.noting(f"its profile is within {100 * apart:.2g} % of width {config.sigma:g}{far}")
    return made


def averages_at(averages: str | Path, step: int | None) -> dict[str, Model]:
    """By name those of many widths that what is in a folder comes near to; `step`: after which (default: the last)."""
    kept = kept_in(averages)
    at = _steps(kept)[-1] if step is None else step
    _check_step(at, kept, "the averages that the same run kept")
    found = {f"sigma {sigma:g}": _made(kept, Profile(sigma, at)) for sigma in WIDTHS}
    near = {name: made for name, (made, apart) in found.items() if apart < FAR}
    if not near:
        steps = some([f"{kept_at:.0f}" for kept_at in _steps(kept)])
        what = f"The series ends at step {at:.0f}, and what the run kept comes near to no average of that step."
        raise RekindleError(what, where=averages, hint=f"a series that ends at one of the steps {steps}")
    return near


def _made(kept: Mapping[str, Kept], wanted: Profile) -> tuple[Model, float]:
    """The average, and how far its profile is from the one that is wanted."""
    used = {name: one for name, one in kept.items() if one.profile.step <= wanted.step}
    if len(used) == 1:
        what = f"One average alone was kept up to step {wanted.step:.0f}, {next(iter(used))}: no other is made of it."
        raise RekindleError(what, hint="both widths that train --keep-averages wrote, or a later step")
    profiles = [one.profile for one in used.values()]
    x = post_hoc(profiles, wanted)
    weights = dict(zip(used, x.tolist(), strict=True))
    order = sorted(weights, key=lambda name: -used[name].profile.step)  # config and other files are the latest one's
    options = {"how": "linear", "weights": [repr(weights[name]) for name in order]}
    made = merged({name: used[name].model for name in order}, None, resolve(merge_.Config, options))
    return made, misfit(profiles, x, wanted)


def _steps(kept: Mapping[str, Kept]) -> list[float]:
    """After which averages were kept."""
    return sorted({one.profile.step for one in kept.values()})


def kept_in(averages: str | Path) -> dict[str, Kept]:
    """The averages in a folder, by width and step; raises RekindleError where there are none."""
    folder = Path(averages).expanduser()
    widths = sorted(path for path in folder.glob("sigma-*") if path.is_dir())
    if not widths:
        what = f"{folder} holds no averages that a run kept."
        raise RekindleError(what, hint="RUN-averages, beside the RUN of train --keep-averages")
    sources: Mapping[str, Any] = {f"{path.name}/step-{one.step}": one.given for path in widths for one in located(path)}
    return {name: Kept(model, _profile(model)) for name, model in named(sources).items()}


def _profile(model: Model) -> Profile:
    path = model.checkpoint.folder.path / KEPT
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        return Profile(float(said["sigma"]), float(said["step"]))
    except (OSError, ValueError, KeyError, TypeError):
        what = "This folder does not say which average it is."
        raise RekindleError(what, where=path, hint="what train --keep-averages wrote") from None


def _check_step(step: float, kept: Mapping[str, Kept], hint: str) -> None:
    first, last = _steps(kept)[0], _steps(kept)[-1]
    if not first <= step <= last:
        what = f"No average after step {step:.0f} can be made: kept were those of {first:.0f} to {last:.0f}."
        raise RekindleError(what, hint=hint)
