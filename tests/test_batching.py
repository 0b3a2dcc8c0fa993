"""Every row once, within the budget, longest first, in smaller batches at the end."""

from __future__ import annotations

import numpy as np
import pytest

from jlm_cli.batching import Plan, make_plan


def plan_of(n: int, budget: int) -> tuple[Plan, list[int]]:
    tokens = np.random.default_rng(n).integers(200, 400, n).tolist()
    return make_plan(range(n), tokens, [row // 2 for row in range(n)], budget), tokens


@pytest.mark.parametrize("n", [0, 1, 2, 50, 3000])
def test_every_row_once_within_the_budget(n: int) -> None:
    plan, tokens = plan_of(n, 1000)
    assert sorted(row for batch in plan for row in batch) == list(range(n))
    for batch in plan:
        assert sum(tokens[row] for row in batch) <= 1000


def test_a_row_above_the_budget_is_a_batch_of_its_own() -> None:
    plan = make_plan(range(4), [500, 9000, 700, 600], range(4), 4000)
    assert list(plan) == [[1], [2, 3, 0]]


def test_a_long_row_does_not_make_places_for_many_short_ones() -> None:
    """As where one question has many answers, of which one is endless."""
    plan = make_plan(range(60), [900] + [100] * 59, [0] * 60, 4000)
    assert [len(batch) for batch in plan] == [6, 33, 21]
    plan = make_plan(range(60), [9000] + [100] * 59, [0] * 60, 4000)
    assert [len(batch) for batch in plan] == [1, 33, 26]


def test_what_is_written_has_places() -> None:
    """Short prompts, whose texts may grow to many times their length, are not as many."""
    plan = make_plan(range(60), [100] * 60, [0] * 60, 4000)
    assert [len(batch) for batch in plan] == [33, 27]
    plan = make_plan(range(60), [100] * 60, [0] * 60, 4000, written=500)
    assert [len(batch) for batch in plan] == [17, 17, 17, 9]
    plan = make_plan(range(9), [900] * 9, range(9), 4000, written=500)
    assert [len(batch) for batch in plan] == [4, 4, 1]


def test_rows_of_a_group_stand_side_by_side() -> None:
    plan, _ = plan_of(3000, 1000)
    place = {int(row): at for at, row in enumerate(plan.order)}
    assert all(abs(place[row] - place[row + 1]) == 1 for row in range(0, 3000, 2))


@pytest.mark.parametrize("n, least", [(3000, 500), (600, 1000)])
def test_long_plans_end_in_smaller_batches(n: int, least: int) -> None:
    plan, tokens = plan_of(n, 4000)
    sizes = np.array([sum(tokens[row] for row in batch) for batch in plan])
    left = sizes.sum() - np.cumsum(sizes) + sizes
    late = left < sizes.sum() / 4
    assert late.any() and (sizes[late] <= np.maximum(least, left[late] / 128)).all()
    assert np.median(sizes[~late]) > 3500 and sizes[-2] > least - 400


def test_short_plans_are_left_as_they_are() -> None:
    assert len(plan_of(50, 4000)[0]) == 4
