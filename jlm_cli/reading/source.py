"""Where rows come from: a JSONL file, a JSON list, or standard input, as seekable lines.

Only the place of each row is kept in memory, so a million rows cost some tens of megabytes.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import shutil
import sys
import tempfile
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import orjson

from jlm_cli.errors import InputError, SystemFailure
from jlm_cli.records import Json, dump, unicode_of

LONGEST_LINE = 16 << 20  # bytes; a longer one is never held in memory, and is an error record

_PIECE = 1 << 20
_ZSTD_PIECE = 4096  # bytes; the few that a hostile file needs to unfold into gigabytes
_GZIP = b"\x1f\x8b"
_OTHERS = {
    b"\xfd7zXZ": "xz data; decompress it first (xz -dc)",
    b"BZh": "bzip2 data; decompress it first (bzip2 -dc)",
    b"PK\x03\x04": "a zip archive; unpack it first",
    b"PAR1": "Parquet; write it as JSON lines first (in pandas: to_json(lines=True, …))",
}
_ZSTD = b"\x28\xb5\x2f\xfd"
_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


class Source:
    """The non-blank rows of one input, in order, each to be read again at any time."""

    def __init__(self, name: str, file: IO[bytes]) -> None:
        self.name = name
        self.n_blank = 0
        self._file = file
        self._starts = array("Q")
        self._lines = array("Q")
        self._sums = array("I")
        self._names: Sequence[str] | None = None
        self._digest = hashlib.sha256()

    def __len__(self) -> int:
        return len(self._starts)

    def line(self, index: int) -> int:
        """The physical line of row `index`, from 1 (of a JSON list: the item)."""
        return self._lines[index]

    def made_from(self, names: Sequence[str], lines: Sequence[int]) -> Source:
        """The same rows, said to stand in the files and on the lines they were made from."""
        self._names, self._lines = names, array("Q", lines)
        return self

    def where(self, index: int) -> str:
        name = self.name if self._names is None else self._names[index]
        return f"{name}:{self.line(index)}"

    def read(self, index: int) -> bytes:
        """Row `index`; of one that is too long, one byte more than the longest there may be.

        Raises InputError where it is no longer what it was."""
        self._file.seek(self._starts[index])
        raw = self._file.readline(LONGEST_LINE + 1)
        if zlib.crc32(raw) != self._sums[index]:
            raise InputError(f"{self.where(index)}: the file has changed since it was opened")
        whole = len(raw) <= LONGEST_LINE or raw.endswith(b"\n")
        return raw.strip() if whole else raw

    def __iter__(self) -> Iterator[bytes]:
        return (self.read(index) for index in range(len(self)))

    def sha256(self) -> str:
        """Of the bytes that were read, in hex."""
        return self._digest.hexdigest()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def scan(self, limit: int | None) -> Source:
        """Find the rows; `limit` ends the scan after that many."""
        number = 0
        start = len(_BOM) if self._file.read(len(_BOM)) == _BOM else 0
        self._file.seek(start)
        while limit is None or len(self._starts) < limit:
            length, blank, checksum = self._take_line()
            if not length:
                break
            number += 1
            if blank:
                self.n_blank += 1
            else:
                self._starts.append(start)
                self._lines.append(number)
                self._sums.append(checksum)
            start += length
        return self

    def _take_line(self) -> tuple[int, bool, int]:
        """Read one line, in pieces: its bytes (0 at the end), whether it is blank, the checksum of
        what `read` gives of it."""
        length, blank, checksum, piece = 0, True, 0, b""
        while not piece.endswith(b"\n") and (piece := self._file.readline(_PIECE)):
            self._digest.update(piece)
            checksum = zlib.crc32(piece[: max(0, LONGEST_LINE + 1 - length)], checksum)
            length += len(piece)
            blank = blank and not piece.strip()
        return length, blank, checksum


def open_source(name: str, limit: int | None = None, stdin: Path | None = None) -> Source:
    """Open `name` and find its rows; `-` is standard input, which was put into `stdin`.

    Raises InputError where it is no readable UTF-8 file of rows.
    """
    if name == "-" and stdin is None:
        raise InputError("-: standard input is not read here; name a file")
    label = "<stdin>" if name == "-" else name
    file = _unpacked(str(stdin) if name == "-" else name, label)
    return Source(label, _list_as_lines(file, label)).scan(limit)


def json_object(name: str) -> Json | None:
    """What a file `….json`, packed or not, holds where that is a single object; None for others.

    Raises InputError as `open_source` does.
    """
    plain = name.removesuffix(".gz").removesuffix(".zst")
    if not plain.endswith(".json") or not Path(name).is_file():
        return None
    with _unpacked(name, name) as file:
        try:
            table = orjson.loads(file.read().removeprefix(_BOM))
        except orjson.JSONDecodeError:
            return None
    return table if isinstance(table, dict) else None


def _unpacked(name: str, label: str) -> IO[bytes]:
    file = _open_file(name)
    start = file.read(6)
    file.seek(0)
    for magic, what in _OTHERS.items():
        if start.startswith(magic):
            file.close()
            raise InputError(f"{label}: this is {what}")
    if start.startswith(_UTF16):
        file.close()
        raise InputError(f"{label}: this is UTF-16; convert it with: iconv -f UTF-16 -t UTF-8")
    if start.startswith(_GZIP):
        file = _unzipped(file, label)
    if start.startswith(_ZSTD):
        file = _unzstd(file, label)
    return file


ENDINGS = (".gz", ".zst", ".jsonl", ".ndjson", ".json")  # of files with rows, the outermost first


def stem_of(path: str, endings: Sequence[str] = ENDINGS) -> str:
    """A file's name without its folder and its endings."""
    stem = path.rsplit("/", 1)[-1]
    for ending in endings:
        stem = stem.removesuffix(ending)
    return stem


