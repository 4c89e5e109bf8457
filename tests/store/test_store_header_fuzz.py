"""Thousands of damaged files, read by us and by the `safetensors` library.

Three things hold for every one: our reader raises nothing but RekindleError; what the library refuses we refuse; what
we accept the library reads as the same tensors.

A normal run tries 4,000. `REKINDLE_FUZZ=200000 pytest tests/store/test_store_header_fuzz.py` tries more, and
`REKINDLE_FUZZ_SEED=n` others. A failure shows the number of the damage, and the bytes.
"""

from __future__ import annotations

import json
import os
import random
import re
from pathlib import Path

import pytest
from store.safetensors_bytes import DTYPES, file_of, library, ours, with_header

from rekindle.errors import RekindleError
from rekindle.store.dtypes import BITS

COUNT = int(os.environ.get("REKINDLE_FUZZ", "4000"))
SEED = int(os.environ.get("REKINDLE_FUZZ_SEED", "0"))

# The reasons for which we refuse what the library takes.
STRICTER = (
    "twice",  # the library keeps the last of two keys
    "does not begin with {",  # it skips white space
    "more than dtype",  # it ignores other keys
    "lacks dtype",  # it takes ["F32", [2], [0, 8]] for an entry
    "in its shape or offsets",  # it takes sizes from 2^63 to 2^64 beside a 0
    "beyond counting",  # and products beyond it after one
)

NUMBERS = ["0", "1", "2", "3", "4", "8", "16", "-1", "-0", "1.0", "2e0", "1e999", "true", "null", '"1"', "[1]", "{}"]
NUMBERS += [str(2**k + d) for k in (31, 32, 53, 62, 63, 64, 65) for d in (-1, 0, 1)] + ["9" * 400, "00", "+1", "1 "]
VALUES = [*NUMBERS, "[]", '""', "NaN", "Infinity", '"F32"', '"\\ud800"', '"\\ud83d\\ude00"', '"a\\u0000"', "[" * 200]
TOKENS = ["{", "}", "[", "]", ",", ":", '"', "\\", " ", "\t", "\n", "\x0b", "\x00", "\ufeff", "\u00a0", "/**/", "\\u"]


def valid(rng: random.Random) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    tensors = {}
    for _ in range(rng.randrange(5)):
        dtype = rng.choice(DTYPES)
        shape = tuple(rng.choice((0, 1, 2, 3, 4)) for _ in range(rng.randrange(4)))
        shape = (*shape, 4) if BITS[dtype] % 8 else shape
        size = BITS[dtype]
        for n in shape:
            size *= n
        tensors[rng.choice(["a", "b", "c.weight", "é", "", "\U0001f600", "a.b"])] = (
            dtype,
            shape,
            rng.randbytes(size // 8),
        )
    return tensors


def flipped(rng: random.Random, raw: bytes) -> bytes:
    """Bits of the length, the header or the data changed."""
    changed = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        end = 8 if rng.random() < 0.2 else len(changed)
        changed[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def resized(rng: random.Random, raw: bytes) -> bytes:
    """Cut short, lengthened, or with a piece missing or doubled."""
    at, to = sorted((rng.randrange(len(raw) + 1), rng.randrange(len(raw) + 1)))
    return rng.choice((raw[:at], raw + rng.randbytes(rng.randrange(1, 9)), raw[:at] + raw[to:], raw[:to] + raw[at:]))


def rewritten(rng: random.Random, raw: bytes) -> bytes:
    """The header's text changed, and its length made right: what is wrong is in the JSON."""
    length = int.from_bytes(raw[:8], "little")
    text = raw[8 : 8 + length].decode()
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(TOKENS) + text[at + rng.randrange(2) :]
    return with_header(text, raw[8 + length :])


def misled(rng: random.Random, raw: bytes) -> bytes:
    """Well-formed JSON of the wrong content: a value, a key or an entry replaced, doubled, dropped or moved."""
    length = int.from_bytes(raw[:8], "little")
    entries = [(json.dumps(name), _parts(entry)) for name, entry in json.loads(raw[8 : 8 + length]).items()]
    entries = entries or [('"a"', [('"dtype"', '"U8"'), ('"shape"', "[0]"), ('"data_offsets"', "[0,0]")])]
    for _ in range(rng.choice((1, 1, 2))):
        name, parts = entries[at := rng.randrange(len(entries))]
        kind = rng.randrange(9)
        if kind == 0:
            entries.append(entries[at])
        elif kind == 1:
            entries[at] = rng.choice(('"__metadata__"', '"\\ud800"', '"a"', '""')), parts
        elif kind == 2:
            entries[at] = name, rng.choice(VALUES)
        elif kind == 3:
            rng.shuffle(entries)
        elif isinstance(parts, list) and parts:
            part = rng.randrange(len(parts))
            key, value = parts[part]
            numbers = value.strip("[]").split(",")
            numbers[rng.randrange(len(numbers))] = rng.choice(NUMBERS)
            others = {
                4: (key, rng.choice(VALUES)),
                5: (rng.choice(('"dtype"', '"shape"', '"data_offsets"', '"x"')), value),
                6: (key, "[" + ",".join(numbers) + "]"),
                7: (key, json.dumps(rng.choice(DTYPES))),
                8: (key, value.replace("[", "[0,", 1)),
            }
            if key == '"data_offsets"' and rng.random() < 0.5:  # moved whole: holes, overlaps
                d = rng.choice((-1, 1, 2, -4, 2**62))
                others[6] = key, json.dumps([int(n) + d for n in re.findall(r"\d+", value)])
            parts[part] = others[kind]
            if rng.random() < 0.1:
                parts.append(parts[part])
    text = "{" + ",".join(f"{name}:{_joined(parts)}" for name, parts in entries) + "}"
    return with_header(text, raw[8 + length :])


def _parts(entry: dict) -> list[tuple[str, str]]:
    return [(json.dumps(key), json.dumps(value, separators=(",", ":"))) for key, value in entry.items()]


def _joined(parts: list[tuple[str, str]] | str) -> str:
    return parts if isinstance(parts, str) else "{" + ",".join(f"{key}:{value}" for key, value in parts) + "}"


def damaged(number: int) -> bytes:
    rng = random.Random(f"{SEED}/{number}")
    metadata = rng.choice((None, {}, {"format": "pt"}, {"a": "1", "é": '"'}))
    return rng.choice((flipped, resized, rewritten, misled, misled))(rng, file_of(valid(rng), metadata))


def read(raw: bytes, place: Path, number: int) -> tuple[dict | None, str | None]:
    """What we read, or the sentence that refuses it; anything else is a failure."""
    try:
        return ours(raw, place), None
    except RekindleError as refused:
        return None, refused.what
    except Exception as error:
        pytest.fail(f"damage {number}: {type(error).__name__}: {error}: {raw!r}")


def test_no_damage_gets_past_us(tmp_path):
    outcomes = {"both read it": 0, "both refuse it": 0, "only we refuse it": 0}
    for number in range(COUNT):
        raw = damaged(number)
        theirs = library(raw)
        mine, refusal = read(raw, tmp_path / "x.safetensors", number)
        if refusal is None:
            assert mine == theirs, (number, raw)
            outcomes["both read it"] += 1
        elif theirs is None:
            outcomes["both refuse it"] += 1
        else:
            assert any(reason in refusal for reason in STRICTER), (number, raw, refusal)
            outcomes["only we refuse it"] += 1
    print(outcomes)  # noqa: T201
    assert outcomes["both read it"] > COUNT / 100, "damage so heavy shows little"
    assert outcomes["both refuse it"] > COUNT / 3, "damage so light shows little"
