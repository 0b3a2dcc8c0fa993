"""Judges side by side, on the rows that all of them judged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jlm_cli.errors import InputError
from jlm_cli.intervals import Cells, Codes, Counts, Metric, cells_of
from jlm_cli.measuring.columns import NONE, OTHER, TIE
from jlm_cli.measuring.predictions import Predictions
from jlm_cli.metrics import (
    agreement,
    f1_of_classes,
    figure_of_classes,
    figure_of_gain,
    figures,
    hit_rate,
    kappa,
    mean_of_classes,
    number,
    occurrences,
    questions_with,
)
from jlm_cli.reading.source import first_fields
from jlm_cli.records import VERDICTS, Json, dump


@dataclass(frozen=True)
class Aligned:
    """Some judges' predictions with, for each, its rows of the shared ids in one order, and
    whether it had a row's models the other way round than the first. `measured` names the column
    of the verdicts that are compared: those of the first order, or of both."""

    judges: dict[str, Predictions]
    rows: dict[str, Codes]
    turned: dict[str, NDArray[np.bool_]]
    measured: str

    def verdicts(self, judge: str) -> Codes:
        return self.column(judge, self.measured)

    def p(self, judge: str) -> Codes:
        """Of the verdicts [N, 3]."""
        return self.column(judge, {"verdict": "p", "final": "final_p"}[self.measured])

    def column(self, judge: str, name: str) -> Codes:
        """In the first judge's numbering: verdicts [N], or probabilities [N, 3]."""
        values: Codes = getattr(self.judges[judge].columns, name)[self.rows[judge]]
        turned = self.turned[judge]
        if values.ndim == 1:
            return np.where(turned, OTHER[values], values)
        return np.where(turned[:, None], values[:, [1, 0, TIE]], values)


def align(judges: dict[str, Predictions], measured: str) -> Aligned:
    """Join by id. Raises InputError where two files share none."""
    first, *others = judges.values()
    indexes = [one.index() for one in judges.values()]  # ids must be unique in all of them
    if any(index.with_models for index in indexes):
        indexes = [one.index(with_models=True) for one in judges.values()]
    index = indexes[0]
    places = np.full((len(judges), len(first.ids)), -1, np.int64)
    places[0] = np.arange(len(first.ids))
    turned = np.zeros(places.shape, bool)
    for n, other in enumerate(others, start=1):
        for row, row_id in enumerate(other.ids):
            at = index.find(row_id, other.tally.models_of(row))
            if at is not None:
                places[n, at] = row
                about = other.tally.models_of(row), other.tally.lengths_of(row)
                turned[n, at] = first.tally.stands_turned(at, *about)
        if (places[n] < 0).all():
            raise InputError(f"{other.name}: shares no id with {first.name}")
    shared = (places >= 0).all(0)
    if not shared.any():
        raise InputError(f"{', '.join(one.name for one in judges.values())}: share no id")
    rows = dict(zip(judges, places[:, shared], strict=True))
    return Aligned(judges, rows, dict(zip(judges, turned[:, shared], strict=True)), measured)


def comparison_of(aligned: Aligned) -> Json:
    """Each further judge against the first: paired differences and McNemar's test."""
    first, *others = aligned.judges
    n = len(aligned.rows[first])
    return {
        "n": n,
        "first": first,
        "against": {name: _against(aligned, first, name) for name in others},
        "left_out": {name: len(one.ids) - n for name, one in aligned.judges.items()},
    }


