"""Rows in float8, in Triton, which reads this file's functions as they stand."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_FOR_A_WARP = 512  # numbers


@triton.jit
def _store(wide, row, place, found, scales, size, most, least):  # type: ignore[no-untyped-def]
    """A row of float32 in float8, and its scale."""
    scale = tl.maximum(tl.max(tl.abs(wide), axis=0) / most, least)
    tl.store(scales + row, scale)
    narrow = (wide / scale).to(found.dtype.element_ty)
    tl.store(found + row * size + place, narrow, mask=place < size)


@triton.jit  # type: ignore[untyped-decorator]
def _to_float8(rows, found, scales, step, size, most, least, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """One row for each program."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    there = place < size
    wide = tl.load(rows + row * step + place, mask=there, other=0.0).to(tl.float32)
    _store(wide, row, place, found, scales, size, most, least)


# fmt: off
@triton.jit  # type: ignore[untyped-decorator]
def _gated_to_float8(  # type: ignore[no-untyped-def]
    gate, up, found, scales, step, up_step, size, most, least, BLOCK: tl.constexpr,
):
    # fmt: on
    """The same of silu(gate) times up."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    there = place < size
    wide = tl.load(gate + row * step + place, mask=there, other=0.0).to(tl.float32)
    wide *= tl.sigmoid(wide)
    wide *= tl.load(up + row * up_step + place, mask=there, other=0.0).to(tl.float32)
    _store(wide, row, place, found, scales, size, most, least)


def to_float8_at_once(
    rows: torch.Tensor, dtype: torch.dtype, most: float, least: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [n, size] and their scales, float32 [n, 1]."""
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    found, scales, how = _room_for(rows, dtype)
    with torch.cuda.device_of(rows):  # type: ignore[no-untyped-call]
        _to_float8[len(rows),](
            rows, found, scales, rows.stride(0), rows.shape[1], most, least, **how
        )
    return found, scales


def gated_to_float8_at_once(
    gate: torch.Tensor, up: torch.Tensor, dtype: torch.dtype, most: float, least: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of silu(gate) times up, [n, size] each."""
    found, scales, how = _room_for(gate, dtype)
    steps = gate.stride(0), up.stride(0)
    with torch.cuda.device_of(gate):  # type: ignore[no-untyped-call]
        _gated_to_float8[len(gate),](
            gate, up, found, scales, *steps, gate.shape[1], most, least, **how
        )
    return found, scales


def _room_for(
    rows: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, dict[str, int]]:
    n, size = rows.shape
    found = torch.empty(n, size, dtype=dtype, device=rows.device)
    scales = torch.empty(n, 1, device=rows.device)
    block = int(triton.next_power_of_2(size))
    return found, scales, {"BLOCK": block, "num_warps": min(16, max(1, block // _FOR_A_WARP))}
