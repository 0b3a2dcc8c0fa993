"""Files beside the input, whose rows are joined to its rows by id: references and gold."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jlm_cli.errors import At, InputError, RowError
from jlm_cli.reading.schemas import gold_of_votes, parse_row, reference_text, schema_of
from jlm_cli.reading.source import Source, open_source
from jlm_cli.records import VERDICTS, Gold, Json, need_id, read_gold, read_score_line

Key = tuple[type, Any]
GOLD_FIELDS = ("gold", "verdict", "text", "score", "scores")


def key_of(row_id: Any) -> Key:
    """What rows are joined by: `1` and `"1"` are two ids, as they are in JSON."""
    return (type(row_id), row_id)


@dataclass(frozen=True)
class Joined:
    """A side file by id: references or gold, and the SHA-256 of what was read."""

    name: str
    by_id: dict[Key, Any]
    sha256: str

    def find(self, row_id: Any) -> Any | None:
        return self.by_id.get(key_of(row_id))

    def missing(self, row_id: Any, what: str) -> RowError:
        """The error record of a row for whose id the file holds nothing."""
        if key_of(row_id) in self.by_id:
            return RowError(f"missing-{what}", f"id {row_id!r} has no {what} in {self.name}")
        why = twin_hint(row_id, self.by_id)
        return RowError(f"missing-{what}", f"id {row_id!r} is not in {self.name}{why}")


def twin_hint(row_id: Any, keys: Container[Key]) -> str:
    """Why a file may not have an id: it has the number for the text, or the other way round."""
    twins: list[Any]
    if row_id is None:
        return ""
    if isinstance(row_id, str):
        twins = [int(row_id)] if re.fullmatch(r"\d{1,18}", row_id) else []
    else:
        twins = [str(row_id), float(row_id), *([int(row_id)] if row_id == int(row_id) else [])]
    for twin in twins:
        if key_of(twin) != key_of(row_id) and key_of(twin) in keys:
            alike = isinstance(row_id, str) or isinstance(twin, str)
            why = "a text and a number" if alike else "a whole number and another"
            return f" (which has {twin!r}: {why} are two ids)"
    return ""


def id_in(row: Json) -> Any:
    """A row's id under its names in all formats. Raises RowError where it has none."""
    for name in ("id", "question_id", "idx"):
        if name in row:
            return need_id(row[name])
    raise RowError("missing-field", "field id (or question_id) is missing")


def key_in(row: Json, where: str) -> Key:
    """What a row is joined by. Raises InputError where it has no id."""
    with At(where):
        return key_of(id_in(row))


def _reference_in(row: Json) -> str | None:
    for name in ("reference", "text"):
        if name in row:
            return reference_text(row[name])
    raise RowError("missing-field", "field reference is missing")


def gold_in(row: Json) -> Any | None:
    """What a line of a gold file says, under the first of gold's names that it has; None where that
    is nothing. Raises RowError where it has none of them."""
    if not any(name in row for name in GOLD_FIELDS):
        if any(name.startswith("annotator") for name in row):
            return gold_of_votes(row)
        if (schema := schema_of(row)) is not None and "gold" in (fields := schema.native(row)):
            if schema.name == "rewardbench" and fields["models"] is None:
                raise RowError("missing-field", "chosen and rejected of no named models")
            return fields["gold"]
        raise RowError("missing-field", "field gold (or verdict, text, score) is missing")
    if "gold" in row:  # a judgment of a row without gold is no gold
        return row["gold"]
    return next((row[name] for name in GOLD_FIELDS if row.get(name) is not None), None)


def models_in(row: Json) -> Any:
    """Whose answers a line is about, in its order, where it says so in any format."""
    sample = row.get("sample")
    if told := row.get("models") or (sample.get("models") if isinstance(sample, dict) else None):
        return told
    schema = schema_of(row)
    told = None if schema is None or schema.name == "native-answer" else schema.native(row)
    return told and told.get("models")


def are_others(models: Sequence[str], other: Any) -> bool:
    """Whether two lists of names are of other models."""
    told = bool(models) and bool(other) and isinstance(other, list | tuple)
    return told and sorted(models) != sorted(map(str, other))


def places_of(ours: Any, theirs: Any, count: int) -> list[int]:
    """Where each of our models stands among theirs; where that is not said, all at their own."""
    if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple):
        names, others = [str(one) for one in ours], [str(one) for one in theirs]
        if sorted(names) == sorted(others) and len(set(names)) == len(names) == count:
            return [others.index(name) for name in names]
    return list(range(count))


def are_turned(models: Sequence[str], other: Any) -> bool:
    """Whether the same two models stand the other way round."""
    return (
        isinstance(other, list | tuple)
        and len(models) == len(other) == 2
        and models[0] != models[1]
        and list(models) == list(other)[::-1]
    )


def load_references(path: Path) -> Joined:
    """`--reference FILE`: id and reference on each line; an id may stand there again with the same.

    Raises InputError on another.
    """
    by_id: dict[Key, Any] = {}
    with open_source(str(path)) as source:
        for index, (key, reference) in enumerate(_side_rows(source, _reference_in)):
            if by_id.setdefault(key, reference) != reference:
                raise InputError(
                    f"{source.where(index)}: id {key[1]!r} appears twice, with two references"
                )
        return Joined(str(path), by_id, source.sha256())


def _n_judged(gold: Any) -> int:
    """How many answers gold is about, by itself."""
    scores = read_score_line(gold) if isinstance(gold, str) and gold not in VERDICTS else gold
    return len(scores) if isinstance(scores, list | tuple) else 2


def load_gold(path: Path, n_answers: int | None) -> Joined:
    """`--gold FILE`: id and gold on each line, about as many answers as a row has (None: any), as
    gold (None: unreadable) with the models that it names in its order, and as it was given.

    Raises InputError on a duplicate id, and where gold is of another kind.
    """

    def read(row: Json) -> tuple[Gold | None, Any, Any] | None:
        if (given := gold_in(row)) is None:  # of no use
            return None
        return read_gold(given, n_answers or _n_judged(given)), models_in(row), given

    return load_once(path, read)


def load_once(path: Path, value_in: Callable[[Json], Any]) -> Joined:
    """A side file in which an id stands once. Raises InputError."""
    by_id: dict[Key, Any] = {}
    with open_source(str(path)) as source:
        for index, (key, value) in enumerate(_side_rows(source, value_in)):
            if key in by_id:
                raise InputError(
                    f"{source.where(index)}: id {key[1]!r} appears twice; gold must be unique "
                    "(jlm metrics also tells pairs by their models)"
                )
            by_id[key] = value
        return Joined(str(path), by_id, source.sha256())


def _side_rows(source: Source, value_in: Callable[[Json], Any]) -> Iterable[tuple[Key, Any]]:
    for index, raw in enumerate(source):
        with At(source.where(index)):
            row = parse_row(raw)
            if (row_id := id_in(row)) is None:
                raise RowError("missing-field", "field id: null, and rows are joined by id")
            yield key_of(row_id), value_in(row)
