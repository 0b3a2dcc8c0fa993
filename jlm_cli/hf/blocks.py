"""Keys and values of packed rows: each row's lie in a block of their own, its prompt first and its
drafted tokens behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import torch

from jlm_cli.batching import RESERVE
from jlm_cli.hf.attention import AttentionSpec, Kernel, Lengths, by_products, kernel_for
from jlm_cli.hf.packing import DraftTree, Segment
from jlm_cli.hf.transfers import sent

_ROOM = 128  # places more, where there are too few
_WHOLE = 16  # of other numbers of places torch's kernel with a mask first makes a copy of the mask
_WIDE = torch.complex128

Places: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Prompts:
    """The prompts of one pass, for kernels that take the attention of all rows at once.

    Each token [T] has its `row` and `place` in the blocks. Where prompts share a start, `seen` are
    row and place [2, S] of all that the rows see, a shared place in the row that it was read for,
    and `shared` [3, n] are row and place where such a place is copied to, and which of the seen
    it is. Else rows see their own tokens alone.
    """

    row: torch.Tensor
    place: torch.Tensor
    lengths: Lengths
    seen: torch.Tensor | None = None
    shared: torch.Tensor | None = None

    @classmethod
    def of(cls, segments: Sequence[Segment], device: torch.device) -> Prompts:
        """Made once for all layers."""
        mine: list[Places] = []
        seen: list[Places] = []
        shared: list[Places] = []
        read_for: dict[int, Places] = {}
        ends = np.zeros((2, len(segments) + 1), np.int32)
        for n, segment in enumerate(segments):
            start, end, places = segment.start, segment.end, np.arange(segment.end)
            owner = np.full(end, segment.row)
            if segment.source is not None:
                owner[:start] = read_for.get(segment.source, np.full(start, segment.source))[:start]
                copied = np.full(start, segment.row), places[:start], ends[1, n] + places[:start]
                shared.append(np.stack(copied))
            read_for[segment.row] = owner
            mine.append(np.stack((owner[start:], places[start:])))
            seen.append(np.stack((owner, places)))
            ends[:, n + 1] = ends[:, n] + (end - start, end)
        row, place = sent(np.concatenate(mine, axis=1), device)
        queries, all_seen = sent(ends, device)
        most_queries, most_seen = (int(most) for most in np.diff(ends).max(axis=1))
        lengths = Lengths(queries, all_seen, most_queries, most_seen)
        if not shared:
            return cls(row, place, lengths)
        all_places, copies = (np.concatenate(parts, axis=1) for parts in (seen, shared))
        return cls(row, place, lengths, sent(all_places, device), sent(copies, device))

    def on(self, device: torch.device) -> Prompts:
        """The same for layers on another GPU."""
        if device == self.row.device:
            return self
        seen, shared = (None if one is None else one.to(device) for one in (self.seen, self.shared))
        queries, all_seen = self.lengths.queries.to(device), self.lengths.seen.to(device)
        lengths = replace(self.lengths, queries=queries, seen=all_seen)
        return Prompts(self.row.to(device), self.place.to(device), lengths, seen, shared)


@dataclass(frozen=True)
class DraftTrees:
    """The drafts of one pass, whose attention is one padded product for all their rows.

    `row` (from the `first` row on), `turn` (among its row's tokens) and `place` (in its block) of
    each token [T]; `token` [rows, most tokens of a row] is the way back, any one where a row has
    fewer. `sees` is additive, [rows, 1, most, places]. In their lines these tokens have the
    positions `own` [rows, most], and the places theirs [rows, places].
    """

    first: int
    row: torch.Tensor
    turn: torch.Tensor
    place: torch.Tensor
    token: torch.Tensor
    sees: torch.Tensor
    own: torch.Tensor
    positions: torch.Tensor
    _through: dict[int, torch.Tensor] = field(default_factory=dict)  # windows

    @classmethod
    def of(
        cls, trees: Sequence[DraftTree], blocks: Blocks, device: torch.device, dtype: torch.dtype
    ) -> DraftTrees:
        """Made once for all layers. They are shown whole blocks: products on CPUs would first copy
        a part of one, which lies in pieces."""
        first, last = min(tree.row for tree in trees), max(tree.row for tree in trees)
        most = max(len(tree.sees) for tree in trees)
        end = blocks.room_up_to(max(tree.end for tree in trees))
        sees = np.zeros((1 + last - first, 1, most, end), bool)
        sees[..., 0] = True  # of no token's turn; a softmax over nothing is not a number
        token = np.zeros((1 + last - first, most), np.int64)
        own = np.zeros((1 + last - first, most), np.int32)
        positions = np.zeros((1 + last - first, end), np.int32)
        row: list[int] = []
        turn: list[int] = []
        place: list[int] = []
        for tree in trees:
            new = len(tree.sees)
            sees[tree.row - first, 0, :new, : tree.end] = tree.sees
            token[tree.row - first, :new] = range(len(row), len(row) + new)
            own[tree.row - first, :new] = tree.positions[tree.start :]
            positions[tree.row - first, : tree.end] = tree.positions
            row += [tree.row - first] * new
            turn += range(new)
            place += range(tree.start, tree.end)
        row_, turn_, place_ = sent([row, turn, place], device)
        token_, hidden, own_, positions_ = (
            sent(one, device) for one in (token, ~sees, own, positions)
        )
        additive = torch.zeros(hidden.shape, dtype=dtype, device=device)
        additive.masked_fill_(hidden, float("-inf"))
        return cls(first, row_, turn_, place_, token_, additive, own_, positions_)

    def on(self, device: torch.device) -> DraftTrees:
        """The same for layers on another GPU."""
        if device == self.row.device:
            return self
        row, turn, place = (part.to(device) for part in (self.row, self.turn, self.place))
        of_rows = (part.to(device) for part in (self.token, self.sees, self.own, self.positions))
        token, sees, own, positions = of_rows
        return DraftTrees(self.first, row, turn, place, token, sees, own, positions)

    def seeing(self, spec: AttentionSpec) -> torch.Tensor:
        """What is seen through a layer's window; most layers have the same."""
        if spec.window is None or spec.window >= self.sees.shape[-1]:
            return self.sees
        if spec.window not in self._through:
            ago = self.own[:, None, :, None] - self.positions[:, None, None]
            sees = self.sees.masked_fill(ago >= spec.window, float("-inf"))
            self._through[spec.window] = sees
        return self._through[spec.window]

    def attend(
        self, blocks: Blocks, layer: int, states: Sequence[torch.Tensor], spec: AttentionSpec
    ) -> torch.Tensor:
        """query [heads, T, size], key and value [groups, T, size], which are put in their place:
        → [T, heads, size]."""
        here, query = self.on(states[0].device), states[0].transpose(0, 1)
        keys, values = blocks.write_trees(here, layer, states[1:])
        kernel = kernel_for(query.device, query.dtype, spec)
        return here._attend(kernel, query, keys, values, spec)

    def _attend(
        self,
        kernel: Kernel,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        spec: AttentionSpec,
    ) -> torch.Tensor:
        """query [T, heads, size], keys and values of all rows → [T, heads, size]."""
        rows, _, most, places = self.sees.shape
        mine = slice(self.first, self.first + rows)
        sees = self.seeing(spec).to(query.dtype)  # under autocast
        seen = keys[mine, :, :places], values[mine, :, :places]
        if most == 1:  # for one query fused kernels lay keys out, or spell shared ones out, in vain
            kernel = by_products
        if most == 1 and len(query) == rows:  # as they are while all rows write
            return kernel.masked(query[:, :, None], *seen, sees, spec)[:, :, 0]
        padded = _wide(query)[self.token].view(query.dtype).transpose(1, 2)
        out = kernel.masked(padded, *seen, sees, spec)
        return _wide(out)[self.row, :, self.turn].view(query.dtype)


class Blocks:
    """Keys and values of a batch: for each layer two tensors [rows, heads, places, head size].

    The memory is kept from batch to batch. `specs` is what the layers that wrote here told of
    themselves.
    """

    passes_over_all = True  # attention does, also over rows that nothing is asked for any more

    def __init__(self) -> None:
        self.specs: dict[int, AttentionSpec] = {}
        self._memory: dict[tuple[int, int], torch.Tensor] = {}
        self._blocks: dict[tuple[int, int], torch.Tensor] = {}
        self._is_kept = True
        self.rows = 0
        self.places = 0
        self.largest = 0  # places of all rows that memory was made for

    def begin(self, rows: int, places: int) -> None:
        self.rows, self.places = rows, _whole(places)
        self.largest = max(self.largest, rows * self.places)
        self._is_kept = True
        self._blocks.clear()
        self.specs.clear()

    def room_up_to(self, end: int) -> int:
        """How many places a block has, or will have when one before `end` is written there."""
        if end > self.places:  # a larger draft than was reckoned with, or a text
            self.places = _whole(end + _ROOM)
            self.largest = max(self.largest, self.rows * self.places)
        return self.places

    def drop_memory(self) -> None:
        """Let the next batch begin with new memory."""
        self._is_kept, self.largest = False, 0
        self._memory.clear()

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """Those rows alone, in their order, as the first ones."""
        self.rows = len(rows)
        for which, block in self._blocks.items():
            chosen = sent(list(rows), block.device)
            block[: self.rows] = block[chosen]
            self._blocks[which] = block[: self.rows]

    def write(
        self, segment: Segment, layer: int, states: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Put a prompt's new keys and values [heads, new, size] in place; its row's block."""
        found = []
        for kind, new in enumerate(states):
            block = self._block(layer, kind, new)
            if segment.source is not None:
                block[segment.row, :, : segment.start] = block[segment.source, :, : segment.start]
            block[segment.row, :, segment.start : segment.end] = new
            found.append(block[segment.row : segment.row + 1])
        return found

    def write_prompts(
        self, prompts: Prompts, layer: int, states: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Put all prompts' new keys and values [heads, T, size] in place; what their rows see,
        [S, heads, size]."""
        found = []
        for kind, new in enumerate(states):
            block, seen = _wide(self._block(layer, kind, new)), _wide(new.transpose(0, 1))
            block[prompts.row, :, prompts.place] = seen
            if prompts.seen is not None and prompts.shared is not None:
                seen = block[prompts.seen[0], :, prompts.seen[1]]
                block[prompts.shared[0], :, prompts.shared[1]] = seen[prompts.shared[2]]
            found.append(seen.view(new.dtype))
        return found

    def write_trees(
        self, trees: DraftTrees, layer: int, states: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Put the keys and values of drafted tokens [heads, T, size] in place; all rows'."""
        found = []
        for kind, new in enumerate(states):
            block = self._block(layer, kind, new)
            wide = _wide(new.transpose(0, 1))
            _wide(block[trees.first :])[trees.row, :, trees.place] = wide
            found.append(block)
        return found

    def _block(self, layer: int, kind: int, like: torch.Tensor) -> torch.Tensor:
        block = self._blocks.get((layer, kind))
        if block is None:
            shape = (self.rows, like.shape[0], self.places, like.shape[2])
            block = self._kept(layer, kind, like, shape)
        elif block.shape[2] < self.places:
            shape = (*block.shape[:2], self.places, block.shape[3])
            memory = block.new_zeros(int(np.prod(shape)))
            block, less = self._view(memory, shape), block
            block[:, :, : less.shape[2]] = less
            if self._is_kept:
                self._memory[layer, kind] = memory
        self._blocks[layer, kind] = block
        return block

    def _kept(
        self, layer: int, kind: int, like: torch.Tensor, shape: tuple[int, ...]
    ) -> torch.Tensor:
        size = int(np.prod(shape))
        memory = self._memory.get((layer, kind))
        if memory is None or memory.numel() < size:
            memory = like.new_zeros(int(RESERVE * size))  # not NaN
            if self._is_kept:
                self._memory[layer, kind] = memory
        return self._view(memory[:size], shape)

    def _view(self, memory: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """Places of memory as a block of such a shape."""
        return memory.view(shape)


def _whole(places: int) -> int:
    return -(-places // _WHOLE) * _WHOLE


def _wide(states: torch.Tensor) -> torch.Tensor:
    """States [..., size] as numbers of 16 bytes: chosen by index, those are moved five times as
    fast (H200) as numbers of two. It is their own memory, if that is contiguous."""
    each = _WIDE.itemsize // states.dtype.itemsize
    if states.shape[-1] % each or states.device.type == "mps":  # which has no such numbers
        return states
    *strides, last = states.stride()
    if last != 1 or any(step % each for step in (states.storage_offset(), *strides)):
        states = states.contiguous()
    return states.view(_WIDE)
