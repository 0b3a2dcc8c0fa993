"""Where there are kernels of our own, in Triton, which comes with torch for GPUs."""

from __future__ import annotations

import importlib.util

import torch
from transformers import PreTrainedModel

from jlm_cli.devices import heads_in

_AMPERE = 8, 0


def are_usable(device: torch.device) -> bool:
    """Whether Triton is there, for such a device; AMD's was not tried."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    capable = torch.cuda.get_device_capability(device) >= _AMPERE
    return capable and importlib.util.find_spec("triton") is not None


def silu_times(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """In one pass."""
    from jlm_cli.hf import layer_kernel

    return layer_kernel.silu_times(gate, up)


def heads_of(model: PreTrainedModel) -> tuple[int, int, int]:
    """Heads of queries, of keys, and their size, where they are largest."""
    return max(heads_in(model.config.get_text_config()), key=lambda heads: heads[2])
