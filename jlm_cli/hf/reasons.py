"""Texts written behind the rows of a packed batch, from the keys and values that are there.

All go on together, a token a pass, and each leaves when it ends: the others do not wait for it, nor
does it cost anything for long. A GPU is asked for the next tokens while it looks for these, and so
does not wait for the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from jlm_cli.engine import Wrote
from jlm_cli.hf.blocks import Blocks
from jlm_cli.hf.packing import DraftTree
from jlm_cli.hf.transfers import HostCopy

if TYPE_CHECKING:
    from jlm_cli.hf_engine import PackedEngine

_SPAN = 4 / 3  # rows that attention goes over, for each that is still written


@dataclass
class Text:
    """What is written behind the first `seen` tokens of a row and what is `given` behind them.

    The keys and values of these, and of the `ids` that are found, go from place `start` of the
    row's block on; so many are read. `row` is where the block is by now.
    """

    row: int
    seen: int
    start: int
    given: list[int]
    limit: int
    ids: list[int] = field(default_factory=list)
    n_read: int = 0
    is_over: bool = False

    @property
    def due(self) -> list[int]:
        """What is known and not read."""
        beyond = self.n_read - len(self.given)
        return self.ids[beyond:] if beyond >= 0 else [*self.given[beyond:], *self.ids]

    @property
    def place(self) -> int:
        """Where what is read next goes."""
        return self.start + self.n_read

    @property
    def may_go_on(self) -> bool:
        """Behind the token that is asked for."""
        return not self.is_over and len(self.ids) + 1 < self.limit

    def tree(self) -> DraftTree:
        """What is due, each token behind all before it."""
        here = self.place
        end = here + len(self.due)
        places = np.arange(end)
        positions = np.where(places < self.start, places, self.seen + places - self.start)
        told = (places < self.seen) | (places >= self.start)  # between lie drafts of the line
        return DraftTree(self.row, here, told & (places <= places[here:, None]), positions)

    def take(self, token: int, ends: Sequence[int]) -> None:
        """One more token."""
        self.ids.append(token)
        self.is_over = token in ends or len(self.ids) == self.limit


@dataclass(frozen=True)
class Step:
    """What is likeliest behind some texts, and 1 where that is sound, [2, T]: `found` when the
    device has come to it, and then on its way to the host."""

    texts: Sequence[Text]
    found: torch.Tensor
    copy: HostCopy


def write_behind(engine: PackedEngine, blocks: Blocks, texts: Sequence[Text], wrote: Wrote) -> None:
    """The likeliest tokens, up to an end or a text's limit; the blocks' batch is of no use then."""
    live = sorted(texts, key=lambda text: text.row)
    ahead: Step | None = None
    while live:
        step = ahead or engine.ask(live, blocks)
        ahead = engine.ask_ahead(step, blocks)
        tokens = _heard(step, blocks)
        wrote(len(live))
        for text, token in zip(step.texts, tokens, strict=True):
            if not text.is_over:  # as it may be by now in a step ahead
                text.take(token, engine.vocabulary.ends)
        live = [text for text in live if not text.is_over]
        if live and blocks.passes_over_all and blocks.rows >= _SPAN * len(live):
            blocks.keep([text.row for text in live])
            for row, text in enumerate(live):
                text.row = row
    if ahead is not None:  # all have ended in the meantime
        _heard(ahead, blocks)


def _heard(step: Step, blocks: Blocks) -> list[int]:
    """The tokens of a step, when they are there."""
    tokens, sound = step.copy.wait().astype(int).tolist()
    if not all(sound):
        blocks.drop_memory()  # what is no number would reach the next batch's rows
    return list(tokens)