def _against(aligned: Aligned, first: str, other: str) -> Json:
    clusters = _clusters(aligned, first)
    ours, theirs = aligned.verdicts(first), aligned.verdicts(other)
    both = (ours != NONE) & (theirs != NONE)
    if not both.any():
        raise InputError(f"{other}: judged no row that {first} judged")
    same = cells_of((3, 3), [ours[both], theirs[both]], _some(clusters, both))
    found: Json = {
        "same_verdict": {**figures({"agreement": agreement, "kappa": kappa}, same), "n": same.n}
    }
    gold = _gold(aligned)
    measured = both & (gold < NONE)
    if measured.any():
        codes = [gold[measured], ours[measured], theirs[measured]]
        cells = cells_of((3, 3, 3), codes, _some(clusters, measured))
        more = figure_of_gain(_first_right, _other_right, cells)
        found["difference"] = {"agreement": more, "f1": _gain_in_f1(cells), "n": cells.n}
        right = [side[measured] == gold[measured] for side in (ours, theirs)]
        found["mcnemar"] = _mcnemar(right[0], right[1], _some(clusters, measured))
    golds = [aligned.column(judge, "gold") for judge in (first, other)]
    if n_other := int(((golds[0] != golds[1]) & (np.maximum(*golds) < NONE)).sum()):
        found["n_other_gold"] = n_other
    if (gain := _steadier(aligned, first, other, clusters)) is not None:
        found.setdefault("difference", {})["consistency"] = gain
    return found


def _gold(aligned: Aligned) -> Codes:
    """What the first judge's file says, or else the next that knows."""
    gold = np.full(len(next(iter(aligned.rows.values()))), NONE)
    for judge in aligned.judges:
        gold = np.where(gold == NONE, aligned.column(judge, "gold"), gold)
    return gold


def _steadier(aligned: Aligned, first: str, other: str, clusters: Codes | None) -> Json | None:
    """How much more of its verdicts the other keeps under a swap, on rows with both orders."""
    columns = [
        [aligned.column(judge, name) for name in ("verdict", "swapped")] for judge in (first, other)
    ]
    judged = np.all([side != NONE for pair in columns for side in pair], axis=0)
    if not judged.any():
        return None
    stays = [(given == swapped)[judged] * 1 for given, swapped in columns]
    cells = cells_of((2, 2), stays, _some(clusters, judged))
    first_stays, other_stays = (_stays(axis) for axis in (-1, -2))
    return {**figure_of_gain(first_stays, other_stays, cells), "n": cells.n}


def _first_right(cells: Counts) -> Counts:
    """For cells [..., gold, first, other]; so is what follows."""
    return agreement(cells.sum(-1))


def _other_right(cells: Counts) -> Counts:
    return agreement(cells.sum(-2))


def _gain_in_f1(cells: Cells) -> Json:
    """The other judge's F1 less the first's, both over all classes that either has, so that a class
    that just one of them names does not change what the other's is a mean of."""

    def occurs(cells: Counts) -> Counts:
        return np.maximum(occurrences(cells.sum(-1)), occurrences(cells.sum(-2)))

    there = occurs(cells.counts)

    def gain(cells: Counts) -> Counts:
        by_class = f1_of_classes(cells.sum(-2)) - f1_of_classes(cells.sum(-1))
        return mean_of_classes(by_class, there)

    return figure_of_classes(gain, cells, questions_with(occurs, cells))


def _stays(others: int) -> Metric:
    """How often one judge's verdict stays, of cells [..., first, other] added up along the
    other's axis."""
    return lambda cells: hit_rate(cells.sum(others))


def _mcnemar(ours: Codes, theirs: Codes, clusters: Codes | None) -> Json:
    """Whether one judge is right more often than chance would have it: the exact test on the rows
    where just one of them is right. Rows of one question change sides together."""
    ahead = theirs.astype(np.int64) - ours
    only_first, only_other = int((ahead < 0).sum()), int((ahead > 0).sum())
    if clusters is not None:
        _, question = np.unique(clusters, return_inverse=True)
        ahead = np.bincount(question, ahead).astype(np.int64)
    return {
        "only_first_right": only_first,
        "only_other_right": only_other,
        "p": float(f"{sign_test(ahead):.3g}"),
        "by_question": clusters is not None,
    }


_LEAST_P = 1e-300  # a smaller one would be 0, which no chance is


