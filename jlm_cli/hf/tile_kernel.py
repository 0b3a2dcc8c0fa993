"""Attention of drafted tokens and texts, in Triton, which reads this file's functions as they
stand: for GPUs, where torch's kernels take a mask only over rows that are all alike.

A tile is what some tokens of one row ask; tiles.py says what each of these tensors holds. Blocks
are found by their addresses, so that a captured pass serves whatever batch is under way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from jlm_cli.hf.tiles import FIELDS

if TYPE_CHECKING:
    from jlm_cli.hf.attention import AttentionSpec
    from jlm_cli.hf.tiles import OnDevice

_KEYS = 64  # at a time, at most
_ON_THEIR_WAY = 32768  # bytes of them; more would leave room for fewer tiles
_STAGES, _LARGE_STAGES = 2, 4  # parts of these: smaller ones of 16 bits for larger products
_LEAST = 16  # numbers in each width of a product
_HEADS = 4  # that share their keys, at most, in a program


# fmt: off
@triton.jit  # type: ignore[untyped-decorator]
def _put(  # type: ignore[no-untyped-def]
    key, value, slots, addresses, key_head, key_token, value_head, value_token, size, all_heads,
    BLOCK: tl.constexpr,
):
    # fmt: on
    """A token's keys and values, at its slot of the blocks; none where it is negative."""
    token = tl.program_id(0)
    slot = tl.load(slots + token).to(tl.int64)
    if slot >= 0:
        number = tl.arange(0, BLOCK)
        there = number < all_heads
        head, place = number // size, number % size
        to = slot * all_heads + number
        kind = key.dtype
        keys = tl.load(key + token * key_token + head * key_head + place, mask=there)
        tl.store(tl.load(addresses).to(kind) + to, keys, mask=there)
        values = tl.load(value + token * value_token + head * value_head + place, mask=there)
        tl.store(tl.load(addresses + 1).to(kind) + to, values, mask=there)


# fmt: off
@triton.jit  # type: ignore[untyped-decorator]
def _move(  # type: ignore[no-untyped-def]
    like, origins, slots, addresses, all_heads, BLOCK: tl.constexpr,
):
    # fmt: on
    """A token's keys and values from one slot of the blocks to another."""
    token = tl.program_id(0)
    kind = like.dtype
    number = tl.arange(0, BLOCK)
    there = number < all_heads
    here = tl.load(origins + token).to(tl.int64) * all_heads + number
    to = tl.load(slots + token).to(tl.int64) * all_heads + number
    keys_at, values_at = tl.load(addresses).to(kind), tl.load(addresses + 1).to(kind)
    tl.store(keys_at + to, tl.load(keys_at + here, mask=there), mask=there)
    tl.store(values_at + to, tl.load(values_at + here, mask=there), mask=there)


