"""What a sentence says of a tune, and what it asks of one: tables that are written from, and read by.

A fact that a tune's header does not give, or that its notes contradict, is not said.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from rekindle.errors import RekindleError, nearest
from rekindle.music.abc.keys import MODES, SEMITONES, Key, all_keys, parse_key
from rekindle.music.abc.metre import PLAIN, parse_metre
from rekindle.music.abc.reader import Tune

# kind of tune: how it is spelt in fields, titles and sentences; metres that it may have; whether a title is enough
KINDS: dict[str, tuple[str, str, bool]] = {
    "slip jig": (r"slip[ -]?jigs?|hop jigs?", "9/8", False),
    "double jig": (r"double jigs?", "6/8", False),
    "jig": (r"j[io]gg?s?|gigg?s?|gigues?", "6/8 9/8 12/8", True),
    "strathspey": (r"strathspe(?:y|ys)?", "4/4 2/2", True),
    "hornpipe": (r"hornpipes?", "2/4 4/4 2/2 3/2 6/8", True),
    "highland fling": (r"(?:highland )?flings?", "4/4 2/2", False),
    "reel": (r"reels?", "2/4 4/4 2/2", True),
    "clog": (r"clogs?", "2/4 4/4 2/2", False),
    "waltz": (r"walt[sz](?:es)?", "3/4 3/8", True),
    "minuet": (r"minuets?", "3/4 3/8", True),
    "quickstep": (r"quick[ -]?steps?", "2/4 4/4 2/2 6/8", True),
    "march": (r"march(?:es)?", "2/4 4/4 2/2 6/8", True),
    "polka": (r"polkas?", "2/4", True),
    "slide": (r"slides?", "6/8 12/8", False),
    "air": (r"airs?", " ".join(PLAIN), False),
    "song": (r"songs?|lied(?:er)?", " ".join(PLAIN), False),
}
MOODS: dict[str, str] = {
    "slow": r"slow(?:ly)?|very slow",
    "moderate": r"moderate(?:ly)?",
    "lively": r"lively|spirited|with spirit|animated|ga(?:il)?y|allegro|quick|fast",
    "tender": r"tender(?:ly)?|with feeling|with expression",
}
TIMES = {"4/4": "common time", "2/2": "cut time"}
_MODE_WORDS = {**{mode: mode for mode in MODES}, "aeolian": "minor", "ionian": "major"}
_TONIC = re.compile(
    r"\b(?:(?P<field>[Kk](?:ey)?[:\-] ?)|(?:in(?: the key of)?|key of) )?(?P<tonic>[A-Za-z])"
    r"(?P<raised>[#b\u266f\u266d](?![a-z])|[ -](?:sharp|flat)\b)?"
    rf"[ -]?(?P<mode>{'|'.join(_MODE_WORDS)}|m(?:in|aj)?\b|mix\b|dor\b|phr\b|lyd\b|loc\b)?(?![A-Za-z'])",
)
_METRE = re.compile(r"(?<![\d/])(\d{1,2}) ?/ ?(\d{1,2})(?![\d/])")


@dataclass(frozen=True)
class Facts:
    """What is known of a tune, or asked of one; "" and None of what is not."""

    kind: str = ""
    metre: str = ""
    key: Key | None = None
    mood: str = ""
    title: str = ""
    origin: str = ""


# -- of a tune -------------------------------------------------------------------------------------------------------


def facts(tune: Tune, origin: str = "") -> Facts:
    """By its fields: R:, M:, K:, N:, T: and O:, or `origin` where that is not there."""
    metre = tune.metre or ""
    notes = " ".join(tune.text.fields.get("N", ())).lower().replace('"', " ")
    mood = next(
        (mood for mood, spelt in MOODS.items() if re.search(rf"(?:^|[\s.,])(?:{spelt})[\s.,]", f" {notes} ")), ""
    )
    origin = tune.text.first("O").strip("[]") or origin
    key = tune.key if tune.key and key_holds(tune) else None
    return Facts(_kind(tune, metre), metre, key, mood, title_of(tune), origin)


def _kind(tune: Tune, metre: str) -> str:
    given, title = tune.text.first("R").lower(), " ".join(tune.text.fields.get("T", ())).lower()
    behind = title.partition("--")[2]  # "42d Regiment -- Strathspey"
    for text, titled in ((given, False), (behind, False), (title, True)):
        for kind, (spelt, metres, by_title) in KINDS.items():
            if re.search(rf"\b(?:{spelt})\b", text) and (by_title or not titled) and metre in metres.split():
                return kind
    return ""


def title_of(tune: Tune) -> str:
    """As one says it: "The Ace and Deuce of Pipering", "Acacia"."""
    title = tune.title.split("--")[0].strip(" .-\"'")
    if found := re.fullmatch(r"(.*), (The|A|An)", title):
        title = f"{found[2]} {found[1]}"
    if title.isupper():
        title = re.sub(r"[A-Z]+", lambda word: word[0].capitalize(), title)
        title = re.sub(r"'(?:S|T|D|Ll|Re|Ve)\b", lambda word: word[0].lower(), title)
    return title


def key_holds(tune: Tune) -> bool:
    """Whether the notes bear out the key: the last one is its tonic, and no letter is altered more often than not.

    Some books spell a dorian or mixolydian tune as a minor or major one; where it sounds otherwise, no key is said.
    """
    key, sounds = tune.key, [note for note in tune.notes if note.pitches]
    if key is None or not sounds or (max(sounds[-1].pitches) - tonic_of(key)) % 12:
        return False
    own = {(SEMITONES[letter] + raised) % 12 for letter, raised in key.signature.items()}
    outside = [pitch % 12 for note in sounds for pitch in note.pitches if pitch % 12 not in own]
    inside = [pitch % 12 for note in sounds for pitch in note.pitches if pitch % 12 in own]
    for altered in set(outside):
        beside = max((inside.count((altered + step) % 12) for step in (1, -1)), default=0)
        if outside.count(altered) > beside:
            return False
    return True


def tonic_of(key: Key) -> int:
    """Its semitones above C."""
    return SEMITONES[key.tonic[0]] + key.tonic.count("#") - key.tonic.count("b")


def sentences(known: Facts) -> list[str]:
    """Several wordings, each of some of the facts; the first has all but the title and the origin.

    >>> sentences(Facts("reel", "2/2", Key("D", "major"), "lively"))[0]
    'a lively reel in D major, cut time'
    """
    return list(dict.fromkeys(_wordings(known)))


def _wordings(known: Facts) -> Iterator[str]:
    kind = known.kind or "tune"
    named = _article(f"{known.mood} {kind}".strip())
    key, time = known.key.words if known.key else "", _time(known.metre)
    in_key = f" in {key}" if key else ""
    yield named + in_key + (f", {time}" if time else "")
    yield named + in_key
    yield f"{kind.capitalize()}, {known.metre}" + (f", {key}" if key else "")
    yield f"Write me {_article(kind)} in {known.metre}" + (f", in the key of {key}" if key else "")
    yield _article(kind) + in_key
    if known.title:
        yield f"{known.title}: {_article(kind)}{in_key}"
        yield f"{_article(kind)} called {known.title}" + (f", {time}" if time else "")
    if known.origin:
        yield f"{named}{in_key}, from {known.origin}"


def _article(words: str) -> str:
    return f"{'an' if words[:1] in 'aeiou' else 'a'} {words}"


def _time(metre: str) -> str:
    return TIMES.get(metre, f"{metre} time" if metre else "")


# -- of what is asked ------------------------------------------------------------------------------------------------


def asked(text: str) -> Facts:
    """Kind, metre and key that a text names, by the tables that sentences are written from; what it leaves open is "".

    >>> asked("a lively reel in D major")
    Facts(kind='reel', metre='', key=Key(tonic='D', mode='major'), mood='lively', title='', origin='')

    Raises RekindleError for a key or a metre that does not exist.
    """
    lower = f" {text.lower()} "
    kind = next((kind for kind, (spelt, *_) in KINDS.items() if re.search(rf"\b(?:{spelt})\b", lower)), "")
    mood = next((mood for mood, spelt in MOODS.items() if re.search(rf"\b(?:{spelt})\b", lower)), "")
    return Facts(kind, _metre_in(text), _key_in(text), mood)


def metres_of(wanted: Facts) -> tuple[str, ...]:
    """The metres that what is asked leaves: the one that is named, else those that the kind may have; () is any."""
    if wanted.metre:
        return (wanted.metre,)
    return tuple(KINDS[wanted.kind][1].split()) if wanted.kind not in ("", "air", "song") else ()


def _metre_in(text: str) -> str:
    named = next((metre for metre, words in TIMES.items() if words in text.lower()), "")
    found = _METRE.search(text)
    if found is None:
        letters = re.search(r"\bM(?:eter)?[:\-] ?(C\|?)(?![A-Za-z])", text)
        return (parse_metre(letters[1]) or "") if letters else named
    metre = parse_metre(f"{found[1]}/{found[2]}")
    if metre not in PLAIN:
        what = f"There is no metre {found[0]} that these models know."
        raise RekindleError(what, where="the text", hint=", ".join(PLAIN))
    return metre


def _key_in(text: str) -> Key | None:
    """The first thing that can only be a key: a tonic with a mode, or one behind "in" or "key"."""
    for found in _TONIC.finditer(text):
        tonic, raised, mode = found["tonic"], (found["raised"] or "").strip(" -"), found["mode"] or ""
        plainly = found["field"] or found[0].lower().startswith(("in ", "key "))
        if not (mode or raised or (plainly and tonic.isupper())) or (
            tonic.islower() and not (plainly or len(mode) > 3)
        ):
            continue
        if tonic in "ai" and not raised and not mode:
            continue
        return _key(found[0].strip(), tonic.upper(), raised, mode)
    if found := re.search(r"\b(?:in|key of) (\w+) (major|minor|dorian|mixolydian|lydian|phrygian|locrian)\b", text):
        raise _no_key(f"{found[1]} {found[2]}")
    return None


def _key(shown: str, tonic: str, raised: str, mode: str) -> Key:
    accidental = {"sharp": "#", "flat": "b", "\u266f": "#", "\u266d": "b"}.get(raised, raised)
    full = _MODE_WORDS.get(mode)
    key = parse_key(f"{tonic}{accidental}{mode}") if full is None else Key(tonic + accidental, full)
    if key is None or tonic not in SEMITONES or key not in all_keys():
        raise _no_key(re.sub(r"^(?:in|key of|in the key of) ", "", shown))
    return key


def _no_key(shown: str) -> RekindleError:
    close = nearest(shown, [Key(tonic, mode).words for tonic in SEMITONES for mode in MODES])
    what = f"There is no key {shown} that these models know: those of at most five sharps or flats."
    return RekindleError(what, where="the text", hint=f"{close or 'D major'}, A mixolydian, E minor, ...")
