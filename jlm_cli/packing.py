"""Many rows as one packed sequence without padding, for the engine of transformers models.

Each row's keys and values lie in a block of their own, its prompt first and its drafted tokens
behind; only attention looks at rows one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface

from jlm_cli.attention import kernel_for
from jlm_cli.engine import Ids, LineDraft

ATTENTION = "jlm_packed"


@dataclass(frozen=True)
class Segment:
    """One row's share of a pack: its new tokens stand at places `start` to `end` of its block.

    `sees` [new, end] is additive, None for causal. The places before `start` are copied from row
    `source` first, where there is one.
    """

    row: int
    start: int
    end: int
    sees: torch.Tensor | None = None
    source: int | None = None


class Blocks:
    """Keys and values of a batch: for each layer two tensors [rows, heads, places, head size].

    The memory is kept from batch to batch.
    """

    def __init__(self) -> None:
        self._memory: dict[tuple[int, int], torch.Tensor] = {}
        self._blocks: dict[tuple[int, int], torch.Tensor] = {}
        self.rows = 0
        self.places = 0

    @property
    def n_layers(self) -> int:
        return len({layer for layer, _ in self._blocks})

    def begin(self, rows: int, places: int) -> None:
        self.rows, self.places = rows, places
        self._blocks.clear()

    def write(
        self, segment: Segment, layer: int, states: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Put a segment's new keys and values [heads, new, size] in place; all up to its end."""
        found = []
        for kind, new in enumerate(states):
            block = self._block(layer, kind, new, segment.end)
            if segment.source is not None:
                block[segment.row, :, : segment.start] = block[segment.source, :, : segment.start]
            block[segment.row, :, segment.start : segment.end] = new
            found.append(block[segment.row : segment.row + 1, :, : segment.end])
        return found

    def _block(self, layer: int, kind: int, like: torch.Tensor, end: int) -> torch.Tensor:
        block = self._blocks.get((layer, kind))
        if block is None:
            shape = (self.rows, like.shape[0], max(self.places, end), like.shape[2])
            block = self._kept(layer, kind, like, shape)
        elif block.shape[2] < end:
            more = block.new_empty(*block.shape[:2], end - block.shape[2], block.shape[3])
            block = torch.cat([block, more], dim=2)
        self._blocks[layer, kind] = block
        return block

    def _kept(
        self, layer: int, kind: int, like: torch.Tensor, shape: tuple[int, ...]
    ) -> torch.Tensor:
        size = int(np.prod(shape))
        memory = self._memory.get((layer, kind))
        if memory is None or memory.numel() < size:
            memory = self._memory[layer, kind] = like.new_empty(size)
        return memory[:size].view(shape)


@dataclass
class Tokens:
    """What goes through the model in one pass: ids with their positions in their rows, and the
    places among them behind which the model's word is wanted."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)

    def add_prompt(self, segment: Segment, prompt: Ids) -> None:
        self.segments.append(segment)
        self.ids += prompt[segment.start :]
        self.positions += range(segment.start, segment.end)
        self.kept.append(len(self.ids) - 1)

    def add_draft(self, segment: Segment, prompt_length: int, draft: LineDraft) -> None:
        self.segments.append(segment)
        self.kept += range(len(self.ids), len(self.ids) + len(draft))
        self.ids += (token.token for token in draft)
        self.positions += (prompt_length + token.depth - 1 for token in draft)


@dataclass(frozen=True)
class Pack:
    """What the attention of one pass needs: the blocks, and whose tokens follow each other."""

    blocks: Blocks
    segments: Sequence[Segment]


def _packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    pack: Pack,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """[1, heads, tokens, size] → [1, tokens, heads, size], each segment with its own row."""
    if any(kwargs.get(name) is not None for name in ("softcap", "sliding_window", "s_aux")):
        raise NotImplementedError("this kind of attention is not packed")
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    kernel = kernel_for(query.device, query.dtype)
    out = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)
    at = 0
    for segment in pack.segments:
        to = at + segment.end - segment.start
        keys, values = pack.blocks.write(segment, layer, (key[0, :, at:to], value[0, :, at:to]))
        sees = None if segment.sees is None else segment.sees.to(query.dtype)  # under autocast
        seen = kernel(query[:, :, at:to], keys, values, sees, scaling)
        out[:, at:to] = seen.transpose(1, 2)
        at = to
    return out, None


AttentionInterface.register(ATTENTION, _packed_attention)
