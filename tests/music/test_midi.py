"""MIDI files, read back by our own few lines and by music21."""

from fractions import Fraction as F
from importlib.util import find_spec

import pytest

from rekindle.music.abc.playing import Sound, played
from rekindle.music.abc.reader import read_tune
from rekindle.music.midi import TICKS, midi_bytes


def variable(data, at):
    number = 0
    while True:
        number = number << 7 | data[at] & 0x7F
        at += 1
        if data[at - 1] < 0x80:
            return number, at


def events(data):
    """(tick, status, data) of all of the one track, which must end where the file does."""
    assert data[:14] == b"MThd\0\0\0\6\0\0\0\1" + TICKS.to_bytes(2, "big")
    assert data[14:18] == b"MTrk"
    assert int.from_bytes(data[18:22], "big") == len(data) - 22
    at, tick, found = 22, 0, []
    while at < len(data):
        delta, at = variable(data, at)
        tick += delta
        if data[at] == 0xFF:
            length, start = variable(data, at + 2)
            found.append((tick, data[at : at + 2], data[start : start + length]))
            at = start + length
        else:
            length = 2 if data[at] >> 4 == 0xC else 3
            found.append((tick, data[at : at + 1], data[at + 1 : at + length]))
            at += length
    return found


def struck(data):
    """(tick, length in ticks, pitch) of every note, each of which must end once."""
    on, found = {}, []
    for tick, status, said in events(data):
        if status == b"\x90":
            assert said[0] not in on
            on[said[0]] = tick
        elif status == b"\x80":
            start = on.pop(said[0])
            found.append((start, tick - start, said[0]))
    assert not on
    return sorted(found)


def test_the_file_says_tempo_instrument_title_and_end():
    found = events(midi_bytes([Sound(60, F(0), F(1, 4), 0)], 1.6, program=24, title="Où"))
    assert found == [
        (0, b"\xff\x03", "Où".encode()),
        (0, b"\xff\x51", (400_000).to_bytes(3, "big")),  # microseconds for a quarter
        (0, b"\xc0", b"\x18"),
        (0, b"\x90", bytes([60, 80])),
        (480, b"\x80", bytes([60, 64])),
        (480, b"\xff\x2f", b""),
    ]


@pytest.mark.parametrize("parts", [3, 5, 7, 9, 11])
def test_uneven_lengths_do_not_drift(parts):
    """However many notes go into a quarter, the note after 40 quarters begins on its beat."""
    notes = [Sound(60 + i % 2, F(i, 4 * parts), F(1, 4 * parts), i) for i in range(40 * parts + 1)]
    found = struck(midi_bytes(notes, 2.0))
    assert [start for start, _, _ in found] == [round(F(i, parts) * TICKS) for i in range(40 * parts + 1)]
    assert found[-1][0] == 40 * TICKS


def test_a_note_again_is_struck_again():
    found = struck(midi_bytes([Sound(67, F(i, 8), F(1, 8), i) for i in range(4)], 2.0))
    assert found == [(240 * i, 240, 67) for i in range(4)]


@pytest.mark.parametrize("ticks", [0, 127, 128, 16383, 16384, 2_097_151, 2_097_152])
def test_a_long_silence_is_said_in_one_number(ticks):
    found = struck(midi_bytes([Sound(60, F(ticks, 4 * TICKS), F(1), 0)], 2.0))
    assert found == [(ticks, 4 * TICKS, 60)]


def test_a_title_of_any_length_keeps_the_file_whole():
    assert events(midi_bytes([], 2.0, title="𝄞" * 500))[-1][1] == b"\xff\x2f"


@pytest.mark.skipif(find_spec("music21") is None, reason="music21 is not installed")
def test_music21_reads_the_same_notes():
    from music21 import midi

    tune = read_tune("X:1\nM:6/8\nL:1/8\nK:D\n|: A | d2A (3FGAB | [EG]2z B>c d |1 e-e3 :|2 d6 |]\n")
    sounds = played(tune)
    file = midi.MidiFile()
    file.readstr(midi_bytes(sounds, 2.0))
    assert file.ticksPerQuarterNote == TICKS
    now, theirs = 0, []
    for event in file.tracks[0].events:
        now += event.time if isinstance(event, midi.DeltaTime) else 0
        if event.isNoteOn():
            theirs.append((now, event.pitch))
    assert sorted(theirs) == sorted((round(sound.start * 4 * TICKS), sound.pitch) for sound in sounds)
    assert len(theirs) > 20