def first_fields(path: Path) -> set[str]:
    """The fields of a file's first line; none where that is no JSON object."""
    try:
        with path.open("rb") as file:
            first = orjson.loads(file.readline(LONGEST_LINE))
    except (OSError, orjson.JSONDecodeError):
        return set()
    return set(first) if isinstance(first, dict) else set()


def names_of(paths: Sequence[str], endings: Sequence[str] = ENDINGS) -> list[str]:
    """The stems of files, where those tell them apart."""
    stems = [stem_of(path, endings) for path in paths]
    return [unicode_of(one) for one in (stems if len(set(stems)) == len(stems) else paths)]


def spool_stdin(path: Path) -> Path:
    """Put standard input into a file, so that it can be read again and by every worker."""
    if sys.stdin is None:
        raise InputError("<stdin>: is closed")
    with _told_of_room(), path.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return path


def _open_file(name: str) -> IO[bytes]:
    path = Path(name)
    if path.is_dir():
        raise InputError(f"{name}: is a folder; give a JSONL file")
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}") from error
    if file.seekable():
        return file
    with file:
        return _spooled(file)


def _spooled(stream: IO[bytes]) -> IO[bytes]:
    spool = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as its Source
    with _told_of_room():
        shutil.copyfileobj(stream, spool)
        spool.seek(0)
    return spool


@contextmanager
def _told_of_room() -> Iterator[None]:
    """What is short of room is not the input."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        where = tempfile.gettempdir()
        raise SystemFailure(
            f"{where}: {error.strerror}; the input is put there, see TMPDIR"
        ) from error


def _unzipped(file: IO[bytes], label: str) -> IO[bytes]:
    try:
        with file, gzip.GzipFile(fileobj=file) as plain:
            return _spooled(plain)  # type: ignore[arg-type]
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{label}: broken gzip data: {error}") from error


def _unzstd(file: IO[bytes], label: str) -> IO[bytes]:
    import zstandard

    spool = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as its Source
    frame = zstandard.ZstdDecompressor().decompressobj()
    try:
        while piece := file.read(_ZSTD_PIECE):
            while piece:
                if frame.eof:
                    frame = zstandard.ZstdDecompressor().decompressobj()
                with _told_of_room():
                    spool.write(frame.decompress(piece))
                piece = frame.unused_data
    except zstandard.ZstdError as error:
        raise InputError(f"{label}: broken zstd data: {error}") from error
    if not frame.eof:
        raise InputError(f"{label}: broken zstd data: it ends too early")
    with _told_of_room():
        spool.seek(0)
    return spool


def _list_as_lines(file: IO[bytes], label: str) -> IO[bytes]:
    """A JSON list becomes one line an item; anything else is left as it is. Raises InputError for
    a list that is none all the same."""
    start = file.read(1024).removeprefix(_BOM).lstrip()
    file.seek(0)
    if not start.startswith(b"["):
        return file
    text = file.read().removeprefix(_BOM)
    file.seek(0)
    try:
        items = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if _holds_rows(text):  # which will say what is wrong with the first
            return file
        file.close()
        raise InputError(f"{label}: {why_no_json(text, error)}") from error
    file.close()
    return spooled_rows(items)


def _holds_rows(text: bytes) -> bool:
    """Whether one of the first two lines is JSON by itself, as none of a list's is."""
    lines = [line for line in text.split(b"\n", 9) if line.strip()][:2]
    for line in lines:
        with suppress(orjson.JSONDecodeError):
            orjson.loads(line)
            return True
    return False


def why_no_json(text: bytes, error: orjson.JSONDecodeError) -> str:
    """What is wrong with a text, and where in it."""
    try:
        wrong = text.decode()[error.pos :]
    except UnicodeDecodeError as of_bytes:
        byte, column = text[of_bytes.start], of_bytes.start + 1
        return f"not UTF-8: byte {byte:#04x} at {column}; convert the file (iconv -t utf-8)"
    line = f"line {error.lineno}, " if error.lineno > 1 else ""
    number = next((name for name in _NO_NUMBERS if wrong.startswith(name)), None)
    why = error.msg if number is None else f"{number} is none of its numbers (write null)"
    return f"not JSON: {why}, {line}column {error.colno}"


_NO_NUMBERS = ("NaN", "Infinity", "-Infinity")  # as Python writes them


def spooled_rows(rows: Iterable[Any]) -> IO[bytes]:
    """Rows that were made here, as a file of one line each."""
    spool = tempfile.TemporaryFile()  # noqa: SIM115 - as above
    spool.writelines(dump(row) + b"\n" for row in rows)
    spool.seek(0)
    return spool
