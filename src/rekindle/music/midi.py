"""A tune as a standard MIDI file (RP-001, format 0): one track, one channel."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction

from rekindle.music.abc.playing import Sound

TICKS = 480  # of a quarter note: halves down to 1/32 of it, thirds and fifths are whole
FLUTE = 73  # of the General MIDI programs, from 0
_OFF, _ON = 0x80, 0x90
_LONGEST = (1 << 28) - 1  # ticks that a delta time can say


def midi_bytes(sounds: Sequence[Sound], seconds_per_whole: float, *, program: int = FLUTE, title: str = "") -> bytes:
    """A file that plays `sounds`, whose starts and lengths are in whole notes.

    `seconds_per_whole`: how long a whole note is; `program`: an instrument of General MIDI, from 0. A note that begins
    as another of its pitch ends is struck anew.

    >>> midi_bytes(played(read_tune("X:1\\nL:1/4\\nK:D\\nd2|")), 2.0)[:4]
    b'MThd'
    """
    events = [(tick, order, bytes(says)) for tick, order, says in sorted(_events(sounds))]
    quarter = min(max(round(seconds_per_whole / 4 * 1e6), 1), 0xFFFFFF)  # microseconds, of three bytes
    name = title[:30].encode()  # at most 120 bytes, so that one says its length
    track = b"\0\xff\x03" + bytes([len(name)]) + name
    track += b"\0\xff\x51\x03" + quarter.to_bytes(3, "big") + b"\0" + bytes([0xC0, program])
    now = 0
    for tick, _, says in events:
        track += _variable(tick - now) + says
        now = tick
    track += b"\0\xff\x2f\0"
    return _chunk(b"MThd", struct.pack(">HHH", 0, 1, TICKS)) + _chunk(b"MTrk", track)


def _events(sounds: Sequence[Sound]) -> list[tuple[int, int, tuple[int, int, int]]]:
    """(tick, 0 of an end and 1 of a beginning, the message): ends come first, so that a note may follow its like."""
    found: list[tuple[int, int, tuple[int, int, int]]] = []
    for sound in sounds:
        start, end = _tick(sound.start), _tick(sound.start + sound.length)
        if end > start:
            found += [(start, 1, (_ON, sound.pitch, 80)), (end, 0, (_OFF, sound.pitch, 64))]
    return found


def _tick(place: Fraction) -> int:
    """Of a place in whole notes: places are rounded, not the steps between them, so that nothing drifts."""
    return min(round(place * 4 * TICKS), _LONGEST)


def _variable(number: int) -> bytes:
    """Seven bits a byte, the highest first; all but the last have the eighth bit."""
    parts = [number & 0x7F]
    while number := number >> 7:
        parts.append(number & 0x7F | 0x80)
    return bytes(reversed(parts))


def _chunk(name: bytes, inside: bytes) -> bytes:
    return name + struct.pack(">I", len(inside)) + inside
