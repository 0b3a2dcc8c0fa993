"""Inputs with one file per model: joined, they make the rows that a command takes.

Each kind of file gives a key to join by, the answer and whose it is. Questions may be in a file of
their own, as MT-bench keeps them; MM-Vet has questions and truth there. What comes out is a Source
of native rows, on the lines of the first file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from jlm_cli.errors import InputError, RowError
from jlm_cli.records import Json, need_text
from jlm_cli.schemas import SCHEMAS, check_named, has, listed, mapped, parse_row
from jlm_cli.side_files import key_of, twin_hint
from jlm_cli.source import Source, open_source, spooled_rows

Pairs = tuple[tuple[str, str], ...]  # of `--map`


@dataclass(frozen=True)
class Answer:
    """One model's answer; the question where its file holds it, which may be all that it holds."""

    line: int
    key: Any
    text: Any = None
    model: Any = None
    question: Any = None
    category: Any = None
    reference: Any = None
    gold: Any = None


@dataclass(frozen=True)
class Kind:
    """A kind of file, told by its fields: with one model's answers, or with questions."""

    name: str
    fields: frozenset[str]
    read: Callable[[Json, int], Answer]
    asks: bool = False


@dataclass(frozen=True)
class Side:
    """A file that is joined with others."""

    name: str
    kind: Kind
    answers: dict[Any, Answer]


def _alpaca(row: Json, line: int) -> Answer:
    question = row["instruction"]
    return Answer(line, question, row["output"], row["generator"], question, row.get("dataset"))


def _judgelm(row: Json, line: int) -> Answer:
    return Answer(line, row["question_id"], row["text"], row.get("model"), row["question_body"])


def _mtbench(row: Json, line: int) -> Answer:
    first = row["choices"][0] if isinstance(row["choices"], list) and row["choices"] else None
    turns = first.get("turns") if isinstance(first, dict) else None
    return Answer(
        line, row["question_id"], conversation(turns, "choices[0].turns"), row["model_id"]
    )


def _mtbench_question(row: Json, line: int) -> Answer:
    question = conversation(row["turns"], "turns")
    return Answer(line, row["question_id"], question=question, category=row.get("category"))


def _native(row: Json, line: int) -> Answer:
    """Native fields, but of one answer or none; joined by the question where there is no id."""
    fields = listed(row)
    answers, question, models = map(fields.get, ("answers", "question", "models"))
    key = question if fields.get("id") is None else fields["id"]
    text = answers[0] if isinstance(answers, list) and answers else None
    model = models[0] if isinstance(models, list) and len(models) == 1 else models
    more = {name: fields.get(name) for name in ("category", "reference", "gold")}
    model = fields.get("model") if model is None else model
    return Answer(line, key, text, model, question, **more)


KINDS = (
    Kind("AlpacaEval outputs", frozenset({"instruction", "output", "generator"}), _alpaca),
    Kind("JudgeLM answers", frozenset({"question_id", "question_body", "text"}), _judgelm),
    Kind("MT-bench answers", frozenset({"question_id", "model_id", "choices"}), _mtbench),
)
_NATIVE = (
    Kind("MT-bench questions", frozenset({"question_id", "turns"}), _mtbench_question, asks=True),
    Kind("answers", frozenset({"answer"}), _native),
    Kind("questions", frozenset({"question"}), _native, asks=True),
)


def kind_of(row: Json, kinds: Sequence[Kind]) -> Kind | None:
    """The kind of file that a row is from."""
    return next((kind for kind in kinds if kind.fields <= row.keys()), None)


def _named(row: Json, pairs: Pairs) -> Kind | None:
    """The kind of a row whose fields `--map` names; question and answer may be missing there."""
    there = tuple(
        (name, field)
        for name, field in pairs
        if name not in ("question", "answer") or not field or has(row, field)
    )
    schema, names_model = mapped(there), "models" in dict(pairs)

    def read(row: Json, line: int) -> Answer:
        model = {} if names_model else {"model": row.get("model")}
        return _native({**schema.native(row), **model}, line)

    kind = kind_of(schema.native(row), _NATIVE[1:])
    return kind and replace(kind, fields=frozenset(), read=read)


def conversation(turns: Any, field: str) -> str:
    """All turns in order; a single one stands for itself."""
    if not isinstance(turns, list) or not turns:
        raise RowError("bad-type", f"field {field}: a list of texts is needed")
    texts = [need_text(turn, f"{field}[{n}]") for n, turn in enumerate(turns)]
    if len(texts) == 1:
        return texts[0]
    return "\n\n".join(f"[Turn {n}]\n{text}" for n, text in enumerate(texts, start=1))


