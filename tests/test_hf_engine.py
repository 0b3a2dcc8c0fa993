"""The tree step on real models, against scoring every line separately and free decoding."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tile_reference
import torch
import transformers
from accelerate import dispatch_model
from conftest import Loaded
from transformers import DynamicCache

from jlm_cli.config import Config
from jlm_cli.encoding import Encoder, Lines, Prompt
from jlm_cli.engine import (
    Engine,
    Judge,
    ReadAtOnce,
    Written,
    following,
    reading_lines,
    unheard,
)
from jlm_cli.errors import RowError
from jlm_cli.hf.attention import AttentionSpec, fused
from jlm_cli.hf.blocks import Blocks
from jlm_cli.hf.packing import SHARED_START
from jlm_cli.hf.row_by_row import CachedEngine, PlainEngine
from jlm_cli.hf.trial import NotRunnable, make_engine
from jlm_cli.hf.writing import _known
from jlm_cli.hf_engine import PackedBatch, PackedEngine
from jlm_cli.modes import Reading, View, mode_of
from jlm_cli.prompts import load
from jlm_cli.records import Sample
from jlm_cli.scoreline import Grammar, LineDistribution, LineTokens
from jlm_cli.tasks import Task, finish, in_turn
from jlm_cli.walk import DraftToken, Walk

START = (
    "You are a helpful assistant who checks answers, one after the other, with care and patience. "
)
TEXTS = [
    f"{START}[Question]\nWhat is two and two?\n\n[Answer]\nFour.\n\n### Response:",
    f"{START}[Question]\nWhat is two and two?\n\n[Answer]\nIt is five, I am sure.\n\n### Response:",
    "### Response:",
    f"{START}[Question]\nWho wrote Faust?\n\n[Answer]\nGoethe did, for years.\n\n### Response:",
]


@pytest.fixture(params=["released", "builtin"])
def loaded(request: pytest.FixtureRequest) -> Loaded:
    found: Loaded = request.getfixturevalue(request.param)
    return found


def prompts_of(loaded: Loaded, texts: list[str] = TEXTS) -> list[list[int]]:
    bos = loaded.vocabulary.bos
    return [[*bos, *encoding.ids] for encoding in loaded.vocabulary.encode(texts)]


def tree_of(loaded: Loaded, pack_tokens: int = 1200) -> PackedEngine:
    engine = make_engine(loaded.model, loaded.vocabulary)
    assert isinstance(engine, PackedEngine)
    engine.pack_tokens = pack_tokens
    return engine


def lines_of(
    engine: Engine, prompts: list[list[int]], tokens: LineTokens
) -> list[LineDistribution | RowError]:
    return finish(reading_lines(engine, prompts, [tokens] * len(prompts)))


def exactly(engine: Engine, prompts: list[list[int]], tokens: LineTokens) -> list[LineDistribution]:
    walks = [Walk(tokens, exact=True) for _ in prompts]
    finish(following(engine, prompts, walks))
    return [walk.result() for walk in walks]


@functools.cache
def line_by_line(loaded: Loaded, prompt: tuple[int, ...]) -> dict[tuple[float, ...], float]:
    """Log-probability of each line with its end, each scored as a row of its own, behind the
    prompt's keys and values as transformers keeps them."""
    lines = list(itertools.product(Grammar().values, repeat=2))
    found = {}
    with torch.inference_mode():
        start = loaded.model(torch.tensor([prompt[:-1]]), use_cache=True).past_key_values
    for some in (lines[at : at + 38] for at in range(0, len(lines), 38)):
        spelt = [loaded.tokens.spell(line) for line in some]
        width = max(map(len, spelt))
        ids = torch.tensor([[prompt[-1], *line, *[0] * (width - len(line))] for line in spelt])
        before = copy.deepcopy(start)
        before.batch_repeat_interleave(len(some))
        with torch.inference_mode():
            behind = loaded.model(ids, past_key_values=before).logits  # of the prompt's end on
            log_p = behind.double().log_softmax(-1)
        for row, (line, tokens) in enumerate(zip(some, spelt, strict=True)):
            steps = [float(log_p[row, place, token]) for place, token in enumerate(tokens)]
            end = log_p[row, len(tokens), list(loaded.tokens.ends)].logsumexp(-1)
            found[tuple(map(float, line))] = sum(steps) + float(end)
    return found


@pytest.mark.parametrize("pack_tokens", [1, 40, 1200])
def test_tree_equals_scoring_every_line(loaded: Loaded, pack_tokens: int) -> None:
    prompts = prompts_of(loaded)
    found = exactly(tree_of(loaded, pack_tokens), prompts, loaded.tokens)
    for prompt, result in list(zip(prompts, found, strict=True))[1:3]:
        wanted = line_by_line(loaded, tuple(prompt))
        total = np.logaddexp.reduce(list(wanted.values()))
        assert np.log(result.mass) == pytest.approx(total, abs=1e-3)
        assert len(result.p) == 361
        for line, p in zip(result.lines, result.p, strict=True):
            assert p == pytest.approx(np.exp(wanted[tuple(line)] - total), abs=2e-5)


def test_shared_starts_change_nothing(loaded: Loaded) -> None:
    """Rows that reuse another row's start, packs of one row and lone rows agree."""
    prompts = prompts_of(loaded)
    assert prompts[0][:SHARED_START] == prompts[1][:SHARED_START]
    together = exactly(tree_of(loaded), prompts, loaded.tokens)
    single = exactly(tree_of(loaded, pack_tokens=1), prompts, loaded.tokens)
    for row, prompt in enumerate(prompts):
        alone = exactly(tree_of(loaded), [prompt], loaded.tokens)[0]
        for other in (together[row], single[row]):
            assert other.text == alone.text
            assert other.p == pytest.approx(alone.p, abs=2e-5)


