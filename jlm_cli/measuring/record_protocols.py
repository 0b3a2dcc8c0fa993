"""Protocols for records of other kinds than verdicts on pairs: grades, aspects, and rankings
(rank_protocol.py).

A new one is one function that reads such records, and one line in RECORDS. Each gives a summary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jlm_cli.config import MetricsConfig
from jlm_cli.errors import At, InputError, RowError
from jlm_cli.intervals import Codes, cells_of
from jlm_cli.measuring.columns import (
    Judged,
    PairTally,
    about_of,
    asked_by,
    checksum,
    clusters_of,
)
from jlm_cli.measuring.lines import is_numbers, judged_in, sample_in
from jlm_cli.measuring.predictions import records_in
from jlm_cli.measuring.rank_protocol import rank
from jlm_cli.measuring.standings import GradeTally
from jlm_cli.measuring.summary import objective, summary_of
from jlm_cli.prompts import load
from jlm_cli.reading.side_files import (
    Key,
    are_others,
    are_turned,
    gold_in,
    key_in,
    load_once,
    models_in,
    twin_hint,
)
from jlm_cli.records import Json, Verdict, read_gold

GRADES = ("right", "half", "wrong")
_GRADE_OF_NUMBER = {1: "right", 0.5: "half", 0: "wrong"}


def aspects(path: str, config: MetricsConfig) -> Json:
    """Table 16: each aspect's verdicts against gold, and all of them together.

    Gold is one verdict for all aspects or an object with one for each.
    """
    gold = _GoldOf(config.gold)
    tallies: defaultdict[str, PairTally] = defaultdict(PairTally)
    together = PairTally()
    n_judged = n_error = 0
    for row, where in records_in(path, config.stdin):
        if "error" in row:
            n_error += 1
            continue
        if row.get("mode") == "grade":
            raise InputError(f"{where}: grades, not verdicts on pairs; use --protocol grade")
        if not isinstance(row.get("aspects"), dict):
            raise InputError(f"{where}: field aspects is missing; protocol aspects needs it")
        n_judged += 1
        given = gold.of(row, where)
        for name, judged in row["aspects"].items():
            said_of_it = given.get(name) if isinstance(given, dict) else given
            sample = {**sample_in(row, where), "gold": _verdict_in(said_of_it, where)}
            if sample.get("question") is None:
                sample["question"] = asked_by(row, row.get("id"))
            said = _checked(judged, f"{where}: field aspects.{name}")
            tallies[name].append(said, about_of(sample))
            together.append(said, about_of(sample))
    if not len(together):
        raise InputError(f"{path}: holds no judged aspects")
    joined = gold.joined(path)
    found = {name: _aspect(tally, config) for name, tally in sorted(tallies.items())}
    total = _aspect(together, config)
    return {
        "n_judged": n_judged,
        "n_error": n_error,
        "gold": {"n": total.get("objective", {}).get("n", 0)},
        **joined,
        "aspects": found,
        **total,
    }


def _aspect(tally: PairTally, config: MetricsConfig) -> Json:
    columns = tally.columns()
    return summary_of(columns, columns.both_orders, config.tie_within)


def _verdict_in(gold: Any, where: str) -> Verdict | None:
    with At(where):
        found = None if gold is None else read_gold(gold, 2)
    return None if found is None else found.verdict


def _checked(judged: Any, where: str) -> Judged:
    try:
        with At(where):
            return judged_in(judged)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where}: no judgment of a pair, as jlm judge writes") from error


def mmvet(path: str, config: MetricsConfig) -> Json:
    """Table 9: the grade of each answer as right, half right or wrong, against people's word.

    What score makes which grade is said in the template vqa.
    """
    gold = _GoldOf(config.gold)
    said: list[int] = []
    golds: list[tuple[Any, str]] = []
    questions: list[int] = []
    n_judged = n_error = 0
    for row, where in records_in(path, config.stdin):
        if "error" in row:
            n_error += 1
            continue
        n_judged += 1
        if (given := gold.of(row, where)) is not None:
            said.append(_grade(row.get("score"), "score", where))
            golds.append((given, where))
            questions.append(checksum(sample_in(row, where).get("question")))
    joined = gold.joined(path)
    if not said:
        raise InputError(f"{path}: protocol mmvet needs gold (right, half, wrong); give --gold")
    as_scores = _are_scores(golds)
    truth = [_gold_grade(given, where, not as_scores) for given, where in golds]
    people, verdict = np.array(truth), np.array(said)
    clusters = clusters_of(np.array(questions))
    most = np.full(len(said), np.bincount(people).argmax())

    def against_gold(grades: Codes) -> Json:
        return objective(cells_of((3, 3), [people, grades], clusters), GRADES)

    return {
        "n_judged": n_judged,
        "n_error": n_error,
        "gold": {"n": len(said)},
        **({"remarks": [_AS_SCORES]} if as_scores else {}),
        **joined,
        "objective": against_gold(verdict),
        "baselines": {"majority": against_gold(most)},
    }


def grade(path: str, config: MetricsConfig) -> Json:
    """Grades against numeric gold, as `jlm grade` sums them up."""
    gold, tally = _GoldOf(config.gold), GradeTally()
    unreadable: list[Any] = []
    for row, where in records_in(path, config.stdin):
        try:
            if "error" not in row:
                given = gold.of(row, where)
                row["gold"] = _scores_in(given)
                if given is not None and row["gold"] is None:
                    unreadable.append(row.get("id"))
            if "error" not in row:
                _check_grade(row, where)
            sample = {"models": None, **sample_in(row, where)}
            tally.add({"flags": [], "gold": None, **row, "sample": sample})
        except RowError as error:
            raise InputError(f"{config.gold or where}: id {row.get('id')!r}: {error}") from error
        except KeyError as error:
            raise InputError(
                f"{where}: field {error.args[0]} is missing; grades have it"
            ) from error
        except (TypeError, AttributeError) as error:
            raise InputError(f"{where}: a damaged record: {error}") from error
    if not tally.n_judged:
        raise InputError(f"{path}: holds no grades")
    return {
        "n_judged": tally.n_judged,
        "n_error": tally.n_error,
        "gold": {"n": len(tally.questions), "without_verdict": unreadable},
        **gold.joined(path),
        **tally.summary(),
    }


def _check_grade(row: Json, where: str) -> None:
    """Raises InputError where a figure of it is none."""
    if not is_numbers([row["score"], row.get("expected", row["score"])]):
        raise InputError(f"{where}: fields score and expected: numbers are needed")
    if type(row.get("pass", True)) is not bool:
        raise InputError(f"{where}: field pass: true or false is needed")


def _scores_in(gold: Any) -> Any:
    """A grade's gold as records hold it; the scale may be any."""
    scores = [gold] if type(gold) in (int, float) else gold
    if isinstance(scores, str):
        found = read_gold(scores, 1)
        return None if found is None else found.json()
    if scores is not None and not (is_numbers(scores) and len(scores) == 1):
        raise RowError("bad-type", "field gold: one score is needed")
    return scores


