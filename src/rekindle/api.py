"""The verbs as functions; the command line is their thin twin.

rekindle.upcycle(rekindle.open("dense"), experts=8, top_k=2).save("moe")
rekindle.verify("moe", against="dense")
"""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rekindle import __version__
from rekindle.apply import save as saving
from rekindle.apply.save import Job, SaveConfig
from rekindle.config import Resolved, dump_yaml, read_yaml, resolve, to_dict, unknown_key
from rekindle.edit import Checkpoint, open_checkpoint
from rekindle.errors import CheckFailed, RekindleError, together
from rekindle.methods import METHODS, method_named
from rekindle.store.folder import open_folder
from rekindle.store.hub import locate
from rekindle.store.manifest import Manifest, Record, read_manifest
from rekindle.store.publish import check_free, publishing

if TYPE_CHECKING:
    from rekindle.apply.verify import Verdict
    from rekindle.report.config import ReportConfig
    from rekindle.report.page import Report
    from rekindle.train.config import EvaluateConfig, InitConfig, TrainConfig

Progress = Callable[[int], object]


@dataclass(frozen=True)
class Step:
    """One method applied, with its options."""

    verb: str
    options: Resolved[Any]


@dataclass(frozen=True)
class Model:
    """A checkpoint on disk, and what has been decided to do to it. Nothing is written until `save`."""

    source: str
    checkpoint: Checkpoint
    steps: tuple[Step, ...] = field(default=())

    def then(self, verb: str, options: Resolved[Any]) -> Model:
        child = method_named(verb).apply(self.checkpoint, options.config)
        return replace(self, checkpoint=child, steps=(*self.steps, Step(verb, options)))

    def job(self, **save_options: Any) -> Job:
        """The plan, priced; raises RekindleError with every problem. No byte moves."""
        return saving.prepare(self.checkpoint, resolve(SaveConfig, save_options).config)

    def save(
        self,
        out: str | Path,
        *,
        overwrite: bool = False,
        resume: bool = False,
        workers: int | None = None,
        progress: Progress = lambda done: None,
        **save_options: Any,
    ) -> Path:
        """Write the result to `out`, whole or not at all. Options: see SaveConfig. Returns `out`."""
        out = Path(out)
        check_free(out, overwrite)
        options = resolve(SaveConfig, save_options)
        job = saving.prepare(self.checkpoint, options.config)
        with publishing(out, overwrite=overwrite, keep_partial=True, resume=resume) as folder:
            workers = workers or saving.default_workers()
            written = saving.write(job, folder, workers=workers, resume=resume, progress=progress)
            self._describe(folder, out, options, written)
        bad = {file: w for file, w in written.items() if w.not_finite}
        if bad:
            file, w = next(iter(bad.items()))
            raise CheckFailed(
                f"{sum(w.not_finite for w in bad.values())} computed values are NaN or infinite.",
                where=f"{w.where} in {out / file}",
                why="the source has such values, or they overflowed",
                hint=f"rekindle inspect {self.source} --checksum --nan",
            )
        return out

    def recipe(self, options: Resolved[SaveConfig] | None = None) -> dict[str, Any]:
        """What OUT/rekindle.yaml holds: `rekindle run` repeats it."""
        steps = [{step.verb: to_dict(step.options.config)} for step in self.steps]
        recipe: dict[str, Any] = {"rekindle": __version__, "source": self.source, "steps": steps}
        return recipe | ({"save": to_dict(options.config)} if options else {})

    def _describe(self, folder: Path, out: Path, options: Resolved[SaveConfig], written: Mapping[str, Any]) -> None:
        from rekindle.report.card import write_card

        before = read_manifest(self.checkpoint.folder.path)
        records = [self._record(step, out, options) for step in self.steps]
        manifest = Manifest(
            version=__version__,
            lineage=[*(before.lineage if before else []), *records],
            parameters=self.checkpoint.parameters(),
            promise={"kind": self.checkpoint.promise.kind, "text": self.checkpoint.promise.text},
            shards={
                file: {"bytes": w.bytes} | ({"sha256": w.sha256} if w.sha256 else {}) for file, w in written.items()
            },
        )
        manifest.write(folder)
        (folder / "rekindle.yaml").write_text(dump_yaml(self.recipe(options)), encoding="utf-8")
        write_card(folder, manifest, self.checkpoint.config, None, _papers(step.verb for step in self.steps))

    def _record(self, step: Step, out: Path, options: Resolved[SaveConfig]) -> Record:
        first = step is self.steps[0]
        return Record(
            verb=step.verb,
            command=command(step.verb, [self.source, str(out)], step.options, options),
            options=step.options.options() | options.options(),
            source=self.source if first else None,
            source_fingerprint=self.checkpoint.folder.fingerprint if first else None,
            summary=summary(self.checkpoint),
        )


