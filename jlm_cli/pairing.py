"""Inputs with one file per model: joined, they make the rows that a command takes.

Each kind of file gives a key to join by, the answer and whose it is; MT-bench keeps its questions
in a file of their own, MM-Vet questions and truth. What comes out is a Source of native rows, on
the lines of the first file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from jlm_cli.errors import InputError, RowError
from jlm_cli.records import Json, need_text
from jlm_cli.schemas import SCHEMAS, parse_row
from jlm_cli.source import Source, open_source, spooled_rows


@dataclass(frozen=True)
class Answer:
    """One model's answer; the question where its file holds it."""

    line: int
    key: Any
    text: Any
    model: Any
    question: Any = None
    category: Any = None


@dataclass(frozen=True)
class Kind:
    """A kind of file with one model's answers, told by its fields."""

    name: str
    fields: frozenset[str]
    read: Callable[[Json, int], Answer]


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


KINDS = (
    Kind("AlpacaEval outputs", frozenset({"instruction", "output", "generator"}), _alpaca),
    Kind("JudgeLM answers", frozenset({"question_id", "question_body", "text"}), _judgelm),
    Kind("MT-bench answers", frozenset({"question_id", "model_id", "choices"}), _mtbench),
)
_MTBENCH_QUESTIONS = frozenset({"question_id", "turns"})


def kind_of(row: Json) -> Kind | None:
    """The kind of one-model file that a row is from."""
    return next((kind for kind in KINDS if kind.fields <= row.keys()), None)


def conversation(turns: Any, field: str) -> str:
    """All turns in order; a single one stands for itself."""
    if not isinstance(turns, list) or not turns:
        raise RowError("bad-type", f"field {field}: a list of texts is needed")
    texts = [need_text(turn, f"{field}[{n}]") for n, turn in enumerate(turns)]
    if len(texts) == 1:
        return texts[0]
    return "\n\n".join(f"[Turn {n}]\n{text}" for n, text in enumerate(texts, start=1))


_SIDES = {"judge": "two models' answers", "grade": "one model's answers", "rank": "answers"}


def joined(names: Sequence[str], command: str, limit: int | None) -> Source:
    """One file per model (and MT-bench's questions) as one Source of native rows.

    An id that not all models have an answer for stays as a row with fewer, for the command to
    refuse. Raises InputError where the files do not fit together.
    """
    if command == "grade" and (truth := _mmvet(names)) is not None:
        return _source(names[0], truth[:limit])
    questions: dict[Any, Json] = {}
    answers: list[tuple[Kind, dict[Any, Answer]]] = []
    with ExitStack() as files:
        for source in [files.enter_context(open_source(name)) for name in names]:
            first = parse_first(source)
            if first is not None and first.keys() >= _MTBENCH_QUESTIONS:
                questions |= _asked(source)
            else:
                answers.append(_answers(source, first))
    most = {"judge": 2, "grade": 1}.get(command, len(answers))
    least = min(most, 2)
    if not least <= len(answers) <= most or len({kind.name for kind, _ in answers}) > 1:
        kinds = ", ".join(kind.name for kind, _ in answers) or "none"
        raise InputError(
            f"{', '.join(names)}: {command} takes {_SIDES[command]} to the same questions, "
            f"in files of one kind; here are {kinds}"
        )
    if answers[0][0].name.startswith("MT-bench") and not questions:
        raise InputError(f"{', '.join(names)}: MT-bench's question file is needed as well")
    rows = _rows_of([side for _, side in answers], questions)
    return _source(names[0], rows[:limit])


def _asked(source: Source) -> dict[Any, Json]:
    """MT-bench's questions by id, each with all its turns as `question`."""
    found = {}
    for line, row in _rows(source):
        key = row.get("question_id")
        try:
            if not isinstance(key, str | int):
                raise RowError("bad-type", "field question_id: a text or a whole number is needed")
            found[key] = {**row, "question": conversation(row.get("turns"), "turns")}
        except RowError as error:
            raise InputError(f"{source.name}:{line}: {error}") from error
    return found


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


def _answers(source: Source, first: Json | None) -> tuple[Kind, dict[Any, Answer]]:
    kind = None if first is None else kind_of(first)
    if kind is None:
        known = ", ".join(kind.name for kind in KINDS)
        raise InputError(f"{source.name}: is no file of one model's answers; known are {known}")
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
    return kind, found


def _rows_of(
    sides: Sequence[dict[Any, Answer]], questions: dict[Any, Json]
) -> list[tuple[int, Json]]:
    rows = []
    for key in dict.fromkeys(key for side in sides for key in side):
        found = [side[key] for side in sides if key in side]
        asked = questions.get(key, {})
        question = asked.get("question") if found[0].question is None else found[0].question
        models = [answer.model for answer in found]
        row = {
            "id": None if key == found[0].question else key,
            "question": question,
            "answers": [answer.text for answer in found],
            "models": models if all(isinstance(model, str) for model in models) else None,
            "category": asked.get("category", found[0].category),
        }
        rows.append((found[0].line, row))
    return rows


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
    return kind_of(first) is not None


def _source(name: str, rows: Sequence[tuple[int, Json]]) -> Source:
    return (
        Source(name, spooled_rows(row for _, row in rows))
        .scan(None)
        .renumbered([line for line, _ in rows])
    )
