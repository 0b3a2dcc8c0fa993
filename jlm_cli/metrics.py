"""The figures of judging, from counts of outcomes: pure functions with intervals.

All figures depend on how often each combination of outcomes occurred, so that a million
judgments are a handful of cells, and a bootstrap resample is one multinomial draw.
Classes are 1, 2 and tie, in that order. A confusion may have columns beyond its classes:
verdicts that are of no class and so can only be wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jlm_cli.records import Json

Counts = NDArray[np.float64]
Codes = NDArray[Any]
Metric = Callable[[Counts], Counts]

_RESAMPLES, _FEWEST_RESAMPLES = 1000, 50
_MOST_RESAMPLED = 20_000_000  # numbers that the resamples of some cells hold; fewer are drawn then
_Z = 1.959964  # of a 95 % interval
_ALIKE = 1e-9  # of questions whose shares are equal but for rounding


def agreement(confusion: Counts) -> Counts:
    """Share of verdicts equal to gold. `confusion` is [..., gold, verdict]."""
    return ratio(np.trace(confusion, axis1=-2, axis2=-1), confusion.sum((-2, -1)))


def precision(confusion: Counts) -> Counts:
    """Macro precision over the classes that occur in gold or verdicts."""
    return _macro(confusion, ratio(_hits(confusion), _said(confusion), 0.0))


def recall(confusion: Counts) -> Counts:
    """Macro recall over the classes that occur in gold or verdicts."""
    return _macro(confusion, ratio(_hits(confusion), confusion.sum(-1), 0.0))


def f1(confusion: Counts) -> Counts:
    """Macro F1 over the classes that occur in gold or verdicts."""
    both = _said(confusion) + confusion.sum(-1)
    return _macro(confusion, ratio(2 * _hits(confusion), both, 0.0))


def kappa(confusion: Counts) -> Counts:
    """Cohen's kappa: agreement beyond that of chance."""
    n = confusion.sum((-2, -1))
    chance = ratio((confusion.sum(-1) * _said(confusion)).sum(-1), n**2)
    return ratio(agreement(confusion) - chance, 1 - chance)


def consistency(moves: Counts) -> Counts:
    """Share of verdicts that stay under a swap of the answers. `moves` is [..., given, swapped]."""
    return agreement(moves)


def bias_first(moves: Counts) -> Counts:
    """Share where swapping moved the outcome toward whichever answer was shown first."""
    toward = moves[..., 0, 1] + moves[..., 0, 2] + moves[..., 2, 1]
    return ratio(toward, moves.sum((-2, -1)))


def bias_second(moves: Counts) -> Counts:
    """Share where swapping moved the outcome toward whichever answer was shown second."""
    toward = moves[..., 1, 0] + moves[..., 1, 2] + moves[..., 2, 0]
    return ratio(toward, moves.sum((-2, -1)))


def bias_toward_first(moves: Counts) -> Counts:
    """How much more often swapping moved the outcome toward the first than toward the second."""
    return bias_first(moves) - bias_second(moves)


def win_rate(outcomes: Counts) -> Counts:
    """Wins and half the ties. `outcomes` is [..., (wins, losses, ties)]."""
    return ratio(outcomes[..., 0] + outcomes[..., 2] / 2, outcomes.sum(-1))


OBJECTIVE: dict[str, Metric] = {
    "agreement": agreement,
    "precision": precision,
    "recall": recall,
    "f1": f1,
    "kappa": kappa,
}
COMBINED: dict[str, Metric] = {
    "accuracy": agreement,
    "precision": precision,
    "recall": recall,
    "f1": f1,
}
RELIABILITY: dict[str, Metric] = {
    "consistency": consistency,
    "bias_first": bias_first,
    "bias_second": bias_second,
}


def _hits(confusion: Counts) -> Counts:
    return np.diagonal(confusion, axis1=-2, axis2=-1)


