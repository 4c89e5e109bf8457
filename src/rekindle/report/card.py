"""The model card: README.md of a checkpoint: what it is, where it came from, whether its promise held.

Whatever came from a file (names, commands, options, a parent's card) is escaped or fenced: no text of a
checkpoint becomes markup of the card.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from rekindle.anatomy import Family, Settings, family_of
from rekindle.anatomy.engines import READ_ON, READINGS, REPOSITORIES, differs
from rekindle.config import dump_yaml
from rekindle.errors import RekindleError
from rekindle.report.combination import FILE as COMBINED
from rekindle.report.combination import rows_of, spent, verdict
from rekindle.report.license import LICENSE, inherited
from rekindle.report.lineage import Line, lines
from rekindle.report.places import out_of, published_name, source_folders
from rekindle.report.words import scientific
from rekindle.store.index import read_json
from rekindle.store.lineage import sources
from rekindle.store.manifest import Manifest

NAME = "README.md"
LCSC = "[LCSC](https://arxiv.org/abs/2404.02241)"
_HUB_NAME = re.compile(r"(?:hf://)?([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@[\w.-]+)?")
_PIPELINES = {
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForMaskedLM": "fill-mask",
    "ForImageClassification": "image-classification",
    "EncoderDecoderModel": "",
    "Model": "feature-extraction",
}
# What does not show, or makes what stands beside it show as something else: control characters, marks that turn the
# direction of text, halves of surrogates.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def write_card(
    folder: Path,
    manifest: Manifest,
    config: dict[str, Any],
    verify: dict[str, Any] | None,
    method_note: str,
    made_of: Mapping[str, Path] | None = None,
) -> None:
    """Write FOLDER/README.md; a `rekindle.yaml` already there is quoted in it.

    `config` is what `config.json` holds, `verify` what `verify.json` does; `method_note` is a line of
    Markdown that names the method's paper and links to it; `made_of` the folders it was made of by the sources' keys,
    wherever a hub's name or a step of an archive led to: the only one has the empty key. Without it the license is the
    one that a card there already states.
    """
    license_, said = inherited(folder / NAME, manifest, made_of)
    names = base_models(folder, manifest)
    head = {
        "base_model": names,
        "base_model_relation": _relation(manifest) if names else None,
        "library_name": _module(config).partition(".")[0],
        "pipeline_tag": _pipeline(config),
        "tags": list(dict.fromkeys(["rekindle", *(record.verb for record in reversed(manifest.lineage))])),
        **license_,
    }
    text = "---\n" + dump_yaml({key: value for key, value in head.items() if value}) + "---\n\n"
    sections = [
        f"# {_inline(published_name(folder))}",
        _summary(manifest),
        escape(method_note.strip(), quote=False),
        _parents(manifest),
        _made_of(manifest),
        _verification(manifest, verify, config),
        _loading(folder, config),
        _measured(manifest),
        _combined(folder),
        _engines(config),
        _repeat(folder, manifest),
        "## Config\n\n" + _fenced(_yaml(config), "yaml") if config else "",
        f"{LICENSE}{_inline(said)}",
    ]
    text += "\n\n".join(section for section in sections if section) + "\n"
    (folder / NAME).write_text(_UNSEEN.sub(_named, text), encoding="utf-8")


def base_models(folder: Path, manifest: Manifest) -> list[str]:
    """The sources that are names on the hub, nearest first.

    A folder of that name is a folder, and so is what the step before was told to write.
    """
    lineage, names = manifest.lineage, []
    there = source_folders(folder, lineage)
    for place in reversed(range(len(lineage))):
        for key, source in sources(lineage, place).items():
            written = None if source.after is None else out_of(lineage[source.after])
            match = _HUB_NAME.fullmatch(source.source)
            if match and source.source != written and key not in there[place] and not os.path.exists(source.source):
                names.append(match[1])
    return list(dict.fromkeys(names))


def _relation(manifest: Manifest) -> str | None:
    """In the hub's words, of which `adapter` and `quantized` are never so here."""
    if any(len(record.sources) > 1 for record in manifest.lineage):
        return "merge"
    return "finetune" if any(record.verb == "train" for record in manifest.lineage) else None


