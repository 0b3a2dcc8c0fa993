"""What grades and rankings come to: figures of scores, and a leaderboard of models.

Like the figures of pairs they are made from counts: of (gold, score) for grades, of whole
outcomes (which models stood where) for rankings, so that a bootstrap resamples counts, and a
ranking counts as one observation, not as many pairs.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jlm_cli.intervals import (
    Codes,
    Counts,
    Metric,
    cells_of,
    cells_of_counts,
    n_resamples,
    share_interval,
    student,
)
from jlm_cli.measuring.columns import PairTally, asked_by, checksum, clusters_of
from jlm_cli.metrics import figures, hit_rate, number, ratio, share_of
from jlm_cli.ranking import n_moved, places
from jlm_cli.records import Json

SCORES = 0.0, 10.0  # the scale that judges have, unless a template has another
_ROUNDS, _SETTLED, _MOST_STEP = 100, 1e-9, 2.0  # of Newton's method for Bradley-Terry
_ALIKE = 1e-18  # of sums that differ by rounding alone
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
    """A mean of rows on a scale with such bounds."""

    values: array[float] = field(default_factory=lambda: array("d"))
    questions: array[int] = field(default_factory=lambda: array("q"))  # checksums, beside them
    bounds: tuple[float, float] = SCORES

    def add(self, value: float, question: int) -> None:
        self.values.append(value)
        self.questions.append(question)

    def json(self) -> Json:
        if not (n := len(self.values)):
            return {"value": None, "ci95": [None, None], "n": 0}
        clusters = clusters_of(np.array(self.questions, np.int64))
        return {**mean_of(np.array(self.values), clusters, self.bounds), "n": n}


def mean_of(values: Codes, clusters: Codes | None, bounds: tuple[float, float]) -> Json:
    """The mean of values [N] with its 95 % interval: Student's, over the questions that they ask,
    and cut at the bounds of their scale where all are within."""
    mean = math.fsum(values) / len(values)  # the same in any order
    off = values - mean if clusters is None else np.bincount(clusters, values - mean)
    half, asked = np.nan, len(off)
    spread = (off**2).sum()
    if asked > 1 and spread > _ALIKE * (values**2).sum():  # else nothing is seen to vary
        half = student(asked - 1) * np.sqrt(asked / (asked - 1) * spread) / len(values)
    ends = np.array([mean - half, mean + half])
    if bounds[0] <= values.min() and values.max() <= bounds[1]:
        ends = ends.clip(*bounds)
    return {"value": number(mean), "ci95": [number(end) for end in ends]}


@dataclass
class GradeTally(Tally):
    """Grades: their spread, and how they go with gold."""

    scores: Counter[float] = field(default_factory=Counter)
    passed: array[int] = field(default_factory=lambda: array("b"))
    asked: array[int] = field(default_factory=lambda: array("q"))  # checksums, beside them
    labels: Counter[str] = field(default_factory=Counter)
    against: array[float] = field(default_factory=lambda: array("d"))  # gold, score, gold, …
    questions: array[int] = field(default_factory=lambda: array("q"))  # checksums, beside them
    models: defaultdict[str, Mean] = field(default_factory=lambda: defaultdict(Mean))
    all: Mean = field(default_factory=Mean)
    aspects: defaultdict[str, Mean] = field(default_factory=lambda: defaultdict(Mean))

    def add_judged(self, record: Json) -> None:
        score, question = record["score"], _question_of(record)
        self.scores[score] += 1
        expected: Any = record.get("expected", score)
        self.all.add(expected, question)
        if "pass" in record:
            self.passed.append(record["pass"])
            self.asked.append(question)
        if "label" in record:
            self.labels[record["label"]] += 1
        if isinstance(record["gold"], list):
            self.against.extend((record["gold"][0], score))
            self.questions.append(question)
        for model in record["sample"]["models"] or ():
            self.models[model].add(expected, question)
        for name, said in record.get("aspects", {}).items():
            self.aspects[name].add(said["expected"], question)

    def summary(self) -> Json:
        if not self.n_judged:
            return {}
        parts: Json = {
            "scores": {f"{score:.15g}": self.scores[score] for score in sorted(self.scores)},
            "mean": self.all.json(),
        }
        if self.passed:
            asked = clusters_of(np.array(self.asked, np.int64))
            cells = cells_of((2,), [np.array(self.passed)], asked)
            parts |= figures({"pass_rate": hit_rate}, cells)
        if self.labels:
            parts["labels"] = dict(sorted(self.labels.items()))
        if self.against:
            gold, scores = np.array(self.against).reshape(-1, 2).T
            asked = clusters_of(np.array(self.questions, np.int64))
            parts["objective"] = against_gold(gold, scores, asked)
        if self.models:
            parts["mean_score"] = {name: self.models[name].json() for name in sorted(self.models)}
        if self.aspects:
            parts["aspects"] = {name: {"mean": one.json()} for name, one in self.aspects.items()}
        return parts


def _question_of(record: Json) -> int:
    """The checksum of what a record asks."""
    asked = (record.get("sample") or {}).get("question")
    return checksum(asked if isinstance(asked, str) else asked_by(record, record.get("id")))


def against_gold(gold: Codes, scores: Codes, clusters: Codes | None) -> Json:
    """Spearman's ρ, Kendall's τ-b and the mean absolute error of scores [N] against numeric gold
    [N]; rows of one cluster ask the same question."""
    met, cell = np.unique(np.stack([gold, scores]), axis=1, return_inverse=True)
    cells = cells_of((met.shape[1],), [cell.ravel()], clusters)
    with np.errstate(invalid="ignore", divide="ignore"):
        ranks = figures({"spearman": spearman(*met), "kendall": kendall(*met)}, cells)
    error = mean_of(np.abs(gold - scores), clusters, (0.0, np.inf))
    return {**ranks, "mean_absolute_error": error, "n": len(gold)}


def spearman(x: Codes, y: Codes) -> Metric:
    """Rank correlation, with mid-ranks, for counts [..., K] of things with values x and y [K]."""

    def measure(counts: Counts) -> Counts:
        a, b = _ranked(counts, x), _ranked(counts, y)
        apart = np.sqrt((counts * a**2).sum(-1) * (counts * b**2).sum(-1))
        return np.asarray((counts * a * b).sum(-1) / apart)

    return measure


def _ranked(counts: Counts, values: Codes) -> Counts:
    """The mid-rank of each kind of things, less the mean rank."""
    _, place = np.unique(values, return_inverse=True)
    alike = _of_equals(counts, place)
    ranks = np.cumsum(alike, -1) - alike / 2 - counts.sum(-1, keepdims=True) / 2
    return np.asarray(ranks[..., place])


def _of_equals(counts: Counts, place: Codes) -> Counts:
    """Counts [..., K] added up by place [K], of which there are 0, 1, …"""
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(place.max() + 1))
    return np.asarray(np.add.reduceat(counts[..., order], starts, axis=-1))


def kendall(x: Codes, y: Codes) -> Metric:
    """Kendall's τ-b for counts [..., K] of things with values x and y [K]."""
    (_, row), (_, column) = (np.unique(values, return_inverse=True) for values in (x, y))

    def measure(counts: Counts) -> Counts:
        n = counts.sum(-1)
        pairs = n * (n - 1) / 2
        alike = [_of_equals(counts, place) for place in (row, column)]
        tied = [pairs - (same * (same - 1)).sum(-1) / 2 for same in alike]
        flat = counts.reshape(-1, counts.shape[-1])
        net = _concordant(flat, row, column).reshape(n.shape)
        return np.asarray(net / np.sqrt(tied[0] * tied[1]))

    return measure


