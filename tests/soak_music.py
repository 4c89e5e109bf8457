"""The whole of music21's books: pitches against its own reader, plain spellings against what they were made of.

    python tests/soak_music.py

About 5 minutes; `make soak` runs it.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "music"))

from test_abc_plain import keeps_what_sounds  # noqa: E402
from test_music21 import compared  # noqa: E402
from tune_helpers import corpus  # noqa: E402


def main() -> int:
    found, unexplained = compared(corpus())
    kept = sum(map(keeps_what_sounds, corpus()))
    sys.stdout.write(f"{dict(Counter(found))}\nunexplained: {unexplained}\nplain, and the same: {kept}\n")
    return int(found["equal"] < 0.95 * len(corpus()) or len(unexplained) > 0.01 * len(corpus()))


if __name__ == "__main__":
    sys.exit(main())
