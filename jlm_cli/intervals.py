"""Counts of outcomes, and how far they may be off: resamples over questions, intervals of shares.

A million judgments are a handful of cells, and a bootstrap resample is one multinomial draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.float64]
Codes = NDArray[Any]
Metric = Callable[[Counts], Counts]

_RESAMPLES, _FEWEST_RESAMPLES = 1000, 50
_MOST_RESAMPLED = 20_000_000  # numbers that the resamples of some cells hold; fewer are drawn then
_Z = 1.959964  # of a 95 % interval
_ALIKE = 1e-9  # of questions whose shares are equal but for rounding


@dataclass(frozen=True)
class Questions:
    """What a resample draws: questions with their rows, `times` [K] so many of each kind.

    Those of one kind have rows in the same cells of `shape`; `kind` and `cell` [E] are the rows of
    one question of each kind.
    """

    shape: tuple[int, ...]
    times: Counts
    kind: Codes
    cell: Codes


def _as_it_is(counts: Counts) -> Counts:
    return counts


@dataclass(frozen=True)
class Cells:
    """How often each combination of outcomes occurred, and how often in each resample.

    `counts` [*shape], `resampled` [resamples, *shape]. Both are what `change` makes of the
    questions' own cells.
    """

    counts: Counts
    resampled: Counts
    questions: Questions
    change: Metric = _as_it_is

    @property
    def n(self) -> int:
        return int(self.counts.sum())

    def map(self, change: Metric) -> Cells:
        """The same rows in cells that are put together in another way, or a part of them."""
        before = self.change

        def both(counts: Counts) -> Counts:
            return change(before(counts))

        return Cells(change(self.counts), change(self.resampled), self.questions, both)


def cells_of_counts(counts: Counts) -> Cells:
    """Cells of rows that are independent of one another; the same bytes each time."""
    cells = np.arange(counts.size)
    draws = _draws(int(counts.sum()), counts.ravel(), n_resamples(counts.size))
    alone = Questions(counts.shape, counts.ravel(), cells, cells)
    return Cells(counts, draws.reshape(-1, *counts.shape), alone)


def cells_of(shape: tuple[int, ...], codes: Sequence[Codes], clusters: Codes | None) -> Cells:
    """Cells of rows, `codes` one array per axis of `shape`.

    Rows of one cluster (one question) are drawn together, as they are not independent. Clusters
    with equal counts are alike, so that it is their kinds that are drawn.
    """
    flat = np.ravel_multi_index([np.asarray(code, np.int64) for code in codes], shape)
    size = int(np.prod(shape))
    counts = np.bincount(flat, minlength=size).astype(np.float64)
    if clusters is None or not len(flat):
        return cells_of_counts(counts.reshape(shape))
    names, members = np.unique(clusters, return_inverse=True)
    if len(names) == len(flat):
        return cells_of_counts(counts.reshape(shape))
    marks = np.random.default_rng(1).integers(1, 2**62, size, np.uint64)
    sums = np.zeros(len(names), np.uint64)  # tell kinds apart, without a table of all clusters
    np.add.at(sums, members, marks[flat])
    _, first, how_many = np.unique(sums, return_index=True, return_counts=True)
    kind = np.full(len(names), -1)
    kind[first] = np.arange(len(first))
    kind = kind[members]
    shown = np.flatnonzero(kind >= 0)  # rows of the first cluster of each kind
    shown = shown[np.argsort(flat[shown], kind="stable")]
    cells, starts = np.unique(flat[shown], return_index=True)
    times = how_many.astype(float)
    draws = _draws(len(names), times, n_resamples(max(size, len(shown))))
    resampled = np.zeros((len(draws), size))
    resampled[:, cells] = np.add.reduceat(draws[:, kind[shown]], starts, axis=1)
    questions = Questions(shape, times, kind[shown], flat[shown])
    return Cells(counts.reshape(shape), resampled.reshape(-1, *shape), questions)


def n_resamples(size: int) -> int:
    """How many resamples of so many numbers fit into memory."""
    return max(_FEWEST_RESAMPLES, min(_RESAMPLES, _MOST_RESAMPLED // max(size, 1)))


def _draws(n: int, weights: Counts, times: int) -> Counts:
    """`n` things drawn so many times; `weights` [K] says how many of each kind there are. A single
    thing says nothing about how things vary, and is not drawn."""
    draw = np.random.default_rng(0)
    drawn: Counts = draw.multinomial(n, weights / max(n, 1), times if n > 1 else 0).astype(float)
    return drawn


def share_interval(hits: Codes, rows: Codes, times: Codes) -> tuple[float, float]:
    """The 95 % interval of a share of rows, where `times` [K] questions have so many `rows` and
    `hits` each; NaN where there is one question or none.

    Wilson's, at the size that rows which are independent would need to vary as much (Kish 1965);
    a few questions tell little of how much that is (Student's factor: Korn and Graubard 1998).
    Questions with the same share all count as one row each.
    """
    n = float((rows * times).sum())
    if times.sum() < 2:
        return np.nan, np.nan
    share = float((hits * times).sum()) / n
    return wilson(share, _n_alone(share * (1 - share), hits - share * rows, n, times))


def _n_alone(spread: float, off: Codes, n: float, times: Codes) -> float:
    """How many independent rows would vary as much as `n` of such a variance, of questions whose
    sums are so far `off` [K]."""
    questions = int(times.sum())
    if questions == n:
        return n
    varies = float((times * off**2).sum()) * questions / (questions - 1)
    if varies < _ALIKE:
        return questions
    alone = min(n, n**3 * spread / (n - 1) / varies)
    return alone * (_Z / student(questions - 1)) ** 2


def gain_interval(first: Codes, other: Codes, kind: Codes, times: Codes) -> tuple[float, float]:
    """The 95 % interval of how much more often `other` [E] hits than `first` [E] on the same rows,
    those of one question of each `kind` [E], which occur so many `times` [K]; NaN where there is
    one question or none.

    From both shares' Wilson intervals and their correlation (Newcombe 1998, method 10), for as many
    rows as vary alone. It says something even of judges that never differ.
    """
    each = times[kind]
    n, there = float(each.sum()), np.bincount(kind, minlength=len(times)) > 0
    if (times * there).sum() < 2:
        return np.nan, np.nan
    p, q = float(each @ first) / n, float(each @ other) / n
    gain = other - first - (q - p)
    off = np.bincount(kind, gain, len(times))
    alone = _n_alone(float(each @ gain**2) / n, off, n, times * there)
    together = float(each @ (first * other)) / n - p * q
    if together > 0:
        together = max(together - 1 / (2 * alone), 0.0)  # Newcombe's, for continuity
    apart = math.sqrt(p * (1 - p) * q * (1 - q))
    alike = together / apart if apart else 0.0
    (p_low, p_high), (q_low, q_high) = wilson(p, alone), wilson(q, alone)

    def reach(one: float, two: float) -> float:
        return math.sqrt(max(one**2 - 2 * alike * one * two + two**2, 0.0))

    return q - p - reach(q - q_low, p_high - p), q - p + reach(q_high - q, p - p_low)


def student(freedom: int) -> float:
    """The 0.975 quantile of Student's t, within 0.2 % (from 3 degrees of freedom on by the series
    of Cornish and Fisher)."""
    if freedom < 3:
        return (12.706205, 4.302653)[freedom - 1]
    z, n = _Z, freedom
    series = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(z + sum(term / n**power for power, term in enumerate(series, start=1)))


def wilson(share: float, n: float) -> tuple[float, float]:
    """The 95 % score interval of a share of `n` independent things (Wilson 1927)."""
    z2 = _Z**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)
