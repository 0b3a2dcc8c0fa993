"""Attention kernels: torch's fused one, and plain matrix products where those are faster.

On CPUs that multiply bfloat16 natively but have no AMX, torch's fused kernel still runs at the rate
of float32, so batched products beat it two- to threefold, forward and backward; with AMX it is the
kernel that is twice as fast.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from jlm_cli.devices import has_amx

PRODUCTS = "jlm_products"
_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_CHUNK = 128  # queries at a time: what a causal mask hides behind them is not computed
_MASKED_CHUNK = 512  # the same where a mask says it, of the fused kernel
_VECTOR = 32  # numbers of 16 bits in a vector register: softmax is slow on what is left over


@contextmanager
def computing() -> Iterator[None]:
    """For a model that is only used. Without cuDNN's attention, which torch prefers on some GPUs:
    it makes a plan for every new length, tens of milliseconds each time."""
    with torch.inference_mode(), sdpa_kernel(_KERNELS):
        yield


@dataclass(frozen=True)
class AttentionSpec:
    """A layer's attention: `scale` of the scores (None: one over the root of a head's size), soft
    `cap` of large ones (Gemma 2), sliding `window` of the last places seen, its own with them.
    """

    scale: float | None = None
    cap: float | None = None
    window: int | None = None

    def first(self, place: int) -> int:
        """The first place that is seen from one."""
        return 0 if self.window is None else max(0, place + 1 - self.window)


@dataclass(frozen=True)
class Kernel:
    """Attention of query [B, heads, T, size] to key and value [B, groups, S, size]: → [B, heads,
    T, size]; heads share groups.

    `causal(query, key, value, start, spec)`: the queries are the places `start` onwards; places
    behind the last one are there and finite, and not seen. `masked(query, key, value, sees, spec)`:
    `sees` is additive, [T, S] or [B, 1, T, S], and has the window in it.
    """

    causal: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int, AttentionSpec], torch.Tensor]
    masked: Callable[
        [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, AttentionSpec], torch.Tensor
    ]


def _fused_causal(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int, spec: AttentionSpec
) -> torch.Tensor:
    end = start + query.shape[2]
    on_cpu = query.device.type == "cpu"
    if spec.first(end - 1) or (start and on_cpu):
        return _fused_in_chunks(query, key, value, start, spec)
    seen = _whole_vectors(end) if on_cpu else end  # a start at 0 hides what is behind
    key, value = key[:, :, :seen], value[:, :, :seen]
    if query.is_cuda and not _has_flash(query.device, query.dtype):
        key, value = _for_each_head(query, key, value)
    # a mask of numbers would be slow on GPUs
    sees = causal_lower_right(end - start, end) if start else None
    return functional.scaled_dot_product_attention(
        query, key, value, sees, scale=spec.scale, is_causal=sees is None, enable_gqa=True
    )


def _fused_in_chunks(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int, spec: AttentionSpec
) -> torch.Tensor:
    """torch's fused kernels know no windows, and on CPUs no later start: a mask, of as many queries
    at a time as it pays."""
    parts = []
    last = start + query.shape[2]
    for at in range(start, last, _MASKED_CHUNK):
        end = min(at + _MASKED_CHUNK, last)
        seen = _seen(key, at, end, spec)
        sees = _band(query, range(at, end), range(seen.start, seen.stop), spec)
        mine = query[:, :, at - start : end - start]
        parts.append(_fused_masked(mine, key[:, :, seen], value[:, :, seen], sees, spec))
    return torch.cat(parts, dim=2)


def _band(like: torch.Tensor, places: range, seen: range, spec: AttentionSpec) -> torch.Tensor:
    """What some places see of others, additive [places, seen]."""
    hidden = like.new_full((len(places), len(seen)), float("-inf"))
    here = places.start - seen.start
    if spec.window is None:
        return hidden.triu_(here + 1)
    return hidden.triu(here + 1) + hidden.tril(here - spec.window)


def _fused_masked(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sees: torch.Tensor,
    spec: AttentionSpec,
) -> torch.Tensor:
    batch, heads, new, size = query.shape
    shared = heads // key.shape[1]
    if query.is_cuda:
        key, value = _for_each_head(query, key, value)
    elif shared > 1 and sees.ndim == 4 and _packs(query):  # keys once for all their heads
        query = query.reshape(batch, -1, shared * new, size)
        sees = sees.repeat(1, 1, shared, 1)
    found = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=sees, scale=spec.scale, enable_gqa=True
    )
    return found.reshape(batch, heads, new, -1)


def _packs(query: torch.Tensor) -> bool:
    """Whether torch's kernel first lays keys out for AMX."""
    return query.device.type == "cpu" and query.dtype.itemsize == 2


@dataclass(frozen=True)
class Lengths:
    """Where the rows of packed tokens begin and end, int32 [rows + 1], among the queries and among
    the places that these see; the longest row of each."""

    queries: torch.Tensor
    seen: torch.Tensor
    most_queries: int
    most_seen: int


