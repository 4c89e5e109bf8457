"""The model card: README.md of a checkpoint: what it is, where it came from, whether its promise held.

Whatever came from a file (names, commands, options, a parent's card) is escaped or fenced: no text of a
checkpoint becomes markup of the card.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from rekindle.config import dump_yaml
from rekindle.report.lineage import chain
from rekindle.report.words import scientific
from rekindle.store.manifest import Manifest

NAME = "README.md"
_HUB_NAME = re.compile(r"(?:hf://)?([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@[\w.-]+)?")
_LICENSE_KEYS = ("license", "license_name", "license_link")


def write_card(
    folder: Path, manifest: Manifest, config: dict[str, Any], verify: dict[str, Any] | None, method_note: str
) -> None:
    """Write FOLDER/README.md; a `rekindle.yaml` already there is quoted in it.

    `config` is what `config.json` holds, `verify` what `verify.json` does; `method_note` is a line of
    Markdown that names the method's paper and links to it.
    """
    license_ = inherited_license(manifest)
    head = {
        "base_model": base_models(manifest),
        "library_name": "transformers",
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
        _repeat(folder, manifest),
        "## Config\n\n" + _fenced(_yaml(config), "yaml") if config else "",
        _license(license_),
    ]
    text += "\n\n".join(section for section in sections if section) + "\n"
    (folder / NAME).write_text(text, encoding="utf-8")


def base_models(manifest: Manifest) -> list[str]:
    """The sources that are names on the hub, nearest first.

    A folder of that name is a folder, and so is what an earlier step of the lineage was told to write.
    """
    names, written = [], set[str]()
    for record in manifest.lineage:
        source = record.source or ""
        match = _HUB_NAME.fullmatch(source)
        if match and source not in written and not Path(source).exists():
            names.append(match[1])
        written |= set(record.command.split())
    return list(dict.fromkeys(reversed(names)))


def inherited_license(manifest: Manifest) -> dict[str, str]:
    """The license that the nearest parent's card states in its head; empty where none does."""
    for record in reversed(manifest.lineage):
        head = _front_matter(Path(record.source) / NAME) if record.source else {}
        stated = {key: str(head[key]) for key in _LICENSE_KEYS if isinstance(head.get(key), str)}
        if "license" in stated:
            return stated
    return {}


def _front_matter(path: Path) -> dict[str, Any]:
    """The YAML head of a card; empty where the file, or a head that can be read, is missing."""
    import yaml

    try:
        match = re.match(r"---\r?\n(.*?)\r?\n---\s", path.read_text(encoding="utf-8"), re.S)
        head = yaml.safe_load(match[1]) if match else {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return head if isinstance(head, dict) else {}


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
