"""The model card: README.md of a checkpoint: what it is, where it came from, whether its promise held.

Whatever came from a file (names, commands, options, a parent's card) is escaped or fenced: no text of a
checkpoint becomes markup of the card.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Any

from rekindle.anatomy import family_of
from rekindle.anatomy.engines import READ_ON, READINGS, REPOSITORIES, differs
from rekindle.config import dump_yaml
from rekindle.errors import RekindleError
from rekindle.report.lineage import chain
from rekindle.report.words import scientific
from rekindle.store.manifest import Manifest

NAME = "README.md"
_HUB_NAME = re.compile(r"(?:hf://)?([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@[\w.-]+)?")
_LICENSE_KEYS = ("license", "license_name", "license_link")
_MOST_BYTES = 1_000_000  # of a parent's card that are read
_NOTHING = ("", "~", "null", "Null", "NULL")  # as YAML writes it
_PIPELINES = {"ForCausalLM": "text-generation", "LMHeadModel": "text-generation", "ForMaskedLM": "fill-mask",
              "Model": "feature-extraction"}  # fmt: skip
# What does not show, or makes what stands beside it show as something else: control characters, marks that turn the
# direction of text, halves of surrogates.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def write_card(
    folder: Path,
    manifest: Manifest,
    config: dict[str, Any],
    verify: dict[str, Any] | None,
    method_note: str,
    parent: Path | None = None,
) -> None:
    """Write FOLDER/README.md; a `rekindle.yaml` already there is quoted in it.

    `config` is what `config.json` holds, `verify` what `verify.json` does; `method_note` is a line of
    Markdown that names the method's paper and links to it; `parent` the folder it was made of, wherever a hub's name or
    a step of an archive led to.
    """
    license_ = inherited_license(manifest, parent)
    names = base_models(manifest)
    head = {
        "base_model": names,
        "base_model_relation": "finetune" if names and any(r.verb == "train" for r in manifest.lineage) else None,
        "library_name": "transformers",
        "pipeline_tag": _pipeline(config),
        "tags": list(dict.fromkeys(["rekindle", *(record.verb for record in reversed(manifest.lineage))])),
        **license_,
    }
    text = "---\n" + dump_yaml({key: value for key, value in head.items() if value}) + "---\n\n"
    sections = [
        f"# {_inline(_published_name(folder))}",
        _summary(manifest),
        escape(method_note.strip(), quote=False),
        _parents(manifest),
        _verification(manifest, verify),
        _measured(manifest),
        _engines(config),
        _repeat(folder, manifest),
        "## Config\n\n" + _fenced(_yaml(config), "yaml") if config else "",
        _license(license_),
    ]
    text += "\n\n".join(section for section in sections if section) + "\n"
    (folder / NAME).write_text(_UNSEEN.sub(_named, text), encoding="utf-8")


def base_models(manifest: Manifest) -> list[str]:
    """The sources that are names on the hub, nearest first.

    A folder of that name is a folder, and so is what an earlier step of the lineage was told to write.
    """
    names, written = [], set[str]()
    for record in manifest.lineage:
        source = record.source or ""
        match = _HUB_NAME.fullmatch(source)
        if match and source not in written and not os.path.exists(source):
            names.append(match[1])
        written |= set(record.command.split())
    return list(dict.fromkeys(reversed(names)))


def inherited_license(manifest: Manifest, parent: Path | None = None) -> dict[str, str]:
    """The license that the nearest parent's card states in its head; empty where none does."""
    sources = [Path(record.source) for record in reversed(manifest.lineage) if record.source]
    for source in [*([parent] if parent else []), *sources]:
        head = _front_matter(source / NAME)
        stated = {key: str(head[key]) for key in _LICENSE_KEYS if isinstance(head.get(key), str)}
        if "license" in stated:
            return stated
    return {}


