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

from jlm_cli.intervals import Codes, cells_of, cells_of_counts, student
from jlm_cli.measuring.columns import PairTally, asked_by, checksum, clusters_of
from jlm_cli.measuring.correlations import kendall, spearman
from jlm_cli.measuring.strengths import Wins, groups_of, met_in, strengths_of, win_rates
from jlm_cli.metrics import figures, hit_rate, number, share_of
from jlm_cli.ranking import n_moved, places
from jlm_cli.records import Json

SCORES = 0.0, 10.0  # the scale that judges have, unless a template has another
_ALIKE = 1e-18  # of sums that differ by rounding alone


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
            for name, group in zip(
                names, groups_of(met_in(wins.of(wins.times))).tolist(), strict=True
            ):
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
        rates, strengths = win_rates(wins), strengths_of(wins)
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


# what counts the records of each command
TALLIES: dict[str, Callable[[], PairTally | Tally]] = {
    "judge": PairTally,
    "grade": GradeTally,
    "rank": RankTally,
}
