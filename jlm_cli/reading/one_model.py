"""Files with one model's answers each, or with the questions alone: which kinds there are, and what
a row of each tells."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from jlm_cli.errors import InputError, RowError
from jlm_cli.reading.recognition import Pairs, has, mapped
from jlm_cli.reading.schemas import SCHEMAS, dotted, listed, parse_row
from jlm_cli.reading.source import Source
from jlm_cli.records import Json, need_id, need_text


@dataclass(frozen=True)
class Answer:
    """What a row tells: one model's answer, the question where its file holds it, which may be all;
    or the `problem` with it."""

    line: int
    text: Any = None
    model: Any = None
    question: Any = None
    category: Any = None
    reference: Any = None
    gold: Any = None
    problem: str | None = None


@dataclass(frozen=True)
class Kind:
    """A kind of file, told by its fields: with one model's answers, or with questions. `key` is
    what a row is joined by, whatever else is wrong with it."""

    name: str
    fields: frozenset[str]
    key: Callable[[Json], Any]
    read: Callable[[Json, int], Answer]
    asks: bool = False


@dataclass(frozen=True)
class ModelFile:
    """A file that is joined with others; of lines that cannot be joined the numbers, and why."""

    name: str
    kind: Kind
    answers: dict[Any, Answer]
    torn: list[tuple[int, str]]


def _alpaca(row: Json, line: int) -> Answer:
    return Answer(line, row["output"], row["generator"], row["instruction"], row.get("dataset"))


def _judgelm(row: Json, line: int) -> Answer:
    return Answer(line, row["text"], row.get("model"), row["question_body"])


def _mtbench(row: Json, line: int) -> Answer:
    first = row["choices"][0] if isinstance(row["choices"], list) and row["choices"] else None
    turns = first.get("turns") if isinstance(first, dict) else None
    return Answer(line, conversation(turns, "choices[0].turns"), row["model_id"])


def _mtbench_question(row: Json, line: int) -> Answer:
    question = conversation(row["turns"], "turns")
    return Answer(line, question=question, category=row.get("category"))


def conversation(turns: Any, field: str) -> str:
    """All turns in order; a single one stands for itself."""
    if not isinstance(turns, list) or not turns:
        raise RowError("bad-type", f"field {field}: a list of texts is needed")
    texts = [need_text(turn, f"{field}[{n}]") for n, turn in enumerate(turns)]
    if len(texts) == 1:
        return texts[0]
    return "\n\n".join(f"[Turn {n}]\n{text}" for n, text in enumerate(texts, start=1))


def _native(row: Json, line: int) -> Answer:
    """Native fields, but of one answer or none."""
    fields = listed(row)
    answers, models = fields.get("answers"), fields.get("models")
    text = answers[0] if isinstance(answers, list) and answers else None
    model = models[0] if isinstance(models, list) and len(models) == 1 else models
    model = fields.get("model") if model is None else model
    more = {name: fields.get(name) for name in ("question", "category", "reference", "gold")}
    return Answer(line, text, model, **more)


def _native_key(row: Json, fields: Mapping[str, str]) -> Any:
    """The question, where there is no id; `fields` are those that have other names."""
    for name in ("id", "question"):
        field = fields.get(name, name)
        if has(row, field) and (found := dotted(row, field)) is not None:
            return found
    return None


def _by(field: str) -> Callable[[Json], Any]:
    return lambda row: row.get(field)


_PUBLISHED = (
    Kind(
        "AlpacaEval outputs",
        frozenset({"instruction", "output", "generator"}),
        _by("instruction"),
        _alpaca,
    ),
    Kind(
        "JudgeLM answers",
        frozenset({"question_id", "question_body", "text"}),
        _by("question_id"),
        _judgelm,
    ),
    Kind(
        "MT-bench answers",
        frozenset({"question_id", "model_id", "choices"}),
        _by("question_id"),
        _mtbench,
    ),
)
_by_own_names = partial(_native_key, fields={})
_NATIVE = (
    Kind("answers", frozenset({"answer"}), _by_own_names, _native),
    Kind("questions", frozenset({"question"}), _by_own_names, _native, asks=True),
)
_KINDS = (
    *_PUBLISHED,
    Kind(
        "MT-bench questions",
        frozenset({"question_id", "turns"}),
        _by("question_id"),
        _mtbench_question,
        asks=True,
    ),
    *_NATIVE,
)
_WHOLE = [schema for schema in SCHEMAS if schema.name != "native-answer"]  # of several answers
_MAY_LACK = ("id", "question", "answer")  # fields that `--map` names, in one of several files


def _kind_of(row: Json, kinds: Sequence[Kind]) -> Kind | None:
    return next((kind for kind in kinds if kind.fields <= row.keys()), None)


def _named(rows: Sequence[Json], pairs: Pairs) -> Kind | None:
    """The kind of a file whose fields `--map` names; of some it may have none."""
    there = tuple(
        (name, field)
        for name, field in pairs
        if name not in _MAY_LACK or not field or any(has(row, field) for row in rows)
    )
    schema, fields = mapped(there), dict(there)

    def read(row: Json, line: int) -> Answer:
        return _native(schema.native(row), line)

    for kind in _NATIVE:
        (name,) = kind.fields
        field = fields.get(name, name)
        if any(has(row, field) for row in rows):
            return replace(
                kind, fields=frozenset(), key=partial(_native_key, fields=fields), read=read
            )
    return None


def is_one_models(source: Source) -> bool:
    """Whether a file holds one model's answers, and nothing that is judged by itself."""
    first = next((row for _, row in _rows(source, [])), None)
    if first is None or any(schema.fields <= first.keys() for schema in SCHEMAS):
        return False
    return _kind_of(first, _PUBLISHED) is not None


