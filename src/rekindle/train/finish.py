"""The folder a run leaves: weights, config, tokenizer, optimizer state, metrics, lineage."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rekindle.anatomy import family_of
from rekindle.apply.moments import FOLDER
from rekindle.config import dump_yaml
from rekindle.store.folder import Folder
from rekindle.store.manifest import NAME as MANIFEST
from rekindle.store.manifest import Manifest, Record, read_manifest
from rekindle.store.passengers import have_say
from rekindle.store.publish import publishing
from rekindle.train.held import Whole
from rekindle.train.metrics import NAME as METRICS
from rekindle.train.model import as_stored, save_model
from rekindle.train.optimizer import save_optimizer
from rekindle.train.plan import Plan
from rekindle.train.state import TRACKERS, disc_explained
from rekindle.version import __version__


def publish(
    out: Path,
    source: Folder,
    plan: Plan,
    whole: Whole,
    model: Any,
    work: Path,
    record: Record,
    parameters: dict[str, int],
    *,
    recipe: Mapping[str, Any] | None,
    overwrite: bool,
) -> None:
    """Write OUT, whole or not at all; each weight in the dtype the source has it in on disk.

    `model` says how it is written, `whole` what.
    """
    with publishing(out, overwrite=overwrite, trained=True) as partial, disc_explained(work):
        schedule = plan.schedule.at(plan.tokens)
        save_optimizer(whole, source.config, partial / FOLDER, schedule)
        save_model(model, partial, as_stored(whole.weights, source))
        source.carry(partial)
        family = family_of(source.config)
        have_say(partial, family.generating(family.settings(source.config)))
        shutil.copyfile(work / METRICS, partial / METRICS)
        if (work / TRACKERS).is_dir():
            shutil.copytree(work / TRACKERS, partial / TRACKERS)
        write_manifest(partial, life_of(source, record, parameters), recipe)


def life_of(source: Folder, record: Record, parameters: dict[str, int]) -> Manifest:
    """Of what the source became by this step."""
    before = read_manifest(source.path)
    return Manifest(version=__version__, lineage=[*(before.lineage if before else []), record], parameters=parameters)


def write_manifest(folder: Path, life: Manifest, recipe: Mapping[str, Any] | None) -> None:
    """What it is and where it came from; `recipe` is what makes it again."""
    if recipe:
        (folder / "rekindle.yaml").write_text(dump_yaml(recipe), encoding="utf-8")
    shards = {path.name: {"bytes": path.stat().st_size} for path in sorted(folder.glob("*.safetensors"))}
    replace(life, shards=shards).write(folder)
    mode = stat.S_IMODE((folder / MANIFEST).stat().st_mode)  # safetensors writes its files for the owner alone
    for path in folder.rglob("*.safetensors"):
        path.chmod(mode)