def test_blocks_are_clean_for_every_batch(released: Loaded) -> None:
    engine, prompts = tree_of(released), prompts_of(released)
    fresh = lines_of(engine, prompts, released.tokens)
    lines_of(engine, prompts_of(released, ["A longer batch of one. " * 30]), released.tokens)
    again = lines_of(engine, prompts, released.tokens)
    for a, b in zip(fresh, again, strict=True):
        assert isinstance(a, LineDistribution) and isinstance(b, LineDistribution)
        assert (a.text, a.mass, a.p.tolist()) == (b.text, b.mass, b.p.tolist())


def test_batches_under_way_at_once_leave_each_other_alone(
    released: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one of them runs out of memory, first beside another and then by itself."""
    engine, view = tree_of(released), View(load("judgelm"), (1, 2))
    texts = [TEXTS, [TEXTS[1] * 3, TEXTS[2]], TEXTS[::-1], TEXTS[3:], [TEXTS[0], *TEXTS[:3]]]
    batches = [[Prompt(tuple(p), view) for p in prompts_of(released, some)] for some in texts]
    judge = Judge(engine, Lines(released.vocabulary), reason=False, new_tokens=0)
    wanted = [judge.judge(batch) for batch in batches]
    bits_wanted = [[bits(one) for one in results] for results in wanted]
    asked = itertools.cycle((False, True))
    monkeypatch.setattr(PackedBatch, "ready", lambda _: next(asked))
    for at_once in (2, 3, 5):
        numbered = [_numbered(n, judge.judging(batch)) for n, batch in enumerate(batches)]
        found = dict(in_turn(iter(numbered), functools.partial(operator.gt, at_once)))
        assert [[bits(one) for one in found[n]] for n in range(5)] == bits_wanted
        assert len(engine.pool.spare) <= at_once
    lend, engine.at_once = engine.pool.lend, 2
    assert not engine.pool._lent
    for most, split in ((6, False), (3, True)):  # rows that memory has room for
        engine.pool.forget()

        def refusing(rows: int, places: int, most: int = most) -> Blocks:
            if rows + sum(blocks.rows for blocks in engine.pool._lent) > most:
                raise torch.OutOfMemoryError
            return lend(rows, places)

        monkeypatch.setattr(engine.pool, "lend", refusing)
        numbered = [_numbered(n, judge.judging(batch)) for n, batch in enumerate(batches)]
        for n, results in in_turn(iter(numbered), lambda n: n < 2):
            for one, other in zip(results, wanted[n], strict=True):
                assert isinstance(one, Reading) and isinstance(other, Reading)
                assert one.line.p == pytest.approx(other.line.p, abs=2e-5)
                assert one.flags == (("split-batch",) if split and len(results) > 3 else ())


class Unseen:
    """What comes from a device whose numbers cannot be looked at."""

    def __init__(self, numbers: torch.Tensor) -> None:
        self._shape = tuple(numbers.shape)

    def is_ready(self) -> bool:
        return True

    def wait(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.full(self._shape, -4.0)


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shared", [1, 3])
def test_nothing_waits_for_the_device_within_a_batch(
    released: Loaded,
    monkeypatch: pytest.MonkeyPatch,
    shared: int,
    dtype: torch.dtype,
    at_once: bool,
) -> None:
    """On torch's meta device: what would look at a number there, or mixes devices, fails. With
    torch's own attention of many rows at once, too."""
    monkeypatch.setattr("jlm_cli.hf_engine.HostCopy", Unseen)
    monkeypatch.setattr("jlm_cli.hf_engine.reads_rows_at_once", lambda *_: at_once)
    config = copy.deepcopy(released.model.config)
    config.num_key_value_heads = config.num_attention_heads // shared
    with torch.device("meta"):
        _waits_for_nothing(type(released.model)(config).to(dtype), released)


def test_nothing_waits_for_the_device_behind_windows(
    released: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor for capped scores."""
    monkeypatch.setattr("jlm_cli.hf_engine.HostCopy", Unseen)
    for family in ("Gemma2", "Mistral"):
        config = getattr(transformers, f"{family}Config")(**{**SMALL, "sliding_window": 8})
        with torch.device("meta"):
            _waits_for_nothing(getattr(transformers, f"{family}ForCausalLM")(config), released)


def _waits_for_nothing(model: Any, released: Loaded) -> None:
    engine = PackedEngine(model, released.vocabulary)
    prompts = prompts_of(released)
    assert prompts[0][:SHARED_START] == prompts[1][:SHARED_START]
    batch = engine.begin(prompts, [[DraftToken(5, 1, ())]] * len(prompts), [1, 2, 3])
    while batch.feed():
        pass
    assert [rows.shape for rows in batch.known()] == [(2, 3)] * len(prompts)
    batch.extend([[DraftToken(6, 2, (0,))]] * len(prompts))
    assert [rows.shape for rows in batch.known()] == [(1, 3)] * len(prompts)
    with pytest.raises(RuntimeError, match="meta"):  # as anything that looked would have failed
        engine.model.lm_head.weight.sum().item()


@pytest.mark.parametrize("at_once", [False, True])
def test_a_model_over_several_devices_is_packed(
    released: Loaded, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    """Its last layers, and the head with them, on torch's meta device."""
    monkeypatch.setattr("jlm_cli.hf_engine.HostCopy", Unseen)
    monkeypatch.setattr("jlm_cli.hf_engine.reads_rows_at_once", lambda *_: at_once)
    zeros: Any = lambda query, *_, **__: torch.zeros_like(query)  # noqa: E731
    monkeypatch.setattr("jlm_cli.hf.attention._varlen", lambda _: zeros)
    model = copy.deepcopy(released.model)
    last = model.config.num_hidden_layers - 1
    there = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu"}
    there |= {f"model.layers.{n}": "cpu" for n in range(last)}
    there |= {f"model.layers.{last}": "meta", "model.norm": "meta", "lm_head": "meta"}
    dispatch_model(model, there, main_device="cpu")
    model._hf_hook.io_same_device = False  # nothing comes back from there
    prompts = prompts_of(released)
    batch = PackedEngine(model, released.vocabulary).begin(
        prompts, [[DraftToken(5, 1, ())]] * len(prompts), [1, 2, 3]
    )
    assert isinstance(batch, PackedBatch)
    while batch.feed():
        pass
    assert [rows.shape for rows in batch.known()] == [(2, 3)] * len(prompts)
    kept = {layer: keys.device.type for (layer, _), keys in batch.blocks._blocks.items()}
    assert kept == {**dict.fromkeys(range(last), "cpu"), last: "meta"}


def bits(result: Reading | RowError) -> Any:
    assert isinstance(result, Reading)
    return result.line.text, result.line.mass, result.line.p.tobytes()


def _numbered(n: int, task: Task[Any]) -> Task[tuple[int, Any]]:
    result = yield from task
    return n, result


@pytest.mark.parametrize("kind", [CachedEngine, PlainEngine])
def test_other_engines_agree_with_the_tree(
    released: Loaded, kind: type[CachedEngine | PlainEngine]
) -> None:
    prompts = prompts_of(released)
    tree = lines_of(tree_of(released), prompts, released.tokens)
    other = lines_of(kind(released.model, released.vocabulary), prompts, released.tokens)
    for a, b in zip(tree, other, strict=True):
        assert isinstance(a, LineDistribution) and isinstance(b, LineDistribution)
        assert a.text == b.text
        assert a.outcome() == pytest.approx(b.outcome(), abs=2e-5)


SMALL: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}


def small(family: str, **more: Any) -> Any:
    """A model of some family, with weights large enough for attention to matter."""
    config = getattr(transformers, f"{family}Config")(**{**SMALL, "pad_token_id": 0, **more})
    torch.manual_seed(0)
    model = getattr(transformers, f"{family.removesuffix('Text')}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight *= (
                10
                if name.endswith(
                    ("q_proj.weight", "k_proj.weight", "qkv_proj.weight", "qkv.weight")
                )
                else 1
            )
    return model


WINDOWED = [
    ("Mistral", {"sliding_window": 8}),
    ("Phi3", {"sliding_window": 30}),
    ("Qwen2", {"sliding_window": 2, "use_sliding_window": True, "max_window_layers": 1}),
    ("Gemma2", {"sliding_window": 8, "attn_logit_softcapping": 1.5}),
    ("Gemma3Text", {"sliding_window": 8, "num_hidden_layers": 7}),
    ("Cohere2", {"sliding_window": 8, "num_hidden_layers": 5}),
]


@pytest.mark.parametrize("family, more", WINDOWED)
def test_windows_and_capped_scores_are_packed(
    released: Loaded, family: str, more: dict[str, Any]
) -> None:
    """Of all layers or some, narrower than a score line or wider: as full passes have it, and they
    matter. Reasons, which go on from the packed keys and values, too."""
    model = small(family, **more)
    engine = make_engine(model, released.vocabulary)
    assert isinstance(engine, PackedEngine)
    prompts = prompts_of(released)
    assert prompts[0][:SHARED_START] == prompts[1][:SHARED_START]
    found = exactly(engine, prompts, released.tokens)
    for one in (PlainEngine(model, released.vocabulary), engine):
        wanted = exactly(one, prompts[:2], released.tokens)
        for a, b in zip(found, wanted, strict=False):
            assert a.text == b.text and a.p == pytest.approx(b.p, abs=2e-5)
            assert np.log(a.mass) == pytest.approx(np.log(b.mass), abs=1e-3)
    wide = {"sliding_window": 4000, "attn_logit_softcapping": 1e4}
    other = small(family, **{name: wide.get(name, value) for name, value in more.items()})
    seen_all = exactly(make_engine(other, released.vocabulary), prompts, released.tokens)
    assert np.abs(seen_all[0].p - found[0].p).max() > 1e-4
    judge = Judge(engine, Lines(released.vocabulary), reason=True, new_tokens=7)
    view = View(load("judgelm"), (1, 2))
    for prompt, result in zip(
        prompts, judge.judge([Prompt(tuple(p), view) for p in prompts]), strict=True
    ):
        assert isinstance(result, Reading)
        ids = torch.tensor([[*prompt, *released.tokens.spell(result.line.greedy)]])
        out = model.generate(ids, do_sample=False, max_new_tokens=7, pad_token_id=0)
        assert result.reason == released.vocabulary.decode(out[0, ids.shape[1] :].tolist())


def each_row(grouped: bool) -> Callable[..., torch.Tensor]:
    """What torch's attention of rows of many lengths computes, which is for GPUs alone."""

    def attend(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *ends: Any, **how: Any
    ) -> torch.Tensor:
        assert grouped == (query.shape[1] != key.shape[1])
        behind, ahead = how["window_size"]
        assert ahead == 0
        found = []
        lengths = [one.diff().tolist() for one in ends[:2]]
        assert [max(one) for one in lengths] == list(ends[2:])
        new, seen, others = (
            torch.split(one, lengths[min(n, 1)]) for n, one in enumerate((query, key, value))
        )
        for q, k, v in zip(new, seen, others, strict=True):
            spec = AttentionSpec(how["scale"], None, None if behind < 0 else behind + 1)
            q, k, v = (one.transpose(0, 1)[None] for one in (q, k, v))
            one = fused.causal(q, k, v, k.shape[2] - q.shape[2], spec)
            found.append(one[0].transpose(0, 1))
        return torch.cat(found)

    return attend


@pytest.mark.parametrize("pack_tokens", [40, 90, 1200])
@pytest.mark.parametrize(
    "family, more", [*WINDOWED, ("Llama", {}), ("Llama", {"num_key_value_heads": 2})]
)
def test_rows_taken_at_once_are_as_they_are_one_by_one(
    released: Loaded,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    more: dict[str, Any],
    pack_tokens: int,
) -> None:
    """As a GPU takes them; starts are shared within a pass and with earlier ones."""
    prompts = prompts_of(released, [*TEXTS, *TEXTS[:2], TEXTS[3] + " And so on."])
    engine = PackedEngine(small(family, **more), released.vocabulary)
    engine.pack_tokens = pack_tokens
    wanted = exactly(engine, prompts, released.tokens)
    taken: list[bool] = []

    def counted(grouped: bool) -> Callable[..., torch.Tensor]:
        taken.append(grouped)
        return each_row(grouped)

    monkeypatch.setattr("jlm_cli.hf_engine.reads_rows_at_once", lambda *_: True)
    monkeypatch.setattr("jlm_cli.hf.attention._varlen", counted)
    for one, other in zip(exactly(engine, prompts, released.tokens), wanted, strict=True):
        assert one.text == other.text
        assert one.p == pytest.approx(other.p, abs=2e-5)
    assert bool(taken) == ("attn_logit_softcapping" not in more)


def test_windows_that_attention_is_not_told_of_are_not_packed(released: Loaded) -> None:
    """This family has them in its masks alone, and a short trial would not show them. Such that no
    row reaches beyond are none."""
    model = functools.partial(
        small,
        "Qwen2Moe",
        use_sliding_window=True,
        max_window_layers=1,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=32,
    )
    said: list[str] = []
    narrow = make_engine(model(sliding_window=500), released.vocabulary, said.append)
    assert isinstance(narrow, CachedEngine)
    assert "sliding windows are not passed to the attention" in said[0]
    assert released.vocabulary.context is not None
    wide = model(sliding_window=released.vocabulary.context)
    assert isinstance(make_engine(wide, released.vocabulary), PackedEngine)


@pytest.mark.parametrize(
    "family, more, kind",
    [
        ("GptOss", {"num_local_experts": 4}, CachedEngine),
        ("Llama4Text", {}, CachedEngine),
        ("Mamba", {}, PlainEngine),
    ],
)
def test_models_that_cannot_be_packed_are_read_row_by_row(
    released: Loaded, family: str, more: dict[str, Any], kind: type[CachedEngine | PlainEngine]
) -> None:
    """Attention with sinks or in chunks, and a recurrent model: as full passes have it."""
    model = small(family, **more)
    said: list[str] = []
    engine = make_engine(model, released.vocabulary, said.append)
    assert type(engine) is kind and "cannot be packed" in said[0]
    prompts = prompts_of(released)[:2]
    plain = PlainEngine(model, released.vocabulary)
    for found, wanted in zip(
        lines_of(engine, prompts, released.tokens),
        lines_of(plain, prompts, released.tokens),
        strict=True,
    ):
        assert isinstance(found, LineDistribution) and isinstance(wanted, LineDistribution)
        assert found.text == wanted.text and 0 < found.mass <= 1
        assert found.outcome() == pytest.approx(wanted.outcome(), abs=2e-5)


def test_models_that_heed_padding_write_row_by_row(released: Loaded) -> None:
    """Found out by a trial: a recurrent one reads what fills up the shorter rows."""
    model = small("Rwkv", attention_hidden_size=32, context_length=4096)
    engine = make_engine(model, released.vocabulary)
    assert isinstance(engine, PlainEngine) and not engine.pads
    prompts = prompts_of(released)[:3]
    assert len({len(prompt) for prompt in prompts}) > 1
    alone = [engine.write([prompt], [6], unheard)[0] for prompt in prompts]
    assert engine.write(prompts, [6] * 3, unheard) == alone


DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
LONG = {"rope_type": "longrope", "rope_theta": 1e4}
LONG |= {"short_factor": [1.0] * 8, "long_factor": [3.0] * 8}


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("Llama", {"max_position_embeddings": 200, "rope_parameters": DYNAMIC}),
        ("Phi3", {"original_max_position_embeddings": 200, "rope_parameters": LONG}),
    ],
)
def test_long_rows_that_change_what_a_pass_makes_of_others_are_not_packed(
    released: Loaded, monkeypatch: pytest.MonkeyPatch, family: str, more: dict[str, Any]
) -> None:
    """Which no trial on short rows would show; short rows are packed, those beside long ones not,
    and say the same."""
    model = small(family, **more, sliding_window=None)
    engine = make_engine(model, released.vocabulary)
    assert isinstance(engine, PackedEngine)
    prompts = prompts_of(released)[:2]
    long = prompts_of(released, [TEXTS[0] * 5])[0]
    assert len(prompts[1]) < 110 < 200 < len(long)
    assert isinstance(engine.begin(prompts, [[], []], [1]), PackedBatch)
    assert isinstance(engine.begin([prompts[0], long], [[], []], [1]), ReadAtOnce)
    short = exactly(engine, prompts, released.tokens)
    beside = exactly(engine, [*prompts, long], released.tokens)
    plain = exactly(PlainEngine(model, released.vocabulary), [*prompts, long], released.tokens)
    for n, other in enumerate(plain[:2]):
        for one in (short[n], beside[n]):
            assert one.text == other.text and one.p == pytest.approx(other.p, abs=2e-5)
    with monkeypatch.context() as patched:  # texts that would cross it are not packed either
        patched.setattr(PackedEngine, "ask", lambda *_: pytest.fail("packed"))
        assert all(words.text for words in engine.write(prompts, [120, 5], unheard))
    if family != "Llama":  # where each path makes anew what is before it, as no text is written
        assert beside[2].p == pytest.approx(plain[2].p, abs=2e-5)