def _said(confusion: Counts) -> Counts:
    """How often each class was the verdict."""
    said: Counts = confusion.sum(-2)[..., : confusion.shape[-2]]
    return said


def ratio(part: Counts, whole: Counts, empty: float = np.nan) -> Counts:
    part, whole = np.broadcast_arrays(np.asarray(part, float), np.asarray(whole, float))
    result: Counts = np.divide(part, whole, out=np.full(part.shape, empty), where=whole != 0)
    return result


def _macro(confusion: Counts, per_class: Counts) -> Counts:
    occurs = (_said(confusion) + confusion.sum(-1)) > 0
    return ratio((per_class * occurs).sum(-1), occurs.sum(-1))


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


def figures(metrics: dict[str, Metric], cells: Cells) -> Json:
    """Each metric of the cells with its interval; the same bytes each time."""
    return {name: figure(metric, cells) for name, metric in metrics.items()}


def figure(metric: Metric, cells: Cells) -> Json:
    """A metric of the cells with its 95 % interval: that of a share of rows, or else the resamples'
    percentiles, which say nothing where they are all alike."""
    value = number(metric(cells.counts))
    if metric in _SHARES and (ends := _ends_of_share(metric, cells)) is not None:
        return {"value": value, "ci95": [number(end) for end in ends]}
    values = metric(cells.resampled)
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, [2.5, 97.5]) if len(values) else (np.nan, np.nan)
    if low == high:
        low, high = np.nan, np.nan
    return {"value": value, "ci95": [number(low), number(high)]}


def _ends_of_share(metric: Metric, cells: Cells) -> tuple[float, float] | None:
    """None where a row is neither a hit nor a miss, as a tie is in a win rate."""
    asked = cells.questions
    size = int(np.prod(asked.shape))
    of_one_row = metric(cells.change(np.eye(size).reshape(size, *asked.shape)))  # in each cell
    hit = of_one_row[asked.cell]
    met = np.isfinite(hit) & (asked.times[asked.kind] > 0)
    kind, hit = asked.kind[met], hit[met]
    if not np.isin(hit, (0, 1)).all():
        return None
    kinds = len(asked.times)
    hits, rows = (np.bincount(kind, weights, kinds) for weights in (hit, None))
    return share_interval(hits, rows, asked.times * (rows > 0))


def share_interval(hits: Codes, rows: Codes, times: Codes) -> tuple[float, float]:
    """The 95 % interval of a share of rows, where `times` [K] questions have so many `rows` and
    `hits` each; NaN where there is one question or none.

    Wilson's, at the size that rows which are independent would need to vary as much (Kish 1965);
    a few questions tell little of how much that is (Student's factor: Korn and Graubard 1998).
    Questions with the same share all count as one row each.
    """
    n, questions = float((rows * times).sum()), int(times.sum())
    if questions < 2:
        return np.nan, np.nan
    share = float((hits * times).sum()) / n
    if questions == n:
        return wilson(share, n)
    off = float((times * (hits - share * rows) ** 2).sum()) * questions / (questions - 1)
    if off < _ALIKE:
        return wilson(share, questions)
    alone = min(n, n**3 * share * (1 - share) / (n - 1) / off)
    return wilson(share, alone * (_Z / student(questions - 1)) ** 2)


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


def size_of(figure: Json) -> Json:
    """The size of a figure that has a direction. Its interval is that of the sizes between the
    ends: the percentiles of a size would never reach 0."""
    low, high = figure["ci95"]
    if low is not None:
        smaller, larger = sorted(map(abs, (low, high)))
        low, high = 0.0 if low <= 0 <= high else smaller, larger
    value = figure["value"]
    return {"value": None if value is None else abs(value), "ci95": [low, high]}


def number(value: Any) -> float | None:
    """Rounded, and None where there is no such number (JSON has no NaN)."""
    return round(float(value), 6) + 0.0 if np.isfinite(value) else None  # no -0.0


