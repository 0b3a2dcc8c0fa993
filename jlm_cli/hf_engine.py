"""The real engine: transformers models on CPU or GPU. Imported only when a model is loaded.

Tokens of many rows go through the model as one packed sequence (packing.py). A batch is a prefill,
which has the first scores drafted behind each prompt, and a tree step or two; a mask lets each
drafted token see its prompt and its ancestors.
"""

from __future__ import annotations

import bisect
import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from transformers import Cache, DynamicCache, PreTrainedModel

from jlm_cli.attention import computing
from jlm_cli.batching import DRAFT_ROOM
from jlm_cli.encoding import Vocabulary
from jlm_cli.engine import Batch, Ids, LineDraft, ReadAtOnce
from jlm_cli.head import exact, only
from jlm_cli.hub import Say, first_line, unsaid
from jlm_cli.memory import within_memory
from jlm_cli.packing import ATTENTION, Blocks, Fan, Fans, Pack, Segment, Tokens, shared_start
from jlm_cli.row_by_row import CachedEngine, PlainEngine
from jlm_cli.scoreline import Floats
from jlm_cli.transfers import Coming, sent
from jlm_cli.walk import DraftToken
from jlm_cli.writing import Writer

# tokens in one pass, times bytes of a number: enough to amortise reading the weights, few enough
# for the caches
CPU_PACK_BYTES = 4800
GPU_PACK = 16384


class PackedEngine(Writer):
    """Scores by a packed prefill and tree steps: for models with ordinary attention. A batch with a
    row that is longer than the model's ordinary attention goes is read row by row."""

    at_once = 1

    def __init__(self, model: PreTrainedModel, vocabulary: Vocabulary) -> None:
        super().__init__(model, vocabulary)
        on_cpu = self.device.type == "cpu"
        self.pack_tokens = CPU_PACK_BYTES // model.dtype.itemsize if on_cpu else GPU_PACK
        self._spare: list[Blocks] = []  # of batches that have ended
        self._latest: PackedBatch | None = None
        self._up_to = _ordinary_up_to(model)
        self._row_by_row = CachedEngine(model, vocabulary)

    @within_memory
    def begin(
        self, prompts: Sequence[Ids], drafts: Sequence[LineDraft], columns: Sequence[int]
    ) -> PackedBatch | ReadAtOnce:
        if max(map(len, prompts)) + DRAFT_ROOM > self._up_to:
            self._latest = None
            return self._row_by_row.begin(prompts, drafts, columns)
        blocks = self._spare.pop() if self._spare else Blocks()
        self._latest = PackedBatch(self, blocks, prompts, drafts, columns)
        return self._latest

    def take_back(self, blocks: Blocks) -> None:
        """For the next batch: memory that is written already need not be asked for again."""
        self._spare.append(blocks)

    def forget(self) -> None:
        self._spare.clear()
        self._latest = None
        super().forget()

    def _read_before(self, prompts: Sequence[Ids]) -> Cache | None:
        """Reasons go on behind prompts of the batch just judged."""
        # without them `generate` would count the padding as places
        positioned = "position_ids" in inspect.signature(self.model.forward).parameters
        return self._latest.cache_of(prompts) if self._latest and positioned else None

    def run(self, tokens: Tokens, blocks: Blocks, columns: torch.Tensor) -> torch.Tensor:
        """One pass over packed tokens: [kept, columns]."""
        fans = Fans.of(tokens.fans, self.device, self.model.dtype) if tokens.fans else None
        with (
            computing(),
            attention(self.model, ATTENTION),
            only(self.model, tokens.kept),
            exact(self.model, columns) as head,
        ):
            logits = self.model(
                input_ids=sent([tokens.ids], self.device),
                position_ids=sent([tokens.positions], self.device),
                use_cache=False,
                pack=Pack(blocks, tokens.segments, fans),
            ).logits
            return head.log_p(logits, 0)