@pytest.mark.parametrize("length", [150, 192, 196, 197, 198])
def test_lines_and_texts_that_cross_into_long_positions(released: Loaded, length: int) -> None:
    """Longrope turns all of a pass's keys otherwise when one token is behind its limit: what was
    read before that is not gone on from. The reference reads each path anew."""
    model = small(
        "Phi3", original_max_position_embeddings=198, rope_parameters=LONG, sliding_window=None
    )
    prompt = prompts_of(released, [TEXTS[0] * 5])[0][:length]
    engine = make_engine(model, released.vocabulary)
    plain = PlainEngine(model, released.vocabulary)
    (found,), (wanted,) = (exactly(one, [prompt], released.tokens) for one in (engine, plain))
    assert found.text == wanted.text and found.p == pytest.approx(wanted.p, abs=2e-5)
    streamed = [list(one.stream(prompt, 60, 1)) for one in (engine, plain)]
    assert streamed[0] == streamed[1]


def test_a_chat_goes_on_from_what_can_be_gone_on_from(released: Loaded) -> None:
    """A model that does not follow its own cache is read anew, as where a cache cannot be cut."""
    prompt = prompts_of(released)[0]
    plain = PlainEngine(copy.deepcopy(released.model), released.vocabulary)
    assert len(list(plain.stream(prompt, 3, 1))) > 0 and plain._read is None

    class Uncut(DynamicCache):
        pass

    ids = list(range(SHARED_START + 2))
    for kind, start in ((DynamicCache, SHARED_START), (Uncut, 0)):
        cache = kind()
        states = torch.zeros(1, 1, len(ids), 4)
        cache.update(states, states, 0)
        assert _known((ids, cache), [*ids[:SHARED_START], 0, 0])[0] == start


