"""The file that results go to: what must not be written, and what stands there already."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import orjson

from jlm_cli.config import Config
from jlm_cli.errors import InputError, UsageError
from jlm_cli.files import check_folder, check_ordinary
from jlm_cli.journal import begun, folder_of
from jlm_cli.reading.source import first_fields
from jlm_cli.records import Json

MADE_WITH = "made_with"  # in the summary: all that could have changed a byte of the output


def summary_path(output: Path) -> Path:
    """OUT without .jsonl, with .metrics.json."""
    stem = output.name.removesuffix(".jsonl")
    return output.with_name(f"{stem}{_SUMMARY}")


_SUMMARY = ".metrics.json"
_LONGEST_NAME = 240  # of the 255 that file systems take


def check_output(config: Config) -> None:
    """Refuse, before anything is loaded, what must not or cannot be written."""
    output = config.output
    if (output is None or config.print_json) and sys.stdout is None:
        raise UsageError("standard output is closed")
    if output is None:
        if config.retry_errors:
            raise UsageError("--retry-errors needs the output of before: name it with --output")
        return
    if output.name.endswith(_SUMMARY):
        raise UsageError(f"{output}: is the name of a summary; name another file with --output")
    _check_name(output, config)
    _check_name(summary_path(output), config)
    if config.retry_errors and not output.exists() and not begun(folder_of(output)):
        raise UsageError(f"{output}: is not there; --retry-errors judges its error records again")
    may_replace = config.overwrite or config.retry_errors or begun(folder_of(output))
    if output.exists() and not may_replace:
        for path in [Path(name) for name in config.inputs if name != "-"]:
            if not path.exists():  # the likelier mistake
                raise InputError(f"{path}: cannot be read: No such file or directory")
        raise UsageError(f"{output}: exists; use --overwrite, or another --output")
    summary, twin = summary_path(output), _twin(output)
    if summary.exists() and not may_replace and made_with(summary) is None:
        raise UsageError(f"{summary}: exists, and is not a summary of jlm; choose another --output")
    if summary.exists() and twin.is_file() and {"mode", "line"} <= first_fields(twin):
        raise UsageError(f"{summary}: is the summary of {twin}; choose another --output")


def _twin(output: Path) -> Path:
    """Another output, whose summary would have the same name."""
    bare = output.name.removesuffix(".jsonl")
    return output.with_name(bare if bare not in ("", output.name) else f"{output.name}.jsonl")


def _check_name(path: Path, config: Config) -> None:
    """Raises UsageError where a file of that name must not or cannot be written."""
    if path.suffix in (".gz", ".zst"):
        raise UsageError(f"{path}: results are not compressed; use --output - and a pipe for that")
    if len(os.fsencode(path.name)) > _LONGEST_NAME:
        raise UsageError(
            f"{path}: the name is too long; {_LONGEST_NAME} bytes leave room for drafts"
        )
    check_ordinary(path, "--output - writes to standard output")
    sides = [side for side in (config.reference, config.gold) if side is not None]
    for given in [Path(name) for name in config.inputs if name != "-"] + sides:
        if path.resolve() == given.resolve() or (path.exists() and _same_file(path, given)):
            what = "a side file" if given in sides else "the input"
            raise UsageError(f"{path}: is {what}; name another file with --output")
    check_folder(path)


def _same_file(path: Path, other: Path) -> bool:
    return other.exists() and path.samefile(other)


def made_with(summary: Path) -> Json | None:
    """What a summary names as its making; None where it is none."""
    try:
        made = orjson.loads(summary.read_bytes())[MADE_WITH]
    except (OSError, orjson.JSONDecodeError, LookupError, TypeError):
        return None
    return made if isinstance(made, dict) else None
