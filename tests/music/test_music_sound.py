"""The synthesis, listened to by Fourier transforms."""

import io
import wave
from fractions import Fraction as F

import numpy as np
import pytest

from rekindle.music.abc.playing import Sound
from rekindle.music.sound import PEAK, RATE, TAIL, samples, wav_bytes


def note(pitch, start=F(0), length=F(1)):
    return Sound(pitch, start, length, 0)


def cents(heard, pitch):
    """How far the fundamental is from equal temperament at A = 440 Hz, by the peak of the spectrum near it."""
    n, hertz = 1 << 18, 440 * 2 ** ((pitch - 69) / 12)
    strength = np.abs(np.fft.rfft(heard * np.hanning(len(heard)), n))
    low, high = (int(hertz * 2 ** (semitones / 12) * n / RATE) for semitones in (-1, 1))
    peak = low + strength[low:high].argmax()
    left, top, right = np.log(strength[peak - 1 : peak + 2])
    return 1200 * np.log2((peak + (left - right) / (left - 2 * top + right) / 2) * RATE / n / hertz)


@pytest.mark.parametrize("pitch", range(48, 97))
def test_each_pitch_is_right_and_is_the_strongest_partial(pitch):
    heard = samples([note(pitch)], 1.0)
    assert abs(cents(heard[:RATE], pitch)) < 1
    strength = np.abs(np.fft.rfft(heard[:RATE]))  # one bin is 1 Hz
    assert abs(1200 * np.log2(strength.argmax() / (440 * 2 ** ((pitch - 69) / 12)))) < 25


def test_a_note_of_a_scale_sounds_at_its_time():
    scale = [48 + 2 * i for i in range(24)]
    heard = samples([note(pitch, F(i, 4), F(1, 4)) for i, pitch in enumerate(scale)], 2.0)
    for i, pitch in enumerate(scale):
        # The release of the note before is over.
        part = heard[round((i / 2 + 0.07) * RATE) : round((i / 2 + 0.49) * RATE)]
        assert abs(cents(part, pitch)) < 10


def test_it_is_as_loud_as_said_without_a_constant_part():
    heard = samples([note(60, F(i, 8), F(1, 8)) for i in range(16)] + [note(67), note(76)], 2.0)
    assert np.abs(heard).max() == pytest.approx(PEAK, abs=1e-6)
    assert abs(heard.mean()) < 1e-3
    assert heard.dtype == np.float32


@pytest.mark.parametrize("length", [F(1), F(1, 3), F(1, 64)])
def test_it_ends_a_tail_after_the_last_note(length):
    heard = samples([note(60), note(62, F(1), length)], 1.7)
    assert len(heard) == round((float(1 + length) * 1.7 + TAIL) * RATE)
    assert abs(heard[0]) < 1e-3
    assert np.abs(heard[-5:]).max() < 1e-4
    assert np.abs(heard[-round(TAIL / 2 * RATE) :]).max() > 1e-3  # it rings on


def test_no_note_begins_or_ends_with_a_click():
    """Where it is cut or struck the wave is no steeper than a string alone, which it would be many times."""
    alone = samples([note(45, F(0), F(2))], 1.0)
    steepest = np.abs(np.diff(alone)).max() / np.abs(alone).max()
    for length in (F(1, 2), F(501, 1000), F(503, 1000), F(507, 1000)):  # wherever in its period
        heard = samples([note(45, F(0), length), note(45, F(3, 2), F(1, 2))], 1.0)
        end = round(float(length) * RATE)
        steps = np.abs(np.diff(heard)) / np.abs(heard).max()
        assert steps[end - 2 : end + round(0.08 * RATE)].max() < steepest
        assert np.abs(heard[end + round(0.061 * RATE) : round(1.5 * RATE)]).max() == 0


def test_the_same_tune_is_the_same_bytes_and_silence_is_silent():
    tune = [note(60), note(64), note(67, F(1), F(1, 3))]
    assert wav_bytes(samples(tune, 1.1)) == wav_bytes(samples(tune, 1.1))
    assert not samples([], 2.0).any()
    assert len(samples([], 2.0)) == round(TAIL * RATE)


def test_the_file_holds_the_samples():
    heard = np.array([0, 0.5, -0.5, 1, -1, 7, -7], np.float32)
    with wave.open(io.BytesIO(wav_bytes(heard, 8000))) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 8000)
        read = np.frombuffer(file.readframes(99), "<i2")
    assert read.tolist() == [0, 16384, -16384, 32767, -32767, 32767, -32767]