def test_a_model_that_transformers_cannot_run_is_said_to_be_one(
    released: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = copy.deepcopy(released.model)

    def forward(*_: Any, **__: Any) -> None:
        raise ValueError("sdpa attention does not support softcap")

    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(NotRunnable, match="does not support softcap"):
        make_engine(model, released.vocabulary)


def test_rounding_of_autocast_costs_no_packed_path(builtin: Loaded) -> None:
    """As while training: weights in float32, products in bfloat16, which are off by more than
    those of float32 may be."""
    model = copy.deepcopy(builtin.model).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert isinstance(make_engine(model, builtin.vocabulary), PackedEngine)


@pytest.mark.parametrize("kind", [PackedEngine, CachedEngine, PlainEngine])
def test_a_head_of_sixteen_bits_rounds_no_likelihood(
    released: Loaded, kind: type[PackedEngine | CachedEngine | PlainEngine]
) -> None:
    """The asked tokens' logits are those of a float32 head over the same states."""
    model: Any = copy.deepcopy(released.model)
    model = model.to(torch.bfloat16)
    with torch.no_grad():
        model.lm_head.weight *= 40  # logits in the tens, where bfloat16 has steps of an eighth
    ids, columns = prompts_of(released)[1], list(range(300, 340))
    heard: list[torch.Tensor] = []
    model.lm_head.register_forward_hook(lambda _, given, __: heard.append(given[0][0, -1]))
    batch = kind(model, released.vocabulary).begin([ids], [[]], columns)
    while batch.feed():
        pass
    (found,) = batch.known()
    with torch.inference_mode():
        logits = heard[0].float() @ model.lm_head.weight.float().T
        rounded = (heard[0] @ model.lm_head.weight.T).float()
    wanted = logits - rounded.logsumexp(-1)
    assert np.abs(found[0] - wanted[columns].numpy()).max() < 0.02
    assert (rounded - logits).abs().max() > 0.05


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("Granite", {"logits_scaling": 0.1}),
        ("HyperCLOVAX", {"logits_scaling": 10.0}),
        ("Cohere2", {"logit_scale": 10.0}),
        ("Gemma2", {"final_logit_softcapping": 30.0}),
        ("Llama", {"logits_scaling": 3.0}),
    ],
)
def test_logits_that_a_model_changes_are_as_exact(
    released: Loaded, family: str, more: dict[str, float]
) -> None:
    model = small(family, **more).to(torch.bfloat16)
    with torch.no_grad():
        model.lm_head.weight *= 20
    engine = make_engine(model, released.vocabulary)
    assert isinstance(engine, PackedEngine)
    ids = prompts_of(released)[2]
    heard: list[tuple[torch.Tensor, torch.Tensor]] = []

    def change(logits: torch.Tensor) -> torch.Tensor:
        return {"Gemma2": 30 * (logits / 30).tanh(), "Llama": logits}.get(family, logits * 10)

    def hear(_: Any, given: tuple[torch.Tensor], logits: torch.Tensor) -> None:
        heard.append((given[0][0, -1].float(), logits[0, -1]))

    model.lm_head.register_forward_hook(hear)
    batch = engine.begin([ids], [[]], list(range(500)))
    while batch.feed():
        pass
    with torch.inference_mode():
        plain = model(torch.tensor([ids])).logits[0, -1].float()
        rounded = change(heard[0][1]).float()
        changed = change(heard[0][0] @ model.lm_head.weight.float().T)
    assert (plain - rounded).norm() < 0.02 * plain.norm()
    wanted = changed - rounded.logsumexp(-1)
    off = np.abs(batch.known()[0][0] - wanted[:500].numpy()).max()
    assert off < (changed - rounded)[:500].abs().max() / 3


