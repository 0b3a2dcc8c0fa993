"""Which schema an input has: by `--map`, by name, or by the fields of its first row."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

from jlm_cli.errors import InputError, RowError
from jlm_cli.reading.schemas import SCHEMAS, Schema, dotted, listed, parse_row, schema_of
from jlm_cli.reading.source import Source
from jlm_cli.records import Json

Pairs = tuple[tuple[str, str], ...]  # of `--map`

_NATIVE_FIELDS = (
    "id",
    "question",
    "answers",
    "answer",
    "reference",
    "gold",
    "gold_without_reference",  # of training rows that hold both judgments
    "models",
    "model",
    "category",
)


_NUMBERED = re.compile(r"(answer|model)_(\d+)")


def mapped(pairs: Pairs) -> Schema:
    """The schema of `--map NATIVE=FIELD`; FIELD may be dotted (`choices.0.text`, `turns.-1`),
    answers and models may be answer_1, answer_2 and model_1, model_2.
    Fields that already have native names keep them; with no FIELD, one is left out.

    Raises InputError for a native name that does not exist.
    """
    _check_names(pairs)
    plain = [(name, field) for name, field in pairs if name in _NATIVE_FIELDS and field]
    answers, models = (_numbered(pairs, name) for name in ("answer", "model"))
    named = {name for name, _ in pairs}
    for one, several in (("answer", "answers"), ("model", "models")):
        if any(name.startswith(one) for name in named):
            named |= {one, several}
    as_they_are = [name for name in _NATIVE_FIELDS if name not in named]

    def native(row: Json) -> Json:
        fields = {name: row[name] for name in as_they_are if name in row}
        for name, field in plain:
            try:
                fields[name] = dotted(row, field)
            except RowError:
                if _is_due(name):
                    raise
        if answers:
            fields["answers"] = [dotted(row, field) for field in answers]
        if models and all(has(row, field) for field in models):
            fields["models"] = [dotted(row, field) for field in models]
        return listed(fields)

    row_id = dict(pairs).get("id", "id") or None
    return Schema("map", frozenset(), native, row_id, (lambda _: answers) if answers else None)


def _check_names(pairs: Pairs) -> None:
    for name, times in Counter(name for name, _ in pairs).items():
        if times > 1:
            raise InputError(f"--map {name}=…: is given {times} times")
        if name not in _NATIVE_FIELDS and not _NUMBERED.fullmatch(name):
            raise InputError(
                f"--map {name}=…: no such native field; there are answer_1, answer_2, model_1, "
                "model_2, " + ", ".join(_NATIVE_FIELDS)
            )


def _numbered(pairs: Pairs, name: str) -> list[str]:
    """The fields of answer_1, answer_2, … in order."""
    found = [(match, field) for one, field in pairs if (match := _NUMBERED.fullmatch(one))]
    some = sorted((int(match[2]), field) for match, field in found if match[1] == name)
    if [number for number, _ in some] != list(range(1, len(some) + 1)):
        raise InputError(f"--map {name}_N=…: they are numbered from 1 on, with none left out")
    return [field for _, field in some]


def _is_due(name: str) -> bool:
    """Other fields may be missing in some rows, as they may in native ones."""
    return name == "question" or name.startswith("answer")


def has(row: Json, field: str) -> bool:
    try:
        dotted(row, field)
    except RowError:
        return False
    return True


def check_named(sources: Sequence[Source], pairs: Pairs) -> None:
    """Raises InputError for a field that `--map` names and no row has: a slip of the pen. Rows of a
    single file that lack their question or an answer are errors of their own."""
    alone = len(sources) == 1
    wanted = {field for name, field in pairs if field and not (alone and _is_due(name))}
    n_rows = 0
    for raw in itertools.chain.from_iterable(sources):
        if not wanted:
            return
        with suppress(RowError):
            row = parse_row(raw)
            wanted -= {field for field in wanted if has(row, field)}
            n_rows += 1
    if wanted and n_rows:
        names = ", ".join(source.name for source in sources)
        raise InputError(f"{names}: no row has the field {min(wanted)} (named by --map)")


def asked_for(name: str, pairs: Pairs) -> Schema | None:
    """The schema of `--map`, or of `--schema`; None where an input is to tell it. Raises InputError
    for a name that does not exist."""
    if pairs and name != "auto":
        raise InputError("--map names the fields of its own format; leave out --schema")
    if pairs:
        return mapped(pairs)
    by_name = {schema.name: schema for schema in SCHEMAS}
    if name not in ("auto", *by_name):
        raise InputError(f"--schema {name}: there are auto, {', '.join(by_name)}")
    return by_name.get(name)


def recognise(source: Source, name: str, pairs: Pairs) -> Schema:
    """The schema of an input: by `--map`, by name, or by the fields of its first JSON object."""
    if (schema := asked_for(name, pairs)) is not None:
        check_named([source], pairs)
        return schema
    for index, raw in enumerate(source):
        try:
            row = parse_row(raw)
        except RowError:
            continue
        return _fitting(row, source.where(index))
    return SCHEMAS[0]


def _fitting(row: Json, where: str) -> Schema:
    if (schema := schema_of(row)) is not None:
        return schema
    nearest = max(SCHEMAS, key=lambda schema: len(schema.fields & row.keys()))
    missing = ", ".join(sorted(nearest.fields - row.keys()))
    found = ", ".join(sorted(row)) or "none"
    raise InputError(
        f"{where}: no schema fits the fields {found}; the nearest is {nearest.name}, "
        f"which also needs {missing}; name fields with --map question=FIELD --map answer_1=FIELD, "
        f"or use --schema {nearest.name} where only some rows lack them"
    )
