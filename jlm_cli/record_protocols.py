"""Protocols for records of other kinds than verdicts on pairs: rankings, grades, aspects.

A new one is one function that reads such records, and one line in RECORDS. Each gives a summary.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from jlm_cli.columns import (
    PLACE,
    Judged,
    PairTally,
    about_of,
    are_turned,
    checksum,
    clusters_of,
    judged_of,
)
from jlm_cli.config import MetricsConfig
from jlm_cli.errors import InputError, RowError
from jlm_cli.metrics import Codes, cells_of
from jlm_cli.predictions import is_numbers, rows_of
from jlm_cli.prompts import load
from jlm_cli.ranking import Ranking, n_moved, ranking_of
from jlm_cli.records import Json, Verdict, read_gold, verdict_of
from jlm_cli.side_files import Key, gold_in, id_in, key_of, load_once, models_in, twin_hint
from jlm_cli.source import open_source
from jlm_cli.standings import GradeTally, compared
from jlm_cli.summary import objective, summary_of

GRADES = ("right", "half", "wrong")
_WON: dict[str, float] = {"1": 1.0, "2": 0.0, "tie": 0.5}  # of a pair, by its first answer
_GRADE_OF_NUMBER = {1: "right", 0.5: "half", 0: "wrong"}


def aspects(path: str, config: MetricsConfig) -> Json:
    """Table 16: each aspect's verdicts against gold, and all of them together.

    Gold is one verdict for all aspects or an object with one for each.
    """
    gold = _GoldOf(config.gold)
    tallies: defaultdict[str, PairTally] = defaultdict(PairTally)
    together = PairTally()
    n_judged = n_error = 0
    for row, where in _records(path, config):
        if "error" in row:
            n_error += 1
            continue
        if not isinstance(row.get("aspects"), dict):
            raise InputError(f"{where}: field aspects is missing; protocol aspects needs it")
        n_judged += 1
        given = gold.of(row, where)
        for name, judged in row["aspects"].items():
            said_of_it = given.get(name) if isinstance(given, dict) else given
            sample = {**(row.get("sample") or {}), "gold": _verdict_in(said_of_it, where)}
            if sample.get("question") is None and row.get("id") is not None:
                sample["question"] = repr(row["id"])
            said = _checked(judged, where)
            tallies[name].append(said, about_of(sample))
            together.append(said, about_of(sample))
    if not len(together):
        raise InputError(f"{path}: holds no judged aspects")
    joined = gold.joined(path)
    found = {
        name: summary_of(tally.columns(), False, config.tie_within)
        for name, tally in sorted(tallies.items())
    }
    total = summary_of(together.columns(), False, config.tie_within)
    if "objective" not in total:
        raise InputError(f"{path}: protocol aspects needs gold; give --gold")
    return {"n_judged": n_judged, "n_error": n_error, **joined, "aspects": found, **total}


def _verdict_in(gold: Any, where: str) -> Verdict | None:
    try:
        found = None if gold is None else read_gold(gold, 2)
    except RowError as error:
        raise InputError(f"{where}: {error}") from error
    return None if found is None else found.verdict


def _checked(judged: Any, where: str) -> Judged:
    try:
        return judged_of(judged)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{where}: field aspects: a damaged judgment") from error


def mmvet(path: str, config: MetricsConfig) -> Json:
    """Table 9: the grade of each answer as right, half right or wrong, against people's word.

    What score makes which grade is said in the template vqa.
    """
    gold = _GoldOf(config.gold)
    said: list[int] = []
    golds: list[tuple[Any, str]] = []
    questions: list[int] = []
    n_judged = n_error = 0
    for row, where in _records(path, config):
        if "error" in row:
            n_error += 1
            continue
        n_judged += 1
        if (given := gold.of(row, where)) is not None:
            said.append(_grade(row.get("score"), "score", where))
            golds.append((given, where))
            question = (row.get("sample") or {}).get("question")
            questions.append(checksum(None if question is None else str(question)))
    joined = gold.joined(path)
    if not said:
        raise InputError(f"{path}: protocol mmvet needs gold (right, half, wrong); give --gold")
    truth = _gold_grades(golds)
    people, verdict = np.array(truth), np.array(said)
    clusters = clusters_of(np.array(questions))
    most = np.full(len(said), np.bincount(people).argmax())

    def against_gold(grades: Codes) -> Json:
        return objective(cells_of((3, 3), [people, grades], clusters), GRADES)

    return {
        "n_judged": n_judged,
        "n_error": n_error,
        "gold": {"n": len(said)},
        **joined,
        "objective": against_gold(verdict),
        "baselines": {"majority": against_gold(most)},
    }


def grade(path: str, config: MetricsConfig) -> Json:
    """Grades against numeric gold, as `jlm grade` sums them up."""
    gold, tally = _GoldOf(config.gold), GradeTally()
    unreadable: list[Any] = []
    for row, where in _records(path, config):
        try:
            if "error" not in row:
                given = gold.of(row, where)
                row["gold"] = _scores_in(given)
                if given is not None and row["gold"] is None:
                    unreadable.append(row.get("id"))
            tally.add({"sample": {"models": None}, "flags": [], "gold": None, **row})
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


def _gold_grades(golds: Sequence[tuple[Any, str]]) -> list[int]:
    """Of each gold with its place: a word, 1, 0.5 or 0, or a list with one score of 0-10. Lists
    of 1, 0.5 and 0 alone are what records make of such numbers."""
    lists = [gold for gold, _ in golds if isinstance(gold, list)]
    as_numbers = all(is_numbers(gold) and set(gold) <= _GRADE_OF_NUMBER.keys() for gold in lists)
    return [_gold_grade(gold, where, as_numbers) for gold, where in golds]


def _gold_grade(gold: Any, where: str, as_number: bool) -> int:
    if isinstance(gold, list) and as_number:
        gold = gold[0] if len(gold) == 1 else None
    elif isinstance(gold, list):
        return _grade(gold, "gold", where)
    word = _GRADE_OF_NUMBER.get(gold) if type(gold) in (int, float) else gold
    if word not in GRADES:
        raise InputError(f"{where}: gold {gold!r}: there are right, half, wrong, or 1, 0.5, 0")
    return GRADES.index(word)


@dataclass
class Ranked:
    """One question's answers in order, and what pairwise judging says of them: the ranking that
    the record holds, or won pairs."""

    ranking: Ranking
    sample: Json
    count: int
    pairwise: Ranking | None = None
    pairs: dict[tuple[int, int], float] = field(default_factory=dict)  # in the order judged

    def judge(self, first: int, second: int, won: float, where: str) -> None:
        """Raises InputError for a pair that was judged before in that order."""
        if (first, second) in self.pairs:
            raise InputError(f"{where}: answers {first + 1} and {second + 1} were judged before")
        self.pairs[first, second] = won

    def won(self, first: int, second: int) -> float | None:
        """What the first won of the second; a conflict of both orders is a tie."""
        given, turned = self.pairs.get((first, second)), self.pairs.get((second, first))
        if turned is None:
            return given
        return 1 - turned if given is None or given == 1 - turned else 0.5


def rank(path: str, config: MetricsConfig) -> Json:
    """Table 10: the ranking of N answers at once against that of all pairs, or against gold.

    Pairs are in the record (`jlm rank --compare`), or `--gold` holds pair judgments or N scores
    for each id.
    """
    found: dict[Any, Ranked] = {}
    n_error = 0
    for number, (row, where) in enumerate(_records(path, config)):
        if "error" in row:
            n_error += 1
            continue
        one = _ranked(row, where, use_gold=config.gold is None)
        key = number if config.gold is None else _key(row, where)
        if found.setdefault(key, one) is not one:
            raise InputError(f"{where}: id {row.get('id')!r} stands there twice")
    joined = {} if config.gold is None else {"joined": {"gold": _read_pairs(found, config.gold)}}
    against = {key: wanted for key, one in found.items() if (wanted := _pairwise(one)) is not None}
    if not against:
        raise InputError(f"{path}: no ranking has all its pairs; give pair judgments with --gold")
    whole = {key: found[key] for key in against}
    baselines = {"given_order": {key: ranking_of(_falling(o.count)) for key, o in whole.items()}}
    texts = {key: one.sample.get("answers") for key, one in whole.items()}
    if all(isinstance(text, list) for text in texts.values()):
        lengths = {key: [float(len(text)) for text in texts[key] or ()] for key in whole}
        longest = {key: ranking_of(each) for key, each in lengths.items()}
        baselines = {"longest_first": longest, **baselines}
    return {
        "n_judged": len(found),
        "n_error": n_error,
        "n_incomplete": len(found) - len(whole),
        **joined,
        "ranking": _compared({key: one.ranking for key, one in whole.items()}, against),
        "baselines": {name: _compared(each, against) for name, each in baselines.items()},
    }


def _ranked(row: Json, where: str, use_gold: bool) -> Ranked:
    scores: Any = row.get("scores")
    if row.get("mode") == "judge":
        raise InputError(f"{where}: a verdict on a pair, not a ranking; take --protocol judgelm")
    if not is_numbers(scores) or len(scores) < 2:
        raise InputError(f"{where}: field scores: a number for each answer is needed")
    ranking = row["ranking"] if isinstance(row.get("ranking"), list) else ranking_of(scores)
    _check_ranking(ranking, len(scores), f"{where}: field ranking")
    one = Ranked(ranking, row.get("sample") or {}, len(scores))
    if use_gold and isinstance(row.get("pairwise"), dict):
        one.pairwise = row["pairwise"].get("ranking")
        if one.pairwise is not None:
            _check_ranking(one.pairwise, len(scores), f"{where}: field pairwise.ranking")
    elif use_gold and is_numbers(row.get("gold")):
        _pairs_of_scores(one, row["gold"], where)
    return one


def _check_ranking(ranking: Any, count: int, what: str) -> None:
    """Raises InputError where not each of the answers, by number, stands there once."""
    entries = ranking if isinstance(ranking, list) else []
    named = [number for one in entries for number in (one if isinstance(one, list) else [one])]
    if sorted(map(repr, named)) != sorted(map(repr, range(1, count + 1))):
        raise InputError(f"{what}: the numbers of all {count} answers are needed, each once")


def _pairwise(one: Ranked) -> Ranking | None:
    """The ranking by won pairs; None where not all pairs were judged."""
    if one.pairwise is not None:
        return one.pairwise
    wins = _wins(one)
    return None if wins is None else ranking_of(wins)


def _compared(rankings: dict[Any, Ranking], against: dict[Any, Ranking]) -> Json:
    return compared(Counter(n_moved(rankings[key], wanted) for key, wanted in against.items()))


def _wins(one: Ranked) -> list[float] | None:
    """Won pairs of each answer, half for a tie; None where not all pairs were judged."""
    wins = [0.0] * one.count
    for first, second in combinations(range(one.count), 2):
        if (won := one.won(first, second)) is None:
            return None
        wins[first] += won
        wins[second] += 1 - won
    return wins


def _read_pairs(found: dict[Any, Ranked], path: Path) -> Json:
    """Learn what a file says of pairs; the ids that are missing on one side."""
    met: dict[Key, bool] = {}
    for row, where in _records(str(path), None):
        if "error" in row:
            continue
        key = _key(row, where)
        one = found.get(key)
        met[key] = one is not None
        if one is None:
            continue
        scores: Any = row.get("scores") if row.get("gold") is None else row["gold"]
        about_all = one.count > 2 or not row.keys() & {"verdict", "pair"}
        if is_numbers(scores) and len(scores) == one.count and about_all:
            ours, theirs = one.sample.get("models"), models_in(row)
            scores = [scores[place] for place in _places(ours, theirs, one.count)]
            _pairs_of_scores(one, scores, where)
        else:
            _add_pair(one, row, where)
    if not any(met.values()):
        raise InputError(f"{path}: shares no id with the rankings")
    return {
        "only_there": [key[1] for key, known in met.items() if not known],
        "only_in_predictions": [key[1] for key in found if key not in met],
    }


def _places(ours: Any, theirs: Any, count: int) -> list[int]:
    """Where each of our models stands among theirs; where that is not said, all at their own."""
    if isinstance(ours, list) and isinstance(theirs, list):
        names, others = [str(one) for one in ours], [str(one) for one in theirs]
        if sorted(names) == sorted(others) and len(set(names)) == len(names) == count:
            return [others.index(name) for name in names]
    return list(range(count))


def _add_pair(one: Ranked, row: Json, where: str) -> None:
    final: Any = (row.get("combined") or row).get("verdict")
    if final not in PLACE:
        raise InputError(f"{where}: no judgment of a pair (field verdict)")
    first, second = _pair_in(one, row, where)
    won = _WON[final]
    one.judge(first, second, won, where)


def _pair_in(one: Ranked, row: Json, where: str) -> tuple[int, int]:
    """Which two of the ranked answers a judgment is about: by number, by model, or by text."""
    sample = row.get("sample") or {}
    if isinstance(row.get("pair"), list):
        known, wanted = list(range(1, one.count + 1)), row["pair"]
    elif sample.get("models") and one.sample.get("models"):
        known, wanted = one.sample["models"], sample["models"]
    else:
        known, wanted = one.sample.get("answers") or [], sample.get("answers") or []
    found = [known.index(name) for name in wanted if name in known]
    if len(found) != 2 or found[0] == found[1]:
        raise InputError(
            f"{where}: cannot tell which two answers this is about; give pair, like [1, 3]"
        )
    return found[0], found[1]


def _pairs_of_scores(one: Ranked, scores: list[float], where: str) -> None:
    if len(scores) != one.count:
        raise InputError(f"{where}: {len(scores)} scores of gold for {one.count} answers")
    for first, second in combinations(range(len(scores)), 2):
        verdict = verdict_of((scores[first], scores[second]))
        one.judge(first, second, _WON[verdict], where)


def _falling(count: int) -> list[float]:
    return [float(count - n) for n in range(count)]


def _records(path: str, config: MetricsConfig | None) -> Iterator[tuple[Json, str]]:
    with open_source(path, stdin=None if config is None else config.stdin) as source:
        for _, row, where in rows_of(source):
            yield row, where


def _key(row: Json, where: str) -> Any:
    try:
        return key_of(id_in(row))
    except RowError as error:
        raise InputError(f"{where}: {error}") from error


class _GoldOf:
    """Gold of each record: what `--gold` says of its id, or else what the record holds."""

    def __init__(self, path: Path | None) -> None:
        self._gold = None if path is None else load_once(path, lambda r: (gold_in(r), models_in(r)))
        self._met: set[Key] = set()
        self._missed: list[Any] = []

    def of(self, row: Json, where: str) -> Any:
        """Raises InputError where an id that is joined by stands there twice."""
        if self._gold is None:
            return row.get("gold")
        key = _key(row, where)
        if key in self._met:
            raise InputError(f"{where}: id {key[1]!r} stands there twice; ids must be unique")
        if key not in self._gold.by_id:
            self._missed.append(key[1])
            return None
        self._met.add(key)
        gold, models = self._gold.by_id[key]
        return _turned(gold) if are_turned(models_in(row) or (), models) else gold

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