def _concordant(counts: Counts, row: Codes, column: Codes) -> Counts:
    """Concordant less discordant pairs [R] of counts [R, K]: row by row, each kind of things meets
    those of earlier rows, which a Fenwick tree over columns counts."""
    order, n = np.lexsort((column, row)), int(column.max()) + 1
    weights = np.ascontiguousarray(counts[:, order].T)
    row, column = row[order], column[order]
    tree, net = np.zeros((n + 1, len(counts))), np.zeros(len(counts))
    total = np.zeros(len(counts))

    def upto(place: int) -> Counts:
        found = np.zeros(len(counts))
        while place > 0:
            found += tree[place]
            place &= place - 1
        return found

    ends = np.flatnonzero(np.diff(row, append=row[-1] + 1)) + 1
    start = 0
    for end in ends.tolist():
        for kind in range(start, end):
            at = int(column[kind])
            net += weights[kind] * (upto(at) - (total - upto(at + 1)))
        for kind in range(start, end):
            total += weights[kind]
            at = int(column[kind]) + 1
            while at <= n:
                tree[at] += weights[kind]
                at += at & -at
        start = end
    return net


@dataclass(frozen=True)
class Wins:
    """Wins of M models over each other, by kind of ranking: `times` [K] each occurred, and in the
    one of `row` [E] a `pair` [E] of models (the winner times M, plus the loser) `won` so much."""

    n_models: int
    times: Counts
    row: Codes
    pair: Codes
    won: Counts

    def of(self, times: Codes) -> Counts:
        """Wins of model over model [M, M] where the kinds occur so many times [K]."""
        size = self.n_models**2
        wins = np.bincount(self.pair, self.won * times[self.row], size).astype(float)
        return wins.reshape(self.n_models, self.n_models)


