"""What only a GPU can show: `pytest -m gpu`, on a machine with CUDA."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Loaded
from test_hf_engine import exactly, prompts_of, small
from tile_reference import drafts
from torch import nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from jlm_cli.engine import unheard
from jlm_cli.hf import float8, kernels, rotary
from jlm_cli.hf.attention import AttentionSpec, computing, fused, reads_rows_at_once
from jlm_cli.hf.blocks import Blocks, DraftTrees, Prompts
from jlm_cli.hf.layers import fuse
from jlm_cli.hf.packed_attention import _at_once
from jlm_cli.hf.packing import Segment
from jlm_cli.hf.reasons import Text
from jlm_cli.hf.tiles import OF_A_TILE, OnDevice, TiledBlocks, asked_by, asked_by_texts
from jlm_cli.hf.trial import make_engine
from jlm_cli.hf_engine import PackedEngine

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda")
# two passes; row 2 has its start by way of row 1, row 3 reads one token of its own
PASSES = (
    [Segment(0, 0, 70), Segment(1, 30, 90, 0), Segment(2, 50, 120, 1), Segment(3, 119, 120, 2)],
    [Segment(4, 60, 99, 3), Segment(5, 40, 45, 4)],
)


@pytest.mark.parametrize("window", [None, 16, 500])
@pytest.mark.parametrize("heads, groups", [(4, 4), (8, 2)])
@pytest.mark.parametrize("size", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_at_once(
    dtype: torch.dtype, size: int, heads: int, groups: int, window: int | None
) -> None:
    """Against each row by itself in float32, with what it shares written out."""
    assert reads_rows_at_once(DEVICE, dtype)
    seed = torch.Generator().manual_seed(0)
    blocks, spec = Blocks(), AttentionSpec(None, None, window)
    blocks.begin(6, 200)
    whole: dict[int, tuple[torch.Tensor, ...]] = {}
    for segments in PASSES:
        n_tokens = sum(segment.end - segment.start for segment in segments)
        states = tuple(
            torch.randn(1, n, n_tokens, size, generator=seed).to(DEVICE, dtype)
            for n in (heads, groups, groups)
        )
        prompts = Prompts.of(segments, DEVICE)
        with computing():
            found = _at_once(prompts, blocks, 0, states, spec)  # type: ignore[arg-type]
        at = 0
        for segment in segments:
            to = at + segment.end - segment.start
            query, *own = (one[:, :, at:to].float() for one in states)
            if segment.source is not None:
                before = (one[:, :, : segment.start] for one in whole[segment.source])
                own = [torch.cat(both, 2) for both in zip(before, own, strict=True)]
            key, value = whole[segment.row] = own[0], own[1]
            wanted = fused.causal(query, key, value, segment.start, spec)[0].transpose(0, 1)
            assert (found[at:to].float() - wanted).norm() <= 0.01 * wanted.norm()
            kept = [blocks._blocks[0, kind][segment.row, :, : segment.end] for kind in (0, 1)]
            for block, one in zip(kept, own, strict=True):
                assert torch.equal(block, one[0].to(dtype))
            at = to


MODELS: list[tuple[str, dict[str, Any]]] = [
    ("Llama", {"num_key_value_heads": 2}),
    ("Mistral", {"sliding_window": 8}),
    ("Gemma3Text", {"sliding_window": 8, "num_hidden_layers": 7}),
    ("Gemma2", {"sliding_window": 8, "attn_logit_softcapping": 1.5}),
    ("Phi3", {"sliding_window": 30}),
    ("Cohere2", {"sliding_window": 8, "num_hidden_layers": 5}),
]


@pytest.mark.parametrize("family, more", MODELS)
def test_a_judge_on_it_says_what_it_says_on_a_cpu(
    released: Loaded, family: str, more: dict[str, Any]
) -> None:
    """In float32; in bfloat16 as far off as on a CPU."""
    prompts, off = prompts_of(released), {}
    wanted = exactly(
        make_engine(small(family, **more), released.vocabulary), prompts, released.tokens
    )
    for device, dtype in itertools.product(("cpu", DEVICE), (torch.float32, torch.bfloat16)):
        model = small(family, **more).to(device, dtype)
        fuse(model)
        engine = make_engine(model, released.vocabulary)
        assert isinstance(engine, PackedEngine) and len(engine.behind) >= 3
        found = exactly(engine, prompts, released.tokens)
        off[device, dtype] = max(
            float(np.abs(one.p - other.p).max()) for one, other in zip(found, wanted, strict=True)
        )
    assert off[DEVICE, torch.float32] < 1e-5
    assert off[DEVICE, torch.bfloat16] <= 2 * off["cpu", torch.bfloat16] + 1e-3


@pytest.mark.parametrize("size", [16, 64, 576, 4096, 11008])
@pytest.mark.parametrize("n", [1, 3, 500])
def test_rows_are_narrowed_in_one_pass(n: int, size: int) -> None:
    """To the bit, also where they lie apart in memory."""
    rows = torch.randn(n, 2 * size, generator=torch.Generator().manual_seed(0))
    rows = (rows * 10.0 ** torch.arange(n)[:, None].remainder(5)).to(DEVICE, torch.bfloat16)
    rows[0, :3] = 0
    across = torch.empty(size, n, device=DEVICE, dtype=torch.bfloat16).t().copy_(rows[:, :size])
    for some in (rows[:, :size], rows[:, :size].contiguous(), rows[:, :size] * 0, across):
        found, wanted = float8._kernel(DEVICE)(some), float8.to_float8(some)
        assert torch.equal(found[0].view(torch.uint8), wanted[0].view(torch.uint8))
        assert torch.equal(found[1], wanted[1])


@pytest.mark.parametrize("size", [16, 64, 11008])
@pytest.mark.parametrize("n", [1, 500])
def test_gated_rows_are_narrowed_in_one_pass(n: int, size: int) -> None:
    """As those that float32 gates, but for a last place."""
    seed = torch.Generator().manual_seed(0)
    gate, up = (torch.randn(n, size, generator=seed).to(DEVICE, torch.bfloat16) for _ in range(2))
    found, scales = float8._gated(gate, up)
    wanted = nn.functional.silu(gate.float()) * up.float()
    torch.testing.assert_close(scales, float8.to_float8(wanted)[1], rtol=1e-5, atol=0)
    assert (found.float() * scales - wanted).abs().max() <= 0.07 * wanted.abs().max()
    assert (found.float() * scales - wanted).norm() <= 0.04 * wanted.norm()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("n", [1, 3, 500])
def test_float8_products_are_those_of_a_cpu(n: int, bias: bool) -> None:
    seed = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(256, 48, bias=bias).to(torch.bfloat16)
    states = torch.randn(1, n, 256, generator=seed).to(torch.bfloat16)
    with torch.inference_mode():
        wanted = float8.Float8Linear(layer, float8.to_float8)(states).float()
        here = float8.Float8Linear(layer.to(DEVICE), float8._kernel(DEVICE))
        found = here(states.to(DEVICE)).cpu().float()
    assert (found - wanted).norm() <= 0.01 * wanted.norm()


def test_float8_is_as_far_off_as_on_a_cpu(released: Loaded) -> None:
    """What one rounds up the other may round down, and both round coarsely."""
    prompts, off = prompts_of(released), []
    for device in ("cpu", DEVICE):
        model = small("Llama", num_key_value_heads=2, hidden_size=64, head_dim=32)
        model = model.to(device, torch.bfloat16)
        engine = make_engine(model, released.vocabulary)
        whole = exactly(engine, prompts, released.tokens)
        fuse(model)
        float8.use_float8(model)
        engine.forget()  # what was captured is of the layers before
        narrow = exactly(engine, prompts, released.tokens)
        pairs = zip(narrow, whole, strict=True)
        off.append(max(float(np.abs(one.p - other.p).max()) for one, other in pairs))
    assert 0 < off[1] <= 2 * off[0] + 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family, more", MODELS)
def test_captured_passes_give_what_others_do(
    released: Loaded,
    family: str,
    more: dict[str, Any],
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For batch after batch, and for more places. In bfloat16 products of other numbers of tokens
    round otherwise, which this model of random weights soon shows."""
    model = small(family, **more).to(DEVICE, dtype)
    prompts, limits = prompts_of(released), [40, 130, 20, 60]
    engine = make_engine(model, released.vocabulary)
    assert isinstance(engine, PackedEngine)
    judged = [exactly(engine, prompts, released.tokens) for _ in range(2)]
    assert isinstance(engine.pool.spare[0], TiledBlocks)
    engine.forget()
    found = [engine.write(prompts, limits, unheard) for _ in range(2)]
    assert engine.captures and len(engine._graphed._passes) >= 2
    assert found[0] == found[1]
    for one, other in zip(*judged, strict=True):
        assert one.p.tolist() == other.p.tolist()
    monkeypatch.setattr("jlm_cli.hf_engine.are_usable", lambda _: False)
    plain = make_engine(model, released.vocabulary)
    others = plain.write(prompts, limits, unheard)
    off = [
        float(np.abs(one.p - other.p).max())
        for one, other in zip(judged[0], exactly(plain, prompts, released.tokens), strict=True)
    ]
    if dtype == torch.float32:
        assert found[0] == others and max(off) < 1e-5
    else:
        assert [words.text[:9] for words in found[0]] == [words.text[:9] for words in others]
        assert max(off) < 0.02


