"""Which engine a model really follows, found out by a short trial as it is loaded."""

from __future__ import annotations

import math

import numpy as np
import torch
from transformers import PreTrainedModel

from jlm_cli.encoding import Vocabulary
from jlm_cli.engine import Batch, LineDraft, unheard
from jlm_cli.hf.attention import computing
from jlm_cli.hf.blocks import Blocks
from jlm_cli.hf.last_layer import behind_attention
from jlm_cli.hf.memory import is_out_of_memory
from jlm_cli.hf.packed_attention import Pack
from jlm_cli.hf.packing import Segment
from jlm_cli.hf.row_by_row import CachedEngine, PlainEngine
from jlm_cli.hf_engine import PackedBatch, PackedEngine
from jlm_cli.hub import Say, first_line, unsaid
from jlm_cli.scoreline import Floats
from jlm_cli.walk import DraftToken

_WRITTEN = 8  # tokens, of a trial
_FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)
_TRIAL_TOLERANCE = 0.05  # relative, in log-probability; a mask that is ignored is off by far more
_IN_FLOAT32 = 0.005  # in which a position that is off by one is to be seen
_ORDINARY = {"full_attention", "sliding_attention"}
_MASKED = _ORDINARY | {"linear_attention", "conv", "mamba", "hybrid"}  # what fills up is left out
_ROUNDING = 0.1  # more of it for states of 16 bits, which alone are off by 0.05, and of 8, by 0.12


class NotRunnable(Exception):
    """A model whose own pass fails."""


def make_engine(
    model: PreTrainedModel, vocabulary: Vocabulary, say: Say = unsaid
) -> PackedEngine | CachedEngine | PlainEngine:
    """The fastest engine that the model really follows, found out by a short trial."""
    plain = PlainEngine(model, vocabulary)
    packed = _unpackable(model) or _packed(model, plain)
    if isinstance(packed, PackedEngine):
        packed.forget()  # what was captured is of layers as they are now
        return packed
    say(f"this model's rows cannot be packed and are read one by one: {packed}")
    cached = CachedEngine(model, vocabulary)
    engine: CachedEngine | PlainEngine = cached
    if (why := _why_not(cached, plain)) is not None:
        say(f"nor can what it has read be gone on from, it is read anew for each word: {why}")
        engine = plain
    engine.pads = _kinds(model) <= _MASKED and math.isinf(engine.up_to) and _pads(engine)
    return engine


def _packed(model: PreTrainedModel, plain: PlainEngine) -> PackedEngine | str:
    """Or why there is none."""
    engine = PackedEngine(model, plain.vocabulary)
    engine.behind = _behind(engine)
    why = _why_not(engine, plain)
    if why is not None and engine.behind:  # perhaps where all tokens go through all of it
        engine = PackedEngine(model, plain.vocabulary)
        why = _why_not(engine, plain)
    return engine if why is None else why


def _behind(engine: PackedEngine) -> list[str]:
    """Parts behind the last attention of a pass, which is over when each layer has told of its."""
    tokens = torch.arange(4, device=engine.device)[None]
    blocks = Blocks()
    blocks.begin(1, tokens.shape[1])
    pack = Pack(blocks, [Segment(0, 0, tokens.shape[1])], None, None)
    n_layers = engine.model.config.get_text_config().num_hidden_layers
    try:
        with computing():
            return behind_attention(
                engine.model,
                tokens.shape[1],
                lambda: engine.logits(tokens, tokens, pack),
                lambda: len(blocks.specs) == n_layers,
            )
    except _FAILURES as error:  # of the pass, which the trial will show
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise MemoryError from error  # else what is free would change bytes
        return []


def _pads(engine: CachedEngine | PlainEngine) -> bool:
    """Whether a row is written alike beside a longer one, which it is filled up to."""
    texts = ("one two three", "one two three four five six seven eight nine ten " * 20)
    rows = [encoding.ids for encoding in engine.vocabulary.encode(texts)]
    limits = [_WRITTEN] * len(rows)
    try:
        alone = [engine.write([row], [_WRITTEN], unheard)[0] for row in rows]
        return engine.write(rows, limits, unheard) == alone
    except _FAILURES:  # it may judge all the same
        return False


def _unpackable(model: PreTrainedModel) -> str | None:
    """What a short trial would not show: Llama 4 also scales attention by the place in a pass, and
    others choose of a long text what they look at."""
    other = sorted(_kinds(model) - _ORDINARY)
    return f"it has layers of the kind {other[0]}" if other else None


def _kinds(model: PreTrainedModel) -> set[str]:
    """Of layers, where its configuration names them."""
    return set(getattr(model.config.get_text_config(), "layer_types", None) or ())


def _why_not(engine: PackedEngine | CachedEngine, plain: PlainEngine) -> str | None:
    """Both engines on short rows with branches, of which two begin alike; None where they agree."""
    alike = "one two three four five six seven eight nine ten " * 3
    texts = (f"{alike}eleven:", f"{alike}twelve:", "thirteen:")
    prompts = [encoding.ids for encoding in plain.vocabulary.encode(texts)]
    columns = prompts[0][:4]
    forks = [DraftToken(columns[n], 1, ()) for n in (0, 1)]
    draft = [*forks, DraftToken(columns[2], 2, (0,))]
    try:
        wanted = _both(plain.begin(prompts, [draft, [], []], columns), draft)
    except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
        raise NotRunnable(first_line(error)) from error
    try:
        batch = engine.begin(prompts, [draft, [], []], columns)
        found = _both(batch, draft)
        if isinstance(batch, PackedBatch) and (missed := batch.missed()):
            return missed
    except _FAILURES as error:
        return first_line(error)
    halved = plain.model.dtype.itemsize == 2 or torch.is_autocast_enabled(plain.device.type)
    rounded = halved + getattr(plain.model, "is_loaded_in_8bit", False)
    exact = not (halved or getattr(plain.model, "is_quantized", False))
    allowed = _IN_FLOAT32 if exact else _TRIAL_TOLERANCE + _ROUNDING * rounded
    agree = all(
        bool(np.all(np.abs(a - b) < allowed * (1 + np.abs(b))))
        for a, b in zip(found, wanted, strict=True)
    )
    return None if agree else "packed and plain passes disagree"


def _both(batch: Batch, draft: LineDraft) -> list[Floats]:
    """What is known at first, and of a draft for the second row."""
    while batch.feed():
        pass
    first = batch.known()
    batch.extend([[], draft, []])
    second = batch.known()
    batch.end()
    return [*first, *second]
