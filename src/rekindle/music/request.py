"""What is asked of a model: a text, what it names, and how the tunes begin."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rekindle.errors import RekindleError
from rekindle.music.abc.header import Written, tunes_of
from rekindle.music.abc.keys import Key, parse_key
from rekindle.music.abc.metre import bar_length, parse_metre
from rekindle.music.abc.plain import NotPlain, Plain, plain
from rekindle.music.abc.reader import read_tune
from rekindle.music.books import decoded
from rekindle.music.config import ComposeConfig
from rekindle.music.grammar import Grammar, follow
from rekindle.music.vocabulary import pieces
from rekindle.music.words import Facts, asked, facts, metres_of, sentences

LONGEST_TEXT = 2000  # characters that are asked for
_LIKE_BARS = 2


@dataclass(frozen=True)
class Request:
    """What is asked for: a text, what it names, and how each tune begins: None is a field that the model draws."""

    text: str
    wanted: Facts
    opening: tuple[str | None, ...] = ()


def request(text: str, config: ComposeConfig) -> Request:
    """Raises RekindleError for a text, a beginning or a file that says nothing or cannot be."""
    like = _like(Path(config.like).expanduser()) if config.like else None
    if not text.strip() and like is None:
        raise RekindleError("The text is empty.", hint='rekindle compose CKPT "a lively reel in D major"')
    if len(text) > LONGEST_TEXT:
        what = f"The text has {len(text):,} characters, but a tune is asked for in {LONGEST_TEXT:,} at most."
        raise RekindleError(what, hint="a sentence: its kind, its key, its metre")
    if config.begin and like:
        raise RekindleError("Both say how the tunes begin.", where="options begin and like", hint="one of them")
    if like:
        text = text if text.strip() else sentences(like[1])[0]
        wanted = asked(text)
        return Request(text, wanted, _opening_like(like[0], wanted))
    wanted = asked(text)
    return Request(text, wanted, _opening(config.begin, wanted) if config.begin else ())


def _like(path: Path) -> tuple[Plain, Facts]:
    try:
        text = decoded(path.read_bytes())
    except OSError as error:
        raise RekindleError(f"The tune cannot be read: {error.strerror}.", where=path) from None
    try:
        written = next(iter(tunes_of(text)))
        return plain(written), facts(read_tune(written))
    except NotPlain as error:
        raise RekindleError(f"No tune can be made like it: it {error}.", where=path) from None


def _opening_like(tune: Plain, wanted: Facts) -> tuple[str | None, ...]:
    """Its fields and its first bars, in the key of the text where that names another of the same mode."""
    if wanted.key and wanted.key.mode == tune.key.mode and wanted.key != tune.key:
        try:
            tune = tune.transposed(wanted.key.tonic)
        except NotPlain as error:
            raise RekindleError(f"No tune can be made like it: it {error}.", where="option like") from None
    tokens = pieces(tune.text)
    if tokens is None:
        raise RekindleError("Its spelling is beyond what models are taught.", where="option like")
    lines = [at for at, token in enumerate(tokens) if at > 3 and token == "|"]
    first = read_tune(tune.written).bars[0]
    bars = _LIKE_BARS + (first.length < bar_length(tune.metre))  # a pick-up is none of them
    return tuple(tokens[: lines[min(bars, len(lines)) - 1] + 1] if lines else tokens[:3])


def _opening(begin: str, wanted: Facts) -> tuple[str | None, ...]:
    """The fields that are known, by the beginning itself or by the text, and the bars in their plain spelling."""
    lines = begin.replace("\\n", "\n").strip().split("\n")
    fields = {line[0]: line[2:].strip() for line in lines if line[1:2] == ":" and line[0] in "MLK"}
    body = "\n".join(line for line in lines if not (line[1:2] == ":" and line[0].isalpha()))
    metre = parse_metre(fields["M"]) if "M" in fields else wanted.metre
    if not metre:
        hint = r"--begin 'M:6/8\nL:1/8\nK:D\n|:dBA FAd|', or a text with the metre"
        raise RekindleError("Nothing says which metre the bars have.", where="option begin", hint=hint)
    key = parse_key(fields["K"]) if "K" in fields else wanted.key
    unit = fields.get("L", "1/8")
    # A rest behind the last bar keeps that from being spelt as the end of a tune.
    source = Written({"M": (metre,), "L": (unit,), "K": (key.spelt if key else "C",)}, f"{body}z")
    try:
        tokens = pieces(plain(source).text)
    except NotPlain as error:
        raise RekindleError(f"No tune can begin so: it {error}.", where="option begin") from None
    if tokens is None:
        raise RekindleError("Its spelling is beyond what models are taught.", where="option begin")
    return (f"M:{metre}\n", f"L:{unit}\n", f"K:{key.spelt}\n" if key else None, *tokens[3:-2])


def grammar_of(wanted: Request, longest: int) -> Grammar:
    """The grammar that its tunes keep: with a metre and a key of those that it leaves."""
    keys = (wanted.wanted.key,) if wanted.wanted.key else ()
    return Grammar(metres=metres_of(wanted.wanted), keys=keys, longest=longest)


def check_opening(wanted: Request, longest: int) -> None:
    """Raises RekindleError where what the tunes begin with cannot be the beginning of a whole tune."""
    any_key = f"K:{(wanted.wanted.key or Key('C', 'major')).spelt}\n"
    tokens = [token or any_key for token in wanted.opening]
    grammar = grammar_of(wanted, longest)
    for at, token in enumerate(tokens):
        try:
            grammar = follow(grammar, [token])
        except ValueError:
            begun = "".join(tokens[: at + 1])[-40:]
            what = f"With --strict no tune can begin so: {begun!r} breaks its metre, its key or its form."
            raise RekindleError(what, where="the beginning", hint="other bars, or without --strict") from None