def sign_test(steps: Codes) -> float:
    """How often the sum of whole numbers is as far from 0 or further when fair coins choose their
    signs: exact; for steps of one size the binomial test, else to within 1e-13."""
    sizes, how_many = np.unique(np.abs(steps[steps != 0]), return_counts=True)
    if not len(sizes):
        return 1.0
    if len(sizes) == 1:
        return _binomial_test(int((steps > 0).sum()), int((steps < 0).sum()))
    reach = int(sizes @ how_many)
    n = 2 * reach + 1  # sums from -reach to reach
    angle = 2 * np.pi * np.arange(n) / n
    wave = np.ones(n)
    for size, times in zip(sizes, how_many, strict=True):
        wave *= np.cos(size * angle) ** times
    chance = np.fft.ifft(wave).real.clip(0)  # of a sum of 0, 1, …, reach, -reach, …, -1
    return float(np.clip(chance[abs(steps.sum()) : n - abs(steps.sum()) + 1].sum(), 1e-13, 1))


def _binomial_test(one: int, other: int) -> float:
    """Two-sided exact test of a fair coin."""
    n, least = one + other, min(one, other)
    k = np.arange(1, least + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log((n - k + 1) / k))])  # of binomials
    p = 2 * float(np.exp(np.logaddexp.reduce(logs) - n * np.log(2)))
    return min(1.0, max(p, _LEAST_P))


def disagreements(aligned: Aligned) -> Iterator[bytes]:
    """The rows on which judges differ, those that they differ on most first, as JSON lines."""
    distance, gold = _distance(aligned), _gold(aligned)
    order = np.argsort(-distance, kind="stable")
    for place in order[: int((distance > 0).sum())].tolist():
        row = _disagreement(aligned, place, float(distance[place]), int(gold[place]))
        yield dump(row) + b"\n"


def holds_disagreements(path: Path) -> bool:
    """Whether the first line of a file is one of these; an empty one is of judges that agree."""
    return not path.stat().st_size or {"distance", "judges", "sample"} <= first_fields(path)


def _disagreement(aligned: Aligned, place: int, distance: float, gold: int) -> Json:
    first = next(iter(aligned.judges))
    home, row = aligned.judges[first], int(aligned.rows[first][place])
    said = {name: _said(aligned, name, place) for name in aligned.judges}
    return {
        "id": home.ids[row],
        "distance": number(distance),
        "gold": VERDICTS[gold] if gold < NONE else None,
        "judges": said,
        "sample": home.record(row)["sample"],
    }


def _said(aligned: Aligned, judge: str, place: int) -> Json:
    verdict, p = int(aligned.verdicts(judge)[place]), aligned.p(judge)[place]
    said: Json = {"verdict": VERDICTS[verdict]}
    if aligned.measured == "verdict":  # both orders have scores of their own
        scores = aligned.judges[judge].columns.scores[aligned.rows[judge][place]]
        said["scores"] = [
            number(score) for score in scores[:: -1 if aligned.turned[judge][place] else 1]
        ]
    known = np.isfinite(p).all()
    return {**said, "p": dict(zip(VERDICTS, map(number, p), strict=True)) if known else None}


def _distance(aligned: Aligned) -> Codes:
    """How far the judges' verdicts are apart: the largest total variation between the p of the
    first and another; 1 where there is no p; 0 where all say the same or one says nothing."""
    first, *others = aligned.judges
    ours, our_p = aligned.verdicts(first), aligned.p(first)
    most, said = np.zeros(len(ours)), ours != NONE
    for name in others:
        theirs = aligned.verdicts(name)
        apart = np.abs(our_p - aligned.p(name)).sum(1) / 2
        apart = np.where(np.isfinite(apart), np.maximum(apart, 1e-6), 1.0)
        most = np.maximum(most, np.where(ours != theirs, apart, 0.0))
        said &= theirs != NONE
    return np.where(said, most, 0.0)


def _clusters(aligned: Aligned, judge: str) -> Codes | None:
    return aligned.judges[judge].columns.clusters_of(aligned.rows[judge])


def _some(clusters: Codes | None, rows: Codes) -> Codes | None:
    return None if clusters is None else clusters[rows]
