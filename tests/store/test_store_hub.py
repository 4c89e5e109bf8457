"""Names on the hub, through a cache that lies here and a network that does not answer."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import ClassVar
from urllib.parse import unquote

import huggingface_hub.constants
import pytest
from store.folders import hashes, write_llama

from rekindle import api
from rekindle.errors import RekindleError
from rekindle.store.hub import locate

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache as huggingface_hub keeps it: blobs, a snapshot of links to them, and the name of a commit."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    repo = tmp_path / "hub" / "models--maker--small"
    snapshot = repo / "snapshots" / COMMIT
    made = write_llama(tmp_path / "made", shards=2)
    for folder in (snapshot, repo / "blobs", repo / "refs"):
        folder.mkdir(parents=True)
    for i, path in enumerate(sorted(made.iterdir())):
        blob = repo / "blobs" / f"{i:064x}"
        blob.write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    (repo / "refs" / "main").write_text(COMMIT)
    return snapshot


@pytest.mark.parametrize("name", ["maker/small", "hf://maker/small", "maker/small@main", f"maker/small@{COMMIT}"])
def test_a_cached_name_works_offline(cache, name):
    assert locate(name) == cache
    assert len(api.open(name).checkpoint.folder.shards) == 2


def test_what_is_made_of_links_is_files(cache, tmp_path):
    out = api.rewrite(
        "maker/small",
    ).save(tmp_path / "out", max_shard_size="20kB")
    assert not any(path.is_symlink() for path in out.iterdir())
    assert hashes(out).keys() == {path.name for path in out.glob("*.safetensors")}


def test_a_cached_name_that_lacks_a_shard(cache):
    next(cache.glob("*.safetensors")).unlink()
    with pytest.raises(RekindleError, match="is missing"):
        api.open("maker/small")


@pytest.mark.parametrize("name", ["maker/other", "hf://maker/other", "maker/small@v2"])
def test_an_unknown_name_offline(cache, name):
    with pytest.raises(RekindleError, match="neither a folder here nor in the hub's cache") as refused:
        api.open(name)
    assert "HF_HUB_OFFLINE" in refused.value.hint


@pytest.mark.parametrize("name", ["models--a/b", "models/llama-", "data/x.git", "a/" + "b" * 100, "hf://a/b..c"])
def test_a_mistyped_path_that_is_no_name_either(cache, name):
    with pytest.raises(RekindleError, match="cannot be a name on the hub"):
        api.open(name)


@pytest.mark.parametrize("name", ["nowhere", "./a/b", "/a/b", "a/b/c", "~/a", "", "x" * 300, "a\0b", "hf://x", "@"])
def test_what_is_no_name_is_a_path(cache, name):
    with pytest.raises(RekindleError):
        api.open(name)


def test_a_folder_goes_before_a_name(cache, tmp_path):
    write_llama(tmp_path / "maker" / "small")
    assert len(api.open("maker/small").checkpoint.folder.shards) == 1
    assert len(api.open("hf://maker/small").checkpoint.folder.shards) == 2


# -- a hub on this machine -------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as a download needs; it notes which files were asked for."""

    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[set[str]] = set()

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        path = unquote(self.path.partition("?")[0])
        if "/tree/" in path:
            tree = [{"type": "file", "path": n, "size": len(data), "oid": "0" * 40} for n, data in self.files.items()]
            self._send(json.dumps(tree).encode(), True)
            return
        if path.startswith("/api/models/maker/"):
            siblings = [{"rfilename": name, "size": len(data)} for name, data in self.files.items()]
            self._send(json.dumps({"id": "maker/small", "sha": COMMIT, "siblings": siblings}).encode(), True)
            return
        name = path.partition("/resolve/")[2].partition("/")[2]
        if name not in self.files:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            return
        self.asked.add(name)
        self._send(self.files[name], body)

    def _send(self, data: bytes, body: bool) -> None:
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path):
    """hub(files): open maker/small in a process of its own, from a hub that has these; the names it asked for."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()

    def fetch(
        files: dict[str, bytes], verb: str = "inspect", *more: str
    ) -> tuple[set[str], subprocess.CompletedProcess]:
        Hub.files, Hub.asked = files, set()
        environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"} | {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        done = subprocess.run([sys.executable, "-m", "rekindle", verb, "maker/small", *more], env=environment,
                              capture_output=True, text=True, timeout=120, cwd=tmp_path)  # fmt: skip
        return set(Hub.asked), done

    yield fetch
    server.shutdown()
    server.server_close()


def files_of(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


UNREAD = dict.fromkeys(
    ("pytorch_model.bin", "consolidated.safetensors", "original/params.json", "model.gguf", "checkpoint-5/config.json",
     "onnx/model.onnx", "modeling_own.py", "logo.png", "model.fp16.safetensors"), b"x")  # fmt: skip


@pytest.mark.slow
def test_only_what_will_be_read_is_fetched(hub, tmp_path):
    whole = files_of(write_llama(tmp_path / "whole"))
    asked, done = hub(whole | UNREAD | {"tokenizer.json": b"{}", "LICENSE": b"free"})
    assert done.returncode == 0, done.stderr
    assert asked == {"config.json", "model.safetensors", "tokenizer.json", "LICENSE"}


@pytest.mark.slow
def test_a_single_file_goes_before_shards_and_what_is_named_comes_along(hub, tmp_path):
    shards = files_of(write_llama(tmp_path / "shards", shards=2))
    extra = {
        "modules.json": json.dumps([{"path": ""}, {"path": "1_Pooling"}]).encode(),
        "1_Pooling/config.json": b"{}",
        "2_Other/config.json": b"{}",
        "additional_chat_templates/tool_use.jinja": b"x",
        "tokenizer_config.json": json.dumps({"auto_map": {"AutoTokenizer": ["modeling_own.Own", None]}}).encode(),
    }
    asked, done = hub(shards | UNREAD | extra)
    assert done.returncode == 0, done.stderr
    assert asked == {*shards, *extra, "modeling_own.py"} - {"2_Other/config.json"}
    single = files_of(write_llama(tmp_path / "whole"))
    asked, done = hub(shards | single | UNREAD)
    assert done.returncode == 0, done.stderr
    assert not any("-of-" in name for name in asked)


@pytest.mark.slow
def test_pickles_only_where_there_is_nothing_else(hub, tmp_path):
    config = {"config.json": files_of(write_llama(tmp_path / "whole"))["config.json"]}
    asked, _ = hub(config | {"pytorch_model.bin": b"x", "tf_model.h5": b"x"})
    assert asked == {"config.json", "pytorch_model.bin"}


@pytest.mark.slow
def test_an_adapter_on_the_hub_is_named(hub):
    asked, done = hub({"adapter_config.json": b'{"peft_type": "LORA"}', "adapter_model.safetensors": b"x"})
    assert done.returncode == 2
    assert "is an adapter (LORA)" in done.stderr
    assert "adapter_model.safetensors" not in asked


@pytest.mark.slow
def test_a_merge_fetches_an_adapters_weights(hub, tmp_path):
    base = write_llama(tmp_path / "base")
    files = {"adapter_config.json": b'{"peft_type": "LORA", "r": 1}', "adapter_model.safetensors": b"x", "run.pt": b""}
    asked, done = hub(files, "merge", "out", "--base", str(base))
    assert asked == {"adapter_config.json", "adapter_model.safetensors"}
    assert "adapter_model.safetensors" in done.stderr
