"""A tune as sound: a plucked string, by the sum of its partials.

A string plucked at one place has partials whose strengths follow from that place, and of which the higher ones die
away sooner (Fletcher and Rossing, "The Physics of Musical Instruments", chapters 2 and 9). Each is a sine, so its pitch
is exact.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rekindle.music.abc.playing import Sound

RATE = 22_050  # samples a second
TAIL = 0.6  # seconds that the last note rings on
PEAK = 0.8  # of full scale
_ATTACK, _RELEASE = 0.004, 0.06  # seconds
_PARTIALS = 16
_PLUCKED = 0.21  # of the string's length: where, which leaves out about every fifth partial
_A4 = 440.0

Samples = NDArray[np.float32]


def samples(sounds: Sequence[Sound], seconds_per_whole: float, *, rate: int = RATE) -> Samples:
    """Float32 [n], within ±0.8, of n = (the end of the last note + 0.6 s) * `rate` samples.

    `sounds` have starts and lengths in whole notes, of `seconds_per_whole` each. A note fades within 60 ms of its end,
    into the one that follows; the last one within the 0.6 s.

    >>> samples(played(read_tune("X:1\\nL:1/4\\nK:D\\nd2|")), 2.0).shape
    (35280,)
    """
    ends = [float(sound.start + sound.length) for sound in sounds]
    out = np.zeros(round((max(ends, default=0.0) * seconds_per_whole + TAIL) * rate), np.float32)
    made: dict[tuple[int, int, float], Samples] = {}
    for sound, end in zip(sounds, ends, strict=True):
        held = round(float(sound.length) * seconds_per_whole * rate)
        kind = sound.pitch, held, TAIL if end == max(ends) else _RELEASE
        if kind not in made:
            made[kind] = _note(*kind, rate)
        at = round(float(sound.start) * seconds_per_whole * rate)
        out[at : at + len(made[kind])] += made[kind][: len(out) - at]
    loudest = float(np.abs(out).max(initial=0.0))
    return out * np.float32(PEAK / loudest) if loudest else out


def wav_bytes(heard: Samples, rate: int = RATE) -> bytes:
    """A WAV file of one channel and 16 bits; what is beyond ±1 is cut."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(np.rint(np.clip(heard, -1, 1) * 32767).astype("<i2").tobytes())
    return file.getvalue()


def _note(pitch: int, held: int, release: float, rate: int) -> Samples:
    """Float32 [held + release * rate]; `release`: seconds."""
    hertz = _A4 * 2 ** ((pitch - 69) / 12)
    count = held + round(release * rate)
    time = np.arange(count, dtype=np.float32) / np.float32(rate)
    out = np.zeros(count, np.float32)
    # A low string rings longer than a high one, and low partials longer than high ones.
    ring = 1.4 * (220 / hertz) ** 0.4
    for k in range(1, _PARTIALS + 1):
        if k * hertz > 0.45 * rate:
            break
        strength = abs(np.sin(np.pi * k * _PLUCKED)) / k**1.6
        # The phase in float64: that of float32 drifts by cents within a long note.
        phase = np.arange(count) * (2 * np.pi * k * hertz / rate)
        out += np.float32(strength) * np.exp(-time * np.float32(k**0.7 / ring)) * np.sin(phase).astype(np.float32)
    return out * _envelope(held, count, rate)


def _envelope(held: int, count: int, rate: int) -> Samples:
    """Float32 [count]: up within 4 ms, down after `held` samples, both along a cosine."""
    envelope = np.ones(count, np.float32)
    attack = min(round(_ATTACK * rate), count)
    envelope[:attack] *= _rise(attack)
    envelope[held:] *= _rise(count - held)[::-1]
    return envelope


def _rise(count: int) -> Samples:
    return (0.5 - 0.5 * np.cos(np.pi * (np.arange(count) + 0.5) / max(count, 1))).astype(np.float32)
