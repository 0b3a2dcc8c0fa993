"""Where a conversation is read and written: a terminal with line editing, or pipes."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.text import Text

from jlm_cli.errors import UsageError
from jlm_cli.report import Report
from jlm_cli.terminal import escaped


class Screen:
    """Where a conversation is read and written.

    Replies and what a command shows go to standard output, prompts and notes to standard error.
    """

    def __init__(self, words: Sequence[str]) -> None:
        """`words` are completed at the start of a line. Raises UsageError."""
        for name, errors in (("input", "replace"), ("output", "backslashreplace")):
            stream = sys.stdin if name == "input" else sys.stdout
            if stream is None:
                raise UsageError(f"standard {name} is closed")
            stream.reconfigure(errors=errors)  # type: ignore[union-attr]
        self.interactive = sys.stdin.isatty()
        self.report = Report()
        self._out = Console(highlight=False, soft_wrap=True)
        self._err = Console(highlight=False, soft_wrap=True, stderr=True)
        self._edits = self.interactive and sys.stdout.isatty()
        if self._edits:
            _edit_lines(words)

    def ask(self, prompt: str) -> str | None:
        """A line; None at the end."""
        if self.interactive and not self._edits:
            print(prompt, end="", file=sys.stderr, flush=True)
        try:
            return input(prompt if self._edits else "").rstrip("\r")
        except EOFError:
            self.break_line()
            return None

    def break_line(self) -> None:
        """Leave the line a person was typing in."""
        if self.interactive:
            print(file=sys.stderr)

    def show(self, text: Text) -> None:
        """What was asked for."""
        self._out.print(text)

    def present(self, text: Text) -> None:
        """What a person is to see first."""
        if self.interactive:
            self._err.print(text)

    def note(self, text: str) -> None:
        """One line of jlm's own, on a terminal or not."""
        self.report.note(text)

    def hint(self, text: str) -> None:
        """A line that only a person needs."""
        if self.interactive:
            self.note(text)

    def stream(self, pieces: Iterable[str]) -> None:
        """A text as it comes, without the white space around it, and a newline behind it."""
        begun, held = False, ""
        try:
            for piece in pieces:
                text = held + piece
                body = text.rstrip()
                held = text[len(body) :]
                sys.stdout.write(escaped(body if begun else body.lstrip()))
                sys.stdout.flush()
                begun = begun or bool(body)
        finally:
            sys.stdout.write("\n")
            sys.stdout.flush()


def _edit_lines(words: Sequence[str]) -> None:
    """Line editing, history, and completion of commands, where the platform has them."""
    try:
        import readline
    except ImportError:
        return

    def complete(text: str, state: int) -> str | None:
        found = [name for name in words if text and name.startswith(text)]
        return found[state] if state < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" ")
    readline.parse_and_bind("tab: complete")
    readline.parse_and_bind("set enable-bracketed-paste on")  # newlines of a paste stay in a line