_WHOLE = [schema for schema in SCHEMAS if schema.name != "native-answer"]
_SIDES = {"judge": "two models' answers", "grade": "one model's answers", "rank": "answers"}


def joined(names: Sequence[str], command: str, limit: int | None, pairs: Pairs) -> Source:
    """One file per model (and perhaps one of questions) as one Source of native rows.

    An id that not all models have an answer for stays as a row with fewer, for the command to
    refuse. Raises InputError where the files do not fit together.
    """
    if command == "grade" and not pairs and (truth := _mmvet(names)) is not None:
        return _source(names[0], truth[:limit])
    _check_one_answer(names, pairs, command)
    with ExitStack() as files:
        sources = [files.enter_context(open_source(name)) for name in names]
        check_named(sources, pairs)
        sides = [_side(source, pairs) for source in sources]
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
    _check_together(asked, answered)
    rows = _rows_of(answered, {key: one for side in asked for key, one in side.answers.items()})
    if rows and all(row.native["question"] is None for row in rows):
        raise InputError(f"{', '.join(names)}: a file with the questions is needed as well")
    return _source(names[0], rows[:limit])


def _check_one_answer(names: Sequence[str], pairs: Pairs, command: str) -> None:
    """Raises InputError for fields that rows of one model's file cannot have."""
    if len(names) < 2:
        return
    for name, _ in pairs:
        for several, one in (("answers", "answer"), ("answer_", "answer"), ("model_", "models")):
            if name.startswith(several):
                raise InputError(
                    f"--map {name}=…: of several files each has one: --map {one}=FIELD"
                )
        if name == "gold" and command != "grade":
            raise InputError("--map gold=…: gold of several answers is joined by id: --gold FILE")


def _check_together(asked: Sequence[Side], answered: Sequence[Side]) -> None:
    """Raises InputError for a file that shares no id with those before it, and for other questions
    under one id."""
    told: dict[Any, tuple[Side, Answer]] = {}
    for side in (*asked, *answered):
        if side in answered and told and side.answers and not told.keys() & side.answers.keys():
            _refuse_others(told, side)
        for key, one in side.answers.items():
            before, first = told.setdefault(key, (side, one))
            if first.question is None:
                told[key] = side, one
            elif isinstance(one.question, str) and not _same(first.question, one.question):
                raise InputError(
                    f"{before.name}:{first.line} and {side.name}:{one.line}: other questions under "
                    f"one id, {str(key)[:60]!r}; what is joined by id must have the same"
                )


def _same(a: Any, b: str) -> bool:
    return isinstance(a, str) and a.strip() == b.strip()


def _refuse_others(told: Mapping[Any, tuple[Side, Answer]], side: Side) -> None:
    names = ", ".join(dict.fromkeys(before.name for before, _ in told.values()))
    key = next(iter(side.answers))
    why = twin_hint(key, {key_of(one) for one in told})
    raise InputError(
        f"{names} and {side.name}: no id is in both; {str(key)[:60]!r} is not in {names}{why}"
    )


def parse_first(source: Source) -> Json | None:
    """The first row that is a JSON object."""
    for raw in source:
        try:
            return parse_row(raw)
        except RowError:
            continue
    return None


def _rows(source: Source) -> list[tuple[int, Json]]:
    rows = []
    for index, raw in enumerate(source):
        try:
            rows.append((source.line(index), parse_row(raw)))
        except RowError as error:
            raise InputError(f"{source.where(index)}: {error}") from error
    return rows


def _side(source: Source, pairs: Pairs) -> Side:
    rows = _rows(source)
    kind = _kind([row for _, row in rows], pairs)
    if kind is None:
        known = ", ".join(kind.name for kind in KINDS)
        raise InputError(
            f"{source.name}: is no file of one model's answers; known are {known}, and those with "
            "a field answer (else name it: --map answer=FIELD)"
        )
    found: dict[Any, Answer] = {}
    for line, row in rows:
        for missing in sorted(kind.fields - row.keys()):
            raise InputError(f"{source.name}:{line}: field {missing} is missing")
        try:
            answer = kind.read(row, line)
        except RowError as error:
            raise InputError(f"{source.name}:{line}: {error}") from error
        if not isinstance(answer.key, str | int):
            raise InputError(f"{source.name}:{line}: an id must be a text or a whole number")
        if answer.key in found:
            raise InputError(f"{source.name}:{line}: {str(answer.key)[:60]!r} stands there twice")
        found[answer.key] = answer
    return Side(source.name, kind, found)


