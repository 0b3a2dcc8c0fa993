"""`jlm data`: from sources that carry scores to training and validation rows for `jlm train`.

    source row → Answered or JudgedRow → split by question → rows drawn by seed → files

gathering.py reads the sources; rows are drawn here.
"""

from __future__ import annotations

import random
import zlib
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from jlm_cli.errors import EXIT_OK, InputError, UsageError
from jlm_cli.files import check_new_folder, write_whole
from jlm_cli.reading.source import open_source
from jlm_cli.records import Json, dump, dump_indented
from jlm_cli.report import Report
from jlm_cli.training.bad_answers import KINDS, Good, spoil
from jlm_cli.training.gathering import (
    Answered,
    DataConfig,
    Gathered,
    JudgedRow,
    questions_in,
    read_source,
    row_text,
)
from jlm_cli.training.lessons import Teaching, question_key

FORMS = ("pair", "list", "grade")
_WORST, _BEST = 3, 10  # scores of real answers; plainly bad ones lie below
_AHEAD = 3  # points that a good answer has over a spoiled one, at least


def run(config: DataConfig) -> int:
    """Write train.jsonl, validation.jsonl, left-out.jsonl and data.json; the exit status."""
    report = Report(config.quiet)
    _check_output(config)
    gathered = Gathered()
    for name in config.inputs:
        with open_source(name) as source:
            read_source(source, config, gathered)
    held_out = set().union(*(questions_in(name) for name in config.hold_out))
    train, validation = _sides(gathered, config, held_out)
    if not (train.answered or train.judged) and (validation.answered or validation.judged):
        raise UsageError(f"--validation {config.validation:g}: leaves no question to train on")
    if not (train.answered or train.judged):
        raise InputError(f"{', '.join(config.inputs)}: no usable row: {_told(gathered)}")
    scale = Scale.of(gathered.answered)
    n_train = config.rows
    n_validation = None if n_train is None else max(1, round(n_train * config.validation))
    made = {
        "train": list(make_rows(train, scale, config, n_train, "train")),
        "validation": list(make_rows(validation, scale, config, n_validation, "validation")),
    }
    _write(config, made, gathered, report)
    return EXIT_OK


def _check_output(config: DataConfig) -> None:
    check_new_folder(config.output, "data.json", config.overwrite)
    for kind in config.bad_kinds:
        if kind not in KINDS:
            raise UsageError(f"--bad-kind {kind}: choose from {', '.join(KINDS)}")


def _sides(gathered: Gathered, config: DataConfig, held_out: set[str]) -> tuple[Gathered, Gathered]:
    """Training and validation: a question is on one side alone, whatever sources it comes from."""
    sides = Gathered(), Gathered()
    items: list[Answered | JudgedRow] = [*gathered.answered, *gathered.judged]
    for item in items:
        key = question_key(item.question)
        if key in held_out:
            gathered.left_out.append(("", 0, "held-out", "its question is held out"))
            continue
        sides[for_validation(key, config.validation)].add(item)
    return sides


def for_validation(key: str, share: float) -> bool:
    """By the question's own words, whatever else there is."""
    return zlib.crc32(key.encode()) % 10_000 < share * 10_000


@dataclass(frozen=True)
class Scale:
    """From each source's qualities to scores: by rank among all answers of that source."""

    ranked: dict[str, list[float]]

    @classmethod
    def of(cls, answered: Iterable[Answered]) -> Scale:
        ranked: dict[str, list[float]] = {}
        for one in answered:
            ranked.setdefault(one.source, []).extend(answer.quality for answer in one.answers)
        return cls({source: sorted(values) for source, values in ranked.items()})

    def score(self, source: str, quality: float) -> float:
        """A whole score; equal shares of a source's answers get each."""
        values = self.ranked[source]
        middle = (bisect_left(values, quality) + bisect_right(values, quality)) / 2
        steps = _BEST - _WORST + 1
        return float(min(_BEST, _WORST + int(steps * middle / len(values))))


