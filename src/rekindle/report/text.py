"""Columns and numbers for a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from rekindle.errors import counted, some

_MOST = 3  # sources of a step, or tensors, that are named
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: object) -> str:
    """Text that came from a file, with what steers a terminal or turns its lines spelled out."""
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], str(text))


def inspected(data: dict[str, Any]) -> str:
    """What `inspect` found, in two columns."""
    n = data["parameters"]
    rows = [
        ("family", data["summary"]),
        (
            "parameters",
            count(n["total"]) + (f", {count(n['active'])} active" if n["active"] != n["total"] else ""),
        ),
    ]
    for name, own in data["towers"].items():
        rows += [(name if not i else "", f"{row} {text}") for i, (row, text) in enumerate(_tower(own))]
    if not data["towers"] and data["layers"]:
        rows += _tower(data)
    if data["vocab_size"]:
        rows.append(
            ("vocabulary", f"{data['vocab_size']}{', tied' if data['tied'] else ''}, context {data['context']}")
        )
    if images := data["images"]:
        size, patch = (" x ".join(map(str, images[key])) for key in ("size", "patch"))
        labels = f"; {counted(images['labels'], 'label')}" if images["labels"] else ""
        channels = counted(images["channels"], "channel")
        rows.append(("images", f"{size}, {channels}, patches {patch}: {images['tokens']} tokens each{labels}"))
    rows += [
        ("stored", f"{nbytes(data['bytes'])} {_files(data['shards'])}, {', '.join(data['dtypes'])}"),
    ]
    if data["unused"]:
        rows.append(("unused", some(data["unused"], _MOST)))
    if data["promise"]:
        rows.append(("promise", f"{data['promise']['kind']}: {data['promise']['text']}"))
    rows += [("lineage" if not i else "", _step(record)) for i, record in enumerate(data["lineage"])]
    rows += [("can" if not i else "", f"{verb}: {answer}") for i, (verb, answer) in enumerate(data["can"].items())]
    if "checksums" in data:
        rows.append(
            (
                "checksums",
                f"{counted(len(data['checksums']), 'file')} {'agrees' if len(data['checksums']) == 1 else 'agree'}",
            )
        )
    if "not_finite" in data:
        rows.append(
            (
                "NaN scan",
                f"{counted(len(data['not_finite']), 'tensor')} affected" if data["not_finite"] else "all finite",
            )
        )
    rows += [("note", note) for note in data["notes"]]
    return table([(name, plain(text)) for name, text in rows])


def _tower(data: dict[str, Any]) -> list[tuple[str, str]]:
    """The layers of a model, or of one of its towers."""
    heads, experts = data["heads"], data["experts"]
    rows = [
        ("layers", f"{data['layers']}, hidden size {data['hidden_size']}"),
        ("heads", f"{heads['query']} query, {heads['key_value']} key/value, dim {heads['dim']}"),
        ("feed-forward", ", ".join(f"{kind} {size}" for kind, size in data["feed_forward"].items() if size)),
    ]
    if experts["count"]:
        share = f"top-{experts['top_k']}"
        if experts["choice"] == "experts":
            share = f"each chooses {experts['top_k']}/{experts['count']} of the tokens"
        rows.append(("experts", f"{experts['count']}, {share}, in layers {_ranges(experts['layers'])}"))
    return rows


def _step(record: dict[str, Any]) -> str:
    """ "upcycle: 8 experts from 1 feed-forward", "merge of run.rk@100, run.rk@200 and 3 more: the mean of 5" """
    given = [source["source"] for source in record.get("sources", {}).values()]
    return f"{record['verb']}{' of ' if given else ''}{some(given, _MOST)}: {record['summary']}"


def _ranges(layers: list[int]) -> str:
    """0-3, 5, 7-9"""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][-1] + 1:
            parts[-1][1:] = [layer]
        else:
            parts.append([layer])
    return ", ".join("-".join(map(str, part)) for part in parts)


def _files(shards: Sequence[str]) -> str:
    return f"in {counted(len(shards), 'file')}" if shards else "once saved"


def table(rows: Sequence[Sequence[str]], indent: int = 0, right: Iterable[int] = ()) -> str:
    """Columns padded to their widest cell; those in `right` are flush right."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            c.rjust(w) if i in set(right) else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(" " * indent + "  ".join(cells).rstrip())
    return "\n".join(lines)


def nbytes(n: float) -> str:
    """1.23 GB"""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if n < 1000 or unit == "TB":
            return f"{n:.0f} {unit}" if unit == "bytes" else f"{n:.2f} {unit}"
        n /= 1000
    raise AssertionError


def count(n: float) -> str:
    """1.23B"""
    for unit in ("", "k", "M", "B", "T"):
        if n < 1000 or unit == "T":
            return f"{n:.0f}" if not unit else f"{n:.2f}{unit}"
        n /= 1000
    raise AssertionError
