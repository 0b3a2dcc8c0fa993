"""What grades and rankings come to: figures of scores, and a leaderboard of models.

Like the figures of pairs they are made from counts: of (gold, score) for grades, of whole
outcomes (which models stood where) for rankings, so that a bootstrap resamples counts, and a
ranking counts as one observation, not as many pairs.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jlm_cli.columns import PairTally, checksum, clusters_of
from jlm_cli.metrics import (
    RESAMPLES,
    Codes,
    Counts,
    Metric,
    cells_of,
    cells_of_counts,
    figures,
    number,
)
from jlm_cli.ranking import n_moved, places
from jlm_cli.records import Json

_ROUNDS = 100  # of the Bradley-Terry iteration, which settles long before
_PRIOR = 0.5  # a win and a loss that nobody saw, so that no strength is infinite


@dataclass
class Tally:
    """How many records of each kind; `add` counts one, `summary` is the measured part."""

    n_judged: int = 0
    n_error: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)

    def add(self, record: Json) -> None:
        if "error" in record:
            self.n_error += 1
            self.errors[record["error"]["code"]] += 1
            return
        self.n_judged += 1
        self.flags.update(flag.partition(":")[0] for flag in record["flags"])
        self.add_judged(record)

    def add_judged(self, record: Json) -> None:
        raise NotImplementedError

    def summary(self) -> Json:
        raise NotImplementedError


@dataclass
class Mean:
    """A running mean with its normal 95 % interval."""

    n: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        self.n += 1
        self.total += value
        self.squares += value * value

    def json(self) -> Json:
        if not self.n:
            return {"value": None, "ci95": [None, None], "n": 0}
        mean = self.total / self.n
        spread = max(0.0, self.squares / self.n - mean**2) * self.n / max(self.n - 1, 1)
        half = 1.96 * float(np.sqrt(spread / self.n)) if self.n > 1 else np.nan
        ends = [number(mean - half), number(mean + half)]
        return {"value": number(mean), "ci95": ends, "n": self.n}


@dataclass
class GradeTally(Tally):
    """Grades: their spread, and how they go with gold."""

    scores: Counter[float] = field(default_factory=Counter)
    passed: Counter[bool] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    against: array[float] = field(default_factory=lambda: array("d"))  # gold, score, gold, …
    questions: array[int] = field(default_factory=lambda: array("q"))  # checksums, beside them
    models: defaultdict[str, Mean] = field(default_factory=lambda: defaultdict(Mean))

    def add_judged(self, record: Json) -> None:
        score = record["score"]
        self.scores[score] += 1
        if "pass" in record:
            self.passed[record["pass"]] += 1
        if "label" in record:
            self.labels[record["label"]] += 1
        if isinstance(record["gold"], list):
            self.against.extend((record["gold"][0], score))
            self.questions.append(checksum(record["sample"].get("question")))
        for model in record["sample"]["models"] or ():
            self.models[model].add(record["expected"])

    def summary(self) -> Json:
        if not self.n_judged:
            return {}
        parts: Json = {
            "scores": {f"{score:g}": self.scores[score] for score in sorted(self.scores)}
        }
        if self.passed:
            counts = np.array([self.passed[True], self.passed[False]], float)
            parts |= figures(
                {"pass_rate": lambda c: c[..., 0] / c.sum(-1)}, cells_of_counts(counts)
            )
        if self.labels:
            parts["labels"] = dict(sorted(self.labels.items()))
        if self.against:
            gold, scores = np.array(self.against).reshape(-1, 2).T
            asked = clusters_of(np.array(self.questions, np.int64))
            parts["objective"] = against_gold(gold, scores, asked)
        if self.models:
            parts["mean_score"] = {name: self.models[name].json() for name in sorted(self.models)}
        return parts


def against_gold(gold: Codes, scores: Codes, clusters: Codes | None) -> Json:
    """Spearman's ρ, Kendall's τ-b and the mean absolute error of scores [N] against numeric gold
    [N]; rows of one cluster ask the same question."""
    (golds, rows), (values, columns) = (np.unique(x, return_inverse=True) for x in (gold, scores))
    table = cells_of((len(golds), len(values)), [rows, columns], clusters)
    apart = np.abs(np.subtract.outer(golds, values))

    def error(counts: Counts) -> Counts:
        return np.asarray((counts * apart).sum((-2, -1)) / counts.sum((-2, -1)))

    metrics: dict[str, Metric] = {
        "spearman": spearman,
        "kendall": kendall,
        "mean_absolute_error": error,
    }
    with np.errstate(invalid="ignore", divide="ignore"):
        return {**figures(metrics, table), "n": table.n}


def spearman(table: Counts) -> Counts:
    """Rank correlation of the rows and columns of counts [..., rows, columns], with mid-ranks."""
    n = table.sum((-2, -1))
    rows, columns = table.sum(-1), table.sum(-2)
    x = np.cumsum(rows, -1) - rows / 2 - n[..., None] / 2
    y = np.cumsum(columns, -1) - columns / 2 - n[..., None] / 2
    together = np.einsum("...ij,...i,...j->...", table, x, y)
    apart = np.sqrt((rows * x**2).sum(-1) * (columns * y**2).sum(-1))
    return np.asarray(together / apart)


def kendall(table: Counts) -> Counts:
    """Kendall's τ-b of the rows and columns of counts [..., rows, columns]."""
    n = table.sum((-2, -1))
    concordant = (table * _beyond(table)).sum((-2, -1))
    discordant = (table * _beyond(table[..., ::-1])[..., ::-1]).sum((-2, -1))
    pairs = n * (n - 1) / 2
    tied = [pairs - (side * (side - 1)).sum(-1) / 2 for side in (table.sum(-1), table.sum(-2))]
    return np.asarray((concordant - discordant) / np.sqrt(tied[0] * tied[1]))


