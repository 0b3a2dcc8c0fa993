"""Texts written behind the rows of a packed batch, from the keys and values that are there.

All go on together, a token a pass, and each leaves when it ends: the others do not wait for it, nor
does it cost anything for long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from jlm_cli.engine import Wrote
from jlm_cli.hf.blocks import Blocks
from jlm_cli.hf.packing import DraftTree

if TYPE_CHECKING:
    from jlm_cli.hf_engine import PackedEngine

_SPAN = 4 / 3  # rows that attention goes over, for each that is still written


@dataclass
class Text:
    """What is written behind the first `seen` tokens of a row: `due` is to be read next.

    Its keys and values go from place `start` of the row's block on; `row` is where that is by now.
    """

    row: int
    seen: int
    start: int
    due: list[int]
    limit: int
    ids: list[int] = field(default_factory=list)
    n_read: int = 0

    @property
    def place(self) -> int:
        """Where what is due next goes."""
        return self.start + self.n_read

    def tree(self) -> DraftTree:
        """What is due, each token behind all before it."""
        here = self.place
        end = here + len(self.due)
        places = np.arange(end)
        positions = np.where(places < self.start, places, self.seen + places - self.start)
        told = (places < self.seen) | (places >= self.start)  # between lie drafts of the line
        return DraftTree(self.row, here, told & (places <= places[here:, None]), positions)

    def take(self, token: int, ends: Sequence[int]) -> bool:
        """One more token; whether the text goes on behind it."""
        self.n_read += len(self.due)
        self.due = [token]
        self.ids.append(token)
        return token not in ends and len(self.ids) < self.limit


def write_behind(engine: PackedEngine, blocks: Blocks, texts: Sequence[Text], wrote: Wrote) -> None:
    """The likeliest tokens, up to an end or a text's limit; the blocks' batch is of no use then."""
    ends = engine.vocabulary.ends
    live = sorted(texts, key=lambda text: text.row)
    while live:
        found = engine.likeliest(live, blocks)
        wrote(len(live))
        live = [text for text, token in zip(live, found, strict=True) if text.take(token, ends)]
        if live and blocks.passes_over_all and blocks.rows >= _SPAN * len(live):
            blocks.keep([text.row for text in live])
            for row, text in enumerate(live):
                text.row = row