@dataclass
class RankTally(Tally):
    """Rankings: who stands where, how much places matter, lists against pairs."""

    outcomes: Counter[tuple[tuple[str, ...], tuple[float, ...]]] = field(default_factory=Counter)
    scores: defaultdict[str, Mean] = field(default_factory=lambda: defaultdict(Mean))
    moved: Counter[int] = field(default_factory=Counter)
    bias: defaultdict[int, Mean] = field(
        default_factory=lambda: defaultdict(lambda: Mean(bounds=(-10, 10)))
    )
    stability: Mean = field(default_factory=lambda: Mean(bounds=(-1, 1)))
    methods: Counter[str] = field(default_factory=Counter)

    def add_judged(self, record: Json) -> None:
        question = _question_of(record)
        self.methods[record["method"]] += 1
        for place, above in enumerate(record.get("position_bias", ()), start=1):
            self.bias[place].add(above, question)
        if record.get("stability") is not None:
            self.stability.add(record["stability"], question)
        if "pairwise" in record:
            self.moved[n_moved(record["ranking"], record["pairwise"]["ranking"])] += 1
        if names := record["sample"]["models"]:
            stands = places(record["ranking"])
            self.outcomes[tuple(names), tuple(stands[n] for n in sorted(stands))] += 1
            for name, expected in zip(names, record["expected"], strict=True):
                self.scores[name].add(expected, question)

    def summary(self) -> Json:
        parts: Json = {"methods": dict(sorted(self.methods.items()))}
        if self.outcomes:
            names = sorted(self.scores)
            wins = self._wins(names)
            parts["leaderboard"] = self._leaderboard(names, wins)
            groups: defaultdict[int, list[str]] = defaultdict(list)
            for name, group in zip(names, _groups(_met(wins.of(wins.times))).tolist(), strict=True):
                groups[group].append(name)
            if len(groups) > 1:  # strengths compare only within a group
                parts["leaderboard_groups"] = list(groups.values())
        if self.bias:
            parts["position_bias"] = [self.bias[place].json() for place in sorted(self.bias)]
            parts["stability"] = self.stability.json()
        if self.moved:
            parts["compare"] = compared(self.moved)
        return parts

    def _leaderboard(self, names: list[str], wins: Wins) -> Json:
        """By model, strongest first: mean expected score, win rate, Bradley-Terry strength."""
        rates, strengths = _win_rates(wins), _strengths(wins)
        board = {
            name: {
                "mean_score": self.scores[name].json(),
                "win_rate": rates[place],
                "bradley_terry": strengths[place],
            }
            for place, name in enumerate(names)
        }
        order = sorted(names, key=lambda name: (-board[name]["bradley_terry"]["value"], name))
        return {name: board[name] for name in order}

    def _wins(self, names: list[str]) -> Wins:
        index = {name: place for place, name in enumerate(names)}
        outcomes = sorted(self.outcomes)
        rows, pairs, won = [], [], []
        for row, (models, stands) in enumerate(outcomes):
            model = np.array([index[name] for name in models])
            a, b = np.nonzero(model[:, None] != model)
            place = np.array(stands)
            rows.append(np.full(len(a), row))
            pairs.append(model[a] * len(names) + model[b])
            won.append((place[a] < place[b]) + (place[a] == place[b]) / 2)
        times = np.array([self.outcomes[outcome] for outcome in outcomes], float)
        return Wins(len(names), times, *map(np.concatenate, (rows, pairs, won)))


