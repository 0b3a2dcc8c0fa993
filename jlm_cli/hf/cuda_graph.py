"""Writing on a GPU: a pass of one token for each row is captured once and replayed. Its launches, a
thousand and more, take the host longer than the GPU takes over so few tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import PreTrainedModel

from jlm_cli.hf.attention import computing
from jlm_cli.hf.blocks import Blocks, DraftTrees
from jlm_cli.hf.packed_attention import Pack
from jlm_cli.hf.packing import DraftTree
from jlm_cli.hf.transfers import sent

if TYPE_CHECKING:
    from jlm_cli.hf.reasons import Text
    from jlm_cli.hf_engine import PackedEngine

_NOTHING = DraftTree(0, 0, np.ones((1, 1), bool), np.zeros(1, np.int64))


class GraphedStep:
    """One more token for each text in some blocks, as often as it fits them.

    Rows whose text has ended go along: they read a token over their own first place, and nobody
    asks what follows.
    """

    def __init__(self, engine: PackedEngine, blocks: Blocks, texts: Sequence[Text]) -> None:
        """Raises RuntimeError where a pass of the model has to wait for its GPU."""
        self._engine, self._blocks = engine, blocks
        own = {text.row: text.tree() for text in texts}
        trees = [own.get(row, replace(_NOTHING, row=row)) for row in range(blocks.rows)]
        self._trees = DraftTrees.of(trees, blocks, engine.device, engine.model.dtype)
        self._numbers = torch.zeros(3, blocks.rows, dtype=torch.int64, device=engine.device)
        self._size = blocks.rows, blocks.places
        self._send(texts)
        with computing():
            self._replay, self._found = capture(self._step)

    def fits(self, texts: Sequence[Text]) -> bool:
        """As long as the rows are those that there were, and the places enough."""
        here = self._blocks.rows, self._blocks.places
        return here == self._size and max(text.place for text in texts) < self._size[1]

    def chosen(self, texts: Sequence[Text]) -> torch.Tensor:
        """What is likeliest behind each text, and whether all are numbers."""
        self._send(texts)
        self._replay()
        rows = [text.row for text in texts]
        return self._found[sent([*rows, len(self._found) - 1], self._found.device)]

    def _send(self, texts: Sequence[Text]) -> None:
        numbers = np.zeros(self._numbers.shape, np.int64)
        for text in texts:
            numbers[:, text.row] = text.due[0], text.position, text.place
        self._numbers.copy_(sent(numbers, self._numbers.device))

    def _step(self) -> torch.Tensor:
        ids, positions, places = self._numbers
        trees = self._trees
        trees.sees[:, 0, 0].scatter_(1, places[:, None], 0.0)
        trees.positions.scatter_(1, places[:, None], positions[:, None].to(trees.positions.dtype))
        now = replace(trees, place=places, own=positions[:, None], _through={})
        pack = Pack(self._blocks, (), None, now)
        return chosen(self._engine.logits(ids[None], positions[None], pack))


def chosen(logits: torch.Tensor) -> torch.Tensor:
    """Of [1, n, vocabulary] the likeliest, and behind them 1 where all are numbers."""
    sound = torch.isfinite(logits).all().to(torch.int64)
    return torch.cat([logits[0].argmax(-1), sound[None]])


def can_capture(model: PreTrainedModel) -> bool:
    """Whether it lies on one GPU."""
    devices = {weight.device for weight in model.parameters()}
    return len(devices) == 1 and devices.pop().type == "cuda"


def capture(step: Callable[[], torch.Tensor]) -> tuple[Callable[[], object], torch.Tensor]:
    """What replays the launches of a step, and where they leave what it finds."""
    with _without_waiting():
        step()  # kernels are loaded, and memory for keys and values is found
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
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
