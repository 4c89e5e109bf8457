"""inspect, verify, env: what a checkpoint is, and whether it keeps its promise."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rekindle.anatomy import PAIR, Nameless
from rekindle.api.described import described
from rekindle.api.model import Model, open
from rekindle.api.saving import papers
from rekindle.api.source import local
from rekindle.apply.threads import cores
from rekindle.codec.kernel import kernel
from rekindle.config import Count, parse
from rekindle.edit import Checkpoint
from rekindle.errors import RekindleError
from rekindle.methods.repair import named
from rekindle.store.folder import open_folder
from rekindle.store.manifest import Manifest, read_manifest
from rekindle.version import __version__

if TYPE_CHECKING:
    from rekindle.apply.sound import Sound
    from rekindle.apply.verify import Verdict


def inspect(source: str | Path | Model) -> dict[str, Any]:
    """What a checkpoint is and what can be done with it, from headers alone; also of a model not saved yet."""
    return described(source if isinstance(source, Model) else open(source))


def verify(
    child: str | Path,
    against: str | Path,
    *,
    tokens: int | str = 1024,
    data: str = "stdlib",
    text_column: str | None = None,
    blockwise: bool | None = None,
) -> Verdict:
    """Reload both in transformers and hold the child to its promise, on `tokens` tokens (or "4k") of `data`.

    They are eight sequences, or more of 128 tokens: with many, what only distant tokens see is compared too. Sequences
    for a model of relative positions are longer than all that it tells apart.
    `text_column`: that of the rows of `data`, where it is not `text`. `blockwise`: one module in memory at a time;
    None: where both models do not fit. The verdict is kept beside the child as verify.json and goes into its card.
    Where the child was joined of several, the half that `against` has become is compared with it.
    """
    from rekindle.apply.load import fit, reads_text
    from rekindle.apply.scan import not_finite
    from rekindle.apply.verify import verify as measure

    made = open(child).checkpoint
    parent = _parent(against, made.folder.path)
    for side in (made, parent):
        side.folder.need_weights()
        if isinstance(side.family, Nameless) and not reads_text(side.folder):
            raise side.family.refusing("verify", "what the model is shown")
    manifest = read_manifest(made.folder.path)
    half = _half(made, parent, manifest)
    promised = (manifest.promise or {}) if manifest else {}
    promise = promised.get(half, promised.get("kind", "none"))
    if promise != "none" and made.folder.path.samefile(parent.folder.path):
        what = f"{child} would be compared with itself, and agree whatever it is."
        raise RekindleError(what, hint="--against the source that it was made of")
    by_class = isinstance(parent.family, Nameless)
    if by_class and blockwise:
        raise RekindleError(f"A {parent.family.name} is no model whose blocks are known.", hint="no --blockwise")
    ids, text = _some_tokens(parent, data, _count(tokens), text_column)
    if blockwise is None:
        blockwise = not (by_class or fit(made, parent))
    bad = not_finite(made.folder)
    verdict = measure(made, parent, ids, text=text, promise=promise, bad=bad, blockwise=blockwise, half=half)
    _keep(made.folder.path, verdict.to_dict(), manifest, made.config)
    return verdict


def sound(made: str | Path) -> Sound:
    """Whether an encoder-decoder works as one: it looks back, reads its source, learns to, and writes; see apply.sound.

    Raises RekindleError for a model of one tower, and where transformers cannot load it.
    """
    from rekindle.apply.sound import sound as looked_at

    checkpoint = open(made).checkpoint
    checkpoint.folder.need_weights()
    if not checkpoint.settings.towers:
        what = f"A {checkpoint.family.name} is looked at beside what it was made of."
        raise RekindleError(what, hint="--against SRC")
    manifest = read_manifest(checkpoint.folder.path)
    last = manifest.lineage[-1] if manifest and manifest.lineage else None
    silent = bool(last and last.verb == "warm-start" and last.options["cross"]["value"] == "silent")
    return looked_at(checkpoint, silent=silent)


def _parent(against: str | Path, child: Path) -> Checkpoint:
    """What a child is compared with; where it was repaired, shards may be gone of that, or broken."""
    try:
        return open(against).checkpoint
    except RekindleError:
        manifest = read_manifest(child)
        repaired = [record for record in manifest.lineage if record.verb == "repair"] if manifest else []
        lost = [file for record in repaired for file in named(record.options["lost"]["value"]).files]
        if not lost:
            raise
        return open(against, without=lost).checkpoint


def _half(child: Checkpoint, parent: Checkpoint, manifest: Manifest | None) -> str:
    """The tower of the child that the parent has become, where it is a half of a child that was joined; else none."""
    promised = (manifest.promise or {}) if manifest else {}
    joined = child.family.model_type == PAIR or any(tower in promised for tower in child.family.towers)
    if parent.family.towers or not joined:
        return ""
    lineage = manifest.lineage if manifest else []
    sources = [one for record in reversed(lineage) for one in record.sources.items()]
    alike = [(key.split("/")[0], one) for key, one in sources if one.fingerprint == parent.folder.fingerprint]
    found = {_as_given(one.source, parent.folder.path): key for key, one in reversed(alike) if key in promised}
    reads, writes = child.family.towers
    guess = writes if parent.settings.output == "causal" else reads
    return found[max(found)] if found else guess


def _as_given(given: str, folder: Path) -> int:
    """How many names, from the last on, a path has in common with the folder: two models may be of one layout."""
    names = zip(reversed(Path(given).parts), reversed(folder.resolve().parts), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], names))


def _count(tokens: int | str) -> int:
    try:
        return parse(tokens, Count)
    except ValueError as error:
        raise RekindleError(f"--tokens is {tokens!r}, but {error}.") from None


def _some_tokens(parent: Checkpoint, data: str, tokens: int, column: str | None) -> tuple[np.ndarray, str]:
    """Token ids [N, T] of held-out text; random ones, and why, where no tokenizer here makes ids that the model has."""
    if tokens < 2:
        raise RekindleError(f"{tokens} tokens are too few to compare on.", hint="--tokens 1024")
    from rekindle.apply.load import text_sizes
    from rekindle.apply.probe import probe_of
    from rekindle.train.model import check_ids, check_vocabulary, load_tokenizer
    from rekindle.train.tokens import open_corpus

    folder, settings = parent.folder.path, parent.settings
    vocab_size, longest = settings.vocab_size, settings.context
    if isinstance(parent.family, Nameless):
        vocab_size, longest = text_sizes(parent.folder)
    if settings.num_channels:
        return _some_images(parent, data, tokens)
    least = probe_of(settings).least(settings)
    length = min(max(128, tokens // 8, least), max(longest, least), tokens)  # what is far apart counts too
    rows = max(1, tokens // length)

    def random(reason: RekindleError) -> tuple[np.ndarray, str]:
        ids = np.random.default_rng(0).integers(0, vocab_size, (rows, length))
        return ids, f"random tokens ({reason.what.rstrip('.')}), in sequences of {length}"

    try:
        tokenizer = load_tokenizer(folder)
        check_vocabulary(tokenizer, vocab_size, folder)
    except RekindleError as error:
        return random(error)
    ids = open_corpus(data, tokenizer, column).sample("validation", rows * length, length)[:, :-1]
    try:
        check_ids(int(ids.max()), vocab_size, folder)
    except RekindleError as error:
        return random(error)
    name = "this Python's standard library (no --data)" if data == "stdlib" else data
    return ids, f"validation text of {name}, in sequences of {length}"


def _some_images(parent: Checkpoint, data: str, tokens: int) -> tuple[np.ndarray, str]:
    """Images [n, channels, height, width], each as many tokens as the model makes of it: held-out ones, or random."""
    settings = parent.settings
    count, size = max(2, tokens // settings.context), (settings.num_channels, *settings.image_size)
    if data == "stdlib":
        drawn = np.random.default_rng(0).standard_normal((count, *size), dtype=np.float32)
        return drawn, f"{count} random images (no --data), {settings.context} tokens each"
    from rekindle.train.image_source import open_images
    from rekindle.train.pixels import Processing

    images = open_images(data)
    chosen = images.spread(images.sides["validation"], count)
    pixels = Processing(parent.folder.path, settings.num_channels, settings.image_size)(images.read(chosen))
    return pixels.numpy(), f"{len(chosen)} held-out images of {data}, {settings.context} tokens each"


def _keep(folder: Path, verdict: dict[str, Any], manifest: Manifest | None, config: dict[str, Any]) -> None:
    """The verdict travels with the child, where its folder can be written and is one of ours."""
    if manifest is None or not os.access(folder, os.W_OK):
        return
    from rekindle.report.card import write_card

    (folder / "verify.json").write_text(json.dumps(verdict, indent=2) + "\n", encoding="utf-8")
    made_by = papers((record.verb, record.options) for record in manifest.lineage)
    write_card(folder, manifest, config, verdict, made_by)


def checksums(source: str | Path) -> Iterator[str]:
    """Each shard that agrees with its recorded SHA-256; raises CheckFailed at one that does not."""
    from rekindle.apply.scan import check_shards

    folder = local(source)
    return check_shards(folder, read_manifest(folder))


def not_finite(source: str | Path) -> dict[str, int]:
    """{tensor: number of NaN and infinite values}, reading every byte."""
    from rekindle.apply.scan import not_finite as scan

    return scan(open_folder(local(source)))


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
    found["archives"] = f"{kernel().name} loops"
    found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    found["cores"] = str(cores())
    found["memory"] = f"{psutil.virtual_memory().total / 1e9:.1f} GB"
    return found