def reads_rows_at_once(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there is a kernel for `causal_rows`; AMD's was not tried."""
    return device.type == "cuda" and torch.version.hip is None and _has_flash(device, dtype)


def varlen_takes(size: int, spec: AttentionSpec) -> bool:
    """Whether it takes heads of such a size, and such attention."""
    return size <= _WIDEST and size % 8 == 0 and spec.cap is None


def causal_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: Lengths,
    spec: AttentionSpec,
) -> torch.Tensor:
    """Attention of many rows in one call, query [T, heads, size] to key and value [S, groups,
    size]: → [T, heads, size]; the queries are the last places of their rows."""
    ends = lengths.queries, lengths.seen, lengths.most_queries, lengths.most_seen
    window = -1 if spec.window is None else spec.window - 1
    attend = _varlen(query.shape[1] != key.shape[1])
    return attend(query, key, value, *ends, scale=spec.scale, window_size=(window, 0))


_WIDEST = 256  # a head


@functools.cache
def _varlen(grouped: bool) -> Callable[..., torch.Tensor]:
    """torch's, whose import takes a second; before 2.12 heads shared keys unasked."""
    from torch.nn.attention.varlen import varlen_attn

    asks = "enable_gqa" in inspect.signature(varlen_attn).parameters
    found: Callable[..., Any] = varlen_attn
    return functools.partial(found, enable_gqa=True) if grouped and asks else found


@functools.cache
def _has_flash(device: torch.device, dtype: torch.dtype) -> bool:
    """The only fused kernel on GPUs that takes keys shared by heads; it takes no mask."""
    built = torch.backends.cuda.is_flash_attention_available()
    return built and dtype.itemsize == 2 and torch.cuda.get_device_capability(device)[0] >= 8


def _for_each_head(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    shared = query.shape[1] // key.shape[1]
    if shared == 1:
        return key, value
    return key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)


def _causal_products(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, start: int, spec: AttentionSpec
) -> torch.Tensor:
    query = _scaled(query, spec)
    ahead = query.new_full((_CHUNK + _VECTOR, _CHUNK + 2 * _VECTOR), float("-inf")).triu(1)
    parts = []
    at, last = start, start + query.shape[2]
    while at < last:
        end = min(_whole_vectors(at + _CHUNK), last)
        seen = _seen(key, at, end, spec)
        if spec.first(end - 1):
            sees = _band(query, range(at, end), range(seen.start, seen.stop), spec)
        else:
            sees = ahead[: end - at, : seen.stop - at]
        mine = query[:, :, at - start : end - start]
        parts.append(_products(mine, key[:, :, seen], value[:, :, seen], sees, spec))
        at = end
    return torch.cat(parts, dim=2)


def _seen(key: torch.Tensor, at: int, end: int, spec: AttentionSpec) -> slice:
    """The places that those from `at` to `end` see, in whole vectors where there are so many."""
    first = spec.first(at) // _VECTOR * _VECTOR
    return slice(first, min(_whole_vectors(end), key.shape[2]))


def _whole_vectors(places: int) -> int:
    return -(-places // _VECTOR) * _VECTOR


def _masked_products(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sees: torch.Tensor,
    spec: AttentionSpec,
) -> torch.Tensor:
    return _products(_scaled(query, spec), key, value, sees, spec)


def _scaled(query: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
    return query * (query.shape[-1] ** -0.5 if spec.scale is None else spec.scale)


def _products(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sees: torch.Tensor,
    spec: AttentionSpec,
) -> torch.Tensor:
    """Heads that share their keys become one product. `sees` may be of the last places alone."""
    batch, heads, new, size = query.shape
    groups, seen = key.shape[1:3]
    rows = heads // groups * new
    scores = torch.matmul(query.reshape(batch, groups, rows, size), key.transpose(2, 3))
    scores = scores.view(batch, heads, new, seen)
    if spec.cap is not None:
        scores = (scores / spec.cap).tanh() * spec.cap
    scores[..., seen - sees.shape[-1] :] += sees
    shares = torch.softmax(scores, dim=-1)
    out = torch.matmul(shares.view(batch, groups, rows, seen).to(value.dtype), value)
    return out.view(batch, heads, new, -1)


fused = Kernel(_fused_causal, _fused_masked)
by_products = Kernel(_causal_products, _masked_products)


def kernel_for(device: torch.device, dtype: torch.dtype, spec: AttentionSpec) -> Kernel:
    """The faster one of those that know such attention."""
    slow = device.type == "cpu" and dtype == torch.bfloat16 and not has_amx()
    return by_products if slow or spec.cap is not None else fused


def _for_transformers(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """[B, heads, T, size] → [B, T, heads, size], over a padded batch. Under autocast queries, keys
    and the mask are float32, whose lowest number would be -inf in bfloat16."""
    query, key = query.to(value.dtype), key.to(value.dtype)
    if kwargs.get("s_aux") is not None:
        raise NotImplementedError("attention with sinks is no product of two")
    spec = AttentionSpec(scaling, kwargs.get("softcap"))
    if attention_mask is None:
        start = key.shape[2] - query.shape[2]
        return by_products.causal(query, key, value, start, spec).transpose(1, 2), None
    sees = attention_mask.clamp(min=torch.finfo(value.dtype).min).to(value.dtype)
    return by_products.masked(query, key, value, sees, spec).transpose(1, 2), None


AttentionInterface.register(PRODUCTS, _for_transformers)
AttentionMaskInterface.register(PRODUCTS, eager_mask)
