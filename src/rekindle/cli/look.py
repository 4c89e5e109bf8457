"""inspect, verify, env."""

from __future__ import annotations

from pathlib import Path

import click

from rekindle import api
from rekindle.cli.out import FORMAT, plain, result, say, table
from rekindle.errors import CheckFailed, counted
from rekindle.report.text import inspected

PROMISED = {  # promise, held -> what is said of it
    ("exact", True): "exact, held",
    ("lossy", True): "lossy: measured, nothing promised to hold",
    ("none", None): "none: measured only",
}


@click.command("inspect")
@click.argument("src")
@click.option("--checksum", is_flag=True, help="compare each shard with its recorded SHA-256")
@click.option("--nan", is_flag=True, help="look for NaN and infinite values")
@FORMAT
def inspect(src: str, checksum: bool, nan: bool, format_: str) -> None:
    """What a checkpoint is, and what can be done with it. Reads headers only.

    \b
    rekindle inspect SRC
    rekindle inspect SRC --checksum --nan --format json
    """
    data = api.inspect(src)
    if checksum:
        data["checksums"] = list(api.checksums(src))
    if nan:
        data["not_finite"] = api.not_finite(src)
    result(data, inspected(data), format_)
    if data.get("not_finite"):
        name, bad = next(iter(data["not_finite"].items()))
        raise CheckFailed(f"{len(data['not_finite'])} tensor(s) hold NaN or infinite values.", where=f"{name}: {bad}")


@click.command("verify")
@click.argument("out")
@click.option(
    "--against", metavar="SRC", help="what it was made from; without it an encoder-decoder is looked at by itself"
)
@click.option(
    "--tokens",
    type=str,
    default="1024",
    metavar="COUNT",
    help="tokens to compare on: eight sequences, or more of 128  [1024]",
)
@click.option("--data", default="stdlib", metavar="TEXT", help="text to compare on, as for train  [stdlib]")
@click.option("--text-column", metavar="TEXT", help="column of its rows that holds the text, as for train")
@click.option(
    "--blockwise/--whole", default=None, help="one module in memory at a time  [where both models do not fit]"
)
@FORMAT
def verify(
    out: str,
    against: str | None,
    tokens: str,
    data: str,
    text_column: str | None,
    blockwise: bool | None,
    format_: str,
) -> None:
    """Does a result still compute what it promised to? Exit code 1 where it does not.

    Reloads both in transformers. Exact means: the largest difference of logits is at most 1e-5 of the largest
    logit, both sides in float32. An encoder-decoder by itself: does its decoder look back alone, does what it writes
    depend on what it reads, does its cross-attention learn, does padding count, does it write the same with a cache?

    \b
    rekindle verify OUT --against SRC
    rekindle verify OUT --against SRC --tokens 4096 --blockwise
    """
    from rekindle.edit.promise import EXACT

    if against is None:
        _by_itself(out, format_)
        return
    verdict = api.verify(out, against, tokens=tokens, data=data, text_column=text_column, blockwise=blockwise)
    rows = []
    if verdict.loss_parent is not None:
        rows.append(("loss", f"{verdict.loss_parent:.6f} before, {verdict.loss_child:.6f} after (nats per token)"))
    elif verdict.loss_child is not None:
        rows.append(("loss", f"{verdict.loss_child:.6f} (nats per token)"))
    rows += [("promise", PROMISED.get((verdict.promise, verdict.held), f"{verdict.promise}, BROKEN"))]
    if verdict.relative_difference is None:
        rows.append((verdict.compared, f"compared with none: {verdict.alone}"))
    else:
        difference = f"{verdict.relative_difference:.2e}"
        rows.append((verdict.compared, f"differ by {difference} of the largest (float32; exact is <= {EXACT:.0e})"))
    if verdict.stored_difference is not None:
        rows.append(("", f"differ by {verdict.stored_difference:.2e} in {verdict.dtype}, as stored"))
    rows += [
        ("on", f"{verdict.tokens} tokens, {verdict.text}"),
        ("NaN scan", ", ".join(f"{name}: {n}" for name, n in verdict.not_finite.items()) or "all finite"),
    ]
    if verdict.blockwise:
        rows.append(("memory", "block by block: one module's weights at a time"))
    result(verdict.to_dict(), table([(name, plain(text)) for name, text in rows]), format_)
    if verdict.held is False:
        raise CheckFailed(
            f"{Path(out).name} does not keep its promise ({verdict.promise}).",
            where=next(iter(verdict.not_finite), None),
            why=f"the {verdict.compared} differ by {verdict.relative_difference:.2e} of the largest"
            if verdict.relative_difference is not None
            else f"its {verdict.compared} are not all finite",
        )
    if verdict.held is None:
        say(f"note: {out} carries no promise (no rekindle.json); this is only a measurement")


def _by_itself(out: str, format_: str) -> None:
    found = api.sound(out)
    cache = {True: "the same", False: "something else", None: found.cannot_write or "it has none"}[found.cached]
    rows = [
        ("looks ahead", f"{found.ahead:.1e} of the largest logit, before a token that was changed"),
        ("reads", f"{found.source:.1e}, where the source is another" + (" (silent as yet)" if found.silent else "")),
        ("padding", f"{found.padding:.1e}, where texts are padded"),
        ("cross-attention", f"a gradient in {found.cross_trained} of {counted(found.cross_tensors, 'tensor')}"),
        ("with a cache", cache),
    ]
    result(found.to_dict(), table(rows), format_)
    if problems := list(found.problems()):
        raise CheckFailed(f"{Path(out).name} does not work as an encoder-decoder.", why="; ".join(problems))


@click.command("env")
@FORMAT
def env(format_: str) -> None:
    """Versions and device, ready to paste into an issue."""
    found = api.env()
    result(found, table(list(found.items())), format_)


COMMANDS = {"inspect": inspect, "verify": verify, "env": env}
