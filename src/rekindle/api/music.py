"""Texts and tunes: data, a model of them, and tunes out of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rekindle.api.options import takes
from rekindle.api.saving import command
from rekindle.api.source import local
from rekindle.api.training import init, train
from rekindle.api.tunes import Composition
from rekindle.api.warming import warm_start
from rekindle.config import Resolved, dump_yaml, resolve, to_dict
from rekindle.music.config import RANDOM, TUNES, ComposeConfig, MusicDataConfig, MusicEvaluateConfig, MusicTrainConfig
from rekindle.store.manifest import read_manifest
from rekindle.store.publish import check_free, check_spares, write_whole
from rekindle.train.config import TrainConfig
from rekindle.version import __version__

if TYPE_CHECKING:
    from rekindle.music.likeness import Known


@takes(MusicDataConfig)
def music_data(
    out: str | Path, options: Resolved[MusicDataConfig] | None = None, *, overwrite: bool = False, **given: Any
) -> dict[str, Any]:
    """Texts and tunes to train on, out of music21's books, ABC files or rows. Returns what OUT/data.json says."""
    from rekindle.music.books import open_shelf
    from rekindle.music.data import make_data
    from rekindle.train.text import PairReading

    options = options or resolve(MusicDataConfig, given)
    config, out = options.config, Path(out)
    check_free(out, overwrite)
    check_spares(out, None, config.source)
    reading = PairReading(config.source_column, target=config.target_column)
    shelf = open_shelf(config.source, essen=config.essen, reading=reading)
    typed = command("music data", [str(out)], options)
    return make_data(shelf, config, out, command=typed, overwrite=overwrite)


@takes(MusicTrainConfig)
def music_train(
    out: str | Path,
    options: Resolved[MusicTrainConfig] | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    say: Callable[[str], None] = lambda text: None,
    **given: Any,
) -> dict[str, Any]:
    """A model that writes tunes for texts: its decoder, a warm start, and the training of both halves into `out`.

    Returns what the last training does. What came before lies in OUT.parts until then; `resume` goes on from there.
    """
    from rekindle.music import recipe
    from rekindle.music.vocabulary import make_tune_tokenizer

    options = options or resolve(MusicTrainConfig, given)
    config, out = options.config, Path(out)
    pairs, tunes = recipe.check(config)
    check_spares(out, None, config.data)
    parts = out.with_name(f"{out.name}.parts")
    if not resume:
        check_free(out, overwrite)
        check_free(parts, overwrite)
        shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir(parents=True, exist_ok=True)

    def made(name: str, make: Callable[[Path], Any]) -> Path:
        if not (parts / name).exists():
            make(parts / name)
        return parts / name

    encoder, decoder = config.encoder, config.decoder
    if encoder == RANDOM:
        sizes = {**recipe.ENCODER, "data": str(pairs), "text_column": "source", "seed": config.seed}
        encoder = str(made("encoder", lambda path: init(path, **sizes)))
    if decoder in (RANDOM, TUNES):
        tokenizer = made("tokenizer", make_tune_tokenizer(recipe.CONTEXT).save_pretrained)
        drawn = made("drawn", lambda path: init(path, **recipe.decoder_sizes(config, tokenizer)))
        decoder = str(drawn)
        if config.decoder == TUNES:
            say("the decoder learns tunes, without texts")
            how = resolve(TrainConfig, recipe.on_tunes(config, tunes))
            decoder = str(made("tunes", lambda path: train(drawn, path, how, resume=True)))
    joined = made("start", lambda path: warm_start(encoder, decoder, share="none", seed=config.seed).save(path))
    say("both halves learn texts and tunes")
    found = train(joined, out, resolve(TrainConfig, recipe.on_pairs(config, pairs)), resume=resume, overwrite=overwrite)
    recipe_of = {"rekindle": __version__, "steps": [{"music train": to_dict(config)}]}
    write_whole(out / "rekindle.yaml", dump_yaml(recipe_of))  # in the place of the last training's, whose start is gone
    shutil.rmtree(parts)
    return found


@takes(MusicEvaluateConfig)
def music_evaluate(
    source: str | Path, options: Resolved[MusicEvaluateConfig] | None = None, **given: Any
) -> dict[str, dict[str, float | None]]:
    """How good a model's tunes are for texts of tunes that it never saw: {author: {measure: mean, or None}}.

    Authors are the model, free and by the grammar, a 5-gram, the tune of the nearest training text, and the held-out
    tunes themselves, which are the ceiling. BLEU and edit similarity are to the tune of the text; likeness is to the
    most alike training tune.
    """
    from rekindle.music import evaluate
    from rekindle.music.compose import Composer

    options = options or resolve(MusicEvaluateConfig, given)
    composer = Composer.load(local(source))
    scores = evaluate.evaluate(composer, Path(options.config.data).expanduser(), options.config)
    return {
        author: {name: score.told(name) for name in (*evaluate.MEASURES, "diversity")}
        for author, score in scores.items()
    }


@takes(ComposeConfig)
def compose(
    source: str | Path, text: str = "", options: Resolved[ComposeConfig] | None = None, **given: Any
) -> Composition:
    """Tunes for a text, from a model that was trained on both. The same seed gives the same tunes.

    Raises RekindleError for a text that says nothing, a key or a metre that does not exist, bars that no tune can begin
    with, and a model that writes no tunes.
    """
    from rekindle.music.compose import Composer
    from rekindle.music.measure import judge
    from rekindle.music.request import request

    options = options or resolve(ComposeConfig, given)
    wanted = request(text, options.config)
    folder = local(source)
    composer = Composer.load(folder)
    tunes = composer.compose([wanted] * options.config.count, options.config)
    known, titles = training_tunes(folder)
    judged = [judge(tune.text, wanted.wanted, known, ended=tune.ended) for tune in tunes]
    near = [titles[one.nearest[1]] if one.nearest[1] >= 0 else "" for one in judged] if known else []
    typed = command("compose", [str(source), *([text] if text else [])], options)
    return Composition(wanted, tunes, judged, options.config, str(source), typed, near)


def training_tunes(folder: Path) -> tuple[Known | None, Sequence[str]]:
    """The tunes that a model was trained on, and their titles, where its data is still where it was."""
    from rekindle.music.abc.header import written
    from rekindle.music.abc.reader import read_tune
    from rekindle.music.likeness import Known, shapes

    manifest = read_manifest(folder)
    records = manifest.lineage if manifest else []
    places = [
        Path(str(record.options.get("data", {}).get("value", ""))) for record in records if record.verb == "train"
    ]
    rows: dict[Any, dict[str, Any]] = {}
    for path in (place / "train.jsonl" for place in reversed(places)):
        if path.is_file() and not rows:
            with path.open(encoding="utf-8") as file:
                for row in map(json.loads, file):
                    if "target" in row and "tune" in row:
                        rows.setdefault(row["tune"], row)
    if not rows:
        return None, []
    return Known(shapes(read_tune(written(row["target"]))) for row in rows.values()), [
        str(row.get("title", "")) for row in rows.values()
    ]
