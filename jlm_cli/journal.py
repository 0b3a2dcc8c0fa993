"""Results on their way to the output: appended batch by batch, merged in input order at the end.

A part is a file of lines `row<TAB>crc32<TAB>record`. The output's own name appears only by
rename, once everything is in it.
"""

from __future__ import annotations

import os
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from jlm_cli.errors import UsageError


def folder_of(output: Path | None) -> Path:
    """Where the parts of an output lie while it is made."""
    if output is None:
        return Path(tempfile.mkdtemp(prefix="jlm-"))
    return output.with_name(output.name + ".partial")


class Journal:
    """The parts of one run, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._part = folder / "part-0"
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Journal:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = self._part.open("wb")
        except OSError as error:
            raise UsageError(f"{self.folder}: cannot be written: {error.strerror}") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, records: Sequence[tuple[int, bytes]]) -> None:
        """Write one batch of (row, record) durably."""
        assert self._file is not None
        for row, record in records:
            self._file.write(b"%d\t%08x\t%s\n" % (row, zlib.crc32(record), record))
        self._file.flush()
        os.fsync(self._file.fileno())

    def records(self) -> Iterator[bytes]:
        """All records in input order, each with its newline; memory for their places only."""
        rows, starts = [], []
        with self._part.open("rb") as file:
            offset = 0
            for line in file:
                rows.append(int(line.split(b"\t", 1)[0]))
                starts.append(offset)
                offset += len(line)
            for place in np.argsort(np.array(rows, np.int64), kind="stable"):
                file.seek(starts[place])
                yield file.readline().split(b"\t", 2)[2]

    def remove(self) -> None:
        self._part.unlink(missing_ok=True)
        self.folder.rmdir()


def write_whole(path: Path, lines: Iterator[bytes]) -> None:
    """Write a file that appears under its name only when it is complete."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def write_stdout(lines: Iterator[bytes]) -> None:
    sys.stdout.buffer.writelines(lines)
    sys.stdout.buffer.flush()
