"""pack, unpack, archive: checkpoint series in a fraction of the space."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from rekindle import api
from rekindle.cli.out import FORMAT, nbytes, plain, result, say, table
from rekindle.cli.training import OVERWRITE
from rekindle.codec.pack import KEYFRAME_EVERY
from rekindle.errors import CheckFailed

WORKERS = click.option("--workers", type=int, metavar="N", help="blocks at a time  [as many as cores]")
KEYFRAMES = click.option(
    "--keyframe-every",
    type=int,
    default=KEYFRAME_EVERY,
    metavar="K",
    help=f"code every K-th on its own: at most K are decoded to read one  [{KEYFRAME_EVERY}]",
)
TIER = click.option("--tier", default="fast", metavar="fast|max", help="max: a little smaller, much slower  [fast]")
MODE = click.option(
    "--mode",
    metavar="M",
    help="lossless; to train on from, near-lossless: weights and moments to a twenty-fifth, strong: to a fiftieth or "
    "less; excp: the published rule  [lossless]",
)
ERROR = click.option(
    "--error", metavar="rel:X", help="in place of a mode: floats rounded, each within X of itself, such as rel:1e-3"
)
STEP = click.option("--step", type=int, metavar="N", help="its number  [from trainer_state.json or its name]")
DRY_RUN = click.option("--dry-run", is_flag=True, help="say what would be written; write nothing")


@click.command("pack")
@click.argument("ckpt", nargs=-1, required=True)
@click.argument("archive")
@MODE
@ERROR
@TIER
@KEYFRAMES
@STEP
@WORKERS
@OVERWRITE
@DRY_RUN
@FORMAT
def pack(ckpt: tuple[str, ...], archive: str, format_: str, **given: Any) -> None:
    """A series of checkpoints in one file, each coded against the one before; every bit comes back.

    CKPT is a folder, with moments, tokenizer and all else in it; or a file, such as ckpt_1200.pt; or a folder of
    numbered ones; or steps of another archive, such as old.rk@1000:5000 or old.rk@*. What is numbered (step-1200,
    checkpoint-1200) is packed in the order of the numbers.

    \b
    rekindle pack run/step-* run.rk
    rekindle pack SRC model.rk
    """
    data = api.pack(list(ckpt), archive, say=_said, **given)
    _packed(data, given, format_)
    if not given["dry_run"] and format_ == "human":
        say(f"next:  {shlex.join(['rekindle', 'archive', 'verify', plain(archive)])}")


@click.command("unpack")
@click.argument("archive", metavar="ARCHIVE[@STEP]")
@click.argument("out")
@WORKERS
@OVERWRITE
@DRY_RUN
@FORMAT
def unpack(archive: str, out: str, format_: str, **given: Any) -> None:
    """A checkpoint out of an archive, every file as it was, to the byte; without @STEP the last.

    \b
    rekindle unpack run.rk@1200 OUT
    """
    data = api.unpack(archive, out, **given)
    dry = "[dry-run] " if given["dry_run"] else ""
    result(
        data, f"{dry}step {data['step']}: {data['files']} file(s), {nbytes(data['bytes'])}, in {plain(out)}", format_
    )
    for damage in data["damage"]:
        say(f"note: {plain(damage)}")
    if not dry and format_ == "human" and (Path(out) / "config.json").is_file():
        say(f"next:  {shlex.join(['rekindle', 'inspect', plain(out)])}")


@click.group("archive")
def archive() -> None:
    """What is in an archive, whether it is whole, and changes to it.

    \b
    rekindle archive ls run.rk
    rekindle archive verify run.rk
    """


@archive.command("ls")
@click.argument("archive_", metavar="ARCHIVE")
@FORMAT
def ls(archive_: str, format_: str) -> None:
    """Steps, and what each takes.

    \b
    rekindle archive ls run.rk
    """
    data = api.archive_info(archive_)
    result(data, _listed(data), format_)
    for damage in data["damage"]:
        say(f"note: {plain(damage)}")


@archive.command("info")
@click.argument("archive_", metavar="ARCHIVE[@STEP]")
@FORMAT
def info(archive_: str, format_: str) -> None:
    """Files and tensors of a step, and what each takes; without @STEP of the last.

    \b
    rekindle archive info run.rk@1200
    """
    data = api.archive_contents(archive_)
    rows = [("", "dtype", "shape", "bytes", "packed", "", "error, rms")]
    for x in data["tensors"]:
        error = f"{100 * x['error']['relative_rms']:.2f} %" if x["error"] else ""
        ratio = f"{x['raw'] / x['bytes']:.2f} x" if x["bytes"] else ""
        rows.append(
            (
                plain(x["name"]),
                x["dtype"],
                "x".join(map(str, x["shape"])),
                nbytes(x["raw"]),
                nbytes(x["bytes"]),
                ratio,
                error,
            )
        )
    files = ", ".join(map(plain, data["files"]))
    result(data, f"step {data['step']}: {files}\n\n{table(rows, right=(3, 4, 5, 6))}", format_)


@archive.command("verify")
@click.argument("archive_", metavar="ARCHIVE")
@WORKERS
@FORMAT
def verify(archive_: str, format_: str, **given: Any) -> None:
    """Is every byte of it whole? Decodes all steps; exit code 1 where anything is damaged.

    \b
    rekindle archive verify run.rk
    """
    wrong = api.archive_verify(archive_, say=_said, **given)
    told = "\n".join(map(plain, wrong)) or f"{plain(archive_)} is whole"
    result({"archive": archive_, "damage": wrong}, told, format_)
    if wrong:
        raise CheckFailed(
            f"{archive_} is damaged in {len(wrong)} place(s).",
            hint="steps that are whole can be unpacked; bytes behind the last are what an `add` now writes, or left",
        )


@archive.command("diff")
@click.argument("archive_", metavar="ARCHIVE")
@click.argument("first", type=int)
@click.argument("second", type=int)
@FORMAT
def diff(archive_: str, first: int, second: int, format_: str) -> None:
    """How the tensors of two steps differ.

    \b
    rekindle archive diff run.rk 1200 1400
    """
    found = api.archive_diff(archive_, first, second)
    rows = [("", "", "values changed", "largest change")]
    for x in found:
        if x["what"] != "same":
            share = "" if x["changed"] is None else f"{100 * x['changed']:.1f} %"
            rows.append((plain(x["name"]), x["what"], share, "" if x["largest"] is None else f"{x['largest']:.3g}"))
    same = sum(x["what"] == "same" for x in found)
    result({"tensors": found}, f"{same} of {len(found)} are the same\n{table(rows, right=(2, 3))}", format_)


@archive.command("add")
@click.argument("ckpt", nargs=-1, required=True)
@click.argument("archive_", metavar="ARCHIVE")
@MODE
@ERROR
@TIER
@KEYFRAMES
@STEP
@WORKERS
@DRY_RUN
@FORMAT
def add(ckpt: tuple[str, ...], archive_: str, format_: str, **given: Any) -> None:
    """Add checkpoints behind the last. A kill leaves the archive without the one that was being added.

    \b
    rekindle archive add run/step-1600 run.rk
    """
    data = api.archive_add(list(ckpt), archive_, say=_said, **given)
    _packed(data, given, format_)


@archive.command("drop")
@click.argument("archive_", metavar="ARCHIVE@STEP")
@WORKERS
@FORMAT
def drop(archive_: str, format_: str, **given: Any) -> None:
    """Remove a step. What was coded against it is coded anew; the others keep their numbers.

    \b
    rekindle archive drop run.rk@1200
    """
    data = api.archive_drop(archive_, **given)
    result(data, _listed(data), format_)


def _said(text: str) -> None:
    say(plain(text))


def _packed(data: dict[str, Any], given: dict[str, Any], format_: str) -> None:
    result(data, _foreseen(data) if given["dry_run"] else _listed(data), format_)
    for note in data["notes"]:
        say(f"note: {plain(note)}")


def _foreseen(data: dict[str, Any]) -> str:
    rows = [("step", "", "files", "tensors", "with moments", "bytes")]
    for place, x in enumerate(data["steps"]):
        step = place if x["step"] is None else x["step"]
        counts = str(x["files"]), str(x["tensors"]), str(x["moments"])
        rows.append((str(step), plain(x["checkpoint"]), *counts, nbytes(x["bytes"])))
    whole = f"{nbytes(data['bytes'])}, {plain(data['mode'])}; how small it becomes is known when it is packed"
    return f"[dry-run] {plain(data['archive'])}\n{table(rows, right=(0, 2, 3, 4, 5))}\n{whole}"


def _listed(data: dict[str, Any]) -> str:
    rows = [("step", "bytes", "packed", "", "")]
    for x in data["steps"]:
        kind = ", ".join(
            [*(["keyframe"] if x["keyframe"] else []), *([plain(x["mode"])] if x["mode"] != "lossless" else [])]
        )
        rows.append((str(x["step"]), nbytes(x["raw"]), nbytes(x["bytes"]), f"{x['ratio']:.3f} x", kind))
    whole = f"{nbytes(data['raw'])} in {nbytes(data['bytes'])}: {data['ratio']:.3f} x"
    return f"{table(rows, right=(0, 1, 2, 3))}\n{plain(data['archive'])}: {whole}"


COMMANDS = {"pack": pack, "unpack": unpack, "archive": archive}