def _kind(rows: Sequence[Json], pairs: Pairs) -> Kind | None:
    """That of the first row; a file of questions has no answer in any."""
    first = _kind_of_row(rows[0], pairs) if rows else None
    if first is None or not first.asks:
        return first
    kinds = (_kind_of_row(row, pairs) for row in rows)
    return next((kind for kind in kinds if kind is not None and not kind.asks), first)


def _kind_of_row(row: Json, pairs: Pairs) -> Kind | None:
    if pairs:
        return _named(row, pairs)
    if any(schema.fields <= row.keys() for schema in _WHOLE):
        return None
    return kind_of(row, (*KINDS, *_NATIVE))


@dataclass(frozen=True)
class Row:
    """A native row, and where it begins: the file and the line of its first answer."""

    name: str
    line: int
    native: Json


def _rows_of(sides: Sequence[Side], questions: Mapping[Any, Answer]) -> list[Row]:
    """Models that have no name in their file have that of the file."""
    names, rows = _names_of(sides), []
    for key in dict.fromkeys(key for side in sides for key in side.answers):
        found = [
            (side, name, side.answers[key])
            for side, name in zip(sides, names, strict=True)
            if key in side.answers
        ]
        told = [answer for _, _, answer in found]
        asked = [questions[key]] if key in questions else []
        question, category, reference = (
            _first([*told, *asked], name) for name in ("question", "category", "reference")
        )
        native = {
            "id": None if key == question else key,
            "question": question,
            "answers": [answer.text for answer in told],
            "models": [a.model if isinstance(a.model, str) else name for _, name, a in found],
            "category": category,
            "reference": reference,
            "gold": _first([*told, *asked] if len(sides) == 1 else asked, "gold"),
        }
        rows.append(Row(found[0][0].name, told[0].line, native))
    return rows


def _first(told: Sequence[Answer], name: str) -> Any:
    values = (getattr(one, name) for one in told)
    return next((value for value in values if value is not None), None)


_ENDINGS = (".gz", ".zst", ".jsonl", ".ndjson", ".json")


def _names_of(sides: Sequence[Side]) -> list[str]:
    stems = []
    for side in sides:
        stem = Path(side.name).name
        for ending in _ENDINGS:
            stem = stem.removesuffix(ending)
        stems.append(stem)
    unique = len(set(stems)) == len(stems)
    return stems if unique else [os.path.normpath(side.name) for side in sides]


def _mmvet(names: Sequence[str]) -> list[Row] | None:
    """MM-Vet's ground truth {id: {question, answer, …}} with predictions {id: text}, in either
    order; None where the files are no such. An id without prediction has no answer."""
    truth, predictions, where = None, None, ""
    for name in names:
        table = _json_object(name)
        kinds = {type(value) for value in (table or {}).values()}
        if kinds == {dict}:
            truth, where = table, name
        elif kinds == {str}:
            predictions = table
    if truth is None or predictions is None or len(names) != 2:
        return None
    rows = []
    for item, (key, asked) in enumerate(truth.items(), start=1):
        row = {
            "id": key,
            "question": asked.get("question"),
            "answers": [predictions[key]] if key in predictions else [],
            "reference": asked.get("answer"),
            "category": ", ".join(_texts(asked.get("capability"))) or None,
        }
        rows.append(Row(where, item, row))
    return rows


def _texts(value: Any) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def _json_object(name: str) -> Json | None:
    """A file that holds a single JSON object over several keys; None for all others."""
    path = Path(name)
    if not path.is_file() or path.suffix != ".json":
        return None
    try:
        table = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError:
        return None
    return table if isinstance(table, dict) else None


def is_one_models(source: Source) -> bool:
    """Whether a file holds one model's answers, and nothing that is judged by itself."""
    first = parse_first(source)
    if first is None or any(schema.fields <= first.keys() for schema in SCHEMAS):
        return False
    return kind_of(first, KINDS) is not None


def _source(name: str, rows: Sequence[Row]) -> Source:
    source = Source(name, spooled_rows(row.native for row in rows)).scan(None)
    return source.made_from([row.name for row in rows], [row.line for row in rows])
