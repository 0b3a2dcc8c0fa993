"""Attention over a packed sequence, behind transformers' interface: the only part of a pass that
looks at rows one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import torch
from transformers import AttentionInterface

from jlm_cli.hf.attention import AttentionSpec, Kernel, causal_rows, kernel_for, varlen_takes
from jlm_cli.hf.blocks import Blocks, Prompts
from jlm_cli.hf.packing import Segment

ATTENTION = "jlm_packed"

States: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # queries, keys, values


class Drafted(Protocol):
    """The drafted tokens of one pass, made once for all layers."""

    def attend(
        self, blocks: Any, layer: int, states: Sequence[torch.Tensor], spec: AttentionSpec
    ) -> torch.Tensor:
        """query [heads, T, size], key and value [groups, T, size], which are put in their place in
        the blocks: → [T, heads, size]."""
        ...


@dataclass(frozen=True)
class Pack:
    """What the attention of one pass needs: the blocks, whose tokens follow each other, and what
    is drafted behind all of them."""

    blocks: Blocks
    segments: Sequence[Segment]
    prompts: Prompts | None
    trees: Drafted | None

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
    spec = AttentionSpec(scaling, kwargs.get("softcap"), kwargs.get("sliding_window"))
    query, key = query.to(value.dtype), key.to(value.dtype)  # turned in float32 under autocast
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    pack.blocks.specs[layer] = spec
    if not pack.segments:
        return _drafts(pack, layer, (query, key, value), spec)[None], None
    at = pack.n_prompt_tokens
    states = query[:, :, :at], key[:, :, :at], value[:, :, :at]
    if pack.prompts is not None and varlen_takes(query.shape[-1], spec):
        parts = [_at_once(pack.prompts.on(query.device), pack.blocks, layer, states, spec)]
    else:
        kernel = kernel_for(query.device, query.dtype, spec)
        parts = list(_row_by_row(pack, layer, states, kernel, spec))
    if pack.trees is not None:
        states = query[:, :, at:], key[:, :, at:], value[:, :, at:]
        parts.append(_drafts(pack, layer, states, spec))
    return torch.cat(parts)[None], None


def _drafts(pack: Pack, layer: int, states: States, spec: AttentionSpec) -> torch.Tensor:
    """[1, heads, tokens, size] → [tokens, heads, size]."""
    assert pack.trees is not None
    return pack.trees.attend(pack.blocks, layer, [one[0] for one in states], spec)


def _at_once(
    prompts: Prompts, blocks: Blocks, layer: int, states: States, spec: AttentionSpec
) -> torch.Tensor:
    """[1, heads, tokens, size] → [tokens, heads, size], all prompts in one call."""
    query, key, value = (one[0] for one in states)
    keys, values = blocks.write_prompts(prompts, layer, (key, value))
    return causal_rows(query.transpose(0, 1), keys, values, prompts.lengths, spec)


def _row_by_row(
    pack: Pack, layer: int, states: States, kernel: Kernel, spec: AttentionSpec
) -> Iterator[torch.Tensor]:
    """[1, heads, tokens, size] → [tokens of a prompt, heads, size] for each."""
    query, key, value = states
    at = 0
    for segment in pack.segments:
        to = at + segment.end - segment.start
        keys, values = pack.blocks.write(segment, layer, (key[0, :, at:to], value[0, :, at:to]))
        seen = kernel.causal(query[:, :, at:to], keys, values, segment.start, spec)
        yield seen[0].transpose(0, 1)
        at = to


AttentionInterface.register(ATTENTION, _packed_attention)
