"""ROUGE: which words of a target stand in a text, and in which order (Lin 2004, "ROUGE: A Package for Automatic
Evaluation of Summaries", sections 2 and 3).

Words are runs of letters and digits, in lower case, and are not stemmed: of ASCII text the numbers are those of the
package rouge-score (0.1.2, the last, of 2022), whose words are ASCII alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from statistics import fmean

WORD = re.compile(r"[^\W_]+")


def rouge(texts: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """F1 of single words, of pairs and of the longest common subsequence, mean over texts, of 100."""
    ours, theirs = ([WORD.findall(text.lower()) for text in side] for side in (texts, targets))
    rows = [*zip(ours, theirs, strict=True)]
    return {
        "rouge1": 100 * fmean(_grams(a, b, 1) for a, b in rows),
        "rouge2": 100 * fmean(_grams(a, b, 2) for a, b in rows),
        "rougeL": 100 * fmean(_f1(_longest(a, b), len(a), len(b)) for a, b in rows),
    }


def _grams(text: Sequence[str], target: Sequence[str], n: int) -> float:
    ours, theirs = (Counter(zip(*(words[i:] for i in range(n)))) for words in (text, target))
    return _f1((ours & theirs).total(), ours.total(), theirs.total())


def _longest(text: Sequence[str], target: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(target) + 1)
    for word in text:
        before = 0  # of the row above, one to the left
        for i, other in enumerate(target, 1):
            before, row[i] = row[i], before + 1 if word == other else max(row[i], row[i - 1])
    return row[-1]


def _f1(common: int, ours: int, theirs: int) -> float:
    return 2 * common / (ours + theirs) if common else 0.0