def first_share(cells: Counts) -> Counts:
    """Of the verdicts for either answer, the share for the first. `cells` is [..., gold, verdict];
    gold may have a last row for rows without gold."""
    said = cells.sum(-2)
    return ratio(said[..., 0], said[..., 0] + said[..., 1])


def first_share_of_gold(cells: Counts) -> Counts:
    gold = cells.sum(-1)
    return ratio(gold[..., 0], gold[..., 0] + gold[..., 1])


def first_effect(cells: Counts) -> Counts:
    """Cohen's h between both shares; against one half where there is no gold. Gold of ties alone
    has no share."""
    known = cells[..., :-1, :].sum((-2, -1)) > 0
    return cohens_h(first_share(cells), np.where(known, first_share_of_gold(cells), 0.5))


def cohens_h(share: Counts, other: Counts) -> Counts:
    """Effect size of a difference between two shares: 0.2 is small, 0.5 medium, 0.8 large."""
    angle: Counts = 2 * np.arcsin(np.sqrt(share)) - 2 * np.arcsin(np.sqrt(other))
    return angle


PREFERENCE: dict[str, Metric] = {
    "judge": first_share,
    "gold": first_share_of_gold,
    "effect": first_effect,
}


def human_agreement(votes: Counts) -> Metric:
    """Mean agreement of two annotators of one row, for cells [..., pattern, verdict].

    `votes` [pattern, class] says how many annotators chose each class.
    """
    each = votes.sum(-1)
    pairs = each * (each - 1) / 2
    same = (votes * (votes - 1) / 2).sum(-1)

    def measure(cells: Counts) -> Counts:
        n = cells.sum(-1)
        return ratio((n * ratio(same, pairs, 0.0)).sum(-1), (n * (pairs > 0)).sum(-1))

    return measure


def human_kappa(votes: Counts) -> Metric:
    """Fleiss' kappa of the annotators: agreement beyond that of chance."""
    agree = human_agreement(votes)

    def measure(cells: Counts) -> Counts:
        shares = ratio(votes, votes.sum(-1, keepdims=True))
        classes = cells.sum(-1) @ shares / cells.sum((-2, -1))[..., None]
        chance = (classes**2).sum(-1)
        return ratio(agree(cells) - chance, 1 - chance)

    return measure


def judge_human_agreement(votes: Counts) -> Metric:
    """Mean agreement of the judge with one annotator."""
    shares = ratio(votes, votes.sum(-1, keepdims=True))

    def measure(cells: Counts) -> Counts:
        classes = cells[..., : votes.shape[-1]]
        return ratio((classes * shares).sum((-2, -1)), classes.sum((-2, -1)))

    return measure


def overconfidence(confidence: Counts) -> Metric:
    """Mean confidence less accuracy, for cells [..., bin, (wrong, right)].

    `confidence` [bin, 2] is the mean confidence of each cell's rows, which a resample keeps.
    """

    def measure(cells: Counts) -> Counts:
        n = cells.sum((-2, -1))
        return ratio((cells * confidence).sum((-2, -1)) - cells[..., 1].sum(-1), n)

    return measure


def hit_rate(cells: Counts) -> Counts:
    """Share of the right among [..., (wrong, right, …)]."""
    return ratio(cells[..., 1], cells.sum(-1))


@cache
def share_of(place: int) -> Metric:
    """Share of one outcome among [..., outcome]."""
    return lambda cells: ratio(cells[..., place], cells.sum(-1))


# of rows, each of which counts or does not
_SHARES = {agreement, consistency, bias_first, bias_second, win_rate, hit_rate} | {
    share_of(place) for place in range(3)
}


def row_at(place: int) -> Metric:
    """One row of [..., row, outcome]."""
    return lambda cells: cells[..., place, :]


def rows_from(place: int) -> Metric:
    """The sum of all rows of [..., row, outcome] from one on."""
    return lambda cells: cells[..., place:, :].sum(-2)
