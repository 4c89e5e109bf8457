"""Stdin, stdout and stderr as the caller left them: closed, full, or with nobody at the other end.

What cannot be said stops no work. Of remarks on stderr nothing is missed; what was lost of the answer on stdout, but
for a reader that went away, is told at the end, with exit code 1.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any


class Stream(io.FileIO):
    """A descriptor that takes whatever is written; `lost` is why some of it did not arrive."""

    lost: OSError | None = None

    def write(self, data: Any) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EPIPE:
                self.lost = error
            return len(memoryview(data).cast("B"))


def open_streams() -> Stream | None:
    """Make stdout and stderr such streams; returns that of stdout, or None where it leads elsewhere than it began.

    What was closed (`2>&-`) leads nowhere: the first file that is opened would take its number, and our remarks.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # takes the lowest number that is free, this one; a child that starts has it too
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115
            setattr(sys, f"__{name}__", getattr(sys, name))
    answer = _wrapped("stdout")
    _wrapped("stderr")
    return answer


def _wrapped(name: str) -> Stream | None:
    """Under the text stream that Python opened, with its encoding; what that lacks is written as its number."""
    old = getattr(sys, name)
    if old is not getattr(sys, f"__{name}__"):
        return None
    stream = Stream(old.fileno(), "w", closefd=False)
    errors = "backslashreplace" if old.errors == "strict" else old.errors
    how = {"encoding": old.encoding, "errors": errors, "line_buffering": old.line_buffering or name == "stderr"}
    setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(stream), **how))
    return stream