def _beyond(table: Counts) -> Counts:
    """For each cell the counts in later rows and later columns."""
    upward = np.cumsum(np.cumsum(table[..., ::-1, ::-1], -2), -1)[..., ::-1, ::-1]
    beyond = np.zeros_like(table)
    beyond[..., :-1, :-1] = upward[..., 1:, 1:]
    return beyond


@dataclass
class RankTally(Tally):
    """Rankings: who stands where, how much places matter, lists against pairs."""

    outcomes: Counter[tuple[tuple[str, ...], tuple[float, ...]]] = field(default_factory=Counter)
    scores: defaultdict[str, Mean] = field(default_factory=lambda: defaultdict(Mean))
    moved: Counter[int] = field(default_factory=Counter)
    bias: defaultdict[int, Mean] = field(default_factory=lambda: defaultdict(Mean))
    stability: Mean = field(default_factory=Mean)
    methods: Counter[str] = field(default_factory=Counter)

    def add_judged(self, record: Json) -> None:
        self.methods[record["method"]] += 1
        for place, above in enumerate(record.get("position_bias", ()), start=1):
            self.bias[place].add(above)
        if record.get("stability") is not None:
            self.stability.add(record["stability"])
        if "pairwise" in record:
            self.moved[n_moved(record["ranking"], record["pairwise"]["ranking"])] += 1
        if names := record["sample"]["models"]:
            stands = places(record["ranking"])
            self.outcomes[tuple(names), tuple(stands[n] for n in sorted(stands))] += 1
            for name, expected in zip(names, record["expected"], strict=True):
                self.scores[name].add(expected)

    def summary(self) -> Json:
        parts: Json = {"methods": dict(sorted(self.methods.items()))}
        if self.outcomes:
            parts["leaderboard"] = self.leaderboard()
        if self.bias:
            parts["position_bias"] = [self.bias[place].json() for place in sorted(self.bias)]
            parts["stability"] = self.stability.json()
        if self.moved:
            parts["compare"] = compared(self.moved)
        return parts

    def leaderboard(self) -> Json:
        """By model, strongest first: mean score, win rate, Bradley-Terry strength."""
        names = sorted(self.scores)
        rate, strength = _intervals(*self._wins(names))
        board = {
            name: {
                "mean_score": self.scores[name].json(),
                "win_rate": {key: rate[key][place] for key in rate},
                "bradley_terry": {key: strength[key][place] for key in strength},
            }
            for place, name in enumerate(names)
        }
        order = sorted(names, key=lambda name: (-board[name]["bradley_terry"]["value"], name))
        return {name: board[name] for name in order}

    def _wins(self, names: list[str]) -> tuple[Counts, Counts]:
        """How often each outcome occurred [U], and its wins of model over model [U, M, M]."""
        index = {name: place for place, name in enumerate(names)}
        wins = np.zeros((len(self.outcomes), len(names), len(names)))
        for row, (models, stands) in enumerate(self.outcomes):
            for a, place in zip(models, stands, strict=True):
                for b, other in zip(models, stands, strict=True):
                    if a != b:
                        wins[row, index[a], index[b]] += (place < other) + (place == other) / 2
        return np.array(list(self.outcomes.values()), float), wins


