"""Results on their way to the output: appended batch by batch, merged in input order at the end.

They lie in a folder beside the output, `OUT.partial/`: `run.json` says what run it is, each
worker appends to a part of its own. A part is a file of lines `row<TAB>crc32<TAB>record`; behind
each batch stands a line `#<TAB>count`, and what is not followed by one was never written. The
output's own name appears only by rename, once everything is in it.
"""

from __future__ import annotations

import os
import re
import warnings
import zlib
from array import array
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from io import FileIO
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from jlm_cli.errors import UsageError
from jlm_cli.files import naming, sync_folder, write_whole
from jlm_cli.records import Json, dump, dump_indented

RowNumbers = NDArray[np.int64]

_ABOUT = "run.json"
_DONE = "done.json"  # what that is called once the output is there: the rest is to be cleared away
_OUTPUT = "output.json"  # what stood under the output's name when the run began
_OURS = ("part-*", "plan*.npz", "saved.jsonl", "lock", ".*.tmp", _DONE, _OUTPUT)
_EMPTY: RowNumbers = np.empty(0, np.int64)
_RECORD = re.compile(rb"(\d+)\t([0-9a-f]{8})\t(.*)\n", re.DOTALL)
_COMMIT = re.compile(rb"#\t(\d+)\n")


ROW_BY_ROW = ("input", "limit", "reference", "gold")  # facts that --retry-errors sees by the row


def first_difference(before: Json, now: Json, but: Collection[str] = ()) -> str | None:
    """The first fact that is not what it was, `but` some; None where there is none."""
    facts = orjson.loads(dump(now))  # as a file has them
    names = (name for name in {**before, **facts} if name not in but)
    return next((name for name in names if before.get(name) != facts.get(name)), None)


def folder_of(output: Path) -> Path:
    """Where the parts of an output lie while it is made."""
    return output.with_name(output.name + ".partial")


@dataclass(frozen=True)
class Part:
    """The committed records of one part: their rows, where they start, where the last ends."""

    path: Path
    rows: array[int]
    starts: array[int]
    end: int


def read_part(path: Path) -> Part:
    """Raises UsageError where a record is damaged that stands before a committed one."""
    _check_file(path)
    part = Part(path, array("q"), array("q"), 0)
    rows, starts, end, offset, broken = array("q"), array("q"), 0, 0, None
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            record, commit = _RECORD.fullmatch(line), _COMMIT.fullmatch(line)
            if commit and (broken or int(commit[1]) != len(rows)):
                where = broken or number
                raise UsageError(f"{path}:{where}: damaged; remove {path.parent} to begin anew")
            if commit:
                part.rows.extend(rows)
                part.starts.extend(starts)
                rows, starts, end = array("q"), array("q"), offset + len(line)
            elif record and _checksum(record[1], record[3]) == int(record[2], 16):
                rows.append(int(record[1]))
                starts.append(offset)
            else:
                broken = broken or number
            offset += len(line)
    return Part(path, part.rows, part.starts, end)


def _check_file(part: Path) -> None:
    if not part.is_file():
        raise UsageError(f"{part}: is not a file; remove {part.parent} to begin anew")


