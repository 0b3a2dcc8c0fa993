"""The real engine: transformers models on CPU or GPU. Imported only when a model is loaded.

A batch is one prefill and a few tree steps. All prompts' keys and values lie in one block
[rows, heads, places, head size] per layer, prompts from place 0 and drafted tokens behind the
longest prompt; a 4-D mask says which places a token sees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.masking_utils import sdpa_mask

from jlm_cli.encoding import Vocabulary
from jlm_cli.engine import Ids, Written
from jlm_cli.scoreline import DraftToken, Floats

DRAFT_ROOM = 64  # places kept free behind the prompts; a larger draft makes the block grow
SHARED_START = 24  # tokens two prompts must share before reusing them beats a causal kernel
_ROWS_AT_ONCE = 64  # rows of logits turned into log-probabilities at a time, to bound memory


@dataclass
class _Window:
    """Where the next forward pass reads and writes: `rows` of the block, from place `start`."""

    n_rows: int = 0
    places: int = 0
    rows: slice = field(default_factory=lambda: slice(0))
    start: int = 0


class _BlockLayer(CacheLayerMixin):
    """One layer's keys and values, written at the window and returned from place 0 to its end.

    The memory is kept from batch to batch.
    """

    def __init__(self, window: _Window) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.window = window
        self._memory: list[torch.Tensor] = []

    def begin(self) -> None:
        """Forget the last batch."""
        self.is_initialized = False

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        states = (key_states, value_states)
        shapes = [(self.window.n_rows, s.shape[1], self.window.places, s.shape[3]) for s in states]
        sizes = [math.prod(shape) for shape in shapes]
        if not self._memory or self._memory[0].numel() < sizes[0]:
            self._memory = [s.new_empty(n) for s, n in zip(states, sizes, strict=True)]
        # zeros, for a masked place must hold a number: 0 times NaN is NaN
        self.keys, self.values = (
            memory[:size].zero_().view(shape)
            for memory, size, shape in zip(self._memory, sizes, shapes, strict=True)
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.window.start + key_states.shape[-2]
        self.keys, keys = self._write(self.keys, key_states, end)
        self.values, values = self._write(self.values, value_states, end)
        return keys, values

    def _write(
        self, block: torch.Tensor | None, states: torch.Tensor, end: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert block is not None
        if end > block.shape[2]:
            more = block.new_zeros(*block.shape[:2], end - block.shape[2], block.shape[3])
            block = torch.cat([block, more], dim=2)
        block[self.window.rows, :, self.window.start : end] = states
        return block, block[self.window.rows, :, :end]

    def copy_row(self, source: int, target: int, places: int) -> None:
        for block in (self.keys, self.values):
            assert block is not None
            block[target, :, :places] = block[source, :, :places]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.window.start + query_length, 0

    def get_seq_length(self) -> int:
        return self.window.start

    def get_max_length(self) -> int:
        return -1


GROUPED = "jlm_grouped"


def _grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """torch's attention on [b, heads, q, size], without copying keys for each query head.

    transformers copies them, except where no mask is given on CUDA.
    """
    out = torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        scale=scaling,
        is_causal=attention_mask is None and query.shape[2] > 1,
        enable_gqa=True,
    )
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(GROUPED, _grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)


class HFEngine:
    """What both ways of reading a model share. `one_by_one` prefills row after row (CPU)."""

    def __init__(self, model: PreTrainedModel, vocabulary: Vocabulary) -> None:
        self.model = model.eval()
        self.vocabulary = vocabulary
        self.device = model.device
        self.one_by_one = self.device.type == "cpu"
        self.columns: Sequence[int] = ()

    def log_p(self, logits: torch.Tensor) -> Floats:
        """[n, vocabulary] → float64 [n, columns], normalised over the vocabulary."""
        columns = torch.tensor(self.columns, device=logits.device)
        parts = []
        for rows in logits.split(_ROWS_AT_ONCE):
            wide = rows.float()
            parts.append(wide[:, columns] - wide.logsumexp(-1, keepdim=True))
        known: Floats = torch.cat(parts).double().cpu().numpy()
        return known

    def write(self, prompts: Sequence[Ids], limits: Sequence[int]) -> list[Written]:
        longest = max(map(len, prompts))
        pad = self.vocabulary.ends[0]
        ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts])
        seen = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        greedy = GenerationConfig(
            do_sample=False,
            max_new_tokens=max(limits),
            eos_token_id=list(self.vocabulary.ends),
            pad_token_id=pad,
        )
        with torch.inference_mode():
            out = self.model.generate(
                ids.to(self.device), attention_mask=seen.to(self.device), generation_config=greedy
            )
        rows = out[:, longest:].tolist()  # type: ignore[index]
        return [self._written(row, limit) for row, limit in zip(rows, limits, strict=True)]

    def _written(self, ids: list[int], limit: int) -> Written:
        ends = [place for place, token in enumerate(ids) if token in self.vocabulary.ends]
        length = min(ends[0] if ends else len(ids), limit)
        return Written(self.vocabulary.decode(ids[:length]), cut=not ends or ends[0] > limit)


class TreeEngine(HFEngine):
    """Scores by one prefill and a tree step: for models that take a 4-D attention mask."""

    def __init__(self, model: PreTrainedModel, vocabulary: Vocabulary) -> None:
        super().__init__(model, vocabulary)
        self._window = _Window()
        n_layers = model.config.get_text_config().num_hidden_layers
        self._layers = [_BlockLayer(self._window) for _ in range(n_layers)]
        self._cache = Cache(layers=self._layers)  # type: ignore[arg-type]
        self.tokens_fed = 0  # of all batches so far, padding included

    def prefill(self, prompts: Sequence[Ids], columns: Sequence[int]) -> Floats:
        self.columns = columns
        self._lengths = np.array([len(prompt) for prompt in prompts])
        self._longest = int(self._lengths.max())
        self._window.n_rows, self._window.places = len(prompts), self._longest + DRAFT_ROOM
        for layer in self._layers:
            layer.begin()
        # slots of each row's fed tokens in the draft area, in the order in which they were fed
        self._places: list[list[int]] = [[] for _ in prompts]
        self._drafted = 0
        with torch.inference_mode():
            if self.one_by_one:
                return self._prefill_rows(prompts)
            return self._prefill_padded(prompts)

    def extend(self, drafts: Sequence[Sequence[DraftToken]]) -> list[Floats]:
        width = max(map(len, drafts))
        start = self._longest + self._drafted
        ids = np.zeros((len(drafts), width), np.int64)
        positions = np.zeros((len(drafts), width), np.int64)
        sees = np.zeros((len(drafts), 1, width, start + width), bool)
        sees[..., 0] = True  # a padded token must see something, or its row is NaN
        for row, draft in enumerate(drafts):
            places = self._places[row]
            places.extend(range(self._drafted, self._drafted + len(draft)))
            sees[row, :, :, : self._lengths[row]] = True
            for n, token in enumerate(draft):
                ids[row, n] = token.token
                positions[row, n] = self._lengths[row] + token.depth - 1
                ancestors = [self._longest + places[slot] for slot in token.path]
                sees[row, 0, n, [*ancestors, start + n]] = True
        self._drafted += width
        with torch.inference_mode():
            logits = self._forward(ids, positions, slice(0, len(drafts)), start, sees)
            known = self.log_p(logits.flatten(0, 1)).reshape(len(drafts), width, -1)
        return [known[row, : len(draft)] for row, draft in enumerate(drafts)]

    def _forward(
        self,
        ids: np.ndarray[Any, Any],
        positions: np.ndarray[Any, Any],
        rows: slice,
        start: int,
        sees: np.ndarray[Any, Any] | None = None,
        keep: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """One pass over [b, q] ids; `sees` [b, 1, q, places] or None for causal; logits of the
        query places in `keep`, or of all."""
        self._window.rows, self._window.start = rows, start
        self.tokens_fed += ids.size
        logits: torch.Tensor = self.model(
            input_ids=torch.from_numpy(ids).to(self.device),
            position_ids=torch.from_numpy(positions).to(self.device),
            attention_mask=None if sees is None else self._mask(sees),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=0 if keep is None else torch.tensor(keep, device=self.device),
        ).logits
        return logits

    def _mask(self, sees: np.ndarray[Any, Any]) -> torch.Tensor:
        """Additive, made once: attention kernels would turn a boolean one in every layer."""
        seen = torch.from_numpy(sees).to(self.device)
        none = torch.zeros(seen.shape, dtype=self.model.dtype, device=self.device)
        return none.masked_fill_(~seen, float("-inf"))

    def _prefill_padded(self, prompts: Sequence[Ids]) -> Floats:
        """All rows at once, padded on the right: causal attention never looks at the padding."""
        ids = np.zeros((len(prompts), self._longest), np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = prompt
        positions = np.broadcast_to(np.arange(self._longest), ids.shape).copy()
        ends, column = np.unique(self._lengths - 1, return_inverse=True)
        rows = slice(0, len(prompts))
        logits = self._forward(ids, positions, rows, 0, keep=ends.tolist())
        return self.log_p(logits[torch.arange(len(prompts)), torch.from_numpy(column)])

    def _prefill_rows(self, prompts: Sequence[Ids]) -> Floats:
        """Row after row, so that a CPU's caches hold it; each reuses what it shares with the last.

        Rows are taken in the order of their tokens: both orders of a sample, and samples with
        the same question or first answer, then begin alike.
        """
        known = np.empty((len(prompts), len(self.columns)))
        previous = -1
        for row in sorted(range(len(prompts)), key=lambda row: tuple(prompts[row])):
            ids = np.asarray(prompts[row], np.int64)[None]
            shared = 0 if previous < 0 else _shared(prompts[previous], prompts[row])
            if shared:
                for layer in self._layers:
                    layer.copy_row(previous, row, shared)
            new = ids[:, shared:]
            positions = np.arange(shared, ids.shape[1])[None]
            sees = _causal(shared, ids.shape[1]) if shared else None
            last = [new.shape[1] - 1]
            logits = self._forward(new, positions, slice(row, row + 1), shared, sees, last)
            known[row] = self.log_p(logits[:, 0])[0]
            previous = row
        return known


def _causal(start: int, end: int) -> np.ndarray[Any, Any]:
    """[1, 1, end − start, end]: tokens from `start` on see themselves and all before."""
    return np.tri(end - start, end, start, dtype=bool)[None, None]


def _shared(before: Ids, ids: Ids) -> int:
    """How many first tokens two prompts share, less one to be fed; 0 where it does not pay."""
    limit = min(len(before), len(ids) - 1)
    a, b = np.asarray(before[:limit]), np.asarray(ids[:limit])
    differs = np.flatnonzero(a != b)
    shared = int(differs[0]) if len(differs) else limit
    return shared if shared >= SHARED_START else 0


class PlainEngine(HFEngine):
    """Scores by a full pass for every prefix: slow, and right for any causal model."""

    def prefill(self, prompts: Sequence[Ids], columns: Sequence[int]) -> Floats:
        self.columns = columns
        self._prompts = prompts
        self._fed: list[list[int]] = [[] for _ in prompts]
        return np.stack([self._behind(list(prompt)) for prompt in prompts])

    def extend(self, drafts: Sequence[Sequence[DraftToken]]) -> list[Floats]:
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
            row: Floats = self.log_p(logits[:, -1])[0]
        return row


_TRIAL_TOLERANCE = 0.05  # in log-probability; a mask that is ignored is off by far more


def make_engine(model: PreTrainedModel, vocabulary: Vocabulary) -> TreeEngine | PlainEngine:
    """The tree engine where the model really follows a 4-D mask, found out by a short trial."""
    if model.device.type == "cpu" and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(GROUPED)
    tree, plain = TreeEngine(model, vocabulary), PlainEngine(model, vocabulary)
    return tree if _has_full_attention(model) and _agree(tree, plain) else plain


def _has_full_attention(model: PreTrainedModel) -> bool:
    """Sliding windows and recurrent layers show only on long prompts: the configuration tells."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return all(kind == "full_attention" for kind in kinds)
    return getattr(config, "sliding_window", None) is None


def _agree(tree: TreeEngine, plain: PlainEngine) -> bool:
    """Both engines on two short rows with two branches each."""
    vocabulary = tree.vocabulary
    prompts = [vocabulary.encode([text])[0].ids for text in ("one two three four:", "five:")]
    columns = prompts[0][:4]
    draft = [
        DraftToken(columns[0], 1, ()),
        DraftToken(columns[1], 1, ()),
        DraftToken(columns[2], 2, (0,)),
    ]
    try:
        found = [tree.prefill(prompts, columns), *tree.extend([draft, draft])]
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError):
        return False
    wanted = [plain.prefill(prompts, columns), *plain.extend([draft, draft])]
    pairs = zip(found, wanted, strict=True)
    return all(bool(np.all(np.abs(a - b) < _TRIAL_TOLERANCE * (1 + np.abs(b)))) for a, b in pairs)
