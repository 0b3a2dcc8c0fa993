"""The figures of judging, from counts of outcomes: pure functions with bootstrap intervals.

All figures depend on how often each combination of outcomes occurred, so that a million
judgments are a handful of cells, and a bootstrap resample is one multinomial draw.
Classes are 1, 2 and tie, in that order.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jlm_cli.records import VERDICTS, Json, Verdict, verdict_of

Counts = NDArray[np.float64]
Metric = Callable[[Counts], Counts]

RESAMPLES = 1000
TIE_WITHIN = 3  # characters; the longest-answer baseline calls such a pair a tie
_INDEX = {verdict: place for place, verdict in enumerate(VERDICTS)}


def agreement(confusion: Counts) -> Counts:
    """Share of verdicts equal to gold. `confusion` is [..., gold, verdict]."""
    return _ratio(np.trace(confusion, axis1=-2, axis2=-1), confusion.sum((-2, -1)))


def precision(confusion: Counts) -> Counts:
    """Macro precision over the classes that occur in gold or verdicts."""
    return _macro(confusion, _ratio(_hits(confusion), confusion.sum(-2), 0.0))


def recall(confusion: Counts) -> Counts:
    """Macro recall over the classes that occur in gold or verdicts."""
    return _macro(confusion, _ratio(_hits(confusion), confusion.sum(-1), 0.0))


def f1(confusion: Counts) -> Counts:
    """Macro F1 over the classes that occur in gold or verdicts."""
    both = confusion.sum(-2) + confusion.sum(-1)
    return _macro(confusion, _ratio(2 * _hits(confusion), both, 0.0))


def kappa(confusion: Counts) -> Counts:
    """Cohen's kappa: agreement beyond that of chance."""
    n = confusion.sum((-2, -1))
    chance = _ratio((confusion.sum(-1) * confusion.sum(-2)).sum(-1), n**2)
    return _ratio(agreement(confusion) - chance, 1 - chance)


def consistency(moves: Counts) -> Counts:
    """Share of verdicts that stay under a swap of the answers. `moves` is [..., given, swapped]."""
    return agreement(moves)


def bias_first(moves: Counts) -> Counts:
    """Share where swapping moved the outcome toward whichever answer was shown first."""
    toward = moves[..., 0, 1] + moves[..., 0, 2] + moves[..., 2, 1]
    return _ratio(toward, moves.sum((-2, -1)))


def bias_second(moves: Counts) -> Counts:
    """Share where swapping moved the outcome toward whichever answer was shown second."""
    toward = moves[..., 1, 0] + moves[..., 1, 2] + moves[..., 2, 0]
    return _ratio(toward, moves.sum((-2, -1)))


def delta_bias(moves: Counts) -> Counts:
    return np.abs(bias_first(moves) - bias_second(moves))


def win_rate(outcomes: Counts) -> Counts:
    """Wins and half the ties. `outcomes` is [..., (wins, losses, ties)]."""
    return _ratio(outcomes[..., 0] + outcomes[..., 2] / 2, outcomes.sum(-1))


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
    "delta_bias": delta_bias,
}


def _hits(confusion: Counts) -> Counts:
    return np.diagonal(confusion, axis1=-2, axis2=-1)


def _ratio(part: Counts, whole: Counts, empty: float = np.nan) -> Counts:
    part, whole = np.broadcast_arrays(np.asarray(part, float), np.asarray(whole, float))
    result: Counts = np.divide(part, whole, out=np.full(part.shape, empty), where=whole != 0)
    return result


def _macro(confusion: Counts, per_class: Counts) -> Counts:
    occurs = (confusion.sum(-2) + confusion.sum(-1)) > 0
    return _ratio((per_class * occurs).sum(-1), occurs.sum(-1))


def figures(metrics: dict[str, Metric], counts: Counts) -> Json:
    """Each metric of the counts with its bootstrap interval; the same bytes each time."""
    n = int(counts.sum())
    shares = (counts / max(n, 1)).ravel()
    draws = np.random.default_rng(0).multinomial(n, shares, RESAMPLES) if n else shares[None]
    resampled = draws.reshape(-1, *counts.shape).astype(np.float64)
    return {name: figure(metric, counts, resampled) for name, metric in metrics.items()}


def figure(metric: Metric, counts: Counts, resampled: Counts) -> Json:
    values = metric(resampled)
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, [2.5, 97.5]) if len(values) else (np.nan, np.nan)
    return {"value": number(metric(counts)), "ci95": [number(low), number(high)]}


