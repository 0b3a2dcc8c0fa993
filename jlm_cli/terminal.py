"""A terminal, or the log that stands for one: text that is safe there, and what outlives it."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.text import Text
from tqdm import tqdm

from jlm_cli.errors import JOINERS, printable

GAP = 2  # spaces between the columns of a table without lines


def shown(text: object, width: int = 60) -> Text:
    """Text from outside, made safe for a terminal: no markup, no control or bidi characters."""
    safe = printable(str(text)[: 4 * width])
    return Text(safe if len(safe) <= width else safe[: width - 1] + "…")


def escaped(text: str) -> str:
    """All of a text from outside, safe for a terminal: what could steer it is spelled out."""
    return "".join(
        char
        if char in "\n\t" + JOINERS or unicodedata.category(char)[0] != "C"
        else char.encode("unicode_escape").decode()
        for char in text
    )


class Stderr(Console):
    """A console whose reader may leave, and whose disk may be full: the run goes on without a
    word."""

    def print(self, *things: Any, **how: Any) -> None:
        try:
            super().print(*things, **how)
        except OSError:
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


class Logged(tqdm):  # type: ignore[misc]
    """Progress as lines of a file."""

    disable: bool

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        def write(text: str) -> None:
            with suppress(OSError):  # a full disk there ends no run
                print(text.rstrip(), file=file, flush=True)

        return write

    def set_postfix_str(self, s: str = "", refresh: bool = False) -> None:
        super().set_postfix_str(s, refresh=False)  # which comes with every token of reasons

    def close(self) -> None:
        """Without what clears a line of a terminal."""
        if not self.disable:
            self._decr_instances(self)
        self.disable = True
