"""The batch plan: which rows are judged together.

It depends on the whole input and the settings alone, never on workers, timing or what is
already done; so any run of the same input gives the same batches, and the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Plan:
    """`order` holds row numbers; batch b is order[cuts[b]:cuts[b + 1]]."""

    order: NDArray[np.int64]
    cuts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.cuts) - 1

    def batch(self, number: int) -> list[int]:
        rows = self.order[self.cuts[number] : self.cuts[number + 1]]
        return [int(row) for row in rows]

    def __iter__(self) -> Iterator[list[int]]:
        return (self.batch(number) for number in range(len(self)))


def make_plan(
    rows: Sequence[int],
    tokens: Sequence[int],
    groups: Sequence[int],
    budget: int,
    written: int = 0,
) -> Plan:
    """Longest first; rows of one group side by side, since they share the start of their prompts.

    `rows` are row numbers, `tokens` their sizes, `groups` a number per row that is equal where
    prompts begin alike. A batch holds at most `budget` tokens, and PADDED times as many places, or
    a single row; towards the end of a long plan ever fewer, so that many workers, some of them
    slow, are done at about one time. Where up to so many tokens are `written` for a row, there are
    GROWTH times as many places, and these tokens count.
    """
    row, size = np.asarray(rows, np.int64), np.asarray(tokens, np.int64)
    _, group = np.unique(np.asarray(groups, np.int64), return_inverse=True)
    largest = np.zeros(group.max(initial=-1) + 1, np.int64)
    np.maximum.at(largest, group, size)
    first = np.full(len(largest), np.iinfo(np.int64).max)
    np.minimum.at(first, group, row)
    by = np.lexsort((row, -size, first[group], -largest[group]))
    places = PADDED * budget * (GROWTH if written else 1)
    return Plan(row[by], _cut(size[by], budget, places, DRAFT_ROOM + written))


# A row has places for keys and values by the longest one of its batch, and for what is drafted; of
# such places a batch makes PADDED times as many as tokens at most, and a reserve for the next one.
PADDED, DRAFT_ROOM, RESERVE = 1.5, 80, 1.125
GROWTH = 2  # of a row with its reason: prompts and reasons of 500 tokens are usual
_LONG = 4  # full batches; a plan of fewer is not tapered
_TAPER = 4  # the last quarter of all tokens goes in ever smaller batches,
_OF_LEFT = 128  # each a 128th of what is left, and a quarter of a full one at least,
SMALLER, _MANY, _LEAST_OF_MANY = 4, 128, 8  # or an eighth in a plan of so many


def _cut(sizes: NDArray[np.int64], budget: int, most: float, beside: int) -> NDArray[np.int64]:
    """Batches of `most` places, of which each row takes so many `beside` its tokens."""
    left = int(sizes.sum())
    tapered = left // _TAPER if left > _LONG * budget else 0
    least = budget // (_LEAST_OF_MANY if left > _MANY * budget else SMALLER)
    cuts, used, longest = [0], 0, 0
    for place, size in enumerate(sizes.tolist()):
        room = budget if left > tapered else max(least, min(budget, left // _OF_LEFT))
        longest = max(longest, size)
        places = (longest + beside) * (1 + place - cuts[-1])
        if used and (used + size > room or places > most):
            cuts.append(place)
            used, longest = 0, size
        used += size
        left -= size
    return np.array([*cuts, len(sizes)] if len(sizes) else [0], np.int64)
