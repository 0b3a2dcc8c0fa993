"""Passes over a layer's states, in Triton, which reads this file's functions as they stand: rotary
embedding and gating each take one, where torch takes several."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_FOR_A_WARP = 512  # numbers


# fmt: off
@triton.jit  # type: ignore[untyped-decorator]
def _turn(  # type: ignore[no-untyped-def]
    states, cos, sin, in_batch, of_head, of_token, waves_in_batch, of_wave, heads, half,
    HEADS: tl.constexpr, HALF: tl.constexpr,
):
    # fmt: on
    """A token's heads in place: both halves of each by the waves of the first one."""
    token, row = tl.program_id(0), tl.program_id(1)
    head, number = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    there = (head < heads) & (number < half)
    wave = row * waves_in_batch + token * of_wave + number
    waves = tl.load(cos + wave, mask=number < half, other=0.0).to(tl.float32)
    across = tl.load(sin + wave, mask=number < half, other=0.0).to(tl.float32)
    at = row.to(tl.int64) * in_batch + token.to(tl.int64) * of_token + head * of_head + number
    first = tl.load(states + at, mask=there, other=0.0).to(tl.float32)
    second = tl.load(states + at + half, mask=there, other=0.0).to(tl.float32)
    kind = states.dtype.element_ty
    tl.store(states + at, (first * waves - second * across).to(kind), mask=there)
    tl.store(states + at + half, (second * waves + first * across).to(kind), mask=there)


# fmt: off
@triton.jit  # type: ignore[untyped-decorator]
def _gate(  # type: ignore[no-untyped-def]
    gate, up, found, of_gate, of_up, size, BLOCK: tl.constexpr,
):
    # fmt: on
    """silu(gate) times up: a part of one row for each program."""
    row = tl.program_id(0).to(tl.int64)
    number = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = number < size
    wide = tl.load(gate + row * of_gate + number, mask=there, other=0.0).to(tl.float32)
    wide = wide * tl.sigmoid(wide)
    wide = wide * tl.load(up + row * of_up + number, mask=there, other=0.0).to(tl.float32)
    tl.store(found + row * size + number, wide.to(found.dtype.element_ty), mask=there)


def turn(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys [B, heads, T, size] in place, by waves [B or 1, T, size]."""
    half = query.shape[-1] // 2
    with torch.cuda.device_of(query):  # type: ignore[no-untyped-call]
        for states in (query, key):
            batch, heads, n_tokens, _ = states.shape
            waves_in_batch = cos.stride(0) if len(cos) > 1 else 0
            _turn[n_tokens, batch](
                *(states, cos, sin, states.stride(0), states.stride(1), states.stride(2)),
                *(waves_in_batch, cos.stride(1), heads, half),
                HEADS=triton.next_power_of_2(heads),
                HALF=triton.next_power_of_2(half),
            )
    return query, key


def silu_times(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) times up, [..., size] each."""
    size = gate.shape[-1]
    gate_rows, up_rows = (one.view(-1, size) for one in (gate, up))
    found = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    block = min(4096, triton.next_power_of_2(size))
    with torch.cuda.device_of(gate):  # type: ignore[no-untyped-call]
        _gate[len(gate_rows), triton.cdiv(size, block)](
            *(gate_rows, up_rows, found, gate_rows.stride(0), up_rows.stride(0), size),
            BLOCK=block,
            num_warps=min(8, max(1, block // _FOR_A_WARP)),
        )
    return found
