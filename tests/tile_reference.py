"""What tile_kernel.py computes, in torch and on a CPU, tile by tile: its kernels need a GPU."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
import torch

from jlm_cli.hf import tiles
from jlm_cli.hf.attention import AttentionSpec
from jlm_cli.hf.packing import DraftTree
from jlm_cli.hf.tiles import OnDevice


def use_here(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As if there were a GPU. What it would replay is computed anew, in the same memory; the tokens
    of each pass that was captured."""
    captured: list[int] = []

    def capture(step: Any, _: object) -> tuple[Any, torch.Tensor]:
        found = step()
        captured.append(max(found.shape[0], found.shape[1]) if len(found) == 2 else len(found))
        return lambda: found.copy_(step()), found

    monkeypatch.setattr("jlm_cli.hf.cuda_graph.capture", capture)
    monkeypatch.setattr("jlm_cli.hf_engine.are_usable", lambda _: True)
    monkeypatch.setattr(tiles, "kernel", lambda: __import__("tile_reference"))
    return captured


def put(
    keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor, addresses: torch.Tensor
) -> None:
    for states, address in zip((keys, values), addresses.tolist(), strict=True):
        there = slots >= 0
        if there.any():
            block = _memory(address, int(slots.max()) + 1, states.transpose(0, 1))
            block[slots[there].long()] = states.transpose(0, 1)[there]


def attend(
    query: torch.Tensor, groups: int, asked: OnDevice, addresses: torch.Tensor, spec: AttentionSpec
) -> torch.Tensor:
    heads, n, size = query.shape
    found = torch.full((n, heads, size), float("nan"), dtype=query.dtype)
    scale = size**-0.5 if spec.scale is None else spec.scale
    for base, common, first, n_tokens, beside in asked.tiles.tolist():
        if not n_tokens:
            continue
        assert n_tokens <= asked.most
        mine, places = slice(first, first + n_tokens), common + beside
        like = query[:1].expand(groups, -1, -1).transpose(0, 1)
        if not places:
            found[mine] = 0
            continue
        key, value = (
            _memory(address, base + places, like)[base:].float() for address in addresses.tolist()
        )
        key, value = (one.repeat_interleave(heads // groups, 1) for one in (key, value))
        scores = torch.einsum("htd,phd->htp", query[:, mine].float(), key) * scale
        if spec.cap is not None:
            scores = spec.cap * torch.tanh(scores / spec.cap)
        ago = asked.positions[mine, None] - torch.arange(common)
        ago = torch.cat([ago, asked.ago[mine, :beside]], dim=1)
        hidden = (ago < 0) if spec.window is None else (ago < 0) | (ago >= spec.window)
        shares = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        found[mine] = torch.einsum("htp,phd->thd", shares, value).to(query.dtype)
    return found


def _memory(address: int, places: int, like: torch.Tensor) -> torch.Tensor:
    """What lies there: [places, groups, size], like some states [T, groups, size]."""
    groups, size = like.shape[1:]
    n_bytes = places * groups * size * like.element_size()
    here = (ctypes.c_char * n_bytes).from_address(address)
    return torch.frombuffer(here, dtype=like.dtype).view(places, groups, size)


def drafts(
    heads: int, groups: int, size: int, dtype: torch.dtype
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[DraftTree]]:
    """Queries, keys and values [., T, size] of three rows' drafts, more than a tile of one row's;
    keys and values [3, groups, 208, size] that are in blocks by then; the drafts."""
    seed, choice = torch.Generator().manual_seed(0), np.random.default_rng(0)
    trees = []
    for row, (prompt, new) in enumerate(((70, 3), (130, 25), (33, 1))):
        start = prompt + 4
        sees = np.zeros((new, start + new), bool)
        sees[:, :prompt] = True
        sees[:, prompt:start] = choice.random((new, 4)) < 0.5
        sees[np.arange(new), start + np.arange(new)] = True
        sees[5:, start] = True
        places = np.arange(start + new)
        positions = np.where(places < prompt, places, prompt + (places - prompt) // 3)
        trees.append(DraftTree(row, start, sees, positions))
    states = [torch.randn(n, 29, size, generator=seed).to(dtype) for n in (heads, groups, groups)]
    kept = [torch.randn(3, groups, 208, size, generator=seed).to(dtype) for _ in range(2)]
    return states, kept, trees


def move(
    origins: torch.Tensor, slots: torch.Tensor, addresses: torch.Tensor, like: torch.Tensor
) -> None:
    places = int(torch.cat([origins, slots]).max()) + 1
    for address in addresses.tolist():
        block = _memory(address, places, like.transpose(0, 1))
        block[slots] = block[origins]
