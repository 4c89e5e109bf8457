"""SHA-256: recorded as the shards are written, compared on request."""

from __future__ import annotations

import hashlib
import json

import pytest
from click.testing import CliRunner
from store.folders import write_llama

from rekindle import api
from rekindle.cli.verbs import rekindle
from rekindle.errors import CheckFailed, RekindleError
from rekindle.store.manifest import NAME, read_manifest


@pytest.fixture
def out(tmp_path):
    parent = write_llama(tmp_path / "parent")
    model = api.upcycle(parent, experts=2, init="noise", noise=0.1)
    return model.save(tmp_path / "out", checksum=True, max_shard_size="20kB", workers=3)


def inspected(out, *flags):
    return CliRunner().invoke(rekindle, ["inspect", str(out), "--checksum", *flags])


def test_recorded_is_the_hash_of_the_file(out):
    shards = read_manifest(out).shards
    assert len(shards) > 2
    assert shards.keys() == {path.name for path in out.glob("*.safetensors")}
    for file, entry in shards.items():
        data = (out / file).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_inspect_finds_them_well(out):
    ran = inspected(out, "--format", "json")
    assert ran.exit_code == 0, ran.exception
    assert json.loads(ran.stdout)["checksums"] == sorted(read_manifest(out).shards)


@pytest.mark.parametrize("at", [0.9, 0.5])
def test_one_flipped_bit_is_found(out, at):
    file = sorted(out.glob("*.safetensors"))[1]
    data = bytearray(file.read_bytes())
    data[int(len(data) * at)] ^= 1
    file.write_bytes(data)
    ran = inspected(out)
    assert isinstance(ran.exception, CheckFailed)
    assert ran.exception.exit_code == 1
    assert file.name in ran.exception.what
    assert "SHA-256 is" in ran.exception.why


def test_a_shard_that_is_missing(out):
    file = sorted(out.glob("*.safetensors"))[1]
    file.unlink()
    with pytest.raises(CheckFailed, match=f"The shard {file.name} is missing"):
        list(api.checksums(out))


def test_where_none_were_recorded(tmp_path):
    out = api.rewrite(write_llama(tmp_path / "parent")).save(tmp_path / "out")
    for folder in (out, tmp_path / "parent"):
        with pytest.raises(RekindleError, match="No checksums were recorded") as refused:
            list(api.checksums(folder))
        assert "--checksum" in refused.value.hint


@pytest.mark.parametrize("text", ["{", "[]", '{"version": "1", "shards": {"model.safetensors": 1}}'])
def test_a_broken_manifest_is_a_sentence(out, text):
    (out / NAME).write_text(text)
    ran = inspected(out)
    assert isinstance(ran.exception, RekindleError)
    assert "manifest cannot be read" in ran.exception.what


@pytest.mark.parametrize("file", ["../secret", "/etc/passwd"])
def test_a_manifest_cannot_lead_out_of_the_folder(out, file):
    """Its hash would tell of a file that is none of ours."""
    (out.parent / "secret").write_text("secret")
    manifest = json.loads((out / NAME).read_text())
    manifest["shards"] = {file: {"bytes": 1, "sha256": "00"}}
    (out / NAME).write_text(json.dumps(manifest))
    with pytest.raises(RekindleError) as refused:
        list(api.checksums(out))
    assert "SHA-256 is" not in str(refused.value)


def test_a_hash_that_is_no_text(out):
    manifest = json.loads((out / NAME).read_text())
    for entry in manifest["shards"].values():
        entry["sha256"] = 5
    (out / NAME).write_text(json.dumps(manifest))
    with pytest.raises(RekindleError):
        list(api.checksums(out))
