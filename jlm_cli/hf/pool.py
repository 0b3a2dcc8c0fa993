"""Memory for the keys and values of the batches under way, and whether there is room for more."""

from __future__ import annotations

import math
from collections.abc import Callable

from jlm_cli.hf.blocks import Blocks

_LOOSE = 2  # times the places of a batch, in memory that it takes over


class BlockPool:
    """Blocks are lent to a batch and taken back for another: memory that is written already need
    not be asked for again. `room` is how many places batches may have at once, in all; one of them
    may have more."""

    def __init__(self, make: Callable[[], Blocks]) -> None:
        self.room: float = math.inf
        self._make = make
        self._lent = 0
        self.spare: list[Blocks] = []

    def has_room(self, places: int) -> bool:
        return not self._lent or self._lent + places <= self.room

    def lend(self, rows: int, places: int) -> Blocks:
        """Those of an earlier batch, unless that was far larger."""
        wanted = rows * places
        self._lent += wanted
        fitting = [one for one in self.spare if one.largest <= _LOOSE * wanted]
        if fitting:
            self.spare.remove(blocks := max(fitting, key=lambda one: one.largest))
        else:
            self.spare.clear()
            blocks = self._make()
        blocks.begin(rows, places)
        return blocks

    def take_back(self, places: int, blocks: Blocks | None = None) -> None:
        """So many places; with no blocks, where their memory is given back."""
        self._lent -= places
        if blocks is not None:
            self.spare.append(blocks)

    def forget(self) -> None:
        self.spare.clear()
