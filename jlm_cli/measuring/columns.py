"""Judgments as columns of small numbers: some 80 bytes a row, whatever its texts.

A PairTally gathers them row by row; Columns is what was gathered, for metrics to count. Verdicts
are places in VERDICTS; NONE stands where there is none.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from numpy.typing import NDArray

from jlm_cli.config import TIE_WITHIN
from jlm_cli.intervals import Codes
from jlm_cli.reading.side_files import are_others, are_turned
from jlm_cli.records import VERDICTS, Json, verdict_of

NONE = 3  # a judgment that failed, an order that was not judged, a row without gold
SPLIT = 4  # gold: annotators without a majority
UNREADABLE = 5  # gold: a text that is no score line
TIE = VERDICTS.index("tie")
PLACE: dict[Any, int] = {verdict: place for place, verdict in enumerate(VERDICTS)}
OTHER = np.array([1, 0, TIE, NONE, SPLIT, UNREADABLE], np.int8)  # seen from the swapped order

_SMALL = ("verdict", "swapped", "gold", "flags")
_NAN = math.nan
NO_P = (_NAN, _NAN, _NAN)


class Judged(NamedTuple):
    """What a judge said of a row, in the input's numbering; `p` are over VERDICTS."""

    verdict: int = NONE
    swapped: int = NONE
    p: Sequence[float] = NO_P
    p_swapped: Sequence[float] = NO_P
    scores: Sequence[float] = (_NAN, _NAN)
    flags: Sequence[str] = ()
    error: str | None = None


class About(NamedTuple):
    """What is known of a row whoever judges it; `votes` count the annotators of each class."""

    gold: int = NONE
    votes: Sequence[int] = (0, 0, 0)
    lengths: Sequence[int] = (-1, -1)
    models: Sequence[str] | None = None
    category: str | None = None
    question: str | None = None

    def turned(self) -> About:
        """The same, of the answers in the other order."""
        first, second, tie = self.votes
        return self._replace(
            gold=int(OTHER[self.gold]),
            votes=(second, first, tie),
            lengths=self.lengths[::-1],
            models=None if self.models is None else self.models[::-1],
        )


@dataclass
class Names:
    """Texts that repeat, as small numbers."""

    codes: dict[str, int] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)

    def code(self, name: str | None) -> int:
        if name is None:
            return -1
        if name not in self.codes:
            self.codes[name] = len(self.names)
            self.names.append(name)
        return self.codes[name]

    def __getitem__(self, code: int) -> str:
        return self.names[code]


@dataclass(frozen=True)
class Columns:
    """N judged rows. `p` [N, 3], `scores`, `lengths` (characters, -1 unknown) and `models` [N, 2],
    `votes` [N, 3], the others [N]; `flags` counts them, `question` is a checksum (0: unknown).
    `gold_known` [N] is 0 for failed rows whose gold, if there is any, is in no file at hand."""

    verdict: Codes
    swapped: Codes
    gold: Codes
    votes: Codes
    p: NDArray[np.float32]
    p_swapped: NDArray[np.float32]
    scores: NDArray[np.float32]
    lengths: Codes
    models: Codes
    category: Codes
    question: Codes
    flags: Codes
    model_names: Names
    category_names: Names
    gold_known: Codes

    def __len__(self) -> int:
        return len(self.verdict)

    @cached_property
    def both_orders(self) -> bool:
        return bool((self.swapped != NONE).any())

    @cached_property
    def final(self) -> Codes:
        """The verdict of both orders where there are two (a conflict is a tie), else of the one."""
        if not self.both_orders:
            return self.verdict
        same = np.where(self.verdict == self.swapped, self.verdict, TIE)
        failed = (self.verdict == NONE) | (self.swapped == NONE)
        return np.where(failed, NONE, same).astype(np.int8)

    @cached_property
    def final_p(self) -> NDArray[np.float32]:
        """Probabilities behind `final`."""
        return (self.p + self.p_swapped) / np.float32(2) if self.both_orders else self.p

    @cached_property
    def clusters(self) -> Codes | None:
        """Which rows ask the same question; None where no two do."""
        return clusters_of(self.question)

    def clusters_of(self, rows: Codes) -> Codes | None:
        return None if self.clusters is None else self.clusters[rows]


def clusters_of(checksums: Codes) -> Codes | None:
    """Which rows ask the same question, by its checksum; None where no two do."""
    alone = np.flatnonzero(checksums == 0)
    known = checksums.copy()
    known[alone] = alone + 1  # checksums are this small next to never
    names, codes = np.unique(known, return_inverse=True)
    return None if len(names) == len(known) else codes