class Journal:
    """The parts of one run. Only the first worker begins, merges and removes it."""

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder = folder
        self._part = folder / f"part-{rank}"
        self._saved = folder / "saved.jsonl"
        self._file: FileIO | None = None
        self._joined: Json | None = None

    def begin(
        self, facts: Json, discard: bool = False, replacing: Path | None = None
    ) -> RowNumbers:
        """Start the run that `facts` describe, or go on with it: the rows that are done.

        The run may replace what stands under the name `replacing` now, and nothing else. What a
        killed run left half written is cut off. Where the folder belongs to another run,
        that is given up (`discard`), or UsageError names the first fact that differs.
        """
        facts = orjson.loads(dump(facts))
        about = self.folder / _ABOUT
        before = self._about(about)
        if before is not None and before != facts and not discard:
            raise self.other_run(before, facts)
        if before != facts:
            for path in self.folder.glob("part-*"):
                _check_file(path)
                path.unlink()
            for name in (_OUTPUT, _DONE):
                (self.folder / name).unlink(missing_ok=True)
        if replacing is not None:
            write_whole(self.folder / _OUTPUT, iter([dump({"was": _state_of(replacing)})]))
        if first_difference(before or {}, facts, ROW_BY_ROW) is not None:
            self._saved.unlink(missing_ok=True)
        write_whole(about, iter([dump_indented(facts)]))
        parts = self._parts()
        for part in parts:
            os.truncate(part.path, part.end)
        return _rows_of(parts)

    def facts(self) -> Json:
        """What says which run it is."""
        return self._about(self.folder / _ABOUT) or {}

    def _about(self, path: Path) -> Json | None:
        if not path.exists():
            return None
        with suppress(orjson.JSONDecodeError):
            if isinstance(about := orjson.loads(path.read_bytes()), dict):
                return about
        raise UsageError(f"{path}: damaged; remove {self.folder} to begin anew")

    def knows_output(self) -> bool:
        return (self.folder / _OUTPUT).exists()

    def check_output(self, output: Path) -> None:
        """Raises UsageError where something else stands under the output's name by now; what this
        run has put there may."""
        before = self._about(self.folder / _OUTPUT)
        if before is None or _state_of(output) in (None, before.get("was")):
            return
        if output.is_file():
            with output.open("rb") as file:
                if all(ours == theirs for ours, theirs in zip_longest(self.records(), file)):
                    return
        raise UsageError(
            f"{output}: is not what it was when this run began; what is done is kept: move the "
            "file away and give the same command again, or use --overwrite"
        )

    def has_other_rows(self, facts: Json) -> bool:
        """Whether the run is like that of `facts`, but of other rows."""
        before = self.facts()
        differs = first_difference(before, facts) is not None
        return differs and first_difference(before, facts, ROW_BY_ROW) is None

    def save(self) -> None:
        """Put the records aside, before `begin` gives them up for a run with other rows, which
        keeps what is of its own."""
        if self.n_records() and not self._saved.exists():
            write_whole(self._saved, self.records())

    def saved(self, facts: Json) -> Path | None:
        """The file of records that were put aside for a run like that of `facts`."""
        fits = first_difference(self.facts(), facts, ROW_BY_ROW) is None
        return self._saved if fits and self._saved.exists() else None

    def forget_saved(self) -> None:
        """When what is kept of them has been appended."""
        self._saved.unlink(missing_ok=True)

    def other_run(self, before: Json, now: Json, done: str | None = None) -> UsageError:
        """The refusal to go on with a run that was begun otherwise, and has done so much (None: its
        records)."""
        name = first_difference(before, now)
        assert name is not None
        other_rows = first_difference(before, now, ROW_BY_ROW) is None
        keep = "--retry-errors to keep what is done of rows that are still there, or "
        return UsageError(
            f"{self.folder}: was begun with another {name} "
            f"({_change(before.get(name), now.get(name))}); go on with that, or use "
            f"{keep if other_rows else ''}--overwrite to begin anew, without the "
            f"{done or f'{self.n_records():,} rows'} that are done"
        )

    def check(self, facts: Json, but: Collection[str]) -> None:
        """Raises UsageError where a further worker is about another run than the first, in any
        fact `but` some."""
        before = self.facts()
        if (name := first_difference(before, facts, but)) is not None:
            raise UsageError(
                f"worker with {self._part.name}: has another {name} than the first worker "
                f"({_change(before.get(name), facts.get(name))})"
            )
        self._joined = before

    def append(self, records: Sequence[tuple[int, bytes]]) -> None:
        """Write one batch of (row, record) durably.

        Raises UsageError for a worker that `check` let join one run, where another has begun."""
        if self._file is None and self._joined not in (None, self.facts()):
            raise UsageError(f"{self.folder}: another run has begun there; this worker is of none")
        lines = [
            b"%d\t%08x\t%s\n" % (row, _checksum(b"%d" % row, record), record)
            for row, record in records
        ]
        with naming(self._part):
            if self._file is None:
                self._file = self._part.open("ab", buffering=0)
                sync_folder(self.folder)
            self._write(b"".join([*lines, b"#\t%d\n" % len(lines)]))

    def _write(self, data: bytes) -> None:
        """All of it or nothing: a disk that fills up and empties must leave no half behind."""
        assert self._file is not None
        end = os.fstat(self._file.fileno()).st_size
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError:
            with suppress(OSError):
                os.truncate(self._part, end)
            raise

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def done(self) -> RowNumbers:
        """The rows that have a record, in order."""
        return np.unique(_rows_of(self._parts()))

    def n_records(self) -> int:
        return len(self.done())

    def records(self) -> Iterator[bytes]:
        """All records in input order, each with its newline; memory for their places only. Of a
        row that was judged twice, the first is taken: a lost worker may come back late."""
        parts = self._parts()
        which = np.repeat(np.arange(len(parts)), [len(part.rows) for part in parts])
        starts = np.concatenate([_EMPTY, *(np.asarray(part.starts, np.int64) for part in parts)])
        files = [part.path.open("rb") for part in parts]
        try:
            for place in np.unique(_rows_of(parts), return_index=True)[1]:
                file = files[which[place]]
                file.seek(starts[place])
                yield file.readline().split(b"\t", 2)[2]
        finally:
            for file in files:
                file.close()

    def _parts(self) -> list[Part]:
        return [read_part(path) for path in sorted(self.folder.glob("part-*"))]

    def end(self) -> None:
        """Say that the output is there, so that no run goes on here."""
        (self.folder / _ABOUT).replace(self.folder / _DONE)

    def remove(self) -> None:
        """The folder, and all in it that runs have left there."""
        self.close()
        self.end()
        with suppress(OSError):  # what is left then belongs to no run
            _clear(self.folder)


