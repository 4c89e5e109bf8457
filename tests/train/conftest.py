"""A small corpus, small models from scratch on it, and short runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from train.train_helpers import defaults, write_corpus


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tokens are cached here, not in the user's cache; one thread, so that two tests at once stay quick."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REKINDLE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "stories.jsonl"
    write_corpus(path)
    return path


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Callable[..., Path]:
    """small("mixtral", dtype="bfloat16"): the folder of an untrained model with a tokenizer of 300 entries."""
    from rekindle.anatomy import FAMILIES
    from rekindle.train.config import InitConfig
    from rekindle.train.init import init_model

    made: dict[str, Path] = {}

    def make(family: str = "llama", **changes: Any) -> Path:
        key = repr((family, sorted(changes.items())))
        if key not in made:
            sizes = {"hidden": 16, "layers": 2, "heads": 2, "ffn": 32, "context": 64, "init_std": 0.1} | changes
            sizes |= {"experts": 4} if FAMILIES[family].sparse else {}
            config = InitConfig(family=family, data=str(corpus), tokenizer="bpe:300", **sizes)  # type: ignore[arg-type]
            out = tmp_path_factory.mktemp(family) / "model"
            made[key] = init_model(out, config, command="rekindle init ...", options={})
        return made[key]

    return make


@pytest.fixture
def run(corpus: Path, tmp_path: Path) -> Callable[..., tuple[Path, dict]]:
    """run(src, lr=1e-2, ...): train 12 steps of 8 sequences of 32 tokens; the folder and the summary."""
    from rekindle.train.config import TrainConfig
    from rekindle.train.loop import train

    def go(src: Path, out: str = "out", resume: bool = False, overwrite: bool = False, **changes: Any):
        config = TrainConfig(**(defaults(corpus) | changes))
        summary = train(
            src, tmp_path / out, config, command="rekindle train ...", options={}, resume=resume, overwrite=overwrite
        )
        return tmp_path / out, summary

    return go