def _pipeline(config: dict[str, Any]) -> str | None:
    """What the hub calls the work of the class that the config names."""
    named = config.get("architectures")
    name = str(named[0]) if isinstance(named, list) and named else ""
    tag = next((tag for end, tag in _PIPELINES.items() if name.endswith(end)), None)
    known = _known(config) if tag == "feature-extraction" else None
    return f"image-{tag}" if known and known[0].reads_images else tag


def _named(unseen: re.Match[str]) -> str:
    return f"\\u{ord(unseen[0]):04x}"


def _summary(manifest: Manifest) -> str:
    life = [_line(line) for line in lines(manifest.lineage)]
    total, active = manifest.parameters.get("total"), manifest.parameters.get("active")
    sizes = f"{total:,} parameters" if total is not None else ""
    sizes += f", {active:,} active per token" if active is not None and active != total else ""
    return "\n\n".join(part for part in ("\n".join(life), f"{sizes}." if sizes else "") if part)


def _line(line: Line) -> str:
    """One life is a paragraph; where several meet each is an item of a list, the last with what became of them."""
    steps = [f"**{_inline(link.verb)}** {_inline(link.detail)}".strip() for link in line.links]
    text = " → ".join([*([" + ".join(line.after)] if line.after else []), *steps])
    return f"* {line.name}: {text}" if line.name else f"* {text}" if line.after else text


def _combined(folder: Path) -> str:
    """How coefficients were found, where they were searched."""
    path = folder / COMBINED
    if not path.is_file():
        return ""
    data = read_json(path, missing="")
    head, *rows = rows_of(data)
    text = f"## How it was found\n\nCoefficients were searched ({LCSC}): {_inline(verdict(data))}\n\n"
    return text + _table(head, [[_inline(cell) for cell in row] for row in rows]) + f"\n\n{_inline(spent(data))}"


def _parents(manifest: Manifest) -> str:
    rows = [
        [_inline(text) for text in (record.verb, source.source, source.fingerprint or "not recorded")]
        for place, record in enumerate(manifest.lineage)
        for source in sources(manifest.lineage, place).values()
    ]
    return "## Parents\n\n" + _table(("step", "source", "fingerprint"), rows) if rows else ""


def _made_of(manifest: Manifest) -> str:
    rows = [[_inline(what), _inline(of)] for what, of in manifest.made_of.items()]
    return "## What it is made of\n\n" + _table(("tensors", "made of"), rows) if rows else ""


def _verification(manifest: Manifest, verify: dict[str, Any] | None, config: dict[str, Any]) -> str:
    promise = manifest.promise or {}
    said = f" {_inline(promise['text'])}." if promise.get("text") else ""
    text = f"Promise: {_inline(promise.get('kind', 'none'))}.{said}"
    if not verify:
        how = "Not verified yet; `rekindle verify` measures it." if _known(config) else "Not verified."
        return f"## Verification\n\n{text} {how}"
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
    known = _known(config)
    if known is None or not known[1].sparse_layers:
        return ""
    family, settings = known
    if family.reads_images:
        return ""
    readings = {engine: of[family.model_type] for engine, of in READINGS.items() if family.model_type in of}
    rows = [
        [engine, "; ".join(differs(engine, family.model_type, settings)) or "as transformers does",
         f"{REPOSITORIES[engine]}: {reading.source}" + (f" at {reading.commit}" if reading.commit else "")]
        for engine, reading in readings.items()
    ]  # fmt: skip
    table = _table(("engine", "computes the experts", "source"), rows)
    text = f"What is exact is exact in transformers. Of engines their source was read, on {READ_ON}; they were not run."
    return "\n\n".join(["## In serving engines", text, table, *_balance(config)])


def _module(config: dict[str, Any]) -> str:
    """Who has the model's class."""
    known = _known(config)
    return known[0].module if known else "transformers"


def _loading(folder: Path, config: dict[str, Any]) -> str:
    """How to load what transformers has no class for."""
    if (module := _module(config)) == "transformers":
        return ""
    name = json.dumps(published_name(folder))
    text = f"transformers has no class for this model; after `import {module}` its Auto classes know it."
    return "\n\n".join(["## To load", text, _fenced(f"import rekindle\n\nmodel = rekindle.load({name})", "python")])


def _known(config: dict[str, Any]) -> tuple[Family, Settings] | None:
    """What a table says of a config, where one does."""
    try:
        family = family_of(config)
        return family, family.settings(config)
    except (RekindleError, TypeError, ValueError, AttributeError, KeyError, ArithmeticError):
        return None


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
