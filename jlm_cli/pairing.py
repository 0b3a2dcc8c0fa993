"""Inputs with one file per model: two of them, joined, make pairs.

Each kind of file gives a key to join by, the answer and whose it is; MT-bench keeps its questions
in a third file. The pairs become a Source of native rows, on the lines of the first file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from jlm_cli.errors import InputError, RowError
from jlm_cli.records import Json, need_text
from jlm_cli.schemas import parse_row
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
    choices = row["choices"]
    turns = choices[0].get("turns") if isinstance(choices, list) and choices else None
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


def paired(names: Sequence[str], limit: int | None) -> Source:
    """Two models' files (and MT-bench's questions) as one Source of native pairs.

    An id that only one model has an answer for stays as a row with that one answer, which is
    then an error record. Raises InputError where the files do not fit together.
    """
    questions: dict[Any, Json] = {}
    answers: list[tuple[Kind, dict[Any, Answer]]] = []
    with ExitStack() as files:
        for source in [files.enter_context(open_source(name)) for name in names]:
            first = parse_first(source)
            if first is not None and first.keys() >= _MTBENCH_QUESTIONS:
                questions |= {row["question_id"]: row for _, row in _rows(source)}
            else:
                answers.append(_answers(source, first))
    if len(answers) != 2 or answers[0][0] is not answers[1][0]:
        kinds = ", ".join(kind.name for kind, _ in answers) or "none"
        raise InputError(
            f"{', '.join(names)}: several inputs are two models' answers to the same questions, "
            f"in files of one kind; here are {kinds}"
        )
    if answers[0][0].name.startswith("MT-bench") and not questions:
        raise InputError(f"{', '.join(names)}: MT-bench's question file is needed as well")
    pairs = _joined(answers[0][1], answers[1][1], questions)
    return _source(names[0], pairs[:limit])


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


def _joined(
    ours: dict[Any, Answer], theirs: dict[Any, Answer], questions: dict[Any, Json]
) -> list[tuple[int, Json]]:
    pairs = []
    for key in [*ours, *(key for key in theirs if key not in ours)]:
        both = [side[key] for side in (ours, theirs) if key in side]
        asked = questions.get(key, {})
        question = both[0].question
        if question is None and "turns" in asked:
            question = conversation(asked["turns"], "turns")
        models = [answer.model for answer in both]
        row = {
            "id": None if key == both[0].question else key,
            "question": question,
            "answers": [answer.text for answer in both],
            "models": models if all(isinstance(model, str) for model in models) else None,
            "category": asked.get("category", both[0].category),
        }
        pairs.append((both[0].line, row))
    return pairs


def _source(name: str, pairs: Sequence[tuple[int, Json]]) -> Source:
    return (
        Source(name, spooled_rows(row for _, row in pairs))
        .scan(None)
        .renumbered([line for line, _ in pairs])
    )