def _grade(score: Any, name: str, where: str) -> int:
    value = score[0] if isinstance(score, list) and len(score) == 1 else score
    if type(value) not in (int, float) or not 0 <= value <= 10:
        raise InputError(f"{where}: field {name}: a number from 0 to 10 is needed")
    return GRADES.index(load("vqa").label(value) or "wrong")


def _are_scores(golds: Sequence[tuple[Any, str]]) -> bool:
    """Whether gold in lists is scores of 0-10: lists of 1, 0.5 and 0 alone are what records make
    of such numbers."""
    lists = [gold for gold, _ in golds if isinstance(gold, list)]
    return not all(is_numbers(gold) and set(gold) <= _GRADE_OF_NUMBER.keys() for gold in lists)


_AS_SCORES = "gold is taken for scores of 0 to 10, as not all of it is 1, 0.5 or 0"


def _gold_grade(gold: Any, where: str, as_number: bool) -> int:
    """Of a word, 1, 0.5 or 0, or a list with one score of 0-10."""
    if isinstance(gold, list) and as_number:
        gold = gold[0] if len(gold) == 1 else None
    elif isinstance(gold, list):
        return _grade(gold, "gold", where)
    word = _GRADE_OF_NUMBER.get(gold) if type(gold) in (int, float) else gold
    if word not in GRADES:
        raise InputError(f"{where}: gold {gold!r}: there are right, half, wrong, or 1, 0.5, 0")
    return GRADES.index(word)


class _GoldOf:
    """Gold of each record: what `--gold` says of its id, or else what the record holds."""

    def __init__(self, path: Path | None) -> None:
        self._gold = None if path is None else load_once(path, lambda r: (gold_in(r), models_in(r)))
        self._met: set[Key] = set()
        self._missed: list[Any] = []

    def of(self, row: Json, where: str) -> Any:
        """Raises InputError where an id that is joined by appears twice."""
        if self._gold is None:
            return row.get("gold")
        key = key_in(row, where)
        if key in self._met:
            raise InputError(f"{where}: id {key[1]!r} appears twice; ids must be unique")
        if key not in self._gold.by_id:
            self._missed.append(key[1])
            return None
        self._met.add(key)
        gold, models = self._gold.by_id[key]
        ours = models_in(row) or ()
        if are_others(ours, models):
            return None
        return _turned(gold) if are_turned(ours, models) else gold

    def joined(self, path: str) -> Json:
        """Ids that are missing on one side, as a summary names them. Raises InputError where none
        is on both."""
        if self._gold is None:
            return {}
        if self._missed and not self._met:
            hint = twin_hint(self._missed[0], self._gold.by_id)
            raise InputError(f"{path}: shares no id with {self._gold.name}{hint}")
        only_there = [key[1] for key in self._gold.by_id if key not in self._met]
        sides = {"only_there": only_there, "only_in_predictions": self._missed}
        return {"joined": {"gold": sides}}


def _turned(gold: Any) -> Any:
    """Gold about two answers as it is about them in the other order; of aspects, each."""
    if isinstance(gold, dict):
        return {name: _turned(one) for name, one in gold.items()}
    found = read_gold(gold, 2) if isinstance(gold, str) else None
    if found is not None:
        return found.turned().json()
    return gold[::-1] if isinstance(gold, list) else gold


RECORDS: dict[str, Callable[[str, MetricsConfig], Json]] = {
    "rank": rank,
    "mmvet": mmvet,
    "grade": grade,
    "aspects": aspects,
}
