"""Memory for the keys and values of the batches under way, and whether there is room for more."""

from __future__ import annotations

import math
from collections.abc import Callable

from jlm_cli.hf.blocks import Blocks

_LOOSE = 2  # times the places of a batch, in memory that it takes over


class BlockPool:
    """Blocks are lent to a batch and taken back for another: memory that is written already need
    not be asked for again. `room` is how many places there may be in all; a batch by itself may
    have more."""

    def __init__(self, make: Callable[[], Blocks]) -> None:
        self.room: float = math.inf
        self._make = make
        self._lent: list[Blocks] = []
        self.spare: list[Blocks] = []

    def has_room(self, rows: int, places: int) -> bool:
        return not self._lent or _places(self._lent) + rows * places <= self.room

    def lend(self, rows: int, places: int) -> Blocks:
        """Those of an earlier batch, unless that was far larger."""
        wanted = rows * places
        fitting = [one for one in self.spare if one.largest <= _LOOSE * wanted]
        if fitting:
            self.spare.remove(blocks := max(fitting, key=lambda one: one.largest))
        else:
            self.spare.clear()
            blocks = self._make()
        blocks.begin(rows, places)
        self._lent.append(blocks)
        if _places([*self._lent, *self.spare]) > self.room:
            self.spare.clear()
        return blocks

    def take_back(self, blocks: Blocks) -> None:
        self.lose(blocks)
        self.spare.append(blocks)

    def lose(self, blocks: Blocks) -> None:
        """Their memory is not to serve another batch."""
        self._lent = [one for one in self._lent if one is not blocks]

    def forget(self) -> None:
        self.spare.clear()


def _places(some: list[Blocks]) -> int:
    return sum(blocks.largest for blocks in some)
