"""The protocol of rankings: N answers in order at once, against pairs or people (Table 10)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from jlm_cli.config import MetricsConfig
from jlm_cli.errors import At, InputError
from jlm_cli.measuring.columns import PLACE
from jlm_cli.measuring.lines import is_numbers, sample_in
from jlm_cli.measuring.predictions import records_in
from jlm_cli.measuring.standings import RankTally, compared
from jlm_cli.ranking import Ranking, n_moved, ranking_of
from jlm_cli.reading.side_files import Key, key_in, models_in, places_of
from jlm_cli.records import Json, verdict_of

_WON: dict[str, float] = {"1": 1.0, "2": 0.0, "tie": 0.5}  # of a pair, by its first answer


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
    """Table 10: the ranking of N answers at once against that of all pairs, or against gold; and of
    jlm's own records the leaderboard.

    Pairs are in the records (`jlm rank --compare`), or `--gold` holds pair judgments or N scores
    for each id. Records without pairs are measured against their own gold where none has pairs.
    """
    found: dict[Any, Ranked] = {}
    tally, n_error = RankTally(), 0
    for number, (row, where) in enumerate(records_in(path, config.stdin)):
        if "error" in row:
            n_error += 1
            continue
        one = _ranked(row, where, use_gold=config.gold is None)
        key = number if config.gold is None else key_in(row, where)
        if found.setdefault(key, one) is not one:
            raise InputError(f"{where}: id {row.get('id')!r} appears twice")
        _count(tally, row, one, where)
    if not found:
        raise InputError(f"{path}: holds no ranking, {n_error} error records alone")
    against_pairs = any(one.pairwise is not None for one in found.values())
    joined = {} if config.gold is None else {"joined": {"gold": _read_pairs(found, config.gold)}}
    wanted = {key: o.pairwise if against_pairs else _by_wins(o) for key, o in found.items()}
    against = {key: ranking for key, ranking in wanted.items() if ranking is not None}
    standing = tally.summary() if tally.n_judged else {}
    counts = {"n_judged": len(found), "n_error": n_error, **standing, **joined}
    if not against and standing.get("leaderboard") and config.gold is None:
        return {**counts, "remarks": [_NO_PAIRS]}
    if not against:
        raise InputError(f"{path}: {_NO_PAIRS}")
    whole = {key: found[key] for key in against}
    baselines = {"given_order": {key: [*range(1, o.count + 1)] for key, o in whole.items()}}
    texts = {key: one.sample.get("answers") for key, one in whole.items()}
    if all(isinstance(text, list) for text in texts.values()):
        lengths = {key: [float(len(text)) for text in texts[key] or ()] for key in whole}
        longest = {key: ranking_of(each) for key, each in lengths.items()}
        baselines = {"longest_first": longest, **baselines}
    return {
        **counts,
        "n_incomplete": len(found) - len(whole),
        "against": "gold" if config.gold is None and not against_pairs else "pairs",
        "ranking": _compared({key: one.ranking for key, one in whole.items()}, against),
        "baselines": {name: _compared(each, against) for name, each in baselines.items()},
    }


_NO_PAIRS = "no ranking has all its pairs; give pair judgments with --gold, or rank with --compare"


def _count(tally: RankTally, row: Json, one: Ranked, where: str) -> None:
    """A record of jlm for the leaderboard, without its pairs, which are compared here. Raises
    InputError for one that was damaged."""
    if row.get("mode") != "rank" or not {"method", "expected"} <= row.keys():
        return
    try:
        if not (isinstance(row["method"], str) and is_numbers(row["expected"])):
            raise TypeError("in method or expected")
        alone = {name: value for name, value in row.items() if name != "pairwise"}
        tally.add({"flags": [], **alone, "sample": {"models": None, **one.sample}})
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where}: a damaged record: {type(error).__name__} {error}") from error


def _ranked(row: Json, where: str, use_gold: bool) -> Ranked:
    scores: Any = row.get("scores")
    if row.get("mode") == "judge":
        raise InputError(f"{where}: a verdict on a pair, not a ranking; use --protocol judgelm")
    if not is_numbers(scores) or len(scores) < 2:
        raise InputError(f"{where}: field scores: a number for each answer is needed")
    ranking = row["ranking"] if isinstance(row.get("ranking"), list) else ranking_of(scores)
    _check_ranking(ranking, len(scores), f"{where}: field ranking")
    one = Ranked(ranking, sample_in(row, where), len(scores))
    for name in ("answers", "models"):
        if len(one.sample.get(name) or scores) != len(scores):
            raise InputError(f"{where}: field sample.{name}: one for each of the scores is needed")
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


def _compared(rankings: dict[Any, Ranking], against: dict[Any, Ranking]) -> Json:
    return compared(Counter(n_moved(rankings[key], wanted) for key, wanted in against.items()))


def _by_wins(one: Ranked) -> Ranking | None:
    """The ranking by won pairs, half for a tie; None where not all pairs were judged."""
    wins = [0.0] * one.count
    for first, second in combinations(range(one.count), 2):
        if (won := one.won(first, second)) is None:
            return None
        wins[first] += won
        wins[second] += 1 - won
    return ranking_of(wins)


def _read_pairs(found: dict[Any, Ranked], path: Path) -> Json:
    """Learn what a file says of pairs; the ids that are missing on one side."""
    met: dict[Key, bool] = {}
    for row, where in records_in(str(path)):
        if "error" in row:
            continue
        key = key_in(row, where)
        one = found.get(key)
        met[key] = one is not None
        if one is None:
            continue
        scores: Any = row.get("scores") if row.get("gold") is None else row["gold"]
        about_all = one.count > 2 or not row.keys() & {"verdict", "pair"}
        if is_numbers(scores) and len(scores) == one.count and about_all:
            with At(where):
                ours, theirs = one.sample.get("models"), models_in(row)
            scores = [scores[place] for place in places_of(ours, theirs, one.count)]
            _pairs_of_scores(one, scores, where)
        else:
            _add_pair(one, row, where)
    if not any(met.values()):
        raise InputError(f"{path}: shares no id with the rankings")
    return {
        "only_there": [key[1] for key, known in met.items() if not known],
        "only_in_predictions": [key[1] for key in found if key not in met],
    }


def _add_pair(one: Ranked, row: Json, where: str) -> None:
    both = row.get("combined")
    final: Any = (both if isinstance(both, dict) else row).get("verdict")
    if not isinstance(final, str) or final not in PLACE:
        raise InputError(f"{where}: no judgment of a pair (field verdict)")
    first, second = _pair_in(one, row, where)
    won = _WON[final]
    one.judge(first, second, won, where)


def _pair_in(one: Ranked, row: Json, where: str) -> tuple[int, int]:
    """Which two of the ranked answers a judgment is about: by number, by model, or by text."""
    with At(where):
        sample = {"models": models_in(row), **sample_in(row, where)}
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