def summary(checkpoint: Checkpoint) -> str:
    """One line on what a checkpoint is: "mixtral, 8 experts, top-2 in 16 of 16 layers"."""
    s = checkpoint.settings
    if not s.sparse_layers:
        return f"{checkpoint.family.model_type}, dense, {s.num_layers} layers"
    layers = f"{len(s.sparse_layers)} of {s.num_layers} layers"
    return f"{checkpoint.family.model_type}, {s.num_experts} experts, top-{s.top_k} in {layers}"


def command(verb: str, arguments: list[str], *options: Resolved[Any]) -> str:
    """What to type to do this again: the arguments, and each option that is not its default."""
    words = ["rekindle", verb, *arguments]
    for resolved in options:
        values = to_dict(resolved.config)
        for f in fields(resolved.config):
            value = values[f.name]
            if value == f.default or resolved.origins[f.name] == "default":
                continue
            flag = f"--{f.name.replace('_', '-')}"
            if isinstance(value, bool):
                words += [flag if value else f"--no-{flag[2:]}"]
            else:
                words += [flag, ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    return shlex.join(words)


# -- look ------------------------------------------------------------------------------------------------------


def open(source: str | Path) -> Model:  # noqa: A001
    """Open a checkpoint: a folder, `org/model[@revision]` or `hf://org/model`. Reads headers only."""
    return Model(str(source), open_checkpoint(open_folder(locate(source))))


def inspect(source: str | Path) -> dict[str, Any]:
    """What a checkpoint is and what can be done with it, from headers alone."""
    model = open(source)
    checkpoint, s = model.checkpoint, model.checkpoint.settings
    manifest = read_manifest(checkpoint.folder.path)
    return {
        "source": str(source),
        "family": checkpoint.family.model_type,
        "summary": summary(checkpoint),
        "parameters": checkpoint.parameters(),
        "layers": s.num_layers,
        "hidden_size": s.hidden_size,
        "heads": {"query": s.num_heads, "key_value": s.num_kv_heads, "dim": s.head_dim},
        "feed_forward": {"dense": s.intermediate_size, "expert": s.expert_size, "shared": s.shared_size},
        "experts": {"count": s.num_experts, "top_k": s.top_k, "layers": list(s.sparse_layers)},
        "vocab_size": s.vocab_size,
        "context": s.max_position_embeddings,
        "tied": s.tie_word_embeddings,
        "dtypes": dict(Counter(t.dtype for t in checkpoint.folder.tensors.values())),
        "bytes": sum(t.nbytes for t in checkpoint.folder.tensors.values()),
        "shards": [path.name for path in checkpoint.folder.shards],
        "unused": checkpoint.unused,
        "fingerprint": checkpoint.folder.fingerprint,
        "promise": manifest.promise if manifest else None,
        "lineage": [vars(record) for record in manifest.lineage] if manifest else [],
        "can": {verb: _applies(model, verb) for verb in METHODS},
        "notes": checkpoint.notes,
    }


def _applies(model: Model, verb: str) -> str:
    """ "yes: what it would become", or "no: why not"."""
    try:
        child = model.then(verb, resolve(method_named(verb).config, METHODS[verb].trial))
    except RekindleError as error:
        return f"no: {error.why or error.what}".splitlines()[0]
    return f"yes: {summary(child.checkpoint)}"


def verify(
    child: str | Path,
    against: str | Path,
    *,
    tokens: int = 1024,
    data: str = "stdlib",
    blockwise: bool | None = None,
) -> Verdict:
    """Reload both in transformers and hold the child to its promise, on `tokens` tokens of `data`.

    `blockwise`: one module in memory at a time; None: where both models do not fit. The verdict is kept beside the
    child as verify.json and goes into its card.
    """
    from rekindle.apply.scan import not_finite
    from rekindle.apply.verify import verify as measure

    made, parent = open(child).checkpoint, open(against).checkpoint
    ids, text = _some_tokens(parent, data, tokens)
    if blockwise is None:
        blockwise = not _both_fit(made, parent)
    manifest = read_manifest(made.folder.path)
    promise = (manifest.promise or {}).get("kind", "none") if manifest else "none"
    bad = not_finite(made.folder)
    verdict = measure(made, parent, ids, text=text, promise=promise, bad=bad, blockwise=blockwise)
    _keep(made.folder.path, verdict.to_dict(), manifest, made.config)
    return verdict


def _some_tokens(parent: Checkpoint, data: str, tokens: int) -> tuple[np.ndarray, str]:
    """Token ids [N, T] of held-out text, or random ones where the checkpoint has no tokenizer."""
    if tokens < 2:
        raise RekindleError(f"{tokens} tokens are too few to compare on.", hint="--tokens 1024")
    length = min(128, parent.settings.max_position_embeddings, tokens)
    rows = max(1, tokens // length)
    folder = parent.folder.path
    if any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        from rekindle.train.tokens import sample_tokens

        return sample_tokens(folder, data, rows * length, length), f"validation text of {data}"
    random = np.random.default_rng(0).integers(0, parent.settings.vocab_size, (rows, length))
    return random, "random tokens: the checkpoint has no tokenizer"


def _both_fit(*checkpoints: Checkpoint) -> bool:
    """Whether both models in float32 leave a third of the free memory for activations."""
    import psutil

    needed = sum(4 * checkpoint.parameters()["total"] for checkpoint in checkpoints)
    return needed < psutil.virtual_memory().available * 2 / 3


def _keep(folder: Path, verdict: dict[str, Any], manifest: Manifest | None, config: dict[str, Any]) -> None:
    """The verdict travels with the child, where its folder can be written and is one of ours."""
    if manifest is None or not os.access(folder, os.W_OK):
        return
    from rekindle.report.card import write_card

    (folder / "verify.json").write_text(json.dumps(verdict, indent=2) + "\n", encoding="utf-8")
    write_card(folder, manifest, config, verdict, _papers(record.verb for record in manifest.lineage))


def _papers(verbs: Iterable[str]) -> str:
    papers = [f"{METHODS[verb].paper} {METHODS[verb].url}".strip() for verb in dict.fromkeys(verbs) if verb in METHODS]
    return "\n".join(paper for paper in papers if paper)


def checksums(source: str | Path) -> Iterator[str]:
    """Each shard that agrees with its recorded SHA-256; raises CheckFailed at one that does not."""
    from rekindle.apply.scan import check_shards

    folder = locate(source)
    return check_shards(folder, read_manifest(folder))


def not_finite(source: str | Path) -> dict[str, int]:
    """{tensor: number of NaN and infinite values}, reading every byte."""
    from rekindle.apply.scan import not_finite as scan

    return scan(open_folder(locate(source)))


def env() -> dict[str, str]:
    """Versions and device, ready to paste into an issue."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import psutil
    import torch

    found = {"rekindle": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for package in (
        "torch",
        "transformers",
        "accelerate",
        "safetensors",
        "huggingface_hub",
        "numpy",
        "datasets",
    ):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    found["cores"] = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    found["memory"] = f"{psutil.virtual_memory().total / 1e9:.1f} GB"
    return found


# -- recycle ---------------------------------------------------------------------------------------------------


def apply(verb: str, source: Model | str | Path, **options: Any) -> Model:
    """Apply a method by its verb, see rekindle.methods.METHODS."""
    model = source if isinstance(source, Model) else open(source)
    return model.then(verb, resolve(method_named(verb).config, options))


def upcycle(source: Model | str | Path, **options: Any) -> Model:
    """Dense to mixture of experts, same function. Options: methods.sparse_upcycling.Config."""
    return apply("upcycle", source, **options)


def rewrite(source: Model | str | Path, **options: Any) -> Model:
    """Other shards, dtype or layout. Options: methods.rewrite.Config."""
    return apply("rewrite", source, **options)


# -- train and tell --------------------------------------------------------------------------------------------


def init(
    out: str | Path, options: Resolved[InitConfig] | None = None, *, overwrite: bool = False, **given: Any
) -> Path:
    """A model from scratch, with a tokenizer trained on its data. Options: train.config.InitConfig. Returns `out`."""
    from rekindle.train.config import InitConfig
    from rekindle.train.init import init_model

    out = Path(out)
    options = options or resolve(InitConfig, given)
    typed = command("init", [str(out)], options)
    init_model(out, options.config, command=typed, options=options.options(), overwrite=overwrite)
    _write_recipe(out, {"rekindle": __version__, "steps": [{"init": to_dict(options.config)}]})
    return out


def train(
    source: str | Path,
    out: str | Path,
    options: Resolved[TrainConfig] | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    **given: Any,
) -> dict[str, Any]:
    """Continue a checkpoint's training into `out`. Options: train.config.TrainConfig.

    Returns final losses (nats per token, the language model's alone), tokens, FLOPs and speed.
    """
    from rekindle.train.config import TrainConfig
    from rekindle.train.loop import train as run

    options = options or resolve(TrainConfig, given)
    summary = run(
        locate(source),
        Path(out),
        options.config,
        command=command("train", [str(source), str(out)], options),
        options=options.options(),
        source_name=str(source),
        resume=resume,
        overwrite=overwrite,
    )
    if summary:  # of several ranks the main one writes
        recipe = {"rekindle": __version__, "source": str(source), "steps": [{"train": to_dict(options.config)}]}
        _write_recipe(Path(out), recipe)
    return summary


def evaluate(source: str | Path, options: Resolved[EvaluateConfig] | None = None, **given: Any) -> dict[str, Any]:
    """Loss and perplexity on text, with standard errors. Options: train.config.EvaluateConfig."""
    from rekindle.train.config import EvaluateConfig
    from rekindle.train.evaluate import evaluate as measure

    return measure(locate(source), (options or resolve(EvaluateConfig, given)).config)


def report(
    runs: Sequence[str | Path],
    out: str | Path,
    options: Resolved[ReportConfig] | None = None,
    *,
    overwrite: bool = False,
    **given: Any,
) -> Report:
    """Curves, costs and a verdict of several runs in one HTML page. Options: report.config.ReportConfig."""
    from rekindle.report.config import ReportConfig
    from rekindle.report.page import write_report

    options = options or resolve(ReportConfig, given)
    typed = shlex.join(["rekindle", "report", *map(str, runs), "--out", str(out)])
    folders = [Path(run) for run in runs]
    return write_report(folders, Path(out), command=typed, overwrite=overwrite, **to_dict(options.config))


# -- recipes ---------------------------------------------------------------------------------------------------


def _write_recipe(out: Path, recipe: dict[str, Any]) -> None:
    (out / "rekindle.yaml").write_text(dump_yaml(recipe), encoding="utf-8")


def load_recipe(path: str | Path) -> tuple[Model, dict[str, Any]]:
    """A recipe's model with all its steps applied, and its save options. Raises with every unknown key."""
    recipe = _read_recipe(path)
    model = open(recipe["source"])
    for verb, options in recipe["steps"]:
        model = model.then(verb, resolve(method_named(verb).config, {}, options))
    return model, recipe["save"]


def run(path: str | Path, out: str | Path, *, overwrite: bool = False, resume: bool = False, **how: Any) -> Path:
    """Repeat a recipe into `out`: methods in one pass over the bytes, or one `train`, or one `init`."""
    recipe = _read_recipe(path)
    verbs = [verb for verb, _ in recipe["steps"]]
    if verbs == ["init"]:
        from rekindle.train.config import InitConfig

        return init(out, resolve(InitConfig, {}, recipe["steps"][0][1]), overwrite=overwrite)
    if verbs == ["train"]:
        from rekindle.train.config import TrainConfig

        options = resolve(TrainConfig, {}, recipe["steps"][0][1])
        train(recipe["source"], out, options, overwrite=overwrite, resume=resume)
        return Path(out)
    model, save_options = load_recipe(path)
    return model.save(out, overwrite=overwrite, resume=resume, **how, **save_options)


def is_training(path: str | Path) -> bool:
    """Whether a recipe is one of `init` or `train`, which have no plan to price."""
    return [verb for verb, _ in _read_recipe(path)["steps"]][0] in ("init", "train")


def _read_recipe(path: str | Path) -> dict[str, Any]:
    """{"source", "steps": [(verb, options)], "save"} of a recipe file, checked."""
    recipe = read_yaml(path)
    known = {"rekindle": None, "source": None, "steps": None, "save": None}
    problems = [unknown_key(key, known) for key in recipe if key not in known]
    steps = recipe.get("steps")
    if not (isinstance(steps, list) and steps and all(isinstance(s, dict) and len(s) == 1 for s in steps)):
        steps = []
        problems.append(RekindleError("steps must be a list of `verb: options`.", where=path))
    pairs = [(verb, options or {}) for step in steps for verb, options in step.items()]
    for verb, options in pairs:
        if not isinstance(options, dict):
            problems.append(RekindleError(f"The options of {verb} must be keys and values.", where=path))
        if verb in ("init", "train") and len(pairs) > 1:
            why = "methods are planned together and written in one pass; training needs their result on disk"
            problems.append(RekindleError(f"{verb} cannot be one of several steps.", where=path, why=why))
    if not isinstance(recipe.get("source"), str) and [verb for verb, _ in pairs] != ["init"]:
        problems.append(RekindleError("The recipe names no source.", where=path, hint="source: SRC"))
    if problems:
        raise together(problems)
    return {"source": recipe.get("source"), "steps": pairs, "save": recipe.get("save") or {}}