def compared(moved: Counter[int]) -> Json:
    """Lists against pairs (Table 10): alike, two answers in other places, three of them."""
    counts = np.array([moved[0], moved[2], moved[3], sum(moved.values())], float)
    counts[3] -= counts[:3].sum()
    named = ("consistency", "error_rate_2", "error_rate_3")
    metrics: dict[str, Metric] = {
        name: (lambda c, place=place: c[..., place] / c.sum(-1))  # type: ignore[misc]
        for place, name in enumerate(named)
    }
    return {**figures(metrics, cells_of_counts(counts)), "n": int(counts.sum())}


def bradley_terry(wins: Counts) -> Counts:
    """Log strengths [..., M], with mean 0, from wins [..., M, M] of row over column; ties are half
    a win each. By minorisation-maximisation (Hunter 2004), with a weak prior."""
    m = wins.shape[-1]
    wins = wins + _PRIOR * (1 - np.eye(m)) * (wins + np.swapaxes(wins, -1, -2) > 0)
    games = wins + np.swapaxes(wins, -1, -2)
    strength = np.ones(wins.shape[:-1])
    for _ in range(_ROUNDS):
        both = strength[..., :, None] + strength[..., None, :]
        strength = wins.sum(-1) / np.maximum((games / both).sum(-1), 1e-12)
        strength /= np.exp(np.log(np.maximum(strength, 1e-12)).mean(-1, keepdims=True))
    return np.asarray(np.log(np.maximum(strength, 1e-12)))


def _intervals(counts: Counts, wins: Counts) -> tuple[dict[str, Any], dict[str, Any]]:
    """Win rates and strengths with their bootstrap intervals, a list with a value per model."""
    n = int(counts.sum())
    draws = np.random.default_rng(0).multinomial(n, counts / n, RESAMPLES).astype(float)
    flat = wins.reshape(len(counts), -1)
    drawn = (draws @ flat).reshape(RESAMPLES, *wins.shape[1:])
    seen = (counts @ flat).reshape(wins.shape[1:])
    found = []
    with np.errstate(invalid="ignore", divide="ignore"):
        for metric in (_win_rates, bradley_terry):
            low, high = np.full((2, wins.shape[-1]), np.nan)
            if n > 1:  # one ranking says nothing about how they vary
                low, high = np.nanpercentile(metric(drawn), [2.5, 97.5], axis=0)
            ends = [[number(a), number(b)] for a, b in zip(low, high, strict=True)]
            found.append({"value": [number(value) for value in metric(seen)], "ci95": ends})
    return found[0], found[1]


def _win_rates(wins: Counts) -> Counts:
    games = wins + np.swapaxes(wins, -1, -2)
    return np.asarray(wins.sum(-1) / games.sum(-1))


# what counts the records of each command
TALLIES: dict[str, Callable[[], PairTally | Tally]] = {
    "judge": PairTally,
    "grade": GradeTally,
    "rank": RankTally,
}
