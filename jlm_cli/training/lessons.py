"""What a judge learns from: samples with a teacher's judgments, and how each is shown.

A Lesson is a row of the training data. A Showing is an order of its answers, with or without its
reference, drawn for each epoch (paper, sections 5.1 to 5.3). Nothing is changed in place, so it
never depends on those before it.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from jlm_cli.errors import RowError
from jlm_cli.modes import arranged
from jlm_cli.reading.schemas import Schema, parse_row, read_sample
from jlm_cli.records import Gold, Json, Sample, read_gold, read_score_line, verdict_of

Order = tuple[int, ...]

_NUMBERS = r"#?\d+(?!\.?\d)(?:(?:, ?#?\d+)*,? (?:and|or|&) #?\d+)?"
# an "answer 2" without a capital may be the number that was asked for
_NAMED = r"(?:(?i:assistants?|responses?)|Answers?|ANSWERS?)"
_ASSISTANT = re.compile(rf"\b{_NAMED}[ #]{{1,2}}(?i:{_NUMBERS})")
_ORDINAL = re.compile(
    r"\b(first|second)(?=(?: AI)? (?:assistant|answer|response)\b)", re.IGNORECASE
)
_ORDINALS = ("first", "second")


@dataclass(frozen=True)
class Teaching:
    """A teacher's judgment: the scores as a score line spells them, and the reason behind them."""

    scores: tuple[str, ...]
    reason: str = ""

    @property
    def line(self) -> str:
        return " ".join(self.scores)

    def reordered(self, order: Order) -> Teaching:
        """The judgment of the same answers in another order: `order[n]` says which comes n-th."""
        scores = tuple(self.scores[place] for place in order)
        return Teaching(scores, renumbered(self.reason, order))


@dataclass(frozen=True)
class Lesson:
    """A sample with what a teacher said of it, without its reference and with it; one of the two
    may be missing."""

    sample: Sample
    plain: Teaching | None
    with_reference: Teaching | None = None

    def shown(self, showing: Showing) -> tuple[Sample, Teaching]:
        """The sample as it is shown, and the judgment that was made of just that."""
        told = self.with_reference if showing.with_reference else self.plain
        assert told is not None  # showing_of takes only what there is
        teaching = told.reordered(showing.order)
        sample = arranged(self.sample, [place + 1 for place in showing.order])
        if not showing.with_reference:
            sample = replace(sample, reference=None)
        scores = tuple(map(float, teaching.scores))
        verdict = verdict_of(scores) if len(scores) == 2 else None
        return replace(sample, gold=Gold(verdict, scores)), teaching


@dataclass(frozen=True, order=True)
class Showing:
    """How a lesson is shown once."""

    row: int
    order: Order
    with_reference: bool


@dataclass(frozen=True)
class Shares:
    """Of all samples: `swap`, those whose answers change places; `reference_drop`, among those
    with a reference, those that are shown without it."""

    swap: float = 0.5
    reference_drop: float = 0.5


def showing_of(lesson: Lesson, row: int, epoch: int, shares: Shares, seed: int) -> Showing:
    """How a lesson is shown in an epoch, drawn from its place, the epoch and the seed alone."""
    draw = random.Random(f"{seed}/{epoch}/{row}")
    swap, drop = draw.random() < shares.swap, draw.random() < shares.reference_drop
    with_reference = lesson.with_reference is not None and not (drop and lesson.plain is not None)
    order = list(range(len(lesson.sample.answers)))
    if swap:
        _move(order, draw)
    return Showing(row, tuple(order), with_reference)


def _move(order: list[int], draw: random.Random) -> None:
    """Two answers change places; more take any order."""
    if len(order) == 2:
        order.reverse()
    else:
        draw.shuffle(order)


def copies_in(epoch: int, row: int, weight: float, seed: int) -> int:
    """How often a row of some weight is shown in an epoch: 1.5 is once or twice."""
    whole = math.floor(weight)
    return whole + (random.Random(f"{seed}/copies/{epoch}/{row}").random() < weight - whole)


