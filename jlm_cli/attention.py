"""Attention kernels: torch's fused one, and plain matrix products where those are faster.

On CPUs that multiply bfloat16 natively, torch's fused kernel still runs at the rate of float32,
so batched products beat it two- to threefold, forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

PRODUCTS = "jlm_products"
_CHUNK = 128  # queries at a time: what a causal mask hides behind them is not computed


# query [B, heads, T, size], key and value [B, groups, S, size], `sees`, scale → like the query;
# `sees` is additive, [T, S] or [B, 1, T, S]; None means causal, the queries being the last places
Kernel = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, float | None], torch.Tensor
]


def fused(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sees: torch.Tensor | None,
    scale: float | None,
) -> torch.Tensor:
    tokens, places = query.shape[2], key.shape[2]
    if sees is None and places > tokens:
        ahead = query.new_full((tokens, places), float("-inf"))
        sees = ahead.triu(1 + places - tokens)
    return functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=sees,
        scale=scale,
        is_causal=sees is None,
        enable_gqa=True,
    )


def by_products(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sees: torch.Tensor | None,
    scale: float | None,
) -> torch.Tensor:
    query = query * (query.shape[-1] ** -0.5 if scale is None else scale)
    if sees is not None:
        return _products(query, key, value, sees)
    tokens, before = query.shape[2], key.shape[2] - query.shape[2]
    ahead = query.new_full((_CHUNK, _CHUNK), float("-inf")).triu(1)
    parts = []
    for start in range(0, tokens, _CHUNK):
        end = min(start + _CHUNK, tokens)
        seen = key[:, :, : before + end], value[:, :, : before + end]
        new = end - start
        parts.append(_products(query[:, :, start:end], *seen, ahead[:new, :new]))
    return torch.cat(parts, dim=2)


def _products(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sees: torch.Tensor
) -> torch.Tensor:
    """Heads that share their keys become one product. `sees` may be of the last places alone."""
    batch, heads, new, size = query.shape
    groups, seen = key.shape[1:3]
    rows = heads // groups * new
    scores = torch.matmul(query.reshape(batch, groups, rows, size), key.transpose(2, 3))
    scores = scores.view(batch, heads, new, seen)
    scores[..., seen - sees.shape[-1] :] += sees
    shares = torch.softmax(scores, dim=-1)
    out = torch.matmul(shares.view(batch, groups, rows, seen).to(value.dtype), value)
    return out.view(batch, heads, new, size)


def kernel_for(device: torch.device, dtype: torch.dtype) -> Kernel:
    """The faster one."""
    return by_products if device.type == "cpu" and dtype == torch.bfloat16 else fused


def _for_transformers(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """[B, heads, T, size] → [B, T, heads, size], over a padded batch."""
    return by_products(query, key, value, attention_mask, scaling).transpose(1, 2), None


AttentionInterface.register(PRODUCTS, _for_transformers)
AttentionMaskInterface.register(PRODUCTS, eager_mask)
