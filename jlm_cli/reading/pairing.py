"""Inputs with one file per model: joined by their ids, they make the rows that a command takes.

Questions may be in a file of their own, as MT-bench keeps them; MM-Vet has questions and truth
there. What comes out is a Source of native rows, or of what is wrong with them.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import Any

from jlm_cli.errors import InputError, RowError
from jlm_cli.reading.one_model import Answer, ModelFile, read_side
from jlm_cli.reading.recognition import Pairs, check_named
from jlm_cli.reading.schemas import Schema
from jlm_cli.reading.side_files import key_of, twin_hint
from jlm_cli.reading.source import Source, json_object, names_of, open_source, spooled_rows
from jlm_cli.records import Json

_SIDES = {"judge": "two models' answers", "grade": "one model's answers", "rank": "answers"}


def _fit(row: Json) -> Json:
    if "error" in row:
        raise RowError(*row["error"])
    return row


JOINED = Schema("joined", frozenset(), _fit)


@dataclass(frozen=True)
class Row:
    """A row of JOINED, and where it begins: the file and the line of its first answer."""

    name: str
    line: int
    fields: Json


def joined(names: Sequence[str], command: str, limit: int | None, pairs: Pairs) -> Source:
    """One file per model (and perhaps some of questions) as one Source of rows.

    An id that not all models have an answer for is a row with an error. Raises InputError where
    the files do not fit together.
    """
    if command == "grade" and not pairs and (truth := _mmvet(names)) is not None:
        return _source(names[0], islice(truth, limit))
    _check_one_answer(names, pairs)
    with ExitStack() as files:
        sources = [files.enter_context(open_source(name)) for name in names]
        check_named(sources, pairs)
        sides = [read_side(source, pairs) for source in sources]
    asked = [side for side in sides if side.kind.asks]
    answered = [side for side in sides if not side.kind.asks]
    most = {"judge": 2, "grade": 1}.get(command, len(answered))
    least = min(most, 2)
    if not least <= len(answered) <= most or len({side.kind.name for side in answered}) > 1:
        kinds = ", ".join(side.kind.name for side in answered) or "none"
        raise InputError(
            f"{', '.join(names)}: {command} takes {_SIDES[command]} to the same questions, "
            f"in files of one kind; here are {kinds}"
        )
    _check_ids(asked, answered)
    return _source(names[0], islice(_rows_of(asked, answered), limit))


def _check_one_answer(names: Sequence[str], pairs: Pairs) -> None:
    """Raises InputError for fields that rows of one model's file cannot have."""
    for name, _ in pairs if len(names) > 1 else ():
        for several, one in (("answers", "answer"), ("answer_", "answer"), ("model_", "models")):
            if name.startswith(several):
                raise InputError(
                    f"--map {name}=…: of several files each has one: --map {one}=FIELD"
                )


def _check_ids(asked: Sequence[ModelFile], answered: Sequence[ModelFile]) -> None:
    """Raises InputError for a file of answers that shares no id with those before it, and where no
    file holds a question."""
    told = {key: side.name for side in asked for key in side.answers}
    for side in answered:
        if told and side.answers and not told.keys() & side.answers.keys():
            names = ", ".join(dict.fromkeys(told.values()))
            key = next(iter(side.answers))
            why = twin_hint(key, {key_of(one) for one in told})
            raise InputError(
                f"{names} and {side.name}: no id is in both; {str(key)[:60]!r} is not in "
                f"{names}{why}"
            )
        told |= dict.fromkeys(side.answers, side.name)
    answers = [one for side in (*asked, *answered) for one in side.answers.values()]
    if answers and all(one.question is None and one.problem is None for one in answers):
        names = ", ".join(side.name for side in answered)
        raise InputError(f"{names}: a file with the questions is needed as well")


def _rows_of(asked: Sequence[ModelFile], answered: Sequence[ModelFile]) -> Iterator[Row]:
    """A row for each id of the files of answers, in their order, and behind them one for each line
    that cannot be joined and is not missed by any id."""
    names = names_of([os.path.normpath(side.name) for side in answered])
    keys = dict.fromkeys(key for side in answered for key in side.answers)
    for key in keys:
        found = [(side, side.answers[key]) for side in answered if key in side.answers]
        told = found + [(side, side.answers[key]) for side in asked if key in side.answers]
        question = _first([answer for _, answer in told], "question")
        row_id = None if key == question else key
        problem = _problem(key, answered, told)
        fields = {"error": problem} if problem else _fields(told, answered, names)
        where, first = found[0]
        yield Row(where.name, first.line, {"id": row_id, **fields})
    for side in answered:
        for line, why in side.torn[len(keys) - len(side.answers) :]:
            yield Row(side.name, line, {"id": None, "error": ("bad-answer", why)})