class PackedBatch:
    """Rows of a batch lie in the order of their tokens, and each copies what it shares with the
    one before: both orders of a sample, and samples with the same question, begin alike."""

    def __init__(
        self,
        engine: PackedEngine,
        blocks: Blocks,
        prompts: Sequence[Ids],
        drafts: Sequence[LineDraft],
        columns: Sequence[int],
    ) -> None:
        self._engine = engine
        self.blocks = blocks
        self._columns = sent(list(columns), engine.device)
        given = [tuple(prompt) for prompt in prompts]
        self._order = sorted(range(len(given)), key=given.__getitem__)
        self._prompts = [given[row] for row in self._order]
        self._fed: list[list[int]] = [[] for _ in given]  # where in their lines drafted tokens lie
        self._behind = [drafts[row] for row in self._order]
        self._left = self._packs()
        self._coming: list[Coming] = []
        self._sizes = [1 + len(draft) for draft in self._behind]  # what comes for each row
        blocks.begin(len(given), max(map(len, given)) + DRAFT_ROOM)

    @within_memory
    def feed(self) -> bool:
        """One pack."""
        pack = next(self._left, None)
        if pack is None:
            return False
        tokens = Tokens()
        for segment in pack:
            tokens.add_prompt(segment, self._prompts[segment.row])
        for segment in pack:
            self._add_draft(tokens, segment.row, self._behind[segment.row])
        self._run(tokens)
        return True

    def ready(self) -> bool:
        return all(coming.is_here() for coming in self._coming)

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
        fetched = np.concatenate([coming.arrived() for coming in self._coming])
        self._coming = []
        if not np.isfinite(fetched).all():
            self.blocks.drop_memory()  # what is no number would reach the next batch's rows
        parts = np.split(fetched, np.cumsum(self._sizes)[:-1])
        place = {row: n for n, row in enumerate(self._order)}
        return [parts[place[row]] for row in range(len(parts))]

    def end(self) -> None:
        self._engine.take_back(self.blocks)

    def forget(self) -> None:
        self.blocks = Blocks()
        self._coming = []
        self._engine.forget()

    def missed(self) -> str | None:
        """What of the model's attention did not come here."""
        config = self._engine.model.config.get_text_config()
        layers, told = range(config.num_hidden_layers), self.blocks.looks
        if told.keys() != set(layers):
            return "not every layer has ordinary attention"
        kinds = getattr(config, "layer_types", None)
        windows = getattr(config, "sliding_window", None) is not None
        for layer in layers:
            narrow = kinds[layer] == "sliding_attention" if kinds else windows
            if narrow != (told[layer].window is not None):
                return "it has windows that its attention is not told of"
        return None

    def cache_of(self, prompts: Sequence[Ids]) -> Cache | None:
        """Keys and values of the prompts of this batch that others go on from, all ending at the
        same place; None where one of them goes on from none."""
        rows = [row for ids in prompts if (row := self._row_of(ids)) is not None]
        if len(rows) < len(prompts):
            return None
        read = [self._prompts[row] for row in rows]
        behind = max(len(ids) - len(start) for ids, start in zip(prompts, read, strict=True))
        ends = [len(ids) - behind for ids in prompts]
        if min(ends) < 1:
            return None
        cache = DynamicCache()
        for layer, states in self.blocks.ending_together(rows, ends):
            cache.update(*states, layer)
        return cache

    def _row_of(self, ids: Ids) -> int | None:
        """The row whose prompt these ids go on from."""
        start = tuple(ids)
        row = bisect.bisect_right(self._prompts, start) - 1
        if row < 0 or start[: len(self._prompts[row])] != self._prompts[row]:
            return None
        return row

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
        tokens.add_draft(Fan(row, start, sees, positions), prompt, draft)

    def _run(self, tokens: Tokens) -> None:
        self._coming.append(Coming(self._engine.run(tokens, self.blocks, self._columns)))


@contextmanager
def attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    """The model with another attention function, for a while."""
    before = model.config._attn_implementation
    model.config._attn_implementation = name
    try:
        yield
    finally:
        model.config._attn_implementation = before


def make_engine(
    model: PreTrainedModel, vocabulary: Vocabulary, say: Say = unsaid
) -> PackedEngine | CachedEngine | PlainEngine:
    """The fastest engine that the model really follows, found out by a short trial."""
    packed, plain = PackedEngine(model, vocabulary), PlainEngine(model, vocabulary)
    if (why := _unpackable(model) or _why_not(packed, plain)) is None:
        return packed
    say(f"this model's rows cannot be packed and are read one by one: {why}")
    cached = CachedEngine(model, vocabulary)
    return cached if _why_not(cached, plain) is None else plain


def _unpackable(model: PreTrainedModel) -> str | None:
    """What a short trial would not show: Llama 4 also scales attention by the place in a pass."""
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    return "it attends in chunks" if "chunked_attention" in kinds else None


def _ordinary_up_to(model: PreTrainedModel) -> float:
    """How long a row may be that changes nothing of what its pass makes of the others, by a rotary
    embedding that follows the longest one; which a short trial would not show either."""
    config = model.config.get_text_config()
    ropes = getattr(config, "rope_parameters", None) or {}
    ends: list[float] = [math.inf]
    for rope in (ropes, *(one for one in ropes.values() if isinstance(one, dict))):
        if rope.get("rope_type") == "longrope":
            ends.append(rope["original_max_position_embeddings"])
        elif rope.get("rope_type") == "dynamic":
            ends.append(config.max_position_embeddings)
    return min(ends)


_TRIAL_TOLERANCE = 0.05  # relative, in log-probability; a mask that is ignored is off by far more
_ROUNDING = 0.1  # more of it where numbers have 16 bits, which alone are off by 0.05


def _why_not(engine: PackedEngine | CachedEngine, plain: PlainEngine) -> str | None:
    """Both engines on two short rows with two branches each; None where they agree."""
    texts = ("one two three four five six:", "seven:")
    prompts = [encoding.ids for encoding in plain.vocabulary.encode(texts)]
    columns = prompts[0][:4]
    forks = [DraftToken(columns[n], 1, ()) for n in (0, 1)]
    draft = [*forks, DraftToken(columns[2], 2, (0,))]
    try:
        batch = engine.begin(prompts, [draft, []], columns)
        found = _both(batch, draft)
        if isinstance(batch, PackedBatch) and (missed := batch.missed()):
            return missed
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        return first_line(error)
    wanted = _both(plain.begin(prompts, [draft, []], columns), draft)
    allowed = _TRIAL_TOLERANCE + (_ROUNDING if plain.model.dtype.itemsize == 2 else 0)
    agree = all(
        bool(np.all(np.abs(a - b) < allowed * (1 + np.abs(b))))
        for a, b in zip(found, wanted, strict=True)
    )
    return None if agree else "it gives other numbers then"


def _both(batch: Batch, draft: LineDraft) -> list[Floats]:
    """What is known at first, and of a draft for the second row."""
    while batch.feed():
        pass
    first = batch.known()
    batch.extend([[], draft])
    return [*first, *batch.known()]
