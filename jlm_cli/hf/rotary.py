"""What queries and keys are turned by, and until where the turning stays as it is.

To turn queries and keys by their places, transformers' models pass over them nine times, which is
an eighth of the time that a 7B model takes on an H200. A kernel in Triton, which comes with torch
for GPUs, does so once; without it they are turned in five passes.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeAlias

import torch
from transformers import PreTrainedModel

from jlm_cli.hf import kernels

Turn: TypeAlias = Callable[..., tuple[torch.Tensor, torch.Tensor]]
_ROTARY = "apply_rotary_pos_emb"  # in the modules of models
_ROUNDING = {2: 0.02, 4: 1e-5}  # by bytes; 16 bits round each of three steps by a quarter of it


@dataclass(frozen=True)
class RotaryPatch:
    """The `modules` whose function turns a model's queries and keys as Llama's does, which is found
    out by a trial; and what does so `faster`."""

    modules: Sequence[ModuleType]
    faster: Turn

    @classmethod
    def of(cls, model: PreTrainedModel) -> RotaryPatch:
        names = {type(part).__module__ for part in model.modules() if hasattr(part, "layer_idx")}
        modules = (sys.modules[name] for name in sorted(names))
        turning = [one for one in modules if hasattr(one, _ROTARY)]
        kernel = [by_kernel] if kernels.are_usable(model.device) else []
        for faster in (*kernel, _by_halves):
            usual = [one for one in turning if _is_usual(getattr(one, _ROTARY), faster, model)]
            if usual:
                break
        return cls(usual, faster)

    @contextmanager
    def on(self) -> Iterator[None]:
        """For a while."""
        own = [getattr(module, _ROTARY) for module in self.modules]
        try:
            for module, turn in zip(self.modules, own, strict=True):
                setattr(module, _ROTARY, functools.partial(_rotated, turn, self.faster))
            yield
        finally:
            for module, turn in zip(self.modules, own, strict=True):
                setattr(module, _ROTARY, turn)


def _rotated(
    own: Turn, faster: Turn, *given: Any, **more: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys [B, heads, T, size], whose halves have the same cos and sin [B, T, size]."""
    if more or len(given) != 4:
        return own(*given, **more)
    query, _, cos, _ = given
    usual = cos.ndim == 3 and cos.shape[-1] == query.shape[-1]
    return faster(*given) if usual else own(*given)


def _by_halves(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    half = cos.shape[-1] // 2
    cos, sin = cos[:, None], sin[:, None, :, :half]

    def turned(states: torch.Tensor) -> torch.Tensor:
        out = states * cos
        out[..., :half].addcmul_(states[..., half:], sin, value=-1)
        out[..., half:].addcmul_(states[..., :half], sin)
        return out

    return turned(query), turned(key)


def by_kernel(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """In place."""
    from jlm_cli.hf import layer_kernel

    query, key = (one if one.stride(-1) == 1 else one.contiguous() for one in (query, key))
    return layer_kernel.turn(query, key, cos.contiguous(), sin.contiguous())


def ordinary_up_to(model: PreTrainedModel) -> float:
    """How long a row may be that changes nothing of what its pass makes of the others, by a rotary
    embedding that follows the longest one; which a short trial would not show either."""
    config = model.config.get_text_config()
    ropes = getattr(config, "rope_parameters", None) or {}
    ends: list[float] = [math.inf]
    for rope in (ropes, *(one for one in ropes.values() if isinstance(one, dict))):
        if rope.get("rope_type") == "longrope":
            ends.append(rope["original_max_position_embeddings"])
        elif rope.get("rope_type") == "dynamic":
            ends.append(config.max_position_embeddings)
    return min(ends)


def _is_usual(own: Turn, faster: Turn, model: PreTrainedModel) -> bool:
    """False also where a kernel does not compile on this machine."""
    seed = torch.Generator().manual_seed(0)
    heads, groups, size = kernels.heads_of(model)
    shapes = ((1, 32, n, size) for n in (heads, groups))
    query, key = (torch.randn(shape, generator=seed).transpose(1, 2) for shape in shapes)
    angle = torch.randn(1, 32, size // 2, generator=seed).repeat(1, 1, 2)
    states = [one.to(model.device, model.dtype) for one in (query, key, angle.cos(), angle.sin())]
    try:
        wanted = own(*states)
        found = _rotated(own, faster, *(one.clone() for one in states))
        return all(
            bool((a - b).float().norm() <= _ROUNDING[a.dtype.itemsize] * b.float().norm())
            for a, b in zip(found, wanted, strict=True)
        )
    except torch.OutOfMemoryError:
        raise
    except Exception:  # of a compiler, whatever it is
        return False
