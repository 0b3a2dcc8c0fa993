"""Tasks that pause while a device is busy, several under way at once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from jlm_cli.tasks import Pause, Task, finish, in_turn, until_alone


def asked_twice() -> Pause:
    """What is not there yet when it is first asked for."""
    asked = itertools.chain([False], itertools.repeat(True))
    return lambda: next(asked)


def no_longer() -> bool:
    """The pause of a task that only lets others go first."""
    return True


class Log(list[str]):
    @property
    def steps(self) -> str:
        return " ".join(entry for entry in self if entry[1] != ".")

    def task(
        self, name: str, pauses: int, pause: Pause | None = None, fails: bool = False
    ) -> Task[str]:
        try:
            for step in range(pauses):
                self.append(f"{name}{step}")
                yield pause or asked_twice()
            if fails:
                raise ValueError(name)
            self.append(f"{name}!")
            return name.upper()
        finally:
            self.append(f"{name}.")


def test_a_task_alone_goes_on_to_its_result() -> None:
    log = Log()
    assert finish(log.task("a", 2)) == "A"
    assert log == ["a0", "a1", "a!", "a."]


@pytest.mark.parametrize("pause", [None, no_longer, until_alone])
@pytest.mark.parametrize("at_once", [1, 2, 3, 9])
def test_every_task_gives_its_result(at_once: int, pause: Pause | None) -> None:
    log = Log()
    tasks = (log.task(name, n, pause) for name, n in zip("abcdef", (2, 0, 1, 5, 1, 2), strict=True))
    assert sorted(in_turn(tasks, lambda n: n < at_once)) == ["A", "B", "C", "D", "E", "F"]
    for n in range(len(log)):
        begun = {entry[0] for entry in log[:n]}
        assert sum(f"{name}." not in log[:n] for name in begun) <= at_once


def test_the_next_task_begins_before_one_waits() -> None:
    log = Log()
    results = in_turn((log.task(name, 2) for name in "abc"), lambda n: n < 2)
    assert next(results) == "A"
    assert log == ["a0", "b0", "a1", "a!", "a."]
    assert [*results] == ["B", "C"]
    assert log.steps == "a0 b0 a1 a! b1 c0 b! c1 c!"


def test_who_need_not_wait_goes_on_first() -> None:
    log = Log()
    tasks = [log.task("a", 2, no_longer), log.task("b", 2), log.task("c", 1, no_longer)]
    assert list(in_turn(tasks, lambda n: n < 2)) == ["A", "C", "B"]
    assert log.steps == "a0 a1 a! b0 c0 b1 c! b!"


def test_who_waits_to_be_alone_runs_to_its_end_by_itself() -> None:
    log = Log()
    tasks = [log.task("a", 3), log.task("b", 2, until_alone), log.task("c", 1)]
    assert list(in_turn(tasks, lambda n: n < 2)) == ["A", "B", "C"]
    assert log.steps == "a0 b0 a1 a2 a! b1 b! c0 c!"


def test_tasks_are_taken_only_when_there_is_room() -> None:
    log, taken = Log(), []

    def tasks() -> Iterator[Task[str]]:
        for name in "abcd":
            taken.append(name)
            yield log.task(name, 1)

    next(in_turn(tasks(), lambda n: n < 2))
    assert taken == ["a", "b"]


def test_a_failure_closes_what_is_under_way() -> None:
    log = Log()
    with pytest.raises(ValueError, match="b"):
        list(in_turn([log.task("a", 4), log.task("b", 1, fails=True)], lambda n: n < 2))
    assert log[-2:] == ["b.", "a."]


def test_an_end_in_between_closes_what_is_under_way() -> None:
    log = Log()
    results = in_turn((log.task(name, n + 1) for n, name in enumerate("ab")), lambda n: n < 2)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert log[-1] == "b."
