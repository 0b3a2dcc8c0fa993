"""Anyone's predictions as columns: read line by line, joined by id, never by position.

A line is an output record of jlm, a row of the official pipeline with `pred_text` (or a teacher's
`text`), or a minimal one with `id` and `verdict` or `scores`. Texts are not kept: a row is read
again where a report shows it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jlm_cli.errors import At, InputError, RowError
from jlm_cli.measuring.columns import (
    NONE,
    Columns,
    PairTally,
    about_of,
    asked_by,
)
from jlm_cli.measuring.lines import about_in, native_fields, read_judged, with_gold
from jlm_cli.reading.schemas import parse_row
from jlm_cli.reading.side_files import Key, are_turned, gold_in, id_in, key_of, twin_hint
from jlm_cli.reading.source import Source, open_source
from jlm_cli.records import Json

_ID_SHOWN = 80  # characters, of a question that stands for one


@dataclass(frozen=True)
class Index:
    """Rows by id; by id and pair of models where ids repeat (one question, many pairs). An error
    record has no models: in the input that it was made of, it is found by its `line`."""

    name: str
    rows: dict[Any, int]
    with_models: bool
    failed: dict[Any, int] = field(default_factory=dict)  # by id and line

    def find(self, row_id: Any, models: Any, line: int = -1) -> int | None:
        at = self.rows.get(self.key(row_id, models))
        return self.failed.get((key_of(row_id), line)) if at is None else at

    def key(self, row_id: Any, models: Any) -> Any:
        return _pair_key(row_id, models) if self.with_models else key_of(row_id)

    def could_find(self, tally: PairTally, row: int) -> bool:
        """Whether what another file has of a row would have come to it."""
        told = bool(tally.models_of(row)) or not tally.has_failed(row)
        return told or not (self.with_models or tally.n_turned)

    def hint(self, row_id: Any) -> str:
        """Why an id may not have been found."""
        return "" if self.with_models else twin_hint(row_id, self.rows)


@dataclass
class Side:
    """A further file of the same rows, and which of its rows each prediction has (-1: none)."""

    source: Source
    rows: array[int]
    unknown: list[Any] = field(default_factory=list)  # ids that no prediction has


@dataclass(frozen=True)
class Predictions:
    """The predictions of one judge. `sides` are the files that were joined to it, by name;
    `ids_repeat` where it took the models to join them."""

    name: str
    source: Source
    tally: PairTally
    ids: list[Any]
    columns: Columns
    sides: dict[str, Side]
    ids_repeat: bool
    files: ExitStack

    def __enter__(self) -> Predictions:
        return self

    def __exit__(self, *error: object) -> None:
        self.files.close()

    def label(self, row: int) -> Any:
        """A row's id, with its models where that says more."""
        return _label(self.ids[row], self.tally.models_of(row) if self.ids_repeat else ())

    def index(self, with_models: bool = False) -> Index:
        """By id, or by id and models at once. Raises InputError where rows cannot be told apart."""
        return _index(self.name, self.ids, self.tally, with_models)

    def record(self, row: int) -> Json:
        """A row as it stands in its file, with what the other files know of it."""
        record = parse_row(self.source.read(row))
        known = native_fields(record)
        for name in ("gold", "input"):
            side = self.sides.get(name)
            if side is not None and side.rows[row] >= 0:
                more = native_fields(parse_row(side.source.read(side.rows[row])))
                if are_turned(self.tally.models_of(row), more.get("models")):
                    turned = {key: more.get(key) for key in ("answers", "models")}
                    more |= {k: v[::-1] for k, v in turned.items() if isinstance(v, list)}
                known = {**more, **{key: value for key, value in known.items() if value}}
        return {**record, "sample": {name: known.get(name) for name in _SAMPLE}}

    def missing(self, side: str) -> list[Any]:
        """Ids of the predictions that a joined file does not hold."""
        rows = enumerate(self.sides[side].rows)
        return [self.label(n) for n, row in rows if row < 0 and self.ids[n] is not None]