def number(value: Any) -> float | None:
    """Rounded, and None where there is no such number (JSON has no NaN)."""
    return round(float(value), 6) if np.isfinite(value) else None


def longest_answer(answers: list[str], tie_within: int = TIE_WITHIN) -> Verdict:
    """The baseline that looks at nothing but length, in characters."""
    first, second = map(len, answers)
    return "tie" if abs(first - second) <= tie_within else verdict_of((first, second))


@dataclass
class Tally:
    """Counts of outcomes, gathered record by record."""

    n_judged: int = 0
    n_error: int = 0
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    cells: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    models: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    errors: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)

    def add(self, record: Json) -> None:
        """Count an output record of a pair (one that holds its sample)."""
        if "error" in record:
            self.n_error += 1
            self.errors[record["error"]["code"]] += 1
            return
        self.n_judged += 1
        self.flags.update(flag.partition(":")[0] for flag in record["flags"])
        verdict: Verdict = record["verdict"]
        self.verdicts[verdict] += 1
        sample = record["sample"]
        final = verdict
        if "swapped" in record:
            final = record["combined"]["verdict"]
            self.cells["moves", verdict, record["swapped"]["verdict"]] += 1
        if gold := _gold_verdict(record["gold"]):
            self.cells["verdict", gold, verdict] += 1
            self.cells["combined", gold, final] += 1
            self.cells["longest", gold, longest_answer(sample["answers"])] += 1
        for model, outcome in zip(sample["models"] or (), _outcomes(final), strict=False):
            self.models[model][outcome] += 1

    def counts(self, kind: str) -> Counts:
        """[first, second] counts of one kind of cell."""
        table = np.zeros((3, 3))
        for (name, row, column), count in self.cells.items():
            if name == kind:
                table[_INDEX[row], _INDEX[column]] += count  # type: ignore[index]
        return table


def _gold_verdict(gold: Any) -> Verdict | None:
    if isinstance(gold, list):
        return verdict_of(tuple(gold)) if len(gold) == 2 else None
    return gold  # type: ignore[no-any-return]


def _outcomes(verdict: Verdict) -> tuple[str, str]:
    return {"1": ("win", "loss"), "2": ("loss", "win"), "tie": ("tie", "tie")}[verdict]


def summary_of(tally: Tally, swap: bool) -> Json:
    """The measured part of the summary; sections that the input cannot fill are left out."""
    parts: Json = {"verdicts": {verdict: tally.verdicts[verdict] for verdict in VERDICTS}}
    confusion = tally.counts("verdict")
    if confusion.sum():
        parts["objective"] = objective(confusion)
    if swap and tally.n_judged:
        moves = tally.counts("moves")
        parts["reliability"] = {**figures(RELIABILITY, moves), "n": int(moves.sum())}
        if confusion.sum():
            parts["combined"] = figures(COMBINED, tally.counts("combined"))
    if tally.models:
        parts["win_rate"] = {name: _win_rate(tally.models[name]) for name in sorted(tally.models)}
    if confusion.sum():
        parts["baselines"] = baselines(confusion.sum(1), tally.counts("longest"))
    return parts


def objective(confusion: Counts) -> Json:
    """Agreement with gold, as in Table 1 of the paper, with kappa and the confusion matrix."""
    rows = {
        gold: {verdict: int(confusion[i, j]) for j, verdict in enumerate(VERDICTS)}
        for i, gold in enumerate(VERDICTS)
    }
    return {**figures(OBJECTIVE, confusion), "n": int(confusion.sum()), "confusion": rows}


def baselines(gold: Counts, longest: Counts) -> Json:
    """What judges that read nothing score on the same rows. `gold` [3] counts the classes."""

    def always(place: int) -> Counts:
        table = np.zeros((3, 3))
        table[:, place] = gold
        return table

    return {
        "longest_answer": objective(longest),
        "first_answer": objective(always(0)),
        "majority": objective(always(int(gold.argmax()))),
    }


def _win_rate(outcomes: Counter[str]) -> Json:
    counts = np.array([outcomes["win"], outcomes["loss"], outcomes["tie"]], float)
    return {**figures({"win_rate": win_rate}, counts)["win_rate"], "n": int(counts.sum())}


def tally_of(records: Iterable[Json]) -> Tally:
    tally = Tally()
    for record in records:
        tally.add(record)
    return tally
