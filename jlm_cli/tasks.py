"""Work that pauses while a device is busy for it, several pieces in turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from typing import TypeAlias, TypeVar

Result = TypeVar("Result")
Task: TypeAlias = Generator[None, None, Result]  # yields where something is on its way


def finish(task: Task[Result]) -> Result:
    """One task alone, without a pause."""
    while True:
        try:
            next(task)
        except StopIteration as done:
            result: Result = done.value
            return result


def in_turn(tasks: Iterable[Task[Result]], at_once: int) -> Iterator[Result]:
    """The results of all tasks, as they are done; so many are under way at once.

    A task begins as soon as there is room; then the one goes on that has waited longest.
    """
    under_way: deque[Task[Result]] = deque()
    more = iter(tasks)
    try:
        while True:
            task = next(more, None) if len(under_way) < at_once else None
            if task is None:
                if not under_way:
                    return
                task = under_way.popleft()
            try:
                next(task)
            except StopIteration as done:
                yield done.value
            else:
                under_way.append(task)
    finally:
        for task in under_way:
            task.close()