@pytest.mark.parametrize(
    ("dtype", "off", "kept"),
    [
        (torch.float32, 0.0, True),
        (torch.float32, 0.1, False),
        (torch.bfloat16, 0.08, True),  # a merged judge is off by 0.054 from rounding alone
        (torch.bfloat16, 0.3, False),
    ],
)
def test_rounding_alone_does_not_cost_the_packed_path(
    released: Loaded, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, off: float, kept: bool
) -> None:
    read = PackedBatch.known

    def known(batch: PackedBatch) -> list[Any]:
        return [rows * (1 + off) for rows in read(batch)]

    monkeypatch.setattr(PackedBatch, "known", known)
    model = copy.deepcopy(released.model).to(dtype)
    assert isinstance(make_engine(model, released.vocabulary), PackedEngine) == kept


@pytest.fixture(scope="module")
def taught(released: Loaded) -> Loaded:
    """The replica after a minute's schooling: decoding freely, it mostly writes score lines."""
    model = copy.deepcopy(released.model)
    prompts = prompts_of(released)
    draw = np.random.default_rng(0)
    targets = []
    for prompt in prompts:
        for _ in range(4):
            first, second = draw.choice(Grammar().values, 2)
            line = released.tokens.spell((str(first), str(second)))
            newline = released.vocabulary.encode(["a\n"])[0].ids[-1]
            targets.append((prompt, [*line, newline]))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(20):
        for prompt, line in targets:
            ids = torch.tensor([[*prompt, *line]])
            labels = ids.clone()
            labels[:, : len(prompt)] = -100
            loss = model(ids, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return Loaded(released.files, released.vocabulary, released.tokens, model.eval())


def test_greedy_line_equals_free_greedy_decoding(taught: Loaded) -> None:
    texts = [
        f"{text[:-13]} No. {n}\n\n### Response:"
        for text in (*TEXTS[:2], TEXTS[3])
        for n in range(8)
    ]
    prompts = prompts_of(taught, texts)
    valid = 0
    for prompt, result in zip(
        prompts, lines_of(tree_of(taught), prompts, taught.tokens), strict=True
    ):
        assert isinstance(result, LineDistribution)
        out = taught.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            temperature=None,
            max_new_tokens=8,
        )[0, len(prompt) :].tolist()
        end = next((n for n, token in enumerate(out) if token in taught.tokens.ends), None)
        free = out[:end]
        spelt = taught.tokens.spell(result.greedy)
        lines = {
            tuple(taught.tokens.spell(v)) for v in itertools.product(Grammar().values, repeat=2)
        }
        if end is not None and tuple(free) in lines:
            valid += 1
            assert free == spelt
    assert valid >= 0.8 * len(prompts)


