"""Every error that jlm raises on purpose.

    JlmError                 one line for the user, an exit code for the shell
    ├── SystemFailure        a full disk, a device that fails
    ├── UsageError           options that do not go together, an output that is in the way
    ├── InputError           a file that cannot be read as samples
    ├── ModelError           a model, tokenizer, template or device that cannot be used
    └── RowError             one line of the input; becomes an error record, never a score

Exit codes: 0 all judged · 1 unexpected failure · 2 usage or input · 3 finished with error
records, or above a limit that was set · 129, 130, 143 ended by SIGHUP, SIGINT, SIGTERM.
"""

from __future__ import annotations

import unicodedata

GO_ON = "the same command goes on from there"
KEPT = f"what is done is kept: {GO_ON}"

EXIT_OK = 0
EXIT_UNEXPECTED = 1
EXIT_USAGE = 2
EXIT_ERROR_RECORDS = 3
EXIT_ABOVE_LIMIT = 3  # of `probe --max-attack-success`


class Ended(BaseException):
    """A signal that ends the run."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


class ReaderLeft(BaseException):
    """Whoever reads standard output has seen enough: `| head -1`."""


JOINERS = "\u200c\u200d"  # within words and emoji of many scripts


def printable(text: object) -> str:
    """Text from outside on one line, harmless to a terminal: no control or bidi characters."""
    return " ".join(
        "".join(
            char
            if char in JOINERS or unicodedata.category(char)[0] != "C"
            else (" " if char in "\n\t" else "\ufffd")
            for char in str(text)
        ).split()
    )


class JlmError(Exception):
    """A failure that is told to the user in one line, without a traceback."""

    exit_code = EXIT_UNEXPECTED


class SystemFailure(JlmError):
    """What the operating system refuses."""

    @classmethod
    def of(cls, error: OSError) -> SystemFailure:
        where = f"{error.filename}: " if error.filename else ""
        return cls(f"{where}{error.strerror or error}")


class UsageError(JlmError):
    exit_code = EXIT_USAGE


class InputError(JlmError):
    exit_code = EXIT_USAGE


class ModelError(JlmError):
    exit_code = EXIT_USAGE


class RowError(JlmError):
    """One row that cannot be judged.

    `code` is a stable word for programs; the message names the field and says what to do.
    """

    exit_code = EXIT_USAGE

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class At:
    """A place in a file: a RowError within it ends the run, as that file's InputError."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RowError):
            raise InputError(f"{self._where}: {error}") from error
