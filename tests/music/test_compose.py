"""Tunes out of a model: whole where the grammar holds, the same for a seed, and sentences for what cannot be."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tune_helpers import book, random_tune

from rekindle import api
from rekindle.errors import RekindleError
from rekindle.music.abc.bars import adds_up
from rekindle.music.abc.header import tunes_of, written
from rekindle.music.abc.plain import plain
from rekindle.music.abc.reader import read_tune
from rekindle.music.vocabulary import pieces
from rekindle.store.manifest import read_manifest

SMALL = {"hidden": 32, "layers": 1, "heads": 2, "tunes": 64, "pairs": 64}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has seen a few drawn tunes, and little of them."""
    folder = tmp_path_factory.mktemp("music")
    (folder / "book.abc").write_text(book(range(40)))
    api.music_data(folder / "data", source=str(folder / "book.abc"), validation=0.2, test=0.2)
    api.music_train(folder / "model", data=str(folder / "data"), **SMALL)
    return folder / "model"


@pytest.mark.slow
@pytest.mark.xdist_group("music")
class TestTrained:
    def test_its_life_is_recorded_and_its_parts_are_gone(self, trained: Path):
        manifest = read_manifest(trained)
        assert manifest
        verbs = [record.verb for record in manifest.lineage]
        assert verbs.count("init") == 2
        assert (verbs.count("train"), verbs[-2:]) == (2, ["warm-start", "train"])
        assert not trained.with_name("model.parts").exists()
        read = [record.options["data"]["value"] for record in manifest.lineage if record.verb == "train"]
        assert [Path(data).name for data in read] == ["tunes", "pairs"]

    def test_its_recipe_makes_it_again(self, trained: Path, tmp_path: Path):
        api.run(trained / "rekindle.yaml", tmp_path / "again")
        weights = "model.safetensors"
        assert (tmp_path / "again" / weights).read_bytes() == (trained / weights).read_bytes()
        with pytest.raises(RekindleError, match="step by step"):
            api.run_cost(trained / "rekindle.yaml")

    def test_an_interrupted_run_goes_on(self, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        """Cut before both halves learn: what was done is there, is not done again, and the end is the same."""
        from rekindle.api import music

        def cut(*given: Any, **named: Any) -> Any:
            raise KeyboardInterrupt

        options = {"data": str(trained.with_name("data")), **SMALL}
        with monkeypatch.context() as patch:
            patch.setattr(music, "warm_start", cut)
            with pytest.raises(KeyboardInterrupt):
                api.music_train(tmp_path / "model", **options)
        parts = tmp_path / "model.parts"
        assert {"encoder", "tokenizer", "drawn", "tunes"} <= {path.name for path in parts.iterdir()}
        with pytest.raises(RekindleError, match="not empty"):
            api.music_train(tmp_path / "model", **options)
        api.music_train(tmp_path / "model", **options, resume=True)
        weights = "model.safetensors"
        assert (tmp_path / "model" / weights).read_bytes() == (trained / weights).read_bytes()

    def test_strict_tunes_are_whole_and_what_was_asked(self, trained: Path):
        made = api.compose(trained, "a slip jig in A dorian", count=20, strict=True, longest=150)
        for tune, judged in zip(made.tunes, made.judged, strict=True):
            found = read_tune(written(tune.text))
            assert not found.problems
            assert adds_up(found)
            assert (found.metre, found.key and found.key.words) == ("9/8", "A dorian")
            assert (judged.key_kept, judged.metre_kept, judged.ended) == (True, True, True)
            assert len(pieces(tune.text) or ()) == tune.tokens < 150
            assert plain(written(tune.text)).text == tune.text
            assert tune.cost is not None
            assert 0 < tune.cost < math.inf

    def test_music21_reads_strict_tunes_too(self, trained: Path):
        from test_music21 import ours, theirs

        made = api.compose(trained, "a tune", count=8, strict=True, longest=120)
        for tune in made.tunes:
            assert theirs(f"X:1\n{tune.text}\n") == ours(f"X:1\n{tune.text}\n"), tune.text

    def test_a_seed_gives_the_same_tunes(self, trained: Path):
        options = {"count": 3, "longest": 120, "strict": True}
        texts = [[tune.text for tune in api.compose(trained, "a reel", **options, seed=s).tunes] for s in (0, 0, 1)]
        assert texts[0] == texts[1] != texts[2]
        assert len(set(texts[0])) == 3
        more = api.compose(trained, "a reel", count=2, longest=120, strict=False)
        assert [tune.cost for tune in more.tunes] == [None, None]

    def test_tunes_begin_as_they_are_told(self, trained: Path, tmp_path: Path):
        begin = r"M:6/8\nL:1/8\nK:G\n|:GBd gdB|"
        made = api.compose(trained, "a tune", count=2, begin=begin, strict=True, longest=150)
        assert all(tune.text.startswith("M:6/8\nL:1/8\nK:G\n|:GBd gdB|") for tune in made.tunes)
        made = api.compose(trained, "a jig in D major, 6/8", count=2, begin="dAF", longest=120)
        assert all(tune.text.startswith("M:6/8\nL:1/8\nK:D\ndAF") for tune in made.tunes)
        (tmp_path / "tune.abc").write_text(f"X:1\nT:Mine\nR:jig\n{random_tune(3, 150, metres=('6/8',))}\n")
        like = plain(next(iter(tunes_of((tmp_path / "tune.abc").read_text()))))
        made = api.compose(trained, like=str(tmp_path / "tune.abc"), count=2, longest=120)
        first = pieces(like.text) or []
        assert all((pieces(tune.text) or [])[:8] == first[:8] for tune in made.tunes)
        assert "jig" in made.wanted.text
        with pytest.raises(RekindleError, match="breaks its metre"):
            api.compose(trained, "a reel in D major", begin=begin, strict=True)

    def test_the_files_and_the_page(self, trained: Path, tmp_path: Path):
        text = "</script><img src=x onerror=alert(1)> a jig in G major \x1b[31m"
        made = api.compose(trained, text, count=2, strict=True, longest=100)
        page = made.save(tmp_path / "out")
        names = {path.name for path in page.parent.iterdir()}
        assert names == {f"{n}.{end}" for n in (1, 2) for end in ("abc", "mid", "wav", "svg")} | {
            "index.html",
            "tunes.json",
        }
        html = page.read_text()
        assert "<img src=x" not in html
        assert "\x1b" not in html
        told = json.loads((page.parent / "tunes.json").read_text())
        assert told["tunes"][0]["abc"] == made.tunes[0].text
        assert read_tune(next(iter(tunes_of((page.parent / "1.abc").read_text())))).notes
        assert (page.parent / "1.wav").read_bytes()[:4] == b"RIFF"
        assert made.nearest
        with pytest.raises(RekindleError, match="not empty"):
            made.save(tmp_path / "out")

    def test_without_its_data_nothing_is_said_of_novelty(self, trained: Path, tmp_path: Path):
        import shutil

        shutil.copytree(trained, tmp_path / "model")
        life = json.loads((tmp_path / "model" / "rekindle.json").read_text())
        for record in life["lineage"]:
            if record["verb"] == "train":
                record["options"]["data"]["value"] = str(tmp_path / "gone")
        (tmp_path / "model" / "rekindle.json").write_text(json.dumps(life))
        made = api.compose(tmp_path / "model", "a reel", count=1, longest=100)
        assert made.nearest == []
        assert made.judged[0].nearest == (0.0, -1)

    def test_no_verovio_and_a_crash_are_a_tune_without_a_score(
        self, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        from rekindle.music import score

        made = api.compose(trained, "a reel", count=1, strict=True, longest=100)
        monkeypatch.setattr(score, "find_spec", lambda name: None)
        page = made.save(tmp_path / "out")
        assert "verovio, which is not installed" in page.read_text()
        assert not (tmp_path / "out" / "1.svg").exists()

    @pytest.mark.parametrize(
        ("text", "options", "why"),
        [
            ("", {}, "text is empty"),
            (" \n", {}, "text is empty"),
            ("a reel in H major", {}, "no key H major"),
            ("a reel in 7/8", {}, "no metre 7/8"),
            ("x" * 10_000, {}, "10,000 characters"),
            ("a reel", {"count": 0}, "at least 1"),
            ("a reel", {"temperature": 0.0}, "above 0"),
            ("a reel", {"top_p": 1.5}, "a share"),
            ("a reel", {"longest": 20}, "100 tokens"),
            ("a reel", {"begin": "@@"}, "which metre"),
            ("a reel, 4/4", {"begin": "@@"}, "no notes"),
            ("a reel, 4/4", {"begin": "AB@"}, "cannot be read"),
            ("a reel", {"like": "nowhere.abc"}, "cannot be read"),
            ("a reel", {"like": "x.abc", "begin": "A"}, "cannot be read"),
        ],
    )
    def test_what_cannot_be(self, trained: Path, text: str, options: dict[str, Any], why: str):
        with pytest.raises(RekindleError, match=why):
            api.compose(trained, text, **options)

    def test_a_model_that_writes_no_tunes(self, trained: Path, tmp_path: Path):
        api.init(tmp_path / "words", hidden=16, layers=1, heads=2, tokenizer="bpe:300", data="stdlib")
        with pytest.raises(RekindleError, match="not trained on tunes"):
            api.compose(tmp_path / "words", "a reel")
        api.init(
            tmp_path / "tunes",
            family="gpt2",
            hidden=16,
            layers=1,
            heads=2,
            tokenizer=str(trained / "decoder_tokenizer"),
        )
        with pytest.raises(RekindleError, match="a decoder alone"):
            api.compose(tmp_path / "tunes", "a reel")

    def test_it_sounds_as_it_is_written(self, trained: Path, tmp_path: Path):
        """The sample of a page: as long as the tune, and each note at its pitch."""
        import io
        import wave

        import numpy as np

        from rekindle.music.abc.playing import played
        from rekindle.music.tempo import seconds_per_whole

        made = api.compose(trained, "a slow air in D major, 3/4", count=1, strict=True, longest=120)
        page = made.save(tmp_path / "out")
        with wave.open(io.BytesIO((page.parent / "1.wav").read_bytes())) as file:
            rate = file.getframerate()
            heard = np.frombuffer(file.readframes(file.getnframes()), np.int16) / 2**15
        sounds, pace = played(read_tune(written(made.tunes[0].text))), seconds_per_whole("3/4", "slow")
        assert len(heard) / rate == pytest.approx(float(max(s.start + s.length for s in sounds)) * pace + 0.6, abs=0.05)
        longest = max(sounds, key=lambda sound: sound.length)
        part = heard[int(float(longest.start) * pace * rate) :][: int(float(longest.length) * pace * rate)]
        strength = np.abs(np.fft.rfft(part * np.hanning(len(part)), 1 << 18))
        wanted = 440 * 2 ** ((longest.pitch - 69) / 12)
        bins = np.fft.rfftfreq(1 << 18, 1 / rate)
        near = (bins > wanted * 0.94) & (bins < wanted * 1.06)
        found = bins[near][strength[near].argmax()]
        assert abs(1200 * math.log2(found / wanted)) < 20

    def test_scores_stand_beside_rivals_and_the_tunes(self, trained: Path):
        found = api.music_evaluate(trained, data=str(trained.with_name("data")), texts=6, prompts=2, each=2)
        assert list(found) == ["the tunes", "nearest text's tune", "5-gram", "model", "model, by the grammar"]
        themselves, strict = found["the tunes"], found["model, by the grammar"]
        assert (themselves["BLEU"], themselves["edit similarity"], themselves["parses"]) == (pytest.approx(100), 1, 1)
        assert (themselves["adds up"], strict["adds up"], strict["parses"], strict["metre kept"]) == (1, 1, 1, 1)
        assert found["nearest text's tune"]["likeness"] == 1
        assert (strict["cost"] or 0) > 0
        assert 0 <= (strict["diversity"] or 0) <= 1
        again = api.music_evaluate(trained, data=str(trained.with_name("data")), texts=6, prompts=2, each=2)
        assert json.dumps(again) == json.dumps(found)