def compared(moved: Counter[int]) -> Json:
    """Lists against pairs (Table 10): alike, two answers in other places, three of them."""
    counts = np.array([moved[0], moved[2], moved[3], sum(moved.values())], float)
    counts[3] -= counts[:3].sum()
    named = ("consistency", "error_rate_2", "error_rate_3")
    metrics = {name: share_of(place) for place, name in enumerate(named)}
    return {**figures(metrics, cells_of_counts(counts)), "n": int(counts.sum())}


def bradley_terry(met: NDArray[np.bool_]) -> Metric:
    """Log strengths [..., M] from wins [..., M, M] of row over column, where `met` [M, M] says who
    met whom at all; ties are half a win each.

    The most likely ones, by Newton's method, under a weak prior: each two that met have one more
    win and one more loss, halved, so that a model that a resample leaves out keeps a strength. The
    mean is 0 within each group of models that met.
    """
    group = _groups(met)
    mean = (group[:, None] == group) / (group[:, None] == group).sum(1, keepdims=True)

    def measure(wins: Counts) -> Counts:
        wins = wins + _PRIOR * met
        games = wins + np.swapaxes(wins, -1, -2)
        strength = np.zeros(wins.shape[:-1])
        for _ in range(_ROUNDS):
            beats = 1 / (1 + np.exp(strength[..., None, :] - strength[..., :, None]))
            slope = (wins - games * beats).sum(-1)
            weight = games * beats * (1 - beats)
            bend = np.eye(len(met)) * weight.sum(-1)[..., None] - weight + mean
            step = np.linalg.solve(bend, slope[..., None])[..., 0]
            strength = strength + np.clip(step, -_MOST_STEP, _MOST_STEP)
            if np.abs(step).max() < _SETTLED:
                break
        return np.asarray(strength - strength @ mean.T)

    return measure


def _met(wins: Counts) -> NDArray[np.bool_]:
    met: NDArray[np.bool_] = wins + wins.T > 0
    return met


def _groups(met: NDArray[np.bool_]) -> Codes:
    """The group of each model [M], named by its first: models that met, and those that these met,
    and so on."""
    reached = met | np.eye(len(met), dtype=bool)
    for _ in range(len(met).bit_length()):
        reached = reached @ reached
    first: Codes = reached.argmax(1)
    return first


def _win_rates(wins: Wins) -> list[Json]:
    """Of each model over all that it met, ties as halves; a ranking is one observation."""
    return [_win_rate(wins, model) for model in range(wins.n_models)]


def _win_rate(wins: Wins, model: int) -> Json:
    mine, kinds = wins.pair // wins.n_models == model, len(wins.times)
    won = np.bincount(wins.row[mine], wins.won[mine], kinds)
    met = np.bincount(wins.row[mine], minlength=kinds)
    rate = ratio((won * wins.times).sum(), (met * wins.times).sum())
    ends = share_interval(won, met, wins.times * (met > 0))
    return {"value": number(rate), "ci95": [number(end) for end in ends]}


def _strengths(wins: Wins) -> list[Json]:
    """Bradley-Terry's, of each model, with the percentiles of a bootstrap over rankings. That of a
    model whose wins do not vary has none: its resamples only say how often it was drawn."""
    n, times = int(wins.times.sum()), n_resamples(wins.n_models**2)
    draws, seen = np.random.default_rng(0), wins.of(wins.times)
    drawn = np.stack([wins.of(draws.multinomial(n, wins.times / n)) for _ in range(times)])
    strengths, games = bradley_terry(_met(seen)), drawn + np.swapaxes(drawn, -1, -2)
    rates = ratio(drawn.sum(-1), games.sum(-1))
    varies = np.nan_to_num(rates, nan=0).max(0) > np.nan_to_num(rates, nan=1).min(0)
    low, high = np.percentile(strengths(drawn), [2.5, 97.5], axis=0)
    return [
        {
            "value": number(value),
            "ci95": [number(low[n]), number(high[n])] if varies[n] else _NO_ENDS,
        }
        for n, value in enumerate(strengths(seen))
    ]


_NO_ENDS = [None, None]


# what counts the records of each command
TALLIES: dict[str, Callable[[], PairTally | Tally]] = {
    "judge": PairTally,
    "grade": GradeTally,
    "rank": RankTally,
}
