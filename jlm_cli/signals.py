"""What ends a run from outside: Ctrl-C, SIGTERM, SIGHUP; exit codes 130, 143, 129.

While a run works, the first of them unwinds it, the second ends it on the spot; what is
journalled is safe either way. Before and after there is nothing to unwind. A signal that the
caller ignores (nohup) stays ignored.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import NoReturn

from jlm_cli.errors import Ended

Handler = Callable[[int, FrameType | None], None]

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


def leave_at_once() -> None:
    """No unwinding: at the start and at the end of the program."""
    _hear(_leave)


def unwind() -> None:
    """The first signal raises Ended (Ctrl-C: KeyboardInterrupt), the next leaves at once.

    Who goes on after a KeyboardInterrupt calls this again.
    """
    _hear(_unwind)


def by_the_system() -> AbstractContextManager[None]:
    """Without a handler of Python's: a signal ends the process at once, wherever it is."""
    return handled_by(signal.SIG_DFL)


@contextmanager
def handled_by(handler: Handler | signal.Handlers) -> Iterator[None]:
    """For a while; signals that the caller ignores stay ignored."""
    names = not_ignored()
    with handlers_kept(*names):
        for name in names:
            signal.signal(getattr(signal, name), handler)
        yield


@contextmanager
def handlers_kept(*names: str) -> Iterator[None]:
    """What hears these signals now hears them afterwards, whatever is set meanwhile."""
    before = {name: signal.getsignal(getattr(signal, name)) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def _hear(handler: Callable[[int, FrameType | None], NoReturn]) -> None:
    for name in not_ignored():
        signal.signal(getattr(signal, name), handler)


def not_ignored() -> list[str]:
    """Names of the signals that the caller does not ignore."""
    there = [name for name in _NAMES if hasattr(signal, name)]
    return [name for name in there if signal.getsignal(getattr(signal, name)) != signal.SIG_IGN]


def _is_loading(frame: FrameType | None) -> bool:
    """Whether a module is being imported, which would make another error of it, or none."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(128 + number)


def _unwind(number: int, frame: FrameType | None) -> NoReturn:
    if _is_loading(frame):
        _leave(number, frame)
    leave_at_once()
    raise KeyboardInterrupt if number == signal.SIGINT else Ended(number)
