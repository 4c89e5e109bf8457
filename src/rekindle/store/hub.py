"""Where a SRC is: a folder, or a name on the Hugging Face hub resolved through its cache."""

from __future__ import annotations

import os
import re
from pathlib import Path

from rekindle.errors import RekindleError

WANTED = [
    "*.json",
    "*.safetensors",
    "*.txt",
    "*.model",
    "*.jinja",
    "*.tiktoken",
    "LICENSE*",
    "NOTICE*",
    "README.md",
]
PICKLES = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]


def locate(source: str | Path) -> Path:
    """The local folder of `source`: a path, `org/model`, `org/model@revision` or `hf://org/model`."""
    text = str(source)
    remote = text.removeprefix("hf://")
    if text == remote and os.path.exists(text):
        return Path(text)
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", remote)
    if not match or text.startswith((".", "/", "~")):
        return Path(text).expanduser()
    return _download(match[1], match[2])


def _download(repo: str, revision: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    def snapshot(patterns: list[str]) -> Path:
        return Path(huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=patterns))

    try:
        folder = snapshot(WANTED)
        return folder if list(folder.glob("*.safetensors")) else snapshot(WANTED + PICKLES)
    except LocalEntryNotFoundError:
        raise RekindleError(
            f"{repo} is neither a folder here nor in the hub's cache, and the hub cannot be reached.",
            hint="check the path, or the network and HF_HUB_OFFLINE",
        ) from None
    except HFValidationError:
        raise RekindleError(f"{repo} does not exist, and cannot be a name on the hub.", hint="check the path") from None
    except (HfHubHTTPError, OSError) as error:
        raise RekindleError(
            f"{repo} is not a folder here, and the hub refused it: {str(error).splitlines()[0]}",
            hint=f"check the path, or `hf download {repo}`",
        ) from None