def _fields(
    told: Sequence[tuple[ModelFile, Answer]], answered: Sequence[ModelFile], names: Sequence[str]
) -> Json:
    """Of a row that all files of answers have. Models that have no name in their file, or all the
    same one, have that of the file."""
    answers = [answer for _, answer in told]
    ours, asked = answers[: len(answered)], answers[len(answered) :]
    models = [
        answer.model if isinstance(answer.model, str) else name
        for answer, name in zip(ours, names, strict=True)
    ]
    return {
        "question": _first(answers, "question"),
        "answers": [answer.text for answer in ours],
        "models": models if len(set(models)) == len(models) else names,
        "category": _first(answers, "category"),
        "reference": _first(answers, "reference"),
        "gold": _first(answers if len(ours) == 1 else asked, "gold"),
    }


def _problem(
    key: Any, answered: Sequence[ModelFile], told: Sequence[tuple[ModelFile, Answer]]
) -> tuple[str, str] | None:
    """Why an id makes no row: code and message; None where it makes one."""
    shown = repr(key if isinstance(key, int | float) else key[:60])
    for side in answered:
        if key not in side.answers:
            torn = f" (its line {side.torn[0][0]}: {side.torn[0][1]})" if side.torn else ""
            return "missing-answer", f"id {shown} is not in {side.name}{torn}"
    for n, (side, answer) in enumerate(told):
        if answer.problem is not None:  # the first file's place is that of the row
            place = f"{side.name}:{answer.line}: " if n else ""
            return "bad-answer", f"{place}{answer.problem}"
    asking = [(side, answer) for side, answer in told if answer.question is not None]
    if not asking:
        return "missing-field", f"id {shown} has no question in any of the files"
    where, first = asking[0]
    for side, other in asking[1:]:
        if _text(first.question) != _text(other.question):
            files = f"{where.name}:{first.line} and {side.name}:{other.line}"
            return "other-question", f"id {shown} asks something else in {files}"
    return None


def _text(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


def _first(told: Sequence[Answer], name: str) -> Any:
    values = (getattr(one, name) for one in told)
    return next((value for value in values if value is not None), None)


def _mmvet(names: Sequence[str]) -> list[Row] | None:
    """MM-Vet's ground truth {id: {question, answer, …}} with predictions {id: text}, in either
    order; None where the files are no such. An id that is not in both is a row with an error."""
    if len(names) != 2:
        return None
    tables = {name: json_object(name) or {} for name in names}
    told = {name: {type(value) for value in table.values()} for name, table in tables.items()}
    truths = [name for name in names if told[name] == {dict}]
    others = [name for name in names if str in told[name] and dict not in told[name]]
    if not truths or not others:
        return None
    (truth,), (predicted,) = truths, others
    rows = []
    for item, (key, asked) in enumerate(tables[truth].items(), start=1):
        row: Json = {"id": key}
        if key in tables[predicted]:
            row |= _of_mmvet(asked, tables[predicted][key])
        else:
            row["error"] = "missing-answer", f"id {key!r} is not in {predicted}"
        rows.append(Row(truth, item, row))
    for item, key in enumerate(tables[predicted], start=1):
        if key not in tables[truth]:
            why = "missing-field", f"id {key!r} has no question in {truth}"
            rows.append(Row(predicted, item, {"id": key, "error": why}))
    return rows


def _of_mmvet(asked: Json, prediction: Any) -> Json:
    return {
        "question": asked.get("question"),
        "answers": [prediction],
        "reference": asked.get("answer"),
        "category": ", ".join(_texts(asked.get("capability"))) or None,
    }


def _texts(value: Any) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def _source(name: str, rows: Iterable[Row]) -> Source:
    names: list[str] = []
    lines = array("Q")

    def fields() -> Iterator[Json]:
        for row in rows:
            names.append(row.name)
            lines.append(row.line)
            yield row.fields

    source = Source(name, spooled_rows(fields())).scan(None)
    return source.made_from(names, lines)
