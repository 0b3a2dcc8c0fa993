"""The real engine: transformers models on CPU or GPU. Imported only when a model is loaded.

Tokens of many rows go through the model as one packed sequence (packing.py). A batch is a prefill,
which has the first scores drafted behind each prompt, and a tree step or two; a mask lets each
drafted token see its prompt and its ancestors.
"""

from __future__ import annotations

import bisect
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from transformers import Cache, DynamicCache, PreTrainedModel

from jlm_cli.encoding import Vocabulary
from jlm_cli.engine import Ids, LineDraft, with_ends
from jlm_cli.memory import within_memory
from jlm_cli.packing import ATTENTION, Blocks, Fan, Fans, Pack, Segment, Tokens, shared_start
from jlm_cli.scoreline import DraftToken, Floats
from jlm_cli.writing import Writer

DRAFT_ROOM = 128  # places kept free behind the prompts; a larger draft makes the blocks grow
# tokens in one pass, times bytes of a number: enough to amortise reading the weights, few enough
# for the caches
CPU_PACK_BYTES = 4800
GPU_PACK = 16384
_LOGITS_AT_ONCE = 64  # rows of logits turned into log-probabilities at a time, to bound memory


class HFEngine(Writer):
    """What both ways of reading scores share."""

    columns: Sequence[int] = ()

    def log_p(self, logits: torch.Tensor) -> torch.Tensor:
        """[n, vocabulary] → float32 [n, columns] on the device, normalised over the vocabulary."""
        columns = torch.tensor(self.columns, device=logits.device)
        parts = logits.split(_LOGITS_AT_ONCE)  # type: ignore[no-untyped-call]
        return torch.cat([rows.log_softmax(-1, dtype=torch.float32)[:, columns] for rows in parts])


class PackedEngine(HFEngine):
    """Scores by a packed prefill and tree steps: for models with ordinary full attention."""

    def __init__(self, model: PreTrainedModel, vocabulary: Vocabulary) -> None:
        super().__init__(model, vocabulary)
        on_cpu = self.device.type == "cpu"
        self.pack_tokens = CPU_PACK_BYTES // model.dtype.itemsize if on_cpu else GPU_PACK
        self.tokens_fed = 0  # of all batches so far
        self._blocks = Blocks()
        self._order: list[int] = []  # the rows as they lie in the blocks
        self._prompts: list[tuple[int, ...]] = []  # theirs, sorted
        self._fed: list[int] = []

    @within_memory
    def prefill(
        self, prompts: Sequence[Ids], drafts: Sequence[LineDraft], columns: Sequence[int]
    ) -> list[Floats]:
        """Rows lie in the order of their tokens, and each copies what it shares with the one
        before: both orders of a sample, and samples with the same question, begin alike."""
        self.columns = columns
        given = [tuple(prompt) for prompt in prompts]
        self._order = sorted(range(len(given)), key=given.__getitem__)
        self._prompts = [given[row] for row in self._order]
        self._fed = [0] * len(given)
        self._blocks.begin(len(given), max(map(len, given)) + DRAFT_ROOM)
        behind = [drafts[row] for row in self._order]
        parts = []  # fetched from the device once, so that passes queue up there
        for pack in self._packs(behind):
            tokens = Tokens()
            for segment in pack:
                tokens.add_prompt(segment, self._prompts[segment.row])
            for segment in pack:
                self._add_draft(tokens, segment.row, behind[segment.row])
            parts.append(self._pass(tokens))
        return self._in_given_order(torch.cat(parts), [1 + len(draft) for draft in behind])

    @within_memory
    def extend(self, drafts: Sequence[LineDraft]) -> list[Floats]:
        tokens = Tokens()
        behind = [drafts[row] for row in self._order]
        for row, draft in enumerate(behind):
            self._add_draft(tokens, row, draft)
        return self._in_given_order(self._pass(tokens), [len(draft) for draft in behind])

    def _in_given_order(self, known: torch.Tensor, sizes: Sequence[int]) -> list[Floats]:
        """[all kept, columns], as the rows lie, to [size, columns] for each as they were given."""
        fetched = _fetched(known)
        if not np.isfinite(fetched).all():
            self._blocks.drop_memory()  # what is no number would reach the next batch's rows
        parts = np.split(fetched, np.cumsum(sizes)[:-1])
        place = {row: n for n, row in enumerate(self._order)}
        return [parts[place[row]] for row in range(len(parts))]

    def forget(self) -> None:
        self._blocks = Blocks()
        self._prompts = []
        super().forget()

    def _read_before(self, prompts: Sequence[Ids]) -> Cache | None:
        """Reasons go on behind prompts of the batch just judged."""
        rows = [row for ids in prompts if (row := self._row_of(ids)) is not None]
        # without them `generate` would count the padding as places
        positioned = "position_ids" in inspect.signature(self.model.forward).parameters
        if len(rows) < len(prompts) or not positioned:
            return None
        read = [self._prompts[row] for row in rows]
        behind = max(len(ids) - len(start) for ids, start in zip(prompts, read, strict=True))
        ends = [len(ids) - behind for ids in prompts]
        if min(ends) < 1:
            return None
        cache = DynamicCache()
        for layer, states in self._blocks.ending_together(rows, ends):
            cache.update(*states, layer)
        return cache

    def _row_of(self, ids: Ids) -> int | None:
        """The row of the batch whose prompt these ids go on from."""
        start = tuple(ids)
        row = bisect.bisect_right(self._prompts, start) - 1
        if row < 0 or start[: len(self._prompts[row])] != self._prompts[row]:
            return None
        return row

    def went_through_every_layer(self) -> bool:
        """Whether all layers took the packed attention in the last batch, not some or none."""
        return self._blocks.n_layers == int(self.model.config.get_text_config().num_hidden_layers)

    def _packs(self, drafts: Sequence[LineDraft]) -> Iterator[list[Segment]]:
        """The prompts' segments, with room for what is drafted behind them."""
        pack: list[Segment] = []
        used = 0
        for row, prompt in enumerate(self._prompts):
            shared = shared_start(self._prompts[row - 1], prompt) if row else 0
            new = len(prompt) - shared + len(drafts[row])
            if pack and used + new > self.pack_tokens:
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
        start = prompt + self._fed[row]
        sees = np.zeros((len(draft), start + len(draft)), bool)
        sees[:, :prompt] = True
        for n, token in enumerate(draft):
            sees[n, [prompt + slot for slot in token.path]] = True
            sees[n, start + n] = True
        self._fed[row] += len(draft)
        tokens.add_draft(Fan(row, start, sees), prompt, draft)

    def _pass(self, tokens: Tokens) -> torch.Tensor:
        """One pass over packed tokens: [kept, columns]."""
        self.tokens_fed += len(tokens.ids)
        fans = Fans.of(tokens.fans, self.device, self.model.dtype) if tokens.fans else None
        with torch.inference_mode(), attention(self.model, ATTENTION):
            logits = self.model(
                input_ids=torch.tensor([tokens.ids], device=self.device),
                position_ids=torch.tensor([tokens.positions], device=self.device),
                use_cache=False,
                logits_to_keep=torch.tensor(tokens.kept, device=self.device),
                pack=Pack(self._blocks, tokens.segments, fans),
            ).logits
            return self.log_p(logits[0])


