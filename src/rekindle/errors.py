"""What was wrong, where, and what to type.

Every refusal is one of these sentences; the command line prints it and never a traceback. An error in four
parts: *what* is wrong with the values seen, *where*, *why* it matters in one clause, and what to *try*.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Sequence
from typing import Any


class RekindleError(Exception):
    """A request that cannot be met (exit code 2).

    `what` is a full sentence with the values seen; `where` names a tensor, a file or a YAML key; `hint` is what
    to type next.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: object = None, why: str | None = None, hint: str | None = None):
        self.what, self.where, self.why, self.hint = what, where, why, hint
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = [self.what]
        lines += [f"  where: {self.where}"] if self.where is not None else []
        lines += [f"  why:   {self.why}"] if self.why else []
        lines += [f"  try:   {self.hint}"] if self.hint else []
        return "\n".join(lines)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.__dict__)


class CheckFailed(RekindleError):
    """Something was measured and did not hold: a broken promise, a wrong checksum, a NaN (exit code 1)."""

    exit_code = 1


class Ended(KeyboardInterrupt):
    """The process was asked to end by the signal `number`; `said`: how far it came, as a sentence."""

    def __init__(self, number: int, said: str = ""):
        self.number, self.said = number, said
        super().__init__(number, said)

    def __str__(self) -> str:
        return self.said or signal.Signals(self.number).name


def _rebuild(cls: type[RekindleError], state: dict) -> RekindleError:
    error = cls.__new__(cls)
    error.__dict__.update(state)
    Exception.__init__(error, str(error))
    return error


def together(problems: Sequence[RekindleError], shown: int = 8) -> RekindleError:
    """One error out of a plan's problems, so that the user hears all of them at once."""
    if len(problems) == 1:
        return problems[0]
    parts = [str(problem) for problem in problems[:shown]]
    if len(problems) > shown:
        parts.append(f"... and {len(problems) - shown} more of this kind")
    return RekindleError(f"{len(problems)} problems:\n" + "\n".join(_indent(part) for part in parts))


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line without its full stop; its name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name closest to a misspelt one, or None if none is close."""
    from difflib import get_close_matches

    found = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def counted(number: int, noun: str) -> str:
    """1 run, 2 runs, 1,200 runs."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def some(names: Sequence[object], most: int = 4) -> str:
    """The first few of many: a, b; or a, b, c, d and 3 more."""
    return ", ".join(map(str, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def _indent(text: str) -> str:
    return "- " + text.replace("\n", "\n  ")