KINDS = torch.bfloat16, torch.float16, torch.float32
SPECS = [AttentionSpec(), AttentionSpec(None, None, 20), AttentionSpec(0.3, 2.0, None)]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("heads, groups", [(4, 4), (14, 2), (16, 1)])
@pytest.mark.parametrize(
    "dtype, size", [*itertools.product(KINDS, (16, 80, 128)), (torch.bfloat16, 256)]
)
def test_tiles(dtype: torch.dtype, size: int, heads: int, groups: int, spec: AttentionSpec) -> None:
    """Against whole blocks with a mask, in float32 on a CPU; what no row asked for is 0."""
    states, kept, trees = drafts(heads, groups, size, dtype)
    plain, blocks = Blocks(), TiledBlocks(DEVICE)
    for some in (plain, blocks):
        some.begin(3, 208)
    with torch.inference_mode():
        for kind in (0, 1):
            plain._block(0, kind, kept[kind][0].float())[:] = kept[kind].float()
            blocks._block(0, kind, kept[kind][0].to(DEVICE))[:] = kept[kind].to(DEVICE)
        padded = DraftTrees.of(trees, plain, torch.device("cpu"), torch.float32)
        wanted = padded.attend(plain, 0, [one.float() for one in states], spec)
        asked = asked_by(trees, blocks.places).filled(48, 64)
        mine = [nn.functional.pad(one, (0, 0, 0, 48 - one.shape[1])).to(DEVICE) for one in states]
        found = OnDevice.of(asked, blocks.table).attend(blocks, 0, mine, spec).cpu().float()
    n = states[0].shape[1]
    rounding = 2e-6 if dtype == torch.float32 else 0.01
    assert (found[:n] - wanted).norm() <= rounding * wanted.norm()
    assert not found[n:].any()
    for kind in (0, 1):
        assert torch.equal(blocks._blocks[0, kind].cpu().float(), plain._blocks[0, kind])


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("heads, groups", [(4, 4), (4, 2), (14, 2), (16, 1)])
@pytest.mark.parametrize("dtype, size", [*itertools.product(KINDS, (80, 128))])
def test_tiles_of_texts(
    dtype: torch.dtype, size: int, heads: int, groups: int, spec: AttentionSpec
) -> None:
    """Of one token each: as they are in tiles that could have more."""
    seed = torch.Generator().manual_seed(0)
    texts = [Text(0, 9, 12, [5], 99), Text(1, 70, 70, [5], 99), Text(2, 170, 174, [5], 99)]
    texts[2].n_read = 20
    blocks = TiledBlocks(DEVICE)
    blocks.begin(3, 208)
    states = [
        torch.randn(n, 16, size, generator=seed).to(DEVICE, dtype) for n in (heads, groups, groups)
    ]
    with torch.inference_mode():
        for kind in (0, 1):
            kept = torch.randn(3, groups, 208, size, generator=seed)
            blocks._block(0, kind, states[1])[:] = kept.to(DEVICE, dtype)
        asked = asked_by_texts(texts, blocks.places)
        found, wanted = (
            OnDevice.of(one.filled(16, 64), blocks.table).attend(blocks, 0, states, spec).float()
            for one in (asked, dataclasses.replace(asked, most=OF_A_TILE))
        )
    assert (found - wanted).norm() <= (2e-6 if dtype == torch.float32 else 0.01) * wanted.norm()
    assert not found[3:].any() and found[:3].any(-1).all()


