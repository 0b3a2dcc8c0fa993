"""Liger's kernels for GPUs, where they are installed: `pip install 'jlm[gpu]'`.

To turn queries and keys by their places, transformers' models pass over them nine times, which is
an eighth of the time that a 7B model takes on an H200; and over what a gated layer gates twice.
These kernels do so once. Without them queries and keys are turned in five passes.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeAlias

import torch
from transformers import PreTrainedModel

Turn: TypeAlias = Callable[..., tuple[torch.Tensor, torch.Tensor]]
_ROTARY = "apply_rotary_pos_emb"  # in the modules of models
MANY = 1024  # tokens of a pass; with fewer a call costs the host more than two of torch's
_ROUNDING = {2: 0.02, 4: 1e-5}  # by bytes; 16 bits round each of three steps by a quarter of it


def are_usable(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether they are there, and for such a model."""
    return device.type == "cuda" and dtype == torch.bfloat16 and are_installed()


@functools.cache
def are_installed() -> bool:
    return importlib.util.find_spec("liger_kernel") is not None


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
        liger = [_by_liger] if are_usable(model.device, model.dtype) else []
        for faster in (*liger, _by_halves):
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


def silu_times(gate: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    found: torch.Tensor = LigerSiLUMulFunction.apply(gate, factor)
    return found


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


def _by_liger(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """In place."""
    from liger_kernel.ops.rope import LigerRopeFunction

    # Triton's kernels go to the current GPU
    with torch.cuda.device_of(query):  # type: ignore[no-untyped-call]
        turned: tuple[torch.Tensor, torch.Tensor] = LigerRopeFunction.apply(query, key, cos, sin)
    return turned


def heads_of(model: PreTrainedModel) -> tuple[int, int, int]:
    """Heads of queries, of keys, and their size."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    return heads, groups, getattr(config, "head_dim", None) or config.hidden_size // heads


def _is_usual(own: Turn, faster: Turn, model: PreTrainedModel) -> bool:
    """False also where a kernel does not compile on this machine."""
    seed = torch.Generator().manual_seed(0)
    heads, groups, size = heads_of(model)
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