def confidence(verdict: Codes, p: NDArray[np.float32]) -> NDArray[np.float32]:
    """The probability of each row's verdict; NaN where there is none."""
    place = np.where(verdict == NONE, 0, verdict).astype(np.int64)
    found = np.take_along_axis(p, place[:, None], axis=1)[:, 0]
    return np.where(verdict == NONE, np.nan, found).astype(np.float32)


def longest_answer(lengths: Codes, tie_within: int = TIE_WITHIN) -> Codes:
    """The verdicts of a baseline that looks at nothing but length, in characters [N, 2]."""
    ahead = lengths[:, 0].astype(np.int64) - lengths[:, 1]
    return np.where(np.abs(ahead) <= tie_within, TIE, np.where(ahead > 0, 0, 1))


class PairTally:
    """Judgments, gathered row by row."""

    def __init__(self) -> None:
        self.n_error = 0
        self.n_error_swapped = 0  # judgments of the other order that were swapped in and failed
        self.errors: Counter[str] = Counter()
        self.flags: Counter[str] = Counter()
        self._small = {name: array("b") for name in _SMALL}
        self._floats = {name: array("f") for name in ("p", "p_swapped", "scores")}
        self._lengths, self._models, self._votes = array("i"), array("i"), array("i")
        self._category, self._question = array("i"), array("q")
        self._model_names, self._category_names = Names(), Names()
        self.aspects: dict[str, PairTally] = {}
        self._gold_known = array("b")  # records of failed rows hold none, another file may
        self.n_gold_learnt = self.n_turned = 0  # rows, of the files that were joined
        self.n_alike = self.n_reversed = 0  # rows by how the answers of the other order stand there

    def __len__(self) -> int:
        return len(self._category)

    @property
    def n_judged(self) -> int:
        return len(self) - self.n_error

    def add(self, record: Json) -> None:
        """Count an output record of a pair (one that holds its sample)."""
        sample = record.get("sample") or {}
        self.append(judged_of(record), about_of({**sample, "gold": record.get("gold")}))
        for name, said in record.get("aspects", {}).items():  # of which gold says nothing
            tally = self.aspects.setdefault(name, PairTally())
            tally.append(judged_of(said), about_of(sample))

    def append(self, judged: Judged, about: About) -> None:
        if judged.verdict == NONE:
            self.n_error += 1
            self.errors[judged.error or "no-verdict"] += 1
        self.flags.update(judged.flags)
        self._small["verdict"].append(judged.verdict)
        self._small["swapped"].append(judged.swapped)
        self._floats["p"].extend(judged.p)
        self._floats["p_swapped"].extend(judged.p_swapped)
        self._floats["scores"].extend(judged.scores)
        self._small["flags"].append(min(len(judged.flags), 127))
        self._small["gold"].append(about.gold)
        self._gold_known.append(judged.verdict != NONE or about.gold != NONE)
        self._votes.extend(about.votes)
        self._lengths.extend(about.lengths)
        self._models.extend(self._codes(about.models))
        self._category.append(self._category_names.code(about.category))
        self._question.append(checksum(about.question))

    def learn(self, row: int, about: About) -> None:
        """Add what another file knows of a row, whichever of its models stands first there; what
        it does not know stays as it was."""
        if self.stands_turned(row, about.models, about.lengths):
            about = about.turned()
            self.n_turned += 1
        elif are_others(self.models_of(row), about.models):
            about = About(gold=NONE if about.gold == NONE else UNREADABLE)
        if about.gold != NONE:
            self._small["gold"][row] = about.gold
            self._gold_known[row] = 1
            self.n_gold_learnt += 1
            self._votes[3 * row : 3 * row + 3] = array("i", about.votes)
        if about.lengths[0] >= 0:
            self._lengths[2 * row : 2 * row + 2] = array("i", about.lengths)
        if about.models is not None:
            self._models[2 * row : 2 * row + 2] = array("i", self._codes(about.models))
        if about.category is not None:
            self._category[row] = self._category_names.code(about.category)
        if about.question is not None:
            self._question[row] = checksum(about.question)

    def lengths_of(self, row: int) -> array[int]:
        return self._lengths[2 * row : 2 * row + 2]

    def stands_turned(self, row: int, models: Sequence[str] | None, lengths: Sequence[int]) -> bool:
        """Whether the answers of such models, of such lengths, are the row's in the other order."""
        if self.models_of(row) and models:
            return are_turned(self.models_of(row), models)
        return self._order(row, lengths) < 0

    def _order(self, row: int, lengths: Sequence[int]) -> int:
        """Whether answers that are so long stand as the row's do (1), or turned (-1); 0 where that
        does not tell."""
        ours, theirs = self.lengths_of(row), array("i", lengths)
        return 0 if ours[0] == ours[1] else (theirs == ours) - (theirs == ours[::-1])

    def settle_gold(self, rows: Iterable[int]) -> None:
        """Rows that have no gold if they have none by now."""
        for row in rows:
            self._gold_known[row] = 1

    @property
    def both_orders(self) -> bool:
        return any(verdict != NONE for verdict in self._small["swapped"])

    def models_of(self, row: int) -> tuple[str, ...]:
        codes = self._models[2 * row : 2 * row + 2]
        return tuple(self._model_names[code] for code in codes if code >= 0)

    def has_failed(self, row: int) -> bool:
        return self._small["verdict"][row] == NONE

    def forget_gold(self) -> None:
        """Before a gold file is read that replaces what the records hold."""
        self._small["gold"] = array("b", bytes([NONE])) * len(self)
        self._votes = array("i", [0, 0, 0]) * len(self)
        self.n_gold_learnt = self.n_turned = 0

    def swap_in(self, row: int, other: Judged, lengths: Sequence[int]) -> None:
        """Take the judgment of the swapped order, in that order's numbering, of answers that are so
        long."""
        order = self._order(row, lengths)
        self.n_alike += order > 0
        self.n_reversed += order < 0
        self._small["swapped"][row] = OTHER[other.verdict]
        self.n_error_swapped += other.verdict == NONE
        first, second, tie = other.p
        self._floats["p_swapped"][3 * row : 3 * row + 3] = array("f", (second, first, tie))

    def columns(self) -> Columns:
        """All that was gathered so far; nothing can be added while it is in use."""

        def numbers(values: array[Any], width: int = 1) -> NDArray[Any]:
            flat = np.frombuffer(values, values.typecode) if values else np.empty(0, np.int8)
            return flat if width == 1 else flat.reshape(-1, width)

        return Columns(
            verdict=numbers(self._small["verdict"]),
            swapped=numbers(self._small["swapped"]),
            gold=numbers(self._small["gold"]),
            votes=numbers(self._votes, 3),
            p=numbers(self._floats["p"], 3),
            p_swapped=numbers(self._floats["p_swapped"], 3),
            scores=numbers(self._floats["scores"], 2),
            lengths=numbers(self._lengths, 2),
            models=numbers(self._models, 2),
            category=numbers(self._category),
            question=numbers(self._question),
            flags=numbers(self._small["flags"]),
            model_names=self._model_names,
            category_names=self._category_names,
            gold_known=numbers(self._gold_known),
        )

    def _codes(self, models: Sequence[str] | None) -> tuple[int, int]:
        if models is None:
            return -1, -1
        return self._model_names.code(models[0]), self._model_names.code(models[1])


