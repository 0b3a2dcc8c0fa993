"""The mean of adapters that came of one another: python recipes/tiny/mean.py OUT ADAPTER…

Weights along one path of training lie near each other, so that their mean judges as they do, with
less of what the last steps happened to bring. All else is the last adapter's.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

_WEIGHTS = "adapter_model.safetensors"


def main() -> None:
    output, *adapters = map(Path, sys.argv[1:])
    shutil.copytree(adapters[-1], output)
    found = [load_file(adapter / _WEIGHTS) for adapter in adapters]
    save_file(
        {name: mean([one[name] for one in found]) for name in found[-1]},
        output / _WEIGHTS,
        metadata={"format": "pt"},
    )


def mean(weights: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([one.float() for one in weights]).mean(0).to(weights[-1].dtype)


if __name__ == "__main__":
    main()