def _front_matter(path: Path) -> dict[str, Any]:
    """The head of a card, its values as text; empty where the file, or a head that can be read, is missing.

    Nothing of it is interpreted: a date that is none, or a number of any length, is no reason to lose the rest.
    """
    import yaml

    if not os.path.isfile(path):  # a pipe would never end
        return {}
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES).decode("utf-8", "ignore")
        match = re.match(r"---\r?\n(.*?)\r?\n---\s", text, re.S)
        head = yaml.load(match[1], yaml.BaseLoader) if match else {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return {key: value for key, value in head.items() if value not in _NOTHING} if isinstance(head, dict) else {}


def _pipeline(config: dict[str, Any]) -> str | None:
    """What the hub calls the work of the class that the config names."""
    named = config.get("architectures")
    name = str(named[0]) if isinstance(named, list) and named else ""
    return next((tag for end, tag in _PIPELINES.items() if name.endswith(end)), None)


def _named(unseen: re.Match[str]) -> str:
    return f"\\u{ord(unseen[0]):04x}"


def _summary(manifest: Manifest) -> str:
    steps = [f"**{_inline(link.verb)}** {_inline(link.detail)}".strip() for link in chain(manifest.lineage)]
    total, active = manifest.parameters.get("total"), manifest.parameters.get("active")
    sizes = f"{total:,} parameters" if total is not None else ""
    sizes += f", {active:,} active per token" if active is not None and active != total else ""
    return "\n\n".join(part for part in (" → ".join(steps), f"{sizes}." if sizes else "") if part)


def _parents(manifest: Manifest) -> str:
    rows = [
        [_inline(text) for text in (record.verb, record.source, record.source_fingerprint or "not recorded")]
        for record in manifest.lineage
        if record.source
    ]
    return "## Parents\n\n" + _table(("step", "source", "fingerprint"), rows) if rows else ""


def _verification(manifest: Manifest, verify: dict[str, Any] | None) -> str:
    promise = manifest.promise or {}
    text = f"Promise: {_inline(promise.get('kind', 'none'))}. {_inline(promise.get('text', ''))}".strip()
    if not verify:
        return f"## Verification\n\n{text} Not verified yet; `rekindle verify` measures it."
    rows = [(_inline(key.replace("_", " ")), _value(value)) for key, value in verify.items() if value is not None]
    return f"## Verification\n\n{text}\n\n" + _table(("measured", "value"), rows)


def _measured(manifest: Manifest) -> str:
    if not manifest.measured:
        return ""
    columns = list(next(iter(manifest.measured.values())))
    rows = [[_inline(row), *map(_value, found.values())] for row, found in manifest.measured.items()]
    return "## Measured while it was made\n\n" + _table(["", *map(_inline, columns)], rows)


def _engines(config: dict[str, Any]) -> str:
    """What serving engines make of the experts, and other trainers of their balance; empty where there are none."""
    try:
        family = family_of(config)
        settings = family.settings(config)
    except (RekindleError, TypeError, ValueError, AttributeError, KeyError, ArithmeticError):
        return ""
    if not settings.sparse_layers:
        return ""
    readings = {engine: known[family.model_type] for engine, known in READINGS.items() if family.model_type in known}
    rows = [
        [engine, "; ".join(differs(engine, family.model_type, settings)) or "as transformers does",
         f"{REPOSITORIES[engine]}: {reading.source}" + (f" at {reading.commit}" if reading.commit else "")]
        for engine, reading in readings.items()
    ]  # fmt: skip
    table = _table(("engine", "computes the experts", "source"), rows)
    text = f"What is exact is exact in transformers. Of engines their source was read, on {READ_ON}; they were not run."
    return "\n\n".join(["## In serving engines", text, table, *_balance(config)])


def _balance(config: dict[str, Any]) -> Iterator[str]:
    if config.get("output_router_logits") is False and "router_aux_loss_coef" in config:
        yield (
            "`output_router_logits` is false: transformers, and trainers that call it, add no load-balance loss unless "
            "it is set to true. `rekindle train` adds it by itself."
        )


def _repeat(folder: Path, manifest: Manifest) -> str:
    commands = "\n".join(record.command for record in manifest.lineage if record.command)
    parts = [_fenced(commands, "sh")] if commands else []
    recipe = folder / "rekindle.yaml"
    if recipe.is_file():
        parts += ["The last of these as a recipe:", _fenced(recipe.read_text(encoding="utf-8"), "yaml")]
    return "\n\n".join(["## To repeat", *parts]) if parts else ""


def _yaml(config: dict[str, Any]) -> str:
    """A JSON-like mapping as YAML, whatever odd values it holds."""
    return dump_yaml(json.loads(json.dumps(config, default=str)))


def _published_name(folder: Path) -> str:
    """The name a folder will have: while it is written it is called .NAME.partial, a part .NAME.partial-1-of-2."""
    return re.sub(r"^\.(.+)\.partial(-\d+-of-\d+)?$", r"\1", folder.name)


def _license(stated: dict[str, str]) -> str:
    if stated:
        return f"## License\n\nInherited from the parent's card: {_inline(stated['license'])}."
    return "## License\n\nUnknown: no parent's card states one. Ask its authors before you share this model."


def _table(heading: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heading = list(heading)
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    return scientific(value, 4) if isinstance(value, float) else _inline(value)


def _inline(text: Any) -> str:
    """Text from a file on one line of Markdown: no HTML, no link, no emphasis, no new cell."""
    flat = escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\|*`\[\]])", lambda mark: f"&#{ord(mark[0])};", flat)


def _fenced(text: str, language: str) -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