@triton.jit  # type: ignore[untyped-decorator]
def _more(states, keys, values, sees, scale, cap, most, total, out, CAPPED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Some more places: the softmax of all so far, by its largest score, its sum and what it
    makes of the values."""
    scores = tl.dot(states, tl.trans(keys), input_precision="ieee") * scale
    if CAPPED:
        scores = cap * (2 * tl.sigmoid(2 * scores / cap) - 1)
    scores = tl.where(sees, scores, float("-inf"))
    now = tl.maximum(most, tl.max(scores, 1))
    safe = tl.where(now == float("-inf"), 0.0, now)
    shares, fades = tl.exp(scores - safe[:, None]), tl.exp(most - safe)
    total = total * fades + tl.sum(shares, 1)
    shown = tl.dot(shares.to(values.dtype), values, input_precision="ieee")
    return now, total, out * fades[:, None] + shown


# fmt: off
@triton.jit  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    query, found, addresses, tiles, positions, ago, query_head, query_token, wide, groups, share,
    size, scale, cap, window, FIELDS: tl.constexpr, TOKENS: tl.constexpr, HEADS: tl.constexpr,
    KEYS: tl.constexpr, SIZE: tl.constexpr, CAPPED: tl.constexpr, WINDOWED: tl.constexpr,
):
    # fmt: on
    """A tile's queries, of some heads that share a group's keys."""
    tile, group = tiles + tl.program_id(0) * FIELDS, tl.program_id(1)
    base, common, first = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    n_tokens, n_more = tl.load(tile + 3), tl.load(tile + 4)
    if n_tokens > 0:
        asking, number, step = tl.arange(0, TOKENS * HEADS), tl.arange(0, SIZE), groups * size
        nth, of_group = asking // HEADS, tl.program_id(2) * HEADS + asking % HEADS
        token, head = first + nth, group * share + of_group
        here, within = (nth < n_tokens) & (of_group < share), number < size
        both = here[:, None] & within[None, :]
        asked_at = token[:, None] * query_token + head[:, None] * query_head + number[None, :]
        states = tl.load(query + asked_at, mask=both, other=0.0)
        position = tl.load(positions + token, mask=here, other=0)
        row_at = base.to(tl.int64) * step + group * size
        # as memory is allocated; else numbers would be moved one by one
        keys_at = tl.multiple_of(tl.load(addresses).to(query.dtype), 16) + row_at
        values_at = tl.multiple_of(tl.load(addresses + 1).to(query.dtype), 16) + row_at
        most = tl.full((TOKENS * HEADS,), float("-inf"), tl.float32)
        total = tl.zeros((TOKENS * HEADS,), tl.float32)
        out = tl.zeros((TOKENS * HEADS, SIZE), tl.float32)
        for start in range(0, common, KEYS):
            place = start + tl.arange(0, KEYS)
            there = (place < common)[:, None] & within[None, :]
            at = place[:, None] * step + number[None, :]
            keys = tl.load(keys_at + at, mask=there, other=0.0)
            values = tl.load(values_at + at, mask=there, other=0.0)
            sees = (place < common)[None, :] & here[:, None]
            if WINDOWED:
                sees = sees & (position[:, None] - place[None, :] < window)
            most, total, out = _more(
                states, keys, values, sees, scale, cap, most, total, out, CAPPED
            )
        for start in range(0, n_more, KEYS):
            place = start + tl.arange(0, KEYS)
            there = (place < n_more)[:, None] & within[None, :]
            at = (common + place)[:, None] * step + number[None, :]
            keys = tl.load(keys_at + at, mask=there, other=0.0)
            values = tl.load(values_at + at, mask=there, other=0.0)
            told = (place < n_more)[None, :] & here[:, None]
            told_at = token[:, None] * wide + place[None, :]
            since = tl.load(ago + told_at, mask=told, other=-1)
            sees = since >= 0
            if WINDOWED:
                sees = sees & (since < window)
            most, total, out = _more(
                states, keys, values, sees, scale, cap, most, total, out, CAPPED
            )
        out = out / tl.where(total == 0.0, 1.0, total)[:, None]
        out_at = (token[:, None] * groups * share + head[:, None]) * size + number[None, :]
        tl.store(found + out_at, out.to(found.dtype.element_ty), mask=both)


def put(
    keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor, addresses: torch.Tensor
) -> None:
    """Keys and values [groups, T, size] to their `slots` [T] of a layer's blocks, which lie at two
    `addresses`."""
    groups, n, size = keys.shape
    keys, values = (one if one.stride(2) == 1 else one.contiguous() for one in (keys, values))
    with torch.cuda.device_of(keys):  # type: ignore[no-untyped-call]
        _put[n,](
            *(keys, values, slots, addresses),
            *(keys.stride(0), keys.stride(1), values.stride(0), values.stride(1)),
            *(size, groups * size, _power(groups * size)),
        )


def move(
    origins: torch.Tensor, slots: torch.Tensor, addresses: torch.Tensor, like: torch.Tensor
) -> None:
    """The keys and values of some slots [n] to others, of blocks for states [groups, T, size]."""
    numbers = like.shape[0] * like.shape[2]
    with torch.cuda.device_of(like):  # type: ignore[no-untyped-call]
        _move[len(slots),](like, origins, slots, addresses, numbers, _power(numbers))


def _power(n: int) -> int:
    """Of two, that is as large."""
    return int(triton.next_power_of_2(n))


def attend(
    query: torch.Tensor, groups: int, asked: OnDevice, addresses: torch.Tensor, spec: AttentionSpec
) -> torch.Tensor:
    """Attention of query [heads, T, size] to a layer's blocks, as the tiles say; heads share the
    keys of `groups`: [T, heads, size], zeros for tokens that see nothing."""
    heads, n, size = query.shape
    query = query if query.stride(2) == 1 else query.contiguous()
    share = heads // groups
    at_once, wide = min(_HEADS, _power(share)), max(_LEAST, _power(size))
    each, n_tokens = query.element_size(), max(asked.most, _LEAST // at_once)
    stages = _LARGE_STAGES if n_tokens * at_once > _LEAST and each == 2 else _STAGES
    n_keys = max(_LEAST, min(_KEYS, _ON_THEIR_WAY // (stages * wide * each)))
    found = torch.empty(n, heads, size, dtype=query.dtype, device=query.device)
    with torch.cuda.device_of(query):  # type: ignore[no-untyped-call]
        _attend[len(asked.tiles), groups, triton.cdiv(share, at_once)](
            *(query, found, addresses, asked.tiles, asked.positions, asked.ago),
            *(query.stride(0), query.stride(1), asked.ago.stride(0), groups, share, size),
            size**-0.5 if spec.scale is None else spec.scale,
            spec.cap or 1.0,
            spec.window or 0,
            FIELDS=FIELDS,
            TOKENS=n_tokens,
            HEADS=at_once,
            KEYS=n_keys,
            SIZE=wide,
            CAPPED=spec.cap is not None,
            WINDOWED=spec.window is not None,
            num_stages=stages,
        )
    return found