def test_reasons_follow_the_line(released: Loaded) -> None:
    judge = Judge(tree_of(released), Lines(released.vocabulary), reason=True, new_tokens=7)
    view = View(load("judgelm"), (1, 2))
    prompts = prompts_of(released)
    results = judge.judge([Prompt(tuple(prompt), view) for prompt in prompts])
    for prompt, result in zip(prompts, results, strict=True):
        assert isinstance(result, Reading) and result.reason is not None
        ids = [*prompt, *released.tokens.spell(result.line.greedy)]
        out = released.model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            temperature=None,
            max_new_tokens=7,
        )[0, len(ids) :].tolist()
        assert ("reason-cut" in result.flags) == (2 not in out)
        words = released.vocabulary.decode(out[: out.index(2)] if 2 in out else out)
        assert result.reason == words.strip()


def test_reasons_do_not_read_their_prompts_again(released: Loaded) -> None:
    """Only score lines go through the model once more, and the words are those of whole prompts."""
    engine = tree_of(released)
    judge = Judge(engine, Lines(released.vocabulary), reason=True, new_tokens=7)
    prompts = prompts_of(released)
    view = View(load("judgelm"), (1, 2))
    fed: list[int] = []
    hook = released.model.register_forward_pre_hook(
        lambda model, args, kwargs: fed.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    judged = judge.judge([Prompt(tuple(prompt), view) for prompt in prompts])
    results = [result for result in judged if isinstance(result, Reading)]
    starts = [
        [*prompt, *released.tokens.spell(result.line.greedy)]
        for prompt, result in zip(prompts, results, strict=True)
    ]
    tails = [len(a) - len(b) for a, b in zip(starts, prompts, strict=True)]
    assert fed[-7:] == [sum(tails)] + 6 * [len(prompts)]
    engine.forget()
    written = engine.write(starts, [7] * len(starts), unheard)
    hook.remove()
    assert fed[-7:] == 7 * [len(prompts)]
    assert [words.text.strip() for words in written] == [result.reason for result in results]


@pytest.mark.parametrize("how", ["pass by pass", "captured"])
def test_texts_leave_when_they_end(
    released: Loaded, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many rows, some with the same prompt, those that go on are what they are alone; what has
    ended is in no pass, and soon in no block."""
    captured = tile_reference.use_here(monkeypatch) if how == "captured" else []
    engine, texts = tree_of(released), [*TEXTS, *TEXTS[:2], *TEXTS[:2]]
    prompts = prompts_of(released, texts)
    judge = Judge(engine, Lines(released.vocabulary), reason=False, new_tokens=0)
    view = View(load("judgelm"), (1, 2))
    judge.judge([Prompt(tuple(prompt), view) for prompt in prompts])
    batch, limits = engine._latest, [150, 3, 9, 1, 20, 2, 5, 90]
    starts = [[*prompt, 5 + n] for n, prompt in enumerate(prompts)]
    heard: list[int] = []
    together = engine.write(starts, limits, heard.append)
    assert batch is not None and batch.is_over
    assert batch.blocks.rows == (8 if how == "captured" else 1)
    assert heard == [sum(limit > n for limit in limits) for n in range(150)]
    if how == "captured":  # for drafts, and for texts, again for more places
        assert len(captured) == len(engine._graphed._passes) + 1 <= 6  # one of the trial
    for start, limit, words in zip(starts, limits, together, strict=True):
        (alone,) = engine.write([start], [limit], unheard)
        out = released.model.generate(
            torch.tensor([start]), do_sample=False, max_new_tokens=limit, pad_token_id=0
        )[0, len(start) :].tolist()
        assert words == alone and words.text == released.vocabulary.decode(out)
        assert words.cut


def test_a_text_may_end_when_more_is_asked_for_already(
    released: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets no token more, and the others are as they were."""
    tile_reference.use_here(monkeypatch)
    prompts, limit = prompts_of(released), 30
    most = max(map(len, prompts))
    ids = torch.tensor([[0] * (most - len(one)) + one for one in prompts])
    seen = torch.arange(most) >= most - torch.tensor([[len(one)] for one in prompts])
    how = {"do_sample": False, "max_new_tokens": limit, "pad_token_id": 0, "eos_token_id": -1}
    out = released.model.generate(ids, attention_mask=seen.long(), **how)[:, most:].tolist()
    end = out[1][limit // 2]
    sizes = [row.index(end) + 1 if end in row else limit for row in out]
    assert min(sizes) < limit
    vocabulary = dataclasses.replace(released.vocabulary, ends=(end,))
    engine = make_engine(released.model, vocabulary)
    heard: list[int] = []
    found = engine.write(prompts, [limit] * len(prompts), heard.append)
    for row, size, words in zip(out, sizes, found, strict=True):
        assert words == Written(vocabulary.decode(row[: size - (end in row)]), end not in row)
    assert heard == [sum(size > n for size in sizes) for n in range(max(sizes))]


@pytest.mark.parametrize("family, more", [("Llama", {}), *WINDOWED])
def test_captured_passes_give_the_same(
    released: Loaded, family: str, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through windows too, narrower than the text or wider; for batch after batch."""
    model, prompts = small(family, **more), prompts_of(released)
    limits = [40, 30, 20, 60]
    engine = make_engine(model, released.vocabulary)
    judged = exactly(engine, prompts, released.tokens)
    wanted = engine.write(prompts, limits, unheard)
    captured = tile_reference.use_here(monkeypatch)
    engine = make_engine(model, released.vocabulary)
    captured.clear()  # of the trial
    for _ in range(2):
        for one, other in zip(exactly(engine, prompts, released.tokens), judged, strict=True):
            assert np.abs(one.p - other.p).max() < 1e-6
        assert engine.write(prompts, limits, unheard) == wanted
    assert captured and isinstance(engine, PackedEngine)
    assert len(captured) == len(engine._graphed._passes)


def test_more_texts_than_graphs_take_are_written_alike(
    released: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until so many have ended that a graph takes the rest."""
    prompts, limits = prompts_of(released), [9, 30, 12, 20]
    wanted = make_engine(released.model, released.vocabulary).write(prompts, limits, unheard)
    captured = tile_reference.use_here(monkeypatch)
    engine = make_engine(released.model, released.vocabulary)
    captured.clear()  # of the trial
    monkeypatch.setattr("jlm_cli.hf_engine.MOST_TOKENS", 2)
    assert engine.write(prompts, limits, unheard) == wanted
    assert captured == [16]


def test_nothing_is_captured_under_autocast(
    released: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while training: a graph would read casts of the weights, which do not last."""
    captured, prompts = tile_reference.use_here(monkeypatch), prompts_of(released)
    with torch.autocast("cpu", torch.bfloat16):
        written = tree_of(released).write(prompts, [5] * len(prompts), unheard)
    assert not captured and len(written) == len(prompts)
    assert tree_of(released).write(prompts, [5] * len(prompts), unheard)
    assert captured


def test_a_model_that_waits_for_its_gpu_is_not_captured(
    released: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor tried again."""
    prompts, limits, tried = prompts_of(released), [9, 9, 9, 9], []

    def capture(step: Callable[[], torch.Tensor], _: object) -> Any:
        tried.append(step())
        raise RuntimeError("called a synchronizing CUDA operation")

    wanted = tree_of(released).write(prompts, limits, unheard)
    tile_reference.use_here(monkeypatch)
    monkeypatch.setattr("jlm_cli.hf.cuda_graph.capture", capture)
    engine = tree_of(released)
    for _ in range(2):
        assert engine.write(prompts, limits, unheard) == wanted
    assert len(tried) == 1


def test_a_graph_that_does_not_fit_is_no_slower_pass(
    released: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch is halved, as any that does not fit: what is free must not change a text."""

    def capture(*_: object) -> Any:
        raise torch.OutOfMemoryError

    tile_reference.use_here(monkeypatch)
    engine = tree_of(released)
    monkeypatch.setattr("jlm_cli.hf.cuda_graph.capture", capture)
    engine.forget()
    with pytest.raises(MemoryError):
        engine.write(prompts_of(released), [9] * 4, unheard)
    assert engine.captures


def test_what_is_no_number_stays_in_its_batch(released: Loaded) -> None:
    """Also where it came up as a text was written, which took more room than there was."""
    engine = tree_of(released)
    prompts, view = prompts_of(released), View(load("judgelm"), (1, 2))
    judge = Judge(engine, Lines(released.vocabulary), reason=False, new_tokens=0)
    wanted = [bits(one) for one in judge.judge([Prompt(tuple(p), view) for p in prompts])]
    layer = released.model.model.layers[0].mlp
    for sick in (False, True):  # of the prompts, or of the texts alone
        starts = [[*prompt, 5] for prompt in prompts]
        hook = layer.register_forward_hook(
            lambda _, given, out, sick=sick: (
                out * float("nan") if (given[0].shape[1] <= len(TEXTS)) == sick else out
            )
        )
        engine.write(starts, [200] * len(starts), unheard)
        hook.remove()
        found = judge.judge([Prompt(tuple(p), view) for p in prompts])
        assert [bits(one) for one in found] == wanted


def test_one_row_that_is_no_number_leaves_the_others_exact(released: Loaded) -> None:
    """Of widths as released models have them: of others than multiples of 32, oneDNN lets a token
    that is no number spoil the one before it, on processors with AMX."""
    model = small("Llama", hidden_size=64, head_dim=32).to(torch.bfloat16)
    with torch.no_grad():
        model.lm_head.weight *= 40
    engine, prompts = PackedEngine(model, released.vocabulary), prompts_of(released)
    spoilt = [*prompts[2], 7]
    found = []
    for rows in (prompts, [*prompts, spoilt]):
        hook = model.model.embed_tokens.register_forward_hook(
            lambda _, given, out: out.masked_fill((given[0] == 7)[..., None], float("nan"))
        )
        batch = engine.begin(rows, [[]] * len(rows), list(range(300, 340)))
        while batch.feed():
            pass
        found.append(batch.known()[: len(prompts)])
        hook.remove()
        engine = PackedEngine(model, released.vocabulary)
    for a, b in zip(*found, strict=True):
        assert np.isfinite(a).all() and np.abs(a - b).max() < 0.02


def test_reason_never_overruns_the_context(released: Loaded) -> None:
    judge = Judge(tree_of(released), Lines(released.vocabulary), reason=True, new_tokens=500)
    assert judge._room(range(2000)) == 48
    assert judge._room(range(100)) == 500


def test_answers_to_one_question_share_its_prefill(
    released: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight answers graded against one long reference: at most 0.75 of the tokens of eight
    separate gradings go through the model, and the same scores come out."""
    config = Config(inputs=(), output=None, model="replica", command="grade")
    lines, mode = Lines(released.vocabulary), mode_of(config)
    reference = "The long answer goes on about the matter at hand. " * 60
    samples = [
        Sample(n, n, "Why?", (f"Answer {n}: because it is so.",), reference) for n in range(8)
    ]
    encoded = Encoder(lines, mode, config).encode(samples)
    prompts = [prompt for found in encoded if isinstance(found, list) for prompt in found]
    engine = tree_of(released)
    judge = Judge(engine, lines, reason=False, new_tokens=0)
    run, fed = PackedEngine.run, []

    def counted(engine: PackedEngine, tokens: Any, *rest: Any) -> torch.Tensor:
        fed.append(len(tokens.ids))
        return run(engine, tokens, *rest)

    monkeypatch.setattr(PackedEngine, "run", counted)
    together = judge.judge(prompts)
    fed_together = sum(fed)
    alone = [judge.judge([prompt])[0] for prompt in prompts]
    assert fed_together <= 0.75 * (sum(fed) - fed_together)
    for one, other in zip(together, alone, strict=True):
        assert isinstance(one, Reading) and isinstance(other, Reading)
        assert one.line.p == pytest.approx(other.line.p, abs=2e-5)


@pytest.mark.parametrize("family", ["qwen3_5_text", "gemma4_text"])
def test_newer_families_are_followed_fast(released: Loaded, family: str) -> None:
    """With a cache that is gone on from, or packed; not by full passes for every path."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 32000}
    config = transformers.AutoConfig.for_model(family, **sizes)
    torch.manual_seed(0)
    auto: Any = transformers.AutoModelForCausalLM
    model = auto.from_config(config).eval()
    assert type(make_engine(model, released.vocabulary)) is not PlainEngine


def test_a_line_is_read_behind_the_very_tokens_that_were_written(released: Loaded) -> None:
    """Not behind another spelling of the same words, as after a colon."""
    vocabulary, text = released.vocabulary, "The first answer is sound.\n8 5"
    spelled = vocabulary.locate(f":{text}")
    begins = next(n for n, (start, _) in enumerate(spelled.offsets) if start >= 1)
    ids = list(spelled.ids[begins:])
    words = Written(vocabulary.decode(ids), False, ids)
    assert words.text == text and ids != vocabulary.locate(text).ids
    judge = Judge(PlainEngine(small("Llama"), vocabulary), Lines(vocabulary), False, 9)
    before = "The first answer is sound.\n"
    found = judge._ids_up_to(words, before)
    assert list(found) == ids[: len(found)] and vocabulary.decode(found) == before
    assert [*found, *judge._ids_behind(text, "\n9")][: len(found)] == list(found)
    assert judge._ids_up_to(Written(text, False), before) == tuple(vocabulary.locate(before).ids)