_SAMPLE = ("question", "answers", "reference", "models", "category")


def read_predictions(
    path: str,
    gold: Path | None = None,
    reversed_: Path | None = None,
    more: Path | None = None,
    stdin: Path | None = None,
) -> Predictions:
    """Raises InputError where a line is no prediction, or files are not of the same rows."""
    with ExitStack() as files:
        source = files.enter_context(open_source(path, stdin=stdin))
        tally, ids, lines = PairTally(), [], array("q")
        for _, row, where in rows_of(source):
            ids.append(_id_of(row))
            lines.append(_line_of(row))
            judged, about = read_judged(row, where), about_in(row, where)
            if about.question is None:
                about = about._replace(question=asked_by(row, ids[-1]))
            tally.append(judged, about)
        if not ids:
            raise InputError(f"{path}: holds no predictions")
        sides: dict[str, Side] = {}
        ids_repeat = False
        if gold or reversed_ or more:
            index = _index(path, ids, tally)
            ids_repeat = index.with_models
            if more is not None:
                by_line = replace(index, failed=_failed(ids, lines, tally)) if ids_repeat else index
                sides["input"] = _join(by_line, tally, files, more, _learn, _readable)
                if tally.n_gold_learnt:
                    tally.settle_gold(n for n, at in enumerate(sides["input"].rows) if at >= 0)
                index = _index(path, ids, tally)  # with the models that failed rows have got
            if gold is not None:
                tally.forget_gold()
                sides["gold"] = _join(index, tally, files, gold, _learn_gold)
                tally.settle_gold(n for n in range(len(ids)) if index.could_find(tally, n))
            if reversed_ is not None:
                if tally.both_orders:
                    raise InputError(f"{path}: holds both orders already; leave out --reversed")
                sides["reversed"] = _join(index, tally, files, reversed_, _swap_in)
        columns = tally.columns()
        return Predictions(path, source, tally, ids, columns, sides, ids_repeat, files.pop_all())


def rows_of(source: Source) -> Iterator[tuple[int, Json, str]]:
    """Each row's number, the row, and where it stands."""
    for number, raw in enumerate(source):
        where = source.where(number)
        with At(where):
            yield number, parse_row(raw), where


def _readable(source: Source) -> Iterator[tuple[int, Json, str]]:
    """The same of an input that was judged: a line that is no row has an error record."""
    for number, raw in enumerate(source):
        try:
            row = parse_row(raw)
        except RowError:
            continue
        yield number, row, source.where(number)


def records_in(path: str, stdin: Path | None = None) -> Iterator[tuple[Json, str]]:
    """Each row of a file, and where it stands."""
    with open_source(path, stdin=stdin) as source:
        for _, row, where in rows_of(source):
            yield row, where


def _learn(tally: PairTally, at: int, row: Json, where: str) -> None:
    """Texts, models and gold of a line of the input."""
    fields = native_fields(row)
    tally.learn(at, with_gold(fields, fields.get("gold")))


def _swap_in(tally: PairTally, at: int, row: Json, where: str) -> None:
    answers = {"answers": native_fields(row).get("answers")}
    tally.swap_in(at, read_judged(row, where), about_of(answers).lengths)


def _learn_gold(tally: PairTally, at: int, row: Json, where: str) -> None:
    """Gold of a line, in any of its forms; its texts too, where it has them. Where models turn out
    to stand the other way round, that of an error record, which names none, stays unknown."""
    fields = native_fields(row)
    nameless = tally.has_failed(at) and not tally.models_of(at)
    if nameless and tally.n_turned and fields.get("models"):
        return
    about = with_gold(fields, fields.get("gold"))
    if about.gold == NONE:
        about = with_gold(fields, gold_in(row))
    tally.learn(at, about)


