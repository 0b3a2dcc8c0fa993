"""The real engine: transformers models on CPU or GPU. Imported only when a model is loaded.

Tokens of many rows go through the model as one packed sequence (packing.py). A batch is a prefill,
which has the first scores drafted behind each prompt, and a tree step or two; a mask lets each
drafted token see its prompt and its ancestors.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from transformers import PreTrainedModel

from jlm_cli.batching import DRAFT_ROOM
from jlm_cli.encoding import Vocabulary
from jlm_cli.engine import Ids, LineDraft, ReadAtOnce, Written, Wrote
from jlm_cli.hf.attention import computing, reads_rows_at_once
from jlm_cli.hf.blocks import Blocks, DraftTrees, Prompts
from jlm_cli.hf.cuda_graph import MOST_TOKENS, GraphedPasses, chosen
from jlm_cli.hf.head import exact
from jlm_cli.hf.last_layer import only
from jlm_cli.hf.memory import within_memory
from jlm_cli.hf.packed_attention import ATTENTION, Drafted, Pack
from jlm_cli.hf.packing import DraftTree, Segment, Tokens, shared_start
from jlm_cli.hf.pool import BlockPool
from jlm_cli.hf.reasons import Step, Text, write_behind
from jlm_cli.hf.rotary import RotaryPatch
from jlm_cli.hf.row_by_row import CachedEngine
from jlm_cli.hf.tiles import Asked, OnDevice, TiledBlocks, are_usable, asked_by, asked_by_texts
from jlm_cli.hf.transfers import HostCopy, sent
from jlm_cli.hf.writing import Writer
from jlm_cli.scoreline import Floats

# tokens in one pass, times bytes of a number: enough to amortise reading the weights, few enough
# for the caches
CPU_PACK_BYTES = 9600
GPU_PACK = 16384
_PREFILLS = 2  # that a device is given at once: it is at one, and need not wait for the next


class PackedEngine(Writer):
    """Scores by a packed prefill and tree steps: for models with ordinary attention. A batch with a
    row that is longer than the model's ordinary attention goes is read row by row."""

    at_once = 1

    def __init__(self, model: PreTrainedModel, vocabulary: Vocabulary) -> None:
        super().__init__(model, vocabulary)
        on_cpu = self.device.type == "cpu"
        self.pack_tokens = CPU_PACK_BYTES // model.dtype.itemsize if on_cpu else GPU_PACK
        tiled = are_usable(model)
        self.pool = BlockPool(partial(TiledBlocks, self.device) if tiled else Blocks)
        self._prefills: deque[HostCopy] = deque()  # that the device may not have come to
        self.unfed: set[PackedBatch] = set()
        self._latest: PackedBatch | None = None
        self.pads = math.isinf(self.up_to)
        self._row_by_row = CachedEngine(model, vocabulary)
        self._rotary = RotaryPatch.of(model)
        self.captures = True  # until a pass of the model has to wait for its GPU
        self._graphed = GraphedPasses(self)
        self.behind: Sequence[str] = ()  # parts that see each token by itself, where it is known

    @within_memory
    def begin(
        self, prompts: Sequence[Ids], drafts: Sequence[LineDraft], columns: Sequence[int]
    ) -> PackedBatch | ReadAtOnce:
        if max(map(len, prompts)) + DRAFT_ROOM > self.up_to:
            self._latest = None
            return self._row_by_row.begin(prompts, drafts, columns)
        self._latest = PackedBatch(self, prompts, drafts, columns)
        return self._latest

    def may_begin(self) -> bool:
        return not self.unfed

    def is_idle(self) -> bool:
        """Whether the device is at its last prefill, or will soon be."""
        while self._prefills and self._prefills[0].is_ready():
            self._prefills.popleft()
        return len(self._prefills) < _PREFILLS

    def hear(self, prefill: HostCopy) -> None:
        self._prefills.append(prefill)

    def forget(self) -> None:
        self.pool.forget()
        self._prefills.clear()
        self._latest = None
        self._graphed.forget()
        super().forget()

    @within_memory
    def write(self, prompts: Sequence[Ids], limits: Sequence[int], wrote: Wrote) -> list[Written]:
        """Reasons go on behind prompts of the batch just judged; others are read first."""
        ends = [len(ids) + limit for ids, limit in zip(prompts, limits, strict=True)]
        if max(ends) + DRAFT_ROOM > self.up_to:
            return super().write(prompts, limits, wrote)
        batch, self._latest = self._latest, None
        rows = batch.rows_of(prompts) if batch and batch.is_over else None
        if batch is None or rows is None:
            new = self.begin(prompts, [[] for _ in prompts], [0])
            assert isinstance(new, PackedBatch)
            while new.feed():
                pass
            new.known()
            batch, rows = new, new.rows_of(prompts)
            batch.end()
            self._latest = None
        assert rows is not None
        texts = [
            batch.text(row, ids, limit)
            for row, ids, limit in zip(rows, prompts, limits, strict=True)
        ]
        write_behind(self, batch.blocks, texts, wrote)
        return [self._written(text.ids, text.limit) for text in texts]

    def ask(self, texts: Sequence[Text], blocks: Blocks) -> Step:
        """For the likeliest token behind what is due of each text."""
        due = [text.due for text in texts]
        if isinstance(blocks, TiledBlocks) and all(len(ids) == 1 for ids in due):
            return self._asked_for_one(sent([ids[0] for ids in due], self.device), texts, blocks)
        tokens = Tokens()
        for text, ids in zip(texts, due, strict=True):
            tokens.add_text(text.tree(), ids)
        with computing():
            found = chosen(self._pass(tokens, blocks))
        for text, ids in zip(texts, due, strict=True):
            text.n_read += len(ids)
        return Step(texts, found, HostCopy(found))

    def ask_ahead(self, step: Step, blocks: Blocks) -> Step | None:
        """For what is likeliest behind the tokens of a step, which the device alone will know; None
        where it would not be faster."""
        going = [n for n, text in enumerate(step.texts) if text.may_go_on]
        if not going or not isinstance(blocks, TiledBlocks):
            return None
        ids = step.found[0, sent(going, self.device)]
        return self._asked_for_one(ids, [step.texts[n] for n in going], blocks)

    def _asked_for_one(self, ids: torch.Tensor, texts: Sequence[Text], blocks: TiledBlocks) -> Step:
        """Behind one token of each text, [T]."""
        places = blocks.room_up_to(1 + max(text.place for text in texts))
        asked = asked_by_texts(texts, places)
        with computing():
            if len(texts) <= MOST_TOKENS:
                found = self._graphed.chosen(ids, asked, blocks)
            else:
                found = chosen(self.answers(ids, OnDevice.of(asked, blocks.table), blocks))
        for text in texts:
            text.n_read += 1
        return Step(texts, found, HostCopy(found))

    def run(self, tokens: Tokens, blocks: Blocks, columns: torch.Tensor) -> torch.Tensor:
        """What is known behind the kept tokens, [kept, columns]."""
        with computing():
            few = len(tokens.ids) <= MOST_TOKENS and not tokens.segments
            if isinstance(blocks, TiledBlocks) and few:
                asked = self._asked(tokens, blocks)
                ids = sent(tokens.ids, self.device)
                return self._graphed.log_p(ids, asked, blocks, columns)
            with exact(self.model, columns) as head:
                return head.log_p(self._pass(tokens, blocks), 0)

    def _pass(self, tokens: Tokens, blocks: Blocks) -> torch.Tensor:
        """One pass over packed tokens: logits [1, kept, vocabulary]."""
        at_once = tokens.segments and reads_rows_at_once(self.device, self.model.dtype)
        prompts = Prompts.of(tokens.segments, self.device) if at_once else None
        trees = self._drafted(tokens, blocks) if tokens.trees else None
        ids, positions = (sent([one], self.device) for one in (tokens.ids, tokens.positions))
        with only(self.model, self.behind if tokens.segments else (), tokens):
            return self.logits(ids, positions, Pack(blocks, tokens.segments, prompts, trees))

    def _drafted(self, tokens: Tokens, blocks: Blocks) -> Drafted:
        if isinstance(blocks, TiledBlocks):
            return OnDevice.of(self._asked(tokens, blocks), blocks.table)
        return DraftTrees.of(tokens.trees, blocks, self.device, self.model.dtype)

    def _asked(self, tokens: Tokens, blocks: Blocks) -> Asked:
        places = blocks.room_up_to(max(tree.end for tree in tokens.trees))
        return asked_by(tokens.trees, places)

    def answers(self, ids: torch.Tensor, asked: OnDevice, blocks: TiledBlocks) -> torch.Tensor:
        """Behind each of some drafted tokens [T], or one token of each text: [1, T, vocabulary]."""
        pack = Pack(blocks, (), None, asked)
        return self.logits(ids[None], asked.positions[None].long(), pack)

    def logits(self, ids: torch.Tensor, positions: torch.Tensor, pack: Pack) -> torch.Tensor:
        """Behind each of packed tokens [1, T]: [1, T, vocabulary]."""
        with attention(self.model, ATTENTION), self._rotary.on():
            out = self.model(input_ids=ids, position_ids=positions, use_cache=False, pack=pack)
        logits: torch.Tensor = out.logits
        return logits


