"""Inputs with one file per model: joined, they make the rows that a command takes.

Each kind of file gives a key to join by, the answer and whose it is. Questions may be in a file of
their own, as MT-bench keeps them; MM-Vet has questions and truth there. What comes out is a Source
of native rows, on the lines of the first file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    answers, question = fields.get("answers"), fields.get("question")
    key = question if fields.get("id") is None else fields["id"]
    text = answers[0] if isinstance(answers, list) and answers else None
    model = fields.get("models", fields.get("model"))
    return Answer(line, key, text, model, question, *map(fields.get, ("category", "reference")))


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


def _named(first: Json, pairs: Pairs) -> Kind | None:
    """The kind of a file whose fields `--map` names; question and answer may be missing there."""
    there = tuple(
        (name, field)
        for name, field in pairs
        if name not in ("question", "answer") or has(first, field)
    )
    schema = mapped(there)

    def read(row: Json, line: int) -> Answer:
        return _native({"model": row.get("model"), **schema.native(row)}, line)

    kind = kind_of(schema.native(first), _NATIVE[1:])
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
    _check_together([*asked, *answered])
    rows = _rows_of(answered, {key: one for side in asked for key, one in side.answers.items()})
    if rows and all(row["question"] is None for _, row in rows):
        raise InputError(f"{', '.join(names)}: a file with the questions is needed as well")
    return _source(names[0], rows[:limit])


def _check_together(sides: Sequence[Side]) -> None:
    """Raises InputError for files of other ids than the first one's, or of other questions."""
    first = sides[0]
    for side in sides[1:]:
        both = [key for key in side.answers if key in first.answers]
        if not both and first.answers and side.answers:
            one = next(iter(side.answers))
            why = twin_hint(one, {key_of(key) for key in first.answers})
            raise InputError(
                f"{first.name} and {side.name}: no id is in both; {str(one)[:60]!r} is not in "
                f"{first.name}{why}"
            )
        for key in both:
            a, b = first.answers[key], side.answers[key]
            if not _same_text(a.question, b.question):
                raise InputError(
                    f"{first.name}:{a.line} and {side.name}:{b.line}: other questions under one "
                    f"id, {str(key)[:60]!r}; what is joined by id must have the same"
                )


def _same_text(a: Any, b: Any) -> bool:
    return not (isinstance(a, str) and isinstance(b, str)) or a.strip() == b.strip()


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
    first = parse_first(source)
    if first is None or (not pairs and any(schema.fields <= first.keys() for schema in _WHOLE)):
        kind = None
    else:
        kind = _named(first, pairs) if pairs else kind_of(first, (*KINDS, *_NATIVE))
    if kind is None:
        known = ", ".join(kind.name for kind in KINDS)
        raise InputError(
            f"{source.name}: is no file of one model's answers; known are {known}, and those with "
            "a field answer (else name it: --map answer=FIELD)"
        )
    found: dict[Any, Answer] = {}
    for line, row in _rows(source):
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


def _rows_of(sides: Sequence[Side], questions: dict[Any, Answer]) -> list[tuple[int, Json]]:
    """Models that have no name in their file have that of the file."""
    names, rows = _names_of(sides), []
    for key in dict.fromkeys(key for side in sides for key in side.answers):
        found = [
            (side.answers[key], name)
            for side, name in zip(sides, names, strict=True)
            if key in side.answers
        ]
        told = [answer for answer, _ in found]
        if key in questions:
            told.append(questions[key])
        question, category, reference = (
            next((value for one in told if (value := getattr(one, field)) is not None), None)
            for field in ("question", "category", "reference")
        )
        row = {
            "id": None if key == question else key,
            "question": question,
            "answers": [answer.text for answer, _ in found],
            "models": [a.model if isinstance(a.model, str) else name for a, name in found],
            "category": category,
            "reference": reference,
        }
        rows.append((told[0].line, row))
    return rows


def _names_of(sides: Sequence[Side]) -> list[str]:
    stems = [Path(side.name).name.partition(".")[0] for side in sides]
    return stems if len(set(stems)) == len(stems) else [side.name for side in sides]


def _mmvet(names: Sequence[str]) -> list[tuple[int, Json]] | None:
    """MM-Vet's ground truth {id: {question, answer, …}} with predictions {id: text}, in either
    order; None where the files are no such. An id without prediction has no answer."""
    truth, predictions = None, None
    for name in names:
        table = _json_object(name)
        kinds = {type(value) for value in (table or {}).values()}
        if kinds == {dict}:
            truth = table
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
        rows.append((item, row))
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


def _source(name: str, rows: Sequence[tuple[int, Json]]) -> Source:
    return (
        Source(name, spooled_rows(row for _, row in rows))
        .scan(None)
        .renumbered([line for line, _ in rows])
    )