def _checksum(row: bytes, record: bytes) -> int:
    return zlib.crc32(record, zlib.crc32(row))


def _rows_of(parts: Sequence[Part]) -> RowNumbers:
    return np.concatenate([_EMPTY, *(np.asarray(part.rows, np.int64) for part in parts)])


def _change(before: Any, now: Any) -> str:
    """How a fact is not what it was, as people say it."""
    if isinstance(before, dict) and isinstance(now, dict) and "name" in before.keys() & now.keys():
        if before["name"] == now["name"]:
            return f"{now['name']}, whose {first_difference(before, now)} has changed"
        before, now = before["name"], now["name"]
    sums = [isinstance(one, str) and bool(_CHECKSUM.fullmatch(one)) for one in (before, now)]
    if all(sums):
        return "other contents"
    if any(sums):
        return "one before, now none" if sums[0] else "none before, now one"
    return f"{_brief(before)}, now {_brief(now)}"


_CHECKSUM = re.compile("[0-9a-f]{64}")


def _brief(value: Any) -> str:
    text = dump(value).decode()
    return text if len(text) <= 60 else text[:57] + "…"


def _state_of(output: Path) -> list[int] | None:
    """What tells a file from one that has replaced it; None where there is none."""
    try:
        status = output.stat()
    except FileNotFoundError:
        return None
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def _clear(folder: Path) -> None:
    """All that runs left there, and the folder if nothing else is in it."""
    for pattern in _OURS:
        for path in folder.glob(pattern):
            if path.name != _DONE:
                path.unlink()
    (folder / _DONE).unlink(missing_ok=True)
    folder.rmdir()


def _check_ours(folder: Path) -> None:
    """Raises UsageError for a folder that jlm did not make, or that a run has lost its name in."""
    if begun(folder):
        return
    names = [path.name for path in folder.iterdir()]
    if (folder / _DONE).exists():
        return
    if any(fnmatch(name, "part-*") or fnmatch(name, "checkpoint-*") for name in names):
        raise UsageError(
            f"{folder}: holds what was done of a run, but not {_ABOUT}, which says of which; bring "
            "it back, or remove the folder to begin anew"
        )
    if foreign := [name for name in names if not any(fnmatch(name, ours) for ours in _OURS)]:
        raise UsageError(f"{folder}: is not jlm's ({foreign[0]} is in it); move it away")


def begun(folder: Path) -> bool:
    """Whether a run is under way in the folder, or was ended before it was done."""
    return (folder / _ABOUT).exists()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for this run alone; the lock dies with its owner. A folder in which no run
    was begun goes with it."""
    lock = folder / "lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of file systems without locks: a file stands for one
            held = FileLock(lock).acquire(timeout=0)
    except Timeout:
        raise UsageError(
            f"{folder}: another run is writing there; wait for it, or name another --output"
        ) from None
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror}") from error
    with held:
        try:
            _check_ours(folder)
            yield
        except BaseException:
            if not begun(folder):
                with suppress(OSError):
                    lock.unlink()
                    folder.rmdir()
            raise