def question_key(question: str) -> str:
    """What tells questions apart when they are split: their letters and digits alone."""
    return "".join(char for char in question.casefold() if char.isalnum())


def renumbered(reason: str, order: Order) -> str:
    """A reason in which every mention of an assistant or its answer follows it to its new place."""
    new_number = {old + 1: new + 1 for new, old in enumerate(order)}

    def by_number(match: re.Match[str]) -> str:
        return re.sub(r"\d+", lambda n: str(new_number.get(int(n[0]), n[0])), match[0])

    def by_word(match: re.Match[str]) -> str:
        word = _ORDINALS[new_number[_ORDINALS.index(match[0].lower()) + 1] - 1]
        return word.capitalize() if match[0][0].isupper() else word

    reason = _ASSISTANT.sub(by_number, reason)
    return _ORDINAL.sub(by_word, reason) if len(order) == 2 else reason


def read_lesson(raw: bytes, schema: Schema, line: int) -> Lesson:
    """Raises RowError where a row holds nothing to learn from."""
    row = parse_row(raw)
    sample = read_sample(row, schema, line)
    n = len(sample.answers)
    if not n:
        raise RowError("n-answers", "field answers: there is none")
    plain, with_reference = _judgments(row, schema, sample)
    taught = [_teaching(value, n) for value in (plain, with_reference)]
    if taught == [None, None]:
        raise RowError("no-judgment", "no teacher's judgment: give scores or a text in gold")
    return Lesson(sample, *taught)


def _judgments(row: Json, schema: Schema, sample: Sample) -> tuple[Any, Any]:
    """What the teacher said without the reference, and with it; None where it said nothing."""
    if schema.name == "judgelm":
        plain, with_reference = row.get("text"), row.get("text_w_reference")
    elif sample.reference is None:
        plain, with_reference = schema.native(row).get("gold"), None
    else:  # gold judges the row as it stands, so with its reference
        fields = schema.native(row)
        plain, with_reference = fields.get("gold_without_reference"), fields.get("gold")
    return plain, None if sample.reference is None else with_reference


def _teaching(value: Any, n: int) -> Teaching | None:
    """A judgment from a text whose first line is a score line, or from a list of scores."""
    if value is None or value == "error":  # where the official teacher failed
        return None
    gold = read_gold(value, n)
    if gold is None:
        given = read_score_line(value)
        if given is None:
            raise RowError("no-score-line", "the teacher's text begins with no score line")
        raise RowError("n-scores", f"the teacher gives {len(given)} scores to {n} answers")
    if gold.scores is None:
        raise RowError("no-scores", "field gold: a verdict alone teaches no scores; see jlm data")
    reason = value.lstrip().partition("\n")[2].strip() if isinstance(value, str) else ""
    return Teaching(spelled(gold.scores), reason)


def spelled(scores: Sequence[float]) -> tuple[str, ...]:
    """Scores as a score line has them: 1 to 10, whole or half.

    Raises RowError where rounding would change who is ahead.
    """
    rounded = [min(10.0, max(1.0, math.floor(2 * score + 0.5) / 2)) for score in scores]
    ranks = sorted(range(len(scores)), key=lambda place: (scores[place], rounded[place]))
    for low, high in pairwise(ranks):
        if (scores[low] < scores[high]) != (rounded[low] < rounded[high]):
            raise RowError("scores-off-scale", f"scores {scores} become equal on the scale 1-10")
    return tuple(f"{score:g}" for score in rounded)


def showings(
    lessons: Sequence[Lesson], weights: Sequence[float], epoch: int, shares: Shares, seed: int
) -> Iterator[Showing]:
    """All showings of an epoch in row order; a row of weight w comes w times."""
    for row, lesson in enumerate(lessons):
        n = copies_in(epoch, row, weights[row], seed)
        for copy in range(n):
            # copies are drawn like further epochs, far from the real ones
            yield showing_of(lesson, row, epoch + copy * 1_000_003, shares, seed)
