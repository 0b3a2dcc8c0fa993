"""Numbers on their way between the host and a device, for which neither waits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from jlm_cli.scoreline import Floats


def sent(numbers: Any, device: torch.device) -> torch.Tensor:
    """A tensor (or what makes one) on a device. From pinned memory CUDA takes it in its turn."""
    here = torch.as_tensor(numbers)
    if device.type == "cuda":
        return here.pin_memory().to(device, non_blocking=True)
    return here.to(device)


class HostCopy:
    """The copy of a device's numbers, made as soon as the device has come to them; what is queued
    there later does not hold it up."""

    def __init__(self, numbers: torch.Tensor) -> None:
        on_gpu = numbers.is_cuda
        self._here = numbers.to("cpu", non_blocking=on_gpu)
        self._made = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]
        if self._made is not None:
            self._made.record(torch.cuda.current_stream(numbers.device))

    def is_ready(self) -> bool:
        return self._made is None or bool(self._made.query())  # type: ignore[no-untyped-call]

    def wait(self) -> Floats:
        """Wait for them; float64 only here, since not every device has it."""
        if self._made is not None:
            self._made.synchronize()
        here: Floats = self._here.numpy().astype(np.float64)
        return here
