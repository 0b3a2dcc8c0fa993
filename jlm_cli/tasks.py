"""Work that pauses while a device is busy for it, several pieces in turn."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TypeAlias, TypeVar

Result = TypeVar("Result")
Pause: TypeAlias = Callable[[], bool]  # whether what the task waits for is there
Task: TypeAlias = Generator[Pause, None, Result]
_NAP = 0.0003  # seconds, until the pauses are looked at once more


def until_alone() -> bool:
    """The pause of a task that goes on, to its end, when no other is under way."""
    return False


def finish(task: Task[Result]) -> Result:
    """One task alone, without a pause."""
    while True:
        try:
            next(task)
        except StopIteration as done:
            result: Result = done.value
            return result


def in_turn(tasks: Iterable[Task[Result]], may_begin: Callable[[int], bool]) -> Iterator[Result]:
    """The results of all tasks, as they are done; `may_begin` says whether another one may begin
    beside so many that are under way.

    The oldest goes on that need not wait; where all would, the next one begins, and else the first
    goes on that need not wait any longer.
    """
    under_way: dict[Task[Result], Pause] = {}
    alone: deque[Task[Result]] = deque()  # those that wait until no other is under way
    more = iter(tasks)

    def next_to_go_on() -> Task[Result] | None:
        while True:
            for task, pause in under_way.items():
                if pause():
                    return task
            if not alone and may_begin(len(under_way)) and (new := next(more, None)) is not None:
                return new
            if not under_way:
                return None
            time.sleep(_NAP)

    try:
        while True:
            task = next_to_go_on()
            if task is None and not alone:
                return
            if task is None:
                yield finish(alone.popleft())
                continue
            try:
                under_way[task] = next(task)
            except StopIteration as done:
                under_way.pop(task, None)
                yield done.value
                continue
            if under_way[task] is until_alone:
                under_way.pop(task)
                alone.append(task)
    finally:
        for task in (*under_way, *alone):
            task.close()
