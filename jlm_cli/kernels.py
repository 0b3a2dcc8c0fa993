"""Liger's kernels for GPUs, where they are installed: `pip install 'jlm[gpu]'`.

To turn queries and keys by their places, transformers' models pass over them nine times, which is
an eighth of the time that a 7B model takes on an H200; and over what a gated layer gates twice.
These kernels do so once.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from transformers import PreTrainedModel

Turn: TypeAlias = Callable[..., tuple[torch.Tensor, torch.Tensor]]
_TURN = "apply_rotary_pos_emb"  # in the modules of models
_ROUNDING = 0.02  # 16 bits round each of three steps by a quarter of it


def are_usable(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether they are there, and for such a model."""
    return device.type == "cuda" and dtype == torch.bfloat16 and are_installed()


@functools.cache
def are_installed() -> bool:
    return importlib.util.find_spec("liger_kernel") is not None


@contextmanager
def turning(model: PreTrainedModel) -> Iterator[None]:
    """Within it Liger's kernel turns queries and keys for models that turn as Llama does."""
    modeling = sys.modules[type(model).__module__]
    own: Turn | None = getattr(modeling, _TURN, None)
    if own is None or not _turns_the_same(own, model.device, model.dtype):
        yield
        return
    setattr(modeling, _TURN, functools.partial(_turned, own))
    try:
        yield
    finally:
        setattr(modeling, _TURN, own)


def silu_times(gate: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    found: torch.Tensor = LigerSiLUMulFunction.apply(gate, factor)
    return found


def _turned(
    own: Turn,
    query: torch.Tensor,
    key: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *rest: Any,
    **more: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """In place: queries and keys [B, heads, T, size], whose halves have the same cos and sin [B, T,
    size]."""
    if rest or more or cos.ndim != 3 or cos.shape[-1] != query.shape[-1]:
        return own(query, key, cos, sin, *rest, **more)
    from liger_kernel.ops.rope import LigerRopeFunction

    # Triton's kernels go to the current GPU
    with torch.cuda.device_of(query):  # type: ignore[no-untyped-call]
        turned: tuple[torch.Tensor, torch.Tensor] = LigerRopeFunction.apply(query, key, cos, sin)
    return turned


@functools.cache
def _turns_the_same(own: Turn, device: torch.device, dtype: torch.dtype) -> bool:
    """By trial; False also where the kernel does not compile on this machine."""
    seed = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 32, n, 64, generator=seed).transpose(1, 2) for n in (4, 2))
    angle = torch.randn(1, 32, 32, generator=seed).repeat(1, 1, 2)
    states = [one.to(device, dtype) for one in (query, key, angle.cos(), angle.sin())]
    try:
        wanted = own(*states)
        found = _turned(own, *(one.clone() for one in states))
        return all(
            bool((a - b).float().norm() <= _ROUNDING * b.float().norm())
            for a, b in zip(found, wanted, strict=True)
        )
    except Exception:  # of a compiler, whatever it is
        return False
