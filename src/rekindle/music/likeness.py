"""How alike melodies are, whatever their key and rhythm.

A melody is the steps between its notes, as written and without repeats; a *shape* is a run of them. Two tunes are as
alike as the share of the shorter one's shapes that the other has: 1 for a transposed copy, or for one that the other
holds.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from rekindle.music.abc.reader import Tune

STEPS = 6  # in a shape: seven notes
SAME = 0.3  # from here on two tunes count as versions of one, see notes/LOG.md
SHORTEST = 8  # shapes of a tune that is compared at all


def shapes(tune: Tune) -> frozenset[tuple[int, ...]]:
    """Of the highest notes; a note that is struck again is a step of 0."""
    pitches = [max(note.pitches) for note in tune.notes if note.pitches]
    steps = [after - before for before, after in zip(pitches, pitches[1:])]
    return frozenset(tuple(steps[at : at + STEPS]) for at in range(len(steps) - STEPS + 1))


def likeness(one: frozenset, other: frozenset) -> float:
    """0 to 1; 0 of tunes too short to say."""
    least = min(len(one), len(other))
    return len(one & other) / least if least >= SHORTEST else 0.0


class Known:
    """Tunes that others are held against."""

    def __init__(self, tunes: Iterable[frozenset[tuple[int, ...]]]):
        self.tunes: Sequence[frozenset[tuple[int, ...]]] = list(tunes)
        self._having: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for number, tune in enumerate(self.tunes):
            for shape in tune:
                self._having[shape].append(number)

    def nearest(self, tune: frozenset[tuple[int, ...]], besides: int = -1) -> tuple[float, int]:
        """The likeness of the most alike, and its number; (0, -1) where nothing is shared."""
        shared = Counter(number for shape in tune for number in self._having.get(shape, ()) if number != besides)
        found = ((likeness(tune, self.tunes[number]), number) for number in shared)
        return max(found, default=(0.0, -1))

    def groups(self, least: float = SAME) -> list[int]:
        """For each tune the number of its group: tunes that are that alike are in one, and so are their like."""
        group = list(range(len(self.tunes)))

        def root(number: int) -> int:
            while group[number] != number:
                group[number] = group[group[number]]
                number = group[number]
            return number

        for number, tune in enumerate(self.tunes):
            shared = Counter(other for shape in tune for other in self._having.get(shape, ()) if other < number)
            for other in shared:
                if likeness(tune, self.tunes[other]) >= least:
                    group[root(number)] = root(other)
        return [root(number) for number in range(len(group))]