def make_rows(
    gathered: Gathered, scale: Scale, config: DataConfig, wanted: int | None, side: str
) -> Iterator[Json]:
    """`wanted` rows, or as many as there are answers and judgments; drawn by the seed alone."""
    draw = random.Random(f"{config.seed}/{side}")
    judged = [one.row for one in gathered.judged]
    draw.shuffle(judged)
    n_answers = sum(len(one.answers) for one in gathered.answered)
    total = wanted if wanted is not None else len(judged) + n_answers
    drawn = total - min(len(judged), total) if gathered.answered else 0
    rows = judged[: total - drawn] + list(_drawn(gathered.answered, scale, config, drawn, draw))
    draw.shuffle(rows)
    for number, row in enumerate(rows):
        yield {"id": f"{side}-{number}", **row}


def _drawn(
    answered: Sequence[Answered],
    scale: Scale,
    config: DataConfig,
    n: int,
    draw: random.Random,
) -> Iterator[Json]:
    names = [name for name, share in config.forms if share > 0]
    shares = [share for _, share in config.forms if share > 0]
    for one in islice(_in_turns(answered, draw), n):
        other = _elsewhere(answered, one, draw)
        form = draw.choices(names, shares)[0]
        count = {"pair": 2, "list": draw.randint(3, max(3, config.answers)), "grade": 1}[form]
        yield _drawn_row(one, other, count, scale, config, draw)


def _in_turns(answered: Sequence[Answered], draw: random.Random) -> Iterator[Answered]:
    """All questions in some order, again and again."""
    while answered:
        yield from draw.sample(answered, len(answered))


def _elsewhere(answered: Sequence[Answered], one: Answered, draw: random.Random) -> str:
    """An answer to another question; empty where there is no other."""
    for _ in range(20):
        other = draw.choice(answered)
        if question_key(other.question) != question_key(one.question):
            return draw.choice(other.answers).text
    return ""


@dataclass(frozen=True)
class ChosenAnswer:
    """An answer in a row that is made: `why` says what is wrong with it."""

    text: str
    score: float
    model: str | None
    why: str | None = None


def _drawn_row(
    one: Answered, other: str, count: int, scale: Scale, config: DataConfig, draw: random.Random
) -> Json:
    bad = draw.random() < config.bad
    gap = 0.0 if draw.random() < config.ties else config.gap
    chosen = _choose(one, count - bad, scale, gap, draw)
    if bad or len(chosen) < count:
        chosen = _with_spoiled(one, other, chosen, count, config, draw)
    draw.shuffle(chosen)
    row: Json = {"question": one.question, "answers": [choice.text for choice in chosen]}
    gold = row_text(Teaching(tuple(f"{c.score:g}" for c in chosen), _reason(chosen)))
    if one.reference is not None and (count == 1 or draw.random() < config.reference):
        row["reference"] = one.reference
        if count > 1:
            row["gold_without_reference"] = gold
    row["gold"] = gold
    row["models"] = [choice.model or "unknown" for choice in chosen]
    return row


def _choose(
    one: Answered, count: int, scale: Scale, gap: float, draw: random.Random
) -> list[ChosenAnswer]:
    """Real answers whose scores are so far apart; fewer than `count` where there are no more."""
    answers = list(one.answers)
    draw.shuffle(answers)
    chosen: list[ChosenAnswer] = []
    for answer in answers:
        score = scale.score(one.source, answer.quality)
        if len(chosen) < count and all(abs(score - c.score) >= gap for c in chosen):
            chosen.append(ChosenAnswer(answer.text, score, answer.model))
    return chosen


def _with_spoiled(
    one: Answered,
    other: str,
    chosen: list[ChosenAnswer],
    count: int,
    config: DataConfig,
    draw: random.Random,
) -> list[ChosenAnswer]:
    """Filled up with spoiled answers; the real ones are clearly ahead of them."""
    good = max(one.answers, key=lambda answer: answer.quality).text
    made = []
    for _ in range(count - len(chosen)):
        source = draw.choice(chosen).text if chosen else good
        spoiled = spoil(Good(source, one.question, other, draw), config.bad_kinds)
        made.append(ChosenAnswer(spoiled.text, spoiled.score, spoiled.kind, spoiled.why))
    floor = max(choice.score for choice in made) + _AHEAD
    scores = _lifted([choice.score for choice in chosen], floor)
    return [replace(c, score=score) for c, score in zip(chosen, scores, strict=True)] + made