def _fetched(numbers: torch.Tensor) -> Floats:
    """From the device; float64 only here, since not every device has it."""
    here: Floats = numbers.cpu().double().numpy()
    return here


@contextmanager
def attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    """The model with another attention function, for a while."""
    before = model.config._attn_implementation
    model.config._attn_implementation = name
    try:
        yield
    finally:
        model.config._attn_implementation = before


class PlainEngine(HFEngine):
    """Scores by a full pass for every prefix: slow, and right for any causal model."""

    @within_memory
    def prefill(
        self, prompts: Sequence[Ids], drafts: Sequence[LineDraft], columns: Sequence[int]
    ) -> list[Floats]:
        self.columns = columns
        self._prompts = prompts
        self._fed: list[list[int]] = [[] for _ in prompts]
        ends = [self._behind(list(prompt)) for prompt in prompts]
        return with_ends(ends, self.extend(drafts))

    @within_memory
    def extend(self, drafts: Sequence[LineDraft]) -> list[Floats]:
        known = []
        for prompt, fed, draft in zip(self._prompts, self._fed, drafts, strict=True):
            fed.extend(token.token for token in draft)
            paths = [[*(fed[slot] for slot in token.path), token.token] for token in draft]
            rows = [self._behind([*prompt, *path]) for path in paths]
            known.append(np.array(rows).reshape(len(draft), len(self.columns)))
        return known

    def _behind(self, ids: list[int]) -> Floats:
        with torch.inference_mode():
            logits = self.model(torch.tensor([ids], device=self.device), logits_to_keep=1).logits
            return _fetched(self.log_p(logits[:, -1])[0])


def make_engine(model: PreTrainedModel, vocabulary: Vocabulary) -> PackedEngine | PlainEngine:
    """The packed engine where the model really follows it, found out by a short trial."""
    packed, plain = PackedEngine(model, vocabulary), PlainEngine(model, vocabulary)
    return packed if _agree(packed, plain) else plain


_TRIAL_TOLERANCE = 0.05  # relative, in log-probability; a mask that is ignored is off by far more
_ROUNDING = 0.1  # more of it where numbers have 16 bits, which alone are off by 0.05


def _agree(packed: PackedEngine, plain: PlainEngine) -> bool:
    """Both engines on two short rows with two branches each."""
    texts = ("one two three four five six:", "seven:")
    prompts = [encoding.ids for encoding in packed.vocabulary.encode(texts)]
    columns = prompts[0][:4]
    forks = [DraftToken(columns[n], 1, ()) for n in (0, 1)]
    draft = [*forks, DraftToken(columns[2], 2, (0,))]
    try:
        found = [*packed.prefill(prompts, [draft, []], columns), *packed.extend([[], draft])]
        if not packed.went_through_every_layer():
            return False
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError):
        return False
    wanted = [*plain.prefill(prompts, [draft, []], columns), *plain.extend([[], draft])]
    allowed = _TRIAL_TOLERANCE + (_ROUNDING if packed.model.dtype.itemsize == 2 else 0)
    return all(
        bool(np.all(np.abs(a - b) < allowed * (1 + np.abs(b))))
        for a, b in zip(found, wanted, strict=True)
    )
