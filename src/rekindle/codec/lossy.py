"""Near-lossless: what a checkpoint becomes before it is coded, so that it takes a twentieth of the space, or less.

Weights are coded as their residual against the reconstructed checkpoint before, so that errors do not add up; small
residuals are 0. Moments are coded directly; the first is kept where it is large and its weight moved. What is kept of a
tensor takes one of 15 values. Where it is not known which weight moments belong to, or that weight is not float32,
weights stay as they are.

Source: Li et al. 2024, "ExCP: Extreme LLM Checkpoint Compression via Weight-Momentum Joint Shrinking", arXiv
2406.11257, section 3; their exp_avg_sq is m, their exp_avg v. Mended here: zeroing the second moment makes the first
steps after a restart too large, so it is kept whole, its 15 values found between logarithms. And a threshold by the
median residual grows from link to link with what it left out, so that weights fall ever further behind; rounding to
steps leaves hardly one further behind than half a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rekindle.codec.archive import Step, matches
from rekindle.codec.bits import Bytes
from rekindle.codec.index import Part
from rekindle.codec.moments import Moments, moments_of
from rekindle.codec.palette import places
from rekindle.codec.shrunk import LEAST, Errors, Floats, Shrunk
from rekindle.codec.source import Source

CENTRES = 15  # beside 0: symbols of 4 bits
SAMPLE = 1 << 18  # values that thresholds and centres are found from
REACH = 0.8  # of the way to the next centre that a second moment goes before it moves there
ROUNDS = 30  # of k-means
RATED = 1 << 14  # residuals that a step is found from


@dataclass(frozen=True)
class Rule:
    """A weight's residual is rounded to steps so wide that it takes `bits`; or, where that is None, kept above
    `min(cap, alpha / sqrt(mean exp_avg_sq))` times the median residual, by a k-means, as published."""

    bits: float | None = None
    alpha: float = 5e-5
    cap: float = 2.5
    beta: float = 2.0  # exp_avg is kept above so many times its mean size, where its weight is
    whole_second: bool = True  # exp_avg_sq is kept everywhere
    seconds: int = CENTRES  # values that it takes


BITS = 2.5  # of a weight's change: rounding leaves a fifth of its root mean square, where it is Gaussian
RULES = {
    "near-lossless": Rule(bits=BITS),
    "strong": Rule(bits=1.05, seconds=7),
    "excp": Rule(whole_second=False),
}


@dataclass(frozen=True)
class _Place:
    """Moments and their weight, by position, and the like of two of them in the reference."""

    weight: int | None
    first: int
    second: int
    weight_before: int | None
    second_before: int | None


def shrink_source(source: Source, reference: Step | None, rule: Rule) -> Shrunk:
    """Thresholds and centres now, from samples; values when they are read."""
    errors, centres, keep = Errors(), {}, {}
    of: dict[int, _Place] = {}
    moments = moments_of(source)
    places = _places(source, reference, moments)
    for p in places:
        sampled = _Values(source, reference, p, _spots(source.tensors[p.first].n))
        if not sampled.sound:
            continue
        limits = keep[p.first] = _limits(sampled, rule)
        kept = _kept(sampled, limits)
        if p.weight is not None and sampled.residual is not None:
            of_kept = sampled.residual[kept]
            centres[p.weight] = _centres(of_kept) if rule.bits is None else _of_steps(of_kept, 2 * limits[0])
        large = kept & (np.abs(sampled.first) > limits[1])
        centres[p.first] = _centres(sampled.first[large])
        second = sampled.second if rule.whole_second else sampled.second[large]
        centres[p.second] = _centres(second, rule.seconds, logarithmic=True)
        of |= {position: p for position in (p.weight, p.first, p.second) if position in centres}

    def read(tensor: int, start: int, nbytes: int) -> bytes:
        if tensor not in centres:
            return source.read(tensor, start, nbytes)
        p = of[tensor]
        values = _Values(source, reference, p, [(start // 4, nbytes // 4)])
        if not values.sound:
            return source.read(tensor, start, nbytes)  # nothing near a NaN is changed
        given, made = _made(values, tensor, p, centres[tensor], keep[p.first], rule)
        errors.note(tensor, start, given, made)
        return made.tobytes()

    return Shrunk(replace(source, read=read), centres, errors, kept=kept_whole(source, moments))


def kept_whole(source: Source, moments: Sequence[Moments]) -> str | None:
    """What of a checkpoint with these moments is coded without loss though that was not asked for; None for nothing."""
    found = [(m, _weight(source, m)) for m in moments if _shrinks(source, m.first)]
    if not found:
        return "no moments in float32 were found (exp_avg beside exp_avg_sq), so all of it is packed lossless"
    if without := sum(weight is None for _, weight in found):
        told = sum(m.weight is not None for m, weight in found if weight is None)
        why = "not float32" if told == without else "not known for sure which moments are theirs"
        return f"{without} of {len(found)} weights with moments are packed lossless: {why}"
    return None


def _shrinks(source: Source, tensor: int) -> bool:
    return source.tensors[tensor].dtype == "F32" and source.tensors[tensor].n >= LEAST


def _weight(source: Source, m: Moments) -> int | None:
    return m.weight if m.weight is not None and _shrinks(source, m.weight) else None


def _places(source: Source, reference: Step | None, moments: Sequence[Moments]) -> list[_Place]:
    """Moments in float32 of enough values, with their weights where those are too."""
    found = []
    for m in moments:
        if _shrinks(source, m.first):
            both = _weight(source, m), m.second
            like = [p if p is None or reference is None else matches(reference, [source.tensors[p]]) for p in both]
            found.append(_Place(both[0], m.first, m.second, *(x[0] if isinstance(x, list) else None for x in like)))
    return found


def _spots(n: int) -> list[tuple[int, int]]:
    """Where a tensor is sampled: all of it, or 64 stretches."""
    if n <= SAMPLE:
        return [(0, n)]
    return [(int(start), SAMPLE // 64) for start in np.linspace(0, n - SAMPLE // 64, 64)]


class _Values:
    """A weight's residual (None without a reference), its moments and the reference, float32, at some spots."""

    def __init__(self, source: Source, reference: Step | None, p: _Place, spots: list[tuple[int, int]]):
        def read(tensor: int) -> Floats:
            return np.frombuffer(b"".join(source.read(tensor, 4 * a, 4 * n) for a, n in spots), "<f4")

        self.weight = None if p.weight is None else read(p.weight)
        self.first, self.second = read(p.first), read(p.second)

        def recall(tensor: int | None) -> Floats | None:
            if reference is None or tensor is None:
                return None
            return reference.gather([Part(tensor, a, n) for a, n in spots], [tensor] * len(spots)).view("<f4")

        self.before, self.second_before = recall(p.weight_before), recall(p.second_before)
        self.residual: Floats | None = None
        if self.weight is not None and self.before is not None:
            with np.errstate(invalid="ignore", over="ignore"):
                self.residual = self.weight - self.before

    @property
    def sound(self) -> bool:
        """All finite, no second moment below 0."""
        read = (self.weight, self.first, self.second, self.residual)
        return all(x is None or np.isfinite(x).all() for x in read) and bool((self.second >= 0).all())


