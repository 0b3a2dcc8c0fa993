"""Writing files whole, and standard output; what must not be written over; folders for a while."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from jlm_cli.errors import ReaderLeft, SystemFailure, UsageError


def write_whole(path: Path, lines: Iterator[bytes], instead_of: Path | None = None) -> None:
    """Write a file that appears under its name only when it is complete, and not beside another
    that is about what it replaces."""
    draft = path.with_name(f".{path.name}.tmp")
    try:
        with naming(path):
            draft.unlink(missing_ok=True)  # of a killed run, or a link
            with draft.open("xb") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
            if instead_of is not None:
                instead_of.unlink(missing_ok=True)
            draft.replace(path)
            sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the operating system name the file; those of writing know none."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def sync_folder(folder: Path) -> None:
    """A name is only safe from a power cut once its folder is."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sync_files(folder: Path) -> None:
    """Before a folder gets its name: what is in it is on the disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


_HELD = ".held"
_MAKING = 60  # seconds, at most, until a folder that is made is held as well


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for the time being; those that killed processes left go first."""
    _clear_left()
    folder = Path(tempfile.mkdtemp(prefix=_prefix()))
    lock = FileLock(folder / _HELD)
    try:
        _hold(lock)
        yield folder
    finally:
        with suppress(OSError):
            _remove(folder)
        lock.release()


def _hold(lock: FileLock) -> None:
    """Where the file system knows no locks, the folder is nobody's to clear."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lock.acquire()
    except (OSError, NotImplementedError):
        Path(lock.lock_file).unlink(missing_ok=True)


def _clear_left() -> None:
    """Folders of this user that no process holds any more: they may have what came by a pipe."""
    if not hasattr(os, "getuid"):
        return
    for folder in Path(tempfile.gettempdir()).glob(f"{_prefix()}*"):
        with suppress(OSError, NotImplementedError, Timeout):
            mine = not folder.is_symlink() and folder.stat().st_uid == os.getuid()
            if mine and time.time() - (folder / _HELD).stat().st_mtime > _MAKING:
                with FileLock(folder / _HELD, timeout=0):
                    _remove(folder)


def _remove(folder: Path) -> None:
    """What says that it is held goes last: else what is half removed would stay for good."""
    for one in folder.iterdir():
        if one.is_dir():
            shutil.rmtree(one)
        elif one.name != _HELD:
            one.unlink()
    shutil.rmtree(folder)


def _prefix() -> str:
    """Of this machine since it was started: another one, with the same TMPDIR, may not see what is
    held here."""
    try:
        machine = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        machine = platform.node()
    return f"jlm-{hashlib.sha256(machine.encode()).hexdigest()[:8]}-"


def write_stdout(lines: Iterator[bytes]) -> None:
    if sys.stdout is None:
        raise UsageError("standard output is closed")
    try:
        sys.stdout.buffer.writelines(lines)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise ReaderLeft from None
    except OSError as error:
        raise SystemFailure(f"standard output: {error.strerror}") from error


def check_ordinary(path: Path, instead: str) -> None:
    """A file replaces what has its name: raises UsageError where that is a folder, a link, a pipe
    or a device."""
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name a file")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: is not an ordinary file; {instead}")
    if path.is_symlink():
        raise UsageError(f"{path}: is a link; name the file itself")


def check_new_folder(folder: Path, mark: str, overwrite: bool) -> None:
    """Raises UsageError where a folder cannot be made, or is there and must not be replaced: with
    `overwrite` it may be if jlm made it, which the file named `mark` in it tells."""
    if str(folder) == "-":
        raise UsageError("-: a folder is made; name one with --output")
    if folder.exists() and not (overwrite and (folder / mark).is_file()):
        raise UsageError(
            f"{folder}: exists; name another folder with --output, or use --overwrite where jlm "
            "made it"
        )
    check_folder(folder)


def check_folder(path: Path) -> None:
    """Raises UsageError where a file of that name has no folder that it can be written to."""
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"{path}: the folder {path.parent} is not writable")
