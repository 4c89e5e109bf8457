"""What a checkpoint is, and what can be done with it: the facts that `inspect` shows."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rekindle.anatomy import Settings
from rekindle.api.decided import Decided
from rekindle.config import resolve
from rekindle.errors import RekindleError
from rekindle.methods import BOTH, METHODS, Method, method_named
from rekindle.store.manifest import read_manifest


def described(model: Decided) -> dict[str, Any]:
    """See `api.inspect`."""
    checkpoint, s = model.checkpoint, model.checkpoint.settings
    manifest = read_manifest(checkpoint.folder.path)
    tensors, promise = checkpoint.folder.tensors.values(), manifest.promise if manifest else None
    if model.steps:  # decided, and not there yet
        tensors = checkpoint.tensors.values()
        promise = checkpoint.promise.to_dict()
    return {
        "source": model.source,
        "family": checkpoint.family.model_type,
        "summary": checkpoint.summary,
        "parameters": checkpoint.parameters(),
        **_layers(s),
        "towers": {name: _layers(own) for name, own in s.towers.items()},
        "vocab_size": s.vocab_size,
        "context": s.context,
        "tied": s.tie_word_embeddings,
        "images": _images(s) if s.num_channels else None,
        "dtypes": dict(Counter(t.dtype for t in tensors)),
        "bytes": sum(t.nbytes for t in tensors),
        "shards": [] if model.steps else [path.name for path in checkpoint.folder.shards],
        "unused": checkpoint.unused,
        "fingerprint": checkpoint.folder.fingerprint,
        "promise": promise,
        "lineage": [record.to_dict() for record in manifest.lineage] if manifest else [],
        "can": {verb: _applies(model, verb) for verb in METHODS},
        "notes": checkpoint.notes,
    }


def _as_one_of(model: Decided, method: Method) -> str:
    """As which of the models that its options name this one would do."""
    found, refused = [], None
    for name in method.named_by:
        try:
            config = resolve(method.config, {name: name}).config
            method.combine({name: model.as_parent}, config)  # of one model, which needs no key
            found.append(name)
        except RekindleError as error:
            refused = refused or error
    return f"yes: as its {' or '.join(found)}" if found else f"no: {refused.what}" if refused else "no"


def _images(s: Settings) -> dict[str, Any]:
    own = {"channels": s.num_channels, "size": list(s.image_size), "patch": list(s.patch_size)}
    return {**own, "tokens": s.context, "labels": s.num_labels}


def _layers(s: Settings) -> dict[str, Any]:
    return {
        "layers": s.num_layers,
        "hidden_size": s.hidden_size,
        "heads": {"query": s.num_heads, "key_value": s.num_kv_heads, "dim": s.head_dim},
        "feed_forward": {"dense": s.intermediate_size, "expert": s.expert_size, "shared": s.shared_size},
        "experts": {
            "count": s.num_experts,
            "top_k": s.top_k,
            "layers": list(s.sparse_layers),
            "choice": s.routing,
        },
    }


def _applies(model: Decided, verb: str) -> str:
    """ "yes: what it would become", or "no: why not", with the flags that would do."""
    method, towers = method_named(verb), [*model.checkpoint.family.towers]
    if method.named_by:
        return _as_one_of(model, method)
    if method.takes == "models":
        return "yes: with others of its kind"
    found: dict[str | None, str] = {}
    reason = ""
    for tower in [*towers, BOTH] if towers and method.takes == "tower" else [None]:
        if tower == BOTH and found:  # which follows
            break
        try:
            child = method.apply(model.as_parent, resolve(method.config, method.trial).config, tower)
            found[tower] = child.summary
        except RekindleError as error:
            flags = f" ({error.hint})" if error.hint and error.hint.startswith("--") else ""
            said = [line for line in (error.why or error.what).splitlines() if not line.endswith("problems:")]
            reason = reason or f"no: {said[0].removeprefix('- ')}{flags}"
    if not found:
        return reason
    where = f" (--tower {' or '.join(map(str, found))})" if None not in found else ""
    return f"yes: {next(iter(found.values()))}{where}"
