"""What `--retry-errors` keeps of an output: the judgments whose rows the input still has, wherever
they stand now."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from jlm_cli.errors import RowError, UsageError
from jlm_cli.journal import first_difference
from jlm_cli.output import made_with, summary_path
from jlm_cli.records import Json, Sample, dump
from jlm_cli.rows import Rows
from jlm_cli.side_files import Key, key_of
from jlm_cli.standings import TALLIES

_ROW_BY_ROW = ("input", "limit", "reference", "gold")  # of a run's facts, compared so here
_NOWHERE = -1

Elsewhere = dict[bytes, list[tuple[int, Key]]]  # where records begin and their ids, by content


@dataclass(frozen=True)
class Kept:
    """For each row of the input where in the output its record begins, in bytes; -1: nowhere."""

    output: Path
    starts: NDArray[np.int64]

    @property
    def rows(self) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = self.starts != _NOWHERE
        return found

    def without(self, rows: NDArray[np.int64]) -> Kept:
        """But for those that are done already."""
        starts = self.starts.copy()
        starts[rows] = _NOWHERE
        return Kept(self.output, starts)

    def records(self, rows: Rows) -> Iterator[tuple[int, bytes]]:
        """Each kept row with its record, which names the line where the row stands now."""
        with self.output.open("rb") as file:
            for row in np.flatnonzero(self.rows).tolist():
                file.seek(self.starts[row])
                raw = file.readline().rstrip(b"\n")
                record, line = orjson.loads(raw), rows.source.line(row)
                yield row, raw if record["line"] == line else dump({**record, "line": line})


def kept_of(output: Path, rows: Rows, facts: Json, give_up: bool) -> Kept:
    """Raises UsageError where the output was made with other settings, is none of jlm or of other
    rows, or (but with `give_up`) holds judgments of rows that the input no longer has."""
    before = _made_before(output, facts)
    starts = np.full(len(rows), _NOWHERE, np.int64)
    elsewhere: Elsewhere = {}
    n_judged, number, compact = 0, -1, False
    for number, (start, record) in enumerate(_records(output, rows)):
        if "error" in record:
            continue
        n_judged += 1
        compact = compact or "sample" not in record
        if number < len(rows) and _is_of(record, rows, number):
            starts[number] = start
        else:
            elsewhere.setdefault(_content(record), []).append((start, key_of(record["id"])))
    if compact and not _begins_alike(rows, number + 1, before, facts):
        raise UsageError(
            f"{output}: its --compact records do not tell what they are of, and the input is not "
            "the one of before with rows at its end"
        )
    ids = _find_moved(rows, starts, elsewhere)
    left = [key for some in elsewhere.values() for _, key in some]
    gone = [key[1] for key in left if key[1] is not None and key not in ids]
    if n_judged and (starts == _NOWHERE).all():
        raise UsageError(f"{output}: none of its {n_judged} judgments is of a row of this input")
    if gone and not give_up:
        raise UsageError(
            f"{output}: the input no longer has the rows of {len(gone)} of its judgments (id "
            f"{str(gone[0])[:60]!r} first); --retry-errors with --overwrite gives them up"
        )
    return Kept(output, starts)


def _made_before(output: Path, facts: Json) -> Json:
    """What the summary beside the output says of its making. Raises UsageError where that is
    another setting or model; what the input and its side files say is compared row by row."""
    path = summary_path(output)
    before = made_with(path)
    if before is None:
        raise UsageError(
            f"{path}: is not there, or no summary; --retry-errors learns from it how {output} was "
            "made"
        )
    if (name := first_difference(before, facts, but=_ROW_BY_ROW)) is not None:
        raise UsageError(
            f"{output}: was made with another {name}; --retry-errors takes the same settings"
        )
    return before


def _records(output: Path, rows: Rows) -> Iterator[tuple[int, Json]]:
    """Where each record begins, and the record. Raises UsageError for what is none."""
    tally = TALLIES[rows.config.command]()  # takes nothing that could not be summed up
    start, number = 0, 0
    with output.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                record = orjson.loads(raw)
                tally.add({"sample": {"models": None}, **record})
                record["line"], record["id"]
            except (ValueError, LookupError, TypeError, AttributeError):
                raise UsageError(f"{output}:{number}: is no record of jlm") from None
            yield start, record
            start += len(raw)
    if not number:
        raise UsageError(f"{output}: holds no record")


def _content(told: Json) -> bytes:
    """What a judgment is of, wherever it stands."""
    about = [told.get(name) for name in ("id", "mode", "gold", "sample")]
    return hashlib.sha256(orjson.dumps(about, option=orjson.OPT_SORT_KEYS)).digest()


def _told(rows: Rows, sample: Sample) -> Json:
    """What the record of a row says of it."""
    gold = None if sample.gold is None else sample.gold.json()
    mode = rows.config.command
    return {"id": sample.id, "mode": mode, "gold": gold, "sample": sample.json()}


def _is_of(record: Json, rows: Rows, row: int) -> bool:
    """Whether a record was made of what its row says now."""
    try:
        told = _told(rows, rows.sample(row))
    except RowError:
        return False
    return all(record[name] == value for name, value in told.items() if name in record)


def _begins_alike(rows: Rows, n: int, before: Json, now: Json) -> bool:
    """Whether the first rows and their references are what they were, to the byte."""
    if before.get("reference") != now["reference"]:
        return False
    return before["input"] == now["input"] or rows.source.begins(n, before["input"])


def _find_moved(rows: Rows, starts: NDArray[np.int64], elsewhere: Elsewhere) -> set[Key]:
    """Give the rows that have none in their place the record that is of them, out of those left;
    the ids of rows that find none."""
    ids = set()
    for row in np.flatnonzero(starts == _NOWHERE).tolist() if elsewhere else ():
        try:
            told = _told(rows, rows.sample(row))
        except RowError:
            ids.add(key_of(rows.id_of(row)))
            continue
        if found := elsewhere.get(_content(told)):
            starts[row], _ = found.pop(0)
        else:
            ids.add(key_of(told["id"]))
    return ids
