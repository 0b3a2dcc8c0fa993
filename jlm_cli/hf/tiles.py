"""Drafted tokens and texts on a GPU: what each sees of its row's block in a few numbers, where a
mask over whole blocks would take a hundred times as many, and attention by these.

A tile is up to sixteen tokens of one row, which tile_kernel.py takes together.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedModel

from jlm_cli.hf import kernels
from jlm_cli.hf.attention import AttentionSpec
from jlm_cli.hf.blocks import Blocks, Prompts
from jlm_cli.hf.packing import DraftTree
from jlm_cli.hf.transfers import sent

if TYPE_CHECKING:
    from jlm_cli.hf.reasons import Text

Numbers = np.ndarray[Any, np.dtype[np.int32]]
OF_A_TILE = 16  # tokens
FIELDS = 5  # of a tile
UNSEEN = -1
_LAYERS = 1024  # at most


@dataclass(frozen=True)
class Asked:
    """What some tokens [T] ask, on the host, int32.

    `tiles` [n, 5]: the slot of its row's first place, how many first places all of its tokens see,
    its first token, how many tokens, and how many places of its row count beside. `slots` [T] is
    where each token's keys and values go, `positions` [T] where it stands in its line, and `ago`
    [T, most beside] how far before that those places do, or UNSEEN. A tile has `most` tokens.
    """

    tiles: Numbers
    slots: Numbers
    positions: Numbers
    ago: Numbers
    most: int = OF_A_TILE

    def filled(self, n_tokens: int, wide: int) -> Asked:
        """Up to so many tokens, which are of no row and see nothing, and so many places beside."""
        tiles, slots = np.zeros((n_tokens, FIELDS), np.int32), np.full(n_tokens, UNSEEN, np.int32)
        positions, ago = np.zeros(n_tokens, np.int32), np.full((n_tokens, wide), UNSEEN, np.int32)
        n, beside = self.ago.shape
        tiles[: len(self.tiles)], slots[:n], positions[:n] = self.tiles, self.slots, self.positions
        ago[:n, :beside] = self.ago
        for at, first in enumerate(range(n, n_tokens, self.most), len(self.tiles)):
            tiles[at] = 0, 0, first, min(self.most, n_tokens - first), 0
        return Asked(tiles, slots, positions, ago, self.most)

    def parts(self) -> tuple[Numbers, ...]:
        return self.tiles, self.slots, self.positions, self.ago


def asked_by(trees: Sequence[DraftTree], places: int) -> Asked:
    """By the tokens of trees, which follow each other. Blocks have so many `places`."""
    commons = [_common(tree) for tree in trees]
    wide = max(1, *(tree.end - common for tree, common in zip(trees, commons, strict=True)))
    total = sum(len(tree.sees) for tree in trees)
    slots, positions = np.empty(total, np.int32), np.empty(total, np.int32)
    ago = np.full((total, wide), UNSEEN, np.int32)
    tiles: list[tuple[int, ...]] = []
    at = 0
    for tree, common in zip(trees, commons, strict=True):
        base, beside, to = tree.row * places, tree.end - common, at + len(tree.sees)
        own = tree.positions[tree.start :]
        slots[at:to] = base + np.arange(tree.start, tree.end)
        positions[at:to] = own
        since = own[:, None] - tree.positions[None, common:]
        ago[at:to, :beside] = np.where(tree.sees[:, common:], since, UNSEEN)
        starts = range(at, to, OF_A_TILE)
        tiles += [(base, common, n, min(OF_A_TILE, to - n), beside) for n in starts]
        at = to
    return Asked(np.array(tiles, np.int32), slots, positions, ago)


def _common(tree: DraftTree) -> int:
    """How many first places all of its tokens see, each where it stands in its line."""
    plain = tree.sees.all(0) & (tree.positions == np.arange(tree.end))
    return tree.end if plain.all() else int(plain.argmin())


def asked_by_texts(texts: Sequence[Text], places: int) -> Asked:
    """The same by texts of which one token is due each, all at once: there are many, and often."""
    told = [(text.row * places, text.seen, text.start, text.n_read) for text in texts]
    base, seen, start, n_read = np.array(told, np.int32).T
    place = start + n_read
    common = np.where(start == seen, place + 1, seen)
    beside = place + 1 - common
    n = np.arange(len(texts), dtype=np.int32)
    tiles = np.stack([base, common, n, np.ones_like(n), beside], axis=1)
    since = beside[:, None] - 1 - np.arange(max(1, beside.max()), dtype=np.int32)
    ago = np.where((since >= 0) & (since <= n_read[:, None]), since, np.int32(UNSEEN))
    return Asked(tiles, base + place, seen + n_read, ago, most=1)


@dataclass(frozen=True)
class OnDevice:
    """The same on a device; its `table` [layers, 2] has the addresses of keys and values."""

    tiles: torch.Tensor
    slots: torch.Tensor
    positions: torch.Tensor
    ago: torch.Tensor
    table: torch.Tensor
    most: int

    @classmethod
    def of(cls, asked: Asked, table: torch.Tensor) -> OnDevice:
        tiles, slots, positions, ago = (sent(part, table.device) for part in asked.parts())
        return cls(tiles, slots, positions, ago, table, asked.most)

    def attend(
        self, blocks: TiledBlocks, layer: int, states: Sequence[torch.Tensor], spec: AttentionSpec
    ) -> torch.Tensor:
        """query [heads, T, size], key and value [groups, T, size], which are put in their place:
        → [T, heads, size]."""
        query, key, value = states
        _check(key, value)
        blocks.tell(layer)
        kernel().put(key, value, self.slots, self.table[layer])
        out: torch.Tensor = kernel().attend(query, len(key), self, self.table[layer], spec)
        return out


@dataclass(frozen=True)
class Slots:
    """Where the tokens of some prompts lie, as blocks of so many places have them one after the
    other: their own [T], all that their rows see [S], and what is copied [n] from where to where.
    """

    own: torch.Tensor
    seen: torch.Tensor | None = None
    origins: torch.Tensor | None = None
    copies: torch.Tensor | None = None

    @classmethod
    def of(cls, prompts: Prompts, places: int) -> Slots:
        own = prompts.row * places + prompts.place
        if prompts.seen is None or prompts.shared is None:
            return cls(own)
        seen, copies = (one[0] * places + one[1] for one in (prompts.seen, prompts.shared))
        return cls(own, seen, seen[prompts.shared[2]], copies)


class TiledBlocks(Blocks):
    """Blocks whose tokens lie one after the other, each with all its heads, and whose addresses are
    in a table on their device."""

    passes_over_all = False

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.table = torch.zeros(_LAYERS, 2, dtype=torch.int64, device=device)
        self._told: dict[int, tuple[int, int]] = {}
        self._latest: tuple[Prompts, Slots] | None = None

    def room_up_to(self, end: int) -> int:
        """At once: the kernels find blocks by their addresses."""
        places = super().room_up_to(end)
        for (layer, kind), block in list(self._blocks.items()):
            self._block(layer, kind, block)
        return places

    def tell(self, layer: int) -> None:
        """Of where a layer's blocks lie by now."""
        here = self._blocks[layer, 0].data_ptr(), self._blocks[layer, 1].data_ptr()
        if self._told.get(layer) != here:
            self.table[layer] = sent(here, self.table.device)
            self._told[layer] = here

    def tell_all(self) -> None:
        for layer in self.specs:
            self.tell(layer)

    def write_prompts(
        self, prompts: Prompts, layer: int, states: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Keys and values at once; what rows share with others is copied within the blocks."""
        key, value = states
        _check(key, value)
        blocks = [self._block(layer, kind, new) for kind, new in enumerate(states)]
        self.tell(layer)
        slots = self._slots_of(prompts)
        kernel().put(key, value, slots.own, self.table[layer])
        if slots.seen is None:
            return [new.transpose(0, 1) for new in states]
        kernel().move(slots.origins, slots.copies, self.table[layer], key)
        heads, size = key.shape[0], key.shape[2]
        return [
            block.transpose(1, 2).view(-1, heads * size)[slots.seen].view(-1, heads, size)
            for block in blocks
        ]

    def _slots_of(self, prompts: Prompts) -> Slots:
        """Made once for all layers."""
        if self._latest is None or self._latest[0] is not prompts:
            self._latest = prompts, Slots.of(prompts, self.places)
        return self._latest[1]

    def _view(self, memory: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        rows, heads, places, size = shape
        return memory.view(rows, places, heads, size).transpose(1, 2)


def _check(key: torch.Tensor, value: torch.Tensor) -> None:
    if key.shape != value.shape:  # as DeepSeek has them
        raise ValueError("its values are not as wide as its keys")


@functools.cache
def kernel() -> ModuleType:
    from jlm_cli.hf import tile_kernel

    return tile_kernel


def are_usable(model: PreTrainedModel) -> bool:
    """On one GPU, where Triton finds a compiler, and room for what a tile needs."""
    n_devices = len({weight.device for weight in model.parameters()})
    return n_devices == 1 and kernels.are_usable(model.device) and _work(model)


def _work(model: PreTrainedModel) -> bool:
    blocks = TiledBlocks(model.device)
    blocks.begin(1, 1)
    tile, one, beside = (np.zeros(shape, np.int32) for shape in ((1, FIELDS), 1, (1, 1)))
    try:
        heads, groups, size = kernels.heads_of(model)
        with torch.inference_mode():
            states = [
                torch.zeros(n, 1, size, dtype=model.dtype, device=model.device)
                for n in (heads, groups, groups)
            ]
            for kind in (0, 1):
                blocks._block(0, kind, states[1])
            for most in (1, OF_A_TILE):
                asked = OnDevice.of(Asked(tile, one, one, beside, most), blocks.table)
                asked.attend(blocks, 0, states, AttentionSpec())
    except torch.OutOfMemoryError:
        raise
    except Exception:  # of a compiler, whatever it is; recurrent models have no heads
        return False
    return True
