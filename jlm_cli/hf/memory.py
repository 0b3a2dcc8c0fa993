"""Memory while a model runs: what happens where it ends, and how a CPU keeps what was freed."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import torch

# of the CPU's allocator; of CUDA itself, where a kernel is loaded or memory pinned; of its users
_OTHERS = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


class Forgets(Protocol):
    """What can give back the memory that it keeps between calls."""

    def forget(self) -> None: ...


Holder = TypeVar("Holder", bound=Forgets)
P = ParamSpec("P")
R = TypeVar("R")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Of torch's allocator for GPUs; others raise plain errors."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _OTHERS)


def within_memory(
    method: Callable[Concatenate[Holder, P], R],
) -> Callable[Concatenate[Holder, P], R]:
    """Let a method raise MemoryError where memory runs out, with all given back that it held."""

    @functools.wraps(method)
    def call(engine: Holder, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(engine, *args, **kwargs)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        engine.forget()  # only here: the error's traceback held the batch's tensors
        raise MemoryError

    return call


def keep_memory() -> None:
    """Let glibc keep freed memory: else every large tensor is mapped and faulted in anew.

    For judging, whose tensors keep their sizes; training would tear the heap to pieces. Elsewhere
    than on glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