def _limits(values: _Values, rule: Rule) -> tuple[float, float]:
    """Above which residuals and first moments are kept."""
    with np.errstate(divide="ignore", over="ignore"):
        first = rule.beta * float(np.mean(np.abs(values.first), dtype=np.float64))
        if values.residual is None:
            return 0.0, first
        if rule.bits is not None:
            return step_width(values.residual, rule.bits) / 2, first
        spread = float(np.mean(values.second, dtype=np.float64))
        share = min(rule.cap, rule.alpha / np.sqrt(spread)) if spread > 0 else rule.cap
        return float(share * np.median(np.abs(values.residual))), first


def step_width(residual: Floats, bits: float) -> float:
    """How wide steps are of which residuals take so many bits each, by their entropy; 0 where all are 0.

    7 steps reach nearly all that is not 0, however little that is: what lies beyond would be made up for link by link.
    """
    sampled = residual[:: residual.size // RATED + 1].astype(np.float64)
    sizes = np.abs(sampled[sampled != 0])
    if not sizes.size:
        return float(np.abs(residual).max(initial=0))
    low, high = float(np.quantile(sizes, 0.99)) / (CENTRES / 2), 2 * float(sizes.max())
    sampled.sort()
    for _ in range(16):
        middle = math.sqrt(low * high)
        cells = np.rint(sampled / middle)
        ends = np.flatnonzero(np.append(cells[1:] != cells[:-1], True))
        shares = np.diff(ends, prepend=-1) / sampled.size
        low, high = (middle, high) if -(shares * np.log2(shares)).sum() > bits else (low, middle)
    return high


def in_steps(residual: Floats, step: float) -> tuple[Bytes, Floats]:
    """The multiple of the step that each is nearest to, 7 either way from the middle one; and the mean of each [15]."""
    cells = np.clip(np.rint(residual / np.float64(step)), -(CENTRES // 2), CENTRES // 2)
    cells = (cells + CENTRES // 2).astype(np.uint8)
    counts, sums = np.bincount(cells, minlength=CENTRES), np.bincount(cells, residual, CENTRES)
    return cells, (sums / np.maximum(counts, 1)).astype(np.float32)


def _of_steps(residual: Floats, step: float) -> Floats:
    """The means of those that occur, in order."""
    if not residual.size or not step:
        return np.zeros(0, np.float32)
    cells, means = in_steps(residual, step)
    return np.unique(means[np.bincount(cells, minlength=CENTRES) > 0])


def _kept(values: _Values, limits: tuple[float, float]) -> NDArray[np.bool_]:
    if values.residual is None:
        return np.ones(values.first.shape, bool)
    return np.abs(values.residual) > limits[0]


def _made(
    values: _Values, tensor: int, p: _Place, centres: Floats, limits: tuple[float, float], rule: Rule
) -> tuple[Floats, Floats]:
    """A piece as it was, and as it becomes."""
    kept = _kept(values, limits)
    if tensor == p.weight:
        assert values.weight is not None
        assert values.before is not None
        assert values.residual is not None
        return values.weight, values.before + np.where(kept, nearest(values.residual, centres), np.float32(0))
    large = kept & (np.abs(values.first) > limits[1])
    if tensor == p.first:
        return values.first, np.where(large, nearest(values.first, centres), np.float32(0))
    coded = _steady(values.second, values.second_before, centres)
    return values.second, coded if rule.whole_second else np.where(large, coded, np.float32(0))


def nearest(values: Floats, centres: Floats, *, logarithmic: bool = False) -> Floats:
    """The centre that each value is nearest to, by difference or by ratio."""
    if not len(centres):
        return np.zeros_like(values)
    return centres[np.searchsorted(_edges(centres), values) if logarithmic else places(values, centres)]


def _steady(second: Floats, before: Floats | None, centres: Floats) -> Floats:
    """The nearest centre by ratio; where the one next to it was there before, that one until it is well out of reach.

    Most second moments hardly move: those near an edge would change their centre to and fro, which costs most.
    """
    edges = _edges(centres)
    found = np.searchsorted(edges, second)
    if before is not None and len(edges):
        there = np.searchsorted(edges, before)
        with np.errstate(divide="ignore"):
            log, at = np.log(second.astype(np.float64)), np.log(centres.astype(np.float64))
        gap = np.abs(at[found] - at[there])
        stay = (np.abs(found - there) == 1) & (np.abs(log - at[there]) < REACH * gap)
        found = np.where(stay, there, found)
    return centres[found]


def _edges(centres: Floats) -> NDArray[np.float64]:
    """Between logarithms."""
    wide = centres.astype(np.float64)
    return np.sqrt(wide[:-1] * wide[1:])


def _centres(values: Floats, most: int = CENTRES, *, logarithmic: bool = False) -> Floats:
    """At most so many centres, in order, by Lloyd's k-means from an even grid; between logarithms where so asked."""
    values = values[np.isfinite(values)]
    values = np.sort((values[values > 0] if logarithmic else values[values != 0]).astype(np.float64))
    if not values.size:
        return np.zeros(1 if logarithmic else 0, np.float32)
    points = np.log(values) if logarithmic else values
    sums = np.concatenate([[0.0], np.cumsum(points)])
    low, high = np.quantile(points, (0.0005, 0.9995))
    centres = np.unique(np.linspace(low, high, most))
    for _ in range(ROUNDS):
        edges = np.searchsorted(points, (centres[:-1] + centres[1:]) / 2)
        bounds = np.unique(np.concatenate([[0], edges, [points.size]]))
        moved = (sums[bounds[1:]] - sums[bounds[:-1]]) / np.diff(bounds)
        if np.array_equal(moved, centres):
            break
        centres = np.unique(moved)
    return np.unique((np.exp(centres) if logarithmic else centres).astype(np.float32))
