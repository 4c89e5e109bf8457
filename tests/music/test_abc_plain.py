"""The plain spelling keeps what sounds, and moves to other keys; on drawn tunes and on music21's books."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tune_helpers import corpus, random_tune, tune

from rekindle.music.abc.header import Written, written
from rekindle.music.abc.keys import SEMITONES, Key, all_keys
from rekindle.music.abc.layout import abc_file, laid_out
from rekindle.music.abc.plain import NotPlain, Plain, plain
from rekindle.music.abc.reader import Tune, read_tune
from rekindle.music.vocabulary import pieces


def heard(found: Tune) -> list[tuple]:
    """What sounds in each bar, of a chord its highest note."""
    return [[(max(note.pitches, default=None), note.length) for note in bar.notes] for bar in found.bars]


def spelt(body: str, **fields: str) -> str:
    return plain(written(tune(body, **fields))).body


def test_what_is_kept_and_what_is_left_out():
    assert spelt('"Am"A2 (B{c}d) ~e.f|Tg3 !fermata!a3|') == "A2 Bd ef|g3 a3|]"
    assert spelt("[Ac]2 [c'eG]/|") == "c2 c'/|]"
    assert spelt("A2- A|A-B c|") == "A2- A|AB c|]"  # the second is no tie
    assert spelt("A>B  c<d \\\n e`f|\n|:g3|") == "A>B c<d ef|:g3|]"
    assert spelt("A1 B2/2 c// d4/8 x2|") == "A B c/4 d/ z2|]"
    assert spelt("(3ABc(2de (4fgab|") == "(3ABc(2de (4fgab|]"
    assert spelt("|:A3:||:B3:||c3||d3|||e3|]") == "|:A3::B3:|c3||d3||e3|]"
    assert spelt("A3|[1 B3:|[2 c3|]") == "A3|1B3:|2c3|]"
    assert spelt("A>|>B") == "A|B|]"  # a pair needs two


@pytest.mark.parametrize(
    ("text", "why"),
    [(tune("A@"), "cannot be read"), (tune("A|[K:G]B|"), "changes its key"), (tune("Z2|A|"), "rests for whole bars"),
     (tune("(3:2:4ABcd|"), "unusual tuplet"), (tune("A|[1,3 B:|"), "several turns"), (tune("z3|"), "no notes"),
     (tune("A", L="1/2"), "unusual unit"), (tune("A", K="C#"), "unusual unit or key"),
     (tune("A", M="none"), "no metre"), (tune("A", K="H"), "no key"), ("A", "no metre")],
)  # fmt: skip
def test_what_has_no_plain_spelling_says_why(text: str, why: str):
    with pytest.raises(NotPlain, match=why):
        plain(written(text))


@given(st.integers(0, 10**9))
@settings(max_examples=60, deadline=None)
def test_a_plain_tune_is_its_own_plain_spelling(seed: int):
    text = random_tune(seed)
    found = plain(written(text))
    assert found.text == text
    assert "".join(pieces(text) or ()) == text
    assert heard(read_tune(found.written)) == heard(read_tune(written(text)))


@given(st.integers(0, 10**9), st.sampled_from([key for key in all_keys() if key.mode == "major"]))
@settings(max_examples=60, deadline=None)
def test_in_another_key_every_step_is_the_same(seed: int, key: Key):
    first = plain(written(random_tune(seed, keys=(Key("D", "major"),))))
    moved = first.transposed(key.tonic)
    up = SEMITONES[key.tonic[0]] + key.tonic.count("#") - key.tonic.count("b") - 2
    before, after = read_tune(first.written), read_tune(moved.written)
    steps = {max(b.pitches) - max(a.pitches) for a, b in zip(before.notes, after.notes, strict=True) if a.pitches}
    assert len(steps) == 1
    assert (steps.pop() - up) % 12 == 0
    assert [note.length for note in before.notes] == [note.length for note in after.notes]
    assert moved.transposed("D").body in {first.transposed("D", octave).body for octave in (0, 1)}


def test_moved_accidentals_are_spelt_in_the_new_key():
    scale = Plain("4/4", "1/8", Key("D", "major"), "D^D=F=c_B|]")
    assert scale.transposed("G").body == "G^G_B=f_e|]"
    assert scale.transposed("Eb").body == "E=E_G_d__c|]".replace("__c", "_c")
    with pytest.raises(NotPlain, match="no spelling"):
        Plain("4/4", "1/8", Key("D", "major"), "__B|]").transposed("Db")


def test_the_books_keep_what_sounds():
    """Every plain tune of a tenth of the books; the whole of them in tests/soak_music.py."""
    kept = 0
    for source in corpus()[::10]:
        kept += keeps_what_sounds(source)
    assert kept >= 400


def keeps_what_sounds(source: Written) -> bool:
    try:
        found = plain(source)
    except NotPlain:
        return False
    before, after = read_tune(source), read_tune(found.written)
    assert heard(before) == heard(after), source.first("T")
    assert not after.problems
    assert plain(found.written).text == found.text, source.first("T")
    return True


def test_a_file_for_people_reads_as_the_same_tune():
    text = random_tune(5, longest=300)
    file = abc_file(text, number=7, title="A\nB%", tempo="3/8=108", notes=("asked for: \x1b[31m%x",))
    assert file.startswith("X:7\nT:A B\\%\nN:asked for: [31m\\%x\nM:")
    assert heard(read_tune(file)) == heard(read_tune(written(text)))
    assert laid_out("A|B|c|d|e|f|]") == "A|B|c|d|\ne|f|]"
    assert laid_out("|:A|B:|c|d|]") == "|:A|B:|\nc|d|]"