def _id_of(row: Json) -> Any:
    """A row's id; where it has none, as AlpacaEval's have none, its question's text."""
    with suppress(RowError):
        if (row_id := id_in(row)) is not None:
            return row_id
    question = native_fields(row).get("question")
    return question if isinstance(question, str) and question else None


def _index(path: str, ids: list[Any], tally: PairTally, with_models: bool = False) -> Index:
    """Raises InputError where rows cannot be told apart."""
    for n, row_id in enumerate(ids):
        if row_id is None and not tally.has_failed(n):  # an error record may stand for a torn line
            raise InputError(f"{path}: row {n + 1} has no id; files are joined by id")
    known = [n for n, row_id in enumerate(ids) if row_id is not None]
    rows = {key_of(ids[n]): n for n in known}
    if len(rows) == len(known) and not with_models:
        return Index(path, rows, False)
    pairs: dict[Any, int] = {}
    for n in known:
        models = tally.models_of(n)
        if not models and tally.has_failed(n):
            continue
        if pairs.setdefault(_pair_key(ids[n], models), n) != n:
            twice = f"id {ids[n]!r} appears twice"
            raise InputError(f"{path}: {twice}; to be joined, ids must be unique")
    return Index(path, pairs, True)


def _failed(ids: Sequence[Any], lines: Sequence[int], tally: PairTally) -> dict[Any, int]:
    """Error records by id and line of the input."""
    failed = (n for n in range(len(ids)) if tally.has_failed(n) and ids[n] is not None)
    return {(key_of(ids[n]), lines[n]): n for n in failed}


def _line_of(row: Json) -> int:
    """The line of the input that a record is of; -1 where it is none of jlm's."""
    line = row.get("line")
    return line if isinstance(line, int) and 0 < line < 2**63 else -1


Take = Callable[[PairTally, int, Json, str], None]


def _join(
    index: Index,
    tally: PairTally,
    files: ExitStack,
    path: Path,
    take: Take,
    rows: Callable[[Source], Iterator[tuple[int, Json, str]]] = rows_of,
) -> Side:
    """Give every row of a file to the prediction with its id; those that failed come last."""
    source = files.enter_context(open_source(str(path)))
    side = Side(source, array("q", [-1]) * len(tally))
    unknown: set[Any] = set()
    late: list[int] = []

    def give(at: int, row: Json, where: str) -> None:
        with At(where):
            take(tally, at, row, where)

    for number, row, where in rows(source):
        row_id = _id_of(row)
        if row_id is None and "error" in row:
            continue
        if row_id is None:
            raise InputError(f"{where}: has no id; files are joined by id")
        models = native_fields(row).get("models") if index.with_models else None
        at = index.find(row_id, models, source.line(number))
        key = index.key(row_id, models)
        if key in unknown or (at is not None and side.rows[at] >= 0):
            raise InputError(f"{where}: id {row_id!r} appears twice; ids must be unique")
        if at is None:
            unknown.add(key)
            side.unknown.append(_label(row_id, _names(models)))
            continue
        side.rows[at] = number
        if tally.has_failed(at):
            late.append(at)
        else:
            give(at, row, where)
    for at in late:
        number = side.rows[at]
        give(at, parse_row(source.read(number)), source.where(number))
    if len(side.unknown) == len(source):
        hint = index.hint(side.unknown[0]) if side.unknown else ""
        raise InputError(f"{path}: shares no id with {index.name}{hint}")
    return side


def _label(row_id: Any, models: Iterable[str]) -> Any:
    names = ", ".join(models)
    if isinstance(row_id, str) and len(row_id) > _ID_SHOWN:
        row_id = f"{row_id[:_ID_SHOWN]}…"
    return f"{row_id} ({names})" if names else row_id


def _pair_key(row_id: Any, models: Any) -> Key:
    return (type(row_id), (row_id, *sorted(_names(models))))


def _names(models: Any) -> tuple[str, ...]:
    return tuple(map(str, models)) if isinstance(models, list | tuple) else ()
