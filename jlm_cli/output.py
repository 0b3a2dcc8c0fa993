"""The file that results go to: what must not be written, and what stands there already."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from jlm_cli.config import Config
from jlm_cli.errors import RowError, UsageError
from jlm_cli.journal import begun, first_difference, folder_of
from jlm_cli.records import Json
from jlm_cli.rows import Rows
from jlm_cli.standings import TALLIES

MADE_WITH = "made_with"  # in the summary: all that could have changed a byte of the output
_ROW_BY_ROW = ("input", "limit", "reference", "gold")  # compared so by `good_rows`


def summary_path(output: Path) -> Path:
    """OUT without .jsonl, with .metrics.json."""
    stem = output.name.removesuffix(".jsonl")
    return output.with_name(f"{stem}.metrics.json")


def check_output(config: Config) -> None:
    """Refuse, before anything is loaded, what must not or cannot be written."""
    output = config.output
    if output is None:
        if config.retry_errors:
            raise UsageError("--retry-errors needs the output of before: name it with --output")
        return
    _check_name(output, config)
    _check_name(summary_path(output), config)
    if config.retry_errors and not output.exists():
        raise UsageError(f"{output}: is not there; --retry-errors judges its error records again")
    may_replace = config.overwrite or config.retry_errors or begun(folder_of(output))
    if output.exists() and not may_replace:
        raise UsageError(f"{output}: exists; take --overwrite, or another --output")
    summary = summary_path(output)
    if summary.exists() and not may_replace and _made_with(summary) is None:
        raise UsageError(f"{summary}: exists, and is no summary of jlm; take another --output")


def _check_name(path: Path, config: Config) -> None:
    """Raises UsageError where a file of that name must not or cannot be written."""
    if path.suffix in (".gz", ".zst"):
        raise UsageError(f"{path}: results are not compressed; take --output - and a pipe for that")
    check_ordinary(path, "--output - writes to standard output")
    sides = [side for side in (config.reference, config.gold) if side is not None]
    for given in [Path(name) for name in config.inputs if name != "-"] + sides:
        if path.resolve() == given.resolve() or (path.exists() and _same_file(path, given)):
            what = "a side file" if given in sides else "the input"
            raise UsageError(f"{path}: is {what}; name another file with --output")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"{path}: the folder {path.parent} is not writable")


def check_ordinary(path: Path, instead: str) -> None:
    """A file replaces what has its name: raises UsageError where that is a folder, a link, a pipe
    or a device."""
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name a file")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: is no ordinary file; {instead}")
    if path.is_symlink():
        raise UsageError(f"{path}: is a link; name the file itself")


def _same_file(path: Path, other: Path) -> bool:
    return other.exists() and path.samefile(other)


def good_rows(output: Path, rows: Rows, facts: Json) -> NDArray[np.bool_]:
    """Which records of the output are judged, of what the input still says. Raises UsageError
    where the output is not of this input, or was made with other settings."""
    _check_made_with(output, facts)
    tally = TALLIES[rows.config.command]()  # takes nothing that could not be summed up
    good: list[bool] = []
    with output.open("rb") as records:
        for row, raw in enumerate(records):
            try:
                record = orjson.loads(raw)
                tally.add({"sample": {"models": None}, **record})
                same = row < len(rows) and record["line"] == rows.source.line(row)
                good.append(same and "error" not in record and _is_of(record, rows, row))
            except (ValueError, LookupError, TypeError, AttributeError):
                raise UsageError(f"{output}:{row + 1}: is no record of jlm") from None
            if not same and row < len(rows):
                raise UsageError(f"{output}:{row + 1}: is of another line of the input")
    if not 0 < len(good) <= len(rows):
        raise UsageError(
            f"{output}: holds {len(good)} records, the input {len(rows)} rows; "
            "--retry-errors needs the same input, or one with more rows at its end"
        )
    return np.array(good + [False] * (len(rows) - len(good)), bool)


def _check_made_with(output: Path, facts: Json) -> None:
    """Raises UsageError where the summary beside the output names another setting or model. What
    the input and its side files say is compared row by row."""
    path = summary_path(output)
    before = _made_with(path)
    if before is None:
        raise UsageError(
            f"{path}: is not there, or no summary; --retry-errors learns from it how {output} was "
            "made"
        )
    if (name := first_difference(before, facts, but=_ROW_BY_ROW)) is not None:
        raise UsageError(
            f"{output}: was made with another {name}; --retry-errors takes the same settings"
        )


def _made_with(summary: Path) -> Json | None:
    """What a summary names as its making; None where it is none."""
    try:
        made: Json = orjson.loads(summary.read_bytes())[MADE_WITH]
    except (OSError, orjson.JSONDecodeError, LookupError, TypeError):
        return None
    return made


def _is_of(record: Json, rows: Rows, row: int) -> bool:
    """Whether a record was made of what its row says now."""
    try:
        sample = rows.sample(row)
    except RowError:
        return False
    gold = None if sample.gold is None else sample.gold.json()
    told = {"id": sample.id, "mode": rows.config.command, "gold": gold, "sample": sample.json()}
    return all(record[name] == value for name, value in told.items() if name in record)
