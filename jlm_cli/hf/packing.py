"""Many rows as one packed sequence without padding, for the engine of transformers models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jlm_cli.engine import Ids, LineDraft

SHARED_START = 24  # tokens two prompts must share before copying them pays


@dataclass(frozen=True)
class Segment:
    """A prompt's share of a pack: its new tokens stand at places `start` to `end` of its row's
    block. The places before `start` are copied from row `source` first, where there is one.
    """

    row: int
    start: int
    end: int
    source: int | None = None


@dataclass(frozen=True)
class DraftTree:
    """What is drafted behind one row's prompt: places `start` onwards of its block, what each of
    these tokens sees, [drafted, end], and how far in its line each place lies, [end]."""

    row: int
    start: int
    sees: np.ndarray[Any, np.dtype[np.bool_]]
    positions: np.ndarray[Any, np.dtype[np.int64]]

    @property
    def end(self) -> int:
        return int(self.sees.shape[1])


def shared_start(before: Ids, ids: Ids) -> int:
    """How many first tokens two prompts share, less one to be fed; 0 where it does not pay."""
    limit = min(len(before), len(ids) - 1)
    differs = np.flatnonzero(np.asarray(before[:limit]) != np.asarray(ids[:limit]))
    shared = int(differs[0]) if len(differs) else limit
    return shared if shared >= SHARED_START else 0


@dataclass
class Tokens:
    """What goes through the model in one pass: ids with their positions in their rows, prompts
    first, and for each row the places among them behind which the model's word is wanted."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    trees: list[DraftTree] = field(default_factory=list)
    wanted: dict[int, list[int]] = field(default_factory=dict)

    @property
    def kept(self) -> list[int]:
        """Row by row."""
        return [place for places in self.wanted.values() for place in places]

    def add_prompt(self, segment: Segment, prompt: Ids) -> None:
        self.segments.append(segment)
        self.ids += prompt[segment.start :]
        self.positions += range(segment.start, segment.end)
        self.wanted[segment.row] = [len(self.ids) - 1]

    def add_text(self, tree: DraftTree, ids: Ids) -> None:
        """Behind the last of these ids the model's word is wanted."""
        self.trees.append(tree)
        self.ids += ids
        self.positions += tree.positions[tree.start :].tolist()
        self.wanted[tree.row] = [len(self.ids) - 1]

    def add_draft(self, tree: DraftTree, prompt_length: int, draft: LineDraft) -> None:
        self.trees.append(tree)
        drafted = range(len(self.ids), len(self.ids) + len(draft))
        self.wanted.setdefault(tree.row, []).extend(drafted)
        self.ids += (token.token for token in draft)
        self.positions += (prompt_length + token.depth - 1 for token in draft)