def test_kernels_turn_as_transformers_does() -> None:
    turning = rotary.RotaryPatch.of(small("Llama").to(DEVICE, torch.bfloat16))
    assert turning.modules and turning.faster is rotary.by_kernel


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("size", [16, 80, 128, 256])
def test_heads_are_turned_where_they_lie(dtype: torch.dtype, size: int) -> None:
    """In batches, and as parts of a wider product."""
    seed = torch.Generator().manual_seed(0)
    wide = torch.randn(2, 70, 8 * size, generator=seed).to(DEVICE, dtype)
    angle = torch.randn(1, 70, size // 2, generator=seed).repeat(1, 1, 2)
    waves = [one.to(DEVICE, dtype) for one in (angle.cos(), angle.sin())]
    query, key = (
        part.view(2, 70, -1, size).transpose(1, 2)
        for part in (wide[..., : 6 * size], wide[..., 6 * size :])
    )
    wanted = apply_rotary_pos_emb(query.float(), key.float(), *(one.float() for one in waves))
    found = rotary.by_kernel(query, key, *waves)
    for one, other in zip(found, wanted, strict=True):
        rounding = 1e-6 if dtype == torch.float32 else 0.01
        assert (one.float() - other).norm() <= rounding * other.norm()


@pytest.mark.parametrize("size", [16, 100, 4096, 11008])
@pytest.mark.parametrize("n", [1, 500])
def test_gates_are_passed_over_once(n: int, size: int) -> None:
    seed = torch.Generator().manual_seed(0)
    gate, up = torch.randn(1, n, 2 * size, generator=seed).to(DEVICE, torch.bfloat16).chunk(2, -1)
    wanted = nn.functional.silu(gate.float()) * up.float()
    found = kernels.silu_times(gate, up).float()
    assert found.shape == wanted.shape
    assert (found - wanted).norm() <= 0.01 * wanted.norm()