def read_side(source: Source, pairs: Pairs) -> ModelFile:
    """Raises InputError for a file of none of the kinds, for an id that is there twice, and where
    no row has one."""
    torn: list[tuple[int, str]] = []
    placed = list(_rows(source, torn))
    rows = [row for _, row in placed]
    kind = _named(rows, pairs) if pairs else _kind(rows)
    if kind is None:
        known = ", ".join(kind.name for kind in _PUBLISHED)
        hint = "else name it: --map answer=FIELD"
        if rows and _is_whole(rows[0]):
            hint = "here are rows of several: judge it by itself, or cat such files | jlm judge -"
        raise InputError(
            f"{source.name}: does not hold one model's answers; known are {known}, and those with "
            f"a field answer ({hint})"
        )
    found: dict[Any, Answer] = {}
    for line, row in placed:
        where = f"{source.name}:{line}"
        try:
            if (key := need_id(kind.key(row))) is None:
                raise RowError("missing-field", "has no id and no question to be joined by")
        except RowError as error:
            torn.append((line, str(error)))
            continue
        if key in found:
            raise InputError(f"{where}: {str(key)[:60]!r} appears twice")
        found[key] = _answer(kind, row, line)
    if torn and not found:
        raise InputError(f"{source.name}:{torn[0][0]}: {torn[0][1]}")
    return ModelFile(source.name, kind, found, torn)


def _answer(kind: Kind, row: Json, line: int) -> Answer:
    try:
        if missing := sorted(kind.fields - row.keys()):
            raise RowError("missing-field", f"field {missing[0]} is missing")
        answer = kind.read(row, line)
        if not kind.asks:
            need_text(answer.text, "answer")
        return answer
    except RowError as error:
        return Answer(line, problem=str(error))


def _rows(source: Source, torn: list[tuple[int, str]]) -> Iterator[tuple[int, Json]]:
    """Line and row; of lines that hold none the numbers, and why."""
    for index, raw in enumerate(source):
        try:
            yield source.line(index), parse_row(raw)
        except RowError as error:
            torn.append((source.line(index), str(error)))


def _kind(rows: Sequence[Json]) -> Kind | None:
    """That of the first row; a file of questions has no answer in any."""
    kinds = (_kind_of_row(row) for row in rows)
    first = next(kinds, None)
    if first is not None and not first.asks:
        return first
    return next((kind for kind in kinds if kind is not None and not kind.asks), first)


def _kind_of_row(row: Json) -> Kind | None:
    return None if _is_whole(row) else _kind_of(row, _KINDS)


def _is_whole(row: Json) -> bool:
    return any(schema.fields <= row.keys() for schema in _WHOLE)