_NONE = Blocks()


class PackedBatch:
    """Rows of a batch lie in the order of their tokens, and each copies what it shares with the
    one before: both orders of a sample, and samples with the same question, begin alike."""

    def __init__(
        self,
        engine: PackedEngine,
        prompts: Sequence[Ids],
        drafts: Sequence[LineDraft],
        columns: Sequence[int],
    ) -> None:
        self._engine, self._pool = engine, engine.pool
        self.blocks = _NONE  # until it is lent some
        self.is_over = False
        self._columns = sent(list(columns), engine.device)
        given = [tuple(prompt) for prompt in prompts]
        self._order = sorted(range(len(given)), key=given.__getitem__)
        self._prompts = [given[row] for row in self._order]
        self._fed: list[list[int]] = [[] for _ in given]  # where in their lines drafted tokens lie
        self._behind = [drafts[row] for row in self._order]
        self._left = self._packs()
        self._copies: list[HostCopy] = []
        self._sizes = [1 + len(draft) for draft in self._behind]  # what comes for each row
        self._shape = len(given), max(map(len, given)) + DRAFT_ROOM
        engine.unfed.add(self)

    def may_feed(self) -> bool:
        has_room = self.blocks is not _NONE or self._pool.has_room(*self._shape)
        return has_room and self._engine.is_idle()

    @within_memory
    def feed(self) -> bool:
        """One pack."""
        pack = next(self._left, None)
        if pack is None:
            return False
        if self.blocks is _NONE:
            self._engine.unfed.discard(self)
            self.blocks = self._pool.lend(*self._shape)
        tokens = Tokens()
        for segment in pack:
            tokens.add_prompt(segment, self._prompts[segment.row])
        for segment in pack:
            self._add_draft(tokens, segment.row, self._behind[segment.row])
        self._run(tokens)
        self._engine.hear(self._copies[-1])
        return True

    def ready(self) -> bool:
        return all(copy.is_ready() for copy in self._copies)

    @within_memory
    def extend(self, drafts: Sequence[LineDraft]) -> None:
        behind = [drafts[row] for row in self._order]
        self._sizes = [len(draft) for draft in behind]
        tokens = Tokens()
        for row, draft in enumerate(behind):
            self._add_draft(tokens, row, draft)
        self._run(tokens)

    @within_memory
    def known(self) -> list[Floats]:
        """[all kept, columns], as the rows lie, to [size, columns] for each as they were given."""
        fetched = np.concatenate([copy.wait() for copy in self._copies])
        self._copies = []
        if not np.isfinite(fetched).all():
            self.blocks.drop_memory()  # what is no number would reach the next batch's rows
        parts = np.split(fetched, np.cumsum(self._sizes)[:-1])
        place = {row: n for n, row in enumerate(self._order)}
        return [parts[place[row]] for row in range(len(parts))]

    def end(self) -> None:
        self._engine.unfed.discard(self)
        if self.blocks is not _NONE and not self.is_over:
            self._pool.take_back(self.blocks)
        self.is_over = True

    def forget(self) -> None:
        self._pool.lose(self.blocks)
        self.blocks, self._copies = _NONE, []
        self._engine.forget()

    def missed(self) -> str | None:
        """What of the model's attention did not come here."""
        config = self._engine.model.config.get_text_config()
        layers, told = range(config.num_hidden_layers), self.blocks.specs
        if told.keys() != set(layers):
            return "not every layer has ordinary attention"
        kinds = getattr(config, "layer_types", None)
        window = getattr(config, "sliding_window", None)
        if window is not None and window >= (self._engine.vocabulary.context or math.inf):
            return None  # no row reaches beyond it
        for layer in layers:
            slides = kinds[layer] == "sliding_attention" if kinds else window is not None
            if slides != (told[layer].window is not None):
                return "its sliding windows are not passed to the attention function"
        return None

    def rows_of(self, prompts: Sequence[Ids]) -> list[int] | None:
        """For each of some ids a row of its own whose prompt they go on from; None where one has
        none."""
        rows: list[int] = []
        taken: set[int] = set()
        for ids in prompts:
            row = bisect.bisect_right(self._prompts, tuple(ids)) - 1
            start = self._prompts[max(row, 0)]
            while row in taken and row and self._prompts[row - 1] == start:
                row -= 1  # the same prompt, more than once
            if row < 0 or row in taken or tuple(ids[: len(start)]) != start:
                return None
            taken.add(row)
            rows.append(row)
        return rows

    def text(self, row: int, ids: Ids, limit: int) -> Text:
        """What is to be written behind ids that go on from a row's prompt."""
        prompt = len(self._prompts[row])
        seen = min(prompt, len(ids) - 1)
        return Text(row, seen, prompt + len(self._fed[row]), list(ids[seen:]), limit)

    def _packs(self) -> Iterator[list[Segment]]:
        """The prompts' segments, with room for what is drafted behind them."""
        pack: list[Segment] = []
        used = 0
        for row, prompt in enumerate(self._prompts):
            shared = shared_start(self._prompts[row - 1], prompt) if row else 0
            new = len(prompt) - shared + len(self._behind[row])
            if pack and used + new > self._engine.pack_tokens:
                yield pack
                pack, used = [], 0
            pack.append(Segment(row, shared, len(prompt), source=row - 1 if shared else None))
            used += new
        yield pack

    def _add_draft(self, tokens: Tokens, row: int, draft: LineDraft) -> None:
        """Drafted tokens stand behind the prompt in the order of their slots."""
        if not draft:
            return
        prompt = len(self._prompts[row])
        start = prompt + len(self._fed[row])
        sees = np.zeros((len(draft), start + len(draft)), bool)
        sees[:, :prompt] = True
        for n, token in enumerate(draft):
            sees[n, [prompt + slot for slot in token.path]] = True
            sees[n, start + n] = True
        self._fed[row] += [prompt + token.depth - 1 for token in draft]
        positions = np.concatenate([np.arange(prompt), np.array(self._fed[row])])
        tokens.add_draft(DraftTree(row, start, sees, positions), prompt, draft)

    def _run(self, tokens: Tokens) -> None:
        self._copies.append(HostCopy(self._engine.run(tokens, self.blocks, self._columns)))


@contextmanager
def attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    """The model with another attention function, for a while."""
    before = model.config._attn_implementation
    model.config._attn_implementation = name
    try:
        yield
    finally:
        model.config._attn_implementation = before
