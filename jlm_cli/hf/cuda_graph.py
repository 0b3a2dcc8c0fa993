"""Small passes on a GPU, captured once and replayed: those over drafted tokens and over texts. The
launches of a pass, a thousand and more, take the host longer than the GPU takes over so few tokens.

A pass is captured for so many tokens that others fit in it as well. It finds a batch's keys and
values by their addresses, and serves whatever batch is under way.
"""

from __future__ import annotations

import bisect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from jlm_cli.hf.head import exact
from jlm_cli.hf.memory import is_out_of_memory
from jlm_cli.hf.tiles import FIELDS, OF_A_TILE, Asked, OnDevice, TiledBlocks
from jlm_cli.hf.transfers import sent

if TYPE_CHECKING:
    from jlm_cli.hf_engine import PackedEngine

_TOKENS = (16, 32, 64, 96, 128, 192, 256, 384, 512, 768)
MOST_TOKENS = _TOKENS[-1]  # over more the GPU takes as long as the host over the launches
_MOST_KEPT = 32  # graphs
_LEAST_BESIDE = 64

Memory: TypeAlias = Any  # a number of CUDA's allocator; None where there is no CUDA


class GraphedPasses:
    """An engine's passes of few tokens, each of a size that others fit in as well."""

    def __init__(self, engine: PackedEngine) -> None:
        self._engine = engine
        self._passes: dict[tuple[int, int, int], GraphedPass] = {}
        self._memory = _memory(engine.device)
        self._no_columns = torch.empty(0, dtype=torch.int64, device=engine.device)

    def forget(self) -> None:
        """Not before the GPU is done with them."""
        if self._passes and self._engine.device.type == "cuda":
            torch.cuda.synchronize(self._engine.device)
        self._passes.clear()
        self._memory = _memory(self._engine.device)

    def log_p(
        self, ids: torch.Tensor, asked: Asked, blocks: TiledBlocks, columns: torch.Tensor
    ) -> torch.Tensor:
        """What is known behind each of some drafted tokens [T], [T, columns]."""
        return self._of(asked, len(columns)).run(ids, asked, blocks, columns)[: len(ids)].clone()

    def chosen(self, ids: torch.Tensor, asked: Asked, blocks: TiledBlocks) -> torch.Tensor:
        """What is likeliest behind each of some tokens [T], and whether it is known: [2, T]."""
        found = self._of(asked, 0).run(ids, asked, blocks, self._no_columns)
        return found[:, : len(ids)].clone()

    def _of(self, asked: Asked, n_columns: int) -> GraphedPass:
        n, beside = asked.ago.shape
        n_tokens = _TOKENS[bisect.bisect_left(_TOKENS, n)]
        size = n_tokens, max(_LEAST_BESIDE, 1 << (beside - 1).bit_length()), n_columns
        if size not in self._passes:
            if len(self._passes) == _MOST_KEPT:
                self.forget()
            self._passes[size] = GraphedPass(self._engine, self._memory, *size)
        return self._passes[size]


class GraphedPass:
    """A pass over so many tokens, each of which sees at most so many places beside what all of its
    row see. With no columns, what is likeliest behind texts is wanted, a token of each."""

    def __init__(
        self, engine: PackedEngine, memory: Memory, n_tokens: int, beside: int, n_columns: int
    ) -> None:
        self._engine, self._memory = engine, memory
        self._size = n_tokens, beside
        self._ids = torch.zeros(n_tokens, dtype=torch.int64, device=engine.device)
        sizes = [n_tokens * FIELDS, n_tokens, n_tokens, n_tokens * beside]
        self._numbers = torch.zeros(sum(sizes), dtype=torch.int32, device=engine.device)
        tiles, slots, positions, ago = torch.split(self._numbers, sizes)
        self._table = torch.zeros_like(TiledBlocks(engine.device).table)
        parts = tiles.view(-1, FIELDS), slots, positions, ago.view(n_tokens, -1)
        self._asked = OnDevice(*parts, self._table, OF_A_TILE if n_columns else 1)
        self._columns = torch.zeros(n_columns, dtype=torch.int64, device=engine.device)
        self._captured: tuple[Callable[[], object], torch.Tensor] | None = None

    def run(
        self, ids: torch.Tensor, asked: Asked, blocks: TiledBlocks, columns: torch.Tensor
    ) -> torch.Tensor:
        """Until the next one. Raises RuntimeError where memory ends."""
        numbers = np.concatenate([part.ravel() for part in asked.filled(*self._size).parts()])
        self._numbers.copy_(sent(numbers, self._engine.device))
        self._ids[: len(ids)] = ids
        blocks.tell_all()
        self._table.copy_(blocks.table)
        self._columns.copy_(columns)
        if self._captured is None and self._engine.captures and not _has_autocast(self._ids.device):
            self._capture(blocks)
        if self._captured is None:
            return self._step(blocks)
        replay, found = self._captured
        replay()
        return found

    def _capture(self, blocks: TiledBlocks) -> None:
        try:
            self._captured = capture(partial(self._step, blocks), self._memory)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            self._engine.captures = False

    def _step(self, blocks: TiledBlocks) -> torch.Tensor:
        given = self._ids, self._asked, blocks
        if not len(self._columns):
            return chosen(self._engine.answers(*given))
        with exact(self._engine.model, self._columns) as head:
            return head.log_p(self._engine.answers(*given), 0)


def chosen(logits: torch.Tensor) -> torch.Tensor:
    """Of [1, T, vocabulary] the likeliest, and 1 where all are numbers: [2, T]."""
    sound = torch.isfinite(logits[0]).all(-1)
    return torch.stack([logits[0].argmax(-1), sound.to(torch.int64)])


def _has_autocast(device: torch.device) -> bool:
    """Whose casts of the weights, which a graph would read, do not last."""
    return bool(torch.is_autocast_enabled(device.type))


def _memory(device: torch.device) -> Memory:
    """What graphs share that are replayed one after the other; what one has found is to be copied
    before."""
    return torch.cuda.graph_pool_handle() if device.type == "cuda" else None


def capture(
    step: Callable[[], torch.Tensor], memory: Memory
) -> tuple[Callable[[], object], torch.Tensor]:
    """What replays the launches of a step, and where they leave what it finds. Raises RuntimeError
    where the step has to wait for its GPU."""
    with _without_waiting():
        step()  # kernels are loaded
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, pool=memory, capture_error_mode="thread_local"):
            found = step()
    finally:
        torch.cuda.set_stream(stream)  # a capture that fails would leave its own
    return graph.replay, found


@contextmanager
def _without_waiting() -> Iterator[None]:
    """RuntimeError where the host waits for the GPU, which a captured pass could not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that not all of it is seen
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