def tally_of(records: Iterable[Json]) -> PairTally:
    tally = PairTally()
    for record in records:
        tally.add(record)
    return tally


def judged_of(record: Json) -> Judged:
    """What an output record of a pair says."""
    if "error" in record:
        return Judged(error=str(record["error"]["code"]))
    swapped = record.get("swapped") or {}
    return Judged(
        verdict=PLACE[record["verdict"]],
        swapped=PLACE.get(swapped.get("verdict"), NONE),
        p=_probabilities(record.get("p")),
        p_swapped=_probabilities(swapped.get("p")),
        scores=record.get("scores") or (_NAN, _NAN),
        flags=[flag.partition(":")[0] for flag in record.get("flags") or ()],
    )


def _probabilities(p: Json | None) -> Sequence[float]:
    return NO_P if p is None else [float(p[verdict]) for verdict in VERDICTS]


def about_of(fields: Json) -> About:
    """What native fields tell of a pair: gold that was read, texts, models, category."""
    answers, models = fields.get("answers"), fields.get("models")
    category, question = fields.get("category"), fields.get("question")
    return About(
        gold=gold_place(fields.get("gold")),
        lengths=(len(answers[0]), len(answers[1])) if _is_pair(answers) else (-1, -1),
        models=models if _is_pair(models) else None,
        category=str(category) if type(category) in (str, int) else None,
        question=question if isinstance(question, str) else None,
    )


def are_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_pair(value: Any) -> TypeGuard[list[str]]:
    return are_texts(value) and len(value) == 2


def gold_place(gold: Any) -> int:
    """The class of a record's gold: a verdict, or one score for each of two answers."""
    if isinstance(gold, list):
        return PLACE[verdict_of(tuple(gold))] if len(gold) == 2 else NONE
    return PLACE.get(gold, NONE)


def asked_by(row: Json, row_id: Any) -> str | None:
    """What stands for a question that a row does not hold: its digest, or else the row's id."""
    if isinstance(digest := row.get("question_sha256"), str):
        return digest
    return None if row_id is None else repr(row_id)


def checksum(question: str | None) -> int:
    """64 bits that are the same for the same question; 0 is unknown."""
    if question is None:
        return 0
    digest = hashlib.blake2b(question.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True) or 1
