"""Where a SRC is: a folder, or a name on the Hugging Face hub resolved through its cache."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from rekindle.errors import RekindleError, first_line
from rekindle.store.adapter import WEIGHTS
from rekindle.store.index import read_json, shard_names
from rekindle.store.passengers import chosen, folders, named, parsed_below, travels
from rekindle.store.weights import INDEX, PICKLE_INDEX, SHARD, choice

FIRST = {"config.json", "README.md", "rekindle.json", "adapter_config.json", INDEX, PICKLE_INDEX}


def locate(source: str | Path, *, adapter: bool = False) -> Path:
    """The local folder of `source`: a path, `org/model`, `org/model@revision` or `hf://org/model`.

    `adapter`: of one of peft's the weights are wanted too.
    """
    text = str(source)
    remote = text.removeprefix("hf://")
    if text == remote and os.path.exists(text):
        return Path(text)
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", remote)
    if not match or text.startswith((".", "/", "~")):
        return Path(text).expanduser()
    return _download(match[1], match[2], {*WEIGHTS} if adapter else set())


def _download(repo: str, revision: str | None, wanted: set[str]) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    def snapshot(files: Iterable[str]) -> Path:
        patterns = [re.sub(r"([*?\[])", r"[\1]", name) for name in files]
        return Path(huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=patterns))

    try:
        try:
            names = huggingface_hub.HfApi().list_repo_files(repo, revision=revision)
        except (HfHubHTTPError, HFValidationError):
            raise
        except Exception:  # no network, or told not to use it, by whatever client: what was fetched before is there
            return snapshot(FIRST)
        first = [name for name in names if name in FIRST | wanted or (_is_top(name) and travels(name))]
        folder = snapshot(first)
        return snapshot([*first, *_behind(folder, names)])
    except LocalEntryNotFoundError:
        raise RekindleError(
            f"{repo} is neither a folder here nor in the hub's cache, and the hub cannot be reached.",
            hint="check the path, or the network and HF_HUB_OFFLINE",
        ) from None
    except HFValidationError:
        raise RekindleError(f"{repo} does not exist, and cannot be a name on the hub.", hint="check the path") from None
    except (HfHubHTTPError, OSError) as error:
        raise RekindleError(
            f"{repo} is not a folder here, and the hub refused it: {first_line(error)}",
            hint=f"check the path, or `hf download {repo}`",
        ) from None


def _behind(folder: Path, names: list[str]) -> Iterator[str]:
    """The files that will be read or carried besides those in `folder`: weights, and what its files name."""
    top = set(filter(_is_top, names))
    if "config.json" not in top:
        return
    config = read_json(folder / "config.json", missing=f"{folder} has no config.json.")
    parsed = parsed_below(folder)
    yield from chosen(top, parsed, config)
    inside, words = tuple(f"{name}/" for name in folders(parsed)), named(parsed, config)
    yield from (name for name in names if name.startswith(inside) or ("/" in name and name in words))
    weights = choice(top, config)
    if weights is None:
        yield from (name for name in top if SHARD.fullmatch(name))
    elif weights.endswith(".index.json"):
        yield from set(shard_names(folder / weights).values()) & top
    else:
        yield weights


def _is_top(name: str) -> bool:
    return "/" not in name
