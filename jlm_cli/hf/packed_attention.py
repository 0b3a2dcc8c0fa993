"""Attention over a packed sequence, behind transformers' interface: the only part of a pass that
looks at rows one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from transformers import AttentionInterface

from jlm_cli.hf.attention import Kernel, Look, causal_rows, kernel_for, knows_how
from jlm_cli.hf.blocks import Blocks, Fans, Prompts
from jlm_cli.hf.packing import Segment

ATTENTION = "jlm_packed"

States: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # queries, keys, values


@dataclass(frozen=True)
class Pack:
    """What the attention of one pass needs: the blocks, whose tokens follow each other, and what
    is drafted behind all of them."""

    blocks: Blocks
    segments: Sequence[Segment]
    prompts: Prompts | None
    fans: Fans | None

    @cached_property
    def n_prompt_tokens(self) -> int:
        return sum(segment.end - segment.start for segment in self.segments)


def _packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    pack: Pack,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """[1, heads, tokens, size] → [1, tokens, heads, size], each token with its own row."""
    if kwargs.get("s_aux") is not None:
        raise NotImplementedError("attention with sinks is not packed")
    look = Look(scaling, kwargs.get("softcap"), kwargs.get("sliding_window"))
    query, key = query.to(value.dtype), key.to(value.dtype)  # turned in float32 under autocast
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    pack.blocks.looks[layer] = look
    kernel = kernel_for(query.device, query.dtype, look)
    if not pack.segments:
        return _drafts(pack, layer, (query, key, value), kernel, look)[None], None
    at = pack.n_prompt_tokens
    states = query[:, :, :at], key[:, :, :at], value[:, :, :at]
    if pack.prompts is not None and knows_how(query.shape[-1], look):
        parts = [_at_once(pack.prompts.on(query.device), pack.blocks, layer, states, look)]
    else:
        parts = list(_row_by_row(pack, layer, states, kernel, look))
    if pack.fans is not None:
        states = query[:, :, at:], key[:, :, at:], value[:, :, at:]
        parts.append(_drafts(pack, layer, states, kernel, look))
    return torch.cat(parts)[None], None


def _drafts(pack: Pack, layer: int, states: States, kernel: Kernel, look: Look) -> torch.Tensor:
    """[1, heads, tokens, size] → [tokens, heads, size]."""
    assert pack.fans is not None
    fans = pack.fans.on(states[0].device)
    query, key, value = (one[0] for one in states)
    keys, values = pack.blocks.write_fans(fans, layer, (key, value))
    return fans.attend(kernel, query.transpose(0, 1), keys, values, look)


def _at_once(
    prompts: Prompts, blocks: Blocks, layer: int, states: States, look: Look
) -> torch.Tensor:
    """[1, heads, tokens, size] → [tokens, heads, size], all prompts in one call."""
    query, key, value = (one[0] for one in states)
    keys, values = blocks.write_prompts(prompts, layer, (key, value))
    return causal_rows(query.transpose(0, 1), keys, values, prompts.lengths, look)


def _row_by_row(
    pack: Pack, layer: int, states: States, kernel: Kernel, look: Look
) -> Iterator[torch.Tensor]:
    """[1, heads, tokens, size] → [tokens of a prompt, heads, size] for each."""
    query, key, value = states
    at = 0
    for segment in pack.segments:
        to = at + segment.end - segment.start
        keys, values = pack.blocks.write(segment, layer, (key[0, :, at:to], value[0, :, at:to]))
        seen = kernel.causal(query[:, :, at:to], keys, values, segment.start, look)
        yield seen[0].transpose(0, 1)
        at = to


AttentionInterface.register(ATTENTION, _packed_attention)
