"""The figures of judging: pure functions of counts of outcomes, each with its interval.

Classes are 1, 2 and tie, in that order. A confusion may have columns beyond its classes:
verdicts that are of no class and so can only be wrong.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from jlm_cli.intervals import Cells, Counts, Metric, gain_interval, share_interval
from jlm_cli.records import Json


def agreement(confusion: Counts) -> Counts:
    """Share of verdicts equal to gold. `confusion` is [..., gold, verdict]."""
    return ratio(np.trace(confusion, axis1=-2, axis2=-1), confusion.sum((-2, -1)))


def precision(confusion: Counts) -> Counts:
    """Macro precision over the classes that occur in gold or verdicts."""
    return mean_of_classes(ratio(_hits(confusion), _said(confusion), 0.0), occurrences(confusion))


def recall(confusion: Counts) -> Counts:
    """Macro recall over the classes that occur in gold or verdicts."""
    return mean_of_classes(ratio(_hits(confusion), confusion.sum(-1), 0.0), occurrences(confusion))


def f1(confusion: Counts) -> Counts:
    """Macro F1 over the classes that occur in gold or verdicts."""
    return mean_of_classes(f1_of_classes(confusion), occurrences(confusion))


def f1_of_classes(confusion: Counts) -> Counts:
    """[..., class]"""
    both = _said(confusion) + confusion.sum(-1)
    return ratio(2 * _hits(confusion), both, 0.0)


def occurrences(confusion: Counts) -> Counts:
    """How many rows have each class in gold or verdict, [..., class]."""
    return np.asarray(_said(confusion) + confusion.sum(-1) - _hits(confusion))


def mean_of_classes(per_class: Counts, occurs: Counts) -> Counts:
    """Of [..., class], over those that occur."""
    return ratio((per_class * (occurs > 0)).sum(-1), (occurs > 0).sum(-1))


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


def figures(metrics: dict[str, Metric], cells: Cells) -> Json:
    """Each metric of the cells with its interval; the same bytes each time."""
    return {name: figure(metric, cells) for name, metric in metrics.items()}


def figure(metric: Metric, cells: Cells) -> Json:
    """A metric of the cells with its 95 % interval: that of a share of rows, or else the resamples'
    percentiles, which say nothing where they are all alike."""
    if metric in _MACRO:
        return figure_of_classes(metric, cells, questions_with(occurrences, cells))
    of_share = metric in _SHARES
    ends = _ends_of_share(metric, cells) if of_share else _percentiles(metric(cells.resampled))
    return {"value": number(metric(cells.counts)), "ci95": [number(end) for end in ends]}


def figure_of_classes(metric: Metric, cells: Cells, n_questions: Counts) -> Json:
    """The same of a mean over classes that so many questions have: where few have one of them there
    is no interval, since resamples would hardly tell how it may be off, and those without it would
    be means over the others."""
    enough = (n_questions[n_questions > 0] >= _FEWEST).all()
    ends = _percentiles(metric(cells.resampled)) if enough else (np.nan, np.nan)
    return {"value": number(metric(cells.counts)), "ci95": [number(end) for end in ends]}


def questions_with(occurs: Metric, cells: Cells) -> Counts:
    """How many questions have each of the classes that `occurs` counts, [class]."""
    asked, in_row = cells.questions, _of_each_row(occurs, cells) > 0
    held = np.zeros((len(asked.times), in_row.shape[-1]), bool)
    np.logical_or.at(held, asked.kind, in_row)
    return np.asarray(asked.times @ held)


def figure_of_gain(first: Metric, other: Metric, cells: Cells) -> Json:
    """How much larger one share of rows is than another of the same rows, with its 95 %
    interval."""
    asked = cells.questions
    hits = [_of_each_row(metric, cells) for metric in (first, other)]
    met = np.isfinite(hits[0]) & (asked.times[asked.kind] > 0)
    low, high = gain_interval(hits[0][met], hits[1][met], asked.kind[met], asked.times)
    gain = other(cells.counts) - first(cells.counts)
    return {"value": number(gain), "ci95": [number(low), number(high)]}


def _percentiles(values: Counts) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, [2.5, 97.5]) if len(values) else (np.nan, np.nan)
    return (low, high) if low < high else (np.nan, np.nan)


def _ends_of_share(metric: Metric, cells: Cells) -> tuple[float, float]:
    """A row may count half, as a tie does in a win rate: it varies no more than one that counts or
    does not."""
    asked, hit = cells.questions, _of_each_row(metric, cells)
    met = np.isfinite(hit) & (asked.times[asked.kind] > 0)
    kind, hit = asked.kind[met], hit[met]
    kinds = len(asked.times)
    hits, rows = (np.bincount(kind, weights, kinds) for weights in (hit, None))
    return share_interval(hits, rows, asked.times * (rows > 0))


def _of_each_row(metric: Metric, cells: Cells) -> Counts:
    """What a metric makes of each row of the questions by itself, [E, ...]."""
    asked = cells.questions
    size = int(np.prod(asked.shape))
    in_each_cell = metric(cells.change(np.eye(size).reshape(size, *asked.shape)))
    return np.asarray(in_each_cell[asked.cell])


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


def hit_rate_with_ties(cells: Counts) -> Counts:
    """Share of the right and half of the ties among [..., (wrong, right, tie)]."""
    return ratio(cells[..., 1] + cells[..., 2] / 2, cells.sum(-1))


@cache
def share_of(place: int) -> Metric:
    """Share of one outcome among [..., outcome]."""
    return lambda cells: ratio(cells[..., place], cells.sum(-1))


# of rows, each of which counts, or half, or does not
_SHARES = {agreement, consistency, bias_first, bias_second, win_rate, hit_rate}
_SHARES |= {hit_rate_with_ties, *map(share_of, range(3))}
_MACRO = {precision, recall, f1}
_FEWEST = 20  # questions of a class


def row_at(place: int) -> Metric:
    """One row of [..., row, outcome]."""
    return lambda cells: cells[..., place, :]


def rows_from(place: int) -> Metric:
    """The sum of all rows of [..., row, outcome] from one on."""
    return lambda cells: cells[..., place:, :].sum(-2)