def _lifted(scores: Sequence[float], floor: float) -> list[float]:
    """Scores, all of them higher by as much as the lowest lacks of a floor; where that would lead
    beyond 10, drawn together in halves, and where those are too few, alike at the top."""
    if not scores:
        return []
    low, high = min(scores), max(scores)
    by = max(0.0, floor - low)
    if high + by <= 10:
        return [score + by for score in scores]
    step = (10 - floor) / (high - low)
    found: dict[float, float] = {}
    ordered = sorted(set(scores))
    for below, score in reversed([*enumerate(ordered)]):
        drawn = round(2 * (floor + step * (score - low))) / 2
        nearest = min([drawn, *(above - 0.5 for above in found.values())])
        found[score] = min(10.0, max(nearest, floor + below / 2))  # room for those below it
    return [found[score] for score in scores]


def _reason(chosen: Sequence[ChosenAnswer]) -> str:
    """A short reason where something is plainly wrong; none where only a number is known."""
    if not any(choice.why for choice in chosen):
        return ""
    if len(chosen) == 1:
        return f"It {chosen[0].why or 'answers the question'}."
    return " ".join(
        f"Assistant {n} {choice.why or 'answers the question'}."
        for n, choice in enumerate(chosen, start=1)
    )


def _write(
    config: DataConfig, made: dict[str, list[Json]], gathered: Gathered, report: Report
) -> None:
    """data.json last: a folder that holds it is whole."""
    folder = config.output
    folder.mkdir(exist_ok=True)
    (folder / "data.json").unlink(missing_ok=True)
    for side, rows in made.items():
        write_whole(folder / f"{side}.jsonl", (dump(row) + b"\n" for row in rows))
    names = ("file", "line", "code", "message")
    notes = (dump(dict(zip(names, one, strict=True))) + b"\n" for one in gathered.left_out)
    write_whole(folder / "left-out.jsonl", notes)
    summary: Json = {
        "rows": {side: len(rows) for side, rows in made.items()},
        "forms": {side: _forms(rows) for side, rows in made.items()},
        "spoiled": {side: _spoiled(rows) for side, rows in made.items()},
        "left_out": _counts(gathered),
        "seed": config.seed,
    }
    packed = dump_indented(summary)
    write_whole(folder / "data.json", iter([packed]))
    for side, rows in made.items():
        kinds = ", ".join(f"{count} {kind}" for kind, count in _forms(rows).items())
        report.note(f"{folder / side}.jsonl: {len(rows)} rows: {kinds or 'none'}")
    short = sum(_spoiled(rows).get("empty", 0) for rows in made.values())
    if short and config.bad_kinds and "empty" not in config.bad_kinds:
        report.note(f"{short} answers could be spoiled by no --bad-kind given and are empty")
    if gathered.left_out:
        report.note(f"left out, by line in {folder / 'left-out.jsonl'}: {_told(gathered)}")


def _forms(rows: Sequence[Json]) -> dict[str, int]:
    forms = Counter[str]()
    for row in rows:
        n = len(row["answers"])
        forms["grade" if n == 1 else "pair" if n == 2 else "list"] += 1
        forms["with reference"] += "reference" in row
        forms["with a spoiled answer"] += bool(_spoiled([row]))
    return {name: count for name, count in sorted(forms.items()) if count}


def _spoiled(rows: Sequence[Json]) -> dict[str, int]:
    """How many answers are spoiled in which way."""
    kinds = Counter(name for row in rows for name in row.get("models", ()) if name in KINDS)
    return dict(sorted(kinds.items()))


def _counts(gathered: Gathered) -> dict[str, int]:
    return dict(sorted(Counter(code for _, _, code, _ in gathered.left_out).items()))


def _told(gathered: Gathered) -> str:
    return ", ".join(f"{count} {code}" for code, count in _counts(gathered).items()) or "none"


def forms_of(texts: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """`--form pair=0.7`. Raises UsageError."""
    forms: list[tuple[str, float]] = []
    for text in texts:
        name, _, share = text.partition("=")
        if name not in FORMS or not _is_share(share):
            raise UsageError(f"--form {text}: write it as FORM=SHARE, of {', '.join(FORMS)}")
        forms.append((name, float(share)))
    if forms and not any(share for _, share in forms):
        raise UsageError(f"--form {texts[-1]}: no form has a share above 0")
    return tuple(forms) or (("pair", 1.0),)


def _is_share(text: Any) -> bool:
    try:
        return 0 <= float(text) < 1e6
    except ValueError:
        return False
