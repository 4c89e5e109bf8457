"""Tunes as files: ABC, MIDI, WAV and SVG of each, what was measured as JSON, and the page that plays them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rekindle.errors import counted
from rekindle.music.config import ComposeConfig
from rekindle.store.publish import publishing
from rekindle.version import __version__

if TYPE_CHECKING:
    from rekindle.music.abc.playing import Sound
    from rekindle.music.compose import Composed
    from rekindle.music.measure import Judged
    from rekindle.music.request import Request
    from rekindle.report.tunes import ShownTune

_SHOWN = 200  # characters of a text in a title


@dataclass(frozen=True)
class Composition:
    """Tunes that were written for a text, and what can be said of each.

    `nearest`: titles of the most alike training tunes; none where these are not there.
    """

    wanted: Request
    tunes: list[Composed]
    judged: list[Judged]
    config: ComposeConfig
    model: str
    command: str
    nearest: list[str]

    def data(self) -> dict[str, Any]:
        """Everything that is known of the tunes, in plain values: what tunes.json holds."""
        titles = self.nearest or [""] * len(self.tunes)
        rows = [
            {"abc": tune.text, "tokens": tune.tokens, "cost": tune.cost, **asdict(judged), "valid": judged.valid,
             "nearest": {"likeness": judged.nearest[0], "title": title}}
            for tune, judged, title in zip(self.tunes, self.judged, titles, strict=True)
        ]  # fmt: skip
        asked = {"text": self.wanted.text, "options": asdict(self.config), "model": self.model, "command": self.command}
        return {"rekindle": __version__, **asked, "tunes": rows}

    def save(self, out: str | Path, *, overwrite: bool = False) -> Path:
        """Write each tune as ABC, MIDI, WAV and SVG, tunes.json, and one page that shows and plays them: its path."""
        out = Path(out)
        with publishing(out, overwrite=overwrite) as partial:
            _write(self, partial)
        return out / "index.html"


def _write(made: Composition, folder: Path) -> None:
    """All files of a composition into an empty folder."""
    from rekindle.progress import Progress
    from rekindle.report.tunes import tunes_page

    tunes = []
    with Progress("draw and play", len(made.tunes), "tunes") as bar:
        for at in range(len(made.tunes)):
            tunes.append(_write_one(made, at, folder))
            bar.update(1)
    title = _shortened(made.wanted.text)
    title = title[:1].upper() + title[1:]
    page = tunes_page(tunes, title=title, lead=_lead(made), notes=_notes(made))
    (folder / "index.html").write_text(page, encoding="utf-8")
    (folder / "tunes.json").write_text(json.dumps(made.data(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_one(made: Composition, at: int, folder: Path) -> ShownTune:
    """A tune's files, and what the page shows of it."""
    from rekindle.music.midi import midi_bytes
    from rekindle.music.sound import samples, wav_bytes

    tune, number = shown(made, at), at + 1
    sounds, pace = _heard(made, at)
    files: dict[str, tuple[str, bytes]] = {"ABC": (f"{number}.abc", tune.abc.encode())}
    if sounds:
        files["MIDI"] = f"{number}.mid", midi_bytes(sounds, pace, title=tune.title)
        files["WAV"] = f"{number}.wav", wav_bytes(samples(sounds, pace))
    if tune.wide:
        files["SVG"] = f"{number}.svg", tune.wide.encode()
    for name, content in files.values():
        (folder / name).write_bytes(content)
    return replace(tune, files={label: name for label, (name, _) in files.items()})


