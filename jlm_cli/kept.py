"""What `--retry-errors` keeps of an output: the judgments whose rows the input still has, wherever
they stand now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from jlm_cli.errors import RowError, UsageError
from jlm_cli.journal import ROW_BY_ROW, first_difference
from jlm_cli.measuring.standings import TALLIES
from jlm_cli.output import made_with, summary_path
from jlm_cli.reading.rows import Rows
from jlm_cli.reading.side_files import Key, key_of
from jlm_cli.records import Json, digest_of, dump, need_id

_NOWHERE = -1

Content = tuple[Key, str | None]  # what a judgment is of: the id, and what the sample holds


@dataclass(frozen=True)
class Kept:
    """For each row of the input where in the output its record begins, in bytes; -1: nowhere."""

    output: Path
    starts: NDArray[np.int64]

    @property
    def rows(self) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = self.starts != _NOWHERE
        return found

    def of(self, left: NDArray[np.bool_]) -> Kept:
        """But for those that are done already."""
        return Kept(self.output, np.where(left, self.starts, _NOWHERE))

    def records(self, rows: Rows) -> Iterator[tuple[int, bytes]]:
        """Each kept row with its record, which has the line and the gold of today."""
        with self.output.open("rb") as file:
            for row in np.flatnonzero(self.rows).tolist():
                file.seek(self.starts[row])
                sample = rows.sample(row)
                gold = None if sample.gold is None else sample.gold.json()
                record = orjson.loads(file.readline())
                yield row, dump({**record, "line": sample.line, "gold": gold})


@dataclass
class _Left:
    """Judgments that are not of the row in their place: where they begin, how many have an id."""

    starts: dict[Content, list[int]] = field(default_factory=dict)
    ids: Counter[Key] = field(default_factory=Counter)

    def add(self, content: Content, start: int) -> None:
        self.starts.setdefault(content, []).append(start)
        self.ids[content[0]] += 1

    def take(self, content: Content) -> int:
        """Where one of these begins; -1 where there is none."""
        if not (starts := self.starts.get(content)):
            return _NOWHERE
        self.ids[content[0]] -= 1
        return starts.pop()


def kept_of(output: Path, rows: Rows, give_up: bool) -> Kept:
    """Raises UsageError where the output is none of jlm, and (but with `give_up`) where it holds
    judgments of rows that the input no longer has."""
    starts = np.full(len(rows), _NOWHERE, np.int64)
    left, n_judged, failed = _Left(), 0, Counter[Key]()
    for number, (start, record) in enumerate(_records(output, rows)):
        if "error" in record:
            failed[key_of(record["id"])] += 1
            continue
        n_judged += 1
        content = _content_of(record)
        if number < len(rows) and content == _content(rows, number):
            starts[number] = start
        else:
            left.add(content, start)
    unjudged, broken = Counter[Key](), Counter[Key]()
    for row in np.flatnonzero(starts == _NOWHERE).tolist() if left.ids else ():
        content = _content(rows, row)
        starts[row] = left.take(content)
        found = broken if content[1] is None else unjudged
        found[content[0]] += int(starts[row] == _NOWHERE)
    if not give_up:
        changed = unjudged - (failed - broken)  # these rows are still there
        gone = left.ids - changed
        _check_given_up(rows.config.output, gone, n_judged, bool((starts == _NOWHERE).all()))
    return Kept(output, starts)


def _check_given_up(output: Path | None, gone: Counter[Key], n_judged: int, nothing: bool) -> None:
    if gone:
        key = next(iter(gone))
        one = "without id" if key[1] is None else f"id {str(key[1])[:60]!r}"
        raise UsageError(
            f"{output}: the input no longer has the rows of {gone.total()} of its judgments "
            f"({one} first); --retry-errors with --overwrite gives them up"
        )
    if nothing and n_judged > 1:
        raise UsageError(
            f"{output}: the rows of all its {n_judged} judgments have changed; --retry-errors with "
            "--overwrite judges them again"
        )


def check_made_with(output: Path, facts: Json) -> None:
    """Raises UsageError where the summary beside the output names another setting or model. What
    the input and its side files say is compared row by row."""
    path = summary_path(output)
    before = made_with(path)
    if before is None:
        raise UsageError(
            f"{path}: is not there, or no summary; --retry-errors learns from it how {output} was "
            "made"
        )
    if (name := first_difference(before, facts, but=ROW_BY_ROW)) is not None:
        raise UsageError(
            f"{output}: was made with another {name}; --retry-errors takes the same settings"
        )


def _records(output: Path, rows: Rows) -> Iterator[tuple[int, Json]]:
    """Where each record begins, and the record. Raises UsageError for what is none."""
    tally = TALLIES[rows.config.command]()  # takes nothing that could not be summed up
    start, number = 0, 0
    with output.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                record = orjson.loads(raw)
                tally.add({"sample": {"models": None}, **record})
                need_id(record["id"])
                is_ours = record["mode"] == rows.config.command and "line" in record
            except (ValueError, LookupError, TypeError, AttributeError, RowError):
                is_ours = False
            if not is_ours:
                raise UsageError(f"{output}:{number}: is not a record of jlm")
            yield start, record
            start += len(raw)
    if not number:
        raise UsageError(f"{output}: holds no record")


def _content_of(record: Json) -> Content:
    sample = record.get("sample")
    held = record.get("sample_sha256") if sample is None else digest_of(sample)
    return key_of(record["id"]), held or "unknown"


def _content(rows: Rows, row: int) -> Content:
    """Of a row as it is now; what it holds is None where it cannot be judged."""
    try:
        sample = rows.sample(row)
    except RowError:
        return key_of(rows.id_of(row)), None
    return key_of(sample.id), digest_of(sample.json())
