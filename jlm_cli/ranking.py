"""`rank`: two or more answers put in order, by lists, rotated lists, or all pairs.

The order of lists and pairs comes from the answers' own text where they are permuted, so that the
result does not depend on the order of the input.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from statistics import fmean

import numpy as np

from jlm_cli.config import Method
from jlm_cli.errors import RowError
from jlm_cli.modes import Reading, Templates, View, by_answer
from jlm_cli.prompts import Template
from jlm_cli.records import Json, Sample, rounded

Ranking = list[int | list[int]]  # answer numbers, best first; ties as lists


@dataclass(frozen=True)
class RankMode:
    """`permute` lists, each a rotation of the answers' canonical order (0: the order given);
    `compare` judges pairs as well."""

    main: Templates
    method: Method
    permute: int
    compare: bool

    @property
    def templates(self) -> tuple[Template, ...]:
        return self.main.all

    def views(self, sample: Sample) -> list[View]:
        if (n := len(sample.answers)) < 2:
            raise RowError("n-answers", f"field answers: rank takes two or more, here is {n}")
        template = self.main.choose(sample)
        if self.method == "pairwise":
            return _pairs(template, sample)
        lists = _rotations(sample, self.permute) if self.permute else [_given(sample)]
        views = [View(template, shown) for shown in lists]
        return views + (_pairs(template, sample) if self.compare and n > 2 else [])

    def smaller_views(self, sample: Sample) -> list[View]:
        if self.method != "auto" or len(sample.answers) == 2:
            return []
        return _pairs(self.main.choose(sample), sample)

    def record(self, sample: Sample, readings: Sequence[Reading]) -> Json:
        n = len(sample.answers)
        if self.method == "pairwise" or len(readings[0].view.shown) < n:
            return _said(sample, readings, "pairwise")
        lists = [reading for reading in readings if len(reading.view.shown) == n]
        pairs = readings[len(lists) :]
        record = _said(sample, lists, "listwise")
        if len(lists) > 1:
            record |= _stability(lists)
        if pairs:
            said = _said(sample, pairs, "pairwise")
            record["pairwise"] = {key: said[key] for key in ("scores", "expected", "ranking")}
        return record


def _given(sample: Sample) -> tuple[int, ...]:
    return tuple(range(1, len(sample.answers) + 1))


def canonical(sample: Sample) -> tuple[int, ...]:
    """Answer numbers in the order of the answers' hashes: the same for any order of the input."""
    digests = [hashlib.sha256(answer.encode()).digest() for answer in sample.answers]
    return tuple(sorted(_given(sample), key=lambda number: digests[number - 1]))


def _rotations(sample: Sample, k: int) -> list[tuple[int, ...]]:
    """`k` rotations of the canonical order (no more than there are answers), spread evenly."""
    order = canonical(sample)
    n = len(order)
    starts = [place * n // k for place in range(k)] if k < n else list(range(n))
    return [order[start:] + order[:start] for start in starts]


def _pairs(template: Template, sample: Sample) -> list[View]:
    """Every pair in both orders, so that the order of the input cannot matter."""
    pairs = list(combinations(canonical(sample), 2))
    return [View(template, shown) for a, b in pairs for shown in ((a, b), (b, a))]


def _said(sample: Sample, readings: Sequence[Reading], method: str) -> Json:
    """The means over readings; a single list is ranked by its score line itself."""
    scores, expected = _means(sample, readings, greedy=True), _means(sample, readings, greedy=False)
    single = len(readings) == 1
    return {
        "method": method,
        "scores": rounded(scores),
        "expected": rounded(expected),
        "ranking": ranking_of(rounded(scores if single else expected)),
        "text": readings[0].line.text if single else None,
        "reason": readings[0].reason if single else None,
    }


def _means(sample: Sample, readings: Sequence[Reading], greedy: bool) -> tuple[float, ...]:
    """The mean score of each answer; of several readings, answers of the same text share theirs."""
    each = [by_answer(reading.view, _values(reading, greedy)) for reading in readings]
    if len(each) == 1:
        return tuple(each[0][number] for number in _given(sample))
    found: dict[str, list[float]] = defaultdict(list)
    for number, value in chain.from_iterable(values.items() for values in each):
        found[sample.answers[number - 1]].append(value)
    return tuple(fmean(found[answer]) for answer in sample.answers)


def _values(reading: Reading, greedy: bool) -> tuple[float, ...]:
    values = reading.line.scores if greedy else reading.line.expected()
    assert values is not None  # a template that writes verdicts is refused for rank
    return values


def ranking_of(scores: Sequence[float]) -> Ranking:
    """Answer numbers, best first; those of equal scores in one list."""
    places: dict[float, list[int]] = defaultdict(list)
    for number, score in enumerate(scores, start=1):
        places[score].append(number)
    best_first = [places[score] for score in sorted(places, reverse=True)]
    return [same if len(same) > 1 else same[0] for same in best_first]


def _stability(lists: Sequence[Reading]) -> Json:
    """How much the place in the list matters.

    `position_bias`: by how much answers score above their own mean at each place; `stability`:
    the mean Kendall τ-b between the lists (1: the same order everywhere; null: no order at all).
    """
    table = np.array([list(_ordered(reading)) for reading in lists])  # [lists, answers]
    above = table - table.mean(0)
    n = table.shape[1]
    bias = [
        float(np.mean([above[k, r.view.shown[place] - 1] for k, r in enumerate(lists)]))
        for place in range(n)
    ]
    taus = [tau for a, b in combinations(table, 2) if (tau := kendall_tau(a, b)) is not None]
    return {
        "permutations": len(lists),
        "position_bias": rounded(tuple(bias)),
        "stability": round(fmean(taus), 6) if taus else None,
    }


def _ordered(reading: Reading) -> tuple[float, ...]:
    values = by_answer(reading.view, _values(reading, greedy=False))
    return tuple(values[number] for number in sorted(values))


def kendall_tau(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Kendall's τ-b of two scorings of the same answers; None where one of them has no order."""
    i, j = np.triu_indices(len(a), 1)
    x = np.sign(np.asarray(a)[i] - np.asarray(a)[j])
    y = np.sign(np.asarray(b)[i] - np.asarray(b)[j])
    ordered = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return float((x * y).sum()) / ordered if ordered else None


def places(ranking: Sequence[int | list[int]]) -> dict[int, float]:
    """The place of each answer, from 1; ties share the mean of theirs."""
    found: dict[int, float] = {}
    for entry in ranking:
        same = entry if isinstance(entry, list) else [entry]
        found |= dict.fromkeys(same, len(found) + (len(same) + 1) / 2)
    return found


def n_moved(one: Sequence[int | list[int]], other: Sequence[int | list[int]]) -> int:
    """How many answers have another place in the second ranking (Table 10: 0, 2, 3, …)."""
    first, second = places(one), places(other)
    return sum(first[number] != second[number] for number in first)