def shown(made: Composition, at: int, prefix: str = "tune") -> ShownTune:
    """One of the tunes as a page shows it, without files beside it. `prefix`: of ids, another for each in a page."""
    from rekindle.music.abc.header import written
    from rekindle.music.abc.layout import abc_file
    from rekindle.music.abc.reader import read_tune
    from rekindle.music.score import NoScore, engrave
    from rekindle.music.tempo import spelt
    from rekindle.report.tunes import ShownTune

    tune, judged, wanted = made.tunes[at], made.judged[at], made.wanted
    title = _title(made, at + 1, judged)
    notes = (f"asked for: {_shortened(wanted.text)}", f"written by a model, {made.model}")
    tempo = spelt(judged.metre, wanted.wanted.mood)
    text = abc_file(tune.text, number=at + 1, title=title, tempo=tempo, notes=notes)
    wide = narrow = why_not = ""
    try:
        score = engrave(read_tune(written(tune.text)), prefix=f"{prefix}{at + 1}")
        wide, narrow = score.wide, score.narrow
    except NoScore as error:
        why_not = error.what
    sounds, pace = _heard(made, at)
    heard = tuple((float(s.start) * pace, float(s.length) * pace, s.pitch, s.written) for s in sounds)
    facts = tuple(_facts(made, at, tune, judged))
    return ShownTune(title, wanted.text, text, heard, wide, narrow, why_not, facts)


def _heard(made: Composition, at: int) -> tuple[list[Sound], float]:
    """What is played, and seconds for a whole note."""
    from rekindle.music.abc.header import written
    from rekindle.music.abc.playing import played
    from rekindle.music.abc.reader import read_tune
    from rekindle.music.tempo import seconds_per_whole

    pace = seconds_per_whole(made.judged[at].metre, made.wanted.wanted.mood)
    return played(read_tune(written(made.tunes[at].text))), pace


def _title(made: Composition, number: int, judged: Judged) -> str:
    kind = made.wanted.wanted.kind or "tune"
    return f"{kind.capitalize()} {number}" + (f" in {judged.key}" if judged.key else "")


def _facts(made: Composition, at: int, tune: Composed, judged: Judged) -> list[tuple[str, str]]:
    """Names and values, as a reader of the page wants them."""
    found = [("Read", "without a problem" if judged.parses else "not as music")]
    if judged.bars:
        right = judged.bars - judged.odd
        found.append(("Bars", f"{right} of {judged.bars} add up" if judged.odd else f"all {judged.bars} add up"))
    found.append(("Metre", judged.metre + _kept(judged.metre_kept) if judged.metre else "none"))
    ends = "ends on its tonic" if judged.ends_on_tonic else "does not end on its tonic"
    found.append(("Key", f"{judged.key}{_kept(judged.key_kept)}; {ends}" if judged.key else "none"))
    if not tune.ended:
        found.append(("End", f"cut after {counted(tune.tokens, 'token')}"))
    if made.nearest:
        likeness, title = judged.nearest[0], made.nearest[at]
        found.append(("Nearest training tune", f"likeness {likeness:.2f}" + (f", {title}" if title else "")))
    if tune.cost is not None:
        found.append(("Cost of the grammar", f"{tune.cost:.2f} nats"))
    return found


def _kept(kept: bool | None) -> str:
    return "" if kept is None else ", as asked" if kept else ", not as asked"


def _lead(made: Composition) -> str:
    """What the page shows, in a sentence or two."""
    valid, n = sum(one.valid for one in made.judged), len(made.judged)
    whole = "all whole" if valid == n else "none whole" if not valid else f"{valid} whole"
    how = "by the grammar" if made.config.strict else "freely"
    lead = f"{counted(n, 'tune')} by a model, drawn {how}: {whole}, which is to say read, ended, all bars adding up."
    if made.config.strict:
        cost = sum(tune.cost or 0.0 for tune in made.tunes) / n
        lead += f" The grammar left out what had {cost:.2f} nats of each tune's probability, on average."
    return lead


def _notes(made: Composition) -> list[str]:
    drawn = f"Seed {made.config.seed}, temperature {made.config.temperature:g}, top-p {made.config.top_p:g}."
    notes = [drawn, made.command]
    if made.nearest:
        notes.append(
            "Likeness is the share of a tune's melodic shapes (six steps in a row, in any key) that a tune of the "
            "training data has too, or the other way round where that is shorter: 1 is a copy; two versions of one "
            "tune have 0.3 and more."
        )
    else:
        notes.append("The data that the model was trained on is not here, so nothing is said of its nearest tune.")
    return notes


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
